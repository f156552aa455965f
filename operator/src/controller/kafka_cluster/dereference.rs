//! Fetches what belongs to a KafkaCluster: the objects made for it, its pods, claims and their nodes' zones.
//!
//! Read from the API server itself and not from a cache, since decisions that cannot be taken back (cluster id, quorum,
//! number of brokers) hang on it. Judges nothing.

use std::collections::BTreeMap;

use futures::try_join;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{Api, Client, Resource, ResourceExt, api::ListParams};
use serde::de::DeserializeOwned;

use crate::build::Names;

/// Label of nodes by which racks are told apart.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// What exists now.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// ServiceAccount of the brokers.
    pub service_account: Option<ServiceAccount>,
    /// Properties of the brokers.
    pub config_map: Option<ConfigMap>,
    /// All Services with our labels.
    pub services: Vec<Service>,
    /// The brokers' StatefulSet.
    pub stateful_set: Option<StatefulSet>,
    /// Their PodDisruptionBudget.
    pub disruption_budget: Option<PodDisruptionBudget>,
    /// Certificate authority.
    pub authority_secret: Option<Secret>,
    /// The brokers' certificate.
    pub broker_secret: Option<Secret>,
    /// The operator's certificate.
    pub operator_secret: Option<Secret>,
    /// The brokers' pods.
    pub pods: Vec<Pod>,
    /// The brokers' volume claims, those of an earlier KafkaCluster of this name included.
    pub claims: Vec<PersistentVolumeClaim>,
}

/// Reads everything that belongs to the cluster of `names`.
pub async fn dereference(client: &Client, names: &Names) -> Result<Observed, kube::Error> {
    let (broker_set, config_map) = (names.broker_set(), names.config_map());
    let (authority, broker, operator) =
        (names.authority_secret(), names.broker_secret(), names.operator_secret());
    let (service_account, config_map, stateful_set, disruption_budget) = try_join!(
        one(client, names, &broker_set),
        one(client, names, &config_map),
        one(client, names, &broker_set),
        one(client, names, &broker_set),
    )?;
    let (authority_secret, broker_secret, operator_secret) = try_join!(
        one(client, names, &authority),
        one(client, names, &broker),
        one(client, names, &operator),
    )?;
    let (services, pods, claims) = try_join!(
        all(client, names),
        all::<Pod>(client, names),
        all::<PersistentVolumeClaim>(client, names)
    )?;
    Ok(Observed {
        service_account,
        config_map,
        services,
        stateful_set,
        disruption_budget,
        authority_secret,
        broker_secret,
        operator_secret,
        // A label does not make a pod ours; its name does.
        pods: pods.into_iter().filter(|pod| names.pod_ordinal(&pod.name_any()).is_some()).collect(),
        claims: claims.into_iter().filter(|claim| names.claim_ordinal(&claim.name_any()).is_some()).collect(),
    })
}

async fn one<K>(client: &Client, names: &Names, name: &str) -> Result<Option<K>, kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    Api::<K>::namespaced(client.clone(), &names.namespace).get_opt(name).await
}

async fn all<K>(client: &Client, names: &Names) -> Result<Vec<K>, kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let params = ListParams::default().labels(&names.selector_query());
    Ok(Api::<K>::namespaced(client.clone(), &names.namespace).list(&params).await?.items)
}

/// Zones of the nodes that `pods` run on, by node; the error says why some are unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zones {
    /// Zone by node; `None` for a node without the label.
    pub by_node: BTreeMap<String, Option<String>>,
    /// Why a node could not be read.
    pub error: Option<String>,
}

/// Reads the zones. A node that cannot be read (no permission, gone) is left out: placement works without.
pub async fn zones(client: &Client, pods: &[Pod]) -> Zones {
    let api: Api<Node> = Api::all(client.clone());
    let mut zones = Zones::default();
    for pod in pods {
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else { continue };
        if zones.by_node.contains_key(&node) {
            continue;
        }
        match api.get_metadata_opt(&node).await {
            Ok(Some(found)) => {
                zones.by_node.insert(node, found.labels().get(ZONE_LABEL).cloned());
            }
            Ok(None) => {}
            Err(kube::Error::Api(status)) => {
                zones.error = Some(format!("cannot read node {node}: {}", status.message));
            }
            // Only what the server says goes into the status: a passing network error would change it back and forth.
            Err(error) => tracing::warn!(node, %error, "cannot read a node"),
        }
    }
    zones
}
