//! Replaying the journal: what was written after the position that the index covers.
//!
//! Frames follow each other by their sequences: each names the one before. The first place where no such frame is
//! whole is the end of the journal, and what a crash left there was never acknowledged, unless a later frame says that
//! it was written after that place had been synced. Then the disk has lost or changed something that it had promised
//! to keep, and the store does not open.

use super::buffer::AlignedBuffer;
use super::disk::BLOCK;
use super::fail_point::FailPoint;
use super::frame::{Entry, FrameHeader};
use super::index::{Changes, Index, Placed};
use super::keys::Position;
use super::replayed::Replayed;
use super::segments::{FirstFrame, Segment, Segments};
use crate::storage::StorageError;
use uuid::Uuid;

/// How far behind the end of the journal leftovers are looked for: at least what may have been written without a sync.
const LOOK_BYTES: u64 = 2 * super::writer::MAX_UNSYNCED_BYTES;

/// Bytes read at once.
const READ_BYTES: usize = 4 << 20;

/// Applies everything that the journal holds after `changes.position` to the index, and notes the headers of its batches.
/// Returns the bytes of the frames that it has read.
pub(super) fn replay(
    segments: &Segments,
    first_frames: &[FirstFrame],
    volume: Uuid,
    index: &Index,
    changes: &mut Changes,
    replayed: &mut Replayed,
) -> Result<u64, StorageError> {
    let started = std::time::Instant::now();
    let mut bytes = 0;
    let begun = changes.position;
    match segments.get(begun.segment) {
        Some(segment) => {
            bytes += replay_segment(&segment, volume, index, changes, replayed)?;
        }
        None if begun.segment == 0 => {}
        None => {
            return Err(StorageError::Damaged {
                path: segments.directory().to_path_buf(),
                position: begun.end,
                problem: format!(
                    "segment {}, in which the journal was last seen to end, is gone",
                    begun.segment
                ),
            });
        }
    }
    // A segment follows another if its first frame names the last frame of that one. Of several the latest counts: the
    // others are the torn beginnings of starts before it.
    loop {
        let here = changes.position;
        let follows = |first: &&FirstFrame| first.previous == here.sequence && first.segment > here.sequence;
        let next = first_frames.iter().filter(follows).map(|first| first.segment).max();
        let Some(segment) = next.and_then(|segment| segments.get(segment)) else { break };
        changes.position = Position { segment: segment.id, end: 0, sequence: here.sequence };
        let read = replay_segment(&segment, volume, index, changes, replayed)?;
        if read == 0 {
            // A crash in the middle of its first frame.
            changes.position = here;
            break;
        }
        bytes += read;
    }
    if !index.ended_at(changes.position)? {
        look_for_losses(segments, first_frames, volume, changes)?;
    }
    look_for_missing_segments(segments, changes)?;
    if bytes > 0 {
        let millis = started.elapsed().as_millis();
        tracing::info!(bytes, millis, "replayed the journal");
    }
    Ok(bytes)
}

/// Replays the segment in which `changes.position` is, from there on; returns the bytes of the frames that were whole.
fn replay_segment(
    segment: &Segment,
    volume: Uuid,
    index: &Index,
    changes: &mut Changes,
    replayed: &mut Replayed,
) -> Result<u64, StorageError> {
    // A process that was killed may not have got as far as syncing what it wrote, and the index may reach the disk at any
    // time once it knows of a frame.
    segment.file().sync().map_err(|source| StorageError::Io {
        doing: "syncing",
        path: segment.path().to_path_buf(),
        source,
    })?;
    let mut reader = Reader::new(segment, changes.position.end);
    let mut bytes = 0;
    while let Some(header) = reader.header()? {
        let continues = header.volume == volume
            && header.segment == segment.id
            && header.previous == changes.position.sequence
            && header.sequence > header.previous;
        if !continues {
            break;
        }
        let start = reader.position;
        let Some(frame) = reader.bytes(header.length as usize)? else { break };
        let Some(entries) = header.entries(frame) else { break };
        let base = u32::try_from(start).expect("segments have less than 4 GiB");
        let place = |(entry, at): (Entry, u32)| {
            let placed = Placed { entry, position: base + at };
            replayed.note(segment.id, &placed, &frame[at as usize..][..entry.data_length() as usize]);
            placed
        };
        let placed: Vec<Placed> = entries.into_iter().map(place).collect();
        reader.skip(super::buffer::padded(header.length as usize));
        bytes += u64::from(header.length);
        let position = Position { segment: segment.id, end: reader.position, sequence: header.sequence };
        index.apply(changes, &placed, position)?;
        FailPoint::Replaying.pass();
    }
    Ok(bytes)
}

/// Shows the entries of all frames of a segment that are whole. Of frames that follow a damaged one, and of leftovers of a
/// crash, which are shown too, the index knows which of their runs live.
pub(super) fn frames(
    segment: &Segment,
    volume: Uuid,
    mut visit: impl FnMut(Placed) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    let mut reader = Reader::new(segment, 0);
    let mut last = 0;
    while reader.position < segment.length() {
        let header = reader.header()?.filter(|header| {
            header.volume == volume && header.segment == segment.id && header.sequence > last
        });
        let entries = match header {
            Some(header) => {
                reader.bytes(header.length as usize)?.and_then(|frame| Some((header, header.entries(frame)?)))
            }
            None => None,
        };
        let Some((header, entries)) = entries else {
            reader.skip(BLOCK);
            continue;
        };
        let base = u32::try_from(reader.position).expect("segments have less than 4 GiB");
        reader.skip(super::buffer::padded(header.length as usize));
        for (entry, at) in entries {
            visit(Placed { entry, position: base + at })?;
        }
        last = header.sequence;
    }
    Ok(())
}

/// Reads the frames of a segment one after the other, in large pieces.
struct Reader<'a> {
    segment: &'a Segment,
    position: u64,
    buffer: AlignedBuffer,
    /// Position of the buffer's first byte, and how many of its bytes hold something.
    start: u64,
    filled: usize,
}

impl<'a> Reader<'a> {
    fn new(segment: &'a Segment, position: u64) -> Self {
        Self { segment, position, buffer: AlignedBuffer::zeroed(READ_BYTES), start: position, filled: 0 }
    }

    fn header(&mut self) -> Result<Option<FrameHeader>, StorageError> {
        Ok(self.bytes(BLOCK)?.and_then(FrameHeader::decode))
    }

    /// `length` bytes from the position on; `None` if the segment ends before.
    fn bytes(&mut self, length: usize) -> Result<Option<&[u8]>, StorageError> {
        let wanted = super::buffer::padded(length);
        if self.position + wanted as u64 > self.segment.length() {
            return Ok(None);
        }
        if self.position < self.start || self.position + wanted as u64 > self.start + self.filled as u64 {
            if wanted > self.buffer.as_slice().len() {
                self.buffer = AlignedBuffer::zeroed(wanted);
            }
            let left = usize::try_from(self.segment.length() - self.position).unwrap_or(usize::MAX);
            let count = self.buffer.as_slice().len().min(left);
            self.segment.file().read_at(&mut self.buffer.as_mut_slice()[..count], self.position).map_err(
                |source| StorageError::Io {
                    doing: "reading",
                    path: self.segment.path().to_path_buf(),
                    source,
                },
            )?;
            (self.start, self.filled) = (self.position, count);
        }
        let at = usize::try_from(self.position - self.start).expect("within the buffer");
        Ok(Some(&self.buffer.as_slice()[at..at + length]))
    }

    fn skip(&mut self, length: usize) {
        self.position += length as u64;
    }
}

/// Looks at everything behind the end of the journal: frames there are leftovers of a former life or of a crash.
fn look_for_losses(
    segments: &Segments,
    first_frames: &[FirstFrame],
    volume: Uuid,
    changes: &Changes,
) -> Result<(), StorageError> {
    let end = changes.position;
    let check = |segment: &Segment, position: u64, sequence: u64, synced: u64| {
        if sequence <= end.sequence || synced <= end.sequence {
            return Ok(());
        }
        Err(StorageError::Damaged {
            path: segment.path().to_path_buf(),
            position,
            problem: format!(
                "frame {sequence} was written when everything up to {synced} was on the disk, and what followed frame \
                 {} is not there any more: the disk has lost or changed acknowledged records",
                end.sequence
            ),
        })
    };
    for first in first_frames {
        if let Some(segment) = segments.get(first.segment) {
            check(&segment, 0, first.segment, first.synced)?;
        }
    }
    let look = |segment: &Segment, begin: u64| {
        let mut reader = Reader::new(segment, begin);
        while reader.position < begin + LOOK_BYTES {
            let position = reader.position;
            let Some(block) = reader.bytes(BLOCK)? else { break };
            if let Some(header) = FrameHeader::decode(block).filter(|header| header.volume == volume) {
                check(segment, position, header.sequence, header.synced)?;
            }
            reader.skip(BLOCK);
        }
        Ok(())
    };
    if let Some(segment) = segments.get(end.segment) {
        look(&segment, end.end)?;
    }
    // Segments that were begun after the end, and files in which one may have been of which the beginning is lost.
    let holds = |id: u64| id == end.segment || (id < end.segment && changes.live.contains_key(&id));
    segments.leftovers(holds).iter().try_for_each(|segment| look(segment, 0))
}

/// Every segment that holds something must be there, and the one that is written must be as long as what is in it.
fn look_for_missing_segments(segments: &Segments, changes: &Changes) -> Result<(), StorageError> {
    for id in changes.live.keys() {
        if segments.get(*id).is_none() {
            return Err(StorageError::Damaged {
                path: segments.directory().to_path_buf(),
                position: 0,
                problem: format!(
                    "segment {id}, which holds records, is not there: its file is gone, or begins with something else"
                ),
            });
        }
    }
    let Some(last) = segments.get(changes.position.segment) else { return Ok(()) };
    if changes.position.end > last.length() {
        return Err(StorageError::Damaged {
            path: last.path().to_path_buf(),
            position: last.length(),
            problem: format!("it is cut off: the journal was last seen to end at {}", changes.position.end),
        });
    }
    Ok(())
}
