//! Client of the brokers' management API.
//!
//! [`Transport`] carries one request to one broker; [`HttpTransport`] does so over mutually authenticated TLS on the
//! fleet listener, tests put a fake in its place. [`Fleet`] is one cluster as seen through a transport: typed calls, and
//! the rule that any broker may be asked for what concerns the whole cluster.
//!
//! An answer is either what was asked for, a refusal by the brokers ([`CallError::Refused`]), or nothing at all
//! ([`CallError::Unreachable`]). The last one means "unknown" and is never taken for "absent". Every call is bounded in
//! time, and every request of this API may be repeated without harm, which is why a broken connection is tried anew.

use std::{
    collections::HashMap,
    fmt::Write as _,
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request,
    client::conn::http1::{self, SendRequest},
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use millrace_crds::FLEET_PORT;
use millrace_management::{
    API_PREFIX, ApiError, ApplyTopic, ApplyTopicResult, BootstrapQuorum, ClusterView, Identity, ReleaseTopic,
    SetRack, TopicView, code,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    build::Names,
    certificates::{Leaf, PrivateKey},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// A broker closes idle connections after a while; younger ones are worth keeping for the next call.
const IDLE_LIMIT: Duration = Duration::from_secs(20);
/// A view of a cluster with hundreds of brokers is some hundred kilobytes.
const ANSWER_LIMIT: usize = 8 << 20;

/// Why a call brought no answer.
#[derive(Debug, Error)]
pub enum CallError {
    /// The brokers have understood, and refuse.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// One of [`millrace_management::code`].
        code: String,
        /// For people.
        message: String,
    },
    /// No broker could be asked; what they know is unknown.
    #[error("{0}")]
    Unreachable(String),
}

impl CallError {
    /// The code of a refusal.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            Self::Unreachable(_) => None,
        }
    }

    /// Whether the same call may succeed a little later without any change.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Refused { status, code, .. } => code == code::QUORUM_UNAVAILABLE || *status >= 500,
        }
    }
}

/// The operator's certificate for one cluster, and whom to trust there.
#[derive(Debug)]
pub struct Credentials {
    /// Certificate in PEM.
    pub certificate: String,
    /// Its key.
    pub key: PrivateKey,
    /// Trusted authorities in PEM.
    pub trust: String,
}

impl Credentials {
    /// What the operator's Secret holds.
    pub fn new(leaf: &Leaf, trust: &str) -> Self {
        Self { certificate: leaf.certificate.clone(), key: leaf.key.clone(), trust: trust.to_owned() }
    }
}

/// One broker to be asked.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Host name; the certificate must be valid for it.
    pub host: String,
    /// Port of the fleet listener.
    pub port: u16,
    /// How to authenticate.
    pub credentials: Arc<Credentials>,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    /// HTTP method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// JSON body.
    pub body: Option<Bytes>,
}

/// Carries requests to brokers.
pub trait Transport: Send + Sync + 'static {
    /// Asks one broker; resolves to HTTP status and body, or to why there is none. May be dropped at any time.
    fn send(
        &self,
        endpoint: &Endpoint,
        call: Call,
    ) -> impl Future<Output = Result<(u16, Bytes), String>> + Send;
}

/// One cluster's brokers.
#[derive(Debug)]
pub struct Fleet<'a, T> {
    transport: &'a T,
    names: &'a Names,
    replicas: i32,
    credentials: Arc<Credentials>,
}

impl<'a, T: Transport> Fleet<'a, T> {
    /// The brokers with ordinals below `replicas` of the cluster that `names` belong to.
    pub fn new(transport: &'a T, names: &'a Names, replicas: i32, credentials: Arc<Credentials>) -> Self {
        Self { transport, names, replicas, credentials }
    }

    /// What each broker says about itself, by ordinal. Asks all at once.
    pub async fn identities(&self) -> Vec<Result<Identity, CallError>> {
        let calls = (0..self.replicas).map(|n| self.ask::<(), Identity>(n, Method::GET, "/identity", None));
        futures::future::join_all(calls).await
    }

    /// Asks the broker with `ordinal` to form the quorum.
    pub async fn bootstrap_quorum(&self, ordinal: i32, request: &BootstrapQuorum) -> Result<(), CallError> {
        let _: serde_json::Value =
            self.ask(ordinal, Method::POST, "/quorum/bootstrap", Some(request)).await?;
        Ok(())
    }

    /// The cluster as its metadata quorum sees it.
    pub async fn cluster(&self) -> Result<ClusterView, CallError> {
        self.any::<(), _>(Method::GET, "/cluster", None).await
    }

    /// Tells the controller where a broker runs.
    pub async fn set_rack(&self, broker_id: i32, rack: Option<String>) -> Result<(), CallError> {
        let path = format!("/brokers/{broker_id}/rack");
        let _: serde_json::Value = self.any(Method::PUT, &path, Some(&SetRack { rack })).await?;
        Ok(())
    }

    /// The topic, or `None` where the quorum says that there is none.
    pub async fn topic(&self, name: &str) -> Result<Option<TopicView>, CallError> {
        let answer = self.any::<(), _>(Method::GET, &topic_path(name), None).await;
        unless_absent(answer)
    }

    /// Brings a topic to the wanted state.
    pub async fn apply_topic(&self, name: &str, wanted: &ApplyTopic) -> Result<ApplyTopicResult, CallError> {
        self.any(Method::PUT, &topic_path(name), Some(wanted)).await
    }

    /// Deletes the topic if `owner_uid` owns it. Whether there was one; its absence is a success too.
    pub async fn delete_topic(&self, name: &str, owner_uid: &str) -> Result<bool, CallError> {
        let path = format!("{}?ownerUid={}", topic_path(name), percent_encoded(owner_uid));
        let answer = self.any::<(), serde_json::Value>(Method::DELETE, &path, None).await;
        unless_absent(answer).map(|found| found.is_some())
    }

    /// Gives the topic up without deleting it. Whether there was one; its absence is a success too.
    pub async fn release_topic(&self, name: &str, owner_uid: &str) -> Result<bool, CallError> {
        let path = format!("{}/release", topic_path(name));
        let request = ReleaseTopic { owner_uid: owner_uid.to_owned() };
        let answer = self.any::<_, serde_json::Value>(Method::POST, &path, Some(&request)).await;
        unless_absent(answer).map(|found| found.is_some())
    }

    /// Asks one broker after the other until one answers for the cluster.
    async fn any<B: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<A, CallError> {
        let mut last = CallError::Unreachable("the cluster has no brokers".to_owned());
        for ordinal in 0..self.replicas {
            match self.ask(ordinal, method.clone(), path, body).await {
                // Another broker may see a leader that this one does not.
                Err(error) if error.is_transient() => last = error,
                answer => return answer,
            }
        }
        Err(last)
    }

    async fn ask<B: Serialize, A: DeserializeOwned>(
        &self,
        ordinal: i32,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<A, CallError> {
        let endpoint = Endpoint {
            host: self.names.pod_host(ordinal),
            port: FLEET_PORT,
            credentials: self.credentials.clone(),
        };
        let body = body.map(|body| serde_json::to_vec(body).expect("API types serialize to JSON").into());
        let call = Call { method, path: format!("{API_PREFIX}{path}"), body };
        let pod = self.names.pod(ordinal);
        let (status, answer) = self
            .transport
            .send(&endpoint, call)
            .await
            .map_err(|error| CallError::Unreachable(format!("{pod}: {error}")))?;
        if (200..300).contains(&status) {
            serde_json::from_slice(&answer)
                .map_err(|error| CallError::Unreachable(format!("{pod}: answer cannot be read: {error}")))
        } else {
            Err(refusal(status, &answer))
        }
    }
}

fn refusal(status: u16, answer: &[u8]) -> CallError {
    match serde_json::from_slice(answer) {
        Ok(ApiError { code, message }) => CallError::Refused { status, code, message },
        Err(_) => CallError::Unreachable(format!("unexpected answer with HTTP status {status}")),
    }
}

fn unless_absent<A>(answer: Result<A, CallError>) -> Result<Option<A>, CallError> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.code() == Some(code::TOPIC_NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

fn topic_path(name: &str) -> String {
    format!("/topics/{}", percent_encoded(name))
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a String cannot fail");
        }
        out
    })
}

type Connection = SendRequest<Full<Bytes>>;

/// HTTP/1.1 over mutually authenticated TLS, with a few idle connections kept.
#[derive(Debug, Default)]
pub struct HttpTransport {
    idle: Mutex<HashMap<IdleKey, (Connection, Instant)>>,
}

/// A connection is used again only with the credentials it was made with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct IdleKey {
    host: String,
    certificate: String,
    trust: String,
}

impl Transport for HttpTransport {
    async fn send(&self, endpoint: &Endpoint, call: Call) -> Result<(u16, Bytes), String> {
        let exchange = async {
            if let Some(connection) = self.take_idle(endpoint)
                && let Ok(answer) = self.exchange(connection, endpoint, &call).await
            {
                return Ok(answer);
            }
            let connection = tokio::time::timeout(CONNECT_TIMEOUT, connect(endpoint))
                .await
                .map_err(|_| format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()))??;
            self.exchange(connection, endpoint, &call).await
        };
        tokio::time::timeout(CALL_TIMEOUT, exchange)
            .await
            .map_err(|_| format!("no answer within {} s", CALL_TIMEOUT.as_secs()))?
    }
}

impl HttpTransport {
    async fn exchange(
        &self,
        mut connection: Connection,
        endpoint: &Endpoint,
        call: &Call,
    ) -> Result<(u16, Bytes), String> {
        let request = Request::builder()
            .method(call.method.clone())
            .uri(&call.path)
            .header(HOST, format!("{}:{}", endpoint.host, endpoint.port))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(call.body.clone().unwrap_or_default()))
            .map_err(|error| error.to_string())?;
        let response = connection.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT);
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        self.keep_idle(endpoint, connection);
        Ok((status, body))
    }

    fn take_idle(&self, endpoint: &Endpoint) -> Option<Connection> {
        let mut idle = self.idle.lock().expect("no panic while the lock is held");
        let (connection, since) = idle.remove(&idle_key(endpoint))?;
        (since.elapsed() < IDLE_LIMIT && !connection.is_closed()).then_some(connection)
    }

    fn keep_idle(&self, endpoint: &Endpoint, connection: Connection) {
        let mut idle = self.idle.lock().expect("no panic while the lock is held");
        // Also drops connections to brokers that are gone.
        idle.retain(|_, (connection, since)| since.elapsed() < IDLE_LIMIT && !connection.is_closed());
        if !connection.is_closed() {
            idle.insert(idle_key(endpoint), (connection, Instant::now()));
        }
    }
}

fn idle_key(endpoint: &Endpoint) -> IdleKey {
    IdleKey {
        host: endpoint.host.clone(),
        certificate: endpoint.credentials.certificate.clone(),
        trust: endpoint.credentials.trust.clone(),
    }
}

async fn connect(endpoint: &Endpoint) -> Result<Connection, String> {
    let config = tls_config(&endpoint.credentials)?;
    let name = ServerName::try_from(endpoint.host.clone()).map_err(|error| error.to_string())?;
    let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port))
        .await
        .map_err(|error| format!("connect to {}:{}: {error}", endpoint.host, endpoint.port))?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|error| format!("TLS with {}: {error}", endpoint.host))?;
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    // Ends with the connection: when the sender is dropped, or the broker closes it.
    tokio::spawn(connection);
    Ok(sender)
}

fn tls_config(credentials: &Credentials) -> Result<Arc<rustls::ClientConfig>, String> {
    let text = |error: &dyn std::fmt::Display| format!("credentials of the operator: {error}");
    let certificates = |pem: &str| {
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(|e| text(&e))
    };
    let mut roots = rustls::RootCertStore::empty();
    for authority in certificates(&credentials.trust)? {
        roots.add(authority).map_err(|error| text(&error))?;
    }
    let key = PrivateKeyDer::from_pem_slice(credentials.key.expose().as_bytes()).map_err(|e| text(&e))?;
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| text(&error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&credentials.certificate)?, key)
            .map_err(|error| text(&error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
pub mod fake {
    //! A fleet in memory, for tests of what the operator does with answers.

    use super::*;

    /// Answers by a function of host and call.
    #[derive(Debug)]
    pub struct FakeTransport<F>(pub F);

    impl<F> Transport for FakeTransport<F>
    where
        F: Fn(&str, &Call) -> Result<(u16, serde_json::Value), String> + Send + Sync + 'static,
    {
        async fn send(&self, endpoint: &Endpoint, call: Call) -> Result<(u16, Bytes), String> {
            (self.0)(&endpoint.host, &call).map(|(status, body)| (status, body.to_string().into()))
        }
    }

    /// Credentials that nobody checks.
    pub fn credentials() -> Arc<Credentials> {
        let now = jiff::Timestamp::now();
        let authorities = crate::certificates::renew(None, &[], "test", now).expect("certificates").0;
        let leaf =
            authorities.issue(&crate::certificates::operator_purpose(), now).expect("a leaf").expect("a key");
        Arc::new(Credentials::new(&leaf, &authorities.trust()))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::{fake::*, *};
    use crate::certificates::{self, broker_purpose, operator_purpose};

    fn names() -> Names {
        Names::new("ns", "demo")
    }

    fn not_found() -> serde_json::Value {
        json!({"code": "TopicNotFound", "message": "no such topic"})
    }

    #[tokio::test]
    async fn asks_the_next_broker_when_one_is_down_or_sees_no_quorum() {
        let transport = FakeTransport(|host: &str, _: &Call| {
            if host.starts_with("demo-broker-0.") {
                Err("connection refused".to_owned())
            } else if host.starts_with("demo-broker-1.") {
                Ok((503, json!({"code": "QuorumUnavailable", "message": "no leader"})))
            } else {
                Ok((404, not_found()))
            }
        });
        let names = names();
        let fleet = Fleet::new(&transport, &names, 3, credentials());
        assert!(fleet.topic("orders").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_unreachable_fleet_is_not_an_absent_topic() {
        let transport = FakeTransport(|_: &str, _: &Call| Err("connection refused".to_owned()));
        let names = names();
        let fleet = Fleet::new(&transport, &names, 3, credentials());
        let error = fleet.topic("orders").await.unwrap_err();
        assert!(error.is_transient() && error.code().is_none(), "{error}");
        assert_eq!(error.to_string(), "demo-broker-2: connection refused");
    }

    #[tokio::test]
    async fn a_404_that_no_broker_wrote_is_not_an_absent_topic() {
        let transport = FakeTransport(|_: &str, _: &Call| Ok((404, json!("page not found"))));
        let names = names();
        let fleet = Fleet::new(&transport, &names, 1, credentials());
        assert!(fleet.topic("orders").await.is_err());
    }

    #[tokio::test]
    async fn deleting_what_is_gone_succeeds_and_what_is_anothers_does_not() {
        let gone = FakeTransport(|_: &str, call: &Call| {
            assert_eq!(call.path, "/v1/topics/a%2Fb?ownerUid=u-1");
            Ok((404, not_found()))
        });
        let names = names();
        let found = Fleet::new(&gone, &names, 1, credentials()).delete_topic("a/b", "u-1").await.unwrap();
        assert!(!found);
        let owned = FakeTransport(|_: &str, _: &Call| {
            Ok((409, json!({"code": "OwnedByAnother", "message": "owned by x"})))
        });
        let error = Fleet::new(&owned, &names, 1, credentials()).delete_topic("a", "u-1").await.unwrap_err();
        assert_eq!(error.code(), Some(code::OWNED_BY_ANOTHER));
        assert!(!error.is_transient());
    }

    /// A broker's fleet listener that answers every request with `{}`, on as many connections as are made.
    async fn tls_server(authorities: &certificates::Authorities, names: &Names) -> (u16, Arc<AtomicUsize>) {
        let leaf = authorities.issue(&broker_purpose(names), jiff::Timestamp::now()).unwrap().unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authorities.trust().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(leaf.key.expose().as_bytes()).unwrap(),
            )
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = accepted.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                        if stream.write_all(answer).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        (port, accepted)
    }

    fn authorities() -> certificates::Authorities {
        certificates::renew(None, &[], "demo.ns", jiff::Timestamp::now()).unwrap().0
    }

    fn endpoint(authorities: &certificates::Authorities, trust: &str, host: &str, port: u16) -> Endpoint {
        let leaf = authorities.issue(&operator_purpose(), jiff::Timestamp::now()).unwrap().unwrap();
        Endpoint { host: host.to_owned(), port, credentials: Arc::new(Credentials::new(&leaf, trust)) }
    }

    fn get() -> Call {
        Call { method: Method::GET, path: "/v1/identity".to_owned(), body: None }
    }

    #[tokio::test]
    async fn speaks_mutual_tls_and_uses_a_connection_again() {
        let authorities = authorities();
        let (port, accepted) = tls_server(&authorities, &names()).await;
        let endpoint = endpoint(&authorities, &authorities.trust(), "localhost", port);
        let transport = HttpTransport::default();
        for _ in 0..3 {
            assert_eq!(transport.send(&endpoint, get()).await.unwrap(), (200, Bytes::from_static(b"{}")));
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn refuses_a_broker_of_another_authority_and_one_with_another_name() {
        let (ours, theirs) = (authorities(), authorities());
        let (port, _) = tls_server(&theirs, &names()).await;
        let error = HttpTransport::default()
            .send(&endpoint(&ours, &ours.trust(), "localhost", port), get())
            .await
            .unwrap_err();
        assert!(error.starts_with("TLS with localhost"), "{error}");
        let error = HttpTransport::default()
            .send(&endpoint(&theirs, &theirs.trust(), "127.0.0.1", port), get())
            .await
            .unwrap_err();
        assert!(error.contains("not valid for name") || error.contains("NotValidForName"), "{error}");
    }
}
