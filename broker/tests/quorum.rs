//! The life of the metadata quorum, with real processes: who is noticed to be gone and when, who leads, who votes.
#![expect(clippy::tests_outside_test_module, reason = "this is a test crate")]
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use millrace_protocol::messages::CreateTopicsRequest;
use millrace_protocol::messages::create_topics_request::CreatableTopic;
use serde_json::{Value, json};

use support::{Fleet, FleetPlan, ask, until};

/// Timeouts that no test waits for: what happens before was not caused by silence.
const ENDLESS: [&str; 2] = ["broker.session.timeout.ms=600000", "controller.quorum.fetch.timeout.ms=300000"];

fn three(settings: &[&'static str]) -> Fleet {
    Fleet::start_as(FleetPlan { settings: settings.to_vec(), ..FleetPlan::of(3) })
}

fn make_topic(fleet: &Fleet, number: usize, name: &str) {
    let owner = json!({"namespace": "ns", "name": name, "uid": name});
    let request = json!({"owner": owner, "partitions": 1, "replicas": 1, "config": {}});
    until("a topic to be made", || {
        let (status, answer) =
            fleet.management(number, "PUT", &format!("/v1/topics/{name}"), Some(&request))?;
        assert!(status == 200 || status == 503, "{answer}");
        (status == 200).then_some(())
    });
}

fn topics(fleet: &Fleet, number: usize) -> Option<u64> {
    fleet.cluster(number)?["topicCount"].as_u64()
}

fn broker_view(view: &Value, number: usize) -> Option<Value> {
    view["brokers"].as_array()?.iter().find(|broker| broker["brokerId"] == number).cloned()
}

fn is_fenced(fleet: &Fleet, asked: usize, number: usize) -> Option<bool> {
    broker_view(&fleet.cluster(asked)?, number)?["fenced"].as_bool()
}

fn until_fenced(fleet: &Fleet, asked: usize, number: usize) {
    until("the broker to be fenced", || is_fenced(fleet, asked, number)?.then_some(()));
}

fn controller(fleet: &Fleet, asked: usize) -> usize {
    until("a controller", || usize::try_from(fleet.cluster(asked)?["controllerId"].as_u64()?).ok())
}

fn names(value: &Value) -> BTreeSet<String> {
    value.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// The voters; none while they are being changed.
fn voters(fleet: &Fleet, asked: usize) -> Option<BTreeSet<String>> {
    let quorum = &fleet.cluster(asked)?["quorum"];
    (quorum["changing"] == false).then(|| names(&quorum["voters"]))
}

fn learners(fleet: &Fleet, asked: usize) -> Option<BTreeSet<String>> {
    Some(names(&fleet.cluster(asked)?["quorum"]["learners"]))
}

fn node_of(fleet: &Fleet, number: usize) -> String {
    until("the broker to tell its node id", || {
        let (status, identity) = fleet.management(number, "GET", "/v1/identity", None)?;
        (status == 200).then(|| identity["raftNodeId"].as_str().unwrap().to_owned())
    })
}

fn other_than(taken: &[usize]) -> usize {
    (0..).find(|number| !taken.contains(number)).unwrap()
}

/// Error code of creating a topic as a client does.
fn create_topic(address: &str, name: &str) -> i16 {
    let topic =
        CreatableTopic { name: name.into(), num_partitions: 1, replication_factor: 1, ..Default::default() };
    let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 5000, ..Default::default() };
    ask(address, 7, &request).topics[0].error_code
}

#[test]
fn a_broker_whose_process_is_killed_is_fenced_at_once_and_comes_back_by_registering() {
    let mut fleet = three(&ENDLESS);
    let asked = controller(&fleet, 0);
    let killed = other_than(&[asked]);
    fleet.kill(killed);
    until_fenced(&fleet, asked, killed);
    fleet.restart(killed);
    fleet.wait_until_in_service();
    assert_eq!(is_fenced(&fleet, asked, killed), Some(false));
}

#[test]
fn a_controller_whose_process_is_killed_is_succeeded_at_once_and_metadata_goes_on_changing() {
    let mut fleet = three(&ENDLESS);
    for round in 0..3 {
        let killed = controller(&fleet, 0);
        fleet.kill(killed);
        let asked = other_than(&[killed]);
        until("another controller", || {
            let view = fleet.cluster(asked)?;
            view["controllerId"].as_u64().is_some_and(|id| id != killed as u64).then_some(())
        });
        until_fenced(&fleet, asked, killed);
        make_topic(&fleet, asked, &format!("topic-{round}"));
        fleet.restart(killed);
        fleet.wait_until_in_service();
    }
    assert_eq!(topics(&fleet, 0), Some(3));
}

#[test]
fn two_brokers_killed_with_the_controller_are_fenced_by_the_next_one() {
    let plan = FleetPlan { settings: ENDLESS.to_vec(), ..FleetPlan::of(5) };
    let mut fleet = Fleet::start_as(plan);
    let first = controller(&fleet, 0);
    let second = other_than(&[first]);
    let asked = other_than(&[first, second]);
    fleet.kill_together([first, second]);
    until_fenced(&fleet, asked, first);
    until_fenced(&fleet, asked, second);
    make_topic(&fleet, asked, "orders");
}

#[test]
fn a_broker_that_is_stopped_but_not_gone_is_fenced_by_its_session_timeout_only() {
    const SESSION: Duration = Duration::from_secs(4);
    const HEARTBEAT: Duration = Duration::from_secs(1);
    let fleet = three(&["broker.session.timeout.ms=4000", "broker.heartbeat.interval.ms=1000"]);
    let asked = controller(&fleet, 0);
    let stopped = other_than(&[asked]);
    let start = Instant::now();
    fleet.signal(stopped, "STOP");
    until_fenced(&fleet, asked, stopped);
    // Counted from the last heartbeat, which came before the process was stopped.
    let passed = start.elapsed();
    assert!(passed > SESSION - HEARTBEAT, "fenced after {passed:?}");
    fleet.signal(stopped, "CONT");
    until("the broker to be back", || (!is_fenced(&fleet, asked, stopped)?).then_some(()));
}

#[test]
fn a_controller_that_is_stopped_is_succeeded_after_an_election_timeout() {
    let fleet = three(&["controller.quorum.fetch.timeout.ms=1000"]);
    let stopped = controller(&fleet, 0);
    let asked = other_than(&[stopped]);
    fleet.signal(stopped, "STOP");
    until("another controller", || {
        let view = fleet.cluster(asked)?;
        view["controllerId"].as_u64().is_some_and(|id| id != stopped as u64).then_some(())
    });
    make_topic(&fleet, asked, "orders");
    fleet.signal(stopped, "CONT");
    until("the one before to follow", || (topics(&fleet, stopped)? == 1).then_some(()));
    make_topic(&fleet, stopped, "payments");
}

#[test]
fn five_brokers_have_five_voters_and_four_have_three() {
    let mut fleet = Fleet::start_as(FleetPlan { first_voters: 3, ..FleetPlan::of(5) });
    let asked = controller(&fleet, 0);
    until("five voters", || (voters(&fleet, asked)?.len() == 5).then_some(()));
    // Two of five may be gone.
    let first = other_than(&[asked]);
    let second = other_than(&[asked, first]);
    fleet.kill_together([first, second]);
    make_topic(&fleet, asked, "orders");

    let fleet = Fleet::start_as(FleetPlan::of(4));
    until("three voters", || {
        (voters(&fleet, 0)?.len() == 3 && learners(&fleet, 0)?.len() == 1).then_some(())
    });
}

#[test]
fn a_voter_that_stays_away_gives_its_vote_to_another_and_follows_when_it_is_back() {
    let settings = vec!["metadata.quorum.voter.replacement.delay.ms=1500"];
    let mut fleet = Fleet::start_as(FleetPlan { first_voters: 3, settings, ..FleetPlan::of(4) });
    let (asked, replacement) = (controller(&fleet, 0), node_of(&fleet, 3));
    assert!(!until("the voters", || voters(&fleet, asked)).contains(&replacement));
    let lost = other_than(&[asked]);
    let lost_node = node_of(&fleet, lost);
    fleet.kill(lost);
    until("the follower to vote", || {
        let voters = voters(&fleet, asked)?;
        (voters.len() == 3 && voters.contains(&replacement) && !voters.contains(&lost_node)).then_some(())
    });
    assert!(learners(&fleet, asked).unwrap().contains(&lost_node), "it may come back");
    make_topic(&fleet, asked, "orders");
    fleet.restart(lost);
    fleet.wait_until_in_service();
    assert_eq!(topics(&fleet, lost), Some(1));
    assert!(!until("the voters", || voters(&fleet, lost)).contains(&lost_node));
}

#[test]
fn a_voter_that_lost_its_volume_is_another_node_and_the_old_one_is_removed() {
    let mut fleet = three(&ENDLESS);
    make_topic(&fleet, 0, "orders");
    let asked = controller(&fleet, 0);
    let lost = other_than(&[asked]);
    let old_node = node_of(&fleet, lost);
    fleet.kill(lost);
    fleet.lose_volume(lost);
    fleet.restart(lost);
    fleet.wait_until_in_service();
    let new_node = node_of(&fleet, lost);
    assert_ne!(new_node, old_node);
    until("the new node to vote and the old one to be gone", || {
        let (voters, learners) = (voters(&fleet, asked)?, learners(&fleet, asked)?);
        let old = voters.contains(&old_node) || learners.contains(&old_node);
        (voters.len() == 3 && voters.contains(&new_node) && !old).then_some(())
    });
    assert_eq!(topics(&fleet, lost), Some(1));
}

#[test]
fn a_fleet_that_was_killed_as_a_whole_comes_back_by_itself() {
    let mut fleet = three(&[]);
    for number in 0..5 {
        make_topic(&fleet, 0, &format!("topic-{number}"));
    }
    let before: Vec<Value> = (0..5)
        .map(|number| fleet.management(0, "GET", &format!("/v1/topics/topic-{number}"), None).unwrap().1)
        .collect();
    fleet.kill_together(0..3);
    (0..3).for_each(|number| fleet.restart(number));
    fleet.wait_until_in_service();
    for (number, topic) in before.iter().enumerate() {
        for asked in 0..3 {
            let path = format!("/v1/topics/topic-{number}");
            let (_, after) = fleet.management(asked, "GET", &path, None).unwrap();
            assert_eq!(&after["topicId"], &topic["topicId"]);
        }
    }
    assert_eq!(create_topic(&fleet.address(0), "one-more"), 0);
}

#[test]
fn a_minority_acknowledges_no_change_of_metadata() {
    let mut fleet = three(&[]);
    assert_eq!(create_topic(&fleet.address(0), "before"), 0);
    let left = controller(&fleet, 0);
    let gone: Vec<usize> = (0..3).filter(|number| *number != left).collect();
    fleet.kill_together(gone.clone());
    assert_ne!(create_topic(&fleet.address(left), "meanwhile"), 0, "a minority acknowledged a change");
    // What exists already needs no change, and cannot be confirmed all the same.
    let owner = json!({"namespace": "ns", "name": "mine", "uid": "mine"});
    let request = json!({"owner": owner, "partitions": 1, "replicas": 1, "config": {}});
    let (status, answer) = fleet.management(left, "PUT", "/v1/topics/mine", Some(&request)).unwrap();
    assert_eq!(status, 503, "{answer}");
    gone.iter().for_each(|number| fleet.restart(*number));
    fleet.wait_until_in_service();
    until("changes to be acknowledged again", || {
        (create_topic(&fleet.address(left), "after") == 0).then_some(())
    });
}
