//! A disk that fails: nothing is acknowledged from then on, and nothing is tried again.

use super::*;

fn expect_poisoned(store: &Arc<dyn LogStore>, log: &Opened, doing: &str) {
    let end = log.queue(&batch(1, b"lost"), 0).unwrap();
    assert!(!log.ends.wait(end), "acknowledged although {doing} failed");
    let failure = store.failure().borrow().clone().unwrap();
    assert_eq!(failure.doing, doing);
    assert!(matches!(log.queue(&batch(1, b"refused"), 0), Err(StorageError::Failed(_))));
    assert!(matches!(store.checkpoint(Vec::new(), 1), Err(StorageError::Failed(_))));
    assert_eq!(log.log.ends().durable_end, 3, "the durable end does not move any more");
    assert_eq!(log.read_all(0).len(), 1, "what was durable can still be read");
}

#[test]
fn a_failed_sync_stops_the_store_and_is_never_tried_again() {
    let (volume, disk) = Directory::simulated(options());
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    log.append(&[batch(3, b"kept")], 0);
    disk.faults().fail_syncs.store(true, Ordering::SeqCst);
    expect_poisoned(&store, &log, "syncing");
    let syncs = disk.faults().syncs.load(Ordering::SeqCst);
    disk.faults().fail_syncs.store(false, Ordering::SeqCst);
    store.close();
    assert_eq!(disk.faults().syncs.load(Ordering::SeqCst), syncs);
    assert!(open(&volume.open(), LogSettings::default()).log.ends().log_end >= 3);
}

#[test]
fn no_other_sync_makes_good_for_one_that_has_failed() {
    let disk = HeldDisk::default();
    let options =
        JournalStoreOptions { disk: Arc::new(disk.clone()), segment_bytes: Some(64 << 20), ..options() };
    let volume = Directory::new(options);
    let store = volume.open();
    let written = LogSettings { durability: Durability::Written, ..kept_for_ever() };
    let written = try_open(&store, 0, written).unwrap();
    let synced = try_open(&store, 1, kept_for_ever()).unwrap();
    let hold = disk.hold_syncs();
    let (_, before) = disk.begun();
    let ends: Vec<_> = (0..20).map(|_| written.queue(&batch(1, &vec![0; 1 << 20]), 0).unwrap()).collect();
    assert!(written.ends.wait(ends[19]), "nobody waits for the sync");
    wait_until("the sync has begun", || disk.begun().1 > before);
    let (before, syncs) = disk.begun();
    let end = synced.queue(&batch(1, b"waits for the same disk"), 0).unwrap();
    wait_until("the next commit is written", || disk.begun().0 > before);
    disk.fail_next_sync();
    drop(hold);
    assert!(!synced.ends.wait(end));
    store.close();
    assert_eq!(synced.log.ends().durable_end, 0, "acknowledged although what lies before may be gone");
    assert_eq!(disk.begun().1, syncs, "tried again");
}

#[test]
fn a_failed_write_stops_the_store_and_a_restart_passes_over_its_half() {
    let (volume, disk) = Directory::simulated(options());
    let store = volume.open();
    let log = open(&store, LogSettings::default());
    log.append(&[batch(3, b"kept")], 0);
    disk.faults().fail_writes.store(true, Ordering::SeqCst);
    // Large enough that half of it is not all of it.
    let end = log.queue(&batch(1, &[1; 30_000]), 0).unwrap();
    assert!(!log.ends.wait(end));
    assert_eq!(store.failure().borrow().clone().unwrap().doing, "writing");
    disk.faults().fail_writes.store(false, Ordering::SeqCst);
    store.close();
    let reopened = open(&volume.open(), LogSettings::default());
    assert_eq!(reopened.log.ends().log_end, 3);
    reopened.append(&[batch(1, b"on it goes")], 0);
    assert_eq!(reopened.read_all(0).len(), 2);
}
