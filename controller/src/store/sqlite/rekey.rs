//! Identity keys that are to be replaced.

use std::collections::BTreeMap;

use anteroom_proto::api::RekeyState;
use anteroom_proto::cbor;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::GatewayId;
use anteroom_proto::rekey::{RekeyOffer, RekeyOrder};
use sqlx::{SqliteConnection, SqlitePool};

use super::value::{Columns, failed};
use crate::store::StoreError;

const WHAT: &str = "rekeys";

/// Notes the newest order. What was offered upon an earlier one no longer counts.
pub(super) async fn want(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    order: &Signed<RekeyOrder>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO rekeys (gateway, wanted) SELECT gateway, ?2 FROM gateways WHERE gateway = ?1 \
         ON CONFLICT (gateway) DO UPDATE SET wanted = excluded.wanted, offer = NULL",
    )
    .bind(gateway.as_bytes().as_slice())
    .bind(order.as_bytes())
    .execute(change)
    .await
    .map_err(failed("note that an identity key is to be replaced"))?;
    Ok(())
}

/// Notes what a gateway offered, where something was asked of it.
pub(super) async fn offer(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    offer: &RekeyOffer,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE rekeys SET offer = ?2 WHERE gateway = ?1")
        .bind(gateway.as_bytes().as_slice())
        .bind(cbor::encode(offer))
        .execute(change)
        .await
        .map_err(failed("note another identity key"))?;
    Ok(())
}

pub(super) async fn forget(
    change: &mut SqliteConnection,
    gateway: GatewayId,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM rekeys WHERE gateway = ?1")
        .bind(gateway.as_bytes().as_slice())
        .execute(change)
        .await
        .map_err(failed("forget that an identity key was replaced"))?;
    Ok(())
}

pub(super) async fn all(
    readers: &SqlitePool,
) -> Result<BTreeMap<GatewayId, RekeyState>, StoreError> {
    let rows = sqlx::query("SELECT gateway, wanted, offer FROM rekeys")
        .fetch_all(readers)
        .await
        .map_err(failed("read which identity keys are to be replaced"))?;
    let mut all = BTreeMap::new();
    for row in &rows {
        let columns = Columns::new(row, WHAT);
        let gateway = GatewayId::from_bytes(columns.array("gateway")?);
        let state =
            RekeyState { order: columns.signed("wanted")?, offer: columns.maybe_cbor("offer")? };
        all.insert(gateway, state);
    }
    Ok(all)
}
