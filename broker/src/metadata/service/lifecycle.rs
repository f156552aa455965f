//! Keeps this broker part of the cluster: join the quorum, register, send heartbeats, leave.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::calls::{Heard, Joined, ask_to_join, send_heartbeat};
use super::sessions::Heartbeat;
use crate::metadata::ControllerError;
use crate::metadata::controller::{ControllerRequest, ControllerResponse, RegisterBroker};
use crate::metadata::image::{BrokerId, MetadataImage, PartitionImage};

/// Pause between rounds of asking to join, and after a failed registration.
const RETRY: Duration = Duration::from_millis(500);
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after a heartbeat that nobody heard. Well below any session timeout.
const HEARTBEAT_RETRY: Duration = Duration::from_millis(100);

/// Longest wait of a broker that stops for a replica in service that is not in sync yet, as one is that was itself restarted
/// just before: without it the partition has no leader when the broker is gone.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(10);

/// Kept of the time for a controlled shutdown, so that the controller can be told its end.
const FENCE_TIME: Duration = Duration::from_secs(2);

/// A voter that is asked to lead does so within an election's time, or not at all.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// The same trouble is logged this often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// This broker's place in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerState {
    /// Granted id; stays known when the broker is out of service.
    pub broker_id: Option<BrokerId>,
    /// Epoch of the registration, while there is one.
    pub broker_epoch: Option<i64>,
    /// Whether the controller gives this broker leadership, and clients see it.
    pub in_service: bool,
    /// The controller's latest word that this broker is in service. `None` while it says the contrary, or nothing yet.
    pub confirmation: Option<Confirmation>,
    /// What keeps it from being in service.
    pub problem: Option<String>,
}

/// What the controller said to a heartbeat of a broker in service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// When it ends unless it is said again: a session after the heartbeat was sent.
    pub until: Instant,
    /// Log index of the metadata that the controller had. A broker that has not applied as much may not know who was elected
    /// in its place.
    pub log_index: u64,
}

impl BrokerState {
    /// Whether the controller has said within a session that this broker is in service, and the broker, which has applied
    /// the metadata up to `applied_index`, has all that the controller had then. One that was cut off goes on taking itself
    /// for a leader until it has the metadata. No proof that it leads: it may have been replaced since.
    pub fn is_confirmed(&self, now: Instant, applied_index: u64) -> bool {
        self.confirmation
            .is_some_and(|confirmation| now < confirmation.until && applied_index >= confirmation.log_index)
    }
}

/// Runs until `cancel`.
pub(super) async fn run(shared: Arc<Shared>, cancel: CancellationToken) {
    tokio::select! {
        biased;
        () = cancel.cancelled() => {}
        () = follow_service(&shared) => {}
        () = live(&shared) => {}
    }
}

async fn live(shared: &Shared) {
    let mut complaint = Complaint::default();
    join(shared, &mut complaint).await;
    loop {
        let epoch = register(shared, &mut complaint).await;
        complaint.clear(shared);
        send_heartbeats(shared, epoch, &mut complaint).await;
    }
}

/// Asks brokers that may know the quorum until this node is a member under its current address, and a leader is known:
/// a node that was removed while it was away takes itself for a member, and nobody tells it otherwise.
async fn join(shared: &Shared, complaint: &mut Complaint) {
    loop {
        let status = shared.node.status();
        let known = status.members.get(&shared.local.node_id) == Some(&shared.options.address);
        if known && status.leader.is_some() {
            return;
        }
        if status.is_leader()
            && shared.node.add_member(status.node_id, shared.options.address.clone()).await.is_ok()
        {
            return;
        }
        // The leader first: only it can add a member. Then whoever may know the leader.
        let leader = status.leader_address().map(|(_, address)| address.to_owned());
        let candidates: Vec<String> =
            leader.into_iter().chain(shared.options.bootstrap_servers.clone()).collect();
        let mut reason = "no bootstrap server is configured".to_owned();
        for candidate in candidates.iter().filter(|address| **address != shared.options.address) {
            let outcome = match ask_to_join(shared, candidate, JOIN_TIMEOUT).await {
                Ok(Joined::AskLeader(leader)) => ask_to_join(shared, &leader, JOIN_TIMEOUT).await,
                outcome => outcome,
            };
            match outcome {
                Ok(Joined::Member) => {
                    tracing::info!(asked = candidate, "the metadata quorum knows this node");
                    break;
                }
                Ok(Joined::AskLeader(_)) => "leadership is changing".clone_into(&mut reason),
                Ok(Joined::NotNow(why)) => reason = format!("{candidate}: {why}"),
                Err(error) => reason = error,
            }
        }
        complaint.say(shared, "waiting for the metadata quorum", &reason);
        let mut changes = shared.node.watch_status();
        changes.mark_unchanged();
        let _ = tokio::time::timeout(RETRY, changes.changed()).await;
    }
}

/// Registers until it works; returns the broker's epoch. The image contains everything up to the registration then.
async fn register(shared: &Shared, complaint: &mut Complaint) -> i64 {
    loop {
        let request = ControllerRequest::RegisterBroker(RegisterBroker {
            wanted_id: shared.volume.broker_id().or(shared.options.broker.wanted_id),
            volume_uuid: shared.volume.volume_uuid(),
            raft_node_id: shared.local.node_id,
            address: shared.options.address.clone(),
            endpoints: shared.options.broker.endpoints.clone(),
            rack: shared.options.broker.rack.clone(),
            version: shared.options.broker.version.clone(),
            min_insync_replicas: shared.options.broker.min_insync_replicas,
            lost_unsynced: shared.volume.lost_unsynced(),
        });
        let problem = match shared.ask(request, REGISTER_TIMEOUT).await {
            Ok(answer) => match answer.response {
                ControllerResponse::Registered(registered) => {
                    let epoch = i64::try_from(answer.log_index).unwrap_or(i64::MAX);
                    match registered_as(shared, registered.broker_id, epoch).await {
                        Ok(()) => return epoch,
                        Err(problem) => problem,
                    }
                }
                other => Shared::refused(&other).unwrap_or_else(|| "unexpected answer".to_owned()),
            },
            Err(error) => error.to_string(),
        };
        complaint.say(shared, "cannot register with the controller", &problem);
        tokio::time::sleep(RETRY).await;
    }
}

async fn registered_as(shared: &Shared, broker_id: BrokerId, broker_epoch: i64) -> Result<(), String> {
    let volume = Arc::clone(&shared.volume);
    // On the volume before anyone relies on it: after a crash the broker must ask for the same id.
    // A loss that was reported is reported once: the image contains the registration.
    let store = move || volume.set_broker_id(broker_id).and_then(|()| volume.set_loss_reported());
    let stored = crate::blocking::spawn_blocking(store).await;
    match stored {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(error.to_string()),
        Err(error) => return Err(error.to_string()),
    }
    tracing::info!(broker_id, broker_epoch, "registered with the controller");
    shared.broker.send_modify(|state| {
        state.broker_id = Some(broker_id);
        state.broker_epoch = Some(broker_epoch);
    });
    Ok(())
}

/// Sends heartbeats until the controller wants a new registration.
async fn send_heartbeats(shared: &Shared, broker_epoch: i64, complaint: &mut Complaint) {
    let Some(broker_id) = shared.volume.broker_id() else { return };
    let mut status = shared.node.watch_status();
    let mut stopping = shared.stopping.subscribe();
    let mut heard = Instant::now();
    loop {
        let heartbeat = Heartbeat {
            broker_id,
            broker_epoch,
            applied_index: shared.node.image().log_index,
            ready: !*stopping.borrow_and_update(),
        };
        status.mark_unchanged();
        let sent = Instant::now();
        let pause = match send_heartbeat(shared, heartbeat, shared.options.heartbeat_interval).await {
            Heard::Known { fenced, log_index } => {
                heard = Instant::now();
                let until = sent + shared.options.session_timeout;
                // Nobody waits for it.
                shared.broker.send_if_modified(|state| {
                    state.confirmation = (!fenced).then_some(Confirmation { until, log_index });
                    false
                });
                complaint.clear(shared);
                // A fenced broker that is ready is being brought into service: soon ask whether it has been.
                if fenced && heartbeat.ready { HEARTBEAT_RETRY } else { shared.options.heartbeat_interval }
            }
            Heard::RegisterAgain => {
                tracing::warn!(
                    broker_id,
                    broker_epoch,
                    "the controller does not know this registration any more"
                );
                shared.broker.send_modify(|state| state.broker_epoch = None);
                return;
            }
            Heard::NotController => {
                if heard.elapsed() > shared.options.session_timeout {
                    complaint.say(
                        shared,
                        "the controller does not hear this broker",
                        "no leader can be reached",
                    );
                }
                HEARTBEAT_RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = status.changed() => {}
            _ = stopping.changed() => {}
        }
    }
}

/// Tells others whether this broker is in service, as its own image has it.
async fn follow_service(shared: &Shared) {
    let mut images = shared.node.images();
    let mut broker = shared.broker.subscribe();
    loop {
        let state = broker.borrow_and_update().clone();
        let image = Arc::clone(&images.borrow_and_update());
        let registered = state.broker_id.and_then(|broker_id| image.brokers.get(&broker_id));
        let in_service = registered
            .is_some_and(|broker| Some(broker.broker_epoch) == state.broker_epoch && !broker.fenced);
        shared.broker.send_if_modified(|state| {
            let changed = state.in_service != in_service;
            state.in_service = in_service;
            changed
        });
        let open = tokio::select! {
            changed = images.changed() => changed.is_ok(),
            changed = broker.changed() => changed.is_ok(),
        };
        if !open {
            return;
        }
    }
}

/// See [`Member::controlled_shutdown`](super::Member::controlled_shutdown).
pub(super) async fn controlled_shutdown(shared: &Shared, timeout: Duration) -> Result<(), ControllerError> {
    shared.stopping.send_replace(true);
    let deadline = Instant::now() + timeout;
    let state = shared.broker.borrow().clone();
    if let (Some(broker_id), Some(broker_epoch)) = (state.broker_id, state.broker_epoch) {
        let request = ControllerRequest::ControlledShutdown { broker_id, broker_epoch };
        match shared.ask(request, timeout).await?.response {
            ControllerResponse::StillLeading { partitions } if partitions > 0 => {
                let deadline = (Instant::now() + SUCCESSOR_TIMEOUT).min(deadline - FENCE_TIME.min(timeout));
                wait_for_successors(shared, broker_id, deadline).await;
            }
            other => {
                if let Some(reason) = Shared::refused(&other) {
                    tracing::warn!(broker_id, reason, "the controller refused the controlled shutdown");
                }
            }
        }
        let request = ControllerRequest::SetFenced { broker_id, broker_epoch, fenced: true };
        let remaining = deadline.saturating_duration_since(Instant::now());
        shared.ask(request, remaining).await?;
        tracing::info!(broker_id, "this broker is out of service");
    }
    hand_over(shared).await;
    Ok(())
}

/// Waits until no replica that could lead instead of `broker_id` is missing from the in-sync replicas. This broker leads on
/// meanwhile; the controller moves the leader in the entry that takes such a replica in.
async fn wait_for_successors(shared: &Shared, broker_id: BrokerId, deadline: Instant) {
    let mut images = shared.node.images();
    let nobody_comes = images.wait_for(|image| !may_be_succeeded(image, broker_id));
    if tokio::time::timeout_at(deadline, nobody_comes).await.is_err() {
        tracing::warn!(broker_id, "replicas that could lead instead have not come in sync in time");
    }
    let partitions = led_by(&shared.node.image(), broker_id).count();
    if partitions > 0 {
        tracing::warn!(broker_id, partitions, "no other broker can lead these partitions, they go offline");
    }
}

/// Whether there is a broker in service that could lead a partition of this one if its replica was in sync.
fn may_be_succeeded(image: &MetadataImage, broker_id: BrokerId) -> bool {
    let may_lead = |id: BrokerId| image.brokers.get(&id).is_some_and(|broker| broker.may_lead());
    led_by(image, broker_id).any(|state| state.replica_ids().any(|id| id != broker_id && may_lead(id)))
}

fn led_by(image: &MetadataImage, broker_id: BrokerId) -> impl Iterator<Item = &PartitionImage> {
    let partitions = image.topics.values().flat_map(|topic| &topic.partitions);
    partitions.filter(move |state| state.leader == broker_id)
}

/// If this node leads the quorum, lets the voter that is least behind take over.
async fn hand_over(shared: &Shared) {
    let status = shared.node.status();
    if !status.is_leader() {
        return;
    }
    let lags = shared.node.lags();
    let others = status.voters.iter().copied().filter(|node_id| *node_id != status.node_id);
    let Some(successor) =
        others.filter(|node_id| lags.contains_key(node_id)).min_by_key(|node_id| lags[node_id])
    else {
        return;
    };
    shared.node.transfer_leadership(successor).await;
    let mut changes = shared.node.watch_status();
    let handed_over = changes.wait_for(|status| status.leader.is_some() && !status.is_leader());
    if tokio::time::timeout(HAND_OVER_TIMEOUT, handed_over).await.is_err() {
        tracing::warn!(successor, "the metadata quorum was not handed over in time");
    }
}

/// Says what is wrong when it changes, and now and then while it stays.
#[derive(Debug, Default)]
struct Complaint {
    said: Option<(String, Instant)>,
}

impl Complaint {
    fn say(&mut self, shared: &Shared, what: &'static str, reason: &str) {
        let repeated =
            self.said.as_ref().is_some_and(|(said, at)| said == reason && at.elapsed() < COMPLAINT_INTERVAL);
        if !repeated {
            tracing::warn!(reason, "{what}");
            self.said = Some((reason.to_owned(), Instant::now()));
        }
        let problem = format!("{what}: {reason}");
        shared.broker.send_if_modified(|state| {
            let changed = state.problem.as_ref() != Some(&problem);
            state.problem = Some(problem);
            changed
        });
    }

    fn clear(&mut self, shared: &Shared) {
        self.said = None;
        shared.broker.send_if_modified(|state| state.problem.take().is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::controller::fixtures::{add_topic, broker, image};

    #[test]
    fn a_broker_is_confirmed_until_the_session_ends_if_it_has_applied_what_the_controller_had() {
        let now = Instant::now();
        let until = now + Duration::from_secs(9);
        let confirmation = Some(Confirmation { until, log_index: 20 });
        let state = BrokerState { confirmation, ..BrokerState::default() };
        assert!(state.is_confirmed(until - Duration::from_millis(1), 20));
        assert!(!state.is_confirmed(until, 20), "the session is over");
        assert!(!state.is_confirmed(now, 19), "the controller knew more");
        assert!(!BrokerState::default().is_confirmed(now, 20), "nothing was said");
    }

    #[test]
    fn a_broker_that_stops_waits_only_for_replicas_that_can_come() {
        let may = |replicas: &[BrokerId]| {
            let mut image =
                image([broker(0).stopping(), broker(1), broker(2).stopping(), broker(3).fenced()]);
            add_topic(&mut image, "t", &[replicas.to_vec()]);
            may_be_succeeded(&image, 0)
        };
        assert!(may(&[0, 3, 1]), "its broker is in service");
        assert!(!may(&[0]), "it has no other");
        assert!(!may(&[0, 2]), "it stops too");
        assert!(!may(&[0, 3]), "it is not there");
        assert!(!may(&[0, 4]), "there is no such broker");
        assert!(!may(&[1, 0]), "another leads");
    }
}
