//! Import of Kafka's message definitions (JSON with `//` comments).
//!
//! Takes over facts only: names, types, versions, defaults. Descriptions and comments stay behind.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::Error;
use crate::schema::{Field, Kind, Message, Schema, Struct, Type, Versions, is_type_name};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Definition {
    api_key: Option<i16>,
    #[serde(rename = "type")]
    kind: String,
    name: String,
    valid_versions: String,
    flexible_versions: Option<String>,
    #[serde(default)]
    latest_version_unstable: bool,
    #[serde(default)]
    listeners: Vec<String>,
    #[serde(default)]
    fields: Vec<FieldDefinition>,
    #[serde(default)]
    common_structs: Vec<StructDefinition>,
}

#[derive(Deserialize)]
struct StructDefinition {
    name: String,
    versions: String,
    fields: Vec<FieldDefinition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FieldDefinition {
    name: String,
    #[serde(rename = "type")]
    ty: String,
    versions: String,
    nullable_versions: Option<String>,
    tagged_versions: Option<String>,
    tag: Option<u32>,
    default: Option<serde_json::Value>,
    #[serde(default)]
    ignorable: bool,
    #[serde(default)]
    map_key: bool,
    #[serde(default)]
    zero_copy: bool,
    flexible_versions: Option<String>,
    #[serde(default)]
    fields: Vec<FieldDefinition>,
}

/// A message definition with what only the import's caller wants to know.
#[derive(Debug)]
pub struct Imported {
    /// The message.
    pub message: Message,
    /// Listeners that serve a request (`broker`, `controller`); empty for everything else.
    pub listeners: Vec<String>,
}

/// Reads every `*.json` of a folder, except messages that have no valid version left.
///
/// Ordered headers first, then requests and responses by key, then the rest by name.
///
/// # Errors
/// A file that cannot be read or is no message definition.
pub fn read_folder(folder: &Path) -> Result<Vec<Imported>, Error> {
    let unreadable = |source| Error::Read { path: folder.to_owned(), source };
    let mut imported = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let text =
                fs::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
            let wrong = |message| Error::Definition { path: path.clone(), message };
            imported.extend(read(&text).map_err(wrong)?);
        }
    }
    imported.sort_by_cached_key(|i| {
        let m = &i.message;
        let group = match m.kind {
            Kind::Header => 0,
            Kind::Request | Kind::Response => 1,
            Kind::Data | Kind::Record => 2,
        };
        (group, m.key, m.kind, m.name.clone())
    });
    Ok(imported)
}

/// A schema of the messages `wanted` accepts, checked.
///
/// # Errors
/// A message that breaks a rule of [`Schema::validate`].
pub fn select(imported: Vec<Imported>, wanted: impl Fn(&Imported) -> bool) -> Result<Schema, Error> {
    let messages = imported.into_iter().filter(wanted).map(|i| i.message).collect();
    let schema = Schema { messages };
    schema.validate()?;
    Ok(schema)
}

/// Reads one definition; `None` if all its versions are gone.
fn read(text: &str) -> Result<Option<Imported>, String> {
    let definition: Definition = serde_json::from_str(&without_comments(text)).map_err(|e| e.to_string())?;
    let versions = versions(&definition.valid_versions)?;
    if versions.is_empty() {
        return Ok(None);
    }
    let kind = match definition.kind.as_str() {
        "request" => Kind::Request,
        "response" => Kind::Response,
        "header" => Kind::Header,
        "data" => Kind::Data,
        // Kinds of Kafka's internal logs.
        "metadata" | "coordinator-key" | "coordinator-value" if definition.api_key.is_some() => Kind::Record,
        other => return Err(format!("unknown message type `{other}`")),
    };
    let structs = definition
        .common_structs
        .into_iter()
        .map(|s| {
            Ok(Struct {
                line: 0,
                docs: Vec::new(),
                name: s.name,
                versions: self::versions(&s.versions)?,
                fields: fields(s.fields)?,
            })
        })
        .collect::<Result<_, String>>()?;
    let message = Message {
        line: 0,
        docs: Vec::new(),
        kind,
        name: definition.name,
        key: definition.api_key,
        versions,
        flexible: definition.flexible_versions.as_deref().map_or(Ok(Versions::NONE), self::versions)?,
        latest_unstable: definition.latest_version_unstable,
        fields: fields(definition.fields)?,
        structs,
    };
    Ok(Some(Imported { message, listeners: definition.listeners }))
}

fn fields(definitions: Vec<FieldDefinition>) -> Result<Vec<Field>, String> {
    definitions.into_iter().map(field).collect()
}

fn field(definition: FieldDefinition) -> Result<Field, String> {
    let name = capitalised(&definition.name);
    if !is_type_name(&name) {
        return Err(format!("`{name}` is no field name"));
    }
    let ty =
        Type::parse(&definition.ty).ok_or_else(|| format!("{name}: unknown type `{}`", definition.ty))?;
    let versions = self::versions(&definition.versions)?;
    let optional = |text: &Option<String>| text.as_deref().map_or(Ok(Versions::NONE), self::versions);
    let tag = match definition.tag {
        Some(tag) => Some((tag, optional(&definition.tagged_versions)?)),
        None => None,
    };
    let default = match definition.default {
        None => None,
        Some(serde_json::Value::String(text)) => Some(text),
        Some(serde_json::Value::Number(number)) => Some(number.to_string()),
        Some(serde_json::Value::Bool(value)) => Some(value.to_string()),
        Some(other) => return Err(format!("{name}: default {other} is not understood")),
    };
    Ok(Field {
        line: 0,
        docs: Vec::new(),
        name,
        ty,
        versions,
        nullable: optional(&definition.nullable_versions)?.and(versions),
        tag,
        default,
        ignorable: definition.ignorable,
        map_key: definition.map_key,
        zero_copy: definition.zero_copy,
        flexible: definition.flexible_versions.as_deref().map(self::versions).transpose()?,
        fields: fields(definition.fields)?,
    })
}

/// Some field names of the record schemas start with a small letter; ours are CamelCase throughout.
fn capitalised(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn versions(text: &str) -> Result<Versions, String> {
    Versions::parse(text).ok_or_else(|| format!("`{text}` is no version range"))
}

/// Blanks out `//` comments; strings may contain two slashes.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let (mut in_string, mut end) = (false, line.len());
        let bytes = line.as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            match bytes[i] {
                b'\\' if in_string => i += 1,
                b'"' => in_string = !in_string,
                b'/' if !in_string && bytes.get(i + 1) == Some(&b'/') => {
                    end = i;
                    break;
                }
                _ => {}
            }
            i += 1;
        }
        out.push_str(&line[..end]);
        out.push('\n');
    }
    out
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    #[test]
    fn facts_are_taken_over_and_prose_is_not() {
        let text = r#"
            // A comment with "quotes".
            { "apiKey": 7, "type": "request", "listeners": ["broker"], "name": "PingRequest",
              "validVersions": "1-3", "flexibleVersions": "2+",
              "fields": [ // another
                { "name": "link", "type": "string", "versions": "0+", "nullableVersions": "2+",
                  "default": "null", "about": "See http://example.org for \"this\"." },
                { "name": "Size", "type": "int32", "versions": "3+", "tag": 0, "taggedVersions": "3+", "default": -1 }
              ] }"#;
        let imported = read(text).unwrap().unwrap();
        assert_eq!(imported.listeners, ["broker"]);
        let printed = crate::text::print(&Schema { messages: vec![imported.message] });
        assert_eq!(
            printed,
            "request 7 PingRequest versions=1-3 flexible=2+\n  Link string nullable=2+ default=null\n  \
             Size int32 3+ tag=0 default=-1\n"
        );
    }

    #[test]
    fn messages_without_versions_are_skipped() {
        let text = r#"{ "apiKey": 4, "type": "request", "name": "GoneRequest", "validVersions": "none" }"#;
        assert!(read(text).unwrap().is_none());
    }
}
