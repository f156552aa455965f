//! The quorum's life between services in one process; see `tests/quorum.rs` for the same with real processes.

use std::collections::BTreeSet;

use super::tests::{Broker, Plan, directories, eventually, fleet, make_topic, within};
use super::*;
use crate::fleet::{CallHandler, Method};
use crate::metadata::image::MetadataImage;
use crate::metadata::raft::{LeaderOfTerm, encode};
use crate::schema::internal as wire;

/// The one that leads first.
async fn by_leadership(directories: &[tempfile::TempDir]) -> Vec<Broker> {
    let mut brokers = fleet(directories).await;
    brokers.sort_by_key(|broker| !broker.quorum().is_leader());
    brokers
}

async fn stop_all(brokers: impl IntoIterator<Item = Broker>) {
    for broker in brokers {
        broker.stop().await;
    }
}

fn epoch_of(image: &MetadataImage, broker: &Broker) -> i64 {
    image.broker_of_node(broker.node_id()).unwrap().broker_epoch
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_was_started_anew_has_a_higher_epoch() {
    let directories = directories(3);
    let mut brokers = by_leadership(&directories).await;
    let leader = brokers[0].service.handle();
    let restarted = brokers.pop().unwrap();
    let before = epoch_of(&leader.image(), &restarted);
    let (path, address) = restarted.stop().await;
    let restarted = Broker::start_at(&path, &address, Plan::default()).await;
    restarted.in_service().await;
    assert!(epoch_of(&restarted.service.handle().image(), &restarted) > before);
    drop(leader);
    stop_all(brokers.into_iter().chain([restarted])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_far_behind_catches_up_by_a_snapshot() {
    let directories = directories(2);
    let plan = Plan { snapshot_every: 10, ..Plan::default() };
    let first = Broker::start(directories[0].path(), plan.clone()).await;
    first.service.bootstrap_single().await.unwrap();
    first.in_service().await;
    let plan = Plan { bootstrap_servers: vec![first.address.clone()], ..plan };
    let second = Broker::start(directories[1].path(), plan.clone()).await;
    second.in_service().await;
    let behind = second.service.handle().image().log_index;
    let (path, address) = second.stop().await;
    for number in 0..60 {
        make_topic(&first.service.handle(), &format!("topic-{number}")).await;
    }
    let purged = || first.service.shared.node.first_log_index() > behind + 1;
    eventually("the leader has dropped what the follower lacks", purged).await;

    let second = Broker::start_at(&path, &address, plan).await;
    second.in_service().await;
    assert_eq!(second.service.handle().image().topics.len(), 60);
    let first_index = second.service.shared.node.first_log_index();
    assert!(first_index > behind + 1, "its log begins at {first_index}, and ended at {behind} before");
    stop_all([first, second]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broker_describes_the_quorum_as_its_leader_does() {
    let directories = directories(3);
    let brokers = by_leadership(&directories).await;
    make_topic(&brokers[0].service.handle(), "orders").await;
    let leader_id = brokers[0].service.broker_state().borrow().broker_id.unwrap();
    for broker in &brokers {
        let handle = broker.service.handle();
        within("everyone is caught up", async {
            loop {
                let told = handle.describe_quorum(Duration::from_secs(5)).await.unwrap();
                assert_eq!((told.leader_id, told.observers.len()), (leader_id, 0));
                let ids: Vec<BrokerId> = told.voters.iter().map(|voter| voter.broker_id).collect();
                assert_eq!(ids.len(), 3);
                assert!(ids.is_sorted());
                let caught_up = |voter: &ReplicaDescription| {
                    voter.log_end_offset == told.high_watermark && voter.last_caught_up_ms > 0
                };
                if told.high_watermark > 0 && told.voters.iter().all(caught_up) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
    stop_all(brokers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_has_lost_the_majority_does_not_describe_the_quorum() {
    let directories = directories(3);
    let mut brokers = by_leadership(&directories).await;
    let rest = brokers.split_off(1);
    let leader = brokers.remove(0);
    let call = || async {
        let body = encode(&wire::DescribeQuorumCall::default()).unwrap();
        let answer = leader.service.shared.handle(7, Method::DescribeQuorum, body).await.unwrap();
        crate::metadata::raft::decode::<wire::DescribeQuorumAnswer>(answer.into_bytes()).unwrap()
    };
    assert!(call().await.leads);
    stop_all(rest).await;
    // Whether it has noticed yet or not.
    let answer = within("it answers", call()).await;
    assert!(!answer.leads && answer.members.is_empty(), "{answer:?}");
    let told = leader.service.handle().describe_quorum(Duration::from_secs(2)).await;
    assert!(matches!(told, Err(ControllerError::Unavailable { .. })), "{told:?}");
    leader.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_that_are_equally_far_have_the_same_metadata() {
    let directories = directories(3);
    let brokers = by_leadership(&directories).await;
    let image = |broker: &Broker| broker.service.handle().image();
    let before = image(&brokers[0]).checksum().unwrap();
    make_topic(&brokers[0].service.handle(), "orders").await;
    eventually("all of them are equally far", || {
        let images: Vec<_> = brokers.iter().map(image).collect();
        images.iter().all(|one| one.log_index == images[0].log_index && one.topics.len() == 1)
    })
    .await;
    let checksums: BTreeSet<u32> = brokers.iter().map(|it| image(it).checksum().unwrap()).collect();
    assert_eq!(checksums.len(), 1, "{checksums:?}");
    assert!(!checksums.contains(&before));
    stop_all(brokers).await;
}

/// Whether `asked` agrees that the leader is gone.
async fn agrees(asked: &Broker, leader: LeaderOfTerm) -> bool {
    let call = wire::LeaderGoneCall {
        leader_term: leader.term.cast_signed(),
        leader_node_id: leader.node_id.cast_signed(),
        ..Default::default()
    };
    let body = encode(&call).unwrap();
    let answer = asked.service.shared.handle(7, Method::LeaderGone, body).await.unwrap();
    crate::metadata::raft::decode::<wire::LeaderGoneAnswer>(answer.into_bytes()).unwrap().gone
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_believes_that_a_leader_is_gone_that_answers() {
    let directories = directories(3);
    let brokers = by_leadership(&directories).await;
    let leader = LeaderOfTerm { term: brokers[0].quorum().term, node_id: brokers[0].node_id() };
    for broker in &brokers {
        assert!(!agrees(broker, leader).await);
        assert!(!broker.service.shared.node.has_renounced(leader));
    }
    // Nor that one of another term or node is.
    assert!(!agrees(&brokers[1], LeaderOfTerm { term: leader.term + 1, ..leader }).await);
    assert!(!agrees(&brokers[1], LeaderOfTerm { node_id: brokers[2].node_id(), ..leader }).await);

    // Whoever has gone on since goes on agreeing.
    let former = LeaderOfTerm { term: leader.term - 1, ..leader };
    assert!(!agrees(&brokers[1], former).await);
    brokers[1].service.shared.node.renounce(former);
    assert!(agrees(&brokers[1], former).await);

    // A follower that was wrong all the same takes it back with the next heartbeat.
    brokers[1].service.shared.node.renounce(leader);
    eventually("the leader is recognised again", || !brokers[1].service.shared.node.has_renounced(leader))
        .await;
    assert_eq!(brokers[1].quorum().leader, Some(leader.node_id));
    stop_all(brokers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_was_given_up_as_lost_never_takes_part_again() {
    let directories = directories(4);
    let mut brokers = by_leadership(&directories[..3]).await;
    let lost = brokers.pop().unwrap();
    let (lost_id, lost_node) = (lost.service.broker_state().borrow().broker_id, lost.node_id());
    let bootstrap_servers = vec![brokers[0].address.clone()];
    let plan = Plan { wanted_id: lost_id, bootstrap_servers, ..Plan::default() };
    let (lost_path, address) = lost.stop().await;

    let anew = Broker::start_at(directories[3].path(), &address, plan.clone()).await;
    anew.in_service().await;
    assert_eq!(anew.service.broker_state().borrow().broker_id, lost_id);
    let removed = || {
        let quorum = brokers[0].quorum();
        quorum.voters.contains(&anew.node_id()) && !quorum.members.contains_key(&lost_node)
    };
    eventually("the new node votes and the old one is removed", removed).await;
    anew.stop().await;

    let back = Broker::start_at(&lost_path, &address, plan).await;
    let mut state = back.service.broker_state();
    let refused = |state: &BrokerState| {
        assert!(!state.in_service, "a node that is no voter any more was let in");
        state.problem.as_ref().is_some_and(|problem| problem.contains("given up as lost"))
    };
    within("the volume is refused", state.wait_for(refused)).await.unwrap();
    assert!(!brokers[0].quorum().members.contains_key(&lost_node));
    stop_all(brokers.into_iter().chain([back])).await;
}
