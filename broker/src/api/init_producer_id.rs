//! InitProducerId: ids for idempotent producers. Rule I6.
//!
//! The controller hands out ids in blocks; this broker keeps one block and gives its ids out one by one. Ids of a block
//! that was not used up when the broker stopped are never used.

use std::ops::Range;

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::{InitProducerIdRequest, InitProducerIdResponse};
use tokio::sync::Mutex;

use super::errors;
use crate::metadata::MetadataHandle;
use crate::metadata::controller::{ControllerRequest, ControllerResponse};

/// "No producer id", and "no epoch".
const NONE: i64 = -1;

/// The block of producer ids that this broker has.
#[derive(Debug, Default)]
pub(super) struct ProducerIds {
    block: Mutex<Range<i64>>,
}

impl ProducerIds {
    /// A producer id that nobody else has.
    ///
    /// Waits for others that do the same. Dropping the future may leave a block unused.
    async fn next(&self, metadata: &MetadataHandle) -> Result<i64, ErrorCode> {
        let mut block = self.block.lock().await;
        if block.is_empty() {
            let answer = metadata.call(ControllerRequest::AllocateProducerIds).await;
            *block = allocated(answer.map_err(|error| {
                tracing::warn!(%error, "asking the controller for producer ids");
                errors::of_controller(&error)
            })?)?;
        }
        block.next().ok_or(ErrorCode::CoordinatorLoadInProgress)
    }
}

fn allocated(response: ControllerResponse) -> Result<Range<i64>, ErrorCode> {
    match response {
        ControllerResponse::ProducerIds { first, count } => Ok(first..first + i64::from(count)),
        other => Err(errors::unexpected_response("AllocateProducerIds", &other)),
    }
}

/// Answers with a fresh id, or why there is none.
pub(super) async fn handle(
    metadata: &MetadataHandle,
    producer_ids: &ProducerIds,
    request: &InitProducerIdRequest,
) -> InitProducerIdResponse {
    let id = match check(request) {
        // What clients retry on; the controller's own errors mean nothing to a producer.
        Ok(()) => producer_ids.next(metadata).await.map_err(|_| ErrorCode::CoordinatorLoadInProgress),
        Err(error) => Err(error),
    };
    match id {
        Ok(producer_id) => InitProducerIdResponse { producer_id, producer_epoch: 0, ..Default::default() },
        Err(error) => InitProducerIdResponse {
            error_code: error.code(),
            producer_id: NONE,
            producer_epoch: -1,
            ..Default::default()
        },
    }
}

fn check(request: &InitProducerIdRequest) -> Result<(), ErrorCode> {
    let half_known = (request.producer_id == NONE) != (request.producer_epoch == -1);
    match request.transactional_id.as_deref() {
        _ if half_known => Err(ErrorCode::InvalidRequest),
        Some("") => Err(ErrorCode::InvalidRequest),
        // There is no transaction coordinator yet.
        Some(_) => Err(ErrorCode::CoordinatorNotAvailable),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::image;
    use super::*;

    fn request(transactional_id: Option<&str>) -> InitProducerIdRequest {
        InitProducerIdRequest { transactional_id: transactional_id.map(Into::into), ..Default::default() }
    }

    #[test]
    fn i6_an_idempotent_producer_needs_no_coordinator() {
        assert_eq!(check(&request(None)), Ok(()));
    }

    #[test]
    fn i6_an_empty_transactional_id_is_invalid_and_others_have_no_coordinator_yet() {
        assert_eq!(check(&request(Some(""))), Err(ErrorCode::InvalidRequest));
        assert_eq!(check(&request(Some("tx"))), Err(ErrorCode::CoordinatorNotAvailable));
    }

    #[test]
    fn an_id_without_its_epoch_is_invalid() {
        for (producer_id, producer_epoch, expected) in
            [(5, -1, false), (-1, 5, false), (5, 5, true), (-1, -1, true)]
        {
            let request = InitProducerIdRequest { producer_id, producer_epoch, ..request(None) };
            assert_eq!(check(&request).is_ok(), expected);
        }
    }

    #[tokio::test]
    async fn i6_ids_of_a_block_are_given_out_once_each() {
        let metadata = MetadataHandle::fixed(image([1]));
        let ids = ProducerIds { block: Mutex::new(7..9) };
        let first = handle(&metadata, &ids, &request(None)).await;
        assert_eq!((first.error_code, first.producer_id, first.producer_epoch), (0, 7, 0));
        assert_eq!(handle(&metadata, &ids, &request(None)).await.producer_id, 8);
        let none_left = handle(&metadata, &ids, &request(None)).await;
        assert_eq!((none_left.error_code, none_left.producer_id, none_left.producer_epoch), (14, -1, -1));
    }

    #[test]
    fn a_block_covers_the_ids_that_were_allocated() {
        let response = ControllerResponse::ProducerIds { first: 3000, count: 1000 };
        assert_eq!(allocated(response), Ok(3000..4000));
        assert_eq!(allocated(ControllerResponse::Done), Err(ErrorCode::UnknownServerError));
    }
}
