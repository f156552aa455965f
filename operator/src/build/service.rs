//! Services: host names for the brokers, and the ways in for clients.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use millrace_crds::{FLEET_LISTENER, FLEET_PORT, Listener, ListenerType, NodePorts};

use super::metadata;
use crate::controller::kafka_cluster::validate::ValidatedCluster;

/// Label that the StatefulSet controller puts on each pod; selects a single broker.
const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";

/// All Services of the cluster, in the order in which they are applied.
pub fn services(cluster: &ValidatedCluster) -> Vec<Service> {
    let mut all = vec![headless(cluster)];
    all.extend(bootstrap(cluster));
    for listener in &cluster.listeners {
        let Some(ports) = &listener.node_ports else { continue };
        all.push(node_port_bootstrap(cluster, listener, ports));
        all.extend((0..cluster.replicas).map(|n| node_port_broker(cluster, listener, ports, n)));
    }
    all
}

fn headless(cluster: &ValidatedCluster) -> Service {
    let fleet = port(FLEET_LISTENER, i32::from(FLEET_PORT), None);
    let clients = cluster.listeners.iter().map(|listener| port(&listener.name, listener.port, None));
    Service {
        metadata: metadata(cluster, cluster.names.headless()),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            // Brokers find each other by these names before any of them is ready.
            publish_not_ready_addresses: Some(true),
            selector: Some(cluster.names.selector()),
            ports: Some(clients.chain([fleet]).collect()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// `None` without a listener of type ClusterLocal, as a Service needs a port.
fn bootstrap(cluster: &ValidatedCluster) -> Option<Service> {
    let ports: Vec<_> = cluster
        .listeners
        .iter()
        .filter(|listener| listener.type_ == ListenerType::ClusterLocal)
        .map(|listener| port(&listener.name, listener.port, None))
        .collect();
    (!ports.is_empty()).then(|| Service {
        metadata: metadata(cluster, cluster.names.bootstrap()),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(cluster.names.selector()),
            ports: Some(ports),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    })
}

fn node_port_bootstrap(cluster: &ValidatedCluster, listener: &Listener, ports: &NodePorts) -> Service {
    Service {
        metadata: metadata(cluster, cluster.names.listener_bootstrap(&listener.name)),
        spec: Some(ServiceSpec {
            type_: Some("NodePort".to_owned()),
            selector: Some(cluster.names.selector()),
            ports: Some(vec![port(&listener.name, listener.port, Some(ports.bootstrap))]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn node_port_broker(
    cluster: &ValidatedCluster,
    listener: &Listener,
    ports: &NodePorts,
    ordinal: i32,
) -> Service {
    let mut selector = cluster.names.selector();
    selector.insert(POD_NAME_LABEL.to_owned(), cluster.names.pod(ordinal));
    Service {
        metadata: metadata(cluster, cluster.names.listener_broker(&listener.name, ordinal)),
        spec: Some(ServiceSpec {
            type_: Some("NodePort".to_owned()),
            selector: Some(selector),
            // A client that was sent to this broker means this broker, ready or not: the broker itself
            // says what it can serve, sooner than its readiness travels to every node.
            publish_not_ready_addresses: Some(true),
            ports: Some(vec![port(&listener.name, listener.port, Some(ports.brokers + ordinal))]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn port(name: &str, port: i32, node_port: Option<i32>) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port,
        // By number: the pod template names no client port, so a new listener does not change it.
        target_port: Some(IntOrString::Int(port)),
        node_port,
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controller::kafka_cluster::validate::fixture::quickstart;

    fn by_name(name: &str) -> serde_json::Value {
        let all = services(&quickstart());
        let found = all.into_iter().find(|service| service.metadata.name.as_deref() == Some(name));
        serde_json::to_value(found.unwrap_or_else(|| panic!("no service {name}"))).unwrap()
    }

    #[test]
    fn headless_service_names_brokers_before_they_are_ready() {
        assert_eq!(
            by_name("demo-brokers")["spec"],
            json!({
                "clusterIP": "None",
                "publishNotReadyAddresses": true,
                "selector": {
                    "app.kubernetes.io/name": "millrace",
                    "app.kubernetes.io/instance": "demo",
                    "app.kubernetes.io/component": "broker",
                },
                "ports": [
                    {"name": "internal", "port": 9092, "targetPort": 9092, "protocol": "TCP"},
                    {"name": "external", "port": 9094, "targetPort": 9094, "protocol": "TCP"},
                    {"name": "fleet", "port": 9093, "targetPort": 9093, "protocol": "TCP"},
                ],
            })
        );
    }

    #[test]
    fn bootstrap_service_has_the_cluster_local_listeners_only() {
        let service = by_name("demo-bootstrap");
        assert_eq!(service["spec"]["ports"].as_array().unwrap().len(), 1);
        assert_eq!(service["spec"]["ports"][0]["name"], "internal");
    }

    #[test]
    fn without_a_cluster_local_listener_there_is_no_bootstrap_service() {
        let mut cluster = quickstart();
        cluster.listeners.retain(|listener| listener.type_ == ListenerType::NodePort);
        let names: Vec<_> = services(&cluster).into_iter().filter_map(|s| s.metadata.name).collect();
        assert!(!names.contains(&"demo-bootstrap".to_owned()), "{names:?}");
    }

    #[test]
    fn node_port_listener_has_a_bootstrap_service_and_one_per_broker() {
        assert_eq!(by_name("demo-external-bootstrap")["spec"]["ports"][0]["nodePort"], 30092);
        for n in 0..3 {
            let service = by_name(&format!("demo-broker-{n}-external"));
            assert_eq!(service["spec"]["ports"][0]["nodePort"], 30100 + n);
            assert_eq!(
                service["spec"]["selector"]["statefulset.kubernetes.io/pod-name"],
                format!("demo-broker-{n}")
            );
        }
    }
}
