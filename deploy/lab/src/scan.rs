//! The intruder's scan: ARP, ping, TCP and UDP, each as an attacker on the same network would do it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, connect, getsockopt, recv, send, socket, sockopt,
};

use crate::packet::{IcmpSocket, PacketSocket, arp_reply, arp_request};
use crate::topology::Host;

/// TCP ports that a scan for medical equipment tries.
const TCP_PORTS: [u16; 18] =
    [21, 22, 23, 80, 102, 104, 135, 139, 443, 445, 502, 2575, 3389, 4006, 5900, 8080, 11112, 47808];

/// UDP ports that such a scan tries.
const UDP_PORTS: [u16; 8] = [53, 69, 123, 137, 161, 3702, 24105, 47808];

/// How long a scan waits for answers of each kind.
const PATIENCE: Duration = Duration::from_millis(900);

/// How a machine was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// It answered ARP.
    Arp,
    /// It answered a ping.
    Ping,
    /// It answered on this TCP port, if only to refuse.
    Tcp(u16),
    /// It answered on this UDP port, if only that it is closed.
    Udp(u16),
    /// nmap found it.
    Nmap,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arp => f.write_str("ARP"),
            Self::Ping => f.write_str("ping"),
            Self::Tcp(port) => write!(f, "TCP {port}"),
            Self::Udp(port) => write!(f, "UDP {port}"),
            Self::Nmap => f.write_str("nmap"),
        }
    }
}

/// What a scan found.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// Each address that answered, and how.
    pub found: BTreeMap<Ipv4Addr, BTreeSet<Way>>,
    /// Ethernet addresses that were learnt, by interface.
    pub macs: BTreeMap<Ipv4Addr, (String, [u8; 6])>,
}

impl Findings {
    fn add(&mut self, address: Ipv4Addr, way: Way) {
        self.found.entry(address).or_default().insert(way);
    }

    /// Which of these were found.
    #[must_use]
    pub fn of(&self, wanted: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
        wanted.iter().copied().filter(|address| self.found.contains_key(address)).collect()
    }

    /// How one was found, for people.
    #[must_use]
    pub fn ways(&self, address: Ipv4Addr) -> String {
        let ways = self.found.get(&address).into_iter().flatten();
        ways.map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// Whether one was found in a way that `matches`.
    pub fn by(&self, address: Ipv4Addr, matches: impl Fn(&Way) -> bool) -> bool {
        self.found.get(&address).is_some_and(|ways| ways.iter().any(matches))
    }
}

/// An interface to scan from.
#[derive(Debug, Clone)]
pub struct Leg {
    /// Its name.
    pub interface: String,
    /// Its own address.
    pub address: Ipv4Addr,
    /// Its Ethernet address.
    pub mac: [u8; 6],
}

/// Scans from a host: the /24 of each leg by ARP, and `targets` in every way. `known` are Ethernet addresses from an
/// earlier scan: the attacker needs no ARP for them any more.
///
/// # Errors
/// If sockets can't be opened; what doesn't answer is no error.
pub fn scan(
    host: &Host,
    legs: &[Leg],
    targets: &[Ipv4Addr],
    known: Option<&Findings>,
) -> Result<Findings> {
    let mut findings = Findings::default();
    for (address, way, learnt) in host.enter(|| arp_sweep(legs))?.context("the ARP sweep")? {
        findings.add(address, way);
        findings.macs.insert(address, learnt);
    }
    if let Some(known) = known {
        for address in targets {
            if let Some((interface, mac)) = known.macs.get(address) {
                let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
                host.ip(&format!(
                    "neighbour replace {address} dev {interface} lladdr {mac} nud permanent"
                ))?;
            }
        }
    }
    let nmap = std::thread::scope(|scope| -> Result<_> {
        let nmap = scope.spawn(|| nmap(host, targets));
        let (pings, tcp, udp) = (
            scope.spawn(|| host.enter(|| ping_sweep(targets))),
            scope.spawn(|| host.enter(|| tcp_probe(targets))),
            scope.spawn(|| host.enter(|| udp_probe(targets))),
        );
        for probe in [pings, tcp, udp] {
            let ways = probe.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))??;
            for (address, way) in ways {
                findings.add(address, way);
            }
        }
        nmap.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    for address in nmap {
        findings.add(address, Way::Nmap);
    }
    if known.is_some() {
        for leg in legs {
            host.ip(&format!("neighbour flush dev {} nud permanent", leg.interface))?;
        }
    }
    Ok(findings)
}

type Learnt = (String, [u8; 6]);

fn arp_sweep(legs: &[Leg]) -> io::Result<Vec<(Ipv4Addr, Way, Learnt)>> {
    let mut sockets = Vec::new();
    for leg in legs {
        let socket = PacketSocket::open_on(&leg.interface, 0x0806)?;
        let [a, b, c, _] = leg.address.octets();
        for last in 1..=254 {
            let target = Ipv4Addr::new(a, b, c, last);
            if target != leg.address {
                send_when_taken(&socket, &arp_request(leg.mac, leg.address, target))?;
            }
        }
        sockets.push((leg, socket));
    }
    let deadline = Instant::now() + PATIENCE;
    let mut found = Vec::new();
    let mut buffer = [0; 2048];
    for (leg, socket) in &sockets {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match socket.receive(&mut buffer, left)? {
                Some(length) => {
                    if let Some((address, mac)) = arp_reply(&buffer[..length])
                        && address != leg.address
                    {
                        found.push((address, Way::Arp, (leg.interface.clone(), mac)));
                    }
                }
                None if Instant::now() >= deadline => break,
                None => {}
            }
        }
    }
    Ok(found)
}

/// Sends a frame; again for a while where the cable takes none, as in the first second of its life.
fn send_when_taken(socket: &PacketSocket, frame: &[u8]) -> io::Result<()> {
    let deadline = Instant::now() + 4 * PATIENCE;
    loop {
        match socket.send(frame) {
            Err(error)
                if error.raw_os_error() == Some(nix::libc::ENOBUFS)
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

fn ping_sweep(targets: &[Ipv4Addr]) -> io::Result<Vec<(Ipv4Addr, Way)>> {
    const IDENTIFIER: u16 = 0x5ca1;
    let socket = IcmpSocket::open()?;
    let mut found = Vec::new();
    for round in 0..2 {
        for target in targets {
            socket.echo(*target, IDENTIFIER, round).ok();
        }
        let deadline = Instant::now() + PATIENCE / 2;
        while Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some((from, _)) = socket.reply(IDENTIFIER, left)? {
                found.push((from, Way::Ping));
            }
        }
    }
    found.retain(|(address, _)| targets.contains(address));
    Ok(found)
}

fn open(kind: SockType, to: SocketAddrV4) -> nix::Result<(OwnedFd, nix::Result<()>)> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet, kind, flags, None)?;
    let connected = connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(to));
    Ok((fd, connected))
}

/// Asks `answered` about each socket that has something to say, until the patience ends.
fn gather(
    mut waiting: Vec<(SocketAddrV4, OwnedFd)>,
    flags: PollFlags,
    answered: impl Fn(&OwnedFd) -> Option<bool>,
) -> nix::Result<Vec<SocketAddrV4>> {
    let deadline = Instant::now() + PATIENCE;
    let mut found = Vec::new();
    while !waiting.is_empty() && Instant::now() < deadline {
        let ready: Vec<bool> = {
            let mut fds: Vec<PollFd<'_>> =
                waiting.iter().map(|(_, fd)| PollFd::new(fd.as_fd(), flags)).collect();
            match poll(&mut fds, PollTimeout::from(50_u8)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
            fds.iter().map(|fd| fd.any().unwrap_or(false)).collect()
        };
        let mut index = 0;
        waiting.retain(|(to, fd)| {
            index += 1;
            if !ready[index - 1] {
                return true;
            }
            match answered(fd) {
                Some(true) => {
                    found.push(*to);
                    false
                }
                Some(false) => false,
                None => true,
            }
        });
    }
    Ok(found)
}

fn tcp_probe(targets: &[Ipv4Addr]) -> io::Result<Vec<(Ipv4Addr, Way)>> {
    let mut waiting = Vec::new();
    for target in targets {
        for port in TCP_PORTS {
            let to = SocketAddrV4::new(*target, port);
            waiting.push((to, open(SockType::Stream, to)?.0));
        }
    }
    let found = gather(waiting, PollFlags::POLLOUT, |fd| {
        // Refused is an answer too; no route or no neighbour is none.
        match getsockopt(fd, sockopt::SocketError) {
            Ok(0) => Some(true),
            Ok(error) => Some(error == nix::libc::ECONNREFUSED || error == nix::libc::ECONNRESET),
            Err(_) => Some(false),
        }
    })?;
    Ok(found.into_iter().map(|to| (*to.ip(), Way::Tcp(to.port()))).collect())
}

fn udp_probe(targets: &[Ipv4Addr]) -> io::Result<Vec<(Ipv4Addr, Way)>> {
    let mut waiting = Vec::new();
    for target in targets {
        for port in UDP_PORTS {
            let to = SocketAddrV4::new(*target, port);
            let (fd, connected) = open(SockType::Datagram, to)?;
            if connected.is_ok() {
                send(
                    std::os::fd::AsRawFd::as_raw_fd(&fd),
                    b"\0",
                    nix::sys::socket::MsgFlags::empty(),
                )
                .ok();
                waiting.push((to, fd));
            }
        }
    }
    let found = gather(waiting, PollFlags::POLLIN, |fd| {
        let mut buffer = [0; 16];
        let raw = std::os::fd::AsRawFd::as_raw_fd(fd);
        match recv(raw, &mut buffer, nix::sys::socket::MsgFlags::MSG_DONTWAIT) {
            Ok(_) | Err(nix::errno::Errno::ECONNREFUSED) => Some(true),
            Err(nix::errno::Errno::EAGAIN) => None,
            Err(_) => Some(false),
        }
    })?;
    Ok(found.into_iter().map(|to| (*to.ip(), Way::Udp(to.port()))).collect())
}

/// nmap's host discovery and a SYN scan, where it is installed.
fn nmap(host: &Host, targets: &[Ipv4Addr]) -> Result<Vec<Ipv4Addr>> {
    let Some(program) = crate::programs::find("nmap") else { return Ok(Vec::new()) };
    let ports = TCP_PORTS.map(|port| port.to_string()).join(",");
    let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
    let mut arguments = vec![
        "-n",
        "-Pn",
        "-sS",
        "--disable-arp-ping",
        "--max-retries",
        "0",
        "-T4",
        "--min-parallelism",
        "64",
        "--max-rtt-timeout",
        "300ms",
        "--host-timeout",
        "8s",
        "-oG",
        "-",
        "-p",
        &ports,
    ];
    arguments.extend(targets.iter().map(String::as_str));
    Ok(parse_nmap(&host.run(program, &arguments)?))
}

/// Hosts with a port that answered, out of nmap's "grepable" output.
fn parse_nmap(output: &str) -> Vec<Ipv4Addr> {
    output
        .lines()
        .filter(|line| {
            line.contains("/open/") || line.contains("/closed/") || line.contains("State: closed")
        })
        .filter_map(|line| line.strip_prefix("Host: ")?.split_whitespace().next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nmap_finds_who_answered_and_not_who_was_filtered() {
        let output = "# Nmap\n\
            Host: 10.0.0.1 ()\tStatus: Up\n\
            Host: 10.0.0.1 ()\tPorts: 22/closed/tcp//ssh///, 104/open/tcp//acr-nema///\n\
            Host: 10.0.0.2 ()\tPorts: 22/filtered/tcp//ssh///\n\
            Host: 10.0.0.3 ()\tPorts: 80/closed/tcp//http///\n\
            Host: 10.0.0.4 ()\tPorts: 80/open/tcp//http///\tIgnored State: filtered (17)\n\
            Host: 10.0.0.5 ()\tPorts: \tIgnored State: closed (18)\n";
        let found: Vec<String> = parse_nmap(output).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1", "10.0.0.3", "10.0.0.4", "10.0.0.5"]);
    }

    #[test]
    fn a_scan_finds_a_machine_in_each_way_and_nobody_where_nobody_is() {
        let test = "scan::tests::a_scan_finds_a_machine_in_each_way_and_nobody_where_nobody_is";
        if !crate::namespace::in_private_network(test) {
            return;
        }
        let intruder = Host::create("intruder").unwrap();
        let device = Host::create("device").unwrap();
        crate::topology::cable((&intruder, "eth0", None), (&device, "eth0")).unwrap();
        let addresses = [1, 2, 3].map(|last| Ipv4Addr::new(10, 0, 0, last));
        intruder.address("eth0", addresses[0], 24).unwrap();
        device.address("eth0", addresses[1], 24).unwrap();
        let listener = device.enter(|| std::net::TcpListener::bind("0.0.0.0:104")).unwrap();
        let mac = intruder.mac("eth0").unwrap();
        let legs = [Leg { interface: "eth0".into(), address: addresses[0], mac }];
        let findings = scan(&intruder, &legs, &addresses[1..], None).unwrap();
        drop(listener);
        assert_eq!(findings.of(&addresses[1..]), [addresses[1]], "{findings:?}");
        let ways = findings.ways(addresses[1]);
        for way in ["ARP", "ping", "TCP 104", "TCP 22", "UDP"] {
            assert!(ways.contains(way), "no {way} in {ways}");
        }
        assert_eq!(findings.macs[&addresses[1]].1, device.mac("eth0").unwrap());

        // With the Ethernet address known from before, silence on ARP doesn't hide a machine.
        device.ip("link set eth0 arp off").unwrap();
        device
            .ip(&format!(
                "neighbour replace {} dev eth0 lladdr {} nud permanent",
                addresses[0],
                mac.map(|octet| format!("{octet:02x}")).join(":")
            ))
            .unwrap();
        let again = scan(&intruder, &legs, &addresses[1..2], Some(&findings)).unwrap();
        assert!(!again.by(addresses[1], |way| *way == Way::Arp), "{again:?}");
        assert!(again.by(addresses[1], |way| *way == Way::Ping), "{again:?}");
        device.ip("link set eth0 down").unwrap();
        let again = scan(&intruder, &legs, &addresses[1..2], Some(&findings)).unwrap();
        assert!(again.found.is_empty(), "{again:?}");
    }
}
