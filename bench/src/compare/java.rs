//! Kafka's own producer benchmark, for a figure that people know.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::brokers::Brokers;

/// Longest run.
const TIMEOUT: Duration = Duration::from_secs(600);

/// How much it sends.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// Bytes of a record's value.
    pub record_bytes: usize,
    /// The producer's `batch.size`.
    pub batch_bytes: usize,
    /// How many.
    pub records: u64,
}

/// What it says at its end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Records a second.
    pub records_per_s: f64,
    /// From `send` to the answer, the wait in the producer's buffer included.
    pub p50_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// 999 of 1,000.
    pub p999_ms: f64,
}

/// Runs it on the core of the load, with `acks=all` and the idempotent producer, Kafka's defaults.
///
/// # Errors
/// It fails, or says something else than expected.
pub fn produce(
    brokers: &Brokers,
    address: SocketAddr,
    topic: &str,
    amount: &Amount,
    log: &Path,
) -> Result<Summary> {
    let (record_size, records) = (amount.record_bytes.to_string(), amount.records.to_string());
    let (bootstrap, batch) = (address.to_string(), format!("batch.size={}", amount.batch_bytes));
    let arguments = [
        ["--bootstrap-server", &bootstrap],
        ["--topic", topic],
        ["--num-records", &records],
        ["--record-size", &record_size],
        ["--throughput", "-1"],
        ["--command-property", &batch],
    ];
    let arguments: Vec<_> = arguments.concat().into_iter().map(str::to_owned).collect();
    let (program, arguments) = brokers.kafka.tool("org.apache.kafka.tools.ProducerPerformance", &arguments);
    let child = brokers.children.start(&[brokers.load_core], &program, &arguments, log)?;
    let output = child.finish(TIMEOUT).context("ProducerPerformance")?;
    parse(&output, amount.records).with_context(|| format!("ProducerPerformance said:\n{output}"))
}

/// Reads the last line that counts all records:
/// `400000 records sent, 52000.1 records/sec (50.78 MB/sec), 3.1 ms avg latency, 9.00 ms max latency, 1 ms 50th, 2 ms
/// 95th, 3 ms 99th, 4 ms 99.9th.`
fn parse(output: &str, records: u64) -> Option<Summary> {
    let start = format!("{records} records sent, ");
    let line = output.lines().rev().find_map(|line| line.strip_prefix(&start))?;
    let percentile = |name: &str| {
        let part = line.split(", ").find_map(|part| part.trim_end_matches('.').strip_suffix(name))?;
        part.strip_suffix(" ms ")?.parse().ok()
    };
    Some(Summary {
        records_per_s: line.split_once(" records/sec")?.0.parse().ok()?,
        p50_ms: percentile("50th")?,
        p99_ms: percentile("99th")?,
        p999_ms: percentile("99.9th")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_the_last_line_that_counts_all_records() {
        let output = "100 records sent, 19.9 records/sec (0.02 MB/sec), 1.0 ms avg latency, 2.0 ms max latency.\n\
            400 records sent, 52000.5 records/sec (50.78 MB/sec), 3.1 ms avg latency, 9.00 ms max latency, 1 ms 50th, \
            2 ms 95th, 3 ms 99th, 4 ms 99.9th.\n";
        let expected = Summary { records_per_s: 52000.5, p50_ms: 1.0, p99_ms: 3.0, p999_ms: 4.0 };
        assert_eq!(parse(output, 400), Some(expected));
        assert_eq!(parse(output, 500), None);
    }
}
