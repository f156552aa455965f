//! A connection that produces.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use millrace_protocol::frame;
use millrace_protocol::messages::ProduceRequest;

use super::PRODUCE_VERSION;
use super::admin::check;
use super::batch::Requests;
use super::connection::Connection;

/// What one connection writes to, and what it waits for. Brokers answer a connection in order.
#[derive(Debug)]
pub(super) struct Producer {
    partitions: Vec<u32>,
    next: usize,
    in_flight: VecDeque<Sent>,
}

/// A request on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    /// When it was to be sent.
    pub(super) due: Instant,
    /// Where its batch goes.
    pub(super) partition: u32,
}

impl Producer {
    /// A producer for `partitions`, which are not none, in turn.
    pub(super) fn new(partitions: Vec<u32>) -> Self {
        Self { partitions, next: 0, in_flight: VecDeque::new() }
    }

    /// Queues the next request; flushing is the caller's.
    pub(super) fn send(&mut self, due: Instant, requests: &Requests, connection: &mut Connection) -> Sent {
        let partition = self.partitions[self.next];
        self.next = (self.next + 1) % self.partitions.len();
        for piece in &requests.pieces[partition as usize] {
            connection.queue(piece.clone());
        }
        let sent = Sent { due, partition };
        self.in_flight.push_back(sent);
        sent
    }

    /// What is not answered yet, oldest first.
    pub(super) fn in_flight(&self) -> &VecDeque<Sent> {
        &self.in_flight
    }

    /// Takes an answer: which request it is of.
    ///
    /// # Errors
    /// The broker refused the batch, or the bytes are no answer.
    pub(super) fn answered(&mut self, answer: Bytes) -> Result<Sent> {
        let sent = self.in_flight.pop_front().context("an answer without a request")?;
        let (_, answer) = frame::decode_response::<ProduceRequest>(answer, PRODUCE_VERSION)?;
        for partition in answer.responses.iter().flat_map(|topic| &topic.partition_responses) {
            check(partition.error_code)
                .with_context(|| format!("producing to partition {}", sent.partition))?;
        }
        Ok(sent)
    }
}

/// Which broker each of `connections` goes to, and with which partitions: connections are dealt out to the brokers in
/// turn, and the partitions of each broker to its connections.
pub(super) fn deal(connections: usize, leaders: &[SocketAddr]) -> Vec<(SocketAddr, Vec<u32>)> {
    let mut led: Vec<(SocketAddr, Vec<u32>)> = Vec::new();
    for (partition, leader) in (0..).zip(leaders) {
        match led.iter_mut().find(|(broker, _)| broker == leader) {
            Some((_, partitions)) => partitions.push(partition),
            None => led.push((*leader, vec![partition])),
        }
    }
    let brokers = led.len();
    let one = |index: usize| {
        let (broker, partitions) = &led[index % brokers];
        let siblings = (index % brokers..connections).step_by(brokers).count();
        let mine = share(index / brokers, siblings, u32::try_from(partitions.len()).unwrap_or(u32::MAX));
        (*broker, mine.into_iter().map(|n| partitions[n as usize]).collect())
    };
    (0..if brokers == 0 { 0 } else { connections }).map(one).collect()
}

/// The partitions of connection `index`: dealt out in turn, or shared when there are more connections.
pub(super) fn share(index: usize, connections: usize, partitions: u32) -> Vec<u32> {
    let all = 0..partitions;
    if connections >= partitions as usize {
        return all.cycle().nth(index).into_iter().collect();
    }
    all.filter(|partition| *partition as usize % connections == index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_dealt_out_so_that_each_has_one_connection() {
        assert_eq!((0..2).map(|c| share(c, 2, 5)).collect::<Vec<_>>(), [vec![0, 2, 4], vec![1, 3]]);
    }

    #[test]
    fn every_partition_goes_to_its_leader_on_one_of_that_brokers_connections() {
        let [a, b] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let dealt = deal(4, &[a, b, a, b, a]);
        assert_eq!(dealt, [(a, vec![0, 4]), (b, vec![1]), (a, vec![2]), (b, vec![3])]);
        assert_eq!(deal(3, &[a, a]), [(a, vec![0]), (a, vec![1]), (a, vec![0])]);
        assert_eq!(deal(3, &[]), []);
    }

    #[test]
    fn more_connections_than_partitions_share_them() {
        assert_eq!((0..5).map(|c| share(c, 5, 2)).collect::<Vec<_>>(), [[0], [1], [0], [1], [0]]);
    }
}
