//! Which records of a batch stay (rules C1–C3).
//!
//! Pure: a batch goes in, and what is left of it comes out. The rules are those of Kafka's `Cleaner`, with one more
//! condition: a record without a value goes only from the part of the log that an earlier compaction has finished. So
//! it can never go before an older record of its key, even where a compaction was cut short.

use std::collections::HashMap;

use millrace_protocol::records::{BatchError, BatchHeader, Record, RecordBatch};

use super::key_map::{KeyMap, KeyMapFull};

/// Most bytes that the records of a stored batch may decompress to.
const MAX_DECOMPRESSED_BYTES: usize = 256 << 20;

/// The records that a producer wrote in a transaction that it has taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedTransaction {
    /// Whose it was.
    pub producer_id: i64,
    /// Offset of its first record.
    pub first_offset: i64,
    /// Offset of its marker.
    pub last_offset: i64,
}

impl AbortedTransaction {
    fn holds(&self, header: &BatchHeader) -> bool {
        header.producer_id == self.producer_id
            && (self.first_offset..=self.last_offset).contains(&header.base_offset)
    }
}

fn is_aborted(header: &BatchHeader, aborted: &[AbortedTransaction]) -> bool {
    let attributes = header.attributes;
    attributes.is_transactional()
        && !attributes.is_control()
        && aborted.iter().any(|transaction| transaction.holds(header))
}

/// What a batch is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    /// Last offsets of the keys in the dirty part, up to `end`.
    pub keys: &'a KeyMap,
    /// First offset of the log: what lies below is deleted.
    pub log_start: i64,
    /// First dirty offset before this compaction.
    pub first_dirty: i64,
    /// Records from this offset on stay.
    pub end: i64,
    /// See [`CompactionJob::now_ms`](super::CompactionJob::now_ms).
    pub now_ms: i64,
    /// See [`CompactionSettings::delete_retention_ms`](super::CompactionSettings::delete_retention_ms).
    pub delete_retention_ms: i64,
    /// See [`CompactionJob::producers`](super::CompactionJob::producers).
    pub producers: &'a HashMap<i64, i64>,
    /// See [`CompactionJob::aborted`](super::CompactionJob::aborted).
    pub aborted: &'a [AbortedTransaction],
}

/// What is left of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// All of it, as it is.
    Whole,
    /// This.
    Part(RecordBatch),
    /// Nothing.
    Nothing,
}

/// What becomes of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What stays.
    pub left: Left,
    /// Records that go.
    pub removed: u64,
    /// When the records without a value that stay are due to go. A batch keeps its horizon when they are gone.
    pub delete_horizon_ms: Option<i64>,
}

impl From<Left> for Verdict {
    fn from(left: Left) -> Self {
        Self { left, removed: 0, delete_horizon_ms: None }
    }
}

impl Rule<'_> {
    /// What stays of `batch`, whose checksum has been verified.
    ///
    /// # Errors
    /// Its records do not parse.
    pub fn judge(&self, batch: &RecordBatch) -> Result<Verdict, BatchError> {
        let header = batch.header();
        if header.last_offset() < self.log_start {
            let removed = u64::try_from(header.records_count).unwrap_or_default();
            return Ok(Verdict { removed, ..Left::Nothing.into() });
        }
        // Markers end transactions, whose records have to go first; until there are transactions none occurs.
        if header.attributes.is_control() {
            return Ok(Left::Whole.into());
        }
        if header.records_count == 0 {
            return Ok(if self.is_needed_empty(header) { Left::Whole } else { Left::Nothing }.into());
        }
        let body = batch.decompress(MAX_DECOMPRESSED_BYTES)?;
        let aborted = is_aborted(header, self.aborted);
        let (mut kept, mut removed, mut has_tombstone) = (0_u64, 0_u64, false);
        for record in body.records() {
            let record = record?;
            if !aborted && self.stays(header, &record) {
                kept += 1;
                has_tombstone |= record.value.is_none();
            } else {
                removed += 1;
            }
        }
        if kept == 0 {
            let empty = self.is_needed_empty(header);
            let left = if empty { Left::Part(batch.emptied()) } else { Left::Nothing };
            return Ok(Verdict { removed, ..left.into() });
        }
        // C2
        let before = header.delete_horizon_ms();
        let horizon = before.unwrap_or_else(|| self.now_ms.saturating_add(self.delete_retention_ms));
        let delete_horizon_ms = has_tombstone.then_some(horizon);
        let left = if removed == 0 && (!has_tombstone || before.is_some()) {
            Left::Whole
        } else {
            Left::Part(batch.retain(&body, |record| self.stays(header, record), delete_horizon_ms)?)
        };
        Ok(Verdict { left, removed, delete_horizon_ms })
    }

    fn stays(&self, header: &BatchHeader, record: &Record<'_>) -> bool {
        if record.offset >= self.end {
            return true;
        }
        if record.offset < self.log_start {
            return false;
        }
        // Written before the topic was compacted.
        let Some(key) = record.key else { return false };
        let is_last = self.keys.last_offset(key).is_none_or(|last| record.offset >= last);
        let has_expired = record.value.is_none()
            && record.offset < self.first_dirty
            && header.delete_horizon_ms().is_some_and(|horizon| horizon <= self.now_ms);
        is_last && !has_expired
    }

    /// C3: a producer's last batch keeps its sequence known, and the last batch of all the end of what was compacted.
    fn is_needed_empty(&self, header: &BatchHeader) -> bool {
        let is_last_of_producer = header.has_producer_id()
            && self.producers.get(&header.producer_id).is_some_and(|last| *last == header.last_offset());
        is_last_of_producer || header.next_offset() >= self.end
    }
}

/// Notes the keys of `batch` from the offset `from` on. Returns the offset of the first record that did not fit.
///
/// # Errors
/// Its records do not parse.
pub fn note_keys(
    batch: &RecordBatch,
    from: i64,
    aborted: &[AbortedTransaction],
    keys: &mut KeyMap,
) -> Result<Option<i64>, BatchError> {
    let header = batch.header();
    if header.attributes.is_control() || header.records_count == 0 || is_aborted(header, aborted) {
        return Ok(None);
    }
    for record in batch.decompress(MAX_DECOMPRESSED_BYTES)?.records() {
        let record = record?;
        if record.offset < from {
            continue;
        }
        if let Some(key) = record.key
            && keys.insert(key, record.offset) == Err(KeyMapFull)
        {
            return Ok(Some(record.offset));
        }
    }
    Ok(None)
}

#[cfg(test)]
#[path = "rule_test.rs"]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests;
