//! Runs the controller, and keeps this broker part of the cluster.
//!
//! Four tasks around one [`RaftNode`]: the controller runtime (`runtime`) decides requests one after another while
//! this node leads; the lifecycle (`lifecycle`) joins the quorum, registers the broker and sends heartbeats; the
//! members task (`members`) decides who votes; the crash task (`crash`, `succession`) notices at once when the process
//! of another broker is gone. Calls of other brokers come in through `calls`. Who is alive is known to the leader only,
//! in memory (`sessions`): a new leader probes everyone once, and gives who is silent the time of one session.

mod calls;
mod crash;
mod describe;
mod lifecycle;
mod members;
mod runtime;
mod sessions;
mod succession;
mod voters;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::runtime::{Answer, Declined, Work};
use self::sessions::Sessions;
use super::controller::{ControllerRequest, ControllerResponse, Settings};
use super::image::{BrokerId, Endpoint};
use super::raft::{BootstrapError, QuorumStatus, RaftNode, RaftOptions, RaftTimings, StartError};
use super::{ControllerError, MetadataHandle};
use crate::fleet::{CallHandler, FleetClient, LocalNode};
use crate::volume::Volume;

pub use self::describe::{QuorumDescription, ReplicaDescription};
pub use self::lifecycle::{BrokerState, Confirmation};
pub use self::voters::VoterPolicy;

/// Requests that wait for the controller. At a few milliseconds each this is a second of work; beyond that, waiting
/// callers are told that it is busy when their time is up.
const WORK_QUEUE: usize = 256;

/// Settings of the metadata service.
#[derive(Clone, Debug)]
pub struct MetadataOptions {
    /// `host:port` of this broker's internal listener, as others reach it.
    pub address: String,
    /// Internal listeners of brokers that may know the quorum (`controller.quorum.bootstrap.servers`).
    pub bootstrap_servers: Vec<String>,
    /// What this broker says about itself when it registers.
    pub broker: BrokerFacts,
    /// Silence after which a broker is taken out of service (`broker.session.timeout.ms`).
    pub session_timeout: Duration,
    /// Time between heartbeats (`broker.heartbeat.interval.ms`).
    pub heartbeat_interval: Duration,
    /// Timing of elections.
    pub timings: RaftTimings,
    /// Log entries after which the metadata is written as a snapshot (`metadata.log.snapshot.interval.entries`).
    pub snapshot_every: u64,
    /// How often the controller brings preferred leaders back; `None` means never.
    pub leader_rebalance_interval: Option<Duration>,
    /// Who votes in the quorum.
    pub voters: VoterPolicy,
    /// What the controller's decisions depend on besides the image.
    pub settings: Arc<dyn Settings>,
}

/// What a broker says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerFacts {
    /// Broker id that it asks for (`node.id`), if the configuration says one.
    pub wanted_id: Option<BrokerId>,
    /// Client listeners.
    pub endpoints: Vec<Endpoint>,
    /// Rack, if the configuration says one (`broker.rack`).
    pub rack: Option<String>,
    /// Version of its binary.
    pub version: String,
    /// `min.insync.replicas` of its configuration file.
    pub min_insync_replicas: i32,
}

impl MetadataOptions {
    /// Defaults for a broker whose internal listener is `address`.
    pub fn new(address: String, broker: BrokerFacts, settings: Arc<dyn Settings>) -> Self {
        Self {
            address,
            bootstrap_servers: Vec::new(),
            broker,
            session_timeout: Duration::from_millis(9000),
            heartbeat_interval: Duration::from_millis(2000),
            timings: RaftTimings::default(),
            snapshot_every: 5000,
            leader_rebalance_interval: Some(Duration::from_secs(10)),
            voters: VoterPolicy::default(),
            settings,
        }
    }
}

/// The service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The quorum member cannot start.
    #[error(transparent)]
    Raft(#[from] StartError),
    /// The configuration asks for an id that is not the one on the volume.
    #[error(
        "the data volume belongs to broker {granted}, but node.id={wanted} is configured; \
         correct node.id, or give the broker an empty volume"
    )]
    OtherBroker {
        /// Id on the volume.
        granted: BrokerId,
        /// Id in the configuration.
        wanted: BrokerId,
    },
}

/// The running service. Cheap handles come from [`handle`](Self::handle).
#[derive(Debug)]
pub struct MetadataService {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

/// What the tasks and handles have in common.
pub(super) struct Shared {
    pub(super) node: Arc<RaftNode>,
    local: LocalNode,
    options: MetadataOptions,
    volume: Arc<Volume>,
    client: FleetClient,
    work: mpsc::Sender<Work>,
    sessions: Mutex<Sessions>,
    /// Term in which this node is the controller.
    office: watch::Sender<Option<u64>>,
    /// Raft nodes whose processes may be gone.
    suspicions: mpsc::Sender<u64>,
    /// When each member was last seen to have the whole log; kept by the leader.
    caught_up: Mutex<BTreeMap<u64, SystemTime>>,
    broker: watch::Sender<BrokerState>,
    /// Set when the broker wants to leave service, and never unset.
    stopping: watch::Sender<bool>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("node", &self.node).finish_non_exhaustive()
    }
}

impl MetadataService {
    /// Opens the quorum member on `volume` and starts the tasks. The quorum may not be formed yet, or out of reach.
    pub async fn start(
        options: MetadataOptions,
        volume: Arc<Volume>,
        client: FleetClient,
    ) -> Result<Self, ServiceError> {
        if let (Some(granted), Some(wanted)) = (volume.broker_id(), options.broker.wanted_id)
            && granted != wanted
        {
            return Err(ServiceError::OtherBroker { granted, wanted });
        }
        let local = LocalNode { cluster_id: volume.cluster_id(), node_id: volume.raft_node_id() };
        let node = RaftNode::start(RaftOptions {
            directory: volume.path().join("raft"),
            kept_space: volume.kept_space(),
            node_id: local.node_id,
            cluster_id: local.cluster_id,
            client: client.clone(),
            timings: options.timings,
            snapshot_every: options.snapshot_every,
        })
        .await?;
        let (work, queue) = mpsc::channel(WORK_QUEUE);
        let (suspicions, suspected) = mpsc::channel(crash::MAX_SUSPICIONS);
        let shared = Arc::new(Shared {
            node: Arc::new(node),
            local,
            sessions: Mutex::new(Sessions::new(options.session_timeout)),
            office: watch::Sender::new(None),
            suspicions,
            caught_up: Mutex::default(),
            broker: watch::Sender::new(BrokerState {
                broker_id: volume.broker_id(),
                ..BrokerState::default()
            }),
            stopping: watch::Sender::new(false),
            options,
            volume,
            client,
            work,
        });
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(runtime::run(Arc::clone(&shared), queue, cancel.clone()));
        tasks.spawn(lifecycle::run(Arc::clone(&shared), cancel.clone()));
        tasks.spawn(members::run(Arc::clone(&shared), cancel.clone()));
        tasks.spawn(crash::run(Arc::clone(&shared), suspected, cancel.clone()));
        tasks.close();
        Ok(Self { shared, tasks, cancel })
    }

    /// Reads the metadata and asks the controller.
    pub fn handle(&self) -> MetadataHandle {
        MetadataHandle::live(Arc::clone(&self.shared))
    }

    /// Answers calls of other brokers: give it to the internal listener.
    pub fn call_handler(&self) -> Arc<dyn CallHandler> {
        Arc::clone(&self.shared) as _
    }

    /// For the management API.
    pub fn member(&self) -> Member {
        Member { shared: Arc::clone(&self.shared) }
    }

    /// This broker's place in the cluster, as it changes.
    pub fn broker_state(&self) -> watch::Receiver<BrokerState> {
        self.shared.broker.subscribe()
    }

    /// Forms a quorum of this node alone, unless it belongs to one.
    pub async fn bootstrap_single(&self) -> Result<(), BootstrapError> {
        if self.shared.node.status().is_member() {
            return Ok(());
        }
        let voters = BTreeMap::from([(self.shared.local.node_id, self.shared.options.address.clone())]);
        self.shared.node.bootstrap(voters).await
    }

    /// Resolves when the quorum member has failed, with the reason: the process must end then.
    pub async fn failure(&self) -> String {
        self.shared.node.failure().await
    }

    /// Stops the tasks and closes the metadata log. Its files are free when this returns, provided that the handles
    /// are gone.
    pub async fn stop(self) {
        self.cancel.cancel();
        self.tasks.wait().await;
        let node = Arc::clone(&self.shared.node);
        drop(self.shared);
        node.shutdown().await;
    }
}

/// This broker as a member of the fleet: what the management API asks about and changes.
#[derive(Clone, Debug)]
pub struct Member {
    shared: Arc<Shared>,
}

impl Member {
    /// Reads the metadata and asks the controller.
    pub fn metadata(&self) -> MetadataHandle {
        MetadataHandle::live(Arc::clone(&self.shared))
    }

    /// The quorum as this node sees it.
    pub fn quorum(&self) -> QuorumStatus {
        self.shared.node.status()
    }

    /// The volume that the broker runs on.
    pub fn volume(&self) -> &Volume {
        &self.shared.volume
    }

    /// `host:port` of this broker's internal listener, as others reach it.
    pub fn address(&self) -> &str {
        &self.shared.options.address
    }

    /// Version of this broker's binary.
    pub fn version(&self) -> &str {
        &self.shared.options.broker.version
    }

    /// Forms the quorum. Succeeds as well when exactly that has happened before.
    pub async fn bootstrap(&self, voters: BTreeMap<u64, String>) -> Result<(), BootstrapError> {
        self.shared.node.bootstrap(voters).await
    }

    /// Takes this broker out of service for good: leadership moves to other brokers as far as they can take it, which is
    /// waited for where their replicas are in service but not in sync yet; then the broker is fenced; if it leads the
    /// quorum, another voter takes over. The wait ends in time for the rest; the other steps may take until `timeout`.
    pub async fn controlled_shutdown(&self, timeout: Duration) -> Result<(), ControllerError> {
        lifecycle::controlled_shutdown(&self.shared, timeout).await
    }
}

impl Shared {
    /// Asks the controller, wherever it is, and waits until the local image contains the outcome.
    pub(super) async fn ask(
        &self,
        request: ControllerRequest,
        timeout: Duration,
    ) -> Result<Answer, ControllerError> {
        const FIRST_PAUSE: Duration = Duration::from_millis(20);
        const MAX_PAUSE: Duration = Duration::from_millis(500);
        let deadline = Instant::now() + timeout;
        let mut status = self.node.watch_status();
        let mut pause = FIRST_PAUSE;
        let mut message = "no leader is known".to_owned();
        loop {
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                return Err(ControllerError::Unavailable { message });
            }
            status.mark_unchanged();
            match self.ask_once(&request, deadline).await {
                // Nothing was changed that could be seen; a node that was removed from the quorum would wait for ever.
                Ok(answer) if Self::refused(&answer.response).is_some() => return Ok(answer),
                Ok(answer) => {
                    self.wait_for_image(answer.log_index, deadline).await?;
                    return Ok(answer);
                }
                Err(Declined::NotController { reason }) => message = reason,
                Err(Declined::Unknown { reason }) => {
                    return Err(ControllerError::Timeout { message: reason });
                }
                Err(Declined::Unacceptable { reason }) => {
                    return Err(ControllerError::Unacceptable { message: reason });
                }
            }
            // A change of leaders ends the pause; without one, ask again less and less often.
            let _ = tokio::time::timeout(pause.min(remaining), status.changed()).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    async fn ask_once(&self, request: &ControllerRequest, deadline: Instant) -> Result<Answer, Declined> {
        let status = self.node.status();
        if status.is_leader() {
            return self.decide_here(request.clone(), deadline).await;
        }
        match status.leader_address() {
            Some((leader, address)) => calls::ask_leader(self, leader, address, request, deadline).await,
            None => Err(Declined::NotController { reason: "no leader is known".to_owned() }),
        }
    }

    /// Queues a request for the controller runtime of this node and waits for its answer.
    async fn decide_here(&self, request: ControllerRequest, deadline: Instant) -> Result<Answer, Declined> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let work = Work { request, deadline, answer };
        match tokio::time::timeout_at(deadline, self.work.send(work)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => {
                return Err(Declined::NotController { reason: "this broker is stopping".to_owned() });
            }
            Err(_) => return Err(Declined::NotController { reason: "the controller is busy".to_owned() }),
        }
        let unknown = |reason: &str| Err(Declined::Unknown { reason: reason.to_owned() });
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => unknown("the controller stopped"),
            Err(_) => unknown("the metadata quorum did not commit in time"),
        }
    }

    async fn wait_for_image(&self, log_index: u64, deadline: Instant) -> Result<(), ControllerError> {
        let mut images = self.node.images();
        let contained = images.wait_for(|image| image.log_index >= log_index);
        match tokio::time::timeout_at(deadline, contained).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ControllerError::Timeout { message: "this broker's metadata lags behind".to_owned() }),
        }
    }

    fn refused(response: &ControllerResponse) -> Option<String> {
        match response {
            ControllerResponse::Refused(error) => Some(error.message.clone()),
            _ => None,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
#[path = "service/service_test.rs"]
pub(crate) mod tests;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
#[path = "service/quorum_test.rs"]
mod quorum_tests;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
#[path = "service/rebalance_test.rs"]
mod rebalance_tests;
