//! What is SQLite's own: its files, and what is done to them behind the store's back.

use anteroom_proto::api::HistoryQuery;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::{EdgeDelta, Report};

use super::SqliteStore;
use crate::audit;
use crate::store::Store;
use crate::store::conformance::{self, LIMITS, audit as entry};

const DAY: u64 = 86_400_000;

/// Opening the same file again finds everything, and an entry that was altered behind the store's back.
#[tokio::test]
async fn a_tampered_audit_log_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.db");
    let store = SqliteStore::open(&path, true, LIMITS).await.unwrap();
    for action in ["one", "two", "three"] {
        store.append_audit(&entry(action)).await.unwrap();
    }
    store.close().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let raw = sqlx::SqlitePool::connect_with(options).await.unwrap();
    for (change, sql) in [
        ("update", "UPDATE audit SET actor = 'mallory' WHERE number = 2"),
        ("delete", "DELETE FROM audit WHERE number = 2"),
    ] {
        let error = sqlx::query(sql).execute(&raw).await.unwrap_err().to_string();
        assert!(error.contains("append-only"), "{change}: {error}");
    }
    for sql in [
        "DROP TRIGGER audit_is_append_only_update",
        "DROP TRIGGER audit_is_append_only_delete",
        "UPDATE audit SET actor = 'mallory' WHERE number = 2",
    ] {
        sqlx::query(sql).execute(&raw).await.unwrap();
    }
    let store = SqliteStore::open(&path, false, LIMITS).await.unwrap();
    let error = audit::check(&store).await.unwrap_err().to_string();
    assert!(error.contains("entry 2 doesn't have the hash"), "{error}");
    sqlx::query("DELETE FROM audit WHERE number = 2").execute(&raw).await.unwrap();
    let error = audit::check(&store).await.unwrap_err().to_string();
    assert!(error.contains("entry 2 isn't the one that comes next"), "{error}");
    raw.close().await;
    store.close().await;
}

#[tokio::test]
async fn what_is_no_database_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.db");
    std::fs::write(&path, b"this is no database, but a text of some length").unwrap();
    assert!(SqliteStore::open(&path, false, LIMITS).await.is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"this is no database, but a text of some length");
    let missing = directory.path().join("missing.db");
    assert!(SqliteStore::open(&missing, false, LIMITS).await.is_err());
    assert!(!missing.exists());
}

/// An edge from before rhythms were kept tells its first and last hour, and goes on from there.
#[tokio::test]
async fn an_edge_without_a_rhythm_begins_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.db");
    let store = SqliteStore::open(&path, true, LIMITS).await.unwrap();
    conformance::enrolled(&store, 1).await;
    let edge = |at: u64| {
        let edge = conformance::edge(104, anteroom_proto::verdict::Verdict::Tunnel);
        EdgeDelta { first: UnixMillis(at), last: UnixMillis(at + 1), ..edge }
    };
    let record = async |sequence, edges| {
        let report = Report { edges, ..conformance::report(1, sequence) };
        let now = UnixMillis(100 * DAY);
        store.record_report(conformance::gateway(1), &report, now).await.unwrap();
        store
            .history(&HistoryQuery::default(), 10)
            .await
            .unwrap()
            .0
            .remove(0)
            .rhythm
            .days()
            .collect::<Vec<_>>()
    };
    assert_eq!(record(1, vec![edge(60 * DAY)]).await, [60]);
    assert_eq!(record(2, vec![edge(70 * DAY)]).await, [70, 60]);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let raw = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query("UPDATE edges SET rhythm = NULL").execute(&raw).await.unwrap();
    assert_eq!(record(3, vec![edge(80 * DAY)]).await, [80, 60]);
    sqlx::query("UPDATE edges SET rhythm = x'00'").execute(&raw).await.unwrap();
    let error = store.history(&HistoryQuery::default(), 10).await.unwrap_err().to_string();
    assert!(error.contains("rhythm has a wrong length"), "{error}");
    raw.close().await;
    store.close().await;
}

/// A hint of a kind that only another release knows is left out, and those around it are given.
#[tokio::test]
async fn hints_of_unknown_kinds_are_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.db");
    let store = SqliteStore::open(&path, true, LIMITS).await.unwrap();
    conformance::enrolled(&store, 1).await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let raw = sqlx::SqlitePool::connect_with(options).await.unwrap();
    for kind in ["dhcp.hostname", "teleport.name", "dns.query"] {
        sqlx::query(
            "INSERT INTO hints (gateway, mac, vlan, kind, value, port, member, first, last) \
             VALUES (x'01010101010101010101010101010101', x'020000000001', -1, ?, 'ct-1', 'port1', x'', 1, 2)",
        )
        .bind(kind)
        .execute(&raw)
        .await
        .unwrap();
    }
    raw.close().await;
    let mut found = Vec::new();
    let mut after = None;
    loop {
        // One a page: a page may be empty though more follow.
        let (hints, next) = store.hints(after, 1).await.unwrap();
        found.extend(hints.iter().map(|hint| hint.kind.word()));
        match next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(found, ["dhcp.hostname", "dns.query"]);
    store.close().await;
}

/// What an earlier release counted as not kept, without when, becomes old like the rest.
#[tokio::test]
async fn what_was_not_kept_before_it_was_dated_has_the_date_of_the_last_report() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.db");
    let store = SqliteStore::open(&path, true, LIMITS).await.unwrap();
    for number in 1..3 {
        conformance::enrolled(&store, number).await;
    }
    store.close().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let raw = sqlx::SqlitePool::connect_with(options).await.unwrap();
    for sql in [
        "UPDATE gateways SET last_seen = 7, sightings_away = 3, sightings_away_at = NULL",
        "UPDATE gateways SET sightings_away_at = 5 WHERE gateway = x'02020202020202020202020202020202'",
        "DELETE FROM _sqlx_migrations WHERE version = 130",
    ] {
        sqlx::query(sql).execute(&raw).await.unwrap();
    }
    raw.close().await;
    let store = SqliteStore::open(&path, false, LIMITS).await.unwrap();
    let away = store.sightings_away().await.unwrap();
    let last = |number| away[&conformance::gateway(number)].last;
    assert_eq!((last(1), last(2)), (Some(UnixMillis(7)), Some(UnixMillis(5))), "{away:?}");
    store.close().await;
}
