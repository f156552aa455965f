//! Observed facts → conditions and status. No client; the time is an argument.
//!
//! A condition's `lastTransitionTime` moves only when its status does, and nothing here depends on the time otherwise:
//! the same facts give the same status, which is what keeps a converged object silent.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use millrace_crds::condition;

pub mod kafka_cluster;
pub mod topic;

/// Why something waits or cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Fixed CamelCase word.
    pub reason: String,
    /// For people: what it is about, and what to do.
    pub message: String,
}

impl Cause {
    /// A cause.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

/// Three values of a condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Nobody could tell.
    Unknown,
}

impl Truth {
    fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// The conditions of one object while its new status is put together.
#[derive(Clone, Debug)]
pub struct Conditions {
    list: Vec<Condition>,
    generation: Option<i64>,
    now: Timestamp,
}

impl Conditions {
    /// Starts from the conditions that are there.
    pub fn new(live: &[Condition], generation: Option<i64>, now: Timestamp) -> Self {
        Self { list: live.to_vec(), generation, now }
    }

    /// Sets a condition.
    pub fn set(&mut self, type_: &str, truth: Truth, cause: Cause) {
        let status = truth.as_str();
        let at = self.list.iter().position(|found| found.type_ == type_);
        let since = at
            .map(|at| &self.list[at])
            .filter(|found| found.status == status)
            .map_or(Time(self.now), |found| found.last_transition_time.clone());
        let condition = Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: cause.reason,
            message: cause.message,
            observed_generation: self.generation,
            last_transition_time: since,
        };
        match at {
            Some(at) => self.list[at] = condition,
            None => self.list.push(condition),
        }
    }

    /// Removes a condition that no longer says anything.
    pub fn remove(&mut self, type_: &str) {
        self.list.retain(|found| found.type_ != type_);
    }

    /// Whether a condition is true for the current generation.
    pub fn holds(&self, type_: &str) -> bool {
        self.list.iter().any(|found| {
            found.type_ == type_ && found.status == "True" && found.observed_generation == self.generation
        })
    }

    /// Sets Reconciling and Stalled so that they agree with what is waited for and what is refused.
    pub fn set_progress(&mut self, waits_for: Option<&Cause>, stalled: Option<&Cause>) {
        match waits_for {
            Some(cause) => self.set(condition::RECONCILING, Truth::True, cause.clone()),
            None => {
                self.set(condition::RECONCILING, Truth::False, Cause::new("Settled", "nothing is under way"))
            }
        }
        match stalled {
            Some(cause) => self.set(condition::STALLED, Truth::True, cause.clone()),
            None => {
                self.set(condition::STALLED, Truth::False, Cause::new("Progressing", "nothing is refused"))
            }
        }
    }

    /// The finished list.
    pub fn into_list(self) -> Vec<Condition> {
        self.list
    }
}

/// Joins a few items for people: all of a short list, the first of a long one.
pub fn summary(items: &[String]) -> String {
    const SHOWN: usize = 3;
    match items.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{}; and {more} more", items[..SHOWN].join("; ")),
        _ => items.join("; "),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let mut first = Conditions::new(&[], Some(1), at(1));
        first.set("Ready", Truth::False, Cause::new("Waiting", "1 of 3"));
        let mut second = Conditions::new(&first.into_list(), Some(1), at(2));
        second.set("Ready", Truth::False, Cause::new("Waiting", "2 of 3"));
        let list = second.into_list();
        assert_eq!((list[0].message.as_str(), &list[0].last_transition_time), ("2 of 3", &Time(at(1))));
        let mut third = Conditions::new(&list, Some(1), at(3));
        third.set("Ready", Truth::True, Cause::new("Done", "3 of 3"));
        assert_eq!(third.into_list()[0].last_transition_time, Time(at(3)));
    }

    #[test]
    fn a_condition_of_an_older_generation_does_not_hold() {
        let mut old = Conditions::new(&[], Some(1), at(1));
        old.set("Ready", Truth::True, Cause::new("Done", ""));
        assert!(old.holds("Ready"));
        assert!(!Conditions::new(&old.into_list(), Some(2), at(1)).holds("Ready"));
    }

    #[test]
    fn long_lists_are_cut() {
        let items: Vec<_> = (0..5).map(|n| n.to_string()).collect();
        assert_eq!(summary(&items), "0; 1; 2; and 2 more");
        assert_eq!(summary(&items[..3]), "0; 1; 2");
    }
}
