//! How far a partition has come, and who waits for it: durable end, high watermark, and the followers' sessions.
//!
//! Hears the log, whose threads move the durable end, and the partition, which knows the role and what it appends. Its own
//! lock is held for arithmetic only. Followers are woken by appends, whoever waits for records to stay by what is durable.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::leadership::{FollowerLog, LeaderAssignment, Leadership, Proposal};
use super::sessions::FollowerSignal;
use super::waiters::Waiters;
#[cfg(any(test, feature = "historical-bugs"))]
use crate::bugs::{self, Bug};
use crate::metadata::image::{BrokerId, TopicIdPartition};
use crate::storage::{LogEnds, LogListener, Wakes};

/// Most durable ends above the high watermark that are told apart. It may stand still for as long as too few replicas are in
/// sync, while records go on coming that nobody waits for.
const MAX_NOT_VISIBLE: usize = 1_024;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Watermark {
    partition: TopicIdPartition,
    /// `replica.lag.time.max.ms`
    lag: Duration,
    state: Mutex<State>,
    /// Wait for the high watermark.
    pub(super) visible: Waiters,
    /// Wait for the durable end.
    pub(super) durable: Waiters,
    /// Wait for followers' log starts; woken by each of their fetches.
    pub(super) deleted: Waiters,
    /// Sessions of followers that fetch this partition.
    followers: Mutex<Vec<Arc<FollowerSignal>>>,
    failed: AtomicBool,
}

#[derive(Debug)]
struct State {
    high_watermark: i64,
    durable_end: i64,
    durable_bytes: u64,
    /// Bytes below the high watermark that became durable since the log was opened.
    visible_bytes: u64,
    /// Durable ends above the high watermark, each with the bytes up to it. Of more than can be told apart the last is left:
    /// those bytes become visible together.
    not_visible: VecDeque<(i64, u64)>,
    part: Part,
}

#[derive(Debug)]
enum Part {
    Idle,
    Leads(Box<Leadership>),
    Follows { leader_high_watermark: i64 },
}

/// How far consumers may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Visible {
    pub(super) high_watermark: i64,
    pub(super) bytes: u64,
}

impl Watermark {
    pub(super) fn new(partition: TopicIdPartition, lag: Duration) -> Self {
        Self {
            partition,
            lag,
            state: Mutex::new(State {
                high_watermark: 0,
                durable_end: 0,
                durable_bytes: 0,
                visible_bytes: 0,
                not_visible: VecDeque::new(),
                part: Part::Idle,
            }),
            visible: Waiters::default(),
            durable: Waiters::default(),
            deleted: Waiters::default(),
            followers: Mutex::default(),
            failed: AtomicBool::new(false),
        }
    }

    /// The log has been opened. What was below the high watermark at the last checkpoint, `kept`, still is. How far it had
    /// come since is found again from the in-sync replicas, and offsets are not told to clients before that (L8).
    pub(super) fn opened(&self, ends: &LogEnds, kept: Option<i64>) {
        let mut state = self.state.lock();
        state.high_watermark = kept.unwrap_or(ends.log_start).min(ends.durable_end).max(ends.log_start);
        (state.durable_end, state.durable_bytes) = (ends.durable_end, ends.durable_bytes);
        state.visible_bytes = ends.durable_bytes;
    }

    pub(super) fn visible(&self) -> Visible {
        let state = self.state.lock();
        Visible { high_watermark: state.high_watermark, bytes: state.visible_bytes }
    }

    /// Whether the store has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Wakes everyone, for something else than progress.
    pub(super) fn wake_all(&self) {
        self.visible.wake_all();
        self.durable.wake_all();
        self.deleted.wake_all();
        self.tell_followers();
    }

    /// This broker leads from now on; `log_end` is where its epoch begins.
    pub(super) fn lead(&self, assignment: LeaderAssignment, log_end: i64) {
        let now = Instant::now();
        self.change(|state| match &mut state.part {
            Part::Leads(leadership) if leadership.leader_epoch() == assignment.leader_epoch => {
                leadership.update(assignment);
            }
            part => *part = Part::Leads(Box::new(Leadership::begin(assignment, log_end, now))),
        })
        .wake();
        // Other followers may be in service.
        self.deleted.wake_all();
    }

    /// This broker follows from now on.
    pub(super) fn follow(&self) {
        self.state.lock().part = Part::Follows { leader_high_watermark: 0 };
    }

    /// This broker neither leads nor follows.
    pub(super) fn idle(&self) {
        self.state.lock().part = Part::Idle;
    }

    /// What the leader says its high watermark is.
    pub(super) fn leader_says(&self, high_watermark: i64) {
        self.change(|state| {
            if let Part::Follows { leader_high_watermark } = &mut state.part {
                *leader_high_watermark = high_watermark;
            }
        })
        .wake();
    }

    /// A follower fetches. Returns the in-sync replicas to propose, if it can join them.
    ///
    /// Says nothing of another epoch than `leader_epoch`, in which the follower's log was compared with the one here.
    pub(super) fn follower_fetched(
        &self,
        broker_id: BrokerId,
        broker_epoch: i64,
        leader_epoch: i32,
        log: FollowerLog,
    ) -> Option<Proposal> {
        let now = Instant::now();
        self.change(|state| {
            if let Part::Leads(leadership) = &mut state.part
                && leadership.leader_epoch() == leader_epoch
            {
                leadership.fetched(broker_id, broker_epoch, log, now);
            }
        })
        .wake();
        self.deleted.wake_all();
        self.propose_expansion(|alive| alive == broker_id)
    }

    /// This broker leads, and has appended up to `log_end`. The caller tells the followers.
    pub(super) fn appended(&self, log_end: i64) {
        if let Part::Leads(leadership) = &mut self.state.lock().part {
            leadership.appended(log_end, Instant::now());
        }
    }

    /// The in-sync replicas with those that are alive and can join, if any can.
    pub(super) fn propose_expansion(&self, is_alive: impl Fn(BrokerId) -> bool) -> Option<Proposal> {
        let mut state = self.state.lock();
        let high_watermark = state.high_watermark;
        match &mut state.part {
            Part::Leads(leadership) => leadership.propose_expansion(high_watermark, is_alive),
            Part::Idle | Part::Follows { .. } => None,
        }
    }

    /// The in-sync replicas without those that lag, if any does.
    pub(super) fn propose_shrinking(&self) -> Option<Proposal> {
        let now = Instant::now();
        match &mut self.state.lock().part {
            Part::Leads(leadership) => leadership.propose_shrinking(now, self.lag),
            Part::Idle | Part::Follows { .. } => None,
        }
    }

    /// Reads the leadership; `None` where this broker does not lead.
    pub(super) fn leadership<T>(&self, read: impl FnOnce(&mut Leadership) -> T) -> Option<T> {
        match &mut self.state.lock().part {
            Part::Leads(leadership) => Some(read(leadership)),
            Part::Idle | Part::Follows { .. } => None,
        }
    }

    /// Whether this broker leads, and the high watermark waits for that follower.
    pub(super) fn waits_for(&self, broker_id: BrokerId) -> bool {
        self.leadership(|leadership| leadership.waits_for(broker_id, Instant::now(), self.lag)) == Some(true)
    }

    /// Has `signal` marked whenever there is something new for followers.
    pub(super) fn add_follower(&self, signal: &Arc<FollowerSignal>) {
        let mut followers = self.followers.lock();
        followers.retain(|known| !known.is_ended());
        if !followers.iter().any(|known| Arc::ptr_eq(known, signal)) {
            followers.push(Arc::clone(signal));
        }
    }

    /// Takes [`add_follower`](Self::add_follower) back.
    pub(super) fn remove_follower(&self, signal: &Arc<FollowerSignal>) {
        self.followers.lock().retain(|known| !Arc::ptr_eq(known, signal));
    }

    /// Followers have something to hear: records, the high watermark, or where the log starts.
    pub(super) fn tell_followers(&self) {
        for signal in &*self.followers.lock() {
            signal.mark(self.partition);
        }
    }

    /// Changes something, moves the high watermark accordingly, tells the followers, and returns who waited for it.
    fn change(&self, change: impl FnOnce(&mut State)) -> Wakes {
        let (moved, high_watermark) = {
            let mut state = self.state.lock();
            change(&mut state);
            (state.advance(self.lag), state.high_watermark)
        };
        if !moved {
            return Wakes::default();
        }
        let wakes = self.visible.advance(high_watermark);
        self.tell_followers();
        wakes
    }
}

impl State {
    /// Moves the high watermark as far as it may; true if it has moved.
    fn advance(&mut self, lag: Duration) -> bool {
        let before = self.high_watermark;
        let high_watermark = match &self.part {
            Part::Idle => before,
            Part::Leads(leadership) => {
                let durable_end = self.durable_end;
                #[cfg(any(test, feature = "historical-bugs"))]
                let durable_end =
                    if bugs::has(Bug::CommitsBeforeOwnSync) { leadership.log_end() } else { durable_end };
                leadership.high_watermark(before, durable_end, Instant::now(), lag)
            }
            Part::Follows { leader_high_watermark } => {
                before.max(*leader_high_watermark).min(self.durable_end)
            }
        };
        self.high_watermark = high_watermark;
        while let Some((_, bytes)) = self.not_visible.pop_front_if(|(end, _)| *end <= high_watermark) {
            self.visible_bytes = bytes;
        }
        high_watermark != before
    }
}

impl LogListener for Watermark {
    fn durable_end_moved(&self, durable_end: i64, durable_bytes: u64) -> Wakes {
        let mut wakes = self.change(|state| {
            let before = std::mem::replace(&mut state.durable_end, durable_end);
            state.durable_bytes = durable_bytes;
            if durable_end < before {
                // Truncated.
                state.high_watermark = state.high_watermark.min(durable_end);
                state.not_visible.clear();
                return;
            }
            if state.not_visible.len() >= MAX_NOT_VISIBLE {
                state.not_visible.pop_back();
            }
            state.not_visible.push_back((durable_end, durable_bytes));
        });
        wakes.append(self.durable.advance(durable_end));
        wakes
    }

    fn store_failed(&self) {
        self.failed.store(true, Ordering::Release);
        self.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::replication::leadership::Member;

    const LAG: Duration = Duration::from_secs(30);

    fn member(broker_id: BrokerId) -> Member {
        Member { broker_id, broker_epoch: 1, eligible: true }
    }

    fn leads(leader_epoch: i32, isr: &[BrokerId], min_isr: usize) -> LeaderAssignment {
        LeaderAssignment {
            own: member(1),
            leader_epoch,
            partition_epoch: leader_epoch,
            isr: isr.to_vec(),
            followers: vec![member(2)],
            min_isr,
        }
    }

    fn opened(durable_end: i64) -> Watermark {
        let watermark = Watermark::new(TopicIdPartition { topic_id: Uuid::nil(), partition: 0 }, LAG);
        let ends = LogEnds { log_start: 0, durable_end, log_end: durable_end, durable_bytes: 0 };
        watermark.opened(&ends, None);
        watermark
    }

    #[test]
    fn what_is_not_visible_is_remembered_within_bounds_and_all_of_it_becomes_visible() {
        let watermark = opened(0);
        watermark.lead(leads(1, &[1], 2), 0);
        for end in 1..=100_000_u32 {
            watermark.durable_end_moved(end.into(), u64::from(end) * 10).wake();
        }
        assert_eq!(watermark.visible(), Visible { high_watermark: 0, bytes: 0 });
        assert!(watermark.state.lock().not_visible.len() <= MAX_NOT_VISIBLE);
        watermark.lead(LeaderAssignment { partition_epoch: 2, ..leads(1, &[1], 1) }, 0);
        assert_eq!(watermark.visible(), Visible { high_watermark: 100_000, bytes: 1_000_000 });
    }

    #[test]
    fn a_followers_position_counts_in_the_epoch_in_which_its_log_was_compared() {
        let watermark = opened(10);
        watermark.lead(leads(2, &[1, 2], 1), 10);
        let log = FollowerLog { log_start: 0, durable_end: 10, log_end: 10, last_epoch: None };
        watermark.follower_fetched(2, 1, 1, log);
        assert_eq!(watermark.visible().high_watermark, 0, "that was before another leader");
        watermark.follower_fetched(2, 1, 2, log);
        assert_eq!(watermark.visible().high_watermark, 10);
    }

    #[test]
    fn a_log_opens_with_the_high_watermark_that_was_kept_as_far_as_the_log_reaches() {
        let opened = |kept| {
            let watermark = opened(0);
            let ends = LogEnds { log_start: 5, durable_end: 10, log_end: 10, durable_bytes: 0 };
            watermark.opened(&ends, kept);
            watermark.visible().high_watermark
        };
        assert_eq!([None, Some(3), Some(7), Some(12)].map(opened), [5, 5, 7, 10]);
    }
}
