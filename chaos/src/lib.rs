//! The fault laboratory: real broker processes under load while they are killed, cut off and starved, and the proof
//! that nothing acknowledged was lost, doubled or moved.
//!
//! | module | owns |
//! |---|---|
//! | [`world`] | namespaces of this run's own, in which everything happens and with which everything ends |
//! | [`fleet`] | brokers: processes, links, volumes, and what can be done to each |
//! | [`client`] | single requests over Kafka's protocol |
//! | [`workload`] | idempotent producers, consumers, and the ledger of what was acknowledged and seen |
//! | [`nemesis`] | which faults come when (a pure function of the seed), and carrying them out |
//! | [`checks`] | what must hold when all is healed |
//! | [`findings`] | what was found out, and whether a failure is a broker's fault or the laboratory's |
//! | [`run`], [`failover`] | the two things it is for: finding losses, measuring gaps |
//!
//! Decisions (plans, the lanes of producers, comparisons) are plain functions from values to values, with tests; the
//! edges do I/O. Left out on purpose: faults inside the process, which the store's own crash tests have.

pub mod checks;
pub mod client;
pub mod failover;
pub mod findings;
pub mod fleet;
pub mod nemesis;
pub mod run;
pub mod workload;
pub mod world;
