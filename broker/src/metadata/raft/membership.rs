//! Changes of who belongs to the quorum and who votes.

use std::collections::{BTreeMap, BTreeSet};

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};

use super::node::RaftNode;
use super::types::Node;

/// The membership was not changed.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// Only the leader can.
    #[error("this node does not lead the metadata quorum")]
    NotLeader,
    /// Another change is under way, or the state does not allow this one; try again.
    #[error("{0}")]
    NotNow(String),
}

impl RaftNode {
    /// Adds a member that follows the log, or tells the others that it has moved.
    pub async fn add_member(&self, node_id: u64, address: String) -> Result<(), MembershipError> {
        let known = self.status().members.get(&node_id).cloned();
        let nodes = BTreeMap::from([(node_id, Node { address: address.clone() })]);
        let change = match known {
            Some(known) if known == address => return Ok(()),
            // The node has proven by its volume's id that it is the same one, so no second node can answer to it.
            Some(_) => ChangeMembers::SetNodes(nodes),
            None => ChangeMembers::AddNodes(nodes),
        };
        self.change_members(change).await?;
        tracing::info!(node_id, address, "node follows the metadata quorum");
        Ok(())
    }

    /// Makes exactly these members the voters, by joint consensus: both the old and the new ones agree to the change
    /// before it holds. Who does not vote any more follows the log.
    ///
    /// A leader that loses its office half-way leaves [`QuorumStatus::joint`](super::QuorumStatus::joint) behind; see
    /// [`finish_change`](Self::finish_change).
    pub async fn set_voters(&self, voters: BTreeSet<u64>) -> Result<(), MembershipError> {
        self.change_members(ChangeMembers::ReplaceAllVoters(voters.clone())).await?;
        tracing::info!(?voters, "changed the voters of the metadata quorum");
        Ok(())
    }

    /// Completes a change of voters that an earlier leader began.
    pub async fn finish_change(&self) -> Result<(), MembershipError> {
        self.change_members(ChangeMembers::AddVoterIds(BTreeSet::new())).await?;
        tracing::info!("completed a change of voters that an earlier leader began");
        Ok(())
    }

    /// Removes a member that does not vote; it hears nothing more.
    pub async fn remove_member(&self, node_id: u64) -> Result<(), MembershipError> {
        self.change_members(ChangeMembers::RemoveNodes(BTreeSet::from([node_id]))).await?;
        tracing::info!(node_id, "removed a node from the metadata quorum");
        Ok(())
    }

    async fn change_members(&self, change: ChangeMembers<u64, Node>) -> Result<(), MembershipError> {
        match self.raft.change_membership(change, true).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(MembershipError::NotLeader),
            Err(error) => Err(MembershipError::NotNow(error.to_string())),
        }
    }

    /// How many entries each member is behind this leader; empty where this node does not lead.
    pub fn lags(&self) -> BTreeMap<u64, u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.map_or(0, |index| index + 1);
        let matched = metrics.replication.iter().flatten();
        let lag = |matched: Option<u64>| last.saturating_sub(matched.map_or(0, |index| index + 1));
        matched
            .map(|(node_id, matched)| (*node_id, lag(matched.as_ref().map(|log_id| log_id.index))))
            .collect()
    }
}
