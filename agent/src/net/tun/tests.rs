use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anteroom_lab::namespace::in_private_network;
use anteroom_lab::topology;

use super::*;
use crate::net::packet::{FrameRing, PacketSocket, Unfit};

const OWN: Ipv4Addr = Ipv4Addr::new(10, 20, 9, 8);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 10);
const HOST: GatewayId = GatewayId::from_bytes([7; 16]);
const ENOUGH: Duration = Duration::from_secs(20);

/// A device with an address and a route, as a host has it.
fn device(super_frames: bool) -> PacketSocket {
    let name: InterfaceName = "anteroom0".parse().unwrap();
    let fd = open(&name, super_frames).unwrap();
    for step in [
        "link set anteroom0 addrgenmode none",
        "link set anteroom0 mtu 1420 up",
        &format!("address add {OWN}/32 dev anteroom0"),
        &format!("route add {FAR}/32 dev anteroom0 src {OWN}"),
    ] {
        topology::ip(step).unwrap();
    }
    PacketSocket::of_tun(fd, TunFrames::of(HOST))
}

/// The next frame for which `wanted` has something to say.
fn next<T>(
    device: &PacketSocket,
    ring: &mut FrameRing,
    mut wanted: impl FnMut(&VnetHeader, &[u8]) -> Option<T>,
) -> T {
    let until = Instant::now() + ENOUGH;
    let mut found = None;
    while found.is_none() {
        assert!(Instant::now() < until, "nothing came");
        let mut unfit = Unfit::default();
        match ring.fetch(device, &mut unfit) {
            Ok(0) => std::thread::yield_now(),
            Ok(_) => ring.lend(&mut unfit, |frames| {
                for frame in frames.iter() {
                    found = found.take().or_else(|| wanted(&frame.vnet, frame.bytes));
                }
            }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(unfit, Unfit::default());
    }
    found.unwrap()
}

#[test]
fn packets_pass_with_the_header_that_ports_have() {
    if !in_private_network("net::tun::tests::packets_pass_with_the_header_that_ports_have") {
        return;
    }
    let device = device(true);
    let mut ring = FrameRing::default();
    let socket = UdpSocket::bind((OWN, 4000)).unwrap();
    socket.set_read_timeout(Some(ENOUGH)).unwrap();
    socket.send_to(b"question", (FAR, 5000)).unwrap();
    let (vnet, frame) = next(&device, &mut ring, |vnet, bytes| {
        bytes.ends_with(b"question").then(|| (*vnet, bytes.to_vec()))
    });
    assert_eq!(frame[..14], ethernet::header(FAR_SIDE, MacAddr::of_host(HOST), ethernet::IPV4));
    assert_eq!((&frame[26..30], &frame[30..34]), (&OWN.octets()[..], &FAR.octets()[..]));
    if vnet.flags & VnetHeader::FLAG_NEEDS_CSUM != 0 {
        assert_eq!(vnet.csum_start, 34, "from the Ethernet header");
    }
    // What isn't IPv4 goes nowhere, and harms nothing.
    let mut outcome = Sent::default();
    let arp = ethernet::header(MacAddr::BROADCAST, FAR_SIDE, ethernet::ARP);
    send(&device, &VnetHeader::default(), &[&arp, &[0; 28]], &mut outcome);
    send(&device, &VnetHeader::default(), &[&[1, 2, 3]], &mut outcome);
    assert_eq!(outcome, Sent::default());
    // The answer: addresses and ports swapped, no checksum.
    let answer = {
        let mut packet = frame[14..].to_vec();
        packet[12..16].copy_from_slice(&FAR.octets());
        packet[16..20].copy_from_slice(&OWN.octets());
        packet[20..24].copy_from_slice(&[0x13, 0x88, 0x0f, 0xa0]);
        packet[24..26].copy_from_slice(&16_u16.to_be_bytes());
        packet[26..28].fill(0);
        packet[28..].copy_from_slice(b"answered");
        packet
    };
    // The header in one part with some of the packet, as the engine may have it.
    let (first, rest) = answer.split_at(3);
    let head = [&frame[..14], first].concat();
    send(&device, &VnetHeader::default(), &[&head, rest], &mut outcome);
    assert_eq!((outcome.sent, outcome.failed), (1, 0), "{outcome:?}");
    let mut got = [0; 100];
    let (length, from) = socket.recv_from(&mut got).unwrap();
    assert_eq!((&got[..length], from), (&b"answered"[..], SocketAddr::from((FAR, 5000))));
}

#[test]
fn a_stream_comes_in_super_frames_that_can_go_back_as_they_are() {
    let name = "net::tun::tests::a_stream_comes_in_super_frames_that_can_go_back_as_they_are";
    if !in_private_network(name) {
        return;
    }
    // The far end is the machine itself: each frame goes back with its addresses swapped.
    let device = device(true);
    let done = std::sync::atomic::AtomicBool::new(false);
    let listener = std::net::TcpListener::bind((OWN, 5001)).unwrap();
    let text: Vec<u8> = (0..2_000_000_u32).map(|i| i.to_be_bytes()[3]).collect();
    let (large, most) = std::thread::scope(|scope| {
        let finished = &done;
        let echo = scope.spawn(move || {
            let mut ring = FrameRing::default();
            let (mut large, mut most) = (0_u32, 0);
            while !finished.load(std::sync::atomic::Ordering::Relaxed) {
                let mut unfit = Unfit::default();
                if ring.fetch(&device, &mut unfit).is_err() {
                    std::thread::sleep(Duration::from_micros(100));
                    continue;
                }
                ring.lend(&mut unfit, |frames| {
                    for frame in frames.iter_mut() {
                        let (from, to) =
                            (frame.bytes[26..30].to_vec(), frame.bytes[30..34].to_vec());
                        frame.bytes[26..30].copy_from_slice(&to);
                        frame.bytes[30..34].copy_from_slice(&from);
                        large += u32::from(frame.vnet.is_super_frame());
                        most = most.max(frame.bytes.len());
                        let mut outcome = Sent::default();
                        device.send_parts(&frame.vnet, &[&*frame.bytes], &mut outcome);
                        assert_eq!(outcome.failed, 0, "{:?}", frame.vnet);
                    }
                });
            }
            (large, most)
        });
        let sender = scope.spawn(|| {
            let mut stream = TcpStream::connect((FAR, 5001)).unwrap();
            stream.write_all(&text).unwrap();
        });
        let (mut stream, from) = listener.accept().unwrap();
        assert_eq!(from.ip(), FAR, "as it seems");
        stream.set_read_timeout(Some(ENOUGH)).unwrap();
        let mut got = Vec::new();
        let read = stream.read_to_end(&mut got);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        sender.join().unwrap();
        assert!(read.is_ok() && got == text, "{read:?}: {} bytes", got.len());
        echo.join().unwrap()
    });
    assert!(large > 0 && most > 1500, "{large} super-frames, the longest of {most} bytes");
}

#[test]
fn a_name_that_is_taken_is_refused_and_the_device_goes_with_its_descriptor() {
    let name =
        "net::tun::tests::a_name_that_is_taken_is_refused_and_the_device_goes_with_its_descriptor";
    if !in_private_network(name) {
        return;
    }
    let device = device(false);
    let taken = open(&"anteroom0".parse().unwrap(), false).unwrap_err();
    assert_eq!(taken.raw_os_error(), Some(libc::EBUSY), "{taken}");
    assert!(topology::ip("route show").unwrap().contains(&FAR.to_string()));
    drop(device);
    let routes = topology::ip("route show").unwrap();
    assert!(!routes.contains("anteroom0"), "{routes}");
    assert!(topology::ip("link show anteroom0").is_err());
    topology::ip("link add anteroom0 type veth peer name other").unwrap();
    assert!(open(&"anteroom0".parse().unwrap(), false).is_err(), "somebody else's interface");
}
