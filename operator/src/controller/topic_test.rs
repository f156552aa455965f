//! Whole passes over a Topic against an API server and brokers in memory.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use millrace_crds::TopicStatus;
use millrace_management::{ApplyTopic, ApplyTopicResult, code};
use serde_json::{Value, json};

use super::*;
use crate::{
    controller::{fake_api::FakeApi, kafka_cluster::validate::fixture::manifest as cluster_manifest},
    events::Publisher,
    management::{Call, Endpoint, fake::credentials},
    metrics::Metrics,
};

const TOPIC: &str = "/apis/millrace.dev/v1alpha1/namespaces/ns/topics/orders";
const CLUSTER: &str = "/apis/millrace.dev/v1alpha1/namespaces/ns/kafkaclusters/demo";

/// Topics in memory, with the brokers' rules about owners.
#[derive(Clone, Debug, Default)]
struct Brokers(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    topics: BTreeMap<String, TopicView>,
    changes: Vec<String>,
    down: bool,
}

impl Transport for Brokers {
    async fn send(&self, _: &Endpoint, call: Call) -> Result<(u16, Bytes), String> {
        let mut state = self.0.lock().unwrap();
        if state.down {
            return Err("connection refused".into());
        }
        if call.method != "GET" {
            state.changes.push(format!("{} {}", call.method, call.path));
        }
        let path = call.path.split('?').next().unwrap().to_owned();
        let name = path.split('/').nth(3).unwrap().to_owned();
        let found = state.topics.get(&name).cloned();
        let refusal =
            |status, code: &str| Ok((status, json!({"code": code, "message": code}).to_string().into()));
        let answer = match (call.method.as_str(), found) {
            ("PUT", found) => {
                let wanted: ApplyTopic = serde_json::from_slice(&call.body.unwrap()).unwrap();
                match &found {
                    Some(TopicView { owner: None, .. }) if !wanted.adopt => {
                        return refusal(409, code::NOT_ADOPTED);
                    }
                    Some(TopicView { owner: Some(owner), .. }) if owner.uid != wanted.owner.uid => {
                        return refusal(409, code::OWNED_BY_ANOTHER);
                    }
                    Some(view) if wanted.partitions.is_some_and(|wanted| wanted < view.partitions) => {
                        return refusal(422, code::PARTITIONS_SHRINK);
                    }
                    _ => {}
                }
                let view = TopicView {
                    name: name.clone(),
                    topic_id: "id".into(),
                    owner: Some(wanted.owner),
                    partitions: wanted.partitions.or(found.map(|view| view.partitions)).unwrap_or(1),
                    replicas: wanted.replicas.unwrap_or(1),
                    offline_partitions: 0,
                    under_replicated_partitions: 0,
                    config: wanted.config,
                };
                state.topics.insert(name, view.clone());
                serde_json::to_value(ApplyTopicResult { changed: true, topic: view }).unwrap()
            }
            (_, None) => return refusal(404, code::TOPIC_NOT_FOUND),
            ("GET", Some(view)) => serde_json::to_value(view).unwrap(),
            ("DELETE", Some(_)) => {
                state.topics.remove(&name);
                json!({})
            }
            ("POST", Some(view)) => {
                state.topics.insert(name, TopicView { owner: None, ..view });
                json!({})
            }
            other => panic!("unexpected call {other:?}"),
        };
        Ok((200, answer.to_string().into()))
    }
}

struct Scene {
    api: FakeApi,
    brokers: Brokers,
    context: Context<Brokers>,
}

impl Scene {
    fn new() -> Self {
        let (api, brokers) = (FakeApi::default(), Brokers::default());
        let mut cluster = cluster_manifest();
        let status = cluster.status.get_or_insert_default();
        status.quorum.get_or_insert_default().formed = true;
        status.replicas = Some(3);
        api.put(CLUSTER, serde_json::to_value(cluster).unwrap());
        api.put(
            TOPIC,
            json!({
                "apiVersion": "millrace.dev/v1alpha1", "kind": "Topic",
                "metadata": {"name": "orders", "namespace": "ns", "uid": "t-1", "generation": 1},
                "spec": {"clusterRef": {"name": "demo"}, "partitions": 12, "config": {"retention.ms": "1"}},
            }),
        );
        let metrics = Arc::new(Metrics::new());
        let events = Publisher::new(api.client(), "operator-0", metrics.clone());
        let context = Context::new(api.client(), brokers.clone(), events, metrics, "b");
        context.remember_credentials(&Names::new("ns", "demo"), credentials());
        Self { api, brokers, context }
    }

    fn topic(&self) -> Topic {
        serde_json::from_value(self.api.get(TOPIC).unwrap()).unwrap()
    }

    async fn pass(&self) {
        let api = self.api.clone();
        let lookup = move |_: &Names| api.get(CLUSTER).and_then(|found| serde_json::from_value(found).ok());
        reconcile(&self.topic(), &self.context, &lookup).await.unwrap();
    }

    fn edit(&self, edit: impl FnOnce(&mut Value)) {
        let mut topic = self.api.get(TOPIC).unwrap();
        edit(&mut topic);
        topic["metadata"]["generation"] = (topic["metadata"]["generation"].as_i64().unwrap() + 1).into();
        self.api.put(TOPIC, topic);
    }

    fn mark_deleted(&self, at: &str) {
        self.edit(|topic| topic["metadata"]["deletionTimestamp"] = at.into());
    }

    fn changes(&self) -> Vec<String> {
        std::mem::take(&mut self.brokers.0.lock().unwrap().changes)
    }

    fn status(&self) -> TopicStatus {
        self.topic().status.unwrap_or_default()
    }

    fn condition(&self, type_: &str) -> (String, String) {
        let found = self.status().conditions.into_iter().find(|condition| condition.type_ == type_);
        found.map(|condition| (condition.status, condition.reason)).unwrap_or_default()
    }

    fn finalizers(&self) -> Vec<String> {
        self.topic().finalizers().to_vec()
    }
}

#[tokio::test]
async fn a_topic_is_created_after_its_finalizer_and_then_costs_no_write() {
    let scene = Scene::new();
    scene.pass().await;
    assert_eq!(scene.finalizers(), [TOPIC_FINALIZER]);
    assert_eq!(scene.changes(), Vec::<String>::new(), "not before the finalizer is there");
    scene.pass().await;
    assert_eq!(scene.changes(), ["PUT /v1/topics/orders"]);
    assert_eq!(scene.status().partitions, Some(12));
    scene.api.take_writes();
    for _ in 0..3 {
        scene.pass().await;
    }
    assert_eq!(scene.api.take_writes(), Vec::<String>::new());
    assert_eq!(scene.changes(), Vec::<String>::new());
}

#[tokio::test]
async fn growing_is_carried_out_and_a_refusal_keeps_the_facts() {
    let scene = Scene::new();
    scene.pass().await;
    scene.pass().await;
    scene.edit(|topic| topic["spec"]["partitions"] = 24.into());
    scene.pass().await;
    assert_eq!(scene.status().partitions, Some(24));
    scene.edit(|topic| topic["spec"]["partitions"] = 6.into());
    scene.pass().await;
    assert_eq!(scene.condition("Stalled"), ("True".into(), "PartitionsShrink".into()));
    assert_eq!(scene.condition("Ready"), ("False".into(), "PartitionsShrink".into()));
    assert_eq!(scene.status().partitions, Some(24));
}

#[tokio::test]
async fn a_change_made_elsewhere_is_put_back() {
    let scene = Scene::new();
    scene.pass().await;
    scene.pass().await;
    scene.brokers.0.lock().unwrap().topics.get_mut("orders").unwrap().config.clear();
    scene.changes();
    scene.pass().await;
    assert_eq!(scene.changes(), ["PUT /v1/topics/orders"]);
}

#[tokio::test]
async fn a_topic_of_another_owner_is_refused_and_let_go_without_a_touch() {
    let scene = Scene::new();
    let owner =
        millrace_management::TopicOwner { namespace: "a".into(), name: "b".into(), uid: "t-9".into() };
    let view = TopicView {
        name: "orders".into(),
        topic_id: "theirs".into(),
        owner: Some(owner),
        partitions: 1,
        replicas: 1,
        offline_partitions: 0,
        under_replicated_partitions: 0,
        config: BTreeMap::new(),
    };
    scene.brokers.0.lock().unwrap().topics.insert("orders".into(), view.clone());
    scene.pass().await;
    scene.pass().await;
    assert_eq!(scene.condition("Ready"), ("False".into(), "OwnedByAnother".into()));
    assert_eq!(scene.status().topic_id, None);
    assert_eq!(scene.brokers.0.lock().unwrap().topics["orders"], view);
}

#[tokio::test]
async fn retain_releases_and_delete_deletes() {
    for (policy, call, remains) in [
        ("Retain", "POST /v1/topics/orders/release", true),
        ("Delete", "DELETE /v1/topics/orders?ownerUid=t-1", false),
    ] {
        let scene = Scene::new();
        scene.edit(|topic| topic["spec"]["deletionPolicy"] = policy.into());
        scene.pass().await;
        scene.pass().await;
        scene.changes();
        scene.mark_deleted(&Timestamp::now().to_string());
        scene.pass().await;
        assert_eq!(scene.changes(), [call]);
        assert_eq!(scene.brokers.0.lock().unwrap().topics.contains_key("orders"), remains, "{policy}");
        assert!(scene.finalizers().is_empty(), "{policy}");
    }
}

#[tokio::test]
async fn brokers_that_cannot_be_asked_hold_a_deletion_up_for_a_bounded_time() {
    let scene = Scene::new();
    scene.pass().await;
    scene.pass().await;
    scene.brokers.0.lock().unwrap().down = true;
    scene.mark_deleted(&Timestamp::now().to_string());
    scene.pass().await;
    assert_eq!(scene.finalizers(), [TOPIC_FINALIZER]);
    assert_eq!(scene.condition("Reconciling"), ("True".into(), "Deleting".into()));
    scene.mark_deleted("2026-01-01T00:00:00Z");
    scene.pass().await;
    assert!(scene.finalizers().is_empty());
}

#[tokio::test]
async fn the_finalizer_ends_at_once_when_the_cluster_is_gone_or_goes() {
    for gone in [true, false] {
        let scene = Scene::new();
        scene.pass().await;
        scene.brokers.0.lock().unwrap().down = true;
        if gone {
            scene.api.remove(CLUSTER);
        } else {
            let mut cluster = scene.api.get(CLUSTER).unwrap();
            cluster["metadata"]["deletionTimestamp"] = Timestamp::now().to_string().into();
            scene.api.put(CLUSTER, cluster);
        }
        scene.mark_deleted(&Timestamp::now().to_string());
        scene.pass().await;
        assert!(scene.finalizers().is_empty(), "gone: {gone}");
    }
}

#[tokio::test]
async fn a_cluster_that_only_the_cache_does_not_know_is_not_gone() {
    let scene = Scene::new();
    scene.pass().await;
    scene.pass().await;
    scene.brokers.0.lock().unwrap().down = true;
    scene.mark_deleted(&Timestamp::now().to_string());
    reconcile(&scene.topic(), &scene.context, &|_: &Names| None).await.unwrap();
    assert_eq!(scene.finalizers(), [TOPIC_FINALIZER]);
}

#[tokio::test]
async fn a_missing_cluster_is_waited_for_by_name() {
    let scene = Scene::new();
    scene.api.remove(CLUSTER);
    scene.pass().await;
    assert_eq!(scene.condition("Ready"), ("False".into(), "ClusterNotFound".into()));
    assert_eq!(scene.condition("Stalled").0, "False");
    assert!(scene.finalizers().is_empty());
}
