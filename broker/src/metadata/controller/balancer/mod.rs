//! Decides which partitions move where, in what order, and how fast: values in, values out.
//!
//! [`plan()`] looks at the whole cluster and says every move that is worthwhile, first to last; [`select()`] says which of them
//! may begin now; [`rate::next_rate`] how fast they are filled. Nothing is remembered between two plans: each starts from
//! the metadata as they are, so a controller that takes over goes on, and what somebody else changes is reckoned with.
//!
//! Goals, in this order, none at the cost of one before it:
//! 1. Draining brokers lose every replica and every leader.
//! 2. No partition has replicas in fewer racks than before, and none has two on one broker.
//! 3. Brokers have as many replicas as the mean, up to the threshold; an empty broker is filled that way.
//! 4. They have as many bytes as the mean, up to the threshold.
//! 5. They are the preferred leader of as many partitions as the mean, up to the threshold.
//! 6. As leaders they take in and give out as many bytes per second as the mean, up to twice the threshold: traffic changes
//!    from minute to minute, and nothing is to move to and fro with it. Little traffic is left alone, and as long as some
//!    leader cannot tell, all of it.
//!
//! Where a goal can be reached in several ways, the one that copies fewer bytes is taken.

mod model;
mod plan;
pub mod rate;
mod select;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::metadata::image::{
    BrokerId, BrokerMark, MetadataImage, NO_LEADER, PartitionImage, TopicIdPartition,
};

pub use plan::plan;
pub use select::{Limits, select};

/// Share of the mean by which a broker may be off it before anything moves.
pub const DEFAULT_THRESHOLD: f64 = 0.1;

/// A broker, as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedBroker {
    /// Its id.
    pub broker_id: BrokerId,
    /// Its rack, if known.
    pub rack: Option<String>,
    /// Whether it may get replicas: it is in service and nobody has marked it. Only such brokers are levelled.
    pub takes: bool,
    /// Whether it is to lose all replicas.
    pub draining: bool,
}

/// A partition, as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedPartition {
    /// Which one.
    pub id: TopicIdPartition,
    /// Replicas, the preferred leader first; of a partition under reassignment, those of the target.
    pub replicas: Vec<BrokerId>,
    /// Bytes of each replica, as far as they are known.
    pub bytes: u64,
    /// Bytes per second that its leader takes in and gives out, if known.
    pub traffic: Option<u64>,
    /// Why it is left alone, if it is.
    pub fixed: Option<Fixed>,
}

/// Why a partition cannot be moved now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fixed {
    /// It is being reassigned.
    Reassigning,
    /// Nobody leads it.
    NoLeader,
    /// A replica that would stay is on a broker that is out of service: no reassignment ends before that is in sync.
    OutOfService,
}

/// The cluster, as the planner sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Brokers, by id.
    pub brokers: Vec<PlannedBroker>,
    /// Partitions.
    pub partitions: Vec<PlannedPartition>,
}

/// What is to be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goals {
    /// Whether brokers are levelled; draining ones are emptied in any case.
    pub level: bool,
    /// Share of the mean by which a broker may be off it.
    pub threshold: f64,
}

/// Why a partition moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A broker is draining.
    Drain,
    /// Brokers have unlike numbers of replicas.
    Replicas,
    /// Brokers have unlike numbers of bytes.
    Bytes,
    /// Brokers lead unlike numbers of partitions.
    Leaders,
    /// Brokers have unlike traffic as leaders.
    Traffic,
}

/// One partition's move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which partition.
    pub partition: TopicIdPartition,
    /// Its replicas now.
    pub from: Vec<BrokerId>,
    /// Its replicas then, the preferred leader first.
    pub to: Vec<BrokerId>,
    /// Bytes to be copied, all replicas together.
    pub bytes: u64,
    /// Why.
    pub reason: Reason,
}

impl Move {
    /// Brokers that get a replica.
    pub fn added(&self) -> impl Iterator<Item = BrokerId> + '_ {
        self.to.iter().copied().filter(|id| !self.from.contains(id))
    }

    /// Brokers that lose a replica.
    pub fn removed(&self) -> impl Iterator<Item = BrokerId> + '_ {
        self.from.iter().copied().filter(|id| !self.to.contains(id))
    }
}

/// Why a partition cannot leave a draining broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// The draining broker.
    pub broker_id: BrokerId,
    /// Which partition.
    pub partition: TopicIdPartition,
    /// What is missing.
    pub kind: BlockerKind,
}

/// What keeps a partition on a draining broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockerKind {
    /// It has as many replicas as there are brokers to hold them, or more.
    TooFewBrokers {
        /// Replicas that it has.
        replicas: usize,
        /// Brokers that may hold one.
        brokers: usize,
    },
    /// Every broker left is in a rack where it has a replica already.
    TooFewRacks,
    /// Nobody leads it, so nobody can fill another replica.
    NoLeader,
    /// Another of its replicas is on a broker that is out of service.
    OutOfService,
}

/// Moves that are worthwhile together: they begin at the same time. No partition comes twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// One, or those that change places.
    pub moves: Vec<Move>,
}

/// All worthwhile moves, and what stands against a drain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they should begin. A partition may come in several.
    pub steps: Vec<Step>,
    /// Partitions that cannot leave draining brokers.
    pub blockers: Vec<Blocker>,
}

impl Plan {
    /// What becomes of each partition in the end, in the order in which they begin; the reason is the first one.
    pub fn moves(&self) -> Vec<Move> {
        let mut order = Vec::new();
        let mut merged: BTreeMap<TopicIdPartition, (Move, u64)> = BTreeMap::new();
        for wanted in self.steps.iter().flat_map(|step| &step.moves) {
            // Of a replica: a move that only changes the order says nothing about it.
            let added = u64::try_from(wanted.added().count()).unwrap_or(u64::MAX);
            let size = wanted.bytes.checked_div(added).unwrap_or(0);
            let (known, known_size) = merged.entry(wanted.partition).or_insert_with(|| {
                order.push(wanted.partition);
                (wanted.clone(), size)
            });
            known.to.clone_from(&wanted.to);
            *known_size = size.max(*known_size);
            let added = u64::try_from(known.added().count()).unwrap_or(u64::MAX);
            known.bytes = known_size.saturating_mul(added);
        }
        let in_order = order.into_iter().filter_map(|id| merged.remove(&id));
        in_order.map(|(it, _)| it).filter(|it| it.from != it.to).collect()
    }

    /// Bytes to be copied.
    pub fn bytes(&self) -> u64 {
        self.moves().iter().map(|it| it.bytes).sum()
    }
}

impl Cluster {
    /// The cluster of an image, with sizes and traffic of partitions as their leaders know them.
    pub fn of(
        image: &MetadataImage,
        bytes: &BTreeMap<TopicIdPartition, u64>,
        traffic: &BTreeMap<TopicIdPartition, u64>,
    ) -> Self {
        let broker = |broker: &Arc<crate::metadata::image::BrokerImage>| PlannedBroker {
            broker_id: broker.broker_id,
            rack: broker.rack.clone(),
            takes: image.takes_replicas(broker),
            draining: image.marks.get(&broker.broker_id) == Some(&BrokerMark::Draining),
        };
        let partition = |(id, state): (TopicIdPartition, &PartitionImage)| PlannedPartition {
            id,
            replicas: state.target_ids().collect(),
            bytes: bytes.get(&id).copied().unwrap_or(0),
            traffic: traffic.get(&id).copied(),
            fixed: fixed(image, state),
        };
        Self {
            brokers: image.brokers.values().map(broker).collect(),
            partitions: image.partitions().map(partition).collect(),
        }
    }

    /// Whether the traffic of every partition that may be moved is known.
    pub fn knows_traffic(&self) -> bool {
        self.partitions.iter().all(|partition| partition.fixed.is_some() || partition.traffic.is_some())
    }
}

fn fixed(image: &MetadataImage, state: &PartitionImage) -> Option<Fixed> {
    let stays_away = |id: BrokerId| {
        image.brokers.get(&id).is_none_or(|broker| broker.fenced)
            && image.marks.get(&id) != Some(&BrokerMark::Draining)
    };
    match state.leader {
        _ if state.is_reassigning() => Some(Fixed::Reassigning),
        NO_LEADER => Some(Fixed::NoLeader),
        _ if state.replica_ids().any(stays_away) => Some(Fixed::OutOfService),
        _ => None,
    }
}

#[cfg(test)]
mod plan_test;
