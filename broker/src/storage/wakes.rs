//! Requests that wait for something that has come.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::Notify;

/// Signals of requests that have something to look at. They are collected under locks and woken without: whoever is
/// woken may run at once, and take the same locks.
#[derive(Debug, Default)]
#[must_use = "nobody is woken by dropping it"]
pub struct Wakes(Vec<Arc<Notify>>);

impl Wakes {
    /// Adds those of `later`.
    pub fn append(&mut self, later: Self) {
        if self.0.is_empty() {
            *self = later;
        } else {
            self.0.extend(later.0);
        }
    }

    /// Wakes them one by one.
    pub fn wake(self) {
        for signal in self.0 {
            signal.notify_one();
        }
    }

    /// Wakes them from a thread that is not the runtime's. One by one, each would wake the runtime, which goes first where
    /// there is no free core, finds one request to go on with, and sleeps again.
    pub fn wake_on(self, runtime: Option<&Handle>) {
        match runtime {
            Some(runtime) if self.0.len() > 1 => drop(runtime.spawn(async move { self.wake() })),
            _ => self.wake(),
        }
    }
}

impl FromIterator<Arc<Notify>> for Wakes {
    fn from_iter<T: IntoIterator<Item = Arc<Notify>>>(signals: T) -> Self {
        Self(signals.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn is_woken(signal: &Notify) -> bool {
        pin!(signal.notified()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[tokio::test]
    async fn all_are_woken_on_the_runtime_or_where_there_is_none() {
        let runtime = Handle::current();
        for (count, runtime) in [(0, Some(&runtime)), (1, Some(&runtime)), (5, Some(&runtime)), (5, None)] {
            let signals: Vec<Arc<Notify>> = (0..count).map(|_| Arc::default()).collect();
            let mut wakes = Wakes::default();
            for signal in &signals {
                wakes.append([Arc::clone(signal)].into_iter().collect());
            }
            assert!(signals.iter().all(|signal| !is_woken(signal)));
            wakes.wake_on(runtime);
            tokio::task::yield_now().await;
            assert!(signals.iter().all(|signal| is_woken(signal)), "{count}");
        }
    }
}
