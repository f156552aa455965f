//! Elections over many partitions, after changes and on request.

use std::collections::BTreeMap;

use millrace_protocol::messages::IncrementalAlterConfigsRequest;
use millrace_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};

use super::super::fixtures::{TestSettings, add_topic, broker, change_first, image, run};
use super::super::{ControllerRequest, ControllerResponse};
use super::*;

/// Three brokers and a topic of which 0 leads, 1 is eligible and 2 neither, under a minimum of two.
fn under_minimum() -> (MetadataImage, Uuid) {
    let mut image = image([broker(0), broker(1), broker(2)]);
    let topic_id = add_topic(&mut image, "t", &[vec![0, 1, 2]]);
    change_first(&mut image, topic_id, |state| state.elr = vec![1]);
    let topic = image.topics.get_mut(&topic_id).map(std::sync::Arc::make_mut).expect("just added");
    topic.config = BTreeMap::from([("min.insync.replicas".to_owned(), "2".to_owned())]);
    (image, topic_id)
}

fn configure(resource_type: i8, resource_name: &str, key: &str, value: Option<&str>) -> ControllerRequest {
    let config = AlterableConfig {
        name: key.into(),
        config_operation: i8::from(value.is_none()),
        value: value.map(Into::into),
        ..Default::default()
    };
    let resource_name = resource_name.into();
    let resource =
        AlterConfigsResource { resource_type, resource_name, configs: vec![config], ..Default::default() };
    let resources = vec![resource];
    ControllerRequest::IncrementalAlterConfigs(IncrementalAlterConfigsRequest {
        resources,
        ..Default::default()
    })
}

fn elr(image: &MetadataImage, topic_id: Uuid) -> Vec<BrokerId> {
    image.topics[&topic_id].partitions[0].elr.clone()
}

#[test]
fn a_lower_minimum_ends_the_eligibility_in_the_same_entry() {
    let (image, topic_id) = under_minimum();
    let settings = TestSettings::default();
    for value in [Some("1"), None] {
        let request = configure(2, "t", "min.insync.replicas", value);
        let (next, decision) = run(&image, &request, &settings);
        assert_eq!((elr(&next, topic_id), decision.records.len()), (vec![], 2), "set to {value:?}");
    }
    let (next, decision) = run(&image, &configure(2, "t", "min.insync.replicas", Some("3")), &settings);
    assert_eq!((elr(&next, topic_id), decision.records.len()), (vec![1], 1));
    let (next, _) = run(&image, &configure(2, "t", "retention.ms", Some("5")), &settings);
    assert_eq!(elr(&next, topic_id), [1]);
}

#[test]
fn the_minimum_of_the_cluster_counts_where_the_topic_has_none() {
    let (image, topic_id) = under_minimum();
    let settings = TestSettings::default();
    let cluster = |value| configure(4, "", "min.insync.replicas", value);
    let (two, _) = run(&image, &cluster(Some("2")), &settings);
    assert_eq!(elr(&two, topic_id), [1]);
    let (inherited, _) = run(&two, &configure(2, "t", "min.insync.replicas", None), &settings);
    assert_eq!(elr(&inherited, topic_id), [1], "two as before");
    for value in [Some("1"), None] {
        let (next, _) = run(&inherited, &cluster(value), &settings);
        assert_eq!(elr(&next, topic_id), [] as [BrokerId; 0], "set to {value:?}");
    }
}

#[test]
fn a_validated_change_of_the_minimum_changes_nothing() {
    let (image, _) = under_minimum();
    let mut request = configure(2, "t", "min.insync.replicas", Some("1"));
    if let ControllerRequest::IncrementalAlterConfigs(request) = &mut request {
        request.validate_only = true;
    }
    assert_eq!(run(&image, &request, &TestSettings::default()).1.records, []);
}

#[test]
fn allowing_unclean_election_elects_where_nobody_leads() {
    let mut image = image([broker(0).fenced(), broker(1)]);
    let topic_id = add_topic(&mut image, "t", &[vec![0, 1]]);
    change_first(&mut image, topic_id, |state| state.leader = NO_LEADER);
    let request = configure(2, "t", "unclean.leader.election.enable", Some("true"));
    let (next, _) = run(&image, &request, &TestSettings::default());
    assert_eq!(next.topics[&topic_id].partitions[0].leader, 1);
}

fn elect(election_type: i8, partitions: Option<&[(&str, &[i32])]>) -> ControllerRequest {
    let topic = |(topic, partitions): &(&str, &[i32])| TopicPartitions {
        topic: (*topic).into(),
        partitions: partitions.to_vec(),
        ..Default::default()
    };
    let topic_partitions = partitions.map(|topics| topics.iter().map(topic).collect());
    ControllerRequest::ElectLeaders(ElectLeadersRequest {
        election_type,
        topic_partitions,
        ..Default::default()
    })
}

type Errors = Vec<(String, i32, i16)>;

fn answer(image: &MetadataImage, request: &ControllerRequest) -> (MetadataImage, i16, Errors) {
    let (next, decision) = run(image, request, &TestSettings::default());
    let ControllerResponse::ElectLeaders(response) = decision.response else {
        panic!("{:?}", decision.response)
    };
    let results = response.replica_election_results.iter().flat_map(|topic| {
        topic.partition_result.iter().map(|result| {
            assert_eq!(result.error_message.is_none(), result.error_code == 0);
            (topic.topic.as_str().to_owned(), result.partition_id, result.error_code)
        })
    });
    (next, response.error_code, results.collect())
}

/// Partition 0 is led by its preferred leader, 1 is not, 2's is not in sync, 3 has no leader.
fn four_partitions() -> (MetadataImage, Uuid) {
    let mut image = image([broker(0), broker(1), broker(2).fenced()]);
    let replicas = [vec![0, 1], vec![0, 1], vec![0, 1], vec![2, 1]];
    let topic_id = add_topic(&mut image, "t", &replicas);
    let topic = image.topics.get_mut(&topic_id).map(std::sync::Arc::make_mut).expect("just added");
    (topic.partitions[1].leader, topic.partitions[1].isr) = (1, vec![1, 0]);
    (topic.partitions[2].leader, topic.partitions[2].isr) = (1, vec![1]);
    topic.partitions[3].leader = NO_LEADER;
    (image, topic_id)
}

fn leaders(image: &MetadataImage, topic_id: Uuid) -> Vec<BrokerId> {
    image.topics[&topic_id].partitions.iter().map(|state| state.leader).collect()
}

fn errors(expected: &[(&str, i32, ErrorCode)]) -> Errors {
    expected.iter().map(|(topic, number, error)| ((*topic).to_owned(), *number, error.code())).collect()
}

#[test]
fn preferred_leaders_are_elected_and_every_named_partition_is_answered() {
    let (image, topic_id) = four_partitions();
    let named = elect(0, Some(&[("t", &[0, 1, 2, 3, 4]), ("u", &[0])]));
    let (next, error, results) = answer(&image, &named);
    assert_eq!((leaders(&next, topic_id), error), (vec![0, 0, 1, NO_LEADER], 0));
    let expected = errors(&[
        ("t", 0, ErrorCode::ElectionNotNeeded),
        ("t", 1, ErrorCode::None),
        ("t", 2, ErrorCode::PreferredLeaderNotAvailable),
        ("t", 3, ErrorCode::PreferredLeaderNotAvailable),
        ("t", 4, ErrorCode::UnknownTopicOrPartition),
        ("u", 0, ErrorCode::UnknownTopicOrPartition),
    ]);
    assert_eq!(results, expected);
}

#[test]
fn all_partitions_are_answered_but_those_that_need_nothing() {
    let (image, topic_id) = four_partitions();
    let (next, _, results) = answer(&image, &elect(0, None));
    assert_eq!(leaders(&next, topic_id), [0, 0, 1, NO_LEADER]);
    let expected = errors(&[
        ("t", 1, ErrorCode::None),
        ("t", 2, ErrorCode::PreferredLeaderNotAvailable),
        ("t", 3, ErrorCode::PreferredLeaderNotAvailable),
    ]);
    assert_eq!(results, expected);
}

#[test]
fn unclean_elections_are_for_partitions_without_leader() {
    let (image, topic_id) = four_partitions();
    let (next, _, results) = answer(&image, &elect(1, Some(&[("t", &[1, 3])])));
    assert_eq!(leaders(&next, topic_id), [0, 1, 1, 1]);
    assert_eq!(results, errors(&[("t", 1, ErrorCode::ElectionNotNeeded), ("t", 3, ErrorCode::None)]));
    let mut all_fenced = image.clone();
    for broker in all_fenced.brokers.values_mut() {
        std::sync::Arc::make_mut(broker).fenced = true;
    }
    let (_, _, results) = answer(&all_fenced, &elect(1, Some(&[("t", &[3])])));
    assert_eq!(results, errors(&[("t", 3, ErrorCode::EligibleLeadersNotAvailable)]));
}

#[test]
fn an_election_of_an_unknown_type_is_refused() {
    let (image, _) = four_partitions();
    let (_, error, results) = answer(&image, &elect(7, Some(&[("t", &[1])])));
    assert_eq!((error, results), (42, errors(&[("t", 1, ErrorCode::InvalidRequest)])));
}

#[test]
fn preferred_leaders_that_are_in_sync_are_found_some_at_a_time() {
    let (mut image, _) = four_partitions();
    add_topic(&mut image, "u", &[vec![1, 0]]);
    let topic_id = add_topic(&mut image, "v", &[vec![1, 0]]);
    change_first(&mut image, topic_id, |state| (state.leader, state.isr) = (0, vec![0, 1]));
    let found = |image: &MetadataImage, limit| {
        let request = preferred_leaders_to_elect(image, limit)?;
        let topics = request.topic_partitions?.into_iter();
        Some(topics.map(|topic| (topic.topic.as_str().to_owned(), topic.partitions)).collect::<Vec<_>>())
    };
    let one = ("t".to_owned(), vec![1]);
    assert_eq!(found(&image, 1), Some(vec![one.clone()]));
    assert_eq!(found(&image, 9), Some(vec![one, ("v".to_owned(), vec![0])]));
    let request = preferred_leaders_to_elect(&image, 9).expect("two");
    let (next, _) = run(&image, &ControllerRequest::ElectLeaders(request), &TestSettings::default());
    assert_eq!(found(&next, 9), None, "nothing is left to do");
}
