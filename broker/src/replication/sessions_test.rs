use tempfile::TempDir;
use uuid::Uuid;

use super::super::waiters::Awaited;
use super::*;
use crate::replication::leadership::{LeaderAssignment, Member};
use crate::replication::partition::{Appended, Assignment};
use crate::replication::producer_state::SteadyClock;
use crate::replication::validate::validate;
use crate::replication::{RequiredAcks, TopicSettings};
use crate::storage::batch::samples::batch;
use crate::storage::journal::held_disk::HeldDisk;
use crate::storage::journal::{JournalStore, JournalStoreOptions};
use crate::storage::{Admission, LogStore};

const LEADER: BrokerId = 1;
const FOLLOWER: BrokerId = 2;
const EPOCH: i32 = 4;
const TOPIC: Uuid = Uuid::from_u128(0x70);

/// A leader of some partitions that a follower may fetch.
struct Leader {
    _volume: TempDir,
    _store: Arc<dyn LogStore>,
    disk: HeldDisk,
    partitions: Vec<Arc<Partition>>,
    sessions: FollowerSessions,
    next_epoch: i32,
    leader_epoch: i32,
}

impl Host for Vec<Arc<Partition>> {
    fn find(&self, id: TopicIdPartition) -> Result<Arc<Partition>, ErrorCode> {
        self.iter().find(|it| it.id() == id).cloned().ok_or(ErrorCode::UnknownTopicOrPartition)
    }

    fn propose(&self, _partition: TopicIdPartition, _proposal: Proposal) {}
}

fn leads(leader_epoch: i32) -> Assignment {
    let member = |broker_id| Member { broker_id, broker_epoch: 9, eligible: true };
    Assignment::Leads(LeaderAssignment {
        own: member(LEADER),
        leader_epoch,
        partition_epoch: 0,
        isr: vec![LEADER],
        followers: vec![member(FOLLOWER)],
        min_isr: 1,
    })
}

impl Leader {
    fn of(count: i32) -> Self {
        let volume = tempfile::tempdir().unwrap();
        let disk = HeldDisk::default();
        let options = JournalStoreOptions {
            reserve_bytes: Some(0),
            disk: Arc::new(disk.clone()),
            ..JournalStoreOptions::default()
        };
        let store: Arc<dyn LogStore> =
            Arc::new(JournalStore::open(volume.path(), Uuid::from_u128(1), options).unwrap());
        let open = |partition| {
            let id = TopicIdPartition { topic_id: TOPIC, partition };
            let settings = Arc::new(TopicSettings::default());
            let lag = Duration::from_secs(30);
            let partition =
                Partition::open(store.as_ref(), id, settings, lag, SteadyClock::new(|| 0)).unwrap();
            partition.assign(leads(EPOCH));
            Arc::new(partition)
        };
        let partitions = (0..count).map(open).collect();
        let sessions = FollowerSessions::default();
        Self {
            _volume: volume,
            _store: store,
            disk,
            partitions,
            sessions,
            next_epoch: BEGIN,
            leader_epoch: EPOCH,
        }
    }

    /// Appends a batch with a value of `bytes`.
    fn queue(&self, partition: usize, bytes: usize) -> Appended {
        let partition = &self.partitions[partition];
        let records = validate(batch(1, &vec![7; bytes]), &partition.settings(), 13, 0).unwrap();
        partition.append(records, RequiredAcks::Leader, &Arc::new(Admission::new(None))).unwrap()
    }

    /// Appends a batch with a value of `bytes`, and waits until it is durable.
    async fn append(&self, partition: usize, bytes: usize) {
        let appended = self.queue(partition, bytes);
        let partition = &self.partitions[partition];
        let signal = Arc::new(Notify::new());
        partition.register(Awaited::Durable, appended.last_offset + 1, &signal);
        if partition.log().ends().durable_end <= appended.last_offset {
            signal.notified().await;
        }
    }

    fn call(&mut self, named: &[(i32, i64)], max_bytes: i32) -> ReplicaFetchCall {
        let session_epoch = self.next_epoch;
        self.next_epoch += 1;
        let partitions = named.iter().map(|(partition_id, fetch_offset)| FollowedPartition {
            topic_id: TOPIC,
            partition_id: *partition_id,
            leader_epoch: self.leader_epoch,
            fetch_offset: *fetch_offset,
            durable_end: *fetch_offset,
            last_fetched_epoch: if *fetch_offset > 0 { EPOCH } else { -1 },
            ..FollowedPartition::default()
        });
        ReplicaFetchCall {
            replica_id: FOLLOWER,
            broker_epoch: 9,
            session_epoch,
            max_wait_ms: 20_000,
            max_bytes,
            partitions: partitions.collect(),
            ..ReplicaFetchCall::default()
        }
    }

    async fn fetch(&mut self, named: &[(i32, i64)], max_bytes: i32) -> ReplicaFetchAnswer {
        let call = self.call(named, max_bytes);
        self.sessions.fetch(&self.partitions, call).await
    }
}

/// Partitions of an answer that have records.
fn with_records(answer: &ReplicaFetchAnswer) -> Vec<i32> {
    assert_eq!(answer.error, 0);
    let filled = answer.partitions.iter().filter(|fetched| !fetched.records.is_empty());
    filled.map(|fetched| fetched.partition_id).collect()
}

#[tokio::test]
async fn what_did_not_fit_into_an_answer_comes_first_in_the_next_f12() {
    let mut leader = Leader::of(3);
    for partition in 0..3 {
        leader.append(partition, 5_000).await;
    }
    let first = leader.fetch(&[(0, 0), (1, 0), (2, 0)], 6_000).await;
    assert_eq!(with_records(&first), [0]);
    // The first has more again, and stands behind the others.
    leader.append(0, 5_000).await;
    let second = leader.fetch(&[(0, 1)], 6_000).await;
    assert_eq!(with_records(&second), [1]);
    let third = leader.fetch(&[(1, 1)], 6_000).await;
    assert_eq!(with_records(&third), [2]);
    let fourth = leader.fetch(&[(2, 1)], 6_000).await;
    assert_eq!(with_records(&fourth), [0]);
}

#[tokio::test]
async fn a_batch_larger_than_an_answer_is_sent_alone() {
    let mut leader = Leader::of(2);
    leader.append(0, 5_000).await;
    leader.append(1, 5_000).await;
    assert_eq!(with_records(&leader.fetch(&[(0, 0), (1, 0)], 100).await), [0]);
    assert_eq!(with_records(&leader.fetch(&[(0, 1)], 100).await), [1]);
}

#[tokio::test]
async fn a_call_waits_for_records_and_ends_when_there_are_some() {
    let mut leader = Leader::of(2);
    let told = leader.fetch(&[(0, 0), (1, 0)], 6_000).await;
    assert_eq!(with_records(&told), [0; 0], "the first answer says where the leader stands");
    let call = leader.call(&[], 6_000);
    let (answer, ()) = tokio::join!(leader.sessions.fetch(&leader.partitions, call), leader.append(1, 10));
    assert_eq!(with_records(&answer), [1]);
}

#[tokio::test]
async fn a_call_that_waits_ends_with_records_that_are_queued_only() {
    let mut leader = Leader::of(1);
    leader.fetch(&[(0, 0)], 6_000).await;
    let held = leader.disk.hold();
    let call = leader.call(&[], 6_000);
    let append = async { leader.queue(0, 10) };
    let (answer, appended) = tokio::join!(leader.sessions.fetch(&leader.partitions, call), append);
    assert_eq!(with_records(&answer), [0]);
    assert!(leader.partitions[0].log().ends().durable_end <= appended.base_offset);
    drop(held);
}

#[tokio::test]
async fn a_follower_hears_where_the_log_starts_without_new_records() {
    let mut leader = Leader::of(1);
    leader.append(0, 10).await;
    leader.append(0, 10).await;
    assert_eq!(with_records(&leader.fetch(&[(0, 0)], 6_000).await), [0]);
    leader.fetch(&[(0, 2)], 6_000).await;
    let partition = Arc::clone(&leader.partitions[0]);
    let call = leader.call(&[], 6_000);
    let delete = tokio::task::spawn_blocking(move || partition.delete_records(Some(1)));
    let (answer, deleted) = tokio::join!(leader.sessions.fetch(&leader.partitions, call), delete);
    assert_eq!(deleted.unwrap(), Ok(1));
    assert_eq!(answer.partitions.iter().map(|it| it.log_start).collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn a_follower_hears_the_high_watermark_again_in_another_leader_epoch() {
    let mut leader = Leader::of(1);
    leader.append(0, 10).await;
    leader.fetch(&[(0, 0)], 6_000).await;
    let told = leader.fetch(&[(0, 1)], 6_000).await;
    assert!(told.partitions.iter().all(|fetched| fetched.high_watermark == 1), "{told:?}");
    leader.leader_epoch = EPOCH + 1;
    leader.partitions[0].assign(leads(EPOCH + 1));
    let call = ReplicaFetchCall { max_wait_ms: 0, ..leader.call(&[(0, 1)], 6_000) };
    let told = leader.sessions.fetch(&leader.partitions, call).await;
    assert_eq!(told.partitions.iter().map(|fetched| fetched.high_watermark).collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn a_call_is_ended_by_a_follower_that_has_more_to_say() {
    let mut leader = Leader::of(1);
    leader.fetch(&[(0, 0)], 6_000).await;
    let call = leader.call(&[], 6_000);
    let wake = ReplicaFetchCall { session_epoch: WAKE, ..call.clone() };
    let (answer, _) = tokio::join!(
        leader.sessions.fetch(&leader.partitions, call),
        leader.sessions.fetch(&leader.partitions, wake)
    );
    assert_eq!((answer.error, answer.partitions.len()), (0, 0));
}

#[tokio::test]
async fn a_call_out_of_step_is_refused_and_another_session_ends_the_one_before() {
    let mut leader = Leader::of(1);
    leader.fetch(&[(0, 0)], 6_000).await;
    let stale = ReplicaFetchCall { session_epoch: 7, ..leader.call(&[], 6_000) };
    let refused = leader.sessions.fetch(&leader.partitions, stale).await;
    assert_eq!(refused.error, ErrorCode::InvalidFetchSessionEpoch.code());

    leader.next_epoch = 1;
    let waiting = leader.call(&[], 6_000);
    leader.next_epoch = BEGIN;
    let begin = leader.call(&[(0, 0)], 6_000);
    let (ended, begun) = tokio::join!(
        leader.sessions.fetch(&leader.partitions, waiting),
        leader.sessions.fetch(&leader.partitions, begin)
    );
    assert_eq!((ended.partitions.len(), begun.partitions.len()), (0, 1));
}

#[tokio::test]
async fn a_partition_of_another_epoch_or_that_is_not_here_is_refused_by_itself() {
    let mut leader = Leader::of(1);
    leader.append(0, 10).await;
    let mut call = leader.call(&[(0, 0), (5, 0)], 6_000);
    call.partitions[0].leader_epoch = EPOCH - 1;
    let answer = leader.sessions.fetch(&leader.partitions, call).await;
    let errors: Vec<_> = answer.partitions.iter().map(|it| (it.partition_id, it.error)).collect();
    let (fenced, unknown) = (ErrorCode::FencedLeaderEpoch, ErrorCode::UnknownTopicOrPartition);
    assert_eq!(errors, [(0, fenced.code()), (5, unknown.code())]);
    let again = leader.fetch(&[(0, 0)], 6_000).await;
    assert_eq!(with_records(&again), [0]);
}

#[tokio::test]
async fn what_fills_a_replica_goes_in_small_parts_beside_what_one_in_sync_is_awaited_for() {
    const ALL: i32 = 64 << 20;
    const BATCH: usize = 600_000;
    let mut leader = Leader::of(2);
    leader.append(0, 10).await;
    for _ in 0..3 {
        leader.append(1, BATCH).await;
    }
    let filled = |answer: &ReplicaFetchAnswer| -> usize {
        answer.partitions.iter().filter(|it| it.partition_id == 1).map(|it| it.records.len() / BATCH).sum()
    };
    // The follower has all of partition 0 and nothing of partition 1.
    let answer = leader.fetch(&[(1, 0), (0, 1)], ALL).await;
    assert_eq!((with_records(&answer), filled(&answer)), (vec![1], 3), "nobody is awaited");
    leader.append(0, 10).await;
    assert_eq!(with_records(&leader.fetch(&[(1, 0)], ALL).await).len(), 2);
    leader.append(0, 10).await;
    let answer = leader.fetch(&[(1, 0), (0, 2)], ALL).await;
    assert_eq!((with_records(&answer), filled(&answer)), (vec![0, 1], 1));
    tokio::time::pause();
    tokio::time::advance(AWAITED_FOR + Duration::from_millis(1)).await;
    tokio::time::resume();
    assert_eq!(filled(&leader.fetch(&[(1, 0)], ALL).await), 3, "nobody has been for long");
}
