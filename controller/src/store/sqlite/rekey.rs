//! Identity keys that are to be replaced.

use std::collections::BTreeMap;

use anteroom_proto::api::{RekeyDoubt, RekeyState};
use anteroom_proto::cbor;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::GatewayId;
use anteroom_proto::rekey::{RekeyOffer, RekeyOrder};
use sqlx::{SqliteConnection, SqlitePool};

use super::value::{Columns, failed};
use crate::store::StoreError;

const WHAT: &str = "rekeys";
/// Doubts, as they are kept.
const RIVAL: i64 = 1;
const RESTORED: i64 = 2;

/// Notes the newest order. What was offered upon an earlier one no longer counts.
pub(super) async fn want(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    order: &Signed<RekeyOrder>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO rekeys (gateway, wanted) SELECT gateway, ?2 FROM gateways WHERE gateway = ?1 \
         ON CONFLICT (gateway) DO UPDATE SET wanted = excluded.wanted, offer = NULL, doubt = 0",
    )
    .bind(gateway.as_bytes().as_slice())
    .bind(order.as_bytes())
    .execute(change)
    .await
    .map_err(failed("note that an identity key is to be replaced"))?;
    Ok(())
}

/// Notes what a gateway offered, where `order` is the newest.
pub(super) async fn offer(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    order: &Signed<RekeyOrder>,
    offer: &RekeyOffer,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE rekeys SET offer = ?3, doubt = iif(doubt = ?4, ?4, 0) WHERE gateway = ?1 AND wanted = ?2",
    )
    .bind(gateway.as_bytes().as_slice())
    .bind(order.as_bytes())
    .bind(cbor::encode(offer))
    .bind(RIVAL)
    .execute(change)
    .await
    .map_err(failed("note another identity key"))?;
    Ok(())
}

/// Notes that what was offered upon `order` isn't all that was.
pub(super) async fn doubt(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    order: &Signed<RekeyOrder>,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE rekeys SET doubt = ?3 WHERE gateway = ?1 AND wanted = ?2")
        .bind(gateway.as_bytes().as_slice())
        .bind(order.as_bytes())
        .bind(RIVAL)
        .execute(change)
        .await
        .map_err(failed("note that two identity keys are offered"))?;
    Ok(())
}

/// What was offered is as old as a backup.
pub(super) async fn restored(change: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::query("UPDATE rekeys SET doubt = ?1 WHERE offer IS NOT NULL AND doubt = 0")
        .bind(RESTORED)
        .execute(change)
        .await
        .map_err(failed("note that identity keys on offer come from a backup"))?;
    Ok(())
}

pub(super) async fn forget(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    order: &Signed<RekeyOrder>,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM rekeys WHERE gateway = ?1 AND wanted = ?2")
        .bind(gateway.as_bytes().as_slice())
        .bind(order.as_bytes())
        .execute(change)
        .await
        .map_err(failed("forget that an identity key was replaced"))?;
    Ok(())
}

pub(super) async fn one(
    readers: &SqlitePool,
    gateway: GatewayId,
) -> Result<Option<RekeyState>, StoreError> {
    let row = sqlx::query("SELECT wanted, offer, doubt FROM rekeys WHERE gateway = ?1")
        .bind(gateway.as_bytes().as_slice())
        .fetch_optional(readers)
        .await
        .map_err(failed("read whether an identity key is to be replaced"))?;
    row.map(|row| state(&Columns::new(&row, WHAT))).transpose()
}

pub(super) async fn all(
    readers: &SqlitePool,
) -> Result<BTreeMap<GatewayId, RekeyState>, StoreError> {
    let rows = sqlx::query("SELECT gateway, wanted, offer, doubt FROM rekeys")
        .fetch_all(readers)
        .await
        .map_err(failed("read which identity keys are to be replaced"))?;
    let mut all = BTreeMap::new();
    for row in &rows {
        let columns = Columns::new(row, WHAT);
        let gateway = GatewayId::from_bytes(columns.array("gateway")?);
        all.insert(gateway, state(&columns)?);
    }
    Ok(all)
}

fn state(columns: &Columns<'_>) -> Result<RekeyState, StoreError> {
    let doubt = match columns.uint("doubt")? {
        0 => None,
        2 => Some(RekeyDoubt::Restored),
        _ => Some(RekeyDoubt::Rival),
    };
    let (order, offer) = (columns.signed("wanted")?, columns.maybe_cbor("offer")?);
    Ok(RekeyState { order, offer, doubt, unable: false })
}
