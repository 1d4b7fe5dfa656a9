//! Invites and enrolments.

use anteroom_proto::id::{GatewayId, InviteId};
use anteroom_proto::key::PublicKey;
use anteroom_proto::time::UnixMillis;
use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, SqlitePool};

use super::value::{Columns, failed, int};
use crate::store::{EnrolOutcome, Enrolment, StoreError, StoredInvite};

pub(super) async fn add_invite(
    change: &mut SqliteConnection,
    invite: &StoredInvite,
    at: UnixMillis,
) -> Result<bool, StoreError> {
    let added = sqlx::query(
        "INSERT OR IGNORE INTO invites (invite, gateway, signed, at) VALUES (?, ?, ?, ?)",
    )
    .bind(invite.invite.as_bytes().as_slice())
    .bind(invite.gateway.as_bytes().as_slice())
    .bind(invite.signed.as_bytes())
    .bind(int(at.0))
    .execute(change)
    .await
    .map_err(failed("store an invite"))?;
    Ok(added.rows_affected() == 1)
}

pub(super) async fn invite(
    readers: &SqlitePool,
    invite: InviteId,
) -> Result<Option<StoredInvite>, StoreError> {
    let row = sqlx::query(
        "SELECT i.invite, i.gateway, i.signed, e.identity FROM invites i \
         LEFT JOIN enrolments e ON e.invite = i.invite WHERE i.invite = ?",
    )
    .bind(invite.as_bytes().as_slice())
    .fetch_optional(readers)
    .await
    .map_err(failed("read an invite"))?;
    row.as_ref().map(stored_invite).transpose()
}

pub(super) async fn invites(
    readers: &SqlitePool,
    limit: u32,
) -> Result<Vec<StoredInvite>, StoreError> {
    let rows = sqlx::query(
        "SELECT i.invite, i.gateway, i.signed, e.identity FROM invites i \
         LEFT JOIN enrolments e ON e.invite = i.invite ORDER BY i.at DESC, i.rowid DESC LIMIT ?",
    )
    .bind(limit)
    .fetch_all(readers)
    .await
    .map_err(failed("read the invites"))?;
    rows.iter().map(stored_invite).collect()
}

fn stored_invite(row: &SqliteRow) -> Result<StoredInvite, StoreError> {
    let columns = Columns::new(row, "invite");
    let used_by = match columns.maybe_bytes("identity")? {
        None => None,
        Some(_) => Some(columns.key("identity")?),
    };
    Ok(StoredInvite {
        invite: InviteId::from_bytes(columns.array("invite")?),
        gateway: GatewayId::from_bytes(columns.array("gateway")?),
        signed: columns.signed("signed")?,
        used_by,
    })
}

pub(super) async fn enrol(
    change: &mut SqliteConnection,
    enrolment: &Enrolment,
) -> Result<EnrolOutcome, StoreError> {
    let doing = "store an enrolment";
    let held = sqlx::query("SELECT identity FROM enrolments WHERE invite = ?")
        .bind(enrolment.invite.as_bytes().as_slice())
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(doing))?;
    if let Some(row) = held {
        let holder: PublicKey = Columns::new(&row, "enrolment").key("identity")?;
        let same = holder == enrolment.identity;
        return Ok(if same { EnrolOutcome::Again } else { EnrolOutcome::Taken });
    }
    let added = sqlx::query(
        "INSERT OR IGNORE INTO enrolments (gateway, invite, identity, claim, at, source) \
         VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(enrolment.gateway.as_bytes().as_slice())
    .bind(enrolment.invite.as_bytes().as_slice())
    .bind(enrolment.identity.as_bytes().as_slice())
    .bind(enrolment.claim.as_bytes())
    .bind(int(enrolment.at.0))
    .bind(enrolment.from.to_string())
    .execute(&mut *change)
    .await
    .map_err(failed(doing))?;
    if added.rows_affected() == 0 {
        return Ok(EnrolOutcome::Taken);
    }
    sqlx::query("INSERT OR IGNORE INTO gateways (gateway) VALUES (?)")
        .bind(enrolment.gateway.as_bytes().as_slice())
        .execute(change)
        .await
        .map_err(failed(doing))?;
    Ok(EnrolOutcome::First)
}

/// Whether this late identity is to be audited: it is new, and there weren't too many before.
pub(super) async fn note_refusal(
    change: &mut SqliteConnection,
    enrolment: &Enrolment,
    limit: u32,
) -> Result<bool, StoreError> {
    let noted = sqlx::query(
        "INSERT OR IGNORE INTO enrolment_refusals (invite, identity) SELECT ?1, ?2 \
         WHERE (SELECT COUNT(*) FROM enrolment_refusals WHERE invite = ?1) < ?3",
    )
    .bind(enrolment.invite.as_bytes().as_slice())
    .bind(enrolment.identity.as_bytes().as_slice())
    .bind(limit)
    .execute(change)
    .await
    .map_err(failed("note a refused enrolment"))?;
    Ok(noted.rows_affected() == 1)
}

pub(super) async fn enrolment(
    readers: &SqlitePool,
    gateway: GatewayId,
) -> Result<Option<Enrolment>, StoreError> {
    let row = sqlx::query("SELECT * FROM enrolments WHERE gateway = ?")
        .bind(gateway.as_bytes().as_slice())
        .fetch_optional(readers)
        .await
        .map_err(failed("read an enrolment"))?;
    row.as_ref().map(stored_enrolment).transpose()
}

pub(super) async fn pending(
    readers: &SqlitePool,
    limit: u32,
) -> Result<Vec<Enrolment>, StoreError> {
    let rows = sqlx::query(
        "SELECT * FROM enrolments e \
         WHERE NOT EXISTS (SELECT 1 FROM affected a WHERE a.gateway = e.gateway) \
         ORDER BY at LIMIT ?",
    )
    .bind(limit)
    .fetch_all(readers)
    .await
    .map_err(failed("read the enrolments"))?;
    rows.iter().map(stored_enrolment).collect()
}

pub(super) async fn was_approved(
    readers: &SqlitePool,
    gateway: GatewayId,
) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT 1 FROM affected WHERE gateway = ? LIMIT 1")
        .bind(gateway.as_bytes().as_slice())
        .fetch_optional(readers)
        .await
        .map_err(failed("read an approval"))?;
    Ok(row.is_some())
}

fn stored_enrolment(row: &SqliteRow) -> Result<Enrolment, StoreError> {
    let columns = Columns::new(row, "enrolment");
    Ok(Enrolment {
        gateway: GatewayId::from_bytes(columns.array("gateway")?),
        invite: InviteId::from_bytes(columns.array("invite")?),
        identity: columns.key("identity")?,
        claim: columns.signed("claim")?,
        at: UnixMillis(columns.uint("at")?),
        from: columns.parsed("source")?,
    })
}
