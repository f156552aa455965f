//! The cluster while a plan is made: who has what once the moves so far are done.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cluster, PlannedBroker};
use crate::metadata::image::BrokerId;

/// What a broker has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Replicas.
    pub(super) replicas: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Partitions whose preferred leader it is.
    pub(super) leaders: u64,
    /// Bytes per second that these take in and give out.
    pub(super) traffic: u64,
}

impl Load {
    /// Without `going` and with `coming`; `None` if there is not that much.
    pub(super) fn exchanged(self, going: Self, coming: Self) -> Option<Self> {
        Some(Self {
            replicas: self.replicas.checked_sub(going.replicas)? + coming.replicas,
            bytes: self.bytes.checked_sub(going.bytes)? + coming.bytes,
            leaders: self.leaders.checked_sub(going.leaders)? + coming.leaders,
            traffic: self.traffic.checked_sub(going.traffic)? + coming.traffic,
        })
    }
}

/// Where a number may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) low: u64,
    pub(super) high: u64,
}

impl Bounds {
    /// Around the mean of `total` over `brokers`; never tighter than what whole numbers allow.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bounds need not be exact"
    )]
    fn around(total: u64, brokers: usize, threshold: f64) -> Self {
        let mean = total as f64 / brokers.max(1) as f64;
        Self {
            low: mean.floor().min((mean * (1.0 - threshold)).ceil()).max(0.0) as u64,
            high: mean.ceil().max((mean * (1.0 + threshold)).floor()) as u64,
        }
    }

    /// Wider by `slack` to both sides.
    pub(super) fn widened(self, slack: u64) -> Self {
        Self { low: self.low.saturating_sub(slack), high: self.high.saturating_add(slack) }
    }

    /// How far `value` is outside.
    pub(super) fn excess(self, value: u64) -> u64 {
        self.low.saturating_sub(value) + value.saturating_sub(self.high)
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Model<'a> {
    pub(super) cluster: &'a Cluster,
    brokers: BTreeMap<BrokerId, &'a PlannedBroker>,
    /// Replicas of each partition, in the order of the cluster's.
    pub(super) replicas: Vec<Vec<BrokerId>>,
    loads: BTreeMap<BrokerId, Load>,
    /// Partitions with a replica on each broker.
    held: BTreeMap<BrokerId, BTreeSet<usize>>,
}

impl<'a> Model<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        let mut model = Self {
            cluster,
            brokers: cluster.brokers.iter().map(|broker| (broker.broker_id, broker)).collect(),
            replicas: vec![Vec::new(); cluster.partitions.len()],
            loads: cluster.brokers.iter().map(|broker| (broker.broker_id, Load::default())).collect(),
            held: BTreeMap::new(),
        };
        for (index, partition) in cluster.partitions.iter().enumerate() {
            model.set(index, partition.replicas.clone());
        }
        model
    }

    pub(super) fn set(&mut self, index: usize, replicas: Vec<BrokerId>) {
        let bytes = self.cluster.partitions[index].bytes;
        let traffic = self.traffic(index);
        let before = std::mem::replace(&mut self.replicas[index], replicas);
        for (position, id) in before.iter().enumerate() {
            let load = self.loads.entry(*id).or_default();
            load.replicas -= 1;
            load.bytes -= bytes;
            if position == 0 {
                load.leaders -= 1;
                load.traffic -= traffic;
            }
            self.held.entry(*id).or_default().remove(&index);
        }
        for (position, id) in self.replicas[index].iter().enumerate() {
            let load = self.loads.entry(*id).or_default();
            load.replicas += 1;
            load.bytes += bytes;
            if position == 0 {
                load.leaders += 1;
                load.traffic += traffic;
            }
            self.held.entry(*id).or_default().insert(index);
        }
    }

    /// Bytes per second of a partition's leader, nothing if unknown.
    pub(super) fn traffic(&self, index: usize) -> u64 {
        self.cluster.partitions[index].traffic.unwrap_or(0)
    }

    pub(super) fn load(&self, id: BrokerId) -> Load {
        self.loads.get(&id).copied().unwrap_or_default()
    }

    pub(super) fn takes(&self, id: BrokerId) -> bool {
        self.brokers.get(&id).is_some_and(|broker| broker.takes)
    }

    pub(super) fn is_draining(&self, id: BrokerId) -> bool {
        self.brokers.get(&id).is_some_and(|broker| broker.draining)
    }

    /// Brokers that are levelled.
    pub(super) fn takers(&self) -> impl Iterator<Item = BrokerId> + '_ {
        self.brokers.values().filter(|broker| broker.takes).map(|broker| broker.broker_id)
    }

    /// Partitions on a broker that may be moved.
    pub(super) fn movable(&self, id: BrokerId) -> impl Iterator<Item = usize> + '_ {
        let held = self.held.get(&id).into_iter().flatten().copied();
        held.filter(|index| self.cluster.partitions[*index].fixed.is_none())
    }

    /// Bounds of what `of` counts, over the brokers that are levelled.
    pub(super) fn bounds(&self, threshold: f64, of: impl Fn(Load) -> u64) -> Bounds {
        let takers: Vec<BrokerId> = self.takers().collect();
        Bounds::around(takers.iter().map(|id| of(self.load(*id))).sum(), takers.len(), threshold)
    }

    /// Racks that brokers are in; one without a rack counts as one of its own.
    pub(super) fn racks(&self, ids: &[BrokerId]) -> usize {
        let rack = |id: &BrokerId| match self.brokers.get(id).and_then(|broker| broker.rack.as_deref()) {
            Some(rack) => (Some(rack), 0),
            None => (None, *id),
        };
        ids.iter().map(rack).collect::<BTreeSet<_>>().len()
    }

    /// Whether the partition may have `next` instead of the replicas that it has: none twice, and no fewer racks than at
    /// first.
    pub(super) fn may_have(&self, index: usize, next: &[BrokerId]) -> bool {
        let distinct: BTreeSet<&BrokerId> = next.iter().collect();
        distinct.len() == next.len()
            && self.racks(next) >= self.racks(&self.cluster.partitions[index].replicas)
    }

    /// Replicas of a partition with one put in the place of another.
    pub(super) fn replaced(&self, index: usize, from: BrokerId, to: BrokerId) -> Vec<BrokerId> {
        self.replicas[index].iter().map(|id| if *id == from { to } else { *id }).collect()
    }
}
