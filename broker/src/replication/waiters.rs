//! Requests that wait for something to happen to a partition.
//!
//! A waiter names the durable end at which it wants to be woken; it is also woken when leadership changes, the
//! partition goes away or the store fails. Waking does not say why: the request looks again for itself.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::RequiredAcks;

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

    /// The durable end has moved.
    pub(super) fn advance(&self, durable_end: i64) {
        self.list.lock().retain(|waiter| {
            let stays = waiter.wake_at > durable_end;
            if !stays {
                waiter.signal.notify_one();
            }
            stays
        });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.list.lock().len()
    }

    /// Something else has happened.
    pub(super) fn wake_all(&self) {
        for waiter in self.list.lock().drain(..) {
            waiter.signal.notify_one();
        }
    }
}
