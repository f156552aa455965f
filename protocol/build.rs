//! Generates the message codecs from `schema/kafka.schema`.

use std::path::PathBuf;
use std::{env, fs, process};

use millrace_protocol_codegen::{Options, generate};

fn main() {
    let kafka = Options {
        runtime: "crate".into(),
        api_keys: true,
        arbitrary_cfg: Some("any(test, feature = \"arbitrary\")".into()),
        ..Options::default()
    };
    write("schema/kafka.schema", &kafka, "messages.rs");
    // A schema as other crates write them by hand, for `tests/hand_written_schema.rs`.
    let hand_written = Options { record_enum: Some("AnyRecord".into()), ..Options::default() };
    write("tests/hand_written.schema", &hand_written, "hand_written.rs");
}

fn write(schema: &str, options: &Options, file: &str) {
    println!("cargo::rerun-if-changed={schema}");
    let text = fs::read_to_string(schema).unwrap_or_else(|error| fail(schema, &error));
    let source = generate(&text, options).unwrap_or_else(|error| fail(schema, &error));
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    fs::write(folder.join(file), source).unwrap_or_else(|error| fail(schema, &error));
}

fn fail<T>(schema: &str, error: &dyn std::error::Error) -> T {
    println!("cargo::error={schema}: {error}");
    process::exit(1)
}
