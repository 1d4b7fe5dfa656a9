//! Dynamic addresses: what frames tell about them, and what peers are told.

use std::net::Ipv4Addr;
use std::time::Instant;

use anteroom_proto::alarm::AlarmKind;
use anteroom_proto::id::GatewayId;
use anteroom_proto::key::IdentityKey;
use anteroom_proto::mode::Mode;
use anteroom_proto::verdict::DropReason;

use super::{Engine, Header};
use crate::batch::RxFrame;
use crate::device::prefix_of;
use crate::holding::{At, Holdings, Use};
use crate::infrastructure;
use crate::peer::message::Message;
use crate::port::PortId;
use crate::sink::Sink;
use crate::station::StationId;
use crate::wire::arp::parse_arp;
use crate::wire::dhcp::{DhcpMessage, MessageType};
use crate::wire::{Ipv4Packet, ethernet};

/// How long a lease counts whose server didn't say it.
const UNSAID_LEASE: u32 = 3600;

impl Engine {
    /// Changes holdings; where that changes who has which address, everything that goes by addresses follows.
    pub(super) fn change_holdings(
        &mut self,
        now: Instant,
        change: impl FnOnce(&mut Holdings, &At<'_>) -> bool,
    ) -> bool {
        let Some(policy) = &self.policy else { return false };
        let own_addresses = &self.config.own_addresses;
        let at = At { policy, own_addresses, now, wall: self.clock.wall(now) };
        let changed = change(&mut self.holdings, &at);
        if changed {
            self.follow_holdings();
        }
        self.name_clashes(now);
        changed
    }

    /// Raises alarms for addresses that somebody was refused.
    fn name_clashes(&mut self, now: Instant) {
        for clash in self.holdings.take_clashes() {
            let Some(policy) = &self.policy else { return };
            let Some(member) = policy.find(clash.member).and_then(|index| policy.member(index))
            else {
                continue;
            };
            let station = member.station.and_then(|id| self.stations.get(id));
            let port = station.map_or(PortId::UPLINK, |station| station.port);
            let (mac, about) = (member.mac, (Some(clash.address), clash.holder));
            self.raise(AlarmKind::Conflict, port, mac, about, now);
        }
    }

    fn follow_holdings(&mut self) {
        let Some(policy) = &mut self.policy else { return };
        policy.set_held(self.holdings.all());
        for device in self.stations.iter_mut().filter_map(|station| station.device.as_mut()) {
            device.held = self.holdings.of(device.member).collect();
        }
        self.epoch += 1;
    }

    /// Takes over what a new view says of holdings.
    pub(super) fn reconcile_holdings(&mut self, now: Instant) {
        self.change_holdings(now, |holdings, at| {
            holdings.reconcile(at);
            // The stations and the policy are new, whatever changed.
            true
        });
    }

    /// A device sent from an address: it may come to hold it by that.
    pub(super) fn note_address(
        &mut self,
        sender: Option<StationId>,
        header: &Header,
        frame: &RxFrame<'_>,
        now: Instant,
    ) {
        let (Some(id), false) = (sender, header.tagged) else { return };
        let payload = frame.bytes.get(header.at..).unwrap_or_default();
        let address = match header.ethertype {
            ethernet::IPV4 => {
                payload.get(12..).and_then(|b| b.first_chunk::<4>()).map(|b| Ipv4Addr::from(*b))
            }
            ethernet::ARP => {
                parse_arp(payload).ok().filter(|p| p.sender_mac == header.source).map(|p| p.sender)
            }
            _ => None,
        };
        let Some(address) = address else { return };
        let Some(device) = self.stations.get(id).and_then(|station| station.device.as_ref()) else {
            return;
        };
        let member = device.member;
        if device.held.contains(&address) {
            self.holdings.heard(member, address, now);
            return;
        }
        let somebodys = self.config.own_addresses.contains(&address.into())
            || self.guarded.routers.contains(&address);
        if somebodys || !device.may_hold(address) || device.owns(address) {
            return;
        }
        let watched = device.stance == Mode::Observe;
        let served =
            self.policy.as_ref().is_some_and(|policy| !policy.infrastructure().dhcp.is_empty());
        let seen = Use { address, suffices: watched || !served, watched };
        self.change_holdings(now, |holdings, at| holdings.used(at, member, seen));
    }

    /// Whether a confirmed device may call an address its own towards a DHCP server: it is, or it may come to hold it
    /// and nobody else has it.
    pub(super) fn may_name(&self, id: StationId, address: Ipv4Addr) -> bool {
        let Some(device) = self.stations.get(id).and_then(|station| station.device.as_ref()) else {
            return false;
        };
        let free = |within| {
            !self.config.own_addresses.contains(&address.into())
                && !self.guarded.routers.contains(&address)
                && self.policy.as_ref().is_none_or(|policy| {
                    policy.at(address).is_none()
                        && !policy.is_pinned(address)
                        && !policy.is_reserved(within, address)
                })
        };
        device.owns(address) || prefix_of(&device.addresses, address).is_some_and(free)
    }

    /// Checks what a device says to a DHCP server, and notes it. Returns what kind of message it is.
    ///
    /// # Errors
    /// [`DropReason::Dhcp`] when it isn't the device's own.
    pub(super) fn dhcp_request(
        &mut self,
        id: StationId,
        packet: &Ipv4Packet<'_>,
        now: Instant,
    ) -> Result<MessageType, DropReason> {
        let (Some(policy), Some(station), Some(payload)) =
            (&self.policy, self.stations.get(id), packet.udp_payload())
        else {
            return Err(DropReason::Dhcp);
        };
        // Who isn't confirmed has no address that it could be held to; those of others it was refused before.
        let may_name = |address| station.device.is_none() || self.may_name(id, address);
        let named = packet.source.is_unspecified() || may_name(packet.source);
        let servers = policy.infrastructure();
        let checked = infrastructure::check_request(servers, station.mac, may_name, payload);
        let message =
            checked.and_then(|message| named.then_some(message).ok_or(DropReason::Dhcp))?;
        let member = station.device.as_ref().map(|device| device.member);
        let given_up = match message.message_type {
            MessageType::Release => Some(message.client),
            MessageType::Decline => message.requested,
            _ => None,
        };
        match (given_up, member) {
            (Some(address), Some(member)) => {
                self.change_holdings(now, |holdings, at| holdings.released(at, member, address));
            }
            (Some(_), None) => {}
            (None, _) => {
                if let Some(station) = self.stations.get_mut(id) {
                    station.dhcp = Some((message.transaction, now));
                }
            }
        }
        Ok(message.message_type)
    }

    /// Checks what a DHCP server says to a device, and notes what it gives or takes.
    ///
    /// # Errors
    /// [`DropReason::Dhcp`] when the sender isn't listed, the device asked for nothing like it lately, or it is given an
    /// address that it may not have. Its question stays open then: the server's own answer may be still to come.
    pub(super) fn dhcp_answer(
        &mut self,
        id: StationId,
        packet: &Ipv4Packet<'_>,
        now: Instant,
    ) -> Result<(), DropReason> {
        let (Some(policy), Some(station), Some(payload)) =
            (&self.policy, self.stations.get(id), packet.udp_payload())
        else {
            return Err(DropReason::Dhcp);
        };
        let servers = policy.infrastructure();
        let (mac, asked) = (station.mac, station.dhcp);
        let message =
            infrastructure::check_answer(servers, mac, asked, packet.source, payload, now)?;
        let member = station.device.as_ref().map(|device| device.member);
        let DhcpMessage { message_type, yours, lease_seconds, .. } = message;
        let given = message_type == MessageType::Ack && !yours.is_unspecified();
        // Who isn't confirmed has no addresses that it could be held to.
        let refused = given && member.is_some() && !self.may_name(id, yours);
        if !refused && matches!(message_type, MessageType::Ack | MessageType::Nak) {
            // It is answered. Whoever read the question off the wire comes too late.
            if let Some(station) = self.stations.get_mut(id) {
                station.dhcp = None;
            }
        }
        match (message_type, member) {
            (MessageType::Ack, Some(member)) if given => {
                // A refused one too: whose address it is, an operator should know.
                let seconds = lease_seconds.unwrap_or(UNSAID_LEASE);
                self.change_holdings(now, |holdings, at| {
                    holdings.leased(at, member, yours, seconds)
                });
            }
            (MessageType::Nak, Some(member)) => {
                self.change_holdings(now, |holdings, at| holdings.refused(at, member));
            }
            _ => {}
        }
        if refused { Err(DropReason::Dhcp) } else { Ok(()) }
    }

    /// A packet from a device's port that answers as a DHCP server. Only where its sender has a listed address of
    /// its own, it is heard.
    ///
    /// # Errors
    /// [`DropReason::Dhcp`] for an impostor.
    pub(super) fn dhcp_server_here(
        &mut self,
        from: StationId,
        packet: &Ipv4Packet<'_>,
        now: Instant,
    ) -> Result<(), DropReason> {
        let device = self.stations.get(from).and_then(|station| station.device.as_ref());
        let listed = self
            .policy
            .as_ref()
            .is_some_and(|policy| policy.infrastructure().dhcp.contains(&packet.source));
        if !(listed && device.is_some_and(|device| device.owns(packet.source))) {
            return Err(DropReason::Dhcp);
        }
        let client = packet.udp_payload().and_then(|payload| {
            let message = crate::wire::dhcp::parse_dhcp(payload).ok()?;
            self.stations.find(message.client_mac)
        });
        if let Some(client) = client {
            // Whatever it says to others is judged like any other packet.
            let _ = self.dhcp_answer(client, packet, now);
        }
        Ok(())
    }

    /// What peers said about addresses.
    pub(super) fn take_messages(&mut self, now: Instant, out: &mut impl Sink) {
        while let Some((gateway, message)) = self.peers.poll_message() {
            match message {
                Message::Claim(signed) => {
                    if !self.holdings.may_check(gateway, now) {
                        self.recorder.drop(None, DropReason::QueueFull, None, now);
                        continue;
                    }
                    let mut answer = None;
                    self.change_holdings(now, |holdings, at| {
                        let taken = holdings.take(at, gateway, &signed);
                        answer = taken.answer;
                        taken.changed
                    });
                    match answer {
                        Some(answer) => {
                            self.peers.tell(gateway, &Message::ClaimAnswer(answer), out);
                        }
                        None => self.recorder.drop(None, DropReason::PeerSource, None, now),
                    }
                }
                Message::ClaimAnswer(answer) => {
                    let boot = self.boot_of(gateway);
                    self.change_holdings(now, |holdings, at| {
                        holdings.answered(at, (gateway, boot), answer)
                    });
                }
                Message::Hello(_)
                | Message::HelloReply(_)
                | Message::Lanes(_)
                | Message::SecretPart(_)
                | Message::SecretHeld(_) => {}
            }
        }
    }

    fn boot_of(&self, gateway: GatewayId) -> Option<anteroom_proto::id::BootId> {
        self.peers.slot(gateway).and_then(|slot| self.peers.get(slot)?.boot())
    }

    /// A peer can be told again.
    pub(super) fn peer_is_up(&mut self, gateway: GatewayId, now: Instant) {
        let boot = self.boot_of(gateway);
        self.holdings.peer_is_up(gateway, boot, now);
    }

    /// Looks after leases and silent peers. Once a second will do.
    pub(super) fn look_after_holdings(&mut self, now: Instant) {
        let news: Vec<GatewayId> = self
            .peers
            .iter()
            .filter(|(_, peer)| self.holdings.is_new_run(peer.gateway(), peer.boot()))
            .map(|(_, peer)| peer.gateway())
            .collect();
        for gateway in news {
            self.peer_is_up(gateway, now);
        }
        let Some(policy) = &self.policy else { return };
        let own_addresses = &self.config.own_addresses;
        let at = At { policy, own_addresses, now, wall: self.clock.wall(now) };
        let states = &self.peer_states;
        let silent_since =
            |gateway| states.get(&gateway).filter(|state| !state.live).map(|state| state.since);
        if self.holdings.look(&at, silent_since) {
            self.follow_holdings();
        }
        self.name_clashes(now);
    }

    /// Has this gateway's claims signed with another identity key, those that stand included. What peers hold goes on.
    pub fn set_identity(&mut self, identity: IdentityKey, now: Instant) {
        self.identity.identity = identity.clone();
        let Some(policy) = &self.policy else { return self.holdings.set_key(identity) };
        let own_addresses = &self.config.own_addresses;
        let at = At { policy, own_addresses, now, wall: self.clock.wall(now) };
        self.holdings.sign_anew(&at, identity);
    }

    /// Tells peers what they don't know yet.
    pub(super) fn tell_claims(&mut self, now: Instant, out: &mut impl Sink) {
        let Some(policy) = &self.policy else { return };
        let own_addresses = &self.config.own_addresses;
        let at = At { policy, own_addresses, now, wall: self.clock.wall(now) };
        let states = &self.peer_states;
        let up = |gateway| states.get(&gateway).is_some_and(|state| state.live);
        for due in self.holdings.take_due(&at, up) {
            self.peers.tell(due.gateway, &Message::Claim(due.claim), out);
        }
    }
}
