//! Topics that a Kubernetes object manages.
//!
//! A topic has one owner, told by the object's uid. What the owner leaves unset is not managed: it takes the cluster's
//! default at creation and is never touched after. A topic that exists without an owner is only taken over on request.

use std::collections::BTreeSet;

use millrace_management::{ApiError, ApplyTopic, ApplyTopicResult, TopicOwner, TopicView, code, kafka_uuid};
use uuid::Uuid;

use super::Settings;
use super::configs::difference;
use super::draft::Draft;
use super::partitions::grow;
use super::requests::ControllerResponse;
use super::topics::{Layout, TopicError, create_topic};
use crate::metadata::image::{NO_LEADER, PartitionImage, TopicImage, TopicOwnerImage};
use crate::metadata::records::{ConfigTarget, Record};

/// Brings topic `name` to the wanted state, as a whole or not at all.
pub(super) fn apply(
    draft: &mut Draft,
    name: &str,
    request: &ApplyTopic,
    settings: &dyn Settings,
    new_uuid: &mut dyn FnMut() -> Uuid,
) -> ControllerResponse {
    let mut attempt = Draft::new(draft.image());
    let outcome = match draft.image().topic_by_name(name).cloned() {
        None => create(&mut attempt, name, request, settings, new_uuid),
        Some(topic) => update(&mut attempt, &topic, request, settings),
    };
    let topic_id = match outcome {
        Ok(topic_id) => topic_id,
        Err(refusal) => return ControllerResponse::Refused(refusal),
    };
    let records = attempt.into_records();
    let changed = !records.is_empty();
    for record in records {
        draft.push(record);
    }
    match draft.image().topics.get(&topic_id) {
        Some(topic) => {
            ControllerResponse::TopicApplied(ApplyTopicResult { changed, topic: topic_view(topic) })
        }
        None => ControllerResponse::Refused(not_found(name)),
    }
}

fn create(
    draft: &mut Draft,
    name: &str,
    request: &ApplyTopic,
    settings: &dyn Settings,
    new_uuid: &mut dyn FnMut() -> Uuid,
) -> Result<Uuid, ApiError> {
    let layout = Layout::Placed {
        partitions: request.partitions.unwrap_or_else(|| settings.default_partitions(draft.image())),
        replication_factor: request
            .replicas
            .unwrap_or_else(|| settings.default_replication_factor(draft.image())),
    };
    let topic_id =
        create_topic(draft, name, &layout, &request.config, settings, new_uuid).map_err(refusal)?;
    set_owner(draft, topic_id, None, request);
    Ok(topic_id)
}

fn update(
    draft: &mut Draft,
    topic: &TopicImage,
    request: &ApplyTopic,
    settings: &dyn Settings,
) -> Result<Uuid, ApiError> {
    check_owner(topic, request)?;
    if let Some(replicas) = request.replicas
        && topic
            .partitions
            .iter()
            .any(|partition| partition.target_ids().count() != usize::try_from(replicas).unwrap_or(0))
    {
        return Err(ApiError {
            code: code::INVALID_REPLICATION_FACTOR.to_owned(),
            message: format!(
                "topic {:?} has {} replicas per partition, and moving to {replicas} is not supported yet; set \
                 spec.replicas back",
                topic.name,
                topic_view(topic).replicas
            ),
        });
    }
    let mut wanted = topic.config.clone();
    if let Some(owner) = &topic.owner {
        wanted.retain(|key, _| !owner.managed_keys.contains(key) || request.config.contains_key(key));
    }
    for (key, value) in &request.config {
        if wanted.get(key) != Some(value) {
            settings
                .check_topic_config(key, value)
                .map_err(|message| refusal(TopicError::InvalidConfig(message)))?;
            wanted.insert(key.clone(), value.clone());
        }
    }
    if wanted != topic.config {
        settings
            .check_topic_configs(&wanted)
            .map_err(|message| refusal(TopicError::InvalidConfig(message)))?;
    }
    if let Some(partitions) = request.partitions {
        grow(draft, topic, partitions).map_err(refusal)?;
    }
    for record in difference(&ConfigTarget::Topic(topic.topic_id), &topic.config, &wanted) {
        draft.push(record);
    }
    set_owner(draft, topic.topic_id, topic.owner.as_ref(), request);
    Ok(topic.topic_id)
}

fn check_owner(topic: &TopicImage, request: &ApplyTopic) -> Result<(), ApiError> {
    match &topic.owner {
        Some(owner) if owner.uid == request.owner.uid => Ok(()),
        Some(owner) => Err(owned_by(topic, owner)),
        None if request.adopt => Ok(()),
        None => Err(ApiError {
            code: code::NOT_ADOPTED.to_owned(),
            message: format!(
                "topic {:?} exists and nobody manages it; to take it over set the annotation millrace.dev/adopt: \"true\"",
                topic.name
            ),
        }),
    }
}

fn set_owner(draft: &mut Draft, topic_id: Uuid, current: Option<&TopicOwnerImage>, request: &ApplyTopic) {
    let managed_keys: BTreeSet<String> = request.config.keys().cloned().collect();
    let TopicOwner { namespace, name, uid } = request.owner.clone();
    let owner = TopicOwnerImage { namespace, name, uid, managed_keys };
    if current != Some(&owner) {
        draft.push(Record::TopicOwner { topic_id, owner: Some(owner) });
    }
}

/// Deletes topic `name` if the object with `owner_uid` manages it.
pub(super) fn delete(draft: &mut Draft, name: &str, owner_uid: &str) -> ControllerResponse {
    with_owned(draft, name, owner_uid, |topic_id| Record::RemoveTopic { topic_id })
}

/// Keeps topic `name` and drops the mark that the object with `owner_uid` manages it.
pub(super) fn release(draft: &mut Draft, name: &str, owner_uid: &str) -> ControllerResponse {
    with_owned(draft, name, owner_uid, |topic_id| Record::TopicOwner { topic_id, owner: None })
}

fn with_owned(
    draft: &mut Draft,
    name: &str,
    owner_uid: &str,
    record: impl FnOnce(Uuid) -> Record,
) -> ControllerResponse {
    let Some(topic) = draft.image().topic_by_name(name).cloned() else {
        return ControllerResponse::Refused(not_found(name));
    };
    match &topic.owner {
        Some(owner) if owner.uid == owner_uid => {
            draft.push(record(topic.topic_id));
            ControllerResponse::Done
        }
        Some(owner) => ControllerResponse::Refused(owned_by(&topic, owner)),
        None => ControllerResponse::Refused(ApiError {
            code: code::OWNED_BY_ANOTHER.to_owned(),
            message: format!(
                "nobody manages topic {name:?}, so its deletion or release is not for an object to ask"
            ),
        }),
    }
}

fn owned_by(topic: &TopicImage, owner: &TopicOwnerImage) -> ApiError {
    ApiError {
        code: code::OWNED_BY_ANOTHER.to_owned(),
        message: format!(
            "topic {:?} is managed by Topic {}/{}; two objects cannot manage one topic",
            topic.name, owner.namespace, owner.name
        ),
    }
}

fn not_found(name: &str) -> ApiError {
    ApiError { code: code::TOPIC_NOT_FOUND.to_owned(), message: format!("there is no topic {name:?}") }
}

fn refusal(error: TopicError) -> ApiError {
    let code = match &error {
        TopicError::InvalidName { .. } | TopicError::CollidingName { .. } => code::INVALID_TOPIC_NAME,
        TopicError::Exists(_) => code::NOT_ADOPTED,
        TopicError::Unknown(_) => code::TOPIC_NOT_FOUND,
        TopicError::Shrink(_) => code::PARTITIONS_SHRINK,
        TopicError::InvalidReplicationFactor(_) => code::INVALID_REPLICATION_FACTOR,
        TopicError::InvalidConfig(_) => code::INVALID_CONFIG,
        TopicError::InvalidPartitions(_)
        | TopicError::InvalidAssignment(_)
        | TopicError::InvalidRequest(_) => code::BAD_REQUEST,
    };
    ApiError { code: code.to_owned(), message: error.to_string() }
}

/// The topic as the management API shows it.
pub(crate) fn topic_view(topic: &TopicImage) -> TopicView {
    let count = |matches: &dyn Fn(&PartitionImage) -> bool| {
        i32::try_from(topic.partitions.iter().filter(|partition| matches(partition)).count())
            .unwrap_or(i32::MAX)
    };
    TopicView {
        name: topic.name.clone(),
        topic_id: kafka_uuid::format(topic.topic_id),
        owner: topic.owner.as_ref().map(|owner| TopicOwner {
            namespace: owner.namespace.clone(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
        }),
        partitions: count(&|_| true),
        replicas: topic
            .partitions
            .iter()
            .map(|partition| i16::try_from(partition.target_ids().count()).unwrap_or(i16::MAX))
            .min()
            .unwrap_or(0),
        offline_partitions: count(&|partition| partition.leader == NO_LEADER),
        under_replicated_partitions: count(&|partition| {
            partition.isr.len() < partition.original_ids().count()
        }),
        config: topic.config.clone(),
    }
}
