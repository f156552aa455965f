//! A record store in memory, for simulations: the durable end follows the log end after the time of a sync, and what
//! was not synced is lost with the machine.
//!
//! [`Platter`] is what lies on the disk and outlives the process; [`SimStore`] is the store that one process opens on
//! it. Somebody has to let time pass: [`SimStore::run`] in a simulation, a thread in the conformance tests.

mod platter;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use millrace_protocol::RecordBytes;
use millrace_protocol::records::BatchHeader;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::batch::{parse_header, stamp};
use super::since_checkpoint::SinceCheckpoint;
use super::{
    Admission, AppendBatch, CheckpointEntry, CheckpointNeed, CompactionJob, CompactionReport, Dirt,
    Durability, EpochCache, EpochEnd, LogEnds, LogListener, LogSettings, LogStore, OpenedLog, PartitionLog,
    ReadRange, StorageError, StoreFailure, StoredLog,
};
use crate::metadata::image::TopicIdPartition;
use crate::simulation::drive::Drive;

use platter::Stored;
pub(crate) use platter::{Batch, Platter};

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct SimStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    platter: Arc<Platter>,
    drive: Arc<Drive>,
    open: Mutex<BTreeMap<TopicIdPartition, Arc<SimLog>>>,
    queue: Mutex<Queue>,
    /// There is something to write.
    queued: Notify,
    closed: AtomicBool,
    failure: watch::Sender<Option<Arc<StoreFailure>>>,
    appended: SinceCheckpoint,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Queued>,
    /// Written, and being synced.
    under_way: Vec<Queued>,
}

#[derive(Debug)]
struct Queued {
    log: Arc<SimLog>,
    batch: Batch,
    _admission: Arc<Admission>,
}

#[derive(Debug)]
struct SimLog {
    partition: TopicIdPartition,
    shared: Arc<Shared>,
    listener: Weak<dyn LogListener>,
    state: Mutex<State>,
    this: Weak<SimLog>,
}

#[derive(Debug)]
struct State {
    settings: LogSettings,
    log_start: i64,
    durable_end: i64,
    log_end: i64,
    durable_bytes: u64,
    epochs: EpochCache,
    /// From the durable end on, for replicas.
    queued: VecDeque<Batch>,
    gone: bool,
}

impl std::fmt::Debug for dyn LogListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogListener")
    }
}

impl SimStore {
    /// Opens what lies on `platter`; what a process before this one has written is synced then.
    pub(crate) fn open(platter: Arc<Platter>, drive: Arc<Drive>) -> Self {
        platter.sync();
        let shared = Shared {
            platter,
            drive,
            open: Mutex::default(),
            queue: Mutex::default(),
            queued: Notify::new(),
            closed: AtomicBool::new(false),
            failure: watch::Sender::new(None),
            appended: SinceCheckpoint::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Writes and syncs what is queued, each time it has taken its time; never ends.
    pub(crate) fn run(&self) -> impl Future<Output = ()> + 'static {
        let shared = Arc::clone(&self.shared);
        async move {
            loop {
                shared.queued.notified().await;
                if shared.write() {
                    tokio::time::sleep(shared.drive.sync_time()).await;
                    shared.sync();
                }
            }
        }
    }
}

impl Shared {
    /// Writes what waits, and publishes what need not be synced; true if the rest has to be.
    fn write(&self) -> bool {
        let waiting = std::mem::take(&mut self.queue.lock().waiting);
        let (mut visible, mut to_sync) = (Vec::new(), Vec::new());
        for queued in waiting {
            let (log_start, durability, gone) = {
                let state = queued.log.state.lock();
                (state.log_start, state.settings.durability, state.gone)
            };
            if gone {
                continue;
            }
            let mut logs = self.platter.logs.lock();
            let stored = logs.entry(queued.log.partition).or_default();
            if stored.batches.is_empty() {
                (stored.log_start, stored.base) = (log_start, stored.base.max(log_start));
            }
            stored.batches.push(queued.batch.clone());
            match durability {
                Durability::Written => visible.push(queued),
                Durability::Fsync => to_sync.push(queued),
            }
        }
        publish(visible);
        self.queue.lock().under_way.extend(to_sync);
        !self.queue.lock().under_way.is_empty()
    }

    /// Makes durable what is written, and publishes it.
    fn sync(&self) {
        let synced = std::mem::take(&mut self.queue.lock().under_way);
        self.platter.sync();
        publish(synced);
    }

    fn settle(&self) -> Result<(), StorageError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(StorageError::Closed);
        }
        self.sync();
        self.write();
        self.sync();
        Ok(())
    }
}

/// The durable ends of these logs move, in order.
fn publish(batches: Vec<Queued>) {
    for queued in batches {
        let log = queued.log;
        let moved = {
            let mut state = log.state.lock();
            state.durable_end = queued.batch.header.next_offset();
            state.durable_bytes += queued.batch.bytes.len() as u64;
            let durable_end = state.durable_end;
            while state.queued.pop_front_if(|it| it.header.last_offset() < durable_end).is_some() {}
            (!state.gone).then_some((state.durable_end, state.durable_bytes))
        };
        if let (Some((end, bytes)), Some(listener)) = (moved, log.listener.upgrade()) {
            listener.durable_end_moved(end, bytes).wake();
        }
    }
}

impl LogStore for SimStore {
    fn list(&self) -> Vec<StoredLog> {
        let logs = self.shared.platter.logs.lock();
        logs.iter().map(|(id, stored)| StoredLog { partition: *id, known_at: stored.known_at }).collect()
    }

    fn open(
        &self,
        partition: TopicIdPartition,
        settings: LogSettings,
        listener: Weak<dyn LogListener>,
    ) -> Result<OpenedLog, StorageError> {
        let mut open = self.shared.open.lock();
        if open.contains_key(&partition) {
            return Err(StorageError::Gone);
        }
        let stored = self.shared.platter.logs.lock().get(&partition).cloned().unwrap_or_default();
        let mut epochs = EpochCache::default();
        for batch in &stored.batches {
            epochs.begin(batch.header.partition_leader_epoch, batch.header.base_offset);
        }
        epochs.truncate_start(stored.log_start);
        let end = stored.end();
        let state = State {
            settings,
            log_start: stored.log_start,
            durable_end: end,
            log_end: end,
            durable_bytes: 0,
            epochs,
            queued: VecDeque::new(),
            gone: false,
        };
        let log = Arc::new_cyclic(|this| SimLog {
            partition,
            shared: Arc::clone(&self.shared),
            listener,
            state: Mutex::new(state),
            this: Weak::clone(this),
        });
        open.insert(partition, Arc::clone(&log));
        let snapshot = stored.state.filter(|snapshot| snapshot.offset <= end);
        Ok(OpenedLog { log, state: snapshot })
    }

    fn delete(&self, partitions: &[TopicIdPartition]) -> Result<(), StorageError> {
        for partition in partitions {
            if let Some(log) = self.shared.open.lock().remove(partition) {
                log.state.lock().gone = true;
            }
            let mut queue = self.shared.queue.lock();
            queue.waiting.retain(|queued| queued.log.partition != *partition);
            queue.under_way.retain(|queued| queued.log.partition != *partition);
            self.shared.platter.logs.lock().remove(partition);
        }
        Ok(())
    }

    fn admit(&self, _bytes: usize) -> BoxFuture<'_, Result<Admission, StorageError>> {
        let closed = self.shared.closed.load(Ordering::Acquire);
        let answer = if closed { Err(StorageError::Closed) } else { Ok(Admission::new(None)) };
        std::future::ready(answer).boxed()
    }

    fn checkpoint(&self, entries: Vec<CheckpointEntry>, known_at: u64) -> Result<(), StorageError> {
        let appended = self.shared.appended.bytes();
        self.shared.settle()?;
        let mut logs = self.shared.platter.logs.lock();
        for entry in entries {
            if let Some(stored) = logs.get_mut(&entry.partition) {
                stored.known_at = Some(stored.known_at.map_or(known_at, |before| before.max(known_at)));
                stored.state = entry.state.or(stored.state.take());
            }
        }
        self.shared.appended.forget(appended);
        Ok(())
    }

    fn disown(&self, partitions: &[TopicIdPartition]) -> Result<(), StorageError> {
        let mut logs = self.shared.platter.logs.lock();
        for partition in partitions {
            if let Some(stored) = logs.get_mut(partition) {
                stored.known_at = Some(u64::MAX);
            }
        }
        Ok(())
    }

    fn checkpoint_need(&self) -> CheckpointNeed {
        CheckpointNeed { bytes: self.shared.appended.bytes(), ..CheckpointNeed::default() }
    }

    fn many_appended(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.shared.appended.are_many())
    }

    fn close(&self) {
        // Nothing is left to do if it is closed already.
        let _ = self.shared.settle();
        self.shared.closed.store(true, Ordering::Release);
    }

    fn failure(&self) -> watch::Receiver<Option<Arc<StoreFailure>>> {
        self.shared.failure.subscribe()
    }
}

impl State {
    fn ends(&self) -> LogEnds {
        LogEnds {
            log_start: self.log_start,
            durable_end: self.durable_end,
            log_end: self.log_end,
            durable_bytes: self.durable_bytes,
        }
    }
}

fn out_of_range(offset: i64, ends: &LogEnds) -> StorageError {
    StorageError::OffsetOutOfRange { offset, log_start: ends.log_start, log_end: ends.log_end }
}

impl SimLog {
    fn stored<T>(&self, read: impl FnOnce(&mut Stored) -> T) -> T {
        let mut logs = self.shared.platter.logs.lock();
        match logs.get_mut(&self.partition) {
            Some(stored) => read(stored),
            None => read(&mut Stored::default()),
        }
    }

    /// Changes what lies on the disk, durably.
    fn change(&self, change: impl FnOnce(&mut Stored)) {
        change(self.shared.platter.logs.lock().entry(self.partition).or_default());
    }

    fn visible(&self) -> Vec<Batch> {
        let durable_end = self.ends().durable_end;
        let below = |batch: &&Batch| batch.header.base_offset < durable_end;
        self.stored(|stored| stored.batches.iter().filter(below).cloned().collect())
    }

    fn tell(&self, ends: LogEnds) -> LogEnds {
        if let Some(listener) = self.listener.upgrade() {
            listener.durable_end_moved(ends.durable_end, ends.durable_bytes).wake();
        }
        ends
    }
}

impl PartitionLog for SimLog {
    fn append(&self, batch: AppendBatch, admission: Arc<Admission>) -> Result<(), StorageError> {
        let mut state = self.state.lock();
        if state.gone {
            return Err(StorageError::Gone);
        }
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(StorageError::Closed);
        }
        let header = batch.header;
        if header.base_offset < state.log_end {
            let log_end = state.log_end;
            return Err(StorageError::NotContiguous { base_offset: header.base_offset, log_end });
        }
        let Some(log) = self.this.upgrade() else { return Err(StorageError::Gone) };
        let mut bytes = BytesMut::from(&batch.bytes[..]);
        stamp(&mut bytes, header.base_offset, header.partition_leader_epoch);
        self.shared.appended.add(bytes.len() as u64);
        let batch = Batch { header, bytes: bytes.freeze() };
        state.queued.push_back(batch.clone());
        self.shared.queue.lock().waiting.push_back(Queued { log, batch, _admission: admission });
        state.epochs.begin(header.partition_leader_epoch, header.base_offset);
        state.log_end = header.next_offset();
        self.shared.queued.notify_one();
        Ok(())
    }

    fn ends(&self) -> LogEnds {
        self.state.lock().ends()
    }

    fn read_memory(&self, range: ReadRange) -> Result<Option<RecordBytes>, StorageError> {
        self.read(range).map(Some)
    }

    fn read(&self, range: ReadRange) -> Result<RecordBytes, StorageError> {
        let (ends, queued) = {
            let state = self.state.lock();
            if state.gone {
                return Err(StorageError::Gone);
            }
            (state.ends(), state.queued.clone())
        };
        if !(ends.log_start..=ends.log_end).contains(&range.offset) {
            return Err(out_of_range(range.offset, &ends));
        }
        let until = range.until.min(ends.readable_end(range.reader));
        let pieces: Vec<Bytes> = self.stored(|stored| {
            let first = stored.batches.partition_point(|batch| batch.header.last_offset() < range.offset);
            let mut size = 0;
            let fits = |batch: &&Batch| {
                let first = size == 0 && range.at_least_one;
                size += batch.bytes.len();
                range.offset < until && batch.header.base_offset < until && (first || size <= range.max_bytes)
            };
            // Of what is on the disk some may not be synced: that is queued still.
            let durable = stored.batches[first..].iter();
            let durable = durable.take_while(|batch| batch.header.base_offset < ends.durable_end);
            let queued = queued.iter().filter(|batch| batch.header.last_offset() >= range.offset);
            durable.chain(queued).take_while(fits).map(|batch| batch.bytes.clone()).collect()
        });
        Ok(pieces.into())
    }

    fn truncate(&self, offset: i64) -> Result<LogEnds, StorageError> {
        self.shared.settle()?;
        let ends = self.ends();
        if offset >= ends.log_end {
            return Ok(ends);
        }
        if offset < ends.log_start {
            return Err(out_of_range(offset, &ends));
        }
        self.change(|stored| stored.cut(offset));
        let (end, log_start) = self.stored(|stored| (stored.end(), stored.log_start));
        let mut state = self.state.lock();
        (state.durable_end, state.log_end, state.log_start) = (end, end, log_start);
        state.queued.clear();
        state.epochs.truncate_end(end);
        let ends = state.ends();
        drop(state);
        Ok(self.tell(ends))
    }

    fn set_log_start(&self, log_start: i64) -> Result<(), StorageError> {
        let ends = self.ends();
        if log_start > ends.durable_end {
            return Err(out_of_range(log_start, &ends));
        }
        if log_start > ends.log_start {
            self.change(|stored| stored.move_start(log_start));
            let mut state = self.state.lock();
            state.log_start = log_start;
            state.epochs.truncate_start(log_start);
        }
        Ok(())
    }

    fn start_anew(&self, offset: i64) -> Result<LogEnds, StorageError> {
        self.shared.settle()?;
        self.change(|stored| {
            let known_at = stored.known_at;
            *stored = Stored { log_start: offset, base: offset, known_at, ..Stored::default() };
        });
        let mut state = self.state.lock();
        (state.durable_end, state.log_end, state.log_start) = (offset, offset, offset);
        state.epochs = EpochCache::default();
        state.queued.clear();
        let ends = state.ends();
        drop(state);
        Ok(self.tell(ends))
    }

    fn batch_by_time(&self, timestamp: i64, from: i64) -> Result<Option<Bytes>, StorageError> {
        let matches =
            |batch: &Batch| batch.header.max_timestamp >= timestamp && batch.header.last_offset() >= from;
        Ok(self.visible().into_iter().find(matches).map(|batch| batch.bytes))
    }

    fn batch_with_max_timestamp(&self, offsets: Range<i64>) -> Result<Option<Bytes>, StorageError> {
        let within = |batch: &Batch| {
            batch.header.records_count > 0
                && batch.header.base_offset >= offsets.start
                && batch.header.next_offset() <= offsets.end
        };
        let mut best: Option<Batch> = None;
        for batch in self.visible().into_iter().filter(within) {
            if best.as_ref().is_none_or(|best| batch.header.max_timestamp > best.header.max_timestamp) {
                best = Some(batch);
            }
        }
        Ok(best.map(|batch| batch.bytes))
    }

    fn begin_epoch(&self, leader_epoch: i32) {
        let mut state = self.state.lock();
        let log_end = state.log_end;
        state.epochs.begin(leader_epoch, log_end);
    }

    fn epoch_end(&self, leader_epoch: i32) -> Option<EpochEnd> {
        let state = self.state.lock();
        state.epochs.end_of(leader_epoch, state.log_end)
    }

    fn epoch_at(&self, offset: i64) -> Option<i32> {
        self.state.lock().epochs.epoch_at(offset)
    }

    fn latest_epoch(&self) -> Option<i32> {
        self.state.lock().epochs.latest()
    }

    fn replay(&self, from: i64, visit: &mut dyn FnMut(&BatchHeader)) -> Result<(), StorageError> {
        for batch in self.visible().iter().filter(|batch| batch.header.last_offset() >= from) {
            let header = parse_header(&batch.bytes).map_err(|error| StorageError::Damaged {
                path: PathBuf::new(),
                position: 0,
                problem: error.to_string(),
            })?;
            visit(&header);
        }
        Ok(())
    }

    fn set_settings(&self, settings: LogSettings) {
        self.state.lock().settings = settings;
    }

    fn retain(&self, now_ms: i64, until: i64) -> Result<u64, StorageError> {
        let (settings, ends) = {
            let state = self.state.lock();
            (state.settings, state.ends())
        };
        if !settings.delete_old {
            return Ok(0);
        }
        let size = self.size();
        let (mut left, mut log_start) = (size, ends.log_start);
        for batch in self.visible() {
            let age = now_ms.saturating_sub(batch.header.max_timestamp);
            let too_old = settings.retention_ms.is_some_and(|limit| age > limit);
            let rest = left.saturating_sub(batch.bytes.len() as u64);
            let too_much = settings.retention_bytes.is_some_and(|limit| rest >= limit);
            if batch.header.next_offset() > until || !(too_old || too_much) {
                break;
            }
            (left, log_start) = (rest, batch.header.next_offset());
        }
        self.set_log_start(log_start)?;
        Ok(size - left)
    }

    fn size(&self) -> u64 {
        self.stored(|stored| stored.size())
    }

    /// A simulated log has nothing to compact.
    fn dirt(&self, _until: i64, _now_ms: i64) -> Result<Dirt, StorageError> {
        Ok(Dirt::default())
    }

    fn compact(&self, _job: &CompactionJob<'_>) -> Result<CompactionReport, StorageError> {
        Ok(CompactionReport::default())
    }

    fn size_below(&self, offset: i64) -> Result<u64, StorageError> {
        let below = self.visible().into_iter().filter(|batch| batch.header.last_offset() < offset);
        Ok(below.map(|batch| batch.bytes.len() as u64).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::conformance::{Held, HeldVolume, Volume, conformance_tests, held_conformance_tests};

    #[derive(Default)]
    struct Disk {
        platter: Arc<Platter>,
        /// Whether it is held; of the store that was opened last.
        held: Mutex<Arc<Mutex<bool>>>,
    }

    struct Hold {
        platter: Arc<Platter>,
        held: Arc<Mutex<bool>>,
        is_lost: bool,
    }

    impl Volume for Disk {
        fn open(&self) -> Arc<dyn LogStore> {
            let store = SimStore::open(Arc::clone(&self.platter), Arc::new(Drive::new(1)));
            let shared = Arc::downgrade(&store.shared);
            let held: Arc<Mutex<bool>> = Arc::default();
            *self.held.lock() = Arc::clone(&held);
            std::thread::spawn(move || {
                while let Some(shared) = shared.upgrade() {
                    let is_held = held.lock();
                    if !*is_held {
                        shared.write();
                        shared.sync();
                    }
                    drop((is_held, shared));
                    std::thread::yield_now();
                }
            });
            Arc::new(store)
        }
    }

    impl HeldVolume for Disk {
        fn hold(&self) -> Box<dyn Held> {
            let held = Arc::clone(&self.held.lock());
            *held.lock() = true;
            Box::new(Hold { platter: Arc::clone(&self.platter), held, is_lost: false })
        }
    }

    impl Held for Hold {
        fn lose_power(mut self: Box<Self>) {
            self.is_lost = true;
            self.platter.power_fails(&Drive::new(1));
        }
    }

    impl Drop for Hold {
        fn drop(&mut self) {
            *self.held.lock() = self.is_lost;
        }
    }

    conformance_tests!(Disk::default());

    mod held {
        use super::*;
        held_conformance_tests!(Disk::default());
    }
}
