//! A volume that is full: records are refused, nothing else is, and it all goes on by itself once there is space.

use std::process::{Child, Command, Stdio};

use millrace_protocol::ErrorCode;
use millrace_protocol::messages::ProduceRequest;
use millrace_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use millrace_protocol::messages::produce_response::PartitionProduceResponse;
use millrace_protocol::records::{BatchBuilder, Compression, NewRecord};

use crate::java::java;
use crate::kcat::kcat;
use crate::python::python;
use crate::run::succeed;
use crate::support::small::SmallVolume;
use crate::support::{Broker, ask, free_ports, http_text, metric, until};

/// Appends leave 96 MiB of it free, and 32 MiB are kept.
const VOLUME_MIB: u64 = 256;

const REFUSALS: &str = r#"response_errors_total{api="Produce",error="KAFKA_STORAGE_ERROR"}"#;

/// A broker on a volume, and the port of its probes.
fn broker_on(volume: &SmallVolume) -> (Broker, u16) {
    let probes = free_ports(1)[0];
    let listener = format!("health.listener=127.0.0.1:{probes}");
    (Broker::dev_with(&volume.path().join("data"), &[&listener]), probes)
}

#[test]
fn librdkafka_is_refused_and_reads_and_administers_and_goes_on_once_a_topic_is_deleted() {
    let Some(volume) = SmallVolume::mount(VOLUME_MIB) else { return };
    let (broker, probes) = broker_on(&volume);
    let size = (VOLUME_MIB << 20).to_string();
    let mut script = python("full_volume.py", &broker.address);
    let said = succeed(script.args([&probes.to_string(), &size]), "");
    assert!(said.ends_with("ok\n"), "{said}");
    eprint!("{said}");
    assert!(metric(probes, REFUSALS) >= 4);
}

fn produce(address: &str, topic: &str) -> PartitionProduceResponse {
    let record = NewRecord { timestamp: 1, value: Some(b"value"), ..Default::default() };
    let records = BatchBuilder::new(Compression::None).append(record).build();
    let data = PartitionProduceData { index: 0, records: Some(records.into()), ..Default::default() };
    let topic = TopicProduceData { name: topic.into(), partition_data: vec![data], ..Default::default() };
    let request =
        ProduceRequest { acks: -1, timeout_ms: 10_000, topic_data: vec![topic], ..Default::default() };
    ask(address, 9, &request).responses[0].partition_responses[0].clone()
}

/// A client that runs meanwhile; ended when dropped.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn ended(&mut self) -> Option<bool> {
        self.0.try_wait().unwrap().map(|status| status.success())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Not by SIGKILL, which timeout(1) could not pass on.
        if self.ended().is_none() {
            let _ = Command::new("kill").arg(self.0.id().to_string()).status();
            let _ = self.0.wait();
        }
    }
}

#[test]
fn what_other_clients_are_refused_they_send_again_until_there_is_space() {
    const RECORDS: usize = 300;
    let Some(volume) = SmallVolume::mount(VOLUME_MIB) else { return };
    let (broker, probes) = broker_on(&volume);
    let address = broker.address.as_str();
    let of_python = |client: &str| {
        let mut command = python("produce.py", address);
        command.args([client, client, &RECORDS.to_string()]);
        command
    };
    let mut of_java = java("org.apache.kafka.tools.ProducerPerformance");
    of_java.args(["--topic", "java", "--num-records", &RECORDS.to_string(), "--record-size", "100"]);
    of_java.args(["--throughput", "-1", "--bootstrap-server", address]);
    let clients =
        [("kafka-python", of_python("kafka-python")), ("aiokafka", of_python("aiokafka")), ("java", of_java)];
    for (client, mut command) in clients {
        // What it would wait for has nothing to do with space.
        kcat(address, &["-t", client, "-P"], "value\n");
        until("the topic to take records", || (produce(address, client).error_code == 0).then_some(()));
        volume.fill();
        let refusal = until("the volume to be full", || {
            Some(produce(address, client)).filter(|answer| answer.error_code != 0)
        });
        assert_eq!(refusal.error_code, ErrorCode::KafkaStorageError.code());
        let message = refusal.error_message.unwrap();
        assert!(message.contains("bytes left") && message.contains("delete topics"), "{message}");
        let before = metric(probes, REFUSALS);
        let mut running = Running::start(&mut command);
        until("the client to be refused again and again", || {
            assert_eq!(running.ended(), None, "{client} gave up");
            (metric(probes, REFUSALS) >= before + 3).then_some(())
        });
        assert_eq!(http_text(probes, "GET", "/readyz", None).unwrap().0, 200);
        volume.make_room();
        assert!(until("the client to be done", || running.ended()), "{client} failed");
        let read = kcat(address, &["-t", client, "-C", "-e", "-q"], "");
        let lines = read.lines().filter(|line| *line != "value").count();
        assert_eq!(lines, RECORDS, "{client}: each record once");
    }
}
