//! The typed configuration of one broker.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_management::kafka_uuid;
use uuid::Uuid;

use super::error::ConfigError;
use super::listeners::{self, FleetListener, HostPort, ListenerConfig, TLS_SUFFIXES};
use super::properties;
use super::quorum::QuorumConfig;
use super::registry;
use super::value::elements;

/// Cluster id of `millrace-broker dev`: such a cluster is alone, and its folder can be moved or copied.
const DEV_CLUSTER_ID: Uuid = Uuid::from_u128(0x6d69_6c6c_7261_4365_8000_0064_6576_0001);

/// What a broker is set to; made by [`BrokerConfig::from_properties`] or [`BrokerConfig::dev`], then never changed.
///
/// Each field names the key that it comes from; the registry has their meanings, defaults and bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct BrokerConfig {
    /// `cluster.id`.
    pub cluster_id: Uuid,
    /// `node.id`: the broker id to ask the quorum for.
    pub requested_broker_id: i32,
    /// `log.dirs`, which is one directory.
    pub data_dir: PathBuf,
    /// Listeners for clients, from `listeners` and what belongs to it.
    pub listeners: Vec<ListenerConfig>,
    /// Listener of the fleet.
    pub fleet: FleetListener,
    /// `controller.quorum.bootstrap.servers`.
    pub quorum_bootstrap_servers: Vec<HostPort>,
    /// How the metadata quorum works.
    pub quorum: QuorumConfig,
    /// `health.listener`.
    pub health: Option<HostPort>,
    /// `broker.rack`.
    pub rack: Option<String>,
    /// `broker.session.timeout.ms`.
    pub session_timeout: Duration,
    /// `broker.heartbeat.interval.ms`.
    pub heartbeat_interval: Duration,
    /// How followers fetch.
    pub replica_fetch: ReplicaFetchConfig,
    /// `controlled.shutdown.enable`.
    pub controlled_shutdown: bool,
    /// `request.timeout.ms`.
    pub request_timeout: Duration,
    /// Bounds on connections and what arrives on them.
    pub connections: ConnectionLimits,
    /// `fetch.max.bytes`.
    pub fetch_max_bytes: i32,
    /// `max.request.partition.size.limit`.
    pub max_partitions_per_answer: i32,
    /// `auto.create.topics.enable`.
    pub auto_create_topics: bool,
    /// `delete.topic.enable`.
    pub delete_topics: bool,
    /// `num.partitions`.
    pub num_partitions: i32,
    /// `default.replication.factor`.
    pub default_replication_factor: i16,
    /// `min.insync.replicas`.
    pub min_insync_replicas: usize,
    /// What the topics that brokers keep for themselves are made with.
    pub internal_topics: InternalTopicsConfig,
    /// `auto.leader.rebalance.enable` and `leader.imbalance.check.interval.seconds`; `None` means never.
    pub leader_rebalance_interval: Option<Duration>,
    /// What the balancer does by itself, and how fast.
    pub balance: BalanceConfig,
    /// `log.retention.check.interval.ms`.
    pub retention_check_interval: Duration,
    /// `producer.id.expiration.ms`.
    pub producer_id_expiration: Duration,
    /// How logs are compacted.
    pub cleaner: CleanerConfig,
    /// `log.journal.segment.bytes`.
    pub journal_segment_bytes: Option<u64>,
    /// `log.journal.tail.cache.bytes`.
    pub journal_tail_cache_bytes: usize,
    /// Every key that was set, in the form in which it is shown.
    settings: BTreeMap<String, String>,
}

/// Bounds on client connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// `max.connections`.
    pub max_connections: usize,
    /// `max.connections.per.ip`.
    pub max_connections_per_ip: usize,
    /// `connections.max.idle.ms`; `None` means never.
    pub max_idle: Option<Duration>,
    /// `socket.request.max.bytes`.
    pub max_request_bytes: usize,
    /// `socket.listen.backlog.size`.
    pub listen_backlog: u32,
}

/// How logs are compacted, beyond what their topics say.
#[derive(Clone, Debug, PartialEq)]
pub struct CleanerConfig {
    /// `log.cleaner.threads`; 0 if `log.cleaner.enable` is false.
    pub threads: usize,
    /// `log.cleaner.backoff.ms`.
    pub backoff: Duration,
    /// `log.cleaner.dedupe.buffer.size`.
    pub dedupe_buffer_bytes: usize,
    /// `log.cleaner.io.max.bytes.per.second`.
    pub io_max_bytes_per_second: f64,
}

impl BrokerConfig {
    /// Reads a configuration file's text. `env` looks up environment variables.
    pub fn from_properties(
        text: &str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Vec<ConfigError>> {
        let properties = properties::parse(text, env)?;
        let mut errors = Vec::new();
        let mut settings = BTreeMap::new();
        let mut listener_keys = Vec::new();
        for property in properties {
            if let Some(rest) = property.key.strip_prefix("listener.name.") {
                match rest.split_once('.') {
                    Some((listener, suffix)) if TLS_SUFFIXES.contains(&suffix) => {
                        listener_keys.push((
                            listener.to_ascii_uppercase(),
                            property.key.clone(),
                            property.line,
                        ));
                        settings.insert(property.key, property.value);
                    }
                    _ => {
                        let message = format!("unknown key; a listener can have {}", TLS_SUFFIXES.join(", "));
                        errors.push(ConfigError::of_key(&property.key, message).at(property.line));
                    }
                }
                continue;
            }
            let outcome = match registry::broker_key(&property.key) {
                Some(key) => key.canonical(&property.value),
                None => Err(registry::unknown_broker_key(&property.key)),
            };
            match outcome {
                Ok(value) => {
                    settings.insert(property.key, value);
                }
                Err(message) => errors.push(ConfigError::of_key(&property.key, message).at(property.line)),
            }
        }
        let built = Self::build(settings, &mut errors);
        if let Some(config) = &built {
            for (listener, key, line) in listener_keys {
                if listener != config.fleet.name {
                    let message = format!("only listener {} can have certificates so far", config.fleet.name);
                    errors.push(ConfigError::of_key(&key, message).at(line));
                }
            }
        }
        match built {
            Some(config) if errors.is_empty() => Ok(config),
            _ => Err(errors),
        }
    }

    /// A broker for one machine that needs nothing: alone in its quorum, clients on `localhost:port`, no TLS.
    ///
    /// Port 0 takes a free port, for tests. The fleet listener always takes a free one, as nobody else uses it.
    pub fn dev(data_dir: &Path, port: u16) -> Self {
        Self::dev_with(data_dir, port, &[]).expect("the configuration for development is valid")
    }

    /// The same with settings of the user's own, each as `key=value`.
    ///
    /// # Errors
    /// All mistakes in the settings.
    pub fn dev_with(data_dir: &Path, port: u16, settings: &[String]) -> Result<Self, Vec<ConfigError>> {
        let text = format!(
            "cluster.id={}\nnode.id=0\nlog.dirs=/dev/null\n\
             listeners=PLAINTEXT://127.0.0.1:{port},FLEET://127.0.0.1:0\n\
             advertised.listeners=PLAINTEXT://localhost:{port},FLEET://localhost:0\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,FLEET:PLAINTEXT\n\
             controller.quorum.bootstrap.servers=localhost:0\n\
             offsets.topic.replication.factor=1\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             {}\n",
            kafka_uuid::format(DEV_CLUSTER_ID),
            settings.join("\n")
        );
        let mut config = Self::from_properties(&text, &|_| None)?;
        // Not written into the text, as a path may hold characters that mean something there.
        config.settings.insert("log.dirs".to_owned(), data_dir.display().to_string());
        config.data_dir = data_dir.to_path_buf();
        // Nobody else to ask.
        config.quorum_bootstrap_servers.clear();
        Ok(config)
    }

    /// Value that `key` was set to in the file, in the form in which it is shown.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(String::as_str)
    }

    /// Keys with a prefix for one listener, which are in no table, as they were set.
    pub fn listener_settings(&self) -> impl Iterator<Item = (&str, &str)> {
        let settings = self.settings.iter().filter(|(key, _)| key.starts_with("listener.name."));
        settings.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    fn build(settings: BTreeMap<String, String>, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let get = |key: &str| -> Option<&str> {
            let set = settings.get(key).map(String::as_str);
            set.or_else(|| registry::broker_key(key).and_then(|key| key.default))
        };
        let values = Values { settings: &settings };
        let listeners = listeners::read(&get, errors);
        let cluster_id = cluster_id(get("cluster.id"), errors);
        let node_id = values.number("node.id");
        if !settings.contains_key("node.id") {
            errors.push(ConfigError::of_key(
                "node.id",
                "not set; give the broker id that this broker asks for",
            ));
        }
        let data_dir = data_dir(get("log.dirs"), errors);
        let quorum_bootstrap_servers = bootstrap_servers(get("controller.quorum.bootstrap.servers"), errors);
        let health = health(get("health.listener"), listeners.as_ref(), errors);
        let session_timeout = values.millis("broker.session.timeout.ms");
        let heartbeat_interval = values.millis("broker.heartbeat.interval.ms");
        if heartbeat_interval * 2 > session_timeout {
            let message = "more than half of broker.session.timeout.ms, so that one lost heartbeat would take the \
                           broker out of service; lower it or raise the timeout";
            errors.push(ConfigError::of_key("broker.heartbeat.interval.ms", message));
        }
        let replica_fetch = ReplicaFetchConfig {
            lag: values.millis("replica.lag.time.max.ms"),
            wait: values.millis("replica.fetch.wait.max.ms"),
            max_bytes: values.number("replica.fetch.response.max.bytes"),
            rack_aware_reads: get("replica.selector.class").is_some_and(|class| !class.is_empty()),
        };
        if replica_fetch.wait >= replica_fetch.lag {
            let message = "not less than replica.lag.time.max.ms, so that idle followers would leave the in-sync \
                           replicas; lower it or raise the lag";
            errors.push(ConfigError::of_key("replica.fetch.wait.max.ms", message));
        }
        let quorum = QuorumConfig::new(
            values.number("metadata.quorum.voters.count"),
            values.millis("metadata.quorum.voter.replacement.delay.ms"),
            values.millis("controller.quorum.fetch.timeout.ms"),
            values.number("metadata.log.snapshot.interval.entries"),
        );
        let quorum = quorum.map_err(|message| {
            errors.push(ConfigError::of_key("metadata.quorum.voters.count", message));
        });
        if !errors.is_empty() {
            return None;
        }
        let (listeners, fleet) = listeners?;
        Some(Self {
            cluster_id: cluster_id?,
            requested_broker_id: node_id,
            data_dir: data_dir?,
            listeners,
            fleet,
            quorum_bootstrap_servers,
            quorum: quorum.ok()?,
            health,
            rack: get("broker.rack").filter(|rack| !rack.is_empty()).map(str::to_owned),
            session_timeout,
            heartbeat_interval,
            replica_fetch,
            controlled_shutdown: values.flag("controlled.shutdown.enable"),
            request_timeout: values.millis("request.timeout.ms"),
            connections: ConnectionLimits {
                max_connections: values.number("max.connections"),
                max_connections_per_ip: values.number("max.connections.per.ip"),
                max_idle: values.optional_millis("connections.max.idle.ms"),
                max_request_bytes: values.number("socket.request.max.bytes"),
                listen_backlog: values.number("socket.listen.backlog.size"),
            },
            fetch_max_bytes: values.number("fetch.max.bytes"),
            max_partitions_per_answer: values.number("max.request.partition.size.limit"),
            auto_create_topics: values.flag("auto.create.topics.enable"),
            delete_topics: values.flag("delete.topic.enable"),
            num_partitions: values.number("num.partitions"),
            default_replication_factor: values.number("default.replication.factor"),
            min_insync_replicas: values.number("min.insync.replicas"),
            internal_topics: InternalTopicsConfig {
                offsets: InternalTopicConfig {
                    partitions: values.number("offsets.topic.num.partitions"),
                    replication_factor: values.number("offsets.topic.replication.factor"),
                    segment_bytes: values.number("offsets.topic.segment.bytes"),
                },
                transactions: InternalTopicConfig {
                    partitions: values.number("transaction.state.log.num.partitions"),
                    replication_factor: values.number("transaction.state.log.replication.factor"),
                    segment_bytes: values.number("transaction.state.log.segment.bytes"),
                },
                transactions_min_isr: values.number("transaction.state.log.min.isr"),
            },
            leader_rebalance_interval: values
                .flag("auto.leader.rebalance.enable")
                .then(|| Duration::from_secs(values.number("leader.imbalance.check.interval.seconds"))),
            balance: BalanceConfig {
                automatic: values.flag("auto.replica.rebalance.enable"),
                imbalance_percentage: values.number("replica.imbalance.percentage"),
                max_moves: values.number("replica.rebalance.moves.max"),
                max_moves_per_broker: values.number("replica.rebalance.moves.per.broker.max"),
                produce_p99_goal: values.millis("replica.rebalance.produce.p99.goal.ms"),
                max_rate: values.number("replica.rebalance.rate.max"),
                min_rate: values.number("replica.rebalance.rate.min"),
            },
            retention_check_interval: values.millis("log.retention.check.interval.ms"),
            producer_id_expiration: values.millis("producer.id.expiration.ms"),
            cleaner: CleanerConfig {
                threads: if values.flag("log.cleaner.enable") {
                    values.number("log.cleaner.threads")
                } else {
                    0
                },
                backoff: values.millis("log.cleaner.backoff.ms"),
                dedupe_buffer_bytes: values.number("log.cleaner.dedupe.buffer.size"),
                io_max_bytes_per_second: values
                    .text("log.cleaner.io.max.bytes.per.second")
                    .parse()
                    .unwrap_or(f64::MAX),
            },
            journal_segment_bytes: get("log.journal.segment.bytes").and_then(|text| text.parse().ok()),
            journal_tail_cache_bytes: values.number("log.journal.tail.cache.bytes"),
            settings,
        })
    }
}

/// What the topics that brokers keep for themselves are made with; what is there already stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InternalTopicsConfig {
    /// `offsets.topic.…`.
    pub offsets: InternalTopicConfig,
    /// `transaction.state.log.…`.
    pub transactions: InternalTopicConfig,
    /// `transaction.state.log.min.isr`.
    pub transactions_min_isr: i32,
}

/// What one of them is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InternalTopicConfig {
    /// `….num.partitions`.
    pub partitions: i32,
    /// `….replication.factor`.
    pub replication_factor: i16,
    /// `….segment.bytes`.
    pub segment_bytes: i32,
}

/// What the balancer does by itself, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalanceConfig {
    /// `auto.replica.rebalance.enable`.
    pub automatic: bool,
    /// `replica.imbalance.percentage`.
    pub imbalance_percentage: u8,
    /// `replica.rebalance.moves.max`.
    pub max_moves: usize,
    /// `replica.rebalance.moves.per.broker.max`.
    pub max_moves_per_broker: usize,
    /// `replica.rebalance.produce.p99.goal.ms`.
    pub produce_p99_goal: Duration,
    /// `replica.rebalance.rate.max`, in bytes per second.
    pub max_rate: u64,
    /// `replica.rebalance.rate.min`, in bytes per second.
    pub min_rate: u64,
}

/// How followers fetch from their leaders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaFetchConfig {
    /// `replica.lag.time.max.ms`.
    pub lag: Duration,
    /// `replica.fetch.wait.max.ms`.
    pub wait: Duration,
    /// `replica.fetch.response.max.bytes`.
    pub max_bytes: i32,
    /// Whether `replica.selector.class` sends consumers to replicas in their rack.
    pub rack_aware_reads: bool,
}

/// Typed access to settings that have passed their checks, with the registry's defaults.
struct Values<'a> {
    settings: &'a BTreeMap<String, String>,
}

impl Values<'_> {
    fn text(&self, key: &str) -> &str {
        let default = || registry::broker_key(key).and_then(|key| key.default).unwrap_or_default();
        self.settings.get(key).map_or_else(default, String::as_str)
    }

    /// A number that the registry's bounds make fit; zero when it was refused, which is reported elsewhere.
    fn number<N: TryFrom<i64> + Default>(&self, key: &str) -> N {
        let number: i64 = self.text(key).parse().unwrap_or_default();
        N::try_from(number).unwrap_or_default()
    }

    fn flag(&self, key: &str) -> bool {
        self.text(key) == "true"
    }

    fn millis(&self, key: &str) -> Duration {
        Duration::from_millis(self.number(key))
    }

    /// `None` where the number is negative, which means no limit.
    fn optional_millis(&self, key: &str) -> Option<Duration> {
        let number: i64 = self.number(key);
        u64::try_from(number).ok().map(Duration::from_millis)
    }
}

fn cluster_id(text: Option<&str>, errors: &mut Vec<ConfigError>) -> Option<Uuid> {
    let Some(text) = text else {
        let message =
            "not set; every broker of a cluster has the same one, made once (22 characters of base64)";
        errors.push(ConfigError::of_key("cluster.id", message));
        return None;
    };
    let id = kafka_uuid::parse(text).filter(|id| !id.is_nil());
    if id.is_none() && !text.is_empty() {
        let message =
            format!("{text:?} is not a cluster id, which is a uuid in 22 characters of URL-safe base64");
        errors.push(ConfigError::of_key("cluster.id", message));
    }
    id
}

fn data_dir(text: Option<&str>, errors: &mut Vec<ConfigError>) -> Option<PathBuf> {
    let message = match elements(text.unwrap_or_default()).as_slice() {
        [] => "not set; give the directory of the data volume".to_owned(),
        [""] => "the value is empty; give the directory of the data volume".to_owned(),
        [one] => return Some(PathBuf::from(one)),
        several => format!("{} directories; a broker has exactly one data volume", several.len()),
    };
    errors.push(ConfigError::of_key("log.dirs", message));
    None
}

fn bootstrap_servers(text: Option<&str>, errors: &mut Vec<ConfigError>) -> Vec<HostPort> {
    const KEY: &str = "controller.quorum.bootstrap.servers";
    let mut servers = Vec::new();
    for element in elements(text.unwrap_or_default()) {
        match HostPort::parse(element).filter(|server| !server.host.is_empty()) {
            Some(server) => servers.push(server),
            None => {
                errors.push(ConfigError::of_key(KEY, format!("{element:?} is not of the form host:port")))
            }
        }
    }
    if text.is_none_or(|text| text.is_empty()) {
        let message = "not set; list the fleet listeners of all brokers, as host:port";
        errors.push(ConfigError::of_key(KEY, message));
    }
    servers
}

fn health(
    text: Option<&str>,
    listeners: Option<&(Vec<ListenerConfig>, FleetListener)>,
    errors: &mut Vec<ConfigError>,
) -> Option<HostPort> {
    const KEY: &str = "health.listener";
    let text = text.filter(|text| !text.is_empty())?;
    let Some(address) = HostPort::parse(text) else {
        errors.push(ConfigError::of_key(KEY, format!("{text:?} is not of the form host:port")));
        return None;
    };
    if let Some((clients, fleet)) = listeners {
        let binds = clients.iter().map(|listener| &listener.bind).chain([&fleet.bind]);
        if address.port != 0 && binds.into_iter().any(|bind| bind.port == address.port) {
            errors.push(ConfigError::of_key(KEY, format!("port {} belongs to a listener", address.port)));
        }
    }
    Some(address)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
#[path = "broker_test.rs"]
mod tests;
