//! Requests about topics as clients and managing objects send them, and what the controller makes of them.

use std::collections::BTreeMap;

use millrace_management::{ApplyTopic, TopicOwner, code};
use millrace_protocol::ErrorCode;
use millrace_protocol::messages::create_partitions_request::{
    CreatePartitionsAssignment, CreatePartitionsTopic,
};
use millrace_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use millrace_protocol::messages::delete_topics_request::DeleteTopicState;
use millrace_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use millrace_protocol::messages::{
    CreatePartitionsRequest, CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest,
    IncrementalAlterConfigsRequest,
};
use uuid::Uuid;

use super::fixtures::{TestSettings, add_topic, broker, counting_uuids, image};
use super::{ControllerRequest, ControllerResponse, decide};
use crate::metadata::image::{BrokerId, MetadataImage};

fn run(image: &mut MetadataImage, request: ControllerRequest) -> (ControllerResponse, usize) {
    run_with(image, request, &TestSettings::default())
}

fn run_with(
    image: &mut MetadataImage,
    request: ControllerRequest,
    settings: &TestSettings,
) -> (ControllerResponse, usize) {
    let decision = decide(image, &request, settings, &mut counting_uuids());
    image.log_index += 1;
    for record in &decision.records {
        image.apply(record, image.log_index).expect("decisions fit the image");
    }
    (decision.response, decision.records.len())
}

fn fleet() -> MetadataImage {
    image([broker(0), broker(1), broker(2)])
}

fn topic(name: &str, partitions: i32, replicas: i16) -> CreatableTopic {
    CreatableTopic {
        name: name.into(),
        num_partitions: partitions,
        replication_factor: replicas,
        ..Default::default()
    }
}

fn create(image: &mut MetadataImage, topics: Vec<CreatableTopic>) -> CreateTopicsResponse {
    match run(image, ControllerRequest::CreateTopics(CreateTopicsRequest { topics, ..Default::default() })).0
    {
        ControllerResponse::CreateTopics(response) => response,
        other => panic!("not an answer to CreateTopics: {other:?}"),
    }
}

fn codes(response: &CreateTopicsResponse) -> Vec<i16> {
    response.topics.iter().map(|topic| topic.error_code).collect()
}

#[test]
fn a_topic_has_the_partitions_and_replicas_asked_for_and_all_in_service_are_in_sync() {
    let mut image = fleet();
    let response = create(&mut image, vec![topic("orders", 12, 3)]);
    assert_eq!((response.topics[0].num_partitions, response.topics[0].replication_factor), (12, 3));
    let topic = image.topic_by_name("orders").expect("just made");
    assert_eq!(topic.topic_id, response.topics[0].topic_id);
    for state in &topic.partitions {
        assert_eq!((state.isr.clone(), state.isr.len()), (state.replica_ids().collect(), 3));
        assert_eq!(state.leader, state.isr[0]);
    }
}

#[test]
fn what_the_client_leaves_open_comes_from_the_settings() {
    let mut image = fleet();
    let response = create(&mut image, vec![topic("t", -1, -1)]);
    assert_eq!((response.topics[0].num_partitions, response.topics[0].replication_factor), (4, 1));
}

#[test]
fn each_topic_of_a_request_stands_for_itself() {
    let mut image = fleet();
    add_topic(&mut image, "there", &[vec![0]]);
    let long = "x".repeat(250);
    let response = create(
        &mut image,
        vec![
            topic("there", 1, 1),
            topic("good", 1, 1),
            topic("no/slash", 1, 1),
            topic("..", 1, 1),
            topic(&long, 1, 1),
            topic("none", 0, 1),
            topic("many", 1, 4),
            topic("zero", 1, 0),
        ],
    );
    let expected = [
        ErrorCode::TopicAlreadyExists,
        ErrorCode::None,
        ErrorCode::InvalidTopicException,
        ErrorCode::InvalidTopicException,
        ErrorCode::InvalidTopicException,
        ErrorCode::InvalidPartitions,
        ErrorCode::InvalidReplicationFactor,
        ErrorCode::InvalidReplicationFactor,
    ];
    assert_eq!(codes(&response), expected.map(|code| code.code()));
    assert!(image.topic_by_name("good").is_some());
}

#[test]
fn a_name_that_comes_twice_in_a_request_is_refused_once() {
    let mut image = fleet();
    let response = create(&mut image, vec![topic("t", 1, 1), topic("t", 2, 1)]);
    assert_eq!(codes(&response), vec![ErrorCode::InvalidRequest.code()]);
    assert!(image.topics.is_empty());
}

#[test]
fn names_that_differ_in_dots_and_underscores_only_collide() {
    let mut image = fleet();
    add_topic(&mut image, "a.b", &[vec![0]]);
    assert_eq!(
        codes(&create(&mut image, vec![topic("a_b", 1, 1)])),
        vec![ErrorCode::InvalidTopicException.code()]
    );
}

#[test]
fn validate_only_answers_and_writes_nothing() {
    let mut image = fleet();
    let request =
        CreateTopicsRequest { topics: vec![topic("t", 1, 1)], validate_only: true, ..Default::default() };
    let (response, written) = run(&mut image, ControllerRequest::CreateTopics(request));
    assert!(matches!(&response, ControllerResponse::CreateTopics(answer) if codes(answer) == vec![0]));
    assert_eq!(written, 0);
}

#[test]
fn a_manual_assignment_is_kept_and_a_bad_one_refused() {
    let assigned = |lists: &[&[i32]]| CreatableTopic {
        assignments: (0..)
            .zip(lists)
            .map(|(partition_index, ids)| CreatableReplicaAssignment {
                partition_index,
                broker_ids: ids.to_vec(),
                ..Default::default()
            })
            .collect(),
        ..topic("t", -1, -1)
    };
    for bad in [&[&[0, 0][..]][..], &[&[9]], &[&[]], &[&[0], &[0, 1]]] {
        assert_eq!(
            codes(&create(&mut fleet(), vec![assigned(bad)])),
            vec![ErrorCode::InvalidReplicaAssignment.code()],
            "{bad:?} was taken"
        );
    }
    let mut image = fleet();
    assert_eq!(codes(&create(&mut image, vec![assigned(&[&[2, 0], &[1, 2]])])), vec![0]);
    let leaders: Vec<i32> =
        image.topic_by_name("t").expect("made").partitions.iter().map(|state| state.leader).collect();
    assert_eq!(leaders, vec![2, 1]);
}

#[test]
fn a_bad_setting_makes_no_topic() {
    let mut image = fleet();
    let config = |key: &str, value: &str| CreatableTopicConfig {
        name: key.into(),
        value: Some(value.into()),
        ..Default::default()
    };
    let with = |entry| CreatableTopic { configs: vec![entry], ..topic("t", 1, 1) };
    assert_eq!(
        codes(&create(&mut image, vec![with(config("no.such", "1"))])),
        vec![ErrorCode::InvalidConfig.code()]
    );
    assert_eq!(codes(&create(&mut image, vec![with(config("retention.ms", "x"))])), vec![40]);
    assert!(image.topics.is_empty());
    assert_eq!(codes(&create(&mut image, vec![with(config("retention.ms", "5"))])), vec![0]);
    assert_eq!(image.topic_by_name("t").expect("made").config["retention.ms"], "5");
}

#[test]
fn topics_are_deleted_by_name_and_by_id_and_unknown_ones_say_so() {
    let mut image = fleet();
    add_topic(&mut image, "named", &[vec![0]]);
    let by_id = add_topic(&mut image, "by-id", &[vec![1]]);
    let state = |name: Option<&str>, topic_id| DeleteTopicState {
        name: name.map(Into::into),
        topic_id,
        ..Default::default()
    };
    let topics = vec![
        state(Some("named"), Uuid::nil()),
        state(None, by_id),
        state(Some("absent"), Uuid::nil()),
        state(None, Uuid::from_u128(1)),
    ];
    let request = ControllerRequest::DeleteTopics(DeleteTopicsRequest { topics, ..Default::default() });
    let (response, _) = run(&mut image, request);
    let ControllerResponse::DeleteTopics(response) = response else {
        panic!("not an answer to DeleteTopics")
    };
    let codes: Vec<i16> = response.responses.iter().map(|result| result.error_code).collect();
    assert_eq!(codes, vec![0, 0, 3, 100]);
    assert!(image.topics.is_empty() && image.topic_ids.is_empty());
}

#[test]
fn deletion_that_is_switched_off_keeps_the_topic() {
    let mut image = fleet();
    add_topic(&mut image, "t", &[vec![0]]);
    let request = DeleteTopicsRequest { topic_names: vec!["t".into()], ..Default::default() };
    let settings = TestSettings { deletion_disabled: true, ..TestSettings::default() };
    let (response, written) = run_with(&mut image, ControllerRequest::DeleteTopics(request), &settings);
    assert!(
        matches!(response, ControllerResponse::DeleteTopics(answer) if answer.responses[0].error_code == ErrorCode::TopicDeletionDisabled.code())
    );
    assert_eq!(written, 0);
}

#[test]
fn partitions_grow_and_never_shrink() {
    let mut image = fleet();
    add_topic(&mut image, "t", &[vec![0], vec![1]]);
    let mut grow = |count, assignments: Option<Vec<i32>>| {
        let assignments =
            assignments.map(|ids| vec![CreatePartitionsAssignment { broker_ids: ids, ..Default::default() }]);
        let topics =
            vec![CreatePartitionsTopic { name: "t".into(), count, assignments, ..Default::default() }];
        let request = CreatePartitionsRequest { topics, ..Default::default() };
        match run(&mut image, ControllerRequest::CreatePartitions(request)).0 {
            ControllerResponse::CreatePartitions(response) => response.results[0].error_code,
            other => panic!("not an answer to CreatePartitions: {other:?}"),
        }
    };
    assert_eq!(grow(1, None), ErrorCode::InvalidPartitions.code());
    assert_eq!(grow(2, None), ErrorCode::InvalidPartitions.code());
    assert_eq!(grow(3, Some(vec![0, 1])), ErrorCode::InvalidReplicaAssignment.code());
    assert_eq!(grow(3, Some(vec![2])), 0);
    assert_eq!(grow(6, None), 0);
    let leaders: Vec<i32> =
        image.topic_by_name("t").expect("there").partitions.iter().map(|state| state.leader).collect();
    assert_eq!(leaders, vec![0, 1, 2, 0, 1, 2]);
}

fn alter(image: &mut MetadataImage, changes: &[(&str, i8, Option<&str>)]) -> (i16, usize) {
    let configs = changes
        .iter()
        .map(|(key, config_operation, value)| AlterableConfig {
            name: (*key).into(),
            config_operation: *config_operation,
            value: value.map(Into::into),
            ..Default::default()
        })
        .collect();
    let resources = vec![AlterConfigsResource {
        resource_type: 2,
        resource_name: "t".into(),
        configs,
        ..Default::default()
    }];
    let request = IncrementalAlterConfigsRequest { resources, ..Default::default() };
    match run(image, ControllerRequest::IncrementalAlterConfigs(request)) {
        (ControllerResponse::IncrementalAlterConfigs(response), written) => {
            (response.responses[0].error_code, written)
        }
        other => panic!("not an answer to IncrementalAlterConfigs: {other:?}"),
    }
}

#[test]
fn settings_are_changed_as_a_whole_or_not_at_all() {
    let mut image = fleet();
    add_topic(&mut image, "t", &[vec![0]]);
    assert_eq!(alter(&mut image, &[("retention.ms", 0, Some("5"))]), (0, 1));
    assert_eq!(alter(&mut image, &[("retention.ms", 0, Some("5"))]), (0, 0));
    assert_eq!(
        alter(&mut image, &[("retention.ms", 0, Some("6")), ("max.message.bytes", 0, Some("x"))]).0,
        40
    );
    assert_eq!(alter(&mut image, &[("retention.ms", 2, Some("6"))]).0, 40);
    assert_eq!(
        alter(&mut image, &[("retention.ms", 0, Some("13")), ("max.message.bytes", 0, Some("1"))]).0,
        40
    );
    assert_eq!(alter(&mut image, &[("cleanup.policy", 2, Some("compact"))]).0, 0);
    let config = &image.topic_by_name("t").expect("there").config;
    assert_eq!((config["retention.ms"].as_str(), config["cleanup.policy"].as_str()), ("5", "delete,compact"));
    assert_eq!(alter(&mut image, &[("cleanup.policy", 3, Some("delete")), ("retention.ms", 1, None)]).0, 0);
    let config = &image.topic_by_name("t").expect("there").config;
    assert_eq!(config, &BTreeMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]));
}

fn wanted(uid: &str) -> ApplyTopic {
    ApplyTopic {
        owner: TopicOwner { namespace: "ns".into(), name: "orders".into(), uid: uid.into() },
        partitions: Some(3),
        replicas: Some(1),
        config: BTreeMap::from([("retention.ms".to_owned(), "5".to_owned())]),
        adopt: false,
    }
}

fn apply(image: &mut MetadataImage, request: ApplyTopic) -> Result<bool, String> {
    let (response, written) = run(image, ControllerRequest::ApplyTopic { name: "orders".into(), request });
    match response {
        ControllerResponse::TopicApplied(result) => {
            assert_eq!(result.changed, written > 0);
            Ok(result.changed)
        }
        ControllerResponse::Refused(error) => {
            assert_eq!(written, 0, "a refusal writes nothing");
            Err(error.code)
        }
        other => panic!("not an answer to ApplyTopic: {other:?}"),
    }
}

#[test]
fn a_managed_topic_is_made_once_and_then_nothing_is_written() {
    let mut image = fleet();
    assert_eq!(apply(&mut image, wanted("u1")), Ok(true));
    assert_eq!(apply(&mut image, wanted("u1")), Ok(false));
}

#[test]
fn a_topic_has_one_managing_object() {
    let mut image = fleet();
    assert_eq!(apply(&mut image, wanted("u1")), Ok(true));
    assert_eq!(apply(&mut image, wanted("u2")), Err(code::OWNED_BY_ANOTHER.to_owned()));
}

#[test]
fn a_topic_that_nobody_manages_is_taken_over_only_on_request() {
    let mut image = fleet();
    add_topic(&mut image, "orders", &[vec![0], vec![1], vec![2]]);
    assert_eq!(apply(&mut image, wanted("u1")), Err(code::NOT_ADOPTED.to_owned()));
    assert_eq!(apply(&mut image, ApplyTopic { adopt: true, ..wanted("u1") }), Ok(true));
    assert_eq!(image.topic_by_name("orders").expect("there").config["retention.ms"], "5");
}

#[test]
fn a_managed_topic_grows_and_refuses_to_shrink_or_change_its_replicas() {
    let mut image = fleet();
    assert_eq!(apply(&mut image, wanted("u1")), Ok(true));
    let shrink = ApplyTopic { partitions: Some(2), ..wanted("u1") };
    assert_eq!(apply(&mut image, shrink), Err(code::PARTITIONS_SHRINK.to_owned()));
    let replicas = ApplyTopic { replicas: Some(3), ..wanted("u1") };
    assert_eq!(apply(&mut image, replicas), Err(code::INVALID_REPLICATION_FACTOR.to_owned()));
    assert_eq!(apply(&mut image, ApplyTopic { partitions: Some(5), ..wanted("u1") }), Ok(true));
    assert_eq!(image.topic_by_name("orders").expect("there").partitions.len(), 5);
}

#[test]
fn what_the_object_leaves_unset_stays_as_it_is() {
    let mut image = fleet();
    assert_eq!(apply(&mut image, wanted("u1")), Ok(true));
    let by_hand = image.topic_ids["orders"];
    let topic = std::sync::Arc::make_mut(image.topics.get_mut(&by_hand).expect("there"));
    topic.config.insert("max.message.bytes".to_owned(), "9".to_owned());
    let unset = ApplyTopic { partitions: None, replicas: None, config: BTreeMap::new(), ..wanted("u1") };
    assert_eq!(apply(&mut image, unset.clone()), Ok(true));
    let topic = image.topic_by_name("orders").expect("there");
    assert_eq!(topic.config, BTreeMap::from([("max.message.bytes".to_owned(), "9".to_owned())]));
    assert_eq!(topic.partitions.len(), 3);
    assert_eq!(apply(&mut image, unset), Ok(false));
}

#[test]
fn only_the_managing_object_deletes_or_releases() {
    let mut image = fleet();
    assert_eq!(apply(&mut image, wanted("u1")), Ok(true));
    let delete =
        |uid: &str| ControllerRequest::DeleteOwnedTopic { name: "orders".into(), owner_uid: uid.into() };
    let release = ControllerRequest::ReleaseTopic { name: "orders".into(), owner_uid: "u1".into() };
    assert!(matches!(run(&mut image, delete("u2")).0, ControllerResponse::Refused(_)));
    assert_eq!(run(&mut image, release).0, ControllerResponse::Done);
    assert!(
        matches!(run(&mut image, delete("u1")).0, ControllerResponse::Refused(_)),
        "released is not owned"
    );
    assert_eq!(apply(&mut image, ApplyTopic { adopt: true, ..wanted("u3") }), Ok(true));
    assert_eq!(run(&mut image, delete("u3")).0, ControllerResponse::Done);
    assert!(image.topics.is_empty());
}

#[test]
fn the_records_of_an_image_make_the_same_image() {
    let mut image = fleet();
    assert_eq!(apply(&mut image, wanted("u1")), Ok(true));
    add_topic(&mut image, "other", &[vec![0, 1], vec![2, 0]]);
    let mut copy = MetadataImage::empty(image.cluster_id);
    for record in image.to_records() {
        copy.apply(&record, 99).expect("a snapshot applies");
    }
    (copy.log_index, copy.term) = (image.log_index, image.term);
    assert_eq!(copy, image);
}

#[test]
fn replicas_of_brokers_out_of_service_are_not_in_sync_unless_there_are_no_others() {
    let mut image = image([broker(0).fenced(), broker(1), broker(2).fenced()]);
    let assigned = |name: &str, broker_ids: Vec<BrokerId>| CreatableTopic {
        assignments: vec![CreatableReplicaAssignment { broker_ids, ..Default::default() }],
        ..topic(name, -1, -1)
    };
    create(&mut image, vec![assigned("some", vec![0, 1, 2]), assigned("none", vec![2, 0])]);
    let state = |name: &str| {
        let state = &image.topic_by_name(name).expect("just made").partitions[0];
        (state.leader, state.isr.clone())
    };
    assert_eq!((state("some"), state("none")), ((1, vec![1]), (-1, vec![2])));
}
