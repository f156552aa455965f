//! Results as JSON and as Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::figures::{FIGURES, Figures};
use super::machine::Machine;
use super::rows::{Headline, Row};
use crate::brokers::Side;
use crate::stats::Spread;

/// Share of a core that others took, above which a row is said to be disturbed.
const DISTURBED: f64 = 0.05;

/// All that a comparison found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Of this structure.
    pub format: u32,
    /// What is compared.
    pub title: &'static str,
    /// What a reader has to know about it.
    pub note: &'static str,
    /// When it began.
    pub date: String,
    /// Whether it is the short form.
    pub quick: bool,
    /// False in what is written while it runs.
    pub complete: bool,
    /// Seconds of warm-up and of measurement.
    pub seconds: (f64, f64),
    /// Where.
    pub machine: Machine,
    /// Of what.
    pub versions: BTreeMap<&'static str, String>,
    /// Results.
    pub rows: Vec<RowReport>,
}

/// Results of one row.
#[derive(Debug, Serialize)]
pub struct RowReport {
    /// What was done.
    #[serde(flatten)]
    pub row: Row,
    /// Every measurement, in the order in which they were made.
    pub measurements: Vec<Measurement>,
    /// Medians at our broker, and smallest and largest.
    pub millrace: BTreeMap<&'static str, Spread>,
    /// The same at Kafka.
    pub kafka: BTreeMap<&'static str, Spread>,
    /// Our median divided by Kafka's.
    pub ratio: BTreeMap<&'static str, f64>,
}

/// One row at one broker, once.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    /// Which broker.
    pub side: Side,
    /// Which turn, from 1.
    pub pair: usize,
    /// What was found.
    pub figures: Figures,
    /// Why nothing was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl RowReport {
    /// Medians and ratios of measurements.
    pub fn new(row: Row, measurements: Vec<Measurement>) -> Self {
        let spreads = |side| -> BTreeMap<&'static str, Spread> {
            let values = |key| {
                let of_side = measurements.iter().filter(|measurement| measurement.side == side);
                of_side.filter_map(|measurement| measurement.figures.get(key).copied()).collect()
            };
            FIGURES.iter().filter_map(|figure| Some((figure.key, Spread::of(values(figure.key))?))).collect()
        };
        let (millrace, kafka) = (spreads(Side::Millrace), spreads(Side::Kafka));
        let ratio = millrace.iter().filter_map(|(&key, ours)| {
            let theirs = kafka.get(key)?.median;
            (theirs > 0.0).then(|| (key, ours.median / theirs))
        });
        let ratio = ratio.collect();
        Self { row, measurements, millrace, kafka, ratio }
    }

    fn medians(&self, key: &str, digits: usize) -> [String; 3] {
        let show = |spread: Option<&Spread>| spread.map_or("–".to_owned(), |s| number(s.median, digits));
        [show(self.millrace.get(key)), show(self.kafka.get(key)), ratio(self.ratio.get(key))]
    }

    fn is_disturbed(&self) -> bool {
        let most =
            [&self.millrace, &self.kafka].map(|s| s.get("other_share").map_or(0.0, |spread| spread.max));
        most.into_iter().fold(0.0, f64::max) > DISTURBED
    }
}

impl Report {
    /// The whole report in Markdown.
    pub fn markdown(&self) -> String {
        let parts = [self.introduction(), self.goals(), self.summary(), self.across(), self.details()];
        parts.join("\n")
    }

    fn introduction(&self) -> String {
        let machine = &self.machine;
        let versions: Vec<_> =
            self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let mut text = format!(
            "# {}\n\n{}: {} cores of {}, {} GB, Linux {}, {}. {}.\n\
             Medians of {} measurement(s) each, of {} s after at most {} s of warm-up; the ratio is Millrace / Kafka.\n",
            self.title,
            self.date,
            machine.cores,
            machine.cpu,
            machine.memory_gb,
            machine.kernel,
            machine.file_system,
            versions.join(", "),
            self.turns(),
            self.seconds.1,
            self.seconds.0,
        );
        if !self.note.is_empty() {
            let _ = writeln!(text, "\n{}", self.note);
        }
        let disturbed: Vec<_> =
            self.rows.iter().filter(|row| row.is_disturbed()).map(|row| row.row.name).collect();
        if !disturbed.is_empty() {
            let _ = writeln!(
                text,
                "\n**Disturbed** (something else took more than {DISTURBED} of a core): {}.",
                disturbed.join(", ")
            );
        }
        text
    }

    /// What was to be reached, and whether it was.
    fn goals(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            for goal in row.row.goals {
                let Some(figure) = FIGURES.iter().find(|figure| figure.key == goal.key) else { continue };
                let (ours, theirs) = (row.millrace.get(goal.key), row.kafka.get(goal.key));
                let outcome = goal.outcome(ours.map(|it| it.median), theirs.map(|it| it.median));
                let (ours, theirs) = (spread(ours, figure.digits), spread(theirs, figure.digits));
                let _ = writeln!(
                    text,
                    "| {} | {} | {ours} | {theirs} | {} | {goal} | {outcome} |",
                    row.row.name,
                    figure.title,
                    ratio(row.ratio.get(goal.key)),
                );
            }
        }
        if text.is_empty() {
            return text;
        }
        format!(
            "| row | figure | Millrace | Kafka | ratio | goal | reached |\n|---|---|--:|--:|--:|--:|---|\n{text}"
        )
    }

    /// How many measurements the rows have at each broker: "5", or "3 to 5".
    fn turns(&self) -> String {
        let counts = self.rows.iter().flat_map(|row| {
            Side::BOTH.map(|side| row.measurements.iter().filter(|it| it.side == side).count())
        });
        let (least, most) = counts.fold((usize::MAX, 0), |(least, most), n| (least.min(n), most.max(n)));
        if least < most { format!("{least} to {most}") } else { most.to_string() }
    }

    /// What an fsync before each acknowledgement costs us, against Kafka, which by default has none.
    fn across(&self) -> String {
        let mut text = String::new();
        for ours in &self.rows {
            let Some(load) = ours.row.name.strip_suffix("-fsync") else { continue };
            let theirs = self.rows.iter().find(|row| row.row.name.strip_suffix("-written") == Some(load));
            let Some(theirs) = theirs else { continue };
            let cells = [
                ("mb_per_s", 1),
                ("requests_per_s", 0),
                ("cpu_s_per_gb", 2),
                ("cpu_s_per_m_requests", 1),
                ("open_p99_us", 0),
            ]
            .map(|(key, digits)| {
                let (ours, theirs) = (ours.millrace.get(key), theirs.kafka.get(key));
                let (Some(ours), Some(theirs)) = (ours, theirs) else { return "–".to_owned() };
                let (ours, theirs) = (ours.median, theirs.median);
                format!(
                    "{} / {} = {}",
                    number(ours, digits),
                    number(theirs, digits),
                    ratio(Some(&(ours / theirs)))
                )
            });
            let _ = writeln!(text, "| {load} | {} |", cells.join(" | "));
        }
        if text.is_empty() {
            return text;
        }
        format!(
            "Millrace with an fsync before each acknowledgement / Kafka without:\n\n\
             | load | MB/s | requests/s | CPU s/GB | CPU s/M requests | p99 µs at a fixed rate |\n\
             |---|--:|--:|--:|--:|--:|\n{text}"
        )
    }

    /// One line per row.
    fn summary(&self) -> String {
        let mut text = String::from(
            "| row | unit | Millrace | Kafka | ratio | CPU unit | Millrace | Kafka | ratio | p99 µs at a fixed rate: Millrace | Kafka | ratio \
             | memory MB: Millrace | Kafka | ratio |\n|---|---|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        );
        for row in &self.rows {
            let (rate, cpu) = match row.row.headline {
                Headline::Bytes => (("MB/s", "mb_per_s", 1), ("s/GB", "cpu_s_per_gb", 2)),
                Headline::Requests => {
                    (("req/s", "requests_per_s", 0), ("s/M req", "cpu_s_per_m_requests", 1))
                }
                Headline::Footprint => (("", "", 0), ("", "", 0)),
            };
            let cells = [
                vec![row.row.name.to_owned(), rate.0.to_owned()],
                row.medians(rate.1, rate.2).to_vec(),
                vec![cpu.0.to_owned()],
                row.medians(cpu.1, cpu.2).to_vec(),
                row.medians("open_p99_us", 0).to_vec(),
                row.medians("resident_mb", 0).to_vec(),
            ];
            let _ = writeln!(text, "| {} |", cells.concat().join(" | "));
        }
        text
    }

    /// Every figure of every row.
    fn details(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let _ = writeln!(
                text,
                "## {}\n\n| figure | Millrace | Kafka | ratio |\n|---|--:|--:|--:|",
                row.row.name
            );
            for figure in FIGURES {
                let (ours, theirs) = (row.millrace.get(figure.key), row.kafka.get(figure.key));
                if ours.is_some() || theirs.is_some() {
                    let (ours, theirs) = (spread(ours, figure.digits), spread(theirs, figure.digits));
                    let ratio = ratio(row.ratio.get(figure.key));
                    let _ = writeln!(text, "| {} | {ours} | {theirs} | {ratio} |", figure.title);
                }
            }
            for (measurement, error) in row.measurements.iter().filter_map(|m| Some((m, m.error.as_ref()?))) {
                let _ = writeln!(text, "\n{}, turn {}, failed: {error}", measurement.side, measurement.pair);
            }
            text.push('\n');
        }
        text
    }
}

fn spread(spread: Option<&Spread>, digits: usize) -> String {
    let Some(spread) = spread else { return "–".to_owned() };
    let (median, min, max) =
        (number(spread.median, digits), number(spread.min, digits), number(spread.max, digits));
    if min == max { median } else { format!("{median} ({min}–{max})") }
}

fn ratio(ratio: Option<&f64>) -> String {
    ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}×"))
}

/// With digits behind the point, and a comma every three digits before it.
fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(w, f)| (w, Some(f)));
    let mut grouped = String::new();
    for (n, digit) in whole.chars().enumerate() {
        let left = whole.len() - n;
        if n > 0 && left % 3 == 0 && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    fraction.map_or(grouped.clone(), |fraction| format!("{grouped}.{fraction}"))
}

#[cfg(test)]
pub(super) mod samples {
    use super::*;

    pub(crate) fn measurement(side: Side, pair: usize, figures: &[(&'static str, f64)]) -> Measurement {
        Measurement { side, pair, figures: figures.iter().copied().collect(), error: None }
    }

    pub(crate) fn report(rows: Vec<RowReport>) -> Report {
        Report {
            format: 1,
            title: "Brokers",
            note: "",
            date: "2026-01-01".to_owned(),
            quick: false,
            complete: true,
            seconds: (1.0, 2.0),
            machine: Machine {
                cores: 2,
                cpu: "A CPU".to_owned(),
                kernel: "6.1".to_owned(),
                memory_gb: 8.0,
                file_system: "ext4".to_owned(),
            },
            versions: BTreeMap::from([("Kafka", "4.3.1".to_owned())]),
            rows,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::super::rows::{ALONE, FLEET};
    use super::samples::{measurement, report};
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let shown = [(0.0, 0), (999.6, 0), (1234.56, 1), (1_234_567.0, 0), (-1234.0, 0), (-123.0, 0)];
        let shown = shown.map(|(value, digits)| number(value, digits));
        assert_eq!(shown, ["0", "1,000", "1,234.6", "1,234,567", "-1,234", "-123"]);
    }

    #[test]
    fn rows_show_medians_spread_and_ratio() {
        let measurements = vec![
            measurement(Side::Millrace, 1, &[("mb_per_s", 300.0), ("cpu_s_per_gb", 1.0)]),
            measurement(Side::Kafka, 1, &[("mb_per_s", 100.0)]),
            measurement(Side::Millrace, 2, &[("mb_per_s", 200.0)]),
            measurement(Side::Kafka, 2, &[("mb_per_s", 100.0)]),
            measurement(Side::Millrace, 3, &[("mb_per_s", 1000.0)]),
        ];
        let row = RowReport::new(ALONE.rows[0], measurements);
        assert_eq!(row.ratio, BTreeMap::from([("mb_per_s", 3.0)]));
        let text = report(vec![row]).markdown();
        let name = ALONE.rows[0].name;
        assert!(
            text.contains(&format!("| {name} | MB/s | 300.0 | 100.0 | 3.00× | s/GB | 1.00 | – | – | – |")),
            "{text}"
        );
        assert!(text.contains("| MB/s | 300.0 (200.0–1,000.0) | 100.0 | 3.00× |"), "{text}");
        assert!(!text.contains("Disturbed"));
    }

    #[test]
    fn rows_that_differ_in_durability_only_are_compared_across() {
        let row = |name, side, figures: &[(&'static str, f64)]| {
            let row = ALONE.rows.iter().find(|row| row.name == name).copied().unwrap_or(ALONE.rows[0]);
            RowReport::new(row, vec![measurement(side, 1, figures)])
        };
        let ours = row("single-1c-fsync", Side::Millrace, &[("requests_per_s", 3_000.0)]);
        let theirs = row("single-1c-written", Side::Kafka, &[("requests_per_s", 2_000.0)]);
        let text = report(vec![ours, theirs]).across();
        assert!(text.contains("| single-1c | – | 3,000 / 2,000 = 1.50× | – | – | – |"), "{text}");
        let alone = row("single-1c-fsync", Side::Millrace, &[("requests_per_s", 3_000.0)]);
        assert_eq!(report(vec![alone]).across(), "");
    }

    #[test]
    fn goals_are_shown_with_whether_they_were_reached() {
        let row = FLEET.rows.iter().find(|row| row.name == "rf3-rate").copied().unwrap();
        let measurements = vec![
            measurement(Side::Millrace, 1, &[("open_p99_us", 1_000.0)]),
            measurement(Side::Kafka, 1, &[("open_p99_us", 4_000.0)]),
        ];
        let text = report(vec![RowReport::new(row, measurements)]).goals();
        assert!(
            text.contains("| rf3-rate | open loop: p99 µs | 1,000 | 4,000 | 0.25× | ≤ 0.50× | yes |"),
            "{text}"
        );
        assert_eq!(report(vec![RowReport::new(ALONE.rows[0], Vec::new())]).goals(), "");
    }

    #[test]
    fn failures_and_disturbance_are_said() {
        let mut failed = measurement(Side::Kafka, 1, &[]);
        failed.error = Some("it ended".to_owned());
        let measurements = vec![measurement(Side::Millrace, 1, &[("other_share", 0.4)]), failed];
        let text = report(vec![RowReport::new(ALONE.rows[0], measurements)]).markdown();
        assert!(text.contains("Kafka, turn 1, failed: it ended"), "{text}");
        assert!(text.contains("**Disturbed**"), "{text}");
    }
}
