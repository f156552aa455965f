//! What clients do during a run: producers and consumers of each partition, and topics that come and go.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use millrace_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use millrace_protocol::messages::fetch_response::PartitionData;
use millrace_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use millrace_protocol::messages::{FetchRequest, ProduceRequest};
use millrace_protocol::records::{BatchBuilder, Compression, NewRecord, batches};
use millrace_protocol::{ErrorCode, RecordBytes};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use super::client::{Connection, Failed, code};
use super::ledger::{Ledger, RecordId};
use super::machine::time_ms;
use super::plan::Plan;
use super::trace::{Trace, now};

pub(super) const TOPIC: &str = "records";

/// Producers of each partition.
const PRODUCERS: u16 = 2;

/// Pause after something went wrong.
const BACK_OFF: Duration = Duration::from_millis(60);

const MAX_BYTES: i32 = 1 << 20;

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Produce,
    /// What was begun is brought to its end.
    Drain,
}

/// What clients and the run have in common.
pub(super) struct Workload {
    pub(super) plan: Rc<Plan>,
    pub(super) trace: Rc<Trace>,
    pub(super) phase: Cell<Phase>,
    /// Whether the topic is there.
    pub(super) ready: Cell<bool>,
    /// Producers, and those who change topics and move partitions, that have not come to their end.
    pub(super) changing: Cell<usize>,
    /// By partition.
    pub(super) ledgers: RefCell<Vec<Ledger>>,
}

impl Workload {
    pub(super) fn new(plan: Rc<Plan>, trace: Rc<Trace>) -> Rc<Self> {
        let partitions = usize::try_from(plan.partitions).unwrap_or(0);
        let ledgers = RefCell::new((0..partitions).map(|_| Ledger::default()).collect());
        let changing = Cell::new(partitions * usize::from(PRODUCERS) + 1 + usize::from(plan.moves));
        Rc::new(Self {
            plan,
            trace,
            phase: Cell::new(Phase::Produce),
            ready: Cell::new(false),
            changing,
            ledgers,
        })
    }

    fn ledger<T>(&self, partition: i32, work: impl FnOnce(&mut Ledger) -> T) -> T {
        work(&mut self.ledgers.borrow_mut()[usize::try_from(partition).unwrap_or(0)])
    }

    fn say(&self, line: impl AsRef<str>) {
        self.trace.say(now(), line);
    }

    fn find(&self, finding: impl Into<String>) {
        self.trace.find(now(), finding);
    }

    /// What runs on the machine of the clients.
    pub(super) async fn software(self: Rc<Self>) -> turmoil::Result {
        self.create().await;
        self.ready.set(true);
        let mut tasks = Vec::new();
        for partition in 0..self.plan.partitions {
            for producer in 0..PRODUCERS {
                let producer = u16::try_from(partition).unwrap_or(0) * PRODUCERS + producer;
                tasks.push(tokio::task::spawn_local(Rc::clone(&self).produce(partition, producer)));
            }
            tasks.push(tokio::task::spawn_local(Rc::clone(&self).consume(partition)));
        }
        tasks.push(tokio::task::spawn_local(Rc::clone(&self).churn()));
        if self.plan.moves {
            tasks.push(tokio::task::spawn_local(Rc::clone(&self).move_partitions()));
        }
        for task in tasks {
            task.await?;
        }
        Ok(())
    }

    fn random(&self, number: u64) -> StdRng {
        StdRng::seed_from_u64(self.plan.seed.wrapping_mul(1_000).wrapping_add(number))
    }

    async fn create(&self) {
        let mut random = self.random(999);
        let config = [
            ("min.insync.replicas", self.plan.min_insync_replicas.to_string()),
            ("retention.ms", "-1".to_owned()),
        ];
        loop {
            let outcome = async {
                let mut connection = Connection::open(random.random_range(0..self.plan.machines)).await?;
                connection.create_topic(TOPIC, self.plan.partitions, 3, &config).await
            };
            match outcome.await {
                Ok(ErrorCode::None | ErrorCode::TopicAlreadyExists) => return,
                Ok(error) => self.say(format!("creating the topic: {}", error.name())),
                Err(error) => self.say(format!("creating the topic: {error}")),
            }
            sleep(BACK_OFF).await;
        }
    }

    /// Topics come and go, so that the metadata has something to lose.
    async fn churn(self: Rc<Self>) {
        let mut random = self.random(998);
        let mut number = 0;
        while self.phase.get() == Phase::Produce {
            sleep(Duration::from_millis(random.random_range(100..900))).await;
            let name = format!("passing-{}", number % 4);
            let outcome = async {
                let mut connection = Connection::open(random.random_range(0..self.plan.machines)).await?;
                if random.random() {
                    connection.create_topic(&name, 1, 2, &[]).await
                } else {
                    connection.delete_topic(&name).await
                }
            };
            let outcome = match outcome.await {
                Ok(error) => error.name().to_owned(),
                Err(error) => error,
            };
            self.say(format!("topic {name}: {outcome}"));
            number += 1;
        }
        self.changing.set(self.changing.get() - 1);
    }

    /// Partitions move to other machines, also while they are moving, and back again (KIP-455).
    async fn move_partitions(self: Rc<Self>) {
        let mut random = self.random(997);
        let machines = i32::try_from(self.plan.machines).unwrap_or(i32::MAX);
        while self.phase.get() == Phase::Produce {
            sleep(Duration::from_millis(random.random_range(200..1_500))).await;
            let partition = random.random_range(0..self.plan.partitions);
            let mut replicas: Vec<i32> = (0..machines).collect();
            replicas.shuffle(&mut random);
            // With two of them, everything that is committed lies on two machines.
            replicas.truncate(random.random_range(2..=3));
            let target = (!random.random_ratio(1, 6)).then_some(replicas);
            let outcome = async {
                let mut connection = Connection::open(random.random_range(0..self.plan.machines)).await?;
                connection.reassign(TOPIC, partition, target.clone()).await
            };
            let outcome = match outcome.await {
                Ok(error) => error.name().to_owned(),
                Err(error) => error,
            };
            self.say(format!("partition {partition} to {target:?}: {outcome}"));
        }
        self.changing.set(self.changing.get() - 1);
    }

    async fn produce(self: Rc<Self>, partition: i32, producer: u16) {
        let mut random = self.random(u64::from(producer));
        let mut route = Route::new(Rc::clone(&self), partition, self.random(100 + u64::from(producer)));
        let id = loop {
            match route.any().await {
                Ok(mut connection) => match connection.init_producer_id().await {
                    Ok(id) => break id,
                    Err(error) => self.say(format!("producer {producer} has no id: {error}")),
                },
                Err(error) => self.say(format!("producer {producer} has no id: {error}")),
            }
            sleep(BACK_OFF).await;
        };
        let (mut number, mut sequence) = (0_u64, 0_i32);
        while self.phase.get() == Phase::Produce {
            sleep(Duration::from_millis(random.random_range(10..240))).await;
            let count = random.random_range(1..=4_u16);
            let first = RecordId { producer, number };
            let records = encode(first, count, id, sequence);
            loop {
                match route.produce(&records).await {
                    Ok((ErrorCode::None, base_offset)) => {
                        self.say(format!("{partition}: {count} from {first} at {base_offset}"));
                        let outcome =
                            self.ledger(partition, |it| it.acknowledge(first, count.into(), base_offset));
                        if let Err(finding) = outcome {
                            self.find(format!("partition {partition}: {finding}"));
                        }
                        break;
                    }
                    // Stored, and so long ago that nobody knows where.
                    Ok((ErrorCode::DuplicateSequenceNumber, _)) => break,
                    Ok((error, _))
                        if error.is_retriable() && error != ErrorCode::OutOfOrderSequenceNumber =>
                    {
                        self.say(format!("{partition}: {first}: {}", error.name()));
                        route.lost();
                    }
                    Ok((error, _)) => {
                        self.find(format!(
                            "partition {partition}: {} to {first}, before which everything was acknowledged",
                            error.name()
                        ));
                        self.changing.set(self.changing.get() - 1);
                        return;
                    }
                    Err(error) => {
                        self.say(format!("{partition}: {first}: {error}"));
                        route.lost();
                    }
                }
                sleep(BACK_OFF).await;
            }
            number += u64::from(count);
            sequence += i32::from(count);
        }
        self.changing.set(self.changing.get() - 1);
    }

    async fn consume(self: Rc<Self>, partition: i32) {
        let seed = 500 + u64::try_from(partition).unwrap_or(0);
        let mut route = Route::new(Rc::clone(&self), partition, self.random(seed));
        loop {
            let offset = self.ledger(partition, |ledger| ledger.seen_end());
            let outcome = route.fetch(offset).await.and_then(|data| self.take(partition, offset, data));
            if let Err(error) = outcome {
                self.say(format!("{partition}: reading from {offset}: {error}"));
                route.lost();
                sleep(BACK_OFF).await;
            }
        }
    }

    fn take(&self, partition: i32, offset: i64, data: PartitionData) -> Result<(), Failed> {
        let high_watermark = data.high_watermark;
        match code(data.error_code)? {
            ErrorCode::None => {}
            error => return Err(error.name().to_owned()),
        }
        let outcome = self.read(partition, data.records.unwrap_or_default(), high_watermark);
        let end = self.ledger(partition, |ledger| ledger.seen_end());
        if end > offset {
            self.say(format!("{partition}: read to {end}, the high watermark is {high_watermark}"));
        }
        if let Err(finding) = outcome {
            self.find(format!("partition {partition}: {finding}"));
        }
        Ok(())
    }

    fn read(&self, partition: i32, records: RecordBytes, high_watermark: i64) -> Result<(), String> {
        let position = self.ledger(partition, |ledger| ledger.seen_end());
        for batch in batches(records.into_bytes()) {
            let batch = batch.map_err(|error| error.to_string())?;
            batch.verify_crc().map_err(|error| error.to_string())?;
            let leader_epoch = batch.header().partition_leader_epoch;
            let body = batch.decompress(1 << 20).map_err(|error| error.to_string())?;
            for record in body.records() {
                let record = record.map_err(|error| error.to_string())?;
                if record.offset < position {
                    continue; // a fetch starts with the batch that holds its offset (F2)
                }
                if record.offset >= high_watermark {
                    return Err(format!("offset {} came above the high watermark", record.offset));
                }
                let id = record.value.and_then(RecordId::decode);
                let id = id.ok_or_else(|| format!("offset {} holds what nobody wrote", record.offset))?;
                self.ledger(partition, |ledger| ledger.see(record.offset, id, leader_epoch))?;
            }
        }
        Ok(())
    }
}

/// The way to the leader of a partition.
struct Route {
    workload: Rc<Workload>,
    partition: i32,
    connection: Option<Connection>,
    random: StdRng,
}

impl Route {
    fn new(workload: Rc<Workload>, partition: i32, random: StdRng) -> Self {
        Self { workload, partition, connection: None, random }
    }

    /// A connection to any broker.
    async fn any(&mut self) -> Result<Connection, Failed> {
        Connection::open(self.random.random_range(0..self.workload.plan.machines)).await
    }

    /// The connection was of no use, or the broker is not the leader.
    fn lost(&mut self) {
        self.connection = None;
    }

    async fn leader(&mut self) -> Result<&mut Connection, Failed> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let leader = self.any().await?.leader(TOPIC, self.partition).await?;
                Connection::open(leader).await?
            }
        };
        Ok(self.connection.insert(connection))
    }

    async fn produce(&mut self, records: &bytes::Bytes) -> Result<(ErrorCode, i64), Failed> {
        let data = PartitionProduceData {
            index: self.partition,
            records: Some(records.clone().into()),
            ..Default::default()
        };
        let topic = TopicProduceData { name: TOPIC.into(), partition_data: vec![data], ..Default::default() };
        let request =
            ProduceRequest { acks: -1, timeout_ms: 3_000, topic_data: vec![topic], ..Default::default() };
        let answer = self.leader().await?.call(9, &request).await?;
        let partition = answer.responses.first().and_then(|topic| topic.partition_responses.first());
        let partition = partition.ok_or("the answer has no partition")?;
        Ok((code(partition.error_code)?, partition.base_offset))
    }

    async fn fetch(&mut self, offset: i64) -> Result<PartitionData, Failed> {
        let partition = FetchPartition {
            partition: self.partition,
            current_leader_epoch: -1,
            fetch_offset: offset,
            last_fetched_epoch: -1,
            log_start_offset: -1,
            partition_max_bytes: MAX_BYTES,
            ..Default::default()
        };
        let topic = FetchTopic { topic: TOPIC.into(), partitions: vec![partition], ..Default::default() };
        let request = FetchRequest {
            replica_id: -1,
            max_wait_ms: 300,
            min_bytes: 1,
            max_bytes: MAX_BYTES,
            session_epoch: -1,
            topics: vec![topic],
            ..Default::default()
        };
        // Now and then any replica: followers answer up to their own high watermark (KIP-392).
        let answer = if self.random.random_ratio(1, 5) {
            self.any().await?.call(12, &request).await?
        } else {
            self.leader().await?.call(12, &request).await?
        };
        let topic = answer.responses.into_iter().next().ok_or("the answer has no topic")?;
        topic.partitions.into_iter().next().ok_or_else(|| "the answer has no partition".to_owned())
    }
}

/// A batch as bytes: the same every time but for the time of day.
fn encode(first: RecordId, count: u16, (producer_id, epoch): (i64, i16), sequence: i32) -> bytes::Bytes {
    let mut builder = BatchBuilder::new(Compression::None).producer(producer_id, epoch, sequence);
    for n in 0..u64::from(count) {
        let value = RecordId { number: first.number + n, ..first }.encode();
        builder.push(NewRecord { timestamp: time_ms(), value: Some(&value), ..Default::default() });
    }
    builder.build()
}
