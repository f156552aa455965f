//! Results of a run that was ended early, or is to have more turns, from its JSON.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::figures::{FIGURES, Figures};
use super::report::{Measurement, Report};
use crate::brokers::Side;

/// Measurements by the name of their row.
pub type Measurements = BTreeMap<String, Vec<Measurement>>;

#[derive(Debug, Deserialize)]
struct StoredReport {
    format: u32,
    /// Earlier results, of one broker, have none.
    title: Option<String>,
    date: String,
    quick: bool,
    seconds: (f64, f64),
    machine: Value,
    versions: Value,
    rows: Vec<StoredRow>,
}

#[derive(Debug, Deserialize)]
struct StoredRow {
    name: String,
    measurements: Vec<StoredMeasurement>,
}

#[derive(Debug, Deserialize)]
struct StoredMeasurement {
    side: Side,
    pair: usize,
    figures: BTreeMap<String, f64>,
    error: Option<String>,
}

/// When the earlier run began, and what it measured; `None` if there is no such file. Failures are left out, to be
/// tried again.
///
/// # Errors
/// The file cannot be read, or has results of something else than `report` is about.
pub fn read(path: &Path, report: &Report) -> Result<Option<(String, Measurements)>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    parse(&text, report).with_context(|| format!("{} cannot be gone on with", path.display())).map(Some)
}

fn parse(text: &str, report: &Report) -> Result<(String, Measurements)> {
    let stored: StoredReport = serde_json::from_str(text)?;
    let same = [
        ("format", stored.format == report.format),
        ("table", stored.title.is_none_or(|title| title == report.title)),
        ("--quick", stored.quick == report.quick),
        ("--warm-up or --seconds", stored.seconds == report.seconds),
        ("machine", stored.machine == serde_json::to_value(&report.machine)?),
        ("versions", stored.versions == serde_json::to_value(&report.versions)?),
    ];
    let other: Vec<_> = same.iter().filter(|(_, same)| !same).map(|(what, _)| *what).collect();
    ensure!(other.is_empty(), "it was measured with another {}", other.join(", another "));
    let figures = |stored: BTreeMap<String, f64>| -> Figures {
        FIGURES.iter().filter_map(|figure| Some((figure.key, *stored.get(figure.key)?))).collect()
    };
    let rows = stored.rows.into_iter().map(|row| {
        let good = row.measurements.into_iter().filter(|it| it.error.is_none());
        let measured = good.map(|it| Measurement {
            side: it.side,
            pair: it.pair,
            figures: figures(it.figures),
            error: None,
        });
        (row.name, measured.collect())
    });
    Ok((stored.date, rows.collect()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::super::report::{RowReport, samples};
    use super::super::rows::ALONE;
    use super::*;

    #[test]
    fn what_was_measured_is_read_back_without_the_failures() {
        let good = samples::measurement(Side::Kafka, 2, &[("mb_per_s", 3.25)]);
        let failed = Measurement {
            error: Some("it ended".to_owned()),
            ..samples::measurement(Side::Millrace, 2, &[])
        };
        let report = samples::report(vec![RowReport::new(ALONE.rows[1], vec![failed, good])]);
        let (date, rows) = parse(&serde_json::to_string(&report).unwrap(), &report).unwrap();
        assert_eq!(date, report.date);
        let read = &rows[ALONE.rows[1].name];
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].side, read[0].pair, read[0].figures["mb_per_s"]), (Side::Kafka, 2, 3.25));
    }

    #[test]
    fn results_of_another_build_or_effort_are_not_mixed_in() {
        let mut report = samples::report(Vec::new());
        let text = serde_json::to_string(&report).unwrap();
        report.versions.insert("Kafka", "4.2.0".to_owned());
        report.seconds = (1.0, 3.0);
        let error = format!("{:#}", parse(&text, &report).unwrap_err());
        assert!(error.contains("--seconds") && error.contains("versions"), "{error}");
    }
}
