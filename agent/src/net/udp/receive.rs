//! Receiving, in batches that never wait.

use std::io;
use std::net::SocketAddr;

use anteroom_agent_core::batch::RxDatagram;
use socket2::{SockAddr, SockAddrStorage};

use super::{BATCH, UdpSocket};
use crate::net::sys;

/// Longest datagram that is taken: jumbo frames carry 9,000 bytes and a little more.
pub const MAX_DATAGRAM: usize = 10 * 1024;

/// Buffers for received datagrams.
pub struct DatagramRing {
    slots: Vec<u8>,
    names: Vec<SockAddrStorage>,
    received: [Slot; BATCH],
    count: usize,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    length: usize,
    name: libc::socklen_t,
    truncated: bool,
}

impl Default for DatagramRing {
    fn default() -> Self {
        Self {
            slots: vec![0; MAX_DATAGRAM * BATCH],
            names: (0..BATCH).map(|_| SockAddrStorage::zeroed()).collect(),
            received: [Slot::default(); BATCH],
            count: 0,
        }
    }
}

impl DatagramRing {
    /// Fetches what has come in. Returns how many datagrams that were; less than [`BATCH`] means that nothing is left.
    ///
    /// # Errors
    /// What the socket reports; it stays usable.
    pub fn fetch(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.count = 0;
        self.count = self.fill(socket)?;
        Ok(self.count)
    }

    /// Lends what was fetched to `take`, unless it's nothing. Datagrams too long for a buffer are counted in
    /// `truncated`.
    pub fn lend(&mut self, truncated: &mut u64, take: impl FnOnce(&mut [RxDatagram<'_>])) {
        if self.count == 0 {
            return;
        }
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut datagrams: [RxDatagram<'_>; BATCH] =
            std::array::from_fn(|_| RxDatagram { from: nowhere, segment: 0, bytes: &mut [] });
        let mut usable = 0;
        let slots = self.slots.chunks_exact_mut(MAX_DATAGRAM).zip(&self.received).take(self.count);
        for ((bytes, slot), name) in slots.zip(&mut self.names) {
            if slot.truncated || slot.length > MAX_DATAGRAM {
                *truncated += 1;
                continue;
            }
            let name = std::mem::replace(name, SockAddrStorage::zeroed());
            // SAFETY: the kernel wrote a socket address of this length into the storage.
            let from = unsafe { SockAddr::new(name, slot.name) }.as_socket();
            let Some(from) = from else { continue };
            datagrams[usable] = RxDatagram {
                from: SocketAddr::new(from.ip().to_canonical(), from.port()),
                segment: slot.length,
                bytes: &mut bytes[..slot.length],
            };
            usable += 1;
        }
        take(&mut datagrams[..usable]);
    }

    fn fill(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        let mut messages = [sys::empty_message(); BATCH];
        let slots = self.slots.chunks_exact_mut(MAX_DATAGRAM).zip(&mut self.names);
        for ((message, vector), (slot, name)) in messages.iter_mut().zip(&mut vectors).zip(slots) {
            vector.iov_base = slot.as_mut_ptr().cast();
            vector.iov_len = slot.len();
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_namelen = name.size_of();
            message.msg_hdr.msg_name = (&raw mut *name).cast();
        }
        // SAFETY: vectors and names point into `self`, with their true lengths, and `self` is borrowed mutably beyond
        // the call.
        let count = unsafe { sys::receive_messages(socket, &mut messages)? };
        for (slot, message) in self.received.iter_mut().zip(&messages).take(count) {
            *slot = Slot {
                length: message.msg_len as usize,
                name: message.msg_hdr.msg_namelen,
                truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            };
        }
        Ok(count)
    }
}
