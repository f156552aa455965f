//! What becomes of votes when the leader's process is known to be gone.
//!
//! A follower gives no vote while the lease of its leader runs, which is as long as an election may take to begin; that
//! keeps a node that was cut off from unseating a healthy leader. openraft honours the lease in every case but one: a
//! vote request that is marked as a hand-over, as the leader itself has agreed to it then. A leader that is gone agrees
//! as well: a follower that knows this *renounces* it, and from then on takes vote requests as hand-overs. Each voter
//! does so on its own evidence only, and a sign of life from the leader ends it.
//!
//! Safety does not depend on the evidence being right: whoever wins has the votes of a majority and all committed
//! entries, and nothing here is answered by lease (see [`RaftNode::barrier`]). Wrong evidence costs an election.

use super::node::RaftNode;
use super::types::Vote;

/// A leader and its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderOfTerm {
    /// Term.
    pub term: u64,
    /// Raft node id.
    pub node_id: u64,
}

/// Where a log ends, in the order in which candidates compare: of two, the greater one has more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    /// Term of the last entry; 0 for an empty log.
    pub term: u64,
    /// Number of entries ever: the index of the last one, plus one.
    pub entries: u64,
}

impl RaftNode {
    /// Where this node's log ends.
    pub fn log_position(&self) -> LogPosition {
        self.log_end.last().map_or_else(LogPosition::default, |last| LogPosition {
            term: super::codec::term(&last),
            entries: last.index + 1,
        })
    }

    /// Index of the first entry of this node's log: entries before it came as a snapshot, or were put into one.
    #[cfg(test)]
    pub(in crate::metadata) fn first_log_index(&self) -> u64 {
        self.log_end.first_index()
    }

    /// From now on gives votes although the lease of this leader may run.
    pub fn renounce(&self, leader: LeaderOfTerm) {
        *self.renounced.lock() = Some(leader);
    }

    /// Whether this node has renounced that leader, and has not heard of it since.
    pub fn has_renounced(&self, leader: LeaderOfTerm) -> bool {
        *self.renounced.lock() == Some(leader)
    }

    /// Stands for election at once, in a new term, whatever the lease of the leader says. Returns at once.
    ///
    /// Ask the other voters first: one that loses has disturbed everyone for nothing.
    pub async fn stand_for_election(&self) {
        if let Err(error) = self.raft.trigger().elect(false).await {
            tracing::warn!(%error, "cannot stand for election");
        }
    }

    /// A message from a leader takes back that it was renounced.
    pub(super) fn recognise(&self, vote: &Vote) {
        let leader = leader_of(vote);
        self.renounced.lock().take_if(|renounced| Some(*renounced) == leader);
    }

    /// Whether the leader that this node follows is one that it has renounced.
    pub(super) async fn has_renounced_its_leader(&self) -> bool {
        let Some(renounced) = *self.renounced.lock() else { return false };
        // The vote itself, not the status, which is a little late: the lease of the next leader must hold.
        let leader = self.raft.with_raft_state(|state| leader_of(state.vote_ref())).await;
        leader.is_ok_and(|leader| leader == Some(renounced))
    }
}

/// Whom a majority has elected, as far as the vote tells.
fn leader_of(vote: &Vote) -> Option<LeaderOfTerm> {
    let elected = vote.is_committed();
    elected.then_some(LeaderOfTerm { term: vote.leader_id.term, node_id: vote.leader_id.voted_for })
}
