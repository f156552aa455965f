//! Simulations of a whole fleet in one thread: metadata, decisions on replicas and replication as they are, on simulated
//! networks, disks and clocks, all from one seed (turmoil).
//!
//! A seed is a [`plan`]: the fleet, its settings and the faults it goes through. [`run`] carries it out: faults first,
//! then repair, after which the fleet must become whole by itself. [`checks`] looks after every step, [`ledger`] keeps
//! what clients were told. Each run is a process of its own ([`seeds`]), so that nothing of one is left for the next,
//! and everything random in it comes from `entropy.c`: two runs of one seed give the same trace, line by line.
//!
//! What is simulated: TCP (`network`), the disk of the metadata log (`metadata::raft::sim_disk`), the record store
//! (`storage::sim_store`), and the connections of clients, which go around `server::connection`. RocksDB and the journal
//! have threads of their own and are tested where they are.
//!
//! Limits: a packet that gets lost on a link that is cut is not sent again, so such a connection stays silent until
//! somebody gives it up.

mod checks;
mod client;
pub(crate) mod drive;
mod ledger;
mod machine;
pub(crate) mod network;
mod plan;
mod run;
mod seeds;
mod trace;
mod workload;
