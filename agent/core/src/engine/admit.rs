//! The stage of port security: whose frame it is, and whether it may say what it says of itself.

use std::net::Ipv4Addr;
use std::time::Instant;

use anteroom_proto::alarm::AlarmKind;
use anteroom_proto::id::MemberId;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::verdict::DropReason;

use super::{Engine, Header, Kind};
use crate::alarm::About;
use crate::batch::RxFrame;
use crate::bridge;
use crate::device::is_host;
use crate::infrastructure;
use crate::nexthop;
use crate::port::PortId;
use crate::security::{self, Sender};
use crate::station::{Learnt, Station, StationId, kind};
use crate::wire::arp::{ArpPacket, Operation, arp_sender, parse_arp};
use crate::wire::{ethernet, parse_ipv4};

/// Why a frame isn't believed: what it claims, and whose that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: DropReason,
    address: Option<Ipv4Addr>,
    member: Option<MemberId>,
}

impl Refusal {
    const fn because(reason: DropReason) -> Self {
        Self { reason, address: None, member: None }
    }

    pub(super) const fn address(address: Ipv4Addr, member: Option<MemberId>) -> Self {
        Self { reason: DropReason::IpSpoofed, address: Some(address), member }
    }
}

impl Engine {
    /// Raises an alarm; what finds no room is counted.
    pub(super) fn raise(
        &mut self,
        kind: AlarmKind,
        port: PortId,
        mac: MacAddr,
        (address, member): (Option<Ipv4Addr>, Option<MemberId>),
        now: Instant,
    ) {
        if !self.alarms.raise(port, About { kind, mac, address, member }, now) {
            self.recorder.overflow();
        }
    }

    /// Whether the gateway itself sent this frame out of `port` a moment ago. Raises the alarm.
    pub(super) fn is_looped(
        &mut self,
        port: PortId,
        header: &Header,
        frame: &RxFrame<'_>,
        now: Instant,
    ) -> bool {
        let group = header.destination.is_group();
        let back = self.echoes.is_back((frame.vlan, &*frame.bytes), port, group, now);
        if back {
            self.raise(AlarmKind::Loop, port, header.source, (None, None), now);
        }
        back
    }

    /// Whether a frame from the uplink may come from there at all.
    pub(super) fn admit_from_uplink(
        &mut self,
        header: &Header,
        frame: &RxFrame<'_>,
        now: Instant,
    ) -> Result<(), DropReason> {
        let (port, source) = (PortId::UPLINK, header.source);
        if source.is_group() {
            return Err(DropReason::Malformed);
        }
        if self.is_looped(port, header, frame, now) {
            return Err(DropReason::Looped);
        }
        if security::is_own(&self.config, source) {
            self.raise(AlarmKind::Loop, port, source, (None, None), now);
            return Err(DropReason::MacSpoofed);
        }
        if source == nexthop::stand_in(self.identity.gateway) {
            return Err(DropReason::MacSpoofed);
        }
        let placed = self.device(source).and_then(|id| self.member_of(id));
        let absent = || self.stations.absent(source).map(|absent| absent.member);
        if let Some(member) = placed.or_else(absent) {
            self.raise(AlarmKind::Moved, port, source, (None, Some(member)), now);
            return Err(DropReason::LocalSourceFromUplink);
        }
        Ok(())
    }

    /// Raises the alarm where somebody on the uplink's side claims the address of a device here.
    pub(super) fn notice_conflict(&mut self, header: &Header, packet: &ArpPacket, now: Instant) {
        let holder = self.policy.as_ref().and_then(|policy| {
            policy.at(packet.sender).and_then(|at| policy.member(at)).filter(|m| m.is_here())
        });
        if let Some(member) = holder.map(|member| member.id) {
            let about = (Some(packet.sender), Some(member));
            self.raise(AlarmKind::Conflict, PortId::UPLINK, header.source, about, now);
        }
    }

    /// Whose frame it is, by its source address. None: there is no room to remember the sender.
    pub(super) fn identify(
        &mut self,
        port: PortId,
        header: &Header,
        now: Instant,
    ) -> Result<Option<StationId>, DropReason> {
        let source = header.source;
        if let Some(member) = self.stations.absent(source).map(|absent| absent.member) {
            self.raise(AlarmKind::Moved, port, source, (None, Some(member)), now);
            return Err(DropReason::UnknownMac);
        }
        self.follow_shared_mac(port, source, now);
        let checked = security::check_source(&self.config, &self.stations, port, source);
        let sender = match checked {
            Ok(sender) => sender,
            Err(reason) => {
                if let Some(member) = self.device(source).and_then(|id| self.member_of(id)) {
                    self.raise(AlarmKind::Moved, port, source, (None, Some(member)), now);
                }
                return Err(reason);
            }
        };
        let confirmed = match sender {
            Sender::Station(id) => self.member_of(id).is_some(),
            Sender::Moved(_) | Sender::New => false,
        };
        if !confirmed {
            self.check_stranger(port, sender, source, now)?;
            self.bridge.forget(source);
        }
        Ok(match sender {
            Sender::Station(id) => Some(id),
            Sender::Moved(id) => {
                self.stations.relocate(id, port);
                Some(id)
            }
            Sender::New => self.learn(port, source, now),
        })
    }

    /// Whether somebody whom nobody confirmed passes for a member elsewhere, for a next hop of devices here, or
    /// for the address that stands for one.
    fn check_stranger(
        &mut self,
        port: PortId,
        sender: Sender,
        source: MacAddr,
        now: Instant,
    ) -> Result<(), DropReason> {
        if source == nexthop::stand_in(self.identity.gateway) {
            return Err(DropReason::MacSpoofed);
        }
        let elsewhere = self.policy.as_ref().and_then(|policy| policy.elsewhere_with(source));
        if let Some(member) = elsewhere.filter(|member| member.mode != Mode::Observe) {
            let member = member.id;
            self.raise(AlarmKind::Moved, port, source, (None, Some(member)), now);
            return Err(DropReason::MacSpoofed);
        }
        let suspicious = sender == Sender::New || self.bridge.knows(source);
        if suspicious && self.is_next_hop(source) {
            self.raise(AlarmKind::Conflict, port, source, (None, None), now);
            return Err(DropReason::MacSpoofed);
        }
        Ok(())
    }

    /// Whether an Ethernet address on the uplink's side is a next hop of a device that has left observe. A router's
    /// is for good, another's while it is heard there: a neighbour may be plugged in here one day.
    fn is_next_hop(&self, mac: MacAddr) -> bool {
        self.guarded.router_macs.contains(&mac)
            || self.guarded.learnt_macs.contains(&mac)
            || (self.bridge.knows(mac)
                && self.stations.iter().any(|(_, station)| {
                    station.stance() != Mode::Observe && station.next_hops.is_neighbour(mac)
                }))
    }

    fn learn(&mut self, port: PortId, source: MacAddr, now: Instant) -> Option<StationId> {
        match self.stations.learn(port, source, now) {
            Learnt::New(id) => Some(id),
            Learnt::Replaced(id) => {
                let (recorder, stations) = (&mut self.recorder, &self.stations);
                let shares = stations.shares(id);
                self.flows.remove_station(id, shares, |mut gone, judgement| {
                    recorder.flush(stations, &mut gone, judgement);
                });
                self.recorder.forget(id);
                Some(id)
            }
            Learnt::Full => {
                self.recorder.overflow();
                if let Some(state) = self.stations.ports.get_mut(port.index()) {
                    state.turned_away = state.turned_away.saturating_add(1);
                }
                None
            }
        }
    }

    /// The member that a station is, if it is confirmed.
    pub(super) fn member_of(&self, id: StationId) -> Option<MemberId> {
        self.stations.get(id)?.device.as_ref().map(|device| device.member)
    }

    /// The IP address that a frame says it comes from, if its sender may say so.
    pub(super) fn claim(
        &self,
        sender: Option<StationId>,
        header: &Header,
        frame: &RxFrame<'_>,
    ) -> Result<Option<Ipv4Addr>, Refusal> {
        let payload = frame.bytes.get(header.at..).unwrap_or_default();
        let station = sender.and_then(|id| self.stations.get(id));
        self.check_vlan(station, header)?;
        let address = match header.ethertype {
            ethernet::IPV4 => {
                payload.get(12..).and_then(|b| b.first_chunk::<4>()).map(|b| Ipv4Addr::from(*b))
            }
            ethernet::ARP => match arp_sender(payload) {
                Some((mac, address)) => {
                    if mac != header.source && self.is_somebody(mac) {
                        return Err(Refusal {
                            address: Some(address),
                            ..Refusal::because(DropReason::MacSpoofed)
                        });
                    }
                    if mac != header.source && !address.is_unspecified() {
                        self.check_ip(station, header, address)?;
                    }
                    (mac == header.source).then_some(address)
                }
                None => None,
            },
            _ => None,
        };
        if let Some(address) = address.filter(|address| !address.is_unspecified()) {
            let checked = self.check_ip(station, header, address);
            if checked.is_err()
                && header.kind() == Kind::Ipv4
                && is_dhcp_request(payload)
                && sender.is_some_and(|id| self.may_name(id, address))
            {
                // A lease that the gateway forgot: its renewal is judged as what it is.
                return Ok(None);
            }
            checked?;
        }
        Ok(address)
    }

    /// Whether an Ethernet address is the gateway's, a confirmed device's, a member's elsewhere or a next hop's.
    fn is_somebody(&self, mac: MacAddr) -> bool {
        security::is_own(&self.config, mac)
            || mac == nexthop::stand_in(self.identity.gateway)
            || self.device(mac).is_some()
            || self.policy.as_ref().is_some_and(|policy| policy.elsewhere_with(mac).is_some())
            || self.is_next_hop(mac)
    }

    /// A device that has left observe stays in its VLAN, and out of those of others.
    fn check_vlan(&self, station: Option<&Station>, header: &Header) -> Result<(), Refusal> {
        let device = station.and_then(|station| station.device.as_ref());
        let Some(device) = device.filter(|device| device.stance != Mode::Observe) else {
            return Ok(());
        };
        let foreign = match header.vlan {
            Some(vlan) => device.vlan != Some(vlan) && self.guarded.vlans.contains(&vlan),
            None => {
                device.vlan.is_some() && matches!(header.ethertype, ethernet::IPV4 | ethernet::ARP)
            }
        };
        if foreign { Err(Refusal::because(DropReason::VlanSpoofed)) } else { Ok(()) }
    }

    fn check_ip(
        &self,
        station: Option<&Station>,
        header: &Header,
        address: Ipv4Addr,
    ) -> Result<(), Refusal> {
        let device = station.and_then(|station| station.device.as_ref());
        let left_observe = device.is_some_and(|device| device.stance != Mode::Observe);
        let owns = device.is_some_and(|device| device.owns(address));
        if left_observe && !owns {
            let member = self.policy.as_ref().and_then(|policy| {
                policy.at(address).and_then(|at| policy.member(at)).map(|member| member.id)
            });
            return Err(Refusal::address(address, member));
        }
        if !is_host(address) || device.is_some_and(|device| device.lists(address)) {
            return Ok(());
        }
        if header.vlan.is_some() {
            return self.check_ip_in_vlan(device.map(|device| device.member), header.vlan, address);
        }
        if self.config.own_addresses.contains(&address.into())
            || self.guarded.routers.contains(&address)
        {
            return Err(Refusal::address(address, None));
        }
        let Some(policy) = &self.policy else { return Ok(()) };
        match policy.at(address).and_then(|at| policy.member(at)) {
            Some(member) if device.is_some_and(|device| device.member == member.id) => Ok(()),
            Some(member) if left_observe || member.mode != Mode::Observe => {
                Err(Refusal::address(address, Some(member.id)))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A VLAN has addresses of its own: only who is in the same one can be meant.
    fn check_ip_in_vlan(
        &self,
        sender: Option<MemberId>,
        vlan: Option<u16>,
        address: Ipv4Addr,
    ) -> Result<(), Refusal> {
        let Some(vlan) = vlan else { return Ok(()) };
        if self.guarded.vlan_routers.contains(&(vlan, address)) {
            return Err(Refusal::address(address, None));
        }
        let holder = self.policy.as_ref().and_then(|policy| policy.in_vlan(vlan, address));
        match holder.filter(|member| sender != Some(member.id)) {
            Some(member) => Err(Refusal::address(address, Some(member.id))),
            None => Ok(()),
        }
    }

    /// Counts a frame that wasn't believed, and raises the alarm where it claims what is somebody else's.
    pub(super) fn refuse_claim(
        &mut self,
        port: PortId,
        sender: Option<StationId>,
        header: &Header,
        frame: &RxFrame<'_>,
        (refusal, now): (Refusal, Instant),
    ) {
        if refusal.address.is_some() {
            let about = (refusal.address, refusal.member);
            self.raise(AlarmKind::Conflict, port, header.source, about, now);
        }
        let tuple = super::from_port::tuple_of(header, frame);
        self.recorder.drop(sender, refusal.reason, tuple, now);
    }

    /// Notes what a frame tells about its sender. `address`: what it says it comes from, if that was believed.
    pub(super) fn sight(
        &mut self,
        sender: Option<StationId>,
        header: &Header,
        frame: &RxFrame<'_>,
        (address, now): (Option<Ipv4Addr>, Instant),
    ) {
        let wall = self.clock.wall(now);
        let Some(station) = sender.and_then(|id| self.stations.get_mut(id)) else { return };
        let payload = frame.bytes.get(header.at..).unwrap_or_default();
        let mut kinds = if header.tagged { kind::TAGGED } else { 0 };
        match header.ethertype {
            ethernet::IPV4 => {
                if header.destination.is_group() && !is_dhcp_request(payload) {
                    let broadcast = header.destination == MacAddr::BROADCAST;
                    kinds |= if broadcast { kind::BROADCAST } else { kind::MULTICAST };
                }
            }
            ethernet::ARP => {
                if let (Some(own), Ok(packet)) = (address, parse_arp(payload))
                    && packet.operation == Operation::Request
                {
                    station.next_hops.asked(own, packet.target);
                }
            }
            ethernet::IPV6 => kinds |= kind::IPV6,
            other if bridge::is_link_control(header.destination, other, header.tagged) => {}
            _ => kinds |= kind::NON_IP,
        }
        station.counts[0].add(1, payload.len() as u64);
        station.see(header.vlan, kinds, address, wall, now);
    }
}

/// Whether an IPv4 packet is a client's whole message to a DHCP server.
fn is_dhcp_request(bytes: &[u8]) -> bool {
    parse_ipv4(bytes)
        .is_ok_and(|packet| packet.fragment.is_none() && infrastructure::is_dhcp_request(&packet))
}
