//! What is counted and remembered: edges, drops, what found no room.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use anteroom_proto::id::{MemberId, RuleId};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::v1::telemetry::EdgeDelta;
use anteroom_proto::verdict::{DropReason, Verdict};
use foldhash::quality::FixedState;

use crate::clock::Clock;
use crate::flow::{Count, Flow, Judgement, News, Origin};
use crate::limits::Limits;
use crate::report::DropRecord;
use crate::station::{Share, StationId, Stations};
use crate::table::Map;
use crate::trial::Trials;
use crate::wire::FiveTuple;

const REASONS: usize = DropReason::ALL.len();

/// What makes two flows part of the same edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct EdgeKey {
    pub(super) mac: MacAddr,
    pub(super) member: Option<MemberId>,
    pub(super) local: Ipv4Addr,
    pub(super) remote: Ipv4Addr,
    pub(super) remote_member: Option<MemberId>,
    pub(super) outbound: bool,
    pub(super) protocol: u8,
    pub(super) port: u16,
    pub(super) verdict: Verdict,
    pub(super) rule: Option<RuleId>,
    /// Whether it stands for many: see [`Recorder::edge`].
    pub(super) folded: bool,
}

/// Traffic of an edge: from the device, and to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Traffic {
    pub(super) flows: u64,
    pub(super) counts: [Count; 2],
    pub(super) first: Instant,
    pub(super) last: Instant,
}

impl EdgeKey {
    /// The edge that stands for many like it.
    const fn fold(self, remote: Ipv4Addr) -> Self {
        Self { remote, remote_member: None, port: 0, rule: None, folded: true, ..self }
    }
}

impl Traffic {
    const fn is_answered(&self) -> bool {
        self.counts[0].packets > 0 && self.counts[1].packets > 0
    }

    fn add(&mut self, more: &Self) {
        self.flows += more.flows;
        for (known, more) in self.counts.iter_mut().zip(more.counts) {
            known.add(more.packets, more.bytes);
        }
        self.first = self.first.min(more.first);
        self.last = self.last.max(more.last);
    }
}

/// A drop that is remembered, and how many like it followed.
#[derive(Debug, Clone, Copy)]
struct Recent {
    reason: DropReason,
    tuple: Option<FiveTuple>,
    count: u64,
    last: Instant,
}

#[derive(Debug, Default)]
struct StationDrops {
    counts: Vec<u64>,
    recent: VecDeque<Recent>,
}

/// Edges of one share.
#[derive(Debug)]
struct Edges {
    kept: Map<EdgeKey, Traffic>,
    /// How many of them nobody answered.
    unanswered: usize,
}

/// Counts and remembers. Everything in it is bounded, per device where a device can make it grow.
#[derive(Debug)]
pub(super) struct Recorder {
    drops: [u64; REASONS],
    drops_reported: [u64; REASONS],
    overflow: u64,
    overflow_reported: u64,
    folded: u64,
    /// By [`Share::index`].
    edges: Vec<Edges>,
    edge_count: usize,
    /// Whose edges the next report begins with.
    next_share: usize,
    hasher: FixedState,
    limits: EdgeLimits,
    stations: Vec<StationDrops>,
    recent_limit: usize,
    /// From when the moments of flows count.
    origin: Origin,
    /// Devices on trial, which what is counted here decides about.
    pub(super) trials: Trials,
}

/// How many edges may be kept between two reports.
#[derive(Debug, Clone, Copy)]
struct EdgeLimits {
    all: usize,
    per_share: usize,
    unanswered: usize,
}

/// Most remote addresses to which a device's unanswered flows are folded by themselves.
const FOLDED_REMOTES: usize = 32;

impl Recorder {
    pub(super) fn new(limits: &Limits, hasher: FixedState, origin: Origin) -> Self {
        Self {
            drops: [0; REASONS],
            drops_reported: [0; REASONS],
            overflow: 0,
            overflow_reported: 0,
            folded: 0,
            edges: Vec::new(),
            edge_count: 0,
            next_share: 0,
            hasher,
            limits: EdgeLimits {
                all: limits.edges,
                per_share: limits.edges_per_device,
                unanswered: limits.unanswered_per_device,
            },
            stations: Vec::new(),
            recent_limit: limits.recent_drops_per_device.max(1),
            origin,
            trials: Trials::default(),
        }
    }

    /// Counts drops that belong to no packet at hand.
    pub(super) fn drops(&mut self, reason: DropReason, count: u64) {
        let counter = &mut self.drops[reason.index()];
        *counter = counter.saturating_add(count);
    }

    /// Counts a dropped packet, and remembers it for its device.
    pub(super) fn drop(
        &mut self,
        station: Option<StationId>,
        reason: DropReason,
        tuple: Option<FiveTuple>,
        now: Instant,
    ) {
        tracing::trace!(?station, %reason, ?tuple, "dropped");
        self.drops(reason, 1);
        let Some(station) = station else { return };
        if let Some(tuple) = &tuple {
            self.trials.dropped(station, reason, tuple, now);
        }
        if self.stations.len() <= station.index() {
            self.stations.resize_with(station.index() + 1, StationDrops::default);
        }
        let drops = &mut self.stations[station.index()];
        if drops.counts.is_empty() {
            drops.counts = vec![0; REASONS];
        }
        drops.counts[reason.index()] += 1;
        let same = drops.recent.iter_mut().find(|r| r.reason == reason && r.tuple == tuple);
        if let Some(recent) = same {
            recent.count += 1;
            recent.last = now;
            return;
        }
        if drops.recent.len() >= self.recent_limit {
            drops.recent.pop_front();
        }
        drops.recent.push_back(Recent { reason, tuple, count: 1, last: now });
    }

    /// Forgets what was dropped of a station whose place another takes.
    pub(super) fn forget(&mut self, station: StationId) {
        if let Some(drops) = self.stations.get_mut(station.index()) {
            *drops = StationDrops::default();
        }
    }

    /// Counts something that found no room.
    pub(super) fn overflow(&mut self) {
        self.overflow = self.overflow.saturating_add(1);
    }

    /// Adds traffic to an edge of a share. What nobody answered is folded where a share has many such edges: a
    /// scan leaves a few entries with its numbers, and no room taken from what was answered.
    pub(super) fn edge(&mut self, share: Share, key: EdgeKey, traffic: &Traffic) {
        let hasher = &self.hasher;
        if self.edges.len() <= share.index() {
            let none = || Edges { kept: Map::with_hasher(hasher.clone()), unanswered: 0 };
            self.edges.resize_with(share.index() + 1, none);
        }
        let EdgeLimits { per_share, unanswered: most, .. } = self.limits;
        let own = &mut self.edges[share.index()];
        if let Some(known) = own.kept.get_mut(&key) {
            let was = known.is_answered();
            known.add(traffic);
            own.unanswered -= usize::from(!was && known.is_answered());
            return;
        }
        let answered = traffic.is_answered();
        if !answered && own.unanswered >= most && !key.folded {
            self.folded = self.folded.saturating_add(traffic.flows);
            let one = key.fold(key.remote);
            let anyone = key.fold(Ipv4Addr::UNSPECIFIED);
            let room = own.unanswered < most + FOLDED_REMOTES || own.kept.contains_key(&one);
            return self.edge(share, if room { one } else { anyone }, traffic);
        }
        // Folded entries are few, and must find their place.
        if own.kept.len() >= per_share && !key.folded {
            return self.overflow();
        }
        if self.edge_count >= self.limits.all && !self.make_room(share) {
            return self.overflow();
        }
        let own = &mut self.edges[share.index()];
        own.unanswered += usize::from(!answered);
        own.kept.insert(key, *traffic);
        self.edge_count += 1;
    }

    /// Gives up an edge of the share that has the most, unless that is `share` itself.
    fn make_room(&mut self, share: Share) -> bool {
        let fullest = (0..self.edges.len()).max_by_key(|at| self.edges[*at].kept.len());
        let Some(fullest) = fullest.filter(|at| *at != share.index()) else { return false };
        let key = self.edges[fullest].kept.keys().next().copied();
        let gone = key.and_then(|key| self.take(fullest, &key));
        if gone.is_some() {
            self.overflow();
        }
        gone.is_some()
    }

    fn take(&mut self, share: usize, key: &EdgeKey) -> Option<Traffic> {
        let edges = self.edges.get_mut(share)?;
        let traffic = edges.kept.remove(key)?;
        edges.unanswered -= usize::from(!traffic.is_answered());
        self.edge_count -= 1;
        Some(traffic)
    }

    /// Moves what a flow counted since the last time to its edge.
    pub(super) fn flush(&mut self, stations: &Stations, flow: &mut Flow, judgement: &Judgement) {
        let News { opened, counts, first, last } = flow.take_news();
        if !opened && counts[0].packets == 0 && counts[1].packets == 0 {
            return;
        }
        let Some(station) = stations.get(flow.station) else { return };
        let tuple = flow.tuple();
        let (local, remote, counts) = if flow.outbound {
            (tuple.source, tuple.destination, counts)
        } else {
            (tuple.destination, tuple.source, [counts[1], counts[0]])
        };
        let echo = flow.key.protocol() == crate::wire::icmp::PROTOCOL;
        let key = EdgeKey {
            mac: station.mac,
            member: station.device.as_ref().map(|device| device.member),
            local,
            remote,
            remote_member: judgement.remote,
            outbound: flow.outbound,
            protocol: tuple.protocol,
            port: if echo { 0 } else { tuple.destination_port },
            verdict: judgement.verdict,
            rule: judgement.rule,
            folded: false,
        };
        let (first, last) = (self.origin.instant(first), self.origin.instant(last));
        self.edge(flow.share, key, &Traffic { flows: u64::from(opened), counts, first, last });
    }

    /// Takes out at most `limit` edges, some of each share.
    pub(super) fn take_edges(&mut self, clock: &Clock, limit: usize) -> Vec<EdgeDelta> {
        let busy = self.edges.iter().filter(|edges| !edges.kept.is_empty()).count();
        let mut taken = Vec::new();
        for at in 0..self.edges.len() {
            let share = (self.next_share + at) % self.edges.len();
            let fair = (limit / busy.max(1)).max(1).min(limit - taken.len());
            self.take_some(share, fair, clock, &mut taken);
        }
        // What quiet devices left of the report's room.
        for share in 0..self.edges.len() {
            self.take_some(share, limit - taken.len(), clock, &mut taken);
        }
        self.next_share = self.next_share.wrapping_add(1) % self.edges.len().max(1);
        taken
    }

    fn take_some(&mut self, share: usize, most: usize, clock: &Clock, into: &mut Vec<EdgeDelta>) {
        let keys: Vec<EdgeKey> = self.edges[share].kept.keys().take(most).copied().collect();
        for key in keys {
            if let Some(traffic) = self.take(share, &key) {
                into.push(delta(&key, &traffic, clock));
            }
        }
    }

    pub(super) const fn edges(&self) -> usize {
        self.edge_count
    }

    /// Flows that were recorded together with others.
    pub(super) const fn folded(&self) -> u64 {
        self.folded
    }

    /// Drops by reason since the last call.
    pub(super) fn take_drops(&mut self) -> BTreeMap<String, u64> {
        let news = words(|at| self.drops[at] - self.drops_reported[at]);
        self.drops_reported = self.drops;
        news
    }

    /// What found no room since the last call.
    pub(super) fn take_overflow(&mut self) -> u64 {
        let news = self.overflow - self.overflow_reported;
        self.overflow_reported = self.overflow;
        news
    }

    /// Drops by reason since the start.
    pub(super) fn all_drops(&self) -> BTreeMap<String, u64> {
        words(|at| self.drops[at])
    }

    /// What found no room since the start.
    pub(super) fn all_overflow(&self) -> u64 {
        self.overflow
    }

    /// Drops of a station by reason.
    pub(super) fn station_drops(&self, station: StationId) -> BTreeMap<String, u64> {
        self.stations.get(station.index()).map_or_else(BTreeMap::new, |drops| {
            words(|at| drops.counts.get(at).copied().unwrap_or(0))
        })
    }

    /// The last remembered drop of a station that fits.
    pub(super) fn last_drop(
        &self,
        station: StationId,
        clock: &Clock,
        fits: impl Fn(&FiveTuple) -> bool,
    ) -> Option<DropRecord> {
        let drops = self.stations.get(station.index())?;
        let recent = drops
            .recent
            .iter()
            .filter(|recent| recent.tuple.as_ref().is_some_and(&fits))
            .max_by_key(|recent| recent.last)?;
        Some(DropRecord {
            reason: recent.reason,
            source: recent.tuple.map(|tuple| tuple.source.into()),
            source_port: recent.tuple.map_or(0, |tuple| tuple.source_port),
            destination: recent.tuple.map(|tuple| tuple.destination.into()),
            destination_port: recent.tuple.map_or(0, |tuple| tuple.destination_port),
            protocol: recent.tuple.map_or(0, |tuple| tuple.protocol),
            count: recent.count,
            last: clock.wall(recent.last),
        })
    }
}

fn words(count: impl Fn(usize) -> u64) -> BTreeMap<String, u64> {
    DropReason::ALL
        .iter()
        .map(|reason| (reason.as_str().to_owned(), count(reason.index())))
        .filter(|(_, count)| *count > 0)
        .collect()
}

fn delta(key: &EdgeKey, traffic: &Traffic, clock: &Clock) -> EdgeDelta {
    let [out, back] = traffic.counts;
    EdgeDelta {
        mac: key.mac,
        member: key.member,
        local: IpAddr::V4(key.local),
        remote: IpAddr::V4(key.remote),
        remote_member: key.remote_member,
        outbound: key.outbound,
        protocol: key.protocol,
        port: key.port,
        verdict: key.verdict,
        rule: key.rule,
        flows: traffic.flows,
        packets_out: out.packets,
        packets_in: back.packets,
        bytes_out: out.bytes,
        bytes_in: back.bytes,
        first: clock.wall(traffic.first),
        last: clock.wall(traffic.last),
    }
}
