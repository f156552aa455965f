//! The routes of the balancer.
//!
//! What is wanted goes to the controller; what is shown the broker that is asked finds out by itself, from its image and
//! from what the leaders tell it.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::State;
use axum::response::Json;
use axum::routing::{get, post};
use millrace_management::{DrainView, PlanView, RebalanceView, StartBalancing, code};

use super::{Answer, Body, Done, Name, Refusal, ask, broker_segment, done, parse};
use crate::balancer::BalancerOptions;
use crate::balancer::status::{drain_view, plan_view, planned, rebalance_view};
use crate::metadata::controller::ControllerRequest;
use crate::metadata::controller::balancer::Plan;
use crate::metadata::image::{BrokerId, BrokerMark, MetadataImage};
use crate::metadata::service::Member;
use crate::replication::{ClusterLoad, Progress, ReplicaManager};

/// What the handlers need besides the metadata.
#[derive(Clone)]
struct Balancing {
    replicas: Arc<OnceLock<ReplicaManager>>,
    options: BalancerOptions,
}

pub(super) fn routes(replicas: Arc<OnceLock<ReplicaManager>>, options: BalancerOptions) -> Router<Member> {
    let balancing = Balancing { replicas, options };
    let (drain, drained) = (balancing.clone(), balancing.clone());
    let (rebalance, rebalanced) = (balancing.clone(), balancing);
    Router::new()
        .route(
            "/brokers/{id}/drain",
            get(move |State(member): State<Member>, id: Name| drain_status(member, id, drained))
                .post(move |State(member): State<Member>, id: Name, body: Body| {
                    start_drain(member, id, body, drain)
                })
                .delete(unmark),
        )
        .route("/brokers/{id}/cordon", post(cordon).delete(unmark))
        .route(
            "/rebalance",
            get(move |State(member): State<Member>| rebalance_status(member, rebalanced))
                .post(move |State(member): State<Member>, body: Body| {
                    start_rebalance(member, body, rebalance)
                })
                .delete(cancel_rebalance),
        )
}

impl Balancing {
    async fn load(&self) -> ClusterLoad {
        match self.replicas.get() {
            Some(replicas) => replicas.load().await,
            None => ClusterLoad::default(),
        }
    }

    async fn progress(&self) -> Progress {
        match self.replicas.get() {
            Some(replicas) => replicas.progress().await,
            None => Progress::default(),
        }
    }

    /// Plans on a thread of its own: thousands of partitions take a while.
    async fn plan(
        &self,
        image: &Arc<MetadataImage>,
        load: &ClusterLoad,
        level: bool,
    ) -> Result<Plan, Refusal> {
        let (image, load, options) = (Arc::clone(image), load.clone(), self.options);
        let level = level && load.silent_leaders(&image).is_empty();
        tokio::task::spawn_blocking(move || planned(&image, &load, level, &options))
            .await
            .map_err(|_| Refusal::new(code::QUORUM_UNAVAILABLE, "the broker is stopping"))
    }
}

fn read_start(body: Body) -> Result<StartBalancing, Refusal> {
    match body {
        Ok(bytes) if bytes.is_empty() => Ok(StartBalancing::default()),
        body => parse(body),
    }
}

fn known_broker(image: &MetadataImage, id: Name) -> Result<BrokerId, Refusal> {
    let broker_id = broker_segment(id)?;
    if image.brokers.contains_key(&broker_id) {
        return Ok(broker_id);
    }
    Err(Refusal::new(code::BROKER_NOT_FOUND, format!("there is no broker {broker_id}")))
}

async fn start_drain(member: Member, id: Name, body: Body, balancing: Balancing) -> Answer<PlanView> {
    let StartBalancing { dry_run } = read_start(body)?;
    let broker_id = broker_segment(id)?;
    let mark = Some(BrokerMark::Draining);
    if !dry_run {
        let Json(Done {}) = done(ask(&member, ControllerRequest::MarkBroker { broker_id, mark }).await?)?;
    }
    let mut image = member.metadata().image();
    if !image.brokers.contains_key(&broker_id) {
        return Err(Refusal::new(code::BROKER_NOT_FOUND, format!("there is no broker {broker_id}")));
    }
    // A dry run looks at the cluster as it would be.
    Arc::make_mut(&mut image).marks.insert(broker_id, BrokerMark::Draining);
    let load = balancing.load().await;
    let plan = balancing.plan(&image, &load, false).await?;
    Ok(Json(plan_view(&image, &load, &plan, !dry_run)))
}

async fn drain_status(member: Member, id: Name, balancing: Balancing) -> Answer<DrainView> {
    let image = member.metadata().image();
    let broker_id = known_broker(&image, id)?;
    let (load, progress) = futures::future::join(balancing.load(), balancing.progress()).await;
    let plan = balancing.plan(&image, &load, false).await?;
    Ok(Json(drain_view(&image, &load, &progress, broker_id, &plan)))
}

async fn cordon(State(member): State<Member>, id: Name) -> Answer<Done> {
    let broker_id = broker_segment(id)?;
    let mark = Some(BrokerMark::Cordoned);
    done(ask(&member, ControllerRequest::MarkBroker { broker_id, mark }).await?)
}

async fn unmark(State(member): State<Member>, id: Name) -> Answer<Done> {
    let broker_id = broker_segment(id)?;
    done(ask(&member, ControllerRequest::MarkBroker { broker_id, mark: None }).await?)
}

async fn start_rebalance(member: Member, body: Body, balancing: Balancing) -> Answer<PlanView> {
    let StartBalancing { dry_run } = read_start(body)?;
    if !dry_run {
        let request = ControllerRequest::SetRebalancing { rebalancing: true, cancel_moves: false };
        let Json(Done {}) = done(ask(&member, request).await?)?;
    }
    let image = member.metadata().image();
    let load = balancing.load().await;
    let plan = balancing.plan(&image, &load, true).await?;
    Ok(Json(plan_view(&image, &load, &plan, !dry_run)))
}

async fn rebalance_status(member: Member, balancing: Balancing) -> Answer<RebalanceView> {
    let image = member.metadata().image();
    let (load, progress) = futures::future::join(balancing.load(), balancing.progress()).await;
    let plan = balancing.plan(&image, &load, true).await?;
    Ok(Json(rebalance_view(&image, &load, &progress, &plan)))
}

async fn cancel_rebalance(State(member): State<Member>) -> Answer<Done> {
    let request = ControllerRequest::SetRebalancing { rebalancing: false, cancel_moves: true };
    done(ask(&member, request).await?)
}
