//! What an attacker puts on a cable.

use std::net::Ipv4Addr;

use anteroom_lab::packet::checksum;

/// Stands in every payload that an attacker sends, so that it is known wherever it comes out.
pub const MARK: &[u8] = b"ATTACKED-BY-THE-LAB";

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Everybody.
pub const BROADCAST: Mac = [0xff; 6];

/// Whether the attacker's mark stands in a frame.
#[must_use]
pub fn is_marked(frame: &[u8]) -> bool {
    frame.windows(MARK.len()).any(|window| window == MARK)
}

/// A frame, with the mark behind its payload.
#[must_use]
pub fn frame(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload, MARK].concat()
}

/// An IPv4 packet of any kind; `word` holds flags and fragment offset.
#[must_use]
pub fn ip(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, word: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0x77, 0x77, 0, 0, 64, protocol, 0, 0];
    let length = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[6..8].copy_from_slice(&word.to_be_bytes());
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}

/// Addresses and ports of a packet: from, to.
pub type Ends = ((Ipv4Addr, u16), (Ipv4Addr, u16));

/// A TCP segment that bears the mark, with these flags.
#[must_use]
pub fn tcp(((from, near), (to, far)): Ends, flags: u8) -> Vec<u8> {
    let mut segment = [near.to_be_bytes(), far.to_be_bytes()].concat();
    segment.extend([0, 0, 1, 0, 0, 0, 1, 0, 0x50, flags, 0x10, 0, 0, 0, 0, 0]);
    segment.extend_from_slice(MARK);
    let sum = pseudo(from, to, 6, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ip(from, to, 6, 0x4000, &segment)
}

/// A UDP datagram that bears the mark behind `payload`.
#[must_use]
pub fn udp(ends: Ends, payload: &[u8]) -> Vec<u8> {
    plain_udp(ends, &[payload, MARK].concat())
}

/// A UDP datagram without the mark, as others than attackers send them.
#[must_use]
pub fn plain_udp(((from, near), (to, far)): Ends, payload: &[u8]) -> Vec<u8> {
    let mut datagram = [near.to_be_bytes(), far.to_be_bytes()].concat();
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend_from_slice(payload);
    let sum = pseudo(from, to, 17, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    ip(from, to, 17, 0, &datagram)
}

/// An ICMP message of any kind with the mark behind `body`, which begins after the checksum.
#[must_use]
pub fn icmp(from: Ipv4Addr, to: Ipv4Addr, (kind, code): (u8, u8), body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(body);
    message.extend_from_slice(MARK);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(from, to, 1, 0, &message)
}

fn pseudo(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> u16 {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let head = [&from.octets()[..], &to.octets(), &[0, protocol], &length].concat();
    checksum(&[&head[..], payload].concat())
}

/// An ARP packet: 1 asks, 2 answers.
#[must_use]
pub fn arp(operation: u8, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(sender.0);
    packet.extend(sender.1.octets());
    packet.extend(target.0);
    packet.extend(target.1.octets());
    packet
}

/// IPv6 neighbour discovery and others of ICMPv6 to all nodes.
#[must_use]
pub fn icmpv6(kind: u8, body: &[u8]) -> Vec<u8> {
    let source = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x66, 0x66];
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let mut message = vec![kind, 0, 0, 0];
    message.extend_from_slice(body);
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX).to_be_bytes();
    let head = [&source[..], &group, &[0, 0], &length, &[0, 0, 0, 58]].concat();
    let sum = checksum(&[&head[..], &message].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    [&[0x60, 0, 0, 0][..], &length, &[58, 255], &source, &group, &message].concat()
}

/// The UDP payload of a frame without tags or IP options, with its ends.
#[must_use]
pub fn datagram(frame: &[u8]) -> Option<(Ends, &[u8])> {
    if frame.get(12..15)? != [8, 0, 0x45] || *frame.get(23)? != 17 {
        return None;
    }
    let address = |at: usize| -> Option<Ipv4Addr> {
        Some(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?.into())
    };
    let port = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let length = usize::from(port(38)?);
    let payload = frame.get(42..34 + length)?;
    Some((((address(26)?, port(34)?), (address(30)?, port(36)?)), payload))
}

/// The same frame as if it came from another address: no checksum tells.
#[must_use]
pub fn from_another(frame: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[26..30].copy_from_slice(&address.octets());
    reseal(&mut frame);
    frame
}

/// Makes the IP checksum right again and takes the UDP one away.
pub fn reseal(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[40..42].fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_found_in_its_frame_and_may_claim_another_sender() {
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let ends = ((a, 7), (b, 9));
        let whole = frame([1; 6], [2; 6], 0x0800, &udp(ends, b"x"));
        let (found, payload) = datagram(&whole).unwrap();
        assert_eq!((found, payload), (ends, &[b"x", MARK].concat()[..]));
        assert!(is_marked(&whole) && !is_marked(&whole[..50]));
        let other = from_another(&whole, b);
        assert_eq!(datagram(&other).unwrap().0.0, (b, 7));
        assert_eq!(checksum(&other[14..34]), 0);
        assert!(datagram(&whole[..41]).is_none());
    }
}
