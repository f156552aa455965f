//! ElectLeaders: decided by the controller (KIP-460).

use millrace_protocol::messages::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use millrace_protocol::messages::{ElectLeadersRequest, ElectLeadersResponse};

use super::errors;
use super::request::RequestContext;
use crate::metadata::controller::{ControllerRequest, ControllerResponse};
use crate::metadata::{ControllerError, MetadataHandle};

/// Passes the request to the controller and answers what became of it.
pub(super) async fn handle(
    metadata: &MetadataHandle,
    context: &RequestContext,
    request: ElectLeadersRequest,
) -> ElectLeadersResponse {
    let asked = request.clone();
    let answer = answered(&asked, metadata.call(ControllerRequest::ElectLeaders(request)).await);
    // Version 0 has no error for the whole request, only one for each partition.
    let error_code = if context.version == 0 { 0 } else { answer.error_code };
    ElectLeadersResponse { error_code, ..answer }
}

fn answered(
    asked: &ElectLeadersRequest,
    answer: Result<ControllerResponse, ControllerError>,
) -> ElectLeadersResponse {
    let (error, message) = match answer {
        Ok(ControllerResponse::ElectLeaders(response)) => return response,
        Ok(other) => (errors::unexpected_response("ElectLeaders", &other), String::new()),
        Err(error) => (errors::of_controller(&error), error.to_string()),
    };
    let results = asked.topic_partitions.iter().flatten().map(|topic| {
        let result = |partition_id: &i32| PartitionResult {
            partition_id: *partition_id,
            error_code: error.code(),
            error_message: Some(message.as_str().into()),
            ..Default::default()
        };
        ReplicaElectionResult {
            topic: topic.topic.clone(),
            partition_result: topic.partitions.iter().map(result).collect(),
            ..Default::default()
        }
    });
    ElectLeadersResponse {
        error_code: error.code(),
        replica_election_results: results.collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::messages::elect_leaders_request::TopicPartitions;
    use millrace_protocol::{Encoder, Message as _};

    use super::super::fixtures::{context, image};
    use super::*;

    #[tokio::test]
    async fn the_request_and_every_partition_fail_when_there_is_no_controller() {
        let topic = TopicPartitions { topic: "a".into(), partitions: vec![0, 3], ..Default::default() };
        let request = ElectLeadersRequest { topic_partitions: Some(vec![topic]), ..Default::default() };
        for version in 0..=2 {
            let metadata = MetadataHandle::fixed(image([1]));
            let response = handle(&metadata, &context(version), request.clone()).await;
            response.encode(&mut Encoder::new(), version).expect("the answer fits its version");
            let topic = &response.replica_election_results[0];
            let results =
                topic.partition_result.iter().map(|result| (result.partition_id, result.error_code));
            let results: Vec<_> = results.collect();
            let expected = if version == 0 { 0 } else { 41 };
            assert_eq!((response.error_code, topic.topic.as_str()), (expected, "a"), "version {version}");
            assert_eq!(results, [(0, 41), (3, 41)], "version {version}");
        }
    }

    #[test]
    fn the_answer_of_the_controller_is_passed_on() {
        let response = ElectLeadersResponse { error_code: 42, ..Default::default() };
        let answer = Ok(ControllerResponse::ElectLeaders(response.clone()));
        assert_eq!(answered(&ElectLeadersRequest::default(), answer), response);
    }
}
