//! What brokers carry: sizes and traffic of partitions, and how long clients wait for their produce requests.
//!
//! Leaders know the sizes of their logs; any broker can ask them all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;

use super::ReplicaManager;
use crate::metadata::image::{BrokerId, MetadataImage, NO_LEADER, TopicIdPartition};
use crate::metrics::durations::DurationCounts;
use crate::schema::internal::BrokerLoadAnswer;
use crate::schema::internal::broker_load_answer::LedPartition;

/// Time that a broker gets to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A leader does not know yet.
const UNKNOWN: i64 = -1;

/// What the brokers of a cluster carry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterLoad {
    /// Bytes of each partition's log, at its leader.
    pub bytes: BTreeMap<TopicIdPartition, u64>,
    /// Bytes per second that each partition's leader takes in and gives out, as far as it leads for long enough to tell.
    pub traffic: BTreeMap<TopicIdPartition, u64>,
    /// How long produce requests took, by broker, since its process was started.
    pub produce_times: BTreeMap<BrokerId, DurationCounts>,
    /// Brokers in service that did not answer.
    pub silent: BTreeSet<BrokerId>,
}

impl ReplicaManager {
    /// What this broker carries.
    pub async fn serve_load(&self) -> BrokerLoadAnswer {
        let led: Vec<_> = self.led().collect();
        let look = move || {
            let now = Instant::now();
            let led = led.iter().map(|partition| LedPartition {
                topic_id: partition.id().topic_id,
                partition_id: partition.id().partition,
                bytes: partition.log().size().cast_signed(),
                bytes_per_second: partition.traffic(now).map_or(UNKNOWN, u64::cast_signed),
                ..LedPartition::default()
            });
            led.collect()
        };
        let counts = self.options().produce_times.counts();
        BrokerLoadAnswer {
            partitions: tokio::task::spawn_blocking(look).await.unwrap_or_default(),
            produce_times: counts.0.into_iter().map(u64::cast_signed).collect(),
            ..BrokerLoadAnswer::default()
        }
    }

    /// Asks all brokers in service. Cancel-safe.
    pub async fn load(&self) -> ClusterLoad {
        let options = self.options();
        let image = Arc::clone(&options.images.borrow());
        let brokers: Vec<_> = image.live_brokers().cloned().collect();
        let answers = join_all(brokers.into_iter().map(async |broker| {
            if broker.volume_uuid == options.volume_uuid {
                return (broker.broker_id, Ok(self.serve_load().await));
            }
            (broker.broker_id, options.peers.load(&broker, TIMEOUT).await)
        }));
        let mut load = ClusterLoad::default();
        for (broker_id, answer) in answers.await {
            match answer {
                Ok(answer) => load.add(broker_id, answer),
                Err(reason) => {
                    tracing::debug!(broker_id, reason, "a broker does not tell what it carries");
                    load.silent.insert(broker_id);
                }
            }
        }
        load
    }
}

impl ClusterLoad {
    /// Brokers of which it is not known how much they lead: they did not answer, or left out a partition of which `image`
    /// says that they lead it, as one does that is only just coming to lead it.
    pub fn silent_leaders(&self, image: &MetadataImage) -> BTreeSet<BrokerId> {
        let led = image.partitions().filter(|(_, state)| state.leader != NO_LEADER);
        let left_out = led.filter(|(id, _)| !self.bytes.contains_key(id)).map(|(_, state)| state.leader);
        self.silent.iter().copied().chain(left_out).collect()
    }

    fn add(&mut self, broker_id: BrokerId, answer: BrokerLoadAnswer) {
        for led in answer.partitions {
            let id = TopicIdPartition { topic_id: led.topic_id, partition: led.partition_id };
            self.bytes.insert(id, led.bytes.cast_unsigned());
            if let Ok(bytes_per_second) = u64::try_from(led.bytes_per_second) {
                self.traffic.insert(id, bytes_per_second);
            }
        }
        let counts = answer.produce_times.into_iter().map(i64::cast_unsigned).collect();
        self.produce_times.insert(broker_id, DurationCounts(counts));
    }
}
