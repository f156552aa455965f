//! Makes reads cold without touching the rest of the machine.

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

fn forget_file(path: &Path) -> Result<()> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()), // a running broker removed it
        file => file?,
    };
    file.sync_data()?; // only clean pages can be forgotten
    fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(())
}
