//! CreatePartitions: decided by the controller.

use millrace_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use millrace_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use millrace_protocol::messages::{CreatePartitionsRequest, CreatePartitionsResponse};

use super::errors;
use crate::metadata::controller::{ControllerRequest, ControllerResponse};
use crate::metadata::{ControllerError, MetadataHandle};

/// Passes the request to the controller and answers what became of it.
pub(super) async fn handle(
    metadata: &MetadataHandle,
    request: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    let asked = request.topics.clone();
    answered(&asked, metadata.call(ControllerRequest::CreatePartitions(request)).await)
}

fn answered(
    asked: &[CreatePartitionsTopic],
    answer: Result<ControllerResponse, ControllerError>,
) -> CreatePartitionsResponse {
    let (error, message) = match answer {
        Ok(ControllerResponse::CreatePartitions(response)) => return response,
        Ok(other) => (errors::unexpected_response("CreatePartitions", &other), String::new()),
        Err(error) => (errors::of_controller(&error), error.to_string()),
    };
    let results = asked.iter().map(|topic| CreatePartitionsTopicResult {
        name: topic.name.clone(),
        error_code: error.code(),
        error_message: Some(message.as_str().into()),
        ..Default::default()
    });
    CreatePartitionsResponse { results: results.collect(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::{Encoder, Message as _};

    use super::super::fixtures::image;
    use super::*;

    #[tokio::test]
    async fn every_topic_fails_when_there_is_no_controller() {
        let topic = CreatePartitionsTopic { name: "a".into(), count: 3, ..Default::default() };
        let request = CreatePartitionsRequest { topics: vec![topic], ..Default::default() };
        let response = handle(&MetadataHandle::fixed(image([1])), request).await;
        assert_eq!((response.results[0].name.as_str(), response.results[0].error_code), ("a", 41));
        for version in 0..=3 {
            response.encode(&mut Encoder::new(), version).expect("the answer fits its version");
        }
    }

    #[test]
    fn the_answer_of_the_controller_is_passed_on() {
        let result = CreatePartitionsTopicResult { name: "a".into(), error_code: 37, ..Default::default() };
        let response = CreatePartitionsResponse { results: vec![result], ..Default::default() };
        assert_eq!(answered(&[], Ok(ControllerResponse::CreatePartitions(response.clone()))), response);
    }
}
