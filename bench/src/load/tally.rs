//! What a running load counts.

use std::collections::VecDeque;
use std::time::Instant;

use serde::Serialize;

/// Answers of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Throughput {
    /// How many.
    pub requests: u64,
    /// Records acknowledged or fetched.
    pub records: u64,
    /// Bytes of their batches.
    pub bytes: u64,
}

/// What happened since the phase began, and what of it counts.
#[derive(Debug, Default)]
pub struct Tally {
    /// Acknowledged.
    pub produced: Throughput,
    /// Fetched.
    pub fetched: Throughput,
    /// Begin of the measurement.
    pub window_start: Option<Instant>,
    /// Its end.
    pub window_end: Option<Instant>,
    /// In nanoseconds.
    pub latencies: Vec<u64>,
}

impl Tally {
    /// Keeps the latency of what was due in the window.
    pub fn latency(&mut self, due: Instant, now: Instant) {
        if self.window_start.is_some_and(|start| due >= start) && self.window_end.is_none_or(|end| due < end)
        {
            self.latencies.push(u64::try_from(now.duration_since(due).as_nanos()).unwrap_or(u64::MAX));
        }
    }
}

/// Batches that a consumer has still to see, by partition.
#[derive(Debug)]
pub struct Ledger {
    /// The same in all.
    pub records_per_batch: i64,
    /// By index.
    pub partitions: Vec<Awaited>,
}

/// Those of one partition.
#[derive(Debug, Clone, Default)]
pub struct Awaited {
    /// Offset that the oldest one begins with.
    pub next: i64,
    /// When the batches were due, oldest first.
    pub due: VecDeque<Instant>,
}

impl Ledger {
    /// A batch is on its way to a partition.
    pub fn sent(&mut self, partition: u32, due: Instant) {
        self.partitions[partition as usize].due.push_back(due);
    }

    /// The due times of the batches of a partition that lie before `offset`.
    pub fn arrived(&mut self, partition: u32, offset: i64) -> Vec<Instant> {
        let awaited = &mut self.partitions[partition as usize];
        let mut arrived = Vec::new();
        while awaited.next + self.records_per_batch <= offset {
            let Some(due) = awaited.due.pop_front() else { break };
            awaited.next += self.records_per_batch;
            arrived.push(due);
        }
        arrived
    }

    /// Whether nothing is awaited.
    pub fn is_empty(&self) -> bool {
        self.partitions.iter().all(|awaited| awaited.due.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_batch_has_arrived_once_its_last_record_has() {
        let start = Instant::now();
        let due: Vec<_> = (0..3).map(|ms| start + Duration::from_millis(ms)).collect();
        let awaited = Awaited { next: 100, due: due.iter().copied().collect() };
        let mut ledger = Ledger { records_per_batch: 10, partitions: vec![awaited] };
        assert_eq!(ledger.arrived(0, 109), []);
        assert_eq!(ledger.arrived(0, 120), due[..2]);
        assert!(!ledger.is_empty());
        assert_eq!(ledger.arrived(0, 130), due[2..]);
        assert!(ledger.is_empty());
    }

    #[test]
    fn latency_counts_what_was_due_in_the_window_whenever_it_came() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let mut tally = Tally { window_start: Some(ms(10)), window_end: Some(ms(20)), ..Default::default() };
        for due in [9, 10, 19, 20] {
            tally.latency(ms(due), ms(500));
        }
        assert_eq!(tally.latencies, [490_000_000, 481_000_000]);
    }
}
