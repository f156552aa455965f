//! ServiceAccount of the brokers. They never talk to the API server, so no token is mounted.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::metadata;
use crate::controller::kafka_cluster::validate::ValidatedCluster;

/// The ServiceAccount that broker pods run under.
pub fn service_account(cluster: &ValidatedCluster) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(cluster, cluster.names.broker_set()),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
