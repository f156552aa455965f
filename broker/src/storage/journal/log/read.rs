//! Reading a log: by offset, by time, and what a cut would leave.
//!
//! What was found in the index can be moved, compacted or deleted before it is read. A run that was moved is the same
//! run and is read where it is now; one that is gone is looked for again by its offset.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use millrace_protocol::RecordBytes;
use millrace_protocol::records::BatchHeader;

use super::super::frame::Run;
use super::super::keys::PlacedRun;
use super::super::read_ahead::{AHEAD_BYTES, Ahead};
use super::super::reads::Place;
use super::super::replayed::Headers;
use super::super::scattered::{self, Extent, cost, extents};
use super::JournalLog;
use crate::storage::batch::{StoredBatchError, WholeBatches, check_layout, check_sums};
use crate::storage::{ReadRange, Reader, StorageError};

/// Most bytes that one read from the disk returns, whatever was asked for.
const MAX_COLD_READ: usize = 8 << 20;

/// What one read may cost the disk where less was asked for, in bytes: small runs that lie far apart cost more than they
/// have, and whoever waits for them is better served with few of them soon.
const MIN_COST: u64 = 1 << 20;

/// Most runs that are looked up at once.
const MAX_RUNS: usize = 1_024;

/// Most bytes that are read at once to be looked through, unless a run has more.
const VISIT_BYTES: usize = 4 << 20;

/// Tries to find a run that moves to another place, or is replaced, while it is being looked up.
const PLACE_TRIES: usize = 8;

/// What is known of a run.
enum Seen<'a> {
    /// All its bytes.
    Bytes(Bytes),
    /// The headers of its batches, which were whole.
    Headers(&'a [BatchHeader]),
}

impl JournalLog {
    pub(super) fn read_range(&self, range: ReadRange) -> Result<RecordBytes, StorageError> {
        for _ in 0..PLACE_TRIES {
            // In memory first: what leaves it while the index is searched is in the index.
            let (bounded, newer, memory_from) = {
                let state = self.state.lock();
                let Some(bounded) = state.bounded(range)? else { return Ok(RecordBytes::new()) };
                if let Some(bytes) = state.read_tail(bounded) {
                    return Ok(bytes);
                }
                (bounded, state.read_tail_from(0, bounded), state.memory_from())
            };
            let on_disk = ReadRange { until: bounded.until.min(memory_from), ..bounded };
            let Some((older, found)) = self.read_cold(on_disk)? else { continue };
            // Nothing in it is no proof of a gap: the first batch may be larger than what was asked for.
            if found {
                return Ok(older);
            }
            if !newer.is_empty() {
                // Nothing lies between the offset and what was in memory.
                return Ok(newer);
            }
            // Nothing lies up to the bound. If that was the end of a moment ago, there may be more now.
            // Retention may have taken it while it was being read: then the offset is out of range.
            let now = self.state.lock().bounded(range)?;
            if now.is_none_or(|now| now.until == bounded.until) {
                break;
            }
        }
        Ok(RecordBytes::new())
    }

    /// What the index knows of a range, and whether it knows anything in it, however large; `None` if what was found
    /// has gone meanwhile.
    fn read_cold(&self, range: ReadRange) -> Result<Option<(RecordBytes, bool)>, StorageError> {
        let range = ReadRange { max_bytes: range.max_bytes.min(MAX_COLD_READ), ..range };
        let reader = self.shared.read_ahead.take(self.id, range.offset);
        // A log is mostly read from its start, or on from where the last read ended.
        let goes_on = reader.is_some() || range.offset == self.state.lock().log_start;
        if let Some(ahead) = reader.flatten()
            && let Some(records) = self.use_ahead(range, ahead)
        {
            return Ok(Some((records, true)));
        }
        let Some((records, found)) = self.lookup(range)? else { return Ok(None) };
        let (parts, next, _) = pick_all(&records, range);
        if let Some(next) = next {
            if goes_on {
                self.read_on(next, range.max_bytes);
            } else {
                self.shared.read_ahead.expect(self.id, next, None);
            }
        }
        Ok(Some((parts.into(), found)))
    }

    /// What was read ahead for a range, if that has been done: does not block.
    pub(super) fn read_ahead_of(&self, range: ReadRange) -> Option<RecordBytes> {
        let ahead = self.shared.read_ahead.take_there(self.id, range.offset)?;
        let range = ReadRange { max_bytes: range.max_bytes.min(MAX_COLD_READ), ..range };
        self.use_ahead(range, ahead)
    }

    /// What a range asks for of what was read ahead, and reads on; `None` if that is of no use any more.
    fn use_ahead(&self, range: ReadRange, ahead: Ahead) -> Option<RecordBytes> {
        if ahead.cuts != self.cuts() {
            return None;
        }
        let (parts, next, whole) = pick_all(&ahead.wait()?, range);
        match next {
            Some(next) if whole => self.read_on(next, range.max_bytes),
            Some(next) => self.shared.read_ahead.expect(self.id, next, Some(ahead)),
            // There is no room for it now: it is good for the next time.
            None if !range.at_least_one => self.shared.read_ahead.expect(self.id, range.offset, Some(ahead)),
            None => return None,
        }
        Some(parts.into())
    }

    /// Reads what comes next for a reader that goes on at `offset`, on another thread.
    fn read_on(&self, offset: i64, max_bytes: usize) {
        let (cuts, until) = {
            let state = self.state.lock();
            (state.cuts, state.durable_end.min(state.memory_from()))
        };
        let (Ok(runtime), Some(log)) = (tokio::runtime::Handle::try_current(), self.this.upgrade()) else {
            return;
        };
        if offset >= until {
            return self.shared.read_ahead.expect(self.id, offset, None);
        }
        let filler = self.shared.read_ahead.begin(self.id, offset, cuts);
        let max_bytes = max_bytes.min(AHEAD_BYTES);
        let range = ReadRange { reader: Reader::Consumer, offset, until, max_bytes, at_least_one: false };
        runtime.spawn_blocking(move || {
            // An error is for whoever reads there.
            if let Ok(Some((records, _))) = log.lookup(range)
                && !records.is_empty()
            {
                filler.fill(Arc::new(records));
            }
        });
    }

    fn cuts(&self) -> u64 {
        self.state.lock().cuts
    }

    /// The runs in a range, from the index and the disk, as many as have `max_bytes` or take much of the disk's time, and
    /// at least one; and whether there are any. `None` if the first has gone meanwhile.
    fn lookup(&self, range: ReadRange) -> Result<Option<(Vec<Bytes>, bool)>, StorageError> {
        let mut runs: Vec<PlacedRun> = Vec::new();
        let (mut planned, mut costs) = (0, 0);
        let most = (range.max_bytes as u64).max(MIN_COST);
        self.shared.index.runs_from(self.partition, range.offset, |placed| {
            let is_enough = planned >= range.max_bytes || costs >= most;
            if placed.run.base_offset >= range.until || (is_enough && !runs.is_empty()) {
                return false;
            }
            planned += placed.run.length as usize;
            costs += cost(runs.last(), &placed);
            runs.push(placed);
            true
        })?;
        let mut records = Vec::new();
        let mut rest = runs.as_slice();
        while !rest.is_empty() {
            match self.runs_bytes(rest) {
                Ok(Some(pieces)) => {
                    rest = &rest[pieces.iter().map(|(_, count)| count).sum()..];
                    records.extend(pieces.into_iter().map(|(bytes, _)| bytes));
                }
                Ok(None) if records.is_empty() => return Ok(None),
                Err(error) if records.is_empty() => return Err(error),
                // What comes before it is good; whoever goes on behind that looks again, and gets the error.
                Ok(None) | Err(_) => break,
            }
        }
        Ok(Some((records, !runs.is_empty())))
    }

    /// The bytes of a run, wherever it is now; `None` if it is gone.
    pub(super) fn run_bytes(&self, placed: PlacedRun) -> Result<Option<Bytes>, StorageError> {
        let pieces = self.runs_bytes(&[placed])?;
        Ok(pieces.and_then(|pieces| pieces.into_iter().next()).map(|(bytes, _)| bytes))
    }

    /// The bytes of the first of some runs and of those after it, as far as they are found; those that lie side by side
    /// on the disk in one piece, with how many they are. `None` if the first is gone.
    ///
    /// They are laid out as the index says, or it is an error for the first run and the end for those after it. Their
    /// checksums are left to whoever reads them, as in Kafka.
    fn runs_bytes(&self, runs: &[PlacedRun]) -> Result<Option<Vec<(Bytes, usize)>>, StorageError> {
        let Some(first) = runs.first() else { return Ok(None) };
        let extents = extents(runs);
        let place = |extent: &Extent| {
            let segment = self.shared.segments.get(extent.segment)?;
            Some(Place { segment, position: extent.position, length: extent.length })
        };
        let places: Vec<Place> = extents.iter().map_while(place).collect();
        if places.is_empty() {
            return Ok(self.moved_run_bytes(*first)?.map(|bytes| vec![(bytes, 1)]));
        }
        let mut rest = runs;
        let mut pieces = Vec::new();
        for (extent, read) in extents.iter().zip(scattered::read(places, &self.shared.reads)) {
            let (here, others) = rest.split_at(extent.runs);
            let checked = read.and_then(|bytes| self.check_extent(extent, here, &bytes, &mut pieces));
            match checked {
                Ok(true) => rest = others,
                Err(error) if pieces.is_empty() => return Err(error),
                Ok(false) | Err(_) => break,
            }
        }
        Ok(Some(pieces))
    }

    /// Adds the good ones of the `runs` in an extent to `pieces`; false if one of them is not, and not the first of all.
    fn check_extent(
        &self,
        extent: &Extent,
        runs: &[PlacedRun],
        bytes: &Bytes,
        pieces: &mut Vec<(Bytes, usize)>,
    ) -> Result<bool, StorageError> {
        let side_by_side = |a: &PlacedRun, b: &PlacedRun| a.end_position() == u64::from(b.position);
        let at = |position: u64| usize::try_from(position - extent.position).expect("less than an extent");
        for group in runs.chunk_by(side_by_side) {
            let start = at(u64::from(group[0].position));
            let (mut end, mut good) = (start, 0);
            for placed in group {
                let next = at(placed.end_position());
                match self.check(*placed, &bytes[end..next]) {
                    Ok(()) => (end, good) = (next, good + 1),
                    Err(error) if pieces.is_empty() && good == 0 => return Err(error),
                    Err(_reported_by_the_next_read) => break,
                }
            }
            if good > 0 {
                pieces.push((bytes.slice(start..end), good));
            }
            if good < group.len() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The bytes of a run whose segment is not there any more; `None` if the run is gone.
    fn moved_run_bytes(&self, first: PlacedRun) -> Result<Option<Bytes>, StorageError> {
        // Moved since it was looked up, or deleted, or compacted.
        let mut placed = first;
        for _ in 0..PLACE_TRIES {
            match self.shared.index.run_at_or_before(self.partition, placed.run.base_offset)? {
                Some(found) if found.run == placed.run => placed = found,
                _ => return Ok(None),
            }
            if let Some(segment) = self.shared.segments.get(placed.segment) {
                let (position, length) = (u64::from(placed.position), placed.run.length as usize);
                let bytes = self.shared.reads.read(&Place { segment, position, length })?;
                self.check(placed, &bytes)?;
                return Ok(Some(bytes));
            }
        }
        Err(StorageError::Damaged {
            path: self.shared.segments.directory().to_path_buf(),
            position: u64::from(placed.position),
            problem: format!(
                "segment {}, which holds records of {:?}, is not there",
                placed.segment, self.partition
            ),
        })
    }

    fn check(&self, placed: PlacedRun, bytes: &[u8]) -> Result<(), StorageError> {
        let Run { base_offset, last_offset, leader_epoch, .. } = placed.run;
        check_layout(bytes, base_offset, last_offset, leader_epoch)
            .map_err(|(position, error)| self.damaged(placed, position, &error))
    }

    pub(super) fn damaged(
        &self,
        placed: PlacedRun,
        position: usize,
        error: &StoredBatchError,
    ) -> StorageError {
        let segment = self.shared.segments.get(placed.segment);
        let path = segment
            .map_or_else(|| self.shared.segments.directory().to_path_buf(), |it| it.path().to_path_buf());
        let position = u64::from(placed.position) + position as u64;
        let problem =
            format!("records of {:?} from offset {}: {error}", self.partition, placed.run.base_offset);
        StorageError::Damaged { path, position, problem }
    }

    /// Shows the runs of the index with their bytes in order, from the one that holds `from` or the first after it, up
    /// to the last that begins below `until`, as long as `visit` returns true.
    pub(super) fn visit_runs(
        &self,
        from: i64,
        until: i64,
        mut visit: impl FnMut(PlacedRun, Bytes) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        self.visit_runs_but(&Headers::default(), from, until, |placed, seen| match seen {
            Seen::Bytes(bytes) => visit(placed, bytes),
            Seen::Headers(_none_are_known) => Ok(true),
        })
    }

    /// As [`visit_runs`](Self::visit_runs), without reading those of which the headers are known.
    fn visit_runs_but<'a>(
        &self,
        known: &'a Headers,
        from: i64,
        until: i64,
        mut visit: impl FnMut(PlacedRun, Seen<'a>) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        let mut next = from;
        loop {
            let mut runs = Vec::new();
            self.shared.index.runs_from(self.partition, next, |placed| {
                let wanted = placed.run.base_offset < until && runs.len() < MAX_RUNS;
                if wanted {
                    runs.push(placed);
                }
                wanted
            })?;
            if runs.is_empty() {
                return Ok(());
            }
            let mut rest = runs.as_slice();
            loop {
                while let Some((placed, others)) = rest.split_first()
                    && let Some(headers) = known.of(placed)
                {
                    if !visit(*placed, Seen::Headers(headers))? {
                        return Ok(());
                    }
                    (next, rest) = (placed.run.next_offset(), others);
                }
                let unknown = rest.iter().take_while(|placed| known.of(placed).is_none()).count();
                // One that is gone since it was looked up ends the loop: what is there now is looked up again.
                let Some(pieces) = self.runs_bytes(first_bytes(&rest[..unknown], VISIT_BYTES))? else {
                    break;
                };
                for (mut bytes, count) in pieces {
                    for placed in &rest[..count] {
                        if !visit(*placed, Seen::Bytes(bytes.split_to(placed.run.length as usize)))? {
                            return Ok(());
                        }
                        next = placed.run.next_offset();
                    }
                    rest = &rest[count..];
                }
            }
        }
    }

    pub(super) fn replay_from(
        &self,
        from: i64,
        visit: &mut dyn FnMut(&BatchHeader),
    ) -> Result<(), StorageError> {
        let known = self.shared.replayed.lock().take(self.partition);
        let ends = self.state.lock().ends();
        if from >= ends.durable_end {
            return Ok(());
        }
        self.settle()?;
        let mut next = from;
        let mut show = |header: &BatchHeader| {
            if header.last_offset() >= next {
                visit(header);
                next = header.next_offset();
            }
        };
        self.visit_runs_but(&known, from.max(ends.log_start), i64::MAX, |placed, seen| {
            match seen {
                Seen::Headers(headers) => headers.iter().for_each(&mut show),
                Seen::Bytes(bytes) => {
                    check_sums(&bytes).map_err(|(position, error)| self.damaged(placed, position, &error))?;
                    WholeBatches::new(&bytes).for_each(|(_, header)| show(&header));
                }
            }
            Ok(true)
        })
    }

    pub(super) fn find_by_time(&self, timestamp: i64, from: i64) -> Result<Option<Bytes>, StorageError> {
        let matches = |header: &BatchHeader| {
            header.records_count > 0 && header.max_timestamp >= timestamp && header.last_offset() >= from
        };
        // In memory first: what leaves it while the index is searched is in the index.
        let chunks = self.chunks();
        let mut next = from;
        let mut tries = 0;
        while let Some(placed) = self.shared.index.run_by_time(self.partition, timestamp, next)? {
            match self.run_bytes(placed)? {
                None if tries < PLACE_TRIES => {
                    tries += 1;
                    continue;
                }
                None => return Err(self.not_found()),
                Some(bytes) => {
                    if let Some(batch) = first_batch(&bytes, matches) {
                        return Ok(Some(batch));
                    }
                }
            }
            next = placed.run.next_offset();
        }
        let in_memory = chunks.iter().filter(|(run, _)| run.max_timestamp >= timestamp);
        Ok(in_memory.filter_map(|(_, bytes)| first_batch(bytes, matches)).next())
    }

    pub(super) fn find_max_timestamp(&self, offsets: &Range<i64>) -> Result<Option<Bytes>, StorageError> {
        for _ in 0..PLACE_TRIES {
            if let Some(found) = self.try_find_max_timestamp(offsets)? {
                return Ok(found);
            }
        }
        Err(self.not_found())
    }

    /// A run is another one, or elsewhere, whenever it is looked up. It may be found the next time.
    fn not_found(&self) -> StorageError {
        StorageError::Io {
            doing: "finding records in",
            path: self.shared.segments.directory().to_path_buf(),
            source: io::Error::other("they were moved again and again"),
        }
    }

    /// `None` if a run was gone when it was to be read.
    fn try_find_max_timestamp(&self, offsets: &Range<i64>) -> Result<Option<Option<Bytes>>, StorageError> {
        let chunks = self.chunks();
        let counts = |header: &BatchHeader| {
            header.records_count > 0
                && header.base_offset >= offsets.start
                && header.next_offset() <= offsets.end
        };
        // Runs that reach beyond the range: what their batches hold has to be looked at.
        let mut cut = Vec::new();
        let mut candidate: Option<PlacedRun> = None;
        self.shared.index.runs_from(self.partition, offsets.start, |placed| {
            if placed.run.base_offset >= offsets.end {
                return false;
            }
            if placed.run.base_offset < offsets.start || placed.run.next_offset() > offsets.end {
                cut.push(placed);
            } else if candidate.is_none_or(|best| placed.run.max_timestamp > best.run.max_timestamp) {
                candidate = Some(placed);
            }
            true
        })?;
        let mut found = Vec::new();
        for placed in cut.into_iter().chain(candidate) {
            let Some(bytes) = self.run_bytes(placed)? else { return Ok(None) };
            found.push((placed.run.base_offset, bytes));
        }
        found.extend(chunks.into_iter().map(|(run, bytes)| (run.base_offset, bytes)));
        found.sort_by_key(|(base_offset, _)| *base_offset);
        let best = found.iter().fold(None, |best, (_, bytes)| best_batch(best, bytes, counts));
        Ok(Some(best.map(|(_, batch)| batch)))
    }

    /// Runs that are in memory, with their bytes.
    fn chunks(&self) -> Vec<(Run, Bytes)> {
        self.state.lock().tail.iter().map(|chunk| (chunk.run, chunk.bytes.clone())).collect()
    }

    /// Where the log ends if everything from `offset` on is cut off, and what is left of the run that is cut.
    pub(super) fn find_cut(&self, offset: i64) -> Result<(i64, Option<Run>), StorageError> {
        let index = &self.shared.index;
        let Some(placed) = index.run_at_or_before(self.partition, offset)? else { return Ok((offset, None)) };
        if placed.run.last_offset < offset {
            // Between two runs there may be a gap: a log ends with its last run.
            return Ok((placed.run.next_offset(), None));
        }
        let bytes = self.run_bytes(placed)?.ok_or_else(|| self.not_found())?;
        let before = index.run_at_or_before(self.partition, placed.run.base_offset - 1)?;
        let (mut length, mut max_timestamp) = (0, -1);
        let mut end = before.map_or(placed.run.base_offset, |before| before.run.next_offset());
        for (position, header) in WholeBatches::new(&bytes) {
            if header.last_offset() >= offset {
                break;
            }
            length = position + header.size_in_bytes();
            max_timestamp = max_timestamp.max(timestamp_of(&header));
            end = header.next_offset();
        }
        if length == 0 {
            return Ok((end, None));
        }
        let running = before.map_or(-1, |before| before.run.running_max_timestamp).max(max_timestamp);
        let left = Run {
            last_offset: end - 1,
            max_timestamp,
            running_max_timestamp: running,
            length: u32::try_from(length).expect("shorter than the run"),
            ..placed.run
        };
        Ok((end, Some(left)))
    }
}

/// As many of the first runs as have `limit` bytes together, and at least one.
fn first_bytes(runs: &[PlacedRun], limit: usize) -> &[PlacedRun] {
    let mut bytes = 0;
    let fits = |placed: &&PlacedRun| {
        bytes += placed.run.length as usize;
        bytes <= limit
    };
    let count = runs.iter().take_while(fits).count().max(1);
    &runs[..count.min(runs.len())]
}

/// Largest timestamp of the records in a batch, -1 if there is none.
pub(super) fn timestamp_of(header: &BatchHeader) -> i64 {
    if header.records_count > 0 { header.max_timestamp } else { -1 }
}

fn first_batch(bytes: &Bytes, matches: impl Fn(&BatchHeader) -> bool) -> Option<Bytes> {
    WholeBatches::new(bytes)
        .find(|(_, header)| matches(header))
        .map(|(position, header)| bytes.slice(position..position + header.size_in_bytes()))
}

/// The better of `best` and the first batch with the largest timestamp in `bytes` that `counts`.
fn best_batch(
    best: Option<(i64, Bytes)>,
    bytes: &Bytes,
    counts: impl Fn(&BatchHeader) -> bool,
) -> Option<(i64, Bytes)> {
    WholeBatches::new(bytes).filter(|(_, header)| counts(header)).fold(best, |best, (position, header)| {
        if best.as_ref().is_some_and(|(timestamp, _)| *timestamp >= header.max_timestamp) {
            return best;
        }
        Some((header.max_timestamp, bytes.slice(position..position + header.size_in_bytes())))
    })
}

/// The whole batches of some runs that `range` asks for, the offset after the last of them, and whether they end with
/// the runs.
fn pick_all(records: &[Bytes], range: ReadRange) -> (Vec<Bytes>, Option<i64>, bool) {
    let (mut left, mut parts, mut next) = (range, Vec::new(), None);
    for bytes in records {
        let part = pick(bytes, left);
        let whole_rest = part.end == bytes.len();
        if !part.is_empty() {
            left.max_bytes = left.max_bytes.saturating_sub(part.len());
            left.at_least_one = false;
            let part = bytes.slice(part);
            next = WholeBatches::new(&part).last().map(|(_, header)| header.next_offset());
            parts.push(part);
        }
        if !whole_rest {
            return (parts, next, false);
        }
    }
    (parts, next, true)
}

/// The whole batches of `bytes` that `range` asks for.
pub(super) fn pick(bytes: &[u8], range: ReadRange) -> Range<usize> {
    let mut start = None;
    let mut end = 0;
    for (position, header) in WholeBatches::new(bytes) {
        if header.last_offset() < range.offset {
            continue;
        }
        if header.base_offset >= range.until {
            break;
        }
        let from = *start.get_or_insert(position);
        let next = position + header.size_in_bytes();
        let fits = next - from <= range.max_bytes || (from == position && range.at_least_one);
        if !fits {
            break;
        }
        end = next;
    }
    let start = start.unwrap_or(0);
    start..end.max(start)
}
