//! Who votes in the metadata quorum: decisions only.
//!
//! One or two brokers have one voter, three or four have three, five and more have five, unless the number is set. All
//! other brokers follow the log. A voter whose broker is out of service for longer than the delay gives its vote to a
//! follower and follows from then on, so that it finds its place when it comes back. A node whose volume was lost gives
//! its vote away as soon as there is a follower to take it, and is then removed for good: it is known never to return.
//!
//! A follower may vote once its broker is in service and it has all but the newest entries. All voters change in one
//! step (joint consensus), so that the quorum never stands at an even number on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::metadata::image::MetadataImage;
use crate::metadata::raft::QuorumStatus;

/// A follower that is no further behind than this catches up within a heartbeat or two.
const MAX_LAG: u64 = 100;

/// What is wanted of the quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoterPolicy {
    /// Number of voters (`metadata.quorum.voters.count`); `None` follows the number of brokers. An even number is taken
    /// for the next smaller odd one, and there are never more voters than brokers.
    pub count: Option<usize>,
    /// How long a broker is out of service before its vote goes to another
    /// (`metadata.quorum.voter.replacement.delay.ms`).
    pub replacement_delay: Duration,
}

impl Default for VoterPolicy {
    fn default() -> Self {
        Self { count: None, replacement_delay: Duration::from_secs(300) }
    }
}

/// Since when members are out of service, as this leader has seen it.
#[derive(Clone, Debug, Default)]
pub(super) struct Absences {
    since: BTreeMap<u64, Instant>,
}

impl Absences {
    /// Takes note of who is out of service at `now`. Call it regularly.
    pub(super) fn observe(&mut self, status: &QuorumStatus, image: &MetadataImage, now: Instant) {
        let present = |node_id: u64| image.broker_of_node(node_id).is_some_and(|broker| !broker.fenced);
        self.since.retain(|node_id, _| status.members.contains_key(node_id) && !present(*node_id));
        for node_id in status.members.keys().copied().filter(|node_id| !present(*node_id)) {
            self.since.entry(node_id).or_insert(now);
        }
    }

    fn longer_than(&self, node_id: u64, delay: Duration, now: Instant) -> bool {
        self.since.get(&node_id).is_some_and(|since| now.saturating_duration_since(*since) >= delay)
    }
}

/// What a decision is based on.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) status: &'a QuorumStatus,
    pub(super) image: &'a MetadataImage,
    /// Entries that each follower is behind.
    pub(super) lags: &'a BTreeMap<u64, u64>,
    pub(super) absences: &'a Absences,
    pub(super) now: Instant,
}

/// One change of the membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Complete what an earlier leader began.
    Finish,
    /// Exactly these vote from now on.
    SetVoters(BTreeSet<u64>),
    /// This one, which does not vote, is no member any more.
    Remove(u64),
}

/// The next change, if there is one to make.
pub(super) fn next_change(policy: VoterPolicy, view: &View<'_>) -> Option<Change> {
    if view.status.joint {
        return Some(Change::Finish);
    }
    let voters = wanted_voters(policy, view);
    if voters != view.status.voters {
        return Some(Change::SetVoters(voters));
    }
    let retired = |node_id: &u64| view.image.retired_nodes.contains_key(node_id);
    view.status.learners().find(retired).map(Change::Remove)
}

/// How many should vote.
fn wanted_count(policy: VoterPolicy, view: &View<'_>) -> usize {
    // A first voter whose broker has yet to register counts, or the quorum would shrink while the fleet comes up.
    let counts = |node_id: &&u64| match view.image.broker_of_node(**node_id) {
        Some(_) => true,
        None => view.status.voters.contains(node_id) && !view.image.retired_nodes.contains_key(node_id),
    };
    let brokers = view.status.members.keys().filter(counts).count();
    let wanted = policy.count.unwrap_or(if brokers >= 5 { 5 } else { 3 });
    odd(wanted.min(brokers))
}

/// The number itself or the next smaller odd one, at least 1.
fn odd(number: usize) -> usize {
    number.saturating_sub(usize::from(number.is_multiple_of(2))).max(1)
}

/// How much a node is worth as a voter; the smaller the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Leader,
    VoterInService,
    /// Out of service, but not for long.
    VoterAway,
    Follower,
    VoterGone,
    Retired,
}

fn wanted_voters(policy: VoterPolicy, view: &View<'_>) -> BTreeSet<u64> {
    let current = &view.status.voters;
    let mut pool: Vec<(Standing, u64)> = view
        .status
        .members
        .keys()
        .filter_map(|node_id| Some((standing(policy, view, *node_id)?, *node_id)))
        .collect();
    pool.sort_unstable();
    let count = wanted_count(policy, view);
    // Too few are ready: rather wait than stand at an even number, but take nobody's vote for that.
    let count = if pool.len() < count { odd(pool.len()).max(current.len()) } else { count };
    let mut chosen = BTreeSet::new();
    while chosen.len() < count {
        let Some(best) = pool.first().map(|(standing, _)| *standing) else { break };
        // Among equals one in a rack that has no voter yet.
        let equals = pool.iter().take_while(|(standing, _)| *standing == best);
        let position = equals.map(|(_, node_id)| shares_rack(view.image, &chosen, *node_id));
        let position = position.enumerate().min_by_key(|(position, shares)| (*shares, *position));
        let (_, node_id) = pool.remove(position.map_or(0, |(position, _)| position));
        chosen.insert(node_id);
    }
    chosen
}

fn standing(policy: VoterPolicy, view: &View<'_>, node_id: u64) -> Option<Standing> {
    let votes = view.status.voters.contains(&node_id);
    let broker = view.image.broker_of_node(node_id);
    let in_service = broker.is_some_and(|broker| broker.may_lead());
    let gone = || view.absences.longer_than(node_id, policy.replacement_delay, view.now);
    let caught_up = || view.lags.get(&node_id).is_some_and(|lag| *lag <= MAX_LAG);
    match votes {
        true if view.status.leader == Some(node_id) => Some(Standing::Leader),
        true if view.image.retired_nodes.contains_key(&node_id) => Some(Standing::Retired),
        true if in_service => Some(Standing::VoterInService),
        true if gone() => Some(Standing::VoterGone),
        true => Some(Standing::VoterAway),
        false => (in_service && caught_up()).then_some(Standing::Follower),
    }
}

/// Whether one of `chosen` is in the same rack.
fn shares_rack(image: &MetadataImage, chosen: &BTreeSet<u64>, node_id: u64) -> bool {
    let rack = |node_id: u64| image.broker_of_node(node_id).and_then(|broker| broker.rack.as_deref());
    let own = rack(node_id);
    own.is_some() && chosen.iter().any(|other| rack(*other) == own)
}

#[cfg(test)]
#[path = "voters_test.rs"]
mod tests;
