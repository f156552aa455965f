//! Batches as slices of the bytes they came in.

use bytes::{Bytes, BytesMut};

use super::header::{self, BatchHeader, HEADER_LEN, TimestampType};
use super::record::Records;
use super::{BatchError, Compression};

/// One whole batch: its parsed header, and its bytes as they came.
#[derive(Clone, PartialEq, Eq)]
pub struct RecordBatch {
    header: BatchHeader,
    bytes: Bytes,
}

impl std::fmt::Debug for RecordBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordBatch").field("header", &self.header).finish_non_exhaustive()
    }
}

impl RecordBatch {
    /// Takes the batch off the front of `bytes`.
    ///
    /// # Errors
    /// The header is malformed or the batch not whole; `bytes` is as before. CRC and records are not looked at.
    pub fn split_from(bytes: &mut Bytes) -> Result<Self, BatchError> {
        let header = BatchHeader::parse(bytes)?;
        let needed = header.size_in_bytes();
        if bytes.len() < needed {
            return Err(BatchError::Truncated { needed, available: bytes.len() });
        }
        Ok(Self { header, bytes: bytes.split_to(needed) })
    }

    /// The fixed part.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch, header included.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The records as they are in the batch, compressed or not.
    pub fn payload(&self) -> Bytes {
        self.bytes.slice(HEADER_LEN..)
    }

    /// Compares the CRC in the header with that of the bytes (rule P3).
    ///
    /// # Errors
    /// [`BatchError::CrcMismatch`].
    pub fn verify_crc(&self) -> Result<(), BatchError> {
        let (stored, computed) = (self.header.crc, header::crc_of(&self.bytes));
        if stored == computed { Ok(()) } else { Err(BatchError::CrcMismatch { stored, computed }) }
    }

    /// The header with another base offset and leader epoch. In front of [`payload`](Self::payload) it makes the batch
    /// that a leader appends, without copying the records.
    pub fn header_with(&self, base_offset: i64, leader_epoch: i32) -> [u8; HEADER_LEN] {
        BatchHeader { base_offset, partition_leader_epoch: leader_epoch, ..self.header }.to_bytes()
    }

    /// The records, decompressed into at most `limit` bytes.
    ///
    /// # Errors
    /// An unknown codec, damaged bytes, or more than `limit` bytes. Uncompressed records are already there and never too
    /// large.
    pub fn decompress(&self, limit: usize) -> Result<RecordBody, BatchError> {
        let payload = self.payload();
        let bytes = match self.header.attributes.compression()? {
            Compression::None => payload,
            codec => codec.decompress(&payload, limit)?,
        };
        Ok(RecordBody { header: self.header, bytes })
    }

    /// The batch with the broker's time in every record.
    #[must_use]
    pub fn with_append_time(&self, timestamp: i64) -> Self {
        let mut bytes = BytesMut::from(self.bytes.as_ref());
        header::set_max_timestamp(&mut bytes, TimestampType::LogAppendTime, timestamp);
        Self::of(bytes.freeze())
    }

    /// The batch with its records in another codec; everything else is the same.
    ///
    /// # Errors
    /// The records do not decompress into `limit` bytes.
    pub fn recompress(&self, codec: Compression, limit: usize) -> Result<Self, BatchError> {
        let body = self.decompress(limit)?;
        let header =
            BatchHeader { attributes: self.header.attributes.with_compression(codec), ..self.header };
        Ok(Self::assemble(header, &codec.compress(&body.bytes)))
    }

    /// A batch of `header` and `payload`; batch length and CRC are set here.
    pub(super) fn assemble(header: BatchHeader, payload: &[u8]) -> Self {
        let batch_length = HEADER_LEN - header::LOG_OVERHEAD + payload.len();
        let batch_length = i32::try_from(batch_length).expect("batches are far below 2 GiB");
        let header = BatchHeader { batch_length, ..header };
        let mut bytes = BytesMut::with_capacity(HEADER_LEN + payload.len());
        bytes.extend_from_slice(&header.to_bytes());
        bytes.extend_from_slice(payload);
        header::update_crc(&mut bytes);
        Self::of(bytes.freeze())
    }

    fn of(bytes: Bytes) -> Self {
        let header = BatchHeader::parse(&bytes).expect("made from a valid header");
        Self { header, bytes }
    }
}

/// Uncompressed records of one batch.
#[derive(Clone)]
pub struct RecordBody {
    header: BatchHeader,
    bytes: Bytes,
}

impl std::fmt::Debug for RecordBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordBody").field("len", &self.bytes.len()).finish_non_exhaustive()
    }
}

impl RecordBody {
    /// The records one after the other, borrowed.
    pub fn records(&self) -> Records<'_> {
        Records::new(&self.header, &self.bytes)
    }

    /// The bytes of all records.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// The batches in `bytes`, in order. Ends after the first error.
///
/// What Fetch returns may end in the middle of a batch: there the last item is [`BatchError::Truncated`].
pub fn batches(bytes: Bytes) -> Batches {
    Batches { rest: bytes }
}

/// See [`batches`].
#[derive(Debug, Clone)]
pub struct Batches {
    rest: Bytes,
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let batch = RecordBatch::split_from(&mut self.rest);
        if batch.is_err() {
            self.rest.clear();
        }
        Some(batch)
    }
}
