//! What the balancer asks the controller for: marks on brokers, moves, and the rate at which these are filled.
//!
//! Moves are reassignments like any other; that they are the balancer's is remembered with them, so that only they are
//! throttled by its rate and cancelled with its task. Every request may be repeated, and changes nothing then.

use std::collections::BTreeSet;

use millrace_management::{ApiError, code};

use super::Settings;
use super::draft::Draft;
use super::elections;
use super::partition_state::Situation;
use super::reassignments::{cancelled, reassigned};
use super::requests::ControllerResponse;
use crate::metadata::image::{BalanceImage, BrokerId, BrokerMark, PartitionImage, TopicIdPartition};
use crate::metadata::records::Record;

/// One partition to be moved by the balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionMove {
    /// Which partition.
    pub partition: TopicIdPartition,
    /// Replicas that the plan was made for; a partition that has others by now stays as it is.
    pub from: Vec<BrokerId>,
    /// Replicas that it is to have; the first one is the preferred leader.
    pub to: Vec<BrokerId>,
}

/// Marks a broker, or takes its mark away. A drain that ends this way takes its moves back as far as that is possible
/// without losing records; the others are completed.
pub(super) fn mark(
    draft: &mut Draft,
    broker_id: BrokerId,
    mark: Option<BrokerMark>,
    settings: &dyn Settings,
) -> ControllerResponse {
    let image = draft.image();
    let before = image.marks.get(&broker_id).copied();
    // The mark of a broker that is gone can be taken away.
    if mark.is_some() && !image.brokers.contains_key(&broker_id) {
        return ControllerResponse::Refused(ApiError {
            code: code::BROKER_NOT_FOUND.to_owned(),
            message: format!("there is no broker {broker_id}"),
        });
    }
    if before == mark {
        return ControllerResponse::Done;
    }
    draft.push(Record::BrokerMark { broker_id, mark });
    if before == Some(BrokerMark::Draining) {
        cancel_moves(draft, settings, |state| state.removing.contains(&broker_id));
    }
    ControllerResponse::Done
}

/// Begins or ends spreading replicas and leaders evenly.
pub(super) fn set_rebalancing(
    draft: &mut Draft,
    rebalancing: bool,
    cancel: bool,
    settings: &dyn Settings,
) -> ControllerResponse {
    let balance = draft.image().balance.clone();
    if balance.rebalancing != rebalancing {
        draft.push(Record::Balance(BalanceImage { rebalancing, ..balance }));
    }
    if cancel {
        // Those of a drain go on.
        let draining: BTreeSet<BrokerId> = draining(draft).collect();
        cancel_moves(draft, settings, |state| !state.removing.iter().any(|id| draining.contains(id)));
    }
    ControllerResponse::Done
}

/// Sets the rate of the balancer's moves, and forgets those that are over.
pub(super) fn set_rate(draft: &mut Draft, rate: Option<u64>) -> ControllerResponse {
    let moves = draft.image().balancer_moves().collect();
    keep(draft, |balance| BalanceImage { rate, moves, ..balance });
    ControllerResponse::Done
}

/// Takes back the moves that fill one of these brokers, unless it is in service again or has all records already.
pub(super) fn take_back_moves(
    draft: &mut Draft,
    brokers: &[BrokerId],
    settings: &dyn Settings,
) -> ControllerResponse {
    let image = draft.image();
    let is_away = |id: &&BrokerId| image.brokers.get(*id).is_none_or(|broker| broker.fenced);
    let away: BTreeSet<BrokerId> = brokers.iter().filter(is_away).copied().collect();
    cancel_moves(draft, settings, |state| {
        state.adding.iter().any(|id| away.contains(id) && !state.isr.contains(id))
    });
    ControllerResponse::Done
}

/// Begins moves whose partitions are as the plan expects them; the others stay as they are. New orders of the same
/// replicas take effect at once, and their first replica leads if it is in sync.
pub(super) fn move_partitions(
    draft: &mut Draft,
    moves: &[PartitionMove],
    settings: &dyn Settings,
) -> ControllerResponse {
    let mut begun: BTreeSet<TopicIdPartition> = draft.image().balancer_moves().collect();
    for wanted in moves {
        let image = draft.image();
        let Some(topic) = image.topics.get(&wanted.partition.topic_id).cloned() else { continue };
        let as_expected = |state: &&PartitionImage| {
            !state.is_reassigning() && state.replica_ids().eq(wanted.from.iter().copied())
        };
        let Some(state) = image.partition(wanted.partition).filter(as_expected) else { continue };
        let situation = Situation::usual(image, settings, topic.topic_id);
        match reassigned(&situation, state, &wanted.to) {
            Ok(Some(state)) => {
                if state.is_reassigning() {
                    begun.insert(wanted.partition);
                }
                draft.push(Record::Partition { partition: wanted.partition, state });
            }
            Ok(None) => {}
            // Its brokers are not registered any more: the next plan knows.
            Err(_) => continue,
        }
        // A first replica that is not in sync leads once it is.
        let _ = elections::elect_preferred(draft, &topic.name, wanted.partition.partition, settings);
    }
    keep(draft, |balance| BalanceImage { moves: begun, ..balance });
    ControllerResponse::Done
}

/// Somebody else has said where a partition is to be: it is not the balancer's move any more.
pub(super) fn forget(draft: &mut Draft, partition: TopicIdPartition) {
    keep(draft, |mut balance| {
        balance.moves.remove(&partition);
        balance
    });
}

fn keep(draft: &mut Draft, change: impl FnOnce(BalanceImage) -> BalanceImage) {
    let before = draft.image().balance.clone();
    let next = change(before.clone());
    if next != before {
        draft.push(Record::Balance(next));
    }
}

fn draining(draft: &Draft) -> impl Iterator<Item = BrokerId> + '_ {
    draft.image().marks.iter().filter(|(_, mark)| **mark == BrokerMark::Draining).map(|(id, _)| *id)
}

fn cancel_moves(draft: &mut Draft, settings: &dyn Settings, concerns: impl Fn(&PartitionImage) -> bool) {
    let moves: Vec<TopicIdPartition> = draft.image().balancer_moves().collect();
    let mut left = BTreeSet::new();
    for partition in moves {
        let image = draft.image();
        let (Some(topic), Some(state)) = (image.topics.get(&partition.topic_id), image.partition(partition))
        else {
            continue;
        };
        if !concerns(state) {
            left.insert(partition);
            continue;
        }
        let situation = Situation::usual(image, settings, topic.topic_id);
        match cancelled(&situation, state, (&topic.name, partition.partition)) {
            Ok(Some(state)) => draft.push(Record::Partition { partition, state }),
            Ok(None) => {}
            // Only what was brought is in sync: the move is completed instead.
            Err(_) => {
                left.insert(partition);
            }
        }
    }
    keep(draft, |balance| BalanceImage { moves: left, ..balance });
}

#[cfg(test)]
#[path = "balance_test.rs"]
mod tests;
