//! AlterPartitionReassignments: decided by the controller (KIP-455).

use millrace_protocol::messages::{AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse};

use super::errors;
use crate::metadata::controller::{ControllerRequest, ControllerResponse};
use crate::metadata::{ControllerError, MetadataHandle};

/// Passes the request to the controller and answers what became of it.
pub(super) async fn handle(
    metadata: &MetadataHandle,
    request: AlterPartitionReassignmentsRequest,
) -> AlterPartitionReassignmentsResponse {
    let may_resize = request.allow_replication_factor_change;
    answered(may_resize, metadata.call(ControllerRequest::AlterPartitionReassignments(request)).await)
}

/// An error is one of the whole request: clients take it for all partitions.
fn answered(
    may_resize: bool,
    answer: Result<ControllerResponse, ControllerError>,
) -> AlterPartitionReassignmentsResponse {
    let (error, message) = match answer {
        Ok(ControllerResponse::AlterPartitionReassignments(response)) => return response,
        Ok(other) => (errors::unexpected_response("AlterPartitionReassignments", &other), String::new()),
        Err(error) => (errors::of_controller(&error), error.to_string()),
    };
    AlterPartitionReassignmentsResponse {
        error_code: error.code(),
        error_message: Some(message.into()),
        allow_replication_factor_change: may_resize,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::{Encoder, Message as _};

    use super::super::fixtures::image;
    use super::*;

    #[tokio::test]
    async fn the_request_fails_when_there_is_no_controller() {
        let metadata = MetadataHandle::fixed(image([1]));
        let response = handle(&metadata, AlterPartitionReassignmentsRequest::default()).await;
        assert_eq!(response.error_code, 41);
        for version in 0..=1 {
            response.encode(&mut Encoder::new(), version).expect("the answer fits its version");
        }
    }

    #[test]
    fn the_answer_of_the_controller_is_passed_on() {
        let response = AlterPartitionReassignmentsResponse { error_code: 85, ..Default::default() };
        let answer = Ok(ControllerResponse::AlterPartitionReassignments(response.clone()));
        assert_eq!(answered(true, answer), response);
    }
}
