//! A suggestion, exact edges, and a rule for each two subnets, held against the true policy.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::Ipv4Addr;

use anteroom_controller_core::coverage::{Wanted, coverage};
use anteroom_controller_core::decide::Party;
use anteroom_controller_core::history::{Edge, History};
use anteroom_controller_core::resolve::Resolved;
use anteroom_proto::rhythm::Rhythm;
use anteroom_proto::service::Protocol;

use crate::world::{HISTORY, World, Wrong, morning};

/// A service as pairs are counted by.
pub type Service = (Protocol, u16);

/// What a policy does with held-out weeks, and what it opens.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// Which policy.
    pub name: String,
    /// Pairs (from, to, service) that it opens.
    pub pairs: u64,
    /// Those of them that the true policy doesn't have.
    pub beyond: u64,
    /// Legitimate flows of the held-out weeks.
    pub flows: u64,
    /// Those of them that it blocks, of devices that were watched long enough to be enforced.
    pub blocked: u64,
    /// Those of them with a device that was watched too little, which is kept from being enforced.
    pub uncovered: u64,
    /// Edges that the blocked flows of the other devices were, sorted.
    pub blocked_edges: Vec<Blocked>,
    /// Flows of misconfigured and infected devices that it lets through.
    pub wrong_passed: u64,
    /// All of those.
    pub wrong: u64,
    /// What was blocked most: class and service, with flows.
    pub worst: Vec<(String, u64)>,
}

/// An edge that would have been blocked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blocked {
    /// Who opened it.
    pub from: Party,
    /// To whom.
    pub to: Party,
    /// What.
    pub service: Service,
    /// On how many of the held-out days.
    pub days: usize,
    /// Whether the coverage of one of its ends had said that more of the kind may come.
    pub told: bool,
}

impl Blocked {
    /// Whether it isn't rare.
    #[must_use]
    pub const fn is_often(&self) -> bool {
        self.days > OFTEN
    }
}

impl Row {
    /// Blocked edges that aren't rare.
    #[must_use]
    pub fn blocked_often(&self) -> usize {
        self.blocked_edges.iter().filter(|edge| edge.is_often()).count()
    }

    /// Blocked edges of which no coverage had said anything.
    #[must_use]
    pub fn blocked_untold(&self) -> usize {
        self.blocked_edges.iter().filter(|edge| !edge.told).count()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |part: u64, all: u64| 100.0 * part as f64 / all.max(1) as f64;
        write!(
            f,
            "{:<14} {:>12} {:>12} {:>10} {:>9.4} % {:>8} {:>8} {:>8} {:>10} {:>8.1} %",
            self.name,
            self.pairs,
            self.beyond,
            self.blocked,
            share(self.blocked, self.flows),
            self.blocked_edges.len(),
            self.blocked_often(),
            self.blocked_untold(),
            self.uncovered,
            share(self.wrong_passed, self.wrong)
        )
    }
}

/// On how many of the held-out days an edge is still rare.
const OFTEN: usize = 2;

/// The heading of [`Row`]s.
pub const HEADING: &str = "policy                pairs  beyond true    blocked  of flows    edges    often   untold  uncovered  wrong let in";

/// The history of the first eight weeks.
#[must_use]
pub fn history(world: &World, limit: usize) -> History {
    let mut history = History::new(limit);
    // Gateways report all the time, traffic or not.
    let mut always = Rhythm::default();
    always.record(morning(0), morning(HISTORY - 1));
    for gateway in world.model.gateways.keys() {
        history.watched(*gateway, &always);
    }
    world.days(0..HISTORY, |seen, _| {
        history.add(seen);
        // The gateways of both ends tell of it, where they are there yet: who scans asks for devices that aren't.
        for end in [seen.from, seen.to] {
            if let Party::Member(id) = end
                && let Some(device) = world.model.devices.get(&id)
                && device.confirmed_at <= seen.first
            {
                history.told_of(id, device.attachment.gateway, (seen.first, seen.last));
            }
        }
    });
    history
}

/// What coverage says before anything is enforced.
#[derive(Debug, Clone, Default)]
pub struct Covered {
    /// Devices that were watched too little to be enforced.
    pub uncovered: HashSet<Party>,
    /// Of how many of them each thing is missing, in words.
    missing: BTreeMap<String, usize>,
    /// Of which device more is expected: as the one that opens or not, and with which service.
    unforeseen: HashSet<(Party, bool, Service)>,
}

impl Covered {
    /// What is said where `resolved` has the policy that is to be enforced.
    #[must_use]
    pub fn of(resolved: &Resolved, history: &History) -> Self {
        let now = history.span().unwrap_or_default().1;
        let mut covered = Self::default();
        for (id, found) in coverage(resolved, history, &Wanted::default(), now) {
            let party = Party::Member(id);
            if !found.enough {
                covered.uncovered.insert(party);
                let missing: BTreeSet<String> =
                    found.missing.iter().map(ToString::to_string).collect();
                missing.into_iter().for_each(|what| *covered.missing.entry(what).or_default() += 1);
            }
            covered.unforeseen.extend(
                found
                    .unforeseen
                    .iter()
                    .map(|one| (party, one.opens, (one.service.protocol, one.service.first))),
            );
        }
        covered
    }

    /// What is missing most often of devices that were watched too little.
    pub fn worst(&self) -> Vec<(&str, usize)> {
        let mut all: Vec<_> =
            self.missing.iter().map(|(what, count)| (what.as_str(), *count)).collect();
        all.sort_by_key(|(what, count)| (std::cmp::Reverse(*count), *what));
        all.truncate(8);
        all
    }

    fn told(&self, from: Party, to: Party, service: Service) -> bool {
        self.unforeseen.contains(&(from, true, service))
            || self.unforeseen.contains(&(to, false, service))
    }
}

/// Measures a policy that answers by `opens`.
pub fn hold_out(
    world: &World,
    name: &str,
    covered: &Covered,
    mut opens: impl FnMut(Party, Party, Service) -> bool,
) -> Row {
    let mut row = Row { name: name.to_owned(), ..Row::default() };
    let mut known: HashMap<(Party, Party, Service), bool> = HashMap::new();
    let mut blocked: HashMap<(Party, Party, Service), BTreeSet<u64>> = HashMap::new();
    let mut worst: HashMap<String, u64> = HashMap::new();
    world.days(HISTORY..HISTORY + 14, |seen, wrong| {
        let key = (seen.from, seen.to, (seen.protocol, seen.port));
        let open = *known.entry(key).or_insert_with(|| opens(key.0, key.1, key.2));
        let flows = seen.counts.flows;
        match wrong {
            Some(Wrong::Misconfigured | Wrong::Infected) => {
                row.wrong += flows;
                row.wrong_passed += if open { flows } else { 0 };
            }
            None => {
                row.flows += flows;
                if !open {
                    if covered.uncovered.contains(&seen.from)
                        || covered.uncovered.contains(&seen.to)
                    {
                        row.uncovered += flows;
                        return;
                    }
                    row.blocked += flows;
                    blocked.entry(key).or_default().insert(seen.first.0 / 86_400_000);
                    let class = |party: Party| world.class(party);
                    let what = format!(
                        "{} > {} {:?}/{}",
                        class(seen.from),
                        class(seen.to),
                        seen.protocol,
                        seen.port
                    );
                    *worst.entry(what).or_default() += flows;
                }
            }
        }
    });
    row.blocked_edges = blocked
        .into_iter()
        .map(|((from, to, service), days)| {
            let told = covered.told(from, to, service);
            Blocked { from, to, service, days: days.len(), told }
        })
        .collect();
    row.blocked_edges.sort_unstable();
    row.worst = worst.into_iter().collect();
    row.worst.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    row
}

/// Pairs of the true policy.
#[must_use]
pub fn wanted_pairs(world: &World) -> u64 {
    let mut pairs = 0;
    world.wanted(|_, _, _, _| pairs += 1);
    pairs
}

/// All pairs of two members over any service that the hospital uses: what a flat network opens.
#[must_use]
pub fn flat_pairs(world: &World) -> u64 {
    let mut services: HashSet<Service> = HashSet::new();
    world.wanted(|_, _, protocol, port| {
        services.insert((protocol, port));
    });
    let members = world.len() as u64;
    members * (members - 1) * services.len() as u64
}

/// A policy of the program's own kind.
#[must_use]
pub fn policy(world: &World, name: &str, resolved: &Resolved, covered: &Covered) -> Row {
    let opens = |from: Party, to: Party, (protocol, port): Service| {
        allows(resolved, from, to, protocol, port)
    };
    let mut row = hold_out(world, name, covered, opens);
    // By who opens: members, and addresses outside one by one.
    let mut by_from: HashMap<Party, Vec<usize>> = HashMap::new();
    for (place, rule) in resolved.rules.iter().enumerate() {
        for party in parties(resolved, resolved.side(rule.from)) {
            by_from.entry(party).or_default().push(place);
        }
    }
    let sides: Vec<Vec<Party>> =
        resolved.rules.iter().map(|rule| parties(resolved, resolved.side(rule.to))).collect();
    for (from, rules) in by_from {
        let mut open: HashSet<(Party, Service)> = HashSet::new();
        for place in rules {
            for to in sides[place].iter().filter(|to| **to != from) {
                for port in &resolved.rules[place].ports {
                    open.insert((*to, (port.protocol, port.first)));
                }
            }
        }
        row.pairs += open.len() as u64;
        row.beyond += open
            .iter()
            .filter(|(to, (protocol, port))| !world.is_wanted(from, *to, *protocol, *port))
            .count() as u64;
    }
    let served = infrastructure(world, resolved);
    row.pairs += served;
    row
}

/// Pairs that infrastructure opens and the true policy has too: it is every device's, so it counts as what is wanted of it.
fn infrastructure(world: &World, resolved: &Resolved) -> u64 {
    let mut pairs = 0;
    world.wanted(|_, to, protocol, port| {
        pairs += u64::from(is_infrastructure(resolved, to, protocol, port));
    });
    pairs
}

fn is_infrastructure(resolved: &Resolved, to: Party, protocol: Protocol, port: u16) -> bool {
    let Party::Address(address) = to else { return false };
    resolved.policy.infrastructure.values().any(|found| match (protocol, port) {
        (Protocol::Udp, 53) => found.dns.contains(&address),
        (Protocol::Udp, 123) => found.ntp.contains(&address),
        _ => false,
    })
}

fn parties(resolved: &Resolved, side: &anteroom_controller_core::resolve::Side) -> Vec<Party> {
    let mut found: Vec<Party> = side.members.iter().map(|id| Party::Member(*id)).collect();
    for external in side.externals.iter().filter_map(|name| resolved.policy.externals.get(name)) {
        for prefix in &external.prefixes {
            let low = u32::from(prefix.network());
            found.extend(
                (low..=u32::from(prefix.broadcast())).map(|address| Party::Address(address.into())),
            );
        }
    }
    found
}

/// Whether a rule or infrastructure opens this.
#[must_use]
pub fn allows(resolved: &Resolved, from: Party, to: Party, protocol: Protocol, port: u16) -> bool {
    let holds = |side| match to {
        Party::Member(id) => resolved.side(side).members.binary_search(&id).is_ok(),
        Party::Address(address) => resolved.external_holds(side, address),
    };
    let by = |place: &usize| {
        let rule = &resolved.rules[*place];
        rule.opens(protocol, port) && holds(rule.to)
    };
    let rules = match from {
        Party::Member(id) => {
            resolved.sides_of(id).iter().any(|side| resolved.side(*side).from_rules.iter().any(by))
        }
        Party::Address(address) => resolved
            .sides()
            .filter(|(id, side)| {
                !side.externals.is_empty() && resolved.external_holds(*id, address)
            })
            .any(|(_, side)| side.from_rules.iter().any(by)),
    };
    rules || is_infrastructure(resolved, to, protocol, port)
}

/// Every edge that was answered, and nothing else.
#[must_use]
pub fn exact(world: &World, history: &History, covered: &Covered) -> Row {
    let seen: HashSet<(Party, Party, Service)> = history
        .edges()
        .filter(Edge::answered)
        .map(|edge| (edge.from, edge.to, (edge.protocol, edge.port)))
        .collect();
    let mut row = hold_out(world, "exact edges", covered, |from, to, service| {
        seen.contains(&(from, to, service))
    });
    row.pairs = seen.len() as u64;
    let wanted = |(from, to, (protocol, port)): &&(Party, Party, Service)| {
        world.is_wanted(*from, *to, *protocol, *port)
    };
    row.beyond = row.pairs - seen.iter().filter(wanted).count() as u64;
    row
}

/// For each two subnets the services that were seen between them.
#[must_use]
pub fn subnets(world: &World, history: &History, covered: &Covered) -> Row {
    let mut members: HashMap<u32, HashSet<Party>> = HashMap::new();
    let mut homes: HashMap<Party, u32> = HashMap::new();
    for (id, device) in &world.model.devices {
        let home = device.addresses.first().map_or(0, |net| u32::from(net.addr()) >> 8);
        homes.insert(Party::Member(*id), home);
        members.entry(home).or_default().insert(Party::Member(*id));
    }
    let home = |party: Party| match party {
        Party::Address(address) => u32::from(address) >> 8,
        Party::Member(_) => homes.get(&party).copied().unwrap_or(0),
    };
    let open: HashSet<(u32, u32, Service)> = history
        .edges()
        .filter(Edge::answered)
        .map(|edge| (home(edge.from), home(edge.to), (edge.protocol, edge.port)))
        .collect();
    let mut row = hold_out(world, "subnet pairs", covered, |from, to, service| {
        open.contains(&(home(from), home(to), service))
    });
    let size = |home: u32| members.get(&home).map_or(256, |members| members.len() as u64);
    row.pairs = open
        .iter()
        .map(|(from, to, _)| size(*from) * size(*to) - if from == to { size(*from) } else { 0 })
        .sum();
    let mut wanted = 0;
    world.wanted(|from, to, protocol, port| {
        wanted += u64::from(open.contains(&(home(from), home(to), (protocol, port))));
    });
    row.beyond = row.pairs - wanted;
    row
}

impl World {
    /// A party, and what is odd about it.
    #[must_use]
    pub fn describe(&self, party: Party) -> String {
        let Some(place) = self.place_of.get(&party) else { return self.class(party) };
        let truth = &self.devices[*place];
        let device = self.model.devices.get(&truth.id);
        let called = device.map_or_else(String::new, |device| device.name.to_string());
        let label = device.and_then(|device| device.labels.values().next());
        format!(
            "{called} (labelled {}, on for {:.0} % of days from day {})",
            label.map_or("nothing", String::as_str),
            100.0 * truth.presence,
            truth.born
        )
    }

    /// What a party really is.
    #[must_use]
    pub fn class(&self, party: Party) -> String {
        match party {
            Party::Member(_) => self
                .place_of
                .get(&party)
                .map_or("nobody", |place| self.class_name(*place))
                .to_owned(),
            Party::Address(address) => Ipv4Addr::to_string(&address),
        }
    }
}
