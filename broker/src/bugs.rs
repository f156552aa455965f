//! Mistakes of the past that are made again on purpose, to see that the simulation and the fault laboratory find them.
//! None of this is in a broker that anybody uses: it is compiled for tests, and with the feature `historical-bugs`.

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

    /// What people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::TruncatesToHighWatermark => "truncate-to-high-watermark",
            Self::AcknowledgesBeforeDurable => "acknowledge-before-durable",
            Self::CommitsBeforeOwnSync => "commit-before-own-sync",
            Self::LeadsBeforeRegistered => "lead-before-registered",
            Self::ReusesRaftId => "reuse-raft-id",
        }
    }

    /// The bug of that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|bug| bug.name() == name)
    }
}

pub(crate) use made::*;

#[cfg(test)]
mod made {
    use super::Bug;
    use std::cell::Cell;
    use std::path::Path;

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

    /// The Raft id that a simulated machine has with [`Bug::ReusesRaftId`]: its folder is named like it, below another one
    /// in each run.
    pub(crate) fn raft_id_of_machine(path: &Path) -> u64 {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        name.iter().fold(1, |id, byte| (id << 8) | u64::from(*byte))
    }
}

#[cfg(not(test))]
mod made {
    use super::Bug;
    use std::path::Path;
    use std::sync::OnceLock;

    /// Names the mistake that a process makes.
    const VARIABLE: &str = "MILLRACE_HISTORICAL_BUG";

    static MADE: OnceLock<Bug> = OnceLock::new();

    /// Makes the mistake that the environment names, if any, in this process from now on; says so in the log.
    ///
    /// # Errors
    /// There is no such mistake.
    pub(crate) fn make_what_is_named() -> Result<(), String> {
        let Some(name) = std::env::var_os(VARIABLE) else {
            tracing::warn!("this broker was built with historical bugs: nobody may use it");
            return Ok(());
        };
        let known = || Bug::ALL.map(Bug::name).join(", ");
        let bug = name.to_str().and_then(Bug::named);
        let bug = bug.ok_or_else(|| format!("{VARIABLE}={}: known are {}", name.display(), known()))?;
        tracing::error!(bug = bug.name(), "THIS BROKER MAKES A HISTORICAL BUG ON PURPOSE AND LOSES RECORDS");
        // Set once: a process is prepared once.
        let _ = MADE.set(bug);
        Ok(())
    }

    /// Whether that mistake is to be made.
    pub(crate) fn has(bug: Bug) -> bool {
        MADE.get() == Some(&bug)
    }

    /// The Raft id that a machine has with [`Bug::ReusesRaftId`]: the same for every volume that it mounts at `path`.
    pub(crate) fn raft_id_of_machine(path: &Path) -> u64 {
        // FNV-1a: ends of paths are alike.
        let mix = |id: u64, byte: &u8| (id ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
        path.as_os_str().as_encoded_bytes().iter().fold(0xCBF2_9CE4_8422_2325, mix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_is_known_by_its_name_and_by_no_other() {
        for bug in Bug::ALL {
            assert_eq!(Bug::named(bug.name()), Some(bug));
        }
        assert_eq!(Bug::named(""), None);
        assert_eq!(Bug::named("TruncatesToHighWatermark"), None);
    }
}
