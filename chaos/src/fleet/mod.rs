//! The fleet: brokers that are hosts of their own, and everything that can be done to them.
//!
//! One task owns it and works through one thing at a time; clients only know addresses. Waiting is always for a
//! condition, with a deadline.

pub mod broker;
pub mod clock;
pub mod disk;
pub mod management;
pub mod network;
pub mod process;
pub mod shell;
pub mod supervisor;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::findings::{Blame, Findings};
use broker::Broker;

/// Time within which whatever must come to be has come to be, on the slowest machine.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Time between two looks at a condition.
const POLL: Duration = Duration::from_millis(25);

const CLUSTER_ID: &str = "AAAAAAAAAAAAAAAAAAAAAQ";

/// What a fleet is like.
#[derive(Clone, Debug)]
pub struct FleetPlan {
    /// Number of brokers; the first three form the quorum.
    pub brokers: usize,
    /// The broker's program.
    pub program: PathBuf,
    /// Folder for volumes, configuration and logs.
    pub folder: PathBuf,
    /// Names the run's control groups.
    pub run: u32,
    /// Lines of every broker's configuration.
    pub settings: Vec<String>,
    /// Whether brokers have clocks that can be set.
    pub own_clocks: bool,
    /// The mistake of the past that brokers make, if any.
    pub historical_bug: Option<String>,
    /// Where it is told that a broker ended without being asked to.
    pub findings: Arc<Findings>,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Fleet {
    brokers: Vec<Broker>,
}

impl Fleet {
    /// Makes hosts and volumes; starts nothing.
    ///
    /// # Errors
    /// A tool fails.
    pub async fn create(plan: &FleetPlan) -> Result<Self> {
        ensure!((1..=9).contains(&plan.brokers), "a fleet has 1 to 9 brokers");
        let mut brokers = Vec::new();
        for number in 0..plan.brokers {
            network::create_host(number).await?;
            brokers.push(Broker::create(plan, number).await?);
        }
        Ok(Self { brokers })
    }

    /// Starts all brokers, forms their quorum, and waits until all are in service.
    ///
    /// # Errors
    /// A broker cannot be started, knows nothing of the bug that it is to have, or, with [`Blame`], does not come up.
    pub async fn start(&mut self) -> Result<()> {
        for broker in &mut self.brokers {
            broker.start()?;
        }
        let voters = self.brokers.len().min(3);
        self.form_quorum(voters).await.context(Blame("forming the quorum".to_owned()))?;
        self.wait_until_in_service().await?;
        self.brokers.iter().try_for_each(Broker::ensure_bug)
    }

    async fn form_quorum(&self, voters: usize) -> Result<()> {
        let mut members = Vec::new();
        for number in 0..voters {
            let identity = until("a broker to tell its identity", DEADLINE, async || {
                management::get(number, "/v1/identity").await.ok()
            })
            .await?;
            members.push(json!({"raftNodeId": identity["raftNodeId"], "address": identity["address"]}));
        }
        let body = json!({"clusterId": CLUSTER_ID, "voters": members});
        management::post(0, "/v1/quorum/bootstrap", &body).await.map(drop)
    }

    /// Number of brokers.
    pub fn len(&self) -> usize {
        self.brokers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.brokers.is_empty()
    }

    /// A broker.
    ///
    /// # Panics
    /// There is none of that number.
    pub fn broker(&self, number: usize) -> &Broker {
        &self.brokers[number]
    }

    /// A broker, to do something to it.
    ///
    /// # Panics
    /// There is none of that number.
    pub fn broker_mut(&mut self, number: usize) -> &mut Broker {
        &mut self.brokers[number]
    }

    /// All brokers.
    pub fn brokers_mut(&mut self) -> &mut [Broker] {
        &mut self.brokers
    }

    /// Where clients find each broker.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        (0..self.brokers.len()).map(client_address).collect()
    }

    /// The broker that is the controller, as far as anyone knows; asks everybody in turn.
    pub async fn controller(&self) -> Option<usize> {
        for number in 0..self.brokers.len() {
            let Ok(view) = management::get(number, "/v1/cluster").await else { continue };
            if let Some(id) = view["controllerId"].as_u64().and_then(|id| usize::try_from(id).ok()) {
                return Some(id);
            }
        }
        None
    }

    /// Waits until the metadata quorum can lose a voter: all brokers say that its voters are brokers as they are now, and
    /// that none is being replaced.
    ///
    /// # Errors
    /// They do not in time; gives the last answers.
    pub async fn wait_until_quorum_is_whole(&self, within: Duration) -> Result<()> {
        let mut last = String::new();
        until("a whole metadata quorum", within, async || {
            let (mut nodes, mut views) = (Vec::new(), Vec::new());
            for number in 0..self.brokers.len() {
                nodes.push(management::get(number, "/v1/identity").await.ok()?["raftNodeId"].take());
                views.push(management::get(number, "/v1/cluster").await.ok()?["quorum"].take());
            }
            last = format!("nodes {nodes:?}, views {views:?}");
            views.iter().all(|view| can_lose_a_voter(view, &nodes)).then_some(())
        })
        .await
        .context(last)
    }

    /// Waits until every broker says that it is ready, and that all others are in service.
    ///
    /// # Errors
    /// With [`Blame`] if one does not in time; says which, and what it says instead.
    pub async fn wait_until_in_service(&mut self) -> Result<()> {
        for number in 0..self.brokers.len() {
            self.brokers[number].wait_until_ready().await?;
        }
        Ok(())
    }

    /// Kills what still runs, lets go of the volumes and the hosts.
    ///
    /// # Errors
    /// A volume is still in use.
    pub async fn tear_down(mut self) -> Result<()> {
        for broker in &mut self.brokers {
            broker.kill().await?;
            broker.disk().unmount().await?;
        }
        for number in 0..self.brokers.len() {
            network::remove_host(number).await?;
        }
        Ok(())
    }
}

/// Where clients find a broker.
pub fn client_address(number: usize) -> SocketAddr {
    SocketAddr::from((network::address(number), broker::CLIENT_PORT))
}

/// Rack of a broker: each has one of its own.
pub fn rack(number: usize) -> String {
    format!("rack-{number}")
}

/// Whether the metadata quorum, as a broker sees it, still has a majority without any one of its voters, and without those
/// whose volume was lost: all voters are among `nodes`, the Raft node ids of the volumes that there are.
fn can_lose_a_voter(quorum: &Value, nodes: &[Value]) -> bool {
    let voters = quorum["voters"].as_array().map_or(&[][..], Vec::as_slice);
    quorum["changing"] == false && voters.len() >= 3 && voters.iter().all(|voter| nodes.contains(voter))
}

/// Calls `attempt` until it gives a value.
///
/// # Errors
/// The time is over.
pub async fn until<T>(
    what: &str,
    within: Duration,
    mut attempt: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = attempt().await {
            return Ok(value);
        }
        ensure!(Instant::now() < deadline, "waited {within:?} for {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Folder of broker `number` below that of the fleet.
pub fn broker_folder(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("broker-{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_can_lose_a_voter_when_three_have_their_volumes_and_none_is_being_replaced() {
        let nodes = [json!("1"), json!("2"), json!("3"), json!("4")];
        let quorum = |voters: &[&str], changing: bool| json!({"voters": voters, "changing": changing});
        assert!(can_lose_a_voter(&quorum(&["1", "2", "4"], false), &nodes));
        assert!(!can_lose_a_voter(&quorum(&["1", "2", "4"], true), &nodes));
        assert!(!can_lose_a_voter(&quorum(&["1", "2", "9"], false), &nodes), "the volume of 9 was lost");
        assert!(!can_lose_a_voter(&quorum(&["1", "2"], false), &nodes), "both are the majority");
        assert!(!can_lose_a_voter(&Value::Null, &nodes));
    }
}
