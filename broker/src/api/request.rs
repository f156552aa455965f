//! What surrounds a request, and what becomes of it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use millrace_protocol::{DecodeError, EncodeError, StrBytes};

/// The client at the other end of one connection.
#[derive(Clone, Debug)]
pub struct ClientConnection {
    /// Name of the listener that it came in on.
    pub listener: Arc<str>,
    /// Its address.
    pub peer: SocketAddr,
    /// Name and version of its software, once it has told (V3).
    pub software: Option<ClientSoftware>,
}

/// What a client runs on, in its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSoftware {
    /// Such as `apache-kafka-java`.
    pub name: String,
    /// Such as `4.3.1`.
    pub version: String,
}

/// One request, as far as handlers need to know it beside its body.
#[derive(Clone, Debug)]
pub(super) struct RequestContext {
    /// Listener that it came in on; clients are told the addresses of this one.
    pub(super) listener: Arc<str>,
    /// Version of the body.
    pub(super) version: i16,
    /// What the client calls itself.
    pub(super) client_id: Option<StrBytes>,
}

/// What the connection does next.
pub enum Outcome {
    /// Sends these pieces, which are one whole response.
    Respond(Vec<Bytes>),
    /// Awaits the real outcome, which is never this one again. What must happen in the order of requests has happened.
    Later(BoxFuture<'static, Outcome>),
    /// Goes on: the request wants no answer.
    Nothing,
    /// Ends, without an answer.
    Close(CloseReason),
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Respond(pieces) => f.debug_tuple("Respond").field(&pieces.len()).finish(),
            Self::Later(_) => f.write_str("Later"),
            Self::Nothing => f.write_str("Nothing"),
            Self::Close(reason) => f.debug_tuple("Close").field(reason).finish(),
        }
    }
}

/// Why a request ends its connection.
#[derive(Debug)]
pub enum CloseReason {
    /// The key is not served, or not in this version (V2).
    NotServed {
        /// Name of the API.
        api: &'static str,
        /// The version.
        version: i16,
    },
    /// The body does not decode.
    Malformed {
        /// Name of the API.
        api: &'static str,
        /// What is wrong with it.
        error: DecodeError,
    },
    /// A produce request failed that wants no answer: closing is the only way to tell (P10).
    FailedWithoutAcks,
    /// The answer cannot be written in the version of the request, which is a mistake in this broker.
    Unanswerable {
        /// Name of the API.
        api: &'static str,
        /// What is wrong with the answer.
        error: EncodeError,
    },
}

impl CloseReason {
    /// Short name, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotServed { .. } => "not_served",
            Self::Malformed { .. } => "malformed",
            Self::FailedWithoutAcks => "failed_without_acks",
            Self::Unanswerable { .. } => "unanswerable",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotServed { api, version } => write!(f, "{api} version {version} is not served"),
            Self::Malformed { api, error } => write!(f, "malformed {api} request: {error}"),
            Self::FailedWithoutAcks => f.write_str("a produce request with acks=0 failed"),
            Self::Unanswerable { api, error } => write!(f, "the answer to {api} cannot be written: {error}"),
        }
    }
}
