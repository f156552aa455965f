//! Random instances of messages, from a seed.

use bytes::Bytes;
use uuid::Uuid;

use crate::wire::{RawTaggedField, RecordBytes, StrBytes};

/// A source of random values; the same seed gives the same values.
#[derive(Debug, Clone)]
pub struct Gen {
    state: u64,
}

impl Gen {
    /// A source that starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// 64 random bits (SplitMix64).
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// A value that `version` can carry.
    pub fn value<T: Arbitrary>(&mut self, version: i16) -> T {
        T::arbitrary(self, version)
    }

    /// Null one time in three.
    pub fn nullable<T: Arbitrary>(&mut self, version: i16) -> Option<T> {
        (self.below(3) > 0).then(|| T::arbitrary(self, version))
    }

    /// Mostly none.
    pub fn unknown_tags(&mut self) -> Vec<RawTaggedField> {
        let count = self.below(8).saturating_sub(5);
        // Far from the tags that schemas define.
        (0..count)
            .map(|i| RawTaggedField { tag: 1000 + u32::try_from(i).unwrap_or(0), data: self.value(0) })
            .collect()
    }
}

/// A type with random instances.
pub trait Arbitrary {
    /// A random instance that `version` can carry; what it cannot carry has its default.
    fn arbitrary(g: &mut Gen, version: i16) -> Self;
}

macro_rules! from_bits {
    ($($type:ty),*) => {$(
        impl Arbitrary for $type {
            fn arbitrary(g: &mut Gen, _: i16) -> Self {
                // Small numbers are the interesting ones half of the time.
                let bits = g.bits();
                let bits = if g.below(2) == 0 { bits % 3 } else { bits };
                <$type>::from_le_bytes(*bits.to_le_bytes().first_chunk().expect("no type is wider"))
            }
        }
    )*};
}

from_bits!(i8, i16, u16, i32, u32, i64);

impl Arbitrary for f64 {
    fn arbitrary(g: &mut Gen, _: i16) -> Self {
        f64::from(i32::arbitrary(g, 0)) / 16.0
    }
}

impl Arbitrary for bool {
    fn arbitrary(g: &mut Gen, _: i16) -> Self {
        g.below(2) == 1
    }
}

impl Arbitrary for Uuid {
    fn arbitrary(g: &mut Gen, _: i16) -> Self {
        if g.below(4) == 0 { Self::nil() } else { Self::from_u64_pair(g.bits(), g.bits()) }
    }
}

impl Arbitrary for StrBytes {
    fn arbitrary(g: &mut Gen, _: i16) -> Self {
        let len = if g.below(20) == 0 { 200 } else { g.below(6) };
        (0..len).map(|_| ['a', 'Z', '0', '.', 'ß', '→', '𝄞'][g.below(7) as usize]).collect::<String>().into()
    }
}

impl Arbitrary for Bytes {
    fn arbitrary(g: &mut Gen, _: i16) -> Self {
        let len = if g.below(20) == 0 { 300 } else { g.below(6) };
        (0..len).map(|_| g.bits().to_le_bytes()[0]).collect()
    }
}

impl Arbitrary for RecordBytes {
    fn arbitrary(g: &mut Gen, version: i16) -> Self {
        if g.below(2) == 0 { Bytes::arbitrary(g, version).into() } else { Vec::arbitrary(g, version).into() }
    }
}

impl<T: Arbitrary> Arbitrary for Vec<T> {
    fn arbitrary(g: &mut Gen, version: i16) -> Self {
        (0..g.below(4)).map(|_| T::arbitrary(g, version)).collect()
    }
}
