//! Several sockets on one port, each with the datagrams of its own lane.
//!
//! The kernel steers: a program of the group (`SO_ATTACH_REUSEPORT_CBPF`) reads the owner of a data message's receiver
//! index, which says which lane it is for. All else comes to socket 0: handshakes, strangers, garbage. So whoever
//! works for one lane neither waits for another nor sees its datagrams.
//!
//! The program sees the first datagram of what the kernel merged (`UDP_GRO`), and the kernel merges by addresses and
//! length, not by what is inside. It doesn't merge what differs in time to live, though, so each socket sends
//! with one of its own, and the far end's sockets get runs of one lane. Kernels before 6.10 (or their stable series'
//! fix of May 2024) merge those too: whoever reads a socket has to look at each datagram's owner, with [`owner`], and
//! hand on those that aren't its own.
//!
//! Nobody slips into the group unasked. The first socket takes the port for itself alone before it is shared, so a
//! second agent is told that the port is taken. Later the kernel lets in only sockets of the same user that ask to share
//! the port (`SO_REUSEPORT`), and to those the program gives nothing. What a process of the agent's own user does on
//! purpose (another program, an address of its own on the same port) nothing here prevents: it could as well
//! read the agent's memory.

use std::io;
use std::net::SocketAddr;

use super::UdpSocket;
use crate::net::offload::Offload;
use crate::net::sys;

/// Most sockets of a group: the owner in a receiver index has four bits.
pub const MAX_SOCKETS: usize = 16;

/// A data message: its type, and three zeros.
const DATA: u32 = 0x0400_0000;
/// Where the receiver index has its highest byte; the number is little-endian. Its upper half is the owner.
const OWNER: usize = 7;
/// Priority of what socket 0 sends, among what waits for the same interface (`TC_PRIO_INTERACTIVE`). The highest that
/// needs no privilege.
const FIRST: libc::c_int = 6;

/// For which lane's owner a datagram is: the number of its socket in a group that is large enough. None for all that
/// isn't a data message.
#[must_use]
pub fn owner(datagram: &[u8]) -> Option<u8> {
    let kind = datagram.first_chunk().map(|kind| u32::from_be_bytes(*kind));
    (kind == Some(DATA)).then(|| datagram.get(OWNER).map(|byte| byte >> 4)).flatten()
}

/// Sockets on one port.
#[derive(Debug)]
pub struct Group {
    /// At least one. The first gets whatever isn't for another.
    pub sockets: Vec<UdpSocket>,
    /// Whether the kernel steers. If it doesn't, everything comes to the first socket and the others only send.
    pub steering: Offload,
}

impl UdpSocket {
    /// Binds `count` sockets to an address: at least one, at most [`MAX_SOCKETS`].
    ///
    /// # Errors
    /// Where the port is taken or the system refuses even one socket. Where it refuses more, or doesn't steer, that is
    /// said in [`Group::steering`].
    pub fn bind_group(listen: SocketAddr, count: usize) -> io::Result<Group> {
        let count = count.clamp(1, MAX_SOCKETS);
        let first = Self::bind(listen)?;
        if count == 1 {
            let steering = Offload::Off("there is one socket".into());
            return Ok(Group { sockets: vec![first], steering });
        }
        if let Err(error) = sys::set_option(&first, libc::SOL_SOCKET, libc::SO_PRIORITY, FIRST) {
            tracing::debug!(%error, "lane 0's datagrams have no precedence on the way out");
        }
        match share(&first, count) {
            Ok(others) => {
                let sockets = std::iter::once(first).chain(others).collect();
                Ok(Group { sockets, steering: Offload::On })
            }
            Err(error) => alone(first, count, &error),
        }
    }
}

/// Binds the other sockets of a group beside the first, and has the kernel steer.
fn share(first: &UdpSocket, count: usize) -> io::Result<Vec<UdpSocket>> {
    let listen = first.local_address()?;
    sys::set_option(first, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1_i32)?;
    let mut others = Vec::new();
    for number in 1..count {
        let other = UdpSocket::open(listen, true)?;
        distinguish(&other, number)?;
        others.push(other);
        if number == 1 {
            // At once: without it the kernel spreads datagrams by their addresses.
            attach(first, count)?;
        }
    }
    Ok(others)
}

/// The first socket for all: the others are copies of it that send.
fn alone(first: UdpSocket, count: usize, error: &io::Error) -> io::Result<Group> {
    // Whatever was bound beside it is closed again by now.
    sys::set_option(&first, libc::SOL_SOCKET, libc::SO_REUSEPORT, 0_i32)?;
    let others = (1..count).map(|_| first.sender()).collect::<io::Result<Vec<_>>>()?;
    let sockets = std::iter::once(first).chain(others).collect();
    Ok(Group { sockets, steering: Offload::Off(format!("the kernel refuses: {error}")) })
}

/// Gives a socket's datagrams a time to live of their own: one more than the socket before.
fn distinguish(socket: &UdpSocket, number: usize) -> io::Result<()> {
    let options = [(libc::IPPROTO_IP, libc::IP_TTL), (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS)];
    let more = libc::c_int::try_from(number).map_err(io::Error::other)?;
    for (level, name) in options.into_iter().take(if socket.ipv6 { 2 } else { 1 }) {
        let usual: libc::c_int = sys::get_option(socket, level, name)?;
        let own = if usual + more > 255 { usual - more } else { usual + more };
        sys::set_option(socket, level, name, own)?;
    }
    Ok(())
}

/// Attaches the program that names the socket for a datagram, by its number in the group. It is run over the payload of
/// UDP; where it reads beyond the end, it ends with 0.
fn attach(socket: &UdpSocket, count: usize) -> io::Result<()> {
    let load = libc::BPF_LD | libc::BPF_ABS;
    let jump = libc::BPF_JMP | libc::BPF_K;
    let last = u32::try_from(count - 1).map_err(io::Error::other)?;
    let at = u32::try_from(OWNER).map_err(io::Error::other)?;
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        // All codes are below 256.
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut steps = [
        step(load | libc::BPF_W, 0, 0, 0),
        step(jump | libc::BPF_JEQ, 0, 4, DATA),
        step(load | libc::BPF_B, 0, 0, at),
        step(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 0, 0, 4),
        step(jump | libc::BPF_JGT, 1, 0, last),
        step(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let len = libc::c_ushort::try_from(steps.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: steps.as_mut_ptr() };
    sys::set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, program)
}

#[cfg(test)]
mod tests;
