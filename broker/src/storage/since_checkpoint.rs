//! How much has been written since the last checkpoint.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Written bytes after which a checkpoint is made, whatever the time: what a start after a crash has to read. They count
/// as they lie on the disk: of a journal its frames, which are whole blocks however small the batches are.
pub const CHECKPOINT_BYTES: u64 = 384 << 20;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct SinceCheckpoint {
    bytes: AtomicU64,
    many: Notify,
}

impl SinceCheckpoint {
    /// As if `bytes` had been written since the last checkpoint.
    pub(super) fn with(bytes: u64) -> Self {
        Self { bytes: AtomicU64::new(bytes), many: Notify::new() }
    }

    /// Bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts `bytes`.
    pub(super) fn add(&self, bytes: u64) {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before < CHECKPOINT_BYTES && before.saturating_add(bytes) >= CHECKPOINT_BYTES {
            self.many.notify_one();
        }
    }

    /// Takes back what a checkpoint has covered.
    pub(super) fn forget(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Resolves once there are at least [`CHECKPOINT_BYTES`]; for one who waits. Cancel-safe.
    pub(super) async fn are_many(&self) {
        while self.bytes() < CHECKPOINT_BYTES {
            self.many.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_waits_hears_of_many_bytes_once_they_are_there() {
        let appended = SinceCheckpoint::default();
        appended.add(CHECKPOINT_BYTES - 1);
        let mut waits = std::pin::pin!(appended.are_many());
        assert_eq!(waits.as_mut().now_or_never(), None);
        appended.add(1);
        assert_eq!(waits.now_or_never(), Some(()));
        assert_eq!(appended.are_many().now_or_never(), Some(()), "they still are");
        appended.forget(CHECKPOINT_BYTES);
        assert_eq!(appended.are_many().now_or_never(), None);
        assert_eq!(appended.bytes(), 0);
    }
}
