//! Mistakes of the past that are made again on purpose, to see that the simulation finds them. None of this is in a
//! broker: only tests are compiled with it.

use std::cell::Cell;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A follower that gets another leader cuts its log to the high watermark that it knows (KIP-101).
    TruncatesToHighWatermark,
    /// A follower tells its leader of records before they are durable.
    AcknowledgesBeforeDurable,
    /// A leader's high watermark does not wait until the records are durable at the leader itself.
    CommitsBeforeOwnSync,
    /// A broker that was started again leads what it led before, as its old metadata has it.
    LeadsBeforeRegistered,
    /// The Raft id is that of the machine, whatever became of its volume.
    ReusesRaftId,
}

impl Bug {
    pub(crate) const ALL: [Self; 5] = [
        Self::TruncatesToHighWatermark,
        Self::AcknowledgesBeforeDurable,
        Self::CommitsBeforeOwnSync,
        Self::LeadsBeforeRegistered,
        Self::ReusesRaftId,
    ];

    /// The bug of that name, which is what `Debug` prints.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|bug| format!("{bug:?}") == name)
    }
}

thread_local! {
    static MADE: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Makes a mistake in everything that runs on this thread from now on.
pub(crate) fn make(bug: Option<Bug>) {
    MADE.set(bug);
}

/// Whether that mistake is to be made.
pub(crate) fn has(bug: Bug) -> bool {
    MADE.get() == Some(bug)
}
