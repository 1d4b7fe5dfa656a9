//! What telemetry recorded of a flow.

use std::net::IpAddr;

use anteroom_proto::api::Edge;

use super::LastDrop;
use crate::decide::{Flow, Party};
use crate::names::Names;
use crate::resolve::Resolved;

/// The newest edge of the flow that was dropped, or would have been.
pub(super) fn last_drop(
    resolved: &Resolved,
    flow: &Flow,
    names: &Names,
    edges: &[Edge],
) -> Option<LastDrop> {
    let of_flow = |edge: &&Edge| {
        let member = edge.member.or_else(|| names.member_of(edge.gateway, edge.mac));
        let (near, far) = ((member, edge.local), (edge.remote_member, edge.remote));
        let (from, to) = if edge.outbound { (near, far) } else { (far, near) };
        edge.verdict.reason().is_some()
            && edge.protocol == flow.protocol.number()
            && (edge.port == flow.port || edge.protocol == 1)
            && is(resolved, flow.from, from)
            && is(resolved, flow.to, to)
    };
    let newest = edges.iter().filter(of_flow).max_by_key(|edge| edge.last)?;
    Some(LastDrop {
        at: newest.last,
        gateway: names.gateway(newest.gateway),
        verdict: newest.verdict.to_string(),
        flows: newest.flows,
    })
}

/// Whether one end of an edge is the party.
fn is(
    resolved: &Resolved,
    party: Party,
    (member, address): (Option<anteroom_proto::id::MemberId>, IpAddr),
) -> bool {
    let IpAddr::V4(address) = address else { return false };
    match (party, member) {
        (Party::Member(id), Some(member)) => id == member,
        (Party::Member(id), None) => {
            // A gateway that knows no such member records an address.
            let client = resolved.model.clients.get(&id);
            if client.is_some_and(|client| client.address == address) {
                return true;
            }
            let device = resolved.model.devices.get(&id);
            device.is_some_and(|device| device.addresses.iter().any(|net| net.contains(&address)))
        }
        (Party::Address(party), _) => party == address,
    }
}
