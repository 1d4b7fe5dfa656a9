//! Recorded traffic that passes today and that the new model would drop.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use anteroom_proto::api::Edge;
use anteroom_proto::id::MemberId;
use anteroom_proto::mode::Mode;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::Verdict;

use super::WouldBreak;
use crate::decide::{self, End, decide};
use crate::ends;
use crate::lint::{Finding, Severity};
use crate::names::Names;
use crate::parties::label;
use crate::resolve::Resolved;
use crate::surface::Surfaces;
use crate::words::counted;

/// Says of one recorded edge after the other whether a change would break it, so that nobody has to keep all of them.
#[derive(Debug)]
pub struct Judge<'a> {
    before: &'a Resolved,
    after: &'a Resolved,
    old: Names,
    new: Names,
    now: UnixMillis,
}

impl<'a> Judge<'a> {
    /// For the change from `before` to `after` at `now`.
    #[must_use]
    pub fn new(before: &'a Resolved, after: &'a Resolved, now: UnixMillis) -> Self {
        let (old, new) = (Names::of(&before.model), Names::of(&after.model));
        Self { before, after, old, new, now }
    }

    /// Whether the edge's flows pass today and would be dropped.
    #[must_use]
    pub fn breaks(&self, edge: &Edge) -> bool {
        self.broken(edge).is_some()
    }

    /// Whether an essential rule carries the edge's flows today.
    #[must_use]
    pub fn is_essential(&self, edge: &Edge) -> bool {
        essential(self.before, edge, &self.old, self.now).is_some()
    }

    /// Whose edge it is, and why its flows would be dropped, if they pass today, with both ends in the order of opening.
    fn broken(&self, edge: &Edge) -> Option<(MemberId, (String, String, String))> {
        let own = ends::own(edge, &self.new).filter(|_| edge.verdict.passes())?;
        let was_dropped = || {
            let own = ends::own(edge, &self.old);
            own.is_some_and(|own| reason(self.before, edge, own, self.now).is_some())
        };
        let found = reason(self.after, edge, own, self.now).filter(|_| !was_dropped())?;
        Some((own, found))
    }
}

pub(super) fn between(
    before: &Resolved,
    after: &Resolved,
    edges: &[Edge],
    now: UnixMillis,
) -> Vec<WouldBreak> {
    let judge = Judge::new(before, after, now);
    let surfaces = Surfaces::of(after);
    // Both gateways of a pair report the same flows: the larger count stands.
    let mut found: BTreeMap<(String, String, String), WouldBreak> = BTreeMap::new();
    for edge in edges {
        let Some((own, (reason, from, to))) = judge.broken(edge) else { continue };
        let service = judge.new.service(edge.protocol, edge.port);
        let essential = essential(before, edge, &judge.old, now);
        let far = ends::remote(after, edge, own);
        let criticality = far.and_then(|far| surfaces.party(far).criticality());
        let key = (from.clone(), to.clone(), service.clone());
        let line = found.entry(key).or_insert_with(|| WouldBreak {
            from,
            to,
            service,
            reason,
            flows: 0,
            last: edge.last,
            essential: None,
            criticality: criticality.max(surfaces.member(own).criticality()),
        });
        line.essential = line.essential.take().or(essential);
        line.flows = line.flows.max(edge.flows);
        line.last = line.last.max(edge.last);
    }
    let mut found: Vec<WouldBreak> = found.into_values().collect();
    found.sort_by_key(|line| {
        let most = (Reverse(line.criticality), Reverse(line.flows));
        (line.essential.is_none(), most)
    });
    found
}

/// Whether `resolved`, whose names are `names`, drops the flows of an edge that its gateway lets pass today.
#[must_use]
pub fn breaks(resolved: &Resolved, names: &Names, edge: &Edge, now: UnixMillis) -> bool {
    ends::own(edge, names).is_some_and(|own| reason(resolved, edge, own, now).is_some())
}

/// What stops a plan that breaks this, where it is essential.
pub(super) fn refusal(broken: &WouldBreak) -> Option<Finding> {
    let rule = broken.essential.as_ref()?;
    let WouldBreak { from, to, service, flows, reason, .. } = broken;
    let recorded = counted(*flows, "flow");
    Some(Finding {
        severity: Severity::Refusal,
        code: "breaks-essential".to_owned(),
        subject: format!("rule.{rule}"),
        message: format!(
            "It is essential, and {service} from {from} to {to}, with {recorded} on record, would be \
             dropped. {reason} Keep a rule for it, or go on all the same with --force --reason WHY."
        ),
    })
}

/// The essential rule that carries an edge, where one does.
fn essential(resolved: &Resolved, edge: &Edge, names: &Names, now: UnixMillis) -> Option<String> {
    let flow = ends::flow(resolved, edge, ends::own(edge, names)?)?;
    decide::essential(resolved, &flow, now).map(|rule| rule.name.to_string())
}

/// Why `resolved` drops the flows of an edge, in a sentence, with both ends in the order of opening.
fn reason(
    resolved: &Resolved,
    edge: &Edge,
    own: MemberId,
    now: UnixMillis,
) -> Option<(String, String, String)> {
    // Without an approved gateway there is nothing that could drop it.
    resolved.site_of(own)?;
    let device = resolved.model.devices.get(&own)?;
    let ordered = |far: String| {
        let near = device.name.to_string();
        if edge.outbound { (near, far) } else { (far, near) }
    };
    if let Some(reason) = ends::uncarried(edge, device) {
        // DHCP begins with a broadcast, which passes where the site names its servers.
        let site = resolved.site_of(own);
        let infrastructure = site.and_then(|site| resolved.policy.infrastructure.get(site));
        let dhcp = edge.protocol == 17
            && matches!(edge.port, 67 | 68)
            && infrastructure.is_some_and(|found| !found.dhcp.is_empty());
        if device.mode != Mode::Enforce || dhcp {
            return None;
        }
        let (from, to) = ordered(edge.remote.to_string());
        return Some((reason.explanation().to_owned(), from, to));
    }
    let flow = ends::flow(resolved, edge, own)?;
    let decision = decide(resolved, &flow, now);
    let Verdict::Drop(reason) = decision.verdict else { return None };
    let (from, to) = (label(resolved, flow.from), label(resolved, flow.to));
    let at = match decision.dropped_at {
        Some(End::To) => &to,
        _ => &from,
    };
    Some((format!("Dropped in front of {at}: {}", reason.explanation()), from, to))
}
