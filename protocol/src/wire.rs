//! The encodings that messages are made of.
//!
//! Kafka has two families: classic ones with fixed-width lengths, and the compact ones of flexible versions, where a
//! length is a varint of itself plus one and structs end with tagged fields (KIP-482). [`WireVersion`] says which holds.
//!
//! Invariants of decoding: a length is compared with the bytes left before anything is allocated for it; what decoded
//! values occupy is bounded by the decoder's memory limit, however small their encoding; strings and bytes are slices of
//! the frame. Nesting is bounded by the schema, which cannot recurse.

mod decoder;
mod encoder;
mod error;
mod record_bytes;
mod str_bytes;
mod value;

pub use decoder::Decoder;
pub use encoder::{Encoder, Tags};
pub use error::{DecodeError, DecodeErrorKind, EncodeError};
pub use record_bytes::RecordBytes;
pub use str_bytes::StrBytes;
pub use value::{Wire, write_required};

use std::fmt;

use bytes::Bytes;

/// Version of the message around a value, and whether it is a flexible one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireVersion {
    /// The version.
    pub number: i16,
    /// Compact lengths and tagged fields.
    pub flexible: bool,
}

impl WireVersion {
    /// The same version with classic lengths, for the few fields that keep them.
    #[must_use]
    pub fn inflexible(self) -> Self {
        Self { flexible: false, ..self }
    }
}

/// A tagged field that the schema does not know, kept as it came.
#[derive(Clone, PartialEq, Eq)]
pub struct RawTaggedField {
    /// Its tag.
    pub tag: u32,
    /// Its encoded value.
    pub data: Bytes,
}

impl fmt::Debug for RawTaggedField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawTaggedField")
            .field("tag", &self.tag)
            .field("data", &Opaque::from(&self.data))
            .finish()
    }
}

/// Prints the length of bytes instead of what they hold: payloads and secrets do not belong in logs.
#[derive(Clone, Copy)]
pub struct Opaque(Option<usize>);

impl fmt::Debug for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(len) => write!(f, "<{len} bytes>"),
            None => f.write_str("None"),
        }
    }
}

impl From<&Bytes> for Opaque {
    fn from(bytes: &Bytes) -> Self {
        Self(Some(bytes.len()))
    }
}

impl From<&Option<Bytes>> for Opaque {
    fn from(bytes: &Option<Bytes>) -> Self {
        Self(bytes.as_ref().map(Bytes::len))
    }
}
