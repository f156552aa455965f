//! Compacted topics as clients find them, here and at Apache Kafka.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::kafka::Kafka;
use crate::run::{from_make, succeed};
use crate::support::Broker;

const SETTINGS: &[&str] = &["log.cleaner.backoff.ms=200"];

/// The age of the first record.
const AGE: Duration = Duration::from_secs(2 * 3_600);

fn script(bootstrap: &str, phase: &str, start_ms: u128) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/python/compaction.py");
    let python = from_make("MILLRACE_CLIENTS_PYTHON");
    let start_ms = start_ms.to_string();
    succeed(Command::new("timeout").args(["180", &python]).arg(path).args([bootstrap, phase, &start_ms]), "")
}

#[test]
fn what_is_left_of_a_compacted_topic_is_what_kafka_leaves_in_every_codec() {
    let kafka_data = TempDir::new().unwrap();
    let kafka = Kafka::start(kafka_data.path(), SETTINGS);
    let data = TempDir::new().unwrap();
    let broker = Broker::dev_with(data.path(), SETTINGS);
    let start_ms = (SystemTime::now() - AGE).duration_since(UNIX_EPOCH).unwrap().as_millis();
    let read = |address: &str| script(address, "read", start_ms);
    let left = |address: &str| {
        for phase in ["write", "expire"] {
            assert!(script(address, phase, start_ms).ends_with("ok\n"));
        }
        read(address)
    };
    let ours = left(&broker.address);
    assert!(ours.lines().count() > 6 * 20, "{ours}");
    assert_eq!(ours, left(&kafka.address));
    assert!(broker.terminate().success());
    let broker = Broker::dev_with(data.path(), SETTINGS);
    assert_eq!(read(&broker.address), ours, "after a restart");
    broker.kill();
    let broker = Broker::dev_with(data.path(), SETTINGS);
    assert_eq!(read(&broker.address), ours, "after a crash");
}
