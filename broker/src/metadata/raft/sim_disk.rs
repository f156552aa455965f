//! A disk of the metadata log in memory, for simulations: what was not synced is lost with the machine.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::disk::{Disk, Write, Writes};
use super::keys;
use crate::simulation::drive::Drive;

thread_local! {
    static DISKS: RefCell<BTreeMap<PathBuf, Arc<SimRaftDisk>>> = const { RefCell::new(BTreeMap::new()) };
}

/// The simulated disk that stands for `directory`, if there is one.
pub(super) fn of(directory: &Path) -> Option<Arc<SimRaftDisk>> {
    DISKS.with_borrow(|disks| disks.get(directory).cloned())
}

/// Content of a disk by key.
type Content = BTreeMap<Vec<u8>, Bytes>;

/// See the module documentation.
pub(crate) struct SimRaftDisk {
    drive: Arc<Drive>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What is read.
    written: Content,
    synced: Content,
    unsynced: Vec<Writes>,
    /// On its way to the disk.
    under_way: Option<Writes>,
}

impl SimRaftDisk {
    /// An empty disk that stands for `directory` from now on.
    pub(crate) fn insert(directory: &Path, drive: Arc<Drive>) -> Arc<Self> {
        let disk = Arc::new(Self { drive, state: Mutex::default() });
        DISKS.with_borrow_mut(|disks| disks.insert(directory.to_owned(), Arc::clone(&disk)));
        disk
    }

    /// Time that the next sync takes.
    pub(super) fn sync_time(&self) -> Duration {
        self.drive.sync_time()
    }

    /// These are about to be written.
    pub(super) fn begin(&self, writes: Writes) {
        self.state.lock().under_way = Some(writes);
    }

    /// Whether the value of a key would survive any crash.
    pub(super) fn has_synced(&self, key: &[u8]) -> bool {
        self.state.lock().synced.contains_key(key)
    }

    /// The process ends; the machine goes on.
    pub(crate) fn process_ends(&self) {
        let mut state = self.state.lock();
        if let Some(writes) = state.under_way.take().filter(|_| self.drive.toss()) {
            apply(&mut state.written, &writes);
            state.unsynced.push(writes);
        }
    }

    /// The machine loses power: some of what was not synced is lost, the latest first.
    pub(crate) fn power_fails(&self) {
        self.process_ends();
        let mut state = self.state.lock();
        let kept = self.drive.up_to(state.unsynced.len());
        for writes in std::mem::take(&mut state.unsynced).into_iter().take(kept) {
            apply(&mut state.synced, &writes);
        }
        state.written = state.synced.clone();
    }
}

fn apply(content: &mut Content, writes: &Writes) {
    for write in &writes.list {
        match write {
            Write::Put { key, value } => _ = content.insert(key.clone(), value.clone()),
            Write::DeleteRange { start, end } => content.retain(|key, _| key < start || key >= end),
        }
    }
}

impl Disk for SimRaftDisk {
    fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        Ok(self.state.lock().written.get(key).cloned())
    }

    fn last_entry(&self) -> io::Result<Option<Bytes>> {
        let end = keys::entry(u64::MAX).to_vec();
        let state = self.state.lock();
        let last = state.written.range(..=end).next_back();
        Ok(last.filter(|(key, _)| keys::entry_index(key).is_some()).map(|(_, value)| value.clone()))
    }

    fn scan(&self, start: u64, end: u64, limit: usize) -> io::Result<(Vec<Bytes>, bool)> {
        let state = self.state.lock();
        let range = keys::entry(start).to_vec()..keys::entry(end).to_vec();
        let (mut entries, mut size) = (Vec::new(), 0);
        for (_, value) in state.written.range(range) {
            size += value.len();
            if size > limit && !entries.is_empty() {
                return Ok((entries, false));
            }
            entries.push(value.clone());
        }
        Ok((entries, true))
    }

    fn write(&self, writes: Writes, synced: bool) -> io::Result<()> {
        let mut state = self.state.lock();
        state.under_way = None;
        apply(&mut state.written, &writes);
        state.unsynced.push(writes);
        if synced {
            state.unsynced.clear();
            state.synced = state.written.clone();
        }
        Ok(())
    }
}
