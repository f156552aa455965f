//! Looks at the cluster while this broker is the controller, and has the controller do what is next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::BalancerOptions;
use super::step::{Interval, away_since, has_work, next_requests, slowest_p99};
use crate::metadata::controller::ControllerRequest;
use crate::metadata::image::{BrokerId, MetadataImage};
use crate::metadata::service::Member;
use crate::metrics::durations::DurationCounts;
use crate::replication::ReplicaManager;

/// Time that the controller, which is this broker, gets for one request.
const CONTROLLER_TIMEOUT: Duration = Duration::from_secs(10);

/// Shortest time between two looks, however fast moves end.
const PAUSE: Duration = Duration::from_millis(200);

/// Looks of the balancer between two of which nobody has asked for anything: imbalance that grows by itself grows slowly.
const IDLE_LOOKS: u32 = 12;

/// Runs until `cancel`. What is under way then goes on by itself.
pub async fn run(
    member: Member,
    replicas: ReplicaManager,
    options: BalancerOptions,
    cancel: CancellationToken,
) {
    tokio::select! {
        biased;
        () = cancel.cancelled() => {}
        () = look_again_and_again(&member, &replicas, &options) => {}
    }
}

async fn look_again_and_again(member: &Member, replicas: &ReplicaManager, options: &BalancerOptions) {
    let metadata = member.metadata();
    let mut images = metadata.subscribe();
    let mut driver = Driver { options: *options, memory: None, away: BTreeMap::new() };
    loop {
        let seen = metadata.image();
        if member.quorum().is_leader() {
            for request in driver.look(&seen, replicas).await {
                if let ControllerRequest::MovePartitions(moves) = &request {
                    tracing::info!(partitions = moves.len(), "moving partitions");
                }
                if let Err(error) = metadata.call_within(request, CONTROLLER_TIMEOUT).await {
                    tracing::warn!(%error, "the balancer is not heard; it looks again");
                    break;
                }
            }
        } else {
            driver.forget();
        }
        tokio::time::sleep(PAUSE).await;
        let before = metadata.image();
        let idle = !before.balance.rebalancing && before.balance.moves.is_empty();
        let pause = options.interval * if idle && options.automatic { IDLE_LOOKS } else { 1 };
        // Soon, when there is room for more moves or somebody has asked for something.
        let moves = before.balancer_moves().count();
        let calls = |image: &Arc<MetadataImage>| {
            image.marks != seen.marks
                || image.balance.rebalancing != seen.balance.rebalancing
                || (moves > 0 && image.balancer_moves().count() <= moves / 2)
        };
        let woken = tokio::time::timeout(pause, images.wait_for(calls));
        // The metadata end with the broker, and this task before them.
        if let Ok(Err(_)) = woken.await {
            return;
        }
    }
}

/// What is remembered between two looks.
#[derive(Debug)]
struct Driver {
    options: BalancerOptions,
    memory: Option<Memory>,
    /// Brokers out of service, and since when.
    away: BTreeMap<BrokerId, Instant>,
}

#[derive(Debug)]
struct Memory {
    at: Instant,
    produce_times: BTreeMap<BrokerId, DurationCounts>,
}

impl Driver {
    fn forget(&mut self) {
        self.memory = None;
        self.away.clear();
    }

    /// What the controller is to be asked.
    async fn look(
        &mut self,
        image: &Arc<MetadataImage>,
        replicas: &ReplicaManager,
    ) -> Vec<ControllerRequest> {
        if !has_work(image, &self.options) {
            self.forget();
            return Vec::new();
        }
        self.away = away_since(image, &self.away, Instant::now());
        let given_up = self.away.iter().filter(|(_, since)| since.elapsed() >= self.options.patience);
        let given_up: BTreeSet<BrokerId> = given_up.map(|(id, _)| *id).collect();
        let load = replicas.load().await;
        let is_due = self.memory.as_ref().is_none_or(|memory| memory.at.elapsed() >= self.options.interval);
        let mut interval = None;
        if is_due {
            if let Some(memory) = &self.memory {
                let progress = replicas.progress().await;
                interval = Some(Interval {
                    produce_p99: slowest_p99(&memory.produce_times, &load.produce_times),
                    bytes_per_second: progress.replicas.iter().map(|replica| replica.bytes_per_second).sum(),
                });
            }
            self.memory = Some(Memory { at: Instant::now(), produce_times: load.produce_times.clone() });
        }
        let (image, options) = (Arc::clone(image), self.options);
        // Thousands of partitions take a while to plan.
        let plan = move || next_requests(&image, &load, interval, &given_up, &options);
        let planned = crate::blocking::spawn_blocking(plan).await;
        planned.unwrap_or_default()
    }
}
