//! The flow history: who opened what to whom, how much, since when and in which rhythm, in bounded memory.
//!
//! It is made of what gateways report ([`anteroom_proto::v1::telemetry::EdgeDelta`]), and the controller keeps ([`api::Edge`]). Both gateways of a pair report the same flows; each side is
//! added up by itself and the larger sum stands, so nothing counts twice and nothing is missing while one of them is away. What keeps a
//! report from counting twice is its boot and sequence id, which the store looks at.
//!
//! [`crate::suggest`], [`crate::coverage`], [`crate::simulate`] and [`crate::stale`] read it.

use std::collections::BTreeMap;

use anteroom_proto::api;
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::rhythm::Rhythm;
use anteroom_proto::service::Protocol;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::{DropReason, Verdict};

use crate::decide::{End, Party};
use crate::ends;
use crate::names::Names;
use crate::resolve::Resolved;

#[cfg(test)]
mod tests;
mod watch;

pub use watch::Watch;

/// By which way flows went, or that they didn't.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// Through the tunnel, or within one gateway.
    Guarded,
    /// In the clear.
    Clear,
    /// Dropped.
    Dropped,
}

impl From<Verdict> for Way {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Tunnel | Verdict::Local => Self::Guarded,
            Verdict::Clear | Verdict::ClearTunnelDown | Verdict::WouldDrop(_) => Self::Clear,
            Verdict::Drop(_) => Self::Dropped,
        }
    }
}

/// Numbers of an edge. From the one who opened's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Flows opened.
    pub flows: u64,
    /// Packets from the one who opened.
    pub packets: u64,
    /// Packets back.
    pub packets_back: u64,
    /// Bytes of IP from the one who opened.
    pub bytes: u64,
    /// Bytes of IP back.
    pub bytes_back: u64,
}

impl Counts {
    fn add(&mut self, more: &Self) {
        self.flows = self.flows.saturating_add(more.flows);
        self.packets = self.packets.saturating_add(more.packets);
        self.packets_back = self.packets_back.saturating_add(more.packets_back);
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.bytes_back = self.bytes_back.saturating_add(more.bytes_back);
    }

    fn larger(&self, other: &Self) -> Self {
        Self {
            flows: self.flows.max(other.flows),
            packets: self.packets.max(other.packets),
            packets_back: self.packets_back.max(other.packets_back),
            bytes: self.bytes.max(other.bytes),
            bytes_back: self.bytes_back.max(other.bytes_back),
        }
    }
}

/// What was seen of an edge at one of its ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Who opened.
    pub from: Party,
    /// To whom.
    pub to: Party,
    /// The protocol.
    pub protocol: Protocol,
    /// The responder's port; 0 for ICMP echo, and for flows to many ports that nobody answered.
    pub port: u16,
    /// What became of the flows.
    pub way: Way,
    /// The end at which it was seen.
    pub at: End,
    /// How much.
    pub counts: Counts,
    /// First packet.
    pub first: UnixMillis,
    /// Last packet.
    pub last: UnixMillis,
}

/// An edge of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// Who opened.
    pub from: Party,
    /// To whom.
    pub to: Party,
    /// The protocol.
    pub protocol: Protocol,
    /// The responder's port; 0 for ICMP echo, and for flows to many ports that nobody answered.
    pub port: u16,
    /// What became of the flows.
    pub way: Way,
    /// How much: the larger of what both ends saw.
    pub counts: Counts,
    /// First packet.
    pub first: UnixMillis,
    /// Last packet.
    pub last: UnixMillis,
    /// When.
    pub rhythm: Rhythm,
}

impl Edge {
    /// Whether the responder ever said anything.
    #[must_use]
    pub const fn answered(&self) -> bool {
        self.counts.packets_back > 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    from: u32,
    to: u32,
    protocol: Protocol,
    port: u16,
    way: Way,
}

#[derive(Debug, Clone, Copy)]
struct Tally {
    sides: [Counts; 2],
    first: UnixMillis,
    last: UnixMillis,
    rhythm: Rhythm,
}

/// The flow history.
///
/// At most `limit` edges: a quarter of that may be edges that nobody answered, which a scan leaves by the thousand,
/// so that no scan costs an edge of a conversation. What finds no room is counted.
#[derive(Debug, Clone)]
pub struct History {
    limit: usize,
    parties: Vec<Party>,
    places: BTreeMap<Party, u32>,
    edges: BTreeMap<Key, Tally>,
    unanswered: usize,
    turned_away: u64,
    uncarried: BTreeMap<(MemberId, DropReason), u64>,
    watch: Watch,
}

/// What became of a report's edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folded {
    /// It was added.
    Added,
    /// It is a kind of traffic that no rule can open (IPv6, broadcast, other protocols), and was counted as that.
    Uncarried(DropReason),
    /// The device isn't confirmed: nothing can be learnt of it yet.
    Stranger,
    /// There was no room.
    TurnedAway,
}

impl History {
    /// An empty history of at most `limit` edges.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            limit,
            parties: Vec::new(),
            places: BTreeMap::new(),
            edges: BTreeMap::new(),
            unanswered: 0,
            turned_away: 0,
            uncarried: BTreeMap::new(),
            watch: Watch::new(),
        }
    }

    /// A history of edges as the controller's API gives them.
    #[must_use]
    pub fn of(resolved: &Resolved, edges: &[api::Edge], limit: usize, now: UnixMillis) -> Self {
        let names = Names::of(&resolved.model);
        let mut history = Self::new(limit);
        for edge in edges {
            history.recorded(resolved, &names, edge, now);
        }
        history
    }

    /// Adds an edge as the controller's API gives it: all that was ever reported of it. Gateways whose clock runs ahead say
    /// nothing about what is later than `now`.
    pub fn recorded(
        &mut self,
        resolved: &Resolved,
        names: &Names,
        edge: &api::Edge,
        now: UnixMillis,
    ) -> Folded {
        let last = edge.last.min(now);
        let first = edge.first.min(last);
        let mut rhythm = edge.rhythm;
        if rhythm.is_empty() {
            // Of the time between nothing is known.
            rhythm.record(first, first);
            rhythm.record(last, last);
        }
        self.watch.told(edge.gateway, &rhythm);
        let own = ends::own(edge, names);
        let Some(member) = own.filter(|id| resolved.model.member_name(*id).is_some()) else {
            return Folded::Stranger;
        };
        let device = resolved.model.devices.get(&member);
        let prefix_len = device.and_then(|device| device.prefix_len);
        if let Some(reason) = ends::uncarried_on(edge, prefix_len) {
            let count = self.uncarried.entry((member, reason)).or_default();
            *count = count.saturating_add(edge.flows.max(1));
            return Folded::Uncarried(reason);
        }
        let Some(flow) = ends::flow(resolved, edge, member) else { return Folded::Stranger };
        let way = Way::from(edge.verdict);
        if way != Way::Dropped {
            self.watch.told_of(member, edge.gateway, (first, last));
        }
        let (packets, bytes) =
            ([edge.packets_out, edge.packets_in], [edge.bytes_out, edge.bytes_in]);
        let (there, back) = if edge.outbound { (0, 1) } else { (1, 0) };
        let seen = Seen {
            from: flow.from,
            to: flow.to,
            protocol: flow.protocol,
            port: if flow.protocol == Protocol::IcmpEcho { 0 } else { flow.port },
            way,
            at: if edge.outbound { End::From } else { End::To },
            counts: Counts {
                flows: edge.flows,
                packets: packets[there],
                packets_back: packets[back],
                bytes: bytes[there],
                bytes_back: bytes[back],
            },
            first,
            last,
        };
        if self.put(&seen, &rhythm) { Folded::Added } else { Folded::TurnedAway }
    }

    /// Adds the days on which a gateway reported anything, as far as they are known; whatever it told of edges adds to them.
    pub fn watched(&mut self, gateway: GatewayId, when: &Rhythm) {
        self.watch.told(gateway, when);
    }

    /// Adds that a gateway told of a member behind it, in this span.
    pub fn told_of(
        &mut self,
        member: MemberId,
        gateway: GatewayId,
        span: (UnixMillis, UnixMillis),
    ) {
        self.watch.told_of(member, gateway, span);
    }

    /// When gateways watched, and whom.
    #[must_use]
    pub const fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Adds what was seen at one end. False where there was no room for it.
    pub fn add(&mut self, seen: &Seen) -> bool {
        let mut rhythm = Rhythm::default();
        rhythm.record(seen.first, seen.last);
        self.put(seen, &rhythm)
    }

    fn put(&mut self, seen: &Seen, rhythm: &Rhythm) -> bool {
        let (Some(from), Some(to)) = (self.place(seen.from), self.place(seen.to)) else {
            self.turned_away = self.turned_away.saturating_add(1);
            return false;
        };
        let key = Key { from, to, protocol: seen.protocol, port: seen.port, way: seen.way };
        let side = usize::from(seen.at == End::To);
        let answers = |tally: &Tally| tally.sides.iter().any(|side| side.packets_back > 0);
        if let Some(tally) = self.edges.get_mut(&key) {
            let before = answers(tally);
            tally.sides[side].add(&seen.counts);
            tally.first = tally.first.min(seen.first);
            tally.last = tally.last.max(seen.last);
            tally.rhythm.merge(rhythm);
            self.unanswered -= usize::from(!before && answers(tally));
            return true;
        }
        let unanswered = seen.counts.packets_back == 0;
        if self.edges.len() >= self.limit || (unanswered && self.unanswered >= self.limit / 4) {
            self.turned_away = self.turned_away.saturating_add(1);
            return false;
        }
        let mut tally = Tally {
            sides: [Counts::default(); 2],
            first: seen.first,
            last: seen.last,
            rhythm: *rhythm,
        };
        tally.sides[side].add(&seen.counts);
        self.unanswered += usize::from(unanswered);
        self.edges.insert(key, tally);
        true
    }

    /// The number that stands for a party here. None once there are as many as two for each edge.
    fn place(&mut self, party: Party) -> Option<u32> {
        if let Some(place) = self.places.get(&party) {
            return Some(*place);
        }
        if self.parties.len() >= self.limit.saturating_mul(2) {
            return None;
        }
        let place = u32::try_from(self.parties.len()).ok()?;
        self.parties.push(party);
        self.places.insert(party, place);
        Some(place)
    }

    /// How many edges it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.edges.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edges.is_empty()
    }

    /// What found no room.
    #[must_use]
    pub const fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// Flows of kinds that no rule can open, by device.
    #[must_use]
    pub const fn uncarried(&self) -> &BTreeMap<(MemberId, DropReason), u64> {
        &self.uncarried
    }

    /// Every edge. Their order hangs on the order in which they came.
    pub fn edges(&self) -> impl Iterator<Item = Edge> + '_ {
        let party = |place: u32| self.parties[place as usize];
        self.edges.iter().map(move |(key, tally)| Edge {
            from: party(key.from),
            to: party(key.to),
            protocol: key.protocol,
            port: key.port,
            way: key.way,
            counts: tally.sides[0].larger(&tally.sides[1]),
            first: tally.first,
            last: tally.last,
            rhythm: tally.rhythm,
        })
    }

    /// First and last packet of all; none where nothing was recorded.
    #[must_use]
    pub fn span(&self) -> Option<(UnixMillis, UnixMillis)> {
        let first = self.edges.values().map(|tally| tally.first).min()?;
        let last = self.edges.values().map(|tally| tally.last).max()?;
        Some((first, last))
    }
}
