//! What brokers say about the cluster: all the same, everybody in sync, and the topics that ought to be.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use millrace_protocol::messages::DescribeTopicPartitionsRequest;
use millrace_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use uuid::Uuid;

use crate::client::Connection;
use crate::findings::Blame;
use crate::fleet::{management, until};
use crate::workload::{Shared, churn};

/// Time for one answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A partition as one broker describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionView {
    /// Broker id of the leader, -1 for none.
    pub leader: i32,
    /// Its epoch.
    pub leader_epoch: i32,
    /// Assigned replicas.
    pub replicas: Vec<i32>,
    /// In-sync replicas, sorted.
    pub isr: Vec<i32>,
}

/// A topic as one broker describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicView {
    /// Its id.
    pub topic_id: Uuid,
    /// Its partitions, by number.
    pub partitions: BTreeMap<i32, PartitionView>,
}

/// All topics as one broker describes them, by name.
pub type ClusterView = BTreeMap<String, TopicView>;

/// Asks one broker for everything (Metadata for the names, DescribeTopicPartitions for the rest).
///
/// # Errors
/// It does not answer.
pub async fn describe(address: SocketAddr) -> Result<ClusterView> {
    let mut connection = Connection::open(address).await?;
    let named = connection.metadata(None, TIMEOUT).await?.topics;
    let names: Vec<_> = named.into_iter().filter_map(|topic| topic.name).collect();
    let mut view = ClusterView::new();
    if names.is_empty() {
        return Ok(view);
    }
    let mut cursor = None;
    loop {
        let topics = names.iter().map(|name| TopicRequest { name: name.clone(), ..Default::default() });
        let request = DescribeTopicPartitionsRequest {
            topics: topics.collect(),
            response_partition_limit: 2000,
            cursor,
            ..Default::default()
        };
        let answer = connection.call(0, &request, TIMEOUT).await?;
        for topic in answer.topics {
            let name = topic.name.context("a topic without a name")?.as_str().to_owned();
            let entry = view
                .entry(name)
                .or_insert_with(|| TopicView { topic_id: topic.topic_id, partitions: BTreeMap::new() });
            for partition in topic.partitions {
                let mut isr = partition.isr_nodes;
                isr.sort_unstable();
                let described = PartitionView {
                    leader: partition.leader_id,
                    leader_epoch: partition.leader_epoch,
                    replicas: partition.replica_nodes,
                    isr,
                };
                entry.partitions.insert(partition.partition_index, described);
            }
        }
        let Some(next) = answer.next_cursor else { return Ok(view) };
        cursor = Some(Cursor {
            topic_name: next.topic_name,
            partition_index: next.partition_index,
            ..Default::default()
        });
    }
}

/// Waits until one broker says that every partition has all of its replicas in sync.
///
/// # Errors
/// It does not in time; says which is not.
pub async fn wait_until_replicated(shared: &Shared, within: Duration) -> Result<()> {
    let mut last = String::new();
    let mut next = shared.addresses.iter().cycle();
    until("full replication", within, async || {
        let view = describe(*next.next()?).await.ok()?;
        let Some(behind) = first_not_replicated(&view) else { return Some(()) };
        last = behind;
        None
    })
    .await
    .context(last.clone())
}

/// Waits until all brokers describe the same cluster, with all replicas in sync, and returns that.
///
/// # Errors
/// With [`Blame`] if they do not in time; says where they differ, or what is not in sync.
pub async fn wait_until_converged(addresses: &[SocketAddr], within: Duration) -> Result<ClusterView> {
    let mut last = String::new();
    let converged = until("all brokers to say the same, with everything in sync", within, async || {
        let mut views = Vec::new();
        for address in addresses {
            match describe(*address).await {
                Ok(view) => views.push(view),
                Err(error) => {
                    last = format!("{error:#}");
                    return None;
                }
            }
        }
        let first = views.first()?;
        for (number, view) in views.iter().enumerate() {
            if let Some(difference) = difference(first, view) {
                last = format!("brokers 0 and {number} differ: {difference}");
                return None;
            }
        }
        if let Some(behind) = first_not_replicated(first) {
            last = behind;
            return None;
        }
        let mut metadata = Vec::new();
        for number in 0..addresses.len() {
            match metadata_of(number).await {
                Ok(one) => metadata.push(one),
                Err(error) => {
                    last = format!("{error:#}");
                    return None;
                }
            }
        }
        if let Some(difference) = metadata_difference(&metadata) {
            last = difference;
            return None;
        }
        Some(first.clone())
    });
    converged.await.context(Blame(last.clone()))
}

/// A broker's metadata in short: everything in it, not only what clients are told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Metadata {
    /// Index of the last entry of the metadata log.
    log_index: u64,
    /// Checksum of the rest.
    checksum: u64,
}

async fn metadata_of(number: usize) -> Result<Metadata> {
    let answer = management::get(number, "/v1/local/metadata").await?;
    let field = |name: &str| answer[name].as_u64().with_context(|| format!("no {name} in {answer}"));
    Ok(Metadata { log_index: field("logIndex")?, checksum: field("checksum")? })
}

/// Where the metadata of brokers, by number, is not the same.
fn metadata_difference(metadata: &[Metadata]) -> Option<String> {
    let first = metadata.first()?;
    let (number, other) = metadata.iter().enumerate().find(|(_, other)| *other != first)?;
    let same_place = other.log_index == first.log_index;
    let how = if same_place { "have other metadata at the same position" } else { "are not equally far" };
    Some(format!("brokers 0 and {number} {how}: {first:?}, {other:?}"))
}

fn first_not_replicated(view: &ClusterView) -> Option<String> {
    view.iter().find_map(|(name, topic)| {
        let behind = topic
            .partitions
            .iter()
            .find(|(_, partition)| partition.leader < 0 || partition.isr.len() < partition.replicas.len());
        behind.map(|(number, partition)| format!("{name}-{number}: {partition:?}"))
    })
}

fn difference(one: &ClusterView, other: &ClusterView) -> Option<String> {
    if one == other {
        return None;
    }
    let names = one.keys().chain(other.keys());
    let name = names.into_iter().find(|name| one.get(*name) != other.get(*name))?;
    Some(format!("{name}: {:?} and {:?}", one.get(name), other.get(name)))
}

/// Compares topics that came and went with what is there.
pub fn judge_topics(view: &ClusterView, expected: &BTreeMap<String, bool>) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, there) in expected {
        match (there, view.contains_key(name)) {
            (true, false) => findings.push(format!("topic {name} was confirmed as created and is gone")),
            (false, true) => findings.push(format!("topic {name} was confirmed as deleted and is there")),
            _ => {}
        }
    }
    let strangers =
        view.keys().filter(|name| name.starts_with(churn::PREFIX) && !expected.contains_key(*name));
    findings
        .extend(strangers.map(|name| format!("topic {name} is there, and was deleted or never confirmed")));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(isr: &[i32]) -> ClusterView {
        let partition =
            PartitionView { leader: 1, leader_epoch: 4, replicas: vec![1, 2, 0], isr: isr.to_vec() };
        let topic = TopicView { topic_id: Uuid::nil(), partitions: [(0, partition)].into() };
        [(format!("{}0", churn::PREFIX), topic)].into()
    }

    #[test]
    fn a_replica_that_is_not_in_sync_is_named() {
        assert_eq!(first_not_replicated(&view(&[0, 1, 2])), None);
        assert!(first_not_replicated(&view(&[0, 1])).is_some_and(|text| text.contains("isr: [0, 1]")));
    }

    #[test]
    fn metadata_has_to_be_the_same_at_the_same_position() {
        let of = |log_index, checksum| Metadata { log_index, checksum };
        let difference = |second| metadata_difference(&[of(7, 1), of(7, 1), second]);
        assert_eq!(difference(of(7, 1)), None);
        assert!(difference(of(7, 2)).is_some_and(|text| text.contains("0 and 2 have other metadata")));
        assert!(difference(of(8, 1)).is_some_and(|text| text.contains("not equally far")));
    }

    #[test]
    fn differences_are_told_by_topic() {
        assert_eq!(difference(&view(&[0]), &view(&[0])), None);
        assert!(difference(&view(&[0]), &view(&[1])).is_some_and(|text| text.starts_with(churn::PREFIX)));
        assert!(difference(&view(&[0]), &ClusterView::new()).is_some_and(|text| text.contains("None")));
    }

    #[test]
    fn topics_are_where_they_were_confirmed_to_be() {
        let name = |n: u32| format!("{}{n}", churn::PREFIX);
        assert!(judge_topics(&view(&[0]), &[(name(0), true)].into()).is_empty());
        assert_eq!(judge_topics(&view(&[0]), &[(name(0), false)].into()).len(), 1);
        assert_eq!(judge_topics(&view(&[0]), &[(name(0), true), (name(1), true)].into()).len(), 1);
        assert_eq!(judge_topics(&view(&[0]), &BTreeMap::new()).len(), 1);
    }
}
