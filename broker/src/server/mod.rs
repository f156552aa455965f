//! Client listeners: accepting connections, framing, and the order of requests and answers.
//!
//! What a request means is the business of a [`Handler`]. Rules kept here:
//! - A connection's answers come in the order of its requests (V4). A request begins when the one before has been
//!   answered, except that requests the handler lets overlap begin as soon as the one before has its place in the
//!   order.
//! - A frame that is too long, a header that does not parse and a request that is not served end the connection and
//!   nothing else (V2). The log says why.
//! - Everything has a bound: connections, the size of a frame, requests in hand, idle time, and the time that a client may
//!   take to read an answer.
//!
//! Order of stopping: [`ServerContext::stop`] ends accepting; each connection finishes the requests it has begun and
//! closes; [`ServerContext::tasks`] is empty once all have.

mod answers;
pub(crate) mod calls;
mod connection;
mod input;
mod listener;
mod output;
pub mod settings;
mod slots;
pub mod start;

#[cfg(test)]
mod connection_test;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::ApiKey;
use millrace_protocol::frame::RequestFrame;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{Api, ClientConnection, Outcome};
use crate::config::ConnectionLimits;
use crate::metrics::Metrics;

pub use listener::{BindError, ClientListener};
pub use slots::ConnectionSlots;

/// Consumers wait half a second for records by default, and producers for a commit.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// What answers requests.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Answers one request. The next request of the connection begins after this has resolved.
    fn handle(
        &self,
        client: &mut ClientConnection,
        frame: RequestFrame,
    ) -> impl Future<Output = Outcome> + Send;

    /// Whether a request of this key may begin while an [`Outcome::Later`] of an earlier one is awaited.
    fn may_overlap(&self, key: ApiKey) -> bool;
}

impl Handler for Api {
    async fn handle(&self, client: &mut ClientConnection, frame: RequestFrame) -> Outcome {
        Api::handle(self, client, frame).await
    }

    fn may_overlap(&self, key: ApiKey) -> bool {
        Api::may_overlap(self, key)
    }
}

/// What all listeners of one broker share. Clones are the same.
#[derive(Clone, Debug)]
pub struct ServerContext {
    /// Bounds on connections.
    pub limits: Arc<ConnectionLimits>,
    /// Connections that are open.
    pub slots: ConnectionSlots,
    /// Metrics.
    pub metrics: Metrics,
    /// Time for requests that have begun to finish when the broker stops.
    pub stop_grace: Duration,
    /// Ends everything.
    pub stop: CancellationToken,
    /// Tasks of connections.
    pub tasks: TaskTracker,
}

impl ServerContext {
    /// A context without connections.
    pub fn new(limits: ConnectionLimits, metrics: Metrics, stop: CancellationToken) -> Self {
        let slots = ConnectionSlots::new(limits.max_connections, limits.max_connections_per_ip);
        Self {
            limits: Arc::new(limits),
            slots,
            metrics,
            stop_grace: STOP_GRACE,
            stop,
            tasks: TaskTracker::new(),
        }
    }
}
