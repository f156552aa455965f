//! Apache Kafka's own broker, to compare with.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::run::{from_make, succeed};
use crate::support::{free_ports, until};

/// A running broker; killed when dropped.
pub(crate) struct Kafka {
    child: Child,
    /// `host:port` for clients.
    pub(crate) address: String,
}

fn java(class: &str) -> Command {
    let libraries = format!("{}/*", from_make("MILLRACE_KAFKA_LIBS"));
    let mut command = Command::new("java");
    command.args(["-XX:TieredStopAtLevel=1", "-Xmx256m", "-cp", &libraries, class]);
    command
}

impl Kafka {
    /// Formats `folder` and starts a broker there, with lines of its configuration file.
    pub(crate) fn start(folder: &Path, settings: &[&str]) -> Self {
        let ports = free_ports(2);
        let (port, controller) = (ports[0], ports[1]);
        let properties = folder.join("server.properties");
        let text = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             controller.listener.names=CONTROLLER\nlog.dirs={}\n{}\n",
            folder.join("data").display(),
            settings.join("\n")
        );
        std::fs::write(&properties, text).unwrap();
        let format = ["format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c"];
        succeed(java("kafka.tools.StorageTool").args(format).arg(&properties), "");
        let child = java("kafka.Kafka").arg(&properties).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let kafka = Self { child: child.unwrap(), address: format!("127.0.0.1:{port}") };
        until("Kafka to listen", || TcpStream::connect(&kafka.address).ok());
        kafka
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // Both fail only when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
