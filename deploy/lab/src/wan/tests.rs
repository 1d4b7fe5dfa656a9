//! Everything in namespaces: that each network is of the kind that it says.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::conditions::Conditions;
use super::kernel::{self, KernelPorts};
use super::link::{Link, Way};
use super::nat::Dependence::{Address, AddressAndPort, Independent};
use super::nat::{Egress, Kind, Ports, Refused};
use super::probe::{Found, Probe, open};
use super::router::{NatRouter, Place};
use super::{Attach, ipv4};
use crate::namespace::in_private_network;
use crate::topology::{self, Host};
use crate::wait::until;

const LIMIT: Duration = Duration::from_secs(10);
const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const ROUTER_INSIDE: Place = Place { address: Ipv4Addr::new(10, 0, 0, 1), prefix: 24 };
const ROUTER: Place = Place { address: Ipv4Addr::new(198, 51, 100, 1), prefix: 24 };
const SERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 11), Ipv4Addr::new(198, 51, 100, 12)];

/// Somebody inside, two servers outside on a switch, nothing between them yet.
struct World {
    inside: Host,
    net: Host,
    servers: [Host; 2],
}

impl World {
    fn new() -> Self {
        let net = Host::create("net").unwrap();
        net.switch("br0").unwrap();
        let servers = [0, 1].map(|index| {
            let host = Host::create(&format!("server-{index}")).unwrap();
            let socket = format!("s{index}");
            topology::plug(&host, "eth0", None, &net, "br0", &socket).unwrap();
            host.address("eth0", SERVERS[index], 24).unwrap();
            host.ip(&format!("route add 10.0.0.0/24 via {}", ROUTER.address)).unwrap();
            host
        });
        Self { inside: Host::create("inside").unwrap(), net, servers }
    }

    fn outside(&self) -> Attach<'_> {
        Attach::Switch(&self.net, "br0")
    }

    /// The host inside gets its address once its cable is there.
    fn settle(&self) {
        self.inside.address("eth0", INSIDE, 24).unwrap();
        self.inside.default_route(ROUTER_INSIDE.address).unwrap();
    }

    fn router(&self, kind: Kind) -> NatRouter {
        let inside = (Attach::Host(&self.inside, "eth0"), ROUTER_INSIDE);
        let outside = (self.outside(), ROUTER);
        let router = NatRouter::set_up("router", inside, outside, None, kind, 11).unwrap();
        self.settle();
        router
    }

    fn probe(&self) -> Probe<'_> {
        let servers = [(&self.servers[0], SERVERS[0]), (&self.servers[1], SERVERS[1])];
        Probe::new((&self.inside, INSIDE), servers).unwrap()
    }

    fn listen(&self, port: u16) -> TcpListener {
        self.servers[0].enter(|| TcpListener::bind((SERVERS[0], port))).unwrap().unwrap()
    }

    /// Sends this many bytes from inside to the first server, and gives how long that took.
    fn transfer(&self, bytes: usize) -> Duration {
        let listener = self.listen(443);
        let start = Instant::now();
        let read = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.set_read_timeout(Some(3 * LIMIT)).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).map(|_| all)
        });
        let target = SocketAddrV4::new(SERVERS[0], 443).into();
        let stream = self.inside.enter(|| TcpStream::connect_timeout(&target, LIMIT)).unwrap();
        let mut stream = stream.unwrap();
        let sent: Vec<u8> = (0..bytes).map(|index| (index % 251) as u8).collect();
        stream.write_all(&sent).unwrap();
        drop(stream);
        assert_eq!(read.join().unwrap().unwrap(), sent);
        start.elapsed()
    }
}

#[test]
fn each_kind_of_router_is_found_to_be_that_kind() {
    if !in_private_network("wan::tests::each_kind_of_router_is_found_to_be_that_kind") {
        return;
    }
    let world = World::new();
    let router = world.router(Kind::full_cone());
    let probe = world.probe();
    let found = |mapping, filtering, preserved| Found { mapping, filtering, preserved };
    let random = |kind| Kind { ports: Ports::Random, ..kind };
    for (kind, expected) in [
        (Kind::full_cone(), found(Independent, Independent, true)),
        (Kind::restricted_cone(), found(Independent, Address, true)),
        (Kind::port_restricted_cone(), found(Independent, AddressAndPort, true)),
        (Kind::symmetric(), found(AddressAndPort, AddressAndPort, false)),
        (random(Kind::full_cone()), found(Independent, Independent, false)),
        (random(Kind::port_restricted_cone()), found(Independent, AddressAndPort, false)),
        (
            Kind { mapping: Address, filtering: Address, ..Kind::symmetric() },
            found(Address, Address, false),
        ),
        (
            Kind { filtering: Independent, ..Kind::symmetric() },
            found(AddressAndPort, Independent, false),
        ),
        (Kind::firewall(), found(Independent, AddressAndPort, true)),
    ] {
        router.set_kind(kind.clone());
        assert_eq!(probe.find_out().unwrap(), expected, "{kind:?}, {:?}", router.counters());
        let seen = probe.seen(&probe.client().unwrap(), 0, 0).unwrap();
        let expected = if kind.translates { ROUTER.address } else { INSIDE };
        assert_eq!(seen.ip(), &expected);
    }
}

#[test]
fn hairpins_mappings_and_addresses_are_as_they_are_set() {
    if !in_private_network("wan::tests::hairpins_mappings_and_addresses_are_as_they_are_set") {
        return;
    }
    let world = World::new();
    let router = world.router(Kind::port_restricted_cone());
    let probe = world.probe();
    assert_eq!(probe.hairpin().unwrap(), None);
    assert!(router.counters().not_hairpinned > 0);
    router.set_kind(Kind::port_restricted_cone().hairpinning());
    let caller = probe.hairpin().unwrap().expect("turned round");
    assert_eq!(caller.ip(), &ROUTER.address);

    // A mapping lapses.
    let lifetime = Duration::from_secs(3);
    router.set_kind(Kind::full_cone().lasting(lifetime));
    let client = probe.client().unwrap();
    let at = probe.seen(&client, 0, 0).unwrap();
    assert!(probe.reaches(&client, at, 1, 1).unwrap());
    let before = refused(&router, Refused::Unmapped);
    std::thread::sleep(lifetime + Duration::from_millis(50));
    let server = open((&world.servers[0], SERVERS[0])).unwrap();
    server.send_to(b"still there?", at).unwrap();
    until(LIMIT, "a packet to a lapsed mapping", || {
        (refused(&router, Refused::Unmapped) > before).then_some(())
    })
    .unwrap();

    // The uplink gets another address, as by DHCP: what was known of it is worth nothing.
    router.set_kind(Kind::full_cone());
    let client = probe.client().unwrap();
    let old = probe.seen(&client, 0, 0).unwrap();
    let new = Place { address: Ipv4Addr::new(198, 51, 100, 77), prefix: 24 };
    router.set_address(new, None);
    let seen = probe.seen(&client, 0, 0).unwrap();
    assert_eq!((seen.ip(), seen.port()), (&new.address, old.port()));
    assert!(probe.reaches(&client, seen, 1, 0).unwrap());
    assert!(probe.reaches(&client, old, 1, 0).is_err());

    // The same of a host.
    let moved = Ipv4Addr::new(10, 0, 0, 99);
    world.inside.readdress("eth0", moved, 24, Some(ROUTER_INSIDE.address)).unwrap();
    assert!(open((&world.inside, INSIDE)).is_err());
    let servers = [(&world.servers[0], SERVERS[0]), (&world.servers[1], SERVERS[1])];
    let probe = Probe::new((&world.inside, moved), servers).unwrap();
    assert_eq!(probe.find_out().unwrap().filtering, Independent);
}

fn refused(router: &NatRouter, why: Refused) -> u64 {
    router.counters().refused.get(&why).copied().unwrap_or_default()
}

/// A connection that has begun.
fn connecting(to: SocketAddrV4) -> TcpStream {
    use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn};
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket::socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    match socket::connect(fd.as_raw_fd(), &SockaddrIn::from(to)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => fd.into(),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn what_may_not_leave_does_not() {
    if !in_private_network("wan::tests::what_may_not_leave_does_not") {
        return;
    }
    let world = World::new();
    let router = world.router(Kind::firewall().letting_out(Egress::only_tcp_443()));
    let probe = world.probe();
    let try_datagram = |port: u16, bytes: usize| {
        let server =
            world.servers[0].enter(|| UdpSocket::bind((SERVERS[0], port))).unwrap().unwrap();
        let client = probe.client().unwrap();
        let before = refused(&router, Refused::Egress);
        client.send_to(&vec![7; bytes], (SERVERS[0], port)).unwrap();
        server.set_nonblocking(true).unwrap();
        until(LIMIT, "an answer, one way or the other", || {
            let came = server.recv(&mut [0; 8]).is_ok();
            let stopped = refused(&router, Refused::Egress) > before;
            (came || stopped).then_some(came)
        })
        .unwrap()
    };
    let try_udp = |port: u16| try_datagram(port, 1);
    let try_tcp = |port: u16| {
        let _listener = world.listen(port);
        let target = SocketAddrV4::new(SERVERS[0], port);
        let before = refused(&router, Refused::Egress);
        // Doesn't wait, and ends with the stream: a connection that goes on trying would be counted with the next one.
        let stream = world.inside.enter(|| connecting(target)).unwrap();
        until(LIMIT, "an answer, one way or the other", || {
            let connected = stream.peer_addr().is_ok();
            let stopped = refused(&router, Refused::Egress) > before;
            (connected || stopped).then_some(connected)
        })
        .unwrap()
    };
    assert_eq!(
        (try_udp(443), try_udp(51820), try_tcp(443), try_tcp(22)),
        (false, false, true, false)
    );
    router.set_egress(Egress::only_443());
    assert_eq!(
        (try_udp(443), try_udp(51820), try_tcp(443), try_tcp(22)),
        (true, false, true, false)
    );
    router.set_egress(Egress::NoUdp);
    assert_eq!(
        (try_udp(443), try_udp(51820), try_tcp(443), try_tcp(22)),
        (false, false, true, true)
    );
    // With IP's and UDP's headers.
    router.set_egress(Egress::Short(300, vec![443]));
    let tried =
        [(51_820, 272), (51_820, 273), (443, 1_000)].map(|(port, bytes)| try_datagram(port, bytes));
    assert_eq!((tried, try_tcp(22)), ([true, false, true], true));
}

#[test]
fn the_kernels_own_translation_is_of_the_kinds_that_it_is_said_to_be() {
    let test = "wan::tests::the_kernels_own_translation_is_of_the_kinds_that_it_is_said_to_be";
    if !in_private_network(test) {
        return;
    }
    let world = World::new();
    let router = Host::create("router").unwrap();
    topology::cable((&router, "in", None), (&world.inside, "eth0")).unwrap();
    topology::plug(&router, "out", None, &world.net, "br0", "r").unwrap();
    router.address("in", ROUTER_INSIDE.address, 24).unwrap();
    router.address("out", ROUTER.address, 24).unwrap();
    world.settle();
    if let Err(error) = kernel::translate(&router, "out", KernelPorts::Preserved) {
        eprintln!("skipped: this kernel translates no addresses: {error:#}");
        return;
    }
    let expected = Found { mapping: Independent, filtering: AddressAndPort, preserved: true };
    assert_eq!(world.probe().find_out().unwrap(), expected);
    kernel::translate(&router, "out", KernelPorts::Random).unwrap();
    let expected = Found { mapping: AddressAndPort, filtering: AddressAndPort, preserved: false };
    assert_eq!(world.probe().find_out().unwrap(), expected);
}

/// A link between the host inside, which is a neighbour of the servers then, and their switch.
fn link(world: &World) -> Link {
    let link = Link::lay("link", Attach::Host(&world.inside, "eth0"), world.outside(), 7).unwrap();
    world.inside.address("eth0", Ipv4Addr::new(198, 51, 100, 2), 24).unwrap();
    link
}

#[test]
fn a_link_delays_loses_reorders_and_limits_what_really_passes() {
    if !in_private_network("wan::tests::a_link_delays_loses_reorders_and_limits_what_really_passes")
    {
        return;
    }
    let world = World::new();
    let link = link(&world);
    let (us, server) = (Ipv4Addr::new(198, 51, 100, 2), SERVERS[0]);
    let client = open((&world.inside, us)).unwrap();
    let echo = open((&world.servers[0], server)).unwrap();
    let to = echo.local_addr().unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    echo.set_read_timeout(Some(LIMIT)).unwrap();
    let mut buffer = [0; 2048];
    let mut round_trip = || {
        let start = Instant::now();
        client.send_to(b"ping", to).unwrap();
        let (_, from) = echo.recv_from(&mut buffer).unwrap();
        echo.send_to(b"pong", from).unwrap();
        client.recv(&mut buffer).unwrap();
        start.elapsed()
    };
    // ARP is asked now, not while a delay is measured.
    round_trip();
    link.set(Way::There, Conditions::default().delayed(Duration::from_millis(60), Duration::ZERO));
    link.set(Way::Back, Conditions::default().delayed(Duration::from_millis(20), Duration::ZERO));
    let took = round_trip();
    assert!(took >= Duration::from_millis(80), "{took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");

    let bad = Conditions::default()
        .losing(0.2)
        .duplicating(0.1)
        .reordering(0.1, Duration::from_millis(2));
    link.set_both(&Conditions::default());
    link.set(Way::There, bad);
    let before = link.counters(Way::There);
    // Read while they come, and sent no faster: a socket's buffer doesn't hold them all.
    let read_so_far = AtomicU64::new(0);
    let came = std::thread::scope(|scope| {
        let read = scope.spawn(|| {
            let mut came = Vec::new();
            let mut buffer = [0; 8];
            loop {
                match echo.recv(&mut buffer) {
                    Ok(2) => came.push(u16::from_be_bytes([buffer[0], buffer[1]])),
                    _ => return came,
                }
                read_so_far.store(came.len() as u64, Ordering::Relaxed);
            }
        });
        for number in 0..1000_u16 {
            client.send_to(&number.to_be_bytes(), to).unwrap();
            if number % 20 == 19 {
                until(LIMIT, "what was sent to be taken and read", || {
                    let now = link.counters(Way::There);
                    let waits = now.delivered - before.delivered;
                    let read = read_so_far.load(Ordering::Relaxed);
                    (now.taken - before.taken > u64::from(number) && waits < read + 60)
                        .then_some(())
                })
                .unwrap();
            }
        }
        until(LIMIT, "all that isn't lost to come out", || {
            let now = link.counters(Way::There);
            let all = now.taken >= before.taken + 1000;
            (all && now.delivered == now.taken - now.lost + now.duplicated).then_some(())
        })
        .unwrap();
        link.set_both(&Conditions::default());
        client.send_to(b"end", to).unwrap();
        read.join().unwrap()
    });
    let after = link.counters(Way::There);
    let (lost, twice) = (after.lost - before.lost, after.duplicated - before.duplicated);
    // The end, and what the kernel asks its neighbour, are counted too, and may be lost or come twice themselves.
    let others = 2 * (after.taken - before.taken - 1000);
    let expected = 1000 - lost + twice;
    let close =
        (expected - others.min(expected)..=expected + others).contains(&(came.len() as u64));
    assert!(close, "{} came: {before:?}, {after:?}", came.len());
    assert!((120..=280).contains(&lost) && (20..=160).contains(&twice), "{after:?}");
    assert!(came.windows(2).any(|pair| pair[0] > pair[1]), "nothing was overtaken: {after:?}");

    // 400 kB at 8 Mbit/s take 0.4 s and not much more.
    link.set(Way::There, Conditions::default().limited(8_000_000, 64 * 1024));
    let took = world.transfer(400_000);
    assert!((Duration::from_millis(380)..LIMIT).contains(&took), "{took:?}");

    link.set_both(&Conditions::down());
    client.send_to(b"x", to).unwrap();
    until(LIMIT, "a packet at a cut", || (link.counters(Way::There).down > 0).then_some(()))
        .unwrap();
    link.set_both(
        &Conditions::default()
            .losing(0.05)
            .delayed(Duration::from_millis(5), Duration::from_millis(2)),
    );
    world.transfer(200_000);
}

#[test]
#[ignore = "measures"]
fn what_a_link_and_a_router_carry() {
    if !in_private_network("wan::tests::what_a_link_and_a_router_carry") {
        return;
    }
    let world = World::new();
    let _link = link(&world);
    let megabits = |took: Duration| 100.0 * 8.0 / took.as_secs_f64();
    println!("a link: {:.0} Mbit/s", megabits(world.transfer(100_000_000)));
    world.inside.ip("link delete eth0").unwrap();
    let _router = world.router(Kind::symmetric());
    println!("a router: {:.0} Mbit/s", megabits(world.transfer(100_000_000)));
}

#[test]
fn a_small_path_is_told_of_through_a_translating_router_or_swallows_in_silence() {
    let test =
        "wan::tests::a_small_path_is_told_of_through_a_translating_router_or_swallows_in_silence";
    if !in_private_network(test) {
        return;
    }
    let world = World::new();
    let middle = Host::create("middle").unwrap();
    middle.switch("br1").unwrap();
    let link = Link::lay("link", Attach::Switch(&middle, "br1"), world.outside(), 7).unwrap();
    let inside = (Attach::Host(&world.inside, "eth0"), ROUTER_INSIDE);
    let outside = (Attach::Switch(&middle, "br1"), ROUTER);
    let kind = Kind::symmetric();
    let _router = NatRouter::set_up("router", inside, outside, None, kind, 1).unwrap();
    world.settle();
    let told = Conditions::default().with_path_mtu(1280, Ipv4Addr::new(198, 51, 100, 254));
    link.set(Way::There, told);
    world.transfer(200_000);
    let counters = link.counters(Way::There);
    assert!(counters.too_big > 0, "{counters:?}");

    link.set(Way::There, Conditions::default().swallowing_above(1280));
    let probe = world.probe();
    let client = probe.client().unwrap();
    let at = probe.seen(&client, 0, 0).unwrap();
    assert_eq!(at.ip(), &ROUTER.address);
    let server = open((&world.servers[1], SERVERS[1])).unwrap();
    let before = link.counters(Way::There).too_big;
    // The kernel remembers the path of the first server only.
    client.send_to(&[0; 1400], server.local_addr().unwrap()).unwrap();
    client.send_to(&[0; 1252], server.local_addr().unwrap()).unwrap();
    server.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(server.recv(&mut [0; 2048]).unwrap(), 1252);
    assert_eq!(link.counters(Way::There).too_big, before + 1);
}

#[test]
fn rewriting_keeps_every_sum_right() {
    use crate::packet::checksum;
    use ipv4::{ETHERNET, End, Packet};
    let (from, to) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(198, 51, 100, 11));
    for (protocol, sum_at) in [(17_u8, 6), (6, 16), (1, 2)] {
        let mut frame = vec![0; 12];
        frame.extend_from_slice(&[0x08, 0x00]);
        frame.extend_from_slice(&ipv4::header(from, to, protocol, 33));
        let mut payload: Vec<u8> = (10..43).collect();
        payload[0] = if protocol == 1 { 8 } else { 200 };
        payload[sum_at..sum_at + 2].fill(0);
        let whole_sum = |frame: &[u8]| {
            let mut covered = Vec::new();
            if protocol != 1 {
                covered.extend_from_slice(&frame[ETHERNET + 12..ETHERNET + 20]);
                covered.extend_from_slice(&[0, protocol, 0, 33]);
            }
            covered.extend_from_slice(&frame[ETHERNET + 20..]);
            checksum(&covered)
        };
        frame.extend_from_slice(&payload);
        let sum = whole_sum(&frame);
        frame[ETHERNET + 20 + sum_at..][..2].copy_from_slice(&sum.to_be_bytes());
        let new = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 250), 65_535);
        for end in [End::Source, End::Destination] {
            let packet = Packet::parse(&frame).unwrap();
            ipv4::rewrite(&mut frame, &packet, end, new);
            let packet = Packet::parse(&frame).unwrap();
            assert_eq!(ipv4::endpoint(&frame, &packet, end), Some(new));
            assert!(ipv4::pass(&mut frame));
            assert_eq!(checksum(&frame[ETHERNET..ETHERNET + 20]), 0, "{protocol} {end:?}");
            assert_eq!(whole_sum(&frame), 0, "{protocol} {end:?}");
        }
        for cut in 0..frame.len() {
            assert!(Packet::parse(&frame[..cut]).is_none());
        }
    }
}
