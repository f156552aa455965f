//! Whole services in one process, on listeners of their own.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;

use millrace_management::{ApplyTopic, TopicOwner};
use uuid::Uuid;

use super::*;
use crate::fleet::FleetListener;
use crate::metadata::image::MetadataImage;

const CLUSTER: Uuid = Uuid::from_u128(0xc1);
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Defaults;

impl Settings for Defaults {
    fn default_partitions(&self, _image: &MetadataImage) -> i32 {
        1
    }
    fn default_replication_factor(&self, _image: &MetadataImage) -> i16 {
        1
    }
    fn topic_deletion_enabled(&self) -> bool {
        true
    }
    fn check_topic_config(&self, _key: &str, _value: &str) -> Result<(), String> {
        Ok(())
    }
    fn check_topic_configs(&self, _configs: &BTreeMap<String, String>) -> Result<(), String> {
        Ok(())
    }
    fn check_broker_config(&self, _key: &str, _value: &str) -> Result<(), String> {
        Ok(())
    }
    fn is_list(&self, _key: &str) -> bool {
        false
    }
    fn topic_default(&self, _image: &MetadataImage, _key: &str) -> Option<String> {
        None
    }
    fn unclean_leader_election(&self, _image: &MetadataImage, _topic_id: Uuid) -> bool {
        false
    }
    fn min_insync_replicas(&self, _image: &MetadataImage, _topic_id: Uuid, _leader: BrokerId) -> usize {
        1
    }
    fn acknowledges_unsynced(&self, _image: &MetadataImage, _topic_id: Uuid) -> bool {
        false
    }
}

/// A broker's metadata part, with its listener.
pub(crate) struct Broker {
    directory: PathBuf,
    pub(super) address: String,
    pub(crate) service: MetadataService,
    listener: tokio::task::JoinHandle<()>,
    cancel: CancellationToken,
}

#[derive(Clone)]
pub(crate) struct Plan {
    pub(super) cluster_id: Uuid,
    pub(super) bootstrap_servers: Vec<String>,
    pub(super) snapshot_every: u64,
    pub(super) wanted_id: Option<BrokerId>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { cluster_id: CLUSTER, bootstrap_servers: Vec::new(), snapshot_every: 5000, wanted_id: None }
    }
}

impl Broker {
    pub(crate) async fn start(directory: &std::path::Path, plan: Plan) -> Self {
        Self::start_at(directory, "127.0.0.1:0", plan).await
    }

    pub(super) async fn start_at(directory: &std::path::Path, address: &str, plan: Plan) -> Self {
        let listener = FleetListener::bind(address, None).await.unwrap();
        let address = listener.local_address().unwrap().to_string();
        let volume = Arc::new(Volume::open_or_format(directory, plan.cluster_id).unwrap());
        let local = LocalNode { cluster_id: volume.cluster_id(), node_id: volume.raft_node_id() };
        let facts =
            BrokerFacts { wanted_id: plan.wanted_id, version: "test".to_owned(), ..BrokerFacts::default() };
        let options = MetadataOptions {
            bootstrap_servers: plan.bootstrap_servers,
            session_timeout: Duration::from_millis(2000),
            heartbeat_interval: Duration::from_millis(200),
            timings: RaftTimings {
                election_timeout_min: Duration::from_millis(500),
                election_timeout_max: Duration::from_millis(1000),
                heartbeat_interval: Duration::from_millis(100),
            },
            snapshot_every: plan.snapshot_every,
            leader_rebalance_interval: Some(Duration::from_millis(200)),
            ..MetadataOptions::new(address.clone(), facts, Arc::new(Defaults))
        };
        let service = MetadataService::start(options, volume, FleetClient::new(local, None)).await.unwrap();
        let cancel = CancellationToken::new();
        let calls = service.call_handler();
        let listener = tokio::spawn(listener.serve(local, calls, axum::Router::new(), cancel.clone()));
        Self { directory: directory.to_owned(), address, service, listener, cancel }
    }

    pub(super) fn node_id(&self) -> u64 {
        self.service.shared.local.node_id
    }

    pub(super) fn quorum(&self) -> QuorumStatus {
        self.service.member().quorum()
    }

    pub(crate) async fn in_service(&self) {
        let mut state = self.service.broker_state();
        let in_service = state.wait_for(|state| state.in_service);
        within("the broker is in service", in_service).await.unwrap();
    }

    /// Disappears without a word, like a process that is killed; the directory stays.
    pub(super) async fn stop(self) -> (PathBuf, String) {
        self.cancel.cancel();
        self.listener.await.unwrap();
        self.service.stop().await;
        (self.directory, self.address)
    }
}

pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

pub(super) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

fn voters(brokers: &[&Broker]) -> BTreeMap<u64, String> {
    brokers.iter().map(|broker| (broker.node_id(), broker.address.clone())).collect()
}

fn apply_topic(name: &str) -> ControllerRequest {
    let owner = TopicOwner { namespace: "ns".to_owned(), name: name.to_owned(), uid: name.to_owned() };
    let request =
        ApplyTopic { owner, partitions: Some(3), replicas: Some(1), config: BTreeMap::new(), adopt: false };
    ControllerRequest::ApplyTopic { name: name.to_owned(), request }
}

pub(super) async fn make_topic(handle: &MetadataHandle, name: &str) {
    let response = handle.call_within(apply_topic(name), PATIENCE).await.unwrap();
    assert!(matches!(response, ControllerResponse::TopicApplied(_)), "{response:?}");
    assert!(handle.image().topic_by_name(name).is_some(), "a client would not read what it wrote");
}

/// Three brokers in one quorum, all in service.
pub(super) async fn fleet(directories: &[tempfile::TempDir]) -> Vec<Broker> {
    let mut brokers = Vec::new();
    for directory in directories {
        brokers.push(Broker::start(directory.path(), Plan::default()).await);
    }
    let members: Vec<&Broker> = brokers.iter().collect();
    brokers[0].service.member().bootstrap(voters(&members)).await.unwrap();
    for broker in &brokers {
        broker.in_service().await;
    }
    brokers
}

pub(super) fn directories(count: usize) -> Vec<tempfile::TempDir> {
    (0..count).map(|_| tempfile::tempdir().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_broker_is_in_service_at_once_and_keeps_its_metadata() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(directory.path(), Plan { wanted_id: Some(4), ..Plan::default() }).await;
    broker.service.bootstrap_single().await.unwrap();
    broker.in_service().await;
    make_topic(&broker.service.handle(), "orders").await;
    let before = broker.service.handle().image();
    let first_epoch = before.brokers[&4].broker_epoch;
    let (directory_path, address) = broker.stop().await;

    let started = Instant::now();
    let broker = Broker::start_at(&directory_path, &address, Plan::default()).await;
    broker.service.bootstrap_single().await.unwrap();
    broker.in_service().await;
    let ready_after = started.elapsed();
    assert!(ready_after < Duration::from_secs(2), "ready after {ready_after:?}");
    let image = broker.service.handle().image();
    assert_eq!(image.topics.keys().collect::<Vec<_>>(), before.topics.keys().collect::<Vec<_>>());
    assert!(image.brokers[&4].broker_epoch > first_epoch, "a new registration has a higher epoch");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_and_the_log_after_it_make_the_same_image() {
    let directory = tempfile::tempdir().unwrap();
    let plan = Plan { snapshot_every: 10, ..Plan::default() };
    let broker = Broker::start(directory.path(), plan.clone()).await;
    broker.service.bootstrap_single().await.unwrap();
    broker.in_service().await;
    for number in 0..35 {
        make_topic(&broker.service.handle(), &format!("topic-{number}")).await;
    }
    let before = broker.service.handle().image();
    let (path, address) = broker.stop().await;

    let broker = Broker::start_at(&path, &address, plan).await;
    let handle = broker.service.handle();
    eventually("the log is replayed", || handle.image().log_index >= before.log_index).await;
    let image = handle.image();
    assert_eq!((&image.topics, &image.topic_ids), (&before.topics, &before.topic_ids));
    assert_eq!(image.next_broker_id, before.next_broker_id);
    drop(handle);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_brokers_agree_and_survive_the_loss_of_their_leader() {
    let directories = directories(3);
    let mut brokers = fleet(&directories).await;
    let quorum = brokers[0].quorum();
    assert_eq!(quorum.voters.len(), 3);

    for broker in &brokers {
        let (handle, state) = (broker.service.handle(), broker.service.broker_state());
        let is_confirmed = |applied_index| state.borrow().is_confirmed(Instant::now(), applied_index);
        eventually("the controller confirms every broker", || is_confirmed(handle.image().log_index)).await;
        assert!(!is_confirmed(0), "it knows more than a broker that has applied nothing");
    }

    // Asked at a follower, decided at the leader, seen by everyone.
    let follower = brokers.iter().find(|broker| !broker.quorum().is_leader()).unwrap();
    make_topic(&follower.service.handle(), "orders").await;
    for broker in &brokers {
        let handle = broker.service.handle();
        eventually("every broker sees the topic", || handle.image().topic_by_name("orders").is_some()).await;
        assert_eq!(handle.image().live_brokers().count(), 3);
    }

    let position = brokers.iter().position(|broker| broker.quorum().is_leader()).unwrap();
    let lost = brokers.remove(position);
    let lost_id = lost.service.broker_state().borrow().broker_id.unwrap();
    let lost_node = lost.node_id();
    let (path, address) = lost.stop().await;
    let handle = brokers[0].service.handle();
    make_topic(&handle, "payments").await;
    eventually("another node leads", || brokers[0].quorum().leader.is_some_and(|leader| leader != lost_node))
        .await;
    eventually("the lost broker is fenced", || handle.image().brokers[&lost_id].fenced).await;

    let back = Broker::start_at(&path, &address, Plan::default()).await;
    back.in_service().await;
    assert_eq!(back.service.broker_state().borrow().broker_id, Some(lost_id));
    assert!(back.service.handle().image().topic_by_name("payments").is_some());
    for broker in brokers.into_iter().chain([back]) {
        broker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_falls_silent_is_fenced_although_others_ask_for_something_all_the_time() {
    let directories = directories(3);
    let mut brokers = fleet(&directories).await;
    let position = brokers.iter().position(|broker| !broker.quorum().is_leader()).unwrap();
    // It hangs: its port is open, so that nothing proves that it is gone.
    let Broker { service, listener, cancel, .. } = brokers.remove(position);
    let silent = service.broker_state().borrow().broker_id.unwrap();
    let leader = brokers.iter().find(|broker| broker.quorum().is_leader()).unwrap().service.handle();
    make_topic(&leader, "orders").await;
    let asking: Vec<_> = (0..4)
        .map(|_| {
            let leader = leader.clone();
            // It is as it should be already.
            tokio::spawn(async move {
                while leader.call_within(apply_topic("orders"), PATIENCE).await.is_ok() {
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    service.stop().await;
    eventually("it is fenced", || leader.image().brokers[&silent].fenced).await;
    asking.iter().for_each(tokio::task::JoinHandle::abort);
    cancel.cancel();
    listener.await.unwrap();
    drop(leader);
    for broker in brokers {
        broker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_further_broker_follows_the_log_even_from_a_snapshot() {
    let directories = directories(2);
    let plan = Plan { snapshot_every: 10, ..Plan::default() };
    let first = Broker::start(directories[0].path(), plan.clone()).await;
    first.service.bootstrap_single().await.unwrap();
    first.in_service().await;
    for number in 0..40 {
        make_topic(&first.service.handle(), &format!("topic-{number}")).await;
    }
    let bootstrap_servers = vec!["127.0.0.1:1".to_owned(), first.address.clone()];
    let second = Broker::start(directories[1].path(), Plan { bootstrap_servers, ..plan }).await;
    second.in_service().await;
    assert_eq!(second.service.handle().image().topics.len(), 40);
    let quorum = first.quorum();
    assert_eq!((quorum.voters.len(), quorum.members.len()), (1, 2), "two brokers have one voter");
    assert_eq!(quorum.learners().collect::<Vec<_>>(), vec![second.node_id()]);
    make_topic(&second.service.handle(), "from-the-follower").await;
    second.stop().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_grows_to_three_gets_three_voters_and_no_more() {
    let directories = directories(4);
    let mut brokers = vec![Broker::start(directories[0].path(), Plan::default()).await];
    brokers[0].service.bootstrap_single().await.unwrap();
    let bootstrap_servers = vec![brokers[0].address.clone()];
    for directory in &directories[1..] {
        let plan = Plan { bootstrap_servers: bootstrap_servers.clone(), ..Plan::default() };
        brokers.push(Broker::start(directory.path(), plan).await);
    }
    for broker in &brokers {
        broker.in_service().await;
    }
    eventually("three voters", || brokers[0].quorum().voters.len() == 3).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let quorum = brokers[0].quorum();
    assert_eq!((quorum.voters.len(), quorum.members.len()), (3, 4));
    for broker in brokers {
        broker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quorum_is_formed_once() {
    let directories = directories(2);
    let one = Broker::start(directories[0].path(), Plan::default()).await;
    let other = Broker::start(directories[1].path(), Plan::default()).await;
    let outcome = one.service.member().bootstrap(voters(&[&other])).await;
    assert_eq!(outcome, Err(BootstrapError::NotAVoter { node_id: one.node_id() }));
    for _ in 0..2 {
        one.service.member().bootstrap(voters(&[&one])).await.unwrap();
    }
    let outcome = one.service.member().bootstrap(voters(&[&one, &other])).await;
    assert!(matches!(outcome, Err(BootstrapError::AlreadyMember { .. })), "{outcome:?}");
    assert!(!other.quorum().is_member());
    let refused = other.service.handle().call_within(apply_topic("t"), Duration::from_millis(300)).await;
    assert!(matches!(refused, Err(ControllerError::Unavailable { .. })), "{refused:?}");
    one.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_of_another_cluster_cannot_join() {
    let directories = directories(2);
    let ours = Broker::start(directories[0].path(), Plan::default()).await;
    ours.service.bootstrap_single().await.unwrap();
    ours.in_service().await;
    let plan = Plan {
        cluster_id: Uuid::from_u128(0xbad),
        bootstrap_servers: vec![ours.address.clone()],
        ..Plan::default()
    };
    let stranger = Broker::start(directories[1].path(), plan).await;
    let mut state = stranger.service.broker_state();
    let told =
        state.wait_for(|state| state.problem.as_ref().is_some_and(|problem| problem.contains("cluster")));
    within("the stranger is told why", told).await.unwrap();
    assert_eq!(ours.quorum().members.len(), 1);
    stranger.stop().await;
    ours.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_stop_fences_the_broker_and_hands_the_quorum_over() {
    let directories = directories(3);
    let brokers = fleet(&directories).await;
    let leaving = brokers.iter().find(|broker| broker.quorum().is_leader()).unwrap();
    let leaving_id = leaving.service.broker_state().borrow().broker_id.unwrap();
    leaving.service.member().controlled_shutdown(PATIENCE).await.unwrap();
    assert!(!leaving.quorum().is_leader(), "the quorum was not handed over");
    assert!(leaving.service.handle().image().brokers[&leaving_id].fenced);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(
        leaving.service.handle().image().brokers[&leaving_id].fenced,
        "heartbeats brought it back into service"
    );
    let other = brokers.iter().find(|broker| broker.node_id() != leaving.node_id()).unwrap();
    make_topic(&other.service.handle(), "orders").await;
    for broker in brokers {
        broker.stop().await;
    }
}

#[tokio::test]
async fn a_configured_id_that_is_not_the_volumes_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let volume = Arc::new(Volume::open_or_format(directory.path(), CLUSTER).unwrap());
    volume.set_broker_id(1).unwrap();
    let facts = BrokerFacts { wanted_id: Some(2), ..BrokerFacts::default() };
    let options = MetadataOptions::new("localhost:1".to_owned(), facts, Arc::new(Defaults));
    let local = LocalNode { cluster_id: CLUSTER, node_id: volume.raft_node_id() };
    let error = MetadataService::start(options, volume, FleetClient::new(local, None)).await.unwrap_err();
    assert!(error.to_string().contains("node.id=2"), "{error}");
}
