//! confluent-kafka, kafka-python and aiokafka.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::run::{from_make, succeed};
use crate::support::{Broker, Fleet};

/// One of the scripts, which gets 90 seconds.
pub(crate) fn python(name: &str, bootstrap: &str) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/python").join(name);
    let mut command = Command::new("timeout");
    command.args(["90", &from_make("MILLRACE_CLIENTS_PYTHON")]).arg(path).arg(bootstrap);
    command
}

fn script(name: &str, bootstrap: &str) -> String {
    succeed(&mut python(name, bootstrap), "")
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
