//! What the configuration means for the layers below: the controller's decisions, and the logs of a topic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::records::{Compression, TimestampType};
use uuid::Uuid;

use crate::config::topic::{self, CompressionType, DynamicConfig};
use crate::config::{BrokerConfig, TopicConfig, registry};
use crate::metadata::controller::Settings;
use crate::metadata::image::{BrokerId, MetadataImage, TopicImage};
use crate::replication::{ThrottleRates, ThrottledReplicas, TopicSettings};
use crate::storage::{CompactionSettings, Durability, LogSettings};

/// The broker's configuration as the controller uses it.
#[derive(Clone, Debug)]
pub struct ControllerSettings {
    config: Arc<BrokerConfig>,
}

impl ControllerSettings {
    /// Settings of a controller with this configuration.
    pub fn new(config: Arc<BrokerConfig>) -> Self {
        Self { config }
    }

    fn dynamic<T: std::str::FromStr>(image: &MetadataImage, key: &str) -> Option<T> {
        image.broker_configs.get(&None)?.get(key)?.parse().ok()
    }

    /// Value that applies to a topic, of a single key: a fence may ask for thousands of topics.
    fn of_topic(&self, image: &MetadataImage, topic_id: Uuid, key: &str) -> Option<String> {
        let (topic, definition) = (image.topics.get(&topic_id)?, registry::topic_key(key)?);
        let dynamic = DynamicConfig::cluster_wide(&image.broker_configs);
        Some(topic::effective(definition, &topic.config, dynamic, &self.config))
    }
}

impl Settings for ControllerSettings {
    fn default_partitions(&self, image: &MetadataImage) -> i32 {
        Self::dynamic(image, "num.partitions").unwrap_or(self.config.num_partitions)
    }

    fn default_replication_factor(&self, image: &MetadataImage) -> i16 {
        Self::dynamic(image, "default.replication.factor").unwrap_or(self.config.default_replication_factor)
    }

    fn topic_deletion_enabled(&self) -> bool {
        self.config.delete_topics
    }

    fn check_topic_config(&self, key: &str, value: &str) -> Result<(), String> {
        topic::validate(key, value)
    }

    fn check_topic_configs(&self, config: &BTreeMap<String, String>) -> Result<(), String> {
        topic::validate_together(config)
    }

    fn check_broker_config(&self, key: &str, value: &str) -> Result<(), String> {
        registry::validate_dynamic_broker(key, value)
    }

    fn is_list(&self, key: &str) -> bool {
        registry::is_list(key)
    }

    fn topic_default(&self, image: &MetadataImage, key: &str) -> Option<String> {
        let definition = registry::topic_key(key)?;
        let dynamic = DynamicConfig::cluster_wide(&image.broker_configs);
        Some(topic::effective(definition, &BTreeMap::new(), dynamic, &self.config))
    }

    fn unclean_leader_election(&self, image: &MetadataImage, topic_id: Uuid) -> bool {
        self.of_topic(image, topic_id, "unclean.leader.election.enable").as_deref() == Some("true")
    }

    fn min_insync_replicas(&self, image: &MetadataImage, topic_id: Uuid, leader: BrokerId) -> usize {
        const KEY: &str = "min.insync.replicas";
        let of_topic = image.topics.get(&topic_id).and_then(|topic| topic.config.get(KEY)?.parse().ok());
        let of_leader = || {
            let broker = image.brokers.get(&leader)?;
            usize::try_from(broker.min_insync_replicas).ok()
        };
        of_topic
            .or_else(|| Self::dynamic(image, KEY))
            .or_else(of_leader)
            .unwrap_or(self.config.min_insync_replicas)
    }

    fn acknowledges_unsynced(&self, image: &MetadataImage, topic_id: Uuid) -> bool {
        self.of_topic(image, topic_id, "log.durability").as_deref() == Some("written")
    }
}

/// What a topic's settings mean for its partitions on this broker.
pub fn topic_settings(config: &BrokerConfig, image: &MetadataImage, topic: &TopicImage) -> TopicSettings {
    let resolved = topic::resolve(&topic.config, DynamicConfig::cluster_wide(&image.broker_configs), config);
    TopicSettings {
        log: LogSettings {
            segment_bytes: u64::try_from(resolved.segment_bytes).unwrap_or(u64::MAX),
            delete_old: resolved.delete,
            retention_ms: resolved.retention.map(millis),
            retention_bytes: resolved.retention_bytes,
            compaction: resolved.compact.then(|| compaction(&resolved)),
            durability: match resolved.durability {
                topic::Durability::Fsync => Durability::Fsync,
                topic::Durability::Written => Durability::Written,
            },
        },
        max_message_bytes: resolved.max_message_bytes,
        compacted: resolved.compact,
        compression: match resolved.compression {
            CompressionType::Producer => None,
            CompressionType::Uncompressed => Some(Compression::None),
            CompressionType::Gzip { .. } => Some(Compression::Gzip),
            CompressionType::Snappy => Some(Compression::Snappy),
            CompressionType::Lz4 { .. } => Some(Compression::Lz4),
            CompressionType::Zstd { .. } => Some(Compression::Zstd),
        },
        timestamp_type: match resolved.timestamp_type {
            topic::TimestampType::CreateTime => TimestampType::CreateTime,
            topic::TimestampType::LogAppendTime => TimestampType::LogAppendTime,
        },
        timestamp_before_max_ms: resolved.timestamp_before_max_ms,
        timestamp_after_max_ms: resolved.timestamp_after_max_ms,
        min_insync_replicas: resolved.min_insync_replicas,
        leader_throttled: with_balancer_moves(
            ThrottledReplicas::parse(&resolved.leader_throttled_replicas),
            image,
            topic,
        ),
        follower_throttled: ThrottledReplicas::parse(&resolved.follower_throttled_replicas),
    }
}

/// How fast the broker on this volume fills throttled replicas, or has them filled: its own setting in the metadata, else
/// that of all brokers, else its file's.
pub fn throttle_rates(config: &BrokerConfig, image: &MetadataImage, volume_uuid: Uuid) -> ThrottleRates {
    let own = image.brokers.values().find(|broker| broker.volume_uuid == volume_uuid);
    let dynamic = match own {
        Some(own) => DynamicConfig::of(&image.broker_configs, own.broker_id),
        None => DynamicConfig::cluster_wide(&image.broker_configs),
    };
    let rate = |name: &str| {
        let key = registry::broker_key(name).expect("the registry has both rates");
        let setting = topic::broker_settings(key, dynamic, config).into_iter().next();
        // The highest number that the key takes means no limit.
        let rate = setting.and_then(|setting| setting.value.parse().ok()).filter(|rate| *rate != i64::MAX);
        rate.map_or(u64::MAX, |rate: i64| u64::try_from(rate).unwrap_or(0))
    };
    ThrottleRates {
        leader: rate("leader.replication.throttled.rate").min(image.balance.rate.unwrap_or(u64::MAX)),
        follower: rate("follower.replication.throttled.rate"),
    }
}

fn compaction(config: &TopicConfig) -> CompactionSettings {
    CompactionSettings {
        min_lag_ms: millis(config.min_compaction_lag),
        max_lag_ms: millis(config.max_compaction_lag),
        delete_retention_ms: millis(config.delete_retention),
        // The registry's check keeps it between 0 and 1.
        min_dirty_millionths: (config.min_cleanable_dirty_ratio * 1e6).clamp(0.0, 1e6).round() as u32,
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Replicas of a topic whose leaders are throttled by the topic's setting, and those that the balancer moves while it has
/// a rate: whoever leads them.
fn with_balancer_moves(
    configured: ThrottledReplicas,
    image: &MetadataImage,
    topic: &TopicImage,
) -> ThrottledReplicas {
    let own = image.balance.throttled().into_iter().flatten().filter(|id| id.topic_id == topic.topic_id);
    let moved = own.filter_map(|id| Some((id.partition, image.partition(*id)?)));
    let listed = moved.flat_map(|(number, state)| state.replica_ids().map(move |id| (number, id)));
    let listed: Vec<_> = listed.collect();
    match configured {
        ThrottledReplicas::None if listed.is_empty() => ThrottledReplicas::None,
        ThrottledReplicas::None => ThrottledReplicas::Listed(listed),
        ThrottledReplicas::Listed(more) => ThrottledReplicas::Listed([more, listed].concat()),
        ThrottledReplicas::All => ThrottledReplicas::All,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::metadata::records::{ConfigTarget, Record, Registration};

    const TOPIC: Uuid = Uuid::from_u128(5);

    /// A topic, and broker 3, whose file says two.
    fn image() -> MetadataImage {
        let mut image = MetadataImage::empty(Uuid::from_u128(1));
        let registration = Registration {
            broker_id: 3,
            volume_uuid: Uuid::from_u128(2),
            raft_node_id: 2,
            address: String::new(),
            endpoints: Vec::new(),
            rack: None,
            version: String::new(),
            min_insync_replicas: 2,
        };
        let records =
            [Record::RegisterBroker(registration), Record::Topic { topic_id: TOPIC, name: "t".to_owned() }];
        records.iter().for_each(|record| image.apply(record, 1).unwrap());
        image
    }

    fn settings(lines: &[&str]) -> ControllerSettings {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        ControllerSettings::new(Arc::new(BrokerConfig::dev_with(Path::new("/d"), 1, &lines).unwrap()))
    }

    fn set(image: &mut MetadataImage, target: ConfigTarget, key: &str, value: &str) {
        let (key, value) = (key.to_owned(), Some(value.to_owned()));
        image.apply(&Record::Config { target, key, value }, 2).unwrap();
    }

    #[test]
    fn throttled_rates_are_the_brokers_own_then_the_clusters_then_its_files() {
        let mut image = image();
        let config = Arc::clone(&settings(&["leader.replication.throttled.rate=7"]).config);
        let rates = |image: &MetadataImage| {
            let ThrottleRates { leader, follower } = throttle_rates(&config, image, Uuid::from_u128(2));
            (leader, follower)
        };
        assert_eq!(rates(&image), (7, u64::MAX));
        set(&mut image, ConfigTarget::Broker(None), "follower.replication.throttled.rate", "5");
        assert_eq!(rates(&image), (7, 5));
        set(&mut image, ConfigTarget::Broker(Some(3)), "follower.replication.throttled.rate", "0");
        set(
            &mut image,
            ConfigTarget::Broker(Some(3)),
            "leader.replication.throttled.rate",
            "9223372036854775807",
        );
        assert_eq!(rates(&image), (u64::MAX, 0));
        set(&mut image, ConfigTarget::Broker(Some(4)), "leader.replication.throttled.rate", "1");
        assert_eq!(rates(&image), (u64::MAX, 0), "of another broker");
    }

    #[test]
    fn what_the_balancer_moves_is_throttled_at_its_rate_beside_what_the_topic_says() {
        use crate::metadata::image::{NO_LEADER, PartitionImage, Replica, TopicIdPartition};
        let mut image = image();
        let topic = image.topics.get_mut(&TOPIC).map(Arc::make_mut).unwrap();
        let replica = |broker_id| Replica { broker_id, volume_uuid: Uuid::nil() };
        topic.partitions = vec![PartitionImage {
            replicas: vec![replica(3), replica(4)],
            adding: vec![4],
            removing: Vec::new(),
            isr: vec![3],
            elr: Vec::new(),
            leader: NO_LEADER,
            leader_epoch: 0,
            partition_epoch: 0,
        }];
        let settings = settings(&[]);
        let throttled = |image: &MetadataImage| {
            topic_settings(&settings.config, image, &image.topics[&TOPIC]).leader_throttled
        };
        let rate = |image: &MetadataImage| throttle_rates(&settings.config, image, Uuid::from_u128(2)).leader;
        image.balance.moves.insert(TopicIdPartition { topic_id: TOPIC, partition: 0 });
        assert_eq!((throttled(&image), rate(&image)), (ThrottledReplicas::None, u64::MAX));
        image.balance.rate = Some(9);
        assert_eq!((throttled(&image), rate(&image)), (ThrottledReplicas::Listed(vec![(0, 3), (0, 4)]), 9));
        set(&mut image, ConfigTarget::Topic(TOPIC), "leader.replication.throttled.replicas", "7:3");
        assert_eq!(throttled(&image), ThrottledReplicas::Listed(vec![(7, 3), (0, 3), (0, 4)]));
        set(&mut image, ConfigTarget::Broker(Some(3)), "leader.replication.throttled.rate", "5");
        assert_eq!(rate(&image), 5);
    }

    #[test]
    fn throttled_replicas_come_from_the_topic() {
        let mut image = image();
        let config = Arc::clone(&settings(&[]).config);
        set(&mut image, ConfigTarget::Topic(TOPIC), "leader.replication.throttled.replicas", "0:3,1:3");
        set(&mut image, ConfigTarget::Topic(TOPIC), "follower.replication.throttled.replicas", "*");
        let settings = topic_settings(&config, &image, &image.topics[&TOPIC]);
        assert_eq!(settings.leader_throttled, ThrottledReplicas::Listed(vec![(0, 3), (1, 3)]));
        assert_eq!(settings.follower_throttled, ThrottledReplicas::All);
    }

    #[test]
    fn every_setting_of_a_topic_arrives_in_the_field_that_it_is_for() {
        let config = Arc::clone(&settings(&[]).config);
        let mut image = image();
        let values = [
            ("cleanup.policy", "compact"),
            ("compression.type", "lz4"),
            ("delete.retention.ms", "1001"),
            ("follower.replication.throttled.replicas", "1:2"),
            ("leader.replication.throttled.replicas", "3:4"),
            ("log.durability", "written"),
            ("max.compaction.lag.ms", "1003"),
            ("max.message.bytes", "1004"),
            ("message.timestamp.after.max.ms", "1005"),
            ("message.timestamp.before.max.ms", "1006"),
            ("message.timestamp.type", "LogAppendTime"),
            ("min.cleanable.dirty.ratio", "0.25"),
            ("min.compaction.lag.ms", "1002"),
            ("min.insync.replicas", "7"),
            ("retention.bytes", "1008"),
            ("retention.ms", "1009"),
            ("segment.bytes", "1048577"),
        ];
        // Read by the controller.
        let elsewhere = ["unclean.leader.election.enable"];
        let without_effect = registry::topic_keys().iter().filter(|key| key.no_effect_yet.is_some());
        let named = values.iter().map(|(key, _)| *key).chain(elsewhere);
        let mut named: Vec<&str> = named.chain(without_effect.map(|key| key.name)).collect();
        named.sort_unstable();
        let all: Vec<&str> = registry::topic_keys().iter().map(|key| key.name).collect();
        assert_eq!(named, all, "a key that this test does not know");

        for (key, value) in values {
            set(&mut image, ConfigTarget::Topic(TOPIC), key, value);
        }
        let resolved = topic_settings(&config, &image, &image.topics[&TOPIC]);
        let expected = TopicSettings {
            log: LogSettings {
                segment_bytes: 1_048_577,
                delete_old: false,
                retention_ms: Some(1_009),
                retention_bytes: Some(1_008),
                compaction: Some(CompactionSettings {
                    min_lag_ms: 1_002,
                    max_lag_ms: 1_003,
                    delete_retention_ms: 1_001,
                    min_dirty_millionths: 250_000,
                }),
                durability: Durability::Written,
            },
            max_message_bytes: 1_004,
            compacted: true,
            compression: Some(Compression::Lz4),
            timestamp_type: TimestampType::LogAppendTime,
            timestamp_before_max_ms: 1_006,
            timestamp_after_max_ms: 1_005,
            min_insync_replicas: 7,
            leader_throttled: ThrottledReplicas::Listed(vec![(3, 4)]),
            follower_throttled: ThrottledReplicas::Listed(vec![(1, 2)]),
        };
        assert_eq!(resolved, expected);
    }

    #[test]
    fn each_word_that_a_setting_of_a_topic_takes_means_what_it_says() {
        let config = Arc::clone(&settings(&[]).config);
        let with = |key: &str, value: &str| {
            let mut image = image();
            set(&mut image, ConfigTarget::Topic(TOPIC), key, value);
            topic_settings(&config, &image, &image.topics[&TOPIC])
        };
        let codecs = [
            ("producer", None),
            ("uncompressed", Some(Compression::None)),
            ("gzip", Some(Compression::Gzip)),
            ("snappy", Some(Compression::Snappy)),
            ("lz4", Some(Compression::Lz4)),
            ("zstd", Some(Compression::Zstd)),
        ];
        for (value, codec) in codecs {
            assert_eq!(with("compression.type", value).compression, codec, "{value}");
        }
        for (value, delete, compact) in
            [("delete", true, false), ("compact", false, true), ("compact,delete", true, true)]
        {
            let TopicSettings { log, compacted, .. } = with("cleanup.policy", value);
            let found = (log.delete_old, log.compaction.is_some(), compacted);
            assert_eq!(found, (delete, compact, compact), "{value}");
        }
        assert_eq!(with("log.durability", "fsync").log.durability, Durability::Fsync);
        assert_eq!(with("message.timestamp.type", "CreateTime").timestamp_type, TimestampType::CreateTime);
        assert_eq!(with("retention.ms", "-1").log.retention_ms, None);
        assert_eq!(with("retention.bytes", "-1").log.retention_bytes, None);
    }

    #[test]
    fn the_minimum_in_sync_is_the_topics_then_the_clusters_then_that_of_the_leaders_file() {
        let (mut image, settings) = (image(), settings(&["min.insync.replicas=4"]));
        let minimum = |image: &MetadataImage, leader| settings.min_insync_replicas(image, TOPIC, leader);
        assert_eq!((minimum(&image, 3), minimum(&image, 9)), (2, 4));
        set(&mut image, ConfigTarget::Broker(None), "min.insync.replicas", "3");
        assert_eq!(minimum(&image, 3), 3);
        set(&mut image, ConfigTarget::Topic(TOPIC), "min.insync.replicas", "1");
        assert_eq!(minimum(&image, 3), 1);
        assert_eq!(topic_settings(&settings.config, &image, &image.topics[&TOPIC]).min_insync_replicas, 1);
    }

    #[test]
    fn unclean_election_and_durability_come_from_the_topic_then_the_cluster_then_the_file() {
        let keys =
            [("unclean.leader.election.enable", "true", "false"), ("log.durability", "written", "fsync")];
        for (key, on, off) in keys {
            let is_on = |image: &MetadataImage, settings: &ControllerSettings| match key {
                "log.durability" => settings.acknowledges_unsynced(image, TOPIC),
                _ => settings.unclean_leader_election(image, TOPIC),
            };
            let mut image = image();
            assert!(!is_on(&image, &settings(&[])), "{key}");
            let file = settings(&[&format!("{key}={on}")]);
            assert!(is_on(&image, &file), "{key}");
            set(&mut image, ConfigTarget::Broker(None), key, off);
            assert!(!is_on(&image, &file), "{key}");
            set(&mut image, ConfigTarget::Topic(TOPIC), key, on);
            assert!(is_on(&image, &file), "{key}");
        }
    }
}
