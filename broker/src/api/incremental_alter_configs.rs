//! IncrementalAlterConfigs: decided by the controller, after this broker has looked at what is about itself.

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use millrace_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use millrace_protocol::messages::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};

use super::errors;
use super::topics::is_legal_name;
use crate::config::registry;
use crate::metadata::controller::{ControllerRequest, ControllerResponse};
use crate::metadata::image::BrokerId;
use crate::metadata::{ControllerError, MetadataHandle};

/// `ConfigResource.Type` on the wire.
const TOPIC: i8 = 2;
/// `ConfigResource.Type` on the wire.
const BROKER: i8 = 4;
/// Operation that removes a setting, and needs no value.
const DELETE: i8 = 1;

/// Passes the request to the controller and answers what became of it.
pub(super) async fn handle(
    metadata: &MetadataHandle,
    own_id: BrokerId,
    mut request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let refused = take_refused(&mut request, own_id);
    let mut response = if request.resources.is_empty() {
        IncrementalAlterConfigsResponse::default()
    } else {
        let asked = request.resources.clone();
        answered(&asked, metadata.call(ControllerRequest::IncrementalAlterConfigs(request)).await)
    };
    response.responses.extend(refused);
    response
}

/// Takes out resources that no controller needs to be asked about.
fn take_refused(
    request: &mut IncrementalAlterConfigsRequest,
    own_id: BrokerId,
) -> Vec<AlterConfigsResourceResponse> {
    let mut refused = Vec::new();
    request.resources.retain(|resource| match check(resource, own_id) {
        Ok(()) => true,
        Err((error, message)) => {
            refused.push(result(resource, error, &message));
            false
        }
    });
    refused
}

fn check(resource: &AlterConfigsResource, own_id: BrokerId) -> Result<(), (ErrorCode, String)> {
    let invalid = |message: String| Err((ErrorCode::InvalidRequest, message));
    let name = resource.resource_name.as_str();
    let sets = |config: &&AlterableConfig| config.config_operation != DELETE;
    if let Some(config) = resource.configs.iter().filter(sets).find(|config| config.value.is_none()) {
        return invalid(format!("{} has no value", config.name.as_str()));
    }
    match resource.resource_type {
        TOPIC if name.is_empty() => invalid("the topic has no name".to_owned()),
        TOPIC if !is_legal_name(name) => {
            Err((ErrorCode::InvalidTopicException, format!("topic name {name:?} is not legal")))
        }
        BROKER if !name.is_empty() && name.parse() != Ok(own_id) => {
            // Clients send what is about one broker to that broker.
            invalid(format!("broker {name} was asked for, and this is broker {own_id}"))
        }
        BROKER => {
            let problem = resource.configs.iter().filter(sets).find_map(|config| {
                let value = config.value.as_deref().unwrap_or_default();
                registry::validate_dynamic_broker(&config.name, value).err()
            });
            problem.map_or(Ok(()), invalid)
        }
        // The controller knows what else there is.
        _ => Ok(()),
    }
}

fn result(resource: &AlterConfigsResource, error: ErrorCode, message: &str) -> AlterConfigsResourceResponse {
    AlterConfigsResourceResponse {
        error_code: error.code(),
        error_message: Some(message.into()),
        resource_type: resource.resource_type,
        resource_name: resource.resource_name.clone(),
        ..Default::default()
    }
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
    let responses = asked.iter().map(|resource| result(resource, error, &message)).collect();
    IncrementalAlterConfigsResponse { responses, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::{Encoder, Message as _};

    use super::super::fixtures::image;
    use super::*;

    fn resource(resource_type: i8, name: &str, key: &str, value: Option<&str>) -> AlterConfigsResource {
        let config = AlterableConfig { name: key.into(), value: value.map(Into::into), ..Default::default() };
        AlterConfigsResource {
            resource_type,
            resource_name: name.into(),
            configs: vec![config],
            ..Default::default()
        }
    }

    fn refusal(resource: &AlterConfigsResource) -> Option<i16> {
        check(resource, 1).err().map(|(error, _)| error.code())
    }

    #[test]
    fn what_the_controller_must_decide_is_passed_on() {
        for resource in [
            resource(TOPIC, "a", "retention.ms", Some("x")),
            resource(BROKER, "", "log.retention.ms", Some("5")),
            resource(BROKER, "1", "log.retention.ms", Some("5")),
            resource(99, "x", "y", Some("z")),
        ] {
            assert_eq!(refusal(&resource), None, "{resource:?}");
        }
    }

    #[test]
    fn a_setting_needs_a_value_unless_it_is_removed() {
        let mut resource = resource(TOPIC, "a", "retention.ms", None);
        assert_eq!(refusal(&resource), Some(42));
        resource.configs[0].config_operation = DELETE;
        assert_eq!(refusal(&resource), None);
    }

    #[test]
    fn topics_need_a_legal_name() {
        assert_eq!(refusal(&resource(TOPIC, "", "retention.ms", Some("5"))), Some(42));
        assert_eq!(refusal(&resource(TOPIC, "b/d", "retention.ms", Some("5"))), Some(17));
    }

    #[test]
    fn a_broker_changes_only_itself_and_only_what_is_dynamic() {
        assert_eq!(refusal(&resource(BROKER, "2", "log.retention.ms", Some("5"))), Some(42));
        assert_eq!(refusal(&resource(BROKER, "one", "log.retention.ms", Some("5"))), Some(42));
        assert_eq!(refusal(&resource(BROKER, "1", "node.id", Some("5"))), Some(42));
        assert_eq!(refusal(&resource(BROKER, "", "log.retention.ms", Some("x"))), Some(42));
    }

    #[tokio::test]
    async fn every_resource_is_answered_when_there_is_no_controller() {
        let resources = vec![
            resource(TOPIC, "b/d", "retention.ms", Some("5")),
            resource(TOPIC, "a", "retention.ms", Some("5")),
        ];
        let request = IncrementalAlterConfigsRequest { resources, ..Default::default() };
        let response = handle(&MetadataHandle::fixed(image([1])), 1, request).await;
        let answers: Vec<_> = response
            .responses
            .iter()
            .map(|answer| (answer.resource_name.as_str(), answer.error_code))
            .collect();
        assert_eq!(answers, [("a", 41), ("b/d", 17)]);
        for version in 0..=1 {
            response.encode(&mut Encoder::new(), version).expect("the answer fits its version");
        }
    }
}
