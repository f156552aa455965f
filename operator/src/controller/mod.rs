//! Runs the controllers: watches in, reconciles out.
//!
//! Each watch has a back-off of its own (see [`crate::watches`]), and objects are read through a guard, so that one that
//! cannot be read stops nobody else. A pass that fails is repeated with a back-off per object.

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt, future};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Pod, Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{PartialObjectMeta, Patch, PatchParams},
    core::{DeserializeGuard, error_boundary::InvalidObject},
    runtime::{
        Controller, Predicate, WatchStreamExt,
        controller::{Action, Config},
        predicates,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use millrace_crds::{KafkaCluster, Topic, condition};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    OPERATOR,
    build::{COMPONENT_LABEL, INSTANCE_LABEL, MANAGED_BY_LABEL, Names},
    certificates::{Leaf, trust_of},
    events::Publisher,
    management::{Credentials, Transport},
    metrics::Metrics,
    watches::watch,
};

#[cfg(test)]
mod fake_api;
pub mod kafka_cluster;
pub mod topic;

/// Objects that are worked on at the same time, per kind.
const CONCURRENCY: u16 = 16;
/// Longest time until a failed pass is repeated.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// A KafkaCluster, or why it could not be read.
pub type GuardedCluster = DeserializeGuard<KafkaCluster>;
/// A Topic, or why it could not be read.
pub type GuardedTopic = DeserializeGuard<Topic>;

/// What every pass needs.
pub struct Context<T> {
    /// The Kubernetes API.
    pub client: Client,
    /// The way to the brokers.
    pub transport: T,
    /// Publishes Events.
    pub events: Publisher,
    /// Counts what happens.
    pub metrics: Arc<Metrics>,
    /// Image of brokers where a KafkaCluster names none.
    pub broker_image: String,
    /// Failed passes in a row, by object.
    pub failures: Failures,
    credentials: Mutex<HashMap<Names, Arc<Credentials>>>,
}

impl<T> Debug for Context<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("broker_image", &self.broker_image).finish_non_exhaustive()
    }
}

impl<T> Context<T> {
    /// A context without any memory yet.
    pub fn new(
        client: Client,
        transport: T,
        events: Publisher,
        metrics: Arc<Metrics>,
        broker_image: impl Into<String>,
    ) -> Self {
        Self {
            client,
            transport,
            events,
            metrics,
            broker_image: broker_image.into(),
            failures: Failures::default(),
            credentials: Mutex::default(),
        }
    }

    /// Remembers how to authenticate to a cluster, so that its Topics need not read the Secret each time.
    pub fn remember_credentials(&self, names: &Names, credentials: Arc<Credentials>) {
        self.credentials.lock().expect("no panic while the lock is held").insert(names.clone(), credentials);
    }

    /// How to authenticate to a cluster; `None` while it has no certificates.
    pub async fn credentials(&self, names: &Names) -> Result<Option<Arc<Credentials>>, kube::Error> {
        let known = self.credentials.lock().expect("no panic while the lock is held").get(names).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let api: Api<k8s_openapi::api::core::v1::Secret> =
            Api::namespaced(self.client.clone(), &names.namespace);
        let secret = api.get_opt(&names.operator_secret()).await?;
        let leaf = Leaf::read(secret.as_ref());
        let Some((leaf, trust)) = leaf.zip(trust_of(secret.as_ref())) else { return Ok(None) };
        let credentials = Arc::new(Credentials::new(&leaf, trust));
        self.remember_credentials(names, credentials.clone());
        Ok(Some(credentials))
    }

    /// Forgets a cluster that is gone.
    pub fn forget_credentials(&self, names: &Names) {
        self.credentials.lock().expect("no panic while the lock is held").remove(names);
    }
}

/// Failed passes in a row, by kind, namespace and name.
#[derive(Debug, Default)]
pub struct Failures(Mutex<HashMap<(&'static str, String, String), u32>>);

impl Failures {
    /// Counts one more and says how long to wait: 1 s, then twice as long each time, up to a minute.
    fn next_delay<K: Resource>(&self, kind: &'static str, object: &K) -> Duration {
        let mut failures = self.0.lock().expect("no panic while the lock is held");
        let count = failures.entry(key(kind, object)).or_default();
        *count = count.saturating_add(1);
        LONGEST_BACKOFF.min(Duration::from_secs(1 << (*count - 1).min(6)))
    }

    fn clear<K: Resource>(&self, kind: &'static str, object: &K) {
        self.0.lock().expect("no panic while the lock is held").remove(&key(kind, object));
    }
}

fn key<K: Resource>(kind: &'static str, object: &K) -> (&'static str, String, String) {
    (kind, object.namespace().unwrap_or_default(), object.name_any())
}

/// Applies a whole status. It carries every field that we own: one that is left out would be removed.
pub async fn apply_status<K, S>(client: &Client, object: &K, status: &S) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    S: Serialize + Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        // The version that the status was made from: a decision on stale facts is refused and made anew.
        "metadata": {"name": object.name_any(), "resourceVersion": object.resource_version()},
        "status": status,
    });
    let params = PatchParams::apply(OPERATOR).force();
    api.patch_status(&object.name_any(), &params, &Patch::Apply(&patch)).await.map(|_| ())
}

/// Sets or removes one of our finalizers, on exactly the version of `object` that was read.
pub async fn set_finalizer<K>(
    client: &Client,
    object: &K,
    finalizer: &str,
    wanted: bool,
) -> Result<K, kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let mut finalizers: Vec<String> =
        object.finalizers().iter().filter(|found| *found != finalizer).cloned().collect();
    if wanted {
        finalizers.push(finalizer.to_owned());
    }
    let api: Api<K> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let patch = json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": finalizers}});
    api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await
}

/// What people should read of a refusal: the server's words, without how we got them.
pub fn api_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Runs both controllers until `stop`. Passes under way are finished first.
pub async fn run<T: Transport>(context: Arc<Context<T>>, namespace: Option<&str>, stop: CancellationToken) {
    let (clusters, writer) = reflector::store::<GuardedCluster>();
    future::join(
        run_clusters(context.clone(), namespace, clusters.clone(), writer, stop.clone()),
        run_topics(context, namespace, clusters, stop),
    )
    .await;
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Changes of objects that the operator made. Only their metadata travels: what is in them is read when it is needed.
fn owned<K>(
    client: &Client,
    namespace: Option<&str>,
) -> impl Stream<Item = watcher::Result<PartialObjectMeta<K>>> + Send + 'static
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let config = watcher::Config::default().labels(&format!("{MANAGED_BY_LABEL}={OPERATOR}"));
    watch(api::<PartialObjectMeta<K>>(client, namespace), config).touched_objects()
}

async fn run_clusters<T: Transport>(
    context: Arc<Context<T>>,
    namespace: Option<&str>,
    store: Store<GuardedCluster>,
    writer: reflector::store::Writer<GuardedCluster>,
    stop: CancellationToken,
) {
    let client = &context.client;
    // Our own status writes come back as changes; a generation they do not change is not looked at again.
    let triggers = predicates::generation.combine(predicates::annotations).combine(predicates::finalizers);
    let clusters = watch(api::<GuardedCluster>(client, namespace), watcher::Config::default())
        .reflect(writer)
        .applied_objects()
        .predicate_filter(triggers, Default::default());
    let pods =
        watcher::Config::default().labels(&format!("{MANAGED_BY_LABEL}={OPERATOR},{COMPONENT_LABEL}=broker"));
    let pods = watch(api::<PartialObjectMeta<Pod>>(client, namespace), pods).touched_objects();
    Controller::for_stream(clusters, store)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .owns_stream(owned::<StatefulSet>(client, namespace))
        .owns_stream(owned::<Service>(client, namespace))
        .owns_stream(owned::<ConfigMap>(client, namespace))
        .owns_stream(owned::<ServiceAccount>(client, namespace))
        .owns_stream(owned::<PodDisruptionBudget>(client, namespace))
        .watches_stream(pods, |pod: PartialObjectMeta<Pod>| {
            let cluster = pod.labels().get(INSTANCE_LABEL).cloned();
            cluster.map(|cluster| ObjectRef::new(&cluster).within(&pod.namespace().unwrap_or_default()))
        })
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(
            kafka_cluster_pass,
            |object, error, context| failed("KafkaCluster", &object, error, &context),
            context,
        )
        .for_each(|_| future::ready(()))
        .await;
}

async fn run_topics<T: Transport>(
    context: Arc<Context<T>>,
    namespace: Option<&str>,
    clusters: Store<GuardedCluster>,
    stop: CancellationToken,
) {
    let client = &context.client;
    let (store, writer) = reflector::store::<GuardedTopic>();
    let triggers = predicates::generation.combine(predicates::annotations).combine(predicates::finalizers);
    let topics = watch(api::<GuardedTopic>(client, namespace), watcher::Config::default())
        .reflect(writer)
        .applied_objects()
        .predicate_filter(triggers, Default::default());
    let changed_clusters = watch(api::<GuardedCluster>(client, namespace), watcher::Config::default())
        .touched_objects()
        .predicate_filter(relevant_to_topics, Default::default());
    let all_topics = store.clone();
    Controller::for_stream(topics, store)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .watches_stream(changed_clusters, move |cluster: GuardedCluster| {
            let (name, namespace) = (cluster.name_any(), cluster.namespace());
            all_topics
                .state_filter(|topic| {
                    let named = topic.0.as_ref().is_ok_and(|topic| topic.spec.cluster_ref.name == name);
                    named && topic.namespace() == namespace
                })
                .into_iter()
                .map(|topic| ObjectRef::from_obj(topic.as_ref()))
                .collect::<Vec<_>>()
        })
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(
            move |object, context| topic_pass(object, context, clusters.clone()),
            |object, error, context| failed("Topic", &object, error, &context),
            context,
        )
        .for_each(|_| future::ready(()))
        .await;
}

/// What of a cluster its Topics depend on: whether it is there, formed, and ready.
fn relevant_to_topics(cluster: &GuardedCluster) -> Option<u64> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    let meta = cluster.meta();
    (&meta.uid, meta.deletion_timestamp.is_some()).hash(&mut hasher);
    if let Some(status) = cluster.0.as_ref().ok().and_then(|cluster| cluster.status.as_ref()) {
        let ready = status.conditions.iter().any(|c| c.type_ == condition::READY && c.status == "True");
        let formed = status.quorum.as_ref().is_some_and(|quorum| quorum.formed);
        (&status.cluster_id, status.replicas, ready, formed).hash(&mut hasher);
    }
    Some(hasher.finish())
}

async fn kafka_cluster_pass<T: Transport>(
    object: Arc<GuardedCluster>,
    context: Arc<Context<T>>,
) -> Result<Action, kafka_cluster::Error> {
    match &object.0 {
        Ok(cluster) => {
            let pass = kafka_cluster::reconcile(cluster, &context);
            measured("KafkaCluster", cluster, &context, pass).await
        }
        Err(invalid) => Ok(skip_malformed("KafkaCluster", invalid, &context)),
    }
}

async fn topic_pass<T: Transport>(
    object: Arc<GuardedTopic>,
    context: Arc<Context<T>>,
    clusters: Store<GuardedCluster>,
) -> Result<Action, topic::Error> {
    match &object.0 {
        Ok(found) => {
            let lookup = |names: &Names| {
                let key = ObjectRef::new(&names.cluster).within(&names.namespace);
                clusters.get(&key).and_then(|cluster| cluster.0.as_ref().ok().cloned())
            };
            // Before the first list is complete every cluster would seem to be absent.
            if clusters.wait_until_ready().await.is_err() {
                return Ok(Action::await_change());
            }
            measured("Topic", found, &context, topic::reconcile(found, &context, &lookup)).await
        }
        Err(invalid) => Ok(skip_malformed("Topic", invalid, &context)),
    }
}

async fn measured<K: Resource, T, E>(
    kind: &'static str,
    object: &K,
    context: &Context<T>,
    pass: impl Future<Output = Result<Action, E>>,
) -> Result<Action, E> {
    let started = Instant::now();
    let result = pass.await;
    context.metrics.reconciled(kind, result.is_err(), started.elapsed());
    if result.is_ok() {
        context.failures.clear(kind, object);
    }
    result
}

/// An object that cannot be read waits for a change. The schema should not have let it in, so someone should look.
fn skip_malformed<T>(kind: &'static str, invalid: &InvalidObject, context: &Context<T>) -> Action {
    context.metrics.malformed(kind);
    tracing::error!(
        kind,
        namespace = invalid.metadata.namespace,
        name = invalid.metadata.name,
        error = invalid.error,
        "an object cannot be read and is left alone until it changes"
    );
    Action::await_change()
}

fn failed<K: Resource, T>(
    kind: &'static str,
    object: &Arc<K>,
    error: &dyn std::error::Error,
    context: &Context<T>,
) -> Action {
    let object = object.as_ref();
    let delay = context.failures.next_delay(kind, object);
    tracing::warn!(
        kind,
        namespace = object.namespace(),
        name = object.name_any(),
        error = %chain(error),
        retry_after_ms = delay.as_millis(),
        "a pass failed"
    );
    Action::requeue(delay)
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_minute_and_start_over_after_a_success() {
        let (failures, object) = (Failures::default(), KafkaCluster::default());
        let delays: Vec<_> = (0..8).map(|_| failures.next_delay("KafkaCluster", &object).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
        failures.clear("KafkaCluster", &object);
        assert_eq!(failures.next_delay("KafkaCluster", &object).as_secs(), 1);
    }
}
