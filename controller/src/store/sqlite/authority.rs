//! Authority documents, and whether the controller waits for one.

use anteroom_proto::authority::Authority;
use anteroom_proto::cose::Signed;
use anteroom_proto::time::UnixMillis;
use sqlx::{SqliteConnection, SqlitePool};

use super::value::{Columns, failed, int};
use crate::store::StoreError;

pub(super) async fn chain(readers: &SqlitePool) -> Result<Vec<Signed<Authority>>, StoreError> {
    let rows = sqlx::query("SELECT signed FROM authority ORDER BY number")
        .fetch_all(readers)
        .await
        .map_err(failed("read the authority documents"))?;
    rows.iter().map(|row| Columns::new(row, "authority document").signed("signed")).collect()
}

/// Stores document `number`, if that is the next one.
pub(super) async fn add(
    change: &mut SqliteConnection,
    document: &Signed<Authority>,
    number: u64,
) -> Result<bool, StoreError> {
    let added = sqlx::query(
        "INSERT INTO authority (number, signed) SELECT ?1, ?2 \
         WHERE (SELECT COALESCE(MAX(number), 0) FROM authority) = ?1 - 1",
    )
    .bind(int(number))
    .bind(document.as_bytes())
    .execute(change)
    .await
    .map_err(failed("store the authority document"))?;
    Ok(added.rows_affected() == 1)
}

pub(super) async fn restored(readers: &SqlitePool) -> Result<Option<UnixMillis>, StoreError> {
    let row = sqlx::query("SELECT at FROM restored")
        .fetch_optional(readers)
        .await
        .map_err(failed("read whether it was restored"))?;
    row.map(|row| Ok(UnixMillis(Columns::new(&row, "note of a restore").uint("at")?))).transpose()
}

pub(super) async fn set_restored(
    change: &mut SqliteConnection,
    at: Option<UnixMillis>,
) -> Result<(), StoreError> {
    let query = match at {
        Some(at) => {
            sqlx::query("INSERT OR REPLACE INTO restored (one, at) VALUES (1, ?)").bind(int(at.0))
        }
        None => sqlx::query("DELETE FROM restored"),
    };
    query.execute(change).await.map_err(failed("note a restore"))?;
    Ok(())
}
