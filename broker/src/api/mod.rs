//! The Kafka API: a request in, an answer out.
//!
//! One file per API: decode → ask the image, the controller or the replica manager → encode. [`versions`] is the table of
//! what is served, `errors` maps what the layers below report to Kafka's codes. What a handler decides by itself is a
//! plain function of image and request; only [`Api::handle`] and the calls to the controller and the replica manager
//! wait. Knows nothing of sockets, disks and the quorum.

mod alter_partition_reassignments;
mod api_versions;
mod authorized;
mod auto_create;
mod create_partitions;
mod create_topics;
mod delete_records;
mod delete_topics;
mod describe_cluster;
mod describe_configs;
mod describe_log_dirs;
mod describe_quorum;
mod describe_topic_partitions;
#[cfg(test)]
mod dispatch_test;
mod elect_leaders;
mod endpoints;
mod error_counts;
mod errors;
mod fetch;
mod find_coordinator;
#[cfg(test)]
mod fixtures;
mod incremental_alter_configs;
mod init_producer_id;
mod internal_topics;
mod list_offsets;
mod list_partition_reassignments;
mod metadata;
mod offset_for_leader_epoch;
mod produce;
mod request;
mod topics;
pub mod versions;

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use millrace_protocol::frame::{self, RequestFrame};
use millrace_protocol::messages::{
    DeleteRecordsRequest, DescribeLogDirsRequest, DescribeLogDirsResponse, FetchRequest, FetchResponse,
    ProduceRequest,
};
use millrace_protocol::{ApiKey, ErrorCode, Message, Request};
use tokio_util::task::TaskTracker;

use self::auto_create::AutoCreate;
use self::describe_configs::Source;
use self::error_counts::ErrorCodes;
use self::init_producer_id::ProducerIds;
use self::request::RequestContext;
use self::versions::{ServedApi, SupportedApi};
use crate::config::BrokerConfig;
use crate::metadata::MetadataHandle;
use crate::metadata::image::{BrokerId, MetadataImage};
use crate::metrics::Metrics;
use crate::replication::{ReplicaManager, RequiredAcks};

pub use request::{ClientConnection, ClientSoftware, CloseReason, Outcome};

/// Everything that answers requests of clients. Clones are the same.
#[derive(Clone, Debug)]
pub struct Api {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    broker_id: BrokerId,
    config: Arc<BrokerConfig>,
    metadata: MetadataHandle,
    replicas: ReplicaManager,
    metrics: Metrics,
    auto_create: AutoCreate,
    producer_ids: ProducerIds,
}

/// What an [`Api`] needs.
#[derive(Clone, Debug)]
pub struct ApiParts {
    /// Id that the quorum has granted this broker.
    pub broker_id: BrokerId,
    /// Configuration file.
    pub config: Arc<BrokerConfig>,
    /// Image and controller.
    pub metadata: MetadataHandle,
    /// Partitions.
    pub replicas: ReplicaManager,
    /// Metrics.
    pub metrics: Metrics,
    /// Takes what goes on in the background after a request was answered.
    pub tasks: TaskTracker,
}

impl Api {
    /// Ready to answer.
    pub fn new(parts: ApiParts) -> Self {
        let auto_create = AutoCreate::new(parts.metadata.clone(), parts.tasks);
        let inner = Inner {
            broker_id: parts.broker_id,
            config: parts.config,
            metadata: parts.metadata,
            replicas: parts.replicas,
            metrics: parts.metrics,
            auto_create,
            producer_ids: ProducerIds::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Answers one request of `client`.
    ///
    /// The order of requests matters only until this resolves: an [`Outcome::Later`] may be awaited beside later
    /// requests for which [`may_overlap`](Self::may_overlap) holds. Dropping the future does not take back what the
    /// request has set going.
    pub async fn handle(&self, client: &mut ClientConnection, frame: RequestFrame) -> Outcome {
        let Some(served) = ServedApi::of(frame.key) else { return not_served(&frame) };
        if !served.accepted().contains(&frame.version) {
            // V1: even a client from the future must learn what is spoken here. V2: anything else ends the connection.
            return match served.api {
                SupportedApi::ApiVersions => {
                    let reply = Reply { version: 0, ..Reply::to(&frame) };
                    reply.encode(&self.inner.metrics, &api_versions::unsupported_version())
                }
                _ => not_served(&frame),
            };
        }
        self.dispatch(client, served.api, frame).await
    }

    /// Whether a request of this key may begin while answers to earlier ones are still to come.
    pub fn may_overlap(&self, key: ApiKey) -> bool {
        // Everything else might see, or miss, what an earlier request of the connection has not finished yet (V4).
        key == ApiKey::Produce
    }

    /// The one place where every request that is served finds its handler.
    async fn dispatch(
        &self,
        client: &mut ClientConnection,
        api: SupportedApi,
        frame: RequestFrame,
    ) -> Outcome {
        let inner = &self.inner;
        let image = inner.metadata.image();
        let context = RequestContext {
            listener: Arc::clone(&client.listener),
            version: frame.version,
            client_id: frame.client_id.clone(),
        };
        let reply = Reply::to(&frame);
        match api {
            SupportedApi::ApiVersions => self.answer(frame, |request| {
                let (response, software) = api_versions::handle(context.version, &request);
                client.software = software.or(client.software.take());
                response
            }),
            SupportedApi::Metadata => self.answer(frame, |request| {
                let auto_create = inner.config.auto_create_topics;
                let answer = metadata::handle(&image, &context, inner.broker_id, auto_create, &request);
                inner.create(answer.create);
                answer.response
            }),
            SupportedApi::DescribeCluster => self.answer(frame, |request| {
                describe_cluster::handle(&image, &context, inner.broker_id, &request)
            }),
            SupportedApi::DescribeTopicPartitions => self.answer(frame, |request| {
                let limit = inner.config.max_partitions_per_answer;
                describe_topic_partitions::handle(&image, &context, limit, &request)
            }),
            SupportedApi::DescribeConfigs => {
                self.answer(frame, |request| describe_configs::handle(inner.source(&image), &request))
            }
            SupportedApi::FindCoordinator => self.answer(frame, |request| {
                let missing = find_coordinator::missing_topic(&image, &request);
                inner.create(missing.map(str::to_owned).into_iter().collect());
                find_coordinator::handle(&context, &request)
            }),
            SupportedApi::ListOffsets => self.answer(frame, |request| {
                list_offsets::handle(&image, &context, &request, &|query| inner.replicas.list_offset(query))
            }),
            SupportedApi::OffsetForLeaderEpoch => self.answer(frame, |request| {
                let look_up = |partition, current, leader_epoch| {
                    inner.replicas.leader_epoch_end(partition, current, leader_epoch)
                };
                offset_for_leader_epoch::handle(&image, &request, &look_up)
            }),
            SupportedApi::Produce => match frame.decode() {
                Ok(request) => inner.produce(&image, context, reply, request).await,
                Err(error) => malformed(reply.key, error),
            },
            SupportedApi::Fetch => match frame.decode() {
                Ok(request) => {
                    let response = inner.fetch(&image, &context, &request).await;
                    reply.encode_shared(&inner.metrics, &response)
                }
                Err(error) => malformed(reply.key, error),
            },
            SupportedApi::CreateTopics => match frame.decode() {
                Ok(request) => {
                    let own = create_topics::own_configs(&request);
                    let add_configs = |response| {
                        create_topics::add_configs(inner.source(&inner.metadata.image()), &own, response)
                    };
                    let response = create_topics::handle(&inner.metadata, add_configs, request).await;
                    reply.encode(&inner.metrics, &response)
                }
                Err(error) => malformed(reply.key, error),
            },
            SupportedApi::DeleteTopics => match frame.decode() {
                Ok(request) => {
                    let response = delete_topics::handle(&inner.metadata, &context, request).await;
                    reply.encode(&inner.metrics, &response)
                }
                Err(error) => malformed(reply.key, error),
            },
            SupportedApi::DeleteRecords => match frame.decode::<DeleteRecordsRequest>() {
                Ok(request) => {
                    let timeout = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
                    let delete =
                        |partition, offset| inner.replicas.delete_records(partition, offset, timeout).boxed();
                    let response = delete_records::handle(&image, &request, &delete).await;
                    reply.encode(&inner.metrics, &response)
                }
                Err(error) => malformed(reply.key, error),
            },
            SupportedApi::DescribeLogDirs => match frame.decode() {
                Ok(request) => {
                    let response = inner.describe_log_dirs(&image, &request).await;
                    reply.encode(&inner.metrics, &response)
                }
                Err(error) => malformed(reply.key, error),
            },
            SupportedApi::CreatePartitions => match frame.decode() {
                Ok(request) => {
                    let response = create_partitions::handle(&inner.metadata, request).await;
                    reply.encode(&inner.metrics, &response)
                }
                Err(error) => malformed(reply.key, error),
            },
            SupportedApi::IncrementalAlterConfigs => match frame.decode() {
                Ok(request) => {
                    let response =
                        incremental_alter_configs::handle(&inner.metadata, inner.broker_id, request).await;
                    reply.encode(&inner.metrics, &response)
                }
                Err(error) => malformed(reply.key, error),
            },
            SupportedApi::ElectLeaders => match frame.decode() {
                Ok(request) => {
                    let response = elect_leaders::handle(&inner.metadata, &context, request).await;
                    reply.encode(&inner.metrics, &response)
                }
                Err(error) => malformed(reply.key, error),
            },
            SupportedApi::AlterPartitionReassignments => match frame.decode() {
                Ok(request) => {
                    let response = alter_partition_reassignments::handle(&inner.metadata, request).await;
                    reply.encode(&inner.metrics, &response)
                }
                Err(error) => malformed(reply.key, error),
            },
            SupportedApi::ListPartitionReassignments => match frame.decode() {
                Ok(request) => {
                    let response = list_partition_reassignments::handle(&inner.metadata, request).await;
                    reply.encode(&inner.metrics, &response)
                }
                Err(error) => malformed(reply.key, error),
            },
            SupportedApi::DescribeQuorum => match frame.decode() {
                Ok(request) => {
                    let listener = &inner.config.fleet.name;
                    let response =
                        describe_quorum::handle(&inner.metadata, listener, reply.version, request).await;
                    reply.encode(&inner.metrics, &response)
                }
                Err(error) => malformed(reply.key, error),
            },
            SupportedApi::InitProducerId => match frame.decode() {
                Ok(request) => {
                    let response =
                        init_producer_id::handle(&inner.metadata, &inner.producer_ids, &request).await;
                    reply.encode(&inner.metrics, &response)
                }
                Err(error) => malformed(reply.key, error),
            },
        }
    }

    /// Answers a request that needs nobody else.
    fn answer<R: Request>(&self, frame: RequestFrame, handler: impl FnOnce(R) -> R::Response) -> Outcome
    where
        R::Response: ErrorCodes,
    {
        let reply = Reply::to(&frame);
        match frame.decode::<R>() {
            Ok(request) => reply.encode(&self.inner.metrics, &handler(request)),
            Err(error) => malformed(reply.key, error),
        }
    }
}

impl Inner {
    /// Lets topics that a client needs come to be, in the background.
    fn create(&self, names: Vec<String>) {
        self.auto_create.start(names, |name| internal_topics::new_topic(name, &self.config.internal_topics));
    }

    fn source<'a>(&'a self, image: &'a MetadataImage) -> Source<'a> {
        Source { image, config: &self.config, own_id: self.broker_id }
    }

    async fn describe_log_dirs(
        &self,
        image: &MetadataImage,
        request: &DescribeLogDirsRequest,
    ) -> DescribeLogDirsResponse {
        let (directory, replicas) = (self.config.data_dir.clone(), self.replicas.clone());
        let look = move || (describe_log_dirs::room(&directory), replicas.logs());
        match crate::blocking::spawn_blocking(look).await {
            Ok((room, logs)) => describe_log_dirs::handle(image, &self.config.data_dir, &logs, room, request),
            // Only a runtime that is shutting down cancels; nobody will read the answer.
            Err(error) if error.is_cancelled() => DescribeLogDirsResponse::default(),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn produce(
        self: &Arc<Self>,
        image: &MetadataImage,
        context: RequestContext,
        reply: Reply,
        request: ProduceRequest,
    ) -> Outcome {
        let mut prepared = produce::prepare(image, &context, request);
        let (acks, timeout) = (prepared.acks, prepared.timeout);
        let partitions = std::mem::take(&mut prepared.partitions);
        let ids: Vec<_> = partitions.iter().map(|data| data.partition).collect();
        // From here on the records have their place in the log, and the next request can begin.
        let pending = self.replicas.append(partitions, acks, context.version).await;
        let inner = Arc::clone(self);
        let finish = async move {
            let outcomes = pending.outcome(timeout).await;
            let response = prepared.answer(&inner.metadata.image(), &context, &ids, outcomes);
            match acks {
                RequiredAcks::None if produce::has_error(&response) => {
                    Outcome::Close(CloseReason::FailedWithoutAcks)
                }
                RequiredAcks::None => Outcome::Nothing,
                RequiredAcks::Leader | RequiredAcks::All => reply.encode(&inner.metrics, &response),
            }
        };
        let finish: BoxFuture<'static, Outcome> = finish.boxed();
        Outcome::Later(finish)
    }

    async fn fetch(
        &self,
        image: &MetadataImage,
        context: &RequestContext,
        request: &FetchRequest,
    ) -> FetchResponse {
        match fetch::prepare(image, context, self.config.fetch_max_bytes, request) {
            Err(refusal) => refusal,
            Ok(prepared) => {
                let (plan, waiting) = prepared.split();
                // With nothing to read there is nothing to wait for (F4).
                let fetched =
                    if plan.partitions.is_empty() { Vec::new() } else { self.replicas.fetch(plan).await };
                waiting.answer(&self.metadata.image(), context, fetched)
            }
        }
    }
}

/// Where an answer belongs.
#[derive(Clone, Copy, Debug)]
struct Reply {
    key: ApiKey,
    version: i16,
    correlation_id: i32,
}

impl Reply {
    fn to(frame: &RequestFrame) -> Self {
        Self { key: frame.key, version: frame.version, correlation_id: frame.correlation_id }
    }

    fn encode<M: Message + ErrorCodes>(self, metrics: &Metrics, response: &M) -> Outcome {
        self.count_errors(metrics, response);
        let mut buffer = BytesMut::new();
        match frame::encode_response(&mut buffer, self.key, self.version, self.correlation_id, response) {
            Ok(()) => Outcome::Respond(vec![buffer.freeze()]),
            Err(error) => Outcome::Close(CloseReason::Unanswerable { api: self.key.name(), error }),
        }
    }

    /// As [`encode`](Self::encode), without copying records.
    fn encode_shared<M: Message + ErrorCodes>(self, metrics: &Metrics, response: &M) -> Outcome {
        self.count_errors(metrics, response);
        match frame::encode_response_segments(self.key, self.version, self.correlation_id, response) {
            Ok(pieces) => Outcome::Respond(pieces),
            Err(error) => Outcome::Close(CloseReason::Unanswerable { api: self.key.name(), error }),
        }
    }

    fn count_errors(self, metrics: &Metrics, response: &impl ErrorCodes) {
        response.error_codes(&mut |code| {
            if code != 0 {
                let error = ErrorCode::from_code(code).unwrap_or(ErrorCode::UnknownServerError);
                metrics.response_error(self.key, error);
            }
        });
    }
}

fn not_served(frame: &RequestFrame) -> Outcome {
    Outcome::Close(CloseReason::NotServed { api: frame.key.name(), version: frame.version })
}

fn malformed(key: ApiKey, error: millrace_protocol::DecodeError) -> Outcome {
    Outcome::Close(CloseReason::Malformed { api: key.name(), error })
}
