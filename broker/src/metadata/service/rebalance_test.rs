//! Leadership that comes back by itself.

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::CreateTopicsRequest;
use millrace_protocol::messages::create_topics_request::{CreatableReplicaAssignment, CreatableTopic};

use super::tests::{PATIENCE, directories, eventually, fleet, within};
use super::*;
use crate::metadata::controller::IsrChange;
use crate::metadata::image::{PartitionImage, TopicIdPartition};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_preferred_leader_leads_again_once_it_is_in_sync() {
    let directories = directories(3);
    let brokers = fleet(&directories).await;
    let handle = brokers[0].service.handle();
    let ids: Vec<BrokerId> = handle.image().brokers.keys().copied().collect();
    let (preferred, other) = (ids[0], ids[1]);
    let assignment = CreatableReplicaAssignment { broker_ids: vec![preferred, other], ..Default::default() };
    let topic = CreatableTopic {
        name: "orders".into(),
        num_partitions: -1,
        replication_factor: -1,
        assignments: vec![assignment],
        ..Default::default()
    };
    let create = CreateTopicsRequest { topics: vec![topic], ..Default::default() };
    handle.call_within(ControllerRequest::CreateTopics(create), PATIENCE).await.unwrap();
    let topic_id = handle.image().topic_ids["orders"];
    let state = || -> PartitionImage { handle.image().topics[&topic_id].partitions[0].clone() };
    assert_eq!((state().leader, state().isr), (preferred, vec![preferred, other]));

    let epoch_of = |broker_id| handle.image().brokers[&broker_id].broker_epoch;
    let fence = ControllerRequest::SetFenced {
        broker_id: preferred,
        broker_epoch: epoch_of(preferred),
        fenced: true,
    };
    handle.call_within(fence, PATIENCE).await.unwrap();
    assert_eq!((state().leader, state().isr), (other, vec![other]));
    // It is alive, so its next heartbeat brings it into service again.
    eventually("the broker is back", || !handle.image().brokers[&preferred].fenced).await;

    let change = IsrChange {
        partition: TopicIdPartition { topic_id, partition: 0 },
        leader_epoch: state().leader_epoch,
        partition_epoch: state().partition_epoch,
        isr: vec![(other, epoch_of(other)), (preferred, epoch_of(preferred))],
    };
    let propose = ControllerRequest::AlterPartitions {
        broker_id: other,
        broker_epoch: epoch_of(other),
        changes: vec![change],
    };
    let answer = within("the proposal is decided", handle.call(propose)).await.unwrap();
    assert_eq!(answer, ControllerResponse::PartitionsAltered(vec![ErrorCode::None]));
    eventually("the preferred leader leads", || state().leader == preferred).await;
    assert_eq!(state().isr, [other, preferred]);
    drop(handle);
    for broker in brokers {
        broker.stop().await;
    }
}
