//! Lanes: tunnels of their own for bulk, beside the one between two gateways that everything else takes.
//!
//! Lane 0 is the tunnel that the view's keys make ([`crate::peer`]). Handshakes with those keys, hellos and probes go
//! there, and the packets of all flows that aren't bulk. Lanes from 1 on carry bulk. They are tunnels because nothing
//! may overtake more than 1,024 packets within one (WireGuard's replay window), so that an alarm couldn't overtake
//! images there; and because one tunnel is the work of one core at a time.
//!
//! Who does what:
//!
//! - the engine decides: which flow is bulk ([`pace`]), what lanes there are with which peer, and which of them may be
//!   used ([`book`]);
//! - [`Lanes`] seals, opens and shakes hands, for all lanes that one thread runs. It knows keys and addresses, nothing
//!   of flows, devices or rules. With one thread the engine has it within itself. With more, the shell has one in each
//!   of its lane threads, and carries [`Order`]s and [`Job`]s there, [`Event`]s and opened packets back, by bounded
//!   rings.
//!
//! **Keys.** An agent draws one secret at its start, keeps it in memory, and makes of it and of its newest tunnel key a lane key
//! for each peer ([`OwnLaneKey`]). With the next tunnel key they are others, at once: peers are told, bulk takes lane 0
//! until they have answered, and what is under way through lanes with the keys before is opened for half a minute at most.
//! It tells a peer, inside lane 0, and only one whose hello has the [`CAPABILITY`]. Neither end uses
//! a lane before the other has said that it holds its key. A third one that claims another's key gains nothing by it,
//! nor takes anything away, and what a peer knew is worth nothing once it is forgotten.
//!
//! **Handshakes** for lanes are begun from where lane 0 has the peer: the address says with whose key the first
//! message is to be checked. The [`Doorman`] does that and keeps to a rate, before anything costs more.
//!
//! Before an end opens a lane it says so inside lane 0. Only then does a handshake make a lane, so one that somebody
//! recorded makes none later; and one that nothing follows has its lane go after seconds.
//!
//! **Indices.** A receiver index is the business of whoever receives. Its upper four bits are the owner: 0 for the engine
//! and lane 0, from 1 on the [`Lanes`] that runs the lane, and so the socket of its thread ([`owner_of`]). Each end
//! spreads peers and lanes over its owners by itself ([`owner`]). The next four bits are the number of the lane, by
//! which an initiation says what it is for; both ends number a lane alike.
//!
//! **Steering.** The kernel can give each owner its data by the upper half of byte 7. All else comes to the engine, and
//! where nothing steers, everything: what is an owner's the engine hands on ([`crate::sink::Sink::hand_on`]).
//!
//! **Order.** What one flow sent earlier through lane 0 must not arrive behind what it sent later through another lane.
//! Senders hand datagrams to the kernel in the order in which they were sealed, lane 0 first where two batches wait. A
//! receiver that has fetched a batch of another lane then empties the socket of lane 0, has that handled, and the batch
//! after it.

pub mod book;
pub mod pace;

use std::net::SocketAddr;

use anteroom_proto::key::TunnelPublicKey;

use crate::peer::PeerSlot;
use crate::vnet::VnetHeader;

pub use crate::peer::LanesConfig;
pub(crate) use crate::peer::doorman::secret_beside;
pub use crate::peer::doorman::{Doorman, OwnLaneKey, secret_for};
pub use crate::peer::lanes::{Lanes, OpenedInLane};

/// What a gateway that can use lanes says in its hello.
pub const CAPABILITY: &str = "lanes";

/// Most lanes beside lane 0, and most owners of lanes: what four bits of a receiver index can number.
pub const MAX: u8 = 15;

/// Lanes beside lane 0 that an agent offers. A pair of gateways uses as many as the one that offers fewer.
pub const USUAL: u8 = 4;

/// A lane to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LaneId {
    /// Which peer.
    pub peer: PeerSlot,
    /// Which of the lanes to it, from 1 on.
    pub lane: u8,
}

/// What the engine tells whoever runs lanes. All that concern one peer are to be carried out in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// This is the peer's key, and this gateway's for it. Handshakes that the peer begins are answered from now on. What comes
    /// through lanes with those before is still opened for a while.
    Know {
        /// Which peer.
        peer: PeerSlot,
        /// This gateway's lane key for it.
        own: OwnLaneKey,
        /// Its lane key.
        key: TunnelPublicKey,
        /// Which agreement with it this is. Tunnels of another one are gone, and events say of which they speak.
        term: u32,
        /// How many lanes there are with it.
        lanes: u8,
        /// Where it is.
        to: SocketAddr,
    },
    /// The peer says that it is about to open lanes. Only for a while after this, or after [`Self::Know`], a handshake that
    /// it begins makes a lane: one that was recorded and is played back later makes none.
    Expect {
        /// Which peer.
        peer: PeerSlot,
    },
    /// Shake hands, and go on until that has worked or half a minute has passed.
    Open(LaneId),
    /// The peer is somewhere else now.
    Move {
        /// Which peer.
        peer: PeerSlot,
        /// Where it is.
        to: SocketAddr,
    },
    /// The peer has no lanes any more.
    Forget {
        /// Which peer.
        peer: PeerSlot,
    },
}

impl Order {
    /// Which peer it concerns.
    #[must_use]
    pub const fn peer(&self) -> PeerSlot {
        match self {
            Self::Know { peer, .. }
            | Self::Expect { peer }
            | Self::Move { peer, .. }
            | Self::Forget { peer } => *peer,
            Self::Open(at) => at.peer,
        }
    }

    /// Which lane it concerns; all of the peer's where there is none.
    #[must_use]
    pub const fn lane(&self) -> Option<u8> {
        match self {
            Self::Open(at) => Some(at.lane),
            _ => None,
        }
    }
}

/// A packet, or a super-frame, for a lane. It is cut there: into packets of at most `limit` bytes, with whole checksums.
///
/// The engine makes a job only where every packet that comes of it fits. What doesn't is cut into parts before, which
/// are jobs of their own.
#[derive(Debug)]
pub struct Job<'a> {
    /// The lane.
    pub at: LaneId,
    /// The kernel's word on the frame that the packet was in.
    pub vnet: VnetHeader,
    /// How far into the frame that `vnet` speaks of the packet begins.
    pub network: usize,
    /// Longest packet that may come of it, in bytes.
    pub limit: usize,
    /// The packet, from the IP header on. What is in there afterwards is of no more use.
    pub packet: &'a mut [u8],
}

/// What became of a [`Job`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It was sealed, or waits in order for whoever runs the lane.
    Yes,
    /// There is no session. Nothing was touched: the packet can take lane 0.
    NoSession,
    /// There was no room: it is dropped, since lane 0 would let it overtake what waits.
    NoRoom,
}

/// What whoever runs lanes tells the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The lane can be used.
    Ready {
        /// The lane.
        at: LaneId,
        /// The agreement that it is of, as [`Order::Know`] named it.
        term: u32,
    },
    /// It can't, for now or for good: it wasn't used for a while, or the peer doesn't answer there. What is sealed
    /// nevertheless is sent as long as there is a session.
    Gone {
        /// The lane.
        at: LaneId,
        /// The agreement that it was of.
        term: u32,
    },
    /// It is closed: nothing is kept of it any more, and it counts for nobody.
    Closed {
        /// The lane.
        at: LaneId,
        /// The agreement that it was of.
        term: u32,
    },
    /// What the peer sent through a lane came from somewhere else than it was thought to be. Lane 0 is to look into it.
    Elsewhere {
        /// Which peer.
        peer: PeerSlot,
        /// Where it came from.
        from: SocketAddr,
    },
    /// No more lanes can be open at once: an [`Order::Open`] was turned away.
    Full(LaneId),
}

/// The owner of a lane, of so many there are: the number of the [`Lanes`] that runs it, from 1 on.
#[must_use]
pub fn owner(at: LaneId, owners: u8) -> u8 {
    let owners = u32::from(owners.clamp(1, MAX));
    let place = at.peer.number().wrapping_add(u32::from(at.lane).wrapping_sub(1));
    1 + (place % owners) as u8
}

/// The owner of the receiver index in a datagram, 0 being the engine. None where there is no such index: in an
/// initiation, and in what is none of WireGuard's.
#[must_use]
pub fn owner_of(datagram: &[u8]) -> Option<u8> {
    let at = match datagram.first_chunk::<4>() {
        Some([3 | 4, 0, 0, 0]) => 7,
        Some([2, 0, 0, 0]) => 11,
        _ => return None,
    };
    datagram.get(at).map(|byte| byte >> 4)
}
