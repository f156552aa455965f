//! How far reassignments are: leaders know how far their followers are, and any broker can ask the leaders.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;

use super::ReplicaManager;
use crate::metadata::image::{BrokerId, BrokerImage, MetadataImage, NO_LEADER, TopicIdPartition};
use crate::schema::internal::ReplicaProgressAnswer;
use crate::schema::internal::replica_progress_answer::FilledReplica;

/// Time that a leader gets to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How far a follower is, as its leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaProgress {
    /// Of which partition.
    pub partition: TopicIdPartition,
    /// The follower.
    pub broker_id: BrokerId,
    /// Bytes of the leader's log that are durable there.
    pub bytes_done: u64,
    /// Bytes that are not.
    pub bytes_left: u64,
    /// Bytes that it was sent of late, while it is not in sync.
    pub bytes_per_second: u64,
}

/// How far all reassignments are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Followers of partitions under reassignment.
    pub replicas: Vec<ReplicaProgress>,
    /// Leaders that did not answer: nothing is known of their partitions.
    pub silent: BTreeSet<BrokerId>,
}

impl ReplicaManager {
    /// Followers of the partitions under reassignment that are led here.
    pub async fn serve_progress(&self) -> ReplicaProgressAnswer {
        let to_wire = |progress: ReplicaProgress| FilledReplica {
            topic_id: progress.partition.topic_id,
            partition_id: progress.partition.partition,
            broker_id: progress.broker_id,
            bytes_done: progress.bytes_done.cast_signed(),
            bytes_left: progress.bytes_left.cast_signed(),
            bytes_per_second: progress.bytes_per_second.cast_signed(),
            ..FilledReplica::default()
        };
        let replicas = self.own_progress().await.into_iter().map(to_wire).collect();
        ReplicaProgressAnswer { replicas, ..ReplicaProgressAnswer::default() }
    }

    /// Asks all leaders of partitions under reassignment. Cancel-safe.
    pub async fn progress(&self) -> Progress {
        let options = self.options();
        let image = Arc::clone(&options.images.borrow());
        let asked = leaders(&image).into_iter().filter(|leader| leader.volume_uuid != options.volume_uuid);
        let answers = join_all(asked.map(async |leader| {
            let answer = options.peers.progress(&leader, TIMEOUT).await;
            (leader.broker_id, answer)
        }));
        let mut progress = Progress { replicas: self.own_progress().await, silent: BTreeSet::new() };
        for (broker_id, answer) in answers.await {
            match answer {
                Ok(answer) => progress.replicas.extend(answer.replicas.iter().map(from_wire)),
                Err(reason) => {
                    tracing::debug!(broker_id, reason, "a leader does not tell how far its followers are");
                    progress.silent.insert(broker_id);
                }
            }
        }
        progress
    }

    async fn own_progress(&self) -> Vec<ReplicaProgress> {
        let image = Arc::clone(&self.options().images.borrow());
        let led: Vec<_> = reassigned(&image).filter_map(|(id, _)| self.partition(id)).collect();
        if led.is_empty() {
            return Vec::new();
        }
        let look = move || {
            let mut found = Vec::new();
            for partition in led {
                match partition.followers_progress(Instant::now()) {
                    Ok(progress) => found.extend(progress),
                    Err(error) => {
                        let id = partition.id();
                        tracing::debug!(topic_id = %id.topic_id, partition = id.partition, %error, "sizing a log");
                    }
                }
            }
            found
        };
        crate::blocking::spawn_blocking(look).await.unwrap_or_default()
    }
}

fn from_wire(replica: &FilledReplica) -> ReplicaProgress {
    ReplicaProgress {
        partition: TopicIdPartition { topic_id: replica.topic_id, partition: replica.partition_id },
        broker_id: replica.broker_id,
        bytes_done: replica.bytes_done.cast_unsigned(),
        bytes_left: replica.bytes_left.cast_unsigned(),
        bytes_per_second: replica.bytes_per_second.cast_unsigned(),
    }
}

/// Partitions under reassignment with their leaders.
fn reassigned(image: &MetadataImage) -> impl Iterator<Item = (TopicIdPartition, BrokerId)> + '_ {
    let reassigned = image.partitions().filter(|(_, state)| state.is_reassigning());
    reassigned.map(|(id, state)| (id, state.leader))
}

fn leaders(image: &MetadataImage) -> Vec<Arc<BrokerImage>> {
    let ids: BTreeSet<BrokerId> = reassigned(image).map(|(_, leader)| leader).collect();
    let known = ids.iter().filter(|id| **id != NO_LEADER).filter_map(|id| image.brokers.get(id));
    known.cloned().collect()
}
