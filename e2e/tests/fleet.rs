//! The fleet of the quickstart, as its users and operators meet it.
#![expect(clippy::tests_outside_test_module, reason = "this is a test crate")]

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use millrace_e2e::{
    QUICKSTART, SOON, Test, is_true, kcat, on_quickstart, python_client, topic, wait_for, written_objects,
};
use serde_json::{Value, json};

const BOOTSTRAP: &str = "localhost:30092";

async fn broker_pods(test: &Test) -> Result<Vec<Pod>> {
    let selector = ListParams::default().labels("app.kubernetes.io/instance=demo");
    Ok(test.api::<Pod>().list(&selector).await?.items)
}

async fn topic_id(test: &Test, name: &str) -> Result<String> {
    let status = test.topic_ready(name).await?.status.context("a ready topic has a status")?;
    status.topic_id.context("a ready topic has an id")
}

#[tokio::test]
async fn three_brokers_are_ready_in_three_zones() {
    on_quickstart(async |test| {
        let cluster = test.cluster_ready(QUICKSTART).await?;
        let status = cluster.status.context("a ready cluster has a status")?;
        ensure!(status.brokers.len() == 3 && status.brokers.iter().all(|broker| broker.ready), "{status:?}");
        let racks: BTreeSet<_> = status.brokers.iter().filter_map(|broker| broker.rack.clone()).collect();
        ensure!(racks.len() == 3, "the brokers run in {racks:?}");
        ensure!(status.cluster_id.is_some() && status.version.is_some(), "{status:?}");
        let external = status.listeners.iter().find(|listener| listener.name == "external");
        ensure!(external.is_some_and(|listener| listener.bootstrap_address == BOOTSTRAP), "{status:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn clients_outside_see_every_broker() {
    on_quickstart(async |test| {
        test.cluster_ready(QUICKSTART).await?;
        let listing: Value = serde_json::from_str(&kcat(&["-b", BOOTSTRAP, "-L", "-J"], "").await?)?;
        let names: BTreeSet<String> = listing["brokers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|broker| broker["name"].as_str().map(str::to_owned))
            .collect();
        let expected = ["localhost:30100", "localhost:30101", "localhost:30102"].map(str::to_owned);
        ensure!(names == BTreeSet::from(expected), "kcat lists {names:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_million_records_come_back_complete_and_in_order() {
    on_quickstart(async |test| {
        test.cluster_ready(QUICKSTART).await?;
        let spec = json!({"partitions": 12, "replicas": 3, "deletionPolicy": "Delete"});
        test.apply(&topic("million", QUICKSTART, spec)).await?;
        test.topic_ready("million").await?;
        let summary = python_client("roundtrip.py", &[BOOTSTRAP, "million", "1000000"]).await?;
        print_line(&summary);
        ensure!(summary.contains("12 partitions, 3 leaders"), "{summary}");
        test.delete::<millrace_crds::Topic>("million").await
    })
    .await;
}

#[tokio::test]
async fn a_broker_pod_that_is_deleted_comes_back_with_its_identity_and_data() {
    on_quickstart(async |test| {
        let before = test.cluster_ready(QUICKSTART).await?.status.context("a ready cluster has a status")?;
        let spec = json!({"partitions": 6, "replicas": 1, "deletionPolicy": "Delete"});
        test.apply(&topic("survivor", QUICKSTART, spec)).await?;
        let id = topic_id(test, "survivor").await?;
        let lines: String = (0..600).map(|number| format!("record-{number}\n")).collect();
        kcat(&["-b", BOOTSTRAP, "-t", "survivor", "-P", "-X", "acks=all"], &lines).await?;

        replace_pod(test, "demo-broker-1").await?;
        let after = test.cluster_ready(QUICKSTART).await?.status.context("a ready cluster has a status")?;
        ensure!(after.cluster_id == before.cluster_id, "the cluster id changed");
        ensure!(broker_ids(&after.brokers) == broker_ids(&before.brokers), "broker ids moved: {after:?}");
        ensure!(topic_id(test, "survivor").await? == id, "the topic is another one");
        let read = wait_for("all records to be readable again", SOON, async || {
            let read = kcat(&["-b", BOOTSTRAP, "-t", "survivor", "-C", "-e", "-q"], "").await?;
            ensure!(read.lines().count() == 600, "{} records are there", read.lines().count());
            Ok(read)
        })
        .await?;
        let distinct: BTreeSet<&str> = read.lines().collect();
        ensure!(distinct.len() == 600, "records came twice");
        test.delete::<millrace_crds::Topic>("survivor").await
    })
    .await;
}

/// Deletes a pod and waits until there is another one with its name.
async fn replace_pod(test: &Test, name: &str) -> Result<()> {
    let pods = test.api::<Pod>();
    let old = pods.get(name).await?.uid();
    pods.delete(name, &DeleteParams::default()).await?;
    wait_for(&format!("a new {name}"), SOON, async || match pods.get_opt(name).await? {
        Some(pod) if pod.uid() != old => Ok(()),
        _ => Err(anyhow!("the old pod is still there")),
    })
    .await
}

#[tokio::test]
async fn a_replicated_topic_takes_every_record_while_brokers_are_deleted_and_come_back() {
    on_quickstart(async |test| {
        test.cluster_ready(QUICKSTART).await?;
        let spec = json!({"partitions": 6, "replicas": 3, "config": {"min.insync.replicas": "2"},
                          "deletionPolicy": "Delete"});
        test.apply(&topic("replicated", QUICKSTART, spec)).await?;
        test.topic_ready("replicated").await?;
        let folder = tempfile::tempdir()?;
        let stop_file = folder.path().join("stop");
        let stop = stop_file.to_str().context("temporary paths are text")?;
        let arguments = [BOOTSTRAP, "replicated", stop];
        let ledger = python_client("ledger.py", &arguments);
        let disturbed = async {
            let done = replace_two_brokers(test).await;
            std::fs::write(&stop_file, "")?;
            done
        };
        let (summary, disturbed) = tokio::join!(ledger, disturbed);
        disturbed?;
        print_line(&summary?);
        test.delete::<millrace_crds::Topic>("replicated").await
    })
    .await;
}

async fn replace_two_brokers(test: &Test) -> Result<()> {
    for pod in ["demo-broker-0", "demo-broker-2"] {
        replace_pod(test, pod).await?;
        test.cluster_ready(QUICKSTART).await?;
        // The next one may go when the replicas of this one have caught up.
        in_sync(test, "replicated").await?;
    }
    Ok(())
}

/// Waits until all three replicas of every partition of a topic are in sync: clients see it, and then its object says it.
async fn in_sync(test: &Test, name: &str) -> Result<()> {
    wait_for(&format!("three replicas in sync of {name}"), SOON, async || {
        let listing = kcat(&["-b", BOOTSTRAP, "-L", "-J", "-t", name], "").await?;
        let listing: Value = serde_json::from_str(&listing)?;
        let partitions = listing["topics"][0]["partitions"].as_array().context("the topic is there")?;
        let three = |partition: &Value| partition["isrs"].as_array().is_some_and(|isr| isr.len() == 3);
        ensure!(!partitions.is_empty() && partitions.iter().all(three), "{partitions:?}");
        Ok(())
    })
    .await?;
    let replicated = |topic: &millrace_crds::Topic| {
        is_true(&topic.status.as_ref()?.conditions, "Replicated").then_some(())
    };
    test.topic_that(name, "is replicated", replicated).await.map(drop)
}

fn broker_ids(brokers: &[millrace_crds::BrokerStatus]) -> Vec<(String, Option<i32>)> {
    brokers.iter().map(|broker| (broker.pod.clone(), broker.id)).collect()
}

#[tokio::test]
async fn a_converged_fleet_is_silent_and_a_new_operator_changes_nothing() {
    on_quickstart(async |test| {
        test.cluster_ready(QUICKSTART).await?;
        let before = settled(test).await?;
        // The claim is about a minute, so a minute must pass.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let after = written_objects(test).await?;
        ensure!(before == after, "written within a minute: {:?}", difference(&before, &after));

        let operators: Api<Pod> = Api::namespaced(test.client.clone(), "millrace-system");
        let old: BTreeSet<_> =
            operators.list(&ListParams::default()).await?.into_iter().filter_map(|pod| pod.uid()).collect();
        operators.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        let deployments: Api<Deployment> = Api::namespaced(test.client.clone(), "millrace-system");
        wait_for("a new operator", SOON, async || {
            let pods = operators.list(&ListParams::default()).await?;
            ensure!(
                pods.iter().all(|pod| pod.uid().is_some_and(|uid| !old.contains(&uid))),
                "the old one is there"
            );
            let deployment = deployments.list(&ListParams::default()).await?.items;
            let ready = deployment.first().and_then(|deployment| deployment.status.clone());
            ensure!(
                ready.is_some_and(|status| status.available_replicas == Some(1)),
                "no operator is available"
            );
            Ok(())
        })
        .await?;
        // A change shows that the new operator works; after it is undone everything must be as it was.
        test.apply(&topic("probe", QUICKSTART, json!({"partitions": 1, "deletionPolicy": "Delete"}))).await?;
        test.topic_ready("probe").await?;
        test.delete::<millrace_crds::Topic>("probe").await?;
        let after = written_objects(test).await?;
        ensure!(before == after, "the new operator wrote: {:?}", difference(&before, &after));
        Ok(())
    })
    .await;
}

type Versions = std::collections::BTreeMap<String, String>;

/// Resource versions once they are the same twice in a row, as other tests may just have ended.
async fn settled(test: &Test) -> Result<Versions> {
    let mut last = written_objects(test).await?;
    wait_for("the namespace to settle", SOON, async || {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let now = written_objects(test).await?;
        let before = std::mem::replace(&mut last, now.clone());
        ensure!(before == now, "still changing: {:?}", difference(&before, &now));
        Ok(now)
    })
    .await
}

fn difference(before: &Versions, after: &Versions) -> Vec<String> {
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    keys.into_iter().filter(|key| before.get(*key) != after.get(*key)).cloned().collect()
}

#[tokio::test]
async fn idle_brokers_stay_within_sixty_mebibytes() {
    const LIMIT: u64 = 60 << 20;
    /// What a load took is given back bit by bit: other tests may just have put one on it.
    const GIVEN_BACK: Duration = Duration::from_secs(60);
    on_quickstart(async |test| {
        test.cluster_ready(QUICKSTART).await?;
        for pod in broker_pods(test).await? {
            let node = pod
                .spec
                .as_ref()
                .and_then(|spec| spec.node_name.clone())
                .context("the pod runs somewhere")?;
            let name = pod.name_any();
            let resident = wait_for(&format!("{name} to be idle"), GIVEN_BACK, async || {
                let resident = resident_bytes(test, &node, &name).await?;
                ensure!(resident <= LIMIT, "{:.1} MiB are resident", mebibytes(resident));
                Ok(resident)
            })
            .await?;
            print_line(&format!("{name}: {:.1} MiB resident", mebibytes(resident)));
        }
        Ok(())
    })
    .await;
}

/// Resident memory of a pod's containers as the kubelet measures it, in bytes.
async fn resident_bytes(test: &Test, node: &str, pod: &str) -> Result<u64> {
    let request = http::Request::get(format!("/api/v1/nodes/{node}/proxy/stats/summary")).body(Vec::new())?;
    let summary: Value = test.client.request(request).await?;
    let containers = summary["pods"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|entry| {
            entry["podRef"]["name"] == pod && entry["podRef"]["namespace"] == test.namespace.as_str()
        })
        .and_then(|entry| entry["containers"].as_array())
        .context("the kubelet knows the pod")?;
    containers
        .iter()
        .map(|container| container["memory"]["rssBytes"].as_u64().context("rssBytes is there"))
        .sum()
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[expect(clippy::print_stdout, reason = "a measured figure")]
fn print_line(text: &str) {
    println!("{}", text.trim_end());
}

#[tokio::test]
async fn the_quickstarts_topic_is_there() {
    on_quickstart(async |test| {
        let orders = test.topic_ready("orders").await?;
        let status = orders.status.context("a ready topic has a status")?;
        ensure!(status.partitions == Some(12) && status.offline_partitions == Some(0), "{status:?}");
        ensure!(is_true(&status.conditions, "Ready"), "{status:?}");
        in_sync(test, "orders").await
    })
    .await;
}
