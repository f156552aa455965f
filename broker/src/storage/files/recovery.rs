//! Opening a log: what the checkpoint vouches for is taken as it is, everything after it is checked batch by batch.
//!
//! A crash can leave the last write cut off; that end is removed, nobody was told that it is durable. Anything else
//! that does not fit is damage and is reported, because removing it would remove acknowledged records. The two are
//! told apart by what follows: behind a cut-off write there is no further whole batch that continues the log.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use millrace_protocol::records::{BatchHeader, HEADER_LEN};

use super::checkpoint::{Entry, SegmentMark};
use super::disk::Disk;
use super::segment::{Segment, parse_file_name, read_failed};
use super::sync_directory;
use crate::storage::batch::{StoredBatchError, parse_header, parse_whole};
use crate::storage::epochs::EpochCache;
use crate::storage::{Durability, LogSettings, StorageError};

/// Bytes read at once while checking.
const SCAN_BYTES: usize = 1 << 20;

/// A log as found on disk.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) log_start: i64,
    pub(super) end_offset: i64,
    pub(super) segments: Vec<Segment>,
    pub(super) epochs: EpochCache,
}

/// Finds the log in `directory`; an empty one if there is no such directory.
pub(super) fn recover(
    directory: &Path,
    settings: &LogSettings,
    entry: Option<&Entry>,
    disk: &dyn Disk,
) -> Result<Recovered, StorageError> {
    let nothing = Entry::default();
    let known = entry.unwrap_or(&nothing);
    let files = segment_files(directory)?;
    check_none_missing(directory, &files, known)?;
    let mut recovered = Recovered::default();
    for epoch in &known.epochs {
        recovered.epochs.begin(epoch.leader_epoch, epoch.start_offset);
    }
    let mut repaired = false;
    for (at, file) in files.iter().enumerate() {
        if at > 0 && file.base_offset != recovered.end_offset {
            return Err(
                file.damaged(0, format!("the segment before ends at offset {}", recovered.end_offset))
            );
        }
        let is_last = at + 1 == files.len();
        let scan = Scan { file, settings, is_last, disk };
        let (segment, end_offset, touched) = scan.run(known, &mut recovered.epochs)?;
        repaired |= touched;
        recovered.end_offset = end_offset;
        recovered.segments.push(segment);
    }
    if repaired {
        sync_directory(disk, directory).map_err(|source| StorageError::Io {
            doing: "syncing",
            path: directory.to_path_buf(),
            source,
        })?;
    }
    let first = recovered.segments.first().map_or(0, |segment| segment.base_offset);
    recovered.log_start = first.max(known.log_start).min(recovered.end_offset);
    recovered.epochs.truncate_start(recovered.log_start);
    Ok(recovered)
}

#[derive(Debug)]
struct SegmentFile {
    base_offset: i64,
    path: PathBuf,
    size: u64,
    modified_ms: i64,
}

impl SegmentFile {
    fn damaged(&self, position: u64, problem: String) -> StorageError {
        StorageError::Damaged { path: self.path.clone(), position, problem }
    }
}

fn segment_files(directory: &Path) -> Result<Vec<SegmentFile>, StorageError> {
    let failed = |source| StorageError::Io { doing: "listing", path: directory.to_path_buf(), source };
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in listing {
        let entry = entry.map_err(failed)?;
        let Some(base_offset) = entry.file_name().to_str().and_then(parse_file_name) else { continue };
        let metadata = entry.metadata().map_err(failed)?;
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        files.push(SegmentFile {
            base_offset,
            path: entry.path(),
            size: metadata.len(),
            modified_ms: modified.map_or(0, |age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX)),
        });
    }
    files.sort_by_key(|file| file.base_offset);
    Ok(files)
}

/// Compares the files with the checkpoint. Segments may be missing only at the start, where retention deletes.
fn check_none_missing(directory: &Path, files: &[SegmentFile], known: &Entry) -> Result<(), StorageError> {
    let damaged = |problem| StorageError::Damaged { path: directory.to_path_buf(), position: 0, problem };
    let Some(first) = files.first() else {
        return if known.segments.is_empty() {
            Ok(())
        } else {
            Err(damaged(format!(
                "the log held records up to offset {} and its files are gone",
                known.end_offset
            )))
        };
    };
    for mark in known.segments.iter().filter(|mark| mark.base_offset >= first.base_offset) {
        if !files.iter().any(|file| file.base_offset == mark.base_offset) {
            return Err(damaged(format!("the segment from offset {} is gone", mark.base_offset)));
        }
    }
    Ok(())
}

struct Scan<'a> {
    file: &'a SegmentFile,
    settings: &'a LogSettings,
    is_last: bool,
    disk: &'a dyn Disk,
}

impl Scan<'_> {
    /// Checks one segment. Returns it, the offset at which it ends, and whether something was synced or cut.
    fn run(&self, known: &Entry, epochs: &mut EpochCache) -> Result<(Segment, i64, bool), StorageError> {
        let base_offset = self.file.base_offset;
        let at = known.segments.iter().position(|mark| mark.base_offset == base_offset);
        let mark =
            at.map_or(SegmentMark { base_offset, size: 0, max_timestamp: -1 }, |at| known.segments[at]);
        let vouched_end = match at {
            None => base_offset,
            Some(at) => known.segments.get(at + 1).map_or(known.end_offset, |next| next.base_offset),
        };
        if self.file.size < mark.size {
            let problem = format!("{} bytes were synced and {} are left", mark.size, self.file.size);
            return Err(self.file.damaged(self.file.size, problem));
        }
        let mut segment = Segment {
            base_offset,
            size: mark.size,
            max_timestamp: mark.max_timestamp,
            began_ms: self.file.modified_ms,
            written_ms: self.file.modified_ms,
            index: None,
        };
        if self.file.size == mark.size {
            return Ok((segment, vouched_end, false));
        }
        let io = |doing| move |source| StorageError::Io { doing, path: self.file.path.clone(), source };
        let file = OpenOptions::new().read(true).write(true).open(&self.file.path).map_err(io("opening"))?;
        let mut reader = Reader::new(&file, self.file, mark.size);
        let mut end_offset = vouched_end;
        let broken = loop {
            match reader.next(end_offset)? {
                Next::Batch(header) => {
                    end_offset = header.next_offset();
                    epochs.begin(header.partition_leader_epoch, header.base_offset);
                    segment.max_timestamp = segment.max_timestamp.max(header.max_timestamp);
                }
                Next::End => break None,
                Next::Broken(error) => break Some(error),
            }
        };
        segment.size = reader.position;
        if let Some(error) = broken {
            self.judge(&file, reader.position, end_offset, &error)?;
            tracing::warn!(
                path = %self.file.path.display(),
                offset = end_offset,
                bytes = self.file.size - reader.position,
                "removed the unfinished last write of a log"
            );
            file.set_len(reader.position).map_err(io("cutting"))?;
        }
        // What was read may never have been synced: it counts as durable from here on, so it has to be.
        self.disk.sync(&file).map_err(io("syncing"))?;
        Ok((segment, end_offset, true))
    }

    /// Whether the bytes from `position` on are the end of a crash; an error if they are damage.
    fn judge(
        &self,
        file: &File,
        position: u64,
        end_offset: i64,
        error: &StoredBatchError,
    ) -> Result<(), StorageError> {
        if !self.is_last {
            return Err(self.file.damaged(position, format!("{error}, and a later segment follows")));
        }
        // Unsynced data may be lost in any order, and was acknowledged on those terms.
        if self.settings.durability == Durability::Written {
            return Ok(());
        }
        match find_later_batch(file, self.file, position + 1, end_offset)? {
            None => Ok(()),
            Some(later) => Err(self.file.damaged(
                position,
                format!(
                    "{error}, and whole batches follow at byte {later}; restore the file, or delete the topic"
                ),
            )),
        }
    }
}

enum Next {
    Batch(BatchHeader),
    End,
    Broken(StoredBatchError),
}

/// Reads whole batches one after the other, in large pieces.
struct Reader<'a> {
    file: &'a File,
    source: &'a SegmentFile,
    /// Where the next batch begins.
    position: u64,
    buffer: Vec<u8>,
    /// Position of the buffer in the file.
    buffer_at: u64,
}

impl<'a> Reader<'a> {
    fn new(file: &'a File, source: &'a SegmentFile, position: u64) -> Self {
        Self { file, source, position, buffer: Vec::new(), buffer_at: position }
    }

    /// The next batch, which must begin at `expected_offset`.
    fn next(&mut self, expected_offset: i64) -> Result<Next, StorageError> {
        if self.position == self.source.size {
            return Ok(Next::End);
        }
        let mut needed = HEADER_LEN;
        loop {
            // A length that reaches beyond the file never sizes a buffer.
            if self.position + needed as u64 > self.source.size {
                return Ok(Next::Broken(StoredBatchError::Incomplete));
            }
            let bytes = self.bytes(needed)?;
            match parse_header(bytes) {
                Err(error) => return Ok(Next::Broken(error)),
                Ok(header) if header.size_in_bytes() > bytes.len() => needed = header.size_in_bytes(),
                Ok(header) if header.base_offset != expected_offset => {
                    return Ok(Next::Broken(StoredBatchError::Offsets));
                }
                Ok(_) => match parse_whole(bytes) {
                    Ok(header) => {
                        self.position += header.size_in_bytes() as u64;
                        return Ok(Next::Batch(header));
                    }
                    Err(error) => return Ok(Next::Broken(error)),
                },
            }
        }
    }

    /// At least `needed` bytes from the position on, which the file has.
    fn bytes(&mut self, needed: usize) -> Result<&[u8], StorageError> {
        let available = self.buffer_at + self.buffer.len() as u64 - self.position;
        if available < needed as u64 {
            let left = self.source.size - self.position;
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(needed.max(SCAN_BYTES));
            self.buffer.resize(length, 0);
            self.buffer_at = self.position;
            self.file
                .read_exact_at(&mut self.buffer, self.position)
                .map_err(|source| read_failed(&self.source.path, source))?;
        }
        let start = usize::try_from(self.position - self.buffer_at).expect("within the buffer");
        Ok(&self.buffer[start..])
    }
}

/// Looks at every byte from `position` on for a whole batch that could continue a log that ended at `end_offset`.
fn find_later_batch(
    file: &File,
    source: &SegmentFile,
    position: u64,
    end_offset: i64,
) -> Result<Option<u64>, StorageError> {
    let mut at = position;
    let mut window = Vec::new();
    while at + HEADER_LEN as u64 <= source.size {
        let length = usize::try_from(source.size - at).unwrap_or(usize::MAX).min(SCAN_BYTES);
        window.resize(length, 0);
        file.read_exact_at(&mut window, at).map_err(|error| read_failed(&source.path, error))?;
        let starts = length - HEADER_LEN + 1;
        for start in 0..starts {
            let Ok(header) = parse_header(&window[start..]) else { continue };
            let found = at + start as u64;
            let plausible = header.base_offset >= end_offset
                && header.base_offset - end_offset <= i64::from(i32::MAX)
                && found + header.size_in_bytes() as u64 <= source.size;
            if plausible {
                let mut bytes = vec![0; header.size_in_bytes()];
                file.read_exact_at(&mut bytes, found).map_err(|error| read_failed(&source.path, error))?;
                if parse_whole(&bytes).is_ok() {
                    return Ok(Some(found));
                }
            }
        }
        at += starts as u64;
    }
    Ok(None)
}
