//! The last offset of each key, in a bounded piece of memory.
//!
//! Keys are known by a hash of 128 bits (SipHash 1-3) under a key of its own for each map: two keys with one hash would
//! lose a record, and nobody can look for such keys.

use std::hash::Hasher as _;

use siphasher::sip128::{Hasher128 as _, SipHasher13};

/// Slots of which one stays free, so that searches end soon.
const SLOTS_PER_FREE: usize = 5;

/// See the module documentation.
#[derive(Debug)]
pub struct KeyMap {
    /// Open addressing with linear probing; never grows.
    slots: Vec<Slot>,
    used: usize,
    most: usize,
    seed: (u64, u64),
}

/// The map takes no further key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyMapFull;

/// Empty if `next_offset` is 0, so that fresh memory is a map without keys.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    high: u64,
    low: u64,
    next_offset: u64,
}

impl KeyMap {
    /// Bytes that one key takes, at most.
    pub const KEY_BYTES: usize = size_of::<Slot>() * SLOTS_PER_FREE / (SLOTS_PER_FREE - 1);

    /// A map of at most `bytes`, and no larger than `keys` keys need. It takes at least one key.
    pub fn new(bytes: usize, keys: u64) -> Self {
        let needed = usize::try_from(keys).unwrap_or(usize::MAX).saturating_add(1);
        let needed = needed.saturating_add(needed / (SLOTS_PER_FREE - 1) + 1);
        let slots = (bytes / size_of::<Slot>()).clamp(2, needed.max(2));
        let most = (slots - slots / SLOTS_PER_FREE).min(slots - 1);
        Self { slots: vec![Slot::default(); slots], used: 0, most, seed: rand::random() }
    }

    /// Notes that `key` has a record at `offset`, which is not below those noted for it before.
    ///
    /// # Errors
    /// The key is new and there is no room for it.
    pub fn insert(&mut self, key: &[u8], offset: i64) -> Result<(), KeyMapFull> {
        let (high, low) = self.hash(key);
        let at = self.find(high, low);
        if self.slots[at].next_offset == 0 {
            if self.used == self.most {
                return Err(KeyMapFull);
            }
            self.used += 1;
        }
        self.slots[at] = Slot { high, low, next_offset: offset.unsigned_abs() + 1 };
        Ok(())
    }

    /// The last offset noted for `key`.
    pub fn last_offset(&self, key: &[u8]) -> Option<i64> {
        let (high, low) = self.hash(key);
        i64::try_from(self.slots[self.find(high, low)].next_offset.checked_sub(1)?).ok()
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether it holds no key.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// The slot of a hash, or the empty one where it belongs.
    fn find(&self, high: u64, low: u64) -> usize {
        let slots = self.slots.len();
        let mut at = usize::try_from(low % slots as u64).expect("below the number of slots");
        loop {
            let slot = &self.slots[at];
            if slot.next_offset == 0 || (slot.high, slot.low) == (high, low) {
                return at;
            }
            at = if at + 1 == slots { 0 } else { at + 1 };
        }
    }

    fn hash(&self, key: &[u8]) -> (u64, u64) {
        let mut hasher = SipHasher13::new_with_keys(self.seed.0, self.seed.1);
        hasher.write(key);
        let hash = hasher.finish128();
        (hash.h1, hash.h2)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_map_takes_known_keys_only_and_stays_within_its_bytes() {
        for bytes in [0, 100, 1_000, 5_000] {
            let mut map = KeyMap::new(bytes, u64::MAX);
            let mut taken = 0_i64;
            while map.insert(&taken.to_be_bytes(), taken).is_ok() {
                taken += 1;
            }
            assert!(taken >= 1 && map.len() == usize::try_from(taken).unwrap());
            assert!(map.slots.len() * size_of::<Slot>() <= bytes.max(2 * size_of::<Slot>()));
            assert!(map.slots.len() * 4 <= (map.len() + 1) * 5 + 4, "{} of {}", map.len(), map.slots.len());
            assert_eq!(map.insert(&0_i64.to_be_bytes(), 1_000_000), Ok(()));
            assert_eq!(map.last_offset(&0_i64.to_be_bytes()), Some(1_000_000));
            assert_eq!(map.last_offset(&taken.to_be_bytes()), None);
        }
    }

    #[test]
    fn a_map_for_few_keys_is_small_and_takes_them_all() {
        for keys in 0..200_u64 {
            let mut map = KeyMap::new(1 << 30, keys);
            assert!(map.slots.len() < 260);
            (0..keys).for_each(|key| map.insert(&key.to_be_bytes(), 0).unwrap());
        }
    }

    proptest! {
        #[test]
        fn equals_a_map_of_whole_keys(keys in proptest::collection::vec(0_u16..300, 0..600)) {
            let mut map = KeyMap::new(64 << 10, u64::MAX);
            let mut model = HashMap::new();
            for (offset, key) in (0..).zip(&keys) {
                map.insert(&key.to_be_bytes(), offset).unwrap();
                model.insert(*key, offset);
            }
            prop_assert_eq!(map.len(), model.len());
            for key in 0_u16..300 {
                prop_assert_eq!(map.last_offset(&key.to_be_bytes()), model.get(&key).copied());
            }
        }
    }
}
