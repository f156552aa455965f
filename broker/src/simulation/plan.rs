//! What a seed means: the fleet, its settings, and the faults that it goes through.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// See the module documentation.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) machines: usize,
    pub(super) partitions: i32,
    pub(super) min_insync_replicas: usize,
    /// Records are acknowledged when they are written, not when they are synced.
    pub(super) written: bool,
    pub(super) snapshot_every: u64,
    /// Partitions are moved from machine to machine meanwhile.
    pub(super) moves: bool,
    /// Longest time that a message takes on a healthy link.
    pub(super) latency: Duration,
    pub(super) faults: Vec<Step>,
}

/// A fault, and when.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// Time since the beginning of the fault before it.
    pub(super) after: Duration,
    pub(super) fault: Fault,
    pub(super) lasts: Duration,
}

/// What is done to the fleet; numbers are those of machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The process ends, and is started again.
    Kill(usize),
    /// The process is asked to stop, and is started again when it has.
    Stop(usize),
    /// The machine loses power.
    PowerFails(usize),
    /// All machines lose power at once.
    Blackout,
    /// The machine loses power and its volume. Before that the other one is cut off.
    VolumeLost(usize, Option<usize>),
    /// What the two send each other is lost, and so are their connections.
    Cut(usize, usize),
    /// What the first one sends the second is lost.
    CutOneWay(usize, usize),
    /// Nobody hears the machine, and it hears nobody; its connections are lost.
    Isolate(usize),
    /// Nobody hears the machine, and it hears nobody; what was sent arrives when that is over, as TCP sends it again.
    Hold(usize),
    /// Every sync takes long.
    DiskStalls(usize),
    /// The time of day jumps by so many milliseconds.
    ClockJumps(usize, i64),
    /// Every message takes long.
    SlowNetwork,
}

impl Plan {
    /// What `seed` means.
    pub(super) fn of(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let machines = if random.random_ratio(1, 6) { random.random_range(4..=5) } else { 3 };
        let written = random.random_ratio(1, 4);
        let min_insync_replicas = if random.random_ratio(1, 6) { 1 } else { 2 };
        let mut plan = Self {
            seed,
            machines,
            partitions: random.random_range(1..=3),
            min_insync_replicas,
            written,
            snapshot_every: random.random_range(10..60),
            moves: random.random_ratio(1, 3),
            latency: Duration::from_millis(random.random_range(2..25)),
            faults: Vec::new(),
        };
        let count = random.random_range(3..=6);
        plan.faults = (0..count).map(|_| plan.step(&mut random)).collect();
        plan
    }

    /// Whether records or metadata that someone relies on are gone for good: not while anything else is not whole.
    pub(super) fn is_lossy(&self, fault: &Fault) -> bool {
        match fault {
            Fault::VolumeLost(..) => true,
            Fault::PowerFails(_) => self.written,
            _ => false,
        }
    }

    fn step(&self, random: &mut StdRng) -> Step {
        loop {
            let fault = self.fault(random);
            // With one copy only, its loss is no broken promise.
            let allowed = match fault {
                Fault::Blackout => !self.written,
                ref fault => self.min_insync_replicas > 1 || !self.is_lossy(fault),
            };
            if allowed {
                return Step {
                    after: Duration::from_millis(random.random_range(50..2_500)),
                    fault,
                    lasts: Duration::from_millis(random.random_range(200..4_500)),
                };
            }
        }
    }

    fn fault(&self, random: &mut StdRng) -> Fault {
        let machine = random.random_range(0..self.machines);
        let other = (machine + random.random_range(1..self.machines)) % self.machines;
        match random.random_range(0..25) {
            0..4 => Fault::Kill(machine),
            4..7 => Fault::PowerFails(machine),
            7 => Fault::Blackout,
            8..11 => Fault::VolumeLost(machine, random.random_ratio(2, 3).then_some(other)),
            11..15 => Fault::Hold(machine),
            15 => Fault::Cut(machine, other),
            16 => Fault::CutOneWay(machine, other),
            17 => Fault::Isolate(machine),
            18..20 => Fault::DiskStalls(machine),
            20 => Fault::ClockJumps(machine, random.random_range(-3_000_000..3_000_000)),
            21 => Fault::SlowNetwork,
            _ => Fault::Stop(machine),
        }
    }
}
