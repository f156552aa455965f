//! Whom replication talks to: leaders on other brokers, and the controller.

use std::fmt;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use millrace_protocol::ErrorCode;
use tokio::sync::watch;

use crate::fleet::{FleetClient, Method, PeerAddress};
use crate::metadata::MetadataHandle;
use crate::metadata::controller::{ControllerRequest, ControllerResponse, IsrChange};
use crate::metadata::image::BrokerImage;
use crate::metadata::raft;
use crate::metadata::service::BrokerState;
use crate::schema::internal::{
    BrokerLoadAnswer, BrokerLoadCall, ReplicaFetchAnswer, ReplicaFetchCall, ReplicaProgressAnswer,
    ReplicaProgressCall,
};

/// Time that the controller gets to answer; elections of a controller are shorter.
const CONTROLLER_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module documentation. Errors are for people.
pub trait Peers: fmt::Debug + Send + Sync {
    /// Fetches from a leader. Dropping the future does not take the call back.
    fn fetch(
        &self,
        leader: &BrokerImage,
        call: ReplicaFetchCall,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<ReplicaFetchAnswer, String>>;

    /// Asks a leader how far the followers of partitions under reassignment are.
    fn progress(
        &self,
        leader: &BrokerImage,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<ReplicaProgressAnswer, String>>;

    /// Asks a broker what it carries.
    fn load(
        &self,
        broker: &BrokerImage,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<BrokerLoadAnswer, String>>;

    /// Asks the controller for other in-sync replicas. One answer for each change; the image contains what it did.
    fn alter_partitions(&self, changes: Vec<IsrChange>)
    -> BoxFuture<'static, Result<Vec<ErrorCode>, String>>;
}

/// The peers of a broker in a fleet.
#[derive(Clone, Debug)]
pub struct FleetPeers {
    client: FleetClient,
    metadata: MetadataHandle,
    own: watch::Receiver<BrokerState>,
}

impl FleetPeers {
    /// `client` must be of its own: its connections carry records, which nothing urgent should wait behind.
    pub fn new(client: FleetClient, metadata: MetadataHandle, own: watch::Receiver<BrokerState>) -> Self {
        Self { client, metadata, own }
    }
}

impl Peers for FleetPeers {
    fn fetch(
        &self,
        leader: &BrokerImage,
        call: ReplicaFetchCall,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<ReplicaFetchAnswer, String>> {
        let client = self.client.clone();
        let peer = PeerAddress { address: leader.address.clone(), node_id: Some(leader.raft_node_id) };
        async move {
            let body = raft::encode(&call).map_err(|error| error.to_string())?;
            let answer = client.call(&peer, Method::ReplicaFetch, body, timeout).await;
            raft::decode(answer.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn progress(
        &self,
        leader: &BrokerImage,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<ReplicaProgressAnswer, String>> {
        let client = self.client.clone();
        let peer = PeerAddress { address: leader.address.clone(), node_id: Some(leader.raft_node_id) };
        async move {
            let body = raft::encode(&ReplicaProgressCall::default()).map_err(|error| error.to_string())?;
            let answer = client.call(&peer, Method::ReplicaProgress, body, timeout).await;
            raft::decode(answer.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn load(
        &self,
        broker: &BrokerImage,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<BrokerLoadAnswer, String>> {
        let client = self.client.clone();
        let peer = PeerAddress { address: broker.address.clone(), node_id: Some(broker.raft_node_id) };
        async move {
            let body = raft::encode(&BrokerLoadCall::default()).map_err(|error| error.to_string())?;
            let answer = client.call(&peer, Method::BrokerLoad, body, timeout).await;
            raft::decode(answer.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn alter_partitions(
        &self,
        changes: Vec<IsrChange>,
    ) -> BoxFuture<'static, Result<Vec<ErrorCode>, String>> {
        let (metadata, state) = (self.metadata.clone(), self.own.borrow().clone());
        async move {
            let (Some(broker_id), Some(broker_epoch)) = (state.broker_id, state.broker_epoch) else {
                return Err("this broker is not registered".to_owned());
            };
            let request = ControllerRequest::AlterPartitions { broker_id, broker_epoch, changes };
            match metadata.call_within(request, CONTROLLER_TIMEOUT).await {
                Ok(ControllerResponse::PartitionsAltered(errors)) => Ok(errors),
                Ok(ControllerResponse::Refused(error)) => Err(error.message),
                Ok(_) => Err("unexpected answer".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        }
        .boxed()
    }
}

/// A fleet of which nobody can be reached.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct NoPeers;

#[cfg(test)]
impl Peers for NoPeers {
    fn fetch(
        &self,
        _leader: &BrokerImage,
        _call: ReplicaFetchCall,
        _timeout: Duration,
    ) -> BoxFuture<'static, Result<ReplicaFetchAnswer, String>> {
        futures::future::ready(Err("nobody is there".to_owned())).boxed()
    }

    fn progress(
        &self,
        _leader: &BrokerImage,
        _timeout: Duration,
    ) -> BoxFuture<'static, Result<ReplicaProgressAnswer, String>> {
        futures::future::ready(Err("nobody is there".to_owned())).boxed()
    }

    fn load(
        &self,
        _broker: &BrokerImage,
        _timeout: Duration,
    ) -> BoxFuture<'static, Result<BrokerLoadAnswer, String>> {
        futures::future::ready(Err("nobody is there".to_owned())).boxed()
    }

    fn alter_partitions(
        &self,
        _changes: Vec<IsrChange>,
    ) -> BoxFuture<'static, Result<Vec<ErrorCode>, String>> {
        futures::future::ready(Err("nobody is there".to_owned())).boxed()
    }
}
