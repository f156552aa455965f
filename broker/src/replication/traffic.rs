//! What a leader carries for a partition: bytes per second taken from producers and given to consumers and followers, but
//! not what followers get until they are in sync: that ends by itself.
//!
//! A mean over the time that it leads, in which a minute ago counts 1/e of now, as in the load averages of Unix. It
//! begins anew with each leadership: the mean of the first ten seconds is already that of these ten seconds, not a
//! sixth of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Time after which something counts 1/e.
const MEMORY: Duration = Duration::from_mins(1);

/// Time after which there is a mean at all: before, clients may not have found their leader.
const KNOWN_AFTER: Duration = Duration::from_secs(10);

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Traffic {
    /// Bytes ever.
    bytes: AtomicU64,
    mean: Mutex<Mean>,
}

#[derive(Clone, Copy, Debug)]
struct Mean {
    since: Instant,
    at: Instant,
    /// Bytes ever, at the last look.
    seen: u64,
    /// Bytes per second, weighted; what lies before `since` counts as nothing.
    weighted: f64,
}

impl Traffic {
    pub(super) fn new(now: Instant) -> Self {
        let mean = Mean { since: now, at: now, seen: 0, weighted: 0.0 };
        Self { bytes: AtomicU64::new(0), mean: Mutex::new(mean) }
    }

    /// Takes note of bytes that came in or went out.
    pub(super) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Begins anew.
    pub(super) fn restart(&self, now: Instant) {
        let seen = self.bytes.load(Ordering::Relaxed);
        *self.mean.lock() = Mean { since: now, at: now, seen, weighted: 0.0 };
    }

    /// Bytes per second; `None` soon after the beginning. Between two calls what came counts as if it had come evenly.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a mean need not be exact"
    )]
    pub(super) fn bytes_per_second(&self, now: Instant) -> Option<u64> {
        let mut mean = self.mean.lock();
        let part = |time: Duration| (-time.div_duration_f64(MEMORY)).exp();
        let passed = now.saturating_duration_since(mean.at);
        if !passed.is_zero() {
            let bytes = self.bytes.load(Ordering::Relaxed);
            let rate = (bytes - mean.seen) as f64 / passed.as_secs_f64();
            mean.weighted = mean.weighted * part(passed) + rate * (1.0 - part(passed));
            (mean.at, mean.seen) = (now, bytes);
        }
        let age = now.saturating_duration_since(mean.since);
        (age >= KNOWN_AFTER).then(|| (mean.weighted / (1.0 - part(age))).round() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn looks(traffic: &Traffic, mut now: Instant, times: u32, bytes: usize) -> (Instant, Option<u64>) {
        let mut last = None;
        for _ in 0..times {
            traffic.add(bytes);
            now += seconds(10);
            last = traffic.bytes_per_second(now);
        }
        (now, last)
    }

    #[test]
    fn a_load_is_known_in_full_as_soon_as_it_is_known() {
        let start = Instant::now();
        let traffic = Traffic::new(start);
        traffic.add(500);
        assert_eq!(traffic.bytes_per_second(start + seconds(5)), None);
        traffic.add(500);
        assert_eq!(traffic.bytes_per_second(start + seconds(10)), Some(100));
        assert_eq!(looks(&traffic, start + seconds(10), 5, 1_000).1, Some(100));
    }

    #[test]
    fn what_was_a_minute_ago_counts_about_a_third() {
        let start = Instant::now();
        let traffic = Traffic::new(start);
        let (now, before) = looks(&traffic, start, 100, 10_000);
        assert_eq!(before, Some(1_000));
        let (now, after) = looks(&traffic, now, 6, 0);
        assert_eq!(after, Some(368));
        assert_eq!(looks(&traffic, now, 60, 0).1, Some(0));
    }

    #[test]
    fn a_new_leadership_knows_nothing_of_the_one_before() {
        let start = Instant::now();
        let traffic = Traffic::new(start);
        let (now, _) = looks(&traffic, start, 10, 10_000);
        traffic.add(1_000_000);
        traffic.restart(now);
        assert_eq!(traffic.bytes_per_second(now), None);
        assert_eq!(looks(&traffic, now, 1, 20).1, Some(2));
    }
}
