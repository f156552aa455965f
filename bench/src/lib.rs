//! Millrace side by side with Apache Kafka.
//!
//! | module | owns |
//! |---|---|
//! | [`compare`] | the table of rows, measuring one, taking turns, the report |
//! | [`brokers`] | how each broker is started |
//! | [`children`] | processes that end with this one; pinning to cores |
//! | [`load`] | the load generator |
//! | [`floor`] | what the machine charges for what no broker can do without |
//! | [`procfs`], [`stats`] | what the kernel counts; percentiles and medians |

pub mod brokers;
pub mod children;
pub mod compare;
pub mod floor;
pub mod load;
pub mod load_command;
pub mod procfs;
pub mod stats;
