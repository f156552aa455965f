//! Types of the conditions in `status.conditions`. Reasons are the operator's.
//!
//! The first three are the contract of kstatus, which GitOps tools and `kubectl wait` understand.

/// True once the object does what its spec says, for the generation in `observedGeneration`.
pub const READY: &str = "Ready";
/// True while the operator is bringing the object to its spec; the message names what it waits for.
pub const RECONCILING: &str = "Reconciling";
/// True while the spec cannot be carried out as it stands; the message says what to change.
pub const STALLED: &str = "Stalled";

/// KafkaCluster: whether the rack of every broker is known.
pub const RACKS_KNOWN: &str = "RacksKnown";
/// KafkaCluster: whether the certificates of the fleet listener are valid and not about to expire.
pub const CERTIFICATES_VALID: &str = "CertificatesValid";
/// KafkaCluster: whether all running brokers were started with the configuration that the spec describes.
pub const CONFIGURATION_CURRENT: &str = "ConfigurationCurrent";
/// KafkaCluster: whether every volume has the size that the spec asks for.
pub const STORAGE_SIZED: &str = "StorageSized";

/// Topic: whether every partition has as many in-sync replicas as assigned ones.
pub const REPLICATED: &str = "Replicated";
