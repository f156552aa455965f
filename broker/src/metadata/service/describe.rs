//! The state of the metadata quorum, as only its leader knows it (KIP-595, KIP-853).

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::time::Instant;
use uuid::Uuid;

use super::calls::reply;
use super::{Shared, members};
use crate::fleet::{Failure, Method, PeerAddress};
use crate::metadata::ControllerError;
use crate::metadata::image::{BrokerId, MetadataImage, NO_LEADER};
use crate::metadata::raft::{QuorumProgress, decode, encode};
use crate::schema::internal as wire;

/// Pause before the leader is looked for again.
const RETRY: Duration = Duration::from_millis(100);

const NEVER: i64 = -1;

/// The quorum in Kafka's terms: replicas are brokers with the directory that holds their log, and offsets are
/// positions of the Raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuorumDescription {
    /// Broker that leads, or [`NO_LEADER`] if it has not registered yet.
    pub leader_id: BrokerId,
    /// Raft term.
    pub term: u64,
    /// Offset behind the last committed entry.
    pub high_watermark: i64,
    /// Who votes, the leader included.
    pub voters: Vec<ReplicaDescription>,
    /// Who follows the log.
    pub observers: Vec<ReplicaDescription>,
}

/// One member of the quorum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaDescription {
    /// Broker, or [`NO_LEADER`] for a node whose broker has never registered.
    pub broker_id: BrokerId,
    /// Uuid of its volume; nil if the broker has never registered.
    pub volume_uuid: Uuid,
    /// `host:port` of its internal listener.
    pub address: String,
    /// Offset behind the last entry that it is known to have; -1 if none is.
    pub log_end_offset: i64,
    /// Milliseconds since 1970 at which the leader sent the last message that it answered; -1 for never.
    pub last_fetch_ms: i64,
    /// Milliseconds since 1970 at which it last was seen to have the whole log; -1 for never by this leader.
    pub last_caught_up_ms: i64,
}

impl Shared {
    /// Asks the leader, wherever it is.
    pub(in crate::metadata) async fn describe_quorum(
        &self,
        timeout: Duration,
    ) -> Result<QuorumDescription, ControllerError> {
        let deadline = Instant::now() + timeout;
        let mut message = "no leader is known".to_owned();
        loop {
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                return Err(ControllerError::Unavailable { message });
            }
            match self.describe_once(remaining).await {
                Ok(answer) => {
                    let addresses = self.node.status().members;
                    return Ok(description(&answer, &self.node.image(), &addresses));
                }
                Err(reason) => message = reason,
            }
            let mut status = self.node.watch_status();
            status.mark_unchanged();
            // Whichever comes first: a change, or the next attempt.
            let _ = tokio::time::timeout(RETRY.min(remaining), status.changed()).await;
        }
    }

    async fn describe_once(&self, timeout: Duration) -> Result<wire::DescribeQuorumAnswer, String> {
        let status = self.node.status();
        let answer = match status.leader_address() {
            _ if status.is_leader() => self.own_progress().await,
            Some((leader, address)) => {
                let peer = PeerAddress { address: address.to_owned(), node_id: Some(leader) };
                let body = encode(&wire::DescribeQuorumCall::default()).map_err(|error| error.to_string())?;
                let answer = self.client.call(&peer, Method::DescribeQuorum, body, timeout).await;
                decode(answer.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?
            }
            None => return Err("no leader is known".to_owned()),
        };
        if answer.leads { Ok(answer) } else { Err("leadership is changing".to_owned()) }
    }

    pub(super) async fn answer_describe_quorum(&self) -> Result<Bytes, Failure> {
        reply(&self.own_progress().await)
    }

    /// What this node knows while it leads. A majority confirms that it does: one that is cut off goes on believing it, and
    /// would tell of a quorum that has long had another leader.
    async fn own_progress(&self) -> wire::DescribeQuorumAnswer {
        let Ok(term) = self.node.barrier().await else { return wire::DescribeQuorumAnswer::default() };
        members::note_caught_up(self);
        match self.node.progress().filter(|progress| progress.term == term) {
            Some(progress) => to_wire(&progress, &self.caught_up.lock(), SystemTime::now()),
            None => wire::DescribeQuorumAnswer::default(),
        }
    }
}

fn to_wire(
    progress: &QuorumProgress,
    caught_up: &BTreeMap<u64, SystemTime>,
    now: SystemTime,
) -> wire::DescribeQuorumAnswer {
    let member = |member: &crate::metadata::raft::MemberProgress| wire::describe_quorum_answer::MemberState {
        node_id: member.node_id.cast_signed(),
        voter: member.voter,
        log_end_offset: behind(member.matched_index, -1),
        last_fetch_ms: millis(member.silent_for.and_then(|silent| now.checked_sub(silent))),
        last_caught_up_ms: millis(caught_up.get(&member.node_id).copied()),
        ..Default::default()
    };
    wire::DescribeQuorumAnswer {
        leads: true,
        leader_node_id: progress.leader.cast_signed(),
        term: progress.term.cast_signed(),
        high_watermark: behind(progress.committed_index, 0),
        members: progress.members.iter().map(member).collect(),
        ..Default::default()
    }
}

/// Offset behind the entry at `index`.
fn behind(index: Option<u64>, none: i64) -> i64 {
    index.map_or(none, |index| i64::try_from(index).unwrap_or(i64::MAX).saturating_add(1))
}

fn millis(time: Option<SystemTime>) -> i64 {
    let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(NEVER, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn description(
    answer: &wire::DescribeQuorumAnswer,
    image: &MetadataImage,
    addresses: &BTreeMap<u64, String>,
) -> QuorumDescription {
    let identity = |node_id: u64| {
        let registered = image.broker_of_node(node_id).map(|broker| (broker.broker_id, broker.volume_uuid));
        let retired = image.retired_nodes.get(&node_id).map(|node| (node.broker_id, node.volume_uuid));
        registered.or(retired).unwrap_or((NO_LEADER, Uuid::nil()))
    };
    let replicas = |voter: bool| {
        let members = answer.members.iter().filter(move |member| member.voter == voter);
        let mut replicas: Vec<ReplicaDescription> = members
            .map(|member| {
                let node_id = member.node_id.cast_unsigned();
                let (broker_id, volume_uuid) = identity(node_id);
                ReplicaDescription {
                    broker_id,
                    volume_uuid,
                    address: addresses.get(&node_id).cloned().unwrap_or_default(),
                    log_end_offset: member.log_end_offset,
                    last_fetch_ms: member.last_fetch_ms,
                    last_caught_up_ms: member.last_caught_up_ms,
                }
            })
            .collect();
        replicas.sort_by_key(|replica| replica.broker_id);
        replicas
    };
    QuorumDescription {
        leader_id: identity(answer.leader_node_id.cast_unsigned()).0,
        term: answer.term.cast_unsigned(),
        high_watermark: answer.high_watermark,
        voters: replicas(true),
        observers: replicas(false),
    }
}
