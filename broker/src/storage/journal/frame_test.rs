use proptest::prelude::*;

use super::*;

fn partition() -> impl Strategy<Value = TopicIdPartition> {
    (any::<u128>(), 0..i32::MAX)
        .prop_map(|(id, partition)| TopicIdPartition { topic_id: Uuid::from_u128(id), partition })
}

fn run(length: impl Strategy<Value = u32>) -> impl Strategy<Value = Run> {
    (any::<[i64; 5]>(), any::<u64>(), any::<i32>(), length).prop_map(
        |(numbers, log_position, leader_epoch, length)| Run {
            base_offset: numbers[0],
            last_offset: numbers[1],
            max_timestamp: numbers[2],
            running_max_timestamp: numbers[3],
            written_ms: numbers[4],
            log_position,
            leader_epoch,
            length,
        },
    )
}

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        (partition(), run(0..200_u32)).prop_map(|(partition, run)| Entry::Append(partition, run)),
        (partition(), run(0..200_u32)).prop_map(|(partition, run)| Entry::Move(partition, run)),
        (partition(), any::<i64>(), proptest::option::of(run(any::<u32>())))
            .prop_map(|(partition, end, last)| Entry::Truncate(partition, end, last)),
        (partition(), any::<i64>()).prop_map(|(partition, offset)| Entry::LogStart(partition, offset)),
        partition().prop_map(Entry::Delete),
        (partition(), any::<(i64, i64, u32)>(), proptest::option::of(run(0..200_u32))).prop_map(
            |(partition, (from, until, runs_crc), run)| {
                Entry::Replace(partition, Replaced { from, until, runs_crc }, run)
            }
        ),
        (partition(), run(any::<u32>()), any::<(i64, i64)>()).prop_map(
            |(partition, last, (first_dirty, delete_horizon_ms))| {
                Entry::Clean(partition, Cleaned { last, first_dirty, delete_horizon_ms })
            }
        ),
    ]
}

pub(super) fn frame(entries: &[Entry]) -> Vec<u8> {
    let mut table = Vec::new();
    encode_table(entries, &mut table);
    let data: usize = entries.iter().map(|entry| entry.data_length() as usize).sum();
    let mut frame = vec![0; HEADER_LEN];
    frame.extend_from_slice(&table);
    frame.extend((0..data).map(|at| u8::try_from(at % 251).unwrap()));
    FrameHeader::seal(&mut frame, Uuid::from_u128(3), 5, 9, 8, 7, table.len(), entries.len(), 0);
    frame
}

proptest! {
    #[test]
    fn what_is_sealed_is_read_back(entries in proptest::collection::vec(entry(), 0..20)) {
        let frame = frame(&entries);
        let header = FrameHeader::decode(&frame).unwrap();
        prop_assert_eq!((header.segment, header.sequence, header.previous, header.synced), (5, 9, 8, 7));
        let read = header.entries(&frame).unwrap();
        prop_assert_eq!(read.iter().map(|(entry, _)| *entry).collect::<Vec<_>>(), entries);
        let mut position = HEADER_LEN + header.table_length as usize;
        for (entry, at) in read {
            prop_assert_eq!(at as usize, position);
            position += entry.data_length() as usize;
        }
        prop_assert_eq!(position, frame.len());
    }

    #[test]
    fn a_flipped_bit_is_noticed(entries in proptest::collection::vec(entry(), 1..5), at in any::<prop::sample::Index>(), bit in 0..8) {
        let mut frame = frame(&entries);
        let at = at.index(frame.len());
        frame[at] ^= 1_u8 << bit;
        let read = FrameHeader::decode(&frame).and_then(|header| header.entries(&frame));
        prop_assert_eq!(read, None);
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(FrameHeader::decode(&bytes), None);
        let _ = Entry::decode(&mut bytes.as_slice());
    }
}

#[test]
fn an_entry_is_no_longer_than_said() {
    let partition = TopicIdPartition { topic_id: Uuid::nil(), partition: 0 };
    let run = Run::decode(&mut [0; Run::LEN].as_slice()).unwrap();
    let mut out = Vec::new();
    let replaced = Replaced { from: 0, until: 0, runs_crc: 0 };
    let cleaned = Cleaned { last: run, first_dirty: 0, delete_horizon_ms: 0 };
    for entry in [
        Entry::Truncate(partition, 0, Some(run)),
        Entry::Replace(partition, replaced, Some(run)),
        Entry::Clean(partition, cleaned),
    ] {
        out.clear();
        entry.encode(&mut out);
        assert!(out.len() <= MAX_ENTRY_LEN, "{} for {entry:?}", out.len());
    }
}

/// The bytes of format version 1, so that a change of the layout without a new version is noticed.
#[test]
fn format_version_1_is_stable() {
    let partition = TopicIdPartition { topic_id: Uuid::from_u128(1), partition: 2 };
    let run = Run {
        base_offset: 10,
        last_offset: 12,
        max_timestamp: 99,
        running_max_timestamp: 100,
        written_ms: 101,
        log_position: 4_000,
        leader_epoch: 3,
        length: 16,
    };
    let entries = [
        Entry::Append(partition, run),
        Entry::Truncate(partition, 11, Some(run)),
        Entry::LogStart(partition, 10),
        Entry::Delete(partition),
    ];
    assert_eq!(crc32c(&frame(&entries)), 0x68e8_62a0);
    let entries = [
        Entry::Replace(partition, Replaced { from: 10, until: 13, runs_crc: 7 }, Some(run)),
        Entry::Clean(partition, Cleaned { last: run, first_dirty: 13, delete_horizon_ms: 500 }),
    ];
    let frame = frame(&entries);
    assert_eq!(crc32c(&frame), 0xf7e8_02cb, "{:#x}", crc32c(&frame));
}
