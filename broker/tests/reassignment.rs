//! Partitions that move between real broker processes.
#![expect(clippy::tests_outside_test_module, reason = "this is a test crate")]
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use millrace_protocol::messages::create_topics_request::{CreatableReplicaAssignment, CreatableTopic};
use millrace_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use millrace_protocol::messages::metadata_request::MetadataRequestTopic;
use millrace_protocol::messages::metadata_response::MetadataResponsePartition;
use millrace_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use millrace_protocol::messages::{
    AlterPartitionReassignmentsRequest, CreateTopicsRequest, IncrementalAlterConfigsRequest,
    ListPartitionReassignmentsRequest, MetadataRequest, ProduceRequest,
};
use millrace_protocol::records::{BatchBuilder, Compression, NewRecord};
use serde_json::Value;

use support::{Fleet, FleetPlan, ask, until};

const TOPIC: &str = "moves";

fn controller(fleet: &Fleet, asked: usize) -> usize {
    until("a controller", || usize::try_from(fleet.cluster(asked)?["controllerId"].as_u64()?).ok())
}

fn id(number: usize) -> i32 {
    i32::try_from(number).unwrap()
}

fn create_topic(fleet: &Fleet, asked: usize, replicas: &[i32]) {
    let assignment = CreatableReplicaAssignment {
        partition_index: 0,
        broker_ids: replicas.to_vec(),
        ..Default::default()
    };
    let topic = CreatableTopic {
        name: TOPIC.into(),
        num_partitions: -1,
        replication_factor: -1,
        assignments: vec![assignment],
        ..Default::default()
    };
    let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() };
    assert_eq!(ask(&fleet.address(asked), 7, &request).topics[0].error_code, 0);
    fleet.wait_until_known(TOPIC);
}

fn partition(address: &str) -> Option<MetadataResponsePartition> {
    let topic = MetadataRequestTopic { name: Some(TOPIC.into()), ..Default::default() };
    let request = MetadataRequest { topics: Some(vec![topic]), ..Default::default() };
    ask(address, 12, &request).topics[0].partitions.first().cloned()
}

fn produce(fleet: &Fleet, asked: usize) {
    let record = NewRecord { timestamp: 1, value: Some(&[7; 100_000]), ..Default::default() };
    let records = BatchBuilder::new(Compression::None).append(record).build();
    until("records to be taken", || {
        let leader = usize::try_from(partition(&fleet.address(asked))?.leader_id).ok()?;
        let data =
            PartitionProduceData { index: 0, records: Some(records.clone().into()), ..Default::default() };
        let topic = TopicProduceData { name: TOPIC.into(), partition_data: vec![data], ..Default::default() };
        let request =
            ProduceRequest { acks: -1, timeout_ms: 10_000, topic_data: vec![topic], ..Default::default() };
        let error = ask(&fleet.address(leader), 9, &request).responses[0].partition_responses[0].error_code;
        assert!([0, ErrorCode::NotLeaderOrFollower.code()].contains(&error), "error {error}");
        (error == 0).then_some(())
    });
}

/// A setting of the topic, or of all brokers; none takes it back.
fn set(address: &str, of_topic: bool, key: &str, value: Option<&str>) {
    let config = AlterableConfig {
        name: key.into(),
        config_operation: i8::from(value.is_none()),
        value: value.map(Into::into),
        ..Default::default()
    };
    let resource = AlterConfigsResource {
        resource_type: if of_topic { 2 } else { 4 },
        resource_name: if of_topic { TOPIC.into() } else { "".into() },
        configs: vec![config],
        ..Default::default()
    };
    let request = IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() };
    let response = ask(address, 1, &request);
    assert_eq!(response.responses[0].error_code, 0, "{:?}", response.responses[0].error_message);
}

fn reassign(address: &str, replicas: Option<Vec<i32>>) -> i16 {
    let partition = ReassignablePartition { partition_index: 0, replicas, ..Default::default() };
    let topic = ReassignableTopic { name: TOPIC.into(), partitions: vec![partition], ..Default::default() };
    let request =
        AlterPartitionReassignmentsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() };
    let response = ask(address, 1, &request);
    assert_eq!(response.error_code, 0, "{:?}", response.error_message);
    response.responses[0].partitions[0].error_code
}

fn reassignments(fleet: &Fleet, asked: usize) -> Option<Value> {
    let (status, view) = fleet.management(asked, "GET", "/v1/reassignments", None)?;
    (status == 200).then_some(view)
}

fn until_moved(fleet: &Fleet, asked: usize, replicas: &[i32]) {
    until("the partition to have moved", || {
        let now = partition(&fleet.address(asked))?;
        let mut in_sync = now.isr_nodes.clone();
        let mut wanted = replicas.to_vec();
        in_sync.sort_unstable();
        wanted.sort_unstable();
        (now.replica_nodes == replicas && in_sync == wanted).then_some(())
    });
}

#[test]
fn a_killed_controller_is_succeeded_by_one_that_goes_on_with_reassignments() {
    let mut fleet = Fleet::start_as(FleetPlan { first_voters: 3, ..FleetPlan::of(4) });
    let killed = controller(&fleet, 0);
    let others: Vec<usize> = (0..4).filter(|number| *number != killed).collect();
    let (asked, [x, y, z]) = (others[0], [id(others[0]), id(others[1]), id(others[2])]);
    let address = fleet.address(asked);
    create_topic(&fleet, asked, &[x, y]);
    for _ in 0..20 {
        produce(&fleet, asked);
    }
    // Nothing moves before it is told to.
    set(&address, true, "leader.replication.throttled.replicas", Some("*"));
    set(&address, false, "leader.replication.throttled.rate", Some("0"));
    assert_eq!(reassign(&address, Some(vec![z, y])), 0);
    let view = until("the reassignment to be shown", || {
        reassignments(&fleet, others[1]).filter(|view| view["partitions"] != Value::Array(Vec::new()))
    });
    let one = &view["partitions"][0];
    assert_eq!((&one["topic"], &one["leader"]), (&TOPIC.into(), &x.into()), "{view}");
    assert_eq!((&one["adding"], &one["removing"]), (&vec![z].into(), &vec![x].into()), "{view}");
    assert!(view["bytesLeft"].as_u64() > Some(1_000_000) && view["etaMs"].is_null(), "{view}");

    fleet.kill(killed);
    until("another controller", || {
        let now = usize::try_from(fleet.cluster(asked)?["controllerId"].as_u64()?).ok()?;
        (now != killed).then_some(())
    });
    let listed = ask(&address, 0, &ListPartitionReassignmentsRequest::default());
    assert_eq!(listed.topics[0].partitions[0].adding_replicas, [z]);
    produce(&fleet, asked);
    set(&address, false, "leader.replication.throttled.rate", None);
    until_moved(&fleet, asked, &[z, y]);
    produce(&fleet, asked);
    let view = until("the reassignment to be gone", || reassignments(&fleet, asked));
    assert_eq!((&view["partitions"], &view["etaMs"]), (&Value::Array(Vec::new()), &0.into()), "{view}");
    assert_eq!(reassign(&address, None), ErrorCode::NoReassignmentInProgress.code());
}

#[test]
fn a_broker_that_was_down_when_a_replica_left_it_catches_up_with_that() {
    let mut fleet = Fleet::start(3);
    let asked = controller(&fleet, 0);
    let others: Vec<usize> = (0..3).filter(|number| *number != asked).collect();
    let address = fleet.address(asked);
    create_topic(&fleet, asked, &[id(others[0]), id(others[1])]);
    produce(&fleet, asked);
    fleet.kill(others[0]);
    assert_eq!(reassign(&address, Some(vec![id(others[1]), id(asked)])), 0);
    until_moved(&fleet, asked, &[id(others[1]), id(asked)]);
    produce(&fleet, asked);
    fleet.restart(others[0]);
    fleet.wait_until_in_service();
    // It comes back as a new replica, with nothing from before that would get in the way.
    assert_eq!(reassign(&address, Some(vec![id(others[0])])), 0);
    until_moved(&fleet, asked, &[id(others[0])]);
    produce(&fleet, asked);
}

#[test]
#[ignore = "a measurement"]
fn how_long_a_throttled_move_takes() {
    let fleet = Fleet::start(3);
    create_topic(&fleet, 0, &[0, 1]);
    for _ in 0..200 {
        produce(&fleet, 0);
    }
    for (side, rate) in [("leader", "2000000"), ("follower", "4000000")] {
        let address = fleet.address(0);
        set(&address, true, &format!("{side}.replication.throttled.replicas"), Some("*"));
        set(&address, false, &format!("{side}.replication.throttled.rate"), Some(rate));
        let target = if side == "leader" { [0, 2] } else { [0, 1] };
        let began = std::time::Instant::now();
        assert_eq!(reassign(&address, Some(target.to_vec())), 0);
        let mut shown = 0;
        until("the partition to have moved", || {
            let view = reassignments(&fleet, 1)?;
            if began.elapsed().as_secs() > shown {
                shown += 1;
                let (left, rate, eta) = (&view["bytesLeft"], &view["bytesPerSecond"], &view["etaMs"]);
                eprintln!("{side}, after {:.1?}: {left} left, {rate} B/s, {eta} ms to go", began.elapsed());
            }
            (partition(&address)?.replica_nodes == target).then_some(())
        });
        eprintln!("{side} at {rate} B/s: 20 MB in {:.1?}", began.elapsed());
        set(&address, false, &format!("{side}.replication.throttled.rate"), None);
        set(&address, true, &format!("{side}.replication.throttled.replicas"), None);
    }
}
