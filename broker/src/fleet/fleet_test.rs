//! The client against the listener, and against strangers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use millrace_protocol::RecordBytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::*;
use crate::fleet::frame::{FailureKind, read_frame};
use crate::fleet::{CallHandler, FleetListener, Probe};
use crate::security::tls::tests::Authority;

const CALLER: LocalNode = LocalNode { cluster_id: Uuid::from_u128(1), node_id: 11 };
const CALLEE: LocalNode = LocalNode { cluster_id: Uuid::from_u128(1), node_id: 22 };
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers with the body, except for the bodies below.
#[derive(Default)]
struct Echo {
    calls: AtomicUsize,
}

impl CallHandler for Echo {
    fn handle(&self, peer: u64, _method: Method, body: Bytes) -> BoxFuture<'_, Result<RecordBytes, Failure>> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        async move {
            assert_eq!(peer, CALLER.node_id);
            match &body[..] {
                b"fail" => Err(Failure::new(FailureKind::NotNow, "not now")),
                b"hang" => std::future::pending().await,
                b"flood" => Ok(Bytes::from(vec![0; MAX_FRAME_BYTES]).into()),
                b"pieces" => Ok(vec![body, Bytes::from(vec![7; 1 << 20]), Bytes::from_static(b"end")].into()),
                _ => Ok(body.into()),
            }
        }
        .boxed()
    }
}

struct Server {
    address: SocketAddr,
    echo: Arc<Echo>,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(address: &str, tls: Option<Tls>) -> Self {
        Self::serve(FleetListener::bind(address, tls).await.unwrap())
    }

    fn serve(listener: FleetListener) -> Self {
        let address = listener.local_address().unwrap();
        let (echo, cancel) = (Arc::new(Echo::default()), CancellationToken::new());
        let http = Router::new().route("/hello", get(|| async { "hello" }));
        let task = tokio::spawn(listener.serve(CALLEE, Arc::clone(&echo) as _, http, cancel.clone()));
        Self { address, echo, cancel, task }
    }

    fn peer(&self) -> PeerAddress {
        PeerAddress { address: format!("localhost:{}", self.address.port()), node_id: Some(CALLEE.node_id) }
    }

    async fn stop(self) -> SocketAddr {
        self.cancel.cancel();
        self.task.await.unwrap();
        self.address
    }
}

fn body(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

async fn echoes(client: &FleetClient, peer: &PeerAddress) -> Result<Bytes, CallError> {
    client.call(peer, Method::Join, body("ping"), PATIENCE).await
}

/// Sends `bytes` and returns what comes back until the other side hangs up.
async fn send_raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ =
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the listener hangs up");
    answer
}

#[tokio::test]
async fn calls_are_answered_in_any_order_over_one_connection() {
    let server = Server::start("127.0.0.1:0", None).await;
    let client = FleetClient::new(CALLER, None);
    let peer = server.peer();
    let stuck = client.call(&peer, Method::Join, body("hang"), Duration::from_millis(300));
    let (stuck, quick) = tokio::join!(stuck, async {
        for _ in 0..50 {
            assert_eq!(echoes(&client, &peer).await.unwrap(), body("ping"));
        }
        client.call(&peer, Method::Join, body("fail"), PATIENCE).await
    });
    assert!(matches!(stuck, Err(CallError::Timeout { .. })), "{stuck:?}");
    let Err(CallError::Failed { failure, .. }) = quick else { panic!("{quick:?}") };
    assert_eq!(failure, Failure::new(FailureKind::NotNow, "not now"));
    assert!(echoes(&client, &peer).await.is_ok());
}

#[tokio::test]
async fn a_body_of_many_megabytes_passes_and_a_longer_one_is_an_error() {
    let server = Server::start("127.0.0.1:0", None).await;
    let client = FleetClient::new(CALLER, None);
    let big = Bytes::from(vec![7; 12 << 20]);
    let answer = client.call(&server.peer(), Method::Join, big.clone(), PATIENCE).await.unwrap();
    assert_eq!(answer, big);
    let outcome =
        client.call(&server.peer(), Method::Join, Bytes::from(vec![7; MAX_FRAME_BYTES]), PATIENCE).await;
    assert!(matches!(outcome, Err(CallError::TooLong { .. })), "{outcome:?}");
    let outcome = client.call(&server.peer(), Method::Join, body("flood"), PATIENCE).await;
    assert!(matches!(outcome, Err(CallError::Failed { .. })), "{outcome:?}");
    assert!(echoes(&client, &server.peer()).await.is_ok());
}

#[tokio::test]
async fn an_answer_in_pieces_comes_in_one() {
    let server = Server::start("127.0.0.1:0", None).await;
    let client = FleetClient::new(CALLER, None);
    let answer = client.call(&server.peer(), Method::Join, body("pieces"), PATIENCE).await.unwrap();
    assert_eq!(answer, [&b"pieces"[..], &[7; 1 << 20], b"end"].concat());
    assert!(echoes(&client, &server.peer()).await.is_ok());
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let server = Server::start("127.0.0.1:0", None).await;
    let stranger = FleetClient::new(LocalNode { cluster_id: Uuid::from_u128(2), ..CALLER }, None);
    let outcome = echoes(&stranger, &server.peer()).await;
    let Err(CallError::Refused { reason, .. }) = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("cluster"), "{reason}");
    let wrong_node = PeerAddress { node_id: Some(99), ..server.peer() };
    let outcome = echoes(&FleetClient::new(CALLER, None), &wrong_node).await;
    assert!(matches!(outcome, Err(CallError::Refused { .. })), "{outcome:?}");
    assert_eq!(server.echo.calls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn garbage_and_oversize_frames_are_refused_and_disturb_nobody() {
    let server = Server::start("127.0.0.1:0", None).await;
    let client = FleetClient::new(CALLER, None);
    assert!(echoes(&client, &server.peer()).await.is_ok());
    let mut oversize_hello = b"MLR1".to_vec();
    oversize_hello.extend(u32::MAX.to_be_bytes());
    for garbage in [&b"\x00\x00\x00\x10garbage"[..], b"\x16\x03\x01\x02\x00\x01", b"MLR1\x00\x00\x00\x01x"] {
        assert_eq!(send_raw(server.address, garbage).await, b"", "{garbage:?}");
    }
    assert_eq!(send_raw(server.address, &oversize_hello).await, b"");
    let answer = send_raw(server.address, b"JUNK / nonsense\r\n\r\n").await;
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");

    // After a good hello.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    hello::call(&mut stream, CALLER, None).await.map_err(|error| error.to_string()).unwrap();
    stream.write_all(&[0x7f, 0xff, 0xff, 0xff, 1]).await.unwrap();
    let mut rest = Vec::new();
    let _ =
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the listener hangs up");
    assert_eq!(rest, b"");
    assert!(echoes(&client, &server.peer()).await.is_ok());
}

#[tokio::test]
async fn an_unknown_method_is_answered() {
    let server = Server::start("127.0.0.1:0", None).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    hello::call(&mut stream, CALLER, None).await.map_err(|error| error.to_string()).unwrap();
    let mut out = bytes::BytesMut::new();
    Frame::Call { correlation_id: 5, method: 200, body: Bytes::new() }.encode(&mut out).unwrap();
    stream.write_all(&out).await.unwrap();
    let content = read_frame(&mut stream, MAX_FRAME_BYTES).await.unwrap().unwrap();
    let Frame::Failure { correlation_id: 5, failure } = Frame::decode(content).unwrap() else {
        panic!("no failure")
    };
    assert_eq!(failure.kind, FailureKind::UnknownMethod);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed_in_time() {
    let listener = FleetListener::bind("127.0.0.1:0", None).await.unwrap();
    let listener = listener.with_handshake_timeout(Duration::from_millis(100));
    let server = Server::serve(listener);
    for words in [&b""[..], b"ML", b"MLR1\x00", b"GET / HT"] {
        let answer = send_raw(server.address, words).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{answer:?}");
    }
    assert!(echoes(&FleetClient::new(CALLER, None), &server.peer()).await.is_ok());
}

#[tokio::test]
async fn http_answers_on_the_same_port() {
    let server = Server::start("127.0.0.1:0", None).await;
    let request = b"GET /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = String::from_utf8(send_raw(server.address, request).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
}

#[tokio::test]
async fn a_restarted_peer_is_reached_again_and_an_absent_one_fails_fast() {
    let server = Server::start("127.0.0.1:0", None).await;
    let (client, peer) = (FleetClient::new(CALLER, None), server.peer());
    assert!(echoes(&client, &peer).await.is_ok());
    let address = server.stop().await;
    // The first call may still find the old connection, which is then known to be lost.
    let mut outcome = echoes(&client, &peer).await;
    for _ in 0..20 {
        if matches!(outcome, Err(CallError::Unreachable { .. })) {
            break;
        }
        outcome = echoes(&client, &peer).await;
    }
    assert!(matches!(outcome, Err(CallError::Unreachable { .. })), "{outcome:?}");

    let _server = Server::start(&address.to_string(), None).await;
    let deadline = Instant::now() + PATIENCE;
    while echoes(&client, &peer).await.is_err() {
        assert!(Instant::now() < deadline, "the peer is not reached again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn both_ends_must_have_a_certificate_of_the_fleets_authority() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let authority = Authority::new("fleet");
    let fleet = Tls::load(authority.issue(ours.path(), "millrace-broker")).unwrap();
    let foreign = Tls::load(Authority::new("other").issue(theirs.path(), "millrace-broker")).unwrap();
    let server = Server::start("127.0.0.1:0", Some(fleet.clone())).await;

    assert!(echoes(&FleetClient::new(CALLER, Some(fleet)), &server.peer()).await.is_ok());
    assert!(echoes(&FleetClient::new(CALLER, Some(foreign)), &server.peer()).await.is_err());
    assert!(echoes(&FleetClient::new(CALLER, None), &server.peer()).await.is_err());
    assert_eq!(server.echo.calls.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn rotated_certificates_serve_new_connections() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("fleet");
    let tls = Tls::load(authority.issue(directory.path(), "first")).unwrap();
    let stop = CancellationToken::new();
    let watch = tokio::spawn(tls.clone().watch(Duration::from_millis(20), stop.clone()));
    let server = Server::start("127.0.0.1:0", Some(tls.clone())).await;
    let old = FleetClient::new(CALLER, Some(tls.clone()));
    assert!(echoes(&old, &server.peer()).await.is_ok());

    let before = tls.server_config();
    let renewed = Authority::new("renewed fleet");
    renewed.issue(directory.path(), "second");
    let deadline = Instant::now() + PATIENCE;
    while Arc::ptr_eq(&before, &tls.server_config()) {
        assert!(Instant::now() < deadline, "the new certificates are not taken over");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let new = Tls::load(renewed.issue(elsewhere.path(), "operator")).unwrap();
    assert!(echoes(&FleetClient::new(CALLER, Some(new)), &server.peer()).await.is_ok());
    assert!(echoes(&old, &server.peer()).await.is_ok(), "the open connection was closed");
    stop.cancel();
    watch.await.unwrap();
}

#[tokio::test]
async fn a_connection_that_the_peer_ends_is_a_loss_and_one_that_is_given_up_is_none() {
    let server = Server::start("127.0.0.1:0", None).await;
    let client = FleetClient::new(CALLER, None);
    let mut losses = client.losses();
    let peer = server.peer();
    echoes(&client, &peer).await.unwrap();
    // A call without an answer on a silent connection makes this side give it up.
    let stuck = client.call(&peer, Method::Join, body("hang"), Duration::from_millis(50)).await;
    assert!(matches!(stuck, Err(CallError::Timeout { .. })), "{stuck:?}");
    echoes(&client, &peer).await.unwrap();
    assert!(losses.try_recv().is_err());
    server.stop().await;
    let lost = tokio::time::timeout(PATIENCE, losses.recv()).await.expect("the loss is told");
    assert_eq!(lost.unwrap(), peer);
}

#[tokio::test]
async fn a_probe_tells_a_process_that_is_gone_from_one_that_is_alive_or_silent() {
    const SHORT: Duration = Duration::from_millis(200);
    let client = FleetClient::new(CALLER, None);
    let server = Server::start("127.0.0.1:0", None).await;
    let peer = server.peer();
    assert_eq!(client.probe(&peer, PATIENCE).await, Probe::Alive);
    let another = PeerAddress { node_id: Some(99), ..peer.clone() };
    assert_eq!(client.probe(&another, PATIENCE).await, Probe::Gone, "another node holds the port");
    let address = server.stop().await;
    assert_eq!(client.probe(&peer, PATIENCE).await, Probe::Gone);

    // As with a process that is stopped: the kernel accepts for it, and nothing comes back.
    let silent = tokio::net::TcpListener::bind(address).await.unwrap();
    assert_eq!(client.probe(&peer, SHORT).await, Probe::Unknown);
    // As with something in between that accepts for a process that is not there.
    let hangs_up = tokio::spawn(async move {
        while let Ok((stream, _)) = silent.accept().await {
            drop(stream);
        }
    });
    assert_eq!(client.probe(&peer, SHORT).await, Probe::Unknown);
    hangs_up.abort();
}
