//! Real Kafka clients, run as processes.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// A client that has not ended by then hangs.
const CLIENT_DEADLINE: Duration = Duration::from_secs(180);

/// Runs kcat with `input` on its standard input; returns its standard output.
///
/// # Errors
/// It could not be run, failed (with what it said) or did not end in time.
pub async fn kcat(arguments: &[&str], input: &str) -> Result<String> {
    run(Command::new("kcat").args(arguments), input).await
}

/// Runs a script of `e2e/clients` in the Python environment that has the Kafka clients.
///
/// # Errors
/// It could not be run, failed (with what it said) or did not end in time.
pub async fn python_client(script: &str, arguments: &[&str]) -> Result<String> {
    let python = std::env::var("MILLRACE_CLIENTS_PYTHON")
        .context("MILLRACE_CLIENTS_PYTHON is not set; run these tests with `make test-e2e`")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(script);
    run(Command::new(python).arg(script).args(arguments), "").await
}

async fn run(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let mut stdin = child.stdin.take().context("standard input is piped")?;
    stdin.write_all(input.as_bytes()).await?;
    drop(stdin);
    let output = tokio::time::timeout(CLIENT_DEADLINE, child.wait_with_output())
        .await
        .with_context(|| format!("{command:?} did not end in {CLIENT_DEADLINE:?}"))??;
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
