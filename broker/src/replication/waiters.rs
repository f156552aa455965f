//! Requests that wait for something to happen to a partition.
//!
//! A waiter names the durable end at which it wants to be woken; it is also woken when leadership changes, the
//! partition goes away or the store fails. Waking does not say why: the request looks again for itself.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::RequiredAcks;
use crate::storage::Wakes;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// The high watermark.
    Visible,
    /// The durable end.
    Durable,
    /// Log starts of followers, whatever they are.
    Deleted,
}

impl From<RequiredAcks> for Awaited {
    fn from(acks: RequiredAcks) -> Self {
        match acks {
            RequiredAcks::All => Self::Visible,
            RequiredAcks::Leader | RequiredAcks::None => Self::Durable,
        }
    }
}

/// The waiters of one partition.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    list: Mutex<Vec<Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    wake_at: i64,
    signal: Arc<Notify>,
}

impl Waiters {
    /// Has `signal` notified when the durable end reaches `wake_at`, or something else happens.
    ///
    /// A caller registers first and looks second, so that nothing happens unnoticed in between, and leaves when done.
    pub(super) fn register(&self, wake_at: i64, signal: &Arc<Notify>) {
        self.list.lock().push(Waiter { wake_at, signal: Arc::clone(signal) });
    }

    /// Takes all registrations of `signal` back.
    pub(super) fn leave(&self, signal: &Arc<Notify>) {
        let mut list = self.list.lock();
        list.retain(|waiter| !Arc::ptr_eq(&waiter.signal, signal));
        if list.is_empty() {
            // Idle partitions hold no memory for waiters.
            list.shrink_to_fit();
        }
    }

    /// The durable end has moved. Returns who waited for it.
    pub(super) fn advance(&self, durable_end: i64) -> Wakes {
        let mut list = self.list.lock();
        list.extract_if(.., |waiter| waiter.wake_at <= durable_end).map(|waiter| waiter.signal).collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.list.lock().len()
    }

    /// Something else has happened.
    pub(super) fn wake_all(&self) {
        let all: Wakes = self.list.lock().drain(..).map(|waiter| waiter.signal).collect();
        all.wake();
    }
}
