//! Frames that a fuzzer makes: from addresses that mean something, with everything else as it likes.

use std::net::{Ipv4Addr, SocketAddr};

use anteroom_agent_core::batch::VlanTag;
use anteroom_agent_core::checksum::{self, Sum};
use anteroom_agent_core::port::PortId;
use anteroom_agent_core::vnet::VnetHeader;
use anteroom_agent_core::wire::arp::{ArpPacket, Operation};
use anteroom_proto::mac::MacAddr;
use anteroom_sim::packet;
use anteroom_sim::plan::mac;
use arbitrary::{Result, Unstructured};

/// Someone on the underlay whom nobody knows.
pub(super) fn stranger() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 7], 4_000))
}

/// Uplink or a device port.
pub(super) fn port(input: &mut Unstructured<'_>) -> Result<PortId> {
    Ok(match input.int_in_range(0..=4)? {
        0 | 1 => PortId::device(0),
        2 => PortId::device(1),
        3 => PortId::UPLINK,
        _ => PortId::device(7),
    })
}

/// A tag beside the frame, seldom.
pub(super) fn vlan(input: &mut Unstructured<'_>) -> Result<Option<VlanTag>> {
    Ok(match input.int_in_range(0..=15)? {
        0 => Some(VlanTag { protocol: 0x8100, control: input.arbitrary()? }),
        1 => Some(VlanTag { protocol: 0x88a8, control: input.arbitrary()? }),
        _ => None,
    })
}

/// What the kernel says of a frame: mostly nothing, else anything.
pub(super) fn vnet(input: &mut Unstructured<'_>, len: usize) -> Result<VnetHeader> {
    Ok(match input.int_in_range(0..=7)? {
        0 => VnetHeader {
            flags: 1,
            gso_type: VnetHeader::GSO_TCPV4,
            hdr_len: 54,
            gso_size: input.arbitrary()?,
            csum_start: 34,
            csum_offset: 16,
        },
        1 => VnetHeader {
            flags: input.arbitrary()?,
            gso_type: input.arbitrary()?,
            hdr_len: len as u16,
            gso_size: input.arbitrary()?,
            csum_start: input.arbitrary()?,
            csum_offset: input.arbitrary()?,
        },
        _ => VnetHeader::default(),
    })
}

pub(super) fn address(input: &mut Unstructured<'_>) -> Result<Ipv4Addr> {
    Ok(match input.int_in_range(0..=15)? {
        0 | 1 => Ipv4Addr::new(10, 20, 1, 10),
        2 => Ipv4Addr::new(10, 20, 1, 11),
        3 => Ipv4Addr::new(10, 20, 1, 12),
        4 | 5 => Ipv4Addr::new(10, 20, 4, 10),
        6 => Ipv4Addr::new(10, 20, 9, 9),
        7 => Ipv4Addr::new(10, 20, 1, 200),
        8 => Ipv4Addr::new(10, 20, 1, 1),
        9 => Ipv4Addr::new(10, 20, 0, 2),
        10 => Ipv4Addr::new(10, 20, 0, 53),
        11 => Ipv4Addr::new(10, 20, 1, 123),
        12 => Ipv4Addr::new(192, 0, 2, 1),
        13 => Ipv4Addr::BROADCAST,
        14 => Ipv4Addr::new(10, 20, 1, input.arbitrary()?),
        _ => Ipv4Addr::from(input.arbitrary::<u32>()?),
    })
}

fn ether(input: &mut Unstructured<'_>) -> Result<MacAddr> {
    Ok(match input.int_in_range(0..=11)? {
        0 | 1 => mac(0xde, 1),
        2 => mac(0xde, 2),
        3 => mac(0xde, 3),
        4 => mac(0xde, 4),
        5 => mac(0x01, 1),
        6 => MacAddr([0xff; 6]),
        7 => MacAddr([1, 0x80, 0xc2, 0, 0, input.arbitrary()?]),
        8 => mac(0xa0, 1),
        9 => mac(0xb0, 1),
        10 => mac(0xcc, input.arbitrary()?),
        _ => MacAddr(input.arbitrary()?),
    })
}

/// Where frames of addresses come from, mostly as it should be.
fn home(address: Ipv4Addr) -> MacAddr {
    match address.octets() {
        [10, 20, 1, last @ 10..=12] => mac(0xde, last - 9),
        _ => mac(0x01, 1),
    }
}

fn service_port(input: &mut Unstructured<'_>) -> Result<u16> {
    Ok(match input.int_in_range(0..=9)? {
        0..=2 => 104,
        3 => 4_006,
        4 => 7_000,
        5 => 53,
        6 => 123,
        7 => 67,
        8 => 40_000,
        _ => input.arbitrary()?,
    })
}

/// An IPv4 packet in its frame.
pub(super) fn ipv4(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let (source, destination) = (address(input)?, address(input)?);
    let (near, far) = (service_port(input)?, service_port(input)?);
    let len = usize::from(input.arbitrary::<u16>()?) % 3_000;
    let payload = vec![0x5a; len];
    let mut packet = match input.int_in_range(0..=7)? {
        0..=3 => {
            let flags = [0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x00][input.choose_index(7)?];
            packet::tcp((source, near), (destination, far), flags, &payload)
        }
        4 | 5 => packet::udp((source, near), (destination, far), &payload),
        6 => packet::echo(source, destination, input.arbitrary()?, near, &payload),
        _ => {
            // An ICMP message that quotes something.
            let quoted = packet::tcp((destination, far), (source, near), 0x10, &[]);
            let mut message = vec![input.arbitrary()?, input.arbitrary()?, 0, 0, 0, 0, 5, 0xdc];
            message.extend_from_slice(&quoted);
            let sum = Sum::new().bytes(&message).checksum();
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            packet::ipv4(source, destination, 1, &message)
        }
    };
    match input.int_in_range(0..=7)? {
        // A fragment of it.
        0 | 1 => {
            let word: u16 = input.arbitrary()?;
            packet[6..8].copy_from_slice(&(word & 0x607f).to_be_bytes());
            packet[4..6].copy_from_slice(&(u16::from(word & 1 == 1) + 7).to_be_bytes());
            reseal(&mut packet);
        }
        // Something about it is wrong.
        2 => {
            let place = input.choose_index(packet.len())?;
            packet[place] ^= input.arbitrary::<u8>()?;
            if input.arbitrary()? {
                reseal(&mut packet);
            }
        }
        _ => {}
    }
    let (to, from) = if input.int_in_range(0..=5)? == 0 {
        (ether(input)?, ether(input)?)
    } else {
        (home(destination), home(source))
    };
    Ok(packet::frame(to, from, 0x0800, &packet))
}

fn reseal(packet: &mut [u8]) {
    let header = usize::from(packet[0] & 15) * 4;
    if (20..=packet.len()).contains(&header) {
        packet[10..12].fill(0);
        let sum = checksum::checksum(&packet[..header]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// An ARP packet in its frame.
pub(super) fn arp(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let (sender, target) = (address(input)?, address(input)?);
    let sender_mac = if input.int_in_range(0..=3)? == 0 { ether(input)? } else { home(sender) };
    let reply: bool = input.arbitrary()?;
    let arp = ArpPacket {
        operation: if reply { Operation::Reply } else { Operation::Request },
        sender_mac,
        sender: if input.int_in_range(0..=7)? == 0 { Ipv4Addr::UNSPECIFIED } else { sender },
        target_mac: if reply { home(target) } else { MacAddr([0; 6]) },
        target,
    };
    let to = if reply { home(target) } else { MacAddr([0xff; 6]) };
    let to = if input.int_in_range(0..=7)? == 0 { ether(input)? } else { to };
    let from = if input.int_in_range(0..=7)? == 0 { ether(input)? } else { sender_mac };
    Ok(arp.to_frame(to, from).to_vec())
}

/// A frame of another kind, or of any bytes.
pub(super) fn other(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let kinds = [0x888e, 0x88cc, 0x86dd, 0x0800, 0x0806, 0x8100, 0x88a8, 0x0026, 0x88b5];
    let kind = kinds[input.choose_index(kinds.len())?];
    let (to, from) = (ether(input)?, ether(input)?);
    let len = usize::from(input.arbitrary::<u8>()?).min(input.len());
    let payload = input.bytes(len)?;
    let mut frame = packet::frame(to, from, kind, payload);
    if input.int_in_range(0..=7)? == 0 {
        frame.truncate(usize::from(input.arbitrary::<u8>()?) % (frame.len() + 1));
    }
    Ok(frame)
}

/// A DHCP message in its frame.
pub(super) fn dhcp(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let from_server: bool = input.arbitrary()?;
    let client = ether(input)?;
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[1 + u8::from(from_server), 1, 6]);
    message[16..20].copy_from_slice(&address(input)?.octets());
    message[28..34].copy_from_slice(&client.0);
    message[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    message.extend([53, 1, input.int_in_range(0..=9)?]);
    message.extend([54, 4]);
    message.extend(address(input)?.octets());
    let len = usize::from(input.arbitrary::<u8>()? & 31).min(input.len());
    message.extend_from_slice(input.bytes(len)?);
    message.push(255);
    let (source, destination) = if from_server {
        (address(input)?, address(input)?)
    } else {
        (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)
    };
    let ports = if from_server { (67, 68) } else { (68, 67) };
    let packet = packet::udp((source, ports.0), (destination, ports.1), &message);
    let (to, from) =
        if from_server { (client, ether(input)?) } else { (MacAddr([0xff; 6]), client) };
    Ok(packet::frame(to, from, 0x0800, &packet))
}
