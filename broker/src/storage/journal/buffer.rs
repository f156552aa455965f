//! Memory for direct I/O: starts at a multiple of [`BLOCK`] and is used again.

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::disk::BLOCK;

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

/// Keeps memory that nobody reads any more: new memory costs a page fault for every 4 KiB.
#[derive(Debug)]
pub(super) struct BufferPool {
    free: Mutex<Vec<BytesMut>>,
    max_free: usize,
}

impl BufferPool {
    /// A pool that keeps at most `max_free` buffers for later.
    pub(super) fn new(max_free: usize) -> Self {
        Self { free: Mutex::default(), max_free }
    }

    /// A buffer of at least `length` bytes, with anything in it.
    pub(super) fn take(&self, length: usize) -> AlignedBuffer {
        let reused = {
            let mut free = self.free.lock();
            let fitting = free.iter().position(|memory| memory.len() >= padded(length) + BLOCK);
            fitting.map(|at| free.swap_remove(at))
        };
        AlignedBuffer::within(reused.unwrap_or_default(), length)
    }

    /// Takes back a buffer, as [`AlignedBuffer::freeze`] returned it, unless somebody still reads it.
    pub(super) fn give_back(&self, whole: Bytes) {
        if let Ok(memory) = whole.try_into_mut() {
            let mut free = self.free.lock();
            if free.len() < self.max_free {
                free.push(memory);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_used_again_once_nobody_reads_it() {
        let pool = BufferPool::new(2);
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
}
