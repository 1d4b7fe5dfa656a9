//! Which of the addresses that a device was seen with are taken for its own when it is confirmed.
//!
//! A device is seen with an address as soon as it claims it by ARP, and anything can claim anything. What it is confirmed
//! with is its own from then on: traffic to it goes there, and recorded traffic is told to have been with it. So one
//! address is taken, and none that somebody else is known to have; an operator may say otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use anteroom_proto::api::{Edge, SightingRecord};
use anteroom_proto::id::GatewayId;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;
use anteroom_proto::time::UnixMillis;

use crate::model::Model;
use crate::policy::Policy;

/// How long gateways may differ in what they have reported of one conversation, in milliseconds.
const LAG: u64 = 10 * 60 * 1000;
/// Externals whose prefixes are longer than this are servers, and others networks in which devices may well be.
const NETWORK: u8 = 28;
/// Most conversations that are kept of one address, of its own as of others'.
const MOST: usize = 256;

/// Why an address isn't taken for a device's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doubt {
    /// The policy has it in the site's infrastructure, under this word.
    Infrastructure(Name, &'static str),
    /// It is an external's.
    External(Name),
    /// Something else at the site has it for its router.
    Router(MacAddr),
    /// This member has it.
    Member(Name),
    /// What is at this Ethernet address, with this address, spoke with it, and the answers weren't this device's.
    Answered(MacAddr, IpAddr),
    /// Another one is taken, and a second one only if an operator says so.
    Second(Ipv4Addr),
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Infrastructure(site, kind) => {
                write!(f, "the policy has it in [infrastructure.{site}], under {kind}")
            }
            Self::External(name) => write!(f, "it is external.{name}'s"),
            Self::Router(mac) => write!(f, "it is the router of {mac}"),
            Self::Member(name) => write!(f, "it is {name}'s"),
            Self::Answered(mac, address) => {
                write!(f, "{address} ({mac}) spoke with it, and no gateway saw this device answer")
            }
            Self::Second(first) => write!(f, "one address is taken by itself, which is {first}"),
        }
    }
}

/// The addresses that a device was seen with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chosen {
    /// The one that is taken.
    pub address: Option<Ipv4Addr>,
    /// Those that aren't, and why.
    pub left: Vec<(Ipv4Addr, Doubt)>,
}

impl Chosen {
    /// Those that somebody else seems to have.
    pub fn foreign(&self) -> impl Iterator<Item = &(Ipv4Addr, Doubt)> {
        self.left.iter().filter(|(_, doubt)| !matches!(doubt, Doubt::Second(_)))
    }
}

/// An end of conversations: an Ethernet address behind a gateway, and its address.
type End = (GatewayId, MacAddr, IpAddr);
/// With whom, by which protocol and port.
type With = (IpAddr, u8, u16);

/// A conversation that somebody else had with an address.
#[derive(Debug)]
struct Spoken {
    by: End,
    with: With,
    first: UnixMillis,
    last: UnixMillis,
}

/// What is known of addresses that devices were seen with.
#[derive(Debug)]
pub struct Sighted<'a> {
    model: &'a Model,
    policy: Option<&'a Policy>,
    now: UnixMillis,
    routers: BTreeMap<(&'a Name, Ipv4Addr), BTreeSet<MacAddr>>,
    /// Ends that are asked for, with the flows of each that were answered.
    own: BTreeMap<End, BTreeMap<With, u64>>,
    /// What others had, by site and address.
    others: BTreeMap<(&'a Name, IpAddr), Vec<Spoken>>,
}

impl<'a> Sighted<'a> {
    /// Judges `asked` by what else there is: by everything that was sighted, and by the policy, where it has no problems.
    #[must_use]
    pub fn new<'r>(
        model: &'a Model,
        policy: Option<&'a Policy>,
        sightings: &'a [SightingRecord],
        asked: impl IntoIterator<Item = &'r SightingRecord>,
        now: UnixMillis,
    ) -> Self {
        let mut routers: BTreeMap<_, BTreeSet<MacAddr>> = BTreeMap::new();
        for record in sightings {
            let gateway = model.gateways.get(&record.gateway);
            if let (Some(gateway), Some((address, _))) = (gateway, record.sighting.router) {
                routers.entry((&gateway.site, address)).or_default().insert(record.sighting.mac);
            }
        }
        for device in model.devices.values() {
            let gateway = model.gateways.get(&device.attachment.gateway);
            if let (Some(gateway), Some(router)) = (gateway, device.router) {
                let known = routers.entry((&gateway.site, router.address)).or_default();
                known.insert(device.attachment.mac);
            }
        }
        let (mut own, mut others) = (BTreeMap::new(), BTreeMap::new());
        for record in asked {
            let Some(gateway) = model.gateways.get(&record.gateway) else { continue };
            for address in record.sighting.addresses.iter().copied().filter(may_be_own) {
                let address = IpAddr::V4(address);
                own.insert((record.gateway, record.sighting.mac, address), BTreeMap::new());
                others.insert((&gateway.site, address), Vec::new());
            }
        }
        Self { model, policy, now, routers, own, others }
    }

    /// Takes recorded traffic in.
    pub fn take(&mut self, edge: &Edge) {
        if edge.packets_out == 0 || edge.packets_in == 0 {
            return;
        }
        let end = (edge.gateway, edge.mac, edge.local);
        if let Some(own) = self.own.get_mut(&end) {
            let with = (edge.remote, edge.protocol, edge.port);
            if own.len() < MOST || own.contains_key(&with) {
                let flows = own.entry(with).or_default();
                *flows = flows.saturating_add(edge.flows);
            }
        }
        let Some(gateway) = self.model.gateways.get(&edge.gateway) else { return };
        if let Some(others) = self.others.get_mut(&(&gateway.site, edge.remote))
            && others.len() < MOST
        {
            let with = (edge.local, edge.protocol, edge.port);
            others.push(Spoken { by: end, with, first: edge.first, last: edge.last });
        }
    }

    /// Which address of a device is taken: of those that nobody else is known to have, the one that it spoke most from.
    #[must_use]
    pub fn choose(&self, record: &SightingRecord) -> Chosen {
        let mut chosen = Chosen::default();
        let mut free: Vec<(u64, Ipv4Addr)> = Vec::new();
        for address in record.sighting.addresses.iter().copied().filter(may_be_own) {
            match self.doubt(record, address) {
                Some(doubt) => chosen.left.push((address, doubt)),
                None => free.push((self.flows(record, address), address)),
            }
        }
        free.sort_by_key(|(flows, _)| std::cmp::Reverse(*flows));
        let mut free = free.into_iter().map(|(_, address)| address);
        chosen.address = free.next();
        if let Some(first) = chosen.address {
            chosen.left.extend(free.map(|address| (address, Doubt::Second(first))));
        }
        chosen
    }

    fn flows(&self, record: &SightingRecord, address: Ipv4Addr) -> u64 {
        let end = (record.gateway, record.sighting.mac, IpAddr::V4(address));
        self.own.get(&end).map_or(0, |own| own.values().fold(0, |sum, n| sum.saturating_add(*n)))
    }

    fn doubt(&self, record: &SightingRecord, address: Ipv4Addr) -> Option<Doubt> {
        let site = &self.model.gateways.get(&record.gateway)?.site;
        self.reserved(site, address)
            .or_else(|| self.routes(site, record.sighting.mac, address))
            .or_else(|| self.held(site, record, address))
            .or_else(|| self.answered(site, record, address))
    }

    fn reserved(&self, site: &Name, address: Ipv4Addr) -> Option<Doubt> {
        let policy = self.policy?;
        if let Some(servers) = policy.infrastructure.get(site) {
            let kinds = [
                ("dhcp", &servers.dhcp),
                ("dns", &servers.dns),
                ("ntp", &servers.ntp),
                ("routers", &servers.routers),
            ];
            if let Some((kind, _)) = kinds.iter().find(|(_, list)| list.contains(&address)) {
                return Some(Doubt::Infrastructure(site.clone(), kind));
            }
        }
        let holds =
            |prefix: &ipnet::Ipv4Net| prefix.prefix_len() > NETWORK && prefix.contains(&address);
        let external =
            policy.externals.iter().find(|(_, external)| external.prefixes.iter().any(holds));
        external.map(|(name, _)| Doubt::External(name.clone()))
    }

    fn routes(&self, site: &Name, mac: MacAddr, address: Ipv4Addr) -> Option<Doubt> {
        let users = self.routers.get(&(site, address))?;
        users.iter().find(|user| **user != mac).map(|user| Doubt::Router(*user))
    }

    fn held(&self, site: &Name, record: &SightingRecord, address: Ipv4Addr) -> Option<Doubt> {
        let place = |gateway| self.model.gateways.get(gateway).map(|gateway| &gateway.site);
        let device = self.model.devices.values().find(|device| {
            let at = &device.attachment;
            // One that is confirmed anew, as after a move, has its own.
            at.mac != record.sighting.mac
                && at.vlan == record.sighting.vlan
                && place(&at.gateway) == Some(site)
                && device
                    .addresses
                    .iter()
                    .any(|net| net.prefix_len() == 32 && net.addr() == address)
        });
        let client = || {
            let mut clients = self.model.clients.values();
            clients.find(|client| client.site == *site && client.address == address)
        };
        let name = device.map(|device| &device.name);
        name.or_else(|| client().map(|client| &client.name)).map(|name| Doubt::Member(name.clone()))
    }

    /// Conversations with the address that weren't with this device. One that began before the device came may have been with
    /// it, at another place, if it has spoken from the address since.
    fn answered(&self, site: &Name, record: &SightingRecord, address: Ipv4Addr) -> Option<Doubt> {
        let (mac, local) = (record.sighting.mac, IpAddr::V4(address));
        let own = self.own.get(&(record.gateway, mac, local))?;
        let told = |moment: UnixMillis| moment.0.saturating_add(LAG) < self.now.0;
        let since = UnixMillis(record.first_seen.0.saturating_add(LAG));
        let foreign = |spoken: &&Spoken| {
            let (gateway, other, _) = spoken.by;
            let mirrored = own.contains_key(&spoken.with)
                // A gateway may tell of what passes between two of its ports once.
                || (gateway == record.gateway && !own.is_empty());
            let here = own.is_empty() || (spoken.last > since && told(since));
            other != mac && !mirrored && here && told(spoken.first)
        };
        let spoken = self.others.get(&(site, local))?.iter().find(foreign)?;
        let (_, other, from) = spoken.by;
        Some(Doubt::Answered(other, from))
    }
}

/// Whether an address that was seen can be a device's own at all.
fn may_be_own(address: &Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_loopback())
}

#[cfg(test)]
mod tests;
