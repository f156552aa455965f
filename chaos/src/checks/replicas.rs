//! What lies on the volumes, read after all brokers have ended: every in-sync replica holds every record up to the
//! highest high watermark that there ever was, the same bytes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Weak};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use millrace_broker::metadata::image::TopicIdPartition;
use millrace_broker::storage::journal::{JournalStore, JournalStoreOptions};
use millrace_broker::storage::{
    LogEnds, LogListener, LogSettings, LogStore as _, PartitionLog, ReadRange, Reader, StorageError, Wakes,
};
use millrace_broker::volume::Volume;
use millrace_protocol::records::batches;
use uuid::Uuid;

use super::cluster::ClusterView;
use crate::workload::ledger::{Ledger, PartitionName, Seen};
use crate::workload::record::RecordId;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// Most bytes of the records of one batch.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// Hears nothing: nobody appends.
struct Silent;

impl LogListener for Silent {
    fn durable_end_moved(&self, _: i64, _: u64) -> Wakes {
        Wakes::default()
    }
    fn store_failed(&self) {}
}

/// The store of a broker that has ended.
#[derive(Debug)]
pub struct StoppedBroker {
    number: usize,
    store: JournalStore,
    // Held for its lock.
    _volume: Volume,
}

impl StoppedBroker {
    /// Opens the volume of broker `number`, as a start would: what a crash left is recovered.
    ///
    /// # Errors
    /// The broker still runs, or the volume is damaged.
    pub fn open(number: usize, data_dir: &Path) -> Result<Self> {
        let what = || format!("opening the volume of broker {number}");
        let cluster =
            Volume::cluster_id_of(data_dir).with_context(what)?.context("the volume is not formatted")?;
        let volume = Volume::open_or_format(data_dir, cluster).with_context(what)?;
        let options = JournalStoreOptions::default();
        let store = JournalStore::open(data_dir, volume.volume_uuid(), options).with_context(what)?;
        Ok(Self { number, store, _volume: volume })
    }
}

impl Drop for StoppedBroker {
    fn drop(&mut self) {
        self.store.close();
    }
}

/// What lies on the volume of a broker that has ended: one line for each log.
///
/// # Errors
/// The volume or a log cannot be read.
pub fn inspect(data_dir: &Path) -> Result<Vec<String>> {
    let broker = StoppedBroker::open(0, data_dir)?;
    let mut lines = Vec::new();
    for log in broker.store.list() {
        let TopicIdPartition { topic_id, partition } = log.partition;
        let (ends, batches) = read(&broker.store, topic_id, partition)?;
        let bytes: usize = batches.iter().map(Bytes::len).sum();
        lines.push(format!(
            "{topic_id} {partition}: {} to {}, {} batches of {bytes} bytes{}",
            ends.log_start,
            ends.durable_end,
            batches.len(),
            holes(&ends, &batches).map(|hole| format!("; {hole}")).collect::<String>(),
        ));
    }
    Ok(lines)
}

/// Offsets that a log ought to have and does not.
fn holes<'a>(ends: &LogEnds, stored: &'a [Bytes]) -> impl Iterator<Item = String> + 'a {
    let mut next = ends.log_start;
    let headers =
        stored.iter().cloned().flat_map(batches).filter_map(Result::ok).map(|batch| *batch.header());
    headers.filter_map(move |header| {
        let expected = std::mem::replace(&mut next, header.next_offset());
        (header.base_offset > expected)
            .then(|| format!("offsets {expected} to {} are missing", header.base_offset - 1))
    })
}

/// Compares every in-sync replica of every partition with what consumers saw, and with the others byte for byte.
///
/// # Errors
/// A log cannot be read.
pub fn compare(brokers: &[StoppedBroker], view: &ClusterView, ledger: &Ledger) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for place in 0..ledger.len() {
        let name = ledger.name(place).clone();
        let topic =
            view.get(&name.topic).with_context(|| format!("topic {} is not described", name.topic))?;
        let partition = topic.partitions.get(&name.partition).context("a partition is not described")?;
        let mut first: Option<(usize, Vec<Bytes>)> = None;
        for id in &partition.isr {
            let broker = broker(brokers, *id)?;
            let (ends, batches) = read(&broker.store, topic.topic_id, name.partition)?;
            let number = broker.number;
            let partition = ledger.partition(place);
            for finding in judge(&ends, &batches, partition.seen(), partition.latest()) {
                findings.push(format!("{name} on broker {number}, in sync: {finding}"));
            }
            match &first {
                None => first = Some((number, batches)),
                Some((other, theirs)) => {
                    if let Some(finding) = differ(theirs, &batches) {
                        findings.push(format!("{name}: brokers {other} and {number} differ: {finding}"));
                    }
                }
            }
        }
    }
    Ok(findings)
}

/// Compares every in-sync replica of the partitions that are still there with the end of what was acknowledged in them.
///
/// # Errors
/// A log cannot be read.
pub fn look_for(
    brokers: &[StoppedBroker],
    view: &ClusterView,
    acknowledged: &BTreeMap<PartitionName, i64>,
) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for (name, end) in acknowledged {
        let Some(topic) = view.get(&name.topic) else { continue };
        let partition = topic.partitions.get(&name.partition).context("a partition is not described")?;
        for id in &partition.isr {
            let (ends, batches) = read(&broker(brokers, *id)?.store, topic.topic_id, name.partition)?;
            let wrong = judge(&ends, &batches, &[], *end);
            findings.extend(wrong.iter().map(|finding| format!("{name} on broker {id}, in sync: {finding}")));
        }
    }
    Ok(findings)
}

fn broker(brokers: &[StoppedBroker], id: i32) -> Result<&StoppedBroker> {
    let broker = brokers.iter().find(|broker| i32::try_from(broker.number) == Ok(id));
    broker.with_context(|| format!("there is no broker {id}"))
}

/// Everything durable in a log.
fn read(store: &JournalStore, topic_id: Uuid, partition: i32) -> Result<(LogEnds, Vec<Bytes>)> {
    let partition = TopicIdPartition { topic_id, partition };
    let silent: Arc<dyn LogListener> = Arc::new(Silent);
    let weak: Weak<dyn LogListener> = Arc::downgrade(&silent);
    let log = store.open(partition, LogSettings::default(), weak)?.log;
    let ends = log.ends();
    let mut all = Vec::new();
    let mut offset = ends.log_start;
    while offset < ends.durable_end {
        let before = offset;
        for batch in batches(read_from(&*log, offset)?) {
            let batch = batch?;
            batch.verify_crc()?;
            offset = batch.header().next_offset();
            all.push(batch.bytes().clone());
        }
        anyhow::ensure!(offset > before, "nothing can be read at offset {before} of {partition:?}");
    }
    Ok((ends, all))
}

fn read_from(log: &dyn PartitionLog, offset: i64) -> Result<Bytes, StorageError> {
    let range =
        ReadRange { reader: Reader::Consumer, offset, until: i64::MAX, max_bytes: CHUNK, at_least_one: true };
    log.read(range).map(millrace_protocol::RecordBytes::into_bytes)
}

/// A replica's log against what consumers saw, and the highest LATEST that clients were told: all of it must be there,
/// durably.
fn judge(ends: &LogEnds, stored: &[Bytes], seen: &[Seen], latest: i64) -> Vec<String> {
    let mut findings = Vec::new();
    if ends.log_start != 0 {
        findings.push(format!("the log starts at {}, and nothing was to be deleted", ends.log_start));
    }
    if let Some(first) = usize::try_from(ends.durable_end).ok().and_then(|end| seen.get(end)) {
        findings.push(format!(
            "the log ends at {}, below offset {} that consumers have read to: from {} of leader epoch {} on nothing is there",
            ends.durable_end,
            seen.len(),
            first.id,
            first.leader_epoch
        ));
    }
    if ends.durable_end < latest {
        findings
            .push(format!("the log ends at {}, and the high watermark had been {latest}", ends.durable_end));
    }
    findings.extend(holes(ends, stored));
    let different = stored.iter().cloned().find_map(|bytes| differs_from_seen(bytes, seen));
    findings.extend(different);
    findings
}

/// The first record in a stored batch that is not what consumers saw there.
fn differs_from_seen(bytes: Bytes, seen: &[Seen]) -> Option<String> {
    for batch in batches(bytes) {
        let Ok(batch) = batch else { return Some("a batch cannot be parsed".to_owned()) };
        let header = *batch.header();
        let Ok(body) = batch.decompress(MAX_BATCH_BYTES) else {
            return Some(format!("the batch at offset {} cannot be read", header.base_offset));
        };
        for record in body.records().flatten() {
            let Some(there) = usize::try_from(record.offset).ok().and_then(|place| seen.get(place)) else {
                continue; // above the high watermark anything may be
            };
            let id = record.value.and_then(RecordId::decode);
            if id != Some(there.id) || header.partition_leader_epoch != there.leader_epoch {
                let what = id.map_or_else(|| "something else".to_owned(), |id| id.to_string());
                return Some(format!(
                    "offset {} holds {what} of leader epoch {}, consumers saw {} of leader epoch {}",
                    record.offset, header.partition_leader_epoch, there.id, there.leader_epoch
                ));
            }
        }
    }
    None
}

/// How two replicas' logs differ, over the offsets that both have.
fn differ(one: &[Bytes], other: &[Bytes]) -> Option<String> {
    let at = one.iter().zip(other).position(|(one, other)| one != other)?;
    let header =
        |bytes: &Bytes| batches(bytes.clone()).next().and_then(Result::ok).map(|batch| *batch.header());
    Some(format!("{:?} and {:?}", header(&one[at]), header(&other[at])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_protocol::records::{BatchBuilder, Compression, NewRecord};

    fn id(number: u64) -> RecordId {
        RecordId { producer: 0, number }
    }

    fn stored(offset: i64, numbers: std::ops::Range<u64>, leader_epoch: i32) -> Bytes {
        let mut builder = BatchBuilder::new(Compression::None).base_offset(offset).leader_epoch(leader_epoch);
        for number in numbers {
            builder.push(NewRecord { value: Some(&id(number).encode()), ..Default::default() });
        }
        builder.build()
    }

    fn seen(numbers: std::ops::Range<u64>) -> Vec<Seen> {
        numbers.map(|number| Seen { id: id(number), leader_epoch: 1 }).collect()
    }

    fn ends(log_start: i64, durable_end: i64) -> LogEnds {
        LogEnds { log_start, durable_end, log_end: durable_end, durable_bytes: 0 }
    }

    #[test]
    fn a_replica_may_hold_more_than_was_seen_and_not_less() {
        let batches = [stored(0, 0..2, 1), stored(2, 2..4, 1)];
        assert!(judge(&ends(0, 4), &batches, &seen(0..3), 3).is_empty());
        assert!(judge(&ends(0, 2), &batches[..1], &seen(0..3), 2)[0].contains("below offset 3"));
        let findings = judge(&ends(0, 2), &batches[..1], &seen(0..2), 3);
        assert_eq!(findings, ["the log ends at 2, and the high watermark had been 3"]);
        assert!(judge(&ends(2, 4), &batches[1..], &seen(0..3), 3)[0].contains("starts at 2"));
        assert_eq!(judge(&ends(0, 4), &batches[1..], &seen(0..3), 3), ["offsets 0 to 1 are missing"]);
    }

    #[test]
    fn another_record_or_another_epoch_at_an_offset_is_found() {
        assert!(
            judge(&ends(0, 2), &[stored(0, 5..7, 1)], &seen(0..2), 2)[0].contains("offset 0 holds record 5")
        );
        assert!(judge(&ends(0, 2), &[stored(0, 0..2, 3)], &seen(0..2), 2)[0].contains("leader epoch 3"));
    }

    #[test]
    fn replicas_are_compared_byte_for_byte_as_far_as_both_reach() {
        let (one, other) = ([stored(0, 0..2, 1), stored(2, 2..4, 1)], [stored(0, 0..2, 1)]);
        assert_eq!(differ(&one, &other), None);
        assert!(differ(&one, &[stored(0, 0..2, 1), stored(2, 2..4, 2)]).is_some());
    }
}
