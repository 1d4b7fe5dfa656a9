use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use anteroom_lab::namespace::in_private_network;
use anteroom_lab::order::OneCore;
use anteroom_lab::topology::{self, Host};
use anteroom_lab::wait;

use super::super::{Guarding, guard};
use super::*;
use crate::net::netlink::Session;
use crate::net::nft::NETLINK_NETFILTER;

const PORT: u16 = 51_820;
/// As an initial packet of QUIC begins.
const FIRST_OF_QUIC: [u8; 4] = [0xc3, 0, 0, 0];
const PATIENCE: Duration = Duration::from_secs(60);
/// Datagrams between two looks at what came: fewer than any queue on the way holds.
const ROUND: u32 = 64;

/// The gateway's socket.
struct Door {
    socket: UdpSocket,
    at: SocketAddr,
}

impl Door {
    fn open(gateway: &Host, address: IpAddr) -> Self {
        let at = SocketAddr::from((address, PORT));
        let socket = bind(gateway, at);
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self { socket, at }
    }

    /// Has so many messages of a kind be sent from the sockets in turn, and says how many came.
    fn knocked_at(&self, kind: [u8; 4], from: &[UdpSocket], count: u32) -> u32 {
        let mut came = 0;
        let mut senders = from.iter().cycle();
        for round in 0..count / ROUND {
            for sender in senders.by_ref().take(ROUND as usize) {
                sender.send_to(&[&kind[..], &[0; 144]].concat(), self.at).unwrap();
            }
            // Data isn't bounded: when the round's last word is there, so is what came before it.
            let last = [&DATA[..], &round.to_be_bytes()].concat();
            wait::until(PATIENCE, "a round's last word", || {
                from[0].send_to(&last, self.at).unwrap();
                let mut buffer = [0; 200];
                while let Ok((length, _)) = self.socket.recv_from(&mut buffer) {
                    let datagram = &buffer[..length];
                    came += u32::from(datagram.starts_with(&kind));
                    if datagram == last {
                        return Some(());
                    }
                }
                None
            })
            .unwrap();
        }
        came
    }

    /// As [`Self::knocked_at`], until more were sent than `burst` and `rate` let through, which must not come.
    fn bounds(&self, kind: [u8; 4], from: &[UdpSocket], burst: u32, rate: u64) -> u32 {
        let begun = Instant::now();
        let (mut came, mut sent) = (0, 0);
        let mut most = f64::from(burst);
        while f64::from(sent) <= most {
            if begun.elapsed() > PATIENCE {
                eprintln!("skipped: this machine can't send {rate} packets a second now");
                return came;
            }
            came += self.knocked_at(kind, from, 1_024);
            sent += 1_024;
            most = f64::from(burst) + 1.0 + begun.elapsed().as_secs_f64() * rate as f64;
            assert!(f64::from(came) <= most, "{came} of {sent} came, {most} at most");
        }
        came
    }
}

fn bind(host: &Host, at: SocketAddr) -> UdpSocket {
    let bound = wait::until_ok(PATIENCE, "an address to be there", || {
        Ok(host.enter(|| UdpSocket::bind(at))??)
    });
    bound.unwrap()
}

#[test]
fn a_strangers_handshakes_are_bounded_and_a_peers_have_a_bound_of_their_own() {
    let test = "net::filter::doorstep::tests::a_strangers_handshakes_are_bounded_and_a_peers_have_a_bound_of_their_own";
    if !in_private_network(test) {
        return;
    }
    // A thread that moves to another core overtakes its own packets.
    let _stay = OneCore::stay();
    let [gateway, stranger] = ["gateway", "stranger"].map(|name| Host::create(name).unwrap());
    topology::cable((&gateway, "port0", None), (&stranger, "eth0")).unwrap();
    gateway.address("port0", Ipv4Addr::new(10, 0, 0, 2), 16).unwrap();
    stranger.address("eth0", Ipv4Addr::new(10, 0, 0, 3), 16).unwrap();
    for (host, interface, last) in [(&gateway, "port0", 2), (&stranger, "eth0", 3)] {
        let off = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        host.enter(|| std::fs::write(off, "0")).unwrap().unwrap();
        host.ip(&format!("address add fd00::{last}/64 dev {interface} nodad")).unwrap();
    }
    let wanted = Guard {
        interfaces: vec!["port0"],
        tunnel_port: PORT,
        quic_port: Some(PORT),
        management: &[],
    };
    let session = gateway.enter(|| Session::open(NETLINK_NETFILTER)).unwrap().unwrap();
    assert_eq!(guard(&session, &wanted).unwrap(), Guarding::Tracked);

    let v6 = |last| IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
    let v4 = |last| IpAddr::from(Ipv4Addr::new(10, 0, 0, last));
    for (at, from) in [(v4(2), v4(3)), (v6(2), v6(3))] {
        let door = Door::open(&gateway, at);
        let one = [bind(&stranger, SocketAddr::from((from, 40_000)))];
        let came = door.bounds(INITIATION, &one, BURST_OF_ONE, RATE_OF_ONE);
        assert!(came >= BURST_OF_ONE, "{came} of {BURST_OF_ONE} that any stranger has came");
        door.bounds(RESPONSE, &one, BURST_OF_ONE, RATE_OF_ONE);
        // A cookie makes nobody a peer; an answer does.
        let back = one[0].local_addr().unwrap();
        door.socket.send_to(&[&[3, 0, 0, 0][..], &[0; 60]].concat(), back).unwrap();
        door.bounds(INITIATION, &one, BURST_OF_ONE, RATE_OF_ONE);
        door.socket.send_to(&[&RESPONSE[..], &[0; 88]].concat(), back).unwrap();
        let came = door.knocked_at(INITIATION, &one, BURST_OF_PEER);
        assert_eq!(came, BURST_OF_PEER, "of a peer's");
        door.bounds(INITIATION, &one, BURST_OF_PEER, RATE_OF_PEER);
    }

    // QUIC's handshakes on the same port: strangers of their own, whom what the tunnels sent makes no peers.
    for (at, from) in [(v4(2), v4(4)), (v6(2), v6(4))] {
        let door = Door::open(&gateway, at);
        let prefix = if at.is_ipv4() { "16 dev eth0" } else { "64 dev eth0 nodad" };
        stranger.ip(&format!("address add {from}/{prefix}")).unwrap();
        // Of IPv6 the network counts, which has asked a while ago: it gets its burst back.
        let one = [bind(&stranger, SocketAddr::from((from, 40_000)))];
        door.bounds(FIRST_OF_QUIC, &one, BURST_OF_ONE, RATE_OF_ONE);
        let back = one[0].local_addr().unwrap();
        // What isn't a handshake's says nothing.
        door.socket.send_to(&[&[0x40, 0, 0, 0][..], &[0; 60]].concat(), back).unwrap();
        door.bounds(FIRST_OF_QUIC, &one, BURST_OF_ONE, RATE_OF_ONE);
        door.socket.send_to(&[&FIRST_OF_QUIC[..], &[0; 88]].concat(), back).unwrap();
        let came = door.knocked_at(FIRST_OF_QUIC, &one, BURST_OF_PEER);
        assert_eq!(came, BURST_OF_PEER, "of a peer's");
        door.bounds(FIRST_OF_QUIC, &one, BURST_OF_PEER, RATE_OF_PEER);
        // The tunnels know it no better than before.
        door.bounds(INITIATION, &one, BURST_OF_ONE, RATE_OF_ONE);
        // Later packets aren't bounded.
        assert_eq!(door.knocked_at([0x40, 1, 2, 3], &one, 1_024), 1_024);
    }

    // Many together have so many, and a peer meanwhile as many as before.
    let door = Door::open(&gateway, Ipv4Addr::new(10, 0, 0, 2).into());
    let many: Vec<UdpSocket> = (1..=64_u8)
        .map(|last| {
            let address = Ipv4Addr::new(10, 0, 7, last);
            stranger.ip(&format!("address add {address}/16 dev eth0")).unwrap();
            bind(&stranger, SocketAddr::from((address, 40_000)))
        })
        .collect();
    let of_all = 64 * BURST_OF_ONE;
    assert!(of_all > BURST, "more than all may have, or this shows nothing");
    door.bounds(INITIATION, &many, BURST, RATE);
}
