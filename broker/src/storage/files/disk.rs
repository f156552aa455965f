//! The few things the store asks of the operating system whose failure decides something.
//!
//! A trait, so that tests can let a write or a sync fail or fill the volume; [`OsDisk`] is the real one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Writes, syncs and free space of the volume.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// Writes all of `bytes` at `position`.
    fn write_at(&self, file: &File, bytes: &[u8], position: u64) -> io::Result<()>;

    /// Makes the data written to `file` durable (`fdatasync`), or the entries of a directory.
    fn sync(&self, file: &File) -> io::Result<()>;

    /// Free and total bytes of the volume that holds `path`, as far as this process may use them.
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// Space of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that may still be written.
    pub free: u64,
    /// Size of the volume.
    pub total: u64,
}

/// The operating system's disk.
#[derive(Debug)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn write_at(&self, file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
        file.write_all_at(bytes, position)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(Space {
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }
}
