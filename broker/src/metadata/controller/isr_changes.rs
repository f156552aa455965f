//! Leaders' proposals of in-sync replicas (Kafka's AlterPartition, KIP-497, KIP-841).
//!
//! A proposal counts only if it was made on the state as it is: by the leader of the current leader epoch, for the
//! current partition epoch. Members that join must be the processes that the leader heard of, on the volumes that their
//! replicas were assigned to.

use std::collections::BTreeSet;

use millrace_protocol::ErrorCode;

use super::Settings;
use super::draft::Draft;
use super::partition_state::{Situation, may_join, next_state};
use super::requests::{ControllerResponse, IsrChange};
use crate::metadata::image::{BrokerId, MetadataImage, PartitionImage};
use crate::metadata::records::Record;

/// Decides each change by itself; what is refused stays as it is.
pub(super) fn alter(
    draft: &mut Draft,
    broker_id: BrokerId,
    broker_epoch: i64,
    changes: &[IsrChange],
    settings: &dyn Settings,
) -> ControllerResponse {
    let proposer = draft.image().brokers.get(&broker_id);
    let current = proposer.is_some_and(|broker| broker.broker_epoch == broker_epoch);
    let errors = changes.iter().map(|change| {
        if current { alter_one(draft, broker_id, change, settings) } else { ErrorCode::StaleBrokerEpoch }
    });
    ControllerResponse::PartitionsAltered(errors.collect())
}

fn alter_one(
    draft: &mut Draft,
    broker_id: BrokerId,
    change: &IsrChange,
    settings: &dyn Settings,
) -> ErrorCode {
    let next = {
        let image = draft.image();
        let (state, isr) = match check(image, broker_id, change) {
            Ok(Some(accepted)) => accepted,
            Ok(None) => return ErrorCode::None,
            Err(error) => return error,
        };
        next_state(&Situation::usual(image, settings, change.partition.topic_id), state, &isr)
    };
    if let Some(state) = next {
        // Leadership may move with the change: a leader that is stopping has waited for somebody to join. That is no
        // error either: whoever took it for a refusal would go by its old in-sync replicas again, and commit alone.
        draft.push(Record::Partition { partition: change.partition, state });
    }
    ErrorCode::None
}

/// The state that the change applies to, and its in-sync replicas: those that stay in their order, then those that join.
/// `None` if the change is in effect already.
fn check<'a>(
    image: &'a MetadataImage,
    broker_id: BrokerId,
    change: &IsrChange,
) -> Result<Option<(&'a PartitionImage, Vec<BrokerId>)>, ErrorCode> {
    let topic_id = change.partition.topic_id;
    if !image.topics.contains_key(&topic_id) {
        return Err(ErrorCode::UnknownTopicId);
    }
    let state = image.partition(change.partition).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    if change.leader_epoch > state.leader_epoch || change.partition_epoch > state.partition_epoch {
        // The proposer knows more than this image, which then is not the controller's.
        return Err(ErrorCode::NotController);
    }
    if change.leader_epoch < state.leader_epoch {
        return Err(ErrorCode::FencedLeaderEpoch);
    }
    let wanted: BTreeSet<BrokerId> = change.isr.iter().map(|(id, _)| *id).collect();
    let assigned = |id: &BrokerId| state.replica_ids().any(|replica| replica == *id);
    let well_formed = wanted.len() == change.isr.len()
        && wanted.contains(&broker_id)
        && wanted.iter().all(assigned)
        && state.leader == broker_id;
    if !well_formed {
        return Err(ErrorCode::InvalidRequest);
    }
    // Asked again because the answer was lost, perhaps.
    if wanted == state.isr.iter().copied().collect() {
        return Ok(None);
    }
    if change.partition_epoch < state.partition_epoch {
        return Err(ErrorCode::InvalidUpdateVersion);
    }
    let joining: Vec<(BrokerId, i64)> =
        change.isr.iter().copied().filter(|(id, _)| !state.isr.contains(id)).collect();
    let eligible = joining.iter().all(|(id, broker_epoch)| {
        let replica = state.replicas.iter().find(|replica| replica.broker_id == *id);
        replica.is_some_and(|replica| may_join(image, replica, *broker_epoch))
    });
    if !eligible {
        return Err(ErrorCode::IneligibleReplica);
    }
    let staying = state.isr.iter().copied().filter(|id| wanted.contains(id));
    let isr = staying.chain(joining.iter().map(|(id, _)| *id)).collect();
    Ok(Some((state, isr)))
}

#[cfg(test)]
#[path = "isr_changes_test.rs"]
mod tests;
