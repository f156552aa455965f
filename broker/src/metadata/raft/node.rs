//! This broker's member of the metadata quorum.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use openraft::errors::{ClientWriteError, InitializeError, RaftError};
use openraft::{Config, Raft, ReadPolicy, SnapshotPolicy};
use parking_lot::Mutex;
use tokio::sync::watch;
use uuid::Uuid;

use super::codec::{self, CodecError};
use super::log_store::{Closer, LogEnd, LogStore, MAX_ENTRY_BYTES};
use super::network::Network;
use super::state_machine::StateMachine;
use super::status::{QuorumStatus, watch_status};
use super::succession::LeaderOfTerm;
use super::transfers::Transfer;
use super::types::{Applied, Command, Node, TypeConfig};
use crate::fleet::{Failure, FailureKind, FleetClient, Method};
use crate::metadata::image::MetadataImage;
use crate::metadata::records::Record;
use crate::volume::KeptSpace;

pub(super) type MetadataRaft = Raft<TypeConfig, StateMachine>;

/// How long a new leader waits for a majority to confirm it.
const BARRIER_TIMEOUT: Duration = Duration::from_secs(5);

/// Timing of elections. A heartbeat must fit several times into an election timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftTimings {
    /// Shortest time without a leader after which a node stands for election.
    pub election_timeout_min: Duration,
    /// Longest one; nodes choose at random in between.
    pub election_timeout_max: Duration,
    /// Time between the leader's heartbeats.
    pub heartbeat_interval: Duration,
}

impl RaftTimings {
    /// Elections after at least this silence of the leader, and at most half as much again, which is also how long
    /// its lease runs. A heartbeat fits six times.
    pub fn within(silence: Duration) -> Self {
        Self {
            election_timeout_min: silence,
            election_timeout_max: silence * 3 / 2,
            heartbeat_interval: silence / 6,
        }
    }
}

impl Default for RaftTimings {
    /// Generous, for slow disks and busy machines.
    fn default() -> Self {
        Self::within(Duration::from_secs(2))
    }
}

/// What a member needs to start.
#[derive(Clone, Debug)]
pub struct RaftOptions {
    /// Directory of its log; made if absent.
    pub directory: PathBuf,
    /// Space that the volume with that directory keeps.
    pub kept_space: Arc<KeptSpace>,
    /// Its node id.
    pub node_id: u64,
    /// The cluster.
    pub cluster_id: Uuid,
    /// How it reaches the others.
    pub client: FleetClient,
    /// Timing of elections.
    pub timings: RaftTimings,
    /// Entries after which a snapshot is written and the log before it dropped.
    pub snapshot_every: u64,
}

/// The member cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its log cannot be opened or does not make sense.
    #[error("cannot open the metadata log in {directory}")]
    Storage {
        /// Where it is.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// openraft refuses the settings or the state found.
    #[error("cannot start the metadata quorum member: {0}")]
    Raft(String),
}

/// The quorum was not formed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BootstrapError {
    /// This node is not one of the voters.
    #[error("this node ({node_id}) is not one of the voters")]
    NotAVoter {
        /// This node.
        node_id: u64,
    },
    /// The node belongs to a quorum with other members.
    #[error("this node belongs to a quorum whose members are {members:?}")]
    AlreadyMember {
        /// Its members.
        members: BTreeSet<u64>,
    },
    /// The member has failed or is stopping.
    #[error("the metadata quorum member has stopped: {0}")]
    Stopped(String),
}

/// Records were not committed, or it is not known whether they were.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Not the leader, or not the one that decided: nothing was changed.
    #[error("this node does not lead the metadata quorum")]
    NotLeader,
    /// The leadership ended before the entry was committed; the next leader may have it or not.
    #[error(
        "leadership of the metadata quorum ended before the change was committed; it may or may not take effect"
    )]
    Unknown,
    /// More than an entry may hold. Nothing was changed.
    #[error(
        "a change of {bytes} bytes is more than one entry of the metadata log may hold; ask for less at a time"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The member has failed or is stopping.
    #[error("the metadata quorum member has stopped: {0}")]
    Stopped(String),
}

/// See the module documentation.
pub struct RaftNode {
    pub(super) raft: MetadataRaft,
    image: Arc<ArcSwap<MetadataImage>>,
    images: watch::Receiver<Arc<MetadataImage>>,
    status: watch::Receiver<QuorumStatus>,
    failure: watch::Receiver<Option<String>>,
    pub(super) log_end: LogEnd,
    /// Leader that this node does not recognise any more, as its process is gone.
    pub(super) renounced: Mutex<Option<LeaderOfTerm>>,
    pub(super) transfers: Mutex<HashMap<u64, Transfer>>,
    closer: Mutex<Option<Closer>>,
    pub(super) node_id: u64,
}

impl std::fmt::Debug for RaftNode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RaftNode").field("node_id", &self.node_id).finish_non_exhaustive()
    }
}

impl RaftNode {
    /// Opens the log, replays what was committed, and takes part in the quorum, if there is one.
    pub async fn start(options: RaftOptions) -> Result<Self, StartError> {
        let (directory, kept_space) = (options.directory.clone(), Arc::clone(&options.kept_space));
        let cluster_id = options.cluster_id;
        let open = move || open(&directory, kept_space, cluster_id);
        let opened = crate::blocking::spawn_blocking(open).await;
        let storage = |source| StartError::Storage { directory: options.directory.clone(), source };
        let (store, closer, machine) =
            opened.map_err(|error| storage(io::Error::other(error)))?.map_err(storage)?;
        let publisher = machine.publisher();
        let log_end = store.log_end();
        let config = config(&options).map_err(StartError::Raft)?;
        let network = Network::new(options.client.clone());
        let raft = MetadataRaft::new(options.node_id, Arc::new(config), network, store, machine)
            .await
            .map_err(|fatal| StartError::Raft(fatal.to_string()))?;
        let (status, failure) = watch_status(&raft, options.node_id);
        let node = Self {
            raft,
            image: publisher.current,
            images: publisher.changes.subscribe(),
            status,
            failure,
            log_end,
            renounced: Mutex::default(),
            transfers: Mutex::default(),
            closer: Mutex::new(Some(closer)),
            node_id: options.node_id,
        };
        node.elect_at_once_if_alone().await;
        Ok(node)
    }

    /// The newest image.
    pub fn image(&self) -> Arc<MetadataImage> {
        self.image.load_full()
    }

    /// Every newest image from now on; images in between may be left out.
    pub fn images(&self) -> watch::Receiver<Arc<MetadataImage>> {
        self.images.clone()
    }

    /// The quorum now.
    pub fn status(&self) -> QuorumStatus {
        self.status.borrow().clone()
    }

    /// The quorum, as it changes.
    pub fn watch_status(&self) -> watch::Receiver<QuorumStatus> {
        self.status.clone()
    }

    /// Resolves when the member has failed, with the reason. The process cannot go on then.
    pub async fn failure(&self) -> String {
        let mut failure = self.failure.clone();
        let reason = failure.wait_for(Option::is_some).await.map(|reason| reason.clone());
        match reason {
            Ok(Some(reason)) => reason,
            // Stopped on purpose: there is no failure to wait for.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Forms the quorum with these voters. Succeeds as well when exactly that has happened before.
    pub async fn bootstrap(&self, voters: BTreeMap<u64, String>) -> Result<(), BootstrapError> {
        if !voters.contains_key(&self.node_id) {
            return Err(BootstrapError::NotAVoter { node_id: self.node_id });
        }
        let wanted: BTreeSet<u64> = voters.keys().copied().collect();
        let nodes: BTreeMap<u64, Node> =
            voters.into_iter().map(|(id, address)| (id, Node { address })).collect();
        match self.raft.initialize(nodes).await {
            Ok(()) => {
                tracing::info!(voters = ?wanted, "formed the metadata quorum");
                Ok(())
            }
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => self.confirm_members(&wanted).await,
            Err(RaftError::APIError(InitializeError::NotInMembers(_))) => {
                Err(BootstrapError::NotAVoter { node_id: self.node_id })
            }
            Err(RaftError::Fatal(fatal)) => Err(BootstrapError::Stopped(fatal.to_string())),
        }
    }

    async fn confirm_members(&self, wanted: &BTreeSet<u64>) -> Result<(), BootstrapError> {
        let membership = self.raft.with_raft_state(|state| {
            let effective = state.membership_state.effective();
            effective.membership().nodes().map(|(node_id, _)| *node_id).collect::<BTreeSet<u64>>()
        });
        let members = membership.await.map_err(|fatal| BootstrapError::Stopped(fatal.to_string()))?;
        // Members come and go after a quorum was formed, but these would not all be in another one.
        if wanted.is_subset(&members) { Ok(()) } else { Err(BootstrapError::AlreadyMember { members }) }
    }

    /// Waits until a majority has confirmed that this node leads and everything committed before is applied here.
    /// Returns the term; what is decided on the image from then on holds for that term.
    pub async fn barrier(&self) -> Result<u64, ProposeError> {
        let confirmed = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match tokio::time::timeout(BARRIER_TIMEOUT, confirmed).await {
            Ok(Ok(_)) => self.leading_term().ok_or(ProposeError::NotLeader),
            Ok(Err(RaftError::Fatal(fatal))) => Err(ProposeError::Stopped(fatal.to_string())),
            Ok(Err(RaftError::APIError(_))) | Err(_) => Err(ProposeError::NotLeader),
        }
    }

    /// Term that this node leads, as far as it knows.
    pub fn leading_term(&self) -> Option<u64> {
        self.raft.as_leader().ok().map(|leader| leader.term())
    }

    /// Commits `records`, which were decided in `term` on an image that contained everything proposed before.
    /// Resolves when they are part of this node's image, to the log index of their entry.
    ///
    /// May take as long as the quorum is out of reach. Do not decide anything on the image before it resolves.
    pub async fn propose(&self, term: u64, records: &[Record]) -> Result<u64, ProposeError> {
        let refused = |error: CodecError| ProposeError::Stopped(error.to_string());
        let records = codec::encode_records(records).map_err(refused)?;
        if records.len() > MAX_ENTRY_BYTES {
            return Err(ProposeError::TooLarge { bytes: records.len() });
        }
        match self.raft.client_write(Command { decided_in_term: term, records }).await {
            Ok(response) => match response.data {
                Applied::Done => Ok(response.log_id.index),
                Applied::Stale => Err(ProposeError::NotLeader),
            },
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(ProposeError::NotLeader),
            Err(RaftError::APIError(_)) => Err(ProposeError::Unknown),
            Err(RaftError::Fatal(fatal)) => Err(ProposeError::Stopped(fatal.to_string())),
        }
    }

    /// Asks `node_id` to take over the leadership. Returns at once.
    pub async fn transfer_leadership(&self, node_id: u64) {
        if let Err(error) = self.raft.trigger().transfer_leader(node_id).await {
            tracing::warn!(%error, "cannot hand over the metadata quorum");
        }
    }

    /// Answers a Raft call of another member.
    pub async fn handle(&self, peer: u64, method: Method, body: Bytes) -> Result<Bytes, Failure> {
        let answer = match method {
            Method::AppendEntries => {
                let request = codec::decode_append_call(body).map_err(malformed)?;
                self.recognise(&request.vote);
                codec::encode_append_answer(&self.raft.append_entries(request).await.map_err(stopped)?)
            }
            Method::Vote => {
                let mut request = codec::decode_vote_call(body).map_err(malformed)?;
                request.leadership_transfer |= self.has_renounced_its_leader().await;
                codec::encode_vote_answer(&self.raft.vote(request).await.map_err(stopped)?)
            }
            Method::PreVote => {
                let request = codec::decode_vote_call(body).map_err(malformed)?;
                codec::encode_vote_answer(&self.raft.pre_vote(request).await.map_err(stopped)?)
            }
            Method::InstallSnapshot => {
                let piece = codec::decode_snapshot_piece(body).map_err(malformed)?;
                codec::encode_snapshot_answer(&self.receive_snapshot(peer, piece).await?)
            }
            Method::TransferLeader => {
                let request = codec::decode_transfer_call(body).map_err(malformed)?;
                codec::encode_transfer_answer(
                    &self.raft.handle_transfer_leader(request).await.map_err(stopped)?,
                )
            }
            Method::Controller
            | Method::ReplicaFetch
            | Method::ReplicaProgress
            | Method::BrokerLoad
            | Method::Heartbeat
            | Method::Join
            | Method::LeaderGone
            | Method::DescribeQuorum => {
                return Err(Failure::new(FailureKind::UnknownMethod, "not a Raft call"));
            }
        };
        answer.map_err(|error| Failure::new(FailureKind::NotNow, error.to_string()))
    }

    /// A member that is the only voter need not wait for anyone before it leads.
    async fn elect_at_once_if_alone(&self) {
        let alone = self.status().voters == BTreeSet::from([self.node_id]);
        if alone && let Err(error) = self.raft.trigger().elect(false).await {
            tracing::warn!(%error, "cannot start the election of the only voter");
        }
    }

    /// Stops taking part and closes the log. The log's files are free when this returns, if nobody else holds `self`.
    pub async fn shutdown(self: Arc<Self>) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "the metadata quorum member did not stop cleanly");
        }
        let closer = self.closer.lock().take();
        drop(self);
        if let Some(closer) = closer {
            // Cannot fail: the closure does not panic.
            let _ = crate::blocking::spawn_blocking(move || closer.close()).await;
        }
    }
}

fn open(
    directory: &Path,
    kept_space: Arc<KeptSpace>,
    cluster_id: Uuid,
) -> io::Result<(LogStore, Closer, StateMachine)> {
    let (store, closer) = open_log(directory, kept_space)?;
    let machine = StateMachine::open(store.clone(), cluster_id)?;
    Ok((store, closer, machine))
}

fn open_log(directory: &Path, kept_space: Arc<KeptSpace>) -> io::Result<(LogStore, Closer)> {
    #[cfg(test)]
    if let Some(disk) = super::sim_disk::of(directory) {
        return LogStore::open_simulated(disk);
    }
    std::fs::create_dir_all(directory)?;
    LogStore::open(directory, kept_space)
}

fn config(options: &RaftOptions) -> Result<Config, String> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: "metadata".to_owned(),
        election_timeout_min: millis(options.timings.election_timeout_min),
        election_timeout_max: millis(options.timings.election_timeout_max),
        heartbeat_interval: millis(options.timings.heartbeat_interval),
        install_snapshot_timeout: 60_000,
        max_payload_entries: 256,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(options.snapshot_every),
        // More than a snapshot's worth, or sending one would not end the lag that called for it.
        replication_lag_threshold: options.snapshot_every.saturating_mul(2),
        max_in_snapshot_log_to_keep: options.snapshot_every / 5,
        purge_batch_size: (options.snapshot_every / 20).max(1),
        enable_pre_vote: Some(true),
        // A leader that hears of no majority takes no proposals once its lease is over; that is not up to settings. This
        // makes it fall silent now and then as well, so that one that is heard but does not hear can be succeeded.
        quorum_loss_probe_interval: Some(millis(options.timings.election_timeout_max * 2)),
        // A leader that was started anew must be elected: its followers may have renounced it.
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    config.validate().map_err(|error| error.to_string())
}

pub(super) fn malformed(error: CodecError) -> Failure {
    Failure::new(FailureKind::Malformed, error.to_string())
}

pub(super) fn stopped(error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Failed, error.to_string())
}
