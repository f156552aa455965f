//! Leader epochs of one log: which leader wrote from which offset on (KIP-101, rules L1 and L2).
//!
//! Answers where an epoch ended, which is how followers and consumers find out that they have read something that a
//! newer leader does not have. Entries are rebuilt from the batches; an epoch that wrote nothing matters only while it
//! is the latest, and then the leader enters it again when it takes over.

/// An epoch and the first offset that its leader could have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// Leader epoch.
    pub leader_epoch: i32,
    /// Log end offset when that leader took over.
    pub start_offset: i64,
}

/// An epoch and the first offset after what its leader wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochEnd {
    /// Leader epoch.
    pub leader_epoch: i32,
    /// First offset that belongs to a later epoch, or the log end.
    pub end_offset: i64,
}

/// Epochs in order; both the epochs and the offsets rise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochCache {
    entries: Vec<EpochStart>,
}

impl EpochCache {
    /// Entries as [`entries`](Self::entries) returned them.
    pub fn from_entries(entries: Vec<EpochStart>) -> Self {
        Self { entries }
    }

    /// Enters that `leader_epoch` starts at `start_offset`; ignored when that epoch or a later one has offsets before it.
    pub fn begin(&mut self, leader_epoch: i32, start_offset: i64) {
        if leader_epoch < 0 || self.latest() == Some(leader_epoch) {
            return;
        }
        // Epochs that wrote nothing are replaced, or two epochs would start at one offset. They may be later ones: a
        // leader that was succeeded at once follows, and gets what an earlier leader had written.
        while self.entries.last().is_some_and(|last| last.start_offset >= start_offset) {
            self.entries.pop();
        }
        if self.latest().is_some_and(|latest| latest >= leader_epoch) {
            return;
        }
        self.entries.push(EpochStart { leader_epoch, start_offset });
    }

    /// The latest epoch.
    pub fn latest(&self) -> Option<i32> {
        self.entries.last().map(|entry| entry.leader_epoch)
    }

    /// Where `leader_epoch` ended (L2), for a log that ends at `log_end`. `None` if the epoch is above all known ones.
    pub fn end_of(&self, leader_epoch: i32, log_end: i64) -> Option<EpochEnd> {
        let latest = self.latest()?;
        if leader_epoch == latest {
            return Some(EpochEnd { leader_epoch, end_offset: log_end });
        }
        if leader_epoch > latest {
            return None;
        }
        let after = self.entries.partition_point(|entry| entry.leader_epoch <= leader_epoch);
        let end_offset = self.entries[after].start_offset;
        let found = after.checked_sub(1).map_or(leader_epoch, |before| self.entries[before].leader_epoch);
        Some(EpochEnd { leader_epoch: found, end_offset })
    }

    /// The epoch that wrote `offset`.
    pub fn epoch_at(&self, offset: i64) -> Option<i32> {
        let after = self.entries.partition_point(|entry| entry.start_offset <= offset);
        after.checked_sub(1).map(|at| self.entries[at].leader_epoch)
    }

    /// Forgets epochs that start at or after `log_end`, because the log was cut there.
    pub fn truncate_end(&mut self, log_end: i64) {
        self.entries.retain(|entry| entry.start_offset < log_end);
    }

    /// Forgets epochs that ended before `log_start`; the one that covers it then starts there.
    pub fn truncate_start(&mut self, log_start: i64) {
        let after = self.entries.partition_point(|entry| entry.start_offset <= log_start);
        if after > 0 {
            self.entries.drain(..after - 1);
            self.entries[0].start_offset = log_start;
        }
    }

    /// All entries in order.
    pub fn entries(&self) -> &[EpochStart] {
        &self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(entries: &[(i32, i64)]) -> EpochCache {
        let mut cache = EpochCache::default();
        for (leader_epoch, start_offset) in entries {
            cache.begin(*leader_epoch, *start_offset);
        }
        cache
    }

    fn end(leader_epoch: i32, end_offset: i64) -> Option<EpochEnd> {
        Some(EpochEnd { leader_epoch, end_offset })
    }

    #[test]
    fn end_of_an_epoch_is_the_start_of_the_next_l2() {
        let cache = cache(&[(2, 0), (4, 10), (7, 25)]);
        assert_eq!(cache.end_of(7, 40), end(7, 40), "latest: log end");
        assert_eq!(cache.end_of(8, 40), None, "above all");
        assert_eq!(cache.end_of(1, 40), end(1, 0), "below all");
        assert_eq!(cache.end_of(2, 40), end(2, 10));
        assert_eq!(cache.end_of(6, 40), end(4, 25), "a gap: largest epoch below");
    }

    #[test]
    fn an_epoch_that_wrote_nothing_is_replaced_l1() {
        let cache = cache(&[(1, 0), (2, 10), (3, 10)]);
        assert_eq!(cache.entries().len(), 2);
        assert_eq!(cache.end_of(2, 10), end(1, 10));
    }

    #[test]
    fn epochs_never_go_back() {
        let cache = cache(&[(5, 0), (4, 10)]);
        assert_eq!(cache.latest(), Some(5));
        assert_eq!(cache.end_of(4, 10), end(4, 0));
    }

    #[test]
    fn an_epoch_without_records_gives_way_to_an_earlier_one_that_has_some() {
        let cache = cache(&[(3, 0), (5, 100), (4, 100), (6, 120)]);
        assert_eq!(cache.epoch_at(110), Some(4));
        assert_eq!(cache.end_of(5, 130), end(4, 120));
    }

    #[test]
    fn truncation_forgets_what_was_cut_and_keeps_what_covers_the_start() {
        let mut both = cache(&[(1, 0), (2, 10), (3, 20)]);
        both.truncate_end(20);
        assert_eq!(both.latest(), Some(2));
        both.truncate_start(15);
        assert_eq!(both.entries(), &[EpochStart { leader_epoch: 2, start_offset: 15 }]);
        assert_eq!(both.epoch_at(14), None);
        assert_eq!(both.epoch_at(15), Some(2));
    }
}
