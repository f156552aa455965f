//! What the journal asks of the operating system.
//!
//! A trait, so that tests can let a write or a sync fail, fill the volume, or lose what was not synced; [`OsDisk`] is
//! the real one. Positions and lengths of reads and writes are multiples of [`BLOCK`], and so are the addresses of
//! the memory they use, as direct I/O demands (open(2), `O_DIRECT`).

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FallocateFlags, OFlags, fallocate};

use crate::volume::{KeptSpace, Space};

/// Unit of reads and writes, bytes.
pub const BLOCK: usize = 4096;

/// Files of a volume.
pub trait Disk: Send + Sync + Debug {
    /// Files in a directory, which is made if it does not exist; in no order.
    fn files(&self, directory: &Path) -> io::Result<Vec<PathBuf>>;

    /// Opens a file that exists.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Makes a file of `length` bytes whose space is there for good, and makes its directory entry durable.
    fn create(&self, path: &Path, length: u64) -> io::Result<Arc<dyn DiskFile>>;

    /// Deletes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Free and total bytes of the volume that holds `path`, as far as this process may use them.
    fn space(&self, path: &Path) -> io::Result<Space>;

    /// Space for what is written beside these files, if the volume keeps any.
    fn kept_space(&self) -> Option<&KeptSpace> {
        None
    }
}

/// An open file; its length does not change.
pub trait DiskFile: Send + Sync + Debug {
    /// Length in bytes.
    fn length(&self) -> u64;

    /// Fills `buffer` from `position`, which lies within the file with all of the buffer.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `position`.
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `position` into the memory of the operating system, from where it gets to the disk later,
    /// with [`sync`](Self::sync) at the latest. It survives the end of the process.
    fn write_cached_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.write_at(bytes, position)
    }

    /// Makes what was written durable (`fdatasync`). After an error nothing is known about it, for good.
    fn sync(&self) -> io::Result<()>;
}

/// The operating system's disk. Bypasses the page cache where the file system allows it, which is said once if not.
#[derive(Debug, Default)]
pub struct OsDisk {
    buffered: AtomicBool,
    /// Given up when there is no other space.
    kept_space: Option<Arc<KeptSpace>>,
}

#[derive(Debug)]
struct OsFile {
    path: PathBuf,
    file: File,
    /// The same through the page cache, once it is needed. The kernel keeps the two coherent (open(2), `O_DIRECT`).
    cached: OnceLock<File>,
    length: u64,
}

impl OsDisk {
    /// The disk of a volume that keeps space for when it is full.
    pub fn with_kept_space(kept_space: Arc<KeptSpace>) -> Self {
        Self { kept_space: Some(kept_space), ..Self::default() }
    }

    /// Makes a file whose space is there for good; none is left if that fails.
    fn allocate(&self, path: &Path, length: u64) -> io::Result<File> {
        let file = self.open_with(OpenOptions::new().read(true).write(true).create_new(true), path)?;
        if let Err(error) = fallocate(&file, FallocateFlags::empty(), 0, length) {
            // A file of the wrong length must not stay. If it cannot go either, the next start takes it away.
            let _ = fs::remove_file(path);
            return Err(error.into());
        }
        Ok(file)
    }

    fn open_with(&self, options: &mut OpenOptions, path: &Path) -> io::Result<File> {
        if !self.buffered.load(Ordering::Relaxed) {
            let flags = i32::try_from(OFlags::DIRECT.bits()).expect("flags of open(2) are an int");
            match options.custom_flags(flags).open(path) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    if !self.buffered.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            path = %path.display(),
                            "the file system refuses direct I/O; the journal goes through the page cache"
                        );
                    }
                }
                opened => return opened,
            }
        }
        options.custom_flags(0).open(path)
    }
}

impl Disk for OsDisk {
    fn files(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        if !directory.exists() {
            fs::create_dir_all(directory)?;
            if let Some(parent) = directory.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.open_with(OpenOptions::new().read(true).write(true), path)?;
        let length = file.metadata()?.len();
        Ok(Arc::new(OsFile { path: path.to_path_buf(), file, cached: OnceLock::new(), length }))
    }

    fn create(&self, path: &Path, length: u64) -> io::Result<Arc<dyn DiskFile>> {
        let allocate = || self.allocate(path, length);
        let file = match &self.kept_space {
            Some(kept_space) => kept_space.make_room_for(allocate)?,
            None => allocate()?,
        };
        file.sync_all()?;
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(Arc::new(OsFile { path: path.to_path_buf(), file, cached: OnceLock::new(), length }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        Space::of(path)
    }

    fn kept_space(&self) -> Option<&KeptSpace> {
        self.kept_space.as_deref()
    }
}

impl DiskFile for OsFile {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, position)
    }

    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, position)
    }

    fn write_cached_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        if self.cached.get().is_none() {
            // Set by somebody else meanwhile: then that one is as good.
            let _ = self.cached.set(OpenOptions::new().write(true).open(&self.path)?);
        }
        self.cached.get().unwrap_or(&self.file).write_all_at(bytes, position)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
