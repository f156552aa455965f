//! Processes that this one starts, and that end with it on every path.
//!
//! Three layers, as brokers left behind would spoil every later measurement: a [`Child`] kills and awaits its process
//! when dropped; an interrupt ends all that are registered; and the kernel kills them should this process vanish without
//! running any of its code (the parent death signal, which [`exec`] sets before it becomes the program).

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Lines of a log that an error shows.
const LOG_TAIL: usize = 15;

/// Those that run now. Clones are the same list.
#[derive(Debug, Clone, Default)]
pub struct Children {
    running: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    pids: Vec<Pid>,
    /// After an interrupt nothing is started any more.
    closed: bool,
}

impl Children {
    /// Starts `program` on `cores` alone, with output and errors in `log`.
    ///
    /// The child dies when the calling thread ends: start children from a thread that lives as long as they shall.
    ///
    /// # Errors
    /// It cannot be started, or an interrupt came.
    pub fn start<S: AsRef<OsStr>>(
        &self,
        cores: &[usize],
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
        log: &Path,
    ) -> Result<Child> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(!running.closed, "interrupted");
        let output = File::create(log).with_context(|| log.display().to_string())?;
        // A process group of its own: Ctrl-C goes to this process alone, which then decides.
        let process = Command::new(std::env::current_exe()?)
            .arg("exec")
            .args(cores.iter().map(|core| format!("--core={core}")))
            .args(["--parent", &std::process::id().to_string(), "--"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        running.pids.push(Pid::from_child(&process));
        Ok(Child { process, log: log.to_owned(), children: self.clone() })
    }

    /// Kills all and lets none be started any more.
    pub fn close(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.closed = true;
        for pid in &running.pids {
            // It may have ended by itself.
            let _ = kill_process(*pid, Signal::KILL);
        }
    }

    fn forget(&self, pid: Pid) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).pids.retain(|other| *other != pid);
    }
}

/// A running process; killed and awaited when dropped.
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    log: PathBuf,
    children: Children,
}

impl Child {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Fails with the end of its log once it has ended.
    ///
    /// # Errors
    /// It has ended.
    pub fn ensure_running(&mut self) -> Result<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => {
                self.children.forget(Pid::from_child(&self.process));
                bail!("it ended with {status}:\n{}", self.log_tail())
            }
        }
    }

    /// Waits for its end and returns what it printed.
    ///
    /// # Errors
    /// It fails, or takes longer than `timeout`; then it is killed.
    pub fn finish(mut self, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        let status = loop {
            if let Some(status) = self.process.try_wait()? {
                break status;
            }
            ensure!(
                Instant::now() < deadline,
                "it takes longer than {} s:\n{}",
                timeout.as_secs(),
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        };
        ensure!(status.success(), "it ended with {status}:\n{}", self.log_tail());
        std::fs::read_to_string(&self.log).with_context(|| self.log.display().to_string())
    }

    /// Ends it with SIGKILL, as a crash would, and waits for its end.
    ///
    /// # Errors
    /// It cannot be awaited.
    pub fn crash(&mut self) -> Result<()> {
        self.end().map(|_| ())
    }

    fn end(&mut self) -> Result<ExitStatus> {
        // Off the list first: once awaited, its number may belong to someone else.
        self.children.forget(Pid::from_child(&self.process));
        self.process.kill()?;
        Ok(self.process.wait()?)
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Killing what has ended by itself is no error, and nothing could be done about another.
        let _ = self.end();
    }
}

/// Becomes `command`, on `cores` alone, and ends with the process `parent`. Returns only when that fails.
///
/// Affinity and the parent death signal outlast the change of program, so that no code has to run between fork and exec.
pub fn exec(cores: &[usize], parent: u32, command: &[String]) -> anyhow::Error {
    match pin(cores).and_then(|()| follow(parent)) {
        Ok(()) => match command {
            [program, arguments @ ..] => {
                anyhow::Error::new(Command::new(program).args(arguments).exec()).context(program.clone())
            }
            [] => anyhow::anyhow!("no command"),
        },
        Err(error) => error,
    }
}

fn follow(parent: u32) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before the signal was asked for.
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    ensure!(now == Some(parent), "the process that started this is gone");
    Ok(())
}

/// Lets the calling thread, and what it starts from now on, run on `cores` alone.
///
/// # Errors
/// None of them is there for this process.
pub fn pin(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        ensure!(*core < CpuSet::MAX_CPU, "there is no core {core}");
        set.set(*core);
    }
    sched_setaffinity(None, &set).with_context(|| format!("pinning to cores {cores:?}"))
}

/// The first two cores that this process may use: one for the broker, one for the load.
///
/// # Errors
/// There is only one.
pub fn two_cores() -> Result<(usize, usize)> {
    let allowed = sched_getaffinity(None)?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
    match (cores.next(), cores.next()) {
        (Some(broker), Some(load)) => Ok((broker, load)),
        _ => bail!("two cores are needed: one for the broker, one for the load"),
    }
}
