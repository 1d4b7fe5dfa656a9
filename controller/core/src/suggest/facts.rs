//! What the history says, in numbers: parties, services, pairs, and the ladder of cells that each party stands on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anteroom_proto::id::MemberId;
use anteroom_proto::name::Name;
use anteroom_proto::service::{PortMatch, Protocol};
use anteroom_proto::time::UnixMillis;
use ipnet::Ipv4Net;

use super::RecognisedClasses;
use super::infrastructure::ServerKind;
use super::opened::{Open, Opened};
use crate::decide::{Flow, Party, is_infrastructure};
use crate::history::{Edge, History, Way};
use crate::resolve::Resolved;

/// Rungs of the ladder: itself, its place, its site, its class.
pub(super) const RUNGS: usize = 4;
/// Where the dynamic ports begin (RFC 6335).
const DYNAMIC: u16 = 49152;
/// From how many dynamic ports of one responder on they are one service.
const FEW_PORTS: usize = 4;
/// The label that names a device's class.
pub(super) const CLASS: &str = "class";
/// The label that names a device's place.
pub(super) const LOCATION: &str = "location";

/// One who opened, one who answered, and a service.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) service: u32,
    pub(super) flows: u64,
    /// Days as bits, counted back from the history's last.
    pub(super) days: u64,
    pub(super) first: UnixMillis,
    pub(super) last: UnixMillis,
    /// Hours of the day with traffic on any day.
    pub(super) hours: u8,
    pub(super) weekend: bool,
}

impl Pair {
    /// Adds what was seen of another one.
    pub(super) fn add(&mut self, more: &Self) {
        self.flows = self.flows.saturating_add(more.flows);
        self.days |= more.days;
        self.first = self.first.min(more.first);
        self.last = self.last.max(more.last);
        self.hours = self.hours.max(more.hours);
        self.weekend |= more.weekend;
    }
}

/// Somebody who called and wasn't answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unanswered {
    pub(super) from: u32,
    /// 0 where the flows went to many ports.
    pub(super) port: u16,
}

/// Where a class comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A label of confirmed devices.
    Label(String),
    /// One that belongs to nobody.
    Alone(MemberId),
    /// The addresses of one /24 without gateways.
    Network(Ipv4Addr),
}

/// How a place is known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Location(String),
    Subnet(Ipv4Net),
    Nowhere,
}

/// Parties that a rule can't but treat alike if it names their rung.
#[derive(Debug, Clone, Default)]
pub(super) struct Cell {
    /// Those in it, sorted.
    pub(super) parties: Vec<u32>,
    /// How many it opens to; a network's addresses count whether or not anything is there.
    pub(super) size: u64,
    /// The cells of the rung below in it.
    pub(super) below: Vec<u32>,
    /// Days on which its devices were seen, added up.
    pub(super) watched: f64,
}

/// Everything that was gathered.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Sorted; numbers stand for places in it.
    pub(super) parties: Vec<Party>,
    pub(super) services: Vec<PortMatch>,
    pub(super) pairs: Vec<Pair>,
    pub(super) unanswered: Vec<Unanswered>,
    /// Pairs that a rule opened whose end has come, seen since.
    pub(super) ran_out: Vec<Pair>,
    /// Pairs that weren't seen for as long as days are kept, so that nobody knows how they went.
    pub(super) long_ago: Vec<Pair>,
    /// What the policy opens, and opened.
    pub(super) opened: Opened,
    /// Of each party.
    pub(super) class: Vec<u32>,
    pub(super) kinds: Vec<Kind>,
    /// Members who got their class from their conversations.
    pub(super) adopted: BTreeSet<u32>,
    /// Members who got their class from what they were recognised as, and how sure that is in percent.
    pub(super) recognised: BTreeMap<u32, u8>,
    /// Cells by rung; the first rung's are the parties.
    pub(super) cells: [Vec<Cell>; RUNGS],
    /// The cells of each party.
    pub(super) ladder: Vec<[u32; RUNGS]>,
    /// How each place is known, by its number on the second rung.
    pub(super) places: Vec<Place>,
    /// Of each cell on the second rung the place itself, which cells of several classes share; none where it isn't known.
    pub(super) homes: Vec<Option<u32>>,
    /// Days on which each was seen, as bits.
    pub(super) watched: Vec<u64>,
    pub(super) no_evidence: usize,
    /// The history's last moment.
    pub(super) until: UnixMillis,
}

impl Facts {
    /// Parties, services and pairs of the history; what the policy opens already is left out of the pairs.
    pub(super) fn gather(
        resolved: &Resolved,
        history: &History,
        recognised: &RecognisedClasses,
    ) -> Self {
        let mut facts = Self::default();
        let Some((_, until)) = history.span() else { return facts };
        facts.until = until;
        let today = u32::try_from(until.0 / 86_400_000).unwrap_or(u32::MAX);
        let mut parties: BTreeSet<Party> = resolved
            .model
            .devices
            .keys()
            .chain(resolved.model.clients.keys())
            .map(|id| Party::Member(*id))
            .collect();
        let mut dynamic: BTreeMap<(Party, Protocol), BTreeSet<u16>> = BTreeMap::new();
        let mut services = BTreeSet::new();
        for edge in history.edges() {
            parties.extend([edge.from, edge.to]);
            if edge.port >= DYNAMIC && edge.answered() {
                let ports = dynamic.entry((edge.to, edge.protocol)).or_default();
                if ports.len() < FEW_PORTS {
                    ports.insert(edge.port);
                }
            }
        }
        facts.parties = parties.into_iter().collect();
        let service = |to: Party, protocol: Protocol, port: u16| {
            let many = port >= DYNAMIC
                && dynamic.get(&(to, protocol)).is_some_and(|ports| ports.len() >= FEW_PORTS);
            let (first, last) = if many { (DYNAMIC, u16::MAX) } else { (port, port) };
            PortMatch { protocol, first, last }
        };
        for edge in history.edges() {
            services.insert(service(edge.to, edge.protocol, edge.port));
        }
        facts.services = services.into_iter().collect();
        facts.watched = vec![0; facts.parties.len()];
        let open = Opened::of(resolved, &facts.parties, until);
        facts.pairs.reserve(history.len());
        for edge in history.edges() {
            let (Some(from), Some(to)) = (facts.number(edge.from), facts.number(edge.to)) else {
                continue;
            };
            let days = edge.rhythm.days_before(today);
            for end in [from, to] {
                facts.watched[end as usize] |= days;
            }
            if is_listed(resolved, &edge) {
                continue;
            }
            let matched = service(edge.to, edge.protocol, edge.port);
            let portless = edge.port == 0 && edge.protocol != Protocol::IcmpEcho;
            // Some services over UDP are never answered. Those of servers are.
            let one_way = edge.protocol == Protocol::Udp && ServerKind::of(matched).is_none();
            let silent = !one_way && !edge.answered();
            if (silent || portless) && days != 0 {
                facts.unanswered.push(Unanswered { from, port: edge.port });
            }
            if silent || portless || edge.way == Way::Dropped {
                facts.no_evidence += 1;
                continue;
            }
            let Ok(place) = facts.services.binary_search(&matched) else { continue };
            let pairs = match open.state(resolved, from, to, &matched) {
                Open::Closed if days == 0 => &mut facts.long_ago,
                Open::Closed => &mut facts.pairs,
                Open::Until(end) if edge.last >= end => &mut facts.ran_out,
                Open::Until(_) | Open::Now => continue,
            };
            pairs.push(Pair {
                from,
                to,
                service: u32::try_from(place).unwrap_or(u32::MAX),
                flows: edge.counts.flows,
                days,
                first: edge.first,
                last: edge.last,
                hours: u8::try_from(edge.rhythm.hours_of_day()).unwrap_or(24),
                weekend: edge.rhythm.weekend(),
            });
        }
        facts.opened = open;
        facts.unite();
        facts.classify(resolved, recognised);
        facts
    }

    fn number(&self, party: Party) -> Option<u32> {
        self.parties.binary_search(&party).ok().and_then(|place| u32::try_from(place).ok())
    }

    /// One pair for each two and service, though it went by several ways or ports.
    fn unite(&mut self) {
        for pairs in [&mut self.pairs, &mut self.ran_out, &mut self.long_ago] {
            pairs.sort_unstable_by_key(|pair| {
                (pair.from, pair.to, pair.service, pair.first, pair.flows, pair.days)
            });
            pairs.dedup_by(|more, kept| {
                let same = (more.from, more.to, more.service) == (kept.from, kept.to, kept.service);
                if same {
                    kept.add(more);
                }
                same
            });
        }
        let key = |pair: &Pair| (pair.from, pair.to, pair.service);
        let pairs = &self.pairs;
        self.long_ago.retain(|old| pairs.binary_search_by_key(&key(old), key).is_err());
    }

    fn classify(&mut self, resolved: &Resolved, recognised: &RecognisedClasses) {
        let mut taken = BTreeMap::new();
        let mut kind = |(place, party): (usize, &Party)| match party {
            Party::Address(address) => Kind::Network(network(*address).network()),
            Party::Member(id) => {
                let label = labels(resolved, *id).and_then(|labels| labels.get(CLASS));
                match (label, recognised.get(id)) {
                    (Some(class), _) => Kind::Label(class.clone()),
                    (None, Some((class, sure))) => {
                        taken.insert(u32::try_from(place).unwrap_or(u32::MAX), *sure);
                        Kind::Label(class.clone())
                    }
                    (None, None) => Kind::Alone(*id),
                }
            }
        };
        let all: Vec<Kind> = self.parties.iter().enumerate().map(&mut kind).collect();
        self.recognised = taken;
        self.kinds = all.iter().cloned().collect::<BTreeSet<Kind>>().into_iter().collect();
        let number = |kind: &Kind| self.kinds.binary_search(kind).unwrap_or_default();
        self.class = all.iter().map(|kind| u32::try_from(number(kind)).unwrap_or(0)).collect();
    }

    /// The highest rung that rules can name of a class.
    pub(super) fn top(&self, class: u32) -> usize {
        match self.kinds.get(class as usize) {
            Some(Kind::Label(_)) => RUNGS - 1,
            Some(Kind::Network(_)) => 1,
            _ => 0,
        }
    }

    /// Puts every party on its ladder.
    pub(super) fn build_cells(&mut self, resolved: &Resolved) {
        let mut numbers: [BTreeMap<CellKey, u32>; RUNGS] = Default::default();
        let mut homes: BTreeMap<(Option<Name>, Place), u32> = BTreeMap::new();
        self.ladder = vec![[0; RUNGS]; self.parties.len()];
        for (place, party) in self.parties.iter().enumerate() {
            let number = u32::try_from(place).unwrap_or(u32::MAX);
            let class = self.class[place];
            let (site, at) = match party {
                Party::Address(_) => (None, Place::Nowhere),
                Party::Member(id) => (resolved.site_of(*id).cloned(), location(resolved, *id)),
            };
            let keys = [
                (class, site.clone(), at),
                (class, site, Place::Nowhere),
                (class, None, Place::Nowhere),
            ];
            self.ladder[place][0] = number;
            let watched = f64::from(self.watched[place].count_ones());
            self.cells[0].push(Cell { parties: vec![number], size: 1, below: vec![], watched });
            let mut below = number;
            for (rung, key) in (1..RUNGS).zip(keys) {
                let cells = &mut self.cells[rung];
                let (site_of_key, place_of_key) = (key.1.clone(), key.2.clone());
                let known = numbers[rung].len();
                let cell = *numbers[rung].entry(key).or_insert(u32::try_from(known).unwrap_or(0));
                if cells.len() <= cell as usize {
                    cells.push(Cell::default());
                    if rung == 1 {
                        let next = u32::try_from(homes.len()).unwrap_or(u32::MAX);
                        let home = (place_of_key != Place::Nowhere).then(|| {
                            *homes.entry((site_of_key, place_of_key.clone())).or_insert(next)
                        });
                        self.homes.push(home);
                        self.places.push(place_of_key);
                    }
                }
                self.ladder[place][rung] = cell;
                let cell_of = &mut cells[cell as usize];
                cell_of.parties.push(number);
                cell_of.size += 1;
                cell_of.watched += watched;
                cell_of.below.push(below);
                below = cell;
            }
        }
        for cells in &mut self.cells[1..] {
            for cell in cells {
                cell.below.sort_unstable();
                cell.below.dedup();
            }
        }
        // Of a network outside nobody knows who else is in it.
        for (place, class) in self.class.iter().enumerate() {
            if matches!(self.kinds.get(*class as usize), Some(Kind::Network(_))) {
                let cell = &mut self.cells[1][self.ladder[place][1] as usize];
                cell.size = size_of(hull(&self.parties, &cell.parties));
            }
        }
    }

    /// The cell above one.
    pub(super) fn above(&self, rung: usize, cell: u32) -> u32 {
        let first = self.cells[rung][cell as usize].parties[0];
        self.ladder[first as usize][rung + 1]
    }
}

/// What tells cells of one rung apart: class, site, place.
type CellKey = (u32, Option<Name>, Place);

/// Whether a device opens it to a server of its site's infrastructure, as the policy has it.
fn is_listed(resolved: &Resolved, edge: &Edge) -> bool {
    let Party::Member(from) = edge.from else { return false };
    let Edge { from: opener, to, protocol, port, .. } = *edge;
    let flow = Flow { from: opener, to, protocol, port };
    let device = resolved.model.devices.get(&from);
    device.is_some_and(|device| is_infrastructure(resolved, device.attachment.gateway, &flow))
}

/// The labels of a member.
pub(super) fn labels(resolved: &Resolved, id: MemberId) -> Option<&BTreeMap<Name, String>> {
    let device = resolved.model.devices.get(&id).map(|device| &device.labels);
    device.or_else(|| resolved.model.clients.get(&id).map(|client| &client.labels))
}

/// Where a member is, by label or subnet.
fn location(resolved: &Resolved, id: MemberId) -> Place {
    if let Some(label) = labels(resolved, id).and_then(|labels| labels.get(LOCATION)) {
        return Place::Location(label.clone());
    }
    let device = resolved.model.devices.get(&id);
    let address = device
        .and_then(|device| device.addresses.first().map(|net| (net.addr(), device.prefix_len)))
        .or_else(|| resolved.model.clients.get(&id).map(|client| (client.address, None)));
    address.map_or(Place::Nowhere, |(address, len)| {
        let len = len.filter(|len| (16..=30).contains(len)).unwrap_or(24);
        Place::Subnet(Ipv4Net::new(address, len).unwrap_or_default().trunc())
    })
}

/// The /24 of an address.
fn network(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::new(address, 24).unwrap_or_default().trunc()
}

/// The smallest network that holds these addresses.
pub(super) fn hull(parties: &[Party], numbers: &[u32]) -> Ipv4Net {
    let addresses = numbers.iter().filter_map(|number| match parties[*number as usize] {
        Party::Address(address) => Some(u32::from(address)),
        Party::Member(_) => None,
    });
    let (mut low, mut high) = (u32::MAX, 0);
    for address in addresses {
        (low, high) = (low.min(address), high.max(address));
    }
    let len = u8::try_from((low.min(high) ^ high).leading_zeros()).unwrap_or(32);
    Ipv4Net::new(high.into(), len).unwrap_or_default().trunc()
}

fn size_of(net: Ipv4Net) -> u64 {
    1 << (32 - u32::from(net.prefix_len()))
}
