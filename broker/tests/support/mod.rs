//! Real broker processes for tests: one in `dev` mode, or a fleet of several on loopback.
#![allow(dead_code, unreachable_pub, reason = "each test target uses a part of it")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use millrace_broker::volume::Space;
use millrace_protocol::messages::metadata_request::{MetadataRequest, MetadataRequestTopic};
use millrace_protocol::{Request, frame};
use serde_json::{Value, json};
use tempfile::TempDir;

// The one of the unit tests.
#[path = "../../src/volume/small.rs"]
pub mod small;

/// Time within which a broker that can start has started, on the slowest machine.
pub const START_DEADLINE: Duration = Duration::from_secs(30);

/// A broker process; killed when dropped.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    /// `host:port` for clients.
    pub address: String,
}

impl Broker {
    /// Starts `millrace-broker dev` on a free port, with its data in `data_dir`.
    pub fn dev(data_dir: &Path) -> Self {
        Self::dev_with(data_dir, &[])
    }

    /// The same with settings of `broker.properties` on the command line.
    pub fn dev_with(data_dir: &Path, settings: &[&str]) -> Self {
        Self::dev_saying(data_dir, settings, Stdio::inherit())
    }

    /// The same with another standard error.
    pub fn dev_saying(data_dir: &Path, settings: &[&str], stderr: impl Into<Stdio>) -> Self {
        let mut command = binary();
        command.arg("dev").arg("--data-dir").arg(data_dir).args(["--port", "0"]).stderr(stderr);
        for setting in settings {
            command.args(["--set", setting]);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the broker starts");
        let line = first_line(&mut child);
        let address = line
            .strip_prefix("Kafka answers on ")
            .and_then(|rest| rest.split(';').next())
            .unwrap_or_else(|| panic!("the broker says {line:?}"))
            .to_owned();
        Self { child, address }
    }

    /// Kills the process as the kernel would, without a chance to tidy up, and waits for its end.
    pub fn kill(mut self) {
        self.child.kill().expect("the broker runs");
        self.child.wait().expect("a killed process ends");
    }

    /// Asks the process to stop and waits for its end.
    pub fn terminate(mut self) -> ExitStatus {
        terminate(&self.child);
        wait_for_exit(&mut self.child)
    }

    /// Waits until the process has ended by itself.
    pub fn wait(mut self) -> ExitStatus {
        wait_for_exit(&mut self.child)
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Both fail only when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The broker's binary, with its log on standard error.
pub fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-broker"));
    command.stdin(Stdio::null());
    command
}

fn first_line(child: &mut Child) -> String {
    let stdout = child.stdout.take().expect("standard output is piped");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stdout).lines();
        // The receiver is gone when the deadline has passed.
        let _ = sender.send(lines.next());
        for _ in lines {}
    });
    match receiver.recv_timeout(START_DEADLINE) {
        Ok(Some(Ok(line))) => line,
        other => panic!("the broker did not say that it is ready: {other:?}, exit {:?}", child.try_wait()),
    }
}

fn terminate(child: &Child) {
    let status = Command::new("kill").arg(child.id().to_string()).status().expect("kill can be run");
    assert!(status.success(), "the broker runs");
}

/// Waits until the process has ended by itself.
pub fn wait_for_exit(child: &mut Child) -> ExitStatus {
    until("the process to end", || child.try_wait().expect("the process is ours"))
}

/// Calls `attempt` until it gives a value.
pub fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(start.elapsed() < START_DEADLINE, "waited {START_DEADLINE:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a fleet is like.
#[derive(Clone, Debug)]
pub struct FleetPlan {
    /// Brokers.
    pub brokers: usize,
    /// How many of them form the quorum; the others find it.
    pub first_voters: usize,
    /// Lines of every broker's configuration file.
    pub settings: Vec<&'static str>,
    /// Racks of the first brokers; the others are in none.
    pub racks: Vec<&'static str>,
}

impl FleetPlan {
    /// All brokers form the quorum, and nothing is set.
    pub fn of(brokers: usize) -> Self {
        Self { brokers, first_voters: brokers, settings: Vec::new(), racks: Vec::new() }
    }
}

/// Several brokers of one cluster, on loopback and without TLS.
#[derive(Debug)]
pub struct Fleet {
    plan: FleetPlan,
    directory: TempDir,
    cluster_id: String,
    ports: Vec<Ports>,
    brokers: Vec<Option<Broker>>,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    client: u16,
    fleet: u16,
    health: u16,
}

impl Fleet {
    /// Starts `count` brokers, forms their quorum, and waits until all are in service.
    pub fn start(count: usize) -> Self {
        Self::start_as(FleetPlan::of(count))
    }

    /// Starts what is planned, forms the quorum, and waits until all are in service.
    pub fn start_as(plan: FleetPlan) -> Self {
        let count = plan.brokers;
        let ports = free_ports(count * 3);
        let ports: Vec<Ports> = ports
            .chunks(3)
            .map(|ports| Ports { client: ports[0], fleet: ports[1], health: ports[2] })
            .collect();
        let mut fleet = Self {
            plan,
            directory: TempDir::new().expect("a temporary folder can be made"),
            cluster_id: "AAAAAAAAAAAAAAAAAAAAAQ".to_owned(),
            ports,
            brokers: Vec::new(),
        };
        for number in 0..count {
            let broker = fleet.spawn(number);
            fleet.brokers.push(Some(broker));
        }
        fleet.bootstrap();
        fleet.wait_until_in_service();
        fleet
    }

    /// `host:port` of every broker, separated by commas.
    pub fn bootstrap_servers(&self) -> String {
        self.ports.iter().map(|ports| format!("127.0.0.1:{}", ports.client)).collect::<Vec<_>>().join(",")
    }

    /// `host:port` of one broker.
    pub fn address(&self, number: usize) -> String {
        format!("127.0.0.1:{}", self.ports[number].client)
    }

    /// Kills one broker without a chance to tidy up.
    pub fn kill(&mut self, number: usize) {
        self.brokers[number].take().expect("the broker runs").kill();
    }

    /// Kills brokers as nearly at once as can be.
    pub fn kill_together(&mut self, numbers: impl IntoIterator<Item = usize>) {
        let mut killed: Vec<Broker> =
            numbers.into_iter().map(|number| self.brokers[number].take().expect("the broker runs")).collect();
        killed.iter_mut().for_each(|broker| broker.child.kill().expect("the broker runs"));
        killed.into_iter().for_each(Broker::kill);
    }

    /// Sends a signal, such as `STOP`, to one broker's process.
    pub fn signal(&self, number: usize, signal: &str) {
        let pid = self.brokers[number].as_ref().expect("the broker runs").pid().to_string();
        let status = Command::new("kill").args(["-s", signal, &pid]).status().expect("kill can be run");
        assert!(status.success(), "the broker runs");
    }

    /// Loses the volume of a broker that was killed.
    pub fn lose_volume(&self, number: usize) {
        std::fs::remove_dir_all(self.data_dir(number)).expect("the broker had a volume");
    }

    /// The cluster as one broker shows it to the operator; `None` while it knows of no leader.
    pub fn cluster(&self, number: usize) -> Option<Value> {
        let (status, view) = self.management(number, "GET", "/v1/cluster", None)?;
        (status == 200).then_some(view)
    }

    /// Starts a broker that was killed, on the volume that it had.
    pub fn restart(&mut self, number: usize) {
        let broker = self.spawn(number);
        self.brokers[number] = Some(broker);
    }

    /// Where a broker keeps its data.
    pub fn data_dir(&self, number: usize) -> PathBuf {
        self.directory.path().join(format!("broker-{number}"))
    }

    /// Waits until every broker that runs is ready.
    pub fn wait_until_in_service(&self) {
        for (ports, _) in self.ports.iter().zip(&self.brokers).filter(|(_, broker)| broker.is_some()) {
            until("a broker to be ready", || {
                let (status, _) = http(ports.health, "GET", "/readyz", None)?;
                (status == 200).then_some(())
            });
        }
    }

    /// Waits until every broker that runs has heard of a topic: they do one after another, as with Apache Kafka.
    pub fn wait_until_known(&self, topic: &str) {
        let asked = MetadataRequestTopic { name: Some(topic.into()), ..Default::default() };
        let request = MetadataRequest {
            topics: Some(vec![asked]),
            allow_auto_topic_creation: false,
            ..Default::default()
        };
        let running = self.brokers.iter().enumerate().filter(|(_, broker)| broker.is_some());
        for (number, _) in running {
            until("a broker to have heard of the topic", || {
                (ask(&self.address(number), 12, &request).topics[0].error_code == 0).then_some(())
            });
        }
    }

    /// A request to the management API of one broker.
    pub fn management(
        &self,
        number: usize,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Option<(u16, Value)> {
        http(self.ports[number].fleet, method, path, body)
    }

    /// A metric of one broker with its labels, such as `requests_total{api="Fetch"}`; 0 if it has none yet.
    pub fn metric(&self, number: usize, name: &str) -> u64 {
        metric(self.ports[number].health, name)
    }

    /// Text of a broker's configuration file.
    pub fn properties(&self, number: usize) -> String {
        let ports = self.ports[number];
        let quorum: Vec<String> =
            self.ports.iter().map(|ports| format!("127.0.0.1:{}", ports.fleet)).collect();
        format!(
            "cluster.id={}\n\
             node.id={number}\n\
             log.dirs={}\n\
             listeners=CLIENT://127.0.0.1:{},FLEET://127.0.0.1:{}\n\
             advertised.listeners=CLIENT://127.0.0.1:{},FLEET://127.0.0.1:{}\n\
             listener.security.protocol.map=CLIENT:PLAINTEXT,FLEET:PLAINTEXT\n\
             inter.broker.listener.name=FLEET\n\
             controller.quorum.bootstrap.servers={}\n\
             health.listener=127.0.0.1:{}\n{}{}\n",
            self.cluster_id,
            self.data_dir(number).display(),
            ports.client,
            ports.fleet,
            ports.client,
            ports.fleet,
            quorum.join(","),
            ports.health,
            self.plan.racks.get(number).map(|rack| format!("broker.rack={rack}\n")).unwrap_or_default(),
            self.plan.settings.join("\n"),
        )
    }

    fn spawn(&self, number: usize) -> Broker {
        let path = self.directory.path().join(format!("broker-{number}.properties"));
        std::fs::write(&path, self.properties(number)).expect("the temporary folder takes files");
        std::fs::create_dir_all(self.data_dir(number)).expect("the temporary folder takes folders");
        let child = binary().arg("--config").arg(&path).spawn().expect("the broker starts");
        Broker { child, address: self.address(number) }
    }

    fn bootstrap(&self) {
        let voters: Vec<Value> = (0..self.plan.first_voters)
            .map(|number| {
                let identity = until("a broker to tell its identity", || {
                    let (status, identity) = self.management(number, "GET", "/v1/identity", None)?;
                    (status == 200).then_some(identity)
                });
                json!({"raftNodeId": identity["raftNodeId"], "address": identity["address"]})
            })
            .collect();
        let body = json!({"clusterId": self.cluster_id, "voters": voters});
        let answer = self.management(0, "POST", "/v1/quorum/bootstrap", Some(&body));
        assert!(matches!(&answer, Some((200, _))), "the quorum was not formed: {answer:?}");
    }
}

/// Sends one request of a client on a connection of its own, and waits for its answer.
pub fn ask<R: Request>(address: &str, version: i16, request: &R) -> R::Response {
    try_ask(address, version, request).expect("the broker answers")
}

/// The same with a broker that may be going down.
///
/// # Errors
/// It does not listen, or ends the connection.
pub fn try_ask<R: Request>(address: &str, version: i16, request: &R) -> std::io::Result<R::Response> {
    let mut bytes = BytesMut::new();
    frame::encode_request(&mut bytes, version, 1, Some("test"), request)
        .expect("the request fits its version");
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout can be set");
    stream.write_all(&bytes)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length)).expect("lengths are not negative")];
    stream.read_exact(&mut answer)?;
    Ok(frame::decode_response::<R>(answer.into(), version).expect("the answer can be read").1)
}

/// Ports that nobody listens on at the moment. Below those that the system gives to outgoing connections, one of which
/// might take a port before the broker does, or while a killed one is away.
pub fn free_ports(count: usize) -> Vec<u16> {
    const FIRST: u32 = 21_000;
    const NUMBER: u32 = 11_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test programs that run side by side begin at different places.
    let offset = std::process::id().wrapping_mul(389);
    let next = || FIRST + NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(offset) % NUMBER;
    let candidates = std::iter::repeat_with(next).take(NUMBER as usize).map(|port| port as u16);
    let free = candidates.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    let ports: Vec<u16> = free.take(count).collect();
    assert_eq!(ports.len(), count, "loopback has free ports");
    ports
}

/// A metric of the broker whose probes are answered on `port`, see [`Fleet::metric`].
pub fn metric(port: u16, name: &str) -> u64 {
    let (_, text) = http_text(port, "GET", "/metrics", None).expect("the broker serves metrics");
    let value = text.lines().find_map(|line| line.strip_prefix("millrace_broker_")?.strip_prefix(name));
    value.map_or(0, |value| value.trim().parse().expect("counters are whole numbers"))
}

/// One HTTP request on a connection of its own; `None` when nobody answers.
pub fn http(port: u16, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
    let (status, body) = http_text(port, method, path, body)?;
    Some((status, serde_json::from_str(&body).unwrap_or(Value::Null)))
}

/// The same with an answer that is no JSON.
pub fn http_text(port: u16, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, String)> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Some((status, body.to_owned()))
}
