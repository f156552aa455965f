//! CreateTopics: decided by the controller; this broker adds the settings that the new topic has.

use std::collections::BTreeMap;

use millrace_protocol::messages::create_topics_request::CreatableTopic;
use millrace_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use millrace_protocol::messages::{CreateTopicsRequest, CreateTopicsResponse};
use millrace_protocol::{ErrorCode, StrBytes};

use super::describe_configs::{Entry, Source, topic_entries};
use super::errors;
use crate::metadata::controller::ControllerResponse;
use crate::metadata::{ControllerError, MetadataHandle};

/// Kafka keeps its metadata under this name, and tools know it: nobody may make such a topic.
const RESERVED: &str = "__cluster_metadata";

/// Passes the request to the controller and answers what became of it.
pub(super) async fn handle(
    metadata: &MetadataHandle,
    source: impl FnOnce(CreateTopicsResponse) -> CreateTopicsResponse,
    mut request: CreateTopicsRequest,
) -> CreateTopicsResponse {
    let reserved = take_reserved(&mut request);
    let mut response = if request.topics.is_empty() {
        CreateTopicsResponse::default()
    } else {
        let asked = request.topics.clone();
        let answer =
            metadata.call(crate::metadata::controller::ControllerRequest::CreateTopics(request)).await;
        source(answered(&asked, answer))
    };
    response.topics.extend(reserved);
    response
}

fn take_reserved(request: &mut CreateTopicsRequest) -> Vec<CreatableTopicResult> {
    let before = request.topics.len();
    request.topics.retain(|topic| topic.name != RESERVED);
    let refusal =
        || failed(&RESERVED.into(), ErrorCode::InvalidRequest, "the name is reserved for the metadata log");
    if request.topics.len() < before { vec![refusal()] } else { Vec::new() }
}

fn failed(name: &StrBytes, error: ErrorCode, message: &str) -> CreatableTopicResult {
    CreatableTopicResult {
        name: name.clone(),
        error_code: error.code(),
        error_message: Some(message.into()),
        ..Default::default()
    }
}

fn answered(
    asked: &[CreatableTopic],
    answer: Result<ControllerResponse, ControllerError>,
) -> CreateTopicsResponse {
    let (error, message) = match answer {
        Ok(ControllerResponse::CreateTopics(response)) => return response,
        Ok(other) => (errors::unexpected_response("CreateTopics", &other), String::new()),
        Err(error) => (errors::of_controller(&error), error.to_string()),
    };
    let topics = asked.iter().map(|topic| failed(&topic.name, error, &message)).collect();
    CreateTopicsResponse { topics, ..Default::default() }
}

/// Adds to each topic that was made the settings that apply to it. `asked` are the topics of the request.
pub(super) fn add_configs(
    source: Source<'_>,
    asked: &BTreeMap<String, BTreeMap<String, String>>,
    mut response: CreateTopicsResponse,
) -> CreateTopicsResponse {
    for topic in response.topics.iter_mut().filter(|topic| topic.error_code == 0) {
        topic.error_message = None;
        let own = asked.get(topic.name.as_str()).cloned().unwrap_or_default();
        topic.configs = Some(topic_entries(source, &own).into_iter().map(config).collect());
    }
    response
}

/// Settings that a request gives to its topics, by topic name.
pub(super) fn own_configs(request: &CreateTopicsRequest) -> BTreeMap<String, BTreeMap<String, String>> {
    let configs = |topic: &CreatableTopic| {
        let set =
            topic.configs.iter().filter_map(|entry| Some((entry.name.as_str(), entry.value.as_deref()?)));
        set.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    request.topics.iter().map(|topic| (topic.name.as_str().to_owned(), configs(topic))).collect()
}

fn config(entry: Entry) -> CreatableTopicConfigs {
    CreatableTopicConfigs {
        name: entry.name.into(),
        value: entry.value.map(StrBytes::from),
        read_only: entry.read_only,
        config_source: entry.source,
        is_sensitive: entry.sensitive,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use millrace_protocol::messages::create_topics_request::CreatableTopicConfig;
    use millrace_protocol::{Encoder, Message as _};

    use super::super::fixtures::image;
    use super::*;
    use crate::config::BrokerConfig;

    fn topic(name: &str) -> CreatableTopic {
        let config = CreatableTopicConfig {
            name: "retention.ms".into(),
            value: Some("5".into()),
            ..Default::default()
        };
        CreatableTopic { name: name.into(), configs: vec![config], ..Default::default() }
    }

    fn request(names: &[&str]) -> CreateTopicsRequest {
        CreateTopicsRequest { topics: names.iter().map(|name| topic(name)).collect(), ..Default::default() }
    }

    #[test]
    fn a_new_topic_is_told_with_its_settings() {
        let (image, config) = (image([1]), BrokerConfig::dev(Path::new("/d"), 0));
        let source = Source { image: &image, config: &config, own_id: 1 };
        let made = CreatableTopicResult { name: "a".into(), num_partitions: 3, ..Default::default() };
        let refused = failed(&"b".into(), ErrorCode::TopicAlreadyExists, "exists");
        let response = CreateTopicsResponse { topics: vec![made, refused], ..Default::default() };
        let response = add_configs(source, &own_configs(&request(&["a"])), response);
        for version in 2..=7 {
            response.encode(&mut Encoder::new(), version).expect("the answer fits its version");
        }
        assert_eq!(response.topics[0].error_message, None);
        let configs = response.topics[0].configs.as_deref().expect("told");
        let retention = configs.iter().find(|config| config.name == "retention.ms").expect("a key of topics");
        assert_eq!((retention.value.as_deref(), retention.config_source), (Some("5"), 1));
        assert_eq!(response.topics[1].configs.as_deref(), Some(&[][..]));
    }

    #[test]
    fn every_topic_fails_when_the_controller_does_not_answer() {
        let response =
            answered(&request(&["a", "b"]).topics, Err(ControllerError::Timeout { message: String::new() }));
        let errors: Vec<_> =
            response.topics.iter().map(|topic| (topic.name.as_str(), topic.error_code)).collect();
        assert_eq!(errors, [("a", 7), ("b", 7)]);
    }

    #[tokio::test]
    async fn the_name_of_the_metadata_log_is_reserved() {
        let metadata = MetadataHandle::fixed(image([1]));
        let response = handle(&metadata, |response| response, request(&[RESERVED, "a"])).await;
        let errors: Vec<_> =
            response.topics.iter().map(|topic| (topic.name.as_str(), topic.error_code)).collect();
        assert_eq!(errors, [("a", 41), (RESERVED, 42)]);
    }
}
