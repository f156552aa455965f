//! Who leads the partitions of topics and who is in sync, as one broker tells it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs as _};

use anyhow::{Context as _, Result};
use millrace_protocol::messages::MetadataResponse;

/// What the metadata of one broker says about some topics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// Where the brokers are that take part, by id.
    pub brokers: BTreeMap<i32, SocketAddr>,
    /// By topic and number.
    pub partitions: BTreeMap<(String, u32), Placed>,
}

/// One partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Its leader, if it has one that is there.
    pub leader: Option<i32>,
    /// How many replicas are in sync.
    pub in_sync: usize,
}

impl Layout {
    /// What an answer says.
    ///
    /// # Errors
    /// It names an address that is none.
    pub fn of(answer: &MetadataResponse) -> Result<Self> {
        let brokers = answer.brokers.iter().map(|it| Ok((it.node_id, address(&it.host, it.port)?)));
        let brokers: BTreeMap<i32, SocketAddr> = brokers.collect::<Result<_>>()?;
        let mut partitions = BTreeMap::new();
        for topic in &answer.topics {
            let name = topic.name.as_ref().map(ToString::to_string).unwrap_or_default();
            for partition in &topic.partitions {
                let index = u32::try_from(partition.partition_index)?;
                let leader = Some(partition.leader_id).filter(|leader| brokers.contains_key(leader));
                let in_sync = partition.isr_nodes.len();
                partitions.insert((name.clone(), index), Placed { leader, in_sync });
            }
        }
        Ok(Self { brokers, partitions })
    }

    /// How many partitions have a leader other than `gone` and at least `in_sync` replicas in sync.
    pub fn ready(&self, in_sync: usize, gone: Option<i32>) -> usize {
        let is_ready = |it: &&Placed| {
            it.leader.is_some() && (gone.is_none() || it.leader != gone) && it.in_sync >= in_sync
        };
        self.partitions.values().filter(is_ready).count()
    }

    /// The address of every partition's leader, in order; `None` while one has none.
    pub fn leaders(&self) -> Option<Vec<SocketAddr>> {
        let address = |it: &Placed| self.brokers.get(&it.leader?).copied();
        self.partitions.values().map(address).collect()
    }

    /// What each broker leads: its address, and partitions by topic.
    pub fn led(&self) -> BTreeMap<SocketAddr, BTreeMap<String, Vec<u32>>> {
        let mut led: BTreeMap<SocketAddr, BTreeMap<String, Vec<u32>>> = BTreeMap::new();
        for ((topic, index), placed) in &self.partitions {
            let leader = placed.leader.and_then(|leader| self.brokers.get(&leader));
            if let Some(leader) = leader {
                led.entry(*leader).or_default().entry(topic.clone()).or_default().push(*index);
            }
        }
        led
    }
}

/// Where a broker is that says it is at `host`, which may be a name; brokers that are measured listen on IPv4.
fn address(host: &str, port: i32) -> Result<SocketAddr> {
    let found = (host, u16::try_from(port)?).to_socket_addrs();
    let found = found.with_context(|| format!("a broker at {host}:{port}"))?.find(SocketAddr::is_ipv4);
    found.with_context(|| format!("a broker at {host}:{port}, which has no IPv4 address"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use millrace_protocol::messages::metadata_response::{
        MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
    };

    use super::*;

    fn partition(partition_index: i32, leader_id: i32, in_sync: &[i32]) -> MetadataResponsePartition {
        let isr_nodes = in_sync.to_vec();
        MetadataResponsePartition { partition_index, leader_id, isr_nodes, ..Default::default() }
    }

    fn layout(partitions: Vec<MetadataResponsePartition>) -> Layout {
        let broker = |node_id: i32| MetadataResponseBroker {
            node_id,
            host: "127.0.0.1".into(),
            port: 9000 + node_id,
            ..Default::default()
        };
        let topic = MetadataResponseTopic { name: Some("t".into()), partitions, ..Default::default() };
        let brokers = vec![broker(1), broker(2)];
        Layout::of(&MetadataResponse { brokers, topics: vec![topic], ..Default::default() }).unwrap()
    }

    #[test]
    fn a_partition_is_ready_with_a_leader_that_is_there_and_enough_in_sync() {
        let layout = layout(vec![
            partition(0, 1, &[1, 2, 3]),
            partition(1, 2, &[2, 3]),
            partition(2, -1, &[3]),
            partition(3, 3, &[1, 2, 3]),
        ]);
        assert_eq!(layout.ready(1, None), 2, "the third has no leader, that of the fourth is not there");
        assert_eq!(layout.ready(3, None), 1);
        assert_eq!(layout.ready(1, Some(1)), 1);
        assert_eq!(layout.leaders(), None);
    }

    #[test]
    fn brokers_may_say_where_they_are_by_name() {
        assert_eq!(address("localhost", 9092).unwrap(), "127.0.0.1:9092".parse().unwrap());
        assert_eq!(address("127.0.0.2", 1).unwrap(), "127.0.0.2:1".parse().unwrap());
        assert!(address("::1", 9092).is_err());
        assert!(address("localhost", 65_536).is_err());
    }

    #[test]
    fn leaders_come_in_the_order_of_partitions() {
        let layout = layout(vec![partition(1, 2, &[2]), partition(0, 1, &[1]), partition(10, 1, &[1])]);
        let ports: Vec<_> = layout.leaders().unwrap().iter().map(SocketAddr::port).collect();
        assert_eq!(ports, [9001, 9002, 9001]);
        let led: Vec<_> =
            layout.led().into_iter().map(|(at, topics)| (at.port(), topics["t"].clone())).collect();
        assert_eq!(led, [(9001, vec![0, 10]), (9002, vec![1])]);
    }
}
