//! Raft messages over the internal listener.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::OptionalSend;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use parking_lot::Mutex;

use super::codec::{self, CodecError, SnapshotPiece};
use super::types::{Node, Snapshot, SnapshotData, TypeConfig, Vote};
use crate::fleet::{CallError, FleetClient, Method, PeerAddress};

/// Snapshots travel in pieces of this size, so that heartbeats on the same connection need not wait long.
const PIECE_BYTES: usize = 1 << 20;

/// Time for one piece; the last one includes installing the snapshot on the other side's disk.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);
const LAST_PIECE_TIMEOUT: Duration = Duration::from_secs(60);

static NEXT_TRANSFER_ID: AtomicU64 = AtomicU64::new(1);

/// Makes a [`Peer`] for each member.
pub(super) struct Network {
    client: FleetClient,
    silent: Arc<Silent>,
}

impl Network {
    pub(super) fn new(client: FleetClient) -> Self {
        Self { client, silent: Arc::default() }
    }
}

/// Members whose last call failed. openraft calls one that cannot be reached many times a second, and each time would be
/// in the log.
#[derive(Debug, Default)]
struct Silent(Mutex<BTreeSet<u64>>);

/// What a call has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    FellSilent,
    IsBack,
}

impl Silent {
    /// Notes how a call of a member ended.
    fn note(&self, member: u64, answered: bool) -> Option<Change> {
        let mut members = self.0.lock();
        if answered {
            members.remove(&member).then_some(Change::IsBack)
        } else {
            members.insert(member).then_some(Change::FellSilent)
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &Node) -> Peer {
        let address = PeerAddress { address: node.address.clone(), node_id: Some(target) };
        Peer { client: self.client.clone(), address, target, silent: Arc::clone(&self.silent) }
    }
}

/// One member, as the others reach it.
pub(super) struct Peer {
    client: FleetClient,
    address: PeerAddress,
    target: u64,
    silent: Arc<Silent>,
}

impl Peer {
    async fn call(
        &self,
        method: Method,
        body: Result<Bytes, CodecError>,
        timeout: Duration,
    ) -> Result<Bytes, Error> {
        let body = body.map_err(unreadable)?;
        let outcome = self.client.call(&self.address, method, body, timeout).await;
        let (target, address) = (self.target, &self.address.address);
        match (self.silent.note(target, outcome.is_ok()), &outcome) {
            (Some(Change::FellSilent), Err(error)) => {
                tracing::warn!(raft.member = target, address, %error, "a member of the metadata quorum does not answer");
            }
            (Some(Change::IsBack), _) => {
                tracing::info!(
                    raft.member = target,
                    address,
                    "a member of the metadata quorum answers again"
                );
            }
            _ => {}
        }
        outcome.map_err(failed)
    }
}

type Error = RPCError<TypeConfig>;

/// openraft waits before it tries an unreachable member again; after other errors it tries at once.
fn failed(error: CallError) -> Error {
    match error {
        CallError::Unreachable { .. }
        | CallError::Refused { .. }
        | CallError::Failed { .. }
        | CallError::TooLong { .. } => RPCError::Unreachable(Unreachable::new(&error)),
        CallError::Lost { .. } | CallError::Timeout { .. } => RPCError::Network(NetworkError::new(&error)),
    }
}

fn unreadable(error: CodecError) -> Error {
    RPCError::Unreachable(Unreachable::new(&error))
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, Error> {
        let body = codec::encode_append_call(&request);
        let answer = self.call(Method::AppendEntries, body, option.soft_ttl()).await?;
        codec::decode_append_answer(answer).map_err(unreadable)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Error> {
        let answer = self.call(Method::Vote, codec::encode_vote_call(&request), option.soft_ttl()).await?;
        codec::decode_vote_answer(answer).map_err(unreadable)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Error> {
        // An unreachable member is an error, never a grant: openraft's default would let an isolated node win.
        let answer = self.call(Method::PreVote, codec::encode_vote_call(&request), option.soft_ttl()).await?;
        codec::decode_vote_answer(answer).map_err(unreadable)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            outcome = self.send_snapshot(vote, snapshot.snapshot) => outcome.map_err(StreamingError::from),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, Error> {
        let body = codec::encode_transfer_call(&request);
        let answer = self.call(Method::TransferLeader, body, option.soft_ttl()).await?;
        codec::decode_transfer_answer(answer, &request).map_err(unreadable)
    }
}

impl Peer {
    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Bytes,
    ) -> Result<SnapshotResponse<TypeConfig>, Error> {
        let transfer_id = NEXT_TRANSFER_ID.fetch_add(1, Ordering::Relaxed);
        let total = snapshot.len();
        let mut offset = 0;
        loop {
            let end = (offset + PIECE_BYTES).min(total);
            let piece = SnapshotPiece {
                vote,
                transfer_id,
                offset: u64::try_from(offset).unwrap_or(u64::MAX),
                total_length: u64::try_from(total).unwrap_or(u64::MAX),
                piece: snapshot.slice(offset..end),
            };
            let timeout = if end == total { LAST_PIECE_TIMEOUT } else { PIECE_TIMEOUT };
            let body = codec::encode_snapshot_piece(&piece);
            let answer = self.call(Method::InstallSnapshot, body, timeout).await?;
            let response = codec::decode_snapshot_answer(answer).map_err(unreadable)?;
            // Another vote means that this leader is out of office.
            if end == total || response.vote != vote {
                return Ok(response);
            }
            offset = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_does_not_answer_is_worth_a_word_once() {
        let silent = Silent::default();
        assert_eq!(silent.note(1, true), None);
        assert_eq!(silent.note(1, false), Some(Change::FellSilent));
        assert_eq!(silent.note(1, false), None);
        assert_eq!(silent.note(2, true), None, "another member");
        assert_eq!(silent.note(1, true), Some(Change::IsBack));
        assert_eq!(silent.note(1, false), Some(Change::FellSilent));
    }
}
