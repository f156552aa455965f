//! Helpers of the tests that run on a real Kubernetes.
//!
//! The tests need the cluster that `make up` makes: its operator, and the fleet of `examples/quickstart.yaml` in the
//! namespace `default`. What a test makes lives in a namespace of its own, named after it, and goes with it. Tests wait
//! for conditions with deadlines; when one fails, what the cluster looked like is printed before it is cleaned up.

mod diagnostics;
mod kafka;

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config, ResourceExt};
use millrace_crds::{KafkaCluster, Topic};
use serde_json::{Value, json};
use tokio::time::Instant;

pub use kafka::{kcat, python_client};

/// Time that anything may take which only waits for pods of a small cluster.
pub const SOON: Duration = Duration::from_secs(120);

/// Fleet of the quickstart.
pub const QUICKSTART: &str = "demo";

/// A test's view of the cluster.
#[derive(Clone)]
pub struct Test {
    /// Client with the rights of the local cluster's administrator.
    pub client: Client,
    /// Namespace that the test works in.
    pub namespace: String,
}

impl std::fmt::Debug for Test {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Test").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// Runs `body` in a namespace of its own, which is deleted after.
///
/// # Panics
/// When the body fails, after printing what the namespace held.
pub async fn in_namespace(name: &str, body: impl AsyncFnOnce(&Test) -> Result<()>) {
    let namespace = format!("e2e-{name}");
    let test = Test { client: client().await.expect("a client for the local cluster"), namespace };
    test.delete_namespace().await.expect("leftovers of an earlier run go away");
    let made = Namespace {
        metadata: kube::core::ObjectMeta {
            name: Some(test.namespace.clone()),
            // What brokers run in must pass the strictest of the Pod Security Standards.
            labels: Some([("pod-security.kubernetes.io/enforce".to_owned(), "restricted".to_owned())].into()),
            ..Default::default()
        },
        ..Default::default()
    };
    Api::<Namespace>::all(test.client.clone())
        .create(&PostParams::default(), &made)
        .await
        .expect("the namespace can be made");
    let outcome = body(&test).await;
    if let Err(error) = &outcome {
        diagnostics::print(&test, error).await;
    }
    test.delete_namespace().await.expect("the namespace goes away, and so does everything in it");
    outcome.expect("see the diagnostics above");
}

/// Runs `body` on the fleet of the quickstart.
///
/// # Panics
/// When the body fails, after printing what the namespace held.
pub async fn on_quickstart(body: impl AsyncFnOnce(&Test) -> Result<()>) {
    // One at a time: what one test does to the fleet another would see.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _alone = ALONE.lock().await;
    let client = client().await.expect("a client for the local cluster");
    let test = Test { client, namespace: "default".to_owned() };
    let outcome = body(&test).await;
    if let Err(error) = &outcome {
        diagnostics::print(&test, error).await;
    }
    outcome.expect("see the diagnostics above");
}

async fn client() -> Result<Client> {
    // Fails only when another test of this process has installed it already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let path = std::env::var("MILLRACE_KUBECONFIG")
        .context("MILLRACE_KUBECONFIG is not set; run these tests with `make test-e2e`")?;
    let kubeconfig = kube::config::Kubeconfig::read_from(&path).with_context(|| format!("reading {path}"))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    Ok(Client::try_from(config)?)
}

impl Test {
    /// The kinds of the namespace.
    pub fn clusters(&self) -> Api<KafkaCluster> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The topics of the namespace.
    pub fn topics(&self) -> Api<Topic> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Any other kind of the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Applies a manifest as `kubectl apply --server-side` does.
    ///
    /// # Errors
    /// The API server's refusal.
    pub async fn apply(&self, manifest: &Value) -> kube::Result<()> {
        let kind = manifest["kind"].as_str().unwrap_or_default();
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
        let mut manifest = manifest.clone();
        manifest["apiVersion"] = json!("millrace.dev/v1alpha1");
        manifest["metadata"]["namespace"] = json!(self.namespace);
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("millrace.dev", "v1alpha1", kind));
        Api::<DynamicObject>::namespaced_with(self.client.clone(), &self.namespace, &resource)
            .patch(name, &PatchParams::apply("e2e").force(), &Patch::Apply(&manifest))
            .await?;
        Ok(())
    }

    /// Applies a manifest that the API server must refuse, and returns the message that the user reads.
    ///
    /// # Errors
    /// It was not refused, or for another reason than an invalid object.
    pub async fn refusal(&self, manifest: &Value) -> Result<String> {
        match self.apply(manifest).await {
            Ok(()) => bail!("the API server took {manifest}"),
            Err(kube::Error::Api(status)) if status.reason == "Invalid" => Ok(status.message.clone()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the cluster's conditions say Ready for its current generation.
    ///
    /// # Errors
    /// The deadline passed; says what the conditions were.
    pub async fn cluster_ready(&self, name: &str) -> Result<KafkaCluster> {
        self.cluster_that(name, "is Ready", |cluster| {
            let status = cluster.status.as_ref()?;
            let current = status.observed_generation == cluster.metadata.generation;
            (current && is_true(&status.conditions, "Ready")).then_some(())
        })
        .await
    }

    /// Waits until `matches` is fulfilled by a cluster.
    ///
    /// # Errors
    /// The deadline passed; says what was waited for and what the object looked like.
    pub async fn cluster_that(
        &self,
        name: &str,
        what: &str,
        matches: impl Fn(&KafkaCluster) -> Option<()>,
    ) -> Result<KafkaCluster> {
        let api = self.clusters();
        wait_for(&format!("KafkaCluster {name} that {what}"), SOON, async || {
            let cluster = api.get(name).await?;
            matches(&cluster).map(|()| cluster.clone()).ok_or_else(|| anyhow!("status: {:?}", cluster.status))
        })
        .await
    }

    /// Waits until `matches` is fulfilled by a topic.
    ///
    /// # Errors
    /// The deadline passed; says what was waited for and what the object looked like.
    pub async fn topic_that(
        &self,
        name: &str,
        what: &str,
        matches: impl Fn(&Topic) -> Option<()>,
    ) -> Result<Topic> {
        let api = self.topics();
        wait_for(&format!("Topic {name} that {what}"), SOON, async || {
            let topic = api.get(name).await?;
            matches(&topic).map(|()| topic.clone()).ok_or_else(|| anyhow!("status: {:?}", topic.status))
        })
        .await
    }

    /// Waits until the topic's conditions say Ready for its current generation.
    ///
    /// # Errors
    /// The deadline passed; says what the conditions were.
    pub async fn topic_ready(&self, name: &str) -> Result<Topic> {
        self.topic_that(name, "is Ready", |topic| {
            let status = topic.status.as_ref()?;
            let current = status.observed_generation == topic.metadata.generation;
            (current && is_true(&status.conditions, "Ready")).then_some(())
        })
        .await
    }

    /// Deletes an object and waits until it is gone.
    ///
    /// # Errors
    /// The deadline passed, or the API server refused.
    pub async fn delete<K>(&self, name: &str) -> Result<()>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        let api = self.api::<K>();
        api.delete(name, &DeleteParams::default()).await?;
        wait_for(&format!("{name} to be gone"), SOON, async || match api.get_opt(name).await? {
            None => Ok(()),
            Some(object) => Err(anyhow!("still there: {:?}", object.meta())),
        })
        .await
    }

    async fn delete_namespace(&self) -> Result<()> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        match namespaces.delete(&self.namespace, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            other => other?,
        };
        wait_for("the namespace to be gone", SOON, async || {
            match namespaces.get_opt(&self.namespace).await? {
                None => Ok(()),
                Some(namespace) => Err(anyhow!("still there: {:?}", namespace.status)),
            }
        })
        .await
    }
}

/// Calls `attempt` until it succeeds or the deadline has passed.
///
/// # Errors
/// The deadline passed; carries what was waited for and the last error.
pub async fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > deadline => {
                return Err(error.context(format!("waited {deadline:?} for {what}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(250)).await,
        }
    }
}

/// The condition of that type.
pub fn condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition is there with status True.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    condition(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// A cluster of `replicas` brokers that is only reachable from inside.
pub fn small_cluster(name: &str, replicas: i32) -> Value {
    json!({
        "kind": "KafkaCluster",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "storage": {"size": "100Mi"},
            "listeners": [{"name": "internal", "port": 9092, "type": "ClusterLocal"}],
            "config": {"default.replication.factor": "1", "min.insync.replicas": "1"},
        },
    })
}

/// A cluster of one broker that is reachable on the two last ports that the local cluster maps to the host.
pub fn reachable_cluster(name: &str) -> Value {
    let mut manifest = small_cluster(name, 1);
    manifest["spec"]["listeners"] = json!([
        {"name": "internal", "port": 9092, "type": "ClusterLocal"},
        {"name": "external", "port": 9094, "type": "NodePort", "advertisedHost": "localhost",
         "nodePorts": {"bootstrap": 30109, "brokers": 30108}},
    ]);
    manifest
}

/// Waits until the brokers of a [`reachable_cluster`] answer outside: a node forwards its port a moment after Kubernetes
/// has seen that the pod is ready, while the conditions say so at once.
///
/// # Errors
/// The deadline passed; says what the client said.
pub async fn answers_outside() -> Result<()> {
    wait_for("the node port to answer", SOON, async || {
        kcat(&["-b", "localhost:30109", "-L", "-m", "5"], "").await.map(drop)
    })
    .await
}

/// A topic of `cluster`.
pub fn topic(name: &str, cluster: &str, spec: Value) -> Value {
    let mut manifest = json!({
        "kind": "Topic",
        "metadata": {"name": name},
        "spec": {"clusterRef": {"name": cluster}},
    });
    if let (Some(all), Some(more)) = (manifest["spec"].as_object_mut(), spec.as_object()) {
        all.extend(more.clone());
    }
    manifest
}

/// Name and resource version of every object that the operator wrote for a cluster, its own and its topics' included.
///
/// # Errors
/// The API server's refusal.
pub async fn written_objects(test: &Test) -> Result<std::collections::BTreeMap<String, String>> {
    use k8s_openapi::api::{apps::v1 as apps, core::v1 as core, policy::v1 as policy};
    let mut versions = std::collections::BTreeMap::new();
    macro_rules! collect {
        ($($kind:ty),*) => {$(
            for object in test.api::<$kind>().list(&Default::default()).await?.items {
                let key = format!("{}/{}", stringify!($kind), object.name_any());
                versions.insert(key, object.resource_version().unwrap_or_default());
            }
        )*};
    }
    collect!(
        KafkaCluster,
        Topic,
        apps::StatefulSet,
        core::Service,
        core::ConfigMap,
        core::Secret,
        core::ServiceAccount,
        core::PersistentVolumeClaim,
        core::Pod,
        policy::PodDisruptionBudget
    );
    Ok(versions)
}
