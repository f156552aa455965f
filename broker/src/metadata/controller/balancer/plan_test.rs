//! What plans hold to, on clusters made up at random, and some whose plans are plain.

use std::collections::BTreeSet;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const GOALS: Goals = Goals { level: true, threshold: DEFAULT_THRESHOLD };

fn brokers(racks: &[Option<&str>]) -> Vec<PlannedBroker> {
    let broker = |(id, rack): (BrokerId, &Option<&str>)| PlannedBroker {
        broker_id: id,
        rack: rack.map(str::to_owned),
        takes: true,
        draining: false,
    };
    (0..).zip(racks).map(broker).collect()
}

fn partition(number: i32, replicas: &[BrokerId], bytes: u64) -> PlannedPartition {
    let id = TopicIdPartition { topic_id: Uuid::nil(), partition: number };
    PlannedPartition { id, replicas: replicas.to_vec(), bytes, traffic: None, fixed: None }
}

fn drain(cluster: &mut Cluster, id: BrokerId) {
    let broker = cluster.brokers.iter_mut().find(|broker| broker.broker_id == id).expect("it is there");
    (broker.takes, broker.draining) = (false, true);
}

fn carry_out(cluster: &Cluster, moves: &[Move]) -> Cluster {
    let mut next = cluster.clone();
    for it in moves {
        let partition = next.partitions.iter_mut().find(|partition| partition.id == it.partition);
        let partition = partition.expect("plans name partitions that exist");
        assert_eq!(partition.replicas, it.from);
        partition.replicas.clone_from(&it.to);
    }
    next
}

fn counts(cluster: &Cluster, of: impl Fn(&PlannedPartition, BrokerId) -> u64) -> Vec<u64> {
    let total = |id| cluster.partitions.iter().map(|partition| of(partition, id)).sum();
    cluster.brokers.iter().map(|broker| total(broker.broker_id)).collect()
}

fn replicas(cluster: &Cluster) -> Vec<u64> {
    counts(cluster, |partition, id| u64::from(partition.replicas.contains(&id)))
}

fn leaders(cluster: &Cluster) -> Vec<u64> {
    counts(cluster, |partition, id| u64::from(partition.replicas.first() == Some(&id)))
}

fn traffic(cluster: &Cluster) -> Vec<u64> {
    let of = |partition: &PlannedPartition, id| match partition.replicas.first() == Some(&id) {
        true => partition.traffic.unwrap_or(0),
        false => 0,
    };
    counts(cluster, of)
}

fn sizes(cluster: &Cluster) -> Vec<u64> {
    counts(cluster, |partition, id| if partition.replicas.contains(&id) { partition.bytes } else { 0 })
}

fn racks(cluster: &Cluster, ids: &[BrokerId]) -> usize {
    let rack = |id: &BrokerId| {
        let broker = cluster.brokers.iter().find(|broker| broker.broker_id == *id).expect("it is there");
        broker.rack.clone().ok_or(*id)
    };
    ids.iter().map(rack).collect::<BTreeSet<_>>().len()
}

#[test]
fn an_empty_broker_gets_its_share_of_replicas_bytes_and_leaders_and_no_more_is_copied() {
    let mut cluster = Cluster { brokers: brokers(&[None; 4]), partitions: Vec::new() };
    for number in 0..40 {
        let ids = [number % 3, (number + 1) % 3, (number + 2) % 3];
        cluster.partitions.push(partition(number, &ids, 100));
    }
    let plan = plan(&cluster, &GOALS);
    let after = carry_out(&cluster, &plan.moves());
    assert_eq!(replicas(&cluster), [40, 40, 40, 0]);
    assert!(replicas(&after).iter().all(|count| (27..=33).contains(count)), "{:?}", replicas(&after));
    assert!(leaders(&after).iter().all(|count| (9..=11).contains(count)), "{:?}", leaders(&after));
    let filled = replicas(&after)[3];
    assert_eq!(plan.bytes(), filled * 100, "every byte that is copied goes to the new broker");
}

#[test]
fn large_partitions_change_places_with_small_ones() {
    let mut cluster = Cluster { brokers: brokers(&[None; 2]), partitions: Vec::new() };
    for number in 0..10 {
        let on_first = number % 2 == 0;
        cluster.partitions.push(partition(
            number,
            &[i32::from(!on_first)],
            if on_first { 1_000 } else { 10 },
        ));
    }
    let plan = plan(&cluster, &GOALS);
    let after = carry_out(&cluster, &plan.moves());
    assert_eq!(replicas(&after), [5, 5]);
    // Of five large ones one side has three: nobody can do better.
    assert_eq!(sizes(&after).iter().max(), Some(&3_020));
    assert!(plan.moves().iter().all(|it| it.reason == Reason::Bytes));
}

#[test]
fn leaders_are_spread_without_copying_anything() {
    let mut cluster = Cluster { brokers: brokers(&[None; 3]), partitions: Vec::new() };
    for number in 0..9 {
        cluster.partitions.push(partition(number, &[0, 1, 2], 100));
    }
    let plan = plan(&cluster, &GOALS);
    assert_eq!((plan.moves().len(), plan.bytes()), (6, 0));
    assert_eq!(leaders(&carry_out(&cluster, &plan.moves())), [3, 3, 3]);
}

/// Three brokers with two leaders each; the first leads both busy partitions.
fn busy(replicas: impl Fn(i32) -> Vec<BrokerId>) -> Cluster {
    let mut cluster = Cluster { brokers: brokers(&[None; 3]), partitions: Vec::new() };
    for number in 0..6 {
        let traffic = Some(if number < 2 { 100 << 20 } else { 1 << 20 });
        cluster
            .partitions
            .push(PlannedPartition { traffic, ..partition(number, &replicas(number / 2), 1_000) });
    }
    cluster
}

#[test]
fn busy_partitions_are_led_by_different_brokers_without_copying_anything() {
    let cluster = busy(|first| vec![first, (first + 1) % 3, (first + 2) % 3]);
    assert_eq!(traffic(&cluster), [200 << 20, 2 << 20, 2 << 20]);
    let plan = plan(&cluster, &GOALS);
    assert_eq!((plan.moves().len(), plan.bytes()), (2, 0), "one goes and one comes back");
    assert!(plan.moves().iter().all(|it| it.reason == Reason::Traffic));
    let after = carry_out(&cluster, &plan.moves());
    assert_eq!(leaders(&after), [2, 2, 2]);
    assert_eq!(traffic(&after).into_iter().max(), Some(101 << 20));
}

#[test]
fn busy_partitions_without_another_replica_take_it_along() {
    let cluster = busy(|first| vec![first]);
    let plan = plan(&cluster, &GOALS);
    assert_eq!((plan.moves().len(), plan.bytes()), (2, 2_000));
    let after = carry_out(&cluster, &plan.moves());
    assert_eq!((replicas(&after), traffic(&after).into_iter().max()), (vec![2, 2, 2], Some(101 << 20)));
}

#[test]
fn little_traffic_is_left_alone_and_so_is_all_of_it_while_some_is_not_known() {
    let cluster = busy(|first| vec![first, (first + 1) % 3, (first + 2) % 3]);
    let mut little = cluster.clone();
    little.partitions.iter_mut().for_each(|it| it.traffic = it.traffic.map(|traffic| traffic / 150));
    assert_eq!(plan(&little, &GOALS), Plan::default());
    let mut unknown = cluster.clone();
    unknown.partitions[5].traffic = None;
    assert_eq!(plan(&unknown, &GOALS), Plan::default());
    unknown.partitions[5].fixed = Some(Fixed::NoLeader);
    assert_ne!(plan(&unknown, &GOALS), Plan::default(), "nobody could tell");
}

#[test]
fn what_is_even_up_to_the_threshold_stays() {
    let mut cluster = Cluster { brokers: brokers(&[None; 2]), partitions: Vec::new() };
    for number in 0..21 {
        cluster.partitions.push(partition(number, &[i32::from(number >= 11)], 100));
    }
    assert_eq!(plan(&cluster, &GOALS), Plan::default());
}

#[test]
fn a_drain_that_cannot_be_says_which_partitions_are_in_the_way_and_leadership_moves_all_the_same() {
    let mut cluster =
        Cluster { brokers: brokers(&[Some("a"), Some("b"), Some("b")]), partitions: Vec::new() };
    cluster.partitions =
        vec![partition(0, &[0, 1, 2], 10), partition(1, &[0, 1], 10), partition(2, &[0], 10)];
    drain(&mut cluster, 0);
    let plan = plan(&cluster, &Goals { level: false, ..GOALS });
    let kinds: Vec<_> = plan.blockers.iter().map(|it| (it.partition.partition, &it.kind)).collect();
    let too_few = BlockerKind::TooFewBrokers { replicas: 3, brokers: 2 };
    assert_eq!(kinds, [(0, &too_few), (1, &BlockerKind::TooFewRacks)]);
    let after = carry_out(&cluster, &plan.moves());
    assert_eq!((replicas(&after)[0], leaders(&after)[0]), (2, 0));
    assert_eq!(super::plan(&after, &GOALS).steps, []);
}

#[test]
#[ignore = "a measurement"]
fn how_long_planning_takes() {
    let mut cluster = Cluster { brokers: brokers(&[None; 11]), partitions: Vec::new() };
    for number in 0_i32..10_000 {
        let at = |more| (number + more) % 10;
        let bytes = u64::from(number.cast_unsigned()) * 7_919 % 1_000_003;
        cluster.partitions.push(partition(number, &[at(0), at(1), at(2)], bytes));
    }
    let began = std::time::Instant::now();
    let join = plan(&cluster, &GOALS);
    eprintln!("join: {} partitions move, planned in {:.1?}", join.moves().len(), began.elapsed());
    let after = carry_out(&cluster, &join.moves());
    eprintln!("replicas {:?}, leaders {:?}, bytes {:?}", replicas(&after), leaders(&after), sizes(&after));
    drain(&mut cluster, 0);
    let began = std::time::Instant::now();
    let drain = plan(&cluster, &Goals { level: false, ..GOALS });
    eprintln!("drain: {} partitions move, planned in {:.1?}", drain.moves().len(), began.elapsed());
    let began = std::time::Instant::now();
    assert_eq!(plan(&after, &GOALS).steps, []);
    eprintln!("nothing to do: seen in {:.1?}", began.elapsed());
}

fn clusters() -> impl Strategy<Value = Cluster> {
    let broker = (prop::option::of(prop::sample::select(vec!["a", "b", "c"])), 0_u8..10);
    let some_brokers = prop::collection::vec(broker, 1..8);
    (some_brokers, any::<bool>()).prop_flat_map(|(some_brokers, with_racks)| {
        let count = some_brokers.len();
        let ids: Vec<BrokerId> = (0..).take(count).collect();
        let replicas = (Just(ids).prop_shuffle(), 1..=count.min(3));
        let bytes = prop_oneof![Just(0_u64), 1_u64..1_000, 1_u64..1_000_000];
        let traffic = prop_oneof![Just(0_u64), 1_u64..(100 << 20)];
        let partitions = prop::collection::vec((replicas, bytes, 0_u8..12, traffic), 0..40);
        (partitions, any::<bool>()).prop_map(move |(partitions, tell)| Cluster {
            brokers: (0..)
                .zip(&some_brokers)
                .map(|(broker_id, (rack, state))| PlannedBroker {
                    broker_id,
                    rack: rack.filter(|_| with_racks).map(str::to_owned),
                    takes: *state > 2,
                    draining: *state < 2,
                })
                .collect(),
            partitions: (0..)
                .zip(partitions)
                .map(|(number, ((ids, factor), bytes, state, traffic))| {
                    let fixed = match state {
                        0 => Some(Fixed::Reassigning),
                        1 => Some(Fixed::NoLeader),
                        2 => Some(Fixed::OutOfService),
                        _ => None,
                    };
                    let traffic = Some(traffic).filter(|_| tell);
                    PlannedPartition { fixed, traffic, ..partition(number, &ids[..factor], bytes) }
                })
                .collect(),
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn plans_come_to_an_end_and_keep_replicas_apart(cluster in clusters(), level in any::<bool>()) {
        let goals = Goals { level, ..GOALS };
        let first = plan(&cluster, &goals);
        let moves = first.moves();
        let touched: BTreeSet<_> = moves.iter().map(|it| it.partition).collect();
        prop_assert_eq!(touched.len(), moves.len(), "each partition moves once");
        for it in &moves {
            let partition = cluster.partitions.iter().find(|other| other.id == it.partition).expect("it exists");
            prop_assert_eq!(partition.fixed, None);
            let distinct: BTreeSet<_> = it.to.iter().collect();
            prop_assert_eq!(distinct.len(), it.from.len(), "as many replicas, none twice");
            prop_assert!(racks(&cluster, &it.to) >= racks(&cluster, &it.from));
            for id in it.added() {
                let broker = cluster.brokers.iter().find(|broker| broker.broker_id == id).expect("it exists");
                prop_assert!(broker.takes);
            }
        }
        let after = carry_out(&cluster, &moves);
        let second = plan(&after, &goals);
        prop_assert_eq!(&second.steps, &[][..], "one plan is enough");
        prop_assert_eq!(&second.blockers, &first.blockers);
        // What is on a draining broker has a reason to be there.
        for partition in &after.partitions {
            for broker in cluster.brokers.iter().filter(|broker| broker.draining) {
                if partition.replicas.contains(&broker.broker_id) && partition.fixed != Some(Fixed::Reassigning) {
                    let reason = |it: &&Blocker| {
                        (it.broker_id, it.partition) == (broker.broker_id, partition.id)
                    };
                    prop_assert!(first.blockers.iter().any(|it| reason(&it)), "{:?}", partition);
                }
            }
        }
    }

    #[test]
    fn no_broker_is_taken_further_from_the_mean_than_the_threshold(cluster in clusters()) {
        let mut cluster = cluster;
        cluster.brokers.iter_mut().for_each(|broker| (broker.takes, broker.draining) = (true, false));
        let after = carry_out(&cluster, &plan(&cluster, &GOALS).moves());
        let (before, after) = (replicas(&cluster), replicas(&after));
        let total: u64 = before.iter().sum();
        let count = u64::try_from(before.len()).expect("few");
        for (before, after) in before.into_iter().zip(after) {
            // Whole replicas, and ten of a hundred.
            let within = after * count * 10 <= total * 11 || after <= total.div_ceil(count);
            prop_assert!(within || after <= before, "{before} became {after} of {total} on {count}");
        }
    }

    #[test]
    fn carrying_out_a_part_and_planning_anew_comes_to_an_end_too(cluster in clusters(), share in 1_usize..4) {
        let mut cluster = cluster;
        for round in 0..500 {
            let next = plan(&cluster, &GOALS);
            if next.steps.is_empty() {
                return Ok(());
            }
            for step in next.steps.iter().take(share) {
                cluster = carry_out(&cluster, &step.moves);
            }
            prop_assert!(round < 499, "it does not end: {:?}", next.steps);
        }
    }
}
