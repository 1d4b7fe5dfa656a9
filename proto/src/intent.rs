//! Intent: what operators have signed that a gateway is to do.
//!
//! Each gateway has one leaf of a Merkle tree whose numbered root an operator signs. A leaf holds the gateway's
//! own devices and what they share a rule with, and no one else. There is no free text in it: segments, rules
//! and externals go by derived ids.

use std::net::{Ipv4Addr, Ipv6Addr};

use ciborium::Value;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::cose::Document;
use crate::id::{ExternalId, GatewayId, MemberId, OrganisationId, RuleId, SegmentId, SiteId};
use crate::key::{Hash, PublicKey, TunnelPublicKey};
use crate::mac::MacAddr;
use crate::mode::Mode;
use crate::name::Name;
use crate::rollout::Rollout;
use crate::service::PortMatch;
use crate::time::UnixMillis;

/// Longest leaf in bytes.
pub const MAX_INTENT_LEN: usize = 16 * 1024 * 1024;

/// One revision of what operators want, as they sign it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntentRoot {
    /// The organisation.
    pub organisation: OrganisationId,
    /// The authority document whose operator signs.
    pub authority: u64,
    /// The controller's incarnation, from the authority document.
    pub incarnation: u64,
    /// The revision: 1 for the first, then one more each time.
    pub number: u64,
    /// Hash of the signed root before this one; [`Hash::ZERO`] for the first.
    pub previous: Hash,
    /// Hash of the model that the operator compiled.
    pub model: Hash,
    /// Root of the tree over all leaves, in the order of gateway ids.
    pub root: Hash,
    /// When the operator signed, by their clock.
    pub signed_at: UnixMillis,
}

impl Document for IntentRoot {
    const TYPE: &'static str = "anteroom/intent-root";
    const MAX_LEN: usize = 4096;

    fn organisation(&self) -> OrganisationId {
        self.organisation
    }
}

/// What one gateway is to do: a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// The organisation.
    pub organisation: OrganisationId,
    /// The gateway that this is for.
    pub gateway: GatewayId,
    /// Its overlay address.
    pub overlay: Ipv6Addr,
    /// The site that it stands in.
    pub site: SiteId,
    /// Its own devices.
    pub devices: Vec<Device>,
    /// Members elsewhere with which its devices share a rule.
    pub members: Vec<Member>,
    /// The gateways in front of those members.
    pub peers: Vec<PeerGateway>,
    /// Clients with which its devices share a rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<Client>,
    /// The segments that its rules name, cut down to members in this intent.
    pub segments: Vec<Segment>,
    /// The externals that its rules name.
    pub externals: Vec<External>,
    /// The rules that touch its devices.
    pub rules: Vec<Rule>,
    /// Infrastructure of its site.
    pub infrastructure: Infrastructure,
    /// Orders to bypass this gateway or a peer, the newest of each; those that ended stay, so that nothing older
    /// counts.
    pub bypasses: Vec<Bypass>,
    /// Its identity key, where that isn't the one that it enrolled with: whoever holds this leaf needs the one before it
    /// no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<PublicKey>,
}

/// An order about a gateway that is out of the wire, its cable patched through: what rules open to its devices
/// goes in the clear for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bypass {
    /// The gateway.
    pub gateway: GatewayId,
    /// Orders the orders for one gateway, those in files included: the highest stands.
    pub serial: u64,
    /// Until when. None: the bypass is ended.
    pub until: Option<UnixMillis>,
    /// The revision that brought the order.
    pub since: u64,
}

/// A device behind this gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Who it is.
    pub member: Member,
    /// The port of this gateway that it is attached to.
    pub port: Name,
    /// Length of its on-link prefix, where it is known: what it takes for its own network.
    pub prefix_len: Option<u8>,
    /// Its router, where it has one.
    pub router: Option<Router>,
    /// What happens when this gateway's agent dies.
    pub on_failure: OnFailure,
    /// How it came to be enforced. Its own gateway alone needs to know.
    #[serde(default, skip_serializing_if = "Rollout::is_plain")]
    pub rollout: Rollout,
    /// Whether it is enforced only if two operators have approved of it: see [`crate::approval`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub two_person: bool,
}

/// A device's next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// Its address, as the device has it configured.
    pub address: Ipv4Addr,
    /// Its Ethernet address, where it is pinned; otherwise the gateway learns it.
    pub mac: Option<MacAddr>,
}

/// What a port does while no agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// As the device's mode has it: `wire` in observe and protect, `closed` in enforce.
    Default,
    /// The kernel forwards, as if no gateway were there.
    Wire,
    /// Nothing passes.
    Closed,
}

/// A member of the overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its lasting id.
    pub id: MemberId,
    /// The gateway that owns it: only that gateway may speak for its addresses.
    pub gateway: GatewayId,
    /// Its overlay address.
    pub overlay: Ipv6Addr,
    /// The site that its addresses belong to.
    pub site: SiteId,
    /// Its VLAN there, or none.
    pub vlan: Option<u16>,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its addresses. A prefix stands for "dynamic within".
    pub addresses: Vec<Ipv4Net>,
    /// Its mode.
    pub mode: Mode,
    /// The revision in which the mode became what it is: both ends of a pair must have it before they tunnel.
    pub mode_since: u64,
    /// Whether only rules marked essential remain for it.
    pub quarantined: bool,
}

/// A member that speaks WireGuard itself: no gateway stands in front of it, so operators vouch for its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// Its lasting id.
    pub id: MemberId,
    /// Its WireGuard key.
    pub key: TunnelPublicKey,
    /// Its overlay address.
    pub overlay: Ipv6Addr,
    /// The site that its address belongs to.
    pub site: SiteId,
    /// The address that devices know it by: all that it may send from.
    pub address: Ipv4Addr,
}

/// A gateway that this one has tunnels to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerGateway {
    /// Which one.
    pub gateway: GatewayId,
    /// The identity key that signs its tunnel keys.
    pub identity: PublicKey,
    /// Its overlay address.
    pub overlay: Ipv6Addr,
}

/// A set of members and externals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Which one.
    pub id: SegmentId,
    /// Its members, of those in this intent.
    pub members: Vec<MemberId>,
    /// Its externals.
    pub externals: Vec<ExternalId>,
}

/// A named prefix outside the overlay. It is an address, not an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct External {
    /// Which one.
    pub id: ExternalId,
    /// Its prefixes.
    pub prefixes: Vec<Ipv4Net>,
}

/// One end of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// Whoever is in a segment.
    Segment(SegmentId),
    /// One member.
    Member(MemberId),
    /// One external.
    External(ExternalId),
}

/// A permission: members of `from` may open these services at `to`. Replies are included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which one.
    pub id: RuleId,
    /// Who may open.
    pub from: Endpoint,
    /// To whom.
    pub to: Endpoint,
    /// What.
    pub services: Vec<PortMatch>,
    /// Whether an enforced device may use it in the clear.
    pub clear: bool,
    /// Whether it survives quarantine.
    pub essential: bool,
    /// When it holds: all of these must be met.
    pub conditions: Vec<Condition>,
}

impl Eq for Rule {}

/// Something that must be so for a rule to match.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Condition {
    /// One that this version knows.
    Known(KnownCondition),
    /// One that it doesn't: the rule never matches, and that is reported.
    Unknown(Value),
}

/// The conditions that this version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum KnownCondition {
    /// It is earlier than this. Live flows are cut when the moment comes.
    NotAfter(UnixMillis),
}

/// Servers that every device of a site may use, and the routers that may ask for it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Infrastructure {
    /// DHCP servers and relays.
    pub dhcp: Vec<Ipv4Addr>,
    /// DNS servers.
    pub dns: Vec<Ipv4Addr>,
    /// NTP servers.
    pub ntp: Vec<Ipv4Addr>,
    /// The routers' own addresses, where devices use one that several routers share (HSRP, VRRP, CARP): it is from
    /// these that routers ask where a device is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routers: Vec<Ipv4Addr>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cbor;

    #[test]
    fn a_condition_from_a_newer_operator_is_kept_as_unknown() {
        let known = Condition::Known(KnownCondition::NotAfter(UnixMillis(5)));
        assert_eq!(cbor::decode::<Condition>(&cbor::encode(&known), 100).unwrap(), known);
        let newer = cbor::encode(&std::collections::BTreeMap::from([("location", 5)]));
        let read = cbor::decode::<Condition>(&newer, 100).unwrap();
        assert!(matches!(read, Condition::Unknown(_)), "{read:?}");
        assert_eq!(cbor::encode(&read), newer);
    }

    #[test]
    fn a_mode_from_a_newer_operator_is_read_as_unrecognised() {
        let mode = cbor::decode::<Mode>(&cbor::encode(&"learn"), 100).unwrap();
        assert_eq!(mode, Mode::Unrecognised);
    }
}
