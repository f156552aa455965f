//! DescribeCluster: the brokers, and whom to send admin requests to.

use millrace_management::kafka_uuid;
use millrace_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use millrace_protocol::messages::{DescribeClusterRequest, DescribeClusterResponse};
use millrace_protocol::{ErrorCode, StrBytes};

use super::authorized::ALL_ON_CLUSTER;
use super::endpoints::{controller_id, wire_port};
use super::request::RequestContext;
use crate::metadata::image::{BrokerId, MetadataImage};

/// Asks for brokers.
const BROKERS: i8 = 1;
/// Asks for the nodes of a metadata quorum of its own, which there is none of.
const CONTROLLERS: i8 = 2;

/// Answers from `image`.
pub(super) fn handle(
    image: &MetadataImage,
    context: &RequestContext,
    own_id: BrokerId,
    request: &DescribeClusterRequest,
) -> DescribeClusterResponse {
    let refuse = |error: ErrorCode, message: &str| DescribeClusterResponse {
        error_code: error.code(),
        error_message: Some(message.into()),
        ..Default::default()
    };
    match request.endpoint_type {
        BROKERS => {}
        CONTROLLERS => return refuse(ErrorCode::MismatchedEndpointType, "this is a listener of brokers"),
        _ => return refuse(ErrorCode::UnsupportedEndpointType, "unknown endpoint type"),
    }
    let brokers = image.brokers.values().filter(|broker| !broker.fenced || request.include_fenced_brokers);
    DescribeClusterResponse {
        endpoint_type: BROKERS,
        cluster_id: kafka_uuid::format(image.cluster_id).into(),
        controller_id: controller_id(image, own_id, &context.listener),
        brokers: brokers
            .filter_map(|broker| {
                let endpoint = broker.endpoint(&context.listener)?;
                Some(DescribeClusterBroker {
                    broker_id: broker.broker_id,
                    host: endpoint.host.as_str().into(),
                    port: wire_port(endpoint),
                    rack: broker.rack.as_deref().map(StrBytes::from),
                    is_fenced: broker.fenced,
                    ..Default::default()
                })
            })
            .collect(),
        cluster_authorized_operations: if request.include_cluster_authorized_operations {
            ALL_ON_CLUSTER
        } else {
            super::authorized::NOT_ASKED
        },
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::{Encoder, Message as _};

    use super::super::fixtures::{EVEN_LISTENER, context, fence, image};
    use super::*;

    fn run(version: i16, request: &DescribeClusterRequest) -> DescribeClusterResponse {
        let mut image = image([1, 2, 3]);
        fence(&mut image, 3);
        let response = handle(&image, &context(version), 1, request);
        response.encode(&mut Encoder::new(), version).expect("the answer fits its version");
        response
    }

    fn ids(response: &DescribeClusterResponse) -> Vec<(i32, bool)> {
        response.brokers.iter().map(|broker| (broker.broker_id, broker.is_fenced)).collect()
    }

    #[test]
    fn shows_brokers_in_service_and_fenced_ones_on_request() {
        let response = run(0, &DescribeClusterRequest::default());
        assert_eq!(ids(&response), [(1, false), (2, false)]);
        assert_eq!(response.controller_id, 1);
        assert_eq!(response.cluster_id.len(), 22);
        assert_eq!(response.cluster_authorized_operations, i32::MIN);
        let with_fenced = DescribeClusterRequest { include_fenced_brokers: true, ..Default::default() };
        assert_eq!(ids(&run(2, &with_fenced)), [(1, false), (2, false), (3, true)]);
    }

    #[test]
    fn shows_the_listener_of_the_request() {
        let on_even = RequestContext { listener: EVEN_LISTENER.into(), ..context(1) };
        let response = handle(&image([1, 2]), &on_even, 1, &DescribeClusterRequest::default());
        assert_eq!(ids(&response), [(2, false)]);
        assert_eq!((response.brokers[0].port, response.controller_id), (9094, 2));
    }

    #[test]
    fn tells_authorized_operations_when_asked() {
        let request =
            DescribeClusterRequest { include_cluster_authorized_operations: true, ..Default::default() };
        assert_eq!(run(1, &request).cluster_authorized_operations, ALL_ON_CLUSTER);
    }

    #[test]
    fn refuses_to_describe_controllers() {
        for (endpoint_type, error) in [(2, 114), (7, 115)] {
            let request = DescribeClusterRequest { endpoint_type, ..Default::default() };
            let response = run(1, &request);
            assert_eq!((response.error_code, response.endpoint_type, ids(&response)), (error, 1, vec![]));
        }
    }
}
