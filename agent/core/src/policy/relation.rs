//! What two gateways hold in common: the members that share a rule, and those rules, as a digest that both can
//! compute from their own views and tell each other.

use std::collections::BTreeMap;

use anteroom_proto::cbor;
use anteroom_proto::id::{GatewayId, MemberId, SegmentId};
use anteroom_proto::intent::{Endpoint, Intent, Member, Rule};
use anteroom_proto::key::Hash;
use serde::Serialize;

use crate::table::Map;

/// Rules with the same two ends, as far as these are members of two gateways, in one direction.
#[derive(Debug, Serialize, PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    /// A digest of the rules.
    rules: Hash,
    from: Vec<MemberId>,
    to: Vec<MemberId>,
}

/// What one gateway's view holds of another.
#[derive(Debug, Default)]
struct Relation<'a> {
    parts: Vec<Part>,
    members: BTreeMap<MemberId, &'a Member>,
}

/// The members that a rule's end means: those of this gateway, and others by theirs.
#[derive(Debug, Default)]
struct Meant<'a> {
    here: BTreeMap<MemberId, &'a Member>,
    there: BTreeMap<GatewayId, BTreeMap<MemberId, &'a Member>>,
}

/// The digest of what a view holds in common with each of its peers. It comes out the same at both ends exactly
/// if they hold the same members, modes and rules of each other.
///
/// Rules are taken together by their ends, so that it costs as much as there are rules, and again as much as there are
/// peers for each pair of segments; not as many times one as the other.
pub(super) fn relations(intent: &Intent) -> impl Iterator<Item = (GatewayId, u64)> {
    let mut found: BTreeMap<GatewayId, Relation<'_>> =
        intent.peers.iter().map(|peer| (peer.gateway, Relation::default())).collect();
    let mut meant: Map<Endpoint, Meant<'_>> = Map::default();
    let mut groups: Map<(Endpoint, Endpoint), Vec<&Rule>> = Map::default();
    for rule in &intent.rules {
        groups.entry((rule.from, rule.to)).or_default().push(rule);
    }
    let everybody = Everybody::of(intent);
    for (from, to) in groups.keys() {
        for end in [from, to] {
            meant.entry(*end).or_insert_with(|| everybody.meant(end));
        }
    }
    for ((from, to), rules) in groups {
        let (Some(from), Some(to)) = (meant.get(&from), meant.get(&to)) else { continue };
        let rules = digest(rules);
        for outward in [true, false] {
            let (near, far) = if outward { (from, to) } else { (to, from) };
            for (gateway, far) in far.there.iter().filter(|_| !near.here.is_empty()) {
                let Some(relation) = found.get_mut(gateway) else { continue };
                let both = near.here.iter().chain(far);
                relation.members.extend(both.map(|(id, member)| (*id, *member)));
                let near: Vec<MemberId> = near.here.keys().copied().collect();
                let far: Vec<MemberId> = far.keys().copied().collect();
                let (from, to) = if outward { (near, far) } else { (far, near) };
                relation.parts.push(Part { rules, from, to });
            }
        }
    }
    found.into_iter().map(|(gateway, relation)| (gateway, relation.digest()))
}

/// A digest of rules, in whatever order they come, without their ends.
fn digest(mut rules: Vec<&Rule>) -> Hash {
    rules.sort_by_key(|rule| rule.id);
    let rules: Vec<_> = rules
        .into_iter()
        .map(|rule| (rule.id, &rule.services, rule.clear, rule.essential, &rule.conditions))
        .collect();
    Hash::of("anteroom relation rules", &[&cbor::encode(&rules)])
}

impl Relation<'_> {
    fn digest(mut self) -> u64 {
        self.parts.sort();
        let parts = cbor::encode(&self.parts);
        let members = cbor::encode(&self.members.values().collect::<Vec<_>>());
        let hash = Hash::of("anteroom relation", &[&parts, &members]);
        hash.as_bytes().first_chunk::<8>().map_or(0, |first| u64::from_be_bytes(*first))
    }
}

/// Who is where, and in which segment.
#[derive(Debug)]
struct Everybody<'a> {
    here: Map<MemberId, &'a Member>,
    there: Map<MemberId, &'a Member>,
    segments: Map<SegmentId, &'a [MemberId]>,
}

impl<'a> Everybody<'a> {
    fn of(intent: &'a Intent) -> Self {
        let here = intent.devices.iter().map(|device| (device.member.id, &device.member));
        let segments = intent.segments.iter().rev();
        Self {
            here: here.collect(),
            there: intent.members.iter().map(|member| (member.id, member)).collect(),
            segments: segments.map(|segment| (segment.id, &*segment.members)).collect(),
        }
    }

    fn meant(&self, end: &Endpoint) -> Meant<'a> {
        let ids: &[MemberId] = match end {
            Endpoint::Member(id) => std::slice::from_ref(id),
            Endpoint::External(_) => &[],
            Endpoint::Segment(id) => self.segments.get(id).copied().unwrap_or_default(),
        };
        let mut meant = Meant::default();
        for id in ids {
            if let Some(member) = self.here.get(id) {
                meant.here.insert(*id, member);
            }
            if let Some(member) = self.there.get(id) {
                meant.there.entry(member.gateway).or_default().insert(*id, member);
            }
        }
        meant
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use anteroom_proto::id::{OrganisationId, RuleId, SiteId};
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
            rollout: anteroom_proto::rollout::Rollout::default(),
            two_person: false,
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
            identity: None,
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
