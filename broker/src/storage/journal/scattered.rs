//! Reads many places of the journal at once.
//!
//! Records of one log lie scattered over the journal until it has been rewritten. One place after the other would cost a
//! turn of the disk each, and a disk does many at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use bytes::Bytes;

use super::keys::PlacedRun;
use super::reads::{Place, Reads, Turn};
use crate::storage::StorageError;

/// Most reads of one call that are on their way at once.
const AT_ONCE: usize = 8;

/// Bytes between two runs that are read along with them: a frame's header and table, and the end of the frame before.
const MAX_GAP: u64 = 16 << 10;

/// Most bytes of one read, unless a run has more.
const MAX_EXTENT: u64 = 1 << 20;

/// Some runs that lie close together, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) segment: u64,
    /// Position in the segment, bytes.
    pub(super) position: u64,
    /// Bytes.
    pub(super) length: usize,
    /// How many runs it has.
    pub(super) runs: usize,
}

/// Bytes between two runs that are read along with them; `None` if they take a read each.
fn gap(before: (u64, u64), run: &PlacedRun) -> Option<u64> {
    let (segment, end) = before;
    let gap = u64::from(run.position).checked_sub(end).filter(|_| segment == run.segment)?;
    (gap <= MAX_GAP).then_some(gap)
}

/// What a run behind another one costs the disk, in bytes read: a read of its own is never less than what would be read
/// along to save it.
pub(super) fn cost(before: Option<&PlacedRun>, run: &PlacedRun) -> u64 {
    let length = u64::from(run.run.length);
    match before.and_then(|before| gap((before.segment, before.end_position()), run)) {
        Some(gap) => gap + length,
        None => length.max(MAX_GAP),
    }
}

/// The reads that some runs take.
pub(super) fn extents(runs: &[PlacedRun]) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for run in runs {
        let (position, length) = (u64::from(run.position), run.run.length as usize);
        let joins = |last: &&mut Extent| {
            let end = last.position + last.length as u64;
            gap((last.segment, end), run).is_some() && run.end_position() - last.position <= MAX_EXTENT
        };
        match extents.last_mut().filter(joins) {
            Some(last) => {
                last.length =
                    usize::try_from(run.end_position() - last.position).expect("less than an extent");
                last.runs += 1;
            }
            None => extents.push(Extent { segment: run.segment, position, length, runs: 1 }),
        }
    }
    extents
}

/// Reads `places`; answers in their order. Helped by the threads of the runtime for blocking work, where there is one
/// and the disk has room for more reads.
pub(super) fn read(places: Vec<Place>, reads: &Arc<Reads>) -> Vec<Result<Bytes, StorageError>> {
    let largest = places.iter().map(|place| place.length).max().unwrap_or_default();
    // One of them is for this thread.
    let helpers = reads.free_turns(largest).min(places.len()).min(AT_ONCE).saturating_sub(1);
    let runtime = tokio::runtime::Handle::try_current();
    let (Ok(runtime), 1..) = (runtime, helpers) else {
        return places.iter().map(|place| reads.read(place)).collect();
    };
    let shared = Arc::new((places, AtomicUsize::new(0)));
    let (sender, done) = mpsc::channel();
    let work = {
        let (shared, reads) = (Arc::clone(&shared), Arc::clone(reads));
        // Takes turns until there is none, or no place left.
        move |turn: &dyn Fn(&Reads) -> Option<Turn>| {
            let (places, next) = &*shared;
            while next.load(Ordering::Relaxed) < places.len() {
                let Some(turn) = turn(&reads) else { return };
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(place) = places.get(at) else { return };
                // Nobody hears of it if the caller has panicked.
                let _ = sender.send((at, reads.read_in(&turn, place)));
            }
        }
    };
    for _ in 0..helpers {
        let work = work.clone();
        // A helper never waits: whoever waits for it would be helped more by the thread.
        runtime.spawn_blocking(move || work(&|reads| reads.try_turn(largest)));
    }
    // Helpers that never come cost nothing but time.
    work(&|reads| Some(reads.turn(largest)));
    drop(work);
    let places = &shared.0;
    let mut answers: Vec<_> = places.iter().map(|_| None).collect();
    for _ in places {
        // No more come if a helper has panicked.
        let Ok((at, answer)) = done.recv() else { break };
        answers[at] = Some(answer);
    }
    places.iter().zip(answers).map(|(place, answer)| answer.unwrap_or_else(|| reads.read(place))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::frame::Run;
    use super::*;

    fn run(segment: u64, position: u32, length: u32) -> PlacedRun {
        let run = Run {
            base_offset: 0,
            last_offset: 0,
            max_timestamp: 0,
            running_max_timestamp: 0,
            written_ms: 0,
            log_position: 0,
            leader_epoch: 0,
            length,
        };
        PlacedRun { run, segment, position }
    }

    #[test]
    fn runs_that_lie_close_together_are_one_read() {
        let runs = [run(1, 0, 1_000), run(1, 1_000, 500), run(1, 10_000, 1), run(1, 40_000, 7)];
        let expected = [
            Extent { segment: 1, position: 0, length: 10_001, runs: 3 },
            Extent { segment: 1, position: 40_000, length: 7, runs: 1 },
        ];
        assert_eq!(extents(&runs), expected);
        assert_eq!(extents(&[]), []);
    }

    #[test]
    fn a_run_costs_what_lies_before_it_or_a_read_of_its_own() {
        let before = run(1, 0, 1_000);
        assert_eq!(cost(Some(&before), &run(1, 10_000, 10)), 9_010);
        for (before, place) in [(None, run(1, 10_000, 10)), (Some(before), run(1, 100_000, 10))] {
            assert_eq!(cost(before.as_ref(), &place), MAX_GAP, "a read of its own");
        }
        assert_eq!(cost(Some(&before), &run(2, 1_000, 100_000)), 100_000);
        assert_eq!(cost(Some(&run(1, 500, 10)), &run(1, 0, 10)), MAX_GAP);
    }

    #[test]
    fn what_lies_before_or_elsewhere_or_is_too_much_is_another_read() {
        assert_eq!(extents(&[run(1, 5_000, 10), run(1, 0, 10)]).len(), 2);
        assert_eq!(extents(&[run(1, 0, 10), run(2, 10, 10)]).len(), 2);
        assert_eq!(extents(&[run(1, 0, 1 << 20), run(1, 1 << 20, 10)]).len(), 2);
        assert_eq!(extents(&[run(1, 0, 3 << 20)]).len(), 1, "a run is never cut");
    }
}
