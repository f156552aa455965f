//! Who leads what, as clients know it: from the metadata of every broker, newest leader epoch first.
//!
//! One task per broker asks it, twice a second and whenever somebody was turned away. All their answers together are
//! also evidence: a leader epoch has one leader, whoever is asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use millrace_protocol::messages::MetadataResponse;
use tokio::sync::watch;
use tokio::time::timeout;

use super::ledger::{Ledger, PartitionName};
use crate::client::Connection;

/// Time between two looks without a reason.
const INTERVAL: Duration = Duration::from_millis(500);

/// Time for one answer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Where requests for a partition go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Broker id of the leader; `None` while there is none.
    pub leader: Option<usize>,
    /// Its epoch.
    pub leader_epoch: i32,
}

/// Partitions are meant by their place in the ledger.
#[derive(Debug)]
pub struct Routes {
    places: HashMap<PartitionName, usize>,
    topics: Vec<String>,
    routes: watch::Sender<Vec<Option<Route>>>,
    asked: watch::Sender<u64>,
    /// By place and leader epoch.
    leaders: Mutex<HashMap<(usize, i32), usize>>,
    ledger: Arc<Ledger>,
}

impl Routes {
    /// Routes of the partitions in `ledger`, none known yet.
    pub fn new(ledger: Arc<Ledger>) -> Self {
        let places = ledger.names().cloned().enumerate().map(|(place, name)| (name, place)).collect();
        let mut topics: Vec<String> = ledger.names().map(|name| name.topic.clone()).collect();
        topics.dedup();
        let routes = watch::Sender::new(vec![None; ledger.len()]);
        Self { places, topics, routes, asked: watch::Sender::new(0), leaders: Mutex::default(), ledger }
    }

    /// The route of a partition with a leader; waits for one. Cancel-safe.
    pub async fn leader(&self, place: usize) -> (usize, i32) {
        let mut routes = self.routes.subscribe();
        loop {
            let route = routes.borrow_and_update()[place];
            if let Some(Route { leader: Some(leader), leader_epoch }) = route {
                return (leader, leader_epoch);
            }
            self.ask();
            // The sender lives as long as this.
            let _ = timeout(INTERVAL, routes.changed()).await;
        }
    }

    /// The route of a partition as it is known now.
    pub fn current(&self, place: usize) -> Option<Route> {
        self.routes.borrow()[place]
    }

    /// Resolves when another broker than `leader` leads the partition. Cancel-safe.
    pub async fn led_by_another(&self, place: usize, leader: usize) {
        let leads_another = |routes: &Vec<Option<Route>>| {
            routes[place].and_then(|route| route.leader).is_some_and(|now| now != leader)
        };
        // The sender lives as long as this.
        let _ = self.routes.subscribe().wait_for(leads_another).await;
    }

    /// Has every broker asked again, at once.
    pub fn ask(&self) {
        self.asked.send_modify(|asked| *asked += 1);
    }

    /// Asks one broker, again and again; never ends.
    pub async fn follow(self: Arc<Self>, address: SocketAddr) {
        let mut asked = self.asked.subscribe();
        let mut connection = None;
        loop {
            asked.mark_unchanged();
            if self.ask_one(&mut connection, address).await.is_err() {
                connection = None;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let _ = timeout(INTERVAL, asked.changed()).await;
            // Many may be turned away at the same moment; one answer serves them all.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ask_one(&self, connection: &mut Option<Connection>, address: SocketAddr) -> Result<()> {
        if connection.is_none() {
            *connection = Some(timeout(TIMEOUT, Connection::open(address)).await??);
        }
        let Some(open) = connection else { return Ok(()) };
        let answer = open.metadata(Some(&self.topics), TIMEOUT).await?;
        self.merge(&answer);
        Ok(())
    }

    fn merge(&self, answer: &MetadataResponse) {
        for topic in &answer.topics {
            let Some(name) = &topic.name else { continue };
            for partition in &topic.partitions {
                let name =
                    PartitionName { topic: name.as_str().to_owned(), partition: partition.partition_index };
                let Some(&place) = self.places.get(&name) else { continue };
                let leader = usize::try_from(partition.leader_id).ok();
                let route = Route { leader, leader_epoch: partition.leader_epoch };
                self.judge(place, route);
                self.routes.send_if_modified(|routes| {
                    let newer = routes[place].is_none_or(|known| newer(known, route));
                    if newer {
                        routes[place] = Some(route);
                    }
                    newer
                });
            }
        }
    }

    fn judge(&self, place: usize, route: Route) {
        let Some(leader) = route.leader else { return };
        let mut leaders = self.leaders.lock().unwrap_or_else(PoisonError::into_inner);
        let known = *leaders.entry((place, route.leader_epoch)).or_insert(leader);
        if known != leader {
            let name = self.ledger.name(place);
            let epoch = route.leader_epoch;
            self.ledger
                .find(format!("{name}: leader epoch {epoch} is said to be that of {known} and of {leader}"));
        }
    }
}

/// Whether what was heard replaces what is known. Without a leader, the epoch may be that of the last one.
fn newer(known: Route, heard: Route) -> bool {
    heard.leader_epoch > known.leader_epoch
        || heard.leader_epoch == known.leader_epoch && known.leader.is_none() && heard.leader.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_epoch_replaces_an_older_one_and_never_the_other_way() {
        let route = |leader, leader_epoch| Route { leader, leader_epoch };
        assert!(newer(route(Some(0), 3), route(Some(1), 4)));
        assert!(newer(route(Some(0), 3), route(None, 4)));
        assert!(newer(route(None, 4), route(Some(2), 4)));
        assert!(!newer(route(Some(1), 4), route(Some(0), 3)));
        assert!(!newer(route(Some(1), 4), route(None, 4)));
    }
}
