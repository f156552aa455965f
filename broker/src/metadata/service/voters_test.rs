//! Values in, values out: nothing here waits.

use std::sync::Arc;

use uuid::Uuid;

use super::*;
use crate::metadata::image::{BrokerImage, RetiredNode};

const DELAY: Duration = Duration::from_secs(60);
const POLICY: VoterPolicy = VoterPolicy { count: None, replacement_delay: DELAY };

/// A quorum and its brokers; node 1 leads.
struct Fleet {
    status: QuorumStatus,
    image: MetadataImage,
    lags: BTreeMap<u64, u64>,
    absences: Absences,
    start: Instant,
    now: Instant,
}

/// Members 1 to `members`, all in service and caught up, of which `voters` vote.
fn fleet(members: u64, voters: &[u64]) -> Fleet {
    let mut image = MetadataImage::empty(Uuid::from_u128(1));
    for (broker_id, raft_node_id) in (0..).zip(1..=members) {
        let broker = BrokerImage {
            broker_id,
            broker_epoch: 1,
            volume_uuid: Uuid::from_u128(raft_node_id.into()),
            raft_node_id,
            address: String::new(),
            endpoints: Vec::new(),
            rack: None,
            fenced: false,
            in_controlled_shutdown: false,
            version: String::new(),
            min_insync_replicas: 1,
        };
        image.brokers.insert(broker_id, Arc::new(broker));
    }
    let now = Instant::now();
    Fleet {
        status: QuorumStatus {
            node_id: 1,
            term: 1,
            leader: Some(1),
            voters: voters.iter().copied().collect(),
            members: (1..=members).map(|id| (id, format!("host-{id}:9093"))).collect(),
            joint: false,
        },
        image,
        lags: (2..=members).map(|id| (id, 0)).collect(),
        absences: Absences::default(),
        start: now,
        now,
    }
}

impl Fleet {
    fn change_broker(&mut self, node_id: u64, change: impl Fn(&mut BrokerImage)) {
        let brokers = self.image.brokers.values_mut();
        brokers.filter(|broker| broker.raft_node_id == node_id).for_each(|b| change(Arc::make_mut(b)));
    }

    fn fence(mut self, node_id: u64) -> Self {
        self.change_broker(node_id, |broker| broker.fenced = true);
        self
    }

    fn in_rack(mut self, node_id: u64, rack: &str) -> Self {
        self.change_broker(node_id, |broker| broker.rack = Some(rack.to_owned()));
        self
    }

    fn lagging(mut self, node_id: u64) -> Self {
        self.lags.insert(node_id, MAX_LAG + 1);
        self
    }

    /// The broker of `old` comes back as `new`, with another volume.
    fn lose_volume(mut self, old: u64, new: u64) -> Self {
        let broker_id = self.image.broker_of_node(old).expect("it is registered").broker_id;
        self.change_broker(old, |broker| broker.raft_node_id = new);
        let retired = RetiredNode { broker_id, volume_uuid: Uuid::from_u128(old.into()) };
        self.image.retired_nodes.insert(old, retired);
        self.status.members.insert(new, format!("host-{new}:9093"));
        self.lags.insert(new, 0);
        self
    }

    /// Looks at the fleet after `passed`.
    fn after(mut self, passed: Duration) -> Self {
        self.absences.observe(&self.status, &self.image, self.now);
        self.now = self.start + passed;
        self.absences.observe(&self.status, &self.image, self.now);
        self
    }

    fn next(&self, policy: VoterPolicy) -> Option<Change> {
        let Self { status, image, lags, absences, now, .. } = self;
        next_change(policy, &View { status, image, lags, absences, now: *now })
    }
}

fn voters(ids: impl IntoIterator<Item = u64>) -> Option<Change> {
    Some(Change::SetVoters(ids.into_iter().collect()))
}

#[test]
fn voters_follow_the_number_of_brokers() {
    assert_eq!(fleet(1, &[1]).next(POLICY), None);
    assert_eq!(fleet(2, &[1]).next(POLICY), None, "two voters are worse than one");
    assert_eq!(fleet(3, &[1]).next(POLICY), voters([1, 2, 3]));
    assert_eq!(fleet(4, &[1, 2, 3]).next(POLICY), None);
    assert_eq!(fleet(5, &[1, 2, 3]).next(POLICY), voters(1..=5));
    assert_eq!(fleet(9, &[1, 2, 3, 4, 5]).next(POLICY), None);
}

#[test]
fn the_number_can_be_set() {
    let set = |count| VoterPolicy { count: Some(count), ..POLICY };
    assert_eq!(fleet(5, &[1, 2, 3, 4, 5]).next(set(3)), voters([1, 2, 3]));
    assert_eq!(fleet(3, &[1, 2, 3]).next(set(1)), voters([1]));
    assert_eq!(fleet(3, &[1, 2, 3]).next(set(5)), None, "there are no five brokers");
    assert_eq!(fleet(7, &[1, 2, 3]).next(set(6)), voters(1..=5));
}

#[test]
fn an_even_quorum_becomes_odd() {
    assert_eq!(fleet(4, &[1, 2, 3, 4]).next(POLICY), voters([1, 2, 3]));
    assert_eq!(fleet(2, &[1, 2]).next(POLICY), voters([1]));
}

#[test]
fn first_voters_keep_their_votes_while_their_brokers_register() {
    let mut starting = fleet(3, &[1, 2, 3]);
    starting.image.brokers.retain(|broker_id, _| *broker_id == 0);
    assert_eq!(starting.next(POLICY), None);
    starting.image.brokers.clear();
    assert_eq!(starting.next(POLICY), None);
}

#[test]
fn nobody_votes_before_it_has_caught_up_and_is_in_service() {
    assert_eq!(fleet(3, &[1]).lagging(3).next(POLICY), None);
    assert_eq!(fleet(3, &[1]).fence(3).next(POLICY), None);
    let mut unknown = fleet(3, &[1]);
    unknown.lags.remove(&2);
    assert_eq!(unknown.next(POLICY), None);
    assert_eq!(fleet(5, &[1, 2, 3]).lagging(5).next(POLICY), None, "four voters are worse than three");
    assert_eq!(fleet(4, &[1]).lagging(2).next(POLICY), voters([1, 3, 4]));
}

#[test]
fn a_voter_that_stays_away_is_replaced_after_the_delay_and_not_before() {
    let away = || fleet(4, &[1, 2, 3]).fence(2);
    assert_eq!(away().after(DELAY / 2).next(POLICY), None);
    assert_eq!(away().after(DELAY).next(POLICY), voters([1, 3, 4]));
    assert_eq!(away().lagging(4).after(DELAY).next(POLICY), None, "there is nobody to take the vote");
    assert_eq!(fleet(3, &[1, 2, 3]).fence(2).after(DELAY).next(POLICY), None);
}

#[test]
fn a_voter_that_comes_back_in_time_starts_the_delay_anew() {
    let mut back = fleet(4, &[1, 2, 3]).fence(2).after(DELAY / 2);
    back.change_broker(2, |broker| broker.fenced = false);
    let mut away = back.after(DELAY * 3 / 4).fence(2);
    away.absences.observe(&away.status, &away.image, away.now);
    assert_eq!(away.after(DELAY * 3 / 2).next(POLICY), None);
}

#[test]
fn a_new_leader_counts_the_delay_anew() {
    let mut fleet = fleet(4, &[1, 2, 3]).fence(2).after(DELAY * 2);
    fleet.absences = Absences::default();
    assert_eq!(fleet.next(POLICY), None);
}

#[test]
fn a_voter_that_was_replaced_stays_a_member() {
    assert_eq!(fleet(4, &[1, 3, 4]).fence(2).after(DELAY * 9).next(POLICY), None);
}

#[test]
fn a_node_without_its_volume_is_replaced_at_once_and_then_removed() {
    let mut lost = fleet(3, &[1, 2, 3]).lose_volume(2, 12);
    assert_eq!(lost.next(POLICY), voters([1, 3, 12]));
    lost.status.voters = [1, 3, 12].into();
    assert_eq!(lost.next(POLICY), Some(Change::Remove(2)));
    lost.status.members.remove(&2);
    assert_eq!(lost.next(POLICY), None);
}

#[test]
fn a_node_without_its_volume_keeps_its_place_until_another_can_take_it() {
    assert_eq!(fleet(3, &[1, 2, 3]).lose_volume(2, 12).lagging(12).next(POLICY), None);
    // Two are missing and only one can be replaced: the node that is gone for good goes first.
    let lost = fleet(4, &[1, 2, 3]).fence(3).after(DELAY).lose_volume(2, 12).lagging(12);
    assert_eq!(lost.next(POLICY), voters([1, 3, 4]));
}

#[test]
fn a_retired_node_that_does_not_vote_is_removed() {
    assert_eq!(fleet(4, &[1, 2, 3]).lose_volume(4, 14).next(POLICY), Some(Change::Remove(4)));
}

#[test]
fn a_change_that_an_earlier_leader_began_is_finished_first() {
    let mut half = fleet(5, &[1, 2, 3, 4]);
    half.status.joint = true;
    assert_eq!(half.next(POLICY), Some(Change::Finish));
}

#[test]
fn the_leader_keeps_its_vote_and_brokers_in_service_theirs() {
    let mut fleet = fleet(5, &[1, 2, 3, 4, 5]).fence(2);
    (fleet.status.leader, fleet.status.node_id) = (Some(5), 5);
    let three = VoterPolicy { count: Some(3), ..POLICY };
    assert_eq!(fleet.next(three), voters([1, 3, 5]));
}

#[test]
fn votes_are_spread_over_racks() {
    let spread =
        fleet(5, &[1]).in_rack(1, "a").in_rack(2, "a").in_rack(3, "a").in_rack(4, "b").in_rack(5, "c");
    let three = VoterPolicy { count: Some(3), ..POLICY };
    assert_eq!(spread.next(three), voters([1, 4, 5]));
}

#[test]
fn a_settled_quorum_stays_as_it_is_whatever_the_racks() {
    let settled = fleet(4, &[1, 2, 3]).in_rack(1, "a").in_rack(2, "a").in_rack(3, "a").in_rack(4, "b");
    assert_eq!(settled.next(POLICY), None);
}
