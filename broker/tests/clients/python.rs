//! confluent-kafka, kafka-python and aiokafka.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::run::{from_make, succeed};
use crate::support::{Broker, Fleet};

fn script(name: &str, bootstrap: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/python").join(name);
    let python = from_make("MILLRACE_CLIENTS_PYTHON");
    succeed(Command::new("timeout").args(["90", &python]).arg(path).arg(bootstrap), "")
}

fn on_one_and_on_three(name: &str) {
    let data = TempDir::new().unwrap();
    let broker = Broker::dev(data.path());
    assert!(script(name, &broker.address).contains("ok"));
    drop(broker);
    let fleet = Fleet::start(3);
    assert!(script(name, &fleet.bootstrap_servers()).contains("ok"));
}

#[test]
fn confluent_kafka_creates_writes_reads_alters_and_deletes() {
    on_one_and_on_three("confluent.py");
}

#[test]
fn kafka_python_creates_writes_reads_alters_and_deletes() {
    on_one_and_on_three("kafka_python.py");
}

#[test]
fn aiokafka_writes_and_reads() {
    on_one_and_on_three("aio.py");
}
