//! What a leader knows of its followers, and what follows from it: the high watermark and the in-sync replicas.
//! Rules L5–L7.
//!
//! Pure: positions and the time go in. A follower's position is its durable end, so that everything below the high
//! watermark is on the disks of all in-sync replicas. The leader is one of them, and may be the slowest: followers are
//! sent what it has not synced yet. Whether a follower keeps up is another question, and asked of the log end.
//!
//! At most one change of the in-sync replicas is under way. Until the metadata says what became of it, the high
//! watermark waits for the old and the new ones together: whichever set counts in the end, nothing below it is missing
//! there.

use std::time::Duration;

use tokio::time::Instant;

use super::throttle::Meter;
use crate::metadata::image::BrokerId;

/// A partition as the metadata has it, for the broker that leads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderAssignment {
    /// The leader.
    pub own: Member,
    /// Epoch in which it leads.
    pub leader_epoch: i32,
    /// Epoch of this state.
    pub partition_epoch: i32,
    /// In-sync replicas.
    pub isr: Vec<BrokerId>,
    /// The other replicas.
    pub followers: Vec<Member>,
    /// In-sync replicas below which the high watermark stands still: `min.insync.replicas`, but never more than there
    /// are replicas, those that are being added not counted.
    pub min_isr: usize,
}

/// A broker that holds a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Broker.
    pub broker_id: BrokerId,
    /// Epoch of its registration; -1 if it is not registered.
    pub broker_epoch: i64,
    /// Whether it may become in sync: in service, not about to stop, and on the volume that the replica was assigned to.
    pub eligible: bool,
}

/// What a follower says of its log when it fetches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerLog {
    /// First offset.
    pub log_start: i64,
    /// Everything below is durable there.
    pub durable_end: i64,
    /// Where it ends.
    pub log_end: i64,
    /// Leader epoch of its last record.
    pub last_epoch: Option<i32>,
}

/// In-sync replicas that the leader wants, each with the epoch of its registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Epoch in which the proposer leads.
    pub leader_epoch: i32,
    /// State that the proposal starts from.
    pub partition_epoch: i32,
    /// All of them, the leader first.
    pub isr: Vec<(BrokerId, i64)>,
}

/// See the module documentation. One per partition and leader epoch.
#[derive(Debug)]
pub(super) struct Leadership {
    assignment: LeaderAssignment,
    /// Log end when the epoch began here.
    epoch_start: i64,
    /// Log end now: how far followers can be.
    log_end: i64,
    /// The change under way, with the registrations that it was found right for.
    proposed: Option<Vec<(BrokerId, i64)>>,
    followers: Vec<Follower>,
}

#[derive(Clone, Debug)]
struct Follower {
    member: Member,
    /// Epoch of the registration that it fetches with.
    fetching_epoch: i64,
    /// Its durable end; `None` before its first fetch in this epoch.
    durable_end: Option<i64>,
    /// Where its log starts; likewise.
    log_start: Option<i64>,
    /// The leader's log end at one of its fetches, and when that was; another one when it has all of that.
    mark: Option<(i64, Instant)>,
    /// When it last had everything that the leader had at the time, if it ever did.
    caught_up: Option<Instant>,
    /// What it was sent while it is not in sync; `None` before that, and when it is.
    filling: Option<Box<Meter>>,
}

/// How far a follower is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// Which one.
    pub(super) broker_id: BrokerId,
    /// Its durable end; `None` before its first fetch in this epoch.
    pub(super) durable_end: Option<i64>,
    /// How fast it is filled of late, if it is not in sync.
    pub(super) bytes_per_second: u64,
}

impl Follower {
    fn new(member: Member, caught_up: Option<Instant>) -> Self {
        Self {
            member,
            fetching_epoch: -1,
            durable_end: None,
            log_start: None,
            mark: None,
            caught_up,
            filling: None,
        }
    }

    /// L6: it has all of the leader's log, or had it within `lag`.
    fn is_caught_up(&self, log_end: i64, now: Instant, lag: Duration) -> bool {
        let recently = |caught_up| now.saturating_duration_since(caught_up) <= lag;
        self.has(log_end) || self.caught_up.is_some_and(recently)
    }

    /// Whether everything below `log_end` is durable there.
    fn has(&self, log_end: i64) -> bool {
        self.durable_end.is_some_and(|durable_end| durable_end >= log_end)
    }

    fn is_eligible(&self) -> bool {
        self.member.eligible && self.fetching_epoch == self.member.broker_epoch
    }
}

impl Leadership {
    /// Begins an epoch at `epoch_start`, the log end. Followers that are in sync get the time of one lag to show up.
    pub(super) fn begin(assignment: LeaderAssignment, epoch_start: i64, now: Instant) -> Self {
        let caught_up = |member: &Member| assignment.isr.contains(&member.broker_id).then_some(now);
        let new = |member: &Member| Follower::new(*member, caught_up(member));
        let followers = assignment.followers.iter().map(new).collect();
        Self { assignment, epoch_start, log_end: epoch_start, proposed: None, followers }
    }

    pub(super) fn leader_epoch(&self) -> i32 {
        self.assignment.leader_epoch
    }

    #[cfg(any(test, feature = "historical-bugs"))]
    pub(super) fn log_end(&self) -> i64 {
        self.log_end
    }

    pub(super) fn epoch_start(&self) -> i64 {
        self.epoch_start
    }

    /// Number of in-sync replicas as the metadata has them.
    pub(super) fn isr_len(&self) -> usize {
        self.assignment.isr.len()
    }

    /// Whether so few replicas are in sync that the high watermark stands still and acks=all is refused.
    pub(super) fn is_under_min_isr(&self) -> bool {
        self.assignment.isr.len() < self.assignment.min_isr
    }

    pub(super) fn min_isr(&self) -> usize {
        self.assignment.min_isr
    }

    /// Takes a newer state of the same leader epoch.
    pub(super) fn update(&mut self, assignment: LeaderAssignment) {
        debug_assert_eq!(assignment.leader_epoch, self.assignment.leader_epoch);
        if assignment.partition_epoch != self.assignment.partition_epoch {
            self.proposed = None;
        }
        let before = std::mem::take(&mut self.followers);
        let known = |member: &Member| before.iter().find(|it| it.member.broker_id == member.broker_id);
        let keep = |member: &Member| match known(member) {
            Some(follower) => {
                let in_sync = assignment.isr.contains(&member.broker_id);
                let filling = follower.filling.clone().filter(|_| !in_sync);
                Follower { member: *member, filling, ..follower.clone() }
            }
            None => Follower::new(*member, None),
        };
        self.followers = assignment.followers.iter().map(keep).collect();
        self.assignment = assignment;
    }

    /// Whether the broker holds a replica that follows this leader.
    pub(super) fn has_follower(&self, broker_id: BrokerId) -> bool {
        self.followers.iter().any(|follower| follower.member.broker_id == broker_id)
    }

    /// The leader.
    pub(super) fn own_id(&self) -> BrokerId {
        self.assignment.own.broker_id
    }

    /// Whether the metadata has the replica in sync.
    pub(super) fn is_in_sync(&self, broker_id: BrokerId) -> bool {
        self.assignment.isr.contains(&broker_id)
    }

    /// Takes note of records that a follower was sent to fill it; false if it is in sync, and they are what it always gets.
    pub(super) fn filled(&mut self, broker_id: BrokerId, bytes: u64, now: Instant) -> bool {
        if self.is_in_sync(broker_id) {
            return false;
        }
        if let Some(follower) = self.followers.iter_mut().find(|it| it.member.broker_id == broker_id) {
            follower.filling.get_or_insert_with(|| Box::new(Meter::new(now))).record(bytes, now);
        }
        true
    }

    /// How far the followers are.
    pub(super) fn positions(&self, now: Instant) -> Vec<Position> {
        let position = |it: &Follower| Position {
            broker_id: it.member.broker_id,
            durable_end: it.durable_end,
            bytes_per_second: it.filling.as_ref().map_or(0, |meter| meter.rate(now)),
        };
        self.followers.iter().map(position).collect()
    }

    /// A follower fetches, whose log is a beginning of this one.
    pub(super) fn fetched(&mut self, broker_id: BrokerId, broker_epoch: i64, log: FollowerLog, now: Instant) {
        let FollowerLog { log_start, durable_end, .. } = log;
        let in_sync = self.is_in_sync(broker_id);
        let Some(follower) = self.followers.iter_mut().find(|it| it.member.broker_id == broker_id) else {
            return;
        };
        if follower.fetching_epoch != broker_epoch && !in_sync {
            // It was away. That it had caught up before says nothing of how far it has to go now: nobody waits for it.
            (follower.caught_up, follower.mark) = (None, None);
        }
        follower.fetching_epoch = broker_epoch;
        (follower.log_start, follower.durable_end) = (Some(log_start), Some(durable_end));
        if durable_end >= self.log_end {
            follower.caught_up = Some(now);
        }
        // Once it has what the leader had at the mark it had caught up then, however much came since: a busy leader ejects
        // nobody who keeps up. Not the end at its last fetch: who asks for more before the last is durable never has that.
        if follower.mark.is_none_or(|(end, _)| durable_end >= end) {
            let at = follower.mark.map(|(_, at)| at);
            follower.caught_up = follower.caught_up.max(at);
            follower.mark = Some((self.log_end, now));
        }
    }

    /// Lowest log start of this broker, whose own is `log_start`, and of the followers that are in service (D1); -1 while
    /// one of them has not fetched in this epoch.
    pub(super) fn low_watermark(&self, log_start: i64) -> i64 {
        let in_service = self.followers.iter().filter(|it| it.member.eligible);
        in_service.map(|it| it.log_start.unwrap_or(-1)).fold(log_start, i64::min)
    }

    /// In-sync followers whose logs have `offset` or end there, each with its durable end (F13).
    pub(super) fn readable_followers(&self, offset: i64) -> Vec<(BrokerId, i64)> {
        let in_sync = self.followers.iter().filter(|it| self.assignment.isr.contains(&it.member.broker_id));
        let begun = in_sync.filter(|it| it.log_start.is_some_and(|log_start| log_start <= offset));
        let ends = begun.filter_map(|it| Some((it.member.broker_id, it.durable_end?)));
        ends.filter(|(_, end)| *end >= offset).collect()
    }

    /// The leader's log ends at `log_end` now: who had all of it before was caught up until now.
    pub(super) fn appended(&mut self, log_end: i64, now: Instant) {
        let before = self.log_end;
        if log_end <= before {
            return;
        }
        self.log_end = log_end;
        for follower in self.followers.iter_mut().filter(|it| it.has(before)) {
            follower.caught_up = Some(now);
        }
    }

    /// The high watermark, which is `current` or later, and never beyond the leader's own durable end (L5).
    pub(super) fn high_watermark(&self, current: i64, durable_end: i64, now: Instant, lag: Duration) -> i64 {
        if self.is_under_min_isr() {
            return current;
        }
        let mut lowest = durable_end;
        for follower in self.followers.iter().filter(|it| self.counts(it, now, lag)) {
            lowest = lowest.min(follower.durable_end.unwrap_or(i64::MIN));
        }
        lowest.max(current)
    }

    /// Whether the high watermark waits for the follower: it is in sync, or may be any moment.
    fn counts(&self, follower: &Follower, now: Instant, lag: Duration) -> bool {
        let broker_id = follower.member.broker_id;
        self.is_in_sync(broker_id)
            || self.proposed.iter().flatten().any(|(proposed, _)| *proposed == broker_id)
            || (follower.is_eligible()
                && follower.durable_end.is_some()
                && follower.is_caught_up(self.log_end, now, lag))
    }

    /// Whether the high watermark waits for that broker as a follower.
    pub(super) fn waits_for(&self, broker_id: BrokerId, now: Instant, lag: Duration) -> bool {
        let follower = self.followers.iter().find(|it| it.member.broker_id == broker_id);
        follower.is_some_and(|follower| self.counts(follower, now, lag))
    }

    /// The in-sync replicas with every follower that `is_alive` and has caught up (L7); `None` if there is none, or a
    /// change is under way. The change counts as under way from then on.
    ///
    /// Where the high watermark stands still, one that is gone has caught up for ever.
    pub(super) fn propose_expansion(
        &mut self,
        high_watermark: i64,
        is_alive: impl Fn(BrokerId) -> bool,
    ) -> Option<Proposal> {
        let in_sync = |follower: &&Follower| {
            !self.assignment.isr.contains(&follower.member.broker_id)
                && is_alive(follower.member.broker_id)
                && follower.is_eligible()
                && follower.durable_end.is_some_and(|end| end >= high_watermark && end >= self.epoch_start)
        };
        let joining: Vec<_> = self.followers.iter().filter(in_sync).map(|it| it.member.broker_id).collect();
        if joining.is_empty() {
            return None;
        }
        self.propose([self.assignment.isr.clone(), joining].concat())
    }

    /// The in-sync replicas without the followers that have not caught up for longer than `lag` (L6), in the same way.
    pub(super) fn propose_shrinking(&mut self, now: Instant, lag: Duration) -> Option<Proposal> {
        let lags = |broker_id: &BrokerId| {
            let follower = self.followers.iter().find(|it| it.member.broker_id == *broker_id);
            follower.is_some_and(|follower| !follower.is_caught_up(self.log_end, now, lag))
        };
        let left: Vec<_> = self.assignment.isr.iter().copied().filter(|id| !lags(id)).collect();
        if left.len() == self.assignment.isr.len() {
            return None;
        }
        self.propose(left)
    }

    fn propose(&mut self, isr: Vec<BrokerId>) -> Option<Proposal> {
        if self.proposed.is_some() {
            return None;
        }
        let members = std::iter::once(&self.assignment.own).chain(self.followers.iter().map(|it| &it.member));
        let members = members.filter(|member| isr.contains(&member.broker_id));
        self.proposed = Some(members.map(|member| (member.broker_id, member.broker_epoch)).collect());
        self.proposal()
    }

    /// The change under way, the same however often it is asked for: a follower that has registered again since has to
    /// be judged again.
    pub(super) fn proposal(&self) -> Option<Proposal> {
        Some(Proposal {
            leader_epoch: self.assignment.leader_epoch,
            partition_epoch: self.assignment.partition_epoch,
            isr: self.proposed.clone()?,
        })
    }

    /// The controller has refused the change for good: it never took effect and never will.
    pub(super) fn refused(&mut self, partition_epoch: i32) {
        if self.assignment.partition_epoch == partition_epoch {
            self.proposed = None;
        }
    }
}

#[cfg(test)]
#[path = "leadership_test.rs"]
mod tests;
