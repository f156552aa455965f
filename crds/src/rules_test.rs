//! The CEL rules of both kinds, evaluated as the API server would: what is refused, and in which words.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use kube_cel::Validator;
use serde_json::{Value, json};

use crate::{KafkaCluster, MANAGED_KEYS, MANAGED_PREFIXES, Topic};

fn schema(crd: &CustomResourceDefinition) -> Value {
    serde_json::to_value(crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap())
        .unwrap()
}

/// Messages of the rules that `object` breaks, as a change of `old` where there is one.
fn messages(crd: &CustomResourceDefinition, object: &Value, old: Option<&Value>) -> Vec<String> {
    match Validator::new().validate(&schema(crd), object, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_iter().map(|error| error.message).collect(),
    }
}

fn cluster() -> Value {
    json!({
        "apiVersion": "millrace.dev/v1alpha1",
        "kind": "KafkaCluster",
        "metadata": {"name": "demo"},
        "spec": {
            "replicas": 3,
            "storage": {"size": "10Gi", "storageClassName": "standard"},
            "listeners": [
                {"name": "internal", "port": 9092, "type": "ClusterLocal"},
                {"name": "external", "port": 9094, "type": "NodePort", "advertisedHost": "localhost",
                 "nodePorts": {"bootstrap": 30092, "brokers": 30100}},
            ],
            "config": {"default.replication.factor": "3", "min.insync.replicas": "2"},
            "deletionPolicy": "Retain",
        },
    })
}

fn topic() -> Value {
    json!({
        "apiVersion": "millrace.dev/v1alpha1",
        "kind": "Topic",
        "metadata": {"name": "orders"},
        "spec": {"clusterRef": {"name": "demo"}, "partitions": 12, "replicas": 3},
    })
}

/// `base` with the value at `pointer` replaced or, for an object's last segment, inserted.
fn with(base: Value, pointer: &str, value: Value) -> Value {
    let mut changed = base;
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = changed.pointer_mut(parent).unwrap();
    match parent.as_array_mut() {
        Some(array) => array[key.parse::<usize>().unwrap()] = value,
        None => parent[key] = value,
    }
    changed
}

fn without(base: Value, pointer: &str) -> Value {
    let mut changed = base;
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match changed.pointer_mut(parent).unwrap() {
        Value::Array(array) => drop(array.remove(key.parse().unwrap())),
        parent => drop(parent.as_object_mut().unwrap().remove(key)),
    }
    changed
}

#[track_caller]
fn refused(crd: &CustomResourceDefinition, object: &Value, old: Option<&Value>, part: &str) {
    let messages = messages(crd, object, old);
    assert!(messages.iter().any(|message| message.contains(part)), "{part:?} is not in {messages:?}");
}

#[track_caller]
fn cluster_refused(pointer: &str, value: Value, part: &str) {
    refused(&KafkaCluster::crd(), &with(cluster(), pointer, value), None, part);
}

#[track_caller]
fn cluster_change_refused(changed: &Value, part: &str) {
    refused(&KafkaCluster::crd(), changed, Some(&cluster()), part);
}

#[track_caller]
fn topic_change_refused(changed: &Value, old: &Value, part: &str) {
    refused(&Topic::crd(), changed, Some(old), part);
}

#[test]
fn the_quickstart_passes_when_created_and_when_applied_again() {
    assert_eq!(messages(&KafkaCluster::crd(), &cluster(), None), Vec::<String>::new());
    assert_eq!(messages(&KafkaCluster::crd(), &cluster(), Some(&cluster())), Vec::<String>::new());
    assert_eq!(messages(&Topic::crd(), &topic(), None), Vec::<String>::new());
    assert_eq!(messages(&Topic::crd(), &topic(), Some(&topic())), Vec::<String>::new());
}

#[test]
fn replication_factor_needs_as_many_brokers() {
    for key in ["default", "offsets.topic", "transaction.state.log"] {
        let key = format!("{key}.replication.factor");
        cluster_refused(&format!("/spec/config/{key}"), json!("4"), "not more than spec.replicas");
        cluster_refused(&format!("/spec/config/{key}"), json!("many"), "must be a number");
    }
}

#[test]
fn min_insync_replicas_must_be_reachable() {
    cluster_refused("/spec/config/min.insync.replicas", json!("4"), "no record could ever be written");
    cluster_refused("/spec/config/min.insync.replicas", json!("0"), "a number from 1");
    cluster_refused(
        "/spec/config/default.replication.factor",
        json!("1"),
        "not be more than default.replication.factor",
    );
}

#[test]
fn properties_of_the_operator_cannot_be_set() {
    for key in
        MANAGED_KEYS.into_iter().map(str::to_owned).chain(MANAGED_PREFIXES.map(|prefix| format!("{prefix}x")))
    {
        cluster_refused(&format!("/spec/config/{key}"), json!("x"), "cannot be set in spec.config");
    }
    cluster_refused("/spec/config/a b", json!("x"), "a property name starts with a letter");
}

#[test]
fn listeners_have_names_and_ports_of_their_own() {
    cluster_refused("/spec/listeners/0/name", json!("fleet"), "'fleet' is reserved");
    cluster_refused("/spec/listeners/0/port", json!(9093), "are taken");
    cluster_refused("/spec/listeners/0/port", json!(8080), "are taken");
    cluster_refused("/spec/listeners/0/port", json!(9094), "two listeners have the same port");
    cluster_refused("/spec/listeners/0/name", json!("external"), "two listeners have the same name");
}

#[test]
fn node_port_listeners_say_where_clients_find_them() {
    for field in ["advertisedHost", "nodePorts"] {
        let object = without(cluster(), &format!("/spec/listeners/1/{field}"));
        refused(&KafkaCluster::crd(), &object, None, "needs advertisedHost");
    }
    cluster_refused(
        "/spec/listeners/0/advertisedHost",
        json!("x"),
        "belong to listeners of type NodePort only",
    );
}

#[test]
fn node_ports_do_not_overlap() {
    cluster_refused(
        "/spec/listeners/1/nodePorts/bootstrap",
        json!(30102),
        "lies within the ports of the brokers",
    );
    assert!(
        messages(
            &KafkaCluster::crd(),
            &with(cluster(), "/spec/listeners/1/nodePorts/bootstrap", json!(30103)),
            None
        )
        .is_empty()
    );
    cluster_refused("/spec/listeners/1/nodePorts/brokers", json!(65534), "beyond port 65535");
    let second = json!({"name": "other", "port": 9095, "type": "NodePort", "advertisedHost": "localhost",
                        "nodePorts": {"bootstrap": 30093, "brokers": 30102}});
    let mut object = cluster();
    object["spec"]["listeners"].as_array_mut().unwrap().push(second);
    refused(&KafkaCluster::crd(), &object, None, "node ports of two listeners overlap");
}

#[test]
fn listeners_stay_as_they_are_and_others_may_be_added() {
    cluster_change_refused(&without(cluster(), "/spec/listeners/1"), "cannot be removed or renamed");
    let mut grown = cluster();
    grown["spec"]["listeners"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "more", "port": 9100, "type": "ClusterLocal"}));
    assert!(messages(&KafkaCluster::crd(), &grown, Some(&cluster())).is_empty());
}

#[test]
fn storage_grows_and_never_shrinks_or_moves() {
    assert!(
        messages(
            &KafkaCluster::crd(),
            &with(cluster(), "/spec/storage/size", json!("10240Mi")),
            Some(&cluster())
        )
        .is_empty()
    );
    assert!(
        messages(
            &KafkaCluster::crd(),
            &with(cluster(), "/spec/storage/size", json!("1Ti")),
            Some(&cluster())
        )
        .is_empty()
    );
    cluster_change_refused(&with(cluster(), "/spec/storage/size", json!("9Gi")), "size cannot shrink");
    cluster_refused("/spec/storage/size", json!("big"), "must be a quantity above zero");
    cluster_refused("/spec/storage/size", json!("0"), "must be a quantity above zero");
    cluster_change_refused(
        &with(cluster(), "/spec/storage/storageClassName", json!("fast")),
        "storageClassName cannot be changed",
    );
    cluster_change_refused(
        &without(cluster(), "/spec/storage/storageClassName"),
        "storageClassName cannot be changed",
    );
    let unset = without(cluster(), "/spec/storage/storageClassName");
    refused(&KafkaCluster::crd(), &cluster(), Some(&unset), "storageClassName cannot be changed");
}

#[test]
fn cluster_names_make_service_names() {
    for name in ["9lives", &"a".repeat(33), "with.dot"] {
        cluster_refused("/metadata/name", json!(name), "metadata.name must have at most 32 characters");
    }
}

#[test]
fn partitions_grow_and_never_shrink() {
    let topic = topic();
    topic_change_refused(
        &with(topic.clone(), "/spec/partitions", json!(11)),
        &topic,
        "partitions cannot shrink",
    );
    assert!(
        messages(&Topic::crd(), &with(topic.clone(), "/spec/partitions", json!(13)), Some(&topic)).is_empty()
    );
    assert!(messages(&Topic::crd(), &without(topic.clone(), "/spec/partitions"), Some(&topic)).is_empty());
}

#[test]
fn a_topic_keeps_its_cluster_and_its_name() {
    let topic = topic();
    topic_change_refused(
        &with(topic.clone(), "/spec/clusterRef/name", json!("other")),
        &topic,
        "clusterRef cannot be changed",
    );
    let named = with(topic.clone(), "/spec/topicName", json!("x"));
    topic_change_refused(&named, &topic, "topicName cannot be changed");
    topic_change_refused(&topic, &named, "topicName cannot be changed");
    topic_change_refused(
        &with(topic.clone(), "/spec/topicName", json!("y")),
        &named,
        "topicName cannot be changed",
    );
}

#[test]
fn topic_names_are_those_that_kafka_takes() {
    refused(&Topic::crd(), &with(topic(), "/spec/topicName", json!("..")), None, "cannot be named");
    refused(
        &Topic::crd(),
        &with(topic(), "/spec/topicName", json!("__consumer_offsets")),
        None,
        "belongs to the brokers",
    );
    refused(
        &Topic::crd(),
        &with(topic(), "/metadata/name", json!("a".repeat(250))),
        None,
        "set spec.topicName",
    );
}

#[test]
fn min_insync_replicas_of_a_topic_must_be_reachable() {
    let object = with(topic(), "/spec/config", json!({"min.insync.replicas": "4"}));
    refused(&Topic::crd(), &object, None, "no record could ever be written");
}

#[test]
fn the_schema_bounds_what_rules_do_not() {
    let cluster = schema(&KafkaCluster::crd());
    let field = |pointer: &str| cluster.pointer(&format!("/properties/spec/properties{pointer}")).cloned();
    assert_eq!(field("/replicas/minimum"), Some(json!(1.0)));
    assert_eq!(field("/replicas/default"), Some(json!(3)));
    assert_eq!(field("/listeners/minItems"), Some(json!(1)));
    assert_eq!(field("/listeners/x-kubernetes-list-map-keys"), Some(json!(["name"])));
    assert_eq!(field("/deletionPolicy/default"), Some(json!("Retain")));
    assert_eq!(field("/config/additionalProperties/pattern"), Some(json!("^[^\\r\\n]*$")));
    let topic = schema(&Topic::crd());
    let partitions = topic.pointer("/properties/spec/properties/partitions").unwrap();
    assert_eq!((&partitions["minimum"], &partitions["maximum"]), (&json!(1.0), &json!(10000.0)));
}

#[test]
fn every_field_is_documented() {
    fn undocumented(path: &str, schema: &Value, found: &mut Vec<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if field["description"].as_str().is_none_or(str::is_empty) {
                found.push(path.clone());
            }
            undocumented(&path, field, found);
            undocumented(&path, &field["items"], found);
        }
    }
    for crd in [KafkaCluster::crd(), Topic::crd()] {
        let mut found = Vec::new();
        for part in ["spec", "status"] {
            undocumented(part, &schema(&crd)["properties"][part], &mut found);
        }
        assert_eq!(found, Vec::<String>::new(), "{}", crd.spec.names.kind);
    }
}

#[test]
fn kubectl_knows_short_names_category_columns_and_scale() {
    let crd = KafkaCluster::crd();
    assert_eq!(crd.spec.names.short_names, Some(vec!["kc".to_owned()]));
    assert_eq!(crd.spec.names.categories, Some(vec!["kafka".to_owned()]));
    let version = &crd.spec.versions[0];
    let columns = |version: &k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionVersion| {
        version.additional_printer_columns.iter().flatten().filter(|c| c.priority.is_none()).map(|c| c.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(columns(version), ["Ready", "Brokers", "Version", "Age"]);
    let scale = version.subresources.as_ref().unwrap().scale.as_ref().unwrap();
    assert_eq!(scale.spec_replicas_path, ".spec.replicas");
    assert_eq!(scale.label_selector_path.as_deref(), Some(".status.selector"));
    let crd = Topic::crd();
    assert_eq!(crd.spec.names.short_names, Some(vec!["kt".to_owned()]));
    assert_eq!(
        columns(&crd.spec.versions[0]),
        ["Cluster", "Topic", "Partitions", "Replicas", "Ready", "Age"]
    );
}
