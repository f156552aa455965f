//! The Millrace operator: brings a fleet of brokers, and the topics on it, to what `KafkaCluster` and `Topic` say.
//!
//! Each kind goes through the same steps, in this order:
//!
//! | step | where | knows |
//! |---|---|---|
//! | dereference | `controller/<kind>/dereference.rs` | the API server; judges nothing |
//! | validate | `controller/<kind>/validate.rs` | no client; every default is resolved here |
//! | build | [`build`] | no client, no clock; one file per kind of object, names from one place |
//! | apply | [`apply`] | server-side apply in a stated order, and only where something differs |
//! | status | [`status`] | no client; observed facts in, conditions out |
//!
//! Two rules hold everywhere. *Converged means silent*: a pass that finds everything in place writes nothing, no
//! status and no Event. And *the brokers decide*: the operator asks the metadata quorum through [`management`], and
//! takes no answer as "unknown", never as "gone".

pub mod apply;
pub mod build;
pub mod certificates;
pub mod config;
pub mod controller;
pub mod events;
pub mod health;
pub mod leader;
pub mod management;
pub mod metrics;
pub mod quantity;
pub mod status;
pub mod telemetry;
pub mod watches;

/// Name under which the operator owns fields, publishes Events and labels what it makes.
pub const OPERATOR: &str = "millrace-operator";
