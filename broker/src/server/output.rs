//! Answers on their way to a client.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

/// Most pieces of one vectored write; the operating system takes up to 1024, and this many fit on the stack.
const MAX_SLICES: usize = 64;

/// Pieces in order, not yet written.
#[derive(Debug, Default)]
pub(super) struct Output {
    pieces: VecDeque<Bytes>,
    len: usize,
}

impl Output {
    /// Bytes to be written.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether all has been written.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds one answer.
    pub(super) fn push(&mut self, pieces: Vec<Bytes>) {
        self.len += pieces.iter().map(Bytes::len).sum::<usize>();
        self.pieces.extend(pieces.into_iter().filter(|piece| !piece.is_empty()));
    }

    /// Writes once, as much as the socket takes.
    ///
    /// Cancel-safe: what was not written stays.
    pub(super) async fn write_some(&mut self, socket: &mut (impl AsyncWrite + Unpin)) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        let written = socket.write_vectored(&slices[..count]).await?;
        if written == 0 && !self.is_empty() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.advance(written);
        Ok(written)
    }

    fn advance(&mut self, mut written: usize) {
        self.len -= written;
        while let Some(front) = self.pieces.front_mut() {
            if written < front.len() {
                front.advance(written);
                break;
            }
            written -= front.len();
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn writes_pieces_in_order_through_a_narrow_pipe() {
        let (mut near, mut far) = tokio::io::duplex(7);
        let mut output = Output::default();
        let mut expected = Vec::new();
        for n in 0..200_u8 {
            let piece = vec![n; usize::from(n % 5)];
            expected.extend_from_slice(&piece);
            output.push(vec![Bytes::from(piece)]);
        }
        assert_eq!(output.len(), expected.len());
        let writing = async {
            while !output.is_empty() {
                output.write_some(&mut near).await.unwrap();
            }
            drop(near);
        };
        let mut read = Vec::new();
        let (_, result) = tokio::join!(writing, far.read_to_end(&mut read));
        result.unwrap();
        assert_eq!(read, expected);
    }
}
