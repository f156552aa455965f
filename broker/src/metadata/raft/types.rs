//! What the Raft group is about, for openraft.

use std::fmt;

openraft::declare_raft_types!(
    /// The metadata quorum. At most one leader per term, so that a term says which leader decided something.
    pub(super) TypeConfig:
        D = Command,
        R = Applied,
        NodeId = u64,
        Node = Node,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

pub(super) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(super) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(super) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(super) type EntryPayload = openraft::alias::EntryPayloadOf<TypeConfig>;
pub(super) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(super) type Membership = openraft::Membership<u64, Node>;
pub(super) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
/// A snapshot as it is stored and sent: see [`super::codec`].
pub(super) type SnapshotData = bytes::Bytes;
pub(super) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// A member's address: `host:port` of its internal listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) address: String,
}

/// What the controller wants the quorum to agree on.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Command {
    /// Term of the leader whose image the records fit.
    pub(super) decided_in_term: u64,
    /// Encoded list of records.
    pub(super) records: Vec<u8>,
}

impl fmt::Debug for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "command(term {}, {} bytes)", self.decided_in_term, self.records.len())
    }
}

/// What came of a committed entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// It is part of the image.
    Done,
    /// It was decided in an earlier term, and ignored.
    Stale,
}
