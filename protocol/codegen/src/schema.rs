//! What a message is: its fields, the versions that carry them, and how.
//!
//! The terms are those of Kafka's message definitions. [`Schema::validate`] holds the rules that the emitter
//! relies on; everything that passes it can be emitted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::Error;
use crate::names::field_name;

/// A range of versions, inclusive on both ends, possibly open or empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// First version.
    pub lo: i16,
    /// Last version; `i16::MAX` for an open range such as `3+`.
    pub hi: i16,
}

impl Versions {
    /// No version at all.
    pub const NONE: Self = Self { lo: 0, hi: -1 };
    /// Every version.
    pub const ALL: Self = Self { lo: 0, hi: i16::MAX };

    /// Reads `3-13`, `9+`, `4` or `none`.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(Self::NONE);
        }
        let number = |s: &str| s.parse::<i16>().ok().filter(|n| *n >= 0);
        if let Some(lo) = text.strip_suffix('+') {
            return Some(Self { lo: number(lo)?, hi: i16::MAX });
        }
        if let Some((lo, hi)) = text.split_once('-') {
            let range = Self { lo: number(lo)?, hi: number(hi)? };
            return (!range.is_empty()).then_some(range);
        }
        let only = number(text)?;
        Some(Self { lo: only, hi: only })
    }

    /// Whether the range holds no version.
    pub fn is_empty(self) -> bool {
        self.lo > self.hi
    }

    /// Whether `version` lies in the range.
    pub fn contains(self, version: i16) -> bool {
        self.lo <= version && version <= self.hi
    }

    /// Whether every version of `self` lies in `other`.
    pub fn within(self, other: Self) -> bool {
        self.is_empty() || (other.lo <= self.lo && self.hi <= other.hi)
    }

    /// The versions in both ranges.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let both = Self { lo: self.lo.max(other.lo), hi: self.hi.min(other.hi) };
        if both.is_empty() { Self::NONE } else { both }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            f.write_str("none")
        } else if self.hi == i16::MAX {
            write!(f, "{}+", self.lo)
        } else if self.lo == self.hi {
            write!(f, "{}", self.lo)
        } else {
            write!(f, "{}-{}", self.lo, self.hi)
        }
    }
}

/// What a message is used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Request or response header.
    Header,
    /// Body of a request; has an API key.
    Request,
    /// Body of a response; has the API key of its request.
    Response,
    /// Anything else that is written on its own.
    Data,
    /// An entry of a log that holds several kinds of entries, told apart by the key.
    Record,
}

impl Kind {
    /// The word in the compact format.
    pub fn word(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Request => "request",
            Self::Response => "response",
            Self::Data => "data",
            Self::Record => "record",
        }
    }

    /// The kind named `word`.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Header, Self::Request, Self::Response, Self::Data, Self::Record]
            .into_iter()
            .find(|kind| kind.word() == word)
    }
}

/// All messages of one schema file, in its order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Schema {
    /// The messages.
    pub messages: Vec<Message>,
}

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Line of the definition, 0 if it did not come from text.
    pub line: usize,
    /// Lines of documentation, for schemas written by hand.
    pub docs: Vec<String>,
    /// What it is used as.
    pub kind: Kind,
    /// Its name, in CamelCase.
    pub name: String,
    /// API key of requests and responses, id of records.
    pub key: Option<i16>,
    /// Versions that exist.
    pub versions: Versions,
    /// Versions with compact lengths and tagged fields.
    pub flexible: Versions,
    /// The newest version may still change and must not be advertised.
    pub latest_unstable: bool,
    /// Its fields.
    pub fields: Vec<Field>,
    /// Structs used by more than one field.
    pub structs: Vec<Struct>,
}

/// A struct that fields name as their type without defining it.
#[derive(Debug, Clone, PartialEq)]
pub struct Struct {
    /// Line of the definition, 0 if it did not come from text.
    pub line: usize,
    /// Lines of documentation.
    pub docs: Vec<String>,
    /// Its name, in CamelCase.
    pub name: String,
    /// Versions that have it.
    pub versions: Versions,
    /// Its fields.
    pub fields: Vec<Field>,
}

/// One field of a message or struct.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Line of the definition, 0 if it did not come from text.
    pub line: usize,
    /// Lines of documentation.
    pub docs: Vec<String>,
    /// Its name, in CamelCase.
    pub name: String,
    /// Its type.
    pub ty: Type,
    /// Versions that carry it.
    pub versions: Versions,
    /// Versions in which it may be null.
    pub nullable: Versions,
    /// Tag number and the versions in which it is a tagged field.
    pub tag: Option<(u32, Versions)>,
    /// Default as written; the type's zero when absent. The word `null` is null.
    pub default: Option<String>,
    /// May be dropped silently by versions that do not carry it.
    pub ignorable: bool,
    /// Part of the key of the collection its struct is an element of.
    pub map_key: bool,
    /// Kafka reads it without copying (we always do).
    pub zero_copy: bool,
    /// Overrides the message's flexible versions for this field.
    pub flexible: Option<Versions>,
    /// Fields of the struct this field defines; empty for other types and for structs defined elsewhere.
    pub fields: Vec<Field>,
}

/// Type of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// One byte, 0 or 1.
    Bool,
    /// Signed byte.
    Int8,
    /// Signed 16 bits.
    Int16,
    /// Unsigned 16 bits.
    Uint16,
    /// Signed 32 bits.
    Int32,
    /// Unsigned 32 bits.
    Uint32,
    /// Signed 64 bits.
    Int64,
    /// IEEE 754 double.
    Float64,
    /// 16 bytes.
    Uuid,
    /// UTF-8 text.
    String,
    /// Opaque bytes.
    Bytes,
    /// Record batches.
    Records,
    /// A struct of the message.
    Struct(String),
    /// Several of one type.
    Array(Box<Type>),
}

impl Type {
    /// Reads `int32`, `[]string`, `Cursor`, …
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(element) = text.strip_prefix("[]") {
            return Some(Self::Array(Box::new(Self::parse(element)?)));
        }
        Some(match text {
            "bool" => Self::Bool,
            "int8" => Self::Int8,
            "int16" => Self::Int16,
            "uint16" => Self::Uint16,
            "int32" => Self::Int32,
            "uint32" => Self::Uint32,
            "int64" => Self::Int64,
            "float64" => Self::Float64,
            "uuid" => Self::Uuid,
            "string" => Self::String,
            "bytes" => Self::Bytes,
            "records" => Self::Records,
            name if is_type_name(name) => Self::Struct(name.to_owned()),
            _ => return None,
        })
    }

    /// Name of the struct that the type is, or is an array of.
    pub fn struct_name(&self) -> Option<&str> {
        match self {
            Self::Struct(name) => Some(name),
            Self::Array(element) => element.struct_name(),
            _ => None,
        }
    }

    fn can_be_null(&self) -> bool {
        matches!(self, Self::String | Self::Bytes | Self::Records | Self::Struct(_) | Self::Array(_))
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "bool",
            Self::Int8 => "int8",
            Self::Int16 => "int16",
            Self::Uint16 => "uint16",
            Self::Int32 => "int32",
            Self::Uint32 => "uint32",
            Self::Int64 => "int64",
            Self::Float64 => "float64",
            Self::Uuid => "uuid",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Records => "records",
            Self::Struct(name) => name,
            Self::Array(element) => return write!(f, "[]{element}"),
        })
    }
}

/// Whether `name` can name a message or struct: CamelCase, letters and digits.
pub(crate) fn is_type_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_alphanumeric())
}

/// A default that has been checked against its field's type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Default {
    Zero,
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
}

impl Field {
    pub(crate) fn is_nullable(&self) -> bool {
        !self.nullable.is_empty()
    }

    /// The checked default.
    pub(crate) fn default_value(&self) -> Result<Default, Error> {
        let Some(text) = self.default.as_deref() else { return Ok(Default::Zero) };
        let wrong =
            || Error::at(self.line, format!("`{text}` is no default for a field of type {}", self.ty));
        if text == "null" {
            return if self.is_nullable() { Ok(Default::Null) } else { Err(wrong()) };
        }
        let int = |lo: i64, hi: i64| {
            let parsed = match text.strip_prefix("0x") {
                Some(hex) => i64::from_str_radix(hex, 16).ok(),
                None => text.parse().ok(),
            };
            match parsed {
                Some(0) => Ok(Default::Zero),
                Some(n) if (lo..=hi).contains(&n) => Ok(Default::Int(n)),
                _ => Err(wrong()),
            }
        };
        match &self.ty {
            Type::Bool => match text {
                "true" => Ok(Default::Bool(true)),
                "false" => Ok(Default::Zero),
                _ => Err(wrong()),
            },
            Type::Int8 => int(i8::MIN.into(), i8::MAX.into()),
            Type::Int16 => int(i16::MIN.into(), i16::MAX.into()),
            Type::Uint16 => int(0, u16::MAX.into()),
            Type::Int32 => int(i32::MIN.into(), i32::MAX.into()),
            Type::Uint32 => int(0, u32::MAX.into()),
            Type::Int64 => int(i64::MIN, i64::MAX),
            Type::Float64 => match text.parse::<f64>() {
                Ok(0.0) => Ok(Default::Zero),
                Ok(n) if n.is_finite() => Ok(Default::Float(n)),
                _ => Err(wrong()),
            },
            // Text other than the empty string is not needed by any schema so far.
            Type::String if text.is_empty() => Ok(Default::Zero),
            _ => Err(wrong()),
        }
    }
}

impl Schema {
    /// Checks what the emitter relies on.
    ///
    /// # Errors
    /// The first rule broken, with the line it is broken at.
    pub fn validate(&self) -> Result<(), Error> {
        let mut names = BTreeSet::new();
        let mut keys = BTreeSet::new();
        for message in &self.messages {
            if !names.insert(&message.name) {
                return Err(Error::at(message.line, format!("message {} is defined twice", message.name)));
            }
            if let Some(key) = message.key
                && !keys.insert((message.kind, key))
            {
                return Err(Error::at(message.line, format!("{} {key} is taken", message.kind.word())));
            }
            message.validate()?;
        }
        Ok(())
    }
}

impl Message {
    fn validate(&self) -> Result<(), Error> {
        let fail = |text: String| Err(Error::at(self.line, format!("{}: {text}", self.name)));
        if self.versions.is_empty() || self.versions.hi == i16::MAX {
            return fail("the valid versions must be a closed range".into());
        }
        if !self.flexible.is_empty() && self.flexible.hi != i16::MAX {
            return fail("flexible versions are `none` or an open range".into());
        }
        let suffix = match self.kind {
            Kind::Request => "Request",
            Kind::Response => "Response",
            Kind::Header | Kind::Data | Kind::Record => "",
        };
        if !self.name.ends_with(suffix) {
            return fail(format!("the name of a {0} ends with {suffix}", self.kind.word()));
        }
        let needs_key = matches!(self.kind, Kind::Request | Kind::Response | Kind::Record);
        if needs_key != self.key.is_some() {
            return fail(format!("a {} has {} key", self.kind.word(), if needs_key { "a" } else { "no" }));
        }
        let mut structs = BTreeMap::new();
        for s in &self.structs {
            if structs.insert(s.name.as_str(), s.line).is_some() {
                return Err(Error::at(s.line, format!("struct {} is defined twice", s.name)));
            }
        }
        collect_inline(&self.fields, &mut structs)?;
        for s in &self.structs {
            collect_inline(&s.fields, &mut structs)?;
        }
        if structs.contains_key(self.name.as_str()) {
            return fail("a struct has the name of its message".into());
        }
        self.validate_fields(&self.fields)?;
        for s in &self.structs {
            self.validate_fields(&s.fields)?;
        }
        self.check_recursion()
    }

    fn validate_fields(&self, fields: &[Field]) -> Result<(), Error> {
        let mut names = BTreeSet::new();
        let mut tags = BTreeSet::new();
        for field in fields {
            let fail = |text: String| Err(Error::at(field.line, format!("{}: {text}", field.name)));
            if !names.insert(field_name(&field.name)) {
                return fail("the field is defined twice".into());
            }
            if field.versions.is_empty() {
                return fail("no version carries the field".into());
            }
            if field.is_nullable() && !field.ty.can_be_null() {
                return fail(format!("a field of type {} cannot be null", field.ty));
            }
            if let Some((tag, versions)) = field.tag {
                if !tags.insert(tag) {
                    return fail(format!("tag {tag} is taken"));
                }
                if versions != field.versions {
                    return fail("a field is tagged in all its versions or in none".into());
                }
                if !versions.and(self.versions).within(self.flexible) {
                    return fail("tagged fields exist in flexible versions only".into());
                }
            }
            if let Some(flexible) = field.flexible
                && !flexible.is_empty()
            {
                return fail("a field's own flexible versions can only be `none`".into());
            }
            if let Some(name) = field.ty.struct_name()
                && field.fields.is_empty()
                && !self.structs.iter().any(|s| s.name == name)
            {
                return fail(format!("{name} has no fields here and is no `struct` of the message"));
            }
            if matches!(&field.ty, Type::Array(element) if matches!(**element, Type::Array(_))) {
                return fail("arrays of arrays do not exist".into());
            }
            field.default_value()?;
            self.validate_fields(&field.fields)?;
        }
        let count = u32::try_from(tags.len()).unwrap_or(u32::MAX);
        if tags.last().is_some_and(|last| *last + 1 != count) {
            let line = fields.first().map_or(self.line, |f| f.line);
            return Err(Error::at(line, "tags are numbered from 0 without gaps"));
        }
        Ok(())
    }

    /// Nesting must end: decoding recurses along the schema.
    fn check_recursion(&self) -> Result<(), Error> {
        fn visit<'m>(
            message: &'m Message,
            fields: &'m [Field],
            path: &mut Vec<&'m str>,
        ) -> Result<(), Error> {
            for field in fields {
                let Some(name) = field.ty.struct_name() else { continue };
                if path.contains(&name) {
                    return Err(Error::at(field.line, format!("struct {name} contains itself")));
                }
                path.push(name);
                visit(message, message.struct_fields(field), path)?;
                path.pop();
            }
            Ok(())
        }
        visit(self, &self.fields, &mut vec![&self.name])
    }

    /// The fields of the struct that `field` is or holds.
    pub(crate) fn struct_fields<'m>(&'m self, field: &'m Field) -> &'m [Field] {
        let name = field.ty.struct_name();
        match self.structs.iter().find(|s| Some(s.name.as_str()) == name) {
            Some(s) => &s.fields,
            None => &field.fields,
        }
    }
}

fn collect_inline<'m>(fields: &'m [Field], structs: &mut BTreeMap<&'m str, usize>) -> Result<(), Error> {
    for field in fields {
        if field.fields.is_empty() {
            continue;
        }
        let Some(name) = field.ty.struct_name() else {
            return Err(Error::at(field.line, format!("{} is no struct and has no fields", field.name)));
        };
        if structs.insert(name, field.line).is_some() {
            return Err(Error::at(field.line, format!("struct {name} is defined twice")));
        }
        collect_inline(&field.fields, structs)?;
    }
    Ok(())
}
