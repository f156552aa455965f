//! Gives back the space of segments in which little is left: what lives there is written anew, and then nothing does.
//!
//! The runs of a segment are written sorted by log, so that what was interleaved lies side by side afterwards. A move
//! is an entry of the journal like any other; a run that was deleted or cut while it was copied stays as it is, and the
//! copy is garbage.
//!
//! What is damaged is never copied: a copy would have a new checksum around it, as if it were good. It stays where it is,
//! with its segment, and is reported; Kafka's cleaner sets aside a log with damage in the same way.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use super::Shared;
use super::frame::Run;
use super::keys::PlacedRun;
use super::reads::Place;
use super::recovery::frames;
use super::segments::Segment;
use super::space::Purpose;
use super::writer::Command;
use crate::metadata::image::TopicIdPartition;
use crate::storage::StorageError;
use crate::storage::batch::{check_layout, check_sums};

/// Live bytes after which one call rewrites no further segment: it shares the disk with produce requests. It may go over
/// that by one segment. Otherwise segments of which two do not fit would become thin faster than they are rewritten.
const BUDGET_BYTES: u64 = 96 << 20;

/// Most bytes on their way to the writer at once.
const PIECE_BYTES: usize = 4 << 20;

/// A segment that is full, and what lives in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) segment: u64,
    /// Size of its file, bytes.
    pub(super) length: u64,
    /// Bytes of live runs.
    pub(super) live: u64,
}

/// Which segments are to be rewritten: the emptiest first, as long as the journal takes more than twice the bytes that
/// live in it, and some segments for its own work. Those that are `damaged` stay as they are, and do not count.
fn choose(mut usage: Vec<Usage>, damaged: &HashSet<u64>) -> Vec<u64> {
    usage.retain(|one| !damaged.contains(&one.segment));
    usage.sort_by_key(|one| one.live);
    let spare = 2 * usage.iter().map(|one| one.length).max().unwrap_or(0);
    let live: u64 = usage.iter().map(|one| one.live).sum();
    let mut taken: u64 = usage.iter().map(|one| one.length).sum();
    let mut left = BUDGET_BYTES;
    let mut chosen = Vec::new();
    for one in usage {
        let is_thin = one.live > 0 && one.live <= one.length / 2;
        if !is_thin || taken <= 2 * live + spare || left == 0 {
            break;
        }
        left = left.saturating_sub(one.live);
        // What it frees, less what is written elsewhere.
        taken -= one.length - one.live;
        chosen.push(one.segment);
    }
    chosen
}

/// Whether a rewrite would do something, or one that was done has left segments to the next flush of the index.
pub(super) fn gives_space(usage: Vec<Usage>, damaged: &HashSet<u64>) -> bool {
    !choose(usage, damaged).is_empty()
}

/// Rewrites thin segments within a budget. Their files can be used again after the next flush of the index; on a volume that
/// has no room for the rest, which comes after it.
///
/// Segments that turn out to be `damaged` are added there, and left out from then on.
pub(super) fn rewrite_thin_segments(shared: &Shared, damaged: &mut HashSet<u64>) -> Result<(), StorageError> {
    let usage = shared.usage.lock().clone();
    for id in choose(usage, damaged) {
        let Some(segment) = shared.segments.get(id) else { continue };
        let live = shared.index.live_in(id)?;
        match shared.space.take(live, Purpose::Rewriting, || shared.segments.free_bytes()) {
            Err(StorageError::Full { .. }) => break,
            taken => taken?,
        }
        let path = segment.path().display();
        match rewrite(shared, &segment) {
            Ok(0) => {}
            Ok(bytes) => {
                tracing::error!(%path, bytes, "records that are damaged stay where they are; reading them fails");
                damaged.insert(id);
            }
            Err(error @ (StorageError::Damaged { .. } | StorageError::Io { .. })) => {
                tracing::error!(%path, %error, "a segment in which little is left cannot be read and stays as it is");
                damaged.insert(id);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns the bytes of live runs that are damaged, and could not be moved.
fn rewrite(shared: &Shared, segment: &Arc<Segment>) -> Result<u64, StorageError> {
    let before = shared.index.live_in(segment.id)?;
    let mut live = Vec::new();
    frames(segment, shared.volume, |placed| {
        let partition = placed.entry.partition();
        if let Some(run) = placed.entry.run()
            && let Some(found) = shared.index.run_at_or_before(partition, run.base_offset)?
            && (found.run.base_offset, found.segment, found.position)
                == (run.base_offset, segment.id, placed.position)
        {
            live.push((partition, found));
        }
        Ok(())
    })?;
    live.sort_by_key(|(partition, placed)| (*partition, placed.run.base_offset));
    let mut piece: Vec<(TopicIdPartition, Run, Bytes)> = Vec::new();
    let mut bytes = 0;
    // Runs that are not found lie in damaged frames; unless they have gone since, which a look at the end tells.
    let found: u64 = live.iter().map(|(_, placed)| u64::from(placed.run.length)).sum();
    let mut missed = before.saturating_sub(found);
    for (partition, PlacedRun { run, position, .. }) in live {
        let (segment, length) = (Arc::clone(segment), run.length as usize);
        let records = shared.reads.read(&Place { segment, position: u64::from(position), length })?;
        // The frame was whole a moment ago, but this is another read.
        let layout = check_layout(&records, run.base_offset, run.last_offset, run.leader_epoch);
        if layout.and_then(|()| check_sums(&records)).is_err() {
            missed += u64::from(run.length);
            continue;
        }
        bytes += records.len();
        // Copied: what was read for a small run is a block at least, and thousands of them wait for each other here.
        piece.push((partition, run, Bytes::copy_from_slice(&records)));
        if bytes >= PIECE_BYTES {
            let runs = std::mem::take(&mut piece);
            shared.ask(|reply| Command::Move { runs, reply })?;
            bytes = 0;
        }
    }
    if !piece.is_empty() {
        shared.ask(|reply| Command::Move { runs: piece, reply })?;
    }
    Ok(missed.min(shared.index.live_in(segment.id)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(live: &[u64]) -> Vec<Usage> {
        (1..).zip(live).map(|(segment, live)| Usage { segment, length: 100, live: *live }).collect()
    }

    #[test]
    fn the_emptiest_are_rewritten_until_the_journal_is_less_than_twice_what_lives() {
        // 1,000 bytes for 300 that live: 800 are allowed.
        let usage = usage(&[100, 50, 10, 30, 5, 5, 50, 20, 20, 10]);
        assert_eq!(choose(usage.clone(), &HashSet::new()), [5, 6, 3]);
        // 900 bytes for 295 that live: 790 are allowed.
        assert_eq!(choose(usage, &HashSet::from([5])), [6, 3]);
    }

    #[test]
    fn a_journal_that_is_well_used_or_small_is_left_alone() {
        for left_alone in [usage(&[60; 10]), usage(&[10, 10]), Vec::new()] {
            assert_eq!(choose(left_alone, &HashSet::new()), Vec::<u64>::new());
        }
    }

    /// A journal as far as space goes: what is appended fills one segment after the other.
    #[derive(Default)]
    struct Journal {
        full: Vec<Usage>,
        end: u64,
        live: u64,
    }

    impl Journal {
        const SEGMENT: u64 = 256 << 20;

        /// Writes `bytes`, of which `percent` live for ever and the others not at all.
        fn write(&mut self, mut bytes: u64, percent: u64) {
            while bytes > 0 {
                let now = bytes.min(Self::SEGMENT - self.end);
                (self.end, self.live, bytes) = (self.end + now, self.live + now * percent / 100, bytes - now);
                if self.end == Self::SEGMENT {
                    let segment = self.full.last().map_or(1, |last| last.segment + 1);
                    self.full.push(Usage { segment, length: Self::SEGMENT, live: self.live });
                    (self.end, self.live) = (0, 0);
                }
            }
        }

        fn rewrite(&mut self) {
            let chosen = choose(self.full.clone(), &HashSet::new());
            let (rewritten, left) = self.full.drain(..).partition(|one| chosen.contains(&one.segment));
            self.full = left;
            self.write(rewritten.iter().map(|one: &Usage| one.live).sum(), 100);
        }
    }

    #[test]
    fn rewriting_keeps_up_with_a_journal_of_which_some_part_lives_for_long() {
        for percent in 1..=50 {
            let mut journal = Journal::default();
            for _checkpoint in 0..400 {
                journal.write(384 << 20, percent);
                journal.rewrite();
            }
            let live: u64 = journal.full.iter().map(|one| one.live).sum();
            let taken: u64 = journal.full.iter().map(|one| one.length).sum();
            assert!(taken <= 2 * live + 4 * Journal::SEGMENT, "{percent} % live: {} %", taken * 100 / live);
        }
    }
}
