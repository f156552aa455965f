//! Compaction as any store has to do it (rules C1–C4).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use millrace_protocol::records::{BatchBuilder, BatchHeader, Compression, NewRecord, batches};

use super::{Opened, Volume, bases, checkpoint, kept_for_ever, open, partition, range, try_open};
use crate::storage::batch::samples::keyed_batch;
use crate::storage::compaction::{Pace, Unpaced};
use crate::storage::{
    CompactionJob, CompactionReport, CompactionSettings, Durability, LogSettings, LogStore, ReadRange,
    StorageError,
};

/// The time of all compactions that do not say otherwise.
const NOW: i64 = 100_000;

/// Offset, key and value of a record.
pub(crate) type Stored = (i64, Vec<u8>, Option<Vec<u8>>);

/// Settings of a log that is compacted and nothing else.
pub(crate) fn compacted() -> LogSettings {
    LogSettings { compaction: Some(CompactionSettings::default()), delete_old: false, ..kept_for_ever() }
}

/// A batch of one record.
fn record(key: &str, value: Option<&str>) -> Bytes {
    keyed_batch(Compression::None, (-1, -1, -1), &[(key.as_bytes(), value.map(str::as_bytes))])
}

fn nobody() -> HashMap<i64, i64> {
    HashMap::new()
}

pub(crate) fn job<'a>(until: i64, producers: &'a HashMap<i64, i64>) -> CompactionJob<'a> {
    CompactionJob { until, now_ms: NOW, producers, aborted: &[], key_map_bytes: 1 << 20, pace: &Unpaced }
}

fn compact_at(log: &Opened, now_ms: i64) -> CompactionReport {
    let producers = nobody();
    let job = CompactionJob { now_ms, ..job(log.log.ends().durable_end, &producers) };
    log.log.compact(&job).expect("it can be compacted")
}

fn compact(log: &Opened) -> CompactionReport {
    compact_at(log, NOW)
}

/// All records from `offset` on, as a consumer finds them.
pub(crate) fn records(log: &Opened, offset: i64) -> Vec<Stored> {
    let mut found = Vec::new();
    let mut next = offset;
    while next < log.log.ends().durable_end {
        let bytes = log.bytes(range(next, 1 << 20));
        assert!(!bytes.is_empty(), "nothing at {next}");
        for batch in batches(bytes) {
            let batch = batch.expect("whole");
            batch.verify_crc().expect("right");
            let body = batch.decompress(1 << 20).expect("records");
            for record in body.records() {
                let record = record.expect("a record");
                let key = record.key.unwrap_or_default().to_vec();
                found.push((record.offset, key, record.value.map(<[u8]>::to_vec)));
            }
            assert!(batch.header().next_offset() > next, "it gets on from {next}");
            next = batch.header().next_offset();
        }
    }
    found
}

/// Offsets and keys of all records.
fn keys(log: &Opened) -> Vec<(i64, String)> {
    let text = |key: Vec<u8>| String::from_utf8(key).expect("text");
    records(log, log.log.ends().log_start).into_iter().map(|(offset, key, _)| (offset, text(key))).collect()
}

fn named(expected: &[(i64, &str)]) -> Vec<(i64, String)> {
    expected.iter().map(|(offset, key)| (*offset, (*key).to_owned())).collect()
}

/// Appends one batch after the other, each durable before the next.
fn append_each(log: &Opened, batches: &[Bytes]) {
    batches.iter().for_each(|batch| log.append(std::slice::from_ref(batch), 3));
}

/// The same, each in a leader epoch of its own, which no run spans: so there are gaps between runs as well as in them.
fn append_apart(log: &Opened, batches: &[Bytes]) {
    for batch in batches {
        let epoch = log.log.latest_epoch().unwrap_or(0) + 1;
        log.append(std::slice::from_ref(batch), epoch);
    }
}

/// `a` to `e`, over and over, in batches of one record, up to `count` records.
fn rounds(log: &Opened, count: usize) {
    let names = ["a", "b", "c", "d", "e"];
    let batches: Vec<_> = (0..count).map(|number| record(names[number % 5], Some("value"))).collect();
    append_each(log, &batches);
}

pub(crate) fn compaction_keeps_the_last_record_of_each_key_c4(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, compacted());
    let pair = |values: [&str; 2]| {
        let [c, d] = values.map(|value| Some(value.as_bytes()));
        keyed_batch(Compression::Zstd, (-1, -1, -1), &[(b"c", c), (b"d", d)])
    };
    let single =
        [("a", "0"), ("a", "1"), ("b", "2"), ("a", "3")].map(|(key, value)| record(key, Some(value)));
    append_each(&log, &single);
    append_each(&log, &[pair(["4", "5"]), record("d", Some("6")), record("e", Some("7"))]);
    let report = compact(&log);
    assert_eq!((report.passes, report.first_dirty, report.removed_records), (1, 8, 3));
    assert!(!report.interrupted);
    let check = |log: &Opened| {
        assert_eq!(keys(log), named(&[(2, "b"), (3, "a"), (4, "c"), (6, "d"), (7, "e")]));
        let values: Vec<_> = records(log, 0).into_iter().filter_map(|(_, _, value)| value).collect();
        assert_eq!(values, [b"2", b"3", b"4", b"6", b"7"]);
        let ends = log.log.ends();
        assert_eq!((ends.log_start, ends.durable_end, ends.log_end), (0, 8, 8));
        // F2: at an offset that is gone comes the batch that holds it, or the next.
        for (offset, base) in [(0, 2), (1, 2), (2, 2), (3, 3), (4, 4), (5, 4), (6, 6), (7, 7)] {
            let headers = log.read_all(offset);
            assert_eq!(headers[0].base_offset, base, "offset {offset}");
            let strict = ReadRange { until: base, ..range(offset, 1 << 20) };
            assert!(offset == base || log.bytes(strict).is_empty(), "nothing before {base}");
        }
        assert_eq!(log.read_all(4)[0].last_offset(), 5, "a batch keeps its last offset");
        assert_eq!(log.log.size(), log.bytes_of_all(0));
        assert_eq!((log.log.epoch_at(0), log.log.latest_epoch()), (Some(3), Some(3)));
        let mut seen = Vec::new();
        log.log.replay(0, &mut |header| seen.push(header.base_offset)).expect("readable");
        assert_eq!(seen, [2, 3, 4, 6, 7]);
        let again = compact(log);
        assert_eq!((again.passes, again.first_dirty), (0, 8), "nothing is dirty");
    };
    check(&log);
    checkpoint(&log, 1);
    check(&log);
    store.close();
    check(&open(&volume.open(), compacted()));
}

pub(crate) fn a_log_without_the_policy_is_left_alone(volume: &dyn Volume) {
    let log = open(&volume.open(), kept_for_ever());
    rounds(&log, 10);
    assert_eq!(compact(&log), CompactionReport::default());
    assert_eq!(keys(&log).len(), 10);
}

pub(crate) fn what_is_young_or_not_replicated_is_left_alone_c1(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, compacted());
    rounds(&log, 10);
    let producers = nobody();
    assert_eq!(log.log.compact(&job(8, &producers)).expect("compacted").first_dirty, 8);
    let expected = [(3, "d"), (4, "e"), (5, "a"), (6, "b"), (7, "c"), (8, "d"), (9, "e")];
    assert_eq!(keys(&log), named(&expected));
    // The sample records are of the time 1,000.
    let compaction = Some(CompactionSettings { min_lag_ms: 500, ..CompactionSettings::default() });
    log.log.set_settings(LogSettings { compaction, ..compacted() });
    assert_eq!(compact_at(&log, 1_499).passes, 0);
    assert_eq!(log.log.dirt(10, 1_499).expect("readable").dirty_bytes, 0);
    assert_eq!(compact_at(&log, 1_500).first_dirty, 10);
    assert_eq!(keys(&log), named(&[(5, "a"), (6, "b"), (7, "c"), (8, "d"), (9, "e")]));
}

pub(crate) fn a_record_without_a_value_goes_in_a_later_compaction_c2(volume: &dyn Volume) {
    let compaction = Some(CompactionSettings { delete_retention_ms: 1_000, ..CompactionSettings::default() });
    let settings = LogSettings { compaction, ..compacted() };
    let store = volume.open();
    let log = open(&store, settings);
    let last = keyed_batch(Compression::Snappy, (-1, -1, -1), &[(b"a", None), (b"c", Some(b"3"))]);
    append_each(&log, &[record("a", Some("0")), record("b", Some("1")), last]);
    compact(&log);
    assert_eq!(keys(&log), named(&[(1, "b"), (2, "a"), (3, "c")]));
    let horizon = |log: &Opened| log.log.dirt(4, NOW).expect("readable").delete_horizon_ms;
    assert_eq!(horizon(&log), Some(NOW + 1_000));
    assert_eq!(compact_at(&log, NOW + 999).passes, 0);
    store.close();
    let store = volume.open();
    let log = open(&store, settings);
    assert_eq!(horizon(&log), Some(NOW + 1_000), "when it is due lasts");
    let report = compact_at(&log, NOW + 1_000);
    assert_eq!((report.passes, report.removed_records, report.first_dirty), (1, 1, 4));
    assert_eq!(keys(&log), named(&[(1, "b"), (3, "c")]));
    assert_eq!(horizon(&log), None);
    assert_eq!(compact_at(&log, NOW + 5_000).passes, 0);
    store.close();
    assert_eq!(keys(&open(&volume.open(), settings)), named(&[(1, "b"), (3, "c")]));
}

pub(crate) fn the_last_batches_of_producers_and_of_the_log_stay_c3(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, compacted());
    let by = |producer, sequence, key: &str| {
        keyed_batch(Compression::Gzip, (producer, 0, sequence), &[(key.as_bytes(), Some(b"value"))])
    };
    append_each(&log, &[by(1, 0, "a"), by(1, 1, "a"), by(2, 0, "a"), by(3, 0, "a"), by(3, 1, "a")]);
    let producers = HashMap::from([(1, 1), (3, 4)]);
    log.log.compact(&job(5, &producers)).expect("compacted");
    let left = |log: &Opened| -> Vec<_> {
        let headers = log.read_all(0);
        headers
            .iter()
            .map(|it| (it.base_offset, it.producer_id, it.base_sequence, it.records_count))
            .collect()
    };
    assert_eq!(left(&log), [(1, 1, 1, 0), (4, 3, 1, 1)]);
    // Offset 4 ends what was compacted; then it is neither that nor a producer's last.
    append_each(&log, &[record("a", Some("later")), record("b", None)]);
    log.log.compact(&job(6, &HashMap::from([(1, 1)]))).expect("compacted");
    assert_eq!(left(&log), [(1, 1, 1, 0), (5, -1, -1, 1), (6, -1, -1, 1)]);
    store.close();
    let store = volume.open();
    let log = open(&store, compacted());
    append_each(&log, &[record("b", Some("8"))]);
    compact(&log);
    assert_eq!(left(&log), [(5, -1, -1, 1), (7, -1, -1, 1)], "producer 1 is not known any more");
}

pub(crate) fn keys_that_do_not_fit_take_several_passes(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, compacted());
    let many: Vec<_> = (0..60).map(|number| record(&format!("key-{}", number % 20), Some("value"))).collect();
    append_each(&log, &many);
    let producers = nobody();
    let small = CompactionJob { key_map_bytes: 200, ..job(60, &producers) };
    let report = log.log.compact(&small).expect("compacted");
    assert!(report.passes > 5, "{report:?}");
    let expected: Vec<_> = (40..60).map(|offset| (offset, format!("key-{}", offset - 40))).collect();
    assert_eq!(keys(&log), expected);
    assert_eq!(log.log.size(), log.bytes_of_all(0));
    store.close();
    assert_eq!(keys(&open(&volume.open(), compacted())), expected);
}

pub(crate) fn the_size_is_that_of_what_is_left_r2(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, compacted());
    let mixed = |from: usize, count: usize| {
        for number in from..from + count {
            let key = if number % 3 == 0 { format!("only-{number}") } else { "often".to_owned() };
            append_apart(&log, &[record(&key, Some(&"x".repeat(300 + number)))]);
        }
    };
    let check = |log: &Opened| assert_eq!(log.log.size(), log.bytes_of_all(0));
    mixed(0, 30);
    compact(&log);
    check(&log);
    mixed(30, 30);
    check(&log);
    // The store may be busy with the last of them.
    checkpoint(&log, 1);
    let dirt = log.log.dirt(60, NOW).expect("readable");
    assert_eq!(dirt.clean_bytes + dirt.dirty_bytes, log.log.size(), "{dirt:?}");
    assert!(dirt.clean_bytes < dirt.dirty_bytes);
    compact(&log);
    check(&log);
    log.log.set_log_start(10).expect("within the log");
    assert_eq!(keys(&log).len(), 17);
    check(&log);
    mixed(60, 10);
    log.log.truncate(65).expect("a cut");
    mixed(65, 5);
    compact(&log);
    log.log.truncate(52).expect("a cut behind a gap");
    assert_eq!(log.log.ends().log_end, 52, "offset 51 is one of those that stay");
    check(&log);
    let total = log.log.size();
    let per_run = total / log.read_all(10).len() as u64;
    let keep = LogSettings { delete_old: true, retention_bytes: Some(total - per_run), ..compacted() };
    log.log.set_settings(keep);
    let freed = log.log.retain(NOW, 52).expect("retained");
    assert!(log.log.size() >= total - per_run && log.log.size() == total - freed, "{freed} of {total}");
    store.close();
    let reopened = open(&volume.open(), compacted());
    assert_eq!((reopened.log.size(), reopened.log.ends().log_end), (total - freed, 52));
    if freed == 0 {
        check(&reopened);
    }
}

pub(crate) fn a_cut_in_a_gap_ends_the_log_with_what_is_before_it(volume: &dyn Volume) {
    for (id, append) in [(0, append_each as fn(&Opened, &[Bytes])), (1, append_apart)] {
        let store = volume.open();
        let log = try_open(&store, id, compacted()).expect("opens");
        append(&log, &[record("a", Some("0")), record("b", Some("1"))]);
        append(&log, &vec![record("c", Some("value")); 6]);
        compact(&log);
        assert_eq!(keys(&log), named(&[(0, "a"), (1, "b"), (7, "c")]));
        assert_eq!(log.log.truncate(5).expect("a cut").log_end, 2);
        assert_eq!(log.log.size(), log.bytes_of_all(0));
        store.close();
        let store = volume.open();
        let log = try_open(&store, id, compacted()).expect("opens");
        assert_eq!(log.log.ends().log_end, 2);
        append(&log, &[record("b", Some("2")), record("b", Some("3"))]);
        assert_eq!(compact(&log).removed_records, 2, "what lies there anew is dirty");
        assert_eq!(keys(&log), named(&[(0, "a"), (3, "b")]));
        store.close();
    }
}

pub(crate) fn a_log_takes_gaps_and_reads_over_them(volume: &dyn Volume) {
    let store = volume.open();
    // What is written without a sync is in memory only for a while.
    let settings = LogSettings { durability: Durability::Written, ..kept_for_ever() };
    let log = open(&store, settings);
    log.append(&[record("a", Some("0"))], 3);
    checkpoint(&log, 1);
    log.append_at(10, &record("b", Some("10")), 3);
    assert_eq!(log.log.ends().log_end, 11);
    let check = |log: &Opened| {
        assert_eq!(keys(log), named(&[(0, "a"), (10, "b")]));
        for offset in 1..=10 {
            assert_eq!(bases(&log.read_all(offset)), [10], "offset {offset}");
        }
    };
    check(&log);
    checkpoint(&log, 1);
    check(&log);
    store.close();
    check(&open(&volume.open(), kept_for_ever()));
}

pub(crate) fn times_are_found_in_a_compacted_log_o2_o3(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, compacted());
    let at = |key: &str, timestamp: i64, producer: i64| timed(key, timestamp, producer);
    append_apart(&log, &[at("a", 900, 5), at("b", 100, -1), at("a", 200, -1), at("c", 800, -1)]);
    append_apart(&log, &[at("z", 500, -1)]);
    let pair = |timestamp| {
        let mut builder = BatchBuilder::new(Compression::None);
        for key in [&b"c"[..], &b"e"[..]] {
            builder.push(NewRecord { timestamp, key: Some(key), value: Some(b"1"), ..NewRecord::default() });
        }
        builder.build()
    };
    append_apart(&log, &[pair(300), pair(250)]);
    let producers = HashMap::from([(5, 0)]);
    log.log.compact(&job(9, &producers)).expect("compacted");
    assert_eq!(bases(&log.read_all(0)), [0, 1, 2, 4, 7], "the first without its record");
    let check = |log: &Opened| {
        let base = |found: Option<Bytes>| {
            found.map(|bytes| BatchHeader::parse(&bytes).expect("a batch").base_offset)
        };
        let by_time = |timestamp| base(log.log.batch_by_time(timestamp, 0).expect("readable"));
        assert_eq!(by_time(0), Some(1));
        assert_eq!(by_time(150), Some(2));
        assert_eq!(by_time(201), Some(4));
        assert_eq!(by_time(301), Some(4));
        assert_eq!(by_time(501), None, "the larger ones are gone");
        assert_eq!(base(log.log.batch_with_max_timestamp(0..9).expect("readable")), Some(4));
    };
    check(&log);
    store.close();
    check(&open(&volume.open(), compacted()));
}

pub(crate) fn a_time_is_found_before_runs_that_were_compacted_o2(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, compacted());
    append_apart(&log, &[timed("once", 900, -1)]);
    for key in 0..6_u8 {
        let mut builder = BatchBuilder::new(Compression::None);
        for key in [&[key][..], b"often"] {
            let record =
                NewRecord { timestamp: 10, key: Some(key), value: Some(b"1"), ..NewRecord::default() };
            builder.push(record);
        }
        append_apart(&log, &[builder.build()]);
    }
    assert_eq!(compact(&log).removed_records, 5);
    store.close();
    let log = open(&volume.open(), compacted());
    let found = log.log.batch_by_time(500, 0).expect("readable").expect("the first");
    assert_eq!(BatchHeader::parse(&found).expect("a batch").base_offset, 0);
}

fn timed(key: &str, timestamp: i64, producer: i64) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    if producer >= 0 {
        builder = builder.producer(producer, 0, 0);
    }
    let record =
        NewRecord { timestamp, key: Some(key.as_bytes()), value: Some(b"1"), ..NewRecord::default() };
    builder.append(record).build()
}

/// Ends a compaction after some reads and writes.
#[derive(Debug)]
struct EndAfter(AtomicU64);

impl Pace for EndAfter {
    fn wait(&self, _bytes: u64) -> bool {
        let left = self.0.load(Ordering::SeqCst);
        self.0.store(left.saturating_sub(1), Ordering::SeqCst);
        left > 0
    }
}

pub(crate) fn an_interrupted_compaction_loses_nothing_and_the_next_ends_it(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, compacted());
    rounds(&log, 40);
    let producers = nobody();
    for steps in 0..10 {
        let pace = EndAfter(AtomicU64::new(steps));
        let report = log.log.compact(&CompactionJob { pace: &pace, ..job(40, &producers) }).expect("ended");
        assert!(report.interrupted && report.first_dirty == 0, "{report:?}");
        let mut last = BTreeMap::new();
        last.extend(keys(&log).into_iter().map(|(offset, key)| (key, offset)));
        assert_eq!(last.into_values().collect::<Vec<_>>(), [35, 36, 37, 38, 39]);
        assert_eq!(log.log.size(), log.bytes_of_all(0));
    }
    assert_eq!(compact(&log).first_dirty, 40);
    assert_eq!(keys(&log), named(&[(35, "a"), (36, "b"), (37, "c"), (38, "d"), (39, "e")]));
}

/// Runs something in the middle of a compaction, once it is about to read or write for the nth time.
struct Meanwhile<F> {
    countdown: AtomicU64,
    act: F,
}

impl<F> std::fmt::Debug for Meanwhile<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meanwhile")
    }
}

impl<F: Fn() + Send + Sync> Pace for Meanwhile<F> {
    fn wait(&self, _bytes: u64) -> bool {
        if self.countdown.fetch_sub(1, Ordering::SeqCst) == 1 {
            (self.act)();
        }
        true
    }
}

pub(crate) fn what_is_cut_or_deleted_during_a_compaction_stays_so(volume: &dyn Volume) {
    let store = volume.open();
    for (number, turn) in (0..).zip([1, 5, 39, 41, 45, 79, 81]) {
        for cut in [true, false] {
            let id = 2 * number + i32::from(cut);
            let log = try_open(&store, id, compacted()).expect("opens");
            rounds(&log, 40);
            let act = || {
                if cut {
                    assert_eq!(log.log.truncate(22).expect("a cut").log_end, 22);
                    append_each(&log, &[record("x", Some("new")), record("b", Some("new"))]);
                } else {
                    log.log.set_log_start(37).expect("within the log");
                }
            };
            let pace = Meanwhile { countdown: AtomicU64::new(turn), act };
            let producers = nobody();
            let report = log.log.compact(&CompactionJob { pace: &pace, ..job(40, &producers) });
            report.expect("compacted");
            let mut last = BTreeMap::new();
            last.extend(keys(&log).into_iter().map(|(offset, key)| (key, offset)));
            let offset = |key: &str| last.get(key).copied();
            if cut {
                assert_eq!((offset("x"), offset("b")), (Some(22), Some(23)), "turn {turn}");
            } else {
                assert_eq!(keys(&log), named(&[(37, "c"), (38, "d"), (39, "e")]), "turn {turn}");
            }
            assert_eq!(log.log.size(), log.bytes_of_all(0), "turn {turn}");
            compact(&log);
            assert_eq!(log.log.size(), log.bytes_of_all(0), "turn {turn}");
            let found: Vec<_> = keys(&log).into_iter().map(|(_, key)| key).collect();
            let mut distinct = found.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(found.len(), distinct.len(), "turn {turn}: {found:?}");
        }
    }
}

pub(crate) fn what_a_cut_leaves_does_not_give_way_to_what_it_has_taken(volume: &dyn Volume) {
    let store = volume.open();
    for (number, turn) in (0..).zip([1, 5, 39, 41, 45, 79, 81]) {
        let log = try_open(&store, number, compacted()).expect("opens");
        let names = ["a", "b", "c", "d", "e"];
        // Apart, as runs of one epoch are replaced together or not at all.
        append_apart(&log, &(0..40).map(|at| record(names[at % 5], Some("value"))).collect::<Vec<_>>());
        let act = || assert_eq!(log.log.truncate(22).expect("a cut").log_end, 22);
        let pace = Meanwhile { countdown: AtomicU64::new(turn), act };
        let producers = nobody();
        let report = log.log.compact(&CompactionJob { pace: &pace, ..job(40, &producers) }).expect("ended");
        assert!(report.interrupted && report.first_dirty == 0, "turn {turn}: {report:?}");
        assert_eq!(compact(&log).first_dirty, 22, "turn {turn}");
        assert_eq!(
            keys(&log),
            named(&[(17, "c"), (18, "d"), (19, "e"), (20, "a"), (21, "b")]),
            "turn {turn}"
        );
    }
}

pub(crate) fn readers_are_served_during_a_compaction(volume: &dyn Volume) {
    let store: Arc<dyn LogStore> = volume.open();
    let log = open(&store, compacted());
    let done = AtomicBool::new(false);
    let read = || {
        let mut rounds = 0;
        while !done.load(Ordering::SeqCst) || rounds == 0 {
            let end = log.log.ends().durable_end;
            let found = records(&log, 0);
            assert!(found.is_sorted_by(|a, b| a.0 < b.0), "each once and in order: {found:?}");
            for (offset, key, value) in &found {
                let expected = (format!("{}", offset % 7), format!("value of {offset}"));
                assert_eq!(
                    (key.as_slice(), value.as_deref()),
                    (expected.0.as_bytes(), Some(expected.1.as_bytes()))
                );
            }
            for key in 0..7.min(end) {
                let last = (0..end).rev().find(|offset| offset % 7 == key).expect("every key was written");
                assert!(
                    found.iter().any(|record| record.0 >= last && record.0 % 7 == key),
                    "{key} before {end}"
                );
            }
            rounds += 1;
        }
    };
    std::thread::scope(|scope| {
        let readers = [scope.spawn(read), scope.spawn(read)];
        for round in 0..40 {
            for offset in round * 20..(round + 1) * 20 {
                let value = format!("value of {offset}");
                append_each(&log, &[record(&format!("{}", offset % 7), Some(&value))]);
            }
            compact(&log);
            if round % 5 == 0 {
                checkpoint(&log, 1);
            }
        }
        done.store(true, Ordering::SeqCst);
        readers.into_iter().for_each(|reader| reader.join().expect("a reader"));
    });
    assert_eq!(keys(&log).len(), 7);
    assert!(matches!(log.log.read(range(801, 10)), Err(StorageError::OffsetOutOfRange { .. })));
}

pub(crate) fn a_reader_in_the_middle_misses_nothing_while_runs_are_joined(volume: &dyn Volume) {
    const ROUNDS: i64 = 60;
    let store: Arc<dyn LogStore> = volume.open();
    let log = open(&store, compacted());
    let done = AtomicBool::new(false);
    // No key comes twice, so that nothing goes: runs only become part of others.
    let read = || {
        let mut offset = 0;
        while !done.load(Ordering::SeqCst) {
            let end = log.log.ends().durable_end;
            offset = if offset + 1 < end { offset + 1 } else { 0 };
            if offset < end {
                let bytes = log.bytes(range(offset, 1));
                let first = batches(bytes).next().expect("a batch").expect("whole");
                assert_eq!(first.header().base_offset, offset);
            }
        }
    };
    std::thread::scope(|scope| {
        let readers = [scope.spawn(read), scope.spawn(read)];
        for round in 0..ROUNDS {
            for offset in round * 10..(round + 1) * 10 {
                append_each(&log, &[record(&format!("key {offset}"), Some("value"))]);
            }
            compact(&log);
        }
        done.store(true, Ordering::SeqCst);
        readers.into_iter().for_each(|reader| reader.join().expect("a reader"));
    });
}

pub(crate) fn a_compacted_log_that_is_deleted_is_gone(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, compacted());
    rounds(&log, 20);
    compact(&log);
    store.delete(&[partition(0)]).expect("deleted");
    let producers = nobody();
    let refused = log.log.compact(&job(20, &producers));
    assert!(refused.is_ok_and(|report| report.written_bytes == 0));
    assert!(store.list().is_empty());
    let anew = open(&store, compacted());
    rounds(&anew, 6);
    assert_eq!(compact(&anew).removed_records, 1, "nothing is known of the log before");
}
