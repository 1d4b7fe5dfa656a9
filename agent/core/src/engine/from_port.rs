//! Frames from device ports.

mod ipv4;

use std::net::Ipv4Addr;
use std::time::Instant;

use anteroom_proto::mode::Mode;
use anteroom_proto::verdict::DropReason;

use super::deliver::Whole;
use super::{Engine, Header, Kind};
use crate::batch::RxFrame;
use crate::policy::{End, MemberIndex, Who};
use crate::port::PortId;
use crate::security;
use crate::sink::Sink;
use crate::station::{PortState, Station, StationId};
use crate::wire::arp::parse_arp;
use crate::wire::{FiveTuple, ethernet, parse_ethernet, parse_ipv4};
use crate::{arp, bridge, nexthop};

/// What the first stages found out about a frame from a port, for those after them.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    port: PortId,
    /// None: there is no room to remember the sender.
    sender: Option<StationId>,
    /// What the sender's device has come to; observe where it has no device.
    stance: Mode,
    header: Header,
    now: Instant,
}

impl Engine {
    /// A frame from a device port, through all stages.
    pub(super) fn port_frame(
        &mut self,
        port: PortId,
        frame: &mut RxFrame<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        if self.hit_from_port(port, frame, now, out) {
            return;
        }
        let header = match parse_ethernet(frame.bytes, frame.vlan) {
            Ok(parsed) => Header::of(&parsed),
            Err(reason) => return self.recorder.drop(None, reason, None, now),
        };
        if self.is_looped(port, &header, frame, now) {
            return self.recorder.drop(None, DropReason::Looped, tuple_of(&header, frame), now);
        }
        let sender = match self.identify(port, &header, now) {
            Ok(sender) => sender,
            Err(reason) => return self.recorder.drop(None, reason, tuple_of(&header, frame), now),
        };
        self.note_address(sender, &header, frame, now);
        let claim = self
            .claim(sender, &header, frame)
            .and_then(|address| self.follow_shared(sender, &header, address, now, out));
        self.sight(sender, &header, frame, (claim.ok().flatten(), now));
        let station = sender.and_then(|id| self.stations.get(id));
        let stance = station.map_or(Mode::Observe, Station::stance);
        let confirmed = station.is_some_and(|station| station.device.is_some());
        if !confirmed && self.stations.port(port).is_some_and(PortState::holds) {
            if let Some(station) = sender.and_then(|id| self.stations.get_mut(id)) {
                station.hold();
            }
            let tuple = tuple_of(&header, frame);
            return self.recorder.drop(sender, DropReason::UnknownMac, tuple, now);
        }
        if let Err(refusal) = claim {
            return self.refuse_claim(port, sender, &header, frame, (refusal, now));
        }
        if bridge::is_link_control(header.destination, header.ethertype, header.tagged) {
            return self.emit(PortId::UPLINK, Whole::of(frame), now, out);
        }
        if let Err(reason) = self.check_destination(port, &header, frame) {
            return self.recorder.drop(sender, reason, tuple_of(&header, frame), now);
        }
        let arrival = Arrival { port, sender, stance, header, now };
        match header.kind() {
            Kind::Arp => self.arp_from_port(&arrival, frame, out),
            Kind::Ipv4 => self.ipv4_from_port(&arrival, frame, out),
            other if stance >= Mode::Enforce => {
                self.recorder.drop(sender, other.reason(&header), None, now);
            }
            _ => self.bridge_frame(port, sender, Whole::of(frame), now, out),
        }
    }

    /// Whether a frame may be for whom it is for, whatever it carries: neither the gateway itself, nor a station beside the
    /// sender, nor one that is held.
    fn check_destination(
        &self,
        port: PortId,
        header: &Header,
        frame: &RxFrame<'_>,
    ) -> Result<(), DropReason> {
        if security::is_own(&self.config, header.destination) || self.is_for_gateway(header, frame)
        {
            return Err(DropReason::ToGateway);
        }
        let to = self.stations.find(header.destination).and_then(|id| self.stations.get(id));
        if to.is_some_and(|station| station.port == port && !self.is_elsewhere(header)) {
            return Err(DropReason::SamePort);
        }
        if self.is_held(header) {
            return Err(DropReason::UnknownMac);
        }
        Ok(())
    }

    /// Whether an IPv4 packet, well-formed or not, is for one of the gateway's own addresses.
    fn is_for_gateway(&self, header: &Header, frame: &RxFrame<'_>) -> bool {
        let at = header.at + 16;
        header.kind() == Kind::Ipv4
            && frame
                .bytes
                .get(at..)
                .and_then(|bytes| bytes.first_chunk::<4>())
                .is_some_and(|b| self.config.own_addresses.contains(&Ipv4Addr::from(*b).into()))
    }

    /// Whether a frame is for a station here that is held.
    fn is_held(&self, header: &Header) -> bool {
        if self.stations.absent(header.destination).is_some() {
            return true;
        }
        let to = self.stations.find(header.destination).and_then(|id| self.stations.get(id));
        to.is_some_and(|station| {
            station.device.is_none()
                && !self.is_elsewhere(header)
                && self.stations.port(station.port).is_some_and(PortState::holds)
        })
    }

    /// Whether an unconfirmed station's address was heard on the uplink last.
    fn is_elsewhere(&self, header: &Header) -> bool {
        let confirmed = self
            .stations
            .find(header.destination)
            .and_then(|id| self.stations.get(id))
            .is_some_and(|station| station.device.is_some());
        !confirmed && self.bridge.knows(header.destination)
    }

    fn arp_from_port(&mut self, arrival: &Arrival, frame: &mut RxFrame<'_>, out: &mut impl Sink) {
        let Arrival { port, sender, stance, header, now } = *arrival;
        let parsed = parse_arp(frame.bytes.get(header.at..).unwrap_or_default());
        let patient = parsed.is_ok_and(|packet| self.waits_for_router(sender, &packet, now));
        let station = sender.and_then(|id| self.stations.get(id));
        let (packet, outcome) = match (parsed, &self.policy, station) {
            (Ok(packet), Some(policy), Some(station)) => {
                let to_self = packet.target != packet.sender
                    && self.config.own_addresses.contains(&packet.target.into());
                if to_self {
                    return self.recorder.drop(sender, DropReason::ToGateway, None, now);
                }
                let own = station.device.as_ref().and_then(|device| policy.find(device.member));
                let stand_in = nexthop::stand_in(self.identity.gateway);
                let outcome = match own {
                    Some(own) if stance == Mode::Observe => {
                        arp::from_observed(policy, own, &packet)
                    }
                    Some(own) => {
                        let stand_in = (stand_in, patient);
                        arp::from_device(policy, own, station, header.source, &packet, stand_in)
                    }
                    None => arp::Outcome::PASS,
                };
                (packet, outcome)
            }
            (Err(reason), ..) if stance >= Mode::Enforce => {
                return self.recorder.drop(sender, reason, None, now);
            }
            _ => return self.bridge_frame(port, sender, Whole::of(frame), now, out),
        };
        if let Some(owner) = outcome.answer {
            self.answer_arp(port, &packet, owner, out);
        }
        match outcome.pass {
            Ok(()) if stance >= Mode::Enforce => {
                self.emit_uplink(sender, Whole::of(frame), None, now, out);
            }
            Ok(()) => self.bridge_frame(port, sender, Whole::of(frame), now, out),
            Err(reason) if outcome.answer.is_none() => {
                let tuple = FiveTuple {
                    protocol: 0,
                    source: packet.sender,
                    destination: packet.target,
                    source_port: 0,
                    destination_port: 0,
                };
                self.recorder.drop(sender, reason, Some(tuple), now);
            }
            Err(_) => {}
        }
    }

    /// Whether a device on this port has an address.
    fn is_neighbour(&self, port: PortId, address: Ipv4Addr) -> bool {
        let station = || {
            let policy = self.policy.as_ref()?;
            self.stations.get(policy.member(policy.at(address)?)?.station?)
        };
        station().is_some_and(|station| station.port == port)
    }

    /// Who is meant by an address, as far as the view tells.
    pub(super) fn who(&self, address: Ipv4Addr) -> Who {
        self.policy.as_ref().map_or(Who::Address, |policy| policy.who(address))
    }

    /// A station as one end of a flow that uses `address`.
    pub(super) fn end_here(&self, id: StationId, address: Ipv4Addr) -> End {
        let device = self.stations.get(id).and_then(|station| station.device.as_ref());
        let port = self.stations.get(id).and_then(|station| self.stations.port(station.port));
        let member = |device: &crate::device::Device| -> Option<MemberIndex> {
            self.policy.as_ref()?.find(device.member)
        };
        let who = match device.filter(|device| device.owns(address)).and_then(member) {
            Some(index) => Who::Member(index),
            // An address that isn't the station's own gives it nobody's rights, an external's neither.
            None => Who::Impostor,
        };
        End {
            address,
            who,
            here: Some(id),
            stance: device.map_or(Mode::Observe, |device| device.stance),
            shared: port.and_then(|port| port.mode).unwrap_or(Mode::Observe),
        }
    }
}

/// The 5-tuple of a frame, as far as it has one: for what is remembered about drops.
pub(super) fn tuple_of(header: &Header, frame: &RxFrame<'_>) -> Option<FiveTuple> {
    let payload = frame.bytes.get(header.at..)?;
    match header.ethertype {
        ethernet::IPV4 => parse_ipv4(payload).ok().map(|packet| packet.tuple()),
        _ => None,
    }
}
