//! `millrace-operator`: parses, starts telemetry, runs, and maps the result to an exit code.

use std::{
    path::Path,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use kube::{Api, Config, client::ClientBuilder};
use millrace_operator::{
    config::{Arguments, Command, RunArguments},
    controller,
    events::Publisher,
    health::Health,
    leader::{ApiLease, Election},
    management::HttpTransport,
    metrics::Metrics,
    telemetry,
    watches::{Freshness, Observe},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long passes under way may take once the process is told to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match (arguments.command, arguments.run) {
        (Some(Command::Crds { output_dir }), _) => write_crds(output_dir.as_deref()),
        (Some(Command::Run(run)), _) | (None, Some(run)) => start(run),
        (None, None) => unreachable!("without a subcommand the settings of `run` are required"),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %format!("{error:#}"), "the operator ends");
            eprintln!("millrace-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "printing is what the command is for")]
fn write_crds(output_dir: Option<&Path>) -> Result<()> {
    let files = millrace_crds::generated_files();
    let Some(output_dir) = output_dir else {
        let texts: Vec<_> = files.into_iter().map(|(_, text)| text).collect();
        print!("{}", texts.join("---\n"));
        return Ok(());
    };
    std::fs::create_dir_all(output_dir).with_context(|| format!("create {}", output_dir.display()))?;
    for (name, text) in files {
        let path = output_dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn start(arguments: RunArguments) -> Result<()> {
    telemetry::start(arguments.log_format);
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed already"))?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(run(arguments))
}

/// Stands by until the lease is ours, works until told to stop or until the lease is lost.
///
/// Order of stopping: not ready, no new passes, passes under way are finished, the lease is released, health ends.
async fn run(arguments: RunArguments) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let metrics = Arc::new(Metrics::new());
    let freshness = Freshness::default();
    let observe = Observe { freshness: freshness.clone(), metrics: metrics.clone() };
    let config = Config::infer().await.context("find the Kubernetes API")?;
    let client =
        ClientBuilder::try_from(config).context("set up the Kubernetes client")?.with_layer(&observe).build();

    let health = Health::new(freshness, metrics.clone());
    let health_stop = CancellationToken::new();
    let serving = tokio::spawn(health.clone().serve(arguments.health_address, health_stop.clone()));
    let version = client.apiserver_version().await.context("reach the Kubernetes API")?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        kubernetes = version.git_version,
        namespace = arguments.only_namespace().unwrap_or("all"),
        broker_image = arguments.broker_image,
        "started"
    );
    health.ready.store(true, Ordering::Release);

    let leases = Api::namespaced(client.clone(), &arguments.lease_namespace);
    let mut election = Election::new(ApiLease::new(leases, &arguments.lease_name), &arguments.identity);
    let stopped = async {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    tokio::pin!(stopped, serving);
    tokio::select! {
        biased;
        name = &mut stopped => {
            tracing::info!(signal = name, "stopped while standing by");
            return Ok(());
        }
        ended = &mut serving => return health_ended(ended),
        () = election.acquire() => {}
    }
    tracing::info!(identity = arguments.identity, "leading");
    metrics.leads(true);

    let events = Publisher::new(client.clone(), &arguments.identity, metrics.clone());
    let context = Arc::new(controller::Context::new(
        client,
        HttpTransport::default(),
        events,
        metrics.clone(),
        &arguments.broker_image,
    ));
    let stop = CancellationToken::new();
    let controllers = controller::run(context, arguments.only_namespace(), stop.clone());
    tokio::pin!(controllers);
    let result = tokio::select! {
        biased;
        name = &mut stopped => {
            tracing::info!(signal = name, "stopping");
            Ok(())
        }
        // At once: somebody else may work from now on, and two must not.
        reason = election.hold() => return Err(anyhow::anyhow!("{reason}")),
        ended = &mut serving => health_ended(ended),
        () = &mut controllers => Err(anyhow::anyhow!("the controllers ended by themselves")),
    };
    health.ready.store(false, Ordering::Release);
    stop.cancel();
    if result.is_ok() && tokio::time::timeout(STOP_LIMIT, &mut controllers).await.is_err() {
        tracing::warn!("passes under way are cut off");
    }
    election.release().await;
    metrics.leads(false);
    health_stop.cancel();
    result
}

fn health_ended(ended: Result<std::io::Result<()>, tokio::task::JoinError>) -> Result<()> {
    ended.context("serve health")?.context("serve health")?;
    Err(anyhow::anyhow!("the health endpoints ended by themselves"))
}
