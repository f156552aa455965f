//! The CustomResourceDefinitions as files, the way they are kept in `crds/generated` and installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

use crate::{KafkaCluster, Topic};

/// The command that writes `crds/generated` anew.
pub const REGENERATE: &str = "cargo run -p millrace-operator -- crds --output-dir crds/generated";

/// Helm leaves a definition with this annotation in place when the chart is removed: with a definition go all objects of
/// its kind.
const KEEP: (&str, &str) = ("helm.sh/resource-policy", "keep");

/// File names and contents, in the order in which they are installed.
pub fn generated_files() -> Vec<(&'static str, String)> {
    vec![("kafkaclusters.yaml", render(&KafkaCluster::crd())), ("topics.yaml", render(&Topic::crd()))]
}

fn render(crd: &CustomResourceDefinition) -> String {
    let mut definition = unwrapped(crd);
    definition["metadata"]["annotations"] = json!({ KEEP.0: KEEP.1 });
    let yaml = serde_saphyr::to_string(&definition).expect("a CRD holds nothing that YAML cannot express");
    format!("# Made from the Rust types in crds/src by `{REGENERATE}`. Do not edit.\n{}\n", yaml.trim_end())
}

/// The definition with each paragraph of its descriptions on one line: the line breaks are those of the source code, and
/// `kubectl explain` wraps by itself.
fn unwrapped(crd: &CustomResourceDefinition) -> Value {
    let mut definition = serde_json::to_value(crd).expect("a CRD serializes to JSON");
    unwrap_descriptions(&mut definition);
    definition
}

fn unwrap_descriptions(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                match field {
                    Value::String(text) if key == "description" => {
                        *text = text
                            .split("\n\n")
                            .map(|paragraph| paragraph.replace('\n', " "))
                            .collect::<Vec<_>>()
                            .join("\n\n");
                    }
                    other => unwrap_descriptions(other),
                }
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(unwrap_descriptions),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn committed_yaml_is_what_the_types_say() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("generated");
        for (name, wanted) in generated_files() {
            let found = fs::read_to_string(directory.join(name)).unwrap_or_default();
            assert!(found == wanted, "crds/generated/{name} is stale; run: {REGENERATE}");
        }
        let listed = fs::read_dir(&directory).unwrap().count();
        assert_eq!(listed, generated_files().len(), "crds/generated holds a file that nothing makes");
    }

    #[test]
    fn yaml_reads_back_as_the_same_definition() {
        for ((_, yaml), crd) in generated_files().into_iter().zip([KafkaCluster::crd(), Topic::crd()]) {
            let mut back: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
            let annotations = back["metadata"].as_object_mut().unwrap().remove("annotations").unwrap();
            assert_eq!(annotations, json!({ "helm.sh/resource-policy": "keep" }));
            assert_eq!(back, unwrapped(&crd));
        }
    }
}
