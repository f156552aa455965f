//! One simulated machine: a broker as it is, on simulated disks, a simulated network and a clock of its own.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use futures::FutureExt as _;
use millrace_management::kafka_uuid;
use millrace_protocol::frame::{self, RequestFrame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::drive::Drive;
use super::plan::Plan;
use crate::api::{Api, ApiParts, ClientConnection, Outcome};
use crate::config::BrokerConfig;
use crate::fleet::{FleetClient, FleetListener, LocalNode};
use crate::metadata::MetadataHandle;
use crate::metadata::image::Endpoint;
use crate::metadata::raft::RaftTimings;
use crate::metadata::raft::sim_disk::SimRaftDisk;
use crate::metadata::service::{
    BrokerFacts, BrokerState, Member, MetadataOptions, MetadataService, VoterPolicy,
};
use crate::metrics::Metrics;
use crate::metrics::durations::Durations;
use crate::replication::peers::FleetPeers;
use crate::replication::producer_state::SteadyClock;
use crate::replication::{ReplicaManager, ReplicaManagerOptions, ThrottleRates};
use crate::server::calls::Calls;
use crate::server::settings::{ControllerSettings, topic_settings};
use crate::server::start::{CONTROLLED_SHUTDOWN_TIMEOUT, watch_registration};
use crate::storage::sim_store::{Platter, SimStore};
use crate::volume::Volume;

const CLUSTER: Uuid = Uuid::from_u128(0xc1);
const FLEET_PORT: u16 = 9093;
pub(super) const CLIENT_PORT: u16 = 9092;
const LISTENER: &str = "CLIENT";

/// Largest request that is read.
const MAX_REQUEST: usize = 1 << 20;

/// Name of a machine in the simulated network.
pub(super) fn host(number: usize) -> String {
    format!("broker-{number}")
}

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Power {
    /// The broker runs.
    On,
    /// The machine is up, and no process of the broker is there.
    NoProcess,
    /// The machine is down.
    Off,
}

/// See the module documentation.
pub(super) struct Machine {
    pub(super) number: usize,
    directory: PathBuf,
    plan: Rc<Plan>,
    pub(super) drive: Arc<Drive>,
    /// Milliseconds that its clock is ahead.
    clock: Arc<AtomicI64>,
    pub(super) power: Cell<Power>,
    platter: RefCell<Arc<Platter>>,
    raft: RefCell<Arc<SimRaftDisk>>,
    volume_uuid: Cell<Uuid>,
    running: RefCell<Option<Running>>,
    /// Broker epoch with which records that are only written may have been lost.
    pub(super) lost_with: Cell<Option<i64>>,
    last_epoch: Cell<Option<i64>>,
    /// How often the broker was started.
    runs: Cell<u64>,
    bootstrap: RefCell<Option<std::collections::BTreeMap<u64, String>>>,
    /// Why the process has ended by itself.
    pub(super) failure: RefCell<Option<String>>,
    /// Asks the process to stop.
    stop: Notify,
    /// Whether the process has stopped because it was asked to, and is to be ended.
    pub(super) has_stopped: Cell<bool>,
}

/// How a process ends by itself.
enum End {
    /// Something that it cannot go on without has failed.
    Failed(String),
    /// It was asked to.
    Stopped,
}

/// What can be seen of a broker that runs.
#[derive(Clone)]
pub(super) struct Running {
    /// Which run of the broker it is.
    pub(super) run: u64,
    pub(super) metadata: MetadataHandle,
    pub(super) member: Member,
    pub(super) replicas: ReplicaManager,
    pub(super) state: watch::Receiver<BrokerState>,
}

impl Machine {
    /// A machine with an empty volume.
    pub(super) fn new(number: usize, folder: &Path, plan: Rc<Plan>) -> std::io::Result<Rc<Self>> {
        let directory = folder.join(host(number));
        let drive = Arc::new(Drive::new(plan.seed.wrapping_mul(31).wrapping_add(number as u64)));
        let raft = SimRaftDisk::insert(&directory.join("raft"), Arc::clone(&drive));
        let machine = Rc::new(Self {
            number,
            directory,
            plan,
            drive,
            clock: Arc::default(),
            power: Cell::new(Power::NoProcess),
            platter: RefCell::default(),
            raft: RefCell::new(raft),
            volume_uuid: Cell::new(Uuid::nil()),
            running: RefCell::new(None),
            lost_with: Cell::new(None),
            last_epoch: Cell::new(None),
            runs: Cell::new(0),
            bootstrap: RefCell::new(None),
            failure: RefCell::new(None),
            stop: Notify::new(),
            has_stopped: Cell::new(false),
        });
        machine.format()?;
        Ok(machine)
    }

    fn format(&self) -> std::io::Result<()> {
        let volume = Volume::open_or_format(&self.directory, CLUSTER).map_err(std::io::Error::other)?;
        self.volume_uuid.set(volume.volume_uuid());
        Ok(())
    }

    /// Node id in the quorum and address, to form the first quorum.
    pub(super) fn voter(&self) -> std::io::Result<(u64, String)> {
        let volume = Volume::open_or_format(&self.directory, CLUSTER).map_err(std::io::Error::other)?;
        Ok((volume.raft_node_id(), format!("{}:{FLEET_PORT}", host(self.number))))
    }

    /// Forms the quorum of these when the broker starts for the first time.
    pub(super) fn bootstrap(&self, voters: std::collections::BTreeMap<u64, String>) {
        *self.bootstrap.borrow_mut() = Some(voters);
    }

    pub(super) fn volume_uuid(&self) -> Uuid {
        self.volume_uuid.get()
    }

    pub(super) fn platter(&self) -> Arc<Platter> {
        Arc::clone(&self.platter.borrow())
    }

    /// The broker, if it runs.
    pub(super) fn running(&self) -> Option<Running> {
        self.running.borrow().clone()
    }

    pub(super) fn set_clock(&self, ahead_ms: i64) {
        self.clock.store(ahead_ms, Ordering::Relaxed);
    }

    /// Takes note of the registration of a process that is about to end.
    fn forget_running(&self) {
        let running = self.running.borrow_mut().take();
        if let Some(epoch) = running.and_then(|running| running.state.borrow().broker_epoch) {
            self.last_epoch.set(Some(epoch));
        }
    }

    /// Asks the process to stop in good order; `has_stopped` tells when it has.
    pub(super) fn ask_to_stop(&self) {
        self.stop.notify_one();
    }

    /// To be called before the process is ended.
    pub(super) fn process_ends(&self) {
        self.raft.borrow().process_ends();
        self.forget_running();
        self.has_stopped.set(false);
        self.power.set(Power::NoProcess);
    }

    /// To be called before the machine is stopped: what was not synced is lost.
    pub(super) fn power_fails(&self) -> std::io::Result<()> {
        self.forget_running();
        if self.plan.written {
            self.lost_with.set(self.last_epoch.get());
        }
        self.raft.borrow().power_fails();
        self.platter().power_fails(&self.drive);
        self.power.set(Power::Off);
        // The next start is in another boot of the machine.
        let run = self.directory.join("run.properties");
        let Ok(text) = std::fs::read_to_string(&run) else { return Ok(()) };
        let lines =
            text.lines().map(|line| if line.starts_with("boot.id=") { "boot.id=before" } else { line });
        std::fs::write(run, lines.map(|line| format!("{line}\n")).collect::<String>())
    }

    /// The volume is lost while the machine is down; it starts with another one.
    pub(super) fn wipe(&self) -> std::io::Result<()> {
        std::fs::remove_dir_all(&self.directory)?;
        *self.platter.borrow_mut() = Arc::default();
        *self.raft.borrow_mut() = SimRaftDisk::insert(&self.directory.join("raft"), Arc::clone(&self.drive));
        self.format()
    }

    /// What runs on the machine.
    pub(super) async fn software(self: Rc<Self>) -> turmoil::Result {
        if self.power.get() != Power::On {
            return std::future::pending().await;
        }
        let failure = match self.run_broker().await {
            Ok(End::Failed(reason)) => Some(reason),
            Ok(End::Stopped) => None,
            Err(error) => Some(error.to_string()),
        };
        self.has_stopped.set(failure.is_none());
        *self.failure.borrow_mut() = failure;
        std::future::pending().await
    }

    fn config(&self) -> Result<BrokerConfig, Box<dyn std::error::Error>> {
        let own = host(self.number);
        let quorum: Vec<String> =
            (0..self.plan.machines).map(|number| format!("{}:{FLEET_PORT}", host(number))).collect();
        let listeners = format!("{LISTENER}://{own}:{CLIENT_PORT},FLEET://{own}:{FLEET_PORT}");
        let text = format!(
            "cluster.id={}\nnode.id={}\nlog.dirs={}\nlisteners={listeners}\n\
             advertised.listeners={listeners}\n\
             listener.security.protocol.map=CLIENT:PLAINTEXT,FLEET:PLAINTEXT\n\
             inter.broker.listener.name=FLEET\ncontroller.quorum.bootstrap.servers={}\n\
             min.insync.replicas={}\nlog.retention.ms=-1\nlog.durability={}\n",
            kafka_uuid::format(CLUSTER),
            self.number,
            self.directory.display(),
            quorum.join(","),
            self.plan.min_insync_replicas,
            if self.plan.written { "written" } else { "fsync" },
        );
        BrokerConfig::from_properties(&text, &|_| None)
            .map_err(|errors| crate::config::report(&errors).into())
    }

    /// As `server::start` puts a broker together.
    async fn run_broker(&self) -> Result<End, Box<dyn std::error::Error>> {
        let config = Arc::new(self.config()?);
        let volume = Arc::new(Volume::open_or_format(&self.directory, CLUSTER)?);
        let fleet = FleetListener::bind(&format!("0.0.0.0:{FLEET_PORT}"), None).await?;
        let local = LocalNode { cluster_id: volume.cluster_id(), node_id: volume.raft_node_id() };
        let endpoint = Endpoint {
            listener: LISTENER.to_owned(),
            host: host(self.number),
            port: CLIENT_PORT,
            security_protocol: "PLAINTEXT".to_owned(),
        };
        let facts = BrokerFacts {
            wanted_id: Some(config.requested_broker_id),
            endpoints: vec![endpoint],
            rack: None,
            version: "simulated".to_owned(),
            min_insync_replicas: i32::try_from(config.min_insync_replicas)?,
        };
        let address = format!("{}:{FLEET_PORT}", host(self.number));
        let settings = Arc::new(ControllerSettings::new(Arc::clone(&config)));
        let options = MetadataOptions {
            bootstrap_servers: config.quorum_bootstrap_servers.iter().map(|it| it.to_string()).collect(),
            session_timeout: Duration::from_millis(3_000),
            heartbeat_interval: Duration::from_millis(500),
            timings: RaftTimings::within(Duration::from_millis(900)),
            snapshot_every: self.plan.snapshot_every,
            leader_rebalance_interval: Some(Duration::from_secs(4)),
            voters: VoterPolicy { count: None, replacement_delay: Duration::from_secs(6) },
            ..MetadataOptions::new(address, facts, settings)
        };
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (client, replica_client) = (FleetClient::new(local, None), FleetClient::new(local, None));
        let metadata = MetadataService::start(options, Arc::clone(&volume), client).await?;
        let calls = Arc::new(Calls::new(metadata.call_handler()));
        tokio::spawn(fleet.serve(local, Arc::clone(&calls) as _, axum::Router::new(), cancel.clone()));
        let replicas = self.start_replicas(&config, &volume, &metadata, replica_client, &cancel);
        calls.serve_followers(replicas.clone());
        self.runs.update(|runs| runs + 1);
        *self.running.borrow_mut() = Some(Running {
            run: self.runs.get(),
            metadata: metadata.handle(),
            member: metadata.member(),
            replicas: replicas.clone(),
            state: metadata.broker_state(),
        });
        let voters = self.bootstrap.borrow_mut().take();
        if let Some(voters) = voters {
            // Every one of them is asked again by the operator until it has worked; here they are there by then.
            tokio::time::sleep(Duration::from_millis(100)).await;
            metadata.member().bootstrap(voters).await?;
        }
        let serving = async {
            let mut state = metadata.broker_state();
            let granted = state.wait_for(|it| it.broker_id.is_some() && it.broker_epoch.is_some()).await;
            let Some(broker_id) = granted.ok().and_then(|state| state.broker_id) else { return };
            let api = Api::new(ApiParts {
                broker_id,
                config: Arc::clone(&config),
                metadata: metadata.handle(),
                replicas: replicas.clone(),
                metrics: Metrics::new(),
                tasks: tasks.clone(),
            });
            serve_clients(api).await;
        };
        // What an earlier process was asked does not count.
        let _ = self.stop.notified().now_or_never();
        let stopping = async {
            self.stop.notified().await;
            // What it cannot give up in time, it gives up by ending.
            let _ = metadata.member().controlled_shutdown(CONTROLLED_SHUTDOWN_TIMEOUT).await;
        };
        tokio::select! {
            biased;
            reason = metadata.failure() => Ok(End::Failed(reason)),
            () = serving => Ok(End::Failed("the listener for clients has ended".to_owned())),
            () = stopping => Ok(End::Stopped),
        }
    }

    fn start_replicas(
        &self,
        config: &Arc<BrokerConfig>,
        volume: &Volume,
        metadata: &MetadataService,
        client: FleetClient,
        cancel: &CancellationToken,
    ) -> ReplicaManager {
        let store = SimStore::open(self.platter(), Arc::clone(&self.drive));
        tokio::spawn(store.run());
        let (caught_up, is_caught_up) = watch::channel(false);
        let state = metadata.broker_state();
        tokio::spawn(watch_registration(metadata.handle(), state, caught_up, cancel.clone()));
        let settings_config = Arc::clone(config);
        let clock = Arc::clone(&self.clock);
        let state = metadata.broker_state();
        ReplicaManager::start(ReplicaManagerOptions {
            store: Arc::new(store),
            volume_uuid: volume.volume_uuid(),
            images: metadata.handle().subscribe(),
            caught_up: is_caught_up,
            topic_settings: Arc::new(move |image, topic| topic_settings(&settings_config, image, topic)),
            throttle_rates: Arc::new(|_image| ThrottleRates::default()),
            produce_times: Durations::default(),
            peers: Arc::new(FleetPeers::new(client, metadata.handle(), metadata.broker_state())),
            rack_aware_reads: false,
            replica_lag: Duration::from_millis(2_500),
            replica_fetch_wait: Duration::from_millis(400),
            replica_fetch_bytes: 1 << 20,
            clock: Arc::new(move || time_ms() + clock.load(Ordering::Relaxed)),
            steady_clock: SteadyClock::of_machine(),
            is_confirmed: Arc::new(move |applied_index| {
                state.borrow().is_confirmed(tokio::time::Instant::now(), applied_index)
            }),
            retention_check_interval: Duration::from_secs(10),
            checkpoint_interval: Duration::from_secs(5),
            producer_id_expiration: Duration::from_secs(86_400),
        })
    }
}

/// The simulated time of day.
pub(super) fn time_ms() -> i64 {
    let since = turmoil::since_epoch().unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

async fn serve_clients(api: Api) {
    let Ok(listener) = turmoil::net::TcpListener::bind(("0.0.0.0", CLIENT_PORT)).await else { return };
    while let Ok((stream, peer)) = listener.accept().await {
        let client = ClientConnection { listener: LISTENER.into(), peer, software: None };
        let api = api.clone();
        tokio::spawn(async move {
            // Whatever ends the connection, the client notices.
            let _ = serve_client(stream, client, api).await;
        });
    }
}

/// Requests of one client, one after another.
async fn serve_client(
    mut stream: turmoil::net::TcpStream,
    mut client: ClientConnection,
    api: Api,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut input = BytesMut::new();
    loop {
        let Some(frame) = frame::split(&mut input, MAX_REQUEST)? else {
            if stream.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let mut outcome = api.handle(&mut client, RequestFrame::parse(frame)?).await;
        if let Outcome::Later(later) = outcome {
            outcome = later.await;
        }
        match outcome {
            Outcome::Respond(pieces) => {
                for piece in pieces {
                    stream.write_all(&piece).await?;
                }
            }
            Outcome::Nothing => {}
            Outcome::Close(_) | Outcome::Later(_) => return Ok(()),
        }
    }
}
