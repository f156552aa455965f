//! The one request to the management API that the broker's own command line makes.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::FleetListener;
use crate::security::tls::Tls;

/// A broker that moves thousands of leaderships may take this long; Kubernetes waits longer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Why the broker did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("cannot reach the broker on {address}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The advertised name cannot stand in a certificate.
    #[error("{0:?} is no host name")]
    Name(String),
    /// The connection broke.
    #[error("talking to the broker")]
    Http(#[from] hyper::Error),
    /// The broker refused.
    #[error("the broker answered {status}: {body}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// What it said.
        body: String,
    },
    /// No answer.
    #[error("no answer in {TIMEOUT:?}")]
    Timeout,
}

/// Asks the broker on this machine to give up its leadership and leave service; returns when it has.
///
/// # Errors
/// The broker cannot be reached, or did not do it in time.
pub async fn controlled_shutdown(fleet: &FleetListener, tls: Option<&Tls>) -> Result<(), ClientError> {
    tokio::time::timeout(TIMEOUT, post(fleet, tls)).await.map_err(|_| ClientError::Timeout)?
}

async fn post(fleet: &FleetListener, tls: Option<&Tls>) -> Result<(), ClientError> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fleet.bind.port));
    let connect = |source| ClientError::Connect { address, source };
    let stream = TcpStream::connect(address).await.map_err(connect)?;
    let Some(tls) = tls else { return send(stream).await };
    // The certificate is for the name that other brokers use.
    let host = fleet.advertised.host.clone();
    let name = ServerName::try_from(host.clone()).map_err(|_| ClientError::Name(host))?;
    send(TlsConnector::from(tls.client_config()).connect(name, stream).await.map_err(connect)?).await
}

async fn send(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<(), ClientError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the connection; what goes wrong with it the request tells.
    let driver = tokio::spawn(connection);
    let request = Request::post("/v1/local/controlled-shutdown")
        .header(header::HOST, "localhost")
        .body(Empty::<Bytes>::new())
        .expect("the request above is well formed");
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    driver.abort();
    if status.is_success() {
        return Ok(());
    }
    Err(ClientError::Refused { status, body: String::from_utf8_lossy(&body).into_owned() })
}
