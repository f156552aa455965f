//! Disks that do not keep what they promised: flipped bytes, lost and misdirected writes, files that are cut off, missing,
//! foreign or exchanged.
//!
//! Whatever the damage, a start equals the model or is refused, and a read returns what was written, fails, or shows a
//! batch whose checksum tells the reader. Not to be told from a crash, and so a shorter log: damage to the last commit,
//! which no later frame vouches for, and the newest files of a journal missing as a whole, when neither is in the index.

use millrace_protocol::records::BatchHeader;
use proptest::prelude::*;
use proptest::sample::Index as Pick;

use super::super::frame::{FrameHeader, Run};
use super::model::crash_runs;
use super::*;
use crate::storage::batch::parse_whole;

pub(super) const LOGS: i32 = 3;

/// A batch of a log as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) base: i64,
    pub(super) next: i64,
    pub(super) epoch: i32,
    pub(super) crc: u32,
}

/// What a log must look like.
#[derive(Debug, Default)]
struct Model {
    batches: Vec<Expected>,
    log_start: i64,
    end: i64,
    epoch: i32,
}

impl Model {
    fn push(&mut self, bytes: &Bytes) {
        let header = parse_header(bytes).unwrap();
        let next = self.end + i64::from(header.last_offset_delta) + 1;
        self.batches.push(Expected { base: self.end, next, epoch: self.epoch, crc: header.crc });
        self.end = next;
    }

    fn cut(&mut self, offset: i64) {
        self.batches.retain(|batch| batch.next <= offset);
        self.end =
            self.batches.last().map_or(self.log_start, |last| last.next).max(self.log_start.min(offset));
        self.log_start = self.log_start.min(self.end);
    }
}

pub(super) fn short() -> JournalStoreOptions {
    JournalStoreOptions { segment_bytes: Some(64 << 10), tail_cache_bytes: 0, ..options() }
}

/// What is done with a store.
#[derive(Clone, Debug)]
pub(super) enum Work {
    Append { log: i32, records: usize, size: usize },
    LogStart { log: i32, to: Pick },
    Truncate { log: i32, to: Pick },
    Checkpoint,
}

#[derive(Clone, Debug)]
enum Fault {
    /// A byte that is not zero, mostly.
    Flip {
        file: Pick,
        at: Pick,
        mask: u8,
        anywhere: bool,
    },
    /// A block that is zero again.
    LoseBlock {
        file: Pick,
        block: Pick,
    },
    /// A block that was written somewhere else, too.
    Misdirect {
        from: (Pick, Pick),
        to: (Pick, Pick),
    },
    /// A file that ends early.
    CutOff {
        file: Pick,
        length: Pick,
    },
    Remove {
        file: Pick,
    },
    /// Two files that have got each other's names.
    Exchange(Pick, Pick),
    /// A file of another volume: a new one, or instead of another.
    Foreign(Option<Pick>),
    /// A byte of the index.
    Index {
        file: Pick,
        at: Pick,
        mask: u8,
    },
}

pub(super) fn work() -> impl Strategy<Value = Vec<Work>> {
    let log = 0..LOGS;
    let step = prop_oneof![
        10 => (log.clone(), 1..4_usize, prop_oneof![0..300_usize, 0..9_000_usize])
            .prop_map(|(log, records, size)| Work::Append { log, records, size }),
        1 => (log.clone(), any::<Pick>()).prop_map(|(log, to)| Work::LogStart { log, to }),
        1 => (log, any::<Pick>()).prop_map(|(log, to)| Work::Truncate { log, to }),
        1 => Just(Work::Checkpoint),
    ];
    prop::collection::vec(step, 1..60)
}

fn fault() -> impl Strategy<Value = Fault> {
    let pick = any::<Pick>;
    prop_oneof![
        6 => (pick(), pick(), 1..=255_u8, prop::bool::weighted(0.2))
            .prop_map(|(file, at, mask, anywhere)| Fault::Flip { file, at, mask, anywhere }),
        2 => (pick(), pick()).prop_map(|(file, block)| Fault::LoseBlock { file, block }),
        2 => ((pick(), pick()), (pick(), pick())).prop_map(|(from, to)| Fault::Misdirect { from, to }),
        1 => (pick(), pick()).prop_map(|(file, length)| Fault::CutOff { file, length }),
        1 => pick().prop_map(|file| Fault::Remove { file }),
        1 => (pick(), pick()).prop_map(|(one, other)| Fault::Exchange(one, other)),
        1 => prop::option::of(pick()).prop_map(Fault::Foreign),
        2 => (pick(), pick(), 1..=255_u8).prop_map(|(file, at, mask)| Fault::Index { file, at, mask }),
    ]
}

/// A volume, and what its logs hold.
struct Scene {
    volume: Directory,
    disk: SimDisk,
    models: Vec<Model>,
    /// Whether what the index on the disk does not know was left by a crash.
    crashed: bool,
}

/// An offset from the start to the end of a log.
pub(super) fn span(log_start: i64, end: i64, to: &Pick) -> i64 {
    let length = usize::try_from(end - log_start).unwrap();
    log_start + i64::try_from(to.index(length + 1)).unwrap()
}

fn open_all(store: &Arc<dyn LogStore>) -> Vec<Opened> {
    (0..LOGS).map(|number| try_open(store, number, kept_for_ever()).unwrap()).collect()
}

pub(super) fn checkpoint(store: &Arc<dyn LogStore>) {
    store.checkpoint(vec![CheckpointEntry { partition: partition(0), state: None }], 1).unwrap();
}

impl Scene {
    /// Does some work and ends, in good order or by a crash that leaves the index as it was at the last checkpoint. The
    /// last thing that is done is an append to log 0.
    fn new(work: Vec<Work>, crashed: bool) -> Self {
        let (volume, disk) = Directory::simulated(short());
        let store = volume.open();
        let logs = open_all(&store);
        let mut models: Vec<_> = (0..LOGS).map(|_| Model::default()).collect();
        let append = |models: &mut Vec<Model>, number: usize, log: i32, records, size| {
            let at = usize::try_from(log).unwrap();
            let bytes = batch(records, &vec![u8::try_from(1 + number % 251).unwrap(); size]);
            logs[at].append(std::slice::from_ref(&bytes), 0);
            models[at].push(&bytes);
        };
        let mut index = volume.index_on_disk();
        for (number, work) in work.into_iter().enumerate() {
            match work {
                Work::Append { log, records, size } => append(&mut models, number, log, records, size),
                Work::LogStart { log, to } => {
                    let model = &mut models[usize::try_from(log).unwrap()];
                    let to = span(model.log_start, model.end, &to);
                    logs[usize::try_from(log).unwrap()].log.set_log_start(to).unwrap();
                    model.log_start = to;
                }
                Work::Truncate { log, to } => {
                    let model = &mut models[usize::try_from(log).unwrap()];
                    let to = span(model.log_start, model.end, &to);
                    let ends = logs[usize::try_from(log).unwrap()].log.truncate(to).unwrap();
                    if to < model.end {
                        model.cut(to);
                        model.end = ends.log_end;
                        model.log_start = model.log_start.min(model.end);
                    }
                }
                Work::Checkpoint => {
                    checkpoint(&store);
                    index = volume.index_on_disk();
                }
            }
        }
        append(&mut models, 250, 0, 1, 100);
        store.close();
        if crashed {
            volume.replace_index(&index);
        }
        Self { volume, disk, models, crashed }
    }

    fn index_files(&self) -> Vec<std::path::PathBuf> {
        let entries = fs::read_dir(self.volume.directory.path().join("index")).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| fs::metadata(path).unwrap().len() > 0);
        files.sort();
        files
    }

    fn strike(&self, fault: &Fault) {
        self.disk.rearrange(|files| {
            let paths: Vec<_> = files.keys().cloned().collect();
            let path = |pick: &Pick| pick.get(&paths).clone();
            let block_at = |bytes: &[u8], pick: &Pick| pick.index(bytes.len() / BLOCK) * BLOCK;
            match fault {
                Fault::Flip { file, at, mask, anywhere } => {
                    let bytes = files.get_mut(&path(file)).unwrap();
                    let used: Vec<_> = (0..bytes.len()).filter(|at| *anywhere || bytes[*at] != 0).collect();
                    if !used.is_empty() {
                        bytes[*at.get(&used)] ^= mask;
                    }
                }
                Fault::LoseBlock { file, block } => {
                    let bytes = files.get_mut(&path(file)).unwrap();
                    let at = block_at(bytes, block);
                    bytes[at..at + BLOCK].fill(0);
                }
                Fault::Misdirect { from, to } => {
                    let source = &files[&path(&from.0)];
                    let at = block_at(source, &from.1);
                    let block = source[at..at + BLOCK].to_vec();
                    let bytes = files.get_mut(&path(&to.0)).unwrap();
                    let at = block_at(bytes, &to.1);
                    bytes[at..at + BLOCK].copy_from_slice(&block);
                }
                Fault::CutOff { file, length } => {
                    let bytes = files.get_mut(&path(file)).unwrap();
                    bytes.truncate(length.index(bytes.len()));
                }
                Fault::Remove { file } => drop(files.remove(&path(file))),
                Fault::Exchange(one, other) => {
                    let (one, other) = (path(one), path(other));
                    let (first, second) = (files[&one].clone(), files[&other].clone());
                    files.insert(one, second);
                    files.insert(other, first);
                }
                Fault::Foreign(instead) => {
                    let path = instead.as_ref().map_or_else(|| paths[0].with_file_name("77.journal"), path);
                    files.insert(path, foreign_segment());
                }
                Fault::Index { .. } => {}
            }
        });
        if let Fault::Index { file, at, mask } = fault {
            let files = self.index_files();
            let path = file.get(&files);
            let mut bytes = fs::read(path).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
            fs::write(path, bytes).unwrap();
        }
    }

    /// Opens the store. If that is refused, nothing on the disk may have changed.
    fn open(&self) -> Option<Arc<dyn LogStore>> {
        let before = self.disk.contents();
        match self.volume.try_open() {
            Ok(store) => Some(Arc::new(store)),
            Err(error @ StorageError::Damaged { .. }) => {
                assert!(self.disk.contents() == before, "refused, but not left alone: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Everything that can be read is what was written.
    fn check(&self, store: &Arc<dyn LogStore>, may_be_shorter: bool) {
        for (number, model) in (0..).zip(&self.models) {
            let log = match try_open(store, number, kept_for_ever()) {
                Ok(log) => log,
                Err(StorageError::Damaged { .. }) => continue,
                Err(error) => panic!("{error}"),
            };
            check_log(number, model, &log, may_be_shorter, self.crashed);
        }
    }
}

/// The first segment of a volume with another uuid.
fn foreign_segment() -> Vec<u8> {
    let disk = SimDisk::new();
    let directory = tempfile::tempdir().unwrap();
    let options = JournalStoreOptions { disk: Arc::new(disk.clone()), ..short() };
    let store = JournalStore::open(directory.path(), Uuid::from_u128(8), options).unwrap();
    let store: Arc<dyn LogStore> = Arc::new(store);
    open(&store, kept_for_ever()).append(&[batch(1, b"foreign")], 0);
    store.close();
    disk.contents().into_values().next().unwrap()
}

fn check_log(number: i32, model: &Model, log: &Opened, may_be_shorter: bool, crashed: bool) {
    let ends = log.log.ends();
    let what = format!("log {number}: {ends:?}, {model:?}");
    let mut batches = model.batches.clone();
    if may_be_shorter {
        // Files are missing of which nothing else knows: any earlier state.
        batches.retain(|batch| batch.next <= ends.log_end);
    } else {
        if crashed && number == 0 && ends.log_end != model.end {
            let last = batches.pop().unwrap();
            assert_eq!(ends.log_end, last.base, "{what}");
        } else {
            assert_eq!(ends.log_end, model.end, "{what}");
        }
        assert_eq!(ends.log_start, model.log_start, "{what}");
    }
    assert_eq!(ends.durable_end, ends.log_end, "{what}");
    batches.retain(|batch| batch.next > ends.log_start);
    let expected = |header: &BatchHeader| {
        let found = Expected {
            base: header.base_offset,
            next: header.next_offset(),
            epoch: header.partition_leader_epoch,
            crc: header.crc,
        };
        // What a log has lost of its end may show what had been cut off before.
        assert!(may_be_shorter || batches.contains(&found), "{found:?}, {what}");
    };
    for wanted in &batches {
        let range = ReadRange { offset: wanted.base.max(ends.log_start), max_bytes: 1, ..all() };
        match log.log.read(range) {
            Err(StorageError::Damaged { .. }) => {}
            Err(error) => panic!("{error}: {what}"),
            Ok(bytes) => {
                let bytes = bytes.into_bytes();
                assert!(may_be_shorter || !bytes.is_empty(), "nothing at {}: {what}", wanted.base);
                // A checksum that does not fit is the reader's to find.
                if let Ok(header) = parse_whole(&bytes) {
                    expected(&header);
                    assert!(may_be_shorter || header.base_offset == wanted.base, "{what}");
                }
            }
        }
    }
    let mut shown = 0;
    let replayed = log.log.replay(ends.log_start, &mut |header| {
        expected(header);
        shown += 1;
    });
    match replayed {
        Ok(()) => assert!(may_be_shorter || shown == batches.len(), "{shown} shown, {what}"),
        Err(StorageError::Damaged { .. }) => {}
        Err(error) => panic!("{error}: {what}"),
    }
    for found in [log.log.batch_by_time(1_000, ends.log_start), log.log.batch_with_max_timestamp(0..i64::MAX)]
    {
        match found {
            Ok(_) | Err(StorageError::Damaged { .. }) => {}
            Err(error) => panic!("{error}: {what}"),
        }
    }
}

fn survive(work: Vec<Work>, crashed: bool, fault: &Fault) {
    let scene = Scene::new(work, crashed);
    scene.strike(fault);
    let Some(store) = scene.open() else {
        assert!(!matches!(fault, Fault::Exchange(..)), "a segment is told by what it holds, not by its name");
        return;
    };
    let missing = matches!(fault, Fault::Remove { .. } | Fault::CutOff { .. } | Fault::Foreign(Some(_)));
    let may_be_shorter = crashed && missing;
    scene.check(&store, may_be_shorter);
    // Rewriting must not make damaged records look good.
    (0..3).for_each(|_| match store.checkpoint(Vec::new(), 1) {
        Ok(()) | Err(StorageError::Damaged { .. } | StorageError::Failed(_)) => {}
        Err(error) => panic!("{error}"),
    });
    store.close();
    let Some(store) = scene.open() else {
        assert!(matches!(fault, Fault::Index { .. }), "it opened before, and ended in good order");
        return;
    };
    scene.check(&store, may_be_shorter);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crash_runs(), ..ProptestConfig::default() })]

    #[test]
    fn damage_is_refused_or_reported_and_never_shown_as_records(work in work(), crashed in any::<bool>(), fault in fault()) {
        survive(work, crashed, &fault);
    }
}

/// Ten appends of one frame each.
fn ten_frames(crashed: bool, lost_write: u64) -> (Directory, SimDisk) {
    let (volume, disk) = Directory::simulated(short());
    let store = volume.open();
    let log = open(&store, kept_for_ever());
    let index = volume.index_on_disk();
    disk.faults().lose_write_in.store(lost_write, Ordering::SeqCst);
    (0..10).for_each(|value| log.append(&[batch(1, &[value; 100])], 0));
    store.close();
    if crashed {
        volume.replace_index(&index);
    }
    (volume, disk)
}

#[test]
fn a_synced_write_that_never_arrived_is_refused_after_a_crash_unless_it_was_the_last() {
    for lost in 1..=10 {
        let (volume, _disk) = ten_frames(true, lost);
        match volume.try_open() {
            Err(error) => {
                assert!(lost < 10, "{error}");
                assert!(error.to_string().contains("lost or changed acknowledged records"), "{error}");
            }
            Ok(store) => {
                assert_eq!(lost, 10, "a hole was passed over");
                let store: Arc<dyn LogStore> = Arc::new(store);
                assert_eq!(open(&store, kept_for_ever()).log.ends().log_end, 9);
            }
        }
    }
}

#[test]
fn a_synced_write_that_never_arrived_fails_the_read_after_an_orderly_end() {
    // The first is not there: what begins the segment is missing, so the start is refused.
    assert!(ten_frames(false, 1).0.try_open().is_err());
    for lost in 2..=10 {
        let (volume, _disk) = ten_frames(false, lost);
        let store = volume.open();
        let log = open(&store, kept_for_ever());
        assert_eq!(log.log.ends().log_end, 10);
        for offset in 0..10 {
            let read = log.log.read(ReadRange { offset, max_bytes: 1, ..all() });
            if offset + 1 == i64::try_from(lost).unwrap() {
                assert!(matches!(read, Err(StorageError::Damaged { .. })), "{read:?}");
            } else {
                assert_eq!(parse_header(&read.unwrap().into_bytes()).unwrap().base_offset, offset);
            }
        }
    }
}

#[test]
fn records_of_a_former_life_are_not_shown_where_a_write_was_lost() {
    let (volume, disk) = Directory::simulated(short());
    let store = volume.open();
    let log = open(&store, kept_for_ever());
    // Sixteen frames of one block are a segment; the second life of the first file looks as the first.
    let append = |count: u8| (0..count).for_each(|value| log.append(&[batch(1, &[value; 100])], 0));
    append(40);
    log.log.set_log_start(40).unwrap();
    checkpoint(&store);
    let taken: Vec<_> = disk.contents().into_iter().collect();
    append(30);
    let changed = |(path, before): &(std::path::PathBuf, Vec<u8>)| {
        let now = &disk.contents()[path];
        (0..now.len()).step_by(BLOCK).filter(|at| now[*at..at + BLOCK] != before[*at..at + BLOCK]).nth(3)
    };
    let used_again = taken.iter().find_map(|file| Some((file, changed(file)?)));
    let ((path, before), at) = used_again.expect("a file that was used again");
    let before = before[at..at + BLOCK].to_vec();
    assert!(before.iter().any(|byte| *byte != 0), "it had a former life");
    disk.tamper(|file, bytes| {
        if file == path {
            bytes[at..at + BLOCK].copy_from_slice(&before);
        }
    });
    checkpoint(&store);
    let outcomes: Vec<_> =
        (40..70).map(|offset| log.log.read(ReadRange { offset, max_bytes: 1, ..all() })).collect();
    let failed =
        outcomes.iter().filter(|outcome| matches!(outcome, Err(StorageError::Damaged { .. }))).count();
    for (offset, bytes) in (40..).zip(outcomes).filter_map(|(offset, outcome)| Some((offset, outcome.ok()?)))
    {
        assert_eq!(parse_header(&bytes.into_bytes()).unwrap().base_offset, offset);
    }
    assert_eq!(failed, 1, "{path:?} at {at}");
}

/// The first frame, but not of a segment, with an entry of log 0: where it is in the file, and its run in it.
fn frame_of_log_0(bytes: &[u8]) -> Option<(usize, Run, usize)> {
    (BLOCK..bytes.len()).step_by(BLOCK).find_map(|at| {
        let header = FrameHeader::decode(&bytes[at..])?;
        header.entries(&bytes[at..])?.into_iter().find_map(|(entry, position)| match entry {
            Entry::Append(whose, run) if whose == partition(0) => Some((at, run, position as usize)),
            _ => None,
        })
    })
}

#[test]
fn rewriting_leaves_damaged_records_where_they_are_and_moves_the_others() {
    for flip_header in [false, true] {
        let (volume, disk) = Directory::simulated(short());
        let store = volume.open();
        let logs = open_all(&store);
        // Of two logs one goes: every segment is thin.
        for value in 0..150 {
            logs[0].append(&[batch(1, &[value; 100])], 0);
            logs[1].append(&[batch(1, &[200; 3_000])], 0);
        }
        let mut damaged = 0;
        disk.rearrange(|files| {
            let bytes = files.values_mut().nth(1).unwrap();
            let (at, run, position) = frame_of_log_0(bytes).unwrap();
            damaged = run.base_offset;
            let last = at + position + run.length as usize - 1;
            bytes[if flip_header { at + 10 } else { last }] ^= 1;
        });
        // The store holds the files open: what is damaged is seen through a new start.
        store.close();
        let store = volume.open();
        let logs = open_all(&store);
        logs[1].log.set_log_start(150).unwrap();
        let files = disk.file_count();
        (0..6).for_each(|_| checkpoint(&store));
        assert!(disk.file_count() < files, "{files} files, and nothing was given back");
        assert!(store.failure().borrow().is_none());
        let shows = |log: &Opened| {
            for offset in 0..150 {
                let bytes = log.bytes(ReadRange { offset, max_bytes: 1, ..all() });
                let whole = parse_whole(&bytes).is_ok_and(|header| header.base_offset == offset);
                assert_eq!(whole, offset != damaged || flip_header, "offset {offset}");
            }
        };
        shows(&logs[0]);
        store.close();
        shows(&open(&volume.open(), kept_for_ever()));
    }
}
