//! Partitions that move from broker to broker while everything else happens.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use millrace_protocol::ErrorCode;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;

use super::ledger::PartitionName;
use super::{Counters, Phase, Shared};
use crate::client::Connection;

/// What a broker is given for one change.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds of the time between two changes, in milliseconds.
const BETWEEN: (u64, u64) = (100, 1_500);

/// In one of so many cases a partition is told to stay where it was, whether it is under way or not.
const CANCEL: u32 = 6;

/// How many replicas a partition has.
#[derive(Clone, Copy, Debug)]
pub struct Replicas {
    /// At least, while partitions move: enough for acks=all.
    pub least: usize,
    /// At most, and in the end.
    pub most: usize,
}

/// Reassigns partitions all the time, also ones that are under reassignment; after the end of producing, gives each as
/// many replicas as it had at the beginning. A partition that cannot be told that is a finding.
pub async fn move_partitions(shared: Arc<Shared>, replicas: Replicas, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed ^ 0x006d_6f76_6573);
    let mut phase = shared.phase.subscribe();
    while *phase.borrow_and_update() == Phase::Produce {
        let name = shared.ledger.name(random.random_range(0..shared.ledger.len())).clone();
        let count = random.random_range(replicas.least..=replicas.most);
        let target = (!random.random_ratio(1, CANCEL)).then(|| brokers(&shared, count, &mut random));
        let asked = shared.addresses.choose(&mut random).copied();
        // Faults make some of these fail, and whether they were done before that does not matter.
        if let Some(address) = asked
            && let Ok(mut connection) = Connection::open(address).await
            && try_once(&mut connection, &name, target).await.is_ok()
        {
            Counters::add(&shared.counters.moves, 1);
        }
        let pause = Duration::from_millis(random.random_range(BETWEEN.0..BETWEEN.1));
        let _ = tokio::time::timeout(pause, phase.changed()).await;
    }
    for place in 0..shared.ledger.len() {
        let target = brokers(&shared, replicas.most, &mut random);
        if !insist(&shared, &mut phase, shared.ledger.name(place), &target).await {
            let name = shared.ledger.name(place);
            shared.ledger.find(format!("{name}: no broker takes its last assignment, {target:?}"));
        }
    }
}

fn brokers(shared: &Shared, count: usize, random: &mut SmallRng) -> Vec<i32> {
    let mut ids: Vec<i32> = (0..).take(shared.addresses.len()).collect();
    ids.shuffle(random);
    ids.truncate(count);
    ids
}

/// Asks one broker after the other until it is confirmed; gives up when told to stop.
async fn insist(
    shared: &Shared,
    phase: &mut watch::Receiver<Phase>,
    name: &PartitionName,
    target: &[i32],
) -> bool {
    for address in shared.addresses.iter().cycle() {
        let attempt = async {
            let mut connection = Connection::open(*address).await?;
            try_once(&mut connection, name, Some(target.to_vec())).await
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

async fn try_once(connection: &mut Connection, name: &PartitionName, target: Option<Vec<i32>>) -> Result<()> {
    match connection.reassign(&name.topic, name.partition, target, TIMEOUT).await? {
        // There was nothing to cancel, or only what was brought is in sync.
        ErrorCode::None | ErrorCode::NoReassignmentInProgress | ErrorCode::InvalidReplicaAssignment => Ok(()),
        error => bail!("the broker answers {}", error.name()),
    }
}
