//! A disk that can be held: writes and syncs wait, so that what is queued does not become durable. It can also say that it
//! is full, and fail a sync, which it does not tell of again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

use super::disk::{Disk, DiskFile, OsDisk};
use crate::storage::conformance::Held;
use crate::volume::Space;

/// See the module documentation. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeldDisk {
    disk: Arc<OsDisk>,
    gate: Arc<Gate>,
    full: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Writes, and syncs, that have got here, held or not.
    writes: AtomicUsize,
    syncs: AtomicUsize,
    fail_sync: AtomicBool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    SyncsHeld,
    Held,
    Lost,
}

#[derive(Debug)]
struct File {
    file: Arc<dyn DiskFile>,
    gate: Arc<Gate>,
}

/// Holds a disk until it is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    gate: Arc<Gate>,
}

impl HeldDisk {
    /// From now on writes and syncs wait.
    pub(crate) fn hold(&self) -> Hold {
        self.gate.set(State::Held);
        Hold { gate: Arc::clone(&self.gate) }
    }

    /// From now on syncs wait.
    pub(crate) fn hold_syncs(&self) -> Hold {
        self.gate.set(State::SyncsHeld);
        Hold { gate: Arc::clone(&self.gate) }
    }

    /// Whether it says from now on that it is full.
    pub(crate) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    /// The next sync that goes on fails; those after it do not.
    pub(crate) fn fail_next_sync(&self) {
        self.gate.fail_sync.store(true, Ordering::SeqCst);
    }

    /// Writes, and syncs, that were begun.
    pub(crate) fn begun(&self) -> (usize, usize) {
        (self.gate.writes.load(Ordering::SeqCst), self.gate.syncs.load(Ordering::SeqCst))
    }

    fn wrap(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(File { file, gate: Arc::clone(&self.gate) })
    }
}

impl Held for Hold {
    fn lose_power(self: Box<Self>) {
        self.gate.set(State::Lost);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if *self.gate.state.lock() != State::Lost {
            self.gate.set(State::Open);
        }
    }
}

impl Gate {
    fn set(&self, state: State) {
        *self.state.lock() = state;
        self.changed.notify_all();
    }

    fn pass(&self, holding: &[State]) -> io::Result<()> {
        let mut state = self.state.lock();
        self.changed.wait_while(&mut state, |state| holding.contains(state));
        if *state == State::Lost { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }
}

impl Disk for HeldDisk {
    fn files(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk.files(directory)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(self.disk.open(path)?))
    }

    fn create(&self, path: &Path, length: u64) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(self.disk.create(path, length)?))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let space = self.disk.space(path)?;
        Ok(if self.full.load(Ordering::Relaxed) { Space { free: 0, ..space } } else { space })
    }
}

impl DiskFile for File {
    fn length(&self) -> u64 {
        self.file.length()
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        self.file.read_at(buffer, position)
    }

    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.gate.writes.fetch_add(1, Ordering::SeqCst);
        self.gate.pass(&[State::Held])?;
        self.file.write_at(bytes, position)
    }

    fn write_cached_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.gate.writes.fetch_add(1, Ordering::SeqCst);
        self.gate.pass(&[State::Held])?;
        self.file.write_cached_at(bytes, position)
    }

    fn sync(&self) -> io::Result<()> {
        self.gate.syncs.fetch_add(1, Ordering::SeqCst);
        self.gate.pass(&[State::Held, State::SyncsHeld])?;
        if self.gate.fail_sync.swap(false, Ordering::SeqCst) {
            return Err(io::Error::other("the disk is on fire"));
        }
        self.file.sync()
    }
}
