//! The authority chain.

use anteroom_proto::api::{AuthorityUpdate, Restored};
use anteroom_proto::authority::Authority;
use anteroom_proto::cose::Signed;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;

use super::extract::Body;
use super::failure::Failure;
use super::login::Caller;
use super::{Api, whole};
use crate::change;

pub(super) async fn chain(Extension(caller): Extension<Caller>) -> Json<Vec<Signed<Authority>>> {
    Json(caller.chain.to_signed())
}

pub(super) async fn update(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Body(update): Body<AuthorityUpdate>,
) -> Result<StatusCode, Failure> {
    let changing =
        async move { change::authority(&api.controller, &caller.operator, update).await };
    whole::make("document", changing).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn restored(State(api): State<Api>) -> Json<Option<Restored>> {
    Json(api.controller.restored())
}
