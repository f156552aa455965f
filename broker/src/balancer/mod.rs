//! Keeps replicas and leaders spread over the brokers, and empties brokers that are to go.
//!
//! The controller's broker looks at the cluster now and then ([`run()`]): it asks the leaders for the sizes of partitions, plans
//! ([`plan`](crate::metadata::controller::balancer)), and asks the controller to begin as many moves as may be under way
//! at a time ([`step`]). Everything that must outlive a controller is in the metadata: marks on brokers, whether a
//! rebalance was asked for, which moves are the balancer's and how fast they are filled. Any broker can therefore say how
//! far it all is, and what a rebalance would do ([`status`]).
//!
//! The rate is kept where the clients' produce requests stay within their goal: see
//! [`rate`](crate::metadata::controller::balancer::rate).

mod driver;
pub mod status;
pub mod step;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod balancer_test;

use std::time::Duration;

use crate::config::BalanceConfig;
use crate::metadata::controller::balancer::rate::RateGoal;
use crate::metadata::controller::balancer::{Goals, Limits};

pub use driver::run;

/// What the balancer goes by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BalancerOptions {
    /// Whether brokers are levelled unasked.
    pub automatic: bool,
    /// Share of the mean by which brokers may be off it.
    pub threshold: f64,
    /// Most moves at a time.
    pub limits: Limits,
    /// How fast replicas are filled.
    pub rate: RateGoal,
    /// Time that a broker may be out of service before the moves that fill it are taken back, and made elsewhere.
    pub patience: Duration,
    /// Time between two looks while there is something to do, and between two changes of the rate.
    pub interval: Duration,
}

impl BalancerOptions {
    /// As configured.
    pub fn new(config: &BalanceConfig) -> Self {
        Self {
            automatic: config.automatic,
            threshold: f64::from(config.imbalance_percentage) / 100.0,
            limits: Limits {
                per_broker: config.max_moves_per_broker,
                total: config.max_moves,
                ..Limits::default()
            },
            rate: RateGoal {
                produce_p99: config.produce_p99_goal,
                min: config.min_rate,
                max: config.max_rate,
            },
            patience: Duration::from_mins(5),
            interval: Duration::from_secs(5),
        }
    }

    /// What a plan is to reach.
    pub fn goals(&self, level: bool) -> Goals {
        Goals { level, threshold: self.threshold }
    }
}
