//! DeleteRecords: moves the start of logs up. Rule D1.

use futures::future::{BoxFuture, join_all};
use millrace_protocol::ErrorCode;
use millrace_protocol::messages::delete_records_request::DeleteRecordsTopic;
use millrace_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use millrace_protocol::messages::{DeleteRecordsRequest, DeleteRecordsResponse};

use super::{internal_topics, topics};
use crate::metadata::image::{MetadataImage, TopicIdPartition};

/// Asks for everything that consumers can see to be deleted.
const HIGH_WATERMARK: i64 = -1;

/// Low watermark of a partition that could not be answered for.
const UNKNOWN: i64 = -1;

/// Deletes records of one partition up to and without an offset, or up to the high watermark; answers with the lowest
/// log start of its replicas once they have done so.
pub(super) type Delete<'a> =
    dyn Fn(TopicIdPartition, Option<i64>) -> BoxFuture<'a, Result<i64, ErrorCode>> + Send + Sync + 'a;

/// Answers each partition by `delete`, which does not see what is refused here. All are deleted side by side: each may
/// wait for followers.
pub(super) async fn handle(
    image: &MetadataImage,
    request: &DeleteRecordsRequest,
    delete: &Delete<'_>,
) -> DeleteRecordsResponse {
    let answer_topic = async |topic: &DeleteRecordsTopic| {
        let answers = topic.partitions.iter().map(async |asked| {
            let result = match judge(image, &topic.name, asked.partition_index, asked.offset) {
                Ok((partition, offset)) => delete(partition, offset).await,
                Err(error) => Err(error),
            };
            DeleteRecordsPartitionResult {
                partition_index: asked.partition_index,
                low_watermark: result.unwrap_or(UNKNOWN),
                error_code: result.err().map_or(0, ErrorCode::code),
                ..Default::default()
            }
        });
        let partitions = join_all(answers).await;
        DeleteRecordsTopicResult { name: topic.name.clone(), partitions, ..Default::default() }
    };
    let topics = join_all(request.topics.iter().map(answer_topic)).await;
    DeleteRecordsResponse { topics, ..Default::default() }
}

/// What is to be deleted of which partition.
fn judge(
    image: &MetadataImage,
    topic: &str,
    partition: i32,
    offset: i64,
) -> Result<(TopicIdPartition, Option<i64>), ErrorCode> {
    if internal_topics::is_internal(topic) {
        return Err(ErrorCode::InvalidTopicException);
    }
    let found = image.topic_by_name(topic).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let partition = topics::partition_of(found, partition)?;
    match offset {
        HIGH_WATERMARK => Ok((partition, None)),
        0.. => Ok((partition, Some(offset))),
        _ => Err(ErrorCode::OffsetOutOfRange),
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use millrace_protocol::messages::delete_records_request::DeleteRecordsPartition;

    use super::super::fixtures::{add_topic, image};
    use super::*;

    #[tokio::test]
    async fn d1_each_partition_is_answered_for_itself() {
        let mut image = image([1]);
        add_topic(&mut image, "a", &[1, 1]);
        let ask = |name: &str, partition_index, offset| DeleteRecordsTopic {
            name: name.into(),
            partitions: vec![DeleteRecordsPartition { partition_index, offset, ..Default::default() }],
            ..Default::default()
        };
        let request = DeleteRecordsRequest {
            topics: vec![
                ask("a", 0, 7),
                ask("a", 1, HIGH_WATERMARK),
                ask("a", 0, 99),
                ask("a", 0, -2),
                ask("a", 2, 0),
                ask("b", 0, 0),
                ask("__consumer_offsets", 0, 0),
            ],
            ..Default::default()
        };
        let delete = |_, offset: Option<i64>| {
            let answer = match offset {
                Some(99) => Err(ErrorCode::OffsetOutOfRange),
                offset => Ok(offset.unwrap_or(50)),
            };
            async move { answer }.boxed()
        };
        let response = handle(&image, &request, &delete).await;
        let answers: Vec<_> = response
            .topics
            .iter()
            .flat_map(|topic| &topic.partitions)
            .map(|answer| (answer.error_code, answer.low_watermark))
            .collect();
        let refused = |error: ErrorCode| (error.code(), UNKNOWN);
        assert_eq!(
            answers,
            [
                (0, 7),
                (0, 50),
                refused(ErrorCode::OffsetOutOfRange),
                refused(ErrorCode::OffsetOutOfRange),
                refused(ErrorCode::UnknownTopicOrPartition),
                refused(ErrorCode::UnknownTopicOrPartition),
                refused(ErrorCode::InvalidTopicException),
            ]
        );
    }
}
