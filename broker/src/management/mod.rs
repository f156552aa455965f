//! The HTTP routes of the management API, on the internal listener.
//!
//! Every broker answers: reads come from its own image, changes go to the controller, wherever it is. Types and paths
//! are those of `millrace_management`; what a request means is decided by the controller, and what an answer shows is
//! made in `views`. Every answer that is not a success is an [`ApiError`].

mod balance;
pub mod client;
mod views;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post, put};
use millrace_management::{
    API_PREFIX, ApiError, ApplyTopic, ApplyTopicResult, BootstrapQuorum, ClusterView, Identity,
    LocalMetadata, ReassignmentsView, ReleaseTopic, SetRack, TopicView, code, kafka_uuid,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::balancer::BalancerOptions;
use crate::metadata::ControllerError;
use crate::metadata::controller::{ControllerRequest, ControllerResponse, topic_view};
use crate::metadata::image::BrokerId;
use crate::metadata::raft::BootstrapError;
use crate::metadata::service::Member;
use crate::replication::{Progress, ReplicaManager};

/// Far more than the configuration of a topic takes.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Shorter than the operator waits, so that it gets to know why.
const CONTROLLER_TIMEOUT: Duration = Duration::from_secs(8);

/// Within the grace that a pod gets to stop, and shorter than its hook waits.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(18);

/// The routes, answered by `member`. What only the leaders of partitions know is asked of `replicas` once they are open.
pub fn router(member: Member, replicas: Arc<OnceLock<ReplicaManager>>, balancer: BalancerOptions) -> Router {
    let balance = balance::routes(Arc::clone(&replicas), balancer);
    let reassignments = move |State(member): State<Member>| reassignments(member, Arc::clone(&replicas));
    let routes = Router::new()
        .route("/identity", get(identity))
        .route("/quorum/bootstrap", post(bootstrap_quorum))
        .route("/cluster", get(cluster))
        .route("/brokers/{id}/rack", put(set_rack))
        .route("/reassignments", get(reassignments))
        .route("/topics/{name}", get(topic).put(apply_topic).delete(delete_topic))
        .route("/topics/{name}/release", post(release_topic))
        .route("/local/metadata", get(local_metadata))
        .route("/local/controlled-shutdown", post(controlled_shutdown))
        .merge(balance);
    Router::new()
        .nest(API_PREFIX, routes)
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(member)
}

/// An answer that is not a success.
#[derive(Debug)]
struct Refusal(ApiError);

impl Refusal {
    fn new(code: &str, message: impl Into<String>) -> Self {
        Self(ApiError { code: code.to_owned(), message: message.into() })
    }

    fn status(&self) -> StatusCode {
        match self.0.code.as_str() {
            code::TOPIC_NOT_FOUND | code::BROKER_NOT_FOUND => StatusCode::NOT_FOUND,
            code::BAD_REQUEST => StatusCode::BAD_REQUEST,
            code::QUORUM_UNAVAILABLE => StatusCode::SERVICE_UNAVAILABLE,
            code::PARTITIONS_SHRINK
            | code::INVALID_REPLICATION_FACTOR
            | code::INVALID_CONFIG
            | code::INVALID_TOPIC_NAME => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::CONFLICT,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status(), Json(self.0)).into_response()
    }
}

impl From<ControllerError> for Refusal {
    fn from(error: ControllerError) -> Self {
        let code = match &error {
            // A timeout leaves the outcome open; every request of this API may be sent again.
            ControllerError::Unavailable { .. } | ControllerError::Timeout { .. } => code::QUORUM_UNAVAILABLE,
            ControllerError::Unacceptable { .. } => code::BAD_REQUEST,
        };
        Self::new(code, error.to_string())
    }
}

impl From<BootstrapError> for Refusal {
    fn from(error: BootstrapError) -> Self {
        let code = match &error {
            BootstrapError::NotAVoter { .. } => code::NOT_A_VOTER,
            BootstrapError::AlreadyMember { .. } => code::ALREADY_MEMBER,
            BootstrapError::Stopped(_) => code::QUORUM_UNAVAILABLE,
        };
        Self::new(code, error.to_string())
    }
}

type Answer<T> = Result<Json<T>, Refusal>;
type Body = Result<Bytes, BytesRejection>;
type Name = Result<Path<String>, PathRejection>;

/// `{}`: done, and nothing to say.
#[derive(Debug, serde::Serialize)]
struct Done {}

async fn identity(State(member): State<Member>) -> Json<Identity> {
    Json(views::identity(&member))
}

async fn local_metadata(State(member): State<Member>) -> Answer<LocalMetadata> {
    let image = member.metadata().image();
    match image.checksum() {
        Ok(checksum) => Ok(Json(LocalMetadata { log_index: image.log_index, checksum })),
        Err(error) => Err(bad_request(format!("this broker's metadata cannot be encoded: {error}"))),
    }
}

async fn bootstrap_quorum(State(member): State<Member>, body: Body) -> Answer<Done> {
    let request: BootstrapQuorum = parse(body)?;
    let cluster_id = kafka_uuid::format(member.volume().cluster_id());
    if request.cluster_id != cluster_id {
        return Err(Refusal::new(
            code::CLUSTER_ID_MISMATCH,
            format!("this broker's volume belongs to cluster {cluster_id}, not to {}", request.cluster_id),
        ));
    }
    let mut voters = BTreeMap::new();
    for voter in request.voters {
        let Ok(node_id) = voter.raft_node_id.parse::<u64>() else {
            return Err(bad_request(format!("raftNodeId {:?} is not a number", voter.raft_node_id)));
        };
        if voters.insert(node_id, voter.address).is_some() {
            return Err(bad_request(format!("raftNodeId {node_id} is listed twice")));
        }
    }
    member.bootstrap(voters).await?;
    Ok(Json(Done {}))
}

async fn cluster(State(member): State<Member>) -> Answer<ClusterView> {
    let quorum = member.quorum();
    if quorum.leader.is_none() {
        let message = if quorum.is_member() {
            "the metadata quorum has no leader"
        } else {
            "the metadata quorum is not formed"
        };
        return Err(Refusal::new(code::QUORUM_UNAVAILABLE, message));
    }
    Ok(Json(views::cluster(&member.metadata().image(), &quorum)))
}

async fn reassignments(member: Member, replicas: Arc<OnceLock<ReplicaManager>>) -> Answer<ReassignmentsView> {
    let progress = match replicas.get() {
        Some(replicas) => replicas.progress().await,
        None => Progress::default(),
    };
    Ok(Json(views::reassignments(&member.metadata().image(), &progress)))
}

async fn set_rack(State(member): State<Member>, id: Name, body: Body) -> Answer<Done> {
    let SetRack { rack } = parse(body)?;
    let broker_id = broker_segment(id)?;
    done(ask(&member, ControllerRequest::SetRack { broker_id, rack }).await?)
}

async fn topic(State(member): State<Member>, name: Name) -> Answer<TopicView> {
    let name = segment(name)?;
    let metadata = member.metadata().image();
    if let Some(topic) = metadata.topic_by_name(&name) {
        return Ok(Json(topic_view(topic)));
    }
    // A broker that does not hear of changes must not say that something is gone.
    if member.quorum().leader.is_none() {
        return Err(Refusal::new(code::QUORUM_UNAVAILABLE, "the metadata quorum has no leader"));
    }
    Err(Refusal::new(code::TOPIC_NOT_FOUND, format!("there is no topic {name:?}")))
}

async fn apply_topic(State(member): State<Member>, name: Name, body: Body) -> Answer<ApplyTopicResult> {
    let (name, request) = (segment(name)?, parse::<ApplyTopic>(body)?);
    match ask(&member, ControllerRequest::ApplyTopic { name, request }).await? {
        ControllerResponse::TopicApplied(result) => Ok(Json(result)),
        other => Err(unexpected(&other)),
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeleteQuery {
    owner_uid: Option<String>,
}

async fn delete_topic(
    State(member): State<Member>,
    name: Name,
    query: Result<Query<DeleteQuery>, QueryRejection>,
) -> Answer<Done> {
    let name = segment(name)?;
    let Query(query) = query.map_err(|rejection| bad_request(rejection.body_text()))?;
    let Some(owner_uid) = query.owner_uid else {
        return Err(bad_request("the query must name the owner: ?ownerUid=…".to_owned()));
    };
    done(ask(&member, ControllerRequest::DeleteOwnedTopic { name, owner_uid }).await?)
}

async fn release_topic(State(member): State<Member>, name: Name, body: Body) -> Answer<Done> {
    let (name, ReleaseTopic { owner_uid }) = (segment(name)?, parse(body)?);
    done(ask(&member, ControllerRequest::ReleaseTopic { name, owner_uid }).await?)
}

async fn controlled_shutdown(State(member): State<Member>) -> Answer<Done> {
    member.controlled_shutdown(SHUTDOWN_TIMEOUT).await?;
    Ok(Json(Done {}))
}

async fn unknown_path(uri: Uri) -> Response {
    let message = format!("there is nothing at {}; paths start with {API_PREFIX}", uri.path());
    (StatusCode::NOT_FOUND, Json(bad_request(message).0)).into_response()
}

async fn unknown_method(method: Method, uri: Uri) -> Response {
    let message = format!("{method} is not possible at {}", uri.path());
    (StatusCode::METHOD_NOT_ALLOWED, Json(bad_request(message).0)).into_response()
}

async fn ask(member: &Member, request: ControllerRequest) -> Result<ControllerResponse, Refusal> {
    match member.metadata().call_within(request, CONTROLLER_TIMEOUT).await? {
        ControllerResponse::Refused(error) => Err(Refusal(error)),
        response => Ok(response),
    }
}

fn done(response: ControllerResponse) -> Answer<Done> {
    match response {
        ControllerResponse::Done => Ok(Json(Done {})),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(response: &ControllerResponse) -> Refusal {
    tracing::error!(?response, "the controller gave an answer to another question");
    Refusal::new(code::QUORUM_UNAVAILABLE, "the controller gave an unexpected answer")
}

fn bad_request(message: String) -> Refusal {
    Refusal::new(code::BAD_REQUEST, message)
}

fn parse<T: DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let body = body.map_err(|rejection| bad_request(rejection.body_text()))?;
    serde_json::from_slice(&body)
        .map_err(|error| bad_request(format!("the body is not as expected: {error}")))
}

fn broker_segment(id: Name) -> Result<BrokerId, Refusal> {
    let id = segment(id)?;
    id.parse().map_err(|_| bad_request(format!("{id:?} is not a broker id")))
}

fn segment(name: Name) -> Result<String, Refusal> {
    name.map(|Path(name)| name).map_err(|rejection| bad_request(rejection.body_text()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
#[path = "management_test.rs"]
mod tests;
