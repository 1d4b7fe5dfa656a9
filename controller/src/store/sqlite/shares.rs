//! Whose edges make room at a gateway that has as many as it may: one device that floods costs its neighbours none.

use std::collections::BTreeMap;

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::EdgeDelta;
use sqlx::SqliteConnection;

use super::telemetry::{RoomMade, optional};
use super::value::{Columns, failed, int};
use crate::store::StoreError;

/// Whose an edge is: a confirmed device's, or else that of whatever has the address. Made-up addresses are many, so those that
/// nobody confirmed have one share together.
type Owner = (Option<MemberId>, MacAddr);

/// How many edges each device of a gateway has.
#[derive(Debug)]
pub(super) struct Shares {
    gateway: GatewayId,
    held: BTreeMap<Option<MemberId>, BTreeMap<MacAddr, u64>>,
}

fn owner(edge: &EdgeDelta) -> Owner {
    (edge.member, edge.mac)
}

impl Shares {
    pub(super) async fn read(
        change: &mut SqliteConnection,
        gateway: GatewayId,
    ) -> Result<Self, StoreError> {
        let rows = sqlx::query(
            "SELECT member, mac, COUNT(*) AS held FROM edges WHERE gateway = ? GROUP BY member, mac",
        )
        .bind(gateway.as_bytes().as_slice())
        .fetch_all(change)
        .await
        .map_err(failed("count the edges of devices"))?;
        let mut held: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for row in &rows {
            let columns = Columns::new(row, "edge");
            let member = columns.array_or_empty("member")?.map(MemberId::from_bytes);
            let mac = MacAddr(columns.array("mac")?);
            held.entry(member).or_default().insert(mac, columns.uint("held")?);
        }
        Ok(Self { gateway, held })
    }

    fn of(&self, (member, mac): Owner) -> u64 {
        self.held.get(&member).and_then(|macs| macs.get(&mac)).copied().unwrap_or_default()
    }

    /// Who has more than the owner of a new edge, and the most of all; none where that is the owner.
    fn larger(&self, new: Owner) -> Option<Owner> {
        let sum = |macs: &BTreeMap<MacAddr, u64>| macs.values().sum::<u64>();
        let largest = self.held.iter().max_by_key(|(_, macs)| sum(macs));
        let own = self.held.get(&new.0).map_or(0, sum);
        let (member, macs) = match largest {
            Some((member, macs)) if sum(macs) > own => (*member, macs),
            _ => (new.0, self.held.get(&new.0)?),
        };
        let (mac, held) = macs.iter().max_by_key(|(_, held)| **held)?;
        (member != new.0 || *held > self.of(new)).then_some((member, *mac))
    }

    /// Makes room for a new edge: of whoever has the most, if that is somebody else, the one that was quiet longest goes;
    /// otherwise one of its own does that was quiet for `age`. False where there is none.
    pub(super) async fn make_room(
        &mut self,
        change: &mut SqliteConnection,
        edge: &EdgeDelta,
        at: UnixMillis,
        age: u64,
        made: &mut RoomMade,
    ) -> Result<bool, StoreError> {
        let quiet = at.0.saturating_sub(age);
        let (from, before) = match self.larger(owner(edge)) {
            Some(other) => (other, u64::MAX),
            None => (owner(edge), quiet),
        };
        let row = sqlx::query(
            "DELETE FROM edges WHERE rowid = (SELECT rowid FROM edges \
             INDEXED BY edges_by_device_and_last WHERE gateway = ?1 AND member = ?2 AND mac = ?3 \
             AND (?4 IS NULL OR last < ?4) ORDER BY last LIMIT 1) RETURNING last",
        )
        .bind(self.gateway.as_bytes().as_slice())
        .bind(optional(from.0.as_ref().map(MemberId::as_bytes)))
        .bind(from.1.0.as_slice())
        .bind((before != u64::MAX).then(|| int(before)))
        .fetch_optional(change)
        .await
        .map_err(failed("drop an edge of the largest share"))?;
        let Some(row) = row else {
            made.away += 1;
            return Ok(false);
        };
        if Columns::new(&row, "edge").uint("last")? < quiet {
            made.forgotten += 1;
        } else {
            made.away += 1;
        }
        self.dropped(from);
        Ok(true)
    }

    fn dropped(&mut self, (member, mac): Owner) {
        let held = self.held.get_mut(&member).and_then(|macs| macs.get_mut(&mac));
        if let Some(held) = held {
            *held = held.saturating_sub(1);
        }
    }

    /// Counts an edge that was added.
    pub(super) fn added(&mut self, edge: &EdgeDelta) {
        *self.held.entry(edge.member).or_default().entry(edge.mac).or_default() += 1;
    }

    /// Counts an edge that went otherwise.
    pub(super) fn removed(&mut self, member: Option<MemberId>, mac: MacAddr) {
        self.dropped((member, mac));
    }
}
