//! Single records inside an uncompressed batch.

use super::{BatchError, BatchHeader, TimestampType};
use crate::wire::Encoder;

/// One record, borrowed from its batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its offset.
    pub offset: i64,
    /// Its offset relative to the batch's base offset, as written.
    pub offset_delta: i32,
    /// Milliseconds since 1970, -1 for none; the batch's maximum when the broker's clock counts.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    headers: &'a [u8],
    headers_count: usize,
}

impl std::fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record")
            .field("offset", &self.offset)
            .field("timestamp", &self.timestamp)
            .field("key_len", &self.key.map(<[u8]>::len))
            .field("value_len", &self.value.map(<[u8]>::len))
            .field("headers", &self.headers_count)
            .finish_non_exhaustive()
    }
}

impl<'a> Record<'a> {
    /// Its headers, in order.
    pub fn headers(&self) -> Headers<'a> {
        Headers { left: self.headers_count, rest: Cursor { bytes: self.headers } }
    }

    /// Writes the record as it was, its timestamp relative to another base.
    pub(super) fn write(&self, base_timestamp: i64, out: &mut Encoder) {
        let length = |len: usize| i32::try_from(len).expect("no longer than what was read");
        let mut e = Encoder::new();
        e.u8(0);
        e.varlong(self.timestamp.wrapping_sub(base_timestamp));
        e.varint(self.offset_delta);
        for field in [self.key, self.value] {
            match field {
                Some(bytes) => {
                    e.varint(length(bytes.len()));
                    e.slice(bytes);
                }
                None => e.varint(-1),
            }
        }
        e.varint(length(self.headers_count));
        e.slice(self.headers);
        out.varint(length(e.len()));
        out.slice(&e.into_bytes());
    }
}

/// A name and a value on a record. Names may repeat.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader<'a> {
    /// Its name; UTF-8 by agreement only.
    pub key: &'a [u8],
    /// Its value.
    pub value: Option<&'a [u8]>,
}

impl std::fmt::Debug for RecordHeader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordHeader")
            .field("value_len", &self.value.map(<[u8]>::len))
            .finish_non_exhaustive()
    }
}

/// See [`Record::headers`].
#[derive(Debug, Clone)]
pub struct Headers<'a> {
    left: usize,
    rest: Cursor<'a>,
}

impl<'a> Iterator for Headers<'a> {
    type Item = RecordHeader<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        // The record was checked as a whole when it was read.
        self.rest.header().ok()
    }
}

/// The records of a batch, in order. Ends after the first error.
///
/// Yields exactly as many records as the header counts, or an error; bytes behind the last one are an error too.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    base_offset: i64,
    base_timestamp: i64,
    append_time: Option<i64>,
    rest: Cursor<'a>,
    index: usize,
    count: usize,
    failed: bool,
}

impl<'a> Records<'a> {
    pub(super) fn new(header: &BatchHeader, bytes: &'a [u8]) -> Self {
        let append_time = match header.attributes.timestamp_type() {
            TimestampType::LogAppendTime => Some(header.max_timestamp),
            TimestampType::CreateTime => None,
        };
        Self {
            base_offset: header.base_offset,
            base_timestamp: header.base_timestamp,
            append_time,
            rest: Cursor { bytes },
            index: 0,
            count: usize::try_from(header.records_count).unwrap_or(0),
            failed: header.records_count < 0,
        }
    }

    fn read(&mut self) -> Result<Record<'a>, &'static str> {
        let len = self.rest.varint()?;
        let mut record = Cursor { bytes: self.rest.take(len)? };
        record.take(1)?; // attributes, unused so far
        let timestamp_delta = record.varlong()?;
        let offset_delta = record.varint()?;
        let key = record.nullable()?;
        let value = record.nullable()?;
        let headers_count = record.varint()?;
        // A header takes at least two bytes.
        let headers_count = match usize::try_from(headers_count) {
            Ok(count) if count <= record.bytes.len() / 2 => count,
            _ => return Err("impossible number of headers"),
        };
        let headers = record.bytes;
        for _ in 0..headers_count {
            record.header()?;
        }
        if !record.bytes.is_empty() {
            return Err("bytes are left over behind the headers");
        }
        Ok(Record {
            offset: self.base_offset.wrapping_add(offset_delta.into()),
            offset_delta,
            timestamp: self.append_time.unwrap_or_else(|| self.base_timestamp.wrapping_add(timestamp_delta)),
            key,
            value,
            headers,
            headers_count,
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.index;
        let result = if self.failed && index == 0 {
            Err("the number of records is negative")
        } else if self.failed {
            return None;
        } else if index == self.count {
            if self.rest.bytes.is_empty() {
                return None;
            }
            Err("bytes are left over behind the last record")
        } else {
            self.read()
        };
        self.index += 1;
        self.failed = result.is_err();
        Some(result.map_err(|reason| BatchError::InvalidRecord { index, reason }))
    }
}

/// Reads the varint format of records from a slice.
#[derive(Debug, Clone)]
struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: i32) -> Result<&'a [u8], &'static str> {
        let len = usize::try_from(len).map_err(|_| "negative length")?;
        let (taken, rest) = self.bytes.split_at_checked(len).ok_or("cut off")?;
        self.bytes = rest;
        Ok(taken)
    }

    fn nullable(&mut self) -> Result<Option<&'a [u8]>, &'static str> {
        match self.varint()? {
            -1 => Ok(None),
            len => self.take(len).map(Some),
        }
    }

    fn header(&mut self) -> Result<RecordHeader<'a>, &'static str> {
        let key_len = self.varint()?;
        Ok(RecordHeader { key: self.take(key_len)?, value: self.nullable()? })
    }

    fn varint(&mut self) -> Result<i32, &'static str> {
        i32::try_from(self.varlong()?).map_err(|_| "a varint is too long")
    }

    fn varlong(&mut self) -> Result<i64, &'static str> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.bytes.split_first().ok_or("cut off")?;
            self.bytes = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
            }
        }
        Err("a varint is too long")
    }
}
