//! Faults: which come when, and carrying them out.

pub mod execute;
pub mod schedule;

pub use execute::Nemesis;
pub use schedule::{Fault, Kind, Schedule, Shape, Step, Victim};
