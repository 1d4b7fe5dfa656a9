//! The beat by which the kernel knows that the agent forwards: a packet that the packet worker itself sends to the
//! loopback interface, where a rule of the packet filter takes note of it.
//!
//! A packet and not a request to the packet filter, for a request waits while somebody else changes the filter's
//! rules, and a worker that waits there would be taken for dead while it lives.

use std::io;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::net::filter::wire::{BEAT, FAREWELL};
use crate::net::sys;

/// How long a beat lasts: [`crate::net::filter::wire::LIFE`].
pub(crate) use crate::net::filter::wire::LIFE;

/// An Ethernet header of an experimental type, and nothing in it.
const FRAME: [u8; 14] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x88, 0xb5];

/// Sends beats.
#[derive(Debug)]
pub(crate) struct Beat {
    beat: Socket,
    farewell: Socket,
}

impl Beat {
    /// Opens the way to the loopback interface.
    ///
    /// # Errors
    /// Where the interface is missing, or the process lacks CAP_NET_RAW or CAP_NET_ADMIN.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { beat: open(BEAT)?, farewell: open(FAREWELL)? })
    }

    /// Tells the kernel that the agent forwards for [`LIFE`] from now.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn beat(&self) -> io::Result<()> {
        self.beat.send(&FRAME).map(drop)
    }

    /// Tells the kernel that the agent has ceased to forward.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn farewell(&self) -> io::Result<()> {
        self.farewell.send(&FRAME).map(drop)
    }
}

fn open(mark: u32) -> io::Result<Socket> {
    // Protocol 0: it hears nothing.
    let socket = Socket::new(Domain::PACKET, Type::RAW.cloexec(), None::<Protocol>)?;
    sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_MARK, mark)?;
    socket.set_nonblocking(true)?;
    let index = nix::net::if_::if_nametoindex("lo")?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a sockaddr_ll fits a sockaddr_storage, and any bytes are a valid one.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_ifindex = libc::c_int::try_from(index).map_err(io::Error::other)?;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage holds a sockaddr_ll of that length.
    let address = unsafe { SockAddr::new(storage, length) };
    socket.bind(&address)?;
    Ok(socket)
}
