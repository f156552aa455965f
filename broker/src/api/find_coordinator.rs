//! FindCoordinator. There are no coordinators yet, and the answer says so in a way that clients retry on. The topic that
//! they will keep their state in comes to be with the first request, as in Kafka.

use millrace_protocol::messages::find_coordinator_response::Coordinator;
use millrace_protocol::messages::{FindCoordinatorRequest, FindCoordinatorResponse};
use millrace_protocol::{ErrorCode, StrBytes};

use super::internal_topics;
use super::request::RequestContext;
use crate::metadata::image::MetadataImage;

/// The topic that has to be made first, if it is not there.
pub(super) fn missing_topic(image: &MetadataImage, request: &FindCoordinatorRequest) -> Option<&'static str> {
    internal_topics::of_coordinator(request.key_type).filter(|name| image.topic_by_name(name).is_none())
}

/// Answers every key alike.
pub(super) fn handle(context: &RequestContext, request: &FindCoordinatorRequest) -> FindCoordinatorResponse {
    let (error, message) = match request.key_type {
        0 => (ErrorCode::CoordinatorNotAvailable, "this broker has no group coordinator yet"),
        1 => (ErrorCode::CoordinatorNotAvailable, "this broker has no transaction coordinator yet"),
        2 => (ErrorCode::InvalidRequest, "this broker has no share coordinator"),
        _ => (ErrorCode::InvalidRequest, "unknown type of coordinator"),
    };
    let message = Some(StrBytes::from_static(message));
    if context.version < 4 {
        return FindCoordinatorResponse {
            error_code: error.code(),
            error_message: message,
            node_id: -1,
            port: -1,
            ..Default::default()
        };
    }
    let coordinators = request
        .coordinator_keys
        .iter()
        .map(|key| Coordinator {
            key: key.clone(),
            node_id: -1,
            port: -1,
            error_code: error.code(),
            error_message: message.clone(),
            ..Default::default()
        })
        .collect();
    FindCoordinatorResponse { coordinators, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::{Encoder, Message as _};

    use super::super::fixtures::context;
    use super::*;

    fn run(version: i16, key_type: i8) -> FindCoordinatorResponse {
        let mut request = FindCoordinatorRequest { key_type, ..Default::default() };
        if version < 4 {
            request.key = "group".into();
        } else {
            request.coordinator_keys = vec!["a".into(), "b".into()];
        }
        let response = handle(&context(version), &request);
        response.encode(&mut Encoder::new(), version).expect("the answer fits its version");
        response
    }

    #[test]
    fn versions_up_to_3_have_one_answer() {
        for version in 0..=3 {
            let response = run(version, 0);
            assert_eq!((response.error_code, response.node_id, response.port), (15, -1, -1));
        }
        assert_eq!(run(1, 1).error_code, 15);
        assert_eq!(run(1, 9).error_code, 42);
    }

    #[test]
    fn versions_from_4_answer_each_key() {
        for version in 4..=6 {
            let response = run(version, 1);
            let answers: Vec<_> =
                response.coordinators.iter().map(|c| (c.key.as_str(), c.error_code)).collect();
            assert_eq!(answers, [("a", 15), ("b", 15)]);
            assert_eq!(response.error_code, 0);
        }
        assert!(run(6, 2).coordinators.iter().all(|coordinator| coordinator.error_code == 42));
    }
}
