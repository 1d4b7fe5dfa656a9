use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use anteroom_lab::namespace::in_private_network;
use anteroom_lab::order::OneCore;
use anteroom_lab::topology::Host;

use super::*;
use crate::net::sys::{Control, Sent};

fn bind(listen: &str) -> UdpSocket {
    UdpSocket::bind(listen.parse().unwrap()).unwrap()
}

fn receive(
    socket: &UdpSocket,
    ring: &mut DatagramRing,
    count: usize,
) -> Vec<(SocketAddr, Vec<u8>)> {
    let end = Instant::now() + Duration::from_secs(30);
    let mut received = Vec::new();
    let mut truncated = 0;
    while received.len() < count && Instant::now() < end {
        ring.fetch(socket).unwrap();
        let before = received.len();
        let told = ring.lend(&mut truncated, |messages| {
            for message in messages {
                if message.bytes.is_empty() {
                    received.push((message.from, Vec::new()));
                }
                let datagrams = message.bytes.chunks(message.segment.max(1));
                received.extend(datagrams.map(|bytes| (message.from, bytes.to_vec())));
            }
        });
        assert_eq!(told as usize, received.len() - before);
    }
    assert_eq!(truncated, 0);
    received
}

#[test]
fn batches_arrive_whole_and_in_order() {
    let _in_order = OneCore::stay();
    let (mut a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let to = b.local_address().unwrap();
    let sent: Vec<Vec<u8>> = (0..200_usize).map(|i| vec![i as u8; i * 7]).collect();
    let mut outcome = Sent::default();
    a.send(sent.iter().map(|bytes| Run::single(to, 0, bytes)), &mut outcome);
    assert_eq!(outcome, Sent { sent: 200, ..Sent::default() });
    let received = receive(&b, &mut DatagramRing::default(), 200);
    let from = a.local_address().unwrap();
    let expected: Vec<_> = sent.into_iter().map(|bytes| (from, bytes)).collect();
    assert_eq!(received, expected);
}

#[test]
fn merged_datagrams_are_told_apart_and_come_one_by_one_where_merging_is_off() {
    let _in_order = OneCore::stay();
    let (mut a, mut b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let to = b.local_address().unwrap();
    let from = a.local_address().unwrap();
    let bytes: Vec<u8> = (0..40 * 1400 + 7).map(|i| (i / 1400 + i) as u8).collect();
    for merging in [true, false] {
        if !merging {
            b.stop_merging("a test").unwrap();
        }
        assert_eq!(*b.merging() == Offload::On, merging);
        let mut outcome = Sent::default();
        let runs = [Run { to, tos: 0, segment: 1400, bytes: &bytes }, Run::single(to, 0, b"alone")];
        a.send(runs.into_iter(), &mut outcome);
        assert_eq!(outcome.sent, 42);
        let mut ring = DatagramRing::default();
        let mut first = 0;
        let end = Instant::now() + Duration::from_secs(30);
        while first == 0 && Instant::now() < end {
            first = ring.fetch(&b).unwrap();
        }
        let mut received = Vec::new();
        ring.lend(&mut 0, |messages| {
            received.extend(messages.iter().map(|m| (m.segment, m.bytes.to_vec())));
        });
        if merging {
            assert_eq!(received[0], (1400, bytes.clone()), "loopback hands a run over whole");
        } else {
            assert_eq!(received[0], (1400, bytes[..1400].to_vec()));
        }
        let rest =
            42 - received.iter().map(|(segment, b)| b.len().div_ceil(*segment)).sum::<usize>();
        let mut all: Vec<Vec<u8>> =
            received.iter().flat_map(|(s, b)| b.chunks(*s).map(Vec::from)).collect();
        all.extend(receive(&b, &mut ring, rest).into_iter().map(|(who, bytes)| {
            assert_eq!(who, from);
            bytes
        }));
        let sent: Vec<Vec<u8>> =
            bytes.chunks(1400).map(Vec::from).chain([b"alone".to_vec()]).collect();
        assert!(all == sent, "{} datagrams, merging: {merging}", all.len());
    }
}

#[test]
fn the_outer_header_bears_the_type_of_service_and_forbids_fragments() {
    if !in_private_network(
        "net::udp::tests::the_outer_header_bears_the_type_of_service_and_forbids_fragments",
    ) {
        return;
    }
    let host = Host::create("host").unwrap();
    host.enter(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0").ok();
        std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "0").ok();
    })
    .unwrap();
    host.ip("link set lo mtu 1500").unwrap();
    host.ip("link set lo down").unwrap();
    host.ip("link set lo up").unwrap();
    host.enter(|| {
        let mut socket = bind("[::]:0");
        let port = socket.local_address().unwrap().port();
        for ip in [IpAddr::from([127, 0, 0, 1]), Ipv6Addr::LOCALHOST.into()] {
            let server =
                Socket::new(Domain::for_address((ip, 0).into()), Type::DGRAM, None).unwrap();
            let (level, option) = match ip {
                IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVTOS),
                IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
            };
            let kind = match ip {
                IpAddr::V4(_) => libc::IP_TOS,
                IpAddr::V6(_) => libc::IPV6_TCLASS,
            };
            sys::set_option(&server, level, option, 1_i32).unwrap();
            server.bind(&SocketAddr::new(ip, 0).into()).unwrap();
            let to = server.local_addr().unwrap().as_socket().unwrap();

            let mut outcome = Sent::default();
            let too_big = [0; 1500];
            let datagrams = [(0xb8, &b"alarm"[..]), (0, &too_big), (0, b"archive")];
            let singles = datagrams.iter().map(|(tos, bytes)| Run::single(to, *tos, bytes));
            socket.send(singles, &mut outcome);
            assert_eq!((outcome.sent, outcome.too_big), (2, 1), "{ip}: {outcome:?}");
            for (payload, tos) in [(&b"alarm"[..], 0xb8), (b"archive", 0)] {
                let (bytes, seen) = receive_with_control(&server, level, kind);
                assert_eq!((&bytes[..], seen), (payload, Some(tos)), "{ip}");
            }
            // Back to the dual-stack socket: its peer is named as an IPv4 address.
            server.send_to(b"back", &SocketAddr::new(ip, port).into()).unwrap();
            let received = receive(&socket, &mut DatagramRing::default(), 1);
            assert_eq!(received, [(to, b"back".to_vec())]);
        }
        // No way leads there; the rest of the batch still goes.
        let mut outcome = Sent::default();
        let datagrams = [("192.0.2.1:9", &b"x"[..]), ("127.0.0.1:9", b"y")]
            .map(|(to, b)| Run::single(to.parse().unwrap(), 0, b));
        socket.send(datagrams.into_iter(), &mut outcome);
        assert_eq!((outcome.sent, outcome.unreachable), (1, 1), "{outcome:?}");
    })
    .unwrap();
}

fn receive_with_control(
    socket: &Socket,
    level: libc::c_int,
    kind: libc::c_int,
) -> (Vec<u8>, Option<u8>) {
    let mut bytes = vec![0; 2000];
    let mut control = Control::EMPTY;
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut message = sys::empty_message();
    message.msg_hdr.msg_iov = &raw mut vector;
    message.msg_hdr.msg_iovlen = 1;
    message.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
    message.msg_hdr.msg_controllen = control.0.len();
    let end = Instant::now() + Duration::from_secs(30);
    // SAFETY: the vector and the control room live in this function, with their true lengths.
    while unsafe { sys::receive_messages(socket, std::slice::from_mut(&mut message)) }.unwrap() == 0
    {
        assert!(Instant::now() < end, "nothing came");
    }
    bytes.truncate(message.msg_len as usize);
    let value = control.find(message.msg_hdr.msg_controllen, level, kind);
    (bytes, value.map(|value| value[0]))
}

#[test]
fn an_address_that_comes_later_or_goes_for_a_while_does_no_harm() {
    if !in_private_network(
        "net::udp::tests::an_address_that_comes_later_or_goes_for_a_while_does_no_harm",
    ) {
        return;
    }
    let host = Host::create("host").unwrap();
    let mut socket = host.enter(|| bind("192.0.2.7:51820")).unwrap();
    let peer = host.enter(|| bind("127.0.0.1:0")).unwrap();
    let to = peer.local_address().unwrap();
    let mut ring = DatagramRing::default();
    for round in 0..2 {
        host.ip("address add 192.0.2.7/32 dev lo").unwrap();
        let mut outcome = Sent::default();
        socket.send(std::iter::once(Run::single(to, 0, b"here")), &mut outcome);
        assert_eq!(outcome.sent, 1, "in round {round}: {outcome:?}");
        let received = receive(&peer, &mut ring, 1);
        assert_eq!(received[0].0, "192.0.2.7:51820".parse().unwrap(), "in round {round}");
        host.ip("address del 192.0.2.7/32 dev lo").unwrap();
    }
}

/// Emptying a socket that fills all the time takes what it held, and ends.
#[test]
fn what_a_socket_holds_is_fetched_and_not_much_more() {
    let _in_order = OneCore::stay();
    for size in [0, 60, 1_400] {
        let socket = bind("127.0.0.1:0");
        let to = socket.local_address().unwrap();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(socket.held(), 0);
        for _ in 0..300 {
            sender.send_to(&vec![7; size], to).unwrap();
        }
        let (mut held, mut fetched) = (socket.held(), 0);
        assert!(held >= 300 * size.max(1), "{held} bytes");
        let mut ring = DatagramRing::default();
        while held > 0 {
            assert!(fetched < 3_000, "it doesn't end");
            let count = ring.fetch(&socket).unwrap();
            fetched += count;
            held = held.saturating_sub(ring.least_held());
            // As many come as went.
            for _ in 0..count {
                sender.send_to(&vec![7; size], to).unwrap();
            }
        }
        assert!(fetched >= 300, "{fetched} of {size} bytes");
    }
}

#[test]
fn what_found_no_room_is_counted_once() {
    let mut socket = bind("127.0.0.1:0");
    let to = socket.local_address().unwrap();
    let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(socket.take_missed(), 0);
    // More than its buffer holds, whatever the kernel counts beside the bytes.
    let sent = 2 * u64::try_from(SOCKET_BUFFER).unwrap() / 1_000 + 1_000;
    for _ in 0..sent {
        sender.send_to(&[7; 1_000], to).unwrap();
    }
    let missed = socket.take_missed();
    assert!(missed > 0 && missed < sent, "{missed} of {sent}");
    assert_eq!(socket.take_missed(), 0, "again");
    let mut ring = DatagramRing::default();
    let received = receive(&socket, &mut ring, (sent - missed) as usize).len() as u64;
    assert_eq!(received + missed, sent);
    assert_eq!((ring.fetch(&socket).unwrap_or(0), socket.take_missed()), (0, 0));
}
