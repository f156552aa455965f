//! What every implementation of the storage boundary has to do, as tests that any of them runs.
//!
//! An implementation names a way to open a store on a fresh volume and calls `conformance_tests` in its test module.
//! Opening the same volume again stands for a restart.

mod ahead;
mod compaction;

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use millrace_protocol::records::BatchHeader;
use parking_lot::{Condvar, Mutex};
use uuid::Uuid;

use super::batch::samples::{batch, batch_at};
use super::batch::{WholeBatches, parse_header, parse_whole};
use super::{
    AppendBatch, CheckpointEntry, Durability, EpochEnd, LogListener, LogSettings, LogStore, OpenedLog,
    PartitionLog, ReadRange, Reader, StateSnapshot, StorageError, Wakes,
};
use crate::metadata::image::TopicIdPartition;

pub(crate) use ahead::{
    Held, HeldVolume, held_conformance_tests, replicas_read_on_from_what_is_durable_into_what_is_queued,
    replicas_read_what_is_queued_as_it_becomes_durable_and_consumers_do_not,
    what_was_only_queued_is_gone_after_a_loss_of_power,
};
pub(crate) use compaction::{
    a_compacted_log_that_is_deleted_is_gone, a_cut_in_a_gap_ends_the_log_with_what_is_before_it,
    a_log_takes_gaps_and_reads_over_them, a_log_without_the_policy_is_left_alone,
    a_reader_in_the_middle_misses_nothing_while_runs_are_joined,
    a_record_without_a_value_goes_in_a_later_compaction_c2,
    a_time_is_found_before_runs_that_were_compacted_o2,
    an_interrupted_compaction_loses_nothing_and_the_next_ends_it, compacted,
    compaction_keeps_the_last_record_of_each_key_c4, job, keys_that_do_not_fit_take_several_passes,
    readers_are_served_during_a_compaction, records, the_last_batches_of_producers_and_of_the_log_stay_c3,
    the_size_is_that_of_what_is_left_r2, times_are_found_in_a_compacted_log_o2_o3,
    what_a_cut_leaves_does_not_give_way_to_what_it_has_taken,
    what_is_cut_or_deleted_during_a_compaction_stays_so, what_is_young_or_not_replicated_is_left_alone_c1,
};

/// Opens the store of one volume; each call stands for a start of the process.
pub(crate) trait Volume {
    fn open(&self) -> Arc<dyn LogStore>;
}

/// Declares one test for each check below. `$volume` makes a [`Volume`] that holds nothing yet.
macro_rules! conformance_tests {
    ($volume:expr) => {
        $crate::storage::conformance::conformance_tests! { $volume;
            batches_come_back_with_offset_and_epoch,
            a_read_starts_with_the_batch_that_contains_the_offset_f2,
            the_first_batch_is_whole_even_if_larger_than_the_limit_f1,
            a_read_stops_at_its_bounds,
            reads_from_disk_equal_reads_from_memory,
            only_offsets_outside_of_the_log_are_out_of_range_f3,
            a_batch_does_not_go_below_the_log_end_and_may_leave_a_gap,
            a_batch_larger_than_what_is_asked_for_is_not_skipped,
            a_log_begins_anew_at_any_offset_and_that_lasts,
            everything_durable_is_there_after_a_restart,
            derived_state_comes_back_from_the_checkpoint,
            derived_state_does_not_outlive_the_records_that_it_covers,
            replay_shows_each_header_once,
            truncation_removes_whole_batches_and_lasts,
            a_log_start_lasts,
            a_cut_to_the_log_start_leaves_nothing,
            epochs_are_rebuilt_from_batches_l1_l2,
            batches_are_found_by_time_o2_o3,
            retention_by_time_stops_at_the_first_young_batch_r1,
            retention_by_size_keeps_at_least_the_limit_r2,
            retention_never_passes_its_bound,
            a_deleted_log_is_gone_and_begins_anew,
            the_size_of_the_beginning_grows_from_nothing_to_all,
            stored_logs_are_listed_with_what_the_checkpoint_knew,
            a_closed_store_refuses,
            written_durability_is_readable_at_once_and_lasts,
        }
    };
    ($volume:expr; $($check:ident,)+) => {
        $(
            #[test]
            fn $check() {
                $crate::storage::conformance::$check(&$volume);
            }
        )+
    };
}
pub(crate) use conformance_tests;

/// Declares one test for each check of compaction, for a store that has it.
macro_rules! compaction_conformance_tests {
    ($volume:expr) => {
        $crate::storage::conformance::conformance_tests! { $volume;
            compaction_keeps_the_last_record_of_each_key_c4,
            a_log_without_the_policy_is_left_alone,
            what_is_young_or_not_replicated_is_left_alone_c1,
            a_record_without_a_value_goes_in_a_later_compaction_c2,
            the_last_batches_of_producers_and_of_the_log_stay_c3,
            keys_that_do_not_fit_take_several_passes,
            the_size_is_that_of_what_is_left_r2,
            a_cut_in_a_gap_ends_the_log_with_what_is_before_it,
            a_log_takes_gaps_and_reads_over_them,
            times_are_found_in_a_compacted_log_o2_o3,
            a_time_is_found_before_runs_that_were_compacted_o2,
            an_interrupted_compaction_loses_nothing_and_the_next_ends_it,
            what_is_cut_or_deleted_during_a_compaction_stays_so,
            what_a_cut_leaves_does_not_give_way_to_what_it_has_taken,
            readers_are_served_during_a_compaction,
            a_reader_in_the_middle_misses_nothing_while_runs_are_joined,
            a_compacted_log_that_is_deleted_is_gone,
        }
    };
}
pub(crate) use compaction_conformance_tests;

/// A listener that a thread can wait on.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    durable_end: Mutex<(i64, bool)>,
    changed: Condvar,
}

impl LogListener for Ends {
    fn durable_end_moved(&self, durable_end: i64, _durable_bytes: u64) -> Wakes {
        self.durable_end.lock().0 = durable_end;
        self.changed.notify_all();
        Wakes::default()
    }

    fn store_failed(&self) {
        self.durable_end.lock().1 = true;
        self.changed.notify_all();
    }
}

impl Ends {
    /// Waits until the durable end is at least `end`; false if the store fails before.
    pub(crate) fn wait(&self, end: i64) -> bool {
        let mut state = self.durable_end.lock();
        while state.0 < end && !state.1 {
            let timed_out = self.changed.wait_for(&mut state, Duration::from_secs(30)).timed_out();
            assert!(!timed_out, "the durable end is {} and never became {end}", state.0);
        }
        state.0 >= end
    }
}

/// An open log with its listener, for tests.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn LogStore>,
    pub(crate) log: Arc<dyn PartitionLog>,
    pub(crate) ends: Arc<Ends>,
    pub(crate) state: Option<StateSnapshot>,
}

impl Opened {
    /// Queues a batch at the log end without waiting.
    pub(crate) fn queue(&self, bytes: &Bytes, leader_epoch: i32) -> Result<i64, StorageError> {
        self.queue_at(self.log.ends().log_end, bytes, leader_epoch)
    }

    /// Appends a batch at some offset and waits until it is durable.
    pub(crate) fn append_at(&self, base_offset: i64, bytes: &Bytes, leader_epoch: i32) {
        let end = self.queue_at(base_offset, bytes, leader_epoch).expect("the log takes it");
        self.wait(end);
    }

    fn wait(&self, end: i64) {
        assert!(self.ends.wait(end), "the store has failed: {:?}", self.store.failure().borrow());
    }

    fn queue_at(&self, base_offset: i64, bytes: &Bytes, leader_epoch: i32) -> Result<i64, StorageError> {
        let admission = self.store.admit(bytes.len()).now_or_never().expect("the queue has room")?;
        let header = BatchHeader {
            base_offset,
            partition_leader_epoch: leader_epoch,
            ..BatchHeader::parse(bytes).expect("a sample batch")
        };
        self.log.append(AppendBatch { bytes: bytes.clone(), header }, Arc::new(admission))?;
        Ok(header.next_offset())
    }

    /// Appends batches and waits until they are durable.
    pub(crate) fn append(&self, batches: &[Bytes], leader_epoch: i32) {
        let mut end = 0;
        for bytes in batches {
            end = self.queue(bytes, leader_epoch).expect("the log takes it");
        }
        self.wait(end);
    }

    /// Reads into one piece.
    pub(crate) fn bytes(&self, range: ReadRange) -> Bytes {
        self.log.read(range).expect("readable").into_bytes()
    }

    /// Bytes of all batches from `offset`, or the log start, on.
    pub(crate) fn bytes_of_all(&self, offset: i64) -> u64 {
        let headers = self.read_all(offset.max(self.log.ends().log_start));
        headers.iter().map(|header| header.size_in_bytes() as u64).sum()
    }

    /// Reads everything from `offset` on, in as many reads as it takes.
    pub(crate) fn read_all(&self, offset: i64) -> Vec<BatchHeader> {
        let mut headers: Vec<BatchHeader> = Vec::new();
        let mut next = offset;
        while next < self.log.ends().durable_end {
            let bytes = self.bytes(range(next, 1 << 20));
            let before = headers.len();
            let mut used = 0;
            for (position, _) in WholeBatches::new(&bytes) {
                let header = parse_whole(&bytes[position..]).expect("whole");
                used = position + header.size_in_bytes();
                headers.push(header);
            }
            assert_eq!(used, bytes.len(), "only whole batches");
            assert!(headers.len() > before, "nothing at {next}");
            next = headers.last().map_or(next, BatchHeader::next_offset);
        }
        headers
    }
}

/// A partition for tests.
pub(crate) fn partition(number: i32) -> TopicIdPartition {
    TopicIdPartition { topic_id: Uuid::from_u128(0x00c0_ffee), partition: number }
}

/// Settings under which nothing grows old.
pub(crate) fn kept_for_ever() -> LogSettings {
    LogSettings { retention_ms: None, ..LogSettings::default() }
}

/// Opens partition 0.
pub(crate) fn open(store: &Arc<dyn LogStore>, settings: LogSettings) -> Opened {
    try_open(store, 0, settings).expect("the log opens")
}

/// Opens any partition.
pub(crate) fn try_open(
    store: &Arc<dyn LogStore>,
    number: i32,
    settings: LogSettings,
) -> Result<Opened, StorageError> {
    let ends = Arc::new(Ends::default());
    let listener: Arc<dyn LogListener> = Arc::clone(&ends) as Arc<dyn LogListener>;
    let listener: Weak<dyn LogListener> = Arc::downgrade(&listener);
    let OpenedLog { log, state } = store.open(partition(number), settings, listener)?;
    Ok(Opened { store: Arc::clone(store), log, ends, state })
}

fn range(offset: i64, max_bytes: usize) -> ReadRange {
    ReadRange { reader: Reader::Consumer, offset, until: i64::MAX, max_bytes, at_least_one: true }
}

fn three_by_three(log: &Opened) -> usize {
    let bytes = batch(3, b"value");
    log.append(&[bytes.clone(), bytes.clone(), bytes.clone()], 4);
    // A read may return less than there is while the store is still busy with the rest.
    log.store.checkpoint(Vec::new(), 0).expect("a checkpoint");
    bytes.len()
}

fn bases(headers: &[BatchHeader]) -> Vec<i64> {
    headers.iter().map(|header| header.base_offset).collect()
}

fn checkpoint(log: &Opened, known_at: u64) {
    let entry = CheckpointEntry { partition: partition(0), state: None };
    log.store.checkpoint(vec![entry], known_at).expect("a checkpoint");
}

pub(crate) fn batches_come_back_with_offset_and_epoch(volume: &dyn Volume) {
    let log = open(&volume.open(), LogSettings::default());
    let sent = [batch(3, b"one"), batch(1, b"two")];
    log.append(&sent, 7);
    for (base, bytes) in [(0, &sent[0]), (3, &sent[1])] {
        let read = log.bytes(range(base, 1));
        let header = parse_whole(&read).expect("whole");
        assert_eq!((header.base_offset, header.partition_leader_epoch), (base, 7));
        assert_eq!(read[61..], bytes[61..], "the rest is untouched");
    }
    assert_eq!(log.log.size(), (sent[0].len() + sent[1].len()) as u64);
}

pub(crate) fn a_read_starts_with_the_batch_that_contains_the_offset_f2(volume: &dyn Volume) {
    let log = open(&volume.open(), LogSettings::default());
    three_by_three(&log);
    for (offset, base) in [(0, 0), (2, 0), (3, 3), (4, 3), (8, 6)] {
        let read = log.bytes(range(offset, 1 << 20));
        assert_eq!(parse_header(&read).expect("a header").base_offset, base, "offset {offset}");
    }
}

pub(crate) fn the_first_batch_is_whole_even_if_larger_than_the_limit_f1(volume: &dyn Volume) {
    let log = open(&volume.open(), LogSettings::default());
    let size = three_by_three(&log);
    assert_eq!(log.bytes(range(0, 1)).len(), size);
    let strict = ReadRange { at_least_one: false, ..range(0, size - 1) };
    assert!(log.bytes(strict).is_empty());
    assert_eq!(log.bytes(range(0, 2 * size + 5)).len(), 2 * size);
}

pub(crate) fn a_read_stops_at_its_bounds(volume: &dyn Volume) {
    let log = open(&volume.open(), LogSettings::default());
    let size = three_by_three(&log);
    let until = |offset, until| log.bytes(ReadRange { until, ..range(offset, 1 << 20) }).len();
    assert_eq!(until(0, 3), size);
    assert_eq!(until(0, 4), 2 * size, "a batch that begins below the bound is part of it");
    assert_eq!(until(3, 3), 0);
    assert_eq!(until(0, 100), 3 * size, "the durable end bounds too");
}

pub(crate) fn reads_from_disk_equal_reads_from_memory(volume: &dyn Volume) {
    let read = |log: &Opened| -> Vec<Bytes> {
        let limits = [1, 150, 400, 5_000];
        (0..60).flat_map(|offset| limits.map(|limit| log.bytes(range(offset, limit)))).collect()
    };
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    for number in 0..30_usize {
        log.append(&[batch(2, &vec![7; number * 3])], 0);
    }
    let warm = read(&log);
    store.close();
    let cold = read(&open(&volume.open(), LogSettings::default()));
    for (warm, cold) in warm.iter().zip(&cold) {
        let common = warm.len().min(cold.len());
        assert!(common > 0 && warm[..common] == cold[..common]);
    }
}

pub(crate) fn only_offsets_outside_of_the_log_are_out_of_range_f3(volume: &dyn Volume) {
    let log = open(&volume.open(), LogSettings::default());
    assert!(log.bytes(range(0, 100)).is_empty());
    three_by_three(&log);
    assert!(log.bytes(range(9, 100)).is_empty());
    for offset in [-1, 10] {
        let error = log.log.read(range(offset, 100)).expect_err("outside");
        assert!(matches!(error, StorageError::OffsetOutOfRange { log_start: 0, log_end: 9, .. }), "{error}");
    }
}

pub(crate) fn a_batch_does_not_go_below_the_log_end_and_may_leave_a_gap(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    three_by_three(&log);
    let append_at = |base_offset| {
        let bytes = batch(1, b"value");
        let admission = log.store.admit(10).now_or_never().expect("room").expect("open");
        let header = BatchHeader { base_offset, ..BatchHeader::parse(&bytes).expect("a batch") };
        log.log.append(AppendBatch { bytes, header }, Arc::new(admission))
    };
    let error = append_at(8).expect_err("taken");
    assert!(matches!(error, StorageError::NotContiguous { base_offset: 8, log_end: 9 }), "{error}");
    append_at(12).expect("a gap");
    assert!(log.ends.wait(13));
    assert_eq!(bases(&log.read_all(0)), [0, 3, 6, 12]);
    assert_eq!(bases(&log.read_all(10)), [12], "the next one where there is a gap (F2)");
    store.close();
    let log = open(&volume.open(), LogSettings::default());
    assert_eq!(bases(&log.read_all(9)), [12]);
    assert_eq!(log.log.ends().log_end, 13);
    assert_eq!(log.log.truncate(11).expect("a cut").log_end, 9, "no end in a gap");
    assert_eq!(bases(&log.read_all(0)), [0, 3, 6]);
}

pub(crate) fn a_batch_larger_than_what_is_asked_for_is_not_skipped(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, kept_for_ever());
    log.append(&[batch(1, &[7; 5000])], 1);
    store.close();
    // On disk only, and behind it one that is in memory.
    let log = open(&volume.open(), kept_for_ever());
    log.append(&[batch(1, b"small")], 1);
    let read = |max_bytes, at_least_one| {
        let range = ReadRange { at_least_one, ..range(0, max_bytes) };
        WholeBatches::new(&log.bytes(range)).map(|(_, header)| header.base_offset).collect::<Vec<_>>()
    };
    assert_eq!(read(1000, false), [0; 0], "what does not fit is left for the next read");
    assert_eq!(read(1000, true), [0]);
}

pub(crate) fn a_log_begins_anew_at_any_offset_and_that_lasts(volume: &dyn Volume) {
    for offset in [0, 5, 9, 20] {
        let store = volume.open();
        let log = open(&store, kept_for_ever());
        log.log.start_anew(0).expect("an empty log");
        three_by_three(&log);
        let ends = log.log.start_anew(offset).expect("an empty log");
        assert_eq!((ends.log_start, ends.durable_end, ends.log_end), (offset, offset, offset));
        assert_eq!(log.log.size(), 0);
        assert_eq!(log.log.latest_epoch(), None);
        log.append(&[batch(2, b"first")], 7);
        store.close();
        let store = volume.open();
        let log = open(&store, kept_for_ever());
        assert_eq!(bases(&log.read_all(offset)), [offset]);
        let ends = log.log.ends();
        assert_eq!((ends.log_start, ends.log_end), (offset, offset + 2));
        store.close();
    }
}

pub(crate) fn everything_durable_is_there_after_a_restart(volume: &dyn Volume) {
    for round in 0..6 {
        let store = volume.open();
        let log = open(&store, kept_for_ever());
        assert_eq!(log.log.ends().log_end, round * 30);
        assert_eq!(log.log.ends().durable_end, round * 30);
        log.append(&vec![batch(3, &[1; 90]); 5], 1);
        if round % 2 == 0 {
            checkpoint(&log, 1);
        }
        log.append(&vec![batch(3, &[2; 90]); 5], 1);
        if round % 3 == 0 {
            checkpoint(&log, 1);
        }
        let headers = log.read_all(0);
        assert_eq!(bases(&headers), (0..(round + 1) * 10).map(|number| number * 3).collect::<Vec<_>>());
        store.close();
    }
}

pub(crate) fn derived_state_comes_back_from_the_checkpoint(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    assert_eq!(log.state, None);
    three_by_three(&log);
    let state = StateSnapshot { offset: 9, bytes: Bytes::from_static(b"derived") };
    let entry = CheckpointEntry { partition: partition(0), state: Some(state.clone()) };
    store.checkpoint(vec![entry], 5).expect("a checkpoint");
    three_by_three(&log);
    // Keeps the state when the owner has nothing new to say.
    checkpoint(&log, 6);
    store.close();
    let log = open(&volume.open(), LogSettings::default());
    assert_eq!(log.state, Some(state));
    assert_eq!(log.log.ends().log_end, 18);
}

pub(crate) fn derived_state_does_not_outlive_the_records_that_it_covers(volume: &dyn Volume) {
    for (offset, survives) in [(9, false), (6, true)] {
        let store = volume.open();
        let log = open(&store, kept_for_ever());
        log.log.start_anew(0).expect("an empty log");
        three_by_three(&log);
        let state = StateSnapshot { offset, bytes: Bytes::from_static(b"derived") };
        let entry = CheckpointEntry { partition: partition(0), state: Some(state.clone()) };
        store.checkpoint(vec![entry], 5).expect("a checkpoint");
        log.log.truncate(6).expect("a cut");
        // Other records at the offsets of those that were cut.
        three_by_three(&log);
        store.close();
        let store = volume.open();
        let log = open(&store, kept_for_ever());
        assert_eq!(log.log.ends().log_end, 15);
        assert_eq!(log.state, survives.then_some(state), "at {offset}");
        store.close();
    }
}

pub(crate) fn replay_shows_each_header_once(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, kept_for_ever());
    log.append(&vec![batch(3, &[1; 200]); 10], 2);
    for from in [0, 1, 3, 14, 29, 30] {
        let mut seen = Vec::new();
        log.log.replay(from, &mut |header| seen.push(header.base_offset)).expect("readable");
        assert_eq!(seen, (from / 3..10).map(|number| number * 3).collect::<Vec<_>>(), "from {from}");
    }
}

pub(crate) fn truncation_removes_whole_batches_and_lasts(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, kept_for_ever());
    log.append(&vec![batch(3, &[1; 200]); 6], 1);
    log.append(&vec![batch(3, &[1; 200]); 6], 2);
    checkpoint(&log, 1);
    let ends = log.log.truncate(13).expect("a cut");
    assert_eq!((ends.log_end, ends.durable_end), (12, 12));
    assert_eq!(log.log.latest_epoch(), Some(1));
    assert_eq!(bases(&log.read_all(0)), [0, 3, 6, 9]);
    assert_eq!(log.log.truncate(12).expect("nothing to do").log_end, 12);
    log.append(&[batch(2, b"other")], 5);
    store.close();
    let store = volume.open();
    let log = open(&store, kept_for_ever());
    assert_eq!(bases(&log.read_all(0)), [0, 3, 6, 9, 12]);
    assert_eq!(log.log.ends().log_end, 14);
    assert_eq!(log.log.epoch_end(1), Some(EpochEnd { leader_epoch: 1, end_offset: 12 }));
    assert_eq!(log.log.truncate(0).expect("a cut").log_end, 0);
    assert!(log.log.truncate(-1).is_err());
    log.append(&[batch(1, b"again")], 6);
    assert_eq!(bases(&log.read_all(0)), [0]);
}

pub(crate) fn a_cut_to_the_log_start_leaves_nothing(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, kept_for_ever());
    log.append(&vec![batch(1, &[1; 200]); 3], 1);
    log.log.set_log_start(1).expect("within the log");
    assert_eq!(log.log.truncate(1).expect("a cut").log_end, 1);
    assert_eq!(log.log.size(), 0);
    store.close();
    let store = volume.open();
    let log = open(&store, kept_for_ever());
    assert_eq!((log.log.ends().log_start, log.log.ends().log_end, log.log.size()), (1, 1, 0));
    log.append(&[batch(1, b"other")], 2);
    assert_eq!(bases(&log.read_all(1)), [1]);
    assert_eq!(log.log.size(), log.bytes_of_all(1));
}

pub(crate) fn a_log_start_lasts(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    three_by_three(&log);
    log.log.set_log_start(4).expect("within the log");
    log.log.set_log_start(2).expect("never moves back");
    assert!(log.log.set_log_start(10).is_err());
    assert_eq!(log.log.ends().log_start, 4);
    assert!(matches!(log.log.read(range(3, 10)), Err(StorageError::OffsetOutOfRange { log_start: 4, .. })));
    store.close();
    let log = open(&volume.open(), LogSettings::default());
    assert_eq!(log.log.ends().log_start, 4);
    assert_eq!(bases(&log.read_all(4)), [3, 6], "the batch that contains the start is still whole");
}

pub(crate) fn epochs_are_rebuilt_from_batches_l1_l2(volume: &dyn Volume) {
    let check = |log: &Opened| {
        assert_eq!(log.log.epoch_end(2), Some(EpochEnd { leader_epoch: 2, end_offset: 3 }));
        assert_eq!(log.log.epoch_end(4), Some(EpochEnd { leader_epoch: 2, end_offset: 3 }));
        assert_eq!(log.log.epoch_end(5), Some(EpochEnd { leader_epoch: 5, end_offset: 6 }));
        assert_eq!(log.log.epoch_at(4), Some(5));
    };
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    assert_eq!(log.log.latest_epoch(), None);
    log.append(&[batch(3, b"a")], 2);
    log.log.begin_epoch(5);
    assert_eq!(log.log.epoch_end(2), Some(EpochEnd { leader_epoch: 2, end_offset: 3 }), "before any record");
    log.append(&[batch(3, b"b")], 5);
    check(&log);
    log.log.begin_epoch(8);
    assert_eq!(log.log.epoch_end(8), Some(EpochEnd { leader_epoch: 8, end_offset: 6 }));
    assert_eq!(log.log.epoch_end(9), None);
    store.close();
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    check(&log);
    checkpoint(&log, 1);
    store.close();
    check(&open(&volume.open(), LogSettings::default()));
}

pub(crate) fn batches_are_found_by_time_o2_o3(volume: &dyn Volume) {
    let check = |log: &Opened| {
        let base = |found: Option<Bytes>| found.map(|bytes| parse_whole(&bytes).expect("whole").base_offset);
        let by_time = |timestamp, from| base(log.log.batch_by_time(timestamp, from).expect("readable"));
        assert_eq!(by_time(0, 0), Some(0));
        assert_eq!(by_time(101, 0), Some(2), "order of the log, not of time");
        assert_eq!(by_time(101, 4), Some(6), "a later start");
        assert_eq!(by_time(301, 0), Some(8));
        assert_eq!(by_time(901, 0), None);
        let largest = |offsets| base(log.log.batch_with_max_timestamp(offsets).expect("readable"));
        assert_eq!(largest(0..12), Some(8), "the first of them");
        assert_eq!(largest(0..9), Some(2), "one that the range cuts does not count");
        assert_eq!(largest(3..9), Some(6));
        assert_eq!(largest(4..6), Some(4));
        assert_eq!(largest(9..12), Some(10));
        assert_eq!(largest(4..5), None);
    };
    let store = volume.open();
    let log = open(&store, kept_for_ever());
    assert!(log.log.batch_with_max_timestamp(0..i64::MAX).expect("an empty log").is_none());
    for timestamps in [[90, 100], [150, 300], [10, 20], [120, 300], [900, 40], [900, 900]] {
        log.append(&[batch_at(&timestamps, &[0; 150])], 0);
    }
    check(&log);
    store.close();
    let store = volume.open();
    let log = open(&store, kept_for_ever());
    check(&log);
    log.log.set_log_start(10).expect("within the log");
    let last = log.log.batch_with_max_timestamp(10..12).expect("readable").expect("one is left");
    assert_eq!(parse_whole(&last).expect("whole").base_offset, 10);
}

fn batches_at(log: &Opened, timestamps: &[i64]) -> u64 {
    for timestamp in timestamps {
        log.append(&[batch_at(&[*timestamp], &[0; 900])], 0);
    }
    log.log.size() / timestamps.len() as u64
}

pub(crate) fn retention_by_time_stops_at_the_first_young_batch_r1(volume: &dyn Volume) {
    let settings = LogSettings { retention_ms: Some(1_000), ..kept_for_ever() };
    let store = volume.open();
    let log = open(&store, settings);
    let size = batches_at(&log, &[5_000, 5_100, 9_000, 5_200, 5_300]);
    assert_eq!(log.log.retain(5_500, 5).expect("nothing is old"), 0);
    assert_eq!(log.log.retain(7_000, 5).expect("two are old"), 2 * size);
    assert_eq!(log.log.ends().log_start, 2, "the future timestamp pins what follows");
    assert_eq!(log.log.retain(20_000, 5).expect("all are old"), 3 * size);
    assert_eq!((log.log.ends().log_start, log.log.ends().log_end), (5, 5));
    assert_eq!(log.log.retain(20_000, 5).expect("nothing is left"), 0);
    store.close();
    let log = open(&volume.open(), settings);
    assert_eq!((log.log.ends().log_start, log.log.ends().log_end), (5, 5), "the end survives without data");
    log.append(&[batch(1, b"next")], 0);
    assert_eq!(bases(&log.read_all(5)), [5]);
}

pub(crate) fn retention_by_size_keeps_at_least_the_limit_r2(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, kept_for_ever());
    let size = batches_at(&log, &[1, 2, 3, 4]);
    log.log.set_settings(LogSettings { retention_bytes: Some(2 * size + 1), ..kept_for_ever() });
    assert_eq!(log.log.retain(10, 4).expect("one goes"), size);
    log.log.set_settings(LogSettings {
        retention_bytes: Some(1),
        retention_ms: Some(1),
        delete_old: false,
        ..kept_for_ever()
    });
    assert_eq!(log.log.retain(100_000, 4).expect("the policy keeps all"), 0);
    assert_eq!(log.log.size(), 3 * size);
}

pub(crate) fn retention_never_passes_its_bound(volume: &dyn Volume) {
    let log = open(&volume.open(), LogSettings { retention_ms: Some(1), ..kept_for_ever() });
    batches_at(&log, &[1, 2, 3, 4]);
    log.log.retain(1_000_000, 2).expect("two go");
    assert_eq!(log.log.ends().log_start, 2);
}

pub(crate) fn the_size_of_the_beginning_grows_from_nothing_to_all(volume: &dyn Volume) {
    let log = open(&volume.open(), LogSettings::default());
    for _ in 0..5 {
        log.append(&[batch(2, &[7; 100])], 0);
    }
    let below = |offset| log.log.size_below(offset).expect("the log is open");
    let sizes: Vec<u64> = (0..=10).map(below).collect();
    assert!(sizes.is_sorted(), "{sizes:?}");
    assert_eq!((sizes[0], sizes[10], below(99)), (0, log.log.size(), log.log.size()));
    assert!(sizes[4] > 0 && sizes[6] < sizes[10], "{sizes:?}");
    log.log.set_log_start(6).expect("it is below the end");
    assert_eq!((below(6), below(10)), (0, log.log.size()));
    assert!(below(8) > 0 && below(8) < log.log.size());
}

pub(crate) fn a_deleted_log_is_gone_and_begins_anew(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    three_by_three(&log);
    checkpoint(&log, 3);
    store.delete(&[partition(0)]).expect("deleted");
    assert!(store.list().is_empty());
    assert!(matches!(log.queue(&batch(1, b"late"), 0), Err(StorageError::Gone)));
    assert!(matches!(log.log.read(range(0, 10)), Err(StorageError::Gone)));
    let anew = open(&store, LogSettings::default());
    assert_eq!(anew.log.ends().log_end, 0);
    store.delete(&[partition(0)]).expect("a log without data");
    store.delete(&[partition(9)]).expect("a log that never was");
    store.close();
    assert_eq!(open(&volume.open(), LogSettings::default()).log.ends().log_end, 0);
}

pub(crate) fn stored_logs_are_listed_with_what_the_checkpoint_knew(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    let other = try_open(&store, 1, LogSettings::default()).expect("opens");
    assert!(store.list().is_empty(), "empty logs take no space");
    three_by_three(&log);
    checkpoint(&log, 17);
    other.append(&[batch(1, b"later")], 0);
    let listed = |store: &Arc<dyn LogStore>| {
        let mut logs: Vec<_> =
            store.list().into_iter().map(|stored| (stored.partition.partition, stored.known_at)).collect();
        logs.sort_unstable();
        logs
    };
    assert_eq!(listed(&store), [(0, Some(17)), (1, None)]);
    assert!(matches!(try_open(&store, 0, LogSettings::default()), Err(StorageError::Gone)), "open already");
    store.close();
    let store = volume.open();
    assert_eq!(listed(&store), [(0, Some(17)), (1, None)]);
    store.disown(&[partition(0)]).expect("marked");
    let log = open(&store, LogSettings::default());
    checkpoint(&log, 99);
    store.close();
    assert_eq!(listed(&volume.open())[0], (0, Some(u64::MAX)), "disowned for good");
}

pub(crate) fn a_closed_store_refuses(volume: &dyn Volume) {
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    three_by_three(&log);
    store.close();
    let refused = store.admit(1).now_or_never().expect("at once");
    assert!(matches!(refused, Err(StorageError::Closed)));
    assert!(matches!(log.log.truncate(0), Err(StorageError::Closed)));
    assert!(store.failure().borrow().is_none());
}

pub(crate) fn written_durability_is_readable_at_once_and_lasts(volume: &dyn Volume) {
    let settings = LogSettings { durability: Durability::Written, ..kept_for_ever() };
    let store = volume.open();
    let log = open(&store, settings);
    log.append(&vec![batch(3, &[1; 200]); 10], 0);
    checkpoint(&log, 1);
    log.append(&vec![batch(3, &[1; 200]); 10], 0);
    assert_eq!(log.read_all(0).len(), 20);
    store.close();
    assert_eq!(open(&volume.open(), settings).read_all(0).len(), 20);
}
