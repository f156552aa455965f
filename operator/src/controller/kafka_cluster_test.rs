//! Whole passes against an API server and a fleet in memory.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::sync::Mutex;

use bytes::Bytes;
use kube::Client;
use millrace_management::{BootstrapQuorum, BrokerView, QuorumView};
use serde_json::Value;

use super::{validate::fixture::manifest, *};
use crate::{
    controller::fake_api::FakeApi,
    events::Publisher,
    management::{Call, Endpoint},
    metrics::Metrics,
};

const CLUSTER: &str = "/apis/millrace.dev/v1alpha1/namespaces/ns/kafkaclusters/demo";
const SET: &str = "/apis/apps/v1/namespaces/ns/statefulsets/demo-broker";

/// Three brokers in memory: each has a volume, and together they may have a quorum.
#[derive(Clone, Debug, Default)]
struct Brokers(Arc<Mutex<BrokersState>>);

#[derive(Debug, Default)]
struct BrokersState {
    /// Cluster id on the volumes, taken from the first configuration they see.
    cluster_id: String,
    bootstraps: Vec<BootstrapQuorum>,
    racks: [Option<String>; 3],
    changes: u32,
}

impl Transport for Brokers {
    async fn send(&self, endpoint: &Endpoint, call: Call) -> Result<(u16, Bytes), String> {
        let mut state = self.0.lock().unwrap();
        let ordinal = endpoint.host.strip_prefix("demo-broker-").and_then(|rest| rest.split('.').next());
        let ordinal: usize = ordinal.unwrap().parse().unwrap();
        let formed = !state.bootstraps.is_empty();
        let answer = match (call.method.as_str(), call.path.as_str()) {
            ("GET", "/v1/identity") => serde_json::to_value(Identity {
                cluster_id: state.cluster_id.clone(),
                volume_uuid: format!("v{ordinal}"),
                raft_node_id: format!("{}", 100 + ordinal),
                broker_id: Some(ordinal.try_into().unwrap()),
                address: format!("{}:9093", endpoint.host),
                version: "0.1.0".into(),
                member_of_quorum: formed,
            }),
            ("POST", "/v1/quorum/bootstrap") => {
                state.bootstraps.push(serde_json::from_slice(&call.body.unwrap()).unwrap());
                Ok(json!({}))
            }
            ("GET", "/v1/cluster") if formed => serde_json::to_value(ClusterView {
                cluster_id: state.cluster_id.clone(),
                controller_id: Some(0),
                brokers: (0..3).map(|n| broker_view(n, state.racks[n].clone())).collect(),
                quorum: QuorumView { leader: Some("100".into()), ..QuorumView::default() },
                topic_count: 0,
                partition_count: 0,
                offline_partition_count: 0,
            }),
            ("PUT", path) if path.ends_with("/rack") => {
                let id: usize = path.split('/').nth(3).unwrap().parse().unwrap();
                let body: Value = serde_json::from_slice(&call.body.unwrap()).unwrap();
                state.racks[id] = body["rack"].as_str().map(str::to_owned);
                state.changes += 1;
                Ok(json!({}))
            }
            other => panic!("unexpected call {other:?}"),
        };
        Ok((200, answer.unwrap().to_string().into()))
    }
}

fn broker_view(n: usize, rack: Option<String>) -> BrokerView {
    BrokerView {
        broker_id: n.try_into().unwrap(),
        volume_uuid: format!("v{n}"),
        raft_node_id: format!("{}", 100 + n),
        address: String::new(),
        version: "0.1.0".into(),
        rack,
        fenced: false,
        leader_count: 0,
        replica_count: 0,
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
        api.put(CLUSTER, serde_json::to_value(manifest()).unwrap());
        Self { context: context(&api.client(), &brokers), api, brokers }
    }

    /// A new process, which remembers nothing.
    fn restart_operator(&mut self) {
        self.context = context(&self.api.client(), &self.brokers);
    }

    async fn pass(&self) -> Result<Action, Error> {
        let result = reconcile(&manifest(), &self.context).await;
        self.play_kubernetes();
        result
    }

    /// What StatefulSet controller, scheduler and kubelet would do.
    fn play_kubernetes(&self) {
        let Some(set) = self.api.get(SET) else { return };
        let template = &set["spec"]["volumeClaimTemplates"][0]["metadata"];
        let cluster_id = template["annotations"]["millrace.dev/cluster-id"].as_str().unwrap();
        for n in 0..set["spec"]["replicas"].as_i64().unwrap() {
            let name = format!("demo-broker-{n}");
            let claim = format!("/api/v1/namespaces/ns/persistentvolumeclaims/data-{name}");
            if self.api.get(&claim).is_none() {
                self.api.put(
                    &claim,
                    json!({
                        "metadata": {"name": format!("data-{name}"), "labels": template["labels"],
                                     "annotations": template["annotations"]},
                        "spec": {"volumeName": "pv", "resources": {"requests": {"storage": "10Gi"}}},
                        "status": {"capacity": {"storage": "10Gi"}},
                    }),
                );
            }
            let pod = format!("/api/v1/namespaces/ns/pods/{name}");
            if self.api.get(&pod).is_none() {
                self.api.put(
                    &pod,
                    json!({
                        "metadata": {"name": name, "labels": template["labels"]},
                        "spec": {"containers": [], "nodeName": format!("node-{n}")},
                        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
                    }),
                );
                self.api.put(
                    &format!("/api/v1/nodes/node-{n}"),
                    json!({
                        "metadata": {"name": format!("node-{n}"),
                                     "labels": {"topology.kubernetes.io/zone": format!("zone-{n}")}},
                    }),
                );
            }
        }
        let mut state = self.brokers.0.lock().unwrap();
        if state.cluster_id.is_empty() {
            state.cluster_id = cluster_id.to_owned();
        }
    }

    fn status(&self) -> KafkaClusterStatus {
        let cluster = self.api.get(CLUSTER).unwrap();
        serde_json::from_value(cluster["status"].clone()).unwrap_or_default()
    }

    fn condition(&self, type_: &str) -> (String, String) {
        let found = self.status().conditions.into_iter().find(|condition| condition.type_ == type_);
        found.map(|condition| (condition.status, condition.reason)).unwrap_or_default()
    }

    async fn run_until_ready(&self) {
        for _ in 0..20 {
            self.pass().await.unwrap();
            if self.condition("Ready").0 == "True" {
                return;
            }
        }
        panic!("not ready after 20 passes: {:#?}", self.status());
    }
}

fn context(client: &Client, brokers: &Brokers) -> Context<Brokers> {
    let metrics = Arc::new(Metrics::new());
    let events = Publisher::new(client.clone(), "operator-0", metrics.clone());
    Context::new(client.clone(), brokers.clone(), events, metrics, "millrace-broker:dev")
}

#[tokio::test]
async fn a_converged_cluster_costs_no_write_even_after_a_restart_of_the_operator() {
    let mut scene = Scene::new();
    scene.run_until_ready().await;
    scene.pass().await.unwrap();
    scene.api.take_writes();
    let changes = scene.brokers.0.lock().unwrap().changes;
    for _ in 0..3 {
        scene.pass().await.unwrap();
        scene.restart_operator();
    }
    assert_eq!(scene.api.take_writes(), Vec::<String>::new());
    assert_eq!(scene.brokers.0.lock().unwrap().changes, changes);
}

#[tokio::test]
async fn what_pods_need_exists_before_the_stateful_set_and_the_cluster_id_before_everything() {
    let scene = Scene::new();
    scene.run_until_ready().await;
    let writes: Vec<_> = scene.api.take_writes();
    let at = |part: &str| {
        writes.iter().position(|write| write.contains(part)).unwrap_or_else(|| panic!("{part}: {writes:?}"))
    };
    assert_eq!(at("kafkaclusters/demo/status"), 0);
    for needed in [
        "secrets/demo-broker-tls",
        "configmaps/demo-broker-config",
        "serviceaccounts/demo-broker",
        "services/demo-brokers",
    ] {
        assert!(at(needed) < at("statefulsets/demo-broker"), "{needed}");
    }
    assert!(at("secrets/demo-ca") < at("secrets/demo-broker-tls"));
}

#[tokio::test]
async fn the_quorum_is_formed_once_with_the_recorded_voters() {
    let scene = Scene::new();
    scene.run_until_ready().await;
    scene.pass().await.unwrap();
    let status = scene.status();
    assert_eq!(
        status.quorum.as_ref().unwrap().initial_voters,
        ["demo-broker-0", "demo-broker-1", "demo-broker-2"]
    );
    let state = scene.brokers.0.lock().unwrap();
    assert_eq!(state.bootstraps.len(), 1);
    assert_eq!(Some(&state.bootstraps[0].cluster_id), status.cluster_id.as_ref());
    assert_eq!(state.racks[2].as_deref(), Some("zone-2"));
}

/// The operator is cut off at every single write in turn, starts anew, and must end in the same place.
#[tokio::test]
async fn wherever_it_is_cut_off_there_is_one_cluster_id_and_one_quorum() {
    for allowed in 0..40 {
        let mut scene = Scene::new();
        scene.api.allow_writes(Some(allowed));
        for _ in 0..6 {
            let _ = scene.pass().await;
        }
        scene.api.allow_writes(None);
        scene.restart_operator();
        scene.run_until_ready().await;
        let id = scene.status().cluster_id.unwrap();
        let set = scene.api.get(SET).unwrap();
        let annotation =
            &set["spec"]["volumeClaimTemplates"][0]["metadata"]["annotations"]["millrace.dev/cluster-id"];
        assert_eq!(annotation, &Value::from(id), "cut off after {allowed} writes");
        let bootstraps = scene.brokers.0.lock().unwrap().bootstraps.clone();
        assert!(
            bootstraps.windows(2).all(|pair| pair[0] == pair[1]),
            "cut off after {allowed}: {bootstraps:?}"
        );
    }
}

#[tokio::test]
async fn drift_on_what_the_operator_owns_is_corrected() {
    let scene = Scene::new();
    scene.run_until_ready().await;
    let path = "/api/v1/namespaces/ns/services/demo-bootstrap";
    let mut service = scene.api.get(path).unwrap();
    service["spec"]["selector"] = json!({"app": "stolen"});
    scene.api.put(path, service);
    scene.api.remove("/api/v1/namespaces/ns/services/demo-broker-1-external");
    scene.pass().await.unwrap();
    let service = scene.api.get(path).unwrap();
    assert_eq!(service["spec"]["selector"]["app.kubernetes.io/instance"], "demo");
    assert!(scene.api.get("/api/v1/namespaces/ns/services/demo-broker-1-external").is_some());
}

#[tokio::test]
async fn a_strangers_object_of_the_same_name_is_left_alone_and_named() {
    let scene = Scene::new();
    let path = "/api/v1/namespaces/ns/configmaps/demo-broker-config";
    scene.api.put(path, json!({"metadata": {"name": "demo-broker-config"}, "data": {"mine": "1"}}));
    scene.pass().await.unwrap();
    scene.pass().await.unwrap_err();
    assert_eq!(scene.api.get(path).unwrap()["data"], json!({"mine": "1"}));
    assert_eq!(scene.condition("Stalled"), ("True".into(), "NameTaken".into()));
    assert!(scene.api.get(SET).is_none());
}

#[tokio::test]
async fn an_impossible_spec_stalls_and_touches_nothing() {
    let scene = Scene::new();
    scene.run_until_ready().await;
    let mut cluster = scene.api.get(CLUSTER).unwrap();
    cluster["spec"]["config"]["cluster.id"] = "x".into();
    cluster["metadata"]["generation"] = 2.into();
    scene.api.put(CLUSTER, cluster);
    scene.api.take_writes();
    scene.pass().await.unwrap();
    assert_eq!(scene.condition("Stalled"), ("True".into(), "ManagedProperty".into()));
    let writes = scene.api.take_writes();
    assert!(writes.iter().all(|write| write.contains("/status") || write.contains("/events")), "{writes:?}");
    scene.pass().await.unwrap();
    assert_eq!(scene.api.take_writes(), Vec::<String>::new());
}

#[tokio::test]
async fn fewer_replicas_are_refused_while_other_changes_are_carried_out() {
    let scene = Scene::new();
    scene.run_until_ready().await;
    let mut cluster = scene.api.get(CLUSTER).unwrap();
    cluster["spec"]["replicas"] = 1.into();
    cluster["spec"]["config"] = json!({"log.retention.ms": "5"});
    cluster["metadata"]["generation"] = 2.into();
    scene.api.put(CLUSTER, cluster);
    scene.pass().await.unwrap();
    assert_eq!(scene.api.get(SET).unwrap()["spec"]["replicas"], 3);
    assert_eq!(scene.condition("Stalled"), ("True".into(), "ScaleDownRefused".into()));
    assert_eq!(scene.condition("Ready").0, "True");
    assert_eq!(scene.status().replicas, Some(3));
    let config_map = scene.api.get("/api/v1/namespaces/ns/configmaps/demo-broker-config").unwrap();
    let file = config_map["data"]["demo-broker-2.properties"].as_str().unwrap();
    assert!(file.ends_with("log.retention.ms=5\n"), "{file}");
}

#[tokio::test]
async fn a_cluster_made_again_takes_up_its_retained_volumes_and_forms_no_second_quorum() {
    let mut scene = Scene::new();
    scene.run_until_ready().await;
    let id = scene.status().cluster_id;
    scene.api.remove(CLUSTER);
    scene.api.remove(SET);
    let mut again = serde_json::to_value(manifest()).unwrap();
    again["metadata"]["creationTimestamp"] = "2100-01-01T00:00:00Z".into();
    again["metadata"]["uid"] = "u-2".into();
    scene.api.put(CLUSTER, again);
    for kind in [
        "configmaps/demo-broker-config",
        "serviceaccounts/demo-broker",
        "secrets/demo-ca",
        "secrets/demo-broker-tls",
        "secrets/demo-operator-tls",
        "services/demo-brokers",
        "services/demo-bootstrap",
        "services/demo-external-bootstrap",
        "services/demo-broker-0-external",
        "services/demo-broker-1-external",
        "services/demo-broker-2-external",
    ] {
        scene.api.remove(&format!("/api/v1/namespaces/ns/{kind}"));
    }
    scene.api.remove("/apis/policy/v1/namespaces/ns/poddisruptionbudgets/demo-broker");
    scene.restart_operator();
    scene.run_until_ready().await;
    assert_eq!(scene.status().cluster_id, id);
    assert_eq!(scene.brokers.0.lock().unwrap().bootstraps.len(), 1);
}

#[tokio::test]
async fn volumes_go_after_their_pods_and_only_with_the_policy_delete() {
    let scene = Scene::new();
    scene.run_until_ready().await;
    let mut cluster = scene.api.get(CLUSTER).unwrap();
    cluster["spec"]["deletionPolicy"] = "Delete".into();
    scene.api.put(CLUSTER, cluster);
    scene.pass().await.unwrap();
    let mut cluster = scene.api.get(CLUSTER).unwrap();
    assert_eq!(cluster["metadata"]["finalizers"], json!([VOLUMES_FINALIZER]));
    cluster["metadata"]["deletionTimestamp"] = Timestamp::now().to_string().into();
    scene.api.put(CLUSTER, cluster);
    let stranger = "/api/v1/namespaces/ns/persistentvolumeclaims/data-demo-broker-7";
    let labels = Names::new("ns", "demo").selector();
    scene.api.put(
        stranger,
        json!({"metadata": {"name": "data-demo-broker-7", "labels": labels,
                                                "annotations": {"millrace.dev/cluster-id": "other"}}}),
    );

    reconcile(&manifest(), &scene.context).await.unwrap();
    assert!(scene.api.get(SET).is_none());
    let claim = "/api/v1/namespaces/ns/persistentvolumeclaims/data-demo-broker-0";
    assert!(scene.api.get(claim).is_some(), "its pod still runs");
    for n in 0..3 {
        scene.api.remove(&format!("/api/v1/namespaces/ns/pods/demo-broker-{n}"));
    }
    reconcile(&manifest(), &scene.context).await.unwrap();
    assert!(scene.api.get(claim).is_none());
    reconcile(&manifest(), &scene.context).await.unwrap();
    assert_eq!(scene.api.get(CLUSTER).unwrap()["metadata"]["finalizers"], json!([]));
    assert!(scene.api.get(stranger).is_some(), "a volume of another cluster stays");
}

#[tokio::test]
async fn volumes_that_do_not_go_hold_the_deletion_up_for_a_bounded_time() {
    let scene = Scene::new();
    scene.run_until_ready().await;
    let mut cluster = scene.api.get(CLUSTER).unwrap();
    cluster["metadata"]["finalizers"] = json!([VOLUMES_FINALIZER]);
    cluster["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    scene.api.put(CLUSTER, cluster);
    reconcile(&manifest(), &scene.context).await.unwrap();
    assert_eq!(scene.api.get(CLUSTER).unwrap()["metadata"]["finalizers"], json!([]));
    assert!(scene.api.get("/api/v1/namespaces/ns/persistentvolumeclaims/data-demo-broker-0").is_some());
}
