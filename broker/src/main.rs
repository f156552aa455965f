//! Command line of the broker.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use millrace_broker::server::start;

// One allocator for Rust and for RocksDB's C++, which gives memory back to the system.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A Kafka-compatible broker.
#[derive(Debug, Parser)]
#[command(name = "millrace-broker", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The broker.properties file, in Kafka's format and with Kafka's names.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One broker with a quorum of its own on localhost, for application developers and tests.
    Dev(DevArgs),
    /// Asks the running broker of this configuration to give up its leadership; called by Kubernetes before it stops.
    PreStop {
        /// The running broker's broker.properties.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

#[derive(Debug, Args)]
struct DevArgs {
    /// Folder for the data; made when it does not exist. Default: millrace-dev in the folder for temporary files.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Port for clients; 0 takes a free one.
    #[arg(long, default_value_t = 9092)]
    port: u16,
    /// A setting of broker.properties; may come several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match (cli.command, cli.run.config) {
        (Some(Command::Dev(arguments)), _) => {
            let data_dir = arguments.data_dir.unwrap_or_else(|| std::env::temp_dir().join("millrace-dev"));
            start::run_dev(&data_dir, arguments.port, &arguments.settings)
        }
        (Some(Command::PreStop { config }), _) => start::pre_stop(&config),
        (None, Some(config)) => start::run(&config),
        (None, None) => {
            Err(start::Failure::usage("say --config FILE, or dev to try things out; --help tells more"))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            start::report(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}
