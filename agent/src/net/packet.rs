//! Packet sockets: whole Ethernet frames in and out of an interface, super-frames uncut.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use anteroom_agent_core::batch::{RxFrame, VlanTag};
use anteroom_agent_core::vnet::VnetHeader;
use anteroom_agent_core::wire::{ethernet, parse_ethernet};
use anteroom_proto::mac::MacAddr;
use zerocopy::{FromBytes, IntoBytes};

use crate::net::appetite::Appetite;
use crate::net::sys::{self, Buffer, Control, Sent};
use crate::net::tun::{self, TunFrames};

/// The mark on the agent's own frames (`SO_MARK`), by which the packet filter tells them from the kernel's.
pub const MARK: u32 = 0x616e_7465;

/// Frames fetched or sent with one system call at most.
pub const BATCH: usize = 32;

/// Longest frame: 64 KiB of IP, an Ethernet header and two tags.
pub const MAX_FRAME: usize = 65_536 + 14 + 8;

/// Most parts that a frame is sent from without being copied together.
pub const MAX_PARTS: usize = 80;

/// Room for one received frame; a multiple of the page, so that frames that never come cost no memory.
const SLOT: usize = 68 * 1024;

/// Where the frame begins in it, behind its header: a cache line's boundary.
const START: usize = 64;

/// Rooms that are kept when memory is given back.
const KEPT: usize = 4;

/// What is asked of the kernel for either buffer, in bytes.
const SOCKET_BUFFER: libc::c_int = 7 << 20;

const ETH_P_ALL: u16 = 0x0003;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// A packet socket on the uplink or a device port, or a host's TUN device in the place of a port's.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    vnet: bool,
    skip: Option<MacAddr>,
    appetite: Appetite,
    /// It is a host's TUN device, dressed up as a port.
    tun: Option<TunFrames>,
}

/// How a packet socket is to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketOptions {
    /// Leaves frames to this unicast address to the kernel's own stack.
    pub skip: Option<MacAddr>,
    /// Asks for super-frames. Where the kernel refuses, frames pass one by one.
    pub super_frames: bool,
    /// Opens without hearing anything: the data plane begins to listen once its beat holds the kernel back.
    pub deaf: bool,
}

impl PacketSocket {
    /// Opens the interface with this index, in promiscuous mode. Frames that this machine sends are never seen.
    ///
    /// # Errors
    /// Where the interface is gone or the process lacks CAP_NET_RAW or CAP_NET_ADMIN.
    pub fn open(index: u32, options: PacketOptions) -> io::Result<Self> {
        // Protocol 0 hears nothing until the bind below, so that no frame slips in before the socket is set up.
        // SAFETY: no pointers; a non-negative result is a descriptor that nobody else owns.
        let fd = unsafe {
            let fd = libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                0,
            );
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let vnet = options.super_frames
            && sys::set_option(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1_i32).is_ok();
        sys::set_option(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1_i32)?;
        sys::set_option(&fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1_i32)?;
        sys::set_option(&fd, libc::SOL_SOCKET, libc::SO_MARK, MARK)?;
        sys::grow_buffer(&fd, Buffer::Receive, SOCKET_BUFFER);
        sys::grow_buffer(&fd, Buffer::Send, SOCKET_BUFFER);
        if options.deaf {
            attach(&fd, &mut [NOTHING])?;
        } else if let Some(mac) = options.skip {
            attach_skip(&fd, mac)?;
        }
        let index = libc::c_int::try_from(index).map_err(io::Error::other)?;
        bind(&fd, index)?;
        let promiscuous = libc::packet_mreq {
            mr_ifindex: index,
            mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        sys::set_option(&fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, promiscuous)?;
        Ok(Self { fd, vnet, skip: options.skip, appetite: Appetite::default(), tun: None })
    }

    /// A host's TUN device in a port's place: packets have an Ethernet header on this side, and none on the other.
    #[must_use]
    pub(crate) fn of_tun(fd: OwnedFd, frames: TunFrames) -> Self {
        Self { fd, vnet: true, skip: None, appetite: Appetite::default(), tun: Some(frames) }
    }

    /// Hears nothing from now on. What was heard before can still be fetched.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn deafen(&self) -> io::Result<()> {
        if self.tun.is_some() {
            return Ok(());
        }
        attach(&self.fd, &mut [NOTHING])
    }

    /// Hears again.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn hear(&self) -> io::Result<()> {
        match self.skip {
            _ if self.tun.is_some() => Ok(()),
            Some(mac) => attach_skip(&self.fd, mac),
            None => {
                match sys::set_option(&self.fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0_i32) {
                    // There is none to be taken off.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    result => result,
                }
            }
        }
    }

    /// Whether super-frames pass uncut. Each frame that is sent then begins with a [`VnetHeader`].
    #[must_use]
    pub fn super_frames(&self) -> bool {
        self.vnet
    }

    /// Frames that the kernel dropped since the last call because they weren't fetched in time.
    #[must_use]
    pub fn take_missed(&self) -> u64 {
        if self.tun.is_some() {
            // What it had no room for the kernel counts with the interface.
            return 0;
        }
        let statistics: io::Result<[u32; 2]> =
            sys::get_option(&self.fd, libc::SOL_PACKET, libc::PACKET_STATISTICS);
        statistics.map_or(0, |[_, dropped]| dropped.into())
    }

    /// Sends one frame from where its parts are, at most [`MAX_PARTS`] of them. Never waits. For a socket with
    /// [`PacketSocket::super_frames`].
    pub(crate) fn send_parts(&self, vnet: &VnetHeader, parts: &[&[u8]], outcome: &mut Sent) {
        if self.tun.is_some() {
            return tun::send(&self.fd, vnet, parts, outcome);
        }
        let mut vectors =
            [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MAX_PARTS + 1];
        let pieces = std::iter::once(vnet.as_bytes()).chain(parts.iter().copied());
        let mut count = 0;
        for (vector, piece) in vectors.iter_mut().zip(pieces) {
            vector.iov_base = piece.as_ptr().cast_mut().cast();
            vector.iov_len = piece.len();
            count += 1;
        }
        let mut message = sys::empty_message();
        message.msg_hdr.msg_iov = vectors.as_mut_ptr();
        message.msg_hdr.msg_iovlen = count;
        // SAFETY: the vectors cover `vnet` and `parts`, borrowed beyond this call, with their true lengths; the kernel
        // only reads.
        unsafe { sys::send_messages(&self.fd, &mut [message], outcome) };
    }

    /// Sends frames, each behind a [`VnetHeader`] where [`PacketSocket::super_frames`] says so. Never waits.
    pub(crate) fn send<'a>(&self, frames: impl Iterator<Item = &'a [u8]>, outcome: &mut Sent) {
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        if self.tun.is_some() {
            return frames.for_each(|frame| tun::send_headed(&self.fd, frame, outcome));
        }
        let mut frames = frames.peekable();
        while frames.peek().is_some() {
            let mut count = 0;
            for (vector, frame) in vectors.iter_mut().zip(frames.by_ref().take(BATCH)) {
                vector.iov_base = frame.as_ptr().cast_mut().cast();
                vector.iov_len = frame.len();
                count += 1;
            }
            let mut messages = [sys::empty_message(); BATCH];
            for (message, vector) in messages.iter_mut().zip(&mut vectors).take(count) {
                message.msg_hdr.msg_iov = vector;
                message.msg_hdr.msg_iovlen = 1;
            }
            // SAFETY: each vector covers a frame that is borrowed for 'a, beyond this call; the kernel only reads.
            unsafe { sys::send_messages(&self.fd, &mut messages[..count], outcome) };
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn bind(fd: &OwnedFd, index: libc::c_int) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: all zeros is a valid sockaddr_ll; every field is an integer.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = ETH_P_ALL.to_be();
    address.sll_ifindex = index;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a live sockaddr_ll of `length` bytes.
    let result = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const RETURN: u16 = 0x06;

/// A classic BPF program, whole, that passes nothing.
const NOTHING: libc::sock_filter = libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: 0 };

/// Attaches a classic BPF program that passes all frames but those to `mac`.
fn attach_skip(fd: &OwnedFd, mac: MacAddr) -> io::Result<()> {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const JUMP_EQUAL: u16 = 0x15;
    let [a, b, c, d, e, f] = mac.0;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        op(LOAD_WORD, 0, 0, 0),
        op(JUMP_EQUAL, 0, 3, u32::from_be_bytes([a, b, c, d])),
        op(LOAD_HALF, 0, 0, 4),
        op(JUMP_EQUAL, 0, 1, u16::from_be_bytes([e, f]).into()),
        NOTHING,
        op(RETURN, 0, 0, u32::MAX),
    ];
    attach(fd, &mut program)
}

/// Attaches a classic BPF program in place of the one before.
pub(crate) fn attach(fd: &OwnedFd, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let filter =
        libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_mut_ptr() };
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, filter)
}

/// What became of frames that were fetched but couldn't be handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unfit {
    /// Longer than a buffer.
    pub truncated: u64,
    /// Super-frames of a kind that the kernel couldn't describe.
    pub unknown_gso: u64,
}

/// Buffers for received frames; one ring serves all sockets of a worker.
pub struct FrameRing {
    /// Each with room for a header in front of the frame.
    slots: Vec<u8>,
    controls: [Control; BATCH],
    received: [Slot; BATCH],
    headed: bool,
    count: usize,
    large: bool,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    length: usize,
    control: usize,
    truncated: bool,
}

impl Default for FrameRing {
    fn default() -> Self {
        Self {
            slots: vec![0; SLOT * BATCH],
            controls: [Control::EMPTY; BATCH],
            received: [Slot::default(); BATCH],
            headed: false,
            count: 0,
            large: false,
        }
    }
}

impl FrameRing {
    /// Fetches what has come in, or a turn's share of it. Returns how many frames that were.
    ///
    /// # Errors
    /// What the socket reports. An unknown kind of super-frame isn't an error; it's counted in `unfit`.
    pub fn fetch(&mut self, socket: &PacketSocket, unfit: &mut Unfit) -> io::Result<usize> {
        self.headed = socket.vnet;
        self.count = 0;
        let ask = socket.appetite.ask(BATCH);
        let filled = match &socket.tun {
            Some(frames) => self.fill_from_tun(socket, frames, ask),
            None => self.fill(socket, ask),
        };
        match filled {
            Ok(count) => {
                self.count = count;
                let bytes: usize = self.received[..count].iter().map(|slot| slot.length).sum();
                socket.appetite.note(count, bytes);
                self.large |= count > KEPT || bytes > SLOT;
                Ok(count)
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && socket.vnet => {
                unfit.unknown_gso += 1;
                // More may wait behind the one that was lost.
                Ok(BATCH)
            }
            Err(error) => Err(error),
        }
    }

    /// Lends what was fetched to `take`, unless it's nothing.
    pub fn lend(&mut self, unfit: &mut Unfit, take: impl FnOnce(&mut [RxFrame<'_>])) {
        if self.count == 0 {
            return;
        }
        let mut frames: [RxFrame<'_>; BATCH] = std::array::from_fn(|_| RxFrame {
            vnet: VnetHeader::default(),
            vlan: None,
            bytes: &mut [],
        });
        let mut usable = 0;
        let slots = self.slots.chunks_exact_mut(SLOT).zip(&self.received).take(self.count);
        for (i, (bytes, slot)) in slots.enumerate() {
            let (header, bytes) = bytes.split_at_mut(START);
            if slot.truncated || slot.length > bytes.len() {
                unfit.truncated += 1;
                continue;
            }
            let aux = auxdata(&self.controls[i], slot.control);
            let bytes = &mut bytes[..slot.length];
            let vnet = match &aux {
                _ if self.headed => {
                    VnetHeader::read_from_suffix(header).map(|(_, vnet)| vnet).unwrap_or_default()
                }
                Some(aux) if aux.status & CHECKSUM_NOT_READY != 0 => unfinished(bytes),
                _ => VnetHeader::default(),
            };
            frames[usable] = RxFrame { vnet, vlan: aux.as_ref().and_then(vlan), bytes };
            usable += 1;
        }
        take(&mut frames[..usable]);
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

    /// As [`FrameRing::fill`], packet by packet: a TUN device knows no batches.
    fn fill_from_tun(
        &mut self,
        socket: &PacketSocket,
        frames: &TunFrames,
        ask: usize,
    ) -> io::Result<usize> {
        let mut count = 0;
        for _ in 0..ask {
            let room = self.slots.chunks_exact_mut(SLOT).nth(count);
            let Some(room) = room.and_then(|slot| slot.get_mut(START - VnetHeader::LEN..)) else {
                break;
            };
            match tun::receive(&socket.fd, frames, room) {
                Ok(Some(length)) => {
                    self.received[count] = Slot { length, control: 0, truncated: false };
                    count += 1;
                }
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // What came before it is handled first; it comes again with the next fetch, unless it is over.
                Err(_) if count > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }

    fn fill(&mut self, socket: &PacketSocket, ask: usize) -> io::Result<usize> {
        let skip = START - if socket.vnet { VnetHeader::LEN } else { 0 };
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        let mut messages = [sys::empty_message(); BATCH];
        let rooms = self.slots.chunks_exact_mut(SLOT).zip(&mut self.controls).take(ask);
        for ((message, vector), (slot, control)) in messages.iter_mut().zip(&mut vectors).zip(rooms)
        {
            // Header and frame in one piece: the kernel is quicker at one than at two.
            let room = &mut slot[skip..];
            *vector = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = control.0.len();
        }
        // SAFETY: each vector covers a slot of `self` with its true length, the control pointers likewise;
        // `self` is borrowed mutably beyond the call.
        let count = unsafe { sys::receive_messages(socket, &mut messages[..ask])? };
        for (slot, message) in self.received.iter_mut().zip(&messages).take(count) {
            let header = if socket.vnet { VnetHeader::LEN } else { 0 };
            *slot = Slot {
                length: (message.msg_len as usize).saturating_sub(header),
                control: message.msg_hdr.msg_controllen,
                truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            };
        }
        Ok(count)
    }
}

/// `struct tpacket_auxdata` (linux/if_packet.h).
#[derive(FromBytes)]
#[repr(C)]
struct Auxdata {
    status: u32,
    length: u32,
    captured: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

/// The sender is on this machine and left the checksum to a network card that there isn't.
const CHECKSUM_NOT_READY: u32 = 1 << 3;
const VLAN_VALID: u32 = 1 << 4;
const VLAN_TPID_VALID: u32 = 1 << 6;
const VLAN_8021Q: u16 = 0x8100;

fn auxdata(control: &Control, used: usize) -> Option<Auxdata> {
    let bytes = control.find(used, libc::SOL_PACKET, libc::PACKET_AUXDATA)?;
    Auxdata::read_from_prefix(bytes).ok().map(|(aux, _)| aux)
}

/// What the kernel would say of a frame whose checksum is to be completed, had it been asked for headers.
fn unfinished(frame: &[u8]) -> VnetHeader {
    let offset_of = |protocol| match protocol {
        6 => Some(16),
        17 => Some(6),
        _ => None,
    };
    let place = parse_ethernet(frame, None).ok().and_then(|parsed| {
        let (at, packet) = (parsed.payload_offset, parsed.payload);
        let (header, protocol) = match parsed.ethertype {
            ethernet::IPV4 => (usize::from(packet.first()? & 0x0f) * 4, *packet.get(9)?),
            ethernet::IPV6 => (40, *packet.get(6)?),
            _ => return None,
        };
        Some((u16::try_from(at + header).ok()?, offset_of(protocol)?))
    });
    place.map_or_else(VnetHeader::default, |(csum_start, csum_offset)| VnetHeader {
        flags: VnetHeader::FLAG_NEEDS_CSUM,
        csum_start,
        csum_offset,
        ..VnetHeader::default()
    })
}

fn vlan(aux: &Auxdata) -> Option<VlanTag> {
    (aux.status & VLAN_VALID != 0).then_some(VlanTag {
        protocol: if aux.status & VLAN_TPID_VALID != 0 { aux.vlan_tpid } else { VLAN_8021Q },
        control: aux.vlan_tci,
    })
}
