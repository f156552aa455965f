//! Whole files, right and wrong.

use super::*;

const WHOLE: &str = "\
cluster.id=MkU3OEVBNTcwNTJENDM2Qg
node.id=2
log.dirs=/var/lib/millrace
listeners=INTERNAL://0.0.0.0:9092,EXTERNAL://0.0.0.0:9094,FLEET://0.0.0.0:9093
advertised.listeners=INTERNAL://demo-broker-2.demo-brokers.ns.svc:9092,EXTERNAL://localhost:30102,FLEET://demo-broker-2.demo-brokers.ns.svc:9093
listener.security.protocol.map=INTERNAL:PLAINTEXT,EXTERNAL:PLAINTEXT,FLEET:SSL
inter.broker.listener.name=FLEET
listener.name.fleet.ssl.certificate.location=/etc/millrace/tls/tls.crt
listener.name.fleet.ssl.key.location=/etc/millrace/tls/tls.key
listener.name.fleet.ssl.ca.location=/etc/millrace/tls/ca.crt
controller.quorum.bootstrap.servers=demo-broker-0.demo-brokers.ns.svc:9093,demo-broker-1.demo-brokers.ns.svc:9093
health.listener=0.0.0.0:8080
";

fn read(text: &str) -> Result<BrokerConfig, Vec<ConfigError>> {
    BrokerConfig::from_properties(text, &|_| None)
}

/// The whole file with the line that starts with `key` replaced; the mistakes in it, one a line.
fn mistakes(replacements: &[(&str, &str)]) -> String {
    let mut text = WHOLE.to_owned();
    for (key, line) in replacements {
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with(key)).chain([*line]).collect();
        text = lines.join("\n");
    }
    let errors = read(&text).expect_err("the configuration has a mistake");
    errors.iter().map(|error| format!("{error}\n")).collect()
}

#[test]
fn reads_what_the_operator_renders() {
    let config = read(&format!("{WHOLE}default.replication.factor=3\nmin.insync.replicas=2\n")).unwrap();
    assert_eq!(config.requested_broker_id, 2);
    assert_eq!(config.data_dir, PathBuf::from("/var/lib/millrace"));
    assert_eq!(config.default_replication_factor, 3);
    assert_eq!(config.setting("min.insync.replicas"), Some("2"));
    let [internal, external] = config.listeners.as_slice() else { panic!("{:?}", config.listeners) };
    assert_eq!((internal.name.as_str(), internal.bind.port), ("INTERNAL", 9092));
    assert_eq!(external.advertised, HostPort { host: "localhost".to_owned(), port: 30102 });
    assert_eq!(config.fleet.tls.unwrap().key, PathBuf::from("/etc/millrace/tls/tls.key"));
    assert_eq!(config.quorum_bootstrap_servers.len(), 2);
    assert_eq!(config.health.unwrap().port, 8080);
    assert_eq!(config.session_timeout, Duration::from_secs(9));
    assert_eq!(config.connections.max_request_bytes, 100 << 20);
}

#[test]
fn dev_needs_nothing_but_a_folder() {
    let config = BrokerConfig::dev(Path::new("/tmp/a b=c"), 9092);
    assert_eq!(config.data_dir, PathBuf::from("/tmp/a b=c"));
    assert_eq!(config.listeners[0].advertised.to_string(), "localhost:9092");
    assert_eq!(config.fleet.tls, None);
    assert_eq!(config.quorum_bootstrap_servers, []);
    assert_eq!(config.default_replication_factor, 1);
}

#[test]
fn reports_all_mistakes_at_once_with_their_lines() {
    let errors =
        read(&format!("{WHOLE}num.partition=3\nfetch.max.bytes=1\nprocess.roles=broker\n")).unwrap_err();
    let text = super::super::report(&errors);
    assert!(text.starts_with("the configuration has 3 mistakes:"), "{text}");
    assert!(text.contains("line 13: num.partition: unknown key; did you mean num.partitions?"), "{text}");
    assert!(text.contains("line 14: fetch.max.bytes: 1 is too small; it must be 1024 or more"), "{text}");
    assert!(text.contains("line 15: process.roles: this key of Apache Kafka does not exist here"), "{text}");
}

#[test]
fn an_empty_file_names_every_key_that_is_needed() {
    let text: String = read("").unwrap_err().iter().map(|error| format!("{error}\n")).collect();
    for key in ["listeners", "cluster.id", "node.id", "log.dirs", "controller.quorum.bootstrap.servers"] {
        assert!(text.contains(&format!("{key}: not set")), "{key} in {text}");
    }
}

#[test]
fn the_cluster_id_is_a_uuid_in_base64() {
    let text = mistakes(&[("cluster.id", "cluster.id=demo")]);
    assert!(text.contains("cluster.id: \"demo\" is not a cluster id"), "{text}");
}

#[test]
fn there_is_exactly_one_data_directory() {
    let text = mistakes(&[("log.dirs", "log.dirs=/a,/b")]);
    assert!(text.contains("log.dirs: 2 directories; a broker has exactly one data volume"), "{text}");
}

#[test]
fn every_listener_is_advertised_and_every_advertised_one_exists() {
    let text =
        mistakes(&[("advertised.listeners", "advertised.listeners=INTERNAL://a:1,OTHER://b:2,FLEET://c:3")]);
    assert!(text.contains("OTHER is no listener"), "{text}");
    assert!(text.contains("has no address for listener EXTERNAL; add EXTERNAL://host:port"), "{text}");
    let text = mistakes(&[("advertised.listeners", "")]);
    assert!(text.contains("nobody can connect to 0.0.0.0:9092, where INTERNAL listens"), "{text}");
}

#[test]
fn the_fleet_listener_exists_and_has_its_files() {
    let text = mistakes(&[("inter.broker.listener.name", "inter.broker.listener.name=BROKERS")]);
    assert!(text.contains("BROKERS is no listener; add BROKERS://0.0.0.0:9093 to listeners"), "{text}");
    let text = mistakes(&[("listener.name.fleet.ssl.ca", ""), ("listener.name.fleet.ssl.key", "")]);
    assert!(text.contains("listener.name.fleet.ssl.ca.location: not set"), "{text}");
    assert!(text.contains("listener.name.fleet.ssl.key.location: not set"), "{text}");
}

#[test]
fn listeners_do_not_share_a_port_with_each_other_or_the_health_server() {
    let text = mistakes(&[("listeners=", "listeners=INTERNAL://:9092,EXTERNAL://:9092,FLEET://:9093")]);
    assert!(text.contains("INTERNAL and EXTERNAL are both on port 9092"), "{text}");
    let text = mistakes(&[("health.listener", "health.listener=0.0.0.0:9093")]);
    assert!(text.contains("health.listener: port 9093 belongs to a listener"), "{text}");
}

#[test]
fn listener_protocols_are_known_and_available() {
    let map = "listener.security.protocol.map=INTERNAL:PLAINTEXT,EXTERNAL:SSL,FLEET:SSL";
    assert!(mistakes(&[("listener.security", map)]).contains("can only be PLAINTEXT so far"));
    let map = "listener.security.protocol.map=INTERNAL:SASL_SSL,EXTERNAL:PLAINTEXT,FLEET:SSL";
    assert!(mistakes(&[("listener.security", map)]).contains("SASL is not available yet"));
    let map = "listener.security.protocol.map=INTERNAL:PLAINTEXT,FLEET:SSL";
    assert!(mistakes(&[("listener.security", map)]).contains("says nothing of listener EXTERNAL"));
}

#[test]
fn keys_of_a_listener_are_known_and_belong_to_the_fleet() {
    let text = mistakes(&[("#", "listener.name.fleet.ssl.cert=x")]);
    assert!(text.contains("a listener can have ssl.certificate.location"), "{text}");
    let text = mistakes(&[("#", "listener.name.external.ssl.ca.location=x")]);
    assert!(text.contains("only listener FLEET can have certificates so far"), "{text}");
}

#[test]
fn a_heartbeat_may_get_lost() {
    let text = mistakes(&[("#", "broker.heartbeat.interval.ms=9000")]);
    assert!(
        text.contains("broker.heartbeat.interval.ms: more than half of broker.session.timeout.ms"),
        "{text}"
    );
}

#[test]
fn negative_idle_time_means_never() {
    let config = read(&format!("{WHOLE}connections.max.idle.ms=-1\n")).unwrap();
    assert_eq!(config.connections.max_idle, None);
}
