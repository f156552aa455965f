//! How each type of field is read and written.

use bytes::Bytes;
use uuid::Uuid;

use super::{
    DecodeError, DecodeErrorKind, Decoder, EncodeError, Encoder, RecordBytes, StrBytes, WireVersion,
};

/// A value that can be a field.
pub trait Wire: Sized {
    /// Fewest bytes that any value takes in any version; at least 1.
    const MIN_LEN: usize;

    /// Reads a value that is not null.
    fn read(d: &mut Decoder, v: WireVersion) -> Result<Self, DecodeError>;

    /// Writes a value that is not null.
    fn write(&self, e: &mut Encoder, v: WireVersion) -> Result<(), EncodeError>;

    /// Reads a value that may be null. Structs have a byte in front: negative for null.
    fn read_nullable(d: &mut Decoder, v: WireVersion) -> Result<Option<Self>, DecodeError> {
        if d.u8()?.cast_signed() < 0 { Ok(None) } else { Self::read(d, v).map(Some) }
    }

    /// Writes a value that may be null.
    fn write_nullable(value: Option<&Self>, e: &mut Encoder, v: WireVersion) -> Result<(), EncodeError> {
        match value {
            Some(value) => {
                e.u8(1);
                value.write(e, v)
            }
            None => {
                e.u8(0xff);
                Ok(())
            }
        }
    }
}

/// Writes a value that other versions allow to be null, in one that does not.
pub fn write_required<T: Wire>(
    value: Option<&T>,
    field: &'static str,
    e: &mut Encoder,
    v: WireVersion,
) -> Result<(), EncodeError> {
    match value {
        Some(value) => value.write(e, v),
        None => Err(EncodeError::Null { field, version: v.number }),
    }
}

macro_rules! fixed_width {
    ($($type:ty),*) => {$(
        impl Wire for $type {
            const MIN_LEN: usize = size_of::<$type>();

            fn read(d: &mut Decoder, _: WireVersion) -> Result<Self, DecodeError> {
                d.array().map(<$type>::from_be_bytes)
            }

            fn write(&self, e: &mut Encoder, _: WireVersion) -> Result<(), EncodeError> {
                e.slice(&self.to_be_bytes());
                Ok(())
            }
        }
    )*};
}

fixed_width!(i8, i16, u16, i32, u32, i64, f64);

impl Wire for bool {
    const MIN_LEN: usize = 1;

    fn read(d: &mut Decoder, _: WireVersion) -> Result<Self, DecodeError> {
        d.u8().map(|byte| byte != 0)
    }

    fn write(&self, e: &mut Encoder, _: WireVersion) -> Result<(), EncodeError> {
        e.u8(u8::from(*self));
        Ok(())
    }
}

impl Wire for Uuid {
    const MIN_LEN: usize = 16;

    fn read(d: &mut Decoder, _: WireVersion) -> Result<Self, DecodeError> {
        d.uuid()
    }

    fn write(&self, e: &mut Encoder, _: WireVersion) -> Result<(), EncodeError> {
        e.slice(self.as_bytes());
        Ok(())
    }
}

impl Wire for StrBytes {
    const MIN_LEN: usize = 1;

    fn read(d: &mut Decoder, v: WireVersion) -> Result<Self, DecodeError> {
        let value = Self::read_nullable(d, v)?;
        not_null(value, d)
    }

    fn write(&self, e: &mut Encoder, v: WireVersion) -> Result<(), EncodeError> {
        Self::write_nullable(Some(self), e, v)
    }

    fn read_nullable(d: &mut Decoder, v: WireVersion) -> Result<Option<Self>, DecodeError> {
        d.nullable_string(v.flexible)
    }

    fn write_nullable(value: Option<&Self>, e: &mut Encoder, v: WireVersion) -> Result<(), EncodeError> {
        e.nullable_string(value.map(|text| text.as_bytes().as_ref()), v.flexible)
    }
}

impl Wire for Bytes {
    const MIN_LEN: usize = 1;

    fn read(d: &mut Decoder, v: WireVersion) -> Result<Self, DecodeError> {
        let value = Self::read_nullable(d, v)?;
        not_null(value, d)
    }

    fn write(&self, e: &mut Encoder, v: WireVersion) -> Result<(), EncodeError> {
        Self::write_nullable(Some(self), e, v)
    }

    fn read_nullable(d: &mut Decoder, v: WireVersion) -> Result<Option<Self>, DecodeError> {
        d.nullable_bytes(v.flexible)
    }

    fn write_nullable(value: Option<&Self>, e: &mut Encoder, v: WireVersion) -> Result<(), EncodeError> {
        e.nullable_bytes(value, v.flexible)
    }
}

impl Wire for RecordBytes {
    const MIN_LEN: usize = 1;

    fn read(d: &mut Decoder, v: WireVersion) -> Result<Self, DecodeError> {
        Bytes::read(d, v).map(Self::from)
    }

    fn write(&self, e: &mut Encoder, v: WireVersion) -> Result<(), EncodeError> {
        Self::write_nullable(Some(self), e, v)
    }

    fn read_nullable(d: &mut Decoder, v: WireVersion) -> Result<Option<Self>, DecodeError> {
        Ok(d.nullable_bytes(v.flexible)?.map(Self::from))
    }

    fn write_nullable(value: Option<&Self>, e: &mut Encoder, v: WireVersion) -> Result<(), EncodeError> {
        e.nullable_pieces(value.map(Self::pieces), v.flexible)
    }
}

/// Reserved for an array before its first element was read; it grows from there.
const MOST_RESERVED_BYTES: usize = 64 << 10;

impl<T: Wire> Wire for Vec<T> {
    const MIN_LEN: usize = 1;

    fn read(d: &mut Decoder, v: WireVersion) -> Result<Self, DecodeError> {
        let value = Self::read_nullable(d, v)?;
        not_null(value, d)
    }

    fn write(&self, e: &mut Encoder, v: WireVersion) -> Result<(), EncodeError> {
        Self::write_nullable(Some(self), e, v)
    }

    fn read_nullable(d: &mut Decoder, v: WireVersion) -> Result<Option<Self>, DecodeError> {
        let Some(len) = d.array_length(v.flexible, T::MIN_LEN, size_of::<T>())? else { return Ok(None) };
        let mut elements = Self::with_capacity(len.min(MOST_RESERVED_BYTES / size_of::<T>().max(1)));
        for _ in 0..len {
            elements.push(T::read(d, v)?);
        }
        Ok(Some(elements))
    }

    fn write_nullable(value: Option<&Self>, e: &mut Encoder, v: WireVersion) -> Result<(), EncodeError> {
        e.length(value.map(Self::len), v.flexible)?;
        for element in value.into_iter().flatten() {
            element.write(e, v)?;
        }
        Ok(())
    }
}

fn not_null<T>(value: Option<T>, d: &Decoder) -> Result<T, DecodeError> {
    value.ok_or_else(|| d.error(DecodeErrorKind::UnexpectedNull))
}
