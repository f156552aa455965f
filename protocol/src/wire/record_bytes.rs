//! Payloads of record batches.

use bytes::{Bytes, BytesMut};

use super::Opaque;

/// Record batches of one partition, one after the other: in one piece of memory, as requests bring them, or in several,
/// as a log finds them. How they are cut makes no difference to what they are, and none on the wire.
#[derive(Clone, Debug)]
pub struct RecordBytes(Pieces);

#[derive(Clone)]
enum Pieces {
    One(Bytes),
    Many(Vec<Bytes>),
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let len: usize = self.as_slice().iter().map(Bytes::len).sum();
        write!(f, "<{len} bytes>")
    }
}

impl Pieces {
    fn as_slice(&self) -> &[Bytes] {
        match self {
            Self::One(bytes) => std::slice::from_ref(bytes),
            Self::Many(pieces) => pieces,
        }
    }
}

impl RecordBytes {
    /// No bytes.
    pub const fn new() -> Self {
        Self(Pieces::One(Bytes::new()))
    }

    /// Bytes in all pieces.
    pub fn len(&self) -> usize {
        self.pieces().iter().map(Bytes::len).sum()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.pieces().iter().all(Bytes::is_empty)
    }

    /// The pieces in order.
    pub fn pieces(&self) -> &[Bytes] {
        self.0.as_slice()
    }

    /// All bytes in one piece. Copies them if there are several.
    pub fn into_bytes(self) -> Bytes {
        match self.0 {
            Pieces::One(bytes) => bytes,
            Pieces::Many(mut pieces) if pieces.len() == 1 => pieces.remove(0),
            Pieces::Many(pieces) => {
                let mut joined = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
                pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
                joined.freeze()
            }
        }
    }
}

impl Default for RecordBytes {
    fn default() -> Self {
        Self::new()
    }
}

impl From<Bytes> for RecordBytes {
    fn from(bytes: Bytes) -> Self {
        Self(Pieces::One(bytes))
    }
}

impl From<Vec<Bytes>> for RecordBytes {
    fn from(pieces: Vec<Bytes>) -> Self {
        Self(Pieces::Many(pieces))
    }
}

impl Eq for RecordBytes {}

impl PartialEq for RecordBytes {
    fn eq(&self, other: &Self) -> bool {
        let bytes = |records: &Self| records.pieces().iter().flatten().copied().collect::<Vec<u8>>();
        self.len() == other.len() && bytes(self) == bytes(other)
    }
}

impl From<&RecordBytes> for Opaque {
    fn from(records: &RecordBytes) -> Self {
        Self(Some(records.len()))
    }
}

impl From<&Option<RecordBytes>> for Opaque {
    fn from(records: &Option<RecordBytes>) -> Self {
        Self(records.as_ref().map(RecordBytes::len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_records_are_cut_makes_no_difference() {
        let whole = RecordBytes::from(Bytes::from_static(b"abcdef"));
        let cut =
            RecordBytes::from(vec![Bytes::from_static(b"ab"), Bytes::new(), Bytes::from_static(b"cdef")]);
        assert_eq!(whole, cut);
        assert_eq!(cut.len(), 6);
        assert_ne!(cut, RecordBytes::from(Bytes::from_static(b"abcdeF")));
        assert_eq!(cut.into_bytes(), whole.into_bytes());
        assert!(RecordBytes::from(Vec::new()).is_empty());
    }
}
