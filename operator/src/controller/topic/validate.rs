//! Topic and its cluster → what to ask the brokers for. No client.

use kube::{Resource, ResourceExt};
use millrace_crds::{KafkaCluster, Topic, condition};
use millrace_management::{ApplyTopic, TopicOwner, TopicView};

use super::ADOPT_ANNOTATION;
use crate::status::Cause;

/// A Topic that can be asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedTopic {
    /// Name that Kafka clients use.
    pub name: String,
    /// What to ask for.
    pub wanted: ApplyTopic,
    /// Brokers that may be asked.
    pub replicas: i32,
}

/// Why a Topic cannot be asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum NotYet {
    /// Until the spec changes.
    Refused(Cause),
    /// Until the cluster is there.
    Waiting(Cause),
}

/// Checks `topic` against its cluster.
pub fn validate(topic: &Topic, cluster: &KafkaCluster) -> Result<ValidatedTopic, NotYet> {
    let spec = &topic.spec;
    let name = &spec.cluster_ref.name;
    if cluster.metadata.deletion_timestamp.is_some() {
        let message = format!("KafkaCluster {name} is being deleted");
        return Err(NotYet::Waiting(Cause::new("ClusterDeleting", message)));
    }
    let brokers = formed_brokers(cluster).ok_or_else(|| {
        NotYet::Waiting(Cause::new(
            "ClusterNotReady",
            format!("KafkaCluster {name} has no metadata quorum yet"),
        ))
    })?;
    let replicas = spec.replicas.map(i16::try_from).transpose().map_err(|_| {
        NotYet::Refused(Cause::new(
            millrace_management::code::INVALID_REPLICATION_FACTOR,
            "spec.replicas is larger than any cluster",
        ))
    })?;
    Ok(ValidatedTopic {
        name: topic.topic_name().to_owned(),
        wanted: ApplyTopic {
            owner: TopicOwner {
                namespace: topic.namespace().unwrap_or_default(),
                name: topic.name_any(),
                uid: topic.meta().uid.clone().unwrap_or_default(),
            },
            partitions: spec.partitions,
            replicas,
            config: spec.config.clone(),
            adopt: topic.annotations().get(ADOPT_ANNOTATION).is_some_and(|value| value == "true"),
        },
        replicas: brokers,
    })
}

/// Number of brokers to ask, once the cluster has a quorum that could know of topics.
pub fn formed_brokers(cluster: &KafkaCluster) -> Option<i32> {
    let status = cluster.status.as_ref()?;
    status.quorum.as_ref().filter(|quorum| quorum.formed)?;
    Some(status.replicas.unwrap_or(cluster.spec.replicas).max(1))
}

/// Whether the brokers have to be asked for anything.
///
/// `view` is the topic as it is. A spec that was not applied yet is always sent: only the brokers know which keys an
/// earlier one had set, and they write nothing where nothing differs.
pub fn differs(topic: &Topic, wanted: &ApplyTopic, view: Option<&TopicView>) -> bool {
    let Some(view) = view else { return true };
    let applied = topic.status.iter().flat_map(|status| &status.conditions).any(|found| {
        found.type_ == condition::READY
            && found.status == "True"
            && found.observed_generation == topic.metadata.generation
    });
    !applied
        || view.owner.as_ref().is_none_or(|owner| owner.uid != wanted.owner.uid)
        || wanted.partitions.is_some_and(|partitions| partitions != view.partitions)
        || wanted.replicas.is_some_and(|replicas| replicas != view.replicas)
        || wanted.config.iter().any(|(key, value)| view.config.get(key) != Some(value))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use serde_json::json;

    use super::*;

    fn topic() -> Topic {
        serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "Topic",
            "metadata": {"name": "orders", "namespace": "ns", "uid": "t-1", "generation": 1},
            "spec": {"clusterRef": {"name": "demo"}, "partitions": 12, "config": {"retention.ms": "1"}},
            "status": {"conditions": [{
                "type": "Ready", "status": "True", "reason": "Applied", "message": "", "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        }))
        .unwrap()
    }

    fn cluster(formed: bool) -> KafkaCluster {
        let mut cluster = crate::controller::kafka_cluster::validate::fixture::manifest();
        let status = cluster.status.get_or_insert_default();
        status.quorum.get_or_insert_default().formed = formed;
        status.replicas = Some(3);
        cluster
    }

    fn view() -> TopicView {
        TopicView {
            name: "orders".into(),
            topic_id: "id".into(),
            owner: Some(TopicOwner { namespace: "ns".into(), name: "orders".into(), uid: "t-1".into() }),
            partitions: 12,
            replicas: 3,
            offline_partitions: 0,
            under_replicated_partitions: 0,
            config: [("retention.ms".into(), "1".into()), ("other".into(), "x".into())].into(),
        }
    }

    #[test]
    fn waits_for_the_quorum_of_its_cluster() {
        let not_yet = validate(&topic(), &cluster(false)).unwrap_err();
        assert!(
            matches!(&not_yet, NotYet::Waiting(cause) if cause.reason == "ClusterNotReady"),
            "{not_yet:?}"
        );
        assert!(validate(&topic(), &cluster(true)).is_ok());
    }

    #[test]
    fn unset_fields_stay_unmanaged() {
        let valid = validate(&topic(), &cluster(true)).unwrap();
        assert_eq!((valid.wanted.replicas, valid.wanted.partitions), (None, Some(12)));
        for replicas in [1, 2, 3] {
            let view = TopicView { replicas, ..view() };
            assert!(!differs(&topic(), &valid.wanted, Some(&view)), "{replicas}");
        }
    }

    #[test]
    fn adoption_is_asked_for_by_annotation_only() {
        let mut topic = topic();
        assert!(!validate(&topic, &cluster(true)).unwrap().wanted.adopt);
        topic.metadata.annotations = Some([(ADOPT_ANNOTATION.to_owned(), "true".to_owned())].into());
        assert!(validate(&topic, &cluster(true)).unwrap().wanted.adopt);
    }

    #[test]
    fn brokers_are_asked_only_where_something_differs() {
        let (topic, wanted) = (topic(), validate(&topic(), &cluster(true)).unwrap().wanted);
        assert!(!differs(&topic, &wanted, Some(&view())));
        assert!(differs(&topic, &wanted, None));
        assert!(differs(&topic, &wanted, Some(&TopicView { partitions: 6, ..view() })));
        assert!(differs(&topic, &wanted, Some(&TopicView { config: Default::default(), ..view() })));
        assert!(differs(&topic, &wanted, Some(&TopicView { owner: None, ..view() })));
        let mut changed = topic.clone();
        changed.metadata.generation = Some(2);
        assert!(differs(&changed, &wanted, Some(&view())), "a new spec may have dropped a key");
    }
}
