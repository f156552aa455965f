//! What must not work ends with a clear message, and nothing else is disturbed.
#![expect(clippy::tests_outside_test_module, reason = "this is a test crate")]
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use millrace_protocol::frame;
use millrace_protocol::messages::{ApiVersionsRequest, MetadataRequest};
use tempfile::TempDir;

use support::{Broker, Fleet, binary, until, wait_for_exit};

fn connect(broker: &Broker) -> TcpStream {
    let stream = TcpStream::connect(&broker.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Sends a request as a client does and reads the whole answer frame.
fn metadata(stream: &mut TcpStream) -> usize {
    let mut request = BytesMut::new();
    frame::encode_request(&mut request, 9, 7, Some("test"), &MetadataRequest::default()).unwrap();
    stream.write_all(&request).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut answer).unwrap();
    let answer = bytes::Bytes::from(answer);
    let (correlation_id, response) = frame::decode_response::<MetadataRequest>(answer, 9).unwrap();
    assert_eq!(correlation_id, 7);
    response.brokers.len()
}

/// Whether the broker ends the connection without an answer.
fn is_closed_after(broker: &Broker, bytes: &[u8]) -> bool {
    let mut stream = connect(broker);
    // The broker may close before it has taken everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => answer.is_empty(),
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn garbage_and_oversize_frames_end_their_own_connection_only() {
    let data = TempDir::new().unwrap();
    let broker = Broker::dev(data.path());
    let mut bystander = connect(&broker);
    assert_eq!(metadata(&mut bystander), 1);
    let mut garbage = 300_u32.to_be_bytes().to_vec();
    garbage.extend((0..300).map(|number| u8::try_from(number % 251).unwrap()));
    for (what, bytes) in [
        ("garbage", garbage),
        ("a frame of two gigabytes", 0x7fff_ffff_u32.to_be_bytes().to_vec()),
        ("a frame of negative length", (-5_i32).to_be_bytes().to_vec()),
        ("an HTTP request", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        ("an unknown API", [0, 0, 0, 14, 0x7f, 0, 0, 0, 0, 0, 0, 1, 0, 1, b'c', 0, 0, 0].to_vec()),
        ("a produce request that claims two billion topics", {
            let body =
                [0, 0, 0, 9, 0, 0, 0, 1, 0, 1, b'c', 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x0f];
            let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
            frame.extend(body);
            frame
        }),
    ] {
        assert!(is_closed_after(&broker, &bytes), "{what} was answered");
        assert_eq!(metadata(&mut bystander), 1, "{what} disturbed another connection");
    }
}

#[test]
fn a_half_open_connection_is_closed_when_idle_and_disturbs_nothing() {
    let data = TempDir::new().unwrap();
    let broker = Broker::dev_with(data.path(), &["connections.max.idle.ms=1000"]);
    let mut half = connect(&broker);
    half.write_all(&[0, 0, 1]).unwrap();
    assert_eq!(metadata(&mut connect(&broker)), 1);
    let start = Instant::now();
    let mut answer = Vec::new();
    half.read_to_end(&mut answer).unwrap();
    assert!(answer.is_empty() && start.elapsed() < Duration::from_secs(15));
}

#[test]
fn an_unsupported_version_of_api_versions_is_answered_in_version_0() {
    let data = TempDir::new().unwrap();
    let broker = Broker::dev(data.path());
    let mut stream = connect(&broker);
    let mut request = BytesMut::new();
    frame::encode_request(&mut request, 3, 9, Some("test"), &ApiVersionsRequest::default()).unwrap();
    // Rule V1: version 99 of key 18.
    request[6..8].copy_from_slice(&99_i16.to_be_bytes());
    stream.write_all(&request).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut answer).unwrap();
    let (_, response) = frame::decode_response::<ApiVersionsRequest>(answer.into(), 0).unwrap();
    assert_eq!((response.error_code, response.api_keys.len()), (35, 1));
}

/// Runs a broker that cannot start; returns its exit code and what it said.
fn failed_start(properties: &str) -> (i32, String) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("broker.properties");
    std::fs::write(&path, properties).unwrap();
    let mut child =
        binary().arg("--config").arg(&path).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_exit(&mut child);
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn all_mistakes_of_a_configuration_are_said_at_once_with_suggestions() {
    let fleet = Fleet::start(1);
    let properties = fleet.properties(0) + "default.replication.facto=3\nnum.partitions=many\n";
    let (code, message) = failed_start(&properties);
    assert_eq!(code, 78);
    assert!(message.contains("default.replication.facto"), "{message}");
    assert!(message.contains("default.replication.factor"), "no suggestion in {message}");
    assert!(message.contains("num.partitions"), "{message}");
}

#[test]
fn a_volume_of_another_cluster_is_refused_and_left_alone() {
    let mut fleet = Fleet::start(1);
    fleet.kill(0);
    let meta = fleet.data_dir(0).join("meta.properties");
    let before = std::fs::read(&meta).unwrap();
    let properties = fleet.properties(0).replace("AAAAAAAAAAAAAAAAAAAAAQ", "BBBBBBBBBBBBBBBBBBBBBA");
    let (code, message) = failed_start(&properties);
    assert_eq!(code, 78, "{message}");
    assert!(
        message.contains("AAAAAAAAAAAAAAAAAAAAAQ") && message.contains("BBBBBBBBBBBBBBBBBBBBBA"),
        "{message}"
    );
    assert_eq!(std::fs::read(&meta).unwrap(), before);
    fleet.restart(0);
    fleet.wait_until_in_service();
}

#[test]
fn a_volume_in_use_is_refused() {
    let data = TempDir::new().unwrap();
    let broker = Broker::dev(data.path());
    let output = binary().args(["dev", "--port", "0", "--data-dir"]).arg(data.path()).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{message}");
    assert!(message.contains("in use") || message.contains("lock"), "{message}");
    assert_eq!(metadata(&mut connect(&broker)), 1);
}

#[test]
fn sigterm_ends_the_broker_cleanly_and_soon() {
    let data = TempDir::new().unwrap();
    let broker = Broker::dev(data.path());
    let _idle = connect(&broker);
    let start = Instant::now();
    assert!(broker.terminate().success());
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn garbage_on_the_internal_listener_disturbs_nothing() {
    let fleet = Fleet::start(1);
    let text = fleet.properties(0);
    let port: u16 = text
        .lines()
        .find_map(|line| line.strip_prefix("listeners=")?.rsplit(':').next()?.parse().ok())
        .expect("the internal listener stands last");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"MLR1\xff\xff\xff\xffgarbage").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = Vec::new();
    // Closed or reset, as the broker likes; what matters is that it ends.
    let _ = stream.read_to_end(&mut answer);
    until("the management API to answer", || {
        let (status, view) = fleet.management(0, "GET", "/v1/cluster", None)?;
        (status == 200 && view["brokers"].as_array()?.len() == 1).then_some(())
    });
    assert_eq!(fleet.management(0, "GET", "/v1/no-such-thing", None).unwrap().0, 404);
    let garbage = serde_json::json!({"partitions": "many"});
    let (status, error) = fleet.management(0, "PUT", "/v1/topics/t", Some(&garbage)).unwrap();
    assert!(status == 400 && error["code"] == "BadRequest", "{status} {error}");
}
