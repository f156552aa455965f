//! The record store as partitions see it: the boundary behind which bytes become durable.
//!
//! A [`LogStore`] is one data volume; it keeps one [`PartitionLog`] per partition. Callers hand in whole record
//! batches that have been validated and given their offsets; the store writes what has queued up in one go, syncs it,
//! and only then moves the durable end. Nothing here knows of leaders, clients or the wire.
//!
//! What every implementation keeps, and the module `conformance` checks:
//! - Batches of one log are stored in the order of [`PartitionLog::append`], byte for byte except for base offset and
//!   leader epoch, which the store writes in.
//! - The durable end never moves past a batch that would not survive a crash under the log's [`Durability`], and
//!   whatever lies below a durable end that was ever published is there after the store is opened again.
//! - Consumers see nothing at or above the durable end. Replicas see what is queued as well ([`Reader`]): the same bytes
//!   that become durable, in the same order, unless a crash comes first.
//! - A failed write or sync is final ([`StoreFailure`]): no durable end moves after it, the first reason is kept, and
//!   only opening the store again can make it accept appends. A sync is never tried twice, since the kernel may have
//!   dropped the pages of the first try.
//! - Offsets never change. Batches may be gone or have lost records after a compaction, never the last one.
//! - What is found broken on disk is reported, never skipped, except the cut-off last write of a crash.
//!
//! [`journal`] is the implementation: one journal for all logs of a volume.

pub mod batch;
pub mod compaction;
pub mod epochs;
pub mod journal;
mod since_checkpoint;
mod wakes;

#[cfg(test)]
pub(crate) mod conformance;
#[cfg(test)]
pub(crate) mod sim_store;

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::future::BoxFuture;
use millrace_protocol::RecordBytes;
use millrace_protocol::records::BatchHeader;
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::metadata::image::TopicIdPartition;

pub use compaction::{CompactionJob, CompactionReport, CompactionSettings, Dirt};
pub use epochs::{EpochCache, EpochEnd, EpochStart};
pub use since_checkpoint::CHECKPOINT_BYTES;
pub use wakes::Wakes;

/// When an append counts as durable (`log.durability`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// After the data is on the disk: survives loss of power.
    #[default]
    Fsync,
    /// After the data is with the operating system: survives the death of the process only.
    Written,
}

/// Settings of one log; they may change while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Most bytes of one append, which are one batch (`segment.bytes`, P4).
    pub segment_bytes: u64,
    /// Whether old records are deleted at all (`cleanup.policy` names `delete`).
    pub delete_old: bool,
    /// Age in milliseconds after which records are deleted (`retention.ms`); `None` keeps them.
    pub retention_ms: Option<i64>,
    /// Size down to which old segments are deleted (`retention.bytes`); `None` keeps them.
    pub retention_bytes: Option<u64>,
    /// How the log is compacted, if it is at all (`cleanup.policy` names `compact`).
    pub compaction: Option<CompactionSettings>,
    /// See [`Durability`].
    pub durability: Durability,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            segment_bytes: 1 << 30,
            delete_old: true,
            retention_ms: Some(7 * 24 * 3_600_000),
            retention_bytes: None,
            compaction: None,
            durability: Durability::Fsync,
        }
    }
}

/// A batch on its way into a log.
#[derive(Clone, Debug)]
pub struct AppendBatch {
    /// The batch as validated. Its base offset and leader epoch are ignored.
    pub bytes: Bytes,
    /// Header of `bytes`, with the base offset and leader epoch that it is to get.
    pub header: BatchHeader,
}

/// The pointers of one log, all taken at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnds {
    /// First offset that can be read.
    pub log_start: i64,
    /// First offset that is not durable yet.
    pub durable_end: i64,
    /// Next offset to be assigned; appends between the durable end and this are on their way.
    pub log_end: i64,
    /// Bytes made durable since the log was opened. Two readings tell how much arrived between them.
    pub durable_bytes: u64,
}

impl LogEnds {
    /// First offset that is not shown to such a reader. Nothing else decides how far anybody may read.
    pub fn readable_end(&self, reader: Reader) -> i64 {
        match reader {
            Reader::Consumer => self.durable_end,
            Reader::Replica => self.log_end,
        }
    }
}

/// Who reads, which decides how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Whoever takes a record that was read for one that stays: up to the durable end.
    Consumer,
    /// A replica, which makes what it reads durable by itself and says how far it has: up to the log end.
    Replica,
}

/// What to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRange {
    /// Who reads: see [`LogEnds::readable_end`].
    pub reader: Reader,
    /// Offset wanted: data starts with the batch that contains it, or with the next one if there is a gap (F2).
    pub offset: i64,
    /// Batches from this offset on are left out. What the reader may see bounds reads as well.
    pub until: i64,
    /// Most bytes to return.
    pub max_bytes: usize,
    /// Return the first batch even if it is larger than `max_bytes` (F1).
    pub at_least_one: bool,
}

/// State derived from a log that its owner keeps in the store, such as what is known about producers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateSnapshot {
    /// The state covers every batch below this offset.
    pub offset: i64,
    /// Encoded state; the store does not look into it.
    pub bytes: Bytes,
}

/// A log that exists on the volume, open or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredLog {
    /// Whose log it is.
    pub partition: TopicIdPartition,
    /// Metadata log index at which the partition was last known to exist, if a checkpoint has recorded one.
    pub known_at: Option<u64>,
}

/// What a checkpoint would be good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckpointNeed {
    /// Bytes written since the last one as they lie on the disk, deletions and cuts included, which a start after a
    /// crash has to read.
    pub bytes: u64,
    /// Whether it would give back space that nothing lives in.
    pub gives_space: bool,
    /// Whether little space is left.
    pub is_short_of_space: bool,
}

/// What an owner has to say about an open log when the store makes a checkpoint.
#[derive(Clone, Debug)]
pub struct CheckpointEntry {
    /// Whose log it is.
    pub partition: TopicIdPartition,
    /// Derived state to keep; `None` keeps what the last checkpoint had.
    pub state: Option<StateSnapshot>,
}

/// Why a store has stopped for good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record store at {} has failed while {doing} and takes no more writes until the broker is restarted: {reason}", path.display())]
pub struct StoreFailure {
    /// File or directory concerned.
    pub path: PathBuf,
    /// What was being done.
    pub doing: &'static str,
    /// What the operating system said.
    pub reason: String,
}

/// Why a log operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The store has stopped for good.
    #[error(transparent)]
    Failed(Arc<StoreFailure>),
    /// The store is closed, or is being closed.
    #[error("the record store is closed")]
    Closed,
    /// The log has been deleted or closed.
    #[error("the log is gone")]
    Gone,
    /// The volume is nearly full. Nothing was written; it goes on when there is space.
    #[error(
        "the volume of {} has {free} bytes left, and appends stop below {reserve}: delete topics, shorten their retention or enlarge the volume",
        path.display()
    )]
    Full {
        /// Directory of the store.
        path: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
    /// The offset is not in the log.
    #[error("offset {offset} is not between {log_start} and {log_end}")]
    OffsetOutOfRange {
        /// Offset asked for.
        offset: i64,
        /// First offset of the log.
        log_start: i64,
        /// Log end offset.
        log_end: i64,
    },
    /// An append that begins below the log end.
    #[error("batch with base offset {base_offset} does not follow the log, which ends at {log_end}")]
    NotContiguous {
        /// Offset of the batch.
        base_offset: i64,
        /// Log end offset.
        log_end: i64,
    },
    /// A batch that no segment can hold.
    #[error("a batch of {size} bytes does not fit into a segment of the journal, which takes {limit}")]
    TooLarge {
        /// Bytes of the batch.
        size: usize,
        /// Most bytes of a batch.
        limit: usize,
    },
    /// Stored bytes are not what was written, and it is not the cut-off end of a crash.
    #[error("{} is damaged at byte {position}: {problem}", path.display())]
    Damaged {
        /// File.
        path: PathBuf,
        /// Position in it.
        position: u64,
        /// What is wrong.
        problem: String,
    },
    /// The operating system refused something that can be tried again.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// File or directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// Hears what happens to one log. Called from the store's own threads: must be quick and must not call the store.
pub trait LogListener: Send + Sync {
    /// The durable end has moved to `durable_end`; back only because the log was truncated. `durable_bytes` is as in
    /// [`LogEnds`]. Returns who waited for it, to be woken by the caller.
    fn durable_end_moved(&self, durable_end: i64, durable_bytes: u64) -> Wakes;

    /// The store has failed: what is not durable now never will be.
    fn store_failed(&self);
}

/// The right to put some bytes into the store's queue, held until they are durable.
///
/// Bounds the memory that appends on their way to the disk take.
#[derive(Debug)]
pub struct Admission {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Admission {
    pub(crate) fn new(permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { _permit: permit }
    }
}

/// An open log and what was kept for its owner.
#[derive(Debug)]
pub struct OpenedLog {
    /// The log.
    pub log: Arc<dyn PartitionLog>,
    /// Derived state of the last checkpoint. Batches from its offset on must be replayed into it; without a state,
    /// all batches.
    pub state: Option<StateSnapshot>,
}

/// The logs of one data volume. See the module documentation for what holds.
///
/// Everything but [`admit`](Self::admit) and [`failure`](Self::failure) may block on the disk.
pub trait LogStore: Send + Sync + std::fmt::Debug {
    /// Logs that exist on the volume.
    fn list(&self) -> Vec<StoredLog>;

    /// Opens a log; one that does not exist begins empty, and takes no disk space before its first append.
    ///
    /// Recovers what a crash left: a cut-off last write is removed, other damage is [`StorageError::Damaged`].
    /// Opening a log that is open is an error of the caller and answered with [`StorageError::Gone`].
    fn open(
        &self,
        partition: TopicIdPartition,
        settings: LogSettings,
        listener: Weak<dyn LogListener>,
    ) -> Result<OpenedLog, StorageError>;

    /// Deletes logs, open or not, for little more than the price of one. Handles of them answer [`StorageError::Gone`] from
    /// then on.
    ///
    /// Durable on return. A partition may come back, as a replica does that was taken away: its log begins anew then.
    fn delete(&self, partitions: &[TopicIdPartition]) -> Result<(), StorageError>;

    /// Waits for room in the queue of appends; asks for the bytes of one request at once.
    ///
    /// Resolves on the first poll unless the queue is full; first come, first served. Cancel-safe.
    fn admit(&self, bytes: usize) -> BoxFuture<'_, Result<Admission, StorageError>>;

    /// Makes everything appended so far durable, and records where each log stands together with its owner's state,
    /// so that opening need not look at anything older. `known_at` is the metadata log index at which all partitions
    /// in `entries` existed.
    fn checkpoint(&self, entries: Vec<CheckpointEntry>, known_at: u64) -> Result<(), StorageError>;

    /// Marks logs as unknown to the cluster's metadata: [`StoredLog::known_at`] is `u64::MAX` from then on.
    fn disown(&self, partitions: &[TopicIdPartition]) -> Result<(), StorageError>;

    /// What another checkpoint would be good for.
    fn checkpoint_need(&self) -> CheckpointNeed;

    /// Resolves once [`CHECKPOINT_BYTES`] have been appended since the last checkpoint; for one who waits. Cancel-safe.
    fn many_appended(&self) -> BoxFuture<'_, ()>;

    /// Stops: what was appended is made durable, everything later is refused. A caller that wants a fast start makes
    /// a checkpoint first.
    fn close(&self);

    /// The failure that stopped the store, once there is one. Changes at most once.
    fn failure(&self) -> watch::Receiver<Option<Arc<StoreFailure>>>;
}

/// One partition's log. See the module documentation for what holds.
///
/// Methods that may block on the disk say so; the others are fit for async threads.
pub trait PartitionLog: Send + Sync + std::fmt::Debug {
    /// Queues a batch. It is durable when the durable end has passed its last offset; until then it may be lost.
    ///
    /// `batch.header.base_offset` must not be below the log end; what lies between the two is a gap, as compaction
    /// leaves them. Callers append to one log from under one lock.
    fn append(&self, batch: AppendBatch, admission: Arc<Admission>) -> Result<(), StorageError>;

    /// The log's pointers.
    fn ends(&self) -> LogEnds;

    /// Reads whole batches if that needs no disk; `None` if it does. Copies no records.
    fn read_memory(&self, range: ReadRange) -> Result<Option<RecordBytes>, StorageError>;

    /// Reads whole batches; empty if nothing lies between the offset and the bounds. Blocks on the disk.
    ///
    /// May return less than there is, but never nothing when a batch would fit.
    fn read(&self, range: ReadRange) -> Result<RecordBytes, StorageError>;

    /// Removes every batch that holds an offset at or above `offset`; the log then ends after the last batch that is
    /// left, and starts no later than that. Derived state that covers a removed batch is forgotten. Durable on return.
    /// Blocks on the disk. Not to be called while appends are on their way.
    fn truncate(&self, offset: i64) -> Result<LogEnds, StorageError>;

    /// Moves the log start up to `log_start`, which must not be above the durable end. Durable on return. Blocks.
    fn set_log_start(&self, log_start: i64) -> Result<(), StorageError>;

    /// Removes everything; the log is empty then, and begins and ends at `offset`. Durable on return. Blocks on the
    /// disk. Not to be called while appends are on their way.
    fn start_anew(&self, offset: i64) -> Result<LogEnds, StorageError>;

    /// The first batch, in log order, that ends at or after `from` and has a timestamp of at least `timestamp`.
    /// Blocks on the disk.
    fn batch_by_time(&self, timestamp: i64, from: i64) -> Result<Option<Bytes>, StorageError>;

    /// Of the batches that lie in `offsets` as a whole and hold records, the first with the largest timestamp. Blocks on
    /// the disk.
    fn batch_with_max_timestamp(&self, offsets: Range<i64>) -> Result<Option<Bytes>, StorageError>;

    /// Enters that a leader epoch begins at the log end (L1).
    fn begin_epoch(&self, leader_epoch: i32);

    /// Where a leader epoch ended (L2).
    fn epoch_end(&self, leader_epoch: i32) -> Option<EpochEnd>;

    /// The epoch that wrote `offset`.
    fn epoch_at(&self, offset: i64) -> Option<i32>;

    /// The latest epoch known.
    fn latest_epoch(&self) -> Option<i32>;

    /// Shows the headers of all durable batches from the one that contains `from` on. Blocks on the disk.
    fn replay(&self, from: i64, visit: &mut dyn FnMut(&BatchHeader)) -> Result<(), StorageError>;

    /// Replaces the settings.
    fn set_settings(&self, settings: LogSettings);

    /// Deletes what the settings say is too old or too much (R1, R2), never past `until`. Returns the bytes freed.
    /// Blocks on the disk.
    fn retain(&self, now_ms: i64, until: i64) -> Result<u64, StorageError>;

    /// Bytes stored.
    fn size(&self) -> u64;

    /// Where the log stands with its compaction, of which nothing from `until` on is part. Blocks on the disk.
    fn dirt(&self, until: i64, now_ms: i64) -> Result<Dirt, StorageError>;

    /// Compacts the log if its settings say so (C1–C4). What that has removed when it returns, with or without an
    /// error, does not come back. Blocks on the disk, for as long as it takes to read and write the log.
    ///
    /// Appends, reads and cuts go on meanwhile; a second compaction does not.
    fn compact(&self, job: &CompactionJob<'_>) -> Result<CompactionReport, StorageError>;

    /// Bytes stored of what lies below `offset`, as exactly as the index has it: batches that were written together count
    /// as a whole or not at all, and what compaction has removed counts as if it had lain below. Blocks on the disk.
    fn size_below(&self, offset: i64) -> Result<u64, StorageError>;
}
