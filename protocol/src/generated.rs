//! What generated code calls. Not an interface for anything else.

pub use bytes::Bytes;
pub use uuid::Uuid;

pub use crate::api_key::ApiKey;
#[cfg(any(test, feature = "arbitrary"))]
pub use crate::arbitrary::{Arbitrary, Gen};
pub use crate::message::{Message, MessageVisitor, Request, RequestVisitor};
pub use crate::wire::{
    DecodeError, Decoder, EncodeError, Encoder, Opaque, RawTaggedField, RecordBytes, StrBytes, Wire,
    WireVersion, write_required,
};

/// Writes a record as its enum does: id, version, body.
pub fn encode_record<M: Message>(id: i16, record: &M, e: &mut Encoder) -> Result<(), EncodeError> {
    let head = [id, M::MAX_VERSION].map(|n| u32::try_from(n).expect("ids and versions are not negative"));
    e.unsigned_varint(head[0]);
    e.unsigned_varint(head[1]);
    record.encode(e, M::MAX_VERSION)
}

/// Reads the id and version that [`encode_record`] wrote.
pub fn decode_record_head(d: &mut Decoder) -> Result<(i16, i16), DecodeError> {
    let mut number = || d.unsigned_varint().map(|n| i16::try_from(n).unwrap_or(i16::MAX));
    Ok((number()?, number()?))
}
