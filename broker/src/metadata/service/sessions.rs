//! Which brokers are alive, as the leader knows it.
//!
//! Holds no clock: callers pass the time in. A broker is heard of by its heartbeats; before the first one it has the
//! time of a session from the start of the leader's term, or from its registration, whichever came later.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::metadata::image::{BrokerId, BrokerImage, MetadataImage};

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Sessions {
    timeout: Duration,
    office: Option<Office>,
}

#[derive(Debug)]
struct Office {
    term: u64,
    /// By broker id and epoch: when it was last heard of, or first seen.
    heard: HashMap<(BrokerId, i64), Instant>,
    began: Instant,
}

/// What to do about a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Heard,
    /// The broker can go into service.
    Unfence,
    /// The broker must register first.
    RegisterAgain,
    /// This node cannot say: it does not lead, or not yet.
    NotLeading,
}

/// A heartbeat as it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heartbeat {
    pub(super) broker_id: BrokerId,
    pub(super) broker_epoch: i64,
    pub(super) applied_index: u64,
    pub(super) ready: bool,
}

impl Sessions {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, office: None }
    }

    /// This node leads in `term` and knows everything that was decided before.
    pub(super) fn begin(&mut self, term: u64, now: Instant) {
        self.office = Some(Office { term, heard: HashMap::new(), began: now });
    }

    /// This node does not lead any more.
    pub(super) fn end(&mut self) {
        self.office = None;
    }

    /// Term in which this node leads.
    pub(super) fn term(&self) -> Option<u64> {
        self.office.as_ref().map(|office| office.term)
    }

    pub(super) fn heartbeat(&mut self, image: &MetadataImage, heartbeat: Heartbeat, now: Instant) -> Verdict {
        let Some(office) = &mut self.office else { return Verdict::NotLeading };
        let registered = image.brokers.get(&heartbeat.broker_id);
        let Some(broker) = registered.filter(|broker| broker.broker_epoch == heartbeat.broker_epoch) else {
            return Verdict::RegisterAgain;
        };
        office.heard.insert(key(broker), now);
        // Caught up means that the broker knows of its own registration, and so of all that came before.
        let caught_up = i64::try_from(heartbeat.applied_index).unwrap_or(i64::MAX) >= broker.broker_epoch;
        if broker.fenced && heartbeat.ready && caught_up { Verdict::Unfence } else { Verdict::Heard }
    }

    /// Brokers in service that were silent for too long, with their epochs.
    pub(super) fn expired(&mut self, image: &MetadataImage, now: Instant) -> Vec<(BrokerId, i64)> {
        let Some(office) = &mut self.office else { return Vec::new() };
        let live: Vec<&BrokerImage> = image.live_brokers().map(AsRef::as_ref).collect();
        office.heard.retain(|(broker_id, epoch), _| {
            image.brokers.get(broker_id).is_some_and(|broker| broker.broker_epoch == *epoch)
        });
        let began = office.began;
        let silent = live.into_iter().filter(|broker| {
            let heard = office.heard.get(&key(broker)).copied().unwrap_or(began);
            now.saturating_duration_since(heard) > self.timeout
        });
        silent.map(key).collect()
    }
}

fn key(broker: &BrokerImage) -> (BrokerId, i64) {
    (broker.broker_id, broker.broker_epoch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use uuid::Uuid;

    const TIMEOUT: Duration = Duration::from_secs(9);

    fn image(brokers: impl IntoIterator<Item = (BrokerId, i64, bool)>) -> MetadataImage {
        let mut image = MetadataImage::empty(Uuid::from_u128(1));
        for (broker_id, broker_epoch, fenced) in brokers {
            let broker = BrokerImage {
                broker_id,
                broker_epoch,
                volume_uuid: Uuid::from_u128(7),
                raft_node_id: 7,
                address: String::new(),
                endpoints: Vec::new(),
                rack: None,
                fenced,
                in_controlled_shutdown: false,
                version: String::new(),
                min_insync_replicas: 1,
            };
            image.brokers.insert(broker_id, Arc::new(broker));
        }
        image
    }

    fn beat(broker_id: BrokerId, broker_epoch: i64) -> Heartbeat {
        Heartbeat { broker_id, broker_epoch, applied_index: 100, ready: true }
    }

    #[test]
    fn a_new_leader_gives_everyone_one_session() {
        let (image, start) = (image([(0, 5, false), (1, 6, false)]), Instant::now());
        let mut sessions = Sessions::new(TIMEOUT);
        sessions.begin(3, start);
        assert_eq!(sessions.expired(&image, start + TIMEOUT), vec![]);
        assert_eq!(sessions.expired(&image, start + TIMEOUT * 2), vec![(0, 5), (1, 6)]);
        sessions.begin(4, start + TIMEOUT * 2);
        assert_eq!(sessions.expired(&image, start + TIMEOUT * 2), vec![]);
    }

    #[test]
    fn a_silent_broker_expires_and_one_that_is_heard_does_not() {
        let (image, start) = (image([(0, 5, false), (1, 6, false), (2, 7, true)]), Instant::now());
        let mut sessions = Sessions::new(TIMEOUT);
        sessions.begin(3, start);
        let later = start + Duration::from_secs(6);
        assert_eq!(sessions.heartbeat(&image, beat(0, 5), later), Verdict::Heard);
        assert_eq!(sessions.expired(&image, start + Duration::from_secs(10)), vec![(1, 6)]);
        assert_eq!(sessions.expired(&image, later + TIMEOUT), vec![(1, 6)]);
    }

    #[test]
    fn a_heartbeat_of_an_earlier_registration_does_not_count() {
        let (image, start) = (image([(0, 5, false)]), Instant::now());
        let mut sessions = Sessions::new(TIMEOUT);
        sessions.begin(3, start);
        assert_eq!(sessions.heartbeat(&image, beat(0, 4), start), Verdict::RegisterAgain);
        assert_eq!(sessions.heartbeat(&image, beat(9, 4), start), Verdict::RegisterAgain);
        assert_eq!(sessions.expired(&image, start + TIMEOUT * 2), vec![(0, 5)]);
    }

    #[test]
    fn a_fenced_broker_comes_into_service_when_it_is_ready_and_has_caught_up() {
        let (image, now) = (image([(0, 50, true)]), Instant::now());
        let mut sessions = Sessions::new(TIMEOUT);
        assert_eq!(sessions.heartbeat(&image, beat(0, 50), now), Verdict::NotLeading);
        sessions.begin(3, now);
        let behind = Heartbeat { applied_index: 49, ..beat(0, 50) };
        assert_eq!(sessions.heartbeat(&image, behind, now), Verdict::Heard);
        let leaving = Heartbeat { ready: false, ..beat(0, 50) };
        assert_eq!(sessions.heartbeat(&image, leaving, now), Verdict::Heard);
        assert_eq!(sessions.heartbeat(&image, beat(0, 50), now), Verdict::Unfence);
        sessions.end();
        assert_eq!(sessions.heartbeat(&image, beat(0, 50), now), Verdict::NotLeading);
    }
}
