//! Rust source from a checked schema.
//!
//! Every struct gets one `read` and one `write`, which call the runtime's `Wire` trait field by field; what differs
//! between versions is an `if` on the version around that call. All lengths, limits and encodings live in the runtime,
//! so this code stays small and quick to compile.

mod enums;

use std::fmt::Write as _;

use crate::Options;
use crate::names::{field_name, snake_case};
use crate::schema::{Default, Field, Kind, Message, Schema, Type, Versions};

/// Emits all of `schema`, which must have passed [`Schema::validate`].
pub(crate) fn emit(schema: &Schema, options: &Options) -> String {
    let mut out = String::from("// Generated from a schema; do not edit.\n\n");
    for message in &schema.messages {
        let mut emitter = Emitter { out: &mut out, message, options };
        emitter.module();
    }
    if options.api_keys {
        enums::api_keys(&mut out, schema, options);
    }
    if let Some(name) = &options.record_enum {
        enums::record_enum(&mut out, schema, options, name);
    }
    if let Some(cfg) = &options.arbitrary_cfg {
        let _ = writeln!(out, "/// Calls `visitor` with every message type of the schema.");
        let _ = writeln!(out, "#[cfg({cfg})]");
        let runtime = &options.runtime;
        let _ = writeln!(
            out,
            "pub fn visit_messages(visitor: &mut impl {runtime}::generated::MessageVisitor) {{"
        );
        for message in &schema.messages {
            let _ = writeln!(out, "    visitor.message::<{}>();", path(message));
        }
        out.push_str("}\n");
    }
    out
}

/// A condition on the version, within a range that is known to hold.
#[derive(Debug, Clone, PartialEq)]
enum When {
    Always,
    Never,
    If(String),
}

fn when(versions: Versions, known: Versions, version: &str) -> When {
    let both = versions.and(known);
    if both.is_empty() {
        When::Never
    } else if known.within(versions) {
        When::Always
    } else if known.lo >= both.lo {
        When::If(format!("{version} <= {}", both.hi))
    } else if known.hi <= both.hi {
        When::If(format!("{version} >= {}", both.lo))
    } else if both.lo == both.hi {
        When::If(format!("{version} == {}", both.lo))
    } else {
        When::If(format!("({}..={}).contains(&{version})", both.lo, both.hi))
    }
}

struct Emitter<'a> {
    out: &'a mut String,
    message: &'a Message,
    options: &'a Options,
}

macro_rules! line {
    ($self:ident, $depth:expr, $($text:tt)*) => {{
        let _ = write!($self.out, "{:1$}", "", 4 * $depth);
        let _ = writeln!($self.out, $($text)*);
    }};
}

impl Emitter<'_> {
    fn module(&mut self) {
        let message = self.message;
        let module = snake_case(&message.name);
        line!(self, 0, "/// `{}` and its structs.", message.name);
        line!(self, 0, "pub mod {module} {{");
        line!(self, 1, "use {}::generated as rt;\n", self.options.runtime);
        let mut docs = message.docs.clone();
        if docs.is_empty() {
            docs.push(self.summary());
        }
        self.definition(&message.name, &docs, &message.fields, message.versions);
        self.message_impl();
        self.inline_structs(&message.fields, message.versions);
        for s in &message.structs {
            let known = s.versions.and(message.versions);
            self.definition(&s.name, &s.docs, &s.fields, known);
            self.inline_structs(&s.fields, known);
        }
        line!(self, 0, "}}");
        line!(self, 0, "pub use {module}::{};\n", message.name);
    }

    fn summary(&self) -> String {
        let m = self.message;
        let what = match (m.kind, m.key) {
            (Kind::Request, Some(key)) => format!("Body of requests with API key {key}"),
            (Kind::Response, Some(key)) => format!("Body of responses with API key {key}"),
            (Kind::Record, Some(key)) => format!("Record {key}"),
            (Kind::Header, _) => "A header".into(),
            _ => "Data".into(),
        };
        let flexible = m.flexible.and(m.versions);
        if flexible.is_empty() {
            format!("{what}, versions {}, none flexible.", m.versions)
        } else {
            format!("{what}, versions {}, flexible from {}.", m.versions, flexible.lo)
        }
    }

    fn inline_structs(&mut self, fields: &[Field], known: Versions) {
        for field in fields.iter().filter(|f| !f.fields.is_empty()) {
            let known = known.and(field.versions);
            let name = field.ty.struct_name().expect("only structs have fields");
            self.definition(name, &[], &field.fields, known);
            self.inline_structs(&field.fields, known);
        }
    }

    /// The struct and everything it implements.
    fn definition(&mut self, name: &str, docs: &[String], fields: &[Field], known: Versions) {
        let flexible = when(self.message.flexible, known, "v.number");
        let has_tags = flexible != When::Never;
        let fields: Vec<FieldCode<'_>> =
            fields.iter().map(|f| FieldCode::new(self.message, f, known)).collect();
        let opaque = fields.iter().any(|f| matches!(f.field.ty, Type::Bytes | Type::Records));
        let all_zero = fields.iter().all(|f| {
            matches!(f.default, Default::Zero if !f.field.is_nullable()) || matches!(f.default, Default::Null)
        });

        for doc in docs {
            line!(self, 1, "/// {doc}");
        }
        if docs.is_empty() {
            line!(self, 1, "/// Part of [`{}`].", self.message.name);
        }
        let mut derives = vec!["Clone", "PartialEq"];
        if !opaque {
            derives.push("Debug");
        }
        if all_zero {
            derives.push("Default");
        }
        line!(self, 1, "#[derive({})]", derives.join(", "));
        line!(self, 1, "pub struct {name} {{");
        for f in &fields {
            for doc in &f.field.docs {
                line!(self, 2, "/// {doc}");
            }
            if f.field.docs.is_empty() {
                line!(self, 2, "/// {}", f.doc(known));
            }
            line!(self, 2, "pub {}: {},", f.name, f.rust_type());
        }
        if has_tags {
            line!(self, 2, "/// Tagged fields that this schema does not know.");
            line!(self, 2, "pub unknown_tagged_fields: Vec<rt::RawTaggedField>,");
        }
        line!(self, 1, "}}\n");
        if !all_zero {
            self.default_impl(name, &fields, has_tags);
        }
        if opaque {
            self.debug_impl(name, &fields, has_tags);
        }
        self.wire_impl(name, &fields, known, &flexible);
        if let Some(cfg) = &self.options.arbitrary_cfg {
            let cfg = cfg.clone();
            self.arbitrary_impl(name, &cfg, &fields, known, has_tags);
        }
    }

    fn default_impl(&mut self, name: &str, fields: &[FieldCode<'_>], has_tags: bool) {
        line!(self, 1, "impl Default for {name} {{");
        line!(self, 2, "fn default() -> Self {{");
        line!(self, 3, "Self {{");
        for f in fields {
            line!(self, 4, "{}: {},", f.name, f.default_expr());
        }
        if has_tags {
            line!(self, 4, "unknown_tagged_fields: Vec::new(),");
        }
        line!(self, 3, "}}");
        line!(self, 2, "}}");
        line!(self, 1, "}}\n");
    }

    /// Payloads and secrets are printed by their length only.
    fn debug_impl(&mut self, name: &str, fields: &[FieldCode<'_>], has_tags: bool) {
        line!(self, 1, "impl std::fmt::Debug for {name} {{");
        line!(self, 2, "fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {{");
        line!(self, 3, "f.debug_struct(\"{name}\")");
        for f in fields {
            match f.field.ty {
                Type::Bytes | Type::Records => {
                    line!(self, 4, ".field(\"{0}\", &rt::Opaque::from(&self.{0}))", f.name);
                }
                _ => line!(self, 4, ".field(\"{0}\", &self.{0})", f.name),
            }
        }
        if has_tags {
            line!(self, 4, ".field(\"unknown_tagged_fields\", &self.unknown_tagged_fields)");
        }
        line!(self, 4, ".finish()");
        line!(self, 2, "}}");
        line!(self, 1, "}}\n");
    }

    fn wire_impl(&mut self, name: &str, fields: &[FieldCode<'_>], known: Versions, flexible: &When) {
        let tagged: Vec<&FieldCode<'_>> = fields.iter().filter(|f| f.field.tag.is_some()).collect();
        line!(self, 1, "impl rt::Wire for {name} {{");
        line!(self, 2, "const MIN_LEN: usize = {};\n", struct_min_len(self.message, fields, known));
        self.read_fn(fields, &tagged, flexible);
        self.write_fn(name, fields, &tagged, flexible);
        line!(self, 1, "}}\n");
    }

    fn read_fn(&mut self, fields: &[FieldCode<'_>], tagged: &[&FieldCode<'_>], flexible: &When) {
        line!(
            self,
            2,
            "fn read(d: &mut rt::Decoder, v: rt::WireVersion) -> Result<Self, rt::DecodeError> {{"
        );
        let open = if tagged.is_empty() { "Ok(Self {" } else { "let mut s = Self {" };
        line!(self, 3, "{open}");
        for f in fields {
            let value = match (f.field.tag, &f.when) {
                (Some(_), _) | (None, When::Never) => f.default_expr(),
                (None, When::Always) => f.read_expr(),
                (None, When::If(condition)) => {
                    format!("if {condition} {{ {} }} else {{ {} }}", f.read_expr(), f.default_expr())
                }
            };
            line!(self, 4, "{}: {value},", f.name);
        }
        match (flexible, tagged.is_empty()) {
            (When::Never, _) => {}
            (_, true) => line!(self, 4, "unknown_tagged_fields: d.unknown_tags(v)?,"),
            (_, false) => line!(self, 4, "unknown_tagged_fields: Vec::new(),"),
        }
        if tagged.is_empty() {
            line!(self, 3, "}})");
        } else {
            line!(self, 3, "}};");
            line!(self, 3, "s.unknown_tagged_fields = d.tags(v, |d, tag| {{");
            line!(self, 4, "match tag {{");
            for f in tagged {
                let (tag, _) = f.field.tag.expect("filtered for tagged fields");
                let guard = match &f.when {
                    When::Always => String::new(),
                    When::If(condition) => format!(" if {condition}"),
                    When::Never => continue,
                };
                line!(self, 5, "{tag}{guard} => s.{} = {},", f.name, f.read_expr());
            }
            line!(self, 5, "_ => return Ok(false),");
            line!(self, 4, "}}");
            line!(self, 4, "Ok(true)");
            line!(self, 3, "}})?;");
            line!(self, 3, "Ok(s)");
        }
        line!(self, 2, "}}\n");
    }

    fn write_fn(&mut self, name: &str, fields: &[FieldCode<'_>], tagged: &[&FieldCode<'_>], flexible: &When) {
        line!(
            self,
            2,
            "fn write(&self, e: &mut rt::Encoder, v: rt::WireVersion) -> Result<(), rt::EncodeError> {{"
        );
        for f in fields {
            let refuse = (!f.field.ignorable)
                .then(|| format!("return Err(rt::EncodeError::not_in_version(\"{name}.{}\", v));", f.name));
            let write =
                if f.field.tag.is_some() { String::new() } else { format!("{}?;", f.write_expr(name)) };
            match (&f.when, refuse) {
                (When::Always, _) if write.is_empty() => {}
                (When::Always, _) => line!(self, 3, "{write}"),
                (When::Never, None) => {}
                (When::Never, Some(refuse)) => line!(self, 3, "if {} {{ {refuse} }}", f.non_default_expr()),
                (When::If(_), None) if write.is_empty() => {}
                (When::If(condition), None) => line!(self, 3, "if {condition} {{ {write} }}"),
                (When::If(condition), Some(refuse)) => {
                    line!(
                        self,
                        3,
                        "if {condition} {{ {write} }} else if {} {{ {refuse} }}",
                        f.non_default_expr()
                    );
                }
            }
        }
        match (flexible, tagged.is_empty()) {
            (When::Never, _) => line!(self, 3, "Ok(())"),
            (_, true) => line!(self, 3, "e.unknown_tags(&self.unknown_tagged_fields, v)"),
            (_, false) => self.write_tags(tagged),
        }
        line!(self, 2, "}}");
    }

    fn write_tags(&mut self, tagged: &[&FieldCode<'_>]) {
        let mut tagged = tagged.to_vec();
        tagged.sort_by_key(|f| f.field.tag.map(|(tag, _)| tag));
        line!(self, 3, "if !v.flexible {{ return e.unknown_tags(&self.unknown_tagged_fields, v); }}");
        line!(self, 3, "let set = [");
        for f in &tagged {
            match &f.when {
                When::Always => line!(self, 4, "{},", f.non_default_expr()),
                When::If(condition) => line!(self, 4, "{condition} && ({}),", f.non_default_expr()),
                When::Never => line!(self, 4, "false,"),
            }
        }
        line!(self, 3, "];");
        line!(self, 3, "let mut tags = e.tags(&set, &self.unknown_tagged_fields)?;");
        for (i, f) in tagged.iter().enumerate() {
            let (tag, _) = f.field.tag.expect("filtered for tagged fields");
            line!(self, 3, "if set[{i}] {{ tags.field({tag}, |e| {})?; }}", f.write_expr(""));
        }
        line!(self, 3, "tags.finish()");
    }

    fn arbitrary_impl(
        &mut self,
        name: &str,
        cfg: &str,
        fields: &[FieldCode<'_>],
        known: Versions,
        has_tags: bool,
    ) {
        line!(self, 1, "#[cfg({cfg})]");
        line!(self, 1, "impl rt::Arbitrary for {name} {{");
        line!(self, 2, "fn arbitrary(g: &mut rt::Gen, version: i16) -> Self {{");
        line!(self, 3, "Self {{");
        for f in fields {
            let random = f.arbitrary_expr(known);
            let value = match when(f.field.versions, known, "version") {
                When::Always => random,
                When::Never => f.default_expr(),
                When::If(condition) => {
                    format!("if {condition} {{ {random} }} else {{ {} }}", f.default_expr())
                }
            };
            line!(self, 4, "{}: {value},", f.name);
        }
        if has_tags {
            let random = "g.unknown_tags()";
            match when(self.message.flexible, known, "version") {
                When::If(condition) => line!(
                    self,
                    4,
                    "unknown_tagged_fields: if {condition} {{ {random} }} else {{ Vec::new() }},"
                ),
                _ => line!(self, 4, "unknown_tagged_fields: {random},"),
            }
        }
        line!(self, 3, "}}");
        line!(self, 2, "}}");
        line!(self, 1, "}}\n");
    }

    fn message_impl(&mut self) {
        let m = self.message;
        let flexible = m.flexible.and(m.versions);
        line!(self, 1, "impl rt::Message for {} {{", m.name);
        line!(self, 2, "const NAME: &'static str = \"{}\";", m.name);
        line!(self, 2, "const MIN_VERSION: i16 = {};", m.versions.lo);
        line!(self, 2, "const MAX_VERSION: i16 = {};", m.versions.hi);
        if flexible.is_empty() {
            line!(self, 2, "const FLEXIBLE_FROM: Option<i16> = None;");
        } else {
            line!(self, 2, "const FLEXIBLE_FROM: Option<i16> = Some({});", flexible.lo);
        }
        line!(self, 1, "}}\n");
        if m.kind == Kind::Request && self.options.api_keys {
            let base = enums::api_name(m);
            line!(self, 1, "impl rt::Request for {} {{", m.name);
            line!(self, 2, "const KEY: rt::ApiKey = rt::ApiKey::{base};");
            line!(self, 2, "type Response = super::{base}Response;");
            line!(self, 1, "}}\n");
        }
    }
}

/// A field with what the emitter wants to know about it.
#[derive(Clone)]
struct FieldCode<'a> {
    field: &'a Field,
    fields: &'a [Field],
    name: String,
    default: Default,
    when: When,
    nullable: When,
}

impl<'a> FieldCode<'a> {
    fn new(message: &'a Message, field: &'a Field, known: Versions) -> Self {
        Self {
            field,
            fields: message.struct_fields(field),
            name: field_name(&field.name),
            default: field.default_value().expect("the schema was validated"),
            when: when(field.versions, known, "v.number"),
            nullable: when(field.nullable, known.and(field.versions), "v.number"),
        }
    }

    fn doc(&self, known: Versions) -> String {
        let mut text = match when(self.field.versions, known, "v") {
            When::Always => "In all versions".to_owned(),
            _ => format!("Versions {}", self.field.versions),
        };
        if let Some((tag, _)) = self.field.tag {
            let _ = write!(text, ", tag {tag}");
        }
        match self.nullable {
            When::If(_) => {
                let _ = write!(text, ", null in {}", self.field.nullable);
            }
            When::Always | When::Never => {}
        }
        text.push('.');
        text
    }

    fn rust_type(&self) -> String {
        let plain = plain_type(&self.field.ty);
        if self.field.is_nullable() { format!("Option<{plain}>") } else { plain }
    }

    fn default_expr(&self) -> String {
        match &self.default {
            Default::Null => "None".into(),
            Default::Bool(value) => value.to_string(),
            Default::Int(value) => value.to_string(),
            Default::Float(value) => format!("{value:?}"),
            Default::Zero if self.field.is_nullable() => "Some(Default::default())".into(),
            Default::Zero => "Default::default()".into(),
        }
    }

    fn non_default_expr(&self) -> String {
        let place = format!("self.{}", self.name);
        let empty_or_zero = |x: &str| match &self.field.ty {
            Type::Bool => x.to_owned(),
            Type::Float64 => format!("{x} != 0.0"),
            Type::String | Type::Bytes | Type::Records | Type::Array(_) => format!("!{x}.is_empty()"),
            Type::Uuid => format!("!{x}.is_nil()"),
            Type::Struct(name) => format!("{x} != {name}::default()"),
            _ => format!("{x} != 0"),
        };
        match &self.default {
            Default::Null => format!("{place}.is_some()"),
            Default::Bool(_) => format!("!{place}"),
            Default::Int(_) | Default::Float(_) => format!("{place} != {}", self.default_expr()),
            Default::Zero if self.field.is_nullable() => match &self.field.ty {
                Type::Struct(_) => format!("{place} != Some(Default::default())"),
                _ => format!("{place}.as_ref().is_none_or(|x| {})", empty_or_zero("x")),
            },
            Default::Zero => empty_or_zero(&place),
        }
    }

    /// The version that lengths follow: a field can stay inflexible in a flexible message.
    fn wire_version(&self) -> &'static str {
        if self.field.flexible.is_some() { "v.inflexible()" } else { "v" }
    }

    fn read_expr(&self) -> String {
        let v = self.wire_version();
        let nullable = format!("rt::Wire::read_nullable(d, {v})?");
        let plain = format!("rt::Wire::read(d, {v})?");
        match &self.nullable {
            _ if !self.field.is_nullable() => plain,
            When::Always => nullable,
            When::Never => format!("Some({plain})"),
            When::If(condition) => format!("if {condition} {{ {nullable} }} else {{ Some({plain}) }}"),
        }
    }

    /// An expression of type `Result<(), EncodeError>`.
    fn write_expr(&self, struct_name: &str) -> String {
        let v = self.wire_version();
        let place = format!("self.{}", self.name);
        let nullable = format!("rt::Wire::write_nullable({place}.as_ref(), e, {v})");
        let required =
            format!("rt::write_required({place}.as_ref(), \"{struct_name}.{}\", e, {v})", self.name);
        match &self.nullable {
            _ if !self.field.is_nullable() => format!("rt::Wire::write(&{place}, e, {v})"),
            When::Always => nullable,
            When::Never => required,
            When::If(condition) => format!("if {condition} {{ {nullable} }} else {{ {required} }}"),
        }
    }

    fn arbitrary_expr(&self, known: Versions) -> String {
        if !self.field.is_nullable() {
            return "g.value(version)".into();
        }
        match when(self.field.nullable, known.and(self.field.versions), "version") {
            When::Always => "g.nullable(version)".into(),
            When::Never => "Some(g.value(version))".into(),
            When::If(condition) => {
                format!("if {condition} {{ g.nullable(version) }} else {{ Some(g.value(version)) }}")
            }
        }
    }
}

fn plain_type(ty: &Type) -> String {
    match ty {
        Type::Bool => "bool".into(),
        Type::Int8 => "i8".into(),
        Type::Int16 => "i16".into(),
        Type::Uint16 => "u16".into(),
        Type::Int32 => "i32".into(),
        Type::Uint32 => "u32".into(),
        Type::Int64 => "i64".into(),
        Type::Float64 => "f64".into(),
        Type::Uuid => "rt::Uuid".into(),
        Type::String => "rt::StrBytes".into(),
        Type::Bytes => "rt::Bytes".into(),
        Type::Records => "rt::RecordBytes".into(),
        Type::Struct(name) => name.clone(),
        Type::Array(element) => format!("Vec<{}>", plain_type(element)),
    }
}

/// Fewest bytes an instance takes in any version: bounds how many fit into what is left of a frame.
fn struct_min_len(message: &Message, fields: &[FieldCode<'_>], known: Versions) -> usize {
    (known.lo..=known.hi).map(|version| fields_len(message, fields, version)).min().unwrap_or(0).max(1)
}

fn fields_len(message: &Message, fields: &[FieldCode<'_>], version: i16) -> usize {
    let flexible = message.flexible.contains(version);
    let carried = fields.iter().filter(|f| f.field.versions.contains(version) && f.field.tag.is_none());
    let lengths = carried.map(|f| match &f.field.ty {
        Type::Bool | Type::Int8 => 1,
        Type::Int16 | Type::Uint16 => 2,
        Type::Int32 | Type::Uint32 => 4,
        Type::Int64 | Type::Float64 => 8,
        Type::Uuid => 16,
        Type::String if flexible && f.field.flexible.is_none() => 1,
        Type::String => 2,
        Type::Bytes | Type::Records | Type::Array(_) if flexible && f.field.flexible.is_none() => 1,
        Type::Bytes | Type::Records | Type::Array(_) => 4,
        Type::Struct(_) if f.field.is_nullable() => 1,
        Type::Struct(_) => {
            let known = message.versions;
            let inner: Vec<_> = f.fields.iter().map(|field| FieldCode::new(message, field, known)).collect();
            fields_len(message, &inner, version)
        }
    });
    lengths.sum::<usize>() + usize::from(flexible)
}

fn path(message: &Message) -> String {
    format!("{}::{}", snake_case(&message.name), message.name)
}
