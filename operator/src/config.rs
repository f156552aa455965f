//! Settings of the operator process, from flags or environment variables.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::telemetry::LogFormat;

/// Runs Kafka-compatible broker fleets on Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "millrace-operator", version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// What to do; `run` where nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings of `run`.
    #[command(flatten)]
    pub run: Option<RunArguments>,
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Reconcile KafkaCluster and Topic objects until told to stop (default).
    Run(RunArguments),
    /// Print the CustomResourceDefinitions, or write them to files.
    Crds {
        /// Folder to write to, one file per kind, instead of standard output.
        #[arg(long)]
        output_dir: Option<PathBuf>,
    },
}

/// Settings of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArguments {
    /// Image of the brokers of every KafkaCluster that names none.
    #[arg(long, env = "MILLRACE_BROKER_IMAGE")]
    pub broker_image: String,
    /// The one namespace to look after. All, where it is not set or empty.
    #[arg(long, env = "MILLRACE_NAMESPACE", default_value = "", hide_default_value = true)]
    pub namespace: String,
    /// Namespace of the Lease by which replicas of the operator agree who works.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,
    /// Name of that Lease.
    #[arg(long, env = "MILLRACE_LEASE_NAME", default_value = "millrace-operator")]
    pub lease_name: String,
    /// Name of this process in the Lease and in Events; must differ between replicas.
    #[arg(long, env = "POD_NAME", default_value = "millrace-operator")]
    pub identity: String,
    /// Where `/livez`, `/readyz` and `/metrics` are served, plain HTTP.
    #[arg(long, env = "MILLRACE_HEALTH_ADDRESS", default_value = "0.0.0.0:8080")]
    pub health_address: SocketAddr,
    /// How log lines look. What is logged is set by MILLRACE_LOG, for example `info,millrace_operator=debug`.
    #[arg(long, env = "MILLRACE_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
}

impl RunArguments {
    /// The one namespace to look after, if it is not all of them.
    pub fn only_namespace(&self) -> Option<&str> {
        Some(self.namespace.as_str()).filter(|namespace| !namespace.is_empty())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    #[test]
    fn run_is_the_default_and_takes_the_same_flags() {
        let plain = Arguments::try_parse_from(["x", "--broker-image", "b:1"]).unwrap();
        assert_eq!(plain.run.unwrap().broker_image, "b:1");
        let named =
            Arguments::try_parse_from(["x", "run", "--broker-image", "b:1", "--namespace", "a"]).unwrap();
        let Some(Command::Run(run)) = named.command else { panic!("{named:?}") };
        assert_eq!(run.only_namespace(), Some("a"));
    }

    #[test]
    fn crds_needs_no_settings_of_run() {
        let parsed = Arguments::try_parse_from(["x", "crds", "--output-dir", "d"]).unwrap();
        assert!(matches!(parsed.command, Some(Command::Crds { output_dir: Some(_) })), "{parsed:?}");
    }
}
