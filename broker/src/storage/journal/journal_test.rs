use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_protocol::records::Compression;
use tempfile::TempDir;
use uuid::Uuid;

use super::held_disk::HeldDisk;
use super::sim_disk::SimDisk;
use super::*;
use crate::storage::batch::parse_header;
use crate::storage::batch::samples::{batch, keyed_batch};
use crate::storage::conformance::{
    Held, HeldVolume, Opened, Volume, compacted, compaction_conformance_tests, conformance_tests,
    held_conformance_tests, job, kept_for_ever, open, partition, records, try_open,
};
use crate::storage::{Durability, ReadRange, Reader};
use crate::volume::KeptSpace;
use crate::volume::small::SmallVolume;

#[path = "damage_test.rs"]
mod damage;
#[path = "failing_disk_test.rs"]
mod failing_disk;
#[path = "interrupt_test.rs"]
mod interrupt;
#[path = "kill_test.rs"]
mod kill;
#[path = "model_test.rs"]
mod model;
#[path = "read_test.rs"]
mod reading;
#[path = "recovery_test.rs"]
mod recovering;
#[path = "replay_test.rs"]
mod replaying;
#[path = "space_test.rs"]
mod space;

const VOLUME: Uuid = Uuid::from_u128(7);

struct Directory {
    directory: TempDir,
    options: JournalStoreOptions,
}

impl Directory {
    fn new(options: JournalStoreOptions) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), options }
    }

    /// A volume whose journal is on a simulated disk; the index is on a real file system, in memory if there is one: these
    /// tests end processes in thought only.
    fn simulated(options: JournalStoreOptions) -> (Self, SimDisk) {
        let disk = SimDisk::new();
        let options = JournalStoreOptions { disk: Arc::new(disk.clone()), ..options };
        let in_memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        (Self { directory: in_memory.unwrap(), options }, disk)
    }

    fn try_open(&self) -> Result<JournalStore, StorageError> {
        JournalStore::open(self.directory.path(), VOLUME, self.options.clone())
    }

    /// The index as a crash would leave it now: without what is only in memory.
    fn index_on_disk(&self) -> TempDir {
        loop {
            let beside = self.directory.path().parent().unwrap();
            let (index, copy) = (self.directory.path().join("index"), tempfile::tempdir_in(beside).unwrap());
            // Of files that are made or replaced meanwhile the copy has some too early and some too late. RocksDB notes
            // in its manifest which belong together.
            if copy_files(&index, copy.path()).is_ok()
                && contents(&index).is_ok_and(|now| now == contents(copy.path()).unwrap())
            {
                return copy;
            }
        }
    }

    fn replace_index(&self, copy: &TempDir) {
        let path = self.directory.path().join("index");
        fs::remove_dir_all(&path).unwrap();
        fs::create_dir(&path).unwrap();
        copy_files(copy.path(), &path).unwrap();
    }
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        fs::copy(&path, to.join(path.file_name().unwrap()))?;
    }
    Ok(())
}

/// The files of a RocksDB, with what is in those that say which others belong to it.
fn contents(directory: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_list = name == "CURRENT" || name.to_string_lossy().starts_with("MANIFEST");
        let bytes = if is_list { fs::read(entry.path())? } else { Vec::new() };
        found.insert(name, bytes);
    }
    Ok(found)
}

impl Volume for Directory {
    fn open(&self) -> Arc<dyn LogStore> {
        Arc::new(self.try_open().unwrap())
    }
}

fn options() -> JournalStoreOptions {
    JournalStoreOptions { reserve_bytes: Some(0), segment_bytes: Some(1 << 20), ..Default::default() }
}

/// A volume whose disk can be held. After a loss of power the disk is another one on the same files.
struct HeldDirectory {
    directory: Directory,
    disk: Mutex<HeldDisk>,
}

impl HeldDirectory {
    fn new() -> Self {
        Self { directory: Directory::new(options()), disk: Mutex::default() }
    }
}

impl Volume for HeldDirectory {
    fn open(&self) -> Arc<dyn LogStore> {
        let disk = HeldDisk::default();
        *self.disk.lock() = disk.clone();
        let options = JournalStoreOptions { disk: Arc::new(disk), ..self.directory.options.clone() };
        Arc::new(JournalStore::open(self.directory.directory.path(), VOLUME, options).unwrap())
    }
}

impl HeldVolume for HeldDirectory {
    fn hold(&self) -> Box<dyn Held> {
        Box::new(self.disk.lock().hold())
    }
}

mod held {
    use super::*;
    held_conformance_tests!(HeldDirectory::new());
}

mod with_defaults {
    use super::*;
    conformance_tests!(Directory::new(options()));
    compaction_conformance_tests!(Directory::new(options()));
}

mod without_tail_cache_and_with_short_segments {
    use super::*;
    fn volume() -> Directory {
        Directory::new(JournalStoreOptions {
            tail_cache_bytes: 0,
            segment_bytes: Some(32 << 10),
            ..options()
        })
    }

    conformance_tests!(volume());
    compaction_conformance_tests!(volume());
}

mod on_a_simulated_disk {
    use super::*;
    conformance_tests!(Directory::simulated(options()).0);
    compaction_conformance_tests!(Directory::simulated(options()).0);
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_batch_that_no_segment_holds_is_refused_and_nothing_else() {
    let volume = Directory::new(JournalStoreOptions { segment_bytes: Some(64 << 10), ..options() });
    let log = open(&volume.open(), LogSettings::default());
    let refused = log.queue(&batch(1, &[0; 70_000]), 0).unwrap_err();
    assert!(matches!(refused, StorageError::TooLarge { .. }), "{refused}");
    log.append(&[batch(1, &[0; 50_000]), batch(1, &[0; 50_000])], 0);
    assert_eq!(log.read_all(0).len(), 2);
}

#[test]
fn a_request_larger_than_the_queue_is_admitted_alone() {
    let volume = Directory::new(JournalStoreOptions { max_queued_bytes: 1_000, ..options() });
    let log = open(&volume.open(), LogSettings::default());
    log.append(&[batch(1, &[0; 5_000])], 0);
}

#[test]
fn appends_queued_together_share_one_write_and_one_sync() {
    let (volume, disk) = Directory::simulated(options());
    let store = volume.open();
    let logs: Vec<_> =
        (0..100).map(|number| try_open(&store, number, LogSettings::default()).unwrap()).collect();
    let before = (disk.faults().writes.load(Ordering::SeqCst), disk.faults().syncs.load(Ordering::SeqCst));
    let ends: Vec<_> = logs.iter().map(|log| log.queue(&batch(1, &[0; 1_000]), 0).unwrap()).collect();
    for (log, end) in logs.iter().zip(ends) {
        assert!(log.ends.wait(end));
    }
    let writes = disk.faults().writes.load(Ordering::SeqCst) - before.0;
    let syncs = disk.faults().syncs.load(Ordering::SeqCst) - before.1;
    assert!(writes < 50 && syncs < 50, "{writes} writes and {syncs} syncs for 100 logs");
}

#[test]
fn a_written_log_does_not_wait_for_the_disk_and_is_synced_after_a_while() {
    let (volume, disk) = Directory::simulated(options());
    let store = volume.open();
    let settings = LogSettings { durability: Durability::Written, ..LogSettings::default() };
    let log = open(&store, settings);
    disk.faults().fail_syncs.store(true, Ordering::SeqCst);
    log.append(&[batch(3, b"value")], 0);
    assert_eq!(log.read_all(0).len(), 1, "acknowledged and readable without any sync");
    let mut failure = store.failure();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let synced = runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(20), failure.wait_for(Option::is_some)).await.is_ok()
    });
    assert!(synced, "it is synced in the end, which fails here");
}

#[test]
fn a_written_log_goes_on_while_it_is_synced_until_too_much_is_not() {
    const BATCH: usize = 1 << 20;
    let disk = HeldDisk::default();
    let options =
        JournalStoreOptions { disk: Arc::new(disk.clone()), segment_bytes: Some(64 << 20), ..options() };
    let volume = Directory::new(options);
    let store = volume.open();
    let log = open(&store, LogSettings { durability: Durability::Written, ..kept_for_ever() });
    let most = usize::try_from(writer::MAX_UNSYNCED_BYTES).unwrap();
    let hold = disk.hold_syncs();
    let ends: Vec<_> = (0..60).map(|_| log.queue(&batch(1, &vec![0; BATCH]), 0).unwrap()).collect();
    let within = ends[most / BATCH - 1];
    assert!(log.ends.wait(within), "a sync began long before, and nobody waits for it");
    let beyond = ends[(most + writer::COMMIT_BYTES) / BATCH];
    for _ in 0..100 {
        assert!(log.log.ends().durable_end < beyond, "a power failure takes away no more than the bound");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(hold);
    assert!(log.ends.wait(ends[59]));
}

#[test]
fn segments_are_used_again_when_nothing_in_them_is_live() {
    let (volume, disk) =
        Directory::simulated(JournalStoreOptions { segment_bytes: Some(64 << 10), ..options() });
    let store = volume.open();
    let log = open(&store, kept_for_ever());
    let mut most = 0;
    for round in 0..60 {
        log.append(&[batch(1, &[3; 20_000]), batch(1, &[4; 20_000])], 0);
        log.log.set_log_start(log.log.ends().log_end - 1).unwrap();
        let entry = CheckpointEntry { partition: partition(0), state: None };
        store.checkpoint(vec![entry], round).unwrap();
        most = most.max(disk.file_count());
    }
    assert!(most <= 5, "{most} files of 64 KiB for 20 KB of live data, after 2.4 MB");
    store.close();
    let log = open(&volume.open(), LogSettings::default());
    assert_eq!((log.log.ends().log_start, log.log.ends().log_end), (119, 120));
    assert_eq!(log.read_all(119).len(), 1);
}

#[test]
fn many_logs_are_deleted_with_one_commit() {
    let (volume, disk) = Directory::simulated(options());
    let store = volume.open();
    let logs: Vec<_> = (0..300).map(|number| try_open(&store, number, kept_for_ever()).unwrap()).collect();
    logs.iter().for_each(|log| log.append(&[batch(1, b"value")], 0));
    let partitions: Vec<_> = (0..299).map(partition).collect();
    let before = disk.faults().syncs.load(Ordering::SeqCst);
    // One of them twice.
    store.delete(&[&partitions[..], &partitions[..1]].concat()).unwrap();
    let syncs = disk.faults().syncs.load(Ordering::SeqCst) - before;
    assert!(syncs <= 2, "{syncs} syncs");
    let left: Vec<_> = store.list().into_iter().map(|log| log.partition).collect();
    assert_eq!(left, [partition(299)]);
    assert!(matches!(logs[0].queue(&batch(1, b"value"), 0), Err(StorageError::Gone)));
    store.close();
    assert_eq!(volume.open().list().len(), 1);
}

#[test]
fn nothing_is_left_of_a_log_whose_start_is_moved_while_it_is_deleted() {
    let disk = HeldDisk::default();
    let volume = Directory::new(JournalStoreOptions { disk: Arc::new(disk.clone()), ..options() });
    let store = volume.open();
    let log = open(&store, kept_for_ever());
    log.append(&[batch(1, b"a"), batch(1, b"b"), batch(1, b"c")], 0);
    let hold = disk.hold();
    let (writes, _) = disk.begun();
    std::thread::scope(|scope| {
        scope.spawn(|| log.log.set_log_start(1));
        wait_until("the first is on its way", || disk.begun().0 > writes);
        scope.spawn(|| store.delete(&[partition(0)]).unwrap());
        // Waits for the first, and may come before the deletion or after it.
        let second = scope.spawn(|| log.log.set_log_start(2));
        for _ in 0..50 {
            assert!(!second.is_finished());
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(hold);
    });
    assert_eq!(store.list(), []);
}

#[test]
fn a_deleted_log_gives_its_space_back() {
    let (volume, disk) =
        Directory::simulated(JournalStoreOptions { segment_bytes: Some(64 << 10), ..options() });
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    let other = try_open(&store, 1, LogSettings::default()).unwrap();
    log.append(&vec![batch(1, &[3; 50_000]); 20], 0);
    other.append(&[batch(1, b"stays")], 0);
    let before = disk.file_count();
    store.delete(&[partition(0)]).unwrap();
    store.checkpoint(Vec::new(), 1).unwrap();
    assert!(before >= 20 && disk.file_count() <= 8, "{before} files before, {} after", disk.file_count());
    assert_eq!(other.read_all(0).len(), 1);
}

#[test]
fn segments_in_which_little_is_left_are_rewritten_sorted_by_log() {
    let (volume, disk) =
        Directory::simulated(JournalStoreOptions { segment_bytes: Some(64 << 10), ..options() });
    let store = volume.open();
    let settings = kept_for_ever();
    let many = open(&store, settings);
    let few: Vec<_> = [1, 2].map(|number| try_open(&store, number, settings).unwrap()).into();
    let checkpoint = |known_at| {
        let entry = CheckpointEntry { partition: partition(0), state: None };
        store.checkpoint(vec![entry], known_at).unwrap();
    };
    for _ in 0..60 {
        many.append(&[batch(1, &[3; 40_000])], 0);
        few.iter().for_each(|log| log.append(&[batch(1, &[5; 900])], 0));
    }
    let before = disk.file_count();
    many.log.set_log_start(60).unwrap();
    // What a checkpoint has rewritten can be used again after the next.
    (0..6).for_each(checkpoint);
    let after = disk.file_count();
    assert!(before >= 60 && after <= 14, "{before} files before, {after} after, for 108 KB that live");
    let check = |logs: &[Opened]| {
        for log in logs {
            assert_eq!(log.read_all(0).len(), 60);
            assert_eq!(log.log.size(), log.bytes(all()).len() as u64);
        }
    };
    check(&few);
    let index = volume.index_on_disk();
    store.close();
    volume.replace_index(&index);
    let store = volume.open();
    let few: Vec<_> = [1, 2].map(|number| try_open(&store, number, settings).unwrap()).into();
    check(&few);
}

#[test]
fn a_store_wants_checkpoints_until_they_give_no_more_space_back_also_when_nothing_is_appended() {
    let (volume, disk) =
        Directory::simulated(JournalStoreOptions { segment_bytes: Some(64 << 10), ..options() });
    let store = volume.open();
    let logs = [1, 2].map(|number| try_open(&store, number, kept_for_ever()).unwrap());
    for _ in 0..60 {
        logs[0].append(&[batch(1, &[3; 40_000])], 0);
        logs[1].append(&[batch(1, &[5; 900])], 0);
    }
    let checkpoint = || store.checkpoint(Vec::new(), 1).unwrap();
    let wants_more = || {
        let need = store.checkpoint_need();
        need.bytes > 0 || need.gives_space
    };
    assert!(wants_more(), "much was appended");
    checkpoint();
    assert!(!wants_more(), "everything lives");
    let before = disk.file_count();
    store.delete(&[partition(1)]).unwrap();
    assert!(wants_more(), "most of it does not live any more");
    let mut rounds = 0;
    while wants_more() {
        checkpoint();
        rounds += 1;
        assert!(rounds < 20, "it never has enough");
    }
    let after = disk.file_count();
    assert!(before >= 40 && after <= 14, "{before} files before, {after} after, for 54 KB that live");
    assert_eq!(logs[1].read_all(0).len(), 60);
}

#[test]
fn a_compacted_log_takes_no_more_space_than_twice_what_is_left_of_it() {
    let (volume, disk) =
        Directory::simulated(JournalStoreOptions { segment_bytes: Some(64 << 10), ..options() });
    let store = volume.open();
    let log = open(&store, compacted());
    let record = |key: usize| {
        let key = key.to_be_bytes();
        keyed_batch(Compression::None, (-1, -1, -1), &[(&key[..], Some(&[7; 900][..]))])
    };
    let mut most = 0;
    for round in 0..40_usize {
        // Ten keys are written over and over, and one of each round only once.
        (0..100).for_each(|number| log.append(&[record(number % 10)], 0));
        log.append(&[record(1_000 + round)], 0);
        let end = log.log.ends().durable_end;
        log.log.compact(&job(end, &HashMap::new())).unwrap();
        let entry = CheckpointEntry { partition: partition(0), state: None };
        store.checkpoint(vec![entry], round as u64).unwrap();
        most = most.max(disk.file_count());
    }
    let left = records(&log, 0);
    assert_eq!(left.len(), 50);
    assert!(log.log.size() < 60_000, "{}", log.log.size());
    assert!(most <= 16, "{most} files of 64 KiB for less than one of live data, after 3.7 MB");
    store.close();
    assert_eq!(records(&open(&volume.open(), compacted()), 0), left);
}

#[test]
fn segments_in_which_little_but_compacted_runs_is_left_are_rewritten() {
    let (volume, disk) =
        Directory::simulated(JournalStoreOptions { segment_bytes: Some(64 << 10), ..options() });
    let store = volume.open();
    let bulk = open(&store, kept_for_ever());
    let record = keyed_batch(Compression::None, (-1, -1, -1), &[(&b"key"[..], Some(&[7; 900][..]))]);
    let compacted_logs: Vec<_> = (1..=60)
        .map(|number| {
            let log = try_open(&store, number, compacted()).unwrap();
            log.append(&[record.clone(), record.clone()], 0);
            log.log.compact(&job(2, &HashMap::new())).unwrap();
            bulk.append(&[batch(1, &[3; 40_000])], 0);
            log
        })
        .collect();
    let before = disk.file_count();
    bulk.log.set_log_start(60).unwrap();
    let entry = || CheckpointEntry { partition: partition(0), state: None };
    // What a checkpoint has rewritten can be used again after the next.
    (0..6).for_each(|known_at| store.checkpoint(vec![entry()], known_at).unwrap());
    let after = disk.file_count();
    assert!(before >= 60 && after <= 14, "{before} files before, {after} after, for 60 KB that live");
    for log in &compacted_logs {
        assert_eq!(records(log, 0).len(), 1);
        assert_eq!(log.log.size(), log.bytes_of_all(0));
    }
}

fn all() -> ReadRange {
    ReadRange { reader: Reader::Consumer, offset: 0, until: i64::MAX, max_bytes: 1 << 20, at_least_one: true }
}

#[test]
fn a_store_opens_with_the_space_that_is_kept_when_others_have_taken_the_rest() {
    let Some(volume) = SmallVolume::mount(128) else { return };
    let kept_space = Arc::new(KeptSpace::new(volume.path()));
    let open = || {
        let disk = Arc::new(OsDisk::with_kept_space(Arc::clone(&kept_space)));
        JournalStore::open(volume.path(), VOLUME, JournalStoreOptions { disk, ..options() })
    };
    drop(open().unwrap());
    kept_space.look().unwrap();
    volume.fill();
    drop(open().unwrap());
}
