//! What gateways saw, as operators read it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::SightingRecord;
use crate::id::GatewayId;
use crate::time::UnixMillis;

/// Which part of the sightings to read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SightingsQuery {
    /// Where the page before ended: its [`SightingsPage::next`].
    pub after: Option<String>,
    /// At most so many sightings; 1,000 unless told, 10,000 at most.
    pub limit: Option<u32>,
}

/// A page of the sightings: every one that is kept, in an order that stays while others come and go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SightingsPage {
    /// The sightings.
    pub sightings: Vec<SightingRecord>,
    /// Where to go on, in words that mean something to the controller alone; none on the last page.
    pub next: Option<String>,
    /// Those that aren't kept, by gateway. Told on the first page only.
    pub away: BTreeMap<GatewayId, SightingsAway>,
}

/// Sightings of a gateway that nobody confirmed and that aren't kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SightingsAway {
    /// How many found no room, or made some, so far.
    pub count: u64,
    /// When one last did, if that is known.
    pub last: Option<UnixMillis>,
}
