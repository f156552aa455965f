//! Status of a Topic.

use jiff::Timestamp;
use millrace_crds::{TopicStatus, condition};
use millrace_management::TopicView;

use super::{Cause, Conditions, Truth};

/// How a pass over a Topic ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The topic is as the spec says.
    Applied(TopicView),
    /// The spec cannot be carried out; the topic, where it is ours, is as it was.
    Refused(Cause, Option<TopicView>),
    /// Something else has to happen first.
    Waiting(Cause),
}

/// The new status; `live` is the one that is there.
pub fn status(
    live: &TopicStatus,
    topic_name: &str,
    outcome: &Outcome,
    generation: Option<i64>,
    now: Timestamp,
) -> TopicStatus {
    let mut conditions = Conditions::new(&live.conditions, generation, now);
    let named = TopicStatus { topic_name: Some(topic_name.to_owned()), ..live.clone() };
    let facts = match outcome {
        Outcome::Applied(view) => {
            let cause = Cause::new("Applied", "the topic is as the spec says");
            conditions.set(condition::READY, Truth::True, cause);
            conditions.set_progress(None, None);
            set_replicated(&mut conditions, view);
            with_facts(named, Some(view))
        }
        Outcome::Refused(cause, view) => {
            conditions.set(condition::READY, Truth::False, cause.clone());
            conditions.set_progress(None, Some(cause));
            match view {
                Some(view) => set_replicated(&mut conditions, view),
                None => conditions.remove(condition::REPLICATED),
            }
            // The facts of a topic that is not ours are not ours to report.
            with_facts(named, view.as_ref())
        }
        Outcome::Waiting(cause) => {
            // A topic that was applied is still there while brokers cannot be asked.
            if !conditions.holds(condition::READY) {
                conditions.set(condition::READY, Truth::False, cause.clone());
            }
            conditions.set_progress(Some(cause), None);
            named
        }
    };
    let observed_generation = match outcome {
        Outcome::Applied(_) | Outcome::Refused(..) => generation,
        Outcome::Waiting(_) => live.observed_generation,
    };
    TopicStatus { observed_generation, conditions: conditions.into_list(), ..facts }
}

fn with_facts(status: TopicStatus, view: Option<&TopicView>) -> TopicStatus {
    TopicStatus {
        topic_id: view.map(|view| view.topic_id.clone()),
        partitions: view.map(|view| view.partitions),
        replicas: view.map(|view| i32::from(view.replicas)),
        offline_partitions: view.map(|view| view.offline_partitions),
        under_replicated_partitions: view.map(|view| view.under_replicated_partitions),
        ..status
    }
}

fn set_replicated(conditions: &mut Conditions, view: &TopicView) {
    let TopicView { partitions, replicas, under_replicated_partitions: missing, .. } = view;
    let (truth, cause) = if *replicas <= 1 {
        (Truth::True, Cause::new("SingleReplica", "each partition has one replica, as asked for"))
    } else if *missing == 0 {
        (Truth::True, Cause::new("InSync", format!("all {replicas} replicas of every partition are in sync")))
    } else {
        let message = format!(
            "{missing} of {partitions} partitions have fewer than {replicas} replicas in sync: a broker is away, or its \
             replicas are still catching up with their leaders"
        );
        (Truth::False, Cause::new("UnderReplicated", message))
    };
    conditions.set(condition::REPLICATED, truth, cause);
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    fn view() -> TopicView {
        TopicView {
            name: "orders".into(),
            topic_id: "id".into(),
            owner: None,
            partitions: 12,
            replicas: 3,
            offline_partitions: 0,
            under_replicated_partitions: 12,
            config: Default::default(),
        }
    }

    fn now() -> Timestamp {
        "2026-11-01T12:00:00Z".parse().unwrap()
    }

    fn after(live: &TopicStatus, outcome: &Outcome, generation: i64) -> TopicStatus {
        status(live, "orders", outcome, Some(generation), now())
    }

    fn condition<'a>(status: &'a TopicStatus, type_: &str) -> (&'a str, &'a str) {
        let found = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
        (&found.status, &found.reason)
    }

    #[test]
    fn an_applied_topic_shows_its_live_facts_and_what_is_missing() {
        let status = after(&TopicStatus::default(), &Outcome::Applied(view()), 1);
        assert_eq!((status.partitions, status.replicas), (Some(12), Some(3)));
        assert_eq!(condition(&status, "Ready"), ("True", "Applied"));
        assert_eq!(condition(&status, "Replicated"), ("False", "UnderReplicated"));
    }

    #[test]
    fn the_same_outcome_later_gives_the_same_status() {
        let first = after(&TopicStatus::default(), &Outcome::Applied(view()), 1);
        let later = now() + jiff::SignedDuration::from_hours(1);
        assert_eq!(status(&first, "orders", &Outcome::Applied(view()), Some(1), later), first);
    }

    #[test]
    fn a_refusal_stalls_with_the_brokers_reason_and_hides_a_strangers_facts() {
        let cause = Cause::new("OwnedByAnother", "owned by a/b");
        let applied = after(&TopicStatus::default(), &Outcome::Applied(view()), 1);
        let status = after(&applied, &Outcome::Refused(cause, None), 2);
        assert_eq!(condition(&status, "Ready"), ("False", "OwnedByAnother"));
        assert_eq!(condition(&status, "Stalled"), ("True", "OwnedByAnother"));
        assert_eq!((status.topic_id, status.observed_generation), (None, Some(2)));
    }

    #[test]
    fn waiting_keeps_ready_for_what_was_applied_and_denies_it_for_a_new_spec() {
        let applied = after(&TopicStatus::default(), &Outcome::Applied(view()), 1);
        let waiting = Outcome::Waiting(Cause::new("BrokersUnreachable", "x"));
        assert_eq!(condition(&after(&applied, &waiting, 1), "Ready"), ("True", "Applied"));
        let changed = after(&applied, &waiting, 2);
        assert_eq!(condition(&changed, "Ready"), ("False", "BrokersUnreachable"));
        assert_eq!(changed.observed_generation, Some(1));
    }
}
