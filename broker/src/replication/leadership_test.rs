use super::*;

const LAG: Duration = Duration::from_secs(30);

fn member(broker_id: BrokerId) -> Member {
    Member { broker_id, broker_epoch: 10 + i64::from(broker_id), eligible: true }
}

fn assignment(isr: &[BrokerId]) -> LeaderAssignment {
    LeaderAssignment {
        own: member(1),
        leader_epoch: 4,
        partition_epoch: 7,
        isr: isr.to_vec(),
        followers: vec![member(2), member(3)],
        min_isr: 1,
    }
}

fn leads_from(epoch_start: i64, isr: &[BrokerId]) -> (Leadership, Instant) {
    let now = Instant::now();
    (Leadership::begin(assignment(isr), epoch_start, now), now)
}

/// A log that is durable up to its end.
fn log(log_start: i64, end: i64) -> FollowerLog {
    FollowerLog { log_start, durable_end: end, log_end: end, last_epoch: None }
}

/// A follower has everything below `offset` durable when the leader's log ends at `log_end`.
fn fetched(leads: &mut Leadership, (broker_id, offset): (BrokerId, i64), log_end: i64, now: Instant) {
    leads.appended(log_end, now);
    leads.fetched(broker_id, member(broker_id).broker_epoch, log(0, offset), now);
}

fn isr_of(proposal: Option<Proposal>) -> Option<Vec<BrokerId>> {
    proposal.map(|proposal| proposal.isr.iter().map(|(broker_id, _)| *broker_id).collect())
}

#[test]
fn l5_the_high_watermark_is_the_lowest_durable_end_in_sync() {
    let (mut leads, now) = leads_from(0, &[1, 2]);
    assert_eq!(leads.high_watermark(0, 10, now, LAG), 0, "nobody knows where 2 is");
    fetched(&mut leads, (2, 6), 10, now);
    assert_eq!(leads.high_watermark(0, 10, now, LAG), 6);
    fetched(&mut leads, (2, 10), 10, now);
    assert_eq!(leads.high_watermark(6, 10, now, LAG), 10);
}

#[test]
fn l5_the_high_watermark_waits_for_the_leader_and_l6_followers_ahead_of_it_keep_up() {
    let (mut leads, now) = leads_from(0, &[1, 2]);
    fetched(&mut leads, (2, 10), 10, now);
    assert_eq!(leads.high_watermark(0, 4, now, LAG), 4, "the leader has not synced more");
    let later = now + LAG * 10;
    assert_eq!(leads.propose_shrinking(later, LAG), None);
    leads.appended(20, later);
    assert_eq!(leads.propose_shrinking(later + LAG, LAG), None);
    assert_eq!(leads.high_watermark(4, 20, later, LAG), 10);
}

#[test]
fn l5_the_high_watermark_never_falls() {
    let (mut leads, now) = leads_from(0, &[1, 2]);
    fetched(&mut leads, (2, 3), 10, now);
    assert_eq!(leads.high_watermark(5, 10, now, LAG), 5);
}

#[test]
fn l5_the_high_watermark_stands_still_below_min_isr() {
    let now = Instant::now();
    let leads = Leadership::begin(LeaderAssignment { min_isr: 2, ..assignment(&[1]) }, 0, now);
    assert_eq!(leads.high_watermark(3, 10, now, LAG), 3);
    assert!(leads.is_under_min_isr());
}

#[test]
fn l5_a_follower_that_is_about_to_join_is_waited_for() {
    let (mut leads, now) = leads_from(0, &[1]);
    fetched(&mut leads, (2, 8), 8, now);
    leads.appended(10, now);
    assert_eq!(leads.high_watermark(8, 10, now, LAG), 8, "2 has caught up and may join any moment");
    assert_eq!(leads.high_watermark(8, 10, now + LAG * 2, LAG), 10, "it is too far behind now");
}

#[test]
fn l5_a_follower_that_has_far_to_go_is_not_waited_for() {
    let (mut leads, now) = leads_from(100, &[1]);
    fetched(&mut leads, (2, 0), 100, now);
    assert_eq!(leads.high_watermark(0, 100, now, LAG), 100);
}

#[test]
fn l5_a_follower_that_was_away_is_not_waited_for_until_it_has_caught_up_again() {
    let (mut leads, now) = leads_from(0, &[1, 2, 3]);
    leads.appended(10, now);
    leads.fetched(2, 12, log(0, 10), now);
    leads.fetched(3, 13, log(0, 10), now);
    // 2 dies, misses records, and comes back with another registration well within the lag.
    let returned = Member { broker_epoch: 22, ..member(2) };
    leads.update(LeaderAssignment {
        partition_epoch: 8,
        followers: vec![returned, member(3)],
        ..assignment(&[1, 3])
    });
    leads.appended(90, now);
    leads.fetched(3, 13, log(0, 90), now);
    leads.fetched(2, 22, log(0, 10), now);
    assert_eq!(leads.high_watermark(10, 90, now, LAG), 90, "2 has far to go");
    assert_eq!(isr_of(leads.propose_expansion(90, |_| true)), None);
    leads.fetched(2, 22, log(0, 90), now);
    leads.appended(100, now);
    leads.fetched(3, 13, log(0, 100), now);
    assert_eq!(leads.high_watermark(90, 100, now, LAG), 90, "2 may join any moment");
}

#[test]
fn l5_a_change_under_way_counts_the_old_and_the_new_ones() {
    let (mut leads, now) = leads_from(0, &[1, 3]);
    fetched(&mut leads, (3, 10), 10, now);
    fetched(&mut leads, (2, 10), 10, now);
    assert_eq!(isr_of(leads.propose_expansion(10, |_| true)), Some(vec![1, 2, 3]));
    let later = now + LAG * 2;
    fetched(&mut leads, (3, 20), 20, later);
    assert_eq!(leads.high_watermark(10, 20, later, LAG), 10, "2 may be in sync by now");
    leads.update(LeaderAssignment { partition_epoch: 8, ..assignment(&[1, 3]) });
    assert_eq!(leads.high_watermark(10, 20, later + LAG * 2, LAG), 20, "it is not, and lags");
}

#[test]
fn l6_a_follower_that_keeps_up_with_a_busy_leader_stays() {
    let (mut leads, mut now) = leads_from(0, &[1, 2]);
    let mut end = 100;
    for _ in 0..10 {
        fetched(&mut leads, (2, end - 100), end, now);
        now += LAG / 2;
        end += 100;
        leads.appended(end, now);
        assert_eq!(leads.propose_shrinking(now, LAG), None, "at {end}");
    }
}

#[test]
fn l6_a_follower_that_falls_behind_leaves_and_one_that_idles_at_the_end_does_not() {
    let (mut leads, now) = leads_from(0, &[1, 2, 3]);
    fetched(&mut leads, (2, 50), 100, now);
    fetched(&mut leads, (3, 100), 100, now);
    assert_eq!(leads.propose_shrinking(now + LAG, LAG), None);
    assert_eq!(isr_of(leads.propose_shrinking(now + LAG * 2, LAG)), Some(vec![1, 3]));
}

#[test]
fn l6_followers_in_sync_have_the_time_of_one_lag_to_find_a_new_leader() {
    let (mut leads, now) = leads_from(100, &[1, 2]);
    assert_eq!(leads.propose_shrinking(now + LAG, LAG), None);
    assert_eq!(isr_of(leads.propose_shrinking(now + LAG * 2, LAG)), Some(vec![1]));
}

#[test]
fn l7_a_follower_joins_at_the_high_watermark_and_not_before_the_epoch_began() {
    let (mut leads, now) = leads_from(20, &[1]);
    fetched(&mut leads, (2, 19), 30, now);
    assert_eq!(leads.propose_expansion(10, |_| true), None, "it does not have all that the epoch began with");
    fetched(&mut leads, (2, 20), 30, now);
    assert_eq!(leads.propose_expansion(21, |_| true), None);
    let proposal = leads.propose_expansion(20, |_| true).expect("it has what it needs");
    assert_eq!((proposal.leader_epoch, proposal.partition_epoch), (4, 7));
    assert_eq!(proposal.isr, [(1, 11), (2, 12)]);
}

#[test]
fn l7_a_follower_of_an_earlier_registration_or_out_of_service_does_not_join() {
    let (mut leads, now) = leads_from(0, &[1]);
    leads.fetched(2, 11, log(0, 30), now);
    assert_eq!(leads.propose_expansion(30, |_| true), None);
    let fenced = Member { eligible: false, ..member(2) };
    leads.update(LeaderAssignment { followers: vec![fenced, member(3)], ..assignment(&[1]) });
    fetched(&mut leads, (2, 30), 30, now);
    assert_eq!(leads.propose_expansion(30, |_| true), None);
}

#[test]
fn l7_a_follower_that_registers_again_is_not_proposed_for_what_it_had_before() {
    let (mut leads, now) = leads_from(0, &[1]);
    fetched(&mut leads, (2, 30), 30, now);
    let first = leads.propose_expansion(30, |_| true).expect("it has what it needs");
    let again = Member { broker_epoch: 99, ..member(2) };
    leads.update(LeaderAssignment { followers: vec![again, member(3)], ..assignment(&[1]) });
    assert_eq!(leads.proposal(), Some(first));
}

#[test]
fn l7_a_follower_that_is_gone_does_not_join_where_the_high_watermark_stands_still() {
    let (mut leads, now) = leads_from(0, &[1]);
    fetched(&mut leads, (2, 30), 30, now);
    assert_eq!(leads.propose_expansion(30, |_| false), None);
    assert_eq!(isr_of(leads.propose_expansion(30, |broker_id| broker_id == 2)), Some(vec![1, 2]));
}

#[test]
fn l7_one_change_is_under_way_at_a_time() {
    let (mut leads, now) = leads_from(0, &[1]);
    fetched(&mut leads, (2, 30), 30, now);
    let first = leads.propose_expansion(30, |_| true);
    fetched(&mut leads, (3, 30), 30, now);
    assert_eq!(leads.propose_expansion(30, |_| true), None);
    assert_eq!(leads.proposal(), first, "it can be sent again");
    leads.refused(6);
    assert_eq!(leads.proposal(), first, "that was an earlier one");
    leads.refused(7);
    assert_eq!(isr_of(leads.propose_expansion(30, |_| true)), Some(vec![1, 2, 3]));
}

#[test]
fn l6_a_follower_that_idled_at_the_end_has_the_time_of_one_lag_for_what_is_new() {
    let (mut leads, now) = leads_from(0, &[1, 2]);
    fetched(&mut leads, (2, 100), 100, now);
    let later = now + LAG * 10;
    leads.appended(101, later);
    assert_eq!(leads.propose_shrinking(later + LAG, LAG), None);
    assert_eq!(isr_of(leads.propose_shrinking(later + LAG * 2, LAG)), Some(vec![1]));
}

#[test]
fn d1_the_low_watermark_is_the_lowest_log_start_of_replicas_in_service() {
    let now = Instant::now();
    let mut third = member(3);
    third.eligible = false;
    let followers = vec![member(2), third];
    let mut leads = Leadership::begin(LeaderAssignment { followers, ..assignment(&[1, 2]) }, 0, now);
    assert_eq!(leads.low_watermark(7), -1, "nobody knows where the log of 2 starts");
    leads.fetched(2, member(2).broker_epoch, log(4, 10), now);
    assert_eq!(leads.low_watermark(7), 4);
    leads.fetched(2, member(2).broker_epoch, log(9, 10), now);
    assert_eq!(leads.low_watermark(7), 7);
}

#[test]
fn f13_clients_are_sent_only_to_followers_in_sync_that_have_the_offset() {
    let (mut leads, now) = leads_from(0, &[1, 2]);
    leads.appended(10, now);
    let readable = |leads: &Leadership, offset| leads.readable_followers(offset);
    assert_eq!(readable(&leads, 4), [], "nobody knows where 2 is");
    leads.fetched(2, member(2).broker_epoch, log(4, 8), now);
    leads.fetched(3, member(3).broker_epoch, log(0, 10), now);
    assert_eq!(readable(&leads, 3), [], "2 has deleted it already, and 3 is not in sync");
    assert_eq!(readable(&leads, 4), [(2, 8)]);
    assert_eq!(readable(&leads, 8), [(2, 8)], "it can wait there for the next");
    assert_eq!(readable(&leads, 9), []);
}

#[test]
fn l6_a_follower_that_tells_of_its_disk_two_rounds_later_all_the_time_stays() {
    let (mut leads, mut now) = leads_from(0, &[1, 2]);
    let mut end = 100;
    for _ in 0..200 {
        end += 100;
        fetched(&mut leads, (2, end - 250), end, now);
        now += LAG / 20;
        leads.appended(end + 50, now);
        assert_eq!(leads.propose_shrinking(now, LAG), None, "at {end}");
    }
}

#[test]
fn l6_a_follower_that_falls_further_and_further_behind_leaves() {
    let (mut leads, start) = leads_from(0, &[1, 2]);
    // It has what the leader had when half of the time had passed.
    let behind = |step: u32| i64::from(step) / 2 * 100;
    for step in 0..200 {
        let now = start + LAG / 10 * step;
        fetched(&mut leads, (2, behind(step)), i64::from(step) * 100 + 1, now);
        if leads.propose_shrinking(now, LAG).is_some() {
            // From mark to mark it is seen to be up to twice as far behind as it is.
            assert!(
                (10..=20).contains(&step),
                "it is half a lag behind after ten steps, and a whole one after 20: {step}"
            );
            return;
        }
    }
    panic!("it is ten lags behind");
}
