//! Questions to a broker over HTTP: the management API on its internal listener, and its probe of readiness.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::broker::{FLEET_PORT, HEALTH_PORT};
use super::network::address;

/// A broker that can answer does so within this time.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Asks the management API of a broker.
///
/// # Errors
/// Nobody answers, or not with success.
pub async fn get(number: usize, path: &str) -> Result<Value> {
    request(SocketAddr::from((address(number), FLEET_PORT)), "GET", path, "", TIMEOUT).await
}

/// Sends the management API of a broker something; that may take as long as an election.
///
/// # Errors
/// Nobody answers, or not with success.
pub async fn post(number: usize, path: &str, body: &Value) -> Result<Value> {
    let address = SocketAddr::from((address(number), FLEET_PORT));
    request(address, "POST", path, &body.to_string(), Duration::from_secs(20)).await
}

/// Whether a broker is ready; if not, why.
///
/// # Errors
/// What it says it waits for, or that nobody answers.
pub async fn ready(number: usize) -> Result<()> {
    let address = SocketAddr::from((address(number), HEALTH_PORT));
    request(address, "GET", "/readyz", "", TIMEOUT).await.map(drop)
}

async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    timeout: Duration,
) -> Result<Value> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(timeout, exchange)
        .await
        .with_context(|| format!("{method} {path} at {address}: no answer within {timeout:?}"))?
        .with_context(|| format!("{method} {path} at {address}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    ensure!(head.split(' ').nth(1) == Some("200"), "{method} {path} at {address}: {}", body.trim());
    Ok(serde_json::from_str(body).unwrap_or(Value::Null))
}
