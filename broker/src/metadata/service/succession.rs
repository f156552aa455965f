//! Elects another leader at once when the leader's process is gone.
//!
//! Waiting for election timeouts is for failures that nobody can be sure of. Here the voters ask each other first, as
//! a pre-vote does: a voter stands only if a majority has found by itself that the leader is gone, and if nobody among
//! them has more of the log. So the term does not rise for nothing, and two voters that notice at the same moment do
//! not split the votes. Whatever goes wrong here ends with an ordinary election.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;

use super::Shared;
use super::crash::PROBE_TIMEOUT;
use crate::fleet::{Failure, FailureKind, Method, PeerAddress, Probe};
use crate::metadata::raft::{LeaderOfTerm, LogPosition, decode, encode};
use crate::schema::internal as wire;

/// Time for a voter to probe the leader and answer.
const ASK_TIMEOUT: Duration = Duration::from_millis(1500);

/// Rounds of asking, and the pause between them. Together they are about as long as an election timeout, after which
/// there is an ordinary election.
const ROUNDS: usize = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// What a voter would stand with. Of two, the greater one stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    log: LogPosition,
    /// Breaks ties.
    node_id: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Stand,
    /// Another one should.
    Yield,
    /// Too few agree that the leader is gone.
    Wait,
}

/// Whether this voter stands, given the claims of all that agree.
fn decide(voters: &BTreeSet<u64>, own: Claim, agreeing: &BTreeMap<u64, LogPosition>) -> Decision {
    let others = agreeing.iter().filter(|(node_id, _)| voters.contains(node_id) && **node_id != own.node_id);
    let claims: Vec<Claim> = others.map(|(node_id, log)| Claim { log: *log, node_id: *node_id }).collect();
    if claims.len() < voters.len() / 2 {
        Decision::Wait
    } else if claims.iter().any(|claim| *claim > own) {
        Decision::Yield
    } else {
        Decision::Stand
    }
}

/// Renounces `leader` and has the voters elect another one. Resolves when this node stands or follows another leader,
/// or leaves it to an ordinary election.
pub(super) async fn succeed(shared: &Shared, leader: LeaderOfTerm) {
    shared.node.renounce(leader);
    tracing::warn!(
        node_id = leader.node_id,
        raft.term = leader.term,
        "process of the quorum's leader is gone"
    );
    let mut changes = shared.node.watch_status();
    for _ in 0..ROUNDS {
        let status = shared.node.status();
        let current = status.leader == Some(leader.node_id) && status.term == leader.term;
        // Heard of again, succeeded by another, or not for this node to decide.
        if !current || !shared.node.has_renounced(leader) || !status.voters.contains(&status.node_id) {
            return;
        }
        let others = status.voters.iter().filter(|id| **id != leader.node_id && **id != status.node_id);
        let asked = others.filter_map(|id| Some((*id, status.members.get(id)?)));
        let answers = join_all(asked.map(|(id, address)| ask(shared, id, address, leader))).await;
        let agreeing: BTreeMap<u64, LogPosition> = answers.into_iter().flatten().collect();
        let own = Claim { log: shared.node.log_position(), node_id: status.node_id };
        let decision = decide(&status.voters, own, &agreeing);
        tracing::debug!(?decision, ?own, ?agreeing, "asked the voters who succeeds the leader");
        if decision == Decision::Stand {
            tracing::info!(raft.term = leader.term, "standing for election");
            shared.node.stand_for_election().await;
            return;
        }
        changes.mark_unchanged();
        // Closed only when the node stops.
        let _ = tokio::time::timeout(PAUSE, changes.changed()).await;
    }
}

/// Asks one voter; its position if it agrees.
async fn ask(
    shared: &Shared,
    node_id: u64,
    address: &str,
    leader: LeaderOfTerm,
) -> Option<(u64, LogPosition)> {
    let peer = PeerAddress { address: address.to_owned(), node_id: Some(node_id) };
    let call = wire::LeaderGoneCall {
        leader_term: leader.term.cast_signed(),
        leader_node_id: leader.node_id.cast_signed(),
        ..Default::default()
    };
    let body = encode(&call).ok()?;
    let answer = shared.client.call(&peer, Method::LeaderGone, body, ASK_TIMEOUT).await;
    let answer: wire::LeaderGoneAnswer = match answer {
        Ok(answer) => decode(answer).ok()?,
        Err(error) => {
            tracing::debug!(%error, "a voter does not say whether the leader is gone");
            return None;
        }
    };
    let log = LogPosition { term: answer.last_term.cast_unsigned(), entries: answer.entries.cast_unsigned() };
    answer.gone.then_some((node_id, log))
}

/// Answers [`ask`]: looks for itself.
pub(super) async fn answer(shared: &Shared, body: Bytes) -> Result<Bytes, Failure> {
    let malformed =
        |error: crate::metadata::raft::CodecError| Failure::new(FailureKind::Malformed, error.to_string());
    let call: wire::LeaderGoneCall = decode(body).map_err(malformed)?;
    let leader =
        LeaderOfTerm { term: call.leader_term.cast_unsigned(), node_id: call.leader_node_id.cast_unsigned() };
    let gone = agrees(shared, leader).await;
    let log = shared.node.log_position();
    let answer = wire::LeaderGoneAnswer {
        gone,
        last_term: log.term.cast_signed(),
        entries: log.entries.cast_signed(),
        ..Default::default()
    };
    encode(&answer).map_err(|error| Failure::new(FailureKind::NotNow, error.to_string()))
}

async fn agrees(shared: &Shared, leader: LeaderOfTerm) -> bool {
    // Also when this node has gone on from there: one that stands for election, and has not written its vote yet, must
    // go on being the better one for those who ask meanwhile.
    if shared.node.has_renounced(leader) {
        return true;
    }
    let status = shared.node.status();
    if status.leader != Some(leader.node_id) || status.term != leader.term || status.is_leader() {
        return false;
    }
    let Some((node_id, address)) = status.leader_address() else { return false };
    let peer = PeerAddress { address: address.to_owned(), node_id: Some(node_id) };
    if shared.client.probe(&peer, PROBE_TIMEOUT).await != Probe::Gone {
        return false;
    }
    shared.node.renounce(leader);
    // This node may be the one that should stand, and have had no connection to the leader to lose. A full queue means
    // that it is about to find out by itself.
    let _ = shared.suspicions.try_send(node_id);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(node_id: u64, term: u64, entries: u64) -> Claim {
        Claim { log: LogPosition { term, entries }, node_id }
    }

    fn run(voters: &[u64], own: Claim, others: &[Claim]) -> Decision {
        let agreeing = others.iter().map(|claim| (claim.node_id, claim.log)).collect();
        decide(&voters.iter().copied().collect(), own, &agreeing)
    }

    #[test]
    fn nobody_stands_unless_a_majority_finds_the_leader_gone() {
        assert_eq!(run(&[1, 2, 3], claim(1, 1, 9), &[]), Decision::Wait);
        assert_eq!(run(&[1, 2, 3, 4, 5], claim(1, 1, 9), &[claim(2, 1, 9)]), Decision::Wait);
        assert_eq!(run(&[1, 2], claim(1, 1, 9), &[]), Decision::Wait, "half is not a majority");
        assert_eq!(run(&[1, 2, 3], claim(1, 1, 9), &[claim(7, 1, 1)]), Decision::Wait, "7 does not vote");
    }

    #[test]
    fn the_one_with_the_most_of_the_log_stands() {
        let (behind, ahead) = (claim(3, 1, 9), claim(2, 1, 10));
        assert_eq!(run(&[1, 2, 3], ahead, &[behind]), Decision::Stand);
        assert_eq!(run(&[1, 2, 3], behind, &[ahead]), Decision::Yield);
        let newer = claim(2, 2, 1);
        assert_eq!(run(&[1, 2, 3], claim(3, 1, 99), &[newer]), Decision::Yield, "a newer term is more");
    }

    #[test]
    fn of_equals_exactly_one_stands() {
        let claims: Vec<Claim> = (2..=5).map(|node_id| claim(node_id, 1, 9)).collect();
        let standing = claims.iter().filter(|own| {
            let others: Vec<Claim> = claims.iter().filter(|other| other != own).copied().collect();
            run(&[1, 2, 3, 4, 5], **own, &others) == Decision::Stand
        });
        assert_eq!(standing.count(), 1);
    }
}
