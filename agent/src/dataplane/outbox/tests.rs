use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anteroom_lab::namespace::in_private_network;
use anteroom_lab::order::OneCore;
use anteroom_lab::topology::{self, Host};
use nix::poll::{PollFd, PollFlags, poll};

use anteroom_agent_core::checksum;
use anteroom_agent_core::gso::Packets;

use super::*;
use crate::net::packet::{FrameRing, MAX_FRAME, PacketOptions, Unfit};

/// What shows that a cable carries frames: a broadcast of an experimental type.
const PROBE: [u8; 60] = {
    let mut frame = [0xff; 60];
    frame[6] = 2;
    (frame[12], frame[13]) = (0x88, 0xb5);
    frame
};

/// Two hosts on a cable: a socket to send from, and one that hears what arrives.
struct Cable {
    near: Host,
    ears: PacketSocket,
    ring: FrameRing,
    _in_order: OneCore,
}

fn open(host: &Host, super_frames: bool) -> PacketSocket {
    host.enter(|| {
        let index = nix::net::if_::if_nametoindex("eth0").unwrap();
        PacketSocket::open(index, PacketOptions { skip: None, super_frames, deaf: false }).unwrap()
    })
    .unwrap()
}

impl Cable {
    fn lay() -> Self {
        let [near, far] = ["near", "far"].map(|name| Host::create(name).unwrap());
        topology::cable((&near, "eth0", None), (&far, "eth0")).unwrap();
        let ears = open(&far, false);
        let _in_order = OneCore::stay();
        let mut cable = Self { near, ears, ring: FrameRing::default(), _in_order };
        cable.wait_until_live();
        cable
    }

    /// Frames go nowhere while the kernel hasn't noticed yet that the cable is plugged in.
    fn wait_until_live(&mut self) {
        let mut outbox = self.outbox(false);
        let end = Instant::now() + Duration::from_secs(10);
        while !self.fetch(20).iter().any(|(_, frame)| *frame == PROBE) {
            assert!(Instant::now() < end, "no frame passes: {:?}", outbox.ports[0].counters);
            outbox.frame(PortId::UPLINK, VnetHeader::default(), None, &[&PROBE]);
            outbox.flush();
        }
    }

    fn outbox(&self, super_frames: bool) -> Outbox {
        let underlay = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Outbox::new(vec![Some(open(&self.near, super_frames))], underlay, None)
    }

    /// So many frames, or those that came within 5 s.
    fn hear(&mut self, count: usize) -> Vec<(Option<VlanTag>, Vec<u8>)> {
        let end = Instant::now() + Duration::from_secs(5);
        let mut heard = Vec::new();
        while heard.len() < count && Instant::now() < end {
            heard.extend(self.fetch(50).into_iter().filter(|(_, frame)| *frame != PROBE));
        }
        heard
    }

    /// What is there, or comes within so many milliseconds.
    fn fetch(&mut self, patience: u16) -> Vec<(Option<VlanTag>, Vec<u8>)> {
        poll(&mut [PollFd::new(self.ears.as_fd(), PollFlags::POLLIN)], patience).unwrap();
        let mut unfit = Unfit::default();
        self.ring.fetch(&self.ears, &mut unfit).unwrap();
        let mut heard = Vec::new();
        self.ring.lend(&mut unfit, |frames| {
            heard.extend(frames.iter().map(|frame| (frame.vlan, frame.bytes.to_vec())));
        });
        heard
    }
}

/// A broadcast UDP datagram over IPv4 whose checksum is still to be completed, and its header.
fn unfinished() -> (VnetHeader, Vec<u8>) {
    let mut frame = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
    frame.extend([0x08, 0x00]);
    frame.extend([0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = checksum::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let pseudo = checksum::Sum::pseudo_ipv4([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 17, 12);
    frame.extend([0x10, 0, 0x20, 0, 0, 12]);
    frame.extend(pseudo.fold().to_be_bytes());
    frame.extend(*b"data");
    let vnet = VnetHeader {
        flags: VnetHeader::FLAG_NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 6,
        ..VnetHeader::default()
    };
    (vnet, frame)
}

/// What is left when the sum of a good datagram's bytes is taken: nothing.
fn remainder(frame: &[u8]) -> u16 {
    let pseudo = checksum::Sum::pseudo_ipv4([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 17, 12);
    pseudo.bytes(&frame[34..46]).checksum()
}

#[test]
fn a_socket_without_super_frames_completes_checksums_and_tags_frames() {
    let test = "dataplane::outbox::tests::a_socket_without_super_frames_completes_checksums_and_tags_frames";
    if !in_private_network(test) {
        return;
    }
    let mut cable = Cable::lay();
    let mut outbox = cable.outbox(false);
    let (vnet, frame) = unfinished();
    assert_ne!(remainder(&frame), 0);
    let tag = VlanTag { protocol: 0x8100, control: 0xa02a };
    outbox.frame(PortId::UPLINK, vnet, Some(tag), &[&frame[..20], &frame[20..]]);
    let super_frame =
        VnetHeader { gso_type: VnetHeader::GSO_UDP_L4, gso_size: 2, hdr_len: 42, ..vnet };
    outbox.frame(PortId::UPLINK, super_frame, None, &[&frame]);
    let outside = VnetHeader { csum_start: 4000, ..vnet };
    outbox.frame(PortId::UPLINK, outside, None, &[&frame]);
    outbox.frame(PortId::UPLINK, VnetHeader::default(), None, &[&frame[..13]]);
    outbox.frame(PortId::UPLINK, VnetHeader::default(), None, &[&vec![0; MAX_FRAME + 1]]);
    outbox.frame(PortId::device(7), VnetHeader::default(), None, &[&frame]);
    outbox.flush();
    let heard = cable.hear(3);
    assert_eq!(heard.len(), 3, "{heard:?}");
    assert_eq!([&heard[1].1[42..], &heard[2].1[42..]], [b"da", b"ta"], "cut");
    assert_eq!(heard[0].0, Some(tag));
    assert_eq!(remainder(&heard[0].1), 0, "{heard:02x?}");
    let counters = outbox.ports[0].counters;
    assert_eq!((counters.sent, counters.egress_failed), (3, 3), "{counters:?}");
}

#[test]
fn a_socket_with_super_frames_leaves_checksums_to_the_kernel_behind_a_tag_too() {
    let test = "dataplane::outbox::tests::a_socket_with_super_frames_leaves_checksums_to_the_kernel_behind_a_tag_too";
    if !in_private_network(test) {
        return;
    }
    let mut cable = Cable::lay();
    // Makes the near end's kernel complete what it is asked to, as a card without offloads has it.
    let features = ["-K", "eth0", "tx", "off", "tso", "off", "gso", "off"];
    let Some(ethtool) = anteroom_lab::programs::find("ethtool") else { return };
    cable.near.run(ethtool, &features).unwrap();
    let mut outbox = cable.outbox(true);
    let (vnet, frame) = unfinished();
    let tag = VlanTag { protocol: 0x88a8, control: 7 };
    outbox.frame(PortId::UPLINK, vnet, Some(tag), &[&frame]);
    outbox.frame(PortId::UPLINK, vnet, None, &[&frame]);
    outbox.flush();
    let heard = cable.hear(2);
    assert_eq!(heard.len(), 2, "{heard:?} {:?}", outbox.ports[0].counters);
    assert_eq!([heard[0].0, heard[1].0], [Some(tag), None]);
    for (_, bytes) in &heard {
        assert_eq!(remainder(bytes), 0, "{bytes:02x?}");
    }
}

/// A super-frame as the engine makes it of `count` packets with `size` bytes of payload, the last of them with one
/// less; and those packets' frames.
fn merged(tcp: bool, count: usize, size: usize) -> (VnetHeader, Vec<u8>, Vec<Vec<u8>>) {
    let (protocol, mut transport) = if tcp {
        let mut header = vec![0x10, 0, 0, 104, 0xff, 0xff, 0xff, 0, 0, 0, 0, 9, 8 << 4, 0x18];
        header.extend([1, 1, 0, 0, 0, 0, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
        (6_u8, header)
    } else {
        (17, vec![0x10, 0, 0x20, 0, 0, 0, 0, 0])
    };
    let payload = count * size - 1;
    transport.extend((0..payload).map(|i| (i * 7 + i / 251) as u8));
    let len = u16::try_from(transport.len()).unwrap();
    let addresses = [[10, 0, 0, 1], [10, 0, 0, 2]];
    let pseudo =
        checksum::Sum::pseudo_ipv4(addresses[0].into(), addresses[1].into(), protocol, len);
    let field = if tcp { 16 } else { 6 };
    transport[field..field + 2].copy_from_slice(&pseudo.fold().to_be_bytes());
    if !tcp {
        transport[4..6].copy_from_slice(&len.to_be_bytes());
    }
    let mut packet = vec![0x45, 0];
    packet.extend((len + 20).to_be_bytes());
    packet.extend([0xff, 0xfe, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(addresses.concat());
    let sum = checksum::checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(transport);
    let vnet = VnetHeader {
        flags: VnetHeader::FLAG_NEEDS_CSUM,
        gso_type: if tcp { VnetHeader::GSO_TCPV4 } else { VnetHeader::GSO_UDP_L4 },
        hdr_len: 0,
        gso_size: u16::try_from(size).unwrap(),
        csum_start: 34,
        csum_offset: u16::try_from(field).unwrap(),
    };
    let ethernet = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 8, 0]].concat();
    let mut bytes = packet.clone();
    let mut packets = Packets::new(&mut bytes, 14, &vnet, 65_535).unwrap();
    let mut frames = Vec::new();
    while let Some(packet) = packets.next() {
        frames.push([&ethernet, &*packet].concat());
    }
    assert_eq!(frames.len(), count);
    (vnet, [ethernet, packet].concat(), frames)
}

#[test]
fn super_frames_fall_apart_into_the_same_packets_in_the_kernel_and_here() {
    let test = "dataplane::outbox::tests::super_frames_fall_apart_into_the_same_packets_in_the_kernel_and_here";
    if !in_private_network(test) {
        return;
    }
    let mut cable = Cable::lay();
    let features =
        ["-K", "eth0", "tx", "off", "tso", "off", "gso", "off", "tx-udp-segmentation", "off"];
    let Some(ethtool) = anteroom_lab::programs::find("ethtool") else { return };
    cable.near.run(ethtool, &features).unwrap();
    for (super_frames, cuts_udp) in [(true, false), (true, true), (false, false)] {
        let mut outbox = cable.outbox(super_frames);
        outbox.ports[0].cuts_udp = cuts_udp;
        for (tcp, count, size) in
            [(true, 40, 1368), (true, 5, 100), (false, 44, 1400), (false, 64, 100)]
        {
            let (vnet, frame, packets) = merged(tcp, count, size);
            // In many parts, as it comes out of a tunnel, with others before and behind it.
            let mut parts: Vec<&[u8]> = vec![&frame[..14], &frame[14..42]];
            parts.extend(frame[42..].chunks(1400));
            let other = unfinished().1;
            outbox.frame(PortId::UPLINK, VnetHeader::default(), None, &[&other]);
            outbox.frame(PortId::UPLINK, vnet, None, &parts);
            outbox.frame(PortId::UPLINK, VnetHeader::default(), None, &[&other]);
            outbox.flush();
            let heard: Vec<_> = cable.hear(count + 2).into_iter().map(|(_, bytes)| bytes).collect();
            let expected = [vec![other.clone()], packets, vec![other]].concat();
            let what = (super_frames, cuts_udp, tcp, size);
            assert_eq!(heard.len(), expected.len(), "{what:?} {:?}", outbox.ports[0].counters);
            for (number, (heard, expected)) in heard.iter().zip(&expected).enumerate() {
                assert!(heard == expected, "{what:?} {number}: {heard:02x?} {expected:02x?}");
            }
        }
        assert_eq!(outbox.ports[0].counters.egress_failed, 0);
        let (vnet, frame, _) = merged(true, 2, 100);
        let wrong = VnetHeader { gso_type: VnetHeader::GSO_TCPV6, ..vnet };
        outbox.frame(PortId::UPLINK, wrong, None, &[&frame]);
        outbox.flush();
        assert_eq!(outbox.ports[0].counters.egress_failed, 1, "it isn't what it says it is");
    }
}

#[test]
fn an_interface_that_refuses_udp_super_frames_gets_their_packets() {
    let test =
        "dataplane::outbox::tests::an_interface_that_refuses_udp_super_frames_gets_their_packets";
    if !in_private_network(test) {
        return;
    }
    let mut cable = Cable::lay();
    let mut outbox = cable.outbox(true);
    let (vnet, frame, packets) = merged(false, 8, 1200);
    // The kernel refuses a sum that isn't where UDP has it, as an older one refuses the kind of frame.
    let refused = VnetHeader { csum_offset: 0, ..vnet };
    for vnet in [refused, vnet] {
        outbox.frame(PortId::UPLINK, vnet, None, &[&frame]);
    }
    outbox.flush();
    let heard = cable.hear(16);
    let heard: Vec<_> = heard.into_iter().map(|(_, bytes)| bytes).collect();
    assert!(heard == [packets.clone(), packets].concat(), "{:?}", outbox.ports[0].counters);
    assert!(outbox.ports[0].cuts_udp);
    assert_eq!(outbox.ports[0].counters.egress_failed, 0);
}

#[test]
fn more_than_fits_between_two_flushes_is_sent_in_order() {
    let test = "dataplane::outbox::tests::more_than_fits_between_two_flushes_is_sent_in_order";
    if !in_private_network(test) {
        return;
    }
    let mut cable = Cable::lay();
    let mut outbox = cable.outbox(true);
    let count = RECORDS * 2 + 10;
    for number in 0..count {
        let mut frame = unfinished().1;
        frame[44..46].copy_from_slice(&u16::try_from(number).unwrap().to_be_bytes());
        outbox.frame(PortId::UPLINK, VnetHeader::default(), None, &[&frame]);
    }
    outbox.flush();
    let heard = cable.hear(count);
    let numbers: Vec<usize> =
        heard.iter().map(|(_, b)| usize::from(u16::from_be_bytes([b[44], b[45]]))).collect();
    assert_eq!(numbers, (0..count).collect::<Vec<_>>(), "{:?}", outbox.ports[0].counters);
}

#[test]
fn a_dead_interface_is_noticed_and_costs_what_was_for_it() {
    let test = "dataplane::outbox::tests::a_dead_interface_is_noticed_and_costs_what_was_for_it";
    if !in_private_network(test) {
        return;
    }
    let cable = Cable::lay();
    let mut outbox = cable.outbox(true);
    cable.near.ip("link set eth0 down").unwrap();
    outbox.frame(PortId::UPLINK, VnetHeader::default(), None, &[&unfinished().1]);
    outbox.flush();
    assert!(outbox.ports[0].lost);
    outbox.ports[0].socket = None;
    outbox.frame(PortId::UPLINK, VnetHeader::default(), None, &[&unfinished().1]);
    outbox.flush();
    assert_eq!(outbox.ports[0].counters.egress_failed, 2);
}

/// However much lanes send at once, nothing of theirs leaves before what lane 0 was given earlier.
#[test]
fn lane_0_goes_first_whatever_fills_up() {
    let _in_order = OneCore::stay();
    let group = UdpSocket::bind_group("127.0.0.1:0".parse().unwrap(), 2, false).unwrap();
    let mut sockets = group.sockets.into_iter();
    let underlay = sockets.next().unwrap();
    let mut outbox = Outbox::new(Vec::new(), underlay, sockets.next());
    let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    if crate::net::sys::grow_buffer(&server, crate::net::sys::Buffer::Receive, 4 << 20) < 2 << 20 {
        eprintln!("skipped: an ordinary user's sockets don't hold so much");
        return;
    }
    let to = server.local_addr().unwrap();
    let put = |outbox: &mut Outbox, lane: u8, number: u16| {
        let write = |room: &mut [u8]| {
            room[0] = lane;
            room[1..3].copy_from_slice(&number.to_be_bytes());
            30_000
        };
        match lane {
            0 => outbox.datagram(to, 0, 30_000, write),
            lane => outbox.lane_datagram(lane, to, 0, 30_000, write),
        }
    };
    let mut buffer = vec![0; 70_000];
    let mut receive = || {
        let length = server.recv(&mut buffer).unwrap();
        assert_eq!(length, 30_000);
        (buffer[0], u16::from_be_bytes([buffer[1], buffer[2]]))
    };
    // The lanes' buffer fills up again and again, with one of lane 0 waiting.
    for round in 0..20 {
        put(&mut outbox, 0, round);
        for number in 0..20 {
            put(&mut outbox, 1, number);
        }
        outbox.flush();
        assert_eq!(receive(), (0, round));
        for number in 0..20 {
            assert_eq!(receive(), (1, number), "in round {round}");
        }
    }
    assert_eq!(outbox.underlay_counters.sent, 20 * 21);
}

#[test]
fn datagrams_of_any_size_go_out_or_are_counted() {
    let mut outbox =
        Outbox::new(Vec::new(), UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap(), None);
    let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let to = server.local_addr().unwrap();
    let mut buffer = vec![0; 70_000];
    // More than the room for one flush, in datagrams that loopback carries.
    for round in 0..20_u8 {
        outbox.datagram(to, 0, 60_000, |room| {
            room.fill(round);
            room.len()
        });
        outbox.datagram(to, 0, 100, |_| 0);
        outbox.flush();
        let length = server.recv(&mut buffer).unwrap();
        assert_eq!((length, buffer[0], buffer[length - 1]), (60_000, round, round));
    }
    for _ in 0..20 {
        outbox.datagram(to, 0, 60_000, |room| room.len());
    }
    outbox.flush();
    outbox.datagram(to, 0, datagrams::ROOM + 1, |_| panic!("no such room was promised"));
    outbox.datagram(to, 0, 100, |_| usize::MAX);
    outbox.datagram(to, 0, 65_508, |room| room.len());
    outbox.flush();
    let counters = outbox.underlay_counters;
    assert_eq!(counters.sent + counters.queue_full, 41, "{counters:?}");
    assert_eq!(counters.too_big, 2, "{counters:?}");
}
