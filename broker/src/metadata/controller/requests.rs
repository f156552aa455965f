//! Requests to the controller and its answers, and their form on the internal listener.
//!
//! Kafka's own admin messages travel in their newest version; requests of the management API travel as the JSON they
//! came in. The rest has messages of our own (`schema/controller.schema`).

use millrace_management::{ApiError, ApplyTopic, ApplyTopicResult};
use millrace_protocol::ErrorCode;
use millrace_protocol::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, CreatePartitionsRequest,
    CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest,
    DeleteTopicsResponse, ElectLeadersRequest, ElectLeadersResponse, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse, ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
};

use super::balance::PartitionMove;
use super::brokers::{RegisterBroker, Registered};
use crate::metadata::image::{BrokerId, BrokerMark, TopicIdPartition};

pub use codec::RequestError;

#[path = "requests_codec.rs"]
mod codec;

/// What the controller can be asked.
#[derive(Clone, Debug, PartialEq)]
pub enum ControllerRequest {
    /// Kafka's CreateTopics.
    CreateTopics(CreateTopicsRequest),
    /// Kafka's DeleteTopics.
    DeleteTopics(DeleteTopicsRequest),
    /// Kafka's CreatePartitions.
    CreatePartitions(CreatePartitionsRequest),
    /// Kafka's IncrementalAlterConfigs.
    IncrementalAlterConfigs(IncrementalAlterConfigsRequest),
    /// Kafka's ElectLeaders.
    ElectLeaders(ElectLeadersRequest),
    /// Kafka's AlterPartitionReassignments.
    AlterPartitionReassignments(AlterPartitionReassignmentsRequest),
    /// Kafka's ListPartitionReassignments: the controller knows first.
    ListPartitionReassignments(ListPartitionReassignmentsRequest),
    /// A block of producer ids that nobody else gets.
    AllocateProducerIds,
    /// A broker has started.
    RegisterBroker(RegisterBroker),
    /// Takes a registered broker out of service, or into it. Ignored when the broker has registered anew since.
    SetFenced {
        /// Which broker.
        broker_id: BrokerId,
        /// Epoch of the registration that is meant.
        broker_epoch: i64,
        /// Out of service (`true`) or into it.
        fenced: bool,
    },
    /// A broker is about to stop: leadership moves away from it.
    ControlledShutdown {
        /// Which broker.
        broker_id: BrokerId,
        /// Epoch of its registration.
        broker_epoch: i64,
    },
    /// A leader proposes in-sync replicas of partitions that it leads (Kafka's AlterPartition).
    AlterPartitions {
        /// The leader.
        broker_id: BrokerId,
        /// Epoch of its registration.
        broker_epoch: i64,
        /// One for each partition.
        changes: Vec<IsrChange>,
    },
    /// Tells where a broker runs.
    SetRack {
        /// Which broker.
        broker_id: BrokerId,
        /// Its rack.
        rack: Option<String>,
    },
    /// Says that a broker is to get no more replicas, or to lose all, or neither.
    MarkBroker {
        /// Which broker.
        broker_id: BrokerId,
        /// Its mark from now on.
        mark: Option<BrokerMark>,
    },
    /// The balancer begins to move partitions.
    MovePartitions(Vec<PartitionMove>),
    /// Replicas and leaders are to be spread evenly, or are by now, or need not be.
    SetRebalancing {
        /// Whether that is asked for from now on.
        rebalancing: bool,
        /// Whether the moves under way, those of drains left out, are taken back.
        cancel_moves: bool,
    },
    /// Bytes per second at which each leader fills the replicas of the balancer's moves; `None` is no limit.
    SetBalanceRate(Option<u64>),
    /// The balancer takes back its moves that fill these brokers, as far as they are out of service.
    TakeBackMoves(Vec<BrokerId>),
    /// Brings a topic to the state that its managing object wants.
    ApplyTopic {
        /// Topic name.
        name: String,
        /// Wanted state.
        request: ApplyTopic,
    },
    /// Deletes a topic on the word of its managing object.
    DeleteOwnedTopic {
        /// Topic name.
        name: String,
        /// Uid of the object.
        owner_uid: String,
    },
    /// Keeps a topic and forgets who manages it.
    ReleaseTopic {
        /// Topic name.
        name: String,
        /// Uid of the object.
        owner_uid: String,
    },
}

/// In-sync replicas as the leader of a partition would have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsrChange {
    /// Which partition.
    pub partition: TopicIdPartition,
    /// Epoch in which the proposer leads.
    pub leader_epoch: i32,
    /// Epoch of the state that the proposal starts from.
    pub partition_epoch: i32,
    /// All of them, the leader included, each with the epoch of its registration as the leader knows it.
    pub isr: Vec<(BrokerId, i64)>,
}

/// What the controller answers.
#[derive(Clone, Debug, PartialEq)]
pub enum ControllerResponse {
    /// To [`ControllerRequest::CreateTopics`].
    CreateTopics(CreateTopicsResponse),
    /// To [`ControllerRequest::DeleteTopics`].
    DeleteTopics(DeleteTopicsResponse),
    /// To [`ControllerRequest::CreatePartitions`].
    CreatePartitions(CreatePartitionsResponse),
    /// To [`ControllerRequest::IncrementalAlterConfigs`].
    IncrementalAlterConfigs(IncrementalAlterConfigsResponse),
    /// To [`ControllerRequest::ElectLeaders`].
    ElectLeaders(ElectLeadersResponse),
    /// To [`ControllerRequest::AlterPartitionReassignments`].
    AlterPartitionReassignments(AlterPartitionReassignmentsResponse),
    /// To [`ControllerRequest::ListPartitionReassignments`].
    ListPartitionReassignments(ListPartitionReassignmentsResponse),
    /// To [`ControllerRequest::AllocateProducerIds`].
    ProducerIds {
        /// First id of the block.
        first: i64,
        /// Number of ids.
        count: i32,
    },
    /// To [`ControllerRequest::RegisterBroker`]. The broker epoch is the log index that the answer comes with.
    Registered(Registered),
    /// Done, and nothing more to say.
    Done,
    /// To [`ControllerRequest::ControlledShutdown`]: partitions that the broker still leads, as no other replica can.
    StillLeading {
        /// Their number.
        partitions: u64,
    },
    /// To [`ControllerRequest::AlterPartitions`], in the order of the request: `None` for a change that is in effect,
    /// even if leadership has moved with it. `IneligibleReplica` says that it is not, and was not before if it was asked
    /// for before. Any other error says that the state is another one by now, and nothing about whether the change has
    /// been part of it in between: the proposer must count it as under way until it sees that state.
    PartitionsAltered(Vec<ErrorCode>),
    /// To [`ControllerRequest::ApplyTopic`].
    TopicApplied(ApplyTopicResult),
    /// The request cannot be done as the image stands; nothing was changed.
    Refused(ApiError),
}
