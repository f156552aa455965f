//! From our errors to Kafka's codes: the one place for what the layers below report.

use millrace_protocol::ErrorCode;

use crate::metadata::ControllerError;
use crate::metadata::controller::ControllerResponse;

/// Code for a request that the controller has not answered.
pub(super) fn of_controller(error: &ControllerError) -> ErrorCode {
    match error {
        // Makes admin clients look for the controller again and retry.
        ControllerError::Unavailable { .. } => ErrorCode::NotController,
        ControllerError::Timeout { .. } => ErrorCode::RequestTimedOut,
        ControllerError::Unacceptable { .. } => ErrorCode::InvalidRequest,
    }
}

/// Code for an answer that does not belong to the question, which is a mistake in this broker or in the controller.
pub(super) fn unexpected_response(request: &'static str, response: &ControllerResponse) -> ErrorCode {
    tracing::error!(request, ?response, "the controller gave the answer to another request");
    ErrorCode::UnknownServerError
}
