//! What an answer to a snapshot promises.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::entry::RaftEntry;
use openraft::raft::AppendEntriesRequest;
use uuid::Uuid;

use super::super::node::{RaftOptions, RaftTimings};
use super::super::sim_disk::SimRaftDisk;
use super::super::types::{Entry, LogId, SnapshotMeta, Vote};
use super::super::{disk::Disk, keys};
use super::*;
use crate::fleet::{FleetClient, LocalNode};
use crate::simulation::drive::Drive;
use crate::volume::KeptSpace;

const CLUSTER: Uuid = Uuid::from_u128(1);

async fn start(directory: &Path) -> RaftNode {
    let options = RaftOptions {
        directory: directory.to_owned(),
        kept_space: Arc::new(KeptSpace::new(directory)),
        node_id: 7,
        cluster_id: CLUSTER,
        client: FleetClient::new(LocalNode { cluster_id: CLUSTER, node_id: 7 }, None),
        timings: RaftTimings::default(),
        snapshot_every: 5_000,
    };
    RaftNode::start(options).await.unwrap()
}

fn entries(vote: Vote, indexes: std::ops::Range<u64>) -> AppendEntriesRequest<TypeConfig> {
    let log_id = |index| LogId::new_term_index(1, index);
    AppendEntriesRequest {
        vote,
        prev_log_id: indexes.start.checked_sub(1).map(log_id),
        leader_commit: indexes.end.checked_sub(1).map(log_id),
        entries: indexes.map(|index| Entry::new_blank(log_id(index))).collect(),
    }
}

#[test]
fn a_snapshot_of_what_is_known_already_is_answered_when_that_is_on_disk() {
    let mut simulation = turmoil::Builder::new().build();
    simulation.client("follower", async {
        receives_a_snapshot_while_the_log_is_written().await;
        Ok(())
    });
    simulation.run().unwrap();
}

async fn receives_a_snapshot_while_the_log_is_written() {
    let directory = Path::new("a follower with a slow disk");
    let drive = Arc::new(Drive::new(1));
    let disk = SimRaftDisk::insert(directory, Arc::clone(&drive));
    let node = Arc::new(start(directory).await);
    let vote = Vote::new_committed(1, 3);
    node.raft.append_entries(entries(vote, 0..1)).await.unwrap();
    assert!(disk.has_synced(&keys::entry(0)));
    drive.stall(true);
    let appended = tokio::spawn({
        let node = Arc::clone(&node);
        async move { node.raft.append_entries(entries(vote, 1..4)).await }
    });
    let last = LogId::new_term_index(1, 3);
    while node.log_end.last() != Some(last) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!disk.has_synced(&keys::entry(3)), "the disk is slow");

    let meta = SnapshotMeta { last_log_id: Some(last), ..SnapshotMeta::default() };
    let piece = codec::encode_snapshot(CLUSTER, &meta, &[]).unwrap();
    let total_length = u64::try_from(piece.len()).unwrap();
    let piece = SnapshotPiece { vote, transfer_id: 1, offset: 0, total_length, piece };
    let answer = node.receive_snapshot(3, piece).await.unwrap();
    assert_eq!(answer.vote, vote);
    assert!(disk.get(&keys::SNAPSHOT).unwrap().is_none(), "it was not needed");
    assert!(disk.has_synced(&keys::entry(3)), "the sender takes it that all of that is on disk");
    appended.await.unwrap().unwrap();
    node.shutdown().await;
}
