//! One broker: its process, its configuration, its volume, its clock.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::process::Signal;
use tokio::process::Command;

use super::clock::Clock;
use super::disk::Disk;
use super::supervisor::Supervisor;
use super::{CLUSTER_ID, DEADLINE, FleetPlan, broker_folder, management, network, rack, until};
use crate::findings::Blame;
use crate::world;

/// Port of the client listener.
pub const CLIENT_PORT: u16 = 9092;
/// Port of the internal listener.
pub const FLEET_PORT: u16 = 9093;
/// Port of probes and metrics.
pub const HEALTH_PORT: u16 = 9094;

/// Names a mistake of the past to a broker that was built for it.
const HISTORICAL_BUG: &str = "MILLRACE_HISTORICAL_BUG";

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
    historical_bug: Option<String>,
    supervisor: Supervisor,
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
        Ok(Self {
            number,
            program: plan.program.clone(),
            config,
            log: folder.join("broker.log"),
            disk,
            clock,
            historical_bug: plan.historical_bug.clone(),
            supervisor: Supervisor::new(number, Arc::clone(&plan.findings)),
        })
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

    /// Whether its process runs. One that ended without being asked to is a finding.
    pub fn is_running(&mut self) -> bool {
        self.supervisor.is_running()
    }

    /// Its own volume is slow, hung or broken from now on, which is an excuse for ending.
    pub fn begin_trouble(&mut self) {
        self.supervisor.begin_trouble();
    }

    /// Its volume is as it should be again.
    pub fn end_trouble(&mut self) {
        self.supervisor.end_trouble();
    }

    /// Starts the process, unless one runs.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&mut self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
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
        if let Some(bug) = &self.historical_bug {
            command.env(HISTORICAL_BUG, bug);
        }
        self.supervisor.start(&mut command)?;
        self.supervisor.pid().map_or(Ok(()), |pid| self.disk.adopt(pid))
    }

    /// Kills the process as the kernel would, and waits for its end. Does nothing if none runs.
    ///
    /// # Errors
    /// It does not end.
    pub async fn kill(&mut self) -> Result<()> {
        self.begin_kill()?;
        self.reap().await
    }

    /// Kills the process as the kernel would; its end is waited for with [`reap`](Self::reap).
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn begin_kill(&mut self) -> Result<()> {
        self.supervisor.kill()
    }

    /// Waits for the end of a process that was killed.
    ///
    /// # Errors
    /// It does not end.
    pub async fn reap(&mut self) -> Result<()> {
        self.supervisor.reap(STOP_DEADLINE).await
    }

    /// Asks the process to stop and waits until it has. One that does not in time, which is killed then, or that says that
    /// something failed, is a finding.
    ///
    /// # Errors
    /// A signal cannot be sent, or the process outlives its death.
    pub async fn terminate(&mut self) -> Result<()> {
        self.supervisor.terminate(STOP_DEADLINE).await
    }

    /// Sends a signal to the process, if one runs, which does not end it.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.supervisor.signal(signal)
    }

    /// Stops the process (SIGSTOP) and waits until none of its threads is in the middle of a system call any more; that
    /// holds for one that has ended, too.
    ///
    /// # Errors
    /// The signal cannot be sent, or a thread does not stop.
    pub async fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let Some(pid) = self.supervisor.pid() else { return Ok(()) };
        let threads = Path::new("/proc").join(pid.to_string()).join("task");
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

    /// Makes sure that a broker which is to make a mistake says so in its log: any other one would be right in vain.
    ///
    /// # Errors
    /// It does not.
    pub fn ensure_bug(&self) -> Result<()> {
        let Some(bug) = &self.historical_bug else { return Ok(()) };
        let log = fs::read(&self.log).with_context(|| self.log.display().to_string())?;
        let says = String::from_utf8_lossy(&log).lines().any(|l| l.contains("ON PURPOSE") && l.contains(bug));
        ensure!(says, "broker {} does not make {bug}: build it with --features historical-bugs", self.number);
        Ok(())
    }

    /// Waits until the broker says that it is ready.
    ///
    /// # Errors
    /// With [`Blame`] if its process ends, or it does not get ready in time; with what it says.
    pub async fn wait_until_ready(&mut self) -> Result<()> {
        let number = self.number;
        let mut last = String::new();
        let outcome = until("it to be ready", DEADLINE, async || {
            if !self.is_running() {
                return Some(Err(anyhow!("its process has ended")));
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
         broker.rack={}\n\
         log.dirs={}\n\
         listeners={listeners}\n\
         advertised.listeners={listeners}\n\
         listener.security.protocol.map=CLIENT:PLAINTEXT,FLEET:PLAINTEXT\n\
         inter.broker.listener.name=FLEET\n\
         controller.quorum.bootstrap.servers={}\n\
         health.listener={address}:{HEALTH_PORT}\n{}\n",
        rack(number),
        data_dir.display(),
        quorum.join(","),
        plan.settings.join("\n"),
    )
}
