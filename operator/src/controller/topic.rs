//! Reconciles a Topic: dereference → validate → ask the brokers where something differs → status.
//!
//! The brokers hold the truth about a topic, its owner included: what they refuse becomes a condition with their word
//! as the reason. A Topic never touches a topic that belongs to another object, or that has no owner unless adoption is
//! asked for.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::{Resource, ResourceExt, runtime::controller::Action};
use millrace_crds::{DeletionPolicy, KafkaCluster, Topic};
use millrace_management::TopicView;
use thiserror::Error;

use self::{
    dereference::{Cluster, dereference},
    validate::{NotYet, ValidatedTopic, differs, formed_brokers, validate},
};
use super::{Context, apply_status, set_finalizer};
use crate::{
    build::Names,
    events::{Change, condition_events},
    management::{CallError, Fleet, Transport},
    status::{
        Cause,
        topic::{Outcome, status},
    },
};

pub mod dereference;
pub mod validate;

/// Keeps a Topic until the brokers know what becomes of the topic.
pub const TOPIC_FINALIZER: &str = "millrace.dev/topic";
/// Asks to take over a topic that exists without an owner.
pub const ADOPT_ANNOTATION: &str = "millrace.dev/adopt";

/// Time until the next look while something is waited for.
const BUSY: Duration = Duration::from_secs(3);
/// Time until live facts are read again, and a refused spec is tried again.
const SETTLED: Duration = Duration::from_secs(60);
/// How long brokers that cannot be asked hold up a deletion.
const DELETION_LIMIT: SignedDuration = SignedDuration::from_mins(5);

/// Why a pass could not be finished.
#[derive(Debug, Error)]
#[error("{action}")]
pub struct Error {
    action: &'static str,
    #[source]
    source: Box<kube::Error>,
}

fn api(action: &'static str) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error { action, source: Box::new(source) }
}

/// One pass. `lookup` finds a KafkaCluster in the cache.
pub async fn reconcile<T: Transport>(
    topic: &Topic,
    context: &Context<T>,
    lookup: &(dyn Fn(&Names) -> Option<KafkaCluster> + Send + Sync),
) -> Result<Action, Error> {
    let names = Names::new(topic.namespace().unwrap_or_default(), &topic.spec.cluster_ref.name);
    let cluster =
        dereference(topic, &names, context, lookup).await.map_err(api("read the KafkaCluster of a Topic"))?;
    if topic.metadata.deletion_timestamp.is_some() {
        return delete(topic, &names, &cluster, context).await;
    }
    let Cluster::Found(cluster) = cluster else {
        let message = format!("there is no KafkaCluster {} in namespace {}", names.cluster, names.namespace);
        return settle(topic, Outcome::Waiting(Cause::new("ClusterNotFound", message)), context).await;
    };
    let valid = match validate(topic, &cluster) {
        Ok(valid) => valid,
        Err(NotYet::Refused(cause)) => return settle(topic, Outcome::Refused(cause, None), context).await,
        Err(NotYet::Waiting(cause)) => return settle(topic, Outcome::Waiting(cause), context).await,
    };
    // Before the brokers are asked: a topic must not be left behind without anyone to decide about it.
    if !topic.finalizers().iter().any(|found| found == TOPIC_FINALIZER) {
        set_finalizer(&context.client, topic, TOPIC_FINALIZER, true)
            .await
            .map_err(api("set the finalizer"))?;
        // The change of finalizers brings the object back with its new version.
        return Ok(Action::requeue(SETTLED));
    }
    let Some(credentials) =
        context.credentials(&names).await.map_err(api("read the operator's certificate"))?
    else {
        let cause = Cause::new("ClusterNotReady", "the cluster has no certificates yet");
        return settle(topic, Outcome::Waiting(cause), context).await;
    };
    let fleet = Fleet::new(&context.transport, &names, valid.replicas, credentials);
    let outcome = bring_about(topic, &valid, &fleet).await;
    settle(topic, outcome, context).await
}

/// Asks the brokers for the topic, where it is not as wanted already.
async fn bring_about<T: Transport>(topic: &Topic, valid: &ValidatedTopic, fleet: &Fleet<'_, T>) -> Outcome {
    let view = match fleet.topic(&valid.name).await {
        Ok(view) => view,
        Err(error) => return not_answered(&error, None),
    };
    match view {
        Some(view) if !differs(topic, &valid.wanted, Some(&view)) => Outcome::Applied(view),
        view => match fleet.apply_topic(&valid.name, &valid.wanted).await {
            Ok(result) => Outcome::Applied(result.topic),
            Err(error) => {
                let ours = |view: &TopicView| {
                    view.owner.as_ref().is_some_and(|owner| owner.uid == valid.wanted.owner.uid)
                };
                not_answered(&error, view.filter(ours))
            }
        },
    }
}

fn not_answered(error: &CallError, view: Option<TopicView>) -> Outcome {
    match error {
        CallError::Unreachable(_) => Outcome::Waiting(Cause::new("BrokersUnreachable", error.to_string())),
        CallError::Refused { code, .. } if error.is_transient() => {
            Outcome::Waiting(Cause::new(code.clone(), error.to_string()))
        }
        CallError::Refused { code, .. } => {
            Outcome::Refused(Cause::new(code.clone(), error.to_string()), view)
        }
    }
}

/// Writes the status where it differs, with the Events that go with it, and says when to look again.
async fn settle<T>(topic: &Topic, outcome: Outcome, context: &Context<T>) -> Result<Action, Error> {
    let current = topic.status.clone().unwrap_or_default();
    let next = status(&current, topic.topic_name(), &outcome, topic.metadata.generation, Timestamp::now());
    if next != current {
        apply_status(&context.client, topic, &next).await.map_err(api("write the status of a Topic"))?;
        let events = condition_events(&current.conditions, &next.conditions);
        context.events.publish(&topic.object_ref(&()), &events).await;
    }
    Ok(Action::requeue(match outcome {
        Outcome::Waiting(_) => BUSY,
        Outcome::Applied(_) | Outcome::Refused(..) => SETTLED,
    }))
}

/// What becomes of the finalizer of a Topic that is being deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Farewell {
    /// Nothing is left to decide.
    Release,
    /// The brokers have to hear of it first.
    Tell,
}

/// A cluster that is gone, or goes, or never had topics, needs not to be told.
fn farewell(cluster: &Cluster) -> Farewell {
    match cluster {
        Cluster::Absent => Farewell::Release,
        Cluster::Found(cluster) if cluster.metadata.deletion_timestamp.is_some() => Farewell::Release,
        Cluster::Found(cluster) if formed_brokers(cluster).is_none() => Farewell::Release,
        Cluster::Found(_) => Farewell::Tell,
    }
}

async fn delete<T: Transport>(
    topic: &Topic,
    names: &Names,
    cluster: &Cluster,
    context: &Context<T>,
) -> Result<Action, Error> {
    if !topic.finalizers().iter().any(|found| found == TOPIC_FINALIZER) {
        return Ok(Action::await_change());
    }
    if farewell(cluster) == Farewell::Release {
        return release(topic, context).await;
    }
    let Cluster::Found(found) = cluster else { return release(topic, context).await };
    match tell(topic, names, formed_brokers(found).unwrap_or(1), context).await? {
        Ok(()) => release(topic, context).await,
        Err(blocker) => {
            let deleted_at =
                topic.metadata.deletion_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |at| at.0);
            if Timestamp::now().duration_since(deleted_at) > DELETION_LIMIT {
                let note = format!("gave up after 5 minutes; the topic may remain on the brokers: {blocker}");
                let change = Change { warning: true, reason: "TopicRemains", note };
                context.events.changed(topic, &change).await;
                return release(topic, context).await;
            }
            let until = deleted_at + DELETION_LIMIT;
            let message = format!("waiting for the brokers to let the topic go, until {until:.0}: {blocker}");
            settle(topic, Outcome::Waiting(Cause::new("Deleting", message)), context).await
        }
    }
}

/// Tells the brokers what the deletion policy says. The inner error is what has to be waited for.
async fn tell<T: Transport>(
    topic: &Topic,
    names: &Names,
    brokers: i32,
    context: &Context<T>,
) -> Result<Result<(), String>, Error> {
    let credentials = context.credentials(names).await.map_err(api("read the operator's certificate"))?;
    let Some(credentials) = credentials else { return Ok(Err("the cluster has no certificates".to_owned())) };
    let fleet = Fleet::new(&context.transport, names, brokers, credentials);
    let (name, uid) = (topic.topic_name(), topic.uid().unwrap_or_default());
    let answer = match topic.spec.deletion_policy {
        DeletionPolicy::Delete => fleet.delete_topic(name, &uid).await,
        DeletionPolicy::Retain => fleet.release_topic(name, &uid).await,
    };
    Ok(match answer {
        Ok(false) => Ok(()),
        Ok(true) => {
            let change = match topic.spec.deletion_policy {
                DeletionPolicy::Delete => Change::normal("TopicDeleted", format!("deleted topic {name}")),
                DeletionPolicy::Retain => {
                    Change::normal("TopicRetained", format!("topic {name} stays, without an owner"))
                }
            };
            context.events.changed(topic, &change).await;
            Ok(())
        }
        // Not ours, so nothing of it is ours to decide.
        Err(error) if error.code() == Some(millrace_management::code::OWNED_BY_ANOTHER) => Ok(()),
        Err(error) if error.code() == Some(millrace_management::code::NOT_ADOPTED) => Ok(()),
        Err(error) => Err(error.to_string()),
    })
}

async fn release<T>(topic: &Topic, context: &Context<T>) -> Result<Action, Error> {
    match set_finalizer(&context.client, topic, TOPIC_FINALIZER, false).await {
        Ok(_) => Ok(Action::await_change()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Action::await_change()),
        Err(error) => Err(api("remove the finalizer of a Topic")(error)),
    }
}

#[cfg(test)]
#[path = "topic_test.rs"]
mod tests;
