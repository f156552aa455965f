//! Cold reads within a runtime, which read several places at once and ahead of their readers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_protocol::records::{BatchHeader, batches};
use tokio::runtime::Runtime;

use super::{Directory, all, options};
use crate::storage::batch::samples::batch;
use crate::storage::conformance::{Opened, Volume as _, kept_for_ever, try_open};
use crate::storage::journal::JournalStoreOptions;
use crate::storage::{LogStore, ReadRange};

const LOGS: i32 = 6;
const ROUNDS: i64 = 60;

/// What log `log` has at `offset`.
fn batch_at(log: i32, offset: i64) -> Bytes {
    let size = 500 + usize::try_from(offset * 977 % 7_000).unwrap();
    batch(1, &vec![u8::try_from(i64::from(log) * 31 + offset % 29).unwrap(); size])
}

/// Logs whose records take turns on the disk.
fn interleaved(store: &Arc<dyn LogStore>) -> Vec<Opened> {
    let logs: Vec<_> = (0..LOGS).map(|log| try_open(store, log, kept_for_ever()).unwrap()).collect();
    for offset in 0..ROUNDS {
        for (log, opened) in (0..).zip(&logs) {
            opened.queue(&batch_at(log, offset), 0).unwrap();
        }
        // Some frames have one batch of a log, and some several.
        if offset % 7 < 4 {
            logs.iter().for_each(|opened| assert!(opened.ends.wait(offset + 1)));
        }
    }
    logs.iter().for_each(|opened| assert!(opened.ends.wait(ROUNDS)));
    logs
}

fn checksum(bytes: &Bytes) -> u32 {
    BatchHeader::parse(bytes).unwrap().crc
}

/// Reads from `offset` to `until`, as a consumer does that takes `max_bytes` a time.
fn consume(log: &Opened, offset: i64, until: i64, max_bytes: usize) -> Vec<u32> {
    let (mut next, mut found) = (offset, Vec::new());
    while next < until {
        let mut bytes = log.bytes(ReadRange { offset: next, until, max_bytes, ..all() });
        assert!(!bytes.is_empty(), "nothing at {next}");
        while !bytes.is_empty() {
            let header = BatchHeader::parse(&bytes).unwrap();
            assert_eq!(header.base_offset, next);
            found.push(header.crc);
            next = header.next_offset();
            let _ = bytes.split_to(header.size_in_bytes());
        }
    }
    found
}

fn written(log: i32, offsets: std::ops::Range<i64>) -> Vec<u32> {
    offsets.map(|offset| checksum(&batch_at(log, offset))).collect()
}

fn cold(options: JournalStoreOptions) -> JournalStoreOptions {
    JournalStoreOptions { tail_cache_bytes: 0, segment_bytes: Some(256 << 10), ..options }
}

#[test]
fn readers_that_go_on_where_they_stopped_get_every_record_once_and_in_order() {
    let runtime = Runtime::new().unwrap();
    let volume = Directory::new(cold(options()));
    let store = volume.open();
    let logs = interleaved(&store);
    std::thread::scope(|scope| {
        for (log, opened) in (0..).zip(&logs) {
            // Two readers of each log: they disturb each other, and neither may notice.
            for max_bytes in [1, 3_000, 20_000, 1 << 20] {
                let runtime = runtime.handle();
                scope.spawn(move || {
                    let _inside = runtime.enter();
                    assert_eq!(consume(opened, 0, ROUNDS, max_bytes), written(log, 0..ROUNDS));
                    assert_eq!(consume(opened, 17, ROUNDS - 5, max_bytes), written(log, 17..ROUNDS - 5));
                });
            }
        }
    });
    drop(runtime);
    store.close();
}

#[test]
fn what_was_read_ahead_of_a_cut_is_not_shown_after_it() {
    let runtime = Runtime::new().unwrap();
    let volume = Directory::new(cold(options()));
    let store = volume.open();
    let logs = interleaved(&store);
    let (log, opened) = (3, &logs[3]);
    let inside = runtime.enter();
    // The second read goes on from the first, and so more is read.
    assert_eq!(consume(opened, 0, 10, 8_000), written(log, 0..10));
    let first = opened.bytes(ReadRange { offset: 10, max_bytes: 8_000, ..all() });
    let next = 10 + i64::try_from(batches(first).count()).unwrap();
    opened.log.truncate(next).unwrap();
    for offset in next..next + 10 {
        opened.append(&[batch_at(log + 1, offset)], 1);
    }
    assert_eq!(consume(opened, next, next + 10, 8_000), written(log + 1, next..next + 10));
    drop(inside);
    drop(runtime);
    store.close();
}

#[test]
fn a_read_of_small_runs_that_lie_far_apart_ends_before_it_has_cost_the_disk_too_much() {
    const RUNS: i64 = 100;
    let volume = Directory::new(cold(options()));
    let store = volume.open();
    let [sparse, dense] = [0, 1].map(|log| try_open(&store, log, kept_for_ever()).unwrap());
    for offset in 0..RUNS {
        sparse.append(&[batch_at(0, offset)], 0);
        dense.append(&[batch(1, &[7; 20_000])], 0);
    }
    // A run of its own costs 16 KiB, and a read no more than 1 MiB.
    let found = batches(sparse.bytes(all())).count();
    assert_eq!(found, 64);
    assert_eq!(consume(&sparse, 0, RUNS, 1 << 20), written(0, 0..RUNS));
    store.close();
}

#[test]
fn what_is_in_memory_is_not_read_from_the_disk() {
    const BATCHES: i64 = 60;
    let volume = Directory::new(JournalStoreOptions { tail_cache_bytes: 128 << 10, ..options() });
    let store = volume.open();
    let opened = try_open(&store, 0, kept_for_ever()).unwrap();
    (0..BATCHES).for_each(|_| opened.append(&[batch(1, &[7; 10_000])], 0));
    let is_on_disk =
        |offset: &i64| opened.log.read_memory(ReadRange { offset: *offset, ..all() }).unwrap().is_none();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let on_disk = (0..BATCHES).take_while(is_on_disk).count();
        let read = batches(opened.bytes(all())).count();
        // Memory may be let go of between two looks.
        let unchanged = (0..BATCHES).take_while(is_on_disk).count() == on_disk;
        if unchanged && (1..BATCHES as usize).contains(&on_disk) {
            break assert_eq!(read, on_disk);
        }
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    store.close();
}

#[test]
fn who_cannot_wait_for_the_disk_gets_what_was_read_ahead() {
    let runtime = Runtime::new().unwrap();
    let volume = Directory::new(cold(options()));
    let store = volume.open();
    let logs = interleaved(&store);
    let (log, opened) = (3, &logs[3]);
    let inside = runtime.enter();
    let from = |offset| ReadRange { offset, max_bytes: 8_000, ..all() };
    assert_eq!(opened.log.read_memory(from(0)).unwrap(), None, "it is on the disk");
    let first = batches(opened.bytes(from(0))).count();
    let next = i64::try_from(first).unwrap();
    // The first read is from the log start, so more is read.
    let deadline = Instant::now() + Duration::from_secs(30);
    let ahead = loop {
        if let Some(records) = opened.log.read_memory(from(next)).unwrap() {
            break records.into_bytes();
        }
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    };
    let count = i64::try_from(batches(ahead.clone()).count()).unwrap();
    assert!(count > 0);
    let found: Vec<u32> = batches(ahead).map(|batch| batch.unwrap().header().crc).collect();
    assert_eq!(found, written(log, next..next + count));
    assert_eq!(consume(opened, next + count, ROUNDS, 8_000), written(log, next + count..ROUNDS));
    drop(inside);
    drop(runtime);
    store.close();
}
