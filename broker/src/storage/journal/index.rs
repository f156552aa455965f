//! The index in RocksDB: where the runs of a log are, and what else is known of it.
//!
//! RocksDB writes no log of its own; the journal is the only one. Every change carries the journal position that it
//! belongs to, in the same atomic batch and in the same column family, so that whatever part of its memory RocksDB has
//! written when the process ends is the index as it was at some position, and replaying the journal from there
//! completes it. One thread makes all changes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBRawIterator, Direction, FlushOptions, IteratorMode,
    LogLevel, Options, ReadOptions, WriteBatch, WriteOptions,
};
use uuid::Uuid;

use super::changes::Work;
use super::frame::Entry;
use super::keys::{self, Format, LogRecord, PlacedRun, Position};
use crate::metadata::image::TopicIdPartition;
use crate::storage::{StateSnapshot, StorageError, StoredLog};

const WRITE_BUFFER_BYTES: usize = 8 << 20;
const BLOCK_CACHE_BYTES: usize = 4 << 20;

/// Reads of the index; any thread may make them.
#[derive(Debug)]
pub(super) struct Index {
    /// Gone when the store is closed, whoever still holds a log.
    db: RwLock<Option<Arc<DB>>>,
    path: PathBuf,
}

/// Changes of the index; one thread makes them.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Records of all logs.
    pub(super) logs: HashMap<TopicIdPartition, LogRecord>,
    /// Bytes of live runs by segment; segments without are not here.
    pub(super) live: HashMap<u64, u64>,
    pub(super) position: Position,
}

/// An entry of a frame that lies in `segment`, its batches at `position` there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) entry: Entry,
    pub(super) position: u32,
}

impl Index {
    /// Opens the index of a volume, or makes it; the second value says whether it was made.
    pub(super) fn open(path: &Path, volume: Uuid) -> Result<(Self, bool), StorageError> {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
        table.set_cache_index_and_filter_blocks(true);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_max_write_buffer_number(3);
        options.set_block_based_table_factory(&table);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_max_open_files(256);
        options.set_keep_log_file_num(2);
        options.set_log_level(LogLevel::Warn);
        options.set_max_background_jobs(2);
        let failed = |error: rocksdb::Error| StorageError::Damaged {
            path: path.to_path_buf(),
            position: 0,
            problem: format!("the index does not open: {error}"),
        };
        let db = DB::open(&options, path).map_err(failed)?;
        let index = Self { db: RwLock::new(Some(Arc::new(db))), path: path.to_path_buf() };
        let made = match index.get(keys::FORMAT)? {
            None => {
                let mut batch = WriteBatch::default();
                batch.put(keys::FORMAT, Format { volume }.encode());
                batch.put(keys::POSITION, Position::default().encode());
                index.write(batch)?;
                index.flush()?;
                true
            }
            Some(value) => {
                let format = Format::decode(&value)
                    .ok_or_else(|| index.damaged("its format is not one that this version knows"))?;
                if format.volume != volume {
                    let problem = format!("it belongs to volume {}, and this is {volume}", format.volume);
                    return Err(index.damaged(problem));
                }
                false
            }
        };
        Ok((index, made))
    }

    fn db(&self) -> Result<Arc<DB>, StorageError> {
        self.db.read().clone().ok_or(StorageError::Closed)
    }

    /// Closes the database. Every read and change is refused from then on.
    pub(super) fn close(&self) {
        *self.db.write() = None;
    }

    fn damaged(&self, problem: impl Into<String>) -> StorageError {
        StorageError::Damaged {
            path: self.path.clone(),
            position: 0,
            problem: format!("index: {}", problem.into()),
        }
    }

    fn failed(&self, error: rocksdb::Error) -> StorageError {
        self.damaged(error.into_string())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.db()?.get(key).map_err(|error| self.failed(error))
    }

    pub(super) fn write(&self, batch: WriteBatch) -> Result<(), StorageError> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db()?.write_opt(batch, &options).map_err(|error| self.failed(error))
    }

    /// Writes what is in memory to the disk; returns when it is durable.
    pub(super) fn flush(&self) -> Result<(), StorageError> {
        self.db()?.flush_opt(&FlushOptions::default()).map_err(|error| self.failed(error))
    }

    /// Notes that the journal ends here in good order, durably.
    pub(super) fn end_at(&self, position: Position) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        batch.put(keys::CLEAN_END, position.encode());
        self.write(batch)?;
        self.flush()
    }

    /// Whether the journal ended here in good order.
    pub(super) fn ended_at(&self, position: Position) -> Result<bool, StorageError> {
        let Some(value) = self.get(keys::CLEAN_END)? else { return Ok(false) };
        let ended = Position::decode(&value)
            .ok_or_else(|| self.damaged("the note of the last orderly end does not decode"))?;
        Ok(ended == position)
    }

    /// Notes that the store has been started once more, durably, and forgets its last orderly end. Returns how often
    /// it has been started.
    pub(super) fn start(&self) -> Result<u64, StorageError> {
        let before = match self.get(keys::STARTS)? {
            None => 0,
            Some(value) => value
                .try_into()
                .map(u64::from_be_bytes)
                .map_err(|_value| self.damaged("the number of starts does not decode"))?,
        };
        let mut batch = WriteBatch::default();
        batch.put(keys::STARTS, (before + 1).to_be_bytes());
        batch.delete(keys::CLEAN_END);
        self.write(batch)?;
        self.flush()?;
        Ok(before + 1)
    }

    /// Everything that the changing thread holds in memory.
    pub(super) fn load(&self) -> Result<Changes, StorageError> {
        let position = self.get(keys::POSITION)?.as_deref().and_then(Position::decode);
        let mut changes = Changes {
            position: position.ok_or_else(|| self.damaged("the journal position is missing"))?,
            ..Changes::default()
        };
        self.scan(&[keys::LOGS], &[keys::LOGS + 1], |key, value| {
            let partition = keys::decode_log(key)?;
            changes.logs.insert(partition, LogRecord::decode(value)?);
            Some(true)
        })?;
        self.scan(&[keys::SEGMENTS], &[keys::SEGMENTS + 1], |key, value| {
            let live = u64::from_be_bytes(value.try_into().ok()?);
            changes.live.insert(keys::decode_segment(key)?, live);
            Some(true)
        })?;
        Ok(changes)
    }

    /// All logs, with what is known of their partitions.
    pub(super) fn logs(&self) -> Result<Vec<StoredLog>, StorageError> {
        let mut logs = Vec::new();
        self.scan(&[keys::LOGS], &[keys::LOGS + 1], |key, value| {
            let known_at = LogRecord::decode(value)?.known_at;
            logs.push(StoredLog { partition: keys::decode_log(key)?, known_at });
            Some(true)
        })?;
        Ok(logs)
    }

    /// Bytes of runs that live in a segment.
    pub(super) fn live_in(&self, segment: u64) -> Result<u64, StorageError> {
        let Some(value) = self.get(&keys::segment(segment))? else { return Ok(0) };
        let value = value.try_into().map(u64::from_be_bytes);
        value.map_err(|_value| self.damaged(format!("the live bytes of segment {segment} do not decode")))
    }

    /// What is known of a log beside its runs.
    pub(super) fn log(&self, partition: TopicIdPartition) -> Result<Option<LogRecord>, StorageError> {
        let Some(value) = self.get(&keys::log(partition))? else { return Ok(None) };
        LogRecord::decode(&value)
            .map(Some)
            .ok_or_else(|| self.damaged(format!("the record of log {partition:?} does not decode")))
    }

    /// Shows keys and values from `from` up to and without `until`, as long as `visit` says so; `None` from it means
    /// that they do not decode.
    fn scan(
        &self,
        from: &[u8],
        until: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Option<bool>,
    ) -> Result<(), StorageError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(until);
        let db = self.db()?;
        for item in db.iterator_opt(IteratorMode::From(from, Direction::Forward), options) {
            let (key, value) = item.map_err(|error| self.failed(error))?;
            match visit(&key, &value) {
                Some(true) => {}
                Some(false) => break,
                None => return Err(self.damaged(format!("the value of key {key:02x?} does not decode"))),
            }
        }
        Ok(())
    }

    /// Shows the runs of a log in order, beginning with the one that holds `offset` or the first after it, as long as
    /// `visit` returns true. All of them are of one state of the index: between a look for the first and a look for the
    /// others, compaction could put one run in the place of several, and what it holds would be passed over.
    pub(super) fn runs_from(
        &self,
        partition: TopicIdPartition,
        offset: i64,
        mut visit: impl FnMut(PlacedRun) -> bool,
    ) -> Result<(), StorageError> {
        let from = keys::run(partition, offset.max(0));
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(keys::run(partition, 0));
        options.set_iterate_upper_bound(run_bound(partition));
        let db = self.db()?;
        let mut runs = db.raw_iterator_opt(options);
        let current = |runs: &DBRawIterator<'_>| match runs.item() {
            Some((key, value)) => PlacedRun::decode(value)
                .map(Some)
                .ok_or_else(|| self.damaged(format!("the value of key {key:02x?} does not decode"))),
            None => runs.status().map(|()| None).map_err(|error| self.failed(error)),
        };
        runs.seek_for_prev(&from);
        let holds = current(&runs)?.is_some_and(|placed| placed.run.last_offset >= offset);
        if !holds {
            runs.seek(&from);
        }
        while let Some(placed) = current(&runs)? {
            if !visit(placed) {
                break;
            }
            runs.next();
        }
        Ok(())
    }

    /// The run with the largest base offset up to `offset`.
    pub(super) fn run_at_or_before(
        &self,
        partition: TopicIdPartition,
        offset: i64,
    ) -> Result<Option<PlacedRun>, StorageError> {
        if offset < 0 {
            return Ok(None);
        }
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(keys::run(partition, 0));
        let key = keys::run(partition, offset);
        let db = self.db()?;
        let mut found = db.iterator_opt(IteratorMode::From(&key, Direction::Reverse), options);
        let Some(item) = found.next() else { return Ok(None) };
        let (key, value) = item.map_err(|error| self.failed(error))?;
        PlacedRun::decode(&value)
            .map(Some)
            .ok_or_else(|| self.damaged(format!("the value of key {key:02x?} does not decode")))
    }

    /// The first run of a log.
    pub(super) fn first_run(&self, partition: TopicIdPartition) -> Result<Option<PlacedRun>, StorageError> {
        let mut first = None;
        self.runs_from(partition, 0, |placed| {
            first = Some(placed);
            false
        })?;
        Ok(first)
    }

    /// The last run of a log.
    pub(super) fn last_run(&self, partition: TopicIdPartition) -> Result<Option<PlacedRun>, StorageError> {
        self.run_at_or_before(partition, i64::MAX)
    }

    /// The first run that ends at or after `from` and holds a timestamp of at least `timestamp`.
    ///
    /// The largest timestamp up to a run never falls along a log, so the place where it passes `timestamp` is found
    /// by halving; only if that is before `from` the runs are looked at one by one.
    pub(super) fn run_by_time(
        &self,
        partition: TopicIdPartition,
        timestamp: i64,
        from: i64,
    ) -> Result<Option<PlacedRun>, StorageError> {
        let Some(last) = self.last_run(partition)? else { return Ok(None) };
        if last.run.running_max_timestamp < timestamp {
            return Ok(None);
        }
        // The first run whose running maximum reaches the timestamp has base offset in (low, high].
        let (mut low, mut high) = (-1, last.run.base_offset);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.run_at_or_before(partition, middle)? {
                Some(placed) if placed.run.running_max_timestamp >= timestamp => {
                    high = placed.run.base_offset
                }
                _ => low = middle,
            }
        }
        let mut found = None;
        self.runs_from(partition, high.max(from), |placed| {
            if placed.run.max_timestamp >= timestamp {
                found = Some(placed);
            }
            found.is_none()
        })?;
        Ok(found)
    }

    /// State that the owner of a log has left.
    pub(super) fn state(&self, partition: TopicIdPartition) -> Result<Option<StateSnapshot>, StorageError> {
        let Some(value) = self.get(&keys::state(partition))? else { return Ok(None) };
        keys::decode_state(&value)
            .map(Some)
            .ok_or_else(|| self.damaged(format!("the state kept for {partition:?} does not decode")))
    }

    /// Makes the changes of a frame, or of frames of appends in one segment, in one batch with `position`, which is where
    /// the journal stands after it.
    pub(super) fn apply<'a>(
        &self,
        changes: &mut Changes,
        entries: impl IntoIterator<Item = &'a Placed>,
        position: Position,
    ) -> Result<(), StorageError> {
        let mut work = Work::new(self, changes);
        for placed in entries {
            work.entry(placed, position.segment)?;
        }
        work.finish(position)
    }

    /// Keeps what is known of logs beside their records: state of the owner, and that they existed.
    pub(super) fn keep(
        &self,
        changes: &mut Changes,
        kept: impl IntoIterator<Item = (TopicIdPartition, Option<StateSnapshot>, u64)>,
    ) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        for (partition, state, known_at) in kept {
            let Some(record) = changes.logs.get_mut(&partition) else { continue };
            // A disowned log stays so: see `LogStore::disown`.
            let known_at = Some(known_at.max(record.known_at.unwrap_or_default()));
            if record.known_at != known_at {
                record.known_at = known_at;
                batch.put(keys::log(partition), record.encode());
            }
            if let Some(state) = state {
                batch.put(keys::state(partition), keys::encode_state(&state));
            }
        }
        self.write(batch)
    }
}

/// The first key after all runs of a log.
pub(super) fn run_bound(partition: TopicIdPartition) -> Vec<u8> {
    let mut key = keys::run(partition, i64::MAX);
    key.push(0);
    key
}
