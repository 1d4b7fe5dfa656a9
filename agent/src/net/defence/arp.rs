//! The ARP of an interface, as the kernel's own stack hears it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anteroom_agent_core::wire::arp::{ArpPacket, Operation, parse_arp};
use anteroom_proto::mac::MacAddr;
use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::hops::Said;

const ETH_P_ARP: u16 = 0x0806;

/// Hears ARP and asks by it.
#[derive(Debug)]
pub(super) struct ArpSocket {
    socket: AsyncFd<OwnedFd>,
    own: MacAddr,
}

impl ArpSocket {
    /// Opens the interface with this index, whose Ethernet address is `own`. Runs inside a tokio runtime.
    ///
    /// # Errors
    /// Where the interface is gone or the process lacks CAP_NET_RAW.
    pub(super) fn open(index: u32, own: MacAddr) -> io::Result<Self> {
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
        address.sll_family = libc::AF_PACKET as libc::c_ushort;
        address.sll_protocol = ETH_P_ARP.to_be();
        address.sll_ifindex = libc::c_int::try_from(index).map_err(io::Error::other)?;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: `address` is a live sockaddr_ll of `length` bytes.
        if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: an OwnedFd is the same, open descriptor until it is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { socket, own })
    }

    /// The next that somebody else says.
    ///
    /// # Errors
    /// Where the interface is gone or down.
    pub(super) async fn next(&mut self) -> io::Result<Said> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut frame = [0; 64];
            let fd = ready.get_inner().as_raw_fd();
            match recv(fd, &mut frame, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    let heard = frame.get(..length).and_then(|frame| said(frame, self.own));
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
        send(self.socket.as_raw_fd(), &frame, MsgFlags::MSG_DONTWAIT)?;
        Ok(())
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
