//! Writing batches.

use bytes::Bytes;

use super::Compression;
use super::batch::RecordBatch;
use super::header::{
    Attributes, BatchHeader, MAGIC, NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE, TimestampType,
};
use crate::wire::Encoder;

/// A record to write.
#[derive(Debug, Clone, Copy, Default)]
pub struct NewRecord<'a> {
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its headers.
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
}

/// Collects records and writes them as one batch.
#[derive(Debug)]
pub struct BatchBuilder {
    compression: Compression,
    header: BatchHeader,
    body: Encoder,
}

impl BatchBuilder {
    /// An empty batch at offset 0, of no producer.
    pub fn new(compression: Compression) -> Self {
        let header = BatchHeader {
            base_offset: 0,
            batch_length: 0,
            partition_leader_epoch: -1,
            magic: MAGIC,
            crc: 0,
            attributes: Attributes::default().with_compression(compression),
            last_offset_delta: -1,
            base_timestamp: -1,
            max_timestamp: -1,
            producer_id: NO_PRODUCER_ID,
            producer_epoch: NO_PRODUCER_EPOCH,
            base_sequence: NO_SEQUENCE,
            records_count: 0,
        };
        Self { compression, header, body: Encoder::new() }
    }

    /// Sets the offset of the first record.
    #[must_use]
    pub fn base_offset(mut self, base_offset: i64) -> Self {
        self.header.base_offset = base_offset;
        self
    }

    /// Sets the epoch of the leader.
    #[must_use]
    pub fn leader_epoch(mut self, leader_epoch: i32) -> Self {
        self.header.partition_leader_epoch = leader_epoch;
        self
    }

    /// Makes it a batch of an idempotent producer.
    #[must_use]
    pub fn producer(mut self, producer_id: i64, producer_epoch: i16, base_sequence: i32) -> Self {
        self.header.producer_id = producer_id;
        self.header.producer_epoch = producer_epoch;
        self.header.base_sequence = base_sequence;
        self
    }

    /// Makes it part of a transaction.
    #[must_use]
    pub fn transactional(mut self) -> Self {
        self.header.attributes = self.header.attributes.transactional();
        self
    }

    /// Makes it a batch of control records.
    #[must_use]
    pub fn control(mut self) -> Self {
        self.header.attributes = self.header.attributes.control();
        self
    }

    /// Makes the broker's `timestamp` that of all records.
    #[must_use]
    pub fn append_time(mut self, timestamp: i64) -> Self {
        self.header.attributes = self.header.attributes.with_timestamp_type(TimestampType::LogAppendTime);
        self.header.max_timestamp = timestamp;
        self
    }

    /// Adds a record with the next offset.
    #[must_use]
    pub fn append(mut self, record: NewRecord<'_>) -> Self {
        self.push(record);
        self
    }

    /// Adds a record with the next offset.
    ///
    /// # Panics
    /// Something in the record is longer than 2 GiB.
    pub fn push(&mut self, record: NewRecord<'_>) {
        let header = &mut self.header;
        if header.records_count == 0 {
            header.base_timestamp = record.timestamp;
        }
        header.records_count += 1;
        header.last_offset_delta += 1;
        if header.attributes.timestamp_type() == TimestampType::CreateTime {
            header.max_timestamp = header.max_timestamp.max(record.timestamp);
        }
        let mut e = Encoder::new();
        e.u8(0);
        e.varlong(record.timestamp.wrapping_sub(header.base_timestamp));
        e.varint(header.last_offset_delta);
        nullable(&mut e, record.key);
        nullable(&mut e, record.value);
        e.varint(length(record.headers.len()));
        for (key, value) in record.headers {
            nullable(&mut e, Some(key.as_bytes()));
            nullable(&mut e, *value);
        }
        self.body.varint(length(e.len()));
        self.body.slice(&e.into_bytes());
    }

    /// Bytes of the records so far, uncompressed.
    pub fn uncompressed_len(&self) -> usize {
        self.body.len()
    }

    /// The batch.
    pub fn finish(self) -> RecordBatch {
        let body = self.body.into_bytes();
        RecordBatch::assemble(self.header, &self.compression.compress(&body))
    }

    /// The batch as bytes.
    pub fn build(self) -> Bytes {
        self.finish().bytes().clone()
    }
}

fn nullable(e: &mut Encoder, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            e.varint(length(bytes.len()));
            e.slice(bytes);
        }
        None => e.varint(-1),
    }
}

fn length(len: usize) -> i32 {
    i32::try_from(len).expect("records are far below 2 GiB")
}
