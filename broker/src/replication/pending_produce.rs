//! Appends that wait for their answer.

use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::ErrorCode;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::partition::{Appended, Partition, Progress};
use super::registrations::Registrations;
use super::{ProduceOutcome, RequiredAcks};

/// Appends that have their offsets and wait to be durable. See [`ReplicaManager::append`].
///
/// [`ReplicaManager::append`]: super::ReplicaManager::append
#[derive(Debug)]
pub struct PendingProduce {
    pub(super) acks: RequiredAcks,
    pub(super) items: Vec<PendingItem>,
}

#[derive(Debug)]
pub(super) struct PendingItem {
    /// The answer, once the append is durable.
    pub(super) outcome: ProduceOutcome,
    pub(super) waiting: Option<(Arc<Partition>, Appended)>,
}

impl PendingProduce {
    /// The second half of [`ReplicaManager::produce`]: resolves when everything is as durable as was asked for, has
    /// failed, or `timeout` is over (P11).
    ///
    /// [`ReplicaManager::produce`]: super::ReplicaManager::produce
    pub async fn outcome(mut self, timeout: Duration) -> Vec<ProduceOutcome> {
        if self.acks == RequiredAcks::None {
            return self.items.into_iter().map(|item| item.outcome).collect();
        }
        let signal = Arc::new(Notify::new());
        let deadline = Instant::now() + timeout;
        let mut registrations = Registrations::new(&signal, self.acks.into());
        for (partition, appended) in self.items.iter().filter_map(|item| item.waiting.as_ref()) {
            registrations.add(partition, appended.last_offset + 1);
        }
        while !self.settle() {
            if tokio::time::timeout_at(deadline, signal.notified()).await.is_err() {
                self.give_up();
                break;
            }
            if self.settle() {
                break;
            }
            // Leadership may have changed without being lost: then the wait goes on.
            registrations.clear();
            for (partition, appended) in self.items.iter().filter_map(|item| item.waiting.as_ref()) {
                registrations.add(partition, appended.last_offset + 1);
            }
        }
        self.items.into_iter().map(|item| item.outcome).collect()
    }

    /// Looks at what is still waiting; true if nothing is.
    fn settle(&mut self) -> bool {
        let mut all = true;
        for item in &mut self.items {
            let Some((partition, appended)) = &item.waiting else { continue };
            match partition.progress(appended, self.acks) {
                Progress::Pending => {
                    all = false;
                    continue;
                }
                Progress::Done => {}
                Progress::Failed(error) => item.outcome = ProduceOutcome::failed(error, None),
            }
            item.waiting = None;
        }
        all
    }

    fn give_up(&mut self) {
        if self.settle() {
            return;
        }
        for item in self.items.iter_mut().filter(|item| item.waiting.is_some()) {
            let message = "the records were not durable in time; they may still become so";
            item.outcome = ProduceOutcome::failed(ErrorCode::RequestTimedOut, Some(message.to_owned()));
        }
    }
}
