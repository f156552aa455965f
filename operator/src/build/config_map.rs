//! ConfigMap with one complete properties file per broker.
//!
//! A file per pod, because node id and advertised addresses differ and the brokers' image has no shell to fill them in.
//! The pod template does not depend on it: a changed property restarts nothing.

use std::{collections::BTreeMap, fmt::Write as _};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use millrace_crds::{FLEET_LISTENER, FLEET_PORT, HEALTH_PORT, Listener, ListenerType};

use super::{metadata, stable_hash};
use crate::controller::kafka_cluster::validate::ValidatedCluster;

/// Where the volumes are mounted in a broker's container.
pub const CONFIG_DIRECTORY: &str = "/etc/millrace/config";
/// Certificates of the fleet listener.
pub const TLS_DIRECTORY: &str = "/etc/millrace/tls";
/// The data volume.
pub const DATA_DIRECTORY: &str = "/var/lib/millrace";

/// Hash of the properties that a broker reads only when it starts.
pub const REVISION_ANNOTATION: &str = "millrace.dev/revision";
/// When [`REVISION_ANNOTATION`] changed last: brokers whose pod is older run with an older configuration.
pub const REVISION_SINCE_ANNOTATION: &str = "millrace.dev/revision-since";

/// The ConfigMap; `live` is the one that exists, `now` the time to note if its properties change.
pub fn config_map(cluster: &ValidatedCluster, live: Option<&ConfigMap>, now: Timestamp) -> ConfigMap {
    let revision = revision(cluster);
    let since = live
        .and_then(|live| live.metadata.annotations.as_ref())
        .filter(|found| found.get(REVISION_ANNOTATION) == Some(&revision))
        .and_then(|found| found.get(REVISION_SINCE_ANNOTATION).cloned())
        .unwrap_or_else(|| now.to_string());
    let mut metadata = metadata(cluster, cluster.names.config_map());
    metadata.annotations = Some(BTreeMap::from([
        (REVISION_ANNOTATION.to_owned(), revision),
        (REVISION_SINCE_ANNOTATION.to_owned(), since),
    ]));
    let files = (0..cluster.replicas)
        .map(|n| (format!("{}.properties", cluster.names.pod(n)), properties(cluster, n)))
        .collect();
    ConfigMap { metadata, data: Some(files), ..ConfigMap::default() }
}

/// The time from which on a started broker has the configuration of `config_map`.
pub fn revision_since(config_map: &ConfigMap) -> Option<Timestamp> {
    config_map.metadata.annotations.as_ref()?.get(REVISION_SINCE_ANNOTATION)?.parse().ok()
}

/// The properties file of one broker.
pub fn properties(cluster: &ValidatedCluster, ordinal: i32) -> String {
    let mut text = String::new();
    let mut put = |key: &str, value: &str| {
        writeln!(text, "{key}={}", escape(value)).expect("writing to a String cannot fail");
    };
    for (key, value) in identity(cluster, ordinal) {
        put(key, &value);
    }
    for (key, value) in shared(cluster) {
        put(&key, &value);
    }
    // Last, so that the user's word wins; keys that the operator computes were refused in validation.
    for (key, value) in &cluster.config {
        put(key, value);
    }
    text
}

/// What differs from broker to broker, and the quorum's addresses, which only matter to a broker that joins.
fn identity(cluster: &ValidatedCluster, ordinal: i32) -> [(&'static str, String); 4] {
    let voters = (0..cluster.initial_voters)
        .map(|n| format!("{}:{FLEET_PORT}", cluster.names.pod_host(n)))
        .collect::<Vec<_>>()
        .join(",");
    let advertised = cluster
        .listeners
        .iter()
        .map(|listener| {
            format!("{}://{}", property_name(&listener.name), address(cluster, listener, ordinal))
        })
        .chain([format!("FLEET://{}:{FLEET_PORT}", cluster.names.pod_host(ordinal))])
        .collect::<Vec<_>>()
        .join(",");
    [
        ("cluster.id", cluster.cluster_id.clone()),
        ("node.id", ordinal.to_string()),
        ("advertised.listeners", advertised),
        ("controller.quorum.bootstrap.servers", voters),
    ]
}

fn shared(cluster: &ValidatedCluster) -> Vec<(String, String)> {
    let every = |of: &dyn Fn(&str, u16) -> String| {
        let clients = cluster.listeners.iter().map(|l| (property_name(&l.name), port(l.port)));
        let all = clients.chain([(property_name(FLEET_LISTENER), FLEET_PORT)]);
        all.map(|(name, port)| of(&name, port)).collect::<Vec<_>>().join(",")
    };
    let tls = |file: &str| format!("{TLS_DIRECTORY}/{file}");
    [
        ("log.dirs", DATA_DIRECTORY.to_owned()),
        ("listeners", every(&|name, port| format!("{name}://0.0.0.0:{port}"))),
        (
            "listener.security.protocol.map",
            every(&|name, _| format!("{name}:{}", if name == "FLEET" { "SSL" } else { "PLAINTEXT" })),
        ),
        ("inter.broker.listener.name", property_name(FLEET_LISTENER)),
        ("listener.name.fleet.ssl.certificate.location", tls("tls.crt")),
        ("listener.name.fleet.ssl.key.location", tls("tls.key")),
        ("listener.name.fleet.ssl.ca.location", tls("ca.crt")),
        ("health.listener", format!("0.0.0.0:{HEALTH_PORT}")),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

/// `host:port` that a broker tells the clients of a listener.
pub fn address(cluster: &ValidatedCluster, listener: &Listener, ordinal: i32) -> String {
    match (&listener.type_, &listener.node_ports) {
        (ListenerType::NodePort, Some(ports)) => {
            let host = listener.advertised_host.as_deref().unwrap_or_default();
            format!("{host}:{}", ports.brokers + ordinal)
        }
        (ListenerType::NodePort, None) | (ListenerType::ClusterLocal, _) => {
            format!("{}:{}", cluster.names.pod_host(ordinal), listener.port)
        }
    }
}

/// Changes when brokers would have to be started again to follow.
///
/// Leaves out ids and quorum addresses: they change for the others when a broker is added, and need no restart.
fn revision(cluster: &ValidatedCluster) -> String {
    let addresses: Vec<_> = cluster.listeners.iter().map(|listener| address(cluster, listener, 0)).collect();
    stable_hash(&format!("{:?}", (shared(cluster), &cluster.config, addresses)))
}

fn property_name(listener: &str) -> String {
    listener.to_ascii_uppercase()
}

fn port(port: i32) -> u16 {
    u16::try_from(port).expect("validation keeps ports between 1024 and 65535")
}

/// Kafka's properties format treats a backslash as an escape, and leading blanks as part of the separator.
fn escape(value: &str) -> String {
    let escaped = value.replace('\\', "\\\\");
    match escaped.strip_prefix(' ') {
        Some(rest) => format!("\\ {rest}"),
        None => escaped,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;
    use crate::controller::kafka_cluster::validate::fixture::quickstart;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn renders_a_complete_file_with_the_users_properties_last() {
        assert_eq!(
            properties(&quickstart(), 1),
            "cluster.id=AAAAAAAAAAAAAAAAAAAAAQ\n\
             node.id=1\n\
             advertised.listeners=INTERNAL://demo-broker-1.demo-brokers.ns.svc:9092,EXTERNAL://localhost:30101,FLEET://demo-broker-1.demo-brokers.ns.svc:9093\n\
             controller.quorum.bootstrap.servers=demo-broker-0.demo-brokers.ns.svc:9093,demo-broker-1.demo-brokers.ns.svc:9093,demo-broker-2.demo-brokers.ns.svc:9093\n\
             log.dirs=/var/lib/millrace\n\
             listeners=INTERNAL://0.0.0.0:9092,EXTERNAL://0.0.0.0:9094,FLEET://0.0.0.0:9093\n\
             listener.security.protocol.map=INTERNAL:PLAINTEXT,EXTERNAL:PLAINTEXT,FLEET:SSL\n\
             inter.broker.listener.name=FLEET\n\
             listener.name.fleet.ssl.certificate.location=/etc/millrace/tls/tls.crt\n\
             listener.name.fleet.ssl.key.location=/etc/millrace/tls/tls.key\n\
             listener.name.fleet.ssl.ca.location=/etc/millrace/tls/ca.crt\n\
             health.listener=0.0.0.0:8080\n\
             default.replication.factor=3\n\
             min.insync.replicas=2\n"
        );
    }

    #[test]
    fn holds_one_file_per_pod() {
        let files: Vec<_> =
            config_map(&quickstart(), None, Timestamp::UNIX_EPOCH).data.unwrap().into_keys().collect();
        assert_eq!(
            files,
            ["demo-broker-0.properties", "demo-broker-1.properties", "demo-broker-2.properties"]
        );
    }

    #[test]
    fn is_byte_for_byte_the_same_when_nothing_changed() {
        let first = config_map(&quickstart(), None, time("2026-01-01T00:00:00Z"));
        assert_eq!(config_map(&quickstart(), Some(&first), time("2026-06-01T00:00:00Z")), first);
    }

    #[test]
    fn a_changed_property_moves_the_revision_and_an_added_broker_does_not() {
        let first = config_map(&quickstart(), None, time("2026-01-01T00:00:00Z"));
        let mut cluster = quickstart();
        cluster.replicas = 5;
        let grown = config_map(&cluster, Some(&first), time("2026-02-01T00:00:00Z"));
        assert_eq!(revision_since(&grown), Some(time("2026-01-01T00:00:00Z")));
        cluster.config.insert("log.retention.ms".into(), "1000".into());
        let changed = config_map(&cluster, Some(&grown), time("2026-03-01T00:00:00Z"));
        assert_eq!(revision_since(&changed), Some(time("2026-03-01T00:00:00Z")));
    }

    #[test]
    fn backslashes_and_leading_blanks_survive_the_properties_format() {
        assert_eq!(escape(r"a\b"), r"a\\b");
        assert_eq!(escape(" x"), r"\ x");
    }
}
