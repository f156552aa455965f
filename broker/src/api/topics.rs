//! Names of topics, and how requests refer to them.

use std::sync::Arc;

use millrace_protocol::ErrorCode;
use uuid::Uuid;

use crate::metadata::image::{MetadataImage, TopicIdPartition, TopicImage};

/// Longest topic name.
const MAX_NAME_LENGTH: usize = 249;

/// Rule M2: the names that Kafka takes.
pub(super) fn is_legal_name(name: &str) -> bool {
    !name.is_empty()
        && name != "."
        && name != ".."
        && name.len() <= MAX_NAME_LENGTH
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Topic by name, or by id in versions of requests that have no names.
pub(super) fn find<'a>(
    image: &'a MetadataImage,
    by_id: bool,
    name: &str,
    topic_id: Uuid,
) -> Result<&'a Arc<TopicImage>, ErrorCode> {
    if by_id {
        image.topics.get(&topic_id).ok_or(ErrorCode::UnknownTopicId)
    } else {
        image.topic_by_name(name).ok_or(ErrorCode::UnknownTopicOrPartition)
    }
}

/// Partition of a topic, if the topic has it.
pub(super) fn partition_of(topic: &TopicImage, partition: i32) -> Result<TopicIdPartition, ErrorCode> {
    let exists = usize::try_from(partition).is_ok_and(|number| number < topic.partitions.len());
    if exists {
        Ok(TopicIdPartition { topic_id: topic.topic_id, partition })
    } else {
        Err(ErrorCode::UnknownTopicOrPartition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m2_legal_names_are_those_of_kafka() {
        for name in ["a", "A.b_c-9", "__consumer_offsets", &"x".repeat(249)] {
            assert!(is_legal_name(name), "{name}");
        }
        for name in ["", ".", "..", "a b", "a/b", "ä", "a:b", &"x".repeat(250)] {
            assert!(!is_legal_name(name), "{name}");
        }
    }
}
