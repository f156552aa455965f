//! Batches against those that Kafka's own classes write, and against damage.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::golden_test::from_hex;
use crate::messages::EndTxnMarker;
use crate::{Decoder, Message as _};

const BATCHES: &str = include_str!("../../tests/golden/batches.txt");
const LIMIT: usize = 1 << 20;

fn golden(name: &str) -> RecordBatch {
    let (_, hex) = BATCHES.lines().filter_map(|line| line.split_once(' ')).find(|(n, _)| *n == name).unwrap();
    let mut bytes = from_hex(hex);
    let batch = RecordBatch::split_from(&mut bytes).unwrap();
    assert!(bytes.is_empty());
    batch
}

/// The batch that Golden.java writes.
fn expected(compression: Compression) -> BatchBuilder {
    let mut builder =
        BatchBuilder::new(compression).base_offset(1000).leader_epoch(6).producer(77, 3, 500).transactional();
    for i in 0..100_usize {
        let key = format!("key-{i}");
        let value = "value ".repeat(i % 10);
        let trace = format!("t{i}");
        let headers = [("trace", Some(trace.as_bytes())), ("none", None)];
        builder.push(NewRecord {
            timestamp: 1_700_000_000_000 + 10 * i64::try_from(i).unwrap(),
            key: (i % 3 != 0).then_some(key.as_bytes()),
            value: (i % 5 != 0).then_some(value.as_bytes()),
            headers: if i % 7 == 0 { &headers } else { &[] },
        });
    }
    builder
}

#[test]
fn batches_of_java_are_read_in_every_codec() {
    let ours = expected(Compression::None).finish();
    let ours = ours.decompress(0).unwrap();
    for &codec in Compression::ALL {
        let batch = golden(codec.name());
        batch.verify_crc().unwrap();
        let header = batch.header();
        assert_eq!(header.attributes.compression(), Ok(codec));
        assert!(header.attributes.is_transactional() && !header.attributes.is_control());
        assert_eq!((header.base_offset, header.last_offset(), header.next_offset()), (1000, 1099, 1100));
        assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (77, 3, 500));
        assert_eq!((header.last_sequence(), header.partition_leader_epoch), (599, 6));
        assert_eq!((header.base_timestamp, header.max_timestamp), (1_700_000_000_000, 1_700_000_000_990));
        let body = batch.decompress(LIMIT).unwrap();
        assert_eq!(body.bytes(), ours.bytes(), "{codec}");
        assert!(body.records().eq(ours.records()), "{codec}");
        assert_eq!(body.records().count(), 100);
    }
}

#[test]
fn an_uncompressed_batch_is_written_as_java_writes_it() {
    assert_eq!(expected(Compression::None).finish(), golden("none"));
}

#[test]
fn records_have_what_was_written() {
    let batch = golden("none");
    let body = batch.decompress(LIMIT).unwrap();
    let records: Vec<Record<'_>> = body.records().collect::<Result<_, _>>().unwrap();
    let record = records[14];
    assert_eq!((record.offset, record.offset_delta, record.timestamp), (1014, 14, 1_700_000_000_140));
    assert_eq!((record.key, record.value), (Some(&b"key-14"[..]), Some(&b"value value value value "[..])));
    let headers: Vec<_> = record.headers().collect();
    assert_eq!(headers[0], RecordHeader { key: b"trace", value: Some(b"t14") });
    assert_eq!(headers[1], RecordHeader { key: b"none", value: None });
    assert_eq!((records[15].key, records[15].value), (None, None));
    assert_eq!(records[1].headers().count(), 0);
}

#[test]
fn p3_append_time_is_that_of_java_with_a_new_crc() {
    let java = golden("append-time");
    let ours = golden("none").with_append_time(1_700_000_999_999);
    assert_eq!(ours, java);
    ours.verify_crc().unwrap();
    let body = java.decompress(LIMIT).unwrap();
    assert!(body.records().all(|r| r.unwrap().timestamp == 1_700_000_999_999));
}

#[test]
fn control_batches_are_known() {
    let batch = golden("commit-marker");
    batch.verify_crc().unwrap();
    assert!(batch.header().attributes.is_control() && batch.header().attributes.is_transactional());
    let body = batch.decompress(LIMIT).unwrap();
    let record = body.records().next().unwrap().unwrap();
    assert_eq!(record.key, Some(&[0, 0, 0, 1][..]), "version 0, type 1: commit");
    let mut value = Decoder::new(Bytes::copy_from_slice(record.value.unwrap()));
    let version = value.i16().unwrap();
    assert_eq!(EndTxnMarker::decode(&mut value, version).unwrap().coordinator_epoch, 11);
}

#[test]
fn p3_offset_and_epoch_are_patched_without_a_new_crc() {
    let batch = golden("lz4");
    let mut patched = BytesMut::from(batch.bytes().as_ref());
    patch_base_offset(&mut patched, 5_000_000_000);
    patch_leader_epoch(&mut patched, 42);
    let head = batch.header_with(5_000_000_000, 42);
    assert_eq!(patched[..HEADER_LEN], head);
    let patched = RecordBatch::split_from(&mut patched.freeze()).unwrap();
    patched.verify_crc().unwrap();
    assert_eq!((patched.header().base_offset, patched.header().partition_leader_epoch), (5_000_000_000, 42));
    assert_eq!(patched.payload(), batch.payload());
}

#[test]
fn p6_recompression_keeps_the_records() {
    let none = golden("none");
    for &codec in Compression::ALL {
        let batch = golden("gzip").recompress(codec, LIMIT).unwrap();
        batch.verify_crc().unwrap();
        assert_eq!(batch.header().attributes.compression(), Ok(codec));
        assert_eq!(batch.recompress(Compression::None, LIMIT).unwrap(), none);
    }
}

#[test]
fn p3_a_flipped_bit_is_noticed() {
    let batch = golden("zstd");
    for at in 21..batch.bytes().len() {
        let mut damaged = BytesMut::from(batch.bytes().as_ref());
        damaged[at] ^= 0x10;
        let damaged = RecordBatch::split_from(&mut damaged.freeze()).unwrap();
        assert!(matches!(damaged.verify_crc(), Err(BatchError::CrcMismatch { .. })), "byte {at}");
    }
}

#[test]
fn a_payload_is_cut_into_its_batches() {
    let one = expected(Compression::Gzip).build();
    let two = BatchBuilder::new(Compression::None).base_offset(1100).append(NewRecord::default()).build();
    let mut payload = BytesMut::from(one.as_ref());
    payload.extend_from_slice(&two);
    let whole = payload.clone().freeze();
    let found: Vec<_> = batches(whole.clone()).map(|b| b.unwrap().bytes().clone()).collect();
    assert_eq!(found, [one.clone(), two.clone()]);
    assert_eq!(found[1].as_ptr(), whole[one.len()..].as_ptr(), "slices, not copies");

    let cut = whole.slice(..whole.len() - 1);
    let mut found = batches(cut);
    assert!(found.next().unwrap().is_ok());
    let truncated = BatchError::Truncated { needed: two.len(), available: two.len() - 1 };
    assert_eq!(found.next(), Some(Err(truncated)));
    assert_eq!(found.next(), None);
}

#[test]
fn old_formats_and_impossible_lengths_are_refused() {
    let batch = BatchBuilder::new(Compression::None).append(NewRecord::default()).build();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = BytesMut::from(batch.as_ref());
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        RecordBatch::split_from(&mut changed.freeze()).unwrap_err()
    };
    assert_eq!(with(16, &[1]), BatchError::UnsupportedMagic(1));
    assert_eq!(with(8, &48_i32.to_be_bytes()), BatchError::InvalidLength(48));
    assert_eq!(with(8, &(-5_i32).to_be_bytes()), BatchError::InvalidLength(-5));
    let available = batch.len();
    let needed = LOG_OVERHEAD + 0x7fff_ffff;
    assert_eq!(with(8, &i32::MAX.to_be_bytes()), BatchError::Truncated { needed, available });
    // A message of format 1 is shorter than a header of format 2.
    let mut old = Bytes::from_static(&[0; 30]);
    assert_eq!(RecordBatch::split_from(&mut old), Err(BatchError::UnsupportedMagic(0)));
}

#[test]
fn the_header_counts_the_records() {
    let batch = golden("none");
    let with_count = |count: i32| {
        let mut bytes = BytesMut::from(batch.bytes().as_ref());
        bytes[57..61].copy_from_slice(&count.to_be_bytes());
        let batch = RecordBatch::split_from(&mut bytes.freeze()).unwrap();
        let body = batch.decompress(0).unwrap();
        let results: Vec<Result<(), BatchError>> = body.records().map(|r| r.map(|_| ())).collect();
        results
    };
    assert!(with_count(100).iter().all(Result::is_ok));
    for (count, index, reason) in [
        (101, 100, "cut off"),
        (99, 99, "bytes are left over behind the last record"),
        (i32::MAX, 100, "cut off"),
        (-1, 0, "the number of records is negative"),
    ] {
        let results = with_count(count);
        assert_eq!(results.len(), index + 1);
        assert_eq!(results.last(), Some(&Err(BatchError::InvalidRecord { index, reason })), "{count}");
    }
}

#[test]
fn sequences_go_on_at_zero_after_the_greatest() {
    let header = |base_sequence, last_offset_delta| {
        let batch = BatchBuilder::new(Compression::None).producer(1, 0, base_sequence).finish();
        BatchHeader { last_offset_delta, ..*batch.header() }
    };
    assert_eq!(header(i32::MAX, 0).last_sequence(), i32::MAX);
    assert_eq!(header(i32::MAX, 1).last_sequence(), 0);
    assert_eq!(header(NO_SEQUENCE, 5).last_sequence(), NO_SEQUENCE);
}

proptest! {
    #[test]
    fn any_bytes_are_batches_or_an_error(mut bytes: Vec<u8>, whole: bool) {
        // Past the checks of the header, half of the time.
        if whole && bytes.len() >= HEADER_LEN {
            let length = i32::try_from(bytes.len() - LOG_OVERHEAD).unwrap();
            bytes[8..12].copy_from_slice(&length.to_be_bytes());
            bytes[16] = 2;
        }
        for batch in batches(bytes.into()).flatten() {
            let _ = batch.verify_crc();
            if let Ok(body) = batch.decompress(LIMIT) {
                body.records().flatten().for_each(|record| record.headers().for_each(drop));
            }
        }
    }

    #[test]
    fn damaged_batches_never_panic(codec in 0_usize..5, damage in prop::collection::vec((0_usize..4000, any::<u8>()), 1..4)) {
        let batch = golden(Compression::ALL[codec].name());
        let mut bytes = BytesMut::from(batch.bytes().as_ref());
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        for batch in batches(bytes.freeze()).flatten() {
            let _ = batch.verify_crc();
            if let Ok(body) = batch.decompress(LIMIT) {
                body.records().flatten().for_each(|record| record.headers().for_each(drop));
            }
        }
    }

    #[test]
    fn records_round_trip(records in prop::collection::vec(
        (any::<i64>(), any::<Option<Vec<u8>>>(), any::<Option<Vec<u8>>>(), any::<Vec<(String, Option<Vec<u8>>)>>()), 0..8),
        codec in 0_usize..5)
    {
        let mut builder = BatchBuilder::new(Compression::ALL[codec]);
        for (timestamp, key, value, headers) in &records {
            let headers: Vec<_> = headers.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
            builder.push(NewRecord { timestamp: *timestamp, key: key.as_deref(), value: value.as_deref(), headers: &headers });
        }
        let batch = builder.finish();
        prop_assert!(batch.verify_crc().is_ok());
        let body = batch.decompress(LIMIT).unwrap();
        let read: Vec<_> = body.records().map(|r| {
            let r = r.unwrap();
            let headers: Vec<_> = r.headers()
                .map(|h| (String::from_utf8(h.key.to_vec()).unwrap(), h.value.map(<[u8]>::to_vec))).collect();
            (r.timestamp, r.key.map(<[u8]>::to_vec), r.value.map(<[u8]>::to_vec), headers)
        }).collect();
        prop_assert_eq!(read, records);
    }
}
