//! What is likely still to come and that no rule opens: said of a device before it is enforced, and no reason against that.
//!
//! Where something was seen on one day only, more like it has probably not been seen at all (the Good-Turing estimate that
//! [`crate::suggest`] learns by, too). So pairs that were seen once, and that the policy doesn't open, are counted by the class of either end,
//! the side and the service. What nobody of a class was ever seen to do, no count foretells.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use anteroom_proto::id::MemberId;
use anteroom_proto::service::{PortMatch, Protocol};

use crate::decide::{Flow, Party, candidates, is_infrastructure};
use crate::history::{Edge, History, Way};
use crate::resolve::Resolved;

/// Most kinds that are said of one device.
const MOST: usize = 8;
/// To one pair that was seen on several days there may be so many that were seen on one, for it to be a way of the class and not somebody's scan.
const ONCE_TO_REPEATED: u64 = 9;
/// What share of a class must have been seen once at something for the others to be told of it.
const FEWEST: f64 = 0.005;
/// Where the dynamic ports begin (RFC 6335): they are one service here.
const DYNAMIC: u16 = 49152;

/// A kind of conversation of which new pairs are likely still to come, and dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unforeseen {
    /// Whether the device would open.
    pub opens: bool,
    /// The service.
    pub service: PortMatch,
    /// The class, or the name, of most of the others.
    pub with: String,
    /// Pairs that were seen on one day and that no rule opens.
    pub pairs: u64,
    /// Whether this device has such a pair, and not only others of its class.
    pub own: bool,
}

impl fmt::Display for Unforeseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { opens, service, with, pairs, own } = self;
        let way = if *opens { "opened to" } else { "opened to it by" };
        let pairs = if *pairs == 1 { "1 pair".to_owned() } else { format!("{pairs} pairs") };
        let whose = if *own { "" } else { " of its class" };
        write!(f, "{service} {way} {with} ({pairs}{whose} seen on one day, in no rule)")
    }
}

/// A side of a service.
type Kind = (bool, PortMatch);

#[derive(Debug, Default)]
struct Tally {
    repeated: u64,
    once: u64,
    /// With whom the pairs were that were seen once.
    with: BTreeMap<u32, u64>,
}

impl Tally {
    fn add(&mut self, far: u32, once: bool) {
        if once {
            self.once += 1;
            *self.with.entry(far).or_default() += 1;
        } else {
            self.repeated += 1;
        }
    }

    fn with(&self) -> u32 {
        let most = self.with.iter().max_by_key(|(class, count)| (**count, u32::MAX - **class));
        most.map_or(0, |(class, _)| *class)
    }
}

/// Classes by number.
#[derive(Default)]
struct Classes {
    names: Vec<String>,
    numbers: BTreeMap<String, u32>,
    of: HashMap<Party, u32>,
}

impl Classes {
    fn number(&mut self, party: Party, name: &dyn Fn(Party) -> String) -> u32 {
        if let Some(number) = self.of.get(&party) {
            return *number;
        }
        let name = name(party);
        let next = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(name.clone()).or_insert(next);
        if number == next {
            self.names.push(name);
        }
        self.of.insert(party, number);
        number
    }
}

/// What is likely still to come of each device that has any such, as of day `today`. `class` names what a party is.
pub(super) fn unforeseen(
    resolved: &Resolved,
    history: &History,
    today: u32,
    class: &dyn Fn(Party) -> String,
) -> BTreeMap<MemberId, Vec<Unforeseen>> {
    let mut classes = Classes::default();
    let mut by_class: HashMap<(u32, Kind), Tally> = HashMap::new();
    let mut by_device: HashMap<MemberId, BTreeMap<Kind, Tally>> = HashMap::new();
    for edge in history.edges().filter(is_evidence) {
        let first = if edge.port >= DYNAMIC { DYNAMIC } else { edge.port };
        let last = if edge.port >= DYNAMIC { u16::MAX } else { edge.port };
        let service = PortMatch { protocol: edge.protocol, first, last };
        let once = edge.rhythm.days_before(today).count_ones() == 1;
        if once && is_open(resolved, &edge) {
            continue;
        }
        for (own, far, opens) in [(edge.from, edge.to, true), (edge.to, edge.from, false)] {
            let Party::Member(id) = own else { continue };
            let far = classes.number(far, class);
            let kind = (opens, service);
            by_class.entry((classes.number(own, class), kind)).or_default().add(far, once);
            if once {
                by_device.entry(id).or_default().entry(kind).or_default().add(far, once);
            }
        }
    }
    let mut members: HashMap<u32, u64> = HashMap::new();
    for id in resolved.model.devices.keys() {
        *members.entry(classes.number(Party::Member(*id), class)).or_default() += 1;
    }
    let mut likely: HashMap<u32, BTreeMap<Kind, &Tally>> = HashMap::new();
    for ((class, kind), tally) in &by_class {
        let size = members.get(class).copied().unwrap_or(1);
        let is_its_way = tally.once > 0
            && tally.once <= ONCE_TO_REPEATED.saturating_mul(tally.repeated)
            && tally.once as f64 >= FEWEST * size as f64;
        if is_its_way {
            likely.entry(*class).or_default().insert(*kind, tally);
        }
    }
    let mut found = BTreeMap::new();
    for id in resolved.model.devices.keys() {
        let own = by_device.get(id);
        let number = classes.number(Party::Member(*id), class);
        let of_class = likely.get(&number);
        let kinds: BTreeSet<Kind> = own
            .into_iter()
            .flat_map(BTreeMap::keys)
            .chain(of_class.into_iter().flat_map(BTreeMap::keys))
            .copied()
            .collect();
        let mut list: Vec<Unforeseen> = kinds
            .into_iter()
            .filter_map(|kind| {
                let mine = own.and_then(|own| own.get(&kind));
                let tally = mine.or_else(|| of_class.and_then(|all| all.get(&kind)).copied())?;
                let with = classes.names.get(tally.with() as usize).cloned().unwrap_or_default();
                let (opens, service) = kind;
                Some(Unforeseen { opens, service, with, pairs: tally.once, own: mine.is_some() })
            })
            .collect();
        list.sort_by_key(|one| (!one.own, u64::MAX - one.pairs, one.opens, one.service));
        list.truncate(MOST);
        if !list.is_empty() {
            found.insert(*id, list);
        }
    }
    found
}

/// Whether it passed, and somebody answered or nothing tells.
fn is_evidence(edge: &Edge) -> bool {
    edge.way != Way::Dropped
        && (edge.answered() || edge.protocol == Protocol::Udp)
        && (edge.port != 0 || edge.protocol == Protocol::IcmpEcho)
}

/// Whether a rule or infrastructure opens it.
fn is_open(resolved: &Resolved, edge: &Edge) -> bool {
    let Edge { from, to, protocol, port, .. } = *edge;
    let flow = Flow { from, to, protocol, port };
    let device = match from {
        Party::Member(id) => resolved.model.devices.get(&id),
        Party::Address(_) => None,
    };
    is_ruled(resolved, &flow)
        || device
            .is_some_and(|device| is_infrastructure(resolved, device.attachment.gateway, &flow))
}

/// Whether a rule opens it.
pub(super) fn is_ruled(resolved: &Resolved, flow: &Flow) -> bool {
    let mut open = false;
    candidates(resolved, flow, &mut |_, _| open = true);
    open
}
