//! Calls between brokers about metadata: Raft, requests to the controller, heartbeats, joining.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use millrace_protocol::{Message, RecordBytes};
use tokio::time::Instant;

use super::runtime::{Answer, Declined};
use super::sessions::{Heartbeat, Verdict};
use super::{Shared, succession};
use crate::fleet::{CallError, CallHandler, Failure, FailureKind, Method, PeerAddress};
use crate::metadata::controller::{ControllerRequest, ControllerResponse};
use crate::metadata::raft::{CodecError, MembershipError, decode, encode};
use crate::schema::internal as wire;

/// The leader answers a little before the caller gives up, so that the caller learns what it says.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);

const ANSWERED: i8 = 0;
const NOT_CONTROLLER: i8 = 1;
const UNKNOWN: i8 = 2;
const UNACCEPTABLE: i8 = 3;

const HEARD: i8 = 0;
const REGISTER_AGAIN: i8 = 2;

const MEMBER: i8 = 0;
const ASK_LEADER: i8 = 1;
const NO_QUORUM: i8 = 2;

impl CallHandler for Shared {
    fn handle(&self, peer: u64, method: Method, body: Bytes) -> BoxFuture<'_, Result<RecordBytes, Failure>> {
        async move { self.answer(peer, method, body).await.map(RecordBytes::from) }.boxed()
    }
}

impl Shared {
    fn answer(&self, peer: u64, method: Method, body: Bytes) -> BoxFuture<'_, Result<Bytes, Failure>> {
        match method {
            Method::AppendEntries
            | Method::Vote
            | Method::PreVote
            | Method::InstallSnapshot
            | Method::TransferLeader => self.node.handle(peer, method, body).boxed(),
            Method::Controller => self.answer_controller_call(body).boxed(),
            Method::Heartbeat => async { self.answer_heartbeat(body) }.boxed(),
            Method::Join => self.answer_join(peer, body).boxed(),
            Method::LeaderGone => succession::answer(self, body).boxed(),
            Method::DescribeQuorum => self.answer_describe_quorum().boxed(),
            Method::ReplicaFetch | Method::ReplicaProgress | Method::BrokerLoad => {
                let message = "records are not fetched from the metadata quorum";
                async move { Err(Failure::new(FailureKind::UnknownMethod, message)) }.boxed()
            }
        }
    }
}

/// What the leader says to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The broker is known; whether it is out of service, by the metadata up to this log index.
    Known { fenced: bool, log_index: u64 },
    /// The broker has to register.
    RegisterAgain,
    /// Ask another node, or later.
    NotController,
}

/// What came of asking to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Joined {
    /// The node is a member.
    Member,
    /// Only the leader can say; its address.
    AskLeader(String),
    /// There is no quorum, or none that can answer now.
    NotNow(String),
}

impl Shared {
    async fn answer_controller_call(&self, body: Bytes) -> Result<Bytes, Failure> {
        let call: wire::ControllerCall = decode(body).map_err(malformed)?;
        let timeout = Duration::from_millis(u64::try_from(call.timeout_ms).unwrap_or(0));
        let deadline = Instant::now() + timeout.min(super::super::CALL_TIMEOUT);
        let outcome = match ControllerRequest::decode(call.request) {
            // Passed on to nobody else: two nodes that each take the other for the leader would never stop.
            Ok(request) => self.decide_here(request, deadline).await,
            Err(error) => Err(Declined::Unacceptable { reason: error.to_string() }),
        };
        let mut answer = wire::ControllerAnswer::default();
        match outcome {
            Ok(Answer { response, log_index }) => {
                answer.outcome = ANSWERED;
                answer.log_index = log_index.cast_signed();
                match response.encode() {
                    Ok(response) => answer.response = response,
                    Err(error) => return Err(Failure::new(FailureKind::NotNow, error.to_string())),
                }
            }
            Err(Declined::NotController { reason }) => {
                (answer.outcome, answer.message) = (NOT_CONTROLLER, reason.into());
            }
            Err(Declined::Unknown { reason }) => (answer.outcome, answer.message) = (UNKNOWN, reason.into()),
            Err(Declined::Unacceptable { reason }) => {
                (answer.outcome, answer.message) = (UNACCEPTABLE, reason.into());
            }
        }
        reply(&answer)
    }

    fn answer_heartbeat(&self, body: Bytes) -> Result<Bytes, Failure> {
        let call: wire::HeartbeatCall = decode(body).map_err(malformed)?;
        let heard = self.hear(Heartbeat {
            broker_id: call.broker_id,
            broker_epoch: call.broker_epoch,
            applied_index: call.applied_index.cast_unsigned(),
            ready: call.ready,
        });
        let mut answer = wire::HeartbeatAnswer::default();
        match heard {
            Heard::Known { fenced, log_index } => {
                (answer.outcome, answer.fenced) = (HEARD, fenced);
                answer.log_index = log_index.cast_signed();
            }
            Heard::RegisterAgain => answer.outcome = REGISTER_AGAIN,
            Heard::NotController => answer.outcome = NOT_CONTROLLER,
        }
        reply(&answer)
    }

    /// Takes note of a heartbeat, and has the broker brought into service if it can be.
    pub(super) fn hear(&self, heartbeat: Heartbeat) -> Heard {
        let image = self.node.image();
        let verdict = self.sessions.lock().heartbeat(&image, heartbeat, Instant::now());
        match verdict {
            Verdict::Heard => {
                let fenced = image.brokers.get(&heartbeat.broker_id).is_none_or(|broker| broker.fenced);
                Heard::Known { fenced, log_index: image.log_index }
            }
            Verdict::Unfence => {
                self.unfence(heartbeat);
                Heard::Known { fenced: true, log_index: image.log_index }
            }
            Verdict::RegisterAgain => Heard::RegisterAgain,
            Verdict::NotLeading => Heard::NotController,
        }
    }

    fn unfence(&self, heartbeat: Heartbeat) {
        let Heartbeat { broker_id, broker_epoch, .. } = heartbeat;
        let request = ControllerRequest::SetFenced { broker_id, broker_epoch, fenced: false };
        // Nobody waits: the broker sees it in its image, and asks again with the next heartbeat if it did not happen.
        let (answer, _) = tokio::sync::oneshot::channel();
        let deadline = Instant::now() + self.options.heartbeat_interval;
        if self.work.try_send(super::Work { request, deadline, answer }).is_err() {
            tracing::warn!(broker_id, "the controller is too busy to bring a broker into service");
        }
    }

    async fn answer_join(&self, peer: u64, body: Bytes) -> Result<Bytes, Failure> {
        let call: wire::JoinCall = decode(body).map_err(malformed)?;
        if call.node_id.cast_unsigned() != peer {
            return Err(Failure::new(FailureKind::Malformed, "a node can only join for itself"));
        }
        let mut answer = wire::JoinAnswer::default();
        match self.admit(peer, call.address.to_string()).await {
            Joined::Member => answer.outcome = MEMBER,
            Joined::AskLeader(address) => {
                (answer.outcome, answer.leader_address) = (ASK_LEADER, Some(address.into()));
            }
            Joined::NotNow(reason) => (answer.outcome, answer.message) = (NO_QUORUM, reason.into()),
        }
        reply(&answer)
    }

    async fn admit(&self, node_id: u64, address: String) -> Joined {
        let status = self.node.status();
        if !status.is_leader() {
            return match status.leader_address() {
                Some((_, address)) => Joined::AskLeader(address.to_owned()),
                None if status.is_member() => {
                    Joined::NotNow("the metadata quorum has no leader now".to_owned())
                }
                None => Joined::NotNow("this broker knows of no metadata quorum".to_owned()),
            };
        }
        if let Some(retired) = self.node.image().retired_nodes.get(&node_id) {
            return Joined::NotNow(format!(
                "volume {} was given up as lost when broker {} came up on another one; it needs an empty volume",
                retired.volume_uuid, retired.broker_id
            ));
        }
        match self.node.add_member(node_id, address).await {
            Ok(()) => Joined::Member,
            Err(MembershipError::NotLeader) => Joined::NotNow("leadership is changing".to_owned()),
            Err(MembershipError::NotNow(reason)) => Joined::NotNow(reason),
        }
    }
}

/// Sends a request to the controller on the node that leads.
pub(super) async fn ask_leader(
    shared: &Shared,
    leader: u64,
    address: &str,
    request: &ControllerRequest,
    deadline: Instant,
) -> Result<Answer, Declined> {
    let remaining = deadline.saturating_duration_since(Instant::now());
    let unacceptable = |reason: String| Declined::Unacceptable { reason };
    let call = wire::ControllerCall {
        timeout_ms: i64::try_from(remaining.saturating_sub(ANSWER_MARGIN).as_millis()).unwrap_or(i64::MAX),
        request: request.encode().map_err(|error| unacceptable(error.to_string()))?,
        ..Default::default()
    };
    let body = encode(&call).map_err(|error| unacceptable(error.to_string()))?;
    let peer = PeerAddress { address: address.to_owned(), node_id: Some(leader) };
    let body = shared.client.call(&peer, Method::Controller, body, remaining).await.map_err(not_answered)?;
    let unreadable = |reason: String| Declined::Unknown { reason };
    let answer: wire::ControllerAnswer = decode(body).map_err(|error| unreadable(error.to_string()))?;
    let reason = answer.message.to_string();
    match answer.outcome {
        ANSWERED => {
            let response =
                ControllerResponse::decode(answer.response).map_err(|error| unreadable(error.to_string()))?;
            Ok(Answer { response, log_index: answer.log_index.cast_unsigned() })
        }
        NOT_CONTROLLER => Err(Declined::NotController { reason }),
        UNACCEPTABLE => Err(Declined::Unacceptable { reason }),
        _ => Err(Declined::Unknown { reason }),
    }
}

fn not_answered(error: CallError) -> Declined {
    let reason = error.to_string();
    match error {
        CallError::Unreachable { .. } | CallError::Refused { .. } => Declined::NotController { reason },
        CallError::Failed { failure, .. } => match failure.kind {
            // The callee did not take it.
            FailureKind::UnknownMethod | FailureKind::Malformed => Declined::Unacceptable { reason },
            FailureKind::NotNow | FailureKind::Failed => Declined::Unknown { reason },
        },
        CallError::TooLong { .. } => Declined::Unacceptable { reason },
        CallError::Lost { .. } | CallError::Timeout { .. } => Declined::Unknown { reason },
    }
}

/// Tells the leader that this broker is alive.
pub(super) async fn send_heartbeat(shared: &Shared, heartbeat: Heartbeat, timeout: Duration) -> Heard {
    let status = shared.node.status();
    if status.is_leader() {
        return shared.hear(heartbeat);
    }
    let Some((leader, address)) = status.leader_address() else { return Heard::NotController };
    let peer = PeerAddress { address: address.to_owned(), node_id: Some(leader) };
    let call = wire::HeartbeatCall {
        broker_id: heartbeat.broker_id,
        broker_epoch: heartbeat.broker_epoch,
        applied_index: heartbeat.applied_index.cast_signed(),
        ready: heartbeat.ready,
        ..Default::default()
    };
    match call_for::<wire::HeartbeatAnswer>(shared, &peer, Method::Heartbeat, &call, timeout).await {
        Ok(answer) => match answer.outcome {
            HEARD => Heard::Known {
                fenced: answer.fenced,
                log_index: u64::try_from(answer.log_index).unwrap_or(0),
            },
            REGISTER_AGAIN => Heard::RegisterAgain,
            _ => Heard::NotController,
        },
        Err(error) => {
            tracing::debug!(error, "heartbeat was not heard");
            Heard::NotController
        }
    }
}

/// Asks the broker at `address` to make this node a member.
pub(super) async fn ask_to_join(shared: &Shared, address: &str, timeout: Duration) -> Result<Joined, String> {
    let peer = PeerAddress { address: address.to_owned(), node_id: None };
    let call = wire::JoinCall {
        node_id: shared.local.node_id.cast_signed(),
        address: shared.options.address.as_str().into(),
        ..Default::default()
    };
    let answer = call_for::<wire::JoinAnswer>(shared, &peer, Method::Join, &call, timeout).await?;
    Ok(match (answer.outcome, answer.leader_address) {
        (MEMBER, _) => Joined::Member,
        (ASK_LEADER, Some(leader)) => Joined::AskLeader(leader.to_string()),
        _ => Joined::NotNow(answer.message.to_string()),
    })
}

async fn call_for<A: Message>(
    shared: &Shared,
    peer: &PeerAddress,
    method: Method,
    call: &impl Message,
    timeout: Duration,
) -> Result<A, String> {
    let body = encode(call).map_err(|error| error.to_string())?;
    let answer = shared.client.call(peer, method, body, timeout).await.map_err(|error| error.to_string())?;
    decode(answer).map_err(|error| error.to_string())
}

pub(super) fn reply(answer: &impl Message) -> Result<Bytes, Failure> {
    encode(answer).map_err(|error| Failure::new(FailureKind::NotNow, error.to_string()))
}

fn malformed(error: CodecError) -> Failure {
    Failure::new(FailureKind::Malformed, error.to_string())
}
