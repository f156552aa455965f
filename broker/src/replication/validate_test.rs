use millrace_protocol::records::{TimestampType, patch_base_offset};

use super::*;

const NOW: i64 = 1_000_000_000;
const VERSION: i16 = 13;

fn record(timestamp: i64) -> NewRecord<'static> {
    NewRecord { timestamp, key: Some(b"key"), value: Some(b"value"), headers: &[("name", Some(b"x"))] }
}

fn batch_of(codec: Compression, timestamps: &[i64]) -> RecordBatch {
    let mut builder = BatchBuilder::new(codec);
    for timestamp in timestamps {
        builder.push(record(*timestamp));
    }
    builder.finish()
}

fn batch(timestamps: &[i64]) -> Bytes {
    batch_of(Compression::None, timestamps).bytes().clone()
}

/// Changes a header in place and makes the checksum right again.
fn altered(bytes: &Bytes, change: impl FnOnce(&mut BatchHeader)) -> Bytes {
    let mut header = BatchHeader::parse(bytes).unwrap();
    change(&mut header);
    let mut bytes = bytes.to_vec();
    bytes[..61].copy_from_slice(&header.to_bytes());
    set_max_timestamp(&mut bytes, header.attributes.timestamp_type(), header.max_timestamp);
    Bytes::from(bytes)
}

fn check(records: Bytes, settings: &TopicSettings) -> Result<ValidatedBatch, Rejection> {
    validate(records, settings, VERSION, NOW)
}

fn code(records: Bytes, settings: &TopicSettings) -> ErrorCode {
    match check(records, settings) {
        Ok(_) => ErrorCode::None,
        Err(rejection) => rejection.error,
    }
}

fn timestamps(batch: &ValidatedBatch) -> Vec<i64> {
    records(batch, |record| record.timestamp)
}

fn records<T>(batch: &ValidatedBatch, get: impl Fn(Record<'_>) -> T) -> Vec<T> {
    let parsed = RecordBatch::split_from(&mut batch.bytes.clone()).unwrap();
    parsed.verify_crc().unwrap();
    assert_eq!(*parsed.header(), batch.header);
    parsed.decompress(1 << 20).unwrap().records().map(|record| get(record.unwrap())).collect()
}

#[test]
fn a_right_batch_is_passed_on_without_a_copy() {
    for codec in Compression::ALL {
        let sent = batch_of(*codec, &[NOW, NOW + 5, NOW - 3]);
        let valid = check(sent.bytes().clone(), &TopicSettings::default()).unwrap();
        assert_eq!(valid.bytes.as_ptr(), sent.bytes().as_ptr(), "{codec}");
        assert_eq!(valid.header, *sent.header());
        assert_eq!(valid.log_append_time_ms, None);
    }
}

#[test]
fn exactly_one_batch_in_format_2_p1() {
    let settings = TopicSettings::default();
    assert_eq!(code(Bytes::new(), &settings), ErrorCode::InvalidRecord);
    let two = Bytes::from([batch(&[NOW]), batch(&[NOW])].concat());
    assert_eq!(code(two, &settings), ErrorCode::InvalidRecord);
    let whole = batch(&[NOW]);
    for length in 1..whole.len() {
        assert_eq!(code(whole.slice(..length), &settings), ErrorCode::InvalidRecord, "cut at {length}");
    }
    let mut old = whole.to_vec();
    old[16] = 1;
    assert_eq!(code(Bytes::from(old), &settings), ErrorCode::InvalidRecord);
}

#[test]
fn zstd_needs_produce_version_7_p1() {
    let sent = batch_of(Compression::Zstd, &[NOW]).bytes().clone();
    let refused = validate(sent.clone(), &TopicSettings::default(), 6, NOW).unwrap_err();
    assert_eq!(refused.error, ErrorCode::UnsupportedCompressionType);
    assert!(validate(sent, &TopicSettings::default(), 7, NOW).is_ok());
}

#[test]
fn headers_that_no_client_may_send_are_invalid_records_p2() {
    let settings = TopicSettings::default();
    let sent = batch(&[NOW, NOW]);
    let mut shifted = sent.to_vec();
    patch_base_offset(&mut shifted, 1);
    assert_eq!(code(Bytes::from(shifted), &settings), ErrorCode::InvalidRecord);
    assert_eq!(code(altered(&sent, |header| header.records_count = 3), &settings), ErrorCode::InvalidRecord);
    assert_eq!(
        code(altered(&sent, |header| header.last_offset_delta = i32::MAX), &settings),
        ErrorCode::InvalidRecord
    );
    let empty = altered(&sent, |header| {
        header.records_count = 0;
        header.last_offset_delta = -1;
    });
    assert_eq!(code(empty, &settings), ErrorCode::InvalidRecord);
    let control = BatchBuilder::new(Compression::None).control().append(record(NOW)).build();
    assert_eq!(code(control, &settings), ErrorCode::InvalidRecord);
    let no_sequence = BatchBuilder::new(Compression::None).producer(5, 0, -1).append(record(NOW)).build();
    assert_eq!(code(no_sequence, &settings), ErrorCode::InvalidRecord);
    let idempotent = BatchBuilder::new(Compression::None).producer(5, 0, 0).append(record(NOW)).build();
    assert_eq!(code(idempotent, &settings), ErrorCode::None);
}

#[test]
fn a_wrong_checksum_is_a_corrupt_message_p3() {
    let mut sent = batch(&[NOW]).to_vec();
    *sent.last_mut().unwrap() ^= 1;
    assert_eq!(code(Bytes::from(sent), &TopicSettings::default()), ErrorCode::CorruptMessage);
}

#[test]
fn the_size_is_checked_before_the_checksum_p4() {
    let mut sent = batch(&[NOW; 20]).to_vec();
    let settings = TopicSettings { max_message_bytes: sent.len(), ..TopicSettings::default() };
    assert_eq!(code(Bytes::from(sent.clone()), &settings), ErrorCode::None);
    *sent.last_mut().unwrap() ^= 1;
    let settings = TopicSettings { max_message_bytes: sent.len() - 1, ..TopicSettings::default() };
    assert_eq!(code(Bytes::from(sent), &settings), ErrorCode::MessageTooLarge);
}

#[test]
fn the_size_is_checked_again_after_recompression_p4() {
    let sent = batch_of(Compression::Gzip, &[NOW; 500]).bytes().clone();
    let settings = TopicSettings {
        max_message_bytes: sent.len() + 100,
        compression: Some(Compression::None),
        ..TopicSettings::default()
    };
    assert_eq!(code(sent, &settings), ErrorCode::MessageTooLarge);
}

#[test]
fn a_batch_larger_than_a_segment_is_refused_p4() {
    let mut settings = TopicSettings::default();
    settings.log.segment_bytes = 100;
    assert_eq!(code(batch(&[NOW; 20]), &settings), ErrorCode::RecordListTooLarge);
}

#[test]
fn wrong_offset_deltas_are_rewritten_not_refused_p5() {
    for codec in [Compression::None, Compression::Lz4] {
        // Two batches of which the second one's records become the tail of the first: their deltas start again at 0.
        let one = batch_of(Compression::None, &[NOW, NOW + 1]);
        let doubled = [one.payload(), one.payload()].concat();
        let mut header = *one.header();
        header.records_count = 4;
        header.last_offset_delta = 3;
        header.producer_id = 9;
        header.producer_epoch = 2;
        header.base_sequence = 17;
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(&doubled);
        let length = i32::try_from(bytes.len() - 12).unwrap();
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        set_max_timestamp(&mut bytes, TimestampType::CreateTime, NOW + 1);
        let sent =
            RecordBatch::split_from(&mut Bytes::from(bytes)).unwrap().recompress(codec, 1 << 20).unwrap();

        let valid = check(sent.bytes().clone(), &TopicSettings::default()).unwrap();
        assert_eq!(records(&valid, |record| record.offset_delta), [0, 1, 2, 3]);
        assert_eq!(timestamps(&valid), [NOW, NOW + 1, NOW, NOW + 1]);
        assert_eq!(records(&valid, |record| record.headers().count()), [1; 4]);
        assert_eq!(valid.header.attributes.compression().unwrap(), codec);
        let header = valid.header;
        assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (9, 2, 17));
    }
}

#[test]
fn other_records_than_the_header_counts_are_invalid_p5() {
    let sent = altered(&batch(&[NOW, NOW]), |header| {
        header.records_count = 1;
        header.last_offset_delta = 0;
    });
    assert_eq!(code(sent, &TopicSettings::default()), ErrorCode::InvalidRecord);
}

#[test]
fn records_are_recompressed_to_the_topics_codec_p6() {
    for from in Compression::ALL {
        for to in Compression::ALL {
            let sent = batch_of(*from, &[NOW, NOW + 7]);
            let settings = TopicSettings { compression: Some(*to), ..TopicSettings::default() };
            let valid = check(sent.bytes().clone(), &settings).unwrap();
            assert_eq!(valid.header.attributes.compression().unwrap(), *to, "from {from}");
            assert_eq!(timestamps(&valid), [NOW, NOW + 7]);
        }
    }
}

#[test]
fn timestamps_must_be_near_the_brokers_time_p7() {
    let settings = TopicSettings {
        timestamp_before_max_ms: 1_000,
        timestamp_after_max_ms: 500,
        ..TopicSettings::default()
    };
    assert_eq!(code(batch(&[NOW - 1_000, NOW + 500, -1]), &settings), ErrorCode::None, "no timestamp passes");
    let refused = check(batch(&[NOW, NOW + 501, NOW, NOW - 1_001]), &settings).unwrap_err();
    assert_eq!(refused.error, ErrorCode::InvalidTimestamp);
    let indexes: Vec<_> = refused.record_errors.iter().map(|error| error.batch_index).collect();
    assert_eq!(indexes, [1, 3]);
    let default = TopicSettings::default();
    assert_eq!(code(batch(&[0]), &default), ErrorCode::None, "the past is not bounded by default");
    assert_eq!(code(batch(&[NOW + 3_600_001]), &default), ErrorCode::InvalidTimestamp);
    assert_eq!(code(batch(&[i64::MAX]), &default), ErrorCode::InvalidTimestamp);
    assert_eq!(code(batch(&[i64::MIN + 1]), &default), ErrorCode::None);
}

#[test]
fn a_wrong_largest_timestamp_is_corrected_p7() {
    let sent = altered(&batch(&[NOW, NOW + 9]), |header| header.max_timestamp = NOW + 77);
    let valid = check(sent, &TopicSettings::default()).unwrap();
    assert_eq!(valid.header.max_timestamp, NOW + 9);
    assert_eq!(timestamps(&valid), [NOW, NOW + 9]);
}

#[test]
fn log_append_time_replaces_every_timestamp_p3_p7() {
    for codec in Compression::ALL {
        let settings =
            TopicSettings { timestamp_type: TimestampType::LogAppendTime, ..TopicSettings::default() };
        let valid = check(batch_of(*codec, &[5, 6]).bytes().clone(), &settings).unwrap();
        assert_eq!(timestamps(&valid), [NOW, NOW]);
        assert_eq!(valid.log_append_time_ms, Some(NOW));
    }
}

#[test]
fn a_client_may_not_claim_log_append_time_p7() {
    let settings = TopicSettings { timestamp_type: TimestampType::LogAppendTime, ..TopicSettings::default() };
    let sent = BatchBuilder::new(Compression::None).append_time(NOW).append(record(NOW)).build();
    let refused = check(sent, &settings).unwrap_err();
    assert_eq!(refused.error, ErrorCode::InvalidTimestamp);
    assert_eq!(refused.record_errors.len(), 1);
}

#[test]
fn records_keep_their_own_timestamps_whatever_type_a_client_claims_for_them_p7() {
    let sent = BatchBuilder::new(Compression::None)
        .append_time(NOW)
        .append(record(NOW - 2))
        .append(record(NOW - 1))
        .build();
    let valid = check(sent, &TopicSettings::default()).unwrap();
    assert_eq!(timestamps(&valid), [NOW - 2, NOW - 1]);
    assert_eq!(valid.header.max_timestamp, NOW - 1);
    assert_eq!(valid.header.attributes.timestamp_type(), TimestampType::CreateTime);
}

#[test]
fn a_compacted_topic_needs_keys_p8() {
    let settings = TopicSettings { compacted: true, ..TopicSettings::default() };
    assert_eq!(code(batch(&[NOW]), &settings), ErrorCode::None);
    let sent = BatchBuilder::new(Compression::Zstd)
        .append(record(NOW))
        .append(NewRecord { key: None, ..record(NOW) })
        .build();
    assert_eq!(code(sent.clone(), &TopicSettings::default()), ErrorCode::None);
    let refused = check(sent, &settings).unwrap_err();
    assert_eq!(refused.error, ErrorCode::InvalidRecord);
    assert_eq!(refused.record_errors.iter().map(|error| error.batch_index).collect::<Vec<_>>(), [1]);
    assert!(refused.message.contains("without a key"));
}

#[test]
fn records_that_would_decompress_without_bound_are_refused() {
    let zeros = vec![0; MAX_DECOMPRESSED_BYTES];
    let sent =
        BatchBuilder::new(Compression::Zstd).append(NewRecord { value: Some(&zeros), ..record(NOW) }).build();
    assert!(sent.len() < 100_000, "a small request");
    assert_eq!(code(sent, &TopicSettings::default()), ErrorCode::MessageTooLarge);
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_an_error_at_worst(
        noise in proptest::collection::vec(proptest::prelude::any::<(u16, u8)>(), 0..12),
        cut in proptest::prelude::any::<u16>(),
        fix_checksum in proptest::prelude::any::<bool>(),
    ) {
        for codec in Compression::ALL {
            let mut bytes = batch_of(*codec, &[NOW, NOW + 1]).bytes().to_vec();
            for (at, value) in &noise {
                let at = usize::from(*at) % bytes.len();
                bytes[at] = *value;
            }
            if fix_checksum && BatchHeader::parse(&bytes).is_ok() {
                let header = BatchHeader::parse(&bytes).unwrap();
                set_max_timestamp(&mut bytes, header.attributes.timestamp_type(), header.max_timestamp);
            }
            let cut = usize::from(cut) % (bytes.len() * 4);
            bytes.truncate(cut.max(1));
            let _ = check(Bytes::from(bytes), &TopicSettings::default());
        }
    }
}
