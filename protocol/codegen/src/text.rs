//! The compact schema format: one line per message, struct or field, nesting by indentation.
//!
//! ```text
//! # A comment. Two spaces per level of nesting.
//! request 1 FetchRequest versions=4-18 flexible=12+
//!   ReplicaId int32 0-14 default=-1
//!   Topics []FetchTopic
//!     Topic string 0-12 ignorable
//!     TopicId uuid 13+ ignorable
//!   ForgottenTopics []Forgotten 7+
//!   struct Forgotten 7+
//!     Topic string
//!
//! ## Documentation of the next message, struct or field.
//! record 3 PartitionRecord versions=0-1 flexible=0+
//!   Replicas []int32
//! ```
//!
//! A message line is `<kind> [key] <Name>` with kind `header`, `request`, `response`, `data` or `record` (keys for
//! requests, responses and records), then `versions=`, `flexible=` (default `none`), `unstable` (the newest version
//! is not final). A field line is `<Name> <type> [versions]`, versions being `0+` when absent, then any of
//! `nullable` (in all its versions) or `nullable=<versions>`, `tag=<number>`, `default=<value>` (`""` is the empty
//! string), `ignorable`, `mapkey`, `zerocopy`, `flexible=none`.
//! Types: `bool int8 int16 uint16 int32 uint32 int64 float64 uuid string bytes records`, a struct, `[]` of one.
//! A struct is defined by the fields below the one field that uses it, or by a `struct` line.

use std::fmt::Write as _;

use crate::Error;
use crate::schema::{Field, Kind, Message, Schema, Struct, Type, Versions, is_type_name};

const INDENT: usize = 2;

/// Reads a schema. The result still has to pass [`Schema::validate`].
///
/// # Errors
/// The first line that is not of the format.
pub fn parse(text: &str) -> Result<Schema, Error> {
    let mut lines = Lines::new(text)?;
    let mut schema = Schema::default();
    while let Some(line) = lines.next_at(0)? {
        schema.messages.push(parse_message(&line, &mut lines)?);
    }
    Ok(schema)
}

#[derive(Debug, Clone)]
struct Line<'t> {
    number: usize,
    depth: usize,
    words: Vec<&'t str>,
    docs: Vec<String>,
}

impl Line<'_> {
    fn fail<T>(&self, message: impl Into<String>) -> Result<T, Error> {
        Err(Error::at(self.number, message))
    }
}

/// The lines that mean something, in order.
struct Lines<'t> {
    lines: std::iter::Peekable<std::vec::IntoIter<Line<'t>>>,
}

impl<'t> Lines<'t> {
    fn new(text: &'t str) -> Result<Self, Error> {
        let mut lines = Vec::new();
        let mut docs = Vec::new();
        for (index, raw) in text.lines().enumerate() {
            let number = index + 1;
            let content = raw.trim_start_matches(' ');
            if let Some(doc) = content.strip_prefix("## ") {
                docs.push(doc.trim_end().to_owned());
                continue;
            }
            let content = content.split(" #").next().unwrap_or_default().trim_end();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let indent = raw.len() - raw.trim_start_matches(' ').len();
            if indent % INDENT != 0 || content.contains('\t') {
                return Err(Error::at(number, "indentation is two spaces per level"));
            }
            let words = content.split_whitespace().collect();
            lines.push(Line { number, depth: indent / INDENT, words, docs: std::mem::take(&mut docs) });
        }
        Ok(Self { lines: lines.into_iter().peekable() })
    }

    /// The next line if it stands at `depth`; `None` if it stands further out or the text ends.
    fn next_at(&mut self, depth: usize) -> Result<Option<Line<'t>>, Error> {
        match self.lines.peek() {
            Some(line) if line.depth > depth => line.fail("unexpected indentation"),
            Some(line) if line.depth == depth => Ok(self.lines.next()),
            _ => Ok(None),
        }
    }
}

fn parse_message(line: &Line<'_>, lines: &mut Lines<'_>) -> Result<Message, Error> {
    let Some(kind) = Kind::from_word(line.words[0]) else {
        return line.fail("a message starts with header, request, response, data or record");
    };
    let mut words = line.words[1..].iter().peekable();
    let key = words.peek().and_then(|word| word.parse::<i16>().ok());
    if key.is_some() {
        words.next();
    }
    let name = match words.next() {
        Some(name) if is_type_name(name) => (*name).to_owned(),
        _ => return line.fail("a message has a name in CamelCase"),
    };
    let mut message = Message {
        line: line.number,
        docs: line.docs.clone(),
        kind,
        name,
        key,
        versions: Versions::NONE,
        flexible: Versions::NONE,
        latest_unstable: false,
        fields: Vec::new(),
        structs: Vec::new(),
    };
    for word in words {
        match word.split_once('=') {
            Some(("versions", range)) => message.versions = parse_versions(line, range)?,
            Some(("flexible", range)) => message.flexible = parse_versions(line, range)?,
            None if *word == "unstable" => message.latest_unstable = true,
            _ => return line.fail(format!("unknown word `{word}` in a message line")),
        }
    }
    while let Some(child) = lines.next_at(1)? {
        if child.words[0] == "struct" {
            message.structs.push(parse_struct(&child, lines)?);
        } else {
            message.fields.push(parse_field(&child, lines)?);
        }
    }
    Ok(message)
}

fn parse_struct(line: &Line<'_>, lines: &mut Lines<'_>) -> Result<Struct, Error> {
    let (name, versions) = match line.words[1..] {
        [name] if is_type_name(name) => (name, Versions::ALL),
        [name, versions] if is_type_name(name) => (name, parse_versions(line, versions)?),
        _ => return line.fail("a struct line is `struct <Name> [versions]`"),
    };
    let fields = parse_fields(line.depth + 1, lines)?;
    Ok(Struct { line: line.number, docs: line.docs.clone(), name: name.to_owned(), versions, fields })
}

fn parse_fields(depth: usize, lines: &mut Lines<'_>) -> Result<Vec<Field>, Error> {
    let mut fields = Vec::new();
    while let Some(line) = lines.next_at(depth)? {
        fields.push(parse_field(&line, lines)?);
    }
    Ok(fields)
}

fn parse_field(line: &Line<'_>, lines: &mut Lines<'_>) -> Result<Field, Error> {
    let [name, ty, rest @ ..] = line.words.as_slice() else {
        return line.fail("a field line is `<Name> <type> [versions] …`");
    };
    if !is_type_name(name) {
        return line.fail(format!("`{name}` is no name in CamelCase"));
    }
    let Some(ty) = Type::parse(ty) else {
        return line.fail(format!("unknown type `{ty}`"));
    };
    let mut field = Field {
        line: line.number,
        docs: line.docs.clone(),
        name: (*name).to_owned(),
        ty,
        versions: Versions::ALL,
        nullable: Versions::NONE,
        tag: None,
        default: None,
        ignorable: false,
        map_key: false,
        zero_copy: false,
        flexible: None,
        fields: Vec::new(),
    };
    for (position, word) in rest.iter().enumerate() {
        match word.split_once('=') {
            Some(("nullable", range)) => field.nullable = parse_versions(line, range)?,
            Some(("tag", tag)) => match tag.parse() {
                Ok(tag) => field.tag = Some((tag, field.versions)),
                Err(_) => return line.fail(format!("`{tag}` is no tag number")),
            },
            Some(("default", "\"\"")) => field.default = Some(String::new()),
            Some(("default", value)) if !value.is_empty() => field.default = Some(value.to_owned()),
            Some(("flexible", range)) => field.flexible = Some(parse_versions(line, range)?),
            None if *word == "nullable" => field.nullable = field.versions,
            None if *word == "ignorable" => field.ignorable = true,
            None if *word == "mapkey" => field.map_key = true,
            None if *word == "zerocopy" => field.zero_copy = true,
            None if position == 0 && word.starts_with(|c: char| c.is_ascii_digit()) => {
                field.versions = parse_versions(line, word)?;
            }
            _ => return line.fail(format!("unknown word `{word}` in a field line")),
        }
    }
    field.fields = parse_fields(line.depth + 1, lines)?;
    Ok(field)
}

fn parse_versions(line: &Line<'_>, text: &str) -> Result<Versions, Error> {
    match Versions::parse(text) {
        Some(versions) => Ok(versions),
        None => line.fail(format!("`{text}` is no version range")),
    }
}

/// Writes a schema in the format that [`parse`] reads.
pub fn print(schema: &Schema) -> String {
    let mut out = String::new();
    for message in &schema.messages {
        if !out.is_empty() {
            out.push('\n');
        }
        print_docs(&mut out, 0, &message.docs);
        out.push_str(message.kind.word());
        if let Some(key) = message.key {
            let _ = write!(out, " {key}");
        }
        let _ = write!(out, " {} versions={}", message.name, message.versions);
        if !message.flexible.is_empty() {
            let _ = write!(out, " flexible={}", message.flexible);
        }
        if message.latest_unstable {
            out.push_str(" unstable");
        }
        out.push('\n');
        print_fields(&mut out, 1, &message.fields);
        for s in &message.structs {
            print_docs(&mut out, 1, &s.docs);
            let _ = write!(out, "  struct {}", s.name);
            if s.versions != Versions::ALL {
                let _ = write!(out, " {}", s.versions);
            }
            out.push('\n');
            print_fields(&mut out, 2, &s.fields);
        }
    }
    out
}

fn print_docs(out: &mut String, depth: usize, docs: &[String]) {
    for doc in docs {
        let _ = writeln!(out, "{:1$}## {doc}", "", depth * INDENT);
    }
}

fn print_fields(out: &mut String, depth: usize, fields: &[Field]) {
    for field in fields {
        print_docs(out, depth, &field.docs);
        let _ = write!(out, "{:1$}{2} {3}", "", depth * INDENT, field.name, field.ty);
        if field.versions != Versions::ALL {
            let _ = write!(out, " {}", field.versions);
        }
        if field.nullable == field.versions {
            out.push_str(" nullable");
        } else if field.is_nullable() {
            let _ = write!(out, " nullable={}", field.nullable);
        }
        if let Some((tag, _)) = field.tag {
            let _ = write!(out, " tag={tag}");
        }
        match field.default.as_deref() {
            Some("") => out.push_str(" default=\"\""),
            Some(value) => {
                let _ = write!(out, " default={value}");
            }
            None => {}
        }
        for (set, word) in
            [(field.ignorable, "ignorable"), (field.map_key, "mapkey"), (field.zero_copy, "zerocopy")]
        {
            if set {
                let _ = write!(out, " {word}");
            }
        }
        if let Some(flexible) = field.flexible {
            let _ = write!(out, " flexible={flexible}");
        }
        out.push('\n');
        print_fields(out, depth + 1, &field.fields);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    const EXAMPLE: &str = "\
## Asks for records.
request 1 FetchRequest versions=4-18 flexible=12+ unstable
  ClusterId string 12+ nullable tag=0 default=null ignorable
  ReplicaId int32 0-14 default=-1
  Rack string 11+ nullable=12+ default=\"\"
  Topics []FetchTopic
    Topic string 0-12 ignorable mapkey
    ## Since the beginning.
    Data bytes zerocopy flexible=none
  Forgotten []Cursor 7+
  struct Cursor 7+
    Topic string
";

    #[test]
    fn printing_gives_back_what_was_read() {
        let schema = parse(EXAMPLE).unwrap();
        schema.validate().unwrap();
        assert_eq!(print(&schema), EXAMPLE);
    }

    #[test]
    fn comments_and_blank_lines_mean_nothing() {
        let schema = parse("# head\n\ndata A versions=0 # tail\n\n  # between\n  B int8\n").unwrap();
        assert_eq!(schema.messages[0].fields[0].name, "B");
        assert_eq!(schema.messages[0].fields[0].line, 6);
    }

    #[test]
    fn mistakes_are_reported_with_their_line() {
        for (text, expected) in [
            ("data A versions=0\n   B int8\n", "line 2: indentation is two spaces per level"),
            ("data A versions=0\n    B int8\n", "line 2: unexpected indentation"),
            (
                "table A versions=0\n",
                "line 1: a message starts with header, request, response, data or record",
            ),
            ("data A versions=0\n  B int7\n", "line 2: unknown type `int7`"),
            ("data A versions=0\n  B int8 3-1\n", "line 2: `3-1` is no version range"),
            ("data A versions=0\n\n  B int8 optional\n", "line 3: unknown word `optional` in a field line"),
            ("data A versions=0\n  B int8 nullable\n", "line 2: B: a field of type int8 cannot be null"),
            (
                "data A versions=0\n  B int8 default=300\n",
                "line 2: `300` is no default for a field of type int8",
            ),
            ("data A versions=0\n  B int8\n  B int8\n", "line 3: B: the field is defined twice"),
            (
                "data A versions=0\n  B C\n",
                "line 2: B: C has no fields here and is no `struct` of the message",
            ),
            ("data A versions=0+\n  B int8\n", "line 1: A: the valid versions must be a closed range"),
            (
                "data A versions=0-1\n  B int8 1+ tag=0\n",
                "line 2: B: tagged fields exist in flexible versions only",
            ),
            ("data A versions=0\n  B C\n  struct C\n    D []C\n", "line 4: struct C contains itself"),
            ("request 1 A versions=0\n", "line 1: A: the name of a request ends with Request"),
            ("data A versions=0\ndata A versions=0\n", "line 2: message A is defined twice"),
        ] {
            let error = parse(text).and_then(|schema| schema.validate()).unwrap_err();
            assert_eq!(error.to_string(), expected, "for {text:?}");
        }
    }
}
