//! What a broker and its topics are set to.
//!
//! Owns the `.properties` reader, the registry of every key that is understood ([`registry`]), the typed
//! [`BrokerConfig`] that the other modules are given, and the resolution of a topic's settings from its own values, the
//! dynamic defaults of the brokers and the file ([`topic::resolve`]). Knows nothing of the wire, disks or the quorum.
//!
//! Invariant: every default stands in the registry and nowhere else; the keys are Kafka's where Kafka has the setting.

pub mod broker;
mod broker_keys;
mod error;
mod listeners;
mod properties;
mod quorum;
pub mod registry;
pub mod topic;
mod topic_keys;
mod value;

pub use broker::{
    BalanceConfig, BrokerConfig, CleanerConfig, ConnectionLimits, InternalTopicConfig, InternalTopicsConfig,
};
pub use error::{ConfigError, report};
pub use listeners::{FleetListener, HostPort, ListenerConfig, TlsFiles};
pub use quorum::QuorumConfig;
pub use topic::TopicConfig;
pub use value::Kind;
