//! The thread that writes the journal: group commit.
//!
//! It takes everything that has queued up, lays it out by log in frames, writes them one after the other, syncs once,
//! and only then moves the durable ends. While that is on the disk the next commit fills up, so load makes commits
//! larger, and nobody ever waits for a timer; between two commits under load other threads go first where there is no
//! free core for them.
//!
//! A frame holds appends, or moves of runs, or one other entry; never a mix, and no log twice in one but as runs that
//! follow each other. That is what lets the index apply a frame as one step.
//!
//! Logs with `log.durability=written` do not wait for the sync. What they have written is synced with the next commit
//! that is, or by a thread of its own when it becomes much or after a while. The index hears of a frame when it has been
//! synced, so that it never knows of something that a power failure can still take away.

mod layout;
mod queue;
mod sync;

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::Shared;
use super::buffer::{AlignedBuffer, padded};
use super::fail_point::FailPoint;
use super::frame::{self, Entry, FrameHeader, HEADER_LEN, MAX_ENTRY_LEN, Run};
use super::index::Placed;
use super::indexer::{SyncedFrame, Work};
use super::keys::Position;
use super::log::JournalLog;
use super::segments::Segment;
use crate::metadata::image::TopicIdPartition;
use crate::storage::{AppendBatch, Durability, StoreFailure, Wakes, batch};

use layout::{Layout, Piece};
use queue::Taken;
pub(super) use queue::{Command, Queue, Reply};
use sync::{SyncStage, Unsynced};

/// Most bytes of batches in a commit, unless one has more.
pub(super) const COMMIT_BYTES: usize = 8 << 20;

/// Most bytes of a frame, and never more than a quarter of a segment; a single larger batch has a frame of its own.
const FRAME_BYTES: usize = 1 << 20;

/// Bytes after which a log's batches in a frame become another run: the index finds runs, so a reader that wants little
/// need not read more than this beside it.
pub(super) const RUN_BYTES: usize = 128 << 10;

/// Frames and batches below this are small, bytes: they cost by the number, not by the byte.
const SMALL_BYTES: usize = 16 << 10;

/// Zeros written ahead of small frames. The first write to a new block of a file makes the file system note that the
/// block is in use, and the sync then has to wait for that note too; so many small frames share one.
const ZEROS_AHEAD: usize = 256 << 10;

/// Most bytes written without a sync, but for the commit with which it is reached.
pub(super) const MAX_UNSYNCED_BYTES: u64 = 32 << 20;

/// Starts the writer, which goes on behind `position` with frames from the sequence `next` on. It ends when the queue is
/// closed, and lets the indexer end.
pub(super) fn spawn(
    shared: Arc<Shared>,
    work: SyncSender<Work>,
    position: Position,
    next: u64,
) -> io::Result<JoinHandle<()>> {
    let stage = Arc::new(SyncStage::new(Arc::clone(&shared), work, position.sequence));
    let syncer = {
        let (shared, stage) = (Arc::clone(&shared), Arc::clone(&stage));
        thread::Builder::new().name("journal-syncer".to_owned()).spawn(move || {
            watch(&shared, "syncing", || stage.run());
            // Nobody makes room any more.
            stage.close();
        })?
    };
    thread::Builder::new().name("journal-writer".to_owned()).spawn(move || {
        let active = shared.segments.get(position.segment).map(|segment| Active {
            segment,
            end: position.end,
            in_use: position.end,
        });
        let writer = Writer {
            active,
            zeros: AlignedBuffer::zeroed(ZEROS_AHEAD),
            next,
            last: position.sequence,
            unsynced: Unsynced::default(),
            table: Vec::new(),
            frame_bytes: usize::try_from(shared.segments.segment_bytes() / 4)
                .map_or(FRAME_BYTES, |quarter| quarter.min(FRAME_BYTES)),
            stage: Arc::clone(&stage),
            shared: Arc::clone(&shared),
        };
        watch(&shared, "writing", || writer.run());
        stage.close();
        // A thread that panicked has reported a failure already.
        let _ = syncer.join();
    })
}

/// Does what a thread is for, and stops the store if it fails or panics: it would accept appends that never complete.
fn watch(shared: &Shared, doing: &'static str, run: impl FnOnce() -> Result<(), StoreFailure>) {
    let failure = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => return,
        Ok(Err(failure)) => failure,
        Err(_panic) => {
            let path = shared.segments.directory().to_path_buf();
            StoreFailure { path, doing, reason: "the thread panicked".to_owned() }
        }
    };
    shared.fail(failure);
}

struct Writer {
    shared: Arc<Shared>,
    stage: Arc<SyncStage>,
    active: Option<Active>,
    zeros: AlignedBuffer,
    /// Sequence of the next frame.
    next: u64,
    /// Sequence of the last frame.
    last: u64,
    /// What has been written and not handed to the stage.
    unsynced: Unsynced,
    table: Vec<u8>,
    frame_bytes: usize,
}

/// The segment that is being written.
struct Active {
    segment: Arc<Segment>,
    /// Where its next frame goes.
    end: u64,
    /// Up to where the file system knows its blocks to be in use.
    in_use: u64,
}

/// Appends of one log within one commit.
struct Pending {
    log: Arc<JournalLog>,
    durability: Durability,
    batches: Vec<AppendBatch>,
}

/// A run of a commit, after it was written.
pub(super) struct Written {
    pub(super) run: Run,
    pub(super) bytes: Bytes,
    /// Sequence of the frame that holds it.
    pub(super) sequence: u64,
}

impl Writer {
    fn run(mut self) -> Result<(), StoreFailure> {
        loop {
            match self.shared.queue.take(self.stage.look_at(), COMMIT_BYTES) {
                Taken::Commands(commands) => {
                    let is_crowded = are_many_and_small(&commands);
                    self.execute(commands)?;
                    if is_crowded {
                        // Whoever was answered sends the next requests now. Where a core is shared, a writer that went
                        // on at once would cut in on the threads that receive them, and write them one by one.
                        thread::yield_now();
                    }
                }
                Taken::TimedOut => {}
                Taken::Closed => return Ok(()),
            }
            self.stage.look();
        }
    }

    fn execute(&mut self, commands: Vec<Command>) -> Result<(), StoreFailure> {
        let mut pending: Vec<Pending> = Vec::new();
        let mut by_log: HashMap<u64, usize> = HashMap::new();
        let mut admissions = Vec::new();
        for command in commands {
            match command {
                Command::Append { log, batch, admission } => {
                    let at = *by_log.entry(log.id()).or_insert_with(|| {
                        let durability = log.durability();
                        pending.push(Pending { log, durability, batches: Vec::new() });
                        pending.len() - 1
                    });
                    pending[at].batches.push(batch);
                    admissions.push(admission);
                }
                other => {
                    by_log.clear();
                    self.commit(std::mem::take(&mut pending))?;
                    admissions.clear();
                    self.control(other)?;
                }
            }
        }
        self.commit(pending)
    }

    fn control(&mut self, command: Command) -> Result<(), StoreFailure> {
        let then = match command {
            Command::Append { .. } => unreachable!("appends are committed in groups"),
            Command::Sync { reply } => Work::Answer(reply),
            Command::Change { entries, reply } => {
                // They may also take the life out of segments.
                let (_, _, frame, _) = self.write_frame(&entries, &mut std::iter::empty(), Way::Direct)?;
                self.shared.appended.add(frame.len() as u64);
                Work::Answer(reply)
            }
            Command::Move { runs, reply } => {
                self.write_moves(&runs)?;
                FailPoint::MoveWritten.pass();
                Work::Answer(reply)
            }
            Command::Replace { pieces, reply } => {
                for (entry, bytes) in &pieces {
                    let data = Piece { bytes, stamp: None };
                    let (_, _, frame, _) = self.write_frame(
                        std::slice::from_ref(entry),
                        &mut std::iter::once(data),
                        Way::Direct,
                    )?;
                    self.shared.appended.add(frame.len() as u64);
                }
                Work::Answer(reply)
            }
            Command::Checkpoint { entries, reply } => Work::Checkpoint { entries, reply },
        };
        self.stage.sync(std::mem::take(&mut self.unsynced))?.tell(then);
        Ok(())
    }

    fn write_moves(&mut self, runs: &[(TopicIdPartition, Run, Bytes)]) -> Result<(), StoreFailure> {
        let mut rest = runs;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |(_, _, data): &&(TopicIdPartition, Run, Bytes)| {
                bytes += data.len() + MAX_ENTRY_LEN;
                bytes <= self.frame_bytes
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (now, later) = rest.split_at(count);
            let entries: Vec<_> =
                now.iter().map(|(partition, run, _)| Entry::Move(*partition, *run)).collect();
            let mut data = now.iter().map(|(_, _, bytes)| Piece { bytes, stamp: None });
            self.write_frame(&entries, &mut data, Way::Direct)?;
            rest = later;
        }
        Ok(())
    }

    fn commit(&mut self, pending: Vec<Pending>) -> Result<(), StoreFailure> {
        if pending.is_empty() {
            return Ok(());
        }
        let needs_sync = pending.iter().any(|pending| pending.durability == Durability::Fsync);
        let way = if needs_sync { Way::Direct } else { Way::Cached };
        let mut written: HashMap<u64, Vec<Written>> = HashMap::new();
        let mut layout = Layout::default();
        for Pending { log, batches, .. } in &pending {
            // Deleted since: nobody waits for these.
            if log.is_gone() {
                continue;
            }
            for batch in batches {
                if layout.bytes > 0 && layout.bytes + layout.cost(log, batch) > self.frame_bytes {
                    self.write_appends(std::mem::take(&mut layout), way, &mut written)?;
                }
                layout.push(log, batch);
            }
        }
        if layout.bytes > 0 {
            self.write_appends(layout, way, &mut written)?;
        }
        let (wait, at_once): (Vec<_>, Vec<_>) =
            pending.iter().partition(|pending| pending.durability == Durability::Fsync);
        // Everything first, then everybody.
        let mut publish = |pending: Vec<&Pending>| {
            let mut wakes = Wakes::default();
            for pending in pending {
                if let Some(runs) = written.remove(&pending.log.id()) {
                    wakes.append(pending.log.publish(runs));
                }
            }
            wakes.wake_on(self.shared.runtime.as_ref());
        };
        // The other thread may have failed to sync what lies before.
        self.shared.go_on()?;
        publish(at_once);
        let unsynced = std::mem::take(&mut self.unsynced);
        if !needs_sync {
            FailPoint::Published.pass();
            self.stage.leave(unsynced);
            return Ok(());
        }
        let synced = self.stage.sync(unsynced)?;
        // Before the index hears of it: what is in the index may leave the memory, so it must have been there.
        publish(wait);
        FailPoint::Published.pass();
        synced.note();
        Ok(())
    }

    /// Writes one frame of appends.
    fn write_appends(
        &mut self,
        layout: Layout<'_>,
        way: Way,
        written: &mut HashMap<u64, Vec<Written>>,
    ) -> Result<(), StoreFailure> {
        let now_ms = now_ms();
        let mut runs = Vec::with_capacity(layout.runs.len());
        let mut entries = Vec::with_capacity(layout.runs.len());
        for planned in &layout.runs {
            let run = planned.log.place(planned.run(now_ms));
            entries.push(Entry::Append(planned.log.partition(), run));
            runs.push((planned.log, run));
        }
        let mut pieces = layout.runs.iter().flat_map(|planned| {
            planned.batches.iter().map(|batch| Piece { bytes: &batch.bytes, stamp: Some(batch) })
        });
        let (sequence, memory, frame, positions) = self.write_frame(&entries, &mut pieces, way)?;
        self.shared.appended.add(frame.len() as u64);
        let mut logs = Vec::with_capacity(runs.len());
        for ((log, run), position) in runs.into_iter().zip(positions) {
            let bytes = frame.slice(position..position + run.length as usize);
            written.entry(log.id()).or_default().push(Written { run, bytes, sequence });
            logs.push(Arc::clone(log));
        }
        self.shared.tail.push(sequence, memory, &logs);
        Ok(())
    }

    /// Writes one frame; returns its sequence, its memory as a whole and its bytes, and where in it the batches of
    /// each entry are.
    fn write_frame<'a>(
        &mut self,
        entries: &[Entry],
        pieces: &mut dyn Iterator<Item = Piece<'a>>,
        way: Way,
    ) -> Result<(u64, Bytes, Bytes, Vec<usize>), StoreFailure> {
        frame::encode_table(entries, &mut self.table);
        let data: usize = entries.iter().map(|entry| entry.data_length() as usize).sum();
        let length = HEADER_LEN + self.table.len() + data;
        let mut buffer = self.shared.pool.take(length);
        let out = buffer.as_mut_slice();
        out[HEADER_LEN..HEADER_LEN + self.table.len()].copy_from_slice(&self.table);
        let mut at = HEADER_LEN + self.table.len();
        for piece in pieces {
            let end = at + piece.bytes.len();
            out[at..end].copy_from_slice(piece.bytes);
            if let Some(batch) = piece.stamp {
                let header = &batch.header;
                batch::stamp(&mut out[at..end], header.base_offset, header.partition_leader_epoch);
            }
            at = end;
        }
        debug_assert_eq!(at, length, "the entries say how long their batches are");
        // Memory that was used before holds old bytes.
        out[length..].fill(0);
        let sequence = self.next;
        let (segment, position) = self.place(out.len())?;
        FrameHeader::seal(
            &mut out[..length],
            self.shared.volume,
            segment.id,
            sequence,
            self.last,
            self.stage.synced(),
            self.table.len(),
            entries.len(),
            segment.length(),
        );
        FailPoint::BeforeWrite.pass();
        let is_small = out.len() < SMALL_BYTES;
        let written = match way {
            Way::Cached if is_small => segment.file().write_cached_at(out, position),
            Way::Direct if is_small => self
                .zeros_ahead(&segment, position, out.len())
                .and_then(|()| segment.file().write_at(out, position)),
            _ => segment.file().write_at(out, position),
        };
        written.map_err(|error| failure(segment.path().to_path_buf(), "writing", &error))?;
        FailPoint::Written.pass();
        if position == 0 {
            FailPoint::RecycledWritten.pass();
        }
        let end = position + out.len() as u64;
        (self.last, self.next) = (sequence, sequence + 1);
        if let Some(active) = &mut self.active {
            active.end = end;
            if way == Way::Direct {
                active.in_use = active.in_use.max(end);
            }
        }

        let mut positions = Vec::with_capacity(entries.len());
        let mut placed = Vec::with_capacity(entries.len());
        let mut at = HEADER_LEN + self.table.len();
        for entry in entries {
            positions.push(at);
            let position = u32::try_from(position + at as u64).expect("segments have less than 4 GiB");
            placed.push(Placed { entry: *entry, position });
            at += entry.data_length() as usize;
        }
        let position = Position { segment: segment.id, end, sequence };
        let (memory, frame) = AlignedBuffer::freeze(buffer);
        let synced = SyncedFrame { entries: placed, position, length: frame.len() as u64 };
        self.unsynced.push(&segment, length as u64, synced);
        Ok((sequence, memory, frame, positions))
    }

    /// Where a frame of `length` bytes goes: behind the last one, or to the start of another segment.
    fn place(&mut self, length: usize) -> Result<(Arc<Segment>, u64), StoreFailure> {
        debug_assert_eq!(length, padded(length), "frames are whole blocks");
        if let Some(active) = &self.active
            && active.end + length as u64 <= active.segment.length()
        {
            return Ok((Arc::clone(&active.segment), active.end));
        }
        let begun = self.shared.segments.begin(self.next);
        let (segment, is_new) = begun.map_err(|(path, error)| failure(path, "making", &error))?;
        // A file that was used before has been written, if not to its end: then that costs a little time.
        let in_use = if is_new { 0 } else { segment.length() };
        self.active = Some(Active { segment: Arc::clone(&segment), end: 0, in_use });
        Ok((segment, 0))
    }

    /// Makes the file system note that the blocks of a small frame are in use, with many after them. Nothing lies there:
    /// frames are written from the start of a segment to its end.
    fn zeros_ahead(&mut self, segment: &Segment, position: u64, length: usize) -> io::Result<()> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if position + length as u64 <= active.in_use {
            return Ok(());
        }
        let room = usize::try_from(segment.length() - position).unwrap_or(usize::MAX);
        let zeros = &self.zeros.as_slice()[..ZEROS_AHEAD.min(room)];
        segment.file().write_at(zeros, position)?;
        active.in_use = position + zeros.len() as u64;
        Ok(())
    }
}

/// Whether these are several appends of small batches: then it is their number that costs, and the more of them share a
/// commit the better.
fn are_many_and_small(commands: &[Command]) -> bool {
    commands.len() > 1 && commands.iter().map(Command::bytes).sum::<usize>() < commands.len() * SMALL_BYTES
}

/// How a frame gets to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// At once: a sync follows.
    Direct,
    /// Through the page cache if it is small, since nobody waits until it is on the disk.
    Cached,
}

fn failure(path: PathBuf, doing: &'static str, error: &io::Error) -> StoreFailure {
    StoreFailure { path, doing, reason: error.to_string() }
}

fn now_ms() -> i64 {
    // A clock before 1970 is as wrong as one at 1970.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
