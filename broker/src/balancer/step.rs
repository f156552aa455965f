//! What the balancer asks the controller for next: values in, values out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::BalancerOptions;
use crate::metadata::controller::balancer::rate::next_rate;
use crate::metadata::controller::balancer::{Cluster, plan, select};
use crate::metadata::controller::{ControllerRequest, PartitionMove};
use crate::metadata::image::{BrokerId, BrokerMark, MetadataImage};
use crate::metrics::durations::DurationCounts;
use crate::replication::ClusterLoad;

/// Produce requests that a broker must have answered for their 99th percentile to mean something.
const MIN_REQUESTS: u64 = 100;

/// Part of the rate that moves must have come up to for it to count as made use of.
const USED_DIVISOR: u64 = 2;

/// What happened since the rate was last looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    /// 99th percentile of the produce requests at the broker where it was longest; `None` if too few came to tell.
    pub produce_p99: Option<Duration>,
    /// Bytes per second that replicas being filled are sent, all together.
    pub bytes_per_second: u64,
}

/// Whether there is anything to look at: otherwise nobody needs to be asked for sizes.
pub fn has_work(image: &MetadataImage, options: &BalancerOptions) -> bool {
    options.automatic
        || image.balance.rebalancing
        || image.balance.rate.is_some()
        || image.marks.iter().any(|(id, mark)| *mark == BrokerMark::Draining && holds_replicas(image, *id))
}

/// Whether a broker has a replica, one that is about to go included.
pub fn holds_replicas(image: &MetadataImage, broker_id: BrokerId) -> bool {
    image.partitions().any(|(_, state)| state.replica_ids().any(|id| id == broker_id))
}

/// Requests to the controller, in order. `interval` is given when it is time to look at the rate; `given_up` are brokers
/// that have been out of service for too long to wait for.
///
/// While some leader does not tell its sizes, brokers are emptied and not levelled. A rebalance that was asked for ends when
/// nothing is left to do, and that is known of traffic as well.
pub fn next_requests(
    image: &MetadataImage,
    load: &ClusterLoad,
    interval: Option<Interval>,
    given_up: &BTreeSet<BrokerId>,
    options: &BalancerOptions,
) -> Vec<ControllerRequest> {
    let wanted = options.automatic || image.balance.rebalancing;
    let level = wanted && load.silent_leaders(image).is_empty();
    let cluster = Cluster::of(image, &load.bytes, &load.traffic);
    let plan = plan(&cluster, &options.goals(level));
    let under_way: Vec<Vec<BrokerId>> = {
        let states = image.partitions().map(|(_, state)| state);
        states.filter(|state| state.is_reassigning()).map(|state| state.adding.clone()).collect()
    };
    let begun = select(&plan, &under_way, &options.limits);
    let own = image.balancer_moves().count();
    let copies = own > 0 || begun.iter().any(|it| it.added().next().is_some());
    let mut requests = Vec::new();
    let futile: BTreeSet<BrokerId> = image
        .balancer_moves()
        .filter_map(|id| image.partition(id))
        .flat_map(|state| state.adding.iter().filter(|id| given_up.contains(id) && !state.isr.contains(id)))
        .copied()
        .collect();
    if !futile.is_empty() {
        requests.push(ControllerRequest::TakeBackMoves(futile.into_iter().collect()));
    }
    let rate = match (image.balance.rate, interval) {
        _ if !copies => None,
        (None, _) => Some(options.rate.first()),
        (Some(rate), Some(interval)) if own > 0 => {
            let is_used = interval.bytes_per_second >= rate / USED_DIVISOR;
            Some(next_rate(&options.rate, rate, interval.produce_p99, is_used))
        }
        (rate, _) => rate,
    };
    if rate != image.balance.rate {
        requests.push(ControllerRequest::SetBalanceRate(rate));
    }
    let is_level = level && cluster.knows_traffic() && plan.steps.is_empty();
    if image.balance.rebalancing && is_level && own == 0 {
        requests.push(ControllerRequest::SetRebalancing { rebalancing: false, cancel_moves: false });
    }
    if !begun.is_empty() {
        let wanted = begun.into_iter();
        let moves = wanted.map(|it| PartitionMove { partition: it.partition, from: it.from, to: it.to });
        requests.push(ControllerRequest::MovePartitions(moves.collect()));
    }
    requests
}

/// Since when each broker is out of service, as far as anybody has looked.
pub fn away_since(
    image: &MetadataImage,
    before: &BTreeMap<BrokerId, Instant>,
    now: Instant,
) -> BTreeMap<BrokerId, Instant> {
    let away = image.brokers.values().filter(|broker| broker.fenced);
    away.map(|broker| (broker.broker_id, before.get(&broker.broker_id).copied().unwrap_or(now))).collect()
}

/// The 99th percentile at the broker where it was longest, between two looks.
pub fn slowest_p99(
    before: &BTreeMap<BrokerId, DurationCounts>,
    now: &BTreeMap<BrokerId, DurationCounts>,
) -> Option<Duration> {
    let of = |(id, now): (&BrokerId, &DurationCounts)| {
        let since = now.since(before.get(id)?);
        since.p99().filter(|_| since.count() >= MIN_REQUESTS)
    };
    now.iter().filter_map(of).max()
}
