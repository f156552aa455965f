use std::collections::BTreeMap;

use bytes::Bytes;
use millrace_protocol::records::{BatchBuilder, Compression, NewRecord, patch_base_offset};
use proptest::prelude::*;

use super::*;

/// Offset, key and value of a record.
type Stored = (i64, Vec<u8>, Option<Vec<u8>>);

fn batch_at(base_offset: i64, records: &[(&str, Option<&str>)]) -> RecordBatch {
    let mut builder = BatchBuilder::new(Compression::Lz4).base_offset(base_offset).producer(7, 0, 3);
    for (number, (key, value)) in (0..).zip(records) {
        builder.push(NewRecord {
            timestamp: 100 + number,
            key: Some(key.as_bytes()),
            value: value.map(str::as_bytes),
            ..NewRecord::default()
        });
    }
    builder.finish()
}

fn records(batch: &RecordBatch) -> Vec<Stored> {
    let body = batch.decompress(1 << 20).unwrap();
    let records = body.records().map(Result::unwrap);
    records
        .map(|record| (record.offset, record.key.unwrap().to_vec(), record.value.map(<[u8]>::to_vec)))
        .collect()
}

fn offsets(left: &Left) -> Vec<i64> {
    match left {
        Left::Part(batch) => records(batch).iter().map(|record| record.0).collect(),
        Left::Whole | Left::Nothing => panic!("{left:?}"),
    }
}

fn keys_of(batches: &[&RecordBatch]) -> KeyMap {
    let mut keys = KeyMap::new(1 << 16, 1_000);
    for batch in batches {
        assert_eq!(note_keys(batch, 0, &[], &mut keys).unwrap(), None);
    }
    keys
}

static NOBODY: std::sync::LazyLock<HashMap<i64, i64>> = std::sync::LazyLock::new(HashMap::new);

fn rule(keys: &KeyMap, end: i64) -> Rule<'_> {
    Rule {
        keys,
        log_start: 0,
        first_dirty: 0,
        end,
        now_ms: 5_000,
        delete_retention_ms: 1_000,
        producers: &NOBODY,
        aborted: &[],
    }
}

#[test]
fn the_last_record_of_each_key_stays_and_nothing_of_the_batch_moves_c4() {
    let first = batch_at(10, &[("a", Some("1")), ("b", Some("2")), ("a", Some("3")), ("c", Some("4"))]);
    let second = batch_at(14, &[("c", Some("5")), ("d", Some("6"))]);
    let keys = keys_of(&[&first, &second]);
    let verdict = rule(&keys, 100).judge(&first).unwrap();
    assert_eq!((verdict.removed, verdict.delete_horizon_ms), (2, None));
    let Left::Part(left) = verdict.left else { panic!("nothing is gone") };
    left.verify_crc().unwrap();
    assert_eq!(
        records(&left),
        [(11, b"b".to_vec(), Some(b"2".to_vec())), (12, b"a".to_vec(), Some(b"3".to_vec()))]
    );
    let (before, after) = (first.header(), left.header());
    assert_eq!((after.base_offset, after.last_offset()), (10, 13));
    assert_eq!(
        (after.producer_id, after.producer_epoch, after.base_sequence, after.last_sequence()),
        (before.producer_id, before.producer_epoch, before.base_sequence, before.last_sequence())
    );
    assert_eq!(after.attributes.compression(), Ok(Compression::Lz4));
    assert_eq!((after.records_count, after.max_timestamp), (2, 102));
    assert_eq!(rule(&keys, 100).judge(&second).unwrap().left, Left::Whole);
}

#[test]
fn what_lies_beyond_the_end_stays_c1() {
    let first = batch_at(0, &[("a", Some("1")), ("b", Some("1")), ("a", Some("2"))]);
    let keys = keys_of(&[&first, &batch_at(3, &[("a", Some("3")), ("b", Some("3"))])]);
    assert_eq!(offsets(&rule(&keys, 1).judge(&first).unwrap().left), [1, 2]);
    assert_eq!(offsets(&rule(&keys, 2).judge(&first).unwrap().left), [2]);
}

#[test]
fn what_lies_below_the_log_start_does_not_stay() {
    let batch = batch_at(0, &[("a", Some("1")), ("b", Some("2"))]);
    let keys = keys_of(&[]);
    let from = |log_start| Rule { log_start, ..rule(&keys, 100) }.judge(&batch).unwrap().left;
    assert_eq!(from(0), Left::Whole);
    assert_eq!(offsets(&from(1)), [1]);
    assert_eq!(from(2), Left::Nothing);
}

#[test]
fn records_without_a_key_do_not_stay() {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(NewRecord { value: Some(b"no key"), ..NewRecord::default() });
    let keys = keys_of(&[]);
    assert_eq!(rule(&keys, 100).judge(&builder.finish()).unwrap().left, Left::Nothing);
}

#[test]
fn a_record_without_a_value_gets_a_horizon_first_and_goes_later_c2() {
    let batch = batch_at(0, &[("a", Some("1")), ("b", None)]);
    let keys = keys_of(&[&batch]);
    let Left::Part(stamped) = rule(&keys, 100).judge(&batch).unwrap().left else { panic!("no horizon") };
    assert_eq!(stamped.header().delete_horizon_ms(), Some(6_000));
    assert_eq!(records(&stamped), records(&batch));
    let timestamps = |batch: &RecordBatch| -> Vec<i64> {
        batch.decompress(1 << 20).unwrap().records().map(|record| record.unwrap().timestamp).collect()
    };
    assert_eq!(timestamps(&stamped), timestamps(&batch), "the horizon lies where the base timestamp was");

    let none = keys_of(&[]);
    let due = |now_ms| {
        let rule = Rule { now_ms, first_dirty: 2, ..rule(&none, 100) };
        rule.judge(&stamped).unwrap().delete_horizon_ms
    };
    assert_eq!((due(5_999), due(6_000)), (Some(6_000), None), "what is gone is not due any more");
    let at =
        |now_ms, first_dirty| Rule { now_ms, first_dirty, ..rule(&none, 100) }.judge(&stamped).unwrap().left;
    assert_eq!(at(5_999, 2), Left::Whole, "the horizon is not moved");
    assert_eq!(at(9_999, 1), Left::Whole, "an earlier record of the key may still be there");
    assert_eq!(offsets(&at(6_000, 2)), [0]);
    let Left::Part(left) = at(6_000, 2) else { panic!("it is due") };
    assert_eq!(left.header().delete_horizon_ms(), Some(6_000), "as Kafka leaves it");
}

#[test]
fn the_last_batch_of_a_producer_stays_without_its_records_c3() {
    let batch = batch_at(0, &[("a", Some("1")), ("a", None)]);
    let keys = keys_of(&[&batch, &batch_at(2, &[("a", Some("2"))])]);
    let live = HashMap::from([(7, 1)]);
    let with_producer = Rule { producers: &live, ..rule(&keys, 100) };
    let Left::Part(empty) = with_producer.judge(&batch).unwrap().left else { panic!("it is gone") };
    empty.verify_crc().unwrap();
    let header = empty.header();
    assert_eq!((header.records_count, header.size_in_bytes()), (0, 61));
    assert_eq!((header.last_offset(), header.last_sequence(), header.max_timestamp), (1, 4, 101));
    assert_eq!(with_producer.judge(&empty).unwrap().left, Left::Whole);
    let later = HashMap::from([(7, 5)]);
    let gone = Rule { producers: &later, ..with_producer };
    assert_eq!(gone.judge(&batch).unwrap().left, Left::Nothing, "it has written later");
    assert_eq!(gone.judge(&empty).unwrap().left, Left::Nothing);
    assert_eq!(rule(&keys, 100).judge(&batch).unwrap().left, Left::Nothing, "it is not known any more");
}

#[test]
fn the_batch_that_ends_the_compacted_part_stays_without_its_records_c3() {
    let batch = batch_at(0, &[("a", Some("1"))]);
    let keys = keys_of(&[&batch, &batch_at(1, &[("a", Some("2"))])]);
    let Left::Part(empty) = rule(&keys, 1).judge(&batch).unwrap().left else { panic!("it is gone") };
    assert_eq!(empty.header().next_offset(), 1);
    assert_eq!(rule(&keys, 2).judge(&empty).unwrap().left, Left::Nothing);
}

#[test]
fn markers_stay_and_records_of_aborted_transactions_do_not_c3() {
    let builder = |builder: BatchBuilder| {
        builder
            .producer(7, 0, 0)
            .transactional()
            .append(NewRecord { key: Some(b"a"), value: Some(b"1"), ..NewRecord::default() })
            .finish()
    };
    let data = builder(BatchBuilder::new(Compression::None).base_offset(4));
    let marker = builder(BatchBuilder::new(Compression::None).base_offset(5).control());
    let aborted = [AbortedTransaction { producer_id: 7, first_offset: 4, last_offset: 5 }];
    let mut keys = KeyMap::new(1 << 10, 10);
    for batch in [&data, &marker] {
        note_keys(batch, 0, &aborted, &mut keys).unwrap();
    }
    assert!(keys.is_empty(), "what is not there hides nothing");
    let rule = Rule { aborted: &aborted, ..rule(&keys, 100) };
    assert_eq!(rule.judge(&data).unwrap().left, Left::Nothing);
    assert_eq!(rule.judge(&marker).unwrap().left, Left::Whole);
    let other = [AbortedTransaction { producer_id: 8, ..aborted[0] }];
    assert_eq!(Rule { aborted: &other, ..rule }.judge(&data).unwrap().left, Left::Whole);
}

#[test]
fn keys_that_do_not_fit_are_told_by_the_first_of_them() {
    let batch = batch_at(0, &[("a", Some("1")), ("a", Some("2")), ("b", Some("3")), ("c", Some("4"))]);
    let mut keys = KeyMap::new(0, u64::MAX);
    assert_eq!(note_keys(&batch, 0, &[], &mut keys).unwrap(), Some(2));
    let mut keys = KeyMap::new(0, u64::MAX);
    assert_eq!(note_keys(&batch, 2, &[], &mut keys).unwrap(), Some(3));
}

/// A log compacted by the rule, as a store does it.
#[derive(Default)]
struct Log {
    batches: Vec<RecordBatch>,
    end: i64,
    first_dirty: i64,
}

impl Log {
    fn compact(
        &mut self,
        now_ms: i64,
        producers: &HashMap<i64, i64>,
        key_map_bytes: usize,
        stop_after: Option<usize>,
    ) {
        while self.first_dirty < self.end {
            let mut keys = KeyMap::new(key_map_bytes, u64::MAX);
            let from = self.first_dirty;
            let full = self.batches.iter().filter(|batch| batch.header().last_offset() >= from);
            let full =
                full.map(|batch| note_keys(batch, from, &[], &mut keys).unwrap()).find_map(|full| full);
            let end = full.unwrap_or(self.end);
            assert!(end > from, "it gets on");
            let rule = Rule {
                keys: &keys,
                log_start: 0,
                first_dirty: from,
                end,
                now_ms,
                delete_retention_ms: 10,
                producers,
                aborted: &[],
            };
            let mut left = Vec::new();
            for (number, batch) in self.batches.iter().enumerate() {
                if stop_after.is_some_and(|stop| number >= stop) || batch.header().base_offset >= end {
                    left.push(batch.clone());
                    continue;
                }
                match rule.judge(batch).unwrap().left {
                    Left::Whole => left.push(batch.clone()),
                    Left::Part(batch) => left.push(batch),
                    Left::Nothing => {}
                }
            }
            self.batches = left;
            if stop_after.is_some() {
                return;
            }
            self.first_dirty = end;
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Records of a producer: key, and whether it has a value.
    Append(i64, Vec<(u8, bool)>),
    Wait(i64),
    Compact {
        key_map_bytes: usize,
        live: bool,
        stop_after: Option<usize>,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let records = prop::collection::vec((0..8_u8, prop::bool::weighted(0.7)), 1..5);
    let step = prop_oneof![
        5 => (-1..3_i64, records).prop_map(|(producer, records)| Step::Append(producer, records)),
        1 => (1..20_i64).prop_map(Step::Wait),
        2 => (prop_oneof![Just(0), Just(150), Just(1 << 16)], any::<bool>(), prop::option::weighted(0.3, 0..6_usize))
            .prop_map(|(key_map_bytes, live, stop_after)| Step::Compact { key_map_bytes, live, stop_after }),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// The model: the last record of each key, whether it has a value, and every producer's last sequence.
    #[test]
    fn a_compacted_log_says_the_same_as_the_whole_one(steps in steps()) {
        let (mut log, mut now_ms) = (Log::default(), 0_i64);
        let mut all: Vec<(i64, u8, bool)> = Vec::new();
        let mut producers: HashMap<i64, (i64, i32)> = HashMap::new();
        for step in steps {
            match step {
                Step::Append(producer, records) => {
                    let sequence = producers.get(&producer).map_or(0, |(_, last)| last + 1);
                    let sequence = if producer < 0 { -1 } else { sequence };
                    let mut builder = BatchBuilder::new(Compression::None).producer(producer, 0, sequence);
                    for (number, (key, has_value)) in (0..).zip(&records) {
                        builder.push(NewRecord {
                            key: Some(std::slice::from_ref(key)),
                            value: has_value.then_some(b"value"),
                            ..NewRecord::default()
                        });
                        all.push((log.end + number, *key, *has_value));
                    }
                    let mut bytes = builder.build().to_vec();
                    patch_base_offset(&mut bytes, log.end);
                    let batch = RecordBatch::split_from(&mut Bytes::from(bytes)).unwrap();
                    log.end = batch.header().next_offset();
                    producers.insert(producer, (batch.header().last_offset(), batch.header().last_sequence()));
                    log.batches.push(batch);
                }
                Step::Wait(ms) => now_ms += ms,
                Step::Compact { key_map_bytes, live, stop_after } => {
                    let last_offsets = producers.iter().map(|(id, (last, _))| (*id, *last));
                    let last_offsets: HashMap<i64, i64> = last_offsets.filter(|_| live).collect();
                    log.compact(now_ms, &last_offsets, key_map_bytes, stop_after);
                    if !live {
                        producers.clear();
                    }
                }
            }
            let found: Vec<Stored> = log.batches.iter().flat_map(records).collect();
            let found: Vec<(i64, u8, bool)> =
                found.iter().map(|(offset, key, value)| (*offset, key[0], value.is_some())).collect();
            prop_assert!(found.iter().all(|record| all.contains(record)), "nothing is made up or moved");
            prop_assert!(found.is_sorted());
            let last = |records: &[(i64, u8, bool)]| -> BTreeMap<u8, (i64, bool)> {
                records.iter().map(|(offset, key, has_value)| (*key, (*offset, *has_value))).collect()
            };
            let (expected, latest) = (last(&all), last(&found));
            for (key, (offset, has_value)) in &expected {
                match latest.get(key) {
                    Some(found) => prop_assert_eq!(found, &(*offset, *has_value), "key {}", key),
                    None => prop_assert!(!has_value, "the last value of key {} is gone", key),
                }
            }
            let clean = found.iter().filter(|record| record.0 < log.first_dirty);
            let keys: Vec<u8> = clean.map(|record| record.1).collect();
            let mut distinct = keys.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(keys.len(), distinct.len(), "each key once below the first dirty offset");
            for (id, (last_offset, last_sequence)) in producers.iter().filter(|(id, _)| **id >= 0) {
                let of_producer = log.batches.iter().filter(|batch| batch.header().producer_id == *id);
                let last = of_producer.last().unwrap().header();
                prop_assert_eq!((last.last_offset(), last.last_sequence()), (*last_offset, *last_sequence));
            }
            prop_assert_eq!(log.batches.last().map_or(0, |last| last.header().next_offset()), log.end);
            let headers: Vec<_> = log.batches.iter().map(RecordBatch::header).collect();
            prop_assert!(headers.is_sorted_by(|a, b| a.next_offset() <= b.base_offset));
        }
    }
}
