//! What lies on the simulated disk of a record store, and what a loss of power leaves of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use millrace_protocol::records::BatchHeader;
use parking_lot::Mutex;

use crate::metadata::image::TopicIdPartition;
use crate::simulation::drive::Drive;
use crate::storage::StateSnapshot;

/// What lies on one volume.
#[derive(Debug, Default)]
pub(crate) struct Platter {
    pub(super) logs: Mutex<BTreeMap<TopicIdPartition, Stored>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Stored {
    /// Batches as written, in order.
    pub(super) batches: Vec<Batch>,
    /// How many of them survive the loss of power.
    pub(super) synced: usize,
    pub(super) log_start: i64,
    /// Where the log ends if there are no batches.
    pub(super) base: i64,
    pub(super) known_at: Option<u64>,
    pub(super) state: Option<StateSnapshot>,
}

/// A stored batch.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) header: BatchHeader,
    pub(crate) bytes: Bytes,
}

impl Stored {
    pub(super) fn end(&self) -> i64 {
        self.batches.last().map_or(self.base, |batch| batch.header.next_offset())
    }

    pub(super) fn size(&self) -> u64 {
        self.batches.iter().map(|batch| batch.bytes.len() as u64).sum()
    }

    pub(super) fn move_start(&mut self, log_start: i64) {
        self.log_start = self.log_start.max(log_start);
        self.base = self.base.max(log_start);
        let gone = self.batches.iter().take_while(|batch| batch.header.last_offset() < log_start).count();
        self.batches.drain(..gone);
        self.synced = self.synced.saturating_sub(gone);
    }

    /// Removes batches that hold `offset` or later ones.
    pub(super) fn cut(&mut self, offset: i64) {
        let left = self.batches.iter().take_while(|batch| batch.header.last_offset() < offset).count();
        if left == 0 {
            let first = self.batches.first().map_or(self.base, |batch| batch.header.base_offset);
            self.base = first.min(offset.max(0));
        }
        self.batches.truncate(left);
        self.synced = self.synced.min(left);
        self.log_start = self.log_start.min(self.end());
        let end = self.end();
        self.state.take_if(|state| state.offset > end);
    }
}

impl Platter {
    /// Everything that is written survives from now on.
    pub(super) fn sync(&self) {
        for stored in self.logs.lock().values_mut() {
            stored.synced = stored.batches.len();
        }
    }

    /// The machine loses power: of each log some of what was not synced is lost, the latest first.
    pub(crate) fn power_fails(&self, drive: &Drive) {
        for stored in self.logs.lock().values_mut() {
            let kept = stored.synced + drive.up_to(stored.batches.len() - stored.synced);
            stored.batches.truncate(kept);
        }
    }

    /// The batches of a log, as far as they are written, or as far as they are synced.
    pub(crate) fn batches(&self, partition: TopicIdPartition, only_synced: bool) -> Vec<Batch> {
        let logs = self.logs.lock();
        let Some(stored) = logs.get(&partition) else { return Vec::new() };
        let count = if only_synced { stored.synced } else { stored.batches.len() };
        stored.batches[..count].to_vec()
    }

    /// Where a log ends, as far as it is written, or as far as it is synced.
    pub(crate) fn end(&self, partition: TopicIdPartition, only_synced: bool) -> i64 {
        let logs = self.logs.lock();
        let Some(stored) = logs.get(&partition) else { return 0 };
        match (only_synced, stored.synced.checked_sub(1)) {
            (true, Some(last)) => stored.batches[last].header.next_offset(),
            (true, None) => stored.base,
            (false, _) => stored.end(),
        }
    }
}
