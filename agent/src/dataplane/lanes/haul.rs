//! What a lane thread sends to the packet thread: opened packets, events, datagrams that aren't its own, and jobs that
//! it had no session for.

use std::net::SocketAddr;
use std::ops::Range;

use anteroom_agent_core::lane::{Event, Job, LaneId};
use anteroom_agent_core::vnet::VnetHeader;

/// Longest message that one fetch brings.
const MESSAGE: usize = 64 << 10;

/// Messages whose packets have room in one haul.
pub(super) const MESSAGES: usize = 4;

/// Room for packets, in bytes. A packet is shorter than its datagram, but wants a little room while it is opened.
const ROOM: usize = MESSAGES * MESSAGE + 512;

/// Packets and datagrams in one haul: as many of the least length as [`MESSAGES`] can be merged from.
const ITEMS: usize = MESSAGES * 64;

/// Things in a buffer that is used again and again. It takes hardly any memory until it was used once.
#[derive(Debug, Default)]
pub(in crate::dataplane) struct Haul {
    bytes: Vec<u8>,
    used: usize,
    packets: Vec<(LaneId, Range<usize>)>,
    strays: Vec<(SocketAddr, Range<usize>)>,
    returned: Vec<Returned>,
    /// What became of lanes.
    pub(in crate::dataplane) events: Vec<Event>,
    /// To whom datagrams were too big.
    pub(in crate::dataplane) too_big_to: Vec<SocketAddr>,
}

/// A [`Job`] that comes back.
#[derive(Debug)]
struct Returned {
    at: LaneId,
    vnet: VnetHeader,
    network: usize,
    limit: usize,
    place: Range<usize>,
}

impl Haul {
    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
            && self.strays.is_empty()
            && self.returned.is_empty()
            && self.events.is_empty()
            && self.too_big_to.is_empty()
    }

    /// Gives its memory back. It has to be empty.
    pub(super) fn shrink(&mut self) {
        *self = Self::default();
    }

    /// Whether packets are in it.
    pub(in crate::dataplane) fn has_packets(&self) -> bool {
        !self.packets.is_empty()
    }

    /// Room for a packet of up to `wanted` bytes. None when it is full.
    pub(super) fn room(&mut self, wanted: usize) -> Option<&mut [u8]> {
        if self.packets.len() + self.strays.len() + self.returned.len() >= ITEMS {
            return None;
        }
        if self.bytes.is_empty() {
            self.bytes.resize(ROOM, 0);
        }
        self.bytes.get_mut(self.used..).filter(|room| room.len() >= wanted)
    }

    /// Takes note of a packet that was written to the beginning of [`Self::room`].
    pub(super) fn keep(&mut self, at: LaneId, len: usize) {
        let place = self.place(len);
        self.packets.push((at, place));
    }

    /// Adds a copy of somebody else's datagram. False where there is no room.
    pub(super) fn stray(&mut self, from: SocketAddr, datagram: &[u8]) -> bool {
        let place = self.put(datagram);
        self.strays.extend(place.clone().map(|place| (from, place)));
        place.is_some()
    }

    /// Adds a copy of a job that wasn't done. False where there is no room.
    pub(super) fn give_back(&mut self, job: &Job<'_>) -> bool {
        let Some(place) = self.put(job.packet) else { return false };
        let Job { at, vnet, network, limit, .. } = *job;
        self.returned.push(Returned { at, vnet, network, limit, place });
        true
    }

    fn put(&mut self, bytes: &[u8]) -> Option<Range<usize>> {
        self.room(bytes.len())?.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(self.place(bytes.len()))
    }

    fn place(&mut self, len: usize) -> Range<usize> {
        let start = self.used;
        self.used = start.saturating_add(len).min(self.bytes.len());
        start..self.used
    }

    /// The packets, in the order in which they came through each lane.
    pub(in crate::dataplane) fn packets(&self) -> impl Iterator<Item = (LaneId, &[u8])> {
        let packet = |(at, place): &(LaneId, Range<usize>)| {
            (*at, self.bytes.get(place.clone()).unwrap_or_default())
        };
        self.packets.iter().map(packet)
    }

    /// Gives each job that wasn't done to `take`, in the order in which they were given.
    pub(in crate::dataplane) fn returned(&mut self, mut take: impl FnMut(Job<'_>)) {
        for Returned { at, vnet, network, limit, place } in self.returned.drain(..) {
            let packet = self.bytes.get_mut(place).unwrap_or_default();
            take(Job { at, vnet, network, limit, packet });
        }
    }

    /// Gives each stray to `take`.
    pub(in crate::dataplane) fn strays(&mut self, mut take: impl FnMut(SocketAddr, &mut [u8])) {
        for (from, place) in &self.strays {
            take(*from, self.bytes.get_mut(place.clone()).unwrap_or_default());
        }
    }

    /// Forgets everything.
    pub(in crate::dataplane) fn clear(&mut self) {
        self.used = 0;
        self.packets.clear();
        self.strays.clear();
        self.returned.clear();
        self.events.clear();
        self.too_big_to.clear();
    }
}
