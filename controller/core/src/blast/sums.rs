//! Counting whom rules open to without going through the pairs: members that rules can't tell apart are counted together.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::service::PortMatch;
use anteroom_proto::time::UnixMillis;

use super::BlastRadius;
use crate::resolve::{Resolved, SideId};
use crate::surface::Surfaces;

/// Sides with more members than this are counted once and for all; members of smaller ones are looked up where they count.
const FEW: usize = 32;

/// What is looked at of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
    const fn of(members: usize, found: Trait) -> Self {
        Self { members, life: if found.life { members } else { 0 } }
    }

    fn add(&mut self, other: Self) {
        self.members += other.members;
        self.life += other.life;
    }

    const fn less(self, other: Self) -> Self {
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

impl Union {
    fn add(&mut self, found: Trait) {
        let one = Count::of(1, found);
        self.all.add(one);
        if found.client {
            self.clients.add(one);
        }
        if let Some(site) = found.open {
            self.open.entry(site).or_default().add(one);
        }
    }
}

/// What rules open to members of one kind.
#[derive(Debug, Clone, Default)]
struct Opens {
    /// Sets of sides, each with how many services are opened to it.
    to: Vec<(Vec<SideId>, usize)>,
    /// All of these sides.
    anywhere: Vec<SideId>,
    externals: usize,
}

/// Where a device is plugged in.
type Place<'a> = (GatewayId, &'a Name);

/// Members of one kind reach equally far: they are on the same sides, have the same traits, and share the same port, where others are on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Kind<'a> {
    sides: &'a [SideId],
    own: Trait,
    quarantined: bool,
    place: Option<Place<'a>>,
}

/// Who is on one port: members by what rules can tell of them.
#[derive(Debug, Clone, Default)]
struct Port<'a> {
    devices: usize,
    kinds: BTreeMap<(&'a [SideId], Trait), usize>,
}

pub(super) struct Sums<'a> {
    resolved: &'a Resolved,
    now: UnixMillis,
    traits: BTreeMap<MemberId, Trait>,
    /// By site: those whom nothing holds back.
    open: BTreeMap<u32, Count>,
    ports: BTreeMap<Place<'a>, Port<'a>>,
    /// Of sets of sides with more than [`FEW`] members.
    unions: BTreeMap<Vec<SideId>, Rc<Union>>,
    radii: BTreeMap<Kind<'a>, BlastRadius>,
    /// How many members were gone through.
    pub(super) looked_at: usize,
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
            radii: BTreeMap::new(),
            looked_at: 0,
        };
        for (id, device) in &resolved.model.devices {
            let Some(site) = resolved.site_of(*id).and_then(|site| sites.get(site)) else {
                continue;
            };
            let life = surfaces.member(*id).is_life_support();
            let free = matches!(device.mode, Mode::Observe | Mode::Protect) && !device.quarantined;
            let found = Trait { client: false, open: free.then_some(*site), life };
            if free {
                sums.open.entry(*site).or_default().add(Count::of(1, found));
            }
            sums.traits.insert(*id, found);
            let place = (device.attachment.gateway, &device.attachment.port);
            let port = sums.ports.entry(place).or_default();
            port.devices += 1;
            *port.kinds.entry((resolved.sides_of(*id), found)).or_default() += 1;
        }
        for id in resolved.model.clients.keys() {
            let life = surfaces.member(*id).is_life_support();
            sums.traits.insert(*id, Trait { client: true, open: None, life });
        }
        sums
    }

    /// How far a member could reach; none for who isn't one, and for devices without an approved gateway.
    pub(super) fn radius(&mut self, id: MemberId, services: usize) -> Option<BlastRadius> {
        let own = self.traits.get(&id).copied()?;
        let device = self.resolved.model.devices.get(&id);
        let place = device.map(|device| (device.attachment.gateway, &device.attachment.port));
        let shared = |place: &Place<'_>| self.ports.get(place).is_some_and(|port| port.devices > 1);
        let kind = Kind {
            sides: self.resolved.sides_of(id),
            own,
            quarantined: device.is_some_and(|device| device.quarantined),
            place: place.filter(shared),
        };
        if let Some(found) = self.radii.get(&kind) {
            return Some(*found);
        }
        let found = self.counted(&kind, services);
        self.radii.insert(kind, found);
        Some(found)
    }

    fn counted(&mut self, kind: &Kind<'a>, services: usize) -> BlastRadius {
        let Kind { sides, own, place, .. } = *kind;
        let opens = self.opens(kind);
        let itself = Count::of(1, own);

        // Without any rule: whom nothing holds it back from, and who shares its port.
        let mut free = own.open.and_then(|site| self.open.get(&site)).copied().unwrap_or_default();
        if own.open.is_some() {
            free = free.less(itself);
        }
        let port = place.and_then(|place| self.ports.get(&place));
        let neighbours = port.map_or(0, |port| port.devices.saturating_sub(1));
        // Those who are here only because they share the port.
        let beside: Vec<(&[SideId], Count)> = port
            .into_iter()
            .flat_map(|port| &port.kinds)
            .map(|((on, found), members)| {
                let but_itself = usize::from((*on, *found) == (sides, own));
                (*on, *found, members - but_itself)
            })
            .filter(|(_, found, _)| own.open.is_none() || found.open != own.open)
            .map(|(on, found, members)| (on, Count::of(members, found)))
            .collect();
        beside.iter().for_each(|(_, count)| free.add(*count));

        // By rules: everybody, and those of them who aren't reached anyway.
        let mut by_rule = |to: &[SideId]| {
            let union = self.union(to);
            let mut all = union.all;
            if own.client {
                all = all.less(union.clients);
            }
            let open = own.open.and_then(|site| union.open.get(&site)).copied();
            let mut guarded = all.less(open.unwrap_or_default());
            if on_any(sides, to) && !own.client {
                all = all.less(itself);
                if own.open.is_none() {
                    guarded = guarded.less(itself);
                }
            }
            for (_, count) in beside.iter().filter(|(on, _)| on_any(on, to)) {
                guarded = guarded.less(*count);
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
            neighbours,
        }
    }

    /// What rules open to members of this kind.
    fn opens(&self, kind: &Kind<'_>) -> Opens {
        let mut ports: BTreeMap<PortMatch, BTreeSet<SideId>> = BTreeMap::new();
        let mut externals: BTreeSet<(&Name, PortMatch)> = BTreeSet::new();
        let rules = kind.sides.iter().flat_map(|side| &self.resolved.side(*side).from_rules);
        for rule in rules.map(|place| &self.resolved.rules[*place]) {
            if rule.expired(self.now) || (kind.quarantined && !rule.essential) {
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
        Opens {
            to: to.into_iter().collect(),
            anywhere: anywhere.into_iter().collect(),
            externals: externals.len(),
        }
    }

    /// Who is on any of these sides, each once. Of sides with many members few sets are met, however many devices have small ones of
    /// their own beside them.
    fn union(&mut self, sides: &[SideId]) -> Rc<Union> {
        let resolved = self.resolved;
        let members = |side: &SideId| resolved.side(*side).members.as_slice();
        let (many, few): (Vec<SideId>, Vec<SideId>) =
            sides.iter().copied().partition(|side| members(side).len() > FEW);
        let counted = match self.unions.get(&many) {
            Some(found) => Rc::clone(found),
            None => {
                let all: BTreeSet<MemberId> = many.iter().flat_map(members).copied().collect();
                self.looked_at += all.len();
                let mut union = Union::default();
                all.iter().filter_map(|id| self.traits.get(id)).for_each(|one| union.add(*one));
                let union = Rc::new(union);
                self.unions.insert(many.clone(), Rc::clone(&union));
                union
            }
        };
        if few.is_empty() {
            return counted;
        }
        let mut union = Rc::unwrap_or_clone(counted);
        let rest: BTreeSet<MemberId> = few.iter().flat_map(members).copied().collect();
        self.looked_at += rest.len();
        let rest = rest.iter().filter(|id| !on_any(resolved.sides_of(**id), &many));
        rest.filter_map(|id| self.traits.get(id)).for_each(|one| union.add(*one));
        Rc::new(union)
    }
}

/// Whether who is on the sides `on` is on one of `to`, which are sorted.
fn on_any(on: &[SideId], to: &[SideId]) -> bool {
    on.iter().any(|side| to.binary_search(side).is_ok())
}
