//! Any bytes as the batches that a log has stored in one place.

#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_broker::storage::journal::fuzz;

fuzz_target!(|data: &[u8]| fuzz::stored_batches(data));
