//! The operators' API, as [`anteroom_proto::api`] has it: JSON over HTTPS.

mod authority;
mod extract;
mod failure;
mod gateways;
mod handshakes;
mod login;
mod model;
pub mod serve;
mod slots;
mod sorting;
mod whole;

use std::sync::Arc;
use std::time::Duration;

use anteroom_controller_core::model::MAX_MODEL_LEN;
use anteroom_proto::api::paths;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{Method, Uri};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};

use crate::rate::Rate;
use crate::state::Controller;
use failure::Failure;

/// Most entries of any list.
const MAX_LIST: u32 = 10_000;
/// Entries of a list where the caller doesn't say.
const DEFAULT_LIST: u32 = 1000;
/// Longest body of a request that carries no model, in bytes.
const MAX_BODY: usize = 256 * 1024;
/// Longest body of a request that does: base64 adds a third.
const MAX_MODEL_BODY: usize = MAX_MODEL_LEN / 3 * 4 + MAX_BODY;
/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(60);

/// What handlers share.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    controller: Arc<Controller>,
    logins: Arc<Rate>,
    claims: Arc<Rate>,
}

/// The API of `controller`.
pub fn router(controller: Arc<Controller>) -> Router {
    let api = Api {
        controller,
        logins: Arc::new(Rate::new(120, Duration::from_millis(500))),
        claims: Arc::new(Rate::new(10, Duration::from_secs(6))),
    };
    let open = Router::new()
        .route(paths::CONTROLLER, get(model::controller))
        .route(paths::CLAIM, post(login::claim))
        .route(paths::CHALLENGE, post(login::challenge))
        .route(paths::LOGIN, post(login::login));
    let model = get(model::newest).post(model::update).layer(DefaultBodyLimit::max(MAX_MODEL_BODY));
    // A document may come with the revision that a restored controller has lost.
    let authority =
        get(authority::chain).post(authority::update).layer(DefaultBodyLimit::max(MAX_MODEL_BODY));
    let closed = Router::new()
        .route(paths::LOGOUT, post(login::logout))
        .route(paths::AUTHORITY, authority)
        .route(paths::RESTORED, get(authority::restored))
        .route(paths::INVITES, get(gateways::invites).post(gateways::new_invite))
        .route(paths::BYPASSES, post(gateways::offline_bypass))
        .route(paths::ROTATIONS, post(gateways::rotate))
        .route(paths::REKEYS, post(gateways::rekey))
        .route(paths::PENDING, get(gateways::pending))
        .route(paths::GATEWAYS, get(gateways::gateways))
        .route(paths::SIGHTINGS, get(gateways::sightings))
        .route(paths::SIGHTINGS_PAGE, get(gateways::sightings_page))
        .route(paths::MODEL, model)
        .route(paths::MODEL_AT, get(model::at))
        .route(paths::REVISIONS, get(model::revisions))
        .route(paths::PROGRESS, get(model::progress))
        .route(paths::EDGES, get(gateways::edges))
        .route(paths::HISTORY, get(gateways::history))
        .route(paths::HINTS, get(gateways::hints))
        .route(paths::AUDIT, get(model::audit))
        .route_layer(middleware::from_fn_with_state(api.clone(), login::authenticate));
    open.merge(closed)
        .fallback(nowhere)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(in_time))
        .with_state(api)
}

fn shown(uri: &Uri) -> String {
    uri.path().chars().take(80).collect()
}

async fn nowhere(uri: Uri) -> Failure {
    Failure::not_found(format!("there is nothing at {}", shown(&uri)))
}

async fn no_such_method(method: Method, uri: Uri) -> Failure {
    Failure::method(format!("{} doesn't take {method}", shown(&uri)))
}

async fn in_time(request: Request, next: Next) -> Result<Response, Failure> {
    tokio::time::timeout(REQUEST, next.run(request)).await.map_err(|_| Failure::too_slow())
}

/// How many entries to list.
fn limit(asked: Option<u32>) -> Result<u32, Failure> {
    match asked {
        None => Ok(DEFAULT_LIST),
        Some(limit) if limit <= MAX_LIST => Ok(limit),
        Some(limit) => {
            Err(Failure::invalid(format!("query: limit: {limit} is more than {MAX_LIST}")))
        }
    }
}
