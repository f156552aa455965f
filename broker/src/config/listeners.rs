//! Addresses: where a broker listens, and what it tells others to connect to.

use std::fmt;
use std::path::PathBuf;

use super::error::ConfigError;
use super::value::elements;

/// A host name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Name or address; an IPv6 address stands without brackets.
    pub host: String,
    /// Port. 0 in an address to listen on takes a free one; the advertised port is then the one that was taken.
    pub port: u16,
}

impl HostPort {
    /// Reads `host:port`, with an IPv6 address in brackets. The host may be empty.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']')?,
            None if host.contains(':') => return None,
            None => host,
        };
        let plain =
            host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%'));
        // `u16::from_str` would also take a plus sign.
        let port = Some(port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()?;
        plain.then(|| Self { host: host.to_owned(), port })
    }

    /// Address to give to `bind`: an empty host means all addresses.
    pub fn bind_address(&self) -> (&str, u16) {
        (if self.host.is_empty() { "0.0.0.0" } else { &self.host }, self.port)
    }

    fn is_wildcard(&self) -> bool {
        matches!(self.host.as_str(), "" | "0.0.0.0" | "::")
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A listener for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Name, upper case.
    pub name: String,
    /// Where to listen.
    pub bind: HostPort,
    /// What clients are told; port 0 stands for the port that `bind` got.
    pub advertised: HostPort,
    /// `PLAINTEXT`: TLS for clients is not there yet.
    pub security_protocol: String,
}

/// The listener that brokers use among themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetListener {
    /// Name, upper case.
    pub name: String,
    /// Where to listen.
    pub bind: HostPort,
    /// What other brokers are told; port 0 stands for the port that `bind` got.
    pub advertised: HostPort,
    /// Files for mutual TLS; without them the listener is plain.
    pub tls: Option<TlsFiles>,
}

/// PEM files of a listener; they are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, leaf first.
    pub certificate: PathBuf,
    /// Private key of the leaf.
    pub key: PathBuf,
    /// Certificates of the authorities that peers' certificates may come from.
    pub ca: PathBuf,
}

/// A named address of `listeners` or `advertised.listeners`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    name: String,
    address: HostPort,
}

/// Reads the listener keys together; mistakes go to `errors`.
///
/// `get` looks up keys of the file and their defaults.
pub(super) fn read<'a>(
    get: &dyn Fn(&str) -> Option<&'a str>,
    errors: &mut Vec<ConfigError>,
) -> Option<(Vec<ListenerConfig>, FleetListener)> {
    let before = errors.len();
    let listeners = named(get, "listeners", errors).unwrap_or_default();
    if listeners.is_empty() && errors.len() == before {
        errors.push(ConfigError::of_key(
            "listeners",
            "not set; name a listener for clients and one for the fleet, such as INTERNAL://0.0.0.0:9092,FLEET://0.0.0.0:9093",
        ));
    }
    let advertised = named(get, "advertised.listeners", errors);
    let protocols = protocols(get, errors);
    check_ports(&listeners, errors);
    let fleet_name = get("inter.broker.listener.name").unwrap_or_default().to_ascii_uppercase();
    for Named { name, .. } in advertised.iter().flatten() {
        if !listeners.iter().any(|listener| listener.name == *name) {
            let message = format!("{name} is no listener; add it to listeners or remove it here");
            errors.push(ConfigError::of_key("advertised.listeners", message));
        }
    }
    let mut clients = Vec::new();
    let mut fleet = None;
    for Named { name, address } in &listeners {
        let protocol =
            protocols.iter().find(|(listener, _)| listener == name).map(|(_, protocol)| protocol.as_str());
        if protocol.is_none() {
            let message = format!("says nothing of listener {name}; add {name}:PLAINTEXT or {name}:SSL");
            errors.push(ConfigError::of_key("listener.security.protocol.map", message));
        }
        let told = advertised_address(name, address, advertised.as_deref(), errors);
        let (Some(protocol), Some(told)) = (protocol, told) else { continue };
        if *name == fleet_name {
            let tls = if protocol == "SSL" { tls_files(get, name, errors) } else { None };
            fleet = Some(FleetListener { name: name.clone(), bind: address.clone(), advertised: told, tls });
        } else if protocol == "PLAINTEXT" {
            clients.push(ListenerConfig {
                name: name.clone(),
                bind: address.clone(),
                advertised: told,
                security_protocol: protocol.to_owned(),
            });
        } else {
            let message = format!("listener {name} is for clients, which can only be PLAINTEXT so far");
            errors.push(ConfigError::of_key("listener.security.protocol.map", message));
        }
    }
    if !listeners.is_empty() {
        if !listeners.iter().any(|listener| listener.name == fleet_name) {
            let message =
                format!("{fleet_name} is no listener; add {fleet_name}://0.0.0.0:9093 to listeners");
            errors.push(ConfigError::of_key("inter.broker.listener.name", message));
        } else if listeners.len() == 1 {
            let message = "there is none for clients; add one such as INTERNAL://0.0.0.0:9092";
            errors.push(ConfigError::of_key("listeners", message));
        }
    }
    if errors.len() > before { None } else { fleet.map(|fleet| (clients, fleet)) }
}

/// What to advertise for the listener `name`, which is bound to `address`.
fn advertised_address(
    name: &str,
    address: &HostPort,
    advertised: Option<&[Named]>,
    errors: &mut Vec<ConfigError>,
) -> Option<HostPort> {
    let message = match advertised {
        None if !address.is_wildcard() => return Some(address.clone()),
        None => format!(
            "not set, and nobody can connect to {address}, where {name} listens; say how {name} is reached"
        ),
        Some(all) => match all.iter().find(|listener| listener.name == name) {
            None => format!("has no address for listener {name}; add {name}://host:port"),
            Some(Named { address, .. }) if address.is_wildcard() => {
                format!("nobody can connect to {address}; give a host name or address for {name}")
            }
            Some(found) => return Some(found.address.clone()),
        },
    };
    errors.push(ConfigError::of_key("advertised.listeners", message));
    None
}

/// Reads a list of `NAME://host:port`; `None` if the key is not set.
fn named<'a>(
    get: &dyn Fn(&str) -> Option<&'a str>,
    key: &str,
    errors: &mut Vec<ConfigError>,
) -> Option<Vec<Named>> {
    let mut out: Vec<Named> = Vec::new();
    for element in elements(get(key)?) {
        let parts = element.split_once("://");
        let valid_name = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        };
        let parsed = parts.filter(|(name, _)| valid_name(name)).and_then(|(name, address)| {
            Some(Named { name: name.to_ascii_uppercase(), address: HostPort::parse(address)? })
        });
        match parsed {
            None => {
                let message = format!("{element:?} is not of the form NAME://host:port");
                errors.push(ConfigError::of_key(key, message));
            }
            Some(listener) if out.iter().any(|other| other.name == listener.name) => {
                errors.push(ConfigError::of_key(key, format!("{} is there twice", listener.name)));
            }
            Some(listener) => out.push(listener),
        }
    }
    Some(out)
}

fn protocols<'a>(
    get: &dyn Fn(&str) -> Option<&'a str>,
    errors: &mut Vec<ConfigError>,
) -> Vec<(String, String)> {
    const KEY: &str = "listener.security.protocol.map";
    let mut out = Vec::new();
    for element in elements(get(KEY).unwrap_or_default()) {
        match element.split_once(':') {
            Some((name, protocol @ ("PLAINTEXT" | "SSL"))) => {
                out.push((name.to_ascii_uppercase(), protocol.to_owned()));
            }
            Some((name, protocol @ ("SASL_PLAINTEXT" | "SASL_SSL"))) => {
                let message = format!("{protocol} of {name}: SASL is not available yet, use PLAINTEXT");
                errors.push(ConfigError::of_key(KEY, message));
            }
            _ => {
                let message = format!("{element:?} is neither NAME:PLAINTEXT nor NAME:SSL");
                errors.push(ConfigError::of_key(KEY, message));
            }
        }
    }
    out
}

fn check_ports(listeners: &[Named], errors: &mut Vec<ConfigError>) {
    for (position, listener) in listeners.iter().enumerate() {
        let same = |other: &&Named| {
            let hosts_meet = other.address.host == listener.address.host
                || other.address.is_wildcard()
                || listener.address.is_wildcard();
            other.address.port != 0 && other.address.port == listener.address.port && hosts_meet
        };
        if let Some(other) = listeners[..position].iter().find(same) {
            let message = format!(
                "{} and {} are both on port {}; give each its own",
                other.name, listener.name, listener.address.port
            );
            errors.push(ConfigError::of_key("listeners", message));
        }
    }
}

/// Suffixes of `listener.name.<name>.` keys.
pub(super) const TLS_SUFFIXES: [&str; 3] =
    ["ssl.certificate.location", "ssl.key.location", "ssl.ca.location"];

fn tls_files<'a>(
    get: &dyn Fn(&str) -> Option<&'a str>,
    name: &str,
    errors: &mut Vec<ConfigError>,
) -> Option<TlsFiles> {
    let mut file = |suffix: &str| {
        let key = format!("listener.name.{}.{suffix}", name.to_ascii_lowercase());
        match get(&key) {
            Some(path) if !path.is_empty() => Some(PathBuf::from(path)),
            _ => {
                let message =
                    format!("not set; listener {name} is SSL and needs the path of a PEM file here");
                errors.push(ConfigError::of_key(&key, message));
                None
            }
        }
    };
    // All three are looked at before any of them ends this, so that all mistakes are reported.
    let [certificate, key, ca] = TLS_SUFFIXES.map(&mut file);
    Some(TlsFiles { certificate: certificate?, key: key?, ca: ca? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(host: &str, port: u16) -> Option<HostPort> {
        Some(HostPort { host: host.to_owned(), port })
    }

    #[test]
    fn reads_hosts_with_ports() {
        assert_eq!(HostPort::parse("a.b:9092"), host("a.b", 9092));
        assert_eq!(HostPort::parse(":9092"), host("", 9092));
        assert_eq!(HostPort::parse("[::1]:9092"), host("::1", 9092));
        assert_eq!(HostPort::parse("[::1]:9092").map(|a| a.to_string()), Some("[::1]:9092".to_owned()));
    }

    #[test]
    fn refuses_what_is_no_host_with_a_port() {
        for text in ["", "a", "a:", "a:b", "a:99999", "::1:9092", "[::1:9092", "a b:1", "a:+1", "a/b:1"] {
            assert_eq!(HostPort::parse(text), None, "{text}");
        }
    }
}
