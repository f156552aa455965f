//! Segment files: which of them holds what, and which can be used again.
//!
//! A segment is named by the sequence of its first frame, which never repeats; its file keeps its name through many
//! lives. A reader holds a segment while it reads, and a file begins a new life only when nobody holds it any more.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use uuid::Uuid;

use super::buffer::{AlignedBuffer, BufferPool, padded};
use super::disk::{BLOCK, Disk, DiskFile};
use super::fail_point::FailPoint;
use super::frame::FrameHeader;
use crate::storage::StorageError;

/// Free files kept for later; more are deleted.
const MAX_FREE: usize = 4;

const EXTENSION: &str = "journal";

/// A segment in use.
#[derive(Debug)]
pub(super) struct Segment {
    /// Sequence of its first frame.
    pub(super) id: u64,
    file: SegmentFile,
}

#[derive(Clone, Debug)]
struct SegmentFile {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
}

/// The files of a journal.
#[derive(Debug)]
pub(super) struct Segments {
    directory: PathBuf,
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    next_file: AtomicU64,
    files: Mutex<Files>,
}

#[derive(Debug, Default)]
struct Files {
    in_use: HashMap<u64, Arc<Segment>>,
    /// Holds nothing any more, but somebody may still read it.
    retired: Vec<Arc<Segment>>,
    free: Vec<SegmentFile>,
    /// Too short to be a segment.
    unfinished: Vec<PathBuf>,
}

/// The first frame of a segment file, as far as it can be told.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstFrame {
    pub(super) segment: u64,
    pub(super) previous: u64,
    pub(super) synced: u64,
}

impl Segments {
    /// Looks at all segment files of a volume. Every file with a first frame counts as in use until
    /// [`retire`](Self::retire) says otherwise.
    pub(super) fn open(
        directory: &Path,
        disk: Arc<dyn Disk>,
        segment_bytes: u64,
        volume: Uuid,
    ) -> Result<(Self, Vec<FirstFrame>), StorageError> {
        let io_error =
            |doing, path: &Path, source| StorageError::Io { doing, path: path.to_path_buf(), source };
        let mut paths = disk.files(directory).map_err(|source| io_error("listing", directory, source))?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == EXTENSION));
        paths.sort();
        let (mut files, mut first_frames) = (Files::default(), Vec::new());
        let mut next_file = 1;
        for path in paths {
            let number =
                path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
            next_file = next_file.max(number.unwrap_or_default() + 1);
            let file = disk.open(&path).map_err(|source| io_error("opening", &path, source))?;
            let length = file.length();
            let mut block = AlignedBuffer::zeroed(BLOCK);
            if length >= BLOCK as u64 {
                file.read_at(block.as_mut_slice(), 0).map_err(|source| io_error("reading", &path, source))?;
            }
            let first = FrameHeader::decode(block.as_slice());
            let noted = first.map_or(0, |first| u64::from(first.file_blocks) * BLOCK as u64);
            if noted > 0 && noted != length {
                return Err(StorageError::Damaged {
                    path,
                    position: length,
                    problem: format!("it has {length} bytes and was made with {noted}"),
                });
            }
            if length < 2 * BLOCK as u64 || length % BLOCK as u64 != 0 {
                // The process ended while it made the file; or it was cut off, which is found when its records are missed.
                files.unfinished.push(path);
                continue;
            }
            let file = SegmentFile { file, path };
            match first {
                Some(first) if first.volume != volume => {
                    return Err(StorageError::Damaged {
                        path: file.path,
                        position: 0,
                        problem: format!("it belongs to volume {}, and this is {volume}", first.volume),
                    });
                }
                Some(first) if first.segment == first.sequence => {
                    let FrameHeader { segment, previous, synced, .. } = first;
                    first_frames.push(FirstFrame { segment, previous, synced });
                    let segment = Arc::new(Segment { id: segment, file });
                    if let Some(other) = files.in_use.insert(segment.id, Arc::clone(&segment)) {
                        return Err(StorageError::Damaged {
                            path: directory.to_path_buf(),
                            position: 0,
                            problem: format!(
                                "{} and {} both begin with frame {}",
                                other.path().display(),
                                segment.path().display(),
                                segment.id
                            ),
                        });
                    }
                }
                _ => files.free.push(file),
            }
        }
        let segments = Self {
            directory: directory.to_path_buf(),
            disk,
            segment_bytes,
            next_file: AtomicU64::new(next_file),
            files: Mutex::new(files),
        };
        Ok((segments, first_frames))
    }

    /// Deletes files that were being made when the process ended, now that nothing else is missing.
    pub(super) fn remove_unfinished(&self) -> Result<(), StorageError> {
        let unfinished = std::mem::take(&mut self.files.lock().unfinished);
        unfinished.into_iter().try_for_each(|path| {
            let removed = self.disk.remove(&path);
            removed.map_err(|source| StorageError::Io { doing: "deleting", path, source })
        })
    }

    pub(super) fn get(&self, id: u64) -> Option<Arc<Segment>> {
        self.files.lock().in_use.get(&id).cloned()
    }

    /// The files of all segments but those that `holds` something, and all free files: each may have frames of a segment
    /// whose first frame never arrived. They come as segments without an id of their own.
    pub(super) fn leftovers(&self, holds: impl Fn(u64) -> bool) -> Vec<Segment> {
        let files = self.files.lock();
        let dead = files.in_use.values().filter(|segment| !holds(segment.id)).map(|segment| &segment.file);
        dead.chain(&files.free).map(|file| Segment { id: 0, file: file.clone() }).collect()
    }

    /// Begins a segment whose first frame will have sequence `id`, in a free file or a new one; true if it is a new one.
    pub(super) fn begin(&self, id: u64) -> Result<(Arc<Segment>, bool), (PathBuf, io::Error)> {
        let free = self.take_free();
        let is_new = free.is_none();
        let file = match free {
            Some(file) => {
                FailPoint::RecycledTaken.pass();
                file
            }
            None => {
                let number = self.next_file.fetch_add(1, Ordering::Relaxed);
                let path = self.directory.join(format!("{number:010}.{EXTENSION}"));
                let made = self.disk.create(&path, self.segment_bytes);
                let file = made.map_err(|error| (path.clone(), error))?;
                FailPoint::FileMade.pass();
                SegmentFile { file, path }
            }
        };
        let segment = Arc::new(Segment { id, file });
        self.files.lock().in_use.insert(id, Arc::clone(&segment));
        Ok((segment, is_new))
    }

    /// A free file that is long enough. Those that are not, made with another setting, are deleted.
    fn take_free(&self) -> Option<SegmentFile> {
        loop {
            let file = self.files.lock().free.pop()?;
            if file.file.length() >= self.segment_bytes {
                return Some(file);
            }
            self.delete(&file.path);
        }
    }

    fn delete(&self, path: &Path) {
        if let Err(error) = self.disk.remove(path) {
            tracing::warn!(path = %path.display(), %error, "a file of the journal that is not needed stays");
        }
    }

    /// Ends the life of every segment that `is_dead`, and deletes files that are not worth keeping. Returns how many
    /// segments died.
    pub(super) fn retire(&self, is_dead: impl Fn(u64) -> bool) -> usize {
        let mut surplus = Vec::new();
        let died = {
            let mut files = self.files.lock();
            let dead: Vec<u64> = files.in_use.keys().copied().filter(|id| is_dead(*id)).collect();
            let dead: Vec<_> = dead.iter().filter_map(|id| files.in_use.remove(id)).collect();
            let died = dead.len();
            if died > 0 {
                FailPoint::Retiring.pass();
            }
            files.retired.extend(dead);
            for segment in std::mem::take(&mut files.retired) {
                match Arc::try_unwrap(segment) {
                    Ok(segment) if files.free.len() < MAX_FREE => files.free.push(segment.file),
                    Ok(segment) => surplus.push(segment.file.path),
                    Err(held) => files.retired.push(held),
                }
            }
            died
        };
        for path in &surplus {
            self.delete(path);
            FailPoint::FileRemoved.pass();
        }
        died
    }

    /// Bytes of free files, which a full volume can still take.
    pub(super) fn free_bytes(&self) -> u64 {
        self.files.lock().free.iter().map(|file| file.file.length()).sum()
    }

    /// Segments in use with the bytes of their files, in no order.
    pub(super) fn lengths(&self) -> Vec<(u64, u64)> {
        self.files.lock().in_use.values().map(|segment| (segment.id, segment.length())).collect()
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }
}

impl Segment {
    pub(super) fn path(&self) -> &Path {
        &self.file.path
    }

    pub(super) fn length(&self) -> u64 {
        self.file.file.length()
    }

    pub(super) fn file(&self) -> &dyn DiskFile {
        self.file.file.as_ref()
    }

    /// Reads `length` bytes from `position`; all of them, and what the alignment makes it read beside them is not
    /// shown. The memory is that of `pool`.
    pub(super) fn read(
        &self,
        pool: &Arc<BufferPool>,
        position: u64,
        length: usize,
    ) -> Result<bytes::Bytes, StorageError> {
        let before = usize::try_from(position % BLOCK as u64).expect("less than a block");
        let start = position - before as u64;
        let wanted = padded(before + length);
        if start + wanted as u64 > self.length() {
            return Err(StorageError::Damaged {
                path: self.path().to_path_buf(),
                position,
                problem: format!("{length} bytes were expected here, beyond the end of the file"),
            });
        }
        let read = pool.lend(wanted, |buffer| self.file().read_at(buffer, start));
        let bytes = read.map_err(|source| StorageError::Io {
            doing: "reading",
            path: self.path().to_path_buf(),
            source,
        })?;
        Ok(bytes.slice(before..before + length))
    }
}
