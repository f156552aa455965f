//! Puts a broker together, runs it, and takes it apart again.
//!
//! Order of starting: configuration, volume, ports, metadata, logs, and clients once the quorum has granted an id. The
//! ports are taken early, so that a port in use is said before anything else begins.
//! Order of stopping: leadership moves away, clients finish their requests, logs are closed, and the metadata last, as
//! everything above reads it.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::calls::Calls;
use super::settings::{ControllerSettings, throttle_rates, topic_settings};
use super::{ClientListener, ServerContext};
use crate::api::{Api, ApiParts};
use crate::balancer::{self, BalancerOptions};
use crate::config::{self, BrokerConfig, HostPort};
use crate::fleet::{FleetClient, FleetListener, LocalNode};
use crate::health::{self, Health};
use crate::management;
use crate::metadata::MetadataHandle;
use crate::metadata::image::{BrokerId, Endpoint, MetadataImage};
use crate::metadata::raft::RaftTimings;
use crate::metadata::service::{
    BrokerFacts, BrokerState, Member, MetadataOptions, MetadataService, VoterPolicy,
};
use crate::metrics::Metrics;
use crate::metrics::durations::Durations;
use crate::replication::peers::FleetPeers;
use crate::replication::producer_state::SteadyClock;
use crate::replication::{CleanerOptions, LogCleaner, ReplicaManager, ReplicaManagerOptions};
use crate::security::tls::{self, Tls};
use crate::storage::journal::{JournalStore, JournalStoreOptions, OsDisk};
use crate::telemetry;
use crate::volume::{self, KeptSpace, Volume, VolumeError};

/// Time for leadership to move away when the broker is asked to stop.
pub(crate) const CONTROLLED_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(15);

/// Time for clients' connections to end after that.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest time between an append and the checkpoint that covers it: what a restart after a crash reads again.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);

/// Components of readiness.
const METADATA: &str = "metadata";
const STORAGE: &str = "storage";

/// Version that the broker tells others.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why a broker ended, or did not start.
#[derive(Debug)]
pub struct Failure {
    exit_code: u8,
    message: String,
}

impl Failure {
    /// A command line that cannot be carried out.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit_code: 64, message: message.into() }
    }

    /// Only another configuration or volume helps: trying again is pointless.
    fn configuration(message: impl Into<String>) -> Self {
        Self { exit_code: 78, message: message.into() }
    }

    /// A restart may help.
    fn runtime(message: impl Into<String>) -> Self {
        Self { exit_code: 1, message: message.into() }
    }

    /// Exit code of the process, in the numbers of sysexits.h: 64 usage, 78 configuration, 1 anything else.
    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }
}

/// Prints why the broker ended, for people, as the last thing on standard error.
pub fn report(failure: &Failure) {
    // Nothing is left to do if standard error is closed.
    let _ = writeln!(io::stderr(), "millrace-broker: {}", failure.message);
}

/// Error and all its sources on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Runs a broker with a configuration file until it is asked to stop or fails.
///
/// # Errors
/// Why it could not start or had to stop.
pub fn run(path: &Path) -> Result<(), Failure> {
    prepare_process()?;
    block_on(Broker::run(Arc::new(read_config(path)?), Mode::Member))
}

/// Runs one broker for one machine, which forms a quorum of its own.
///
/// # Errors
/// Why it could not start or had to stop.
pub fn run_dev(data_dir: &Path, port: u16, settings: &[String]) -> Result<(), Failure> {
    prepare_process()?;
    let config = BrokerConfig::dev_with(data_dir, port, settings)
        .map_err(|errors| Failure::configuration(config::report(&errors)))?;
    block_on(Broker::run(Arc::new(config), Mode::Alone))
}

/// Asks the broker of this configuration to give up its leadership and leave service.
///
/// # Errors
/// The broker could not be asked. Stopping it is safe all the same; only clients notice more of it.
pub fn pre_stop(path: &Path) -> Result<(), Failure> {
    prepare_process()?;
    let config = read_config(path)?;
    block_on(async move {
        let tls = load_tls(&config)?;
        management::client::controlled_shutdown(&config.fleet, tls.as_ref())
            .await
            .map_err(|error| Failure::runtime(chain(&error)))
    })
}

fn prepare_process() -> Result<(), Failure> {
    telemetry::init(&environment).map_err(|error| Failure::configuration(chain(&error)))?;
    #[cfg(all(feature = "historical-bugs", not(test)))]
    crate::bugs::make_what_is_named().map_err(Failure::usage)?;
    raise_open_files();
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| Failure::runtime("another TLS provider is installed in this process"))
}

/// Raises the limit of open files to the most that the system allows: every partition has open files, and every client
/// a connection. Programs are given a low limit for the sake of those that use select(2).
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, current = limit.current, "cannot raise the limit of open files");
    }
}

fn read_config(path: &Path) -> Result<BrokerConfig, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::configuration(format!("cannot read {}: {error}", path.display())))?;
    BrokerConfig::from_properties(&text, &environment)
        .map_err(|errors| Failure::configuration(format!("{}: {}", path.display(), config::report(&errors))))
}

fn block_on(future: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("millrace")
        .build()
        .map_err(|error| Failure::runtime(format!("cannot start threads: {error}")))?;
    runtime.block_on(future)
}

/// Where the quorum comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Somebody asks one of the brokers to form it.
    Member,
    /// This broker forms one of its own.
    Alone,
}

/// A running broker.
struct Broker {
    config: Arc<BrokerConfig>,
    mode: Mode,
    health: Health,
    volume: Arc<Volume>,
    metadata: MetadataService,
    replicas: ReplicaManager,
    cleaner: LogCleaner,
    clients: ServerContext,
    /// Ends what serves the inside: the internal listener, probes, certificate watching.
    inside: CancellationToken,
    inside_tasks: TaskTracker,
}

impl Broker {
    async fn run(config: Arc<BrokerConfig>, mode: Mode) -> Result<(), Failure> {
        // From here on a signal means an orderly stop; before, the process just ends.
        let mut stop = StopSignal::new()?;
        let (broker, listeners) = Self::start(config, mode).await?;
        let outcome = tokio::select! {
            biased;
            () = stop.received() => Ok(()),
            failure = broker.failure() => Err(failure),
            outcome = broker.serve(listeners) => outcome,
        };
        if let Err(failure) = &outcome {
            tracing::error!(error = failure.message, "stopping after a failure");
        }
        broker.stop(outcome.is_ok()).await;
        outcome
    }

    async fn start(config: Arc<BrokerConfig>, mode: Mode) -> Result<(Self, Vec<ClientListener>), Failure> {
        let volume = open_volume(&config).await?;
        let tls = load_tls(&config)?;
        let (listeners, endpoints) = bind_clients(&config).await?;
        let fleet = FleetListener::bind(&config.fleet.bind.to_string(), tls.clone())
            .await
            .map_err(|error| Failure::runtime(chain(&error)))?;
        let fleet_port = fleet.local_address().map_err(|error| Failure::runtime(chain(&error)))?.port();
        let metrics = Metrics::new();
        let health = Health::new([METADATA, STORAGE]);
        let (inside, inside_tasks) = (CancellationToken::new(), TaskTracker::new());
        if let Some(address) = &config.health {
            let listener = bind_health(address).await?;
            let (health, metrics, stop) = (health.clone(), metrics.clone(), inside.clone());
            inside_tasks.spawn(async move {
                if let Err(error) = health::serve(listener, health, metrics, stop).await {
                    tracing::error!(%error, "probes and metrics are no longer served");
                }
            });
        }

        let local = LocalNode { cluster_id: volume.cluster_id(), node_id: volume.raft_node_id() };
        let address = with_port(&config.fleet.advertised, fleet_port).to_string();
        let facts = BrokerFacts {
            wanted_id: Some(config.requested_broker_id),
            endpoints,
            rack: config.rack.clone(),
            version: VERSION.to_owned(),
            min_insync_replicas: i32::try_from(config.min_insync_replicas).unwrap_or(i32::MAX),
        };
        let mut options =
            MetadataOptions::new(address, facts, Arc::new(ControllerSettings::new(Arc::clone(&config))));
        options.bootstrap_servers = config.quorum_bootstrap_servers.iter().map(HostPort::to_string).collect();
        options.session_timeout = config.session_timeout;
        options.heartbeat_interval = config.heartbeat_interval;
        options.timings = RaftTimings::within(config.quorum.fetch_timeout);
        options.snapshot_every = config.quorum.snapshot_interval;
        options.leader_rebalance_interval = config.leader_rebalance_interval;
        options.voters = VoterPolicy {
            count: config.quorum.voters,
            replacement_delay: config.quorum.voter_replacement_delay,
        };
        let client = FleetClient::new(local, tls.clone());
        let replica_client = FleetClient::new(local, tls.clone());
        let volume_uuid = volume.volume_uuid();
        let volume_path = volume.path().to_path_buf();
        let volume = Arc::new(volume);
        let kept_space = volume.kept_space();
        inside_tasks.spawn(volume::watch_kept_space(Arc::clone(&kept_space), inside.clone()));
        let metadata = MetadataService::start(options, Arc::clone(&volume), client)
            .await
            .map_err(|error| Failure::configuration(chain(&error)))?;
        if let Some(tls) = tls {
            inside_tasks.spawn(tls.watch(tls::RELOAD_INTERVAL, inside.clone()));
        }
        let calls = Arc::new(Calls::new(metadata.call_handler()));
        let balancer = BalancerOptions::new(&config.balance);
        let router = management::router(metadata.member(), calls.replicas(), balancer);
        inside_tasks.spawn(fleet.serve(local, Arc::clone(&calls) as _, router, inside.clone()));
        if mode == Mode::Alone {
            metadata.bootstrap_single().await.map_err(|error| Failure::runtime(chain(&error)))?;
        }

        let peers = FleetPeers::new(replica_client, metadata.handle(), metadata.broker_state());
        let store = (open_store(&config, volume_path, volume_uuid, kept_space).await?, volume_uuid);
        let produce_times = metrics.produce_times();
        let replicas =
            start_replicas(&config, &metadata, store, peers, produce_times, &inside_tasks, &inside);
        calls.serve_followers(replicas.clone());
        let cleaner = start_cleaner(&config, &replicas, &metrics);
        let balancing = balancer::run(metadata.member(), replicas.clone(), balancer, inside.clone());
        inside_tasks.spawn(balancing);
        let clients = ServerContext::new(config.connections.clone(), metrics, CancellationToken::new());
        inside_tasks.spawn(watch_health(
            health.clone(),
            metadata.broker_state(),
            replicas.clone(),
            metadata.handle(),
            inside.clone(),
        ));
        let broker =
            Self { config, mode, health, volume, metadata, replicas, cleaner, clients, inside, inside_tasks };
        Ok((broker, listeners))
    }

    /// Serves clients once the quorum has granted a broker id; never returns but by an error.
    async fn serve(&self, listeners: Vec<ClientListener>) -> Result<(), Failure> {
        let broker_id = granted_id(self.metadata.broker_state()).await?;
        let api = Api::new(ApiParts {
            broker_id,
            config: Arc::clone(&self.config),
            metadata: self.metadata.handle(),
            replicas: self.replicas.clone(),
            metrics: self.clients.metrics.clone(),
            tasks: self.clients.tasks.clone(),
        });
        let port = listeners.first().and_then(|listener| listener.port().ok());
        for listener in listeners {
            self.clients.tasks.spawn(listener.run(api.clone(), self.clients.clone()));
        }
        tracing::info!(broker_id, "serving clients");
        if self.mode == Mode::Alone {
            self.announce(port).await;
        }
        std::future::pending().await
    }

    /// Says on standard output where Kafka answers, once it does.
    async fn announce(&self, port: Option<u16>) {
        let mut state = self.metadata.broker_state();
        if state.wait_for(|state| state.in_service).await.is_err() {
            return;
        }
        let data_dir = self.config.data_dir.display();
        // Standard output may be closed; the broker serves all the same.
        let _ = writeln!(
            io::stdout(),
            "Kafka answers on localhost:{}; data in {data_dir}",
            port.unwrap_or_default()
        );
    }

    /// Resolves when something is broken that only a restart can repair.
    async fn failure(&self) -> Failure {
        let mut storage = self.replicas.storage_failure();
        let reason = tokio::select! {
            biased;
            reason = self.metadata.failure() => format!("metadata: {reason}"),
            Ok(failed) = storage.wait_for(Option::is_some) => {
                let reason = failed.as_ref().map(|failure| failure.to_string()).unwrap_or_default();
                format!("storage: {reason}")
            }
        };
        self.health.fail("broker", reason.clone());
        if storage.borrow().is_some() {
            let marked = mark(&self.volume, Volume::set_lost, "what this run may have lost");
            if tokio::time::timeout(DRAIN_TIMEOUT, marked).await.is_err() {
                tracing::warn!("the volume does not answer");
            }
        }
        Failure::runtime(reason)
    }

    async fn stop(self, orderly: bool) {
        self.health.not_ready(METADATA, "the broker is stopping");
        if orderly && self.mode == Mode::Member && self.config.controlled_shutdown {
            let member: Member = self.metadata.member();
            if let Err(error) = member.controlled_shutdown(CONTROLLED_SHUTDOWN_TIMEOUT).await {
                tracing::warn!(%error, "stopping without having given up leadership");
            }
        }
        self.clients.stop.cancel();
        self.clients.tasks.close();
        if tokio::time::timeout(DRAIN_TIMEOUT, self.clients.tasks.wait()).await.is_err() {
            tracing::warn!(open = self.clients.tasks.len(), "connections did not end in time");
        }
        self.cleaner.stop().await;
        self.replicas.shutdown().await;
        self.inside.cancel();
        self.inside_tasks.close();
        if tokio::time::timeout(DRAIN_TIMEOUT, self.inside_tasks.wait()).await.is_err() {
            tracing::warn!(open = self.inside_tasks.len(), "internal tasks did not end in time");
        }
        let intact = self.replicas.storage_failure().borrow().is_none();
        self.metadata.stop().await;
        if orderly && intact {
            // Without that the next boot of the machine counts as a loss.
            mark(&self.volume, Volume::set_stopped, "that this broker has stopped in order").await;
        }
        tracing::info!("stopped");
    }
}

/// Has the volume remember something for the next run.
async fn mark(volume: &Arc<Volume>, remember: fn(&Volume) -> Result<(), VolumeError>, what: &'static str) {
    let volume = Arc::clone(volume);
    let marked = tokio::task::spawn_blocking(move || remember(&volume)).await;
    let problem = match marked {
        Ok(Ok(())) => return,
        Ok(Err(error)) => chain(&error),
        Err(error) => error.to_string(),
    };
    tracing::warn!(error = problem, "the volume does not tell {what}");
}

async fn open_volume(config: &BrokerConfig) -> Result<Volume, Failure> {
    let (directory, cluster_id) = (config.data_dir.clone(), config.cluster_id);
    let opened = tokio::task::spawn_blocking(move || Volume::open_or_format(&directory, cluster_id)).await;
    opened
        .map_err(|error| Failure::runtime(format!("opening the volume: {error}")))?
        .map_err(|error| Failure::configuration(chain(&error)))
}

fn load_tls(config: &BrokerConfig) -> Result<Option<Tls>, Failure> {
    let Some(files) = &config.fleet.tls else { return Ok(None) };
    Tls::load(files.clone()).map(Some).map_err(|error| Failure::configuration(chain(&error)))
}

async fn bind_clients(config: &BrokerConfig) -> Result<(Vec<ClientListener>, Vec<Endpoint>), Failure> {
    let (mut listeners, mut endpoints) = (Vec::new(), Vec::new());
    for listener in &config.listeners {
        let bound = ClientListener::bind(listener, config.connections.listen_backlog)
            .await
            .map_err(|error| Failure::runtime(chain(&error)))?;
        let port = bound.port().map_err(|error| Failure::runtime(chain(&error)))?;
        let advertised = with_port(&listener.advertised, port);
        endpoints.push(Endpoint {
            listener: listener.name.clone(),
            host: advertised.host,
            port: advertised.port,
            security_protocol: listener.security_protocol.clone(),
        });
        listeners.push(bound);
    }
    Ok((listeners, endpoints))
}

async fn bind_health(address: &HostPort) -> Result<TcpListener, Failure> {
    TcpListener::bind(address.bind_address())
        .await
        .map_err(|error| Failure::runtime(format!("health.listener cannot listen on {address}: {error}")))
}

/// The address with the port that was bound, where it leaves that open.
fn with_port(address: &HostPort, port: u16) -> HostPort {
    HostPort { host: address.host.clone(), port: if address.port == 0 { port } else { address.port } }
}

async fn open_store(
    config: &BrokerConfig,
    volume_path: PathBuf,
    volume_uuid: Uuid,
    kept_space: Arc<KeptSpace>,
) -> Result<JournalStore, Failure> {
    let options = JournalStoreOptions {
        segment_bytes: config.journal_segment_bytes,
        tail_cache_bytes: config.journal_tail_cache_bytes,
        disk: Arc::new(OsDisk::with_kept_space(kept_space)),
        ..JournalStoreOptions::default()
    };
    let open = move || JournalStore::open(&volume_path, volume_uuid, options);
    tokio::task::spawn_blocking(open)
        .await
        .map_err(|error| Failure::runtime(format!("opening the record store: {error}")))?
        .map_err(|error| Failure::runtime(chain(&error)))
}

fn start_replicas(
    config: &Arc<BrokerConfig>,
    metadata: &MetadataService,
    (store, volume_uuid): (JournalStore, Uuid),
    peers: FleetPeers,
    produce_times: Durations,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> ReplicaManager {
    let (caught_up, is_caught_up) = watch::channel(false);
    tasks.spawn(watch_registration(metadata.handle(), metadata.broker_state(), caught_up, stop.clone()));
    let (settings_config, rates_config) = (Arc::clone(config), Arc::clone(config));
    let state = metadata.broker_state();
    ReplicaManager::start(ReplicaManagerOptions {
        store: Arc::new(store),
        volume_uuid,
        images: metadata.handle().subscribe(),
        caught_up: is_caught_up,
        topic_settings: Arc::new(move |image, topic| topic_settings(&settings_config, image, topic)),
        throttle_rates: Arc::new(move |image| throttle_rates(&rates_config, image, volume_uuid)),
        peers: Arc::new(peers),
        rack_aware_reads: config.replica_fetch.rack_aware_reads,
        replica_lag: config.replica_fetch.lag,
        replica_fetch_wait: config.replica_fetch.wait,
        replica_fetch_bytes: config.replica_fetch.max_bytes,
        clock: Arc::new(unix_time_ms),
        steady_clock: SteadyClock::of_machine(),
        is_confirmed: Arc::new(move |applied_index| {
            state.borrow().is_confirmed(tokio::time::Instant::now(), applied_index)
        }),
        retention_check_interval: config.retention_check_interval,
        checkpoint_interval: CHECKPOINT_INTERVAL,
        produce_times,
        producer_id_expiration: config.producer_id_expiration,
    })
}

fn start_cleaner(config: &BrokerConfig, replicas: &ReplicaManager, metrics: &Metrics) -> LogCleaner {
    let options = CleanerOptions {
        threads: config.cleaner.threads,
        backoff: config.cleaner.backoff,
        dedupe_buffer_bytes: config.cleaner.dedupe_buffer_bytes,
        io_max_bytes_per_second: config.cleaner.io_max_bytes_per_second,
        clock: Arc::new(unix_time_ms),
    };
    LogCleaner::start(replicas.clone(), options, metrics.cleaner())
}

fn unix_time_ms() -> i64 {
    // A clock before 1970 is as wrong as one at 1970.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Says once that the image holds this broker's latest registration: what it leads before may have changed hands.
pub(crate) async fn watch_registration(
    metadata: MetadataHandle,
    mut state: watch::Receiver<BrokerState>,
    caught_up: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let contained = async {
        let registered =
            state.wait_for(|state| state.broker_id.is_some() && state.broker_epoch.is_some()).await;
        let (broker_id, broker_epoch) = registered.ok().map(|state| (state.broker_id, state.broker_epoch))?;
        let mut images = metadata.subscribe();
        let contains = |image: &Arc<MetadataImage>| {
            let broker = broker_id.and_then(|broker_id| image.brokers.get(&broker_id));
            broker.is_some_and(|broker| Some(broker.broker_epoch) >= broker_epoch)
        };
        images.wait_for(contains).await.ok().map(drop)
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        Some(()) = contained => {
            caught_up.send_replace(true);
            // A receiver whose sender is gone takes that for the end.
            stop.cancelled().await;
        }
    }
}

async fn granted_id(mut state: watch::Receiver<BrokerState>) -> Result<BrokerId, Failure> {
    let granted = state.wait_for(|state| state.broker_id.is_some() && state.broker_epoch.is_some()).await;
    granted
        .ok()
        .and_then(|state| state.broker_id)
        .ok_or_else(|| Failure::runtime("the metadata service ended before the broker was registered"))
}

/// Keeps readiness what it is: in service, and leading what the metadata says.
async fn watch_health(
    health: Health,
    mut state: watch::Receiver<BrokerState>,
    replicas: ReplicaManager,
    metadata: MetadataHandle,
    stop: CancellationToken,
) {
    let mut applied = replicas.applied();
    let started_at = metadata.image().log_index;
    loop {
        let current = state.borrow_and_update().clone();
        match (current.in_service, current.problem) {
            (true, _) => health.ready(METADATA),
            (false, Some(problem)) => health.not_ready(METADATA, problem),
            (false, None) => health.not_ready(METADATA, "the broker is not registered yet"),
        }
        if *applied.borrow_and_update() >= started_at.max(1) {
            health.ready(STORAGE);
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = state.changed() => if changed.is_err() { return },
            changed = applied.changed() => if changed.is_err() { return },
        }
    }
}

/// SIGTERM and SIGINT.
struct StopSignal {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignal {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::runtime(format!("cannot wait for signals: {error}")))
        };
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
