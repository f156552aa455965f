//! A disk in memory that can fail, be full, and lose what was not synced.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::disk::{BLOCK, Disk, DiskFile, Space};

/// See the module documentation. Clones are the same disk.
#[derive(Clone, Debug)]
pub(super) struct SimDisk {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    files: Mutex<BTreeMap<PathBuf, Arc<SimFile>>>,
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
        Self { inner: Arc::new(Inner { files: Mutex::default(), faults }) }
    }

    pub(super) fn faults(&self) -> &Faults {
        &self.inner.faults
    }

    /// Switches the machine off. Nothing that is written after arrives; [`restore_power`](Self::restore_power) ends it.
    pub(super) fn cut_power(&self) {
        self.inner.faults.dead.store(true, Ordering::SeqCst);
    }

    /// Ends [`cut_power`](Self::cut_power) as if only the process had died: what was written is there.
    pub(super) fn revive(&self) {
        self.inner.faults.dead.store(false, Ordering::SeqCst);
    }

    /// Switches it on again: of what was not synced, each block is there or not.
    pub(super) fn restore_power(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let keep = random.random_range(0.0..=1.0);
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
        self.inner.faults.dead.store(false, Ordering::SeqCst);
    }

    /// Changes stored bytes behind the back of the store: `change` gets each file.
    pub(super) fn tamper(&self, mut change: impl FnMut(&Path, &mut [u8])) {
        for (path, file) in self.inner.files.lock().iter() {
            let mut content = file.content.lock();
            change(path, &mut content.current);
            content.synced = content.current.clone();
        }
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
        let zeros = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        let content = Mutex::new(Content { current: zeros.clone(), synced: zeros });
        let file = Arc::new(SimFile { content, faults: Arc::clone(&self.inner.faults) });
        self.inner.files.lock().insert(path.to_path_buf(), Arc::clone(&file));
        Ok(file)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.files.lock().remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
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
        let fails = self.faults.fail_writes.load(Ordering::SeqCst);
        // Half of it arrives, as on a full disk.
        let arrives = if fails { bytes.len() / 2 } else { bytes.len() };
        self.content.lock().current[start..start + arrives].copy_from_slice(&bytes[..arrives]);
        if fails { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.check_power()?;
        self.faults.syncs.fetch_add(1, Ordering::SeqCst);
        if self.faults.fail_syncs.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is on fire"));
        }
        let mut content = self.content.lock();
        content.synced = content.current.clone();
        Ok(())
    }
}
