use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anteroom_lab::namespace::in_private_network;
use anteroom_lab::order::OneCore;
use anteroom_lab::topology::{self, Host};
use socket2::{Domain, Socket, Type};

use super::*;
use crate::net::sys::Sent;
use crate::net::udp::{DatagramRing, MAX_SEGMENTS, Run};

fn bind(listen: &str) -> UdpSocket {
    UdpSocket::bind(listen.parse().unwrap()).unwrap()
}

fn group(listen: &str, count: usize) -> Group {
    let group = UdpSocket::bind_group(listen.parse().unwrap(), count, false).unwrap();
    assert_eq!(group.steering, Offload::On, "this kernel has it");
    assert!(group.sockets.iter().all(UdpSocket::hears));
    assert_eq!(group.sockets.len(), count);
    group
}

/// A data message as WireGuard has it: type, receiver index (little-endian), counter, and something.
fn data(lane: u8, len: usize) -> Vec<u8> {
    let mut message = vec![0x5a; len.max(16)];
    message[..4].copy_from_slice(&[4, 0, 0, 0]);
    message[4..8].copy_from_slice(&(u32::from(lane) << 28 | 0x0fed_cba9).to_le_bytes());
    message
}

fn send(socket: &mut UdpSocket, to: SocketAddr, datagrams: &[Vec<u8>]) {
    let mut outcome = Sent::default();
    socket.send(datagrams.iter().map(|bytes| Run::single(to, 0, bytes)), &mut outcome);
    assert_eq!(outcome.sent, datagrams.len() as u64, "{outcome:?}");
}

/// Messages as they came, each with the length of its segments.
type Messages = Vec<(usize, Vec<u8>)>;

/// What came to each socket, until it is `count` datagrams in all.
fn receive(sockets: &[UdpSocket], count: usize) -> Vec<Messages> {
    let mut ring = DatagramRing::default();
    let end = Instant::now() + Duration::from_secs(30);
    let mut received = vec![Vec::new(); sockets.len()];
    let mut seen = 0;
    while seen < count && Instant::now() < end {
        for (socket, received) in sockets.iter().zip(&mut received) {
            ring.fetch(socket).unwrap();
            seen += ring.lend(&mut 0, |messages| {
                received.extend(messages.iter().map(|m| (m.segment, m.bytes.to_vec())));
            }) as usize;
        }
    }
    received
}

/// The same, datagram by datagram.
fn datagrams(received: &[(usize, Vec<u8>)]) -> Vec<Vec<u8>> {
    let parts = |(segment, bytes): &(usize, Vec<u8>)| {
        bytes.chunks((*segment).max(1)).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    received.iter().flat_map(parts).collect()
}

/// The lane that a data message bears.
fn lane(datagram: &[u8]) -> Option<u8> {
    datagram.starts_with(&[4, 0, 0, 0]).then(|| datagram.get(7).map(|byte| byte >> 4)).flatten()
}

/// Each kind of datagram by itself, and the socket of a group of four where it belongs.
fn kinds() -> Vec<(Vec<u8>, usize)> {
    let places = [0, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3];
    let mut kinds = Vec::new();
    for (lane, place) in (0..16_u8).zip(places).rev() {
        assert_eq!(Group::place(lane, 4), place);
        kinds.push((data(lane, 60 + usize::from(lane)), place));
        let mut cookie = data(lane, 64);
        cookie[0] = 3;
        kinds.push((cookie, place));
        let mut response = data(15 - lane, 92);
        response[0] = 2;
        response[11] = lane << 4 | 7;
        kinds.push((response, place));
        let mut initiation = data(lane, 148);
        initiation[0] = 1;
        kinds.push((initiation, 0));
        let mut other = data(lane, 90);
        other[0] = 5;
        kinds.push((other, 0));
        let mut reserved = data(lane, 91);
        reserved[2] = 1;
        kinds.push((reserved, 0));
    }
    for len in 1..8 {
        kinds.push((data(3, 32)[..len].to_vec(), 0));
    }
    kinds.push((data(3, 32)[..8].to_vec(), 3));
    kinds
}

fn each_kind_comes_to_its_socket(listen: &str, to: IpAddr) {
    let _in_order = OneCore::stay();
    let group = group(listen, 4);
    let port = group.sockets[0].local_address().unwrap().port();
    for socket in &group.sockets {
        assert_eq!(socket.local_address().unwrap().port(), port);
    }
    // From many addresses: without the program, the kernel would spread them by that.
    for round in 0..16 {
        let mut sender = bind(if to.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" });
        let kinds = kinds();
        let bytes: Vec<_> = kinds.iter().map(|(bytes, _)| bytes.clone()).collect();
        send(&mut sender, (to, port).into(), &bytes);
        let received = receive(&group.sockets, kinds.len());
        for (number, received) in received.iter().enumerate() {
            let expected: Vec<_> = kinds
                .iter()
                .filter(|(_, socket)| *socket == number)
                .map(|(bytes, _)| bytes.clone())
                .collect();
            assert_eq!(datagrams(received), expected, "socket {number} in round {round}");
        }
    }
}

#[test]
fn each_kind_comes_to_its_socket_over_ipv4() {
    each_kind_comes_to_its_socket("127.0.0.1:0", Ipv4Addr::LOCALHOST.into());
    each_kind_comes_to_its_socket("0.0.0.0:0", Ipv4Addr::LOCALHOST.into());
}

#[test]
fn each_kind_comes_to_its_socket_over_both_families() {
    if std::net::UdpSocket::bind("[::1]:0").is_err() {
        eprintln!("skipped: no IPv6 here");
        return;
    }
    each_kind_comes_to_its_socket("[::]:0", Ipv6Addr::LOCALHOST.into());
    each_kind_comes_to_its_socket("[::]:0", Ipv4Addr::LOCALHOST.into());
}

#[test]
fn sixteen_sockets_are_a_group_and_more_are_not_made() {
    let group = group("127.0.0.1:0", MAX_SOCKETS);
    let to = group.sockets[0].local_address().unwrap();
    let mut sender = bind("127.0.0.1:0");
    let all: Vec<_> = (0..16).map(|lane| data(lane, 40)).collect();
    send(&mut sender, to, &all);
    for (lane, received) in receive(&group.sockets, 16).iter().enumerate() {
        assert_eq!(datagrams(received), [data(lane as u8, 40)]);
        assert_eq!(Group::place(lane as u8, MAX_SOCKETS), lane);
    }
    assert_eq!((Group::place(7, 1), Group::place(7, 0), Group::place(7, 2)), (0, 0, 1));
    let many = UdpSocket::bind_group("127.0.0.1:0".parse().unwrap(), 99, false).unwrap();
    assert_eq!(many.sockets.len(), MAX_SOCKETS);
    let none = UdpSocket::bind_group("127.0.0.1:0".parse().unwrap(), 0, false).unwrap();
    assert_eq!(none.sockets.len(), 1);
}

#[test]
fn a_run_comes_whole_and_every_socket_sends_from_the_port() {
    let _in_order = OneCore::stay();
    let mut group = group("127.0.0.1:0", 3);
    let to = group.sockets[0].local_address().unwrap();
    let (mut sender, back) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let run = data(2, 1400).repeat(MAX_SEGMENTS / 2);
    let mut outcome = Sent::default();
    sender.send(std::iter::once(Run { to, tos: 0, segment: 1400, bytes: &run }), &mut outcome);
    let received = receive(&group.sockets, MAX_SEGMENTS / 2);
    assert_eq!((received[0].len(), received[1].len()), (0, 0));
    assert!(received[2] == [(1400, run)], "in one piece");

    let there = back.local_address().unwrap();
    let mut ring = DatagramRing::default();
    for socket in &mut group.sockets {
        send(socket, there, &[b"here".to_vec()]);
        let end = Instant::now() + Duration::from_secs(30);
        while ring.fetch(&back).unwrap() == 0 {
            assert!(Instant::now() < end, "nothing came");
        }
        ring.lend(&mut 0, |messages| assert_eq!(messages[0].from, to));
    }
}

#[test]
fn a_port_that_is_taken_is_said_to_be() {
    let (alone, shared) = (bind("127.0.0.1:0"), group("127.0.0.1:0", 2));
    for taken in [&alone, &shared.sockets[0]] {
        let listen = taken.local_address().unwrap();
        for count in [1, 2] {
            let error = UdpSocket::bind_group(listen, count, false).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{count} sockets");
        }
        let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), listen.port());
        let error = UdpSocket::bind(everywhere).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "on all addresses");
    }
}

fn intruder(listen: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, None)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    Ok(socket)
}

#[test]
fn another_user_can_not_join_and_whoever_may_gets_nothing() {
    let group = group("127.0.0.1:0", 3);
    let to = group.sockets[0].local_address().unwrap();
    if nix::unistd::geteuid().is_root() {
        let joined = std::thread::spawn(move || {
            // SAFETY: the bare system call changes this thread alone, which ends here.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, -1, 65534, -1) };
            assert_eq!(changed, 0, "{}", io::Error::last_os_error());
            intruder(to).map(|_| ()).map_err(|error| error.kind())
        });
        assert_eq!(joined.join().unwrap(), Err(io::ErrorKind::AddrInUse));
    } else {
        eprintln!("another user wasn't tried: that takes root");
    }
    let stranger = intruder(to).unwrap();
    for _ in 0..16 {
        let mut sender = bind("127.0.0.1:0");
        let all: Vec<_> = (0..16).map(|lane| data(lane, 40)).collect();
        send(&mut sender, to, &all);
        let received = receive(&group.sockets, 16);
        assert_eq!(received.iter().map(Vec::len).collect::<Vec<_>>(), [1, 8, 7]);
    }
    let mut room = [std::mem::MaybeUninit::uninit(); 100];
    let error = stranger.recv(&mut room).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn where_the_kernel_does_not_steer_the_first_socket_gets_everything() {
    let _in_order = OneCore::stay();
    let first = bind("127.0.0.1:0");
    let to = first.local_address().unwrap();
    let refused = io::Error::from_raw_os_error(libc::EPERM);
    let mut group = alone(first, 4, &refused).unwrap();
    let Offload::Off(why) = &group.steering else { panic!("{group:?}") };
    assert!(why.contains("refuses"), "{why}");
    assert_eq!(
        group.sockets.iter().map(UdpSocket::hears).collect::<Vec<_>>(),
        [true, false, false, false]
    );
    let mut sender = bind("127.0.0.1:0");
    let all: Vec<_> = (0..16).map(|lane| data(lane, 40)).collect();
    send(&mut sender, to, &all);
    let received = receive(&group.sockets[..1], 16);
    assert_eq!(datagrams(&received[0]), all);

    let back = bind("127.0.0.1:0");
    let there = back.local_address().unwrap();
    for socket in &mut group.sockets {
        send(socket, there, &[b"here".to_vec()]);
    }
    let received = receive(std::slice::from_ref(&back), 4);
    assert_eq!(datagrams(&received[0]).len(), 4);
    // The port is nobody else's.
    assert_eq!(intruder(to).map(|_| ()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert_eq!(group.sockets[1].take_missed(), 0);
}

#[test]
fn what_the_program_was_refused_for_leaves_nothing_bound_beside_the_first() {
    let first = bind("127.0.0.1:0");
    let to = first.local_address().unwrap();
    // As if the kernel had refused after some.
    let (shared, _) = share(&first, 2, false).unwrap();
    assert_eq!(shared.len(), 1);
    drop(shared);
    let group = alone(first, 2, &io::Error::from_raw_os_error(libc::ENOMEM)).unwrap();
    let mut sender = bind("127.0.0.1:0");
    let all: Vec<_> = (0..16).map(|lane| data(lane, 40)).collect();
    send(&mut sender, to, &all);
    assert_eq!(datagrams(&receive(&group.sockets[..1], 16)[0]), all);
}

/// Sends to two owners in turn out of one socket, over a cable whose far end merges, and returns what comes there.
fn sent_over_a_merging_cable(distinct: bool) -> Option<Vec<Messages>> {
    let _in_order = OneCore::stay();
    let ethtool = anteroom_lab::programs::find("ethtool")?;
    let tc = anteroom_lab::programs::find("tc")?;
    let [near, far] = ["near", "far"].map(|name| Host::create(name).unwrap());
    topology::cable((&near, "eth0", None), (&far, "eth0")).unwrap();
    near.address("eth0", [10, 0, 0, 1].into(), 24).unwrap();
    far.address("eth0", [10, 0, 0, 2].into(), 24).unwrap();
    near.run(&ethtool, &["-K", "eth0", "tso", "off", "tx-udp-segmentation", "off", "gso", "off"])
        .unwrap();
    far.run(&ethtool, &["-K", "eth0", "gro", "on"]).unwrap();
    let mut senders = near.enter(|| group("10.0.0.1:0", 3)).unwrap().sockets;
    let receivers = far.enter(|| group("10.0.0.2:5000", 3)).unwrap().sockets;
    let to = "10.0.0.2:5000".parse().unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    let mut ring = DatagramRing::default();
    loop {
        send(&mut senders[0], to, &[b"anybody?".to_vec()]);
        std::thread::sleep(Duration::from_millis(10));
        if ring.fetch(&receivers[0]).unwrap() > 0 {
            break;
        }
        assert!(Instant::now() < end, "the cable carries nothing");
    }
    // What was kept until the neighbour was known comes before this.
    send(&mut senders[0], to, &[b"that was all".to_vec()]);
    let mut over = false;
    while !over {
        assert!(Instant::now() < end, "the last datagram didn't come");
        ring.lend(&mut 0, |messages| {
            over = messages.iter().any(|message| message.bytes.ends_with(b"that was all"));
        });
        ring.fetch(&receivers[0]).unwrap();
    }
    if !distinct {
        senders[0].hops = Default::default();
    }
    // Packets are held up and then reach the cable together, as a network card hands them over.
    let shape = |how: &[&str]| {
        let device = ["dev", "eth0", "root", "tbf", "limit", "4mb"];
        near.run(&tc, &[&["qdisc", how[0]], &device[..], &how[1..]].concat()).unwrap();
    };
    shape(&["add", "rate", "8kbit", "burst", "2kb"]);
    for _ in 0..100 {
        for lane in [1_u8, 2] {
            send(&mut senders[0], to, &[data(lane, 1000), data(lane, 1000)]);
        }
    }
    shape(&["change", "rate", "10gbit", "burst", "4mb"]);
    send(&mut senders[1], to, &[data(1, 1000)]);
    Some(receive(&receivers, 401))
}

#[test]
fn datagrams_of_two_lanes_are_never_merged_into_one_run() {
    let test = "net::udp::group::tests::datagrams_of_two_lanes_are_never_merged_into_one_run";
    if !in_private_network(test) {
        return;
    }
    let Some(received) = sent_over_a_merging_cable(true) else {
        eprintln!("skipped: there is no ethtool or no tc");
        return;
    };
    let merged = received.iter().flatten().filter(|(segment, bytes)| bytes.len() > *segment);
    assert!(merged.count() > 10, "the kernel merges");
    assert_eq!(received[0].len(), 0);
    for lane in [1, 2] {
        let datagrams = datagrams(&received[lane]);
        assert_eq!(datagrams.len(), 200 + lane % 2, "lane {lane}");
        let own = |datagram: &Vec<u8>| self::lane(datagram) == Some(lane as u8);
        let strays = datagrams.iter().filter(|datagram| !own(datagram)).count();
        assert_eq!(strays, 0, "lane {lane}");
    }
}

/// If this fails, the kernel tells lanes apart by itself: then the times to live have become needless.
#[test]
fn with_one_time_to_live_they_are() {
    let test = "net::udp::group::tests::with_one_time_to_live_they_are";
    if !in_private_network(test) {
        return;
    }
    let Some(received) = sent_over_a_merging_cable(false) else {
        eprintln!("skipped: there is no ethtool or no tc");
        return;
    };
    let mixed = |(segment, bytes): &&(usize, Vec<u8>)| {
        let mut lanes = bytes.chunks(*segment).map(lane);
        let first = lanes.next();
        lanes.any(|lane| Some(lane) != first)
    };
    let mixed = received.iter().flatten().filter(mixed).count();
    assert!(mixed > 0, "none of {:?}", received.iter().map(Vec::len).collect::<Vec<_>>());
}
