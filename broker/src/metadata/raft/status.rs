//! The quorum as one member sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use tokio::sync::watch;

use super::node::{MetadataRaft, RaftNode};
use super::types::TypeConfig;

/// The quorum as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuorumStatus {
    /// This node.
    pub node_id: u64,
    /// Current term.
    pub term: u64,
    /// Leader of that term, once known.
    pub leader: Option<u64>,
    /// Voters; during a change those of both memberships.
    pub voters: BTreeSet<u64>,
    /// All members and their addresses, voters and learners.
    pub members: BTreeMap<u64, String>,
    /// Whether a change of voters is half done: both the old and the new ones must agree to everything.
    pub joint: bool,
}

impl QuorumStatus {
    /// Whether this node belongs to a formed quorum.
    pub fn is_member(&self) -> bool {
        self.members.contains_key(&self.node_id)
    }

    /// Whether this node leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.leader == Some(self.node_id)
    }

    /// Node id and address of the leader, if both are known.
    pub fn leader_address(&self) -> Option<(u64, &str)> {
        let leader = self.leader?;
        Some((leader, self.members.get(&leader)?.as_str()))
    }

    /// Members that do not vote.
    pub fn learners(&self) -> impl Iterator<Item = u64> + '_ {
        self.members.keys().copied().filter(|node_id| !self.voters.contains(node_id))
    }
}

/// How far one member is, as its leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberProgress {
    /// Which member.
    pub node_id: u64,
    /// Whether it votes.
    pub voter: bool,
    /// Last entry of its log that is known to agree with the leader's.
    pub matched_index: Option<u64>,
    /// Time since the leader sent the last message that it answered; `None` when it never did.
    pub silent_for: Option<Duration>,
}

/// How far all members are, as their leader knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuorumProgress {
    /// Term of the leader.
    pub term: u64,
    /// Its node id.
    pub leader: u64,
    /// Last entry of its log.
    pub last_index: Option<u64>,
    /// Last entry that is committed.
    pub committed_index: Option<u64>,
    /// All members, by node id.
    pub members: Vec<MemberProgress>,
}

impl RaftNode {
    /// How far the members are; `None` where this node does not lead.
    pub fn progress(&self) -> Option<QuorumProgress> {
        let term = self.leading_term()?;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (replication, heartbeat) = (metrics.replication.as_ref()?, metrics.heartbeat.as_ref()?);
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let member = |node_id: u64| {
            let own = node_id == self.node_id;
            let matched = replication.get(&node_id).and_then(|matched| matched.as_ref());
            let answered = heartbeat.get(&node_id).and_then(|answered| answered.as_ref());
            MemberProgress {
                node_id,
                voter: voters.contains(&node_id),
                matched_index: if own { metrics.last_log_index } else { matched.map(|log_id| log_id.index) },
                silent_for: if own { Some(Duration::ZERO) } else { answered.map(|at| at.elapsed()) },
            }
        };
        Some(QuorumProgress {
            term,
            leader: self.node_id,
            last_index: metrics.last_log_index,
            committed_index: metrics.cluster_committed.map(|log_id| log_id.index),
            members: membership.nodes().map(|(node_id, _)| member(*node_id)).collect(),
        })
    }
}

/// Republishes what changes about the quorum, in our own words, and notices when the member fails.
pub(super) fn watch_status(
    raft: &MetadataRaft,
    node_id: u64,
) -> (watch::Receiver<QuorumStatus>, watch::Receiver<Option<String>>) {
    let mut metrics = raft.server_metrics();
    let running = raft.metrics();
    let current = move |metrics: &mut openraft::alias::WatchReceiverOf<TypeConfig, ServerMetrics>| {
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        QuorumStatus {
            node_id,
            term: metrics.vote.leader_id.term,
            leader: metrics.current_leader,
            voters: membership.voter_ids().collect(),
            members: membership.nodes().map(|(id, node)| (*id, node.address.clone())).collect(),
            joint: membership.get_joint_config().len() > 1,
        }
    };
    let (status, statuses) = watch::channel(current(&mut metrics));
    let (failure, failures) = watch::channel(None);
    tokio::spawn(async move {
        while metrics.changed().await.is_ok() {
            let next = current(&mut metrics);
            status.send_if_modified(|last| {
                let changed = *last != next;
                if changed && last.leader != next.leader {
                    tracing::info!(
                        raft.term = next.term,
                        leader = next.leader,
                        "leader of the metadata quorum"
                    );
                }
                *last = next;
                changed
            });
        }
        let state = running.borrow_watched().running_state.clone();
        if let Some(reason) = why_ended(state) {
            tracing::error!(reason, "the metadata quorum member has failed");
            failure.send_replace(Some(reason));
        }
    });
    (statuses, failures)
}

/// Why a member has ended of which this is the last state; `None` if it was asked to.
fn why_ended(last: Result<(), Fatal<TypeConfig>>) -> Option<String> {
    match last {
        Err(Fatal::Stopped) => None,
        Err(fatal) => Some(fatal.to_string()),
        // Every other end is noted.
        Ok(()) => Some(Fatal::<TypeConfig>::Panicked.to_string()),
    }
}

type ServerMetrics = openraft::metrics::RaftServerMetrics<TypeConfig>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_ended_without_a_word_has_panicked() {
        assert_eq!(why_ended(Err(Fatal::Stopped)), None);
        assert_eq!(why_ended(Err(Fatal::Panicked)).as_deref(), Some("panicked"));
        assert_eq!(why_ended(Ok(())).as_deref(), Some("panicked"));
    }
}
