//! The Kafka wire protocol: messages in all their versions, frames and record batches.
//!
//! - [`messages`]: one module per message, generated from `schema/kafka.schema`; [`api_key`] names the requests.
//! - [`wire`]: the encodings they are made of. [`Decoder`] reads a frame without copying it, [`Encoder`] writes.
//! - [`frame`]: from bytes of a connection to a typed request and back, for brokers and for clients.
//! - [`records`]: record batches (format 2), the payload of Produce and Fetch.
//! - [`error_code`]: Kafka's error codes.
//!
//! Invariants: bytes from outside never panic and never size an allocation before they were checked against what is
//! there; decoded strings and payloads are slices of the frame they came in; unknown tagged fields survive decoding
//! and encoding. Left out on purpose: which versions a broker advertises, and what any message means.

pub mod api_key;
#[cfg(any(test, feature = "arbitrary"))]
pub mod arbitrary;
pub mod error_code;
pub mod frame;
#[doc(hidden)]
pub mod generated;
mod message;
pub mod messages;
pub mod records;
pub mod wire;

pub use api_key::ApiKey;
pub use error_code::ErrorCode;
pub use message::{Message, MessageVisitor, Request, RequestVisitor};
pub use wire::{DecodeError, Decoder, EncodeError, Encoder, RawTaggedField, RecordBytes, StrBytes};

#[cfg(test)]
mod frame_test;
#[cfg(test)]
mod golden_test;
#[cfg(test)]
mod messages_test;
