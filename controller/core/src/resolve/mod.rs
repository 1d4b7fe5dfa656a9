//! A model with its policy's names resolved: who is in which segment, and what each rule opens.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anteroom_proto::id::{GatewayId, MemberId, RuleId};
use anteroom_proto::intent::Endpoint;
use anteroom_proto::name::Name;
use anteroom_proto::service::{PortMatch, Protocol};
use anteroom_proto::time::UnixMillis;

use crate::model::Model;
use crate::policy::{self, Policy};
use crate::problem::Problems;

mod addresses;
mod persons;
mod resolver;
#[cfg(test)]
mod tests;

pub(crate) use addresses::Addresses;

/// A model with its policy resolved.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The model that it was made from. Its policy text is the one that was resolved.
    pub model: Model,
    /// Its policy.
    pub policy: Policy,
    /// Rules in the order of their ids, which is the order in which the first that matches is cited.
    pub rules: Vec<ResolvedRule>,
    /// Devices without an approved gateway, by name: no side holds them.
    pub detached: BTreeMap<Name, MemberId>,
    sides: Vec<Side>,
    side_by_name: BTreeMap<Name, SideId>,
    sides_of: BTreeMap<MemberId, Vec<SideId>>,
    addresses: Addresses,
}

/// A rule with its ends resolved.
#[derive(Debug, Clone)]
pub struct ResolvedRule {
    /// Its name.
    pub name: Name,
    /// Its id in views.
    pub id: RuleId,
    /// Who may open.
    pub from: SideId,
    /// To whom.
    pub to: SideId,
    /// Protocols and ports, sorted.
    pub ports: Vec<PortMatch>,
    /// Whether an enforced device may use it in the clear.
    pub clear: bool,
    /// Whether it survives quarantine.
    pub essential: bool,
    /// When it ends.
    pub expires: Option<UnixMillis>,
}

impl ResolvedRule {
    /// Whether the rule has ended by `now`.
    #[must_use]
    pub fn expired(&self, now: UnixMillis) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }

    /// Whether one of its services holds the port.
    #[must_use]
    pub fn opens(&self, protocol: Protocol, port: u16) -> bool {
        self.ports.iter().any(|ports| ports.matches(protocol, port))
    }
}

/// Which side: what [`Resolved::side`] takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SideId(usize);

/// What a name stands for as one end of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// The name: a segment's, a member's or an external's.
    pub name: Name,
    /// The same as views have it.
    pub endpoint: Endpoint,
    /// Clients, and devices with an approved gateway, sorted.
    pub members: Vec<MemberId>,
    /// Names of externals, sorted.
    pub externals: Vec<Name>,
    /// The gateways in front of those that are devices, sorted.
    pub gateways: Vec<GatewayId>,
    /// Places in [`Resolved::rules`] of the rules that this may open by.
    pub from_rules: Vec<usize>,
    /// Places in [`Resolved::rules`] of the rules that open to this.
    pub to_rules: Vec<usize>,
}

impl Resolved {
    /// Resolves the model's own policy.
    ///
    /// # Errors
    /// Every problem of the policy and of its names.
    pub fn new(model: &Model) -> Result<Self, Problems> {
        Self::from_text(model, policy::POLICY_FILE, &model.policy)
    }

    /// Resolves `text` in place of the model's own policy; `file` is what problems call it.
    ///
    /// # Errors
    /// Every problem of the policy and of its names.
    pub fn from_text(model: &Model, file: &str, text: &str) -> Result<Self, Problems> {
        let (policy, problems) = policy::parse_all(file, text);
        let (sides, side_by_name, rules) = resolver::resolve(model, &policy, file, problems)?;
        let mut sides_of: BTreeMap<MemberId, Vec<SideId>> = BTreeMap::new();
        for (place, side) in sides.iter().enumerate() {
            for member in &side.members {
                sides_of.entry(*member).or_default().push(SideId(place));
            }
        }
        let mut model = model.clone();
        text.clone_into(&mut model.policy);
        let addresses = Addresses::of(&model);
        let detached = model
            .devices
            .iter()
            .filter(|(_, device)| !model.is_attached(device))
            .map(|(id, device)| (device.name.clone(), *id))
            .collect();
        Ok(Self { model, policy, rules, detached, sides, side_by_name, sides_of, addresses })
    }

    /// What a side stands for.
    #[must_use]
    pub fn side(&self, id: SideId) -> &Side {
        // Ids can't be made outside of this module, and nothing removes a side.
        &self.sides[id.0]
    }

    /// What a segment, or another name that a rule or test has, stands for.
    #[must_use]
    pub fn side_named(&self, name: &str) -> Option<SideId> {
        self.side_by_name.get(name).copied()
    }

    /// The sides that hold a member.
    #[must_use]
    pub fn sides_of(&self, member: MemberId) -> &[SideId] {
        self.sides_of.get(&member).map(Vec::as_slice).unwrap_or_default()
    }

    /// The site of a client, or of a device with an approved gateway.
    #[must_use]
    pub fn site_of(&self, member: MemberId) -> Option<&Name> {
        if let Some(client) = self.model.clients.get(&member) {
            return Some(&client.site);
        }
        let device = self.model.devices.get(&member)?;
        self.model.gateways.get(&device.attachment.gateway).map(|gateway| &gateway.site)
    }

    /// The member with this address in this site: a fixed address comes before a prefix that one may be in.
    #[must_use]
    pub fn member_at(&self, site: &Name, address: Ipv4Addr) -> Option<MemberId> {
        self.addresses.at(site, address)
    }

    /// The members with this address, at most one a site.
    #[must_use]
    pub fn members_at(&self, address: Ipv4Addr) -> Vec<MemberId> {
        self.sites().into_iter().filter_map(|site| self.member_at(site, address)).collect()
    }

    /// The sites in which approved gateways stand, sorted.
    #[must_use]
    pub fn sites(&self) -> Vec<&Name> {
        let mut sites: Vec<&Name> = self.model.gateways.values().map(|g| &g.site).collect();
        sites.sort_unstable();
        sites.dedup();
        sites
    }

    /// Every side, with its id.
    pub fn sides(&self) -> impl Iterator<Item = (SideId, &Side)> {
        self.sides.iter().enumerate().map(|(place, side)| (SideId(place), side))
    }

    /// Whether the side in this place of [`Self::sides`] is the one with this id.
    pub(crate) const fn is_side(&self, place: usize, id: SideId) -> bool {
        place == id.0
    }

    /// Whether a gateway's view holds this member of another gateway: they share a rule.
    #[must_use]
    pub fn sees(&self, gateway: GatewayId, member: MemberId) -> bool {
        let there = |side: SideId| self.side(side).gateways.binary_search(&gateway).is_ok();
        self.sides_of(member).iter().map(|id| self.side(*id)).any(|side| {
            side.from_rules.iter().any(|rule| there(self.rules[*rule].to))
                || side.to_rules.iter().any(|rule| there(self.rules[*rule].from))
        })
    }

    /// Whether one of a side's externals holds `address`.
    #[must_use]
    pub fn external_holds(&self, side: SideId, address: Ipv4Addr) -> bool {
        self.side(side)
            .externals
            .iter()
            .filter_map(|name| self.policy.externals.get(name))
            .any(|external| external.prefixes.iter().any(|prefix| prefix.contains(&address)))
    }

    /// One port for each stretch of `ports` that all rules treat alike: what holds for these holds for all.
    #[must_use]
    pub fn telling_ports(&self, ports: &PortMatch) -> Vec<u16> {
        if ports.protocol == Protocol::IcmpEcho {
            return vec![0];
        }
        let known = self.rules.iter().flat_map(|rule| &rule.ports);
        let edges = known
            .filter(|known| known.protocol == ports.protocol)
            .flat_map(|known| [Some(known.first), known.last.checked_add(1)])
            .flatten()
            .filter(|port| (ports.first..=ports.last).contains(port));
        let mut telling: Vec<u16> = std::iter::once(ports.first).chain(edges).collect();
        telling.sort_unstable();
        telling.dedup();
        telling
    }
}
