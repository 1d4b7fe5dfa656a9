//! Datagrams that came through a relay, and what the shell tells of relays.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use anteroom_proto::id::GatewayId;

use super::Engine;
use crate::sink::Sink;
use crate::target::{RelayId, RelayPath, Target, Through};

impl Engine {
    /// Tells which relays reach a gateway now, nearest first; none at all where none does. Packets for it take one until a
    /// direct path is proved, and whenever that dies: they go to [`Sink::relayed`].
    pub fn set_relays(
        &mut self,
        gateway: GatewayId,
        relays: &[RelayPath],
        now: Instant,
        out: &mut impl Sink,
    ) {
        self.peers.set_relays(gateway, relays, now, out);
        self.take_events(now);
        self.tend_lanes(now, out);
    }

    /// Tells where a relay may be asked how this gateway's tunnels look from outside; `None` where it no longer can be.
    /// Peers are told what it answers, and knock there while no direct path is proved.
    pub fn set_mirror(&mut self, relay: RelayId, at: Option<SocketAddr>, now: Instant) {
        self.peers.set_mirror(relay, at, now);
    }

    /// Tells that an authority document took relays out: see [`crate::peer::Peers::forget_relays`].
    pub fn forget_relays(
        &mut self,
        relays: &[RelayId],
        addresses: &[IpAddr],
        document: u64,
        now: Instant,
        out: &mut impl Sink,
    ) {
        self.peers.forget_relays(relays, addresses, document, now, out);
        self.take_events(now);
        self.tend_lanes(now, out);
    }

    /// The gateways whose packets don't go directly, as WireGuard has it, or may not arrive: those that QUIC to the peer
    /// itself could help.
    #[must_use]
    pub fn indirect(&self, now: Instant) -> Vec<GatewayId> {
        self.peers.indirect(now)
    }

    /// Takes datagrams that relays brought, each with where it came from as the relay says.
    pub fn handle_relayed<'a>(
        &mut self,
        datagrams: impl IntoIterator<Item = (Through, &'a [u8])>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let mut held = std::mem::take(&mut self.held);
        for (from, datagram) in datagrams {
            self.sealed_datagram(Target::Relay(from), datagram, &mut held, now, out);
        }
        self.let_go(&mut held, now, out);
        self.held = held;
        self.take_events(now);
        self.take_messages(now, out);
        self.tend_lanes(now, out);
    }
}
