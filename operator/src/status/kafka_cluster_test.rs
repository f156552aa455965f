//! What is said of a KafkaCluster.

use serde_json::json;

use super::*;
use crate::{
    build::config_map::config_map,
    controller::kafka_cluster::validate::fixture::{CLUSTER_ID, quickstart},
};

fn now() -> Timestamp {
    "2026-11-01T12:00:00Z".parse().unwrap()
}

fn pod(ordinal: i32, ready: bool) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": format!("demo-broker-{ordinal}"),
            "creationTimestamp": "2026-11-01T11:00:00Z",
        },
        "spec": {"containers": [], "nodeName": format!("node-{ordinal}")},
        "status": {
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            "containerStatuses": [{
                "name": "broker", "image": "i", "imageID": "", "ready": ready, "restartCount": 0,
                "state": {"running": {}},
            }],
        },
    }))
    .unwrap()
}

fn identity(ordinal: i32) -> Identity {
    Identity {
        cluster_id: CLUSTER_ID.into(),
        volume_uuid: format!("v{ordinal}"),
        raft_node_id: format!("{ordinal}"),
        broker_id: Some(ordinal),
        address: format!("demo-broker-{ordinal}.demo-brokers.ns.svc:9093"),
        version: "0.1.0".into(),
        member_of_quorum: true,
    }
}

fn view(count: i32) -> ClusterView {
    let brokers = (0..count)
        .map(|n| BrokerView {
            broker_id: n,
            volume_uuid: format!("v{n}"),
            raft_node_id: format!("{n}"),
            address: String::new(),
            version: "0.1.0".into(),
            rack: Some(format!("zone-{n}")),
            fenced: false,
            leader_count: 0,
            replica_count: 0,
        })
        .collect();
    ClusterView {
        cluster_id: CLUSTER_ID.into(),
        controller_id: Some(0),
        brokers,
        quorum: millrace_management::QuorumView { leader: Some("0".into()), ..Default::default() },
        topic_count: 0,
        partition_count: 0,
        offline_partition_count: 0,
    }
}

/// A cluster of three in which everything is as it should be; tests break one thing.
struct Scene {
    cluster: ValidatedCluster,
    observed: Observed,
    zones: Zones,
    identities: Vec<Option<Identity>>,
    view: Result<ClusterView, String>,
    quorum_blocker: Option<Cause>,
    expansion_errors: Vec<String>,
    live: KafkaClusterStatus,
}

impl Scene {
    fn ready() -> Self {
        Self {
            cluster: quickstart(),
            observed: Observed { pods: (0..3).map(|n| pod(n, true)).collect(), ..Observed::default() },
            zones: Zones {
                by_node: (0..3).map(|n| (format!("node-{n}"), Some(format!("zone-{n}")))).collect(),
                error: None,
            },
            identities: (0..3).map(|n| Some(identity(n))).collect(),
            view: Ok(view(3)),
            quorum_blocker: None,
            expansion_errors: Vec::new(),
            live: KafkaClusterStatus::default(),
        }
    }

    fn status_at(&self, now: Timestamp) -> KafkaClusterStatus {
        let config_map = config_map(&self.cluster, None, "2026-11-01T11:00:00.5Z".parse().unwrap());
        let facts = Facts {
            cluster: &self.cluster,
            observed: &self.observed,
            config_map: &config_map,
            zones: &self.zones,
            identities: &self.identities,
            quorum_blocker: self.quorum_blocker.as_ref(),
            quorum_stalled: None,
            view: self.view.as_ref().map_err(String::as_str),
            certificates: CertificateFacts {
                authority_expiry: "2031-01-01T00:00:00Z".parse().unwrap(),
                leaf_expiry: Some("2027-01-01T00:00:00Z".parse().unwrap()),
                renewing: false,
            },
            expansion_errors: &self.expansion_errors,
        };
        status(&self.live, facts, Some(1), now)
    }

    fn condition(&self, type_: &str) -> (String, String, String) {
        let all = self.status_at(now()).conditions;
        let found = all.into_iter().find(|condition| condition.type_ == type_).unwrap();
        (found.status, found.reason, found.message)
    }
}

fn triple(status: &str, reason: &str, message: &str) -> (String, String, String) {
    (status.into(), reason.into(), message.into())
}

#[test]
fn is_ready_when_every_broker_is_registered_and_its_pod_ready() {
    let scene = Scene::ready();
    assert_eq!(scene.condition("Ready"), triple("True", "BrokersReady", "all 3 brokers serve clients"));
    assert_eq!(scene.condition("Reconciling").0, "False");
    assert_eq!(scene.condition("Stalled").0, "False");
    let status = scene.status_at(now());
    assert_eq!(
        (status.replicas, status.ready_replicas, status.version.as_deref()),
        (Some(3), Some(3), Some("0.1.0"))
    );
    assert_eq!(status.brokers[2].rack.as_deref(), Some("zone-2"));
    assert_eq!(status.observed_generation, Some(1));
}

#[test]
fn lists_addresses_for_clients_inside_and_outside() {
    let status = Scene::ready().status_at(now());
    assert_eq!(status.listeners[0].bootstrap_address, "demo-bootstrap.ns.svc:9092");
    assert_eq!(status.listeners[1].bootstrap_address, "localhost:30092");
    assert_eq!(status.listeners[1].addresses, ["localhost:30100", "localhost:30101", "localhost:30102"]);
    assert_eq!(status.listeners[0].addresses[0], "demo-broker-0.demo-brokers.ns.svc:9092");
}

#[test]
fn the_same_facts_later_give_the_same_status() {
    let mut scene = Scene::ready();
    let first = scene.status_at(now());
    scene.live = first.clone();
    assert_eq!(scene.status_at(now() + jiff::SignedDuration::from_hours(5)), first);
}

#[test]
fn names_the_pod_that_is_waited_for() {
    let mut scene = Scene::ready();
    scene.observed.pods.remove(1);
    assert_eq!(
        scene.condition("Ready"),
        triple("False", "WaitingForPods", "demo-broker-1 does not exist yet")
    );
    assert_eq!(scene.condition("Reconciling").0, "True");
}

#[test]
fn says_that_a_broker_refuses_its_volume_or_configuration() {
    let mut scene = Scene::ready();
    scene.observed.pods[0] = serde_json::from_value(json!({
        "metadata": {"name": "demo-broker-0"},
        "status": {"containerStatuses": [{
            "name": "broker", "image": "i", "imageID": "", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 78}},
        }]},
    }))
    .unwrap();
    let (_, reason, message) = scene.condition("Ready");
    assert_eq!(reason, "WaitingForPods");
    assert_eq!(
        message,
        "demo-broker-0 ended with exit code 78: it refuses its configuration or its volume; see kubectl logs \
         demo-broker-0 --previous"
    );
}

#[test]
fn names_the_quorum_before_pods_that_run_but_cannot_be_ready_without_it() {
    let mut scene = Scene::ready();
    scene.observed.pods = (0..3).map(|n| pod(n, false)).collect();
    scene.quorum_blocker = Some(Cause::new("FormingQuorum", "x"));
    assert_eq!(scene.condition("Ready").1, "FormingQuorum");
    scene.quorum_blocker = None;
    assert_eq!(scene.condition("Ready").1, "WaitingForPods");
}

#[test]
fn fenced_and_unregistered_brokers_are_not_ready() {
    let mut scene = Scene::ready();
    let view = scene.view.as_mut().unwrap();
    view.brokers[1].fenced = true;
    view.brokers.remove(2);
    let (_, reason, message) = scene.condition("Ready");
    assert_eq!(reason, "WaitingForRegistration");
    assert_eq!(
        message,
        "demo-broker-1 (broker 1) is fenced; demo-broker-2 has not registered with the metadata quorum"
    );
    assert_eq!(scene.status_at(now()).ready_replicas, Some(1));
}

#[test]
fn a_broker_that_does_not_answer_keeps_its_id_and_version() {
    let mut scene = Scene::ready();
    scene.live = scene.status_at(now());
    scene.identities[1] = None;
    let status = scene.status_at(now());
    assert_eq!((status.brokers[1].id, status.brokers[1].ready), (Some(1), false));
    assert_eq!(status.brokers[1].version.as_deref(), Some("0.1.0"));
    assert_eq!(scene.condition("Ready").2, "demo-broker-1 does not answer");
}

#[test]
fn a_refused_scale_down_stalls_while_the_brokers_stay_ready() {
    let mut scene = Scene::ready();
    scene.cluster.refused_replicas = Some(1);
    let (status, reason, message) = scene.condition("Stalled");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "ScaleDownRefused"));
    assert!(message.contains("draining brokers is not supported yet; set spec.replicas to 3"), "{message}");
    assert_eq!(scene.condition("Ready").0, "True");
    assert_eq!(scene.status_at(now()).replicas, Some(3));
}

#[test]
fn nodes_that_cannot_be_read_are_no_obstacle() {
    let mut scene = Scene::ready();
    scene.zones = Zones { error: Some("cannot read node node-0: forbidden".into()), ..Zones::default() };
    assert_eq!(scene.condition("RacksKnown").1, "NodesUnreadable");
    assert_eq!(scene.condition("Ready").0, "True");
}

#[test]
fn pods_older_than_the_configuration_are_named() {
    let mut scene = Scene::ready();
    assert_eq!(scene.condition("ConfigurationCurrent").0, "True", "started in the same second");
    scene.observed.pods[2].metadata.creation_timestamp = Some(Time("2026-11-01T10:59:59Z".parse().unwrap()));
    let (status, reason, message) = scene.condition("ConfigurationCurrent");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "RestartPending"));
    assert!(message.starts_with("demo-broker-2 started before"), "{message}");
    assert_eq!(scene.condition("Ready").0, "True");
}

#[test]
fn a_volume_that_cannot_grow_is_said_and_is_no_obstacle() {
    let mut scene = Scene::ready();
    scene.expansion_errors = vec!["data-demo-broker-0: forbidden".into()];
    assert_eq!(scene.condition("StorageSized").1, "ExpansionRefused");
    assert_eq!(scene.condition("Ready").0, "True");
}

#[test]
fn versions_are_compared_by_number() {
    let mut scene = Scene::ready();
    for (identity, version) in scene.identities.iter_mut().flatten().zip(["0.10.0", "0.9.1", "0.9.10"]) {
        identity.version = version.into();
    }
    assert_eq!(scene.status_at(now()).version.as_deref(), Some("0.9.1"));
}

#[test]
fn a_failed_pass_keeps_ready_and_what_was_observed() {
    let live = Scene::ready().status_at(now());
    let after = failed(&live, &Cause::new("ApplyFailed", "x"), Some(1), now());
    assert_eq!(after.brokers, live.brokers);
    let ready = after.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
    assert_eq!(ready.status, "True");
    let refused = refused(&live, &Cause::new("InvalidSpec", "y"), Some(2), now());
    assert_eq!(refused.cluster_id, live.cluster_id);
    let ready = refused.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "InvalidSpec"));
}
