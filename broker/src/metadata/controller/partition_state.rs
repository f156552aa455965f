//! The next state of a partition: who leads, who is in sync, who is eligible (rule L9, KIP-966). Every change of in-sync
//! replicas goes through [`next_state`].
//!
//! # Who leads
//! The current leader while it may; else the first assigned replica in the ISR that may; else the first one in the ELR,
//! which is then in sync alone; else a leader that is stopping, until it stops; else, by setting or on request, any
//! replica that may (unclean: records are lost); else nobody. A replica may lead when its broker is in service, not
//! stopping, and on the volume that the replica was assigned to: a broker on another volume has lost what it held.
//!
//! # Why a clean election loses nothing
//! Let *committed* be what lies below the highest high watermark that any leader of the partition ever had.
//! **Every member of the ISR and of the ELR holds everything committed.** By induction over changes and watermarks:
//!
//! 1. A leader moves its high watermark to what every member of the ISR *of one image* holds, and of the ISR that it has
//!    proposed if it has, and only while that image's ISR has at least the effective `min.insync.replicas` (rule L5). So
//!    nothing becomes committed that a member of the ISR lacks.
//! 2. The ELR is empty unless the ISR is smaller than the effective minimum of the leader that acts on it. While it is
//!    smaller, nothing becomes committed by that leader: what its members hold is enough for as long as they are in it.
//!    Every change recomputes this with the leader *after* the change: leaders whose configuration files differ have
//!    different minimums, and each one tells its own when it registers. Nobody acts on a state without leader.
//! 3. Who leaves the ISR for the ELR was in the ISR until now, so it holds everything committed (1), and nothing more
//!    becomes committed under the new state (2). A leader that has not heard of the change yet still asks that very
//!    replica before it moves its watermark, as it was in the ISR of the image that this leader acts on; one that acts
//!    on an even older image asks a larger ISR yet, or is below its minimum.
//! 4. Who joins the ISR was proposed by the leader in its current epoch, and counted for the watermark from before the
//!    proposal on (1). It has reached the watermark and the beginning of the epoch (rule L7), so it holds all that the
//!    leader held when it was elected, and all that was committed since. Partition epochs make sure that nothing has
//!    changed in between, broker epochs that it is still the same process on the same volume.
//! 5. A lower minimum may end (2): then the same log entry empties the ELRs that it ends, and leaders see both at once.
//!    A higher one never fills an ELR by itself.
//! 6. Members whose volume was lost, or whose machine went down before everything that they had acknowledged was synced,
//!    hold nothing for certain and leave both sets with the registration that tells of it, before their broker is in
//!    service again.
//!
//! An election from the ISR or the ELR therefore finds everything committed. The new leader's ISR is a subset of both,
//! or one member of the ELR; the members left behind are those of (3). The other members of the old ISR follow by (3)
//! as well: the ELR was not empty, so the new ISR of one is below the minimum again, or the ELR is emptied by (2).
//!
//! The ISR is never empty. The last member stays whatever becomes of it, as nobody has more: fenced, it leads again when
//! it is back; on a lost volume, the partition is offline until an unclean election. Only where the ELR has an intact
//! member does a last one that has lost its records make room for it.
//!
//! # Records that the leader has not synced
//! Followers are sent what the leader has queued, so one of them can have durable what the leader loses. Nothing above needs
//! the leader to be ahead: it is one member of the ISR, and its own durable end counts like theirs (1). What nobody has
//! committed may stay or go, as in Kafka: it stays if a replica that has it is elected, and goes if another is.
//!
//! It must not become something else in the same epoch, since replicas tell where they part by epochs alone (L3). **All
//! records of one leader epoch were appended by one run of one process, which never takes any of them back.** A log is
//! only cut by a follower; and a process that is started again leads in a later epoch, if at all:
//! - Its registration fences it, and a fenced broker does not lead the next state (every way to lead asks whether it may, or
//!   is in service). So the same log entry takes leadership from whatever it led, which begins another epoch.
//! - It leads nothing before its image contains that registration (`caught_up` of the replica manager), and images never go
//!   back. Until then it tells followers of the old epoch that it does not lead.
//!
//! A replica with more of an old epoch than the new leader is told where that epoch ended there, cuts its log to that, and
//! never counts for the watermark before: it has not fetched in the new epoch.
//!
//! # Reassignments
//! A reassignment (KIP-455) brings replicas and marks others as going; nothing else changes. What it brought joins the
//! in-sync replicas as any replica does, and what is going stays in sync until the end: adding replicas takes nobody
//! out. It is complete in the very entry in which every replica of the target is in sync and may lead, whatever that
//! entry is about; no timer and no memory of a controller is needed. Then the others leave the assignment and both sets,
//! and leadership if they had it. A cancellation takes away what was brought, in the same way.
//!
//! Why that loses nothing: both take members out of the sets and add none, except for a leader elected from the ELR. So
//! every member goes on holding everything committed. The leader of before asks a superset of the new ISR before it
//! moves its watermark, until it sees the change (1). What is committed under the new state is held by the new ISR. The
//! effective minimum counts the replicas of before the reassignment, and is computed anew in the entry that ends it (2).
//! A replica that is taken away and brought back later is a new one: its log may be gone. Taking one away begins another
//! leader epoch, in which no leader knows how far it was. A cancellation that leaves nobody in sync elects from the ELR,
//! or else is unclean and has to be allowed like one. Whoever has to lead without being in sync is looked for among the
//! replicas of before first: what was brought has least.
//!
//! # Volumes
//! A replica in the ISR or in the ELR keeps the volume that it was assigned to. Any other one takes the volume that its
//! broker is registered with: it has nothing that counts, and catches up from whatever it has.

use uuid::Uuid;

use super::Settings;
use crate::metadata::image::{BrokerId, BrokerImage, MetadataImage, NO_LEADER, PartitionImage, Replica};

/// Which brokers hold a partition, and which of them a reassignment brings and takes away; see [`PartitionImage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) replicas: Vec<Replica>,
    pub(super) adding: Vec<BrokerId>,
    pub(super) removing: Vec<BrokerId>,
}

impl Assignment {
    pub(super) fn of(state: &PartitionImage) -> Self {
        Self {
            replicas: state.replicas.clone(),
            adding: state.adding.clone(),
            removing: state.removing.clone(),
        }
    }

    /// The replicas that are there when the reassignment is complete, and nothing under way.
    fn completed(self) -> Self {
        let Self { mut replicas, removing, .. } = self;
        replicas.retain(|replica| !removing.contains(&replica.broker_id));
        Self { replicas, adding: Vec::new(), removing: Vec::new() }
    }

    /// The state with this assignment, and without anything about replicas that are not in it.
    fn applied_to(self, state: &PartitionImage) -> PartitionImage {
        let Self { replicas, adding, removing } = self;
        let left = |ids: &[BrokerId]| {
            let is_left = |id: &BrokerId| replicas.iter().any(|replica| replica.broker_id == *id);
            ids.iter().copied().filter(is_left).collect()
        };
        let (isr, elr) = (left(&state.isr), left(&state.elr));
        PartitionImage { replicas, adding, removing, isr, elr, ..*state }
    }
}

/// Which leader is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Election {
    /// The current one if it may lead.
    Usual,
    /// The first assigned replica if it may lead and is in sync.
    Preferred,
    /// Any that may lead, rather than none.
    Unclean,
}

/// What the next state of a partition depends on besides its present one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation<'a> {
    pub(super) image: &'a MetadataImage,
    pub(super) settings: &'a dyn Settings,
    pub(super) topic_id: Uuid,
    pub(super) election: Election,
    /// Broker that may have lost records of this topic that it had acknowledged.
    pub(super) forgetful: Option<BrokerId>,
}

impl<'a> Situation<'a> {
    /// Nothing but the image decides.
    pub(super) fn usual(image: &'a MetadataImage, settings: &'a dyn Settings, topic_id: Uuid) -> Self {
        Self { image, settings, topic_id, election: Election::Usual, forgetful: None }
    }

    fn broker(&self, broker_id: BrokerId) -> Option<&'a BrokerImage> {
        self.image.brokers.get(&broker_id).map(AsRef::as_ref)
    }

    pub(super) fn may_lead(&self, broker_id: BrokerId) -> bool {
        self.broker(broker_id).is_some_and(BrokerImage::may_lead)
    }

    /// Whether the replica has what it once had.
    fn is_intact(&self, state: &PartitionImage, broker_id: BrokerId) -> bool {
        let holds = |replica: &Replica| {
            self.broker(broker_id).is_some_and(|broker| broker.volume_uuid == replica.volume_uuid)
        };
        self.forgetful != Some(broker_id)
            && state.replicas.iter().find(|replica| replica.broker_id == broker_id).is_some_and(holds)
    }

    pub(super) fn may_lead_cleanly(&self, state: &PartitionImage, broker_id: BrokerId) -> bool {
        self.may_lead(broker_id) && self.is_intact(state, broker_id)
    }

    /// Effective `min.insync.replicas` while `leader` leads; without a leader nothing is written, as with too few.
    fn min_in_sync(&self, state: &PartitionImage, leader: BrokerId) -> usize {
        if leader == NO_LEADER {
            return state.replicas.len();
        }
        state.effective_min_in_sync(self.settings.min_insync_replicas(self.image, self.topic_id, leader))
    }
}

/// Whether a replica that is not in sync may become so: rule L7, as far as the controller knows.
pub(super) fn may_join(image: &MetadataImage, replica: &Replica, broker_epoch: i64) -> bool {
    image.brokers.get(&replica.broker_id).is_some_and(|broker| {
        broker.may_lead() && broker.broker_epoch == broker_epoch && broker.volume_uuid == replica.volume_uuid
    })
}

/// State of the partition once these are its in-sync replicas as far as they can be; `None` if it stays as it is.
///
/// Replicas that are in sync already keep their order.
pub(super) fn next_state(
    situation: &Situation<'_>,
    state: &PartitionImage,
    wanted_isr: &[BrokerId],
) -> Option<PartitionImage> {
    next_state_of(situation, state, Assignment::of(state), wanted_isr)
}

/// As [`next_state`], with another assignment. The wanted in-sync replicas must be in it; there must be one, or somebody
/// in the ELR who may lead, or the election must be unclean and have a candidate.
pub(super) fn next_state_of(
    situation: &Situation<'_>,
    before: &PartitionImage,
    assignment: Assignment,
    wanted_isr: &[BrokerId],
) -> Option<PartitionImage> {
    let mut state = assignment.applied_to(before);
    let mut elected = elect(situation, &state, wanted_isr);
    if is_complete(situation, &state, &elected) {
        state = Assignment::of(&state).completed().applied_to(&state);
        let target: Vec<BrokerId> =
            elected.isr.into_iter().filter(|id| state.replica_ids().any(|replica| replica == *id)).collect();
        elected = elect(situation, &state, &target);
    }
    let elr = eligible(situation, &state, &elected);
    let replicas: Vec<Replica> = state
        .replicas
        .iter()
        .map(|replica| {
            let counts = elected.isr.contains(&replica.broker_id) || elr.contains(&replica.broker_id);
            match situation.broker(replica.broker_id) {
                Some(broker) if !counts || elected.unclean => {
                    Replica { volume_uuid: broker.volume_uuid, ..*replica }
                }
                _ => *replica,
            }
        })
        .collect();
    debug_assert!(!elected.isr.is_empty(), "somebody is always in sync: {before:?}");
    let is_taken_away = |id: BrokerId| !state.replica_ids().any(|left| left == id);
    let new_epoch = elected.leader != before.leader || before.replica_ids().any(is_taken_away);
    let next = PartitionImage {
        replicas,
        isr: elected.isr,
        elr,
        leader: elected.leader,
        leader_epoch: before.leader_epoch + i32::from(new_epoch),
        ..state
    };
    (next != *before).then(|| PartitionImage { partition_epoch: before.partition_epoch + 1, ..next })
}

/// Whether the reassignment under way, if any, ends with these in-sync replicas.
fn is_complete(situation: &Situation<'_>, state: &PartitionImage, elected: &Elected) -> bool {
    let is_ready = |id: BrokerId| {
        elected.isr.contains(&id) && (elected.unclean || situation.may_lead_cleanly(state, id))
    };
    state.is_reassigning() && state.target_ids().all(is_ready)
}

struct Elected {
    leader: BrokerId,
    isr: Vec<BrokerId>,
    unclean: bool,
}

fn elect(situation: &Situation<'_>, state: &PartitionImage, wanted_isr: &[BrokerId]) -> Elected {
    let clean = |leader, isr| Elected { leader, isr, unclean: false };
    let able: Vec<BrokerId> =
        wanted_isr.iter().copied().filter(|id| situation.may_lead_cleanly(state, *id)).collect();
    if let Some(first) = state.replica_ids().find(|id| able.contains(id)) {
        let preferred = state.replica_ids().next().filter(|id| able.contains(id));
        let wanted = match situation.election {
            Election::Preferred => preferred,
            Election::Usual | Election::Unclean => None,
        };
        let current = Some(state.leader).filter(|leader| able.contains(leader));
        return clean(wanted.or(current).unwrap_or(first), able);
    }
    let mut eligible = state.replica_ids().filter(|id| state.elr.contains(id));
    if let Some(leader) = eligible.find(|id| situation.may_lead_cleanly(state, *id)) {
        return clean(leader, vec![leader]);
    }
    let last = last_in_sync(situation, state, wanted_isr);
    // A broker that is stopping leads on until another can: a planned stop is no reason for an outage before it.
    let in_service = situation.broker(state.leader).is_some_and(|broker| !broker.fenced);
    if in_service && last.contains(&state.leader) && situation.is_intact(state, state.leader) {
        return clean(state.leader, last);
    }
    let allowed = || {
        situation.election == Election::Unclean
            || situation.settings.unclean_leader_election(situation.image, situation.topic_id)
    };
    let mut candidates: Vec<BrokerId> = state.replica_ids().filter(|id| situation.may_lead(*id)).collect();
    candidates.sort_by_key(|id| (!situation.is_intact(state, *id), state.adding.contains(id)));
    match candidates.first() {
        Some(leader) if allowed() => Elected { leader: *leader, isr: vec![*leader], unclean: true },
        _ => clean(NO_LEADER, last),
    }
}

/// In-sync replicas that stay when none of them may lead: those that have their records, or else an eligible one that
/// has, or else all.
fn last_in_sync(situation: &Situation<'_>, state: &PartitionImage, wanted_isr: &[BrokerId]) -> Vec<BrokerId> {
    let intact: Vec<BrokerId> =
        wanted_isr.iter().copied().filter(|id| situation.is_intact(state, *id)).collect();
    if !intact.is_empty() {
        return intact;
    }
    let mut eligible = state.replica_ids().filter(|id| state.elr.contains(id));
    match eligible.find(|id| situation.is_intact(state, *id)) {
        Some(eligible) => vec![eligible],
        None => wanted_isr.to_vec(),
    }
}

/// Rule L9: with fewer in-sync replicas than the minimum, those that were eligible stay so, and leavers become so.
fn eligible(situation: &Situation<'_>, state: &PartitionImage, elected: &Elected) -> Vec<BrokerId> {
    if elected.unclean {
        return Vec::new();
    }
    let candidates = state.elr.iter().chain(&state.isr).copied();
    let eligible: Vec<BrokerId> =
        candidates.filter(|id| !elected.isr.contains(id) && situation.is_intact(state, *id)).collect();
    // Asked last: it reads configuration, and most changes have nobody to ask for.
    if eligible.is_empty() || elected.isr.len() >= situation.min_in_sync(state, elected.leader) {
        return Vec::new();
    }
    eligible
}

#[cfg(test)]
#[path = "partition_state_test.rs"]
mod tests;
