//! What a leader knows of its followers, and what it carries for them and for clients.

use millrace_protocol::ErrorCode;
use tokio::time::Instant;

use super::{FollowerView, Partition};
use crate::metadata::image::BrokerId;
use crate::replication::leadership::{FollowerLog, Leadership, Proposal};
use crate::replication::{ReplicaProgress, ThrottledReplicas};
use crate::storage::{Reader, StorageError};

impl Partition {
    /// Judges a fetch of a follower and takes note of its progress. Also returns the in-sync replicas to propose, if the
    /// follower can join them (L7).
    pub fn follower_fetched(
        &self,
        (broker_id, broker_epoch): (BrokerId, i64),
        leader_epoch: i32,
        log: FollowerLog,
    ) -> Result<(FollowerView, Option<Proposal>), ErrorCode> {
        self.check_leader(Some(leader_epoch))?;
        let is_ours = self.watermark.leadership(|leadership| leadership.has_follower(broker_id));
        if is_ours != Some(true) {
            // The image of one of the two is old.
            return Err(ErrorCode::UnknownLeaderEpoch);
        }
        let view = self.follower_view(leader_epoch, log.log_end, log.last_epoch)?;
        if view.diverging_epoch.is_some() {
            return Ok((view, None));
        }
        // The logs are the same up to where the follower's ends, and so is the part of it that is durable.
        let log = FollowerLog { durable_end: log.durable_end.min(log.log_end), ..log };
        let proposal = self.watermark.follower_fetched(broker_id, broker_epoch, leader_epoch, log);
        Ok((FollowerView { high_watermark: self.high_watermark(), ..view }, proposal))
    }

    /// What a follower that stands at `offset` can get.
    pub fn follower_view(
        &self,
        leader_epoch: i32,
        offset: i64,
        last_fetched_epoch: Option<i32>,
    ) -> Result<FollowerView, ErrorCode> {
        self.check_leader(Some(leader_epoch))?;
        let ends = self.log.ends();
        let (log_start, fetchable_end) = (ends.log_start, ends.readable_end(Reader::Replica));
        let diverging_epoch = self.diverges(offset, last_fetched_epoch)?;
        if diverging_epoch.is_none() && !(log_start..=ends.log_end).contains(&offset) {
            return Err(ErrorCode::OffsetOutOfRange);
        }
        Ok(FollowerView { log_start, fetchable_end, high_watermark: self.high_watermark(), diverging_epoch })
    }

    /// In-sync followers whose logs hold `offset`, each with its end; none where this broker does not lead.
    pub fn readable_followers(&self, offset: i64) -> Vec<(BrokerId, i64)> {
        self.watermark.leadership(|leadership| leadership.readable_followers(offset)).unwrap_or_default()
    }

    /// Whether this broker leads the partition, and is throttled in that.
    pub(in crate::replication) fn is_throttled_leader(&self) -> bool {
        let settings = self.settings();
        let own = || self.watermark.leadership(|leadership| leadership.own_id());
        match &settings.leader_throttled {
            ThrottledReplicas::None => false,
            listed => own().is_some_and(|own| listed.contains(self.id.partition, own)),
        }
    }

    /// Whether this broker leads the partition, and the high watermark waits for that follower.
    pub(in crate::replication) fn waits_for(&self, broker_id: BrokerId) -> bool {
        self.watermark.waits_for(broker_id)
    }

    /// Whether this broker leads the partition, and that follower is in sync.
    pub(in crate::replication) fn has_in_sync_follower(&self, broker_id: BrokerId) -> bool {
        self.watermark.leadership(|leadership| leadership.is_in_sync(broker_id)) == Some(true)
    }

    /// How far the followers are; nothing where this broker does not lead. Blocks on the disk.
    pub(in crate::replication) fn followers_progress(
        &self,
        now: Instant,
    ) -> Result<Vec<ReplicaProgress>, StorageError> {
        let positions = self.watermark.leadership(|leadership| leadership.positions(now));
        let progress = positions.unwrap_or_default().into_iter().map(|position| {
            let bytes_done = self.log.size_below(position.durable_end.unwrap_or(0))?;
            Ok(ReplicaProgress {
                partition: self.id,
                broker_id: position.broker_id,
                bytes_done,
                bytes_left: self.log.size().saturating_sub(bytes_done),
                bytes_per_second: position.bytes_per_second,
            })
        });
        progress.collect()
    }

    /// Bytes per second that this broker takes in and gives out as the leader, over the last minute or so; `None` where
    /// it does not lead, or not for long enough to tell.
    pub(in crate::replication) fn traffic(&self, now: Instant) -> Option<u64> {
        let mean = self.traffic.bytes_per_second(now);
        mean.filter(|_| self.role().leads)
    }

    /// Takes note of records that were sent to a follower; true if they fill it, as it is not in sync.
    pub(in crate::replication) fn sent_to_follower(
        &self,
        broker_id: BrokerId,
        bytes: usize,
        now: Instant,
    ) -> bool {
        let filled = |leadership: &mut Leadership| leadership.filled(broker_id, bytes as u64, now);
        let fills = self.watermark.leadership(filled);
        if fills == Some(false) {
            self.traffic.add(bytes);
        }
        fills == Some(true)
    }
}
