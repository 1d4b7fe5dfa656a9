//! What one model allows and another doesn't, whatever the modes.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::id::MemberId;
use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;

use super::Permission;
use crate::decide::{Flow, Party, permits};
use crate::parties::{addresses, member_label};
use crate::resolve::{Resolved, ResolvedRule, Side, SideId};

/// Most flows that are compared for one rule; a rule that would take more is shown whole.
const MAX_FLOWS: usize = 1_000_000;

/// What `after` allows at `now` and `before` doesn't.
pub(super) fn opened(before: &Resolved, after: &Resolved, now: UnixMillis) -> Vec<Permission> {
    let rules = after.rules.iter().filter(|rule| !rule.expired(now));
    let changed = rules.filter(|rule| !same(before, after, rule, now));
    let mut found: Vec<Permission> =
        changed.flat_map(|rule| new_in(before, after, rule, now)).collect();
    found.sort_by(|a, b| (&a.rule, &a.from, &a.to).cmp(&(&b.rule, &b.from, &b.to)));
    found
}

/// Whether `before` has a rule of the same name that opens the same.
fn same(before: &Resolved, after: &Resolved, rule: &ResolvedRule, now: UnixMillis) -> bool {
    let Ok(place) = before.rules.binary_search_by_key(&rule.id, |old| old.id) else { return false };
    let old = &before.rules[place];
    let ends = [(old.from, rule.from), (old.to, rule.to)];
    let same_side = |(old, new): (SideId, SideId)| {
        let (old, new) = (before.side(old), after.side(new));
        let prefixes = |resolved: &Resolved, side: &Side| -> Vec<_> {
            let externals = side.externals.iter();
            externals
                .filter_map(|name| resolved.policy.externals.get(name))
                .flat_map(|external| external.prefixes.clone())
                .collect()
        };
        old.members == new.members
            && old.externals == new.externals
            && prefixes(before, old) == prefixes(after, new)
    };
    old.name == rule.name
        && !old.expired(now)
        && old.ports == rule.ports
        && ends.into_iter().all(same_side)
}

/// Members that neither model's rules tell apart, or an external.
struct Kind {
    names: Vec<String>,
    parties: Vec<Party>,
}

fn kinds(before: &Resolved, after: &Resolved, side: &Side) -> Vec<Kind> {
    let mut by_sides: BTreeMap<(&[SideId], &[SideId]), Vec<MemberId>> = BTreeMap::new();
    for member in &side.members {
        let key = (before.sides_of(*member), after.sides_of(*member));
        by_sides.entry(key).or_default().push(*member);
    }
    let members = by_sides.into_values().map(|members| Kind {
        names: members.iter().map(|id| member_label(after, *id)).collect(),
        // Two, so that a pair of the same kind is looked at.
        parties: members.iter().take(2).map(|id| Party::Member(*id)).collect(),
    });
    let externals = side.externals.iter().map(|name| {
        let telling: BTreeSet<_> =
            [before, after].iter().flat_map(|model| addresses(&model.policy, name)).collect();
        let inside = after.policy.externals.get(name).into_iter().flat_map(|it| &it.prefixes);
        let inside: Vec<_> = inside.collect();
        let held = telling.into_iter().filter(|ip| inside.iter().any(|net| net.contains(ip)));
        Kind { names: vec![name.to_string()], parties: held.map(Party::Address).collect() }
    });
    members.chain(externals).collect()
}

fn new_in(
    before: &Resolved,
    after: &Resolved,
    rule: &ResolvedRule,
    now: UnixMillis,
) -> Vec<Permission> {
    let (from_side, to_side) = (after.side(rule.from), after.side(rule.to));
    let (from, to) = (kinds(before, after, from_side), kinds(before, after, to_side));
    if from.is_empty() || to.is_empty() {
        return Vec::new();
    }
    let whole = |ports: &[PortMatch]| Permission {
        rule: rule.name.to_string(),
        from: vec![from_side.name.to_string()],
        to: vec![to_side.name.to_string()],
        services: ports.iter().map(ToString::to_string).collect(),
    };
    if from.len().saturating_mul(to.len()).saturating_mul(rule.ports.len()) > MAX_FLOWS {
        return vec![whole(&rule.ports)];
    }
    // Which ports are new for each pair of kinds, then which kinds go together.
    let mut by_ports: BTreeMap<Vec<PortMatch>, BTreeMap<usize, BTreeSet<usize>>> = BTreeMap::new();
    for (a, one) in from.iter().enumerate() {
        for (b, other) in to.iter().enumerate() {
            let ports: Vec<PortMatch> = rule
                .ports
                .iter()
                .filter(|ports| is_new(before, one, other, ports, now))
                .copied()
                .collect();
            if !ports.is_empty() {
                by_ports.entry(ports).or_default().entry(a).or_default().insert(b);
            }
        }
    }
    let mut found = Vec::new();
    for (ports, pairs) in by_ports {
        let mut by_far: BTreeMap<BTreeSet<usize>, Vec<usize>> = BTreeMap::new();
        for (a, far) in pairs {
            by_far.entry(far).or_default().push(a);
        }
        for (far, near) in by_far {
            let names = |all: &[Kind], chosen: &mut dyn Iterator<Item = usize>, side: &Side| {
                let chosen: Vec<usize> = chosen.collect();
                if chosen.len() == all.len() {
                    return vec![side.name.to_string()];
                }
                let names = chosen.into_iter().filter_map(|at| all.get(at));
                let mut names: Vec<String> = names.flat_map(|kind| kind.names.clone()).collect();
                names.sort_unstable();
                names
            };
            found.push(Permission {
                from: names(&from, &mut near.into_iter(), from_side),
                to: names(&to, &mut far.into_iter(), to_side),
                ..whole(&ports)
            });
        }
    }
    found
}

/// Whether some flow between the two kinds isn't allowed by `before`.
fn is_new(before: &Resolved, from: &Kind, to: &Kind, ports: &PortMatch, now: UnixMillis) -> bool {
    let telling = before.telling_ports(ports);
    from.parties.iter().any(|from| {
        to.parties.iter().filter(|to| *to != from).any(|to| {
            let outside = matches!((from, to), (Party::Address(_), Party::Address(_)));
            !outside
                && telling.iter().any(|port| {
                    let (from, to, protocol) = (*from, *to, ports.protocol);
                    permits(before, &Flow { from, to, protocol, port: *port }, now).is_none()
                })
        })
    })
}
