//! Finds the cluster that a Topic belongs to. Judges nothing.

use kube::Api;
use millrace_crds::{KafkaCluster, Topic};

use crate::{build::Names, controller::Context};

/// The KafkaCluster of a Topic.
#[derive(Clone, Debug, PartialEq)]
pub enum Cluster {
    /// It exists.
    Found(Box<KafkaCluster>),
    /// The API server says that there is none.
    Absent,
}

/// Looks in the cache first. Absence is confirmed by the API server, as a cache that lags behind knows nothing of a
/// cluster that was just created, and a finalizer must not end because of that.
pub async fn dereference<T>(
    topic: &Topic,
    names: &Names,
    context: &Context<T>,
    lookup: &(dyn Fn(&Names) -> Option<KafkaCluster> + Send + Sync),
) -> Result<Cluster, kube::Error> {
    let cached = lookup(names).filter(|_| topic.metadata.deletion_timestamp.is_none());
    let found = match cached {
        Some(found) => Some(found),
        None => {
            let api: Api<KafkaCluster> = Api::namespaced(context.client.clone(), &names.namespace);
            api.get_opt(&names.cluster).await?
        }
    };
    Ok(found.map_or(Cluster::Absent, |found| Cluster::Found(Box::new(found))))
}
