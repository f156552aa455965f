//! What the management API shows of the balancer: pure functions over the image and what the leaders have told.

use std::collections::HashMap;

use millrace_management::{BrokerLoadView, DrainBlocker, DrainView, MoveView, PlanView, RebalanceView};

use super::BalancerOptions;
use crate::metadata::controller::balancer::{BlockerKind, Cluster, Move, Plan, Reason, plan};
use crate::metadata::image::{
    BrokerId, BrokerMark, MetadataImage, NO_LEADER, PartitionImage, TopicIdPartition,
};
use crate::replication::{ClusterLoad, Progress};

/// The plan as it is now, and as it would be with brokers levelled if `level`.
pub fn planned(image: &MetadataImage, load: &ClusterLoad, level: bool, options: &BalancerOptions) -> Plan {
    plan(&Cluster::of(image, &load.bytes, &load.traffic), &options.goals(level))
}

/// A plan, for people.
pub fn plan_view(image: &MetadataImage, load: &ClusterLoad, plan: &Plan, begun: bool) -> PlanView {
    PlanView {
        begun,
        bytes: plan.bytes(),
        moves: plan.moves().iter().map(|it| move_view(image, it)).collect(),
        blockers: blockers(image, plan, None),
        silent_brokers: load.silent_leaders(image).into_iter().collect(),
    }
}

/// How far the drain of a broker is.
pub fn drain_view(
    image: &MetadataImage,
    load: &ClusterLoad,
    progress: &Progress,
    broker_id: BrokerId,
    plan: &Plan,
) -> DrainView {
    let held = image.partitions().filter(|(_, state)| state.replica_ids().any(|id| id == broker_id));
    let held: Vec<_> = held.collect();
    let leaders = held.iter().filter(|(_, state)| state.leader == broker_id).count();
    let draining = image.marks.get(&broker_id) == Some(&BrokerMark::Draining);
    let bytes_left = held.iter().map(|(id, state)| bytes_left(*id, state, load, progress)).sum();
    let bytes_per_second = progress.replicas.iter().map(|replica| replica.bytes_per_second).sum();
    DrainView {
        broker_id,
        draining,
        cordoned: image.marks.contains_key(&broker_id),
        empty: held.is_empty(),
        replicas_left: count(held.len()),
        leaders_left: count(leaders),
        moves_under_way: count(held.iter().filter(|(_, state)| state.removing.contains(&broker_id)).count()),
        bytes_left,
        bytes_per_second,
        rate_limit: image.balance.rate,
        eta_ms: eta_ms(bytes_left, bytes_per_second, held.is_empty()),
        blockers: if draining { blockers(image, plan, Some(broker_id)) } else { Vec::new() },
        silent_brokers: load.silent_leaders(image).into_iter().collect(),
    }
}

/// How far a rebalance is, and how even the brokers are.
pub fn rebalance_view(
    image: &MetadataImage,
    load: &ClusterLoad,
    progress: &Progress,
    plan: &Plan,
) -> RebalanceView {
    let own: Vec<TopicIdPartition> = image.balancer_moves().collect();
    let states = own.iter().filter_map(|id| Some((*id, image.partition(*id)?)));
    let under_way: u64 = states.map(|(id, state)| bytes_left(id, state, load, progress)).sum();
    // Nothing is planned as long as nobody wants it.
    let bytes_left = under_way + if image.balance.rebalancing { plan.bytes() } else { 0 };
    let bytes_per_second = progress.replicas.iter().map(|replica| replica.bytes_per_second).sum();
    let idle = own.is_empty() && !image.balance.rebalancing;
    RebalanceView {
        rebalancing: image.balance.rebalancing,
        moves_under_way: count(own.len()),
        moves_left: if image.balance.rebalancing { count(plan.moves().len()) } else { 0 },
        bytes_left,
        bytes_per_second,
        rate_limit: image.balance.rate,
        eta_ms: eta_ms(bytes_left, bytes_per_second, idle),
        brokers: image.brokers.keys().map(|id| broker_load(image, load, *id)).collect(),
        silent_brokers: load.silent_leaders(image).into_iter().collect(),
    }
}

fn broker_load(image: &MetadataImage, load: &ClusterLoad, broker_id: BrokerId) -> BrokerLoadView {
    let mut view = BrokerLoadView { broker_id, ..BrokerLoadView::default() };
    for (id, state) in image.partitions() {
        if state.replica_ids().any(|it| it == broker_id) {
            view.replicas += 1;
            view.bytes += load.bytes.get(&id).copied().unwrap_or(0);
        }
        if state.leader == broker_id && broker_id != NO_LEADER {
            view.leaders += 1;
            view.leader_bytes_per_second += load.traffic.get(&id).copied().unwrap_or(0);
        }
    }
    view
}

/// Bytes to be copied before a partition is where it is to be: what its leader says, else all of it.
fn bytes_left(id: TopicIdPartition, state: &PartitionImage, load: &ClusterLoad, progress: &Progress) -> u64 {
    let size = load.bytes.get(&id).copied().unwrap_or(0);
    if !state.is_reassigning() {
        return size;
    }
    let known: HashMap<BrokerId, u64> = progress
        .replicas
        .iter()
        .filter(|replica| replica.partition == id)
        .map(|replica| (replica.broker_id, replica.bytes_left))
        .collect();
    let filling = state.adding.iter().filter(|it| !state.isr.contains(it));
    filling.map(|it| known.get(it).copied().unwrap_or(size)).sum()
}

fn eta_ms(bytes_left: u64, bytes_per_second: u64, is_done: bool) -> Option<u64> {
    match (bytes_left, bytes_per_second) {
        _ if is_done => Some(0),
        (_, 0) => None,
        (left, rate) => u64::try_from(u128::from(left) * 1_000 / u128::from(rate)).ok(),
    }
}

fn topic_name(image: &MetadataImage, id: TopicIdPartition) -> String {
    image.topics.get(&id.topic_id).map(|topic| topic.name.clone()).unwrap_or_default()
}

fn move_view(image: &MetadataImage, wanted: &Move) -> MoveView {
    let reason = match wanted.reason {
        Reason::Drain => "Drain",
        Reason::Replicas => "Replicas",
        Reason::Bytes => "Bytes",
        Reason::Leaders => "Leaders",
        Reason::Traffic => "Traffic",
    };
    MoveView {
        topic: topic_name(image, wanted.partition),
        partition: wanted.partition.partition,
        from: wanted.from.clone(),
        to: wanted.to.clone(),
        bytes: wanted.bytes,
        reason: reason.to_owned(),
    }
}

fn blockers(image: &MetadataImage, plan: &Plan, of: Option<BrokerId>) -> Vec<DrainBlocker> {
    let concerned = plan.blockers.iter().filter(|it| of.is_none_or(|of| it.broker_id == of));
    concerned
        .map(|it| {
            let (reason, message) = match &it.kind {
                BlockerKind::TooFewBrokers { replicas, brokers } => (
                    "TooFewBrokers",
                    format!(
                        "it has {replicas} replicas, and {brokers} brokers may hold one; add a broker, or give the \
                         topic fewer replicas"
                    ),
                ),
                BlockerKind::TooFewRacks => (
                    "TooFewRacks",
                    "on the brokers that are left its replicas would be in fewer racks; add a broker in another \
                     rack, or reassign it by hand"
                        .to_owned(),
                ),
                BlockerKind::OutOfService => (
                    "OutOfService",
                    "another of its replicas is on a broker that is out of service; bring that back, or drain it too"
                        .to_owned(),
                ),
                BlockerKind::NoLeader => {
                    ("NoLeader", "it has no leader that could fill another replica".to_owned())
                }
            };
            DrainBlocker {
                broker_id: it.broker_id,
                topic: topic_name(image, it.partition),
                partition: it.partition.partition,
                reason: reason.to_owned(),
                message,
            }
        })
        .collect()
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
