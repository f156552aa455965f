//! Any bytes as what a producer sends, with a checksum that fits: refused, or fit to be stored.

#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use millrace_broker::replication::TopicSettings;
use millrace_broker::replication::validate::validate;
use millrace_broker::storage::batch::parse_whole;

/// Where a batch has its length and its checksum, and where the bytes begin that the checksum covers.
const LENGTH: std::ops::Range<usize> = 8..12;
const CRC: std::ops::Range<usize> = 17..21;

fuzz_target!(|data: &[u8]| {
    let settings = TopicSettings::default();
    let _ = validate(Bytes::copy_from_slice(data), &settings, 9, 1_000);
    if data.len() < 61 {
        return;
    }
    let mut bytes = BytesMut::from(data);
    let length = u32::try_from(data.len() - LENGTH.end).unwrap_or_default();
    bytes[LENGTH].copy_from_slice(&length.to_be_bytes());
    bytes[..8].fill(0);
    bytes[16] = 2;
    let crc = millrace_broker::storage::batch::crc32c(&bytes[CRC.end..]);
    bytes[CRC].copy_from_slice(&crc.to_be_bytes());
    if let Ok(batch) = validate(bytes.freeze(), &settings, 9, 1_000) {
        let header = parse_whole(&batch.bytes).expect("fit to be stored");
        assert_eq!(header, batch.header);
        assert_eq!(header.size_in_bytes(), batch.bytes.len());
    }
});
