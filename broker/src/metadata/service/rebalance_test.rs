//! Leadership that comes back by itself, and that goes before its broker does.

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::CreateTopicsRequest;
use millrace_protocol::messages::create_topics_request::{CreatableReplicaAssignment, CreatableTopic};

use super::tests::{Broker, PATIENCE, directories, eventually, fleet, make_topic, within};
use super::*;
use crate::metadata::controller::IsrChange;
use crate::metadata::image::{MetadataImage, PartitionImage, TopicIdPartition};

/// A topic of one partition, as the metadata of one broker has it.
struct Orders {
    handle: MetadataHandle,
    partition: TopicIdPartition,
}

impl Orders {
    async fn create(handle: MetadataHandle, broker_ids: &[BrokerId]) -> Self {
        let assignment = CreatableReplicaAssignment { broker_ids: broker_ids.to_vec(), ..Default::default() };
        let topic = CreatableTopic {
            name: "orders".into(),
            num_partitions: -1,
            replication_factor: -1,
            assignments: vec![assignment],
            ..Default::default()
        };
        let create = CreateTopicsRequest { topics: vec![topic], ..Default::default() };
        handle.call_within(ControllerRequest::CreateTopics(create), PATIENCE).await.unwrap();
        let partition = TopicIdPartition { topic_id: handle.image().topic_ids["orders"], partition: 0 };
        let orders = Self { handle, partition };
        assert_eq!((orders.state().leader, orders.state().isr), (broker_ids[0], broker_ids.to_vec()));
        orders
    }

    fn state(&self) -> PartitionImage {
        self.handle.image().partition(self.partition).unwrap().clone()
    }

    fn epoch_of(&self, broker_id: BrokerId) -> i64 {
        self.handle.image().brokers[&broker_id].broker_epoch
    }

    /// The leader proposes these in-sync replicas.
    async fn propose(&self, isr: &[BrokerId]) {
        let state = self.state();
        let change = IsrChange {
            partition: self.partition,
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
            isr: isr.iter().map(|id| (*id, self.epoch_of(*id))).collect(),
        };
        let propose = ControllerRequest::AlterPartitions {
            broker_id: state.leader,
            broker_epoch: self.epoch_of(state.leader),
            changes: vec![change],
        };
        let answer = within("the proposal is decided", self.handle.call(propose)).await.unwrap();
        assert_eq!(answer, ControllerResponse::PartitionsAltered(vec![ErrorCode::None]));
    }
}

fn id_of(broker: &Broker) -> BrokerId {
    broker.service.broker_state().borrow().broker_id.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_preferred_leader_leads_again_once_it_is_in_sync() {
    let directories = directories(3);
    let brokers = fleet(&directories).await;
    let (preferred, other) = (id_of(&brokers[0]), id_of(&brokers[1]));
    let orders = Orders::create(brokers[0].service.handle(), &[preferred, other]).await;
    let fence = ControllerRequest::SetFenced {
        broker_id: preferred,
        broker_epoch: orders.epoch_of(preferred),
        fenced: true,
    };
    orders.handle.call_within(fence, PATIENCE).await.unwrap();
    assert_eq!((orders.state().leader, orders.state().isr), (other, vec![other]));
    // It is alive, so its next heartbeat brings it into service again.
    eventually("the broker is back", || !orders.handle.image().brokers[&preferred].fenced).await;

    orders.propose(&[other, preferred]).await;
    eventually("the preferred leader leads", || orders.state().leader == preferred).await;
    assert_eq!(orders.state().isr, [other, preferred]);
    drop(orders);
    for broker in brokers {
        broker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_stops_leads_until_a_replica_in_service_has_come_in_sync() {
    let directories = directories(3);
    let brokers = fleet(&directories).await;
    let (leaving, other) = (id_of(&brokers[1]), id_of(&brokers[2]));
    let orders = Orders::create(brokers[0].service.handle(), &[leaving, other]).await;
    orders.propose(&[leaving]).await;
    let mut images = orders.handle.subscribe();
    let shutdown = tokio::spawn({
        let member = brokers[1].service.member();
        async move { member.controlled_shutdown(PATIENCE).await }
    });
    let is_stopping = |image: &Arc<MetadataImage>| image.brokers[&leaving].in_controlled_shutdown;
    within("it is stopping", images.wait_for(is_stopping)).await.unwrap();
    let leaders = tokio::spawn({
        let partition = orders.partition;
        async move {
            let mut seen = vec![leaving];
            while !images.borrow_and_update().brokers[&leaving].fenced {
                images.changed().await.unwrap();
                seen.push(images.borrow().partition(partition).unwrap().leader);
            }
            seen.dedup();
            seen
        }
    });
    // Were it not to wait, the end of its stop would be among these decisions.
    for number in 0..20 {
        make_topic(&orders.handle, &format!("decision-{number}")).await;
    }
    assert!(!orders.handle.image().brokers[&leaving].fenced, "it has not waited");
    orders.propose(&[leaving, other]).await;
    within("it has stopped", shutdown).await.unwrap().unwrap();
    assert_eq!(leaders.await.unwrap(), [leaving, other], "there always was a leader");
    drop(orders);
    for broker in brokers {
        broker.stop().await;
    }
}
