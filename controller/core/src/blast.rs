//! Blast radius: how far a compromised device could reach.

use std::collections::BTreeSet;

use anteroom_proto::id::MemberId;
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::model::Device;
use crate::resolve::Resolved;

/// How far a compromised device could reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BlastRadius {
    /// Pairs of a member and a service (one range of ports of one protocol) that rules open to it.
    pub pairs: usize,
    /// Pairs of an external and a service that rules open to it.
    pub external_pairs: usize,
    /// Members of its site that it reaches on any port: neither end is in enforce, or they share a port.
    pub unguarded: usize,
    /// Those of them that share its port, as behind an unmanaged switch: no mode keeps it from them.
    pub neighbours: usize,
}

/// How far the member `member` could reach at `now`. A client reaches what rules open to it and nothing else. A quarantined device has its essential rules left; one
/// without an approved gateway isn't held back by anything here, and counts as reaching nothing by rules.
#[must_use]
pub fn blast_radius(resolved: &Resolved, member: MemberId, now: UnixMillis) -> BlastRadius {
    let device = resolved.model.devices.get(&member);
    if device.is_none() && !resolved.model.clients.contains_key(&member) {
        return BlastRadius::default();
    }
    let quarantined = device.is_some_and(|device| device.quarantined);
    let mut pairs: BTreeSet<(MemberId, PortMatch)> = BTreeSet::new();
    let mut external_pairs: BTreeSet<(&Name, PortMatch)> = BTreeSet::new();
    let sides = resolved.sides_of(member).iter().map(|id| resolved.side(*id));
    for place in sides.flat_map(|side| &side.from_rules) {
        let rule = &resolved.rules[*place];
        if rule.expired(now) || (quarantined && !rule.essential) {
            continue;
        }
        let to = resolved.side(rule.to);
        for port in &rule.ports {
            let others = to.members.iter().filter(|id| **id != member);
            pairs.extend(others.map(|id| (*id, *port)));
            if device.is_some() {
                external_pairs.extend(to.externals.iter().map(|name| (name, *port)));
            }
        }
    }
    let Some(device) = device else {
        // Nothing carries traffic between two clients.
        pairs.retain(|(id, _)| !resolved.model.clients.contains_key(id));
        return BlastRadius { pairs: pairs.len(), ..BlastRadius::default() };
    };
    let site = resolved.site_of(member);
    let shares_port = |other: &Device| {
        other.attachment.gateway == device.attachment.gateway
            && other.attachment.port == device.attachment.port
    };
    let others = resolved.model.devices.iter().filter(|(id, _)| **id != member);
    let neighbours =
        others.clone().filter(|(id, other)| resolved.site_of(**id) == site && shares_port(other));
    let neighbours = neighbours.count();
    let unguarded = others.filter(|(id, other)| {
        let here = resolved.site_of(**id) == site;
        let open = |mode: Mode| matches!(mode, Mode::Observe | Mode::Protect);
        let through =
            open(device.mode) && open(other.mode) && !device.quarantined && !other.quarantined;
        here && (shares_port(other) || through)
    });
    BlastRadius {
        pairs: pairs.len(),
        external_pairs: external_pairs.len(),
        unguarded: unguarded.count(),
        neighbours,
    }
}

/// How far the members of a segment, or of the whole hospital, could reach if one of them were compromised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Spread {
    /// How many members were looked at.
    pub members: usize,
    /// Pairs of a member and a service, added up over all of them.
    pub pairs: usize,
    /// Pairs of an external and a service, added up over all of them.
    pub external_pairs: usize,
    /// Members reached on any port, added up over all of them.
    pub unguarded: usize,
    /// The one that reaches furthest: most on any port, then by most pairs. Of equals the one with the lowest id.
    pub worst: Option<(MemberId, BlastRadius)>,
}

/// The blast radii of `members` together, at `now`. For a segment these are its side's members; for a draft, resolve its text and ask again.
#[must_use]
pub fn spread(
    resolved: &Resolved,
    members: impl IntoIterator<Item = MemberId>,
    now: UnixMillis,
) -> Spread {
    let reach = |found: &BlastRadius| (found.unguarded, found.pairs, found.external_pairs);
    let mut spread = Spread::default();
    let members: BTreeSet<MemberId> = members.into_iter().collect();
    for member in members {
        let found = blast_radius(resolved, member, now);
        spread.members += 1;
        spread.pairs = spread.pairs.saturating_add(found.pairs);
        spread.external_pairs = spread.external_pairs.saturating_add(found.external_pairs);
        spread.unguarded = spread.unguarded.saturating_add(found.unguarded);
        if spread.worst.is_none_or(|(_, worst)| reach(&found) > reach(&worst)) {
            spread.worst = Some((member, found));
        }
    }
    spread
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{NOW, client, hospital, member_id, name, set_modes};
    use crate::model::Model;

    fn radius(model: &Model, number: u32) -> (usize, usize, usize) {
        let found = blast_radius(&Resolved::new(model).unwrap(), member_id(number), NOW);
        (found.pairs, found.external_pairs, found.unguarded)
    }

    #[test]
    fn rules_modes_and_ports_make_the_radius() {
        let mut model = hospital();
        assert_eq!(radius(&model, 1), (2, 2, 5), "DICOM has two ports; five others watch as well");
        assert_eq!(radius(&model, 3), (0, 0, 5));
        set_modes(&mut model, Mode::Enforce, &["pacs-1", "hl7-1"]);
        assert_eq!(radius(&model, 1), (2, 2, 3));
        set_modes(&mut model, Mode::Enforce, &["ct-1"]);
        assert_eq!(radius(&model, 1), (2, 2, 0));
        model.devices.get_mut(&member_id(2)).unwrap().attachment.port = name("port1");
        assert_eq!(radius(&model, 1), (2, 2, 1), "a neighbour on the port");
        let found = blast_radius(&Resolved::new(&model).unwrap(), member_id(1), NOW);
        assert_eq!(found.neighbours, 1, "and it is said that the port is why");
        model.set_quarantine("ct-1", true).unwrap();
        assert_eq!(radius(&model, 1), (0, 0, 1));
        model.revoke_gateway("server-room").unwrap();
        assert_eq!(radius(&model, 4), (0, 0, 2));
        assert_eq!(
            blast_radius(&Resolved::new(&model).unwrap(), member_id(99), NOW),
            BlastRadius::default()
        );
    }

    #[test]
    fn a_spread_adds_up_and_names_the_worst() {
        let mut model = hospital();
        set_modes(&mut model, Mode::Enforce, &["pacs-1", "hl7-1", "ct-1", "monitor-1"]);
        let resolved = Resolved::new(&model).unwrap();
        let all = spread(&resolved, model.devices.keys().copied(), NOW);
        let each = model.devices.keys().map(|id| blast_radius(&resolved, *id, NOW));
        assert_eq!(all.members, 6);
        assert_eq!(all.pairs, each.clone().map(|found| found.pairs).sum::<usize>());
        assert_eq!(all.unguarded, each.map(|found| found.unguarded).sum::<usize>());
        assert_eq!(all.worst.map(|(id, _)| id), Some(member_id(2)), "observed: {all:?}");
        let segment = resolved.side_named("ct").map(|id| resolved.side(id).members.clone());
        let segment = spread(&resolved, segment.unwrap(), NOW);
        assert_eq!((segment.members, segment.pairs, segment.unguarded), (1, 2, 0));
        assert_eq!(spread(&resolved, [], NOW), Spread::default());
    }

    #[test]
    fn a_client_reaches_what_rules_open_to_it_and_counts_for_whom_it_opens_to() {
        let mut model = hospital();
        model.clients.extend([client(70, "laptop-1", [10, 20, 9, 70], "service")]);
        model.clients.extend([client(71, "laptop-2", [10, 20, 9, 71], "service")]);
        model.policy.push_str(
            "[rule.x]\nfrom = \"laptop-1\"\nto = \"pacs\"\nservices = [\"dicom\"]\n\
             [rule.y]\nfrom = \"laptop-1\"\nto = \"laptop-2\"\nservices = [\"dicom\"]\n\
             [rule.z]\nfrom = \"pump-1\"\nto = \"laptop-2\"\nservices = [\"vnc\"]\n",
        );
        assert_eq!(
            radius(&model, 70),
            (2, 0, 0),
            "the archive has no gateway, laptop-2 none either"
        );
        assert_eq!(radius(&model, 3).0, 1, "laptop-2");
    }
}
