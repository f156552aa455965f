//! What readers of old records will ask for next, read before they ask.
//!
//! A reader is known by where it stands: whoever asks for the offset at which an earlier read of the same log ended goes
//! on from there. The next records are then read while the last ones are on their way to the client. Bounded in bytes
//! over all logs; the oldest that nobody came for goes first.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;

/// Most bytes read ahead for one reader.
pub(super) const AHEAD_BYTES: usize = 1 << 20;

/// Most bytes read ahead for all readers.
const TOTAL_BYTES: usize = 16 << 20;

/// Most readers whose place is remembered.
const MAX_READERS: usize = 256;

/// Records in the order of their offsets, whole runs.
pub(super) type Records = Arc<Vec<Bytes>>;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    /// Oldest first.
    readers: Mutex<VecDeque<Reader>>,
}

/// Somebody who reads a log from one end to the other.
#[derive(Debug)]
struct Reader {
    log: u64,
    /// Where it goes on.
    offset: i64,
    ahead: Option<Ahead>,
}

/// Records on their way from the disk, or there.
#[derive(Clone, Debug)]
pub(super) struct Ahead {
    /// How often the log had been cut when the records were looked up: after another cut they are not to be used.
    pub(super) cuts: u64,
    cell: Arc<OnceLock<Option<Records>>>,
}

impl Ahead {
    /// Whether there is nothing to wait for.
    fn is_there(&self) -> bool {
        self.cell.get().is_some()
    }

    /// Waits for the records; `None` if they could not be read.
    pub(super) fn wait(&self) -> Option<Records> {
        self.cell.wait().clone()
    }
}

/// Where the records go; says that there are none if it is dropped before.
#[derive(Debug)]
pub(super) struct Filler(Arc<OnceLock<Option<Records>>>);

impl Filler {
    pub(super) fn fill(&self, records: Records) {
        // Filled once: there is one filler, and it has not been dropped.
        let _ = self.0.set(Some(records));
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = self.0.set(None);
    }
}

impl ReadAhead {
    /// Whether a reader of a log goes on at `offset`, and what has been read for it. It is forgotten here.
    pub(super) fn take(&self, log: u64, offset: i64) -> Option<Option<Ahead>> {
        let mut readers = self.readers.lock();
        let at = readers.iter().position(|reader| (reader.log, reader.offset) == (log, offset))?;
        readers.remove(at).map(|reader| reader.ahead)
    }

    /// What has been read for a reader of a log that goes on at `offset`, if it is there. The reader is forgotten then.
    pub(super) fn take_there(&self, log: u64, offset: i64) -> Option<Ahead> {
        let mut readers = self.readers.lock();
        let is_it = |reader: &Reader| (reader.log, reader.offset) == (log, offset);
        let at = readers.iter().position(|it| is_it(it) && it.ahead.as_ref().is_some_and(Ahead::is_there))?;
        readers.remove(at)?.ahead
    }

    /// Remembers that a reader goes on at `offset`, with what is left of what was read for it.
    pub(super) fn expect(&self, log: u64, offset: i64, ahead: Option<Ahead>) {
        let mut readers = self.readers.lock();
        readers.push_back(Reader { log, offset, ahead });
        if readers.len() > MAX_READERS {
            readers.pop_front();
        }
        let mut too_many = readers.iter().filter(|reader| reader.ahead.is_some()).count();
        too_many = too_many.saturating_sub(TOTAL_BYTES / AHEAD_BYTES);
        for reader in readers.iter_mut().filter(|reader| reader.ahead.is_some()).take(too_many) {
            reader.ahead = None;
        }
    }

    /// Remembers that a reader goes on at `offset`, for which somebody begins to read.
    pub(super) fn begin(&self, log: u64, offset: i64, cuts: u64) -> Filler {
        let cell = Arc::new(OnceLock::new());
        self.expect(log, offset, Some(Ahead { cuts, cell: Arc::clone(&cell) }));
        Filler(cell)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    fn records() -> Records {
        Arc::new(vec![Bytes::from_static(b"records")])
    }

    #[test]
    fn a_reader_finds_what_was_read_for_it_once() {
        let ahead = ReadAhead::default();
        ahead.begin(1, 70, 5).fill(records());
        assert!(ahead.take(1, 69).is_none() && ahead.take(2, 70).is_none());
        let found = ahead.take(1, 70).unwrap().unwrap();
        assert_eq!((found.cuts, found.wait()), (5, Some(records())));
        assert!(ahead.take(1, 70).is_none());
        ahead.expect(1, 80, None);
        assert!(ahead.take(1, 80).unwrap().is_none());
    }

    #[test]
    fn who_cannot_wait_gets_what_is_there() {
        let ahead = ReadAhead::default();
        ahead.expect(1, 60, None);
        let filler = ahead.begin(1, 70, 0);
        assert!(ahead.take_there(1, 60).is_none() && ahead.take_there(1, 70).is_none());
        filler.fill(records());
        assert_eq!(ahead.take_there(1, 70).unwrap().wait(), Some(records()));
        assert!(ahead.take_there(1, 70).is_none());
        assert!(ahead.take(1, 60).is_some(), "nobody came for it");
    }

    #[test]
    fn who_waits_for_a_read_that_came_to_nothing_is_told() {
        let ahead = ReadAhead::default();
        let filler = ahead.begin(1, 0, 0);
        let found = ahead.take(1, 0).unwrap().unwrap();
        let waiter = std::thread::spawn(move || found.wait());
        drop(filler);
        assert_eq!(waiter.join().unwrap(), None);
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let ahead = ReadAhead::default();
        let most = TOTAL_BYTES / AHEAD_BYTES;
        for log in 0..=most as u64 {
            ahead.begin(log, 0, 0).fill(records());
        }
        assert!(ahead.take(0, 0).unwrap().is_none(), "its place is known, its records are gone");
        assert!(ahead.take(1, 0).unwrap().is_some());
        for log in 0..MAX_READERS as u64 {
            ahead.expect(1_000 + log, 0, None);
        }
        assert!(ahead.take(2, 0).is_none());
    }
}
