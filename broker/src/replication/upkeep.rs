//! What is done now and then: checkpoints, deletion of old records, and a look at followers that have fallen behind.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::manager::{Inner, blocking};
use crate::storage::{CHECKPOINT_BYTES, CheckpointEntry, CheckpointNeed, StorageError};

/// Looks, per interval between checkpoints, whether one is due for another reason than many appends.
const LOOKS_PER_INTERVAL: u32 = 12;

impl Inner {
    pub(super) fn checkpoint(&self) -> Result<(), StorageError> {
        let _one_at_a_time = self.checkpointing.lock();
        let known_at = *self.applied.borrow();
        let entries = self
            .online()
            .into_iter()
            .map(|partition| CheckpointEntry { partition: partition.id(), state: Some(partition.snapshot()) })
            .collect();
        self.options.store.checkpoint(entries, known_at)
    }

    fn retain(&self) {
        let now_ms = (self.options.clock)();
        let idle_ms = i64::try_from(self.options.producer_id_expiration.as_millis()).unwrap_or(i64::MAX);
        for partition in self.online() {
            if self.stopping.is_cancelled() {
                return;
            }
            partition.expire_producers(idle_ms);
            let id = partition.id();
            match partition.log().retain(now_ms, partition.high_watermark()) {
                Ok(0) | Err(StorageError::Gone | StorageError::Failed(_) | StorageError::Closed) => {}
                Ok(bytes) => {
                    partition.watermark().tell_followers();
                    tracing::info!(topic_id = %id.topic_id, partition = id.partition, bytes, "deleted old segments");
                }
                Err(error) => {
                    tracing::error!(topic_id = %id.topic_id, partition = id.partition, %error, "deleting old segments");
                }
            }
        }
    }
}

/// Looks for followers that have fallen behind, or could join.
pub(super) async fn watch_followers(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval((inner.options.replica_lag / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = inner.stopping.cancelled() => return,
            _ = ticks.tick() => {}
        }
        for partition in inner.online() {
            let watermark = partition.watermark();
            // The mean of a minute, which is no better than how often one looks.
            let _ = partition.traffic(Instant::now());
            let is_alive = |broker_id| inner.sessions.is_alive(broker_id, inner.options.replica_lag);
            if watermark.propose_expansion(is_alive).or_else(|| watermark.propose_shrinking()).is_some() {
                inner.proposals.add(partition.id());
            }
        }
    }
}

pub(super) async fn delete_old_segments(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(inner.options.retention_check_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        tokio::select! {
            biased;
            () = inner.stopping.cancelled() => return,
            _ = ticks.tick() => {
                blocking(&inner, |inner| inner.retain()).await;
            }
        }
    }
}

/// Whether a checkpoint is due, `is_time` by the interval. On a full volume nothing is appended any more, and what it holds
/// may be garbage all the same.
fn is_due(CheckpointNeed { bytes, gives_space, is_short_of_space }: CheckpointNeed, is_time: bool) -> bool {
    bytes >= CHECKPOINT_BYTES || ((bytes > 0 || gives_space) && (is_time || is_short_of_space))
}

pub(super) async fn make_checkpoints(inner: Arc<Inner>) {
    let look = inner.options.checkpoint_interval / LOOKS_PER_INTERVAL;
    let mut ticks = tokio::time::interval(look.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut went_well) = (Instant::now(), true);
    loop {
        tokio::select! {
            biased;
            () = inner.stopping.cancelled() => return,
            _ = ticks.tick() => {}
            // Otherwise they still are many, and it is tried again with the ticks.
            () = inner.options.store.many_appended(), if went_well => {}
        }
        let is_time = last.elapsed() >= inner.options.checkpoint_interval;
        if inner.options.store.failure().borrow().is_some() {
            return;
        }
        if !is_due(inner.options.store.checkpoint_need(), is_time) {
            continue;
        }
        last = Instant::now();
        let made = blocking(&inner, |inner| inner.checkpoint()).await;
        if let Some(Err(error)) = &made {
            tracing::error!(%error, "making a checkpoint of the record store");
        }
        went_well = matches!(made, Some(Ok(())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_made_after_many_bytes_or_some_time_and_for_space_also_without_appends() {
        let need =
            |bytes, gives_space, is_short_of_space| CheckpointNeed { bytes, gives_space, is_short_of_space };
        assert!(!is_due(need(CHECKPOINT_BYTES - 1, true, false), false));
        assert!(is_due(need(CHECKPOINT_BYTES, false, false), false));
        assert!(is_due(need(1, false, false), true));
        assert!(is_due(need(0, true, false), true));
        assert!(!is_due(need(0, false, false), true), "nothing has happened");
        assert!(is_due(need(0, true, true), false), "the volume is full of what nobody needs");
        assert!(is_due(need(1, false, true), false), "something was deleted");
        assert!(!is_due(need(0, false, true), true), "it would not help");
    }
}
