//! Kafka's protocol from the client's side: one connection, requests in order.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use millrace_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use millrace_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use millrace_protocol::messages::delete_topics_request::DeleteTopicState;
use millrace_protocol::messages::metadata_request::MetadataRequestTopic;
use millrace_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use millrace_protocol::messages::{
    AlterPartitionReassignmentsRequest, CreateTopicsRequest, DeleteTopicsRequest, InitProducerIdRequest,
    MetadataRequest, MetadataResponse, ProduceRequest,
};
use millrace_protocol::{ErrorCode, Request, frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

const CLIENT_ID: &str = "millrace-chaos";

/// Largest answer that is believed.
const MAX_FRAME_LEN: usize = 64 << 20;

/// Time for connecting to a broker that is there: a few losses of a packet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

const METADATA_VERSION: i16 = 12;
const CREATE_TOPICS_VERSION: i16 = 7;
const DELETE_TOPICS_VERSION: i16 = 6;
const ALTER_PARTITION_REASSIGNMENTS_VERSION: i16 = 1;
const INIT_PRODUCER_ID_VERSION: i16 = 4;
const PRODUCE_VERSION: i16 = 9;

/// One connection to a broker.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    received: BytesMut,
    next_correlation_id: i32,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there, or nobody answers in time.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
            .await
            .with_context(|| format!("connecting to {address}"))?
            .with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: BytesMut::new(), next_correlation_id: 0 })
    }

    /// Sends a request; the answers come in the order of the requests.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn send<R: Request>(&mut self, version: i16, request: &R) -> Result<()> {
        let mut bytes = BytesMut::new();
        frame::encode_request(&mut bytes, version, self.next_correlation_id, Some(CLIENT_ID), request)?;
        self.next_correlation_id = self.next_correlation_id.wrapping_add(1);
        self.stream.write_all(&bytes).await.with_context(|| format!("sending {}", R::NAME))
    }

    /// The next answer, undecoded. Cancel-safe.
    ///
    /// # Errors
    /// The connection is broken, or what comes is no answer.
    pub async fn receive(&mut self) -> Result<Bytes> {
        loop {
            if let Some(answer) = frame::split(&mut self.received, MAX_FRAME_LEN)? {
                return Ok(answer);
            }
            ensure!(self.stream.read_buf(&mut self.received).await? > 0, "the broker closed the connection");
        }
    }

    /// Sends a request and waits for its answer. After an error, also of time, the connection is of no use.
    ///
    /// # Errors
    /// The connection breaks, or the answer does not come in time.
    pub async fn call<R: Request>(
        &mut self,
        version: i16,
        request: &R,
        within: Duration,
    ) -> Result<R::Response> {
        let exchange = async {
            self.send(version, request).await?;
            let answer = self.receive().await?;
            Ok(frame::decode_response::<R>(answer, version)?.1)
        };
        timeout(within, exchange)
            .await
            .with_context(|| format!("{}: no answer within {within:?}", R::NAME))?
    }

    /// What this broker says about topics, or about all of them.
    ///
    /// # Errors
    /// See [`call`](Self::call).
    pub async fn metadata(
        &mut self,
        topics: Option<&[String]>,
        within: Duration,
    ) -> Result<MetadataResponse> {
        let topics = topics.map(|names| {
            let topic =
                |name: &String| MetadataRequestTopic { name: Some(name.into()), ..Default::default() };
            names.iter().map(topic).collect()
        });
        // A broker that is cut off would ask for a topic that it does not know until it is heard, and bring a deleted one back.
        let request = MetadataRequest { topics, allow_auto_topic_creation: false, ..Default::default() };
        self.call(METADATA_VERSION, &request, within).await
    }

    /// A new producer id and its epoch.
    ///
    /// # Errors
    /// See [`call`](Self::call); the broker refuses.
    pub async fn init_producer_id(&mut self, within: Duration) -> Result<(i64, i16)> {
        let request = InitProducerIdRequest {
            transactional_id: None,
            transaction_timeout_ms: 60_000,
            producer_id: -1,
            producer_epoch: -1,
            ..Default::default()
        };
        let answer = self.call(INIT_PRODUCER_ID_VERSION, &request, within).await?;
        check(answer.error_code)?;
        Ok((answer.producer_id, answer.producer_epoch))
    }

    /// Gives a partition other replicas, or cancels that (`None`).
    ///
    /// # Errors
    /// See [`call`](Self::call); the broker refuses the whole request.
    pub async fn reassign(
        &mut self,
        topic: &str,
        partition_index: i32,
        replicas: Option<Vec<i32>>,
        within: Duration,
    ) -> Result<ErrorCode> {
        let partition = ReassignablePartition { partition_index, replicas, ..Default::default() };
        let topic =
            ReassignableTopic { name: topic.into(), partitions: vec![partition], ..Default::default() };
        let request = AlterPartitionReassignmentsRequest {
            topics: vec![topic],
            timeout_ms: i32::try_from(within.as_millis()).unwrap_or(i32::MAX),
            ..Default::default()
        };
        let answer = self.call(ALTER_PARTITION_REASSIGNMENTS_VERSION, &request, within).await?;
        check(answer.error_code)?;
        let result = answer.responses.first().and_then(|topic| topic.partitions.first());
        error_code(result.context("the answer names no partition")?.error_code)
    }

    /// Stores a batch on all in-sync replicas (`acks=all`), and returns its base offset.
    ///
    /// # Errors
    /// See [`call`](Self::call); the broker refuses, or does not know whether it is stored.
    pub async fn produce(&mut self, topic: &str, index: i32, batch: Bytes, within: Duration) -> Result<i64> {
        let partition = PartitionProduceData { index, records: Some(batch.into()), ..Default::default() };
        let request = ProduceRequest {
            acks: -1,
            timeout_ms: i32::try_from(within.as_millis())?,
            topic_data: vec![TopicProduceData {
                name: topic.into(),
                partition_data: vec![partition],
                ..Default::default()
            }],
            ..Default::default()
        };
        let answer = self.call(PRODUCE_VERSION, &request, within).await?;
        let partition = answer.responses.first().and_then(|topic| topic.partition_responses.first());
        let partition = partition.context("the answer has no partition")?;
        check(partition.error_code)?;
        Ok(partition.base_offset)
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// See [`call`](Self::call); the broker refuses.
    pub async fn create_topic(&mut self, topic: &Topic, within: Duration) -> Result<ErrorCode> {
        let configs = topic.config.iter().map(|(name, value)| CreatableTopicConfig {
            name: name.into(),
            value: Some(value.into()),
            ..Default::default()
        });
        let request = CreateTopicsRequest {
            topics: vec![CreatableTopic {
                name: topic.name.as_str().into(),
                num_partitions: topic.partitions,
                replication_factor: topic.replication_factor,
                configs: configs.collect(),
                ..Default::default()
            }],
            timeout_ms: i32::try_from(within.as_millis())?,
            ..Default::default()
        };
        let answer = self.call(CREATE_TOPICS_VERSION, &request, within).await?;
        let result = answer.topics.first().context("the answer has no topic")?;
        error_code(result.error_code)
    }

    /// Deletes a topic.
    ///
    /// # Errors
    /// See [`call`](Self::call).
    pub async fn delete_topic(&mut self, name: &str, within: Duration) -> Result<ErrorCode> {
        let request = DeleteTopicsRequest {
            topics: vec![DeleteTopicState { name: Some(name.into()), ..Default::default() }],
            timeout_ms: i32::try_from(within.as_millis())?,
            ..Default::default()
        };
        let answer = self.call(DELETE_TOPICS_VERSION, &request, within).await?;
        let result = answer.responses.first().context("the answer has no topic")?;
        error_code(result.error_code)
    }
}

/// A topic to create.
#[derive(Clone, Debug)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its partitions.
    pub partitions: i32,
    /// Replicas of each.
    pub replication_factor: i16,
    /// Its settings.
    pub config: Vec<(String, String)>,
}

/// The error of that number.
///
/// # Errors
/// Kafka has not given out the number.
pub fn error_code(code: i16) -> Result<ErrorCode> {
    ErrorCode::from_code(code).with_context(|| format!("the broker answers the unknown error {code}"))
}

/// Kafka's name of an error code, as an error.
///
/// # Errors
/// The code is one of an error.
pub fn check(code: i16) -> Result<()> {
    match error_code(code)? {
        ErrorCode::None => Ok(()),
        error => bail!("the broker answers {}", error.name()),
    }
}
