//! DeleteTopics: decided by the controller.

use std::collections::BTreeMap;

use millrace_protocol::messages::delete_topics_request::DeleteTopicState;
use millrace_protocol::messages::delete_topics_response::DeletableTopicResult;
use millrace_protocol::messages::{DeleteTopicsRequest, DeleteTopicsResponse};
use millrace_protocol::{ErrorCode, StrBytes};
use uuid::Uuid;

use super::errors;
use super::request::RequestContext;
use crate::metadata::controller::{ControllerRequest, ControllerResponse};
use crate::metadata::{ControllerError, MetadataHandle};

/// Passes the request to the controller and answers what became of it.
pub(super) async fn handle(
    metadata: &MetadataHandle,
    context: &RequestContext,
    request: DeleteTopicsRequest,
) -> DeleteTopicsResponse {
    let mut request = newest_form(request);
    let refused = take_unclear(&mut request);
    let mut response = if request.topics.is_empty() {
        DeleteTopicsResponse::default()
    } else {
        let asked = request.topics.clone();
        let answer = metadata.call(ControllerRequest::DeleteTopics(request)).await;
        answered(&asked, answer)
    };
    response.responses.extend(refused);
    for_version(context.version, response)
}

/// Takes out topics that are named twice, or not at all, and refuses each of them once.
fn take_unclear(request: &mut DeleteTopicsRequest) -> Vec<DeletableTopicResult> {
    let mut seen: BTreeMap<(Option<StrBytes>, Uuid), usize> = BTreeMap::new();
    for topic in &request.topics {
        *seen.entry((topic.name.clone(), topic.topic_id)).or_default() += 1;
    }
    seen.retain(|(name, topic_id), count| *count > 1 || (name.is_none() && topic_id.is_nil()));
    request.topics.retain(|topic| !seen.contains_key(&(topic.name.clone(), topic.topic_id)));
    let refuse = |(name, topic_id): (Option<StrBytes>, Uuid)| {
        let message = if name.is_none() && topic_id.is_nil() {
            "neither a name nor an id is given"
        } else {
            "the topic stands in the request twice"
        };
        DeletableTopicResult {
            name,
            topic_id,
            error_code: ErrorCode::InvalidRequest.code(),
            error_message: Some(message.into()),
            ..Default::default()
        }
    };
    seen.into_keys().map(refuse).collect()
}

/// Names of versions up to 5 in the form of version 6.
fn newest_form(mut request: DeleteTopicsRequest) -> DeleteTopicsRequest {
    let names = std::mem::take(&mut request.topic_names);
    request
        .topics
        .extend(names.into_iter().map(|name| DeleteTopicState { name: Some(name), ..Default::default() }));
    request
}

fn answered(
    asked: &[DeleteTopicState],
    answer: Result<ControllerResponse, ControllerError>,
) -> DeleteTopicsResponse {
    let (error, message) = match answer {
        Ok(ControllerResponse::DeleteTopics(response)) => return response,
        Ok(other) => (errors::unexpected_response("DeleteTopics", &other), String::new()),
        Err(error) => (errors::of_controller(&error), error.to_string()),
    };
    let responses = asked.iter().map(|topic| DeletableTopicResult {
        name: topic.name.clone(),
        topic_id: topic.topic_id,
        error_code: error.code(),
        error_message: Some(message.as_str().into()),
        ..Default::default()
    });
    DeleteTopicsResponse { responses: responses.collect(), ..Default::default() }
}

/// Clients before version 3 do not know that deletion can be switched off, and those before 6 need a name.
fn for_version(version: i16, mut response: DeleteTopicsResponse) -> DeleteTopicsResponse {
    for topic in &mut response.responses {
        if version < 3 && topic.error_code == ErrorCode::TopicDeletionDisabled.code() {
            topic.error_code = ErrorCode::InvalidRequest.code();
        }
        if version < 6 {
            topic.name.get_or_insert_with(StrBytes::default);
        }
        if topic.error_code == 0 {
            topic.error_message = None;
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use millrace_protocol::{Encoder, Message as _};

    use super::super::fixtures::{context, id_of, image};
    use super::*;

    #[test]
    fn names_of_old_versions_and_states_of_new_ones_become_one_list() {
        let old = DeleteTopicsRequest { topic_names: vec!["a".into(), "b".into()], ..Default::default() };
        let names: Vec<_> = newest_form(old).topics.into_iter().map(|topic| topic.name).collect();
        assert_eq!(names, [Some("a".into()), Some("b".into())]);
        let by_id = DeleteTopicState { topic_id: id_of("a"), ..Default::default() };
        let new = DeleteTopicsRequest { topics: vec![by_id.clone()], ..Default::default() };
        assert_eq!(newest_form(new).topics, [by_id]);
    }

    #[test]
    fn switched_off_deletion_is_an_invalid_request_before_version_3() {
        let disabled = DeletableTopicResult {
            name: Some("a".into()),
            error_code: ErrorCode::TopicDeletionDisabled.code(),
            ..Default::default()
        };
        let response = DeleteTopicsResponse { responses: vec![disabled], ..Default::default() };
        assert_eq!(for_version(2, response.clone()).responses[0].error_code, 42);
        assert_eq!(for_version(3, response).responses[0].error_code, 73);
    }

    #[test]
    fn topics_named_twice_or_not_at_all_are_refused_once() {
        let named = |name: &str| DeleteTopicState { name: Some(name.into()), ..Default::default() };
        let topics = vec![named("a"), named("b"), named("a"), DeleteTopicState::default()];
        let mut request = DeleteTopicsRequest { topics, ..Default::default() };
        let refused = take_unclear(&mut request);
        assert_eq!(request.topics, [named("b")]);
        let refused: Vec<_> = refused.into_iter().map(|topic| (topic.name, topic.error_code)).collect();
        assert_eq!(refused, [(None, 42), (Some("a".into()), 42)]);
    }

    #[tokio::test]
    async fn every_topic_fails_when_there_is_no_controller() {
        let metadata = MetadataHandle::fixed(image([1]));
        let by_id = DeleteTopicState { name: None, topic_id: id_of("a"), ..Default::default() };
        let request = DeleteTopicsRequest { topics: vec![by_id], ..Default::default() };
        let response = handle(&metadata, &context(6), request).await;
        assert_eq!((response.responses[0].error_code, response.responses[0].topic_id), (41, id_of("a")));
        response.encode(&mut Encoder::new(), 6).expect("the answer fits its version");
    }

    #[test]
    fn every_version_can_be_written() {
        let unknown =
            DeletableTopicResult { name: None, topic_id: Uuid::nil(), error_code: 3, ..Default::default() };
        let response = DeleteTopicsResponse { responses: vec![unknown], ..Default::default() };
        for version in 1..=6 {
            for_version(version, response.clone()).encode(&mut Encoder::new(), version).expect("fits");
        }
    }
}
