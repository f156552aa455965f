//! DescribeLogDirs: the one data volume of this broker, and the logs on it (KIP-113, KIP-827).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use millrace_protocol::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use millrace_protocol::messages::{DescribeLogDirsRequest, DescribeLogDirsResponse};

use crate::metadata::image::MetadataImage;
use crate::replication::HostedLog;
use crate::volume::Space;

/// Not known.
const UNKNOWN: i64 = -1;

/// Room on a volume, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) total: i64,
    pub(super) usable: i64,
}

/// Room on the volume of `directory`; -1 where the operating system does not say. Blocks on the disk.
pub(super) fn room(directory: &Path) -> Room {
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    match Space::of(directory) {
        Ok(space) => Room { total: bytes(space.total), usable: bytes(space.free) },
        Err(_) => Room { total: UNKNOWN, usable: UNKNOWN },
    }
}

/// Describes what was asked for of `logs`; partitions that are not here are left out.
pub(super) fn handle(
    image: &MetadataImage,
    directory: &Path,
    logs: &[HostedLog],
    room: Room,
    request: &DescribeLogDirsRequest,
) -> DescribeLogDirsResponse {
    let asked: Option<BTreeSet<(&str, i32)>> = request.topics.as_ref().map(|topics| {
        let pairs = topics
            .iter()
            .flat_map(|topic| topic.partitions.iter().map(|partition| (topic.topic.as_str(), *partition)));
        pairs.collect()
    });
    let mut topics: BTreeMap<&str, Vec<DescribeLogDirsPartition>> = BTreeMap::new();
    for log in logs.iter().filter(|log| log.online) {
        let number = log.partition.partition;
        let Some(topic) = image.topics.get(&log.partition.topic_id) else { continue };
        let name = topic.name.as_str();
        if asked.as_ref().is_none_or(|asked| asked.contains(&(name, number))) {
            topics.entry(name).or_default().push(DescribeLogDirsPartition {
                partition_index: number,
                partition_size: i64::try_from(log.size).unwrap_or(i64::MAX),
                offset_lag: (log.high_watermark - log.log_end_offset).max(0),
                ..Default::default()
            });
        }
    }
    let topics = topics.into_iter().map(|(name, mut partitions)| {
        partitions.sort_unstable_by_key(|partition| partition.partition_index);
        DescribeLogDirsTopic { name: name.into(), partitions, ..Default::default() }
    });
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_path_buf());
    let result = DescribeLogDirsResult {
        log_dir: absolute.display().to_string().into(),
        topics: topics.collect(),
        total_bytes: room.total,
        usable_bytes: room.usable,
        ..Default::default()
    };
    DescribeLogDirsResponse { results: vec![result], ..Default::default() }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::messages::describe_log_dirs_request::DescribableLogDirTopic;
    use millrace_protocol::{Encoder, Message as _};

    use super::super::fixtures::{add_topic, image};
    use super::*;
    use crate::metadata::image::TopicIdPartition;

    const ROOM: Room = Room { total: 1_000, usable: 400 };

    /// Topics and partitions with their sizes and lags.
    fn answer(asked: Option<&[(&str, i32)]>) -> Vec<(String, i32, i64, i64)> {
        let mut image = image([1]);
        let topics = [add_topic(&mut image, "b", &[1, 1]), add_topic(&mut image, "a", &[1])];
        let log = |topic: usize, partition, size, high_watermark| HostedLog {
            partition: TopicIdPartition { topic_id: topics[topic], partition },
            leads: true,
            online: partition != 7,
            size,
            log_start_offset: 0,
            high_watermark,
            log_end_offset: 5,
        };
        let logs = [log(0, 1, 20, 5), log(0, 0, 10, 3), log(1, 0, 30, 9), log(1, 7, 99, 5)];
        let topics = asked.map(|asked| {
            let topic = |(name, partition): &(&str, i32)| DescribableLogDirTopic {
                topic: (*name).into(),
                partitions: vec![*partition],
                ..Default::default()
            };
            asked.iter().map(topic).collect()
        });
        let request = DescribeLogDirsRequest { topics, ..Default::default() };
        let response = handle(&image, Path::new("/data"), &logs, ROOM, &request);
        for version in 1..=5 {
            response.encode(&mut Encoder::new(), version).expect("the answer fits its version");
        }
        let directory = &response.results[0];
        assert_eq!((response.results.len(), directory.log_dir.as_str()), (1, "/data"));
        assert_eq!((directory.total_bytes, directory.usable_bytes), (1_000, 400));
        let flat = directory.topics.iter().flat_map(|topic| {
            let name = topic.name.to_string();
            topic
                .partitions
                .iter()
                .map(move |it| (name.clone(), it.partition_index, it.partition_size, it.offset_lag))
        });
        flat.collect()
    }

    #[test]
    fn all_logs_that_are_open_are_described() {
        let all = [("a".to_owned(), 0, 30, 4), ("b".to_owned(), 0, 10, 0), ("b".to_owned(), 1, 20, 0)];
        assert_eq!(answer(None), all);
        assert_eq!(answer(Some(&[("b", 1), ("b", 9), ("c", 0)])), [("b".to_owned(), 1, 20, 0)]);
        assert_eq!(answer(Some(&[])), []);
    }

    #[test]
    fn room_is_told_where_there_is_a_volume() {
        let here = room(Path::new("/"));
        assert!(here.total > 0 && here.usable >= 0);
        assert_eq!(room(Path::new("/nowhere/at/all")), Room { total: UNKNOWN, usable: UNKNOWN });
    }
}
