//! Apache Kafka: one process that is broker and controller (KRaft), with the options of its own start script.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Brokers, CLUSTER_ID, Ports};

/// Options that `kafka-server-start.sh` and `kafka-run-class.sh` pass when nothing else is asked for.
const SERVER_OPTIONS: [&str; 9] = [
    "-Xmx1g",
    "-Xms1g",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-XX:MaxInlineLevel=15",
    "-Djava.awt.headless=true",
];

/// Options of the tools beside it.
const TOOL_OPTIONS: [&str; 2] = ["-Xmx256m", "-Djava.awt.headless=true"];

/// Formatting takes a second or two.
const FORMAT_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the jars are.
#[derive(Debug, Clone)]
pub struct Kafka {
    libs: PathBuf,
    java: PathBuf,
}

impl Kafka {
    /// Kafka from the folder of jars `libs`.
    ///
    /// # Errors
    /// The jars or java are missing.
    pub fn new(libs: Option<PathBuf>) -> Result<Self> {
        const HOW: &str = "`make clients` installs them and `make bench` says where they are";
        let Some(libs) = libs else {
            bail!("Kafka's jars: set MILLRACE_KAFKA_LIBS or give --kafka-libs; {HOW}")
        };
        let kafka = Self { libs, java: PathBuf::from("java") };
        ensure!(kafka.version().is_some(), "no jars of Apache Kafka in {}: {HOW}", kafka.libs.display());
        kafka.java_version()?;
        Ok(kafka)
    }

    /// Kafka's version, from the name of its jar (`kafka_<Scala>-<version>.jar`).
    pub fn version(&self) -> Option<String> {
        std::fs::read_dir(&self.libs)
            .ok()?
            .flatten()
            .find_map(|entry| jar_version(entry.file_name().to_str()?))
    }

    /// What Java says it is.
    ///
    /// # Errors
    /// There is none.
    pub fn java_version(&self) -> Result<String> {
        let output =
            Command::new(&self.java).arg("-version").output().context("Kafka needs java in the PATH")?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(text.lines().nth(1).or(text.lines().next()).unwrap_or_default().to_owned())
    }

    /// Command line that runs a class of Kafka's tools.
    pub fn tool(&self, class: &str, arguments: &[String]) -> (PathBuf, Vec<String>) {
        self.java_command(&TOOL_OPTIONS, class, arguments)
    }

    pub(super) fn command(&self, folder: &Path) -> (PathBuf, Vec<String>) {
        self.java_command(&SERVER_OPTIONS, "kafka.Kafka", &[properties(folder).display().to_string()])
    }

    fn java_command(&self, options: &[&str], class: &str, arguments: &[String]) -> (PathBuf, Vec<String>) {
        let mut all: Vec<String> = options.iter().map(ToString::to_string).collect();
        all.extend(["-cp".to_owned(), format!("{}/*", self.libs.display()), class.to_owned()]);
        all.extend_from_slice(arguments);
        (self.java.clone(), all)
    }

    /// Writes server.properties and formats the data folder of broker `index` of the fleet at `ports`.
    pub(super) fn format(
        &self,
        brokers: &Brokers,
        folder: &Path,
        index: usize,
        ports: &[Ports],
    ) -> Result<()> {
        let text = server_properties(folder, index, ports);
        std::fs::write(properties(folder), text).context("writing server.properties")?;
        let arguments = ["format", "-t", CLUSTER_ID, "-c"].map(str::to_owned).into_iter();
        let arguments: Vec<_> = arguments.chain([properties(folder).display().to_string()]).collect();
        let (program, arguments) = self.tool("kafka.tools.StorageTool", &arguments);
        let child =
            brokers.children.start(&[brokers.core], &program, &arguments, &folder.join("format.log"))?;
        child.finish(FORMAT_TIMEOUT).context("formatting Kafka's data folder")?;
        Ok(())
    }
}

fn properties(folder: &Path) -> PathBuf {
    folder.join("server.properties")
}

/// Everything that has to be said; all else is Kafka's default. Every broker is a controller too, and votes.
fn server_properties(folder: &Path, index: usize, ports: &[Ports]) -> String {
    let data = folder.join("data");
    let Ports { client, internal, .. } = ports[index];
    let voters = (1..).zip(ports).map(|(id, ports)| format!("{id}@127.0.0.1:{}", ports.internal));
    let voters = voters.collect::<Vec<_>>().join(",");
    let replicas = ports.len().min(3);
    format!(
        "process.roles=broker,controller\n\
         node.id={}\n\
         controller.quorum.voters={voters}\n\
         listeners=PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{internal}\n\
         controller.listener.names=CONTROLLER\n\
         log.dirs={}\n\
         offsets.topic.replication.factor={replicas}\n\
         transaction.state.log.replication.factor={replicas}\n\
         transaction.state.log.min.isr={}\n",
        index + 1,
        data.display(),
        replicas.min(2),
    )
}

fn jar_version(name: &str) -> Option<String> {
    let (_, version) = name.strip_prefix("kafka_")?.strip_suffix(".jar")?.split_once('-')?;
    Some(version.to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_in_the_name_of_the_jar() {
        assert_eq!(jar_version("kafka_2.13-4.3.1.jar").as_deref(), Some("4.3.1"));
        assert_eq!(jar_version("kafka-clients-4.3.1.jar"), None);
    }

    #[test]
    fn every_broker_of_a_fleet_votes() {
        let ports = |client| Ports { client, internal: client + 100, health: 0 };
        let text = server_properties(Path::new("/f"), 1, &[ports(1), ports(2), ports(3)]);
        for line in [
            "node.id=2",
            "controller.quorum.voters=1@127.0.0.1:101,2@127.0.0.1:102,3@127.0.0.1:103",
            "listeners=PLAINTEXT://127.0.0.1:2,CONTROLLER://127.0.0.1:102",
            "offsets.topic.replication.factor=3",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn missing_jars_are_an_error_that_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        for libs in [None, Some(folder.path().to_owned())] {
            let error = Kafka::new(libs).unwrap_err().to_string();
            assert!(error.contains("make clients"), "{error}");
        }
    }
}
