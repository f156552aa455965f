//! One broker: its process, its configuration, its volume, its clock.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use rustix::process::Signal;
use tokio::process::Command;

use super::clock::Clock;
use super::disk::Disk;
use super::process::{Process, Stop};
use super::{CLUSTER_ID, DEADLINE, FleetPlan, broker_folder, management, network, until};
use crate::findings::Blame;
use crate::world;

/// Port of the client listener.
pub const CLIENT_PORT: u16 = 9092;
/// Port of the internal listener.
pub const FLEET_PORT: u16 = 9093;
/// Port of probes and metrics.
pub const HEALTH_PORT: u16 = 9094;

/// Longest time that a broker may take to stop when asked to.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// See the module documentation.
#[derive(Debug)]
pub struct Broker {
    number: usize,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    disk: Disk,
    clock: Option<Clock>,
    process: Option<Process>,
}

impl Broker {
    /// Makes the volume and the configuration of a broker; starts nothing.
    ///
    /// # Errors
    /// A tool fails.
    pub async fn create(plan: &FleetPlan, number: usize) -> Result<Self> {
        let folder = broker_folder(&plan.folder, number);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let disk = Disk::create(&folder, world::control_group(plan.run, number)?).await?;
        let config = folder.join("broker.properties");
        fs::write(&config, properties(plan, number, &disk.data_dir()))?;
        let clock = if plan.own_clocks { Some(Clock::create(&folder).await?) } else { None };
        let program = plan.program.clone();
        Ok(Self { number, program, config, log: folder.join("broker.log"), disk, clock, process: None })
    }

    /// Number in the fleet, which is also its broker id.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Its volume.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Its clock, if it has one of its own.
    pub fn clock(&self) -> Option<&Clock> {
        self.clock.as_ref()
    }

    /// Whether its process was started and not seen to end.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Starts the process.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&mut self) -> Result<()> {
        fs::create_dir_all(self.disk.data_dir())?;
        let mut log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        writeln!(log, "--- start ---")?;
        let mut command = Command::new("nsenter");
        // Not `ip netns exec`, whose mount namespace would keep volumes of other brokers mounted.
        command
            .arg(format!("--net=/run/netns/{}", network::namespace(self.number)))
            .arg("--")
            .arg(&self.program)
            .arg("--config")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the run, which then ends with everything in it.
            .process_group(0);
        if let Some(clock) = &self.clock {
            command.envs(clock.environment());
        }
        let process = Process::spawn(&mut command).context("starting a broker")?;
        self.disk.adopt(process.pid())?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills the process as the kernel would, and waits for its end. Does nothing if none runs.
    ///
    /// # Errors
    /// It does not end.
    pub async fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.reap().await
    }

    /// Waits for the end of a process that was killed.
    ///
    /// # Errors
    /// It does not end.
    pub async fn reap(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.reap(STOP_DEADLINE).await.with_context(|| format!("broker {}", self.number))?;
        Ok(())
    }

    /// Asks the process to stop and waits until it has; afterwards it has ended, in whatever way.
    ///
    /// # Errors
    /// With [`Blame`] if it does not stop in time, or says that something failed.
    pub async fn terminate(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let stop = process.stop(STOP_DEADLINE).await.with_context(|| format!("broker {}", self.number))?;
        let what = match stop {
            Stop::Ended(status) if status.success() => return Ok(()),
            Stop::Ended(status) => status.to_string(),
            Stop::Killed => format!("it still ran after {STOP_DEADLINE:?} and was killed"),
        };
        Err(anyhow!(what).context(Blame(format!("broker {} was asked to stop", self.number))))
    }

    /// Sends a signal to the process, if one runs.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().map_or(Ok(()), |process| process.signal(signal))
    }

    /// Stops the process (SIGSTOP) and waits until none of its threads is in the middle of a system call any more; that
    /// holds for one that has ended, too.
    ///
    /// # Errors
    /// The signal cannot be sent, or a thread does not stop.
    pub async fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let Some(process) = &self.process else { return Ok(()) };
        let threads = Path::new("/proc").join(process.pid().to_string()).join("task");
        until("every thread to stop", STOP_DEADLINE, async || {
            let threads = fs::read_dir(&threads).ok()?;
            let stopped = |entry: std::io::Result<fs::DirEntry>| {
                let status = fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
                // The state comes after the name, which is in parentheses.
                let state = status.rsplit(')').next()?.trim_start().chars().next()?;
                Some("TZX".contains(state))
            };
            threads.map(stopped).all(|stopped| stopped == Some(true)).then_some(())
        })
        .await
    }

    /// How the process ended, if it has without being asked to.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>> {
        let Some(process) = &mut self.process else { return Ok(None) };
        let status = process.ended()?;
        if status.is_some() {
            self.process = None;
        }
        Ok(status)
    }

    /// Waits until the broker says that it is ready.
    ///
    /// # Errors
    /// With [`Blame`] if its process ends, or it does not get ready in time; with what it says.
    pub async fn wait_until_ready(&mut self) -> Result<()> {
        let number = self.number;
        let mut last = String::new();
        let outcome = until("it to be ready", DEADLINE, async || {
            if let Ok(Some(status)) = self.has_ended() {
                return Some(Err(anyhow!("its process ended: {status}")));
            }
            match management::ready(number).await {
                Ok(()) => Some(Ok(())),
                Err(error) => {
                    last = format!("{error:#}");
                    None
                }
            }
        })
        .await
        .and_then(|outcome| outcome);
        outcome.with_context(|| Blame(format!("broker {number} ({last}); log: {}", self.log.display())))
    }
}

fn properties(plan: &FleetPlan, number: usize, data_dir: &Path) -> String {
    let address = network::address(number);
    let quorum: Vec<String> =
        (0..plan.brokers).map(|number| format!("{}:{FLEET_PORT}", network::address(number))).collect();
    let listeners = format!("CLIENT://{address}:{CLIENT_PORT},FLEET://{address}:{FLEET_PORT}");
    format!(
        "cluster.id={CLUSTER_ID}\n\
         node.id={number}\n\
         log.dirs={}\n\
         listeners={listeners}\n\
         advertised.listeners={listeners}\n\
         listener.security.protocol.map=CLIENT:PLAINTEXT,FLEET:PLAINTEXT\n\
         inter.broker.listener.name=FLEET\n\
         controller.quorum.bootstrap.servers={}\n\
         health.listener={address}:{HEALTH_PORT}\n{}\n",
        data_dir.display(),
        quorum.join(","),
        plan.settings.join("\n"),
    )
}
