//! Message schemas, and the Rust codecs made from them.
//!
//! A schema says which fields a message has in which version. It comes from one of two places: Kafka's own
//! message definitions, read by the [`json`] import into a file of this repository, or our own hand. Both are
//! written in the compact format of [`text`]; [`generate`] turns that into Rust source from a `build.rs`.
//!
//! Invariants: the emitted code follows the rules of Kafka's generator (which versions carry a field, what null,
//! default, tagged and ignorable mean), and only calls the small runtime in `millrace_protocol::generated`.
//! Left out on purpose: collections keyed by map keys (they are plain `Vec`s) and JSON conversion.

mod emit;
pub mod json;
mod names;
pub mod schema;
pub mod text;

use std::path::PathBuf;

pub use schema::Schema;

/// What the emitted code looks like around the messages themselves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Path of the runtime crate as seen from the emitted code: `crate`, or `millrace_protocol`.
    pub runtime: String,
    /// Emit `ApiKey` and `impl Request` for requests. Only the protocol crate itself does: the keys of a schema
    /// become variants of one enum.
    pub api_keys: bool,
    /// Name of an enum over all `record` messages of the schema, which reads and writes each with its id and
    /// version in front. `None`: no enum.
    pub record_enum: Option<String>,
    /// A `cfg` predicate, for example `test`, under which random instances (`Arbitrary`) and a visitor over all
    /// messages are emitted. `None`: not at all.
    pub arbitrary_cfg: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { runtime: "millrace_protocol".into(), api_keys: false, record_enum: None, arbitrary_cfg: None }
    }
}

/// Why a schema could not be read or turned into code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The schema text is wrong at a line (counted from 1).
    #[error("line {line}: {message}")]
    Schema {
        /// Line of the schema text; 0 when the schema did not come from text.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A file could not be read.
    #[error("reading {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A message definition is not what Kafka's generator would accept.
    #[error("{path}: {message}")]
    Definition {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

impl Error {
    pub(crate) fn at(line: usize, message: impl Into<String>) -> Self {
        Self::Schema { line, message: message.into() }
    }
}

/// Reads a schema in the compact format and returns the Rust source of its codecs.
///
/// The source is one `pub mod` per message, each re-exported by name; include it in a module that allows what
/// generated code needs.
///
/// # Errors
/// The first mistake in the schema, with its line.
pub fn generate(schema_text: &str, options: &Options) -> Result<String, Error> {
    let schema = text::parse(schema_text)?;
    schema.validate()?;
    Ok(emit::emit(&schema, options))
}
