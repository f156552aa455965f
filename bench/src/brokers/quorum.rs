//! Forms the metadata quorum of a fleet of our brokers, as the operator would, by the management API on their internal
//! listeners.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

/// Longest wait for an answer; forming a quorum may take an election.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Time between two tries while a broker starts.
const RETRY: Duration = Duration::from_millis(20);

/// Has the brokers with these internal ports form a quorum in which all vote, once all answer.
///
/// # Errors
/// One does not answer before `deadline`, or `ensure_running` says that one has ended; or the quorum cannot be formed.
pub(super) fn form(
    ports: &[u16],
    cluster_id: &str,
    deadline: Instant,
    mut ensure_running: impl FnMut() -> Result<()>,
) -> Result<()> {
    let identity = |port: &u16| loop {
        match request(*port, "GET", "/v1/identity", "") {
            Ok(identity) => {
                return Ok(json!({"raftNodeId": identity["raftNodeId"], "address": identity["address"]}));
            }
            Err(error) if Instant::now() >= deadline => return Err(error.context("Millrace does not start")),
            Err(_) => {
                ensure_running().context("Millrace does not start")?;
                std::thread::sleep(RETRY);
            }
        }
    };
    let voters = ports.iter().map(identity).collect::<Result<Vec<_>>>()?;
    let body = json!({"clusterId": cluster_id, "voters": voters}).to_string();
    let first = *ports.first().context("a fleet has brokers")?;
    request(first, "POST", "/v1/quorum/bootstrap", &body).context("forming the quorum")?;
    Ok(())
}

fn request(port: u16, method: &str, path: &str, body: &str) -> Result<Value> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let length = body.len();
    stream.write_all(
        format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .as_bytes(),
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    parse(&answer).with_context(|| format!("{method} {path}"))
}

/// The body of an answer that means success.
fn parse(answer: &str) -> Result<Value> {
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of its head")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{}: {}", head.lines().next().unwrap_or(""), body.trim());
    Ok(serde_json::from_str(body)?)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_broker_that_has_ended() {
        let deadline = Instant::now() + Duration::from_secs(3_600);
        let free = crate::brokers::ports::free_port().unwrap();
        let error = form(&[free], "cluster", deadline, || anyhow::bail!("it ended with status 1"));
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("does not start") && error.contains("status 1"), "{error}");
    }

    #[test]
    fn only_success_is_success() {
        assert_eq!(parse("HTTP/1.1 200 OK\r\na: b\r\n\r\n{\"x\":1}").unwrap()["x"], 1);
        let error = parse("HTTP/1.1 409 Conflict\r\n\r\nformed already").unwrap_err().to_string();
        assert!(error.contains("409") && error.contains("formed already"), "{error}");
        assert!(parse("HTTP/1.1 200 OK\r\n").is_err());
    }
}
