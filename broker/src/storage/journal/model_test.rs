//! A log against a model of it, through restarts, crashes and losses of power.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use millrace_protocol::records::{Compression, batches};
use proptest::prelude::*;

use super::super::sim_disk::SimDisk;
use super::super::{JournalStore, JournalStoreOptions};
use super::{Directory, all, options};
use crate::storage::batch::parse_header;
use crate::storage::batch::samples::{batch, keyed_batch};
use crate::storage::compaction::{CompactionSettings, Pace, Unpaced};
use crate::storage::conformance::{Opened, kept_for_ever, open, partition, try_open};
use crate::storage::{CheckpointEntry, CompactionJob, Durability, LogSettings, LogStore, ReadRange};

/// Milliseconds that records without a value stay.
const DELETE_RETENTION_MS: i64 = 10;

#[derive(Clone, Debug)]
enum Step {
    /// A batch of a producer, or of none: for each record a key, and whether it has a value.
    Append {
        producer: i64,
        records: Vec<(u8, bool)>,
        size: usize,
        next_epoch: bool,
    },
    Truncate(prop::sample::Index),
    LogStart(prop::sample::Index),
    Checkpoint,
    Restart,
    /// The power goes while batches of this many bytes are under way.
    PowerLoss {
        under_way: Vec<usize>,
        seed: u64,
    },
    /// The process ends while batches of this many bytes are under way.
    Crash {
        under_way: Vec<usize>,
    },
    RetainBytes(u64),
    Durability(bool),
    /// The log is compacted up to somewhere, with memory for a few keys or for all.
    Compact {
        until: prop::sample::Index,
        few_keys: bool,
    },
    /// The power goes, or the process ends, while the log is compacted.
    CrashInCompaction {
        turn: usize,
        power_loss: Option<u64>,
    },
    Wait(i64),
    /// The log is deleted and begun again, as that of a replica that is taken away and comes back.
    Delete,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let records = || prop::collection::vec((0..10_u8, prop::bool::weighted(0.8)), 1..5);
    let step = prop_oneof![
        8 => (-1..2_i64, records(), 0..3_000_usize, prop::bool::weighted(0.2)).prop_map(
            |(producer, records, size, next_epoch)| Step::Append { producer, records, size, next_epoch }
        ),
        1 => any::<prop::sample::Index>().prop_map(Step::Truncate),
        1 => any::<prop::sample::Index>().prop_map(Step::LogStart),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Restart),
        2 => prop::collection::vec(0..30_000_usize, 0..5).prop_map(|under_way| Step::Crash { under_way }),
        2 => (prop::collection::vec(0..30_000_usize, 0..5), any::<u64>())
            .prop_map(|(under_way, seed)| Step::PowerLoss { under_way, seed }),
        1 => (0..30_000_u64).prop_map(Step::RetainBytes),
        1 => any::<bool>().prop_map(Step::Durability),
        2 => (any::<prop::sample::Index>(), any::<bool>())
            .prop_map(|(until, few_keys)| Step::Compact { until, few_keys }),
        1 => (0..12_usize, prop::option::of(any::<u64>()))
            .prop_map(|(turn, power_loss)| Step::CrashInCompaction { turn, power_loss }),
        1 => (0..20_i64).prop_map(Step::Wait),
        1 => Just(Step::Delete),
    ];
    prop::collection::vec(step, 1..40)
}

/// Length and first byte of a value.
type Value = Option<(usize, Option<u8>)>;

/// A record: offset, key and value.
type Stored = (i64, Vec<u8>, Value);

/// A batch of a log as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Expected {
    base: i64,
    next: i64,
    epoch: i32,
    producer: i64,
    horizon: Option<i64>,
    records: Vec<Stored>,
}

/// What a log must look like.
#[derive(Debug, Default)]
struct Model {
    batches: Vec<Expected>,
    log_start: i64,
    end: i64,
    epoch: i32,
    /// Log end up to which everything has been synced.
    synced: i64,
    first_dirty: i64,
    now_ms: i64,
    settings: LogSettings,
}

fn read(bytes: Bytes) -> Vec<Expected> {
    let batches = batches(bytes).map(|batch| {
        let batch = batch.unwrap();
        batch.verify_crc().unwrap();
        let header = *batch.header();
        let body = batch.decompress(1 << 20).unwrap();
        let records = body.records().map(|record| {
            let record = record.unwrap();
            let value = record.value.map(|value| (value.len(), value.first().copied()));
            (record.offset, record.key.unwrap_or_default().to_vec(), value)
        });
        Expected {
            base: header.base_offset,
            next: header.next_offset(),
            epoch: header.partition_leader_epoch,
            producer: header.producer_id,
            horizon: header.delete_horizon_ms(),
            records: records.collect(),
        }
    });
    batches.collect()
}

fn read_all_bytes(log: &Opened, offset: i64) -> Vec<Bytes> {
    let (mut found, mut next) = (Vec::new(), offset);
    while next < log.log.ends().durable_end {
        let bytes = log.bytes(ReadRange { offset: next, ..all() });
        // A log of which everything was cut in front of a gap ends behind nothing.
        let Some(last) = batches(bytes.clone()).last() else { break };
        next = last.unwrap().header().next_offset();
        found.push(bytes);
    }
    found
}

fn read_all(log: &Opened, offset: i64) -> Vec<Expected> {
    read_all_bytes(log, offset).into_iter().flat_map(read).collect()
}

impl Model {
    fn push(&mut self, bytes: &Bytes) {
        let header = parse_header(bytes).unwrap();
        let mut batch = read(bytes.clone()).remove(0);
        (batch.base, batch.epoch) = (self.end, self.epoch);
        batch.next = self.end + i64::from(header.last_offset_delta) + 1;
        batch.records.iter_mut().for_each(|record| record.0 += self.end);
        self.end = batch.next;
        self.batches.push(batch);
    }

    fn cut(&mut self, offset: i64) {
        self.batches.retain(|batch| batch.next <= offset);
        self.end =
            self.batches.last().map_or(self.log_start, |last| last.next).max(self.log_start.min(offset));
        self.log_start = self.log_start.min(self.end);
    }

    /// Last offsets of producers.
    fn producers(&self) -> HashMap<i64, i64> {
        let readable = |batch: &&Expected| batch.producer >= 0 && batch.next > self.log_start;
        let of_producers = self.batches.iter().filter(readable);
        of_producers.map(|batch| (batch.producer, batch.next - 1)).collect()
    }

    /// What compaction means, written down without any of its steps: it has come to `end`.
    fn compact(&mut self, end: i64) {
        let (now_ms, log_start) = (self.now_ms, self.log_start);
        let first_dirty = self.first_dirty.max(log_start);
        self.batches.retain(|batch| batch.next > self.log_start);
        let below = self.batches.iter().flat_map(|batch| &batch.records).filter(|record| record.0 < end);
        let last: BTreeMap<Vec<u8>, i64> = below.map(|record| (record.1.clone(), record.0)).collect();
        let producers = self.producers();
        for batch in self.batches.iter_mut().filter(|batch| batch.base < end) {
            let horizon = batch.horizon;
            batch.records.retain(|(offset, key, value)| {
                let expired =
                    value.is_none() && *offset < first_dirty && horizon.is_some_and(|at| at <= now_ms);
                *offset >= end || (*offset >= log_start && last[key] == *offset && !expired)
            });
            let has_tombstone = batch.records.iter().any(|record| record.2.is_none());
            if batch.records.is_empty() {
                batch.horizon = None;
            } else if has_tombstone && batch.horizon.is_none() {
                batch.horizon = Some(now_ms + DELETE_RETENTION_MS);
            }
        }
        self.batches.retain(|batch| {
            let needed = producers.get(&batch.producer) == Some(&(batch.next - 1)) || batch.next == end;
            !batch.records.is_empty() || needed || batch.base >= end
        });
        self.first_dirty = end;
    }

    fn check(&self, log: &Opened) {
        let ends = log.log.ends();
        assert_eq!((ends.log_start, ends.durable_end, ends.log_end), (self.log_start, self.end, self.end));
        let expected: Vec<_> =
            self.batches.iter().filter(|batch| batch.next > self.log_start).cloned().collect();
        assert_eq!(read_all(log, self.log_start), expected);
        for batch in expected {
            assert_eq!(log.log.epoch_at(batch.base.max(self.log_start)), Some(batch.epoch), "{batch:?}");
        }
    }

    /// After a compaction that was cut short: nothing is made up, and of each key the last record is as it was.
    fn check_what_is_left(&self, found: &[Expected]) {
        let records = |batches: &[Expected]| -> Vec<Stored> {
            let records = batches.iter().flat_map(|batch| &batch.records);
            records.filter(|record| record.0 >= self.log_start).cloned().collect()
        };
        let (before, after) = (records(&self.batches), records(found));
        assert!(after.iter().all(|record| before.contains(record)), "{after:?} of {before:?}");
        let last = |records: &[Stored]| -> BTreeMap<Vec<u8>, (i64, Value)> {
            records.iter().map(|(offset, key, value)| (key.clone(), (*offset, *value))).collect()
        };
        let after = last(&after);
        for (key, (offset, value)) in last(&before) {
            match after.get(&key) {
                Some(found) => assert_eq!(found, &(offset, value), "{key:?}"),
                None => assert_eq!(value, None, "the last value of {key:?} is gone"),
            }
        }
        for (producer, last) in self.producers() {
            let found = found.iter().rfind(|batch| batch.producer == producer);
            assert!(found.is_some_and(|batch| batch.next - 1 == last), "producer {producer}");
        }
    }
}

/// How far the log was compacted, found out by a compaction that has nothing to do.
fn first_dirty(log: &Opened) -> i64 {
    let job = CompactionJob {
        until: 0,
        now_ms: i64::MIN,
        producers: &HashMap::new(),
        aborted: &[],
        key_map_bytes: 0,
        pace: &Unpaced,
    };
    let report = log.log.compact(&job).unwrap();
    assert_eq!(report.passes, 0);
    report.first_dirty
}

/// Bytes of a log that can be read, and those that cannot be read any more of the run that the log start lies in; no other
/// run may be left below it.
fn bytes_left(journal: &JournalStore, log: &Opened) -> (u64, u64) {
    let log_start = log.log.ends().log_start;
    let headers: Vec<_> = read_all_bytes(log, log_start)
        .into_iter()
        .flat_map(batches)
        .map(|batch| *batch.unwrap().header())
        .collect();
    let bytes_below = |offset: i64| -> u64 {
        let below = headers.iter().filter(|header| header.base_offset < offset);
        below.map(|header| header.size_in_bytes() as u64).sum()
    };
    let first = journal.shared.index.first_run(partition(0)).unwrap();
    let hidden = first.map_or(0, |first| {
        assert!(first.run.last_offset >= log_start, "{first:?} is below {log_start}");
        u64::from(first.run.length) - bytes_below(first.run.next_offset())
    });
    (bytes_below(i64::MAX), hidden)
}

/// Acts once, before the compaction reads or writes for the nth time.
#[derive(Debug)]
struct CutPower<'a> {
    turn: AtomicUsize,
    disk: &'a SimDisk,
}

impl Pace for CutPower<'_> {
    fn wait(&self, _bytes: u64) -> bool {
        if self.turn.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.disk.cut_power();
        }
        true
    }
}

fn start(volume: &Directory) -> (Arc<JournalStore>, Arc<dyn LogStore>) {
    let journal = Arc::new(volume.try_open().unwrap());
    (Arc::clone(&journal), journal)
}

fn run(steps: Vec<Step>, options: JournalStoreOptions) {
    let (volume, disk) = Directory::simulated(options);
    let (mut journal, mut store) = start(&volume);
    let compaction =
        CompactionSettings { delete_retention_ms: DELETE_RETENTION_MS, ..CompactionSettings::default() };
    let settings = LogSettings { compaction: Some(compaction), ..kept_for_ever() };
    let mut model = Model { settings, ..Model::default() };
    let mut log = open(&store, model.settings);
    // A log of which nothing is ever deleted: it keeps segments alive in which little is left, until they are rewritten.
    let pinned_settings = kept_for_ever();
    let mut pinned = try_open(&store, 1, pinned_settings).unwrap();
    let mut pinned_batches = 0;
    for (number, step) in (0..).zip(steps) {
        let span = |index: &prop::sample::Index, model: &Model| {
            let length = usize::try_from(model.end - model.log_start).unwrap();
            model.log_start + i64::try_from(index.index(length + 1)).unwrap()
        };
        match step {
            Step::Append { producer, records, size, next_epoch } => {
                model.epoch += i32::from(next_epoch);
                let value = vec![u8::try_from(number % 251).unwrap(); size];
                let records: Vec<(&[u8], _)> = records
                    .iter()
                    .map(|(key, has_value)| (std::slice::from_ref(key), has_value.then_some(&value[..])))
                    .collect();
                let codec = Compression::ALL[usize::try_from(number % 5).unwrap()];
                let bytes = keyed_batch(codec, (producer, 0, number), &records);
                log.append(std::slice::from_ref(&bytes), model.epoch);
                model.push(&bytes);
                pinned.append(&[batch(1, &[1; 50])], 0);
                pinned_batches += 1;
                // The pinned log has made it sync.
                model.synced = model.end;
            }
            Step::Truncate(index) => {
                let offset = span(&index, &model);
                let ends = log.log.truncate(offset).unwrap();
                if offset < model.end {
                    let before = model.batches.iter().filter(|batch| batch.next <= offset).count();
                    assert!(before > 0 || ends.log_end <= offset);
                    model.cut(offset);
                    // A batch that the log start cuts goes as a whole.
                    model.end = ends.log_end;
                    model.log_start = model.log_start.min(model.end);
                    model.first_dirty = model.first_dirty.min(model.end);
                }
                model.synced = model.end;
            }
            Step::LogStart(index) => {
                let offset = span(&index, &model);
                let moves = offset > model.log_start;
                log.log.set_log_start(offset).unwrap();
                model.log_start = offset;
                model.synced = if moves { model.end } else { model.synced };
            }
            Step::Checkpoint => {
                store.checkpoint(vec![CheckpointEntry { partition: partition(0), state: None }], 1).unwrap();
                model.synced = model.end;
            }
            Step::RetainBytes(bytes) => {
                let settings = LogSettings { retention_bytes: Some(bytes), ..model.settings };
                log.log.set_settings(settings);
                log.log.retain(0, model.end).unwrap();
                log.log.set_settings(model.settings);
                let log_start = log.log.ends().log_start;
                assert!(log_start >= model.log_start);
                let left = model.batches.iter().filter(|batch| batch.next > log_start).count();
                assert!(left > 0 || bytes == 0 || log_start == model.log_start || log.log.size() == 0);
                model.log_start = log_start;
                model.batches.retain(|batch| batch.next > log_start);
                model.synced = log.log.ends().log_end;
            }
            Step::Durability(fsync) => {
                model.settings.durability = if fsync { Durability::Fsync } else { Durability::Written };
                log.log.set_settings(model.settings);
            }
            Step::Wait(ms) => model.now_ms += ms,
            Step::Compact { until, few_keys } => {
                let producers = model.producers();
                let job = CompactionJob {
                    until: span(&until, &model),
                    now_ms: model.now_ms,
                    producers: &producers,
                    aborted: &[],
                    key_map_bytes: if few_keys { 100 } else { 1 << 20 },
                    pace: &Unpaced,
                };
                let report = log.log.compact(&job).unwrap();
                assert!(!report.interrupted, "{report:?}");
                assert!(report.first_dirty <= job.until.max(model.first_dirty).max(model.log_start));
                if report.passes == 1 {
                    model.compact(report.first_dirty);
                } else if report.passes > 1 {
                    // Horizons and ends of the passes in between are left as they are found.
                    let found = read_all(&log, model.log_start);
                    model.check_what_is_left(&found);
                    (model.batches, model.first_dirty) = (found, report.first_dirty);
                }
                model.synced = model.end;
                let (readable, hidden) = bytes_left(&journal, &log);
                assert_eq!(log.log.size(), readable + hidden);
                let is_batch_cut = model.batches.iter().any(|batch| batch.base < model.log_start);
                let is_compacted = report.passes > 0 && report.first_dirty > model.log_start;
                assert!(hidden == 0 || is_batch_cut || !is_compacted, "{hidden} bytes below the log start");
            }
            Step::Delete => {
                store.delete(&[partition(0)]).unwrap();
                log = open(&store, model.settings);
                let Model { epoch, settings, now_ms, .. } = model;
                model = Model { epoch, settings, now_ms, ..Model::default() };
            }
            Step::Restart => {
                store.close();
                (journal, store) = start(&volume);
                log = open(&store, model.settings);
                pinned = try_open(&store, 1, pinned_settings).unwrap();
                model.synced = model.end;
            }
            Step::CrashInCompaction { turn, power_loss } => {
                let producers = model.producers();
                let pace = CutPower { turn: AtomicUsize::new(turn), disk: &disk };
                let job = CompactionJob {
                    until: model.end,
                    now_ms: model.now_ms,
                    producers: &producers,
                    aborted: &[],
                    key_map_bytes: 1 << 20,
                    pace: &pace,
                };
                // It settles first, and so what was written before is synced.
                // That it fails is what a crash is.
                let _ = log.log.compact(&job);
                let index = volume.index_on_disk();
                disk.cut_power();
                store.close();
                match power_loss {
                    Some(seed) => disk.restore_power(seed),
                    None => disk.revive(),
                }
                volume.replace_index(&index);
                (journal, store) = start(&volume);
                log = open(&store, model.settings);
                pinned = try_open(&store, 1, pinned_settings).unwrap();
                let found = read_all(&log, model.log_start);
                model.check_what_is_left(&found);
                model.batches = found;
                model.synced = model.end;
                model.first_dirty = first_dirty(&log);
            }
            Step::PowerLoss { .. } | Step::Crash { .. } => {
                let (under_way, seed) = match step {
                    Step::PowerLoss { under_way, seed } => (under_way, Some(seed)),
                    Step::Crash { under_way } => (under_way, None),
                    _ => unreachable!("the two of this arm"),
                };
                // A log that is not synced is as good as one that is, if only the process ends.
                let acknowledged = if seed.is_some() { model.synced } else { model.end };
                let before = model.end;
                for size in under_way {
                    let value = vec![9; size];
                    let bytes = keyed_batch(
                        Compression::None,
                        (-1, -1, -1),
                        &[(b"x", Some(&value[..])), (b"y", Some(&value[..]))],
                    );
                    log.queue(&bytes, model.epoch).unwrap();
                    model.push(&bytes);
                }
                let index = volume.index_on_disk();
                disk.cut_power();
                store.close();
                match seed {
                    Some(seed) => disk.restore_power(seed),
                    None => disk.revive(),
                }
                volume.replace_index(&index);
                (journal, store) = start(&volume);
                log = open(&store, model.settings);
                pinned = try_open(&store, 1, pinned_settings).unwrap();
                let end = log.log.ends().log_end;
                assert!(end >= acknowledged, "{acknowledged} was acknowledged and {end} is left");
                let whole = [model.log_start, before].contains(&end)
                    || model.batches.iter().any(|batch| batch.next == end);
                assert!(whole, "{end} is in the middle of a batch: {model:?}");
                model.cut(end);
                model.end = end;
                model.first_dirty = model.first_dirty.min(end);
                model.synced = end;
            }
        }
        model.check(&log);
        assert_eq!(pinned.read_all(0).len(), pinned_batches);
    }
}

/// Seeded runs for one test; `MILLRACE_CRASH_RUNS` asks for more.
pub(super) fn crash_runs() -> u32 {
    std::env::var("MILLRACE_CRASH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crash_runs(), ..ProptestConfig::default() })]

    #[test]
    fn the_log_equals_its_model_through_compactions_restarts_crashes_and_power_losses(
        steps in steps(),
        cached in any::<bool>(),
    ) {
        let tail_cache_bytes = if cached { 1 << 20 } else { 0 };
        run(steps, JournalStoreOptions { tail_cache_bytes, segment_bytes: Some(96 << 10), ..options() });
    }
}
