//! The leader's side of replication: what each follower fetches, and what there is for it.
//!
//! A follower names a partition once and again whenever its position has changed; the session remembers it. Partitions
//! with something new are marked by whoever makes it (appends, high watermark), so that a session of thousands of idle
//! partitions costs nothing. Followers are sent what is appended, durable here or not: the two syncs run side by side, and
//! each counts for the high watermark by itself. Marks are served in the order in which they came, and what did not fit
//! into an answer comes first in the next: no partition starves (F12).
//!
//! Records wake a waiting call at once. A high watermark alone waits a moment for records to travel with: nobody but
//! readers of followers needs it.
//!
//! While a follower in sync is sent records, those for replicas that are not go in small parts beside them: answers come
//! one after the other, and the high watermark waits for the next.
//!
//! Partitions that are throttled here are passed over while the rate is used up, for followers that are not in sync
//! (KIP-73); what in-sync ones get of them counts for the rate all the same. They are looked at again when it allows it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_protocol::ErrorCode;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::leadership::{FollowerLog, Proposal};
use super::partition::{FollowerView, Partition};
use super::throttle::Quota;
use crate::metadata::image::{BrokerId, TopicIdPartition};
use crate::schema::internal::replica_fetch_answer::FetchedReplica;
use crate::schema::internal::replica_fetch_call::FollowedPartition;
use crate::schema::internal::{ReplicaFetchAnswer, ReplicaFetchCall};
use crate::storage::{ReadRange, Reader};

/// Longest that a new high watermark waits for records to travel with.
const QUIET_WAIT: Duration = Duration::from_millis(5);

/// Longest wait of a call, whatever it asks for.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Most bytes in one answer for replicas that are not in sync, while others that are get records too: these are waited for
/// by whoever asked for acks=all, and what fills the others is on its way before them.
const FILL_BYTES: usize = 1 << 20;

/// Time after which a replica in sync that gets no records is no reason any more to fill others slowly.
const AWAITED_FOR: Duration = Duration::from_secs(1);

/// Session epoch that begins a session.
pub(super) const BEGIN: i32 = 0;
/// Session epoch that ends the wait of the call before.
pub(super) const WAKE: i32 = -1;

/// Partitions that have something new for one follower.
#[derive(Debug, Default)]
pub(super) struct FollowerSignal {
    marks: Mutex<Marks>,
    changed: Notify,
    /// The follower has something to say: the call is to end.
    woken: AtomicBool,
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct Marks {
    order: VecDeque<TopicIdPartition>,
    known: HashSet<TopicIdPartition>,
}

impl FollowerSignal {
    pub(super) fn mark(&self, partition: TopicIdPartition) {
        {
            let mut marks = self.marks.lock();
            if marks.known.insert(partition) {
                marks.order.push_back(partition);
            }
        }
        // Also for one that is marked: it may be waiting for something more.
        self.changed.notify_one();
    }

    fn take(&self) -> VecDeque<TopicIdPartition> {
        let mut marks = self.marks.lock();
        marks.known.clear();
        std::mem::take(&mut marks.order)
    }

    /// Marks that were taken and not served; they come first again.
    fn put_back(&self, partitions: impl DoubleEndedIterator<Item = TopicIdPartition>) {
        let mut marks = self.marks.lock();
        for partition in partitions.rev() {
            if marks.known.insert(partition) {
                marks.order.push_front(partition);
            }
        }
    }

    /// Ends the wait of the call that is under way, or of the next one.
    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

/// Sessions of all followers.
#[derive(Debug, Default)]
pub(super) struct FollowerSessions {
    sessions: Mutex<HashMap<BrokerId, Handle>>,
    quota: Arc<Mutex<Quota>>,
}

#[derive(Clone, Debug)]
struct Handle {
    signal: Arc<FollowerSignal>,
    session: Arc<tokio::sync::Mutex<Session>>,
    last_call: Instant,
}

#[derive(Debug)]
struct Session {
    follower: (BrokerId, i64),
    /// Epoch that the next call must have.
    next_epoch: i32,
    signal: Arc<FollowerSignal>,
    partitions: HashMap<TopicIdPartition, Followed>,
    /// When records last went to a partition of which the high watermark waits for the follower.
    awaited: Option<Instant>,
    quota: Arc<Mutex<Quota>>,
}

/// What becomes of the records of a throttled partition.
enum Throttled {
    /// They are held back for this long.
    Wait(Duration),
    /// Up to so many bytes may go.
    Portion(usize),
}

/// What there is for a follower.
struct Look {
    answer: Vec<FetchedReplica>,
    /// Whether it is worth saying at once.
    is_loud: bool,
    /// Time after which there may be more, as the throttle held something back.
    pause: Option<Duration>,
}

/// A partition of a session.
#[derive(Clone, Debug)]
struct Followed {
    /// `None` if it is not hosted here.
    partition: Option<Arc<Partition>>,
    leader_epoch: i32,
    offset: i64,
    last_fetched_epoch: Option<i32>,
    /// What the follower was told: high watermark and log start.
    told: (i64, i64),
    /// Whether the high watermark waited for the follower when it named the partition.
    is_awaited: bool,
    /// An answer that was found when the follower named the partition.
    refused: Option<ErrorCode>,
}

/// What the sessions need of the manager.
pub(super) trait Host: Sync {
    /// The partition, if it is hosted here.
    fn find(&self, partition: TopicIdPartition) -> Result<Arc<Partition>, ErrorCode>;
    /// Other in-sync replicas are wanted for a partition.
    fn propose(&self, partition: TopicIdPartition, proposal: Proposal);
}

/// What there is to say about one partition.
enum Finding {
    Nothing,
    /// To be said when there is something else to say, or after a moment.
    Quiet(FetchedReplica),
    Loud(FetchedReplica),
    /// The disk is needed.
    Cold,
    /// There is something, and no room for it beside what the answer holds.
    DoesNotFit,
}

impl FollowerSessions {
    /// Answers a fetch of a follower; waits until there is something for it. Cancel-safe: the follower begins anew.
    pub(super) async fn fetch(&self, host: &impl Host, call: ReplicaFetchCall) -> ReplicaFetchAnswer {
        if call.session_epoch == WAKE {
            if let Some(handle) = self.sessions.lock().get(&call.replica_id) {
                handle.signal.wake();
            }
            return ReplicaFetchAnswer::default();
        }
        let out_of_step = ReplicaFetchAnswer {
            error: ErrorCode::InvalidFetchSessionEpoch.code(),
            ..ReplicaFetchAnswer::default()
        };
        let Some(handle) = self.session(&call) else { return out_of_step };
        let deadline = Instant::now()
            + Duration::from_millis(u64::try_from(call.max_wait_ms).unwrap_or(0)).min(MAX_WAIT);
        let mut session = handle.session.lock().await;
        if session.next_epoch != call.session_epoch || session.follower.1 != call.broker_epoch {
            return out_of_step;
        }
        session.next_epoch = session.next_epoch.checked_add(1).unwrap_or(1);
        session.take_changes(host, &call);
        let max_bytes = usize::try_from(call.max_bytes).unwrap_or(0);
        session.wait(deadline, max_bytes).await
    }

    /// Sets the rate of throttled partitions, in bytes per second.
    pub(super) fn set_rate(&self, rate: u64, now: Instant) {
        self.quota.lock().set_rate(rate, now);
    }

    #[cfg(test)]
    pub(super) fn is_throttled(&self) -> bool {
        self.quota.lock().is_limited()
    }

    /// Whether a call of the follower came within `limit`.
    pub(super) fn is_alive(&self, follower: BrokerId, limit: Duration) -> bool {
        self.sessions.lock().get(&follower).is_some_and(|handle| handle.last_call.elapsed() <= limit)
    }

    /// The session that a call belongs to; a call that begins one ends the one before.
    fn session(&self, call: &ReplicaFetchCall) -> Option<Handle> {
        let mut sessions = self.sessions.lock();
        if call.session_epoch != BEGIN {
            let handle = sessions.get_mut(&call.replica_id)?;
            handle.last_call = Instant::now();
            return Some(handle.clone());
        }
        let signal = Arc::new(FollowerSignal::default());
        let session = Session {
            follower: (call.replica_id, call.broker_epoch),
            next_epoch: BEGIN,
            signal: Arc::clone(&signal),
            partitions: HashMap::new(),
            awaited: None,
            quota: Arc::clone(&self.quota),
        };
        let session = Arc::new(tokio::sync::Mutex::new(session));
        let handle = Handle { signal, session, last_call: Instant::now() };
        if let Some(before) = sessions.insert(call.replica_id, handle.clone()) {
            before.signal.end();
        }
        Some(handle)
    }

    /// Ends all sessions; calls that wait are answered.
    pub(super) fn end(&self) {
        for (_, handle) in self.sessions.lock().drain() {
            handle.signal.end();
        }
    }
}

impl Session {
    fn take_changes(&mut self, host: &impl Host, call: &ReplicaFetchCall) {
        for forgotten in &call.forgotten {
            let id = TopicIdPartition { topic_id: forgotten.topic_id, partition: forgotten.partition_id };
            if let Some(Followed { partition: Some(partition), .. }) = self.partitions.remove(&id) {
                partition.remove_follower(&self.signal);
            }
        }
        for named in &call.partitions {
            self.follow(host, named);
        }
    }

    fn follow(&mut self, host: &impl Host, named: &FollowedPartition) {
        let id = TopicIdPartition { topic_id: named.topic_id, partition: named.partition_id };
        let last_fetched_epoch = (named.last_fetched_epoch >= 0).then_some(named.last_fetched_epoch);
        let log = FollowerLog {
            log_start: named.log_start,
            durable_end: named.durable_end,
            log_end: named.fetch_offset,
            last_epoch: last_fetched_epoch,
        };
        let found = host.find(id);
        let partition = found.as_ref().ok().cloned();
        let fetched = found.and_then(|partition| {
            // Before it is looked at: nothing that comes after is missed.
            partition.add_follower(&self.signal);
            partition.follower_fetched(self.follower, named.leader_epoch, log)
        });
        let refused = match fetched {
            Ok((_, proposal)) => {
                if let Some(proposal) = proposal {
                    host.propose(id, proposal);
                }
                None
            }
            Err(error) => Some(error),
        };
        // In another leader epoch the follower has begun anew, and may know less than it was told before.
        let before = self.partitions.get(&id).filter(|before| before.leader_epoch == named.leader_epoch);
        let told = before.map_or((-1, -1), |before| before.told);
        let is_awaited = partition.as_ref().is_some_and(|partition| partition.waits_for(self.follower.0));
        self.partitions.insert(
            id,
            Followed {
                partition,
                leader_epoch: named.leader_epoch,
                offset: named.fetch_offset,
                last_fetched_epoch,
                told,
                is_awaited,
                refused,
            },
        );
        self.signal.mark(id);
    }

    async fn wait(&mut self, deadline: Instant, max_bytes: usize) -> ReplicaFetchAnswer {
        let mut deadline = deadline;
        loop {
            let marked = self.signal.take();
            let Look { answer, is_loud, pause } = self.look(marked, max_bytes).await;
            let now = Instant::now();
            let woken = self.signal.woken.swap(false, Ordering::AcqRel);
            if is_loud || woken || self.signal.is_ended() || now >= deadline {
                self.tell(&answer);
                return ReplicaFetchAnswer { partitions: answer, ..ReplicaFetchAnswer::default() };
            }
            if !answer.is_empty() {
                let ids = answer.iter().map(id_of);
                self.signal.put_back(ids);
                deadline = deadline.min(now + QUIET_WAIT);
            }
            // At the deadline it looks once more.
            let until = pause.map_or(deadline, |pause| deadline.min(now + pause));
            let _ = tokio::time::timeout_at(until, self.signal.changed.notified()).await;
        }
    }

    /// What there is to say about `marked`. What does not fit is marked again.
    async fn look(&mut self, marked: VecDeque<TopicIdPartition>, max_bytes: usize) -> Look {
        let mut answer = Vec::new();
        let (mut held_back, mut pause, mut awaited) = (Vec::new(), None, self.awaited);
        let is_limited = self.quota.lock().is_limited();
        let (mut left, mut is_loud) = (max_bytes, false);
        let fills_slowly = self.awaited.is_some_and(|at| at.elapsed() <= AWAITED_FOR);
        let mut left_to_fill = if fills_slowly { max_bytes.min(FILL_BYTES) } else { max_bytes };
        let mut marked = marked.into_iter();
        while let Some(id) = marked.next() {
            let Some(followed) = self.partitions.get(&id) else { continue };
            let nothing_yet = left == max_bytes;
            if left == 0 {
                self.signal
                    .put_back(std::iter::once(id).chain(marked.by_ref()).collect::<Vec<_>>().into_iter());
                break;
            }
            let room = if followed.is_awaited { left } else { left.min(left_to_fill) };
            if room == 0 {
                held_back.push(id);
                continue;
            }
            let portion = match is_limited.then(|| self.throttle(followed)).flatten() {
                None => room,
                Some(Throttled::Portion(bytes)) => room.min(bytes),
                Some(Throttled::Wait(wait)) => {
                    held_back.push(id);
                    pause = Some(wait);
                    continue;
                }
            };
            let finding = match find(id, followed, portion, nothing_yet, true) {
                Finding::Cold => {
                    let followed = followed.clone();
                    let cold = move || find(id, &followed, portion, nothing_yet, false);
                    match crate::blocking::spawn_blocking(cold).await {
                        Ok(finding) => finding,
                        Err(error) if error.is_cancelled() => Finding::Nothing,
                        Err(error) => std::panic::resume_unwind(error.into_panic()),
                    }
                }
                finding => finding,
            };
            match finding {
                Finding::Nothing | Finding::Cold => {}
                // It comes first in the next answer, whatever its size.
                Finding::DoesNotFit if portion < left => {
                    if !followed.is_awaited && portion == room {
                        // The others need not be read in vain.
                        left_to_fill = 0;
                    }
                    held_back.push(id);
                }
                Finding::DoesNotFit => {
                    self.signal
                        .put_back(std::iter::once(id).chain(marked.by_ref()).collect::<Vec<_>>().into_iter());
                    break;
                }
                Finding::Quiet(found) => answer.push(found),
                Finding::Loud(found) => {
                    left = left.saturating_sub(found.records.len());
                    if !followed.is_awaited {
                        left_to_fill = left_to_fill.saturating_sub(found.records.len());
                    } else if !found.records.is_empty() {
                        awaited = Some(Instant::now());
                    }
                    is_loud = true;
                    self.count(followed, found.records.len(), is_limited);
                    answer.push(found);
                }
            }
        }
        self.signal.put_back(held_back.into_iter());
        self.awaited = awaited;
        Look { answer, is_loud, pause }
    }

    /// What the throttle says to the records of a partition for this follower; `None` if it does not concern them, or
    /// there are none.
    fn throttle(&self, followed: &Followed) -> Option<Throttled> {
        let partition = followed.partition.as_ref().filter(|_| followed.refused.is_none())?;
        let has_records = partition.log().ends().readable_end(Reader::Replica) > followed.offset;
        let concerned = has_records
            && partition.is_throttled_leader()
            && !partition.has_in_sync_follower(self.follower.0);
        let quota = self.quota.lock();
        let verdict = || match quota.wait(Instant::now()) {
            Some(wait) => Throttled::Wait(wait),
            None => Throttled::Portion(quota.portion()),
        };
        concerned.then(verdict)
    }

    /// Takes note of records that go out.
    fn count(&self, followed: &Followed, bytes: usize, is_limited: bool) {
        let Some(partition) = followed.partition.as_ref().filter(|_| bytes > 0) else { return };
        let now = Instant::now();
        let fills = partition.sent_to_follower(self.follower.0, bytes, now);
        if is_limited && fills && partition.is_throttled_leader() {
            self.quota.lock().record(bytes, now);
        }
    }

    /// Remembers what the follower is told.
    fn tell(&mut self, answer: &[FetchedReplica]) {
        for said in answer {
            if let Some(followed) = self.partitions.get_mut(&id_of(said)) {
                followed.told = (said.high_watermark, said.log_start);
                followed.refused = None;
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.signal.end();
        for partition in self.partitions.values().filter_map(|followed| followed.partition.as_ref()) {
            partition.remove_follower(&self.signal);
        }
    }
}

fn id_of(said: &FetchedReplica) -> TopicIdPartition {
    TopicIdPartition { topic_id: said.topic_id, partition: said.partition_id }
}

fn find(
    id: TopicIdPartition,
    followed: &Followed,
    max_bytes: usize,
    at_least_one: bool,
    memory_only: bool,
) -> Finding {
    let fetched =
        FetchedReplica { topic_id: id.topic_id, partition_id: id.partition, ..FetchedReplica::default() };
    let refuse = |error: ErrorCode| {
        let ends = followed.partition.as_ref().map(|partition| partition.log().ends());
        let log_start = ends.map_or(-1, |ends| ends.log_start);
        Finding::Loud(FetchedReplica { error: error.code(), log_start, ..fetched.clone() })
    };
    if let Some(error) = followed.refused {
        return refuse(error);
    }
    let Some(partition) = &followed.partition else { return Finding::Nothing };
    let view = partition.follower_view(followed.leader_epoch, followed.offset, followed.last_fetched_epoch);
    let FollowerView { log_start, fetchable_end, high_watermark, diverging_epoch } = match view {
        Ok(view) => view,
        Err(error) => return refuse(error),
    };
    let fetched = FetchedReplica { high_watermark, log_start, fetchable_end, ..fetched.clone() };
    if let Some(end) = diverging_epoch {
        return Finding::Loud(FetchedReplica {
            diverging_epoch: end.leader_epoch,
            diverging_end_offset: end.end_offset,
            ..fetched
        });
    }
    if fetchable_end > followed.offset {
        let range = ReadRange {
            reader: Reader::Replica,
            offset: followed.offset,
            until: fetchable_end,
            max_bytes,
            at_least_one,
        };
        return match partition.read(range, memory_only) {
            Ok(None) => Finding::Cold,
            // Retention may have taken what a whole answer has room for.
            Ok(Some(records)) if records.is_empty() && at_least_one => Finding::Nothing,
            Ok(Some(records)) if records.is_empty() => Finding::DoesNotFit,
            Ok(Some(records)) => Finding::Loud(FetchedReplica { records, ..fetched }),
            Err(error) => refuse(error),
        };
    }
    if followed.told == (high_watermark, log_start) { Finding::Nothing } else { Finding::Quiet(fetched) }
}

#[cfg(test)]
#[path = "sessions_test.rs"]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests;
