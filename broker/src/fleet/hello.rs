//! The first exchange on a call connection: which cluster, which node, and whom the caller wants to reach.
//!
//! A caller that reaches the wrong broker (an address was given to somebody else) or another cluster must find out
//! before Raft messages flow; the answer says why in words that end up in the caller's log.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use millrace_management::kafka_uuid;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

use super::LocalNode;
use super::frame::{FrameError, read_frame};

/// First bytes of a call connection.
pub(super) const MAGIC: [u8; 4] = *b"MLR1";
const VERSION: u16 = 1;
const MAX_HELLO_BYTES: usize = 4 << 10;
const ANY_NODE: u64 = 0;

const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;

/// Why the exchange failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    /// The connection broke, or what came is no hello.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// One side does not want to talk to the other.
    #[error("{0}")]
    Refused(String),
}

impl From<io::Error> for HelloError {
    fn from(error: io::Error) -> Self {
        Self::Frame(error.into())
    }
}

/// Caller's side: returns the callee's node id.
pub(super) async fn call(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    local: LocalNode,
    target: Option<u64>,
) -> Result<u64, HelloError> {
    let mut content = BytesMut::new();
    content.put_u16(VERSION);
    content.put_slice(local.cluster_id.as_bytes());
    content.put_u64(local.node_id);
    content.put_u64(target.unwrap_or(ANY_NODE));
    let mut out = BytesMut::from(&MAGIC[..]);
    put_frame(&mut out, &content);
    stream.write_all(&out).await?;
    stream.flush().await?;

    let mut answer = read(stream).await?;
    if answer.len() < 9 {
        return Err(FrameError::Malformed.into());
    }
    let outcome = answer.get_u8();
    let node_id = answer.get_u64();
    match outcome {
        ACCEPTED if target.is_none_or(|target| target == node_id) => Ok(node_id),
        ACCEPTED => Err(HelloError::Refused(format!("reached node {node_id}"))),
        _ => Err(HelloError::Refused(String::from_utf8_lossy(&answer).into_owned())),
    }
}

/// Callee's side, after [`MAGIC`] was read: returns the caller's node id.
pub(super) async fn answer(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    local: LocalNode,
) -> Result<u64, HelloError> {
    let content = read(stream).await?;
    let verdict = judge(content, local)?;
    let mut answer = BytesMut::new();
    answer.put_u8(if verdict.is_ok() { ACCEPTED } else { REFUSED });
    answer.put_u64(local.node_id);
    if let Err(reason) = &verdict {
        answer.put_slice(reason.as_bytes());
    }
    let mut out = BytesMut::new();
    put_frame(&mut out, &answer);
    stream.write_all(&out).await?;
    stream.flush().await?;
    verdict.map_err(HelloError::Refused)
}

fn judge(mut content: Bytes, local: LocalNode) -> Result<Result<u64, String>, FrameError> {
    if content.len() < 2 {
        return Err(FrameError::Malformed);
    }
    let version = content.get_u16();
    if version != VERSION {
        return Ok(Err(format!(
            "this broker speaks version {VERSION} of the internal protocol, not {version}"
        )));
    }
    if content.len() < 32 {
        return Err(FrameError::Malformed);
    }
    let cluster_id = Uuid::from_u128(content.get_u128());
    let sender = content.get_u64();
    let target = content.get_u64();
    Ok(if cluster_id != local.cluster_id {
        Err(format!(
            "this broker belongs to cluster {}, the caller to cluster {}",
            kafka_uuid::format(local.cluster_id),
            kafka_uuid::format(cluster_id)
        ))
    } else if target != ANY_NODE && target != local.node_id {
        Err(format!("this is node {}, the caller wants node {target}", local.node_id))
    } else if sender == ANY_NODE {
        Err("the caller does not say which node it is".to_owned())
    } else {
        Ok(sender)
    })
}

fn put_frame(out: &mut BytesMut, content: &[u8]) {
    out.put_u32(u32::try_from(content.len()).expect("a hello is a few bytes long"));
    out.put_slice(content);
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Bytes, FrameError> {
    let content = read_frame(stream, MAX_HELLO_BYTES).await?;
    content.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof).into())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    const ONE: LocalNode = LocalNode { cluster_id: Uuid::from_u128(1), node_id: 11 };
    const TWO: LocalNode = LocalNode { cluster_id: Uuid::from_u128(1), node_id: 22 };

    async fn meet(
        caller: LocalNode,
        target: Option<u64>,
        callee: LocalNode,
    ) -> (Result<u64, HelloError>, Result<u64, HelloError>) {
        let (mut left, mut right) = tokio::io::duplex(1024);
        let callee = async move {
            let mut magic = [0; 4];
            right.read_exact(&mut magic).await.unwrap();
            assert_eq!(magic, MAGIC);
            answer(&mut right, callee).await
        };
        tokio::join!(call(&mut left, caller, target), callee)
    }

    #[tokio::test]
    async fn nodes_of_one_cluster_learn_each_others_ids() {
        let (called, answered) = meet(ONE, Some(22), TWO).await;
        assert_eq!((called.unwrap(), answered.unwrap()), (22, 11));
        let (called, _) = meet(ONE, None, TWO).await;
        assert_eq!(called.unwrap(), 22);
    }

    #[tokio::test]
    async fn another_cluster_is_refused_and_both_are_named() {
        let stranger = LocalNode { cluster_id: Uuid::from_u128(2), node_id: 33 };
        let (called, answered) = meet(stranger, None, TWO).await;
        let message = called.unwrap_err().to_string();
        assert!(
            message.contains("AAAAAAAAAAAAAAAAAAAAAQ") && message.contains("AAAAAAAAAAAAAAAAAAAAAg"),
            "{message}"
        );
        assert!(matches!(answered, Err(HelloError::Refused(_))));
    }

    #[tokio::test]
    async fn a_caller_who_wants_another_node_is_told_who_this_is() {
        let (called, _) = meet(ONE, Some(99), TWO).await;
        let message = called.unwrap_err().to_string();
        assert!(message.contains("this is node 22") && message.contains("99"), "{message}");
    }
}
