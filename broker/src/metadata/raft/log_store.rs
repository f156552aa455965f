//! The Raft log, the vote and the snapshot on disk.
//!
//! [`LogStore`] keeps in memory what the next answer depends on (bounds of the log, vote, the newest entries) and
//! hands everything to be written to the thread in [`super::writer`]. An entry is readable from memory the moment it
//! is appended, and leaves memory at the earliest when RocksDB has it.
//!
//! Invariants: entries are consecutive from `purged + 1` to `last`; the entries in memory are the newest ones,
//! consecutive up to `last`; RocksDB holds all older ones as this module reports them, as requests are written in
//! order and what is still to be truncated there is above what is read from it.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, OptionalSync};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::disk::{Disk, RocksDisk};
use super::types::{Entry, LogId, TypeConfig, Vote};
use super::writer::{self, Progress, Request};
use super::{codec, keys};
use crate::volume::KeptSpace;

/// Newest entries kept in memory although they are on disk: followers that keep up read them from here.
const TAIL_BYTES: usize = 1 << 20;
const TAIL_ENTRIES: usize = 512;

/// Entries that replication sends at a time; well below the longest frame.
const READ_BYTES: usize = 4 << 20;

/// An entry above this size would not fit into a frame together with what surrounds it.
pub(super) const MAX_ENTRY_BYTES: usize = 8 << 20;

/// The store; a cheap handle, also for readers.
#[derive(Clone)]
pub(super) struct LogStore {
    shared: Arc<Shared>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    memory: Arc<Memory>,
    requests: mpsc::Sender<Request>,
}

/// Lets the store be closed: the database and its lock are released when this returns.
pub(super) struct Closer {
    disk: std::sync::Weak<dyn Disk>,
    thread: Option<JoinHandle<()>>,
}

/// Where the log ends. Does not keep the store open.
pub(super) struct LogEnd {
    memory: Arc<Memory>,
    requests: mpsc::WeakSender<Request>,
}

impl LogEnd {
    /// Last entry that was appended, whether it is on disk yet or not.
    pub(super) fn last(&self) -> Option<LogId> {
        self.memory.state.lock().last
    }

    /// Resolves when everything that was appended before the call is on disk. Cancel-safe.
    ///
    /// # Errors
    /// If it cannot be written, or the store is closed.
    pub(super) async fn sync(&self) -> io::Result<()> {
        let requests = self.requests.upgrade().ok_or_else(writer_gone)?;
        write(&requests, |done| Request::Sync { done }).await
    }

    /// Index of the first entry that has not been dropped.
    #[cfg(test)]
    pub(super) fn first_index(&self) -> u64 {
        self.memory.state.lock().first_index()
    }
}

/// Has `request` written, and waits until it is on disk.
async fn write(
    requests: &mpsc::Sender<Request>,
    request: impl FnOnce(writer::Done) -> Request,
) -> io::Result<()> {
    let (done, written) = oneshot::channel();
    requests.send(request(done)).await.map_err(|_| writer_gone())?;
    written.await.map_err(|_| writer_gone())?
}

#[derive(Default)]
struct Memory {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    tail: VecDeque<TailEntry>,
    tail_bytes: usize,
    /// Counts appends; see [`Request::Append`].
    sequence: u64,
    written_sequence: u64,
    /// Counts truncations: a reader that overlaps one starts again.
    truncations: u64,
}

struct TailEntry {
    index: u64,
    bytes: Bytes,
    sequence: u64,
}

impl Progress for Memory {
    fn committed(&self) -> Option<LogId> {
        self.state.lock().committed
    }

    fn written(&self, sequence: u64) {
        let mut state = self.state.lock();
        state.written_sequence = sequence;
        state.shrink_tail();
    }
}

impl State {
    fn shrink_tail(&mut self) {
        while self.tail_bytes > TAIL_BYTES || self.tail.len() > TAIL_ENTRIES {
            match self.tail.front() {
                Some(front) if front.sequence <= self.written_sequence => self.pop_front(),
                _ => return,
            }
        }
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.tail.pop_front() {
            self.tail_bytes -= entry.bytes.len();
        }
    }

    fn pop_back(&mut self) {
        if let Some(entry) = self.tail.pop_back() {
            self.tail_bytes -= entry.bytes.len();
        }
    }

    fn next_index(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }

    fn first_index(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    /// First index that is in memory.
    fn tail_start(&self) -> u64 {
        self.tail.front().map_or_else(|| self.next_index(), |entry| entry.index)
    }
}

impl LogStore {
    /// Opens or makes the database in `directory`, which is on the volume that keeps that space. Blocks on the disk.
    pub(super) fn open(directory: &Path, kept_space: Arc<KeptSpace>) -> io::Result<(Self, Closer)> {
        let disk: Arc<dyn Disk> = Arc::new(RocksDisk::open(directory, kept_space)?);
        let state = load(disk.as_ref())?;
        let last_index = state.last.map(|last| last.index);
        let memory = Arc::new(Memory { state: Mutex::new(state) });
        let (requests, thread) = writer::start(Arc::clone(&disk), last_index, Arc::clone(&memory) as _)?;
        let closer = Closer { disk: Arc::downgrade(&disk), thread: Some(thread) };
        Ok((Self { shared: Arc::new(Shared { disk, memory, requests }) }, closer))
    }

    /// The same on a simulated disk, with a task in the place of the thread.
    #[cfg(test)]
    pub(super) fn open_simulated(disk: Arc<super::sim_disk::SimRaftDisk>) -> io::Result<(Self, Closer)> {
        let state = load(disk.as_ref())?;
        let last_index = state.last.map(|last| last.index);
        let memory = Arc::new(Memory { state: Mutex::new(state) });
        let requests = writer::start_simulated(Arc::clone(&disk), last_index, Arc::clone(&memory) as _);
        let disk: Arc<dyn Disk> = disk;
        let closer = Closer { disk: Arc::downgrade(&disk), thread: None };
        Ok((Self { shared: Arc::new(Shared { disk, memory, requests }) }, closer))
    }

    /// Tells where the log ends, also while the store is being closed.
    pub(super) fn log_end(&self) -> LogEnd {
        LogEnd { memory: Arc::clone(&self.shared.memory), requests: self.shared.requests.downgrade() }
    }

    /// The stored snapshot. Blocks on the disk.
    pub(super) fn snapshot(&self) -> io::Result<Option<Bytes>> {
        self.shared.disk.get(&keys::SNAPSHOT)
    }

    /// Replaces the stored snapshot; durable when this returns.
    pub(super) async fn save_snapshot(&self, snapshot: Bytes) -> io::Result<()> {
        write(&self.shared.requests, |done| Request::Snapshot { snapshot, done }).await
    }

    async fn send(&self, request: Request) -> io::Result<()> {
        self.shared.requests.send(request).await.map_err(|_| writer_gone())
    }

    /// Encoded entries from `start` to before `end`, as far as the log has them; stops early after `limit` bytes, but
    /// not before the first.
    async fn read_entries(&self, start: u64, end: u64, limit: usize) -> io::Result<Vec<Bytes>> {
        loop {
            let (older, mut entries, truncations) = {
                let state = self.shared.memory.state.lock();
                let (start, end) = (start.max(state.first_index()), end.min(state.next_index()));
                let tail_start = state.tail_start();
                let newer = state.tail.iter().filter(|entry| (start..end).contains(&entry.index));
                let newer: Vec<Bytes> = newer.map(|entry| entry.bytes.clone()).collect();
                (start..end.min(tail_start), newer, state.truncations)
            };
            if !older.is_empty() {
                let disk = Arc::clone(&self.shared.disk);
                let read = crate::blocking::spawn_blocking(move || disk.scan(older.start, older.end, limit));
                let (mut found, complete) = read.await.map_err(io::Error::other)??;
                if complete {
                    found.append(&mut entries);
                }
                entries = found;
                if self.shared.memory.state.lock().truncations != truncations {
                    continue;
                }
            }
            let mut size = 0;
            let fitting = entries.iter().take_while(|bytes| {
                let fits = size == 0 || size + bytes.len() <= limit;
                size += bytes.len();
                fits
            });
            let count = fitting.count();
            entries.truncate(count);
            return Ok(entries);
        }
    }
}

impl Closer {
    /// Waits until nobody uses the store any more. Call it after the Raft node has shut down; blocks.
    pub(super) fn close(mut self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        const STEP: Duration = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        while self.disk.strong_count() > 0 {
            // Tasks of openraft end a little after it says that it has shut down.
            if waited >= PATIENCE {
                tracing::warn!("the metadata log is still in use after the quorum member has stopped");
                return;
            }
            std::thread::sleep(STEP);
            waited += STEP;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes the metadata log panicked");
        }
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let encoded = self.read_entries(start, end, usize::MAX).await?;
        decode_consecutive(encoded)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let encoded = self.read_entries(start, end, READ_BYTES).await?;
        decode_consecutive(encoded)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.memory.state.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.shared.memory.state.lock();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let bytes = codec::encode_vote(vote)?;
        write(&self.shared.requests, |done| Request::Vote { vote: bytes, done }).await?;
        self.shared.memory.state.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        // Written along with the next entries: it only saves a replay, and is never worth a sync of its own.
        self.shared.memory.state.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared.memory.state.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        for entry in entries {
            encoded.push((entry.log_id, codec::encode_entry(&entry)?));
        }
        let sequence = self.shared.memory.append(&encoded)?;
        let entries = encoded.into_iter().map(|(log_id, bytes)| (log_id.index, bytes)).collect();
        self.send(Request::Append { entries, sequence, flushed }).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let from = last_log_id.map_or(0, |last| last.index + 1);
        {
            let mut state = self.shared.memory.state.lock();
            if from >= state.next_index() {
                return Ok(());
            }
            while state.tail.back().is_some_and(|entry| entry.index >= from) {
                state.pop_back();
            }
            state.last = last_log_id;
            state.truncations += 1;
        }
        self.send(Request::Truncate { from }).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        {
            let mut state = self.shared.memory.state.lock();
            while state.tail.front().is_some_and(|entry| entry.index <= upto.index) {
                state.pop_front();
            }
            state.purged = state.purged.max(Some(upto));
            state.last = state.last.max(Some(upto));
        }
        self.send(Request::Purge { upto }).await
    }
}

impl Memory {
    fn append(&self, entries: &[(LogId, Bytes)]) -> io::Result<u64> {
        let mut state = self.state.lock();
        state.sequence += 1;
        let sequence = state.sequence;
        for (log_id, bytes) in entries {
            // An empty store starts wherever the first entry is: openraft numbers from 0, its tests do not.
            let expected = state.next_index();
            if log_id.index != expected && state.last.is_some() {
                let message = format!("entry {} would leave a hole after {expected}", log_id.index);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            state.tail_bytes += bytes.len();
            state.tail.push_back(TailEntry { index: log_id.index, bytes: bytes.clone(), sequence });
            state.last = Some(*log_id);
        }
        Ok(sequence)
    }
}

fn decode_consecutive(encoded: Vec<Bytes>) -> io::Result<Vec<Entry>> {
    let entries: Vec<Entry> = encoded.into_iter().map(codec::decode_entry).collect::<Result<_, _>>()?;
    match entries.windows(2).find(|pair| pair[1].log_id.index != pair[0].log_id.index + 1) {
        None => Ok(entries),
        Some(pair) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the metadata log has a hole after entry {}", pair[0].log_id.index),
        )),
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

fn writer_gone() -> io::Error {
    io::Error::other("the metadata log is closed")
}

fn load(disk: &dyn Disk) -> io::Result<State> {
    let mut state = State {
        vote: disk.get(&keys::VOTE)?.map(codec::decode_vote).transpose()?,
        committed: disk.get(&keys::COMMITTED)?.map(codec::decode_log_id).transpose()?,
        purged: disk.get(&keys::PURGED)?.map(codec::decode_log_id).transpose()?,
        ..State::default()
    };
    let last = disk.last_entry()?.map(codec::decode_entry).transpose()?.map(|entry| entry.log_id);
    state.last = last.max(state.purged);
    Ok(state)
}

// Handles are used from several tasks at once.
const _: () = {
    const fn shared<T: OptionalSend + OptionalSync>() {}
    shared::<LogStore>();
};

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
#[path = "log_store_test.rs"]
mod tests;
