//! Appending values to a frame.

use bytes::{BufMut, Bytes, BytesMut};

use super::{EncodeError, RawTaggedField, WireVersion};

/// Appends values to a buffer.
///
/// A *segmented* encoder does not copy large payloads: it remembers where they belong, and
/// [`into_segments`](Self::into_segments) returns the pieces in order, for a vectored write.
#[derive(Debug, Default)]
pub struct Encoder {
    buffer: BytesMut,
    /// Payloads that belong at these positions of `buffer`, ascending.
    shared: Vec<(usize, Bytes)>,
    shared_len: usize,
    /// Bytes from this length on are shared instead of copied.
    share_from: Option<usize>,
}

/// Below this a copy costs less than one more entry of a vectored write.
const SHARE_FROM: usize = 4096;

impl Encoder {
    /// An encoder that copies everything into one buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends to what `buffer` already holds.
    pub fn append_to(buffer: BytesMut) -> Self {
        Self { buffer, ..Self::default() }
    }

    /// An encoder that shares large payloads.
    pub fn segmented() -> Self {
        Self { share_from: Some(SHARE_FROM), ..Self::default() }
    }

    /// Bytes so far, shared payloads included.
    pub fn len(&self) -> usize {
        self.buffer.len() + self.shared_len
    }

    /// Whether there are no bytes so far.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The buffer of an encoder that copies everything.
    pub(crate) fn into_buffer(self) -> BytesMut {
        debug_assert!(self.shared.is_empty(), "only segmented encoders share");
        self.buffer
    }

    /// Everything in one piece.
    pub fn into_bytes(self) -> Bytes {
        if self.shared.is_empty() {
            return self.buffer.freeze();
        }
        let mut whole = BytesMut::with_capacity(self.len());
        for segment in self.into_segments() {
            whole.extend_from_slice(&segment);
        }
        whole.freeze()
    }

    /// Everything, in order, in as many pieces as there are shared payloads and bytes around them.
    pub fn into_segments(self) -> Vec<Bytes> {
        let mut segments = Vec::with_capacity(2 * self.shared.len() + 1);
        let mut rest = self.buffer.freeze();
        let mut taken = 0;
        for (position, payload) in self.shared {
            if position > taken {
                segments.push(rest.split_to(position - taken));
                taken = position;
            }
            segments.push(payload);
        }
        if !rest.is_empty() {
            segments.push(rest);
        }
        segments
    }

    /// Overwrites 4 bytes at `position`, which must lie in front of every shared payload.
    pub(crate) fn overwrite_i32(&mut self, position: usize, value: i32) {
        self.buffer[position..position + 4].copy_from_slice(&value.to_be_bytes());
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.buffer.put_u8(value);
    }

    /// 16 bits, big-endian.
    pub fn i16(&mut self, value: i16) {
        self.buffer.put_i16(value);
    }

    /// 32 bits, big-endian.
    pub fn i32(&mut self, value: i32) {
        self.buffer.put_i32(value);
    }

    /// 64 bits, big-endian.
    pub fn i64(&mut self, value: i64) {
        self.buffer.put_i64(value);
    }

    /// Bytes as they are.
    pub fn slice(&mut self, bytes: &[u8]) {
        self.buffer.put_slice(bytes);
    }

    /// Up to 32 bits, seven per byte, lowest first.
    pub fn unsigned_varint(&mut self, value: u32) {
        self.unsigned_varlong(value.into());
    }

    /// Up to 32 bits, zigzag.
    pub fn varint(&mut self, value: i32) {
        self.varlong(value.into());
    }

    /// Up to 64 bits, zigzag.
    pub fn varlong(&mut self, value: i64) {
        self.unsigned_varlong(((value << 1) ^ (value >> 63)).cast_unsigned());
    }

    fn unsigned_varlong(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.buffer.put_u8(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.buffer.put_u8(value.to_le_bytes()[0]);
    }

    /// The length in front of bytes or an array; `None` is null.
    pub(super) fn length(&mut self, len: Option<usize>, flexible: bool) -> Result<(), EncodeError> {
        let checked = match len {
            Some(len) => i32::try_from(len).map_err(|_| EncodeError::TooLong(len))?,
            None => -1,
        };
        if flexible {
            self.unsigned_varint(checked.cast_unsigned().wrapping_add(1));
        } else {
            self.i32(checked);
        }
        Ok(())
    }

    /// Text, or null.
    pub fn nullable_string(&mut self, text: Option<&[u8]>, flexible: bool) -> Result<(), EncodeError> {
        let len = match text {
            Some(text) => i16::try_from(text.len()).map_err(|_| EncodeError::TooLong(text.len()))?,
            None => -1,
        };
        if flexible {
            self.length(text.map(<[u8]>::len), true)?;
        } else {
            self.i16(len);
        }
        self.slice(text.unwrap_or_default());
        Ok(())
    }

    /// Bytes with their length in front, or null.
    pub fn nullable_bytes(&mut self, bytes: Option<&Bytes>, flexible: bool) -> Result<(), EncodeError> {
        self.nullable_pieces(bytes.map(std::slice::from_ref), flexible)
    }

    /// Bytes in several pieces with their length in front, or null.
    pub fn nullable_pieces(&mut self, pieces: Option<&[Bytes]>, flexible: bool) -> Result<(), EncodeError> {
        self.length(pieces.map(|pieces| pieces.iter().map(Bytes::len).sum()), flexible)?;
        for bytes in pieces.unwrap_or_default() {
            if self.share_from.is_some_and(|share_from| bytes.len() >= share_from) {
                self.shared.push((self.buffer.len(), bytes.clone()));
                self.shared_len += bytes.len();
            } else {
                self.slice(bytes);
            }
        }
        Ok(())
    }

    /// The tagged fields of a struct without known ones; nothing in versions that are not flexible.
    pub fn unknown_tags(
        &mut self,
        unknown: &[RawTaggedField],
        version: WireVersion,
    ) -> Result<(), EncodeError> {
        match (version.flexible, unknown.first()) {
            (true, _) => self.tags(&[], unknown)?.finish(),
            (false, None) => Ok(()),
            (false, Some(field)) => Err(EncodeError::Tag(field.tag)),
        }
    }

    /// Starts the tagged fields of a struct: those of the known ones that are `set`, and the unknown ones.
    pub fn tags<'a>(
        &'a mut self,
        set: &[bool],
        unknown: &'a [RawTaggedField],
    ) -> Result<Tags<'a>, EncodeError> {
        let count = set.iter().filter(|set| **set).count() + unknown.len();
        self.unsigned_varint(u32::try_from(count).map_err(|_| EncodeError::TooLong(count))?);
        Ok(Tags { encoder: self, unknown, next_tag: 0 })
    }
}

/// Writes the tagged fields of one struct, in the order of their tags.
#[derive(Debug)]
pub struct Tags<'a> {
    encoder: &'a mut Encoder,
    unknown: &'a [RawTaggedField],
    next_tag: u32,
}

impl Tags<'_> {
    /// Writes the known field `tag`, whose value `write` appends.
    pub fn field(
        &mut self,
        tag: u32,
        write: impl FnOnce(&mut Encoder) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        while let Some((field, rest)) = self.unknown.split_first()
            && field.tag < tag
        {
            self.raw(field)?;
            self.unknown = rest;
        }
        self.start(tag)?;
        let e = &mut *self.encoder;
        // The length goes in front once it is known, which moves the value: nothing in it may be remembered by position.
        let share_from = e.share_from.take();
        let start = e.buffer.len();
        let written = write(e);
        e.share_from = share_from;
        written?;
        let len = e.buffer.len() - start;
        e.unsigned_varint(u32::try_from(len).map_err(|_| EncodeError::TooLong(len))?);
        e.buffer[start..].rotate_left(len);
        Ok(())
    }

    /// Writes the unknown fields that are left.
    pub fn finish(mut self) -> Result<(), EncodeError> {
        for field in self.unknown {
            self.raw(field)?;
        }
        Ok(())
    }

    fn raw(&mut self, field: &RawTaggedField) -> Result<(), EncodeError> {
        self.start(field.tag)?;
        let len = u32::try_from(field.data.len()).map_err(|_| EncodeError::TooLong(field.data.len()))?;
        self.encoder.unsigned_varint(len);
        self.encoder.slice(&field.data);
        Ok(())
    }

    fn start(&mut self, tag: u32) -> Result<(), EncodeError> {
        if tag < self.next_tag {
            return Err(EncodeError::Tag(tag));
        }
        self.next_tag = tag.saturating_add(1);
        self.encoder.unsigned_varint(tag);
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    #[test]
    fn large_payloads_are_shared_and_small_ones_copied() {
        let large = Bytes::from(vec![7; SHARE_FROM]);
        let mut e = Encoder::segmented();
        e.i32(1);
        e.nullable_bytes(Some(&large), false).unwrap();
        e.nullable_bytes(Some(&Bytes::from_static(b"small")), true).unwrap();
        e.nullable_bytes(Some(&large), true).unwrap();
        let len = e.len();
        let segments = e.into_segments();
        assert_eq!(segments.iter().map(Bytes::len).sum::<usize>(), len);
        assert_eq!(segments.len(), 4);
        assert_eq!(segments[1].as_ptr(), large.as_ptr());
        assert_eq!(segments[3].as_ptr(), large.as_ptr());
        assert_eq!(&segments[2][..6], b"\x06small");
    }

    #[test]
    fn tagged_fields_are_merged_in_the_order_of_their_tags() {
        let raw = |tag, data| RawTaggedField { tag, data: Bytes::from_static(data) };
        let unknown = [raw(1, b"b"), raw(3, b"d")];
        let mut e = Encoder::new();
        let mut tags = e.tags(&[true, false, true], &unknown).unwrap();
        tags.field(0, |e| {
            e.slice(b"aa");
            Ok(())
        })
        .unwrap();
        tags.field(2, |e| {
            e.slice(&[b'c'; 200]);
            Ok(())
        })
        .unwrap();
        tags.finish().unwrap();
        let mut expected = b"\x04\x00\x02aa\x01\x01b\x02\xc8\x01".to_vec();
        expected.extend_from_slice(&[b'c'; 200]);
        expected.extend_from_slice(b"\x03\x01d");
        assert_eq!(e.into_bytes(), expected);
    }

    #[test]
    fn an_unknown_field_must_not_have_a_known_tag() {
        let unknown = [RawTaggedField { tag: 0, data: Bytes::new() }];
        let mut e = Encoder::new();
        let mut tags = e.tags(&[true], &unknown).unwrap();
        tags.field(0, |_| Ok(())).unwrap();
        assert_eq!(tags.finish(), Err(EncodeError::Tag(0)));
    }

    #[test]
    fn lengths_beyond_the_format_are_refused() {
        let long = vec![b'x'; 40_000];
        assert_eq!(Encoder::new().nullable_string(Some(&long), false), Err(EncodeError::TooLong(40_000)));
        assert_eq!(Encoder::new().nullable_string(Some(&long), true), Err(EncodeError::TooLong(40_000)));
    }
}
