//! Checked reads from one frame.

use bytes::Bytes;
use uuid::Uuid;

use super::{DecodeError, DecodeErrorKind, RawTaggedField, StrBytes, WireVersion};

/// Reads values from the front of a frame. Cheap to make; holds the frame by reference count.
///
/// After an error the position is unspecified; give the decoder up.
#[derive(Debug, Clone)]
pub struct Decoder {
    frame: Bytes,
    position: usize,
    end: usize,
    memory_left: usize,
}

type Result<T> = std::result::Result<T, DecodeError>;

impl Decoder {
    /// What the values decoded from one frame may occupy, beside the frame itself, unless the caller says otherwise.
    ///
    /// Small encodings of large structs would otherwise multiply the size of a frame by a hundred. A Metadata response
    /// for 200 000 partitions stays below.
    pub const DEFAULT_MEMORY_LIMIT: usize = 64 << 20;

    /// A decoder at the start of `frame`.
    pub fn new(frame: Bytes) -> Self {
        Self::with_memory_limit(frame, Self::DEFAULT_MEMORY_LIMIT)
    }

    /// A decoder at the start of `frame` that allocates no more than about `limit` bytes for what it decodes.
    pub fn with_memory_limit(frame: Bytes, limit: usize) -> Self {
        let end = frame.len();
        Self { frame, position: 0, end, memory_left: limit }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.end - self.position
    }

    /// The bytes left, as a slice of the frame.
    pub fn rest(&self) -> Bytes {
        self.frame.slice(self.position..self.end)
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// [`DecodeErrorKind::TrailingBytes`].
    pub fn finish(&self) -> Result<()> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(self.error(DecodeErrorKind::TrailingBytes(left))),
        }
    }

    /// An error at the current position.
    pub fn error(&self, kind: DecodeErrorKind) -> DecodeError {
        DecodeError { offset: self.position, kind }
    }

    /// For generated code: a record with an id that is not in the schema.
    #[doc(hidden)]
    pub fn unknown_record(&self, id: i16) -> DecodeError {
        self.error(DecodeErrorKind::UnknownRecord(id))
    }

    /// The next `len` bytes, borrowed.
    pub fn slice(&mut self, len: usize) -> Result<&[u8]> {
        let start = self.advance(len)?;
        Ok(&self.frame[start..start + len])
    }

    /// The next `len` bytes, as a slice of the frame.
    pub fn bytes(&mut self, len: usize) -> Result<Bytes> {
        let start = self.advance(len)?;
        Ok(self.frame.slice(start..start + len))
    }

    fn advance(&mut self, len: usize) -> Result<usize> {
        let left = self.remaining();
        if len > left {
            return Err(self.error(DecodeErrorKind::Truncated { needed: len, left }));
        }
        let start = self.position;
        self.position += len;
        Ok(start)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let start = self.advance(N)?;
        Ok(self.frame[start..start + N].try_into().expect("the slice has this length"))
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// 16 bits, big-endian.
    pub fn i16(&mut self) -> Result<i16> {
        self.array().map(i16::from_be_bytes)
    }

    /// 32 bits, big-endian.
    pub fn i32(&mut self) -> Result<i32> {
        self.array().map(i32::from_be_bytes)
    }

    /// 64 bits, big-endian.
    pub fn i64(&mut self) -> Result<i64> {
        self.array().map(i64::from_be_bytes)
    }

    /// 16 bytes.
    pub fn uuid(&mut self) -> Result<Uuid> {
        self.array().map(Uuid::from_bytes)
    }

    /// Up to 32 bits, seven per byte, lowest first.
    pub fn unsigned_varint(&mut self) -> Result<u32> {
        let value = self.unsigned_varlong_of(5)?;
        u32::try_from(value).map_err(|_| self.error(DecodeErrorKind::VarintTooLong))
    }

    /// Up to 32 bits, zigzag.
    pub fn varint(&mut self) -> Result<i32> {
        let n = self.unsigned_varint()?;
        Ok((n >> 1).cast_signed() ^ -(n & 1).cast_signed())
    }

    /// Up to 64 bits, zigzag.
    pub fn varlong(&mut self) -> Result<i64> {
        let n = self.unsigned_varlong_of(10)?;
        Ok((n >> 1).cast_signed() ^ -(n & 1).cast_signed())
    }

    fn unsigned_varlong_of(&mut self, most_bytes: u32) -> Result<u64> {
        let mut value = 0;
        for i in 0..most_bytes {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if i == 9 && bits > 1 {
                break;
            }
            value |= bits << (7 * i);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error(DecodeErrorKind::VarintTooLong))
    }

    /// The length in front of bytes or an array; `None` is null.
    pub(super) fn length(&mut self, flexible: bool) -> Result<Option<usize>> {
        if flexible {
            let plus_one = self.unsigned_varint()?;
            return Ok(plus_one.checked_sub(1).map(|len| len as usize));
        }
        let len = self.i32()?;
        self.checked_length(len.into())
    }

    /// The length in front of a string; `None` is null.
    pub(super) fn string_length(&mut self, flexible: bool) -> Result<Option<usize>> {
        if !flexible {
            let len = self.i16()?;
            return self.checked_length(len.into());
        }
        match self.length(true)? {
            Some(len) if len > i16::MAX as usize => Err(self.error(DecodeErrorKind::StringTooLong(len))),
            len => Ok(len),
        }
    }

    fn checked_length(&self, len: i64) -> Result<Option<usize>> {
        match usize::try_from(len) {
            Ok(len) => Ok(Some(len)),
            Err(_) if len == -1 => Ok(None),
            Err(_) => Err(self.error(DecodeErrorKind::NegativeLength(len))),
        }
    }

    /// The length of an array, checked against the bytes left and against the memory limit.
    pub(super) fn array_length(
        &mut self,
        flexible: bool,
        element_min_len: usize,
        element_size: usize,
    ) -> Result<Option<usize>> {
        let Some(len) = self.length(flexible)? else { return Ok(None) };
        let left = self.remaining();
        if len > left / element_min_len {
            return Err(self.error(DecodeErrorKind::ArrayTooLong { len, left }));
        }
        self.claim_memory(len, element_size)?;
        Ok(Some(len))
    }

    fn claim_memory(&mut self, count: usize, size: usize) -> Result<()> {
        match self.memory_left.checked_sub(count.saturating_mul(size)) {
            Some(left) => {
                self.memory_left = left;
                Ok(())
            }
            None => Err(self.error(DecodeErrorKind::MemoryLimit)),
        }
    }

    /// Text, or null.
    pub fn nullable_string(&mut self, flexible: bool) -> Result<Option<StrBytes>> {
        let Some(len) = self.string_length(flexible)? else { return Ok(None) };
        let bytes = self.bytes(len)?;
        StrBytes::try_from(bytes).map(Some).map_err(|_| self.error(DecodeErrorKind::InvalidUtf8))
    }

    /// Bytes with their length in front, or null.
    pub fn nullable_bytes(&mut self, flexible: bool) -> Result<Option<Bytes>> {
        let Some(len) = self.length(flexible)? else { return Ok(None) };
        self.bytes(len).map(Some)
    }

    /// The tagged fields of a struct without known ones; none in versions that are not flexible.
    pub fn unknown_tags(&mut self, version: WireVersion) -> Result<Vec<RawTaggedField>> {
        self.tags(version, |_, _| Ok(false))
    }

    /// The tagged fields of a struct. `known` reads the value of a tag that it knows, or returns false.
    pub fn tags(
        &mut self,
        version: WireVersion,
        mut known: impl FnMut(&mut Self, u32) -> Result<bool>,
    ) -> Result<Vec<RawTaggedField>> {
        let mut unknown: Vec<RawTaggedField> = Vec::new();
        if !version.flexible {
            return Ok(unknown);
        }
        for _ in 0..self.unsigned_varint()? {
            let tag = self.unsigned_varint()?;
            let len = self.unsigned_varint()? as usize;
            let left = self.remaining();
            if len > left {
                return Err(self.error(DecodeErrorKind::Truncated { needed: len, left }));
            }
            let outer_end = std::mem::replace(&mut self.end, self.position + len);
            if known(self, tag)? {
                self.finish()?;
            } else {
                self.claim_memory(1, size_of::<RawTaggedField>())?;
                unknown.push(RawTaggedField { tag, data: self.bytes(len)? });
            }
            self.end = outer_end;
        }
        // Senders write them in order, but nothing in Kafka insists; the encoder does.
        unknown.sort_by_key(|field| field.tag);
        Ok(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Encoder;

    fn decoder(bytes: &'static [u8]) -> Decoder {
        Decoder::new(Bytes::from_static(bytes))
    }

    #[test]
    fn varints_round_trip_and_end_after_their_last_byte() {
        for n in [0, 1, -1, 63, -64, 64, 300, i64::from(i32::MAX), i64::from(i32::MIN), i64::MAX, i64::MIN] {
            let mut e = Encoder::new();
            e.varlong(n);
            let narrow = i32::try_from(n);
            if let Ok(n) = narrow {
                e.varint(n);
            }
            let mut d = Decoder::new(e.into_bytes());
            assert_eq!(d.varlong(), Ok(n));
            if let Ok(n) = narrow {
                assert_eq!(d.varint(), Ok(n));
            }
            assert_eq!(d.remaining(), 0);
        }
    }

    #[test]
    fn varints_without_an_end_are_refused() {
        let too_long = |e: DecodeError| e.kind == DecodeErrorKind::VarintTooLong;
        assert!(decoder(&[0xff; 20]).unsigned_varint().is_err_and(too_long));
        assert!(decoder(&[0xff, 0xff, 0xff, 0xff, 0x1f]).unsigned_varint().is_err_and(too_long), "33 bits");
        assert!(decoder(&[0xff; 20]).varlong().is_err_and(too_long));
        let bits_65 = &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert!(decoder(bits_65).varlong().is_err_and(too_long));
    }

    #[test]
    fn a_claimed_length_is_checked_before_it_is_used() {
        let error = decoder(&[0x7f, 0xff, 0xff, 0xff, 0]).nullable_bytes(false).map_err(|e| e.kind);
        assert_eq!(error, Err(DecodeErrorKind::Truncated { needed: 0x7fff_ffff, left: 1 }));
        let error = decoder(&[0x7f, 0xff, 0xff, 0xff, 0]).array_length(false, 1, 1).map_err(|e| e.kind);
        assert_eq!(error, Err(DecodeErrorKind::ArrayTooLong { len: 0x7fff_ffff, left: 1 }));
        let error = decoder(&[0xff, 0xff, 0xff, 0xfe]).array_length(false, 1, 1).map_err(|e| e.kind);
        assert_eq!(error, Err(DecodeErrorKind::NegativeLength(-2)));
    }

    #[test]
    fn decoded_values_are_bounded_by_the_memory_limit() {
        let mut d = Decoder::with_memory_limit(Bytes::from_static(&[0, 0, 0, 4, 1, 2, 3, 4]), 399);
        assert_eq!(d.array_length(false, 1, 100).map_err(|e| e.kind), Err(DecodeErrorKind::MemoryLimit));
    }

    #[test]
    fn a_known_tag_must_use_all_its_bytes_and_no_more() {
        let version = WireVersion { number: 0, flexible: true };
        let read_byte = |d: &mut Decoder, _| d.u8().map(|_| true);
        assert!(decoder(&[1, 0, 1, 9]).tags(version, read_byte).is_ok());
        let error = decoder(&[1, 0, 2, 9, 9]).tags(version, read_byte).map_err(|e| e.kind);
        assert_eq!(error, Err(DecodeErrorKind::TrailingBytes(1)));
        let error = decoder(&[1, 0, 0, 9]).tags(version, read_byte).map_err(|e| e.kind);
        assert_eq!(error, Err(DecodeErrorKind::Truncated { needed: 1, left: 0 }));
    }
}
