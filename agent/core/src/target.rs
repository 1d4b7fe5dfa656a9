//! Where a sealed datagram goes, or came from: straight through the underlay, or through a relay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anteroom_proto::id::GatewayId;
use anteroom_proto::v1::telemetry::FIRST_DIRECT;

use crate::sink::Sink;

/// A relay, as the shell numbers those that it is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayId(pub u16);

impl RelayId {
    /// Whether it is no relay but a QUIC connection to the one peer that is reached through it. Their numbers begin
    /// with [`FIRST_DIRECT`]. It is taken in preference to relays.
    #[must_use]
    pub const fn is_direct(self) -> bool {
        self.0 >= FIRST_DIRECT
    }
}

/// Through a relay, to a peer or from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Through {
    /// Which relay.
    pub relay: RelayId,
    /// Which peer. Where a datagram came from, that is the relay's word and no more.
    pub peer: GatewayId,
}

/// Where a sealed datagram goes, or came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// An address on the underlay.
    Udp(SocketAddr),
    /// A peer, through a relay.
    Relay(Through),
}

impl Target {
    /// The relay, if it is one.
    #[must_use]
    pub const fn relay(self) -> Option<RelayId> {
        match self {
            Self::Udp(_) => None,
            Self::Relay(through) => Some(through.relay),
        }
    }

    /// Who is charged for handshakes that come from there: an address, or a name that stands for one.
    pub(crate) fn charged(self) -> IpAddr {
        match self {
            Self::Udp(address) => address.ip(),
            Self::Relay(through) => Ipv6Addr::from(*through.peer.as_bytes()).into(),
        }
    }

    /// Has `write` write a datagram that goes there: see [`Sink::datagram`].
    pub(crate) fn put(
        self,
        out: &mut impl Sink,
        dscp_ecn: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        match self {
            Self::Udp(to) => out.datagram(to, dscp_ecn, capacity, write),
            Self::Relay(to) => out.relayed(to, Whose::Gateways, capacity, write),
        }
    }

    /// As [`Self::put`], for a packet that is somebody's.
    pub(crate) fn put_sealed(
        self,
        out: &mut impl Sink,
        dscp_ecn: u8,
        (whose, capacity): (Whose, usize),
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        match self {
            Self::Udp(to) => out.datagram(to, dscp_ecn, capacity, write),
            Self::Relay(to) => out.relayed(to, whose, capacity, write),
        }
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Udp(address)
    }
}

/// Whose a packet is that a relay is to carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Whose {
    /// Gateways' own: it keeps tunnels up, and goes first.
    Gateways,
    /// A device's, by the address that it sends from.
    Device(IpAddr),
}

impl Whose {
    /// Of an IP packet: a device's, whatever it says of its own urgency. What is none counts for one device, which there
    /// isn't.
    pub(crate) fn of(packet: &[u8]) -> Self {
        let version = packet.first().map_or(0, |first| first >> 4);
        let source: Option<IpAddr> = match version {
            6 => packet.get(8..).and_then(<[u8]>::first_chunk::<16>).map(|at| (*at).into()),
            _ => packet.get(12..).and_then(<[u8]>::first_chunk::<4>).map(|at| (*at).into()),
        };
        Self::Device(source.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
    }
}

/// A relay through which a peer is reached now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayPath {
    /// Which relay.
    pub relay: RelayId,
    /// The longest sealed datagram that gets through, in bytes.
    pub room: u16,
    /// How far the relay is from here: the round trip to it, smoothed.
    pub round_trip: Duration,
}
