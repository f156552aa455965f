//! Memory for direct I/O: starts at a multiple of [`BLOCK`] and is used again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::disk::BLOCK;

/// Memory that is lent has a multiple of this, bytes, so that it fits other reads later.
const LENT_UNIT: usize = 16 << 10;

/// `length` rounded up to whole blocks.
pub(super) fn padded(length: usize) -> usize {
    length.next_multiple_of(BLOCK)
}

/// Aligned memory that is being filled.
#[derive(Debug)]
pub(super) struct AlignedBuffer {
    memory: BytesMut,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    /// Zeros; `length` is rounded up to whole blocks.
    pub(super) fn zeroed(length: usize) -> Self {
        Self::within(BytesMut::new(), length)
    }

    /// In `memory`, whose content stays where it is large enough.
    fn within(mut memory: BytesMut, length: usize) -> Self {
        let length = padded(length);
        if memory.len() < length + BLOCK {
            memory = BytesMut::zeroed(length + BLOCK);
        }
        let start = memory.as_ptr().align_offset(BLOCK);
        Self { memory, start, length }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }

    /// The same memory to be shared: all of it, and the aligned part.
    pub(super) fn freeze(self) -> (Bytes, Bytes) {
        let whole = self.memory.freeze();
        let part = whole.slice(self.start..self.start + self.length);
        (whole, part)
    }
}

/// Most times that memory is as large as what is put into it: others may hold it for long, and all of it counts as theirs.
const MAX_SPARE: usize = 2;

/// Keeps memory that nobody reads any more: new memory costs a page fault for every 4 KiB. The smallest that fits is used,
/// and of several what came back last, so that memory nobody needs grows old.
#[derive(Debug)]
pub(super) struct BufferPool {
    free: Mutex<Vec<Free>>,
    max_free: usize,
    max_bytes: usize,
}

#[derive(Debug)]
struct Free {
    memory: BytesMut,
    since: Instant,
}

impl BufferPool {
    /// A pool that keeps at most `max_free` buffers for later, and `max_bytes` of them.
    pub(super) fn new(max_free: usize, max_bytes: usize) -> Self {
        Self { free: Mutex::default(), max_free, max_bytes }
    }

    /// A buffer of at least `length` bytes, with anything in it.
    pub(super) fn take(&self, length: usize) -> AlignedBuffer {
        let reused = self.reuse(padded(length) + BLOCK);
        AlignedBuffer::within(reused.unwrap_or_default(), length)
    }

    /// Memory of at least `needed` bytes and not much more, if there is any.
    fn reuse(&self, needed: usize) -> Option<BytesMut> {
        let mut free = self.free.lock();
        let newest_first = free.iter().enumerate().rev();
        let fitting = newest_first.filter(|(_, it)| (needed..=MAX_SPARE * needed).contains(&it.memory.len()));
        let (at, _) = fitting.min_by_key(|(_, it)| it.memory.len())?;
        Some(free.remove(at).memory)
    }

    /// Fills `length` bytes with `fill` and shares them; the memory comes back when the last reader lets go of it.
    ///
    /// # Errors
    /// Those of `fill`.
    pub(super) fn lend<E>(
        self: &Arc<Self>,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        let needed = padded(length) + BLOCK;
        let memory =
            self.reuse(needed).unwrap_or_else(|| BytesMut::zeroed(needed.next_multiple_of(LENT_UNIT)));
        let mut buffer = AlignedBuffer::within(memory, length);
        fill(buffer.as_mut_slice())?;
        let AlignedBuffer { memory, start, length } = buffer;
        Ok(Bytes::from_owner(Lent { memory, start, length, pool: Arc::clone(self) }))
    }

    fn keep(&self, memory: BytesMut) {
        let mut free = self.free.lock();
        let bytes: usize = free.iter().map(|free| free.memory.len()).sum();
        if free.len() < self.max_free && bytes + memory.len() <= self.max_bytes {
            free.push(Free { memory, since: Instant::now() });
        }
    }

    /// Lets go of what nobody has needed for `age`.
    pub(super) fn release_unused(&self, now: Instant, age: Duration) {
        let mut free = self.free.lock();
        let unused = free.partition_point(|free| now.saturating_duration_since(free.since) >= age);
        let released: Vec<Free> = free.drain(..unused).collect();
        if free.is_empty() {
            free.shrink_to_fit();
        }
        // Giving memory back to the system takes longer than others should wait.
        drop(free);
        drop(released);
    }

    /// Takes back a buffer, as [`AlignedBuffer::freeze`] returned it, unless somebody still reads it.
    pub(super) fn give_back(&self, whole: Bytes) {
        if let Ok(memory) = whole.try_into_mut() {
            self.keep(memory);
        }
    }
}

/// Memory of a pool in the hands of readers.
struct Lent {
    memory: BytesMut,
    start: usize,
    length: usize,
    pool: Arc<BufferPool>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.keep(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_used_again_once_nobody_reads_it() {
        let pool = BufferPool::new(2, 1 << 20);
        let mut buffer = pool.take(5_000);
        assert_eq!((buffer.as_slice().len(), buffer.as_slice().as_ptr().align_offset(BLOCK)), (8_192, 0));
        buffer.as_mut_slice().fill(7);
        let (whole, part) = buffer.freeze();
        let reader = part.slice(10..20);
        drop(part);
        pool.give_back(whole.clone());
        assert_eq!(reader, [7; 10].as_slice());
        assert_eq!(pool.free.lock().len(), 0, "somebody reads it");
        drop(reader);
        pool.give_back(whole);
        assert_eq!(pool.free.lock().len(), 1);
        assert_eq!(pool.take(8_192).as_slice()[0], 7, "the same memory");
    }

    #[test]
    fn memory_that_is_lent_comes_back_from_the_last_reader() {
        let pool = Arc::new(BufferPool::new(2, 1 << 20));
        let fill = |bytes: &mut [u8]| -> Result<(), ()> {
            assert_eq!((bytes.len(), bytes.as_ptr().align_offset(BLOCK)), (8_192, 0));
            bytes.fill(7);
            Ok(())
        };
        let lent = pool.lend(5_000, fill).unwrap_or_default();
        let reader = lent.slice(8_000..);
        drop(lent);
        assert_eq!((reader.as_ref(), pool.free.lock().len()), (&[7_u8; 192][..], 0), "somebody reads it");
        drop(reader);
        assert_eq!(pool.free.lock().len(), 1);
        let fill_large = |bytes: &mut [u8]| -> Result<(), ()> {
            bytes.fill(9);
            Ok(())
        };
        assert!(pool.lend(40_000, fill_large).is_ok());
        assert_eq!(pool.free.lock().len(), 2, "the first was too small");
        assert!(
            pool.lend(5_000, |bytes| if bytes[0] == 7 { Err(()) } else { Ok(()) }).is_err(),
            "the smaller"
        );
        assert_eq!(pool.free.lock().len(), 1, "lost with the error");
    }

    #[test]
    fn the_smallest_memory_that_fits_is_used_and_none_that_is_much_larger() {
        let pool = BufferPool::new(4, 8 << 20);
        let sizes = [1_000_000, 200_000, 300_000];
        let taken = sizes.map(|length| pool.take(length).freeze().0);
        let lengths = taken.each_ref().map(Bytes::len);
        taken.into_iter().for_each(|memory| pool.give_back(memory));
        let take = |length: usize| pool.take(length).memory.len();
        assert_eq!(take(5_000), padded(5_000) + BLOCK, "memory of its own");
        assert_eq!((take(180_000), take(180_000)), (lengths[1], lengths[2]));
        assert_eq!(take(600_000), lengths[0]);
    }

    #[test]
    fn memory_that_nobody_has_needed_for_long_is_let_go_of() {
        const AGE: Duration = Duration::from_secs(10);
        let pool = BufferPool::new(4, 1 << 20);
        let take = || pool.take(5_000).freeze().0;
        [take(), take()].into_iter().for_each(|memory| pool.give_back(memory));
        let early = Instant::now();
        while Instant::now() == early {}
        // One of the two is enough for what comes after that.
        let again = take();
        pool.give_back(again);
        pool.release_unused(early, AGE);
        assert_eq!(pool.free.lock().len(), 2, "not that old");
        pool.release_unused(early + AGE, AGE);
        assert_eq!(pool.free.lock().len(), 1);
        pool.release_unused(Instant::now() + AGE, AGE);
        assert_eq!(pool.free.lock().len(), 0);
    }
}
