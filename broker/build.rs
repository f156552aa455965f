//! Generates the codecs of the broker's own messages from `schema/*.schema`.

use std::path::Path;

use millrace_protocol_codegen::{Options, generate};

/// Schema file, and the name of the enum over its records, if it has any.
const SCHEMAS: [(&str, Option<&str>); 3] =
    [("records", Some("MetadataRecord")), ("controller", Some("ControllerMessage")), ("internal", None)];

fn main() {
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    println!("cargo::rerun-if-changed=schema");
    for (name, record_enum) in SCHEMAS {
        let path = format!("schema/{name}.schema");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("reading {path}: {error}"));
        let options = Options { record_enum: record_enum.map(str::to_owned), ..Options::default() };
        let source = generate(&text, &options).unwrap_or_else(|error| panic!("{path}: {error}"));
        std::fs::write(Path::new(&out).join(format!("{name}.rs")), source)
            .unwrap_or_else(|error| panic!("writing the codec of {path}: {error}"));
    }
}
