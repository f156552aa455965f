//! Text as a slice of the frame it came in.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use bytes::Bytes;

/// UTF-8 text in shared bytes: cloning and slicing count references instead of copying.
///
/// A slice keeps its whole frame alive: copy what outlives the request ([`StrBytes::detached`]).
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StrBytes(Bytes);

impl StrBytes {
    /// Text without an allocation.
    pub const fn from_static(text: &'static str) -> Self {
        Self(Bytes::from_static(text.as_bytes()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // Checked again, because leaving the check out takes `unsafe`; names are short.
        std::str::from_utf8(&self.0).expect("checked when it was made")
    }

    /// The bytes of the text.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// A copy that does not keep the frame alive.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<Bytes> for StrBytes {
    type Error = std::str::Utf8Error;

    fn try_from(bytes: Bytes) -> Result<Self, Self::Error> {
        std::str::from_utf8(&bytes)?;
        Ok(Self(bytes))
    }
}

impl From<&str> for StrBytes {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<String> for StrBytes {
    fn from(text: String) -> Self {
        Self(Bytes::from(text))
    }
}

impl From<&String> for StrBytes {
    fn from(text: &String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<StrBytes> for String {
    fn from(text: StrBytes) -> Self {
        text.as_str().to_owned()
    }
}

impl Deref for StrBytes {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for StrBytes {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for StrBytes {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

// As `str` hashes itself, which `Borrow` asks for.
impl Hash for StrBytes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl PartialEq<str> for StrBytes {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for StrBytes {
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<String> for StrBytes {
    fn eq(&self, other: &String) -> bool {
        self.0 == other.as_bytes()
    }
}

impl fmt::Debug for StrBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for StrBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn a_map_keyed_by_it_is_searched_by_str() {
        let map = HashMap::from([(StrBytes::from("orders"), 1)]);
        assert_eq!(map.get("orders"), Some(&1));
    }

    #[test]
    fn it_is_a_slice_of_its_frame() {
        let frame = Bytes::from_static(b"..orders");
        let name = StrBytes::try_from(frame.slice(2..)).unwrap();
        assert_eq!(name, "orders");
        assert_eq!(name.as_bytes().as_ptr(), frame[2..].as_ptr());
        assert_ne!(name.detached().as_bytes().as_ptr(), frame[2..].as_ptr());
    }

    #[test]
    fn other_bytes_are_refused() {
        assert!(StrBytes::try_from(Bytes::from_static(&[0xff])).is_err());
    }
}
