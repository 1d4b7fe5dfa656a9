use std::time::{Duration, Instant};

use anteroom_lab::namespace::in_private_network;
use anteroom_lab::order::OneCore;
use anteroom_lab::topology::{self, Host};

use super::super::DatagramRing;
use super::*;

fn bind(listen: &str) -> UdpSocket {
    UdpSocket::bind(listen.parse().unwrap()).unwrap()
}

/// What comes in, datagram by datagram, until it is `count` of them or nothing more comes.
fn receive(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
    let end = Instant::now() + Duration::from_secs(30);
    let mut ring = DatagramRing::default();
    let mut received = Vec::new();
    let mut truncated = 0;
    while received.len() < count && Instant::now() < end {
        ring.fetch(socket).unwrap();
        ring.lend(&mut truncated, |buffers| {
            for buffer in buffers {
                let datagrams = buffer.bytes.chunks(buffer.segment.max(1));
                received.extend(datagrams.map(<[u8]>::to_vec));
            }
        });
    }
    received
}

/// Bytes of which each says where it stands.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i + i / 251) as u8).collect()
}

/// Compares without printing a flood of bytes.
#[track_caller]
fn assert_same(received: &[Vec<u8>], expected: &[Vec<u8>], when: &str) {
    let lengths = |all: &[Vec<u8>]| all.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(lengths(received), lengths(expected), "{when}");
    for (place, (received, expected)) in received.iter().zip(expected).enumerate() {
        assert!(received == expected, "{when}: other bytes in datagram {place}");
    }
}

fn sent(count: u64) -> Sent {
    Sent { sent: count, ..Sent::default() }
}

#[test]
fn runs_arrive_as_the_datagrams_they_are() {
    let _in_order = OneCore::stay();
    for host in ["127.0.0.1:0", "[::1]:0"] {
        if std::net::UdpSocket::bind(host).is_err() {
            eprintln!("skipped: no {host} here");
            continue;
        }
        let (mut a, b) = (bind(host), bind(host));
        let to = b.local_address().unwrap();
        assert_eq!(*a.segmentation(), Offload::On, "this kernel has it");
        for (segment, len) in [
            (1472, MAX_RUN),
            (1000, 1000 * MAX_SEGMENTS),
            (1000, 10_001),
            (1000, 1001),
            (1000, 1000),
            (1000, 999),
            (1, 64),
        ] {
            let bytes = pattern(len);
            let mut outcome = Sent::default();
            // Alarms go first: a run and its neighbours keep their order.
            let runs = [
                Run::single(to, 0xb8, b"before"),
                Run { to, tos: 0x28, segment, bytes: &bytes },
                Run::single(to, 0, b"behind"),
            ];
            a.send(runs.into_iter(), &mut outcome);
            let mut expected = vec![b"before".to_vec()];
            expected.extend(bytes.chunks(segment).map(<[u8]>::to_vec));
            expected.push(b"behind".to_vec());
            assert_eq!(outcome, sent(expected.len() as u64), "{segment} of {len}");
            assert_same(&receive(&b, expected.len()), &expected, &format!("{segment} of {len}"));
        }
        assert_eq!(*a.segmentation(), Offload::On);
    }
}

/// The time to live of the next datagram that comes.
fn hops(socket: &UdpSocket) -> Option<i32> {
    let end = Instant::now() + Duration::from_secs(30);
    let (mut bytes, mut control) = ([0_u8; 2000], Control::EMPTY);
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut header = sys::empty_message().msg_hdr;
    (header.msg_iov, header.msg_iovlen) = (&raw mut vector, 1);
    header.msg_control = control.0.as_mut_ptr().cast();
    loop {
        header.msg_controllen = control.0.len();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&socket.as_fd());
        // SAFETY: all that the header points to is borrowed mutably here, and its lengths are theirs.
        let got = unsafe { libc::recvmsg(fd, &raw mut header, libc::MSG_DONTWAIT) };
        if got >= 0 {
            break;
        }
        assert!(Instant::now() < end, "nothing came");
    }
    let find = |level, kind| control.find(header.msg_controllen, level, kind)?.try_into().ok();
    let bytes = find(libc::IPPROTO_IP, libc::IP_TTL)
        .or_else(|| find(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT))?;
    Some(i32::from_ne_bytes(bytes))
}

#[test]
fn each_owner_at_the_far_end_has_a_time_to_live_of_its_own() {
    let data = |owner: u8, len: usize| {
        let mut message = pattern(len);
        message[..8].copy_from_slice(&[4, 0, 0, 0, 1, 2, 3, owner << 4]);
        message
    };
    for (from, host) in
        [("0.0.0.0:0", "127.0.0.1:0"), ("[::]:0", "127.0.0.1:0"), ("[::]:0", "[::1]:0")]
    {
        if std::net::UdpSocket::bind(from).is_err() || std::net::UdpSocket::bind(host).is_err() {
            eprintln!("skipped: no {from} or {host} here");
            continue;
        }
        let (mut a, b) = (bind(from), bind(host));
        let to = b.local_address().unwrap();
        sys::set_option(&b, libc::IPPROTO_IP, libc::IP_RECVTTL, 1_i32).unwrap();
        if to.is_ipv6() {
            sys::set_option(&b, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1_i32).unwrap();
        }
        let mut hops_of = |run: Run<'_>| {
            let mut outcome = Sent::default();
            a.send(std::iter::once(run), &mut outcome);
            assert_eq!(outcome, sent(run.count()));
            (0..run.count()).map(|_| hops(&b).unwrap()).min().unwrap()
        };
        let usual = hops_of(Run::single(to, 0, b"an initiation"));
        assert_eq!(hops_of(Run::single(to, 0xb8, &data(0, 100))), usual, "lane 0");
        for owner in 1..=15 {
            let bytes = data(owner, 300);
            let own = usual + i32::from(owner);
            assert_eq!(hops_of(Run::single(to, 0, &bytes)), own, "{from} {owner}");
            // With all that a message can have beside it.
            assert_eq!(hops_of(Run { to, tos: 0xb8, segment: 1400, bytes: &bytes }), own);
        }
        let runs = [data(3, 300), data(3, 200)].concat();
        let mut outcome = Sent::default();
        sys::set_option(&b, libc::SOL_UDP, libc::UDP_GRO, 0_i32).unwrap();
        a.send(std::iter::once(Run { to, tos: 0xb8, segment: 300, bytes: &runs }), &mut outcome);
        assert_eq!([hops(&b), hops(&b)], [Some(usual + 3); 2], "a run of two");
    }
    let most = Hops { v4: Some(255), v6: None };
    let (bytes, to) = (data(2, 20), "127.0.0.1:9".parse().unwrap());
    assert_eq!(most.of_run(&Run::single(to, 0, &bytes)).unwrap().2, 253);
    assert_eq!(Hops::default().of_run(&Run::single(to, 0, &bytes)), None);
}

#[test]
fn more_runs_than_go_with_one_call_keep_their_order() {
    let _in_order = OneCore::stay();
    let (mut a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let to = b.local_address().unwrap();
    let bytes: Vec<Vec<u8>> = (0..BATCH + 10).map(|i| vec![i as u8; 300]).collect();
    let runs = bytes.iter().map(|bytes| Run { to, tos: 0, segment: 100, bytes });
    let mut outcome = Sent::default();
    a.send(runs, &mut outcome);
    let count = 3 * bytes.len();
    assert_eq!(outcome, sent(count as u64));
    let expected: Vec<_> = bytes.iter().flat_map(|b| b.chunks(100).map(<[u8]>::to_vec)).collect();
    assert_same(&receive(&b, count), &expected, "");
}

#[test]
fn where_the_kernel_refuses_to_cut_nothing_is_lost_and_it_is_asked_again_later() {
    let _in_order = OneCore::stay();
    let (mut a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let to = b.local_address().unwrap();
    // The kernel cuts no runs of a socket that sends without checksums.
    sys::set_option(&a, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1_i32).unwrap();
    let bytes = pattern(10_500);
    let runs = || {
        [
            Run::single(to, 0, b"before"),
            Run { to, tos: 0, segment: 1000, bytes: &bytes },
            Run { to, tos: 0xb8, segment: 700, bytes: &bytes[..1500] },
        ]
        .into_iter()
    };
    let expected: Vec<_> = runs().flat_map(Run::singles).map(|run| run.bytes.to_vec()).collect();
    assert_eq!(expected.len(), 1 + 11 + 3);
    for round in 0..2 {
        let mut outcome = Sent::default();
        a.send(runs(), &mut outcome);
        assert_eq!(outcome, sent(15), "in round {round}");
        assert_same(&receive(&b, 15), &expected, &format!("in round {round}"));
        let Offload::Off(reason) = a.segmentation() else { panic!("in round {round}") };
        assert!(reason.contains("refused: "), "{reason}");
        // It would go now; that isn't tried.
        sys::set_option(&a, libc::SOL_SOCKET, libc::SO_NO_CHECK, 0_i32).unwrap();
    }
    // Until its time comes.
    let again = a.segmentation.again.as_mut().unwrap();
    assert!(*again > Instant::now() + SINGLY_FOR / 2);
    *again = Instant::now();
    let mut outcome = Sent::default();
    a.send(runs(), &mut outcome);
    assert_eq!((outcome, a.segmentation()), (sent(15), &Offload::On));
    assert_same(&receive(&b, 15), &expected, "tried again");
}

#[test]
fn a_run_that_is_too_long_for_the_way_says_nothing_of_cutting() {
    let test = "net::udp::send::tests::a_run_that_is_too_long_for_the_way_says_nothing_of_cutting";
    if !in_private_network(test) {
        return;
    }
    let [near, far] = ["near", "far"].map(|name| Host::create(name).unwrap());
    topology::cable((&near, "eth0", None), (&far, "eth0")).unwrap();
    near.address("eth0", [10, 0, 0, 1].into(), 24).unwrap();
    far.address("eth0", [10, 0, 0, 2].into(), 24).unwrap();
    near.ip("link set eth0 mtu 1300").unwrap();
    let mut a = near.enter(|| bind("10.0.0.1:0")).unwrap();
    let b = far.enter(|| bind("10.0.0.2:5000")).unwrap();
    let to = "10.0.0.2:5000".parse().unwrap();
    wait_for_way(&mut a, &b, to);
    let bytes = pattern(6000);
    let (long, fits) = (
        Run { to, tos: 0, segment: 1400, bytes: &bytes },
        Run { to, tos: 0, segment: 1272, bytes: &bytes },
    );
    let mut outcome = Sent::default();
    a.send([long, fits].into_iter(), &mut outcome);
    // 4 of 1,400 bytes and 1 of 400; 4 of 1,272 and 1 of 912.
    assert_eq!(outcome, Sent { sent: 1 + 5, too_big: 4, ..Sent::default() });
    assert_eq!((a.take_too_big(), a.take_too_big()), (vec![to], vec![]));
    assert_eq!(*a.segmentation(), Offload::On);
    let received = receive(&b, 6);
    let expected: Vec<_> =
        std::iter::once(&bytes[5600..]).chain(bytes.chunks(1272)).map(<[u8]>::to_vec).collect();
    assert_same(&received, &expected, "");

    near.ip("link set eth0 mtu 1500").unwrap();
    let mut outcome = Sent::default();
    a.send(std::iter::once(long), &mut outcome);
    assert_eq!(outcome, sent(5));
    assert!(receive(&b, 5).concat() == bytes);

    // Nobody there: that isn't the cutting's fault either.
    let nowhere = Run { to: "192.0.2.1:9".parse().unwrap(), ..fits };
    let mut outcome = Sent::default();
    a.send([nowhere, fits].into_iter(), &mut outcome);
    assert_eq!(outcome, Sent { sent: 5, unreachable: 5, ..Sent::default() });
    assert_eq!(a.take_too_big(), vec![]);
    assert_eq!(*a.segmentation(), Offload::On);
}

/// A cable carries nothing for up to a second after both its ends were switched on.
fn wait_for_way(a: &mut UdpSocket, b: &UdpSocket, to: SocketAddr) {
    let end = Instant::now() + Duration::from_secs(30);
    let mut ring = DatagramRing::default();
    loop {
        a.send(std::iter::once(Run::single(to, 0, b"anybody?")), &mut Sent::default());
        std::thread::sleep(Duration::from_millis(10));
        if ring.fetch(b).unwrap() > 0 {
            break;
        }
        assert!(Instant::now() < end, "the cable carries nothing");
    }
    // What was kept until the neighbour was known comes before this.
    a.send(std::iter::once(Run::single(to, 0, b"that was all")), &mut Sent::default());
    let mut over = false;
    while !over {
        assert!(Instant::now() < end, "the last datagram didn't come");
        ring.lend(&mut 0, |messages| {
            over = messages.iter().any(|message| message.bytes.ends_with(b"that was all"));
        });
        ring.fetch(b).unwrap();
    }
}

#[test]
fn a_card_that_can_not_cut_leaves_it_to_the_kernel() {
    let _in_order = OneCore::stay();
    let test = "net::udp::send::tests::a_card_that_can_not_cut_leaves_it_to_the_kernel";
    if !in_private_network(test) {
        return;
    }
    let Some(ethtool) = anteroom_lab::programs::find("ethtool") else {
        eprintln!("skipped: there is no ethtool");
        return;
    };
    let [near, far] = ["near", "far"].map(|name| Host::create(name).unwrap());
    topology::cable((&near, "eth0", None), (&far, "eth0")).unwrap();
    near.address("eth0", [10, 0, 0, 1].into(), 24).unwrap();
    far.address("eth0", [10, 0, 0, 2].into(), 24).unwrap();
    let mut a = near.enter(|| bind("10.0.0.1:0")).unwrap();
    let b = far.enter(|| bind("10.0.0.2:5000")).unwrap();
    let to = "10.0.0.2:5000".parse().unwrap();
    wait_for_way(&mut a, &b, to);
    let bytes = pattern(20_000);
    for features in [
        &["tx-udp-segmentation", "off"][..],
        &["gso", "off"],
        &["tx-checksum-ip-generic", "off"],
        &["tx", "off", "sg", "off"],
    ] {
        near.run(&ethtool, &[&["-K", "eth0"], features].concat()).unwrap();
        let mut outcome = Sent::default();
        let runs = [
            Run { to, tos: 0, segment: 1400, bytes: &bytes },
            Run { to, tos: 0, segment: 900, bytes: &bytes[..1000] },
        ];
        a.send(runs.into_iter(), &mut outcome);
        assert_eq!(outcome, sent(15 + 2), "{features:?}: {}", a.segmentation());
        assert!(receive(&b, 17).concat() == [&bytes[..], &bytes[..1000]].concat(), "{features:?}");
    }
}
