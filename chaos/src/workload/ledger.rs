//! What producers were told and what consumers saw, and whether the two agree.
//!
//! Judges at once what can be judged at once, the rest when all is read. Every disagreement is a finding, in words
//! that say which record, where.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::lane::Batch;
use super::record::RecordId;
use super::watermark::{Answer, Highest};
use crate::findings::Findings;

/// Findings of one kind that are told; more of the same help nobody.
const TOLD: usize = 20;

/// A partition of the workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionName {
    /// Topic.
    pub topic: String,
    /// Number in the topic.
    pub partition: i32,
}

impl std::fmt::Display for PartitionName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// A batch that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Acknowledged {
    producer: u16,
    first_number: u64,
    count: u16,
    /// Who stored it, if that is known.
    stored_by: Option<usize>,
}

/// A record as consumers saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which.
    pub id: RecordId,
    /// Leader epoch of its batch.
    pub leader_epoch: i32,
}

/// Everything known about one partition.
#[derive(Debug, Default)]
pub struct PartitionLedger {
    /// By base offset.
    acknowledged: BTreeMap<i64, Acknowledged>,
    /// Acknowledged records whose offset was not told.
    without_offset: u64,
    /// By offset.
    seen: Vec<Seen>,
    latest: Highest,
    last_acknowledged: Option<Instant>,
    gaps: Gaps,
}

/// Times without an acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// The longest since it was last asked for.
    pub longest: Duration,
}

impl PartitionLedger {
    /// Enters an acknowledgement.
    ///
    /// # Errors
    /// Its offsets were acknowledged for something else before.
    pub fn acknowledge(
        &mut self,
        producer: u16,
        batch: &Batch,
        base_offset: Option<i64>,
        stored_by: Option<usize>,
        now: Instant,
    ) -> Result<(), String> {
        if let Some(last) = self.last_acknowledged.replace(now) {
            self.gaps.longest = self.gaps.longest.max(now.duration_since(last));
        }
        let Some(base_offset) = base_offset else {
            self.without_offset += u64::from(batch.count);
            return Ok(());
        };
        let new = Acknowledged { producer, first_number: batch.first_number, count: batch.count, stored_by };
        let end = base_offset + i64::from(new.count);
        let overlaps = self.acknowledged.range(..end).next_back();
        if let Some((&other_base, other)) = overlaps
            && other_base + i64::from(other.count) > base_offset
        {
            return Err(format!(
                "offsets {base_offset} to {} were acknowledged for {} and offsets {other_base} to {} for {}",
                end - 1,
                RecordId { producer, number: batch.first_number },
                other_base + i64::from(other.count) - 1,
                RecordId { producer: other.producer, number: other.first_number },
            ));
        }
        self.acknowledged.insert(base_offset, new);
        Ok(())
    }

    /// Enters what a consumer saw at `offset`.
    ///
    /// # Errors
    /// Another record was seen there before, offsets are left out, or an older leader wrote it than the one before.
    pub fn see(&mut self, offset: i64, seen: Seen) -> Result<(), String> {
        let place = usize::try_from(offset).map_err(|_| format!("a record at offset {offset}"))?;
        match self.seen.get(place) {
            Some(before) if before.id == seen.id && before.leader_epoch == seen.leader_epoch => Ok(()),
            Some(before) => Err(format!(
                "offset {offset} held {} of leader epoch {} and now holds {} of leader epoch {}",
                before.id, before.leader_epoch, seen.id, seen.leader_epoch
            )),
            None if place > self.seen.len() => {
                Err(format!("after offset {} came offset {offset}", self.seen.len() as i64 - 1))
            }
            None => {
                let last = self.seen.last().map_or(-1, |last| last.leader_epoch);
                self.seen.push(seen);
                if seen.leader_epoch < last {
                    return Err(format!(
                        "offset {offset} is of leader epoch {}, the one before of {last}",
                        seen.leader_epoch
                    ));
                }
                Ok(())
            }
        }
    }

    /// Enters LATEST, asked for after all others had been entered, and when everything below `read` was read.
    ///
    /// # Errors
    /// It is below these.
    pub fn enter_latest(&mut self, answer: Answer, read: i64) -> Result<(), String> {
        self.latest.enter(answer, read)
    }

    /// The highest LATEST that anybody was told.
    pub fn latest(&self) -> i64 {
        self.latest.offset()
    }

    /// First offset that no consumer has seen.
    pub fn seen_end(&self) -> i64 {
        self.seen.len() as i64
    }

    /// What was seen, by offset.
    pub fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// Records acknowledged.
    pub fn acknowledged_records(&self) -> u64 {
        self.acknowledged.values().map(|batch| u64::from(batch.count)).sum::<u64>() + self.without_offset
    }

    /// The longest time without an acknowledgement since this was last asked, up to now.
    pub fn take_gap(&mut self, now: Instant) -> Duration {
        let open = self.last_acknowledged.map_or(Duration::ZERO, |last| now.duration_since(last));
        let longest = std::mem::take(&mut self.gaps).longest.max(open);
        // What is still open counts for the next one from here.
        self.last_acknowledged = self.last_acknowledged.map(|_| now);
        longest
    }

    /// Compares everything acknowledged with everything seen, once all is read. `made` is how many records each
    /// producer made, all of which were acknowledged.
    pub fn verify(&self, made: &BTreeMap<u16, u64>) -> Vec<String> {
        let mut findings = self.missing();
        findings.extend(self.order(made));
        findings.extend(self.two_leaders());
        findings
    }

    fn missing(&self) -> Vec<String> {
        let mut findings = Vec::new();
        for (base, batch) in &self.acknowledged {
            for n in 0..u64::from(batch.count) {
                let id = RecordId { producer: batch.producer, number: batch.first_number + n };
                let offset = base + n as i64;
                let found = usize::try_from(offset).ok().and_then(|place| self.seen.get(place));
                let what = match found {
                    Some(seen) if seen.id == id => continue,
                    Some(seen) => format!("{} is there", seen.id),
                    None => format!("the log ends at {}", self.seen_end()),
                };
                let by = batch.stored_by.map_or_else(String::new, |by| format!(" by broker {by}"));
                findings.push(format!("{id} was acknowledged{by} at offset {offset}, and {what}"));
            }
        }
        limited(findings, "acknowledged records missing")
    }

    fn order(&self, made: &BTreeMap<u16, u64>) -> Vec<String> {
        let mut findings = Vec::new();
        let mut next: BTreeMap<u16, u64> = BTreeMap::new();
        for (offset, seen) in self.seen.iter().enumerate() {
            let expected = next.entry(seen.id.producer).or_default();
            if seen.id.number != *expected {
                let what = if seen.id.number < *expected { "again" } else { "too early" };
                findings.push(format!("{} came {what} at offset {offset}: {expected} was next", seen.id));
            }
            *expected = (*expected).max(seen.id.number + 1);
        }
        for (producer, made) in made {
            let found = next.get(producer).copied().unwrap_or_default();
            if found != *made {
                findings.push(format!("producer {producer} made records up to {made}, the log has {found}"));
            }
        }
        limited(findings, "records out of order")
    }

    /// A leader epoch belongs to one broker: whoever stores a batch under it.
    fn two_leaders(&self) -> Vec<String> {
        let mut leaders: BTreeMap<i32, usize> = BTreeMap::new();
        let mut findings = Vec::new();
        for (base, batch) in &self.acknowledged {
            let Some(by) = batch.stored_by else { continue };
            let Some(seen) = usize::try_from(*base).ok().and_then(|place| self.seen.get(place)) else {
                continue;
            };
            let known = *leaders.entry(seen.leader_epoch).or_insert(by);
            if known != by {
                findings.push(format!(
                    "in leader epoch {} both broker {known} and broker {by} stored records, the latter at offset {base}",
                    seen.leader_epoch
                ));
            }
        }
        limited(findings, "leaders of one epoch")
    }
}

fn limited(mut findings: Vec<String>, what: &str) -> Vec<String> {
    let left_out = findings.len().saturating_sub(TOLD);
    findings.truncate(TOLD);
    if left_out > 0 {
        findings.push(format!("and {left_out} more {what}"));
    }
    findings
}

/// The ledger of a whole workload.
#[derive(Debug)]
pub struct Ledger {
    partitions: Vec<(PartitionName, Mutex<PartitionLedger>)>,
    findings: Arc<Findings>,
}

impl Ledger {
    /// An empty one, which enters what is wrong among `findings`.
    pub fn new(partitions: Vec<PartitionName>, findings: Arc<Findings>) -> Self {
        let partitions = partitions.into_iter().map(|name| (name, Mutex::default())).collect();
        Self { partitions, findings }
    }

    /// The partitions of the workload.
    pub fn names(&self) -> impl Iterator<Item = &PartitionName> {
        self.partitions.iter().map(|(name, _)| name)
    }

    /// Number of partitions.
    pub fn len(&self) -> usize {
        self.partitions.len()
    }

    /// Whether there are no partitions.
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// Name of the partition at `place`.
    ///
    /// # Panics
    /// There is none.
    pub fn name(&self, place: usize) -> &PartitionName {
        &self.partitions[place].0
    }

    /// The ledger of the partition at `place`.
    ///
    /// # Panics
    /// There is none.
    pub fn partition(&self, place: usize) -> MutexGuard<'_, PartitionLedger> {
        self.partitions[place].1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All findings, those about anything else too.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Enters a finding, and tells it.
    pub fn find(&self, finding: impl Into<String>) {
        self.findings.find(finding);
    }

    /// Enters what went wrong in the partition at `place`.
    pub fn find_in(&self, place: usize, outcome: Result<(), String>) {
        if let Err(finding) = outcome {
            self.find(format!("{}: {finding}", self.name(place)));
        }
    }

    /// Records acknowledged so far, over all partitions.
    pub fn acknowledged_records(&self) -> u64 {
        (0..self.len()).map(|place| self.partition(place).acknowledged_records()).sum()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    fn batch(first_number: u64, count: u16) -> Batch {
        Batch { first_number, count, base_sequence: 0, timestamp: 0 }
    }

    fn seen(producer: u16, number: u64, leader_epoch: i32) -> Seen {
        Seen { id: RecordId { producer, number }, leader_epoch }
    }

    /// Two producers' records, all acknowledged and seen.
    fn healthy() -> PartitionLedger {
        let mut ledger = PartitionLedger::default();
        let now = Instant::now();
        ledger.acknowledge(0, &batch(0, 2), Some(0), Some(1), now).unwrap();
        ledger.acknowledge(1, &batch(0, 1), Some(2), Some(1), now).unwrap();
        ledger.acknowledge(0, &batch(2, 1), Some(3), Some(2), now).unwrap();
        for (offset, record) in
            [seen(0, 0, 1), seen(0, 1, 1), seen(1, 0, 1), seen(0, 2, 2)].iter().enumerate()
        {
            ledger.see(offset as i64, *record).unwrap();
        }
        ledger
    }

    fn made() -> BTreeMap<u16, u64> {
        [(0, 3), (1, 1)].into()
    }

    #[test]
    fn what_is_acknowledged_and_seen_in_order_once_is_well() {
        assert_eq!(healthy().verify(&made()), Vec::<String>::new());
        assert_eq!(healthy().acknowledged_records(), 4);
    }

    #[test]
    fn an_acknowledged_record_that_is_not_there_is_named() {
        let mut ledger = healthy();
        ledger.seen.pop();
        let findings = ledger.verify(&made());
        assert!(
            findings[0].contains("record 2 of producer 0 was acknowledged by broker 2 at offset 3"),
            "{findings:?}"
        );
        assert!(findings[1].contains("made records up to 3, the log has 2"), "{findings:?}");
    }

    #[test]
    fn a_record_twice_or_before_its_turn_is_out_of_order() {
        let mut ledger = healthy();
        ledger.see(4, seen(1, 0, 2)).unwrap();
        ledger.see(5, seen(0, 4, 2)).unwrap();
        let findings = ledger.order(&made());
        assert!(findings[0].contains("again at offset 4") && findings[1].contains("too early at offset 5"));
    }

    #[test]
    fn two_brokers_that_store_under_one_epoch_are_found() {
        let mut ledger = healthy();
        ledger.acknowledge(1, &batch(1, 1), Some(4), Some(1), Instant::now()).unwrap();
        ledger.see(4, seen(1, 1, 2)).unwrap();
        assert!(ledger.two_leaders()[0].contains("epoch 2"));
    }

    #[test]
    fn an_offset_is_acknowledged_once() {
        let mut ledger = healthy();
        let overlap = ledger.acknowledge(1, &batch(1, 3), Some(1), None, Instant::now());
        assert!(overlap.unwrap_err().contains("offsets 1 to 3"));
    }

    #[test]
    fn content_that_changes_gaps_and_falling_epochs_are_found() {
        let mut ledger = healthy();
        assert!(ledger.see(1, seen(0, 1, 1)).is_ok());
        assert!(ledger.see(1, seen(0, 9, 1)).unwrap_err().contains("offset 1 held"));
        assert!(ledger.see(7, seen(0, 9, 2)).unwrap_err().contains("after offset 3 came offset 7"));
        assert!(ledger.see(4, seen(0, 3, 1)).unwrap_err().contains("leader epoch 1"));
    }

    #[test]
    fn the_longest_gap_is_taken_and_an_open_one_counts() {
        let (mut ledger, start) = (PartitionLedger::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        for ms in [0, 10, 300, 310] {
            ledger.acknowledge(0, &batch(0, 1), None, None, at(ms)).unwrap();
        }
        assert_eq!(ledger.take_gap(at(320)), Duration::from_millis(290));
        assert_eq!(ledger.take_gap(at(900)), Duration::from_millis(580));
    }
}
