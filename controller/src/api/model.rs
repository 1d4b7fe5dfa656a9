//! Revisions, their progress, and the audit log.

use anteroom_proto::api::{
    AuditEntry, AuditQuery, ControllerInfo, GatewayProgress, ModelAccepted, ModelRevision,
    ModelUpdate, Progress, RevisionInfo,
};
use axum::Json;
use axum::extract::{Extension, State};

use super::extract::{Body, Number, Params};
use super::failure::Failure;
use super::login::Caller;
use super::{Api, MAX_LIST, limit, whole};
use crate::store::StoredRevision;
use crate::{change, clock};

pub(super) async fn controller(State(api): State<Api>) -> Json<ControllerInfo> {
    let controller = &api.controller;
    Json(ControllerInfo {
        key: controller.identity.public(),
        version: env!("CARGO_PKG_VERSION").into(),
        organisation: controller.authority().map(|chain| chain.newest().organisation),
        addresses: controller.config.quic.advertise.clone(),
        time: clock::now(),
    })
}

fn revision(stored: Option<StoredRevision>, which: &str) -> Result<Json<ModelRevision>, Failure> {
    let stored = stored.ok_or_else(|| Failure::not_found(format!("there is no {which}")))?;
    Ok(Json(ModelRevision { root: stored.root, model: stored.model }))
}

pub(super) async fn newest(State(api): State<Api>) -> Result<Json<ModelRevision>, Failure> {
    revision(api.controller.store.newest_model().await?, "revision yet")
}

pub(super) async fn at(
    State(api): State<Api>,
    Number(number): Number,
) -> Result<Json<ModelRevision>, Failure> {
    revision(api.controller.store.model(number).await?, &format!("revision {number}"))
}

pub(super) async fn update(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Body(update): Body<ModelUpdate>,
) -> Result<Json<ModelAccepted>, Failure> {
    let changing = async move {
        change::update(&api.controller, &caller.chain, &caller.operator, update).await
    };
    Ok(Json(whole::make("revision", changing).await?))
}

pub(super) async fn revisions(State(api): State<Api>) -> Result<Json<Vec<RevisionInfo>>, Failure> {
    Ok(Json(api.controller.store.revisions(MAX_LIST).await?))
}

pub(super) async fn progress(
    State(api): State<Api>,
    Number(number): Number,
) -> Result<Json<Progress>, Failure> {
    let controller = &api.controller;
    let advances = controller
        .store
        .progress(number)
        .await?
        .ok_or_else(|| Failure::not_found(format!("there is no revision {number}")))?;
    let current = controller.current();
    let gateways = advances
        .into_iter()
        // A gateway that was revoked since has nothing more to apply.
        .filter(|advance| {
            current
                .as_ref()
                .is_some_and(|current| current.model.gateways.contains_key(&advance.gateway))
        })
        .map(|advance| {
            let applied = advance.revision.is_some_and(|revision| revision >= number);
            GatewayProgress {
                gateway: advance.gateway,
                applied,
                applied_at: advance.applied_at.filter(|_| applied),
                online: controller.online.contains(advance.gateway),
                refused: advance.refused.filter(|_| !applied),
            }
        })
        .collect();
    Ok(Json(Progress { number, gateways }))
}

pub(super) async fn audit(
    State(api): State<Api>,
    Params(query): Params<AuditQuery>,
) -> Result<Json<Vec<AuditEntry>>, Failure> {
    let limit = limit(query.limit)?;
    Ok(Json(api.controller.store.audit(query.after.unwrap_or_default(), limit).await?))
}
