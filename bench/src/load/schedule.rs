//! When the requests of an open loop are due.
//!
//! The times are fixed before the load begins and do not depend on answers: a broker that stalls does not get fewer
//! requests, and latency counts from the due time, not from when a late client got around to sending. Without that the
//! stall of a second would show in one request instead of in all that should have been sent during it (coordinated
//! omission).

use std::time::{Duration, Instant};

/// Requests at a constant rate.
#[derive(Debug, Clone)]
pub struct Schedule {
    start: Instant,
    per_second: f64,
    next: u64,
}

impl Schedule {
    /// The first request is due at `start`. `per_second` is above 0.
    pub fn new(start: Instant, per_second: f64) -> Self {
        Self { start, per_second, next: 0 }
    }

    /// When the request after those taken is due. Computed from the start, so that rounding does not add up.
    pub fn due(&self) -> Instant {
        self.start + Duration::from_secs_f64(self.next as f64 / self.per_second)
    }

    /// The next request's number and due time if that has come.
    pub fn take(&mut self, now: Instant) -> Option<(u64, Instant)> {
        let due = self.due();
        (due <= now).then(|| {
            self.next += 1;
            (self.next - 1, due)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_at_equal_distances_from_the_start() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, 5000.0);
        let taken: Vec<_> =
            std::iter::from_fn(|| schedule.take(start + Duration::from_micros(600))).collect();
        let expected = [(0, 0), (1, 200), (2, 400), (3, 600)];
        assert_eq!(taken, expected.map(|(n, us)| (n, start + Duration::from_micros(us))));
        assert_eq!(schedule.due(), start + Duration::from_micros(800));
    }

    #[test]
    fn what_a_late_client_missed_keeps_its_due_time() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, 10.0);
        let late = start + Duration::from_secs(1);
        assert_eq!(schedule.take(late), Some((0, start)));
        assert_eq!(schedule.take(late), Some((1, start + Duration::from_millis(100))));
    }

    #[test]
    fn an_odd_rate_does_not_drift() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, 3.0);
        for _ in 0..3_000 {
            schedule.take(start + Duration::from_secs(2_000));
        }
        let off = schedule.due().duration_since(start).as_secs_f64() - 1_000.0;
        assert!(off.abs() < 1e-6, "{off}");
    }
}
