//! Raw sockets: whole frames on an interface, and ICMP.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use nix::libc;

/// Turns a C result into a Rust one.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Frames that are sent with one system call at most.
const MANY: usize = 64;

/// A socket that reads and writes whole frames.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    /// Opens one for frames of `ether_type` (3 for all) on the interface of this number (0 for all), in the network
    /// namespace of the calling thread. Frames that leave through the interface aren't read.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open(interface: u32, ether_type: u16) -> io::Result<Self> {
        // SAFETY: plain system calls; the descriptor is owned as soon as it exists; the address is a plain structure
        // for which all zeros are valid, and is as long as is said.
        unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
            let fd = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_PACKET, kind, 0))?);
            let socket = Self { fd };
            socket.option(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
            socket.option(libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
            let buffer = 16 << 20;
            if socket.option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, buffer).is_err() {
                socket.option(libc::SOL_SOCKET, libc::SO_RCVBUF, buffer)?;
            }
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = ether_type.to_be();
            address.sll_ifindex = i32::try_from(interface).unwrap_or(0);
            check(libc::bind(
                socket.fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            ))?;
            Ok(socket)
        }
    }

    /// Opens one on the interface of this name.
    ///
    /// # Errors
    /// If there is none, or the kernel refuses.
    pub fn open_on(interface: &str, ether_type: u16) -> io::Result<Self> {
        Self::open(nix::net::if_::if_nametoindex(interface)?, ether_type)
    }

    fn option(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: the value is a C int, as long as is said.
        check(unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as u32,
            )
        })
        .map(|_| ())
    }

    /// Sends a whole frame.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer is valid for its length.
        let sent = unsafe {
            libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), libc::MSG_NOSIGNAL)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sends whole frames, many with one system call, and says how many the kernel took; what it didn't take is lost.
    ///
    /// # Errors
    /// If the kernel refuses for another reason than a full queue.
    pub fn send_many(&self, frames: &[Vec<u8>]) -> io::Result<usize> {
        let mut taken = 0;
        for part in frames.chunks(MANY) {
            let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MANY];
            // SAFETY: all zeros is a valid header of a message.
            let mut messages: [libc::mmsghdr; MANY] = unsafe { std::mem::zeroed() };
            for ((vector, message), frame) in vectors.iter_mut().zip(&mut messages).zip(part) {
                vector.iov_base = frame.as_ptr().cast_mut().cast();
                vector.iov_len = frame.len();
                message.msg_hdr.msg_iov = vector;
                message.msg_hdr.msg_iovlen = 1;
            }
            // SAFETY: each vector covers a frame that is borrowed beyond this call; the kernel only reads.
            let sent = unsafe {
                libc::sendmmsg(
                    self.fd.as_raw_fd(),
                    messages.as_mut_ptr(),
                    part.len() as libc::c_uint,
                    0,
                )
            };
            match check(sent) {
                Ok(sent) => taken += usize::try_from(sent).unwrap_or(0),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    /// Reads a frame into `buffer`, if one comes within `limit`.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn receive(&self, buffer: &mut [u8], limit: Duration) -> io::Result<Option<usize>> {
        receive(&self.fd, buffer, limit)
    }

    /// Reads a frame as it was on the cable, if one comes within `limit`: the kernel takes an outer 802.1Q tag off, and
    /// this puts it back.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn receive_whole(&self, limit: Duration) -> io::Result<Option<Vec<u8>>> {
        if !readable(&self.fd, limit)? {
            return Ok(None);
        }
        let mut frame = vec![0_u8; 65_600];
        let mut control = [0_u64; 16];
        // SAFETY: the message header points at buffers that live as long as the call, with their lengths; the control
        // message is read unaligned and is as long as its header says.
        let tag = unsafe {
            let mut part =
                libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control);
            let read = libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT);
            let Ok(read) = usize::try_from(read) else {
                return match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                    error => Err(error),
                };
            };
            frame.truncate(read);
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            let told = !header.is_null()
                && (*header).cmsg_level == libc::SOL_PACKET
                && (*header).cmsg_type == libc::PACKET_AUXDATA;
            told.then(|| libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned())
        };
        if let Some(tag) = tag.filter(|tag| tag.tp_status & libc::TP_STATUS_VLAN_VALID != 0) {
            let told = tag.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
            let protocol = if told { tag.tp_vlan_tpid } else { 0x8100 };
            let bytes = [protocol.to_be_bytes(), tag.tp_vlan_tci.to_be_bytes()].concat();
            frame.splice(12..12, bytes);
        }
        Ok(Some(frame))
    }

    /// Frames that came and found no room, since the last question.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn missed(&self) -> io::Result<u32> {
        // SAFETY: the structure is plain and as long as is said.
        unsafe {
            let mut statistics: libc::tpacket_stats = std::mem::zeroed();
            let mut length = size_of::<libc::tpacket_stats>() as u32;
            check(libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            ))?;
            Ok(statistics.tp_drops)
        }
    }
}

impl std::os::fd::AsFd for PacketSocket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until there is something to read, for `limit` at most.
fn readable(fd: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let limit = libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(limit.subsec_nanos()),
    };
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd and time.
    match check(unsafe { libc::ppoll(&raw mut poll, 1, &raw const limit, std::ptr::null()) }) {
        Ok(ready) => Ok(ready > 0),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error),
    }
}

fn receive(fd: &OwnedFd, buffer: &mut [u8], limit: Duration) -> io::Result<Option<usize>> {
    if !readable(fd, limit)? {
        return Ok(None);
    }
    // SAFETY: the buffer is valid for its length.
    unsafe {
        let flags = libc::MSG_DONTWAIT;
        let read = libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags);
        match usize::try_from(read) {
            Ok(read) => Ok(Some(read)),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                error => Err(error),
            },
        }
    }
}

/// A socket that sends and reads ICMP.
#[derive(Debug)]
pub struct IcmpSocket {
    fd: OwnedFd,
}

impl IcmpSocket {
    /// Opens one in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open() -> io::Result<Self> {
        // SAFETY: a plain system call; the descriptor is owned as soon as it exists.
        unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
            let fd = check(libc::socket(libc::AF_INET, kind, libc::IPPROTO_ICMP))?;
            Ok(Self { fd: OwnedFd::from_raw_fd(fd) })
        }
    }

    /// Sends an echo request.
    ///
    /// # Errors
    /// If the kernel refuses, as it does when the neighbour is known not to be there.
    pub fn echo(&self, to: std::net::Ipv4Addr, identifier: u16, sequence: u16) -> io::Result<()> {
        let mut message = [0_u8; 64];
        message[0] = 8;
        message[4..6].copy_from_slice(&identifier.to_be_bytes());
        message[6..8].copy_from_slice(&sequence.to_be_bytes());
        for (index, byte) in message.iter_mut().enumerate().skip(8) {
            *byte = u8::try_from(index).unwrap_or(0);
        }
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        // SAFETY: the address is a plain structure and as long as is said; the buffer is valid for its length.
        let sent = unsafe {
            let mut address: libc::sockaddr_in = std::mem::zeroed();
            address.sin_family = libc::AF_INET as u16;
            address.sin_addr.s_addr = u32::from(to).to_be();
            libc::sendto(
                self.fd.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                libc::MSG_DONTWAIT,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_in>() as u32,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next echo reply to `identifier` that comes within `limit`: who sent it, and its sequence number.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn reply(
        &self,
        identifier: u16,
        limit: Duration,
    ) -> io::Result<Option<(std::net::Ipv4Addr, u16)>> {
        let deadline = std::time::Instant::now() + limit;
        let mut buffer = [0; 2048];
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if let Some(length) = receive(&self.fd, &mut buffer, left)?
                && let Some(reply) = parse_reply(&buffer[..length], identifier)
            {
                return Ok(Some(reply));
            }
            if left.is_zero() {
                return Ok(None);
            }
        }
    }
}

fn parse_reply(packet: &[u8], identifier: u16) -> Option<(std::net::Ipv4Addr, u16)> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let icmp = packet.get(header..header + 8)?;
    if icmp[0] != 0 || icmp[4..6] != identifier.to_be_bytes() {
        return None;
    }
    Some((source.into(), u16::from_be_bytes([icmp[6], icmp[7]])))
}

/// The internet checksum.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// An ARP message in its frame: a request from `from` for `target`, or an announcement if they are the same.
#[must_use]
pub fn arp_request(mac: [u8; 6], from: std::net::Ipv4Addr, target: std::net::Ipv4Addr) -> [u8; 42] {
    let mut frame = [0_u8; 42];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&from.octets());
    frame[38..42].copy_from_slice(&target.octets());
    frame
}

/// The sender of an ARP reply.
#[must_use]
pub fn arp_reply(frame: &[u8]) -> Option<(std::net::Ipv4Addr, [u8; 6])> {
    if frame.get(12..14)? != [0x08, 0x06] || frame.get(20..22)? != [0, 2] {
        return None;
    }
    let mac: [u8; 6] = frame.get(22..28)?.try_into().ok()?;
    let address: [u8; 4] = frame.get(28..32)?.try_into().ok()?;
    Some((address.into(), mac))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn the_checksum_of_a_message_with_its_checksum_is_zero() {
        let mut message = [8, 0, 0, 0, 1, 2, 3, 4, 5];
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&message), 0);
    }

    #[test]
    fn replies_are_told_from_other_packets() {
        let mut packet = vec![0x45; 28];
        packet[12..16].copy_from_slice(&[10, 0, 0, 7]);
        packet[20] = 0;
        packet[24..28].copy_from_slice(&[0, 9, 0, 5]);
        assert_eq!(parse_reply(&packet, 9), Some((Ipv4Addr::new(10, 0, 0, 7), 5)));
        assert_eq!(parse_reply(&packet, 8), None);
        assert_eq!(parse_reply(&packet[..24], 9), None);
        packet[20] = 8;
        assert_eq!(parse_reply(&packet, 9), None);
        let request = arp_request([1; 6], Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(arp_reply(&request), None);
        let mut reply = request;
        reply[21] = 2;
        assert_eq!(arp_reply(&reply), Some((Ipv4Addr::new(10, 0, 0, 1), [1; 6])));
        assert_eq!(arp_reply(&reply[..30]), None);
    }
}
