//! Unchanged Kafka clients against real broker processes: one broker, and a fleet of three.
//!
//! `make test-clients` installs the clients and says where they are.
#![expect(clippy::tests_outside_test_module, reason = "this is a test crate")]
#![allow(clippy::unwrap_used, reason = "tests may panic")]

#[path = "../support/mod.rs"]
mod support;

mod broken_disk;
mod compaction;
mod deleted_records;
mod full_volume;
mod internal_topics;
mod java;
mod kafka;
mod kcat;
mod nearest_replica;
mod python;
mod run;
mod topic_settings;
