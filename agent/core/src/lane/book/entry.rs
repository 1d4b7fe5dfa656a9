//! What is kept of one peer's lanes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anteroom_proto::id::{BootId, GatewayId};
use anteroom_proto::key::TunnelPublicKey;

use crate::lane::{MAX, OwnLaneKey};
use crate::peer::PeerSlot;
use crate::station::StationId;

/// Most keys of one peer that are looked at within [`KEYS_IN`]: that takes some 50 µs each.
pub(super) const MAX_KEYS: u32 = 8;
pub(super) const KEYS_IN: Duration = Duration::from_secs(10);

/// A peer that wanted a lane, or to which one was wanted.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) peer: PeerSlot,
    pub(super) gateway: GatewayId,
    /// This gateway's key for it.
    pub(super) own: OwnLaneKey,
    /// Its key, its run, and the main key whose tunnel both came through last.
    pub(super) theirs: Option<(TunnelPublicKey, BootId, TunnelPublicKey)>,
    /// Which agreement with it this is. An event that speaks of another one comes late.
    pub(super) term: u32,
    /// How many lanes there are with it.
    pub(super) lanes: u8,
    /// Whether it says that it knows whose this gateway's key is.
    pub(super) holds_ours: bool,
    pub(super) to: Option<SocketAddr>,
    pub(super) next_ask: Instant,
    /// When it may say again that it opens lanes.
    pub(super) next_expect: Instant,
    /// Lanes that can be used, by their bits.
    pub(super) ready: u16,
    /// When each may be ordered next.
    pub(super) next_open: [Option<Instant>; MAX as usize + 1],
    /// For which device each was ordered.
    pub(super) payers: [Option<StationId>; MAX as usize + 1],
    /// The newest that it said in a run.
    pub(super) said: (BootId, u64),
    pub(super) keys: (Instant, u32),
    /// Set while it is to be told that its key isn't held here any more.
    pub(super) owes: Option<Notice>,
    /// Set while it is asked for its key again through the tunnel that is used now.
    pub(super) renews: Option<Notice>,
    /// Whether it is told of another key of this gateway's until it says that it holds it.
    pub(super) tells: bool,
}

impl Entry {
    /// Takes one from what may be looked at of this peer.
    pub(super) fn charge(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.keys.0) >= KEYS_IN {
            self.keys = (now, 0);
        }
        self.keys.1 = self.keys.1.saturating_add(1);
        self.keys.1 <= MAX_KEYS
    }

    pub(super) const fn is_agreed(&self) -> bool {
        self.theirs.is_some() && self.holds_ours && self.lanes > 0
    }
}

/// Something that a peer is told until it answers, or for so long that it has found out by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Notice {
    /// When it is told next. None before anything can be told to it.
    pub(super) next: Option<Instant>,
    /// How often it was told.
    pub(super) told: u32,
}

impl Notice {
    pub(super) const NEW: Self = Self { next: None, told: 0 };
}
