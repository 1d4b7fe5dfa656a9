//! What a gateway reports: sightings, edges, drops and its own state. No payload is ever in it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::alarm::Alarm;
use crate::claim::AddressClaim;
use crate::cose::Signed;
use crate::id::{BootId, GatewayId, MemberId, RuleId};
use crate::inventory::DeviceHints;
use crate::key::PublicKey;
use crate::mac::MacAddr;
use crate::name::Name;
use crate::rollout::{HeldBackReport, TrialReport};
use crate::time::UnixMillis;
use crate::verdict::Verdict;

/// Most sightings in one report.
pub const MAX_SIGHTINGS: usize = 512;
/// Most edges in one report.
pub const MAX_EDGES: usize = 1024;
/// Most bypasses in one report.
pub const MAX_BYPASSES: usize = 256;
/// Most relays in one report.
pub const MAX_RELAYS: usize = 64;
/// Most devices on trial in one report.
pub const MAX_TRIALS: usize = 256;
/// Most devices that are held back in one report.
pub const MAX_HELD_BACK: usize = 256;
/// Most alarms that stand at one gateway.
pub const MAX_ALARMS: usize = 520;

/// One report. Boot and sequence make sure that nothing counts twice: a report is sent again, unchanged, until
/// the controller says that it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// This run of the agent.
    pub boot: BootId,
    /// Counts the run's reports upwards from 1.
    pub sequence: u64,
    /// The gateway's wall clock.
    pub at: UnixMillis,
    /// Devices that were seen for the first time, or changed.
    pub sightings: Vec<Sighting>,
    /// Traffic since the report before.
    pub edges: Vec<EdgeDelta>,
    /// Drops by reason since the report before: the word of a [`crate::verdict::DropReason`].
    pub drops: BTreeMap<String, u64>,
    /// What was thrown away for want of room since the report before.
    pub overflow: u64,
    /// State of the tunnels.
    pub tunnels: Vec<TunnelState>,
    /// Alarms that stand, at most [`MAX_ALARMS`].
    pub alarms: Vec<Alarm>,
    /// Bypasses in force here that were loaded from files, at most [`MAX_BYPASSES`]: no revision knows of them.
    pub bypasses: Vec<FileBypass>,
    /// Relays that the gateway is connected to, at most [`MAX_RELAYS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relays: Vec<RelayUse>,
    /// Relays that the gateway tries to connect to in vain, at most [`MAX_RELAYS`]. Only for controllers that say that they read
    /// it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relays_away: Vec<RelayAway>,
    /// What devices let be seen of themselves, where it is new or was last told a day ago: of at most
    /// [`MAX_DEVICES`](crate::inventory::MAX_DEVICES) devices. Only for controllers that say that they read it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<DeviceHints>,
    /// Devices that are enforced on trial, or were, at most [`MAX_TRIALS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trials: Vec<TrialReport>,
    /// Devices that aren't in the mode that was signed, for lack of approvals, at most [`MAX_HELD_BACK`]. Only for controllers
    /// that say that they read trials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_back: Vec<HeldBackReport>,
}

/// A relay that a gateway is connected to. What a later release adds is passed over: operators' programs read it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayUse {
    /// The relay's key.
    pub key: PublicKey,
    /// Round trip to it in microseconds, where it was measured.
    pub round_trip: Option<u32>,
    /// Peers that packets take it to now.
    pub carries: u32,
    /// Whether the connection takes TCP, since UDP doesn't get through.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub over_tcp: bool,
    /// How the gateway numbers it: see [`TunnelState::relay`]. An older one doesn't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u16>,
}

/// A relay that a gateway tries to connect to in vain. What a later release adds is passed over: operators' programs read it too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayAway {
    /// The relay's key.
    pub key: PublicKey,
    /// For how many seconds it has tried, counted from the first failure after it was connected last.
    pub seconds: u64,
    /// What went wrong last: at most [`MAX_ERROR`](Self::MAX_ERROR) characters.
    pub error: String,
}

impl RelayAway {
    /// Most characters of what went wrong.
    pub const MAX_ERROR: usize = 300;
}

/// A bypass that a gateway follows by a file that was loaded into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileBypass {
    /// The gateway whose devices it meets in the clear.
    pub gateway: GatewayId,
    /// Until when, by the operator's word.
    pub until: UnixMillis,
    /// The order's serial: only an order with a higher one takes its place. 0 where that wasn't told.
    #[serde(default)]
    pub serial: u64,
}

/// A device as a gateway sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sighting {
    /// The port that it is attached to.
    pub port: Name,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its VLAN, or none.
    pub vlan: Option<u16>,
    /// Source addresses that it used, at most eight.
    pub addresses: Vec<Ipv4Addr>,
    /// Its on-link prefix length, where its traffic tells.
    pub prefix_len: Option<u8>,
    /// The next hop that it uses.
    pub router: Option<(Ipv4Addr, MacAddr)>,
    /// Its member id, once an operator has confirmed it.
    pub member: Option<MemberId>,
    /// Whether the port holds its traffic until an operator confirms it.
    pub held: bool,
    /// Kinds of traffic seen that no rule carries: `broadcast`, `multicast`, `ipv6`, `tagged`, `non-ip`.
    pub kinds: Vec<String>,
    /// What it holds of its dynamic addresses, as its gateway tells its peers.
    #[serde(default)]
    pub claim: Option<Signed<AddressClaim>>,
    /// When it was first seen in this run.
    pub first_seen: UnixMillis,
    /// When it was last seen.
    pub last_seen: UnixMillis,
}

/// Traffic of one edge since the report before: who opened what to whom, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeDelta {
    /// Ethernet address of the device on this gateway's side.
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
    /// The responder's port; 0 for protocols without, and for flows to many ports that nobody answered, which are
    /// folded into one edge.
    pub port: u16,
    /// What happened to the flows.
    pub verdict: Verdict,
    /// The rule that allowed them, or would.
    pub rule: Option<RuleId>,
    /// Flows opened.
    pub flows: u64,
    /// Packets from the device. Either way, a refusal (TCP that was reset before the responder took the connection) isn't
    /// counted: packets both ways are a conversation.
    pub packets_out: u64,
    /// Packets to the device.
    pub packets_in: u64,
    /// Bytes of IP from the device.
    pub bytes_out: u64,
    /// Bytes of IP to the device.
    pub bytes_in: u64,
    /// First packet of this delta.
    pub first: UnixMillis,
    /// Last packet of this delta.
    pub last: UnixMillis,
}

/// State of the tunnel to one peer. What a later release adds is passed over: operators' programs read it too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelState {
    /// The peer; where it is a client, its member id in a gateway's place.
    pub gateway: GatewayId,
    /// Whether it is a client.
    #[serde(default)]
    pub client: bool,
    /// Whether something authentic arrived within the last five seconds; of a client, within three minutes.
    pub live: bool,
    /// Round trip in microseconds, where it was measured.
    pub round_trip: Option<u32>,
    /// The revision that the peer says it has in force.
    pub revision: Option<u64>,
    /// The newest authority document that the peer says it holds.
    pub authority: Option<u64>,
    /// Address that the peer's packets come from.
    pub endpoint: Option<std::net::SocketAddr>,
    /// Largest packet of IP, in bytes, that gets through the underlay to the peer; once that was found out.
    #[serde(default)]
    pub path_mtu: Option<u16>,
    /// The relay that packets for the peer take, as the gateway numbers its relays; none where they go directly. From
    /// [`FIRST_DIRECT`] on it is no relay but QUIC to the peer itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<u16>,
    /// Why they go this way, where a relay is at hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathReason>,
    /// Whether packets take a relay because no direct path can come to be: see [`SHUT_OFF`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shut_off: bool,
    /// What closes the tunnel to whoever has a quantum computer one day; none of a client, and without a session.
    #[serde(default, rename = "psk", skip_serializing_if = "Option::is_none")]
    pub secrecy: Option<Secrecy>,
}

/// What closes a tunnel between gateways, beside X25519, to whoever records it today and has a quantum computer one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Secrecy {
    /// A pre-shared key that was agreed on by ML-KEM-768.
    #[serde(rename = "ml-kem-768")]
    MlKem768,
    /// Nothing yet: the two are about to agree on a pre-shared key, and packets wait for that.
    Awaited,
    /// Nothing: no tunnel key of this gateway has an ML-KEM-768 key.
    #[default]
    OwnKeyLacks,
    /// Nothing: no tunnel key of the peer has an ML-KEM-768 key.
    PeerKeyLacks,
    /// Nothing: the peer says that it can't.
    PeerCannot,
    /// Nothing: both could, and didn't agree on a pre-shared key in time. They go on trying.
    Unanswered,
}

impl Secrecy {
    /// Whether what is recorded today stays closed.
    #[must_use]
    pub const fn is_post_quantum(self) -> bool {
        matches!(self, Self::MlKem768)
    }
}

impl fmt::Display for Secrecy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MlKem768 => "ml-kem-768",
            Self::Awaited => "being agreed on",
            Self::OwnKeyLacks => "classic: no ML-KEM key here yet",
            Self::PeerKeyLacks => "classic: the peer has no ML-KEM key",
            Self::PeerCannot => "classic: the peer says that it can't",
            Self::Unanswered => "classic: no pre-shared key was agreed on in time",
        })
    }
}

/// Why no direct path can come to be, for people.
pub const SHUT_OFF: &str =
    "no direct path: both are behind NATs that give each destination another port";

/// The lowest number of a direct QUIC connection, where relays are numbered.
pub const FIRST_DIRECT: u16 = 0x8000;

/// Which way packets for a peer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// As WireGuard has it.
    Direct,
    /// By QUIC, to the peer itself.
    Quic,
    /// Through the relay of this number.
    Relay(u16),
}

impl PathKind {
    /// The way that a [`TunnelState::relay`] stands for.
    #[must_use]
    pub const fn of(relay: Option<u16>) -> Self {
        match relay {
            None => Self::Direct,
            Some(number) if number >= FIRST_DIRECT => Self::Quic,
            Some(number) => Self::Relay(number),
        }
    }

    /// Why packets go this way, for people.
    #[must_use]
    pub fn because(self, why: PathReason) -> String {
        match (self, why) {
            (Self::Quic, PathReason::Died) => "WireGuard's own path stopped answering".into(),
            (Self::Quic, _) => "WireGuard's own path isn't proved yet".into(),
            (_, why) => why.to_string(),
        }
    }
}

/// Why packets for a peer go directly, or through a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathReason {
    /// Directly: no relay reaches the peer.
    NoRelay,
    /// It isn't proved yet whether a direct path works.
    Untried,
    /// Directly: the path answers.
    Proved,
    /// Through a relay: the direct path stopped answering.
    Died,
}

impl fmt::Display for PathReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRelay => "no relay reaches it",
            Self::Untried => "a direct path isn't proved yet",
            Self::Proved => "the direct path answers",
            Self::Died => "the direct path stopped answering",
        })
    }
}
