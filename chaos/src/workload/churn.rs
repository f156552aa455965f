//! Topics that come and go while everything else happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use millrace_protocol::ErrorCode;
use tokio::sync::watch;

use super::{Phase, Shared};
use crate::client::{Connection, Topic};

/// What brokers are given for one change.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Time between two changes.
const INTERVAL: Duration = Duration::from_millis(1500);

/// Prefix of the names of these topics.
pub const PREFIX: &str = "comes-and-goes-";

/// Creates a topic every now and then and deletes every second one again; after the end of producing, finishes what it
/// was about. Returns whether each topic is to be there, for those whose last change was confirmed.
pub async fn churn(shared: Arc<Shared>, replication_factor: i16) -> BTreeMap<String, bool> {
    let mut topics = BTreeMap::new();
    let mut phase = shared.phase.subscribe();
    for number in 0.. {
        if *phase.borrow_and_update() != Phase::Produce {
            break;
        }
        let name = format!("{PREFIX}{number}");
        let topic = Topic { name: name.clone(), partitions: 2, replication_factor, config: Vec::new() };
        if change(&shared, &mut phase, &Change::Create(topic)).await {
            topics.insert(name.clone(), true);
        }
        // Cut short by the next phase, which is looked at above.
        let _ = tokio::time::timeout(INTERVAL, phase.changed()).await;
        if number % 2 == 0
            && topics.remove(&name).is_some()
            && change(&shared, &mut phase, &Change::Delete(&name)).await
        {
            topics.insert(name, false);
        }
    }
    topics
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
