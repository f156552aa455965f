//! Calls of other brokers: to the metadata service, or to the replicas here.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use millrace_protocol::RecordBytes;

use crate::fleet::{CallHandler, Failure, FailureKind, Method};
use crate::metadata::raft::{decode, encode_in_pieces};
use crate::replication::ReplicaManager;

/// See the module documentation. The metadata answers before the replicas are open.
pub(crate) struct Calls {
    metadata: Arc<dyn CallHandler>,
    replicas: OnceLock<ReplicaManager>,
}

impl Calls {
    pub(crate) fn new(metadata: Arc<dyn CallHandler>) -> Self {
        Self { metadata, replicas: OnceLock::new() }
    }

    /// Followers are answered from now on.
    pub(crate) fn serve_followers(&self, replicas: ReplicaManager) {
        // Called once.
        let _ = self.replicas.set(replicas);
    }

    async fn replica_fetch(&self, body: Bytes) -> Result<RecordBytes, Failure> {
        let malformed =
            |error: &dyn std::fmt::Display| Failure::new(FailureKind::Malformed, error.to_string());
        let Some(replicas) = self.replicas.get() else {
            return Err(Failure::new(FailureKind::NotNow, "the replicas of this broker are not open yet"));
        };
        let call = decode(body).map_err(|error| malformed(&error))?;
        encode_in_pieces(&replicas.serve_follower(call).await).map_err(|error| malformed(&error))
    }
}

impl CallHandler for Calls {
    fn handle(&self, peer: u64, method: Method, body: Bytes) -> BoxFuture<'_, Result<RecordBytes, Failure>> {
        match method {
            Method::ReplicaFetch => self.replica_fetch(body).boxed(),
            _ => self.metadata.handle(peer, method, body),
        }
    }
}
