//! What clients' fetches get: records there are, a better replica to ask, or a wait for more.

use std::sync::Arc;

use millrace_protocol::{ErrorCode, RecordBytes};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::manager::Inner;
use super::partition::{Bounds, Partition};
use super::registrations::Registrations;
use super::waiters::Awaited;
use super::{FetchPartition, FetchRequestPlan, FetchedPartition};
use crate::metadata::image::BrokerId;
use crate::storage::{ReadRange, Reader};

/// The partitions of a plan with what may be seen of them, or why they cannot be read.
type PlanBounds = Vec<Result<(Arc<Partition>, Bounds), ErrorCode>>;

impl Inner {
    fn bounds(&self, plan: &FetchRequestPlan) -> PlanBounds {
        let bounds = plan.partitions.iter().map(|part| {
            let partition = self.find(part.partition)?;
            let bounds = partition.bounds(part, plan.may_read_followers)?;
            Ok((partition, bounds))
        });
        bounds.collect()
    }

    /// Reads what there is now: from memory if that suffices, else on a thread that may block.
    pub(super) async fn read(
        self: &Arc<Self>,
        plan: &Arc<FetchRequestPlan>,
    ) -> (PlanBounds, Vec<FetchedPartition>) {
        let bounds = self.bounds(plan);
        if let Some(fetched) = self.read_within(plan, &bounds, true) {
            return (bounds, fetched);
        }
        let (inner, plan) = (Arc::clone(self), Arc::clone(plan));
        let read = move || {
            let fetched = inner.read_within(&plan, &bounds, false).expect("the disk may be used");
            (bounds, fetched)
        };
        match crate::blocking::spawn_blocking(read).await {
            Ok(done) => done,
            // Only a runtime that is shutting down cancels; nobody will read the answer.
            Err(error) if error.is_cancelled() => (Vec::new(), Vec::new()),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// The follower that a client should read from, if there is a better one than this leader (F13): in its rack, in
    /// sync, and the one with the most.
    fn preferred_read_replica(
        &self,
        plan: &FetchRequestPlan,
        part: &FetchPartition,
        partition: &Partition,
    ) -> Option<BrokerId> {
        if !self.options.rack_aware_reads || plan.rack.is_empty() || !plan.may_read_followers {
            return None;
        }
        let image = self.options.images.borrow();
        let in_rack = |broker_id: BrokerId| {
            let broker = image.brokers.get(&broker_id);
            broker.is_some_and(|broker| !broker.fenced && broker.rack.as_deref() == Some(&plan.rack))
        };
        if image.partition(part.partition).is_none_or(|state| in_rack(state.leader)) {
            return None;
        }
        let followers = partition.readable_followers(part.fetch_offset).into_iter();
        let best = followers.filter(|(broker_id, _)| in_rack(*broker_id)).max_by_key(|(_, end)| *end);
        best.map(|(broker_id, _)| broker_id)
    }

    /// Reads in the order of the plan; `None` if the disk is needed and `memory_only` forbids it.
    fn read_within(
        &self,
        plan: &FetchRequestPlan,
        bounds: &[Result<(Arc<Partition>, Bounds), ErrorCode>],
        memory_only: bool,
    ) -> Option<Vec<FetchedPartition>> {
        let mut left = usize::try_from(plan.max_bytes).unwrap_or(0);
        let mut nothing_yet = true;
        let mut fetched = Vec::with_capacity(bounds.len());
        for (part, bounds) in plan.partitions.iter().zip(bounds) {
            let fail = |error| FetchedPartition::failed(error, self.hint(part.partition, error));
            let (partition, bounds) = match bounds {
                Ok(bounds) => bounds,
                Err(error) => {
                    fetched.push(fail(*error));
                    continue;
                }
            };
            let max_bytes = usize::try_from(part.max_bytes).unwrap_or(0).min(left);
            let until = if plan.read_committed { bounds.last_stable_offset } else { bounds.high_watermark };
            let preferred_read_replica = self.preferred_read_replica(plan, part, partition);
            let skip = bounds.diverging_epoch.is_some()
                || preferred_read_replica.is_some()
                || (max_bytes == 0 && !nothing_yet);
            let records = if skip {
                Ok(RecordBytes::new())
            } else {
                let range = ReadRange {
                    reader: Reader::Consumer,
                    offset: part.fetch_offset,
                    until,
                    max_bytes,
                    at_least_one: nothing_yet,
                };
                partition.read(range, memory_only).transpose()?
            };
            fetched.push(match records {
                Ok(records) => {
                    left = left.saturating_sub(records.len());
                    nothing_yet &= records.is_empty();
                    FetchedPartition {
                        error: ErrorCode::None,
                        high_watermark: bounds.high_watermark,
                        last_stable_offset: bounds.last_stable_offset,
                        log_start_offset: bounds.log_start,
                        records,
                        leader: None,
                        diverging_epoch: bounds.diverging_epoch,
                        preferred_read_replica,
                    }
                }
                Err(error) => fail(error),
            });
        }
        Some(fetched)
    }

    /// Waits until `min_bytes` are there, something has happened to a partition, or the time is over (F5). Returns
    /// whether reading again is worth it.
    pub(super) async fn wait_for_bytes(
        &self,
        plan: &FetchRequestPlan,
        before: &[Result<(Arc<Partition>, Bounds), ErrorCode>],
        read: &[u64],
        min_bytes: u64,
        deadline: Instant,
    ) -> bool {
        let signal = Arc::new(Notify::new());
        let mut registrations = Registrations::new(&signal, Awaited::Visible);
        let mut arrived = false;
        loop {
            registrations.clear();
            for (partition, _) in before.iter().flatten() {
                registrations.add(partition, partition.high_watermark() + 1);
            }
            let mut bytes = 0;
            for ((part, before), read) in plan.partitions.iter().zip(before).zip(read) {
                let Ok((partition, before)) = before else { return true };
                let Ok(now) = partition.bounds(part, plan.may_read_followers) else { return true };
                let more = now.visible_bytes.saturating_sub(before.visible_bytes);
                arrived |= more > 0;
                bytes += (read + more).min(u64::try_from(part.max_bytes).unwrap_or(0));
            }
            if bytes >= min_bytes {
                return true;
            }
            if tokio::time::timeout_at(deadline, signal.notified()).await.is_err() {
                return arrived;
            }
        }
    }
}
