//! What is wrong with a configuration, in words that say what to change.

use std::fmt::{self, Write as _};

/// One mistake. A file is read to its end, so that all of them are reported at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Line of the file, from 1, where it can be said.
    pub line: Option<usize>,
    /// Key that the mistake is about, if it is about one.
    pub key: Option<String>,
    /// What is wrong, and what to do.
    pub message: String,
}

impl ConfigError {
    pub(super) fn of_key(key: &str, message: impl Into<String>) -> Self {
        Self { line: None, key: Some(key.to_owned()), message: message.into() }
    }

    pub(super) fn of_line(line: usize, message: impl Into<String>) -> Self {
        Self { line: Some(line), key: None, message: message.into() }
    }

    pub(super) fn at(mut self, line: usize) -> Self {
        self.line = Some(line);
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

/// All mistakes as one text for people, one a line.
pub fn report(errors: &[ConfigError]) -> String {
    let mut text = match errors.len() {
        1 => "the configuration has a mistake:".to_owned(),
        n => format!("the configuration has {n} mistakes:"),
    };
    for error in errors {
        let _ = write!(text, "\n  {error}");
    }
    text
}
