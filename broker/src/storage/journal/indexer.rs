//! The thread that keeps the index: it enters what has been synced, lets go of memory, and finds segments that can be
//! used again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::fail_point::FailPoint;
use super::frame::Entry;
use super::index::{Changes, Placed};
use super::keys::Position;
use super::rewrite::Usage;
use super::writer::Reply;
use super::{Shared, tail};
use crate::storage::{CheckpointEntry, StorageError, StoreFailure};

/// Groups of frames that may wait to be indexed; then the writer waits.
const MAX_WAITING: usize = 64;

/// Journal bytes that the index on disk may lag behind: what a start after a crash has to replay. Checkpoints come before
/// that ([`CHECKPOINT_BYTES`](crate::storage::CHECKPOINT_BYTES)), unless they are held up.
const MAX_REPLAY_BYTES: u64 = 448 << 20;

/// Time between two looks for memory that nobody needs.
const RELEASE_INTERVAL: Duration = Duration::from_millis(2_500);

/// What the indexer can be told to do.
#[derive(Debug)]
pub(super) enum Work {
    /// Enter the entries of synced frames.
    Frames(Vec<SyncedFrame>),
    /// Everything told before is done.
    Answer(Reply),
    /// Keep this about logs, each with the metadata index at which it existed, and make the index durable.
    Checkpoint { entries: Vec<(CheckpointEntry, u64)>, reply: Reply },
    /// Nothing follows: note that the journal ended in good order.
    End,
}

/// A frame that a power failure cannot take away any more.
#[derive(Debug)]
pub(super) struct SyncedFrame {
    pub(super) entries: Vec<Placed>,
    /// Where the journal stands after it.
    pub(super) position: Position,
    /// Bytes that it takes in the journal, which are whole blocks.
    pub(super) length: u64,
}

impl SyncedFrame {
    fn has(&self, what: impl Fn(&Entry) -> bool) -> bool {
        self.entries.first().is_some_and(|placed| what(&placed.entry))
    }

    /// Whether `next` can be entered in one step with this one: appends do not look at what is there.
    fn joins(&self, next: &Self) -> bool {
        let is_append = |entry: &Entry| matches!(entry, Entry::Append(..));
        self.has(is_append) && next.has(is_append) && self.position.segment == next.position.segment
    }
}

/// Starts the indexer; the index on the disk is at `flushed`. It ends when nobody can tell it anything any more.
pub(super) fn spawn(
    shared: Arc<Shared>,
    changes: Changes,
    flushed: Position,
) -> io::Result<(SyncSender<Work>, JoinHandle<()>)> {
    let (sender, work) = sync_channel(MAX_WAITING);
    let thread = thread::Builder::new().name("journal-indexer".to_owned()).spawn(move || {
        let released = Instant::now();
        let indexer = Indexer { flushed, since_flush: 0, released, changes, shared: Arc::clone(&shared) };
        let outcome = catch_unwind(AssertUnwindSafe(|| indexer.run(&work)));
        let reason = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_panic) => "the indexer thread panicked".to_owned(),
        };
        shared.fail(StoreFailure { path: shared.index_path.clone(), doing: "indexing", reason });
        // The writer must not wait for room that never comes.
        while work.recv().is_ok() {}
    })?;
    Ok((sender, thread))
}

struct Indexer {
    shared: Arc<Shared>,
    changes: Changes,
    /// Position up to which the index is on the disk.
    flushed: Position,
    since_flush: u64,
    /// When memory that nobody needs was last let go of.
    released: Instant,
}

impl Indexer {
    fn run(mut self, work: &Receiver<Work>) -> Result<(), StorageError> {
        self.retire();
        while let Some(work) = self.next(work) {
            match work {
                Work::Frames(frames) => {
                    frames.chunk_by(SyncedFrame::joins).try_for_each(|group| self.enter(group))?;
                }
                Work::Answer(reply) => answer(&reply),
                Work::Checkpoint { entries, reply } => {
                    let kept =
                        entries.into_iter().map(|(entry, known_at)| (entry.partition, entry.state, known_at));
                    self.shared.index.keep(&mut self.changes, kept)?;
                    self.flush()?;
                    answer(&reply);
                }
                Work::End => {
                    FailPoint::Ending.pass();
                    self.shared.space.make_room();
                    self.shared.index.end_at(self.changes.position)?;
                    FailPoint::Ended.pass();
                }
            }
        }
        Ok(())
    }

    /// Waits for something to do, and lets go of memory now and then; `None` when nothing comes any more.
    fn next(&mut self, work: &Receiver<Work>) -> Option<Work> {
        loop {
            if self.released.elapsed() >= RELEASE_INTERVAL {
                self.release();
            }
            match work.recv_timeout(RELEASE_INTERVAL) {
                Ok(work) => return Some(work),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn release(&mut self) {
        let Shared { tail, pool, reads, .. } = &*self.shared;
        let now = Instant::now();
        tail.trim(now, pool);
        pool.release_unused(now, tail::KEPT_FOR);
        reads.release_unused(now);
        self.released = now;
    }

    /// Enters frames that can be entered in one step.
    fn enter(&mut self, frames: &[SyncedFrame]) -> Result<(), StorageError> {
        let Some(last) = frames.last() else { return Ok(()) };
        // A frame holds moves or none.
        let moves = last.has(|entry| matches!(entry, Entry::Move(..)));
        if moves {
            FailPoint::MoveSynced.pass();
        }
        let entries = frames.iter().flat_map(|frame| &frame.entries);
        self.shared.index.apply(&mut self.changes, entries, last.position)?;
        if moves {
            FailPoint::MoveIndexed.pass();
        }
        self.shared.tail.indexed(last.position.sequence);
        self.shared.tail.trim(Instant::now(), &self.shared.pool);
        self.since_flush += frames.iter().map(|frame| frame.length).sum::<u64>();
        if self.since_flush > MAX_REPLAY_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        let position = self.changes.position;
        FailPoint::BeforeFlush.pass();
        self.shared.space.make_room();
        self.shared.index.flush()?;
        FailPoint::Flushed.pass();
        (self.flushed, self.since_flush) = (position, 0);
        self.retire();
        Ok(())
    }

    /// Lets segments be used again that hold nothing, now and in every state that the index can come back to, and says
    /// what is left in the others.
    fn retire(&self) {
        let live = &self.changes.live;
        let before = self.flushed.segment;
        self.shared.segments.retire(|id| id < before && !live.contains_key(&id));
        let full = self.shared.segments.lengths().into_iter().filter(|(segment, _)| *segment < before);
        let usage = full.map(|(segment, length)| {
            let live = live.get(&segment).copied().unwrap_or_default();
            Usage { segment, length, live }
        });
        *self.shared.usage.lock() = usage.collect();
    }
}

fn answer(reply: &Reply) {
    // Whoever asked may have gone away: then nobody needs the answer.
    let _ = reply.send(Ok(()));
}
