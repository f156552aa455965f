//! One bridge, one network namespace and link per broker, and what can go wrong between them.
//!
//! Everything lies in the run's own network namespace, which has no way out. Links are cut and made lossy by the
//! packet filter inside the broker's namespace, so that each direction can be cut by itself and nobody is told:
//! packets vanish. They are made slow by a token bucket, since not every kernel has netem.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::shell::run;

/// Address of the clients: the bridge itself.
const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

/// Address of broker `number`.
pub fn address(number: usize) -> Ipv4Addr {
    let host = u8::try_from(number + 1).expect("a fleet has fewer than 250 brokers");
    Ipv4Addr::new(10, 77, 0, host)
}

/// Name of the namespace of broker `number`.
pub fn namespace(number: usize) -> String {
    format!("broker-{number}")
}

/// Which packets vanish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// All.
    Both,
    /// Those that the broker would receive.
    Inbound,
    /// Those that the broker sends.
    Outbound,
}

/// Makes the bridge.
///
/// # Errors
/// `ip` fails.
pub async fn create_bridge() -> Result<()> {
    run(&["ip", "link", "set", "lo", "up"]).await?;
    run(&["ip", "link", "add", "fleet", "type", "bridge"]).await?;
    run(&["ip", "address", "add", &format!("{CLIENTS}/24"), "dev", "fleet"]).await?;
    run(&["ip", "link", "set", "fleet", "up"]).await?;
    Ok(())
}

/// Makes the namespace of a broker and its link to the bridge.
///
/// # Errors
/// `ip` fails.
pub async fn create_host(number: usize) -> Result<()> {
    let (name, link) = (namespace(number), format!("link-{number}"));
    run(&["ip", "netns", "add", &name]).await?;
    run(&["ip", "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &name]).await?;
    run(&["ip", "link", "set", &link, "master", "fleet", "up"]).await?;
    run(&["ip", "-n", &name, "address", "add", &format!("{}/24", address(number)), "dev", "eth0"]).await?;
    run(&["ip", "-n", &name, "link", "set", "lo", "up"]).await?;
    run(&["ip", "-n", &name, "link", "set", "eth0", "up"]).await?;
    Ok(())
}

/// Removes the namespace of a broker and its link.
///
/// # Errors
/// `ip` fails.
pub async fn remove_host(number: usize) -> Result<()> {
    // By itself: the kernel takes apart a namespace that was deleted in its own time.
    run(&["ip", "link", "delete", &format!("link-{number}")]).await?;
    run(&["ip", "netns", "delete", &namespace(number)]).await.map(drop)
}

/// Cuts a broker off from `peers`.
///
/// # Errors
/// `iptables` fails.
pub async fn cut(number: usize, peers: &[Ipv4Addr], direction: Direction) -> Result<()> {
    for peer in peers.iter().map(Ipv4Addr::to_string) {
        if direction != Direction::Outbound {
            filter(number, &["-A", "INPUT", "-s", &peer, "-j", "DROP"]).await?;
        }
        if direction != Direction::Inbound {
            filter(number, &["-A", "OUTPUT", "-d", &peer, "-j", "DROP"]).await?;
        }
    }
    Ok(())
}

/// Addresses of everyone but `number`: `others` of the fleet, and the clients if they too cannot reach it.
pub fn peers(others: impl IntoIterator<Item = usize>, clients: bool) -> Vec<Ipv4Addr> {
    others.into_iter().map(address).chain(clients.then_some(CLIENTS)).collect()
}

/// Loses this share of all packets to the broker.
///
/// # Errors
/// `iptables` fails.
pub async fn lose(number: usize, percent: u8) -> Result<()> {
    let share = format!("{:.2}", f64::from(percent) / 100.0);
    let random = ["-m", "statistic", "--mode", "random", "--probability", &share, "-j", "DROP"];
    filter(number, &[&["-A", "INPUT"], &random[..]].concat()).await
}

/// Lets no more than this through from the broker; up to two seconds' worth waits, the rest is dropped.
///
/// # Errors
/// `tc` fails.
pub async fn slow(number: usize, kilobits: u32) -> Result<()> {
    let rate = format!("{kilobits}kbit");
    let name = namespace(number);
    let bucket = ["root", "tbf", "rate", &rate, "burst", "16kb", "latency", "2s"];
    run(&[&["tc", "-n", &name, "qdisc", "replace", "dev", "eth0"], &bucket[..]].concat()).await.map(drop)
}

/// Takes back everything that was done to a broker's link.
///
/// # Errors
/// `iptables` or `tc` fails.
pub async fn heal(number: usize) -> Result<()> {
    filter(number, &["-F"]).await?;
    let name = namespace(number);
    let shaped = run(&["tc", "-n", &name, "qdisc", "show", "dev", "eth0"]).await?.contains("tbf");
    if shaped {
        run(&["tc", "-n", &name, "qdisc", "delete", "dev", "eth0", "root"]).await?;
    }
    Ok(())
}

async fn filter(number: usize, rule: &[&str]) -> Result<()> {
    let name = namespace(number);
    run(&[&["ip", "netns", "exec", &name, "iptables", "-w"], rule].concat()).await.map(drop)
}
