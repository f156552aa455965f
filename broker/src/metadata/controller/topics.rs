//! Creation and deletion of topics.

use std::collections::{BTreeMap, BTreeSet};

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::create_topics_request::CreatableTopic;
use millrace_protocol::messages::create_topics_response::CreatableTopicResult;
use millrace_protocol::messages::delete_topics_request::DeleteTopicState;
use millrace_protocol::messages::delete_topics_response::DeletableTopicResult;
use millrace_protocol::messages::{
    CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest, DeleteTopicsResponse,
};
use uuid::Uuid;

use super::Settings;
use super::draft::Draft;
use super::partitions::{add_partitions, assign};
use crate::metadata::image::{BrokerId, MetadataImage};
use crate::metadata::records::{ConfigTarget, Record};

/// Longest topic name.
const MAX_NAME_LENGTH: usize = 249;

/// Most partitions that one request may make of one topic: a slip of the finger must not make millions.
pub(super) const MAX_PARTITIONS: i32 = 10_000;

/// Why a topic cannot be what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TopicError {
    #[error("topic name {name:?} is not legal: {reason}")]
    InvalidName { name: String, reason: &'static str },
    #[error("topic {name:?} would share its metric names with topic {other:?}: '.' and '_' count as equal")]
    CollidingName { name: String, other: String },
    #[error("topic {0:?} exists already")]
    Exists(String),
    #[error("topic {0:?} does not exist")]
    Unknown(String),
    #[error("{0}")]
    InvalidPartitions(String),
    #[error("{0}")]
    Shrink(String),
    #[error("{0}")]
    InvalidReplicationFactor(String),
    #[error("{0}")]
    InvalidAssignment(String),
    #[error("{0}")]
    InvalidConfig(String),
    #[error("{0}")]
    InvalidRequest(String),
}

impl TopicError {
    /// Kafka's code for it.
    pub(super) fn code(&self) -> ErrorCode {
        match self {
            Self::InvalidName { .. } | Self::CollidingName { .. } => ErrorCode::InvalidTopicException,
            Self::Exists(_) => ErrorCode::TopicAlreadyExists,
            Self::Unknown(_) => ErrorCode::UnknownTopicOrPartition,
            Self::InvalidPartitions(_) | Self::Shrink(_) => ErrorCode::InvalidPartitions,
            Self::InvalidReplicationFactor(_) => ErrorCode::InvalidReplicationFactor,
            Self::InvalidAssignment(_) => ErrorCode::InvalidReplicaAssignment,
            Self::InvalidConfig(_) => ErrorCode::InvalidConfig,
            Self::InvalidRequest(_) => ErrorCode::InvalidRequest,
        }
    }
}

/// How the replicas of a new topic are found.
pub(super) enum Layout {
    /// Number of partitions and replicas; the controller places them.
    Placed { partitions: i32, replication_factor: i16 },
    /// Brokers of each partition, said by the client.
    Assigned(Vec<Vec<BrokerId>>),
}

/// Rule M2: the names that Kafka takes.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("it is empty")
    } else if name == "." || name == ".." {
        Err("it is \".\" or \"..\"")
    } else if name.len() > MAX_NAME_LENGTH {
        Err("it has more than 249 characters")
    } else if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
        Err("only letters, digits, '.', '_' and '-' are allowed")
    } else {
        Ok(())
    }
}

/// Drafts a topic with all its partitions and configuration.
pub(super) fn create_topic(
    draft: &mut Draft,
    name: &str,
    layout: &Layout,
    config: &BTreeMap<String, String>,
    settings: &dyn Settings,
    new_uuid: &mut dyn FnMut() -> Uuid,
) -> Result<Uuid, TopicError> {
    check_name(name).map_err(|reason| TopicError::InvalidName { name: name.to_owned(), reason })?;
    if draft.image().topic_ids.contains_key(name) {
        return Err(TopicError::Exists(name.to_owned()));
    }
    if let Some(other) = colliding_topic(draft.image(), name) {
        return Err(TopicError::CollidingName { name: name.to_owned(), other });
    }
    for (key, value) in config {
        settings.check_topic_config(key, value).map_err(TopicError::InvalidConfig)?;
    }
    settings.check_topic_configs(config).map_err(TopicError::InvalidConfig)?;
    let replicas = assign(draft.image(), &[], layout)?;
    let topic_id = new_topic_id(draft.image(), new_uuid);
    draft.push(Record::Topic { topic_id, name: name.to_owned() });
    for (key, value) in config {
        draft.push(Record::Config {
            target: ConfigTarget::Topic(topic_id),
            key: key.clone(),
            value: Some(value.clone()),
        });
    }
    add_partitions(draft, topic_id, &replicas);
    Ok(topic_id)
}

fn new_topic_id(image: &MetadataImage, new_uuid: &mut dyn FnMut() -> Uuid) -> Uuid {
    loop {
        let topic_id = new_uuid();
        // Nil means "no id" on the wire, and a leading '-' in the printed form trips up command lines.
        if !topic_id.is_nil() && !image.topics.contains_key(&topic_id) && topic_id.as_bytes()[0] >> 2 != 62 {
            return topic_id;
        }
    }
}

fn colliding_topic(image: &MetadataImage, name: &str) -> Option<String> {
    if !name.contains(['.', '_']) {
        return None;
    }
    let folded = name.replace('.', "_");
    image.topic_ids.keys().find(|other| other.replace('.', "_") == folded).cloned()
}

/// Kafka's CreateTopics: each topic stands for itself, a name that comes twice fails.
pub(super) fn create(
    draft: &mut Draft,
    request: &CreateTopicsRequest,
    settings: &dyn Settings,
    new_uuid: &mut dyn FnMut() -> Uuid,
) -> CreateTopicsResponse {
    let mut seen = BTreeSet::new();
    let repeated: BTreeSet<&str> =
        request.topics.iter().map(|topic| &*topic.name).filter(|name| !seen.insert(*name)).collect();
    let mut response = CreateTopicsResponse::default();
    let mut answered = BTreeSet::new();
    for topic in &request.topics {
        if !answered.insert(&*topic.name) {
            continue;
        }
        let result = if repeated.contains(&*topic.name) {
            Err(TopicError::InvalidRequest(format!("topic {:?} stands in the request twice", &*topic.name)))
        } else {
            draft.attempt(!request.validate_only, |draft| create_one(draft, topic, settings, new_uuid))
        };
        response.topics.push(match result {
            Ok(created) => created,
            Err(error) => CreatableTopicResult {
                name: topic.name.clone(),
                error_code: error.code().code(),
                error_message: Some(error.to_string().into()),
                ..Default::default()
            },
        });
    }
    response
}

fn create_one(
    draft: &mut Draft,
    topic: &CreatableTopic,
    settings: &dyn Settings,
    new_uuid: &mut dyn FnMut() -> Uuid,
) -> Result<CreatableTopicResult, TopicError> {
    let layout = requested_layout(draft.image(), topic, settings)?;
    let mut config = BTreeMap::new();
    for entry in &topic.configs {
        let value = entry
            .value
            .as_ref()
            .ok_or_else(|| TopicError::InvalidConfig(format!("{} has no value", &*entry.name)))?;
        config.insert(entry.name.to_string(), value.to_string());
    }
    let topic_id = create_topic(draft, &topic.name, &layout, &config, settings, new_uuid)?;
    let partitions = draft.image().topics.get(&topic_id).map_or(&[][..], |topic| &topic.partitions);
    Ok(CreatableTopicResult {
        name: topic.name.clone(),
        topic_id,
        num_partitions: i32::try_from(partitions.len()).unwrap_or(i32::MAX),
        replication_factor: partitions
            .first()
            .map_or(-1, |partition| i16::try_from(partition.replicas.len()).unwrap_or(i16::MAX)),
        ..Default::default()
    })
}

fn requested_layout(
    image: &MetadataImage,
    topic: &CreatableTopic,
    settings: &dyn Settings,
) -> Result<Layout, TopicError> {
    if topic.assignments.is_empty() {
        let or_default = |asked: i32, default: i32| if asked == -1 { default } else { asked };
        let partitions = or_default(topic.num_partitions, settings.default_partitions(image));
        let default_factor = settings.default_replication_factor(image);
        let replication_factor =
            if topic.replication_factor == -1 { default_factor } else { topic.replication_factor };
        return Ok(Layout::Placed { partitions, replication_factor });
    }
    if topic.num_partitions != -1 || topic.replication_factor != -1 {
        return Err(TopicError::InvalidRequest(
            "a manual assignment says the number of partitions and replicas itself: send -1 for both"
                .to_owned(),
        ));
    }
    let mut by_partition = BTreeMap::new();
    for assignment in &topic.assignments {
        if by_partition.insert(assignment.partition_index, assignment.broker_ids.clone()).is_some() {
            return Err(TopicError::InvalidAssignment(format!(
                "partition {} is assigned twice",
                assignment.partition_index
            )));
        }
    }
    if !by_partition.keys().copied().eq(0..i32::try_from(topic.assignments.len()).unwrap_or(i32::MAX)) {
        return Err(TopicError::InvalidAssignment(
            "partitions must be numbered from 0 without a gap".to_owned(),
        ));
    }
    Ok(Layout::Assigned(by_partition.into_values().collect()))
}

/// Kafka's DeleteTopics, by name or by id.
pub(super) fn delete(
    draft: &mut Draft,
    request: &DeleteTopicsRequest,
    settings: &dyn Settings,
) -> DeleteTopicsResponse {
    let by_name = request.topic_names.iter().map(|name| DeleteTopicState {
        name: Some(name.clone()),
        topic_id: Uuid::nil(),
        ..Default::default()
    });
    let responses = request
        .topics
        .iter()
        .cloned()
        .chain(by_name)
        .map(|topic| delete_one(draft, &topic, settings))
        .collect();
    DeleteTopicsResponse { responses, ..Default::default() }
}

fn delete_one(draft: &mut Draft, topic: &DeleteTopicState, settings: &dyn Settings) -> DeletableTopicResult {
    let result = |name, topic_id, code: ErrorCode, message: Option<&str>| DeletableTopicResult {
        name,
        topic_id,
        error_code: code.code(),
        error_message: message.map(Into::into),
        ..Default::default()
    };
    let found = match &topic.name {
        Some(_) if !topic.topic_id.is_nil() => {
            let message = "name either the topic or its id, not both";
            return result(topic.name.clone(), topic.topic_id, ErrorCode::InvalidRequest, Some(message));
        }
        Some(name) => draft.image().topic_by_name(name).cloned(),
        None => draft.image().topics.get(&topic.topic_id).cloned(),
    };
    match found {
        None if topic.name.is_some() => {
            result(topic.name.clone(), Uuid::nil(), ErrorCode::UnknownTopicOrPartition, Some("no such topic"))
        }
        None => result(None, topic.topic_id, ErrorCode::UnknownTopicId, Some("no topic has this id")),
        Some(found) => {
            let name = Some(found.name.as_str().into());
            if !settings.topic_deletion_enabled() {
                let message = "delete.topic.enable=false";
                return result(name, found.topic_id, ErrorCode::TopicDeletionDisabled, Some(message));
            }
            draft.push(Record::RemoveTopic { topic_id: found.topic_id });
            result(name, found.topic_id, ErrorCode::None, None)
        }
    }
}
