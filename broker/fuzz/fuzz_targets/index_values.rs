//! Any bytes as keys and values of the index, and as the state of producers that one of them holds.

#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_broker::replication::producer_state::ProducerStates;
use millrace_broker::storage::journal::fuzz;

fuzz_target!(|data: &[u8]| {
    fuzz::index_values(data);
    if let Ok(states) = ProducerStates::decode(data) {
        assert!(ProducerStates::decode(&states.encode()).is_ok());
    }
});
