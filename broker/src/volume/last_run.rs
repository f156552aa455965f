//! How the last run on a volume ended: whether everything that it wrote is still there.
//!
//! A process that is killed leaves what it wrote to the operating system; a machine that goes down takes what was not
//! synced with it. `run.properties` holds the boot of the machine (its `boot_id`) that the broker runs in, and whether
//! it has stopped in order, with everything synced. Another boot without an orderly stop, a boot that cannot be told, a
//! file that cannot be read, and a write or sync that has failed all count as a loss. A loss stays on the volume until
//! the controller knows of it: the process may be killed before it has registered.
//!
//! The file is replaced as a whole, and is on disk before the broker writes anything else.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

pub(super) const RUN_FILE: &str = "run.properties";
pub(super) const RUN_TEMPORARY: &str = "run.properties.tmp";
const VERSION: &str = "version=1";
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LastRun {
    /// Boot that the broker runs in; `None` where the system does not tell.
    boot_id: Option<String>,
    /// Whether the broker has stopped, and everything was synced then.
    stopped: bool,
    /// Whether an earlier run has lost what it had not synced, and the controller does not know yet.
    pub(super) lost_unsynced: bool,
}

/// The machine's boot, as far as it can be told.
pub(super) fn boot_id() -> Option<String> {
    let text = fs::read_to_string(BOOT_ID_FILE).ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

impl LastRun {
    /// The run that begins now on a volume that was formatted just now.
    pub(super) fn first(boot_id: Option<String>) -> Self {
        Self { boot_id, stopped: false, lost_unsynced: false }
    }

    /// The run that begins now in boot `boot_id`, after this one; `None` if nothing is known of it.
    pub(super) fn following(last: Option<&Self>, boot_id: Option<String>) -> Self {
        let lost_unsynced = match last {
            None => true,
            Some(last) => {
                let same_boot = last.boot_id.is_some() && last.boot_id == boot_id;
                last.lost_unsynced || !(last.stopped || same_boot)
            }
        };
        Self { boot_id, stopped: false, lost_unsynced }
    }

    /// The same run at its end.
    pub(super) fn stopped(&self) -> Self {
        Self { stopped: true, ..self.clone() }
    }

    /// The same run once something that it wrote may not have reached the disk.
    pub(super) fn lost(&self) -> Self {
        Self { lost_unsynced: true, ..self.clone() }
    }

    /// The same run once the controller knows what was lost before it.
    pub(super) fn reported(&self) -> Self {
        Self { lost_unsynced: false, ..self.clone() }
    }

    /// Reads what [`write`](Self::write) wrote; `None` for anything else.
    pub(super) fn read(directory: &Path) -> Option<Self> {
        let text = fs::read_to_string(directory.join(RUN_FILE)).ok()?;
        let mut lines = text.lines();
        if lines.next() != Some(VERSION) {
            return None;
        }
        let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix('=').map(str::to_owned);
        let boot_id = value("boot.id").map(|id| Some(id).filter(|id| !id.is_empty()))?;
        let stopped = value("stopped")?.parse().ok()?;
        let lost_unsynced = value("lost.unsynced")?.parse().ok()?;
        Some(Self { boot_id, stopped, lost_unsynced })
    }

    /// Durable when this returns.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        let text = format!(
            "{VERSION}\nboot.id={}\nstopped={}\nlost.unsynced={}\n",
            self.boot_id.as_deref().unwrap_or_default(),
            self.stopped,
            self.lost_unsynced
        );
        let temporary = directory.join(RUN_TEMPORARY);
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, directory.join(RUN_FILE))?;
        File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    fn boot(name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    fn lost(last: &LastRun, boot_id: Option<String>) -> bool {
        LastRun::following(Some(last), boot_id).lost_unsynced
    }

    #[test]
    fn a_killed_process_loses_nothing_and_a_machine_that_went_down_what_was_not_synced() {
        let run = LastRun::first(boot("monday"));
        assert!(!lost(&run, boot("monday")));
        assert!(lost(&run, boot("tuesday")));
    }

    #[test]
    fn an_orderly_stop_makes_another_boot_harmless() {
        let run = LastRun::first(boot("monday")).stopped();
        assert!(!lost(&run, boot("tuesday")));
        assert!(!lost(&run, None));
    }

    #[test]
    fn a_boot_that_cannot_be_told_counts_as_another_one() {
        assert!(lost(&LastRun::first(None), None));
        assert!(lost(&LastRun::first(boot("monday")), None));
        assert!(lost(&LastRun::first(None), boot("monday")));
    }

    #[test]
    fn a_run_that_left_no_trace_counts_as_a_loss() {
        assert!(LastRun::following(None, boot("monday")).lost_unsynced);
    }

    #[test]
    fn a_loss_is_remembered_until_it_was_reported() {
        let after = LastRun::following(Some(&LastRun::first(boot("monday"))), boot("tuesday"));
        assert!(lost(&after, boot("tuesday")), "the process was killed before it had registered");
        assert!(lost(&after.stopped(), boot("tuesday")));
        assert!(!lost(&after.reported(), boot("tuesday")));
    }

    #[test]
    fn what_is_written_is_read_again_and_anything_else_is_not() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(LastRun::read(directory.path()), None);
        let first = LastRun::first(None);
        let second = LastRun::following(None, boot("a")).stopped();
        for run in [first, second] {
            run.write(directory.path()).unwrap();
            assert_eq!(LastRun::read(directory.path()), Some(run));
        }
        for damaged in
            ["", "version=2\nboot.id=a\nstopped=true\nlost.unsynced=false\n", "version=1\nboot.id=a\n"]
        {
            fs::write(directory.path().join(RUN_FILE), damaged).unwrap();
            assert_eq!(LastRun::read(directory.path()), None, "{damaged:?}");
        }
    }
}
