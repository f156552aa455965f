//! The comparison as its user starts it, with one row, briefly, and our side only: that brokers are found, loaded and
//! measured. What it measures here says nothing.

use std::path::PathBuf;
use std::process::Command;

/// Built with the tests of the broker's package, which run together with these.
fn broker() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_millrace-bench")).with_file_name("millrace-broker")
}

/// Measures `row` with `command` and returns the report.
fn measure(command: &str, row: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new(env!("CARGO_BIN_EXE_millrace-bench"))
        .args([command, "--only", "millrace", "--rows", row])
        .args(["--quick", "--warm-up", "0.5", "--seconds", "0.3"])
        .arg("--millrace")
        .arg(broker())
        .arg("--work-dir")
        .arg(folder.path())
        .output()
        .expect("the comparison starts");
    let (report, progress) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{progress}{report}");
    report.into_owned()
}

/// Whether the table of the report has a figure for our side in the line of `row`.
fn has_figure(report: &str, row: &str) -> bool {
    let line = report.lines().find(|line| line.starts_with(&format!("| {row} |")));
    let figure = line.and_then(|line| line.split('|').nth(3)).map(|cell| cell.trim().replace(',', ""));
    figure.and_then(|figure| figure.parse::<f64>().ok()).is_some_and(|figure| figure > 0.0)
}

#[test]
fn one_broker_is_measured() {
    let report = measure("compare", "produce-64k-12p-fsync");
    assert!(has_figure(&report, "produce-64k-12p-fsync"), "{report}");
}

#[test]
fn a_fleet_of_brokers_is_measured() {
    let report = measure("fleet", "rf3-64k");
    assert!(has_figure(&report, "rf3-64k"), "{report}");
}
