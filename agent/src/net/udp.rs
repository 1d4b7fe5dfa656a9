//! The underlay's UDP socket: datagrams of the tunnels, in batches, never fragmented.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use anteroom_agent_core::batch::RxDatagram;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::net::sys::{self, Buffer, Control, Sent};

/// Datagrams fetched or sent with one system call at most.
pub const BATCH: usize = 64;

/// Longest datagram that is taken: jumbo frames carry 9,000 bytes and a little more.
pub const MAX_DATAGRAM: usize = 10 * 1024;

const SOCKET_BUFFER: libc::c_int = 7 << 20;

/// Where the tunnels' datagrams come and go.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    ipv6: bool,
    receive_buffer: usize,
}

impl UdpSocket {
    /// Binds the address. It may be one that the machine doesn't have yet, or loses for a while: the socket works
    /// whenever the address is there.
    ///
    /// # Errors
    /// Where the port is taken or the system refuses.
    pub fn bind(listen: SocketAddr) -> io::Result<Self> {
        let ipv6 = listen.is_ipv6();
        let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if ipv6 {
            socket.set_only_v6(false)?;
            socket.set_freebind_v6(true)?;
            // PROBE sets "don't fragment" and believes no ICMP message about path sizes: those are unauthenticated,
            // and the tunnel finds its own size.
            let probe = libc::IPV6_PMTUDISC_PROBE;
            sys::set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, probe)?;
        } else {
            socket.set_freebind_v4(true)?;
        }
        // On a dual-stack socket this covers IPv4 peers; one bound to IPv6 alone may refuse it.
        let probe = libc::IP_PMTUDISC_PROBE;
        let set = sys::set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, probe);
        if !ipv6 {
            set?;
        }
        let receive_buffer = sys::grow_buffer(&socket, Buffer::Receive, SOCKET_BUFFER);
        sys::grow_buffer(&socket, Buffer::Send, SOCKET_BUFFER);
        socket.bind(&listen.into())?;
        Ok(Self { socket, ipv6, receive_buffer })
    }

    /// Size of the receive buffer in bytes.
    #[must_use]
    pub fn receive_buffer(&self) -> usize {
        self.receive_buffer
    }

    /// The address in force.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Sends datagrams: destination, type-of-service byte and payload of each. Never waits.
    pub(crate) fn send<'a>(
        &self,
        datagrams: impl Iterator<Item = (SocketAddr, u8, &'a [u8])>,
        outcome: &mut Sent,
    ) {
        let mut datagrams = datagrams.peekable();
        while datagrams.peek().is_some() {
            let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
            let mut names = [const { None }; BATCH];
            let mut controls = [Control::EMPTY; BATCH];
            let mut messages = [sys::empty_message(); BATCH];
            let mut count = 0;
            for (to, tos, payload) in datagrams.by_ref().take(BATCH) {
                let vector = &mut vectors[count];
                vector.iov_base = payload.as_ptr().cast_mut().cast();
                vector.iov_len = payload.len();
                let name = names[count].insert(SockAddr::from(self.mapped(to)));
                let header = &mut messages[count].msg_hdr;
                header.msg_iov = vector;
                header.msg_iovlen = 1;
                header.msg_name = name.as_ptr().cast_mut().cast();
                header.msg_namelen = name.len();
                if tos != 0 {
                    let control = &mut controls[count];
                    let (level, kind) = if to.is_ipv4() {
                        (libc::IPPROTO_IP, libc::IP_TOS)
                    } else {
                        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
                    };
                    header.msg_controllen = control.put_int(level, kind, tos.into());
                    header.msg_control = control.0.as_mut_ptr().cast();
                }
                count += 1;
            }
            // SAFETY: vectors cover payloads borrowed for 'a; names and controls live in this block; all lengths are
            // theirs. The kernel only reads.
            unsafe { sys::send_messages(&self.socket, &mut messages[..count], outcome) };
        }
    }

    fn mapped(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V4(v4) if self.ipv6 => {
                SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
            }
            other => other,
        }
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

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

#[cfg(test)]
mod tests;
