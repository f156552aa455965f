//! What a start makes of a journal of which something is missing, changed, or of another volume.

use super::*;

#[test]
fn a_journal_without_its_index_is_refused_and_left_alone() {
    let volume = Directory::new(options());
    let store = volume.open();
    open(&store, LogSettings::default()).append(&[batch(1, b"value")], 0);
    store.close();
    fs::remove_dir_all(volume.directory.path().join("index")).unwrap();
    let error = volume.try_open().unwrap_err();
    assert!(error.to_string().contains("the index is gone"), "{error}");
}

#[test]
fn a_journal_of_another_volume_is_refused() {
    let volume = Directory::new(options());
    let store = volume.open();
    open(&store, LogSettings::default()).append(&[batch(1, b"value")], 0);
    store.close();
    let opened = JournalStore::open(volume.directory.path(), Uuid::from_u128(8), options());
    let error = opened.unwrap_err().to_string();
    assert!(error.contains("belongs to volume") && error.contains(&VOLUME.to_string()), "{error}");
}

/// Position of the `nth` frame in the only segment.
fn nth_frame(bytes: &[u8], nth: usize) -> usize {
    let frames = (0..bytes.len()).step_by(BLOCK).filter(|at| bytes[*at..].starts_with(b"MRJF"));
    frames.clone().nth(nth).unwrap_or_else(|| panic!("{} frames", frames.count()))
}

#[test]
fn a_change_in_what_was_acknowledged_is_refused_and_in_the_last_frame_is_a_lost_tail() {
    // Of ten frames, each synced before the next was written, one is damaged.
    for damaged in 0..10 {
        let (volume, disk) = Directory::simulated(options());
        let store = volume.open();
        let log = open(&store, LogSettings::default());
        let index = volume.index_on_disk();
        for _ in 0..10 {
            log.append(&[batch(1, &[7; 100])], 0);
        }
        store.close();
        volume.replace_index(&index);
        disk.tamper(|_, bytes| {
            let at = nth_frame(bytes, damaged) + 150;
            bytes[at] ^= 1;
        });
        match volume.try_open() {
            Err(error @ StorageError::Damaged { .. }) => {
                assert!(damaged < 9, "{error}");
                assert!(error.to_string().contains("lost or changed acknowledged records"), "{error}");
            }
            Err(error) => panic!("{error}"),
            Ok(store) => {
                assert_eq!(damaged, 9, "a hole before a later frame was passed over");
                let store: Arc<dyn LogStore> = Arc::new(store);
                assert_eq!(open(&store, LogSettings::default()).log.ends().log_end, 9);
            }
        }
    }
}

#[test]
fn of_two_segments_that_follow_the_same_frame_the_later_counts() {
    let (volume, disk) =
        Directory::simulated(JournalStoreOptions { segment_bytes: Some(64 << 10), ..options() });
    let store = volume.open();
    let log = open(&store, kept_for_ever());
    log.append(&[batch(1, &[1; 40_000])], 0);
    let index = volume.index_on_disk();
    disk.faults().fail_writes.store(true, Ordering::SeqCst);
    let end = log.queue(&batch(1, &[2; 40_000]), 0).unwrap();
    assert!(!log.ends.wait(end), "the first frame of the second segment is torn");
    store.close();
    disk.faults().fail_writes.store(false, Ordering::SeqCst);
    volume.replace_index(&index);
    let store = volume.open();
    let log = open(&store, kept_for_ever());
    assert_eq!(log.log.ends().log_end, 1);
    // Its first frame follows the same frame as the torn one.
    log.append(&[batch(1, &[3; 40_000])], 0);
    store.close();
    volume.replace_index(&index);
    assert_eq!(open(&volume.open(), kept_for_ever()).log.ends().log_end, 2, "acknowledged and lost");
}

#[test]
fn sequences_of_a_lost_tail_are_not_used_again_after_an_orderly_end() {
    let (volume, disk) = Directory::simulated(options());
    let settings = LogSettings { durability: Durability::Written, ..kept_for_ever() };
    let same_size = |value| batch(1, &[value; 100]);
    let store = volume.open();
    let log = open(&store, settings);
    log.append(&[same_size(1)], 0);
    store.checkpoint(Vec::new(), 1).unwrap();
    let index = volume.index_on_disk();
    log.append(&[same_size(2)], 0);
    log.append(&[same_size(3)], 0);
    disk.cut_power();
    store.close();
    disk.revive();
    // Of the two that were not synced, the first is lost.
    disk.tamper(|_, bytes| bytes[nth_frame(bytes, 1) + 150] ^= 1);
    volume.replace_index(&index);
    let store = volume.open();
    assert_eq!(open(&store, settings).log.ends().log_end, 1);
    store.close();
    let store = volume.open();
    let index = volume.index_on_disk();
    let log = open(&store, settings);
    // Takes the place of the lost one; what follows it on the disk is the third of the life before.
    log.append(&[same_size(4)], 0);
    store.close();
    volume.replace_index(&index);
    let log = open(&volume.open(), settings);
    assert_eq!(log.log.ends().log_end, 2, "a record that was lost before has come back");
}

#[test]
fn sequences_of_a_tail_that_was_lost_after_an_orderly_end_are_not_used_again() {
    let (volume, disk) = Directory::simulated(options());
    let settings = LogSettings { durability: Durability::Written, ..kept_for_ever() };
    let same_size = |value| batch(1, &[value; 100]);
    let store = volume.open();
    open(&store, settings).append(&[same_size(1)], 0);
    store.close();
    let store = volume.open();
    let index = volume.index_on_disk();
    let log = open(&store, settings);
    log.append(&[same_size(2)], 0);
    log.append(&[same_size(3)], 0);
    disk.cut_power();
    store.close();
    disk.revive();
    // Of the two that were not synced, the first is lost.
    disk.tamper(|_, bytes| bytes[nth_frame(bytes, 1) + 150] ^= 1);
    volume.replace_index(&index);
    let store = volume.open();
    let index = volume.index_on_disk();
    let log = open(&store, settings);
    log.append(&[same_size(4)], 0);
    store.close();
    volume.replace_index(&index);
    let log = open(&volume.open(), settings);
    assert_eq!(log.log.ends().log_end, 2, "a record that was lost before has come back");
}

/// A volume whose second segment has two frames and has lost its first block, and the index as it was before.
fn with_a_segment_without_beginning(durability: Durability) -> (Directory, TempDir) {
    let (volume, disk) =
        Directory::simulated(JournalStoreOptions { segment_bytes: Some(32 << 10), ..options() });
    let store = volume.open();
    let index = volume.index_on_disk();
    let log = open(&store, LogSettings { durability, ..kept_for_ever() });
    // A block each, and eight blocks are a segment.
    (0..10).for_each(|value| log.append(&[batch(1, &[value; 100])], 0));
    disk.cut_power();
    store.close();
    disk.revive();
    assert_eq!(disk.file_count(), 2);
    let mut number = 0;
    disk.tamper(|_, bytes| {
        number += 1;
        if number == 2 {
            bytes[..BLOCK].fill(0);
        }
    });
    volume.replace_index(&index);
    (volume, index)
}

#[test]
fn what_followed_the_lost_beginning_of_a_segment_does_not_come_back() {
    let settings = LogSettings { durability: Durability::Written, ..kept_for_ever() };
    let (volume, index) = with_a_segment_without_beginning(Durability::Written);
    let store = volume.open();
    let log = open(&store, settings);
    assert_eq!(log.log.ends().log_end, 8);
    // Takes the place of the lost one.
    log.append(&[batch(1, &[8; 100])], 0);
    store.close();
    volume.replace_index(&index);
    let log = open(&volume.open(), settings);
    assert_eq!(log.log.ends().log_end, 9, "a record that was lost before has come back");
}

#[test]
fn the_lost_beginning_of_a_segment_that_was_synced_is_refused() {
    let (volume, _index) = with_a_segment_without_beginning(Durability::Fsync);
    let error = volume.try_open().unwrap_err().to_string();
    assert!(error.contains("lost or changed acknowledged records"), "{error}");
}

#[test]
fn two_files_that_begin_with_the_same_frame_are_refused() {
    let (volume, disk) = Directory::simulated(options());
    let store = volume.open();
    open(&store, LogSettings::default()).append(&[batch(1, b"once")], 0);
    store.close();
    disk.copy_first_file();
    let error = volume.try_open().unwrap_err().to_string();
    assert!(error.contains("both begin with frame"), "{error}");
}
