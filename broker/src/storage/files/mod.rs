//! The simple record store: per partition one directory of segment files that hold batches as they are served.
//!
//! ```text
//! <volume>/logs/checkpoint                              how far everything is known to be whole
//! <volume>/logs/<topic id>-<partition>/<base offset>.log   batches, one after the other
//! <volume>/logs/<topic id>-<partition>.deleted             on its way out
//! ```
//!
//! One thread per volume does all writing (`writer`): it takes everything that is queued, writes once per
//! partition, syncs each file it touched once, and then publishes the new durable ends. While one commit is on the
//! disk the next one fills up, so load makes commits larger instead of making them wait.
//!
//! Order of writes, and what a crash in between leaves:
//! 1. A full segment is synced before the next one is made: only the last segment can have a cut-off end.
//! 2. Data is synced, then the directory entries of new files and directories, then the durable end moves: what was
//!    acknowledged is found again, what was not may or may not be.
//! 3. The checkpoint describes only synced data, and is rewritten *before* a log is cut below what it describes.
//! 4. A log is deleted by renaming its directory first: it is gone as a whole or there as a whole.
//!
//! Left out on purpose, since the journal takes this implementation's place: preallocation, direct I/O, one sync for
//! many partitions.

mod checkpoint;
mod disk;
mod handles;
mod log;
mod recovery;
mod segment;
mod space;
mod tail;
mod writer;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use super::{
    Admission, CheckpointEntry, LogListener, LogSettings, LogStore, OpenedLog, StorageError, StoreFailure,
    StoredLog,
};
use crate::metadata::image::TopicIdPartition;

pub use disk::{Disk, OsDisk, Space};

use checkpoint::Checkpoint;
use handles::Handles;
use log::FileLog;
use space::FreeSpace;
use tail::TailCache;
use writer::{Command, Queue};

/// Settings of a store.
#[derive(Clone, Debug)]
pub struct FileStoreOptions {
    /// Most bytes of appends that may be on their way to the disk; later ones wait. 64 MiB by default, a second of
    /// work for a slow disk.
    pub max_queued_bytes: u32,
    /// Most files held open; 512 by default, half of the usual limit of a shell.
    pub max_open_files: usize,
    /// Bytes of the newest data kept in memory over all logs; 8 MiB by default.
    pub tail_cache_bytes: usize,
    /// Bytes that must stay free on the volume; computed from its size if `None`.
    pub reserve_bytes: Option<u64>,
    /// The disk.
    pub disk: Arc<dyn Disk>,
}

impl Default for FileStoreOptions {
    fn default() -> Self {
        Self {
            max_queued_bytes: 64 << 20,
            max_open_files: 512,
            tail_cache_bytes: 8 << 20,
            reserve_bytes: None,
            disk: Arc::new(OsDisk),
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct FileStore {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What the store, its logs and its writer have in common.
#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    disk: Arc<dyn Disk>,
    queue: Queue,
    handles: Handles,
    tail: TailCache,
    space: FreeSpace,
    admissions: Arc<Semaphore>,
    max_queued_bytes: u32,
    first_failure: OnceLock<Arc<StoreFailure>>,
    failure: watch::Sender<Option<Arc<StoreFailure>>>,
    /// Open logs. They hold this struct in turn; closing the store breaks the circle.
    open: Mutex<HashMap<TopicIdPartition, Arc<FileLog>>>,
    /// The checkpoint as it is on disk. Held while the file is replaced.
    checkpoint: Mutex<Checkpoint>,
    appended_bytes: AtomicU64,
    next_log: AtomicU64,
}

impl FileStore {
    /// Opens the store on a volume, or makes it. The caller holds the volume's lock.
    pub fn open(volume: &Path, options: FileStoreOptions) -> Result<Self, StorageError> {
        let directory = volume.join("logs");
        let failed = |doing, source| StorageError::Io { doing, path: directory.clone(), source };
        if !directory.exists() {
            fs::create_dir_all(&directory).map_err(|source| failed("creating", source))?;
            sync_directory(options.disk.as_ref(), volume).map_err(|source| failed("syncing", source))?;
        }
        remove_deleted(&directory).map_err(|source| failed("cleaning up", source))?;
        let checkpoint = Checkpoint::load(&directory)?;
        let shared = Arc::new(Shared {
            space: FreeSpace::new(directory.clone(), Arc::clone(&options.disk), options.reserve_bytes),
            directory,
            disk: options.disk,
            queue: Queue::default(),
            handles: Handles::new(options.max_open_files),
            tail: TailCache::new(options.tail_cache_bytes),
            admissions: Arc::new(Semaphore::new(options.max_queued_bytes as usize)),
            max_queued_bytes: options.max_queued_bytes,
            first_failure: OnceLock::new(),
            failure: watch::Sender::new(None),
            open: Mutex::default(),
            checkpoint: Mutex::new(checkpoint),
            appended_bytes: AtomicU64::new(0),
            next_log: AtomicU64::new(0),
        });
        let writer = writer::spawn(Arc::clone(&shared)).map_err(|source| StorageError::Io {
            doing: "starting the writer of",
            path: shared.directory.clone(),
            source,
        })?;
        Ok(Self { shared, writer: Mutex::new(Some(writer)) })
    }
}

impl LogStore for FileStore {
    fn list(&self) -> Vec<StoredLog> {
        let checkpoint = self.shared.checkpoint.lock();
        let Ok(directories) = fs::read_dir(&self.shared.directory) else { return Vec::new() };
        directories
            .filter_map(|directory| parse_directory_name(directory.ok()?.file_name().to_str()?))
            .map(|partition| StoredLog {
                partition,
                known_at: checkpoint.entries.get(&partition).and_then(|entry| entry.known_at),
            })
            .collect()
    }

    fn open(
        &self,
        partition: TopicIdPartition,
        settings: LogSettings,
        listener: Weak<dyn LogListener>,
    ) -> Result<OpenedLog, StorageError> {
        self.shared.usable()?;
        if self.shared.open.lock().contains_key(&partition) {
            return Err(StorageError::Gone);
        }
        let entry = self.shared.checkpoint.lock().entries.get(&partition).cloned();
        let directory = self.shared.directory.join(directory_name(partition));
        let recovered = recovery::recover(&directory, &settings, entry.as_ref(), self.shared.disk.as_ref())?;
        let state = entry.and_then(|entry| entry.state).filter(|state| state.offset <= recovered.end_offset);
        let log = FileLog::new(Arc::clone(&self.shared), partition, directory, settings, recovered, listener);
        self.shared.open.lock().insert(partition, Arc::clone(&log));
        Ok(OpenedLog { log, state })
    }

    fn delete(&self, partition: TopicIdPartition) -> Result<(), StorageError> {
        self.shared.usable()?;
        let log = self.shared.open.lock().remove(&partition);
        if let Some(log) = &log {
            log.mark_gone();
        }
        // The writer does the renaming, after whatever it was told to append before.
        let renamed = self.shared.ask(|reply| Command::Delete { partition, reply })?;
        if let Some(log) = &log {
            self.shared.handles.forget(log.id(), |_| true);
        }
        self.shared.checkpoint.lock().remove(partition);
        let path = self.shared.directory.join(directory_name(partition));
        renamed
            .and_then(|doomed| doomed.map_or(Ok(()), fs::remove_dir_all))
            .map_err(|source| StorageError::Io { doing: "deleting", path, source })
    }

    fn admit(&self, bytes: usize) -> BoxFuture<'_, Result<Admission, StorageError>> {
        Box::pin(async move {
            self.shared.usable()?;
            self.shared.space.take(bytes as u64)?;
            // A request larger than the whole queue gets all of it.
            let permits = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.shared.max_queued_bytes);
            let permit = Arc::clone(&self.shared.admissions).acquire_many_owned(permits).await;
            Ok(Admission::new(Some(permit.map_err(|_closed| self.shared.why_closed())?)))
        })
    }

    fn checkpoint(&self, entries: Vec<CheckpointEntry>, known_at: u64) -> Result<(), StorageError> {
        let appended = self.shared.appended_bytes.load(Ordering::Relaxed);
        self.shared.ask(|reply| Command::Sync { reply })?;
        let mut current = self.shared.checkpoint.lock();
        let mut next = current.entries.clone();
        for CheckpointEntry { partition, state } in entries {
            let Some(log) = self.shared.open.lock().get(&partition).cloned() else { continue };
            let Some(mut entry) = log.checkpoint_entry() else { continue };
            let before = next.remove(&partition).unwrap_or_default();
            // A disowned log stays so: see `LogStore::disown`.
            entry.known_at = Some(known_at.max(before.known_at.unwrap_or_default()));
            entry.state = state.filter(|state| state.offset <= entry.end_offset).or(before.state);
            next.insert(partition, entry);
        }
        current.replace(next, &self.shared.directory, self.shared.disk.as_ref())?;
        self.shared.appended_bytes.fetch_sub(appended, Ordering::Relaxed);
        Ok(())
    }

    fn disown(&self, partitions: &[TopicIdPartition]) -> Result<(), StorageError> {
        let mut current = self.shared.checkpoint.lock();
        let mut next = current.entries.clone();
        for partition in partitions {
            if let Some(entry) = next.get_mut(partition) {
                entry.known_at = Some(u64::MAX);
            }
        }
        current.replace(next, &self.shared.directory, self.shared.disk.as_ref())
    }

    fn bytes_since_checkpoint(&self) -> u64 {
        self.shared.appended_bytes.load(Ordering::Relaxed)
    }

    fn close(&self) {
        self.shared.queue.close();
        self.shared.admissions.close();
        if let Some(writer) = self.writer.lock().take() {
            // A writer that panicked has reported a failure already.
            let _ = writer.join();
            self.shared.forget_deleted();
        }
        self.shared.open.lock().clear();
    }

    fn failure(&self) -> watch::Receiver<Option<Arc<StoreFailure>>> {
        self.shared.failure.subscribe()
    }
}

impl Drop for FileStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// An error if the store has failed or is closed.
    fn usable(&self) -> Result<(), StorageError> {
        if self.queue.is_closed() { Err(self.why_closed()) } else { Ok(()) }
    }

    fn why_closed(&self) -> StorageError {
        self.first_failure
            .get()
            .map_or(StorageError::Closed, |failure| StorageError::Failed(Arc::clone(failure)))
    }

    /// Stops the store for good. Only the first reason counts.
    fn fail(&self, failure: StoreFailure) {
        let failure = Arc::new(failure);
        if self.first_failure.set(Arc::clone(&failure)).is_err() {
            return;
        }
        tracing::error!(error = %failure, "record store failed");
        self.queue.close_and_drop();
        self.admissions.close();
        self.failure.send_replace(Some(failure));
        let logs: Vec<_> = self.open.lock().values().cloned().collect();
        for log in logs {
            log.tell_failed();
        }
    }

    /// Takes deleted logs out of the checkpoint file. It does no harm if they stay.
    fn forget_deleted(&self) {
        let mut checkpoint = self.checkpoint.lock();
        let entries = checkpoint.entries.clone();
        if let Err(error) = checkpoint.replace(entries, &self.directory, self.disk.as_ref()) {
            tracing::warn!(%error, "deleted logs stay in the checkpoint");
        }
    }

    /// Sends the writer a command and waits for its answer.
    fn ask<T>(&self, command: impl FnOnce(writer::Reply<T>) -> Command) -> Result<T, StorageError> {
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        if self.queue.push(command(reply)).is_err() {
            return Err(self.why_closed());
        }
        answer.recv().map_err(|_dropped| self.why_closed())
    }
}

fn directory_name(partition: TopicIdPartition) -> String {
    format!("{}-{}", partition.topic_id.hyphenated(), partition.partition)
}

fn parse_directory_name(name: &str) -> Option<TopicIdPartition> {
    let (topic_id, partition) = name.rsplit_once('-')?;
    let parsed = TopicIdPartition {
        topic_id: Uuid::try_parse(topic_id).ok()?,
        partition: partition.parse().ok().filter(|number| *number >= 0)?,
    };
    (directory_name(parsed) == name).then_some(parsed)
}

/// Removes what a crash left of logs that were being deleted.
fn remove_deleted(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == writer::DELETED) {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

fn sync_directory(disk: &dyn Disk, directory: &Path) -> io::Result<()> {
    disk.sync(&File::open(directory)?)
}

#[cfg(test)]
#[path = "files_test.rs"]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests;
