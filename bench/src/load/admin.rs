//! Requests one at a time: topics, offsets, is the broker there.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use millrace_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use millrace_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use millrace_protocol::messages::metadata_request::MetadataRequestTopic;
use millrace_protocol::messages::{
    CreateTopicsRequest, DescribeQuorumRequest, ListOffsetsRequest, MetadataRequest, ProduceRequest,
    describe_quorum_request,
};
use millrace_protocol::{ErrorCode, Request, frame};

use super::batch::Requests;
use super::layout::Layout;
use super::{CLIENT_ID, PRODUCE_VERSION, Shape};

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Longest wait for leaders: Kafka makes files for each of thousands of partitions.
const LEADERS_TIMEOUT: Duration = Duration::from_secs(600);

/// Time between two looks at a topic that comes up.
const POLL: Duration = Duration::from_millis(5);

/// ListOffsets' word for the end of a partition.
const LATEST: i64 = -1;

const METADATA_VERSION: i16 = 9;
const CREATE_TOPICS_VERSION: i16 = 5;
const LIST_OFFSETS_VERSION: i16 = 6;
const DESCRIBE_QUORUM_VERSION: i16 = 2;

/// A topic to create.
#[derive(Debug, Clone)]
pub struct NewTopic<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its partitions, and where they are.
    pub replicas: Replicas,
    /// Its settings.
    pub config: &'a [(&'a str, &'a str)],
}

/// Where the replicas of a new topic go.
#[derive(Debug, Clone)]
pub enum Replicas {
    /// Wherever the controller puts them.
    Placed {
        /// Number of partitions.
        partitions: u32,
        /// Replicas of each.
        factor: i16,
    },
    /// By partition, the ids of the brokers; the first one leads.
    Assigned(Vec<Vec<i32>>),
}

impl Replicas {
    /// One replica of each partition.
    pub fn one(partitions: u32) -> Self {
        Self::Placed { partitions, factor: 1 }
    }
}

/// A connection for single requests, blocking.
#[derive(Debug)]
pub struct Admin {
    stream: TcpStream,
}

impl Admin {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { stream })
    }

    fn call<R: Request>(&mut self, version: i16, request: &R) -> Result<R::Response> {
        let mut buffer = BytesMut::new();
        frame::encode_request(&mut buffer, version, 0, Some(CLIENT_ID), request)?;
        self.exchange::<R>(version, &buffer).with_context(|| format!("request {}", R::NAME))
    }

    fn exchange<R: Request>(&mut self, version: i16, request: &[u8]) -> Result<R::Response> {
        self.stream.write_all(request)?;
        let mut len = [0; frame::LENGTH_LEN];
        self.stream.read_exact(&mut len)?;
        let len = usize::try_from(i32::from_be_bytes(len)).ok().filter(|len| *len <= 64 << 20);
        let mut answer = vec![0; len.context("impossible length of an answer")?];
        self.stream.read_exact(&mut answer)?;
        Ok(frame::decode_response::<R>(Bytes::from(answer), version)?.1)
    }

    /// Whether the broker names at least one broker: then it takes requests.
    ///
    /// # Errors
    /// The connection broke.
    pub fn is_ready(&mut self) -> Result<bool> {
        let request = MetadataRequest { topics: Some(Vec::new()), ..Default::default() };
        Ok(!self.call(METADATA_VERSION, &request)?.brokers.is_empty())
    }

    /// Creates topics, one after the other; leaders may take a moment longer.
    ///
    /// # Errors
    /// A topic cannot be created.
    pub fn create_topics(&mut self, topics: &[NewTopic<'_>]) -> Result<()> {
        for topic in topics {
            let configs = topic.config.iter().map(|&(name, value)| CreatableTopicConfig {
                name: name.into(),
                value: Some(value.into()),
                ..Default::default()
            });
            let (num_partitions, replication_factor, assignments) = match &topic.replicas {
                Replicas::Placed { partitions, factor } => (i32::try_from(*partitions)?, *factor, Vec::new()),
                Replicas::Assigned(brokers) => (-1, -1, assignments(brokers)),
            };
            let request = CreateTopicsRequest {
                topics: vec![CreatableTopic {
                    name: topic.name.into(),
                    num_partitions,
                    replication_factor,
                    assignments,
                    configs: configs.collect(),
                    ..Default::default()
                }],
                timeout_ms: 60_000,
                ..Default::default()
            };
            for result in self.call(CREATE_TOPICS_VERSION, &request)?.topics {
                let why = result.error_message.as_ref().map(ToString::to_string).unwrap_or_default();
                check(result.error_code).with_context(|| format!("creating topic {}: {why}", topic.name))?;
            }
        }
        Ok(())
    }

    /// Who leads, and who is in sync, as the broker knows it; empty for topics that it does not know.
    ///
    /// # Errors
    /// The connection broke.
    pub fn layout(&mut self, topics: &[String]) -> Result<Layout> {
        let topics = topics
            .iter()
            .map(|name| MetadataRequestTopic { name: Some(name.as_str().into()), ..Default::default() });
        let request = MetadataRequest {
            topics: Some(topics.collect()),
            allow_auto_topic_creation: false,
            ..Default::default()
        };
        Layout::of(&self.call(METADATA_VERSION, &request)?)
    }

    /// The broker that is the controller.
    ///
    /// # Errors
    /// There is none, or the connection broke.
    pub fn controller(&mut self) -> Result<i32> {
        let partitions = vec![describe_quorum_request::PartitionData::default()];
        let topic_name = "__cluster_metadata".into();
        let request = DescribeQuorumRequest {
            topics: vec![describe_quorum_request::TopicData { topic_name, partitions, ..Default::default() }],
            ..Default::default()
        };
        let answer = self.call(DESCRIBE_QUORUM_VERSION, &request)?;
        check(answer.error_code)?;
        let partition = answer.topics.into_iter().flat_map(|topic| topic.partitions).next();
        let partition = partition.context("the quorum is not described")?;
        check(partition.error_code)?;
        ensure!(partition.leader_id >= 0, "the quorum has no leader");
        Ok(partition.leader_id)
    }

    /// Waits until the broker leads all partitions of a topic.
    ///
    /// # Errors
    /// A partition has no leader after ten minutes.
    pub fn wait_for_leaders(&mut self, topic: &str, partitions: u32) -> Result<()> {
        let deadline = Instant::now() + LEADERS_TIMEOUT;
        while let Err(error) = self.end_offsets(topic, partitions) {
            ensure!(Instant::now() < deadline, "topic {topic} does not come up: {error:#}");
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Whether the broker acts as the leader of all these partitions: metadata may name a leader before that leader
    /// knows.
    ///
    /// # Errors
    /// It does not, or the connection broke.
    pub fn leads(&mut self, topic: &str, partitions: &[u32]) -> Result<()> {
        self.offsets(topic, partitions.iter().copied()).map(drop)
    }

    /// The high watermark of every partition of a topic, in order.
    ///
    /// # Errors
    /// A partition has none.
    pub fn end_offsets(&mut self, topic: &str, partitions: u32) -> Result<Vec<i64>> {
        self.offsets(topic, 0..partitions)
    }

    fn offsets(&mut self, topic: &str, partitions: impl ExactSizeIterator<Item = u32>) -> Result<Vec<i64>> {
        let expected = partitions.len();
        let wanted = partitions.map(|index| {
            Ok(ListOffsetsPartition {
                partition_index: i32::try_from(index)?,
                timestamp: LATEST,
                ..Default::default()
            })
        });
        let request = ListOffsetsRequest {
            replica_id: -1,
            topics: vec![ListOffsetsTopic {
                name: topic.into(),
                partitions: wanted.collect::<Result<_>>()?,
                ..Default::default()
            }],
            ..Default::default()
        };
        let mut found: Vec<(i32, i64)> = Vec::new();
        for partition in
            self.call(LIST_OFFSETS_VERSION, &request)?.topics.into_iter().flat_map(|t| t.partitions)
        {
            check(partition.error_code)?;
            found.push((partition.partition_index, partition.offset));
        }
        found.sort_unstable();
        ensure!(found.len() == expected, "{} of {expected} offsets came", found.len());
        Ok(found.into_iter().map(|(_, offset)| offset).collect())
    }

    /// Appends one record to every given partition, in turn.
    ///
    /// # Errors
    /// A partition refuses it.
    pub fn produce_one(&mut self, topic: &str, partitions: std::ops::Range<u32>) -> Result<()> {
        let shape = Shape { record_bytes: 100, batch_bytes: None, connections: 1, in_flight: 1 };
        let requests = Requests::build(topic, partitions.end, &shape)?;
        for partition in partitions {
            let bytes = requests.pieces[partition as usize].concat();
            let answer = self.exchange::<ProduceRequest>(PRODUCE_VERSION, &bytes)?;
            for partition in answer.responses.iter().flat_map(|topic| &topic.partition_responses) {
                check(partition.error_code)?;
            }
        }
        Ok(())
    }
}

fn assignments(brokers: &[Vec<i32>]) -> Vec<CreatableReplicaAssignment> {
    let one = |(partition_index, brokers): (i32, &Vec<i32>)| CreatableReplicaAssignment {
        partition_index,
        broker_ids: brokers.clone(),
        ..Default::default()
    };
    (0..).zip(brokers).map(one).collect()
}

/// Kafka's name of an error code, as an error.
pub(super) fn check(code: i16) -> Result<()> {
    match ErrorCode::from_code(code) {
        Some(ErrorCode::None) => Ok(()),
        Some(error) => bail!("the broker answers {}", error.name()),
        None => bail!("the broker answers the unknown error {code}"),
    }
}
