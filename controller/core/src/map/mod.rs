//! Who talks to whom, for people to look at: as text, as DOT for Graphviz, and as a picture (SVG).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anteroom_proto::id::MemberId;
use anteroom_proto::intent::Endpoint;
use anteroom_proto::name::Name;
use anteroom_proto::service::{PortMatch, Protocol};
use anteroom_proto::time::UnixMillis;
use ipnet::Ipv4Net;
use serde::Serialize;

use crate::decide::Party;
use crate::history::{Edge, History, Way};
use crate::parties::label;
use crate::resolve::Resolved;
use crate::service_catalog;
use crate::surface::{Criticality, Surfaces};

mod svg;
#[cfg(test)]
mod tests;

/// What the nodes of a map are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    /// Devices, clients and addresses by themselves.
    Each,
    /// Devices by their class, addresses by the narrowest external, or /24, that holds them. Of devices without a class those of one
    /// /24 are one node.
    Class,
    /// Devices by the smallest segment that holds them, and as [`Grain::Class`] has it where none does.
    Segment,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Node {
    /// What people call it.
    pub name: String,
    /// Whether it is outside: an address, not an identity.
    pub outside: bool,
    /// How many devices or addresses it stands for.
    pub size: usize,
    /// The greatest criticality of these.
    pub criticality: Option<Criticality>,
    /// On how many of these a life may hang.
    pub life_support: usize,
}

/// What goes from one node to another with one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Who opens: the place in [`Map::nodes`].
    pub from: usize,
    /// To whom.
    pub to: usize,
    /// The service: its built-in or own name, or protocol and port.
    pub service: String,
    /// Whether messages of this service name patients.
    pub patient_data: bool,
    /// Flows through tunnels or within a gateway.
    pub guarded: u64,
    /// Flows in the clear.
    pub clear: u64,
    /// Flows that were dropped.
    pub dropped: u64,
    /// Bytes of IP, both ways.
    pub bytes: u64,
    /// Last packet.
    pub last: UnixMillis,
}

/// Who talks to whom.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Map {
    /// The nodes, by name.
    pub nodes: Vec<Node>,
    /// The lines, by their nodes and services.
    pub lines: Vec<Line>,
    /// Edges that nobody answered and that aren't drawn.
    pub unanswered: usize,
}

/// Draws the edges of `history` that were seen `since` then, and that `wanted` takes. TCP that nobody answered is no conversation
/// and is left out, unless it was dropped.
#[must_use]
pub fn map(
    resolved: &Resolved,
    surfaces: &Surfaces,
    history: &History,
    grain: Grain,
    since: UnixMillis,
    wanted: &dyn Fn(&Edge) -> bool,
) -> Map {
    type Called = (String, bool);
    let mut unanswered = 0;
    let mut members: BTreeMap<Called, BTreeSet<Party>> = BTreeMap::new();
    let mut lines: BTreeMap<(Called, Called, String), Line> = BTreeMap::new();
    for edge in history.edges().filter(|edge| edge.last >= since && wanted(edge)) {
        let silent = !edge.answered() && edge.protocol != Protocol::Udp;
        if silent && edge.way != Way::Dropped {
            unanswered += 1;
            continue;
        }
        let ends = [edge.from, edge.to].map(|party| {
            let called = (node(resolved, party, grain), matches!(party, Party::Address(_)));
            members.entry(called.clone()).or_default().insert(party);
            called
        });
        let [from, to] = ends;
        let (service, patient_data) = service(resolved, &edge);
        let line = lines.entry((from, to, service.clone())).or_insert_with(|| Line {
            from: 0,
            to: 0,
            service,
            patient_data,
            guarded: 0,
            clear: 0,
            dropped: 0,
            bytes: 0,
            last: edge.last,
        });
        let count = match edge.way {
            Way::Guarded => &mut line.guarded,
            Way::Clear => &mut line.clear,
            Way::Dropped => &mut line.dropped,
        };
        *count = count.saturating_add(edge.counts.flows);
        let bytes = edge.counts.bytes.saturating_add(edge.counts.bytes_back);
        line.bytes = line.bytes.saturating_add(bytes);
        line.last = line.last.max(edge.last);
    }
    let places: BTreeMap<Called, usize> =
        members.keys().cloned().enumerate().map(|(place, called)| (called, place)).collect();
    let at = |called: &Called| places.get(called).copied().unwrap_or_default();
    let nodes = members
        .into_iter()
        .map(|((name, outside), parties)| {
            let found = parties.iter().map(|party| surfaces.party(*party).criticality());
            let lives = found.clone().filter(|found| *found == Some(Criticality::LifeSupport));
            Node {
                name,
                outside,
                size: parties.len(),
                life_support: lives.count(),
                criticality: found.max().flatten(),
            }
        })
        .collect();
    let lines = lines
        .into_iter()
        .map(|((from, to, _), line)| Line { from: at(&from), to: at(&to), ..line })
        .collect();
    Map { nodes, lines, unanswered }
}

/// The node of a member that isn't drawn by itself: its class, or where it is.
fn class(resolved: &Resolved, id: MemberId) -> String {
    let device = resolved.model.devices.get(&id);
    let labels = device.map(|device| &device.labels);
    let labels = labels.or_else(|| resolved.model.clients.get(&id).map(|one| &one.labels));
    let class = labels.and_then(|labels| labels.get("class").cloned());
    let fixed = || device?.addresses.first().map(|net| around(net.addr()));
    let place = || fixed().map(|net| format!("{net}, no class"));
    class.or_else(place).unwrap_or_else(|| label(resolved, Party::Member(id)))
}

fn around(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::new(address, 24).unwrap_or_default().trunc()
}

/// The smallest segment that holds a member; of equals the first by name.
fn segment(resolved: &Resolved, id: MemberId) -> Option<&Name> {
    let sides = resolved.sides_of(id).iter().map(|side| resolved.side(*side));
    let segments = sides.filter(|side| matches!(side.endpoint, Endpoint::Segment(_)));
    segments.min_by_key(|side| (side.members.len(), &side.name)).map(|side| &side.name)
}

fn node(resolved: &Resolved, party: Party, grain: Grain) -> String {
    match (grain, party) {
        (Grain::Class, Party::Member(id)) => class(resolved, id),
        (Grain::Segment, Party::Member(id)) => {
            segment(resolved, id).map_or_else(|| class(resolved, id), ToString::to_string)
        }
        (Grain::Class | Grain::Segment, Party::Address(address)) => {
            let externals = resolved.policy.externals.iter();
            let holding = externals.flat_map(|(name, external)| {
                external.prefixes.iter().map(move |prefix| (prefix, name))
            });
            let narrowest = holding
                .filter(|(prefix, _)| prefix.contains(&address))
                .max_by_key(|(prefix, _)| prefix.prefix_len());
            narrowest.map_or_else(|| around(address).to_string(), |(_, name)| name.to_string())
        }
        (Grain::Each, _) => label(resolved, party),
    }
}

/// The name of an edge's service, and whether it carries patients' data.
fn service(resolved: &Resolved, edge: &Edge) -> (String, bool) {
    let port = PortMatch { protocol: edge.protocol, first: edge.port, last: edge.port };
    let holds = |ports: &[PortMatch]| ports.iter().any(|one| one.matches(edge.protocol, edge.port));
    let own = resolved.policy.services.iter().find(|(_, service)| holds(&service.ports));
    let built_in = service_catalog::all().iter().find(|service| holds(service.ports));
    let patient_data = resolved.policy.patient_data(edge.protocol, edge.port);
    let name = own
        .map(|(name, _)| name.to_string())
        .or_else(|| built_in.map(|service| service.name.to_owned()))
        .unwrap_or_else(|| port.to_string());
    (name, patient_data)
}

impl Line {
    /// How it goes, in words: `tunnel`, `clear`, `dropped`, or several of these.
    #[must_use]
    pub fn ways(&self) -> String {
        let ways = [(self.guarded, "tunnel"), (self.clear, "clear"), (self.dropped, "dropped")];
        let ways: Vec<&str> =
            ways.into_iter().filter(|(flows, _)| *flows > 0).map(|(_, way)| way).collect();
        // Flows that were under way before are counted where they began.
        if ways.is_empty() { "under way".to_owned() } else { ways.join(" and ") }
    }

    /// Flows in all.
    #[must_use]
    pub const fn flows(&self) -> u64 {
        self.guarded.saturating_add(self.clear).saturating_add(self.dropped)
    }

    /// Whether messages that name patients go in the clear.
    #[must_use]
    pub const fn exposes_patients(&self) -> bool {
        self.patient_data && self.clear > 0
    }
}

impl Map {
    /// Brings the nodes on which most hangs to the front.
    pub fn most_critical_first(&mut self) {
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        order.sort_by_key(|place| {
            let node = self.nodes.get(*place);
            Reverse(node.map(|node| (node.criticality, node.life_support)))
        });
        let places: BTreeMap<usize, usize> =
            order.iter().enumerate().map(|(now, before)| (*before, now)).collect();
        let at = |place: usize| places.get(&place).copied().unwrap_or(place);
        self.nodes = order.iter().filter_map(|place| self.nodes.get(*place).cloned()).collect();
        for line in &mut self.lines {
            (line.from, line.to) = (at(line.from), at(line.to));
        }
        self.lines.sort_by(|a, b| (a.from, a.to, &a.service).cmp(&(b.from, b.to, &b.service)));
    }

    /// As text: each node, and under it to whom it opens what.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (place, node) in self.nodes.iter().enumerate() {
            let lines: Vec<&Line> = self.lines.iter().filter(|line| line.from == place).collect();
            if lines.is_empty() {
                continue;
            }
            let _ = writeln!(text, "{}", shown(node));
            for line in lines {
                let to = self.nodes.get(line.to).map(shown).unwrap_or_default();
                let exposed = match line {
                    line if line.exposes_patients() => ", patient data in the clear",
                    line if line.patient_data => ", patient data",
                    _ => "",
                };
                let _ = writeln!(
                    text,
                    "  -> {to}: {} ({}, {} flows{exposed})",
                    line.service,
                    line.ways(),
                    line.flows()
                );
            }
        }
        text
    }

    /// For Graphviz.
    #[must_use]
    pub fn dot(&self) -> String {
        let mut text = String::from("digraph anteroom {\n  rankdir = LR;\n  node [shape = box];\n");
        for (place, node) in self.nodes.iter().enumerate() {
            let style = match node {
                node if node.life_support > 0 => {
                    ", style = filled, fillcolor = \"#fadbd8\", penwidth = 2"
                }
                node if node.outside => ", style = dashed",
                _ => "",
            };
            let _ = writeln!(text, "  n{place} [label = {}{style}];", quoted(&shown(node)));
        }
        for line in &self.lines {
            let (colour, style) = line.look();
            let _ = writeln!(
                text,
                "  n{} -> n{} [label = {}, tooltip = {}, color = \"{colour}\", style = {style}];",
                line.from,
                line.to,
                quoted(&line.service),
                quoted(&self.title(line))
            );
        }
        text.push_str("}\n");
        text
    }

    /// As a picture.
    #[must_use]
    pub fn svg(&self) -> String {
        svg::draw(self)
    }

    /// All of a line in one.
    fn title(&self, line: &Line) -> String {
        let name = |place: usize| self.nodes.get(place).map(shown).unwrap_or_default();
        let patients = if line.patient_data { ", names patients" } else { "" };
        format!(
            "{} to {}: {} ({}, {} flows{patients})",
            name(line.from),
            name(line.to),
            line.service,
            line.ways(),
            line.flows()
        )
    }
}

impl Line {
    /// Colour and style: what is sealed is green, what is in the clear orange, patients' data in the clear red, what was
    /// dropped grey and dashed.
    fn look(&self) -> (&'static str, &'static str) {
        match self {
            line if line.exposes_patients() => ("#c0392b", "bold"),
            line if line.clear > 0 => ("#d68910", "solid"),
            line if line.guarded > 0 => ("#1e8449", "solid"),
            line if line.dropped > 0 => ("#7f8c8d", "dashed"),
            _ => ("#2c3e50", "solid"),
        }
    }
}

fn shown(node: &Node) -> String {
    let outside = if node.outside { "outside " } else { "" };
    let life = match (node.size, node.life_support) {
        (_, 0) => String::new(),
        (size, lives) if size == lives => "life support".to_owned(),
        (_, lives) => format!("{lives} life support"),
    };
    match (node.size > 1, life.is_empty()) {
        (false, true) => format!("{outside}{}", node.name),
        (false, false) => format!("{outside}{} ({life})", node.name),
        (true, true) => format!("{outside}{} ({})", node.name, node.size),
        (true, false) => format!("{outside}{} ({}, {life})", node.name, node.size),
    }
}

/// A string as DOT has it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
