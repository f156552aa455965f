//! How many connections are open, in all and from each address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// Counts connections against their limits. Clones count together.
#[derive(Clone, Debug)]
pub struct ConnectionSlots {
    max: usize,
    max_per_ip: usize,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_ip: HashMap<IpAddr, usize>,
}

/// One connection that counts until this is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    ip: IpAddr,
    open: Arc<Mutex<Open>>,
}

/// A limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LimitReached {
    /// `max.connections`.
    Total,
    /// `max.connections.per.ip`.
    PerIp,
}

impl LimitReached {
    /// Key that sets the limit.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Total => "max.connections",
            Self::PerIp => "max.connections.per.ip",
        }
    }
}

impl ConnectionSlots {
    /// No connection yet.
    pub fn new(max: usize, max_per_ip: usize) -> Self {
        Self { max, max_per_ip, open: Arc::default() }
    }

    /// Number of connections that are open.
    pub fn open(&self) -> usize {
        self.open.lock().total
    }

    /// Takes a place for a connection from `ip`.
    pub(super) fn take(&self, ip: IpAddr) -> Result<Slot, LimitReached> {
        let mut open = self.open.lock();
        if open.total >= self.max {
            return Err(LimitReached::Total);
        }
        if open.by_ip.get(&ip).copied().unwrap_or(0) >= self.max_per_ip {
            return Err(LimitReached::PerIp);
        }
        open.total += 1;
        *open.by_ip.entry(ip).or_default() += 1;
        drop(open);
        Ok(Slot { ip, open: Arc::clone(&self.open) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        open.total -= 1;
        if let Some(count) = open.by_ip.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                open.by_ip.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    #[test]
    fn counts_in_all_and_by_address() {
        let slots = ConnectionSlots::new(3, 2);
        let first = slots.take(ip(1)).unwrap();
        let _second = slots.take(ip(1)).unwrap();
        assert_eq!(slots.take(ip(1)).unwrap_err(), LimitReached::PerIp);
        let _third = slots.take(ip(2)).unwrap();
        assert_eq!(slots.take(ip(3)).unwrap_err(), LimitReached::Total);
        drop(first);
        assert_eq!(slots.open(), 2);
        let _fourth = slots.take(ip(1)).unwrap();
    }

    #[test]
    fn forgets_addresses_without_connections() {
        let slots = ConnectionSlots::new(9, 9);
        drop(slots.take(ip(1)).unwrap());
        assert!(slots.open.lock().by_ip.is_empty());
    }
}
