//! One run of a broker's program, from its start to its end.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// See the module documentation. Dropping it kills the process.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: Pid,
}

/// How a process that was asked to stop did that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It ended and said this.
    Ended(ExitStatus),
    /// It went on and was killed.
    Killed,
}

impl Process {
    /// Starts a program.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let child = command.kill_on_drop(true).spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        Ok(Self { child, pid: pid.context("a process that was just started has an id")? })
    }

    /// Its id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal; does nothing if the process has ended.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.child.id().is_none() {
            return Ok(());
        }
        match kill_process(self.pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).context("sending a signal"),
        }
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for the end of a process that was killed.
    ///
    /// # Errors
    /// It does not end in time.
    pub async fn reap(&mut self, within: Duration) -> Result<ExitStatus> {
        let end = timeout(within, self.child.wait()).await;
        Ok(end.with_context(|| format!("it was killed and still runs after {within:?}"))??)
    }

    /// Asks it to stop (SIGTERM) and waits until it has ended; kills it when it has not in time.
    ///
    /// # Errors
    /// The signal cannot be sent, or the process outlives its death.
    pub async fn stop(&mut self, within: Duration) -> Result<Stop> {
        self.signal(Signal::TERM)?;
        if let Ok(status) = timeout(within, self.child.wait()).await {
            return Ok(Stop::Ended(status?));
        }
        self.signal(Signal::KILL)?;
        self.reap(within).await?;
        Ok(Stop::Killed)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use crate::fleet::until;

    const DEADLINE: Duration = Duration::from_secs(30);

    /// A process that treats SIGTERM as said, once it does so.
    async fn process_that(name: &str, on_term: &str) -> Process {
        let ready = std::env::temp_dir().join(format!("millrace-chaos-{name}-{}", std::process::id()));
        let script =
            format!("trap '{on_term}' TERM; : >{}; while :; do sleep 0.01; done", ready.to_str().unwrap());
        let process = Process::spawn(Command::new("sh").args(["-c", &script])).unwrap();
        until("the trap", DEADLINE, async || ready.exists().then_some(())).await.unwrap();
        std::fs::remove_file(ready).unwrap();
        process
    }

    #[tokio::test]
    async fn a_process_that_stops_when_asked_tells_how() {
        let mut process = process_that("stops", "exit 3").await;
        let Stop::Ended(status) = process.stop(DEADLINE).await.unwrap() else { panic!("it hung") };
        assert_eq!(status.code(), Some(3));
    }

    #[tokio::test]
    async fn a_process_that_does_not_stop_when_asked_is_killed() {
        let mut process = process_that("hangs", "").await;
        assert_eq!(process.stop(Duration::from_millis(200)).await.unwrap(), Stop::Killed);
        assert!(process.ended().unwrap().is_some());
    }
}
