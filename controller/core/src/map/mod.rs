//! Who talks to whom, for people to look at: as text, as DOT for Graphviz, and as a picture (SVG).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anteroom_proto::id::MemberId;
use anteroom_proto::intent::Endpoint;
use anteroom_proto::name::Name;
use anteroom_proto::service::{PortMatch, Protocol};
use anteroom_proto::text::steers;
use anteroom_proto::time::UnixMillis;
use ipnet::Ipv4Net;
use serde::Serialize;

use crate::decide::Party;
use crate::history::{Edge, History, Way};
use crate::parties::label;
use crate::resolve::Resolved;
use crate::service_catalog;
use crate::surface::{Criticality, Surfaces};
use crate::words::counted;

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

/// Most lines from one node to another of which nothing came through that are drawn one by one.
const DROPPED: usize = 3;

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
    /// The service: its built-in or own name, or protocol and port; how many, where nothing of many came through.
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
    let mut unanswered = 0;
    let mut found = Found::new(resolved, grain);
    let mut lines: BTreeMap<(usize, usize, usize), Line> = BTreeMap::new();
    for edge in history.edges().filter(|edge| edge.last >= since && wanted(edge)) {
        let silent = !edge.answered() && edge.protocol != Protocol::Udp;
        if silent && edge.way != Way::Dropped {
            unanswered += 1;
            continue;
        }
        let [from, to] = [edge.from, edge.to].map(|party| found.node(party));
        let place = found.service(edge.protocol, edge.port);
        let line = lines.entry((from, to, place)).or_insert_with(|| {
            let (service, patient_data) = found.services[place].clone();
            Line {
                from,
                to,
                service,
                patient_data,
                guarded: 0,
                clear: 0,
                dropped: 0,
                bytes: 0,
                last: edge.last,
            }
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
    let mut members: BTreeMap<usize, Vec<Party>> = BTreeMap::new();
    for (party, node) in &found.node_of {
        members.entry(*node).or_default().push(*party);
    }
    // From the order in which they were met to that of their names.
    let mut nodes: Vec<(Called, usize)> = found.nodes.into_iter().collect();
    nodes.sort_unstable();
    let places: BTreeMap<usize, usize> =
        nodes.iter().enumerate().map(|(place, (_, met))| (*met, place)).collect();
    let at = |met: usize| places.get(&met).copied().unwrap_or_default();
    let nodes = nodes
        .into_iter()
        .map(|(Called { name, kind }, met)| {
            let parties = members.remove(&met).unwrap_or_default();
            let criticality = parties.iter().map(|party| surfaces.party(*party).criticality());
            let lives = criticality.clone().filter(|word| *word == Some(Criticality::LifeSupport));
            Node {
                name,
                outside: kind == Kind::Outside,
                size: parties.len(),
                life_support: lives.count(),
                criticality: criticality.max().flatten(),
            }
        })
        .collect();
    let lines = lines.into_iter();
    let lines = lines.map(|((from, to, _), line)| Line { from: at(from), to: at(to), ..line });
    let mut lines = folded(lines);
    lines.sort_by(|a, b| (a.from, a.to, &a.service).cmp(&(b.from, b.to, &b.service)));
    Map { nodes, lines, unanswered }
}

/// Lines as they are, but where more than [`DROPPED`] from one node to another were dropped, whatever came: a scan would hide all
/// else. They are one.
fn folded(lines: impl Iterator<Item = Line>) -> Vec<Line> {
    let (dropped, mut lines): (Vec<Line>, Vec<Line>) = lines.partition(Line::is_dropped);
    let mut pairs: BTreeMap<(usize, usize), Vec<Line>> = BTreeMap::new();
    for line in dropped {
        pairs.entry((line.from, line.to)).or_default().push(line);
    }
    for mut alike in pairs.into_values() {
        if alike.len() > DROPPED {
            let services = alike.len();
            let all = alike.drain(..).reduce(|all, line| Line {
                patient_data: all.patient_data || line.patient_data,
                dropped: all.dropped.saturating_add(line.dropped),
                bytes: all.bytes.saturating_add(line.bytes),
                last: all.last.max(line.last),
                ..all
            });
            let service = counted(services as u64, "service");
            alike.extend(all.map(|all| Line { service, ..all }));
        }
        lines.extend(alike);
    }
    lines
}

/// Nodes and services in the order in which they were met. Names are made once: edges may be millions.
struct Found<'a> {
    resolved: &'a Resolved,
    grain: Grain,
    /// Whether an address alone doesn't say where something is.
    several_sites: bool,
    nodes: BTreeMap<Called, usize>,
    node_of: BTreeMap<Party, usize>,
    services: Vec<(String, bool)>,
    service_of: BTreeMap<(Protocol, u16), usize>,
    /// Places in `services`.
    by_name: BTreeMap<(String, bool), usize>,
}

impl<'a> Found<'a> {
    fn new(resolved: &'a Resolved, grain: Grain) -> Self {
        Self {
            resolved,
            grain,
            several_sites: resolved.sites().len() > 1,
            nodes: BTreeMap::new(),
            node_of: BTreeMap::new(),
            services: Vec::new(),
            service_of: BTreeMap::new(),
            by_name: BTreeMap::new(),
        }
    }

    /// The node that stands for a party.
    fn node(&mut self, party: Party) -> usize {
        if let Some(known) = self.node_of.get(&party) {
            return *known;
        }
        let next = self.nodes.len();
        let node = *self.nodes.entry(self.called(party)).or_insert(next);
        self.node_of.insert(party, node);
        node
    }

    /// The service that a port belongs to: its name, and whether it carries patients' data.
    fn service(&mut self, protocol: Protocol, port: u16) -> usize {
        let Self { resolved, services, by_name, .. } = self;
        *self.service_of.entry((protocol, port)).or_insert_with(|| {
            let found = service(resolved, protocol, port);
            *by_name.entry(found.clone()).or_insert_with(|| {
                services.push(found);
                services.len() - 1
            })
        })
    }

    /// The node of a member that isn't drawn by itself: its class, or where it is.
    fn class(&self, id: MemberId) -> Called {
        let model = &self.resolved.model;
        let device = model.devices.get(&id);
        let labels = device.map(|device| &device.labels);
        let labels = labels.or_else(|| model.clients.get(&id).map(|one| &one.labels));
        if let Some(name) = labels.and_then(|labels| labels.get("class").cloned()) {
            return Called { name, kind: Kind::Class };
        }
        let net = device.and_then(|device| device.addresses.first()).map(|net| around(net.addr()));
        let site = self.resolved.site_of(id).filter(|_| self.several_sites);
        match (net, site) {
            (Some(net), Some(site)) => {
                Called { name: format!("{net} of {site}, no class"), kind: Kind::Network }
            }
            (Some(net), None) => Called { name: format!("{net}, no class"), kind: Kind::Network },
            (None, _) => {
                Called { name: label(self.resolved, Party::Member(id)), kind: Kind::Member }
            }
        }
    }

    /// The smallest segment that holds a member; of equals the first by name.
    fn segment(&self, id: MemberId) -> Option<&Name> {
        let sides = self.resolved.sides_of(id).iter().map(|side| self.resolved.side(*side));
        let segments = sides.filter(|side| matches!(side.endpoint, Endpoint::Segment(_)));
        segments.min_by_key(|side| (side.members.len(), &side.name)).map(|side| &side.name)
    }

    fn called(&self, party: Party) -> Called {
        match (self.grain, party) {
            (Grain::Class, Party::Member(id)) => self.class(id),
            (Grain::Segment, Party::Member(id)) => {
                if let Some(name) = self.segment(id) {
                    return Called { name: name.to_string(), kind: Kind::Segment };
                }
                let mut found = self.class(id);
                if found.kind == Kind::Class {
                    found.name.push_str(", no segment");
                }
                found
            }
            (Grain::Class | Grain::Segment, Party::Address(address)) => {
                let externals = self.resolved.policy.externals.iter();
                let holding = externals.flat_map(|(name, external)| {
                    external.prefixes.iter().map(move |prefix| (prefix, name))
                });
                let narrowest = holding
                    .filter(|(prefix, _)| prefix.contains(&address))
                    .max_by_key(|(prefix, _)| prefix.prefix_len());
                let name = narrowest
                    .map_or_else(|| around(address).to_string(), |(_, name)| name.to_string());
                Called { name, kind: Kind::Outside }
            }
            (Grain::Each, Party::Member(_)) => {
                Called { name: label(self.resolved, party), kind: Kind::Member }
            }
            (Grain::Each, Party::Address(_)) => {
                Called { name: label(self.resolved, party), kind: Kind::Outside }
            }
        }
    }
}

/// What a node stands for: things of two kinds are two nodes, whatever they are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Segment,
    Class,
    Network,
    Member,
    Outside,
}

/// A node, before its members are counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Called {
    name: String,
    kind: Kind,
}

fn around(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::new(address, 24).unwrap_or_default().trunc()
}

/// The name of a port's service, and whether it carries patients' data.
fn service(resolved: &Resolved, protocol: Protocol, port: u16) -> (String, bool) {
    let holds = |ports: &[PortMatch]| ports.iter().any(|one| one.matches(protocol, port));
    let own = resolved.policy.services.iter().find(|(_, service)| holds(&service.ports));
    let built_in = service_catalog::all().iter().find(|service| holds(service.ports));
    let name = own
        .map(|(name, _)| name.to_string())
        .or_else(|| built_in.map(|service| service.name.to_owned()))
        .unwrap_or_else(|| PortMatch { protocol, first: port, last: port }.to_string());
    (name, resolved.policy.patient_data(protocol, port))
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

    /// Whether nothing of it came through.
    const fn is_dropped(&self) -> bool {
        self.dropped > 0 && self.guarded == 0 && self.clear == 0
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
                    line if line.patient_data && !line.is_dropped() => ", patient data",
                    _ => "",
                };
                let _ = writeln!(
                    text,
                    "  -> {to}: {} ({}, {}{exposed})",
                    line.service,
                    line.ways(),
                    counted(line.flows(), "flow")
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
        let patients =
            if line.patient_data && !line.is_dropped() { ", names patients" } else { "" };
        format!(
            "{} to {}: {} ({}, {}{patients})",
            name(line.from),
            name(line.to),
            line.service,
            line.ways(),
            counted(line.flows(), "flow")
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
            c if steers(c) => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
