//! Controller requests and answers as bytes; see `schema/controller.schema`.

use bytes::Bytes;
use millrace_management::ApiError;
use millrace_protocol::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, CreatePartitionsRequest,
    CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest,
    DeleteTopicsResponse, ElectLeadersRequest, ElectLeadersResponse, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse, ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
};
use millrace_protocol::wire::{DecodeError, Decoder, EncodeError, Encoder};
use millrace_protocol::{ApiKey, ErrorCode, Message};

use super::{ControllerRequest, ControllerResponse, IsrChange};
use crate::metadata::controller::balance::PartitionMove;
use crate::metadata::controller::brokers::{RegisterBroker, Registered};
use crate::metadata::image::{Endpoint, TopicIdPartition};
use crate::metadata::records::{mark_from_wire, mark_to_wire};
use crate::schema::controller as wire;
use crate::schema::controller::ControllerMessage;
use crate::schema::controller::alter_partitions_request::InSyncReplica;

/// Bytes that are no controller request or answer of a version known here.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The frame cannot be read.
    #[error("controller message cannot be read")]
    Decode(#[from] DecodeError),
    /// A value does not fit the format.
    #[error("controller message cannot be written")]
    Encode(#[from] EncodeError),
    /// The JSON inside cannot be read.
    #[error("controller message holds JSON that cannot be read")]
    Json(#[from] serde_json::Error),
    /// A message of the other direction, or a Kafka API that the controller does not serve.
    #[error("{0} is not expected here")]
    Unexpected(String),
}

impl ControllerRequest {
    /// Bytes for the internal listener.
    ///
    /// # Errors
    /// A value is too long for the format.
    pub fn encode(&self) -> Result<Bytes, RequestError> {
        let message: ControllerMessage = match self {
            Self::CreateTopics(request) => kafka_request(ApiKey::CreateTopics, request)?,
            Self::DeleteTopics(request) => kafka_request(ApiKey::DeleteTopics, request)?,
            Self::CreatePartitions(request) => kafka_request(ApiKey::CreatePartitions, request)?,
            Self::IncrementalAlterConfigs(request) => {
                kafka_request(ApiKey::IncrementalAlterConfigs, request)?
            }
            Self::ElectLeaders(request) => kafka_request(ApiKey::ElectLeaders, request)?,
            Self::AlterPartitionReassignments(request) => {
                kafka_request(ApiKey::AlterPartitionReassignments, request)?
            }
            Self::ListPartitionReassignments(request) => {
                kafka_request(ApiKey::ListPartitionReassignments, request)?
            }
            Self::AllocateProducerIds => wire::AllocateProducerIdsRequest::default().into(),
            Self::RegisterBroker(request) => registration_to_wire(request).into(),
            Self::SetFenced { broker_id, broker_epoch, fenced } => wire::SetFencedRequest {
                broker_id: *broker_id,
                broker_epoch: *broker_epoch,
                fenced: *fenced,
                ..Default::default()
            }
            .into(),
            Self::ControlledShutdown { broker_id, broker_epoch } => wire::ControlledShutdownRequest {
                broker_id: *broker_id,
                broker_epoch: *broker_epoch,
                ..Default::default()
            }
            .into(),
            Self::AlterPartitions { broker_id, broker_epoch, changes } => wire::AlterPartitionsRequest {
                broker_id: *broker_id,
                broker_epoch: *broker_epoch,
                changes: changes.iter().map(change_to_wire).collect(),
                ..Default::default()
            }
            .into(),
            Self::SetRack { broker_id, rack } => wire::SetRackRequest {
                broker_id: *broker_id,
                rack: rack.as_ref().map(Into::into),
                ..Default::default()
            }
            .into(),
            Self::MarkBroker { broker_id, mark } => wire::MarkBrokerRequest {
                broker_id: *broker_id,
                mark: mark_to_wire(*mark),
                ..Default::default()
            }
            .into(),
            Self::MovePartitions(moves) => wire::MovePartitionsRequest {
                moves: moves.iter().map(move_to_wire).collect(),
                ..Default::default()
            }
            .into(),
            Self::SetRebalancing { rebalancing, cancel_moves } => wire::SetRebalancingRequest {
                rebalancing: *rebalancing,
                cancel_moves: *cancel_moves,
                ..Default::default()
            }
            .into(),
            Self::SetBalanceRate(rate) => wire::SetBalanceRateRequest {
                rate: rate.map_or(-1, |rate| i64::try_from(rate).unwrap_or(i64::MAX)),
                ..Default::default()
            }
            .into(),
            Self::TakeBackMoves(brokers) => {
                wire::TakeBackMovesRequest { brokers: brokers.clone(), ..Default::default() }.into()
            }
            Self::ApplyTopic { name, request } => wire::ApplyTopicRequest {
                name: name.into(),
                json: serde_json::to_vec(request)?.into(),
                ..Default::default()
            }
            .into(),
            Self::DeleteOwnedTopic { name, owner_uid } => wire::DeleteOwnedTopicRequest {
                name: name.into(),
                owner_uid: owner_uid.into(),
                ..Default::default()
            }
            .into(),
            Self::ReleaseTopic { name, owner_uid } => wire::ReleaseTopicRequest {
                name: name.into(),
                owner_uid: owner_uid.into(),
                ..Default::default()
            }
            .into(),
        };
        encode(&message)
    }

    /// Reads what [`ControllerRequest::encode`] wrote.
    ///
    /// # Errors
    /// Anything else.
    pub fn decode(bytes: Bytes) -> Result<Self, RequestError> {
        Ok(match decode(bytes)? {
            ControllerMessage::KafkaAdminRequest(request) => {
                let (version, body) = (request.api_version, request.body);
                match ApiKey::from_code(request.api_key) {
                    Some(ApiKey::CreateTopics) => {
                        Self::CreateTopics(read::<CreateTopicsRequest>(body, version)?)
                    }
                    Some(ApiKey::DeleteTopics) => {
                        Self::DeleteTopics(read::<DeleteTopicsRequest>(body, version)?)
                    }
                    Some(ApiKey::CreatePartitions) => {
                        Self::CreatePartitions(read::<CreatePartitionsRequest>(body, version)?)
                    }
                    Some(ApiKey::IncrementalAlterConfigs) => {
                        Self::IncrementalAlterConfigs(read::<IncrementalAlterConfigsRequest>(body, version)?)
                    }
                    Some(ApiKey::ElectLeaders) => {
                        Self::ElectLeaders(read::<ElectLeadersRequest>(body, version)?)
                    }
                    Some(ApiKey::AlterPartitionReassignments) => {
                        Self::AlterPartitionReassignments(read::<AlterPartitionReassignmentsRequest>(
                            body, version,
                        )?)
                    }
                    Some(ApiKey::ListPartitionReassignments) => {
                        Self::ListPartitionReassignments(read::<ListPartitionReassignmentsRequest>(
                            body, version,
                        )?)
                    }
                    _ => return Err(RequestError::Unexpected(format!("Kafka API {}", request.api_key))),
                }
            }
            ControllerMessage::AllocateProducerIdsRequest(_) => Self::AllocateProducerIds,
            ControllerMessage::RegisterBrokerRequest(request) => {
                Self::RegisterBroker(registration_from_wire(request))
            }
            ControllerMessage::SetFencedRequest(request) => Self::SetFenced {
                broker_id: request.broker_id,
                broker_epoch: request.broker_epoch,
                fenced: request.fenced,
            },
            ControllerMessage::ControlledShutdownRequest(request) => {
                Self::ControlledShutdown { broker_id: request.broker_id, broker_epoch: request.broker_epoch }
            }
            ControllerMessage::AlterPartitionsRequest(request) => Self::AlterPartitions {
                broker_id: request.broker_id,
                broker_epoch: request.broker_epoch,
                changes: request.changes.into_iter().map(change_from_wire).collect(),
            },
            ControllerMessage::SetRackRequest(request) => {
                Self::SetRack { broker_id: request.broker_id, rack: request.rack.map(Into::into) }
            }
            ControllerMessage::MarkBrokerRequest(request) => {
                Self::MarkBroker { broker_id: request.broker_id, mark: mark_from_wire(request.mark) }
            }
            ControllerMessage::MovePartitionsRequest(request) => {
                Self::MovePartitions(request.moves.into_iter().map(move_from_wire).collect())
            }
            ControllerMessage::SetRebalancingRequest(request) => {
                Self::SetRebalancing { rebalancing: request.rebalancing, cancel_moves: request.cancel_moves }
            }
            ControllerMessage::SetBalanceRateRequest(request) => {
                Self::SetBalanceRate(u64::try_from(request.rate).ok())
            }
            ControllerMessage::TakeBackMovesRequest(request) => Self::TakeBackMoves(request.brokers),
            ControllerMessage::ApplyTopicRequest(request) => Self::ApplyTopic {
                name: request.name.into(),
                request: serde_json::from_slice(&request.json)?,
            },
            ControllerMessage::DeleteOwnedTopicRequest(request) => {
                Self::DeleteOwnedTopic { name: request.name.into(), owner_uid: request.owner_uid.into() }
            }
            ControllerMessage::ReleaseTopicRequest(request) => {
                Self::ReleaseTopic { name: request.name.into(), owner_uid: request.owner_uid.into() }
            }
            response => return Err(RequestError::Unexpected(response.name().to_owned())),
        })
    }
}

impl ControllerResponse {
    /// Bytes for the internal listener.
    ///
    /// # Errors
    /// A value is too long for the format.
    pub fn encode(&self) -> Result<Bytes, RequestError> {
        let message: ControllerMessage = match self {
            Self::CreateTopics(response) => kafka_response(ApiKey::CreateTopics, response)?,
            Self::DeleteTopics(response) => kafka_response(ApiKey::DeleteTopics, response)?,
            Self::CreatePartitions(response) => kafka_response(ApiKey::CreatePartitions, response)?,
            Self::IncrementalAlterConfigs(response) => {
                kafka_response(ApiKey::IncrementalAlterConfigs, response)?
            }
            Self::ElectLeaders(response) => kafka_response(ApiKey::ElectLeaders, response)?,
            Self::AlterPartitionReassignments(response) => {
                kafka_response(ApiKey::AlterPartitionReassignments, response)?
            }
            Self::ListPartitionReassignments(response) => {
                kafka_response(ApiKey::ListPartitionReassignments, response)?
            }
            Self::ProducerIds { first, count } => {
                wire::ProducerIdsResponse { first: *first, count: *count, ..Default::default() }.into()
            }
            Self::Registered(registered) => {
                wire::RegisteredResponse { broker_id: registered.broker_id, ..Default::default() }.into()
            }
            Self::Done => wire::DoneResponse::default().into(),
            Self::StillLeading { partitions } => {
                wire::StillLeadingResponse { partitions: partitions.cast_signed(), ..Default::default() }
                    .into()
            }
            Self::PartitionsAltered(errors) => wire::PartitionsAlteredResponse {
                errors: errors.iter().map(|error| error.code()).collect(),
                ..Default::default()
            }
            .into(),
            Self::TopicApplied(result) => {
                wire::TopicAppliedResponse { json: serde_json::to_vec(result)?.into(), ..Default::default() }
                    .into()
            }
            Self::Refused(error) => wire::RefusedResponse {
                code: (&error.code).into(),
                message: (&error.message).into(),
                ..Default::default()
            }
            .into(),
        };
        encode(&message)
    }

    /// Reads what [`ControllerResponse::encode`] wrote.
    ///
    /// # Errors
    /// Anything else.
    pub fn decode(bytes: Bytes) -> Result<Self, RequestError> {
        Ok(match decode(bytes)? {
            ControllerMessage::KafkaAdminResponse(response) => {
                let (version, body) = (response.api_version, response.body);
                match ApiKey::from_code(response.api_key) {
                    Some(ApiKey::CreateTopics) => {
                        Self::CreateTopics(read::<CreateTopicsResponse>(body, version)?)
                    }
                    Some(ApiKey::DeleteTopics) => {
                        Self::DeleteTopics(read::<DeleteTopicsResponse>(body, version)?)
                    }
                    Some(ApiKey::CreatePartitions) => {
                        Self::CreatePartitions(read::<CreatePartitionsResponse>(body, version)?)
                    }
                    Some(ApiKey::IncrementalAlterConfigs) => {
                        Self::IncrementalAlterConfigs(read::<IncrementalAlterConfigsResponse>(body, version)?)
                    }
                    Some(ApiKey::ElectLeaders) => {
                        Self::ElectLeaders(read::<ElectLeadersResponse>(body, version)?)
                    }
                    Some(ApiKey::AlterPartitionReassignments) => {
                        Self::AlterPartitionReassignments(read::<AlterPartitionReassignmentsResponse>(
                            body, version,
                        )?)
                    }
                    Some(ApiKey::ListPartitionReassignments) => {
                        Self::ListPartitionReassignments(read::<ListPartitionReassignmentsResponse>(
                            body, version,
                        )?)
                    }
                    _ => return Err(RequestError::Unexpected(format!("Kafka API {}", response.api_key))),
                }
            }
            ControllerMessage::ProducerIdsResponse(response) => {
                Self::ProducerIds { first: response.first, count: response.count }
            }
            ControllerMessage::RegisteredResponse(response) => {
                Self::Registered(Registered { broker_id: response.broker_id })
            }
            ControllerMessage::DoneResponse(_) => Self::Done,
            ControllerMessage::StillLeadingResponse(response) => {
                Self::StillLeading { partitions: response.partitions.cast_unsigned() }
            }
            ControllerMessage::PartitionsAlteredResponse(response) => {
                let known = |code| ErrorCode::from_code(code).unwrap_or(ErrorCode::UnknownServerError);
                Self::PartitionsAltered(response.errors.into_iter().map(known).collect())
            }
            ControllerMessage::TopicAppliedResponse(response) => {
                Self::TopicApplied(serde_json::from_slice(&response.json)?)
            }
            ControllerMessage::RefusedResponse(response) => {
                Self::Refused(ApiError { code: response.code.into(), message: response.message.into() })
            }
            request => return Err(RequestError::Unexpected(request.name().to_owned())),
        })
    }
}

fn encode(message: &ControllerMessage) -> Result<Bytes, RequestError> {
    let mut encoder = Encoder::new();
    message.encode(&mut encoder)?;
    Ok(encoder.into_bytes())
}

fn decode(bytes: Bytes) -> Result<ControllerMessage, RequestError> {
    let mut decoder = Decoder::new(bytes);
    let message = ControllerMessage::decode(&mut decoder)?;
    decoder.finish()?;
    Ok(message)
}

fn kafka_request<M: Message>(key: ApiKey, message: &M) -> Result<ControllerMessage, RequestError> {
    let (api_key, body) = (key.code(), body_of(message)?);
    Ok(wire::KafkaAdminRequest { api_key, api_version: M::MAX_VERSION, body, ..Default::default() }.into())
}

fn kafka_response<M: Message>(key: ApiKey, message: &M) -> Result<ControllerMessage, RequestError> {
    let (api_key, body) = (key.code(), body_of(message)?);
    Ok(wire::KafkaAdminResponse { api_key, api_version: M::MAX_VERSION, body, ..Default::default() }.into())
}

fn body_of<M: Message>(message: &M) -> Result<Bytes, RequestError> {
    let mut encoder = Encoder::new();
    message.encode(&mut encoder, M::MAX_VERSION)?;
    Ok(encoder.into_bytes())
}

fn read<M: Message>(body: Bytes, version: i16) -> Result<M, RequestError> {
    let mut decoder = Decoder::new(body);
    let message = M::decode(&mut decoder, version)?;
    decoder.finish()?;
    Ok(message)
}

fn move_to_wire(wanted: &PartitionMove) -> wire::move_partitions_request::PartitionMove {
    wire::move_partitions_request::PartitionMove {
        topic_id: wanted.partition.topic_id,
        partition_id: wanted.partition.partition,
        from: wanted.from.clone(),
        to: wanted.to.clone(),
        ..Default::default()
    }
}

fn move_from_wire(wanted: wire::move_partitions_request::PartitionMove) -> PartitionMove {
    PartitionMove {
        partition: TopicIdPartition { topic_id: wanted.topic_id, partition: wanted.partition_id },
        from: wanted.from,
        to: wanted.to,
    }
}

fn registration_to_wire(request: &RegisterBroker) -> wire::RegisterBrokerRequest {
    wire::RegisterBrokerRequest {
        wanted_id: request.wanted_id.unwrap_or(-1),
        volume_uuid: request.volume_uuid,
        raft_node_id: request.raft_node_id.cast_signed(),
        address: (&request.address).into(),
        endpoints: request
            .endpoints
            .iter()
            .map(|endpoint| wire::register_broker_request::RegisteredEndpoint {
                listener: (&endpoint.listener).into(),
                host: (&endpoint.host).into(),
                port: endpoint.port,
                security_protocol: (&endpoint.security_protocol).into(),
                ..Default::default()
            })
            .collect(),
        rack: request.rack.as_ref().map(Into::into),
        binary_version: (&request.version).into(),
        min_insync_replicas: request.min_insync_replicas,
        lost_unsynced: request.lost_unsynced,
        ..Default::default()
    }
}

fn registration_from_wire(request: wire::RegisterBrokerRequest) -> RegisterBroker {
    RegisterBroker {
        wanted_id: (request.wanted_id >= 0).then_some(request.wanted_id),
        volume_uuid: request.volume_uuid,
        raft_node_id: request.raft_node_id.cast_unsigned(),
        address: request.address.into(),
        endpoints: request
            .endpoints
            .into_iter()
            .map(|endpoint| Endpoint {
                listener: endpoint.listener.into(),
                host: endpoint.host.into(),
                port: endpoint.port,
                security_protocol: endpoint.security_protocol.into(),
            })
            .collect(),
        rack: request.rack.map(Into::into),
        version: request.binary_version.into(),
        min_insync_replicas: request.min_insync_replicas,
        lost_unsynced: request.lost_unsynced,
    }
}

fn change_to_wire(change: &IsrChange) -> wire::alter_partitions_request::ProposedIsr {
    let in_sync = |(broker_id, broker_epoch): &(i32, i64)| {
        let (broker_id, broker_epoch) = (*broker_id, *broker_epoch);
        InSyncReplica { broker_id, broker_epoch, ..Default::default() }
    };
    wire::alter_partitions_request::ProposedIsr {
        topic_id: change.partition.topic_id,
        partition_id: change.partition.partition,
        leader_epoch: change.leader_epoch,
        partition_epoch: change.partition_epoch,
        isr: change.isr.iter().map(in_sync).collect(),
        ..Default::default()
    }
}

fn change_from_wire(change: wire::alter_partitions_request::ProposedIsr) -> IsrChange {
    IsrChange {
        partition: TopicIdPartition { topic_id: change.topic_id, partition: change.partition_id },
        leader_epoch: change.leader_epoch,
        partition_epoch: change.partition_epoch,
        isr: change.isr.iter().map(|replica| (replica.broker_id, replica.broker_epoch)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use millrace_management::{ApplyTopic, TopicOwner};
    use millrace_protocol::messages::create_topics_request::CreatableTopic;
    use uuid::Uuid;

    use super::*;
    use crate::metadata::image::BrokerMark;

    #[test]
    fn requests_read_back_as_they_were_written() {
        let requests = [
            ControllerRequest::CreateTopics(CreateTopicsRequest {
                topics: vec![CreatableTopic { name: "t".into(), num_partitions: 3, ..Default::default() }],
                ..Default::default()
            }),
            ControllerRequest::AllocateProducerIds,
            ControllerRequest::RegisterBroker(RegisterBroker {
                wanted_id: None,
                volume_uuid: Uuid::from_u128(5),
                raft_node_id: u64::MAX,
                address: "h:1".into(),
                endpoints: Vec::new(),
                rack: Some("r".into()),
                version: "1".into(),
                min_insync_replicas: 2,
                lost_unsynced: false,
            }),
            ControllerRequest::SetFenced { broker_id: 1, broker_epoch: 2, fenced: true },
            ControllerRequest::AlterPartitions {
                broker_id: 1,
                broker_epoch: 2,
                changes: vec![IsrChange {
                    partition: TopicIdPartition { topic_id: Uuid::from_u128(3), partition: 4 },
                    leader_epoch: 5,
                    partition_epoch: 6,
                    isr: vec![(1, 2), (7, 8)],
                }],
            },
            ControllerRequest::SetRack { broker_id: 1, rack: None },
            ControllerRequest::MarkBroker { broker_id: 1, mark: Some(BrokerMark::Draining) },
            ControllerRequest::MarkBroker { broker_id: 1, mark: None },
            ControllerRequest::MovePartitions(vec![PartitionMove {
                partition: TopicIdPartition { topic_id: Uuid::from_u128(3), partition: 4 },
                from: vec![1, 2],
                to: vec![2, 3],
            }]),
            ControllerRequest::SetRebalancing { rebalancing: true, cancel_moves: false },
            ControllerRequest::SetBalanceRate(Some(5)),
            ControllerRequest::SetBalanceRate(None),
            ControllerRequest::TakeBackMoves(vec![1, 2]),
            ControllerRequest::ApplyTopic {
                name: "t".into(),
                request: ApplyTopic {
                    owner: TopicOwner { namespace: "n".into(), name: "t".into(), uid: "u".into() },
                    partitions: Some(3),
                    replicas: None,
                    config: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
                    adopt: true,
                },
            },
            ControllerRequest::ReleaseTopic { name: "t".into(), owner_uid: "u".into() },
        ];
        for request in requests {
            let bytes = request.encode().expect("small requests fit");
            assert_eq!(ControllerRequest::decode(bytes).expect("just written"), request);
        }
    }

    #[test]
    fn an_answer_is_not_taken_for_a_request() {
        let bytes = ControllerResponse::Done.encode().expect("small answers fit");
        assert!(matches!(ControllerRequest::decode(bytes), Err(RequestError::Unexpected(_))));
    }
}
