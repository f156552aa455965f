//! Status of a KafkaCluster.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt;
use millrace_crds::{
    BrokerStatus, CertificateStatus, KafkaClusterStatus, Listener, ListenerStatus, condition,
};
use millrace_management::{BrokerView, ClusterView, Identity};

use super::{Cause, Conditions, Truth, summary};
use crate::{
    build::config_map::{address, revision_since},
    controller::kafka_cluster::{
        dereference::{Observed, Zones},
        validate::ValidatedCluster,
    },
    quantity,
};

/// Exit code by which a broker says that its volume or its configuration is not acceptable.
const REFUSED_EXIT_CODE: i32 = 78;
const REVISION_LABEL: &str = "controller-revision-hash";

/// What is known at the end of a pass.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The cluster as it was applied.
    pub cluster: &'a ValidatedCluster,
    /// What existed at the beginning of the pass.
    pub observed: &'a Observed,
    /// The ConfigMap as it was applied.
    pub config_map: &'a ConfigMap,
    /// Zones of the nodes.
    pub zones: &'a Zones,
    /// What each broker says about itself, by ordinal; `None` where it did not answer.
    pub identities: &'a [Option<Identity>],
    /// What stands between the brokers and a quorum.
    pub quorum_blocker: Option<&'a Cause>,
    /// Something about the quorum that waiting does not cure.
    pub quorum_stalled: Option<&'a Cause>,
    /// The cluster as the quorum sees it, or why it cannot be seen.
    pub view: Result<&'a ClusterView, &'a str>,
    /// Certificates.
    pub certificates: CertificateFacts,
    /// Volumes that could not be made larger, and why.
    pub expansion_errors: &'a [String],
}

/// When certificates expire, and whether the authority is being renewed.
#[derive(Clone, Copy, Debug)]
pub struct CertificateFacts {
    /// The current authority.
    pub authority_expiry: Timestamp,
    /// The leaf that expires first; `None` where one is missing.
    pub leaf_expiry: Option<Timestamp>,
    /// Whether two authorities are trusted.
    pub renewing: bool,
}

/// The new status; `live` is the one that is there.
pub fn status(
    live: &KafkaClusterStatus,
    facts: Facts<'_>,
    generation: Option<i64>,
    now: Timestamp,
) -> KafkaClusterStatus {
    let Facts { cluster, certificates, .. } = facts;
    let brokers: Vec<_> = (0..cluster.replicas).map(|ordinal| broker(live, facts, ordinal)).collect();
    let ready = brokers.iter().filter(|broker| broker.ready).count();
    let waits_for = blocker(facts);
    let stalled = stalled(facts);
    let mut conditions = Conditions::new(&live.conditions, generation, now);
    match &waits_for {
        None => conditions.set(
            condition::READY,
            Truth::True,
            Cause::new("BrokersReady", format!("all {} brokers serve clients", cluster.replicas)),
        ),
        Some(cause) => conditions.set(condition::READY, Truth::False, cause.clone()),
    }
    conditions.set_progress(waits_for.as_ref().filter(|_| facts.quorum_stalled.is_none()), stalled.as_ref());
    set_certificates(&mut conditions, certificates, now);
    set_racks(&mut conditions, facts);
    set_configuration(&mut conditions, facts);
    set_storage(&mut conditions, facts);
    KafkaClusterStatus {
        observed_generation: generation,
        conditions: conditions.into_list(),
        cluster_id: Some(cluster.cluster_id.clone()),
        quorum: live.quorum.clone(),
        replicas: Some(facts.observed.pods.len().try_into().unwrap_or(i32::MAX)),
        ready_replicas: Some(ready.try_into().unwrap_or(i32::MAX)),
        selector: Some(cluster.names.selector_query()),
        version: brokers
            .iter()
            .filter_map(|broker| broker.version.clone())
            .min_by_key(|version| version_key(version)),
        listeners: cluster.listeners.iter().map(|listener| listener_status(cluster, listener)).collect(),
        brokers,
        certificates: Some(CertificateStatus {
            ca_expiry: Some(Time(certificates.authority_expiry)),
            leaf_expiry: certificates.leaf_expiry.map(Time),
        }),
    }
}

/// The status where the spec cannot be carried out at all. What was observed before stays.
pub fn refused(
    live: &KafkaClusterStatus,
    cause: &Cause,
    generation: Option<i64>,
    now: Timestamp,
) -> KafkaClusterStatus {
    let mut conditions = Conditions::new(&live.conditions, generation, now);
    conditions.set(condition::READY, Truth::False, cause.clone());
    conditions.set_progress(None, Some(cause));
    KafkaClusterStatus { observed_generation: generation, conditions: conditions.into_list(), ..live.clone() }
}

/// The status where a pass was cut short and will be tried again. `observedGeneration` stays: nothing is settled.
pub fn failed(
    live: &KafkaClusterStatus,
    cause: &Cause,
    generation: Option<i64>,
    now: Timestamp,
) -> KafkaClusterStatus {
    let mut conditions = Conditions::new(&live.conditions, generation, now);
    if !conditions.holds(condition::READY) {
        conditions.set(condition::READY, Truth::False, cause.clone());
    }
    conditions.set_progress(Some(cause), None);
    KafkaClusterStatus { conditions: conditions.into_list(), ..live.clone() }
}

/// What the cluster waits for, the first thing first; `None` when it is ready.
fn blocker(facts: Facts<'_>) -> Option<Cause> {
    let Facts { cluster, observed, identities, .. } = facts;
    if let Some(cause) = facts.quorum_stalled {
        return Some(cause.clone());
    }
    let pods: Vec<_> =
        (0..cluster.replicas).filter_map(|n| pod_problem(&cluster.names.pod(n), &observed.pods)).collect();
    // A pod can only become ready once the quorum is there, so the quorum is named first where pods run.
    let running = |problem: &(String, bool)| problem.1;
    if pods.iter().any(|problem| !running(problem)) {
        return Some(Cause::new("WaitingForPods", summary(&texts(&pods))));
    }
    if let Some(cause) = facts.quorum_blocker {
        return Some(cause.clone());
    }
    let silent: Vec<_> = (0..)
        .zip(identities)
        .filter(|(_, identity)| identity.is_none())
        .map(|(n, _)| format!("{} does not answer", cluster.names.pod(n)))
        .collect();
    if !silent.is_empty() {
        return Some(Cause::new("WaitingForBrokers", summary(&silent)));
    }
    let view = match facts.view {
        Ok(view) => view,
        Err(error) => return Some(Cause::new("QuorumUnavailable", error)),
    };
    if view.quorum.leader.is_none() {
        return Some(Cause::new("QuorumUnavailable", "the metadata quorum has no leader"));
    }
    let unregistered: Vec<_> = (0..)
        .zip(identities)
        .filter_map(|(n, identity)| registration_problem(&cluster.names.pod(n), identity.as_ref(), view))
        .collect();
    if !unregistered.is_empty() {
        return Some(Cause::new("WaitingForRegistration", summary(&unregistered)));
    }
    (!pods.is_empty()).then(|| Cause::new("WaitingForPods", summary(&texts(&pods))))
}

fn texts(problems: &[(String, bool)]) -> Vec<String> {
    problems.iter().map(|(text, _)| text.clone()).collect()
}

fn registration_problem(pod: &str, identity: Option<&Identity>, view: &ClusterView) -> Option<String> {
    match registered(identity, view) {
        None => Some(format!("{pod} has not registered with the metadata quorum")),
        Some(found) if found.fenced => Some(format!("{pod} (broker {}) is fenced", found.broker_id)),
        Some(_) => None,
    }
}

/// The registration of the broker on this volume. By volume and not by name or ordinal: a volume that was lost is
/// another broker.
pub fn registered<'a>(identity: Option<&Identity>, view: &'a ClusterView) -> Option<&'a BrokerView> {
    let volume = &identity?.volume_uuid;
    view.brokers.iter().find(|broker| &broker.volume_uuid == volume)
}

/// What is wrong with a pod, and whether its container runs nevertheless.
fn pod_problem(name: &str, pods: &[Pod]) -> Option<(String, bool)> {
    let Some(pod) = pods.iter().find(|pod| pod.name_any() == name) else {
        return Some((format!("{name} does not exist yet"), false));
    };
    if pod.metadata.deletion_timestamp.is_some() {
        return Some((format!("{name} is being deleted"), false));
    }
    if is_ready(pod) {
        return None;
    }
    let status = pod.status.as_ref();
    let unschedulable = status
        .and_then(|status| status.conditions.as_ref())
        .and_then(|all| all.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False"));
    if let Some(condition) = unschedulable {
        let why = condition.message.as_deref().unwrap_or("no reason given");
        return Some((format!("{name} cannot be scheduled: {why}"), false));
    }
    let container = status.and_then(|status| status.container_statuses.as_ref()?.first());
    let state = container.and_then(|container| container.state.as_ref());
    let ended = container
        .and_then(|container| container.last_state.as_ref())
        .and_then(|last| last.terminated.as_ref())
        .or_else(|| state.and_then(|state| state.terminated.as_ref()));
    if state.is_some_and(|state| state.running.is_some()) {
        return Some((format!("{name} is starting"), true));
    }
    if let Some(ended) = ended {
        let hint = if ended.exit_code == REFUSED_EXIT_CODE {
            ": it refuses its configuration or its volume"
        } else {
            ""
        };
        let log = format!("see kubectl logs {name} --previous");
        return Some((format!("{name} ended with exit code {}{hint}; {log}", ended.exit_code), false));
    }
    let waiting = state.and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or("Pending");
    match waiting.and_then(|waiting| waiting.message.as_deref()) {
        Some(message) => Some((format!("{name} waits: {reason}: {message}"), false)),
        None => Some((format!("{name} waits: {reason}"), false)),
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|found| found.type_ == "Ready" && found.status == "True"))
}

fn stalled(facts: Facts<'_>) -> Option<Cause> {
    let Facts { cluster, quorum_stalled, .. } = facts;
    if let Some(cause) = quorum_stalled {
        return Some(cause.clone());
    }
    if let Some((claim, id)) = cluster.foreign_claims.first() {
        return Some(Cause::new(
            "ForeignVolume",
            format!(
                "volume claim {claim} holds records of cluster {id}, this one is {}; the broker refuses it: move \
                 the claim away or delete it",
                cluster.cluster_id
            ),
        ));
    }
    let wanted = cluster.refused_replicas?;
    Some(Cause::new(
        "ScaleDownRefused",
        format!(
            "spec.replicas is {wanted}, but {} brokers hold data, and draining brokers is not supported yet; set \
             spec.replicas to {} (all other changes are carried out)",
            cluster.replicas, cluster.replicas
        ),
    ))
}

fn broker(live: &KafkaClusterStatus, facts: Facts<'_>, ordinal: i32) -> BrokerStatus {
    let Facts { cluster, observed, identities, view, .. } = facts;
    let pod = cluster.names.pod(ordinal);
    let identity = usize::try_from(ordinal).ok().and_then(|at| identities.get(at)?.as_ref());
    let registered = view.ok().and_then(|view| registered(identity, view));
    // A broker that does not answer is unknown, not gone: what was known of it stays.
    let known = live.brokers.iter().find(|broker| broker.pod == pod).cloned().unwrap_or_default();
    let pod_ready = observed.pods.iter().any(|found| found.name_any() == pod && is_ready(found));
    BrokerStatus {
        id: registered
            .map(|found| found.broker_id)
            .or_else(|| identity.and_then(|identity| identity.broker_id))
            .or(known.id),
        ready: pod_ready && registered.is_some_and(|found| !found.fenced),
        rack: match registered {
            Some(found) => found.rack.clone(),
            None => known.rack,
        },
        version: identity.map(|identity| identity.version.clone()).or(known.version),
        address: identity.map(|identity| identity.address.clone()).or(known.address),
        pod,
    }
}

fn listener_status(cluster: &ValidatedCluster, listener: &Listener) -> ListenerStatus {
    let bootstrap_address = match (&listener.node_ports, &listener.advertised_host) {
        (Some(ports), Some(host)) => format!("{host}:{}", ports.bootstrap),
        _ => format!("{}:{}", cluster.names.service_host(&cluster.names.bootstrap()), listener.port),
    };
    ListenerStatus {
        name: listener.name.clone(),
        type_: listener.type_,
        bootstrap_address,
        addresses: (0..cluster.replicas).map(|ordinal| address(cluster, listener, ordinal)).collect(),
    }
}

/// Compares versions by number, so that 0.10.0 comes after 0.9.0.
fn version_key(version: &str) -> Vec<u64> {
    version.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0)).collect()
}

fn set_certificates(conditions: &mut Conditions, facts: CertificateFacts, now: Timestamp) {
    let CertificateFacts { authority_expiry, leaf_expiry, renewing } = facts;
    let first = leaf_expiry.map_or(authority_expiry, |leaf| leaf.min(authority_expiry));
    let (truth, cause) = match leaf_expiry {
        None => (
            Truth::False,
            Cause::new("Missing", "a certificate of the fleet listener could not be issued yet"),
        ),
        Some(_) if first <= now => {
            (Truth::False, Cause::new("Expired", "a certificate of the fleet listener has expired"))
        }
        Some(_) if renewing => (
            Truth::True,
            Cause::new(
                "RenewingAuthority",
                "the certificate authority is being renewed; old and new are trusted",
            ),
        ),
        Some(_) => (Truth::True, Cause::new("Issued", "the certificates of the fleet listener are valid")),
    };
    conditions.set(condition::CERTIFICATES_VALID, truth, cause);
}

fn set_racks(conditions: &mut Conditions, facts: Facts<'_>) {
    let Facts { zones, observed, .. } = facts;
    let (truth, cause) = if let Some(error) = &zones.error {
        let message = format!("{error}; replicas are placed without regard to zones");
        (Truth::Unknown, Cause::new("NodesUnreadable", message))
    } else {
        let nodes: BTreeSet<_> = observed.pods.iter().filter_map(node_of).collect();
        let without: Vec<_> = nodes
            .iter()
            .filter(|node| matches!(zones.by_node.get(**node), Some(None)))
            .map(|node| (*node).to_owned())
            .collect();
        let unscheduled = observed.pods.iter().filter(|pod| node_of(pod).is_none()).count();
        if nodes.is_empty() || unscheduled > 0 {
            (Truth::Unknown, Cause::new("NotScheduled", "some pods have no node yet"))
        } else if without.is_empty() && nodes.iter().all(|node| zones.by_node.contains_key(*node)) {
            (Truth::True, Cause::new("ZonesRead", "brokers know the zones of their nodes"))
        } else if without.is_empty() {
            (Truth::Unknown, Cause::new("NodesMissing", "the nodes of some pods are gone"))
        } else {
            let message = format!(
                "no label topology.kubernetes.io/zone on {}; replicas there are placed without regard to zones",
                summary(&without)
            );
            (Truth::False, Cause::new("NoZoneLabel", message))
        }
    };
    conditions.set(condition::RACKS_KNOWN, truth, cause);
}

/// Node that a pod runs on.
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn set_configuration(conditions: &mut Conditions, facts: Facts<'_>) {
    let Facts { observed, config_map, .. } = facts;
    let since = revision_since(config_map);
    let set = observed.stateful_set.as_ref();
    let newest = set
        .filter(|set| set.status.as_ref().and_then(|s| s.observed_generation) == set.metadata.generation)
        .and_then(|set| set.status.as_ref()?.update_revision.as_deref());
    let mut outdated: Vec<_> = observed
        .pods
        .iter()
        .filter(|pod| {
            let older = match (&pod.metadata.creation_timestamp, since) {
                // Kubernetes counts in whole seconds.
                (Some(created), Some(since)) => created.0.as_second() < since.as_second(),
                _ => false,
            };
            let revision = pod.labels().get(REVISION_LABEL).map(String::as_str);
            older || (newest.is_some() && revision.is_some() && revision != newest)
        })
        .map(ResourceExt::name_any)
        .collect();
    outdated.sort();
    let (truth, cause) = if outdated.is_empty() {
        (Truth::True, Cause::new("Current", "brokers run with the configuration of the spec"))
    } else {
        let message = format!(
            "{} started before the last change of configuration or pod template; delete these pods one at a time, \
             waiting for Ready in between, to carry it out",
            summary(&outdated)
        );
        (Truth::False, Cause::new("RestartPending", message))
    };
    conditions.set(condition::CONFIGURATION_CURRENT, truth, cause);
}

fn set_storage(conditions: &mut Conditions, facts: Facts<'_>) {
    let Facts { cluster, observed, expansion_errors, .. } = facts;
    let wanted = quantity::parse(&cluster.storage_size);
    let growing: Vec<_> = observed
        .claims
        .iter()
        .filter(|claim| capacity(claim).is_some_and(|size| Some(size) < wanted))
        .map(ResourceExt::name_any)
        .collect();
    let (truth, cause) = if !expansion_errors.is_empty() {
        (Truth::False, Cause::new("ExpansionRefused", summary(expansion_errors)))
    } else if !growing.is_empty() {
        let message = format!("{} grow to {}", summary(&growing), cluster.storage_size);
        (Truth::False, Cause::new("Expanding", message))
    } else if observed.claims.iter().any(|claim| capacity(claim).is_none()) {
        (Truth::Unknown, Cause::new("NotBound", "some volume claims have no volume yet"))
    } else {
        (Truth::True, Cause::new("Sized", format!("volumes have the size {}", cluster.storage_size)))
    };
    conditions.set(condition::STORAGE_SIZED, truth, cause);
}

fn capacity(claim: &PersistentVolumeClaim) -> Option<i128> {
    quantity::parse(&claim.status.as_ref()?.capacity.as_ref()?.get("storage")?.0)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
#[path = "kafka_cluster_test.rs"]
mod tests;
