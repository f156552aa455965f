//! The callee's side of a call connection.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::frame::{Failure, FailureKind, Frame, FrameError, read_frame};
use super::{CallHandler, MAX_FRAME_BYTES, Method};

/// Calls of one connection that are worked on at a time; the next ones wait in the caller's socket.
const MAX_CALLS_IN_FLIGHT: usize = 64;

/// A caller pings when it has nothing to say, so silence of this length means that it is gone without a word.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Answers calls of node `peer` until it hangs up or breaks the rules. Dropping the future drops the calls.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: u64,
    handler: Arc<dyn CallHandler>,
) -> Result<(), FrameError> {
    let (mut reader, writer) = tokio::io::split(stream);
    let (answers, outgoing) = mpsc::channel::<Frame>(MAX_CALLS_IN_FLIGHT);
    let in_flight = Arc::new(Semaphore::new(MAX_CALLS_IN_FLIGHT));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        if let Err(error) = write_frames(writer, outgoing).await {
            tracing::debug!(peer, %error, "cannot answer calls");
        }
    });
    loop {
        let next = tokio::time::timeout(IDLE_TIMEOUT, read_frame(&mut reader, MAX_FRAME_BYTES));
        let Ok(next) = next.await else { return Ok(()) };
        let Some(content) = next? else { return Ok(()) };
        let reply = match Frame::decode(content)? {
            Frame::Ping => Frame::Pong,
            Frame::Call { correlation_id, method, body } => match Method::from_code(method) {
                Some(method) => {
                    while tasks.try_join_next().is_some() {}
                    let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else { return Ok(()) };
                    let (handler, answers) = (Arc::clone(&handler), answers.clone());
                    tasks.spawn(async move {
                        let frame = match handler.handle(peer, method, body).await {
                            Ok(body) => Frame::Answer { correlation_id, body },
                            Err(failure) => Frame::Failure { correlation_id, failure },
                        };
                        drop(permit);
                        // The connection is gone if this fails, and with it whoever waits for the answer.
                        let _ = answers.send(frame).await;
                    });
                    continue;
                }
                None => Frame::Failure {
                    correlation_id,
                    failure: Failure::new(FailureKind::UnknownMethod, format!("unknown method {method}")),
                },
            },
            Frame::Answer { .. } | Frame::Failure { .. } | Frame::Pong => return Err(FrameError::Malformed),
        };
        if answers.send(reply).await.is_err() {
            return Ok(());
        }
    }
}

/// Writes frames as they come, many at once where many wait, until the channel closes.
pub(super) async fn write_frames(
    mut writer: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Frame>,
) -> Result<(), FrameError> {
    const FLUSH_BYTES: usize = 256 << 10;
    /// Pieces from here on are written as they lie; smaller ones are cheaper to copy.
    const LARGE_BYTES: usize = 16 << 10;
    let mut out = BytesMut::new();
    while let Some(frame) = frames.recv().await {
        let mut next = Some(frame);
        while let Some(frame) = next.take() {
            for piece in head(&frame, &mut out)? {
                if piece.len() < LARGE_BYTES {
                    out.extend_from_slice(piece);
                } else {
                    writer.write_all(&out).await?;
                    out.clear();
                    writer.write_all(piece).await?;
                }
            }
            if out.len() < FLUSH_BYTES {
                next = frames.try_recv().ok();
            }
        }
        writer.write_all(&out).await?;
        writer.flush().await?;
        // A buffer that one big frame has blown up does not stay.
        out = if out.capacity() > FLUSH_BYTES { BytesMut::new() } else { out };
        out.clear();
    }
    Ok(())
}

/// Appends a frame but for the pieces of its body; an answer that is too long becomes a failure.
fn head<'a>(frame: &'a Frame, out: &mut BytesMut) -> Result<&'a [Bytes], FrameError> {
    match (frame.encode_head(out), frame) {
        (Err(error @ FrameError::TooLong { .. }), Frame::Answer { correlation_id, .. }) => {
            let failure = Failure::new(FailureKind::NotNow, error.to_string());
            Frame::Failure { correlation_id: *correlation_id, failure }.encode(out)?;
            Ok(&[])
        }
        (result, _) => result,
    }
}
