//! What the engine tells about itself: reports for the controller, and answers for people at the gateway.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anteroom_proto::alarm::Alarm;
use anteroom_proto::claim::AddressClaim;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{GatewayId, MemberId, RuleId};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::operation::ViewNumber;
use anteroom_proto::rollout::{HeldBackReport, TrialReport};
use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::Unlisted;
use anteroom_proto::v1::telemetry::{EdgeDelta, FileBypass, Sighting, TunnelState};
use anteroom_proto::verdict::{DropReason, Verdict};
use serde::{Deserialize, Serialize};

use crate::peer::outside::Outside;

pub use crate::bypass::BypassStatus;
pub use crate::lane::book::Standing;

/// What happened since the report before. The shell adds boot, sequence and time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineReport {
    /// Devices that were seen for the first time, or changed.
    pub sightings: Vec<Sighting>,
    /// Traffic.
    pub edges: Vec<EdgeDelta>,
    /// Drops by the word of their reason.
    pub drops: BTreeMap<String, u64>,
    /// What was thrown away for want of room.
    pub overflow: u64,
    /// State of the tunnels.
    pub tunnels: Vec<TunnelState>,
    /// Alarms that stand.
    pub alarms: Vec<Alarm>,
    /// Bypasses in force that were loaded from files.
    pub bypasses: Vec<FileBypass>,
    /// Devices that are enforced on trial, or were.
    pub trials: Vec<TrialReport>,
    /// Devices that aren't in the mode that was signed, for lack of approvals.
    pub held_back: Vec<HeldBackReport>,
}

/// The engine at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineStatus {
    /// This gateway.
    pub gateway: GatewayId,
    /// The view in force. None: the gateway is a wire.
    pub view: Option<ViewStatus>,
    /// Counts whatever made cached verdicts void: views, boundaries of time, tunnels that came or went.
    pub epoch: u64,
    /// Whether a controller or peer has confirmed the time since this start.
    pub time_confirmed: bool,
    /// The wall clock, as far as it is trusted.
    pub time: UnixMillis,
    /// What peers said about the time and nobody believes: 16 of them at most, the last one last.
    #[serde(default)]
    pub doubted: Vec<DoubtedTime>,
    /// Whether ports and uplink may merge packets.
    pub wants_gro: bool,
    /// The device ports.
    pub ports: Vec<PortStatus>,
    /// Confirmed devices here.
    pub devices: Vec<DeviceStatus>,
    /// Gateways that this one has tunnels to.
    pub peers: Vec<TunnelState>,
    /// Lanes to peers with which there are any.
    #[serde(default)]
    pub lanes: BTreeMap<GatewayId, Standing>,
    /// How often a peer's lane key, or one lane more, was turned away since the start.
    #[serde(default)]
    pub lanes_turned_away: u64,
    /// How often a peer, or a tunnel with one more pair of keys, found no room since the start.
    #[serde(default)]
    pub tunnels_turned_away: u64,
    /// How the tunnels look from outside, as relays say.
    #[serde(default)]
    pub outside: Outside,
    /// Peers on a relay whose NAT lets no direct path come to be together with this gateway's.
    #[serde(default)]
    pub shut_off: Vec<GatewayId>,
    /// Peers on a relay of which another one is clearly nearer, and its number. Packets go there once that has lasted.
    #[serde(default)]
    pub nearer: BTreeMap<GatewayId, u16>,
    /// Bypasses in force: what rules open to these gateways' devices goes in the clear.
    pub bypasses: Vec<BypassStatus>,
    /// Devices that are enforced on trial, or were.
    #[serde(default)]
    pub trials: Vec<TrialReport>,
    /// Alarms that stand.
    pub alarms: Vec<Alarm>,
    /// Drops since the start, by the word of their reason.
    pub drops: BTreeMap<String, u64>,
    /// What was thrown away for want of room since the start.
    pub overflow: u64,
    /// Flows that nobody answered, as those of a scan, which were recorded together and not each by itself.
    pub folded: u64,
    /// How full the tables are.
    pub tables: TableSizes,
}

/// A peer's word of the time that was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoubtedTime {
    /// Who said so.
    pub gateway: GatewayId,
    /// What it said, as it would be when it was found wrong.
    pub said: UnixMillis,
    /// What was held against it: the latest that is believed without a controller, or a controller's word.
    pub held: UnixMillis,
    /// Whether it was believed until a controller told the time, and not refused at once.
    pub overruled: bool,
}

/// The view in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewStatus {
    /// Its number.
    pub number: ViewNumber,
    /// The revision of its intent.
    pub revision: u64,
}

/// A device port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// What operators call it.
    pub name: Name,
    /// The mode that its devices share. None while no device is confirmed on it.
    pub mode: Option<Mode>,
    /// Confirmed devices on it.
    pub devices: usize,
    /// Ethernet addresses on it that nobody has confirmed.
    pub unknown: usize,
    /// Frames from such addresses that found no place: the port has as many as it may.
    #[serde(default)]
    pub turned_away: u64,
    /// Whether unknown addresses are held.
    pub held: bool,
    /// What the configuration has become of unknown addresses once a device has left observe.
    pub unlisted: Unlisted,
    /// Frames that came in.
    pub frames_in: u64,
    /// Frames that went out.
    pub frames_out: u64,
}

/// A confirmed device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its id.
    pub member: MemberId,
    /// Its port.
    pub port: Name,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Addresses that it uses.
    pub addresses: Vec<Ipv4Addr>,
    /// What it holds of its dynamic addresses.
    #[serde(default)]
    pub held: Vec<Ipv4Addr>,
    /// Its mode.
    pub mode: Mode,
    /// Whether only essential rules remain.
    pub quarantined: bool,
    /// The next hop's Ethernet address, where it is pinned or learnt.
    pub router_mac: Option<MacAddr>,
    /// Flows in the table.
    pub flows: usize,
    /// Packets from the device.
    pub packets_out: u64,
    /// Packets to the device.
    pub packets_in: u64,
    /// Bytes from the device.
    pub bytes_out: u64,
    /// Bytes to the device.
    pub bytes_in: u64,
    /// Packets dropped.
    pub drops: BTreeMap<String, u64>,
    /// How long ago it was last heard, in milliseconds. None: not since this start.
    pub heard_ms: Option<u64>,
}

/// How full the engine's tables are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableSizes {
    /// Flows.
    pub flows: usize,
    /// Edges waiting for the next report.
    pub edges: usize,
    /// Ethernet addresses learnt on the uplink's side.
    pub bridge: usize,
    /// Ethernet addresses on ports, confirmed or not.
    pub stations: usize,
    /// Fragmented packets being followed.
    pub fragments: usize,
}

/// A flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowInfo {
    /// Port of the device on this side.
    pub port: Name,
    /// Ethernet address of the device on this side.
    pub mac: MacAddr,
    /// Its member id, where it has one.
    pub member: Option<MemberId>,
    /// Who opened it.
    pub initiator: IpAddr,
    /// The initiator's port, or the id of an ICMP echo.
    pub initiator_port: u16,
    /// To whom.
    pub responder: IpAddr,
    /// The responder's port; 0 for protocols without.
    pub responder_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// What happens to it.
    pub verdict: Verdict,
    /// The rule that allows it, or would.
    pub rule: Option<RuleId>,
    /// Where the connection stands: `half-open`, `picked-up`, `established`, `finished`, `reset`, `one-way`, `answered`,
    /// `dropped` or `other`.
    pub state: String,
    /// Packets from the initiator.
    pub packets_out: u64,
    /// Packets from the responder.
    pub packets_in: u64,
    /// Bytes of IP from the initiator.
    pub bytes_out: u64,
    /// Bytes of IP from the responder.
    pub bytes_in: u64,
    /// How long it has been open, in milliseconds.
    pub age_ms: u64,
    /// How long nothing passed, in milliseconds.
    pub idle_ms: u64,
}

/// What `why` asks: what becomes of a flow from `from` to `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Who would open it.
    pub from: Ipv4Addr,
    /// To whom.
    pub to: Ipv4Addr,
    /// With what. Of a range, the first port is asked about.
    pub service: PortMatch,
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// What was asked.
    pub question: Question,
    /// Who opens.
    pub from: Party,
    /// Who answers.
    pub to: Party,
    /// What would happen now to a new flow.
    pub verdict: Verdict,
    /// The rule that allows it, or would if its conditions were met.
    pub rule: Option<RuleId>,
    /// The path of the pair: `local`, `tunnel`, `clear`, `clear-if-rule-says`, `none`.
    pub path: String,
    /// The tunnel to the other end's gateway, where one is involved.
    pub tunnel: Option<TunnelState>,
    /// A live flow between the two that fits, if there is one.
    pub flow: Option<FlowInfo>,
    /// The last drop that fits, if one is remembered.
    pub last_drop: Option<DropRecord>,
    /// Why it is so, in a sentence.
    pub because: String,
    /// What to do next, in a sentence.
    pub next_step: String,
}

/// One end, as this gateway knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Party {
    /// A confirmed device on a port of this gateway.
    Device {
        /// Its id.
        member: MemberId,
        /// Its port.
        port: Name,
        /// Its mode.
        mode: Mode,
        /// Whether only essential rules remain.
        quarantined: bool,
    },
    /// A member behind another gateway.
    Member {
        /// Its id.
        member: MemberId,
        /// Its gateway.
        gateway: GatewayId,
        /// Its mode.
        mode: Mode,
        /// Whether only essential rules remain.
        quarantined: bool,
    },
    /// An address inside an external that a rule names.
    External,
    /// A server of the site that every device may use.
    Infrastructure,
    /// Nobody whom this gateway's devices share a rule with.
    Unknown,
}

/// A dropped packet, remembered with how many like it were dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropRecord {
    /// Why.
    pub reason: DropReason,
    /// Source address, where the packet had one.
    pub source: Option<IpAddr>,
    /// Source port, or 0.
    pub source_port: u16,
    /// Destination address, where the packet had one.
    pub destination: Option<IpAddr>,
    /// Destination port, or 0.
    pub destination_port: u16,
    /// IP protocol number, or 0.
    pub protocol: u8,
    /// How many like this in a row.
    pub count: u64,
    /// When the last of them was dropped.
    pub last: UnixMillis,
}

/// What is worth keeping over a restart. Losing it costs a little learning, and what else is said below, but no packet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Learned {
    /// Next hops that devices were seen to use.
    pub next_hops: Vec<LearnedNextHop>,
    /// Devices that were sighted.
    pub sightings: Vec<Sighting>,
    /// Claims on dynamic addresses: this gateway's and its peers'.
    pub claims: Vec<Signed<AddressClaim>>,
    /// Where clients were last heard. No view says that.
    pub clients: Vec<LearnedClient>,
    /// Gateways with which packets went under a pre-shared key. Without that, those that are kept from agreeing on one at the next start
    /// go without after a few seconds, as those do that meet for the first time.
    pub agreed: Vec<GatewayId>,
}

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearnedClient {
    /// Which client.
    pub member: MemberId,
    /// Its address and port as this gateway saw them.
    pub at: SocketAddr,
}

/// A next hop of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearnedNextHop {
    /// The device's port.
    pub port: Name,
    /// The device's Ethernet address.
    pub device: MacAddr,
    /// The next hop's address.
    pub address: Ipv4Addr,
    /// The next hop's Ethernet address.
    pub mac: MacAddr,
}
