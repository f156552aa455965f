//! The second half of a commit: sync what has been written, and tell the index of it.
//!
//! Where somebody waits for the sync, the writer does it: waking another thread would cost as much as the rest. What
//! nobody waits for is synced by a thread of its own, so that writing goes on meanwhile. Whoever syncs holds the
//! [`Outbox`], so that the index hears of everything in the order in which it was written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::super::Shared;
use super::super::fail_point::FailPoint;
use super::super::indexer::{SyncedFrame, Work};
use super::super::segments::Segment;
use super::{MAX_UNSYNCED_BYTES, failure};
use crate::storage::StoreFailure;

/// Most synced frames, bytes of them and time for which the index is not told of them: telling it of several at once is
/// cheaper.
const UNTOLD_FRAMES: usize = 64;
const UNTOLD_BYTES: u64 = 1 << 20;
const UNTOLD_TIME: Duration = Duration::from_millis(10);

/// Longest time that something stays unsynced.
const MAX_UNSYNCED_TIME: Duration = Duration::from_secs(1);

/// Bytes after which a sync begins although nobody waits for it.
const SYNC_BYTES: u64 = MAX_UNSYNCED_BYTES / 2;

/// What has been written and not synced.
#[derive(Default)]
pub(super) struct Unsynced {
    bytes: u64,
    segments: Vec<Arc<Segment>>,
    /// What the index is to hear of.
    frames: Vec<SyncedFrame>,
}

/// See the module documentation.
pub(super) struct SyncStage {
    shared: Arc<Shared>,
    state: Mutex<State>,
    /// The thread has something to do.
    wanted: Condvar,
    /// There is room for more that is not synced.
    room: Condvar,
    outbox: Mutex<Outbox>,
    /// Everything up to this sequence has been synced.
    synced: AtomicU64,
}

#[derive(Default)]
struct State {
    left: Unsynced,
    /// Since when something is left.
    since: Option<Instant>,
    /// Bytes that the thread is syncing.
    under_way: u64,
    is_wanted: bool,
    is_closed: bool,
}

/// What has been synced and the index has not heard of.
struct Outbox {
    work: SyncSender<Work>,
    frames: Vec<SyncedFrame>,
    bytes: u64,
    since: Option<Instant>,
}

/// What has just been synced. As long as it exists nothing else is, and the index does not hear of it.
pub(super) struct Synced<'a> {
    outbox: MutexGuard<'a, Outbox>,
    frames: Vec<SyncedFrame>,
}

impl Unsynced {
    pub(super) fn push(&mut self, segment: &Arc<Segment>, bytes: u64, frame: SyncedFrame) {
        self.bytes += bytes;
        self.frames.push(frame);
        if self.segments.last().is_none_or(|last| last.id != segment.id) {
            self.segments.push(Arc::clone(segment));
        }
    }

    fn append(&mut self, later: Self) {
        self.bytes += later.bytes;
        self.frames.extend(later.frames);
        let last = self.segments.last().map(|segment| segment.id);
        let new = later.segments.into_iter().filter(|segment| Some(segment.id) != last);
        self.segments.extend(new);
    }
}

impl SyncStage {
    /// Frames up to the sequence `synced` are known to be synced.
    pub(super) fn new(shared: Arc<Shared>, work: SyncSender<Work>, synced: u64) -> Self {
        let outbox = Outbox { work, frames: Vec::new(), bytes: 0, since: None };
        Self {
            shared,
            state: Mutex::default(),
            wanted: Condvar::new(),
            room: Condvar::new(),
            outbox: Mutex::new(outbox),
            synced: AtomicU64::new(synced),
        }
    }

    /// Sequence up to which everything has been synced.
    pub(super) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Leaves this to the thread; waits if it has too much already.
    pub(super) fn leave(&self, unsynced: Unsynced) {
        let mut state = self.state.lock();
        state.left.append(unsynced);
        state.since.get_or_insert_with(Instant::now);
        if state.left.bytes >= SYNC_BYTES {
            self.want(&mut state);
        }
        while state.left.bytes + state.under_way >= MAX_UNSYNCED_BYTES && !state.is_closed {
            self.room.wait(&mut state);
        }
    }

    /// Syncs this, after everything that was left.
    ///
    /// # Errors
    /// A sync has failed.
    pub(super) fn sync(&self, unsynced: Unsynced) -> Result<Synced<'_>, StoreFailure> {
        let outbox = self.outbox.lock();
        let mut all = self.state.lock().take();
        all.append(unsynced);
        let frames = self.sync_files(all)?;
        Ok(Synced { outbox, frames })
    }

    /// When to [`look`](Self::look) at the latest.
    pub(super) fn look_at(&self) -> Option<Instant> {
        let sync_at = {
            let state = self.state.lock();
            state.since.filter(|_| !state.is_wanted).map(|since| since + MAX_UNSYNCED_TIME)
        };
        let tell_at = self.outbox.try_lock().and_then(|outbox| outbox.tell_at());
        sync_at.into_iter().chain(tell_at).min()
    }

    /// Does what it is time for: lets the thread sync what was left, tells the index.
    pub(super) fn look(&self) {
        {
            let mut state = self.state.lock();
            if state.since.is_some_and(|since| since.elapsed() >= MAX_UNSYNCED_TIME) {
                self.want(&mut state);
            }
        }
        // The thread does it itself if it has the outbox now.
        if let Some(mut outbox) = self.outbox.try_lock() {
            outbox.tell_if_due();
        }
    }

    /// Lets the thread end when it has synced what was left, and the indexer after that.
    pub(super) fn close(&self) {
        self.state.lock().is_closed = true;
        self.wanted.notify_one();
        self.room.notify_one();
    }

    /// What the thread does until the stage is closed.
    ///
    /// # Errors
    /// A sync has failed.
    pub(super) fn run(&self) -> Result<(), StoreFailure> {
        let mut tell_at = None;
        loop {
            let (is_wanted, is_closed) = self.wait(tell_at);
            if self.shared.first_failure.get().is_some() {
                // After a failed write a sync that succeeds promises nothing, and this is no orderly end.
                return Ok(());
            }
            let mut outbox = self.outbox.lock();
            if is_wanted || is_closed {
                let left = {
                    let mut state = self.state.lock();
                    let left = state.take();
                    state.under_way = left.bytes;
                    left
                };
                let frames = self.sync_files(left)?;
                outbox.note(frames);
                self.state.lock().under_way = 0;
                self.room.notify_one();
            }
            if is_closed {
                outbox.tell(Work::End);
                return Ok(());
            }
            outbox.tell_if_due();
            tell_at = outbox.tell_at();
        }
    }

    fn want(&self, state: &mut State) {
        state.is_wanted = true;
        self.wanted.notify_one();
    }

    /// Waits until a sync is wanted or the stage is closed, or until `deadline`; tells which of the two it was.
    fn wait(&self, deadline: Option<Instant>) -> (bool, bool) {
        let mut state = self.state.lock();
        while !state.is_wanted && !state.is_closed {
            match deadline {
                None => self.wanted.wait(&mut state),
                Some(deadline) if self.wanted.wait_until(&mut state, deadline).timed_out() => break,
                Some(_) => {}
            }
        }
        (state.is_wanted, state.is_closed)
    }

    /// Returns what the index is to be told. The caller holds the outbox.
    ///
    /// The operating system tells of a failed sync once. So the store has failed before anyone else gets the outbox, and
    /// what is synced after that, as if nothing were missing, is not taken for durable.
    fn sync_files(&self, unsynced: Unsynced) -> Result<Vec<SyncedFrame>, StoreFailure> {
        self.shared.go_on()?;
        for segment in &unsynced.segments {
            segment.file().sync().map_err(|error| {
                let failure = failure(segment.path().to_path_buf(), "syncing", &error);
                self.shared.fail(failure.clone());
                failure
            })?;
        }
        if let Some(frame) = unsynced.frames.last() {
            self.synced.store(frame.position.sequence, Ordering::Release);
        }
        FailPoint::Synced.pass();
        Ok(unsynced.frames)
    }
}

impl State {
    fn take(&mut self) -> Unsynced {
        self.since = None;
        self.is_wanted = false;
        std::mem::take(&mut self.left)
    }
}

impl Synced<'_> {
    /// Lets the index hear of it before long.
    pub(super) fn note(mut self) {
        let frames = std::mem::take(&mut self.frames);
        self.outbox.note(frames);
    }

    /// Tells the indexer to do something after that.
    pub(super) fn tell(mut self, work: Work) {
        let frames = std::mem::take(&mut self.frames);
        self.outbox.note(frames);
        self.outbox.tell(work);
    }
}

impl Outbox {
    fn note(&mut self, frames: Vec<SyncedFrame>) {
        if frames.is_empty() {
            return;
        }
        self.bytes += frames.iter().map(|frame| frame.length).sum::<u64>();
        self.since.get_or_insert_with(Instant::now);
        self.frames.extend(frames);
    }

    fn tell_at(&self) -> Option<Instant> {
        self.since.map(|since| since + UNTOLD_TIME)
    }

    fn tell_if_due(&mut self) {
        if self.frames.len() >= UNTOLD_FRAMES
            || self.bytes >= UNTOLD_BYTES
            || self.tell_at().is_some_and(|at| at <= Instant::now())
        {
            self.tell_frames();
        }
    }

    fn tell_frames(&mut self) {
        (self.bytes, self.since) = (0, None);
        let frames = std::mem::take(&mut self.frames);
        if !frames.is_empty() {
            self.send(Work::Frames(frames));
        }
    }

    /// Tells the indexer to do something, after everything that has been synced.
    fn tell(&mut self, work: Work) {
        self.tell_frames();
        self.send(work);
    }

    fn send(&self, work: Work) {
        // An indexer that is gone has stopped the store: what it was to do is lost with it.
        let _ = self.work.send(work);
    }
}
