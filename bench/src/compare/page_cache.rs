//! Puts the page cache into a known state: nothing left to write, or nothing left to read without the disk.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::fs::{Advice, fadvise};

/// Writes all files below `folder` to the disk and asks the kernel to forget their pages (`posix_fadvise`, which any user
/// may do). Pages that a process has mapped stay, as do caches of the disk itself or of a hypervisor.
///
/// # Errors
/// A file cannot be read or synced.
pub fn forget(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            forget(&path)?;
        } else if path.is_file() {
            forget_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Waits until the file system of `folder` has nothing left to write.
///
/// # Errors
/// The folder cannot be opened, or the disk fails.
pub fn write_back(folder: &Path) -> Result<()> {
    let opened = File::open(folder).with_context(|| folder.display().to_string())?;
    rustix::fs::syncfs(opened).context("writing back what is dirty")
}

fn forget_file(path: &Path) -> Result<()> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()), // a running broker removed it
        file => file?,
    };
    file.sync_data()?; // only clean pages can be forgotten
    fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(())
}
