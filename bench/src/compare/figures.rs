//! The figures of a measurement: how each is computed from what was counted, and how it is shown.

use std::collections::BTreeMap;

use crate::load::{Measured, Throughput};
use crate::procfs::Usage;
use crate::stats::Latency;

/// Figures of one measurement, by key; see [`FIGURES`].
pub type Figures = BTreeMap<&'static str, f64>;

/// How a figure is shown.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// Name in JSON.
    pub key: &'static str,
    /// Name in the table.
    pub title: &'static str,
    /// Digits behind the point.
    pub digits: usize,
}

const fn figure(key: &'static str, title: &'static str, digits: usize) -> Figure {
    Figure { key, title, digits }
}

/// All figures, in the order in which the table shows those that a row has.
#[rustfmt::skip] // a table
pub const FIGURES: &[Figure] = &[
    figure("mb_per_s", "MB/s", 1),
    figure("records_per_s", "records/s", 0),
    figure("requests_per_s", "requests/s", 0),
    figure("cpu_s_per_gb", "broker CPU s/GB", 3),
    figure("cpu_user_s_per_gb", "– user", 3),
    figure("cpu_system_s_per_gb", "– system", 3),
    figure("cpu_s_per_m_requests", "broker CPU s/million requests", 2),
    figure("cpu_user_s_per_m_requests", "– user", 2),
    figure("cpu_system_s_per_m_requests", "– system", 2),
    figure("open_requests_per_s", "open loop: requests/s answered", 0),
    figure("open_p50_us", "open loop: p50 µs", 0),
    figure("open_p99_us", "open loop: p99 µs", 0),
    figure("open_p999_us", "open loop: p99.9 µs", 0),
    figure("open_max_us", "open loop: max µs", 0),
    figure("open_unanswered", "open loop: without answer", 0),
    figure("closed_p50_us", "closed loop: p50 µs", 0),
    figure("closed_p99_us", "closed loop: p99 µs", 0),
    figure("closed_p999_us", "closed loop: p99.9 µs", 0),
    figure("closed_max_us", "closed loop: max µs", 0),
    figure("java_p50_ms", "client's p50 ms", 0),
    figure("java_p99_ms", "client's p99 ms", 0),
    figure("java_p999_ms", "client's p99.9 ms", 0),
    figure("disk_write_per_byte", "disk bytes written per byte acknowledged", 2),
    figure("disk_read_per_byte", "disk bytes read per byte fetched", 2),
    figure("resident_mb", "memory MB", 0),
    figure("peak_resident_mb", "memory MB, peak", 0),
    figure("empty_resident_mb", "memory MB, before any load", 0),
    figure("resident_kb_per_partition", "memory KB per idle partition", 1),
    figure("create_s", "s to create the topics", 2),
    figure("created_s", "s until metadata of every broker has all leaders and replicas in sync", 2),
    figure("served_s", "s until every leader serves", 2),
    figure("resident_mb_per_broker", "memory MB of the largest broker", 0),
    figure("create_cpu_s", "broker CPU s until every leader serves", 2),
    figure("idle_cpu_share", "broker CPU while idle, share of a core", 3),
    figure("start_ms", "ms from start to first answer", 0),
    figure("restart_first_ms", "ms from restart to first record acknowledged", 0),
    figure("restart_all_ms", "ms until every partition acknowledged one", 0),
    figure("failover_s", "s from kill -9 until metadata of every other broker has all leaders", 2),
    figure("failover_served_s", "s from kill -9 until every leader serves", 2),
    figure("fill_mb_per_s", "MB/s written while the broker is away", 1),
    figure("catch_up_mb_per_s", "MB/s from its start until it is in sync everywhere", 0),
    figure("catch_up_s", "s from its start until it is in sync everywhere", 2),
    figure("catch_up_start_ms", "ms from its start to its first answer", 0),
    figure("catch_up_cpu_s_per_gb", "broker CPU s per GB caught up with, load included", 3),
    figure("catch_up_leaders_cpu_s_per_gb", "– of those that lead", 3),
    figure("catch_up_follower_cpu_s_per_gb", "– of the one that returns, its start included", 3),
    figure("before_p50_us", "produce before: p50 µs", 0),
    figure("before_p99_us", "produce before: p99 µs", 0),
    figure("before_p999_us", "produce before: p99.9 µs", 0),
    figure("before_max_us", "produce before: max µs", 0),
    figure("catch_up_p50_us", "produce meanwhile: p50 µs", 0),
    figure("catch_up_p99_us", "produce meanwhile: p99 µs", 0),
    figure("catch_up_p999_us", "produce meanwhile: p99.9 µs", 0),
    figure("catch_up_max_us", "produce meanwhile: max µs", 0),
    figure("catch_up_p99_growth", "produce p99, meanwhile / before", 2),
    figure("data_gb", "GB of data", 2),
    figure("broker_share", "broker's share of its core", 2),
    figure("client_share", "load generator's share of its core", 2),
    figure("other_share", "everything else, in cores", 2),
];

/// Adds throughput and cost of `amount` over `usage`.
pub fn throughput(figures: &mut Figures, amount: Throughput, usage: &Usage) {
    let (gb, millions) = (amount.bytes as f64 / 1e9, amount.requests as f64 / 1e6);
    let mut add = |key, value: f64| {
        if value.is_finite() {
            figures.insert(key, value);
        }
    };
    add("mb_per_s", gb * 1e3 / usage.seconds);
    add("records_per_s", amount.records as f64 / usage.seconds);
    add("requests_per_s", amount.requests as f64 / usage.seconds);
    let (user, system) = (usage.user_seconds, usage.system_seconds);
    add("cpu_s_per_gb", (user + system) / gb);
    add("cpu_user_s_per_gb", user / gb);
    add("cpu_system_s_per_gb", system / gb);
    add("cpu_s_per_m_requests", (user + system) / millions);
    add("cpu_user_s_per_m_requests", user / millions);
    add("cpu_system_s_per_m_requests", system / millions);
    add("resident_mb", usage.resident_bytes as f64 / 1e6);
    add("peak_resident_mb", usage.peak_resident_bytes as f64 / 1e6);
    add("broker_share", (user + system) / usage.seconds);
    add("client_share", usage.client_seconds / usage.seconds);
    add("other_share", usage.other_seconds / usage.seconds);
}

/// Adds what was written to the disk for what was acknowledged.
pub fn written(figures: &mut Figures, bytes: u64, usage: &Usage) {
    if bytes > 0 {
        figures.insert("disk_write_per_byte", usage.disk_write_bytes as f64 / bytes as f64);
    }
}

/// Adds latencies at a fixed rate.
pub fn open_loop(figures: &mut Figures, measured: &Measured, answered: Throughput) {
    figures.insert("open_requests_per_s", answered.requests as f64 / measured.usage.seconds);
    figures.insert("open_unanswered", measured.unanswered as f64);
    let keys = ["open_p50_us", "open_p99_us", "open_p999_us", "open_max_us"];
    latency(figures, keys, measured.latency);
}

/// Adds latencies of a load that waits for answers: they say nothing about a rate.
pub fn closed_loop(figures: &mut Figures, measured: Option<Latency>) {
    latency(figures, ["closed_p50_us", "closed_p99_us", "closed_p999_us", "closed_max_us"], measured);
}

/// Adds latencies under keys of its own.
pub fn latency(figures: &mut Figures, keys: [&'static str; 4], latency: Option<Latency>) {
    if let Some(l) = latency {
        figures.extend(keys.into_iter().zip([l.p50_us, l.p99_us, l.p999_us, l.max_us]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_per_gigabyte_and_per_million_requests() {
        let usage = Usage { seconds: 2.0, user_seconds: 1.0, system_seconds: 0.5, ..Default::default() };
        let mut figures = Figures::new();
        throughput(
            &mut figures,
            Throughput { requests: 500_000, records: 1_000_000, bytes: 3_000_000_000 },
            &usage,
        );
        let expected = [
            ("mb_per_s", 1500.0),
            ("records_per_s", 500_000.0),
            ("cpu_s_per_gb", 0.5),
            ("cpu_user_s_per_m_requests", 2.0),
            ("cpu_system_s_per_m_requests", 1.0),
            ("broker_share", 0.75),
        ];
        for (key, value) in expected {
            assert_eq!(figures[key], value, "{key}");
        }
    }

    #[test]
    fn nothing_answered_gives_no_infinite_cost() {
        let usage = Usage { seconds: 1.0, user_seconds: 1.0, ..Default::default() };
        let mut figures = Figures::new();
        throughput(&mut figures, Throughput::default(), &usage);
        assert!(!figures.contains_key("cpu_s_per_gb") && figures["requests_per_s"] == 0.0);
        written(&mut figures, 0, &usage);
        assert!(!figures.contains_key("disk_write_per_byte"));
    }

    #[test]
    fn every_figure_that_is_computed_is_shown() {
        let mut figures = Figures::new();
        let usage = Usage { seconds: 1.0, ..Default::default() };
        throughput(&mut figures, Throughput { requests: 1, records: 1, bytes: 1 }, &usage);
        written(&mut figures, 1, &usage);
        let latency = Latency::of(vec![1]);
        closed_loop(&mut figures, latency);
        let produced = Throughput::default();
        let measured = Measured { produced, fetched: produced, latency, unanswered: 0, usage };
        open_loop(&mut figures, &measured, produced);
        for key in figures.keys() {
            assert!(FIGURES.iter().any(|figure| figure.key == *key), "{key}");
        }
    }
}
