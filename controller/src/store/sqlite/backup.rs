//! Copies of a database, and checks of such a copy.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row};

use super::{BUSY, failed};
use crate::store::StoreError;

/// Writes a copy of the database in `from` to `to`, which must be an empty file: consistent as of one moment, also
/// while a controller works on it.
///
/// # Errors
/// When one of the two can't be opened, or the copy can't be written.
pub async fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    let mut source = SqliteConnectOptions::new()
        .filename(from)
        .create_if_missing(false)
        .busy_timeout(BUSY)
        .connect()
        .await
        .map_err(failed("open"))?;
    let copied = sqlx::query("VACUUM INTO ?")
        .bind(to.to_string_lossy().into_owned())
        .execute(&mut source)
        .await
        .map_err(failed("copy itself"));
    source.close().await.map_err(failed("close"))?;
    copied.map(|_| ())
}

/// Has all that was written to a database that nobody else has open be in `file` itself, so that it can be given another name.
///
/// # Errors
/// When it can't be opened, or others have it open.
pub async fn settle(file: &Path) -> Result<(), StoreError> {
    let database = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Delete)
        .synchronous(SqliteSynchronous::Full)
        .connect()
        .await
        .map_err(failed("settle"))?;
    database.close().await.map_err(failed("close"))
}

/// Checks that the file holds a whole database.
///
/// # Errors
/// [`StoreError::Damaged`] when it doesn't.
pub async fn check(file: &Path) -> Result<(), StoreError> {
    let mut database = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(false)
        .connect()
        .await
        .map_err(failed("open"))?;
    let found = sqlx::query("PRAGMA integrity_check")
        .fetch_one(&mut database)
        .await
        .and_then(|row| row.try_get::<String, _>(0))
        .map_err(failed("check itself"));
    database.close().await.map_err(failed("close"))?;
    match found?.as_str() {
        "ok" => Ok(()),
        problem => Err(StoreError::Damaged { what: "database", problem: problem.into() }),
    }
}
