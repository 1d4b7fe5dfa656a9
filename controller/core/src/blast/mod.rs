//! Blast radius: how far a compromised device could reach.
//!
//! The measure is pairs of a member and a service. What rules open counts by the services that they name. A member that nothing is
//! held back from counts with every service of the hospital, which are those that the rules name ([`services`]), so that a flat
//! network and a policy are counted in the same coin.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::id::MemberId;
use anteroom_proto::mode::Mode;
use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::problem::Problems;
use crate::resolve::Resolved;
use crate::surface::Surfaces;

mod sums;
#[cfg(test)]
mod tests;

use sums::Sums;

/// How far a compromised device could reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BlastRadius {
    /// Pairs of a member and a service in all: each of the `unguarded` with every service, and what rules open to the others.
    pub reached: usize,
    /// Members in all, on any port or by a rule.
    pub members: usize,
    /// Those of them on which a life may hang.
    pub life_support: usize,
    /// Pairs of a member and a service (one range of ports of one protocol) that rules open to it.
    pub pairs: usize,
    /// Pairs of an external and a service that rules open to it.
    pub external_pairs: usize,
    /// Members of its site that it reaches on any port: neither end is in enforce, or they share a port.
    pub unguarded: usize,
    /// Those of them that share its port, as behind an unmanaged switch: no mode keeps it from them.
    pub neighbours: usize,
}

/// The services that the rules of all of `policies` name, each range of ports of a protocol by itself; at least one.
#[must_use]
pub fn services(policies: &[&Resolved]) -> usize {
    let rules = policies.iter().flat_map(|resolved| &resolved.rules);
    let ports: BTreeSet<PortMatch> = rules.flat_map(|rule| &rule.ports).copied().collect();
    ports.len().max(1)
}

/// The same hospital with every device in enforce, under `text`; `file` is what errors call it.
///
/// # Errors
/// Every problem of the policy and of its names.
pub fn enforced(resolved: &Resolved, file: &str, text: &str) -> Result<Resolved, Problems> {
    let mut model = resolved.model.clone();
    model.devices.values_mut().for_each(|device| device.mode = Mode::Enforce);
    Resolved::from_text(&model, file, text)
}

/// The blast radius of every member.
///
/// Work follows the kinds of members that rules tell apart and the sides of rules, not the pairs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Radii {
    radii: BTreeMap<MemberId, BlastRadius>,
}

impl Radii {
    /// How far each member could reach at `now`, with `services` in the hospital ([`services`]).
    ///
    /// A client reaches what rules open to it and nothing else: nothing carries traffic between two of them. A quarantined device
    /// has its essential rules left. Of a device without an approved gateway nobody knows where it is, so there is none of it.
    #[must_use]
    pub fn of(resolved: &Resolved, surfaces: &Surfaces, services: usize, now: UnixMillis) -> Self {
        let mut sums = Sums::of(resolved, surfaces, now);
        let members = resolved.model.devices.keys().chain(resolved.model.clients.keys());
        let radii = members.filter_map(|id| Some((*id, sums.radius(*id, services)?)));
        Self { radii: radii.collect() }
    }

    /// How far one member could reach, for whoever asks for no other; none where nobody knows.
    #[must_use]
    pub fn one(
        resolved: &Resolved,
        surfaces: &Surfaces,
        services: usize,
        now: UnixMillis,
        member: MemberId,
    ) -> Option<BlastRadius> {
        Sums::of(resolved, surfaces, now).radius(member, services)
    }

    /// That of one member; none for who isn't one, and for a device without an approved gateway: nobody knows where it is.
    #[must_use]
    pub fn get(&self, member: MemberId) -> Option<BlastRadius> {
        self.radii.get(&member).copied()
    }

    /// Those of `members` together.
    #[must_use]
    pub fn spread(&self, members: impl IntoIterator<Item = MemberId>) -> Spread {
        let mut spread = Spread::default();
        let members: BTreeSet<MemberId> = members.into_iter().collect();
        for member in members {
            let Some(found) = self.get(member) else {
                spread.unknown += 1;
                continue;
            };
            spread.members += 1;
            spread.reached = spread.reached.saturating_add(found.reached);
            spread.external_pairs = spread.external_pairs.saturating_add(found.external_pairs);
            let reach = |found: &BlastRadius| (found.reached, found.external_pairs);
            if spread.worst.is_none_or(|(_, worst)| reach(&found) > reach(&worst)) {
                spread.worst = Some((member, found));
            }
        }
        spread
    }
}

/// How far the members of a segment, or of the whole hospital, could reach if one of them were compromised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Spread {
    /// How many members were counted.
    pub members: usize,
    /// How many weren't, since nobody knows where they are.
    pub unknown: usize,
    /// Pairs of a member and a service, added up over all of them.
    pub reached: usize,
    /// Pairs of an external and a service, added up over all of them.
    pub external_pairs: usize,
    /// The one that reaches furthest. Of equals the one with the lowest id.
    pub worst: Option<(MemberId, BlastRadius)>,
}

impl Spread {
    /// Pairs that one of them reaches on average, rounded.
    #[must_use]
    pub const fn average(&self) -> usize {
        match self.members {
            0 => 0,
            members => (self.reached + members / 2) / members,
        }
    }
}
