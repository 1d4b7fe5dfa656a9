//! Blast radius: how far a compromised device could reach.

use std::collections::BTreeSet;

use anteroom_proto::id::MemberId;
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

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
}

/// How far the device `member` could reach at `now`. A quarantined device has its essential rules left; one
/// without an approved gateway isn't held back by anything here, and counts as reaching nothing by rules.
#[must_use]
pub fn blast_radius(resolved: &Resolved, member: MemberId, now: UnixMillis) -> BlastRadius {
    let Some(device) = resolved.model.devices.get(&member) else { return BlastRadius::default() };
    let mut pairs: BTreeSet<(MemberId, PortMatch)> = BTreeSet::new();
    let mut external_pairs: BTreeSet<(&Name, PortMatch)> = BTreeSet::new();
    let sides = resolved.sides_of(member).iter().map(|id| resolved.side(*id));
    for place in sides.flat_map(|side| &side.from_rules) {
        let rule = &resolved.rules[*place];
        if rule.expired(now) || (device.quarantined && !rule.essential) {
            continue;
        }
        let to = resolved.side(rule.to);
        for port in &rule.ports {
            let others = to.members.iter().filter(|id| **id != member);
            pairs.extend(others.map(|id| (*id, *port)));
            external_pairs.extend(to.externals.iter().map(|name| (name, *port)));
        }
    }
    let site = resolved.site_of(member);
    let unguarded = resolved.model.devices.iter().filter(|(id, other)| {
        let here = **id != member && resolved.site_of(**id) == site;
        let neighbours = other.attachment.gateway == device.attachment.gateway
            && other.attachment.port == device.attachment.port;
        let open = |mode: Mode| matches!(mode, Mode::Observe | Mode::Protect);
        let through =
            open(device.mode) && open(other.mode) && !device.quarantined && !other.quarantined;
        here && (neighbours || through)
    });
    BlastRadius {
        pairs: pairs.len(),
        external_pairs: external_pairs.len(),
        unguarded: unguarded.count(),
    }
}
