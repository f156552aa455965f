//! Bytes of a client on their way to become requests.

use std::io;
use std::pin::pin;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use millrace_protocol::frame::{self, FrameError, LENGTH_LEN};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// Bytes read at a time when nothing says how many are to come: many small requests, or the start of a large one.
const READ_LEN: usize = 16 << 10;
/// Most memory taken for a frame before its bytes are there. A larger one doubles what it has as it comes in.
const EAGER_LEN: usize = 1 << 20;

/// What was read and is not a whole frame yet. Holds no memory when it is empty.
#[derive(Debug)]
pub(super) struct Input {
    buffer: BytesMut,
    max_frame_len: usize,
    /// The client sends nothing more.
    pub(super) ended: bool,
}

impl Input {
    /// Takes frames of up to `max_frame_len` bytes.
    pub(super) fn new(max_frame_len: usize) -> Self {
        Self { buffer: BytesMut::new(), max_frame_len, ended: false }
    }

    /// The next whole frame, if it is there.
    pub(super) fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let frame = frame::split(&mut self.buffer, self.max_frame_len)?;
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        Ok(frame)
    }

    /// Reads what the socket has, once it has something.
    ///
    /// Cancel-safe.
    pub(super) async fn read(&mut self, stream: &mut TcpStream) -> io::Result<usize> {
        loop {
            // Memory is taken only when there is something to put into it.
            stream.readable().await?;
            self.buffer.reserve(self.room_wanted());
            // Not `try_read_buf`: this one knows from a read that did not fill the buffer that nothing is left.
            if let Poll::Ready(read) = futures::poll!(pin!(stream.read_buf(&mut self.buffer))) {
                self.ended = matches!(read, Ok(0));
                return read;
            }
        }
    }

    /// Room for what is missing of the frame that has begun. Its length has passed [`next_frame`](Self::next_frame).
    fn room_wanted(&self) -> usize {
        let Some(len) = self.buffer.first_chunk::<LENGTH_LEN>() else { return READ_LEN };
        let len = usize::try_from(i32::from_be_bytes(*len)).unwrap_or(0);
        let missing = (LENGTH_LEN + len).saturating_sub(self.buffer.len());
        missing.clamp(READ_LEN, EAGER_LEN.max(self.buffer.len()))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    fn input(bytes: &[u8]) -> Input {
        let mut input = Input::new(100 << 20);
        input.buffer.extend_from_slice(bytes);
        input
    }

    #[test]
    fn a_length_takes_no_more_memory_than_the_eager_bound() {
        let huge = (90_i32 << 20).to_be_bytes();
        assert_eq!(input(&huge).room_wanted(), EAGER_LEN);
        assert_eq!(input(&[]).room_wanted(), READ_LEN);
        assert_eq!(input(&[0, 0]).room_wanted(), READ_LEN);
        assert_eq!(input(&10_i32.to_be_bytes()).room_wanted(), READ_LEN);
        assert_eq!(input(&100_000_i32.to_be_bytes()).room_wanted(), 100_000);
    }

    #[test]
    fn a_large_frame_doubles_what_it_has() {
        let mut bytes = (90_i32 << 20).to_be_bytes().to_vec();
        bytes.resize(8 << 20, 0);
        assert_eq!(input(&bytes).room_wanted(), 8 << 20);
    }

    #[test]
    fn holds_no_memory_when_it_is_empty() {
        let mut input = input(&[0, 0, 0, 2, 7, 7]);
        assert_eq!(input.next_frame().unwrap().as_deref(), Some(&[7, 7][..]));
        assert_eq!(input.buffer.capacity(), 0);
    }
}
