//! `millrace-bench compare` and `fleet`: both brokers, or fleets of both, in turn, row by row.
//!
//! Each measurement has the machine for itself and begins with an empty folder, a broker that was just started, and no
//! dirty pages of the one before. Brokers run on one core, the load on another. The turns alternate, so that a machine
//! that slows down slows both.

pub mod earlier;
pub mod figures;
pub mod fleet;
pub mod goals;
pub mod java;
pub mod machine;
pub mod measure;
pub mod page_cache;
pub mod report;
pub mod rows;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use tempfile::TempDir;

use crate::brokers::{Brokers, Kafka, Millrace, Side};
use crate::children::{self, Children};
use earlier::Measurements;
use figures::{FIGURES, Figures};
use machine::Machine;
use measure::{Effort, measure};
use report::{Measurement, Report, RowReport};
use rows::{Headline, Row, Table};

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// A few rows, briefly: under three minutes.
    #[arg(long)]
    quick: bool,
    /// Rows to measure, instead of all; `--list` shows them.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    rows: Vec<String>,
    /// Measures one side alone.
    #[arg(long, value_name = "SIDE")]
    only: Option<Side>,
    /// Lists the rows and ends.
    #[arg(long)]
    list: bool,
    /// Measurements of each row at each broker. Default: 3, with --quick 1.
    #[arg(long)]
    pairs: Option<usize>,
    /// Most seconds of load before each measurement. Default: 40, with --quick 8, for each broker of a fleet.
    #[arg(long)]
    warm_up: Option<f64>,
    /// Seconds of each measurement. Default: 10, with --quick 2.5.
    #[arg(long)]
    seconds: Option<f64>,
    /// Folder for the brokers' data, on a disk; a folder is made in it and removed. Default: that for temporary files.
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Our broker. Default: millrace-broker beside this program.
    #[arg(long, value_name = "FILE")]
    millrace: Option<PathBuf>,
    /// A setting for our broker; may come several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Folder with the jars of Apache Kafka.
    #[arg(long, value_name = "DIR", env = "MILLRACE_KAFKA_LIBS")]
    kafka_libs: Option<PathBuf>,
    /// File for the results as JSON.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Goes on with what that file has: measures what is missing of the rows and pairs, and keeps the rest.
    #[arg(long, requires = "output")]
    resume: bool,
}

/// A comparison that is ready to run.
#[derive(Debug)]
pub struct Comparison {
    table: &'static Table,
    rows: Vec<Row>,
    sides: Vec<Side>,
    pairs: usize,
    effort: Effort,
    brokers: Brokers,
    folder: TempDir,
    output: Option<PathBuf>,
    measured: Measurements,
    report: Report,
    started: Instant,
}

impl CompareArgs {
    /// The list of rows, if that is what is asked for.
    pub fn list(&self, table: &Table) -> Option<String> {
        self.list.then(|| table.rows.iter().map(|row| format!("{}\n", row.name)).collect())
    }

    /// Checks everything that can be checked before the first broker starts. `children` are ended on an interrupt.
    ///
    /// # Errors
    /// An argument, a program or a folder will not do.
    pub fn prepare(&self, table: &'static Table, children: Children) -> Result<Comparison> {
        let rows = self.select(table)?;
        let (core, load_core) = children::two_cores()?;
        let effort = self.effort(table)?;
        let pairs = self.pairs.unwrap_or(if self.quick { 1 } else { 3 });
        ensure!(pairs > 0, "--pairs is at least 1");
        let kafka = Kafka::new(self.kafka_libs.clone())?;
        let millrace = Millrace::new(self.millrace()?, self.settings.clone())?;
        let work_dir = self.work_dir.clone().unwrap_or_else(std::env::temp_dir);
        std::fs::create_dir_all(&work_dir).with_context(|| work_dir.display().to_string())?;
        machine::check_folder(&work_dir, 5 * effort.bytes * table.brokers as u64)?;
        let versions = BTreeMap::from([
            (
                "millrace",
                millrace.version()? + &commit().map(|commit| format!(" ({commit})")).unwrap_or_default(),
            ),
            ("Apache Kafka", kafka.version().unwrap_or_default()),
            ("Java", kafka.java_version()?),
        ]);
        let mut report = Report {
            format: 1,
            title: table.title,
            note: table.note,
            date: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            quick: self.quick,
            complete: false,
            seconds: (effort.warm_up.as_secs_f64(), effort.measure.as_secs_f64()),
            machine: Machine::look(&work_dir)?,
            versions,
            rows: Vec::new(),
        };
        let mut measured = Measurements::new();
        let earlier = self.output.as_deref().filter(|_| self.resume);
        if let Some((date, rows)) = earlier.map(|path| earlier::read(path, &report)).transpose()?.flatten() {
            (report.date, measured) = (date, rows);
        }
        Ok(Comparison {
            table,
            rows,
            sides: self.only.map_or(Side::BOTH.to_vec(), |side| vec![side]),
            pairs,
            effort,
            brokers: Brokers { millrace, kafka, core, load_core, children },
            folder: tempfile::Builder::new().prefix("millrace-bench-").tempdir_in(&work_dir)?,
            output: self.output.clone(),
            measured,
            report,
            started: Instant::now(),
        })
    }

    fn select(&self, table: &Table) -> Result<Vec<Row>> {
        for name in &self.rows {
            if !table.rows.iter().any(|row| row.name == name) {
                let known: Vec<_> = table.rows.iter().map(|row| row.name).collect();
                bail!("there is no row {name}; there are {}", known.join(", "));
            }
        }
        let is_wanted = |row: &&Row| match self.rows.as_slice() {
            [] => (row.quick || !self.quick) && !row.only_by_name,
            names => names.iter().any(|name| name == row.name),
        };
        Ok(table.rows.iter().filter(is_wanted).copied().collect())
    }

    fn effort(&self, table: &Table) -> Result<Effort> {
        let duration = |name, given: Option<f64>, (full, quick)| {
            let seconds = given.unwrap_or(if self.quick { quick } else { full });
            ensure!((0.1..=3600.0).contains(&seconds), "{name} is between 0.1 and 3600");
            Ok(Duration::from_secs_f64(seconds))
        };
        let brokers = table.brokers as f64;
        Ok(Effort {
            // Brokers that share a core share the time in which a just-in-time compiler can work.
            warm_up: duration("--warm-up", self.warm_up, (40.0 * brokers, 8.0 * brokers))?,
            measure: duration("--seconds", self.seconds, (10.0, 2.5))?,
            // Every broker has all of it.
            bytes: (if self.quick { 1_000_000_000 } else { 3_000_000_000 }) / table.brokers as u64,
            scale: if self.quick { 0.2 } else { 1.0 },
        })
    }

    fn millrace(&self) -> Result<PathBuf> {
        match &self.millrace {
            Some(path) => Ok(path.clone()),
            None => Ok(std::env::current_exe()?.with_file_name("millrace-broker")),
        }
    }
}

impl Comparison {
    /// The folder that is removed in the end; an interrupt has to do that itself.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Measures all rows and returns the report in Markdown, and whether every measurement succeeded.
    ///
    /// # Errors
    /// Results cannot be written. A measurement that fails is part of the report.
    pub fn run(mut self) -> Result<(String, bool)> {
        children::pin(&[self.brokers.load_core])?;
        for pair in 1..=self.pairs {
            for row in self.rows.clone() {
                for side in self.sides.clone() {
                    let is_done = |before: &Measurement| (before.pair, before.side) == (pair, side);
                    if self.measured.get(row.name).is_some_and(|before| before.iter().any(is_done)) {
                        continue;
                    }
                    let measurement = self.measurement(&row, side, pair)?;
                    self.measured.entry(row.name.to_owned()).or_default().push(measurement);
                    self.write()?;
                }
            }
        }
        self.report.complete = true;
        self.write()?;
        let failed = self.report.rows.iter().flat_map(|row| &row.measurements).any(|m| m.error.is_some());
        Ok((self.report.markdown(), !failed))
    }

    fn measurement(&self, row: &Row, side: Side, pair: usize) -> Result<Measurement> {
        let folder = self.folder.path().join("run");
        let result = measure(row, side, &self.brokers, self.effort, &folder);
        let _ = std::fs::remove_dir_all(&folder); // it may not have come to be
        // What is still to be written must not slow down the next one.
        page_cache::write_back(self.folder.path())?;
        let (figures, error) = match result {
            Ok(figures) => (figures, None),
            Err(error) => (Figures::new(), Some(format!("{error:#}"))),
        };
        let outcome = error.as_ref().map_or_else(|| brief(row, &figures), |error| format!("FAILED: {error}"));
        let elapsed = self.started.elapsed().as_secs();
        eprintln!("[{elapsed:4} s] {} {pair}/{} {side}: {outcome}", row.name, self.pairs);
        Ok(Measurement { side, pair, figures, error })
    }

    fn write(&mut self) -> Result<()> {
        let measured = |row: &Row| Some(RowReport::new(*row, self.measured.get(row.name)?.clone()));
        self.report.rows = self.table.rows.iter().filter_map(measured).collect();
        let Some(path) = &self.output else { return Ok(()) };
        let shown = || path.display().to_string();
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).with_context(shown)?;
        }
        let mut file = File::create(path).with_context(shown)?;
        serde_json::to_writer_pretty(&mut file, &self.report).with_context(shown)?;
        writeln!(file).with_context(shown)
    }
}

/// The figures that say most, for the line of progress.
fn brief(row: &Row, figures: &Figures) -> String {
    let keys: &[&str] = match row.headline {
        Headline::Bytes => {
            &["mb_per_s", "cpu_s_per_gb", "open_p99_us", "java_p99_ms", "resident_mb", "other_share"]
        }
        Headline::Requests => {
            &["requests_per_s", "cpu_s_per_m_requests", "open_p99_us", "resident_mb", "other_share"]
        }
        Headline::Footprint => &[
            "start_ms",
            "restart_first_ms",
            "created_s",
            "failover_s",
            "resident_mb",
            "resident_mb_per_broker",
            "resident_kb_per_partition",
            "catch_up_mb_per_s",
            "before_p99_us",
            "catch_up_p99_us",
            "other_share",
        ],
    };
    let shown = FIGURES.iter().filter(|figure| keys.contains(&figure.key));
    let shown = shown.filter_map(|f| Some(format!("{} {:.*}", f.title, f.digits, figures.get(f.key)?)));
    shown.collect::<Vec<_>>().join(", ")
}

/// The commit that is checked out here, if this is a checkout.
fn commit() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use clap::Parser;

    use super::rows::{ALONE, FLEET};
    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        compare: CompareArgs,
    }

    fn arguments(arguments: &[&str]) -> CompareArgs {
        Cli::parse_from([&["compare"], arguments].concat()).compare
    }

    fn names(rows: &[Row]) -> Vec<&str> {
        rows.iter().map(|row| row.name).collect()
    }

    #[test]
    fn rows_are_chosen_by_name_in_the_order_of_the_table() {
        let chosen =
            arguments(&["--quick", "--rows", "single-1c-fsync,produce-64k-1p-fsync"]).select(&ALONE).unwrap();
        assert_eq!(names(&chosen), ["produce-64k-1p-fsync", "single-1c-fsync"]);
    }

    #[test]
    fn an_unknown_row_is_named_with_those_that_exist() {
        let error = arguments(&["--rows", "nonsense"]).select(&ALONE).unwrap_err().to_string();
        assert!(error.contains("nonsense") && error.contains("produce-64k-1p-fsync"), "{error}");
    }

    #[test]
    fn quick_has_few_rows_and_a_full_run_all_that_need_not_be_named() {
        assert!(arguments(&["--quick"]).select(&ALONE).unwrap().len() < 8);
        let left_out = |row: &&Row| row.only_by_name;
        assert_eq!(
            ALONE.rows.iter().filter(left_out).map(|row| row.name).collect::<Vec<_>>(),
            ["restart-24gb"]
        );
        assert_eq!(arguments(&[]).select(&ALONE).unwrap().len(), ALONE.rows.len() - 1);
        let named = arguments(&["--rows", "restart-24gb"]).select(&ALONE).unwrap();
        assert_eq!(names(&named), ["restart-24gb"]);
    }

    #[test]
    fn a_fleet_writes_no_more_than_one_broker() {
        let [alone, fleet] = [&ALONE, &FLEET].map(|table| arguments(&[]).effort(table).unwrap().bytes);
        assert_eq!(fleet * 3, alone);
        assert_eq!(names(&arguments(&["--rows", "catch-up"]).select(&FLEET).unwrap()), ["catch-up"]);
    }

    #[test]
    fn seconds_that_make_no_sense_are_refused() {
        assert!(arguments(&["--seconds", "0"]).effort(&ALONE).is_err());
        assert!(arguments(&["--warm-up", "nan"]).effort(&ALONE).is_err());
    }
}
