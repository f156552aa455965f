//! Percentiles of one measurement, medians over several.

use serde::Serialize;

/// Latencies of one measurement, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Latency {
    /// How many there are.
    pub samples: usize,
    /// Half are at most this.
    pub p50_us: f64,
    /// 99 of 100 are at most this.
    pub p99_us: f64,
    /// 999 of 1,000 are at most this.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Latency {
    /// Exact percentiles: all samples are kept and sorted, nothing is put into buckets. `None` without samples.
    pub fn of(mut nanoseconds: Vec<u64>) -> Option<Self> {
        nanoseconds.sort_unstable();
        let at = |share| percentile(&nanoseconds, share).map(|ns| ns as f64 / 1e3);
        Some(Self {
            samples: nanoseconds.len(),
            p50_us: at(0.5)?,
            p99_us: at(0.99)?,
            p999_us: at(0.999)?,
            max_us: at(1.0)?,
        })
    }
}

/// The smallest value that at least `share` (0 to 1) of the values do not exceed: the nearest rank.
fn percentile(sorted: &[u64], share: f64) -> Option<u64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// One figure over several measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// `None` without values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), min, max })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let latency = Latency::of((1..=1000).rev().map(|us| us * 1000).collect()).unwrap();
        assert_eq!(
            (latency.p50_us, latency.p99_us, latency.p999_us, latency.max_us),
            (500.0, 990.0, 999.0, 1000.0)
        );
        assert_eq!(latency.samples, 1000);
    }

    #[test]
    fn a_single_sample_is_every_percentile() {
        let latency = Latency::of(vec![7000]).unwrap();
        assert_eq!((latency.p50_us, latency.p99_us, latency.p999_us, latency.max_us), (7.0, 7.0, 7.0, 7.0));
    }

    #[test]
    fn one_slow_request_in_a_hundred_shows_above_p99_only() {
        let latency = Latency::of([vec![1000; 99], vec![9_000_000]].concat()).unwrap();
        assert_eq!((latency.p99_us, latency.p999_us), (1.0, 9000.0));
    }

    #[test]
    fn nothing_has_no_percentiles_and_no_median() {
        assert_eq!(Latency::of(Vec::new()), None);
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        assert_eq!(Spread::of(vec![9.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 9.0 }));
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 100.0]).unwrap().median, 3.0);
    }
}
