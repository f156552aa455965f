//! Consumers: one at the end of every partition, and one that reads everything again from the beginning, all the time.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use millrace_protocol::messages::FetchRequest;
use millrace_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use millrace_protocol::messages::fetch_response::PartitionData;
use millrace_protocol::records::{BatchError, batches};
use millrace_protocol::{ErrorCode, RecordBytes};

use super::ledger::Seen;
use super::record::RecordId;
use super::watermark::latest;
use super::{Counters, Shared};
use crate::client::{Connection, check, error_code};

/// Version 12 carries leader epochs and names topics by name.
const FETCH_VERSION: i16 = 12;

const MAX_WAIT: Duration = Duration::from_millis(500);
const MAX_BYTES: i32 = 1 << 20;

/// Longer than the broker may wait, by what a slow machine takes.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Most bytes of the records of one batch.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// Pause of the one that reads again, between two answers.
const PAUSE: Duration = Duration::from_millis(20);

/// Reads the partition at `place` as it grows; never ends.
pub async fn follow(shared: Arc<Shared>, place: usize) {
    let mut reader = Reader { shared: &shared, place, position: 0, connection: None };
    loop {
        reader.step_or_wait().await;
    }
}

/// Reads all partitions in turn, each from its beginning to where it has been seen; never ends.
pub async fn read_again(shared: Arc<Shared>) {
    loop {
        for place in 0..shared.ledger.len() {
            let end = shared.ledger.partition(place).seen_end();
            let mut reader = Reader { shared: &shared, place, position: 0, connection: None };
            while reader.position < end {
                reader.step_or_wait().await;
                tokio::time::sleep(PAUSE).await;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

struct Reader<'a> {
    shared: &'a Shared,
    place: usize,
    position: i64,
    connection: Option<(usize, Connection)>,
}

impl Reader<'_> {
    async fn step_or_wait(&mut self) {
        if self.step().await.is_err() {
            self.connection = None;
            self.shared.routes.ask();
            tokio::time::sleep(self.shared.retry_backoff).await;
        }
    }

    /// Fetches once from the leader.
    async fn step(&mut self) -> Result<()> {
        let (leader, leader_epoch) = self.shared.routes.leader(self.place).await;
        let connection = match self.connection.take() {
            Some((open, connection)) if open == leader => connection,
            _ => {
                let address = self.shared.addresses.get(leader).context("the leader is not of this fleet")?;
                Connection::open(*address).await?
            }
        };
        let connection = &mut self.connection.insert((leader, connection)).1;
        let name = self.shared.ledger.name(self.place);
        let request = FetchRequest {
            replica_id: -1,
            max_wait_ms: MAX_WAIT.as_millis() as i32,
            min_bytes: 1,
            max_bytes: MAX_BYTES,
            session_epoch: -1,
            topics: vec![FetchTopic {
                topic: name.topic.as_str().into(),
                partitions: vec![FetchPartition {
                    partition: name.partition,
                    current_leader_epoch: leader_epoch,
                    fetch_offset: self.position,
                    last_fetched_epoch: -1,
                    log_start_offset: -1,
                    partition_max_bytes: MAX_BYTES,
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        };
        let answer = connection.call(FETCH_VERSION, &request, TIMEOUT).await?;
        check(answer.error_code)?;
        let topic = answer.responses.into_iter().next().context("the answer has no topic")?;
        let partition = topic.partitions.into_iter().next().context("the answer has no partition")?;
        self.take(leader, leader_epoch, partition)
    }

    fn take(&mut self, leader: usize, leader_epoch: i32, partition: PartitionData) -> Result<()> {
        let ledger = &self.shared.ledger;
        match error_code(partition.error_code)? {
            ErrorCode::None => {}
            ErrorCode::OffsetOutOfRange => {
                let name = ledger.name(self.place);
                ledger.find(format!(
                    "{name}: broker {leader}, leader in epoch {leader_epoch}, does not have offset {}, up to which was \
                     committed: its log starts at {}, its high watermark is {}",
                    self.position, partition.log_start_offset, partition.high_watermark
                ));
                bail!("offset out of range");
            }
            error if error.is_retriable() => bail!("the broker answers {}", error.name()),
            error => {
                let name = ledger.name(self.place);
                ledger.find(format!("{name}: broker {leader} answers {} to Fetch", error.name()));
                bail!("the broker answers {}", error.name());
            }
        }
        let high_watermark = partition.high_watermark;
        let before = self.position;
        let outcome = self.read(partition.records.unwrap_or_default(), high_watermark);
        Counters::add(&self.shared.counters.read, (self.position - before).unsigned_abs());
        ledger.find_in(self.place, outcome.map_err(|error| format!("from broker {leader}: {error}")));
        Ok(())
    }

    /// Enters every record from the position on.
    fn read(&mut self, records: RecordBytes, high_watermark: i64) -> Result<(), String> {
        for batch in batches(records.into_bytes()) {
            let batch = match batch {
                Ok(batch) => batch,
                Err(BatchError::Truncated { .. }) => break, // the last one may be cut off
                Err(error) => return Err(error.to_string()),
            };
            batch.verify_crc().map_err(|error| error.to_string())?;
            let header = *batch.header();
            let body = batch.decompress(MAX_BATCH_BYTES).map_err(|error| error.to_string())?;
            for record in body.records() {
                let record = record.map_err(|error| error.to_string())?;
                if record.offset < self.position {
                    continue; // a fetch starts with the batch that holds its offset (F2)
                }
                if record.offset >= high_watermark {
                    return Err(format!(
                        "offset {} came above the high watermark {high_watermark}",
                        record.offset
                    ));
                }
                let id = record.value.and_then(RecordId::decode);
                let id = id.ok_or_else(|| format!("offset {} holds what nobody wrote", record.offset))?;
                let seen = Seen { id, leader_epoch: header.partition_leader_epoch };
                self.position = record.offset + 1;
                self.shared.ledger.partition(self.place).see(record.offset, seen)?;
            }
        }
        Ok(())
    }
}

/// Waits until everything below the high watermark of every partition has been seen.
///
/// # Errors
/// A partition's leader does not tell its end.
pub async fn ends(shared: &Shared) -> Result<Vec<i64>> {
    let mut ends = Vec::new();
    for place in 0..shared.ledger.len() {
        let (leader, _) = shared.routes.leader(place).await;
        let mut connection = Connection::open(shared.addresses[leader]).await?;
        let name = shared.ledger.name(place);
        match latest(&mut connection, name, -1, TIMEOUT).await? {
            Ok(end) => ends.push(end),
            Err(error) => bail!("the leader of {name} answers {}", error.name()),
        }
    }
    Ok(ends)
}
