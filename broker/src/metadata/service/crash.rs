//! Notices within milliseconds that the process of another broker is gone.
//!
//! The signal is a connection that the other side ended, followed by a probe that its host refuses (see
//! `fleet::probe`). The controller then fences the broker; where it is the leader of the quorum that is gone, the
//! voters agree on who stands for election (`succession`). Everything that is not refused (silence, a process that is
//! stopped, a network that is broken) is left to the session timeout and to the election timeout.
//!
//! Whoever becomes controller probes every broker in service once: what happened while there was no controller, the
//! end of the one before included, was seen by nobody else.
//!
//! A fence names the registration that was current before the probe began. A process that is started anew has another
//! one by the time it is in service, so a late fence never hits it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::runtime::Work;
use super::{Shared, succession};
use crate::fleet::{PeerAddress, Probe};
use crate::metadata::controller::ControllerRequest;
use crate::metadata::image::BrokerId;
use crate::metadata::raft::LeaderOfTerm;

/// A host that is alive refuses in less than a millisecond nearby; after this, silence decides.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// The controller commits within this time, or is not the controller any more.
const FENCE_TIMEOUT: Duration = Duration::from_secs(5);

/// Suspicions that wait; as many as brokers can lose their connections at once.
pub(super) const MAX_SUSPICIONS: usize = 256;

/// What a node is suspected of having been when its connection ended.
#[derive(Clone, Debug)]
struct Suspect {
    peer: PeerAddress,
    node_id: u64,
    /// Registrations that it is in service with.
    registered: Vec<(BrokerId, i64)>,
    /// Set if it led the quorum.
    leader: Option<LeaderOfTerm>,
}

/// Runs until `cancel`. Probes under way are given up then.
pub(super) async fn run(shared: Arc<Shared>, mut suspicions: mpsc::Receiver<u64>, cancel: CancellationToken) {
    let mut losses = shared.client.losses();
    let mut office = shared.office.subscribe();
    // This node may have taken office before.
    office.mark_changed();
    let mut probes: JoinSet<u64> = JoinSet::new();
    let mut probed: HashSet<u64> = HashSet::new();
    loop {
        let suspected = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            Some(done) = probes.join_next() => {
                match done {
                    Ok(node_id) => _ = probed.remove(&node_id),
                    // Which one panicked is not known; probing a node twice does no harm.
                    Err(_) => probed.clear(),
                }
                continue;
            }
            Ok(()) = office.changed() => match *office.borrow_and_update() {
                Some(_) => others_in_service(&shared),
                None => continue,
            },
            lost = losses.recv() => match lost {
                Ok(peer) => peer.node_id.into_iter().collect(),
                Err(RecvError::Lagged(_)) => others_in_service(&shared),
                // The client lives as long as `shared`.
                Err(RecvError::Closed) => return,
            },
            Some(node_id) = suspicions.recv() => vec![node_id],
        };
        for node_id in suspected {
            let Some(suspect) = suspect(&shared, node_id) else { continue };
            if probed.insert(node_id) {
                let shared = Arc::clone(&shared);
                probes.spawn(async move {
                    investigate(&shared, suspect).await;
                    node_id
                });
            }
        }
    }
}

fn others_in_service(shared: &Shared) -> Vec<u64> {
    let image = shared.node.image();
    let nodes = image.live_brokers().map(|broker| broker.raft_node_id);
    nodes.filter(|node_id| *node_id != shared.local.node_id).collect()
}

/// Why anyone would care about the end of this node; `None` if nobody does.
fn suspect(shared: &Shared, node_id: u64) -> Option<Suspect> {
    let status = shared.node.status();
    let image = shared.node.image();
    let mut registered = Vec::new();
    let mut address = status.members.get(&node_id).cloned();
    if shared.office.borrow().is_some() {
        for broker in image.live_brokers().filter(|broker| broker.raft_node_id == node_id) {
            registered.push((broker.broker_id, broker.broker_epoch));
            address = Some(broker.address.clone());
        }
    }
    let leads = status.leader == Some(node_id) && node_id != status.node_id;
    let leader = leads.then_some(LeaderOfTerm { term: status.term, node_id });
    if registered.is_empty() && leader.is_none() {
        return None;
    }
    let peer = PeerAddress { address: address?, node_id: Some(node_id) };
    Some(Suspect { peer, node_id, registered, leader })
}

async fn investigate(shared: &Shared, suspect: Suspect) {
    let found = shared.client.probe(&suspect.peer, PROBE_TIMEOUT).await;
    tracing::debug!(node_id = suspect.node_id, ?found, "probed a node whose connection ended");
    if found != Probe::Gone {
        return;
    }
    if let Some(leader) = suspect.leader {
        succession::succeed(shared, leader).await;
    }
    for (broker_id, broker_epoch) in suspect.registered {
        tracing::warn!(broker_id, broker_epoch, "process of the broker is gone, taking it out of service");
        let request = ControllerRequest::SetFenced { broker_id, broker_epoch, fenced: true };
        // Nobody waits for the answer. If this node is not the controller any more, the next one probes anew.
        let (answer, _) = tokio::sync::oneshot::channel();
        let work = Work { request, deadline: Instant::now() + FENCE_TIMEOUT, answer };
        if shared.work.send(work).await.is_err() {
            return;
        }
    }
}
