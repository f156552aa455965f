//! Which brokers get the replicas of new partitions.
//!
//! Leaders are spread evenly first, then replicas; two replicas of a partition share a rack only when there are fewer
//! racks than replicas. Loads that exist count, so that small topics do not pile up on the first brokers.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::metadata::image::{BrokerId, MetadataImage};

/// More replicas were asked for than brokers can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooFewBrokers {
    /// Replicas asked for.
    pub(super) wanted: i16,
    /// Brokers that are in service.
    pub(super) available: usize,
}

#[derive(Clone, Debug, Default)]
struct Load {
    rack: Option<String>,
    topic_leaders: u64,
    topic_replicas: u64,
    leaders: u64,
    replicas: u64,
}

/// Chooses `replication_factor` brokers for each of `count` new partitions of a topic whose existing partitions have
/// the replicas `existing`. The first broker of each is the preferred leader.
pub(super) fn place(
    image: &MetadataImage,
    existing: &[Vec<BrokerId>],
    count: usize,
    replication_factor: i16,
) -> Result<Vec<Vec<BrokerId>>, TooFewBrokers> {
    let mut loads = broker_loads(image);
    let wanted = usize::try_from(replication_factor).unwrap_or(0);
    if wanted == 0 || wanted > loads.len() {
        return Err(TooFewBrokers { wanted: replication_factor, available: loads.len() });
    }
    for replicas in existing {
        for (position, broker_id) in replicas.iter().enumerate() {
            if let Some(load) = loads.get_mut(broker_id) {
                load.topic_replicas += 1;
                load.topic_leaders += u64::from(position == 0);
            }
        }
    }
    Ok((0..count).map(|_| place_one(&mut loads, wanted)).collect())
}

fn broker_loads(image: &MetadataImage) -> BTreeMap<BrokerId, Load> {
    let mut loads: BTreeMap<BrokerId, Load> = image
        .live_brokers()
        .filter(|broker| image.takes_replicas(broker))
        .map(|broker| (broker.broker_id, Load { rack: broker.rack.clone(), ..Load::default() }))
        .collect();
    for partition in image.topics.values().flat_map(|topic| &topic.partitions) {
        for (position, broker_id) in partition.replica_ids().enumerate() {
            if let Some(load) = loads.get_mut(&broker_id) {
                load.replicas += 1;
                load.leaders += u64::from(position == 0);
            }
        }
    }
    loads
}

fn place_one(loads: &mut BTreeMap<BrokerId, Load>, wanted: usize) -> Vec<BrokerId> {
    let mut chosen: Vec<BrokerId> = Vec::with_capacity(wanted);
    let mut used_racks: BTreeSet<String> = BTreeSet::new();
    while chosen.len() < wanted {
        let leads = chosen.is_empty();
        let best = loads
            .iter()
            .filter(|(broker_id, _)| !chosen.contains(broker_id))
            .min_by_key(|(broker_id, load)| {
                let rack_taken = load.rack.as_ref().is_some_and(|rack| used_racks.contains(rack));
                let leader_load = if leads { (load.topic_leaders, load.leaders) } else { (0, 0) };
                // Among equals the one that leads most takes a follower: it is the least likely to lead soon.
                let tie = if leads { Reverse(0) } else { Reverse(load.topic_leaders) };
                (rack_taken, leader_load, load.topic_replicas, load.replicas, tie, **broker_id)
            })
            .map(|(broker_id, _)| *broker_id);
        let Some(broker_id) = best else { break };
        if let Some(load) = loads.get_mut(&broker_id) {
            load.topic_replicas += 1;
            load.replicas += 1;
            load.topic_leaders += u64::from(leads);
            load.leaders += u64::from(leads);
            used_racks.extend(load.rack.clone());
        }
        chosen.push(broker_id);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{broker, image};
    use super::*;

    fn leaders(assignment: &[Vec<BrokerId>]) -> BTreeMap<BrokerId, usize> {
        let mut counts = BTreeMap::new();
        for replicas in assignment {
            *counts.entry(replicas[0]).or_default() += 1;
        }
        counts
    }

    #[test]
    fn spreads_leaders_evenly() {
        let image = image([broker(0), broker(1), broker(2)]);
        let assignment = place(&image, &[], 12, 3).expect("three brokers take three replicas");
        assert_eq!(leaders(&assignment), BTreeMap::from([(0, 4), (1, 4), (2, 4)]));
    }

    #[test]
    fn many_topics_of_one_partition_do_not_pile_up_on_the_first_broker() {
        let mut image = image([broker(0), broker(1), broker(2)]);
        for number in 0..9 {
            let replicas = place(&image, &[], 1, 1).expect("one replica fits");
            super::super::fixtures::add_topic(&mut image, &format!("topic-{number}"), &replicas);
        }
        let placed: Vec<Vec<BrokerId>> =
            image.topics.values().map(|topic| topic.partitions[0].replica_ids().collect()).collect();
        assert_eq!(leaders(&placed), BTreeMap::from([(0, 3), (1, 3), (2, 3)]));
    }

    #[test]
    fn replicas_of_a_partition_take_different_racks() {
        let image = image([
            broker(0).rack("a"),
            broker(1).rack("a"),
            broker(2).rack("b"),
            broker(3).rack("b"),
            broker(4).rack("c"),
            broker(5).rack("c"),
        ]);
        for replicas in place(&image, &[], 60, 3).expect("six brokers take three replicas") {
            let racks: BTreeSet<_> = replicas.iter().map(|id| image.brokers[id].rack.clone()).collect();
            assert_eq!(racks.len(), 3, "{replicas:?} shares a rack");
        }
    }

    #[test]
    fn replicas_share_a_rack_only_when_racks_run_out() {
        let image = image([broker(0).rack("a"), broker(1).rack("a"), broker(2).rack("b")]);
        for replicas in place(&image, &[], 6, 2).expect("three brokers take two replicas") {
            let racks: BTreeSet<_> = replicas.iter().map(|id| image.brokers[id].rack.clone()).collect();
            assert_eq!(racks.len(), 2);
        }
        assert!(place(&image, &[], 1, 3).is_ok());
    }

    #[test]
    fn growth_continues_where_the_topic_stands() {
        let image = image([broker(0), broker(1), broker(2)]);
        let added = place(&image, &[vec![0], vec![1]], 1, 1).expect("one replica fits");
        assert_eq!(added, vec![vec![2]]);
    }

    #[test]
    fn a_marked_broker_gets_nothing() {
        use crate::metadata::image::BrokerMark;
        let mut image = image([broker(0), broker(1), broker(2)]);
        image.marks = BTreeMap::from([(0, BrokerMark::Cordoned), (2, BrokerMark::Draining)]);
        let assignment = place(&image, &[], 4, 1).expect("a broker is left");
        assert_eq!(leaders(&assignment), BTreeMap::from([(1, 4)]));
    }

    #[test]
    fn a_fenced_broker_gets_nothing() {
        let image = image([broker(0), broker(1).fenced(), broker(2)]);
        assert_eq!(place(&image, &[], 1, 3), Err(TooFewBrokers { wanted: 3, available: 2 }));
        let assignment = place(&image, &[], 4, 1).expect("two brokers are left");
        assert!(!leaders(&assignment).contains_key(&1));
    }
}
