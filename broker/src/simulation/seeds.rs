//! Runs seeds, each in a process of its own, and tells what was found and how to see it again.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::TempDir;

use super::plan::Plan;
use super::run::run;
use crate::bugs::{self, Bug};

const ENTROPY: &str = include_str!("entropy.c");
const SINGLE_RUN: &str = "simulation::seeds::a_single_run";

/// Variables between this process and those that it starts.
const SEED: &str = "MILLRACE_SIMULATION_SEED";
const FOLDER: &str = "MILLRACE_SIMULATION_FOLDER";
const BUG: &str = "MILLRACE_SIMULATION_BUG";
/// Set by a person: how many seeds, and from which one on.
const SEEDS: &str = "MILLRACE_SIMULATION_SEEDS";
const FIRST: &str = "MILLRACE_SIMULATION_FIRST";

const DEFAULT_SEEDS: u64 = 200;

/// Seeds in which a mistake that was made on purpose has to be found.
const SEEDS_PER_BUG: u64 = 60;

/// What one process said.
#[derive(Clone, Debug)]
struct Report {
    seed: u64,
    /// Its trace.
    lines: Vec<String>,
    findings: Vec<String>,
}

/// Starts the processes.
struct Laboratory {
    library: PathBuf,
    folder: TempDir,
}

impl Laboratory {
    fn open() -> Self {
        // In memory where there is such a place: the identity of volumes is in real files, and synced.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let folder = folder.expect("a folder can be made");
        let (source, library) = (folder.path().join("entropy.c"), folder.path().join("entropy.so"));
        std::fs::write(&source, ENTROPY).expect("a file can be written");
        let compiled =
            Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).args([&library, &source]).status();
        assert!(compiled.expect("there is a C compiler").success());
        Self { library, folder }
    }

    fn run(&self, seed: u64, bug: Option<Bug>) -> Report {
        let folder = tempfile::tempdir_in(self.folder.path()).expect("a folder can be made");
        let mut command = Command::new(std::env::current_exe().expect("this is a program"));
        command
            .args(["--exact", SINGLE_RUN, "--ignored", "--nocapture", "--test-threads=1"])
            .env("LD_PRELOAD", &self.library)
            .env(SEED, seed.to_string())
            .env(FOLDER, folder.path())
            .stdin(Stdio::null());
        match bug {
            Some(bug) => command.env(BUG, bug.name()),
            None => command.env_remove(BUG),
        };
        let output = command.output().expect("it starts again");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let part = |mark: &str| -> Vec<String> {
            text.lines().filter_map(|line| line.strip_prefix(mark)).map(str::to_owned).collect()
        };
        let mut findings = part("FINDING ");
        if findings.is_empty() && !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            findings.push(format!("{}: {}", output.status, said.trim()));
        }
        Report { seed, lines: part("TRACE "), findings }
    }

    /// Runs seeds on all processors until `enough` of a report; reports in the order of seeds.
    fn run_all(
        &self,
        seeds: std::ops::Range<u64>,
        bug: Option<Bug>,
        enough: impl Fn(&Report) -> bool + Sync,
    ) -> Vec<Report> {
        let next = AtomicU64::new(seeds.start);
        let reports = Mutex::new(Vec::new());
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds.end {
                            return;
                        }
                        let mut report = self.run(seed, bug);
                        if enough(&report) {
                            next.store(seeds.end, Ordering::Relaxed);
                        }
                        if report.findings.is_empty() {
                            // Thousands of seeds; the line that is left tells how it went.
                            report.lines.truncate(1);
                        }
                        reports.lock().expect("no thread panics with it").push(report);
                    }
                });
            }
        });
        let mut reports = reports.into_inner().expect("no thread panics with it");
        reports.sort_by_key(|report| report.seed);
        reports
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

fn say(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// One run. As a process of its own it says everything; started by a person, it starts that process.
#[test]
#[ignore = "one run, of the seed in MILLRACE_SIMULATION_SEED; the others start it"]
fn a_single_run() {
    let seed = number(SEED, 1);
    let bug = std::env::var(BUG).ok().map(|name| Bug::named(&name).expect("a bug that is known"));
    let Some(folder) = std::env::var_os(FOLDER) else {
        let report = Laboratory::open().run(seed, bug);
        report.lines.iter().for_each(|line| say(line));
        assert!(report.findings.is_empty(), "{}", report.findings.join("\n"));
        return;
    };
    if std::env::var_os("RUST_LOG").is_some() {
        // On a thread of its own: it takes random bytes, and this one's must stay the same.
        std::thread::spawn(log_to_standard_error).join().expect("it does not panic");
    }
    // A task that panics is nobody's business in the runtime of a simulated host.
    let panics: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&panics);
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(panic.to_string());
        default(panic);
    }));
    bugs::make(bug);
    let outcome = run(Plan::of(seed), Path::new(&folder)).expect("files can be written");
    for panic in panics.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        outcome.trace.find(outcome.simulated, panic.replace('\n', " "));
    }
    let mut lines = outcome.trace.lines();
    lines.insert(
        0,
        format!(
            "seed {seed}: {} records acknowledged in {:?}, trace {:016x}",
            outcome.acknowledged,
            outcome.simulated,
            outcome.trace.hash()
        ),
    );
    lines.iter().for_each(|line| say(&format!("TRACE {line}")));
    outcome.trace.findings().iter().for_each(|finding| say(&format!("FINDING {finding}")));
    assert!(outcome.trace.findings().is_empty());
}

fn log_to_standard_error() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
}

/// How to see a run again.
fn again(seed: u64) -> String {
    format!("{SEED}={seed} cargo test -p millrace-broker --lib {SINGLE_RUN} -- --exact --ignored --nocapture")
}

#[test]
#[ignore = "takes minutes: make test-simulation"]
fn whatever_happens_to_a_fleet_nothing_acknowledged_is_lost() {
    let (first, begun) = (number(FIRST, 1), std::time::Instant::now());
    let seeds = first..first + number(SEEDS, DEFAULT_SEEDS);
    say(&format!("seeds {first} to {}", seeds.end - 1));
    let reports = Laboratory::open().run_all(seeds, None, |_| false);
    say(&format!("{} seeds in {} s", reports.len(), begun.elapsed().as_secs()));
    let failed: Vec<&Report> = reports.iter().filter(|report| !report.findings.is_empty()).collect();
    let tell = |report: &&Report| {
        let findings = report.findings.join("\n  ");
        format!("seed {}:\n  {findings}\n  again: {}", report.seed, again(report.seed))
    };
    let text: Vec<String> = failed.iter().map(tell).collect();
    assert!(failed.is_empty(), "{} of {} seeds:\n{}", failed.len(), reports.len(), text.join("\n"));
}

#[test]
#[ignore = "takes a while: make test-simulation"]
fn two_runs_of_one_seed_give_the_same_trace() {
    let laboratory = Laboratory::open();
    for seed in 1..=5 {
        let (one, other) = (laboratory.run(seed, None), laboratory.run(seed, None));
        assert!(one.lines.len() > 100, "{one:?}");
        let parted = one.lines.iter().zip(&other.lines).find(|(one, other)| one != other);
        assert_eq!(parted, None, "seed {seed}");
        assert_eq!(one.lines.len(), other.lines.len(), "seed {seed}");
    }
}

/// Makes the mistake in seed after seed, until one finds what comes of it: a finding with one of these parts.
fn is_found(bug: Bug, as_one_of: &[&str]) {
    let is_it = |finding: &String| as_one_of.iter().any(|part| finding.contains(part));
    let found = |report: &Report| report.findings.iter().any(is_it);
    let reports = Laboratory::open().run_all(1..1 + SEEDS_PER_BUG, Some(bug), found);
    let report = reports.iter().find(|report| found(report));
    let others: Vec<_> = reports.iter().flat_map(|report| &report.findings).collect();
    let report =
        report.unwrap_or_else(|| panic!("{bug:?} is not found in {SEEDS_PER_BUG} seeds, only {others:?}"));
    say(&format!("{bug:?} is found by seed {}: {}", report.seed, report.findings.join("; ")));
}

#[test]
#[ignore = "takes a while: make test-simulation"]
fn a_follower_that_truncates_to_the_high_watermark_is_found() {
    is_found(Bug::TruncatesToHighWatermark, &["without what was committed", "on its disk"]);
}

#[test]
#[ignore = "takes a while: make test-simulation"]
fn a_follower_that_acknowledges_before_it_is_durable_is_found() {
    is_found(Bug::AcknowledgesBeforeDurable, &["on its disk"]);
}

#[test]
#[ignore = "takes a while: make test-simulation"]
fn a_leader_that_commits_before_its_own_sync_is_found() {
    is_found(Bug::CommitsBeforeOwnSync, &["on its disk"]);
}

#[test]
#[ignore = "takes a while: make test-simulation"]
fn a_broker_that_goes_on_leading_after_a_restart_is_found() {
    is_found(Bug::LeadsBeforeRegistered, &["in two runs"]);
}

#[test]
#[ignore = "takes a while: make test-simulation"]
fn a_raft_id_that_is_used_again_after_a_lost_disk_is_found() {
    // In debug builds openraft asserts that no follower forgets.
    is_found(Bug::ReusesRaftId, &["has other metadata", "follower log reversion"]);
}
