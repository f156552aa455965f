//! A broker's own clock: a library loaded before libc answers instead of it, by what a mapped file says. Only the time
//! of day is moved; what measures time that passes is left alone, as it is when an administrator sets a clock.
//!
//! Not libfaketime: a program with jemalloc hangs with it before it begins.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::shell::run;

const SOURCE: &str = include_str!("clock.c");

/// The clock of one broker.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// A clock that is right so far.
    ///
    /// # Errors
    /// The library cannot be compiled.
    pub async fn create(folder: &Path) -> Result<Self> {
        let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
        fs::write(&source, SOURCE)?;
        let (from, to) = (source.display().to_string(), library.display().to_string());
        run(&["cc", "-O2", "-shared", "-fPIC", "-o", &to, &from]).await?;
        let clock = Self { library, file: folder.join("clock") };
        clock.set(0)?;
        Ok(clock)
    }

    /// Variables with which a process sees this clock.
    pub fn environment(&self) -> [(&'static str, &Path); 2] {
        [("LD_PRELOAD", &self.library), ("CHAOS_CLOCK", &self.file)]
    }

    /// Sets the clock this many seconds ahead of the system's; processes see it at once.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set(&self, seconds: i64) -> Result<()> {
        // Never truncated: it is mapped.
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&self.file);
        file.and_then(|file| file.write_all_at(&seconds.to_ne_bytes(), 0)).context("setting a clock")
    }
}
