//! Any bytes as a frame of the journal.

#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_broker::storage::journal::fuzz;

fuzz_target!(|data: &[u8]| fuzz::frame(data));
