//! Produce: appends record batches. Rules P1, P10, P12 and P13; batches are judged in `replication`.

use std::collections::BTreeSet;
use std::time::Duration;

use millrace_protocol::messages::produce_request::PartitionProduceData;
use millrace_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
};
use millrace_protocol::messages::{ProduceRequest, ProduceResponse};
use millrace_protocol::records;
use millrace_protocol::{ErrorCode, StrBytes};

use super::endpoints::{leader_hint, live_broker, wire_port};
use super::internal_topics::is_internal;
use super::request::RequestContext;
use super::topics;
use crate::metadata::image::{MetadataImage, TopicIdPartition};
use crate::replication::{ProduceOutcome, ProducePartition, RequiredAcks};

/// Client id of Kafka's own tools, which may write internal topics (P12).
const ADMIN_CLIENT_ID: &str = "__admin_client";

/// A request split into what is to be appended and what is refused already.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) acks: RequiredAcks,
    pub(super) timeout: Duration,
    /// For the partitions at `places`, in the same order.
    pub(super) partitions: Vec<ProducePartition>,
    /// The answer so far: refusals are in it, the rest is to be filled in.
    response: ProduceResponse,
    /// Position of each appended partition in `response`: topic, partition.
    places: Vec<(usize, usize)>,
}

/// Finds the partitions that a request names in `image`.
pub(super) fn prepare(image: &MetadataImage, context: &RequestContext, request: ProduceRequest) -> Prepared {
    let (acks, refused) = match request.acks {
        0 => (RequiredAcks::None, None),
        1 => (RequiredAcks::Leader, None),
        -1 => (RequiredAcks::All, None),
        _ => (RequiredAcks::Leader, Some(ErrorCode::InvalidRequiredAcks)),
    };
    let refused = refused.or_else(|| lacks_transactional_id(&request));
    let may_write_internal = context.client_id.as_deref() == Some(ADMIN_CLIENT_ID);
    let by_id = context.version >= 13;
    let mut prepared = Prepared {
        acks,
        timeout: Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0)),
        partitions: Vec::new(),
        response: ProduceResponse::default(),
        places: Vec::new(),
    };
    for topic in request.topic_data {
        let mut answers = Vec::with_capacity(topic.partition_data.len());
        let found = topics::find(image, by_id, &topic.name, topic.topic_id);
        for data in topic.partition_data {
            let PartitionProduceData { index, records, .. } = data;
            let accepted = found.and_then(|topic| {
                let partition = topics::partition_of(topic, index)?;
                match refused {
                    Some(error) => Err(error),
                    None if is_internal(&topic.name) && !may_write_internal => {
                        Err(ErrorCode::InvalidTopicException)
                    }
                    None => Ok(partition),
                }
            });
            let mut answer = failed(index, ErrorCode::None);
            match accepted {
                Ok(partition) => {
                    prepared.places.push((prepared.response.responses.len(), answers.len()));
                    // No records at all are refused like an empty batch set (P1).
                    prepared.partitions.push(ProducePartition {
                        partition,
                        records: records.unwrap_or_default().into_bytes(),
                    });
                }
                Err(error) => answer.error_code = error.code(),
            }
            answers.push(answer);
        }
        prepared.response.responses.push(TopicProduceResponse {
            name: topic.name,
            topic_id: topic.topic_id,
            partition_responses: answers,
            ..Default::default()
        });
    }
    prepared
}

/// Records of a transaction need a transactional id; Kafka refuses the whole request otherwise.
fn lacks_transactional_id(request: &ProduceRequest) -> Option<ErrorCode> {
    if request.transactional_id.is_some() {
        return None;
    }
    let mut payloads = request
        .topic_data
        .iter()
        .flat_map(|topic| &topic.partition_data)
        .filter_map(|data| data.records.as_ref());
    let transactional = payloads.any(|payload| {
        let first = records::batches(payload.clone().into_bytes()).next();
        first.is_some_and(|batch| batch.is_ok_and(|batch| batch.header().attributes.is_transactional()))
    });
    transactional.then_some(ErrorCode::TransactionalIdAuthorizationFailed)
}

fn failed(index: i32, error: ErrorCode) -> PartitionProduceResponse {
    PartitionProduceResponse {
        index,
        error_code: error.code(),
        base_offset: -1,
        log_append_time_ms: -1,
        log_start_offset: -1,
        ..Default::default()
    }
}

impl Prepared {
    /// The finished answer. `outcomes` are those of the partitions, in their order.
    pub(super) fn answer(
        self,
        image: &MetadataImage,
        context: &RequestContext,
        partitions: &[TopicIdPartition],
        outcomes: Vec<ProduceOutcome>,
    ) -> ProduceResponse {
        let mut response = self.response;
        let mut leaders = BTreeSet::new();
        for (((topic, partition), id), outcome) in self.places.into_iter().zip(partitions).zip(outcomes) {
            let answer = &mut response.responses[topic].partition_responses[partition];
            if context.version >= 10
                && outcome.error == ErrorCode::NotLeaderOrFollower
                && let Some(hint) = leader_hint(image, *id, outcome.leader)
            {
                answer.current_leader = LeaderIdAndEpoch {
                    leader_id: hint.leader_id,
                    leader_epoch: hint.leader_epoch,
                    ..Default::default()
                };
                leaders.insert(hint.leader_id);
            }
            fill(answer, outcome);
        }
        let endpoint = |id: i32| {
            let (broker, endpoint) = live_broker(image, id, &context.listener)?;
            Some(NodeEndpoint {
                node_id: id,
                host: endpoint.host.as_str().into(),
                port: wire_port(endpoint),
                rack: broker.rack.as_deref().map(StrBytes::from),
                ..Default::default()
            })
        };
        response.node_endpoints = leaders.into_iter().filter_map(endpoint).collect();
        response
    }
}

fn fill(answer: &mut PartitionProduceResponse, outcome: ProduceOutcome) {
    answer.error_code = outcome.error.code();
    answer.base_offset = outcome.base_offset;
    answer.log_append_time_ms = outcome.log_append_time_ms;
    answer.log_start_offset = outcome.log_start_offset;
    answer.error_message = outcome.error_message.map(StrBytes::from);
    answer.record_errors = outcome
        .record_errors
        .into_iter()
        .map(|error| BatchIndexAndErrorMessage {
            batch_index: error.batch_index,
            batch_index_error_message: error.message.map(StrBytes::from),
            ..Default::default()
        })
        .collect();
}

/// Whether any partition failed.
pub(super) fn has_error(response: &ProduceResponse) -> bool {
    response
        .responses
        .iter()
        .flat_map(|topic| &topic.partition_responses)
        .any(|answer| answer.error_code != 0)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use millrace_protocol::messages::produce_request::TopicProduceData;
    use millrace_protocol::records::{BatchBuilder, Compression, NewRecord};
    use millrace_protocol::{Encoder, Message as _};
    use uuid::Uuid;

    use super::super::fixtures::{add_topic, context, id_of, image};
    use super::*;
    use crate::replication::{LeaderHint, RecordError};

    fn data(index: i32) -> PartitionProduceData {
        PartitionProduceData {
            index,
            records: Some(Bytes::from_static(b"batch").into()),
            ..Default::default()
        }
    }

    fn topic(name: &str, partitions: &[i32]) -> TopicProduceData {
        TopicProduceData {
            name: name.into(),
            partition_data: partitions.iter().copied().map(data).collect(),
            ..Default::default()
        }
    }

    fn topic_by_id(topic_id: Uuid, partitions: &[i32]) -> TopicProduceData {
        TopicProduceData { topic_id, ..topic("", partitions) }
    }

    fn request(acks: i16, topic_data: Vec<TopicProduceData>) -> ProduceRequest {
        ProduceRequest { acks, timeout_ms: 1500, topic_data, ..Default::default() }
    }

    fn stored(base_offset: i64) -> ProduceOutcome {
        ProduceOutcome {
            error: ErrorCode::None,
            base_offset,
            log_append_time_ms: -1,
            log_start_offset: 0,
            record_errors: Vec::new(),
            error_message: None,
            leader: None,
        }
    }

    fn refused(error: ErrorCode) -> ProduceOutcome {
        ProduceOutcome { error, base_offset: -1, log_start_offset: -1, ..stored(-1) }
    }

    fn errors(response: &ProduceResponse) -> Vec<(i32, i16)> {
        let answers = response.responses.iter().flat_map(|topic| &topic.partition_responses);
        answers.map(|answer| (answer.index, answer.error_code)).collect()
    }

    fn finish(
        image: &MetadataImage,
        version: i16,
        prepared: Prepared,
        outcomes: Vec<ProduceOutcome>,
    ) -> ProduceResponse {
        let ids: Vec<_> = prepared.partitions.iter().map(|data| data.partition).collect();
        let response = prepared.answer(image, &context(version), &ids, outcomes);
        response.encode(&mut Encoder::new(), version).expect("the answer fits its version");
        response
    }

    #[test]
    fn p1_good_partitions_go_on_beside_bad_ones() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1, 1]);
        let prepared =
            prepare(&image, &context(9), request(1, vec![topic("a", &[0, 7, 1]), topic("b", &[0])]));
        let appended: Vec<_> = prepared.partitions.iter().map(|data| data.partition.partition).collect();
        assert_eq!(appended, [0, 1]);
        assert_eq!(prepared.timeout, Duration::from_millis(1500));
        let response = finish(&image, 9, prepared, vec![stored(10), refused(ErrorCode::CorruptMessage)]);
        assert_eq!(errors(&response), [(0, 0), (7, 3), (1, 2), (0, 3)]);
        assert_eq!(response.responses[0].partition_responses[0].base_offset, 10);
        assert!(has_error(&response));
    }

    #[test]
    fn p10_acks_are_minus_one_zero_or_one() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1, 1]);
        for (acks, expected) in [(0, RequiredAcks::None), (1, RequiredAcks::Leader), (-1, RequiredAcks::All)]
        {
            assert_eq!(prepare(&image, &context(9), request(acks, vec![])).acks, expected);
        }
        let prepared = prepare(&image, &context(9), request(2, vec![topic("a", &[0, 1]), topic("b", &[0])]));
        assert!(prepared.partitions.is_empty(), "nothing is appended");
        assert_eq!(errors(&finish(&image, 9, prepared, vec![])), [(0, 21), (1, 21), (0, 3)]);
    }

    #[test]
    fn p12_clients_do_not_write_internal_topics() {
        let mut image = image([1]);
        add_topic(&mut image, "__consumer_offsets", &[1]);
        let ask = || request(1, vec![topic("__consumer_offsets", &[0])]);
        let prepared = prepare(&image, &context(9), ask());
        assert_eq!(errors(&finish(&image, 9, prepared, vec![])), [(0, 17)]);
        let admin = RequestContext { client_id: Some(ADMIN_CLIENT_ID.into()), ..context(9) };
        assert_eq!(prepare(&image, &admin, ask()).partitions.len(), 1);
    }

    #[test]
    fn p13_unknown_names_and_unknown_ids_have_their_own_errors() {
        let mut image = image([1]);
        let topic_id = add_topic(&mut image, "a", &[1]);
        let ask = request(1, vec![topic_by_id(topic_id, &[0, 5]), topic_by_id(id_of("gone"), &[0])]);
        let prepared = prepare(&image, &context(13), ask);
        assert_eq!(errors(&finish(&image, 13, prepared, vec![stored(0)])), [(0, 0), (5, 3), (0, 100)]);
        // A name in version 13 is not on the wire; the id decides.
        let prepared = prepare(&image, &context(12), request(1, vec![topic("gone", &[0])]));
        assert_eq!(errors(&finish(&image, 12, prepared, vec![])), [(0, 3)]);
    }

    #[test]
    fn p13_version_10_says_who_leads() {
        let mut image = image([1, 2]);
        add_topic(&mut image, "a", &[2, 2]);
        let outcome = || vec![refused(ErrorCode::NotLeaderOrFollower); 2];
        let prepared = prepare(&image, &context(10), request(1, vec![topic("a", &[0, 1])]));
        let mut outcomes = outcome();
        outcomes[1].leader = Some(LeaderHint { leader_id: 2, leader_epoch: 9 });
        let response = finish(&image, 10, prepared, outcomes);
        let leaders: Vec<_> = response.responses[0]
            .partition_responses
            .iter()
            .map(|answer| (answer.current_leader.leader_id, answer.current_leader.leader_epoch))
            .collect();
        assert_eq!(leaders, [(2, 5), (2, 9)], "from the image, and from the partition");
        let nodes: Vec<_> =
            response.node_endpoints.iter().map(|node| (node.node_id, node.host.as_str())).collect();
        assert_eq!(nodes, [(2, "broker-2")]);
        let prepared = prepare(&image, &context(9), request(1, vec![topic("a", &[0, 1])]));
        assert!(finish(&image, 9, prepared, outcome()).node_endpoints.is_empty());
    }

    #[test]
    fn p8_record_errors_are_passed_on_from_version_8() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1]);
        for version in [7, 8] {
            let prepared = prepare(&image, &context(version), request(1, vec![topic("a", &[0])]));
            let mut outcome = refused(ErrorCode::InvalidRecord);
            outcome.error_message = Some("bad".to_owned());
            outcome.record_errors = vec![RecordError { batch_index: 3, message: Some("no key".to_owned()) }];
            let response = finish(&image, version, prepared, vec![outcome]);
            assert_eq!(response.responses[0].partition_responses[0].record_errors[0].batch_index, 3);
        }
    }

    #[test]
    fn records_of_a_transaction_need_a_transactional_id() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1]);
        let batch = BatchBuilder::new(Compression::None)
            .producer(1, 0, 0)
            .transactional()
            .append(NewRecord { value: Some(b"v"), ..Default::default() })
            .build();
        let mut ask = request(-1, vec![topic("a", &[0])]);
        ask.topic_data[0].partition_data[0].records = Some(batch.into());
        let prepared = prepare(&image, &context(9), ask.clone());
        assert_eq!(errors(&finish(&image, 9, prepared, vec![])), [(0, 53)]);
        ask.transactional_id = Some("tx".into());
        assert_eq!(prepare(&image, &context(9), ask).partitions.len(), 1);
    }

    #[test]
    fn missing_records_reach_the_judge_as_an_empty_set() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1]);
        let mut ask = request(1, vec![topic("a", &[0])]);
        ask.topic_data[0].partition_data[0].records = None;
        assert!(prepare(&image, &context(9), ask).partitions[0].records.is_empty());
    }
}
