//! Why bytes are no message, and why a message has no bytes.

/// Bytes that are not what they should be, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset}: {kind}")]
pub struct DecodeError {
    /// Position in the frame.
    pub offset: usize,
    /// What is wrong there.
    pub kind: DecodeErrorKind,
}

/// What is wrong with bytes that should have been a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeErrorKind {
    /// A value or a claimed length goes beyond the end.
    #[error("{needed} more bytes are claimed, {left} are left")]
    Truncated {
        /// Bytes that the value needs.
        needed: usize,
        /// Bytes left.
        left: usize,
    },
    /// An array claims more elements than the bytes left can hold.
    #[error("an array of {len} elements cannot be in the {left} bytes left")]
    ArrayTooLong {
        /// Elements claimed.
        len: usize,
        /// Bytes left.
        left: usize,
    },
    /// A length below -1.
    #[error("the length {0} is negative")]
    NegativeLength(i64),
    /// A string longer than Kafka allows.
    #[error("a string of {0} bytes is longer than 32767")]
    StringTooLong(usize),
    /// A varint with more bytes than its type has.
    #[error("a varint is too long")]
    VarintTooLong,
    /// Null where the version does not allow it.
    #[error("null is not allowed here")]
    UnexpectedNull,
    /// Text that is not UTF-8.
    #[error("a string is not UTF-8")]
    InvalidUtf8,
    /// The decoded values would take more memory than the decoder may use.
    #[error("the decoded message needs more memory than allowed")]
    MemoryLimit,
    /// Bytes behind the end of the message or tagged field.
    #[error("{0} bytes are left over")]
    TrailingBytes(usize),
    /// A version that the message does not have.
    #[error("{message} has no version {version}")]
    UnsupportedVersion {
        /// The message.
        message: &'static str,
        /// The version asked for.
        version: i16,
    },
    /// A record with an id that the schema does not have.
    #[error("no record has the id {0}")]
    UnknownRecord(i16),
}

/// A message that cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A version that the message does not have.
    #[error("{message} has no version {version}")]
    UnsupportedVersion {
        /// The message.
        message: &'static str,
        /// The version asked for.
        version: i16,
    },
    /// A field is set, but the version cannot carry it, and dropping it would change the meaning.
    #[error("{field} is set, version {version} cannot carry it")]
    NotInVersion {
        /// Struct and field.
        field: &'static str,
        /// The version asked for.
        version: i16,
    },
    /// A field is null, but must not be in this version.
    #[error("{field} is null, version {version} does not allow it")]
    Null {
        /// Struct and field.
        field: &'static str,
        /// The version asked for.
        version: i16,
    },
    /// More bytes or elements than the length field can say.
    #[error("a length of {0} does not fit the format")]
    TooLong(usize),
    /// Unknown tagged fields out of order, or with the tag of a known field.
    #[error("tagged field {0} is out of order or defined by the schema")]
    Tag(u32),
}

impl EncodeError {
    /// For generated code: `field` is set, but `version` does not have it.
    #[doc(hidden)]
    pub const fn not_in_version(field: &'static str, version: super::WireVersion) -> Self {
        Self::NotInVersion { field, version: version.number }
    }
}
