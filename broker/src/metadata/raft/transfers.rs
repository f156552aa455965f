//! Snapshots on their way in.

use bytes::{Bytes, BytesMut};
use openraft::raft::SnapshotResponse;

use super::codec::{self, SnapshotPiece};
use super::node::{RaftNode, malformed, stopped};
use super::types::{Snapshot, TypeConfig};
use crate::fleet::{Failure, FailureKind};

/// Snapshots that are being received at a time. Only a leader sends one; a second sender means a change of leaders.
const MAX_SNAPSHOT_TRANSFERS: usize = 4;
const MAX_SNAPSHOT_BYTES: u64 = 1 << 30;

/// A snapshot that is being received.
pub(super) struct Transfer {
    id: u64,
    received: BytesMut,
}

impl RaftNode {
    /// Takes a piece of a snapshot in, and installs the snapshot when it is complete.
    ///
    /// The sender takes the answer to the last piece for "everything up to there is on disk". openraft answers at once if
    /// it knows that everything up to there is committed, although the entries that came before may not be on disk yet.
    pub(super) async fn receive_snapshot(
        &self,
        peer: u64,
        piece: SnapshotPiece,
    ) -> Result<SnapshotResponse<TypeConfig>, Failure> {
        let vote = piece.vote;
        let Some(snapshot) = self.collect(peer, piece)? else { return Ok(SnapshotResponse::new(vote)) };
        let meta = codec::decode_snapshot(snapshot.clone()).map_err(malformed)?.meta;
        let answer =
            self.raft.install_full_snapshot(vote, Snapshot { meta, snapshot }).await.map_err(stopped)?;
        self.log_end.sync().await.map_err(stopped)?;
        Ok(answer)
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
}

#[cfg(test)]
#[path = "transfers_test.rs"]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests;
