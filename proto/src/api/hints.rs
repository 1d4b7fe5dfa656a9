//! What devices let be seen of themselves, as operators read it.

use serde::{Deserialize, Serialize};

use crate::id::{GatewayId, MemberId};
use crate::inventory::HintKind;
use crate::mac::MacAddr;
use crate::name::Name;
use crate::time::UnixMillis;

/// Which part of the hints to read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HintsQuery {
    /// Where the page before ended: its [`HintsPage::next`].
    pub after: Option<u64>,
    /// At most so many hints; 1,000 unless told, 10,000 at most.
    pub limit: Option<u32>,
}

/// A page of the hints: every one that is kept, in an order that stays while others come and go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HintsPage {
    /// The hints.
    pub hints: Vec<RecordedHint>,
    /// Where to go on; none on the last page.
    pub next: Option<u64>,
    /// Hints that found no room at the controller so far. Told on the first page only.
    pub turned_away: u64,
}

/// A hint as the controller keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedHint {
    /// Who reported it.
    pub gateway: GatewayId,
    /// The port there that the device was last seen at.
    pub port: Name,
    /// The device's Ethernet address.
    pub mac: MacAddr,
    /// Its VLAN, or none.
    pub vlan: Option<u16>,
    /// Its member id, once an operator has confirmed it: what was seen before belongs to it, too, and stays with it when another
    /// gateway takes this one's place.
    pub member: Option<MemberId>,
    /// Where it stood.
    pub kind: HintKind,
    /// What stood there.
    pub value: String,
    /// When it was first seen, by the gateway's clock.
    pub first: UnixMillis,
    /// When it was last seen; told of once a day at most.
    pub last: UnixMillis,
}
