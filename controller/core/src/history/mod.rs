//! The flow history: who opened what to whom, how much, since when and in which rhythm, in bounded memory.
//!
//! It is made of what gateways report ([`EdgeDelta`]). Both gateways of a pair report the same flows; each side is
//! added up by itself and the larger sum stands, so nothing counts twice and nothing is missing while one of them is away. What keeps a
//! report from counting twice is its boot and sequence id, which the store looks at.
//!
//! [`crate::suggest`], [`crate::coverage`], [`crate::simulate`] and [`crate::stale`] read it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anteroom_proto::api;
use anteroom_proto::id::{GatewayId, MemberId};
use anteroom_proto::rhythm::Rhythm;
use anteroom_proto::service::Protocol;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::EdgeDelta;
use anteroom_proto::verdict::{DropReason, Verdict};

use crate::decide::{End, Party};
use crate::names::Names;
use crate::resolve::Resolved;

#[cfg(test)]
mod tests;

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
    /// Whether the gateway of the one who opened told of it, and that of the other.
    pub told: [bool; 2],
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
        }
    }

    /// Adds an edge of a report, as `resolved` knows its ends.
    pub fn fold(
        &mut self,
        resolved: &Resolved,
        names: &Names,
        gateway: GatewayId,
        delta: &EdgeDelta,
    ) -> Folded {
        let report = Report {
            member: delta.member.or_else(|| names.member_of(gateway, delta.mac)),
            remote: delta.remote,
            remote_member: delta.remote_member,
            outbound: delta.outbound,
            protocol: delta.protocol,
            port: delta.port,
            verdict: delta.verdict,
            flows: delta.flows,
            packets: [delta.packets_out, delta.packets_in],
            bytes: [delta.bytes_out, delta.bytes_in],
            span: (delta.first, delta.last),
        };
        let mut rhythm = Rhythm::default();
        rhythm.record(delta.first, delta.last);
        self.report(resolved, &report, &rhythm)
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
        let report = Report {
            member: edge.member.or_else(|| names.member_of(edge.gateway, edge.mac)),
            remote: edge.remote,
            remote_member: edge.remote_member,
            outbound: edge.outbound,
            protocol: edge.protocol,
            port: edge.port,
            verdict: edge.verdict,
            flows: edge.flows,
            packets: [edge.packets_out, edge.packets_in],
            bytes: [edge.bytes_out, edge.bytes_in],
            span: (first, last),
        };
        self.report(resolved, &report, &rhythm)
    }

    fn report(&mut self, resolved: &Resolved, report: &Report, rhythm: &Rhythm) -> Folded {
        let Some(member) = report.member.filter(|id| resolved.model.member_name(*id).is_some())
        else {
            return Folded::Stranger;
        };
        let protocol = match (report.remote, report.protocol) {
            (IpAddr::V6(_), _) => Err(DropReason::Ipv6),
            (IpAddr::V4(to), _) if to.is_multicast() || to.is_broadcast() => {
                Err(DropReason::Broadcast)
            }
            (_, 6) => Ok(Protocol::Tcp),
            (_, 17) => Ok(Protocol::Udp),
            (_, 1) => Ok(Protocol::IcmpEcho),
            _ => Err(DropReason::OtherProtocol),
        };
        let protocol = match protocol {
            Ok(protocol) => protocol,
            Err(reason) => {
                let count = self.uncarried.entry((member, reason)).or_default();
                *count = count.saturating_add(report.flows.max(1));
                return Folded::Uncarried(reason);
            }
        };
        let IpAddr::V4(address) = report.remote else { return Folded::Stranger };
        let known = report.remote_member.filter(|id| resolved.site_of(*id).is_some());
        let here = || resolved.site_of(member).and_then(|site| resolved.member_at(site, address));
        let remote = known.or_else(here).map_or(Party::Address(address), Party::Member);
        let near = Party::Member(member);
        let (from, to, at) =
            if report.outbound { (near, remote, End::From) } else { (remote, near, End::To) };
        let (there, back) = if report.outbound { (0, 1) } else { (1, 0) };
        let seen = Seen {
            from,
            to,
            protocol,
            port: if protocol == Protocol::IcmpEcho { 0 } else { report.port },
            way: report.verdict.into(),
            at,
            counts: Counts {
                flows: report.flows,
                packets: report.packets[there],
                packets_back: report.packets[back],
                bytes: report.bytes[there],
                bytes_back: report.bytes[back],
            },
            first: report.span.0,
            last: report.span.1,
        };
        if self.put(&seen, rhythm) { Folded::Added } else { Folded::TurnedAway }
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
            told: tally.sides.map(|side| side != Counts::default()),
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

/// What a delta and a stored edge have in common.
struct Report {
    member: Option<MemberId>,
    remote: IpAddr,
    remote_member: Option<MemberId>,
    outbound: bool,
    protocol: u8,
    port: u16,
    verdict: Verdict,
    flows: u64,
    packets: [u64; 2],
    bytes: [u64; 2],
    span: (UnixMillis, UnixMillis),
}
