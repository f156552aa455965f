//! The load generator: one thread, prebuilt requests, the raw protocol, non-blocking sockets under epoll.
//!
//! It has to cost less than the broker it measures, so nothing is built or compressed while the load runs: requests are
//! slices of memory that exist, answers are decoded but their records are not looked at beyond the batch headers.
//! Errors in an answer end the load: a broker that refuses is not fast.
//!
//! - [`Load`] says what to do, [`Load::run`] does it and returns a [`Measured`].
//! - [`Schedule`](schedule::Schedule) decides when requests of an open loop are due.
//! - [`Admin`] creates topics and asks for offsets, one request at a time.

pub mod admin;
pub mod batch;
pub mod connection;
pub mod consumer;
pub mod engine;
pub mod producer;
pub mod schedule;
pub mod tally;

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

pub use admin::{Admin, NewTopic};
pub use engine::{Consume, Load, Measured, Pace};
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
    /// Connections. Partitions are dealt out to them, so that one connection alone writes to a partition, unless
    /// there are more connections than partitions.
    pub connections: usize,
    /// Requests on the way per connection when the load is as fast as it can be.
    pub in_flight: usize,
}

/// Where the records are.
#[derive(Debug, Clone)]
pub struct Target {
    /// The broker.
    pub address: SocketAddr,
    /// The topic, which exists.
    pub topic: String,
    /// Its partitions.
    pub partitions: u32,
    /// The broker's process, whose CPU time and memory are measured.
    pub pid: Option<u32>,
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
