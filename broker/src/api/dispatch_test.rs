//! Whole requests through [`Api::handle`], with a real replica manager on a volume of its own.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use millrace_protocol::frame::{self, RequestFrame};
use millrace_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use millrace_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use millrace_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use millrace_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, FetchRequest, FetchResponse, ListOffsetsRequest,
    MetadataRequest, OffsetForLeaderEpochRequest, ProduceRequest, ProduceResponse, visit_requests,
};
use millrace_protocol::records::{BatchBuilder, Compression, NewRecord};
use millrace_protocol::{ApiKey, Decoder, Message, Request, RequestVisitor};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::fixtures::{LISTENER, add_topic, image};
use super::versions::{SERVED, ServedApi};
use super::{Api, ApiParts, ClientConnection, CloseReason, Outcome};
use crate::config::BrokerConfig;
use crate::metadata::MetadataHandle;
use crate::metrics::Metrics;
use crate::replication::peers::NoPeers;
use crate::replication::producer_state::SteadyClock;
use crate::replication::{ReplicaManager, ReplicaManagerOptions, ThrottleRates, TopicSettings};
use crate::storage::journal::{JournalStore, JournalStoreOptions};

const NOW_MS: i64 = 1_700_000_000_000;

/// A broker with topic `a` of one partition, which it leads.
struct Broker {
    api: Api,
    client: ClientConnection,
    replicas: ReplicaManager,
    _volume: TempDir,
}

impl Broker {
    async fn start() -> Self {
        let volume = TempDir::new().unwrap();
        let volume_uuid = Uuid::from_u128(7);
        let mut image = image([1]);
        image.log_index = 5;
        let topic_id = add_topic(&mut image, "a", &[1]);
        let topic = image.topics.get_mut(&topic_id).map(Arc::make_mut).unwrap();
        topic.partitions[0].replicas[0].volume_uuid = volume_uuid;
        let metadata = MetadataHandle::fixed(image);
        let options = JournalStoreOptions { segment_bytes: Some(1 << 20), ..Default::default() };
        let replicas = ReplicaManager::start(ReplicaManagerOptions {
            store: Arc::new(JournalStore::open(volume.path(), volume_uuid, options).unwrap()),
            volume_uuid,
            images: metadata.subscribe(),
            caught_up: watch::channel(true).1,
            topic_settings: Arc::new(|_, _| TopicSettings::default()),
            throttle_rates: Arc::new(|_| ThrottleRates::default()),
            peers: Arc::new(NoPeers),
            rack_aware_reads: true,
            replica_lag: Duration::from_secs(30),
            replica_fetch_wait: Duration::from_millis(500),
            replica_fetch_bytes: 1 << 20,
            clock: Arc::new(|| NOW_MS),
            steady_clock: SteadyClock::new(|| 0),
            is_confirmed: Arc::new(|_applied_index| true),
            retention_check_interval: Duration::from_secs(300),
            checkpoint_interval: Duration::from_secs(60),
            produce_times: crate::metrics::durations::Durations::default(),
            producer_id_expiration: Duration::from_secs(86_400),
        });
        replicas.applied().wait_for(|index| *index == 5).await.unwrap();
        let api = Api::new(ApiParts {
            broker_id: 1,
            config: Arc::new(BrokerConfig::dev(volume.path(), 0)),
            metadata,
            replicas: replicas.clone(),
            metrics: Metrics::new(),
            tasks: TaskTracker::new(),
        });
        let peer = ([127, 0, 0, 1], 1).into();
        let client = ClientConnection { listener: LISTENER.into(), peer, software: None };
        Self { api, client, replicas, _volume: volume }
    }

    /// Outcome of a request with its header, in the end.
    async fn send(&mut self, bytes: &[u8]) -> Outcome {
        let frame = RequestFrame::parse(Bytes::copy_from_slice(&bytes[4..])).unwrap();
        match self.api.handle(&mut self.client, frame).await {
            Outcome::Later(outcome) => outcome.await,
            outcome => outcome,
        }
    }

    async fn ask<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        let outcome = self.send(&encode(version, request)).await;
        let (correlation_id, response) = frame::decode_response::<R>(body(outcome), version).unwrap();
        assert_eq!(correlation_id, 42);
        response
    }
}

fn encode<R: Request>(version: i16, request: &R) -> BytesMut {
    let mut bytes = BytesMut::new();
    frame::encode_request(&mut bytes, version, 42, Some("test"), request).unwrap();
    bytes
}

/// A response without its length.
fn body(outcome: Outcome) -> Bytes {
    let Outcome::Respond(pieces) = outcome else { panic!("{outcome:?}") };
    Bytes::from(pieces.concat()).slice(4..)
}

fn batch() -> Bytes {
    BatchBuilder::new(Compression::None)
        .append(NewRecord { timestamp: NOW_MS, value: Some(b"hello"), ..Default::default() })
        .build()
}

fn produce(acks: i16, topic: &str) -> ProduceRequest {
    let data = PartitionProduceData { index: 0, records: Some(batch().into()), ..Default::default() };
    let topic = TopicProduceData { name: topic.into(), partition_data: vec![data], ..Default::default() };
    ProduceRequest { acks, timeout_ms: 5000, topic_data: vec![topic], ..Default::default() }
}

/// An empty request of each served key in each accepted version, and a way to read the answer.
#[derive(Default)]
struct EveryVersion {
    requests: Vec<(ApiKey, i16, BytesMut, Reads)>,
}

/// Whether an answer, without its length, is one of that version.
type Reads = fn(Bytes, i16) -> bool;

impl RequestVisitor for EveryVersion {
    fn request<R: Request>(&mut self) {
        for version in ServedApi::of(R::KEY).into_iter().flat_map(ServedApi::accepted) {
            let reads: Reads = |bytes, version| frame::decode_response::<R>(bytes, version).is_ok();
            self.requests.push((R::KEY, version, encode(version, &R::default()), reads));
        }
    }
}

#[tokio::test]
async fn every_accepted_version_of_every_served_key_has_an_answer_in_that_version() {
    let mut broker = Broker::start().await;
    let mut every = EveryVersion::default();
    visit_requests(&mut every);
    assert_eq!(every.requests.len(), SERVED.iter().map(|served| served.accepted().count()).sum::<usize>());
    for (key, version, bytes, reads) in every.requests {
        let outcome = broker.send(&bytes).await;
        // Acks are 0 in an empty produce request, which names no partition that could fail.
        if key == ApiKey::Produce {
            assert!(matches!(outcome, Outcome::Nothing), "{outcome:?}");
        } else {
            assert!(reads(body(outcome), version), "{} version {version}", key.name());
        }
    }
    broker.replicas.shutdown().await;
}

#[tokio::test]
async fn v1_an_unknown_version_of_api_versions_is_answered_in_version_0() {
    let mut broker = Broker::start().await;
    // A version from the future: a header with client id "x" and no tags, and a body that nobody can read here.
    let request =
        [&[0, 0, 0, 15, 0, 18, 0, 99, 0, 0, 0, 42, 0, 1, b'x', 0][..], &[0xff, 0xff, 0xff]].concat();
    let answer = body(broker.send(&request).await);
    assert_eq!(answer[..4], 42_i32.to_be_bytes(), "response header 0 is the correlation id alone");
    let response = ApiVersionsResponse::decode(&mut Decoder::new(answer.slice(4..)), 0).unwrap();
    assert_eq!(response.error_code, 35);
    assert_eq!(response.api_keys.len(), 1);
    broker.replicas.shutdown().await;
}

#[tokio::test]
async fn v2_other_versions_and_keys_that_are_not_served_close_the_connection() {
    let mut broker = Broker::start().await;
    let with_version = |mut bytes: BytesMut, version: i16| {
        bytes[6..8].copy_from_slice(&version.to_be_bytes());
        bytes
    };
    for bytes in [
        with_version(encode(3, &ProduceRequest::default()), 2),
        with_version(encode(1, &ListOffsetsRequest::default()), 0),
        with_version(encode(1, &MetadataRequest::default()), 14),
        encode(6, &millrace_protocol::messages::InitProducerIdRequest::default()),
        encode(0, &millrace_protocol::messages::SaslHandshakeRequest::default()),
    ] {
        let outcome = broker.send(&bytes).await;
        assert!(matches!(outcome, Outcome::Close(CloseReason::NotServed { .. })), "{outcome:?}");
    }
    broker.replicas.shutdown().await;
}

#[tokio::test]
async fn v2_a_body_that_does_not_decode_closes_the_connection() {
    let mut broker = Broker::start().await;
    for bytes in [
        encode(1, &MetadataRequest::default()),
        encode(3, &ProduceRequest::default()),
        encode(4, &FetchRequest::default()),
    ] {
        let outcome = broker.send(&bytes[..bytes.len() - 1]).await;
        assert!(matches!(outcome, Outcome::Close(CloseReason::Malformed { .. })), "{outcome:?}");
    }
    broker.replicas.shutdown().await;
}

#[tokio::test]
async fn v3_the_software_of_a_client_is_remembered() {
    let mut broker = Broker::start().await;
    let request = ApiVersionsRequest {
        client_software_name: "kcat".into(),
        client_software_version: "1.7".into(),
        ..Default::default()
    };
    assert_eq!(broker.ask(3, &request).await.error_code, 0);
    broker.ask(0, &ApiVersionsRequest::default()).await;
    assert_eq!(broker.client.software.as_ref().unwrap().name, "kcat");
    broker.replicas.shutdown().await;
}

#[tokio::test]
async fn p10_acks_0_has_no_answer_and_closes_the_connection_on_an_error() {
    let mut broker = Broker::start().await;
    let outcome = broker.send(&encode(9, &produce(0, "a"))).await;
    assert!(matches!(outcome, Outcome::Nothing), "{outcome:?}");
    let outcome = broker.send(&encode(9, &produce(0, "missing"))).await;
    assert!(matches!(outcome, Outcome::Close(CloseReason::FailedWithoutAcks)), "{outcome:?}");
    broker.replicas.shutdown().await;
}

#[tokio::test]
async fn what_was_produced_is_fetched_and_its_error_codes_are_counted() {
    let mut broker = Broker::start().await;
    let ProduceResponse { responses, .. } = broker.ask(9, &produce(-1, "a")).await;
    assert_eq!(
        (responses[0].partition_responses[0].error_code, responses[0].partition_responses[0].base_offset),
        (0, 0)
    );
    let partition = FetchPartition { partition_max_bytes: 1 << 20, ..Default::default() };
    let topic = FetchTopic { topic: "a".into(), partitions: vec![partition], ..Default::default() };
    let request = FetchRequest { max_wait_ms: 100, min_bytes: 1, topics: vec![topic], ..Default::default() };
    let FetchResponse { responses, .. } = broker.ask(11, &request).await;
    let fetched = &responses[0].partitions[0];
    assert_eq!((fetched.error_code, fetched.high_watermark), (0, 1));
    assert_eq!(fetched.records.as_ref().unwrap().len(), batch().len());

    assert_eq!(
        broker.ask(9, &produce(-1, "missing")).await.responses[0].partition_responses[0].error_code,
        3
    );
    let counted = "response_errors_total{api=\"Produce\",error=\"UNKNOWN_TOPIC_OR_PARTITION\"} 1";
    assert!(broker.api.inner.metrics.text().contains(counted));
    broker.replicas.shutdown().await;
}

#[tokio::test]
async fn l2_the_end_of_the_latest_epoch_is_the_end_of_the_log() {
    let mut broker = Broker::start().await;
    broker.ask(9, &produce(-1, "a")).await;
    let mut ask = async |current_leader_epoch, leader_epoch| {
        let partition = OffsetForLeaderPartition { current_leader_epoch, leader_epoch, ..Default::default() };
        let topic =
            OffsetForLeaderTopic { topic: "a".into(), partitions: vec![partition], ..Default::default() };
        let request =
            OffsetForLeaderEpochRequest { replica_id: -1, topics: vec![topic], ..Default::default() };
        let end = broker.ask(4, &request).await.topics[0].partitions[0].clone();
        (end.error_code, end.leader_epoch, end.end_offset)
    };
    assert_eq!(ask(5, 5).await, (0, 5, 1));
    assert_eq!(ask(-1, 6).await, (0, -1, -1), "above all");
    assert_eq!(ask(-1, 3).await, (0, 3, 0), "below all");
    assert_eq!(ask(4, 5).await, (74, -1, -1));
    assert_eq!(ask(6, 5).await, (75, -1, -1));
    broker.replicas.shutdown().await;
}

#[tokio::test]
async fn v4_only_produce_requests_overlap() {
    let broker = Broker::start().await;
    let overlapping: Vec<_> = SERVED.iter().filter(|served| broker.api.may_overlap(served.key)).collect();
    assert_eq!(overlapping.iter().map(|served| served.key).collect::<Vec<_>>(), [ApiKey::Produce]);
    broker.replicas.shutdown().await;
}
