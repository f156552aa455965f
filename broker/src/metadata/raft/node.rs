//! This broker's member of the metadata quorum.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, InitializeError, RaftError};
use openraft::raft::SnapshotResponse;
use openraft::{ChangeMembers, Config, Raft, ReadPolicy, SnapshotPolicy};
use parking_lot::Mutex;
use tokio::sync::watch;
use uuid::Uuid;

use super::codec::{self, CodecError, SnapshotPiece};
use super::log_store::{Closer, LogStore, MAX_ENTRY_BYTES};
use super::network::Network;
use super::state_machine::StateMachine;
use super::types::{Applied, Command, Node, Snapshot, TypeConfig};
use crate::fleet::{Failure, FailureKind, FleetClient, Method};
use crate::metadata::image::MetadataImage;
use crate::metadata::records::Record;

type MetadataRaft = Raft<TypeConfig, StateMachine>;

/// Snapshots that are being received at a time. Only a leader sends one; a second sender means a change of leaders.
const MAX_SNAPSHOT_TRANSFERS: usize = 4;
const MAX_SNAPSHOT_BYTES: u64 = 1 << 30;

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

impl Default for RaftTimings {
    /// Generous, for slow disks and busy machines.
    fn default() -> Self {
        Self {
            election_timeout_min: Duration::from_millis(1500),
            election_timeout_max: Duration::from_millis(3000),
            heartbeat_interval: Duration::from_millis(300),
        }
    }
}

/// What a member needs to start.
#[derive(Clone, Debug)]
pub struct RaftOptions {
    /// Directory of its log; made if absent.
    pub directory: PathBuf,
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

/// The membership was not changed.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// Only the leader can.
    #[error("this node does not lead the metadata quorum")]
    NotLeader,
    /// Another change is under way, or the state does not allow this one; try again.
    #[error("{0}")]
    NotNow(String),
}

/// The quorum as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuorumStatus {
    /// This node.
    pub node_id: u64,
    /// Current term.
    pub term: u64,
    /// Leader of that term, once known.
    pub leader: Option<u64>,
    /// Voters; during a change those of both memberships.
    pub voters: BTreeSet<u64>,
    /// All members and their addresses, voters and learners.
    pub members: BTreeMap<u64, String>,
}

impl QuorumStatus {
    /// Whether this node belongs to a formed quorum.
    pub fn is_member(&self) -> bool {
        self.members.contains_key(&self.node_id)
    }

    /// Whether this node leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.leader == Some(self.node_id)
    }

    /// Node id and address of the leader, if both are known.
    pub fn leader_address(&self) -> Option<(u64, &str)> {
        let leader = self.leader?;
        Some((leader, self.members.get(&leader)?.as_str()))
    }

    /// Members that do not vote.
    pub fn learners(&self) -> impl Iterator<Item = u64> + '_ {
        self.members.keys().copied().filter(|node_id| !self.voters.contains(node_id))
    }
}

/// See the module documentation.
pub struct RaftNode {
    raft: MetadataRaft,
    image: Arc<ArcSwap<MetadataImage>>,
    images: watch::Receiver<Arc<MetadataImage>>,
    status: watch::Receiver<QuorumStatus>,
    failure: watch::Receiver<Option<String>>,
    transfers: Mutex<HashMap<u64, Transfer>>,
    closer: Mutex<Option<Closer>>,
    node_id: u64,
}

impl std::fmt::Debug for RaftNode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RaftNode").field("node_id", &self.node_id).finish_non_exhaustive()
    }
}

/// A snapshot that is being received.
struct Transfer {
    id: u64,
    received: BytesMut,
}

impl RaftNode {
    /// Opens the log, replays what was committed, and takes part in the quorum, if there is one.
    pub async fn start(options: RaftOptions) -> Result<Self, StartError> {
        let directory = options.directory.clone();
        let cluster_id = options.cluster_id;
        let opened = tokio::task::spawn_blocking(move || open(&directory, cluster_id)).await;
        let storage = |source| StartError::Storage { directory: options.directory.clone(), source };
        let (store, closer, machine) =
            opened.map_err(|error| storage(io::Error::other(error)))?.map_err(storage)?;
        let publisher = machine.publisher();
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

    /// Checks without asking anyone, by lease, that no other leader can have changed anything meanwhile.
    pub async fn confirm_lease(&self) -> Result<(), ProposeError> {
        let confirmed = self.raft.ensure_linearizable(ReadPolicy::LeaseRead);
        match tokio::time::timeout(BARRIER_TIMEOUT, confirmed).await {
            Ok(Ok(_)) => Ok(()),
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

    /// Adds a member that follows the log, or tells the others that it has moved.
    pub async fn add_member(&self, node_id: u64, address: String) -> Result<(), MembershipError> {
        let known = self.status().members.get(&node_id).cloned();
        let nodes = BTreeMap::from([(node_id, Node { address: address.clone() })]);
        let change = match known {
            Some(known) if known == address => return Ok(()),
            // The node has proven by its volume's id that it is the same one, so no second node can answer to it.
            Some(_) => ChangeMembers::SetNodes(nodes),
            None => ChangeMembers::AddNodes(nodes),
        };
        self.change_members(change).await?;
        tracing::info!(node_id, address, "node follows the metadata quorum");
        Ok(())
    }

    /// Makes a member that follows the log a voter.
    pub async fn promote(&self, node_id: u64) -> Result<(), MembershipError> {
        self.change_members(ChangeMembers::AddVoterIds(BTreeSet::from([node_id]))).await?;
        tracing::info!(node_id, "node votes in the metadata quorum");
        Ok(())
    }

    async fn change_members(&self, change: ChangeMembers<u64, Node>) -> Result<(), MembershipError> {
        match self.raft.change_membership(change, true).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(MembershipError::NotLeader),
            Err(error) => Err(MembershipError::NotNow(error.to_string())),
        }
    }

    /// How many entries each member is behind this leader; empty where this node does not lead.
    pub fn lags(&self) -> BTreeMap<u64, u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.map_or(0, |index| index + 1);
        let matched = metrics.replication.iter().flatten();
        let lag = |matched: Option<u64>| last.saturating_sub(matched.map_or(0, |index| index + 1));
        matched
            .map(|(node_id, matched)| (*node_id, lag(matched.as_ref().map(|log_id| log_id.index))))
            .collect()
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
                codec::encode_append_answer(&self.raft.append_entries(request).await.map_err(stopped)?)
            }
            Method::Vote => {
                let request = codec::decode_vote_call(body).map_err(malformed)?;
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
            Method::Controller | Method::Heartbeat | Method::Join => {
                return Err(Failure::new(FailureKind::UnknownMethod, "not a Raft call"));
            }
        };
        answer.map_err(|error| Failure::new(FailureKind::NotNow, error.to_string()))
    }

    async fn receive_snapshot(
        &self,
        peer: u64,
        piece: SnapshotPiece,
    ) -> Result<SnapshotResponse<TypeConfig>, Failure> {
        let vote = piece.vote;
        let Some(snapshot) = self.collect(peer, piece)? else { return Ok(SnapshotResponse::new(vote)) };
        let meta = codec::decode_snapshot(snapshot.clone()).map_err(malformed)?.meta;
        self.raft
            .install_full_snapshot(vote, Snapshot { meta, snapshot })
            .await
            .map_err(|fatal| Failure::new(FailureKind::Failed, fatal.to_string()))
    }

    /// Adds a piece to what came before; returns the whole when it is complete.
    fn collect(&self, peer: u64, piece: SnapshotPiece) -> Result<Option<Bytes>, Failure> {
        let refused = |reason: String| Err(Failure::new(FailureKind::Malformed, reason));
        if piece.total_length > MAX_SNAPSHOT_BYTES {
            return refused(format!("a snapshot of {} bytes is too long", piece.total_length));
        }
        let mut transfers = self.transfers.lock();
        if piece.offset == 0 {
            if transfers.len() >= MAX_SNAPSHOT_TRANSFERS && !transfers.contains_key(&peer) {
                transfers.clear();
            }
            transfers.insert(peer, Transfer { id: piece.transfer_id, received: BytesMut::new() });
        }
        let Some(transfer) = transfers.get_mut(&peer).filter(|transfer| transfer.id == piece.transfer_id)
        else {
            return refused("a piece of a snapshot whose beginning is missing".to_owned());
        };
        let received = u64::try_from(transfer.received.len()).unwrap_or(u64::MAX);
        let end = piece.offset.saturating_add(u64::try_from(piece.piece.len()).unwrap_or(u64::MAX));
        if piece.offset != received || end > piece.total_length {
            transfers.remove(&peer);
            return refused(format!(
                "a piece of a snapshot at {} where {received} was expected",
                piece.offset
            ));
        }
        transfer.received.extend_from_slice(&piece.piece);
        if end < piece.total_length {
            return Ok(None);
        }
        Ok(transfers.remove(&peer).map(|transfer| transfer.received.freeze()))
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
            let _ = tokio::task::spawn_blocking(move || closer.close()).await;
        }
    }
}

fn open(directory: &Path, cluster_id: Uuid) -> io::Result<(LogStore, Closer, StateMachine)> {
    std::fs::create_dir_all(directory)?;
    let (store, closer) = LogStore::open(directory)?;
    let machine = StateMachine::open(store.clone(), cluster_id)?;
    Ok((store, closer, machine))
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
        ..Config::default()
    };
    config.validate().map_err(|error| error.to_string())
}

/// Republishes what changes about the quorum, in our own words, and notices when the member fails.
fn watch_status(
    raft: &MetadataRaft,
    node_id: u64,
) -> (watch::Receiver<QuorumStatus>, watch::Receiver<Option<String>>) {
    let mut metrics = raft.server_metrics();
    let running = raft.metrics();
    let current = move |metrics: &mut openraft::alias::WatchReceiverOf<TypeConfig, ServerMetrics>| {
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        QuorumStatus {
            node_id,
            term: metrics.vote.leader_id.term,
            leader: metrics.current_leader,
            voters: membership.voter_ids().collect(),
            members: membership.nodes().map(|(id, node)| (*id, node.address.clone())).collect(),
        }
    };
    let (status, statuses) = watch::channel(current(&mut metrics));
    let (failure, failures) = watch::channel(None);
    tokio::spawn(async move {
        while metrics.changed().await.is_ok() {
            let next = current(&mut metrics);
            status.send_if_modified(|last| {
                let changed = *last != next;
                if changed && last.leader != next.leader {
                    tracing::info!(
                        raft.term = next.term,
                        leader = next.leader,
                        "leader of the metadata quorum"
                    );
                }
                *last = next;
                changed
            });
        }
        let state = running.borrow_watched().running_state.clone();
        match state {
            Ok(()) | Err(Fatal::Stopped) => {}
            Err(fatal) => {
                tracing::error!(error = %fatal, "the metadata quorum member has failed");
                failure.send_replace(Some(fatal.to_string()));
            }
        }
    });
    (statuses, failures)
}

type ServerMetrics = openraft::metrics::RaftServerMetrics<TypeConfig>;

fn malformed(error: CodecError) -> Failure {
    Failure::new(FailureKind::Malformed, error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Failed, error.to_string())
}
