//! Record batches (format 2, KIP-98): what Produce carries in, logs keep and Fetch carries out.
//!
//! A broker mostly moves batches whole: [`batches`] cuts a payload into [`RecordBatch`]es, whose 61-byte header is parsed
//! and checked and whose records stay a slice. Base offset and leader epoch lie outside the CRC and can be patched in
//! place; changing a timestamp means a new CRC (rule P3). Records are looked at only on demand, and decompression never
//! yields more than its caller allows.
//!
//! Left out on purpose: the older message formats, which Kafka 4 dropped, and any judgement (rules P1–P8 are the broker's).

mod batch;
mod builder;
mod compaction;
mod compression;
mod header;
mod record;

pub use batch::{Batches, RecordBatch, RecordBody, batches};
pub use builder::{BatchBuilder, NewRecord};
pub use compression::Compression;
pub use header::{
    Attributes, BatchHeader, HEADER_LEN, LOG_OVERHEAD, MAGIC, NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE,
    TimestampType, crc_of, patch_base_offset, patch_leader_epoch, set_max_timestamp,
};
pub use record::{Headers, Record, RecordHeader, Records};

/// Why bytes are no record batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The bytes end before the batch does. At the end of a Fetch response this is no mistake.
    #[error("a batch of {needed} bytes is cut off after {available}")]
    Truncated {
        /// Bytes of the whole batch, or of its header when not even that is there.
        needed: usize,
        /// Bytes that are there.
        available: usize,
    },
    /// A batch length that is smaller than a header.
    #[error("a batch length of {0} is too small")]
    InvalidLength(i32),
    /// Another format than 2.
    #[error("magic {0} is not supported")]
    UnsupportedMagic(i8),
    /// Compression bits that no codec has.
    #[error("unknown compression codec {0}")]
    UnknownCompression(u8),
    /// The CRC does not match.
    #[error("the CRC in the batch is {stored:#010x}, its bytes have {computed:#010x}")]
    CrcMismatch {
        /// CRC in the header.
        stored: u32,
        /// CRC of the bytes.
        computed: u32,
    },
    /// The compressed bytes are damaged.
    #[error("decompressing {codec}: {reason}")]
    Decompress {
        /// The codec.
        codec: Compression,
        /// What it said.
        reason: String,
    },
    /// Decompressed records would exceed what the caller allows.
    #[error("decompressed records take more than {limit} bytes")]
    TooLarge {
        /// The most allowed.
        limit: usize,
    },
    /// A record does not parse, or the header counts other records than there are.
    #[error("record {index}: {reason}")]
    InvalidRecord {
        /// Position in the batch.
        index: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

#[cfg(test)]
#[path = "records/records_test.rs"]
mod records_test;
