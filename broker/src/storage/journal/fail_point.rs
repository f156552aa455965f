//! Places at which a test lets the process die, to see what a crash there leaves.
//!
//! A child process of a test names one of them in its environment and dies there by SIGKILL, at the visit asked for.
//! Outside of tests passing one is an empty function.

#[cfg(test)]
pub(super) use armed::VARIABLE;

/// A place in the order of writes (see [`super`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailPoint {
    /// A frame is laid out, nothing of it is written.
    BeforeWrite,
    /// A frame is written and not synced.
    Written,
    /// Everything is synced, no durable end of a log that waits for it has moved.
    Synced,
    /// Durable ends have moved, the index has not heard of the frames.
    Published,
    /// A new segment file was made and holds nothing.
    FileMade,
    /// A segment file was taken to be used again and still holds its former life.
    RecycledTaken,
    /// The first frame of a file that is used again is written and not synced.
    RecycledWritten,
    /// Moved runs are written and not synced.
    MoveWritten,
    /// Moved runs are synced and not in the index.
    MoveSynced,
    /// The index knows the new place of moved runs, in memory.
    MoveIndexed,
    /// A checkpoint is entered, the index is not flushed.
    BeforeFlush,
    /// The index is flushed.
    Flushed,
    /// Segments are about to be retired.
    Retiring,
    /// A segment file that was too much was deleted.
    FileRemoved,
    /// A start has replayed a frame.
    Replaying,
    /// A start has replayed everything and noted nothing.
    Replayed,
    /// A start has been noted in the index.
    Started,
    /// An orderly end is about to be noted.
    Ending,
    /// An orderly end is noted.
    Ended,
}

#[cfg(not(test))]
impl FailPoint {
    /// Does nothing.
    #[inline(always)]
    pub(super) fn pass(self) {}
}

#[cfg(test)]
mod armed {
    use std::io::Write as _;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::FailPoint;

    /// `POINT:VISIT`: where to die, and at which visit, counted from 1.
    pub(in super::super) const VARIABLE: &str = "MILLRACE_TEST_FAIL_POINT";

    struct Armed {
        point: String,
        visits_left: AtomicU32,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    /// Whether the file of the newest segment is one that was used before.
    static RECYCLED: AtomicBool = AtomicBool::new(false);

    impl FailPoint {
        /// Dies here if the environment says so, after a line that tells it.
        pub(in super::super) fn pass(self) {
            match self {
                Self::RecycledTaken => RECYCLED.store(true, Ordering::SeqCst),
                Self::FileMade => RECYCLED.store(false, Ordering::SeqCst),
                Self::RecycledWritten if !RECYCLED.load(Ordering::SeqCst) => return,
                _ => {}
            }
            let armed = ARMED.get_or_init(|| {
                let value = std::env::var(VARIABLE).ok()?;
                let (point, visit) = value.split_once(':').expect("a point and a visit");
                let visits_left = AtomicU32::new(visit.parse().expect("a number"));
                Some(Armed { point: point.to_owned(), visits_left })
            });
            let Some(armed) = armed.as_ref().filter(|armed| armed.point == format!("{self:?}")) else {
                return;
            };
            if armed.visits_left.fetch_sub(1, Ordering::SeqCst) == 1 {
                writeln!(std::io::stdout(), "reached {self:?}").expect("the parent reads");
                kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
                loop {
                    std::thread::park();
                }
            }
        }
    }
}
