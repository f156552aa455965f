//! The thread that writes the Raft log.
//!
//! Requests are written in the order they come, as many at once as are waiting, with one sync for all of them: while
//! one sync is on the disk, the next batch fills. The first failure is final: nothing is written after it, and
//! everyone who waits is told.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot};

use super::codec;
use super::disk::{Disk, Writes};
use super::keys;
use super::types::{LogId, TypeConfig};

/// Requests that wait for the disk. The Raft core waits when the queue is full.
pub(super) const QUEUE: usize = 256;

/// Requests and bytes written with one sync.
const MAX_BATCH_REQUESTS: usize = 256;
const MAX_BATCH_BYTES: usize = 4 << 20;

/// Told when the sync that covers a request is done.
pub(super) type Done = oneshot::Sender<io::Result<()>>;

/// Something to write.
pub(super) enum Request {
    /// New entries. `sequence` rises with every request of this kind.
    Append { entries: Vec<(u64, Bytes)>, sequence: u64, flushed: IOFlushed<TypeConfig> },
    /// Entries from this index on are gone.
    Truncate { from: u64 },
    /// Entries up to this one are gone.
    Purge { upto: LogId },
    /// A new vote.
    Vote { vote: Bytes, done: Done },
    /// A new snapshot, in the place of the one before.
    Snapshot { snapshot: Bytes, done: Done },
    /// Nothing; it is done when all that was requested before is on disk.
    Sync { done: Done },
}

/// What the writer tells and asks the log store between batches.
pub(super) trait Progress: Send + Sync + 'static {
    /// Last position known to be committed. Everything up to it was requested before.
    fn committed(&self) -> Option<LogId>;
    /// Appends up to this sequence are in RocksDB.
    fn written(&self, sequence: u64);
}

/// Starts the thread; it ends when the last sender is gone.
pub(super) fn start(
    disk: Arc<dyn Disk>,
    last_index: Option<u64>,
    progress: Arc<dyn Progress>,
) -> io::Result<(mpsc::Sender<Request>, std::thread::JoinHandle<()>)> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let writer = Writer::new(disk, last_index, progress);
    let thread =
        std::thread::Builder::new().name("raft-log".to_owned()).spawn(move || writer.run(receiver))?;
    Ok((sender, thread))
}

/// The same as a task, for a simulated disk that takes its time.
#[cfg(test)]
pub(super) fn start_simulated(
    disk: Arc<super::sim_disk::SimRaftDisk>,
    last_index: Option<u64>,
    progress: Arc<dyn Progress>,
) -> mpsc::Sender<Request> {
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    let mut writer = Writer::new(Arc::clone(&disk) as _, last_index, progress);
    tokio::spawn(async move {
        while let Some(first) = receiver.recv().await {
            let (batch, committed) = writer.gather(first, &mut receiver);
            if batch.synced {
                disk.begin(batch.writes.clone());
                tokio::time::sleep(disk.sync_time()).await;
            }
            writer.commit(batch, committed);
        }
        writer.write_committed_at_the_end();
    });
    sender
}

struct Writer {
    disk: Arc<dyn Disk>,
    progress: Arc<dyn Progress>,
    /// Last entry in RocksDB, or purged from it.
    last_index: Option<u64>,
    saved_committed: Option<LogId>,
    failure: Option<String>,
}

enum Waiting {
    Flushed(IOFlushed<TypeConfig>),
    Done(Done),
}

impl Writer {
    fn new(disk: Arc<dyn Disk>, last_index: Option<u64>, progress: Arc<dyn Progress>) -> Self {
        Self { disk, progress, last_index, saved_committed: None, failure: None }
    }

    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            let (batch, committed) = self.gather(first, &mut requests);
            self.commit(batch, committed);
        }
        self.write_committed_at_the_end();
    }

    /// The first request and those that wait behind it; and what is known to be committed.
    fn gather(&mut self, first: Request, requests: &mut mpsc::Receiver<Request>) -> (Batch, Option<LogId>) {
        // Taken before the queue is looked at: all entries up to it are in this batch or an earlier one.
        let committed = self.progress.committed();
        let mut batch = Batch::default();
        self.add(first, &mut batch);
        while batch.requests < MAX_BATCH_REQUESTS && batch.writes.size_in_bytes() < MAX_BATCH_BYTES {
            match requests.try_recv() {
                Ok(request) => self.add(request, &mut batch),
                Err(_) => break,
            }
        }
        (batch, committed)
    }

    fn add(&mut self, request: Request, batch: &mut Batch) {
        batch.requests += 1;
        match request {
            Request::Append { entries, sequence, flushed } => {
                for (index, entry) in entries {
                    batch.writes.put(keys::entry(index), entry);
                    self.last_index = Some(index);
                }
                batch.sequence = Some(sequence);
                batch.synced = true;
                batch.waiting.push(Waiting::Flushed(flushed));
            }
            Request::Truncate { from } => {
                batch.writes.delete_range(keys::entry(from), keys::ENTRIES_END);
                self.last_index = from.checked_sub(1);
            }
            Request::Purge { upto } => {
                batch.writes.delete_range(keys::entry(0), keys::entry(upto.index.saturating_add(1)));
                match codec::encode_log_id(upto) {
                    Ok(bytes) => batch.writes.put(keys::PURGED, bytes),
                    Err(error) => self.fail(&error.to_string()),
                }
                self.last_index = self.last_index.max(Some(upto.index));
            }
            Request::Vote { vote, done } => {
                batch.writes.put(keys::VOTE, vote);
                batch.synced = true;
                batch.waiting.push(Waiting::Done(done));
            }
            Request::Snapshot { snapshot, done } => {
                batch.writes.put(keys::SNAPSHOT, snapshot);
                batch.synced = true;
                batch.waiting.push(Waiting::Done(done));
            }
            Request::Sync { done } => {
                batch.synced = true;
                batch.waiting.push(Waiting::Done(done));
            }
        }
    }

    fn commit(&mut self, mut batch: Batch, committed: Option<LogId>) {
        // A committed position must never be on disk without the entries up to it.
        let committed = committed.filter(|log_id| Some(log_id.index) <= self.last_index);
        if committed > self.saved_committed {
            self.put_committed(&mut batch.writes, committed);
        }
        let outcome = self.write(batch.writes, batch.synced);
        if let (Ok(()), Some(sequence)) = (&outcome, batch.sequence) {
            self.progress.written(sequence);
        }
        for waiting in batch.waiting {
            let result = outcome.clone().map_err(io::Error::other);
            match waiting {
                Waiting::Flushed(flushed) => flushed.io_completed(result),
                // Whoever asked has given up waiting if this fails.
                Waiting::Done(done) => drop(done.send(result)),
            }
        }
    }

    fn put_committed(&mut self, writes: &mut Writes, committed: Option<LogId>) {
        let Some(log_id) = committed else { return };
        match codec::encode_log_id(log_id) {
            Ok(bytes) => {
                writes.put(keys::COMMITTED, bytes);
                self.saved_committed = committed;
            }
            Err(error) => self.fail(&error.to_string()),
        }
    }

    fn write_committed_at_the_end(&mut self) {
        let committed = self.progress.committed().filter(|log_id| Some(log_id.index) <= self.last_index);
        if committed > self.saved_committed {
            let mut writes = Writes::default();
            self.put_committed(&mut writes, committed);
            // Only saves work at the next start; a failure is logged in `write`.
            let _ = self.write(writes, false);
        }
    }

    fn write(&mut self, writes: Writes, synced: bool) -> Result<(), String> {
        if let Some(reason) = &self.failure {
            return Err(reason.clone());
        }
        self.disk.write(writes, synced).map_err(|error| {
            let reason = format!("the metadata log cannot be written: {error}");
            self.fail(&reason);
            reason
        })
    }

    fn fail(&mut self, reason: &str) {
        if self.failure.is_none() {
            tracing::error!(error = reason, "writing the metadata log failed, nothing more is written");
            self.failure = Some(reason.to_owned());
        }
    }
}

#[derive(Default)]
struct Batch {
    writes: Writes,
    requests: usize,
    synced: bool,
    sequence: Option<u64>,
    waiting: Vec<Waiting>,
}
