//! Our broker: one process with a quorum of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Where the program is and what it is told.
#[derive(Debug, Clone)]
pub struct Millrace {
    program: PathBuf,
    settings: Vec<String>,
}

impl Millrace {
    /// The broker at `program`, with settings as `key=value`.
    ///
    /// # Errors
    /// There is no such program.
    pub fn new(program: PathBuf, settings: Vec<String>) -> Result<Self> {
        ensure!(
            program.is_file(),
            "no broker at {}: build it with `cargo build --release -p millrace-broker`, or name it with --millrace",
            program.display()
        );
        Ok(Self { program, settings })
    }

    /// What it says its version is.
    ///
    /// # Errors
    /// It does not run.
    pub fn version(&self) -> Result<String> {
        let output =
            Command::new(&self.program).arg("--version").output().context("asking the broker its version")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    pub(super) fn command(&self, folder: &Path, port: u16) -> (PathBuf, Vec<String>) {
        let mut arguments = vec![
            "dev".to_owned(),
            "--data-dir".to_owned(),
            folder.join("data").display().to_string(),
            "--port".to_owned(),
            port.to_string(),
        ];
        for setting in &self.settings {
            arguments.extend(["--set".to_owned(), setting.clone()]);
        }
        (self.program.clone(), arguments)
    }
}
