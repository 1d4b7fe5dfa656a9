//! The tunnels to other gateways: everything WireGuard, and what gateways say to each other inside.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anteroom_proto::id::{BootId, GatewayId};
use anteroom_proto::key::{TunnelPublicKey, TunnelSecret};
use anteroom_proto::verdict::DropReason;

use crate::sink::Sink;

/// What sealing adds to a packet's length.
pub const OVERHEAD: usize = 32;
/// Length of the scratch buffer that [`Peers::open`] wants: no datagram is longer.
pub const SCRATCH_LEN: usize = 65_536;
/// How long a peer counts as live after something authentic came from it.
pub const LIVE_FOR: Duration = Duration::from_secs(5);

/// Largest inner packet whose sealed datagram fits `underlay_mtu` bytes of IP towards `endpoint`.
#[must_use]
pub const fn inner_mtu(underlay_mtu: u16, endpoint: &SocketAddr) -> u16 {
    let outer = if endpoint.is_ipv4() { 20 } else { 40 };
    underlay_mtu.saturating_sub(outer + 8 + OVERHEAD as u16)
}

/// What a [`Peers`] table is made from.
#[derive(Debug, Clone)]
pub struct Config {
    /// This gateway's tunnel key.
    pub secret: TunnelSecret,
    /// This run of the agent, as peers are told.
    pub boot: BootId,
    /// 32 unpredictable bytes: jitter and nonces grow from them.
    pub seed: [u8; 32],
    /// Which engine instance this is, below 16: part of every receiver index.
    pub owner: u8,
    /// What the agent can do beyond the basics, as peers are told.
    pub capabilities: Vec<String>,
}

/// A peer as the view has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Which gateway.
    pub gateway: GatewayId,
    /// Its overlay address.
    pub overlay: Ipv6Addr,
    /// Its tunnel keys, best first. The first with a session is used; at most [`MAX_KEYS`] are.
    pub keys: Vec<TunnelPublicKey>,
    /// Where it may be reached, best first.
    pub endpoints: Vec<SocketAddr>,
}

/// Most tunnel keys of one peer that are used at once.
pub const MAX_KEYS: usize = 4;

/// What this gateway tells its peers about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// Its own overlay address.
    pub overlay: Ipv6Addr,
    /// The revision of the intent that it has in force.
    pub revision: u64,
    /// The newest authority document that it holds.
    pub authority: u64,
}

/// Names a peer in a [`Peers`] table as long as it is there. Cheap to keep with a flow; one that outlived its
/// peer finds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerSlot {
    index: u32,
    generation: u32,
}

/// Something that the engine may want to react to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerEvent {
    /// The peer became live, or no longer is.
    Live {
        /// Which peer.
        gateway: GatewayId,
        /// Whether it is.
        live: bool,
    },
    /// The peer says that it has another revision in force.
    Revision {
        /// Which peer.
        gateway: GatewayId,
        /// The revision.
        revision: u64,
    },
}

/// What became of a packet for a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Sealed and given to the sink.
    Sealed,
    /// Kept until the handshake that is under way has ended; then it is sent, if that doesn't take long.
    Queued,
    /// It goes no further.
    Dropped(DropReason),
}

/// What a datagram was.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened<'a> {
    /// A member's IPv4 packet, authentic as its peer's word. Whether the peer may say it is the caller's to check.
    Packet {
        /// Which peer sent it.
        peer: PeerSlot,
        /// The packet, from the IP header on.
        packet: &'a mut [u8],
    },
    /// The tunnel's own: a handshake, a keepalive, a message between gateways. It was dealt with.
    Handled,
    /// It goes no further.
    Dropped(DropReason),
}

/// One peer.
#[derive(Debug)]
pub struct Peer {
    gateway: GatewayId,
}

impl Peer {
    /// Which gateway.
    #[must_use]
    pub const fn gateway(&self) -> GatewayId {
        self.gateway
    }

    /// Whether packets can be sealed for it and something authentic came from it within [`LIVE_FOR`].
    #[must_use]
    pub fn is_live(&self, now: Instant) -> bool {
        let _ = now;
        todo!()
    }

    /// The revision that it says it has in force.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        todo!()
    }

    /// The newest authority document that it says it holds.
    #[must_use]
    pub fn authority(&self) -> Option<u64> {
        todo!()
    }

    /// Round trip, smoothed.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        todo!()
    }

    /// Where its packets come from and go to.
    #[must_use]
    pub fn endpoint(&self) -> Option<SocketAddr> {
        todo!()
    }
}

/// All peers of one engine instance.
#[derive(Debug)]
pub struct Peers {
    peers: Vec<Peer>,
}

impl Peers {
    /// A table without peers.
    #[must_use]
    pub fn new(config: Config, now: Instant) -> Self {
        let _ = (config, now);
        Self { peers: Vec::new() }
    }

    /// Says what peers are told about this gateway from now on. They are told at once when it changed.
    pub fn set_local(&mut self, local: Local, now: Instant) {
        let _ = (local, now);
        todo!()
    }

    /// Makes `peers` the peers: new ones are added and initiated to, in their order; those that are missing are
    /// cut off; sessions with keys that stay go on.
    pub fn set_peers(&mut self, peers: &[PeerConfig], now: Instant) {
        let _ = (peers, now);
        todo!()
    }

    /// The slot of a gateway, if it is a peer.
    #[must_use]
    pub fn slot(&self, gateway: GatewayId) -> Option<PeerSlot> {
        let _ = gateway;
        todo!()
    }

    /// The peer in a slot.
    #[must_use]
    pub fn get(&self, slot: PeerSlot) -> Option<&Peer> {
        self.peers.get(slot.index as usize)
    }

    /// All peers.
    pub fn iter(&self) -> impl Iterator<Item = (PeerSlot, &Peer)> {
        self.peers.iter().map(|peer| (PeerSlot { index: 0, generation: 0 }, peer))
    }

    /// Seals an IP packet for a peer and gives it to the sink.
    pub fn send(
        &mut self,
        peer: PeerSlot,
        packet: &[u8],
        now: Instant,
        out: &mut impl Sink,
    ) -> Sent {
        let _ = (peer, packet, now, out);
        todo!()
    }

    /// Opens one datagram. A packet that was in it is written to `scratch`, which must have [`SCRATCH_LEN`] bytes.
    pub fn open<'a>(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        scratch: &'a mut [u8],
        now: Instant,
        out: &mut impl Sink,
    ) -> Opened<'a> {
        let _ = (from, datagram, scratch, now, out);
        todo!()
    }

    /// Does what is due: handshakes, probes, expiry.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Sink) {
        let _ = (now, out);
        todo!()
    }

    /// When [`Self::handle_timeout`] has something to do, and what.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        todo!()
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<PeerEvent> {
        todo!()
    }

    /// Drops that no return value told: packets that waited too long for a handshake, gateways' messages that
    /// made no sense. Counted since the call before.
    pub fn drain_drops(&mut self, mut count: impl FnMut(DropReason, u64)) {
        count(DropReason::QueueFull, 0);
        todo!()
    }
}
