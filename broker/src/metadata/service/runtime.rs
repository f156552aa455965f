//! Decides requests while this node leads the quorum.
//!
//! One request at a time: it is decided on an image that contains everything decided before it, and the next one is
//! not looked at before its records are part of the image, or known never to be. That is why nothing here gives a
//! proposal up: while the quorum is out of reach, deciding more would be deciding blindly.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;
use crate::metadata::controller::{
    ControllerRequest, ControllerResponse, decide, preferred_leaders_to_elect,
};
use crate::metadata::raft::ProposeError;

/// How often the leader looks for silent brokers, and a node whether it leads.
const TICK: Duration = Duration::from_millis(100);

/// Partitions that get their preferred leader back in one look. Clients of each one ask for metadata anew, so a broker
/// that was restarted gets its thousands back over some looks.
const ELECTIONS_PER_LOOK: usize = 500;

/// A request on its way to the controller.
#[derive(Debug)]
pub(in crate::metadata) struct Work {
    pub(super) request: ControllerRequest,
    /// Whoever asked has given up by then.
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Result<Answer, Declined>>,
}

/// The controller's answer.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::metadata) struct Answer {
    pub(in crate::metadata) response: ControllerResponse,
    /// Images from this position of the log on contain the outcome.
    pub(in crate::metadata) log_index: u64,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::metadata) enum Declined {
    /// Nothing was changed; another node leads, or this one will in a moment.
    NotController { reason: String },
    /// The outcome is not known.
    Unknown { reason: String },
    /// It cannot be done, now or later; nothing was changed.
    Unacceptable { reason: String },
}

/// Runs until `cancel`. Requests that wait then are dropped, and whoever asked is told.
pub(super) async fn run(shared: Arc<Shared>, mut work: mpsc::Receiver<Work>, cancel: CancellationToken) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut status = shared.node.watch_status();
    let mut last_look = Instant::now();
    loop {
        let next = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            // Before requests: whoever keeps asking must not keep silent brokers in service.
            _ = ticks.tick() => None,
            next = work.recv() => next,
            // A node that was elected takes office at once.
            Ok(()) = status.changed() => None,
        };
        // What is under way when the service stops is committed or not without us.
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            () = step(&shared, next, &mut last_look) => {}
        }
    }
}

async fn step(shared: &Shared, work: Option<Work>, last_look: &mut Instant) {
    match work {
        Some(work) if work.deadline <= Instant::now() => {}
        Some(work) => {
            let outcome = decide_one(shared, &work.request).await;
            // Whoever asked may have given up.
            let _ = work.answer.send(outcome);
        }
        None => {
            fence_silent_brokers(shared).await;
            let interval = shared.options.leader_rebalance_interval;
            if interval.is_some_and(|interval| last_look.elapsed() >= interval) {
                *last_look = Instant::now();
                elect_preferred_leaders(shared).await;
            }
        }
    }
}

/// Makes sure that this node leads and knows everything that was decided before; returns its term.
async fn take_office(shared: &Shared) -> Result<u64, Declined> {
    let Some(leading) = shared.node.leading_term() else {
        leave_office(shared);
        return Err(not_controller("this node does not lead"));
    };
    if shared.sessions.lock().term() == Some(leading) {
        return Ok(leading);
    }
    leave_office(shared);
    let term = shared.node.barrier().await.map_err(declined)?;
    shared.sessions.lock().begin(term, Instant::now());
    shared.office.send_replace(Some(term));
    tracing::info!(raft.term = term, "this node is the controller");
    Ok(term)
}

fn leave_office(shared: &Shared) {
    shared.sessions.lock().end();
    shared.office.send_if_modified(|office| office.take().is_some());
}

async fn decide_one(shared: &Shared, request: &ControllerRequest) -> Result<Answer, Declined> {
    let term = take_office(shared).await?;
    let image = shared.node.image();
    let decision = decide(&image, request, shared.options.settings.as_ref(), &mut Uuid::new_v4);
    let log_index = if decision.records.is_empty() {
        // Nothing to commit, so nothing proves that the image is the newest one but asking a majority. The lease of a
        // leader would be cheaper and does not: followers may have renounced it.
        if shared.node.barrier().await.map_err(declined)? != term {
            return Err(not_controller("leadership has changed"));
        }
        image.log_index
    } else {
        shared.node.propose(term, &decision.records).await.map_err(declined)?
    };
    Ok(Answer { response: decision.response, log_index })
}

async fn fence_silent_brokers(shared: &Shared) {
    if take_office(shared).await.is_err() {
        return;
    }
    let expired = shared.sessions.lock().expired(&shared.node.image(), Instant::now());
    for (broker_id, broker_epoch) in expired {
        tracing::warn!(broker_id, "broker is silent, taking it out of service");
        let request = ControllerRequest::SetFenced { broker_id, broker_epoch, fenced: true };
        if let Err(reason) = decide_one(shared, &request).await {
            tracing::warn!(broker_id, ?reason, "cannot take the silent broker out of service");
            return;
        }
    }
}

/// Gives leadership back to first assigned replicas that are in sync again.
async fn elect_preferred_leaders(shared: &Shared) {
    if take_office(shared).await.is_err() {
        return;
    }
    let Some(request) = preferred_leaders_to_elect(&shared.node.image(), ELECTIONS_PER_LOOK) else { return };
    let partitions: usize =
        request.topic_partitions.iter().flatten().map(|topic| topic.partitions.len()).sum();
    match decide_one(shared, &ControllerRequest::ElectLeaders(request)).await {
        Ok(_) => tracing::info!(partitions, "preferred leaders lead again"),
        Err(reason) => tracing::warn!(?reason, "cannot elect preferred leaders"),
    }
}

fn not_controller(reason: &str) -> Declined {
    Declined::NotController { reason: reason.to_owned() }
}

fn declined(error: ProposeError) -> Declined {
    let reason = error.to_string();
    match error {
        ProposeError::NotLeader => Declined::NotController { reason },
        ProposeError::Unknown | ProposeError::Stopped(_) => Declined::Unknown { reason },
        ProposeError::TooLarge { .. } => Declined::Unacceptable { reason },
    }
}
