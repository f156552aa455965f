//! Consumers: two at the end of every partition, one of which reads from a replica in its rack (KIP-392), and one that
//! reads everything again from the beginning, all the time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use millrace_protocol::messages::FetchRequest;
use millrace_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use millrace_protocol::messages::fetch_response::PartitionData;
use millrace_protocol::records::{BatchError, batches};
use millrace_protocol::{ErrorCode, RecordBytes};

use super::ledger::Seen;
use super::record::RecordId;
use super::routes::Route;
use super::watermark::latest;
use super::{Counters, Shared};
use crate::client::{Connection, check, error_code};

/// Version 12 carries leader epochs and racks, and names topics by name.
const FETCH_VERSION: i16 = 12;

const MAX_WAIT: Duration = Duration::from_millis(500);
const MAX_BYTES: i32 = 1 << 20;

/// Longer than the broker may wait, by what a slow machine takes.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Most bytes of the records of one batch.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// Pause of the one that reads again, between two answers.
const PAUSE: Duration = Duration::from_millis(20);

/// How long a consumer reads from a replica that the leader named, before it asks the leader again: `metadata.max.age.ms`,
/// far below its default, so that partitions move and leaders change in between.
const METADATA_MAX_AGE: Duration = Duration::from_secs(3);

/// Reads the partition at `place` from its leader as it grows; never ends.
pub async fn follow(shared: Arc<Shared>, place: usize) {
    let mut reader = Reader::new(&shared, place, String::new());
    loop {
        reader.step_or_wait().await;
    }
}

/// Reads the partition at `place` as it grows, from the replica in `rack` when the leader says so; never ends.
pub async fn follow_nearby(shared: Arc<Shared>, place: usize, rack: String) {
    let mut reader = Reader::new(&shared, place, rack);
    loop {
        reader.step_or_wait().await;
        shared.nearby[place].store(reader.position, Ordering::Relaxed);
    }
}

/// Reads all partitions in turn, each from its beginning to where it has been seen; never ends.
pub async fn read_again(shared: Arc<Shared>) {
    loop {
        for place in 0..shared.ledger.len() {
            let end = shared.ledger.partition(place).seen_end();
            let mut reader = Reader::new(&shared, place, String::new());
            while reader.position < end {
                reader.step_or_wait().await;
                tokio::time::sleep(PAUSE).await;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The replica that a consumer reads from in place of the leader, as the leader named it.
#[derive(Clone, Copy, Debug, Default)]
struct PreferredReplica {
    named: Option<(usize, Instant)>,
}

impl PreferredReplica {
    /// Whom to ask at `now`.
    fn source(&self, leader: usize, now: Instant) -> usize {
        let named = self.named.filter(|(_, at)| now < *at + METADATA_MAX_AGE);
        named.map_or(leader, |(replica, _)| replica)
    }

    /// Enters whom a leader's answer names at `now`, -1 for nobody. Followers name nobody, which says nothing.
    fn answered(&mut self, preferred_read_replica: i32, now: Instant) {
        if let Ok(replica) = usize::try_from(preferred_read_replica) {
            self.named = Some((replica, now));
        }
    }

    /// Goes back to the leader, as after every error.
    fn forget(&mut self) {
        self.named = None;
    }
}

struct Reader<'a> {
    shared: &'a Shared,
    place: usize,
    position: i64,
    /// Empty for one that reads from leaders.
    rack: String,
    preferred: PreferredReplica,
    connection: Option<(usize, Connection)>,
}

impl<'a> Reader<'a> {
    fn new(shared: &'a Shared, place: usize, rack: String) -> Self {
        Self { shared, place, position: 0, rack, preferred: PreferredReplica::default(), connection: None }
    }

    async fn step_or_wait(&mut self) {
        if self.step().await.is_err() {
            self.connection = None;
            self.preferred.forget();
            self.shared.routes.ask();
            tokio::time::sleep(self.shared.retry_backoff).await;
        }
    }

    /// Fetches once, from the leader or from whom it named.
    async fn step(&mut self) -> Result<()> {
        let (leader, leader_epoch) = self.shared.routes.leader(self.place).await;
        let source = self.preferred.source(leader, Instant::now());
        let connection = match self.connection.take() {
            Some((open, connection)) if open == source => connection,
            _ => {
                let address =
                    self.shared.addresses.get(source).context("the replica is not of this fleet")?;
                Connection::open(*address).await?
            }
        };
        let connection = &mut self.connection.insert((source, connection)).1;
        let name = self.shared.ledger.name(self.place);
        let request = FetchRequest {
            replica_id: -1,
            max_wait_ms: MAX_WAIT.as_millis() as i32,
            min_bytes: 1,
            max_bytes: MAX_BYTES,
            session_epoch: -1,
            rack_id: self.rack.as_str().into(),
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
        self.take(source, Route { leader: Some(leader), leader_epoch }, partition)
    }

    fn take(&mut self, source: usize, route: Route, partition: PartitionData) -> Result<()> {
        let ledger = &self.shared.ledger;
        let is_leader = route.leader == Some(source);
        match error_code(partition.error_code)? {
            ErrorCode::None => self.preferred.answered(partition.preferred_read_replica, Instant::now()),
            ErrorCode::OffsetOutOfRange if !is_leader => bail!("a follower does not have this yet"),
            ErrorCode::OffsetOutOfRange => {
                let name = ledger.name(self.place);
                ledger.find(format!(
                    "{name}: broker {source}, leader in epoch {}, does not have offset {}, up to which was \
                     committed: its log starts at {}, its high watermark is {}",
                    route.leader_epoch, self.position, partition.log_start_offset, partition.high_watermark
                ));
                bail!("offset out of range");
            }
            error if error.is_retriable() => bail!("the broker answers {}", error.name()),
            error => {
                let name = ledger.name(self.place);
                ledger.find(format!("{name}: broker {source} answers {} to Fetch", error.name()));
                bail!("the broker answers {}", error.name());
            }
        }
        let high_watermark = partition.high_watermark;
        let before = self.position;
        let outcome = self.read(partition.records.unwrap_or_default(), high_watermark);
        let read = (self.position - before).unsigned_abs();
        Counters::add(&self.shared.counters.read, read);
        if !is_leader {
            Counters::add(&self.shared.counters.read_from_followers, read);
        }
        ledger.find_in(self.place, outcome.map_err(|error| format!("from broker {source}: {error}")));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_reads_from_whom_the_leader_named_until_metadata_is_old() {
        let (mut preferred, start) = (PreferredReplica::default(), Instant::now());
        assert_eq!(preferred.source(0, start), 0);
        preferred.answered(2, start);
        assert_eq!(preferred.source(0, start), 2);
        preferred.answered(-1, start + METADATA_MAX_AGE / 2);
        let last = start + METADATA_MAX_AGE - Duration::from_millis(1);
        assert_eq!(preferred.source(1, last), 2, "followers name nobody, and the leader may have changed");
        assert_eq!(preferred.source(1, start + METADATA_MAX_AGE), 1);
    }

    #[test]
    fn a_consumer_goes_back_to_the_leader_after_an_error() {
        let (mut preferred, start) = (PreferredReplica::default(), Instant::now());
        preferred.answered(2, start);
        preferred.forget();
        assert_eq!(preferred.source(0, start), 0);
    }
}
