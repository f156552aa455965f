//! DescribeQuorum: who votes in the metadata quorum, and how far everyone is (KIP-595, KIP-836, KIP-853).
//!
//! The quorum has one log, which goes by the name that Kafka gives it. Only its leader knows how far the others are, so
//! it is asked, whichever broker the request came to.

use std::time::Duration;

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::describe_quorum_response::{
    Listener, Node, PartitionData, ReplicaState, TopicData,
};
use millrace_protocol::messages::{DescribeQuorumRequest, DescribeQuorumResponse};
use uuid::Uuid;

use crate::config::HostPort;
use crate::metadata::MetadataHandle;
use crate::metadata::service::{QuorumDescription, ReplicaDescription};

/// Name of the metadata log's only partition, 0.
const TOPIC: &str = "__cluster_metadata";

/// Shorter than clients wait, so that they learn why there is no answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// First version that tells where voters are, and on which directory each has its log (KIP-853). Before it, such fields
/// must be empty to be encoded at all.
const NODES_VERSION: i16 = 2;

/// Asks the leader. `listener` is the name of the listener that brokers use among themselves.
pub(super) async fn handle(
    metadata: &MetadataHandle,
    listener: &str,
    version: i16,
    request: DescribeQuorumRequest,
) -> DescribeQuorumResponse {
    if !is_metadata_log(&request) {
        return refuse(&request, ErrorCode::UnknownTopicOrPartition, "only the metadata log has a quorum");
    }
    match metadata.describe_quorum(TIMEOUT).await {
        Ok(description) => for_version(version, answer(listener, description)),
        // Clients look for the leader and try again.
        Err(error) => refuse(&request, ErrorCode::NotLeaderOrFollower, &error.to_string()),
    }
}

fn is_metadata_log(request: &DescribeQuorumRequest) -> bool {
    let [topic] = request.topics.as_slice() else { return false };
    let [partition] = topic.partitions.as_slice() else { return false };
    topic.topic_name == TOPIC && partition.partition_index == 0
}

/// The same error for every partition that was asked for.
fn refuse(request: &DescribeQuorumRequest, error: ErrorCode, message: &str) -> DescribeQuorumResponse {
    let partition = |partition_index: i32| PartitionData {
        partition_index,
        error_code: error.code(),
        error_message: Some(message.into()),
        ..Default::default()
    };
    let topics = request.topics.iter().map(|topic| TopicData {
        topic_name: topic.topic_name.clone(),
        partitions: topic.partitions.iter().map(|data| partition(data.partition_index)).collect(),
        ..Default::default()
    });
    DescribeQuorumResponse { topics: topics.collect(), ..Default::default() }
}

fn answer(listener: &str, description: QuorumDescription) -> DescribeQuorumResponse {
    let mut nodes: Vec<Node> =
        description.voters.iter().filter_map(|replica| node(listener, replica)).collect();
    // A volume that is being replaced is listed beside its successor, of the same broker.
    nodes.dedup_by_key(|node| node.node_id);
    let partition = PartitionData {
        partition_index: 0,
        leader_id: description.leader_id,
        leader_epoch: i32::try_from(description.term).unwrap_or(i32::MAX),
        high_watermark: description.high_watermark,
        current_voters: description.voters.iter().map(replica_state).collect(),
        observers: description.observers.iter().map(replica_state).collect(),
        ..Default::default()
    };
    let topic = TopicData { topic_name: TOPIC.into(), partitions: vec![partition], ..Default::default() };
    DescribeQuorumResponse { topics: vec![topic], nodes, ..Default::default() }
}

fn for_version(version: i16, mut response: DescribeQuorumResponse) -> DescribeQuorumResponse {
    if version >= NODES_VERSION {
        return response;
    }
    response.nodes.clear();
    for partition in response.topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
        for replica in partition.current_voters.iter_mut().chain(&mut partition.observers) {
            replica.replica_directory_id = Uuid::nil();
        }
    }
    response
}

fn node(listener: &str, replica: &ReplicaDescription) -> Option<Node> {
    let address = HostPort::parse(&replica.address)?;
    let listener = Listener {
        name: listener.into(),
        host: address.host.as_str().into(),
        port: address.port,
        ..Default::default()
    };
    Some(Node { node_id: replica.broker_id, listeners: vec![listener], ..Default::default() })
}

fn replica_state(replica: &ReplicaDescription) -> ReplicaState {
    ReplicaState {
        replica_id: replica.broker_id,
        replica_directory_id: replica.volume_uuid,
        log_end_offset: replica.log_end_offset,
        last_fetch_timestamp: replica.last_fetch_ms,
        last_caught_up_timestamp: replica.last_caught_up_ms,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::messages::describe_quorum_request;
    use millrace_protocol::{Encoder, Message as _};

    use super::super::fixtures::image;
    use super::*;

    fn request(topic: &str, partition_index: i32) -> DescribeQuorumRequest {
        let partition = describe_quorum_request::PartitionData { partition_index, ..Default::default() };
        let topic = describe_quorum_request::TopicData {
            topic_name: topic.into(),
            partitions: vec![partition],
            ..Default::default()
        };
        DescribeQuorumRequest { topics: vec![topic], ..Default::default() }
    }

    fn replica(broker_id: i32, volume: u128) -> ReplicaDescription {
        ReplicaDescription {
            broker_id,
            volume_uuid: Uuid::from_u128(volume),
            address: format!("broker-{broker_id}:9093"),
            log_end_offset: 40,
            last_fetch_ms: 1000,
            last_caught_up_ms: 900,
        }
    }

    #[test]
    fn shows_voters_with_their_addresses_and_observers_in_every_version() {
        let description = QuorumDescription {
            leader_id: 1,
            term: 7,
            high_watermark: 39,
            voters: vec![replica(0, 10), replica(1, 11), replica(1, 12)],
            observers: vec![replica(2, 13)],
        };
        let response = answer("FLEET", description);
        let partition = &response.topics[0].partitions[0];
        assert_eq!((partition.leader_id, partition.leader_epoch, partition.high_watermark), (1, 7, 39));
        let ids = |replicas: &[ReplicaState]| -> Vec<_> {
            replicas.iter().map(|replica| (replica.replica_id, replica.replica_directory_id)).collect()
        };
        let expected = [(0, 10), (1, 11), (1, 12)].map(|(id, volume)| (id, Uuid::from_u128(volume)));
        assert_eq!(ids(&partition.current_voters), expected);
        assert_eq!(ids(&partition.observers), [(2, Uuid::from_u128(13))]);
        let nodes: Vec<_> =
            response.nodes.iter().map(|node| (node.node_id, node.listeners[0].port)).collect();
        assert_eq!(nodes, [(0, 9093), (1, 9093)]);
        for version in 0..=2 {
            let response = for_version(version, response.clone());
            response.encode(&mut Encoder::new(), version).expect("the answer fits every version");
        }
    }

    #[tokio::test]
    async fn only_the_metadata_log_has_a_quorum() {
        let metadata = MetadataHandle::fixed(image([1]));
        for request in [request("orders", 0), request(TOPIC, 1)] {
            let response = handle(&metadata, "FLEET", 2, request).await;
            assert_eq!(response.topics[0].partitions[0].error_code, 3);
        }
        let response = handle(&metadata, "FLEET", 2, request(TOPIC, 0)).await;
        assert_eq!(response.topics[0].partitions[0].error_code, 6, "there is no leader to ask");
    }
}
