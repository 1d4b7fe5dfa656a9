//! Who can reach what: the rules, and who stands behind the names in them.

use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::mode::Mode;
use anteroom_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use super::moment;
use crate::decide::{Flow, candidates};
use crate::history::{History, Way};
use crate::resolve::{Resolved, Side};

/// Who can reach what.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reach {
    /// What the rules open, by their names.
    pub rules: Vec<Opens>,
    /// Who is meant by the names in rules.
    pub groups: Vec<Group>,
    /// Devices that rules hold back: they are in enforce.
    pub enforced: usize,
    /// Devices that rules don't hold back yet: what they send beside the rules still passes in the clear.
    pub unenforced: Vec<String>,
    /// Of each site: name, time and address servers that each of its devices may reach, and routers.
    pub infrastructure: BTreeMap<String, BTreeMap<String, Vec<String>>>,
}

/// What a rule opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opens {
    /// Its name.
    pub rule: String,
    /// Who may open: a group.
    pub from: String,
    /// To whom: a group.
    pub to: String,
    /// What, as the policy says it.
    pub services: Vec<String>,
    /// The same as protocols and ports.
    pub ports: Vec<String>,
    /// How it goes.
    pub path: Path,
    /// Pairs that go through a tunnel or within a gateway; an external counts as one.
    pub tunnelled_pairs: u64,
    /// Pairs that go in the clear.
    pub clear_pairs: u64,
    /// Whether it may go in the clear where one of its ends has no gateway, or isn't behind it yet; none in bundles from before this was told.
    #[serde(default)]
    pub clear: Option<bool>,
    /// Whether it survives quarantine.
    pub essential: bool,
    /// When it ends, or ended.
    pub expires: Option<String>,
    /// Whether that is over: then it opens nothing.
    pub expired: bool,
    /// Why it is there.
    pub reason: Option<String>,
    /// When a flow last used it; none where none was recorded.
    pub last_used: Option<String>,
}

/// How what a rule opens goes, in the modes that its devices have now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// Through tunnels, or within one gateway.
    Tunnel,
    /// In the clear.
    Clear,
    /// Some pairs so, some pairs so.
    Both,
    /// Nobody is at one of its ends.
    Nobody,
}

/// Who is meant by a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The name.
    pub name: String,
    /// `segment`, `device`, `client` or `external`.
    pub kind: String,
    /// Devices and clients in it, by name.
    pub members: Vec<String>,
    /// Addresses in it, by the names of their externals. They are addresses, not identities: whoever has one is let through.
    pub externals: BTreeMap<String, Vec<String>>,
}

pub(super) fn reach(resolved: &Resolved, history: &History, now: UnixMillis) -> Reach {
    let used = used(resolved, history);
    let mut named = BTreeSet::new();
    let mut rules = Vec::new();
    for (place, rule) in resolved.rules.iter().enumerate() {
        let (from, to) = (resolved.side(rule.from), resolved.side(rule.to));
        named.extend([rule.from, rule.to]);
        let (tunnelled, clear) = pairs(resolved, from, to);
        let source = resolved.policy.rules.get(&rule.name);
        rules.push(Opens {
            rule: rule.name.to_string(),
            from: from.name.to_string(),
            to: to.name.to_string(),
            services: source
                .iter()
                .flat_map(|rule| &rule.services)
                .map(|at| at.value.to_string())
                .collect(),
            ports: rule.ports.iter().map(ToString::to_string).collect(),
            path: match (tunnelled, clear) {
                (0, 0) => Path::Nobody,
                (_, 0) => Path::Tunnel,
                (0, _) => Path::Clear,
                _ => Path::Both,
            },
            tunnelled_pairs: tunnelled,
            clear_pairs: clear,
            clear: Some(rule.clear),
            essential: rule.essential,
            expires: rule.expires.map(moment),
            expired: rule.expired(now),
            reason: source.and_then(|rule| rule.reason.clone()),
            last_used: used.get(&place).map(|at| moment(*at)),
        });
    }
    rules.sort_by(|a, b| a.rule.cmp(&b.rule));
    let mut groups: Vec<Group> =
        named.into_iter().map(|id| group(resolved, resolved.side(id))).collect();
    groups.sort_by(|a, b| a.name.cmp(&b.name));
    let devices = || resolved.model.devices.values();
    let mut unenforced: Vec<String> = devices()
        .filter(|device| device.mode != Mode::Enforce)
        .map(|device| device.name.to_string())
        .collect();
    unenforced.sort_unstable();
    let infrastructure = resolved.policy.infrastructure.iter().map(|(site, entry)| {
        let lists = [
            ("dhcp", &entry.dhcp),
            ("dns", &entry.dns),
            ("ntp", &entry.ntp),
            ("routers", &entry.routers),
        ];
        let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
        let lists = lists
            .map(|(kind, list)| (kind.to_owned(), list.iter().map(ToString::to_string).collect()));
        (site.to_string(), lists.collect())
    });
    Reach {
        rules,
        groups,
        enforced: devices().count() - unenforced.len(),
        unenforced,
        infrastructure: infrastructure.collect(),
    }
}

/// When each rule was last used, by its place.
fn used(resolved: &Resolved, history: &History) -> BTreeMap<usize, UnixMillis> {
    let mut used: BTreeMap<usize, UnixMillis> = BTreeMap::new();
    for edge in history.edges().filter(|edge| edge.way != Way::Dropped) {
        let flow = Flow { from: edge.from, to: edge.to, protocol: edge.protocol, port: edge.port };
        candidates(resolved, &flow, &mut |place, _| {
            let last = used.entry(place).or_default();
            *last = edge.last.max(*last);
        });
    }
    used
}

/// Pairs through tunnels or within gateways, and pairs in the clear.
fn pairs(resolved: &Resolved, from: &Side, to: &Side) -> (u64, u64) {
    // A client is always in its tunnel; an observed device never is.
    let hidden = |side: &Side| {
        let observed =
            |id| resolved.model.devices.get(id).is_some_and(|device| device.mode == Mode::Observe);
        side.members.iter().filter(|id| !observed(id)).count() as u64
    };
    let all = |side: &Side| (side.members.len() + side.externals.len()) as u64;
    let both = from.members.iter().filter(|id| to.members.binary_search(id).is_ok());
    let (mut own, mut own_hidden) = (0_u64, 0_u64);
    for id in both {
        own += 1;
        let observed =
            resolved.model.devices.get(id).is_some_and(|device| device.mode == Mode::Observe);
        own_hidden += u64::from(!observed);
    }
    // Nobody is a pair with themselves, and two addresses have no gateway between them.
    let outside = (from.externals.len() * to.externals.len()) as u64;
    let tunnelled = hidden(from).saturating_mul(hidden(to)).saturating_sub(own_hidden);
    let every = all(from).saturating_mul(all(to)).saturating_sub(own).saturating_sub(outside);
    (tunnelled, every.saturating_sub(tunnelled))
}

fn group(resolved: &Resolved, side: &Side) -> Group {
    let name = side.name.to_string();
    let policy = &resolved.policy;
    let kind = if policy.segments.contains_key(&side.name) {
        "segment"
    } else if policy.externals.contains_key(&side.name) {
        "external"
    } else if resolved.model.client_named(&name).is_some() {
        "client"
    } else {
        "device"
    };
    let mut members: Vec<String> = side
        .members
        .iter()
        .filter_map(|id| resolved.model.member_name(*id))
        .map(ToString::to_string)
        .collect();
    members.sort_unstable();
    let externals = side.externals.iter().map(|name| {
        let prefixes = policy
            .externals
            .get(name)
            .map(|external| external.prefixes.iter().map(ToString::to_string).collect());
        (name.to_string(), prefixes.unwrap_or_default())
    });
    Group { kind: kind.to_owned(), members, externals: externals.collect(), name }
}
