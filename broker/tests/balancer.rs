//! Real broker processes that are filled and emptied.
#![expect(clippy::tests_outside_test_module, reason = "this is a test crate")]
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::create_topics_request::{CreatableReplicaAssignment, CreatableTopic};
use millrace_protocol::messages::metadata_request::MetadataRequestTopic;
use millrace_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use millrace_protocol::messages::{CreateTopicsRequest, MetadataRequest, ProduceRequest};
use millrace_protocol::records::{BatchBuilder, Compression, NewRecord};
use serde_json::{Value, json};

use support::{Fleet, FleetPlan, ask, until};

const TOPIC: &str = "spread";
const PARTITIONS: i32 = 12;

/// Partitions with two replicas each, on the brokers given, in turn.
fn create_topic(fleet: &Fleet, asked: usize, brokers: &[i32]) {
    let on = |number: i32| {
        let at = usize::try_from(number).unwrap();
        vec![brokers[at % brokers.len()], brokers[(at + 1) % brokers.len()]]
    };
    let assignments = (0..PARTITIONS).map(|number| CreatableReplicaAssignment {
        partition_index: number,
        broker_ids: on(number),
        ..Default::default()
    });
    let topic = CreatableTopic {
        name: TOPIC.into(),
        num_partitions: -1,
        replication_factor: -1,
        assignments: assignments.collect(),
        ..Default::default()
    };
    let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() };
    assert_eq!(ask(&fleet.address(asked), 7, &request).topics[0].error_code, 0);
    fleet.wait_until_known(TOPIC);
}

/// Appends a megabyte with acks=all, wherever the leader is.
fn produce(fleet: &Fleet, asked: usize, number: i32) {
    produce_bytes(fleet, asked, number, 900_000);
}

fn produce_bytes(fleet: &Fleet, asked: usize, number: i32, bytes: usize) {
    let value = vec![7; bytes];
    let record = NewRecord { timestamp: 1, value: Some(&value), ..Default::default() };
    let records = BatchBuilder::new(Compression::None).append(record).build();
    until("records to be taken", || {
        let topic = MetadataRequestTopic { name: Some(TOPIC.into()), ..Default::default() };
        let metadata = MetadataRequest { topics: Some(vec![topic]), ..Default::default() };
        let partitions = ask(&fleet.address(asked), 12, &metadata).topics[0].partitions.clone();
        let partition = partitions.into_iter().find(|partition| partition.partition_index == number)?;
        let leader = usize::try_from(partition.leader_id).ok()?;
        let data = PartitionProduceData {
            index: number,
            records: Some(records.clone().into()),
            ..Default::default()
        };
        let topic = TopicProduceData { name: TOPIC.into(), partition_data: vec![data], ..Default::default() };
        let request =
            ProduceRequest { acks: -1, timeout_ms: 10_000, topic_data: vec![topic], ..Default::default() };
        let error = ask(&fleet.address(leader), 9, &request).responses[0].partition_responses[0].error_code;
        assert!([0, ErrorCode::NotLeaderOrFollower.code()].contains(&error), "error {error}");
        (error == 0).then_some(())
    });
}

fn call(fleet: &Fleet, asked: usize, method: &str, path: &str, body: Option<&Value>) -> Option<Value> {
    let (status, answer) = fleet.management(asked, method, path, body)?;
    (status == 200).then_some(answer)
}

fn replica_counts(fleet: &Fleet, asked: usize) -> Option<Vec<u64>> {
    let view = call(fleet, asked, "GET", "/v1/rebalance", None)?;
    view["brokers"].as_array()?.iter().map(|broker| broker["replicas"].as_u64()).collect()
}

fn until_balanced(fleet: &Fleet, asked: usize) {
    until("balance", || {
        let view = call(fleet, asked, "GET", "/v1/rebalance", None)?;
        let at_rest = view["rebalancing"] == json!(false) && view["movesUnderWay"] == json!(0);
        (at_rest && view["rateLimit"].is_null()).then_some(())
    });
}

#[test]
fn an_empty_broker_is_filled_and_another_drained_though_the_controller_is_killed() {
    let settings = vec!["replica.rebalance.rate.max=4000000"];
    let mut fleet = Fleet::start_as(FleetPlan { first_voters: 3, settings, ..FleetPlan::of(4) });
    let killed = until("a controller", || usize::try_from(fleet.cluster(0)?["controllerId"].as_u64()?).ok());
    let others: Vec<usize> = (0..4).filter(|number| *number != killed).collect();
    let (asked, drained) = (others[0], others[1]);
    create_topic(&fleet, asked, &[0, 1, 2]);
    for number in 0..PARTITIONS {
        produce(&fleet, asked, number);
    }
    let dry = json!({"dryRun": true});
    let plan = call(&fleet, asked, "POST", "/v1/rebalance", Some(&dry)).unwrap();
    assert!(plan["bytes"].as_u64() > Some(1_000_000) && plan["begun"] == json!(false), "{plan}");
    assert_eq!(replica_counts(&fleet, asked).unwrap(), [8, 8, 8, 0], "a dry run moves nothing");
    assert!(call(&fleet, asked, "POST", "/v1/rebalance", None).is_some());
    until("the new broker to be filled", || (replica_counts(&fleet, asked)? == [6, 6, 6, 6]).then_some(()));
    until_balanced(&fleet, asked);

    let path = format!("/v1/brokers/{drained}/drain");
    assert!(call(&fleet, asked, "POST", &path, None).is_some());
    fleet.kill(killed);
    let view = until("the next controller to go on", || {
        call(&fleet, asked, "GET", &path, None).filter(|view| view["draining"] == json!(true))
    });
    assert_eq!(view["brokerId"], json!(drained));
    // Replicas that stay must be in sync before others go.
    fleet.restart(killed);
    let view = until("the broker to be empty", || {
        call(&fleet, asked, "GET", &path, None).filter(|view| view["empty"] == json!(true))
    });
    assert_eq!((&view["draining"], &view["replicasLeft"]), (&json!(true), &json!(0)), "{view}");
    (0..PARTITIONS).for_each(|number| produce(&fleet, asked, number));
    fleet.wait_until_in_service();
    assert!(call(&fleet, asked, "DELETE", &path, None).is_some());
    assert!(call(&fleet, asked, "POST", "/v1/rebalance", None).is_some());
    until_balanced(&fleet, asked);
    assert_eq!(replica_counts(&fleet, asked).unwrap(), [6, 6, 6, 6]);
}

#[test]
fn an_empty_broker_is_filled_unasked_where_that_is_switched_on() {
    let settings = vec!["auto.replica.rebalance.enable=true"];
    let fleet = Fleet::start_as(FleetPlan { first_voters: 3, settings, ..FleetPlan::of(4) });
    // Brokers that want nothing of each other are looked at once a minute; a mark has them looked at now.
    assert!(call(&fleet, 0, "POST", "/v1/brokers/3/cordon", None).is_some());
    create_topic(&fleet, 0, &[0, 1, 2]);
    (0..PARTITIONS).for_each(|number| produce_bytes(&fleet, 0, number, 1_000));
    assert_eq!(replica_counts(&fleet, 0).unwrap(), [8, 8, 8, 0]);
    assert!(call(&fleet, 0, "DELETE", "/v1/brokers/3/cordon", None).is_some());
    until("the empty broker to be filled", || (replica_counts(&fleet, 0)? == [6, 6, 6, 6]).then_some(()));
    until_balanced(&fleet, 0);
    (0..PARTITIONS).for_each(|number| produce_bytes(&fleet, 0, number, 1_000));
}

#[test]
#[ignore = "a measurement"]
fn how_long_a_drain_takes() {
    let fleet = Fleet::start(3);
    create_topic(&fleet, 0, &[0, 1]);
    for round in 0..20 {
        (0..PARTITIONS).for_each(|number| produce(&fleet, round % 3, number));
    }
    let path = "/v1/brokers/1/drain";
    let began = std::time::Instant::now();
    assert!(call(&fleet, 0, "POST", path, None).is_some());
    let mut shown = 0;
    until("the broker to be empty", || {
        let view = call(&fleet, 2, "GET", path, None)?;
        if began.elapsed().as_secs() > shown {
            shown = began.elapsed().as_secs();
            let (left, rate, limit) = (&view["bytesLeft"], &view["bytesPerSecond"], &view["rateLimit"]);
            eprintln!(
                "{:.1?}: {left} B left, {rate} B/s of {limit}, eta {} ms",
                began.elapsed(),
                view["etaMs"]
            );
        }
        (view["empty"] == json!(true)).then_some(())
    });
    eprintln!("216 MB in 12 partitions: {:.1?}", began.elapsed());
}

/// Clients write a kilobyte at a time, each request on a connection of its own after one that asks for the leader.
#[test]
#[ignore = "a measurement"]
fn how_clients_fare_during_a_drain() {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;
    for goal in ["100", "10"] {
        let setting: &'static str = format!("replica.rebalance.produce.p99.goal.ms={goal}").leak();
        let fleet = Fleet::start_as(FleetPlan { settings: vec![setting], ..FleetPlan::of(3) });
        create_topic(&fleet, 0, &[0, 1]);
        for _ in 0..20 {
            (0..PARTITIONS).for_each(|number| produce(&fleet, 0, number));
        }
        let stop = AtomicBool::new(false);
        let write = |until_stopped: bool| {
            let (began, mut times) = (Instant::now(), Vec::new());
            for number in (0..PARTITIONS).cycle() {
                if if until_stopped { stop.load(Ordering::Relaxed) } else { began.elapsed().as_secs() >= 5 } {
                    break;
                }
                let began = Instant::now();
                produce_bytes(&fleet, 0, number, 1_000);
                times.push(began.elapsed());
            }
            times.sort_unstable();
            (times.len(), times[times.len() / 2], times[times.len() * 99 / 100])
        };
        eprintln!("goal {goal} ms, before: {:?} (requests, median, p99)", write(false));
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| write(true));
            let began = Instant::now();
            assert!(call(&fleet, 2, "POST", "/v1/brokers/1/drain", None).is_some());
            let mut rates = Vec::new();
            until("the broker to be empty", || {
                let view = call(&fleet, 2, "GET", "/v1/brokers/1/drain", None)?;
                let rate = view["rateLimit"].as_u64();
                if rates.last() != Some(&rate) {
                    rates.push(rate);
                }
                (view["empty"] == json!(true)).then_some(())
            });
            let took = began.elapsed();
            stop.store(true, Ordering::Relaxed);
            eprintln!("goal {goal} ms, during {took:.1?}: {:?}; rates {rates:?}", writing.join().unwrap());
        });
    }
}
