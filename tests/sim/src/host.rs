//! A small machine: it speaks ARP, answers pings, echoes UDP, and accepts and opens TCP connections.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anteroom_agent_core::wire::arp::{self, Operation};
use anteroom_agent_core::wire::tcp::TcpFlags;
use anteroom_agent_core::wire::{Transport, ethernet, parse_ethernet, parse_ipv4};
use anteroom_proto::mac::MacAddr;

use crate::packet::{self, At};

/// Something that a host got for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// From where.
    pub source: At,
    /// The port that it came to, or 0.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags, or 0.
    pub flags: u8,
    /// What was in it.
    pub payload: Vec<u8>,
    /// Source address of the frame.
    pub mac: MacAddr,
}

/// A machine with one interface.
#[derive(Debug, Clone)]
pub struct Host {
    /// What tests call it.
    pub name: &'static str,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its router. The on-link prefix has 24 bits.
    pub router: Ipv4Addr,
    /// Who has which address, as ARP told.
    pub arp: BTreeMap<Ipv4Addr, MacAddr>,
    /// ARP answers that differed from one before: (address, before, after).
    pub flips: Vec<(Ipv4Addr, MacAddr, MacAddr)>,
    waiting: Vec<(Ipv4Addr, Vec<u8>)>,
    /// What to say once a connection is open: by (peer, own port).
    to_say: BTreeMap<(At, u16), Vec<u8>>,
    /// Everything that it got for itself.
    pub inbox: Vec<Received>,
    /// Every frame that reached its interface.
    pub seen: Vec<Vec<u8>>,
    /// Whether it answers at all.
    pub answers: bool,
}

impl Host {
    /// A machine.
    #[must_use]
    pub const fn new(
        name: &'static str,
        mac: MacAddr,
        address: Ipv4Addr,
        router: Ipv4Addr,
    ) -> Self {
        Self {
            name,
            mac,
            address,
            router,
            arp: BTreeMap::new(),
            flips: Vec::new(),
            waiting: Vec::new(),
            to_say: BTreeMap::new(),
            inbox: Vec::new(),
            seen: Vec::new(),
            answers: true,
        }
    }

    /// Opens a TCP connection and says `payload` once it is open.
    pub fn connect(&mut self, to: At, from_port: u16, payload: &[u8], out: &mut Vec<Vec<u8>>) {
        self.to_say.insert((to, from_port), payload.to_vec());
        self.send(packet::tcp((self.address, from_port), to, TcpFlags::SYN, &[]), out);
    }

    /// Sends an IPv4 packet, asking for the next hop where it isn't known.
    pub fn send(&mut self, packet: Vec<u8>, out: &mut Vec<Vec<u8>>) {
        let Some(destination) =
            packet.get(16..20).and_then(|b| b.first_chunk::<4>()).map(|b| Ipv4Addr::from(*b))
        else {
            return;
        };
        let on_link = destination.octets()[..3] == self.address.octets()[..3];
        let hop = if on_link { destination } else { self.router };
        if let Some(mac) = self.arp.get(&hop) {
            out.push(packet::frame(*mac, self.mac, ethernet::IPV4, &packet));
            return;
        }
        out.push(arp::request(self.mac, self.address, hop).to_vec());
        if self.waiting.len() < 64 {
            self.waiting.push((hop, packet));
        }
    }

    /// Forgets what ARP told, and what waits for it.
    pub fn forget(&mut self) {
        self.arp.clear();
        self.waiting.clear();
    }

    /// Takes a frame; what it says to that goes to `out`.
    pub fn receive(&mut self, bytes: &[u8], out: &mut Vec<Vec<u8>>) {
        self.seen.push(bytes.to_vec());
        let Ok(frame) = parse_ethernet(bytes, None) else { return };
        let for_us = frame.destination == self.mac || frame.destination.is_group();
        if !for_us || frame.tags > 0 || !self.answers {
            return;
        }
        match frame.ethertype {
            ethernet::ARP => self.receive_arp(frame.payload, out),
            ethernet::IPV4 => self.receive_ipv4(frame.source, frame.payload, out),
            _ => {}
        }
    }

    fn receive_arp(&mut self, payload: &[u8], out: &mut Vec<Vec<u8>>) {
        let Ok(packet) = arp::parse_arp(payload) else { return };
        match packet.operation {
            Operation::Request if packet.target == self.address => {
                if !packet.sender.is_unspecified() {
                    self.arp.insert(packet.sender, packet.sender_mac);
                }
                out.push(arp::reply(&packet, self.mac).to_vec());
            }
            Operation::Reply if packet.target == self.address => {
                let before = self.arp.insert(packet.sender, packet.sender_mac);
                if let Some(before) = before.filter(|before| *before != packet.sender_mac) {
                    self.flips.push((packet.sender, before, packet.sender_mac));
                }
                for (hop, packet) in std::mem::take(&mut self.waiting) {
                    match self.arp.get(&hop) {
                        Some(mac) => {
                            out.push(packet::frame(*mac, self.mac, ethernet::IPV4, &packet));
                        }
                        None => self.waiting.push((hop, packet)),
                    }
                }
            }
            _ => {}
        }
    }

    fn receive_ipv4(&mut self, mac: MacAddr, payload: &[u8], out: &mut Vec<Vec<u8>>) {
        let Ok(packet) = parse_ipv4(payload) else { return };
        if packet.destination != self.address {
            return;
        }
        let source = (packet.source, packet.source_port);
        let own = (self.address, packet.destination_port);
        let flags = packet.tcp_flags();
        let data = match packet.transport {
            Transport::Tcp { header_len, .. } => packet.payload().get(header_len..),
            Transport::Udp => packet.payload().get(8..),
            Transport::IcmpEcho { .. } => packet.payload().get(8..),
            _ => Some(packet.payload()),
        };
        let data = data.unwrap_or_default().to_vec();
        self.inbox.push(Received {
            source,
            port: packet.destination_port,
            protocol: packet.protocol,
            flags: flags.0,
            payload: data.clone(),
            mac,
        });
        let answer = match packet.transport {
            Transport::IcmpEcho { reply: false } => {
                Some(packet::echo(self.address, packet.source, true, packet.source_port, &data))
            }
            Transport::Udp if own.1 < 40_000 && source.1 >= 40_000 => {
                Some(packet::udp(own, source, &data))
            }
            Transport::Tcp { .. } if flags.opens() => {
                Some(packet::tcp(own, source, TcpFlags::SYN | TcpFlags::ACK, &[]))
            }
            Transport::Tcp { .. } if flags.answers() => {
                let say = self.to_say.get(&(source, own.1)).cloned().unwrap_or_default();
                Some(packet::tcp(own, source, TcpFlags::ACK | TcpFlags::PSH, &say))
            }
            Transport::Tcp { .. } if own.1 < 40_000 && source.1 >= 40_000 && !data.is_empty() => {
                Some(packet::tcp(own, source, TcpFlags::ACK | TcpFlags::PSH, &data))
            }
            _ => None,
        };
        if let Some(answer) = answer {
            self.send(answer, out);
        }
    }
}
