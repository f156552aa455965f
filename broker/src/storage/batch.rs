//! Headers of record batches as they lie in a log.
//!
//! Answers where a batch ends, which offsets it covers and whether its bytes are whole, without looking at records.
//! The codec reads the header; here it is judged as bytes of a disk have to be, which may be anything.

use millrace_protocol::records::{self, BatchHeader, HEADER_LEN};

/// Why stored bytes are not a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoredBatchError {
    /// Fewer bytes than the batch says it has, or than a header takes.
    #[error("the batch is cut off")]
    Incomplete,
    /// The header is not one.
    #[error(transparent)]
    Header(#[from] records::BatchError),
    /// The offsets cannot be right.
    #[error("the batch has impossible offsets")]
    Offsets,
    /// The batches are not those that were stored here.
    #[error("these are not the batches that were stored here")]
    Misplaced,
    /// The checksum differs.
    #[error("the batch fails its checksum")]
    Checksum,
}

/// Reads the header at the start of `bytes`, which need not hold the whole batch.
pub fn parse_header(bytes: &[u8]) -> Result<BatchHeader, StoredBatchError> {
    if bytes.len() < HEADER_LEN {
        return Err(StoredBatchError::Incomplete);
    }
    let header = BatchHeader::parse(bytes)?;
    let next = header.base_offset.checked_add(i64::from(header.last_offset_delta) + 1);
    let offsets_fit = header.base_offset >= 0 && header.last_offset_delta >= 0 && next.is_some();
    if offsets_fit { Ok(header) } else { Err(StoredBatchError::Offsets) }
}

/// Reads the header and compares the checksum of the whole batch at the start of `bytes`.
pub fn parse_whole(bytes: &[u8]) -> Result<BatchHeader, StoredBatchError> {
    let header = parse_header(bytes)?;
    let batch = bytes.get(..header.size_in_bytes()).ok_or(StoredBatchError::Incomplete)?;
    if records::crc_of(batch) == header.crc { Ok(header) } else { Err(StoredBatchError::Checksum) }
}

/// Checks that `bytes` are nothing but whole batches with rising offsets from `base_offset` to `last_offset`, all of one
/// leader epoch. An error comes with its position.
///
/// That covers what the checksums of batches leave out (offsets, lengths, epochs) and tells batches from others that lay
/// in the same place before. Checksums are not computed: see [`check_sums`].
pub fn check_layout(
    bytes: &[u8],
    base_offset: i64,
    last_offset: i64,
    leader_epoch: i32,
) -> Result<(), (usize, StoredBatchError)> {
    let (mut position, mut next) = (0, base_offset);
    while position < bytes.len() {
        let at = |error| (position, error);
        let header = parse_header(&bytes[position..]).map_err(at)?;
        if header.size_in_bytes() > bytes.len() - position {
            return Err(at(StoredBatchError::Incomplete));
        }
        let fits = header.partition_leader_epoch == leader_epoch
            && header.base_offset >= next
            && (position > 0 || header.base_offset == base_offset);
        if !fits {
            return Err(at(StoredBatchError::Misplaced));
        }
        next = header.next_offset();
        position += header.size_in_bytes();
    }
    if last_offset.checked_add(1) == Some(next) {
        Ok(())
    } else {
        Err((position, StoredBatchError::Misplaced))
    }
}

/// Compares the checksums of all batches in `bytes`. An error comes with its position.
pub fn check_sums(bytes: &[u8]) -> Result<(), (usize, StoredBatchError)> {
    let mut position = 0;
    while position < bytes.len() {
        position += parse_whole(&bytes[position..]).map_err(|error| (position, error))?.size_in_bytes();
    }
    Ok(())
}

/// Writes the base offset and the leader epoch into the batch at the start of `batch`.
pub fn stamp(batch: &mut [u8], base_offset: i64, leader_epoch: i32) {
    records::patch_base_offset(batch, base_offset);
    records::patch_leader_epoch(batch, leader_epoch);
}

/// CRC32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(crc).expect("the algorithm has 32 bits")
}

/// Whole batches at the start of some bytes, each with its position; ends before the first that is cut off or broken.
#[derive(Debug)]
pub struct WholeBatches<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> WholeBatches<'a> {
    /// Batches of `bytes` from its start.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }
}

impl Iterator for WholeBatches<'_> {
    type Item = (usize, BatchHeader);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.bytes[self.position..];
        let header = parse_header(rest).ok().filter(|header| header.size_in_bytes() <= rest.len())?;
        let position = self.position;
        self.position += header.size_in_bytes();
        Some((position, header))
    }
}

/// Batches for tests.
#[cfg(test)]
pub(crate) mod samples {
    use bytes::Bytes;
    use millrace_protocol::records::{BatchBuilder, Compression, NewRecord};

    /// A batch as a producer sends it, with one record for each timestamp.
    pub(crate) fn batch_at(timestamps: &[i64], value: &[u8]) -> Bytes {
        producer_batch((-1, -1, -1), timestamps, value)
    }

    /// A batch of an idempotent producer: id, epoch, base sequence.
    pub(crate) fn producer_batch(producer: (i64, i16, i32), timestamps: &[i64], value: &[u8]) -> Bytes {
        let mut builder = BatchBuilder::new(Compression::None).producer(producer.0, producer.1, producer.2);
        for timestamp in timestamps {
            builder.push(NewRecord { timestamp: *timestamp, value: Some(value), ..NewRecord::default() });
        }
        builder.build()
    }

    /// A batch of records with a key, and a value or none, all with the timestamp 1,000.
    pub(crate) fn keyed_batch(
        codec: Compression,
        producer: (i64, i16, i32),
        records: &[(&[u8], Option<&[u8]>)],
    ) -> Bytes {
        let mut builder = BatchBuilder::new(codec).producer(producer.0, producer.1, producer.2);
        for (key, value) in records {
            builder.push(NewRecord {
                timestamp: 1_000,
                key: Some(key),
                value: *value,
                ..NewRecord::default()
            });
        }
        builder.build()
    }

    /// A batch of `records` records that each hold `value`.
    pub(crate) fn batch(records: usize, value: &[u8]) -> Bytes {
        batch_at(&vec![1_000; records], value)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::samples::batch;
    use super::*;

    #[test]
    fn stamping_offset_and_epoch_keeps_the_checksum_p3() {
        let mut batch = batch(3, b"value").to_vec();
        stamp(&mut batch, 41, 7);
        let header = parse_whole(&batch).unwrap();
        assert_eq!((header.base_offset, header.last_offset(), header.partition_leader_epoch), (41, 43, 7));
    }

    #[test]
    fn a_flipped_byte_fails_the_checksum() {
        let mut batch = batch(1, b"value").to_vec();
        *batch.last_mut().unwrap() ^= 1;
        assert_eq!(parse_whole(&batch), Err(StoredBatchError::Checksum));
    }

    #[test]
    fn any_flipped_byte_of_stored_batches_is_found_by_layout_or_checksum() {
        let mut stored = Vec::new();
        for base_offset in [10, 12, 14] {
            let mut batch = batch(2, b"value").to_vec();
            stamp(&mut batch, base_offset, 7);
            stored.extend(batch);
        }
        let check = |bytes: &[u8]| check_layout(bytes, 10, 15, 7).and_then(|()| check_sums(bytes));
        assert_eq!(check(&stored), Ok(()));
        for at in 0..stored.len() {
            for flip in [1, 0x80, 0xff] {
                let mut flipped = stored.clone();
                flipped[at] ^= flip;
                assert!(check(&flipped).is_err(), "byte {at} ^ {flip:#x}");
            }
        }
    }

    #[test]
    fn batches_of_another_place_are_not_taken_for_those_of_this() {
        let mut stored = batch(2, b"value").to_vec();
        stamp(&mut stored, 10, 7);
        assert_eq!(check_layout(&stored, 10, 11, 7), Ok(()));
        for (base, last, epoch) in [(9, 11, 7), (10, 12, 7), (10, 11, 8), (10, 10, 7)] {
            assert!(check_layout(&stored, base, last, epoch).is_err(), "{base}..={last} of {epoch}");
        }
        assert!(check_layout(&[], 10, 11, 7).is_err());
        assert!(check_layout(&[], 10, i64::MAX, 7).is_err());
        assert!(check_layout(&[0; 500], 10, 11, 7).is_err());
    }

    #[test]
    fn any_cut_is_an_error_not_a_panic() {
        let batch = batch(2, b"value");
        for length in 0..batch.len() {
            assert_eq!(parse_whole(&batch[..length]), Err(StoredBatchError::Incomplete), "{length} bytes");
        }
    }

    #[test]
    fn offsets_that_overflow_are_refused() {
        let mut batch = batch(2, b"value").to_vec();
        stamp(&mut batch, i64::MAX, 0);
        assert_eq!(parse_header(&batch), Err(StoredBatchError::Offsets));
    }
}
