//! Settings of topics: checks on single values, and what applies to a topic in the end.
//!
//! A value set on the topic wins; then come the dynamic settings of this broker, those of all brokers, the broker's
//! file, and the default in the registry, each under the broker keys that supply the topic key.

use std::collections::BTreeMap;
use std::time::Duration;

use super::broker::BrokerConfig;
use super::registry::{self, KeyDef};

/// Where a value comes from, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Set on the topic.
    Topic,
    /// Set for this broker, in the metadata.
    DynamicBroker,
    /// Set for all brokers, in the metadata.
    DynamicDefaultBroker,
    /// Set in the broker's file.
    StaticBroker,
    /// Nobody has set it.
    Default,
}

/// One of the values that apply to a key, under the name of the key that it was set with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Key it was set with.
    pub name: &'static str,
    /// Value, in that key's unit, as it is shown.
    pub value: String,
    /// Where it was set.
    pub origin: Origin,
    /// Unit of that key, in units of the key that was asked for.
    factor: i64,
}

/// Settings of brokers that live in the metadata.
#[derive(Clone, Copy, Debug, Default)]
pub struct DynamicConfig<'a> {
    broker: Option<&'a BTreeMap<String, String>>,
    cluster: Option<&'a BTreeMap<String, String>>,
}

impl<'a> DynamicConfig<'a> {
    /// What of the metadata's broker configurations applies to `broker_id`.
    pub fn of(configs: &'a BTreeMap<Option<i32>, BTreeMap<String, String>>, broker_id: i32) -> Self {
        Self { broker: configs.get(&Some(broker_id)), cluster: configs.get(&None) }
    }

    /// What applies to all brokers alike. Decisions for the whole cluster use this one.
    pub fn cluster_wide(configs: &'a BTreeMap<Option<i32>, BTreeMap<String, String>>) -> Self {
        Self { broker: None, cluster: configs.get(&None) }
    }
}

/// Checks one setting of a topic; the message names the key.
pub fn validate(key: &str, value: &str) -> Result<(), String> {
    let definition = registry::topic_key(key).ok_or_else(|| registry::unknown_topic_key(key))?;
    definition.canonical(value).map(drop).map_err(|problem| format!("{key}: {problem}"))
}

/// Checks settings against each other, each of which has passed [`validate`].
pub fn validate_together(config: &BTreeMap<String, String>) -> Result<(), String> {
    let number = |key: &str| -> Option<i64> { config.get(key)?.trim().parse().ok() };
    let (min, max) = (number("min.compaction.lag.ms"), number("max.compaction.lag.ms"));
    match (min.unwrap_or(0), max.unwrap_or(i64::MAX)) {
        (min, max) if min > max => {
            Err(format!("min.compaction.lag.ms is {min} and max.compaction.lag.ms is {max}, which is less"))
        }
        _ => Ok(()),
    }
}

/// Every value that applies to a topic key, the one that wins first; always ends with a default if there is one.
pub fn settings(
    key: &'static KeyDef,
    topic: &BTreeMap<String, String>,
    dynamic: DynamicConfig<'_>,
    config: &BrokerConfig,
) -> Vec<Setting> {
    let mut found = Vec::new();
    push(&mut found, key, topic.get(key.name), Origin::Topic, 1);
    for synonym in key.synonyms {
        let Some(broker_key) = registry::broker_key(synonym.name) else { continue };
        found.extend(broker_layers(broker_key, dynamic, config, synonym.factor));
    }
    // By key first: log.retention.ms of the file outranks log.retention.hours wherever that is set. The defaults of all
    // these keys are weaker than any setting.
    found.sort_by_key(|setting| setting.origin == Origin::Default);
    if !found.iter().any(|setting| setting.origin == Origin::Default) {
        push(&mut found, key, key.default, Origin::Default, 1);
    }
    found
}

/// The part of [`settings`] that Kafka tells: from the topic itself, and from the strongest broker key on.
///
/// Where only a coarser key is set (`log.retention.hours`), Kafka tells nothing of it, and tools take the value for a
/// default. They would show another origin here if they were told more.
pub fn told_settings(
    key: &'static KeyDef,
    topic: &BTreeMap<String, String>,
    dynamic: DynamicConfig<'_>,
    config: &BrokerConfig,
) -> Vec<Setting> {
    let (own, mut of_brokers): (Vec<_>, Vec<_>) = settings(key, topic, dynamic, config)
        .into_iter()
        .partition(|setting| setting.origin == Origin::Topic);
    of_brokers.sort_by_key(|setting| setting.origin);
    let strongest = key.synonyms.first().map(|synonym| synonym.name);
    own.into_iter()
        .chain(of_brokers.into_iter().skip_while(|setting| Some(setting.name) != strongest))
        .collect()
}

/// Every value that applies to a broker key, the one that wins first; coarser keys that it replaces come after it.
pub fn broker_settings(
    key: &'static KeyDef,
    dynamic: DynamicConfig<'_>,
    config: &BrokerConfig,
) -> Vec<Setting> {
    let same_setting =
        |topic_key: &&KeyDef| topic_key.synonyms.iter().any(|synonym| synonym.name == key.name);
    let synonyms =
        registry::topic_keys().iter().find(same_setting).map_or(&[][..], |topic_key| topic_key.synonyms);
    let mut found: Vec<Setting> = if synonyms.len() > 1 {
        let keys = synonyms.iter().filter_map(|synonym| registry::broker_key(synonym.name));
        keys.flat_map(|key| broker_layers(key, dynamic, config, 1)).collect()
    } else {
        broker_layers(key, dynamic, config, 1)
    };
    found.sort_by_key(|setting| setting.origin);
    found.into_iter().skip_while(|setting| setting.name != key.name).collect()
}

fn broker_layers(
    key: &'static KeyDef,
    dynamic: DynamicConfig<'_>,
    config: &BrokerConfig,
    factor: i64,
) -> Vec<Setting> {
    let mut found = Vec::new();
    push(&mut found, key, dynamic.broker.and_then(|map| map.get(key.name)), Origin::DynamicBroker, factor);
    push(
        &mut found,
        key,
        dynamic.cluster.and_then(|map| map.get(key.name)),
        Origin::DynamicDefaultBroker,
        factor,
    );
    push(&mut found, key, config.setting(key.name), Origin::StaticBroker, factor);
    push(&mut found, key, key.default, Origin::Default, factor);
    found
}

/// A value that does not fit is passed over: it was stored by another version, whose bounds were wider.
fn push(
    found: &mut Vec<Setting>,
    key: &'static KeyDef,
    value: Option<impl AsRef<str>>,
    origin: Origin,
    factor: i64,
) {
    let value = value.and_then(|value| key.canonical(value.as_ref()).ok());
    found.extend(value.map(|value| Setting { name: key.name, value, origin, factor }));
}

/// The value that applies to a topic key, in the key's own unit.
pub fn effective(
    key: &'static KeyDef,
    topic: &BTreeMap<String, String>,
    dynamic: DynamicConfig<'_>,
    config: &BrokerConfig,
) -> String {
    let Some(setting) = settings(key, topic, dynamic, config).into_iter().next() else {
        return String::new();
    };
    match setting.value.parse::<i64>() {
        // Any negative time means "never", which the finer unit spells -1.
        Ok(number) if setting.factor != 1 && number < 0 => "-1".to_owned(),
        Ok(number) if setting.factor != 1 => number.saturating_mul(setting.factor).to_string(),
        _ => setting.value,
    }
}

/// When a record counts as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Once it is on the disk.
    Fsync,
    /// Once the operating system has it.
    Written,
}

/// Whose clock dates a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The broker's.
    LogAppendTime,
}

/// Codec that batches are stored with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionType {
    /// As they came.
    Producer,
    /// Not compressed.
    Uncompressed,
    /// gzip with this level; `None` for the codec's default.
    Gzip {
        /// 1 to 9.
        level: Option<u32>,
    },
    /// Snappy, which has no levels.
    Snappy,
    /// lz4 with this level.
    Lz4 {
        /// 1 to 17.
        level: i32,
    },
    /// zstd with this level.
    Zstd {
        /// -131072 to 22.
        level: i32,
    },
}

/// What applies to one topic on one broker. Fields carry the names of the topic keys.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicConfig {
    /// `cleanup.policy` holds `compact`.
    pub compact: bool,
    /// `cleanup.policy` holds `delete`.
    pub delete: bool,
    /// `compression.type` with the level that belongs to it.
    pub compression: CompressionType,
    /// `delete.retention.ms`.
    pub delete_retention: Duration,
    /// `log.durability`.
    pub durability: Durability,
    /// `max.compaction.lag.ms`.
    pub max_compaction_lag: Duration,
    /// `max.message.bytes`.
    pub max_message_bytes: usize,
    /// `message.timestamp.type`.
    pub timestamp_type: TimestampType,
    /// `message.timestamp.before.max.ms`.
    pub timestamp_before_max_ms: i64,
    /// `message.timestamp.after.max.ms`.
    pub timestamp_after_max_ms: i64,
    /// `min.cleanable.dirty.ratio`.
    pub min_cleanable_dirty_ratio: f64,
    /// `min.compaction.lag.ms`.
    pub min_compaction_lag: Duration,
    /// `leader.replication.throttled.replicas`.
    pub leader_throttled_replicas: String,
    /// `follower.replication.throttled.replicas`.
    pub follower_throttled_replicas: String,
    /// `min.insync.replicas`.
    pub min_insync_replicas: usize,
    /// `retention.bytes`; `None` means no limit.
    pub retention_bytes: Option<u64>,
    /// `retention.ms`; `None` means never.
    pub retention: Option<Duration>,
    /// `segment.bytes`.
    pub segment_bytes: usize,
    /// `unclean.leader.election.enable`.
    pub unclean_leader_election: bool,
}

/// What applies to a topic with these settings of its own.
pub fn resolve(
    topic: &BTreeMap<String, String>,
    dynamic: DynamicConfig<'_>,
    config: &BrokerConfig,
) -> TopicConfig {
    let text = |name: &str| {
        let key = registry::topic_key(name).expect("resolve names keys of the registry");
        effective(key, topic, dynamic, config)
    };
    // The registry's checks have seen every value, so none of these falls back.
    let number = |name: &str| text(name).parse::<i64>().unwrap_or_default();
    let millis = |name: &str| Duration::from_millis(u64::try_from(number(name)).unwrap_or_default());
    let policy = text("cleanup.policy");
    let has_policy = |name: &str| policy.split(',').any(|element| element == name);
    let level = |name: &str| i32::try_from(number(name)).unwrap_or_default();
    TopicConfig {
        compact: has_policy("compact"),
        delete: has_policy("delete"),
        compression: match text("compression.type").as_str() {
            "uncompressed" => CompressionType::Uncompressed,
            "gzip" => CompressionType::Gzip { level: u32::try_from(level("compression.gzip.level")).ok() },
            "snappy" => CompressionType::Snappy,
            "lz4" => CompressionType::Lz4 { level: level("compression.lz4.level") },
            "zstd" => CompressionType::Zstd { level: level("compression.zstd.level") },
            _ => CompressionType::Producer,
        },
        delete_retention: millis("delete.retention.ms"),
        durability: if text("log.durability") == "written" { Durability::Written } else { Durability::Fsync },
        max_compaction_lag: millis("max.compaction.lag.ms"),
        max_message_bytes: usize::try_from(number("max.message.bytes")).unwrap_or_default(),
        timestamp_type: if text("message.timestamp.type") == "LogAppendTime" {
            TimestampType::LogAppendTime
        } else {
            TimestampType::CreateTime
        },
        timestamp_before_max_ms: number("message.timestamp.before.max.ms"),
        timestamp_after_max_ms: number("message.timestamp.after.max.ms"),
        min_cleanable_dirty_ratio: text("min.cleanable.dirty.ratio").parse().unwrap_or(0.5),
        min_compaction_lag: millis("min.compaction.lag.ms"),
        leader_throttled_replicas: text("leader.replication.throttled.replicas"),
        follower_throttled_replicas: text("follower.replication.throttled.replicas"),
        min_insync_replicas: usize::try_from(number("min.insync.replicas")).unwrap_or(1),
        retention_bytes: u64::try_from(number("retention.bytes")).ok(),
        retention: u64::try_from(number("retention.ms")).ok().map(Duration::from_millis),
        segment_bytes: usize::try_from(number("segment.bytes")).unwrap_or_default(),
        unclean_leader_election: text("unclean.leader.election.enable") == "true",
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use std::path::Path;

    use super::*;

    type Map = BTreeMap<String, String>;

    fn map<const N: usize>(entries: [(&str, &str); N]) -> Map {
        entries.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn file(extra: &str) -> BrokerConfig {
        let text = format!(
            "cluster.id=MkU3OEVBNTcwNTJENDM2Qg\nnode.id=0\nlog.dirs=/d\n\
             listeners=PLAINTEXT://h:1,FLEET://h:2\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,FLEET:PLAINTEXT\n\
             controller.quorum.bootstrap.servers=h:2\n{extra}"
        );
        BrokerConfig::from_properties(&text, &|_| None).unwrap()
    }

    fn retention_ms(topic: &Map, dynamic: DynamicConfig<'_>, config: &BrokerConfig) -> String {
        effective(registry::topic_key("retention.ms").unwrap(), topic, dynamic, config)
    }

    #[test]
    fn an_unset_topic_has_the_defaults_of_kafka() {
        let config = BrokerConfig::dev(Path::new("/d"), 0);
        let topic = resolve(&Map::new(), DynamicConfig::default(), &config);
        assert_eq!(topic.max_message_bytes, 1_048_588);
        assert_eq!(topic.retention, Some(Duration::from_secs(7 * 24 * 3600)));
        assert_eq!(topic.retention_bytes, None);
        assert_eq!((topic.delete, topic.compact), (true, false));
        assert_eq!(topic.compression, CompressionType::Producer);
        assert_eq!(topic.timestamp_after_max_ms, 3_600_000);
        assert_eq!(topic.durability, Durability::Fsync);
        assert_eq!(topic.min_insync_replicas, 1);
    }

    #[test]
    fn stronger_layers_win() {
        let config = file("log.retention.ms=4\n");
        let mut configs = BTreeMap::new();
        assert_eq!(retention_ms(&Map::new(), DynamicConfig::of(&configs, 7), &config), "4");
        configs.insert(None, map([("log.retention.ms", "3")]));
        assert_eq!(retention_ms(&Map::new(), DynamicConfig::of(&configs, 7), &config), "3");
        configs.insert(Some(7), map([("log.retention.ms", "2")]));
        assert_eq!(retention_ms(&Map::new(), DynamicConfig::of(&configs, 7), &config), "2");
        assert_eq!(retention_ms(&Map::new(), DynamicConfig::of(&configs, 8), &config), "3");
        assert_eq!(retention_ms(&Map::new(), DynamicConfig::cluster_wide(&configs), &config), "3");
        assert_eq!(retention_ms(&map([("retention.ms", "1")]), DynamicConfig::of(&configs, 7), &config), "1");
    }

    #[test]
    fn coarser_units_apply_where_the_finer_one_is_not_set() {
        let none = DynamicConfig::default();
        assert_eq!(retention_ms(&Map::new(), none, &file("log.retention.hours=2\n")), "7200000");
        assert_eq!(
            retention_ms(&Map::new(), none, &file("log.retention.hours=2\nlog.retention.minutes=3\n")),
            "180000"
        );
        assert_eq!(
            retention_ms(&Map::new(), none, &file("log.retention.hours=2\nlog.retention.ms=-1\n")),
            "-1"
        );
        assert_eq!(retention_ms(&Map::new(), none, &file("log.retention.hours=-5\n")), "-1");
    }

    #[test]
    fn lists_every_value_that_would_apply_and_ends_with_the_default() {
        let config = file("log.retention.hours=2\n");
        let topic = map([("retention.ms", "1")]);
        let all =
            settings(registry::topic_key("retention.ms").unwrap(), &topic, DynamicConfig::default(), &config);
        let shown: Vec<_> = all.iter().map(|s| (s.name, s.value.as_str(), s.origin)).collect();
        assert_eq!(
            shown,
            [
                ("retention.ms", "1", Origin::Topic),
                ("log.retention.hours", "2", Origin::StaticBroker),
                ("log.retention.hours", "168", Origin::Default),
            ]
        );
    }

    #[test]
    fn kafka_tells_what_is_set_from_the_strongest_broker_key_on() {
        let config = file("log.retention.hours=2\n");
        let key = registry::topic_key("retention.ms").unwrap();
        let told = |dynamic| -> Vec<_> {
            let all = told_settings(key, &Map::new(), dynamic, &config);
            all.into_iter().map(|setting| (setting.name, setting.origin)).collect()
        };
        assert_eq!(told(DynamicConfig::default()), []);
        let configs = BTreeMap::from([(None, map([("log.retention.ms", "3")]))]);
        assert_eq!(
            told(DynamicConfig::of(&configs, 1)),
            [
                ("log.retention.ms", Origin::DynamicDefaultBroker),
                ("log.retention.hours", Origin::StaticBroker),
                ("log.retention.hours", Origin::Default),
            ]
        );
        let without_broker_key = registry::topic_key("remote.storage.enable").unwrap();
        assert_eq!(told_settings(without_broker_key, &Map::new(), DynamicConfig::default(), &config), []);
    }

    #[test]
    fn a_broker_key_lists_the_coarser_keys_that_it_replaces() {
        let config = file("log.retention.hours=2\nlog.retention.minutes=3\n");
        let listed = |name: &str| -> Vec<_> {
            let all = broker_settings(registry::broker_key(name).unwrap(), DynamicConfig::default(), &config);
            all.into_iter().map(|setting| (setting.name, setting.value, setting.origin)).collect()
        };
        let hours = [
            ("log.retention.hours", "2".to_owned(), Origin::StaticBroker),
            ("log.retention.hours", "168".to_owned(), Origin::Default),
        ];
        assert_eq!(listed("log.retention.ms"), []);
        assert_eq!(listed("log.retention.hours"), hours);
        assert_eq!(listed("log.retention.minutes")[0].1, "3");
        assert_eq!(listed("log.retention.minutes")[1..], hours);
    }

    #[test]
    fn a_stored_value_that_no_longer_fits_is_passed_over() {
        let config = BrokerConfig::dev(Path::new("/d"), 0);
        let topic = map([("retention.ms", "long"), ("compression.type", "brotli")]);
        let resolved = resolve(&topic, DynamicConfig::default(), &config);
        assert_eq!(resolved, resolve(&Map::new(), DynamicConfig::default(), &config));
    }

    #[test]
    fn compression_takes_the_level_of_its_codec() {
        let config = BrokerConfig::dev(Path::new("/d"), 0);
        let compression = |topic: Map| resolve(&topic, DynamicConfig::default(), &config).compression;
        assert_eq!(compression(map([("compression.type", "zstd")])), CompressionType::Zstd { level: 3 });
        assert_eq!(
            compression(map([("compression.type", "zstd"), ("compression.zstd.level", "7")])),
            CompressionType::Zstd { level: 7 }
        );
        assert_eq!(compression(map([("compression.type", "gzip")])), CompressionType::Gzip { level: None });
    }

    #[test]
    fn refuses_bad_values_and_unknown_keys_by_name() {
        assert_eq!(validate("retention.ms", "5"), Ok(()));
        assert_eq!(validate("cleanup.policy", "compact,delete"), Ok(()));
        assert!(validate("retention.ms", "x").unwrap_err().starts_with("retention.ms: "));
        assert!(validate("retention.mss", "5").unwrap_err().contains("did you mean retention.ms?"));
        assert!(
            validate("remote.storage.enable", "true")
                .unwrap_err()
                .contains("tiered storage is not available")
        );
    }

    #[test]
    fn compaction_lags_must_leave_a_window() {
        assert_eq!(validate_together(&map([("min.compaction.lag.ms", "1")])), Ok(()));
        let lags = map([("min.compaction.lag.ms", "100"), ("max.compaction.lag.ms", "5")]);
        assert!(validate_together(&lags).is_err());
    }
}
