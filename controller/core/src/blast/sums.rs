//! Counting whom rules open to without going through the pairs: members that rules can't tell apart are counted together.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;

use super::BlastRadius;
use crate::resolve::{Resolved, SideId};
use crate::surface::Surfaces;

/// What is looked at of a member.
#[derive(Debug, Clone, Copy)]
struct Trait {
    /// Whether it is a client: nothing carries traffic between two of these.
    client: bool,
    /// The site within which nothing holds it back, where that is so: it is in observe or protect, and not quarantined.
    open: Option<u32>,
    life: bool,
}

/// Members, and those of them on which a life may hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Count {
    members: usize,
    life: usize,
}

impl Count {
    fn add(&mut self, life: bool) {
        self.members += 1;
        self.life += usize::from(life);
    }

    fn less(self, other: Self) -> Self {
        Self {
            members: self.members.saturating_sub(other.members),
            life: self.life.saturating_sub(other.life),
        }
    }
}

/// Who is on any of some sides.
#[derive(Debug, Clone, Default)]
struct Union {
    all: Count,
    clients: Count,
    /// Of `all` those whom nothing holds back, by site.
    open: BTreeMap<u32, Count>,
}

/// What rules open to a kind of member.
#[derive(Debug, Clone, Default)]
struct Opens {
    /// Sets of sides, each with how many services are opened to it.
    to: Vec<(Vec<SideId>, usize)>,
    /// All of these sides.
    anywhere: Vec<SideId>,
    externals: usize,
}

/// Members of one kind have the same sides that open, and are quarantined or not.
type Kind = (Vec<SideId>, bool);

pub(super) struct Sums<'a> {
    resolved: &'a Resolved,
    now: UnixMillis,
    traits: BTreeMap<MemberId, Trait>,
    /// By site: those whom nothing holds back.
    open: BTreeMap<u32, Count>,
    /// Who shares a port.
    ports: BTreeMap<(GatewayId, &'a Name), Vec<MemberId>>,
    unions: BTreeMap<Vec<SideId>, Union>,
    kinds: BTreeMap<Kind, Opens>,
}

impl<'a> Sums<'a> {
    pub(super) fn of(resolved: &'a Resolved, surfaces: &Surfaces, now: UnixMillis) -> Self {
        let sites: BTreeMap<&Name, u32> = resolved.sites().into_iter().zip(0..).collect();
        let mut sums = Self {
            resolved,
            now,
            traits: BTreeMap::new(),
            open: BTreeMap::new(),
            ports: BTreeMap::new(),
            unions: BTreeMap::new(),
            kinds: BTreeMap::new(),
        };
        for (id, device) in &resolved.model.devices {
            let Some(site) = resolved.site_of(*id).and_then(|site| sites.get(site)) else {
                continue;
            };
            let life = surfaces.member(*id).is_life_support();
            let free = matches!(device.mode, Mode::Observe | Mode::Protect) && !device.quarantined;
            let open = free.then_some(*site);
            if free {
                sums.open.entry(*site).or_default().add(life);
            }
            sums.traits.insert(*id, Trait { client: false, open, life });
            let place = (device.attachment.gateway, &device.attachment.port);
            sums.ports.entry(place).or_default().push(*id);
        }
        for id in resolved.model.clients.keys() {
            let life = surfaces.member(*id).is_life_support();
            sums.traits.insert(*id, Trait { client: true, open: None, life });
        }
        sums
    }

    pub(super) fn radius(&mut self, id: MemberId, services: usize) -> BlastRadius {
        let Some(own) = self.traits.get(&id).copied() else { return BlastRadius::default() };
        let resolved = self.resolved;
        let sides = resolved.sides_of(id);
        let opening = sides.iter().filter(|side| !resolved.side(**side).from_rules.is_empty());
        let device = resolved.model.devices.get(&id);
        let kind: Kind =
            (opening.copied().collect(), device.is_some_and(|device| device.quarantined));
        let opens = self.opens(&kind);

        // Without any rule: whom nothing holds it back from, and who shares its port.
        let mut free = own.open.and_then(|site| self.open.get(&site)).copied().unwrap_or_default();
        if own.open.is_some() {
            free = free.less(Count { members: 1, life: usize::from(own.life) });
        }
        let neighbours = device.map_or(&[] as &[MemberId], |device| {
            let place = (device.attachment.gateway, &device.attachment.port);
            self.ports.get(&place).map(Vec::as_slice).unwrap_or_default()
        });
        let neighbours: Vec<MemberId> =
            neighbours.iter().copied().filter(|other| *other != id).collect();
        // Those who are here only because they share the port.
        let beside: Vec<(MemberId, Trait)> = neighbours
            .iter()
            .filter_map(|other| Some((*other, *self.traits.get(other)?)))
            .filter(|(_, other)| own.open.is_none() || other.open != own.open)
            .collect();
        beside.iter().for_each(|(_, other)| free.add(other.life));

        let on = |member: MemberId, to: &[SideId]| {
            resolved.sides_of(member).iter().any(|side| to.binary_search(side).is_ok())
        };
        // By rules: everybody, and those of them who aren't reached anyway.
        let mut by_rule = |to: &[SideId]| {
            let union = self.union(to);
            let mut all = union.all;
            if own.client {
                all = all.less(union.clients);
            }
            let open = own.open.and_then(|site| union.open.get(&site)).copied();
            let mut guarded = all.less(open.unwrap_or_default());
            let itself = Count { members: 1, life: usize::from(own.life) };
            if on(id, to) && !own.client {
                all = all.less(itself);
                if own.open.is_none() {
                    guarded = guarded.less(itself);
                }
            }
            for (other, found) in &beside {
                if on(*other, to) {
                    guarded = guarded.less(Count { members: 1, life: usize::from(found.life) });
                }
            }
            (all, guarded)
        };
        let (mut pairs, mut guarded_pairs) = (0_usize, 0_usize);
        for (to, count) in &opens.to {
            let (all, guarded) = by_rule(to);
            pairs = pairs.saturating_add(all.members * count);
            guarded_pairs = guarded_pairs.saturating_add(guarded.members * count);
        }
        let (_, beyond) = by_rule(&opens.anywhere);
        BlastRadius {
            reached: free.members.saturating_mul(services).saturating_add(guarded_pairs),
            members: free.members + beyond.members,
            life_support: free.life + beyond.life,
            pairs,
            external_pairs: if own.client { 0 } else { opens.externals },
            unguarded: free.members,
            neighbours: neighbours.len(),
        }
    }

    /// What rules open to members of this kind.
    fn opens(&mut self, kind: &Kind) -> Opens {
        if let Some(found) = self.kinds.get(kind) {
            return found.clone();
        }
        let (sides, quarantined) = kind;
        let mut ports: BTreeMap<PortMatch, BTreeSet<SideId>> = BTreeMap::new();
        let mut externals: BTreeSet<(&Name, PortMatch)> = BTreeSet::new();
        let rules = sides.iter().flat_map(|side| &self.resolved.side(*side).from_rules);
        for rule in rules.map(|place| &self.resolved.rules[*place]) {
            if rule.expired(self.now) || (*quarantined && !rule.essential) {
                continue;
            }
            let names = &self.resolved.side(rule.to).externals;
            for port in &rule.ports {
                ports.entry(*port).or_default().insert(rule.to);
                externals.extend(names.iter().map(|name| (name, *port)));
            }
        }
        let anywhere: BTreeSet<SideId> = ports.values().flatten().copied().collect();
        let mut to: BTreeMap<Vec<SideId>, usize> = BTreeMap::new();
        for sides in ports.into_values() {
            *to.entry(sides.into_iter().collect()).or_default() += 1;
        }
        let opens = Opens {
            to: to.into_iter().collect(),
            anywhere: anywhere.into_iter().collect(),
            externals: externals.len(),
        };
        self.kinds.insert(kind.clone(), opens.clone());
        opens
    }

    /// Who is on any of these sides, each once.
    fn union(&mut self, sides: &[SideId]) -> &Union {
        if !self.unions.contains_key(sides) {
            let members = sides.iter().flat_map(|side| &self.resolved.side(*side).members);
            let members: BTreeSet<MemberId> = members.copied().collect();
            let mut union = Union::default();
            for found in members.iter().filter_map(|id| self.traits.get(id)) {
                union.all.add(found.life);
                if found.client {
                    union.clients.add(found.life);
                }
                if let Some(site) = found.open {
                    union.open.entry(site).or_default().add(found.life);
                }
            }
            self.unions.insert(sides.to_vec(), union);
        }
        &self.unions[sides]
    }
}
