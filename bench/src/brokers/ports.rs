//! Ports for brokers that are not running yet, or are away.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

/// The first of the ports that are tried, and how many: below those that the system gives to outgoing connections (from
/// 32,768 on), one of which could take a port before its broker does, or while that is away.
const FIRST: u32 = 11_000;
const NUMBER: u32 = 10_000;

/// A port on which nobody listens; another one each time, until all have been tried.
///
/// # Errors
/// All of them are taken.
pub(super) fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Programs that run side by side begin at different places.
    let offset = std::process::id().wrapping_mul(389);
    let next = || FIRST + NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(offset) % NUMBER;
    let candidates = std::iter::repeat_with(next).take(NUMBER as usize);
    candidates
        .filter_map(|port| u16::try_from(port).ok())
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .with_context(|| format!("no port from {FIRST} to {} is free", FIRST + NUMBER - 1))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_out_twice_or_taken_by_an_outgoing_connection() {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let outgoing: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
        let mut ports: Vec<_> = (0..50).map(|_| free_port().unwrap()).collect();
        assert!(ports.iter().all(|port| *port < outgoing), "{ports:?}");
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 50);
    }

    #[test]
    fn a_port_on_which_somebody_listens_is_passed_over() {
        let first = free_port().unwrap();
        // The next ones, if nobody else has them.
        let listeners: Vec<_> =
            (1..4).filter_map(|more| TcpListener::bind((Ipv4Addr::LOCALHOST, first + more)).ok()).collect();
        let port = free_port().unwrap();
        assert!(listeners.iter().all(|it| it.local_addr().unwrap().port() != port), "{port}");
    }
}
