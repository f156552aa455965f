//! Any bytes as record batches: an error at worst, and never more output than allowed.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use millrace_protocol::records::{Compression, batches};

const LIMIT: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    for batch in batches(Bytes::copy_from_slice(data)).flatten() {
        let _ = batch.verify_crc();
        assert_eq!(batch.bytes().len(), batch.header().size_in_bytes());
        let Ok(body) = batch.decompress(LIMIT) else { continue };
        if batch.header().attributes.compression() != Ok(Compression::None) {
            assert!(body.bytes().len() <= LIMIT);
        }
        for record in body.records().flatten() {
            record.headers().for_each(drop);
        }
    }
});
