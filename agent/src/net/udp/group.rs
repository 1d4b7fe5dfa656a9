//! Several sockets on one port: one for each owner of receiver indices ([`anteroom_agent_core::lane`]). Owner 0 is the
//! engine with lane 0 and all that isn't a lane's; the others run the other lanes.
//!
//! The kernel steers: a program of the group (`SO_ATTACH_REUSEPORT_CBPF`) reads a datagram's owner from its receiver
//! index. What is owner 0's, initiations, strangers and garbage come to socket 0, the other owners' to the other sockets
//! in turn. So whoever works for one socket neither waits for another nor sees its datagrams.
//!
//! The program sees the first datagram of what the kernel merged (`UDP_GRO`), and the kernel merges by addresses and
//! length, not by what is inside. It doesn't merge what differs in time to live, though, so senders give
//! each of the receiver's owners one of its own ([`Hops`](super::send::Hops)), whatever owners they have themselves. Kernels before
//! 6.10 (or their stable series' fix of May 2024) merge those too: whoever reads a socket has to look at each
//! datagram's owner, and hand on those that aren't its own.
//!
//! Where peers' QUIC is taken at the same port, one more socket is QUIC's. Its datagrams have a time to live of their own as
//! well; what is merged with others' all the same, both sides look through ([`anteroom_transport::direct::shared`]).
//!
//! Nobody slips into the group unasked. The first socket takes the port for itself alone before it is shared, so a
//! second agent is told that the port is taken. Later the kernel lets in only sockets of the same user that ask to share
//! the port (`SO_REUSEPORT`), and to those the program gives nothing. What a process of the agent's own user does on
//! purpose (another program, an address of its own on the same port) nothing here prevents: it could as well
//! read the agent's memory.

use std::io;
use std::net::SocketAddr;

use anteroom_proto::relay::mirror::QUIC_BIT;

use super::UdpSocket;
use crate::net::offload::Offload;
use crate::net::sys;

/// Most sockets of a group: a receiver index has four bits for the owner.
pub const MAX_SOCKETS: usize = 16;

/// First words of messages that have a receiver index, as the kernel loads them: a type and three zeros.
const RESPONSE: u32 = 0x0200_0000;
const COOKIE: u32 = 0x0300_0000;
const DATA: u32 = 0x0400_0000;
/// Where the receiver index has its highest byte, of which the upper half is the owner; the number is little-endian.
const AT: u32 = 7;
/// The same in a response.
const AT_IN_RESPONSE: u32 = 11;
/// Priority of what socket 0 sends without DSCP, among what waits for the same interface (`TC_PRIO_INTERACTIVE`). The highest
/// that needs no privilege. A datagram with a mark of its own has the priority that Linux makes of that.
const FIRST: libc::c_int = 6;

/// Sockets on one port.
#[derive(Debug)]
pub struct Group {
    /// At least one. The first gets whatever isn't for another; [`Group::place`] says whose comes where.
    pub sockets: Vec<UdpSocket>,
    /// The socket for QUIC on the same port, if one was asked for and the kernel steers.
    pub quic: Option<std::net::UdpSocket>,
    /// Whether the kernel steers. If it doesn't, everything comes to the first socket and the others only send.
    pub steering: Offload,
}

impl Group {
    /// The socket of an owner in a group of `count`.
    #[must_use]
    pub fn place(owner: u8, count: usize) -> usize {
        let others = count.saturating_sub(1);
        match usize::from(owner).checked_sub(1) {
            Some(owner) if others > 0 => owner % others + 1,
            _ => 0,
        }
    }
}

impl UdpSocket {
    /// Binds `count` sockets to an address: at least one, at most [`MAX_SOCKETS`]. `quic`: and one more for QUIC, which is
    /// told from the tunnels' datagrams by a bit of the first byte.
    ///
    /// # Errors
    /// Where the port is taken or the system refuses even one socket. Where it refuses more, or doesn't steer, that is
    /// said in [`Group::steering`].
    pub fn bind_group(listen: SocketAddr, count: usize, quic: bool) -> io::Result<Group> {
        let count = count.clamp(1, MAX_SOCKETS);
        let first = Self::bind(listen)?;
        let single = || Offload::Off("there is one socket".into());
        if count == 1 && !quic {
            return Ok(Group { sockets: vec![first], quic: None, steering: single() });
        }
        if let Err(error) = sys::set_option(&first, libc::SOL_SOCKET, libc::SO_PRIORITY, FIRST) {
            tracing::debug!(%error, "lane 0's datagrams have no precedence on the way out");
        }
        match share(&first, count, quic) {
            Ok((others, quic)) => {
                let sockets = std::iter::once(first).chain(others).collect();
                let steering = if count == 1 { single() } else { Offload::On };
                Ok(Group { sockets, quic, steering })
            }
            Err(error) => alone(first, count, &error),
        }
    }
}

/// Binds the other sockets of a group beside the first, QUIC's last, and has the kernel steer.
fn share(
    first: &UdpSocket,
    count: usize,
    quic: bool,
) -> io::Result<(Vec<UdpSocket>, Option<std::net::UdpSocket>)> {
    let listen = first.local_address()?;
    sys::set_option(first, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1_i32)?;
    let mut others = Vec::new();
    for number in 1..count + usize::from(quic) {
        let other = UdpSocket::open(listen, true)?;
        others.push(other);
        if number == 1 {
            // At once: without it the kernel spreads datagrams by their addresses.
            attach(first, count, quic)?;
        }
    }
    let quic = others.pop_if(|_| quic).map(|last| {
        last.hops.set_apart(&last.socket);
        last.socket.into()
    });
    Ok((others, quic))
}

/// The first socket for all: the others are copies of it that send.
fn alone(first: UdpSocket, count: usize, error: &io::Error) -> io::Result<Group> {
    // Whatever was bound beside it is closed again by now.
    sys::set_option(&first, libc::SOL_SOCKET, libc::SO_REUSEPORT, 0_i32)?;
    let others = (1..count).map(|_| first.sender()).collect::<io::Result<Vec<_>>>()?;
    let sockets = std::iter::once(first).chain(others).collect();
    let steering = Offload::Off(format!("the kernel refuses: {error}"));
    Ok(Group { sockets, quic: None, steering })
}

/// Attaches the program that names the socket for a datagram, by its number in the group. It is run over the payload of
/// UDP; where it reads beyond the end, it ends with 0.
fn attach(socket: &UdpSocket, count: usize, quic: bool) -> io::Result<()> {
    let others = u32::try_from(count - 1).map_err(io::Error::other)?;
    let last = u32::try_from(count).map_err(io::Error::other)?;
    let (word, byte) =
        (libc::BPF_LD | libc::BPF_ABS | libc::BPF_W, libc::BPF_LD | libc::BPF_ABS | libc::BPF_B);
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let (always, alu) = (libc::BPF_JMP | libc::BPF_JA, libc::BPF_ALU | libc::BPF_K);
    // All codes are below 256.
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let to_quic = [
        step(byte, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, QUIC_BIT.into()),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, last),
    ];
    let to_first = [step(libc::BPF_RET | libc::BPF_K, 0, 0, 0)];
    let to_owners = [
        step(word, 0, 0, 0),
        step(equal, 2, 0, DATA),
        step(equal, 1, 0, COOKIE),
        step(equal, 2, 9, RESPONSE),
        step(byte, 0, 0, AT),
        step(always, 0, 0, 1),
        step(byte, 0, 0, AT_IN_RESPONSE),
        step(alu | libc::BPF_RSH, 0, 0, 4),
        step(equal, 3, 0, 0),
        step(alu | libc::BPF_SUB, 0, 0, 1),
        step(alu | libc::BPF_MOD, 0, 0, others),
        step(alu | libc::BPF_ADD, 0, 0, 1),
        step(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let mut steps = Vec::new();
    if quic {
        steps.extend(to_quic);
    }
    if count > 1 {
        steps.extend(to_owners);
    } else {
        steps.extend(to_first);
    }
    let len = libc::c_ushort::try_from(steps.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: steps.as_mut_ptr() };
    sys::set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, program)
}

#[cfg(test)]
mod tests;
