//! The metadata quorum's Raft group: the one place that names openraft.
//!
//! Everything around it sees [`RaftNode`]: propose records, know who leads, read the published image. The log, the
//! vote and the snapshot live in a RocksDB of their own (`log_store`, `keys`), apart from the record store, so
//! that heavy produce traffic never delays an election. What is stored and sent is our own versioned encoding
//! (`codec`), never that of openraft's types, so that a new release of it cannot make old disks unreadable.
//!
//! Invariants: vote and log are written by one thread in the order they were handed over, and nothing is
//! acknowledged before it is synced; the image never runs ahead of the log that it came from; an entry that was
//! decided in another term than it was logged in changes nothing (the leader that decided it saw another image).

mod codec;
mod keys;
mod log_store;
mod network;
mod node;
mod state_machine;
mod types;
mod writer;

pub(super) use codec::{CodecError, decode, encode};
pub use node::{
    BootstrapError, MembershipError, ProposeError, QuorumStatus, RaftNode, RaftOptions, RaftTimings,
    StartError,
};
