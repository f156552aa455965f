//! A disk in memory that can fail, be full, and lose what was not synced.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::disk::{BLOCK, Disk, DiskFile};
use crate::volume::Space;

/// See the module documentation. Clones are the same disk.
#[derive(Clone, Debug)]
pub(super) struct SimDisk {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    files: Mutex<BTreeMap<PathBuf, Arc<SimFile>>>,
    /// Files that were deleted since the directory was last synced: they may be back after a loss of power.
    removed: Mutex<Vec<(PathBuf, Arc<SimFile>)>>,
    faults: Arc<Faults>,
}

/// What is wrong with the disk.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) fail_writes: AtomicBool,
    pub(super) fail_syncs: AtomicBool,
    pub(super) syncs: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) free: AtomicU64,
    /// Writes until one that is reported as done and never arrives; 0 for none.
    pub(super) lose_write_in: AtomicU64,
    /// Writes, syncs and new files until the one during which the power goes; 0 for never.
    pub(super) cut_power_in: AtomicU64,
    /// The machine is off: nothing arrives any more.
    dead: AtomicBool,
}

#[derive(Debug)]
struct SimFile {
    content: Mutex<Content>,
    faults: Arc<Faults>,
}

#[derive(Debug)]
struct Content {
    /// What a reader sees.
    current: Vec<u8>,
    /// What a loss of power leaves for sure.
    synced: Vec<u8>,
}

impl SimDisk {
    pub(super) fn new() -> Self {
        let faults = Arc::new(Faults { free: AtomicU64::new(1 << 40), ..Faults::default() });
        Self { inner: Arc::new(Inner { files: Mutex::default(), removed: Mutex::default(), faults }) }
    }

    pub(super) fn faults(&self) -> &Faults {
        &self.inner.faults
    }

    /// Switches the machine off. Nothing that is written after arrives; [`restore_power`](Self::restore_power) ends it.
    pub(super) fn cut_power(&self) {
        self.inner.faults.dead.store(true, Ordering::SeqCst);
    }

    /// Switches it off at the `operations`th write, sync or new file from now.
    pub(super) fn cut_power_in(&self, operations: u64) {
        self.inner.faults.cut_power_in.store(operations, Ordering::SeqCst);
    }

    /// Ends [`cut_power`](Self::cut_power) as if only the process had died: what was written is there.
    pub(super) fn revive(&self) {
        self.inner.faults.cut_power_in.store(0, Ordering::SeqCst);
        self.inner.faults.dead.store(false, Ordering::SeqCst);
    }

    /// Switches it on again: of what was not synced, each block is there or not.
    pub(super) fn restore_power(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let keep = random.random_range(0.0..=1.0);
        for (path, file) in self.inner.removed.lock().drain(..) {
            if random.random_bool(0.5) {
                self.inner.files.lock().entry(path).or_insert(file);
            }
        }
        for file in self.inner.files.lock().values() {
            let mut content = file.content.lock();
            let Content { current, synced } = &mut *content;
            for (now, before) in current.chunks_mut(BLOCK).zip(synced.chunks_mut(BLOCK)) {
                if now != before && random.random_bool(keep) {
                    before.copy_from_slice(now);
                }
                now.copy_from_slice(before);
            }
        }
        self.inner.faults.cut_power_in.store(0, Ordering::SeqCst);
        self.inner.faults.dead.store(false, Ordering::SeqCst);
    }

    /// Switches it off and on again, and nothing that was not synced is there.
    pub(super) fn lose_unsynced(&self) {
        for file in self.inner.files.lock().values() {
            let mut content = file.content.lock();
            content.current = content.synced.clone();
        }
    }

    /// Changes stored bytes behind the back of the store: `change` gets each file.
    pub(super) fn tamper(&self, mut change: impl FnMut(&Path, &mut [u8])) {
        for (path, file) in self.inner.files.lock().iter() {
            let mut content = file.content.lock();
            change(path, &mut content.current);
            content.synced = content.current.clone();
        }
    }

    /// Changes files behind the back of the store in any way.
    pub(super) fn rearrange(&self, change: impl FnOnce(&mut BTreeMap<PathBuf, Vec<u8>>)) {
        let mut contents = self.contents();
        change(&mut contents);
        let file = |bytes: Vec<u8>| {
            let content = Mutex::new(Content { current: bytes.clone(), synced: bytes });
            Arc::new(SimFile { content, faults: Arc::clone(&self.inner.faults) })
        };
        *self.inner.files.lock() = contents.into_iter().map(|(path, bytes)| (path, file(bytes))).collect();
    }

    /// All files, as a reader sees them.
    pub(super) fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = self.inner.files.lock();
        files.iter().map(|(path, file)| (path.clone(), file.content.lock().current.clone())).collect()
    }

    /// Puts a copy of the first file beside it, under a name of its own.
    pub(super) fn copy_first_file(&self) {
        let mut files = self.inner.files.lock();
        let (path, file) = files.first_key_value().expect("a file");
        let bytes = file.content.lock().current.clone();
        let copy = path.with_file_name(format!("9{}", path.file_name().unwrap_or_default().display()));
        let content = Mutex::new(Content { current: bytes.clone(), synced: bytes });
        files.insert(copy, Arc::new(SimFile { content, faults: Arc::clone(&self.inner.faults) }));
    }

    pub(super) fn file_count(&self) -> usize {
        self.inner.files.lock().len()
    }
}

impl Faults {
    /// Counts down to `counter`'s event; true for the one that it happens to.
    fn is_due(counter: &AtomicU64) -> bool {
        counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) == Ok(1)
    }

    /// The power may go during an operation that this begins; true if it does.
    fn power_goes(&self) -> bool {
        let goes = Self::is_due(&self.cut_power_in);
        if goes {
            self.dead.store(true, Ordering::SeqCst);
        }
        goes
    }

    fn check_power(&self) -> io::Result<()> {
        if self.dead.load(Ordering::SeqCst) { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }
}

impl Disk for SimDisk {
    fn files(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        let files = self.inner.files.lock();
        Ok(files.keys().filter(|path| path.parent() == Some(directory)).cloned().collect())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.inner.files.lock().get(path).cloned();
        Ok(file.ok_or(io::ErrorKind::NotFound)?)
    }

    fn create(&self, path: &Path, length: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.inner.faults.check_power()?;
        if self.inner.faults.power_goes() {
            return Err(io::Error::other("the power has gone"));
        }
        let zeros = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        let content = Mutex::new(Content { current: zeros.clone(), synced: zeros });
        let file = Arc::new(SimFile { content, faults: Arc::clone(&self.inner.faults) });
        self.inner.files.lock().insert(path.to_path_buf(), Arc::clone(&file));
        self.inner.removed.lock().clear();
        Ok(file)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.faults.check_power()?;
        let file = self.inner.files.lock().remove(path).ok_or(io::ErrorKind::NotFound)?;
        self.inner.removed.lock().push((path.to_path_buf(), file));
        Ok(())
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        Ok(Space { free: self.inner.faults.free.load(Ordering::SeqCst), total: 1 << 40 })
    }
}

impl DiskFile for SimFile {
    fn length(&self) -> u64 {
        self.content.lock().current.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        let start = usize::try_from(position).map_err(io::Error::other)?;
        assert!(start.is_multiple_of(BLOCK) && buffer.len().is_multiple_of(BLOCK), "direct I/O is aligned");
        assert_eq!(buffer.as_ptr().align_offset(BLOCK), 0, "direct I/O is aligned");
        buffer.copy_from_slice(&self.content.lock().current[start..start + buffer.len()]);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.faults.check_power()?;
        let start = usize::try_from(position).map_err(io::Error::other)?;
        assert!(start.is_multiple_of(BLOCK) && bytes.len().is_multiple_of(BLOCK), "direct I/O is aligned");
        assert_eq!(bytes.as_ptr().align_offset(BLOCK), 0, "direct I/O is aligned");
        self.faults.writes.fetch_add(1, Ordering::SeqCst);
        // Zeros are written ahead of small frames, where nothing lies: nobody would miss them.
        if bytes.iter().any(|byte| *byte != 0) && Faults::is_due(&self.faults.lose_write_in) {
            return Ok(());
        }
        let goes = self.faults.power_goes();
        let fails = self.faults.fail_writes.load(Ordering::SeqCst);
        // Half of it arrives, as on a full disk.
        let arrives = if fails { bytes.len() / 2 } else { bytes.len() };
        self.content.lock().current[start..start + arrives].copy_from_slice(&bytes[..arrives]);
        if goes {
            // All of it is under way; what of it arrives is seen when the power is back.
            return Err(io::Error::other("the power has gone"));
        }
        if fails { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.check_power()?;
        self.faults.syncs.fetch_add(1, Ordering::SeqCst);
        if self.faults.power_goes() {
            return Err(io::Error::other("the power has gone"));
        }
        if self.faults.fail_syncs.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is on fire"));
        }
        let mut content = self.content.lock();
        content.synced = content.current.clone();
        Ok(())
    }
}
