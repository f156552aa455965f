//! What the configuration means for the layers below: the controller's decisions, and the logs of a topic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_protocol::records::{Compression, TimestampType};
use uuid::Uuid;

use crate::config::topic::{self, CompressionType, DynamicConfig};
use crate::config::{BrokerConfig, TopicConfig, registry};
use crate::metadata::controller::Settings;
use crate::metadata::image::{MetadataImage, TopicImage};
use crate::replication::TopicSettings;
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
        let Some(topic) = image.topics.get(&topic_id) else { return false };
        let dynamic = DynamicConfig::cluster_wide(&image.broker_configs);
        topic::resolve(&topic.config, dynamic, &self.config).unclean_leader_election
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
