//! A host's TUN device: IP packets of the machine itself, super-frames uncut, with the Ethernet header that ports have.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use anteroom_agent_core::vnet::VnetHeader;
use anteroom_agent_core::wire::ethernet;
use anteroom_proto::id::GatewayId;
use anteroom_proto::mac::MacAddr;
use zerocopy::{FromBytes, IntoBytes};

use crate::config::InterfaceName;
use crate::net::packet::MAX_PARTS;
use crate::net::sys::Sent;

/// Where the host's packets go, for the engine: a next hop that nobody else is.
const FAR_SIDE: MacAddr = MacAddr([0x02, 0x61, 0x74, 0x75, 0x6e, 0x00]);

/// Longest packet that the kernel sends through the device in one piece, in bytes: what fits an underlay of 1,500 with
/// room for IPv6 and an option or two. Longer ones that come through a tunnel are taken all the same.
pub(crate) const MTU: u32 = 1420;

const HEADER: usize = ethernet::HEADER_LEN;

/// The Ethernet header that a host's packets are given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TunFrames([u8; HEADER]);

impl TunFrames {
    /// That of this host.
    pub(crate) fn of(host: GatewayId) -> Self {
        Self(ethernet::header(FAR_SIDE, MacAddr::of_host(host), ethernet::IPV4))
    }
}

/// Makes the device. It is gone, with its addresses and routes, once the descriptor is closed, however the agent ends.
///
/// # Errors
/// Where an interface has this name, `/dev/net/tun` isn't there, or the process lacks CAP_NET_ADMIN.
pub(crate) fn open(name: &InterfaceName, super_frames: bool) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the path is a literal that ends in a zero; a non-negative result is a descriptor that nobody else owns.
    let fd = unsafe {
        let fd = libc::open(c"/dev/net/tun".as_ptr(), flags);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: all zeros is a valid ifreq: a name and integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: an interface's name has 15 at most.
    for (to, from) in request.ifr_name.iter_mut().take(15).zip(name.as_str().bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let kind = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = (kind as u16).cast_signed();
    // SAFETY: the descriptor is open, and the kernel reads and writes one ifreq, which lives beyond the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let length = libc::c_int::try_from(VnetHeader::LEN).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and the kernel reads one integer, which lives beyond the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if super_frames {
        let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        // Kernels before 6.2 know no UDP super-frames, and refuse the whole.
        let known = [tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6, tcp];
        let offload = |flags: &libc::c_uint| {
            let flags = libc::c_ulong::from(*flags);
            // SAFETY: the descriptor is open; the argument is a number.
            unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, flags) == 0 }
        };
        if !known.iter().any(offload) {
            tracing::warn!(interface = %name, "the kernel hands over no super-frames; that costs speed");
        }
    }
    Ok(fd)
}

/// Fetches a packet into `room`: its header for super-frames, then the frame, whose length is returned. None: there
/// was something that isn't IPv4.
///
/// # Errors
/// `WouldBlock` where nothing waits, and what the system says.
pub(crate) fn receive(
    fd: &impl AsFd,
    frames: &TunFrames,
    room: &mut [u8],
) -> io::Result<Option<usize>> {
    let Some(tail) = room.get_mut(HEADER..) else { return Ok(None) };
    // SAFETY: the descriptor is open for the call, and the kernel writes at most so many bytes into `tail`, which is
    // borrowed mutably.
    let read = unsafe { libc::read(fd.as_fd().as_raw_fd(), tail.as_mut_ptr().cast(), tail.len()) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    let Some((mut vnet, packet)) = tail
        .get(..read)
        .and_then(|whole| VnetHeader::read_from_prefix(whole).ok())
        .filter(|(_, packet)| packet.first().is_some_and(|first| first >> 4 == 4))
    else {
        return Ok(None);
    };
    let length = HEADER + packet.len();
    // The kernel counts from the packet, the engine from the Ethernet header.
    if vnet.flags & VnetHeader::FLAG_NEEDS_CSUM != 0 {
        vnet.csum_start = vnet.csum_start.saturating_add(HEADER as u16);
    }
    if vnet.hdr_len != 0 {
        vnet.hdr_len = vnet.hdr_len.saturating_add(HEADER as u16);
    }
    let (head, rest) = room.split_at_mut(VnetHeader::LEN);
    head.copy_from_slice(vnet.as_bytes());
    if let Some(header) = rest.first_chunk_mut::<HEADER>() {
        *header = frames.0;
    }
    Ok(Some(length))
}

/// As [`send`], for a frame behind its header for super-frames.
pub(crate) fn send_headed(fd: &impl AsFd, frame: &[u8], outcome: &mut Sent) {
    match VnetHeader::read_from_prefix(frame) {
        Ok((vnet, frame)) => send(fd, &vnet, &[frame], outcome),
        Err(_) => outcome.failed += 1,
    }
}

/// Hands the packet in a frame, which parts make, to the machine. Never waits. What isn't IPv4 is for Ethernet alone, and
/// goes nowhere.
pub(crate) fn send(fd: &impl AsFd, vnet: &VnetHeader, parts: &[&[u8]], outcome: &mut Sent) {
    let mut head = [0; HEADER];
    let mut known = 0;
    let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MAX_PARTS + 1];
    let mut vnet = *vnet;
    let mut count = 1;
    for part in parts {
        let (header, packet) = part.split_at(part.len().min(HEADER - known));
        head[known..known + header.len()].copy_from_slice(header);
        known += header.len();
        if packet.is_empty() {
            continue;
        }
        let Some(vector) = vectors.get_mut(count) else {
            outcome.failed += 1;
            return;
        };
        *vector =
            libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
        count += 1;
    }
    if known < HEADER || head[12..] != ethernet::IPV4.to_be_bytes() {
        return;
    }
    if vnet.flags & VnetHeader::FLAG_NEEDS_CSUM != 0 {
        vnet.csum_start = vnet.csum_start.saturating_sub(HEADER as u16);
    }
    vnet.hdr_len = vnet.hdr_len.saturating_sub(HEADER as u16);
    vectors[0] = libc::iovec {
        iov_base: vnet.as_bytes().as_ptr().cast_mut().cast(),
        iov_len: VnetHeader::LEN,
    };
    let vectors = &vectors[..count];
    let length = libc::c_int::try_from(vectors.len()).unwrap_or(0);
    // SAFETY: the vectors cover `vnet` and `parts`, which live beyond the call, with their true lengths; the kernel only
    // reads.
    let sent = unsafe { libc::writev(fd.as_fd().as_raw_fd(), vectors.as_ptr(), length) };
    if sent >= 0 {
        outcome.sent += 1;
    } else {
        outcome.note(&io::Error::last_os_error(), 1);
    }
}

#[cfg(test)]
mod tests;
