//! Kubernetes Events about what changed. They use the same reasons as the conditions.

use std::sync::Arc;

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use millrace_crds::condition;

use crate::{OPERATOR, metrics::Metrics};

/// Longest note that the API server takes.
const NOTE_LIMIT: usize = 1024;

/// Something that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whether someone should look.
    pub warning: bool,
    /// Fixed CamelCase word, shared with conditions.
    pub reason: &'static str,
    /// For people.
    pub note: String,
}

impl Change {
    /// Something went as it should.
    pub fn normal(reason: &'static str, note: impl Into<String>) -> Self {
        Self { warning: false, reason, note: note.into() }
    }
}

/// Events for the conditions that took another status or reason. A new message alone is no event: it may be progress.
pub fn condition_events(before: &[Condition], after: &[Condition]) -> Vec<Event> {
    let changed = after.iter().filter(|now| {
        let was = before.iter().find(|was| was.type_ == now.type_);
        was.is_none_or(|was| was.status != now.status || was.reason != now.reason)
    });
    changed
        .filter_map(|now| {
            let (ready, stalled) = (now.type_ == condition::READY, now.type_ == condition::STALLED);
            let fine = match now.status.as_str() {
                "True" if ready => true,
                "True" if stalled => false,
                // What Ready=False and Reconciling=True say is the same; one event is enough.
                "True" if now.type_ == condition::RECONCILING => true,
                // The user cannot do more about these than know.
                "False" if [condition::REPLICATED, condition::RACKS_KNOWN].contains(&now.type_.as_str()) => {
                    true
                }
                "False" if !ready && !stalled && now.type_ != condition::RECONCILING => false,
                _ => return None,
            };
            Some(event(fine, &now.reason, &now.message))
        })
        .collect()
}

fn event(normal: bool, reason: &str, note: &str) -> Event {
    Event {
        type_: if normal { EventType::Normal } else { EventType::Warning },
        reason: reason.to_owned(),
        note: Some(note.chars().take(NOTE_LIMIT).collect()),
        action: "Reconcile".to_owned(),
        secondary: None,
    }
}

/// Publishes Events. Failing to is logged and otherwise ignored: they are a help, nothing depends on them.
#[derive(Clone)]
pub struct Publisher {
    recorder: Recorder,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Publisher")
    }
}

impl Publisher {
    /// Publishes in the name of the process `identity`.
    pub fn new(client: Client, identity: &str, metrics: Arc<Metrics>) -> Self {
        let reporter = Reporter { controller: OPERATOR.to_owned(), instance: Some(identity.to_owned()) };
        Self { recorder: Recorder::new(client, reporter), metrics }
    }

    /// Publishes that `change` happened to `object`.
    pub async fn changed<K: Resource<DynamicType = ()>>(&self, object: &K, change: &Change) {
        let event = event(!change.warning, change.reason, &change.note);
        self.publish(&object.object_ref(&()), &[event]).await;
    }

    /// Publishes `events` about `object`.
    pub async fn publish(&self, object: &ObjectReference, events: &[Event]) {
        for event in events {
            match self.recorder.publish(event, object).await {
                Ok(()) => self.metrics.published(),
                Err(error) => tracing::warn!(reason = event.reason, %error, "cannot publish an event"),
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Condition {
        Condition {
            type_: type_.into(),
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
            last_transition_time: "2026-01-01T00:00:00Z"
                .parse()
                .map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time)
                .unwrap(),
            observed_generation: None,
        }
    }

    #[test]
    fn nothing_changed_means_no_event_and_neither_does_a_new_message() {
        let before = [condition("Ready", "False", "WaitingForPods", "1 of 3")];
        assert!(condition_events(&before, &before).is_empty());
        let progress = [condition("Ready", "False", "WaitingForPods", "2 of 3")];
        assert!(condition_events(&before, &progress).is_empty());
    }

    #[test]
    fn becoming_ready_and_getting_stuck_are_events_with_the_conditions_reason() {
        let before =
            [condition("Ready", "False", "WaitingForPods", "x"), condition("Stalled", "False", "Fine", "")];
        let after = [
            condition("Ready", "True", "BrokersReady", "y"),
            condition("Stalled", "True", "ScaleDownRefused", "z"),
        ];
        let events = condition_events(&before, &after);
        let summary: Vec<_> = events.iter().map(|e| (e.type_, e.reason.as_str())).collect();
        assert_eq!(summary, [(EventType::Normal, "BrokersReady"), (EventType::Warning, "ScaleDownRefused")]);
    }
}
