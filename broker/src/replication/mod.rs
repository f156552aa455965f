//! Partitions hosted by this broker: leadership, appends, reads, and the requests that wait for them.
//!
//! [`ReplicaManager`] follows the metadata image: it opens the logs of partitions that have a replica here, leads or
//! follows as the image says, and deletes logs of topics that are gone and of replicas that were taken away (`hosting`).
//! [`Partition`] is one of them. What a client sends is judged in [`validate`] and [`producer_state`], which know no log.
//! Fetches of clients are in `reads`, what is done now and then in `upkeep`.
//!
//! Kafka's model of replication: followers fetch from the leader (`fetcher` there, `sessions` here), the leader keeps
//! track of them (`leadership`, pure), the high watermark is the lowest durable end of the in-sync replicas
//! (`watermark`), and changes of the in-sync replicas are proposed to the controller (`proposals`). Filling replicas that
//! are not in sync can be throttled at either side (`throttle`).
//!
//! Invariants:
//! - A produce request with acks=all is answered with success only when its records are below the high watermark, that
//!   is, durable on all in-sync replicas; with acks=1 when they are durable on the leader.
//! - A follower cuts its log by leader epochs only, never because of the high watermark (KIP-101).
//! - A partition takes appends only while the image of a broker that has caught up names this broker, on this volume,
//!   as its leader.
//! - No log is deleted on a guess: see `hosting`.

pub mod cleaner;
mod fetcher;
mod hosting;
mod kept_state;
mod leadership;
mod load;
pub mod manager;
pub mod partition;
pub mod peers;
mod pending_produce;
pub mod producer_state;
mod producer_undo;
mod progress;
mod proposals;
mod reads;
mod registrations;
mod sessions;
mod throttle;
mod traffic;
mod upkeep;
pub mod validate;
mod waiters;
mod watermark;

#[cfg(test)]
mod ahead_test;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod fleet_test;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod reassignment_test;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
pub(crate) mod test_fleet;

use std::time::Duration;

use bytes::Bytes;
use millrace_protocol::records::{Compression, TimestampType};
use millrace_protocol::{ErrorCode, RecordBytes};

use crate::metadata::image::{BrokerId, TopicIdPartition};
use crate::storage::{EpochEnd, LogSettings};

pub use cleaner::{CleanerOptions, LogCleaner};
pub use leadership::{LeaderAssignment, Member, Proposal};
pub use load::ClusterLoad;
pub use manager::{HostedLog, ReplicaManager, ReplicaManagerOptions};
pub use partition::Partition;
pub use pending_produce::PendingProduce;
pub use progress::{Progress, ReplicaProgress};
pub use throttle::{ThrottleRates, ThrottledReplicas};
pub use validate::RecordError;

/// Settings of a topic, as far as its partitions need them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// Settings of the logs.
    pub log: LogSettings,
    /// Largest batch (`max.message.bytes`).
    pub max_message_bytes: usize,
    /// Whether records need a key (`cleanup.policy` names `compact`).
    pub compacted: bool,
    /// Codec that batches are stored in (`compression.type`); `None` keeps the producer's.
    pub compression: Option<Compression>,
    /// Whose clock the timestamps are (`message.timestamp.type`).
    pub timestamp_type: TimestampType,
    /// How far a timestamp may lie in the past (`message.timestamp.before.max.ms`).
    pub timestamp_before_max_ms: i64,
    /// How far a timestamp may lie in the future (`message.timestamp.after.max.ms`).
    pub timestamp_after_max_ms: i64,
    /// In-sync replicas that acks=all needs (`min.insync.replicas`).
    pub min_insync_replicas: usize,
    /// Replicas whose reads from their leader are throttled, named by partition and leader
    /// (`leader.replication.throttled.replicas`).
    pub leader_throttled: ThrottledReplicas,
    /// Replicas whose fetching is throttled, named by partition and follower
    /// (`follower.replication.throttled.replicas`).
    pub follower_throttled: ThrottledReplicas,
}

/// Kafka's defaults.
impl Default for TopicSettings {
    fn default() -> Self {
        Self {
            log: LogSettings::default(),
            max_message_bytes: 1_048_588,
            compacted: false,
            compression: None,
            timestamp_type: TimestampType::CreateTime,
            timestamp_before_max_ms: i64::MAX,
            timestamp_after_max_ms: 3_600_000,
            min_insync_replicas: 1,
            leader_throttled: ThrottledReplicas::None,
            follower_throttled: ThrottledReplicas::None,
        }
    }
}

/// When a produce request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequiredAcks {
    /// At once (acks=0).
    None,
    /// When the leader has the records (acks=1).
    Leader,
    /// When all in-sync replicas have the records (acks=all).
    All,
}

/// Who leads a partition, for clients that came to the wrong broker (KIP-951).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderHint {
    /// The leader.
    pub leader_id: BrokerId,
    /// Its epoch.
    pub leader_epoch: i32,
}

/// Records for one partition.
#[derive(Clone, Debug)]
pub struct ProducePartition {
    /// Where to.
    pub partition: TopicIdPartition,
    /// What came in the request; judged here.
    pub records: Bytes,
}

/// How an append to one partition went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProduceOutcome {
    /// `None` if the records are stored.
    pub error: ErrorCode,
    /// Offset of the first record, -1 on error.
    pub base_offset: i64,
    /// The broker's time in the records, -1 if the topic keeps the producer's (P9).
    pub log_append_time_ms: i64,
    /// First offset of the log, -1 if it is not known.
    pub log_start_offset: i64,
    /// Records at fault.
    pub record_errors: Vec<RecordError>,
    /// For people.
    pub error_message: Option<String>,
    /// Who leads the partition, if not this broker.
    pub leader: Option<LeaderHint>,
}

impl ProduceOutcome {
    fn failed(error: ErrorCode, message: Option<String>) -> Self {
        Self {
            error,
            base_offset: -1,
            log_append_time_ms: -1,
            log_start_offset: -1,
            record_errors: Vec::new(),
            error_message: message,
            leader: None,
        }
    }
}

/// What to fetch from one partition.
#[derive(Clone, Debug)]
pub struct FetchPartition {
    /// Where from.
    pub partition: TopicIdPartition,
    /// Leader epoch that the client believes in (F9).
    pub current_leader_epoch: Option<i32>,
    /// Offset wanted.
    pub fetch_offset: i64,
    /// Epoch of the last record that the client has; checked against the log when given.
    pub last_fetched_epoch: Option<i32>,
    /// Most bytes from this partition.
    pub max_bytes: i32,
}

/// A fetch request.
#[derive(Clone, Debug)]
pub struct FetchRequestPlan {
    /// How long to wait for `min_bytes`.
    pub max_wait: Duration,
    /// Bytes worth answering for.
    pub min_bytes: i32,
    /// Most bytes of all partitions.
    pub max_bytes: i32,
    /// Stop at the last stable offset.
    pub read_committed: bool,
    /// The client knows that it may read from followers (KIP-392).
    pub may_read_followers: bool,
    /// Where the client is; empty if it does not say. The leader names a follower in the same place, if it is to.
    pub rack: String,
    /// Partitions, in the order in which they are served (F1).
    pub partitions: Vec<FetchPartition>,
}

/// What was fetched from one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedPartition {
    /// `None` if all is well.
    pub error: ErrorCode,
    /// High watermark before the read (F8), -1 on error.
    pub high_watermark: i64,
    /// Last stable offset before the read, -1 on error.
    pub last_stable_offset: i64,
    /// Log start offset before the read, -1 on error.
    pub log_start_offset: i64,
    /// Whole batches; may be empty.
    pub records: RecordBytes,
    /// Who leads the partition, if not this broker.
    pub leader: Option<LeaderHint>,
    /// Where the client's log and this one part, if they do.
    pub diverging_epoch: Option<EpochEnd>,
    /// Follower that the client should read from instead (F13).
    pub preferred_read_replica: Option<BrokerId>,
}

impl FetchedPartition {
    fn failed(error: ErrorCode, leader: Option<LeaderHint>) -> Self {
        Self {
            error,
            high_watermark: -1,
            last_stable_offset: -1,
            log_start_offset: -1,
            records: RecordBytes::new(),
            leader,
            diverging_epoch: None,
            preferred_read_replica: None,
        }
    }
}

/// A question of ListOffsets.
#[derive(Clone, Debug)]
pub struct OffsetQuery {
    /// Where.
    pub partition: TopicIdPartition,
    /// A time, or one of the special values (O1).
    pub timestamp: i64,
    /// Leader epoch that the client believes in (F9).
    pub current_leader_epoch: Option<i32>,
    /// "Latest" is the last stable offset.
    pub read_committed: bool,
}

/// An answer of ListOffsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundOffset {
    /// The offset, -1 if there is none.
    pub offset: i64,
    /// Timestamp of the record there, -1 where the question was not about time.
    pub timestamp: i64,
    /// Epoch that wrote it, -1 if that is not known.
    pub leader_epoch: i32,
}
