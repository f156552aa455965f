//! ListOffsets: offsets by time, and the ends of logs. Rules O1–O3.

use std::collections::BTreeSet;

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::list_offsets_request::ListOffsetsPartition;
use millrace_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use millrace_protocol::messages::{ListOffsetsRequest, ListOffsetsResponse};

use super::request::RequestContext;
use super::topics;
use crate::metadata::image::MetadataImage;
use crate::replication::{FoundOffset, OffsetQuery};

/// Asks for the last offset in tiered storage.
const LATEST_TIERED: i64 = -5;
/// Asks for the first offset that is still to come to tiered storage.
const EARLIEST_PENDING_UPLOAD: i64 = -6;

/// Answers each partition by `look_up`, which does not see questions that are refused here.
pub(super) fn handle(
    image: &MetadataImage,
    context: &RequestContext,
    request: &ListOffsetsRequest,
    look_up: &dyn Fn(OffsetQuery) -> Result<FoundOffset, ErrorCode>,
) -> ListOffsetsResponse {
    let repeated = repeated(request);
    let mut answered = BTreeSet::new();
    let answer = |topic: &str, asked: &ListOffsetsPartition| -> Result<FoundOffset, ErrorCode> {
        if repeated.contains(&(topic, asked.partition_index)) {
            return Err(ErrorCode::InvalidRequest);
        }
        if !is_known_time(asked.timestamp, context.version) {
            return Err(ErrorCode::UnsupportedVersion);
        }
        let found = image.topic_by_name(topic).ok_or(ErrorCode::UnknownTopicOrPartition)?;
        let partition = topics::partition_of(found, asked.partition_index)?;
        look_up(OffsetQuery {
            partition,
            // Without tiered storage nothing waits for it, as nothing has come to it: both answers are -1.
            timestamp: if asked.timestamp == EARLIEST_PENDING_UPLOAD {
                LATEST_TIERED
            } else {
                asked.timestamp
            },
            current_leader_epoch: (asked.current_leader_epoch >= 0).then_some(asked.current_leader_epoch),
            read_committed: request.isolation_level == 1,
        })
    };
    let topics = request
        .topics
        .iter()
        .map(|topic| ListOffsetsTopicResponse {
            name: topic.name.clone(),
            partitions: topic
                .partitions
                .iter()
                // Kafka answers a partition that is named twice once.
                .filter(|asked| answered.insert((topic.name.as_str(), asked.partition_index)))
                .map(|asked| {
                    partition_response(asked.partition_index, context.version, answer(&topic.name, asked))
                })
                .collect(),
            ..Default::default()
        })
        .collect();
    ListOffsetsResponse { topics, ..Default::default() }
}

/// Rule O1: times are not negative, and each special value came with a version.
fn is_known_time(timestamp: i64, version: i16) -> bool {
    match timestamp {
        0.. => true,
        // Latest and earliest.
        -1 | -2 => true,
        // The largest timestamp.
        -3 => version >= 7,
        // Earliest on local disks.
        -4 => version >= 8,
        LATEST_TIERED => version >= 9,
        EARLIEST_PENDING_UPLOAD => version >= 11,
        _ => false,
    }
}

/// Partitions that the request names more than once (O2).
fn repeated(request: &ListOffsetsRequest) -> BTreeSet<(&str, i32)> {
    let mut seen = BTreeSet::new();
    let all = request.topics.iter().flat_map(|topic| {
        topic.partitions.iter().map(|partition| (topic.name.as_str(), partition.partition_index))
    });
    all.filter(|partition| !seen.insert(*partition)).collect()
}

fn partition_response(
    partition_index: i32,
    version: i16,
    found: Result<FoundOffset, ErrorCode>,
) -> ListOffsetsPartitionResponse {
    match found {
        Ok(found) => ListOffsetsPartitionResponse {
            partition_index,
            timestamp: found.timestamp,
            offset: found.offset,
            leader_epoch: if version >= 4 { found.leader_epoch } else { -1 },
            ..Default::default()
        },
        Err(error) => {
            // L8: older clients do not know that offsets may be unavailable for a moment.
            let error = match error {
                ErrorCode::OffsetNotAvailable if version < 5 => ErrorCode::LeaderNotAvailable,
                error => error,
            };
            ListOffsetsPartitionResponse { partition_index, error_code: error.code(), ..Default::default() }
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::messages::list_offsets_request::ListOffsetsTopic;
    use millrace_protocol::{Encoder, Message as _};

    use super::super::fixtures::{add_topic, context, image};
    use super::*;

    fn ask(questions: &[(i32, i64)]) -> ListOffsetsRequest {
        let partitions = questions
            .iter()
            .map(|(partition_index, timestamp)| ListOffsetsPartition {
                partition_index: *partition_index,
                timestamp: *timestamp,
                ..Default::default()
            })
            .collect();
        let topic = ListOffsetsTopic { name: "a".into(), partitions, ..Default::default() };
        ListOffsetsRequest { replica_id: -1, topics: vec![topic], ..Default::default() }
    }

    fn run(version: i16, request: &ListOffsetsRequest) -> Vec<(i32, i16, i64)> {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1, 1]);
        let look_up = |query: OffsetQuery| match query.current_leader_epoch {
            Some(9) => Err(ErrorCode::UnknownLeaderEpoch),
            _ => Ok(FoundOffset { offset: query.timestamp + 100, timestamp: -1, leader_epoch: 3 }),
        };
        let response = handle(&image, &context(version), request, &look_up);
        response.encode(&mut Encoder::new(), version).expect("the answer fits its version");
        let answers = response.topics.iter().flat_map(|topic| &topic.partitions);
        answers.map(|answer| (answer.partition_index, answer.error_code, answer.offset)).collect()
    }

    #[test]
    fn o1_special_values_need_their_version() {
        for (timestamp, first) in [(-1, 1), (-2, 1), (-3, 7), (-4, 8), (-5, 9), (-6, 11)] {
            for version in 1..=11 {
                let asked_for = if timestamp == EARLIEST_PENDING_UPLOAD { LATEST_TIERED } else { timestamp };
                let expected = if version >= first { (0, 0, asked_for + 100) } else { (0, 35, -1) };
                assert_eq!(
                    run(version, &ask(&[(0, timestamp)])),
                    [expected],
                    "{timestamp} in version {version}"
                );
            }
        }
        assert_eq!(run(11, &ask(&[(0, -7)])), [(0, 35, -1)]);
    }

    #[test]
    fn o2_a_partition_asked_for_twice_is_refused_and_others_are_answered() {
        assert_eq!(run(6, &ask(&[(0, -1), (1, -1), (0, -2)])), [(0, 42, -1), (1, 0, 99)]);
    }

    #[test]
    fn unknown_partitions_and_topics_are_said_to_be_unknown() {
        assert_eq!(run(6, &ask(&[(2, -1), (-1, -1)])), [(2, 3, -1), (-1, 3, -1)]);
        let mut request = ask(&[(0, -1)]);
        request.topics[0].name = "b".into();
        assert_eq!(run(6, &request), [(0, 3, -1)]);
    }

    #[test]
    fn f9_the_epoch_of_the_client_is_checked_by_the_partition() {
        let mut request = ask(&[(0, -1)]);
        request.topics[0].partitions[0].current_leader_epoch = 9;
        assert_eq!(run(6, &request), [(0, 75, -1)]);
    }
}
