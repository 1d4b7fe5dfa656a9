use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use anteroom_lab::namespace::in_private_network;
use anteroom_lab::topology::{self, Host};
use anteroom_lab::wait;

use super::super::{Guarding, guard};
use super::*;
use crate::net::netlink::Session;
use crate::net::nft::NETLINK_NETFILTER;

const PORT: u16 = 51_820;
const PATIENCE: Duration = Duration::from_secs(60);
/// Datagrams between two looks at what came: fewer than any queue on the way holds.
const ROUND: usize = 64;

/// The gateway's socket and a stranger's, of one family.
struct Ends {
    gateway: UdpSocket,
    stranger: UdpSocket,
    to: SocketAddr,
}

impl Ends {
    fn open(hosts: &(Host, Host), addresses: [IpAddr; 2]) -> Self {
        let bind = |host: &Host, address: IpAddr, port| {
            let to = SocketAddr::from((address, port));
            let bound = wait::until_ok(PATIENCE, "an address to be there", || {
                Ok(host.enter(|| UdpSocket::bind(to))??)
            });
            let socket = bound.unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            socket
        };
        let [gateway, stranger] = addresses;
        Self {
            gateway: bind(&hosts.0, gateway, PORT),
            stranger: bind(&hosts.1, stranger, 40_000),
            to: SocketAddr::from((gateway, PORT)),
        }
    }

    /// Sends so many initiations, and says how many came.
    fn knock(&self, count: usize) -> usize {
        let mut came = 0;
        for round in 0..count / ROUND {
            for _ in 0..ROUND {
                self.stranger.send_to(&[&INITIATION[..], &[0; 144]].concat(), self.to).unwrap();
            }
            // Data isn't bounded: when the round's last word is there, so is what came before it.
            let last = [&DATA[..], &round.to_be_bytes()].concat();
            wait::until(PATIENCE, "a round's last word", || {
                self.stranger.send_to(&last, self.to).unwrap();
                let mut buffer = [0; 200];
                while let Ok((length, _)) = self.gateway.recv_from(&mut buffer) {
                    let datagram = &buffer[..length];
                    came += usize::from(datagram.starts_with(&INITIATION));
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
}

#[test]
fn strangers_begin_so_many_handshakes_and_peers_as_many_as_they_like() {
    let test = "net::filter::doorstep::tests::strangers_begin_so_many_handshakes_and_peers_as_many_as_they_like";
    if !in_private_network(test) {
        return;
    }
    let hosts = ["gateway", "stranger"].map(|name| Host::create(name).unwrap()).into();
    let (gateway, stranger): &(Host, Host) = &hosts;
    topology::cable((gateway, "port0", None), (stranger, "eth0")).unwrap();
    let v4 = [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3)];
    let v6 = [2, 3].map(|last| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
    for (host, interface, place) in [(gateway, "port0", 0), (stranger, "eth0", 1)] {
        host.address(interface, v4[place], 24).unwrap();
        let off = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        host.enter(|| std::fs::write(off, "0")).unwrap().unwrap();
        host.ip(&format!("address add {}/64 dev {interface} nodad", v6[place])).unwrap();
    }
    let wanted = Guard { interfaces: vec!["port0"], tunnel_port: PORT, management: &[] };
    let session = gateway.enter(|| Session::open(NETLINK_NETFILTER)).unwrap().unwrap();
    assert_eq!(guard(&session, &wanted).unwrap(), Guarding::Tracked);

    for addresses in [v4.map(IpAddr::from), v6.map(IpAddr::from)] {
        let ends = Ends::open(&hosts, addresses);
        let many = 2 * BURST as usize;
        let begun = Instant::now();
        let came = ends.knock(many);
        let most = f64::from(BURST) + 1.0 + begun.elapsed().as_secs_f64() * RATE as f64;
        println!("{addresses:?}: {came} of {many} in {:?}", begun.elapsed());
        assert!(came as f64 <= most, "{came} of {many} came, {most} at most");
        assert!(came > 0, "nothing came");

        // A cookie makes nobody a peer; an answer does.
        let from = ends.stranger.local_addr().unwrap();
        ends.gateway.send_to(&[&[3, 0, 0, 0][..], &[0; 60]].concat(), from).unwrap();
        let begun = Instant::now();
        let came = ends.knock(many);
        let most = f64::from(BURST) + 1.0 + begun.elapsed().as_secs_f64() * RATE as f64;
        assert!(came as f64 <= most, "{came} of {many} came after a cookie, {most} at most");
        ends.gateway.send_to(&[&RESPONSE[..], &[0; 88]].concat(), from).unwrap();
        assert_eq!(ends.knock(many), many, "of a peer's");
    }
}
