//! Revisions of the model, and whom each affects.

use anteroom_proto::api::RevisionInfo;
use anteroom_proto::cbor::Blob;
use anteroom_proto::id::GatewayId;
use anteroom_proto::time::UnixMillis;
use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, SqlitePool};

use super::value::{Columns, failed, int};
use crate::store::{Advance, NewRevision, StoreError, StoredRevision};

const WHAT: &str = "revision";

pub(super) async fn newest(readers: &SqlitePool) -> Result<Option<StoredRevision>, StoreError> {
    let row = sqlx::query(
        "SELECT r.number, r.root, m.bytes FROM revisions r JOIN models m ON m.hash = r.model \
         ORDER BY r.number DESC LIMIT 1",
    )
    .fetch_optional(readers)
    .await
    .map_err(failed("read the newest revision"))?;
    row.as_ref().map(stored).transpose()
}

pub(super) async fn at(
    readers: &SqlitePool,
    number: u64,
) -> Result<Option<StoredRevision>, StoreError> {
    let row = sqlx::query(
        "SELECT r.number, r.root, m.bytes FROM revisions r JOIN models m ON m.hash = r.model \
         WHERE r.number = ?",
    )
    .bind(int(number))
    .fetch_optional(readers)
    .await
    .map_err(failed("read a revision"))?;
    row.as_ref().map(stored).transpose()
}

fn stored(row: &SqliteRow) -> Result<StoredRevision, StoreError> {
    let columns = Columns::new(row, WHAT);
    Ok(StoredRevision {
        number: columns.uint("number")?,
        root: columns.signed("root")?,
        model: Blob(columns.bytes("bytes")?.to_vec()),
    })
}

pub(super) async fn history(
    readers: &SqlitePool,
    limit: u32,
) -> Result<Vec<RevisionInfo>, StoreError> {
    let rows = sqlx::query(
        "SELECT number, at, operator, action, subject, reason FROM revisions \
         ORDER BY number DESC LIMIT ?",
    )
    .bind(limit)
    .fetch_all(readers)
    .await
    .map_err(failed("read the history"))?;
    rows.iter()
        .map(|row| {
            let columns = Columns::new(row, WHAT);
            Ok(RevisionInfo {
                number: columns.uint("number")?,
                at: UnixMillis(columns.uint("at")?),
                operator: columns.key("operator")?,
                action: columns.text("action")?,
                subject: columns.text("subject")?,
                reason: columns.maybe_text("reason")?,
            })
        })
        .collect()
}

/// Where a revision may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Right behind the newest one.
    Next,
    /// Anywhere behind the newest one: what was between is lost.
    AfterLoss,
}

pub(super) async fn add(
    change: &mut SqliteConnection,
    revision: &NewRevision,
    place: Place,
) -> Result<bool, StoreError> {
    let doing = "store a revision";
    let info = &revision.info;
    sqlx::query("INSERT OR IGNORE INTO models (hash, bytes) VALUES (?, ?)")
        .bind(revision.model_hash.as_bytes().as_slice())
        .bind(revision.model.0.as_slice())
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    let added = sqlx::query(
        "INSERT INTO revisions (number, root, model, at, operator, action, subject, reason) \
         SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 \
         WHERE (SELECT COALESCE(MAX(number), 0) FROM revisions) BETWEEN ?9 AND ?1 - 1",
    )
    .bind(int(info.number))
    .bind(revision.root.as_bytes())
    .bind(revision.model_hash.as_bytes().as_slice())
    .bind(int(info.at.0))
    .bind(info.operator.as_bytes().as_slice())
    .bind(&info.action)
    .bind(&info.subject)
    .bind(&info.reason)
    .bind(match place {
        Place::Next => int(info.number.saturating_sub(1)),
        Place::AfterLoss => 0,
    })
    .execute(&mut *change)
    .await
    .map_err(failed(doing))?;
    if added.rows_affected() == 0 {
        return Ok(false);
    }
    for gateway in &revision.affected {
        sqlx::query("INSERT INTO affected (gateway, revision) VALUES (?, ?)")
            .bind(gateway.as_bytes().as_slice())
            .bind(int(info.number))
            .execute(&mut *change)
            .await
            .map_err(failed(doing))?;
        sqlx::query(
            "INSERT INTO gateways (gateway, wanted, behind_since) VALUES (?1, ?2, ?3) \
             ON CONFLICT (gateway) DO UPDATE SET wanted = ?2, \
             behind_since = COALESCE(behind_since, ?3)",
        )
        .bind(gateway.as_bytes().as_slice())
        .bind(int(info.number))
        .bind(int(info.at.0))
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    }
    Ok(true)
}

pub(super) async fn progress(
    readers: &SqlitePool,
    number: u64,
) -> Result<Option<Vec<Advance>>, StoreError> {
    let doing = "read a revision's progress";
    let known = sqlx::query("SELECT 1 FROM revisions WHERE number = ?")
        .bind(int(number))
        .fetch_optional(readers)
        .await
        .map_err(failed(doing))?;
    if known.is_none() {
        return Ok(None);
    }
    let rows = sqlx::query(
        "SELECT a.gateway, a.applied_at, g.applied_revision, g.refused FROM affected a \
         JOIN gateways g ON g.gateway = a.gateway WHERE a.revision = ? ORDER BY a.gateway",
    )
    .bind(int(number))
    .fetch_all(readers)
    .await
    .map_err(failed(doing))?;
    let advances: Result<Vec<Advance>, StoreError> = rows
        .iter()
        .map(|row| {
            let columns = Columns::new(row, WHAT);
            Ok(Advance {
                gateway: GatewayId::from_bytes(columns.array("gateway")?),
                revision: columns.maybe_uint("applied_revision")?,
                applied_at: columns.maybe_uint("applied_at")?.map(UnixMillis),
                refused: columns.maybe_text("refused")?,
            })
        })
        .collect();
    advances.map(Some)
}
