//! A non-blocking connection: pieces to send, whole frames received.
//!
//! Pieces are shared (`Bytes`), so a prebuilt request is sent without a copy in user space, and the receive buffer is
//! used again as soon as the frames cut from it are dropped.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use bytes::{Bytes, BytesMut};
use millrace_protocol::frame::LENGTH_LEN;

/// Receive buffer in the beginning; it grows to the largest frame.
const BUFFER_LEN: usize = 64 << 10;

/// Largest frame that is believed: far above what any request here asks for.
const MAX_FRAME_LEN: usize = 256 << 20;

/// Pieces in one write.
const MAX_SLICES: usize = 64;

/// One connection to a broker.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    outgoing: VecDeque<Bytes>,
    /// Bytes of the first outgoing piece that are sent.
    sent: usize,
    buffer: Receive,
    /// Bytes behind the last whole frame.
    rest: Vec<u8>,
}

#[derive(Debug)]
enum Receive {
    /// Initialised over its whole length; this much of it is filled.
    Filling(BytesMut, usize),
    /// Frames were cut from it.
    Cut(Bytes),
}

impl Connection {
    /// Connects, without Nagle's delay.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let buffer = Receive::Filling(BytesMut::zeroed(BUFFER_LEN), 0);
        Ok(Self { stream, outgoing: VecDeque::new(), sent: 0, buffer, rest: Vec::new() })
    }

    /// Appends to what the next [`flush`](Self::flush) sends.
    pub fn queue(&mut self, piece: Bytes) {
        self.outgoing.push_back(piece);
    }

    /// Whether something waits to be sent.
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Sends what the socket takes.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let mut count = 0;
            let mut offered = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.outgoing) {
                let start = if count == 0 { self.sent } else { 0 };
                *slice = IoSlice::new(&piece[start..]);
                offered += slice.len();
                count += 1;
            }
            let written = match self.stream.write_vectored(&slices[..count]) {
                Ok(written) => written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.advance(written);
            if written < offered {
                return Ok(());
            }
        }
        Ok(())
    }

    fn advance(&mut self, written: usize) {
        self.sent += written;
        while let Some(first) = self.outgoing.front() {
            if self.sent < first.len() {
                break;
            }
            self.sent -= first.len();
            self.outgoing.pop_front();
        }
    }

    /// Reads what is there and appends whole frames, without their length, to `frames`.
    ///
    /// Drop the frames before the next call: otherwise the buffer cannot be used again and a new one is made.
    ///
    /// # Errors
    /// The broker closed the connection, or sent an impossible length.
    pub fn receive(&mut self, frames: &mut Vec<Bytes>) -> io::Result<()> {
        let (mut buffer, mut filled) = self.take_buffer();
        loop {
            let wanted = frame_end(&buffer[..filled], 0)?.unwrap_or(0);
            if wanted > buffer.len() {
                buffer.resize(wanted.next_multiple_of(BUFFER_LEN), 0);
            }
            let space = buffer.len() - filled;
            if space == 0 {
                break;
            }
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => {
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, "the broker closed the connection"));
                }
                Ok(n) => {
                    filled += n;
                    // Less than was asked for: the socket is empty, or epoll tells again.
                    if n < space {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.cut(buffer, filled, frames)
    }

    fn take_buffer(&mut self) -> (BytesMut, usize) {
        match std::mem::replace(&mut self.buffer, Receive::Cut(Bytes::new())) {
            Receive::Filling(buffer, filled) => (buffer, filled),
            Receive::Cut(bytes) => {
                let mut buffer = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::zeroed(shared.len()));
                buffer[..self.rest.len()].copy_from_slice(&self.rest);
                (buffer, self.rest.len())
            }
        }
    }

    fn cut(&mut self, buffer: BytesMut, filled: usize, frames: &mut Vec<Bytes>) -> io::Result<()> {
        let mut start = 0;
        let mut cuts = Vec::new();
        while let Some(end) = frame_end(&buffer[..filled], start)?.filter(|&end| end <= filled) {
            cuts.push(start + LENGTH_LEN..end);
            start = end;
        }
        if cuts.is_empty() {
            self.buffer = Receive::Filling(buffer, filled);
            return Ok(());
        }
        self.rest.clear();
        self.rest.extend_from_slice(&buffer[start..filled]);
        let whole = buffer.freeze();
        frames.extend(cuts.into_iter().map(|range| whole.slice(range)));
        self.buffer = Receive::Cut(whole);
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Where the frame that begins at `start` ends; `None` while its length is not there.
fn frame_end(bytes: &[u8], start: usize) -> io::Result<Option<usize>> {
    let Some(len) = bytes[start..].first_chunk::<LENGTH_LEN>() else { return Ok(None) };
    let len = i32::from_be_bytes(*len);
    match usize::try_from(len) {
        Ok(len) if len <= MAX_FRAME_LEN => Ok(Some(start + LENGTH_LEN + len)),
        _ => Err(io::Error::new(ErrorKind::InvalidData, format!("the broker claims a frame of {len} bytes"))),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connection = Connection::open(listener.local_addr().unwrap()).unwrap();
        (connection, listener.accept().unwrap().0)
    }

    fn frame(byte: u8, len: usize) -> Vec<u8> {
        [&i32::try_from(len).unwrap().to_be_bytes()[..], &vec![byte; len]].concat()
    }

    /// Reads until `count` frames came, as the socket delivers them in pieces of its own choice.
    fn receive(connection: &mut Connection, count: usize) -> Vec<Bytes> {
        let mut frames = Vec::new();
        while frames.len() < count {
            connection.receive(&mut frames).unwrap();
        }
        frames
    }

    #[test]
    fn frames_come_whole_and_in_order_however_they_were_cut() {
        let (mut connection, mut peer) = pair();
        let bytes = [frame(1, 3), frame(2, 0), frame(3, 300_000), frame(4, 5)].concat();
        let sender = std::thread::spawn(move || {
            for piece in bytes.chunks(70_001) {
                peer.write_all(piece).unwrap();
            }
            peer
        });
        let mut seen = Vec::new();
        while seen.len() < 4 {
            let frames = receive(&mut connection, 1);
            seen.extend(frames.iter().map(|f| (f.first().copied(), f.len())));
        }
        assert_eq!(seen, [(Some(1), 3), (None, 0), (Some(3), 300_000), (Some(4), 5)]);
        drop(sender.join().unwrap());
        let error = loop {
            match connection.receive(&mut Vec::new()) {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_frame_that_is_kept_is_not_overwritten() {
        let (mut connection, mut peer) = pair();
        peer.write_all(&frame(7, 9)).unwrap();
        let kept = receive(&mut connection, 1);
        peer.write_all(&frame(8, 9)).unwrap();
        let next = receive(&mut connection, 1);
        assert_eq!((&kept[0][..], &next[0][..]), (&[7; 9][..], &[8; 9][..]));
    }

    #[test]
    fn an_impossible_length_is_an_error() {
        let (mut connection, mut peer) = pair();
        peer.write_all(&(-5i32).to_be_bytes()).unwrap();
        let error = loop {
            match connection.receive(&mut Vec::new()) {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("-5"), "{error}");
    }

    #[test]
    fn many_pieces_arrive_in_order_when_the_socket_takes_a_part() {
        let (mut connection, mut peer) = pair();
        let pieces: Vec<Bytes> = (0..200u8).map(|n| Bytes::from(vec![n; 50_000])).collect();
        let expected: Vec<u8> = pieces.concat();
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; expected.len()];
            peer.read_exact(&mut all).unwrap();
            all == expected
        });
        for piece in pieces {
            connection.queue(piece);
        }
        while connection.has_outgoing() {
            connection.flush().unwrap();
        }
        assert!(reader.join().unwrap());
    }
}
