//! Command line of the fault laboratory.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use millrace_chaos::checks::replicas;
use millrace_chaos::failover::{self, FailoverArgs};
use millrace_chaos::run::{self, Place, RunArgs};
use millrace_chaos::world;

/// Hurts brokers and proves that nothing was lost. Needs root, for namespaces of its own.
#[derive(Debug, Parser)]
#[command(name = "millrace-chaos", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load, faults by a seed, and checks.
    Run(RunArgs),
    /// Measures how long clients are without acknowledgements when a broker goes.
    Failover(FailoverArgs),
    /// Lists the logs on the volume of a broker that has ended, as a start would find them.
    Inspect {
        /// Its data folder.
        data_dir: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("millrace-chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<bool> {
    let place = match command {
        Command::Run(args) if args.is_dry() => {
            writeln!(std::io::stdout(), "{}", args.first_schedule())?;
            return Ok(true);
        }
        Command::Inspect { data_dir } => {
            for line in replicas::inspect(data_dir)? {
                writeln!(std::io::stdout(), "{line}")?;
            }
            return Ok(true);
        }
        Command::Run(args) => args.place(),
        Command::Failover(args) => args.place(),
    };
    if place.inside.is_none() { outside(place) } else { inside(command) }
}

fn outside(place: &Place) -> Result<bool> {
    place.program()?;
    world::remove_leftovers(&place.work_dir)?;
    let run = std::process::id();
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    arguments.extend(["--inside".to_owned(), run.to_string()]);
    let status = world::enter(&arguments);
    world::remove_groups(run);
    let folder = world::folder_of(&place.work_dir, run);
    let went_well = status.as_ref().is_ok_and(ExitStatus::success);
    if let Some(round) = world::leave(&folder, went_well)? {
        let end = status.as_ref().map_or_else(|error| format!("{error:#}"), ToString::to_string);
        eprintln!("LABORATORY FAILED ({end})\nlogs and volumes: {}\n{round}", folder.display());
    }
    Ok(status?.success())
}

fn inside(command: &Command) -> Result<bool> {
    world::prepare()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting threads")?;
    runtime.block_on(async {
        match command {
            Command::Run(args) => run::run(args).await,
            Command::Failover(args) => failover::run(args).await,
            Command::Inspect { .. } => Ok(true),
        }
    })
}
