//! Few parties that stand for many: rules can't tell members apart that are in the same sides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anteroom_proto::id::MemberId;
use anteroom_proto::name::Name;

use crate::decide::Party;
use crate::policy::Policy;
use crate::resolve::{Resolved, Side, SideId};

/// Parties of a side, such that what rules make of these they make of all: of each kind of member two, so
/// that a pair of one kind is there too, and the telling addresses of each external.
pub(crate) fn representatives(resolved: &Resolved, side: &Side) -> Vec<Party> {
    let mut kinds: BTreeMap<&[SideId], usize> = BTreeMap::new();
    let mut parties: Vec<Party> = side
        .members
        .iter()
        .filter(|member| {
            let seen = kinds.entry(resolved.sides_of(**member)).or_default();
            *seen += 1;
            *seen <= 2
        })
        .map(|member| Party::Member(*member))
        .collect();
    for external in &side.externals {
        parties.extend(addresses(&resolved.policy, external).into_iter().map(Party::Address));
    }
    parties
}

/// Addresses of an external, such that an external which holds these holds all of it: the first and the last of
/// its prefixes and of those that lie within.
pub(crate) fn addresses(policy: &Policy, external: &Name) -> Vec<Ipv4Addr> {
    let Some(external) = policy.externals.get(external) else { return Vec::new() };
    let mut found = BTreeSet::new();
    for prefix in &external.prefixes {
        let within = policy.externals.values().flat_map(|other| &other.prefixes);
        for part in within.filter(|other| prefix.contains(*other)) {
            found.extend([part.network(), part.broadcast()]);
        }
    }
    found.into_iter().collect()
}

/// What people call a party: a member's name, the narrowest external that holds the address, or the address.
pub(crate) fn label(resolved: &Resolved, party: Party) -> String {
    match party {
        Party::Member(id) => member_label(resolved, id),
        Party::Address(address) => {
            let holding = resolved.policy.externals.iter().flat_map(|(name, external)| {
                external.prefixes.iter().map(move |prefix| (prefix, name))
            });
            let narrowest = holding
                .filter(|(prefix, _)| prefix.contains(&address))
                .max_by_key(|(prefix, _)| prefix.prefix_len());
            match narrowest {
                Some((prefix, name)) if prefix.prefix_len() == 32 => name.to_string(),
                Some((_, name)) => format!("{address} ({name})"),
                None => address.to_string(),
            }
        }
    }
}

/// A device's or client's name.
pub(crate) fn member_label(resolved: &Resolved, id: MemberId) -> String {
    resolved.model.member_name(id).map_or_else(|| id.to_string(), ToString::to_string)
}

/// At most `most` of `names`, in one piece of text.
pub(crate) fn some_of(names: &[String], most: usize) -> String {
    let shown = names.iter().take(most).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(most) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
