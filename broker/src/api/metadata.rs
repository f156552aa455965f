//! Metadata: brokers, topics, partitions and their leaders. Rules M1–M4.

use std::collections::BTreeSet;

use millrace_management::kafka_uuid;
use millrace_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use millrace_protocol::messages::{MetadataRequest, MetadataResponse};
use millrace_protocol::{ErrorCode, StrBytes};
use uuid::Uuid;

use super::authorized::{ALL_ON_CLUSTER, ALL_ON_TOPIC};
use super::endpoints::{controller_id, live_broker, live_brokers, offline_replicas, wire_port};
use super::internal_topics::is_internal;
use super::request::RequestContext;
use super::topics::is_legal_name;
use crate::metadata::image::{BrokerId, MetadataImage, NO_LEADER, PartitionImage, TopicImage};

/// An answer, and what it promises to do.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: MetadataResponse,
    /// Topics that the client wants to come into being, and may.
    pub(super) create: Vec<String>,
}

/// Answers from `image`. `auto_create` is `auto.create.topics.enable`.
pub(super) fn handle(
    image: &MetadataImage,
    context: &RequestContext,
    own_id: BrokerId,
    auto_create: bool,
    request: &MetadataRequest,
) -> Answer {
    let asked = match asked(context.version, request) {
        Some(asked) => asked,
        None => return Answer { response: invalid(request), create: Vec::new() },
    };
    let mut response = MetadataResponse {
        brokers: live_brokers(image, &context.listener)
            .map(|(broker, endpoint)| MetadataResponseBroker {
                node_id: broker.broker_id,
                host: endpoint.host.as_str().into(),
                port: wire_port(endpoint),
                rack: broker.rack.as_deref().map(StrBytes::from),
                ..Default::default()
            })
            .collect(),
        cluster_id: Some(kafka_uuid::format(image.cluster_id).into()),
        controller_id: controller_id(image, own_id, &context.listener),
        ..Default::default()
    };
    if context.version >= 8 && request.include_cluster_authorized_operations {
        response.cluster_authorized_operations = ALL_ON_CLUSTER;
    }
    let mut create = Vec::new();
    response.topics = match asked {
        Asked::All => image
            .topic_ids
            .keys()
            .filter_map(|name| image.topic_by_name(name))
            .map(|topic| topic_answer(image, context, topic))
            .collect(),
        Asked::Names(names) => {
            let may_create = auto_create && request.allow_auto_topic_creation;
            let answer = |name: StrBytes| match image.topic_by_name(&name) {
                Some(topic) => topic_answer(image, context, topic),
                None => {
                    if may_create && is_legal_name(&name) {
                        create.push(name.as_str().to_owned());
                    }
                    missing_topic(&name)
                }
            };
            names.into_iter().map(answer).collect()
        }
        Asked::Ids(ids) => ids
            .into_iter()
            .map(|topic_id| match image.topics.get(&topic_id) {
                Some(topic) => topic_answer(image, context, topic),
                None => MetadataResponseTopic {
                    error_code: ErrorCode::UnknownTopicId.code(),
                    name: None,
                    topic_id,
                    ..Default::default()
                },
            })
            .collect(),
    };
    if context.version >= 8 && request.include_topic_authorized_operations {
        for topic in response.topics.iter_mut().filter(|topic| topic.name.is_some()) {
            topic.topic_authorized_operations = ALL_ON_TOPIC;
        }
    }
    Answer { response, create }
}

/// Which topics a request is about, each once.
enum Asked {
    All,
    Names(Vec<StrBytes>),
    Ids(Vec<Uuid>),
}

/// Rule M1. `None` if names and ids are mixed up in a way that the version does not have.
fn asked(version: i16, request: &MetadataRequest) -> Option<Asked> {
    let Some(topics) = &request.topics else { return Some(Asked::All) };
    if version == 0 && topics.is_empty() {
        return Some(Asked::All);
    }
    if version < 12 && topics.iter().any(|topic| topic.name.is_none() || !topic.topic_id.is_nil()) {
        return None;
    }
    // A single id makes it a request by id, in which names count for nothing.
    let mut seen_ids = BTreeSet::new();
    let ids: Vec<Uuid> =
        topics.iter().map(|topic| topic.topic_id).filter(|id| !id.is_nil() && seen_ids.insert(*id)).collect();
    if !ids.is_empty() {
        return Some(Asked::Ids(ids));
    }
    let mut seen_names = BTreeSet::new();
    let names = topics.iter().filter_map(|topic| topic.name.clone());
    Some(Asked::Names(names.filter(|name| seen_names.insert(name.clone())).collect()))
}

/// Kafka tells nothing else with this error, not even the brokers.
fn invalid(request: &MetadataRequest) -> MetadataResponse {
    let topics = request.topics.iter().flatten().map(|topic| MetadataResponseTopic {
        error_code: ErrorCode::InvalidRequest.code(),
        name: Some(topic.name.clone().unwrap_or_default()),
        topic_id: topic.topic_id,
        ..Default::default()
    });
    MetadataResponse { topics: topics.collect(), ..Default::default() }
}

fn missing_topic(name: &StrBytes) -> MetadataResponseTopic {
    // M2: also while the topic is being made. Clients ask again on either.
    let error = if is_legal_name(name) {
        ErrorCode::UnknownTopicOrPartition
    } else {
        ErrorCode::InvalidTopicException
    };
    MetadataResponseTopic {
        error_code: error.code(),
        name: Some(name.clone()),
        is_internal: is_internal(name),
        ..Default::default()
    }
}

fn topic_answer(
    image: &MetadataImage,
    context: &RequestContext,
    topic: &TopicImage,
) -> MetadataResponseTopic {
    MetadataResponseTopic {
        name: Some(topic.name.as_str().into()),
        topic_id: topic.topic_id,
        is_internal: is_internal(&topic.name),
        partitions: (0..)
            .zip(&topic.partitions)
            .map(|(number, partition)| partition_answer(image, context, number, partition))
            .collect(),
        ..Default::default()
    }
}

/// Rule M3.
fn partition_answer(
    image: &MetadataImage,
    context: &RequestContext,
    number: i32,
    partition: &PartitionImage,
) -> MetadataResponsePartition {
    let listener = &context.listener;
    let reachable = |id: &BrokerId| live_broker(image, *id, listener).is_some();
    let mut replica_nodes: Vec<BrokerId> = partition.replica_ids().collect();
    let mut isr_nodes = partition.isr.clone();
    let mut complete = true;
    if context.version == 0 {
        // Version 0 has no list of offline replicas: it leaves them out and says that something is missing.
        replica_nodes.retain(reachable);
        isr_nodes.retain(reachable);
        complete = replica_nodes.len() == partition.replicas.len() && isr_nodes.len() == partition.isr.len();
    }
    let leader = live_broker(image, partition.leader, listener);
    let error = match leader {
        Some(_) if complete => ErrorCode::None,
        Some(_) => ErrorCode::ReplicaNotAvailable,
        None => {
            let in_service = image.brokers.get(&partition.leader).is_some_and(|broker| !broker.fenced);
            if in_service && context.version >= 6 {
                ErrorCode::ListenerNotFound
            } else {
                ErrorCode::LeaderNotAvailable
            }
        }
    };
    MetadataResponsePartition {
        error_code: error.code(),
        partition_index: number,
        leader_id: leader.map_or(NO_LEADER, |_| partition.leader),
        leader_epoch: partition.leader_epoch,
        offline_replicas: offline_replicas(image, partition, listener),
        replica_nodes,
        isr_nodes,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::messages::metadata_request::MetadataRequestTopic;
    use millrace_protocol::{Encoder, Message as _};

    use super::super::authorized::NOT_ASKED;
    use super::super::fixtures::{EVEN_LISTENER, add_topic, context, fence, id_of, image};
    use super::*;

    fn named(name: &str) -> MetadataRequestTopic {
        MetadataRequestTopic { name: Some(name.into()), ..Default::default() }
    }

    fn by_id(topic_id: Uuid) -> MetadataRequestTopic {
        MetadataRequestTopic { name: None, topic_id, ..Default::default() }
    }

    fn request(topics: Option<Vec<MetadataRequestTopic>>) -> MetadataRequest {
        MetadataRequest { topics, ..Default::default() }
    }

    fn answer(image: &MetadataImage, version: i16, request: &MetadataRequest) -> Answer {
        let answer = handle(image, &context(version), 1, true, request);
        answer.response.encode(&mut Encoder::new(), version).expect("the answer fits its version");
        answer
    }

    fn outline(response: &MetadataResponse) -> Vec<(Option<&str>, i16)> {
        response.topics.iter().map(|topic| (topic.name.as_deref(), topic.error_code)).collect()
    }

    #[test]
    fn m1_version_0_takes_an_empty_list_as_all_topics_and_later_ones_as_none() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1]);
        assert_eq!(outline(&answer(&image, 0, &request(Some(vec![]))).response), [(Some("a"), 0)]);
        assert_eq!(outline(&answer(&image, 1, &request(Some(vec![]))).response), []);
        assert_eq!(outline(&answer(&image, 13, &request(None)).response), [(Some("a"), 0)]);
    }

    #[test]
    fn m1_creates_named_topics_only_and_only_when_both_sides_allow_it() {
        let image = image([1]);
        let ask = request(Some(vec![named("new"), named("new"), named("no/good")]));
        assert_eq!(answer(&image, 4, &ask).create, ["new"]);
        assert!(
            answer(&image, 4, &MetadataRequest { allow_auto_topic_creation: false, ..ask.clone() })
                .create
                .is_empty()
        );
        assert!(handle(&image, &context(4), 1, false, &ask).create.is_empty());
        assert!(answer(&image, 4, &request(None)).create.is_empty());
    }

    #[test]
    fn m2_a_missing_topic_is_unknown_and_an_illegal_name_is_invalid() {
        let image = image([1]);
        let ask = request(Some(vec![named("new"), named("..")]));
        assert_eq!(outline(&answer(&image, 9, &ask).response), [(Some("new"), 3), (Some(".."), 17)]);
    }

    #[test]
    fn m3_shows_the_brokers_of_the_listener_that_are_in_service() {
        let mut image = image([1, 2, 4]);
        fence(&mut image, 4);
        let on_even = RequestContext { listener: EVEN_LISTENER.into(), ..context(9) };
        let response = handle(&image, &on_even, 1, true, &request(None)).response;
        let brokers: Vec<_> = response.brokers.iter().map(|b| (b.node_id, b.host.as_str(), b.port)).collect();
        assert_eq!(brokers, [(2, "broker-2", 9094)]);
        assert_eq!(response.controller_id, 2, "any broker that the client can see");
        assert_eq!(
            answer(&image, 9, &request(None)).response.controller_id,
            1,
            "this broker if it can be seen"
        );
    }

    #[test]
    fn m3_a_leader_without_the_listener_is_an_error_that_version_6_names() {
        let mut image = image([1, 2]);
        add_topic(&mut image, "a", &[1]);
        for (version, expected) in [(5, 5), (6, 72), (13, 72)] {
            let on_even = RequestContext { listener: EVEN_LISTENER.into(), ..context(version) };
            let response = handle(&image, &on_even, 2, true, &request(None)).response;
            let partition = &response.topics[0].partitions[0];
            assert_eq!((partition.error_code, partition.leader_id), (expected, -1), "version {version}");
        }
    }

    #[test]
    fn m3_a_partition_without_leader_is_listed_with_its_error() {
        let mut image = image([1, 2]);
        add_topic(&mut image, "a", &[1, NO_LEADER, 2]);
        fence(&mut image, 2);
        let response = answer(&image, 9, &request(None)).response;
        let partitions: Vec<_> = response.topics[0]
            .partitions
            .iter()
            .map(|p| (p.partition_index, p.error_code, p.leader_id, p.offline_replicas.clone()))
            .collect();
        assert_eq!(partitions, [(0, 0, 1, vec![]), (1, 5, -1, vec![9]), (2, 5, -1, vec![2])]);
    }

    #[test]
    fn a_replica_whose_volume_was_lost_is_offline() {
        let mut image = image([1, 2]);
        let topic_id = add_topic(&mut image, "a", &[1]);
        let topic = image.topics.get_mut(&topic_id).map(std::sync::Arc::make_mut).expect("just added");
        topic.partitions[0].replicas[0].volume_uuid = Uuid::from_u128(0xdead);
        let response = answer(&image, 9, &request(None)).response;
        assert_eq!(response.topics[0].partitions[0].offline_replicas, [1]);
    }

    #[test]
    fn version_0_leaves_out_replicas_that_are_gone_and_says_so() {
        let mut image = image([1, 2]);
        let topic_id = add_topic(&mut image, "a", &[1]);
        let topic = image.topics.get_mut(&topic_id).map(std::sync::Arc::make_mut).expect("just added");
        let gone = crate::metadata::image::Replica { broker_id: 7, volume_uuid: Uuid::nil() };
        topic.partitions[0].replicas.push(gone);
        let response = answer(&image, 0, &request(Some(vec![]))).response;
        let partition = &response.topics[0].partitions[0];
        assert_eq!((partition.error_code, partition.replica_nodes.as_slice()), (9, &[1][..]));
        let response = answer(&image, 1, &request(None)).response;
        assert_eq!(response.topics[0].partitions[0].replica_nodes, [1, 7]);
    }

    #[test]
    fn topics_are_found_by_id_from_version_12() {
        let mut image = image([1]);
        let topic_id = add_topic(&mut image, "a", &[1]);
        let ask = request(Some(vec![by_id(topic_id), by_id(id_of("gone")), by_id(topic_id)]));
        let response = answer(&image, 12, &ask).response;
        assert_eq!(outline(&response), [(Some("a"), 0), (None, 100)]);
        assert_eq!(response.topics[1].topic_id, id_of("gone"));
        let response = answer(&image, 10, &ask).response;
        assert!(response.topics.iter().all(|topic| topic.error_code == 42));
    }

    #[test]
    fn m4_authorized_operations_are_told_when_asked_for() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1]);
        let mut ask = request(None);
        let response = answer(&image, 8, &ask).response;
        assert_eq!(response.cluster_authorized_operations, NOT_ASKED);
        assert_eq!(response.topics[0].topic_authorized_operations, NOT_ASKED);
        ask.include_cluster_authorized_operations = true;
        ask.include_topic_authorized_operations = true;
        let response = answer(&image, 8, &ask).response;
        assert_eq!(response.cluster_authorized_operations, ALL_ON_CLUSTER);
        assert_eq!(response.topics[0].topic_authorized_operations, ALL_ON_TOPIC);
    }

    #[test]
    fn every_version_can_be_written() {
        let mut image = image([1, 2]);
        add_topic(&mut image, "a", &[1, 2, NO_LEADER]);
        for version in 0..=13 {
            answer(&image, version, &request(Some(vec![named("a"), named("b")])));
        }
    }
}
