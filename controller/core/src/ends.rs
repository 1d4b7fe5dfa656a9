//! The ends of recorded edges, as a model knows them.

use std::net::IpAddr;

use anteroom_proto::api::Edge;
use anteroom_proto::id::MemberId;
use anteroom_proto::service::Protocol;
use anteroom_proto::verdict::{DropReason, Verdict};
use ipnet::Ipv4Net;

use crate::decide::{Flow, Party};
use crate::model::Device;
use crate::names::Names;
use crate::resolve::Resolved;

/// The device on the reporting gateway's side.
pub(crate) fn own(edge: &Edge, names: &Names) -> Option<MemberId> {
    edge.member.or_else(|| names.member_of(edge.gateway, edge.mac))
}

/// The other end of an edge.
pub(crate) fn remote(resolved: &Resolved, edge: &Edge, own: MemberId) -> Option<Party> {
    let IpAddr::V4(address) = edge.remote else { return None };
    let known = edge.remote_member.filter(|id| resolved.site_of(*id).is_some());
    let here = || resolved.site_of(own).and_then(|site| resolved.member_at(site, address));
    Some(known.or_else(here).map_or(Party::Address(address), Party::Member))
}

/// Why no rule can carry an edge of `device`, where none can: such traffic isn't for the policy to allow.
pub(crate) fn uncarried(edge: &Edge, device: &Device) -> Option<DropReason> {
    uncarried_on(edge, device.prefix_len)
}

/// As [`uncarried`], of whoever has this on-link prefix, where it is known.
pub(crate) fn uncarried_on(edge: &Edge, prefix_len: Option<u8>) -> Option<DropReason> {
    let IpAddr::V4(remote) = edge.remote else { return Some(DropReason::Ipv6) };
    // Its gateway saw by the frame that it was for all on the link, whatever its address looks like.
    if let Verdict::Drop(DropReason::Broadcast) | Verdict::WouldDrop(DropReason::Broadcast) =
        edge.verdict
    {
        return Some(DropReason::Broadcast);
    }
    let link = match (edge.local, prefix_len) {
        // Links of one or two addresses have no broadcast address (RFC 3021).
        (IpAddr::V4(local), Some(len)) if len < 31 => Ipv4Net::new(local, len).ok(),
        _ => None,
    };
    let to_all_on_the_link = link.is_some_and(|link| link.broadcast() == remote);
    if remote.is_multicast() || remote.is_broadcast() || to_all_on_the_link {
        return Some(DropReason::Broadcast);
    }
    (!matches!(edge.protocol, 1 | 6 | 17)).then_some(DropReason::OtherProtocol)
}

/// What was opened; none of what no rule can carry.
pub(crate) fn flow(resolved: &Resolved, edge: &Edge, own: MemberId) -> Option<Flow> {
    let protocol = match edge.protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        1 => Protocol::IcmpEcho,
        _ => return None,
    };
    let far = remote(resolved, edge, own)?;
    let near = Party::Member(own);
    let (from, to) = if edge.outbound { (near, far) } else { (far, near) };
    Some(Flow { from, to, protocol, port: edge.port })
}
