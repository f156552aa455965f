//! The rows of the comparison: the one place where a row is added.

use serde::Serialize;

use super::goals::Goal;
use crate::brokers::Durability::{self, Fsync, Replicated, Written};
use crate::load::Shape;

/// Rows that are measured and shown together.
#[derive(Debug)]
pub struct Table {
    /// Over the report.
    pub title: &'static str,
    /// What a reader has to know about all of them.
    pub note: &'static str,
    /// In the order in which they are shown.
    pub rows: &'static [Row],
    /// Brokers of each side that run at a time.
    pub brokers: usize,
}

/// One line of the table: the same for both brokers.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Row {
    /// Unique; `--rows` selects by it.
    pub name: &'static str,
    /// When records count as stored.
    pub durability: Durability,
    /// Partitions of the topic.
    pub partitions: u32,
    /// What is done.
    pub scenario: Scenario,
    /// Whether `--quick` has it.
    pub quick: bool,
    /// Whether it is left out unless `--rows` has its name: it needs more room than most machines have to spare.
    pub only_by_name: bool,
    /// What the summary shows of it.
    pub headline: Headline,
    /// Brokers at a time, each with a replica of every partition.
    pub brokers: usize,
    /// Whether brokers may run on the load's core too: where they do more than a core can, and the load little.
    pub on_all_cores: bool,
    /// What is to be reached.
    pub goals: &'static [Goal],
}

/// What is done to a broker that was just started on an empty folder.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Scenario {
    /// Produces as fast as answers come, then at `rate` requests a second for the latencies.
    Produce { shape: Shape, rate: f64 },
    /// Produces at `rate` requests a second only; CPU is that at this rate.
    ProduceAtRate { shape: Shape, rate: f64 },
    /// Produces at `rate` while consumers read what arrives; latency is from due to delivered.
    Follow { shape: Shape, rate: f64, consumers: usize },
    /// Produces `chunk_bytes`, then reads them; again and again. Only the reading is measured.
    FetchTail { shape: Shape, chunk_bytes: u64, consumers: usize },
    /// Fills all partitions in turn with `partition_bytes` each, restarts the broker, drops the files from the page
    /// cache, and reads `measured` partitions one after the other, after `warm` others.
    FetchCold { shape: Shape, partition_bytes: u64, warm: u32, measured: u32 },
    /// Creates `topics` of so many partitions each and leaves them alone.
    Idle { topics: u32 },
    /// Produces `bytes`, kills the broker and starts it again.
    Restart { shape: Shape, bytes: u64 },
    /// Creates `topics` of so many partitions each, leaves them alone for a while, and kills a broker: the controller or
    /// another one.
    ManyPartitions { topics: u32, kills_controller: bool },
    /// Kills a broker, writes `bytes` without it, drops the files from the page cache and starts it again; `live` load at
    /// `rate` goes on before and during its return.
    CatchUp { fill: Shape, bytes: u64, live: Shape, rate: f64 },
    /// Kafka's ProducerPerformance in place of our load.
    JavaProducer { record_bytes: usize, batch_bytes: usize, records: u64 },
}

/// Which throughput and which CPU time say most about a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Headline {
    /// MB/s and CPU seconds per GB.
    Bytes,
    /// Requests/s and CPU seconds per million requests.
    Requests,
    /// Memory, start time.
    Footprint,
}

/// Records of 1 KB, by size of batch, connections and requests in flight.
const fn kb(batch_bytes: usize, connections: usize, in_flight: usize) -> Shape {
    Shape { record_bytes: 1024, batch_bytes: Some(batch_bytes), connections, in_flight }
}

/// One record of 100 bytes a request.
const fn single(connections: usize, in_flight: usize) -> Shape {
    Shape { record_bytes: 100, batch_bytes: None, connections, in_flight }
}

const KB_64: usize = 64 << 10;
const MB: usize = 1 << 20;

/// Records of 100 bytes in batches of 16 KB.
const SMALL_RECORDS: Shape =
    Shape { record_bytes: 100, batch_bytes: Some(16 << 10), connections: 4, in_flight: 5 };

const fn row(name: &'static str, durability: Durability, partitions: u32, scenario: Scenario) -> Row {
    Row {
        name,
        durability,
        partitions,
        scenario,
        quick: false,
        only_by_name: false,
        headline: Headline::Bytes,
        brokers: 1,
        on_all_cores: false,
        goals: &[],
    }
}

/// A row of three brokers.
const fn fleet(name: &'static str, partitions: u32, scenario: Scenario, goals: &'static [Goal]) -> Row {
    Row { brokers: 3, goals, ..row(name, Replicated, partitions, scenario) }
}

impl Row {
    const fn quick(mut self) -> Self {
        self.quick = true;
        self
    }

    const fn on_all_cores(mut self) -> Self {
        self.on_all_cores = true;
        self
    }

    const fn only_by_name(mut self) -> Self {
        self.only_by_name = true;
        self
    }

    const fn shows(mut self, headline: Headline) -> Self {
        self.headline = headline;
        self
    }
}

/// A load that saturates, and the rate of the open loop behind it. The rates are such that Kafka with an fsync per
/// append can keep up on one core of a cloud machine.
const fn produce(shape: Shape, rate: f64) -> Scenario {
    Scenario::Produce { shape, rate }
}

/// One broker of each side.
pub const ALONE: Table =
    Table { title: "Millrace and Apache Kafka side by side", note: "", rows: ROWS, brokers: 1 };

/// Three replicas of everything.
pub const FLEET: Table = Table {
    title: "Fleets of three, Millrace and Apache Kafka side by side",
    note: "Three brokers share one core, the load has another; in catch-up all share both. Three replicas, \
           min.insync.replicas=2, acks=all, each side as it ships: Millrace acknowledges what is on the disk of every \
           replica in sync, Kafka what is in their memory. CPU and memory are those of the three together.",
    rows: FLEET_ROWS,
    brokers: 3,
};

/// One record of 1 KB a request.
const KB_SINGLE: Shape = Shape { record_bytes: 1024, ..single(50, 5) };

#[rustfmt::skip] // a table
const FLEET_ROWS: &[Row] = &[
    fleet("rf3-rate", 12, Scenario::ProduceAtRate { shape: KB_SINGLE, rate: 5000.0 },
        &[Goal::ratio_at_most("open_p99_us", 0.5)]).quick().shows(Headline::Requests),
    fleet("rf3-rate-500", 12, Scenario::ProduceAtRate { shape: KB_SINGLE, rate: 500.0 },
        &[Goal::ratio_at_most("open_p99_us", 0.5)]).shows(Headline::Requests),
    fleet("rf3-64k", 12, produce(kb(KB_64, 6, 5), 150.0),
        &[Goal::ratio_at_most("cpu_s_per_gb", 1.0 / 3.0)]).quick(),
    fleet("partitions-10k", 1000, Scenario::ManyPartitions { topics: 10, kills_controller: false },
        &[Goal::at_most("created_s", 10.0), Goal::at_most("failover_s", 2.0)]).shows(Headline::Footprint),
    fleet("partitions-10k-controller", 1000, Scenario::ManyPartitions { topics: 10, kills_controller: true },
        &[Goal::at_most("created_s", 10.0), Goal::at_most("failover_s", 2.0)]).shows(Headline::Footprint),
    fleet("catch-up", 12, Scenario::CatchUp { fill: kb(KB_64, 6, 5), bytes: 3_000_000_000, live: KB_SINGLE, rate: 2000.0 },
        &[Goal::at_least("catch_up_mb_per_s", 500.0), Goal::at_most("catch_up_p99_growth", 2.0)]).on_all_cores().shows(Headline::Footprint),
];

/// Rows of one broker, in the order of the table.
#[rustfmt::skip] // a table
const ROWS: &[Row] = &[
    row("produce-64k-1p-fsync",        Fsync,   1,    produce(kb(KB_64, 1, 5), 150.0)),
    row("produce-64k-1p-written",      Written, 1,    produce(kb(KB_64, 1, 5), 150.0)),
    row("produce-64k-12p-fsync",       Fsync,   12,   produce(kb(KB_64, 4, 5), 150.0)).quick(),
    row("produce-64k-12p-written",     Written, 12,   produce(kb(KB_64, 4, 5), 150.0)).quick(),
    row("produce-64k-1000p-fsync",     Fsync,   1000, produce(kb(KB_64, 4, 5), 150.0)),
    row("produce-64k-1000p-written",   Written, 1000, produce(kb(KB_64, 4, 5), 150.0)),
    row("produce-1m-1p-fsync",         Fsync,   1,    produce(kb(MB, 1, 5), 15.0)),
    row("produce-1m-1p-written",       Written, 1,    produce(kb(MB, 1, 5), 15.0)),
    row("produce-1m-12p-fsync",        Fsync,   12,   produce(kb(MB, 4, 5), 15.0)),
    row("produce-1m-12p-written",      Written, 12,   produce(kb(MB, 4, 5), 15.0)),
    row("produce-1m-1000p-fsync",      Fsync,   1000, produce(kb(MB, 4, 5), 15.0)),
    row("produce-1m-1000p-written",    Written, 1000, produce(kb(MB, 4, 5), 15.0)),
    row("produce-16k-100b-1p-fsync",   Fsync,   1,    produce(Shape { connections: 1, ..SMALL_RECORDS }, 200.0)),
    row("produce-16k-100b-1p-written", Written, 1,    produce(Shape { connections: 1, ..SMALL_RECORDS }, 200.0)),
    row("produce-16k-100b-12p-fsync",  Fsync,   12,   produce(SMALL_RECORDS, 200.0)),
    row("produce-16k-100b-12p-written", Written, 12,  produce(SMALL_RECORDS, 200.0)),
    row("produce-16k-100b-1000p-fsync", Fsync,  1000, produce(SMALL_RECORDS, 200.0)),
    row("produce-16k-100b-1000p-written", Written, 1000, produce(SMALL_RECORDS, 200.0)),
    row("single-50c-fsync",            Fsync,   12,   produce(single(50, 5), 500.0)).quick().shows(Headline::Requests),
    row("single-50c-written",          Written, 12,   produce(single(50, 5), 500.0)).shows(Headline::Requests),
    row("single-1c-fsync",             Fsync,   1,    produce(single(1, 1), 100.0)).shows(Headline::Requests),
    row("single-1c-written",           Written, 1,    produce(single(1, 1), 100.0)).shows(Headline::Requests),
    row("single-1c-5f-fsync",          Fsync,   1,    produce(single(1, 5), 100.0)).shows(Headline::Requests),
    row("single-1c-5f-written",        Written, 1,    produce(single(1, 5), 100.0)).shows(Headline::Requests),
    row("single-50c-1000p-fsync",      Fsync,   1000, produce(single(50, 5), 500.0)).shows(Headline::Requests),
    row("single-50c-1000p-written",    Written, 1000, produce(single(50, 5), 500.0)).shows(Headline::Requests),
    row("open-5000-fsync",   Fsync,   12, Scenario::ProduceAtRate { shape: single(50, 5), rate: 5000.0 }).quick().shows(Headline::Requests),
    row("open-5000-written", Written, 12, Scenario::ProduceAtRate { shape: single(50, 5), rate: 5000.0 }).shows(Headline::Requests),
    row("follow-64k-12p-fsync",   Fsync,   12, Scenario::Follow { shape: kb(KB_64, 4, 5), rate: 300.0, consumers: 1 }),
    row("follow-64k-12p-written", Written, 12, Scenario::Follow { shape: kb(KB_64, 4, 5), rate: 300.0, consumers: 1 }),
    row("fetch-tail-12p", Written, 12, Scenario::FetchTail { shape: kb(KB_64, 4, 5), chunk_bytes: 128 << 20, consumers: 4 }).quick(),
    row("fetch-cold-1000p", Written, 1000, Scenario::FetchCold { shape: kb(16 << 10, 4, 5), partition_bytes: 2 << 20, warm: 100, measured: 200 }),
    row("idle-10000p", Fsync, 1000, Scenario::Idle { topics: 10 }).shows(Headline::Footprint),
    row("restart-4gb", Fsync, 12, Scenario::Restart { shape: kb(MB, 4, 5), bytes: 4_000_000_000 }).shows(Headline::Footprint),
    row("restart-24gb", Fsync, 12, Scenario::Restart { shape: kb(MB, 4, 5), bytes: 24_000_000_000 }).shows(Headline::Footprint).only_by_name(),
    row("java-64k-12p-fsync",   Fsync,   12, Scenario::JavaProducer { record_bytes: 1024, batch_bytes: KB_64, records: 400_000 }),
    row("java-64k-12p-written", Written, 12, Scenario::JavaProducer { record_bytes: 1024, batch_bytes: KB_64, records: 1_500_000 }),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::figures::FIGURES;
    use super::*;

    #[test]
    fn names_are_unique() {
        for table in [ALONE, FLEET] {
            let names: BTreeSet<_> = table.rows.iter().map(|row| row.name).collect();
            assert_eq!(names.len(), table.rows.len());
        }
    }

    #[test]
    fn goals_are_about_figures_that_are_shown() {
        for goal in FLEET.rows.iter().flat_map(|row| row.goals) {
            assert!(FIGURES.iter().any(|figure| figure.key == goal.key), "{}", goal.key);
        }
    }

    #[test]
    fn every_row_has_the_brokers_of_its_table() {
        for table in [ALONE, FLEET] {
            assert!(table.rows.iter().all(|row| row.brokers == table.brokers));
        }
    }

    #[test]
    fn names_end_in_the_durability_they_have() {
        for row in ROWS {
            assert!(!row.name.ends_with("-fsync") || row.durability == Fsync, "{}", row.name);
            assert!(!row.name.ends_with("-written") || row.durability == Written, "{}", row.name);
        }
    }
}
