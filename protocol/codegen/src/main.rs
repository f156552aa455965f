//! Maintainers' command: reads Kafka's message definitions into our compact schema.
//!
//! The definitions travel inside the `kafka-clients` jar. From the root of the repository:
//!
//! ```text
//! mvn dependency:get -Dartifact=org.apache.kafka:kafka-clients:4.3.1
//! unzip -q ~/.m2/repository/org/apache/kafka/kafka-clients/4.3.1/kafka-clients-4.3.1.jar 'common/message/*' -d /tmp/kafka-clients
//! cargo run -p millrace-protocol-codegen -- import /tmp/kafka-clients/common/message protocol/schema/kafka.schema
//! ```
//!
//! `--only Name,Name` takes just these messages, for the record schemas of internal topics, which travel in the
//! `kafka-group-coordinator` and `kafka-transaction-coordinator` jars.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use millrace_protocol_codegen::json::{self, Imported};
use millrace_protocol_codegen::schema::Kind;
use millrace_protocol_codegen::text;

const USAGE: &str =
    "usage: millrace-protocol-codegen import <folder of *.json> <output file> [--only Name,Name,…]";

/// Served on Kafka's broker listener, but spoken between Kafka's own parts only.
const INTERNAL: &[&str] = &[
    "InitializeShareGroupState",
    "ReadShareGroupState",
    "WriteShareGroupState",
    "DeleteShareGroupState",
    "ReadShareGroupStateSummary",
    "AddRaftVoter",
    "RemoveRaftVoter",
];

/// Not requests, but part of what clients and brokers exchange or store in partitions.
const DATA: &[&str] = &[
    "ConsumerProtocolAssignment",
    "ConsumerProtocolSubscription",
    "ControlRecordTypeSchema",
    "EndTxnMarker",
];

const HEAD: &str = "\
# Kafka's messages: what clients exchange with brokers, as of Apache Kafka 4.3.1.
# Written by `cargo run -p millrace-protocol-codegen -- import …`; do not edit.
";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["import", folder, output] => import(Path::new(folder), &PathBuf::from(output), None),
        ["import", folder, output, "--only", names] => {
            import(Path::new(folder), &PathBuf::from(output), Some(&names.split(',').collect::<Vec<_>>()))
        }
        _ => bail!(USAGE),
    }
}

fn import(folder: &Path, output: &Path, only: Option<&[&str]>) -> Result<()> {
    let imported = json::read_folder(folder)?;
    let on_brokers: Vec<i16> = imported
        .iter()
        .filter(|i| i.listeners.iter().any(|listener| listener == "broker") && !is_internal(i))
        .filter_map(|i| i.message.key)
        .collect();
    let schema = json::select(imported, |i| {
        if let Some(only) = only {
            return only.contains(&i.message.name.as_str());
        }
        match i.message.kind {
            Kind::Header => true,
            Kind::Request | Kind::Response => i.message.key.is_some_and(|key| on_brokers.contains(&key)),
            Kind::Data | Kind::Record => DATA.contains(&i.message.name.as_str()),
        }
    })?;
    let printed = text::print(&schema);
    fs::write(output, format!("{HEAD}\n{printed}")).with_context(|| format!("writing {}", output.display()))
}

fn is_internal(imported: &Imported) -> bool {
    imported.message.name.strip_suffix("Request").is_some_and(|name| INTERNAL.contains(&name))
}
