//! Which partitions get a new state when something about a broker or about the configuration has changed, and leaders
//! elected on request. What the new state is, `partition_state` says.

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::elect_leaders_request::TopicPartitions;
use millrace_protocol::messages::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use millrace_protocol::messages::{ElectLeadersRequest, ElectLeadersResponse};
use uuid::Uuid;

use super::Settings;
use super::draft::Draft;
use super::partition_state::{Election, Situation, next_state};
use crate::metadata::image::{BrokerId, MetadataImage, NO_LEADER, PartitionImage, TopicIdPartition};
use crate::metadata::records::{ConfigTarget, Record};

/// Keys on which the state of a partition depends besides its brokers.
const KEYS: [&str; 2] = ["min.insync.replicas", "unclean.leader.election.enable"];

/// What has become of a broker's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// All are there, if its volume is.
    Intact,
    /// Those that were not synced yet may be gone.
    LostUnsynced,
}

/// Gives every partition that has a replica on `broker_id` its next state, after something about that broker changed.
pub(super) fn reelect_partitions_of(
    draft: &mut Draft,
    broker_id: BrokerId,
    memory: Memory,
    settings: &dyn Settings,
) {
    let image = draft.image();
    let mut changes = Vec::new();
    for topic in image.topics.values() {
        let mut situation = None;
        for (partition, state) in (0_i32..).zip(&topic.partitions) {
            if !state.replica_ids().any(|id| id == broker_id) {
                continue;
            }
            let situation = situation.get_or_insert_with(|| {
                let forgets =
                    memory == Memory::LostUnsynced && settings.acknowledges_unsynced(image, topic.topic_id);
                let forgetful = forgets.then_some(broker_id);
                Situation { forgetful, ..Situation::usual(image, settings, topic.topic_id) }
            });
            if let Some(state) = next_state(situation, state, &state.isr) {
                let partition = TopicIdPartition { topic_id: topic.topic_id, partition };
                changes.push(Record::Partition { partition, state });
            }
        }
    }
    push_all(draft, changes);
}

/// Gives partitions their next state where the drafted records change a setting that it depends on: eligible replicas
/// of partitions that now have enough in-sync ones must not outlive the old minimum by a single log entry.
pub(super) fn follow_settings(draft: &mut Draft, settings: &dyn Settings) {
    let relevant = draft.records().iter().filter_map(|record| match record {
        Record::Config { target, key, .. } if KEYS.contains(&key.as_str()) => Some(target.clone()),
        _ => None,
    });
    let targets: Vec<ConfigTarget> = relevant.collect();
    if targets.is_empty() {
        return;
    }
    let concerns = |topic_id: Uuid| {
        targets.iter().any(|target| match target {
            ConfigTarget::Topic(target) => *target == topic_id,
            ConfigTarget::Broker(_) => true,
        })
    };
    let image = draft.image();
    let mut changes = Vec::new();
    for topic in image.topics.values().filter(|topic| concerns(topic.topic_id)) {
        let situation = Situation::usual(image, settings, topic.topic_id);
        for (partition, state) in (0_i32..).zip(&topic.partitions) {
            if state.elr.is_empty() && state.leader != NO_LEADER {
                continue;
            }
            if let Some(state) = next_state(&situation, state, &state.isr) {
                let partition = TopicIdPartition { topic_id: topic.topic_id, partition };
                changes.push(Record::Partition { partition, state });
            }
        }
    }
    push_all(draft, changes);
}

fn push_all(draft: &mut Draft, records: Vec<Record>) {
    for record in records {
        draft.push(record);
    }
}

/// Kafka's ElectLeaders. Without a list of partitions, all of them, and only those are answered that needed an election.
pub(super) fn elect_leaders(
    draft: &mut Draft,
    request: &ElectLeadersRequest,
    settings: &dyn Settings,
) -> ElectLeadersResponse {
    let election = match request.election_type {
        0 => Election::Preferred,
        1 => Election::Unclean,
        other => return invalid_type(request, other),
    };
    let mut results = Vec::new();
    match &request.topic_partitions {
        Some(topics) => {
            for topic in topics {
                let elect = |number: &i32| {
                    result(*number, elect_one(draft, &topic.topic, *number, election, settings))
                };
                let partition_result = topic.partitions.iter().map(elect).collect();
                results.push(election_result(topic.topic.as_str(), partition_result));
            }
        }
        None => {
            let topics: Vec<(String, usize)> = draft
                .image()
                .topics
                .values()
                .map(|topic| (topic.name.clone(), topic.partitions.len()))
                .collect();
            for (name, count) in topics {
                let numbers = 0..i32::try_from(count).unwrap_or(i32::MAX);
                let elected = numbers.map(|n| (n, elect_one(draft, &name, n, election, settings)));
                let needed = elected.filter(|(_, error)| *error != ErrorCode::ElectionNotNeeded);
                let partition_result: Vec<_> = needed.map(|(n, error)| result(n, error)).collect();
                if !partition_result.is_empty() {
                    results.push(election_result(&name, partition_result));
                }
            }
        }
    }
    ElectLeadersResponse { replica_election_results: results, ..Default::default() }
}

fn elect_one(
    draft: &mut Draft,
    topic: &str,
    number: i32,
    election: Election,
    settings: &dyn Settings,
) -> ErrorCode {
    let image = draft.image();
    let Some(topic_id) = image.topic_ids.get(topic).copied() else {
        return ErrorCode::UnknownTopicOrPartition;
    };
    let partition = TopicIdPartition { topic_id, partition: number };
    let Some(state) = image.partition(partition) else { return ErrorCode::UnknownTopicOrPartition };
    let (needed, refusal) = match election {
        Election::Unclean => (state.leader == NO_LEADER, ErrorCode::EligibleLeadersNotAvailable),
        Election::Usual | Election::Preferred => {
            (!has_preferred_leader(state), ErrorCode::PreferredLeaderNotAvailable)
        }
    };
    if !needed {
        return ErrorCode::ElectionNotNeeded;
    }
    let situation = Situation { election, ..Situation::usual(image, settings, topic_id) };
    let elected = next_state(&situation, state, &state.isr).filter(|next| next.leader != NO_LEADER);
    match elected {
        Some(next) if election == Election::Unclean || has_preferred_leader(&next) => {
            draft.push(Record::Partition { partition, state: next });
            ErrorCode::None
        }
        _ => refusal,
    }
}

/// Has the first assigned replica of a partition lead, if it is in sync.
pub(super) fn elect_preferred(
    draft: &mut Draft,
    topic: &str,
    number: i32,
    settings: &dyn Settings,
) -> ErrorCode {
    elect_one(draft, topic, number, Election::Preferred, settings)
}

fn has_preferred_leader(state: &PartitionImage) -> bool {
    state.replica_ids().next() == Some(state.leader)
}

/// Partitions whose preferred leader is in sync and could lead, but does not; `limit` at most.
///
/// As a request, ready to be decided; `None` if there are none.
pub(in crate::metadata) fn preferred_leaders_to_elect(
    image: &MetadataImage,
    limit: usize,
) -> Option<ElectLeadersRequest> {
    let mut left = limit;
    let mut topics = Vec::new();
    for topic in image.topics.values() {
        let waits = |state: &PartitionImage| {
            let preferred = state.replicas.first().filter(|replica| state.isr.contains(&replica.broker_id));
            let may_lead = preferred.and_then(|replica| {
                let broker = image.brokers.get(&replica.broker_id)?;
                Some(broker.may_lead() && broker.volume_uuid == replica.volume_uuid)
            });
            may_lead == Some(true) && !has_preferred_leader(state)
        };
        let waiting = (0_i32..).zip(&topic.partitions).filter(|(_, state)| waits(state));
        let partitions: Vec<i32> = waiting.map(|(number, _)| number).take(left).collect();
        left -= partitions.len();
        if !partitions.is_empty() {
            topics.push(TopicPartitions {
                topic: topic.name.as_str().into(),
                partitions,
                ..Default::default()
            });
        }
    }
    let request =
        ElectLeadersRequest { election_type: 0, topic_partitions: Some(topics), ..Default::default() };
    (left < limit).then_some(request)
}

fn election_result(topic: &str, partition_result: Vec<PartitionResult>) -> ReplicaElectionResult {
    ReplicaElectionResult { topic: topic.into(), partition_result, ..Default::default() }
}

fn result(partition_id: i32, error: ErrorCode) -> PartitionResult {
    let message = match error {
        ErrorCode::None => None,
        ErrorCode::ElectionNotNeeded => Some("Leader election not needed for topic partition."),
        ErrorCode::PreferredLeaderNotAvailable => Some("The preferred leader was not available."),
        ErrorCode::EligibleLeadersNotAvailable => Some("Eligible topic partition leaders are not available."),
        _ => Some("This server does not host this topic-partition."),
    };
    PartitionResult {
        partition_id,
        error_code: error.code(),
        error_message: message.map(Into::into),
        ..Default::default()
    }
}

fn invalid_type(request: &ElectLeadersRequest, election_type: i8) -> ElectLeadersResponse {
    let error = ErrorCode::InvalidRequest;
    let message = format!("Unknown election type {election_type}");
    let results = request.topic_partitions.iter().flatten().map(|topic| {
        let of_partition = |partition_id: &i32| PartitionResult {
            partition_id: *partition_id,
            error_code: error.code(),
            error_message: Some(message.as_str().into()),
            ..Default::default()
        };
        election_result(topic.topic.as_str(), topic.partitions.iter().map(of_partition).collect())
    });
    ElectLeadersResponse {
        error_code: error.code(),
        replica_election_results: results.collect(),
        ..Default::default()
    }
}

#[cfg(test)]
#[path = "elections_test.rs"]
mod tests;
