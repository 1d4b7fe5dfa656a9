//! What is counted and remembered: edges, drops, what found no room.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use anteroom_proto::id::{MemberId, RuleId};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::v1::telemetry::EdgeDelta;
use anteroom_proto::verdict::{DropReason, Verdict};

use crate::clock::Clock;
use crate::device::{StationId, Stations};
use crate::flow::{Count, Flow};
use crate::report::DropRecord;
use crate::table::Map;
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
}

/// Traffic of an edge: from the device, and to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Traffic {
    pub(super) flows: u64,
    pub(super) counts: [Count; 2],
    pub(super) first: Instant,
    pub(super) last: Instant,
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

/// Counts and remembers. Everything in it is bounded.
#[derive(Debug)]
pub(super) struct Recorder {
    drops: [u64; REASONS],
    drops_reported: [u64; REASONS],
    overflow: u64,
    overflow_reported: u64,
    edges: Map<EdgeKey, Traffic>,
    edge_limit: usize,
    stations: Vec<StationDrops>,
    recent_limit: usize,
}

impl Recorder {
    pub(super) fn new(
        edge_limit: usize,
        recent_limit: usize,
        edges: Map<EdgeKey, Traffic>,
    ) -> Self {
        Self {
            drops: [0; REASONS],
            drops_reported: [0; REASONS],
            overflow: 0,
            overflow_reported: 0,
            edges,
            edge_limit,
            stations: Vec::new(),
            recent_limit: recent_limit.max(1),
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

    /// Adds traffic to an edge.
    pub(super) fn edge(&mut self, key: EdgeKey, traffic: &Traffic) {
        if let Some(known) = self.edges.get_mut(&key) {
            known.flows += traffic.flows;
            for (known, more) in known.counts.iter_mut().zip(traffic.counts) {
                known.add(more.packets, more.bytes);
            }
            known.first = known.first.min(traffic.first);
            known.last = known.last.max(traffic.last);
        } else if self.edges.len() < self.edge_limit {
            self.edges.insert(key, *traffic);
        } else {
            self.overflow();
        }
    }

    /// Moves what a flow counted since the last time to its edge.
    pub(super) fn flush(&mut self, stations: &Stations, flow: &mut Flow) {
        let counts = flow.unreported.counts;
        let opened = std::mem::take(&mut flow.unreported.opened);
        flow.unreported.counts = [Count::default(); 2];
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
            remote_member: flow.judgement.remote,
            outbound: flow.outbound,
            protocol: tuple.protocol,
            port: if echo { 0 } else { tuple.destination_port },
            verdict: flow.judgement.verdict,
            rule: flow.judgement.rule,
        };
        let (first, last) = (flow.unreported.first, flow.unreported.last);
        self.edge(key, &Traffic { flows: u64::from(opened), counts, first, last });
    }

    /// Takes out at most `limit` edges.
    pub(super) fn take_edges(&mut self, clock: &Clock, limit: usize) -> Vec<EdgeDelta> {
        let keys: Vec<EdgeKey> = self.edges.keys().take(limit).copied().collect();
        keys.into_iter()
            .filter_map(|key| self.edges.remove(&key).map(|traffic| delta(&key, &traffic, clock)))
            .collect()
    }

    pub(super) fn edges(&self) -> usize {
        self.edges.len()
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
