//! Kafka's messages, one module each, generated from `schema/kafka.schema`.
//!
//! Field and struct names are Kafka's; a map becomes a `Vec`. `X { field, ..Default::default() }` starts from Kafka's
//! defaults. Each struct of a flexible message carries the tagged fields it does not know.

#![allow(clippy::all, clippy::pedantic, unused_parens, reason = "generated code")]

include!(concat!(env!("OUT_DIR"), "/messages.rs"));
