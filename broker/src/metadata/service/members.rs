//! Keeps the voters of the quorum what they should be, on the node that leads it.
//!
//! Every half second: look, decide one change (`voters`), carry it out, look again. What a leader began and did not end
//! is found by the next one in the membership itself; how long a broker has been away it has to learn anew.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::voters::{Absences, Change, View, next_change};

const INTERVAL: Duration = Duration::from_millis(500);

/// Runs until `cancel`. A change under way then is finished by whoever leads next.
pub(super) async fn run(shared: Arc<Shared>, cancel: CancellationToken) {
    let mut absences = Absences::default();
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let status = shared.node.status();
        if !status.is_leader() || shared.office.borrow().is_none() {
            absences = Absences::default();
            shared.caught_up.lock().clear();
            continue;
        }
        let (image, lags, now) = (shared.node.image(), shared.node.lags(), Instant::now());
        note_caught_up(&shared);
        absences.observe(&status, &image, now);
        let view = View { status: &status, image: &image, lags: &lags, absences: &absences, now };
        let Some(change) = next_change(shared.options.voters, &view) else { continue };
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            () = carry_out(&shared, change) => {}
        }
    }
}

async fn carry_out(shared: &Shared, change: Change) {
    let outcome = match change.clone() {
        Change::Finish => shared.node.finish_change().await,
        Change::SetVoters(voters) => shared.node.set_voters(voters).await,
        Change::Remove(node_id) => shared.node.remove_member(node_id).await,
    };
    if let Err(error) = outcome {
        tracing::warn!(?change, %error, "cannot change the metadata quorum yet");
    }
}

/// Writes down who has the whole log now.
pub(super) fn note_caught_up(shared: &Shared) {
    let Some(progress) = shared.node.progress() else { return };
    let now = SystemTime::now();
    let mut caught_up = shared.caught_up.lock();
    caught_up.retain(|node_id, _| progress.members.iter().any(|member| member.node_id == *node_id));
    for member in &progress.members {
        if member.matched_index == progress.last_index
            && let Some(at) = member.silent_for.and_then(|silent| now.checked_sub(silent))
        {
            caught_up.insert(member.node_id, at);
        }
    }
}
