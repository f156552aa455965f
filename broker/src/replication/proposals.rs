//! Tells the controller which replicas are in sync, as the leaders on this broker find it (L6, L7).
//!
//! A leadership holds the change that is under way; here is only who still has to be asked for theirs. What the
//! controller answers is not looked at beyond refusals: a change is in effect when the image says so.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::ErrorCode;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::manager::Inner;
use crate::metadata::controller::IsrChange;
use crate::metadata::image::TopicIdPartition;

/// Most changes in one request to the controller.
const MAX_CHANGES: usize = 10_000;

/// Pause before the controller is asked again that could not be reached or did not answer.
const RETRY: Duration = Duration::from_millis(100);

/// Partitions with a change under way that the controller has not been told of.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    waiting: Mutex<BTreeSet<TopicIdPartition>>,
    changed: Notify,
}

impl Proposals {
    pub(super) fn add(&self, partition: TopicIdPartition) {
        self.waiting.lock().insert(partition);
        self.changed.notify_one();
    }

    fn take(&self) -> Vec<TopicIdPartition> {
        let mut waiting = self.waiting.lock();
        let mut taken = std::mem::take(&mut *waiting);
        if taken.len() > MAX_CHANGES
            && let Some(first_left) = taken.iter().nth(MAX_CHANGES).copied()
        {
            *waiting = taken.split_off(&first_left);
            self.changed.notify_one();
        }
        taken.into_iter().collect()
    }
}

/// Sends proposals until the manager stops.
pub(super) async fn send(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            biased;
            () = inner.stopping.cancelled() => return,
            () = inner.proposals.changed.notified() => {}
        }
        let changes: Vec<IsrChange> =
            inner.proposals.take().into_iter().filter_map(|id| change_of(&inner, id)).collect();
        if changes.is_empty() {
            continue;
        }
        let asked = inner.options.peers.alter_partitions(changes.clone());
        let outcome = tokio::select! {
            biased;
            () = inner.stopping.cancelled() => return,
            outcome = asked => outcome,
        };
        match outcome {
            Ok(errors) => {
                let (mut changed, mut again) = (0, Vec::new());
                for (change, error) in changes.iter().zip(errors) {
                    match take_answer(&inner, change, error) {
                        Answer::InEffect => changed += 1,
                        Answer::Refused => {}
                        Answer::Unclear => again.push(change.partition),
                    }
                }
                if changed > 0 {
                    tracing::info!(partitions = changed, "in-sync replicas changed");
                }
                if !again.is_empty() {
                    // Mostly the image is old, and the next one ends the change.
                    tokio::time::sleep(RETRY).await;
                    again.into_iter().for_each(|id| inner.proposals.add(id));
                }
            }
            Err(reason) => {
                tracing::debug!(reason, "the controller did not answer a change of in-sync replicas");
                tokio::time::sleep(RETRY).await;
                changes.iter().for_each(|change| inner.proposals.add(change.partition));
            }
        }
    }
}

fn change_of(inner: &Inner, id: TopicIdPartition) -> Option<IsrChange> {
    let partition = inner.online_partition(id)?;
    let proposal = partition.watermark().leadership(|leadership| leadership.proposal())??;
    let (leader_epoch, partition_epoch) = (proposal.leader_epoch, proposal.partition_epoch);
    Some(IsrChange { partition: id, leader_epoch, partition_epoch, isr: proposal.isr })
}

/// What is known of a change after the controller has answered.
enum Answer {
    InEffect,
    /// It never took effect and never will.
    Refused,
    /// It may have taken effect when it was sent before, and the answer was lost: it goes on counting for the high
    /// watermark until the image shows another state.
    Unclear,
}

fn take_answer(inner: &Inner, change: &IsrChange, error: ErrorCode) -> Answer {
    let id = change.partition;
    let isr: Vec<_> = change.isr.iter().map(|(broker_id, _)| *broker_id).collect();
    tracing::debug!(topic_id = %id.topic_id, partition = id.partition, ?isr, ?error, "change of in-sync replicas");
    match error {
        ErrorCode::None => Answer::InEffect,
        ErrorCode::IneligibleReplica => {
            if let Some(partition) = inner.online_partition(id) {
                partition.watermark().leadership(|leadership| leadership.refused(change.partition_epoch));
            }
            Answer::Refused
        }
        _ => Answer::Unclear,
    }
}
