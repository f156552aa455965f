//! The routes against a broker with a quorum of its own, without a network in between.

use axum::body::Body as HttpBody;
use axum::http::Request;
use http_body_util::BodyExt;
use millrace_management::{TopicOwner, Voter};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::metadata::service::tests::{Broker, PATIENCE, Plan};

struct Api {
    broker: Broker,
    router: Router,
}

fn balancer_options() -> BalancerOptions {
    let config = crate::config::BrokerConfig::dev(std::path::Path::new("/nowhere"), 0);
    BalancerOptions::new(&config.balance)
}

impl Api {
    async fn start(directory: &std::path::Path) -> Self {
        let broker = Broker::start(directory, Plan::default()).await;
        let router = router(broker.service.member(), Arc::default(), balancer_options());
        Self { broker, router }
    }

    /// With a quorum of this broker alone.
    async fn formed(directory: &std::path::Path) -> Self {
        let api = Self::start(directory).await;
        api.broker.service.bootstrap_single().await.unwrap();
        api.broker.in_service().await;
        api
    }

    async fn call(&self, method: &str, path: &str, body: impl Into<HttpBody>) -> (u16, Value) {
        let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        let answer = self.router.clone().oneshot(request);
        let response = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn code(&self, method: &str, path: &str, body: impl Into<HttpBody>) -> (u16, String) {
        let (status, answer) = self.call(method, path, body).await;
        (status, answer["code"].as_str().unwrap_or_default().to_owned())
    }
}

fn topic_request(uid: &str, partitions: i32) -> String {
    let owner = TopicOwner { namespace: "ns".to_owned(), name: "orders".to_owned(), uid: uid.to_owned() };
    let request = ApplyTopic {
        owner,
        partitions: Some(partitions),
        replicas: None,
        config: BTreeMap::new(),
        adopt: false,
    };
    serde_json::to_string(&request).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quorum_is_formed_and_shown() {
    let directory = tempfile::tempdir().unwrap();
    let api = Api::start(directory.path()).await;
    let (status, identity) = api.call("GET", "/v1/identity", "").await;
    assert_eq!(
        (status, &identity["memberOfQuorum"], &identity["brokerId"]),
        (200, &json!(false), &Value::Null)
    );
    assert_eq!(api.code("GET", "/v1/cluster", "").await, (503, "QuorumUnavailable".to_owned()));
    assert_eq!(api.code("GET", "/v1/topics/orders", "").await, (503, "QuorumUnavailable".to_owned()));

    let text = |field: &str| identity[field].as_str().unwrap().to_owned();
    let voter = Voter { raft_node_id: text("raftNodeId"), address: text("address") };
    let bootstrap = |cluster_id: String, voters: Vec<Voter>| {
        serde_json::to_string(&BootstrapQuorum { cluster_id, voters }).unwrap()
    };
    let path = "/v1/quorum/bootstrap";
    let foreign = bootstrap("AAAAAAAAAAAAAAAAAAAAAA".to_owned(), vec![voter.clone()]);
    assert_eq!(api.code("POST", path, foreign).await, (409, "ClusterIdMismatch".to_owned()));
    let other = Voter { raft_node_id: "5".to_owned(), address: "elsewhere:9093".to_owned() };
    let outcome = api.code("POST", path, bootstrap(text("clusterId"), vec![other.clone()])).await;
    assert_eq!(outcome, (409, "NotAVoter".to_owned()));
    let twice = bootstrap(text("clusterId"), vec![voter.clone(), voter.clone()]);
    assert_eq!(api.code("POST", path, twice).await, (400, "BadRequest".to_owned()));

    let request = bootstrap(text("clusterId"), vec![voter.clone()]);
    assert_eq!(api.call("POST", path, request.clone()).await, (200, json!({})));
    assert_eq!(api.call("POST", path, request).await, (200, json!({})));
    let outcome = api.code("POST", path, bootstrap(text("clusterId"), vec![voter, other])).await;
    assert_eq!(outcome, (409, "AlreadyMember".to_owned()));

    api.broker.in_service().await;
    let (status, cluster) = api.call("GET", "/v1/cluster", "").await;
    assert_eq!((status, &cluster["controllerId"]), (200, &json!(0)));
    assert_eq!(cluster["brokers"][0]["raftNodeId"], identity["raftNodeId"]);
    assert_eq!(cluster["quorum"]["voters"], json!([identity["raftNodeId"]]));
    let (status, local) = api.call("GET", "/v1/local/metadata", "").await;
    let image = api.broker.service.handle().image();
    let expected = json!({"logIndex": image.log_index, "checksum": image.checksum().unwrap()});
    assert_eq!((status, local), (200, expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_is_applied_read_released_and_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let api = Api::formed(directory.path()).await;
    let path = "/v1/topics/orders";
    assert_eq!(api.code("GET", path, "").await, (404, "TopicNotFound".to_owned()));
    let (status, result) = api.call("PUT", path, topic_request("uid-1", 3)).await;
    assert_eq!((status, &result["changed"], &result["topic"]["partitions"]), (200, &json!(true), &json!(3)));
    let (_, again) = api.call("PUT", path, topic_request("uid-1", 3)).await;
    assert_eq!(again["changed"], json!(false));
    assert_eq!(api.call("GET", path, "").await, (200, again["topic"].clone()));

    assert_eq!(api.code("PUT", path, topic_request("uid-2", 3)).await, (409, "OwnedByAnother".to_owned()));
    assert_eq!(api.code("PUT", path, topic_request("uid-1", 2)).await, (422, "PartitionsShrink".to_owned()));
    assert_eq!(api.code("DELETE", path, "").await, (400, "BadRequest".to_owned()));
    let delete = |uid: &str| format!("{path}?ownerUid={uid}");
    assert_eq!(api.code("DELETE", &delete("uid-2"), "").await, (409, "OwnedByAnother".to_owned()));
    assert_eq!(
        api.call("POST", "/v1/topics/orders/release", r#"{"ownerUid":"uid-1"}"#).await,
        (200, json!({}))
    );
    assert_eq!(api.code("PUT", path, topic_request("uid-2", 3)).await, (409, "NotAdopted".to_owned()));

    assert_eq!(api.call("PUT", "/v1/topics/a.b", topic_request("uid-3", 1)).await.0, 200);
    assert_eq!(api.call("DELETE", "/v1/topics/a%2Eb?ownerUid=uid-3", "").await, (200, json!({})));
    assert_eq!(
        api.code("DELETE", "/v1/topics/a.b?ownerUid=uid-3", "").await,
        (404, "TopicNotFound".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rack_is_set_for_a_broker_that_exists() {
    let directory = tempfile::tempdir().unwrap();
    let api = Api::formed(directory.path()).await;
    assert_eq!(api.call("PUT", "/v1/brokers/0/rack", r#"{"rack":"zone-a"}"#).await, (200, json!({})));
    assert_eq!(api.call("GET", "/v1/cluster", "").await.1["brokers"][0]["rack"], json!("zone-a"));
    let outcome = api.code("PUT", "/v1/brokers/7/rack", r#"{"rack":null}"#).await;
    assert_eq!(outcome, (404, "BrokerNotFound".to_owned()));
    assert_eq!(api.code("PUT", "/v1/brokers/x/rack", r#"{"rack":null}"#).await.0, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_drained_and_taken_back() {
    let directory = tempfile::tempdir().unwrap();
    let api = Api::formed(directory.path()).await;
    assert_eq!(api.call("PUT", "/v1/topics/orders", topic_request("uid-1", 3)).await.0, 200);
    let path = "/v1/brokers/0/drain";
    let (status, view) = api.call("GET", path, "").await;
    assert_eq!((status, &view["draining"], &view["replicasLeft"]), (200, &json!(false), &json!(3)));
    let (status, plan) = api.call("POST", path, r#"{"dryRun":true}"#).await;
    assert_eq!(
        (status, &plan["begun"], &plan["blockers"][0]["reason"]),
        (200, &json!(false), &json!("TooFewBrokers"))
    );
    assert_eq!(api.call("GET", path, "").await.1["draining"], json!(false), "a dry run changes nothing");
    let (status, plan) = api.call("POST", path, "").await;
    assert_eq!((status, &plan["begun"]), (200, &json!(true)));
    let (_, view) = api.call("GET", path, "").await;
    assert_eq!(
        (&view["draining"], &view["cordoned"], &view["empty"]),
        (&json!(true), &json!(true), &json!(false))
    );
    assert_eq!(view["blockers"].as_array().unwrap().len(), 3);
    let refused = api.code("PUT", "/v1/topics/more", topic_request("uid-1", 1)).await;
    assert_eq!(refused, (422, "InvalidReplicationFactor".to_owned()), "nobody is left to hold it");
    assert_eq!(api.call("POST", "/v1/brokers/0/cordon", "").await, (200, json!({})));
    assert_eq!(api.call("GET", path, "").await.1["draining"], json!(false));
    assert_eq!(api.call("DELETE", path, "").await, (200, json!({})));
    assert_eq!(api.call("GET", path, "").await.1["cordoned"], json!(false));
    assert_eq!(api.code("POST", "/v1/brokers/7/drain", "").await, (404, "BrokerNotFound".to_owned()));
    assert_eq!(api.code("GET", "/v1/brokers/7/drain", "").await, (404, "BrokerNotFound".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebalance_is_asked_for_shown_and_cancelled() {
    let directory = tempfile::tempdir().unwrap();
    let api = Api::formed(directory.path()).await;
    let path = "/v1/rebalance";
    let (status, plan) = api.call("POST", path, r#"{"dryRun":true}"#).await;
    assert_eq!((status, &plan["begun"], &plan["moves"]), (200, &json!(false), &json!([])));
    assert_eq!(api.call("GET", path, "").await.1["rebalancing"], json!(false));
    assert_eq!(api.call("POST", path, "").await.1["begun"], json!(true));
    assert_eq!(api.call("GET", path, "").await.1["rebalancing"], json!(true));
    assert_eq!(api.call("DELETE", path, "").await, (200, json!({})));
    let (_, view) = api.call("GET", path, "").await;
    assert_eq!((&view["rebalancing"], &view["brokers"][0]["brokerId"]), (&json!(false), &json!(0)));
    assert_eq!(api.code("POST", path, "{").await, (400, "BadRequest".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_understood_is_refused_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let api = Api::formed(directory.path()).await;
    let (status, answer) = api.call("PUT", "/v1/topics/orders", "{\"owner\": 5}").await;
    assert_eq!((status, &answer["code"]), (400, &json!("BadRequest")));
    assert!(answer["message"].as_str().unwrap().contains("TopicOwner"), "{answer}");
    let outcome = api.code("DELETE", "/v1/topics/orders?ownerUid=a&ownerUid=b", "").await;
    assert_eq!(outcome, (400, "BadRequest".to_owned()));
    assert_eq!(api.code("GET", "/v1/topics/%FF", "").await, (400, "BadRequest".to_owned()));
    assert_eq!(api.code("PUT", "/v1/topics/orders", vec![b' '; MAX_BODY_BYTES + 1]).await.0, 400);
    assert_eq!(api.code("GET", "/v2/identity", "").await, (404, "BadRequest".to_owned()));
    assert_eq!(api.code("POST", "/v1/identity", "").await, (405, "BadRequest".to_owned()));
    let outcome = api.code("PUT", "/v1/topics/not%20legal", topic_request("uid", 1)).await;
    assert_eq!(outcome, (422, "InvalidTopicName".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_leaves_service_when_asked() {
    let directory = tempfile::tempdir().unwrap();
    let api = Api::formed(directory.path()).await;
    assert_eq!(api.call("POST", "/v1/local/controlled-shutdown", "").await, (200, json!({})));
    assert_eq!(api.call("GET", "/v1/cluster", "").await.1["brokers"][0]["fenced"], json!(true));
}
