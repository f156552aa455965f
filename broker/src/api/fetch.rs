//! Fetch: reads record batches, waiting for them if asked to. Rules F1, F4, F6, F9–F11.
//!
//! There are no fetch sessions: every answer has session id 0, upon which clients send full requests.

use std::collections::BTreeSet;
use std::time::Duration;

use millrace_protocol::messages::fetch_response::{
    EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint, PartitionData,
};
use millrace_protocol::messages::{FetchRequest, FetchResponse};
use millrace_protocol::{ErrorCode, RecordBytes, StrBytes};

use super::endpoints::{leader_hint, live_broker, wire_port};
use super::request::RequestContext;
use super::topics;
use crate::metadata::image::{BrokerId, MetadataImage, TopicIdPartition};
use crate::replication::{FetchPartition, FetchRequestPlan, FetchedPartition};

/// A request split into what is to be read and what is refused already.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) plan: FetchRequestPlan,
    /// The answer so far: refusals are in it, the rest is to be filled in.
    response: FetchResponse,
    /// Position of each planned partition in `response`: topic, partition.
    places: Vec<(usize, usize)>,
}

/// Finds the partitions that a request names in `image`; an error is the answer to the whole request. `max_bytes` is
/// `fetch.max.bytes`.
pub(super) fn prepare(
    image: &MetadataImage,
    context: &RequestContext,
    max_bytes: i32,
    request: &FetchRequest,
) -> Result<Prepared, FetchResponse> {
    // F11: 0 opens a session and -1 needs none; anything else belongs to a session, and there are none.
    if !matches!(request.session_epoch, 0 | -1) {
        let error_code = ErrorCode::FetchSessionIdNotFound.code();
        return Err(FetchResponse { error_code, ..Default::default() });
    }
    let by_id = context.version >= 13;
    let mut response = FetchResponse::default();
    let mut places = Vec::new();
    let mut partitions = Vec::new();
    for topic in &request.topics {
        let found = topics::find(image, by_id, &topic.topic, topic.topic_id);
        let mut answers = Vec::with_capacity(topic.partitions.len());
        for asked in &topic.partitions {
            let mut answer = failed(asked.partition, ErrorCode::None);
            match found.and_then(|found| topics::partition_of(found, asked.partition)) {
                Ok(partition) => {
                    places.push((response.responses.len(), answers.len()));
                    partitions.push(FetchPartition {
                        partition,
                        current_leader_epoch: known_epoch(asked.current_leader_epoch),
                        fetch_offset: asked.fetch_offset,
                        last_fetched_epoch: known_epoch(asked.last_fetched_epoch),
                        max_bytes: asked.partition_max_bytes,
                    });
                }
                Err(error) => answer.error_code = error.code(),
            }
            answers.push(answer);
        }
        response.responses.push(FetchableTopicResponse {
            topic: topic.topic.clone(),
            topic_id: topic.topic_id,
            partitions: answers,
            ..Default::default()
        });
    }
    let max_bytes = request.max_bytes.min(max_bytes);
    let plan = FetchRequestPlan {
        max_wait: Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)),
        // F6
        min_bytes: request.min_bytes.min(max_bytes),
        max_bytes,
        read_committed: request.isolation_level == 1,
        may_read_followers: context.version >= 11,
        rack: request.rack_id.to_string(),
        partitions,
    };
    Ok(Prepared { plan, response, places })
}

fn known_epoch(epoch: i32) -> Option<i32> {
    (epoch >= 0).then_some(epoch)
}

fn failed(partition_index: i32, error: ErrorCode) -> PartitionData {
    PartitionData {
        partition_index,
        error_code: error.code(),
        high_watermark: -1,
        last_stable_offset: -1,
        log_start_offset: -1,
        preferred_read_replica: -1,
        records: Some(RecordBytes::new()),
        ..Default::default()
    }
}

/// Places of an answer that wait for what is read, while the plan is with the reader.
#[derive(Debug)]
pub(super) struct Waiting {
    response: FetchResponse,
    places: Vec<(usize, usize, TopicIdPartition)>,
    read_committed: bool,
}

impl Prepared {
    /// Parts the plan from the answer that it belongs to.
    pub(super) fn split(self) -> (FetchRequestPlan, Waiting) {
        let places = self.places.into_iter().zip(&self.plan.partitions);
        let places =
            places.map(|((topic, partition), planned)| (topic, partition, planned.partition)).collect();
        let read_committed = self.plan.read_committed;
        (self.plan, Waiting { response: self.response, places, read_committed })
    }
}

impl Waiting {
    /// The finished answer. `fetched` are the planned partitions, in their order.
    pub(super) fn answer(
        self,
        image: &MetadataImage,
        context: &RequestContext,
        fetched: Vec<FetchedPartition>,
    ) -> FetchResponse {
        let mut response = self.response;
        let mut leaders = BTreeSet::new();
        for ((topic, partition, id), fetched) in self.places.into_iter().zip(fetched) {
            let answer = &mut response.responses[topic].partitions[partition];
            let moved =
                matches!(fetched.error, ErrorCode::NotLeaderOrFollower | ErrorCode::FencedLeaderEpoch);
            if context.version >= 16
                && moved
                && let Some(hint) = leader_hint(image, id, fetched.leader)
            {
                answer.current_leader = LeaderIdAndEpoch {
                    leader_id: hint.leader_id,
                    leader_epoch: hint.leader_epoch,
                    ..Default::default()
                };
                leaders.insert(hint.leader_id);
            }
            fill(answer, fetched, context.version, self.read_committed);
        }
        response.node_endpoints =
            leaders.into_iter().filter_map(|id| node_endpoint(image, id, &context.listener)).collect();
        response
    }
}

fn node_endpoint(image: &MetadataImage, id: BrokerId, listener: &str) -> Option<NodeEndpoint> {
    let (broker, endpoint) = live_broker(image, id, listener)?;
    Some(NodeEndpoint {
        node_id: id,
        host: endpoint.host.as_str().into(),
        port: wire_port(endpoint),
        rack: broker.rack.as_deref().map(StrBytes::from),
        ..Default::default()
    })
}

fn fill(answer: &mut PartitionData, fetched: FetchedPartition, version: i16, read_committed: bool) {
    // Clients of versions up to 5 may not know the storage error; this one makes them look for the leader again.
    let error = match fetched.error {
        ErrorCode::KafkaStorageError if version <= 5 => ErrorCode::NotLeaderOrFollower,
        error => error,
    };
    answer.error_code = error.code();
    answer.high_watermark = fetched.high_watermark;
    answer.last_stable_offset = fetched.last_stable_offset;
    answer.log_start_offset = fetched.log_start_offset;
    // F7: a list, which is empty as long as there are no transactions, for those who read committed records only.
    answer.aborted_transactions = (read_committed && error.is_none()).then(Vec::new);
    answer.records = Some(fetched.records);
    if let Some(broker_id) = fetched.preferred_read_replica.filter(|_| version >= 11) {
        answer.preferred_read_replica = broker_id;
    }
    if let Some(end) = fetched.diverging_epoch.filter(|_| version >= 12) {
        answer.diverging_epoch =
            EpochEndOffset { epoch: end.leader_epoch, end_offset: end.end_offset, ..Default::default() };
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::messages::fetch_request::{self, FetchTopic, ForgottenTopic};
    use millrace_protocol::{Encoder, Message as _};
    use uuid::Uuid;

    use super::super::fixtures::{add_topic, context, id_of, image};
    use super::*;

    const MAX_BYTES: i32 = 1000;

    fn topic(name: &str, partitions: &[i32]) -> FetchTopic {
        let partitions = partitions
            .iter()
            .map(|partition| fetch_request::FetchPartition {
                partition: *partition,
                fetch_offset: 7,
                partition_max_bytes: 100,
                ..Default::default()
            })
            .collect();
        FetchTopic { topic: name.into(), partitions, ..Default::default() }
    }

    fn topic_by_id(topic_id: Uuid, partitions: &[i32]) -> FetchTopic {
        FetchTopic { topic_id, ..topic("", partitions) }
    }

    fn request(topics: Vec<FetchTopic>) -> FetchRequest {
        FetchRequest { max_wait_ms: 500, min_bytes: 1, max_bytes: 500, topics, ..Default::default() }
    }

    fn read(records: &'static [u8]) -> FetchedPartition {
        FetchedPartition {
            error: ErrorCode::None,
            high_watermark: 9,
            last_stable_offset: 8,
            log_start_offset: 1,
            records: bytes::Bytes::from_static(records).into(),
            leader: None,
            diverging_epoch: None,
            preferred_read_replica: None,
        }
    }

    fn refused(error: ErrorCode) -> FetchedPartition {
        FetchedPartition {
            error,
            high_watermark: -1,
            last_stable_offset: -1,
            log_start_offset: -1,
            ..read(b"")
        }
    }

    fn run(
        image: &MetadataImage,
        version: i16,
        request: &FetchRequest,
        fetched: Vec<FetchedPartition>,
    ) -> FetchResponse {
        let prepared = prepare(image, &context(version), MAX_BYTES, request).expect("a full request");
        let (plan, waiting) = prepared.split();
        assert_eq!(plan.partitions.len(), fetched.len());
        let response = waiting.answer(image, &context(version), fetched);
        response.encode(&mut Encoder::new(), version).expect("the answer fits its version");
        response
    }

    fn errors(response: &FetchResponse) -> Vec<(i32, i16)> {
        let answers = response.responses.iter().flat_map(|topic| &topic.partitions);
        answers.map(|answer| (answer.partition_index, answer.error_code)).collect()
    }

    #[test]
    fn f1_partitions_are_planned_in_the_order_of_the_request() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1, 1, 1]);
        add_topic(&mut image, "b", &[1]);
        let ask = request(vec![topic("b", &[0]), topic("a", &[2, 0])]);
        let plan = prepare(&image, &context(11), MAX_BYTES, &ask).expect("a full request").plan;
        let order: Vec<_> =
            plan.partitions.iter().map(|p| (p.partition.topic_id, p.partition.partition)).collect();
        assert_eq!(order, [(id_of("b"), 0), (id_of("a"), 2), (id_of("a"), 0)]);
        assert_eq!(plan.partitions[0].fetch_offset, 7);
        assert_eq!(plan.partitions[0].max_bytes, 100);
        assert_eq!(plan.max_wait, Duration::from_millis(500));
    }

    #[test]
    fn f1_and_f6_bytes_are_bounded_by_the_broker() {
        let image = image([1]);
        let plan = |min_bytes, max_bytes| {
            let ask = FetchRequest { min_bytes, max_bytes, ..request(vec![]) };
            prepare(&image, &context(11), MAX_BYTES, &ask).expect("a full request").plan
        };
        assert_eq!((plan(1, 500).min_bytes, plan(1, 500).max_bytes), (1, 500));
        assert_eq!((plan(5000, 9000).min_bytes, plan(5000, 9000).max_bytes), (1000, 1000));
        assert_eq!((plan(5000, 10).min_bytes, plan(5000, 10).max_bytes), (10, 10));
        assert_eq!(plan(1, -1).max_bytes, -1);
    }

    #[test]
    fn f9_epochs_are_checked_only_when_they_are_given() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1, 1]);
        let mut ask = request(vec![topic("a", &[0, 1])]);
        ask.topics[0].partitions[1].current_leader_epoch = 4;
        ask.topics[0].partitions[1].last_fetched_epoch = 3;
        let plan = prepare(&image, &context(12), MAX_BYTES, &ask).expect("a full request").plan;
        let epochs: Vec<_> =
            plan.partitions.iter().map(|p| (p.current_leader_epoch, p.last_fetched_epoch)).collect();
        assert_eq!(epochs, [(None, None), (Some(4), Some(3))]);
    }

    #[test]
    fn f9_version_16_says_who_leads() {
        let mut image = image([1, 2]);
        add_topic(&mut image, "a", &[2, 2]);
        let ask = |image: &MetadataImage, version| {
            let by_id = if version >= 13 { topic_by_id(id_of("a"), &[0, 1]) } else { topic("a", &[0, 1]) };
            let errors = vec![refused(ErrorCode::NotLeaderOrFollower), refused(ErrorCode::FencedLeaderEpoch)];
            run(image, version, &request(vec![by_id]), errors)
        };
        let response = ask(&image, 16);
        let leaders: Vec<_> =
            response.responses[0].partitions.iter().map(|p| p.current_leader.leader_id).collect();
        assert_eq!(leaders, [2, 2]);
        assert_eq!(response.node_endpoints.iter().map(|node| node.node_id).collect::<Vec<_>>(), [2]);
        assert!(ask(&image, 15).node_endpoints.is_empty());
        assert_eq!(ask(&image, 12).responses[0].partitions[0].current_leader.leader_id, -1);
    }

    #[test]
    fn f10_topics_are_named_by_id_from_version_13() {
        let mut image = image([1]);
        let topic_id = add_topic(&mut image, "a", &[1]);
        let ask = request(vec![topic_by_id(topic_id, &[0, 3]), topic_by_id(id_of("gone"), &[0])]);
        let response = run(&image, 13, &ask, vec![read(b"x")]);
        assert_eq!(errors(&response), [(0, 0), (3, 3), (0, 100)]);
        assert_eq!(response.responses[1].topic_id, id_of("gone"));
        let response = run(&image, 12, &request(vec![topic("gone", &[0])]), vec![]);
        assert_eq!(errors(&response), [(0, 3)]);
    }

    #[test]
    fn f11_every_answer_is_without_a_session_and_unknown_sessions_are_refused() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1]);
        for session_epoch in [0, -1] {
            let ask = FetchRequest { session_epoch, ..request(vec![topic("a", &[0])]) };
            assert_eq!(run(&image, 12, &ask, vec![read(b"")]).session_id, 0);
        }
        let ask = FetchRequest { session_id: 5, session_epoch: 1, ..request(vec![]) };
        let response = prepare(&image, &context(12), MAX_BYTES, &ask).expect_err("no such session");
        assert_eq!(response.error_code, 70);
    }

    #[test]
    fn f11_forgotten_topics_mean_nothing_without_a_session() {
        let image = image([1]);
        let forgotten = ForgottenTopic { topic: "a".into(), partitions: vec![0], ..Default::default() };
        let ask = FetchRequest { forgotten_topics_data: vec![forgotten], ..request(vec![]) };
        assert!(run(&image, 12, &ask, vec![]).responses.is_empty());
    }

    #[test]
    fn f7_aborted_transactions_are_null_unless_committed_records_are_asked_for() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1]);
        let mut ask = request(vec![topic("a", &[0])]);
        let response = run(&image, 11, &ask, vec![read(b"x")]);
        assert_eq!(response.responses[0].partitions[0].aborted_transactions, None);
        ask.isolation_level = 1;
        let response = run(&image, 11, &ask, vec![read(b"x")]);
        assert_eq!(response.responses[0].partitions[0].aborted_transactions, Some(vec![]));
    }

    #[test]
    fn f8_the_pointers_of_the_read_are_passed_on() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1]);
        let response = run(&image, 11, &request(vec![topic("a", &[0])]), vec![read(b"records")]);
        let answer = &response.responses[0].partitions[0];
        assert_eq!((answer.high_watermark, answer.last_stable_offset, answer.log_start_offset), (9, 8, 1));
        assert_eq!(answer.records, Some(bytes::Bytes::from_static(b"records").into()));
    }

    #[test]
    fn old_clients_get_errors_that_they_know() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1]);
        let ask = request(vec![topic("a", &[0])]);
        let storage = || vec![refused(ErrorCode::KafkaStorageError)];
        assert_eq!(errors(&run(&image, 5, &ask, storage())), [(0, 6)]);
        assert_eq!(errors(&run(&image, 6, &ask, storage())), [(0, 56)]);
    }
}
