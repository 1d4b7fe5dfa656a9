//! Sessions and challenges, by the hashes of what their holders know.

use anteroom_proto::key::{Hash, PublicKey};
use anteroom_proto::time::UnixMillis;
use sqlx::{SqliteConnection, SqlitePool};

use super::value::{Columns, failed, int};
use crate::store::StoreError;

const WHAT: &str = "session";

pub(super) async fn add(
    change: &mut SqliteConnection,
    token: Hash,
    operator: PublicKey,
    now: UnixMillis,
    not_after: UnixMillis,
    keep: u32,
) -> Result<(), StoreError> {
    let doing = "store a session";
    sqlx::query("DELETE FROM sessions WHERE not_after <= ?")
        .bind(int(now.0))
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    sqlx::query("INSERT INTO sessions (token, operator, not_after) VALUES (?, ?, ?)")
        .bind(token.as_bytes().as_slice())
        .bind(operator.as_bytes().as_slice())
        .bind(int(not_after.0))
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    sqlx::query(
        "DELETE FROM sessions WHERE operator = ?1 AND token NOT IN (SELECT token FROM sessions \
         WHERE operator = ?1 ORDER BY not_after DESC, rowid DESC LIMIT ?2)",
    )
    .bind(operator.as_bytes().as_slice())
    .bind(keep)
    .execute(change)
    .await
    .map_err(failed(doing))?;
    Ok(())
}

pub(super) async fn operator(
    readers: &SqlitePool,
    token: Hash,
    now: UnixMillis,
) -> Result<Option<PublicKey>, StoreError> {
    let row = sqlx::query("SELECT operator FROM sessions WHERE token = ? AND not_after > ?")
        .bind(token.as_bytes().as_slice())
        .bind(int(now.0))
        .fetch_optional(readers)
        .await
        .map_err(failed("read a session"))?;
    row.map(|row| Columns::new(&row, WHAT).key("operator")).transpose()
}

pub(super) async fn end(writer: &SqlitePool, token: Hash) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM sessions WHERE token = ?")
        .bind(token.as_bytes().as_slice())
        .execute(writer)
        .await
        .map_err(failed("end a session"))?;
    Ok(())
}

pub(super) async fn add_challenge(
    change: &mut SqliteConnection,
    nonce: Hash,
    now: UnixMillis,
    not_after: UnixMillis,
    limit: u32,
) -> Result<bool, StoreError> {
    let doing = "store a challenge";
    sqlx::query("DELETE FROM challenges WHERE not_after <= ?")
        .bind(int(now.0))
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    let added = sqlx::query(
        "INSERT INTO challenges (nonce, not_after) SELECT ?, ? \
         WHERE (SELECT COUNT(*) FROM challenges) < ?",
    )
    .bind(nonce.as_bytes().as_slice())
    .bind(int(not_after.0))
    .bind(limit)
    .execute(change)
    .await
    .map_err(failed(doing))?;
    Ok(added.rows_affected() == 1)
}

pub(super) async fn take_challenge(
    writer: &SqlitePool,
    nonce: Hash,
    now: UnixMillis,
) -> Result<bool, StoreError> {
    let taken = sqlx::query("DELETE FROM challenges WHERE nonce = ? AND not_after > ?")
        .bind(nonce.as_bytes().as_slice())
        .bind(int(now.0))
        .execute(writer)
        .await
        .map_err(failed("use a challenge"))?;
    Ok(taken.rows_affected() == 1)
}
