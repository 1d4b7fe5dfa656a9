//! Reports: edges, drops, and the watermarks that keep anything from counting twice.

use anteroom_proto::api::{Edge, EdgeQuery, HistoryQuery};
use anteroom_proto::cbor;
use anteroom_proto::id::{GatewayId, MemberId, RuleId};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::rhythm::Rhythm;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::{EdgeDelta, Report};
use anteroom_proto::verdict::Verdict;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Sqlite, SqliteConnection, SqlitePool};

use super::hints;
use super::shares::Shares;
use super::sightings;
use super::value::{Columns, failed, int, uint};
use crate::store::{Limits, Recorded, Recording, StoreError};

/// Largest step by which a count grows: two of them still fit an integer of SQLite, so that no sum overflows.
const MAX_STEP: u64 = 1 << 62;

fn step(value: u64) -> i64 {
    int(value.min(MAX_STEP - 1))
}

pub(super) async fn record(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    report: &Report,
    at: UnixMillis,
    limits: &Limits,
) -> Result<Recorded, StoreError> {
    if !advance(change, gateway, report, at, limits.boots).await? {
        return Ok(Recorded::Duplicate);
    }
    let sightings = sightings::add(change, gateway, &report.sightings, at, limits).await?;
    let edges = add_edges(change, gateway, &report.edges, at, limits).await?;
    add_watched(change, gateway, report, at).await?;
    let hints = hints::add(change, gateway, &report.hints, at, limits).await?;
    for (reason, count) in &report.drops {
        sqlx::query(
            "INSERT INTO drops (gateway, reason, count) VALUES (?1, ?2, ?3) \
             ON CONFLICT DO UPDATE SET \
             count = CASE WHEN count >= ?4 THEN count ELSE count + ?3 END",
        )
        .bind(gateway.as_bytes().as_slice())
        .bind(reason)
        .bind(step(*count))
        .bind(int(MAX_STEP))
        .execute(&mut *change)
        .await
        .map_err(failed("store drops"))?;
    }
    sqlx::query(
        "UPDATE gateways SET tunnels = ?2, sightings_away = sightings_away + ?3, \
         edges_away = edges_away + ?4, \
         overflow = CASE WHEN overflow >= ?7 THEN overflow ELSE overflow + ?5 END, \
         last_seen = ?6, alarms = ?8, bypasses = ?9, hints_away = hints_away + ?10, \
          trials = ?11, held_back = ?12, edges_forgotten = edges_forgotten + ?13, \
          sightings_away_at = CASE WHEN ?3 > 0 THEN ?6 ELSE sightings_away_at END \
          WHERE gateway = ?1",
    )
    .bind(gateway.as_bytes().as_slice())
    .bind(cbor::encode(&report.tunnels))
    .bind(int(sightings))
    .bind(int(edges.away))
    .bind(step(report.overflow))
    .bind(int(at.0))
    .bind(int(MAX_STEP))
    .bind(cbor::encode(&report.alarms))
    .bind(cbor::encode(&report.bypasses))
    .bind(int(hints))
    .bind(cbor::encode(&report.trials))
    .bind(cbor::encode(&report.held_back))
    .bind(int(edges.forgotten))
    .execute(change)
    .await
    .map_err(failed("store a report"))?;
    let turned_away = sightings + edges.away + hints;
    Ok(Recorded::Stored { turned_away, forgotten: edges.forgotten })
}

/// Moves the watermark up to this report. False where it stands there or beyond already.
async fn advance(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    report: &Report,
    at: UnixMillis,
    boots: u32,
) -> Result<bool, StoreError> {
    let doing = "move a report watermark";
    let moved = sqlx::query(
        "INSERT INTO watermarks (gateway, boot, sequence, at) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT DO UPDATE SET sequence = ?3, at = ?4 WHERE sequence < ?3",
    )
    .bind(gateway.as_bytes().as_slice())
    .bind(report.boot.as_bytes().as_slice())
    .bind(int(report.sequence))
    .bind(int(at.0))
    .execute(&mut *change)
    .await
    .map_err(failed(doing))?;
    if moved.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query(
        "DELETE FROM watermarks WHERE gateway = ?1 AND boot <> ?2 AND boot NOT IN \
         (SELECT boot FROM watermarks WHERE gateway = ?1 ORDER BY at DESC LIMIT ?3)",
    )
    .bind(gateway.as_bytes().as_slice())
    .bind(report.boot.as_bytes().as_slice())
    .bind(boots)
    .execute(change)
    .await
    .map_err(failed(doing))?;
    Ok(true)
}

pub(super) async fn count(
    change: &mut SqliteConnection,
    query: &'static str,
    gateway: GatewayId,
) -> Result<u64, StoreError> {
    let count: i64 = sqlx::query_scalar(query)
        .bind(gateway.as_bytes().as_slice())
        .fetch_one(change)
        .await
        .map_err(failed("count what a gateway reported"))?;
    Ok(uint(count))
}

pub(super) fn optional<const N: usize>(id: Option<&[u8; N]>) -> &[u8] {
    id.map_or(&[], |id| id.as_slice())
}

fn kind(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Tunnel => "tunnel",
        Verdict::Local => "local",
        Verdict::Clear | Verdict::ClearTunnelDown => "clear",
        Verdict::WouldDrop(_) => "would-drop",
        Verdict::Drop(_) => "drop",
    }
}

/// What new edges cost others, and what found no room.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RoomMade {
    /// Edges that found no room, and those that were never answered and made some.
    pub(super) away: u64,
    /// Answered edges that were quiet for long and made some.
    pub(super) forgotten: u64,
}

async fn add_edges(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    edges: &[EdgeDelta],
    at: UnixMillis,
    limits: &Limits,
) -> Result<RoomMade, StoreError> {
    let mut made = RoomMade::default();
    if edges.is_empty() {
        return Ok(made);
    }
    let query = "SELECT COUNT(*) FROM edges WHERE gateway = ?";
    let mut held = count(change, query, gateway).await?;
    let mut shares: Option<Shares> = None;
    for edge in edges {
        if grow_edge(change, gateway, edge, at).await? {
            continue;
        }
        if held >= u64::from(limits.edges) {
            let shares = match &mut shares {
                Some(shares) => shares,
                none => none.insert(Shares::read(change, gateway).await?),
            };
            if !shares.make_room(change, edge, at, limits, &mut made).await? {
                continue;
            }
            shares.added(edge);
        } else {
            held += 1;
        }
        insert_edge(change, gateway, edge, at).await?;
    }
    Ok(made)
}

/// Marks when the gateway reported, and the time that what it told of covers: while no controller was there it watched all the same.
async fn add_watched(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    report: &Report,
    at: UnixMillis,
) -> Result<(), StoreError> {
    let doing = "store when a gateway watched";
    let row = sqlx::query("SELECT watched FROM gateways WHERE gateway = ?")
        .bind(gateway.as_bytes().as_slice())
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(doing))?;
    let before = row.map(|row| stored_watch(&Columns::new(&row, "gateway"))).transpose()?;
    let before = before.unwrap_or_default();
    let mut watched = before;
    watched.record(at, at);
    report.edges.iter().for_each(|edge| watched.merge(&rhythm_of(edge, at)));
    if watched == before {
        return Ok(());
    }
    sqlx::query("UPDATE gateways SET watched = ?2 WHERE gateway = ?1")
        .bind(gateway.as_bytes().as_slice())
        .bind(watched.to_bytes().to_vec())
        .execute(change)
        .await
        .map_err(failed(doing))?;
    Ok(())
}

fn stored_watch(gateway: &Columns<'_>) -> Result<Rhythm, StoreError> {
    match gateway.maybe_bytes("watched")? {
        Some(_) => gateway.array("watched").map(Rhythm::from_bytes),
        None => Ok(Rhythm::default()),
    }
}

/// Binds ?1 to ?18: what tells an edge from others, then its numbers.
fn bind_edge<'q>(
    query: Query<'q, Sqlite, SqliteArguments>,
    gateway: &'q GatewayId,
    edge: &'q EdgeDelta,
) -> Query<'q, Sqlite, SqliteArguments> {
    query
        .bind(gateway.as_bytes().as_slice())
        .bind(edge.mac.0.as_slice())
        .bind(edge.local.to_string())
        .bind(edge.remote.to_string())
        .bind(edge.outbound)
        .bind(edge.protocol)
        .bind(edge.port)
        .bind(edge.verdict.to_string())
        .bind(optional(edge.rule.as_ref().map(RuleId::as_bytes)))
        .bind(optional(edge.member.as_ref().map(MemberId::as_bytes)))
        .bind(optional(edge.remote_member.as_ref().map(MemberId::as_bytes)))
        .bind(step(edge.flows))
        .bind(step(edge.packets_out))
        .bind(step(edge.packets_in))
        .bind(step(edge.bytes_out))
        .bind(step(edge.bytes_in))
        .bind(int(edge.first.0))
        .bind(int(edge.last.0))
}

/// When an edge's traffic was. A gateway whose clock runs ahead says nothing about days to come.
fn rhythm_of(edge: &EdgeDelta, at: UnixMillis) -> Rhythm {
    let mut rhythm = Rhythm::default();
    let last = edge.last.min(at);
    rhythm.record(edge.first.min(last), last);
    rhythm
}

/// Adds to an edge that is there. False where it isn't.
async fn grow_edge(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    edge: &EdgeDelta,
    at: UnixMillis,
) -> Result<bool, StoreError> {
    let query = sqlx::query(
        "UPDATE edges SET \
         flows = CASE WHEN flows >= ?19 THEN flows ELSE flows + ?12 END, \
         packets_out = CASE WHEN packets_out >= ?19 THEN packets_out ELSE packets_out + ?13 END, \
         packets_in = CASE WHEN packets_in >= ?19 THEN packets_in ELSE packets_in + ?14 END, \
         bytes_out = CASE WHEN bytes_out >= ?19 THEN bytes_out ELSE bytes_out + ?15 END, \
         bytes_in = CASE WHEN bytes_in >= ?19 THEN bytes_in ELSE bytes_in + ?16 END, \
         first = MIN(first, ?17), last = MAX(last, ?18) \
         WHERE gateway = ?1 AND mac = ?2 AND local = ?3 AND remote = ?4 AND outbound = ?5 \
         AND protocol = ?6 AND port = ?7 AND verdict = ?8 AND rule = ?9 AND member = ?10 \
         AND remote_member = ?11 RETURNING rowid AS place, first, last, rhythm",
    );
    let doing = "add to an edge";
    let grown = bind_edge(query, &gateway, edge)
        .bind(int(MAX_STEP))
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(doing))?;
    let Some(row) = grown else { return Ok(false) };
    let columns = Columns::new(&row, "edge");
    let before = stored_rhythm(&columns)?;
    let mut rhythm = before;
    rhythm.merge(&rhythm_of(edge, at));
    // Most reports come within an hour that is marked already.
    if rhythm != before {
        sqlx::query("UPDATE edges SET rhythm = ? WHERE rowid = ?")
            .bind(rhythm.to_bytes().as_slice())
            .bind(int(columns.uint("place")?))
            .execute(change)
            .await
            .map_err(failed(doing))?;
    }
    Ok(true)
}

/// An edge's rhythm. Of one from before rhythms were kept, its first and last hour are all that is known.
fn stored_rhythm(columns: &Columns<'_>) -> Result<Rhythm, StoreError> {
    match columns.maybe_bytes("rhythm")? {
        Some(_) => columns.array("rhythm").map(Rhythm::from_bytes),
        None => {
            let mut rhythm = Rhythm::default();
            for moment in ["first", "last"] {
                let moment = UnixMillis(columns.uint(moment)?);
                rhythm.record(moment, moment);
            }
            Ok(rhythm)
        }
    }
}

async fn insert_edge(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    edge: &EdgeDelta,
    at: UnixMillis,
) -> Result<(), StoreError> {
    let query = sqlx::query(
        "INSERT INTO edges (gateway, mac, local, remote, outbound, protocol, port, verdict, rule, \
         member, remote_member, flows, packets_out, packets_in, bytes_out, bytes_in, first, last, \
         kind, rhythm) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    );
    bind_edge(query, &gateway, edge)
        .bind(kind(edge.verdict))
        .bind(rhythm_of(edge, at).to_bytes().to_vec())
        .execute(change)
        .await
        .map_err(failed("store an edge"))?;
    Ok(())
}

pub(super) async fn edges(
    readers: &SqlitePool,
    query: &EdgeQuery,
    limit: u32,
) -> Result<Vec<Edge>, StoreError> {
    let member = query.member.as_ref().map(|member| member.as_bytes().as_slice());
    let rows = sqlx::query(
        "SELECT * FROM edges WHERE (?1 IS NULL OR member = ?1 OR remote_member = ?1) \
         AND (?2 IS NULL OR kind = ?2) AND last > ?3 ORDER BY last DESC LIMIT ?4",
    )
    .bind(member)
    .bind(&query.verdict)
    .bind(query.since.map_or(-1, int))
    .bind(limit)
    .fetch_all(readers)
    .await
    .map_err(failed("read the edges"))?;
    rows.iter().map(edge).collect()
}

pub(super) async fn history(
    readers: &SqlitePool,
    query: &HistoryQuery,
    limit: u32,
) -> Result<(Vec<Edge>, Option<u64>), StoreError> {
    let member = query.member.as_ref().map(|member| member.as_bytes().as_slice());
    let kinds = query.verdicts.as_ref().map(|kinds| format!(",{kinds},"));
    let rows = sqlx::query(
        "SELECT rowid AS place, * FROM edges WHERE rowid > ?1 \
         AND (?2 IS NULL OR length(member) = 0 OR member = ?2 OR remote_member = ?2) \
         AND (?3 IS NULL OR instr(?3, ',' || kind || ',') > 0) ORDER BY rowid LIMIT ?4",
    )
    .bind(query.after.map_or(-1, int))
    .bind(member)
    .bind(kinds)
    .bind(limit)
    .fetch_all(readers)
    .await
    .map_err(failed("read the flow history"))?;
    let last = rows.last().map(|row| Columns::new(row, "edge").uint("place")).transpose()?;
    Ok((rows.iter().map(edge).collect::<Result<_, _>>()?, last))
}

pub(super) async fn recording(readers: &SqlitePool) -> Result<Recording, StoreError> {
    let rows =
        sqlx::query("SELECT gateway, edges_away, overflow, edges_forgotten, watched FROM gateways")
            .fetch_all(readers)
            .await
            .map_err(failed("read what the flow history holds"))?;
    let mut all = Recording::default();
    for row in &rows {
        let columns = Columns::new(row, "gateway");
        let away = columns.uint("edges_away")?.saturating_add(columns.uint("overflow")?);
        all.turned_away = all.turned_away.saturating_add(away);
        all.forgotten = all.forgotten.saturating_add(columns.uint("edges_forgotten")?);
        let watched = stored_watch(&columns)?;
        if !watched.is_empty() {
            all.watched.insert(GatewayId::from_bytes(columns.array("gateway")?), watched);
        }
    }
    Ok(all)
}

fn edge(row: &SqliteRow) -> Result<Edge, StoreError> {
    let columns = Columns::new(row, "edge");
    let small = |column| -> Result<u16, StoreError> {
        Ok(u16::try_from(columns.uint(column)?).unwrap_or(u16::MAX))
    };
    let verdict = columns.text("verdict")?;
    let verdict = Verdict::from_text(&verdict).ok_or_else(|| StoreError::Damaged {
        what: "edge",
        problem: format!("{verdict:?} is not a verdict"),
    })?;
    Ok(Edge {
        gateway: GatewayId::from_bytes(columns.array("gateway")?),
        mac: MacAddr(columns.array("mac")?),
        member: columns.array_or_empty("member")?.map(MemberId::from_bytes),
        local: columns.parsed("local")?,
        remote: columns.parsed("remote")?,
        remote_member: columns.array_or_empty("remote_member")?.map(MemberId::from_bytes),
        outbound: columns.uint("outbound")? != 0,
        protocol: u8::try_from(columns.uint("protocol")?).unwrap_or(u8::MAX),
        port: small("port")?,
        verdict,
        rule: columns.array_or_empty("rule")?.map(RuleId::from_bytes),
        flows: columns.uint("flows")?,
        packets_out: columns.uint("packets_out")?,
        packets_in: columns.uint("packets_in")?,
        bytes_out: columns.uint("bytes_out")?,
        bytes_in: columns.uint("bytes_in")?,
        first: UnixMillis(columns.uint("first")?),
        last: UnixMillis(columns.uint("last")?),
        rhythm: stored_rhythm(&columns)?,
    })
}
