//! What ties the messages of a schema together: the API keys, and an enum over all records.

use std::fmt::Write as _;

use super::path;
use crate::Options;
use crate::schema::{Kind, Message, Schema};

pub(super) fn api_name(request: &Message) -> &str {
    request.name.strip_suffix("Request").expect("requests are named so")
}

/// `enum ApiKey` and the visitor over all requests.
pub(super) fn api_keys(out: &mut String, schema: &Schema, options: &Options) {
    let pairs: Vec<(&Message, &Message)> = schema
        .messages
        .iter()
        .filter(|m| m.kind == Kind::Request)
        .filter_map(|request| {
            let response =
                schema.messages.iter().find(|m| m.kind == Kind::Response && m.key == request.key)?;
            Some((request, response))
        })
        .collect();
    let mut each = |head: &str, line: &dyn Fn(&Message, &Message) -> String, tail: &str| {
        out.push_str(head);
        for (request, response) in &pairs {
            let _ = writeln!(out, "            {}", line(request, response));
        }
        out.push_str(tail);
    };
    each(
        "/// What a request asks for. Only keys that this crate can decode.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]\n#[repr(i16)]\npub enum ApiKey {\n",
        &|request, _| {
            let key = request.key.unwrap_or_default();
            format!("/// Key {key}.\n            {} = {key},", api_name(request))
        },
        "}\n\nimpl ApiKey {\n    /// All keys, ascending.\n    pub const ALL: &'static [Self] = &[\n",
    );
    each(
        "",
        &|request, _| format!("Self::{},", api_name(request)),
        "    ];\n\n    /// The key with this number.\n    pub fn from_code(code: i16) -> Option<Self> {\n        \
         Some(match code {\n",
    );
    each(
        "",
        &|request, _| format!("{} => Self::{},", request.key.unwrap_or_default(), api_name(request)),
        "            _ => return None,\n        })\n    }\n\n    /// Kafka's name of the API.\n    \
         pub const fn name(self) -> &'static str {\n        match self {\n",
    );
    each(
        "",
        &|request, _| format!("Self::{0} => \"{0}\",", api_name(request)),
        "        }\n    }\n\n    /// Versions that requests and responses of the key can be read and written in.\n    \
         pub const fn versions(self) -> std::ops::RangeInclusive<i16> {\n        match self {\n",
    );
    each(
        "",
        &|request, response| {
            let both = request.versions.and(response.versions);
            format!("Self::{} => {}..={},", api_name(request), both.lo, both.hi)
        },
        "        }\n    }\n\n    /// Whether the newest version may still change, and so must not be advertised.\n    \
         pub const fn latest_version_unstable(self) -> bool {\n        match self {\n",
    );
    each(
        "",
        &|request, _| format!("Self::{} => {},", api_name(request), request.latest_unstable),
        "        }\n    }\n\n    /// First version with flexible request bodies.\n    \
         pub(crate) const fn flexible_request_from(self) -> Option<i16> {\n        match self {\n",
    );
    let flexible = |m: &Message| match m.flexible {
        v if v.is_empty() => "None".to_owned(),
        v => format!("Some({})", v.lo),
    };
    each(
        "",
        &|request, _| format!("Self::{} => {},", api_name(request), flexible(request)),
        "        }\n    }\n\n    /// First version with flexible response bodies.\n    \
         pub(crate) const fn flexible_response_from(self) -> Option<i16> {\n        match self {\n",
    );
    each(
        "",
        &|request, response| format!("Self::{} => {},", api_name(request), flexible(response)),
        "        }\n    }\n}\n\n",
    );
    let _ = writeln!(out, "/// Calls `visitor` with every request type of the schema.");
    let _ = writeln!(
        out,
        "pub fn visit_requests(visitor: &mut impl {}::generated::RequestVisitor) {{",
        options.runtime
    );
    for (request, _) in &pairs {
        let _ = writeln!(out, "    visitor.request::<{}>();", path(request));
    }
    out.push_str("}\n\n");
}

/// An enum over all records of the schema.
pub(super) fn record_enum(out: &mut String, schema: &Schema, options: &Options, name: &str) {
    let records: Vec<&Message> = schema.messages.iter().filter(|m| m.kind == Kind::Record).collect();
    let variant = |m: &Message| m.name.strip_suffix("Record").unwrap_or(&m.name).to_owned();
    let rt = format!("{}::generated", options.runtime);
    let _ = writeln!(
        out,
        "/// Any record of the schema.\n#[derive(Clone, Debug, PartialEq)]\npub enum {name} {{"
    );
    for m in &records {
        let _ =
            writeln!(out, "    /// Record {}.\n    {}({}),", m.key.unwrap_or_default(), variant(m), path(m));
    }
    let _ = writeln!(out, "}}\n\nimpl {name} {{");
    let _ = writeln!(out, "    /// The number that tells this kind of record from the others.");
    let _ = writeln!(out, "    pub const fn id(&self) -> i16 {{\n        match self {{");
    for m in &records {
        let _ = writeln!(out, "            Self::{}(_) => {},", variant(m), m.key.unwrap_or_default());
    }
    let _ = writeln!(out, "        }}\n    }}\n");
    let _ = writeln!(out, "    /// Name of the record type.");
    let _ = writeln!(out, "    pub const fn name(&self) -> &'static str {{\n        match self {{");
    for m in &records {
        let _ = writeln!(out, "            Self::{}(_) => \"{}\",", variant(m), m.name);
    }
    let _ = writeln!(out, "        }}\n    }}\n");
    let _ = writeln!(
        out,
        "    /// Writes id, version (the newest) and body.\n    ///\n    /// # Errors\n    /// A value that does not fit \
         the format.\n    pub fn encode(&self, e: &mut {rt}::Encoder) -> Result<(), {rt}::EncodeError> {{\n        \
         match self {{"
    );
    for m in &records {
        let id = m.key.unwrap_or_default();
        let _ = writeln!(
            out,
            "            Self::{}(record) => {rt}::encode_record({id}, record, e),",
            variant(m)
        );
    }
    let _ = writeln!(out, "        }}\n    }}\n");
    let _ = writeln!(
        out,
        "    /// Reads what `encode` wrote, by this or an older schema.\n    ///\n    /// # Errors\n    /// Malformed \
         bytes, an unknown id or an unknown version.\n    pub fn decode(d: &mut {rt}::Decoder) -> Result<Self, \
         {rt}::DecodeError> {{\n        let (id, version) = {rt}::decode_record_head(d)?;\n        Ok(match id {{"
    );
    for m in &records {
        let _ = writeln!(
            out,
            "            {} => Self::{}({rt}::Message::decode(d, version)?),",
            m.key.unwrap_or_default(),
            variant(m)
        );
    }
    let _ = writeln!(out, "            _ => return Err(d.unknown_record(id)),\n        }})\n    }}\n}}\n");
    for m in &records {
        let _ = writeln!(
            out,
            "impl From<{0}> for {name} {{\n    fn from(record: {0}) -> Self {{\n        Self::{1}(record)\n    }}\n}}\n",
            path(m),
            variant(m)
        );
    }
}
