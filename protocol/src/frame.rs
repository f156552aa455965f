//! Frames: what a connection carries, a length in front of a header and a body.
//!
//! Brokers use [`split`], [`RequestFrame`] and [`encode_response`]; clients use [`encode_request`], [`split`] and
//! [`decode_response`]. Nothing here knows a socket. All `frame: Bytes` arguments are frames without their length.

use bytes::{Buf as _, Bytes, BytesMut};

use crate::api_key::{ApiKey, request_header_version, response_header_version};
use crate::message::{Message, Request};
use crate::messages::{RequestHeader, ResponseHeader};
use crate::wire::{DecodeError, Decoder, EncodeError, Encoder, StrBytes};

/// Bytes of the length in front of a frame.
pub const LENGTH_LEN: usize = 4;

/// Most bytes of a request header: a client id of 32 KiB and as much again in tagged fields.
const MAX_HEADER_LEN: usize = 64 << 10;

/// Why bytes are no frame or no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length in front is negative or above what the listener allows.
    #[error("a frame of {len} bytes is claimed, between 0 and {max} are allowed")]
    Length {
        /// The length claimed.
        len: i32,
        /// The most that is allowed.
        max: usize,
    },
    /// A request for an API that this crate does not know.
    #[error("unknown API key {key} (version {version})")]
    UnknownApiKey {
        /// The key.
        key: i16,
        /// The version.
        version: i16,
    },
    /// The header does not decode.
    #[error("request header")]
    Header(#[source] DecodeError),
}

/// Takes the next whole frame off `buffer`; `None` until enough bytes are there.
///
/// The frame comes without its length. Reserve memory for a frame only after this accepted its length.
///
/// # Errors
/// [`FrameError::Length`]; the connection cannot be used any more.
pub fn split(buffer: &mut BytesMut, max_len: usize) -> Result<Option<Bytes>, FrameError> {
    let Some(len) = buffer.first_chunk::<LENGTH_LEN>() else { return Ok(None) };
    let len = i32::from_be_bytes(*len);
    let wanted = match usize::try_from(len) {
        Ok(wanted) if wanted <= max_len => wanted,
        _ => return Err(FrameError::Length { len, max: max_len }),
    };
    if buffer.len() < LENGTH_LEN + wanted {
        return Ok(None);
    }
    buffer.advance(LENGTH_LEN);
    Ok(Some(buffer.split_to(wanted).freeze()))
}

/// A request whose header has been read and whose body has not.
///
/// The version may be one that does not exist: ApiVersions must be answered even then (rule V1), for other keys
/// Kafka closes the connection (rule V2).
#[derive(Debug, Clone)]
pub struct RequestFrame {
    /// The API called.
    pub key: ApiKey,
    /// The version of the body.
    pub version: i16,
    /// The number to put into the response.
    pub correlation_id: i32,
    /// What the client calls itself.
    pub client_id: Option<StrBytes>,
    body: Decoder,
}

impl RequestFrame {
    /// Reads the header of a request.
    ///
    /// # Errors
    /// The key is unknown or the header malformed. Neither can be answered: close the connection.
    pub fn parse(frame: Bytes) -> Result<Self, FrameError> {
        let mut peek = Decoder::new(frame.slice(..frame.len().min(4)));
        let code = peek.i16().map_err(FrameError::Header)?;
        let version = peek.i16().map_err(FrameError::Header)?;
        let key = ApiKey::from_code(code).ok_or(FrameError::UnknownApiKey { key: code, version })?;
        let mut head = Decoder::new(frame.slice(..frame.len().min(MAX_HEADER_LEN)));
        let header = RequestHeader::decode(&mut head, request_header_version(key, version))
            .map_err(FrameError::Header)?;
        let body = Decoder::new(frame.slice(head.position()..));
        Ok(Self { key, version, correlation_id: header.correlation_id, client_id: header.client_id, body })
    }

    /// Reads the body. Bytes behind it are ignored, as Kafka does.
    ///
    /// # Errors
    /// The version does not exist or the body is malformed.
    ///
    /// # Panics
    /// `R` is not the request of this key.
    pub fn decode<R: Request>(mut self) -> Result<R, DecodeError> {
        assert_eq!(R::KEY, self.key, "the request type follows from the key");
        R::decode(&mut self.body, self.version)
    }

    /// The undecoded body.
    pub fn body(&self) -> Bytes {
        self.body.rest()
    }
}

/// Appends a whole response: length, header, body.
///
/// # Errors
/// The body does not fit the version; `buffer` is as before.
pub fn encode_response<M: Message>(
    buffer: &mut BytesMut,
    key: ApiKey,
    version: i16,
    correlation_id: i32,
    body: &M,
) -> Result<(), EncodeError> {
    let header = ResponseHeader { correlation_id, ..Default::default() };
    append_frame(buffer, &header, response_header_version(key, version), body, version)
}

/// A whole response in pieces for a vectored write: large record payloads stay where they are.
///
/// # Errors
/// The body does not fit the version.
pub fn encode_response_segments<M: Message>(
    key: ApiKey,
    version: i16,
    correlation_id: i32,
    body: &M,
) -> Result<Vec<Bytes>, EncodeError> {
    let header = ResponseHeader { correlation_id, ..Default::default() };
    let mut encoder = Encoder::segmented();
    write_frame(&mut encoder, &header, response_header_version(key, version), body, version)?;
    Ok(encoder.into_segments())
}

/// Appends a whole request: length, header, body.
///
/// # Errors
/// The body or the client id does not fit; `buffer` is as before.
pub fn encode_request<R: Request>(
    buffer: &mut BytesMut,
    version: i16,
    correlation_id: i32,
    client_id: Option<&str>,
    body: &R,
) -> Result<(), EncodeError> {
    let header = RequestHeader {
        request_api_key: R::KEY.code(),
        request_api_version: version,
        correlation_id,
        client_id: client_id.map(StrBytes::from),
        ..Default::default()
    };
    append_frame(buffer, &header, request_header_version(R::KEY, version), body, version)
}

/// The correlation id of a response, which says which request it answers.
pub fn response_correlation_id(frame: &[u8]) -> Option<i32> {
    frame.first_chunk().map(|id| i32::from_be_bytes(*id))
}

/// Reads a response to a request `R` of `version`: correlation id and body.
///
/// A broker that does not know the version of an ApiVersions request answers in version 0: decode again with that.
/// The memory limit is that of [`Decoder::new`].
///
/// # Errors
/// The version does not exist or the bytes are no such response.
pub fn decode_response<R: Request>(frame: Bytes, version: i16) -> Result<(i32, R::Response), DecodeError> {
    let mut decoder = Decoder::new(frame);
    let header = ResponseHeader::decode(&mut decoder, response_header_version(R::KEY, version))?;
    let body = R::Response::decode(&mut decoder, version)?;
    Ok((header.correlation_id, body))
}

fn append_frame(
    buffer: &mut BytesMut,
    header: &impl Message,
    header_version: i16,
    body: &impl Message,
    version: i16,
) -> Result<(), EncodeError> {
    let before = buffer.len();
    let mut encoder = Encoder::append_to(std::mem::take(buffer));
    let written = write_frame(&mut encoder, header, header_version, body, version);
    *buffer = encoder.into_buffer();
    if written.is_err() {
        buffer.truncate(before);
    }
    written
}

fn write_frame(
    encoder: &mut Encoder,
    header: &impl Message,
    header_version: i16,
    body: &impl Message,
    version: i16,
) -> Result<(), EncodeError> {
    let start = encoder.len();
    encoder.i32(0);
    header.encode(encoder, header_version)?;
    body.encode(encoder, version)?;
    let len = encoder.len() - start - LENGTH_LEN;
    let len = i32::try_from(len).map_err(|_| EncodeError::TooLong(len))?;
    encoder.overwrite_i32(start, len);
    Ok(())
}
