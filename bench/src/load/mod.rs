//! The load generator: one thread, prebuilt requests, the raw protocol, non-blocking sockets under epoll.
//!
//! It has to cost less than the broker it measures, so nothing is built or compressed while the load runs: requests are
//! slices of memory that exist, answers are decoded but their records are not looked at beyond the batch headers.
//! Errors in an answer end the load: a broker that refuses is not fast.
//!
//! - [`Load`] says what to do, [`Load::run`] does it and returns a [`Measured`].
//! - [`Schedule`](schedule::Schedule) decides when requests of an open loop are due.
//! - [`Admin`] creates topics and asks for offsets, one request at a time; [`Layout`] is who leads and who is in sync.

pub mod admin;
pub mod batch;
pub mod connection;
pub mod consumer;
pub mod engine;
pub mod layout;
pub mod producer;
pub mod schedule;
pub mod tally;

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

pub use admin::{Admin, NewTopic, Replicas};
pub use engine::{Consume, Load, Measured, Pace, Signals};
pub use layout::Layout;
pub use tally::Throughput;

/// What the load generator calls itself.
const CLIENT_ID: &str = "millrace-bench";

/// Versions spoken: the newest that name topics instead of giving their ids, which every broker in use understands.
const PRODUCE_VERSION: i16 = 9;
const FETCH_VERSION: i16 = 12;

/// What one produce request holds, and how many are on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// Bytes of a record's value; there is no key.
    pub record_bytes: usize,
    /// Largest batch, header included; `None` is one record per batch. A request holds one batch.
    pub batch_bytes: Option<usize>,
    /// Connections, dealt out to the brokers. Partitions are dealt out to those of their leader, so that one connection
    /// alone writes to a partition, unless there are more connections than partitions.
    pub connections: usize,
    /// Requests on the way per connection when the load is as fast as it can be.
    pub in_flight: usize,
}

/// Where the records are.
#[derive(Debug, Clone)]
pub struct Target {
    /// The topic, which exists.
    pub topic: String,
    /// The leader of each of its partitions, in order.
    pub leaders: Vec<SocketAddr>,
    /// The brokers' processes, whose CPU time and memory are measured, added up.
    pub pids: Vec<u32>,
}

impl Target {
    /// A topic of which `address` leads all partitions.
    pub fn of_one(address: SocketAddr, topic: &str, partitions: u32, pid: Option<u32>) -> Self {
        let leaders = vec![address; partitions as usize];
        Self { topic: topic.to_owned(), leaders, pids: pid.into_iter().collect() }
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> u32 {
        u32::try_from(self.leaders.len()).unwrap_or(u32::MAX)
    }
}

/// When a phase ends: whichever comes first.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// After this time.
    pub time: Duration,
    /// After this many bytes of record batches, acknowledged or fetched. Keeps a fast broker from filling the disk.
    pub bytes: u64,
}

impl Limit {
    /// Nothing at all.
    pub const NONE: Self = Self { time: Duration::ZERO, bytes: 0 };
}
