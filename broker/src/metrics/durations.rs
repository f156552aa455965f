//! Durations counted by class, so that a quantile of any interval can be told, over several brokers too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bound of the shortest class. Each class reaches √2 times as far as the one before, so the last begins at 37 s.
const SHORTEST: Duration = Duration::from_micros(50);
const CLASSES: usize = 41;

/// Durations since the start of the process. Clones share them.
#[derive(Clone, Debug)]
pub struct Durations {
    counts: Arc<[AtomicU64; CLASSES]>,
}

impl Default for Durations {
    fn default() -> Self {
        Self { counts: Arc::new(std::array::from_fn(|_| AtomicU64::new(0))) }
    }
}

impl Durations {
    /// Counts one.
    pub fn observe(&self, duration: Duration) {
        self.counts[class(duration)].fetch_add(1, Ordering::Relaxed);
    }

    /// All so far.
    pub fn counts(&self) -> DurationCounts {
        DurationCounts(self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect())
    }
}

fn class(duration: Duration) -> usize {
    let bounds = (0..CLASSES - 1).map(upper_bound);
    bounds.take_while(|bound| *bound < duration).count()
}

fn upper_bound(class: usize) -> Duration {
    let doublings = u32::try_from(class / 2).unwrap_or(31).min(31);
    let whole = SHORTEST * 2_u32.pow(doublings);
    if class.is_multiple_of(2) { whole } else { whole.mul_f64(std::f64::consts::SQRT_2) }
}

/// How many durations there are of each class, shortest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DurationCounts(pub Vec<u64>);

impl DurationCounts {
    /// Those that have come since `earlier`; all, if the process has been started anew in between.
    pub fn since(&self, earlier: &Self) -> Self {
        let difference =
            |(class, now): (usize, &u64)| now.checked_sub(earlier.0.get(class).copied().unwrap_or(0));
        let since: Option<Vec<u64>> = self.0.iter().enumerate().map(difference).collect();
        since.map_or_else(|| self.clone(), Self)
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Upper bound of the class that the duration is in which 99 of 100 do not exceed; `None` without any.
    pub fn p99(&self) -> Option<Duration> {
        let total = self.count();
        let rank = total - total / 100;
        let mut seen = 0;
        let reaches = |count: &u64| {
            seen += count;
            seen >= rank
        };
        if total == 0 { None } else { self.0.iter().position(reaches).map(upper_bound) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_hundred_may_take_longer() {
        let durations = Durations::default();
        assert_eq!(durations.counts().p99(), None);
        (0..99).for_each(|_| durations.observe(Duration::from_millis(2)));
        durations.observe(Duration::from_secs(3));
        let before = durations.counts();
        let p99 = before.p99().expect("there are some");
        assert!(p99 >= Duration::from_millis(2) && p99 < Duration::from_millis(3), "{p99:?}");
        durations.observe(Duration::from_secs(3));
        let since = durations.counts().since(&before);
        assert_eq!(since.count(), 1);
        assert!(since.p99().expect("there is one") >= Duration::from_secs(3));
        assert_eq!(before.since(&durations.counts()), before, "of a process that was started anew");
        durations.observe(Duration::from_secs(86_400));
        assert_eq!(durations.counts().count(), 102);
    }
}
