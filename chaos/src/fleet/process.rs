//! One run of a program, from its start to its end.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// See the module documentation. Dropping it kills the process.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    ended: watch::Receiver<Option<Ended>>,
    /// Waits for the end, so that its time is known however late somebody asks.
    _watcher: JoinSet<()>,
}

/// The end of a process.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// What it said, or which signal ended it.
    pub status: ExitStatus,
    /// When.
    pub at: Instant,
}

impl Process {
    /// Starts a program.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let mut child = command.kill_on_drop(true).spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let (sender, ended) = watch::channel(None);
        let mut watcher = JoinSet::new();
        watcher.spawn(async move {
            if let Ok(status) = child.wait().await {
                sender.send_replace(Some(Ended { status, at: Instant::now() }));
            }
        });
        let pid = pid.context("a process that was just started has an id")?;
        Ok(Self { pid, ended, _watcher: watcher })
    }

    /// Its id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its end, if that has come.
    pub fn ended(&self) -> Option<Ended> {
        *self.ended.borrow()
    }

    /// Sends a signal; does nothing if the process has ended.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.ended().is_some() {
            return Ok(());
        }
        match kill_process(self.pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).context("sending a signal"),
        }
    }

    /// Waits for its end; `None` if that does not come in time.
    ///
    /// # Errors
    /// The system does not tell.
    pub async fn wait(&mut self, within: Duration) -> Result<Option<Ended>> {
        match timeout(within, self.ended.wait_for(Option::is_some)).await {
            Ok(ended) => Ok(*ended.context("waiting for the end of a process")?),
            Err(_) => Ok(None),
        }
    }
}
