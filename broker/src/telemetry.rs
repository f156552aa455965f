//! Log set-up.
//!
//! `MILLRACE_LOG` filters, in the syntax of `tracing-subscriber` (`info`, `millrace_broker::api=debug,warn`), default
//! `info,openraft=error`. `MILLRACE_LOG_FORMAT` is `text` (default) or `json`. Logs go to standard error.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

/// Variable that holds the filter.
pub const FILTER_VARIABLE: &str = "MILLRACE_LOG";
/// Variable that holds the format.
pub const FORMAT_VARIABLE: &str = "MILLRACE_LOG_FORMAT";

/// The consensus library tells at `info` what is for its own developers, and warns of each heartbeat that does not arrive.
const DEFAULT_FILTER: &str = "info,openraft=error";

/// Why logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("{FILTER_VARIABLE}={value:?} is not a filter: {reason}; try info or millrace_broker=debug,warn")]
    Filter {
        /// What was set.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The format is unknown.
    #[error("{FORMAT_VARIABLE}={0:?} is neither text nor json")]
    Format(String),
    /// Something else has set up logs in this process.
    #[error("logs are set up already")]
    AlreadySet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// Sets up logs for the whole process, once.
pub fn init(env: &dyn Fn(&str) -> Option<String>) -> Result<(), TelemetryError> {
    let (filter, format) = settings(env)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let result = match format {
        Format::Text => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        Format::Json => {
            builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
        }
    };
    result.map_err(|_| TelemetryError::AlreadySet)
}

fn settings(env: &dyn Fn(&str) -> Option<String>) -> Result<(EnvFilter, Format), TelemetryError> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    let value = set(FILTER_VARIABLE).unwrap_or_else(|| DEFAULT_FILTER.to_owned());
    let filter = EnvFilter::try_new(&value)
        .map_err(|error| TelemetryError::Filter { value: value.clone(), reason: error.to_string() })?;
    let format = match set(FORMAT_VARIABLE).as_deref() {
        None | Some("text") => Format::Text,
        Some("json") => Format::Json,
        Some(other) => return Err(TelemetryError::Format(other.to_owned())),
    };
    Ok((filter, format))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(filter: Option<&str>, format: Option<&str>) -> Result<(String, Format), String> {
        let env = |name: &str| match name {
            FILTER_VARIABLE => filter.map(str::to_owned),
            FORMAT_VARIABLE => format.map(str::to_owned),
            _ => None,
        };
        settings(&env).map(|(filter, format)| (filter.to_string(), format)).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_to_text_at_info() {
        let expected = (EnvFilter::new(DEFAULT_FILTER).to_string(), Format::Text);
        assert_eq!(read(None, None), Ok(expected.clone()));
        assert_eq!(read(Some(""), Some("")), Ok(expected));
    }

    #[test]
    fn takes_filter_and_format_from_the_environment() {
        assert_eq!(read(Some("warn"), Some("json")), Ok(("warn".to_owned(), Format::Json)));
    }

    #[test]
    fn says_what_is_wrong_with_them() {
        assert!(read(Some("a=b=c"), None).is_err_and(|error| error.contains("is not a filter")));
        assert!(read(None, Some("xml")).is_err_and(|error| error.contains("neither text nor json")));
    }
}
