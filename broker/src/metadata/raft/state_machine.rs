//! Applies committed entries to the metadata image and publishes it.
//!
//! The image lives in memory; what is on disk is a snapshot of it, and the log from there on. A restart loads the
//! snapshot and replays the log, so the image never contains what the log does not.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use tokio::sync::watch;
use uuid::Uuid;

use super::codec;
use super::log_store::LogStore;
use super::types::{
    Applied, Entry, EntryPayload, LogId, Snapshot, SnapshotData, SnapshotMeta, StoredMembership, TypeConfig,
};
use crate::metadata::image::MetadataImage;

/// Entries applied before the next image is published, when that many are there at once.
const PUBLISH_EVERY: usize = 64;

/// The newest image, for everyone who reads it.
#[derive(Clone, Debug)]
pub(super) struct Publisher {
    pub(super) current: Arc<ArcSwap<MetadataImage>>,
    pub(super) changes: watch::Sender<Arc<MetadataImage>>,
}

impl Publisher {
    pub(super) fn new(image: Arc<MetadataImage>) -> Self {
        Self { current: Arc::new(ArcSwap::new(Arc::clone(&image))), changes: watch::Sender::new(image) }
    }

    fn publish(&self, image: Arc<MetadataImage>) {
        self.current.store(Arc::clone(&image));
        self.changes.send_replace(image);
    }
}

pub(super) struct StateMachine {
    store: LogStore,
    publisher: Publisher,
    image: Arc<MetadataImage>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
}

impl StateMachine {
    /// As of the snapshot in `store`. Blocks on the disk.
    pub(super) fn open(store: LogStore, cluster_id: Uuid) -> io::Result<Self> {
        let empty = Arc::new(MetadataImage::empty(cluster_id));
        let mut machine = Self {
            publisher: Publisher::new(Arc::clone(&empty)),
            image: empty,
            last_applied: None,
            membership: StoredMembership::default(),
            store,
        };
        if let Some(snapshot) = machine.store.snapshot()? {
            machine.restore(snapshot)?;
        }
        Ok(machine)
    }

    pub(super) fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    fn restore(&mut self, snapshot: SnapshotData) -> io::Result<SnapshotMeta> {
        let content = codec::decode_snapshot(snapshot)?;
        if content.cluster_id != self.image.cluster_id {
            let message = format!("the snapshot belongs to cluster {}", content.cluster_id);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let mut image = MetadataImage::empty(content.cluster_id);
        let log_index = content.meta.last_log_id.map_or(0, |log_id| log_id.index);
        for record in &content.records {
            image.apply(record, log_index).map_err(invalid)?;
        }
        image.log_index = log_index;
        image.term = content.meta.last_log_id.map_or(0, |log_id| codec::term(&log_id));
        self.image = Arc::new(image);
        self.last_applied = content.meta.last_log_id;
        self.membership = content.meta.last_membership.clone();
        self.publisher.publish(Arc::clone(&self.image));
        Ok(content.meta)
    }

    fn apply_entry(&mut self, image: &mut MetadataImage, entry: Entry) -> io::Result<Applied> {
        let term = codec::term(&entry.log_id);
        let mut outcome = Applied::Done;
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(command) if command.decided_in_term == term => {
                for record in codec::decode_records(command.records)? {
                    image.apply(&record, entry.log_id.index).map_err(invalid)?;
                }
            }
            EntryPayload::Normal(_) => outcome = Applied::Stale,
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
        }
        image.log_index = entry.log_id.index;
        image.term = term;
        self.last_applied = Some(entry.log_id);
        Ok(outcome)
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(PUBLISH_EVERY);
        while let Some(chunk) = chunks.next().await {
            let mut image = self.image.as_ref().clone();
            let mut answers = Vec::with_capacity(chunk.len());
            for item in chunk {
                let (entry, responder) = item?;
                let outcome = self.apply_entry(&mut image, entry)?;
                answers.extend(responder.map(|responder| (responder, outcome)));
            }
            self.image = Arc::new(image);
            // Before the answers: who is told that something is done must find it in the image.
            self.publisher.publish(Arc::clone(&self.image));
            for (responder, outcome) in answers {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<SnapshotBuilder> {
        Some(SnapshotBuilder {
            store: self.store.clone(),
            image: Arc::clone(&self.image),
            meta: SnapshotMeta { last_log_id: self.last_applied, last_membership: self.membership.clone() },
        })
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        self.try_create_snapshot_builder(true).await.expect("a builder is always made")
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let content = codec::decode_snapshot(snapshot.clone())?;
        if content.meta != *meta {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot is not the one announced"));
        }
        // On disk first: the log before it may be purged as soon as this returns.
        self.store.save_snapshot(snapshot.clone()).await?;
        self.restore(snapshot)?;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let store = self.store.clone();
        let stored =
            crate::blocking::spawn_blocking(move || store.snapshot()).await.map_err(io::Error::other)??;
        let Some(snapshot) = stored else { return Ok(None) };
        let meta = codec::decode_snapshot(snapshot.clone())?.meta;
        Ok(Some(Snapshot { meta, snapshot }))
    }
}

/// Writes one image, while the state machine goes on.
pub(super) struct SnapshotBuilder {
    store: LogStore,
    image: Arc<MetadataImage>,
    meta: SnapshotMeta,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (image, meta) = (Arc::clone(&self.image), self.meta.clone());
        let encode = move || codec::encode_snapshot(image.cluster_id, &meta, &image.to_records());
        let snapshot = crate::blocking::spawn_blocking(encode).await.map_err(io::Error::other)??;
        self.store.save_snapshot(snapshot.clone()).await?;
        tracing::info!(
            raft.index = self.image.log_index,
            bytes = snapshot.len(),
            "wrote a metadata snapshot"
        );
        Ok(Snapshot { meta: self.meta.clone(), snapshot })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use crate::metadata::raft::types::Command;
    use crate::metadata::records::Record;
    use crate::volume::KeptSpace;

    fn entry(index: u64, term: u64, decided_in_term: u64, records: &[Record]) -> Entry {
        let command = Command { decided_in_term, records: codec::encode_records(records).unwrap() };
        Entry { log_id: LogId::new_term_index(term, index), payload: EntryPayload::Normal(command) }
    }

    fn machine(directory: &std::path::Path) -> StateMachine {
        let kept_space = Arc::new(KeptSpace::new(directory));
        let (store, _closer) = LogStore::open(directory, kept_space).unwrap();
        StateMachine::open(store, Uuid::from_u128(1)).unwrap()
    }

    async fn apply(machine: &mut StateMachine, entries: Vec<Entry>) -> io::Result<()> {
        let items: Vec<io::Result<EntryResponder<TypeConfig>>> =
            entries.into_iter().map(|entry| Ok((entry, None))).collect();
        machine.apply(futures::stream::iter(items)).await
    }

    #[tokio::test]
    async fn what_an_earlier_leader_decided_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut machine = machine(directory.path());
        let record = [Record::ProducerIds { next_producer_id: 7 }];
        let mut image = machine.image.as_ref().clone();
        let outcome = machine.apply_entry(&mut image, entry(1, 5, 4, &record)).unwrap();
        assert_eq!((outcome, image.next_producer_id, image.log_index), (Applied::Stale, 0, 1));
        let outcome = machine.apply_entry(&mut image, entry(2, 5, 5, &record)).unwrap();
        assert_eq!((outcome, image.next_producer_id, image.log_index), (Applied::Done, 7, 2));
    }

    #[tokio::test]
    async fn an_image_is_published_with_the_position_it_contains() {
        let directory = tempfile::tempdir().unwrap();
        let mut machine = machine(directory.path());
        let publisher = machine.publisher();
        let changes = publisher.changes.subscribe();
        let ids = |next_producer_id| [Record::ProducerIds { next_producer_id }];
        apply(&mut machine, vec![entry(1, 1, 1, &ids(10)), entry(2, 1, 1, &ids(20))]).await.unwrap();
        for image in [publisher.current.load_full(), Arc::clone(&changes.borrow())] {
            assert_eq!((image.next_producer_id, image.log_index, image.term), (20, 2, 1));
        }
    }

    #[tokio::test]
    async fn a_record_that_does_not_fit_stops_the_member_and_is_not_published() {
        let directory = tempfile::tempdir().unwrap();
        let mut machine = machine(directory.path());
        let publisher = machine.publisher();
        let misfit = [Record::RemoveTopic { topic_id: Uuid::from_u128(9) }];
        assert!(apply(&mut machine, vec![entry(1, 1, 1, &misfit)]).await.is_err());
        assert_eq!(publisher.current.load().log_index, 0);
        assert!(
            apply(
                &mut machine,
                vec![Entry {
                    log_id: LogId::new_term_index(1, 1),
                    payload: EntryPayload::Normal(Command { decided_in_term: 1, records: vec![9, 9] }),
                }]
            )
            .await
            .is_err()
        );
    }
}
