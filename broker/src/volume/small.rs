//! A volume that tests can fill: a file system in memory, which is let go of in the end.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate};
use tempfile::TempDir;

use super::Space;

/// See the module documentation.
pub(crate) struct SmallVolume(TempDir);

impl SmallVolume {
    /// An empty one of that many MiB. `None` for others than root, who may not mount anything.
    pub(crate) fn mount(mebibytes: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("left out: mounting a file system needs root");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}M"), "small-volume"])
            .arg(directory.path());
        assert!(mount.status().unwrap().success());
        Some(Self(directory))
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all that is free.
    pub(crate) fn fill(&self) {
        let filler = File::create(self.filler()).unwrap();
        let take = || {
            let free = Space::of(self.path()).unwrap().free;
            fallocate(&filler, FallocateFlags::empty(), 0, free)
        };
        // Others may write meanwhile: then less is free than a moment ago.
        assert!((0..100).any(|_| take().is_ok()), "{:?}", take());
    }

    /// Undoes that, if it was done.
    pub(crate) fn make_room(&self) {
        match fs::remove_file(self.filler()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for SmallVolume {
    fn drop(&mut self) {
        // Lazily: what a failed test has left open must not keep it.
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}
