//! Log compaction: of each key the last record stays (`cleanup.policy=compact`, rules C1–C4).
//!
//! Answers which log is to be compacted next ([`choice`]), which records of a batch stay ([`rule`]), and holds what the
//! two need to know of a log. Knows no journal and no disk: a store reads and writes around it.
//!
//! A log has a clean part, which ends at its first dirty offset, and a dirty part above it. A pass notes the last
//! offset of every key in the dirty part, as much as [`KeyMap`] holds, and then writes the whole log up to there anew
//! without the records that have a later one. Offsets never change, so the log has gaps afterwards.
//!
//! Invariant: below the first dirty offset no two records have the same key, and every record there whose key has no
//! value is one that all earlier records of its key have already made way for.

pub mod choice;
mod key_map;
pub mod rule;

use std::collections::HashMap;

pub use choice::{Choice, Dirt};
pub use key_map::KeyMap;
pub use rule::AbortedTransaction;

/// How one log is compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionSettings {
    /// Age in milliseconds below which records are left alone (`min.compaction.lag.ms`).
    pub min_lag_ms: i64,
    /// Age in milliseconds at which a record that is not compacted makes the log due (`max.compaction.lag.ms`).
    pub max_lag_ms: i64,
    /// Milliseconds for which records without a value stay after they were first seen (`delete.retention.ms`).
    pub delete_retention_ms: i64,
    /// Share of the log, in millionths, that has to be dirty (`min.cleanable.dirty.ratio`).
    pub min_dirty_millionths: u32,
}

/// Kafka's defaults.
impl Default for CompactionSettings {
    fn default() -> Self {
        Self {
            min_lag_ms: 0,
            max_lag_ms: i64::MAX,
            delete_retention_ms: 24 * 3_600_000,
            min_dirty_millionths: 500_000,
        }
    }
}

/// What a compaction is to go by.
#[derive(Debug)]
pub struct CompactionJob<'a> {
    /// Nothing from this offset on is touched: the high watermark, or the last stable offset if that is lower (C1).
    pub until: i64,
    /// The time, in milliseconds since 1970.
    pub now_ms: i64,
    /// Last offset of the last batch of each producer that is still known. To be read after `until`: a batch below it
    /// that is not named here is not the producer's last.
    pub producers: &'a HashMap<i64, i64>,
    /// Transactions that were aborted.
    pub aborted: &'a [AbortedTransaction],
    /// Most bytes of memory for the keys of one pass (`log.cleaner.dedupe.buffer.size`).
    pub key_map_bytes: usize,
    /// Which reads and writes have their turn.
    pub pace: &'a dyn Pace,
}

/// Lets a compaction go no faster than it may.
pub trait Pace: Send + Sync + std::fmt::Debug {
    /// Waits until `bytes` more may be read or written; false if the compaction is to end now.
    fn wait(&self, bytes: u64) -> bool;
}

/// No limit.
#[derive(Clone, Copy, Debug)]
pub struct Unpaced;

impl Pace for Unpaced {
    fn wait(&self, _bytes: u64) -> bool {
        true
    }
}

/// What a compaction has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactionReport {
    /// Times that the log was gone through: more than once if its keys did not fit into the memory at once.
    pub passes: u32,
    /// First offset that is dirty now.
    pub first_dirty: i64,
    /// Bytes read, those read twice counted twice.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes by which the log has become smaller.
    pub removed_bytes: u64,
    /// Records that are gone.
    pub removed_records: u64,
    /// Whether it has ended early: it was told to, or the log was cut or shortened under its hands. What it has done
    /// until then stays, and the next one does the rest.
    pub interrupted: bool,
}
