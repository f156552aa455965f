//! Which faults come when: a pure function of the seed and the shape of the fleet, so that a run can be repeated.
//!
//! A victim may be named by its role (the controller, the leader of some partition), which is looked up when the time
//! has come: the schedule is the same every time, who is hit can differ.

use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::fleet::network::Direction;

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// This broker.
    Broker(usize),
    /// Whoever leads the metadata quorum.
    Controller,
    /// Whoever leads this partition of the workload.
    Leader(usize),
    /// The broker after the leader of this partition: a follower where there are some.
    Follower(usize),
}

/// Kinds of faults, as they are named on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// `kill -9`, and a start later.
    Kill,
    /// `kill -9` of all brokers at once.
    KillAll,
    /// An orderly stop, and a start later.
    Terminate,
    /// SIGSTOP, and SIGCONT later.
    Pause,
    /// Started and killed several times in a row.
    RestartLoop,
    /// Packets between one or more brokers and the others vanish, with or without those of clients, in one direction
    /// or both.
    Cut,
    /// A share of the packets to one broker vanishes.
    Lossy,
    /// One broker's link becomes slow.
    SlowLink,
    /// One volume is full.
    DiskFull,
    /// One volume is slow.
    DiskSlow,
    /// One volume hangs.
    DiskStall,
    /// One volume fails every request, and comes back without what was not synced.
    DiskError,
    /// One broker and its volume lose power.
    PowerLoss,
    /// One broker loses its volume.
    Wipe,
    /// One broker's clock is set.
    Clock,
}

impl Kind {
    /// How often it comes, compared with others.
    fn weight(self) -> u32 {
        match self {
            Self::Kill => 6,
            Self::Cut => 5,
            Self::Pause | Self::PowerLoss | Self::Wipe | Self::Terminate => 3,
            Self::KillAll | Self::Lossy | Self::RestartLoop | Self::DiskError => 2,
            Self::SlowLink | Self::DiskFull | Self::DiskSlow | Self::DiskStall | Self::Clock => 1,
        }
    }

    /// Whether it takes more than a process: what the operating system had and the disk had not.
    fn loses_unsynced(self) -> bool {
        matches!(self, Self::PowerLoss | Self::DiskError)
    }
}

/// A fault with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "see the kinds of the same names")]
pub enum Fault {
    Kill { victim: Victim },
    KillAll,
    Terminate { victim: Victim },
    Pause { victim: Victim },
    RestartLoop { victim: Victim, times: u32, each: Duration },
    Cut { victim: Victim, with: usize, clients: bool, direction: Direction },
    Lossy { victim: Victim, percent: u8 },
    SlowLink { victim: Victim, kilobits: u32 },
    DiskFull { victim: Victim },
    DiskSlow { victim: Victim, kilobytes: u32 },
    DiskStall { victim: Victim },
    DiskError { victim: Victim },
    PowerLoss { victim: Victim },
    Wipe { victim: Victim },
    Clock { victim: Victim, seconds: i64 },
}

/// A fault, when it comes and how long it stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// When it begins, from the beginning of the run.
    pub at: Duration,
    /// How long it stays.
    pub lasts: Duration,
    /// What it is.
    pub fault: Fault,
}

/// What a schedule is for.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Brokers of the fleet.
    pub brokers: usize,
    /// Replicas of each partition.
    pub replicas: usize,
    /// Partitions of the workload.
    pub partitions: usize,
    /// When the last fault ends.
    pub length: Duration,
    /// Kinds of faults to choose from; empty means all.
    pub only: Vec<Kind>,
}

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Faults by their beginning.
    pub steps: Vec<Step>,
    /// Whether some topics acknowledge what is written but not synced. Only without faults that lose that.
    pub written: bool,
}

/// Bounds of how long a fault stays, and of the time before the next, in milliseconds.
const LASTS: (u64, u64) = (500, 8_000);
const BETWEEN: (u64, u64) = (200, 4_000);

/// In one of so many cases the next fault comes while the one before is still there.
const OVERLAP: u32 = 4;

impl Schedule {
    /// The schedule of a seed.
    pub fn of(seed: u64, shape: &Shape) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let written = random.random_bool(0.5);
        let kinds: Vec<Kind> = Kind::value_variants()
            .iter()
            .copied()
            .filter(|kind| shape.only.is_empty() || shape.only.contains(kind))
            .filter(|kind| shape.replicas > 1 || *kind != Kind::Wipe)
            .filter(|kind| !written || !kind.loses_unsynced() || !shape.only.is_empty())
            .collect();
        let mut steps: Vec<Step> = Vec::new();
        let mut at = Duration::from_millis(random.random_range(500..1500));
        while let Ok(kind) = kinds.choose_weighted(&mut random, |kind| kind.weight()) {
            let lasts = Duration::from_millis(random.random_range(LASTS.0..LASTS.1));
            if at + lasts > shape.length {
                break;
            }
            steps.push(Step { at, lasts, fault: fault(*kind, shape, &mut random) });
            let pause = Duration::from_millis(random.random_range(BETWEEN.0..BETWEEN.1));
            at += if random.random_ratio(1, OVERLAP) { lasts / 2 } else { lasts + pause };
        }
        let loses =
            steps.iter().any(|step| matches!(step.fault, Fault::PowerLoss { .. } | Fault::DiskError { .. }));
        Self { steps, written: written && !loses }
    }

    /// Whether a broker's clock is set.
    pub fn sets_clocks(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.fault, Fault::Clock { .. }))
    }
}

fn fault(kind: Kind, shape: &Shape, random: &mut SmallRng) -> Fault {
    let partition = random.random_range(0..shape.partitions.max(1));
    let victim = match random.random_range(0..4) {
        0 => Victim::Controller,
        1 => Victim::Leader(partition),
        2 => Victim::Follower(partition),
        _ => Victim::Broker(random.random_range(0..shape.brokers)),
    };
    match kind {
        Kind::Kill => Fault::Kill { victim },
        Kind::KillAll => Fault::KillAll,
        Kind::Terminate => Fault::Terminate { victim },
        Kind::Pause => Fault::Pause { victim },
        Kind::RestartLoop => Fault::RestartLoop {
            victim,
            times: random.random_range(2..5),
            each: Duration::from_millis(random.random_range(50..1500)),
        },
        Kind::Cut => Fault::Cut {
            victim,
            // Up to half of the fleet on the victim's side.
            with: random.random_range(0..shape.brokers.div_ceil(2)),
            clients: random.random(),
            direction: *[Direction::Both, Direction::Both, Direction::Inbound, Direction::Outbound]
                .choose(random)
                .unwrap_or(&Direction::Both),
        },
        Kind::Lossy => Fault::Lossy { victim, percent: random.random_range(5..40) },
        Kind::SlowLink => Fault::SlowLink { victim, kilobits: random.random_range(128..4096) },
        Kind::DiskFull => Fault::DiskFull { victim },
        Kind::DiskSlow => Fault::DiskSlow { victim, kilobytes: random.random_range(64..2048) },
        Kind::DiskStall => Fault::DiskStall { victim },
        Kind::DiskError => Fault::DiskError { victim },
        Kind::PowerLoss => Fault::PowerLoss { victim },
        Kind::Wipe => Fault::Wipe { victim },
        Kind::Clock => {
            let ahead = random.random_range(1..100_000);
            Fault::Clock { victim, seconds: if random.random() { ahead } else { -ahead } }
        }
    }
}

impl std::fmt::Display for Victim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Broker(number) => write!(f, "broker {number}"),
            Self::Controller => write!(f, "the controller"),
            Self::Leader(place) => write!(f, "the leader of partition {place}"),
            Self::Follower(place) => write!(f, "a follower of partition {place}"),
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kill { victim } => write!(f, "kill -9 {victim}"),
            Self::KillAll => write!(f, "kill -9 all brokers at once"),
            Self::Terminate { victim } => write!(f, "stop {victim} in order"),
            Self::Pause { victim } => write!(f, "pause {victim}"),
            Self::RestartLoop { victim, times, each } => {
                write!(f, "kill -9 {victim} {times} times, {each:?} after each start")
            }
            Self::Cut { victim, with, clients, direction } => {
                let from = if *clients { "brokers and clients" } else { "brokers" };
                write!(f, "cut {victim} and the next {with} off from other {from}, {direction:?}")
            }
            Self::Lossy { victim, percent } => write!(f, "lose {percent} % of the packets to {victim}"),
            Self::SlowLink { victim, kilobits } => write!(f, "let {victim} send {kilobits} kbit/s"),
            Self::DiskFull { victim } => write!(f, "fill the volume of {victim}"),
            Self::DiskSlow { victim, kilobytes } => {
                write!(f, "let {victim} read and write {kilobytes} KB/s")
            }
            Self::DiskStall { victim } => write!(f, "let every write of {victim} hang"),
            Self::DiskError { victim } => write!(f, "let the volume of {victim} fail"),
            Self::PowerLoss { victim } => write!(f, "cut the power of {victim}"),
            Self::Wipe { victim } => write!(f, "lose the volume of {victim}"),
            Self::Clock { victim, seconds } => write!(f, "set the clock of {victim} by {seconds} s"),
        }
    }
}

impl std::fmt::Display for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for step in &self.steps {
            writeln!(
                f,
                "  {:6.2} s, for {:.2} s: {}",
                step.at.as_secs_f64(),
                step.lasts.as_secs_f64(),
                step.fault
            )?;
        }
        let durability = if self.written { "fsync and written" } else { "fsync" };
        write!(f, "  log.durability: {durability}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(replicas: usize) -> Shape {
        let length = Duration::from_secs(120);
        Shape { brokers: 3, replicas, partitions: 9, length, only: Vec::new() }
    }

    #[test]
    fn a_seed_gives_the_same_schedule_every_time_and_another_seed_another() {
        assert_eq!(Schedule::of(7, &shape(3)), Schedule::of(7, &shape(3)));
        assert_ne!(Schedule::of(7, &shape(3)), Schedule::of(8, &shape(3)));
    }

    #[test]
    fn faults_begin_in_order_and_end_in_time() {
        for seed in 0..200 {
            let steps = Schedule::of(seed, &shape(3)).steps;
            assert!(!steps.is_empty());
            assert!(steps.is_sorted_by_key(|step| step.at));
            assert!(steps.iter().all(|step| step.at + step.lasts <= shape(3).length));
        }
    }

    #[test]
    fn what_no_replica_could_make_up_for_is_not_done() {
        for seed in 0..200 {
            let one = Schedule::of(seed, &shape(1));
            assert!(!one.steps.iter().any(|step| matches!(step.fault, Fault::Wipe { .. })));
            for schedule in [one, Schedule::of(seed, &shape(3))] {
                let loses = schedule
                    .steps
                    .iter()
                    .any(|step| matches!(step.fault, Fault::PowerLoss { .. } | Fault::DiskError { .. }));
                assert!(!(schedule.written && loses));
            }
        }
    }

    #[test]
    fn a_schedule_can_be_made_of_some_kinds_only() {
        let only = Shape { only: vec![Kind::Kill], ..shape(3) };
        let steps = Schedule::of(1, &only).steps;
        assert!(steps.iter().all(|step| matches!(step.fault, Fault::Kill { .. })));
    }
}
