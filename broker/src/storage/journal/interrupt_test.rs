//! The power goes, or the process ends, during any operation of the disk: within a commit, a checkpoint, a move of records,
//! a truncation, a start.

use proptest::prelude::*;

use super::damage::{Expected, LOGS, Work, checkpoint, short, span, work};
use super::model::crash_runs;
use super::*;

/// One life of the store.
#[derive(Clone, Debug)]
struct Life {
    work: Vec<Work>,
    /// The operation of the disk during which it ends.
    operations: u64,
    /// Of what was not synced blocks are lost, or nothing.
    power: Option<u64>,
    /// The next start ends during this operation, too.
    during_start: Option<u64>,
}

fn lives() -> impl Strategy<Value = Vec<Life>> {
    let life =
        (work(), 1..90_u64, prop::option::weighted(0.7, any::<u64>()), prop::option::weighted(0.3, 1..4_u64));
    let life = life.prop_map(|(work, operations, power, during_start)| Life {
        work,
        operations,
        power,
        during_start,
    });
    prop::collection::vec(life, 1..5)
}

/// The last log does not wait for the disk.
fn settings(log: i32) -> LogSettings {
    let durability = if log == LOGS - 1 { Durability::Written } else { Durability::Fsync };
    LogSettings { durability, ..kept_for_ever() }
}

/// What a log may look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    batches: Vec<Expected>,
    log_start: i64,
    end: i64,
}

impl Content {
    fn push(&mut self, bytes: &Bytes) {
        let header = parse_header(bytes).unwrap();
        let next = self.end + i64::from(header.last_offset_delta) + 1;
        self.batches.push(Expected { base: self.end, next, epoch: 0, crc: header.crc });
        self.end = next;
    }

    fn pop(&mut self) {
        let last = self.batches.pop().unwrap();
        self.end = last.base;
    }

    fn truncate(&mut self, offset: i64) {
        if offset < self.end {
            let cut = self.batches.iter().find(|batch| batch.next > offset);
            self.end = cut.map_or(offset, |cut| cut.base);
            self.batches.retain(|batch| batch.next <= offset);
            self.log_start = self.log_start.min(self.end);
        }
    }

    fn set_log_start(&mut self, log_start: i64) {
        self.log_start = log_start;
        self.batches.retain(|batch| batch.next > log_start);
    }

    fn of(log: &Opened) -> Self {
        let ends = log.log.ends();
        assert_eq!(ends.durable_end, ends.log_end);
        let batches = log.read_all(ends.log_start).into_iter().map(|header| Expected {
            base: header.base_offset,
            next: header.next_offset(),
            epoch: header.partition_leader_epoch,
            crc: header.crc,
        });
        Self { batches: batches.collect(), log_start: ends.log_start, end: ends.log_end }
    }
}

/// What is known of a log: what it held when it last answered, and what it may hold if the last operation did something.
#[derive(Clone, Debug, Default)]
struct Known {
    sure: Content,
    perhaps: Vec<Content>,
    /// Log end up to which everything has been synced.
    synced: i64,
}

impl Known {
    /// Everything that may be found after the end of a life.
    fn candidates(&self, power: bool) -> Vec<Content> {
        let mut all = self.perhaps.clone();
        let mut content = self.sure.clone();
        all.push(content.clone());
        while power && content.batches.last().is_some_and(|last| last.base >= self.synced) {
            content.pop();
            all.push(content.clone());
        }
        all
    }
}

fn open_all(store: &Arc<dyn LogStore>) -> Vec<Opened> {
    (0..LOGS).map(|number| try_open(store, number, settings(number)).unwrap()).collect()
}

/// Does one thing; false if it was not done because the store has failed.
fn execute(
    number: usize,
    work: &Work,
    store: &Arc<dyn LogStore>,
    logs: &[Opened],
    known: &mut [Known],
) -> bool {
    let at = |log: i32| usize::try_from(log).unwrap();
    let synced = |known: &mut [Known]| known.iter_mut().for_each(|known| known.synced = known.sure.end);
    match work {
        Work::Append { log, records, size } => {
            let (opened, known_log) = (&logs[at(*log)], &mut known[at(*log)]);
            // Two at once: they may share a frame, or not.
            let mut content = known_log.sure.clone();
            let mut end = 0;
            for part in 0..2_u8 {
                let value = u8::try_from(1 + number % 120).unwrap() + 120 * part;
                let bytes = batch(*records, &vec![value; *size]);
                let Ok(queued) = opened.queue(&bytes, 0) else { return false };
                end = queued;
                content.push(&bytes);
                known_log.perhaps.push(content.clone());
            }
            if !opened.ends.wait(end) {
                return false;
            }
            known_log.sure = content;
            known_log.perhaps.clear();
            if settings(*log).durability == Durability::Fsync {
                synced(known);
            }
        }
        Work::LogStart { log, to } => {
            let known_log = &mut known[at(*log)];
            let to = span(known_log.sure.log_start, known_log.sure.end, to);
            let mut content = known_log.sure.clone();
            let moves = to > content.log_start;
            content.set_log_start(to);
            known_log.perhaps.push(content.clone());
            if logs[at(*log)].log.set_log_start(to).is_err() {
                return false;
            }
            known_log.sure = content;
            known_log.perhaps.clear();
            if moves {
                synced(known);
            }
        }
        Work::Truncate { log, to } => {
            let known_log = &mut known[at(*log)];
            let to = span(known_log.sure.log_start, known_log.sure.end, to);
            let mut content = known_log.sure.clone();
            content.truncate(to);
            known_log.perhaps.push(content.clone());
            let Ok(ends) = logs[at(*log)].log.truncate(to) else { return false };
            assert_eq!((ends.log_start, ends.log_end), (content.log_start, content.end));
            known_log.sure = content;
            known_log.perhaps.clear();
            synced(known);
        }
        Work::Checkpoint => {
            if store.checkpoint(vec![CheckpointEntry { partition: partition(0), state: None }], 1).is_err() {
                return false;
            }
            synced(known);
        }
    }
    true
}

fn run_lives(lives: Vec<Life>) {
    let (volume, disk) = Directory::simulated(short());
    let mut store = volume.open();
    let mut known: Vec<Known> = (0..LOGS).map(|_| Known::default()).collect();
    let mut number = 0;
    for life in lives {
        let logs = open_all(&store);
        disk.cut_power_in(life.operations);
        for work in &life.work {
            number += 1;
            if !execute(number, work, &store, &logs, &mut known) {
                break;
            }
        }
        disk.cut_power();
        let index = volume.index_on_disk();
        drop(logs);
        store.close();
        let end = |seed: Option<u64>| match seed {
            Some(seed) => disk.restore_power(seed),
            None => disk.revive(),
        };
        end(life.power);
        volume.replace_index(&index);
        if let Some(operations) = life.during_start {
            disk.cut_power_in(operations);
            match volume.try_open() {
                Ok(started) => {
                    disk.cut_power();
                    drop(started);
                }
                Err(error) => assert!(matches!(error, StorageError::Io { .. }), "{error}"),
            }
            end(life.power);
        }
        store = volume.open();
        for (log, known) in open_all(&store).iter().zip(&mut known) {
            let (found, candidates) = (Content::of(log), known.candidates(life.power.is_some()));
            assert!(candidates.contains(&found), "{:?}: {found:?} is none of {candidates:?}", log.log);
            *known = Known { synced: found.end, sure: found, perhaps: Vec::new() };
        }
        store.close();
        store = volume.open();
    }
    checkpoint(&store);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crash_runs(), ..ProptestConfig::default() })]

    #[test]
    fn an_end_during_any_operation_of_the_disk_leaves_what_was_or_what_was_to_be(lives in lives()) {
        run_lives(lives);
    }
}

#[test]
fn the_index_does_not_learn_in_a_start_what_the_journal_can_still_lose() {
    let (volume, disk) = Directory::simulated(short());
    let settings = LogSettings { durability: Durability::Written, ..kept_for_ever() };
    let store = volume.open();
    let index = volume.index_on_disk();
    open(&store, settings).append(&[batch(1, b"first")], 0);
    disk.cut_power();
    store.close();
    // Only the process has ended: what it had written is there, and is not synced.
    disk.revive();
    volume.replace_index(&index);
    disk.faults().fail_syncs.store(true, Ordering::SeqCst);
    assert!(matches!(volume.try_open(), Err(StorageError::Io { .. })));
    disk.faults().fail_syncs.store(false, Ordering::SeqCst);
    disk.lose_unsynced();
    let log = open(&volume.open(), settings);
    assert_eq!(log.log.ends().log_end, 0, "the index has it, and the journal has not");
}
