//! Our broker: one process with a quorum of its own, or one of a fleet.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{CLUSTER_ID, Ports};

/// Where the program is and what it is told.
#[derive(Debug, Clone)]
pub struct Millrace {
    program: PathBuf,
    settings: Vec<String>,
}

impl Millrace {
    /// The broker at `program`, with settings as `key=value`.
    ///
    /// # Errors
    /// There is no such program.
    pub fn new(program: PathBuf, settings: Vec<String>) -> Result<Self> {
        ensure!(
            program.is_file(),
            "no broker at {}: build it with `cargo build --release -p millrace-broker`, or name it with --millrace",
            program.display()
        );
        Ok(Self { program, settings })
    }

    /// What it says its version is.
    ///
    /// # Errors
    /// It does not run.
    pub fn version(&self) -> Result<String> {
        let output =
            Command::new(&self.program).arg("--version").output().context("asking the broker its version")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Writes broker.properties of broker `index` of the fleet at `ports`; one that is alone needs none.
    pub(super) fn format(&self, folder: &Path, index: usize, ports: &[Ports]) -> Result<()> {
        if ports.len() == 1 {
            return Ok(());
        }
        std::fs::create_dir_all(data(folder)).context("making the data folder")?;
        let text = broker_properties(folder, index, ports, &self.settings);
        std::fs::write(properties(folder), text).context("writing broker.properties")
    }

    /// A broker of a fleet.
    pub(super) fn command(&self, folder: &Path) -> (PathBuf, Vec<String>) {
        let properties = properties(folder).display().to_string();
        (self.program.clone(), vec!["--config".to_owned(), properties])
    }

    /// A broker that is alone.
    pub(super) fn dev_command(&self, folder: &Path, port: u16) -> (PathBuf, Vec<String>) {
        let mut arguments = vec![
            "dev".to_owned(),
            "--data-dir".to_owned(),
            data(folder).display().to_string(),
            "--port".to_owned(),
            port.to_string(),
        ];
        for setting in &self.settings {
            arguments.extend(["--set".to_owned(), setting.clone()]);
        }
        (self.program.clone(), arguments)
    }
}

fn properties(folder: &Path) -> PathBuf {
    folder.join("broker.properties")
}

fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

/// Everything that has to be said; all else is the default. Brokers trust each other without TLS, as Kafka's do.
fn broker_properties(folder: &Path, index: usize, ports: &[Ports], settings: &[String]) -> String {
    let Ports { client, internal, health } = ports[index];
    let listeners = format!("CLIENT://127.0.0.1:{client},FLEET://127.0.0.1:{internal}");
    let quorum: Vec<_> = ports.iter().map(|ports| format!("127.0.0.1:{}", ports.internal)).collect();
    format!(
        "cluster.id={CLUSTER_ID}\n\
         node.id={}\n\
         log.dirs={}\n\
         listeners={listeners}\n\
         advertised.listeners={listeners}\n\
         listener.security.protocol.map=CLIENT:PLAINTEXT,FLEET:PLAINTEXT\n\
         inter.broker.listener.name=FLEET\n\
         controller.quorum.bootstrap.servers={}\n\
         health.listener=127.0.0.1:{health}\n{}\n",
        index + 1,
        data(folder).display(),
        quorum.join(","),
        settings.join("\n"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_of_a_fleet_knows_the_others_and_the_settings() {
        let ports = |client| Ports { client, internal: client + 100, health: client + 200 };
        let settings = ["log.durability=written".to_owned()];
        let text = broker_properties(Path::new("/f"), 1, &[ports(1), ports(2)], &settings);
        for line in [
            "node.id=2",
            "log.dirs=/f/data",
            "listeners=CLIENT://127.0.0.1:2,FLEET://127.0.0.1:102",
            "controller.quorum.bootstrap.servers=127.0.0.1:101,127.0.0.1:102",
            "health.listener=127.0.0.1:202",
            "log.durability=written",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
        }
    }
}
