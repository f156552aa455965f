//! What the controller decides: a request and the image go in, records and an answer come out.
//!
//! Nothing here waits, reads a clock or talks to anyone; the runtime in `metadata::service` calls [`decide`] for one
//! request at a time on the image that contains all it proposed before, proposes the records, and answers once they
//! are committed. A request that changes nothing yields no records, and nothing is written to the metadata log.

mod balance;
pub mod balancer;
mod brokers;
mod configs;
mod draft;
mod elections;
mod isr_changes;
mod managed_topics;
mod partition_state;
mod partitions;
mod placement;
mod reassignments;
mod requests;
mod topics;

#[cfg(test)]
mod elections_property_test;
#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod topics_test;

use std::collections::BTreeMap;

use uuid::Uuid;

use super::image::{BrokerId, MetadataImage};
use super::records::Record;

use draft::Draft;

pub use balance::PartitionMove;
pub use brokers::{RegisterBroker, Registered};
pub(super) use elections::preferred_leaders_to_elect;
pub(crate) use managed_topics::topic_view;
pub use requests::{ControllerRequest, ControllerResponse, IsrChange, RequestError};

/// Producer ids handed to a broker at a time, as in Kafka (KIP-730).
pub const PRODUCER_ID_BLOCK_SIZE: i32 = 1000;

/// Settings and helpers that decisions depend on besides the image.
pub trait Settings: std::fmt::Debug + Send + Sync {
    /// Partitions of a topic whose creator left it open (`num.partitions`).
    fn default_partitions(&self, image: &MetadataImage) -> i32;
    /// Replicas of a topic whose creator left it open (`default.replication.factor`).
    fn default_replication_factor(&self, image: &MetadataImage) -> i16;
    /// Whether clients may delete topics (`delete.topic.enable`).
    fn topic_deletion_enabled(&self) -> bool;
    /// Says what is wrong with a topic setting, naming the key.
    fn check_topic_config(&self, key: &str, value: &str) -> Result<(), String>;
    /// Says what is wrong with all settings of a topic taken together.
    fn check_topic_configs(&self, config: &BTreeMap<String, String>) -> Result<(), String>;
    /// Says what is wrong with a dynamic broker setting, naming the key.
    fn check_broker_config(&self, key: &str, value: &str) -> Result<(), String>;
    /// Whether the key holds a comma-separated list, to which values can be appended.
    fn is_list(&self, key: &str) -> bool;
    /// Value that the key has where the topic does not set it; list operations start from it.
    fn topic_default(&self, image: &MetadataImage, key: &str) -> Option<String>;
    /// Whether a topic with this configuration lets a replica that is not in sync lead.
    fn unclean_leader_election(&self, image: &MetadataImage, topic_id: Uuid) -> bool;
    /// `min.insync.replicas` that `leader` goes by in partitions of this topic: the topic's, else the cluster's, else
    /// that of the leader's configuration file.
    fn min_insync_replicas(&self, image: &MetadataImage, topic_id: Uuid, leader: BrokerId) -> usize;
    /// Whether records of this topic are acknowledged before they are synced (`log.durability=written`).
    fn acknowledges_unsynced(&self, image: &MetadataImage, topic_id: Uuid) -> bool;
}

/// Outcome of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// To be proposed as one log entry; empty when nothing changes.
    pub records: Vec<Record>,
    /// Answer, once the records are committed.
    pub response: ControllerResponse,
}

/// Decides `request` against `image`. `new_uuid` makes random ids; a simulation passes its own.
pub fn decide(
    image: &MetadataImage,
    request: &ControllerRequest,
    settings: &dyn Settings,
    new_uuid: &mut dyn FnMut() -> Uuid,
) -> Decision {
    let mut draft = Draft::new(image);
    let response = match request {
        ControllerRequest::CreateTopics(request) => {
            ControllerResponse::CreateTopics(topics::create(&mut draft, request, settings, new_uuid))
        }
        ControllerRequest::DeleteTopics(request) => {
            ControllerResponse::DeleteTopics(topics::delete(&mut draft, request, settings))
        }
        ControllerRequest::CreatePartitions(request) => {
            ControllerResponse::CreatePartitions(partitions::create(&mut draft, request))
        }
        ControllerRequest::IncrementalAlterConfigs(request) => {
            ControllerResponse::IncrementalAlterConfigs(configs::alter(&mut draft, request, settings))
        }
        ControllerRequest::ElectLeaders(request) => {
            ControllerResponse::ElectLeaders(elections::elect_leaders(&mut draft, request, settings))
        }
        ControllerRequest::AlterPartitionReassignments(request) => {
            let response = reassignments::alter(&mut draft, request, settings);
            ControllerResponse::AlterPartitionReassignments(response)
        }
        ControllerRequest::ListPartitionReassignments(request) => {
            ControllerResponse::ListPartitionReassignments(reassignments::list(draft.image(), request))
        }
        ControllerRequest::AllocateProducerIds => allocate_producer_ids(&mut draft),
        ControllerRequest::RegisterBroker(request) => brokers::register(&mut draft, request, settings),
        ControllerRequest::SetFenced { broker_id, broker_epoch, fenced } => {
            brokers::set_fenced(&mut draft, *broker_id, *broker_epoch, *fenced, settings)
        }
        ControllerRequest::ControlledShutdown { broker_id, broker_epoch } => {
            brokers::controlled_shutdown(&mut draft, *broker_id, *broker_epoch, settings)
        }
        ControllerRequest::AlterPartitions { broker_id, broker_epoch, changes } => {
            isr_changes::alter(&mut draft, *broker_id, *broker_epoch, changes, settings)
        }
        ControllerRequest::SetRack { broker_id, rack } => {
            brokers::set_rack(&mut draft, *broker_id, rack.as_deref())
        }
        ControllerRequest::MarkBroker { broker_id, mark } => {
            balance::mark(&mut draft, *broker_id, *mark, settings)
        }
        ControllerRequest::MovePartitions(moves) => balance::move_partitions(&mut draft, moves, settings),
        ControllerRequest::SetRebalancing { rebalancing, cancel_moves } => {
            balance::set_rebalancing(&mut draft, *rebalancing, *cancel_moves, settings)
        }
        ControllerRequest::SetBalanceRate(rate) => balance::set_rate(&mut draft, *rate),
        ControllerRequest::TakeBackMoves(brokers) => balance::take_back_moves(&mut draft, brokers, settings),
        ControllerRequest::ApplyTopic { name, request } => {
            managed_topics::apply(&mut draft, name, request, settings, new_uuid)
        }
        ControllerRequest::DeleteOwnedTopic { name, owner_uid } => {
            managed_topics::delete(&mut draft, name, owner_uid)
        }
        ControllerRequest::ReleaseTopic { name, owner_uid } => {
            managed_topics::release(&mut draft, name, owner_uid)
        }
    };
    elections::follow_settings(&mut draft, settings);
    Decision { records: draft.into_records(), response }
}

fn allocate_producer_ids(draft: &mut Draft) -> ControllerResponse {
    let first = draft.image().next_producer_id;
    let next_producer_id = first + i64::from(PRODUCER_ID_BLOCK_SIZE);
    draft.push(Record::ProducerIds { next_producer_id });
    ControllerResponse::ProducerIds { first, count: PRODUCER_ID_BLOCK_SIZE }
}
