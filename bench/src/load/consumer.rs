//! A connection that fetches: one request at a time, as Kafka's consumers do.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use bytes::{Bytes, BytesMut};
use millrace_protocol::frame;
use millrace_protocol::messages::FetchRequest;
use millrace_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use millrace_protocol::records::{BatchError, batches};

use super::admin::check;
use super::connection::Connection;
use super::{CLIENT_ID, FETCH_VERSION};

/// Defaults of Kafka's consumer: fetch.max.bytes, max.partition.fetch.bytes, fetch.max.wait.ms.
const MAX_BYTES: i32 = 50 << 20;
const PARTITION_MAX_BYTES: i32 = 1 << 20;
const MAX_WAIT_MS: i32 = 500;

/// How far a partition is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) partition: u32,
    pub(super) next: i64,
    /// Where to stop; `None` goes on for ever.
    pub(super) end: Option<i64>,
}

impl Position {
    fn is_done(&self) -> bool {
        self.end.is_some_and(|end| self.next >= end)
    }
}

/// What one connection reads.
#[derive(Debug)]
pub(super) struct Consumer {
    topic: String,
    positions: Vec<Position>,
    /// Partitions in one request.
    at_once: usize,
    sent: Option<Instant>,
}

/// What an answer brought.
#[derive(Debug)]
pub(super) struct Fetched {
    /// When it was asked for.
    pub(super) sent: Instant,
    /// Bytes of whole batches.
    pub(super) bytes: u64,
    /// Records in them.
    pub(super) records: u64,
    /// Partitions that moved, and the offset that comes next.
    pub(super) next: Vec<(u32, i64)>,
}

impl Consumer {
    pub(super) fn new(topic: &str, positions: Vec<Position>, at_once: usize) -> Self {
        Self { topic: topic.to_owned(), positions, at_once, sent: None }
    }

    /// Whether a request is on its way.
    pub(super) fn is_waiting(&self) -> bool {
        self.sent.is_some()
    }

    /// Queues the next request; false when everything is read.
    ///
    /// # Errors
    /// The request cannot be encoded.
    pub(super) fn send(&mut self, now: Instant, connection: &mut Connection) -> Result<bool> {
        self.positions.retain(|position| !position.is_done());
        if self.positions.is_empty() {
            return Ok(false);
        }
        let partitions = self.positions.iter().take(self.at_once).map(|position| {
            Ok(FetchPartition {
                partition: i32::try_from(position.partition)?,
                fetch_offset: position.next,
                partition_max_bytes: PARTITION_MAX_BYTES,
                ..Default::default()
            })
        });
        let request = FetchRequest {
            max_wait_ms: MAX_WAIT_MS,
            min_bytes: 1,
            max_bytes: MAX_BYTES,
            topics: vec![FetchTopic {
                topic: self.topic.as_str().into(),
                partitions: partitions.collect::<Result<_>>()?,
                ..Default::default()
            }],
            ..Default::default()
        };
        let mut buffer = BytesMut::new();
        frame::encode_request(&mut buffer, FETCH_VERSION, 0, Some(CLIENT_ID), &request)?;
        connection.queue(buffer.freeze());
        self.sent = Some(now);
        Ok(true)
    }

    /// Takes an answer and moves on behind the batches it brought.
    ///
    /// # Errors
    /// The broker refused, left out offsets, or the bytes are no answer.
    pub(super) fn answered(&mut self, answer: Bytes) -> Result<Fetched> {
        let sent = self.sent.take().context("an answer without a request")?;
        let (_, answer) = frame::decode_response::<FetchRequest>(answer, FETCH_VERSION)?;
        check(answer.error_code).context("fetching")?;
        let mut fetched = Fetched { sent, bytes: 0, records: 0, next: Vec::new() };
        for partition in answer.responses.into_iter().flat_map(|topic| topic.partitions) {
            let index = partition.partition_index;
            check(partition.error_code).with_context(|| format!("fetching partition {index}"))?;
            let Some(records) = partition.records.filter(|records| !records.is_empty()) else { continue };
            let position = self.positions.iter_mut().find(|p| i64::from(p.partition) == i64::from(index));
            let position = position.with_context(|| format!("partition {index} was not asked for"))?;
            for batch in batches(records.into_bytes()) {
                let batch = match batch {
                    Ok(batch) => batch,
                    Err(BatchError::Truncated { .. }) => break, // the last one may be cut off
                    Err(error) => return Err(error.into()),
                };
                let header = batch.header();
                let (base, expected) = (header.base_offset, position.next);
                ensure!(base == expected, "partition {index}: offset {base} came, {expected} was expected");
                position.next = base + i64::from(header.last_offset_delta) + 1;
                fetched.bytes += batch.bytes().len() as u64;
                fetched.records += u64::try_from(header.records_count)?;
            }
            fetched.next.push((position.partition, position.next));
        }
        Ok(fetched)
    }
}
