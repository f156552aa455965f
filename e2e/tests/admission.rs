//! Manifests that can never work are refused by the API server, with a message that says what to do.
#![expect(clippy::tests_outside_test_module, reason = "this is a test crate")]

use anyhow::{Result, ensure};
use millrace_e2e::{Test, in_namespace, small_cluster, topic};
use serde_json::{Value, json};

async fn refused(test: &Test, manifest: &Value, words: &str) -> Result<()> {
    let message = test.refusal(manifest).await?;
    ensure!(message.contains(words), "the user reads {message:?}, without {words:?}");
    Ok(())
}

fn changed(manifest: &Value, pointer: &str, value: Value) -> Value {
    let mut manifest = manifest.clone();
    if let Some(place) = manifest.pointer_mut(pointer) {
        *place = value;
    }
    manifest
}

#[tokio::test]
async fn impossible_clusters_are_refused() {
    in_namespace("impossible-clusters", async |test| {
        let good = small_cluster("c", 3);
        refused(test, &changed(&good, "/spec/replicas", json!(0)), "replicas").await?;
        refused(test, &changed(&good, "/spec/listeners", json!([])), "listeners").await?;
        let fleet = json!([{"name": "fleet", "port": 9092, "type": "ClusterLocal"}]);
        refused(test, &changed(&good, "/spec/listeners", fleet), "fleet").await?;
        let no_host = json!([{"name": "external", "port": 9094, "type": "NodePort"}]);
        refused(test, &changed(&good, "/spec/listeners", no_host), "advertisedHost").await?;
        let same_port = json!([
            {"name": "one", "port": 9092, "type": "ClusterLocal"},
            {"name": "two", "port": 9092, "type": "ClusterLocal"},
        ]);
        refused(test, &changed(&good, "/spec/listeners", same_port), "port").await?;
        let factor = json!({"default.replication.factor": "5"});
        refused(test, &changed(&good, "/spec/config", factor), "replication").await?;
        refused(test, &changed(&good, "/spec/storage/size", json!("much")), "size").await?;
        refused(test, &changed(&good, "/spec/config", json!({"node.id": "7"})), "node.id").await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn what_cannot_change_is_refused_when_changed() {
    in_namespace("immutable-fields", async |test| {
        let orders = topic("orders", "nowhere", json!({"partitions": 4, "topicName": "orders"}));
        test.apply(&orders).await?;
        refused(test, &changed(&orders, "/spec/partitions", json!(3)), "partitions").await?;
        refused(test, &changed(&orders, "/spec/topicName", json!("other")), "topicName").await?;
        refused(test, &changed(&orders, "/spec/clusterRef/name", json!("other")), "clusterRef").await?;
        refused(test, &topic("none", "nowhere", json!({"partitions": 0})), "partitions").await?;
        refused(test, &topic("bad", "nowhere", json!({"topicName": "no/slash"})), "topicName").await?;
        test.apply(&changed(&orders, "/spec/partitions", json!(5))).await?;
        Ok(())
    })
    .await;
}
