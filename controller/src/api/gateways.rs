//! Invites, and what is known of gateways and devices.

use std::collections::{BTreeMap, HashMap};

use anteroom_proto::api::{
    Edge, EdgeQuery, GatewayStatus, HintsPage, HintsQuery, HistoryPage, HistoryQuery, InviteInfo,
    NewInvite, OfflineBypass, PendingGateway, RekeyAnswer, RekeyRequest, RekeyState, RotateAnswer,
    RotateRequest, SightingRecord, SightingsPage, SightingsQuery,
};
use anteroom_proto::id::GatewayId;
use anteroom_proto::v1::Reachable;
use anteroom_proto::v1::telemetry::Sighting;
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;

use super::extract::{Body, Params};
use super::failure::Failure;
use super::login::Caller;
use super::{Api, MAX_LIST, limit, whole};
use crate::store::{GatewayFacts, Recording, SightingPlace};
use crate::{change, clock};

/// Words that [`EdgeQuery::verdict`] may be.
const VERDICTS: [&str; 5] = ["tunnel", "local", "clear", "would-drop", "drop"];

pub(super) async fn new_invite(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Body(new): Body<NewInvite>,
) -> Result<StatusCode, Failure> {
    let changing =
        async move { change::invite(&api.controller, &caller.chain, &caller.operator, &new).await };
    whole::make("invite", changing).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn offline_bypass(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Body(told): Body<OfflineBypass>,
) -> Result<StatusCode, Failure> {
    let changing = async move { change::note_bypass(&api.controller, &caller.chain, &told).await };
    whole::make("order", changing).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn rotate(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<RotateRequest>,
) -> Result<Json<RotateAnswer>, Failure> {
    let changing = async move { change::rotate(&api.controller, &caller.operator, &request).await };
    Ok(Json(whole::make("gateways", changing).await?))
}

pub(super) async fn rekey(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<RekeyRequest>,
) -> Result<Json<RekeyAnswer>, Failure> {
    let changing = async move {
        change::rekey(&api.controller, &caller.chain, &caller.operator, &request).await
    };
    Ok(Json(whole::make("order", changing).await?))
}

pub(super) async fn invites(State(api): State<Api>) -> Result<Json<Vec<InviteInfo>>, Failure> {
    let stored = api.controller.store.invites(MAX_LIST).await?;
    let invites = stored
        .into_iter()
        .map(|stored| InviteInfo { invite: stored.signed, used_by: stored.used_by })
        .collect();
    Ok(Json(invites))
}

pub(super) async fn pending(State(api): State<Api>) -> Result<Json<Vec<PendingGateway>>, Failure> {
    let controller = &api.controller;
    let current = controller.current();
    let waiting: Vec<_> = controller
        .store
        .pending(MAX_LIST)
        .await?
        .into_iter()
        .filter(|enrolment| {
            !current
                .as_ref()
                .is_some_and(|current| current.revokes(enrolment.gateway, enrolment.identity))
        })
        .collect();
    if waiting.is_empty() {
        return Ok(Json(Vec::new()));
    }
    let mut invites = HashMap::new();
    for stored in controller.store.invites(MAX_LIST).await? {
        invites.insert(stored.invite, stored.signed);
    }
    let mut facts = controller.store.gateways().await?;
    let pending = waiting
        .into_iter()
        .filter_map(|enrolment| {
            let facts = facts.remove(&enrolment.gateway).unwrap_or_default();
            Some(PendingGateway {
                ports: facts.reachable.map(|reachable| reachable.ports).unwrap_or_default(),
                invite: invites.get(&enrolment.invite)?.clone(),
                online: controller.online.contains(enrolment.gateway),
                claim: enrolment.claim,
                enrolled_at: enrolment.at,
                from: enrolment.from,
            })
        })
        .collect();
    Ok(Json(pending))
}

pub(super) async fn gateways(State(api): State<Api>) -> Result<Json<Vec<GatewayStatus>>, Failure> {
    let controller = &api.controller;
    let Some(current) = controller.current() else { return Ok(Json(Vec::new())) };
    let mut facts = controller.store.gateways().await?;
    let mut rekeys = controller.store.rekeys().await?;
    let status = |gateway: &GatewayId| {
        let facts = facts.remove(gateway).unwrap_or_default();
        status(&api, *gateway, facts, rekeys.remove(gateway))
    };
    Ok(Json(current.model.gateways.keys().map(status).collect()))
}

fn status(
    api: &Api,
    gateway: GatewayId,
    facts: GatewayFacts,
    rekey: Option<RekeyState>,
) -> GatewayStatus {
    let online = api.controller.online.observed(gateway);
    let reachable = facts.reachable.unwrap_or_else(|| Reachable {
        endpoints: Vec::new(),
        keys: Vec::new(),
        ports: Vec::new(),
        quic: None,
    });
    let (relays, relays_away) = api.controller.online.relays(gateway);
    GatewayStatus {
        gateway,
        online: online.is_some(),
        last_seen: online.map(|_| clock::now()).or(facts.last_seen),
        revision: facts.applied.map(|applied| applied.revision),
        wanted: facts.wanted,
        behind_since: facts.behind_since,
        refused: facts.refused,
        problems: facts.problems,
        agent_version: facts.agent_version,
        ports: reachable.ports,
        endpoints: reachable.endpoints,
        tunnel_keys: reachable.keys,
        tunnels: facts.tunnels,
        observed: online.or(facts.observed),
        over_tcp: api.controller.online.over_tcp(gateway),
        relays,
        relays_away,
        drops: facts.drops,
        alarms: facts.alarms,
        bypasses: facts.bypasses,
        trials: facts.trials,
        held_back: facts.held_back,
        identity: api.controller.online.identity(gateway),
        rekey: rekey.map(|rekey| RekeyState {
            unable: online.is_some() && !api.controller.online.rekeys(gateway),
            ..rekey
        }),
    }
}

pub(super) async fn sightings(
    State(api): State<Api>,
) -> Result<Json<Vec<SightingRecord>>, Failure> {
    Ok(Json(api.controller.store.sightings(MAX_LIST).await?))
}

pub(super) async fn sightings_page(
    State(api): State<Api>,
    Params(query): Params<SightingsQuery>,
) -> Result<Json<SightingsPage>, Failure> {
    let limit = limit(query.limit)?.max(1);
    let after = query.after.as_deref().map(place).transpose()?;
    let store = &api.controller.store;
    let away = if after.is_none() { store.sightings_away().await? } else { BTreeMap::new() };
    let sightings = store.sightings_after(after.as_ref(), limit).await?;
    // A page that isn't full is the last one.
    let full = u32::try_from(sightings.len()).is_ok_and(|len| len >= limit);
    let next = sightings.last().filter(|_| full).map(words);
    Ok(Json(SightingsPage { sightings, next, away }))
}

/// Where a page ends, and [`place`] is read from.
fn words(last: &SightingRecord) -> String {
    let Sighting { port, mac, vlan, .. } = &last.sighting;
    let vlan = vlan.map(|vlan| vlan.to_string()).unwrap_or_default();
    format!("{}/{vlan}/{mac}/{port}", last.gateway)
}

fn place(words: &str) -> Result<SightingPlace, Failure> {
    let read = || {
        let mut words = words.splitn(4, '/');
        let gateway = words.next()?.parse().ok()?;
        let vlan = match words.next()? {
            "" => None,
            vlan => Some(vlan.parse().ok()?),
        };
        let mac = words.next()?.parse().ok()?;
        let port = words.next()?.parse().ok()?;
        Some(SightingPlace { gateway, port, mac, vlan })
    };
    let wrong = || Failure::invalid("query: after: give what the page before has as next");
    read().ok_or_else(wrong)
}

pub(super) async fn edges(
    State(api): State<Api>,
    Params(query): Params<EdgeQuery>,
) -> Result<Json<Vec<Edge>>, Failure> {
    known_verdicts("verdict", query.verdict.as_slice())?;
    let limit = limit(query.limit)?;
    Ok(Json(api.controller.store.edges(&query, limit).await?))
}

fn known_verdicts(key: &str, wanted: &[impl AsRef<str>]) -> Result<(), Failure> {
    if wanted.iter().all(|verdict| VERDICTS.contains(&verdict.as_ref())) {
        return Ok(());
    }
    Err(Failure::invalid(format!("query: {key}: choose among {}", VERDICTS.join(", "))))
}

pub(super) async fn history(
    State(api): State<Api>,
    Params(query): Params<HistoryQuery>,
) -> Result<Json<HistoryPage>, Failure> {
    let limit = limit(query.limit)?.max(1);
    let verdicts: Vec<&str> = query.verdicts.iter().flat_map(|list| list.split(',')).collect();
    known_verdicts("verdicts", &verdicts)?;
    let store = &api.controller.store;
    let first = query.after.is_none();
    let of_all = if first { store.recording().await? } else { Recording::default() };
    let (edges, last) = store.history(&query, limit).await?;
    // A page that isn't full is the last one.
    let next = last.filter(|_| u32::try_from(edges.len()).is_ok_and(|len| len >= limit));
    let Recording { turned_away, forgotten, watched } = of_all;
    Ok(Json(HistoryPage { edges, next, turned_away, forgotten, watched }))
}

pub(super) async fn hints(
    State(api): State<Api>,
    Params(query): Params<HintsQuery>,
) -> Result<Json<HintsPage>, Failure> {
    let limit = limit(query.limit)?.max(1);
    let store = &api.controller.store;
    let turned_away = if query.after.is_none() { store.hints_away().await? } else { 0 };
    let (hints, last) = store.hints(query.after, limit).await?;
    // A page that isn't full is the last one.
    let next = last.filter(|_| u32::try_from(hints.len()).is_ok_and(|len| len >= limit));
    Ok(Json(HintsPage { hints, next, turned_away }))
}

#[cfg(test)]
mod tests;
