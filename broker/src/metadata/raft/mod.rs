//! The metadata quorum's Raft group: the one place that names openraft.
//!
//! Everything around it sees [`RaftNode`]: propose records, know who leads, read the published image. The log, the
//! vote and the snapshot live in a RocksDB of their own (`log_store`, `keys`), apart from the record store, so
//! that heavy produce traffic never delays an election. What is stored and sent is our own versioned encoding
//! (`codec`), never that of openraft's types, so that a new release of it cannot make old disks unreadable.
//!
//! What openraft is relied on for: pre-vote (on), so that a node that was cut off does not raise the term; the lease,
//! by which voters refuse others while they hear of a leader; check-quorum, by which a leader that hears of no majority
//! refuses proposals when its lease is over, and falls silent now and then (`quorum_loss_probe_interval`); joint
//! consensus. What it lacks is a lease that ends with the leader's process: `succession` adds that. A leader that is
//! started anew does not take its leadership up again (`enable_leader_restore` is off), and stepping down without a
//! majority is left to the next leader's higher term: until then its proposals wait, unanswered.
//!
//! Invariants: vote and log are written by one thread in the order they were handed over, and nothing is
//! acknowledged before it is synced; the image never runs ahead of the log that it came from; an entry that was
//! decided in another term than it was logged in changes nothing (the leader that decided it saw another image).

mod codec;
mod disk;
mod keys;
mod log_store;
mod membership;
mod network;
mod node;
#[cfg(test)]
pub(crate) mod sim_disk;
mod state_machine;
mod status;
mod succession;
mod transfers;
mod types;
mod writer;

pub(crate) use codec::{CodecError, decode, encode, encode_in_pieces};
pub use membership::MembershipError;
pub use node::{BootstrapError, ProposeError, RaftNode, RaftOptions, RaftTimings, StartError};
pub use status::{MemberProgress, QuorumProgress, QuorumStatus};
pub use succession::{LeaderOfTerm, LogPosition};
