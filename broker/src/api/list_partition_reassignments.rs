//! ListPartitionReassignments: answered by the controller, which knows first (KIP-455).

use millrace_protocol::messages::{ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse};

use super::errors;
use crate::metadata::controller::{ControllerRequest, ControllerResponse};
use crate::metadata::{ControllerError, MetadataHandle};

/// Passes the request to the controller and answers what it says.
pub(super) async fn handle(
    metadata: &MetadataHandle,
    request: ListPartitionReassignmentsRequest,
) -> ListPartitionReassignmentsResponse {
    answered(metadata.call(ControllerRequest::ListPartitionReassignments(request)).await)
}

fn answered(answer: Result<ControllerResponse, ControllerError>) -> ListPartitionReassignmentsResponse {
    let (error, message) = match answer {
        Ok(ControllerResponse::ListPartitionReassignments(response)) => return response,
        Ok(other) => (errors::unexpected_response("ListPartitionReassignments", &other), String::new()),
        Err(error) => (errors::of_controller(&error), error.to_string()),
    };
    ListPartitionReassignmentsResponse {
        error_code: error.code(),
        error_message: Some(message.into()),
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
        let response = handle(&metadata, ListPartitionReassignmentsRequest::default()).await;
        assert_eq!(response.error_code, 41);
        response.encode(&mut Encoder::new(), 0).expect("the answer fits its version");
    }

    #[test]
    fn the_answer_of_the_controller_is_passed_on() {
        let response = ListPartitionReassignmentsResponse { error_code: 42, ..Default::default() };
        let answer = Ok(ControllerResponse::ListPartitionReassignments(response.clone()));
        assert_eq!(answered(answer), response);
    }
}
