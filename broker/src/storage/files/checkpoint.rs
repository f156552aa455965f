//! The checkpoint file: how far each log of a volume is known to be whole, and what its owner wants kept.
//!
//! One file for all logs, replaced by rename. It is a lower bound: what it describes was synced before it was
//! written, so opening a log looks only at bytes beyond it. It is also the only home of log starts that lie within a
//! segment and of derived state, so a file that does not decode is an error and not "no checkpoint".
//!
//! Layout, big-endian: `"MRCP"`, format version (u16), number of entries (u32), entries, CRC32C of all before.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use bytes::{Buf, BufMut, Bytes};
use uuid::Uuid;

use crate::metadata::image::TopicIdPartition;
use crate::storage::batch::crc32c;
use crate::storage::epochs::EpochStart;
use crate::storage::{StateSnapshot, StorageError};

use super::disk::Disk;

pub(super) const FILE_NAME: &str = "checkpoint";
const MAGIC: &[u8; 4] = b"MRCP";
const VERSION: u16 = 1;

/// All entries by partition.
pub(super) type Entries = BTreeMap<TopicIdPartition, Entry>;

/// The checkpoint and whether the file says the same.
#[derive(Debug, Default)]
pub(super) struct Checkpoint {
    pub(super) entries: Entries,
    /// Logs have been deleted since the file was written. That alone is not worth writing it: a deleted partition
    /// does not come back.
    outdated: bool,
}

impl Checkpoint {
    /// Reads the checkpoint of the store in `directory`.
    pub(super) fn load(directory: &Path) -> Result<Self, StorageError> {
        Ok(Self { entries: load(directory)?, outdated: false })
    }

    /// Makes `next` the checkpoint, durably.
    pub(super) fn replace(
        &mut self,
        next: Entries,
        directory: &Path,
        disk: &dyn Disk,
    ) -> Result<(), StorageError> {
        if self.outdated || self.entries != next {
            store(directory, &next, disk)?;
            self.entries = next;
            self.outdated = false;
        }
        Ok(())
    }

    /// Forgets a deleted log.
    pub(super) fn remove(&mut self, partition: TopicIdPartition) {
        self.outdated |= self.entries.remove(&partition).is_some();
    }
}

/// What is known of one log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// Metadata log index at which the partition was known to exist; `None` if nobody has said so.
    pub(super) known_at: Option<u64>,
    pub(super) log_start: i64,
    /// First offset after the last batch that is known to be synced.
    pub(super) end_offset: i64,
    /// Segments, the last of them possibly still growing.
    pub(super) segments: Vec<SegmentMark>,
    pub(super) epochs: Vec<EpochStart>,
    pub(super) state: Option<StateSnapshot>,
}

/// A segment as far as it is known to be whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentMark {
    pub(super) base_offset: i64,
    pub(super) size: u64,
    pub(super) max_timestamp: i64,
}

/// Reads the checkpoint of the store in `directory`; no entries if it never had one.
fn load(directory: &Path) -> Result<Entries, StorageError> {
    let path = directory.join(FILE_NAME);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Entries::new()),
        Err(source) => return Err(StorageError::Io { doing: "reading", path, source }),
    };
    decode(&bytes).ok_or_else(|| StorageError::Damaged {
        path,
        position: 0,
        problem: "the checkpoint does not decode; without the file the logs are scanned in full at the next start, \
                  and log starts set by DeleteRecords are forgotten"
            .to_owned(),
    })
}

/// Replaces the checkpoint of the store in `directory`, durably.
fn store(directory: &Path, entries: &Entries, disk: &dyn Disk) -> Result<(), StorageError> {
    let path = directory.join(FILE_NAME);
    let unfinished = directory.join("checkpoint.new");
    let write = || -> io::Result<()> {
        let file = File::create(&unfinished)?;
        disk.write_at(&file, &encode(entries), 0)?;
        disk.sync(&file)?;
        fs::rename(&unfinished, &path)?;
        disk.sync(&File::open(directory)?)
    };
    write().map_err(|source| StorageError::Io { doing: "writing", path: path.clone(), source })
}

fn encode(entries: &Entries) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + entries.len() * 160);
    out.put_slice(MAGIC);
    out.put_u16(VERSION);
    put_count(&mut out, entries.len());
    for (partition, entry) in entries {
        out.put_slice(partition.topic_id.as_bytes());
        out.put_i32(partition.partition);
        out.put_u8(u8::from(entry.known_at.is_some()));
        out.put_u64(entry.known_at.unwrap_or_default());
        out.put_i64(entry.log_start);
        out.put_i64(entry.end_offset);
        put_count(&mut out, entry.segments.len());
        for segment in &entry.segments {
            out.put_i64(segment.base_offset);
            out.put_u64(segment.size);
            out.put_i64(segment.max_timestamp);
        }
        put_count(&mut out, entry.epochs.len());
        for epoch in &entry.epochs {
            out.put_i32(epoch.leader_epoch);
            out.put_i64(epoch.start_offset);
        }
        out.put_u8(u8::from(entry.state.is_some()));
        if let Some(state) = &entry.state {
            out.put_i64(state.offset);
            put_count(&mut out, state.bytes.len());
            out.put_slice(&state.bytes);
        }
    }
    let crc = crc32c(&out);
    out.put_u32(crc);
    out
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.put_u32(u32::try_from(count).expect("fewer than four billion"));
}

fn decode(bytes: &[u8]) -> Option<Entries> {
    let (body, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    if u32::from_be_bytes(crc.try_into().ok()?) != crc32c(body) {
        return None;
    }
    let mut body = body.strip_prefix(MAGIC)?;
    if body.try_get_u16().ok()? != VERSION {
        return None;
    }
    let mut entries = Entries::new();
    for _ in 0..body.try_get_u32().ok()? {
        let (partition, entry) = decode_entry(&mut body)?;
        entries.insert(partition, entry);
    }
    body.is_empty().then_some(entries)
}

fn decode_entry(body: &mut &[u8]) -> Option<(TopicIdPartition, Entry)> {
    let mut topic_id = [0; 16];
    body.try_copy_to_slice(&mut topic_id).ok()?;
    let partition =
        TopicIdPartition { topic_id: Uuid::from_bytes(topic_id), partition: body.try_get_i32().ok()? };
    let known = body.try_get_u8().ok()? != 0;
    let known_at = body.try_get_u64().ok()?;
    let mut entry = Entry {
        known_at: known.then_some(known_at),
        log_start: body.try_get_i64().ok()?,
        end_offset: body.try_get_i64().ok()?,
        ..Entry::default()
    };
    for _ in 0..body.try_get_u32().ok()? {
        entry.segments.push(SegmentMark {
            base_offset: body.try_get_i64().ok()?,
            size: body.try_get_u64().ok()?,
            max_timestamp: body.try_get_i64().ok()?,
        });
    }
    for _ in 0..body.try_get_u32().ok()? {
        entry.epochs.push(EpochStart {
            leader_epoch: body.try_get_i32().ok()?,
            start_offset: body.try_get_i64().ok()?,
        });
    }
    if body.try_get_u8().ok()? != 0 {
        let offset = body.try_get_i64().ok()?;
        let length = usize::try_from(body.try_get_u32().ok()?).ok()?;
        let (state, rest) = body.split_at_checked(length)?;
        entry.state = Some(StateSnapshot { offset, bytes: Bytes::copy_from_slice(state) });
        *body = rest;
    }
    Some((partition, entry))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    fn sample() -> Entries {
        let partition = TopicIdPartition { topic_id: Uuid::from_u128(7), partition: 3 };
        let entry = Entry {
            known_at: Some(12),
            log_start: 5,
            end_offset: 90,
            segments: vec![SegmentMark { base_offset: 0, size: 4_096, max_timestamp: 77 }],
            epochs: vec![EpochStart { leader_epoch: 2, start_offset: 5 }],
            state: Some(StateSnapshot { offset: 90, bytes: Bytes::from_static(b"producers") }),
        };
        let idle = TopicIdPartition { topic_id: Uuid::from_u128(8), partition: 0 };
        Entries::from([(partition, entry), (idle, Entry::default())])
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        assert_eq!(decode(&encode(&sample())).unwrap(), sample());
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_refused() {
        let whole = encode(&sample());
        for length in 0..whole.len() {
            assert_eq!(decode(&whole[..length]), None, "cut at {length}");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            assert_eq!(decode(&flipped), None, "flipped at {at}");
        }
    }

    /// The bytes of format version 1, so that a change of the layout without a new version is noticed.
    #[test]
    fn format_version_1_is_stable() {
        let whole = encode(&sample());
        assert_eq!(whole.len(), 179);
        assert_eq!(&whole[..10], b"MRCP\x00\x01\x00\x00\x00\x02");
        assert_eq!(
            crc32c(&whole[..whole.len() - 4]),
            u32::from_be_bytes(whole[whole.len() - 4..].try_into().unwrap())
        );
    }
}
