//! The two brokers that are compared: how each is started on an empty folder.

pub mod kafka;
pub mod millrace;
mod ports;
mod quorum;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::children::{Child, Children};
use crate::load::Admin;
use ports::free_port;

pub use kafka::Kafka;
pub use millrace::Millrace;

/// Longest time for a broker to start, also with much to recover.
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// Any id will do: a cluster lives as long as one measurement.
const CLUSTER_ID: &str = "bWlsbHJhY2UtYmVuY2hfXw";

/// Time between two looks whether it is there.
const POLL: Duration = Duration::from_millis(5);

/// Which broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Ours.
    Millrace,
    /// Apache Kafka.
    Kafka,
}

impl Side {
    /// Both, in the order in which they take turns.
    pub const BOTH: [Self; 2] = [Self::Millrace, Self::Kafka];
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Millrace => "Millrace",
            Self::Kafka => "Kafka",
        })
    }
}

/// When an acknowledged record is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Before it is acknowledged.
    Fsync,
    /// When the operating system gets to it.
    Written,
    /// Each as it ships, with `min.insync.replicas=2`: ours before it is acknowledged, on every replica in sync;
    /// Kafka's when the operating system gets to it.
    Replicated,
}

/// What is needed to start either.
#[derive(Debug, Clone)]
pub struct Brokers {
    /// Ours.
    pub millrace: Millrace,
    /// Apache Kafka.
    pub kafka: Kafka,
    /// The core they run on.
    pub core: usize,
    /// The core that loads run on.
    pub load_core: usize,
    /// Where they are registered.
    pub children: Children,
}

impl Brokers {
    /// Topic settings that ask for a durability. Both brokers get all that they understand spelled out.
    pub fn topic_config(side: Side, durability: Durability) -> &'static [(&'static str, &'static str)] {
        match (side, durability) {
            (Side::Millrace, Durability::Fsync) => &[("log.durability", "fsync")],
            (Side::Millrace, Durability::Written) => &[("log.durability", "written")],
            (Side::Kafka, Durability::Fsync) => &[("flush.messages", "1")],
            (Side::Kafka, Durability::Written) => &[], // its default
            (Side::Millrace, Durability::Replicated) => {
                &[("log.durability", "fsync"), ("min.insync.replicas", "2")]
            }
            (Side::Kafka, Durability::Replicated) => &[("min.insync.replicas", "2")],
        }
    }

    /// Prepares an empty folder for `count` brokers, each with a folder in it; one has `folder` itself. They run on their
    /// core, or share that of the load too.
    ///
    /// # Errors
    /// Kafka's tool fails.
    pub fn format(
        &self,
        side: Side,
        folder: &Path,
        count: usize,
        on_all_cores: bool,
    ) -> Result<Vec<Formatted>> {
        let cores = if on_all_cores { vec![self.core, self.load_core] } else { vec![self.core] };
        let ports = (0..count).map(|_| Ports::free()).collect::<Result<Vec<_>>>()?;
        let one = |index: usize| {
            let folder = if count == 1 { folder.to_owned() } else { folder.join(format!("broker-{index}")) };
            std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            match side {
                Side::Kafka => self.kafka.format(self, &folder, index, &ports)?,
                Side::Millrace => self.millrace.format(&folder, index, &ports)?,
            }
            Ok(Formatted { side, folder, ports: ports[index], is_alone: count == 1, cores: cores.clone() })
        };
        (0..count).map(one).collect()
    }

    /// Starts brokers that were formatted together, for the first time, and waits until each knows all of them.
    ///
    /// # Errors
    /// One ends, or does not answer in three minutes.
    pub fn start(&self, formatted: &[Formatted]) -> Result<Vec<Broker>> {
        let started = Instant::now();
        let deadline = started + START_TIMEOUT;
        let mut fleet = formatted.iter().map(|it| self.spawn(it)).collect::<Result<Vec<_>>>()?;
        if formatted.len() > 1 && formatted.iter().all(|it| it.side == Side::Millrace) {
            let ports: Vec<_> = formatted.iter().map(|it| it.ports.internal).collect();
            let ensure_running = || fleet.iter_mut().try_for_each(|broker| broker.child.ensure_running());
            quorum::form(&ports, CLUSTER_ID, deadline, ensure_running)?;
        }
        for (broker, Formatted { side, .. }) in fleet.iter_mut().zip(formatted) {
            loop {
                let seen = known(broker.address);
                if seen.as_ref().is_ok_and(|known| *known >= formatted.len()) {
                    break;
                }
                broker.child.ensure_running().with_context(|| format!("{side} does not start"))?;
                let seconds = START_TIMEOUT.as_secs();
                ensure!(
                    Instant::now() < deadline,
                    "{side} is not ready after {seconds} s; brokers it knows: {seen:?}"
                );
                std::thread::sleep(POLL);
            }
            broker.start_time = started.elapsed();
        }
        Ok(fleet)
    }

    /// Starts a broker, without waiting.
    ///
    /// # Errors
    /// The program does not start.
    pub fn spawn(&self, formatted: &Formatted) -> Result<Broker> {
        let log = formatted.folder.join("output.log");
        let (program, arguments) = match formatted.side {
            Side::Millrace if formatted.is_alone => {
                self.millrace.dev_command(&formatted.folder, formatted.ports.client)
            }
            Side::Millrace => self.millrace.command(&formatted.folder),
            Side::Kafka => self.kafka.command(&formatted.folder),
        };
        let child = self.children.start(&formatted.cores, &program, &arguments, &log)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, formatted.ports.client));
        Ok(Broker { child, address, start_time: Duration::ZERO })
    }
}

/// A folder that a broker can start on, again and again.
#[derive(Debug)]
pub struct Formatted {
    side: Side,
    folder: PathBuf,
    ports: Ports,
    /// Whether it is a fleet of its own.
    is_alone: bool,
    /// Where it runs.
    cores: Vec<usize>,
}

/// Where a broker listens.
#[derive(Debug, Clone, Copy)]
struct Ports {
    client: u16,
    /// For other brokers (ours) or controllers (Kafka's).
    internal: u16,
    /// For probes; ours only.
    health: u16,
}

impl Ports {
    fn free() -> Result<Self> {
        Ok(Self { client: free_port()?, internal: free_port()?, health: free_port()? })
    }
}

/// A running broker; killed when dropped.
#[derive(Debug)]
pub struct Broker {
    /// Its process.
    pub child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// From the start of the program to the first answer.
    pub start_time: Duration,
}

/// How many brokers the one at `address` knows, itself included.
fn known(address: SocketAddr) -> Result<usize> {
    Ok(Admin::connect(address)?.layout(&[])?.brokers.len())
}
