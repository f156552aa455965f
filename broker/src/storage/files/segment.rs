//! One segment file of a log: its index in memory and the walk over its batch headers.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use millrace_protocol::records::{BatchHeader, HEADER_LEN};

use crate::storage::StorageError;
use crate::storage::batch::{StoredBatchError, parse_header};

/// Bytes of a segment between two index entries. A read may start this far before the batch it wants; 32 KiB cost
/// one read call anyway, and keep the index of a full 1 GiB segment below 1 MB.
const INDEX_INTERVAL: u64 = 32 * 1024;

/// Bytes read at once while walking over headers.
const WALK_BYTES: u64 = 64 * 1024;

/// What is known of a segment. Describes durable data only.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) base_offset: i64,
    pub(super) size: u64,
    /// Largest timestamp of its batches; -1 if there is none.
    pub(super) max_timestamp: i64,
    /// When the segment was begun; after a restart, when it was last written.
    pub(super) began_ms: i64,
    /// When the segment was last written; stands in for its timestamps where records have none (R1).
    pub(super) written_ms: i64,
    /// Built when something is first looked up here, so that idle logs need no memory for it.
    pub(super) index: Option<SparseIndex>,
}

impl Segment {
    pub(super) fn empty(base_offset: i64, now_ms: i64) -> Self {
        let index = Some(SparseIndex::default());
        Self { base_offset, size: 0, max_timestamp: -1, began_ms: now_ms, written_ms: now_ms, index }
    }
}

/// Name of the file of the segment that begins at `base_offset`.
pub(super) fn file_name(base_offset: i64) -> String {
    format!("{base_offset:020}.log")
}

/// Base offset in a segment's file name; `None` if it is another file.
pub(super) fn parse_file_name(name: &str) -> Option<i64> {
    let digits = name.strip_suffix(".log")?;
    let well_formed = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    if well_formed { digits.parse().ok() } else { None }
}

/// Where every so many bytes a batch begins.
#[derive(Clone, Debug)]
pub(super) struct SparseIndex {
    entries: Vec<IndexEntry>,
    max_timestamp: i64,
}

impl Default for SparseIndex {
    fn default() -> Self {
        Self { entries: Vec::new(), max_timestamp: -1 }
    }
}

#[derive(Clone, Copy, Debug)]
struct IndexEntry {
    offset: i64,
    position: u64,
    /// Largest timestamp of all batches before this one.
    max_timestamp_before: i64,
}

impl SparseIndex {
    /// Tells the index of the batch at `position`; to be called for each batch in order.
    pub(super) fn note(&mut self, position: u64, header: &BatchHeader) {
        let due = self.entries.last().is_none_or(|last| position >= last.position + INDEX_INTERVAL);
        if due {
            let max_timestamp_before = self.max_timestamp;
            self.entries.push(IndexEntry { offset: header.base_offset, position, max_timestamp_before });
        }
        self.max_timestamp = self.max_timestamp.max(header.max_timestamp);
    }

    /// A position at or before the batch that contains `offset`.
    pub(super) fn before_offset(&self, offset: i64) -> u64 {
        let after = self.entries.partition_point(|entry| entry.offset <= offset);
        after.checked_sub(1).map_or(0, |at| self.entries[at].position)
    }

    /// A position at or before the first batch with a timestamp of at least `timestamp`.
    pub(super) fn before_timestamp(&self, timestamp: i64) -> u64 {
        let after = self.entries.partition_point(|entry| entry.max_timestamp_before < timestamp);
        after.checked_sub(1).map_or(0, |at| self.entries[at].position)
    }
}

/// Walks over the headers of a segment file, reading little more than them.
#[derive(Debug)]
pub(super) struct HeaderWalk<'a> {
    file: &'a File,
    path: &'a Path,
    position: u64,
    limit: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
}

impl<'a> HeaderWalk<'a> {
    /// Headers of batches from `position`, where one begins, up to `limit`, where one ends.
    pub(super) fn new(file: &'a File, path: &'a Path, position: u64, limit: u64) -> Self {
        Self { file, path, position, limit, buffer: Vec::new(), buffer_at: 0 }
    }

    /// The next header and its position.
    pub(super) fn next(&mut self) -> Result<Option<(u64, BatchHeader)>, StorageError> {
        if self.position >= self.limit {
            return Ok(None);
        }
        let position = self.position;
        let header = parse_header(self.header_bytes()?).map_err(|error| self.damaged(position, &error))?;
        let end = position + header.size_in_bytes() as u64;
        if end > self.limit {
            return Err(self.damaged(position, &StoredBatchError::Incomplete));
        }
        self.position = end;
        Ok(Some((position, header)))
    }

    fn header_bytes(&mut self) -> Result<&[u8], StorageError> {
        let needed = (HEADER_LEN as u64).min(self.limit - self.position);
        let buffered = self.position >= self.buffer_at
            && self.position + needed <= self.buffer_at + self.buffer.len() as u64;
        if !buffered {
            let length = WALK_BYTES.min(self.limit - self.position);
            self.buffer.resize(usize::try_from(length).expect("a small number"), 0);
            self.buffer_at = self.position;
            self.file
                .read_exact_at(&mut self.buffer, self.position)
                .map_err(|source| read_failed(self.path, source))?;
        }
        let start = usize::try_from(self.position - self.buffer_at).expect("within the buffer");
        Ok(&self.buffer[start..])
    }

    fn damaged(&self, position: u64, error: &StoredBatchError) -> StorageError {
        StorageError::Damaged { path: self.path.to_path_buf(), position, problem: error.to_string() }
    }
}

/// Adds to `index` what a segment holds between `from` and `to`.
pub(super) fn extend_index(
    index: &mut SparseIndex,
    file: &File,
    path: &Path,
    from: u64,
    to: u64,
) -> Result<(), StorageError> {
    let mut walk = HeaderWalk::new(file, path, from, to);
    while let Some((position, header)) = walk.next()? {
        index.note(position, &header);
    }
    Ok(())
}

/// Reads `length` bytes at `position`.
pub(super) fn read_exact(
    file: &File,
    path: &Path,
    position: u64,
    length: usize,
) -> Result<Vec<u8>, StorageError> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, position).map_err(|source| read_failed(path, source))?;
    Ok(bytes)
}

pub(super) fn read_failed(path: &Path, source: io::Error) -> StorageError {
    StorageError::Io { doing: "reading", path: PathBuf::from(path), source }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use crate::storage::batch::samples::batch_at;

    fn header(offset: i64, timestamp: i64) -> BatchHeader {
        let mut header = parse_header(&batch_at(&[timestamp], b"value")).unwrap();
        header.base_offset = offset;
        header
    }

    #[test]
    fn index_points_at_or_before_what_is_looked_up() {
        let mut index = SparseIndex::default();
        let timestamps = [50, 10, 70, 20, 90];
        for (number, timestamp) in timestamps.iter().enumerate() {
            index.note(number as u64 * INDEX_INTERVAL, &header(number as i64 * 10, *timestamp));
        }
        assert_eq!(index.before_offset(0), 0);
        assert_eq!(index.before_offset(29), 2 * INDEX_INTERVAL);
        assert_eq!(index.before_offset(1_000), 4 * INDEX_INTERVAL);
        assert_eq!(index.before_timestamp(50), 0);
        assert_eq!(index.before_timestamp(51), 2 * INDEX_INTERVAL);
        assert_eq!(index.before_timestamp(80), 4 * INDEX_INTERVAL);
    }

    #[test]
    fn segment_file_names_sort_like_their_offsets() {
        assert!(file_name(9) < file_name(10) && file_name(10) < file_name(i64::MAX));
        assert_eq!(parse_file_name(&file_name(i64::MAX)), Some(i64::MAX));
        assert_eq!(parse_file_name("17.log"), None);
        assert_eq!(parse_file_name("checkpoint"), None);
    }
}
