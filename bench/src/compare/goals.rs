//! What a figure is to reach.

use std::fmt;

use serde::Serialize;

/// A bound on a figure of our broker.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Goal {
    /// Which figure.
    pub key: &'static str,
    bound: Bound,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// Of ours divided by Kafka's.
    RatioAtMost(f64),
}

/// Whether a goal was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was.
    Reached,
    /// It was not.
    Missed,
    /// A figure is missing.
    Unknown,
}

impl Goal {
    /// Our figure is at most `most`.
    pub const fn at_most(key: &'static str, most: f64) -> Self {
        Self { key, bound: Bound::AtMost(most) }
    }

    /// Our figure is at least `least`.
    pub const fn at_least(key: &'static str, least: f64) -> Self {
        Self { key, bound: Bound::AtLeast(least) }
    }

    /// Our figure is at most `most` times Kafka's.
    pub const fn ratio_at_most(key: &'static str, most: f64) -> Self {
        Self { key, bound: Bound::RatioAtMost(most) }
    }

    /// What our figure, and Kafka's, mean for it.
    pub fn outcome(&self, ours: Option<f64>, theirs: Option<f64>) -> Outcome {
        let is_reached = match self.bound {
            Bound::AtMost(most) => ours.map(|ours| ours <= most),
            Bound::AtLeast(least) => ours.map(|ours| ours >= least),
            Bound::RatioAtMost(most) => ours.zip(theirs).map(|(ours, theirs)| ours <= most * theirs),
        };
        match is_reached {
            Some(true) => Outcome::Reached,
            Some(false) => Outcome::Missed,
            None => Outcome::Unknown,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bound {
            Bound::AtMost(most) => write!(f, "≤ {most}"),
            Bound::AtLeast(least) => write!(f, "≥ {least}"),
            Bound::RatioAtMost(most) => write!(f, "≤ {most:.2}×"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reached => "yes",
            Self::Missed => "no",
            Self::Unknown => "–",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_itself_is_within_it() {
        assert_eq!(Goal::at_most("x", 2.0).outcome(Some(2.0), None), Outcome::Reached);
        assert_eq!(Goal::at_most("x", 2.0).outcome(Some(2.1), None), Outcome::Missed);
        assert_eq!(Goal::at_least("x", 2.0).outcome(Some(2.0), None), Outcome::Reached);
        assert_eq!(Goal::at_least("x", 2.0).outcome(Some(1.9), None), Outcome::Missed);
    }

    #[test]
    fn a_ratio_needs_both() {
        let half = Goal::ratio_at_most("x", 0.5);
        assert_eq!(half.outcome(Some(1.0), Some(2.0)), Outcome::Reached);
        assert_eq!(half.outcome(Some(1.1), Some(2.0)), Outcome::Missed);
        assert_eq!(half.outcome(Some(1.0), None), Outcome::Unknown);
        assert_eq!(half.to_string(), "≤ 0.50×");
    }
}
