//! Watches the free space of the volume, so that appends are refused before a write fails.
//!
//! A write that fails for lack of space would stop the store for good; a refused append costs the client a retry.
//! What is written between two looks at the disk is counted, so a look each second is enough.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::disk::Disk;
use crate::storage::StorageError;

/// Bytes after which the disk is asked again, whatever the time.
const LOOK_AFTER_BYTES: u64 = 32 << 20;
/// Time after which the disk is asked again.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// Time between two looks while the volume is full.
const LOOK_AFTER_WHEN_FULL: Duration = Duration::from_millis(100);

/// The least space that must stay free: a fiftieth of the volume within these bounds. It holds the appends that are
/// on their way and the metadata log, which shares the volume.
const RESERVE_BOUNDS: (u64, u64) = (96 << 20, 512 << 20);

/// Bytes that appends leave free on a volume of `total` bytes.
fn reserve(total: u64) -> u64 {
    (total / 50).clamp(RESERVE_BOUNDS.0, RESERVE_BOUNDS.1)
}

/// What space is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// New records.
    Append,
    /// What compaction leaves of old ones: it gives back more than it takes, so it may have a quarter of the reserve. A
    /// volume full of logs that are only compacted would otherwise stay full.
    Compaction,
    /// What lives in thin segments, which are used again after the next flush of the index. It may have half of the reserve:
    /// where compaction goes no further, it is what gives space back.
    Rewriting,
}

impl Purpose {
    /// Of a volume's `reserve`, what has to stay free.
    fn leaves(self, reserve: u64) -> u64 {
        match self {
            Self::Append => reserve,
            Self::Compaction => reserve - reserve / 4,
            Self::Rewriting => reserve - reserve / 2,
        }
    }
}

#[derive(Debug)]
pub(super) struct FreeSpace {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    reserve: Option<u64>,
    least: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: u64,
    reserve: u64,
    looked: Option<Instant>,
    admitted: u64,
}

impl FreeSpace {
    /// `reserve` replaces the computed reserve, which is at least `least`.
    pub(super) fn new(path: PathBuf, disk: Arc<dyn Disk>, reserve: Option<u64>, least: u64) -> Self {
        let state = Mutex::new(State { free: 0, reserve: 0, looked: None, admitted: 0 });
        Self { path, disk, reserve, least, state }
    }

    /// Whether less than twice the reserve was left at the last look.
    pub(super) fn is_short(&self) -> bool {
        let state = self.state.lock();
        state.looked.is_some() && state.free < 2 * state.reserve
    }

    /// What is not a file of the disk is about to be written: makes room for it, if the volume keeps any.
    pub(super) fn make_room(&self) {
        if let Some(kept_space) = self.disk.kept_space() {
            kept_space.make_room();
        }
    }

    /// Takes `bytes` from what is free, or refuses. `reusable` is what the store has set aside for itself.
    pub(super) fn take(
        &self,
        bytes: u64,
        purpose: Purpose,
        reusable: impl FnOnce() -> u64,
    ) -> Result<(), StorageError> {
        let mut state = self.state.lock();
        let full = state.free.saturating_sub(bytes) < purpose.leaves(state.reserve);
        let due = state.looked.is_none_or(|at| {
            let age = at.elapsed();
            age > LOOK_AFTER || state.admitted > LOOK_AFTER_BYTES || (full && age > LOOK_AFTER_WHEN_FULL)
        });
        if due {
            let space = self.disk.space(&self.path).map_err(|source| StorageError::Io {
                doing: "asking for the free space of",
                path: self.path.clone(),
                source,
            })?;
            state.free = space.free + reusable();
            state.reserve = self.reserve.unwrap_or_else(|| reserve(space.total).max(self.least));
            state.looked = Some(Instant::now());
            state.admitted = 0;
        }
        let reserve = purpose.leaves(state.reserve);
        if state.free.saturating_sub(bytes) < reserve {
            return Err(StorageError::Full { path: self.path.clone(), free: state.free, reserve });
        }
        state.free -= bytes;
        state.admitted += bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::segment_bytes;
    use super::super::sim_disk::SimDisk;
    use super::*;
    use crate::volume::kept_bytes;

    #[test]
    fn space_that_was_kept_is_no_room_for_appends_and_has_room_for_a_segment() {
        for total in (1..4_096).map(|mib| mib << 20).chain((5..2_000).map(|gib| gib << 30)) {
            let kept = kept_bytes(total);
            // The most that is free when it has been given up, and what was kept alone.
            assert!(kept + kept / 2 < reserve(total), "{total}");
            assert!(segment_bytes(total) <= kept, "{total}");
        }
    }

    #[test]
    fn compaction_may_take_a_quarter_of_what_appends_leave_and_rewriting_half() {
        let disk = SimDisk::new();
        disk.faults().free.store(1_500, Ordering::SeqCst);
        let space = FreeSpace::new(PathBuf::from("volume"), Arc::new(disk), Some(1_000), 0);
        let take = |bytes, purpose| space.take(bytes, purpose, || 0);
        assert!(take(501, Purpose::Append).is_err());
        assert!(take(500, Purpose::Append).is_ok());
        assert!(take(1, Purpose::Append).is_err());
        assert!(take(251, Purpose::Compaction).is_err());
        assert!(take(250, Purpose::Compaction).is_ok());
        assert!(take(1, Purpose::Compaction).is_err());
        assert!(take(251, Purpose::Rewriting).is_err());
        assert!(take(250, Purpose::Rewriting).is_ok());
        assert!(take(1, Purpose::Rewriting).is_err());
    }
}
