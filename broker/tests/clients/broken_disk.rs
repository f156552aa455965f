//! A disk that fails under a running broker: nothing more is acknowledged, the process ends and says why, and the next
//! one on a sound disk has everything that was acknowledged.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use millrace_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use millrace_protocol::messages::{CreateTopicsRequest, ProduceRequest};
use millrace_protocol::records::{BatchBuilder, Compression, NewRecord};
use tempfile::TempDir;

use crate::kcat::kcat;
use crate::run::succeed;
use crate::support::small::SmallVolume;
use crate::support::{Broker, ask, free_ports, http_text, try_ask, until};

/// A file system on a device that has less behind it than it says, as of a thinly provisioned volume.
struct Disk {
    mount_point: TempDir,
    pool: SmallVolume,
}

impl Disk {
    /// `None` where nothing may be mounted.
    fn mount() -> Option<Self> {
        let pool = SmallVolume::mount(160)?;
        if !Path::new("/dev/loop-control").exists() {
            eprintln!("left out: this machine has no loop devices");
            return None;
        }
        let disk = Self { mount_point: TempDir::new().unwrap(), pool };
        succeed(Command::new("truncate").args(["-s", "512M"]).arg(disk.pool.path().join("image")), "");
        succeed(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.pool.path().join("image")), "");
        disk.attach();
        Some(disk)
    }

    fn attach(&self) {
        let mut mount = Command::new("mount");
        succeed(
            mount.args(["-o", "loop"]).arg(self.pool.path().join("image")).arg(self.mount_point.path()),
            "",
        );
    }

    /// From now on what is written to places that were never written before does not reach the device.
    fn exhaust(&self) {
        self.pool.fill();
    }

    /// From now on nothing can be read or written, and what was not synced is lost (FS_IOC_SHUTDOWN with
    /// `EXT4_GOING_FLAGS_NOLOGFLUSH`).
    fn cut_off(&self) {
        let script = "import fcntl, os, struct, sys; \
            fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";
        succeed(Command::new("python3").args(["-c", script]).arg(self.mount_point.path()), "");
    }

    /// Makes it sound again; nobody uses it.
    fn repair(&self) {
        succeed(Command::new("umount").arg(self.mount_point.path()), "");
        self.pool.make_room();
        self.attach();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: what a failed test has left open must not keep it.
        let unmounted = Command::new("umount").arg("-l").arg(self.mount_point.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn create_topic(address: &str, name: &str, durability: &str) {
    let config = CreatableTopicConfig {
        name: "log.durability".into(),
        value: Some(durability.into()),
        ..Default::default()
    };
    let topic = CreatableTopic {
        name: name.into(),
        num_partitions: 1,
        replication_factor: 1,
        configs: vec![config],
        ..Default::default()
    };
    let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() };
    assert_eq!(ask(address, 7, &request).topics[0].error_code, 0);
}

/// Whether a record was acknowledged; its value is a line that begins with the number.
fn produce(address: &str, topic: &str, number: usize) -> bool {
    let value = format!("{number} {}", "x".repeat(5_000));
    let record = NewRecord { timestamp: 1, value: Some(value.as_bytes()), ..Default::default() };
    let records = BatchBuilder::new(Compression::None).append(record).build();
    let data = PartitionProduceData { index: 0, records: Some(records.into()), ..Default::default() };
    let topic = TopicProduceData { name: topic.into(), partition_data: vec![data], ..Default::default() };
    let request =
        ProduceRequest { acks: -1, timeout_ms: 10_000, topic_data: vec![topic], ..Default::default() };
    // A connection that ends without an answer has acknowledged nothing either.
    let Ok(answer) = try_ask(address, 9, &request) else { return false };
    let error = ErrorCode::from_code(answer.responses[0].partition_responses[0].error_code);
    match error.unwrap() {
        ErrorCode::None => true,
        ErrorCode::KafkaStorageError | ErrorCode::NotLeaderOrFollower => false,
        other => panic!("{other:?}"),
    }
}

fn stored(address: &str, topic: &str) -> Vec<usize> {
    let read = kcat(address, &["-t", topic, "-C", "-e", "-q"], "");
    read.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect()
}

/// Has the disk fail in some way while records of topic `written` are produced, and checks what becomes of those whose
/// topic has them synced. Returns what the broker said at its end.
fn fail_and_recover(written: &str, fail: fn(&Disk)) -> Option<String> {
    let disk = Disk::mount()?;
    let data = disk.mount_point.path().join("data");
    let said = TempDir::new().unwrap();
    let log = said.path().join("stderr");
    let probes = free_ports(1)[0];
    let listener = format!("health.listener=127.0.0.1:{probes}");
    let broker = Broker::dev_saying(&data, &[&listener], File::create(&log).unwrap());
    let address = broker.address.clone();
    create_topic(&address, "fsync", "fsync");
    create_topic(&address, "written", "written");
    let mut acknowledged: Vec<usize> = (0..20).collect();
    assert!(acknowledged.iter().all(|number| produce(&address, "fsync", *number)));
    assert_eq!(http_text(probes, "GET", "/readyz", None).unwrap().0, 200);

    fail(&disk);
    let mut next = acknowledged.len();
    until("a record not to be acknowledged", || {
        let taken = produce(&address, written, next);
        if taken && written == "fsync" {
            acknowledged.push(next);
        }
        next += 1;
        (!taken).then_some(())
    });
    for topic in ["fsync", "written"] {
        assert!(!produce(&address, topic, next), "a record of {topic} was acknowledged after a failure");
    }
    until("the broker to be not ready, or gone", || {
        http_text(probes, "GET", "/readyz", None).is_none_or(|(status, _)| status == 503).then_some(())
    });
    assert_eq!(broker.wait().code(), Some(1));

    disk.repair();
    let broker = Broker::dev(&data);
    let found = stored(&broker.address, "fsync");
    assert!(found.starts_with(&acknowledged), "{found:?} has not all of {acknowledged:?}");
    // What was under way when the disk failed may be there or not.
    assert!(found.len() <= acknowledged.len() + 1, "{found:?}");
    for topic in ["fsync", "written"] {
        assert!(produce(&broker.address, topic, next));
        assert_eq!(stored(&broker.address, topic).last(), Some(&next));
    }
    assert!(broker.terminate().success());
    let said = fs::read_to_string(log).unwrap();
    Some(said.lines().last().unwrap_or_default().to_owned())
}

#[test]
fn a_broker_whose_disk_is_cut_off_ends_and_has_what_it_acknowledged_when_it_is_back() {
    let Some(said) = fail_and_recover("fsync", Disk::cut_off) else { return };
    assert!(said.starts_with("millrace-broker: storage: "), "{said}");
}

#[test]
fn a_broker_whose_writes_fail_ends_and_has_what_it_acknowledged_when_they_do_not() {
    let Some(said) = fail_and_recover("fsync", Disk::exhaust) else { return };
    assert!(said.starts_with("millrace-broker: storage: "), "{said}");
}

#[test]
fn a_broker_whose_syncs_fail_ends_and_has_what_it_acknowledged_when_they_do_not() {
    let Some(said) = fail_and_recover("written", Disk::exhaust) else { return };
    assert!(said.starts_with("millrace-broker: storage: ") && said.contains("sync"), "{said}");
}
