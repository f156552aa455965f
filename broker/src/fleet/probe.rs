//! Finds out whether the process that ended a connection is gone.
//!
//! A connection ends for many reasons; only one of them is a crash. The difference is told by the operating system of
//! the other side: when no process holds the port any more, it refuses the next connection at once. Silence proves
//! nothing: a process that is stopped or slow, a machine that lost power and a broken network all look the same, and
//! are judged by session and election timeouts only.

use std::io;
use std::time::Duration;

use super::net::TcpStream;
use super::{CallError, FleetClient, PeerAddress};

/// Pause before the next attempt after one that was accepted and then hung up on, doubling up to the maximum: a process
/// that is ending may lose its connections a little before its port.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const MAX_PAUSE: Duration = Duration::from_millis(100);

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The node answers; its process may be another one than before.
    Alive,
    /// The host refuses connections on the node's port, or another node answers there: the process has ended.
    Gone,
    /// No answer in time, or an error that does not tell.
    Unknown,
}

/// Outcome of one attempt.
enum Attempt {
    Told(Probe),
    HungUp,
}

impl FleetClient {
    /// Connects to `peer` on a socket of its own, whatever the connection for calls is doing. Takes `timeout` at most.
    ///
    /// Dropping the future gives the probe up.
    pub async fn probe(&self, peer: &PeerAddress, timeout: Duration) -> Probe {
        let attempts = async {
            let mut pause = FIRST_PAUSE;
            loop {
                match self.attempt(peer).await {
                    Attempt::Told(probe) => return probe,
                    Attempt::HungUp => tokio::time::sleep(pause).await,
                }
                pause = (pause * 2).min(MAX_PAUSE);
            }
        };
        tokio::time::timeout(timeout, attempts).await.unwrap_or(Probe::Unknown)
    }

    async fn attempt(&self, peer: &PeerAddress) -> Attempt {
        let stream = match TcpStream::connect(&peer.address).await {
            Ok(stream) => stream,
            Err(error) => return Attempt::Told(verdict(error.kind())),
        };
        match self.open(stream, peer).await {
            Ok(_) => Attempt::Told(Probe::Alive),
            // The port belongs to another node now: a process that lost its volume was started anew.
            Err(CallError::Refused { .. }) => Attempt::Told(Probe::Gone),
            // Accepted and hung up: a process that is ending, or something in between that accepts for it.
            Err(_) => Attempt::HungUp,
        }
    }
}

/// What a failure to connect says.
fn verdict(kind: io::ErrorKind) -> Probe {
    match kind {
        // The host is there and says that nobody listens.
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Probe::Gone,
        _ => Probe::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_host_that_refuses_proves_that_the_process_is_gone() {
        assert_eq!(verdict(io::ErrorKind::ConnectionRefused), Probe::Gone);
        assert_eq!(verdict(io::ErrorKind::ConnectionReset), Probe::Gone);
        for kind in [
            io::ErrorKind::TimedOut,
            io::ErrorKind::HostUnreachable,
            io::ErrorKind::NetworkUnreachable,
            io::ErrorKind::AddrNotAvailable,
            io::ErrorKind::Other,
        ] {
            assert_eq!(verdict(kind), Probe::Unknown, "{kind}");
        }
    }
}
