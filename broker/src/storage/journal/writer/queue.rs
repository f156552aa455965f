//! What the writer is told to do.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::super::frame::{Entry, Run};
use super::super::log::JournalLog;
use crate::metadata::image::TopicIdPartition;
use crate::storage::{Admission, AppendBatch, CheckpointEntry, StorageError};

/// Where a command's answer goes.
pub(in super::super) type Reply = SyncSender<Result<(), StorageError>>;

/// What the writer can be told to do. An answer comes when the index has done its part.
#[derive(Debug)]
pub(in super::super) enum Command {
    Append {
        log: Arc<JournalLog>,
        batch: AppendBatch,
        admission: Arc<Admission>,
    },
    /// Sync what has been written, and let the index catch up.
    Sync {
        reply: Reply,
    },
    /// Write entries that have no batches, each of a log of its own.
    Change {
        entries: Vec<Entry>,
        reply: Reply,
    },
    /// Write runs in a new place. Answered when they are there; the moves that have become pointless are left out.
    Move {
        runs: Vec<(TopicIdPartition, Run, Bytes)>,
        reply: Reply,
    },
    /// Write entries, each in a frame of its own, with the bytes that belong to it; the index takes them one after the
    /// other.
    Replace {
        pieces: Vec<(Entry, Bytes)>,
        reply: Reply,
    },
    /// Sync, let the index keep this about logs, and make the index durable.
    Checkpoint {
        entries: Vec<(CheckpointEntry, u64)>,
        reply: Reply,
    },
}

impl Command {
    /// Bytes of the batch that it appends.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Append { batch, .. } => batch.bytes.len(),
            _ => 0,
        }
    }
}

/// Commands on their way to the writer. Its length is bounded by the admissions that appends hold.
#[derive(Debug, Default)]
pub(in super::super) struct Queue {
    state: Mutex<QueueState>,
    ready: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    commands: Vec<Command>,
    /// Bytes of the batches that they append.
    bytes: usize,
    closed: bool,
}

/// The queue is closed.
#[derive(Debug)]
pub(in super::super) struct QueueClosed;

/// What came of waiting for commands.
pub(super) enum Taken {
    Commands(Vec<Command>),
    TimedOut,
    Closed,
}

impl Queue {
    pub(in super::super) fn push(&self, command: Command) -> Result<(), QueueClosed> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(QueueClosed);
        }
        state.bytes += command.bytes();
        state.commands.push(command);
        // Only the first command can find the writer asleep.
        if state.commands.len() == 1 {
            self.ready.notify_one();
        }
        Ok(())
    }

    pub(in super::super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Takes no more commands; those queued are still done.
    pub(in super::super) fn close(&self) {
        self.state.lock().closed = true;
        self.ready.notify_one();
    }

    /// Takes no more commands and forgets those queued; whoever waits for an answer sees that it never comes.
    pub(in super::super) fn close_and_drop(&self) {
        let commands = {
            let mut state = self.state.lock();
            state.closed = true;
            state.take(usize::MAX)
        };
        self.ready.notify_one();
        drop(commands);
    }

    /// Waits for commands until `deadline`. Takes the oldest, all that append at most `max_bytes` together or one that
    /// appends more.
    pub(super) fn take(&self, deadline: Option<Instant>, max_bytes: usize) -> Taken {
        let mut state = self.state.lock();
        loop {
            if !state.commands.is_empty() {
                return Taken::Commands(state.take(max_bytes));
            }
            if state.closed {
                return Taken::Closed;
            }
            match deadline {
                None => self.ready.wait(&mut state),
                Some(deadline) if self.ready.wait_until(&mut state, deadline).timed_out() => {
                    return Taken::TimedOut;
                }
                Some(_) => {}
            }
        }
    }
}

impl QueueState {
    fn take(&mut self, max_bytes: usize) -> Vec<Command> {
        if self.bytes <= max_bytes {
            self.bytes = 0;
            return std::mem::take(&mut self.commands);
        }
        let mut bytes = 0;
        let fits = |command: &&Command| {
            bytes += command.bytes();
            bytes <= max_bytes
        };
        let count = self.commands.iter().take_while(fits).count().max(1);
        let later = self.commands.split_off(count);
        let now = std::mem::replace(&mut self.commands, later);
        self.bytes -= now.iter().map(Command::bytes).sum::<usize>();
        now
    }
}
