//! The life of small clusters in namespaces of their own.
#![expect(clippy::tests_outside_test_module, reason = "this is a test crate")]

use anyhow::{Context as _, anyhow, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Patch, PatchParams};
use millrace_crds::KafkaCluster;
use millrace_e2e::{
    SOON, answers_outside, condition, in_namespace, is_true, kcat, reachable_cluster, small_cluster, topic,
    wait_for, written_objects,
};
use serde_json::json;

#[tokio::test]
async fn more_replicas_add_brokers_and_fewer_are_refused() {
    in_namespace("scale", async |test| {
        test.apply(&small_cluster("grow", 1)).await?;
        test.cluster_ready("grow").await?;
        let scale = |replicas| Patch::Merge(json!({"spec": {"replicas": replicas}}));
        test.clusters().patch_scale("grow", &PatchParams::default(), &scale(2)).await?;
        let grown = test
            .cluster_that("grow", "has two brokers", |cluster| {
                let status = cluster.status.as_ref()?;
                let current = status.observed_generation == cluster.metadata.generation;
                let both = status.brokers.iter().filter(|broker| broker.ready).count() == 2;
                (current && both && is_true(&status.conditions, "Ready")).then_some(())
            })
            .await?;
        ensure!(grown.status.context("seen just now")?.replicas == Some(2));

        test.clusters().patch_scale("grow", &PatchParams::default(), &scale(1)).await?;
        let refused = test
            .cluster_that("grow", "refuses to shrink", |cluster| {
                let stalled = condition(&cluster.status.as_ref()?.conditions, "Stalled")?;
                (stalled.status == "True" && stalled.reason == "ScaleDownRefused").then_some(())
            })
            .await?;
        let set = test.api::<StatefulSet>().get("grow-broker").await?;
        ensure!(set.spec.and_then(|spec| spec.replicas) == Some(2), "a broker was taken away");
        ensure!(refused.status.context("seen just now")?.replicas == Some(2));
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_cluster_made_again_takes_up_its_retained_volumes() {
    in_namespace("readoption", async |test| {
        test.apply(&reachable_cluster("phoenix")).await?;
        let first = test.cluster_ready("phoenix").await?.status.context("a ready cluster has a status")?;
        answers_outside().await?;
        test.apply(&topic("kept", "phoenix", json!({"partitions": 1, "replicas": 1}))).await?;
        test.topic_ready("kept").await?;
        kcat(&["-b", "localhost:30109", "-t", "kept", "-P", "-X", "acks=all"], "precious\n").await?;
        test.delete::<millrace_crds::Topic>("kept").await?;
        test.delete::<KafkaCluster>("phoenix").await?;
        wait_for("the brokers to be gone", SOON, async || {
            let pods = test.api::<k8s_openapi::api::core::v1::Pod>().list(&Default::default()).await?;
            if pods.items.is_empty() { Ok(()) } else { Err(anyhow!("{} pods are there", pods.items.len())) }
        })
        .await?;
        let claims = test.api::<PersistentVolumeClaim>().list(&Default::default()).await?;
        ensure!(claims.items.len() == 1, "deletionPolicy Retain keeps the volume claims");

        test.apply(&reachable_cluster("phoenix")).await?;
        let second = test.cluster_ready("phoenix").await?.status.context("a ready cluster has a status")?;
        answers_outside().await?;
        ensure!(second.cluster_id == first.cluster_id, "the cluster id changed over old volumes");
        let read = kcat(&["-b", "localhost:30109", "-t", "kept", "-C", "-e", "-q"], "").await?;
        ensure!(read.trim() == "precious", "read {read:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn deletion_policy_delete_takes_the_volumes_too() {
    in_namespace("delete-volumes", async |test| {
        let mut manifest = small_cluster("gone", 1);
        manifest["spec"]["deletionPolicy"] = json!("Delete");
        test.apply(&manifest).await?;
        test.cluster_ready("gone").await?;
        test.delete::<KafkaCluster>("gone").await?;
        wait_for("everything of the cluster to be gone", SOON, async || {
            let left = written_objects(test).await?;
            let left: Vec<_> = left.keys().filter(|key| key.contains("gone")).collect();
            if left.is_empty() { Ok(()) } else { Err(anyhow!("{left:?} are left")) }
        })
        .await
    })
    .await;
}

#[tokio::test]
async fn an_object_of_an_unknown_shape_does_not_stop_the_others() {
    in_namespace("malformed", async |test| {
        // The schema refuses what it knows; a value that only the operator can judge must stall this object alone.
        let mut broken = small_cluster("broken", 1);
        broken["spec"]["config"] = json!({"no.such.key": "1"});
        test.apply(&broken).await?;
        test.apply(&small_cluster("sound", 1)).await?;
        test.cluster_ready("sound").await?;
        let broken = test.clusters().get("broken").await?;
        ensure!(
            !broken.status.is_some_and(|status| is_true(&status.conditions, "Ready")),
            "no.such.key was taken"
        );
        Ok(())
    })
    .await;
}
