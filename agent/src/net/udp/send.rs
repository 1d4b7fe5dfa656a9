//! Sending, in batches that never wait.

use std::net::SocketAddr;

use socket2::SockAddr;

use super::{BATCH, UdpSocket};
use crate::net::sys::{self, Control, Sent};

impl UdpSocket {
    /// Sends datagrams: destination, type-of-service byte and payload of each. Never waits.
    pub(crate) fn send<'a>(
        &self,
        datagrams: impl Iterator<Item = (SocketAddr, u8, &'a [u8])>,
        outcome: &mut Sent,
    ) {
        let mut datagrams = datagrams.peekable();
        while datagrams.peek().is_some() {
            let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
            let mut names = [const { None }; BATCH];
            let mut controls = [Control::EMPTY; BATCH];
            let mut messages = [sys::empty_message(); BATCH];
            let mut count = 0;
            for (to, tos, payload) in datagrams.by_ref().take(BATCH) {
                let vector = &mut vectors[count];
                vector.iov_base = payload.as_ptr().cast_mut().cast();
                vector.iov_len = payload.len();
                let name = names[count].insert(SockAddr::from(self.mapped(to)));
                let header = &mut messages[count].msg_hdr;
                header.msg_iov = vector;
                header.msg_iovlen = 1;
                header.msg_name = name.as_ptr().cast_mut().cast();
                header.msg_namelen = name.len();
                if tos != 0 {
                    let control = &mut controls[count];
                    let (level, kind) = if to.is_ipv4() {
                        (libc::IPPROTO_IP, libc::IP_TOS)
                    } else {
                        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
                    };
                    header.msg_controllen = control.put_int(level, kind, tos.into());
                    header.msg_control = control.0.as_mut_ptr().cast();
                }
                count += 1;
            }
            // SAFETY: vectors cover payloads borrowed for 'a; names and controls live in this block; all lengths are
            // theirs. The kernel only reads.
            unsafe { sys::send_messages(&self.socket, &mut messages[..count], outcome) };
        }
    }

    fn mapped(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V4(v4) if self.ipv6 => {
                SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
            }
            other => other,
        }
    }
}
