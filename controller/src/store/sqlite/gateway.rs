//! What is known of each gateway: what it says of itself, what it has in force, what it was sent.

use std::collections::BTreeMap;

use anteroom_proto::cbor;
use anteroom_proto::id::GatewayId;
use anteroom_proto::operation::ViewNumber;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::{Applied, Reachable, Rotate};
use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, SqlitePool};

use super::value::{Columns, failed, int};
use crate::store::{AppliedFacts, GatewayFacts, HelloFacts, IssueView, StoreError, ViewState};

const WHAT: &str = "gateway";

pub(super) async fn hello(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    hello: &HelloFacts,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE gateways SET agent_version = ?2, observed = ?3, reachable = ?4, last_seen = ?5, \
         refused = NULL WHERE gateway = ?1",
    )
    .bind(gateway.as_bytes().as_slice())
    .bind(&hello.agent_version)
    .bind(hello.observed.to_string())
    .bind(cbor::encode(&hello.reachable))
    .bind(int(hello.at.0))
    .execute(&mut *change)
    .await
    .map_err(failed("store a greeting"))?;
    in_force(change, gateway, hello.applied.as_ref(), hello.at).await
}

pub(super) async fn reachable(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    reachable: &Reachable,
    at: UnixMillis,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE gateways SET reachable = ?2, last_seen = ?3 WHERE gateway = ?1")
        .bind(gateway.as_bytes().as_slice())
        .bind(cbor::encode(reachable))
        .bind(int(at.0))
        .execute(change)
        .await
        .map_err(failed("store where a gateway is"))?;
    Ok(())
}

pub(super) async fn seen(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    at: UnixMillis,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE gateways SET last_seen = MAX(COALESCE(last_seen, 0), ?2) WHERE gateway = ?1",
    )
    .bind(gateway.as_bytes().as_slice())
    .bind(int(at.0))
    .execute(change)
    .await
    .map_err(failed("store when a gateway was seen"))?;
    Ok(())
}

pub(super) async fn applied(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    applied: &Applied,
    at: UnixMillis,
) -> Result<(), StoreError> {
    let Some(reason) = &applied.refused else {
        sqlx::query("UPDATE gateways SET refused = NULL WHERE gateway = ?")
            .bind(gateway.as_bytes().as_slice())
            .execute(&mut *change)
            .await
            .map_err(failed("store what a gateway has in force"))?;
        return in_force(change, gateway, Some(applied), at).await;
    };
    // What was in force before still is.
    sqlx::query("UPDATE gateways SET refused = ?2, last_seen = ?3 WHERE gateway = ?1")
        .bind(gateway.as_bytes().as_slice())
        .bind(reason)
        .bind(int(at.0))
        .execute(change)
        .await
        .map_err(failed("store why a gateway refused its view"))?;
    Ok(())
}

async fn in_force(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    applied: Option<&Applied>,
    at: UnixMillis,
) -> Result<(), StoreError> {
    let doing = "store what a gateway has in force";
    let revision = applied.map(|applied| int(applied.revision));
    sqlx::query(
        "UPDATE gateways SET applied_incarnation = ?2, applied_sequence = ?3, \
         applied_revision = ?4, applied_intent = ?5, problems = ?6, \
         behind_since = CASE WHEN wanted <= COALESCE(?4, 0) THEN NULL \
         ELSE COALESCE(behind_since, ?7) END, last_seen = ?7 WHERE gateway = ?1",
    )
    .bind(gateway.as_bytes().as_slice())
    .bind(applied.map(|applied| int(applied.number.incarnation)))
    .bind(applied.map(|applied| int(applied.number.sequence)))
    .bind(revision)
    .bind(applied.map(|applied| applied.intent_hash.as_bytes().to_vec()))
    .bind(applied.map(|applied| cbor::encode(&applied.problems)))
    .bind(int(at.0))
    .execute(&mut *change)
    .await
    .map_err(failed(doing))?;
    if let Some(revision) = revision {
        sqlx::query(
            "UPDATE affected SET applied_at = ?3 \
             WHERE gateway = ?1 AND revision <= ?2 AND applied_at IS NULL",
        )
        .bind(gateway.as_bytes().as_slice())
        .bind(revision)
        .bind(int(at.0))
        .execute(change)
        .await
        .map_err(failed(doing))?;
    }
    Ok(())
}

/// The gateway's next number, or nothing where the gateway is unknown.
pub(super) async fn issue(
    change: &mut SqliteConnection,
    incarnation: u64,
    view: &IssueView,
) -> Result<Option<ViewNumber>, StoreError> {
    let row = sqlx::query(
        "UPDATE gateways SET \
         view_sequence = CASE WHEN view_incarnation = ?2 THEN view_sequence + 1 ELSE 1 END, \
         view_incarnation = ?2, view_revision = ?3, view_intent = ?4, view_operation = ?5 \
         WHERE gateway = ?1 RETURNING view_sequence",
    )
    .bind(view.gateway.as_bytes().as_slice())
    .bind(int(incarnation))
    .bind(int(view.revision))
    .bind(view.intent.as_bytes().as_slice())
    .bind(view.operation.as_bytes().as_slice())
    .fetch_optional(change)
    .await
    .map_err(failed("number a view"))?;
    row.map(|row| {
        let sequence = Columns::new(&row, WHAT).uint("view_sequence")?;
        Ok(ViewNumber { incarnation, sequence })
    })
    .transpose()
}

pub(super) async fn reserve_passes(
    change: &mut SqliteConnection,
    count: u32,
) -> Result<u64, StoreError> {
    let row = sqlx::query("UPDATE relay_passes SET next = next + ?1 RETURNING next - ?1 AS first")
        .bind(i64::from(count))
        .fetch_one(change)
        .await
        .map_err(failed("number passes for relays"))?;
    Columns::new(&row, "number of a pass").uint("first")
}

pub(super) async fn one(
    readers: &SqlitePool,
    gateway: GatewayId,
) -> Result<Option<GatewayFacts>, StoreError> {
    let doing = "read a gateway";
    let row = sqlx::query("SELECT * FROM gateways WHERE gateway = ?")
        .bind(gateway.as_bytes().as_slice())
        .fetch_optional(readers)
        .await
        .map_err(failed(doing))?;
    let Some(row) = row else { return Ok(None) };
    let mut known = facts(&row)?;
    let drops = sqlx::query("SELECT reason, count FROM drops WHERE gateway = ?")
        .bind(gateway.as_bytes().as_slice())
        .fetch_all(readers)
        .await
        .map_err(failed(doing))?;
    for row in &drops {
        let columns = Columns::new(row, WHAT);
        known.drops.insert(columns.text("reason")?, columns.uint("count")?);
    }
    Ok(Some(known))
}

pub(super) async fn all(
    readers: &SqlitePool,
) -> Result<BTreeMap<GatewayId, GatewayFacts>, StoreError> {
    let doing = "read the gateways";
    let rows =
        sqlx::query("SELECT * FROM gateways").fetch_all(readers).await.map_err(failed(doing))?;
    let mut all = BTreeMap::new();
    for row in &rows {
        let gateway = GatewayId::from_bytes(Columns::new(row, WHAT).array("gateway")?);
        all.insert(gateway, facts(row)?);
    }
    let drops = sqlx::query("SELECT gateway, reason, count FROM drops")
        .fetch_all(readers)
        .await
        .map_err(failed(doing))?;
    for row in &drops {
        let columns = Columns::new(row, WHAT);
        let gateway = GatewayId::from_bytes(columns.array("gateway")?);
        if let Some(known) = all.get_mut(&gateway) {
            known.drops.insert(columns.text("reason")?, columns.uint("count")?);
        }
    }
    Ok(all)
}

/// Notes which keys are to be replaced. What is wanted at once stays so.
pub(super) async fn want_rotation(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    rotate: Rotate,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO rotations (gateway, up_to, now) SELECT gateway, ?2, ?3 FROM gateways \
         WHERE gateway = ?1 ON CONFLICT (gateway) DO UPDATE SET \
         now = CASE WHEN excluded.up_to > up_to THEN excluded.now ELSE MAX(now, excluded.now) END, \
         up_to = MAX(up_to, excluded.up_to)",
    )
    .bind(gateway.as_bytes().as_slice())
    .bind(int(rotate.up_to))
    .bind(rotate.now)
    .execute(change)
    .await
    .map_err(failed("note a rotation"))?;
    Ok(())
}

pub(super) async fn rotations(
    readers: &SqlitePool,
) -> Result<BTreeMap<GatewayId, Rotate>, StoreError> {
    let rows = sqlx::query("SELECT gateway, up_to, now FROM rotations")
        .fetch_all(readers)
        .await
        .map_err(failed("read the rotations"))?;
    let mut all = BTreeMap::new();
    for row in &rows {
        let columns = Columns::new(row, WHAT);
        let gateway = GatewayId::from_bytes(columns.array("gateway")?);
        let rotate = Rotate { up_to: columns.uint("up_to")?, now: columns.uint("now")? != 0 };
        all.insert(gateway, rotate);
    }
    Ok(all)
}

fn facts(row: &SqliteRow) -> Result<GatewayFacts, StoreError> {
    let columns = Columns::new(row, WHAT);
    let applied = match columns.maybe_uint("applied_revision")? {
        None => None,
        Some(revision) => Some(AppliedFacts {
            number: ViewNumber {
                incarnation: columns.uint("applied_incarnation")?,
                sequence: columns.uint("applied_sequence")?,
            },
            revision,
            intent: columns.hash("applied_intent")?,
        }),
    };
    let observed = match columns.maybe_text("observed")? {
        None => None,
        Some(_) => Some(columns.parsed("observed")?),
    };
    Ok(GatewayFacts {
        agent_version: columns.maybe_text("agent_version")?,
        reachable: columns.maybe_cbor("reachable")?,
        observed,
        last_seen: columns.maybe_uint("last_seen")?.map(UnixMillis),
        tunnels: columns.maybe_cbor("tunnels")?.unwrap_or_default(),
        applied,
        problems: columns.maybe_cbor("problems")?.unwrap_or_default(),
        refused: columns.maybe_text("refused")?,
        wanted: columns.uint("wanted")?,
        behind_since: columns.maybe_uint("behind_since")?.map(UnixMillis),
        view: ViewState {
            number: ViewNumber {
                incarnation: columns.uint("view_incarnation")?,
                sequence: columns.uint("view_sequence")?,
            },
            intent: columns.maybe_hash("view_intent")?,
            operation: columns.maybe_hash("view_operation")?,
        },
        drops: BTreeMap::new(),
        alarms: columns.maybe_cbor("alarms")?.unwrap_or_default(),
        bypasses: columns.maybe_cbor("bypasses")?.unwrap_or_default(),
        trials: columns.maybe_cbor("trials")?.unwrap_or_default(),
        held_back: columns.maybe_cbor("held_back")?.unwrap_or_default(),
        away: (
            columns.uint("sightings_away")?,
            columns.uint("edges_away")?,
            columns.uint("overflow")?,
        ),
    })
}
