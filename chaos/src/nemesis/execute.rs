//! Carrying out a schedule: begins every fault when its time has come, and takes it back when it is over.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tokio::time::{Instant, sleep, sleep_until};

use super::schedule::{Fault, Schedule, Victim};
use crate::checks;
use crate::fleet::{Fleet, network};
use crate::workload::Shared;

/// Longest wait for full replication before a volume is lost: more than one at a time may be more than there are copies.
const REPLICATED_WITHIN: Duration = Duration::from_secs(30);

/// Longest wait for a broker to notice that its volume fails.
const FAILS_WITHIN: Duration = Duration::from_secs(15);

/// See the module documentation.
#[derive(Debug)]
pub struct Nemesis<'a> {
    fleet: &'a mut Fleet,
    shared: Arc<Shared>,
    start: Instant,
    /// What is to be taken back, and when.
    open: Vec<(Instant, Fault, Vec<usize>)>,
    carried_out: usize,
}

impl<'a> Nemesis<'a> {
    /// Prepares to hurt a fleet.
    pub fn new(fleet: &'a mut Fleet, shared: Arc<Shared>) -> Self {
        Self { fleet, shared, start: Instant::now(), open: Vec::new(), carried_out: 0 }
    }

    /// Carries out a schedule from now on and takes everything back. Returns how many faults there were.
    ///
    /// # Errors
    /// A fault cannot be made or taken back; the others are taken back all the same, as nothing ends on a volume that
    /// hangs.
    pub async fn run(mut self, schedule: &Schedule) -> Result<usize> {
        let outcome = self.carry_out(schedule).await;
        for (_, fault, victims) in std::mem::take(&mut self.open) {
            if let Err(error) = self.end(&fault, &victims).await {
                self.say(&format!("not taken back: {fault}: {error:#}"));
            }
        }
        outcome.map(|()| self.carried_out)
    }

    async fn carry_out(&mut self, schedule: &Schedule) -> Result<()> {
        self.start = Instant::now();
        for step in &schedule.steps {
            self.end_until(self.start + step.at).await?;
            let fault = &step.fault;
            if matches!(fault, Fault::Wipe { .. }) {
                // Nothing gets replicated while others are hurt.
                self.end_all().await?;
            }
            let Some(victims) = self.victims(fault).await else {
                self.say(&format!("left out, no broker is free for it: {fault}"));
                continue;
            };
            let what = || format!("{fault} (brokers {victims:?})");
            self.say(&what());
            match self.begin(fault, &victims).await.with_context(what) {
                Ok(false) => {}
                Ok(true) => {
                    self.carried_out += 1;
                    self.open.push((Instant::now() + step.lasts, fault.clone(), victims));
                }
                Err(error) => {
                    // It may have begun.
                    self.open.push((Instant::now(), fault.clone(), victims));
                    return Err(error);
                }
            }
        }
        self.end_all().await
    }

    /// Waits until everything is over, and takes it back.
    async fn end_all(&mut self) -> Result<()> {
        while let Some(last) = self.open.iter().map(|(end, ..)| *end).max() {
            self.end_until(last).await?;
        }
        Ok(())
    }

    fn say(&self, what: &str) {
        eprintln!("  {:6.2} s: {what}", self.start.elapsed().as_secs_f64());
    }

    /// Takes back what is over by then, and waits until then.
    async fn end_until(&mut self, until: Instant) -> Result<()> {
        self.open.sort_by_key(|(end, ..)| *end);
        while self.open.first().is_some_and(|(end, ..)| *end <= until) {
            let (end, fault, victims) = self.open.remove(0);
            sleep_until(end).await;
            self.say(&format!("over: {fault}"));
            self.end(&fault, &victims).await.with_context(|| format!("ending: {fault}"))?;
        }
        sleep_until(until).await;
        Ok(())
    }

    /// Brokers that a fault hits; `None` if another fault has them.
    async fn victims(&self, fault: &Fault) -> Option<Vec<usize>> {
        let count = self.fleet.len();
        let busy = |number: &usize| self.open.iter().any(|(_, _, victims)| victims.contains(number));
        let victims: Vec<usize> = match fault {
            Fault::KillAll => (0..count).collect(),
            Fault::Cut { victim, with, .. } => {
                let first = self.resolve(*victim).await;
                (first..=first + with).map(|number| number % count).collect()
            }
            Fault::Kill { victim }
            | Fault::Terminate { victim }
            | Fault::Pause { victim }
            | Fault::RestartLoop { victim, .. }
            | Fault::Lossy { victim, .. }
            | Fault::SlowLink { victim, .. }
            | Fault::DiskFull { victim }
            | Fault::DiskSlow { victim, .. }
            | Fault::DiskStall { victim }
            | Fault::DiskError { victim }
            | Fault::PowerLoss { victim }
            | Fault::Wipe { victim }
            | Fault::Clock { victim, .. } => vec![self.resolve(*victim).await],
        };
        if !victims.iter().any(busy) {
            return Some(victims);
        }
        // Another one will do for a fault of one broker.
        let free = (0..count).find(|number| !busy(number))?;
        (victims.len() == 1).then_some(vec![free])
    }

    async fn resolve(&self, victim: Victim) -> usize {
        let leader = |place: usize| {
            let place = place % self.shared.ledger.len().max(1);
            self.shared.routes.current(place).and_then(|route| route.leader).unwrap_or(0)
        };
        match victim {
            Victim::Broker(number) => number,
            Victim::Controller => self.fleet.controller().await.unwrap_or(0),
            Victim::Leader(place) => leader(place),
            Victim::Follower(place) => (leader(place) + 1) % self.fleet.len(),
        }
    }

    /// Makes a fault; false if it would be too much.
    async fn begin(&mut self, fault: &Fault, victims: &[usize]) -> Result<bool> {
        let Some(&first) = victims.first() else { return Ok(false) };
        match fault {
            Fault::Kill { .. } => self.fleet.broker_mut(first).kill().await?,
            Fault::KillAll => {
                for broker in self.fleet.brokers_mut() {
                    broker.begin_kill()?;
                }
                for broker in self.fleet.brokers_mut() {
                    broker.reap().await?;
                }
            }
            Fault::Terminate { .. } => self.fleet.broker_mut(first).terminate().await?,
            Fault::Pause { .. } => self.fleet.broker(first).pause().await?,
            Fault::RestartLoop { times, each, .. } => {
                for _ in 0..*times {
                    self.fleet.broker_mut(first).kill().await?;
                    self.fleet.broker_mut(first).start()?;
                    sleep(*each).await;
                }
            }
            Fault::Cut { clients, direction, .. } => {
                let others = (0..self.fleet.len()).filter(|number| !victims.contains(number));
                let peers = network::peers(others, *clients);
                for victim in victims {
                    network::cut(*victim, &peers, *direction).await?;
                }
            }
            Fault::Lossy { percent, .. } => network::lose(first, *percent).await?,
            Fault::SlowLink { kilobits, .. } => network::slow(first, *kilobits).await?,
            Fault::DiskFull { .. } => self.fleet.broker(first).disk().fill().await?,
            Fault::DiskSlow { kilobytes, .. } => {
                if !self.fleet.broker(first).disk().can_be_slow() {
                    self.say("left out: block devices cannot be limited on this machine");
                    return Ok(false);
                }
                let broker = self.fleet.broker_mut(first);
                broker.begin_trouble();
                broker.disk().limit(*kilobytes)?;
            }
            Fault::DiskStall { .. } => {
                let broker = self.fleet.broker_mut(first);
                broker.begin_trouble();
                broker.disk().freeze().await?;
            }
            Fault::DiskError { .. } => {
                let broker = self.fleet.broker_mut(first);
                broker.begin_trouble();
                // Between system calls: ext4 lets a sync succeed that meets the shutdown half-way, which no disk does.
                broker.pause().await?;
                broker.disk().lose_power().await?;
                broker.signal(Signal::CONT)?;
            }
            Fault::PowerLoss { .. } => {
                self.fleet.broker_mut(first).kill().await?;
                self.fleet.broker(first).disk().lose_power().await?;
            }
            Fault::Wipe { .. } => {
                if let Err(why) = self.wait_until_all_is_copied().await {
                    self.say(&format!("left out, as not everything is replicated: {why:#}"));
                    return Ok(false);
                }
                self.fleet.broker_mut(first).kill().await?;
                self.fleet.broker(first).disk().wipe()?;
            }
            Fault::Clock { seconds, .. } => {
                self.fleet.broker(first).clock().context("clocks are not their own")?.set(*seconds)?;
            }
        }
        Ok(true)
    }

    /// Waits until no record and no metadata is lost with any one volume.
    async fn wait_until_all_is_copied(&self) -> Result<()> {
        self.fleet.wait_until_quorum_is_whole(REPLICATED_WITHIN).await?;
        // Last: topics come and go meanwhile, voters do not.
        checks::wait_until_replicated(&self.shared, REPLICATED_WITHIN).await
    }

    async fn end(&mut self, fault: &Fault, victims: &[usize]) -> Result<()> {
        for &victim in victims {
            let broker = self.fleet.broker_mut(victim);
            match fault {
                Fault::Kill { .. } | Fault::KillAll | Fault::Terminate { .. } | Fault::Wipe { .. } => {
                    broker.start()?;
                }
                Fault::Pause { .. } => broker.signal(Signal::CONT)?,
                Fault::RestartLoop { .. } => {}
                Fault::Cut { .. } | Fault::Lossy { .. } | Fault::SlowLink { .. } => {
                    network::heal(victim).await?
                }
                Fault::DiskFull { .. } => broker.disk().free()?,
                Fault::DiskSlow { .. } => {
                    broker.disk().limit(0)?;
                    broker.end_trouble();
                }
                Fault::DiskStall { .. } => {
                    broker.disk().thaw().await?;
                    broker.end_trouble();
                }
                Fault::DiskError { .. } => {
                    // Its own failure counts as its end; one that does not notice is killed.
                    let patience = Instant::now() + FAILS_WITHIN;
                    while broker.is_running() && Instant::now() < patience {
                        sleep(Duration::from_millis(50)).await;
                    }
                    broker.kill().await?;
                    broker.disk().power_on().await?;
                    broker.end_trouble();
                    broker.start()?;
                }
                Fault::PowerLoss { .. } => {
                    broker.disk().power_on().await?;
                    broker.start()?;
                }
                Fault::Clock { .. } => broker.clock().context("clocks are not their own")?.set(0)?,
            }
        }
        Ok(())
    }
}
