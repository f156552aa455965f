//! IncrementalAlterConfigs: decided by the controller.

use millrace_protocol::messages::incremental_alter_configs_request::AlterConfigsResource;
use millrace_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use millrace_protocol::messages::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};

use super::errors;
use crate::metadata::controller::{ControllerRequest, ControllerResponse};
use crate::metadata::{ControllerError, MetadataHandle};

/// Passes the request to the controller and answers what became of it.
pub(super) async fn handle(
    metadata: &MetadataHandle,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let asked = request.resources.clone();
    answered(&asked, metadata.call(ControllerRequest::IncrementalAlterConfigs(request)).await)
}

fn answered(
    asked: &[AlterConfigsResource],
    answer: Result<ControllerResponse, ControllerError>,
) -> IncrementalAlterConfigsResponse {
    let (error, message) = match answer {
        Ok(ControllerResponse::IncrementalAlterConfigs(response)) => return response,
        Ok(other) => (errors::unexpected_response("IncrementalAlterConfigs", &other), String::new()),
        Err(error) => (errors::of_controller(&error), error.to_string()),
    };
    let responses = asked.iter().map(|resource| AlterConfigsResourceResponse {
        error_code: error.code(),
        error_message: Some(message.as_str().into()),
        resource_type: resource.resource_type,
        resource_name: resource.resource_name.clone(),
        ..Default::default()
    });
    IncrementalAlterConfigsResponse { responses: responses.collect(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::{Encoder, Message as _};

    use super::super::fixtures::image;
    use super::*;

    #[tokio::test]
    async fn every_resource_fails_when_there_is_no_controller() {
        let resource =
            AlterConfigsResource { resource_type: 2, resource_name: "a".into(), ..Default::default() };
        let request = IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() };
        let response = handle(&MetadataHandle::fixed(image([1])), request).await;
        let answer = &response.responses[0];
        assert_eq!((answer.resource_type, answer.resource_name.as_str(), answer.error_code), (2, "a", 41));
        for version in 0..=1 {
            response.encode(&mut Encoder::new(), version).expect("the answer fits its version");
        }
    }
}
