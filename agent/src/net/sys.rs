//! Socket options and batches that the standard library and our crates don't wrap.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;

/// Sets a socket option.
///
/// # Errors
/// What the system says.
pub(crate) fn set_option<T: Copy>(
    socket: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: T,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the call, and the kernel reads `length` bytes of `value`, a live copy.
    let result = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads a socket option that is a plain C value.
///
/// # Errors
/// What the system says.
pub(crate) fn get_option<T: Copy + zerocopy::FromZeros>(
    socket: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<T> {
    let mut value = T::new_zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, and `value` has that many; T holds any bytes it may be given
    // by these options (integers and structs of integers).
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// The size of the machine's pages in bytes.
fn page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    // SAFETY: it asks for a number and touches no memory of ours.
    *SIZE.get_or_init(|| usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(0))
}

/// Gives the pages of a buffer back to the system. They come back, full of zeros, when they are touched; what was in them
/// is lost. What shares a page with something else stays.
pub(crate) fn give_back(buffer: &mut [u8]) {
    let page = page_size();
    if !page.is_power_of_two() {
        return;
    }
    let skip = buffer.as_ptr().align_offset(page);
    let Some(pages) = buffer.get_mut(skip..) else { return };
    // Whole pages only: the system would round a length up.
    let length = pages.len() / page * page;
    if length == 0 {
        return;
    }
    // SAFETY: the range is whole pages within a buffer that is borrowed mutably, in anonymous memory of the allocator's,
    // which reads as zeros afterwards: any bytes are good ones.
    if unsafe { libc::madvise(pages.as_mut_ptr().cast(), length, libc::MADV_DONTNEED) } != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "memory can't be given back");
    }
}

/// Which of a socket's two buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Buffer {
    Receive,
    Send,
}

/// Makes a buffer `bytes` large, or as large as an unprivileged process may. Returns the size in force.
pub(crate) fn grow_buffer(socket: &impl AsFd, which: Buffer, bytes: libc::c_int) -> usize {
    let (force, plain) = match which {
        Buffer::Receive => (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
        Buffer::Send => (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
    };
    let grown = set_option(socket, libc::SOL_SOCKET, force, bytes)
        .or_else(|_| set_option(socket, libc::SOL_SOCKET, plain, bytes));
    if let Err(error) = grown {
        tracing::warn!(%error, ?which, "the socket keeps its default buffer; bursts may be lost");
    }
    // The kernel reports twice what it was asked for: its book-keeping counts too.
    let reported = get_option::<libc::c_int>(socket, libc::SOL_SOCKET, plain).unwrap_or(0);
    usize::try_from(reported).unwrap_or(0) / 2
}

/// How a batch of sends ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sent {
    /// Taken by the kernel.
    pub(crate) sent: u64,
    /// The socket's buffer or the interface's queue was full.
    pub(crate) queue_full: u64,
    /// Larger than the interface carries.
    pub(crate) too_big: u64,
    /// No route, or nobody there.
    pub(crate) unreachable: u64,
    /// Refused for another reason.
    pub(crate) failed: u64,
    /// The interface is down or gone.
    pub(crate) lost: bool,
}

impl Sent {
    /// Has each refusal stand for so many packets: those of a super-frame.
    pub(crate) const fn refusals_stand_for(&mut self, packets: u64) {
        self.queue_full *= packets;
        self.too_big *= packets;
        self.unreachable *= packets;
        self.failed *= packets;
    }

    /// Counts a refusal of one message that stood for `count` packets.
    pub(crate) fn note(&mut self, error: &io::Error, count: u64) {
        let counter = match error.raw_os_error().unwrap_or(0) {
            libc::EAGAIN | libc::ENOBUFS => &mut self.queue_full,
            libc::EMSGSIZE => &mut self.too_big,
            libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EADDRNOTAVAIL => &mut self.unreachable,
            _ => &mut self.failed,
        };
        self.lost |= interface_is_gone(error);
        *counter += count;
    }
}

/// Hands `messages` to the kernel, never waiting. What can't be sent is counted and passed over, so that one bad
/// message doesn't hold up the rest; the rest is given up where the socket's buffer is full or the interface gone.
///
/// # Safety
/// Every pointer in `messages` must be valid for reads as its length says.
pub(crate) unsafe fn send_messages(
    socket: &impl AsFd,
    messages: &mut [libc::mmsghdr],
    outcome: &mut Sent,
) {
    let mut rest = messages;
    while !rest.is_empty() {
        // SAFETY: the caller vouches for the pointers inside.
        let skip = match unsafe { send_some(socket, rest) } {
            Ok(sent) => {
                outcome.sent += sent as u64;
                sent
            }
            Err(error) => {
                let hopeless =
                    error.kind() == io::ErrorKind::WouldBlock || interface_is_gone(&error);
                let skip = if hopeless { rest.len() } else { 1 };
                outcome.note(&error, skip as u64);
                skip
            }
        };
        rest = rest.get_mut(skip..).unwrap_or_default();
    }
}

/// Hands the first of `messages` to the kernel with one system call, never waiting. Returns how many it took: one at
/// least, unless there was none.
///
/// # Errors
/// Why it didn't take the first.
///
/// # Safety
/// Every pointer in `messages` must be valid for reads as its length says.
pub(crate) unsafe fn send_some(
    socket: &impl AsFd,
    messages: &mut [libc::mmsghdr],
) -> io::Result<usize> {
    let fd = socket.as_fd().as_raw_fd();
    let count = libc::c_uint::try_from(messages.len()).unwrap_or(libc::c_uint::MAX);
    loop {
        // SAFETY: the caller vouches for the pointers inside; `messages` has `count` entries.
        let sent = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
        if let Ok(sent) = usize::try_from(sent) {
            return Ok(sent);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Whether an interface is down or gone.
fn interface_is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV))
}

/// Fetches up to `messages.len()` messages, never waiting. 0 when there is none.
///
/// # Errors
/// What the socket reports; it stays usable unless the interface is gone.
///
/// # Safety
/// Every pointer in `messages` must be valid for writes as its length says.
pub(crate) unsafe fn receive_messages(
    socket: &impl AsFd,
    messages: &mut [libc::mmsghdr],
) -> io::Result<usize> {
    let count = libc::c_uint::try_from(messages.len()).unwrap_or(libc::c_uint::MAX);
    loop {
        // SAFETY: the caller vouches for the pointers inside; `messages` has `count` entries; no time-out is given.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                messages.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        if let Ok(received) = usize::try_from(received) {
            return Ok(received);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN) => return Ok(0),
            _ => return Err(error),
        }
    }
}

/// A message header with nothing in it.
pub(crate) fn empty_message() -> libc::mmsghdr {
    // SAFETY: an all-zero mmsghdr has null pointers and lengths of 0, which is how an empty one is written.
    unsafe { std::mem::zeroed() }
}

/// Room for control messages, aligned as the kernel wants it.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Control(pub(crate) [u8; 80]);

impl Control {
    pub(crate) const EMPTY: Self = Self([0; 80]);

    const HEADER: usize = size_of::<libc::cmsghdr>();

    /// Writes one more control message behind the `used` bytes of those before. Returns how many bytes of the room
    /// are used then, for `msg_controllen`; one that doesn't fit isn't written.
    pub(crate) fn put(
        &mut self,
        used: usize,
        level: libc::c_int,
        kind: libc::c_int,
        value: &[u8],
    ) -> usize {
        let length = Self::HEADER + value.len();
        let end = used + length.next_multiple_of(align_of::<usize>());
        let Some(room) = self.0.get_mut(used..end) else { return used };
        room[..8].copy_from_slice(&length.to_ne_bytes());
        room[8..12].copy_from_slice(&level.to_ne_bytes());
        room[12..16].copy_from_slice(&kind.to_ne_bytes());
        room[16..length].copy_from_slice(value);
        end
    }

    /// The payload of the first control message of this kind within the first `used` bytes.
    pub(crate) fn find(&self, used: usize, level: libc::c_int, kind: libc::c_int) -> Option<&[u8]> {
        let mut rest = self.0.get(..used)?;
        while rest.len() >= Self::HEADER {
            let length = usize::from_ne_bytes(rest[..8].try_into().ok()?);
            let found = (
                i32::from_ne_bytes(rest[8..12].try_into().ok()?),
                i32::from_ne_bytes(rest[12..16].try_into().ok()?),
            );
            let payload = rest.get(Self::HEADER..length)?;
            if found == (level, kind) {
                return Some(payload);
            }
            rest = rest.get(length.next_multiple_of(align_of::<usize>())..)?;
        }
        None
    }
}

// The layout above is written out by hand for 64-bit machines, where `cmsg_len` has 8 bytes.
const _: () =
    assert!(size_of::<libc::cmsghdr>() == 16, "cmsghdr isn't laid out as on 64-bit Linux");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_message_is_found_as_it_was_written_and_only_then() {
        let mut control = Control::EMPTY;
        let (tos, segment) = (0xb8_i32.to_ne_bytes(), 1472_u16.to_ne_bytes());
        let used = control.put(0, libc::IPPROTO_IP, libc::IP_TOS, &tos);
        let used = control.put(used, libc::SOL_UDP, libc::UDP_SEGMENT, &segment);
        let find = |level, kind| control.find(used, level, kind);
        assert_eq!(find(libc::IPPROTO_IP, libc::IP_TOS), Some(&tos[..]));
        assert_eq!(find(libc::SOL_UDP, libc::UDP_SEGMENT), Some(&segment[..]));
        assert_eq!(find(libc::IPPROTO_IPV6, libc::IP_TOS), None);
        let full = control.clone().put(used, libc::IPPROTO_IP, libc::IP_TTL, &tos);
        assert!(full > used, "three are what a datagram needs");
        assert_eq!(control.clone().put(full, 1, 1, &[1]), full, "there is no room for a fourth");
        assert_eq!(control.find(0, libc::IPPROTO_IP, libc::IP_TOS), None);
        assert_eq!(control.find(1000, libc::IPPROTO_IP, libc::IP_TOS), None);
    }

    #[test]
    fn what_shares_a_page_with_a_buffer_that_was_given_back_stays() {
        let page = page_size();
        let mut memory = vec![7_u8; 8 * page];
        let aligned = memory.as_ptr().align_offset(page);
        // Begins with a page and ends within one.
        give_back(&mut memory[aligned..aligned + 2 * page + 100]);
        let (empty, rest) = memory[aligned..].split_at(2 * page);
        assert!(empty.iter().all(|byte| *byte == 0));
        assert!(rest.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_buffer_that_was_given_back_is_as_long_and_can_be_used() {
        for length in [0, 1, 4095, 8191, 1 << 20] {
            let mut buffer = vec![7_u8; length];
            for start in [0, 1, 5000] {
                let Some(part) = buffer.get_mut(start..) else { continue };
                give_back(part);
                // Whole pages are empty; the rest of the first and last stays.
                assert!(part.iter().all(|byte| [0, 7].contains(byte)), "{length} {start}");
                assert!(length < 1 << 20 || part.iter().filter(|byte| **byte == 7).count() < 8192);
                part.fill(7);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_control_bytes_make_it_panic(bytes: [u8; 32], used in 0..100_usize) {
            let mut control = Control::EMPTY;
            control.0[..32].copy_from_slice(&bytes);
            control.find(used, 1, 1);
        }
    }
}
