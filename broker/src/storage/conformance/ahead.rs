//! What replicas are shown before it is durable.

use std::sync::Arc;

use bytes::Bytes;

use super::{Opened, Volume, bases, kept_for_ever, open, range};
use crate::storage::batch::samples::batch;
use crate::storage::batch::{WholeBatches, parse_whole};
use crate::storage::{Durability, EpochEnd, LogSettings, LogStore, ReadRange, Reader};

/// A volume on which nothing becomes durable while it is held.
pub(crate) trait HeldVolume: Volume {
    fn hold(&self) -> Box<dyn Held>;
}

/// Holds a volume until it is dropped.
pub(crate) trait Held {
    /// The power goes: what waits never becomes durable, and the store of before is of no use any more.
    fn lose_power(self: Box<Self>);
}

/// Declares one test for each check below. `$volume` makes a [`HeldVolume`] that holds nothing yet.
macro_rules! held_conformance_tests {
    ($volume:expr) => {
        $crate::storage::conformance::conformance_tests! { $volume;
            replicas_read_what_is_queued_as_it_becomes_durable_and_consumers_do_not,
            replicas_read_on_from_what_is_durable_into_what_is_queued,
            what_was_only_queued_is_gone_after_a_loss_of_power,
        }
    };
}
pub(crate) use held_conformance_tests;

fn for_replica(offset: i64) -> ReadRange {
    ReadRange { reader: Reader::Replica, ..range(offset, 1 << 20) }
}

/// Base offset and leader epoch of whole batches.
fn batches(bytes: &Bytes) -> Vec<(i64, i32)> {
    let whole = WholeBatches::new(bytes).map(|(at, _)| parse_whole(&bytes[at..]).expect("whole"));
    whole.map(|header| (header.base_offset, header.partition_leader_epoch)).collect()
}

fn queue(log: &Opened, batches: &[(Bytes, i32)]) -> i64 {
    let queue = |(bytes, epoch): &(Bytes, i32)| log.queue(bytes, *epoch).expect("the log takes it");
    batches.iter().map(queue).last().expect("some batches")
}

fn opened(store: &Arc<dyn LogStore>, durability: Durability) -> Opened {
    open(store, LogSettings { durability, ..kept_for_ever() })
}

pub(crate) fn replicas_read_what_is_queued_as_it_becomes_durable_and_consumers_do_not(
    volume: &dyn HeldVolume,
) {
    for durability in [Durability::Fsync, Durability::Written] {
        let store = volume.open();
        let log = opened(&store, durability);
        let start = log.log.ends().log_end;
        let held = volume.hold();
        let end = queue(&log, &[(batch(2, b"a"), 3), (batch(1, &[7; 3_000]), 3), (batch(2, b"c"), 4)]);
        let ends = log.log.ends();
        assert_eq!((ends.durable_end, ends.log_end, end), (start, start + 5, start + 5));
        assert!(log.bytes(range(start, 1 << 20)).is_empty(), "a consumer must not see it");
        let read = log.bytes(for_replica(start));
        assert_eq!(batches(&read), [(start, 3), (start + 2, 3), (start + 3, 4)]);
        let in_memory = log.log.read_memory(for_replica(start)).expect("readable").expect("it is in memory");
        assert_eq!(in_memory.into_bytes(), read);
        drop(held);
        log.wait(end);
        assert_eq!(log.bytes(range(start, 1 << 20)), read, "the same bytes");
        assert_eq!(log.bytes(for_replica(start)), read);
        store.close();
        let log = opened(&volume.open(), durability);
        assert_eq!(log.bytes(range(start, 1 << 20)), read);
        log.log.truncate(start).expect("a cut");
        log.store.close();
    }
}

pub(crate) fn replicas_read_on_from_what_is_durable_into_what_is_queued(volume: &dyn HeldVolume) {
    let store = volume.open();
    let log = opened(&store, Durability::Fsync);
    log.append(&[batch(2, b"durable"), batch(2, b"durable")], 1);
    let held = volume.hold();
    let end = queue(&log, &[(batch(2, b"queued"), 1), (batch(2, &[7; 500]), 1), (batch(2, b"queued"), 2)]);
    let bases_from = |range: ReadRange| -> Vec<i64> {
        batches(&log.bytes(range)).into_iter().map(|(base_offset, _)| base_offset).collect()
    };
    assert_eq!(bases_from(for_replica(0)), [0, 2, 4, 6, 8]);
    assert_eq!(bases_from(for_replica(3)), [2, 4, 6, 8]);
    assert_eq!(bases_from(for_replica(5)), [4, 6, 8], "from the middle of a batch");
    assert_eq!(bases_from(for_replica(10)), [0; 0]);
    assert_eq!(bases_from(ReadRange { until: 6, ..for_replica(1) }), [0, 2, 4]);
    assert_eq!(bases_from(ReadRange { max_bytes: 1, ..for_replica(6) }), [6], "at least one");
    let strict =
        |offset, max_bytes| bases_from(ReadRange { max_bytes, at_least_one: false, ..for_replica(offset) });
    assert_eq!(strict(6, 400), [0; 0]);
    let small = batch(2, b"queued").len();
    assert_eq!(strict(4, small), [4]);
    assert_eq!(strict(4, small + 400), [4], "what does not fit ends a read");
    assert_eq!(bases_from(range(0, 1 << 20)), [0, 2]);
    drop(held);
    log.wait(end);
    assert_eq!(bases(&log.read_all(0)), [0, 2, 4, 6, 8]);
}

pub(crate) fn what_was_only_queued_is_gone_after_a_loss_of_power(volume: &dyn HeldVolume) {
    let store = volume.open();
    let log = opened(&store, Durability::Fsync);
    log.append(&[batch(2, b"durable")], 1);
    let held = volume.hold();
    queue(&log, &[(batch(2, b"queued"), 1), (batch(1, b"queued"), 2)]);
    assert_eq!(batches(&log.bytes(for_replica(2))), [(2, 1), (4, 2)]);
    held.lose_power();
    drop((log, store));
    let store = volume.open();
    let log = opened(&store, Durability::Fsync);
    let ends = log.log.ends();
    assert_eq!((ends.durable_end, ends.log_end), (2, 2));
    assert!(log.bytes(for_replica(2)).is_empty());
    // This is how a replica hears of it that has more.
    log.log.begin_epoch(3);
    assert_eq!(log.log.epoch_end(2), Some(EpochEnd { leader_epoch: 1, end_offset: 2 }));
    log.append(&[batch(3, b"other")], 3);
    assert_eq!(batches(&log.bytes(for_replica(2))), [(2, 3)]);
}
