//! Reader of `.properties` text, the format of Kafka's `server.properties`.
//!
//! Takes `key=value`, `key:value` and `key value`, comments with `#` or `!`, a backslash at the end of a line to go on
//! in the next one, and the escapes of `java.util.Properties`. A key that is given again replaces what was there, so
//! that a file can end with overrides. `${env:NAME}` in a value stands for an environment variable.

use super::error::ConfigError;

/// Longest text that is read: a configuration is a few kilobytes, anything near this is some other file.
const MAX_TEXT_LEN: usize = 1 << 20;
/// Most entries of one file.
const MAX_ENTRIES: usize = 4096;

/// One entry of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Property {
    pub(super) key: String,
    pub(super) value: String,
    /// Line that the entry starts on, from 1.
    pub(super) line: usize,
}

/// Entries of `text` in file order; `env` looks up environment variables.
pub(super) fn parse(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Property>, Vec<ConfigError>> {
    if text.len() > MAX_TEXT_LEN {
        let message = format!(
            "the file has {} bytes; a configuration of more than {MAX_TEXT_LEN} bytes is not read, check the path",
            text.len()
        );
        return Err(vec![ConfigError { line: None, key: None, message }]);
    }
    let mut properties: Vec<Property> = Vec::new();
    let mut errors = Vec::new();
    for (line, logical) in logical_lines(text) {
        if properties.len() == MAX_ENTRIES {
            errors.push(ConfigError::of_line(line, format!("more than {MAX_ENTRIES} entries are not read")));
            break;
        }
        match entry(&logical).and_then(|(key, value)| Ok((key, substitute(&value, env)?))) {
            Ok((key, value)) => {
                properties.retain(|property| property.key != key);
                properties.push(Property { key, value, line });
            }
            Err(message) => errors.push(ConfigError::of_line(line, message)),
        }
    }
    if errors.is_empty() { Ok(properties) } else { Err(errors) }
}

/// Lines with their continuations joined, without comments and blank lines.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut out: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start_matches([' ', '\t', '\x0c']);
        if !open && (line.is_empty() || line.starts_with(['#', '!'])) {
            continue;
        }
        // An odd number of backslashes: the last one is not itself escaped.
        let continues = line.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1;
        let content = if continues { &line[..line.len() - 1] } else { line };
        match out.last_mut() {
            Some((_, last)) if open => last.push_str(content),
            _ => out.push((number, content.to_owned())),
        }
        open = continues;
    }
    out
}

/// Key and value of a logical line, unescaped.
fn entry(line: &str) -> Result<(String, String), String> {
    let mut escaped = false;
    let end = line
        .char_indices()
        .find(|(_, c)| {
            let ends = !escaped && matches!(c, '=' | ':' | ' ' | '\t' | '\x0c');
            escaped = *c == '\\' && !escaped;
            ends
        })
        .map_or(line.len(), |(at, _)| at);
    let (key, rest) = line.split_at(end);
    let rest = rest.trim_start_matches([' ', '\t', '\x0c']);
    let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest).trim_start_matches([' ', '\t', '\x0c']);
    let key = unescape(key)?;
    if key.is_empty() {
        return Err("a value without a key; write `key=value`".to_owned());
    }
    // Kafka trims values when it parses them; nothing here wants blanks at its end.
    Ok((key, unescape(rest)?.trim_end().to_owned()))
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('f') => out.push('\x0c'),
            Some('u') => {
                let digits: String = chars.by_ref().take(4).collect();
                let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 4);
                let character = code.and_then(char::from_u32).ok_or_else(|| {
                    format!("\\u{digits} is not a character; \\u takes four hexadecimal digits")
                })?;
                out.push(character);
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    Ok(out)
}

/// Replaces each `${env:NAME}`.
fn substitute(value: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    const OPEN: &str = "${env:";
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find(OPEN) {
        out.push_str(&rest[..at]);
        let inner = &rest[at + OPEN.len()..];
        let end = inner.find('}').ok_or("`${env:` is not closed; write `${env:NAME}`")?;
        let name = &inner[..end];
        let variable = env(name).ok_or_else(|| {
            format!("environment variable {name} is not set; set it for this process or write the value here")
        })?;
        out.push_str(&variable);
        rest = &inner[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, Vec<ConfigError>> {
        let env = |name: &str| (name == "HOST").then(|| "example.org".to_owned());
        Ok(parse(text, &env)?.into_iter().map(|property| (property.key, property.value)).collect())
    }

    fn one(text: &str) -> (String, String) {
        let mut all = read(text).unwrap();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn takes_all_three_separators() {
        assert_eq!(one("a.b=c"), pair("a.b", "c"));
        assert_eq!(one("a.b : c d"), pair("a.b", "c d"));
        assert_eq!(one("a.b   c=d"), pair("a.b", "c=d"));
        assert_eq!(one("a.b"), pair("a.b", ""));
    }

    #[test]
    fn skips_comments_and_blank_lines() {
        assert_eq!(one("# x=1\n\n  ! y=2\r\n\t\nz=3#4\r\n"), pair("z", "3#4"));
    }

    #[test]
    fn joins_continued_lines_and_drops_their_indent() {
        assert_eq!(one("a=1,\\\n    2,\\\r\n  3\n"), pair("a", "1,2,3"));
        assert_eq!(one("a=1\\\\"), pair("a", "1\\"));
    }

    #[test]
    fn understands_escapes() {
        assert_eq!(one(r"a\=b\ c=\u00e4\t\:"), pair("a=b c", "ä\t:"));
        assert!(read(r"a=\u12").is_err());
    }

    #[test]
    fn keeps_the_last_of_equal_keys() {
        assert_eq!(one("a=1\na=2"), pair("a", "2"));
    }

    #[test]
    fn substitutes_environment_variables_and_names_missing_ones() {
        assert_eq!(one("a=PLAIN://${env:HOST}:1"), pair("a", "PLAIN://example.org:1"));
        let errors = read("ok=1\na=${env:NOPE}\nb=${env:X").unwrap_err();
        assert_eq!(errors.len(), 2);
        assert_eq!(errors[0].line, Some(2));
        assert!(errors[0].message.contains("NOPE is not set"), "{}", errors[0]);
        assert!(errors[1].message.contains("not closed"), "{}", errors[1]);
    }

    #[test]
    fn refuses_a_huge_file_and_a_value_without_a_key() {
        assert!(read(&"#".repeat(MAX_TEXT_LEN + 1)).is_err());
        assert!(read("=x").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "(?s).{0,200}") {
            let _ = read(&text);
        }

        #[test]
        fn reads_plain_entries_back(key in "[a-z.]{1,20}", value in "[a-z0-9,/:=]{0,40}") {
            prop_assert_eq!(one(&format!("{key}={value}")), pair(&key, &value));
        }
    }
}
