//! Batches that a start has seen while it replayed the journal, shown to who opens their log.

use std::sync::Arc;

use super::{Directory, options};
use crate::storage::batch::samples::batch;
use crate::storage::conformance::{Opened, Volume as _, kept_for_ever, partition, try_open};
use crate::storage::journal::disk::BLOCK;
use crate::storage::{CheckpointEntry, LogStore, StorageError};

/// Base offset and checksum of the batches that a replay from `from` shows.
fn replayed(log: &Opened, from: i64) -> Result<Vec<(i64, u32)>, StorageError> {
    let mut seen = Vec::new();
    log.log.replay(from, &mut |header| seen.push((header.base_offset, header.crc)))?;
    Ok(seen)
}

/// Two logs of which some batches are in the index on the disk, and more in the journal only: some frames have several of
/// a log, one log begins anew, and the end of a run of the other was cut. What a crash leaves of it.
fn crashed() -> (Directory, super::SimDisk, [Vec<(i64, u32)>; 2]) {
    let (volume, disk) = Directory::simulated(options());
    let store = volume.open();
    let logs = [0, 1].map(|number| try_open(&store, number, kept_for_ever()).unwrap());
    for round in 0..4 {
        logs.iter().for_each(|log| log.append(&[batch(2, &[round; 300]), batch(1, &[round; 9_000])], 0));
    }
    let entry = |number| CheckpointEntry { partition: partition(number), state: None };
    store.checkpoint(vec![entry(0), entry(1)], 1).unwrap();
    let index = volume.index_on_disk();
    for round in 4..8 {
        logs.iter().for_each(|log| {
            log.append(&[batch(2, &[round; 300]), batch(1, &[round; 300]), batch(3, &[round; 300])], 0);
        });
    }
    let end = logs[1].log.ends().log_end;
    logs[1].log.truncate(end - 3).unwrap();
    logs[1].append(&[batch(1, b"after the cut")], 1);
    let whole = [0, 1].map(|number| replayed(&logs[number], 0).unwrap());
    store.close();
    volume.replace_index(&index);
    (volume, disk, whole)
}

/// First offset that the index on the disk does not have.
const REPLAYED_FROM: i64 = 12;

#[test]
fn what_a_start_has_replayed_is_shown_without_reading_it_again() {
    let (volume, disk, whole) = crashed();
    let store: Arc<dyn LogStore> = Arc::new(volume.try_open().unwrap());
    let logs = [0, 1].map(|number| try_open(&store, number, kept_for_ever()).unwrap());
    disk.tamper(|_, bytes| bytes.fill(0));
    for (log, whole) in logs.iter().zip(&whole) {
        let from = REPLAYED_FROM + 2;
        let newer: Vec<_> = whole.iter().copied().filter(|(base, _)| *base >= from).collect();
        assert!(newer.len() >= 10, "{newer:?}");
        assert_eq!(replayed(log, from).unwrap(), newer);
        assert!(replayed(log, from).is_err(), "it is there once");
    }
}

#[test]
fn what_was_not_replayed_is_read_before_it() {
    for from in 0..REPLAYED_FROM + 3 {
        let (volume, _disk, whole) = crashed();
        let store: Arc<dyn LogStore> = Arc::new(volume.try_open().unwrap());
        for (number, whole) in (0..).zip(&whole) {
            let log = try_open(&store, number, kept_for_ever()).unwrap();
            let first = whole.iter().rposition(|(base, _)| *base <= from).unwrap();
            assert_eq!(replayed(&log, from).unwrap(), whole[first..], "from {from}");
        }
        store.close();
    }
}

#[test]
fn what_a_start_would_have_to_read_counts_in_whole_blocks_until_a_checkpoint() {
    let (volume, _disk) = Directory::simulated(options());
    let store = volume.open();
    let log = try_open(&store, 0, kept_for_ever()).unwrap();
    let need = || store.checkpoint_need().bytes;
    for _ in 0..5 {
        log.append(&[batch(1, b"small")], 0);
    }
    assert_eq!(need(), 5 * BLOCK as u64, "one frame each");
    log.log.set_log_start(1).unwrap();
    assert_eq!(need(), 6 * BLOCK as u64);
    let index = volume.index_on_disk();
    store.close();
    drop(log);
    volume.replace_index(&index);
    let store = volume.open();
    let replayed = store.checkpoint_need().bytes;
    assert!(replayed > 0, "a crash again would have it read again");
    let entry = CheckpointEntry { partition: partition(0), state: None };
    store.checkpoint(vec![entry], 1).unwrap();
    assert_eq!(store.checkpoint_need().bytes, 0);
}
