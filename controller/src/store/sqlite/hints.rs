//! Hints: each once for each device and gateway, bounded for each kind, device and gateway.

use anteroom_proto::api::RecordedHint;
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::inventory::{DeviceHints, HintKind, MAX_HINTS, most_of};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::time::UnixMillis;
use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, SqlitePool};

use super::value::{Columns, failed, int, uint};
use crate::store::{Limits, StoreError};

const DOING: &str = "store a hint";

/// What is held of a gateway, of one device of it, and of one kind of that.
struct Held {
    gateway: u64,
    device: u64,
    kind: u64,
}

/// Adds what a gateway saw of its devices. Gives how many hints found no room.
pub(super) async fn add(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    devices: &[DeviceHints],
    at: UnixMillis,
    limits: &Limits,
) -> Result<u64, StoreError> {
    let mut away = 0;
    for device in devices {
        if let Some(member) = device.member {
            belong(change, gateway, device, member).await?;
        }
        for hint in &device.hints {
            // A gateway whose clock runs ahead says nothing about days to come.
            let last = hint.last.min(at);
            let span = (hint.first.min(last), last);
            let new = (hint.kind, hint.value.as_str());
            if put(change, SEE_AGAIN, gateway, device, new, span).await? > 0 {
                continue;
            }
            let held = held(change, gateway, device, hint.kind).await?;
            let full_of_kind = held.kind >= most_of(hint.kind) as u64;
            let full = held.device >= MAX_HINTS as u64 || held.gateway >= u64::from(limits.hints);
            if full_of_kind || full {
                let old = int(at.0.saturating_sub(limits.hint_age));
                let kind = full_of_kind.then_some(hint.kind);
                if !forget_old(change, gateway, device, kind, old).await? {
                    away += 1;
                    continue;
                }
            }
            put(change, INSERT, gateway, device, new, span).await?;
        }
    }
    Ok(away)
}

/// What was seen of a device at its port before it was confirmed is its own, too.
async fn belong(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    device: &DeviceHints,
    member: MemberId,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE hints SET member = ?4 \
         WHERE gateway = ?1 AND mac = ?2 AND vlan = ?3 AND port = ?5 AND length(member) = 0",
    )
    .bind(gateway.as_bytes().as_slice())
    .bind(device.mac.0.as_slice())
    .bind(vlan(device))
    .bind(member.as_bytes().as_slice())
    .bind(device.port.as_str())
    .execute(change)
    .await
    .map_err(failed(DOING))?;
    Ok(())
}

/// Notes that a hint was seen again.
const SEE_AGAIN: &str = "UPDATE hints SET port = ?6, member = CASE WHEN length(?7) > 0 THEN ?7 ELSE member END, \
     first = MIN(first, ?8), last = MAX(last, ?9) \
     WHERE gateway = ?1 AND mac = ?2 AND vlan = ?3 AND kind = ?4 AND value = ?5";
const INSERT: &str = "INSERT INTO hints (gateway, mac, vlan, kind, value, port, member, first, last) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

/// Puts a hint where a statement wants it. Gives how many rows it changed.
async fn put(
    change: &mut SqliteConnection,
    statement: &'static str,
    gateway: GatewayId,
    device: &DeviceHints,
    (kind, value): (HintKind, &str),
    (first, last): (UnixMillis, UnixMillis),
) -> Result<u64, StoreError> {
    let done = sqlx::query(statement)
        .bind(gateway.as_bytes().as_slice())
        .bind(device.mac.0.as_slice())
        .bind(vlan(device))
        .bind(kind.word())
        .bind(value)
        .bind(device.port.as_str())
        .bind(member(device))
        .bind(int(first.0))
        .bind(int(last.0))
        .execute(change)
        .await
        .map_err(failed(DOING))?;
    Ok(done.rows_affected())
}

async fn held(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    device: &DeviceHints,
    kind: HintKind,
) -> Result<Held, StoreError> {
    let row = sqlx::query(
        "SELECT (SELECT COUNT(*) FROM hints WHERE gateway = ?1) AS gateway, \
         (SELECT COUNT(*) FROM hints WHERE gateway = ?1 AND mac = ?2 AND vlan = ?3) AS device, \
         (SELECT COUNT(*) FROM hints WHERE gateway = ?1 AND mac = ?2 AND vlan = ?3 AND kind = ?4) \
         AS kind",
    )
    .bind(gateway.as_bytes().as_slice())
    .bind(device.mac.0.as_slice())
    .bind(vlan(device))
    .bind(kind.word())
    .fetch_one(change)
    .await
    .map_err(failed(DOING))?;
    let columns = Columns::new(&row, "count of hints");
    Ok(Held {
        gateway: columns.uint("gateway")?,
        device: columns.uint("device")?,
        kind: columns.uint("kind")?,
    })
}

/// Makes room by forgetting, of a device, the hint that wasn't seen for longest, if that is long enough. False where there is
/// none.
async fn forget_old(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    device: &DeviceHints,
    kind: Option<HintKind>,
    before: i64,
) -> Result<bool, StoreError> {
    let forgotten = sqlx::query(
        "DELETE FROM hints WHERE place = (SELECT place FROM hints \
         WHERE gateway = ?1 AND mac = ?2 AND vlan = ?3 AND (?4 IS NULL OR kind = ?4) AND last < ?5 \
         ORDER BY last LIMIT 1)",
    )
    .bind(gateway.as_bytes().as_slice())
    .bind(device.mac.0.as_slice())
    .bind(vlan(device))
    .bind(kind.map(HintKind::word))
    .bind(before)
    .execute(change)
    .await
    .map_err(failed("forget an old hint"))?;
    Ok(forgotten.rows_affected() > 0)
}

fn vlan(device: &DeviceHints) -> i64 {
    device.vlan.map_or(-1, i64::from)
}

fn member(device: &DeviceHints) -> &[u8] {
    device.member.as_ref().map_or(&[], |member| member.as_bytes().as_slice())
}

pub(super) async fn page(
    readers: &SqlitePool,
    after: Option<u64>,
    limit: u32,
) -> Result<(Vec<RecordedHint>, Option<u64>), StoreError> {
    let rows = sqlx::query("SELECT * FROM hints WHERE place > ? ORDER BY place LIMIT ?")
        .bind(after.map_or(-1, int))
        .bind(limit)
        .fetch_all(readers)
        .await
        .map_err(failed("read the hints"))?;
    let last = rows.last().map(|row| Columns::new(row, "hint").uint("place")).transpose()?;
    Ok((rows.iter().filter_map(|row| hint(row).transpose()).collect::<Result<_, _>>()?, last))
}

/// None where another release stored it, of a kind that this one doesn't know.
fn hint(row: &SqliteRow) -> Result<Option<RecordedHint>, StoreError> {
    let columns = Columns::new(row, "hint");
    let Ok(kind) = columns.text("kind")?.parse() else { return Ok(None) };
    let vlan: i64 = sqlx::Row::try_get(row, "vlan").map_err(failed("read the hints"))?;
    Ok(Some(RecordedHint {
        gateway: GatewayId::from_bytes(columns.array("gateway")?),
        port: columns.parsed("port")?,
        mac: MacAddr(columns.array("mac")?),
        vlan: u16::try_from(vlan).ok(),
        member: columns.array_or_empty("member")?.map(MemberId::from_bytes),
        kind,
        value: columns.text("value")?,
        first: UnixMillis(columns.uint("first")?),
        last: UnixMillis(columns.uint("last")?),
    }))
}

pub(super) async fn away(readers: &SqlitePool) -> Result<u64, StoreError> {
    let away: Option<i64> = sqlx::query_scalar("SELECT SUM(hints_away) FROM gateways")
        .fetch_one(readers)
        .await
        .map_err(failed("count the hints that found no room"))?;
    Ok(away.map_or(0, uint))
}
