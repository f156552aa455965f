//! Topics that come and go, with records in them, while everything else happens.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use millrace_protocol::ErrorCode;
use millrace_protocol::records::{BatchBuilder, Compression, NewRecord};
use tokio::sync::watch;
use tokio::time::Instant;

use super::ledger::PartitionName;
use super::producer::now_ms;
use super::record::RecordId;
use super::{Counters, Phase, Shared};
use crate::client::{Connection, Topic};

/// What brokers are given for one change.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Time between two changes, if each partition of the topic has got records by then.
const INTERVAL: Duration = Duration::from_millis(1500);

/// Longest time that a topic waits for records, which faults may keep away.
const FILLED_WITHIN: Duration = Duration::from_secs(10);

/// What a broker is given for one batch.
const PRODUCE_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause between two batches of a partition.
const PAUSE: Duration = Duration::from_millis(50);

/// Partitions of each topic.
const PARTITIONS: i32 = 2;

/// Records of a batch.
const RECORDS: u64 = 5;

/// Prefix of the names of these topics.
pub const PREFIX: &str = "comes-and-goes-";

/// Creates a topic every now and then, writes to it, and deletes every second one again; after the end of producing,
/// finishes what it was about. Returns whether each topic is to be there, for those whose last change was confirmed.
pub async fn churn(shared: Arc<Shared>, replication_factor: i16) -> BTreeMap<String, bool> {
    let mut topics = BTreeMap::new();
    let mut phase = shared.phase.subscribe();
    for number in 0.. {
        if *phase.borrow_and_update() != Phase::Produce {
            break;
        }
        let name = format!("{PREFIX}{number}");
        let topic =
            Topic { name: name.clone(), partitions: PARTITIONS, replication_factor, config: Vec::new() };
        if change(&shared, &mut phase, &Change::Create(topic)).await {
            topics.insert(name.clone(), true);
            fill(&shared, &mut phase, &name).await;
        }
        if number % 2 == 0
            && topics.remove(&name).is_some()
            && change(&shared, &mut phase, &Change::Delete(&name)).await
        {
            topics.insert(name, false);
        }
    }
    topics
}

/// Writes to a topic until each of its partitions has records and the time for the next change has come, or there is no
/// time left.
async fn fill(shared: &Shared, phase: &mut watch::Receiver<Phase>, topic: &str) {
    let begin = Instant::now();
    let mut filled = [false; PARTITIONS as usize];
    for (first, address) in (0..).step_by(RECORDS as usize).zip(shared.addresses.iter().cycle()) {
        for (partition, filled) in (0..).zip(&mut filled) {
            let attempt = async {
                let mut connection = Connection::open(*address).await?;
                write_once(shared, &mut connection, topic, partition, first).await
            };
            *filled |= attempt.await.is_ok();
        }
        let enough = filled.iter().all(|filled| *filled) && begin.elapsed() >= INTERVAL;
        if enough || begin.elapsed() >= FILLED_WITHIN || *phase.borrow_and_update() != Phase::Produce {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Writes a batch of records, numbered from `first` on, to a partition, and enters the acknowledgement.
async fn write_once(
    shared: &Shared,
    connection: &mut Connection,
    topic: &str,
    partition: i32,
    first: u64,
) -> Result<()> {
    let metadata = connection.metadata(Some(&[topic.to_owned()]), PRODUCE_TIMEOUT).await?;
    let partitions = metadata.topics.first().map(|topic| &topic.partitions).into_iter().flatten();
    let leader =
        partitions.filter(|described| described.partition_index == partition).map(|p| p.leader_id).next();
    let leader = leader.and_then(|id| shared.addresses.get(usize::try_from(id).ok()?));
    let mut batch = BatchBuilder::new(Compression::None);
    for number in first..first + RECORDS {
        let value = RecordId { producer: u16::MAX, number }.encode();
        batch.push(NewRecord { timestamp: now_ms(), value: Some(&value), ..Default::default() });
    }
    let mut connection = Connection::open(*leader.context("the partition has no leader")?).await?;
    let base_offset = connection.produce(topic, partition, batch.build(), PRODUCE_TIMEOUT).await?;
    let name = PartitionName { topic: topic.to_owned(), partition };
    let mut passing = shared.passing.lock().unwrap_or_else(PoisonError::into_inner);
    let end = passing.entry(name).or_default();
    *end = (*end).max(base_offset + RECORDS as i64);
    Counters::add(&shared.counters.passing, RECORDS);
    Ok(())
}

enum Change<'a> {
    Create(Topic),
    Delete(&'a str),
}

/// Makes a change, asking one broker after the other until it is confirmed; gives up when told to stop.
async fn change(shared: &Shared, phase: &mut watch::Receiver<Phase>, change: &Change<'_>) -> bool {
    for address in shared.addresses.iter().cycle() {
        let attempt = async {
            let mut connection = Connection::open(*address).await?;
            try_once(&mut connection, change).await
        };
        if attempt.await.is_ok() {
            return true;
        }
        if *phase.borrow_and_update() == Phase::Stop {
            return false;
        }
        tokio::time::sleep(shared.retry_backoff).await;
    }
    false
}

async fn try_once(connection: &mut Connection, change: &Change<'_>) -> Result<()> {
    let (error, done_before) = match change {
        Change::Create(topic) => {
            (connection.create_topic(topic, TIMEOUT).await?, ErrorCode::TopicAlreadyExists)
        }
        Change::Delete(name) => {
            (connection.delete_topic(name, TIMEOUT).await?, ErrorCode::UnknownTopicOrPartition)
        }
    };
    // An earlier attempt whose answer was lost has done it.
    if error != ErrorCode::None && error != done_before {
        bail!("the broker answers {}", error.name());
    }
    Ok(())
}
