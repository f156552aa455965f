//! The Millrace broker: speaks Kafka's protocol, keeps records on a volume, and holds the cluster's metadata in a
//! Raft group of its own kind.
//!
//! Modules in reading order; dependencies point down only, and none learns about one above it.
//!
//! | module | owns |
//! |---|---|
//! | [`server`] | client listeners, connections, framing, dispatch, start and stop |
//! | [`management`] | the HTTP routes that the operator uses |
//! | [`api`] | one file per Kafka API: request in, answer out |
//! | [`balancer`] | keeps replicas and leaders spread, and empties brokers |
//! | [`replication`] | partitions led or followed here: validation, followers, high watermark, waiting requests |
//! | [`metadata`] | the image, the controller's decisions, the Raft group |
//! | [`fleet`] | the internal listener and calls between brokers |
//! | [`storage`] | logs on disk |
//! | [`volume`] | which cluster and broker a data volume belongs to, and space that it keeps for when it is full |
//! | [`security`], [`config`], [`health`], [`metrics`], [`telemetry`] | what all of them need |

pub mod api;
pub mod balancer;
mod blocking;
#[cfg(any(test, feature = "historical-bugs"))]
mod bugs;
pub mod config;
pub mod fleet;
pub mod health;
pub mod management;
pub mod metadata;
pub mod metrics;
pub mod replication;
mod schema;
pub mod security;
pub mod server;
#[cfg(test)]
mod simulation;
pub mod storage;
pub mod telemetry;
pub mod volume;
