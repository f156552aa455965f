//! One run: a fleet that goes through the faults of its plan, and is then left alone until it is whole again.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use turmoil::Sim;

use super::checks::Checks;
use super::machine::{Machine, Power, host};
use super::plan::{Fault, Plan};
use super::trace::Trace;
use super::workload::{Phase, Workload};

const TICK: Duration = Duration::from_millis(10);
const CLIENTS: &str = "clients";

/// Simulated time until the topic is there, and after the faults until the fleet is whole.
const PATIENCE: Duration = Duration::from_secs(90);

/// Steps between two looks whether what is waited for is there.
const LOOK_EVERY: usize = 10;

/// Time after the last fault has begun, and after the fleet is whole again.
const QUIET: Duration = Duration::from_millis(300);

/// 2026-01-01.
const EPOCH: Duration = Duration::from_secs(1_767_225_600);

/// What came of a run.
pub(super) struct Outcome {
    pub(super) trace: Rc<Trace>,
    pub(super) acknowledged: u64,
    pub(super) simulated: Duration,
}

struct Run {
    sim: Sim<'static>,
    plan: Rc<Plan>,
    trace: Rc<Trace>,
    machines: Vec<Rc<Machine>>,
    checks: Checks,
    workload: Rc<Workload>,
    /// Faults that are to end, and when.
    ends: BTreeMap<(Duration, usize), Fault>,
    begun: usize,
}

/// Runs `plan` with files in `folder`.
pub(super) fn run(plan: Plan, folder: &Path) -> std::io::Result<Outcome> {
    let mut run = Run::new(Rc::new(plan), folder)?;
    run.go()?;
    let acknowledged = run.workload.ledgers.borrow().iter().map(|it| it.acknowledged_records()).sum();
    let outcome = Outcome { trace: Rc::clone(&run.trace), acknowledged, simulated: run.sim.elapsed() };
    // What is left of brokers refers to the simulated network.
    run.machines.iter().for_each(|machine| machine.process_ends());
    Ok(outcome)
}

impl Run {
    fn new(plan: Rc<Plan>, folder: &Path) -> std::io::Result<Self> {
        let trace: Rc<Trace> = Rc::default();
        let mut sim = turmoil::Builder::new()
            .rng_seed(plan.seed)
            .epoch(SystemTime::UNIX_EPOCH + EPOCH)
            .simulation_duration(Duration::from_secs(100_000))
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(plan.latency)
            .tcp_capacity(4096)
            .enable_random_order()
            .build();
        let mut machines = Vec::new();
        for number in 0..plan.machines {
            let machine = Machine::new(number, folder, Rc::clone(&plan))?;
            let software = Rc::clone(&machine);
            sim.host(host(number), move || Rc::clone(&software).software());
            machines.push(machine);
        }
        let voters: BTreeMap<u64, String> =
            machines.iter().take(3).map(|machine| machine.voter()).collect::<Result<_, _>>()?;
        machines[0].bootstrap(voters);
        let workload = Workload::new(Rc::clone(&plan), Rc::clone(&trace));
        let checks = Checks::new(Rc::clone(&plan), Rc::clone(&trace), machines.clone());
        Ok(Self { sim, plan, trace, machines, checks, workload, ends: BTreeMap::new(), begun: 0 })
    }

    fn go(&mut self) -> std::io::Result<()> {
        self.trace.say(Duration::ZERO, format!("{:?}", self.plan));
        for number in 0..self.plan.machines {
            self.start(number);
        }
        let workload = Rc::clone(&self.workload);
        self.sim.client(CLIENTS, workload.software());
        if !self.advance_until(PATIENCE, |run| run.workload.ready.get() && run.checks.is_whole())? {
            self.stuck("come up");
            return Ok(());
        }
        let plan = Rc::clone(&self.plan);
        for step in &plan.faults {
            self.advance(step.after)?;
            if self.plan.is_lossy(&step.fault) {
                self.repair_all()?;
                if !self.advance_until(PATIENCE, |run| run.checks.is_whole())? {
                    self.stuck("become whole");
                    return Ok(());
                }
            }
            self.begin(&step.fault, step.lasts)?;
            if !self.trace.findings().is_empty() {
                return Ok(());
            }
        }
        self.advance(QUIET)?;
        self.repair_all()?;
        self.workload.phase.set(Phase::Drain);
        if !self.advance_until(PATIENCE, Run::is_settled)? {
            self.stuck("settle");
            return Ok(());
        }
        self.advance(QUIET)?;
        if self.trace.findings().is_empty() {
            self.checks.replicas_are_identical(self.sim.elapsed(), &self.workload.ledgers.borrow());
        }
        Ok(())
    }

    fn stuck(&self, what: &str) {
        if self.trace.findings().is_empty() {
            let why = self.checks.not_whole().unwrap_or_else(|| {
                format!("{} clients have not come to their end", self.workload.changing.get())
            });
            self.trace.find(self.sim.elapsed(), format!("the fleet does not {what} in {PATIENCE:?}: {why}"));
        }
    }

    /// Whether the fleet is whole, whoever changes something has come to their end and consumers have read everything.
    fn is_settled(&self) -> bool {
        self.workload.changing.get() == 0 && self.checks.is_whole() && self.is_read()
    }

    fn is_read(&self) -> bool {
        let ledgers = self.workload.ledgers.borrow();
        let image = self.machines.first().and_then(|machine| machine.running());
        let Some(image) = image.map(|running| running.metadata.image()) else { return false };
        let Some(topic) = image.topic_by_name(super::workload::TOPIC) else { return false };
        (0..).zip(ledgers.iter()).all(|(partition, ledger)| {
            let id = crate::metadata::image::TopicIdPartition { topic_id: topic.topic_id, partition };
            self.machines.iter().all(|machine| {
                let hosted = machine.running().and_then(|running| running.replicas.partition(id));
                hosted.is_none_or(|hosted| {
                    let ends = hosted.log().ends();
                    ends.log_end == ledger.seen_end() && ends.durable_end == ends.log_end
                })
            })
        })
    }

    /// Lets time pass; ends early when something was found.
    fn advance(&mut self, time: Duration) -> std::io::Result<()> {
        self.advance_until(time, |_| false).map(drop)
    }

    fn advance_until(&mut self, time: Duration, done: impl Fn(&Self) -> bool) -> std::io::Result<bool> {
        let until = self.sim.elapsed() + time;
        let mut steps = 0;
        while self.sim.elapsed() < until && self.trace.findings().is_empty() {
            let now = self.sim.elapsed();
            while let Some(end) = self.ends.first_entry().filter(|end| end.key().0 <= now) {
                let fault = end.remove();
                self.end(&fault)?;
            }
            if let Err(error) = self.sim.step() {
                self.trace.find(now, format!("the simulation has ended: {error}"));
            }
            self.checks.look(self.sim.elapsed());
            self.end_what_has_stopped();
            steps += 1;
            if steps % LOOK_EVERY == 0 && done(self) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn say(&self, line: String) {
        self.trace.say(self.sim.elapsed(), line);
    }

    fn begin(&mut self, fault: &Fault, lasts: Duration) -> std::io::Result<()> {
        self.say(format!("begins: {fault:?} for {lasts:?}"));
        match *fault {
            Fault::Kill(number) => self.kill(number),
            Fault::Stop(number) => self.machines[number].ask_to_stop(),
            Fault::PowerFails(number) => self.power_fails(number)?,
            Fault::Blackout => {
                for number in 0..self.plan.machines {
                    self.power_fails(number)?;
                }
            }
            Fault::VolumeLost(number, other) => {
                if let Some(other) = other {
                    self.isolate(other);
                    self.advance(Duration::from_millis(2_000))?;
                    let until = self.sim.elapsed() + lasts / 2;
                    self.ends.insert((until, self.begun), Fault::Isolate(other));
                    self.begun += 1;
                }
                self.power_fails(number)?;
                self.machines[number].wipe()?;
            }
            Fault::Cut(one, other) => self.sim.partition(host(one), host(other)),
            Fault::CutOneWay(from, to) => self.sim.partition_oneway(host(from), host(to)),
            Fault::Isolate(number) => self.isolate(number),
            Fault::Hold(number) => {
                for other in self.others(number) {
                    self.sim.hold(host(number), other);
                }
            }
            Fault::DiskStalls(number) => self.machines[number].drive.stall(true),
            Fault::ClockJumps(number, millis) => self.machines[number].set_clock(millis),
            Fault::SlowNetwork => self.sim.set_max_message_latency(Duration::from_millis(400)),
        }
        self.ends.insert((self.sim.elapsed() + lasts, self.begun), fault.clone());
        self.begun += 1;
        Ok(())
    }

    fn end(&mut self, fault: &Fault) -> std::io::Result<()> {
        self.say(format!("ends: {fault:?}"));
        match *fault {
            Fault::Kill(number)
            | Fault::Stop(number)
            | Fault::PowerFails(number)
            | Fault::VolumeLost(number, _) => self.start(number),
            Fault::Blackout => (0..self.plan.machines).for_each(|number| self.start(number)),
            Fault::Cut(one, other) => self.sim.repair(host(one), host(other)),
            Fault::CutOneWay(from, to) => self.sim.repair_oneway(host(from), host(to)),
            Fault::Isolate(number) => self.reconnect(number),
            Fault::Hold(number) => {
                for other in self.others(number) {
                    self.sim.release(host(number), other);
                }
            }
            Fault::DiskStalls(number) => self.machines[number].drive.stall(false),
            Fault::ClockJumps(number, _) => self.machines[number].set_clock(0),
            Fault::SlowNetwork => self.sim.set_max_message_latency(self.plan.latency),
        }
        Ok(())
    }

    fn repair_all(&mut self) -> std::io::Result<()> {
        for (_, fault) in std::mem::take(&mut self.ends) {
            self.end(&fault)?;
        }
        (0..self.plan.machines).for_each(|number| {
            self.reconnect(number);
            self.start(number);
        });
        Ok(())
    }

    /// Hosts that a machine talks to.
    fn others(&self, number: usize) -> Vec<String> {
        let brokers = (0..self.plan.machines).filter(|other| *other != number).map(host);
        brokers.chain([CLIENTS.to_owned()]).collect()
    }

    fn isolate(&self, number: usize) {
        for other in self.others(number) {
            self.sim.partition(host(number), other);
        }
    }

    /// Ends whatever keeps the machine from the others that are up.
    fn reconnect(&self, number: usize) {
        for other in self.others(number) {
            self.sim.repair(host(number), other);
        }
    }

    fn kill(&mut self, number: usize) {
        if self.machines[number].power.get() == Power::On {
            self.machines[number].process_ends();
            // The machine's system ends the connections, and refuses new ones.
            self.sim.bounce(host(number));
        }
    }

    /// Ends processes that have stopped as they were asked to, and starts them again if that was to be over by now.
    fn end_what_has_stopped(&mut self) {
        for number in 0..self.plan.machines {
            if self.machines[number].has_stopped.get() {
                self.say(format!("broker {number} has stopped"));
                self.kill(number);
                if !self.ends.values().any(|fault| *fault == Fault::Stop(number)) {
                    self.start(number);
                }
            }
        }
    }

    fn power_fails(&mut self, number: usize) -> std::io::Result<()> {
        if self.machines[number].power.get() != Power::Off {
            self.machines[number].power_fails()?;
            // Nobody is told that the connections are gone.
            self.isolate(number);
            self.sim.crash(host(number));
        }
        Ok(())
    }

    fn start(&mut self, number: usize) {
        let before = self.machines[number].power.replace(Power::On);
        if before == Power::On {
            return;
        }
        if before == Power::Off {
            self.reconnect(number);
        }
        self.sim.bounce(host(number));
    }
}

#[path = "scenarios.rs"]
mod scenarios;
