//! Partitions of new and growing topics.

use std::collections::{BTreeMap, BTreeSet};

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use millrace_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use millrace_protocol::messages::{CreatePartitionsRequest, CreatePartitionsResponse};
use uuid::Uuid;

use super::draft::Draft;
use super::placement;
use super::topics::{Layout, MAX_PARTITIONS, TopicError};
use crate::metadata::image::{
    BrokerId, BrokerImage, MetadataImage, NO_LEADER, PartitionImage, Replica, TopicIdPartition, TopicImage,
};
use crate::metadata::records::Record;

/// Brokers of each new partition; `existing` are those of the partitions that the topic has.
pub(super) fn assign(
    image: &MetadataImage,
    existing: &[Vec<BrokerId>],
    layout: &Layout,
) -> Result<Vec<Vec<BrokerId>>, TopicError> {
    match layout {
        Layout::Placed { partitions, replication_factor } => {
            let count =
                usize::try_from(*partitions).ok().filter(|count| *count > 0 && *partitions <= MAX_PARTITIONS);
            let count = count.ok_or_else(|| {
                TopicError::InvalidPartitions(format!(
                    "the number of partitions is 1 to {MAX_PARTITIONS}, not {partitions}"
                ))
            })?;
            if *replication_factor <= 0 {
                let message = format!("the replication factor is 1 or more, not {replication_factor}");
                return Err(TopicError::InvalidReplicationFactor(message));
            }
            placement::place(image, existing, count, *replication_factor).map_err(|error| {
                TopicError::InvalidReplicationFactor(format!(
                    "replication factor {} is larger than the number of brokers in service, {}",
                    error.wanted, error.available
                ))
            })
        }
        Layout::Assigned(replicas) => {
            check_assignment(image, existing, replicas)?;
            Ok(replicas.clone())
        }
    }
}

fn check_assignment(
    image: &MetadataImage,
    existing: &[Vec<BrokerId>],
    replicas: &[Vec<BrokerId>],
) -> Result<(), TopicError> {
    let factor = existing.first().or(replicas.first()).map_or(0, Vec::len);
    for (number, ids) in replicas.iter().enumerate() {
        let wrong = |what: String| Err(TopicError::InvalidAssignment(format!("assignment {number}: {what}")));
        if ids.is_empty() {
            return wrong("no broker is named".to_owned());
        }
        if ids.len() != factor {
            return wrong(format!("{} replicas where the other partitions have {factor}", ids.len()));
        }
        if ids.iter().collect::<BTreeSet<_>>().len() != ids.len() {
            return wrong("a broker is named twice".to_owned());
        }
        if let Some(unknown) = ids.iter().find(|id| !image.brokers.contains_key(id)) {
            return wrong(format!("there is no broker {unknown}"));
        }
    }
    Ok(())
}

/// Drafts partitions after the ones that the topic has. Nobody has anything yet, so every replica that can is in sync.
pub(super) fn add_partitions(draft: &mut Draft, topic_id: Uuid, replicas: &[Vec<BrokerId>]) {
    let first = draft.image().topics.get(&topic_id).map_or(0, |topic| topic.partitions.len());
    for (number, ids) in (first..).zip(replicas) {
        let partition = TopicIdPartition {
            topic_id,
            partition: i32::try_from(number).expect("partitions are few thousands"),
        };
        let state = new_partition(draft.image(), ids);
        draft.push(Record::Partition { partition, state });
    }
}

fn new_partition(image: &MetadataImage, ids: &[BrokerId]) -> PartitionImage {
    let registered = |id: &BrokerId| image.brokers.get(id).map(AsRef::as_ref);
    let replicas = ids
        .iter()
        .map(|id| Replica {
            broker_id: *id,
            volume_uuid: registered(id).map_or(Uuid::nil(), |broker: &BrokerImage| broker.volume_uuid),
        })
        .collect();
    let mut isr: Vec<BrokerId> =
        ids.iter().copied().filter(|id| registered(id).is_some_and(BrokerImage::may_lead)).collect();
    let leader = isr.first().copied();
    if isr.is_empty() {
        // Somebody must be in sync for ever after; without a live replica it is the preferred one, once it is back.
        isr.extend(ids.first());
    }
    PartitionImage {
        replicas,
        isr,
        elr: Vec::new(),
        adding: Vec::new(),
        removing: Vec::new(),
        leader: leader.unwrap_or(NO_LEADER),
        leader_epoch: 0,
        partition_epoch: 0,
    }
}

/// Replicas of the partitions that a topic has, those under reassignment as they will be.
pub(super) fn existing_replicas(topic: &TopicImage) -> Vec<Vec<BrokerId>> {
    topic.partitions.iter().map(|partition| partition.target_ids().collect()).collect()
}

/// Drafts as many placed partitions as it takes for the topic to have `count`, which must not be fewer than it has.
pub(super) fn grow(draft: &mut Draft, topic: &TopicImage, count: i32) -> Result<(), TopicError> {
    let existing = existing_replicas(topic);
    let current = i32::try_from(existing.len()).unwrap_or(i32::MAX);
    match count.checked_sub(current) {
        Some(0) => Ok(()),
        Some(added) if added > 0 => {
            let factor = existing.iter().map(Vec::len).max().and_then(|factor| i16::try_from(factor).ok());
            let layout = Layout::Placed { partitions: added, replication_factor: factor.unwrap_or(1) };
            let replicas = assign(draft.image(), &existing, &layout)?;
            add_partitions(draft, topic.topic_id, &replicas);
            Ok(())
        }
        _ => Err(TopicError::Shrink(format!(
            "topic {:?} has {current} partitions, and partitions are never taken away; asked for {count}",
            topic.name
        ))),
    }
}

/// Kafka's CreatePartitions.
pub(super) fn create(draft: &mut Draft, request: &CreatePartitionsRequest) -> CreatePartitionsResponse {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for topic in &request.topics {
        *counts.entry(&*topic.name).or_default() += 1;
    }
    let mut answered = BTreeSet::new();
    let mut response = CreatePartitionsResponse::default();
    for topic in request.topics.iter().filter(|topic| answered.insert(topic.name.to_string())) {
        let result = if counts.get(&*topic.name).is_some_and(|count| *count > 1) {
            Err(TopicError::InvalidRequest(format!("topic {:?} stands in the request twice", &*topic.name)))
        } else {
            draft.attempt(!request.validate_only, |draft| create_for_one(draft, topic))
        };
        let (error_code, error_message) = match result {
            Ok(()) => (ErrorCode::None, None),
            Err(error) => (error.code(), Some(error.to_string().into())),
        };
        response.results.push(CreatePartitionsTopicResult {
            name: topic.name.clone(),
            error_code: error_code.code(),
            error_message,
            ..Default::default()
        });
    }
    response
}

fn create_for_one(draft: &mut Draft, request: &CreatePartitionsTopic) -> Result<(), TopicError> {
    let topic = draft
        .image()
        .topic_by_name(&request.name)
        .cloned()
        .ok_or_else(|| TopicError::Unknown(request.name.to_string()))?;
    let current = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
    if request.count == current {
        let message = format!("topic {:?} has {current} partitions already", topic.name);
        return Err(TopicError::InvalidPartitions(message));
    }
    let Some(assignments) = &request.assignments else { return grow(draft, &topic, request.count) };
    if request.count < current {
        return grow(draft, &topic, request.count);
    }
    let added: Vec<Vec<BrokerId>> =
        assignments.iter().map(|assignment| assignment.broker_ids.clone()).collect();
    if i32::try_from(added.len()).ok() != request.count.checked_sub(current) {
        return Err(TopicError::InvalidAssignment(format!(
            "{} partitions are added, but {} are assigned",
            request.count - current,
            added.len()
        )));
    }
    let replicas = assign(draft.image(), &existing_replicas(&topic), &Layout::Assigned(added))?;
    add_partitions(draft, topic.topic_id, &replicas);
    Ok(())
}
