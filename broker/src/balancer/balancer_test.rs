//! Brokers' replicas in one process with the real controller and the balancer: brokers are filled and emptied while clients
//! write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_protocol::ErrorCode;
use tokio::time::Instant;

use super::step::{Interval, away_since, has_work, holds_replicas, next_requests, slowest_p99};
use super::*;
use crate::config::BrokerConfig;
use crate::metadata::controller::ControllerRequest;
use crate::metadata::image::{BalanceImage, BrokerId, BrokerMark, MetadataImage, TopicIdPartition};
use crate::metrics::durations::{DurationCounts, Durations};
use crate::replication::test_fleet::{DEADLINE, Fleet, TOPIC};
use crate::replication::{ClusterLoad, ProducePartition, RequiredAcks, TopicSettings};
use crate::storage::batch::samples::batch;

const PARTITIONS: i32 = 12;

fn options() -> BalancerOptions {
    options_with(&[])
}

fn automatic() -> BalancerOptions {
    options_with(&["auto.replica.rebalance.enable=true"])
}

fn options_with(settings: &[&str]) -> BalancerOptions {
    let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
    let config = BrokerConfig::dev_with(std::path::Path::new("/nowhere"), 0, &settings).unwrap();
    BalancerOptions::new(&config.balance)
}

fn id(partition: i32) -> TopicIdPartition {
    TopicIdPartition { topic_id: TOPIC, partition }
}

/// Four brokers, and partitions on the first three.
async fn fleet() -> Arc<Fleet> {
    fleet_led_by(|number| number % 3).await
}

/// The same, where each partition is led by the broker at the place given.
async fn fleet_led_by(place: impl Fn(usize) -> usize) -> Arc<Fleet> {
    let settings = TopicSettings { min_insync_replicas: 2, ..TopicSettings::default() };
    let fleet = Fleet::start_controlled(settings, 4, 3).await;
    fleet.shared.edit(|image| {
        let topic = image.topics.get_mut(&TOPIC).map(Arc::make_mut).unwrap();
        for number in 1..PARTITIONS {
            let mut state = topic.partitions[0].clone();
            state.replicas.rotate_left(place(usize::try_from(number).unwrap()));
            state.leader = state.replicas[0].broker_id;
            topic.partitions.push(state);
        }
    });
    let fleet = Arc::new(fleet);
    for number in 0..PARTITIONS {
        for _ in 0..5 {
            produce(&fleet, number).await;
        }
    }
    fleet
}

fn image(fleet: &Fleet) -> MetadataImage {
    fleet.shared.image.lock().clone()
}

/// Appends with acks=all, as a client that goes where the leader is. Only the errors that tell a client to look for the
/// leader are tolerated.
async fn produce(fleet: &Fleet, number: i32) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let leader = image(fleet).partition(id(number)).unwrap().leader;
        let parts = vec![ProducePartition { partition: id(number), records: batch(1, &[7; 1_000]) }];
        let outcome = fleet.manager(leader).produce(parts, RequiredAcks::All, DEADLINE, 13).await.remove(0);
        match outcome.error {
            ErrorCode::None => return,
            ErrorCode::NotLeaderOrFollower | ErrorCode::UnknownTopicOrPartition => {
                assert!(tokio::time::Instant::now() < deadline, "nobody takes it");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            error => panic!("{error:?}: {:?}", outcome.error_message),
        }
    }
}

/// A client that writes to all partitions in turn until it is told to stop; returns the number of its records.
fn writer(fleet: &Arc<Fleet>) -> (Arc<AtomicBool>, tokio::task::JoinHandle<usize>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (told, fleet) = (Arc::clone(&stop), Arc::clone(fleet));
    let task = tokio::spawn(async move {
        let mut written = 0;
        for number in (0..PARTITIONS).cycle() {
            if told.load(Ordering::Relaxed) {
                break;
            }
            produce(&fleet, number).await;
            written += 1;
        }
        written
    });
    (stop, task)
}

/// What the controller's broker does at each look.
async fn look(fleet: &Fleet) {
    look_without(fleet, BTreeSet::new()).await;
}

async fn look_without(fleet: &Fleet, given_up: BTreeSet<BrokerId>) {
    look_by(fleet, &given_up, &options()).await;
}

async fn look_by(fleet: &Fleet, given_up: &BTreeSet<BrokerId>, options: &BalancerOptions) {
    let before = image(fleet);
    if has_work(&before, options) {
        let load = fleet.manager(1).load().await;
        for request in next_requests(&before, &load, Some(Interval::default()), given_up, options) {
            fleet.shared.ask(&request);
        }
    }
}

async fn balance_until(fleet: &Fleet, what: &str, done: impl Fn(&MetadataImage) -> bool) {
    balance_by(fleet, &options(), what, done).await;
}

async fn balance_by(
    fleet: &Fleet,
    options: &BalancerOptions,
    what: &str,
    done: impl Fn(&MetadataImage) -> bool,
) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !done(&image(fleet)) {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}; {:?}", image(fleet).balance);
        look_by(fleet, &BTreeSet::new(), options).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn replicas(image: &MetadataImage) -> BTreeMap<BrokerId, usize> {
    let mut counts = BTreeMap::new();
    for state in &image.topics[&TOPIC].partitions {
        for id in state.replica_ids() {
            *counts.entry(id).or_default() += 1;
        }
    }
    counts
}

async fn until_logs(fleet: &Fleet, broker_id: BrokerId, count: usize) {
    let same = || fleet.manager(broker_id).stored_logs().len() == count;
    fleet.wait(&format!("{count} logs on broker {broker_id}"), same).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_joins_is_filled_on_request_while_clients_write() {
    let fleet = fleet().await;
    look(&fleet).await;
    assert_eq!(image(&fleet).balance, BalanceImage::default(), "nobody has asked");
    let (stop, writing) = writer(&fleet);
    fleet.shared.ask(&ControllerRequest::SetRebalancing { rebalancing: true, cancel_moves: false });
    balance_until(&fleet, "balanced", |image| !image.balance.rebalancing).await;
    // The rate goes with the last move.
    balance_until(&fleet, "at rest", |image| image.balance == BalanceImage::default()).await;
    stop.store(true, Ordering::Relaxed);
    assert!(writing.await.unwrap() > 0);
    let counts = replicas(&image(&fleet));
    assert!(counts.values().all(|count| (8..=10).contains(count)), "{counts:?}");
    for (broker_id, count) in counts {
        until_logs(&fleet, broker_id, count).await;
    }
    let before = image(&fleet);
    look(&fleet).await;
    assert_eq!(image(&fleet), before, "converged means silent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_joins_is_filled_unasked_where_that_is_switched_on_and_only_there() {
    let fleet = fleet().await;
    let before = image(&fleet);
    look_by(&fleet, &BTreeSet::new(), &options()).await;
    assert_eq!(image(&fleet), before);
    let is_level = |image: &MetadataImage| {
        image.balance == BalanceImage::default()
            && replicas(image).len() == 4
            && replicas(image).values().all(|count| (8..=10).contains(count))
    };
    balance_by(&fleet, &automatic(), "level", is_level).await;
    until_logs(&fleet, 4, replicas(&image(&fleet))[&4]).await;
    let level = image(&fleet);
    look_by(&fleet, &BTreeSet::new(), &automatic()).await;
    assert_eq!(image(&fleet), level, "converged means silent");
}

/// What leaders tell of themselves when each partition has a thousand bytes and a hundred of them come each second.
fn told(image: &MetadataImage) -> ClusterLoad {
    let every = |value: u64| image.partitions().map(|(id, _)| (id, value)).collect();
    ClusterLoad { bytes: every(1_000), traffic: every(100), ..ClusterLoad::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_its_leader_does_not_know_yet_is_not_taken_for_an_empty_one() {
    let fleet = fleet().await;
    fleet.shared.ask(&ControllerRequest::SetRebalancing { rebalancing: true, cancel_moves: false });
    let image = image(&fleet);
    let requests = |load: &ClusterLoad| next_requests(&image, load, None, &BTreeSet::new(), &options());
    let mut load = told(&image);
    assert!(!requests(&load).is_empty(), "the fourth broker is empty");
    load.bytes.remove(&id(1));
    assert_eq!(load.silent_leaders(&image), BTreeSet::from([image.partition(id(1)).unwrap().leader]));
    assert_eq!(requests(&load), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_ends_when_the_traffic_is_known_to_be_level_as_well() {
    let fleet = fleet().await;
    fleet.shared.ask(&ControllerRequest::MarkBroker { broker_id: 4, mark: Some(BrokerMark::Cordoned) });
    fleet.shared.ask(&ControllerRequest::SetRebalancing { rebalancing: true, cancel_moves: false });
    let image = image(&fleet);
    let ask = |load: &ClusterLoad| next_requests(&image, load, None, &BTreeSet::new(), &options());
    let mut load = told(&image);
    load.traffic.remove(&id(1));
    assert_eq!(ask(&load), [], "nothing to do as far as anybody knows");
    load.traffic.insert(id(1), 100);
    let end = ControllerRequest::SetRebalancing { rebalancing: false, cancel_moves: false };
    assert_eq!(ask(&load), [end]);
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_are_spread_unasked_if_a_broker_is_off_the_mean_by_more_than_the_threshold() {
    // Broker 1 is to lead six, the others three each, and broker 4 takes no part.
    let fleet = fleet_led_by(|number| if number < 3 { 0 } else { number % 3 }).await;
    fleet.shared.ask(&ControllerRequest::MarkBroker { broker_id: 4, mark: Some(BrokerMark::Cordoned) });
    let preferred = |image: &MetadataImage| {
        let mut counts = BTreeMap::<BrokerId, usize>::new();
        for state in &image.topics[&TOPIC].partitions {
            *counts.entry(state.replicas[0].broker_id).or_default() += 1;
        }
        counts.into_values().collect::<Vec<_>>()
    };
    let before = image(&fleet);
    assert_eq!(preferred(&before), [6, 3, 3]);
    look(&fleet).await;
    assert_eq!(image(&fleet), before, "nobody has asked");
    let tolerant = ["auto.replica.rebalance.enable=true", "replica.imbalance.percentage=60"];
    look_by(&fleet, &BTreeSet::new(), &options_with(&tolerant)).await;
    assert_eq!(image(&fleet), before, "six are no more than 60 % above four");
    let is_level =
        |image: &MetadataImage| image.balance == BalanceImage::default() && preferred(image) == [4, 4, 4];
    balance_by(&fleet, &automatic(), "level", is_level).await;
    assert_eq!(replicas(&image(&fleet)), replicas(&before), "no replica has moved");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_is_drained_while_clients_write_and_stays_empty() {
    let fleet = fleet().await;
    let (stop, writing) = writer(&fleet);
    fleet.shared.ask(&ControllerRequest::MarkBroker { broker_id: 2, mark: Some(BrokerMark::Draining) });
    balance_until(&fleet, "drained", |image| !holds_replicas(image, 2)).await;
    until_logs(&fleet, 2, 0).await;
    balance_until(&fleet, "at rest", |image| image.balance == BalanceImage::default()).await;
    stop.store(true, Ordering::Relaxed);
    assert!(writing.await.unwrap() > 0);
    let drained = image(&fleet);
    assert!(drained.topics[&TOPIC].partitions.iter().all(|state| state.leader != 2 && state.isr.len() == 3));
    fleet.shared.ask(&ControllerRequest::SetRebalancing { rebalancing: true, cancel_moves: false });
    balance_until(&fleet, "balanced", |image| !image.balance.rebalancing).await;
    assert!(!holds_replicas(&image(&fleet), 2));
    // Taken back, it is as good as a new one.
    fleet.shared.ask(&ControllerRequest::MarkBroker { broker_id: 2, mark: None });
    fleet.shared.ask(&ControllerRequest::SetRebalancing { rebalancing: true, cancel_moves: false });
    balance_until(&fleet, "balanced", |image| !image.balance.rebalancing).await;
    assert!(holds_replicas(&image(&fleet), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_is_cancelled_leaves_everything_where_it_was() {
    let fleet = fleet().await;
    fleet.cut_off(4);
    let before = replicas(&image(&fleet));
    fleet.shared.ask(&ControllerRequest::MarkBroker { broker_id: 2, mark: Some(BrokerMark::Draining) });
    look(&fleet).await;
    let moving = image(&fleet);
    assert_eq!(moving.balancer_moves().count(), options().limits.per_broker, "some at a time");
    assert_eq!(moving.balance.rate, Some(options().rate.first()));
    fleet.shared.ask(&ControllerRequest::MarkBroker { broker_id: 2, mark: None });
    assert_eq!(replicas(&image(&fleet)), before);
    balance_until(&fleet, "at rest", |image| image.balance == BalanceImage::default()).await;
    fleet.reconnect(4);
    until_logs(&fleet, 4, 0).await;
    produce(&fleet, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broker_that_stays_away_was_to_get_goes_to_another_one() {
    let fleet = fleet().await;
    fleet.shared.ask(&ControllerRequest::MarkBroker { broker_id: 4, mark: Some(BrokerMark::Cordoned) });
    fleet.shared.ask(&ControllerRequest::MarkBroker { broker_id: 2, mark: Some(BrokerMark::Draining) });
    look(&fleet).await;
    assert_eq!(image(&fleet).balancer_moves().count(), 0, "nobody may take anything");
    fleet.shared.ask(&ControllerRequest::MarkBroker { broker_id: 4, mark: None });
    fleet.cut_off(4);
    look(&fleet).await;
    let fenced = |image: &mut MetadataImage| Arc::make_mut(image.brokers.get_mut(&4).unwrap()).fenced = true;
    fleet.shared.edit(fenced);
    look(&fleet).await;
    assert_eq!(image(&fleet).balancer_moves().count(), options().limits.per_broker, "it may come back");
    look_without(&fleet, BTreeSet::from([4])).await;
    assert_eq!(image(&fleet).balancer_moves().count(), 0);
    assert_eq!(image(&fleet).partition(id(0)).unwrap().target_ids().count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_is_away_since_it_was_first_seen_so() {
    let mut image = image(&*fleet().await);
    let mut fence = |fenced| {
        Arc::make_mut(image.brokers.get_mut(&1).unwrap()).fenced = fenced;
        image.clone()
    };
    let start = Instant::now();
    let first = away_since(&fence(true), &BTreeMap::new(), start);
    let later = start + Duration::from_secs(9);
    assert_eq!(away_since(&fence(true), &first, later), BTreeMap::from([(1, start)]));
    assert_eq!(away_since(&fence(false), &first, later), BTreeMap::new());
}

#[test]
fn the_rate_follows_the_slowest_broker_that_has_enough_clients_to_tell() {
    let durations = |count: u32, ms| {
        let durations = Durations::default();
        (0..count).for_each(|_| durations.observe(Duration::from_millis(ms)));
        durations.counts()
    };
    let none = DurationCounts(vec![0; 41]);
    let before = BTreeMap::from([(1, none.clone()), (2, none)]);
    let now = BTreeMap::from([(1, durations(1_000, 3)), (2, durations(99, 900)), (3, durations(1_000, 900))]);
    let p99 = slowest_p99(&before, &now).unwrap();
    assert!(p99 >= Duration::from_millis(3) && p99 < Duration::from_millis(5), "{p99:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_falls_while_clients_wait_and_rises_when_it_is_made_use_of() {
    let fleet = fleet().await;
    fleet.cut_off(4);
    fleet.shared.ask(&ControllerRequest::MarkBroker { broker_id: 2, mark: Some(BrokerMark::Draining) });
    look(&fleet).await;
    let moving = image(&fleet);
    let first = moving.balance.rate.unwrap();
    let next = |interval| {
        let requests =
            next_requests(&moving, &ClusterLoad::default(), interval, &BTreeSet::new(), &options());
        requests.into_iter().find_map(|request| match request {
            ControllerRequest::SetBalanceRate(rate) => rate,
            _ => None,
        })
    };
    let late = Duration::from_secs(1);
    assert_eq!(next(Some(Interval { produce_p99: Some(late), bytes_per_second: first })), Some(first / 2));
    assert!(next(Some(Interval { produce_p99: None, bytes_per_second: first })) > Some(first));
    assert_eq!(next(Some(Interval { produce_p99: None, bytes_per_second: 1 })), None, "nothing is written");
    assert_eq!(next(None), None);
}
