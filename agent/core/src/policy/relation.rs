//! What two gateways hold in common: the members that share a rule, and those rules, as a digest that both can
//! compute from their own views and tell each other.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::cbor;
use anteroom_proto::id::{GatewayId, MemberId, RuleId};
use anteroom_proto::intent::{Condition, Endpoint, Intent, Member, Rule};
use anteroom_proto::key::Hash;
use anteroom_proto::service::PortMatch;
use serde::Serialize;

/// A rule, as far as it concerns members of two gateways, in one direction.
#[derive(Debug, Serialize)]
struct Part<'a> {
    rule: RuleId,
    from: Vec<MemberId>,
    to: Vec<MemberId>,
    services: &'a [PortMatch],
    clear: bool,
    essential: bool,
    conditions: &'a [Condition],
}

/// What one gateway's view holds of another.
#[derive(Debug, Default)]
struct Relation<'a> {
    parts: Vec<Part<'a>>,
    members: BTreeMap<MemberId, &'a Member>,
}

/// The digest of what a view holds in common with each of its peers. It comes out the same at both ends exactly
/// if they hold the same members, modes and rules of each other.
pub(super) fn relations(intent: &Intent) -> impl Iterator<Item = (GatewayId, u64)> {
    let mut found: BTreeMap<GatewayId, Relation<'_>> =
        intent.peers.iter().map(|peer| (peer.gateway, Relation::default())).collect();
    let here: BTreeMap<MemberId, &Member> =
        intent.devices.iter().map(|device| (device.member.id, &device.member)).collect();
    let there: BTreeMap<MemberId, &Member> =
        intent.members.iter().map(|member| (member.id, member)).collect();
    let mut rules: Vec<&Rule> = intent.rules.iter().collect();
    rules.sort_by_key(|rule| rule.id);
    for rule in rules {
        let (from, to) = (members(intent, &rule.from), members(intent, &rule.to));
        for outward in [true, false] {
            let (near, far) = if outward { (&from, &to) } else { (&to, &from) };
            let near: Vec<&Member> = near.iter().filter_map(|id| here.get(id).copied()).collect();
            let mut by_gateway: BTreeMap<GatewayId, Vec<&Member>> = BTreeMap::new();
            for member in far.iter().filter_map(|id| there.get(id).copied()) {
                by_gateway.entry(member.gateway).or_default().push(member);
            }
            for (gateway, far) in by_gateway.into_iter().filter(|_| !near.is_empty()) {
                let Some(relation) = found.get_mut(&gateway) else { continue };
                relation.members.extend(near.iter().chain(&far).map(|member| (member.id, *member)));
                let ids = |of: &[&Member]| of.iter().map(|member| member.id).collect();
                let (from, to) =
                    if outward { (ids(&near), ids(&far)) } else { (ids(&far), ids(&near)) };
                relation.parts.push(Part {
                    rule: rule.id,
                    from,
                    to,
                    services: &rule.services,
                    clear: rule.clear,
                    essential: rule.essential,
                    conditions: &rule.conditions,
                });
            }
        }
    }
    found.into_iter().map(|(gateway, relation)| (gateway, relation.digest()))
}

impl Relation<'_> {
    fn digest(mut self) -> u64 {
        self.parts.sort_by(|a, b| (a.rule, &a.from, &a.to).cmp(&(b.rule, &b.from, &b.to)));
        let parts = cbor::encode(&self.parts);
        let members = cbor::encode(&self.members.values().collect::<Vec<_>>());
        let hash = Hash::of("anteroom relation", &[&parts, &members]);
        hash.as_bytes().first_chunk::<8>().map_or(0, |first| u64::from_be_bytes(*first))
    }
}

/// The members that a rule's end means, each once.
fn members(intent: &Intent, end: &Endpoint) -> BTreeSet<MemberId> {
    match end {
        Endpoint::Member(id) => [*id].into(),
        Endpoint::External(_) => BTreeSet::new(),
        Endpoint::Segment(id) => {
            let segment = intent.segments.iter().find(|segment| segment.id == *id);
            segment.map(|segment| segment.members.iter().copied().collect()).unwrap_or_default()
        }
    }
}
