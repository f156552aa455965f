//! A volume that is nearly full.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use millrace_protocol::records::Compression;

use super::{Directory, options};
use crate::storage::batch::samples::{batch, keyed_batch};
use crate::storage::conformance::{Volume as _, compacted, job, kept_for_ever, open, try_open};
use crate::storage::journal::JournalStoreOptions;
use crate::storage::{LogSettings, StorageError};

#[test]
fn a_full_volume_refuses_appends_until_there_is_space_again() {
    let (volume, disk) =
        Directory::simulated(JournalStoreOptions { reserve_bytes: Some(10_000), ..options() });
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    disk.faults().free.store(10_050, Ordering::SeqCst);
    let refused = log.queue(&batch(1, &[0; 500]), 0).unwrap_err();
    assert!(matches!(refused, StorageError::Full { free: 10_050, reserve: 10_000, .. }), "{refused}");
    assert!(refused.to_string().contains("enlarge the volume"), "{refused}");
    assert!(store.failure().borrow().is_none(), "nothing is broken");
    assert!(store.checkpoint_need().is_short_of_space);
    disk.faults().free.store(1 << 30, Ordering::SeqCst);
    let deadline = Instant::now() + Duration::from_secs(10);
    while log.queue(&batch(1, &[0; 500]), 0).is_err() {
        assert!(Instant::now() < deadline, "appends are still refused");
        std::thread::yield_now();
    }
    assert!(log.ends.wait(1));
    assert!(!store.checkpoint_need().is_short_of_space);
}

#[test]
fn a_full_volume_lets_compaction_have_a_part_of_what_appends_leave() {
    let (volume, disk) =
        Directory::simulated(JournalStoreOptions { reserve_bytes: Some(100_000), ..options() });
    disk.faults().free.store(160_000, Ordering::SeqCst);
    let store = volume.open();
    let log = open(&store, compacted());
    let update = || keyed_batch(Compression::None, (-1, -1, -1), &[(b"key", Some(&[7; 900]))]);
    (0..50).for_each(|_| log.append(&[update()], 0));
    let producers = HashMap::new();
    let compact = || log.log.compact(&job(50, &producers));
    disk.faults().free.store(90_000, Ordering::SeqCst);
    let deadline = Instant::now() + Duration::from_secs(10);
    while log.queue(&update(), 0).is_ok() {
        assert!(Instant::now() < deadline, "appends are still taken");
    }
    let before = log.log.size();
    // The disk was asked a moment ago.
    let deadline = Instant::now() + Duration::from_secs(10);
    let report = loop {
        match compact() {
            Err(StorageError::Full { .. }) => assert!(Instant::now() < deadline, "it is still refused"),
            done => break done.expect("it gives back more than it takes"),
        }
        std::thread::yield_now();
    };
    assert_eq!(report.removed_records, 49);
    assert!(log.log.size() < before / 2, "{} bytes are left", log.log.size());
}

#[test]
fn a_full_volume_has_thin_segments_rewritten_as_far_as_there_is_room() {
    const RESERVE: u64 = 1 << 30;
    let options = JournalStoreOptions {
        reserve_bytes: Some(RESERVE),
        segment_bytes: Some(64 << 10),
        tail_cache_bytes: 0,
        ..options()
    };
    let (volume, disk) = Directory::simulated(options);
    let store = volume.open();
    let log = open(&store, kept_for_ever());
    let other = try_open(&store, 1, kept_for_ever()).expect("opens");
    for _ in 0..20 {
        log.append(&[batch(1, &[7; 5_000])], 0);
        other.append(&[batch(1, &[7; 50_000])], 0);
    }
    other.log.set_log_start(20).expect("within the log");
    // Until the disk was asked again.
    disk.faults().free.store(RESERVE / 4, Ordering::SeqCst);
    let deadline = Instant::now() + Duration::from_secs(10);
    while log.queue(&batch(1, &[7; 10]), 0).is_ok() {
        assert!(Instant::now() < deadline, "appends are still taken");
        std::thread::sleep(Duration::from_millis(20));
    }
    let checkpoint = || store.checkpoint(Vec::new(), 1).expect("a checkpoint");
    checkpoint();
    let (written, files) = (disk.faults().writes.load(Ordering::SeqCst), disk.file_count());
    checkpoint();
    assert_eq!(disk.faults().writes.load(Ordering::SeqCst), written, "there is no room");
    assert!(store.checkpoint_need().gives_space, "which is not forgotten");
    disk.faults().free.store(1 << 40, Ordering::SeqCst);
    let deadline = Instant::now() + Duration::from_secs(10);
    while store.checkpoint_need().gives_space {
        assert!(Instant::now() < deadline, "thin segments stay");
        checkpoint();
    }
    assert!(disk.file_count() < files, "{} files, {files} before", disk.file_count());
    assert_eq!(log.read_all(0).len(), usize::try_from(log.log.ends().durable_end).expect("few"));
}
