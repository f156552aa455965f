//! Kubernetes quantities (`10Gi`, `500m`): only what is needed to compare two of them.
//!
//! The API server rewrites quantities to a form of its own, so comparing their text would see a change where there is
//! none.

/// Value of a quantity in nano units, or `None` where `text` is not one or is too large to matter.
pub fn parse(text: &str) -> Option<i128> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    // Nine digits are a nano unit; what lies beyond is rounded up, as the API server does.
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let rest = fraction.chars().skip(9).any(|digit| digit != '0');
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let nano = whole.checked_mul(1_000_000_000)?.checked_add(digits.parse().ok()?)? + i128::from(rest);
    let (multiplier, divisor) = scale(suffix)?;
    Some((nano.checked_mul(multiplier)? + divisor - 1) / divisor)
}

/// Whether both are quantities and equal, whatever their form.
pub fn equal(left: &str, right: &str) -> bool {
    parse(left).is_some_and(|value| parse(right) == Some(value))
}

fn scale(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_the_same_value_are_equal() {
        for (left, right) in [
            ("1", "1000m"),
            ("0.5", "500m"),
            ("1Gi", "1024Mi"),
            ("1e3", "1k"),
            ("1.5Gi", "1536Mi"),
            (".5", "500m"),
        ] {
            assert!(equal(left, right), "{left} {right}");
        }
    }

    #[test]
    fn order_follows_the_value_and_not_the_text() {
        assert!(parse("9Gi") < parse("10Gi"));
        assert!(parse("1G") < parse("1Gi"));
    }

    #[test]
    fn what_is_no_quantity_has_no_value() {
        for text in ["", "Gi", "1.2.3", "ten", "1 Gi", "-1", "1Xi"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert!(!equal("x", "x"));
    }
}
