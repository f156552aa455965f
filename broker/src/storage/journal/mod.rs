//! The record store: one journal for all logs of a volume, and an index of what is where.
//!
//! ```text
//! <volume>/journal/<number>.journal   segments, preallocated and used again
//! <volume>/index/                     RocksDB
//! ```
//!
//! Batches of all partitions go into one journal (`frame` has its format), so that one write and one sync make the
//! appends of many partitions durable. The index finds them again (`keys` documents it).
//!
//! Threads: the writer appends to the journal and moves durable ends; the indexer enters what has been synced into the
//! index. Readers use the logs' memory, or the index and the files.
//!
//! Order of writes, and what a crash in between leaves:
//! 1. A frame is written and synced before a durable end moves (`written` logs: written only). What was acknowledged is
//!    found by replay; a frame that was not synced may be there or not, as a whole, since its checksum decides.
//! 2. The index hears of a frame after its sync, and never holds anything that the journal could still lose.
//! 3. The index reaches the disk later, as it was at some position of the journal; the rest is replayed.
//! 4. A segment is used again only when nothing in it is live and the index on the disk is past it: no state that a
//!    crash can bring back points into it.
//!
//! What a disk that does not keep its promises leads to: a start is refused (`recovery`), a read fails because batches are
//! not laid out as the index says, or the checksum of a batch tells its reader. Damaged records are never moved. Not to be
//! told from a crash, and so a shorter log: damage to the last commit, which no later frame vouches for, and the newest
//! files missing as a whole, both only as long as the index on the disk does not cover them.

mod buffer;
mod changes;
mod disk;
mod fail_point;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
#[cfg(test)]
pub(crate) mod held_disk;
mod index;
mod indexer;
mod keys;
mod log;
mod read_ahead;
mod reads;
mod recovery;
mod replayed;
mod rewrite;
mod scattered;
mod segments;
#[cfg(test)]
mod sim_disk;
mod space;
mod tail;
mod writer;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use super::since_checkpoint::SinceCheckpoint;
use super::{
    Admission, CheckpointEntry, CheckpointNeed, EpochCache, LogListener, LogSettings, LogStore, OpenedLog,
    StorageError, StoreFailure, StoredLog,
};
use crate::metadata::image::TopicIdPartition;

pub use disk::{BLOCK, Disk, DiskFile, OsDisk};

use buffer::BufferPool;
use fail_point::FailPoint;
use frame::Entry;
use index::Index;
use log::{Found, JournalLog};
use read_ahead::ReadAhead;
use reads::Reads;
use replayed::Replayed;
use segments::Segments;
use space::{FreeSpace, Purpose};
use tail::TailCache;
use writer::{Command, Queue, Reply};

/// Bounds of a segment's size in bytes: a 256th of the volume between them.
const SEGMENT_BYTES: (u64, u64) = (16 << 20, 256 << 20);

/// Most logs that are deleted with one commit.
const DELETED_AT_ONCE: usize = 1_000;

/// Bytes of a segment on a volume of `total` bytes.
fn segment_bytes(total: u64) -> u64 {
    (total / 256).next_power_of_two().clamp(SEGMENT_BYTES.0, SEGMENT_BYTES.1)
}

/// Settings of a store.
#[derive(Clone, Debug)]
pub struct JournalStoreOptions {
    /// Most bytes of appends that may be on their way to the disk; later ones wait. 64 MiB by default.
    pub max_queued_bytes: u32,
    /// Most bytes of the newest data that are kept in memory for a while, over all logs; 96 MiB by default.
    pub tail_cache_bytes: usize,
    /// Bytes of a segment; computed from the size of the volume if `None`.
    pub segment_bytes: Option<u64>,
    /// Bytes that must stay free on the volume; computed from its size if `None`.
    pub reserve_bytes: Option<u64>,
    /// The disk.
    pub disk: Arc<dyn Disk>,
}

impl Default for JournalStoreOptions {
    fn default() -> Self {
        Self {
            max_queued_bytes: 64 << 20,
            tail_cache_bytes: 96 << 20,
            segment_bytes: None,
            reserve_bytes: None,
            disk: Arc::new(OsDisk::default()),
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct JournalStore {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the store, its logs and its threads have in common.
#[derive(Debug)]
struct Shared {
    volume: Uuid,
    /// Where those run who wait for the store.
    runtime: Option<Handle>,
    index_path: PathBuf,
    segments: Segments,
    index: Index,
    queue: Queue,
    /// Memory of frames.
    pool: BufferPool,
    reads: Arc<Reads>,
    read_ahead: ReadAhead,
    tail: TailCache,
    space: FreeSpace,
    admissions: Arc<Semaphore>,
    max_queued_bytes: u32,
    first_failure: OnceLock<Arc<StoreFailure>>,
    failure: watch::Sender<Option<Arc<StoreFailure>>>,
    /// Open logs. They hold this struct in turn; closing the store breaks the circle.
    open: Mutex<HashMap<TopicIdPartition, Arc<JournalLog>>>,
    /// What the start has seen of logs that are not open yet.
    replayed: Mutex<Replayed>,
    /// Full segments as they were at the last flush of the index.
    usage: Mutex<Vec<rewrite::Usage>>,
    /// Held while segments are rewritten: those of which a part is damaged, which are left alone until the next start.
    rewriting: Mutex<HashSet<u64>>,
    appended: SinceCheckpoint,
    next_log: AtomicU64,
}

impl JournalStore {
    /// Opens the store of the volume with that uuid in `directory`, or makes it. The caller holds the volume's lock.
    ///
    /// # Errors
    /// Something was lost or changed on the disk, or belongs to another volume. Nothing is deleted then.
    pub fn open(directory: &Path, volume: Uuid, options: JournalStoreOptions) -> Result<Self, StorageError> {
        let io_error = |doing, source| StorageError::Io { doing, path: directory.to_path_buf(), source };
        let space = options.disk.space(directory).map_err(|source| io_error("looking at", source))?;
        let segment_bytes = options.segment_bytes.unwrap_or_else(|| segment_bytes(space.total));
        let segment_bytes = segment_bytes.next_multiple_of(BLOCK as u64);
        let journal_path = directory.join("journal");
        let (segments, first_frames) =
            Segments::open(&journal_path, Arc::clone(&options.disk), segment_bytes, volume)?;
        let index_path = directory.join("index");
        let open_index = || Index::open(&index_path, volume);
        let (index, is_new) = match options.disk.kept_space() {
            Some(kept_space) => kept_space.with_room(open_index)?,
            None => open_index()?,
        };
        if is_new && !first_frames.is_empty() {
            return Err(StorageError::Damaged {
                path: index_path,
                position: 0,
                problem: format!(
                    "the index is gone, and {} holds records that cannot be found without it: bring the directory \
                     back, or remove both to begin with an empty volume",
                    journal_path.display()
                ),
            });
        }
        let mut changes = index.load()?;
        let flushed = changes.position;
        let mut replayed = Replayed::default();
        let replayed_bytes =
            recovery::replay(&segments, &first_frames, volume, &index, &mut changes, &mut replayed)?;
        segments.remove_unfinished()?;
        let position = changes.position;
        FailPoint::Replayed.pass();
        let next = frame::first_sequence(index.start()?).max(position.sequence + 1);
        FailPoint::Started.pass();
        let shared = Arc::new(Shared {
            volume,
            runtime: Handle::try_current().ok(),
            space: FreeSpace::new(
                directory.to_path_buf(),
                Arc::clone(&options.disk),
                options.reserve_bytes,
                2 * segment_bytes,
            ),
            index_path,
            segments,
            index,
            queue: Queue::default(),
            pool: BufferPool::new(8, 64 << 20),
            reads: Arc::new(Reads::new()),
            read_ahead: ReadAhead::default(),
            tail: TailCache::new(options.tail_cache_bytes),
            admissions: Arc::new(Semaphore::new(options.max_queued_bytes as usize)),
            max_queued_bytes: options.max_queued_bytes,
            first_failure: OnceLock::new(),
            failure: watch::Sender::new(None),
            open: Mutex::default(),
            replayed: Mutex::new(replayed),
            usage: Mutex::default(),
            rewriting: Mutex::default(),
            // A start after the next crash would read them again, if only for what logs derive from them.
            appended: SinceCheckpoint::with(replayed_bytes),
            next_log: AtomicU64::new(0),
        });
        let start = |source| io_error("starting the threads of", source);
        let (work, indexer) = indexer::spawn(Arc::clone(&shared), changes, flushed).map_err(start)?;
        let writer = writer::spawn(Arc::clone(&shared), work, position, next).map_err(start)?;
        Ok(Self { shared, threads: Mutex::new(vec![writer, indexer]) })
    }
}

impl LogStore for JournalStore {
    fn list(&self) -> Vec<StoredLog> {
        let listed = self.shared.settle().and_then(|()| self.shared.index.logs());
        listed.unwrap_or_else(|error| {
            tracing::error!(%error, "listing the logs of the volume");
            Vec::new()
        })
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
        let index = &self.shared.index;
        let record = index.log(partition)?.unwrap_or_default();
        let first = index.first_run(partition)?.map(|placed| placed.run);
        let last = index.last_run(partition)?.map(|placed| placed.run);
        let end = last.map_or(record.end_without_runs, |last| last.next_offset());
        let state = index.state(partition)?.filter(|state| state.offset <= end);
        let found = Found {
            log_start: record.log_start,
            end,
            epochs: EpochCache::from_entries(record.epochs),
            removed_bytes: record.removed_bytes,
            first,
            last,
        };
        let log = JournalLog::new(Arc::clone(&self.shared), partition, settings, found, listener);
        self.shared.open.lock().insert(partition, Arc::clone(&log));
        Ok(OpenedLog { log, state })
    }

    fn delete(&self, partitions: &[TopicIdPartition]) -> Result<(), StorageError> {
        self.shared.usable()?;
        // Each once: of one frame each entry takes its log out of the index as it was before the frame.
        let partitions: BTreeSet<TopicIdPartition> = partitions.iter().copied().collect();
        for partition in &partitions {
            let log = self.shared.open.lock().remove(partition);
            if let Some(log) = log {
                log.mark_gone();
            }
            self.shared.replayed.lock().take(*partition);
        }
        let entries: Vec<_> = partitions.into_iter().map(Entry::Delete).collect();
        entries.chunks(DELETED_AT_ONCE).try_for_each(|entries| self.shared.change_all(entries.to_vec()))
    }

    fn admit(&self, bytes: usize) -> BoxFuture<'_, Result<Admission, StorageError>> {
        Box::pin(async move {
            self.shared.usable()?;
            let free_bytes = || self.shared.segments.free_bytes();
            self.shared.space.take(bytes as u64, Purpose::Append, free_bytes)?;
            // A request larger than the whole queue gets all of it.
            let permits = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.shared.max_queued_bytes);
            let permit = Arc::clone(&self.shared.admissions).acquire_many_owned(permits).await;
            Ok(Admission::new(Some(permit.map_err(|_closed| self.shared.why_closed())?)))
        })
    }

    fn checkpoint(&self, entries: Vec<CheckpointEntry>, known_at: u64) -> Result<(), StorageError> {
        let appended = self.shared.appended.bytes();
        let entries = entries.into_iter().map(|entry| (entry, known_at)).collect();
        self.shared.ask(|reply| Command::Checkpoint { entries, reply })?;
        self.shared.appended.forget(appended);
        match self.shared.rewriting.try_lock() {
            Some(mut damaged) => rewrite::rewrite_thin_segments(&self.shared, &mut damaged),
            None => Ok(()),
        }
    }

    fn disown(&self, partitions: &[TopicIdPartition]) -> Result<(), StorageError> {
        let entry = |partition: &TopicIdPartition| CheckpointEntry { partition: *partition, state: None };
        let entries = partitions.iter().map(|partition| (entry(partition), u64::MAX)).collect();
        self.shared.ask(|reply| Command::Checkpoint { entries, reply })
    }

    fn checkpoint_need(&self) -> CheckpointNeed {
        // While segments are rewritten, nothing can be said of them.
        let gives_space = self.shared.rewriting.try_lock().is_some_and(|damaged| {
            let usage = self.shared.usage.lock().clone();
            rewrite::gives_space(usage, &damaged)
        });
        CheckpointNeed {
            bytes: self.shared.appended.bytes(),
            gives_space,
            is_short_of_space: self.shared.space.is_short(),
        }
    }

    fn many_appended(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.shared.appended.are_many())
    }

    fn close(&self) {
        self.shared.queue.close();
        self.shared.admissions.close();
        for thread in self.threads.lock().drain(..) {
            // A thread that panicked has reported a failure already.
            let _ = thread.join();
        }
        self.shared.open.lock().clear();
        self.shared.index.close();
    }

    fn failure(&self) -> watch::Receiver<Option<Arc<StoreFailure>>> {
        self.shared.failure.subscribe()
    }
}

impl Drop for JournalStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// An error if the store has failed or is closed.
    fn usable(&self) -> Result<(), StorageError> {
        if self.queue.is_closed() { Err(self.why_closed()) } else { Ok(()) }
    }

    /// An error once the store has failed: for its threads, which end then.
    fn go_on(&self) -> Result<(), StoreFailure> {
        self.first_failure.get().map_or(Ok(()), |failure| Err(StoreFailure::clone(failure)))
    }

    fn why_closed(&self) -> StorageError {
        self.first_failure
            .get()
            .map_or(StorageError::Closed, |failure| StorageError::Failed(Arc::clone(failure)))
    }

    /// Longest batch that fits into a segment, with everything around it.
    fn max_batch_bytes(&self) -> usize {
        let around = frame::HEADER_LEN + frame::MAX_ENTRY_LEN + BLOCK;
        usize::try_from(self.segments.segment_bytes()).unwrap_or(usize::MAX).saturating_sub(around)
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

    /// Waits until everything appended so far is synced and the index knows it.
    fn settle(&self) -> Result<(), StorageError> {
        self.ask(|reply| Command::Sync { reply })
    }

    /// Writes an entry that is no append, and waits until the index knows it.
    fn change(&self, entry: Entry) -> Result<(), StorageError> {
        self.change_all(vec![entry])
    }

    /// The same for several that concern a log each, and take effect together.
    fn change_all(&self, entries: Vec<Entry>) -> Result<(), StorageError> {
        self.ask(|reply| Command::Change { entries, reply })
    }

    /// Sends the writer a command and waits for its answer.
    fn ask(&self, command: impl FnOnce(Reply) -> Command) -> Result<(), StorageError> {
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        if self.queue.push(command(reply)).is_err() {
            return Err(self.why_closed());
        }
        answer.recv().unwrap_or_else(|_dropped| Err(self.why_closed()))
    }
}

#[cfg(test)]
#[path = "journal_test.rs"]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests;
