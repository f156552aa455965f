//! The life of a Topic on the fleet of the quickstart.
#![expect(clippy::tests_outside_test_module, reason = "this is a test crate")]

use anyhow::{Context as _, Result, ensure};
use millrace_crds::Topic;
use millrace_e2e::{
    QUICKSTART, SOON, Test, condition, in_namespace, is_true, kcat, on_quickstart, reachable_cluster,
    small_cluster, topic, wait_for,
};
use serde_json::{Value, json};

const BOOTSTRAP: &str = "localhost:30092";

/// Partitions of a topic as a client sees them; none when the topic does not exist. Asks for all topics: one that asks for
/// this one would have it made.
async fn partitions_seen(bootstrap: &str, name: &str) -> Result<usize> {
    let listing: Value = serde_json::from_str(&kcat(&["-b", bootstrap, "-L", "-J"], "").await?)?;
    let found = listing["topics"].as_array().into_iter().flatten().find(|topic| topic["topic"] == name);
    Ok(found.and_then(|topic| topic["partitions"].as_array()).map_or(0, Vec::len))
}

/// Waits until a client sees so many partitions of a topic: brokers hear of it after the controller that did it.
async fn until_seen(bootstrap: &str, name: &str, partitions: usize) -> Result<()> {
    wait_for(&format!("{partitions} partitions of {name} to be seen"), SOON, async || {
        let seen = partitions_seen(bootstrap, name).await?;
        ensure!(seen == partitions, "{seen} are");
        Ok(())
    })
    .await
}

async fn refused_with(test: &Test, name: &str, reason: &str) -> Result<String> {
    let topic = test
        .topic_that(name, &format!("is refused with {reason}"), |topic| {
            let conditions = &topic.status.as_ref()?.conditions;
            let stalled = condition(conditions, "Stalled")?;
            (stalled.status == "True" && stalled.reason == reason && !is_true(conditions, "Ready"))
                .then_some(())
        })
        .await?;
    let status = topic.status.context("seen just now")?;
    Ok(condition(&status.conditions, "Stalled").context("seen just now")?.message.clone())
}

#[tokio::test]
async fn a_topic_is_made_grown_changed_and_deleted() {
    on_quickstart(async |test| {
        test.cluster_ready(QUICKSTART).await?;
        let spec = |partitions, retention: &str| {
            json!({"partitions": partitions, "replicas": 1, "config": {"retention.ms": retention},
                   "topicName": "e2e.life-cycle", "deletionPolicy": "Delete"})
        };
        test.apply(&topic("life-cycle", QUICKSTART, spec(3, "60000"))).await?;
        let made = test.topic_ready("life-cycle").await?.status.context("a ready topic has a status")?;
        ensure!(made.partitions == Some(3) && made.topic_id.is_some(), "{made:?}");
        until_seen(BOOTSTRAP, "e2e.life-cycle", 3).await?;

        test.apply(&topic("life-cycle", QUICKSTART, spec(5, "90000"))).await?;
        let grown = test
            .topic_that("life-cycle", "has five partitions", |topic| {
                (topic.status.as_ref()?.partitions == Some(5)).then_some(())
            })
            .await?;
        ensure!(
            grown.status.context("seen just now")?.topic_id == made.topic_id,
            "growth made another topic"
        );
        until_seen(BOOTSTRAP, "e2e.life-cycle", 5).await?;

        test.delete::<Topic>("life-cycle").await?;
        until_seen(BOOTSTRAP, "e2e.life-cycle", 0).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_retained_topic_outlives_its_object_and_is_adopted_on_request_only() {
    on_quickstart(async |test| {
        test.cluster_ready(QUICKSTART).await?;
        test.apply(&topic("retained", QUICKSTART, json!({"partitions": 2, "replicas": 1}))).await?;
        let first = test.topic_ready("retained").await?.status.context("a ready topic has a status")?;
        test.delete::<Topic>("retained").await?;
        ensure!(partitions_seen(BOOTSTRAP, "retained").await? == 2, "deletionPolicy Retain lost the topic");

        let mut again = topic("retained", QUICKSTART, json!({"partitions": 2, "deletionPolicy": "Delete"}));
        test.apply(&again).await?;
        let message = refused_with(test, "retained", "NotAdopted").await?;
        ensure!(message.contains("millrace.dev/adopt"), "{message}");
        again["metadata"]["annotations"] = json!({"millrace.dev/adopt": "true"});
        test.apply(&again).await?;
        let adopted = test.topic_ready("retained").await?.status.context("a ready topic has a status")?;
        ensure!(adopted.topic_id == first.topic_id, "adoption made another topic");
        test.delete::<Topic>("retained").await
    })
    .await;
}

#[tokio::test]
async fn what_a_topic_cannot_be_becomes_a_condition() {
    on_quickstart(async |test| {
        test.cluster_ready(QUICKSTART).await?;
        test.apply(&topic("too-many", QUICKSTART, json!({"partitions": 1, "replicas": 9}))).await?;
        let message = refused_with(test, "too-many", "InvalidReplicationFactor").await?;
        ensure!(message.contains('9') && message.contains('3'), "{message}");
        let config = json!({"partitions": 1, "config": {"retention.mss": "1"}});
        test.apply(&topic("bad-key", QUICKSTART, config)).await?;
        let message = refused_with(test, "bad-key", "InvalidConfig").await?;
        ensure!(message.contains("retention.mss"), "{message}");

        let first =
            json!({"partitions": 1, "replicas": 1, "topicName": "shared", "deletionPolicy": "Delete"});
        test.apply(&topic("first", QUICKSTART, first.clone())).await?;
        test.topic_ready("first").await?;
        test.apply(&topic("second", QUICKSTART, first)).await?;
        let message = refused_with(test, "second", "OwnedByAnother").await?;
        ensure!(message.contains("first"), "{message}");
        for name in ["too-many", "bad-key", "second"] {
            test.delete::<Topic>(name).await?;
        }
        ensure!(
            partitions_seen(BOOTSTRAP, "shared").await? == 1,
            "the refused object deleted another's topic"
        );
        test.delete::<Topic>("first").await
    })
    .await;
}

#[tokio::test]
async fn a_topic_waits_for_its_cluster_and_goes_when_the_cluster_is_gone() {
    in_namespace("topic-without-cluster", async |test| {
        test.apply(&topic(
            "early",
            "late",
            json!({"partitions": 1, "replicas": 1, "deletionPolicy": "Delete"}),
        ))
        .await?;
        test.topic_that("early", "says what it waits for", |topic| {
            let ready = condition(&topic.status.as_ref()?.conditions, "Ready")?;
            (ready.status == "False" && ready.reason == "ClusterNotFound").then_some(())
        })
        .await?;
        test.apply(&small_cluster("late", 1)).await?;
        test.cluster_ready("late").await?;
        test.topic_ready("early").await?;
        test.delete::<millrace_crds::KafkaCluster>("late").await?;
        test.delete::<Topic>("early").await
    })
    .await;
}

#[tokio::test]
async fn what_a_topic_leaves_unset_stays_as_a_client_set_it() {
    in_namespace("topic-unset-fields", async |test| {
        test.apply(&reachable_cluster("own")).await?;
        test.cluster_ready("own").await?;
        millrace_e2e::answers_outside().await?;
        test.apply(&topic("open", "own", json!({}))).await?;
        let made = test.topic_ready("open").await?.status.context("a ready topic has a status")?;
        ensure!(made.partitions == Some(1), "num.partitions is 1 by default: {made:?}");
        millrace_e2e::python_client("grow.py", &["localhost:30109", "open", "4"]).await?;
        test.topic_that("open", "shows the client's partitions", |topic| {
            (topic.status.as_ref()?.partitions == Some(4)).then_some(())
        })
        .await?;
        test.topic_ready("open").await?;
        Ok(())
    })
    .await;
}
