//! The part of a follower: its log is a beginning of the leader's, or is cut until it is (L3, L4).

use std::sync::Arc;

use millrace_protocol::RecordBytes;

use super::{FollowError, Partition, Role, State, producers_at};
use crate::replication::producer_state::ProducerStates;
use crate::replication::producer_undo::UndoLog;
use crate::storage::batch::{StoredBatchError, parse_whole};
use crate::storage::{Admission, AppendBatch, EpochEnd, LogEnds, StorageError};

impl Partition {
    /// For a follower: where its log ends, and the epoch of the last record in it.
    pub fn fetch_position(&self) -> (i64, Option<i32>) {
        self.fetch_position_at(self.log.ends().log_end)
    }

    /// The same for a log that ends at `log_end`.
    pub(in crate::replication) fn fetch_position_at(&self, log_end: i64) -> (i64, Option<i32>) {
        (log_end, self.log.epoch_at(log_end - 1))
    }

    /// For a follower: appends what the leader sent (L4). Returns the log end; it is durable later.
    pub fn append_fetched(
        &self,
        leader_epoch: i32,
        records: &RecordBytes,
        admission: &Arc<Admission>,
    ) -> Result<i64, FollowError> {
        // Checked before anything is appended, and without the lock.
        let mut batches = Vec::new();
        // They come in one piece, but for those that never were on the wire.
        let mut rest = records.clone().into_bytes();
        while !rest.is_empty() {
            let header = parse_whole(&rest).map_err(|error| rejected(&error))?;
            if header.partition_leader_epoch > leader_epoch {
                return Err(FollowError::Rejected(format!(
                    "a batch of epoch {}, which is later than the leader's, {leader_epoch}",
                    header.partition_leader_epoch
                )));
            }
            batches.push(AppendBatch { bytes: rest.split_to(header.size_in_bytes()), header });
        }
        let mut state = self.state.lock();
        let role = state.role;
        if role.leader_epoch != leader_epoch || role.follows.is_none() {
            return Err(FollowError::Stale);
        }
        for batch in batches {
            let header = batch.header;
            self.log.append(batch, Arc::clone(admission))?;
            self.record(&mut state, &header);
        }
        Ok(self.log.ends().log_end)
    }

    /// For a follower: what the leader says about itself. Blocks on the disk when the log start moves.
    pub fn follow_ends(
        &self,
        leader_epoch: i32,
        high_watermark: i64,
        log_start: i64,
    ) -> Result<(), StorageError> {
        if self.role().leader_epoch != leader_epoch {
            return Ok(());
        }
        self.watermark.leader_says(high_watermark);
        let ends = self.log.ends();
        if log_start > ends.log_start && log_start <= ends.durable_end {
            self.log.set_log_start(log_start)?;
        }
        Ok(())
    }

    /// Whether [`follow_ends`](Self::follow_ends) would move the log start.
    pub fn is_behind_log_start(&self, log_start: i64) -> bool {
        let ends = self.log.ends();
        log_start > ends.log_start && log_start <= ends.durable_end
    }

    /// For a follower whose end the leader's log does not have: whether it has to begin where that one starts. The leader
    /// has deleted what would come next; or there is nothing here by which the two could be compared, and the leader, elected
    /// uncleanly, has less.
    pub fn is_apart_from(&self, leader_log_start: i64) -> bool {
        let ends = self.log.ends();
        let is_empty = ends.log_start == ends.log_end;
        leader_log_start > ends.log_end || (is_empty && leader_log_start >= 0)
    }

    /// For a follower: cuts off what the leader does not have (L3), after it said where the logs part. The follower asks
    /// again afterwards. Blocks on the disk.
    pub fn truncate_to(&self, leader_epoch: i32, leader: EpochEnd) -> Result<(), FollowError> {
        let offset = match self.log.epoch_end(leader.leader_epoch) {
            Some(own) if own.leader_epoch == leader.leader_epoch => own.end_offset.min(leader.end_offset),
            // The leader's epoch is not known here: what is left ends with the epoch before it.
            Some(own) => own.end_offset,
            None => leader.end_offset,
        };
        let offset = offset.min(leader.end_offset.max(0));
        let ends = self.log.ends();
        if offset < ends.log_start {
            return self.start_anew(leader_epoch, offset.max(0));
        }
        self.reset(leader_epoch, |state| {
            let ends = self.log.truncate(offset)?;
            self.cut_producers(state, ends.log_end)?;
            Ok(ends)
        })
    }

    /// For a follower: drops the log and begins at `offset`, as the leader does not have what would connect the two.
    /// Blocks on the disk.
    pub fn start_anew(&self, leader_epoch: i32, offset: i64) -> Result<(), FollowError> {
        self.reset(leader_epoch, |state| {
            let started = self.log.start_anew(offset);
            state.forget_producers(offset);
            started
        })
    }

    /// Brings the producers' state in line with a log that was cut to `log_end`.
    fn cut_producers(&self, state: &mut State, log_end: i64) -> Result<(), StorageError> {
        let State { producers, undo_log, snapshots, .. } = &mut *state;
        snapshots.retain(|snapshot| snapshot.offset <= log_end);
        if undo_log.cut(producers, log_end) {
            return Ok(());
        }
        match producers_at(self.id, self.log.as_ref(), snapshots, log_end, self.steady_clock.now_ms()) {
            Ok(found) => (*producers, *undo_log) = found,
            Err(error) => {
                // It must not know batches any more that are cut off: their repetitions would not be stored.
                state.forget_producers(log_end);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Changes the end of a follower's log. Only its fetcher appends to it, and that waits for this.
    fn reset(
        &self,
        leader_epoch: i32,
        change: impl FnOnce(&mut State) -> Result<LogEnds, StorageError>,
    ) -> Result<(), FollowError> {
        let is_stale = |role: Role| role.leader_epoch != leader_epoch || role.follows.is_none();
        if is_stale(self.role()) {
            return Err(FollowError::Stale);
        }
        // Under the lock: nobody becomes leader of a log that is being cut.
        let mut state = self.state.lock();
        if is_stale(state.role) {
            return Err(FollowError::Stale);
        }
        let ends = change(&mut state)?;
        tracing::info!(
            topic_id = %self.id.topic_id, partition = self.id.partition, leader_epoch,
            log_start = ends.log_start, log_end = ends.log_end, "brought the log in line with its leader's"
        );
        Ok(())
    }
}

impl State {
    /// Forgets what producers have written, as in a log that begins at `log_end`.
    fn forget_producers(&mut self, log_end: i64) {
        self.producers = ProducerStates::default();
        self.undo_log = UndoLog::new(log_end);
        self.snapshots.clear();
    }
}

fn rejected(error: &StoredBatchError) -> FollowError {
    FollowError::Rejected(error.to_string())
}
