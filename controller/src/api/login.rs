//! Who is calling: challenges, log-ins, tokens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anteroom_proto::api::{Challenge, Claim, LoginRequest, Session, paths};
use anteroom_proto::authority::{Authority, AuthorityChain, Operator};
use anteroom_proto::cbor::Blob;
use anteroom_proto::key::{Hash, PublicKey};
use axum::Json;
use axum::extract::{ConnectInfo, Extension, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use data_encoding::BASE64URL_NOPAD;

use super::Api;
use super::extract::Body;
use super::failure::Failure;
use super::whole;
use crate::{change, clock};

/// How long a challenge is good, in milliseconds.
const CHALLENGE: u64 = 60 * 1000;
/// How long a token is good, in milliseconds.
const SESSION: u64 = 60 * 60 * 1000;

/// What whoever holds the recovery key is called.
const RECOVERY: &str = "recovery-key";

/// Who is calling, as their token says.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) operator: Operator,
    pub(super) chain: Arc<AuthorityChain>,
    token: Hash,
}

#[cfg(test)]
impl Caller {
    /// Somebody who has signed in.
    pub(super) fn of(operator: &Operator, chain: Arc<AuthorityChain>) -> Self {
        Self { operator: operator.clone(), chain, token: Hash::ZERO }
    }
}

fn token_hash(token: &str) -> Hash {
    Hash::of("anteroom session token", &[token.as_bytes()])
}

fn nonce_hash(nonce: &Blob) -> Hash {
    Hash::of("anteroom login challenge", &[&nonce.0])
}

/// Lets nobody through without a live token of someone who is an operator now.
///
/// The store finds a token by its hash, so that how long that takes says nothing about the token.
pub(super) async fn authenticate(
    State(api): State<Api>,
    mut request: Request,
    next: Next,
) -> Result<Response, Failure> {
    let token = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .ok_or_else(|| Failure::unauthorised("log in first: this request bears no token"))?;
    let token = token_hash(token);
    let lapsed = || Failure::unauthorised("log in again: the token is unknown or has lapsed");
    let controller = &api.controller;
    let key = controller.store.session(token, clock::now()).await?.ok_or_else(lapsed)?;
    let chain = controller.authority().ok_or_else(lapsed)?;
    let operator = caller(chain.newest(), key).ok_or_else(|| {
        Failure::unauthorised("you are no longer an operator of this organisation")
    })?;
    if chain.newest().operator(key).is_none() && !recovers(request.method(), request.uri().path()) {
        return Err(Failure::forbidden(
            "the recovery key signs the next authority document and does nothing else: `anteroom operator recover`",
        ));
    }
    request.extensions_mut().insert(Caller { operator, chain, token });
    Ok(next.run(request).await)
}

/// Who holds `key`: an operator, or whoever holds the recovery key.
fn caller(authority: &Authority, key: PublicKey) -> Option<Operator> {
    let recovery = || {
        let name = RECOVERY.parse().ok()?;
        (authority.recovery == key).then_some(Operator { name, key })
    };
    authority.operator(key).cloned().or_else(recovery)
}

/// Whether a request is one of those that a recovery takes.
fn recovers(method: &Method, path: &str) -> bool {
    match path {
        paths::AUTHORITY | paths::RESTORED | paths::LOGOUT => true,
        paths::MODEL => method == Method::GET,
        _ => false,
    }
}

fn slow_down(api: &Api, from: SocketAddr) -> Result<(), Failure> {
    if api.logins.allow(from.ip(), Instant::now()) {
        Ok(())
    } else {
        Err(Failure::busy("too many attempts from this address; try again in a minute"))
    }
}

pub(super) async fn challenge(
    State(api): State<Api>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
) -> Result<Json<Challenge>, Failure> {
    slow_down(&api, from)?;
    let nonce = Blob(clock::random::<32>()?.to_vec());
    let now = clock::now();
    let not_after = now.saturating_add(CHALLENGE);
    if api.controller.store.add_challenge(nonce_hash(&nonce), now, not_after).await? {
        Ok(Json(Challenge { nonce }))
    } else {
        Err(Failure::busy("too many log-ins are under way; try again in a minute"))
    }
}

pub(super) async fn login(
    State(api): State<Api>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Body(request): Body<LoginRequest>,
) -> Result<Json<Session>, Failure> {
    slow_down(&api, from)?;
    let controller = &api.controller;
    let chain = controller.authority().ok_or_else(|| {
        Failure::conflict("nobody has claimed this controller yet: log in with its setup code")
    })?;
    let authority = chain.newest();
    let mut signers = authority.operator_keys();
    signers.push(authority.recovery);
    let login = request.login.verify(authority.organisation, &signers).map_err(|error| {
        tracing::warn!(%from, %error, "a log-in failed");
        Failure::unauthorised(format!("login: {error}"))
    })?;
    if login.controller != controller.identity.public() {
        return Err(Failure::unauthorised("login: it is meant for another controller"));
    }
    let now = clock::now();
    if !controller.store.take_challenge(nonce_hash(&login.nonce), now).await? {
        tracing::warn!(%from, signer = %login.signer().fingerprint(), "a log-in with an old challenge");
        return Err(Failure::unauthorised(
            "login.nonce: it is unknown, used or older than a minute; ask for a new challenge",
        ));
    }
    let operator = caller(authority, login.signer())
        .ok_or_else(|| Failure::unauthorised("login: its signer isn't an operator"))?;
    let token = BASE64URL_NOPAD.encode(&clock::random::<32>()?);
    let not_after = now.saturating_add(SESSION);
    controller.store.add_session(token_hash(&token), operator.key, now, not_after).await?;
    tracing::info!(operator = %operator.name, %from, "logged in");
    Ok(Json(Session { token, operator: operator.name.clone(), not_after }))
}

pub(super) async fn logout(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Result<StatusCode, Failure> {
    api.controller.store.end_session(caller.token).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn claim(
    State(api): State<Api>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Body(claim): Body<Claim>,
) -> Result<StatusCode, Failure> {
    if !api.claims.allow(from.ip(), Instant::now()) {
        return Err(Failure::busy("too many attempts from this address; try again in a minute"));
    }
    whole::make("authority", async move { change::claim(&api.controller, &claim).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests;
