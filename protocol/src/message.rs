//! What all messages have in common.

use std::fmt::Debug;

use crate::api_key::ApiKey;
use crate::wire::{DecodeError, DecodeErrorKind, Decoder, EncodeError, Encoder, Wire, WireVersion};

/// A message that can be written and read in a range of versions.
///
/// Encoding refuses a value that its version cannot carry, unless Kafka's definition marks the field as ignorable.
/// Decoding leaves fields that a version does not have at their default.
pub trait Message: Wire + Default + Clone + Debug + PartialEq {
    /// Kafka's name of the message.
    const NAME: &'static str;
    /// Oldest version.
    const MIN_VERSION: i16;
    /// Newest version.
    const MAX_VERSION: i16;
    /// First version with compact lengths and tagged fields.
    const FLEXIBLE_FROM: Option<i16>;

    /// Appends the body in `version`.
    ///
    /// # Errors
    /// `version` does not exist or cannot carry a value that is set, or a value is too long. What was appended until
    /// then stays in `e`.
    fn encode(&self, e: &mut Encoder, version: i16) -> Result<(), EncodeError> {
        if !(Self::MIN_VERSION..=Self::MAX_VERSION).contains(&version) {
            return Err(EncodeError::UnsupportedVersion { message: Self::NAME, version });
        }
        self.write(e, wire_version::<Self>(version))
    }

    /// Reads the body in `version` and leaves `d` behind it.
    ///
    /// # Errors
    /// `version` does not exist, or the bytes are no such message.
    fn decode(d: &mut Decoder, version: i16) -> Result<Self, DecodeError> {
        if !(Self::MIN_VERSION..=Self::MAX_VERSION).contains(&version) {
            return Err(d.error(DecodeErrorKind::UnsupportedVersion { message: Self::NAME, version }));
        }
        Self::read(d, wire_version::<Self>(version))
    }
}

fn wire_version<M: Message>(version: i16) -> WireVersion {
    WireVersion { number: version, flexible: M::FLEXIBLE_FROM.is_some_and(|from| version >= from) }
}

/// The body of a request.
pub trait Request: Message {
    /// The API it calls.
    const KEY: ApiKey;
    /// What answers it, in the same version.
    type Response: Message;
}

/// Code to run for every request type; see [`messages::visit_requests`](crate::messages::visit_requests).
pub trait RequestVisitor {
    /// Called once per request type.
    fn request<R: Request>(&mut self);
}

/// Code to run for every message type of a schema, in tests.
pub trait MessageVisitor {
    /// Called once per message type.
    #[cfg(any(test, feature = "arbitrary"))]
    fn message<M: Message + crate::arbitrary::Arbitrary>(&mut self);
    /// Called once per message type.
    #[cfg(not(any(test, feature = "arbitrary")))]
    fn message<M: Message>(&mut self);
}
