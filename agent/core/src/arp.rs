//! ARP: what is passed on, what is answered for whom, and what is dropped.

use std::net::Ipv4Addr;

use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::verdict::DropReason;

use crate::nexthop;
use crate::policy::{MemberIndex, Policy, Who};
use crate::station::Station;
use crate::wire::arp::{ArpPacket, Operation};

/// What becomes of an ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// It is answered with this Ethernet address.
    pub(crate) answer: Option<MacAddr>,
    /// Whether it goes on, or why not. Nothing is counted where it was answered.
    pub(crate) pass: Result<(), DropReason>,
}

impl Outcome {
    pub(crate) const PASS: Self = Self { answer: None, pass: Ok(()) };
    pub(crate) const DROP: Self = Self { answer: None, pass: Err(DropReason::Arp) };

    const fn answer(mac: MacAddr, pass: bool) -> Self {
        Self { answer: Some(mac), pass: if pass { Ok(()) } else { Err(DropReason::Arp) } }
    }
}

/// Judges ARP from a device that has left observe. `source` is the frame's sender, `stand_in` the address that
/// stands for a router that nobody knows, and `patient` whether that one may still answer itself.
pub(crate) fn from_device(
    policy: &Policy,
    own: MemberIndex,
    station: &Station,
    source: MacAddr,
    packet: &ArpPacket,
    (stand_in, patient): (MacAddr, bool),
) -> Outcome {
    let Some(device) = &station.device else { return Outcome::PASS };
    let enforced = device.stance >= Mode::Enforce;
    let anonymous = packet.sender.is_unspecified();
    if packet.sender_mac != source || !(anonymous || device.owns(packet.sender)) {
        return Outcome::DROP;
    }
    let about_itself = anonymous || packet.sender == packet.target || device.owns(packet.target);
    if about_itself || packet.operation == Operation::Reply {
        // Towards the campus this gateway answers for an enforced device; nobody else has a say.
        return if enforced { Outcome::DROP } else { Outcome::PASS };
    }
    if device.stance == Mode::Unrecognised {
        return Outcome::DROP;
    }
    let target = packet.target;
    if let Who::Member(other) = policy.who(target) {
        let outcome = for_member(policy, own, other, target, enforced);
        let proxy = nexthop::proxy_for(device, &station.next_hops, target);
        return Outcome { answer: outcome.answer.map(|mac| proxy.unwrap_or(mac)), ..outcome };
    }
    if !enforced {
        return Outcome::PASS;
    }
    let on_link = |address| device.on_link(address);
    let router = nexthop::router_of(Some(device), &station.next_hops);
    if let Some((_, mac)) = router.filter(|(address, _)| *address == target) {
        let needed = policy.needs_next_hop(own, on_link);
        return match mac {
            Some(mac) => Outcome::answer(mac, needed),
            None if needed && patient => Outcome::PASS,
            None => Outcome::answer(stand_in, needed),
        };
    }
    if is_open(policy, own, target) && device.on_link(target) != Some(false) {
        return Outcome::PASS;
    }
    Outcome::DROP
}

fn for_member(
    policy: &Policy,
    own: MemberIndex,
    other: MemberIndex,
    address: Ipv4Addr,
    enforced: bool,
) -> Outcome {
    use anteroom_proto::mode::PairPath;
    let (Some(near), Some(far)) = (policy.member(own), policy.member(other)) else {
        return Outcome::DROP;
    };
    let open = policy.opens(own, other);
    if far.is_here() {
        // A device that may not be asked by broadcast is answered for.
        return match (open, enforced || far.stance >= Mode::Enforce) {
            (true, true) => Outcome::answer(far.mac, false),
            (false, true) if enforced => Outcome::DROP,
            _ => Outcome::PASS,
        };
    }
    match policy.path(near, far).0 {
        PairPath::Tunnel if open => Outcome::answer(far.mac, !enforced),
        PairPath::Clear | PairPath::ClearIfRuleSays if policy.opens_clear(own, address) => {
            Outcome::PASS
        }
        _ if enforced => Outcome::DROP,
        _ => Outcome::PASS,
    }
}

/// Whether a device may speak with an address in the clear: an external or observed member that a rule opens,
/// or infrastructure.
fn is_open(policy: &Policy, own: MemberIndex, address: Ipv4Addr) -> bool {
    policy.is_infrastructure(address) || policy.opens_clear(own, address)
}

/// Whether an enforced device needs an address of its link in the clear: somebody with whom it may speak so, its next
/// hop to others, or one of the routers behind that.
pub(crate) fn needs(
    policy: &Policy,
    own: MemberIndex,
    station: &Station,
    address: Ipv4Addr,
) -> bool {
    let Some(device) = &station.device else { return false };
    let router = nexthop::router_of(Some(device), &station.next_hops);
    if router.is_some_and(|(router, _)| router == address) {
        return policy.needs_next_hop(own, |address| device.on_link(address));
    }
    if policy.is_further_router(address) && device.on_link(address) != Some(false) {
        return is_open(policy, own, address)
            || policy.needs_next_hop(own, |address| device.on_link(address));
    }
    is_open(policy, own, address) && device.on_link(address) != Some(false)
}

/// Whether somebody on the campus may know where an enforced device is: whom it may speak with in the clear, if
/// they are on its link, and its next hop to the others. Whoever is known by another Ethernet address is an
/// impostor.
fn may_know(policy: &Policy, own: MemberIndex, station: &Station, packet: &ArpPacket) -> bool {
    let Some(device) = &station.device else { return false };
    let address = packet.sender;
    let router = nexthop::router_of(Some(device), &station.next_hops)
        .filter(|(router, _)| *router == address);
    let known = match router {
        Some((_, mac)) => mac,
        None => station.next_hops.find(address),
    };
    known.is_none_or(|known| known == packet.sender_mac) && needs(policy, own, station, address)
}

/// Whether an answer from the uplink says otherwise than this gateway, which answers a protected device for members
/// behind tunnels.
pub(crate) fn contradicts(policy: &Policy, station: &Station, packet: &ArpPacket) -> bool {
    let Some(device) = station.device.as_ref().filter(|device| device.stance == Mode::Protect)
    else {
        return false;
    };
    let (Some(own), Who::Member(other)) = (policy.find(device.member), policy.who(packet.sender))
    else {
        return false;
    };
    if packet.operation != Operation::Reply {
        return false;
    }
    let said = for_member(policy, own, other, packet.sender, false).answer;
    let proxy = nexthop::proxy_for(device, &station.next_hops, packet.sender);
    said.is_some_and(|said| proxy.unwrap_or(said) != packet.sender_mac)
}

/// Judges ARP from the uplink that an enforced device would get: requests for it are answered by the gateway,
/// with the device's own address; what answers its own requests goes on.
pub(crate) fn to_enforced(
    policy: &Policy,
    own: MemberIndex,
    station: &Station,
    source: MacAddr,
    packet: &ArpPacket,
) -> Outcome {
    let Some(device) = &station.device else { return Outcome::PASS };
    if device.stance == Mode::Unrecognised
        || packet.sender_mac != source
        || packet.is_probe()
        || device.owns(packet.sender)
        || !may_know(policy, own, station, packet)
    {
        return Outcome::DROP;
    }
    let router = nexthop::router_of(Some(device), &station.next_hops);
    let only_asks = policy.is_further_router(packet.sender)
        && router.is_none_or(|(router, _)| router != packet.sender)
        && !is_open(policy, own, packet.sender);
    match packet.operation {
        Operation::Request if device.owns(packet.target) => Outcome::answer(station.mac, false),
        // The device itself has nothing to do with it.
        _ if only_asks => Outcome::DROP,
        Operation::Request if packet.is_announcement() => Outcome::PASS,
        Operation::Reply if device.owns(packet.target) || packet.is_announcement() => Outcome::PASS,
        _ => Outcome::DROP,
    }
}

/// Judges ARP from an observed device. It passes; where it asks for a device here that may not be asked by
/// broadcast, the gateway answers for that one.
pub(crate) fn from_observed(policy: &Policy, own: MemberIndex, packet: &ArpPacket) -> Outcome {
    if packet.operation != Operation::Request || packet.sender == packet.target {
        return Outcome::PASS;
    }
    let Who::Member(other) = policy.who(packet.target) else { return Outcome::PASS };
    match policy.member(other) {
        Some(far)
            if other != own
                && far.is_here()
                && far.stance >= Mode::Enforce
                && policy.opens(own, other) =>
        {
            Outcome::answer(far.mac, true)
        }
        _ => Outcome::PASS,
    }
}
