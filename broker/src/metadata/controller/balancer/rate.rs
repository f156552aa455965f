//! How fast replicas are filled: as fast as clients do not notice.
//!
//! Additive increase, multiplicative decrease, as in congestion control (RFC 5681): the rate rises by a step while the
//! clients' 99th percentile is within the goal, and falls at once when it is not. Only a rate that is made use of rises.

use std::time::Duration;

/// What the rate goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateGoal {
    /// Time within which 99 of 100 produce requests are to be answered.
    pub produce_p99: Duration,
    /// Slowest rate, in bytes per second: what is begun must end, whatever else is slow.
    pub min: u64,
    /// Fastest rate.
    pub max: u64,
}

impl RateGoal {
    /// Bytes per second to begin with: slow enough not to be felt before the first look.
    pub fn first(&self) -> u64 {
        (self.max / 16).clamp(self.min.min(self.max), self.max)
    }

    fn step(&self) -> u64 {
        (self.max / 32).max(1)
    }
}

/// The rate for the next interval, in bytes per second.
///
/// `produce_p99` is that of the last interval, `None` if too few clients wrote to tell; `is_used` says whether the moves
/// came near the present rate.
pub fn next_rate(goal: &RateGoal, now: u64, produce_p99: Option<Duration>, is_used: bool) -> u64 {
    let next = match produce_p99 {
        Some(p99) if p99 > goal.produce_p99 => now / 2,
        _ if is_used => now.saturating_add(goal.step()),
        _ => now,
    };
    next.clamp(goal.min.min(goal.max), goal.max)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOAL: RateGoal = RateGoal { produce_p99: Duration::from_millis(50), min: 1_000, max: 64_000 };

    #[test]
    fn the_rate_rises_by_steps_and_falls_by_halves() {
        let p99 = |ms| Some(Duration::from_millis(ms));
        assert_eq!(GOAL.first(), 4_000);
        assert_eq!(next_rate(&GOAL, 10_000, p99(50), true), 12_000);
        assert_eq!(next_rate(&GOAL, 10_000, None, true), 12_000);
        assert_eq!(
            next_rate(&GOAL, 10_000, p99(10), false),
            10_000,
            "a rate that nothing uses tells nothing"
        );
        assert_eq!(next_rate(&GOAL, 10_000, p99(51), false), 5_000);
        assert_eq!(next_rate(&GOAL, 1_500, p99(51), true), 1_000);
        assert_eq!(next_rate(&GOAL, 64_000, p99(1), true), 64_000);
    }

    proptest! {
        /// Clients whose 99th percentile rises with the rate.
        #[test]
        fn the_rate_settles_where_the_goal_is_met(slope in 1_u64..40, start in 0_u64..100_000) {
            let p99 = |rate: u64| Duration::from_micros(rate * slope);
            let mut rate = start;
            let mut late = 0;
            for look in 0..200 {
                rate = next_rate(&GOAL, rate, Some(p99(rate)), true);
                prop_assert!((GOAL.min..=GOAL.max).contains(&rate));
                late += u32::from(look >= 50 && p99(rate) > GOAL.produce_p99);
            }
            // Over the goal for one look of each climb: 50 ms at this slope is some steps above half of it. A slope at
            // which the slowest rate is too fast does not occur here.
            let climb = 50_000 / slope / 2 / 2_000;
            prop_assert!(u64::from(late) <= 150 / climb.max(1) + 1, "{late} of 150");
        }
    }
}
