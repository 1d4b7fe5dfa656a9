//! What telemetry recorded of a flow, and where that isn't what the policy does with it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anteroom_proto::api::Edge;
use anteroom_proto::id::GatewayId;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::{DropReason, Verdict};

use super::{Contradiction, LastDrop, Recorded};
use crate::decide::{Flow, Party};
use crate::names::Names;
use crate::resolve::Resolved;

/// How far two clocks may differ before it is said, in milliseconds: they drift by seconds a day.
const APART: u64 = 60 * 60 * 1000;
/// How long after an operator signed a gateway may still be without the revision, in milliseconds.
const UNDER_WAY: u64 = 60 * 1000;

/// What gateways recorded of one flow.
pub(super) struct Found<'a> {
    names: &'a Names,
    edges: Vec<&'a Edge>,
}

impl<'a> Found<'a> {
    pub(super) fn of(
        resolved: &Resolved,
        flow: &Flow,
        names: &'a Names,
        edges: &'a [Edge],
    ) -> Self {
        let of_flow = |edge: &&Edge| {
            let member = edge.member.or_else(|| names.member_of(edge.gateway, edge.mac));
            let (near, far) = ((member, edge.local), (edge.remote_member, edge.remote));
            let (from, to) = if edge.outbound { (near, far) } else { (far, near) };
            edge.protocol == flow.protocol.number()
                && (edge.port == flow.port || edge.protocol == 1)
                && is(resolved, flow.from, from)
                && is(resolved, flow.to, to)
        };
        Self { names, edges: edges.iter().filter(of_flow).collect() }
    }

    /// The newest one that was dropped, or would have been.
    pub(super) fn last_drop(&self) -> Option<LastDrop> {
        let dropped = self.edges.iter().filter(|edge| edge.verdict.reason().is_some());
        let newest = dropped.max_by_key(|edge| edge.last)?;
        Some(LastDrop {
            at: newest.last,
            gateway: self.names.gateway(newest.gateway),
            verdict: newest.verdict.to_string(),
            flows: newest.flows,
        })
    }

    /// The newest drop, actual or to be, that `verdict` excludes, where its gateway has said nothing else since and was
    /// signed the model before.
    pub(super) fn contradiction(
        &self,
        verdict: Verdict,
        recorded: &Recorded<'_>,
        now: UnixMillis,
    ) -> Option<Contradiction> {
        let mut newest: BTreeMap<GatewayId, &Edge> = BTreeMap::new();
        for edge in &self.edges {
            let known = newest.entry(edge.gateway).or_insert(edge);
            if edge.last > known.last {
                *known = edge;
            }
        }
        let speaks_against = |edge: &&Edge| {
            // Without the time a gateway stamps with the newest that was signed for it, which may be older.
            let unknown = edge.verdict.reason() == Some(DropReason::TimeUnknown);
            (unknown || edge.last >= recorded.signed_at)
                && edge.verdict.reason().is_some()
                && (verdict.reason().is_none() || edge.verdict.passes() != verdict.passes())
        };
        let edge = newest.into_values().filter(speaks_against).max_by_key(|edge| edge.last)?;
        let ahead = edge.last.0.checked_sub(now.0).filter(|ahead| *ahead >= APART);
        let reason = edge.verdict.reason()?;
        let explanation = match (ahead, reason) {
            (Some(ahead), _) => format!(
                "{} By its time that was {} from now: its clock is wrong, or this machine's, and docs/failures.md says what becomes of rules with \
                 `expires`.",
                reason.explanation(),
                span(ahead)
            ),
            (None, DropReason::TimeUnknown) => format!(
                "{} Until a controller or a peer tells it, rules with `expires` are closed there.",
                reason.explanation()
            ),
            (None, _) if edge.last.0 - recorded.signed_at.0 < UNDER_WAY => format!(
                "{} That was within a minute of the newest revision, which it may not have had yet.",
                reason.explanation()
            ),
            (None, DropReason::Expired) => {
                format!("{} By that gateway's time, not by this machine's.", reason.explanation())
            }
            (None, _) => reason.explanation().to_owned(),
        };
        Some(Contradiction {
            at: edge.last,
            gateway: self.names.gateway(edge.gateway),
            verdict: edge.verdict.to_string(),
            ahead_ms: ahead,
            explanation,
        })
    }
}

fn span(millis: u64) -> String {
    match millis / APART {
        hours @ 0..48 => format!("{hours} h"),
        hours => format!("{} days", hours / 24),
    }
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
