//! Accepts connections on the internal listener and finds out what each one speaks.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use bytes::{Buf, Bytes};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::hello::{self, HelloError, MAGIC};
use super::net::{TcpListener, TcpStream};
use super::serve::serve;
use super::{CallHandler, LocalNode};
use crate::security::tls::{Tls, common_name};

/// Connections at a time: every broker keeps one or two to every other, so this is a fleet of hundreds.
const MAX_CONNECTIONS: usize = 1024;

/// Time for the TLS handshake, again for the first bytes, and again for the hello or the head of an HTTP request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Accepting fails when file descriptors run out; trying at once would only burn the processor.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Time that HTTP requests get to finish when the listener stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

const MAX_HTTP_BUFFER_BYTES: usize = 64 << 10;

/// The listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct ListenError {
    address: String,
    source: io::Error,
}

/// A bound listener that does not accept yet, so that its port is known before what it serves exists.
#[derive(Debug)]
pub struct FleetListener {
    listener: TcpListener,
    tls: Option<Tls>,
    handshake_timeout: Duration,
}

#[derive(Clone)]
struct Services {
    handshake_timeout: Duration,
    local: LocalNode,
    calls: Arc<dyn CallHandler>,
    http: Router,
    cancel: CancellationToken,
}

impl FleetListener {
    /// Binds `address` (`host:port`). Without `tls` the listener is open to anyone who reaches it, which is for one
    /// machine only.
    pub async fn bind(address: &str, tls: Option<Tls>) -> Result<Self, ListenError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ListenError { address: address.to_owned(), source })?;
        Ok(Self { listener, tls, handshake_timeout: HANDSHAKE_TIMEOUT })
    }

    /// Gives connections this long, instead of ten seconds, for each step until they are known.
    #[must_use]
    pub fn with_handshake_timeout(self, handshake_timeout: Duration) -> Self {
        Self { handshake_timeout, ..self }
    }

    /// Address that the listener is bound to.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `cancel`; calls in flight are then dropped, HTTP requests may finish.
    pub async fn serve(
        self,
        local: LocalNode,
        calls: Arc<dyn CallHandler>,
        http: Router,
        cancel: CancellationToken,
    ) {
        let handshake_timeout = self.handshake_timeout;
        let services = Services { handshake_timeout, local, calls, http, cancel: cancel.clone() };
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                accepted = accept(&self.listener, &slots) => accepted,
            };
            let Some((stream, address, slot)) = accepted else { continue };
            let (tls, services) = (self.tls.clone(), services.clone());
            connections.spawn(async move {
                connection(stream, address, tls, services).await;
                drop(slot);
            });
        }
        connections.close();
        if tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
            tracing::warn!(open = connections.len(), "internal connections did not end in time");
        }
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => Some((stream, address, slot)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept an internal connection");
            tokio::time::sleep(ACCEPT_RETRY).await;
            None
        }
    }
}

async fn connection(stream: TcpStream, address: SocketAddr, tls: Option<Tls>, services: Services) {
    // Small messages, each waited for: never hold one back to fill a packet.
    let _ = stream.set_nodelay(true);
    let cancel = services.cancel.clone();
    let Some(tls) = tls else {
        return speak(stream, address, None, services).await;
    };
    let handshake = TlsAcceptor::from(tls.server_config()).accept(stream);
    let outcome = tokio::select! {
        biased;
        () = cancel.cancelled() => return,
        outcome = tokio::time::timeout(services.handshake_timeout, handshake) => outcome,
    };
    match outcome {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let name = certificates.first().and_then(common_name);
            speak(stream, address, name, services).await;
        }
        Ok(Err(error)) => {
            tracing::warn!(%address, %error, "internal connection refused: TLS handshake failed")
        }
        Err(_) => tracing::warn!(%address, "internal connection closed: no TLS handshake in time"),
    }
}

async fn speak<S>(mut stream: S, address: SocketAddr, common_name: Option<String>, services: Services)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut first = [0_u8; 4];
    let started = tokio::select! {
        biased;
        () = services.cancel.cancelled() => return,
        started = tokio::time::timeout(services.handshake_timeout, stream.read_exact(&mut first)) => started,
    };
    match started {
        Ok(Ok(_)) => {}
        // Health checks connect and hang up; there is nothing to report.
        Ok(Err(_)) => return,
        Err(_) => {
            tracing::warn!(%address, "internal connection closed: it said nothing");
            return;
        }
    }
    if first == MAGIC {
        calls(stream, address, common_name, services).await;
    } else if first.iter().all(u8::is_ascii_uppercase) || first[3] == b' ' {
        tracing::debug!(%address, common_name, "internal HTTP connection");
        http(Prefixed { prefix: Bytes::copy_from_slice(&first), stream }, address, services).await;
    } else {
        tracing::warn!(%address, common_name, "internal connection refused: it speaks neither calls nor HTTP");
    }
}

async fn calls<S>(mut stream: S, address: SocketAddr, common_name: Option<String>, services: Services)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let greeting =
        tokio::time::timeout(services.handshake_timeout, hello::answer(&mut stream, services.local));
    let peer = match greeting.await {
        Ok(Ok(peer)) => peer,
        Ok(Err(HelloError::Refused(reason))) => {
            tracing::warn!(%address, common_name, reason, "internal connection refused");
            return;
        }
        Ok(Err(HelloError::Frame(error))) => {
            tracing::warn!(%address, common_name, %error, "internal connection closed: no valid hello");
            return;
        }
        Err(_) => {
            tracing::warn!(%address, common_name, "internal connection closed: no hello in time");
            return;
        }
    };
    tracing::debug!(%address, common_name, peer, "internal call connection");
    let outcome = tokio::select! {
        biased;
        () = services.cancel.cancelled() => return,
        outcome = serve(stream, peer, services.calls) => outcome,
    };
    if let Err(error) = outcome {
        tracing::warn!(%address, peer, %error, "internal call connection ended");
    }
}

async fn http<S>(stream: S, address: SocketAddr, services: Services)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(services.handshake_timeout)
        .max_buf_size(MAX_HTTP_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(services.http));
    tokio::pin!(connection);
    let outcome = tokio::select! {
        biased;
        () = services.cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        outcome = connection.as_mut() => outcome,
    };
    if let Err(error) = outcome {
        tracing::debug!(%address, %error, "internal HTTP connection ended");
    }
}

/// A stream whose first bytes were read already.
struct Prefixed<S> {
    prefix: Bytes,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.prefix.len().min(buffer.remaining());
        buffer.put_slice(&self.prefix[..length]);
        self.prefix.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
