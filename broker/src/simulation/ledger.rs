//! What producers were told and what consumers saw of each partition, and whether the two agree.

use std::collections::BTreeMap;

/// A record: whose, and which of that producer's records for the partition, from 0 and without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RecordId {
    pub(super) producer: u16,
    pub(super) number: u64,
}

impl RecordId {
    pub(super) fn encode(self) -> Vec<u8> {
        [&self.producer.to_be_bytes()[..], &self.number.to_be_bytes()].concat()
    }

    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let (producer, number) = value.split_first_chunk()?;
        let number = u64::from_be_bytes(number.try_into().ok()?);
        Some(Self { producer: u16::from_be_bytes(*producer), number })
    }
}

impl std::fmt::Display for RecordId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "record {} of producer {}", self.number, self.producer)
    }
}

/// See the module documentation. Errors are findings.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// By base offset: the first record of a batch, and how many.
    acknowledged: BTreeMap<i64, (RecordId, u64)>,
    /// By offset: the record and the leader epoch of its batch.
    seen: Vec<(RecordId, i32)>,
    /// Records that producers have made and that were all acknowledged.
    made: BTreeMap<u16, u64>,
}

impl Ledger {
    /// `count` records from `first` on were acknowledged at `base_offset`.
    pub(super) fn acknowledge(
        &mut self,
        first: RecordId,
        count: u64,
        base_offset: i64,
    ) -> Result<(), String> {
        let end = base_offset + count.cast_signed();
        self.made.insert(first.producer, first.number + count);
        if let Some((base, (other, others))) = self.acknowledged.range(..end).next_back()
            && base + others.cast_signed() > base_offset
        {
            return Err(format!(
                "offsets {base_offset} to {end} were acknowledged for {first}, and those from {base} for {other}"
            ));
        }
        self.acknowledged.insert(base_offset, (first, count));
        Ok(())
    }

    /// A consumer saw `id` at `offset`.
    pub(super) fn see(&mut self, offset: i64, id: RecordId, leader_epoch: i32) -> Result<(), String> {
        let place = usize::try_from(offset).map_err(|_| format!("a record at offset {offset}"))?;
        match self.seen.get(place) {
            Some(before) if *before == (id, leader_epoch) => Ok(()),
            Some((before, epoch)) => Err(format!(
                "offset {offset} held {before} of leader epoch {epoch} and now holds {id} of {leader_epoch}"
            )),
            None if place > self.seen.len() => Err(format!("offsets before {offset} are missing")),
            None => {
                let last = self.seen.last().map_or(-1, |(_, epoch)| *epoch);
                self.seen.push((id, leader_epoch));
                if leader_epoch < last {
                    return Err(format!("offset {offset} is of leader epoch {leader_epoch}, after {last}"));
                }
                Ok(())
            }
        }
    }

    /// First offset that no consumer has seen.
    pub(super) fn seen_end(&self) -> i64 {
        i64::try_from(self.seen.len()).unwrap_or(i64::MAX)
    }

    pub(super) fn seen(&self) -> &[(RecordId, i32)] {
        &self.seen
    }

    pub(super) fn acknowledged_records(&self) -> u64 {
        self.acknowledged.values().map(|(_, count)| count).sum()
    }

    /// Compares all that was acknowledged with all that was seen, once everything is.
    pub(super) fn verify(&self) -> Vec<String> {
        let mut findings = Vec::new();
        for (base, (first, count)) in &self.acknowledged {
            for n in 0..*count {
                let (offset, id) = (base + n.cast_signed(), RecordId { number: first.number + n, ..*first });
                let found = usize::try_from(offset).ok().and_then(|place| self.seen.get(place));
                if found.is_none_or(|(seen, _)| *seen != id) {
                    findings.push(format!("{id} was acknowledged at offset {offset}, where {found:?} is"));
                }
            }
        }
        let mut next: BTreeMap<u16, u64> = BTreeMap::new();
        for (offset, (id, _)) in self.seen.iter().enumerate() {
            let expected = next.entry(id.producer).or_default();
            if id.number != *expected {
                findings.push(format!("{id} is at offset {offset}, where {expected} was to come"));
            }
            *expected = (*expected).max(id.number + 1);
        }
        for (producer, made) in &self.made {
            let found = next.get(producer).copied().unwrap_or_default();
            // One more may have been written and not answered.
            if found < *made {
                findings.push(format!(
                    "producer {producer} has {made} records acknowledged, and {found} are there"
                ));
            }
        }
        findings
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    fn id(producer: u16, number: u64) -> RecordId {
        RecordId { producer, number }
    }

    fn healthy() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.acknowledge(id(0, 0), 2, 0).unwrap();
        ledger.acknowledge(id(1, 0), 1, 2).unwrap();
        for (offset, id) in (0..).zip([id(0, 0), id(0, 1), id(1, 0)]) {
            ledger.see(offset, id, 1).unwrap();
        }
        ledger
    }

    #[test]
    fn what_is_acknowledged_and_seen_in_order_once_is_well() {
        assert_eq!(healthy().verify(), Vec::<String>::new());
        assert_eq!(RecordId::decode(&id(3, 9).encode()), Some(id(3, 9)));
    }

    #[test]
    fn lost_moved_repeated_and_replaced_records_are_found() {
        let mut lost = healthy();
        lost.seen.pop();
        assert!(lost.verify()[0].contains("record 0 of producer 1 was acknowledged at offset 2"));
        let mut twice = healthy();
        twice.see(3, id(0, 0), 1).unwrap();
        assert!(twice.verify()[0].contains("at offset 3"));
        assert!(healthy().see(1, id(0, 5), 1).unwrap_err().contains("offset 1 held"));
        assert!(healthy().see(9, id(0, 5), 1).is_err(), "a gap");
        assert!(healthy().see(3, id(0, 2), 0).is_err(), "a leader of before");
        assert!(healthy().acknowledge(id(0, 2), 4, 1).is_err(), "offsets given out twice");
    }
}
