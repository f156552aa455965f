//! What the log store needs of a disk, and RocksDB as one.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, Direction, IteratorMode, LogLevel,
    Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::keys;
use crate::volume::KeptSpace;

/// The log is small: two write buffers of this size are most of what it keeps in memory.
const WRITE_BUFFER_BYTES: usize = 4 << 20;
const BLOCK_CACHE_BYTES: usize = 1 << 20;

/// Keeps the keys of [`super::keys`]. Everything blocks.
pub(super) trait Disk: Send + Sync + 'static {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>>;

    /// The entry with the greatest index.
    fn last_entry(&self) -> io::Result<Option<Bytes>>;

    /// Entries from `start` to before `end`, at least one if there is one and no more than `limit` bytes otherwise, and
    /// whether that is all of them.
    fn scan(&self, start: u64, end: u64, limit: usize) -> io::Result<(Vec<Bytes>, bool)>;

    /// Writes all or, if a crash comes in between, nothing of it. With `synced` this and everything before it survives
    /// any crash when this returns; what is not synced may be lost, the latest first.
    fn write(&self, writes: Writes, synced: bool) -> io::Result<()>;
}

/// Changes that are written at once, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Writes {
    pub(super) list: Vec<Write>,
    bytes: usize,
}

/// One change.
#[derive(Clone, Debug)]
pub(super) enum Write {
    Put {
        key: Vec<u8>,
        value: Bytes,
    },
    /// Up to before `end`.
    DeleteRange {
        start: Vec<u8>,
        end: Vec<u8>,
    },
}

impl Writes {
    pub(super) fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Bytes>) {
        let (key, value) = (key.into(), value.into());
        self.bytes += key.len() + value.len();
        self.list.push(Write::Put { key, value });
    }

    pub(super) fn delete_range(&mut self, start: impl Into<Vec<u8>>, end: impl Into<Vec<u8>>) {
        self.list.push(Write::DeleteRange { start: start.into(), end: end.into() });
    }

    pub(super) fn size_in_bytes(&self) -> usize {
        self.bytes
    }
}

/// See the module documentation.
pub(super) struct RocksDisk {
    db: DB,
    kept_space: Arc<KeptSpace>,
}

impl RocksDisk {
    /// Opens or makes the database in `directory`, which is on the volume that keeps that space.
    pub(super) fn open(directory: &Path, kept_space: Arc<KeptSpace>) -> io::Result<Self> {
        let db = kept_space.with_room(|| DB::open(&options(), directory)).map_err(io::Error::other)?;
        Ok(Self { db, kept_space })
    }
}

impl Disk for RocksDisk {
    fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        let value = self.db.get_opt(key, &read_options()).map_err(io::Error::other)?;
        Ok(value.map(Bytes::from))
    }

    fn last_entry(&self) -> io::Result<Option<Bytes>> {
        let end = keys::entry(u64::MAX);
        let mut backward = self.db.iterator_opt(IteratorMode::From(&end, Direction::Reverse), read_options());
        let last = backward.next().transpose().map_err(io::Error::other)?;
        let entry = last.filter(|(key, _)| keys::entry_index(key).is_some());
        Ok(entry.map(|(_, value)| value.into_vec().into()))
    }

    fn scan(&self, start: u64, end: u64, limit: usize) -> io::Result<(Vec<Bytes>, bool)> {
        let first = keys::entry(start);
        let mut options = read_options();
        options.set_iterate_upper_bound(keys::entry(end).to_vec());
        let mut entries = Vec::new();
        let mut size = 0;
        for item in self.db.iterator_opt(IteratorMode::From(&first, Direction::Forward), options) {
            let (_, value) = item.map_err(io::Error::other)?;
            size += value.len();
            if size > limit && !entries.is_empty() {
                return Ok((entries, false));
            }
            entries.push(Bytes::from(value.into_vec()));
        }
        Ok((entries, true))
    }

    fn write(&self, writes: Writes, synced: bool) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        for write in writes.list {
            match write {
                Write::Put { key, value } => batch.put(key, value),
                Write::DeleteRange { start, end } => batch.delete_range(start, end),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(synced);
        // RocksDB does not try again what it could not write.
        self.kept_space.make_room();
        self.db.write_opt(batch, &options).map_err(io::Error::other)
    }
}

pub(super) fn options() -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(2);
    options.set_max_total_wal_size(4 * u64::try_from(WRITE_BUFFER_BYTES).unwrap_or(u64::MAX));
    options.set_max_open_files(32);
    options.set_max_background_jobs(2);
    // A torn record at the end was never acknowledged; anything else that does not read is damage, and refused.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_keep_log_file_num(2);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

fn read_options() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_verify_checksums(true);
    options
}
