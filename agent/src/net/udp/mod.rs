//! The underlay's UDP sockets: datagrams of the tunnels, in batches, never fragmented.

mod group;
mod receive;
mod send;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use anteroom_transport::egress;
use socket2::{Domain, Protocol, Socket, Type};

pub use self::group::{Group, MAX_SOCKETS};
pub use self::receive::DatagramRing;
use self::send::{Hops, Segmentation};
pub(crate) use self::send::{MAX_RUN, MAX_SEGMENTS, Run};
use crate::net::appetite::Appetite;
use crate::net::offload::Offload;
use crate::net::sys::{self, Buffer};

/// Runs of datagrams sent with one system call at most.
pub const BATCH: usize = 64;

const SOCKET_BUFFER: libc::c_int = 7 << 20;

/// How many numbers the kernel tells of a socket's memory, up to what it dropped (`SK_MEMINFO_DROPS`, the ninth).
const MEMORY: usize = 9;

/// Where the tunnels' datagrams come and go.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    /// Whether datagrams come in here. Not at a copy that only sends.
    hears: bool,
    ipv6: bool,
    hops: Hops,
    receive_buffer: usize,
    segmentation: Segmentation,
    /// To whom datagrams were too big, each once.
    too_big_to: Vec<SocketAddr>,
    merging: Offload,
    appetite: Appetite,
    /// Datagrams for which there was no room, as far as they were told.
    missed: u32,
}

impl UdpSocket {
    /// Binds the address. It may be one that the machine doesn't have yet, or loses for a while: the socket works
    /// whenever the address is there.
    ///
    /// # Errors
    /// Where the port is taken or the system refuses.
    pub fn bind(listen: SocketAddr) -> io::Result<Self> {
        Self::open(listen, false)
    }

    /// `shared`: beside other sockets of this user that share the port.
    fn open(listen: SocketAddr, shared: bool) -> io::Result<Self> {
        let ipv6 = listen.is_ipv6();
        let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        egress::marked(socket.as_fd())?;
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
        if shared {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&listen.into())?;
        let segmentation = Segmentation::probe(&socket);
        let hops = Hops::of(&socket, ipv6);
        let merging = receive::merge(&socket);
        Ok(Self {
            socket,
            hears: true,
            ipv6,
            hops,
            receive_buffer,
            segmentation,
            too_big_to: Vec::new(),
            merging,
            appetite: Appetite::default(),
            missed: 0,
        })
    }

    /// A copy that sends, for another thread. Nothing is to be fetched from it: what comes is the original's.
    fn sender(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            hears: false,
            ipv6: self.ipv6,
            hops: self.hops,
            receive_buffer: self.receive_buffer,
            segmentation: self.segmentation.clone(),
            too_big_to: Vec::new(),
            merging: self.merging.clone(),
            appetite: Appetite::default(),
            missed: 0,
        })
    }

    /// Whether datagrams come in here. Where not, it is a socket of a [`Group`] that the kernel doesn't steer for,
    /// and only sends.
    #[must_use]
    pub fn hears(&self) -> bool {
        self.hears
    }

    /// Datagrams that the kernel dropped since the last call because they weren't fetched in time. What it had merged
    /// counts once.
    pub fn take_missed(&mut self) -> u64 {
        if !self.hears {
            return 0;
        }
        let memory: io::Result<[u32; MEMORY]> =
            sys::get_option(&self.socket, libc::SOL_SOCKET, libc::SO_MEMINFO);
        let Ok([.., dropped]) = memory else { return 0 };
        let missed = dropped.wrapping_sub(self.missed);
        self.missed = dropped;
        missed.into()
    }

    /// Bytes that wait to be fetched, as the kernel counts them: with its own book-keeping.
    #[must_use]
    pub fn held(&self) -> usize {
        let memory: io::Result<[u32; MEMORY]> =
            sys::get_option(&self.socket, libc::SOL_SOCKET, libc::SO_MEMINFO);
        memory.map_or(0, |[held, ..]| held as usize)
    }

    /// Whether the kernel merges datagrams of one sender that come in a row (`UDP_GRO`). It does so only on interfaces
    /// where generic receive offload is on.
    #[must_use]
    pub fn merging(&self) -> &Offload {
        &self.merging
    }

    /// Has the kernel hand over each datagram by itself from now on, for this reason.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn stop_merging(&mut self, why: &str) -> io::Result<()> {
        self.merging = Offload::Off(why.into());
        sys::set_option(&self.socket, libc::SOL_UDP, libc::UDP_GRO, 0_i32)
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
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests;
