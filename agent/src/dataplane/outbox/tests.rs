use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anteroom_lab::namespace::in_private_network;
use anteroom_lab::topology::{self, Host};
use nix::poll::{PollFd, PollFlags, poll};

use anteroom_agent_core::checksum;

use super::*;
use crate::net::packet::{FrameRing, MAX_FRAME, PacketOptions, Unfit};

/// Two hosts on a cable: a socket to send from, and one that hears what arrives.
struct Cable {
    near: Host,
    ears: PacketSocket,
    ring: FrameRing,
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
        Self { near, ears, ring: FrameRing::default() }
    }

    fn outbox(&self, super_frames: bool) -> Outbox {
        let underlay = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Outbox::new(vec![Some(open(&self.near, super_frames))], underlay)
    }

    /// So many frames, or those that came within 5 s.
    fn hear(&mut self, count: usize) -> Vec<(Option<VlanTag>, Vec<u8>)> {
        let end = Instant::now() + Duration::from_secs(5);
        let mut heard = Vec::new();
        while heard.len() < count && Instant::now() < end {
            poll(&mut [PollFd::new(self.ears.as_fd(), PollFlags::POLLIN)], 50_u16).unwrap();
            let mut unfit = Unfit::default();
            self.ring.fetch(&self.ears, &mut unfit).unwrap();
            self.ring.lend(&mut unfit, |frames| {
                heard.extend(frames.iter().map(|frame| (frame.vlan, frame.bytes.to_vec())));
            });
        }
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
    let heard = cable.hear(1);
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_eq!(heard[0].0, Some(tag));
    assert_eq!(remainder(&heard[0].1), 0, "{heard:02x?}");
    let counters = outbox.ports[0].counters;
    assert_eq!((counters.sent, counters.egress_failed), (1, 4), "{counters:?}");
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

#[test]
fn datagrams_of_any_size_go_out_or_are_counted() {
    let mut outbox =
        Outbox::new(Vec::new(), UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap());
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
