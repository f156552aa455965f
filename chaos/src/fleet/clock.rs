//! A broker's own clock: libfaketime answers instead of the system, by what a file says. Only the time of day is
//! moved; what measures time that passes is left alone, as it is when an administrator sets a clock.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// Where Debian's package faketime puts the library.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// The clock of one broker.
#[derive(Debug)]
pub struct Clock {
    file: PathBuf,
}

impl Clock {
    /// A clock that is right so far.
    ///
    /// # Errors
    /// libfaketime is not installed.
    pub fn create(folder: &Path) -> Result<Self> {
        ensure!(Path::new(LIBRARY).exists(), "{LIBRARY} is missing (package faketime): clocks cannot be set");
        let clock = Self { file: folder.join("clock") };
        clock.set(0)?;
        Ok(clock)
    }

    /// Variables with which a process sees this clock.
    pub fn environment(&self) -> [(&'static str, PathBuf); 4] {
        [
            ("LD_PRELOAD", LIBRARY.into()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.clone()),
            ("FAKETIME_CACHE_DURATION", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ]
    }

    /// Sets the clock this many seconds ahead of the system's; within a second the process sees it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set(&self, seconds: i64) -> Result<()> {
        // Replaced as a whole, since the library may read at any moment.
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{seconds:+}\n")).context("setting a clock")?;
        fs::rename(&new, &self.file).context("setting a clock")
    }
}
