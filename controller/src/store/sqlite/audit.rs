//! The audit log's rows.

use anteroom_proto::api::AuditEntry;
use anteroom_proto::key::Hash;
use anteroom_proto::time::UnixMillis;
use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, SqlitePool};

use super::value::{Columns, failed, int};
use crate::store::{NewAudit, StoreError};

const WHAT: &str = "audit entry";

/// Appends `new` behind the newest entry. The caller's transaction keeps others out.
pub(super) async fn append(
    change: &mut SqliteConnection,
    new: &NewAudit,
) -> Result<AuditEntry, StoreError> {
    let newest = sqlx::query("SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1")
        .fetch_optional(&mut *change)
        .await
        .map_err(failed("read the audit log"))?;
    let (number, previous) = match &newest {
        None => (0, Hash::ZERO),
        Some(row) => {
            let columns = Columns::new(row, WHAT);
            (columns.uint("number")?, columns.hash("hash")?)
        }
    };
    let mut entry = AuditEntry {
        number: number + 1,
        at: new.at,
        actor: new.actor.clone(),
        action: new.action.clone(),
        subject: new.subject.clone(),
        reason: new.reason.clone(),
        before: new.before.clone(),
        after: new.after.clone(),
        revision: new.revision,
        root: new.root,
        previous,
        hash: Hash::ZERO,
    };
    entry.hash = entry.compute_hash();
    sqlx::query(
        "INSERT INTO audit (number, at, actor, action, subject, reason, before, after, revision, root, \
         previous, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(int(entry.number))
    .bind(int(entry.at.0))
    .bind(&entry.actor)
    .bind(&entry.action)
    .bind(&entry.subject)
    .bind(&entry.reason)
    .bind(&entry.before)
    .bind(&entry.after)
    .bind(entry.revision.map(int))
    .bind(entry.root.as_ref().map(|root| root.as_bytes().as_slice()))
    .bind(entry.previous.as_bytes().as_slice())
    .bind(entry.hash.as_bytes().as_slice())
    .execute(change)
    .await
    .map_err(failed("write the audit log"))?;
    Ok(entry)
}

pub(super) async fn list(
    readers: &SqlitePool,
    after: u64,
    limit: u32,
) -> Result<Vec<AuditEntry>, StoreError> {
    let rows = sqlx::query("SELECT * FROM audit WHERE number > ? ORDER BY number LIMIT ?")
        .bind(int(after))
        .bind(limit)
        .fetch_all(readers)
        .await
        .map_err(failed("read the audit log"))?;
    rows.iter().map(entry).collect()
}

fn entry(row: &SqliteRow) -> Result<AuditEntry, StoreError> {
    let columns = Columns::new(row, WHAT);
    Ok(AuditEntry {
        number: columns.uint("number")?,
        at: UnixMillis(columns.uint("at")?),
        actor: columns.text("actor")?,
        action: columns.text("action")?,
        subject: columns.text("subject")?,
        reason: columns.maybe_text("reason")?,
        before: columns.maybe_text("before")?,
        after: columns.maybe_text("after")?,
        revision: columns.maybe_uint("revision")?,
        root: columns.maybe_hash("root")?,
        previous: columns.hash("previous")?,
        hash: columns.hash("hash")?,
    })
}
