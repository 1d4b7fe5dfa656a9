//! The shell's sink: takes what the engine sends, and hands it to the kernel in batches that never wait.

mod datagrams;
mod frames;

use std::net::SocketAddr;

use anteroom_agent_core::batch::{RxFrame, VlanTag};
use anteroom_agent_core::lane::{Job, Taken};
use anteroom_agent_core::port::PortId;
use anteroom_agent_core::sink::Sink;
use anteroom_agent_core::target::{Through, Whose};
use anteroom_agent_core::vnet::VnetHeader;
use anteroom_sensor::Way;

pub(super) use self::datagrams::Datagrams;
use self::frames::Frames;
use crate::dataplane::lanes::Threads;
use crate::dataplane::relayed::{Put, Relays};
use crate::dataplane::sensing::Tap;
use crate::dataplane::status::{InterfaceCounters, UnderlayCounters};
use crate::net::packet::PacketSocket;
use crate::net::udp::UdpSocket;

/// Frames or datagrams between two flushes.
const RECORDS: usize = 256;

/// Send queues of all sockets, and the sockets themselves.
pub(super) struct Outbox {
    pub(super) ports: Vec<PortQueue>,
    pub(super) underlay: UdpSocket,
    /// For the datagrams of lanes, where they have a socket of their own.
    pub(super) lanes: Option<UdpSocket>,
    /// The threads that seal for lanes and send, where there are any.
    pub(super) threads: Option<Threads>,
    /// How many of them there are, and why.
    pub(super) threads_chosen: String,
    pub(super) underlay_counters: UnderlayCounters,
    /// The queues of relays' connections.
    pub(super) relays: Relays,
    /// Where first packets of flows are copied to, where the sensor is on.
    pub(super) tap: Option<Tap>,
    frames: Frames,
    datagrams: Datagrams,
    bulk: Datagrams,
}

/// The uplink or a device port.
#[derive(Debug, Default)]
pub(super) struct PortQueue {
    /// None while the interface is gone.
    pub(super) socket: Option<PacketSocket>,
    pub(super) counters: InterfaceCounters,
    /// A send found the interface down or gone.
    pub(super) lost: bool,
    /// The interface refused a UDP super-frame once: they are cut here from then on.
    pub(super) cuts_udp: bool,
    pending: u32,
}

impl Outbox {
    pub(super) fn new(
        sockets: Vec<Option<PacketSocket>>,
        underlay: UdpSocket,
        lanes: Option<UdpSocket>,
    ) -> Self {
        let ports = sockets
            .into_iter()
            .map(|socket| PortQueue { socket, ..PortQueue::default() })
            .collect();
        Self {
            ports,
            underlay,
            lanes,
            threads: None,
            threads_chosen: String::new(),
            underlay_counters: UnderlayCounters::default(),
            relays: Relays::default(),
            tap: None,
            frames: Frames::default(),
            datagrams: Datagrams::default(),
            bulk: Datagrams::default(),
        }
    }

    /// Has the sensor look at what came from a device port, before the engine changes any of it.
    pub(super) fn look_at(&mut self, port: PortId, frames: &[RxFrame<'_>]) {
        let (Some(tap), Some(device)) = (&mut self.tap, port.index().checked_sub(1)) else {
            return;
        };
        for frame in frames {
            tap.frame(Way { port: device, arrived: true }, frame.vlan, &[&*frame.bytes]);
        }
    }

    /// Hands everything to the kernel.
    pub(super) fn flush(&mut self) {
        self.frames.flush(&mut self.ports);
        self.datagrams.flush(&mut self.underlay, &mut self.underlay_counters);
        // Behind lane 0's: a flow that has come to be bulk had its first packets there.
        if let Some(socket) = &mut self.lanes {
            self.bulk.flush(socket, &mut self.underlay_counters);
        }
        if let Some(threads) = &mut self.threads {
            threads.send();
        }
        self.underlay_counters.queue_full += self.relays.flush();
    }

    /// Gives back the memory that a load made it touch. Everything was flushed before.
    pub(super) fn shrink(&mut self) {
        self.flush();
        self.frames.shrink();
        self.datagrams.shrink();
        self.bulk.shrink();
        if let Some(threads) = &mut self.threads {
            threads.shrink();
        }
    }
}

impl Sink for Outbox {
    fn frame(&mut self, port: PortId, vnet: VnetHeader, vlan: Option<VlanTag>, parts: &[&[u8]]) {
        if let (Some(tap), Some(device)) = (&mut self.tap, port.index().checked_sub(1)) {
            tap.frame(Way { port: device, arrived: false }, vlan, parts);
        }
        self.frames.put(&mut self.ports, port, vnet, vlan, parts);
    }

    fn datagram(
        &mut self,
        to: SocketAddr,
        dscp_ecn: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let way = (&mut self.underlay, &mut self.underlay_counters);
        self.datagrams.put(way, to, dscp_ecn, capacity, write);
    }

    fn relayed(
        &mut self,
        to: Through,
        whose: Whose,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        match self.relays.put(to, whose, capacity, write) {
            Put::Waits | Put::Nothing => {}
            Put::Gone => self.underlay_counters.queue_full += 1,
            Put::TooBig => self.underlay_counters.egress_failed += 1,
        }
    }

    fn lane_datagram(
        &mut self,
        _: u8,
        to: SocketAddr,
        dscp_ecn: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let Some(socket) = &mut self.lanes else {
            return self.datagram(to, dscp_ecn, capacity, write);
        };
        if !self.bulk.has_room(capacity) {
            self.datagrams.flush(&mut self.underlay, &mut self.underlay_counters);
        }
        let way = (socket, &mut self.underlay_counters);
        self.bulk.put(way, to, dscp_ecn, capacity, write);
    }

    fn job(&mut self, owner: u8, job: Job<'_>) -> Taken {
        let Some(threads) = &mut self.threads else { return Taken::NoSession };
        if threads.job(owner, &job) {
            return Taken::Yes;
        }
        // The parcel is full: it goes, behind what lane 0 was given before.
        self.datagrams.flush(&mut self.underlay, &mut self.underlay_counters);
        threads.send();
        if threads.job(owner, &job) { Taken::Yes } else { Taken::NoRoom }
    }

    fn hand_on(&mut self, owner: u8, from: SocketAddr, datagram: &[u8]) {
        if let Some(threads) = &mut self.threads {
            threads.hand_on(owner, from, datagram);
        }
    }
}

#[cfg(test)]
mod tests;
