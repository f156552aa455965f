use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::storage::batch::samples::batch;
use crate::storage::batch::{parse_header, stamp};
use crate::storage::conformance::{
    self, Opened, Volume, conformance_tests, open, partition, small_segments, try_open,
};
use crate::storage::{AppendBatch, Durability, ReadRange};

struct Directory {
    directory: TempDir,
    options: FileStoreOptions,
}

impl Directory {
    fn new(options: FileStoreOptions) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), options }
    }

    fn log_directory(&self) -> PathBuf {
        self.directory.path().join("logs").join(directory_name(partition(0)))
    }

    /// Files of partition 0, oldest first.
    fn segments(&self) -> Vec<PathBuf> {
        let mut paths: Vec<_> =
            fs::read_dir(self.log_directory()).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }
}

impl Volume for Directory {
    fn open(&self) -> Arc<dyn LogStore> {
        Arc::new(FileStore::open(self.directory.path(), self.options.clone()).unwrap())
    }
}

fn options() -> FileStoreOptions {
    FileStoreOptions { reserve_bytes: Some(0), ..FileStoreOptions::default() }
}

mod with_defaults {
    use super::*;
    conformance_tests!(Directory::new(options()));
}

mod without_tail_cache_and_with_two_handles {
    use super::*;
    conformance_tests!(Directory::new(FileStoreOptions {
        tail_cache_bytes: 0,
        max_open_files: 2,
        ..options()
    }));
}

/// A disk whose writes or syncs can be made to fail, and whose space can be set.
#[derive(Debug, Default)]
struct FaultyDisk {
    fail_writes: AtomicBool,
    fail_syncs: AtomicBool,
    free: AtomicU64,
    syncs: AtomicU64,
}

impl Disk for FaultyDisk {
    fn write_at(&self, file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
        if self.fail_writes.load(Ordering::SeqCst) {
            // Half of it arrives, as on a full disk.
            OsDisk.write_at(file, &bytes[..bytes.len() / 2], position)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        OsDisk.write_at(file, bytes, position)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        if self.fail_syncs.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is on fire"));
        }
        OsDisk.sync(file)
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        Ok(Space { free: self.free.load(Ordering::SeqCst), total: 1 << 40 })
    }
}

fn faulty() -> (Directory, Arc<FaultyDisk>) {
    let disk = Arc::new(FaultyDisk::default());
    disk.free.store(1 << 40, Ordering::SeqCst);
    let options = FileStoreOptions { disk: Arc::clone(&disk) as Arc<dyn Disk>, ..options() };
    (Directory::new(options), disk)
}

fn expect_poisoned(store: &Arc<dyn LogStore>, log: &Opened, doing: &str) {
    let end = log.queue(&batch(1, b"lost"), 0).unwrap();
    assert!(!log.ends.wait(end), "acknowledged although {doing} failed");
    let failure = store.failure().borrow().clone().unwrap();
    assert_eq!(failure.doing, doing);
    assert!(matches!(log.queue(&batch(1, b"refused"), 0), Err(StorageError::Failed(_))));
    assert!(matches!(store.checkpoint(Vec::new(), 1), Err(StorageError::Failed(_))));
    assert_eq!(log.log.ends().durable_end, 3, "the durable end does not move any more");
    assert_eq!(log.read_all(0).len(), 1, "what was durable can still be read");
}

#[test]
fn a_failed_sync_stops_the_store_and_is_never_tried_again() {
    let (volume, disk) = faulty();
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    log.append(&[batch(3, b"kept")], 0);
    disk.fail_syncs.store(true, Ordering::SeqCst);
    expect_poisoned(&store, &log, "syncing");
    let syncs = disk.syncs.load(Ordering::SeqCst);
    disk.fail_syncs.store(false, Ordering::SeqCst);
    store.close();
    assert_eq!(disk.syncs.load(Ordering::SeqCst), syncs);
    let reopened = open(&volume.open(), LogSettings::default());
    assert!(reopened.log.ends().log_end >= 3);
}

#[test]
fn a_failed_write_stops_the_store_and_a_restart_removes_its_half() {
    let (volume, disk) = faulty();
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    log.append(&[batch(3, b"kept")], 0);
    disk.fail_writes.store(true, Ordering::SeqCst);
    expect_poisoned(&store, &log, "writing");
    disk.fail_writes.store(false, Ordering::SeqCst);
    store.close();
    let reopened = open(&volume.open(), LogSettings::default());
    assert_eq!(reopened.log.ends().log_end, 3);
    reopened.append(&[batch(1, b"on it goes")], 0);
    assert_eq!(reopened.read_all(0).len(), 2);
}

#[test]
fn a_full_volume_refuses_appends_until_there_is_space_again() {
    let (volume, disk) = faulty();
    let options = FileStoreOptions { reserve_bytes: Some(10_000), ..volume.options.clone() };
    let volume = Directory { options, ..volume };
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    disk.free.store(10_050, Ordering::SeqCst);
    let refused = log.queue(&batch(1, &[0; 500]), 0).unwrap_err();
    assert!(matches!(refused, StorageError::Full { free: 10_050, reserve: 10_000, .. }), "{refused}");
    assert!(refused.to_string().contains("enlarge the volume"), "{refused}");
    assert!(store.failure().borrow().is_none(), "nothing is broken");
    disk.free.store(1 << 30, Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(120));
    log.append(&[batch(1, &[0; 500])], 0);
}

/// Waits for room in the queue.
fn admit(store: &Arc<dyn LogStore>, bytes: usize) -> Result<Admission, StorageError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(store.admit(bytes))
}

/// A stopped store with ten batches of three records in partition 0, and what the last of them looks like on disk.
fn stopped_with_ten(volume: &Directory, checkpoint_after: Option<usize>) -> Vec<u8> {
    let store = volume.open();
    let log = open(&store, LogSettings { retention_ms: None, ..LogSettings::default() });
    for number in 0..10 {
        log.append(&[batch(3, &[7; 100])], 0);
        if checkpoint_after == Some(number) {
            store.checkpoint(vec![CheckpointEntry { partition: partition(0), state: None }], 1).unwrap();
        }
    }
    let last =
        log.log.read(ReadRange { offset: 27, until: 100, max_bytes: 1 << 20, at_least_one: true }).unwrap();
    store.close();
    last.to_vec()
}

fn append_to_file(path: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

fn damaged(volume: &Directory) -> StorageError {
    let store = volume.open();
    let error = try_open(&store, 0, LogSettings::default()).err().expect("damage is refused");
    assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
    // One damaged log does not stop the others.
    let other = try_open(&store, 1, LogSettings::default()).unwrap();
    other.append(&[batch(1, b"fine")], 0);
    error
}

#[test]
fn a_torn_tail_is_cut_off_wherever_it_was_torn() {
    let volume = Directory::new(options());
    let mut next = stopped_with_ten(&volume, Some(4));
    stamp(&mut next, 30, 0);
    let path = volume.segments().remove(0);
    let whole = fs::metadata(&path).unwrap().len();
    for torn in [1, 11, 12, 60, 61, 100, next.len() - 1] {
        append_to_file(&path, &next[..torn]);
        let store = volume.open();
        let log = open(&store, LogSettings::default());
        assert_eq!(log.log.ends().log_end, 30, "torn after {torn} bytes");
        assert_eq!(log.read_all(0).len(), 10);
        store.close();
        assert_eq!(fs::metadata(&path).unwrap().len(), whole);
    }
    append_to_file(&path, &[0; 5_000]);
    assert_eq!(open(&volume.open(), LogSettings::default()).log.ends().log_end, 30, "zeros are no batch");
}

#[test]
fn a_whole_unacknowledged_batch_after_a_crash_is_kept() {
    let volume = Directory::new(options());
    let mut next = stopped_with_ten(&volume, None);
    stamp(&mut next, 30, 0);
    append_to_file(&volume.segments()[0], &next);
    assert_eq!(open(&volume.open(), LogSettings::default()).log.ends().log_end, 33);
}

#[test]
fn a_flipped_byte_in_the_middle_is_refused_and_nothing_is_cut() {
    for checkpoint_after in [None, Some(2)] {
        for at in [0.45, 0.5, 0.6, 0.7, 0.8] {
            let volume = Directory::new(options());
            let last = stopped_with_ten(&volume, checkpoint_after);
            let path = volume.segments().remove(0);
            let mut bytes = fs::read(&path).unwrap();
            let position = (bytes.len() as f64 * at) as usize;
            bytes[position] ^= 0x40;
            fs::write(&path, &bytes).unwrap();
            let error = damaged(&volume);
            let StorageError::Damaged { position: reported, .. } = error else { unreachable!() };
            assert_eq!(
                reported as usize,
                position / last.len() * last.len(),
                "the batch that holds the byte"
            );
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }
}

#[test]
fn damage_is_cut_off_where_the_topic_asked_for_no_more_than_written() {
    let volume = Directory::new(options());
    let last = stopped_with_ten(&volume, None);
    let path = volume.segments().remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[5 * last.len() + 80] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let settings = LogSettings { durability: Durability::Written, ..LogSettings::default() };
    assert_eq!(open(&volume.open(), settings).log.ends().log_end, 15);
}

#[test]
fn a_file_shorter_than_its_checkpoint_is_refused() {
    let volume = Directory::new(options());
    let last = stopped_with_ten(&volume, Some(9));
    let path = volume.segments().remove(0);
    OpenOptions::new().write(true).open(&path).unwrap().set_len(9 * last.len() as u64).unwrap();
    let error = damaged(&volume).to_string();
    assert!(error.contains("were synced"), "{error}");
}

#[test]
fn a_missing_file_or_directory_is_refused() {
    let volume = Directory::new(options());
    let store = volume.open();
    let log = open(&store, small_segments());
    log.append(&vec![batch(3, &[1; 200]); 10], 0);
    store.checkpoint(vec![CheckpointEntry { partition: partition(0), state: None }], 1).unwrap();
    store.close();
    let segments = volume.segments();
    assert!(segments.len() >= 4);
    let hidden = volume.directory.path().join("hidden");
    fs::rename(&segments[2], &hidden).unwrap();
    damaged(&volume);
    fs::rename(&hidden, &segments[2]).unwrap();
    fs::rename(volume.log_directory(), &hidden).unwrap();
    damaged(&volume);
}

#[test]
fn a_gap_between_segments_is_refused_without_a_checkpoint_too() {
    let volume = Directory::new(options());
    let store = volume.open();
    let log = open(&store, small_segments());
    log.append(&vec![batch(3, &[1; 200]); 10], 0);
    store.close();
    fs::remove_file(&volume.segments()[1]).unwrap();
    damaged(&volume);
}

#[test]
fn a_broken_checkpoint_is_an_error_not_an_absent_one() {
    let volume = Directory::new(options());
    stopped_with_ten(&volume, Some(9));
    let path = volume.directory.path().join("logs").join(checkpoint::FILE_NAME);
    let mut bytes = fs::read(&path).unwrap();
    bytes[12] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = FileStore::open(volume.directory.path(), options()).unwrap_err();
    assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
}

#[test]
fn what_the_checkpoint_covers_is_not_read_again() {
    let volume = Directory::new(options());
    stopped_with_ten(&volume, Some(9));
    let path = volume.segments().remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(open(&volume.open(), LogSettings::default()).log.ends().log_end, 30);
}

#[test]
fn a_half_deleted_log_is_removed_at_the_next_start() {
    let volume = Directory::new(options());
    stopped_with_ten(&volume, None);
    let doomed = volume.log_directory().with_extension(writer::DELETED);
    fs::rename(volume.log_directory(), &doomed).unwrap();
    let store = volume.open();
    assert!(!doomed.exists());
    assert!(store.list().is_empty());
}

#[test]
fn many_logs_share_few_handles_and_little_memory() {
    let volume = Directory::new(FileStoreOptions { max_open_files: 8, ..options() });
    let store = FileStore::open(volume.directory.path(), volume.options.clone()).unwrap();
    let shared = Arc::clone(&store.shared);
    let store: Arc<dyn LogStore> = Arc::new(store);
    let logs: Vec<_> =
        (0..40).map(|number| try_open(&store, number, LogSettings::default()).unwrap()).collect();
    for log in &logs {
        log.queue(&batch(1, b"value"), 0).unwrap();
    }
    for log in &logs {
        assert!(log.ends.wait(1));
        assert_eq!(log.read_all(0).len(), 1);
    }
    assert!(shared.handles.count() <= 8);
    assert!(size_of::<FileLog>() < 600, "an idle log takes {} bytes", size_of::<FileLog>());
}

#[test]
fn a_request_larger_than_the_queue_is_admitted_alone() {
    let volume = Directory::new(FileStoreOptions { max_queued_bytes: 1_000, ..options() });
    let log = open(&volume.open(), LogSettings::default());
    log.append(&[batch(1, &[0; 5_000])], 0);
}

#[test]
fn appends_queued_together_share_one_sync() {
    let (volume, disk) = faulty();
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    log.append(&[batch(1, b"first")], 0);
    let before = disk.syncs.load(Ordering::SeqCst);
    log.append(&vec![batch(1, &[0; 1_000]); 500], 0);
    let syncs = disk.syncs.load(Ordering::SeqCst) - before;
    assert!(syncs < 250, "{syncs} syncs for 500 appends");
}

#[derive(Clone, Debug)]
enum Step {
    Append { records: usize, size: usize, next_epoch: bool },
    Truncate(prop::sample::Index),
    LogStart(prop::sample::Index),
    Checkpoint,
    Restart,
    Crash { torn_bytes: usize },
    RetainBytes(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1..5_usize, 0..400_usize, prop::bool::weighted(0.2))
            .prop_map(|(records, size, next_epoch)| Step::Append { records, size, next_epoch }),
        1 => any::<prop::sample::Index>().prop_map(Step::Truncate),
        1 => any::<prop::sample::Index>().prop_map(Step::LogStart),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Restart),
        2 => (0..300_usize).prop_map(|torn_bytes| Step::Crash { torn_bytes }),
        1 => (0..3_000_u64).prop_map(Step::RetainBytes),
    ];
    prop::collection::vec(step, 1..40)
}

/// What a log must look like.
#[derive(Debug, Default)]
struct Model {
    /// Base offset, next offset, leader epoch.
    batches: Vec<(i64, i64, i32)>,
    log_start: i64,
    end: i64,
    epoch: i32,
}

impl Model {
    fn check(&self, log: &Opened) {
        let ends = log.log.ends();
        assert_eq!((ends.log_start, ends.durable_end, ends.log_end), (self.log_start, self.end, self.end));
        let expected: Vec<_> =
            self.batches.iter().filter(|(_, next, _)| *next > self.log_start).copied().collect();
        let found: Vec<_> = log
            .read_all(self.log_start)
            .iter()
            .map(|header| (header.base_offset, header.next_offset(), header.partition_leader_epoch))
            .collect();
        assert_eq!(found, expected);
        for (base, next, epoch) in expected {
            assert_eq!(log.log.epoch_at(base.max(self.log_start)), Some(epoch), "{base}..{next}");
        }
    }
}

fn run(steps: Vec<Step>, options: FileStoreOptions) {
    let volume = Directory::new(options);
    let mut store = volume.open();
    let mut log = open(&store, small_segments());
    let mut model = Model::default();
    for step in steps {
        let span = |index: &prop::sample::Index, model: &Model| {
            model.log_start
                + i64::try_from(index.index(usize::try_from(model.end - model.log_start).unwrap() + 1))
                    .unwrap()
        };
        match step {
            Step::Append { records, size, next_epoch } => {
                model.epoch += i32::from(next_epoch);
                let next = model.end + i64::try_from(records).unwrap();
                log.append(&[batch(records, &vec![5; size])], model.epoch);
                model.batches.push((model.end, next, model.epoch));
                model.end = next;
            }
            Step::Truncate(index) => {
                let offset = span(&index, &model);
                log.log.truncate(offset).unwrap();
                model.batches.retain(|(_, next, _)| *next <= offset);
                if offset < model.end {
                    model.end =
                        model.batches.last().map_or(model.log_start.min(model.end), |(_, next, _)| *next);
                }
                // Batches below the log start may be gone from the disk, or be cut into.
                model.end = log.log.ends().log_end.min(offset.max(model.end));
                model.log_start = model.log_start.min(model.end);
            }
            Step::LogStart(index) => {
                let offset = span(&index, &model);
                log.log.set_log_start(offset).unwrap();
                model.log_start = offset;
            }
            Step::Checkpoint => {
                store.checkpoint(vec![CheckpointEntry { partition: partition(0), state: None }], 1).unwrap();
            }
            Step::RetainBytes(bytes) => {
                log.log.set_settings(LogSettings { retention_bytes: Some(bytes), ..small_segments() });
                log.log.retain(0, model.end).unwrap();
                log.log.set_settings(small_segments());
                let log_start = log.log.ends().log_start;
                assert!(log_start >= model.log_start);
                assert!(
                    log.log.size() >= bytes.min(1)
                        || model.batches.is_empty()
                        || bytes == 0
                        || log.log.size() == 0
                );
                model.log_start = log_start;
                model.batches.retain(|(_, next, _)| *next > log_start);
            }
            Step::Restart | Step::Crash { .. } => {
                store.close();
                drop(log);
                if let Step::Crash { torn_bytes } = step
                    && volume.log_directory().exists()
                {
                    let mut next = batch(2, &[9; 200]).to_vec();
                    stamp(&mut next, model.end, model.epoch);
                    let torn = torn_bytes.min(next.len() - 1);
                    append_to_file(volume.segments().last().unwrap(), &next[..torn]);
                }
                store = volume.open();
                log = open(&store, small_segments());
            }
        }
        model.check(&log);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn the_log_equals_its_model_through_restarts_and_crashes(steps in steps(), cached in any::<bool>()) {
        let tail_cache_bytes = if cached { 1 << 20 } else { 0 };
        run(steps, FileStoreOptions { tail_cache_bytes, max_open_files: 3, ..options() });
    }
}

const KILLED_VOLUME: &str = "MILLRACE_TEST_KILLED_VOLUME";
const KILLED_PARTITIONS: i32 = 3;

/// The batch that a killed child appends at `offset`; the parent checks that it is exactly that.
fn batch_for(number: i32, offset: i64) -> Bytes {
    let salt = usize::try_from(offset * 31 + i64::from(number) * 7).unwrap();
    batch(1 + salt % 3, &vec![u8::try_from(salt % 251).unwrap(); salt % 700])
}

/// Prints each durable end of its partition; runs on the writer's thread, before anything else can happen.
#[derive(Debug)]
struct Printer {
    number: i32,
    inner: conformance::Ends,
}

impl LogListener for Printer {
    fn durable_end_moved(&self, durable_end: i64) {
        writeln!(io::stdout(), "ack {} {durable_end}", self.number).unwrap();
        self.inner.durable_end_moved(durable_end);
    }

    fn store_failed(&self) {
        self.inner.store_failed();
    }
}

#[test]
#[ignore = "run by acknowledged_records_survive_kill_9"]
fn child_that_is_killed() {
    let Some(volume) = std::env::var_os(KILLED_VOLUME) else { return };
    let store: Arc<dyn LogStore> = Arc::new(FileStore::open(Path::new(&volume), options()).unwrap());
    let settings = LogSettings { segment_bytes: 200_000, retention_ms: None, ..LogSettings::default() };
    let printers: Vec<_> = (0..KILLED_PARTITIONS)
        .map(|number| Arc::new(Printer { number, inner: conformance::Ends::default() }))
        .collect();
    let logs: Vec<_> = printers
        .iter()
        .map(|printer| {
            let listener: Arc<dyn LogListener> = Arc::clone(printer) as Arc<dyn LogListener>;
            store.open(partition(printer.number), settings, Arc::downgrade(&listener)).unwrap().log
        })
        .collect();
    let entries: Vec<_> = (0..KILLED_PARTITIONS)
        .map(|number| CheckpointEntry { partition: partition(number), state: None })
        .collect();
    for round in 1_u64.. {
        for (number, log) in (0..).zip(&logs) {
            let offset = log.ends().log_end;
            let bytes = batch_for(number, offset);
            let admission = admit(&store, bytes.len()).unwrap();
            let header = parse_header(&bytes).unwrap();
            let header = millrace_protocol::records::BatchHeader { base_offset: offset, ..header };
            log.append(AppendBatch { bytes, header }, Arc::new(admission)).unwrap();
        }
        // A few commits may be under way at any time.
        if round % 5 == 0 {
            for (log, printer) in logs.iter().zip(&printers) {
                printer.inner.wait(log.ends().log_end);
            }
        }
        if round % 97 == 0 {
            store.checkpoint(entries.clone(), round).unwrap();
        }
    }
}

#[test]
fn acknowledged_records_survive_kill_9() {
    let volume = tempfile::tempdir().unwrap();
    let module = module_path!().split_once("::").unwrap().1;
    let mut acknowledged = [0_i64; KILLED_PARTITIONS as usize];
    for round in 0..10_u64 {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args([&format!("{module}::child_that_is_killed"), "--exact", "--ignored", "--nocapture"])
            .env(KILLED_VOLUME, volume.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn(move || {
            let mut acks = Vec::new();
            for line in lines.map_while(Result::ok) {
                // The last line may be cut off: then it was not acknowledged.
                let words: Vec<_> = line.split(' ').collect();
                if let ["ack", number, end] = words[..] {
                    acks.push((number.parse::<usize>().unwrap(), end.parse::<i64>().unwrap()));
                }
            }
            acks
        });
        let started = Instant::now();
        let life = Duration::from_millis(120 + (round * 7_919) % 250);
        while started.elapsed() < life {
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for (number, end) in reader.join().unwrap() {
            acknowledged[number] = acknowledged[number].max(end);
        }
        let store: Arc<dyn LogStore> = Arc::new(FileStore::open(volume.path(), options()).unwrap());
        for (number, acknowledged) in (0..).zip(acknowledged) {
            let settings = LogSettings { retention_ms: None, ..LogSettings::default() };
            let log = try_open(&store, number, settings).unwrap();
            let end = log.log.ends().durable_end;
            assert!(end >= acknowledged, "partition {number}: {acknowledged} acknowledged, {end} found");
            let mut next = 0;
            for header in log.read_all(0) {
                assert_eq!(header.base_offset, next);
                let expected = batch_for(number, next);
                assert_eq!(header.crc, parse_header(&expected).unwrap().crc, "content at {next}");
                next = header.next_offset();
            }
            assert_eq!(next, end);
        }
        store.close();
    }
    assert!(acknowledged.iter().all(|end| *end > 100), "the children got nowhere: {acknowledged:?}");
}

/// Prints how fast appends are; run by hand with `--ignored --nocapture`, in release mode.
#[test]
#[ignore = "a measurement"]
fn throughput_of_sixteen_kilobyte_batches() {
    let volume = Directory::new(options());
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    let bytes = batch(160, &[7; 94]);
    let batches = 1_000_000 / 160;
    let started = Instant::now();
    let mut end = 0;
    for _ in 0..batches {
        let admission = admit(&store, bytes.len()).unwrap();
        let header = parse_header(&bytes).unwrap();
        let header = millrace_protocol::records::BatchHeader { base_offset: end, ..header };
        end = header.next_offset();
        log.log.append(AppendBatch { bytes: bytes.clone(), header }, Arc::new(admission)).unwrap();
    }
    assert!(log.ends.wait(end));
    let took = started.elapsed();
    let megabytes = (batches * bytes.len()) as f64 / 1e6;
    writeln!(
        io::stderr(),
        "{end} records, {megabytes:.0} MB, {took:?}, {:.0} MB/s",
        megabytes / took.as_secs_f64()
    )
    .unwrap();
}
