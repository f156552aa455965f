//! What the management API shows: pure functions over the image.

use std::collections::{BTreeMap, HashMap};

use millrace_management::{
    BrokerView, ClusterView, FillingReplica, Identity, QuorumView, ReassignmentView, ReassignmentsView,
    kafka_uuid,
};

use crate::metadata::image::{
    BrokerId, BrokerImage, MetadataImage, NO_LEADER, PartitionImage, TopicIdPartition,
};
use crate::metadata::raft::QuorumStatus;
use crate::metadata::service::Member;
use crate::replication::{Progress, ReplicaProgress};

pub(super) fn identity(member: &Member) -> Identity {
    let volume = member.volume();
    Identity {
        cluster_id: kafka_uuid::format(volume.cluster_id()),
        volume_uuid: kafka_uuid::format(volume.volume_uuid()),
        raft_node_id: volume.raft_node_id().to_string(),
        broker_id: volume.broker_id(),
        address: member.address().to_owned(),
        version: member.version().to_owned(),
        member_of_quorum: member.quorum().is_member(),
    }
}

pub(super) fn cluster(image: &MetadataImage, quorum: &QuorumStatus) -> ClusterView {
    let loads = loads(image);
    let partitions = || image.topics.values().flat_map(|topic| &topic.partitions);
    let leads = |broker: &&std::sync::Arc<BrokerImage>| Some(broker.raft_node_id) == quorum.leader;
    ClusterView {
        cluster_id: kafka_uuid::format(image.cluster_id),
        // A volume that was lost may still be known under its old node id: only a live broker can lead.
        controller_id: image.live_brokers().find(leads).map(|broker| broker.broker_id),
        brokers: image
            .brokers
            .values()
            .map(|broker| broker_view(broker, loads.get(&broker.broker_id).copied().unwrap_or_default()))
            .collect(),
        quorum: QuorumView {
            leader: quorum.leader.map(|node_id| node_id.to_string()),
            voters: quorum.voters.iter().map(u64::to_string).collect(),
            changing: quorum.joint,
            learners: quorum.learners().map(|node_id| node_id.to_string()).collect(),
        },
        topic_count: count(image.topics.len()),
        partition_count: count(partitions().count()),
        offline_partition_count: count(
            partitions().filter(|partition| partition.leader == NO_LEADER).count(),
        ),
    }
}

pub(super) fn reassignments(image: &MetadataImage, progress: &Progress) -> ReassignmentsView {
    let known: HashMap<(TopicIdPartition, BrokerId), &ReplicaProgress> =
        progress.replicas.iter().map(|replica| ((replica.partition, replica.broker_id), replica)).collect();
    let by_name = image.topic_ids.values().filter_map(|topic_id| image.topics.get(topic_id));
    let partitions: Vec<ReassignmentView> = by_name
        .flat_map(|topic| {
            let numbered = (0_i32..).zip(&topic.partitions).filter(|(_, state)| state.is_reassigning());
            numbered.map(|(number, state)| {
                let partition = TopicIdPartition { topic_id: topic.topic_id, partition: number };
                let filling = |id: BrokerId| filling_replica(state, id, known.get(&(partition, id)).copied());
                ReassignmentView {
                    topic: topic.name.clone(),
                    partition: number,
                    leader: (state.leader != NO_LEADER).then_some(state.leader),
                    replicas: state.replica_ids().collect(),
                    adding: state.adding.clone(),
                    removing: state.removing.clone(),
                    in_sync: state.isr.clone(),
                    filling: state
                        .target_ids()
                        .filter(|id| !state.isr.contains(id) || state.adding.contains(id))
                        .map(filling)
                        .collect(),
                }
            })
        })
        .collect();
    let all = || partitions.iter().flat_map(|partition| &partition.filling);
    ReassignmentsView {
        bytes_done: all().filter_map(|replica| replica.bytes_done).sum(),
        bytes_left: all().filter_map(|replica| replica.bytes_left).sum(),
        bytes_per_second: all().filter_map(|replica| replica.bytes_per_second).sum(),
        // Each is filled beside the others; the last one ends it.
        eta_ms: all().map(|replica| replica.eta_ms).try_fold(0, |longest, eta| Some(longest.max(eta?))),
        silent_leaders: progress.silent.iter().copied().collect(),
        partitions,
    }
}

fn filling_replica(
    state: &PartitionImage,
    broker_id: BrokerId,
    known: Option<&ReplicaProgress>,
) -> FillingReplica {
    let in_sync = state.isr.contains(&broker_id);
    let eta_ms = known.and_then(|known| match (known.bytes_left, known.bytes_per_second) {
        _ if in_sync => Some(0),
        (_, 0) => None,
        (left, rate) => u64::try_from(u128::from(left) * 1_000 / u128::from(rate)).ok(),
    });
    FillingReplica {
        broker_id,
        in_sync,
        bytes_done: known.map(|known| known.bytes_done),
        bytes_left: known.map(|known| known.bytes_left),
        bytes_per_second: known.map(|known| known.bytes_per_second),
        eta_ms,
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Load {
    leaders: u64,
    replicas: u64,
}

fn loads(image: &MetadataImage) -> BTreeMap<BrokerId, Load> {
    let mut loads: BTreeMap<BrokerId, Load> = BTreeMap::new();
    for partition in image.topics.values().flat_map(|topic| &topic.partitions) {
        if partition.leader != NO_LEADER {
            loads.entry(partition.leader).or_default().leaders += 1;
        }
        for broker_id in partition.replica_ids() {
            loads.entry(broker_id).or_default().replicas += 1;
        }
    }
    loads
}

fn broker_view(broker: &BrokerImage, load: Load) -> BrokerView {
    BrokerView {
        broker_id: broker.broker_id,
        volume_uuid: kafka_uuid::format(broker.volume_uuid),
        raft_node_id: broker.raft_node_id.to_string(),
        address: broker.address.clone(),
        version: broker.version.clone(),
        rack: broker.rack.clone(),
        fenced: broker.fenced,
        leader_count: load.leaders,
        replica_count: load.replicas,
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::controller::topic_view;
    use crate::metadata::image::{PartitionImage, Replica, TopicImage};
    use std::sync::Arc;
    use uuid::Uuid;

    fn broker(broker_id: BrokerId, raft_node_id: u64, fenced: bool) -> BrokerImage {
        BrokerImage {
            broker_id,
            broker_epoch: 1,
            volume_uuid: Uuid::from_u128(1),
            raft_node_id,
            address: format!("host-{broker_id}:9093"),
            endpoints: Vec::new(),
            rack: None,
            fenced,
            in_controlled_shutdown: false,
            version: "1".to_owned(),
            min_insync_replicas: 1,
        }
    }

    fn partition(leader: BrokerId, replicas: &[BrokerId], isr: &[BrokerId]) -> PartitionImage {
        PartitionImage {
            replicas: replicas
                .iter()
                .map(|broker_id| Replica { broker_id: *broker_id, volume_uuid: Uuid::nil() })
                .collect(),
            isr: isr.to_vec(),
            elr: Vec::new(),
            adding: Vec::new(),
            removing: Vec::new(),
            leader,
            leader_epoch: 0,
            partition_epoch: 0,
        }
    }

    fn image() -> MetadataImage {
        let mut image = MetadataImage::empty(Uuid::from_u128(9));
        for broker in [broker(0, 70, false), broker(1, 71, false), broker(2, 72, true)] {
            image.brokers.insert(broker.broker_id, Arc::new(broker));
        }
        let topic = TopicImage {
            topic_id: Uuid::from_u128(5),
            name: "orders".to_owned(),
            partitions: vec![
                partition(0, &[0, 1, 2], &[0, 1, 2]),
                partition(1, &[1, 2], &[1]),
                partition(NO_LEADER, &[2, 0], &[2]),
            ],
            config: BTreeMap::from([("retention.ms".to_owned(), "1".to_owned())]),
            owner: None,
        };
        image.topic_ids.insert(topic.name.clone(), topic.topic_id);
        image.topics.insert(topic.topic_id, Arc::new(topic));
        image
    }

    #[test]
    fn the_cluster_is_counted() {
        let quorum = QuorumStatus {
            node_id: 70,
            term: 3,
            leader: Some(71),
            voters: [70, 71].into(),
            members: BTreeMap::from([(70, "a".to_owned()), (71, "b".to_owned()), (72, "c".to_owned())]),
            joint: false,
        };
        let view = cluster(&image(), &quorum);
        assert_eq!(view.controller_id, Some(1));
        assert_eq!((view.topic_count, view.partition_count, view.offline_partition_count), (1, 3, 1));
        let loads: Vec<_> =
            view.brokers.iter().map(|broker| (broker.leader_count, broker.replica_count)).collect();
        assert_eq!(loads, vec![(1, 2), (1, 2), (0, 3)]);
        assert_eq!(view.quorum.learners, ["72".to_owned()].into());
        assert_eq!(view.quorum.voters, ["70".to_owned(), "71".to_owned()].into());
    }

    #[test]
    fn reassignments_show_how_far_they_are_and_when_they_will_be_there() {
        let mut image = image();
        let topic = image.topics.get_mut(&Uuid::from_u128(5)).map(Arc::make_mut).expect("it is there");
        let state = &mut topic.partitions[0];
        (state.adding, state.removing, state.isr) = (vec![1, 2], vec![0], vec![0, 2]);
        let of = |broker_id, bytes_done, bytes_left, bytes_per_second| ReplicaProgress {
            partition: TopicIdPartition { topic_id: Uuid::from_u128(5), partition: 0 },
            broker_id,
            bytes_done,
            bytes_left,
            bytes_per_second,
        };
        let mut progress =
            Progress { replicas: vec![of(1, 300, 700, 200), of(2, 990, 10, 0)], silent: [7].into() };
        let view = reassignments(&image, &progress);
        assert_eq!((view.bytes_done, view.bytes_left, view.bytes_per_second), (1_290, 710, 200));
        assert_eq!(
            (view.eta_ms, &view.silent_leaders[..], view.partitions.len()),
            (Some(3_500), &[7][..], 1)
        );
        let one = &view.partitions[0];
        assert_eq!((one.topic.as_str(), one.partition, one.leader), ("orders", 0, Some(0)));
        let etas: Vec<_> = one.filling.iter().map(|it| (it.broker_id, it.in_sync, it.eta_ms)).collect();
        assert_eq!(etas, [(1, false, Some(3_500)), (2, true, Some(0))]);
        progress.replicas[0].bytes_per_second = 0;
        assert_eq!(reassignments(&image, &progress).eta_ms, None, "it stands still");
        let unknown = reassignments(&image, &Progress::default());
        assert_eq!((unknown.eta_ms, unknown.partitions[0].filling[0].bytes_left), (None, None));
    }

    #[test]
    fn a_topic_shows_what_is_offline_and_under_replicated() {
        let image = image();
        let view = topic_view(image.topic_by_name("orders").expect("the topic is there"));
        assert_eq!((view.partitions, view.replicas), (3, 2));
        assert_eq!((view.offline_partitions, view.under_replicated_partitions), (1, 2));
        assert_eq!(view.topic_id, kafka_uuid::format(Uuid::from_u128(5)));
    }
}
