//! What must hold at any time, looked at from outside, after every step of a run. Each check is one method.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::ledger::{Ledger, RecordId};
use super::machine::{Machine, Running};
use super::plan::Plan;
use super::trace::{Trace, hash};
use super::workload::TOPIC;
use crate::metadata::image::{BrokerId, MetadataImage, NO_LEADER, PartitionImage, TopicIdPartition};
use crate::replication::Partition;
use crate::storage::sim_store::Batch;

/// What is remembered of a run.
pub(super) struct Checks {
    plan: Rc<Plan>,
    trace: Rc<Trace>,
    machines: Vec<Rc<Machine>>,
    /// Machines, each with the run of its broker, by partition and leader epoch.
    leaders: BTreeMap<(TopicIdPartition, i32), (usize, u64)>,
    /// Raft leaders by term.
    terms: BTreeMap<u64, u64>,
    /// Hashes of metadata images by log index.
    images: BTreeMap<u64, u64>,
    /// Last image of each machine that was looked at.
    looked_at: BTreeMap<usize, Arc<MetadataImage>>,
    /// Batches below the high watermark that any leader ever had.
    committed: BTreeMap<TopicIdPartition, History>,
    /// The latest state of each partition that any machine has.
    newest: BTreeMap<TopicIdPartition, PartitionImage>,
}

/// A committed batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Committed {
    base_offset: i64,
    next_offset: i64,
    leader_epoch: i32,
    crc: u32,
}

impl Committed {
    fn of(batch: &Batch) -> Self {
        Self {
            base_offset: batch.header.base_offset,
            next_offset: batch.header.next_offset(),
            leader_epoch: batch.header.partition_leader_epoch,
            crc: batch.header.crc,
        }
    }
}

/// What is committed of a partition, each batch with the epoch of the leader that moved its high watermark past it.
type History = Vec<(Committed, i32)>;

impl Checks {
    pub(super) fn new(plan: Rc<Plan>, trace: Rc<Trace>, machines: Vec<Rc<Machine>>) -> Self {
        Self {
            plan,
            trace,
            machines,
            leaders: BTreeMap::new(),
            terms: BTreeMap::new(),
            images: BTreeMap::new(),
            looked_at: BTreeMap::new(),
            committed: BTreeMap::new(),
            newest: BTreeMap::new(),
        }
    }

    /// Looks at everything.
    pub(super) fn look(&mut self, elapsed: Duration) {
        for running in self.machines.iter().filter_map(|machine| machine.running()) {
            note_newest(&mut self.newest, &running.metadata.image());
        }
        for machine in self.machines.clone() {
            if let Some(failure) = machine.failure.borrow_mut().take() {
                self.trace.find(elapsed, format!("broker {} has ended: {failure}", machine.number));
            }
            let Some(running) = machine.running() else { continue };
            self.one_raft_leader_per_term(elapsed, &machine, &running);
            let image = running.metadata.image();
            self.images_agree(elapsed, &machine, &image);
            let Some(topic) = image.topic_by_name(TOPIC).cloned() else { continue };
            for (number, state) in (0..).zip(&topic.partitions) {
                let id = TopicIdPartition { topic_id: topic.topic_id, partition: number };
                let Some(partition) = running.replicas.partition(id) else { continue };
                if !partition.role().leads {
                    continue;
                }
                self.one_leader_per_epoch(elapsed, &machine, running.run, &partition);
                self.in_sync_replicas_hold_the_high_watermark(elapsed, &machine, &image, state, &partition);
                self.committed_stays(elapsed, &machine, &partition);
            }
        }
    }

    fn one_raft_leader_per_term(&mut self, elapsed: Duration, machine: &Machine, running: &Running) {
        let status = running.member.quorum();
        if !status.is_leader() {
            return;
        }
        let known = *self.terms.entry(status.term).or_insert_with(|| {
            self.trace
                .say(elapsed, format!("broker {} leads the quorum in term {}", machine.number, status.term));
            status.node_id
        });
        if known != status.node_id {
            self.trace.find(elapsed, format!("two nodes lead the quorum in term {}", status.term));
        }
    }

    /// Every machine's metadata is the same at the same position of the log, at any time.
    fn images_agree(&mut self, elapsed: Duration, machine: &Machine, image: &Arc<MetadataImage>) {
        let before = self.looked_at.insert(machine.number, Arc::clone(image));
        if before.is_some_and(|before| Arc::ptr_eq(&before, image)) {
            return;
        }
        let content = hash(format!("{image:?}").as_bytes());
        self.trace.say(
            elapsed,
            format!("broker {} has metadata {} of term {}", machine.number, image.log_index, image.term),
        );
        let known = *self.images.entry(image.log_index).or_insert(content);
        if known != content {
            self.trace.find(
                elapsed,
                format!("broker {} has other metadata at {} than others", machine.number, image.log_index),
            );
        }
    }

    /// The records of an epoch are those of one run of one broker: another one may not have all of them.
    fn one_leader_per_epoch(
        &mut self,
        elapsed: Duration,
        machine: &Machine,
        run: u64,
        partition: &Partition,
    ) {
        let (id, epoch, number) = (partition.id(), partition.role().leader_epoch, machine.number);
        if let Some((known, known_run)) = self.leaders.get(&(id, epoch)) {
            if (*known, *known_run) == (number, run) {
                return;
            }
            if *known == number {
                self.trace.find(
                    elapsed,
                    format!("broker {number} leads partition {} in epoch {epoch} in two runs", id.partition),
                );
            } else {
                self.trace.find(
                    elapsed,
                    format!("brokers {known} and {number} lead partition {} in epoch {epoch}", id.partition),
                );
            }
            return;
        }
        self.leaders.insert((id, epoch), (number, run));
        self.trace.say(
            elapsed,
            format!("broker {} leads partition {} in epoch {epoch}", machine.number, id.partition),
        );
        self.a_new_leader_holds_everything_committed(elapsed, machine, partition);
    }

    fn a_new_leader_holds_everything_committed(
        &self,
        elapsed: Duration,
        machine: &Machine,
        partition: &Partition,
    ) {
        let held: Vec<Committed> =
            machine.platter().batches(partition.id(), false).iter().map(Committed::of).collect();
        // What later leaders have committed is nothing to one that has not heard of them.
        let epoch = partition.role().leader_epoch;
        let committed = self.committed.get(&partition.id()).map_or(&[][..], |it| it.as_slice());
        let earlier = committed.iter().take_while(|(_, by)| *by < epoch).map(|(batch, _)| batch);
        let missing = earlier.enumerate().find(|(place, batch)| held.get(*place) != Some(*batch));
        if let Some((place, batch)) = missing {
            self.trace.find(
                elapsed,
                format!(
                    "broker {} leads partition {} in epoch {epoch} without what was committed: {batch:?}, it has {:?}",
                    machine.number,
                    partition.id().partition,
                    held.get(place)
                ),
            );
        }
    }

    /// Whether a machine holds for certain what it held as the in-sync replica that the image means.
    fn counts(&self, image: &MetadataImage, state: &PartitionImage, machine: &Machine) -> bool {
        let broker_id = i32::try_from(machine.number).unwrap_or(-1);
        let replica = state.replicas.iter().find(|replica| replica.broker_id == broker_id);
        let on_its_volume = replica.is_some_and(|replica| replica.volume_uuid == machine.volume_uuid());
        let registered = image.brokers.get(&broker_id).map_or(-1, |broker| broker.broker_epoch);
        let has_lost = machine.lost_with.get().is_some_and(|epoch| registered <= epoch);
        on_its_volume && !has_lost
    }

    /// Whether a later state than this one takes the replica away, which may have deleted its log then. That begins another
    /// leader epoch; it may have been brought back since, with a log that begins anew.
    fn is_taken_away(&self, id: TopicIdPartition, state: &PartitionImage, broker_id: BrokerId) -> bool {
        self.newest.get(&id).is_some_and(|newest| {
            newest.leader_epoch > state.leader_epoch && !newest.isr.contains(&broker_id)
        })
    }

    fn in_sync_replicas_hold_the_high_watermark(
        &self,
        elapsed: Duration,
        machine: &Machine,
        image: &MetadataImage,
        state: &PartitionImage,
        partition: &Partition,
    ) {
        let (id, high_watermark) = (partition.id(), partition.high_watermark());
        let there = state.isr.iter().filter(|broker_id| !self.is_taken_away(id, state, **broker_id));
        for member in there.filter_map(|id| self.machines.get(usize::try_from(*id).ok()?)) {
            if !self.counts(image, state, member) {
                continue;
            }
            let end = member.platter().end(id, !self.plan.written);
            if end < high_watermark {
                self.trace.find(
                    elapsed,
                    format!(
                        "the high watermark of partition {} at broker {} is {high_watermark}, and broker {}, \
                         which is in sync, has {end} on its disk",
                        id.partition, machine.number, member.number
                    ),
                );
            }
        }
    }

    /// What was below the high watermark of a leader stays what it was.
    fn committed_stays(&mut self, elapsed: Duration, machine: &Machine, partition: &Partition) {
        let high_watermark = partition.high_watermark();
        let committed = self.committed.entry(partition.id()).or_default();
        let end = committed.last().map_or(0, |(last, _)| last.next_offset);
        if high_watermark <= end {
            return;
        }
        let held = machine.platter().batches(partition.id(), false);
        let place = committed.len().saturating_sub(1);
        let last = committed.last().map(|(batch, _)| *batch);
        let same = held.get(place).map(Committed::of);
        if last.is_some() && last != same {
            self.trace.find(
                elapsed,
                format!(
                    "partition {} at broker {}: {last:?} was committed, and now it is {same:?}",
                    partition.id().partition,
                    machine.number
                ),
            );
            return;
        }
        let epoch = partition.role().leader_epoch;
        let below = held.iter().skip(committed.len()).map(Committed::of);
        let below = below.take_while(|it| it.next_offset <= high_watermark);
        committed.extend(below.map(|batch| (batch, epoch)));
    }

    /// Whether nothing is left to be repaired: everyone is there and in sync, with the same metadata.
    pub(super) fn is_whole(&self) -> bool {
        self.not_whole().is_none()
    }

    /// What is left to be repaired.
    pub(super) fn not_whole(&self) -> Option<String> {
        let running: Vec<Running> = self.machines.iter().filter_map(|machine| machine.running()).collect();
        if running.len() < self.machines.len() {
            return Some("a broker does not run".to_owned());
        }
        let first = running.first()?.metadata.image();
        let voters = if self.plan.machines >= 5 { 5 } else { 3 };
        for one in &running {
            let image = one.metadata.image();
            if image != first {
                return Some(format!("metadata at {} and at {}", image.log_index, first.log_index));
            }
            let quorum = one.member.quorum();
            let retired = |id: &u64| first.retired_nodes.contains_key(id);
            if quorum.voters.len() != voters || quorum.joint || quorum.members.keys().any(retired) {
                return Some(format!("the quorum is {quorum:?}"));
            }
            if !one.state.borrow().in_service {
                return Some("a broker is not in service".to_owned());
            }
        }
        let lacks =
            |state: &PartitionImage| state.isr.len() < state.replicas.len() || state.leader == NO_LEADER;
        for topic in first.topics.values() {
            if let Some(place) = topic.partitions.iter().position(lacks) {
                let state = &topic.partitions[place];
                return Some(format!("partition {place} of {}: {state:?}", topic.name));
            }
        }
        None
    }

    /// After everything was repaired: all replicas are identical, and hold what was acknowledged and seen.
    pub(super) fn replicas_are_identical(&self, elapsed: Duration, ledgers: &[Ledger]) {
        let Some(running) = self.machines.first().and_then(|machine| machine.running()) else { return };
        let image = running.metadata.image();
        let Some(topic) = image.topic_by_name(TOPIC) else {
            self.trace.find(elapsed, "the topic is gone");
            return;
        };
        for ((number, state), ledger) in (0..).zip(&topic.partitions).zip(ledgers) {
            let id = TopicIdPartition { topic_id: topic.topic_id, partition: number };
            let mut first: Option<(usize, Vec<bytes::Bytes>)> = None;
            for replica in state.replica_ids() {
                let Some(machine) = usize::try_from(replica).ok().and_then(|it| self.machines.get(it)) else {
                    continue;
                };
                let batches = machine.platter().batches(id, false);
                for finding in differences(&batches, ledger) {
                    self.trace.find(elapsed, format!("partition {number} on broker {replica}: {finding}"));
                }
                let bytes: Vec<_> = batches.into_iter().map(|batch| batch.bytes).collect();
                match &first {
                    None => first = Some((machine.number, bytes)),
                    Some((other, theirs)) if *theirs != bytes => {
                        let finding = format!("partition {number}: brokers {other} and {replica} differ");
                        self.trace.find(elapsed, finding);
                    }
                    Some(_) => {}
                }
            }
            for finding in ledger.verify() {
                self.trace.find(elapsed, format!("partition {number}: {finding}"));
            }
        }
    }
}

fn note_newest(newest: &mut BTreeMap<TopicIdPartition, PartitionImage>, image: &MetadataImage) {
    let Some(topic) = image.topic_by_name(TOPIC) else { return };
    for (partition, state) in (0..).zip(&topic.partitions) {
        let known = newest
            .entry(TopicIdPartition { topic_id: topic.topic_id, partition })
            .or_insert_with(|| state.clone());
        if state.partition_epoch > known.partition_epoch {
            known.clone_from(state);
        }
    }
}

/// How a replica differs from what consumers saw.
fn differences(batches: &[Batch], ledger: &Ledger) -> Vec<String> {
    let mut findings = Vec::new();
    let mut next = 0;
    for batch in batches {
        if batch.header.base_offset != next {
            findings.push(format!("offset {next} is followed by {}", batch.header.base_offset));
        }
        next = batch.header.next_offset();
        let found = ids(batch);
        let seen = ledger.seen();
        for (offset, id) in (batch.header.base_offset..).zip(found) {
            let there = usize::try_from(offset).ok().and_then(|place| seen.get(place));
            if there.is_some_and(|there| *there != (id, batch.header.partition_leader_epoch)) {
                findings.push(format!("offset {offset} holds {id}, and consumers saw {there:?}"));
            }
        }
    }
    if next < ledger.seen_end() {
        findings.push(format!("it ends at {next}, and consumers saw up to {}", ledger.seen_end()));
    }
    findings
}

fn ids(batch: &Batch) -> Vec<RecordId> {
    let parsed = millrace_protocol::records::batches(batch.bytes.clone()).next().and_then(Result::ok);
    let body = parsed.and_then(|batch| batch.decompress(1 << 20).ok());
    let Some(body) = body else { return Vec::new() };
    body.records().flatten().filter_map(|record| RecordId::decode(record.value?)).collect()
}
