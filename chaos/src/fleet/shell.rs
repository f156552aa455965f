//! Running the system's own tools.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

/// No tool used here takes longer, unless the disk hangs.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// It cannot be started, takes too long, or fails; with what it said.
pub async fn run(command: &[&str]) -> Result<String> {
    let (program, arguments) = command.split_first().context("a command has a name")?;
    let line = command.join(" ");
    let child = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(TIMEOUT, child)
        .await
        .with_context(|| format!("{line}: not done after {TIMEOUT:?}"))?
        .with_context(|| line.clone())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {}: {}", output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
