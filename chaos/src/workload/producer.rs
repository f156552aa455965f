//! A producer at work on one partition: carries out what its [`Lane`] says.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use millrace_protocol::frame;
use millrace_protocol::messages::ProduceRequest;
use millrace_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use millrace_protocol::records::{BatchBuilder, Compression, NewRecord};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, timeout};

use super::lane::{Answered, Batch, Lane};
use super::record::RecordId;
use super::{Counters, Phase, Shared};
use crate::client::{Connection, error_code};

const PRODUCE_VERSION: i16 = 9;

/// How long the broker may wait for other replicas (`timeout` of the request).
const BROKER_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the client waits for an answer before it takes the connection for dead (`request.timeout.ms`).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How one lane is driven.
#[derive(Clone, Debug)]
pub struct LanePlan {
    /// Producer, by its place in the workload.
    pub producer: u16,
    /// Its id and epoch, as the broker gave them.
    pub producer_id: (i64, i16),
    /// Place of the partition in the ledger.
    pub place: usize,
    /// Time between two batches.
    pub interval: Duration,
    /// Most records in a batch.
    pub max_records: u16,
    /// Where batch sizes come from.
    pub seed: u64,
}

/// How a lane ended.
#[derive(Clone, Copy, Debug)]
pub struct LaneEnd {
    /// Producer.
    pub producer: u16,
    /// Place of the partition.
    pub place: usize,
    /// Records made.
    pub made: u64,
    /// Records of them that are not acknowledged.
    pub unacknowledged: u64,
    /// Whether it gave up over an answer that must not be, which was told then.
    pub refused: bool,
}

/// Produces until the phase says drain, then settles what is open; ends early when the phase says stop, or a broker
/// answers what must not be, which is a finding.
pub async fn produce(shared: Arc<Shared>, plan: LanePlan) -> LaneEnd {
    let mut lane = Lane::default();
    let mut work = Work::new(&shared, &plan);
    let mut refused = false;
    while !work.is_done(&lane) {
        if let Err(error) = work.on_one_connection(&mut lane).await {
            lane.disconnected();
            if error.is::<Final>() {
                shared.ledger.find(format!("{}: {error}", shared.ledger.name(plan.place)));
                refused = true;
                break;
            }
            Counters::add(&shared.counters.retries, 1);
            shared.routes.ask();
            tokio::time::sleep(shared.retry_backoff).await;
        }
    }
    LaneEnd {
        producer: plan.producer,
        place: plan.place,
        made: lane.made(),
        unacknowledged: lane.unacknowledged(),
        refused,
    }
}

/// An answer that ends the lane.
#[derive(Debug)]
struct Final(String);

impl std::fmt::Display for Final {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Final {}

struct Work<'a> {
    shared: &'a Shared,
    plan: &'a LanePlan,
    phase: watch::Receiver<Phase>,
    pace: Interval,
    random: SmallRng,
}

impl<'a> Work<'a> {
    fn new(shared: &'a Shared, plan: &'a LanePlan) -> Self {
        let mut pace = tokio::time::interval(plan.interval);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let random = SmallRng::seed_from_u64(plan.seed);
        Self { shared, plan, phase: shared.phase.subscribe(), pace, random }
    }

    fn is_done(&self, lane: &Lane) -> bool {
        match *self.phase.borrow() {
            Phase::Produce => false,
            Phase::Drain => lane.is_settled(),
            Phase::Stop => true,
        }
    }

    /// Works until all is done, or an error says that the connection, or the leader, is not the right one.
    async fn on_one_connection(&mut self, lane: &mut Lane) -> Result<()> {
        let leader = tokio::select! {
            biased;
            _ = self.phase.wait_for(|phase| *phase == Phase::Stop) => return Ok(()),
            (leader, _) = self.shared.routes.leader(self.plan.place) => leader,
        };
        let address = *self.shared.addresses.get(leader).context("the leader is not of this fleet")?;
        let mut connection = Connection::open(address).await?;
        let mut oldest = Instant::now();
        let mut deposed: Option<Instant> = None;
        while !self.is_done(lane) {
            if let Some(batch) = lane.next_again() {
                oldest = Instant::now();
                self.send(&mut connection, &batch).await?;
                continue;
            }
            let producing = *self.phase.borrow() == Phase::Produce;
            let patience = self.shared.deposed_patience;
            let believed_until = deposed.zip(patience).map(|(deposed, patience)| deposed + patience);
            let gives_up = believed_until.unwrap_or(oldest + REQUEST_TIMEOUT).min(oldest + REQUEST_TIMEOUT);
            tokio::select! {
                biased;
                answer = connection.receive(), if lane.is_waiting() => {
                    oldest = Instant::now();
                    self.answered(lane, leader, answer?)?;
                }
                _ = self.pace.tick(), if producing && lane.has_room() => {
                    if !lane.is_waiting() {
                        oldest = Instant::now();
                    }
                    let count = self.random.random_range(1..=self.plan.max_records);
                    let batch = lane.next_new(count, now_ms());
                    self.send(&mut connection, &batch).await?;
                }
                _ = self.phase.changed() => {}
                () = self.shared.routes.led_by_another(self.plan.place, leader),
                    if deposed.is_none() && patience.is_some() =>
                {
                    deposed = Some(Instant::now());
                }
                () = tokio::time::sleep_until(gives_up.into()), if lane.is_waiting() => {
                    bail!("no answer in time");
                }
            }
        }
        Ok(())
    }

    async fn send(&self, connection: &mut Connection, batch: &Batch) -> Result<()> {
        let request = self.request(batch);
        timeout(REQUEST_TIMEOUT, connection.send(PRODUCE_VERSION, &request)).await.context("sending")?
    }

    fn request(&self, batch: &Batch) -> ProduceRequest {
        let name = self.shared.ledger.name(self.plan.place);
        ProduceRequest {
            acks: -1,
            timeout_ms: BROKER_TIMEOUT.as_millis() as i32,
            topic_data: vec![TopicProduceData {
                name: name.topic.as_str().into(),
                partition_data: vec![PartitionProduceData {
                    index: name.partition,
                    records: Some(encode(self.plan.producer, self.plan.producer_id, batch).into()),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn answered(&self, lane: &mut Lane, leader: usize, answer: Bytes) -> Result<()> {
        let (_, answer) = frame::decode_response::<ProduceRequest>(answer, PRODUCE_VERSION)?;
        let partition = answer.responses.first().and_then(|topic| topic.partition_responses.first());
        let partition = partition.context("the answer has no partition")?;
        let error = error_code(partition.error_code)?;
        let answered = lane.answered(error, partition.base_offset).map_err(|refused| {
            Final(format!(
                "broker {leader} answers {} to {} (sequence {}), before which all was acknowledged",
                refused.error.name(),
                RecordId { producer: self.plan.producer, number: refused.batch.first_number },
                refused.batch.base_sequence
            ))
        })?;
        match answered {
            Answered::Acknowledged { batch, base_offset, at_once } => {
                let stored_by = at_once.then_some(leader);
                let now = Instant::now();
                let outcome = self.shared.ledger.partition(self.plan.place).acknowledge(
                    self.plan.producer,
                    &batch,
                    base_offset,
                    stored_by,
                    now,
                );
                self.shared.ledger.find_in(self.plan.place, outcome);
                Ok(())
            }
            Answered::Again => {
                self.shared.counters.refused(error);
                // What is in flight behind it is answered on this connection; then it starts over.
                ensure!(lane.is_waiting(), "the broker answers {}", error.name());
                Ok(())
            }
        }
    }
}

/// A batch as bytes: the same every time.
fn encode(producer: u16, (producer_id, producer_epoch): (i64, i16), batch: &Batch) -> Bytes {
    let mut builder =
        BatchBuilder::new(Compression::None).producer(producer_id, producer_epoch, batch.base_sequence);
    for n in 0..u64::from(batch.count) {
        let value = RecordId { producer, number: batch.first_number + n }.encode();
        builder.push(NewRecord { timestamp: batch.timestamp, value: Some(&value), ..Default::default() });
    }
    builder.build()
}

/// The time of day in milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    // A clock before 1970 is as wrong as one at 1970.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}
