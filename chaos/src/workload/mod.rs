//! What goes on all the time: idempotent producers, consumers, topics that come and go, partitions that move, and the
//! ledger of it all.

pub mod churn;
pub mod consumer;
pub mod lane;
pub mod ledger;
pub mod moves;
pub mod producer;
pub mod record;
pub mod routes;
pub mod watermark;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use millrace_protocol::ErrorCode;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::client::{Connection, Topic};
use crate::findings::{Blame, Findings};
use crate::fleet::{rack, until};
use ledger::{Ledger, PartitionName};
use moves::Replicas;
use producer::{LaneEnd, LanePlan};
use routes::Routes;

/// Time for what one request can do when nothing is wrong.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What producers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Make records.
    Produce,
    /// Settle what is not acknowledged.
    Drain,
    /// End.
    Stop,
}

/// What a workload is like.
#[derive(Clone, Debug)]
pub struct WorkloadPlan {
    /// Topics to write to; they are created.
    pub topics: Vec<Topic>,
    /// Producers, each with a lane to every partition.
    pub producers: u16,
    /// Time between two batches of a lane.
    pub interval: Duration,
    /// Most records in a batch.
    pub max_records: u16,
    /// Where sizes come from.
    pub seed: u64,
    /// Pause of a client after an error (`retry.backoff.ms`).
    pub retry_backoff: Duration,
    /// How long a client waits for answers of a broker when it hears that another one leads; `None`: as for any answer.
    pub deposed_patience: Option<Duration>,
    /// Replicas of topics that come and go; `None` leaves such topics out.
    pub churn: Option<i16>,
    /// How many replicas partitions have while they are moved; `None` leaves them where they are.
    pub moves: Option<Replicas>,
    /// Whether some consumers have a rack and read from replicas in it.
    pub nearby: bool,
}

/// What tasks of the workload have in common.
#[derive(Debug)]
pub struct Shared {
    /// Where each broker is, by broker id.
    pub addresses: Vec<SocketAddr>,
    /// What was acknowledged and seen.
    pub ledger: Arc<Ledger>,
    /// Who leads what.
    pub routes: Arc<Routes>,
    /// What producers do.
    pub phase: watch::Sender<Phase>,
    /// Pause of a client after an error.
    pub retry_backoff: Duration,
    /// How long a client waits for answers of a broker that leads no more.
    pub deposed_patience: Option<Duration>,
    /// Up to where consumers with a rack have read, by place; none where there are no such consumers.
    pub nearby: Vec<AtomicI64>,
    /// End of what was acknowledged in topics that come and go.
    pub passing: Mutex<BTreeMap<PartitionName, i64>>,
    /// Figures.
    pub counters: Counters,
}

impl Shared {
    /// Rack of the consumer of the partition at `place` that has one: not that of the broker that leads it at first, from
    /// which there would be nothing to read but from the leader.
    fn rack(&self, place: usize) -> String {
        rack((place + 1) % self.addresses.len().max(1))
    }
}

/// Figures of a workload.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections given up for an error.
    pub retries: AtomicU64,
    /// Records read, each as often as it was.
    pub read: AtomicU64,
    /// Those of them that followers gave.
    pub read_from_followers: AtomicU64,
    /// Records acknowledged in topics that come and go.
    pub passing: AtomicU64,
    /// Answers about the high watermark.
    pub looks: AtomicU64,
    /// Reassignments that were begun or cancelled.
    pub moves: AtomicU64,
    /// Errors that producers were answered.
    pub errors: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    /// Counts.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts an answer that means to try again.
    pub fn refused(&self, error: ErrorCode) {
        *self.errors.lock().unwrap_or_else(PoisonError::into_inner).entry(error.name()).or_default() += 1;
    }

    /// Errors that producers were answered since this was last asked.
    pub fn take_errors(&self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut self.errors.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A workload that runs. Dropping it ends all of its tasks.
#[derive(Debug)]
pub struct Workload {
    shared: Arc<Shared>,
    lanes: JoinSet<LaneEnd>,
    churn: Option<JoinHandle<BTreeMap<String, bool>>>,
    moves: Option<JoinHandle<()>>,
    /// Tasks without an end of their own.
    readers: JoinSet<()>,
}

/// What is known once all producers have settled.
#[derive(Debug)]
pub struct Settled {
    /// Records that each producer made, by place of the partition.
    pub made: Vec<BTreeMap<u16, u64>>,
    /// Whether topics that came and went are to be there.
    pub topics: BTreeMap<String, bool>,
}

impl Workload {
    /// Creates the topics and starts everything.
    ///
    /// # Errors
    /// With [`Blame`] if a topic cannot be created, or a producer gets no id.
    pub async fn start(
        addresses: Vec<SocketAddr>,
        plan: &WorkloadPlan,
        findings: Arc<Findings>,
    ) -> Result<Self> {
        let blame = || Blame("starting the workload".to_owned());
        for topic in &plan.topics {
            create(&addresses, topic).await.with_context(blame)?;
        }
        let names = plan.topics.iter().flat_map(|topic| {
            let name = |partition| PartitionName { topic: topic.name.clone(), partition };
            (0..topic.partitions).map(name)
        });
        let ledger = Arc::new(Ledger::new(names.collect(), findings));
        let routes = Arc::new(Routes::new(Arc::clone(&ledger)));
        let mut readers = JoinSet::new();
        for address in &addresses {
            readers.spawn(Arc::clone(&routes).follow(*address));
        }
        let mut connection = Connection::open(addresses[0]).await.with_context(blame)?;
        let mut producers = Vec::new();
        for _ in 0..plan.producers {
            let producer = connection.init_producer_id(TIMEOUT).await.context("getting a producer id");
            producers.push(producer.with_context(blame)?);
        }
        let nearby = if plan.nearby { ledger.len() } else { 0 };
        let shared = Arc::new(Shared {
            addresses,
            ledger,
            routes,
            phase: watch::Sender::new(Phase::Produce),
            retry_backoff: plan.retry_backoff,
            deposed_patience: plan.deposed_patience,
            nearby: (0..nearby).map(|_| AtomicI64::new(0)).collect(),
            passing: Mutex::default(),
            counters: Counters::default(),
        });
        let mut lanes = JoinSet::new();
        for place in 0..shared.ledger.len() {
            for (producer, producer_id) in (0..).zip(&producers) {
                let lane = LanePlan {
                    producer,
                    producer_id: *producer_id,
                    place,
                    interval: plan.interval,
                    max_records: plan.max_records,
                    seed: plan.seed ^ (place as u64) << 16 ^ u64::from(producer),
                };
                lanes.spawn(producer::produce(Arc::clone(&shared), lane));
            }
            readers.spawn(consumer::follow(Arc::clone(&shared), place));
            if plan.nearby {
                readers.spawn(consumer::follow_nearby(Arc::clone(&shared), place, shared.rack(place)));
            }
            readers.spawn(watermark::watch(Arc::clone(&shared), place));
        }
        readers.spawn(consumer::read_again(Arc::clone(&shared)));
        let churn = plan.churn.map(|replicas| tokio::spawn(churn::churn(Arc::clone(&shared), replicas)));
        let moves = plan
            .moves
            .map(|replicas| tokio::spawn(moves::move_partitions(Arc::clone(&shared), replicas, plan.seed)));
        Ok(Self { shared, lanes, churn, moves, readers })
    }

    /// What its tasks share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Stops making records and waits until all that were made are acknowledged. What is not in time is a finding.
    ///
    /// # Errors
    /// A task has panicked.
    pub async fn settle(&mut self, within: Duration) -> Result<Settled> {
        self.shared.phase.send_replace(Phase::Drain);
        let phase = self.shared.phase.clone();
        let stop = tokio::spawn(async move {
            tokio::time::sleep(within).await;
            phase.send_replace(Phase::Stop);
        });
        let mut made = vec![BTreeMap::new(); self.shared.ledger.len()];
        while let Some(end) = self.lanes.join_next().await {
            let end = end?;
            if end.refused {
                continue;
            }
            made[end.place].insert(end.producer, end.made);
            if end.unacknowledged > 0 {
                let name = self.shared.ledger.name(end.place);
                self.shared.ledger.find(format!(
                    "{name}: {} records of producer {} are still not acknowledged {within:?} after all was healed",
                    end.unacknowledged, end.producer
                ));
            }
        }
        let topics = match self.churn.take() {
            Some(churn) => churn.await?,
            None => BTreeMap::new(),
        };
        if let Some(moves) = self.moves.take() {
            moves.await?;
        }
        stop.abort();
        Ok(Settled { made, topics })
    }

    /// Waits until consumers have seen everything up to the high watermarks, those with a rack each by itself.
    ///
    /// # Errors
    /// With [`Blame`] if they have not in time, which includes leaders that do not answer.
    pub async fn read_to_the_end(&self, within: Duration) -> Result<()> {
        let ledger = &self.shared.ledger;
        let mut last = String::new();
        let read = until("consumers to read everything", within, async || {
            match tokio::time::timeout(TIMEOUT, consumer::ends(&self.shared)).await {
                Ok(Ok(ends)) => {
                    let Some(place) = (0..ledger.len()).find(|&place| self.read_to(place) < ends[place])
                    else {
                        return Some(());
                    };
                    let (seen, end) = (ledger.partition(place).seen_end(), ends[place]);
                    last = format!("{}: read up to {seen} of {end}", ledger.name(place));
                    if let Some(nearby) = self.nearby(place) {
                        last =
                            format!("{last}, up to {nearby} by the consumer in {}", self.shared.rack(place));
                    }
                }
                Ok(Err(error)) => last = format!("{error:#}"),
                Err(_) => "a leader does not tell its end".clone_into(&mut last),
            }
            None
        });
        read.await.context(Blame(last.clone()))
    }

    /// Up to where everybody who follows a partition has read it.
    fn read_to(&self, place: usize) -> i64 {
        let seen = self.shared.ledger.partition(place).seen_end();
        self.nearby(place).map_or(seen, |nearby| nearby.min(seen))
    }

    fn nearby(&self, place: usize) -> Option<i64> {
        self.shared.nearby.get(place).map(|nearby| nearby.load(Ordering::Relaxed))
    }

    /// Ends all tasks and waits until they have ended.
    pub async fn stop(mut self) -> Arc<Shared> {
        self.shared.phase.send_replace(Phase::Stop);
        self.readers.shutdown().await;
        self.lanes.shutdown().await;
        self.shared
    }
}

/// Creates a topic, asking until it is there.
async fn create(addresses: &[SocketAddr], topic: &Topic) -> Result<()> {
    let mut last = ErrorCode::None;
    let mut next = addresses.iter().cycle();
    until("a topic to be created", TIMEOUT * 3, async || {
        let mut connection = Connection::open(*next.next()?).await.ok()?;
        last = connection.create_topic(topic, TIMEOUT).await.ok()?;
        match last {
            ErrorCode::None | ErrorCode::TopicAlreadyExists => Some(Ok(())),
            error if error.is_retriable() || error == ErrorCode::InvalidReplicationFactor => None,
            error => Some(Err(error)),
        }
    })
    .await
    .with_context(|| format!("{}: {}", topic.name, last.name()))?
    .or_else(|error| bail!("creating topic {}: {}", topic.name, error.name()))
}
