//! Records that a client has deleted.

use tempfile::TempDir;

use crate::java::{outcome, tool};
use crate::kcat::kcat;
use crate::support::{Fleet, until};

const RECORDS: usize = 1_000;

/// Has the tool delete what lies below an offset of the one partition, and returns what it says.
fn delete_records(bootstrap: &str, offset: i64) -> String {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("offsets.json");
    let partition = format!(r#"{{"topic":"trim","partition":0,"offset":{offset}}}"#);
    std::fs::write(&path, format!(r#"{{"version":1,"partitions":[{partition}]}}"#)).unwrap();
    let arguments = ["--bootstrap-server", bootstrap, "--offset-json-file", path.to_str().unwrap()];
    // What it cannot delete it prints, and ends as if all was well.
    outcome("org.apache.kafka.tools.DeleteRecordsCommand", &arguments).unwrap()
}

/// Earliest offset, and what librdkafka reads from the beginning.
fn from_the_beginning(bootstrap: &str) -> (String, Vec<String>) {
    let earliest = kcat(bootstrap, &["-Q", "-t", "trim:0:-2"], "").trim().to_owned();
    let read = kcat(bootstrap, &["-t", "trim", "-C", "-e", "-q", "-o", "beginning"], "");
    (earliest, read.lines().map(str::to_owned).collect())
}

#[test]
fn the_delete_records_tool_moves_the_log_start_of_all_replicas_for_good() {
    let mut fleet = Fleet::start(3);
    let bootstrap = fleet.bootstrap_servers();
    let server = ["--bootstrap-server", &bootstrap];
    let create = ["--create", "--topic", "trim", "--replica-assignment", "0:1:2"];
    tool("org.apache.kafka.tools.TopicCommand", &[&server[..], &create].concat(), "");
    let lines: Vec<String> = (0..RECORDS).map(|number| format!("line-{number}")).collect();
    kcat(&bootstrap, &["-t", "trim", "-P", "-X", "acks=all"], &(lines.join("\n") + "\n"));

    let refused = delete_records(&bootstrap, 1_001);
    assert!(refused.contains("OffsetOutOfRangeException"), "beyond the high watermark: {refused}");
    assert_eq!(from_the_beginning(&bootstrap), ("trim [0] offset 0".to_owned(), lines.clone()));

    let deleted = delete_records(&bootstrap, 400);
    assert!(deleted.contains("low_watermark: 400"), "{deleted}");
    let rest = ("trim [0] offset 400".to_owned(), lines[400..].to_vec());
    assert_eq!(from_the_beginning(&bootstrap), rest);
    let again = delete_records(&bootstrap, 100);
    assert!(again.contains("low_watermark: 400"), "it never moves down: {again}");
    // A consumer whose offset is not there any more begins where its setting says.
    let consumer = "org.apache.kafka.tools.consumer.ConsoleConsumer";
    let from = ["--topic", "trim", "--partition", "0", "--offset", "earliest", "--max-messages", "600"];
    let read = tool(consumer, &[&server[..], &from].concat(), "");
    assert_eq!(read.lines().collect::<Vec<_>>(), lines[400..]);

    fleet.kill_together(0..3);
    (0..3).for_each(|number| fleet.restart(number));
    fleet.wait_until_in_service();
    assert_eq!(from_the_beginning(&bootstrap), rest, "after kill -9 of all");
    fleet.kill(0);
    until("another leader", || {
        let earliest = kcat(&fleet.address(1), &["-L", "-t", "trim"], "");
        (earliest.contains("leader 1") || earliest.contains("leader 2")).then_some(())
    });
    assert_eq!(from_the_beginning(&bootstrap), rest, "at the next leader");
    fleet.restart(0);
    fleet.wait_until_in_service();

    let deleted = delete_records(&bootstrap, -1);
    assert!(deleted.contains("low_watermark: 1000"), "{deleted}");
    kcat(&bootstrap, &["-t", "trim", "-P", "-X", "acks=all"], "next\n");
    assert_eq!(from_the_beginning(&bootstrap), ("trim [0] offset 1000".to_owned(), vec!["next".to_owned()]));
}
