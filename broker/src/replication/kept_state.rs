//! What a partition keeps in the checkpoints of its log: its producers' state, and the high watermark.
//!
//! Encoded as a version, the high watermark and what [`ProducerStates`] makes of itself. Version 1 was the latter alone,
//! which begins with the same byte.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::producer_state::{ProducerStates, SnapshotError};

const VERSION: u8 = 2;

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeptState {
    /// Records below were committed; `None` if that was not kept.
    pub(super) high_watermark: Option<i64>,
    pub(super) producers: ProducerStates,
}

impl KeptState {
    /// `now_ms` is the time of a steady clock, here and in [`decode`](Self::decode).
    pub(super) fn encode(high_watermark: i64, producers: &ProducerStates, now_ms: i64) -> Bytes {
        let producers = producers.encode(now_ms);
        let mut out = BytesMut::with_capacity(9 + producers.len());
        out.put_u8(VERSION);
        out.put_i64(high_watermark);
        out.put(producers);
        out.freeze()
    }

    /// Reads what [`encode`](Self::encode) has written, or an earlier version.
    pub(super) fn decode(bytes: &[u8], now_ms: i64) -> Result<Self, SnapshotError> {
        let mut rest = bytes;
        let mut high_watermark = None;
        if rest.first() == Some(&VERSION) {
            rest.advance(1);
            high_watermark = Some(rest.try_get_i64().map_err(|_| SnapshotError)?);
        }
        Ok(Self { high_watermark, producers: ProducerStates::decode(rest, now_ms)? })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use millrace_protocol::records::BatchHeader;

    use super::*;
    use crate::storage::batch::samples::producer_batch;

    fn producers() -> ProducerStates {
        let mut producers = ProducerStates::default();
        producers.record(&BatchHeader::parse(&producer_batch((7, 0, 3), &[1_000], b"v")).unwrap(), 5);
        producers
    }

    #[test]
    fn the_kept_state_comes_back() {
        let kept = KeptState::decode(&KeptState::encode(42, &producers(), 5), 5).unwrap();
        assert_eq!(kept, KeptState { high_watermark: Some(42), producers: producers() });
    }

    #[test]
    fn producers_that_an_earlier_version_has_kept_come_back_without_a_high_watermark() {
        let mut earlier = producers().encode(5).to_vec();
        earlier[0] = 1;
        let kept = KeptState::decode(&earlier, 5).unwrap();
        assert_eq!(kept, KeptState { high_watermark: None, producers: producers() });
    }

    #[test]
    fn damage_is_an_error() {
        let whole = KeptState::encode(42, &producers(), 5);
        for length in 0..whole.len() {
            assert_eq!(KeptState::decode(&whole[..length], 5), Err(SnapshotError));
        }
        let longer = [&whole[..], &[0]].concat();
        assert_eq!(KeptState::decode(&longer, 5), Err(SnapshotError));
    }
}
