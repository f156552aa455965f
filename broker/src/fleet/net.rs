//! Sockets of the fleet: those of the operating system, or in tests also those of a simulated network.

#[cfg(test)]
pub(super) use crate::simulation::network::{TcpListener, TcpStream};
#[cfg(not(test))]
pub(super) use tokio::net::{TcpListener, TcpStream};
