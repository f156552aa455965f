//! What the metadata log consists of, and how each record changes the image.
//!
//! Records state facts, not requests: everything that needed judgement (placement, leaders, epochs) was decided by the
//! controller before the record was proposed, so applying is the same on every broker and needs no clock, randomness
//! or configuration. A record that does not fit the image is corruption or a bug, never skipped: the broker stops.

use std::collections::BTreeMap;
use std::sync::Arc;

use crc_fast::CrcAlgorithm;
use millrace_protocol::wire::EncodeError;
use uuid::Uuid;

use super::image::{
    BalanceImage, BrokerId, BrokerImage, BrokerMark, Endpoint, MetadataImage, PartitionImage, RetiredNode,
    TopicIdPartition, TopicImage, TopicOwnerImage,
};

pub use codec::RecordError;
pub(super) use codec::{mark_from_wire, mark_to_wire};

#[path = "records_codec.rs"]
mod codec;

/// Entity that a configuration record is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigTarget {
    /// One topic.
    Topic(Uuid),
    /// One broker, or all of them (`None`).
    Broker(Option<BrokerId>),
}

/// A broker as it asked to be registered; see [`BrokerImage`] for the fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Granted broker id.
    pub broker_id: BrokerId,
    /// Uuid of its data volume.
    pub volume_uuid: Uuid,
    /// Raft node id derived from the volume.
    pub raft_node_id: u64,
    /// `host:port` of the internal listener.
    pub address: String,
    /// Client listeners.
    pub endpoints: Vec<Endpoint>,
    /// Rack, where the broker knows it by itself.
    pub rack: Option<String>,
    /// Version of the binary.
    pub version: String,
    /// `min.insync.replicas` of its configuration file.
    pub min_insync_replicas: i32,
}

/// One fact of the metadata log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A broker registered; it starts fenced, and its epoch is the index of this record's log entry.
    RegisterBroker(Registration),
    /// A broker registered before carries these changed facts; the epoch is kept.
    Broker(BrokerImage),
    /// A topic came to be, without partitions yet.
    Topic {
        /// Its id.
        topic_id: Uuid,
        /// Its name.
        name: String,
    },
    /// A topic and all its partitions and configuration are gone.
    RemoveTopic {
        /// Its id.
        topic_id: Uuid,
    },
    /// Whole state of a partition; the next number of its topic, or one that exists.
    Partition {
        /// Which one.
        partition: TopicIdPartition,
        /// Its state from now on.
        state: PartitionImage,
    },
    /// A dynamic configuration entry was set, or removed (`None`).
    Config {
        /// Topic or broker.
        target: ConfigTarget,
        /// Key.
        key: String,
        /// New value.
        value: Option<String>,
    },
    /// A topic changed hands, or the set of keys that its owner manages changed.
    TopicOwner {
        /// Which topic.
        topic_id: Uuid,
        /// New owner.
        owner: Option<TopicOwnerImage>,
    },
    /// Producer ids below this one are spoken for.
    ProducerIds {
        /// First id that is still free.
        next_producer_id: i64,
    },
    /// Broker ids below this one are spoken for.
    BrokerIds {
        /// First id that was never granted.
        next_broker_id: BrokerId,
    },
    /// A Raft node's volume was lost, and its broker has registered with another one.
    RetiredNode {
        /// Raft node id, never to be used again.
        raft_node_id: u64,
        /// What it belonged to.
        retired: RetiredNode,
    },
    /// A broker is to get no more replicas, or may again (`None`).
    BrokerMark {
        /// Which broker.
        broker_id: BrokerId,
        /// Its mark from now on.
        mark: Option<BrokerMark>,
    },
    /// The balancer's state as a whole.
    Balance(BalanceImage),
}

/// A record that does not fit the image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ApplyError {
    /// Names a topic that does not exist.
    #[error("the metadata log names topic {0}, which does not exist at that point")]
    UnknownTopic(Uuid),
    /// Names a broker that does not exist.
    #[error("the metadata log names broker {0}, which does not exist at that point")]
    UnknownBroker(BrokerId),
    /// Leaves a gap in the partition numbers.
    #[error(
        "the metadata log adds partition {partition} of topic {topic_id}, which has {existing} partitions"
    )]
    PartitionGap {
        /// Topic.
        topic_id: Uuid,
        /// Number in the record.
        partition: i32,
        /// Partitions so far.
        existing: usize,
    },
    /// A second topic of the same id or name.
    #[error("the metadata log makes topic {name:?} ({topic_id}) twice")]
    DuplicateTopic {
        /// Topic id.
        topic_id: Uuid,
        /// Topic name.
        name: String,
    },
}

impl MetadataImage {
    /// Applies one record of the log entry at `log_index`.
    ///
    /// On an error the image is unchanged and must not be used any further: the log does not belong to it.
    pub fn apply(&mut self, record: &Record, log_index: u64) -> Result<(), ApplyError> {
        match record {
            Record::RegisterBroker(registration) => self.register(registration, log_index),
            Record::Broker(broker) => {
                let known = self
                    .brokers
                    .get_mut(&broker.broker_id)
                    .ok_or(ApplyError::UnknownBroker(broker.broker_id))?;
                *known = Arc::new(broker.clone());
            }
            Record::Topic { topic_id, name } => {
                if self.topics.contains_key(topic_id) || self.topic_ids.contains_key(name) {
                    return Err(ApplyError::DuplicateTopic { topic_id: *topic_id, name: name.clone() });
                }
                self.topic_ids.insert(name.clone(), *topic_id);
                self.topics.insert(*topic_id, Arc::new(empty_topic(*topic_id, name)));
            }
            Record::RemoveTopic { topic_id } => {
                let topic = self.topics.remove(topic_id).ok_or(ApplyError::UnknownTopic(*topic_id))?;
                self.topic_ids.remove(&topic.name);
            }
            Record::Partition { partition, state } => self.put_partition(*partition, state)?,
            Record::Config { target, key, value } => match target {
                ConfigTarget::Topic(topic_id) => {
                    set_entry(&mut self.topic_mut(*topic_id)?.config, key, value)
                }
                ConfigTarget::Broker(broker_id) => {
                    set_entry(self.broker_configs.entry(*broker_id).or_default(), key, value);
                    self.broker_configs.retain(|_, config| !config.is_empty());
                }
            },
            Record::TopicOwner { topic_id, owner } => self.topic_mut(*topic_id)?.owner.clone_from(owner),
            Record::ProducerIds { next_producer_id } => self.next_producer_id = *next_producer_id,
            Record::BrokerIds { next_broker_id } => self.next_broker_id = *next_broker_id,
            Record::RetiredNode { raft_node_id, retired } => {
                self.retired_nodes.insert(*raft_node_id, *retired);
            }
            Record::BrokerMark { broker_id, mark: Some(mark) } => {
                self.marks.insert(*broker_id, *mark);
            }
            Record::BrokerMark { broker_id, mark: None } => {
                self.marks.remove(broker_id);
            }
            Record::Balance(balance) => self.balance = balance.clone(),
        }
        Ok(())
    }

    /// Records that make this image from an empty one, in an order that applies: the content of a snapshot.
    pub fn to_records(&self) -> Vec<Record> {
        let mut records = vec![
            Record::ProducerIds { next_producer_id: self.next_producer_id },
            Record::BrokerIds { next_broker_id: self.next_broker_id },
        ];
        for (raft_node_id, retired) in &self.retired_nodes {
            records.push(Record::RetiredNode { raft_node_id: *raft_node_id, retired: *retired });
        }
        for broker in self.brokers.values() {
            records.push(Record::RegisterBroker(registration_of(broker)));
            records.push(Record::Broker(broker.as_ref().clone()));
        }
        for (broker_id, mark) in &self.marks {
            records.push(Record::BrokerMark { broker_id: *broker_id, mark: Some(*mark) });
        }
        if self.balance != BalanceImage::default() {
            records.push(Record::Balance(self.balance.clone()));
        }
        for (broker_id, config) in &self.broker_configs {
            records.extend(config_records(&ConfigTarget::Broker(*broker_id), config));
        }
        for topic in self.topics.values() {
            let topic_id = topic.topic_id;
            records.push(Record::Topic { topic_id, name: topic.name.clone() });
            records.extend(config_records(&ConfigTarget::Topic(topic_id), &topic.config));
            if let Some(owner) = &topic.owner {
                records.push(Record::TopicOwner { topic_id, owner: Some(owner.clone()) });
            }
            records.extend((0_i32..).zip(&topic.partitions).map(|(partition, state)| Record::Partition {
                partition: TopicIdPartition { topic_id, partition },
                state: state.clone(),
            }));
        }
        records
    }

    /// CRC-32C of everything in it but its position in the log: the same for all brokers at the same position.
    ///
    /// # Errors
    /// Something in it is too large for the wire, and could not be part of a snapshot either.
    pub fn checksum(&self) -> Result<u32, EncodeError> {
        let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
        for record in self.to_records() {
            digest.update(&record.encode()?);
        }
        // CRC-32C has 32 bits.
        Ok(u32::try_from(digest.finalize()).unwrap_or(u32::MAX))
    }

    fn register(&mut self, registration: &Registration, log_index: u64) {
        let broker_epoch = i64::try_from(log_index).unwrap_or(i64::MAX);
        // A rack that was set from outside outlives a restart of the broker, which does not know it.
        let known_rack = self.brokers.get(&registration.broker_id).and_then(|broker| broker.rack.clone());
        let broker = BrokerImage {
            broker_id: registration.broker_id,
            broker_epoch,
            volume_uuid: registration.volume_uuid,
            raft_node_id: registration.raft_node_id,
            address: registration.address.clone(),
            endpoints: registration.endpoints.clone(),
            rack: registration.rack.clone().or(known_rack),
            fenced: true,
            in_controlled_shutdown: false,
            version: registration.version.clone(),
            min_insync_replicas: registration.min_insync_replicas,
        };
        self.brokers.insert(registration.broker_id, Arc::new(broker));
        self.next_broker_id = self.next_broker_id.max(registration.broker_id.saturating_add(1));
    }

    fn put_partition(
        &mut self,
        partition: TopicIdPartition,
        state: &PartitionImage,
    ) -> Result<(), ApplyError> {
        let topic = self.topic_mut(partition.topic_id)?;
        let existing = topic.partitions.len();
        match usize::try_from(partition.partition) {
            Ok(number) if number < existing => topic.partitions[number] = state.clone(),
            Ok(number) if number == existing => topic.partitions.push(state.clone()),
            _ => {
                return Err(ApplyError::PartitionGap {
                    topic_id: partition.topic_id,
                    partition: partition.partition,
                    existing,
                });
            }
        }
        Ok(())
    }

    fn topic_mut(&mut self, topic_id: Uuid) -> Result<&mut TopicImage, ApplyError> {
        self.topics.get_mut(&topic_id).map(Arc::make_mut).ok_or(ApplyError::UnknownTopic(topic_id))
    }
}

fn empty_topic(topic_id: Uuid, name: &str) -> TopicImage {
    TopicImage {
        topic_id,
        name: name.to_owned(),
        partitions: Vec::new(),
        config: BTreeMap::new(),
        owner: None,
    }
}

fn set_entry(config: &mut BTreeMap<String, String>, key: &str, value: &Option<String>) {
    match value {
        Some(value) => config.insert(key.to_owned(), value.clone()),
        None => config.remove(key),
    };
}

fn registration_of(broker: &BrokerImage) -> Registration {
    Registration {
        broker_id: broker.broker_id,
        volume_uuid: broker.volume_uuid,
        raft_node_id: broker.raft_node_id,
        address: broker.address.clone(),
        endpoints: broker.endpoints.clone(),
        rack: broker.rack.clone(),
        version: broker.version.clone(),
        min_insync_replicas: broker.min_insync_replicas,
    }
}

fn config_records<'a>(
    target: &'a ConfigTarget,
    config: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = Record> + 'a {
    config.iter().map(|(key, value)| Record::Config {
        target: target.clone(),
        key: key.clone(),
        value: Some(value.clone()),
    })
}
