//! Reconciles a KafkaCluster: dereference → validate → build → apply → brokers → status.
//!
//! Starts from what is, each time, and may be cut off at any await. The order of steps is a safety argument:
//! the cluster id and the first voters are recorded before anything carries them; Secrets and ConfigMap exist before
//! pods that mount them; the StatefulSet comes last; only then are the brokers asked anything.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, PersistentVolumeClaim, Secret},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::controller::Action,
};
use millrace_crds::{DeletionPolicy, KafkaCluster, KafkaClusterStatus, QuorumStatus};
use millrace_management::{ClusterView, Identity, code};
use serde_json::json;
use thiserror::Error;

use self::{
    dereference::{Observed, Zones, dereference, zones},
    quorum::{Situation, Step, next_step},
    validate::{IdOrigin, ValidatedCluster, kafka_id, validate},
};
use super::{Context, api_message, apply_status, set_finalizer};
use crate::{
    OPERATOR,
    apply::{Applier, ApplyError},
    build::{
        CLUSTER_ID_ANNOTATION, Names, config_map::config_map, pod_disruption_budget::pod_disruption_budget,
        secret, service::services, service_account::service_account, stateful_set::stateful_set,
    },
    certificates::{
        self, Authorities, AuthorityStep, CertificateError, Leaf, broker_purpose, leaf_problem,
        operator_purpose, trust_of,
    },
    events::{Change, condition_events},
    management::{CallError, Credentials, Fleet, Transport},
    quantity,
    status::{
        Cause,
        kafka_cluster::{self as status, CertificateFacts, Facts, registered},
    },
};

pub mod dereference;
pub mod quorum;
pub mod validate;

/// Keeps a KafkaCluster with `deletionPolicy: Delete` until its volumes are deleted.
pub const VOLUMES_FINALIZER: &str = "millrace.dev/volumes";

/// Time until the next look while something is under way.
const BUSY: Duration = Duration::from_secs(2);
/// Time until the next look where nothing is.
const SETTLED: Duration = Duration::from_secs(60);
/// How long the deletion of volumes is waited for, before the KafkaCluster goes without.
const DELETION_LIMIT: jiff::SignedDuration = jiff::SignedDuration::from_mins(10);

/// Why a pass could not be finished.
#[derive(Debug, Error)]
pub enum Error {
    /// The API server refused or could not be reached.
    #[error("{action}")]
    Api {
        /// What was being done.
        action: &'static str,
        /// What it said.
        #[source]
        source: Box<kube::Error>,
    },
    /// An object could not be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A certificate could not be made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The authority was lost together with the operator's certificate; the next one is not in use yet.
    #[error(
        "the operator has no certificate until the next certificate authority is in use, in about 10 minutes"
    )]
    NoCredentials,
}

fn api(action: &'static str) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error::Api { action, source: Box::new(source) }
}

impl Error {
    /// What the status says about it.
    fn cause(&self) -> Cause {
        match self {
            Self::Api { action, source } => {
                Cause::new("ApiFailed", format!("{action}: {}", api_message(source)))
            }
            Self::Apply(ApplyError::NameTaken { .. }) => Cause::new(
                "NameTaken",
                format!("{self}; delete or rename it, or choose another name for this cluster"),
            ),
            Self::Apply(ApplyError::Api { source, .. }) => {
                Cause::new("ApplyFailed", format!("{self}: {}", api_message(source)))
            }
            Self::Certificate(error) => Cause::new("CertificateFailed", error.to_string()),
            Self::NoCredentials => Cause::new("RenewingAuthority", self.to_string()),
        }
    }

    /// Whether only a change by somebody else can cure it.
    fn stalls(&self) -> bool {
        matches!(self, Self::Apply(ApplyError::NameTaken { .. }))
    }
}

/// One pass.
pub async fn reconcile<T: Transport>(cached: &KafkaCluster, context: &Context<T>) -> Result<Action, Error> {
    let names = Names::new(cached.namespace().unwrap_or_default(), cached.name_any());
    // Not from the cache: a status that lags behind would have us choose a second cluster id.
    let clusters: Api<KafkaCluster> = Api::namespaced(context.client.clone(), &names.namespace);
    let Some(live) = clusters.get_opt(&names.cluster).await.map_err(api("read the KafkaCluster"))? else {
        context.forget_credentials(&names);
        return Ok(Action::await_change());
    };
    if live.metadata.deletion_timestamp.is_some() {
        // Boxed, as is the pass: with everything that was observed, both are large.
        return Box::pin(delete(&live, &names, context)).await;
    }
    match Box::pin(pass(&live, &names, context)).await {
        Ok(action) => Ok(action),
        Err(error) => {
            report_failure(&names, context, &error).await;
            Err(error)
        }
    }
}

async fn pass<T: Transport>(
    live: &KafkaCluster,
    names: &Names,
    context: &Context<T>,
) -> Result<Action, Error> {
    let now = Timestamp::now();
    let observed =
        dereference(&context.client, names).await.map_err(api("read what belongs to the KafkaCluster"))?;
    let fresh_id = kafka_id(uuid::Uuid::new_v4().as_u128());
    let cluster = match validate(live, &observed, &context.broker_image, &fresh_id) {
        Ok(cluster) => cluster,
        Err(invalid) => {
            let cause = Cause::new(invalid.reason(), invalid.to_string());
            let current = live.status.clone().unwrap_or_default();
            let refused = status::refused(&current, &cause, live.metadata.generation, now);
            write_status(live, &refused, context).await?;
            return Ok(Action::requeue(SETTLED));
        }
    };
    if cluster.id_origin != IdOrigin::Recorded {
        // Recorded before anything carries it; what follows starts from the status that holds it.
        record_identity(live, &cluster, context).await?;
        return Ok(Action::requeue(Duration::ZERO));
    }
    let finalizer = cluster.deletion_policy == DeletionPolicy::Delete;
    if live.finalizers().iter().any(|found| found == VOLUMES_FINALIZER) != finalizer {
        set_finalizer(&context.client, live, VOLUMES_FINALIZER, finalizer)
            .await
            .map_err(api("set the finalizer"))?;
        return Ok(Action::requeue(Duration::ZERO));
    }

    let (credentials, certificates) = apply_certificates(live, &cluster, &observed, context, now).await?;
    let config_map = apply_objects(live, &cluster, &observed, context, now).await?;
    let expansion_errors = grow_volumes(&cluster, &observed, context).await;

    let fleet = Fleet::new(&context.transport, names, cluster.replicas, credentials);
    let identities: Vec<Option<Identity>> = fleet.identities().await.into_iter().map(Result::ok).collect();
    let quorum = match form_quorum(live, &cluster, &identities, &fleet, context).await? {
        // The status has changed; the rest of the pass starts from there.
        Quorum::Recorded => return Ok(Action::requeue(Duration::ZERO)),
        other => other,
    };
    let view = match quorum {
        Quorum::Formed => fleet.cluster().await.map_err(|error| error.to_string()),
        _ => Err("the metadata quorum is not formed yet".to_owned()),
    };
    let zones = zones(&context.client, &observed.pods).await;
    let view = match view {
        Ok(view) => Ok(set_racks(view, &cluster, &observed, &zones, &identities, &fleet).await),
        Err(error) => Err(error),
    };

    let current = live.status.clone().unwrap_or_default();
    let facts = Facts {
        cluster: &cluster,
        observed: &observed,
        config_map: &config_map,
        zones: &zones,
        identities: &identities,
        quorum_blocker: quorum.blocker(),
        quorum_stalled: quorum.stalled(),
        view: view.as_ref().map_err(String::as_str),
        certificates,
        expansion_errors: &expansion_errors,
    };
    let next = status::status(&current, facts, live.metadata.generation, now);
    let settled =
        next.conditions.iter().all(|c| c.type_ != millrace_crds::condition::READY || c.status == "True");
    write_status(live, &next, context).await?;
    Ok(Action::requeue(if settled { SETTLED } else { BUSY }))
}

/// Records cluster id and first voters.
async fn record_identity<T>(
    live: &KafkaCluster,
    cluster: &ValidatedCluster,
    context: &Context<T>,
) -> Result<(), Error> {
    let mut next = live.status.clone().unwrap_or_default();
    next.cluster_id = Some(cluster.cluster_id.clone());
    next.selector = Some(cluster.names.selector_query());
    next.quorum = Some(QuorumStatus {
        initial_voters: (0..cluster.initial_voters).map(|ordinal| cluster.names.pod(ordinal)).collect(),
        formed: false,
    });
    write_status(live, &next, context).await?;
    let id = &cluster.cluster_id;
    let change = match cluster.id_origin {
        IdOrigin::Adopted => Change::normal(
            "ClusterAdopted",
            format!("took up the retained volumes of cluster {id}; its records are kept"),
        ),
        IdOrigin::New | IdOrigin::Recorded => {
            Change::normal("ClusterIdAssigned", format!("the cluster id is {id}"))
        }
    };
    context.events.changed(live, &change).await;
    Ok(())
}

/// Brings the certificates up to date and returns the operator's own.
async fn apply_certificates<T>(
    live: &KafkaCluster,
    cluster: &ValidatedCluster,
    observed: &Observed,
    context: &Context<T>,
    now: Timestamp,
) -> Result<(Arc<Credentials>, CertificateFacts), Error> {
    let Observed { authority_secret, broker_secret, operator_secret, .. } = observed;
    let bundles = [trust_of(broker_secret.as_ref()), trust_of(operator_secret.as_ref())];
    let found = Authorities::read(authority_secret.as_ref(), bundles[0].or(bundles[1]));
    let subject = format!("{} {} fleet", cluster.names.namespace, cluster.names.cluster);
    let (authorities, step) = certificates::renew(found, &bundles, &subject, now)?;
    if let Some(step) = step {
        context.events.changed(live, &authority_change(step)).await;
    }
    let applier = applier(cluster, context);
    // The authority first: a leaf whose issuer was lost could not be continued.
    let wanted = secret::authority_secret(&cluster.names, &cluster.owner, &authorities);
    applier.apply(&wanted, authority_secret.as_ref()).await?;

    let (names, trust) = (&cluster.names, authorities.trust());
    let mut expiries = Vec::new();
    let mut own = None;
    for (name, purpose, secret) in [
        (names.broker_secret(), broker_purpose(names), broker_secret),
        (names.operator_secret(), operator_purpose(), operator_secret),
    ] {
        let current = Leaf::read(secret.as_ref());
        let leaf = match leaf_problem(now, &authorities, current.as_ref(), &purpose) {
            None => current,
            Some(problem) => {
                tracing::info!(namespace = names.namespace, secret = name, ?problem, "issuing a certificate");
                // Without the authority's key the old one has to do until the next authority is in use.
                authorities.issue(&purpose, now)?.or(current)
            }
        };
        expiries.push(leaf.as_ref().map(|leaf| leaf.not_after));
        if let Some(leaf) = leaf {
            let wanted: Secret = secret::leaf_secret(names, &cluster.owner, name, &leaf, &trust);
            applier.apply(&wanted, secret.as_ref()).await?;
            own = Some(leaf);
        }
    }
    let facts = CertificateFacts {
        authority_expiry: authorities.current.not_after,
        leaf_expiry: expiries.into_iter().collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().min()),
        renewing: authorities.next.is_some() || authorities.previous.is_some(),
    };
    let own = own.or_else(|| Leaf::read(operator_secret.as_ref()));
    let credentials = match own {
        Some(leaf) => Arc::new(Credentials::new(&leaf, &trust)),
        None => return Err(Error::NoCredentials),
    };
    context.remember_credentials(names, credentials.clone());
    Ok((credentials, facts))
}

fn authority_change(step: AuthorityStep) -> Change {
    match step {
        AuthorityStep::Create => {
            Change::normal("AuthorityCreated", "made the certificate authority of the fleet listener")
        }
        AuthorityStep::Stage => Change::normal(
            "AuthorityRenewalStarted",
            "published the next certificate authority to all brokers",
        ),
        AuthorityStep::Promote => {
            Change::normal("AuthorityRenewed", "certificates now come from the next certificate authority")
        }
        AuthorityStep::Retire => Change::normal(
            "AuthorityRenewalFinished",
            "the previous certificate authority is no longer trusted",
        ),
    }
}

/// Applies everything but Secrets; returns the ConfigMap as it was applied.
async fn apply_objects<T>(
    live: &KafkaCluster,
    cluster: &ValidatedCluster,
    observed: &Observed,
    context: &Context<T>,
    now: Timestamp,
) -> Result<ConfigMap, Error> {
    let applier = applier(cluster, context);
    // Pods name the account and mount the ConfigMap.
    applier.apply(&service_account(cluster), observed.service_account.as_ref()).await?;
    let config_map = config_map(cluster, observed.config_map.as_ref(), now);
    applier.apply(&config_map, observed.config_map.as_ref()).await?;
    // Brokers look each other up by the names that the Services give.
    let wanted = services(cluster);
    for service in &wanted {
        let found = observed.services.iter().find(|found| found.name_any() == service.name_any());
        applier.apply(service, found).await?;
    }
    // Before the pods, so that the first of them is protected too.
    applier.apply(&pod_disruption_budget(cluster), observed.disruption_budget.as_ref()).await?;
    applier.apply(&stateful_set(cluster), observed.stateful_set.as_ref()).await?;
    // After everything that is wanted is there.
    applier.remove_orphans(&wanted, &observed.services).await?;

    let before = observed.stateful_set.as_ref().and_then(|set| set.spec.as_ref()?.replicas);
    if let Some(before) = before.filter(|before| *before < cluster.replicas) {
        let note = format!("added brokers: {before} → {}", cluster.replicas);
        context.events.changed(live, &Change::normal("ScaledOut", note)).await;
    }
    Ok(config_map)
}

fn applier<T>(cluster: &ValidatedCluster, context: &Context<T>) -> Applier {
    Applier::new(context.client.clone(), &cluster.names.namespace, cluster.owner.clone())
}

/// Asks for larger volumes where the spec does. Returns what was refused.
async fn grow_volumes<T>(
    cluster: &ValidatedCluster,
    observed: &Observed,
    context: &Context<T>,
) -> Vec<String> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &cluster.names.namespace);
    let wanted = quantity::parse(&cluster.storage_size);
    let mut errors = Vec::new();
    for claim in &observed.claims {
        let spec = claim.spec.as_ref();
        let requested = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
        // A claim that is not bound yet cannot be changed; one that was made larger by hand stays.
        let bound = spec.is_some_and(|spec| spec.volume_name.is_some());
        if !bound || requested.is_none_or(|size| quantity::parse(&size.0) >= wanted) {
            continue;
        }
        let name = claim.name_any();
        let patch = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "spec": {"resources": {"requests": {"storage": cluster.storage_size}}},
        });
        let params = PatchParams::apply(OPERATOR).force();
        match api.patch(&name, &params, &Patch::Apply(&patch)).await {
            Ok(_) => tracing::info!(namespace = cluster.names.namespace, claim = name, "growing a volume"),
            Err(error) => errors.push(format!("{name}: {}", api_message(&error))),
        }
    }
    errors
}

/// How far the quorum is.
#[derive(Debug)]
enum Quorum {
    Formed,
    /// Something was written to the status.
    Recorded,
    Waiting(Cause),
    Stalled(Cause),
}

impl Quorum {
    fn blocker(&self) -> Option<&Cause> {
        match self {
            Self::Waiting(cause) => Some(cause),
            Self::Formed | Self::Recorded | Self::Stalled(_) => None,
        }
    }

    fn stalled(&self) -> Option<&Cause> {
        match self {
            Self::Stalled(cause) => Some(cause),
            Self::Formed | Self::Recorded | Self::Waiting(_) => None,
        }
    }
}

/// Takes one step towards the quorum; see [`quorum`].
async fn form_quorum<T: Transport>(
    live: &KafkaCluster,
    cluster: &ValidatedCluster,
    identities: &[Option<Identity>],
    fleet: &Fleet<'_, T>,
    context: &Context<T>,
) -> Result<Quorum, Error> {
    let recorded = live.status.as_ref().and_then(|status| status.quorum.as_ref());
    let step = next_step(Situation {
        names: &cluster.names,
        cluster_id: &cluster.cluster_id,
        recorded,
        initial_voters: cluster.initial_voters,
        adopted_ordinals: &cluster.adopted_ordinals,
        identities,
    });
    let mut quorum = recorded.cloned().unwrap_or_default();
    let formed = match step {
        Step::Formed => return Ok(Quorum::Formed),
        Step::Wait(blocker) => return Ok(Quorum::Waiting(Cause::new("FormingQuorum", blocker))),
        Step::ForeignVolume { pod, cluster_id } => {
            let message = format!(
                "the volume of {pod} belongs to cluster {cluster_id}, this one is {}; move its volume claim away or \
                 delete it",
                cluster.cluster_id
            );
            return Ok(Quorum::Stalled(Cause::new("ForeignVolume", message)));
        }
        Step::RecordVoters(voters) => {
            quorum.initial_voters = voters;
            false
        }
        Step::RecordFormed => true,
        Step::Bootstrap { ordinal, request } => match fleet.bootstrap_quorum(ordinal, &request).await {
            Ok(()) => true,
            Err(error) => return Ok(bootstrap_failed(&cluster.names.pod(ordinal), &error)),
        },
    };
    quorum.formed = formed;
    let next = KafkaClusterStatus { quorum: Some(quorum), ..live.status.clone().unwrap_or_default() };
    write_status(live, &next, context).await?;
    if formed {
        let note = format!("the metadata quorum of cluster {} is formed", cluster.cluster_id);
        context.events.changed(live, &Change::normal("QuorumFormed", note)).await;
    }
    Ok(Quorum::Recorded)
}

fn bootstrap_failed(pod: &str, error: &CallError) -> Quorum {
    match error.code() {
        Some(reason @ (code::CLUSTER_ID_MISMATCH | code::NOT_A_VOTER | code::ALREADY_MEMBER)) => {
            let message = format!("{pod} refuses to form the metadata quorum: {error}");
            Quorum::Stalled(Cause::new(reason, message))
        }
        Some(_) | None => {
            let message = format!("{pod} was asked to form the metadata quorum: {error}");
            Quorum::Waiting(Cause::new("FormingQuorum", message))
        }
    }
}

/// Tells the controller the zones it does not have right; returns the view with what was told.
async fn set_racks<T: Transport>(
    mut view: ClusterView,
    cluster: &ValidatedCluster,
    observed: &Observed,
    zones: &Zones,
    identities: &[Option<Identity>],
    fleet: &Fleet<'_, T>,
) -> ClusterView {
    for (ordinal, identity) in (0..).zip(identities) {
        let pod = cluster.names.pod(ordinal);
        let found = observed.pods.iter().find(|found| found.name_any() == pod);
        let node = found.and_then(status::node_of);
        // A node that could not be read says nothing; one without the label says that there is no rack.
        let Some(zone) = node.and_then(|node| zones.by_node.get(node)) else { continue };
        let Some(broker_id) = registered(identity.as_ref(), &view)
            .filter(|broker| broker.rack != *zone)
            .map(|broker| broker.broker_id)
        else {
            continue;
        };
        match fleet.set_rack(broker_id, zone.clone()).await {
            Ok(()) => {
                tracing::info!(broker_id, rack = zone, "set the rack of a broker");
                for broker in view.brokers.iter_mut().filter(|broker| broker.broker_id == broker_id) {
                    broker.rack.clone_from(zone);
                }
            }
            Err(error) => tracing::warn!(broker_id, %error, "cannot set the rack of a broker"),
        }
    }
    view
}

/// Writes the status where it differs, and the Events that go with it.
async fn write_status<T>(
    live: &KafkaCluster,
    next: &KafkaClusterStatus,
    context: &Context<T>,
) -> Result<(), Error> {
    let current = live.status.clone().unwrap_or_default();
    if *next == current {
        return Ok(());
    }
    apply_status(&context.client, live, next).await.map_err(api("write the status"))?;
    let events = condition_events(&current.conditions, &next.conditions);
    context.events.publish(&kube::Resource::object_ref(live, &()), &events).await;
    Ok(())
}

/// Puts the failure into the status, starting from the status as it is now. Best effort: the pass has failed anyway.
async fn report_failure<T>(names: &Names, context: &Context<T>, error: &Error) {
    let clusters: Api<KafkaCluster> = Api::namespaced(context.client.clone(), &names.namespace);
    let Ok(Some(live)) = clusters.get_opt(&names.cluster).await else { return };
    let current = live.status.clone().unwrap_or_default();
    let (cause, generation, now) = (error.cause(), live.metadata.generation, Timestamp::now());
    let next = if error.stalls() {
        status::refused(&current, &cause, generation, now)
    } else {
        status::failed(&current, &cause, generation, now)
    };
    if let Err(error) = write_status(&live, &next, context).await {
        tracing::debug!(%error, "cannot report a failure in the status");
    }
}

/// Deletes what owner references do not: with `deletionPolicy: Delete`, the volumes, once their pods are gone.
async fn delete<T>(live: &KafkaCluster, names: &Names, context: &Context<T>) -> Result<Action, Error> {
    if !live.finalizers().iter().any(|found| found == VOLUMES_FINALIZER) {
        return Ok(Action::await_change());
    }
    let observed =
        dereference(&context.client, names).await.map_err(api("read what belongs to the KafkaCluster"))?;
    let deleted_at = live.metadata.deletion_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |at| at.0);
    let late = Timestamp::now().duration_since(deleted_at) > DELETION_LIMIT;
    let cluster_id = live.status.as_ref().and_then(|status| status.cluster_id.as_deref());
    // Only volumes of exactly this cluster: others are somebody else's records.
    let claims: Vec<_> = observed
        .claims
        .iter()
        .filter(|claim| {
            cluster_id.is_some()
                && claim.annotations().get(CLUSTER_ID_ANNOTATION).map(String::as_str) == cluster_id
        })
        .collect();
    if late && !(observed.pods.is_empty() && claims.is_empty()) {
        let note = format!("gave up on {} volume claims after 10 minutes; they remain", claims.len());
        let change = Change { warning: true, reason: "VolumesRemain", note };
        context.events.changed(live, &change).await;
        return release(live, context).await;
    }
    // The set waits for us, as it would only go with its owner; its pods must not come back.
    if let Some(set) = &observed.stateful_set {
        let sets: Api<StatefulSet> = Api::namespaced(context.client.clone(), &names.namespace);
        delete_exactly(&sets, set, "delete the StatefulSet").await?;
    }
    let pods: Vec<String> = observed.pods.iter().map(ResourceExt::name_any).collect();
    if !pods.is_empty() || observed.stateful_set.is_some() {
        return wait_for_deletion(live, context, format!("waiting for pods to end: {}", pods.join(", ")))
            .await;
    }
    if !claims.is_empty() {
        let api_: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &names.namespace);
        for claim in &claims {
            if claim.metadata.deletion_timestamp.is_none() {
                delete_exactly(&api_, *claim, "delete a volume claim").await?;
            }
        }
        let left: Vec<_> = claims.iter().map(|claim| claim.name_any()).collect();
        return wait_for_deletion(
            live,
            context,
            format!("waiting for volume claims to go: {}", left.join(", ")),
        )
        .await;
    }
    context
        .events
        .changed(live, &Change::normal("VolumesDeleted", "all volumes of the cluster are deleted"))
        .await;
    release(live, context).await
}

async fn release<T>(live: &KafkaCluster, context: &Context<T>) -> Result<Action, Error> {
    match set_finalizer(&context.client, live, VOLUMES_FINALIZER, false).await {
        Ok(_) => Ok(Action::await_change()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Action::await_change()),
        Err(error) => Err(api("remove the finalizer")(error)),
    }
}

async fn wait_for_deletion<T>(
    live: &KafkaCluster,
    context: &Context<T>,
    blocker: String,
) -> Result<Action, Error> {
    let current = live.status.clone().unwrap_or_default();
    let cause = Cause::new("DeletingVolumes", blocker);
    let generation = live.metadata.generation;
    write_status(live, &status::failed(&current, &cause, generation, Timestamp::now()), context).await?;
    Ok(Action::requeue(BUSY))
}

/// Deletes the object that was seen, and none that took its name since.
async fn delete_exactly<K>(api_: &Api<K>, object: &K, action: &'static str) -> Result<(), Error>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: object.meta().uid.clone(), resource_version: None }),
        ..DeleteParams::background()
    };
    match api_.delete(&object.name_any(), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(api(action)(error)),
    }
}

#[cfg(test)]
#[path = "kafka_cluster_test.rs"]
mod tests;
