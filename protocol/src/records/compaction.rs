//! Batches with fewer records than they had, as log compaction writes them.
//!
//! Offsets never change: a batch keeps base offset, last offset delta, producer and sequence, whatever is left in it
//! (rules C3 and C4). The bytes are those that Kafka's `MemoryRecords.filterTo` makes.

use super::batch::{RecordBatch, RecordBody};
use super::header::{Attributes, BatchHeader, TimestampType};
use super::record::Record;
use super::{BatchError, Compression};
use crate::wire::Encoder;

/// Timestamp of records and batches that have none.
const NO_TIMESTAMP: i64 = -1;

impl BatchHeader {
    /// Time in milliseconds since 1970 from which compaction may drop the tombstones of the batch (C2).
    pub fn delete_horizon_ms(&self) -> Option<i64> {
        self.attributes.has_delete_horizon().then_some(self.base_timestamp)
    }
}

impl RecordBatch {
    /// The batch with only those records for which `keep` is true; `body` are its records. The codec stays.
    ///
    /// A batch gets its delete horizon once (C2): `delete_horizon_ms` is for one that has none yet. Not to be used when
    /// no record stays, see [`emptied`](Self::emptied).
    ///
    /// # Errors
    /// A record does not parse, or the codec is not known.
    pub fn retain(
        &self,
        body: &RecordBody,
        mut keep: impl FnMut(&Record<'_>) -> bool,
        delete_horizon_ms: Option<i64>,
    ) -> Result<Self, BatchError> {
        let codec = self.header().attributes.compression()?;
        let horizon = self.header().delete_horizon_ms().or(delete_horizon_ms);
        let mut header = *self.header();
        header.records_count = 0;
        let by_producer = header.attributes.timestamp_type() == TimestampType::CreateTime;
        if by_producer {
            header.max_timestamp = NO_TIMESTAMP;
        }
        if let Some(horizon) = horizon {
            header.attributes = header.attributes.with_delete_horizon();
            header.base_timestamp = horizon;
        }
        let mut out = Encoder::new();
        for record in body.records() {
            let record = record?;
            if !keep(&record) {
                continue;
            }
            if header.records_count == 0 && horizon.is_none() {
                header.base_timestamp = record.timestamp;
            }
            header.records_count += 1;
            if by_producer {
                header.max_timestamp = header.max_timestamp.max(record.timestamp);
            }
            record.write(header.base_timestamp, &mut out);
        }
        Ok(Self::assemble(header, &codec.compress(&out.into_bytes())))
    }

    /// The batch without records: what is left of the last batch of a producer, so that its sequence stays known (C3).
    #[must_use]
    pub fn emptied(&self) -> Self {
        let attributes =
            self.header().attributes.with_compression(Compression::None).without_delete_horizon();
        let header =
            BatchHeader { attributes, base_timestamp: NO_TIMESTAMP, records_count: 0, ..*self.header() };
        Self::assemble(header, &[])
    }
}

impl Attributes {
    #[must_use]
    fn with_delete_horizon(self) -> Self {
        Self(self.0 | Self::DELETE_HORIZON)
    }

    #[must_use]
    fn without_delete_horizon(self) -> Self {
        Self(self.0 & !Self::DELETE_HORIZON)
    }
}
