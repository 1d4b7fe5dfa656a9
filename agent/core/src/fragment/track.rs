//! Follows fragmented packets: later fragments get the verdict of their first.

use std::time::{Duration, Instant};

use anteroom_proto::verdict::DropReason;

use crate::wire::Ipv4Packet;

/// How much a [`Tracker`] may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Packets followed at once.
    pub packets: usize,
    /// Packets followed at once of one owner.
    pub packets_per_owner: usize,
    /// Fragments of one packet that are held until their first arrives.
    pub held_per_packet: usize,
    /// Bytes of held fragments altogether.
    pub held_bytes: usize,
    /// How long a packet is followed after its first fragment to arrive.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packets: 2048,
            packets_per_owner: 128,
            held_per_packet: 16,
            held_bytes: 512 * 1024,
            timeout: Duration::from_secs(30),
        }
    }
}

/// What becomes of a fragment that isn't the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<T> {
    /// Its first fragment was seen, with this token.
    Follow(T),
    /// It waits for its first fragment; the tracker took a copy.
    Held,
    /// It goes no further.
    Drop(DropReason),
}

/// Fragmented packets in flight. `T` is what the engine wants to know of a first fragment's verdict.
///
/// An owner is whoever's share of the table a fragment uses up: a device, or the uplink. Fragments of different
/// owners never meet.
#[derive(Debug)]
pub struct Tracker<T> {
    limits: Limits,
    _token: Option<T>,
}

impl<T: Copy> Tracker<T> {
    /// An empty table.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, _token: None }
    }

    /// A first fragment passed with `token`, also when that says "drop". Returns the fragments that waited for
    /// it, in the order of their arrival and as they were given to [`Self::later`]: they follow it now.
    ///
    /// # Errors
    /// [`DropReason::FragmentOverlap`] when one was seen already, [`DropReason::FragmentTableFull`].
    pub fn first(
        &mut self,
        owner: u32,
        packet: &Ipv4Packet<'_>,
        token: T,
        now: Instant,
    ) -> Result<Vec<Box<[u8]>>, DropReason> {
        let _ = (owner, packet, token, now, self.limits);
        todo!()
    }

    /// A fragment that isn't the first. `bytes` is what is kept if it must be held: the whole frame, or the
    /// packet, as the engine needs it later.
    pub fn later(
        &mut self,
        owner: u32,
        packet: &Ipv4Packet<'_>,
        bytes: &[u8],
        now: Instant,
    ) -> Outcome<T> {
        let _ = (owner, packet, bytes, now);
        todo!()
    }

    /// Forgets what was followed for too long. Returns how many held fragments were lost with it
    /// ([`DropReason::FragmentNoFirst`]).
    pub fn expire(&mut self, now: Instant) -> u64 {
        let _ = now;
        todo!()
    }

    /// When [`Self::expire`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        todo!()
    }

    /// Packets followed.
    #[must_use]
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether none is followed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
