//! The ARP of an interface, as the kernel's own stack hears it.
//!
//! Replies to this machine alone, by which next hops prove that they are there, have a socket of their own: whoever
//! floods the network with other ARP fills the other one's queue.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anteroom_agent_core::wire::arp::{ArpPacket, Operation, parse_arp};
use anteroom_proto::mac::MacAddr;
use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::hops::Said;
use crate::net::packet;

const ETH_P_ARP: u16 = 0x0806;

/// Hears ARP and asks by it.
#[derive(Debug)]
pub(super) struct ArpSocket {
    replies: AsyncFd<OwnedFd>,
    others: AsyncFd<OwnedFd>,
    own: MacAddr,
}

/// Which ARP a socket hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hears {
    /// Replies to this machine alone.
    Replies,
    /// All else.
    Others,
}

impl ArpSocket {
    /// Opens the interface with this index, whose Ethernet address is `own`. Runs inside a tokio runtime.
    ///
    /// # Errors
    /// Where the interface is gone or the process lacks CAP_NET_RAW.
    pub(super) fn open(index: u32, own: MacAddr) -> io::Result<Self> {
        let open = |hears| {
            let fd = open(index, own, hears)?;
            // SAFETY: an OwnedFd is the same, open descriptor until it is dropped.
            Ok::<_, io::Error>(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
        };
        Ok(Self { replies: open(Hears::Replies)?, others: open(Hears::Others)?, own })
    }

    /// The next that somebody else says, replies to this machine first.
    ///
    /// # Errors
    /// Where the interface is gone or down.
    pub(super) async fn next(&mut self) -> io::Result<Said> {
        let own = self.own;
        tokio::select! {
            biased;
            said = next(&self.replies, own) => said,
            said = next(&self.others, own) => said,
        }
    }

    /// Asks whoever is at `mac`, and nobody else, for an address, as the one who has `from`.
    ///
    /// # Errors
    /// Where the interface is gone or down, or its queue is full.
    pub(super) fn ask(&self, address: Ipv4Addr, mac: MacAddr, from: Ipv4Addr) -> io::Result<()> {
        let question = ArpPacket {
            operation: Operation::Request,
            sender_mac: self.own,
            sender: from,
            target_mac: MacAddr([0; 6]),
            target: address,
        };
        let frame = question.to_frame(mac, self.own);
        send(self.replies.as_raw_fd(), &frame, MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }
}

fn open(index: u32, own: MacAddr, hears: Hears) -> io::Result<OwnedFd> {
    // Protocol 0 hears nothing until the bind below, so that no frame comes in before the filter is attached.
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
    // SAFETY: all zeros is a valid sockaddr_ll; every field is an integer.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    packet::attach(&fd, &mut program(own, hears))?;
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = ETH_P_ARP.to_be();
    address.sll_ifindex = libc::c_int::try_from(index).map_err(io::Error::other)?;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a live sockaddr_ll of `length` bytes.
    if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// A classic BPF program that passes ARP replies to `own`, or all but those.
fn program(own: MacAddr, hears: Hears) -> [libc::sock_filter; 8] {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const REPLY: u32 = 2;
    let [a, b, c, d, e, f] = own.0;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let (replies, others) = match hears {
        Hears::Replies => (u32::MAX, 0),
        Hears::Others => (0, u32::MAX),
    };
    [
        op(LOAD_WORD, 0, 0, 0),
        op(JUMP_EQUAL, 0, 5, u32::from_be_bytes([a, b, c, d])),
        op(LOAD_HALF, 0, 0, 4),
        op(JUMP_EQUAL, 0, 3, u16::from_be_bytes([e, f]).into()),
        op(LOAD_HALF, 0, 0, 20),
        op(JUMP_EQUAL, 0, 1, REPLY),
        op(RETURN, 0, 0, replies),
        op(RETURN, 0, 0, others),
    ]
}

/// The next that somebody says at this socket. May be dropped while it waits: nothing is lost.
async fn next(socket: &AsyncFd<OwnedFd>, own: MacAddr) -> io::Result<Said> {
    loop {
        let mut ready = socket.readable().await?;
        let mut frame = [0; 64];
        let fd = ready.get_inner().as_raw_fd();
        match recv(fd, &mut frame, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => {
                let heard = frame.get(..length).and_then(|frame| said(frame, own));
                if let Some(said) = heard {
                    return Ok(said);
                }
            }
            Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::ENOBUFS) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a frame says to the machine at `own`. None: nothing, or it was meant for somebody else.
fn said(frame: &[u8], own: MacAddr) -> Option<Said> {
    let to = MacAddr(frame.get(..6)?.try_into().ok()?);
    let packet = parse_arp(frame.get(14..)?).ok()?;
    let for_us = to == own;
    let ours = packet.sender_mac == own;
    (!ours && (for_us || to.is_group())).then_some(Said {
        address: packet.sender,
        mac: packet.sender_mac,
        reply: for_us && packet.operation == Operation::Reply,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn packet(operation: Operation, sender_mac: MacAddr) -> ArpPacket {
        ArpPacket {
            operation,
            sender_mac,
            sender: Ipv4Addr::new(10, 0, 0, 1),
            target_mac: OWN,
            target: Ipv4Addr::new(10, 0, 0, 2),
        }
    }

    /// What both sockets have in their queues, replies first.
    fn queued(socket: &ArpSocket) -> [Vec<Vec<u8>>; 2] {
        [&socket.replies, &socket.others].map(|socket| {
            let mut frame = [0; 64];
            std::iter::from_fn(|| {
                let length = recv(socket.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT).ok()?;
                Some(frame[..length].to_vec())
            })
            .collect()
        })
    }

    #[tokio::test]
    async fn a_flood_of_other_arp_doesnt_push_out_the_replies() {
        let Ok(index) = nix::net::if_::if_nametoindex("lo") else { return };
        let mut socket = match ArpSocket::open(index, OWN) {
            Ok(socket) => socket,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                println!("without CAP_NET_RAW there is no such socket: {error}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let reply = packet(Operation::Reply, OTHER).to_frame(OWN, OTHER);
        let claim = packet(Operation::Request, OTHER).to_frame(MacAddr::BROADCAST, OTHER);
        let to_another = packet(Operation::Reply, OTHER).to_frame(MacAddr([2; 6]), OTHER);
        let sender = open(index, MacAddr([2; 6]), Hears::Replies).unwrap();
        let say = |frame: &[u8]| {
            while let Err(error) = send(sender.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT) {
                assert!(matches!(error, nix::errno::Errno::EAGAIN | nix::errno::Errno::ENOBUFS));
            }
        };
        for _ in 0..20_000 {
            say(&claim);
        }
        say(&to_another);
        say(&reply);
        // On the loopback each frame is seen as it goes and as it comes.
        let said = tokio::time::timeout(std::time::Duration::from_secs(10), socket.next()).await;
        assert!(said.expect("something is said").unwrap().reply, "replies come first");
        let [replies, others] = queued(&socket);
        assert!(replies.iter().all(|frame| frame[..42] == reply), "{replies:02x?}");
        assert!(others.len() > 10 && others.len() < 20_000, "{} overran nothing", others.len());
        assert!(others.iter().all(|frame| frame[..42] != reply));
    }

    #[test]
    fn only_a_reply_to_this_machine_alone_counts_as_one() {
        let reply = packet(Operation::Reply, OTHER);
        assert!(said(&reply.to_frame(OWN, OTHER), OWN).unwrap().reply);
        assert!(!said(&reply.to_frame(MacAddr::BROADCAST, OTHER), OWN).unwrap().reply);
        let request = packet(Operation::Request, OTHER);
        assert!(!said(&request.to_frame(OWN, OTHER), OWN).unwrap().reply);
        assert_eq!(said(&reply.to_frame(MacAddr([2; 6]), OTHER), OWN), None, "another's");
        let ours = packet(Operation::Reply, OWN);
        assert_eq!(said(&ours.to_frame(MacAddr::BROADCAST, OTHER), OWN), None, "our own");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_not(frame in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = said(&frame, OWN);
        }
    }
}
