//! The two brokers that are compared: how each is started on an empty folder.

pub mod kafka;
pub mod millrace;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::children::{Child, Children};
use crate::load::Admin;

pub use kafka::Kafka;
pub use millrace::Millrace;

/// Longest time for a broker to start, also with much to recover.
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// Time between two looks whether it is there.
const POLL: Duration = Duration::from_millis(5);

/// Which broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
        }
    }

    /// Prepares an empty folder for a broker.
    ///
    /// # Errors
    /// Kafka's tool fails.
    pub fn format(&self, side: Side, folder: &Path) -> Result<Formatted> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let port = free_port()?;
        if side == Side::Kafka {
            self.kafka.format(self, folder, port)?;
        }
        Ok(Formatted { side, folder: folder.to_owned(), port })
    }

    /// Starts a broker and waits until it answers.
    ///
    /// # Errors
    /// It ends, or does not answer in three minutes.
    pub fn start(&self, formatted: &Formatted) -> Result<Broker> {
        let started = Instant::now();
        let mut broker = self.spawn(formatted)?;
        let deadline = started + START_TIMEOUT;
        while !Admin::connect(broker.address).and_then(|mut admin| admin.is_ready()).unwrap_or(false) {
            broker.child.ensure_running().with_context(|| format!("{} does not start", formatted.side))?;
            ensure!(
                Instant::now() < deadline,
                "{} does not answer after {} s",
                formatted.side,
                START_TIMEOUT.as_secs()
            );
            std::thread::sleep(POLL);
        }
        broker.start_time = started.elapsed();
        Ok(broker)
    }

    /// Starts a broker, without waiting.
    ///
    /// # Errors
    /// The program does not start.
    pub fn spawn(&self, formatted: &Formatted) -> Result<Broker> {
        let log = formatted.folder.join("output.log");
        let (program, arguments) = match formatted.side {
            Side::Millrace => self.millrace.command(&formatted.folder, formatted.port),
            Side::Kafka => self.kafka.command(&formatted.folder),
        };
        let child = self.children.start(self.core, &program, &arguments, &log)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, formatted.port));
        Ok(Broker { child, address, start_time: Duration::ZERO })
    }
}

/// A folder that a broker can start on, again and again.
#[derive(Debug)]
pub struct Formatted {
    side: Side,
    folder: PathBuf,
    port: u16,
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

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}
