//! `millrace-bench load`: one load against a broker that runs somewhere, one JSON object on standard output.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use crate::children;
use crate::load::{Admin, Consume, Limit, Load, NewTopic, Pace, Replicas, Shape, Target};

/// What the load does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Produces.
    Produce,
    /// Reads a topic from its start to its end.
    Fetch,
    /// Produces, while consumers read what arrives.
    Follow,
}

#[derive(Debug, Args)]
pub struct LoadArgs {
    /// What to do.
    #[arg(value_enum)]
    kind: Kind,
    /// The broker, as host:port.
    #[arg(long, value_name = "HOST:PORT")]
    bootstrap: String,
    /// The topic; its partitions must be led by this broker.
    #[arg(long, default_value = "bench")]
    topic: String,
    /// Partitions of the topic that are used.
    #[arg(long, default_value_t = 12)]
    partitions: u32,
    /// Creates the topic first, with that many partitions.
    #[arg(long)]
    create: bool,
    /// A setting of the topic that is created; may come several times.
    #[arg(long = "config", value_name = "KEY=VALUE", requires = "create")]
    configs: Vec<String>,
    /// Bytes of a record's value.
    #[arg(long, default_value_t = 1024)]
    record_bytes: usize,
    /// Largest batch in bytes, header included; without it one record per batch.
    #[arg(long)]
    batch_bytes: Option<usize>,
    /// Connections that produce.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Requests on the way per connection.
    #[arg(long, default_value_t = 5)]
    in_flight: usize,
    /// Connections that consume.
    #[arg(long, default_value_t = 4)]
    consumers: usize,
    /// Requests a second over all connections, however the broker does; without it as fast as answers come.
    #[arg(long)]
    rate: Option<f64>,
    /// Seconds of load before the measurement.
    #[arg(long, default_value_t = 5.0)]
    warm_up: f64,
    /// Seconds of measurement.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Gigabytes after which the measurement ends early.
    #[arg(long, default_value_t = 4.0)]
    max_gb: f64,
    /// The broker's process, whose CPU time, memory and disk are then part of the result.
    #[arg(long)]
    pid: Option<u32>,
    /// Core to run on.
    #[arg(long)]
    core: Option<usize>,
}

impl LoadArgs {
    /// Runs the load.
    ///
    /// # Errors
    /// An argument makes no sense, or the load fails.
    pub fn run(&self) -> Result<String> {
        ensure!(self.partitions > 0 && self.connections > 0 && self.in_flight > 0, "nothing can be 0 here");
        ensure!(self.consumers > 0, "consumers cannot be 0");
        ensure!(self.rate.is_none_or(|rate| rate > 0.0), "a rate is above 0");
        for (name, value) in [("--warm-up", self.warm_up), ("--seconds", self.seconds)] {
            ensure!((0.0..=86_400.0).contains(&value), "{name} is between 0 and a day");
        }
        if let Some(core) = self.core {
            children::pin(&[core])?;
        }
        let address = self.address()?;
        if self.create {
            self.create_topic(address)?;
        }
        let measured = self.load(address)?.run()?;
        Ok(serde_json::to_string_pretty(&measured)?)
    }

    fn address(&self) -> Result<SocketAddr> {
        let mut found =
            self.bootstrap.to_socket_addrs().with_context(|| format!("--bootstrap {}", self.bootstrap))?;
        found.next().with_context(|| format!("--bootstrap {} has no address", self.bootstrap))
    }

    fn create_topic(&self, address: SocketAddr) -> Result<()> {
        let configs = self.configs.iter().map(|config| {
            config.split_once('=').with_context(|| format!("--config {config} is not KEY=VALUE"))
        });
        let config = configs.collect::<Result<Vec<_>>>()?;
        let topic = NewTopic { name: &self.topic, replicas: Replicas::one(self.partitions), config: &config };
        let mut admin = Admin::connect(address)?;
        admin.create_topics(&[topic])?;
        admin.wait_for_leaders(&self.topic, self.partitions)
    }

    fn load(&self, address: SocketAddr) -> Result<Load> {
        let bytes = (self.max_gb * 1e9) as u64;
        let pace = self.rate.map_or(Pace::Saturate, Pace::Rate);
        let ends = match self.kind {
            Kind::Produce => Vec::new(),
            Kind::Fetch | Kind::Follow => {
                Admin::connect(address)?.end_offsets(&self.topic, self.partitions)?
            }
        };
        let read = |range: fn(i64) -> (i64, Option<i64>)| Consume {
            consumers: self.consumers,
            at_once: usize::MAX,
            partitions: (0..).zip(&ends).map(|(n, &end)| (n, range(end).0, range(end).1)).collect(),
        };
        let (produce, consume, warm_up) = match self.kind {
            Kind::Produce => (Some(pace), None, self.warm_up),
            Kind::Fetch => (None, Some(read(|end| (0, Some(end)))), 0.0),
            Kind::Follow => (Some(pace), Some(read(|end| (end, None))), self.warm_up),
        };
        Ok(Load {
            target: Target::of_one(address, &self.topic, self.partitions, self.pid),
            shape: Shape {
                record_bytes: self.record_bytes,
                batch_bytes: self.batch_bytes,
                connections: self.connections,
                in_flight: self.in_flight,
            },
            produce,
            consume,
            warm_up: Limit { time: Duration::from_secs_f64(warm_up), bytes },
            measure: Limit { time: Duration::from_secs_f64(self.seconds), bytes },
            rests: false,
            signals: None,
        })
    }
}
