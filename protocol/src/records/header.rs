//! The fixed part of a batch.

use super::{BatchError, Compression};

/// Bytes of a batch header.
pub const HEADER_LEN: usize = 61;
/// Bytes in front of what `batch_length` counts: base offset and batch length.
pub const LOG_OVERHEAD: usize = 12;
/// The format this module knows.
pub const MAGIC: i8 = 2;
/// Producer id of batches that are neither idempotent nor transactional.
pub const NO_PRODUCER_ID: i64 = -1;
/// Producer epoch of such batches.
pub const NO_PRODUCER_EPOCH: i16 = -1;
/// Base sequence of such batches.
pub const NO_SEQUENCE: i32 = -1;

// Where fields lie that are written or checked on their own.
const BASE_OFFSET_AT: usize = 0;
const LEADER_EPOCH_AT: usize = 12;
const CRC_AT: usize = 17;
/// The CRC covers everything from here: the attributes, the first field behind it.
const ATTRIBUTES_AT: usize = 21;
const MAX_TIMESTAMP_AT: usize = 35;

/// Flags of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes(pub i16);

impl Attributes {
    const COMPRESSION: i16 = 0x07;
    const LOG_APPEND_TIME: i16 = 0x08;
    const TRANSACTIONAL: i16 = 0x10;
    const CONTROL: i16 = 0x20;
    pub(super) const DELETE_HORIZON: i16 = 0x40;

    /// The codec of the records.
    ///
    /// # Errors
    /// [`BatchError::UnknownCompression`].
    pub fn compression(self) -> Result<Compression, BatchError> {
        let code = (self.0 & Self::COMPRESSION).to_be_bytes()[1];
        Compression::from_code(code).ok_or(BatchError::UnknownCompression(code))
    }

    /// Whose clock the timestamps are.
    pub fn timestamp_type(self) -> TimestampType {
        if self.0 & Self::LOG_APPEND_TIME != 0 {
            TimestampType::LogAppendTime
        } else {
            TimestampType::CreateTime
        }
    }

    /// Part of a transaction.
    pub fn is_transactional(self) -> bool {
        self.0 & Self::TRANSACTIONAL != 0
    }

    /// Holds markers of the broker instead of records of a client.
    pub fn is_control(self) -> bool {
        self.0 & Self::CONTROL != 0
    }

    /// The base timestamp is the time from which compaction may drop tombstones.
    pub fn has_delete_horizon(self) -> bool {
        self.0 & Self::DELETE_HORIZON != 0
    }

    #[must_use]
    pub(super) fn with_compression(self, codec: Compression) -> Self {
        Self((self.0 & !Self::COMPRESSION) | i16::from(codec.code()))
    }

    #[must_use]
    pub(super) fn with_timestamp_type(self, timestamp_type: TimestampType) -> Self {
        match timestamp_type {
            TimestampType::CreateTime => Self(self.0 & !Self::LOG_APPEND_TIME),
            TimestampType::LogAppendTime => Self(self.0 | Self::LOG_APPEND_TIME),
        }
    }

    #[must_use]
    pub(super) fn transactional(self) -> Self {
        Self(self.0 | Self::TRANSACTIONAL)
    }

    #[must_use]
    pub(super) fn control(self) -> Self {
        Self(self.0 | Self::CONTROL)
    }
}

/// Whose clock the timestamps of a batch are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The broker's; then every record has the batch's maximum timestamp.
    LogAppendTime,
}

/// The fixed part of a batch, in Kafka's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record.
    pub base_offset: i64,
    /// Bytes behind this field.
    pub batch_length: i32,
    /// Epoch of the leader that appended the batch.
    pub partition_leader_epoch: i32,
    /// Format.
    pub magic: i8,
    /// CRC32C of everything behind it.
    pub crc: u32,
    /// Flags.
    pub attributes: Attributes,
    /// Offset of the last record, relative to the first.
    pub last_offset_delta: i32,
    /// Timestamp that record timestamps are relative to.
    pub base_timestamp: i64,
    /// Greatest timestamp.
    pub max_timestamp: i64,
    /// Idempotent or transactional producer, or [`NO_PRODUCER_ID`].
    pub producer_id: i64,
    /// Its epoch.
    pub producer_epoch: i16,
    /// Sequence number of the first record.
    pub base_sequence: i32,
    /// Number of records; 0 in batches that compaction emptied.
    pub records_count: i32,
}

impl BatchHeader {
    /// Reads the header at the front of `bytes`. Length and magic are checked, the rest is taken as it is.
    ///
    /// # Errors
    /// Fewer bytes than a header, an impossible length, or another format.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        // Magic is at the same place in every format, so that it can be told from too few bytes.
        let Some(head) = bytes.first_chunk::<HEADER_LEN>() else {
            return match bytes.get(LOG_OVERHEAD + 4) {
                Some(&magic) if magic.cast_signed() != MAGIC => {
                    Err(BatchError::UnsupportedMagic(magic.cast_signed()))
                }
                _ => Err(BatchError::Truncated { needed: HEADER_LEN, available: bytes.len() }),
            };
        };
        let mut fields = Fields { rest: head };
        let header = Self {
            base_offset: i64::from_be_bytes(fields.next()),
            batch_length: i32::from_be_bytes(fields.next()),
            partition_leader_epoch: i32::from_be_bytes(fields.next()),
            magic: i8::from_be_bytes(fields.next()),
            crc: u32::from_be_bytes(fields.next()),
            attributes: Attributes(i16::from_be_bytes(fields.next())),
            last_offset_delta: i32::from_be_bytes(fields.next()),
            base_timestamp: i64::from_be_bytes(fields.next()),
            max_timestamp: i64::from_be_bytes(fields.next()),
            producer_id: i64::from_be_bytes(fields.next()),
            producer_epoch: i16::from_be_bytes(fields.next()),
            base_sequence: i32::from_be_bytes(fields.next()),
            records_count: i32::from_be_bytes(fields.next()),
        };
        if header.magic != MAGIC {
            return Err(BatchError::UnsupportedMagic(header.magic));
        }
        match usize::try_from(header.batch_length) {
            Ok(length) if length >= HEADER_LEN - LOG_OVERHEAD => Ok(header),
            _ => Err(BatchError::InvalidLength(header.batch_length)),
        }
    }

    /// The header as bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut rest = bytes.as_mut_slice();
        let mut put = |field: &[u8]| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(field.len());
            head.copy_from_slice(field);
            rest = tail;
        };
        put(&self.base_offset.to_be_bytes());
        put(&self.batch_length.to_be_bytes());
        put(&self.partition_leader_epoch.to_be_bytes());
        put(&self.magic.to_be_bytes());
        put(&self.crc.to_be_bytes());
        put(&self.attributes.0.to_be_bytes());
        put(&self.last_offset_delta.to_be_bytes());
        put(&self.base_timestamp.to_be_bytes());
        put(&self.max_timestamp.to_be_bytes());
        put(&self.producer_id.to_be_bytes());
        put(&self.producer_epoch.to_be_bytes());
        put(&self.base_sequence.to_be_bytes());
        put(&self.records_count.to_be_bytes());
        bytes
    }

    /// Bytes of the whole batch.
    pub fn size_in_bytes(&self) -> usize {
        LOG_OVERHEAD + usize::try_from(self.batch_length).unwrap_or(0)
    }

    /// Offset of the last record.
    pub fn last_offset(&self) -> i64 {
        self.base_offset.wrapping_add(self.last_offset_delta.into())
    }

    /// Offset behind the last record.
    pub fn next_offset(&self) -> i64 {
        self.last_offset().wrapping_add(1)
    }

    /// Whether an idempotent or transactional producer wrote the batch.
    pub fn has_producer_id(&self) -> bool {
        self.producer_id > NO_PRODUCER_ID
    }

    /// Sequence number of the last record; it goes on at 0 after `i32::MAX`.
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence == NO_SEQUENCE {
            return NO_SEQUENCE;
        }
        let sum = i64::from(self.base_sequence) + i64::from(self.last_offset_delta);
        let wrapped = sum.rem_euclid(i64::from(i32::MAX) + 1);
        i32::try_from(wrapped).expect("a remainder is below the divisor")
    }
}

/// Takes fields off a header one by one; the lengths of all fields add up to the header's.
struct Fields<'a> {
    rest: &'a [u8],
}

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.rest.split_first_chunk().expect("the fields fill the header");
        self.rest = rest;
        *field
    }
}

/// CRC32C of a whole batch, as its header must state it.
///
/// # Panics
/// `batch` is shorter than a header.
pub fn crc_of(batch: &[u8]) -> u32 {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &batch[ATTRIBUTES_AT..]);
    u32::try_from(crc).expect("the algorithm has 32 bits")
}

/// Writes the CRC that the bytes have.
///
/// # Panics
/// `batch` is shorter than a header.
pub(super) fn update_crc(batch: &mut [u8]) {
    let crc = crc_of(batch);
    batch[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
}

/// Sets the base offset of the batch at the front of `batch`. The CRC does not cover it.
///
/// # Panics
/// `batch` is shorter than a header.
pub fn patch_base_offset(batch: &mut [u8], base_offset: i64) {
    batch[BASE_OFFSET_AT..BASE_OFFSET_AT + 8].copy_from_slice(&base_offset.to_be_bytes());
}

/// Sets the leader epoch of the batch at the front of `batch`. The CRC does not cover it.
///
/// # Panics
/// `batch` is shorter than a header.
pub fn patch_leader_epoch(batch: &mut [u8], leader_epoch: i32) {
    batch[LEADER_EPOCH_AT..LEADER_EPOCH_AT + 4].copy_from_slice(&leader_epoch.to_be_bytes());
}

/// Sets the maximum timestamp and whose clock it is, and the CRC that follows from it.
///
/// With [`TimestampType::LogAppendTime`] readers take the maximum timestamp for every record.
///
/// # Panics
/// `batch` is shorter than a header; it must be exactly one batch for the CRC to be right.
pub fn set_max_timestamp(batch: &mut [u8], timestamp_type: TimestampType, max_timestamp: i64) {
    let attributes = i16::from_be_bytes([batch[ATTRIBUTES_AT], batch[ATTRIBUTES_AT + 1]]);
    let attributes = Attributes(attributes).with_timestamp_type(timestamp_type);
    batch[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&attributes.0.to_be_bytes());
    batch[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&max_timestamp.to_be_bytes());
    update_crc(batch);
}
