//! The ends of recorded edges, as a model knows them.

use std::net::IpAddr;

use anteroom_proto::api::Edge;
use anteroom_proto::id::MemberId;
use anteroom_proto::service::Protocol;

use crate::decide::{Flow, Party};
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
