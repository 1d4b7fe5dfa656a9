//! Receiving: datagrams that the kernel merged (`UDP_GRO`), in batches that never wait.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use anteroom_agent_core::batch::RxDatagram;
use socket2::{SockAddr, SockAddrStorage};

use super::UdpSocket;
use crate::net::offload::Offload;
use crate::net::sys::{self, Control};

/// Room for what comes with one message: the kernel merges up to 64 KiB. A multiple of the page, so that room that is
/// never filled costs no memory.
const SLOT: usize = 64 * 1024;

/// Rooms that are kept when memory is given back.
const KEPT: usize = 4;

/// Messages fetched with one system call at most.
const BATCH: usize = 32;

/// What the kernel counts for a message at least, however short.
const LEAST_HELD: usize = 512;

/// Asks the kernel to merge datagrams of one sender that come in a row.
pub(super) fn merge(socket: &impl AsFd) -> Offload {
    match sys::set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1_i32) {
        Ok(()) => Offload::On,
        Err(error) => Offload::Off(format!("the kernel doesn't have it: {error}")),
    }
}

/// Buffers for received datagrams.
pub struct DatagramRing {
    slots: Vec<u8>,
    names: Vec<SockAddrStorage>,
    controls: [Control; BATCH],
    received: [Slot; BATCH],
    count: usize,
    large: bool,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    length: usize,
    name: libc::socklen_t,
    control: usize,
    truncated: bool,
}

impl Default for DatagramRing {
    fn default() -> Self {
        Self {
            slots: vec![0; SLOT * BATCH],
            names: (0..BATCH).map(|_| SockAddrStorage::zeroed()).collect(),
            controls: [Control::EMPTY; BATCH],
            received: [Slot::default(); BATCH],
            count: 0,
            large: false,
        }
    }
}

impl DatagramRing {
    /// Fetches what has come in, or a turn's share of it. Returns how many messages that were.
    ///
    /// # Errors
    /// What the socket reports; it stays usable.
    pub fn fetch(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.fetch_at_most(socket, BATCH)
    }

    /// The same for at most so many messages.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub fn fetch_at_most(&mut self, socket: &UdpSocket, most: usize) -> io::Result<usize> {
        self.count = 0;
        self.count = self.fill(socket, socket.appetite.ask(BATCH.min(most)))?;
        let bytes: usize = self.received[..self.count].iter().map(|slot| slot.length).sum();
        socket.appetite.note(self.count, bytes);
        self.large |= self.count > KEPT || bytes > SLOT;
        Ok(self.count)
    }

    /// What the messages that were fetched last made up of [`UdpSocket::held`] at least.
    #[must_use]
    pub fn least_held(&self) -> usize {
        self.received[..self.count].iter().map(|slot| slot.length.max(LEAST_HELD)).sum()
    }

    /// Lends what was fetched to `take`, unless it's nothing, and says how many datagrams it is. Those too long for a
    /// buffer, or without an address to answer to, are counted in `truncated`.
    pub fn lend(&mut self, truncated: &mut u64, take: impl FnOnce(&mut [RxDatagram<'_>])) -> u64 {
        if self.count == 0 {
            return 0;
        }
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut messages: [RxDatagram<'_>; BATCH] =
            std::array::from_fn(|_| RxDatagram { from: nowhere, segment: 0, bytes: &mut [] });
        let (mut usable, mut datagrams) = (0, 0);
        let slots = self.slots.chunks_exact_mut(SLOT).zip(&self.received).take(self.count);
        let beside = self.names.iter_mut().zip(&self.controls);
        for ((bytes, slot), (name, control)) in slots.zip(beside) {
            if slot.truncated || slot.length > SLOT {
                *truncated += 1;
                continue;
            }
            let name = std::mem::replace(name, SockAddrStorage::zeroed());
            // SAFETY: the kernel wrote a socket address of this length into the storage.
            let from = unsafe { SockAddr::new(name, slot.name) }.as_socket();
            let Some(from) = from else {
                *truncated += 1;
                continue;
            };
            let segment = segment(control, slot.control).unwrap_or(slot.length);
            datagrams += slot.length.div_ceil(segment.max(1)).max(1) as u64;
            messages[usable] = RxDatagram {
                from: SocketAddr::new(from.ip().to_canonical(), from.port()),
                segment,
                bytes: &mut bytes[..slot.length],
            };
            usable += 1;
        }
        take(&mut messages[..usable]);
        datagrams
    }

    /// Whether a fetch since the last call was one of those that only a load makes: many messages, or long ones.
    pub fn take_large(&mut self) -> bool {
        std::mem::take(&mut self.large)
    }

    /// Gives back the memory that a load made it touch, and what was fetched.
    pub fn shrink(&mut self) {
        self.count = 0;
        sys::give_back(self.slots.get_mut(KEPT * SLOT..).unwrap_or_default());
    }

    fn fill(&mut self, socket: &UdpSocket, ask: usize) -> io::Result<usize> {
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        let mut messages = [sys::empty_message(); BATCH];
        let slots = self.slots.chunks_exact_mut(SLOT).zip(&mut self.names).zip(&mut self.controls);
        for ((message, vector), ((slot, name), control)) in
            messages.iter_mut().zip(&mut vectors).zip(slots).take(ask)
        {
            vector.iov_base = slot.as_mut_ptr().cast();
            vector.iov_len = slot.len();
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_namelen = name.size_of();
            message.msg_hdr.msg_name = (&raw mut *name).cast();
            message.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = control.0.len();
        }
        // SAFETY: vectors, names and controls point into `self`, with their true lengths, and `self` is borrowed
        // mutably beyond the call.
        let count = unsafe { sys::receive_messages(socket, &mut messages[..ask])? };
        for (slot, message) in self.received.iter_mut().zip(&messages).take(count) {
            *slot = Slot {
                length: message.msg_len as usize,
                name: message.msg_hdr.msg_namelen,
                control: message.msg_hdr.msg_controllen,
                truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            };
        }
        Ok(count)
    }
}

/// How long each datagram of a message is but the last, if the kernel merged several.
fn segment(control: &Control, used: usize) -> Option<usize> {
    let bytes = control.find(used, libc::SOL_UDP, libc::UDP_GRO)?;
    let segment = i32::from_ne_bytes(bytes.first_chunk().copied()?);
    usize::try_from(segment).ok().filter(|segment| *segment > 0)
}
