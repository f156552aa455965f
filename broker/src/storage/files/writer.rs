//! The thread that changes files: group commit of appends, and everything else that must not race with it.
//!
//! Commands are done in the order in which they were queued. Appends that follow each other without another command
//! in between form one commit: one write per log, then one sync per file touched, then all durable ends.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use parking_lot::{Condvar, Mutex};

use super::log::{Cut, FileLog, Run};
use super::{Shared, directory_name, segment, sync_directory};
use crate::metadata::image::TopicIdPartition;
use crate::storage::{Admission, AppendBatch, Durability, LogEnds, StoreFailure, batch};

/// Extension of a directory that is being deleted.
pub(super) const DELETED: &str = "deleted";

/// Most syncs under way at once. File systems commit several syncs of new data together, so that a dozen side by side
/// take little longer than one.
const MAX_PARALLEL_SYNCS: usize = 8;

/// Most logs in one commit: each needs up to two open files until it is synced, and running out of descriptors here
/// would stop the store.
const MAX_LOGS_PER_COMMIT: usize = 128;

/// Where a command's answer goes.
pub(super) type Reply<T> = SyncSender<T>;

/// What the writer can be told to do.
#[derive(Debug)]
pub(super) enum Command {
    Append {
        log: Arc<FileLog>,
        batch: AppendBatch,
        admission: Arc<Admission>,
    },
    /// Sync what has been written but not synced.
    Sync {
        reply: Reply<()>,
    },
    /// Cut a log.
    Truncate {
        log: Arc<FileLog>,
        cut: Cut,
        reply: Reply<LogEnds>,
    },
    /// Take old segments out of a log; answers with their files and bytes.
    Retain {
        log: Arc<FileLog>,
        now_ms: i64,
        until: i64,
        reply: Reply<Vec<(PathBuf, u64)>>,
    },
    /// Rename a log's directory; answers with its new name, if there is a directory.
    Delete {
        partition: TopicIdPartition,
        reply: Reply<io::Result<Option<PathBuf>>>,
    },
}

/// Commands on their way to the writer. Its length is bounded by the admissions that appends hold.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    ready: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    commands: Vec<Command>,
    closed: bool,
}

/// The queue is closed.
#[derive(Debug)]
pub(super) struct QueueClosed;

impl Queue {
    pub(super) fn push(&self, command: Command) -> Result<(), QueueClosed> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(QueueClosed);
        }
        state.commands.push(command);
        // Only the first command can find the writer asleep.
        if state.commands.len() == 1 {
            self.ready.notify_one();
        }
        Ok(())
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Takes no more commands; those queued are still done.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.ready.notify_one();
    }

    /// Takes no more commands and forgets those queued; whoever waits for an answer sees that it never comes.
    pub(super) fn close_and_drop(&self) {
        let commands = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.commands)
        };
        self.ready.notify_one();
        drop(commands);
    }

    /// Waits for commands; `None` when the queue is closed and empty.
    fn take(&self) -> Option<Vec<Command>> {
        let mut state = self.state.lock();
        while state.commands.is_empty() {
            if state.closed {
                return None;
            }
            self.ready.wait(&mut state);
        }
        Some(std::mem::take(&mut state.commands))
    }
}

/// Starts the writer. It ends when the queue is closed.
pub(super) fn spawn(shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("log-writer".to_owned()).spawn(move || {
        let path = shared.directory.clone();
        let run = || Writer { shared: Arc::clone(&shared), unsynced: HashMap::new() }.run();
        // Without its writer the store would accept appends that never complete.
        let failure = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => failure,
            Err(_panic) => {
                StoreFailure { path, doing: "writing", reason: "the writer thread panicked".to_owned() }
            }
        };
        shared.fail(failure);
    })
}

struct Writer {
    shared: Arc<Shared>,
    /// Logs with data that has been written and published but not synced (`Durability::Written`).
    unsynced: HashMap<u64, Arc<FileLog>>,
}

/// Appends of one log within one commit.
struct Pending {
    log: Arc<FileLog>,
    batches: Vec<AppendBatch>,
}

/// What a commit has written to one log.
struct Written {
    log: Arc<FileLog>,
    runs: Vec<Run>,
    file: SyncTarget,
    /// Whether the log's directory was made for this.
    new_directory: bool,
    durability: Durability,
}

/// A file or directory to be synced.
struct SyncTarget {
    file: Arc<File>,
    path: PathBuf,
}

impl Writer {
    fn run(mut self) -> Result<(), StoreFailure> {
        while let Some(commands) = self.shared.queue.take() {
            let mut pending: Vec<Pending> = Vec::new();
            let mut by_log: HashMap<u64, usize> = HashMap::new();
            let mut admissions = Vec::new();
            for command in commands {
                match command {
                    Command::Append { log, batch, admission } => {
                        let at = *by_log.entry(log.id()).or_insert_with(|| {
                            pending.push(Pending { log, batches: Vec::new() });
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
            self.commit(pending)?;
            drop(admissions);
        }
        self.sync_unsynced()
    }

    fn control(&mut self, command: Command) -> Result<(), StoreFailure> {
        // Whoever asked may have gone away: then nobody needs the answer.
        match command {
            Command::Append { .. } => unreachable!("appends are committed in groups"),
            Command::Sync { reply } => {
                self.sync_unsynced()?;
                let _ = reply.send(());
            }
            Command::Truncate { log, cut, reply } => {
                let ends = self.truncate(&log, &cut)?;
                let _ = reply.send(ends);
            }
            Command::Retain { log, now_ms, until, reply } => {
                let removed = self.retain(&log, now_ms, until)?;
                let _ = reply.send(removed);
            }
            Command::Delete { partition, reply } => {
                // Nothing was acknowledged that this could lose: the caller may try again.
                let _ = reply.send(self.rename_deleted(partition));
            }
        }
        Ok(())
    }

    fn commit(&mut self, mut pending: Vec<Pending>) -> Result<(), StoreFailure> {
        while !pending.is_empty() {
            let rest = pending.split_off(pending.len().min(MAX_LOGS_PER_COMMIT));
            self.commit_some(std::mem::replace(&mut pending, rest))?;
        }
        Ok(())
    }

    fn commit_some(&mut self, pending: Vec<Pending>) -> Result<(), StoreFailure> {
        let mut written = Vec::with_capacity(pending.len());
        for Pending { log, batches } in pending {
            // Deleted since: nobody waits for these.
            if !log.is_gone() {
                written.push(self.write(log, batches)?);
            }
        }
        if written.iter().any(|written| written.new_directory) {
            let root = open_directory(&self.shared.directory)?;
            self.sync(&root.file, &root.path)?;
        }
        let (to_sync, written): (Vec<_>, Vec<_>) =
            written.into_iter().partition(|written| written.durability == Durability::Fsync);
        self.sync_all(&sync_targets(&written)?)?;
        for written in written {
            self.unsynced.insert(written.log.id(), Arc::clone(&written.log));
            written.log.publish(written.runs, false);
        }
        self.sync_all(&sync_targets(&to_sync)?)?;
        for written in to_sync {
            self.unsynced.remove(&written.log.id());
            written.log.publish(written.runs, true);
        }
        Ok(())
    }

    /// Writes batches of one log, to new segments where needed. On return all but the last segment are synced; the
    /// directory entries of new ones are not.
    fn write(&self, log: Arc<FileLog>, batches: Vec<AppendBatch>) -> Result<Written, StoreFailure> {
        let now_ms = now_ms();
        let settings = log.settings();
        let mut runs: Vec<Run> = Vec::new();
        let mut run = log.active_run();
        let new_directory = run.is_none();
        let mut bytes = BytesMut::with_capacity(batches.iter().map(|batch| batch.bytes.len()).sum());
        for AppendBatch { bytes: batch_bytes, header } in batches {
            let size = batch_bytes.len() as u64;
            let roll = run.as_ref().is_none_or(|run| {
                let used = run.position + bytes.len() as u64;
                let too_large = used + size > settings.segment_bytes;
                let too_old = now_ms.saturating_sub(run.began_ms) > settings.segment_ms;
                used > 0 && (too_large || too_old)
            });
            if roll {
                if let Some(full) = run.take() {
                    let full = self.finish_run(&log, full, bytes.split().freeze())?;
                    let (file, path) = self.segment_file(&log, full.base_offset)?;
                    self.sync(&file, &path)?;
                    runs.push(full);
                }
                run = Some(self.begin_segment(&log, header.base_offset, now_ms)?);
            }
            let run = run.as_mut().expect("a segment was begun");
            let at = bytes.len();
            run.batches.push((run.position + at as u64, header));
            bytes.extend_from_slice(&batch_bytes);
            batch::stamp(&mut bytes[at..], header.base_offset, header.partition_leader_epoch);
        }
        let last = run.expect("a commit has at least one batch");
        let last = self.finish_run(&log, last, bytes.freeze())?;
        let (file, path) = self.segment_file(&log, last.base_offset)?;
        runs.push(last);
        let file = SyncTarget { file, path };
        Ok(Written { log, runs, file, new_directory, durability: settings.durability })
    }

    fn finish_run(&self, log: &FileLog, mut run: Run, bytes: Bytes) -> Result<Run, StoreFailure> {
        if !bytes.is_empty() {
            let (file, path) = self.segment_file(log, run.base_offset)?;
            self.shared
                .disk
                .write_at(&file, &bytes, run.position)
                .map_err(|error| failure(path, "writing", &error))?;
        }
        run.bytes = bytes;
        Ok(run)
    }

    /// Makes an empty segment. Its directory entry is not durable yet.
    fn begin_segment(&self, log: &FileLog, base_offset: i64, now_ms: i64) -> Result<Run, StoreFailure> {
        let directory = log.directory();
        let path = directory.join(segment::file_name(base_offset));
        let create = || -> io::Result<()> {
            if !directory.exists() {
                fs::create_dir(directory)?;
            }
            self.shared.handles.create((log.id(), base_offset), &path).map(drop)
        };
        create().map_err(|error| failure(path.clone(), "creating", &error))?;
        Ok(Run {
            base_offset,
            is_new: true,
            position: 0,
            began_ms: now_ms,
            bytes: Bytes::new(),
            batches: Vec::new(),
        })
    }

    fn segment_file(&self, log: &FileLog, base_offset: i64) -> Result<(Arc<File>, PathBuf), StoreFailure> {
        let path = log.directory().join(segment::file_name(base_offset));
        match self.shared.handles.get((log.id(), base_offset), &path) {
            Ok(file) => Ok((file, path)),
            Err(error) => Err(failure(path, "opening", &error)),
        }
    }

    fn sync(&self, file: &File, path: &Path) -> Result<(), StoreFailure> {
        self.shared.disk.sync(file).map_err(|error| failure(path.to_path_buf(), "syncing", &error))
    }

    fn sync_all(&self, targets: &[SyncTarget]) -> Result<(), StoreFailure> {
        if let [only] = targets {
            return self.sync(&only.file, &only.path);
        }
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), StoreFailure> {
            while let Some(one) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.sync(&one.file, &one.path)?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let helpers: Vec<_> =
                (1..targets.len().min(MAX_PARALLEL_SYNCS)).map(|_| scope.spawn(work)).collect();
            let own = work();
            // Every thread has to end well: a failed sync in any of them means data that is not on the disk.
            helpers
                .into_iter()
                .map(|helper| helper.join().expect("a sync does not panic"))
                .fold(own, Result::and)
        })
    }

    fn sync_unsynced(&mut self) -> Result<(), StoreFailure> {
        for (_, log) in self.unsynced.drain().collect::<Vec<_>>() {
            if log.is_gone() {
                continue;
            }
            if let Some(active) = log.active_run() {
                let (file, path) = self.segment_file(&log, active.base_offset)?;
                self.sync(&file, &path)?;
                log.mark_synced();
            }
        }
        Ok(())
    }

    fn truncate(&mut self, log: &Arc<FileLog>, cut: &Cut) -> Result<LogEnds, StoreFailure> {
        // Later segments first, newest of them first: a crash in between leaves a log that ends earlier, without a gap.
        for base_offset in log.segments_after(cut.segment).into_iter().rev() {
            let path = log.directory().join(segment::file_name(base_offset));
            fs::remove_file(&path).map_err(|error| failure(path.clone(), "deleting", &error))?;
        }
        self.shared.handles.forget(log.id(), |base_offset| base_offset > cut.segment);
        let (file, path) = self.segment_file(log, cut.segment)?;
        file.set_len(cut.position).map_err(|error| failure(path.clone(), "cutting", &error))?;
        self.sync(&file, &path)?;
        sync_directory(self.shared.disk.as_ref(), log.directory())
            .map_err(|error| failure(path.clone(), "syncing", &error))?;
        self.unsynced.remove(&log.id());
        Ok(log.cut(cut))
    }

    fn retain(
        &mut self,
        log: &Arc<FileLog>,
        now_ms: i64,
        until: i64,
    ) -> Result<Vec<(PathBuf, u64)>, StoreFailure> {
        if log.is_gone() {
            return Ok(Vec::new());
        }
        if log.active_is_due(now_ms, until) {
            // The active segment goes too: its successor carries the log end over a restart.
            let end_offset = log.durable_end();
            if let Some(active) = log.active_run() {
                let (file, path) = self.segment_file(log, active.base_offset)?;
                self.sync(&file, &path)?;
            }
            let run = self.begin_segment(log, end_offset, now_ms)?;
            let directory = open_directory(log.directory())?;
            self.sync(&directory.file, &directory.path)?;
            log.publish(vec![run], true);
            self.unsynced.remove(&log.id());
        }
        let removed = log.take_due_segments(now_ms, until);
        self.shared
            .handles
            .forget(log.id(), |base_offset| removed.iter().any(|(gone, _)| *gone == base_offset));
        Ok(removed
            .into_iter()
            .map(|(base_offset, size)| (log.directory().join(segment::file_name(base_offset)), size))
            .collect())
    }

    fn rename_deleted(&self, partition: TopicIdPartition) -> io::Result<Option<PathBuf>> {
        let path = self.shared.directory.join(directory_name(partition));
        if !path.exists() {
            return Ok(None);
        }
        let doomed = path.with_extension(DELETED);
        fs::rename(&path, &doomed)?;
        sync_directory(self.shared.disk.as_ref(), &self.shared.directory)?;
        Ok(Some(doomed))
    }
}

/// What has to be synced before these may be published: data where the topic asks for that, and new entries of
/// directories in any case, since without them a restart would not find the files.
fn sync_targets(written: &[Written]) -> Result<Vec<SyncTarget>, StoreFailure> {
    let mut targets = Vec::new();
    for Written { log, runs, file, durability, .. } in written {
        if *durability == Durability::Fsync {
            targets.push(SyncTarget { file: Arc::clone(&file.file), path: file.path.clone() });
        }
        if runs.iter().any(|run| run.is_new) {
            targets.push(open_directory(log.directory())?);
        }
    }
    Ok(targets)
}

fn open_directory(path: &Path) -> Result<SyncTarget, StoreFailure> {
    match File::open(path) {
        Ok(file) => Ok(SyncTarget { file: Arc::new(file), path: path.to_path_buf() }),
        Err(error) => Err(failure(path.to_path_buf(), "opening", &error)),
    }
}

fn failure(path: PathBuf, doing: &'static str, error: &io::Error) -> StoreFailure {
    StoreFailure { path, doing, reason: error.to_string() }
}

/// The age of segments is the only thing here that depends on the clock, and nothing but their size follows from it.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
