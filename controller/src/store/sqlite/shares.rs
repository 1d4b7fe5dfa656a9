//! Whose edges make room at a gateway that has as many as it may: one device that floods costs its neighbours none.

use std::collections::BTreeMap;

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::EdgeDelta;
use sqlx::SqliteConnection;

use super::telemetry::{RoomMade, optional};
use super::value::{Columns, failed, int};
use crate::store::{Limits, StoreError};

/// Whose an edge is: a confirmed device's, or else that of whatever has the address. Made-up addresses are many, so those that
/// nobody confirmed have one share together.
type Owner = (Option<MemberId>, MacAddr);

/// How many edges each device of a gateway has.
type Counts = BTreeMap<Option<MemberId>, BTreeMap<MacAddr, u64>>;

/// How many edges each device of a gateway has, and how many of these nobody answered.
#[derive(Debug)]
pub(super) struct Shares {
    gateway: GatewayId,
    held: Counts,
    unanswered: Counts,
}

/// Which edge of a device makes room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Of those with packets from one side only, the one that was quiet longest: of what others opened, before what it opened
    /// itself. Probes of a device mustn't cost it its own traps and alarms.
    Unanswered,
    /// The one that was quiet longest.
    Any,
    /// The one that was quiet longest, if its last packet was before this moment.
    Before(u64),
}

fn owner(edge: &EdgeDelta) -> Owner {
    (edge.member, edge.mac)
}

impl Shares {
    pub(super) async fn read(
        change: &mut SqliteConnection,
        gateway: GatewayId,
    ) -> Result<Self, StoreError> {
        let held = counts(
            change,
            gateway,
            "SELECT member, mac, COUNT(*) AS held FROM edges WHERE gateway = ? GROUP BY member, mac",
        );
        let held = held.await?;
        let unanswered = counts(
            change,
            gateway,
            "SELECT member, mac, COUNT(*) AS held FROM edges \
             INDEXED BY edges_never_answered_by_device \
             WHERE gateway = ? AND (packets_out = 0 OR packets_in = 0) GROUP BY member, mac",
        );
        let unanswered = unanswered.await?;
        Ok(Self { gateway, held, unanswered })
    }

    fn of(&self, (member, mac): Owner) -> u64 {
        self.held.get(&member).and_then(|macs| macs.get(&mac)).copied().unwrap_or_default()
    }

    /// Who has more than the owner of a new edge, and the most of all; none where that is the owner.
    fn larger(&self, new: Owner) -> Option<Owner> {
        let largest = self.held.iter().max_by_key(|(_, macs)| sum(macs));
        let own = self.held.get(&new.0).map_or(0, sum);
        let (member, macs) = match largest {
            Some((member, macs)) if sum(macs) > own => (*member, macs),
            _ => (new.0, self.held.get(&new.0)?),
        };
        let (mac, held) = macs.iter().max_by_key(|(_, held)| **held)?;
        (member != new.0 || *held > self.of(new)).then_some((member, *mac))
    }

    /// Of whom more was never answered than a device's own services explain, and the most of all: of the share of a new edge's
    /// owner, or of one that is larger.
    fn scanner(&self, new: Owner, few: u32) -> Option<Owner> {
        let own = self.held.get(&new.0).map_or(0, sum);
        let larger = |member| member == new.0 || self.held.get(&member).map_or(0, sum) > own;
        let scans = self
            .unanswered
            .iter()
            .filter(|(member, macs)| larger(**member) && sum(macs) > u64::from(few));
        let (member, macs) = scans.max_by_key(|(_, macs)| sum(macs))?;
        let (mac, _) = macs.iter().max_by_key(|(_, held)| **held)?;
        Some((*member, *mac))
    }

    /// Makes room for a new edge, each time by what was quiet longest. What a scan left goes first, by the thousand and never
    /// answered. Then whoever has the most makes room, with what nobody answered before what somebody did; if that is the
    /// owner of the new edge, of the latter one goes that was quiet for the age that `limits` has. False where there is none.
    pub(super) async fn make_room(
        &mut self,
        change: &mut SqliteConnection,
        edge: &EdgeDelta,
        at: UnixMillis,
        limits: &Limits,
        made: &mut RoomMade,
    ) -> Result<bool, StoreError> {
        let quiet = at.0.saturating_sub(limits.edge_age);
        let new = owner(edge);
        let mut ways: Vec<(Owner, Which)> = Vec::new();
        let scanner = self.scanner(new, limits.unanswered_edges);
        ways.extend(scanner.map(|scanner| (scanner, Which::Unanswered)));
        match self.larger(new) {
            Some(other) => ways.extend([(other, Which::Unanswered), (other, Which::Any)]),
            None => ways.extend([(new, Which::Unanswered), (new, Which::Before(quiet))]),
        }
        for (from, which) in ways {
            let few = self.unanswered.get(&from.0).and_then(|macs| macs.get(&from.1));
            if which == Which::Unanswered && few.is_none_or(|few| *few == 0) {
                continue;
            }
            let Some(last) = self.drop_one(change, from, which).await? else { continue };
            if which != Which::Unanswered && last < quiet {
                made.forgotten += 1;
            } else {
                made.away += 1;
            }
            return Ok(true);
        }
        made.away += 1;
        Ok(false)
    }

    /// Drops an edge of a device. When its last packet was; none where it has no such edge.
    async fn drop_one(
        &mut self,
        change: &mut SqliteConnection,
        from: Owner,
        which: Which,
    ) -> Result<Option<u64>, StoreError> {
        let query = match which {
            Which::Unanswered => {
                "DELETE FROM edges WHERE rowid = (SELECT rowid FROM edges \
                 INDEXED BY edges_never_answered_by_device \
                 WHERE gateway = ?1 AND member = ?2 AND mac = ?3 AND ?4 IS NULL \
                 AND (packets_out = 0 OR packets_in = 0) ORDER BY outbound, last LIMIT 1) RETURNING last"
            }
            Which::Any | Which::Before(_) => {
                "DELETE FROM edges WHERE rowid = (SELECT rowid FROM edges \
                 INDEXED BY edges_by_device_and_last WHERE gateway = ?1 AND member = ?2 AND mac = ?3 \
                 AND (?4 IS NULL OR last < ?4) ORDER BY last LIMIT 1) RETURNING last"
            }
        };
        let before = match which {
            Which::Before(moment) => Some(int(moment)),
            Which::Unanswered | Which::Any => None,
        };
        let row = sqlx::query(query)
            .bind(self.gateway.as_bytes().as_slice())
            .bind(optional(from.0.as_ref().map(MemberId::as_bytes)))
            .bind(from.1.0.as_slice())
            .bind(before)
            .fetch_optional(change)
            .await
            .map_err(failed("drop an edge of a device"))?;
        let Some(row) = row else {
            // What nobody had answered may have been answered since it was counted.
            if which == Which::Unanswered {
                self.unanswered.entry(from.0).or_default().insert(from.1, 0);
            }
            return Ok(None);
        };
        less(&mut self.held, from);
        if which == Which::Unanswered {
            less(&mut self.unanswered, from);
        }
        Columns::new(&row, "edge").uint("last").map(Some)
    }

    /// Counts an edge that was added.
    pub(super) fn added(&mut self, edge: &EdgeDelta) {
        let (member, mac) = owner(edge);
        *self.held.entry(member).or_default().entry(mac).or_default() += 1;
        if edge.packets_out == 0 || edge.packets_in == 0 {
            *self.unanswered.entry(member).or_default().entry(mac).or_default() += 1;
        }
    }
}

fn sum(macs: &BTreeMap<MacAddr, u64>) -> u64 {
    macs.values().sum()
}

fn less(counts: &mut Counts, (member, mac): Owner) {
    if let Some(held) = counts.get_mut(&member).and_then(|macs| macs.get_mut(&mac)) {
        *held = held.saturating_sub(1);
    }
}

async fn counts(
    change: &mut SqliteConnection,
    gateway: GatewayId,
    query: &'static str,
) -> Result<Counts, StoreError> {
    let rows = sqlx::query(query)
        .bind(gateway.as_bytes().as_slice())
        .fetch_all(change)
        .await
        .map_err(failed("count the edges of devices"))?;
    let mut held = Counts::new();
    for row in &rows {
        let columns = Columns::new(row, "edge");
        let member = columns.array_or_empty("member")?.map(MemberId::from_bytes);
        let mac = MacAddr(columns.array("mac")?);
        held.entry(member).or_default().insert(mac, columns.uint("held")?);
    }
    Ok(held)
}
