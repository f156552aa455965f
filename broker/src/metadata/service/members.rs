//! Grows the quorum with the fleet: followers of the log become voters.
//!
//! One or two brokers have one voter, three and more have three. A follower is made a voter when it has all but the
//! newest entries and its broker is in service; one at a time, and only when enough of them are ready, as a quorum of
//! two is worse than one of one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::metadata::image::MetadataImage;
use crate::metadata::raft::QuorumStatus;

const INTERVAL: Duration = Duration::from_millis(500);

/// A follower that is no further behind than this catches up within a heartbeat or two.
const MAX_LAG: u64 = 100;

const WANTED_VOTERS: usize = 3;

/// Runs until `cancel`. A change under way then is finished or not by whoever leads next.
pub(super) async fn run(shared: Arc<Shared>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let status = shared.node.status();
        if !status.is_leader() || shared.sessions.lock().term().is_none() {
            continue;
        }
        let next = next_voter(&status, &shared.node.lags(), &shared.node.image());
        let Some(node_id) = next else { continue };
        let promoted = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            promoted = shared.node.promote(node_id) => promoted,
        };
        if let Err(error) = promoted {
            tracing::warn!(node_id, %error, "cannot make the node a voter of the metadata quorum yet");
        }
    }
}

/// The follower to make a voter now, if any.
fn next_voter(status: &QuorumStatus, lags: &BTreeMap<u64, u64>, image: &MetadataImage) -> Option<u64> {
    let missing = WANTED_VOTERS.checked_sub(status.voters.len()).filter(|missing| *missing > 0)?;
    if status.members.len() < WANTED_VOTERS {
        return None;
    }
    let in_service: BTreeSet<u64> = image.live_brokers().map(|broker| broker.raft_node_id).collect();
    let caught_up = |node_id: &u64| lags.get(node_id).is_some_and(|lag| *lag <= MAX_LAG);
    let ready: Vec<u64> =
        status.learners().filter(|node_id| in_service.contains(node_id) && caught_up(node_id)).collect();
    (ready.len() >= missing).then(|| ready[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::image::BrokerImage;
    use uuid::Uuid;

    fn status(voters: &[u64], members: &[u64]) -> QuorumStatus {
        QuorumStatus {
            node_id: 1,
            term: 1,
            leader: Some(1),
            voters: voters.iter().copied().collect(),
            members: members.iter().map(|id| (*id, format!("host-{id}:9093"))).collect(),
        }
    }

    fn live(nodes: &[u64]) -> MetadataImage {
        let mut image = MetadataImage::empty(Uuid::from_u128(1));
        for (broker_id, node_id) in (0..).zip(nodes) {
            let broker = BrokerImage {
                broker_id,
                broker_epoch: 1,
                volume_uuid: Uuid::from_u128(7),
                raft_node_id: *node_id,
                address: String::new(),
                endpoints: Vec::new(),
                rack: None,
                fenced: false,
                in_controlled_shutdown: false,
                version: String::new(),
            };
            image.brokers.insert(broker_id, Arc::new(broker));
        }
        image
    }

    #[test]
    fn two_brokers_have_one_voter() {
        let lags = BTreeMap::from([(2, 0)]);
        assert_eq!(next_voter(&status(&[1], &[1, 2]), &lags, &live(&[1, 2])), None);
    }

    #[test]
    fn three_brokers_get_three_voters_one_at_a_time() {
        let (lags, image) = (BTreeMap::from([(2, 0), (3, 5)]), live(&[1, 2, 3]));
        assert_eq!(next_voter(&status(&[1], &[1, 2, 3]), &lags, &image), Some(2));
        assert_eq!(next_voter(&status(&[1, 2], &[1, 2, 3]), &lags, &image), Some(3));
        assert_eq!(next_voter(&status(&[1, 2, 3], &[1, 2, 3]), &lags, &image), None);
        assert_eq!(next_voter(&status(&[1, 2, 3], &[1, 2, 3, 4]), &lags, &image), None);
    }

    #[test]
    fn nobody_is_promoted_until_enough_have_caught_up_and_are_in_service() {
        let wanted = status(&[1], &[1, 2, 3]);
        assert_eq!(next_voter(&wanted, &BTreeMap::from([(2, 0), (3, 5000)]), &live(&[1, 2, 3])), None);
        assert_eq!(next_voter(&wanted, &BTreeMap::from([(2, 0)]), &live(&[1, 2, 3])), None);
        assert_eq!(next_voter(&wanted, &BTreeMap::from([(2, 0), (3, 0)]), &live(&[1, 2])), None);
    }
}
