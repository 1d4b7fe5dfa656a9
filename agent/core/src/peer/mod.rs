//! The tunnels to other gateways: everything WireGuard, and what gateways say to each other inside.
//!
//! Nothing outside this module knows boringtun. What it would panic on never gets to it: the kind, the length and
//! the room for the result are checked before each call. It reads its own clock and draws its own randomness for
//! keys; when handshakes, probes and retries happen is decided by the engine's clock and seed, so that a simulation
//! whose hours take milliseconds works with the real thing. Its `mock-instant` feature stays off: cargo would turn
//! it on for the agent's own binary as soon as both are built in one go.

mod agenda;
mod allowance;
mod awaited;
pub(crate) mod doorman;
mod doubt;
mod front;
mod hearing;
mod knock;
pub(crate) mod lanes;
pub mod message;
mod nearer;
pub mod outside;
mod own;
mod queue;
mod random;
mod route;
mod secret;
mod slots;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod trial;
mod tunnel;

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anteroom_proto::id::{BootId, GatewayId};
use anteroom_proto::key::{TunnelPublicKey, TunnelSecret};
use anteroom_proto::time::UnixMillis;
use anteroom_proto::verdict::DropReason;

pub use hearing::Silence;
pub use knock::{KnockKey, Knocker};
pub use lanes::LanesConfig;
pub use own::{KeyUse, MAX_OWN_KEYS, OwnKey};
pub use secret::{CIPHERTEXT_LEN, Kem, OwnKem, PeerKem};
pub use state::Peer;
pub use table::{Peers, Way};
pub use tunnel::MAX_PACKET_LEN;

/// What sealing adds to a packet's length.
pub const OVERHEAD: usize = 32;
/// Length of a buffer that has room for whatever comes out of a datagram: none is longer.
pub const SCRATCH_LEN: usize = 65_536;

/// Room that [`Peers::open`] wants for a datagram of `len` bytes.
#[must_use]
pub const fn open_room(len: usize) -> usize {
    if len < tunnel::SMALL { tunnel::SMALL } else { len }
}

/// How long a peer counts as live after something authentic came from it.
pub const LIVE_FOR: Duration = Duration::from_secs(5);
/// How long a client, which says nothing by itself, counts as live after something authentic came from it: as long as
/// a session lasts.
pub const CLIENT_LIVE_FOR: Duration = Duration::from_secs(180);
/// How long a peer counts as live after it last answered: a path may carry one direction only.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Largest inner packet whose sealed datagram fits `underlay_mtu` bytes of IP towards `endpoint`.
#[must_use]
pub const fn inner_mtu(underlay_mtu: u16, endpoint: &SocketAddr) -> u16 {
    let outer = if endpoint.is_ipv4() { 20 } else { 40 };
    underlay_mtu.saturating_sub(outer + 8 + OVERHEAD as u16)
}

/// What a [`Peers`] table is made from.
#[derive(Debug, Clone)]
pub struct Config {
    /// This gateway's tunnel key. [`Peers::set_own_keys`] names others later.
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
    /// What pre-shared keys are agreed with, of those keys that have that.
    pub kems: Vec<PeerKem>,
    /// Where it may be reached, best first. Of a client, where it was when this gateway's agent last ran: it is called
    /// there, so that it needn't find out by itself that its session is gone.
    pub endpoints: Vec<SocketAddr>,
    /// A digest of what this gateway holds in common with it, which it is told.
    pub relation: u64,
    /// Whether it is a client: stock WireGuard, to which nothing is said beyond that, and which is reached where it
    /// was last heard.
    pub client: bool,
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
    /// The wall clock at some instant, once a controller has confirmed it.
    pub confirmed_time: Option<(UnixMillis, Instant)>,
}

/// Names a peer in a [`Peers`] table as long as it is there. Cheap to keep with a flow; one that outlived its
/// peer finds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerSlot {
    index: u32,
    generation: u32,
}

impl PeerSlot {
    /// Tells it apart from all others that are in use in its table.
    pub(crate) const fn number(self) -> u32 {
        self.index
    }

    /// Names nobody.
    pub(crate) const NONE: Self = Self { index: u32::MAX, generation: u32::MAX };

    /// A slot of no table, for tests of what only tells slots apart.
    #[cfg(test)]
    pub(crate) const fn for_tests(index: u32) -> Self {
        Self { index, generation: 0 }
    }
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
    /// The peer says that it has another revision in force, or holds something else in common with this gateway.
    Holds {
        /// Which peer.
        gateway: GatewayId,
        /// The revision.
        revision: u64,
        /// The digest of what it holds in common, if it tells one.
        relation: Option<u64>,
    },
    /// The peer tells a confirmed time, and this gateway has none yet.
    Time {
        /// Which peer.
        gateway: GatewayId,
        /// The time, by the peer's clock when it spoke.
        time: UnixMillis,
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
        /// The packet, from the IP header on. It stands at the beginning of the room that was given.
        packet: &'a mut [u8],
    },
    /// As [`Self::Packet`], of a packet that came in parts, of which this datagram had the last. Its buffer may be
    /// [given back](Peers::give_back).
    Whole {
        /// Which peer sent it.
        peer: PeerSlot,
        /// The packet, from the IP header on.
        packet: Vec<u8>,
    },
    /// The tunnel's own: a handshake, a keepalive, a message between gateways. It was dealt with.
    Handled,
    /// It goes no further.
    Dropped(DropReason),
}
