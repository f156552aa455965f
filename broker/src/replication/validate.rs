//! Judges what a client wants to append, before it gets an offset (rules P1–P8).
//!
//! Pure: bytes, settings and the time go in; a batch fit to be stored comes out, or the error that the client gets.
//! A batch that is right is passed on as it came, a slice of the request; it is copied only where it must change:
//! wrong offset deltas, a wrong maximum timestamp, the broker's time, another codec.

use bytes::Bytes;
use millrace_protocol::ErrorCode;
use millrace_protocol::records::{
    BatchBuilder, BatchError, BatchHeader, Compression, NewRecord, Record, RecordBatch, RecordBody,
    TimestampType, set_max_timestamp,
};

use super::TopicSettings;

/// First version of Produce whose clients know zstd (P1).
const ZSTD_PRODUCE_VERSION: i16 = 7;

/// Most bytes that the records of one batch may decompress to. A thousand times less than what a hostile batch of the
/// default `max.message.bytes` can claim, and a hundred times more than what clients put into one.
const MAX_DECOMPRESSED_BYTES: usize = 128 << 20;

/// A batch fit to be stored.
#[derive(Clone, Debug)]
pub struct ValidatedBatch {
    /// The batch, with base offset 0.
    pub bytes: Bytes,
    /// Its header.
    pub header: BatchHeader,
    /// The broker's time in the batch, where the topic uses that.
    pub log_append_time_ms: Option<i64>,
}

/// A record that made the whole batch fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordError {
    /// Number of the record in the batch.
    pub batch_index: i32,
    /// What is wrong with it.
    pub message: Option<String>,
}

/// Why a batch is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Error for the partition.
    pub error: ErrorCode,
    /// For people.
    pub message: String,
    /// Records at fault; only with `InvalidRecord` and `InvalidTimestamp` (P8).
    pub record_errors: Vec<RecordError>,
}

impl Rejection {
    fn new(error: ErrorCode, message: impl Into<String>) -> Self {
        Self { error, message: message.into(), record_errors: Vec::new() }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRecord, message)
    }
}

/// Validates `records`, the payload of one partition in a Produce request of `api_version`, at `now_ms`.
pub fn validate(
    records: Bytes,
    settings: &TopicSettings,
    api_version: i16,
    now_ms: i64,
) -> Result<ValidatedBatch, Rejection> {
    let batch = single_batch(records, api_version)?;
    check_header(&batch, settings)?;
    let claims_append_time = batch.header().attributes.timestamp_type() == TimestampType::LogAppendTime;
    let batch = if claims_append_time && settings.timestamp_type == TimestampType::CreateTime {
        // P7: the topic's type counts. Readers would take the largest timestamp for that of every record.
        with_create_time(&batch, batch.header().max_timestamp)?
    } else {
        batch
    };
    let body = batch.decompress(MAX_DECOMPRESSED_BYTES).map_err(reject_body)?;
    let found = check_records(&batch, &body, settings, now_ms)?;

    let codec = batch.header().attributes.compression().map_err(reject_body)?;
    let target = settings.compression.unwrap_or(codec);
    let batch = if found.deltas_are_wrong {
        rebuild(&batch, &body, target)?
    } else if target == codec {
        batch
    } else {
        batch.recompress(target, MAX_DECOMPRESSED_BYTES).map_err(reject_body)?
    };
    let batch = match settings.timestamp_type {
        TimestampType::LogAppendTime => batch.with_append_time(now_ms),
        TimestampType::CreateTime if batch.header().max_timestamp != found.max_timestamp => {
            with_create_time(&batch, found.max_timestamp)?
        }
        TimestampType::CreateTime => batch,
    };
    check_size(&batch, settings)?;
    if batch.bytes().len() as u64 > settings.log.segment_bytes {
        return Err(Rejection::new(
            ErrorCode::RecordListTooLarge,
            format!(
                "a batch of {} bytes does not fit in a segment of {}",
                batch.bytes().len(),
                settings.log.segment_bytes
            ),
        ));
    }
    let log_append_time_ms = (settings.timestamp_type == TimestampType::LogAppendTime).then_some(now_ms);
    Ok(ValidatedBatch { header: *batch.header(), bytes: batch.bytes().clone(), log_append_time_ms })
}

/// P1: exactly one batch, in format 2, in a codec that the client's version has.
fn single_batch(mut records: Bytes, api_version: i16) -> Result<RecordBatch, Rejection> {
    if records.is_empty() {
        return Err(Rejection::invalid("a produce request needs one record batch for each partition"));
    }
    let batch = RecordBatch::split_from(&mut records).map_err(|error| match error {
        BatchError::InvalidLength(_) => Rejection::new(ErrorCode::CorruptMessage, error.to_string()),
        _ => Rejection::invalid(error.to_string()),
    })?;
    if !records.is_empty() {
        return Err(Rejection::invalid(
            "a produce request may hold only one record batch for each partition",
        ));
    }
    let zstd = matches!(batch.header().attributes.compression(), Ok(Compression::Zstd));
    if zstd && api_version < ZSTD_PRODUCE_VERSION {
        return Err(Rejection::new(
            ErrorCode::UnsupportedCompressionType,
            format!("produce version {api_version} does not know zstd"),
        ));
    }
    Ok(batch)
}

/// P4 (size before checksum), P3, P2.
fn check_header(batch: &RecordBatch, settings: &TopicSettings) -> Result<(), Rejection> {
    let header = batch.header();
    if header.base_offset != 0 {
        return Err(Rejection::invalid(format!("the base offset is {} instead of 0", header.base_offset)));
    }
    check_size(batch, settings)?;
    batch.verify_crc().map_err(|error| Rejection::new(ErrorCode::CorruptMessage, error.to_string()))?;
    let expected = header.last_offset_delta.checked_add(1);
    if header.last_offset_delta < 0 || header.records_count <= 0 || expected != Some(header.records_count) {
        return Err(Rejection::invalid(format!(
            "the batch counts {} records and {} as last offset delta",
            header.records_count, header.last_offset_delta
        )));
    }
    if header.attributes.is_control() {
        return Err(Rejection::invalid("clients may not write control records"));
    }
    if header.has_producer_id() && header.base_sequence < 0 {
        return Err(Rejection::invalid(format!(
            "base sequence {} of an idempotent batch",
            header.base_sequence
        )));
    }
    Ok(())
}

fn check_size(batch: &RecordBatch, settings: &TopicSettings) -> Result<(), Rejection> {
    if batch.bytes().len() <= settings.max_message_bytes {
        return Ok(());
    }
    Err(Rejection::new(
        ErrorCode::MessageTooLarge,
        format!(
            "a batch of {} bytes exceeds max.message.bytes, {}",
            batch.bytes().len(),
            settings.max_message_bytes
        ),
    ))
}

struct Found {
    max_timestamp: i64,
    deltas_are_wrong: bool,
}

/// P5, P7, P8: looks at every record; one that is wrong fails the batch.
fn check_records(
    batch: &RecordBatch,
    body: &RecordBody,
    settings: &TopicSettings,
    now_ms: i64,
) -> Result<Found, Rejection> {
    let mut found = Found { max_timestamp: -1, deltas_are_wrong: false };
    let mut record_errors = Vec::new();
    let mut error = ErrorCode::InvalidRecord;
    for (record, batch_index) in body.records().zip(0..) {
        let record = record.map_err(reject_body)?;
        found.deltas_are_wrong |= record.offset_delta != batch_index;
        found.max_timestamp = found.max_timestamp.max(record.timestamp);
        let problem = if settings.compacted && record.key.is_none() {
            Some((ErrorCode::InvalidRecord, "a compacted topic takes no record without a key".to_owned()))
        } else {
            timestamp_problem(batch, &record, settings, now_ms).map(|why| (ErrorCode::InvalidTimestamp, why))
        };
        if let Some((code, message)) = problem {
            if code == ErrorCode::InvalidTimestamp {
                error = code;
            }
            record_errors.push(RecordError { batch_index, message: Some(message) });
        }
    }
    if record_errors.is_empty() {
        return Ok(found);
    }
    let first = record_errors.iter().take(3).filter_map(|error| error.message.as_deref());
    let message =
        format!("{} records were refused: {}", record_errors.len(), first.collect::<Vec<_>>().join("; "));
    Err(Rejection { error, message, record_errors })
}

/// P7. Records without a timestamp (-1) pass.
fn timestamp_problem(
    batch: &RecordBatch,
    record: &Record<'_>,
    settings: &TopicSettings,
    now_ms: i64,
) -> Option<String> {
    if settings.timestamp_type == TimestampType::CreateTime && record.timestamp != -1 {
        let age = now_ms.saturating_sub(record.timestamp);
        let too_early = age > settings.timestamp_before_max_ms;
        let too_late = age.saturating_neg() > settings.timestamp_after_max_ms;
        return (too_early || too_late).then(|| {
            format!(
                "timestamp {} is not within {} ms before and {} ms after the broker's time, {now_ms}",
                record.timestamp, settings.timestamp_before_max_ms, settings.timestamp_after_max_ms
            )
        });
    }
    let claims_append_time = batch.header().attributes.timestamp_type() == TimestampType::LogAppendTime;
    claims_append_time.then(|| "a client may not claim the broker's time for its records".to_owned())
}

/// Writes the batch anew with offset deltas from 0 (P5).
fn rebuild(batch: &RecordBatch, body: &RecordBody, codec: Compression) -> Result<RecordBatch, Rejection> {
    let header = batch.header();
    let mut builder =
        BatchBuilder::new(codec).producer(header.producer_id, header.producer_epoch, header.base_sequence);
    if header.attributes.is_transactional() {
        builder = builder.transactional();
    }
    for record in body.records() {
        let record = record.map_err(reject_body)?;
        let headers = record
            .headers()
            .map(|header| std::str::from_utf8(header.key).map(|key| (key, header.value)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Rejection::invalid("the name of a record header is not UTF-8"))?;
        builder.push(NewRecord {
            timestamp: record.timestamp,
            key: record.key,
            value: record.value,
            headers: &headers,
        });
    }
    Ok(builder.finish())
}

/// The batch with records that have the times of their creation, of which `max_timestamp` is the largest.
fn with_create_time(batch: &RecordBatch, max_timestamp: i64) -> Result<RecordBatch, Rejection> {
    let mut bytes = batch.bytes().to_vec();
    set_max_timestamp(&mut bytes, TimestampType::CreateTime, max_timestamp);
    RecordBatch::split_from(&mut Bytes::from(bytes)).map_err(reject_body)
}

fn reject_body(error: BatchError) -> Rejection {
    let code = match &error {
        // The Java producer splits a batch that is too large and tries again.
        BatchError::TooLarge { .. } => ErrorCode::MessageTooLarge,
        BatchError::UnknownCompression(_) => ErrorCode::UnsupportedCompressionType,
        BatchError::CrcMismatch { .. } => ErrorCode::CorruptMessage,
        BatchError::Truncated { .. }
        | BatchError::InvalidLength(_)
        | BatchError::UnsupportedMagic(_)
        | BatchError::Decompress { .. }
        | BatchError::InvalidRecord { .. } => ErrorCode::InvalidRecord,
    };
    Rejection::new(code, error.to_string())
}

#[cfg(test)]
#[path = "validate_test.rs"]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests;
