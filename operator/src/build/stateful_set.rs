//! StatefulSet of the brokers.
//!
//! `Parallel`, because brokers wait for each other and not for Kubernetes; `OnDelete`, because only the brokers know
//! when a restart is safe. Claims are retained: a smaller or deleted set never takes records with it. The pod template
//! depends on image and pod shape alone, never on broker configuration or certificates.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{
            StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
            StatefulSetUpdateStrategy,
        },
        core::v1::{
            Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar,
            EnvVarSource, ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, ObjectFieldSelector,
            PersistentVolumeClaim, PersistentVolumeClaimSpec, PodSecurityContext, PodSpec, PodTemplateSpec,
            Probe, ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext,
            TopologySpreadConstraint, Volume, VolumeMount, VolumeResourceRequirements,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use millrace_crds::{FLEET_LISTENER, FLEET_PORT, HEALTH_PORT};

use super::{
    CLUSTER_ID_ANNOTATION, DATA_VOLUME,
    config_map::{CONFIG_DIRECTORY, DATA_DIRECTORY, TLS_DIRECTORY},
    metadata,
};
use crate::controller::kafka_cluster::validate::ValidatedCluster;

const CONTAINER: &str = "broker";
const BINARY: &str = "/usr/local/bin/millrace-broker";
const PRE_STOP_CONFIG: &str = "/etc/millrace/pre-stop.properties";
const USER_ID: i64 = 65532;
/// Time for a broker to hand its leaders over and to flush, before it is killed.
const TERMINATION_GRACE_SECONDS: i64 = 60;

/// The StatefulSet.
pub fn stateful_set(cluster: &ValidatedCluster) -> StatefulSet {
    let names = &cluster.names;
    let selector = LabelSelector { match_labels: Some(names.selector()), ..LabelSelector::default() };
    StatefulSet {
        metadata: metadata(cluster, names.broker_set()),
        spec: Some(StatefulSetSpec {
            replicas: Some(cluster.replicas),
            service_name: Some(names.headless()),
            selector: selector.clone(),
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                ..StatefulSetUpdateStrategy::default()
            }),
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some("Retain".to_owned()),
                when_scaled: Some("Retain".to_owned()),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(names.labels()), ..ObjectMeta::default() }),
                spec: Some(pod(cluster, selector)),
            },
            volume_claim_templates: Some(vec![claim(cluster)]),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn pod(cluster: &ValidatedCluster, selector: LabelSelector) -> PodSpec {
    PodSpec {
        service_account_name: Some(cluster.names.broker_set()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(TERMINATION_GRACE_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_user: Some(USER_ID),
            run_as_group: Some(USER_ID),
            run_as_non_root: Some(true),
            fs_group: Some(USER_ID),
            // Changing the owner of every file at each start would take minutes on a full volume.
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        topology_spread_constraints: Some(
            ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
                .map(|key| TopologySpreadConstraint {
                    max_skew: 1,
                    topology_key: key.to_owned(),
                    // A preference: a broker in the wrong place is better than none.
                    when_unsatisfiable: "ScheduleAnyway".to_owned(),
                    label_selector: Some(selector.clone()),
                    ..TopologySpreadConstraint::default()
                })
                .to_vec(),
        ),
        node_selector: Some(cluster.node_selector.clone()).filter(|labels| !labels.is_empty()),
        tolerations: Some(cluster.tolerations.clone()).filter(|list| !list.is_empty()),
        containers: vec![container(cluster)],
        volumes: Some(volumes(cluster)),
        ..PodSpec::default()
    }
}

fn container(cluster: &ValidatedCluster) -> Container {
    let config_file = format!("{CONFIG_DIRECTORY}/$(POD_NAME).properties");
    Container {
        name: CONTAINER.to_owned(),
        image: Some(cluster.image.clone()),
        image_pull_policy: Some(cluster.image_pull_policy.as_str().to_owned()),
        command: Some(vec![BINARY.to_owned()]),
        args: Some(vec!["--config".to_owned(), config_file]),
        env: Some(vec![EnvVar {
            name: "POD_NAME".to_owned(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    api_version: Some("v1".to_owned()),
                    field_path: "metadata.name".to_owned(),
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        }]),
        ports: Some(vec![
            port(FLEET_LISTENER, i32::from(FLEET_PORT)),
            port("health", i32::from(HEALTH_PORT)),
        ]),
        resources: Some(cluster.resources.clone().unwrap_or_else(default_resources)),
        // 10 minutes: replaying the journal of a broker that was killed is bounded, but not short on a slow disk.
        startup_probe: Some(probe("/startupz", 1, 600)),
        liveness_probe: Some(probe("/livez", 10, 6)),
        readiness_probe: Some(probe("/readyz", 2, 2)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                exec: Some(ExecAction { command: Some(pre_stop_command()) }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![
            mount("config", CONFIG_DIRECTORY, true),
            VolumeMount {
                sub_path_expr: Some("$(POD_NAME).properties".to_owned()),
                ..mount("config", PRE_STOP_CONFIG, true)
            },
            mount("tls", TLS_DIRECTORY, true),
            mount(DATA_VOLUME, DATA_DIRECTORY, false),
            mount("tmp", "/tmp", false),
        ]),
        ..Container::default()
    }
}

/// The kubelet expands `$(POD_NAME)` in arguments and in `subPathExpr`, but not in the command of a hook, so the hook
/// reads this pod's properties from a path that is the same in every pod.
fn pre_stop_command() -> Vec<String> {
    [BINARY, "pre-stop", "--config", PRE_STOP_CONFIG].map(str::to_owned).to_vec()
}

fn default_resources() -> ResourceRequirements {
    let requests = [("cpu", "100m"), ("memory", "128Mi")];
    ResourceRequirements {
        requests: Some(requests.map(|(key, value)| (key.to_owned(), Quantity(value.to_owned()))).into()),
        ..ResourceRequirements::default()
    }
}

fn volumes(cluster: &ValidatedCluster) -> Vec<Volume> {
    vec![
        Volume {
            name: "config".to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: cluster.names.config_map(),
                default_mode: Some(0o444),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: "tls".to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(cluster.names.broker_secret()),
                default_mode: Some(0o440),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: "tmp".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                size_limit: Some(Quantity("64Mi".to_owned())),
                ..EmptyDirVolumeSource::default()
            }),
            ..Volume::default()
        },
    ]
}

/// Template of the claims. Kubernetes never lets it change, so it takes the size the set was made with; volumes grow
/// through their claims.
fn claim(cluster: &ValidatedCluster) -> PersistentVolumeClaim {
    let requests = BTreeMap::from([("storage".to_owned(), Quantity(cluster.template_size.clone()))]);
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(DATA_VOLUME.to_owned()),
            labels: Some(cluster.names.selector()),
            annotations: Some(BTreeMap::from([(
                CLUSTER_ID_ANNOTATION.to_owned(),
                cluster.cluster_id.clone(),
            )])),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: cluster.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(requests),
                ..VolumeResourceRequirements::default()
            }),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

fn port(name: &str, port: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: port,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("health".to_owned()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(2),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::controller::kafka_cluster::validate::fixture::quickstart;

    fn built() -> Value {
        serde_json::to_value(stateful_set(&quickstart())).unwrap()
    }

    #[test]
    fn keeps_claims_and_leaves_restarts_and_order_to_the_brokers() {
        let spec = &built()["spec"];
        assert_eq!(spec["podManagementPolicy"], "Parallel");
        assert_eq!(spec["updateStrategy"], json!({"type": "OnDelete"}));
        assert_eq!(
            spec["persistentVolumeClaimRetentionPolicy"],
            json!({"whenDeleted": "Retain", "whenScaled": "Retain"})
        );
    }

    #[test]
    fn pods_meet_the_restricted_pod_security_standard() {
        let pod = &built()["spec"]["template"]["spec"];
        assert_eq!(
            pod["securityContext"],
            json!({
                "runAsUser": 65532, "runAsGroup": 65532, "runAsNonRoot": true,
                "fsGroup": 65532, "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            })
        );
        assert_eq!(
            pod["containers"][0]["securityContext"],
            json!({
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            })
        );
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["enableServiceLinks"], false);
    }

    #[test]
    fn claims_carry_the_cluster_id_and_only_labels_that_never_change() {
        let claim = &built()["spec"]["volumeClaimTemplates"][0];
        assert_eq!(
            claim["metadata"],
            json!({
                "name": "data",
                "annotations": {"millrace.dev/cluster-id": "AAAAAAAAAAAAAAAAAAAAAQ"},
                "labels": {
                    "app.kubernetes.io/name": "millrace",
                    "app.kubernetes.io/instance": "demo",
                    "app.kubernetes.io/component": "broker",
                },
            })
        );
        assert_eq!(claim["spec"]["storageClassName"], "standard");
        assert_eq!(claim["spec"]["resources"], json!({"requests": {"storage": "10Gi"}}));
    }

    #[test]
    fn pod_template_does_not_depend_on_configuration_listeners_or_count() {
        let mut cluster = quickstart();
        cluster.config.insert("log.retention.ms".into(), "1".into());
        cluster.listeners.pop();
        cluster.replicas = 7;
        let changed = serde_json::to_value(stateful_set(&cluster)).unwrap();
        assert_eq!(changed["spec"]["template"], built()["spec"]["template"]);
    }

    #[test]
    fn probes_and_hook_are_those_of_the_broker() {
        let container = &built()["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["startupProbe"]["httpGet"]["path"], "/startupz");
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/livez");
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz");
        assert_eq!(container["args"], json!(["--config", "/etc/millrace/config/$(POD_NAME).properties"]));
        assert_eq!(
            container["lifecycle"]["preStop"]["exec"]["command"],
            json!([
                "/usr/local/bin/millrace-broker",
                "pre-stop",
                "--config",
                "/etc/millrace/pre-stop.properties"
            ])
        );
        assert!(container["volumeMounts"].as_array().unwrap().contains(&json!({
            "name": "config", "mountPath": "/etc/millrace/pre-stop.properties",
            "subPathExpr": "$(POD_NAME).properties", "readOnly": true,
        })));
        assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"], "metadata.name");
    }

    #[test]
    fn spreads_over_zones_and_nodes_without_insisting() {
        let built = built();
        let spread = built["spec"]["template"]["spec"]["topologySpreadConstraints"].as_array().unwrap();
        let keys: Vec<_> = spread.iter().map(|c| c["topologyKey"].as_str().unwrap()).collect();
        assert_eq!(keys, ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]);
        assert!(spread.iter().all(|c| c["whenUnsatisfiable"] == "ScheduleAnyway"));
    }
}
