//! Frames of a call connection.
//!
//! A frame is a length (`u32`, big-endian, of what follows), a kind, and the kind's fields. Calls are told apart by
//! a correlation id that the caller chooses, so that many are in flight at once and answers come in any order.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use millrace_protocol::RecordBytes;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::Method;

/// Longest frame: more than the largest request of a client (`socket.request.max.bytes`), whose batch a follower
/// fetches whole. What is longer (a snapshot) travels in pieces.
pub const MAX_FRAME_BYTES: usize = 128 << 20;

/// A frame grows as its bytes arrive, from this size on: a length alone never makes us allocate more.
const FIRST_READ_BYTES: usize = 64 << 10;

/// A frame that is full grows to so many times what has arrived. What has arrived is copied then: with large steps little
/// of it is.
const GROWTH: usize = 8;

/// Frames from here on are long: new memory for them costs more than their bytes, a page fault for every 4 KiB.
const LONG_BYTES: usize = 1 << 20;

const CALL: u8 = 1;
const ANSWER: u8 = 2;
const FAILURE: u8 = 3;
const PING: u8 = 4;
const PONG: u8 = 5;

/// Why a call was not answered, as the callee says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What to do about it.
    pub kind: FailureKind,
    /// For people.
    pub message: String,
}

impl Failure {
    /// A failure of that kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// Kinds of [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FailureKind {
    /// The callee does not know the method: it runs another version.
    UnknownMethod = 1,
    /// The callee could not read the call.
    Malformed = 2,
    /// The callee cannot answer now; try again.
    NotNow = 3,
    /// The callee's metadata quorum member has failed, and it is about to stop.
    Failed = 4,
}

impl FailureKind {
    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::UnknownMethod,
            2 => Self::Malformed,
            4 => Self::Failed,
            _ => Self::NotNow,
        }
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A call. The method is a number still: an unknown one is answered, not a reason to hang up.
    Call { correlation_id: u64, method: u8, body: Bytes },
    /// Answer to a call; its body may lie in pieces, and comes in one.
    Answer { correlation_id: u64, body: RecordBytes },
    /// The call was not answered.
    Failure { correlation_id: u64, failure: Failure },
    /// Shows that the caller lives.
    Ping,
    /// Shows that the callee lives.
    Pong,
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Longer than [`MAX_FRAME_BYTES`].
    #[error("frame of {length} bytes is longer than {MAX_FRAME_BYTES}")]
    TooLong {
        /// Length announced.
        length: usize,
    },
    /// Not a frame.
    #[error("malformed frame")]
    Malformed,
}

impl Frame {
    pub(super) fn call(correlation_id: u64, method: Method, body: Bytes) -> Self {
        Self::Call { correlation_id, method: method as u8, body }
    }

    /// Appends the frame, with its length.
    pub(super) fn encode(&self, out: &mut BytesMut) -> Result<(), FrameError> {
        for piece in self.encode_head(out)? {
            out.put_slice(piece);
        }
        Ok(())
    }

    /// Appends the frame, with its length, but for pieces of a body that are returned and belong behind it.
    pub(super) fn encode_head(&self, out: &mut BytesMut) -> Result<&[Bytes], FrameError> {
        let start = out.len();
        let mut rest: &[Bytes] = &[];
        out.put_u32(0);
        match self {
            Self::Call { correlation_id, method, body } => {
                out.put_u8(CALL);
                out.put_u64(*correlation_id);
                out.put_u8(*method);
                out.put_slice(body);
            }
            Self::Answer { correlation_id, body } => {
                out.put_u8(ANSWER);
                out.put_u64(*correlation_id);
                rest = body.pieces();
            }
            Self::Failure { correlation_id, failure } => {
                out.put_u8(FAILURE);
                out.put_u64(*correlation_id);
                out.put_u8(failure.kind as u8);
                out.put_slice(failure.message.as_bytes());
            }
            Self::Ping => out.put_u8(PING),
            Self::Pong => out.put_u8(PONG),
        }
        let length = out.len() - start - 4 + rest.iter().map(Bytes::len).sum::<usize>();
        if length > MAX_FRAME_BYTES {
            out.truncate(start);
            return Err(FrameError::TooLong { length });
        }
        let length = u32::try_from(length).map_err(|_| FrameError::Malformed)?;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        Ok(rest)
    }

    /// Reads a frame's content, the length taken off.
    pub(super) fn decode(mut content: Bytes) -> Result<Self, FrameError> {
        let kind = take(&mut content, 1)?.get_u8();
        let mut correlation_id = || Ok::<_, FrameError>(take(&mut content, 8)?.get_u64());
        Ok(match kind {
            CALL => {
                let correlation_id = correlation_id()?;
                let method = take(&mut content, 1)?.get_u8();
                Self::Call { correlation_id, method, body: content }
            }
            ANSWER => Self::Answer { correlation_id: correlation_id()?, body: content.into() },
            FAILURE => {
                let correlation_id = correlation_id()?;
                let kind = FailureKind::from_code(take(&mut content, 1)?.get_u8());
                let message = String::from_utf8_lossy(&content).into_owned();
                Self::Failure { correlation_id, failure: Failure { kind, message } }
            }
            PING => Self::Ping,
            PONG => Self::Pong,
            _ => return Err(FrameError::Malformed),
        })
    }
}

fn take(content: &mut Bytes, length: usize) -> Result<Bytes, FrameError> {
    if content.len() < length {
        return Err(FrameError::Malformed);
    }
    Ok(content.split_to(length))
}

/// The memory of the long frame before, to be used again once nobody reads that frame any more. A short frame lets go of
/// it.
#[derive(Debug, Default)]
pub(super) struct Spare {
    memory: BytesMut,
    /// Length of that frame: whoever has sent so much once gets room for as much at once.
    length: usize,
}

impl Spare {
    /// Makes room in `content`, which is full and the beginning of `length` bytes.
    fn grow(&mut self, mut content: BytesMut, length: usize) -> BytesMut {
        if self.memory.try_reclaim(length) {
            let mut memory = std::mem::take(&mut self.memory);
            memory.extend_from_slice(&content);
            return memory;
        }
        let room = (content.len() * GROWTH).max(self.length).min(length);
        content.reserve(room - content.len());
        content
    }

    /// Shares `content`, and remembers its memory if it is much.
    fn lend(&mut self, mut content: BytesMut) -> Bytes {
        *self = Self::default();
        if content.len() < LONG_BYTES {
            return content.freeze();
        }
        self.length = content.len();
        let lent = content.split();
        self.memory = content;
        lent.freeze()
    }
}

/// Reads the next frame's content; `None` when the peer hung up between frames.
///
/// Not cancel-safe: bytes read so far are lost with the future.
pub(super) async fn read_frame(
    reader: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> Result<Option<Bytes>, FrameError> {
    read_frame_into(reader, limit, &mut Spare::default()).await
}

/// The same in memory of the frame before, if that was long.
pub(super) async fn read_frame_into(
    reader: &mut (impl AsyncRead + Unpin),
    limit: usize,
    spare: &mut Spare,
) -> Result<Option<Bytes>, FrameError> {
    let mut head = [0_u8; 4];
    if reader.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut head[1..]).await?;
    let length = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if length > limit {
        return Err(FrameError::TooLong { length });
    }
    let mut content = BytesMut::with_capacity(length.min(FIRST_READ_BYTES));
    let mut rest = reader.take(u64::try_from(length).unwrap_or(u64::MAX));
    while content.len() < length {
        if content.len() == content.capacity() {
            content = spare.grow(content, length);
        }
        if rest.read_buf(&mut content).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
    Ok(Some(spare.lend(content)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let body = || proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        prop_oneof![
            (any::<u64>(), any::<u8>(), body()).prop_map(|(correlation_id, method, body)| Frame::Call {
                correlation_id,
                method,
                body
            }),
            (any::<u64>(), proptest::collection::vec(body(), 0..4))
                .prop_map(|(correlation_id, body)| Frame::Answer { correlation_id, body: body.into() }),
            (any::<u64>(), 1_u8..=4, "[a-z ]{0,40}").prop_map(|(correlation_id, kind, message)| {
                Frame::Failure {
                    correlation_id,
                    failure: Failure { kind: FailureKind::from_code(kind), message },
                }
            }),
            Just(Frame::Ping),
            Just(Frame::Pong),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_the_wire(frame in frames()) {
            let mut out = BytesMut::new();
            frame.encode(&mut out).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let content = runtime.block_on(read_frame(&mut &out[..], MAX_FRAME_BYTES)).unwrap().unwrap();
            prop_assert_eq!(Frame::decode(content).unwrap(), frame);
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Frame::decode(Bytes::from(bytes));
        }
    }

    #[tokio::test]
    async fn a_long_frame_comes_whole_in_little_more_memory_than_it_needs() {
        for length in [FIRST_READ_BYTES, FIRST_READ_BYTES + 1, 5_000_000] {
            let content: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            let input = [&u32::try_from(length).unwrap().to_be_bytes()[..], &content].concat();
            let read = read_frame(&mut &input[..], MAX_FRAME_BYTES).await.unwrap().unwrap();
            assert!(read == content, "{length} bytes");
            let room = read.try_into_mut().unwrap().capacity();
            assert!(room <= 2 * length, "{room} for {length}");
        }
    }

    #[tokio::test]
    async fn the_memory_of_a_long_frame_is_used_again_once_nobody_reads_it() {
        let frame = |byte: u8, length: usize| {
            [&u32::try_from(length).unwrap().to_be_bytes()[..], &vec![byte; length]].concat()
        };
        let long = 2 * LONG_BYTES;
        let input =
            [frame(1, long), frame(2, long - 1), frame(3, long), frame(4, 10), frame(5, long)].concat();
        let (mut input, mut spare) = (&input[..], Spare::default());
        let mut next =
            async || read_frame_into(&mut input, MAX_FRAME_BYTES, &mut spare).await.unwrap().unwrap();
        let first = next().await;
        let place = first.as_ptr();
        drop(first);
        let second = next().await;
        assert_eq!(second.as_ptr(), place);
        let third = next().await;
        assert!(second == vec![2; long - 1] && third == vec![3; long], "neither is overwritten");
        drop((second, third));
        assert_eq!(next().await, vec![4; 10]);
        assert_eq!(spare.memory.capacity(), 0, "let go of");
        assert_eq!(
            read_frame_into(&mut input, MAX_FRAME_BYTES, &mut spare).await.unwrap().unwrap(),
            vec![5; long]
        );
    }

    #[test]
    fn who_has_sent_a_long_frame_gets_room_for_another_at_once() {
        let content = || BytesMut::from(&[7; FIRST_READ_BYTES][..]);
        let mut spare = Spare::default();
        assert!(spare.grow(content(), 3 * LONG_BYTES).capacity() < LONG_BYTES);
        let read = spare.lend(BytesMut::from(&[1; 2 * LONG_BYTES][..]));
        let more = spare.grow(content(), 3 * LONG_BYTES);
        assert_eq!(more, content());
        assert!((2 * LONG_BYTES..3 * LONG_BYTES).contains(&more.capacity()), "as much as that, and no more");
        drop((read, spare.lend(content())));
        assert!(spare.grow(content(), 3 * LONG_BYTES).capacity() < LONG_BYTES, "that was long ago");
    }

    #[tokio::test]
    async fn a_length_alone_allocates_little() {
        let mut input: &[u8] = &[0, 0xff, 0xff, 0xff, 1, 2, 3];
        let error = read_frame(&mut input, MAX_FRAME_BYTES).await.unwrap_err();
        assert!(matches!(error, FrameError::Io(_)), "{error}");
        let mut input: &[u8] = &[0xff, 0xff, 0xff, 0xff];
        assert!(matches!(read_frame(&mut input, MAX_FRAME_BYTES).await, Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn a_body_beyond_the_limit_is_not_sent() {
        let mut out = BytesMut::from(&b"before"[..]);
        let frame = Frame::Answer { correlation_id: 1, body: Bytes::from(vec![0; MAX_FRAME_BYTES]).into() };
        assert!(matches!(frame.encode(&mut out), Err(FrameError::TooLong { .. })));
        assert_eq!(&out[..], b"before");
    }
}
