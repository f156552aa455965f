//! Types of values, and checks on them, as the registry of keys states them.

/// Type of a key's values; the same set as Kafka's, and told to clients by DescribeConfigs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Boolean,
    /// Any text.
    String,
    /// 32-bit number.
    Int,
    /// 16-bit number.
    Short,
    /// 64-bit number.
    Long,
    /// Floating-point number.
    Double,
    /// Texts with commas between them.
    List,
    /// A secret: stored, and never shown.
    Password,
}

/// What a value must satisfy beyond its type.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    /// Nothing.
    Any,
    /// Not below this number.
    AtLeast(i64),
    /// A number of this range, both ends included.
    Between(i64, i64),
    /// A number of this range, or -1 for the codec's own default.
    BetweenOrDefault(i64, i64),
    /// A number from 0 to 1.
    Ratio,
    /// Text that is not empty.
    NotEmpty,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// A list of which every element is one of these; what is named twice counts once.
    ListOf(&'static [&'static str]),
    /// `partition:broker` pairs, or `*` for all replicas.
    ThrottledReplicas,
    /// Nothing but `false`, for the reason stated: the feature does not exist here.
    OnlyFalse(&'static str),
}

/// Checks `value` and brings it to the form in which it is shown: trimmed, numbers and booleans in plain spelling.
pub(super) fn canonical(kind: Kind, check: Check, value: &str) -> Result<String, String> {
    let text = value.trim();
    let shown = match kind {
        Kind::Boolean => match text.to_ascii_lowercase().as_str() {
            "true" => "true".to_owned(),
            "false" => "false".to_owned(),
            _ => return Err(format!("{value:?} is neither true nor false")),
        },
        Kind::Int => integer(text, i32::MIN.into(), i32::MAX.into())?.to_string(),
        Kind::Short => integer(text, i16::MIN.into(), i16::MAX.into())?.to_string(),
        Kind::Long => integer(text, i64::MIN, i64::MAX)?.to_string(),
        Kind::Double => {
            let number: f64 = text.parse().map_err(|_| format!("{value:?} is not a number"))?;
            // Java's spelling of a whole double, which clients compare.
            if number.abs() >= 1e7 {
                let text = format!("{number:E}");
                if text.contains('.') { text } else { text.replacen('E', ".0E", 1) }
            } else if number.fract() == 0.0 {
                format!("{number:.1}")
            } else {
                number.to_string()
            }
        }
        Kind::List => {
            let mut distinct: Vec<&str> = Vec::new();
            for element in elements(text) {
                if !distinct.contains(&element) {
                    distinct.push(element);
                }
            }
            distinct.join(",")
        }
        Kind::String | Kind::Password => text.to_owned(),
    };
    check_value(check, &shown)?;
    Ok(shown)
}

/// Elements of a list value; none for empty text.
pub(super) fn elements(text: &str) -> Vec<&str> {
    let text = text.trim();
    if text.is_empty() { Vec::new() } else { text.split(',').map(str::trim).collect() }
}

fn integer(text: &str, min: i64, max: i64) -> Result<i64, String> {
    let number: i64 = text.parse().map_err(|_| format!("{text:?} is not a whole number"))?;
    if (min..=max).contains(&number) {
        Ok(number)
    } else {
        Err(format!("{number} does not fit; it must be from {min} to {max}"))
    }
}

/// Checks a value that already has canonical form.
fn check_value(check: Check, value: &str) -> Result<(), String> {
    let number = || value.parse::<i64>().unwrap_or(i64::MIN);
    match check {
        Check::Any => Ok(()),
        Check::AtLeast(min) if number() >= min => Ok(()),
        Check::AtLeast(min) => Err(format!("{value} is too small; it must be {min} or more")),
        Check::Between(min, max) if (min..=max).contains(&number()) => Ok(()),
        Check::Between(min, max) => Err(format!("{value} is out of range; it must be from {min} to {max}")),
        Check::BetweenOrDefault(min, max) if number() == -1 || (min..=max).contains(&number()) => Ok(()),
        Check::BetweenOrDefault(min, max) => {
            Err(format!("{value} is out of range; it must be from {min} to {max}, or -1"))
        }
        Check::Ratio => match value.parse::<f64>() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(()),
            _ => Err(format!("{value} is out of range; it must be from 0 to 1")),
        },
        Check::NotEmpty if value.is_empty() => Err("the value is empty".to_owned()),
        Check::NotEmpty => Ok(()),
        Check::OneOf(allowed) if allowed.contains(&value) => Ok(()),
        Check::OneOf(allowed) => Err(format!("{value:?} is none of {}", allowed.join(", "))),
        Check::ListOf(allowed) => list_of(allowed, &elements(value)),
        Check::ThrottledReplicas => throttled_replicas(&elements(value)),
        Check::OnlyFalse(_) if value == "false" => Ok(()),
        Check::OnlyFalse(reason) => Err(reason.to_owned()),
    }
}

fn list_of(allowed: &[&str], elements: &[&str]) -> Result<(), String> {
    match elements.iter().find(|element| !allowed.contains(element)) {
        Some(element) => Err(format!("{element:?} is none of {}", allowed.join(", "))),
        None => Ok(()),
    }
}

fn throttled_replicas(elements: &[&str]) -> Result<(), String> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_pair = |element: &str| element.split_once(':').is_some_and(|(p, b)| is_number(p) && is_number(b));
    if elements == ["*"] || elements.iter().all(|element| is_pair(element)) {
        Ok(())
    } else {
        Err("expected * or partition:broker pairs such as 0:101,1:102".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(kind: Kind, check: Check, value: &str) -> Option<String> {
        canonical(kind, check, value).ok()
    }

    #[test]
    fn brings_values_to_the_spelling_that_kafka_shows() {
        assert_eq!(ok(Kind::Boolean, Check::Any, " TRUE "), Some("true".to_owned()));
        assert_eq!(ok(Kind::Long, Check::Any, " 007 "), Some("7".to_owned()));
        assert_eq!(ok(Kind::Double, Check::Ratio, "1"), Some("1.0".to_owned()));
        assert_eq!(ok(Kind::Double, Check::Ratio, "0.25"), Some("0.25".to_owned()));
        assert_eq!(ok(Kind::Double, Check::Any, "20000000"), Some("2.0E7".to_owned()));
        assert_eq!(ok(Kind::Double, Check::Any, "12345678.5"), Some("1.23456785E7".to_owned()));
        assert_eq!(ok(Kind::List, Check::Any, " a , b "), Some("a,b".to_owned()));
    }

    #[test]
    fn refuses_values_of_another_type() {
        assert_eq!(ok(Kind::Boolean, Check::Any, "yes"), None);
        assert_eq!(ok(Kind::Int, Check::Any, "9999999999"), None);
        assert_eq!(ok(Kind::Short, Check::Any, "40000"), None);
        assert_eq!(ok(Kind::Long, Check::Any, "1s"), None);
        assert_eq!(ok(Kind::Long, Check::Any, ""), None);
    }

    #[test]
    fn refuses_values_out_of_range() {
        assert_eq!(ok(Kind::Long, Check::AtLeast(-1), "-2"), None);
        assert_eq!(ok(Kind::Int, Check::BetweenOrDefault(1, 9), "0"), None);
        assert_eq!(ok(Kind::Int, Check::BetweenOrDefault(1, 9), "-1"), Some("-1".to_owned()));
        assert_eq!(ok(Kind::Double, Check::Ratio, "1.5"), None);
        assert_eq!(ok(Kind::Double, Check::Ratio, "NaN"), None);
        assert_eq!(ok(Kind::Boolean, Check::OnlyFalse("not here"), "true"), None);
    }

    #[test]
    fn checks_lists_element_by_element() {
        let policies = Check::ListOf(&["compact", "delete"]);
        assert_eq!(ok(Kind::List, policies, "compact, delete"), Some("compact,delete".to_owned()));
        assert_eq!(ok(Kind::List, policies, "compact,compact"), Some("compact".to_owned()));
        assert_eq!(ok(Kind::List, policies, "compact,"), None);
        assert_eq!(ok(Kind::List, policies, ""), Some(String::new()));
        assert_eq!(ok(Kind::List, policies, "Compact"), None);
        assert_eq!(ok(Kind::List, Check::ThrottledReplicas, "*"), Some("*".to_owned()));
        assert_eq!(ok(Kind::List, Check::ThrottledReplicas, "0:1,1:2"), Some("0:1,1:2".to_owned()));
        assert_eq!(ok(Kind::List, Check::ThrottledReplicas, "0:1,x"), None);
    }
}
