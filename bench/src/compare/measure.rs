//! Measures one row at one broker: fresh folder, start, topic, warm-up, measurement, end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::figures::{self, Figures};
use super::java;
use super::page_cache;
use super::rows::{Row, Scenario};
use crate::brokers::{Broker, Brokers, Durability, Formatted, Side};
use crate::load::{Admin, Consume, Limit, Load, NewTopic, Pace, Replicas, Shape, Target, Throughput};
use crate::procfs::{Snapshot, Usage};

pub(super) const TOPIC: &str = "bench";

/// The topic that a broker's code is warmed with.
const WARM_TOPIC: &str = "warm";

/// Most of the warm-up that goes there, as a share.
const WARM_SHARE: f64 = 0.8;

/// Parts of that: a just-in-time compiler is done when a part costs as much as the one before.
const WARM_PARTS: u32 = 8;

/// How much two parts may differ in CPU time per request.
const SETTLED: f64 = 0.05;

/// Longest stretch of a scenario that ends by amount, not by time.
pub(super) const UNTIL_DONE: Duration = Duration::from_secs(600);

/// Time between two tries while a broker restarts.
const RETRY: Duration = Duration::from_millis(5);

/// How long and how much.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Load before a measurement.
    pub warm_up: Duration,
    /// Measurement, and open loop.
    pub measure: Duration,
    /// Most bytes of a warm-up; a measurement may have twice that.
    pub bytes: u64,
    /// Factor on the amounts that scenarios name (1 in the full run).
    pub scale: f64,
}

impl Effort {
    /// One part of the load at full speed that warms a broker's code.
    fn code_warm_up(&self) -> Limit {
        Limit {
            time: self.warm_up.mul_f64(WARM_SHARE) / WARM_PARTS,
            bytes: self.bytes / u64::from(WARM_PARTS),
        }
    }

    /// As the row does it.
    pub(super) fn warm_up(&self) -> Limit {
        Limit { time: self.warm_up.mul_f64(1.0 - WARM_SHARE), bytes: self.bytes }
    }

    pub(super) fn measurement(&self) -> Limit {
        Limit { time: self.measure, bytes: 2 * self.bytes }
    }

    pub(super) fn scaled(&self, amount: u64) -> u64 {
        (amount as f64 * self.scale) as u64
    }
}

/// Runs `row` against `side` on the empty folder `folder`.
///
/// # Errors
/// The broker does not start, refuses a request, or lost acknowledged records.
pub fn measure(row: &Row, side: Side, brokers: &Brokers, effort: Effort, folder: &Path) -> Result<Figures> {
    let formatted = brokers.format(side, folder, row.brokers, row.on_all_cores)?;
    let fleet = brokers.start(&formatted)?;
    let start_time = fleet.iter().map(|broker| broker.start_time).max().unwrap_or_default();
    let mut run = Run {
        row,
        side,
        brokers,
        effort,
        folder: folder.to_owned(),
        formatted,
        fleet,
        figures: Figures::new(),
    };
    run.figures.insert("start_ms", start_time.as_secs_f64() * 1e3);
    let empty = run.snapshot()?;
    let empty = Usage::between(&empty, &empty);
    run.figures.insert("empty_resident_mb", empty.resident_bytes as f64 / 1e6);
    run.scenario()?;
    Ok(run.figures)
}

/// A row that is being measured.
pub(super) struct Run<'a> {
    pub(super) row: &'a Row,
    pub(super) side: Side,
    pub(super) brokers: &'a Brokers,
    pub(super) effort: Effort,
    pub(super) folder: PathBuf,
    pub(super) formatted: Vec<Formatted>,
    /// Those that run, in the order of `formatted`.
    pub(super) fleet: Vec<Broker>,
    pub(super) figures: Figures,
}

impl Run<'_> {
    fn scenario(&mut self) -> Result<()> {
        match self.row.scenario {
            Scenario::Idle { topics } => return self.idle(topics),
            Scenario::ManyPartitions { topics, kills_controller } => {
                return self.many_partitions(topics, kills_controller);
            }
            Scenario::CatchUp { fill, bytes, live, rate } => {
                self.warm_code(live)?;
                return self.catch_up(fill, bytes, live, rate);
            }
            Scenario::Produce { shape, .. }
            | Scenario::ProduceAtRate { shape, .. }
            | Scenario::Follow { shape, .. } => self.warm_code(shape)?,
            // These warm up in their own way, or begin with a start, which is never warm.
            Scenario::FetchTail { .. }
            | Scenario::FetchCold { .. }
            | Scenario::Restart { .. }
            | Scenario::JavaProducer { .. } => {}
        }
        self.create_topics(&[TOPIC.to_owned()], self.row.durability)?;
        match self.row.scenario {
            Scenario::Produce { shape, rate } => self.produce(shape, rate),
            Scenario::ProduceAtRate { shape, rate } => self.produce_at_rate(shape, rate),
            Scenario::Follow { shape, rate, consumers } => self.follow(shape, rate, consumers),
            Scenario::FetchTail { shape, chunk_bytes, consumers } => self.tail(shape, chunk_bytes, consumers),
            Scenario::FetchCold { shape, partition_bytes, warm, measured } => {
                self.cold(shape, partition_bytes, warm, measured)
            }
            Scenario::Idle { .. } | Scenario::ManyPartitions { .. } | Scenario::CatchUp { .. } => Ok(()),
            Scenario::Restart { shape, bytes } => self.restart(shape, bytes),
            Scenario::JavaProducer { record_bytes, batch_bytes, records } => {
                let amount = java::Amount { record_bytes, batch_bytes, records: self.effort.scaled(records) };
                self.java(&amount)
            }
        }
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.fleet.iter().map(|broker| broker.child.pid()).collect()
    }

    /// What all brokers have used.
    pub(super) fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::take(&self.pids())
    }

    /// Asks one broker.
    pub(super) fn admin(&self) -> Result<Admin> {
        Admin::connect(self.fleet[0].address)
    }

    /// Creates topics of the row's partitions, each with a replica at every broker; leaders may take a moment longer.
    pub(super) fn order_topics(&self, names: &[String], durability: Durability) -> Result<()> {
        let config = Brokers::topic_config(self.side, durability);
        let (partitions, factor) = (self.row.partitions, i16::try_from(self.fleet.len())?);
        let topics = names.iter().map(|name| {
            let replicas = Replicas::Placed { partitions, factor };
            NewTopic { name, replicas, config }
        });
        self.admin()?.create_topics(&topics.collect::<Vec<_>>())
    }

    fn create_topics(&self, names: &[String], durability: Durability) -> Result<()> {
        self.order_topics(names, durability)?;
        if self.fleet.len() > 1 {
            return self.wait_until_whole(names);
        }
        let mut admin = self.admin()?;
        names.iter().try_for_each(|name| admin.wait_for_leaders(name, self.row.partitions))
    }

    /// Lets a just-in-time compiler see the row's requests until their cost settles. A topic that syncs, or a low rate,
    /// would leave it at the beginning of its work, which would then be counted as the cost of requests.
    fn warm_code(&self, shape: Shape) -> Result<()> {
        self.create_topics(&[WARM_TOPIC.to_owned()], Durability::Written)?;
        let load = Load {
            target: self.target(WARM_TOPIC)?,
            shape,
            produce: Some(Pace::Saturate),
            consume: None,
            warm_up: Limit::NONE,
            measure: self.effort.code_warm_up(),
            rests: false,
            signals: None,
        };
        let mut costs = Vec::new();
        while costs.len() < WARM_PARTS as usize && !has_settled(&costs) {
            let measured = load.run()?;
            let usage = measured.usage;
            costs.push((usage.user_seconds + usage.system_seconds) / measured.produced.requests as f64);
        }
        page_cache::write_back(&self.folder)
    }

    pub(super) fn load(
        &self,
        shape: Shape,
        produce: Option<Pace>,
        warm_up: Limit,
        measure: Limit,
    ) -> Result<Load> {
        Ok(Load {
            target: self.target(TOPIC)?,
            shape,
            produce,
            consume: None,
            warm_up,
            measure,
            rests: self.row.on_all_cores,
            signals: None,
        })
    }

    fn target(&self, topic: &str) -> Result<Target> {
        if let [broker] = self.fleet.as_slice() {
            let pid = Some(broker.child.pid());
            return Ok(Target::of_one(broker.address, topic, self.row.partitions, pid));
        }
        Ok(Target { topic: topic.to_owned(), leaders: self.leaders(topic)?, pids: self.pids() })
    }

    fn end_offsets(&self) -> Result<Vec<i64>> {
        self.admin()?.end_offsets(TOPIC, self.row.partitions)
    }

    fn produce(&mut self, shape: Shape, rate: f64) -> Result<()> {
        let effort = self.effort;
        let measured =
            self.load(shape, Some(Pace::Saturate), effort.warm_up(), effort.measurement())?.run()?;
        figures::throughput(&mut self.figures, measured.produced, &measured.usage);
        figures::written(&mut self.figures, measured.produced.bytes, &measured.usage);
        figures::closed_loop(&mut self.figures, measured.latency);
        // The saturating load has warmed it. What that left to be written would be in the way of the latencies.
        page_cache::write_back(&self.folder)?;
        let settle = Limit { time: effort.measure / 5, bytes: u64::MAX };
        let measured = self.load(shape, Some(Pace::Rate(rate)), settle, effort.measurement())?.run()?;
        figures::open_loop(&mut self.figures, &measured, measured.produced);
        Ok(())
    }

    fn produce_at_rate(&mut self, shape: Shape, rate: f64) -> Result<()> {
        let measured = self
            .load(shape, Some(Pace::Rate(rate)), self.effort.warm_up(), self.effort.measurement())?
            .run()?;
        figures::throughput(&mut self.figures, measured.produced, &measured.usage);
        figures::written(&mut self.figures, measured.produced.bytes, &measured.usage);
        figures::open_loop(&mut self.figures, &measured, measured.produced);
        Ok(())
    }

    fn follow(&mut self, shape: Shape, rate: f64, consumers: usize) -> Result<()> {
        let mut load =
            self.load(shape, Some(Pace::Rate(rate)), self.effort.warm_up(), self.effort.measurement())?;
        let partitions = (0..).zip(self.end_offsets()?).map(|(n, end)| (n, end, None));
        load.consume = Some(Consume { consumers, at_once: usize::MAX, partitions: partitions.collect() });
        let measured = load.run()?;
        // Costs are those of producing and consuming, per byte that went through both.
        figures::throughput(&mut self.figures, measured.fetched, &measured.usage);
        figures::written(&mut self.figures, measured.produced.bytes, &measured.usage);
        figures::open_loop(&mut self.figures, &measured, measured.produced);
        Ok(())
    }

    fn tail(&mut self, shape: Shape, chunk_bytes: u64, consumers: usize) -> Result<()> {
        let started = Instant::now();
        let (mut usage, mut fetched) = (Usage::default(), Throughput::default());
        let mut total = 0;
        let mut position = self.end_offsets()?;
        let mut is_warm = false;
        loop {
            let chunk = Limit { time: UNTIL_DONE, bytes: chunk_bytes };
            self.load(shape, Some(Pace::Saturate), Limit::NONE, chunk)?.run()?;
            let end = self.end_offsets()?;
            let partitions =
                (0..).zip(position.iter().zip(&end)).map(|(n, (&from, &to))| (n, from, Some(to)));
            let consume = Consume { consumers, at_once: usize::MAX, partitions: partitions.collect() };
            let measured = self.read(shape, consume)?;
            let expected: i64 = position.iter().zip(&end).map(|(from, to)| to - from).sum();
            ensure!(i64::try_from(measured.fetched.records)? == expected, "not all records could be read");
            position = end;
            if is_warm {
                usage.add(&measured.usage);
                fetched.requests += measured.fetched.requests;
                fetched.records += measured.fetched.records;
                fetched.bytes += measured.fetched.bytes;
            }
            total += measured.fetched.bytes;
            is_warm |= started.elapsed() > self.effort.warm_up || total > self.effort.bytes;
            // Reading is far faster than writing: half the time of a measurement in reads is plenty.
            if usage.seconds > self.effort.measure.as_secs_f64() / 2.0 || total > 3 * self.effort.bytes {
                break;
            }
        }
        figures::throughput(&mut self.figures, fetched, &usage);
        Ok(())
    }

    /// Reads what `consume` says to its end, measured as a whole.
    fn read(&self, shape: Shape, consume: Consume) -> Result<crate::load::Measured> {
        let until_end = Limit { time: UNTIL_DONE, bytes: u64::MAX };
        let mut load = self.load(shape, None, Limit::NONE, until_end)?;
        load.consume = Some(consume);
        load.run()
    }

    fn cold(&mut self, shape: Shape, partition_bytes: u64, warm: u32, measured: u32) -> Result<()> {
        let all = self.effort.scaled(partition_bytes) * u64::from(self.row.partitions);
        let fill = Limit { time: UNTIL_DONE, bytes: all };
        self.load(shape, Some(Pace::Saturate), Limit::NONE, fill)?.run()?;
        let ends = self.end_offsets()?;
        self.stop()?;
        self.fleet = self.brokers.start(&self.formatted)?;
        self.admin()?.wait_for_leaders(TOPIC, self.row.partitions)?;
        page_cache::forget(&self.folder)?;
        let one_after_the_other = |from: u32, count: u32| Consume {
            consumers: 1,
            at_once: 1,
            partitions: (from..)
                .zip(&ends[from as usize..][..count as usize])
                .map(|(n, &end)| (n, 0, Some(end)))
                .collect(),
        };
        self.read(shape, one_after_the_other(0, warm))?;
        // Read-ahead of the warm-up may have reached into files that are measured.
        page_cache::forget(&self.folder)?;
        let measured = self.read(shape, one_after_the_other(warm, measured))?;
        figures::throughput(&mut self.figures, measured.fetched, &measured.usage);
        figures::closed_loop(&mut self.figures, measured.latency);
        let read = measured.usage.disk_read_bytes as f64 / measured.fetched.bytes as f64;
        self.figures.insert("disk_read_per_byte", read);
        self.figures.insert("data_gb", all as f64 / 1e9);
        Ok(())
    }

    fn idle(&mut self, topics: u32) -> Result<()> {
        let names: Vec<_> = (0..topics).map(|n| format!("{TOPIC}-{n}")).collect();
        let before = self.snapshot()?;
        self.create_topics(&names, self.row.durability)?;
        let created = self.snapshot()?;
        std::thread::sleep(self.effort.measure);
        let after = self.snapshot()?;
        let whole = Usage::between(&before, &after);
        let idle = Usage::between(&created, &after);
        let resident = whole.resident_bytes as f64;
        let empty = self.figures["empty_resident_mb"] * 1e6;
        let partitions = f64::from(topics * self.row.partitions);
        self.figures.extend([
            ("create_s", whole.seconds - idle.seconds),
            ("resident_mb", resident / 1e6),
            ("peak_resident_mb", whole.peak_resident_bytes as f64 / 1e6),
            ("resident_kb_per_partition", (resident - empty) / 1e3 / partitions),
            ("idle_cpu_share", (idle.user_seconds + idle.system_seconds) / idle.seconds),
            ("other_share", idle.other_seconds / idle.seconds),
        ]);
        Ok(())
    }

    fn restart(&mut self, shape: Shape, bytes: u64) -> Result<()> {
        let limit = Limit { time: UNTIL_DONE, bytes: self.effort.scaled(bytes) };
        let measured = self.load(shape, Some(Pace::Saturate), Limit::NONE, limit)?.run()?;
        let before: i64 = self.end_offsets()?.iter().sum();
        self.stop()?;
        let started = Instant::now();
        self.fleet = vec![self.brokers.spawn(&self.formatted[0])?];
        let mut next = 0;
        while next < self.row.partitions {
            let appended = self.admin().and_then(|mut admin| admin.produce_one(TOPIC, next..next + 1));
            match appended {
                Ok(()) => {
                    if next == 0 {
                        self.figures.insert("restart_first_ms", started.elapsed().as_secs_f64() * 1e3);
                    }
                    next += 1;
                }
                Err(error) => {
                    self.fleet[0].child.ensure_running().context("restarting")?;
                    ensure!(started.elapsed() < UNTIL_DONE, "not back after a kill: {error:#}");
                    std::thread::sleep(RETRY);
                }
            }
        }
        self.figures.insert("restart_all_ms", started.elapsed().as_secs_f64() * 1e3);
        self.figures.insert("data_gb", measured.produced.bytes as f64 / 1e9);
        let after: i64 = self.end_offsets()?.iter().sum();
        let expected = before + i64::from(self.row.partitions);
        ensure!(after >= expected, "acknowledged records are lost: {after} of {expected} are there");
        let now = self.snapshot()?;
        let usage = Usage::between(&now, &now);
        self.figures.insert("resident_mb", usage.resident_bytes as f64 / 1e6);
        self.figures.insert("peak_resident_mb", usage.peak_resident_bytes as f64 / 1e6);
        Ok(())
    }

    /// Kills the broker, as a crash would, and waits for its end.
    fn stop(&mut self) -> Result<()> {
        self.fleet.iter_mut().try_for_each(|broker| broker.child.crash())
    }

    fn java(&mut self, amount: &java::Amount) -> Result<()> {
        let log = self.folder.join("java.log");
        let warm = java::Amount { records: amount.records / 4, ..*amount };
        java::produce(self.brokers, self.fleet[0].address, TOPIC, &warm, &log)?;
        let before = self.snapshot()?;
        let result = java::produce(self.brokers, self.fleet[0].address, TOPIC, amount, &log)?;
        let after = self.snapshot()?;
        let usage = Usage::between(&before, &after);
        let bytes = amount.records * amount.record_bytes as u64;
        let gb = bytes as f64 / 1e9;
        figures::written(&mut self.figures, bytes, &usage);
        // Rates are the client's own, without its start; the broker's cost includes nothing else, as it was idle then.
        self.figures.extend([
            ("records_per_s", result.records_per_s),
            ("mb_per_s", result.records_per_s * amount.record_bytes as f64 / 1e6),
            ("java_p50_ms", result.p50_ms),
            ("java_p99_ms", result.p99_ms),
            ("java_p999_ms", result.p999_ms),
            ("cpu_s_per_gb", (usage.user_seconds + usage.system_seconds) / gb),
            ("cpu_user_s_per_gb", usage.user_seconds / gb),
            ("cpu_system_s_per_gb", usage.system_seconds / gb),
            ("resident_mb", usage.resident_bytes as f64 / 1e6),
            ("peak_resident_mb", usage.peak_resident_bytes as f64 / 1e6),
        ]);
        Ok(())
    }
}

/// Whether the last costs hardly differ: twice in a row, as one time may be chance.
fn has_settled(costs: &[f64]) -> bool {
    let [.., first, second, third] = costs else { return false };
    let is_near = |one: f64, other: f64| (one / other - 1.0).abs() < SETTLED;
    is_near(*first, *second) && is_near(*second, *third)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_have_settled_when_three_in_a_row_are_near() {
        assert!(!has_settled(&[1.0, 1.0]));
        assert!(has_settled(&[9.0, 1.0, 1.01, 0.99]));
        assert!(!has_settled(&[1.0, 1.0, 0.9]), "still falling");
        assert!(!has_settled(&[f64::NAN, f64::NAN, f64::NAN]));
    }
}
