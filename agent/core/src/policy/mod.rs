//! Policy: who is who, and what a view allows between them.

mod judge;
mod path;
mod relation;
mod rules;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::intent::{Client, Device, Infrastructure, Member};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::{Mode, PairPath};
use anteroom_proto::time::UnixMillis;
use anteroom_proto::view::View;
use ipnet::Ipv4Net;

pub(crate) use judge::{Ask, End, refuse};
pub(crate) use path::{Past, PeerState, Peers};
use rules::Refused;

use crate::station::StationId;
use crate::table::{Map, Seeds};
use rules::Rules;

/// A member's place in the policy in force. Void once another view is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MemberIndex(u32);

/// A member, as the view in force has it.
#[derive(Debug, Clone)]
pub(crate) struct MemberEntry {
    pub(crate) id: MemberId,
    pub(crate) gateway: GatewayId,
    pub(crate) mac: MacAddr,
    pub(crate) addresses: Vec<Ipv4Net>,
    pub(crate) mode: Mode,
    pub(crate) quarantined: bool,
    /// Of a device here: where it is.
    pub(crate) station: Option<StationId>,
    /// Of a device here: the strictest mode on its port.
    pub(crate) shared: Mode,
    /// Of a device here: how it is treated.
    pub(crate) stance: Mode,
    /// The revision that made the mode what it is.
    mode_since: u64,
    /// Whether the controller cut its gateway off.
    pub(crate) suspended: bool,
    /// Whether it is of this gateway's own site.
    own_site: bool,
    /// Whether it is a client, whose only path is the tunnel.
    pub(crate) is_client: bool,
}

impl MemberEntry {
    /// Whether it is a device of this gateway.
    pub(crate) const fn is_here(&self) -> bool {
        self.station.is_some()
    }

    /// The prefix within which it may have this address, where operators gave it one.
    pub(crate) fn prefix_of(&self, address: Ipv4Addr) -> Option<Ipv4Net> {
        crate::device::prefix_of(&self.addresses, address)
    }

    /// Whether it may have this address as a dynamic one.
    pub(crate) fn may_hold(&self, address: Ipv4Addr) -> bool {
        self.prefix_of(address).is_some()
    }
}

/// Where a device of this gateway is, and how it is treated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) station: StationId,
    /// The mode that it is in: a trial that is over has left its member another one than the view says.
    pub(crate) mode: Mode,
    /// The strictest mode on its port.
    pub(crate) shared: Mode,
    /// How it is treated.
    pub(crate) stance: Mode,
}

/// Who is behind an address, as far as rules go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Member(MemberIndex),
    /// Nobody known. It may lie in an external, which is an address, not an identity.
    Address,
    /// Somebody who uses a member's address from where that member isn't.
    Impostor,
}

#[cfg(test)]
thread_local! {
    /// How many policies this thread has made.
    pub(crate) static MADE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// What a view allows, ready to be asked.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) view: Arc<View>,
    members: Vec<MemberEntry>,
    /// The devices of this gateway, and the places of their entries in the view.
    own: Vec<(MemberIndex, usize)>,
    by_id: Map<MemberId, MemberIndex>,
    /// None: more than one member has the address.
    by_address: Map<Ipv4Addr, Option<MemberIndex>>,
    /// Members behind other gateways, by Ethernet address.
    by_mac: Map<MacAddr, MemberIndex>,
    /// This site's members that are in a VLAN and have left observe, by that and their fixed address.
    in_vlans: BTreeMap<(u16, Ipv4Addr), MemberIndex>,
    /// Networks behind members, longest prefix first.
    by_prefix: Vec<(Ipv4Net, MemberIndex)>,
    /// Addresses that operators gave to several members behind one gateway: who may hold them. `by_address` has
    /// whoever does.
    shared: Map<Ipv4Addr, Vec<MemberIndex>>,
    /// Who holds which dynamic address now.
    held: Map<Ipv4Addr, MemberIndex>,
    rules: Rules,
    /// Gateways that are out of the wire now.
    pub(crate) bypassed: Vec<GatewayId>,
    /// Digests of what the view holds in common with each peer.
    relations: Map<GatewayId, u64>,
}

impl Policy {
    /// Prepares a view. Of this gateway's devices those count that `has_place`; where that is, [`Self::place`] says.
    pub(crate) fn new(
        view: &Arc<View>,
        seeds: &mut Seeds,
        has_place: impl Fn(&Device) -> bool,
    ) -> Self {
        #[cfg(test)]
        MADE.with(|made| made.set(made.get() + 1));
        let mut policy = Self {
            members: Vec::new(),
            own: Vec::new(),
            by_id: seeds.map(),
            by_address: seeds.map(),
            by_mac: seeds.map(),
            in_vlans: BTreeMap::new(),
            by_prefix: Vec::new(),
            shared: seeds.map(),
            held: seeds.map(),
            rules: Rules::default(),
            bypassed: Vec::new(),
            relations: seeds.map(),
            view: Arc::clone(view),
        };
        let here = view.intent.devices.iter().enumerate();
        let here = here.filter(|(_, device)| has_place(device));
        let here = here.map(|(at, device)| (&device.member, Some(at)));
        let elsewhere = view.intent.members.iter().map(|member| (member, None));
        // The own site first: of two sites with the same address, the own is meant.
        for own_site in [true, false] {
            for (member, here) in here.clone().chain(elsewhere.clone()) {
                if (member.site == view.intent.site) == own_site {
                    policy.add(member, here, (own_site, false));
                }
            }
        }
        for own_site in [true, false] {
            for client in &view.intent.clients {
                if (client.site == view.intent.site) == own_site {
                    policy.add(&as_member(client, view.intent.gateway), None, (own_site, true));
                }
            }
        }
        policy.by_prefix.sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
        policy.relations.extend(relation::relations(&view.intent_as_signed()));
        policy.rules = Rules::new(&view.intent, |id| policy.by_id.get(&id).copied());
        policy
    }

    /// Says where the devices of this gateway are, and how they are treated. Before that nobody asks. Says whether each
    /// has a place.
    pub(crate) fn place(&mut self, station: impl Fn(&Member) -> Option<Place>) -> bool {
        let devices = &self.view.intent.devices;
        let mut whole = true;
        for (index, at) in &self.own {
            let place = devices.get(*at).and_then(|device| station(&device.member));
            let entry = self.members.get_mut(index.0 as usize);
            match (place, entry) {
                (Some(Place { station, mode, shared, stance }), Some(entry)) => {
                    entry.station = Some(station);
                    (entry.mode, entry.shared, entry.stance) = (mode, shared, stance);
                }
                _ => whole = false,
            }
        }
        whole
    }

    /// Adds a member. `here`: it is a device of this gateway, and its entry's place in the view.
    fn add(&mut self, member: &Member, here: Option<usize>, (own_site, is_client): (bool, bool)) {
        if self.by_id.contains_key(&member.id) {
            return;
        }
        let Ok(index) = u32::try_from(self.members.len()).map(MemberIndex) else { return };
        let operation = &self.view.operation;
        self.members.push(MemberEntry {
            id: member.id,
            gateway: member.gateway,
            mac: member.mac,
            addresses: member.addresses.clone(),
            mode: member.mode,
            quarantined: member.quarantined || operation.quarantined.contains(&member.id),
            station: None,
            shared: member.mode,
            stance: member.mode,
            mode_since: member.mode_since,
            suspended: operation.suspended.contains(&member.gateway),
            is_client,
            own_site,
        });
        self.by_id.insert(member.id, index);
        self.own.extend(here.map(|at| (index, at)));
        if here.is_none() && own_site && !is_client {
            self.by_mac.entry(member.mac).or_insert(index);
        }
        for net in &member.addresses {
            if net.prefix_len() < 32 {
                if !crate::device::is_dynamic(&member.addresses) {
                    self.by_prefix.push((*net, index));
                }
                continue;
            }
            if let Some(vlan) = member.vlan.filter(|_| own_site && member.mode != Mode::Observe) {
                self.in_vlans.entry((vlan, net.addr())).or_insert(index);
            }
            let known = self.by_address.get(&net.addr()).copied();
            match known {
                None => {
                    self.by_address.insert(net.addr(), Some(index));
                }
                // Another site's member can't take an address from this site's, nor make it doubtful.
                Some(Some(first)) if !own_site && self.is_own_site(first) => {}
                Some(Some(first)) if own_site && self.are_together(first, index) => {
                    self.shared.entry(net.addr()).or_insert_with(|| vec![first]).push(index);
                }
                Some(_) => {
                    self.shared.remove(&net.addr());
                    self.by_address.insert(net.addr(), None);
                }
            }
        }
    }

    /// Whether two members of this site are behind the same gateway, which sees who of them has an address.
    fn are_together(&self, a: MemberIndex, b: MemberIndex) -> bool {
        let gateway = |index| self.member(index).map(|member| member.gateway);
        self.is_own_site(a) && gateway(a) == gateway(b)
    }

    /// Whether several members behind one gateway may have an address, one at a time.
    pub(crate) fn is_shared(&self, address: Ipv4Addr) -> bool {
        self.shared.contains_key(&address)
    }

    /// Says which of those who may have a shared address has it.
    pub(crate) fn set_holder(&mut self, address: Ipv4Addr, member: MemberId) {
        let index = self.find(member);
        let listed = self.shared.get(&address).into_iter().flatten();
        if let Some(index) = index.filter(|index| listed.into_iter().any(|one| one == index)) {
            self.by_address.insert(address, Some(index));
        }
    }

    fn is_own_site(&self, index: MemberIndex) -> bool {
        self.member(index).is_some_and(|member| member.own_site)
    }

    pub(crate) fn member(&self, index: MemberIndex) -> Option<&MemberEntry> {
        self.members.get(index.0 as usize)
    }

    pub(crate) fn find(&self, id: MemberId) -> Option<MemberIndex> {
        self.by_id.get(&id).copied()
    }

    pub(crate) fn infrastructure(&self) -> &Infrastructure {
        &self.view.intent.infrastructure
    }

    /// The member with this address, if exactly one can be meant.
    pub(crate) fn at(&self, address: Ipv4Addr) -> Option<MemberIndex> {
        if let Some(exact) = self.by_address.get(&address) {
            return *exact;
        }
        let mut fits = self.by_prefix.iter().filter(|(net, _)| net.contains(&address));
        let Some((net, first)) = fits.next() else { return self.held.get(&address).copied() };
        let doubtful =
            fits.any(|(other, index)| other.prefix_len() == net.prefix_len() && index != first);
        (!doubtful).then_some(*first)
    }

    /// The member of this site that has left observe and has this fixed address in this VLAN.
    pub(crate) fn in_vlan(&self, vlan: u16, address: Ipv4Addr) -> Option<&MemberEntry> {
        self.member(*self.in_vlans.get(&(vlan, address))?)
    }

    /// Whether operators gave an address to somebody, or to several.
    pub(crate) fn is_pinned(&self, address: Ipv4Addr) -> bool {
        self.by_address.contains_key(&address)
            || self.by_prefix.iter().any(|(net, _)| net.contains(&address))
    }

    /// Whether an address within a member's prefix is somebody's whom operators named apart from it: a server of
    /// the site, a router, or an external no wider than the prefix. Of two prefixes the narrower one counts.
    pub(crate) fn is_reserved(&self, within: Ipv4Net, address: Ipv4Addr) -> bool {
        let intent = &self.view.intent;
        let mut routers = intent.devices.iter().filter_map(|device| device.router);
        let mut externals = intent.externals.iter().flat_map(|external| &external.prefixes);
        self.is_infrastructure(address)
            || self.is_further_router(address)
            || routers.any(|router| router.address == address)
            || externals
                .any(|net| net.contains(&address) && net.prefix_len() >= within.prefix_len())
    }

    /// Says who holds which dynamic address. Whoever isn't in this view holds nothing.
    pub(crate) fn set_held(&mut self, held: impl Iterator<Item = (Ipv4Addr, MemberId)>) {
        self.held.clear();
        for (address, member) in held {
            if let Some(index) = self.find(member) {
                self.held.insert(address, index);
            }
        }
    }

    /// The gateways in front of members that share a rule with a device here: who may know of it.
    pub(crate) fn audience(&self, device: MemberIndex) -> Vec<GatewayId> {
        let mut gateways = Vec::new();
        for (index, member) in (0..).map(MemberIndex).zip(&self.members) {
            let known = member.is_here() || member.is_client || gateways.contains(&member.gateway);
            if !known && self.opens(device, index) {
                gateways.push(member.gateway);
            }
        }
        gateways
    }

    /// The member of this site behind another gateway that has this Ethernet address.
    pub(crate) fn elsewhere_with(&self, mac: MacAddr) -> Option<&MemberEntry> {
        self.member(*self.by_mac.get(&mac)?)
    }

    /// Who is meant by a destination address.
    pub(crate) fn who(&self, address: Ipv4Addr) -> Who {
        self.at(address).map_or(Who::Address, Who::Member)
    }

    /// The member that a peer speaks for when it sends from this address: whoever is meant by it as a destination,
    /// too. Where a network of another peer's lies within one of its own, that part isn't its.
    pub(crate) fn of_peer(&self, gateway: GatewayId, address: Ipv4Addr) -> Option<MemberIndex> {
        let owned = |member: &MemberEntry| member.gateway == gateway && !member.is_here();
        self.at(address).filter(|index| self.member(*index).is_some_and(owned))
    }

    /// The path of a device here with a member, and whether that is in the clear only because a gateway is
    /// bypassed: then every rule counts as if it said so.
    pub(crate) fn path(&self, near: &MemberEntry, far: &MemberEntry) -> (PairPath, bool) {
        if far.is_client {
            return (PairPath::with_client(near.mode), false);
        }
        let path = PairPath::of(near.mode, far.mode);
        let is_out = |gateway| self.bypassed.contains(&gateway);
        if path == PairPath::Tunnel
            && !far.is_here()
            && (is_out(near.gateway) || is_out(far.gateway))
        {
            return (PairPath::Clear, true);
        }
        (path, false)
    }

    /// Whether any rule opens anything between two members, in either direction.
    pub(crate) fn opens(&self, a: MemberIndex, b: MemberIndex) -> bool {
        let (a, b) = (Who::Member(a), Who::Member(b));
        let any = Ipv4Addr::UNSPECIFIED;
        self.rules.any(a, any, b, any, |_| true) || self.rules.any(b, any, a, any, |_| true)
    }

    /// Whether any rule opens anything in the clear between a device and an address, in either direction.
    pub(crate) fn opens_clear(&self, device: MemberIndex, address: Ipv4Addr) -> bool {
        self.opens_clear_to(device, self.who(address), address)
    }

    fn opens_clear_to(&self, device: MemberIndex, other: Who, address: Ipv4Addr) -> bool {
        let Some(local) = self.member(device) else { return false };
        let (path, bypassed) = match other {
            Who::Member(index) => match self.member(index) {
                Some(member) => self.path(local, member),
                None => return false,
            },
            Who::Address | Who::Impostor => (PairPath::with_external(local.mode), false),
        };
        let must_say_so = match path {
            PairPath::Tunnel | PairPath::None => return false,
            PairPath::ClearIfRuleSays => true,
            PairPath::Clear => local.shared >= Mode::Enforce && !bypassed,
        };
        let fits = |clear: bool| clear || !must_say_so;
        let own = Who::Member(device);
        let none = Ipv4Addr::UNSPECIFIED;
        self.rules.any(own, none, other, address, fits)
            || self.rules.any(other, address, own, none, fits)
    }

    /// Whether a device needs its next hop in the clear: for infrastructure, or for somebody whom a rule opens in
    /// the clear, beyond its own network.
    pub(crate) fn needs_next_hop(
        &self,
        device: MemberIndex,
        on_link: impl Fn(Ipv4Addr) -> Option<bool>,
    ) -> bool {
        let infrastructure = self.infrastructure();
        let servers = [&infrastructure.dhcp, &infrastructure.dns, &infrastructure.ntp];
        if servers.into_iter().flatten().any(|server| on_link(*server) != Some(true)) {
            return true;
        }
        let beyond = |net: &Ipv4Net| {
            on_link(net.network()) != Some(true) || on_link(net.broadcast()) != Some(true)
        };
        let externals = &self.view.intent.externals;
        if externals
            .iter()
            .flat_map(|external| &external.prefixes)
            .any(|net| beyond(net) && self.opens_clear(device, net.network()))
        {
            return true;
        }
        (0..).map(MemberIndex).zip(&self.members).any(|(index, member)| {
            !member.is_here()
                && member.addresses.iter().any(|net| {
                    beyond(net) && self.opens_clear_to(device, Who::Member(index), net.addr())
                })
        })
    }

    /// The next moment at which a rule's condition changes.
    pub(crate) fn next_boundary(&self, after: UnixMillis) -> Option<UnixMillis> {
        self.rules.next_moment(after)
    }

    /// Whether an address lies in an external that a rule names.
    pub(crate) fn in_external(&self, address: Ipv4Addr) -> bool {
        self.rules.names(address)
    }

    /// Whether an address is one of the site's servers.
    pub(crate) fn is_infrastructure(&self, address: Ipv4Addr) -> bool {
        let infrastructure = self.infrastructure();
        [&infrastructure.dhcp, &infrastructure.dns, &infrastructure.ntp]
            .into_iter()
            .any(|servers| servers.contains(&address))
    }

    /// Whether an address is the own one of a router that shares another with its like.
    pub(crate) fn is_further_router(&self, address: Ipv4Addr) -> bool {
        self.infrastructure().routers.contains(&address)
    }

    /// The state of a rule's conditions now.
    fn now(clock: &crate::clock::Clock, now: Instant) -> rules::Now<'_> {
        rules::Now { clock, now }
    }
}

/// A client as one of the members: its own gateway, always as strict as can be. On its network a device meets the
/// address that stands for next hops that nobody knows, since a client has none of its own there.
fn as_member(client: &Client, here: GatewayId) -> Member {
    Member {
        id: client.id,
        gateway: client.id.into(),
        overlay: client.overlay,
        site: client.site,
        vlan: None,
        mac: crate::nexthop::stand_in(here),
        addresses: vec![client.address.into()],
        mode: Mode::Enforce,
        mode_since: 0,
        quarantined: false,
    }
}
