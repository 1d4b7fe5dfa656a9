//! Sightings: what gateways saw, and whose makes room at a gateway that has as many as are kept.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::api::{SightingRecord, SightingsAway};
use anteroom_proto::cbor;
use anteroom_proto::id::GatewayId;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::Sighting;
use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, SqlitePool};

use super::telemetry::count;
use super::value::{Columns, failed, int};
use crate::store::{Limits, SightingPlace, StoreError};

/// Most addresses kept per sighting.
const MAX_ADDRESSES: usize = 8;
/// What was seen over so many milliseconds isn't passing any more. A gateway tells of what goes on speaking as often.
const SETTLED: u64 = 60 * 60 * 1000;

/// How a VLAN stands in its column.
fn stored(vlan: Option<u16>) -> i64 {
    vlan.map_or(-1, i64::from)
}

/// Stores sightings. Gives how many found no room, or made some.
pub(super) async fn add(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    sightings: &[Sighting],
    at: UnixMillis,
    limits: &Limits,
) -> Result<u64, StoreError> {
    let doing = "store a sighting";
    if sightings.is_empty() {
        return Ok(0);
    }
    let query = "SELECT COUNT(*) FROM sightings WHERE gateway = ?";
    let mut held = count(change, query, gateway).await?;
    let mut strangers: Option<Strangers> = None;
    let mut away = 0;
    for new in sightings {
        let row = sqlx::query(
            "SELECT sighting FROM sightings WHERE gateway = ? AND port = ? AND mac = ? AND vlan = ?",
        )
        .bind(gateway.as_bytes().as_slice())
        .bind(new.port.as_str())
        .bind(new.mac.0.as_slice())
        .bind(stored(new.vlan))
        .fetch_optional(&mut *change)
        .await
        .map_err(failed(doing))?;
        let before: Option<Sighting> =
            row.map(|row| Columns::new(&row, "sighting").cbor("sighting")).transpose()?;
        let known = before.is_some();
        let merged = merge(before, new);
        if known {
            if let Some(strangers) = &mut strangers {
                strangers.remove(&merged);
                strangers.insert(&merged, at);
            }
        } else if held >= u64::from(limits.sightings) {
            let strangers = match &mut strangers {
                Some(strangers) => strangers,
                none => {
                    none.insert(Strangers::read(change, gateway, at, limits.sighting_age).await?)
                }
            };
            away += 1;
            if !strangers.make_room(change, gateway, &merged.port).await? {
                continue;
            }
            strangers.insert(&merged, at);
        } else {
            held += 1;
        }
        sqlx::query(
            "INSERT INTO sightings (gateway, port, mac, vlan, sighting, first_seen, last_seen) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6) \
             ON CONFLICT DO UPDATE SET sighting = ?5, last_seen = ?6",
        )
        .bind(gateway.as_bytes().as_slice())
        .bind(new.port.as_str())
        .bind(new.mac.0.as_slice())
        .bind(stored(new.vlan))
        .bind(cbor::encode(&merged))
        .bind(int(at.0))
        .execute(&mut *change)
        .await
        .map_err(failed(doing))?;
    }
    Ok(away)
}

/// A newer sighting, with what an agent that was restarted since hasn't seen again yet.
fn merge(before: Option<Sighting>, new: &Sighting) -> Sighting {
    let mut merged = new.clone();
    let Some(before) = before else { return merged };
    if merged.addresses.is_empty() {
        merged.addresses = before.addresses;
    }
    merged.addresses.truncate(MAX_ADDRESSES);
    merged.prefix_len = merged.prefix_len.or(before.prefix_len);
    merged.router = merged.router.or(before.router);
    merged.claim = merged.claim.or(before.claim);
    merged.first_seen = merged.first_seen.min(before.first_seen);
    merged.last_seen = merged.last_seen.max(before.last_seen);
    for kind in before.kinds {
        if !merged.kinds.contains(&kind) {
            merged.kinds.push(kind);
        }
    }
    merged.kinds.sort();
    merged
}

/// How little is lost with a sighting that nobody confirmed, the least first. Whoever makes addresses up leaves many that were
/// seen once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// It was quiet for [`Limits::sighting_age`].
    Old,
    /// It was seen for less than [`SETTLED`].
    Passing,
    Settled,
}

/// A sighting that nobody confirmed, in the order in which they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Stranger {
    worth: Worth,
    told: UnixMillis,
    mac: MacAddr,
    vlan: i64,
}

/// What nobody confirmed at a gateway, by port: made-up addresses are many, so each port has one share, and whoever makes them up
/// pushes out what stands at their own port.
#[derive(Debug)]
struct Strangers {
    by_port: BTreeMap<Name, BTreeSet<Stranger>>,
    /// What wasn't told of since then is old.
    old: u64,
}

impl Strangers {
    async fn read(
        change: &mut SqliteConnection,
        gateway: GatewayId,
        at: UnixMillis,
        age: u64,
    ) -> Result<Self, StoreError> {
        let rows = sqlx::query("SELECT sighting, last_seen FROM sightings WHERE gateway = ?")
            .bind(gateway.as_bytes().as_slice())
            .fetch_all(change)
            .await
            .map_err(failed("read what nobody confirmed"))?;
        let mut all = Self { by_port: BTreeMap::new(), old: at.0.saturating_sub(age) };
        for row in &rows {
            let columns = Columns::new(row, "sighting");
            all.insert(&columns.cbor("sighting")?, UnixMillis(columns.uint("last_seen")?));
        }
        Ok(all)
    }

    fn insert(&mut self, seen: &Sighting, told: UnixMillis) {
        if seen.member.is_some() {
            return;
        }
        let settled = seen.last_seen.0.saturating_sub(seen.first_seen.0) >= SETTLED;
        let worth = match (told.0 < self.old, settled) {
            (true, _) => Worth::Old,
            (false, false) => Worth::Passing,
            (false, true) => Worth::Settled,
        };
        let stranger = Stranger { worth, told, mac: seen.mac, vlan: stored(seen.vlan) };
        self.by_port.entry(seen.port.clone()).or_default().insert(stranger);
    }

    fn remove(&mut self, seen: &Sighting) {
        if let Some(port) = self.by_port.get_mut(&seen.port) {
            port.retain(|one| (one.mac, one.vlan) != (seen.mac, stored(seen.vlan)));
        }
    }

    /// Whose sighting goes for a new one at `own`: the port's that has the most. But what is passing at `own` goes before
    /// what settled elsewhere.
    fn first_to_go(&self, own: &Name) -> Option<(Name, Stranger)> {
        let fullest = self.by_port.iter().max_by(|(a, these), (b, those)| {
            let by_count = these.len().cmp(&those.len());
            by_count.then_with(|| match (*a == own, *b == own) {
                (true, _) => Ordering::Greater,
                (_, true) => Ordering::Less,
                _ => a.cmp(b),
            })
        });
        let first = |(port, all): (&Name, &BTreeSet<Stranger>)| {
            all.first().map(|stranger| (port.clone(), *stranger))
        };
        let there = fullest.and_then(first)?;
        let here = self.by_port.get_key_value(own).and_then(first);
        Some(here.filter(|here| here.1.worth < there.1.worth).unwrap_or(there))
    }

    /// Drops one for a new one at port `own`. False where there is none: all that is kept was confirmed.
    async fn make_room(
        &mut self,
        change: &mut SqliteConnection,
        gateway: GatewayId,
        own: &Name,
    ) -> Result<bool, StoreError> {
        let Some((port, stranger)) = self.first_to_go(own) else { return Ok(false) };
        sqlx::query(
            "DELETE FROM sightings WHERE gateway = ? AND port = ? AND mac = ? AND vlan = ?",
        )
        .bind(gateway.as_bytes().as_slice())
        .bind(port.as_str())
        .bind(stranger.mac.0.as_slice())
        .bind(stranger.vlan)
        .execute(change)
        .await
        .map_err(failed("drop a sighting"))?;
        if let Some(all) = self.by_port.get_mut(&port) {
            all.remove(&stranger);
        }
        Ok(true)
    }
}

fn record(row: &SqliteRow) -> Result<SightingRecord, StoreError> {
    let columns = Columns::new(row, "sighting");
    Ok(SightingRecord {
        gateway: GatewayId::from_bytes(columns.array("gateway")?),
        sighting: columns.cbor("sighting")?,
        first_seen: UnixMillis(columns.uint("first_seen")?),
    })
}

pub(super) async fn newest(
    readers: &SqlitePool,
    limit: u32,
) -> Result<Vec<SightingRecord>, StoreError> {
    let rows = sqlx::query(
        "SELECT gateway, sighting, first_seen FROM sightings ORDER BY last_seen DESC LIMIT ?",
    )
    .bind(limit)
    .fetch_all(readers)
    .await
    .map_err(failed("read the sightings"))?;
    rows.iter().map(record).collect()
}

pub(super) async fn page(
    readers: &SqlitePool,
    after: Option<&SightingPlace>,
    limit: u32,
) -> Result<Vec<SightingRecord>, StoreError> {
    let rows = sqlx::query(
        "SELECT gateway, sighting, first_seen FROM sightings \
         WHERE ?1 IS NULL OR (gateway, port, mac, vlan) > (?1, ?2, ?3, ?4) \
         ORDER BY gateway, port, mac, vlan LIMIT ?5",
    )
    .bind(after.map(|after| after.gateway.as_bytes().as_slice()))
    .bind(after.map_or("", |after| after.port.as_str()))
    .bind(after.map(|after| after.mac.0.to_vec()))
    .bind(after.map_or(-1, |after| stored(after.vlan)))
    .bind(limit)
    .fetch_all(readers)
    .await
    .map_err(failed("read the sightings"))?;
    rows.iter().map(record).collect()
}

pub(super) async fn away(
    readers: &SqlitePool,
) -> Result<BTreeMap<GatewayId, SightingsAway>, StoreError> {
    let rows = sqlx::query(
        "SELECT gateway, sightings_away, sightings_away_at FROM gateways WHERE sightings_away > 0",
    )
    .fetch_all(readers)
    .await
    .map_err(failed("read what sightings found no room"))?;
    let told = |row: &SqliteRow| {
        let columns = Columns::new(row, "gateway");
        let away = SightingsAway {
            count: columns.uint("sightings_away")?,
            last: columns.maybe_uint("sightings_away_at")?.map(UnixMillis),
        };
        Ok((GatewayId::from_bytes(columns.array("gateway")?), away))
    };
    rows.iter().map(told).collect()
}
