//! The quorum's entries, votes, snapshots and calls as bytes: the mapping between openraft's types and the generated
//! messages of `schema/internal.schema`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use millrace_protocol::{DecodeError, Decoder, EncodeError, Encoder, Message, RecordBytes};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use uuid::Uuid;

use super::types::{
    Command, Entry, EntryPayload, LogId, Membership, Node, SnapshotMeta, StoredMembership, TypeConfig, Vote,
};
use crate::metadata::records::{Record, RecordError};
use crate::schema::internal as wire;

/// Decoded values may take this much memory; the metadata of a million partitions stays below.
const MEMORY_LIMIT: usize = 2 << 30;

const NONE: i64 = -1;

/// Bytes that are not what they should be, or values that have no form as bytes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    /// Cannot be read.
    #[error("cannot read {what}")]
    Decode { what: &'static str, source: DecodeError },
    /// Cannot be written.
    #[error("cannot write {what}")]
    Encode { what: &'static str, source: EncodeError },
    /// A record inside cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Reads well but makes no sense.
    #[error("{what} is malformed: {reason}")]
    Malformed { what: &'static str, reason: String },
}

impl From<CodecError> for io::Error {
    fn from(error: CodecError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

type Result<T> = std::result::Result<T, CodecError>;

/// Version and body of a message.
pub(crate) fn encode<M: Message>(message: &M) -> Result<Bytes> {
    Ok(encode_with(Encoder::new(), message)?.into_bytes())
}

/// As [`encode`], without copying records.
pub(crate) fn encode_in_pieces<M: Message>(message: &M) -> Result<RecordBytes> {
    Ok(encode_with(Encoder::segmented(), message)?.into_segments().into())
}

fn encode_with<M: Message>(mut encoder: Encoder, message: &M) -> Result<Encoder> {
    let version = u32::try_from(M::MAX_VERSION).expect("versions are not negative");
    encoder.unsigned_varint(version);
    message
        .encode(&mut encoder, M::MAX_VERSION)
        .map_err(|source| CodecError::Encode { what: M::NAME, source })?;
    Ok(encoder)
}

/// Reads what [`encode`] wrote.
pub(crate) fn decode<M: Message>(bytes: Bytes) -> Result<M> {
    let failed = |source| CodecError::Decode { what: M::NAME, source };
    let mut decoder = Decoder::with_memory_limit(bytes, MEMORY_LIMIT);
    let version = decoder.unsigned_varint().map_err(failed)?;
    let message = M::decode(&mut decoder, i16::try_from(version).unwrap_or(i16::MAX)).map_err(failed)?;
    decoder.finish().map_err(failed)?;
    Ok(message)
}

pub(super) fn encode_records(records: &[Record]) -> Result<Vec<u8>> {
    let message = wire::CommandRecords { records: record_bytes(records)?, ..Default::default() };
    Ok(encode(&message)?.into())
}

pub(super) fn decode_records(bytes: Vec<u8>) -> Result<Vec<Record>> {
    let message: wire::CommandRecords = decode(bytes.into())?;
    records(message.records)
}

fn record_bytes(records: &[Record]) -> Result<Vec<Bytes>> {
    let failed = |source| CodecError::Encode { what: "a metadata record", source };
    records.iter().map(|record| record.encode().map_err(failed)).collect()
}

fn records(list: Vec<Bytes>) -> Result<Vec<Record>> {
    list.into_iter().map(|bytes| Record::decode(bytes).map_err(CodecError::from)).collect()
}

pub(super) fn encode_entry(entry: &Entry) -> Result<Bytes> {
    const BLANK: i8 = 0;
    const COMMAND: i8 = 1;
    const MEMBERSHIP: i8 = 2;
    let mut message = wire::StoredEntry {
        term: term(&entry.log_id).cast_signed(),
        index: entry.log_id.index.cast_signed(),
        ..Default::default()
    };
    match &entry.payload {
        EntryPayload::Blank => message.kind = BLANK,
        EntryPayload::Normal(command) => {
            message.kind = COMMAND;
            message.decided_in_term = command.decided_in_term.cast_signed();
            message.records = Bytes::copy_from_slice(&command.records);
        }
        EntryPayload::Membership(membership) => {
            message.kind = MEMBERSHIP;
            message.voter_sets = voter_sets(membership)
                .map(|voters| wire::stored_entry::VoterSet { voters, ..Default::default() })
                .collect();
            message.nodes = nodes(membership)
                .map(|(node_id, address)| wire::stored_entry::EntryNode {
                    node_id,
                    address: address.into(),
                    ..Default::default()
                })
                .collect();
        }
    }
    encode(&message)
}

pub(super) fn decode_entry(bytes: Bytes) -> Result<Entry> {
    let message: wire::StoredEntry = decode(bytes)?;
    let log_id = LogId::new_term_index(message.term.cast_unsigned(), message.index.cast_unsigned());
    let payload = match message.kind {
        0 => EntryPayload::Blank,
        1 => EntryPayload::Normal(Command {
            decided_in_term: message.decided_in_term.cast_unsigned(),
            records: message.records.into(),
        }),
        2 => EntryPayload::Membership(membership(
            message.voter_sets.into_iter().map(|set| set.voters),
            message.nodes.into_iter().map(|node| (node.node_id, node.address.to_string())),
        )?),
        kind => return Err(malformed("StoredEntry", format!("unknown kind {kind}"))),
    };
    Ok(Entry { log_id, payload })
}

pub(super) fn encode_vote(vote: &Vote) -> Result<Bytes> {
    let (term, node_id, committed) = vote_fields(vote);
    encode(&wire::StoredVote { term, node_id, committed, ..Default::default() })
}

pub(super) fn decode_vote(bytes: Bytes) -> Result<Vote> {
    let message: wire::StoredVote = decode(bytes)?;
    Ok(vote((message.term, message.node_id, message.committed)))
}

pub(super) fn encode_log_id(log_id: LogId) -> Result<Bytes> {
    let (term, index) = log_id_fields(Some(log_id));
    encode(&wire::StoredLogId { term, index, ..Default::default() })
}

pub(super) fn decode_log_id(bytes: Bytes) -> Result<LogId> {
    let message: wire::StoredLogId = decode(bytes)?;
    log_id((message.term, message.index)).ok_or_else(|| malformed("StoredLogId", "no index".to_owned()))
}

/// A snapshot taken apart.
#[derive(Debug)]
pub(super) struct SnapshotContent {
    pub(super) cluster_id: Uuid,
    pub(super) meta: SnapshotMeta,
    pub(super) records: Vec<Record>,
}

pub(super) fn encode_snapshot(cluster_id: Uuid, meta: &SnapshotMeta, records: &[Record]) -> Result<Bytes> {
    let (last_term, last_index) = log_id_fields(meta.last_log_id);
    let (membership_term, membership_index) = log_id_fields(*meta.last_membership.log_id());
    let membership = meta.last_membership.membership();
    encode(&wire::StoredSnapshot {
        cluster_id,
        last_term,
        last_index,
        membership_term,
        membership_index,
        voter_sets: voter_sets(membership)
            .map(|voters| wire::stored_snapshot::SnapshotVoterSet { voters, ..Default::default() })
            .collect(),
        nodes: nodes(membership)
            .map(|(node_id, address)| wire::stored_snapshot::SnapshotNode {
                node_id,
                address: address.into(),
                ..Default::default()
            })
            .collect(),
        records: record_bytes(records)?,
        ..Default::default()
    })
}

pub(super) fn decode_snapshot(bytes: Bytes) -> Result<SnapshotContent> {
    let message: wire::StoredSnapshot = decode(bytes)?;
    let membership = membership(
        message.voter_sets.into_iter().map(|set| set.voters),
        message.nodes.into_iter().map(|node| (node.node_id, node.address.to_string())),
    )?;
    let last_membership =
        StoredMembership::new(log_id((message.membership_term, message.membership_index)), membership);
    Ok(SnapshotContent {
        cluster_id: message.cluster_id,
        meta: SnapshotMeta { last_log_id: log_id((message.last_term, message.last_index)), last_membership },
        records: records(message.records)?,
    })
}

pub(super) fn encode_append_call(request: &AppendEntriesRequest<TypeConfig>) -> Result<Bytes> {
    let (vote_term, vote_node_id, vote_committed) = vote_fields(&request.vote);
    let (previous_term, previous_index) = log_id_fields(request.prev_log_id);
    let (commit_term, commit_index) = log_id_fields(request.leader_commit);
    encode(&wire::AppendEntriesCall {
        vote_term,
        vote_node_id,
        vote_committed,
        previous_term,
        previous_index,
        commit_term,
        commit_index,
        entries: request.entries.iter().map(encode_entry).collect::<Result<_>>()?,
        ..Default::default()
    })
}

pub(super) fn decode_append_call(bytes: Bytes) -> Result<AppendEntriesRequest<TypeConfig>> {
    let message: wire::AppendEntriesCall = decode(bytes)?;
    Ok(AppendEntriesRequest {
        vote: vote((message.vote_term, message.vote_node_id, message.vote_committed)),
        prev_log_id: log_id((message.previous_term, message.previous_index)),
        entries: message.entries.into_iter().map(decode_entry).collect::<Result<_>>()?,
        leader_commit: log_id((message.commit_term, message.commit_index)),
    })
}

pub(super) fn encode_append_answer(response: &AppendEntriesResponse<TypeConfig>) -> Result<Bytes> {
    let mut message = wire::AppendEntriesAnswer::default();
    match response {
        AppendEntriesResponse::Success => message.outcome = 0,
        AppendEntriesResponse::PartialSuccess(matched) => {
            message.outcome = 1;
            (message.matched_term, message.matched_index) = log_id_fields(*matched);
        }
        AppendEntriesResponse::Conflict => message.outcome = 2,
        AppendEntriesResponse::HigherVote(vote) => {
            message.outcome = 3;
            (message.vote_term, message.vote_node_id, message.vote_committed) = vote_fields(vote);
        }
    }
    encode(&message)
}

pub(super) fn decode_append_answer(bytes: Bytes) -> Result<AppendEntriesResponse<TypeConfig>> {
    let message: wire::AppendEntriesAnswer = decode(bytes)?;
    Ok(match message.outcome {
        0 => AppendEntriesResponse::Success,
        1 => AppendEntriesResponse::PartialSuccess(log_id((message.matched_term, message.matched_index))),
        2 => AppendEntriesResponse::Conflict,
        3 => AppendEntriesResponse::HigherVote(vote((
            message.vote_term,
            message.vote_node_id,
            message.vote_committed,
        ))),
        outcome => return Err(malformed("AppendEntriesAnswer", format!("unknown outcome {outcome}"))),
    })
}

pub(super) fn encode_vote_call(request: &VoteRequest<TypeConfig>) -> Result<Bytes> {
    let (vote_term, vote_node_id, vote_committed) = vote_fields(&request.vote);
    let (last_term, last_index) = log_id_fields(request.last_log_id);
    encode(&wire::VoteCall {
        vote_term,
        vote_node_id,
        vote_committed,
        last_term,
        last_index,
        leadership_transfer: request.leadership_transfer,
        ..Default::default()
    })
}

pub(super) fn decode_vote_call(bytes: Bytes) -> Result<VoteRequest<TypeConfig>> {
    let message: wire::VoteCall = decode(bytes)?;
    Ok(VoteRequest {
        vote: vote((message.vote_term, message.vote_node_id, message.vote_committed)),
        last_log_id: log_id((message.last_term, message.last_index)),
        leadership_transfer: message.leadership_transfer,
    })
}

pub(super) fn encode_vote_answer(response: &VoteResponse<TypeConfig>) -> Result<Bytes> {
    let (vote_term, vote_node_id, vote_committed) = vote_fields(&response.vote);
    let (last_term, last_index) = log_id_fields(response.last_log_id);
    encode(&wire::VoteAnswer {
        vote_term,
        vote_node_id,
        vote_committed,
        granted: response.vote_granted,
        last_term,
        last_index,
        ..Default::default()
    })
}

pub(super) fn decode_vote_answer(bytes: Bytes) -> Result<VoteResponse<TypeConfig>> {
    let message: wire::VoteAnswer = decode(bytes)?;
    Ok(VoteResponse {
        vote: vote((message.vote_term, message.vote_node_id, message.vote_committed)),
        vote_granted: message.granted,
        last_log_id: log_id((message.last_term, message.last_index)),
    })
}

/// A piece of a snapshot on its way.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SnapshotPiece {
    pub(super) vote: Vote,
    pub(super) transfer_id: u64,
    pub(super) offset: u64,
    pub(super) total_length: u64,
    pub(super) piece: Bytes,
}

pub(super) fn encode_snapshot_piece(piece: &SnapshotPiece) -> Result<Bytes> {
    let (vote_term, vote_node_id, vote_committed) = vote_fields(&piece.vote);
    encode(&wire::SnapshotPieceCall {
        vote_term,
        vote_node_id,
        vote_committed,
        transfer_id: piece.transfer_id.cast_signed(),
        offset: piece.offset.cast_signed(),
        total_length: piece.total_length.cast_signed(),
        piece: piece.piece.clone(),
        ..Default::default()
    })
}

pub(super) fn decode_snapshot_piece(bytes: Bytes) -> Result<SnapshotPiece> {
    let message: wire::SnapshotPieceCall = decode(bytes)?;
    Ok(SnapshotPiece {
        vote: vote((message.vote_term, message.vote_node_id, message.vote_committed)),
        transfer_id: message.transfer_id.cast_unsigned(),
        offset: message.offset.cast_unsigned(),
        total_length: message.total_length.cast_unsigned(),
        piece: message.piece,
    })
}

pub(super) fn encode_snapshot_answer(response: &SnapshotResponse<TypeConfig>) -> Result<Bytes> {
    let (vote_term, vote_node_id, vote_committed) = vote_fields(&response.vote);
    encode(&wire::SnapshotPieceAnswer { vote_term, vote_node_id, vote_committed, ..Default::default() })
}

pub(super) fn decode_snapshot_answer(bytes: Bytes) -> Result<SnapshotResponse<TypeConfig>> {
    let message: wire::SnapshotPieceAnswer = decode(bytes)?;
    Ok(SnapshotResponse::new(vote((message.vote_term, message.vote_node_id, message.vote_committed))))
}

pub(super) fn encode_transfer_call(request: &TransferLeaderRequest<TypeConfig>) -> Result<Bytes> {
    let (vote_term, vote_node_id, vote_committed) = vote_fields(request.from_leader());
    let (last_term, last_index) = log_id_fields(request.last_log_id().copied());
    encode(&wire::TransferLeaderCall {
        vote_term,
        vote_node_id,
        vote_committed,
        target_node_id: request.to_node_id().cast_signed(),
        last_term,
        last_index,
        ..Default::default()
    })
}

pub(super) fn decode_transfer_call(bytes: Bytes) -> Result<TransferLeaderRequest<TypeConfig>> {
    let message: wire::TransferLeaderCall = decode(bytes)?;
    Ok(TransferLeaderRequest::new(
        vote((message.vote_term, message.vote_node_id, message.vote_committed)),
        message.target_node_id.cast_unsigned(),
        log_id((message.last_term, message.last_index)),
    ))
}

pub(super) fn encode_transfer_answer(response: &TransferLeaderResponse<TypeConfig>) -> Result<Bytes> {
    let mut message = wire::TransferLeaderAnswer::default();
    match response {
        Ok(()) => message.outcome = 0,
        Err(TransferLeaderError::VoteChanged { actual, .. }) => {
            message.outcome = 1;
            (message.vote_term, message.vote_node_id, message.vote_committed) = vote_fields(actual);
        }
        Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
            message.outcome = 2;
            (message.last_term, message.last_index) = log_id_fields(*actual);
        }
    }
    encode(&message)
}

/// `request` is what was sent: it is part of the answer's meaning.
pub(super) fn decode_transfer_answer(
    bytes: Bytes,
    request: &TransferLeaderRequest<TypeConfig>,
) -> Result<TransferLeaderResponse<TypeConfig>> {
    let message: wire::TransferLeaderAnswer = decode(bytes)?;
    Ok(match message.outcome {
        0 => Ok(()),
        1 => Err(TransferLeaderError::VoteChanged {
            expected: *request.from_leader(),
            actual: vote((message.vote_term, message.vote_node_id, message.vote_committed)),
        }),
        2 => Err(TransferLeaderError::LogNotFlushed {
            expected: request.last_log_id().copied(),
            actual: log_id((message.last_term, message.last_index)),
        }),
        outcome => return Err(malformed("TransferLeaderAnswer", format!("unknown outcome {outcome}"))),
    })
}

pub(super) fn term(log_id: &LogId) -> u64 {
    log_id.leader_id.term
}

fn log_id_fields(log_id: Option<LogId>) -> (i64, i64) {
    log_id.map_or((0, NONE), |log_id| (term(&log_id).cast_signed(), log_id.index.cast_signed()))
}

fn log_id((term, index): (i64, i64)) -> Option<LogId> {
    (index != NONE).then(|| LogId::new_term_index(term.cast_unsigned(), index.cast_unsigned()))
}

fn vote_fields(vote: &Vote) -> (i64, i64, bool) {
    (vote.leader_id.term.cast_signed(), vote.leader_id.voted_for.cast_signed(), vote.committed)
}

fn vote((term, node_id, committed): (i64, i64, bool)) -> Vote {
    let (term, node_id) = (term.cast_unsigned(), node_id.cast_unsigned());
    if committed { Vote::new_committed(term, node_id) } else { Vote::new(term, node_id) }
}

fn voter_sets(membership: &Membership) -> impl Iterator<Item = Vec<i64>> + '_ {
    membership.get_joint_config().iter().map(|set| set.iter().map(|id| id.cast_signed()).collect())
}

fn nodes(membership: &Membership) -> impl Iterator<Item = (i64, &str)> + '_ {
    membership.nodes().map(|(node_id, node)| (node_id.cast_signed(), node.address.as_str()))
}

fn membership(
    voter_sets: impl Iterator<Item = Vec<i64>>,
    nodes: impl Iterator<Item = (i64, String)>,
) -> Result<Membership> {
    let sets: Vec<BTreeSet<u64>> =
        voter_sets.map(|set| set.into_iter().map(i64::cast_unsigned).collect()).collect();
    let nodes: BTreeMap<u64, Node> =
        nodes.map(|(node_id, address)| (node_id.cast_unsigned(), Node { address })).collect();
    if sets.is_empty() && nodes.is_empty() {
        // What a node knows before it hears of any quorum.
        return Ok(Membership::default());
    }
    Membership::new(sets, nodes).map_err(|error| malformed("a membership", error.to_string()))
}

fn malformed(what: &'static str, reason: String) -> CodecError {
    CodecError::Malformed { what, reason }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use openraft::entry::RaftEntry;
    use proptest::prelude::*;

    fn log_ids() -> impl Strategy<Value = LogId> {
        (any::<u64>(), 0_u64..=i64::MAX as u64).prop_map(|(term, index)| LogId::new_term_index(term, index))
    }

    fn votes() -> impl Strategy<Value = Vote> {
        (any::<i64>(), any::<i64>(), any::<bool>()).prop_map(vote)
    }

    fn memberships() -> impl Strategy<Value = Membership> {
        let ids = proptest::collection::btree_set(any::<u64>(), 1..4);
        (proptest::collection::vec(ids, 1..3), any::<u64>()).prop_map(|(sets, learner)| {
            let nodes = sets.iter().flatten().copied().chain([learner]);
            let nodes: BTreeMap<u64, Node> =
                nodes.map(|id| (id, Node { address: format!("host-{id}:9093") })).collect();
            Membership::new(sets, nodes).unwrap()
        })
    }

    fn entries() -> impl Strategy<Value = Entry> {
        let command = (any::<u64>(), proptest::collection::vec(any::<u8>(), 0..50));
        prop_oneof![
            log_ids().prop_map(Entry::new_blank),
            (log_ids(), command).prop_map(|(log_id, (decided_in_term, records))| Entry {
                log_id,
                payload: EntryPayload::Normal(Command { decided_in_term, records }),
            }),
            (log_ids(), memberships())
                .prop_map(|(log_id, membership)| Entry::new_membership(log_id, membership)),
        ]
    }

    proptest! {
        #[test]
        fn entries_survive(entry in entries()) {
            prop_assert_eq!(decode_entry(encode_entry(&entry).unwrap()).unwrap(), entry);
        }

        #[test]
        fn votes_and_log_ids_survive(vote in votes(), log_id in log_ids()) {
            prop_assert_eq!(decode_vote(encode_vote(&vote).unwrap()).unwrap(), vote);
            prop_assert_eq!(decode_log_id(encode_log_id(log_id).unwrap()).unwrap(), log_id);
        }

        #[test]
        fn append_calls_survive(
            vote in votes(),
            prev_log_id in proptest::option::of(log_ids()),
            leader_commit in proptest::option::of(log_ids()),
            entries in proptest::collection::vec(entries(), 0..4),
        ) {
            let request = AppendEntriesRequest { vote, prev_log_id, entries, leader_commit };
            let read = decode_append_call(encode_append_call(&request).unwrap()).unwrap();
            prop_assert_eq!(
                (read.vote, read.prev_log_id, read.entries, read.leader_commit),
                (request.vote, request.prev_log_id, request.entries, request.leader_commit)
            );
        }

        #[test]
        fn append_answers_survive(vote in votes(), matched in proptest::option::of(log_ids())) {
            for answer in [
                AppendEntriesResponse::Success,
                AppendEntriesResponse::PartialSuccess(matched),
                AppendEntriesResponse::Conflict,
                AppendEntriesResponse::HigherVote(vote),
            ] {
                prop_assert_eq!(decode_append_answer(encode_append_answer(&answer).unwrap()).unwrap(), answer);
            }
        }

        #[test]
        fn votes_asked_and_given_survive(
            vote in votes(),
            last_log_id in proptest::option::of(log_ids()),
            flag: bool,
        ) {
            let request = VoteRequest { vote, last_log_id, leadership_transfer: flag };
            prop_assert_eq!(decode_vote_call(encode_vote_call(&request).unwrap()).unwrap(), request);
            let answer = VoteResponse { vote, vote_granted: flag, last_log_id };
            prop_assert_eq!(decode_vote_answer(encode_vote_answer(&answer).unwrap()).unwrap(), answer);
        }

        #[test]
        fn snapshots_and_their_pieces_survive(
            vote in votes(),
            last_log_id in proptest::option::of(log_ids()),
            membership in memberships(),
            piece in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let last_membership = StoredMembership::new(last_log_id, membership);
            let meta = SnapshotMeta { last_log_id, last_membership };
            let records = vec![Record::ProducerIds { next_producer_id: 5 }];
            let bytes = encode_snapshot(Uuid::from_u128(3), &meta, &records).unwrap();
            let content = decode_snapshot(bytes).unwrap();
            prop_assert_eq!((content.cluster_id, content.meta, content.records), (Uuid::from_u128(3), meta, records));
            let piece = SnapshotPiece { vote, transfer_id: 1, offset: 2, total_length: 3, piece: piece.into() };
            prop_assert_eq!(decode_snapshot_piece(encode_snapshot_piece(&piece).unwrap()).unwrap(), piece);
            let answer = SnapshotResponse::new(vote);
            prop_assert_eq!(decode_snapshot_answer(encode_snapshot_answer(&answer).unwrap()).unwrap(), answer);
        }

        #[test]
        fn hand_overs_survive(vote in votes(), other in votes(), last in proptest::option::of(log_ids())) {
            let request = TransferLeaderRequest::new(vote, 7, last);
            prop_assert_eq!(decode_transfer_call(encode_transfer_call(&request).unwrap()).unwrap(), request.clone());
            for answer in [
                Ok(()),
                Err(TransferLeaderError::VoteChanged { expected: vote, actual: other }),
                Err(TransferLeaderError::LogNotFlushed { expected: last, actual: None }),
            ] {
                let bytes = encode_transfer_answer(&answer).unwrap();
                prop_assert_eq!(decode_transfer_answer(bytes, &request).unwrap(), answer);
            }
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let bytes = Bytes::from(bytes);
            let _ = decode_entry(bytes.clone());
            let _ = decode_snapshot(bytes.clone());
            let _ = decode_append_call(bytes.clone());
            let _ = decode_append_answer(bytes.clone());
            let _ = decode_vote_call(bytes.clone());
            let _ = decode_snapshot_piece(bytes.clone());
            let _ = decode_transfer_call(bytes.clone());
            let _ = decode_records(bytes.into());
        }
    }

    #[test]
    fn an_entry_of_a_newer_version_is_an_error() {
        let mut bytes = encode_entry(&Entry::new_blank(LogId::new_term_index(1, 1))).unwrap().to_vec();
        bytes[0] = 1;
        assert!(decode_entry(bytes.into()).is_err());
    }

    #[test]
    fn stored_entries_keep_their_format() {
        // Bytes of version 0, written down: a disk written by this version must stay readable.
        let entry = Entry {
            log_id: LogId::new_term_index(2, 3),
            payload: EntryPayload::Normal(Command { decided_in_term: 2, records: vec![0xaa] }),
        };
        let expected = [
            &[0][..],
            &2_u64.to_be_bytes(),
            &3_u64.to_be_bytes(),
            &[1],
            &2_u64.to_be_bytes(),
            &[2, 0xaa],
            &[1],
            &[1],
            &[0],
        ]
        .concat();
        assert_eq!(encode_entry(&entry).unwrap(), expected);
        assert_eq!(decode_entry(expected.into()).unwrap(), entry);
    }
}
