//! Command line of the benchmark.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use millrace_bench::compare::rows::{ALONE, FLEET, Table};
use millrace_bench::{children, compare, floor, load_command};
use tokio::signal::unix::{SignalKind, signal};

/// Time for brokers that were killed to let go of their files.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// Measures Kafka brokers.
#[derive(Debug, Parser)]
#[command(name = "millrace-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Puts a load on a broker that runs, and prints what was measured as JSON.
    Load(load_command::LoadArgs),
    /// Measures Millrace and Apache Kafka in turn.
    Compare(compare::CompareArgs),
    /// Measures fleets of three brokers of each in turn.
    Fleet(compare::CompareArgs),
    /// Measures what this machine charges for the steps that no broker can do without.
    Floor(floor::FloorArgs),
    /// Becomes another program, on some cores, that ends with its parent.
    #[command(hide = true)]
    Exec {
        #[arg(long = "core")]
        cores: Vec<usize>,
        #[arg(long)]
        parent: u32,
        #[arg(last = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millrace-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Load(arguments) => {
            writeln!(std::io::stdout(), "{}", arguments.run()?)?;
            Ok(())
        }
        Command::Compare(arguments) => compare(&arguments, &ALONE),
        Command::Fleet(arguments) => compare(&arguments, &FLEET),
        Command::Floor(arguments) => {
            arguments.run()?.iter().try_for_each(|step| writeln!(std::io::stdout(), "{step}"))?;
            Ok(())
        }
        Command::Exec { cores, parent, command } => Err(children::exec(&cores, parent, &command)),
    }
}

fn compare(arguments: &compare::CompareArgs, table: &'static Table) -> Result<()> {
    if let Some(list) = arguments.list(table) {
        return Ok(write!(std::io::stdout(), "{list}")?);
    }
    let children = children::Children::default();
    let comparison = arguments.prepare(table, children.clone())?;
    let folder = comparison.folder().to_owned();
    // Children die with the thread that started them; this one lives until the last has ended.
    let worker = std::thread::Builder::new().name("compare".to_owned()).spawn(move || comparison.run())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if runtime.block_on(interrupted_before(&worker))? {
        children.close();
        remove(&folder);
        eprintln!("millrace-bench: interrupted");
        std::process::exit(130);
    }
    let Ok(outcome) = worker.join() else { bail!("the comparison panicked") };
    let (report, is_complete) = outcome?;
    write!(std::io::stdout(), "{report}")?;
    if is_complete { Ok(()) } else { bail!("not all measurements succeeded, see above") }
}

/// Whether a signal asks for the end before `worker` has ended.
async fn interrupted_before<T>(worker: &std::thread::JoinHandle<T>) -> Result<bool> {
    let (mut interrupt, mut terminate, mut hangup) = (
        signal(SignalKind::interrupt()).context("watching for signals")?,
        signal(SignalKind::terminate()).context("watching for signals")?,
        signal(SignalKind::hangup()).context("watching for signals")?,
    );
    let mut look = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            biased;
            _ = interrupt.recv() => return Ok(true),
            _ = terminate.recv() => return Ok(true),
            _ = hangup.recv() => return Ok(true),
            _ = look.tick() => if worker.is_finished() { return Ok(false) },
        }
    }
}

/// Removes the folder, again and again while a dying broker still writes to it.
fn remove(folder: &Path) {
    let deadline = Instant::now() + CLEAN_UP;
    while folder.exists() && Instant::now() < deadline {
        if std::fs::remove_dir_all(folder).is_err() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
