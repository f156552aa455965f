//! A Kafka client in the simulation: connections to brokers, requests in order.

use std::time::Duration;

use bytes::BytesMut;
use millrace_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use millrace_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use millrace_protocol::messages::delete_topics_request::DeleteTopicState;
use millrace_protocol::messages::metadata_request::MetadataRequestTopic;
use millrace_protocol::messages::{
    AlterPartitionReassignmentsRequest, CreateTopicsRequest, DeleteTopicsRequest, InitProducerIdRequest,
    MetadataRequest,
};
use millrace_protocol::{ErrorCode, Request, frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::machine::{CLIENT_PORT, host};

/// Time for one request; as short as a client can reasonably set it.
pub(super) const TIMEOUT: Duration = Duration::from_secs(4);

const MAX_ANSWER: usize = 8 << 20;

/// Why there is no answer, for the trace.
pub(super) type Failed = String;

/// One connection.
pub(super) struct Connection {
    stream: turmoil::net::TcpStream,
    received: BytesMut,
    next_correlation_id: i32,
}

impl Connection {
    pub(super) async fn open(broker: usize) -> Result<Self, Failed> {
        let connect = turmoil::net::TcpStream::connect((host(broker), CLIENT_PORT));
        match timeout(TIMEOUT, connect).await {
            Ok(Ok(stream)) => Ok(Self { stream, received: BytesMut::new(), next_correlation_id: 0 }),
            Ok(Err(error)) => Err(error.kind().to_string()),
            Err(_) => Err("no connection in time".to_owned()),
        }
    }

    /// Sends a request and waits for its answer. After an error the connection is of no use.
    pub(super) async fn call<R: Request>(
        &mut self,
        version: i16,
        request: &R,
    ) -> Result<R::Response, Failed> {
        let exchange = async {
            let mut bytes = BytesMut::new();
            let id = self.next_correlation_id;
            self.next_correlation_id += 1;
            let text = |error: &dyn std::fmt::Display| error.to_string();
            frame::encode_request(&mut bytes, version, id, Some("simulated"), request)
                .map_err(|error| text(&error))?;
            self.stream.write_all(&bytes).await.map_err(|error| text(&error.kind()))?;
            loop {
                if let Some(answer) =
                    frame::split(&mut self.received, MAX_ANSWER).map_err(|error| text(&error))?
                {
                    let decoded = frame::decode_response::<R>(answer, version);
                    return decoded.map(|(_, answer)| answer).map_err(|error| text(&error));
                }
                let read = self.stream.read_buf(&mut self.received).await;
                if read.map_err(|error| text(&error.kind()))? == 0 {
                    return Err("closed".to_owned());
                }
            }
        };
        timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }

    pub(super) async fn create_topic(
        &mut self,
        name: &str,
        partitions: i32,
        replicas: i16,
        config: &[(&str, String)],
    ) -> Result<ErrorCode, Failed> {
        let config = config.iter().map(|(key, value)| CreatableTopicConfig {
            name: (*key).into(),
            value: Some(value.as_str().into()),
            ..Default::default()
        });
        let topic = CreatableTopic {
            name: name.into(),
            num_partitions: partitions,
            replication_factor: replicas,
            configs: config.collect(),
            ..Default::default()
        };
        let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 3_000, ..Default::default() };
        let answer = self.call(7, &request).await?;
        code(answer.topics.first().map_or(-1, |topic| topic.error_code))
    }

    pub(super) async fn delete_topic(&mut self, name: &str) -> Result<ErrorCode, Failed> {
        let request = DeleteTopicsRequest {
            topics: vec![DeleteTopicState { name: Some(name.into()), ..Default::default() }],
            timeout_ms: 3_000,
            ..Default::default()
        };
        let answer = self.call(6, &request).await?;
        code(answer.responses.first().map_or(-1, |topic| topic.error_code))
    }

    /// Moves a partition to these brokers, or cancels its move.
    pub(super) async fn reassign(
        &mut self,
        topic: &str,
        partition: i32,
        replicas: Option<Vec<i32>>,
    ) -> Result<ErrorCode, Failed> {
        let partition = ReassignablePartition { partition_index: partition, replicas, ..Default::default() };
        let topic =
            ReassignableTopic { name: topic.into(), partitions: vec![partition], ..Default::default() };
        let request = AlterPartitionReassignmentsRequest {
            timeout_ms: 3_000,
            topics: vec![topic],
            ..Default::default()
        };
        let answer = self.call(0, &request).await?;
        let partition = answer.responses.first().and_then(|topic| topic.partitions.first());
        code(partition.map_or(answer.error_code, |partition| partition.error_code))
    }

    pub(super) async fn init_producer_id(&mut self) -> Result<(i64, i16), Failed> {
        let request = InitProducerIdRequest {
            transactional_id: None,
            transaction_timeout_ms: 60_000,
            producer_id: -1,
            producer_epoch: -1,
            ..Default::default()
        };
        let answer = self.call(4, &request).await?;
        match code(answer.error_code)? {
            ErrorCode::None => Ok((answer.producer_id, answer.producer_epoch)),
            error => Err(error.name().to_owned()),
        }
    }

    /// The leader of a partition, as this broker knows it.
    pub(super) async fn leader(&mut self, topic: &str, partition: i32) -> Result<usize, Failed> {
        let asked = MetadataRequestTopic { name: Some(topic.into()), ..Default::default() };
        let request = MetadataRequest { topics: Some(vec![asked]), ..Default::default() };
        let answer = self.call(12, &request).await?;
        let mut partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
        let leader = partitions.find(|it| it.partition_index == partition).map(|it| it.leader_id);
        usize::try_from(leader.unwrap_or(-1)).map_err(|_| "no leader".to_owned())
    }
}

pub(super) fn code(code: i16) -> Result<ErrorCode, Failed> {
    ErrorCode::from_code(code).ok_or_else(|| format!("unknown error {code}"))
}
