//! Finds out by asking which kind a router is, as a STUN client does (RFC 5780): somebody inside, two hosts outside.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::nat::Dependence;
use crate::topology::Host;

/// How long an answer may take that must come.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long what mustn't come has, behind something that came.
const GRACE: Duration = Duration::from_millis(200);

/// What was found out about a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// What an outside port depends on.
    pub mapping: Dependence,
    /// Who may answer.
    pub filtering: Dependence,
    /// Whether outside ports are the inside ones.
    pub preserved: bool,
}

/// A host and its address.
pub type Party<'a> = (&'a Host, Ipv4Addr);

/// Two hosts outside, with two sockets each.
#[derive(Debug)]
pub struct Probe<'a> {
    inside: Party<'a>,
    servers: [[UdpSocket; 2]; 2],
}

impl<'a> Probe<'a> {
    /// Opens the sockets.
    ///
    /// # Errors
    /// If a host doesn't have its address.
    pub fn new(inside: Party<'a>, servers: [Party<'_>; 2]) -> Result<Self> {
        let two = |party: Party<'_>| Ok::<_, anyhow::Error>([open(party)?, open(party)?]);
        Ok(Self { inside, servers: [two(servers[0])?, two(servers[1])?] })
    }

    /// A new socket inside.
    ///
    /// # Errors
    /// If the host doesn't have its address.
    pub fn client(&self) -> Result<UdpSocket> {
        open(self.inside)
    }

    /// Where `client` seems to be, for socket `port` of server `host` (0 or 1 each).
    ///
    /// # Errors
    /// If nothing arrives.
    pub fn seen(&self, client: &UdpSocket, host: usize, port: usize) -> Result<SocketAddrV4> {
        let server = &self.servers[host][port];
        client.send_to(b"who am I?", address(server)?).context("asking")?;
        let end = Instant::now() + DEADLINE;
        let got = receive(server, end)?;
        got.with_context(|| format!("nothing came to socket {port} of server {host}"))
    }

    /// Whether socket `port` of server `host` reaches `client` at `at`. Socket 0 of server 0 must reach it.
    ///
    /// # Errors
    /// If not even that one does.
    pub fn reaches(
        &self,
        client: &UdpSocket,
        at: SocketAddrV4,
        host: usize,
        port: usize,
    ) -> Result<bool> {
        // Twice: the first time the server may have to ask for its neighbour, and a busy machine is late with the answer.
        Ok(self.tries(client, at, host, port)? || self.tries(client, at, host, port)?)
    }

    fn tries(
        &self,
        client: &UdpSocket,
        at: SocketAddrV4,
        host: usize,
        port: usize,
    ) -> Result<bool> {
        let server = &self.servers[host][port];
        server.send_to(b"may I?", at).context("sending to the mapping")?;
        self.servers[0][0].send_to(b"I may", at).context("sending to the mapping")?;
        let (wanted, last) = (address(server)?, address(&self.servers[0][0])?);
        let mut end = Instant::now() + DEADLINE;
        let (mut reached, mut closed) = (false, false);
        while let Some(from) = receive(client, end)? {
            reached |= from == wanted;
            if from == last {
                closed = true;
                end = Instant::now() + GRACE;
            }
            if reached && closed {
                break;
            }
        }
        if !closed {
            bail!("not even who was spoken to reaches {at}");
        }
        Ok(reached)
    }

    /// Finds everything out.
    ///
    /// # Errors
    /// If nothing comes through.
    pub fn find_out(&self) -> Result<Found> {
        let client = self.client()?;
        let first = self.seen(&client, 0, 0)?;
        let port = self.seen(&client, 0, 1)?;
        let host = self.seen(&client, 1, 0)?;
        let mapping = if first != port {
            Dependence::AddressAndPort
        } else if first != host {
            Dependence::Address
        } else {
            Dependence::Independent
        };
        // A mapping of which only one server knows.
        let client = self.client()?;
        let at = self.seen(&client, 0, 0)?;
        let filtering = if self.reaches(&client, at, 1, 0)? {
            Dependence::Independent
        } else if self.reaches(&client, at, 0, 1)? {
            Dependence::Address
        } else {
            Dependence::AddressAndPort
        };
        let mut preserved = true;
        for _ in 0..3 {
            let client = self.client()?;
            preserved &= self.seen(&client, 0, 0)?.port() == address(&client)?.port();
        }
        Ok(Found { mapping, filtering, preserved })
    }

    /// Whether one inside socket reaches another one at its outside address, and by which address it is known then.
    ///
    /// # Errors
    /// If nothing comes through to the servers.
    pub fn hairpin(&self) -> Result<Option<SocketAddrV4>> {
        let (caller, called) = (self.client()?, self.client()?);
        let (from, to) = (self.seen(&caller, 0, 0)?, self.seen(&called, 0, 0)?);
        // Lets the answer in, where only those may answer who were spoken to.
        called.send_to(b"you may", from)?;
        caller.send_to(b"may I?", to)?;
        self.servers[0][0].send_to(b"I may", to)?;
        let last = address(&self.servers[0][0])?;
        let mut end = Instant::now() + DEADLINE;
        let mut reached = None;
        while let Some(from) = receive(&called, end)? {
            if from == last {
                end = Instant::now() + GRACE;
            } else {
                reached = Some(from);
            }
        }
        Ok(reached)
    }
}

/// A UDP socket at this address of this host.
///
/// # Errors
/// If the host doesn't have the address.
pub fn open((host, address): Party<'_>) -> Result<UdpSocket> {
    let socket = host.enter(|| UdpSocket::bind((address, 0)))?;
    socket.with_context(|| format!("a socket at {address} on {}", host.name()))
}

fn address(socket: &UdpSocket) -> Result<SocketAddrV4> {
    match socket.local_addr()? {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(address) => bail!("{address} isn't IPv4"),
    }
}

/// Who sent the next datagram that comes before `end`.
fn receive(socket: &UdpSocket, end: Instant) -> Result<Option<SocketAddrV4>> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(None);
    }
    socket.set_read_timeout(Some(left))?;
    match socket.recv_from(&mut [0; 2048]) {
        Ok((_, SocketAddr::V4(from))) => Ok(Some(from)),
        Ok((_, SocketAddr::V6(from))) => bail!("{from} isn't IPv4"),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
        {
            Ok(None)
        }
        // An ICMP error about what was sent before: the next receive goes on.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => receive(socket, end),
        Err(error) => Err(error).context("receiving"),
    }
}
