//! One listener: a socket that connections come in on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tracing::Instrument as _;

use super::connection::Connection;
use super::{Handler, ServerContext};
use crate::api::ClientConnection;
use crate::config::{HostPort, ListenerConfig};
use crate::metrics::ListenerMetrics;

/// Pause after a failed accept. Most failures (no more file descriptors) last until a connection ends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener that has its port.
#[derive(Debug)]
pub struct ClientListener {
    name: Arc<str>,
    socket: TcpListener,
}

/// A listener that cannot have its port.
#[derive(Debug, thiserror::Error)]
#[error("listener {name} cannot listen on {address}; check listeners in the configuration")]
pub struct BindError {
    /// Name of the listener.
    pub name: String,
    /// Where it should listen.
    pub address: HostPort,
    /// What the operating system says.
    #[source]
    pub source: io::Error,
}

impl ClientListener {
    /// Takes the port. Connections wait from now on, `backlog` of them, until [`run`](Self::run) accepts them.
    pub async fn bind(config: &ListenerConfig, backlog: u32) -> Result<Self, BindError> {
        let failed = |source| BindError { name: config.name.clone(), address: config.bind.clone(), source };
        let socket = bind(&config.bind, backlog).await.map_err(failed)?;
        Ok(Self { name: config.name.as_str().into(), socket })
    }

    /// Name of the listener.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port that it has got.
    pub fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Accepts connections until `context.stop`. Each runs as a task of `context.tasks`.
    pub async fn run<H: Handler>(self, handler: H, context: ServerContext) {
        let metrics = context.metrics.listener(&self.name);
        loop {
            let accepted = tokio::select! {
                biased;
                () = context.stop.cancelled() => break,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer, &handler, &context, &metrics),
                Err(error) => {
                    tracing::warn!(listener = &*self.name, %error, "accepting a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit<H: Handler>(
        &self,
        stream: TcpStream,
        peer: std::net::SocketAddr,
        handler: &H,
        context: &ServerContext,
        metrics: &ListenerMetrics,
    ) {
        let slot = match context.slots.take(peer.ip()) {
            Ok(slot) => slot,
            Err(limit) => {
                context.metrics.connection_refused(limit.key());
                tracing::debug!(listener = &*self.name, %peer, limit = limit.key(), "refused a connection");
                return;
            }
        };
        metrics.accepted.inc();
        metrics.connections.inc();
        let client = ClientConnection { listener: Arc::clone(&self.name), peer, software: None };
        let span = tracing::info_span!("connection", listener = &*self.name, %peer);
        let connection = Connection::new(stream, client, handler.clone(), context.clone(), metrics.clone());
        let open = Open { metrics: metrics.clone() };
        context.tasks.spawn(
            async move {
                connection.run().await;
                drop((slot, open));
            }
            .instrument(span),
        );
    }
}

/// Counts a connection as open until this is dropped, however its task ends.
struct Open {
    metrics: ListenerMetrics,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

async fn bind(address: &HostPort, backlog: u32) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in lookup_host(address.bind_address()).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A broker that restarts must not wait for the connections of its predecessor to be forgotten.
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(backlog)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}
