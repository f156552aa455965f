//! The internal listener: what brokers and the operator say to each other.
//!
//! One port carries two protocols, told apart by the first bytes of a connection: calls between brokers
//! ([`frame`], [`client`]) and HTTP for the management API. Which calls there are is listed in [`Method`]; what they
//! mean is the business of the [`CallHandler`] that the listener is given.
//!
//! Invariants: both ends of a call connection have agreed on the cluster and on who they are before the first call
//! (`hello`); frames are bounded, and no length from the wire sizes an allocation; connections, calls in flight and
//! handshakes are bounded in number or time, so that a stranger or a stuck peer costs a fixed amount.

pub mod client;
pub mod frame;
mod hello;
pub mod listener;
mod net;
mod probe;
mod serve;

use bytes::Bytes;
use futures::future::BoxFuture;
use millrace_protocol::RecordBytes;
use uuid::Uuid;

pub use client::{CallError, FleetClient, PeerAddress};
pub use frame::{Failure, FailureKind, MAX_FRAME_BYTES};
pub use listener::{FleetListener, ListenError};
pub use probe::Probe;

/// Which end of connections this broker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalNode {
    /// The cluster; a peer of another one is refused.
    pub cluster_id: Uuid,
    /// Raft node id of this broker's volume.
    pub node_id: u64,
}

/// What one broker can ask of another. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Method {
    /// Raft: entries of the log, or a heartbeat.
    AppendEntries = 1,
    /// Raft: a candidate asks for a vote.
    Vote = 2,
    /// Raft: a node asks whether it would get a vote.
    PreVote = 3,
    /// Raft: a piece of a snapshot.
    InstallSnapshot = 4,
    /// Raft: the leader hands over.
    TransferLeader = 5,
    /// A request to the controller.
    Controller = 6,
    /// A broker is alive.
    Heartbeat = 7,
    /// A broker wants to follow the metadata log.
    Join = 8,
    /// A voter wants to stand for election at once, as the leader's process is gone.
    LeaderGone = 9,
    /// Asks the leader how far every member of the quorum is.
    DescribeQuorum = 10,
    /// A follower asks the leader of its partitions for records.
    ReplicaFetch = 11,
    /// Asks a leader how far the followers of partitions under reassignment are.
    ReplicaProgress = 12,
    /// Asks a broker how large the partitions are that it leads, and how long its clients wait.
    BrokerLoad = 13,
}

impl Method {
    /// The method with this number.
    pub fn from_code(code: u8) -> Option<Self> {
        const ALL: [Method; 13] = [
            Method::AppendEntries,
            Method::Vote,
            Method::PreVote,
            Method::InstallSnapshot,
            Method::TransferLeader,
            Method::Controller,
            Method::Heartbeat,
            Method::Join,
            Method::LeaderGone,
            Method::DescribeQuorum,
            Method::ReplicaFetch,
            Method::ReplicaProgress,
            Method::BrokerLoad,
        ];
        ALL.into_iter().find(|method| *method as u8 == code)
    }
}

/// Answers calls.
pub trait CallHandler: Send + Sync + 'static {
    /// Answers one call of the broker with Raft node id `peer`; large pieces of the answer are not copied. Dropped when
    /// the connection ends.
    fn handle(&self, peer: u64, method: Method, body: Bytes) -> BoxFuture<'_, Result<RecordBytes, Failure>>;
}
