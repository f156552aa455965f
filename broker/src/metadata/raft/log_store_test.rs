//! openraft's own suite, and what it does not ask about.

use openraft::entry::RaftEntry;
use openraft::storage::{RaftLogStorageExt, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use uuid::Uuid;

use super::super::disk;
use super::super::state_machine::StateMachine;
use super::super::types::{Command, EntryPayload, SnapshotMeta};
use super::*;
use crate::volume::small::SmallVolume;

fn open(directory: &Path) -> io::Result<(LogStore, Closer)> {
    LogStore::open(directory, Arc::new(KeptSpace::new(directory)))
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, StateMachine), openraft::StorageError<TypeConfig>> {
        let directory = tempfile::tempdir().unwrap();
        let (store, _closer) = open(directory.path()).unwrap();
        let machine = StateMachine::open(store.clone(), Uuid::from_u128(1)).unwrap();
        Ok((directory, store, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passes_the_suite_of_openraft() {
    Suite::test_all(Builder).await.unwrap();
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}

fn entry(term: u64, index: u64, size: usize) -> Entry {
    let command = Command { decided_in_term: term, records: vec![7; size] };
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(command) }
}

fn blank(term: u64, index: u64) -> Entry {
    Entry::new_blank(log_id(term, index))
}

async fn log_ids(store: &mut LogStore) -> Vec<LogId> {
    store.try_get_log_entries(..).await.unwrap().into_iter().map(|entry| entry.log_id).collect()
}

async fn close(store: LogStore, closer: Closer) {
    drop(store);
    tokio::task::spawn_blocking(|| closer.close()).await.unwrap();
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, closer) = open(directory.path()).unwrap();
    let vote = Vote::new_committed(3, u64::MAX);
    store.save_vote(&vote).await.unwrap();
    store.blocking_append((0..20).map(|index| entry(1, index, 10))).await.unwrap();
    store.truncate_after(Some(log_id(1, 14))).await.unwrap();
    store.blocking_append((15..30).map(|index| entry(2, index, 10))).await.unwrap();
    store.purge(log_id(1, 4)).await.unwrap();
    store.save_committed(Some(log_id(2, 20))).await.unwrap();
    store.save_snapshot(Bytes::from_static(b"snapshot")).await.unwrap();
    let expected = log_ids(&mut store).await;
    let log_end = store.log_end();
    log_end.sync().await.unwrap();
    close(store, closer).await;
    assert!(log_end.sync().await.is_err(), "the log is closed");

    let (mut store, closer) = open(directory.path()).unwrap();
    assert_eq!(log_ids(&mut store).await, expected);
    assert_eq!(expected.first().copied(), Some(log_id(1, 5)));
    assert_eq!(expected.last().copied(), Some(log_id(2, 29)));
    assert_eq!(store.read_vote().await.unwrap(), Some(vote));
    assert_eq!(store.read_committed().await.unwrap(), Some(log_id(2, 20)));
    assert_eq!(store.snapshot().unwrap().as_deref(), Some(&b"snapshot"[..]));
    let state = store.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(1, 4)), Some(log_id(2, 29))));
    close(store, closer).await;
}

#[tokio::test]
async fn old_entries_are_read_from_disk_and_new_ones_from_memory() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _closer) = open(directory.path()).unwrap();
    let total = 3 * u64::try_from(TAIL_ENTRIES).unwrap();
    for start in (0..total).step_by(64) {
        store.blocking_append((start..start + 64).map(|index| entry(1, index, 10))).await.unwrap();
    }
    assert!(store.shared.memory.state.lock().tail_start() > 0, "nothing was dropped from memory");
    let expected: Vec<LogId> = (0..total).map(|index| log_id(1, index)).collect();
    assert_eq!(log_ids(&mut store).await, expected);
    let middle = store.try_get_log_entries(100..900).await.unwrap();
    assert_eq!((middle.first().unwrap().log_id.index, middle.last().unwrap().log_id.index), (100, 899));
}

#[tokio::test]
async fn replication_reads_a_bounded_number_of_bytes_but_always_something() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _closer) = open(directory.path()).unwrap();
    store.blocking_append((0..6).map(|index| entry(1, index, 3 << 20))).await.unwrap();
    for start in 0..6 {
        assert_eq!(store.limited_get_log_entries(start, 6).await.unwrap().len(), 1, "from {start}");
    }
    let (mut store, _closer) = {
        let directory = tempfile::tempdir().unwrap();
        open(directory.path()).unwrap()
    };
    store.blocking_append((0..6).map(|index| entry(1, index, 1 << 20))).await.unwrap();
    assert_eq!(store.limited_get_log_entries(0, 6).await.unwrap().len(), 3);
}

#[tokio::test]
async fn an_entry_that_leaves_a_hole_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _closer) = open(directory.path()).unwrap();
    store.blocking_append([blank(1, 0)]).await.unwrap();
    assert!(store.append([blank(1, 2)], IOFlushed::noop()).await.is_err());
}

#[tokio::test]
async fn a_committed_position_is_never_stored_without_its_entries() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, closer) = open(directory.path()).unwrap();
    store.blocking_append([blank(1, 0), blank(1, 1)]).await.unwrap();
    // A follower hears of a commit before it has the entry.
    store.save_committed(Some(log_id(1, 7))).await.unwrap();
    store.save_vote(&Vote::new(2, 5)).await.unwrap();
    close(store, closer).await;
    let (mut store, _closer) = open(directory.path()).unwrap();
    assert_eq!(store.read_committed().await.unwrap(), None);
}

#[tokio::test]
async fn a_damaged_value_is_an_error_not_an_empty_log() {
    let directory = tempfile::tempdir().unwrap();
    {
        let db = rocksdb::DB::open(&disk::options(), directory.path()).unwrap();
        db.put(keys::VOTE, b"nonsense").unwrap();
    }
    assert!(open(directory.path()).is_err());
}

#[tokio::test]
async fn a_snapshot_of_another_cluster_is_not_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _closer) = open(directory.path()).unwrap();
    let snapshot = codec::encode_snapshot(Uuid::from_u128(2), &SnapshotMeta::default(), &[]).unwrap();
    store.save_snapshot(snapshot).await.unwrap();
    assert!(StateMachine::open(store.clone(), Uuid::from_u128(1)).is_err());
    let mut machine = StateMachine::open(store, Uuid::from_u128(2)).unwrap();
    assert!(machine.get_current_snapshot().await.unwrap().is_some());
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _closer) = open(directory.path()).unwrap();
    let vote = Vote::new(4, 9);
    store.blocking_append((0..50).map(|index| entry(1, index, 100))).await.unwrap();
    store.truncate_after(Some(log_id(1, 39))).await.unwrap();
    store.blocking_append((40..45).map(|index| entry(2, index, 100))).await.unwrap();
    store.save_vote(&vote).await.unwrap();

    // The files as a crash would leave them, while the store is still open.
    let crashed = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(directory.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), crashed.path().join(file.file_name())).unwrap();
    }
    let (mut store, _closer) = open(crashed.path()).unwrap();
    let found = log_ids(&mut store).await;
    assert_eq!(found.len(), 45);
    assert_eq!((found[39], found[44]), (log_id(1, 39), log_id(2, 44)));
    assert_eq!(store.read_vote().await.unwrap(), Some(vote));
}

#[tokio::test]
async fn a_log_is_opened_and_written_with_the_space_that_is_kept_when_others_have_taken_the_rest() {
    let Some(volume) = SmallVolume::mount(128) else { return };
    let kept_space = Arc::new(KeptSpace::new(volume.path()));
    let directory = volume.path().join("raft");
    let (mut store, closer) = LogStore::open(&directory, Arc::clone(&kept_space)).unwrap();
    kept_space.look().unwrap();
    volume.fill();
    store.blocking_append([blank(0, 0), entry(1, 1, 1 << 16)]).await.unwrap();
    close(store, closer).await;

    volume.make_room();
    kept_space.look().unwrap();
    volume.fill();
    let (mut store, _closer) = LogStore::open(&directory, kept_space).unwrap();
    assert_eq!(log_ids(&mut store).await.len(), 2);
}
