//! Calls other brokers: one connection for each, opened when needed and opened anew when it breaks.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::frame::{Failure, Frame, Spare, read_frame_into};
use super::hello::{self, HelloError};
use super::net::TcpStream;
use super::serve::write_frames;
use super::{LocalNode, MAX_FRAME_BYTES, Method};
use crate::security::tls::Tls;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// After a failed attempt the next callers fail at once for this long, doubling up to the maximum. The maximum is
/// short: a broker that restarts must be reached by its quorum within an election timeout.
const FIRST_BACK_OFF: Duration = Duration::from_millis(50);
const MAX_BACK_OFF: Duration = Duration::from_secs(1);

/// Calls that wait for the socket; the next caller waits for room, within its timeout.
const MAX_QUEUED_CALLS: usize = 128;

/// Losses that a reader of [`FleetClient::losses`] may be behind before it misses some.
const LOSSES_KEPT: usize = 256;

/// Must be well below the time after which the other side gives a silent caller up.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// Why a call has no answer. Whether the callee acted on it is unknown unless the variant says so.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// No connection; nothing was sent.
    #[error("cannot reach {address}: {reason}")]
    Unreachable {
        /// Whom.
        address: String,
        /// Why.
        reason: String,
    },
    /// The other side does not want to talk to us, or is not whom we want; nothing was sent.
    #[error("{address} refuses the connection: {reason}")]
    Refused {
        /// Whom.
        address: String,
        /// Its reason.
        reason: String,
    },
    /// The connection broke before the answer came.
    #[error("connection to {address} was lost")]
    Lost {
        /// Whom.
        address: String,
    },
    /// No answer in time.
    #[error("no answer from {address} within {timeout:?}")]
    Timeout {
        /// Whom.
        address: String,
        /// The time given.
        timeout: Duration,
    },
    /// The body does not fit into a frame; nothing was sent.
    #[error("a call of {length} bytes is longer than {MAX_FRAME_BYTES}")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// The callee answered that it cannot.
    #[error("{address} failed the call: {failure}")]
    Failed {
        /// Whom.
        address: String,
        /// What it says.
        failure: Failure,
    },
}

/// Whom to call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddress {
    /// `host:port` of its internal listener.
    pub address: String,
    /// Raft node id that must be there; `None` takes whoever answers.
    pub node_id: Option<u64>,
}

/// Calls other brokers; a cheap handle. Connections close when the last one is dropped.
#[derive(Clone, Debug)]
pub struct FleetClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    local: LocalNode,
    tls: Option<Tls>,
    peers: Mutex<HashMap<PeerAddress, Arc<Peer>>>,
    losses: broadcast::Sender<PeerAddress>,
}

#[derive(Debug)]
struct Peer {
    address: PeerAddress,
    /// An async mutex: whoever finds no connection opens one while the others wait for it.
    link: tokio::sync::Mutex<Link>,
}

#[derive(Debug, Default)]
struct Link {
    connection: Option<Arc<Connection>>,
    back_off: Option<BackOff>,
}

#[derive(Debug)]
struct BackOff {
    until: Instant,
    length: Duration,
    error: CallError,
}

impl FleetClient {
    /// Calls as `local`. With `tls` every connection is encrypted and both ends are verified.
    pub fn new(local: LocalNode, tls: Option<Tls>) -> Self {
        let losses = broadcast::Sender::new(LOSSES_KEPT);
        Self { shared: Arc::new(Shared { local, tls, peers: Mutex::default(), losses }) }
    }

    /// Connections that the other side ended from now on, as its operating system does within moments when the
    /// process is gone. A connection that this side gave up is not among them.
    pub fn losses(&self) -> broadcast::Receiver<PeerAddress> {
        self.shared.losses.subscribe()
    }

    /// Calls `peer` and waits for its answer for `timeout`, connecting included.
    ///
    /// Dropping the future does not take a sent call back.
    pub async fn call(
        &self,
        peer: &PeerAddress,
        method: Method,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        // Room for the head of the frame.
        if body.len() > MAX_FRAME_BYTES - 64 {
            return Err(CallError::TooLong { length: body.len() });
        }
        let started = Instant::now();
        let deadline = started + timeout;
        let timed_out = || CallError::Timeout { address: peer.address.clone(), timeout };
        let connection = match tokio::time::timeout_at(deadline, self.connection(peer)).await {
            Ok(connection) => connection?,
            Err(_) => return Err(timed_out()),
        };
        match tokio::time::timeout_at(deadline, connection.call(method, body)).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(failure))) => Err(CallError::Failed { address: peer.address.clone(), failure }),
            Ok(Err(Closed)) => Err(CallError::Lost { address: peer.address.clone() }),
            Err(_) => {
                // Nothing at all came back: the peer may have vanished without closing the connection.
                if connection.heard.lock().is_none_or(|heard| heard < started) {
                    connection.cancel.cancel();
                }
                Err(timed_out())
            }
        }
    }

    async fn connection(&self, address: &PeerAddress) -> Result<Arc<Connection>, CallError> {
        let peer = {
            let mut peers = self.shared.peers.lock();
            let new_peer =
                || Arc::new(Peer { address: address.clone(), link: tokio::sync::Mutex::default() });
            Arc::clone(peers.entry(address.clone()).or_insert_with(new_peer))
        };
        let mut link = peer.link.lock().await;
        if let Some(connection) = &link.connection {
            if !connection.cancel.is_cancelled() {
                return Ok(Arc::clone(connection));
            }
            link.connection = None;
        }
        let now = Instant::now();
        let length = match &link.back_off {
            Some(back_off) if now < back_off.until => return Err(back_off.error.clone()),
            Some(back_off) => (back_off.length * 2).min(MAX_BACK_OFF),
            None => FIRST_BACK_OFF,
        };
        // Set before the attempt, so that an attempt that is given up half-way counts as failed.
        let error = unreachable(&peer.address.address, "connecting took too long");
        link.back_off = Some(BackOff { until: now, length, error });
        match tokio::time::timeout(CONNECT_TIMEOUT, self.connect(&peer.address)).await {
            Ok(Ok(connection)) => {
                let connection = Arc::new(connection);
                link.back_off = None;
                link.connection = Some(Arc::clone(&connection));
                Ok(connection)
            }
            outcome => {
                let error = match outcome {
                    Ok(Err(error)) => error,
                    _ => unreachable(&peer.address.address, "connecting took too long"),
                };
                link.back_off =
                    Some(BackOff { until: Instant::now() + length, length, error: error.clone() });
                Err(error)
            }
        }
    }

    async fn connect(&self, peer: &PeerAddress) -> Result<Connection, CallError> {
        let failed = |error: io::Error| unreachable(&peer.address, &error.to_string());
        let stream = TcpStream::connect(&peer.address).await.map_err(failed)?;
        self.open(stream, peer).await
    }

    /// Makes a call connection of a socket.
    pub(super) async fn open(&self, stream: TcpStream, peer: &PeerAddress) -> Result<Connection, CallError> {
        let failed = |error: io::Error| unreachable(&peer.address, &error.to_string());
        let _ = stream.set_nodelay(true);
        match &self.shared.tls {
            Some(tls) => {
                let host = peer.address.rsplit_once(':').map_or(peer.address.as_str(), |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(host)
                    .map_err(|error| unreachable(&peer.address, &error.to_string()))?;
                let connector = TlsConnector::from(tls.client_config());
                let stream = connector.connect(name, stream).await.map_err(failed)?;
                self.greet(stream, peer).await
            }
            None => self.greet(stream, peer).await,
        }
    }

    async fn greet<S>(&self, mut stream: S, peer: &PeerAddress) -> Result<Connection, CallError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match hello::call(&mut stream, self.shared.local, peer.node_id).await {
            Ok(_) => Ok(Connection::start(stream, peer.clone(), self.shared.losses.clone())),
            Err(HelloError::Refused(reason)) => {
                Err(CallError::Refused { address: peer.address.clone(), reason })
            }
            Err(HelloError::Frame(error)) => Err(unreachable(&peer.address, &error.to_string())),
        }
    }
}

fn unreachable(address: &str, reason: &str) -> CallError {
    CallError::Unreachable { address: address.to_owned(), reason: reason.to_owned() }
}

/// The connection ended before the answer came.
struct Closed;

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Bytes, Failure>>>>>;

#[derive(Debug)]
pub(super) struct Connection {
    outgoing: mpsc::Sender<Frame>,
    waiting: Waiting,
    next_correlation_id: AtomicU64,
    /// When the last frame came in.
    heard: Arc<Mutex<Option<Instant>>>,
    /// Cancelled when the connection is over, by whoever notices first.
    cancel: CancellationToken,
}

impl Connection {
    fn start<S>(stream: S, peer: PeerAddress, losses: broadcast::Sender<PeerAddress>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        let (outgoing, frames) = mpsc::channel(MAX_QUEUED_CALLS);
        let cancel = CancellationToken::new();
        let waiting = Waiting::default();
        let heard = Arc::new(Mutex::new(None));

        let end = cancel.clone();
        let pings = outgoing.downgrade();
        let (answered, last) = (Arc::clone(&waiting), Arc::clone(&heard));
        tokio::spawn(async move {
            let lost = tokio::select! {
                biased;
                () = end.cancelled() => false,
                () = read_answers(reader, &answered, &last) => true,
                written = write_frames(writer, frames) => written.is_err(),
                () = ping(pings) => false,
            };
            end.cancel();
            // Dropping the senders tells the waiting callers.
            answered.lock().clear();
            if lost {
                // Nobody may be listening.
                let _ = losses.send(peer);
            }
        });
        Self { outgoing, waiting, next_correlation_id: AtomicU64::new(1), heard, cancel }
    }

    async fn call(&self, method: Method, body: Bytes) -> Result<Result<Bytes, Failure>, Closed> {
        let correlation_id = self.next_correlation_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().insert(correlation_id, sender);
        let _forget = Forget { waiting: &self.waiting, correlation_id };
        if self.cancel.is_cancelled() {
            return Err(Closed);
        }
        self.outgoing.send(Frame::call(correlation_id, method, body)).await.map_err(|_| Closed)?;
        answer.await.map_err(|_| Closed)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Takes a caller off the list of those who wait, also when it gives up.
struct Forget<'a> {
    waiting: &'a Waiting,
    correlation_id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.correlation_id);
    }
}

async fn read_answers(mut reader: impl AsyncRead + Unpin, waiting: &Waiting, heard: &Mutex<Option<Instant>>) {
    let mut spare = Spare::default();
    loop {
        let frame = match read_frame_into(&mut reader, MAX_FRAME_BYTES, &mut spare).await {
            Ok(Some(content)) => Frame::decode(content),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        *heard.lock() = Some(Instant::now());
        let (correlation_id, answer) = match frame {
            Ok(Frame::Answer { correlation_id, body }) => (correlation_id, Ok(body.into_bytes())),
            Ok(Frame::Failure { correlation_id, failure }) => (correlation_id, Err(failure)),
            Ok(Frame::Pong) => continue,
            Ok(Frame::Call { .. } | Frame::Ping) => {
                tracing::warn!("internal connection closed: the callee made a call");
                return;
            }
            Err(error) => {
                tracing::debug!(%error, "internal connection lost");
                return;
            }
        };
        // A caller that gave up is not on the list any more.
        if let Some(caller) = waiting.lock().remove(&correlation_id) {
            let _ = caller.send(answer);
        }
    }
}

async fn ping(outgoing: mpsc::WeakSender<Frame>) {
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        let Some(outgoing) = outgoing.upgrade() else { return };
        if outgoing.send(Frame::Ping).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
#[path = "fleet_test.rs"]
mod tests;
