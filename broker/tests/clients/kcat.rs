//! kcat, and librdkafka below it.

use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::run::succeed;
use crate::support::{Broker, Fleet};

pub(crate) fn kcat(bootstrap: &str, arguments: &[&str], input: &str) -> String {
    succeed(Command::new("timeout").args(["60", "kcat", "-b", bootstrap]).args(arguments), input)
}

fn numbered(count: usize) -> String {
    (0..count).map(|number| format!("record-{number}\n")).collect()
}

#[test]
fn reads_back_what_it_wrote_with_every_codec() {
    let data = TempDir::new().unwrap();
    let broker = Broker::dev(data.path());
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = format!("codec-{codec}");
        kcat(&broker.address, &["-t", &topic, "-P", "-z", codec, "-X", "acks=all"], &numbered(1000));
        let read = kcat(&broker.address, &["-t", &topic, "-C", "-e", "-q"], "");
        assert_eq!(read, numbered(1000), "{codec}");
    }
}

#[test]
fn acknowledged_records_survive_kill_9() {
    let data = TempDir::new().unwrap();
    let broker = Broker::dev(data.path());
    kcat(&broker.address, &["-t", "t", "-P", "-X", "acks=all"], &numbered(5000));
    broker.kill();
    let broker = Broker::dev(data.path());
    assert_eq!(kcat(&broker.address, &["-t", "t", "-C", "-e", "-q"], ""), numbered(5000));
}

#[test]
fn finds_offsets_by_timestamp() {
    let data = TempDir::new().unwrap();
    let broker = Broker::dev(data.path());
    kcat(&broker.address, &["-t", "t", "-P"], &numbered(10));
    let query = |timestamp: &str| kcat(&broker.address, &["-Q", "-t", &format!("t:0:{timestamp}")], "");
    assert_eq!(query("-1").trim(), "t [0] offset 10");
    assert_eq!(query("-2").trim(), "t [0] offset 0");
    assert_eq!(query("1000").trim(), "t [0] offset 0");
    assert_eq!(query("99999999999999").trim(), "t [0] offset -1");
}

#[test]
fn a_fleet_of_three_shows_three_brokers_and_keeps_records_across_a_kill() {
    let mut fleet = Fleet::start(3);
    let listing: Value = serde_json::from_str(&kcat(&fleet.address(1), &["-L", "-J"], "")).unwrap();
    assert_eq!(listing["brokers"].as_array().unwrap().len(), 3, "{listing}");
    let bootstrap = fleet.bootstrap_servers();
    kcat(&bootstrap, &["-t", "t", "-P", "-X", "acks=all"], &numbered(2000));
    for number in 0..3 {
        fleet.kill(number);
        fleet.restart(number);
        fleet.wait_until_in_service();
    }
    let read = kcat(&bootstrap, &["-t", "t", "-C", "-e", "-q"], "");
    assert_eq!(read.lines().count(), 2000);
}
