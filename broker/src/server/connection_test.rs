//! Connections over real sockets, with a handler that needs no broker.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures::FutureExt as _;
use millrace_protocol::frame::{self, RequestFrame};
use millrace_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, FindCoordinatorRequest, MetadataRequest, ProduceRequest,
};
use millrace_protocol::{ApiKey, ErrorCode, Request};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{ClientListener, Handler, ServerContext};
use crate::api::{ClientConnection, CloseReason, Outcome};
use crate::config::{ConnectionLimits, HostPort, ListenerConfig};
use crate::metrics::Metrics;

const SOON: Duration = Duration::from_secs(5);

/// Answers ApiVersions at once, Metadata when `released`, Produce later when `released`; serves nothing else.
#[derive(Clone, Default)]
struct Fake {
    released: Arc<Notify>,
    /// Correlation ids of requests in the order in which they began.
    begun: Arc<Mutex<Vec<i32>>>,
}

impl Handler for Fake {
    async fn handle(&self, _client: &mut ClientConnection, frame: RequestFrame) -> Outcome {
        self.begun.lock().push(frame.correlation_id);
        let (key, correlation_id) = (frame.key, frame.correlation_id);
        match key {
            ApiKey::ApiVersions => respond(correlation_id),
            ApiKey::Metadata => {
                self.released.notified().await;
                respond(correlation_id)
            }
            ApiKey::Produce => {
                let released = Arc::clone(&self.released);
                Outcome::Later(
                    async move { released.notified().map(|()| respond(correlation_id)).await }.boxed(),
                )
            }
            _ => Outcome::Close(CloseReason::NotServed { api: key.name(), version: frame.version }),
        }
    }

    fn may_overlap(&self, key: ApiKey) -> bool {
        key == ApiKey::Produce
    }
}

/// Every answer looks like one to ApiVersions version 0, whatever was asked.
fn respond(correlation_id: i32) -> Outcome {
    let mut buffer = BytesMut::new();
    let response = ApiVersionsResponse { error_code: ErrorCode::None.code(), ..Default::default() };
    frame::encode_response(&mut buffer, ApiKey::ApiVersions, 0, correlation_id, &response).unwrap();
    Outcome::Respond(vec![buffer.freeze()])
}

struct Server {
    fake: Fake,
    context: ServerContext,
    port: u16,
}

fn limits() -> ConnectionLimits {
    ConnectionLimits {
        max_connections: 10,
        max_connections_per_ip: 10,
        max_idle: Some(Duration::from_secs(60)),
        max_request_bytes: 1000,
        listen_backlog: 50,
    }
}

async fn start(limits: ConnectionLimits) -> Server {
    let address = HostPort { host: "127.0.0.1".to_owned(), port: 0 };
    let config = ListenerConfig {
        name: "TEST".to_owned(),
        bind: address.clone(),
        advertised: address,
        security_protocol: "PLAINTEXT".to_owned(),
    };
    let listener = ClientListener::bind(&config, limits.listen_backlog).await.unwrap();
    let port = listener.port().unwrap();
    let context = ServerContext::new(limits, Metrics::new(), CancellationToken::new());
    let context = ServerContext { stop_grace: Duration::from_millis(300), ..context };
    let fake = Fake::default();
    context.tasks.spawn(listener.run(fake.clone(), context.clone()));
    Server { fake, context, port }
}

impl Server {
    async fn connect(&self) -> Client {
        Client { stream: TcpStream::connect(("127.0.0.1", self.port)).await.unwrap(), input: BytesMut::new() }
    }

    async fn stop(&self) {
        self.context.stop.cancel();
        self.context.tasks.close();
        timeout(SOON, self.context.tasks.wait()).await.expect("everything stops");
    }

    async fn until_begun(&self, count: usize) {
        let begun = async {
            while self.fake.begun.lock().len() < count {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, begun).await.expect("the requests begin");
    }
}

struct Client {
    stream: TcpStream,
    input: BytesMut,
}

/// A whole request with its length.
fn request<R: Request>(correlation_id: i32) -> Vec<u8> {
    let mut buffer = BytesMut::new();
    frame::encode_request(&mut buffer, R::MIN_VERSION, correlation_id, Some("test"), &R::default()).unwrap();
    buffer.to_vec()
}

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Correlation id of the next answer; `None` when the server has closed the connection.
    async fn answer(&mut self) -> Option<i32> {
        loop {
            if let Some(frame) = frame::split(&mut self.input, 1 << 20).unwrap() {
                return frame::response_correlation_id(&frame);
            }
            match timeout(SOON, self.stream.read_buf(&mut self.input)).await.expect("an answer or an end") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    async fn asks_and_is_answered(&mut self, correlation_id: i32) {
        self.send(&request::<ApiVersionsRequest>(correlation_id)).await;
        assert_eq!(self.answer().await, Some(correlation_id));
    }
}

#[tokio::test]
async fn v4_pipelined_requests_are_answered_in_order() {
    let server = start(limits()).await;
    let mut client = server.connect().await;
    let many: Vec<u8> = (0..200).flat_map(request::<ApiVersionsRequest>).collect();
    client.send(&many).await;
    for correlation_id in 0..200 {
        assert_eq!(client.answer().await, Some(correlation_id));
    }
    server.stop().await;
}

#[tokio::test]
async fn v4_a_request_begins_after_the_one_before_is_answered() {
    let server = start(limits()).await;
    let mut client = server.connect().await;
    client.send(&[request::<MetadataRequest>(1), request::<ApiVersionsRequest>(2)].concat()).await;
    server.until_begun(1).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(*server.fake.begun.lock(), [1]);
    server.fake.released.notify_one();
    assert_eq!(client.answer().await, Some(1));
    assert_eq!(client.answer().await, Some(2));
    server.stop().await;
}

#[tokio::test]
async fn v4_an_answer_does_not_wait_for_the_next_request() {
    let server = start(limits()).await;
    let mut client = server.connect().await;
    client.send(&[request::<ApiVersionsRequest>(1), request::<MetadataRequest>(2)].concat()).await;
    assert_eq!(client.answer().await, Some(1), "though the second one is not answered yet");
    server.fake.released.notify_one();
    assert_eq!(client.answer().await, Some(2));
    server.stop().await;
}

#[tokio::test]
async fn v4_requests_that_may_overlap_begin_together_and_others_wait_for_them() {
    let server = start(limits()).await;
    let mut client = server.connect().await;
    let produce = (1..=3).flat_map(request::<ProduceRequest>);
    let sent: Vec<u8> = produce.chain(request::<ApiVersionsRequest>(4)).collect();
    client.send(&sent).await;
    server.until_begun(3).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(*server.fake.begun.lock(), [1, 2, 3]);
    for correlation_id in 1..=3 {
        server.fake.released.notify_one();
        assert_eq!(client.answer().await, Some(correlation_id));
    }
    assert_eq!(client.answer().await, Some(4));
    server.stop().await;
}

#[tokio::test]
async fn v4_the_number_of_requests_that_overlap_is_bounded() {
    let server = start(limits()).await;
    let mut client = server.connect().await;
    let sent: Vec<u8> = (0..40).flat_map(request::<ProduceRequest>).collect();
    client.send(&sent).await;
    server.until_begun(16).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(server.fake.begun.lock().len(), 16);
    for correlation_id in 0..40 {
        server.fake.released.notify_one();
        assert_eq!(client.answer().await, Some(correlation_id));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_request_may_come_byte_by_byte() {
    let server = start(limits()).await;
    let mut client = server.connect().await;
    for byte in request::<ApiVersionsRequest>(7) {
        client.send(&[byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.answer().await, Some(7));
    server.stop().await;
}

#[tokio::test]
async fn v2_garbage_ends_its_connection_and_disturbs_no_other() {
    let server = start(limits()).await;
    let mut other = server.connect().await;
    other.asks_and_is_answered(1).await;
    let unknown_key = [&8_i32.to_be_bytes()[..], &[0x7f, 0xff, 0, 0, 0, 0, 0, 1]].concat();
    let short_header = [&2_i32.to_be_bytes()[..], &[0, 18]].concat();
    let oversize = 1001_i32.to_be_bytes().to_vec();
    let negative = (-1_i32).to_be_bytes().to_vec();
    let http = b"GET / HTTP/1.1\r\n\r\n".to_vec();
    for garbage in [unknown_key, short_header, oversize, negative, http, vec![0; 64]] {
        let mut client = server.connect().await;
        client.send(&garbage).await;
        assert_eq!(client.answer().await, None, "{garbage:?}");
        other.asks_and_is_answered(2).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn v2_a_request_that_is_not_served_ends_its_connection_after_earlier_answers() {
    let server = start(limits()).await;
    let (mut client, mut other) = (server.connect().await, server.connect().await);
    client.send(&[request::<ApiVersionsRequest>(1), request::<FindCoordinatorRequest>(2)].concat()).await;
    assert_eq!(client.answer().await, Some(1));
    assert_eq!(client.answer().await, None);
    other.asks_and_is_answered(3).await;
    server.stop().await;
}

#[tokio::test]
async fn a_half_open_connection_is_closed_when_it_idles_and_disturbs_no_other() {
    let server = start(ConnectionLimits { max_idle: Some(Duration::from_millis(150)), ..limits() }).await;
    let (mut half_open, mut other) = (server.connect().await, server.connect().await);
    half_open.send(&request::<ApiVersionsRequest>(1)[..9]).await;
    let watching = async {
        assert_eq!(half_open.answer().await, None);
    };
    let working = async {
        for correlation_id in 0..10 {
            other.asks_and_is_answered(correlation_id).await;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    };
    tokio::join!(watching, working);
    server.stop().await;
}

#[tokio::test]
async fn a_connection_that_waits_for_an_answer_is_not_idle() {
    let server = start(ConnectionLimits { max_idle: Some(Duration::from_millis(50)), ..limits() }).await;
    for ask in [request::<MetadataRequest>(5), request::<ProduceRequest>(5)] {
        let mut client = server.connect().await;
        client.send(&ask).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.fake.released.notify_one();
        assert_eq!(client.answer().await, Some(5));
    }
    server.stop().await;
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_and_places_come_back() {
    let server = start(ConnectionLimits { max_connections: 1, ..limits() }).await;
    let mut first = server.connect().await;
    first.asks_and_is_answered(1).await;
    assert_eq!(server.connect().await.answer().await, None);
    drop(first);
    let place_is_free = async {
        while server.context.slots.open() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, place_is_free).await.unwrap();
    server.connect().await.asks_and_is_answered(2).await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_has_said_all_still_gets_its_answers() {
    let server = start(limits()).await;
    let mut client = server.connect().await;
    client.send(&[request::<ProduceRequest>(1), request::<ProduceRequest>(2)].concat()).await;
    client.stream.shutdown().await.unwrap();
    server.until_begun(2).await;
    server.fake.released.notify_one();
    assert_eq!(client.answer().await, Some(1));
    server.fake.released.notify_one();
    assert_eq!(client.answer().await, Some(2));
    assert_eq!(client.answer().await, None);
    server.stop().await;
}

#[tokio::test]
async fn stopping_finishes_the_request_in_hand_and_begins_no_other() {
    let server = start(limits()).await;
    let (mut idle, mut client) = (server.connect().await, server.connect().await);
    idle.asks_and_is_answered(9).await;
    client.send(&[request::<MetadataRequest>(1), request::<ApiVersionsRequest>(2)].concat()).await;
    server.until_begun(2).await;
    server.context.stop.cancel();
    assert_eq!(idle.answer().await, None);
    server.fake.released.notify_one();
    assert_eq!(client.answer().await, Some(1));
    assert_eq!(client.answer().await, None);
    assert_eq!(*server.fake.begun.lock(), [9, 1]);
    server.stop().await;
    assert!(TcpStream::connect(("127.0.0.1", server.port)).await.is_err(), "nothing listens any more");
}

#[tokio::test]
async fn stopping_does_not_wait_for_ever_for_a_request_in_hand() {
    let server = start(limits()).await;
    for ask in [request::<MetadataRequest>(1), request::<ProduceRequest>(1)] {
        let mut client = server.connect().await;
        client.send(&ask).await;
    }
    server.until_begun(2).await;
    server.stop().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let server = start(limits()).await;
    let address = HostPort { host: "127.0.0.1".to_owned(), port: server.port };
    let config = ListenerConfig {
        name: "OTHER".to_owned(),
        bind: address.clone(),
        advertised: address,
        security_protocol: "PLAINTEXT".to_owned(),
    };
    let error = ClientListener::bind(&config, 5).await.unwrap_err().to_string();
    assert!(error.contains(&format!("OTHER cannot listen on 127.0.0.1:{}", server.port)), "{error}");
    server.stop().await;
}
