//! Settings of topics, and what clients find of them.

use millrace_protocol::messages::FetchRequest;
use millrace_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use millrace_protocol::records;
use tempfile::TempDir;

use crate::java::tool;
use crate::kcat::kcat;
use crate::python::python;
use crate::run::succeed;
use crate::support::{Broker, ask};

fn script(broker: &Broker, arguments: &[&str]) {
    let said = succeed(python("topic_settings.py", &broker.address).args(arguments), "");
    assert!(said.ends_with("ok\n"), "{said}");
}

fn topics(broker: &Broker, arguments: &[&str]) {
    let server = ["--bootstrap-server", &broker.address];
    tool("org.apache.kafka.tools.TopicCommand", &[&server[..], arguments].concat(), "");
}

/// Has kafka-configs set this.
fn set(broker: &Broker, topic: &str, setting: &str) {
    let entity = ["--bootstrap-server", &broker.address, "--entity-type", "topics", "--entity-name", topic];
    let alter = ["--alter", "--add-config", setting];
    tool("kafka.admin.ConfigCommand", &[&entity[..], &alter].concat(), "");
}

#[test]
fn timestamps_are_of_the_clock_and_within_the_bounds_that_the_topic_says() {
    let data = TempDir::new().unwrap();
    let broker = Broker::dev(data.path());
    script(&broker, &["check"]);
}

#[test]
fn the_largest_batch_is_the_topics_and_changes_at_run_time() {
    let data = TempDir::new().unwrap();
    let broker = Broker::dev(data.path());
    topics(&broker, &["--create", "--topic", "sized", "--config", "max.message.bytes=2000"]);
    script(&broker, &["fits", "sized", "1500"]);
    script(&broker, &["refused", "sized", "2500"]);
    set(&broker, "sized", "max.message.bytes=3000000");
    script(&broker, &["fits", "sized", "2500000"]);
    set(&broker, "sized", "max.message.bytes=1000");
    script(&broker, &["refused", "sized", "1500"]);
}

/// Codecs of the batches that are stored, in order, without those that repeat the one before.
fn codecs(broker: &Broker, topic: &str) -> Vec<String> {
    let partition = FetchPartition { partition: 0, partition_max_bytes: 10_000_000, ..Default::default() };
    let topic = FetchTopic { topic: topic.into(), partitions: vec![partition], ..Default::default() };
    let request = FetchRequest { max_bytes: 10_000_000, topics: vec![topic], ..Default::default() };
    let mut answer = ask(&broker.address, 11, &request);
    let fetched = answer.responses.remove(0).partitions.remove(0);
    assert_eq!(fetched.error_code, 0);
    let batches = records::batches(fetched.records.unwrap_or_default().into_bytes());
    let codec = |batch: records::RecordBatch| batch.header().attributes.compression().unwrap();
    let mut found: Vec<String> = batches.map(|batch| format!("{:?}", codec(batch.unwrap()))).collect();
    found.dedup();
    found
}

#[test]
fn records_are_stored_in_the_codec_that_the_topic_says_whatever_they_come_in() {
    let data = TempDir::new().unwrap();
    let broker = Broker::dev(data.path());
    let lines: String = (0..500).map(|number| format!("line-{number}\n")).collect();
    let write = |topic: &str, codec: &str| {
        kcat(&broker.address, &["-t", topic, "-P", "-z", codec, "-X", "acks=all"], &lines);
    };
    for (stored, name) in [("gzip", "Gzip"), ("snappy", "Snappy"), ("lz4", "Lz4"), ("zstd", "Zstd")] {
        topics(&broker, &["--create", "--topic", stored, "--config", &format!("compression.type={stored}")]);
        write(stored, "none");
        write(stored, if stored == "lz4" { "zstd" } else { "lz4" });
        assert_eq!(codecs(&broker, stored), [name]);
        assert_eq!(kcat(&broker.address, &["-t", stored, "-C", "-e", "-q"], ""), lines.repeat(2), "{stored}");
    }
    topics(&broker, &["--create", "--topic", "changing"]);
    write("changing", "zstd");
    assert_eq!(codecs(&broker, "changing"), ["Zstd"], "as it came");
    set(&broker, "changing", "compression.type=uncompressed");
    write("changing", "zstd");
    set(&broker, "changing", "compression.type=gzip");
    write("changing", "zstd");
    assert_eq!(codecs(&broker, "changing"), ["Zstd", "None", "Gzip"]);
    assert_eq!(kcat(&broker.address, &["-t", "changing", "-C", "-e", "-q"], ""), lines.repeat(3));
}
