//! DescribeTopicPartitions: topics in alphabetical order, a bounded number of partitions at a time (KIP-966).

use std::collections::BTreeSet;

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::describe_topic_partitions_response::{
    Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
};
use millrace_protocol::messages::{DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse};

use super::authorized::ALL_ON_TOPIC;
use super::endpoints::{live_broker, offline_replicas};
use super::internal_topics::is_internal;
use super::request::RequestContext;
use super::topics::is_legal_name;
use crate::metadata::image::{MetadataImage, NO_LEADER, PartitionImage, TopicImage};

/// Answers from `image`, with `max_partitions` at most whatever the client asks for.
pub(super) fn handle(
    image: &MetadataImage,
    context: &RequestContext,
    max_partitions: i32,
    request: &DescribeTopicPartitionsRequest,
) -> DescribeTopicPartitionsResponse {
    let all = request.topics.is_empty();
    let from = request.cursor.as_ref().map_or("", |cursor| cursor.topic_name.as_str());
    let names: BTreeSet<&str> = if all {
        image.topic_ids.range(from.to_owned()..).map(|(name, _)| name.as_str()).collect()
    } else {
        request.topics.iter().map(|topic| topic.name.as_str()).filter(|name| *name >= from).collect()
    };
    if let Some(cursor) = &request.cursor
        && (cursor.partition_index < 0 || (!all && !names.contains(from)))
    {
        return invalid(request);
    }
    let mut response = DescribeTopicPartitionsResponse::default();
    let limit = max_partitions.min(request.response_partition_limit).max(1);
    let mut left = usize::try_from(limit).unwrap_or(1);
    for name in names {
        if left == 0 {
            response.next_cursor = Some(cursor(name, 0));
            break;
        }
        let Some(topic) = image.topic_by_name(name) else {
            if !all {
                response.topics.push(missing(name));
            }
            continue;
        };
        let start =
            request.cursor.as_ref().filter(|_| name == from).map_or(0, |cursor| cursor.partition_index);
        let partitions = partitions(image, context, topic, start, left);
        left -= partitions.len();
        let next = usize::try_from(start).unwrap_or(0).saturating_add(partitions.len());
        response.topics.push(DescribeTopicPartitionsResponseTopic {
            name: Some(topic.name.as_str().into()),
            topic_id: topic.topic_id,
            is_internal: is_internal(name),
            partitions,
            topic_authorized_operations: ALL_ON_TOPIC,
            ..Default::default()
        });
        if next < topic.partitions.len() {
            response.next_cursor = Some(cursor(name, i32::try_from(next).unwrap_or(i32::MAX)));
            break;
        }
    }
    response
}

fn cursor(topic: &str, partition_index: i32) -> Cursor {
    Cursor { topic_name: topic.into(), partition_index, ..Default::default() }
}

fn missing(name: &str) -> DescribeTopicPartitionsResponseTopic {
    let error = if is_legal_name(name) {
        ErrorCode::UnknownTopicOrPartition
    } else {
        ErrorCode::InvalidTopicException
    };
    DescribeTopicPartitionsResponseTopic {
        error_code: error.code(),
        name: Some(name.into()),
        is_internal: is_internal(name),
        topic_authorized_operations: ALL_ON_TOPIC,
        ..Default::default()
    }
}

/// Kafka has no error for the whole request here: every topic that was named gets it.
fn invalid(request: &DescribeTopicPartitionsRequest) -> DescribeTopicPartitionsResponse {
    let topics = request.topics.iter().map(|topic| DescribeTopicPartitionsResponseTopic {
        error_code: ErrorCode::InvalidRequest.code(),
        name: Some(topic.name.clone()),
        ..Default::default()
    });
    DescribeTopicPartitionsResponse { topics: topics.collect(), ..Default::default() }
}

fn partitions(
    image: &MetadataImage,
    context: &RequestContext,
    topic: &TopicImage,
    start: i32,
    limit: usize,
) -> Vec<DescribeTopicPartitionsResponsePartition> {
    let skipped = usize::try_from(start).unwrap_or(0);
    (start..)
        .zip(topic.partitions.iter().skip(skipped))
        .take(limit)
        .map(|(number, state)| partition(image, context, number, state))
        .collect()
}

fn partition(
    image: &MetadataImage,
    context: &RequestContext,
    partition_index: i32,
    state: &PartitionImage,
) -> DescribeTopicPartitionsResponsePartition {
    DescribeTopicPartitionsResponsePartition {
        partition_index,
        leader_id: live_broker(image, state.leader, &context.listener).map_or(NO_LEADER, |_| state.leader),
        leader_epoch: state.leader_epoch,
        replica_nodes: state.replica_ids().collect(),
        isr_nodes: state.isr.clone(),
        eligible_leader_replicas: Some(state.elr.clone()),
        last_known_elr: Some(Vec::new()),
        offline_replicas: offline_replicas(image, state, &context.listener),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::messages::describe_topic_partitions_request;
    use millrace_protocol::messages::describe_topic_partitions_request::TopicRequest;
    use millrace_protocol::{Encoder, Message as _};

    use super::super::fixtures::{add_topic, context, image};
    use super::*;

    fn request(names: &[&str], limit: i32, from: Option<(&str, i32)>) -> DescribeTopicPartitionsRequest {
        DescribeTopicPartitionsRequest {
            topics: names
                .iter()
                .map(|name| TopicRequest { name: (*name).into(), ..Default::default() })
                .collect(),
            response_partition_limit: limit,
            cursor: from.map(|(topic, partition_index)| describe_topic_partitions_request::Cursor {
                topic_name: topic.into(),
                partition_index,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Topics with their errors and partition numbers, and the cursor.
    type Outline = (Vec<(String, i16, Vec<i32>)>, Option<(String, i32)>);

    fn run(request: &DescribeTopicPartitionsRequest) -> Outline {
        let mut image = image([1]);
        add_topic(&mut image, "b", &[1, 1, 1]);
        add_topic(&mut image, "a", &[1, 1]);
        add_topic(&mut image, "c", &[NO_LEADER]);
        let response = handle(&image, &context(0), 2000, request);
        response.encode(&mut Encoder::new(), 0).expect("the answer fits its version");
        let topics = response.topics.iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|partition| partition.partition_index).collect();
            (topic.name.as_deref().unwrap_or_default().to_owned(), topic.error_code, partitions)
        });
        let cursor =
            response.next_cursor.as_ref().map(|c| (c.topic_name.as_str().to_owned(), c.partition_index));
        (topics.collect(), cursor)
    }

    fn topic(name: &str, error: i16, partitions: &[i32]) -> (String, i16, Vec<i32>) {
        (name.to_owned(), error, partitions.to_vec())
    }

    #[test]
    fn lists_all_topics_in_order_when_none_is_named() {
        let all = vec![topic("a", 0, &[0, 1]), topic("b", 0, &[0, 1, 2]), topic("c", 0, &[0])];
        assert_eq!(run(&request(&[], 2000, None)), (all, None));
    }

    #[test]
    fn eligible_leader_replicas_are_shown() {
        let mut image = image([1]);
        let topic_id = add_topic(&mut image, "a", &[1]);
        let topic = image.topics.get_mut(&topic_id).map(std::sync::Arc::make_mut).expect("just added");
        topic.partitions[0].elr = vec![4, 3];
        let response = handle(&image, &context(0), 10, &request(&["a"], 10, None));
        assert_eq!(response.topics[0].partitions[0].eligible_leader_replicas, Some(vec![4, 3]));
    }

    #[test]
    fn stops_at_the_limit_and_goes_on_from_the_cursor() {
        let first = run(&request(&[], 3, None));
        assert_eq!(first, (vec![topic("a", 0, &[0, 1]), topic("b", 0, &[0])], Some(("b".to_owned(), 1))));
        let second = run(&request(&[], 2, Some(("b", 1))));
        assert_eq!(second, (vec![topic("b", 0, &[1, 2])], Some(("c".to_owned(), 0))));
        let third = run(&request(&[], 2, Some(("c", 0))));
        assert_eq!(third, (vec![topic("c", 0, &[0])], None));
    }

    #[test]
    fn a_limit_below_one_counts_as_one() {
        assert_eq!(run(&request(&["a"], 0, None)), (vec![topic("a", 0, &[0])], Some(("a".to_owned(), 1))));
    }

    #[test]
    fn named_topics_that_are_missing_have_an_error_each() {
        let (topics, _) = run(&request(&["x", "a", "x", "no/good"], 10, None));
        assert_eq!(topics, [topic("a", 0, &[0, 1]), topic("no/good", 17, &[]), topic("x", 3, &[])]);
    }

    #[test]
    fn a_cursor_outside_of_the_request_is_invalid() {
        assert_eq!(run(&request(&["a"], 10, Some(("b", 0)))).0, [topic("a", 42, &[])]);
        assert_eq!(run(&request(&["a"], 10, Some(("a", -1)))).0, [topic("a", 42, &[])]);
    }

    #[test]
    fn a_cursor_behind_the_last_partition_yields_none() {
        assert_eq!(run(&request(&["a"], 10, Some(("a", 9)))), (vec![topic("a", 0, &[])], None));
    }
}
