//! What the engine tells about itself: reports, status, flows, and what it learnt.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anteroom_proto::alarm::Alarm;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::name::Name;
use anteroom_proto::v1::Unlisted;
use anteroom_proto::v1::telemetry::{MAX_ALARMS, MAX_EDGES, MAX_SIGHTINGS, Sighting, TunnelState};

use super::Engine;
use crate::flow::Flow;
use crate::nexthop;
use crate::port::PortId;
use crate::report::{
    DeviceStatus, EngineReport, EngineStatus, FlowInfo, Learned, LearnedNextHop, PortStatus,
    TableSizes, ViewStatus,
};
use crate::station::{Learnt, PortState, Sight, Station, kind};

/// Flows whose counters are gathered at once for a report: packets wait meanwhile.
const REPORT_BUDGET: usize = 2_048;
/// How long packets have their turn in between.
const REPORT_PAUSE: Duration = Duration::from_millis(5);

impl Engine {
    /// Begins to gather what flows have counted for a report. It goes on in [`Self::handle_timeout`], in steps between
    /// which packets have their turn, until [`Self::is_gathering`] says no.
    pub fn prepare_report(&mut self, now: Instant) {
        self.flows.begin_report();
        self.gathered = true;
        self.gather(now);
    }

    /// Whether what [`Self::prepare_report`] began isn't done yet.
    #[must_use]
    pub const fn is_gathering(&self) -> bool {
        self.next_gathering.is_some()
    }

    /// Takes out what happened since the last call. What doesn't fit one report comes with the next. What wasn't
    /// gathered by [`Self::prepare_report`] is now, however many flows there are.
    pub fn report(&mut self, now: Instant) -> EngineReport {
        if !std::mem::take(&mut self.gathered) {
            self.flows.begin_report();
            self.gather(now);
        }
        while self.is_gathering() {
            self.gather(now);
        }
        EngineReport {
            sightings: self.take_sightings(),
            edges: self.recorder.take_edges(&self.clock, MAX_EDGES),
            drops: self.recorder.take_drops(),
            overflow: self.recorder.take_overflow(),
            tunnels: self.tunnels(now),
            alarms: self.alarms(now),
            bypasses: self.bypasses.by_file(),
            trials: self.recorder.trials.reports(now),
            held_back: self.held_back(),
        }
    }

    /// Moves what some flows have counted to their edges.
    pub(super) fn gather(&mut self, now: Instant) {
        let (recorder, stations) = (&mut self.recorder, &self.stations);
        let more = self.flows.report_some(REPORT_BUDGET, |flow, judgement| {
            recorder.flush(stations, flow, judgement);
        });
        self.next_gathering = more.then(|| now + REPORT_PAUSE);
    }

    /// The engine at a glance.
    #[must_use]
    pub fn status(&self, now: Instant) -> EngineStatus {
        let view = self.policy.as_ref().map(|policy| ViewStatus {
            number: policy.view.operation.number,
            revision: policy.view.revision,
        });
        EngineStatus {
            gateway: self.identity.gateway,
            view,
            epoch: self.epoch,
            time_confirmed: self.clock.is_confirmed(),
            time: self.clock.wall(now),
            doubted: self.clock.doubted().to_vec(),
            wants_gro: self.wants_gro(),
            ports: self.device_ports().filter_map(|port| self.port_status(port)).collect(),
            devices: self.devices(now),
            peers: self.tunnels(now),
            lanes: self.lanes(),
            lanes_turned_away: self.lanes_turned_away(),
            tunnels_turned_away: self.peers.turned_away(),
            outside: self.peers.outside(),
            shut_off: self.peers.shut_off(),
            nearer: self.peers.nearer(),
            bypasses: self.bypasses.in_force.clone(),
            trials: self.recorder.trials.reports(now),
            alarms: self.alarms(now),
            drops: self.recorder.all_drops(),
            overflow: self.recorder.all_overflow(),
            folded: self.recorder.folded(),
            tables: TableSizes {
                flows: self.flows.len(),
                edges: self.recorder.edges(),
                bridge: self.bridge.len(),
                stations: self.stations.len(),
                fragments: self.fragments.len(),
            },
        }
    }

    fn alarms(&self, now: Instant) -> Vec<Alarm> {
        let standing = self.alarms.standing(now).map(|standing| Alarm {
            kind: standing.about.kind,
            port: self.port_name(standing.port),
            mac: standing.about.mac,
            address: standing.about.address,
            member: standing.about.member,
            count: standing.count,
            first: self.clock.wall(standing.first),
            last: self.clock.wall(standing.last),
        });
        standing.take(MAX_ALARMS).collect()
    }

    fn port_status(&self, port: PortId) -> Option<PortStatus> {
        let state: &PortState = self.stations.port(port)?;
        let devices = self
            .stations
            .iter()
            .filter(|(_, station)| station.port == port && station.device.is_some())
            .count();
        Some(PortStatus {
            name: self.port_name(port)?,
            mode: state.mode,
            devices,
            unknown: state.unknown,
            turned_away: state.turned_away,
            held: state.holds(),
            unlisted: if state.passes_unlisted { Unlisted::Pass } else { Unlisted::Hold },
            frames_in: state.frames_in,
            frames_out: state.frames_out,
        })
    }

    fn devices(&self, now: Instant) -> Vec<DeviceStatus> {
        let status = |(id, station): (_, &Station)| {
            let device = station.device.as_ref()?;
            let [out, back] = station.counts;
            Some(DeviceStatus {
                member: device.member,
                port: self.port_name(station.port)?,
                mac: station.mac,
                addresses: station.sights.iter().flat_map(|s| s.addresses.clone()).collect(),
                held: device.held.clone(),
                mode: device.mode,
                quarantined: device.quarantined,
                router_mac: nexthop::router_of(Some(device), &station.next_hops)
                    .and_then(|(_, mac)| mac),
                flows: self.flows.count_of(self.stations.share(id)),
                packets_out: out.packets,
                packets_in: back.packets,
                bytes_out: out.bytes,
                bytes_in: back.bytes,
                drops: self.recorder.station_drops(id),
                heard_ms: station.heard.map(|at| millis(now.saturating_duration_since(at))),
            })
        };
        self.stations.iter().filter_map(status).collect()
    }

    /// At most `limit` flows, the most recently used first.
    #[must_use]
    pub fn flows(&self, now: Instant, limit: usize) -> Vec<FlowInfo> {
        let flows = self.flows.recent(limit).into_iter();
        flows.filter_map(|flow| self.flow_info(flow, now)).collect()
    }

    pub(super) fn flow_info(&self, flow: &Flow, now: Instant) -> Option<FlowInfo> {
        let station = self.stations.get(flow.station)?;
        let tuple = flow.tuple();
        let judgement = self.flows.judgement_of(flow)?;
        let since = |at| millis(now.saturating_duration_since(self.flows.instant(at)));
        let [out, back] = flow.totals();
        Some(FlowInfo {
            port: self.port_name(station.port)?,
            mac: station.mac,
            member: station.device.as_ref().map(|device| device.member),
            initiator: IpAddr::V4(tuple.source),
            initiator_port: tuple.source_port,
            responder: IpAddr::V4(tuple.destination),
            responder_port: tuple.destination_port,
            protocol: tuple.protocol,
            verdict: judgement.verdict,
            rule: judgement.rule,
            state: flow.state.as_str().to_owned(),
            packets_out: out.packets,
            packets_in: back.packets,
            bytes_out: out.bytes,
            bytes_in: back.bytes,
            age_ms: since(flow.created),
            idle_ms: since(flow.last),
        })
    }

    pub(super) fn tunnels(&self, now: Instant) -> Vec<TunnelState> {
        let shut_off = self.peers.shut_off();
        let state = |peer: &crate::peer::Peer| {
            let state = peer.state(now);
            let shut_off = shut_off.contains(&state.gateway);
            TunnelState { endpoint: peer.endpoint(), shut_off, ..state }
        };
        self.peers.iter().map(|(_, peer)| state(peer)).collect()
    }

    /// Where packets for peers are sent to now.
    #[must_use]
    pub fn peer_addresses(&self) -> Vec<std::net::SocketAddr> {
        self.peers.iter().filter_map(|(_, peer)| peer.endpoint()).collect()
    }

    pub(super) fn port_name(&self, port: PortId) -> Option<Name> {
        let at = port.index().checked_sub(1)?;
        self.config.ports.get(at).map(|port| port.name.clone())
    }

    fn take_sightings(&mut self) -> Vec<Sighting> {
        let news = self.holdings.take_news();
        for station in self.stations.iter_mut() {
            if station.device.as_ref().is_some_and(|device| news.contains(&device.member)) {
                station.sights.iter_mut().for_each(|sight| sight.changed = true);
            }
        }
        let mut sightings = Vec::new();
        let names: Vec<Option<Name>> =
            self.config.ports.iter().map(|port| Some(port.name.clone())).collect();
        for station in self.stations.iter_mut() {
            let Some(Some(port)) = names.get(station.port.index().wrapping_sub(1)) else {
                continue;
            };
            for at in 0..station.sights.len() {
                if sightings.len() >= MAX_SIGHTINGS {
                    return sightings;
                }
                if station.sights[at].take_news() {
                    let mut sighting = sighting(station, &station.sights[at], port);
                    let member = sighting.member.filter(|_| sighting.vlan.is_none());
                    sighting.claim =
                        member.and_then(|member| self.holdings.claim_of(member).cloned());
                    sightings.push(sighting);
                }
            }
        }
        sightings
    }

    /// What is worth keeping over a restart.
    #[must_use]
    pub fn learned(&self) -> Learned {
        let mut learned = Learned::default();
        for (_, station) in self.stations.iter() {
            let Some(port) = self.port_name(station.port) else { continue };
            learned.next_hops.extend(station.next_hops.iter().map(|(address, mac)| {
                LearnedNextHop { port: port.clone(), device: station.mac, address, mac }
            }));
            learned
                .sightings
                .extend(station.sights.iter().map(|sight| sighting(station, sight, &port)));
        }
        learned.claims = self.holdings.claims();
        learned.clients = self.client_places();
        learned.agreed = self.peers.agreed();
        learned
    }

    /// Takes back what an earlier run learnt. Pinned and newer knowledge wins.
    pub fn restore(&mut self, learned: Learned) {
        for sighting in learned.sightings {
            let Some(port) = self.port_named(&sighting.port) else { continue };
            let Some(station) = self.restored_station(port, sighting.mac) else { continue };
            let known = station.sights.iter().any(|sight| sight.vlan == sighting.vlan);
            if !known {
                station.restore(&sighting);
            }
        }
        for hop in learned.next_hops {
            self.restore_next_hop(&hop);
        }
        self.holdings.restore(learned.claims);
        self.peers.restore_agreed(learned.agreed);
        let clients = learned.clients.into_iter();
        self.clients_were = clients.map(|client| (client.member, client.at)).collect();
        self.guard();
    }

    fn restore_next_hop(&mut self, hop: &LearnedNextHop) {
        let limit = self.config.limits.next_hops_per_device;
        let Some(port) = self.port_named(&hop.port) else { return };
        if let Some(station) = self.restored_station(port, hop.device) {
            station.next_hops.restore(hop.address, hop.mac, limit);
        }
    }

    /// The station with this address, given a place on this port if it has none.
    fn restored_station(&mut self, port: PortId, mac: MacAddr) -> Option<&mut Station> {
        let id = match self.stations.find(mac) {
            Some(id) => id,
            None => match self.stations.learn(port, mac, self.next_sweep) {
                Learnt::New(id) => id,
                Learnt::Replaced(_) | Learnt::Full => return None,
            },
        };
        self.stations.get_mut(id).filter(|station| station.port == port)
    }

    fn port_named(&self, name: &Name) -> Option<PortId> {
        let at = self.config.ports.iter().position(|port| port.name == *name)?;
        u16::try_from(at).ok().map(PortId::device)
    }
}

fn sighting(station: &Station, sight: &Sight, port: &Name) -> Sighting {
    let router: Option<(std::net::Ipv4Addr, MacAddr)> = station.next_hops.router();
    Sighting {
        port: port.clone(),
        mac: station.mac,
        vlan: sight.vlan,
        addresses: sight.addresses.clone(),
        prefix_len: station.next_hops.prefix_len(),
        router,
        member: station.device.as_ref().map(|device| device.member),
        held: station.held,
        kinds: kind::WORDS
            .iter()
            .filter(|(bit, _)| sight.kinds & bit != 0)
            .map(|(_, word)| (*word).to_owned())
            .collect(),
        claim: None,
        first_seen: sight.first,
        last_seen: sight.last,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
