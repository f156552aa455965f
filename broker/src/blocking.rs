//! Where work goes that blocks on the disk.

use tokio::task::JoinHandle;

/// Runs `work` on a thread that may block, as [`tokio::task::spawn_blocking`] does.
pub(crate) fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    // A simulation has one thread, and disks that do not block it.
    #[cfg(test)]
    if turmoil::in_simulation() {
        return tokio::spawn(async move { work() });
    }
    tokio::task::spawn_blocking(work)
}
