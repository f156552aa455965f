//! Keys of the RocksDB that holds the Raft log.
//!
//! | prefix | then | value | life | since |
//! |---|---|---|---|---|
//! | 1 | log index, u64 | `StoredEntry` | until purged or truncated | 1 |
//! | 2 | | `StoredVote` | replaced | 1 |
//! | 3 | | `StoredLogId`: last position known to be committed | replaced | 1 |
//! | 4 | | `StoredLogId`: last position purged | replaced | 1 |
//! | 5 | | `StoredSnapshot` | replaced | 1 |
//!
//! Numbers are big-endian, so that the order of bytes is the order of the log. Values start with their version
//! (see `schema/internal.schema`). Prefixes are never reused.

const ENTRY: u8 = 1;
pub(super) const VOTE: [u8; 1] = [2];
pub(super) const COMMITTED: [u8; 1] = [3];
pub(super) const PURGED: [u8; 1] = [4];
pub(super) const SNAPSHOT: [u8; 1] = [5];

/// First key behind all entries.
pub(super) const ENTRIES_END: [u8; 1] = [ENTRY + 1];

pub(super) fn entry(index: u64) -> [u8; 9] {
    let mut key = [ENTRY; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

pub(super) fn entry_index(key: &[u8]) -> Option<u64> {
    let (prefix, index) = key.split_first()?;
    (*prefix == ENTRY).then_some(())?;
    Some(u64::from_be_bytes(index.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_are_ordered_as_the_log_is(a: u64, b: u64) {
            prop_assert_eq!(a.cmp(&b), entry(a).cmp(&entry(b)));
            prop_assert_eq!(entry_index(&entry(a)), Some(a));
            prop_assert!(entry(a).as_slice() < ENTRIES_END.as_slice());
        }
    }

    #[test]
    fn other_keys_are_no_entries() {
        for key in [&VOTE[..], &COMMITTED, &PURGED, &SNAPSHOT, &ENTRIES_END, &[], &[ENTRY, 0]] {
            assert_eq!(entry_index(key), None, "{key:?}");
        }
    }
}
