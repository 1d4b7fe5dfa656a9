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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use anteroom_proto::id::{OrganisationId, SegmentId, SiteId};
    use anteroom_proto::intent::{Device, Infrastructure, OnFailure, PeerGateway, Segment};
    use anteroom_proto::key::PublicKey;
    use anteroom_proto::mac::MacAddr;
    use anteroom_proto::mode::Mode;

    use super::*;

    fn member(number: u8, gateway: u8) -> Member {
        Member {
            id: MemberId::from_bytes([number; 16]),
            gateway: GatewayId::from_bytes([gateway; 16]),
            overlay: Ipv6Addr::LOCALHOST,
            site: SiteId::of("north"),
            vlan: None,
            mac: MacAddr([0, 0, 0, 0, 0, number]),
            addresses: vec![Ipv4Addr::new(10, 0, 0, number).into()],
            mode: Mode::Protect,
            mode_since: 1,
            quarantined: false,
        }
    }

    /// What one gateway holds of these members and rules, all of them in one segment each way.
    fn intent(own: u8, members: &[Member], rules: &[Rule]) -> Intent {
        let gateway = GatewayId::from_bytes([own; 16]);
        let (here, there): (Vec<_>, Vec<_>) =
            members.iter().cloned().partition(|member| member.gateway == gateway);
        let peers: BTreeSet<GatewayId> = there.iter().map(|member| member.gateway).collect();
        let device = |member| Device {
            member,
            port: "port1".parse().unwrap(),
            prefix_len: None,
            router: None,
            on_failure: OnFailure::Default,
        };
        let peer = |gateway| PeerGateway {
            gateway,
            identity: PublicKey::try_from([7; 32]).unwrap(),
            overlay: Ipv6Addr::LOCALHOST,
        };
        // The order in which a view lists things tells nothing.
        let mut rules = rules.to_vec();
        if own == 1 {
            rules.reverse();
        }
        Intent {
            organisation: OrganisationId::from_bytes([1; 16]),
            gateway,
            overlay: Ipv6Addr::LOCALHOST,
            site: SiteId::of("north"),
            segments: vec![Segment {
                id: SegmentId::of("all"),
                members: members.iter().map(|member| member.id).collect(),
                externals: Vec::new(),
            }],
            devices: here.into_iter().map(device).collect(),
            members: there,
            peers: peers.into_iter().map(peer).collect(),
            externals: Vec::new(),
            rules,
            infrastructure: Infrastructure::default(),
            clients: Vec::new(),
            bypasses: Vec::new(),
        }
    }

    fn rule(name: &str, from: Endpoint, to: Endpoint) -> Rule {
        Rule {
            id: RuleId::of(name),
            from,
            to,
            services: vec!["tcp/104".parse().unwrap()],
            clear: false,
            essential: false,
            conditions: Vec::new(),
        }
    }

    fn digest(own: u8, peer: u8, members: &[Member], rules: &[Rule]) -> Option<u64> {
        let intent = intent(own, members, rules);
        let peer = GatewayId::from_bytes([peer; 16]);
        relations(&intent).find(|(gateway, _)| *gateway == peer).map(|(_, digest)| digest)
    }

    #[test]
    fn both_ends_come_to_the_same_and_any_difference_between_them_to_another() {
        let members = [member(11, 1), member(12, 1), member(21, 2), member(31, 3)];
        let one = |number: u8| Endpoint::Member(MemberId::from_bytes([number; 16]));
        let all = Endpoint::Segment(SegmentId::of("all"));
        let rules = [rule("a", one(11), one(21)), rule("b", all, one(12)), rule("c", all, all)];
        let agreed = digest(1, 2, &members, &rules);
        assert!(agreed.is_some());
        assert_eq!(agreed, digest(2, 1, &members, &rules));
        assert_ne!(agreed, digest(1, 3, &members, &rules));
        let mut changed: Vec<(&str, Vec<Member>, Vec<Rule>)> = Vec::new();
        let mut change = |what, apply: &dyn Fn(&mut Vec<Member>, &mut Vec<Rule>)| {
            let (mut members, mut rules) = (members.to_vec(), rules.to_vec());
            apply(&mut members, &mut rules);
            changed.push((what, members, rules));
        };
        change("a mode", &|members, _| members[2].mode = Mode::Enforce);
        change("quarantine", &|members, _| members[0].quarantined = true);
        change("an address", &|members, _| members[2].addresses.clear());
        change("a rule less", &|_, rules| drop(rules.remove(0)));
        change("the other way", &|_, rules| {
            let rule = &mut rules[0];
            std::mem::swap(&mut rule.from, &mut rule.to);
        });
        change("services", &|_, rules| rules[0].services.push("udp/9".parse().unwrap()));
        change("clear", &|_, rules| rules[1].clear = true);
        change("essential", &|_, rules| rules[2].essential = true);
        for (what, members, rules) in &changed {
            assert_ne!(agreed, digest(1, 2, members, rules), "{what} went unnoticed");
            assert_eq!(digest(1, 2, members, rules), digest(2, 1, members, rules), "{what}");
        }
        // What is between others changes nothing here.
        let mut others = members.to_vec();
        others[3].mode = Mode::Enforce;
        assert_eq!(agreed, digest(1, 2, &others, &rules));
    }
}
