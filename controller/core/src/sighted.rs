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
use anteroom_proto::verdict::Verdict;

use crate::model::Model;
use crate::policy::Policy;

/// How long gateways may differ in what they have reported of one conversation, in milliseconds.
const LAG: u64 = 10 * 60 * 1000;
/// Externals whose prefixes are longer than this are servers, and others networks in which devices may well be.
const NETWORK: u8 = 28;
/// Most conversations that are kept of one address, of its own as of others'. A gateway's part of the history is far smaller,
/// and where there are more nothing is concluded from what isn't among them.
const MOST: usize = 65_536;

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
    /// What is at this Ethernet address, with this address, spoke with it at the device's own gateway, which doesn't tell with whom at it.
    Untold(MacAddr, IpAddr),
    /// What is at this Ethernet address speaks from it, too.
    Spoken(MacAddr),
    /// More conversations were recorded with it than are compared.
    Many,
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
                write!(
                    f,
                    "{address} ({mac}) spoke with it, and no gateway tells that it was this device that answered"
                )
            }
            Self::Untold(mac, address) => write!(
                f,
                "{address} ({mac}) spoke with it, it may be with this device, but no rule opens that, and of such traffic a gateway doesn't tell \
                 whether it stayed at its ports"
            ),
            Self::Spoken(mac) => write!(f, "{mac} speaks from it, too"),
            Self::Many => write!(
                f,
                "more than {MOST} conversations were recorded with it, which are too many to tell whose it is"
            ),
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

/// Where a gateway says that a conversation went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Went {
    /// To another of its ports.
    Across,
    /// It isn't told: where an end is in protect and no rule opens it, that is all that a gateway says of it.
    Untold,
    /// To the uplink.
    Up,
}

impl Went {
    const fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Local => Self::Across,
            Verdict::WouldDrop(_) => Self::Untold,
            _ => Self::Up,
        }
    }
}

/// A conversation that somebody had with an address: who, with what of it, and where that was.
type Spoken = (GatewayId, MacAddr, With, Went);

/// When conversations were.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: UnixMillis,
    last: UnixMillis,
}

impl Span {
    fn of(edge: &Edge) -> Self {
        Self { first: edge.first, last: edge.last }
    }

    fn add(&mut self, more: Self) {
        self.first = self.first.min(more.first);
        self.last = self.last.max(more.last);
    }
}

/// At most [`MOST`] of something, and whether there was more.
#[derive(Debug)]
struct Kept<K, V> {
    known: BTreeMap<K, V>,
    cut: bool,
}

impl<K: Ord, V> Kept<K, V> {
    const fn new() -> Self {
        Self { known: BTreeMap::new(), cut: false }
    }

    /// What is known of one, `new` where nothing is; none where there is no room.
    fn entry(&mut self, key: K, new: V) -> Option<&mut V> {
        if self.known.len() >= MOST && !self.known.contains_key(&key) {
            self.cut = true;
            return None;
        }
        Some(self.known.entry(key).or_insert(new))
    }
}

/// What is known of an address, of one at a site.
#[derive(Debug)]
struct Around {
    /// The conversations that were had with it.
    with: Kept<Spoken, Span>,
    /// Who spoke from it.
    from: Kept<MacAddr, Span>,
}

/// What of the conversations with an address speaks against a device's having it.
enum Finding {
    Against(Doubt),
    /// Some may have been with somebody else.
    Unsure,
    Nothing,
}

/// What is known of addresses that devices were seen with.
#[derive(Debug)]
pub struct Sighted<'a> {
    model: &'a Model,
    policy: Option<&'a Policy>,
    now: UnixMillis,
    routers: BTreeMap<(&'a Name, Ipv4Addr), BTreeSet<MacAddr>>,
    /// Ends that are asked for, with the flows of each that were answered.
    own: BTreeMap<End, Kept<With, u64>>,
    /// What others had, by site and address.
    others: BTreeMap<(&'a Name, IpAddr), Around>,
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
                own.insert((record.gateway, record.sighting.mac, address), Kept::new());
                let around = Around { with: Kept::new(), from: Kept::new() };
                others.insert((&gateway.site, address), around);
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
        if let Some(own) = self.own.get_mut(&end)
            && let Some(flows) = own.entry((edge.remote, edge.protocol, edge.port), 0)
        {
            *flows = flows.saturating_add(edge.flows);
        }
        let Some(gateway) = self.model.gateways.get(&edge.gateway) else { return };
        let span = Span::of(edge);
        if let Some(around) = self.others.get_mut(&(&gateway.site, edge.remote)) {
            let with = (edge.local, edge.protocol, edge.port);
            let spoken = (edge.gateway, edge.mac, with, Went::of(edge.verdict));
            if let Some(known) = around.with.entry(spoken, span) {
                known.add(span);
            }
        }
        if let Some(around) = self.others.get_mut(&(&gateway.site, edge.local))
            && let Some(known) = around.from.entry(edge.mac, span)
        {
            known.add(span);
        }
    }

    /// Which address of a device is taken: of those that nobody else is known to have, the one that it spoke most from, and
    /// of those that it spoke from one that nobody else can have spoken from before one that somebody may have.
    #[must_use]
    pub fn choose(&self, record: &SightingRecord) -> Chosen {
        let mut chosen = Chosen::default();
        let mut free: Vec<(bool, bool, u64, Ipv4Addr)> = Vec::new();
        for address in record.sighting.addresses.iter().copied().filter(may_be_own) {
            match self.found(record, address) {
                Finding::Against(doubt) => chosen.left.push((address, doubt)),
                found => {
                    let flows = self.flows(record, address);
                    free.push((flows == 0, matches!(found, Finding::Unsure), flows, address));
                }
            }
        }
        free.sort_by_key(|(silent, unsure, flows, _)| {
            (*silent, *unsure, std::cmp::Reverse(*flows))
        });
        let mut free = free.into_iter().map(|(.., address)| address);
        chosen.address = free.next();
        if let Some(first) = chosen.address {
            chosen.left.extend(free.map(|address| (address, Doubt::Second(first))));
        }
        chosen
    }

    fn flows(&self, record: &SightingRecord, address: Ipv4Addr) -> u64 {
        let end = (record.gateway, record.sighting.mac, IpAddr::V4(address));
        self.own
            .get(&end)
            .map_or(0, |own| own.known.values().fold(0, |sum, n| sum.saturating_add(*n)))
    }

    fn found(&self, record: &SightingRecord, address: Ipv4Addr) -> Finding {
        let Some(gateway) = self.model.gateways.get(&record.gateway) else {
            return Finding::Nothing;
        };
        let site = &gateway.site;
        self.reserved(site, address)
            .or_else(|| self.routes(site, record.sighting.mac, address))
            .or_else(|| self.held(site, record, address))
            .map_or_else(|| self.answered(site, record, address), Finding::Against)
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
    fn answered(&self, site: &Name, record: &SightingRecord, address: Ipv4Addr) -> Finding {
        let (mac, local) = (record.sighting.mac, IpAddr::V4(address));
        let own = self.own.get(&(record.gateway, mac, local));
        let (Some(own), Some(around)) = (own, self.others.get(&(site, local))) else {
            return Finding::Nothing;
        };
        let silent = own.known.is_empty();
        let told = |moment: UnixMillis| moment.0.saturating_add(LAG) < self.now.0;
        let since = UnixMillis(record.first_seen.0.saturating_add(LAG));
        let here = |span: &Span| silent || (span.last > since && told(since));
        let mut speakers = around.from.known.iter();
        if let Some((other, _)) = speakers.find(|(other, span)| **other != mac && here(span)) {
            return Finding::Against(Doubt::Spoken(*other));
        }
        // A gateway may have watched while no controller was there to be told of it.
        let came = record.first_seen.min(record.sighting.first_seen);
        let (mut unsure, mut untold) = (false, None);
        for ((gateway, other, with, went), span) in &around.with.known {
            if *other == mac || own.known.contains_key(with) || !told(span.first) {
                continue;
            }
            // A gateway may tell of what passes between two of its ports once. What began before the device was there, or
            // went to the uplink, wasn't with it.
            let once =
                *gateway == record.gateway && !silent && span.first.0.saturating_add(LAG) >= came.0;
            if here(span) && !(once && *went == Went::Across) {
                let doubt = match went {
                    _ if own.cut => Doubt::Many,
                    Went::Untold if once => Doubt::Untold(*other, with.0),
                    _ => Doubt::Answered(*other, with.0),
                };
                // What is sure is said rather than what isn't.
                if !matches!(doubt, Doubt::Untold(..)) {
                    return Finding::Against(doubt);
                }
                untold.get_or_insert(doubt);
                continue;
            }
            unsure = true;
        }
        if around.with.cut || around.from.cut {
            return Finding::Against(Doubt::Many);
        }
        if let Some(doubt) = untold {
            return Finding::Against(doubt);
        }
        if unsure { Finding::Unsure } else { Finding::Nothing }
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
