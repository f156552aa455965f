//! OffsetForLeaderEpoch: where a leader epoch ends, for clients that check whether the log was truncated under them
//! (KIP-320). Rules L2 and F9.

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use millrace_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use millrace_protocol::messages::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};

use super::topics;
use crate::metadata::image::{MetadataImage, TopicIdPartition};
use crate::storage::EpochEnd;

/// Answers each partition by `look_up`, which takes the leader epoch that the client knows of, and the one it asks for.
pub(super) fn handle(
    image: &MetadataImage,
    request: &OffsetForLeaderEpochRequest,
    look_up: &dyn Fn(TopicIdPartition, Option<i32>, i32) -> Result<EpochEnd, ErrorCode>,
) -> OffsetForLeaderEpochResponse {
    let answer = |topic: &str, asked: &OffsetForLeaderPartition| {
        let found = image.topic_by_name(topic).ok_or(ErrorCode::UnknownTopicOrPartition)?;
        let partition = topics::partition_of(found, asked.partition)?;
        let current = (asked.current_leader_epoch >= 0).then_some(asked.current_leader_epoch);
        look_up(partition, current, asked.leader_epoch)
    };
    let topics = request.topics.iter().map(|topic| OffsetForLeaderTopicResult {
        topic: topic.topic.clone(),
        partitions: topic
            .partitions
            .iter()
            .map(|asked| partition_answer(asked.partition, answer(&topic.topic, asked)))
            .collect(),
        ..Default::default()
    });
    OffsetForLeaderEpochResponse { topics: topics.collect(), ..Default::default() }
}

fn partition_answer(partition: i32, found: Result<EpochEnd, ErrorCode>) -> EpochEndOffset {
    match found {
        Ok(end) => EpochEndOffset {
            partition,
            leader_epoch: end.leader_epoch,
            end_offset: end.end_offset,
            ..Default::default()
        },
        Err(error) => EpochEndOffset { partition, error_code: error.code(), ..Default::default() },
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderTopic;
    use millrace_protocol::{Encoder, Message as _};

    use super::super::fixtures::{add_topic, image};
    use super::*;

    /// Asks for partitions, each with a current leader epoch and the epoch whose end is wanted.
    fn run(topic: &str, questions: &[(i32, i32, i32)]) -> Vec<(i32, i16, i32, i64)> {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1, 1]);
        let partitions = questions.iter().map(|(partition, current_leader_epoch, leader_epoch)| {
            OffsetForLeaderPartition {
                partition: *partition,
                current_leader_epoch: *current_leader_epoch,
                leader_epoch: *leader_epoch,
                ..Default::default()
            }
        });
        let topic = OffsetForLeaderTopic {
            topic: topic.into(),
            partitions: partitions.collect(),
            ..Default::default()
        };
        let request = OffsetForLeaderEpochRequest { topics: vec![topic], ..Default::default() };
        let look_up = |partition: TopicIdPartition, current, leader_epoch: i32| match current {
            None | Some(5) => Ok(EpochEnd { leader_epoch, end_offset: i64::from(partition.partition) + 100 }),
            Some(_) => Err(ErrorCode::FencedLeaderEpoch),
        };
        let response = handle(&image, &request, &look_up);
        for version in 2..=4 {
            response.encode(&mut Encoder::new(), version).expect("the answer fits its version");
        }
        let answers = response.topics.iter().flat_map(|topic| &topic.partitions);
        answers.map(|end| (end.partition, end.error_code, end.leader_epoch, end.end_offset)).collect()
    }

    #[test]
    fn l2_the_end_of_the_epoch_is_answered_for_each_partition() {
        assert_eq!(run("a", &[(1, -1, 3), (0, 5, 4)]), [(1, 0, 3, 101), (0, 0, 4, 100)]);
    }

    #[test]
    fn f9_the_epoch_that_the_client_knows_of_is_checked_by_the_partition() {
        assert_eq!(run("a", &[(0, 4, 3), (1, 5, 3)]), [(0, 74, -1, -1), (1, 0, 3, 101)]);
    }

    #[test]
    fn partitions_and_topics_that_do_not_exist_are_unknown() {
        assert_eq!(run("a", &[(2, -1, 3), (-1, -1, 3)]), [(2, 3, -1, -1), (-1, 3, -1, -1)]);
        assert_eq!(run("b", &[(0, -1, 3)]), [(0, 3, -1, -1)]);
    }
}
