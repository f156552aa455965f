//! What must hold when everything is healed.

pub mod cluster;
pub mod replicas;

pub use cluster::{wait_until_converged, wait_until_replicated};
