//! Kafka's AlterPartitionReassignments and ListPartitionReassignments (KIP-455, KIP-860).
//!
//! Here is how a reassignment begins, changes and is taken back: plain functions from a partition's state to the
//! assignment that is wanted next. When it is complete, and what becomes of leader and in-sync replicas, is decided where
//! every change of them is: in `partition_state`.
//!
//! A target given while another one is under way replaces it. Replicas that only the former target had go as soon as the
//! new one is in sync, and not before: they may be all that is in sync. A cancellation always goes back to the replicas
//! from before the first of the two, which Apache Kafka does only where the second target adds nobody.

use std::collections::BTreeSet;

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::alter_partition_reassignments_request::ReassignablePartition;
use millrace_protocol::messages::alter_partition_reassignments_response::{
    ReassignablePartitionResponse, ReassignableTopicResponse,
};
use millrace_protocol::messages::list_partition_reassignments_response::{
    OngoingPartitionReassignment, OngoingTopicReassignment,
};
use millrace_protocol::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse,
    ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
};
use uuid::Uuid;

use super::draft::Draft;
use super::partition_state::{Assignment, Election, Situation, next_state_of};
use super::{Settings, balance};
use crate::metadata::image::{
    BrokerId, MetadataImage, PartitionImage, Replica, TopicIdPartition, TopicImage,
};
use crate::metadata::records::Record;

/// Why a partition keeps the assignment that it has.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum ReassignmentError {
    #[error("Unable to find a topic named {0}.")]
    UnknownTopic(String),
    #[error("Unable to find partition {topic}:{partition}.")]
    UnknownPartition { topic: String, partition: i32 },
    #[error("The manual partition assignment includes an empty replica list.")]
    NoReplicas,
    #[error("The manual partition assignment includes broker {0}, but no such broker is registered.")]
    UnknownBroker(BrokerId),
    #[error("The manual partition assignment includes the broker {0} more than once.")]
    RepeatedBroker(BrokerId),
    #[error("The replication factor is changed from {from} to {to}")]
    OtherReplicationFactor { from: usize, to: usize },
    #[error("No partition reassignment is in progress.")]
    NotInProgress,
    #[error(
        "Unable to revert partition assignment for {topic}:{partition} because it would require an unclean leader \
         election."
    )]
    UncleanCancellation { topic: String, partition: i32 },
}

impl ReassignmentError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownTopic(_) | Self::UnknownPartition { .. } => ErrorCode::UnknownTopicOrPartition,
            Self::NoReplicas
            | Self::UnknownBroker(_)
            | Self::RepeatedBroker(_)
            | Self::UncleanCancellation { .. } => ErrorCode::InvalidReplicaAssignment,
            Self::OtherReplicationFactor { .. } => ErrorCode::InvalidReplicationFactor,
            Self::NotInProgress => ErrorCode::NoReassignmentInProgress,
        }
    }
}

/// The partition's state with a reassignment to `target`, which stays as it is until the target is in sync; `None` if the
/// partition is there already.
pub(super) fn reassigned(
    situation: &Situation<'_>,
    state: &PartitionImage,
    target: &[BrokerId],
) -> Result<Option<PartitionImage>, ReassignmentError> {
    check_target(situation.image, target)?;
    let assignment = towards(situation.image, state, target);
    Ok(next_state_of(situation, state, assignment, &state.isr))
}

/// The partition's state without the reassignment that is under way; `topic` and `partition` are for the message.
pub(super) fn cancelled(
    situation: &Situation<'_>,
    state: &PartitionImage,
    (topic, partition): (&str, i32),
) -> Result<Option<PartitionImage>, ReassignmentError> {
    if !state.is_reassigning() {
        return Err(ReassignmentError::NotInProgress);
    }
    let original: Vec<BrokerId> = state.original_ids().collect();
    let isr: Vec<BrokerId> = state.isr.iter().copied().filter(|id| original.contains(id)).collect();
    let is_eligible = |id: &BrokerId| state.elr.contains(id) && situation.may_lead_cleanly(state, *id);
    let mut situation = *situation;
    if isr.is_empty() && !original.iter().any(is_eligible) {
        // Everything that is in sync would be taken away.
        let allowed = situation.settings.unclean_leader_election(situation.image, situation.topic_id);
        if !allowed || !original.iter().any(|id| situation.may_lead(*id)) {
            return Err(ReassignmentError::UncleanCancellation { topic: topic.to_owned(), partition });
        }
        situation.election = Election::Unclean;
    }
    Ok(next_state_of(&situation, state, back(state), &isr))
}

fn check_target(image: &MetadataImage, target: &[BrokerId]) -> Result<(), ReassignmentError> {
    if target.is_empty() {
        return Err(ReassignmentError::NoReplicas);
    }
    let mut sorted = target.to_vec();
    sorted.sort_unstable();
    let mut before = None;
    for id in sorted {
        if !image.brokers.contains_key(&id) {
            return Err(ReassignmentError::UnknownBroker(id));
        }
        if before.replace(id) == Some(id) {
            return Err(ReassignmentError::RepeatedBroker(id));
        }
    }
    Ok(())
}

/// The target first, then those that go.
fn towards(image: &MetadataImage, state: &PartitionImage, target: &[BrokerId]) -> Assignment {
    let removing: BTreeSet<BrokerId> = state.replica_ids().filter(|id| !target.contains(id)).collect();
    let original: Vec<BrokerId> = state.original_ids().collect();
    let ids: Vec<BrokerId> = target.iter().chain(&removing).copied().collect();
    let adding: BTreeSet<BrokerId> = ids.iter().copied().filter(|id| !original.contains(id)).collect();
    let replica = |id: &BrokerId| {
        let known = state.replicas.iter().find(|replica| replica.broker_id == *id).copied();
        let volume_uuid = || image.brokers.get(id).map_or(Uuid::nil(), |broker| broker.volume_uuid);
        known.unwrap_or_else(|| Replica { broker_id: *id, volume_uuid: volume_uuid() })
    };
    Assignment {
        replicas: ids.iter().map(replica).collect(),
        adding: adding.into_iter().collect(),
        removing: removing.into_iter().collect(),
    }
}

/// The replicas from before.
fn back(state: &PartitionImage) -> Assignment {
    let is_original = |replica: &&Replica| !state.adding.contains(&replica.broker_id);
    Assignment {
        replicas: state.replicas.iter().filter(is_original).copied().collect(),
        adding: Vec::new(),
        removing: Vec::new(),
    }
}

/// Begins, changes or cancels reassignments, each by itself; what is refused stays as it is.
pub(super) fn alter(
    draft: &mut Draft,
    request: &AlterPartitionReassignmentsRequest,
    settings: &dyn Settings,
) -> AlterPartitionReassignmentsResponse {
    let responses = request.topics.iter().map(|topic| ReassignableTopicResponse {
        name: topic.name.clone(),
        partitions: topic
            .partitions
            .iter()
            .map(|partition| {
                let may_resize = request.allow_replication_factor_change;
                let outcome = alter_one(draft, &topic.name, partition, may_resize, settings);
                ReassignablePartitionResponse {
                    partition_index: partition.partition_index,
                    error_code: outcome
                        .as_ref()
                        .map_or_else(ReassignmentError::code, |()| ErrorCode::None)
                        .code(),
                    error_message: outcome.err().map(|error| error.to_string().into()),
                    ..Default::default()
                }
            })
            .collect(),
        ..Default::default()
    });
    AlterPartitionReassignmentsResponse {
        responses: responses.collect(),
        allow_replication_factor_change: request.allow_replication_factor_change,
        ..Default::default()
    }
}

fn alter_one(
    draft: &mut Draft,
    topic_name: &str,
    request: &ReassignablePartition,
    may_resize: bool,
    settings: &dyn Settings,
) -> Result<(), ReassignmentError> {
    let image = draft.image();
    let topic = image
        .topic_by_name(topic_name)
        .ok_or_else(|| ReassignmentError::UnknownTopic(topic_name.to_owned()))?;
    let number = request.partition_index;
    let partition = TopicIdPartition { topic_id: topic.topic_id, partition: number };
    let state = image.partition(partition).ok_or_else(|| ReassignmentError::UnknownPartition {
        topic: topic_name.to_owned(),
        partition: number,
    })?;
    let situation = Situation::usual(image, settings, topic.topic_id);
    let next = match &request.replicas {
        None => cancelled(&situation, state, (topic_name, number))?,
        Some(target) => {
            check_target(image, target)?;
            let from = state.target_ids().count();
            if !may_resize && from != target.len() {
                return Err(ReassignmentError::OtherReplicationFactor { from, to: target.len() });
            }
            reassigned(&situation, state, target)?
        }
    };
    if let Some(state) = next {
        draft.push(Record::Partition { partition, state });
    }
    balance::forget(draft, partition);
    Ok(())
}

/// Reassignments under way: all, or those among the partitions asked for. What is unknown is left out.
pub(super) fn list(
    image: &MetadataImage,
    request: &ListPartitionReassignmentsRequest,
) -> ListPartitionReassignmentsResponse {
    let topics: Vec<OngoingTopicReassignment> = match &request.topics {
        None => image
            .topic_ids
            .values()
            .filter_map(|topic_id| image.topics.get(topic_id))
            .filter_map(|topic| ongoing(topic, (0..).take(topic.partitions.len())))
            .collect(),
        Some(asked) => asked
            .iter()
            .filter_map(|asked| {
                ongoing(image.topic_by_name(&asked.name)?, asked.partition_indexes.iter().copied())
            })
            .collect(),
    };
    ListPartitionReassignmentsResponse { topics, ..Default::default() }
}

fn ongoing(topic: &TopicImage, numbers: impl Iterator<Item = i32>) -> Option<OngoingTopicReassignment> {
    let partitions: Vec<OngoingPartitionReassignment> = numbers
        .filter_map(|number| {
            let state = topic.partitions.get(usize::try_from(number).ok()?)?;
            state.is_reassigning().then(|| OngoingPartitionReassignment {
                partition_index: number,
                replicas: state.replica_ids().collect(),
                adding_replicas: state.adding.clone(),
                removing_replicas: state.removing.clone(),
                ..Default::default()
            })
        })
        .collect();
    (!partitions.is_empty()).then(|| OngoingTopicReassignment {
        name: topic.name.as_str().into(),
        partitions,
        ..Default::default()
    })
}

#[cfg(test)]
#[path = "reassignments_test.rs"]
mod tests;
