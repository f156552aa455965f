//! A disk that fails under a running broker: nothing more is acknowledged, the process ends and says why, and the next
//! one on a sound disk has everything that was acknowledged.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
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
use crate::support::{Broker, free_ports, http_text, try_ask, until};

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

    fn data_dir(&self) -> PathBuf {
        self.mount_point.path().join("data")
    }

    /// Always on another device: the one before may still be held by who copied this machine's mounts meanwhile.
    fn attach(&self) {
        let image = self.pool.path().join("image");
        let device = succeed(Command::new("losetup").args(["--find", "--show"]).arg(image), "");
        succeed(Command::new("mount").arg(device.trim()).arg(self.mount_point.path()), "");
        // Once nobody uses it any more.
        succeed(Command::new("losetup").args(["--detach", device.trim()]), "");
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

    /// Makes it sound again, without what was not synced; nobody uses it.
    fn repair(&self) {
        self.cut_off();
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

/// Whether a topic was made, for certain.
fn create_topic(address: &str, name: &str, durability: &str) -> bool {
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
    try_ask(address, 7, &request).is_ok_and(|answer| answer.topics[0].error_code == 0)
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

/// A broker on a disk of its own, with two topics named by their `log.durability` and 20 records.
struct Victim {
    broker: Broker,
    probes: u16,
    said: TempDir,
    disk: Disk,
}

impl Victim {
    const RECORDS: usize = 20;

    fn start() -> Option<Self> {
        let (disk, said) = (Disk::mount()?, TempDir::new().unwrap());
        let probes = free_ports(1)[0];
        let listener = format!("health.listener=127.0.0.1:{probes}");
        let stderr = File::create(said.path().join("stderr")).unwrap();
        let broker = Broker::dev_saying(&disk.data_dir(), &[&listener], stderr);
        let victim = Self { broker, probes, said, disk };
        for topic in ["fsync", "written"] {
            assert!(create_topic(victim.address(), topic, topic));
        }
        assert!((0..Self::RECORDS).all(|number| produce(victim.address(), "fsync", number)));
        assert_eq!(http_text(probes, "GET", "/readyz", None).unwrap().0, 200);
        Some(victim)
    }

    fn address(&self) -> &str {
        &self.broker.address
    }

    /// Waits until it has ended by itself, and starts another on the repaired disk. Returns what it said last.
    fn recover(self) -> (String, Broker, Disk) {
        until("the broker to be not ready, or gone", || {
            http_text(self.probes, "GET", "/readyz", None)
                .is_none_or(|(status, _)| status == 503)
                .then_some(())
        });
        assert_eq!(self.broker.wait().code(), Some(1));
        let said = fs::read_to_string(self.said.path().join("stderr")).unwrap();
        self.disk.repair();
        let next = Broker::dev(&self.disk.data_dir());
        (said.lines().last().unwrap_or_default().to_owned(), next, self.disk)
    }
}

/// Has the disk fail in some way while records of topic `written` are produced, and checks what becomes of those whose
/// topic has them synced. Returns what the broker said at its end.
fn fail_and_recover(written: &str, fail: fn(&Disk)) -> Option<String> {
    let victim = Victim::start()?;
    let mut acknowledged: Vec<usize> = (0..Victim::RECORDS).collect();
    fail(&victim.disk);
    let mut next = acknowledged.len();
    until("a record not to be acknowledged", || {
        let taken = produce(victim.address(), written, next);
        if taken && written == "fsync" {
            acknowledged.push(next);
        }
        next += 1;
        (!taken).then_some(())
    });
    for topic in ["fsync", "written"] {
        let taken = produce(victim.address(), topic, next);
        assert!(!taken, "a record of {topic} was acknowledged after a failure");
    }
    let (said, broker, _disk) = victim.recover();
    let found = stored(&broker.address, "fsync");
    assert!(found.starts_with(&acknowledged), "{found:?} has not all of {acknowledged:?}");
    // What was under way when the disk failed may be there or not.
    assert!(found.len() <= acknowledged.len() + 1, "{found:?}");
    for topic in ["fsync", "written"] {
        assert!(produce(&broker.address, topic, next));
        assert_eq!(stored(&broker.address, topic).last(), Some(&next));
    }
    assert!(broker.terminate().success());
    Some(said)
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

#[test]
fn a_broker_whose_metadata_cannot_be_written_ends_and_has_what_it_knew_when_they_can() {
    let Some(victim) = Victim::start() else { return };
    victim.disk.cut_off();
    assert!(!create_topic(victim.address(), "later", "fsync"), "made without a disk");
    let (said, broker, _disk) = victim.recover();
    assert!(said.starts_with("millrace-broker: metadata: "), "{said}");
    assert_eq!(stored(&broker.address, "fsync"), (0..Victim::RECORDS).collect::<Vec<_>>());
    until("metadata to change again", || create_topic(&broker.address, "last", "fsync").then_some(()));
    assert!(broker.terminate().success());
}
