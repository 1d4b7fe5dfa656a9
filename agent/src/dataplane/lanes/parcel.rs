//! What the packet thread sends to a lane thread: orders, jobs and datagrams, in their order.

use std::net::SocketAddr;
use std::ops::Range;

use anteroom_agent_core::lane::{Job, LaneId, Order};
use anteroom_agent_core::vnet::VnetHeader;

/// Room for packets and datagrams in one parcel, in bytes: what is fetched from a port in one turn fits.
const ROOM: usize = 256 << 10;

/// Items in one parcel.
const ITEMS: usize = 512;

/// Something for a lane thread. Bytes lie in the parcel.
#[derive(Debug)]
enum Item {
    Order(Order),
    Job { at: LaneId, vnet: VnetHeader, network: usize, limit: usize, bytes: Range<usize> },
    Datagram { from: SocketAddr, bytes: Range<usize> },
}

/// The same for who unpacks it.
#[derive(Debug)]
pub(super) enum Content<'a> {
    Order(Order),
    Job(Job<'a>),
    Datagram { from: SocketAddr, bytes: &'a mut [u8] },
}

/// Items in a buffer that is used again and again. Empty it takes hardly any memory until it was used once.
#[derive(Debug)]
pub(super) struct Parcel {
    bytes: Vec<u8>,
    used: usize,
    items: Vec<Item>,
}

impl Parcel {
    /// One that takes room with its first bytes.
    pub(super) const fn new() -> Self {
        Self { bytes: Vec::new(), used: 0, items: Vec::new() }
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Gives its memory back. It has to be empty.
    pub(super) fn shrink(&mut self) {
        *self = Self::new();
    }

    /// Adds an order. False where there is no room.
    pub(super) fn order(&mut self, order: &Order) -> bool {
        let fits = self.items.len() < ITEMS;
        if fits {
            self.items.push(Item::Order(order.clone()));
        }
        fits
    }

    /// Adds a copy of a job. False where there is no room.
    pub(super) fn job(&mut self, job: &Job<'_>) -> bool {
        let Some(bytes) = self.put(job.packet) else { return false };
        let Job { at, vnet, network, limit, .. } = *job;
        self.items.push(Item::Job { at, vnet, network, limit, bytes });
        true
    }

    /// Adds a copy of a datagram. False where there is no room.
    pub(super) fn datagram(&mut self, from: SocketAddr, datagram: &[u8]) -> bool {
        let Some(bytes) = self.put(datagram) else { return false };
        self.items.push(Item::Datagram { from, bytes });
        true
    }

    fn put(&mut self, bytes: &[u8]) -> Option<Range<usize>> {
        if self.items.len() >= ITEMS {
            return None;
        }
        if self.bytes.is_empty() {
            self.bytes.resize(ROOM, 0);
        }
        let place = self.used..self.used + bytes.len();
        self.bytes.get_mut(place.clone())?.copy_from_slice(bytes);
        self.used = place.end;
        Some(place)
    }

    /// Gives what is in it to `take`, one after the other. It is empty then.
    pub(super) fn unpack(&mut self, mut take: impl FnMut(Content<'_>)) {
        let Self { bytes, used, items } = self;
        for item in items.drain(..) {
            take(match item {
                Item::Order(order) => Content::Order(order),
                Item::Job { at, vnet, network, limit, bytes: place } => {
                    let packet = bytes.get_mut(place).unwrap_or_default();
                    Content::Job(Job { at, vnet, network, limit, packet })
                }
                Item::Datagram { from, bytes: place } => {
                    Content::Datagram { from, bytes: bytes.get_mut(place).unwrap_or_default() }
                }
            });
        }
        *used = 0;
    }
}
