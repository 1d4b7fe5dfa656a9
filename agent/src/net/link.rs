//! Interfaces and addresses of the machine, by rtnetlink.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anteroom_proto::mac::MacAddr;
use futures_util::TryStreamExt;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType,
};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::config::InterfaceName;

/// Why an interface couldn't be read or set.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct LinkError {
    /// What was tried.
    pub what: String,
    /// What the system said.
    pub source: io::Error,
}

/// An interface as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number, which changes when it is plugged out and in.
    pub index: u32,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Longest IP packet, in bytes.
    pub mtu: u32,
    /// Whether it was switched on.
    pub up: bool,
    /// Whether there is a live cable.
    pub carrier: bool,
}

/// Reads and sets interfaces.
#[derive(Debug, Clone)]
pub struct Links {
    handle: rtnetlink::Handle,
}

impl Links {
    /// Opens the way to the kernel. Runs inside a tokio runtime.
    ///
    /// # Errors
    /// Where the kernel refuses the socket.
    pub fn new() -> Result<Self, LinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| LinkError { what: "opening rtnetlink".into(), source })?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The way to the kernel, for what isn't an interface or an address.
    pub(super) fn handle(&self) -> &rtnetlink::Handle {
        &self.handle
    }

    /// The interface of this name, if it is there.
    ///
    /// # Errors
    /// Where the kernel doesn't answer, or it isn't an Ethernet interface.
    pub async fn find(&self, name: &InterfaceName) -> Result<Option<Link>, LinkError> {
        let what = || format!("interface {name}");
        let request = self.handle.link().get().match_name(name.to_string()).execute();
        let mut answers = std::pin::pin!(request);
        match answers.try_next().await {
            Ok(Some(message)) => {
                link(&message).map(Some).map_err(|source| LinkError { what: what(), source })
            }
            Ok(None) => Ok(None),
            Err(error) => match io_error(error) {
                gone if gone.raw_os_error() == Some(libc::ENODEV) => Ok(None),
                source => Err(LinkError { what: what(), source }),
            },
        }
    }

    /// Keeps the kernel from speaking on a port by itself, and switches it on: no addresses, no ARP, no IPv6 address
    /// generation.
    ///
    /// # Errors
    /// Where the interface is gone or the process lacks CAP_NET_ADMIN.
    pub async fn quiet(&self, name: &InterfaceName, index: u32) -> Result<(), LinkError> {
        // A kernel without IPv6 refuses; there is nothing to switch off then.
        if let Err(error) = self.set_address_generation(index, In6AddrGenMode::None).await {
            tracing::debug!(%name, %error, "IPv6 address generation stays as it is");
        }
        let what = |step: &str| format!("{step} {name}");
        self.remove_addresses(index)
            .await
            .map_err(|source| LinkError { what: what("removing the addresses of"), source })?;
        self.change(LinkMessageBuilder::<LinkUnspec>::default().index(index).arp(false).up())
            .await
            .map_err(|source| LinkError { what: what("switching on"), source })
    }

    /// Undoes [`Links::quiet`] and switches the interface off.
    ///
    /// # Errors
    /// As [`Links::quiet`].
    pub async fn unquiet(&self, name: &InterfaceName, index: u32) -> Result<(), LinkError> {
        if let Err(error) = self.set_address_generation(index, In6AddrGenMode::Eui64).await {
            tracing::debug!(%name, %error, "IPv6 address generation stays as it is");
        }
        self.change(LinkMessageBuilder::<LinkUnspec>::default().index(index).arp(true).down())
            .await
            .map_err(|source| LinkError { what: format!("switching off {name}"), source })
    }

    /// Switches an interface off; the far end sees a dead cable.
    ///
    /// # Errors
    /// As [`Links::quiet`].
    pub async fn switch_off(&self, name: &InterfaceName, index: u32) -> Result<(), LinkError> {
        self.change(LinkMessageBuilder::<LinkUnspec>::default().index(index).down())
            .await
            .map_err(|source| LinkError { what: format!("switching off {name}"), source })
    }

    /// Switches on an uplink that carries nothing of the gateway's own, and keeps the kernel from giving it an
    /// address by itself. What an operator configured on it stays.
    ///
    /// # Errors
    /// As [`Links::quiet`].
    pub async fn switch_on(&self, name: &InterfaceName, index: u32) -> Result<(), LinkError> {
        if let Err(error) = self.set_address_generation(index, In6AddrGenMode::None).await {
            tracing::debug!(%name, %error, "IPv6 address generation stays as it is");
        }
        self.change(LinkMessageBuilder::<LinkUnspec>::default().index(index).up())
            .await
            .map_err(|source| LinkError { what: format!("switching on {name}"), source })
    }

    /// Has an interface hear every frame on its cable, or its own only. Other than with a packet socket, it does so
    /// with no program running too.
    ///
    /// # Errors
    /// As [`Links::quiet`].
    pub async fn hear_all(
        &self,
        name: &InterfaceName,
        index: u32,
        all: bool,
    ) -> Result<(), LinkError> {
        let message = LinkMessageBuilder::<LinkUnspec>::default().index(index).promiscuous(all);
        self.change(message)
            .await
            .map_err(|source| LinkError { what: format!("making {name} hear every frame"), source })
    }

    /// Switches on the loopback interface, as it is on every machine that has booted.
    ///
    /// # Errors
    /// As [`Links::quiet`].
    pub async fn switch_on_loopback(&self) -> Result<(), LinkError> {
        // The kernel gives it this number in every network namespace.
        self.change(LinkMessageBuilder::<LinkUnspec>::default().index(1).up())
            .await
            .map_err(|source| LinkError { what: "switching on lo".into(), source })
    }

    async fn set_address_generation(&self, index: u32, mode: In6AddrGenMode) -> io::Result<()> {
        let attribute =
            LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
                mode,
            )])]);
        self.change(
            LinkMessageBuilder::<LinkUnspec>::default()
                .index(index)
                .append_extra_attribute(attribute),
        )
        .await
    }

    async fn change(&self, message: LinkMessageBuilder<LinkUnspec>) -> io::Result<()> {
        self.handle.link().change(message.build()).execute().await.map_err(io_error)
    }

    async fn remove_addresses(&self, index: u32) -> io::Result<()> {
        let request = self.handle.address().get().set_link_index_filter(index).execute();
        let mut answers = std::pin::pin!(request);
        let mut found = Vec::new();
        while let Some(message) = answers.try_next().await.map_err(io_error)? {
            found.push(message);
        }
        for message in found {
            match self.handle.address().del(message).execute().await.map_err(io_error) {
                Err(error) if error.raw_os_error() != Some(libc::EADDRNOTAVAIL) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// All addresses of the machine with the interface that each is on; loopback's are left out.
    ///
    /// # Errors
    /// Where the kernel doesn't answer.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpAddr)>, LinkError> {
        let mut answers = std::pin::pin!(self.handle.address().get().execute());
        let mut addresses = Vec::new();
        loop {
            let message = answers.try_next().await.map_err(io_error).map_err(|source| {
                LinkError { what: "listing the machine's addresses".into(), source }
            })?;
            let Some(message) = message else { break };
            let mut address = None;
            for attribute in &message.attributes {
                match attribute {
                    // On a point-to-point link "address" is the far end and "local" is ours.
                    AddressAttribute::Local(ip) => address = Some(*ip),
                    AddressAttribute::Address(ip) => address = address.or(Some(*ip)),
                    _ => {}
                }
            }
            if let Some(ip) = address.filter(|ip| !ip.is_loopback()) {
                addresses.push((message.header.index, ip));
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }
}

fn link(message: &LinkMessage) -> io::Result<Link> {
    let mut mac = None;
    let mut mtu = 0;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => mac = bytes.as_slice().try_into().ok().map(MacAddr),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            _ => {}
        }
    }
    let mac = mac.ok_or_else(|| io::Error::other("it isn't an Ethernet interface"))?;
    Ok(Link {
        index: message.header.index,
        mac,
        mtu,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
    })
}

pub(super) fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        rtnetlink::Error::UnexpectedMessage(message) => match message.payload {
            NetlinkPayload::Error(message) => message.to_io(),
            _ => io::Error::other("an unexpected answer from the kernel"),
        },
        other => io::Error::other(other.to_string()),
    }
}

/// Tells that some link, address or rule for routes of the machine changed: carrier, name, flags, addresses. What it is now is to be
/// read anew, so that no change is missed however many come at once.
#[derive(Debug)]
pub struct Changes {
    socket: AsyncFd<OwnedFd>,
}

impl Changes {
    /// Begins to listen. Runs inside a tokio runtime.
    ///
    /// # Errors
    /// Where the kernel refuses the socket.
    pub fn new() -> Result<Self, LinkError> {
        let open = || -> io::Result<_> {
            let socket = socket::socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::NetlinkRoute,
            )?;
            let groups = libc::RTMGRP_LINK
                | libc::RTMGRP_IPV4_IFADDR
                | libc::RTMGRP_IPV6_IFADDR
                | libc::RTMGRP_IPV4_RULE;
            socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups.cast_unsigned()))?;
            // SAFETY: an OwnedFd is the same, open descriptor until it is dropped.
            Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
        };
        open()
            .map(|socket| Self { socket })
            .map_err(|source| LinkError { what: "listening for changes of links".into(), source })
    }

    /// Returns once something has changed since the last call.
    ///
    /// # Errors
    /// Where the socket fails.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut ready = self.socket.readable().await?;
        let mut buffer = [0; 8192];
        loop {
            let fd = ready.get_inner().as_fd().as_raw_fd();
            match socket::recv(fd, &mut buffer, MsgFlags::MSG_DONTWAIT) {
                // ENOBUFS says that there were more than fit: all the more a change.
                Ok(_) | Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        Ok(())
    }
}
