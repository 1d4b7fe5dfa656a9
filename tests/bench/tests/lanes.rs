//! Bulk takes lanes of its own, run by the packet thread or by others, and no flow is reordered for it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anteroom_bench::load::echo;
use anteroom_bench::subject::{Kind, Subject};
use anteroom_bench::tools::Tools;
use anteroom_bench::world::{Card, Device, World};
use anteroom_lab::namespace;
use anteroom_lab::order::OneCore;
use anteroom_lab::programs::{Profile, Programs};

const PATIENCE: Duration = Duration::from_secs(30);

/// Datagrams of the numbered flow, and their length. Bulk by far.
const NUMBERED: (u32, usize) = (4_000, 1200);

fn udp(world: &World, device: Device, port: u16) -> UdpSocket {
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    world.device(device).enter(bind).unwrap()
}

/// Sends numbered datagrams as fast as lets most of them through, and returns the numbers that came, in their order.
fn numbered(world: &World, (from, to): (Device, Device), port: u16) -> Vec<u32> {
    /// In place of a number: that was all.
    const END: u32 = u32::MAX;
    let (near, far) = (udp(world, from, 0), udp(world, to, port));
    near.connect((world.address(to), port)).unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut numbers, mut room) = (Vec::new(), [0; 2000]);
        while let Ok(len) = far.recv(&mut room) {
            assert_eq!(len, NUMBERED.1);
            match u32::from_be_bytes([room[0], room[1], room[2], room[3]]) {
                END => break,
                number => numbers.push(number),
            }
        }
        numbers
    });
    let mut bytes = vec![0x5a; NUMBERED.1];
    let mut send = |number: u32| {
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        near.send(&bytes)
    };
    for number in 0..NUMBERED.0 {
        send(number).unwrap();
        if number % 16 == 15 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    // The end may be lost as well.
    while !receiver.is_finished() {
        // Refused once nobody listens any more.
        let _ = send(END);
        std::thread::sleep(Duration::from_millis(10));
    }
    receiver.join().unwrap()
}

/// Sends the same bytes there and back.
fn exchange(world: &World, (from, to): (Device, Device), port: u16) {
    const LEN: usize = 3 << 20;
    let bytes: Vec<u8> = (0..LEN).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect();
    let listen = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    let listener = world.device(to).enter(listen).unwrap();
    let far = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut got = vec![0; LEN];
        stream.read_exact(&mut got).unwrap();
        stream.write_all(&got).unwrap();
    });
    let address = (world.address(to), port).into();
    let connect = || TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    let mut stream = world.device(from).enter(connect).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&bytes).unwrap();
    let mut got = vec![0; LEN];
    stream.read_exact(&mut got).unwrap();
    assert!(got == bytes, "other bytes came back");
    far.join().unwrap();
}

/// Nanoseconds that each lane thread of a process has worked.
fn worked(pid: u32) -> Vec<u64> {
    let mut worked = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let path = entry.unwrap().path();
        let read = |file| std::fs::read_to_string(path.join(file)).unwrap_or_default();
        if read("comm").starts_with("lanes-") {
            let text = read("schedstat");
            worked.push(text.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0));
        }
    }
    worked
}

/// Whether the lane threads of both gateways, where they have some, have worked for longer than handshakes take.
fn at_work(before: &[Vec<u64>], subject: &Subject) -> bool {
    let mut gateways = before.iter().zip(subject.pids().into_iter().map(worked));
    gateways.all(|(before, after)| {
        before.is_empty() || after.iter().sum::<u64>() > before.iter().sum::<u64>() + 10_000_000
    })
}

fn bulk_keeps_its_order(threads: [u8; 2]) {
    // Agents as well, which take over where this runs.
    let _one = OneCore::stay();
    let tools = Tools::of(Profile::Dev);
    let logs = tempfile::tempdir().unwrap();
    let kind = Kind::Lanes(format!("lanes-{}-{}", threads[0], threads[1]), threads);
    let mut subject = Subject::start(&kind, Card::Virtual, &tools, logs.path()).unwrap();
    let world = subject.world.as_ref().unwrap();
    let before: Vec<Vec<u64>> = subject.pids().into_iter().map(worked).collect();
    assert!(before.iter().map(Vec::len).eq(threads.map(usize::from)), "{before:?}");
    // Lanes open when bulk comes, and on a busy machine not at once.
    let deadline = Instant::now() + 4 * PATIENCE;
    exchange(world, (Device::A, Device::B), 6010);
    while !at_work(&before, &subject) {
        assert!(Instant::now() < deadline, "no lane thread works: {before:?}");
        exchange(world, (Device::A, Device::B), 6010);
    }
    std::thread::scope(|scope| {
        let there = scope.spawn(|| numbered(world, (Device::A, Device::B), 6001));
        let beside = scope.spawn(|| numbered(world, (Device::A, Device::B), 6002));
        let stream = scope.spawn(|| exchange(world, (Device::C, Device::D), 6003));
        for (what, numbers) in [("one", there), ("beside it", beside)] {
            let numbers = numbers.join().unwrap();
            let came = numbers.len();
            // Whatever a busy machine loses: a few are enough to be in order.
            assert!(came > 100, "{what}: {came} of {}", NUMBERED.0);
            let overtaken = numbers.windows(2).find(|pair| pair[0] >= pair[1]);
            assert_eq!(overtaken, None, "{what}, with {threads:?} lane threads");
        }
        stream.join().unwrap();
    });
    echo::wait_answered(world, (Device::A, Device::B), PATIENCE).unwrap();
    subject.must_run().unwrap();
}

fn inside(test: &str) -> bool {
    if !namespace::inside() {
        Programs::of(Profile::Dev).build(Profile::Dev, false).expect("the agent is built");
    }
    namespace::in_private_network(test)
}

#[test]
fn bulk_keeps_its_order_with_the_packet_thread_alone() {
    if inside("bulk_keeps_its_order_with_the_packet_thread_alone") {
        bulk_keeps_its_order([0, 0]);
    }
}

#[test]
fn bulk_keeps_its_order_with_one_lane_thread() {
    if inside("bulk_keeps_its_order_with_one_lane_thread") {
        bulk_keeps_its_order([1, 1]);
    }
}

#[test]
fn bulk_keeps_its_order_with_three_lane_threads() {
    if inside("bulk_keeps_its_order_with_three_lane_threads") {
        bulk_keeps_its_order([3, 3]);
    }
}

#[test]
fn bulk_keeps_its_order_between_gateways_with_different_lane_threads() {
    if inside("bulk_keeps_its_order_between_gateways_with_different_lane_threads") {
        bulk_keeps_its_order([0, 2]);
    }
}
