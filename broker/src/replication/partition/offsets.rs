//! Offsets by time and by name: ListOffsets (O1–O3, L8).

use std::ops::Range;

use bytes::Bytes;
use millrace_protocol::ErrorCode;
use millrace_protocol::records::{BatchError, BatchHeader, RecordBatch};

use super::Partition;
use crate::replication::{FoundOffset, OffsetQuery};
use crate::storage::StorageError;

/// Special timestamps of ListOffsets (O1).
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;

/// Most bytes that the records of a stored batch may decompress to when they are searched.
const MAX_SEARCHED_BYTES: usize = 256 << 20;

impl Partition {
    /// Whether [`find_offset`](Self::find_offset) reads from disk for this timestamp.
    pub fn needs_disk(timestamp: i64) -> bool {
        !matches!(timestamp, LATEST | EARLIEST | EARLIEST_LOCAL | LATEST_TIERED)
    }

    /// Answers ListOffsets (O1–O3). Blocks on the disk where [`needs_disk`](Self::needs_disk) says so.
    pub fn find_offset(&self, query: &OffsetQuery) -> Result<FoundOffset, ErrorCode> {
        self.check_leader(query.current_leader_epoch)?;
        let ends = self.log.ends();
        let at = |offset| FoundOffset {
            offset,
            timestamp: -1,
            leader_epoch: self.log.epoch_at(offset).or_else(|| self.log.latest_epoch()).unwrap_or(-1),
        };
        let nothing = FoundOffset { offset: -1, timestamp: -1, leader_epoch: -1 };
        // L8: until the high watermark has come as far as the log was when this epoch began, clients have seen later ones.
        let high_watermark = self.high_watermark();
        let is_behind = self.watermark.leadership(|leadership| high_watermark < leadership.epoch_start());
        match query.timestamp {
            LATEST if is_behind == Some(true) => Err(ErrorCode::OffsetNotAvailable),
            LATEST => Ok(FoundOffset { leader_epoch: self.role().leader_epoch, ..at(high_watermark) }),
            EARLIEST | EARLIEST_LOCAL => Ok(at(ends.log_start)),
            LATEST_TIERED => Ok(nothing),
            // Which record has it is only known when all that clients have seen is below the high watermark again.
            MAX_TIMESTAMP if is_behind == Some(true) => Err(ErrorCode::OffsetNotAvailable),
            MAX_TIMESTAMP => {
                Ok(self.search_max_timestamp(ends.log_start..high_watermark)?.unwrap_or(nothing))
            }
            timestamp if timestamp >= 0 => match self.search_time(timestamp, ends.log_start)? {
                Some(found) if found.offset < high_watermark => Ok(found),
                Some(_) if is_behind == Some(true) => Err(ErrorCode::OffsetNotAvailable),
                Some(_) | None => Ok(nothing),
            },
            _ => Err(ErrorCode::UnsupportedVersion),
        }
    }

    /// The first record at or after `log_start` with at least this timestamp (O2).
    fn search_time(&self, timestamp: i64, log_start: i64) -> Result<Option<FoundOffset>, ErrorCode> {
        let mut from = log_start;
        // A batch's largest timestamp may belong to a record below the log start; then the next batch is looked at.
        while let Some(batch) =
            self.log.batch_by_time(timestamp, from).map_err(|error| self.report(&error))?
        {
            let (found, next_offset) =
                first_record_at(batch, timestamp, log_start).map_err(|error| self.report_batch(&error))?;
            if found.is_some() {
                return Ok(found);
            }
            from = next_offset;
        }
        Ok(None)
    }

    /// The first record in `offsets` that has the largest timestamp (O3).
    fn search_max_timestamp(&self, offsets: Range<i64>) -> Result<Option<FoundOffset>, ErrorCode> {
        let stored = |error: StorageError| self.report(&error);
        let best_in = |batch| {
            record_with_max_timestamp(batch, offsets.start).map_err(|error| self.report_batch(&error))
        };
        // The largest timestamp of the batch that the log start cuts may belong to a record below it.
        let cut = self.log.batch_by_time(i64::MIN, offsets.start).map_err(stored)?.filter(|batch| {
            BatchHeader::parse(batch)
                .is_ok_and(|header| header.base_offset < offsets.start && header.next_offset() <= offsets.end)
        });
        let in_cut = cut.map(best_in).transpose()?.flatten();
        let whole = self.log.batch_with_max_timestamp(offsets.clone()).map_err(stored)?;
        let in_whole = whole.map(best_in).transpose()?.flatten();
        Ok(match (in_cut, in_whole) {
            (Some(first), Some(later)) if later.timestamp > first.timestamp => Some(later),
            (first, later) => first.or(later),
        })
    }
}

/// The first record in `batch` at or after both bounds (O2), and the offset after the batch.
fn first_record_at(
    mut batch: Bytes,
    timestamp: i64,
    log_start: i64,
) -> Result<(Option<FoundOffset>, i64), BatchError> {
    let batch = RecordBatch::split_from(&mut batch)?;
    batch.verify_crc()?;
    let leader_epoch = batch.header().partition_leader_epoch;
    for record in batch.decompress(MAX_SEARCHED_BYTES)?.records() {
        let record = record?;
        if record.timestamp >= timestamp && record.offset >= log_start {
            let found = FoundOffset { offset: record.offset, timestamp: record.timestamp, leader_epoch };
            return Ok((Some(found), batch.header().next_offset()));
        }
    }
    Ok((None, batch.header().next_offset()))
}

/// The first record in `batch` that has the largest timestamp (O3).
fn record_with_max_timestamp(mut batch: Bytes, log_start: i64) -> Result<Option<FoundOffset>, BatchError> {
    let batch = RecordBatch::split_from(&mut batch)?;
    batch.verify_crc()?;
    let leader_epoch = batch.header().partition_leader_epoch;
    let mut best: Option<FoundOffset> = None;
    for record in batch.decompress(MAX_SEARCHED_BYTES)?.records() {
        let record = record?;
        let later = best.is_none_or(|best| record.timestamp > best.timestamp);
        if later && record.offset >= log_start {
            best = Some(FoundOffset { offset: record.offset, timestamp: record.timestamp, leader_epoch });
        }
    }
    Ok(best)
}
