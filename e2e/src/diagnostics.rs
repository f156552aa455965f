//! What to print when a test on the cluster fails.

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt;
use kube::api::{Api, LogParams};

use crate::Test;

const LOG_LINES: i64 = 60;

/// Prints the error, the namespace's objects, events and logs, and the operator's log.
#[expect(clippy::print_stdout, reason = "for the reader of a failed test")]
pub(crate) async fn print(test: &Test, error: &anyhow::Error) {
    println!("==== failed in namespace {}: {error:?}", test.namespace);
    if let Ok(clusters) = test.clusters().list(&Default::default()).await {
        for cluster in clusters {
            println!("KafkaCluster {}: {:?}", cluster.name_any(), cluster.status);
        }
    }
    if let Ok(topics) = test.topics().list(&Default::default()).await {
        for topic in topics {
            println!("Topic {}: {:?}", topic.name_any(), topic.status);
        }
    }
    if let Ok(events) = test.api::<Event>().list(&Default::default()).await {
        for event in events {
            let about = event.involved_object.name.unwrap_or_default();
            let reason = event.reason.unwrap_or_default();
            println!("event {about} {reason}: {}", event.message.unwrap_or_default());
        }
    }
    print_logs(&test.api()).await;
    print_logs(&Api::namespaced(test.client.clone(), "millrace-system")).await;
}

#[expect(clippy::print_stdout, reason = "for the reader of a failed test")]
async fn print_logs(pods: &Api<Pod>) {
    let Ok(list) = pods.list(&Default::default()).await else { return };
    for pod in list {
        let name = pod.name_any();
        println!("---- pod {name}: {:?}", pod.status.and_then(|status| status.container_statuses));
        for previous in [true, false] {
            let params = LogParams { previous, tail_lines: Some(LOG_LINES), ..Default::default() };
            if let Ok(log) = pods.logs(&name, &params).await {
                println!("{log}");
            }
        }
    }
}
