//! The processes of one broker, one after the other, and what speaks against how they ended.
//!
//! A process ends because it was killed, or because it was asked to stop and says that all went well. Any other end is
//! a finding, whoever notices it and when, unless the broker's own volume was slow, hung or broken at the time.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal};
use tokio::process::Command;

use super::process::{Ended, Process};
use crate::findings::Findings;

/// Time after which what a volume did to a broker is over.
const AFTERMATH: Duration = Duration::from_secs(10);

/// See the module documentation.
#[derive(Debug)]
pub struct Supervisor {
    number: usize,
    process: Option<Process>,
    /// The signal that asked the process to end.
    asked: Option<Signal>,
    trouble: Option<Trouble>,
    findings: Arc<Findings>,
}

/// Time during which the volume was not as it should be.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    from: Instant,
    until: Option<Instant>,
}

impl Trouble {
    fn excuses(&self, end: Instant) -> bool {
        end >= self.from && self.until.is_none_or(|until| end <= until + AFTERMATH)
    }
}

impl Supervisor {
    /// Of broker `number`, which has no process yet.
    pub fn new(number: usize, findings: Arc<Findings>) -> Self {
        Self { number, process: None, asked: None, trouble: None, findings }
    }

    /// Starts a process; there is none.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&mut self, command: &mut Command) -> Result<()> {
        // What the volume did to another process does not excuse this one.
        self.trouble = self.trouble.filter(|trouble| trouble.until.is_none());
        self.asked = None;
        self.process = Some(Process::spawn(command).context("starting a broker")?);
        Ok(())
    }

    /// Whether a process runs.
    pub fn is_running(&mut self) -> bool {
        if let Some(ended) = self.process.as_ref().and_then(Process::ended) {
            self.bury(ended);
        }
        self.process.is_some()
    }

    /// Id of the process, if it was not seen to end.
    pub fn pid(&self) -> Option<Pid> {
        self.process.as_ref().map(Process::pid)
    }

    /// Sends a signal to the process, if one runs, which does not end it.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().map_or(Ok(()), |process| process.signal(signal))
    }

    /// Kills the process as the kernel would; does not wait for its end.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.ask(Signal::KILL)
    }

    /// Waits for the end of a process that was killed, if there is one.
    ///
    /// # Errors
    /// It does not end in time.
    pub async fn reap(&mut self, within: Duration) -> Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let ended = process.wait(within).await?;
        let number = self.number;
        self.bury(
            ended.with_context(|| format!("broker {number} was killed and still runs after {within:?}"))?,
        );
        Ok(())
    }

    /// Asks the process to stop (SIGTERM) and waits until it has; kills it if it has not in time, which is a finding.
    ///
    /// # Errors
    /// A signal cannot be sent, or the process outlives its death.
    pub async fn terminate(&mut self, within: Duration) -> Result<()> {
        self.ask(Signal::TERM)?;
        let Some(process) = &mut self.process else { return Ok(()) };
        match process.wait(within).await? {
            Some(ended) => self.bury(ended),
            None => {
                let number = self.number;
                self.findings
                    .find(format!("broker {number} was asked to stop and still runs after {within:?}"));
                self.kill()?;
                self.reap(within).await?;
            }
        }
        Ok(())
    }

    /// From now on the volume is slow, hung or broken.
    pub fn begin_trouble(&mut self) {
        // An end before this is not excused by it.
        self.is_running();
        self.trouble = Some(Trouble { from: Instant::now(), until: None });
    }

    /// The volume is as it should be again.
    pub fn end_trouble(&mut self) {
        if let Some(trouble) = &mut self.trouble {
            trouble.until = Some(Instant::now());
        }
    }

    fn ask(&mut self, signal: Signal) -> Result<()> {
        if self.is_running() {
            self.asked = Some(signal);
        }
        self.signal(signal)
    }

    fn bury(&mut self, Ended { status, at }: Ended) {
        self.process = None;
        let asked = self.asked.take();
        if is_as_asked(status, asked) {
            return;
        }
        let what = if asked == Some(Signal::TERM) { "was asked to stop" } else { "ended by itself" };
        let what = format!("broker {} {what}: {status}", self.number);
        if self.trouble.is_some_and(|trouble| trouble.excuses(at)) {
            eprintln!("  {what}; its volume was slow, hung or broken, which excuses it");
        } else {
            self.findings.find(what);
        }
    }
}

/// Whether a process that was asked to end by a signal ended like that.
fn is_as_asked(status: ExitStatus, asked: Option<Signal>) -> bool {
    match asked {
        Some(Signal::KILL) => status.signal() == Some(Signal::KILL.as_raw()),
        Some(Signal::TERM) => status.success(),
        _ => false,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use crate::fleet::until;

    const DEADLINE: Duration = Duration::from_secs(30);

    fn supervisor(number: usize) -> (Supervisor, Arc<Findings>) {
        let findings = Arc::new(Findings::default());
        (Supervisor::new(number, Arc::clone(&findings)), findings)
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    /// Starts a process that treats SIGTERM as said, once it does so.
    async fn start_one_that(supervisor: &mut Supervisor, name: &str, on_term: &str) {
        let ready = std::env::temp_dir().join(format!("millrace-chaos-{name}-{}", std::process::id()));
        let script = format!("trap '{on_term}' TERM; : >{}; while :; do sleep 0.01; done", ready.display());
        supervisor.start(&mut shell(&script)).unwrap();
        until("the trap", DEADLINE, async || ready.exists().then_some(())).await.unwrap();
        std::fs::remove_file(ready).unwrap();
    }

    /// Starts a process that ends by itself, and waits for that without looking at it as its owner would.
    async fn start_one_that_ends(supervisor: &mut Supervisor) {
        supervisor.start(&mut shell("exit 3")).unwrap();
        supervisor.process.as_mut().unwrap().wait(DEADLINE).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_end_that_nobody_asked_for_is_found_whatever_is_done_to_the_broker_next() {
        for next in ["looked at", "killed", "terminated", "given a slow volume"] {
            let (mut supervisor, findings) = supervisor(1);
            start_one_that_ends(&mut supervisor).await;
            match next {
                "looked at" => assert!(!supervisor.is_running()),
                "killed" => supervisor.kill().unwrap(),
                "terminated" => supervisor.terminate(DEADLINE).await.unwrap(),
                _ => supervisor.begin_trouble(),
            }
            supervisor.reap(DEADLINE).await.unwrap();
            assert_eq!(findings.all(), ["broker 1 ended by itself: exit status: 3"], "{next}");
        }
    }

    #[tokio::test]
    async fn an_end_that_was_asked_for_and_went_well_is_no_finding() {
        let (mut supervisor, findings) = supervisor(0);
        start_one_that(&mut supervisor, "is-killed", "").await;
        supervisor.kill().unwrap();
        supervisor.reap(DEADLINE).await.unwrap();
        start_one_that(&mut supervisor, "stops", "exit 0").await;
        supervisor.terminate(DEADLINE).await.unwrap();
        assert!(!supervisor.is_running());
        assert_eq!(findings.all(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn an_orderly_stop_that_fails_or_does_not_come_is_found_and_the_process_is_gone() {
        let (mut supervisor, findings) = supervisor(2);
        start_one_that(&mut supervisor, "fails", "exit 3").await;
        supervisor.terminate(DEADLINE).await.unwrap();
        start_one_that(&mut supervisor, "hangs", "").await;
        supervisor.terminate(Duration::from_millis(200)).await.unwrap();
        assert!(!supervisor.is_running());
        assert_eq!(
            findings.all(),
            [
                "broker 2 was asked to stop: exit status: 3",
                "broker 2 was asked to stop and still runs after 200ms"
            ]
        );
    }

    #[tokio::test]
    async fn only_a_broker_whose_own_volume_fails_at_the_time_is_excused() {
        let (mut hurt, about_hurt) = supervisor(0);
        let (mut other, about_other) = supervisor(1);
        hurt.begin_trouble();
        start_one_that_ends(&mut hurt).await;
        start_one_that_ends(&mut other).await;
        assert!(!hurt.is_running() && !other.is_running());
        assert_eq!((about_hurt.all().len(), about_other.all().len()), (0, 1));
        hurt.end_trouble();
        start_one_that_ends(&mut hurt).await;
        assert!(!hurt.is_running());
        assert_eq!(about_hurt.all().len(), 1, "the volume was well when this process started");
    }

    #[test]
    fn an_excuse_begins_with_the_fault_and_ends_a_while_after_it() {
        let from = Instant::now();
        let until = from + Duration::from_secs(5);
        let after = |seconds| from + Duration::from_secs(seconds);
        let over = Trouble { from: after(1), until: Some(until) };
        assert!(!over.excuses(from) && over.excuses(after(1)) && over.excuses(until + AFTERMATH));
        assert!(!over.excuses(until + AFTERMATH + Duration::from_millis(1)));
        assert!(Trouble { from, until: None }.excuses(after(3600)));
    }
}
