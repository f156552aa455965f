//! Calls of other brokers: to the metadata service, or to the replicas here.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use millrace_protocol::RecordBytes;

use crate::fleet::{CallHandler, Failure, FailureKind, Method};
use crate::metadata::raft::{decode, encode_in_pieces};
use crate::replication::ReplicaManager;
use crate::schema::internal::{BrokerLoadCall, ReplicaProgressCall};

/// See the module documentation. The metadata answers before the replicas are open.
pub(crate) struct Calls {
    metadata: Arc<dyn CallHandler>,
    replicas: Arc<OnceLock<ReplicaManager>>,
}

impl Calls {
    pub(crate) fn new(metadata: Arc<dyn CallHandler>) -> Self {
        Self { metadata, replicas: Arc::default() }
    }

    /// The replicas, once they are open.
    pub(super) fn replicas(&self) -> Arc<OnceLock<ReplicaManager>> {
        Arc::clone(&self.replicas)
    }

    /// Followers are answered from now on.
    pub(crate) fn serve_followers(&self, replicas: ReplicaManager) {
        // Called once.
        let _ = self.replicas.set(replicas);
    }

    fn open_replicas(&self) -> Result<&ReplicaManager, Failure> {
        let not_yet = || Failure::new(FailureKind::NotNow, "the replicas of this broker are not open yet");
        self.replicas.get().ok_or_else(not_yet)
    }

    async fn replica_fetch(&self, body: Bytes) -> Result<RecordBytes, Failure> {
        let replicas = self.open_replicas()?;
        let call = decode(body).map_err(|error| malformed(&error))?;
        encode_in_pieces(&replicas.serve_follower(call).await).map_err(|error| malformed(&error))
    }

    async fn replica_progress(&self, body: Bytes) -> Result<RecordBytes, Failure> {
        let replicas = self.open_replicas()?;
        let _: ReplicaProgressCall = decode(body).map_err(|error| malformed(&error))?;
        encode_in_pieces(&replicas.serve_progress().await).map_err(|error| malformed(&error))
    }

    async fn broker_load(&self, body: Bytes) -> Result<RecordBytes, Failure> {
        let replicas = self.open_replicas()?;
        let _: BrokerLoadCall = decode(body).map_err(|error| malformed(&error))?;
        encode_in_pieces(&replicas.serve_load().await).map_err(|error| malformed(&error))
    }
}

fn malformed(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Malformed, error.to_string())
}

impl CallHandler for Calls {
    fn handle(&self, peer: u64, method: Method, body: Bytes) -> BoxFuture<'_, Result<RecordBytes, Failure>> {
        match method {
            Method::ReplicaFetch => self.replica_fetch(body).boxed(),
            Method::ReplicaProgress => self.replica_progress(body).boxed(),
            Method::BrokerLoad => self.broker_load(body).boxed(),
            _ => self.metadata.handle(peer, method, body),
        }
    }
}
