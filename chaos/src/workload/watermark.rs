//! The high watermark as clients are told it (LATEST of ListOffsets): it never goes back, whoever leads. A new leader
//! that does not know it yet has to say so (OFFSET_NOT_AVAILABLE, KIP-207).

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use millrace_protocol::ErrorCode;
use millrace_protocol::messages::ListOffsetsRequest;
use millrace_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};

use super::ledger::PartitionName;
use super::{Counters, Shared};
use crate::client::{Connection, error_code};

/// Version 6 carries the client's leader epoch.
const LIST_OFFSETS_VERSION: i16 = 6;

/// Timestamp that stands for the high watermark.
const LATEST: i64 = -1;

/// Time for one answer; a broker that is paused gives none.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Time between two looks at a partition.
const INTERVAL: Duration = Duration::from_millis(200);

/// What a leader said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// LATEST.
    pub offset: i64,
    /// Who said it.
    pub leader: usize,
    /// Leader epoch in which it was asked.
    pub leader_epoch: i32,
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (broker {}, leader epoch {})", self.offset, self.leader, self.leader_epoch)
    }
}

/// The highest LATEST of one partition, over all answers so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Highest {
    answer: Option<Answer>,
    /// Broker and leader epoch of the last answer that was too low.
    told: Option<(usize, i32)>,
}

impl Highest {
    /// Enters an answer. It was asked for after all others had come, and after everything below `read` had been read.
    ///
    /// # Errors
    /// It is below one of these; told once for each leader epoch.
    pub fn enter(&mut self, answer: Answer, read: i64) -> Result<(), String> {
        let problem = match self.answer {
            Some(highest) if answer.offset < highest.offset => {
                format!("LATEST has gone back from {highest} to {answer}")
            }
            _ if answer.offset < read => {
                format!("LATEST is {answer}, and records below {read} had been read")
            }
            _ => {
                self.answer = Some(answer);
                return Ok(());
            }
        };
        let route = Some((answer.leader, answer.leader_epoch));
        if std::mem::replace(&mut self.told, route) == route { Ok(()) } else { Err(problem) }
    }

    /// Its offset; 0 before the first answer.
    pub fn offset(&self) -> i64 {
        self.answer.map_or(0, |answer| answer.offset)
    }
}

/// Asks whoever leads the partition at `place` for LATEST, again and again; never ends.
pub async fn watch(shared: Arc<Shared>, place: usize) {
    let mut connection = None;
    loop {
        if look(&shared, place, &mut connection).await.is_err() {
            connection = None;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn look(shared: &Shared, place: usize, kept: &mut Option<(usize, Connection)>) -> Result<()> {
    let ledger = &shared.ledger;
    // Before the route: it is of no older epoch than the one that any of this was read in. That of an acknowledgement is
    // not known.
    let read = ledger.partition(place).seen_end();
    let (leader, leader_epoch) = shared.routes.leader(place).await;
    let mut connection = match kept.take() {
        Some((open, connection)) if open == leader => connection,
        _ => {
            let address = shared.addresses.get(leader).context("the leader is not of this fleet")?;
            Connection::open(*address).await?
        }
    };
    match latest(&mut connection, ledger.name(place), leader_epoch, TIMEOUT).await? {
        Ok(offset) => {
            Counters::add(&shared.counters.looks, 1);
            let answer = Answer { offset, leader, leader_epoch };
            let outcome = ledger.partition(place).enter_latest(answer, read);
            ledger.find_in(place, outcome);
        }
        Err(error) if error.is_retriable() => {}
        Err(error) => {
            let name = ledger.name(place);
            ledger.find(format!("{name}: broker {leader} answers {} to ListOffsets", error.name()));
        }
    }
    *kept = Some((leader, connection));
    Ok(())
}

/// LATEST of a partition, or why the broker does not tell.
///
/// # Errors
/// See [`Connection::call`].
pub async fn latest(
    connection: &mut Connection,
    name: &PartitionName,
    leader_epoch: i32,
    within: Duration,
) -> Result<Result<i64, ErrorCode>> {
    let request = ListOffsetsRequest {
        replica_id: -1,
        topics: vec![ListOffsetsTopic {
            name: name.topic.as_str().into(),
            partitions: vec![ListOffsetsPartition {
                partition_index: name.partition,
                current_leader_epoch: leader_epoch,
                timestamp: LATEST,
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    let answer = connection.call(LIST_OFFSETS_VERSION, &request, within).await?;
    let partition = answer.topics.first().and_then(|topic| topic.partitions.first());
    let partition = partition.context("the answer has no partition")?;
    match error_code(partition.error_code)? {
        ErrorCode::None if partition.offset < 0 => bail!("the broker answers offset {}", partition.offset),
        ErrorCode::None => Ok(Ok(partition.offset)),
        error => Ok(Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(offset: i64, leader: usize, leader_epoch: i32) -> Answer {
        Answer { offset, leader, leader_epoch }
    }

    #[test]
    fn the_high_watermark_may_stand_still_and_rise_whoever_leads() {
        let mut highest = Highest::default();
        for (offset, leader, epoch) in [(0, 0, 0), (5, 0, 0), (5, 1, 1), (9, 2, 4)] {
            assert_eq!(highest.enter(answer(offset, leader, epoch), 0), Ok(()));
        }
        assert_eq!(highest.offset(), 9);
    }

    #[test]
    fn a_high_watermark_that_goes_back_is_told_with_who_said_what() {
        let mut highest = Highest::default();
        assert_eq!(highest.enter(answer(7, 1, 4), 0), Ok(()));
        let gone_back =
            "LATEST has gone back from 7 (broker 1, leader epoch 4) to 6 (broker 2, leader epoch 5)";
        assert_eq!(highest.enter(answer(6, 2, 5), 0), Err(gone_back.to_owned()));
        assert_eq!(highest.offset(), 7, "the highest one counts");
        assert_eq!(highest.enter(answer(6, 2, 5), 0), Ok(()), "it was told");
        assert!(highest.enter(answer(6, 1, 6), 0).is_err(), "the next leader is told too");
        assert_eq!(highest.enter(answer(8, 2, 5), 0), Ok(()));
    }

    #[test]
    fn a_high_watermark_below_what_had_been_read_is_told() {
        let mut highest = Highest::default();
        assert_eq!(highest.enter(answer(7, 1, 4), 7), Ok(()));
        let outcome = highest.enter(answer(8, 1, 4), 9);
        assert!(outcome.is_err_and(|text| text.contains("records below 9 had been read")));
    }
}
