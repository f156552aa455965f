//! Space that a volume keeps for what the broker cannot do without.
//!
//! Appends are refused long before a volume is full, but other programs may share it and take what is left. Then the
//! broker could not even start, for databases write when they are opened, and a segment or a part of the index that has
//! to be written stops the store. So some of the volume is in a file, which is deleted when the rest has been taken, and
//! made again when there is room: with that space a broker goes on to answer readers, and to delete.
//!
//! It is never used for records: when the file is gone, less is free than appends leave.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tokio_util::sync::CancellationToken;

use crate::blocking::spawn_blocking;

pub(super) const KEPT_FILE: &str = "kept-space";

/// A hundredth of the volume within these bounds: enough for a segment of the journal, which is a part of it.
const KEPT_BOUNDS: (u64, u64) = (32 << 20, 256 << 20);

/// Time between two looks at the volume.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Space of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that this process may still write.
    pub free: u64,
    /// Size of the volume in bytes.
    pub total: u64,
}

impl Space {
    /// Space of the volume that holds `path`.
    ///
    /// # Errors
    /// There is no such path, or it cannot be looked at.
    pub fn of(path: &Path) -> io::Result<Self> {
        let stat = statvfs(path)?;
        Ok(Self {
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }
}

/// Bytes that a volume of `total` bytes keeps.
pub(crate) fn kept_bytes(total: u64) -> u64 {
    (total / 100).clamp(KEPT_BOUNDS.0, KEPT_BOUNDS.1)
}

/// See the module documentation.
#[derive(Debug)]
pub struct KeptSpace {
    directory: PathBuf,
    /// One change of the file at a time.
    changing: Mutex<()>,
}

/// What is to be done with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    GiveUp,
    Keep,
    Nothing,
}

/// What is to be done on a volume that keeps `kept` bytes of `wanted` while `free` are free for all. Between giving up
/// and keeping again lies more than is given up, so one is never the reason for the other.
fn step(kept: u64, wanted: u64, free: u64) -> Step {
    if kept > 0 && free < wanted / 2 {
        Step::GiveUp
    } else if kept < wanted && kept + free >= 2 * wanted {
        Step::Keep
    } else {
        Step::Nothing
    }
}

impl KeptSpace {
    /// The kept space of the volume in `directory`. Nothing is looked at yet.
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), changing: Mutex::default() }
    }

    /// Looks at the volume: gives the space up if others have taken the rest, and keeps it again if there is enough. Blocks
    /// on the disk if there is something to do.
    ///
    /// # Errors
    /// The file system refuses. There is less space then than there could be, and nothing else is wrong.
    pub fn look(&self) -> io::Result<()> {
        self.take_step(|step| step).map(drop)
    }

    /// As [`look`](Self::look), but keeps nothing that is not kept yet: for what is about to be written and cannot do
    /// without space. Says whether there is more than before.
    pub fn make_room(&self) -> bool {
        let made = self.take_step(|step| if step == Step::Keep { Step::Nothing } else { step });
        made.unwrap_or_else(|error| {
            // If there is too little, what is written next says so.
            tracing::warn!(path = %self.directory.display(), %error, "cannot look for space on the volume");
            false
        })
    }

    /// Does what cannot do without space, and once more if it failed while others took what there was.
    ///
    /// # Errors
    /// Those of `attempt`.
    pub fn with_room<T, E>(&self, mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
        self.make_room();
        match attempt() {
            Err(_) if self.make_room() => attempt(),
            outcome => outcome,
        }
    }

    /// Whether space was given up.
    fn take_step(&self, choose: fn(Step) -> Step) -> io::Result<bool> {
        let _changing = self.changing.lock();
        let Space { free, total } = Space::of(&self.directory)?;
        let wanted = kept_bytes(total);
        match choose(step(self.kept()?, wanted, free)) {
            Step::GiveUp => self.remove(),
            Step::Keep => self.make(wanted).map(|()| false),
            Step::Nothing => Ok(false),
        }
    }

    /// Does what needs space. If there is not enough, gives up what is kept, and tries once more.
    ///
    /// # Errors
    /// Those of `attempt`.
    pub fn make_room_for<T>(&self, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::StorageFull && self.give_up() => attempt(),
            outcome => outcome,
        }
    }

    /// Whether there was something, so that another try is worthwhile.
    fn give_up(&self) -> bool {
        let _changing = self.changing.lock();
        self.remove().unwrap_or_else(|error| {
            tracing::warn!(path = %self.path().display(), %error, "cannot give up the space that is kept");
            false
        })
    }

    fn path(&self) -> PathBuf {
        self.directory.join(KEPT_FILE)
    }

    /// Bytes of the file.
    fn kept(&self) -> io::Result<u64> {
        match fs::metadata(self.path()) {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Whether there was a file.
    fn remove(&self) -> io::Result<bool> {
        match fs::remove_file(self.path()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        // The space is there for others when the file system has written that it is.
        File::open(&self.directory)?.sync_all()?;
        tracing::warn!(
            path = %self.directory.display(),
            "the volume is full; the broker goes on with space that it had kept, and takes no records until there is more"
        );
        Ok(true)
    }

    fn make(&self, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(self.path())?;
        let made = fallocate(&file, FallocateFlags::empty(), 0, bytes);
        let made = made.map_err(io::Error::from).and_then(|()| file.sync_all());
        if made.is_err() {
            // A part of it would pass for the whole.
            let _ = fs::remove_file(self.path());
        }
        made?;
        tracing::info!(path = %self.directory.display(), bytes, "keeping space for when the volume is full");
        Ok(())
    }
}

/// Keeps the space as it should be until `stop`.
pub async fn watch(kept_space: Arc<KeptSpace>, stop: CancellationToken) {
    let mut complained = false;
    while !stop.is_cancelled() {
        let looking = Arc::clone(&kept_space);
        match spawn_blocking(move || looking.look()).await {
            Ok(Err(error)) if !complained => {
                tracing::warn!(path = %kept_space.path().display(), %error, "cannot keep space on the volume");
                complained = true;
            }
            Ok(Err(_)) => {}
            Ok(Ok(())) => complained = false,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_cancelled) => return,
        }
        stop.run_until_cancelled(tokio::time::sleep(LOOK_INTERVAL)).await;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use crate::volume::small::SmallVolume;

    const MIB: u64 = 1 << 20;

    #[test]
    fn space_is_given_up_when_the_rest_is_taken_and_kept_again_when_there_is_more() {
        let step = |kept: u64, free: u64| step(kept * MIB, 32 * MIB, free * MIB);
        assert_eq!(step(0, 64), Step::Keep);
        assert_eq!(step(0, 63), Step::Nothing);
        assert_eq!(step(32, 1_000), Step::Nothing);
        assert_eq!(step(32, 16), Step::Nothing);
        assert_eq!(step(32, 15), Step::GiveUp);
        assert_eq!(step(0, 0), Step::Nothing, "there is nothing to give up");
        assert_eq!(step(8, 100), Step::Keep, "the volume has grown, or keeping was interrupted");
    }

    #[test]
    fn neither_giving_up_nor_keeping_is_a_reason_for_the_other() {
        for wanted in [32 * MIB, 77 * MIB + 1, 256 * MIB] {
            for free in (0..4 * wanted).step_by(1 << 18) {
                match step(wanted, wanted, free) {
                    Step::GiveUp => assert_eq!(step(0, wanted, free + wanted), Step::Nothing),
                    other => assert_eq!(other, Step::Nothing),
                }
                match step(0, wanted, free) {
                    Step::Keep => assert_eq!(step(wanted, wanted, free - wanted), Step::Nothing),
                    other => assert_eq!(other, Step::Nothing),
                }
            }
        }
    }

    #[test]
    fn the_file_takes_its_space_at_once_and_goes_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let space = KeptSpace::new(directory.path());
        assert!(!space.give_up());
        space.make(4 * MIB).unwrap();
        assert_eq!(space.kept().unwrap(), 4 * MIB);
        let stat = rustix::fs::stat(space.path()).unwrap();
        assert!(stat.st_blocks as u64 * 512 >= 4 * MIB, "{} blocks", stat.st_blocks);
        assert!(space.give_up() && !space.give_up());
        assert_eq!(space.kept().unwrap(), 0);
    }

    #[test]
    fn what_finds_no_space_is_tried_once_more_when_some_was_kept() {
        let directory = tempfile::tempdir().unwrap();
        let space = KeptSpace::new(directory.path());
        let tries = |kind: io::ErrorKind| {
            let mut tries = 0;
            let outcome = space.make_room_for(|| -> io::Result<()> {
                tries += 1;
                Err(kind.into())
            });
            assert_eq!(outcome.unwrap_err().kind(), kind);
            tries
        };
        assert_eq!(tries(io::ErrorKind::StorageFull), 1, "nothing is kept");
        space.make(1 << 20).unwrap();
        assert_eq!(tries(io::ErrorKind::PermissionDenied), 1);
        assert_eq!(space.kept().unwrap(), 1 << 20);
        assert_eq!(tries(io::ErrorKind::StorageFull), 2);
        assert_eq!(space.kept().unwrap(), 0);
    }

    #[test]
    fn the_second_try_finds_what_was_kept() {
        let Some(volume) = SmallVolume::mount(96) else { return };
        let space = KeptSpace::new(volume.path());
        space.look().unwrap();
        volume.fill();
        let part = volume.path().join("part");
        let mut tries = 0;
        let write = || {
            tries += 1;
            fs::write(&part, vec![1; 1 << 20])
        };
        space.make_room_for(write).unwrap();
        assert_eq!((tries, space.kept().unwrap()), (2, 0));
    }

    #[test]
    fn what_fails_when_others_fill_the_volume_meanwhile_is_tried_once_more() {
        let Some(volume) = SmallVolume::mount(96) else { return };
        let space = KeptSpace::new(volume.path());
        space.look().unwrap();
        let mut tries = 0;
        let open = || {
            if tries == 0 {
                volume.fill();
            }
            tries += 1;
            fs::write(volume.path().join("part"), vec![1; 1 << 20]).map_err(|error| error.to_string())
        };
        space.with_room(open).unwrap();
        assert_eq!((tries, space.kept().unwrap()), (2, 0));
        let refused: Result<(), &str> = space.with_room(|| Err("for another reason"));
        assert!(refused.is_err());
    }

    #[test]
    fn a_volume_with_room_keeps_its_space_once_it_is_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let space = KeptSpace::new(directory.path());
        assert!(!space.make_room());
        assert_eq!(space.kept().unwrap(), 0, "that comes later");
        space.look().unwrap();
        let Space { total, .. } = Space::of(directory.path()).unwrap();
        assert_eq!(space.kept().unwrap(), kept_bytes(total));
    }
}
