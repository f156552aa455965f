//! Records as bytes: the mapping between [`Record`] and the generated messages of `schema/records.schema`.

use bytes::Bytes;
use millrace_protocol::wire::{DecodeError, Decoder, EncodeError, Encoder};

use super::{ConfigTarget, Record, Registration};
use crate::metadata::image::{
    BalanceImage, BrokerImage, BrokerMark, Endpoint, PartitionImage, Replica, RetiredNode, TopicIdPartition,
    TopicOwnerImage,
};
use crate::schema::records as wire;

/// Bytes that are no record of this or an older version.
#[derive(Debug, thiserror::Error)]
#[error("metadata record cannot be read")]
pub struct RecordError(#[from] DecodeError);

/// Broker id of a configuration record that is about all brokers.
const ALL_BROKERS: i32 = -1;

impl Record {
    /// Id, version and body, as stored in the metadata log.
    ///
    /// # Errors
    /// A string or list is longer than the format can carry.
    pub fn encode(&self) -> Result<Bytes, EncodeError> {
        let mut encoder = Encoder::new();
        self.to_wire().encode(&mut encoder)?;
        Ok(encoder.into_bytes())
    }

    /// Reads what [`Record::encode`] wrote, by this or an older version.
    ///
    /// # Errors
    /// Anything else, a newer version included.
    pub fn decode(bytes: Bytes) -> Result<Self, RecordError> {
        let mut decoder = Decoder::new(bytes);
        let record = wire::MetadataRecord::decode(&mut decoder)?;
        decoder.finish()?;
        Ok(Self::from_wire(record))
    }

    fn to_wire(&self) -> wire::MetadataRecord {
        match self {
            Self::RegisterBroker(registration) => wire::RegisterBrokerRecord {
                broker_id: registration.broker_id,
                volume_uuid: registration.volume_uuid,
                raft_node_id: registration.raft_node_id.cast_signed(),
                address: (&registration.address).into(),
                endpoints: registration
                    .endpoints
                    .iter()
                    .map(|endpoint| wire::register_broker_record::BrokerEndpoint {
                        listener: (&endpoint.listener).into(),
                        host: (&endpoint.host).into(),
                        port: endpoint.port,
                        security_protocol: (&endpoint.security_protocol).into(),
                        ..Default::default()
                    })
                    .collect(),
                rack: registration.rack.as_ref().map(Into::into),
                binary_version: (&registration.version).into(),
                min_insync_replicas: registration.min_insync_replicas,
                ..Default::default()
            }
            .into(),
            Self::Broker(broker) => wire::BrokerRecord {
                broker_id: broker.broker_id,
                broker_epoch: broker.broker_epoch,
                volume_uuid: broker.volume_uuid,
                raft_node_id: broker.raft_node_id.cast_signed(),
                address: (&broker.address).into(),
                endpoints: broker
                    .endpoints
                    .iter()
                    .map(|endpoint| wire::broker_record::BrokerRecordEndpoint {
                        listener: (&endpoint.listener).into(),
                        host: (&endpoint.host).into(),
                        port: endpoint.port,
                        security_protocol: (&endpoint.security_protocol).into(),
                        ..Default::default()
                    })
                    .collect(),
                rack: broker.rack.as_ref().map(Into::into),
                fenced: broker.fenced,
                in_controlled_shutdown: broker.in_controlled_shutdown,
                binary_version: (&broker.version).into(),
                min_insync_replicas: broker.min_insync_replicas,
                ..Default::default()
            }
            .into(),
            Self::Topic { topic_id, name } => {
                wire::TopicRecord { topic_id: *topic_id, name: name.into(), ..Default::default() }.into()
            }
            Self::RemoveTopic { topic_id } => {
                wire::RemoveTopicRecord { topic_id: *topic_id, ..Default::default() }.into()
            }
            Self::Partition { partition, state } => partition_to_wire(*partition, state).into(),
            Self::Config { target, key, value } => {
                let (topic_id, broker_id, for_topic) = match target {
                    ConfigTarget::Topic(topic_id) => (*topic_id, ALL_BROKERS, true),
                    ConfigTarget::Broker(broker_id) => {
                        (uuid::Uuid::nil(), broker_id.unwrap_or(ALL_BROKERS), false)
                    }
                };
                wire::ConfigRecord {
                    topic_id,
                    broker_id,
                    for_topic,
                    key: key.into(),
                    value: value.as_ref().map(Into::into),
                    ..Default::default()
                }
                .into()
            }
            Self::TopicOwner { topic_id, owner } => {
                let mut record = wire::TopicOwnerRecord { topic_id: *topic_id, ..Default::default() };
                if let Some(owner) = owner {
                    record.uid = Some((&owner.uid).into());
                    record.namespace = (&owner.namespace).into();
                    record.name = (&owner.name).into();
                    record.managed_keys = owner.managed_keys.iter().map(Into::into).collect();
                }
                record.into()
            }
            Self::ProducerIds { next_producer_id } => {
                wire::ProducerIdsRecord { next_producer_id: *next_producer_id, ..Default::default() }.into()
            }
            Self::BrokerIds { next_broker_id } => {
                wire::BrokerIdsRecord { next_broker_id: *next_broker_id, ..Default::default() }.into()
            }
            Self::RetiredNode { raft_node_id, retired } => wire::RetiredNodeRecord {
                raft_node_id: raft_node_id.cast_signed(),
                broker_id: retired.broker_id,
                volume_uuid: retired.volume_uuid,
                ..Default::default()
            }
            .into(),
            Self::BrokerMark { broker_id, mark } => wire::BrokerMarkRecord {
                broker_id: *broker_id,
                mark: mark_to_wire(*mark),
                ..Default::default()
            }
            .into(),
            Self::Balance(balance) => wire::BalanceRecord {
                rebalancing: balance.rebalancing,
                rate: balance.rate.map_or(-1, |rate| i64::try_from(rate).unwrap_or(i64::MAX)),
                moves: balance
                    .moves
                    .iter()
                    .map(|id| wire::balance_record::BalancerMove {
                        topic_id: id.topic_id,
                        partition_id: id.partition,
                        ..Default::default()
                    })
                    .collect(),
                ..Default::default()
            }
            .into(),
        }
    }

    fn from_wire(record: wire::MetadataRecord) -> Self {
        match record {
            wire::MetadataRecord::RegisterBroker(record) => Self::RegisterBroker(Registration {
                broker_id: record.broker_id,
                volume_uuid: record.volume_uuid,
                raft_node_id: record.raft_node_id.cast_unsigned(),
                address: record.address.into(),
                endpoints: record
                    .endpoints
                    .into_iter()
                    .map(|endpoint| Endpoint {
                        listener: endpoint.listener.into(),
                        host: endpoint.host.into(),
                        port: endpoint.port,
                        security_protocol: endpoint.security_protocol.into(),
                    })
                    .collect(),
                rack: record.rack.map(Into::into),
                version: record.binary_version.into(),
                min_insync_replicas: record.min_insync_replicas,
            }),
            wire::MetadataRecord::Broker(record) => Self::Broker(BrokerImage {
                broker_id: record.broker_id,
                broker_epoch: record.broker_epoch,
                volume_uuid: record.volume_uuid,
                raft_node_id: record.raft_node_id.cast_unsigned(),
                address: record.address.into(),
                endpoints: record
                    .endpoints
                    .into_iter()
                    .map(|endpoint| Endpoint {
                        listener: endpoint.listener.into(),
                        host: endpoint.host.into(),
                        port: endpoint.port,
                        security_protocol: endpoint.security_protocol.into(),
                    })
                    .collect(),
                rack: record.rack.map(Into::into),
                fenced: record.fenced,
                in_controlled_shutdown: record.in_controlled_shutdown,
                version: record.binary_version.into(),
                min_insync_replicas: record.min_insync_replicas,
            }),
            wire::MetadataRecord::Topic(record) => {
                Self::Topic { topic_id: record.topic_id, name: record.name.into() }
            }
            wire::MetadataRecord::RemoveTopic(record) => Self::RemoveTopic { topic_id: record.topic_id },
            wire::MetadataRecord::Partition(record) => partition_from_wire(record),
            wire::MetadataRecord::Config(record) => Self::Config {
                target: if record.for_topic {
                    ConfigTarget::Topic(record.topic_id)
                } else {
                    ConfigTarget::Broker((record.broker_id != ALL_BROKERS).then_some(record.broker_id))
                },
                key: record.key.into(),
                value: record.value.map(Into::into),
            },
            wire::MetadataRecord::TopicOwner(record) => Self::TopicOwner {
                topic_id: record.topic_id,
                owner: record.uid.map(|uid| TopicOwnerImage {
                    namespace: record.namespace.into(),
                    name: record.name.into(),
                    uid: uid.into(),
                    managed_keys: record.managed_keys.into_iter().map(Into::into).collect(),
                }),
            },
            wire::MetadataRecord::ProducerIds(record) => {
                Self::ProducerIds { next_producer_id: record.next_producer_id }
            }
            wire::MetadataRecord::BrokerIds(record) => {
                Self::BrokerIds { next_broker_id: record.next_broker_id }
            }
            wire::MetadataRecord::RetiredNode(record) => Self::RetiredNode {
                raft_node_id: record.raft_node_id.cast_unsigned(),
                retired: RetiredNode { broker_id: record.broker_id, volume_uuid: record.volume_uuid },
            },
            wire::MetadataRecord::BrokerMark(record) => {
                Self::BrokerMark { broker_id: record.broker_id, mark: mark_from_wire(record.mark) }
            }
            wire::MetadataRecord::Balance(record) => Self::Balance(BalanceImage {
                rebalancing: record.rebalancing,
                rate: u64::try_from(record.rate).ok(),
                moves: record
                    .moves
                    .into_iter()
                    .map(|id| TopicIdPartition { topic_id: id.topic_id, partition: id.partition_id })
                    .collect(),
            }),
        }
    }
}

/// A mark as records and requests have it.
pub(in crate::metadata) fn mark_to_wire(mark: Option<BrokerMark>) -> i8 {
    match mark {
        None => 0,
        Some(BrokerMark::Cordoned) => 1,
        Some(BrokerMark::Draining) => 2,
    }
}

/// Reads what [`mark_to_wire`] made.
pub(in crate::metadata) fn mark_from_wire(mark: i8) -> Option<BrokerMark> {
    match mark {
        1 => Some(BrokerMark::Cordoned),
        2 => Some(BrokerMark::Draining),
        _ => None,
    }
}

fn partition_to_wire(partition: TopicIdPartition, state: &PartitionImage) -> wire::PartitionRecord {
    wire::PartitionRecord {
        topic_id: partition.topic_id,
        partition_id: partition.partition,
        replicas: state
            .replicas
            .iter()
            .map(|replica| wire::partition_record::ReplicaAssignment {
                broker_id: replica.broker_id,
                volume_uuid: replica.volume_uuid,
                ..Default::default()
            })
            .collect(),
        isr: state.isr.clone(),
        elr: state.elr.clone(),
        leader: state.leader,
        leader_epoch: state.leader_epoch,
        partition_epoch: state.partition_epoch,
        adding: state.adding.clone(),
        removing: state.removing.clone(),
        ..Default::default()
    }
}

fn partition_from_wire(record: wire::PartitionRecord) -> Record {
    Record::Partition {
        partition: TopicIdPartition { topic_id: record.topic_id, partition: record.partition_id },
        state: PartitionImage {
            replicas: record
                .replicas
                .into_iter()
                .map(|replica| Replica { broker_id: replica.broker_id, volume_uuid: replica.volume_uuid })
                .collect(),
            adding: record.adding,
            removing: record.removing,
            isr: record.isr,
            elr: record.elr,
            leader: record.leader,
            leader_epoch: record.leader_epoch,
            partition_epoch: record.partition_epoch,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use millrace_protocol::Message as _;
    use uuid::Uuid;

    use super::*;

    fn one_of_each() -> Vec<Record> {
        let topic_id = Uuid::from_u128(7);
        let endpoint = Endpoint {
            listener: "A".into(),
            host: "h".into(),
            port: 65_535,
            security_protocol: "SSL".into(),
        };
        vec![
            Record::RegisterBroker(Registration {
                broker_id: 3,
                volume_uuid: Uuid::from_u128(8),
                raft_node_id: u64::MAX,
                address: "h:1".into(),
                endpoints: vec![endpoint.clone()],
                rack: None,
                version: "1".into(),
                min_insync_replicas: 2,
            }),
            Record::Broker(BrokerImage {
                broker_id: 3,
                broker_epoch: 9,
                volume_uuid: Uuid::from_u128(8),
                raft_node_id: 1 << 63,
                address: "h:1".into(),
                endpoints: vec![endpoint],
                rack: Some("r".into()),
                fenced: false,
                in_controlled_shutdown: true,
                version: "2".into(),
                min_insync_replicas: 3,
            }),
            Record::Topic { topic_id, name: "t".into() },
            Record::RemoveTopic { topic_id },
            Record::Partition {
                partition: TopicIdPartition { topic_id, partition: 2 },
                state: PartitionImage {
                    replicas: vec![Replica { broker_id: 1, volume_uuid: Uuid::from_u128(4) }],
                    adding: vec![1],
                    removing: vec![3, 2],
                    isr: vec![1],
                    elr: vec![2],
                    leader: -1,
                    leader_epoch: 5,
                    partition_epoch: 6,
                },
            },
            Record::Config {
                target: ConfigTarget::Topic(topic_id),
                key: "k".into(),
                value: Some(String::new()),
            },
            Record::Config { target: ConfigTarget::Broker(None), key: "k".into(), value: None },
            Record::Config {
                target: ConfigTarget::Broker(Some(0)),
                key: "k".into(),
                value: Some("v".into()),
            },
            Record::TopicOwner { topic_id, owner: None },
            Record::TopicOwner {
                topic_id,
                owner: Some(TopicOwnerImage {
                    namespace: "n".into(),
                    name: "o".into(),
                    uid: "u".into(),
                    managed_keys: BTreeSet::from(["k".to_owned()]),
                }),
            },
            Record::ProducerIds { next_producer_id: i64::MAX },
            Record::BrokerIds { next_broker_id: 4 },
            Record::RetiredNode {
                raft_node_id: u64::MAX,
                retired: RetiredNode { broker_id: 2, volume_uuid: Uuid::from_u128(8) },
            },
            Record::BrokerMark { broker_id: 3, mark: Some(BrokerMark::Draining) },
            Record::BrokerMark { broker_id: 3, mark: Some(BrokerMark::Cordoned) },
            Record::BrokerMark { broker_id: 3, mark: None },
            Record::Balance(BalanceImage::default()),
            Record::Balance(BalanceImage {
                rebalancing: true,
                rate: Some(7),
                moves: BTreeSet::from([TopicIdPartition { topic_id, partition: 2 }]),
            }),
        ]
    }

    #[test]
    fn every_record_reads_back_as_it_was_written() {
        for record in one_of_each() {
            let bytes = record.encode().expect("small records fit");
            assert_eq!(Record::decode(bytes).expect("just written"), record);
        }
    }

    #[test]
    fn a_partition_stored_before_there_were_reassignments_reads_as_one_that_is_not_reassigned() {
        let state = PartitionImage {
            replicas: vec![Replica { broker_id: 1, volume_uuid: Uuid::from_u128(4) }],
            adding: Vec::new(),
            removing: Vec::new(),
            isr: vec![1],
            elr: vec![2],
            leader: -1,
            leader_epoch: 5,
            partition_epoch: 6,
        };
        let partition = TopicIdPartition { topic_id: Uuid::from_u128(7), partition: 2 };
        let mut encoder = Encoder::new();
        partition_to_wire(partition, &state).encode(&mut encoder, 0).expect("version 0 has all of it");
        // Id 4, version 0.
        let stored = [&[4, 0][..], &encoder.into_bytes()].concat();
        let read = Record::decode(stored.into()).expect("old records are read");
        assert_eq!(read, Record::Partition { partition, state });
    }

    #[test]
    fn a_cut_record_is_an_error() {
        for record in one_of_each() {
            let bytes = record.encode().expect("small records fit");
            for length in 0..bytes.len() {
                assert!(
                    Record::decode(bytes.slice(..length)).is_err(),
                    "{record:?} cut to {length} bytes was read"
                );
            }
        }
    }
}
