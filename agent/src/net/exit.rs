//! By which interface a socket's datagrams leave. What comes in is heard on all of them, so that nothing under way is lost
//! when that changes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::net::sys;

/// Sockets whose datagrams leave together.
#[derive(Debug, Default)]
pub(crate) struct Exits {
    sockets: Vec<OwnedFd>,
}

impl Exits {
    /// These sockets', whatever else has them.
    ///
    /// # Errors
    /// Where there are too many open files.
    pub(crate) fn of<'a>(sockets: impl Iterator<Item = impl AsFd + 'a>) -> io::Result<Self> {
        let sockets = sockets.map(|socket| socket.as_fd().try_clone_to_owned());
        Ok(Self { sockets: sockets.collect::<io::Result<_>>()? })
    }

    /// Has all that is sent from now on leave by the interface of this number; none: as routes say.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn leave_by(&self, interface: Option<u32>) -> io::Result<()> {
        self.sockets.iter().try_for_each(|socket| leave_by(socket, interface))
    }
}

/// As [`Exits::leave_by`], for one socket of UDP.
pub(crate) fn leave_by(socket: &impl AsFd, interface: Option<u32>) -> io::Result<()> {
    let number = interface.unwrap_or(0).to_be();
    let v4 = sys::set_option(socket, libc::IPPROTO_IP, libc::IP_UNICAST_IF, number);
    let v6 = sys::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_IF, number);
    // A socket of IPv4 refuses the second, one bound to IPv6 alone may refuse the first.
    v4.or(v6)
}

/// Has a socket of TCP that isn't connected yet connect by the interface of this number; none: as routes say.
///
/// # Errors
/// What the system says.
pub(crate) fn connect_by(socket: &impl AsFd, interface: Option<u32>) -> io::Result<()> {
    // Unlike datagrams, a connection takes no other interface than that of its route unless it is bound to one.
    let number = interface.unwrap_or(0);
    sys::set_option(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, number)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_socket_leaves_by_an_interface_and_as_routes_say_again() {
        for address in ["0.0.0.0:0", "[::]:0"] {
            let Ok(socket) = UdpSocket::bind(address) else { continue };
            let exits = Exits::of([&socket].into_iter()).unwrap();
            let by = || -> u32 {
                let level = libc::IPPROTO_IP;
                sys::get_option(&socket, level, libc::IP_UNICAST_IF).unwrap()
            };
            // Loopback has this number everywhere.
            exits.leave_by(Some(1)).unwrap();
            assert_eq!(u32::from_be(by()), 1, "{address}");
            exits.leave_by(None).unwrap();
            assert_eq!(by(), 0, "{address}");
            assert!(exits.leave_by(Some(999_999)).is_err(), "{address}: nobody has this number");
        }
    }

    #[tokio::test]
    async fn a_stream_is_connected_by_an_interface() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        connect_by(&socket, Some(1)).unwrap();
        let by: u32 = sys::get_option(&socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX).unwrap();
        assert_eq!(by, 1);
        socket.connect(to).await.unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        connect_by(&socket, Some(1)).unwrap();
        connect_by(&socket, None).unwrap();
        socket.connect(to).await.unwrap();
    }
}
