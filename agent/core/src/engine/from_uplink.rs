//! Frames from the uplink: clear traffic, whose addresses are nobody's identity.

use std::time::Instant;

use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::verdict::{DropReason, Verdict};

use super::deliver::Whole;
use super::from_port::tuple_of;
use super::passage::{Passage, Via};
use super::pieces::Pieces;
use super::{Engine, Header, Kind};
use crate::batch::RxFrame;
use crate::policy::End;
use crate::port::PortId;
use crate::sink::Sink;
use crate::station::StationId;
use crate::wire::arp::{ArpPacket, parse_arp};
use crate::wire::{dhcp, parse_ethernet, parse_ipv4};
use crate::{arp, bridge, infrastructure, security};

impl Engine {
    /// A frame from the uplink, through all stages.
    pub(super) fn uplink_frame(
        &mut self,
        frame: &mut RxFrame<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        if self.hit_from_uplink(frame, now, out) {
            return;
        }
        let header = match parse_ethernet(frame.bytes, frame.vlan) {
            Ok(parsed) => Header::of(&parsed),
            Err(reason) => return self.recorder.drop(None, reason, None, now),
        };
        if let Err(reason) = self.admit_from_uplink(&header, frame, now) {
            return self.recorder.drop(None, reason, tuple_of(&header, frame), now);
        }
        if !self.bridge.hear(header.source, now) {
            self.recorder.overflow();
        }
        if bridge::is_link_control(header.destination, header.ethertype, header.tagged) {
            return self.link_control(frame, now, out);
        }
        if security::is_own(&self.config, header.destination) {
            // The gateway's own traffic, which the host's stack has already.
            return;
        }
        if self.stations.absent(header.destination).is_some() {
            let tuple = tuple_of(&header, frame);
            return self.recorder.drop(None, DropReason::UnknownMac, tuple, now);
        }
        if header.kind() == Kind::Arp {
            return self.arp_from_uplink(&header, frame, now, out);
        }
        if header.destination.is_group() {
            return self.group_from_uplink(&header, frame, now, out);
        }
        let Some(id) = self.device(header.destination) else {
            let tuple = tuple_of(&header, frame);
            return self.hand_on_unconfirmed(&header, tuple, frame, now, out);
        };
        let stance = self.stations.get(id).map_or(Mode::Observe, crate::station::Station::stance);
        match header.kind() {
            Kind::Ipv4 => self.ipv4_from_uplink(id, stance, &header, frame, now, out),
            other if stance >= Mode::Enforce => {
                self.recorder.drop(Some(id), other.reason(&header), None, now);
            }
            _ => self.hand_on(id, Whole::of(frame), now, out),
        }
    }

    /// The confirmed device with this Ethernet address.
    pub(super) fn device(&self, mac: MacAddr) -> Option<StationId> {
        let id = self.stations.find(mac)?;
        self.stations.get(id)?.device.is_some().then_some(id)
    }

    fn hand_on(&mut self, id: StationId, frame: Whole<'_>, now: Instant, out: &mut impl Sink) {
        let Some(port) = self.stations.get(id).map(|station| station.port) else { return };
        self.count_in(id, 1, frame.bytes.len() as u64);
        self.emit(port, frame, now, out);
    }

    /// 802.1X and LLDP between switch and port.
    fn link_control(&mut self, frame: &RxFrame<'_>, now: Instant, out: &mut impl Sink) {
        for port in self.device_ports() {
            self.emit(port, Whole::of(frame), now, out);
        }
    }

    /// To a station that nobody confirmed, or one that was never heard.
    fn hand_on_unconfirmed(
        &mut self,
        header: &Header,
        tuple: Option<crate::wire::FiveTuple>,
        frame: &mut RxFrame<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let id = self
            .stations
            .find(header.destination)
            .filter(|_| !self.bridge.knows(header.destination));
        if let (Some(id), Some(_), Kind::Ipv4) = (id, tuple, header.kind()) {
            let held = self
                .stations
                .get(id)
                .and_then(|station| self.stations.port(station.port))
                .is_some_and(crate::station::PortState::holds);
            if !held {
                return self.ipv4_from_uplink(id, Mode::Observe, header, frame, now, out);
            }
        }
        self.bridge_frame(PortId::UPLINK, None, Whole::of(frame), now, out);
    }

    /// Broadcast and multicast.
    fn group_from_uplink(
        &mut self,
        header: &Header,
        frame: &mut RxFrame<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let payload = frame.bytes.get(header.at..).unwrap_or_default();
        let packet = (header.kind() == Kind::Ipv4).then(|| parse_ipv4(payload).ok()).flatten();
        let answered = packet
            .as_ref()
            .filter(|packet| infrastructure::is_dhcp_answer(packet))
            .and_then(|packet| {
                let message = dhcp::parse_dhcp(packet.udp_payload()?).ok()?;
                let id = self.device(message.client_mac)?;
                Some((id, self.stations.get(id)?.stance(), packet.tuple(), *packet))
            })
            .map(|(id, stance, tuple, packet)| {
                (id, stance, tuple, self.dhcp_answer(id, &packet, now))
            });
        if let Some((id, _, tuple, answer)) =
            answered.filter(|(_, stance, ..)| *stance >= Mode::Enforce)
        {
            match answer {
                Ok(()) => self.hand_on(id, Whole::of(frame), now, out),
                Err(reason) => self.recorder.drop(Some(id), reason, Some(tuple), now),
            }
        } else if self.device_ports().any(|port| self.is_closed(port)) {
            let kind = header.kind();
            let reason =
                if kind == Kind::Ipv4 { DropReason::Broadcast } else { kind.reason(header) };
            self.recorder.drop(None, reason, None, now);
        }
        self.bridge_frame(PortId::UPLINK, None, Whole::of(frame), now, out);
    }

    fn is_closed(&self, port: PortId) -> bool {
        self.stations.port(port).is_some_and(|state| !state.takes_broadcast())
    }

    fn ipv4_from_uplink(
        &mut self,
        id: StationId,
        stance: Mode,
        header: &Header,
        frame: &mut RxFrame<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let packet = match parse_ipv4(frame.bytes.get(header.at..).unwrap_or_default()) {
            Ok(packet) => packet,
            Err(reason) if stance >= Mode::Enforce => {
                return self.recorder.drop(Some(id), reason, None, now);
            }
            Err(_) => return self.hand_on(id, Whole::of(frame), now, out),
        };
        let tuple = packet.tuple();
        if infrastructure::is_dhcp_answer(&packet) {
            // To the address that the device is about to have, or, renewing, to the one that it has.
            match (self.dhcp_answer(id, &packet, now), stance >= Mode::Enforce) {
                (Ok(()), true) => return self.hand_on(id, Whole::of(frame), now, out),
                (Err(reason), true) => {
                    return self.recorder.drop(Some(id), reason, Some(tuple), now);
                }
                (_, false) => {}
            }
        }
        let group = packet.destination.is_broadcast() || packet.destination.is_multicast();
        if group && stance >= Mode::Enforce {
            return self.recorder.drop(Some(id), DropReason::Broadcast, Some(tuple), now);
        }
        let (packets, bytes) = header.amount(frame, &packet);
        let passage = Passage {
            via: Via::Uplink,
            source: End::elsewhere(packet.source, self.who(packet.source)),
            destination: self.end_here(id, packet.destination),
            packets,
            bytes,
        };
        let (decision, waiting) = match self.decide_pieces(&passage, id, &packet, frame.bytes, now)
        {
            Pieces::Go(decision, waiting) => (decision, waiting),
            Pieces::Held => return,
            Pieces::Drop(reason) => return self.recorder.drop(Some(id), reason, Some(tuple), now),
        };
        if let Verdict::Drop(reason) = decision.verdict {
            return self.recorder.drop(Some(id), reason, Some(tuple), now);
        }
        self.prove_from_uplink(id, header, frame, &packet);
        self.hand_on(id, Whole::of(frame), now, out);
        for bytes in waiting {
            let vnet = crate::vnet::VnetHeader::default();
            let later = Whole { vnet, vlan: frame.vlan, bytes: &bytes };
            self.hand_on(id, later, now, out);
        }
    }

    fn arp_from_uplink(
        &mut self,
        header: &Header,
        frame: &mut RxFrame<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let parsed = parse_arp(frame.bytes.get(header.at..).unwrap_or_default());
        if let Ok(packet) = &parsed {
            self.notice_conflict(header, packet, now);
            if self.learn_neighbours(header, packet, now, out) {
                return;
            }
        }
        let to = self.device(header.destination);
        let concerned: Vec<StationId> = match (&parsed, to) {
            (_, Some(id)) => vec![id],
            (Ok(packet), None) if header.destination.is_group() => self.concerned(packet),
            _ => Vec::new(),
        };
        let mut answered = false;
        for id in &concerned {
            let Some(station) = self.stations.get(*id) else { continue };
            if station.stance() < Mode::Enforce {
                let contradicts = match (&parsed, &self.policy) {
                    (Ok(packet), Some(policy)) => arp::contradicts(policy, station, packet),
                    _ => false,
                };
                if contradicts && to.is_some() {
                    self.recorder.drop(Some(*id), DropReason::Arp, None, now);
                } else if to.is_some() {
                    self.hand_on(*id, Whole::of(frame), now, out);
                }
                continue;
            }
            let own = station.device.as_ref().map(|device| device.member);
            let policy = self.policy.as_ref();
            let own = own.and_then(|member| policy?.find(member));
            let outcome = match (&parsed, policy, own) {
                (Ok(packet), Some(policy), Some(own))
                    if station
                        .device
                        .as_ref()
                        .is_some_and(|device| self.holds(device.member, packet.target)) =>
                {
                    arp::to_enforced(policy, own, station, header.source, packet)
                }
                _ => arp::Outcome::DROP,
            };
            match (outcome, &parsed) {
                (arp::Outcome { answer: Some(mac), .. }, Ok(packet)) => {
                    answered = true;
                    self.answer_arp(PortId::UPLINK, packet, mac, out);
                }
                (arp::Outcome { pass: Ok(()), .. }, _) => {
                    self.hand_on(*id, Whole::of(frame), now, out);
                }
                (arp::Outcome { pass: Err(reason), .. }, _) => {
                    self.recorder.drop(Some(*id), reason, None, now);
                }
            }
        }
        if to.is_none() && !answered {
            self.bridge_frame(PortId::UPLINK, None, Whole::of(frame), now, out);
        }
    }

    /// The enforced devices that a broadcast ARP packet concerns: whose address it asks for, and whose router
    /// it speaks for.
    fn concerned(&self, packet: &ArpPacket) -> Vec<StationId> {
        self.stations
            .iter()
            .filter(|(_, station)| {
                station.device.as_ref().is_some_and(|device| {
                    let router = device.router.is_some_and(|r| r.address == packet.sender);
                    let announced = packet.is_announcement() && router;
                    let asked =
                        device.owns(packet.target) && self.holds(device.member, packet.target);
                    device.stance >= Mode::Enforce && (asked || announced)
                })
            })
            .map(|(id, _)| id)
            .collect()
    }
}
