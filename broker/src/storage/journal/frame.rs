//! Format of the journal: frames, each of which is one write.
//!
//! ```text
//! header (80 bytes) | table: one entry per change | record batches, in the order of the table | zeros up to a block
//! ```
//!
//! Header, big-endian:
//!
//! | at | field |
//! |---|---|
//! | 0 | `"MRJF"` |
//! | 4 | format version, u16 |
//! | 6 | zero, u16 |
//! | 8 | uuid of the volume |
//! | 24 | segment: sequence of its first frame, u64 |
//! | 32 | sequence of this frame, u64; never used twice on a volume, not even after a crash that lost the frame |
//! | 40 | sequence of the frame before, u64; 0 for the first of a volume |
//! | 48 | sequence up to which everything had been synced when this was written, u64 |
//! | 56 | bytes of header, table and batches, u32 |
//! | 60 | bytes of the table, u32 |
//! | 64 | entries of the table, u32 |
//! | 68 | blocks of the segment's file, u32; 0 if that was not noted |
//! | 72 | CRC32C of table and batches, u32 |
//! | 76 | CRC32C of the 76 bytes before, u32 |
//!
//! The upper 24 bits of a sequence count the starts of the store, the lower 40 the frames since.
//!
//! A segment that is used again still holds frames of its former life: sequence, predecessor and segment tell them
//! from new ones.

use bytes::{Buf, BufMut};
use uuid::Uuid;

use super::disk::BLOCK;
use crate::metadata::image::TopicIdPartition;
use crate::storage::batch::crc32c;

/// Bits of a sequence that count frames: at 10,000 frames per second enough for three years without a restart.
const FRAME_BITS: u32 = 40;

/// Length of a frame's header in bytes.
pub(super) const HEADER_LEN: usize = 80;
const MAGIC: &[u8; 4] = b"MRJF";
const VERSION: u16 = 1;

/// Longest entry of a table in bytes.
pub(super) const MAX_ENTRY_LEN: usize = 104;

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) volume: Uuid,
    /// Sequence of the first frame of the segment.
    pub(super) segment: u64,
    pub(super) sequence: u64,
    /// Sequence of the frame before; 0 for the very first.
    pub(super) previous: u64,
    /// Everything up to this sequence had been synced before this frame was written.
    pub(super) synced: u64,
    /// Bytes of header, table and batches.
    pub(super) length: u32,
    pub(super) table_length: u32,
    pub(super) entries: u32,
    /// Length of the segment's file in [`BLOCK`]s; 0 if that was not noted.
    pub(super) file_blocks: u32,
    body_crc: u32,
}

/// Consecutive batches of one log, side by side in a frame. There may be gaps between their offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) base_offset: i64,
    pub(super) last_offset: i64,
    /// Largest timestamp in the run, -1 if there is none.
    pub(super) max_timestamp: i64,
    /// Largest timestamp in the log up to and with the run, also of what was removed since.
    pub(super) running_max_timestamp: i64,
    /// When it was written, ms since 1970: the age of records without a timestamp.
    pub(super) written_ms: i64,
    /// Bytes of the log before this run, also those deleted since. A run that replaces others ends where they ended, so
    /// that what compaction has removed is a gap before it; where it is longer than they were, its position may be less
    /// than that of what is before it, even less than nothing. Only differences count.
    pub(super) log_position: u64,
    pub(super) leader_epoch: i32,
    /// Bytes.
    pub(super) length: u32,
}

impl Run {
    /// First offset after the run.
    pub(super) fn next_offset(&self) -> i64 {
        // Of any bytes: no batch that is stored ends at the largest offset.
        self.last_offset.saturating_add(1)
    }

    /// Position in the log after its last byte.
    pub(super) fn log_end(&self) -> u64 {
        self.log_position.wrapping_add(u64::from(self.length))
    }
}

/// A change of one log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Batches at the end of the log. Their bytes follow the table.
    Append(TopicIdPartition, Run),
    /// The same batches in a new place. Their bytes follow the table.
    Move(TopicIdPartition, Run),
    /// Everything from the offset on is gone. A run that is cut becomes the one given.
    Truncate(TopicIdPartition, i64, Option<Run>),
    /// Everything below the offset is gone.
    LogStart(TopicIdPartition, i64),
    /// The log is gone.
    Delete(TopicIdPartition),
    /// What is left of some runs, if anything, in their place. Its bytes follow the table.
    Replace(TopicIdPartition, Replaced, Option<Run>),
    /// The log is compacted, if it still has the run in which that ends.
    Clean(TopicIdPartition, Cleaned),
}

/// Runs of a log that others replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Replaced {
    /// Base offset of the first.
    pub(super) from: i64,
    /// First offset after the last.
    pub(super) until: i64,
    /// Checksum of all of them: where they are not the same any more, nothing is replaced.
    pub(super) runs_crc: u32,
}

/// How far a log is compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cleaned {
    /// The run that holds the last offset below `first_dirty`.
    pub(super) last: Run,
    /// First offset that is not compacted.
    pub(super) first_dirty: i64,
    /// First of the delete horizons below it, ms since 1970; -1 if there is none.
    pub(super) delete_horizon_ms: i64,
}

impl Replaced {
    /// Names `runs`, which follow each other and are not empty.
    pub(super) fn of<'a>(runs: impl IntoIterator<Item = &'a Run>) -> Option<Self> {
        let mut bytes = Vec::new();
        let mut range: Option<(i64, i64)> = None;
        for run in runs {
            range = Some((range.map_or(run.base_offset, |(from, _)| from), run.next_offset()));
            run.encode(&mut bytes);
        }
        range.map(|(from, until)| Self { from, until, runs_crc: crc32c(&bytes) })
    }
}

impl Entry {
    /// Whose log it is.
    pub(super) fn partition(&self) -> TopicIdPartition {
        match self {
            Self::Append(partition, _)
            | Self::Move(partition, _)
            | Self::Truncate(partition, ..)
            | Self::LogStart(partition, _)
            | Self::Delete(partition)
            | Self::Replace(partition, ..)
            | Self::Clean(partition, _) => *partition,
        }
    }

    /// Bytes of batches that belong to it.
    pub(super) fn data_length(&self) -> u32 {
        match self {
            Self::Append(..) | Self::Move(..) | Self::Replace(..) => self.run().map_or(0, |run| run.length),
            Self::Truncate(..) | Self::LogStart(..) | Self::Delete(_) | Self::Clean(..) => 0,
        }
    }

    /// The run whose batches belong to it.
    pub(super) fn run(&self) -> Option<Run> {
        match self {
            Self::Append(_, run) | Self::Move(_, run) => Some(*run),
            Self::Replace(_, _, run) => *run,
            Self::Truncate(..) | Self::LogStart(..) | Self::Delete(_) | Self::Clean(..) => None,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let kind = match self {
            Self::Append(..) => 1,
            Self::Move(..) => 2,
            Self::Truncate(..) => 3,
            Self::LogStart(..) => 4,
            Self::Delete(_) => 5,
            Self::Replace(..) => 6,
            Self::Clean(..) => 7,
        };
        let partition = self.partition();
        out.put_u8(kind);
        out.put_slice(partition.topic_id.as_bytes());
        out.put_i32(partition.partition);
        match self {
            Self::Append(_, run) | Self::Move(_, run) => run.encode(out),
            Self::Truncate(_, end_offset, last) => {
                out.put_i64(*end_offset);
                encode_optional(last.as_ref(), out);
            }
            Self::LogStart(_, offset) => out.put_i64(*offset),
            Self::Delete(_) => {}
            Self::Replace(_, replaced, run) => {
                out.put_i64(replaced.from);
                out.put_i64(replaced.until);
                out.put_u32(replaced.runs_crc);
                encode_optional(run.as_ref(), out);
            }
            Self::Clean(_, cleaned) => {
                cleaned.last.encode(out);
                out.put_i64(cleaned.first_dirty);
                out.put_i64(cleaned.delete_horizon_ms);
            }
        }
    }

    fn decode(from: &mut &[u8]) -> Option<Self> {
        let kind = from.try_get_u8().ok()?;
        let mut topic_id = [0; 16];
        from.try_copy_to_slice(&mut topic_id).ok()?;
        let topic_id = Uuid::from_bytes(topic_id);
        let partition = TopicIdPartition { topic_id, partition: from.try_get_i32().ok()? };
        Some(match kind {
            1 => Self::Append(partition, Run::decode(from)?),
            2 => Self::Move(partition, Run::decode(from)?),
            3 => {
                let end_offset = from.try_get_i64().ok()?;
                Self::Truncate(partition, end_offset, decode_optional(from)?)
            }
            4 => Self::LogStart(partition, from.try_get_i64().ok()?),
            5 => Self::Delete(partition),
            6 => {
                let (from_offset, until) = (from.try_get_i64().ok()?, from.try_get_i64().ok()?);
                let replaced = Replaced { from: from_offset, until, runs_crc: from.try_get_u32().ok()? };
                Self::Replace(partition, replaced, decode_optional(from)?)
            }
            7 => {
                let last = Run::decode(from)?;
                let (first_dirty, delete_horizon_ms) = (from.try_get_i64().ok()?, from.try_get_i64().ok()?);
                Self::Clean(partition, Cleaned { last, first_dirty, delete_horizon_ms })
            }
            _ => return None,
        })
    }
}

fn encode_optional(run: Option<&Run>, out: &mut Vec<u8>) {
    out.put_u8(u8::from(run.is_some()));
    if let Some(run) = run {
        run.encode(out);
    }
}

fn decode_optional(from: &mut &[u8]) -> Option<Option<Run>> {
    if from.try_get_u8().ok()? == 0 { Some(None) } else { Run::decode(from).map(Some) }
}

impl Run {
    /// Bytes of an encoded run.
    pub(super) const LEN: usize = 56;

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_i64(self.base_offset);
        out.put_i64(self.last_offset);
        out.put_i64(self.max_timestamp);
        out.put_i64(self.running_max_timestamp);
        out.put_i64(self.written_ms);
        out.put_u64(self.log_position);
        out.put_i32(self.leader_epoch);
        out.put_u32(self.length);
    }

    pub(super) fn decode(from: &mut &[u8]) -> Option<Self> {
        Some(Self {
            base_offset: from.try_get_i64().ok()?,
            last_offset: from.try_get_i64().ok()?,
            max_timestamp: from.try_get_i64().ok()?,
            running_max_timestamp: from.try_get_i64().ok()?,
            written_ms: from.try_get_i64().ok()?,
            log_position: from.try_get_u64().ok()?,
            leader_epoch: from.try_get_i32().ok()?,
            length: from.try_get_u32().ok()?,
        })
    }
}

/// Encodes the table of a frame into `out`.
pub(super) fn encode_table(entries: &[Entry], out: &mut Vec<u8>) {
    out.clear();
    entries.iter().for_each(|entry| entry.encode(out));
}

/// Sequence of the first frame that is written after the store was started that often.
pub(super) fn first_sequence(starts: u64) -> u64 {
    starts << FRAME_BITS
}

impl FrameHeader {
    /// Completes a frame: `frame` holds table and batches from [`HEADER_LEN`] on and ends with them.
    #[expect(clippy::too_many_arguments, reason = "these are the fields of the header")]
    pub(super) fn seal(
        frame: &mut [u8],
        volume: Uuid,
        segment: u64,
        sequence: u64,
        previous: u64,
        synced: u64,
        table_length: usize,
        entries: usize,
        file_length: u64,
    ) {
        let length = |value: usize| u32::try_from(value).expect("a frame has less than 4 GiB");
        let frame_length = length(frame.len());
        let (header, body) = frame.split_at_mut(HEADER_LEN);
        let body_crc = crc32c(body);
        let mut out = &mut header[..];
        out.put_slice(MAGIC);
        out.put_u16(VERSION);
        out.put_u16(0);
        out.put_slice(volume.as_bytes());
        out.put_u64(segment);
        out.put_u64(sequence);
        out.put_u64(previous);
        out.put_u64(synced);
        out.put_u32(frame_length);
        out.put_u32(length(table_length));
        out.put_u32(length(entries));
        out.put_u32(u32::try_from(file_length / BLOCK as u64).expect("segments have less than 4 GiB"));
        out.put_u32(body_crc);
        let crc = crc32c(&header[..HEADER_LEN - 4]);
        header[HEADER_LEN - 4..].copy_from_slice(&crc.to_be_bytes());
    }

    /// Reads a header; `None` if the bytes are not one of a version that is known here.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_LEN)?;
        let (fields, crc) = bytes.split_at(HEADER_LEN - 4);
        if u32::from_be_bytes(crc.try_into().ok()?) != crc32c(fields) {
            return None;
        }
        let mut from = fields.strip_prefix(MAGIC)?;
        if from.try_get_u16().ok()? != VERSION {
            return None;
        }
        from.advance(2);
        let mut volume = [0; 16];
        from.try_copy_to_slice(&mut volume).ok()?;
        let (segment, sequence) = (from.try_get_u64().ok()?, from.try_get_u64().ok()?);
        let (previous, synced) = (from.try_get_u64().ok()?, from.try_get_u64().ok()?);
        let (length, table_length) = (from.try_get_u32().ok()?, from.try_get_u32().ok()?);
        let (entries, file_blocks) = (from.try_get_u32().ok()?, from.try_get_u32().ok()?);
        let body_crc = from.try_get_u32().ok()?;
        let fits = HEADER_LEN as u64 + u64::from(table_length) <= u64::from(length);
        fits.then_some(Self {
            volume: Uuid::from_bytes(volume),
            segment,
            sequence,
            previous,
            synced,
            length,
            table_length,
            entries,
            file_blocks,
            body_crc,
        })
    }

    /// Entries of a whole frame, each with the position of its batches within the frame; `None` if table or batches
    /// are not what was written.
    pub(super) fn entries(&self, frame: &[u8]) -> Option<Vec<(Entry, u32)>> {
        let body = frame.get(HEADER_LEN..self.length as usize)?;
        if crc32c(body) != self.body_crc {
            return None;
        }
        let (mut table, data) = body.split_at_checked(self.table_length as usize)?;
        let mut position = u32::try_from(HEADER_LEN).ok()?.checked_add(self.table_length)?;
        let mut left = data.len();
        let mut entries = Vec::new();
        for _ in 0..self.entries {
            let entry = Entry::decode(&mut table)?;
            left = left.checked_sub(entry.data_length() as usize)?;
            entries.push((entry, position));
            position = position.checked_add(entry.data_length())?;
        }
        (table.is_empty() && left == 0).then_some(entries)
    }
}

#[cfg(test)]
#[path = "frame_test.rs"]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests;
