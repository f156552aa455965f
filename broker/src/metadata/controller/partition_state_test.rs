//! What becomes of one partition.

use super::super::fixtures::{BrokerBuilder, TestSettings, add_topic, broker, image, volume_of};
use super::*;

struct Case {
    image: MetadataImage,
    topic_id: Uuid,
    state: PartitionImage,
    settings: TestSettings,
}

/// A partition on brokers 0, 1, 2 in this order, led by the first in sync.
fn case(brokers: [BrokerBuilder; 3], isr: &[BrokerId], elr: &[BrokerId]) -> Case {
    let mut image = image(brokers);
    let topic_id = add_topic(&mut image, "t", &[vec![0, 1, 2]]);
    let state = PartitionImage {
        isr: isr.to_vec(),
        elr: elr.to_vec(),
        leader: isr[0],
        ..image.topics[&topic_id].partitions[0].clone()
    };
    Case { image, topic_id, state, settings: TestSettings::default() }
}

impl Case {
    fn min(mut self, number: &str) -> Self {
        self.set("min.insync.replicas", number);
        self
    }

    fn unclean(mut self) -> Self {
        self.settings.unclean = true;
        self
    }

    fn led_by(mut self, leader: BrokerId) -> Self {
        self.state.leader = leader;
        self
    }

    fn set(&mut self, key: &str, value: &str) {
        let topic = self.image.topics.get_mut(&self.topic_id).map(std::sync::Arc::make_mut);
        topic.expect("it is there").config.insert(key.to_owned(), value.to_owned());
    }

    fn next(&self) -> Option<PartitionImage> {
        self.next_with(&self.state.isr, |_| {})
    }

    fn next_with(&self, isr: &[BrokerId], change: impl FnOnce(&mut Situation<'_>)) -> Option<PartitionImage> {
        let mut situation = Situation::usual(&self.image, &self.settings, self.topic_id);
        change(&mut situation);
        let next = next_state(&situation, &self.state, isr)?;
        assert_eq!(next_state(&situation, &next, &next.isr), None, "once is enough: {next:?}");
        assert_eq!(next.partition_epoch, self.state.partition_epoch + 1);
        let leader_changes = i32::from(next.leader != self.state.leader);
        assert_eq!(next.leader_epoch, self.state.leader_epoch + leader_changes);
        Some(next)
    }
}

/// Leader, in-sync replicas, eligible ones.
type Outcome = (BrokerId, Vec<BrokerId>, Vec<BrokerId>);

fn outcome(next: Option<PartitionImage>) -> Outcome {
    let next = next.expect("something changes");
    (next.leader, next.isr, next.elr)
}

fn volumes(state: &PartitionImage) -> Vec<Uuid> {
    state.replicas.iter().map(|replica| replica.volume_uuid).collect()
}

#[test]
fn the_first_assigned_replica_in_sync_follows_a_fenced_leader() {
    let case = case([broker(0).fenced(), broker(1), broker(2)], &[2, 0, 1], &[]).led_by(0);
    assert_eq!(outcome(case.next()), (1, vec![2, 1], vec![]));
}

#[test]
fn a_fenced_follower_leaves_the_isr_and_the_leader_keeps_its_epoch() {
    let case = case([broker(0), broker(1).fenced(), broker(2)], &[0, 1, 2], &[]);
    assert_eq!(outcome(case.next()), (0, vec![0, 2], vec![]));
}

#[test]
fn a_leader_that_may_lead_stays_although_it_is_not_preferred() {
    let case = case([broker(0), broker(1), broker(2).fenced()], &[1, 0, 2], &[]);
    assert_eq!(outcome(case.next()), (1, vec![1, 0], vec![]));
}

#[test]
fn the_preferred_leader_leads_when_that_is_asked_for_and_it_is_in_sync() {
    let preferred = |situation: &mut Situation<'_>| situation.election = Election::Preferred;
    let in_sync = case([broker(0), broker(1), broker(2)], &[1, 0], &[]);
    assert_eq!(outcome(in_sync.next_with(&[1, 0], preferred)), (0, vec![1, 0], vec![]));
    let behind = case([broker(0), broker(1), broker(2)], &[1, 2], &[]);
    assert_eq!(behind.next_with(&[1, 2], preferred), None);
}

#[test]
fn leavers_become_eligible_when_fewer_than_the_minimum_stay_in_sync() {
    let case = case([broker(0), broker(1), broker(2).fenced()], &[0, 1, 2], &[]).min("3");
    assert_eq!(outcome(case.next()), (0, vec![0, 1], vec![2]));
}

#[test]
fn eligible_replicas_stay_so_when_more_leave() {
    let case = case([broker(0), broker(1).fenced(), broker(2).fenced()], &[0, 1], &[2]).min("3");
    assert_eq!(outcome(case.next()), (0, vec![0], vec![2, 1]));
}

#[test]
fn the_minimum_is_never_more_than_there_are_replicas() {
    let case = case([broker(0), broker(1), broker(2)], &[0, 1], &[2]).min("9");
    assert_eq!(outcome(case.next_with(&[0, 1, 2], |_| {})), (0, vec![0, 1, 2], vec![]));
}

#[test]
fn nobody_is_eligible_once_enough_are_in_sync() {
    let case = case([broker(0), broker(1), broker(2).fenced()], &[0], &[2]).min("2");
    assert_eq!(outcome(case.next_with(&[0, 1], |_| {})), (0, vec![0, 1], vec![]));
}

#[test]
fn an_eligible_replica_that_joins_is_not_eligible_any_more() {
    let case = case([broker(0), broker(1), broker(2)], &[0], &[1, 2]).min("3");
    assert_eq!(outcome(case.next_with(&[0, 2], |_| {})), (0, vec![0, 2], vec![1]));
}

#[test]
fn the_minimum_is_that_of_the_leader_after_the_change() {
    let brokers =
        || [broker(0).fenced().with_min_insync_replicas(2), broker(1), broker(2).with_min_insync_replicas(2)];
    // Broker 1 commits alone, so whoever leaves may miss what it commits.
    assert_eq!(outcome(case(brokers(), &[0, 1], &[]).next()), (1, vec![1], vec![]));
    assert_eq!(outcome(case(brokers(), &[0, 2], &[]).next()), (2, vec![2], vec![0]));
}

#[test]
fn an_eligible_replica_leads_where_no_one_in_sync_can_and_is_in_sync_alone() {
    let case = case([broker(0).fenced(), broker(1), broker(2)], &[0], &[2, 1]).min("2");
    assert_eq!(outcome(case.next()), (1, vec![1], vec![2, 0]));
}

#[test]
fn a_replica_in_sync_goes_before_an_eligible_one() {
    let case = case([broker(0), broker(1).fenced(), broker(2)], &[1, 2], &[0]).min("3");
    assert_eq!(outcome(case.next()), (2, vec![2], vec![0, 1]));
}

#[test]
fn the_last_in_sync_replica_stays_when_it_is_fenced_and_leads_again_when_it_is_back() {
    let gone = case([broker(0).fenced(), broker(1), broker(2)], &[0], &[]);
    assert_eq!(outcome(gone.next()), (NO_LEADER, vec![0], vec![]));
    let back = case([broker(0), broker(1), broker(2)], &[0], &[]).led_by(NO_LEADER);
    assert_eq!(outcome(back.next()), (0, vec![0], vec![]));
}

#[test]
fn eligible_replicas_stay_so_while_nobody_leads() {
    let case = case([broker(0).fenced(), broker(1).fenced(), broker(2)], &[0], &[1]).min("2");
    assert_eq!(outcome(case.next()), (NO_LEADER, vec![0], vec![1]));
}

#[test]
fn a_stopping_broker_hands_over_to_a_replica_in_sync_and_leaves_the_isr() {
    let case = case([broker(0).stopping(), broker(1), broker(2)], &[0, 1], &[]);
    assert_eq!(outcome(case.next()), (1, vec![1], vec![]));
}

#[test]
fn a_stopping_broker_leads_on_rather_than_one_that_is_not_in_sync() {
    let case = case([broker(0).stopping(), broker(1), broker(2)], &[0], &[]).unclean();
    assert_eq!(case.next(), None);
}

#[test]
fn a_broker_on_another_volume_leaves_both_sets_and_starts_anew_on_it() {
    let brokers = [broker(0).on_another_volume(), broker(1), broker(2).on_another_volume()];
    let case = case(brokers, &[0, 1], &[2]).min("3");
    let next = case.next();
    assert_eq!(outcome(next.clone()), (1, vec![1], vec![]));
    let next = next.expect("something changes");
    assert_eq!(volumes(&next), [volume_of(100), volume_of(1), volume_of(102)]);
}

#[test]
fn the_last_in_sync_replica_keeps_the_volume_that_was_lost_and_nobody_leads() {
    let case = case([broker(0).on_another_volume(), broker(1), broker(2)], &[0], &[]);
    let next = case.next();
    assert_eq!(outcome(next.clone()), (NO_LEADER, vec![0], vec![]));
    assert_eq!(volumes(&next.expect("something changes"))[0], volume_of(0));
}

#[test]
fn an_eligible_replica_takes_the_place_of_the_last_in_sync_one_whose_volume_was_lost() {
    let brokers = [broker(0).on_another_volume(), broker(1).fenced(), broker(2).fenced()];
    let case = case(brokers, &[0], &[2, 1]).min("2").led_by(NO_LEADER);
    let next = case.next();
    assert_eq!(outcome(next.clone()), (NO_LEADER, vec![1], vec![2]));
    assert_eq!(volumes(&next.expect("something changes"))[0], volume_of(100));
}

#[test]
fn a_broker_that_lost_records_leaves_both_sets_but_not_as_the_last_one() {
    let forgetful = |id| move |situation: &mut Situation<'_>| situation.forgetful = Some(id);
    let follower = case([broker(0), broker(1).fenced(), broker(2)], &[0, 1, 2], &[]).min("3");
    assert_eq!(outcome(follower.next_with(&[0, 1, 2], forgetful(1))), (0, vec![0, 2], vec![]));
    let eligible = case([broker(0), broker(1), broker(2).fenced()], &[0, 1], &[2]).min("3");
    assert_eq!(outcome(eligible.next_with(&[0, 1], forgetful(2))), (0, vec![0, 1], vec![]));
    let last = case([broker(0).fenced(), broker(1), broker(2)], &[0], &[]).led_by(NO_LEADER);
    assert_eq!(last.next_with(&[0], forgetful(0)), None);
    let others = case([broker(0).fenced(), broker(1).fenced(), broker(2)], &[0], &[1]).min("2");
    assert_eq!(outcome(others.next_with(&[0], forgetful(0))), (NO_LEADER, vec![1], vec![]));
}

#[test]
fn replicas_that_do_not_count_move_with_their_broker_and_unknown_brokers_stay_as_they_are() {
    let mut case = case([broker(0), broker(1).on_another_volume(), broker(2)], &[0], &[]);
    case.image.brokers.remove(&2);
    case.state.replicas[2].volume_uuid = Uuid::nil();
    let next = case.next();
    assert_eq!(outcome(next.clone()), (0, vec![0], vec![]));
    assert_eq!(volumes(&next.expect("something changes")), [volume_of(0), volume_of(101), Uuid::nil()]);
}

#[test]
fn unclean_election_is_the_last_resort_and_leaves_one_in_sync() {
    let brokers = || [broker(0).fenced(), broker(1).on_another_volume(), broker(2)];
    let by_setting = case(brokers(), &[0], &[]).unclean();
    assert_eq!(outcome(by_setting.next()), (2, vec![2], vec![]));
    let on_request = case(brokers(), &[0], &[]);
    let unclean = |situation: &mut Situation<'_>| situation.election = Election::Unclean;
    assert_eq!(outcome(on_request.next_with(&[0], unclean)), (2, vec![2], vec![]));
    let clean = case(brokers(), &[0], &[1, 2]).min("2").unclean();
    assert_eq!(outcome(clean.next()), (2, vec![2], vec![0]), "somebody is eligible");
}

#[test]
fn unclean_election_gives_a_replica_without_records_the_volume_that_its_broker_has() {
    let brokers = [broker(0).on_another_volume(), broker(1).fenced(), broker(2).fenced()];
    let case = case(brokers, &[0], &[]).led_by(NO_LEADER).unclean();
    let next = case.next();
    assert_eq!(outcome(next.clone()), (0, vec![0], vec![]));
    assert_eq!(volumes(&next.expect("something changes"))[0], volume_of(100));
}
