//! Name, time and address servers: what makes an address one of a site's infrastructure, and how it is written down.
//!
//! A server in `[infrastructure]` is open to every device of its site, in the clear, which is more than any rule opens. So more
//! must speak for it than for a rule: as many labelled devices as make a rule a class's, of two classes at least and a share of
//! the site, each with answers on two days. Whatever has less behind it is learnt like any other conversation: a rule for those
//! who have it, or a question.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anteroom_proto::name::Name;
use anteroom_proto::service::{PortMatch, Protocol};
use toml_edit::{Array, DocumentMut, Item, TableLike, Value};

use super::blocks::{FEWEST_OF_MANY, REPEATED};
use super::confidence::confidence;
use super::facts::{Facts, Kind, Pair};
use super::{Options, SuggestedServer};
use crate::decide::Party;
use crate::policy::drafting::date;
use crate::policy::key;
use crate::resolve::Resolved;
use crate::words::counted;

/// Devices of how many classes must use a server: what one class alone uses is that class's own.
const CLASSES: usize = 2;

/// What a server of a site's infrastructure is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerKind {
    /// Gives addresses.
    Dhcp,
    /// Knows names.
    Dns,
    /// Knows the time.
    Ntp,
}

impl ServerKind {
    /// Its key in the policy.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Dhcp => "dhcp",
            Self::Dns => "dns",
            Self::Ntp => "ntp",
        }
    }

    /// Of which of these a service is asked.
    #[must_use]
    pub fn of(service: PortMatch) -> Option<Self> {
        let all = [Self::Dhcp, Self::Dns, Self::Ntp];
        all.into_iter().find(|kind| kind.ports().any(|port| port == service))
    }

    /// What infrastructure opens of it: names are asked for over UDP and TCP.
    fn ports(self) -> impl Iterator<Item = PortMatch> {
        let (port, protocols): (u16, &[Protocol]) = match self {
            Self::Dhcp => (67, &[Protocol::Udp]),
            Self::Dns => (53, &[Protocol::Udp, Protocol::Tcp]),
            Self::Ntp => (123, &[Protocol::Udp]),
        };
        protocols.iter().map(move |protocol| PortMatch {
            protocol: *protocol,
            first: port,
            last: port,
        })
    }
}

/// A server that was found, and what speaks for it.
#[derive(Debug, Clone)]
pub(super) struct Server {
    site: Name,
    kind: ServerKind,
    address: Ipv4Addr,
    users: u64,
    classes: usize,
    /// Pairs seen.
    seen: u64,
    /// The sum of what was seen of them.
    sum: Pair,
    /// Devices of the site.
    devices: u64,
}

impl Server {
    pub(super) fn told(&self) -> SuggestedServer {
        SuggestedServer {
            site: self.site.clone(),
            kind: self.kind,
            address: self.address,
            confidence: confidence(&self.sum, self.users, 1, [self.devices, 1]),
            opens: self.devices * self.kind.ports().count() as u64,
            seen: self.seen,
        }
    }

    /// What stands over its address.
    fn comment(&self) -> String {
        let SuggestedServer { confidence, opens, seen, .. } = self.told();
        format!(
            "    # {} of {} of the site, of {} classes; {} on {}, {} to {}.\n    # Confidence: {confidence}. It opens {opens} pairs, {} beyond the {seen} that were seen.\n",
            self.users,
            counted(self.devices, "device"),
            self.classes,
            counted(self.sum.flows, "flow"),
            counted(self.sum.days.count_ones().into(), "day"),
            date(self.sum.first),
            date(self.sum.last),
            opens.saturating_sub(seen),
        )
    }
}

/// Who uses an address as a server.
#[derive(Debug, Default)]
struct Use {
    users: BTreeSet<u32>,
    classes: BTreeSet<u32>,
    seen: u64,
    sum: Option<Pair>,
}

type Users = BTreeMap<(Name, ServerKind, u32), Use>;

/// Takes the infrastructure's pairs out, and says which servers they went to.
pub(super) fn take(facts: &mut Facts, resolved: &Resolved, options: &Options) -> Vec<Server> {
    let mut devices: BTreeMap<&Name, Vec<u32>> = BTreeMap::new();
    for (number, party) in (0..).zip(&facts.parties) {
        if let Party::Member(id) = party
            && resolved.model.devices.contains_key(id)
            && let Some(site) = resolved.site_of(*id)
        {
            devices.entry(site).or_default().push(number);
        }
    }
    // What a rule's end closed to one of the site isn't opened again to all of it.
    let reopens = |site: &Name, kind: ServerKind, server: u32| {
        let all = devices.get(site).map_or(&[][..], Vec::as_slice);
        kind.ports().any(|port| facts.opened.reopens(resolved, [all, &[server]], &port))
    };
    let mut found = users(facts, resolved);
    found.retain(|(site, kind, server), used| {
        let all = devices.get(site).map_or(0, Vec::len);
        used.classes.len() >= CLASSES
            && used.users.len() >= options.agree
            && used.users.len() as f64 >= FEWEST_OF_MANY * all as f64
            && !reopens(site, *kind, *server)
    });
    let pairs = std::mem::take(&mut facts.pairs);
    let (served, rest) = pairs.into_iter().partition(|pair| {
        asked(facts, resolved, pair).is_some_and(|asked| found.contains_key(&asked))
    });
    facts.pairs = rest;
    let served: Vec<Pair> = served;
    for pair in &served {
        let Some(used) = asked(facts, resolved, pair).and_then(|asked| found.get_mut(&asked))
        else {
            continue;
        };
        used.seen += 1;
        used.users.insert(pair.from);
        match &mut used.sum {
            Some(sum) => sum.add(pair),
            None => used.sum = Some(*pair),
        }
    }
    found
        .into_iter()
        .filter_map(|((site, kind, server), used)| {
            let Party::Address(address) = facts.parties[server as usize] else { return None };
            let devices = devices.get(&site).map_or(0, Vec::len) as u64;
            Some(Server {
                site,
                kind,
                address,
                users: used.users.len() as u64,
                classes: used.classes.len(),
                seen: used.seen,
                sum: used.sum?,
                devices,
            })
        })
        .collect()
}

/// Those whose word counts. A refused connection looks like an answer, so what is asked over TCP says nothing.
fn users(facts: &Facts, resolved: &Resolved) -> Users {
    let mut found = Users::new();
    for pair in &facts.pairs {
        let class = facts.class[pair.from as usize];
        if facts.services[pair.service as usize].protocol != Protocol::Udp
            || pair.days.count_ones() < REPEATED
            || !matches!(facts.kinds[class as usize], Kind::Label(_))
            || facts.adopted.contains(&pair.from)
        {
            continue;
        }
        if let Some(asked) = asked(facts, resolved, pair) {
            let used = found.entry(asked).or_default();
            used.users.insert(pair.from);
            used.classes.insert(class);
        }
    }
    found
}

/// Which server of which site a pair asks, if it is a device that asks an address.
fn asked(facts: &Facts, resolved: &Resolved, pair: &Pair) -> Option<(Name, ServerKind, u32)> {
    let kind = ServerKind::of(facts.services[pair.service as usize])?;
    let (Party::Member(from), Party::Address(_)) =
        (facts.parties[pair.from as usize], facts.parties[pair.to as usize])
    else {
        return None;
    };
    let site = resolved.model.devices.get(&from).and_then(|_| resolved.site_of(from))?;
    Some((site.clone(), kind, pair.to))
}

/// Adds servers to their sites' infrastructure in `head`, the policy that there is. Returns the tables of sites that have none there.
pub(super) fn write(resolved: &Resolved, head: &mut String, servers: &[Server]) -> String {
    let mut fresh = String::new();
    let Ok(mut document) = head.parse::<DocumentMut>() else { return fresh };
    let mut changed = false;
    for of_site in servers.chunk_by(|a, b| a.site == b.site) {
        let site = &of_site[0].site;
        let known = resolved.policy.infrastructure.contains_key(site);
        if !known {
            let _ = write!(
                fresh,
                "\n# Open to every device of the site, in the clear.\n[infrastructure.{}]\n",
                key(site)
            );
        }
        for of_kind in of_site.chunk_by(|a, b| a.kind == b.kind) {
            let word = of_kind[0].kind.key();
            if known {
                let table = document
                    .get_mut("infrastructure")
                    .and_then(|item| item.get_mut(site.as_str()))
                    .and_then(Item::as_table_like_mut);
                changed |= table.is_some_and(|table| extend(table, word, of_kind));
            } else {
                let _ = writeln!(fresh, "{word} = [");
                for server in of_kind {
                    let _ = writeln!(fresh, "{}    \"{}\",", server.comment(), server.address);
                }
                fresh.push_str("]\n");
            }
        }
    }
    if changed {
        *head = document.to_string();
    }
    fresh
}

/// Puts addresses behind those that a list has. Says whether it could.
fn extend(table: &mut dyn TableLike, word: &str, servers: &[Server]) -> bool {
    let list = table.entry(word).or_insert(Item::Value(Value::Array(Array::new())));
    let Some(list) = list.as_array_mut() else { return false };
    // A comment behind the last entry stays there.
    let behind = list.trailing().as_str().unwrap_or_default().trim_end().to_owned();
    for (place, server) in servers.iter().enumerate() {
        let behind = if place == 0 { behind.as_str() } else { "" };
        let mut item = Value::from(server.address.to_string());
        item.decor_mut().set_prefix(format!("{behind}\n{}    ", server.comment()));
        list.push_formatted(item);
    }
    list.set_trailing("\n");
    list.set_trailing_comma(true);
    true
}
