//! Open files of the store, at most a fixed number of them.
//!
//! Ten thousand partitions must not need ten thousand descriptors: files are opened when they are used and closed,
//! least recently used first, when there are too many. A handle in use stays valid after it has left the cache.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

/// One segment file: number of the open log and base offset of the segment.
pub(super) type FileKey = (u64, i64);

#[derive(Debug)]
pub(super) struct Handles {
    limit: usize,
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    files: HashMap<FileKey, Entry>,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    file: Arc<File>,
    last_used: u64,
}

impl Handles {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), cache: Mutex::default() }
    }

    /// The file of `key`, opened from `path` if it is not open.
    pub(super) fn get(&self, key: FileKey, path: &Path) -> io::Result<Arc<File>> {
        if let Some(file) = self.cached(key) {
            return Ok(file);
        }
        let file = Arc::new(OpenOptions::new().read(true).write(true).open(path)?);
        Ok(self.insert(key, file))
    }

    /// Like [`get`](Self::get), but makes the file if there is none.
    pub(super) fn create(&self, key: FileKey, path: &Path) -> io::Result<Arc<File>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(self.insert(key, Arc::new(file)))
    }

    /// Closes the files of a log whose segment base offset `which` picks.
    pub(super) fn forget(&self, log: u64, which: impl Fn(i64) -> bool) {
        self.cache.lock().files.retain(|(id, base_offset), _| *id != log || !which(*base_offset));
    }

    fn cached(&self, key: FileKey) -> Option<Arc<File>> {
        let mut cache = self.cache.lock();
        cache.clock += 1;
        let now = cache.clock;
        let entry = cache.files.get_mut(&key)?;
        entry.last_used = now;
        Some(Arc::clone(&entry.file))
    }

    fn insert(&self, key: FileKey, file: Arc<File>) -> Arc<File> {
        let mut cache = self.cache.lock();
        if cache.files.len() >= self.limit && !cache.files.contains_key(&key) {
            let oldest = cache.files.iter().min_by_key(|(_, entry)| entry.last_used).map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                cache.files.remove(&oldest);
            }
        }
        cache.clock += 1;
        let last_used = cache.clock;
        let entry = cache.files.entry(key).or_insert(Entry { file, last_used });
        entry.last_used = last_used;
        Arc::clone(&entry.file)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.cache.lock().files.len()
    }
}
