//! Server-side apply that writes only where something differs.
//!
//! [`differs`] compares what we want with what is there: every field we set must have our value, fields of others do
//! not matter. A hash of the wanted manifest travels as an annotation, because the absence of a field cannot be seen
//! otherwise: a field that we set before and no longer set must be removed once. So drift on our fields is corrected,
//! and a converged object costs no write.
//!
//! An object of the same name that is not ours is never touched: [`ApplyError::NameTaken`].

use std::fmt::Debug;

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use thiserror::Error;

use crate::{OPERATOR, build::stable_hash, quantity};

/// Hash of the manifest that was applied last.
pub const APPLIED_ANNOTATION: &str = "millrace.dev/applied";

/// Why an object could not be brought to what we want.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// An object of that name exists and belongs to somebody else.
    #[error("{kind} {name} exists already and does not belong to this KafkaCluster")]
    NameTaken {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The API server refused or could not be reached.
    #[error("{action} {kind} {name}")]
    Api {
        /// What was being done.
        action: &'static str,
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
}

/// What an apply did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The object did not exist.
    Created,
    /// Something that we own was different.
    Updated,
    /// Nothing was written.
    Unchanged,
}

/// Objects of one kind in one namespace that belong to one owner.
pub struct Applier {
    client: Client,
    namespace: String,
    owner: OwnerReference,
}

impl Debug for Applier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applier")
            .field("namespace", &self.namespace)
            .field("owner", &self.owner.name)
            .finish()
    }
}

/// What can be applied: a typed object in a namespace.
pub trait Applicable:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
{
}
impl<K> Applicable for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
{
}

impl Applier {
    /// Applies into `namespace` what `owner` owns.
    pub fn new(client: Client, namespace: impl Into<String>, owner: OwnerReference) -> Self {
        Self { client, namespace: namespace.into(), owner }
    }

    /// Brings `wanted` about. `live` is what a list by our labels has found; an object that is missing there is looked
    /// up by name first, so that one that lost its labels is repaired and a stranger's is left alone.
    pub async fn apply<K: Applicable>(&self, wanted: &K, live: Option<&K>) -> Result<Outcome, ApplyError> {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        let name = wanted.name_any();
        let found;
        let live = match live {
            Some(live) => Some(live),
            None => {
                found = api.get_opt(&name).await.map_err(|error| failed::<K>("read", &name, error))?;
                found.as_ref()
            }
        };
        if live.is_some_and(|live| !self.owns(live)) {
            return Err(ApplyError::NameTaken { kind: K::kind(&()).into_owned(), name });
        }
        let manifest = manifest(wanted);
        if live.is_some_and(|live| !differs(&manifest, &to_json(live))) {
            return Ok(Outcome::Unchanged);
        }
        let applied = api.patch(&name, &PatchParams::apply(OPERATOR).force(), &Patch::Apply(&manifest)).await;
        if let Err(error) = applied {
            let replaced =
                live.is_some() && is_invalid(&error) && replace_lists(&api, &name, &manifest).await;
            if !replaced {
                return Err(failed::<K>("apply", &name, error));
            }
        }
        tracing::info!(kind = %K::kind(&()), namespace = %self.namespace, name, "applied");
        Ok(if live.is_some() { Outcome::Updated } else { Outcome::Created })
    }

    /// Deletes those of `live` that we own and that `wanted` no longer contains.
    pub async fn remove_orphans<K: Applicable>(&self, wanted: &[K], live: &[K]) -> Result<(), ApplyError> {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        let orphans = live
            .iter()
            .filter(|found| self.owns(*found))
            .filter(|found| !wanted.iter().any(|wanted| wanted.name_any() == found.name_any()));
        for orphan in orphans {
            let name = orphan.name_any();
            // Bound to the uid that was seen: an object made anew under this name is not the one we mean.
            let params = DeleteParams {
                preconditions: Some(Preconditions { uid: orphan.uid(), resource_version: None }),
                ..DeleteParams::default()
            };
            match api.delete(&name, &params).await {
                Ok(_) => tracing::info!(kind = %K::kind(&()), namespace = %self.namespace, name, "deleted"),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(failed::<K>("delete", &name, error)),
            }
        }
        Ok(())
    }

    fn owns<K: Resource>(&self, object: &K) -> bool {
        object.owner_references().iter().any(|owner| owner.uid == self.owner.uid)
    }
}

fn is_invalid(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 422)
}

/// Writes the manifest with lists replaced as a whole; whether that was accepted.
///
/// Server-side apply merges lists by key. Where somebody has changed the key itself (the number of a Service's port),
/// our element is added beside theirs, and the object with both is invalid for ever.
async fn replace_lists<K: Applicable>(api: &Api<K>, name: &str, manifest: &Value) -> bool {
    let params = PatchParams { field_manager: Some(OPERATOR.to_owned()), ..PatchParams::default() };
    api.patch(name, &params, &Patch::Merge(manifest)).await.is_ok()
}

fn failed<K: Resource<DynamicType = ()>>(
    action: &'static str,
    name: &str,
    source: kube::Error,
) -> ApplyError {
    ApplyError::Api {
        action,
        kind: K::kind(&()).into_owned(),
        name: name.to_owned(),
        source: Box::new(source),
    }
}

fn to_json<K: Serialize>(object: &K) -> Value {
    serde_json::to_value(object).expect("Kubernetes objects serialize to JSON")
}

/// The manifest as it is sent: `wanted` and its hash.
pub fn manifest<K: Serialize>(wanted: &K) -> Value {
    let mut manifest = to_json(wanted);
    let hash = stable_hash(&manifest.to_string());
    manifest["metadata"]["annotations"][APPLIED_ANNOTATION] = hash.into();
    manifest
}

/// Whether a field of `wanted` is missing or has another value in `live`.
pub fn differs(wanted: &Value, live: &Value) -> bool {
    field_differs("", wanted, live)
}

fn field_differs(parent: &str, wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => {
            // The last key that is not the name of a quantity decides whether texts below it are quantities.
            wanted.iter().any(|(key, value)| match live.get(key) {
                Some(found) => field_differs(if is_amounts(parent) { parent } else { key }, value, found),
                None => !is_empty(value),
            })
        }
        (Value::Array(wanted), Value::Array(live)) => match key_of(wanted) {
            // Others may add elements to a list with keys (a sidecar, an owner): only ours are compared.
            Some(key) => wanted.iter().any(|element| {
                let found = live.iter().find(|found| found.get(key) == element.get(key));
                found.is_none_or(|found| field_differs(parent, element, found))
            }),
            None => {
                wanted.len() != live.len()
                    || wanted.iter().zip(live).any(|(wanted, live)| field_differs(parent, wanted, live))
            }
        },
        (Value::String(wanted), Value::String(live)) if is_amounts(parent) => {
            wanted != live && !quantity::equal(wanted, live)
        }
        (wanted, live) => wanted != live && !(is_empty(wanted) && is_empty(live)),
    }
}

fn is_amounts(key: &str) -> bool {
    matches!(key, "requests" | "limits" | "sizeLimit")
}

/// The field that tells the elements of a list apart, where there is one.
fn key_of(elements: &[Value]) -> Option<&'static str> {
    let tells_apart = |key: &str| {
        let values: Vec<_> = elements.iter().filter_map(|element| element.get(key)).collect();
        let distinct = values.iter().enumerate().all(|(at, value)| !values[..at].contains(value));
        !values.is_empty() && values.len() == elements.len() && distinct
    };
    ["uid", "mountPath", "name", "topologyKey"].into_iter().find(|key| tells_apart(key))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(elements) => elements.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_that_others_or_defaults_add_are_no_difference() {
        let wanted = json!({"spec": {"ports": [{"name": "a", "port": 1}], "selector": {"x": "y"}}});
        let live = json!({"spec": {
            "ports": [{"name": "a", "port": 1, "protocol": "TCP"}, {"name": "b", "port": 2}],
            "selector": {"x": "y"}, "clusterIP": "10.0.0.1"},
            "status": {}});
        assert!(!differs(&wanted, &live));
    }

    #[test]
    fn drift_on_our_fields_is_a_difference() {
        let wanted = json!({"spec": {"ports": [{"name": "a", "port": 1}], "flag": true}});
        for live in [
            json!({"spec": {"ports": [{"name": "a", "port": 2}], "flag": true}}),
            json!({"spec": {"ports": [{"name": "b", "port": 1}], "flag": true}}),
            json!({"spec": {"ports": [{"name": "a", "port": 1}], "flag": false}}),
            json!({"spec": {"ports": [{"name": "a", "port": 1}]}}),
        ] {
            assert!(differs(&wanted, &live), "{live}");
        }
    }

    #[test]
    fn a_volume_that_is_mounted_twice_is_told_apart_by_path() {
        let mounts =
            json!([{"name": "a", "mountPath": "/x"}, {"name": "a", "mountPath": "/y", "readOnly": true}]);
        assert!(!differs(&mounts, &mounts));
        let other = json!([{"name": "a", "mountPath": "/x"}, {"name": "a", "mountPath": "/y"}]);
        assert!(differs(&mounts, &other));
        let unkeyed = json!([{"name": "a", "v": 1}, {"name": "a", "v": 2}]);
        assert!(!differs(&unkeyed, &unkeyed));
    }

    #[test]
    fn plain_lists_are_compared_in_full() {
        let wanted = json!({"args": ["--config", "x"]});
        assert!(!differs(&wanted, &json!({"args": ["--config", "x"]})));
        assert!(differs(&wanted, &json!({"args": ["--config", "x", "--debug"]})));
    }

    #[test]
    fn quantities_are_compared_by_value_but_other_texts_are_not() {
        let wanted = json!({"resources": {"requests": {"cpu": "0.5", "memory": "1Gi"}}, "label": "1"});
        assert!(!differs(
            &wanted,
            &json!({"resources": {"requests": {"cpu": "500m", "memory": "1024Mi"}}, "label": "1"})
        ));
        assert!(differs(
            &wanted,
            &json!({"resources": {"requests": {"cpu": "500m", "memory": "1Gi"}}, "label": "1000m"})
        ));
    }

    #[test]
    fn what_the_server_drops_because_it_is_empty_is_no_difference() {
        assert!(!differs(&json!({"a": {}, "b": [], "c": null}), &json!({})));
    }

    #[test]
    fn a_field_that_is_no_longer_wanted_shows_in_the_hash() {
        let before = manifest(&json!({"metadata": {"name": "x"}, "data": {"a": "1", "b": "2"}}));
        let after = manifest(&json!({"metadata": {"name": "x"}, "data": {"a": "1"}}));
        assert!(differs(&after, &before));
    }
}
