//! DHCP messages, as clients and servers write them.

use std::net::Ipv4Addr;

use anteroom_agent_core::wire::{dhcp, ethernet, parse_ethernet, parse_ipv4};
use anteroom_proto::mac::MacAddr;

use crate::packet;

/// Message types (RFC 2132 9.6).
pub mod kind {
    /// A client looks for servers.
    pub const DISCOVER: u8 = 1;
    /// A server offers.
    pub const OFFER: u8 = 2;
    /// A client takes or renews.
    pub const REQUEST: u8 = 3;
    /// A client found the address in use.
    pub const DECLINE: u8 = 4;
    /// A server grants.
    pub const ACK: u8 = 5;
    /// A server refuses.
    pub const NAK: u8 = 6;
    /// A client gives its address back.
    pub const RELEASE: u8 = 7;
}

/// A message. Fields that stay unspecified are left out.
#[derive(Debug, Clone, Copy)]
pub struct Message {
    /// One of [`kind`].
    pub kind: u8,
    /// The transaction.
    pub transaction: u32,
    /// The client's Ethernet address.
    pub client_mac: MacAddr,
    /// The address that the client has.
    pub client: Ipv4Addr,
    /// The address that the server gives.
    pub yours: Ipv4Addr,
    /// The relay.
    pub relay: Ipv4Addr,
    /// The address that the client asks for.
    pub requested: Option<Ipv4Addr>,
    /// The server that it is from, or for.
    pub server: Option<Ipv4Addr>,
    /// For how many seconds.
    pub lease: Option<u32>,
}

impl Message {
    /// A message of a client.
    #[must_use]
    pub const fn new(kind: u8, transaction: u32, client_mac: MacAddr) -> Self {
        let none = Ipv4Addr::UNSPECIFIED;
        Self {
            kind,
            transaction,
            client_mac,
            client: none,
            yours: none,
            relay: none,
            requested: None,
            server: None,
            lease: None,
        }
    }

    /// The payload of its datagram.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let answers = matches!(self.kind, kind::OFFER | kind::ACK | kind::NAK);
        let mut bytes = vec![if answers { 2 } else { 1 }, 1, 6, 0];
        bytes.extend(self.transaction.to_be_bytes());
        bytes.extend([0; 4]);
        for address in [self.client, self.yours, Ipv4Addr::UNSPECIFIED, self.relay] {
            bytes.extend(address.octets());
        }
        bytes.extend(self.client_mac.0);
        bytes.resize(236, 0);
        bytes.extend([99, 130, 83, 99, 53, 1, self.kind]);
        for (code, value) in [
            (50, self.requested.map(|address| address.octets())),
            (51, self.lease.map(u32::to_be_bytes)),
            (54, self.server.map(|address| address.octets())),
        ] {
            if let Some(value) = value {
                bytes.extend([code, 4]);
                bytes.extend(value);
            }
        }
        bytes.push(255);
        // No shorter than those of BOOTP.
        bytes.resize(300, 0);
        bytes
    }

    /// A client's broadcast.
    #[must_use]
    pub fn broadcast(&self) -> Vec<u8> {
        let (from, to) = ((self.client, 68), (Ipv4Addr::BROADCAST, 67));
        let packet = packet::udp(from, to, &self.bytes());
        packet::frame(MacAddr::BROADCAST, self.client_mac, ethernet::IPV4, &packet)
    }

    /// A server's or relay's answer, to everyone or to the client alone.
    #[must_use]
    pub fn answer(&self, server: (MacAddr, Ipv4Addr), to_all: bool) -> Vec<u8> {
        let (mac, address) = if to_all {
            (MacAddr::BROADCAST, Ipv4Addr::BROADCAST)
        } else {
            (self.client_mac, self.yours)
        };
        let packet = packet::udp((server.1, 67), (address, 68), &self.bytes());
        packet::frame(mac, server.0, ethernet::IPV4, &packet)
    }
}

/// The DHCP message in a frame, if it is one.
#[must_use]
pub fn read(frame: &[u8]) -> Option<dhcp::DhcpMessage> {
    let frame = parse_ethernet(frame, None).ok()?;
    let packet = parse_ipv4(frame.payload).ok()?;
    dhcp::parse_dhcp(packet.udp_payload()?).ok()
}
