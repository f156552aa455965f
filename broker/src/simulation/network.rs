//! The fleet's sockets in tests: the operating system's, or in a simulation those of turmoil.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// A connection attempt that got lost is made again after this time, as operating systems do.
const RETRANSMISSION: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) enum TcpStream {
    Real(tokio::net::TcpStream),
    Simulated(turmoil::net::TcpStream),
}

pub(crate) enum TcpListener {
    Real(tokio::net::TcpListener),
    Simulated(turmoil::net::TcpListener),
}

impl std::fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpListener").finish_non_exhaustive()
    }
}

impl TcpStream {
    pub(crate) async fn connect(address: &str) -> io::Result<Self> {
        if !turmoil::in_simulation() {
            return tokio::net::TcpStream::connect(address).await.map(Self::Real);
        }
        // turmoil says "refused" as well when the first packet is lost on a link that is cut, but then at once. A host
        // that refuses takes the time of the way to it; asked twice, as the link may have been cut meanwhile.
        let mut refused = false;
        loop {
            let begun = Instant::now();
            match turmoil::net::TcpStream::connect(address).await {
                Ok(stream) => return Ok(Self::Simulated(stream)),
                Err(_) if begun.elapsed().is_zero() => {
                    refused = false;
                    tokio::time::sleep(RETRANSMISSION).await;
                }
                Err(error) if refused => return Err(error),
                Err(_) => refused = true,
            }
        }
    }

    pub(crate) fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        match self {
            Self::Real(stream) => stream.set_nodelay(nodelay),
            Self::Simulated(stream) => stream.set_nodelay(nodelay),
        }
    }
}

impl TcpListener {
    pub(crate) async fn bind(address: &str) -> io::Result<Self> {
        if turmoil::in_simulation() {
            return turmoil::net::TcpListener::bind(address).await.map(Self::Simulated);
        }
        tokio::net::TcpListener::bind(address).await.map(Self::Real)
    }

    pub(crate) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match self {
            Self::Real(listener) => {
                listener.accept().await.map(|(stream, peer)| (TcpStream::Real(stream), peer))
            }
            Self::Simulated(listener) => {
                listener.accept().await.map(|(stream, peer)| (TcpStream::Simulated(stream), peer))
            }
        }
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Real(listener) => listener.local_addr(),
            Self::Simulated(listener) => listener.local_addr(),
        }
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Real(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Simulated(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Real(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Simulated(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Real(stream) => Pin::new(stream).poll_flush(context),
            Self::Simulated(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Real(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Simulated(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
