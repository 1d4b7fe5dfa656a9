//! Addresses that several devices of this gateway share, as the members of a cluster do: one of them has it at a
//! time, and whoever announces it takes it over. Nobody whom operators didn't list for it can.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anteroom_proto::id::MemberId;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;

use super::admit::Refusal;
use super::{Engine, Header};
use crate::nexthop;
use crate::port::PortId;
use crate::sink::Sink;
use crate::station::StationId;
use crate::vnet::VnetHeader;
use crate::wire::arp::{ArpPacket, Operation};
use crate::wire::ethernet;

/// How long an address stays with whoever took it over, at least. Two that both want it can't keep the engine busy.
const STAYS: Duration = Duration::from_secs(1);
/// How long a holder must have been silent before another takes over by merely using the address.
const SILENT: Duration = Duration::from_secs(10);

/// Who has a shared address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) member: MemberId,
    /// When it took the address over.
    since: Instant,
}

impl Engine {
    /// Lets a shared address follow the one that announces it.
    ///
    /// # Errors
    /// A [`Refusal`] where somebody listed for it uses it without announcing it while another has it.
    pub(super) fn follow_shared(
        &mut self,
        sender: Option<StationId>,
        header: &Header,
        address: Option<Ipv4Addr>,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<Option<Ipv4Addr>, Refusal> {
        let (Some(id), Some(claimed), Some(policy)) = (sender, address, &self.policy) else {
            return Ok(address);
        };
        if header.tagged || !policy.is_shared(claimed) {
            return Ok(address);
        }
        let Some(own) = self.member_of(id) else { return Ok(address) };
        let Some(holder) = policy.at(claimed).and_then(|at| policy.member(at)) else {
            return Ok(address);
        };
        if holder.id == own {
            return Ok(address);
        }
        let heard = holder.station.and_then(|id| self.stations.get(id)).and_then(|s| s.heard);
        let silent = heard.is_none_or(|at| now.saturating_duration_since(at) >= SILENT);
        let fresh = self.holders.get(&claimed).is_some_and(|known| {
            known.member == holder.id && now.saturating_duration_since(known.since) < STAYS
        });
        let announces = header.ethertype == ethernet::ARP;
        if !silent && (fresh || !announces) {
            return Err(Refusal::address(claimed, Some(holder.id)));
        }
        tracing::debug!(%claimed, from = %holder.id, to = %own, "a shared address moves");
        self.holders.insert(claimed, Holder { member: own, since: now });
        if let Some(policy) = &mut self.policy {
            policy.set_holder(claimed, own);
        }
        self.epoch += 1;
        self.tell_next_hop(id, claimed, out);
        Ok(address)
    }

    /// Lets an Ethernet address that machines share go to the port of whoever has it now, as far as operators listed him
    /// for its IP address.
    pub(super) fn follow_shared_mac(&mut self, port: PortId, mac: MacAddr, now: Instant) {
        let Some(id) = self.stations.find(mac).filter(|_| mac.is_shared()) else { return };
        let Some(station) = self.stations.get(id).filter(|station| station.port != port) else {
            return;
        };
        let fresh = station.moved.is_some_and(|at| now.saturating_duration_since(at) < STAYS);
        if fresh || !self.stations.may_follow(id, port) {
            return;
        }
        tracing::debug!(%mac, %port, "a shared Ethernet address moves");
        self.stations.relocate(id, port);
        if let Some(station) = self.stations.get_mut(id) {
            station.moved = Some(now);
        }
        self.epoch += 1;
    }

    /// Tells an enforced device's next hop where a shared address is now: what the device says of itself doesn't
    /// get there.
    fn tell_next_hop(&mut self, id: StationId, address: Ipv4Addr, out: &mut impl Sink) {
        let (Some(station), Some(policy)) = (self.stations.get(id), &self.policy) else { return };
        let Some(device) = station.device.as_ref().filter(|d| d.stance == Mode::Enforce) else {
            return;
        };
        let needed = policy
            .find(device.member)
            .is_some_and(|own| policy.needs_next_hop(own, |address| device.on_link(address)));
        let router = nexthop::router_of(Some(device), &station.next_hops);
        let (true, Some((router, Some(router_mac)))) = (needed, router) else { return };
        let news = ArpPacket {
            operation: Operation::Reply,
            sender_mac: station.mac,
            sender: address,
            target_mac: router_mac,
            target: router,
        };
        let bytes = news.to_frame(router_mac, station.mac);
        self.stations.ports[PortId::UPLINK.index()].frames_out += 1;
        out.frame(PortId::UPLINK, VnetHeader::default(), None, &[&bytes]);
    }

    /// Whether the gateway answers for an address in a device's name: not while another has it.
    pub(super) fn holds(&self, member: MemberId, address: Ipv4Addr) -> bool {
        let Some(policy) = &self.policy else { return true };
        let holder = policy.at(address).and_then(|at| policy.member(at));
        !policy.is_shared(address) || holder.is_some_and(|holder| holder.id == member)
    }
}
