//! Spec and observed facts → [`ValidatedCluster`], with every default filled in. No client.
//!
//! Decides the two things that must never change by accident: the cluster id, and how many brokers there are.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, ResourceRequirements, Toleration},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Resource, ResourceExt};
use millrace_crds::{
    DeletionPolicy, ImagePullPolicy, KafkaCluster, Listener, ListenerType, MANAGED_KEYS, MANAGED_PREFIXES,
};
use thiserror::Error;

use super::dereference::Observed;
use crate::{
    build::{CLUSTER_ID_ANNOTATION, DATA_VOLUME, Names},
    quantity,
};

/// A cluster that can be built.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedCluster {
    /// Names of everything.
    pub names: Names,
    /// Owner reference to the KafkaCluster.
    pub owner: OwnerReference,
    /// Kafka's cluster id.
    pub cluster_id: String,
    /// Where the id comes from.
    pub id_origin: IdOrigin,
    /// Number of brokers to run: what is asked for, or more where fewer is refused.
    pub replicas: i32,
    /// Set where fewer brokers were asked for than `replicas`: that number.
    pub refused_replicas: Option<i32>,
    /// Number of brokers that form the first quorum.
    pub initial_voters: i32,
    /// Ordinals whose volume is older than the KafkaCluster: they may hold a quorum already.
    pub adopted_ordinals: BTreeSet<i32>,
    /// Claims that hold records of another cluster, with its id.
    pub foreign_claims: Vec<(String, String)>,
    /// Client listeners.
    pub listeners: Vec<Listener>,
    /// Properties of the user.
    pub config: BTreeMap<String, String>,
    /// Image of the brokers.
    pub image: String,
    /// When to pull it.
    pub image_pull_policy: ImagePullPolicy,
    /// Resources of a broker, where the user says something.
    pub resources: Option<ResourceRequirements>,
    /// Labels of nodes.
    pub node_selector: BTreeMap<String, String>,
    /// Accepted taints.
    pub tolerations: Vec<Toleration>,
    /// Size that every volume is to have.
    pub storage_size: String,
    /// Size in the claim template, which Kubernetes does not let change.
    pub template_size: String,
    /// Storage class.
    pub storage_class_name: Option<String>,
    /// What becomes of the volumes in the end.
    pub deletion_policy: DeletionPolicy,
}

/// Where a cluster id comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdOrigin {
    /// It stands in the status.
    Recorded,
    /// Retained volumes carry it.
    Adopted,
    /// It was just made.
    New,
}

/// A spec that cannot be carried out until someone changes something.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Invalid {
    /// A property that the operator computes.
    #[error("spec.config: {0} is set by the operator and cannot be overridden; remove it")]
    ManagedProperty(String),
    /// A line break would start a property of its own.
    #[error("spec.config: the value of {0} contains a line break")]
    LineBreak(String),
    /// A node port listener lacks what it needs.
    #[error("spec.listeners: {0} is of type NodePort and needs advertisedHost and nodePorts")]
    IncompleteListener(String),
    /// A number out of the range that the schema gives.
    #[error("{0}")]
    OutOfRange(String),
    /// Retained volumes of more than one cluster.
    #[error(
        "the retained volume claims belong to different clusters ({0}), so none can be adopted; delete the claims \
         that are not wanted, or use another name for this KafkaCluster"
    )]
    ConflictingVolumes(String),
}

impl Invalid {
    /// Reason for conditions and Events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ManagedProperty(_) => "ManagedProperty",
            Self::LineBreak(_) | Self::IncompleteListener(_) | Self::OutOfRange(_) => "InvalidSpec",
            Self::ConflictingVolumes(_) => "ConflictingVolumes",
        }
    }
}

/// Checks `cluster` against what was observed. `fresh_id` is taken where the cluster has no id yet.
pub fn validate(
    cluster: &KafkaCluster,
    observed: &Observed,
    default_image: &str,
    fresh_id: &str,
) -> Result<ValidatedCluster, Invalid> {
    let spec = &cluster.spec;
    check_config(&spec.config)?;
    check_listeners(&spec.listeners)?;
    if spec.replicas < 1 {
        return Err(Invalid::OutOfRange(format!("spec.replicas: {} is less than 1", spec.replicas)));
    }
    if quantity::parse(&spec.storage.size).is_none() {
        return Err(Invalid::OutOfRange(format!(
            "spec.storage.size: {} is not a quantity",
            spec.storage.size
        )));
    }
    let names = Names::new(cluster.namespace().unwrap_or_default(), cluster.name_any());
    let (cluster_id, id_origin) = cluster_id(cluster, observed, fresh_id)?;
    let claims: Vec<_> = observed
        .claims
        .iter()
        .filter_map(|claim| Some((names.claim_ordinal(&claim.name_any())?, claim, claim_id(claim)?)))
        .collect();
    let replicas = claims
        .iter()
        .filter(|(_, _, id)| *id == cluster_id)
        .map(|(ordinal, _, _)| ordinal + 1)
        .chain(observed.stateful_set.as_ref().and_then(|set| set.spec.as_ref()?.replicas))
        .fold(spec.replicas, i32::max);
    let recorded_voters = cluster
        .status
        .iter()
        .filter_map(|status| status.quorum.as_ref())
        .find_map(|quorum| i32::try_from(quorum.initial_voters.len()).ok().filter(|count| *count > 0));
    Ok(ValidatedCluster {
        owner: cluster.controller_owner_ref(&()).unwrap_or_default(),
        adopted_ordinals: claims
            .iter()
            .filter(|(_, claim, id)| *id == cluster_id && is_older(claim, cluster))
            .map(|(ordinal, _, _)| *ordinal)
            .collect(),
        foreign_claims: claims
            .iter()
            .filter(|(_, _, id)| *id != cluster_id)
            .map(|(_, claim, id)| (claim.name_any(), (*id).to_owned()))
            .collect(),
        cluster_id,
        id_origin,
        replicas,
        refused_replicas: (spec.replicas < replicas).then_some(spec.replicas),
        initial_voters: recorded_voters.unwrap_or(if replicas < 3 { 1 } else { 3 }),
        listeners: spec.listeners.clone(),
        config: spec.config.clone(),
        image: spec.image.clone().unwrap_or_else(|| default_image.to_owned()),
        image_pull_policy: spec.image_pull_policy,
        resources: spec.resources.clone(),
        node_selector: spec.node_selector.clone(),
        tolerations: spec.tolerations.clone(),
        storage_size: spec.storage.size.clone(),
        template_size: template_size(observed).unwrap_or_else(|| spec.storage.size.clone()),
        storage_class_name: spec.storage.storage_class_name.clone(),
        deletion_policy: spec.deletion_policy,
        names,
    })
}

fn check_config(config: &BTreeMap<String, String>) -> Result<(), Invalid> {
    for (key, value) in config {
        let managed = MANAGED_KEYS.contains(&key.as_str())
            || MANAGED_PREFIXES.iter().any(|prefix| key.starts_with(prefix));
        if managed {
            return Err(Invalid::ManagedProperty(key.clone()));
        }
        if value.contains(['\r', '\n']) {
            return Err(Invalid::LineBreak(key.clone()));
        }
        // The schema says so too; an older schema may still be installed, and the file must not be broken by a key.
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
            return Err(Invalid::OutOfRange(format!("spec.config: {key:?} is not a property name")));
        }
    }
    Ok(())
}

fn check_listeners(listeners: &[Listener]) -> Result<(), Invalid> {
    if listeners.is_empty() {
        return Err(Invalid::OutOfRange("spec.listeners: at least one listener is needed".to_owned()));
    }
    for listener in listeners {
        if !(1024..=65535).contains(&listener.port) {
            return Err(Invalid::OutOfRange(format!(
                "spec.listeners: port {} is out of range",
                listener.port
            )));
        }
        let complete = listener.advertised_host.is_some() && listener.node_ports.is_some();
        if listener.type_ == ListenerType::NodePort && !complete {
            return Err(Invalid::IncompleteListener(listener.name.clone()));
        }
    }
    Ok(())
}

fn cluster_id(
    cluster: &KafkaCluster,
    observed: &Observed,
    fresh_id: &str,
) -> Result<(String, IdOrigin), Invalid> {
    if let Some(recorded) = cluster.status.as_ref().and_then(|status| status.cluster_id.clone()) {
        return Ok((recorded, IdOrigin::Recorded));
    }
    let ids: BTreeSet<&str> = observed.claims.iter().filter_map(claim_id).collect();
    match ids.iter().collect::<Vec<_>>().as_slice() {
        [] => Ok((fresh_id.to_owned(), IdOrigin::New)),
        [only] => Ok(((**only).to_owned(), IdOrigin::Adopted)),
        several => {
            let list = several.iter().map(|id| **id).collect::<Vec<_>>().join(", ");
            Err(Invalid::ConflictingVolumes(list))
        }
    }
}

fn claim_id(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.metadata.annotations.as_ref()?.get(CLUSTER_ID_ANNOTATION).map(String::as_str)
}

fn is_older(claim: &PersistentVolumeClaim, cluster: &KafkaCluster) -> bool {
    match (&claim.metadata.creation_timestamp, &cluster.metadata.creation_timestamp) {
        (Some(claim), Some(cluster)) => claim.0 < cluster.0,
        // Unknown counts as old: an old volume may hold a quorum, and forming a second one is what must not happen.
        _ => true,
    }
}

fn template_size(observed: &Observed) -> Option<String> {
    let templates = observed.stateful_set.as_ref()?.spec.as_ref()?.volume_claim_templates.as_ref()?;
    let data = templates.iter().find(|claim| claim.metadata.name.as_deref() == Some(DATA_VOLUME))?;
    let requests = data.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    Some(requests.get("storage")?.0.clone())
}

/// A random cluster id in Kafka's form: 16 bytes as base64url without padding.
pub fn kafka_id(random: u128) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let digit = |bits: u128| char::from(ALPHABET[usize::try_from(bits & 63).expect("six bits fit")]);
    // 21 digits of six bits each, and the last two bits padded.
    (0..21).map(|n| digit(random >> (122 - 6 * n))).chain([digit((random & 3) << 4)]).collect()
}

#[cfg(test)]
pub mod fixture {
    //! The quickstart cluster, as a manifest and validated.

    use serde_json::json;

    use super::*;

    /// Its cluster id: the number 1.
    pub const CLUSTER_ID: &str = "AAAAAAAAAAAAAAAAAAAAAQ";

    /// The KafkaCluster of the quickstart, just created.
    pub fn manifest() -> KafkaCluster {
        serde_json::from_value(json!({
            "apiVersion": "millrace.dev/v1alpha1",
            "kind": "KafkaCluster",
            "metadata": {
                "name": "demo", "namespace": "ns", "uid": "u-1", "generation": 1,
                "creationTimestamp": "2026-11-01T00:00:00Z",
            },
            "spec": {
                "replicas": 3,
                "storage": {"size": "10Gi", "storageClassName": "standard"},
                "listeners": [
                    {"name": "internal", "port": 9092, "type": "ClusterLocal"},
                    {"name": "external", "port": 9094, "type": "NodePort", "advertisedHost": "localhost",
                     "nodePorts": {"bootstrap": 30092, "brokers": 30100}},
                ],
                "config": {"default.replication.factor": "3", "min.insync.replicas": "2"},
                "deletionPolicy": "Retain",
            },
        }))
        .expect("the manifest is valid")
    }

    /// [`manifest`], validated against an empty namespace.
    pub fn quickstart() -> ValidatedCluster {
        validate(&manifest(), &Observed::default(), "millrace-broker:dev", CLUSTER_ID)
            .expect("the fixture is valid")
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use serde_json::json;

    use super::{fixture::*, *};
    use crate::build::stateful_set::stateful_set;

    fn claim(ordinal: i32, id: &str, created: &str) -> PersistentVolumeClaim {
        serde_json::from_value(json!({
            "metadata": {
                "name": format!("data-demo-broker-{ordinal}"),
                "creationTimestamp": created,
                "annotations": {"millrace.dev/cluster-id": id},
            },
        }))
        .unwrap()
    }

    fn check(cluster: &KafkaCluster, observed: &Observed) -> Result<ValidatedCluster, Invalid> {
        validate(cluster, observed, "millrace-broker:dev", CLUSTER_ID)
    }

    const BEFORE: &str = "2026-10-01T00:00:00Z";
    const AFTER: &str = "2026-11-01T00:00:01Z";

    #[test]
    fn a_recorded_cluster_id_is_never_replaced() {
        let mut cluster = manifest();
        cluster.status.get_or_insert_default().cluster_id = Some("recorded".into());
        let observed = Observed { claims: vec![claim(0, "other", BEFORE)], ..Observed::default() };
        let valid = check(&cluster, &observed).unwrap();
        assert_eq!((valid.cluster_id.as_str(), valid.id_origin), ("recorded", IdOrigin::Recorded));
        assert_eq!(valid.foreign_claims, [("data-demo-broker-0".to_owned(), "other".to_owned())]);
    }

    #[test]
    fn retained_volumes_give_their_cluster_id_back() {
        let observed = Observed {
            claims: vec![claim(0, "old", BEFORE), claim(1, "old", BEFORE)],
            ..Observed::default()
        };
        let valid = check(&manifest(), &observed).unwrap();
        assert_eq!((valid.cluster_id.as_str(), valid.id_origin), ("old", IdOrigin::Adopted));
        assert_eq!(valid.adopted_ordinals, BTreeSet::from([0, 1]));
    }

    #[test]
    fn volumes_of_two_clusters_are_not_adopted() {
        let observed = Observed {
            claims: vec![claim(0, "one", BEFORE), claim(1, "two", BEFORE)],
            ..Observed::default()
        };
        let refused = check(&manifest(), &observed).unwrap_err();
        assert_eq!(refused.reason(), "ConflictingVolumes");
    }

    #[test]
    fn volumes_made_for_this_cluster_are_not_adopted_ones() {
        let mut cluster = manifest();
        cluster.status.get_or_insert_default().cluster_id = Some("mine".into());
        let observed = Observed { claims: vec![claim(0, "mine", AFTER)], ..Observed::default() };
        assert!(check(&cluster, &observed).unwrap().adopted_ordinals.is_empty());
    }

    #[test]
    fn fewer_brokers_than_run_are_refused_and_everything_else_goes_on() {
        let mut cluster = manifest();
        let observed = Observed { stateful_set: Some(stateful_set(&quickstart())), ..Observed::default() };
        cluster.spec.replicas = 1;
        cluster.spec.config.insert("log.retention.ms".into(), "1".into());
        let valid = check(&cluster, &observed).unwrap();
        assert_eq!((valid.replicas, valid.refused_replicas), (3, Some(1)));
        assert_eq!(valid.config["log.retention.ms"], "1");
    }

    #[test]
    fn fewer_brokers_than_there_are_volumes_are_refused_even_without_a_stateful_set() {
        let mut cluster = manifest();
        cluster.spec.replicas = 1;
        let observed = Observed { claims: vec![claim(4, "old", BEFORE)], ..Observed::default() };
        let valid = check(&cluster, &observed).unwrap();
        assert_eq!((valid.replicas, valid.refused_replicas), (5, Some(1)));
    }

    #[test]
    fn more_brokers_are_added() {
        let mut cluster = manifest();
        cluster.spec.replicas = 5;
        let observed = Observed { stateful_set: Some(stateful_set(&quickstart())), ..Observed::default() };
        let valid = check(&cluster, &observed).unwrap();
        assert_eq!((valid.replicas, valid.refused_replicas), (5, None));
    }

    #[test]
    fn the_first_quorum_has_one_voter_below_three_brokers_and_three_from_there_on() {
        for (replicas, voters) in [(1, 1), (2, 1), (3, 3), (4, 3), (50, 3)] {
            let mut cluster = manifest();
            cluster.spec.replicas = replicas;
            assert_eq!(check(&cluster, &Observed::default()).unwrap().initial_voters, voters, "{replicas}");
        }
    }

    #[test]
    fn recorded_voters_stay_when_the_cluster_grows() {
        let mut cluster = manifest();
        let quorum = cluster.status.get_or_insert_default().quorum.get_or_insert_default();
        quorum.initial_voters = vec!["demo-broker-0".into()];
        assert_eq!(check(&cluster, &Observed::default()).unwrap().initial_voters, 1);
    }

    #[test]
    fn claim_template_keeps_the_size_it_was_made_with() {
        let mut cluster = manifest();
        let observed = Observed { stateful_set: Some(stateful_set(&quickstart())), ..Observed::default() };
        cluster.spec.storage.size = "20Gi".into();
        let valid = check(&cluster, &observed).unwrap();
        assert_eq!((valid.storage_size.as_str(), valid.template_size.as_str()), ("20Gi", "10Gi"));
    }

    #[test]
    fn properties_of_the_operator_and_line_breaks_are_refused() {
        for (key, value, reason) in [
            ("cluster.id", "x", "ManagedProperty"),
            ("listener.name.internal.ssl.key.location", "x", "ManagedProperty"),
            ("log.retention.ms", "1\ncluster.id=x", "InvalidSpec"),
            ("a=b", "x", "InvalidSpec"),
        ] {
            let mut cluster = manifest();
            cluster.spec.config.insert(key.into(), value.into());
            assert_eq!(check(&cluster, &Observed::default()).unwrap_err().reason(), reason, "{key}");
        }
    }

    #[test]
    fn kafka_ids_are_22_url_safe_characters() {
        assert_eq!(kafka_id(1), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!(kafka_id(u128::MAX), "_____________________w");
    }
}
