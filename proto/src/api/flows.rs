//! Recorded flows, as operators read them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::id::{GatewayId, MemberId, RuleId};
use crate::mac::MacAddr;
use crate::rhythm::Rhythm;
use crate::time::UnixMillis;
use crate::verdict::Verdict;

/// Which edges to list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeQuery {
    /// Only those of this member, at either end.
    pub member: Option<MemberId>,
    /// Only those with this kind of verdict: `tunnel`, `local`, `clear`, `would-drop` or `drop`.
    pub verdict: Option<String>,
    /// Only those that saw traffic after this moment (milliseconds since 1970).
    pub since: Option<u64>,
    /// At most so many; 1,000 unless told, 10,000 at most.
    pub limit: Option<u32>,
}

/// An edge as the controller keeps it: the sum of its deltas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// Who reported it.
    pub gateway: GatewayId,
    /// Ethernet address of the device on the gateway's side.
    pub mac: MacAddr,
    /// Its member id, where it has one.
    pub member: Option<MemberId>,
    /// Its address.
    pub local: IpAddr,
    /// The other end's address.
    pub remote: IpAddr,
    /// The other end's member id, where it is a member.
    pub remote_member: Option<MemberId>,
    /// Whether the device on this side opened the flows.
    pub outbound: bool,
    /// IP protocol number.
    pub protocol: u8,
    /// The responder's port; 0 for protocols without.
    pub port: u16,
    /// What happened to the flows.
    pub verdict: Verdict,
    /// The rule that allowed them, or would.
    pub rule: Option<RuleId>,
    /// Flows opened.
    pub flows: u64,
    /// Packets from the device.
    pub packets_out: u64,
    /// Packets to the device.
    pub packets_in: u64,
    /// Bytes of IP from the device.
    pub bytes_out: u64,
    /// Bytes of IP to the device.
    pub bytes_in: u64,
    /// First packet.
    pub first: UnixMillis,
    /// Last packet.
    pub last: UnixMillis,
    /// In which hours of the week and on which days. Empty where the controller doesn't keep that yet.
    #[serde(default)]
    pub rhythm: Rhythm,
}

/// Which part of the flow history to read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryQuery {
    /// Where the page before ended: its [`HistoryPage::next`].
    pub after: Option<u64>,
    /// At most so many edges; 1,000 unless told, 10,000 at most.
    pub limit: Option<u32>,
    /// Only those of this member, and those of whose device nothing was known when they were recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberId>,
    /// Only those of these kinds, with commas between them: as in [`EdgeQuery::verdict`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdicts: Option<String>,
}

/// A page of the flow history: every edge that is kept, in an order that stays while others come and go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HistoryPage {
    /// The edges.
    pub edges: Vec<Edge>,
    /// Where to go on; none on the last page.
    pub next: Option<u64>,
    /// Edges that found no room so far, at gateways or at the controller. Told on the first page only.
    pub turned_away: u64,
    /// Answered edges that were quiet for long and made room for others so far. Told on the first page only.
    #[serde(default)]
    pub forgotten: u64,
    /// When gateways reported anything, whatever it was: days on which one told nothing it may not have watched. As far as it is
    /// known; told on the first page only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub watched: BTreeMap<GatewayId, Rhythm>,
}
