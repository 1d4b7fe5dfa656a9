//! Packets that are larger than a path takes.

use std::net::Ipv4Addr;

use super::conditions::SizeLimit;
use super::ipv4::{self, ETHERNET};
use crate::packet::checksum;

/// What becomes of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Oversize {
    /// It isn't too large, or isn't IP.
    Fits,
    /// These fragments go on in its place.
    Cut(Vec<Vec<u8>>),
    /// It goes no further; this frame goes back to its sender, if anyone tells them.
    Dropped(Option<Vec<u8>>),
}

pub(super) fn check(frame: &[u8], limit: &SizeLimit) -> Oversize {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => check_v4(frame, limit),
        Some([0x86, 0xdd]) => {
            let length = frame
                .get(18..20)
                .map_or(0, |bytes| 40 + usize::from(u16::from_be_bytes([bytes[0], bytes[1]])));
            if length <= limit.bytes { Oversize::Fits } else { Oversize::Dropped(None) }
        }
        _ => Oversize::Fits,
    }
}

fn check_v4(frame: &[u8], limit: &SizeLimit) -> Oversize {
    let Some(packet) = ipv4::Packet::parse(frame) else { return Oversize::Fits };
    if packet.total <= limit.bytes {
        return Oversize::Fits;
    }
    let flags = u16::from_be_bytes([frame[ETHERNET + 6], frame[ETHERNET + 7]]);
    if flags & 0x4000 == 0 && limit.cuts {
        return Oversize::Cut(cut(frame, &packet, limit.bytes));
    }
    // Nobody is told of an ICMP error, nor of a fragment that isn't the first.
    let silent = packet.is_icmp_error() || flags & 0x1fff != 0;
    let told = limit.told_by.filter(|_| !silent);
    Oversize::Dropped(told.map(|router| too_big(frame, &packet, limit.bytes, router)))
}

/// The packet in fragments of `most` bytes each (RFC 791). Options are repeated, as all of them asked to be.
fn cut(frame: &[u8], packet: &ipv4::Packet, most: usize) -> Vec<Vec<u8>> {
    let flags = u16::from_be_bytes([frame[ETHERNET + 6], frame[ETHERNET + 7]]);
    let (first, more_behind) = (usize::from(flags & 0x1fff), flags & 0x2000 != 0);
    let payload = &frame[ETHERNET + packet.header..ETHERNET + packet.total];
    let step = (most.saturating_sub(packet.header) & !7).max(8);
    let last = payload.chunks(step).count().saturating_sub(1);
    payload
        .chunks(step)
        .enumerate()
        .map(|(index, part)| {
            let mut piece = frame[..ETHERNET + packet.header].to_vec();
            let total = u16::try_from(packet.header + part.len()).unwrap_or(u16::MAX);
            let place = u16::try_from(first + index * step / 8).unwrap_or(0x1fff) & 0x1fff;
            let more = if index < last || more_behind { 0x2000 } else { 0 };
            piece[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&total.to_be_bytes());
            piece[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&(place | more).to_be_bytes());
            ipv4::sum_header(&mut piece[ETHERNET..]);
            piece.extend_from_slice(part);
            piece
        })
        .collect()
}

/// "Fragmentation needed" to the sender of `frame` (RFC 1191).
fn too_big(frame: &[u8], packet: &ipv4::Packet, most: usize, router: Ipv4Addr) -> Vec<u8> {
    let quoted = &frame[ETHERNET..ETHERNET + (packet.header + 8).min(packet.total)];
    let mut icmp = vec![3, 4, 0, 0, 0, 0];
    icmp.extend_from_slice(&u16::try_from(most).unwrap_or(u16::MAX).to_be_bytes());
    icmp.extend_from_slice(quoted);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut answer = Vec::with_capacity(ETHERNET + 20 + icmp.len());
    answer.extend_from_slice(&frame[6..12]);
    answer.extend_from_slice(&frame[..6]);
    answer.extend_from_slice(&[0x08, 0x00]);
    answer.extend_from_slice(&ipv4::header(router, packet.source, 1, icmp.len()));
    answer.extend_from_slice(&icmp);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const TO: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);

    fn frame(payload: usize, may_be_cut: bool) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00];
        frame.extend_from_slice(&ipv4::header(FROM, TO, 17, payload));
        if may_be_cut {
            frame[ETHERNET + 6] = 0;
            ipv4::sum_header(&mut frame[ETHERNET..]);
        }
        frame.extend((0..payload).map(|index| u8::try_from(index % 251).unwrap()));
        frame
    }

    #[test]
    fn what_fits_and_what_isnt_ip_passes() {
        let limit = SizeLimit { bytes: 1280, told_by: Some(ROUTER), cuts: true };
        assert_eq!(check(&frame(1260, false), &limit), Oversize::Fits);
        let mut other = vec![0; 1500];
        other[12..14].copy_from_slice(&[0x88, 0xcc]);
        assert_eq!(check(&other, &limit), Oversize::Fits);
        for short in 0..40 {
            assert_eq!(check(&frame(1300, false)[..short], &limit), Oversize::Fits);
        }
    }

    #[test]
    fn a_router_tells_what_fits_and_a_black_hole_doesnt() {
        let limit = SizeLimit { bytes: 1280, told_by: Some(ROUTER), cuts: true };
        let Oversize::Dropped(Some(answer)) = check(&frame(1261, false), &limit) else {
            panic!("nobody is told")
        };
        let packet = ipv4::Packet::parse(&answer).unwrap();
        assert_eq!((packet.source, packet.destination, packet.protocol), (ROUTER, FROM, 1));
        let icmp = &answer[ETHERNET + 20..];
        assert_eq!((icmp[0], icmp[1], &icmp[6..8]), (3, 4, &1280_u16.to_be_bytes()[..]));
        assert_eq!(checksum(icmp), 0);
        assert_eq!(icmp[8..36], frame(1261, false)[ETHERNET..ETHERNET + 28]);
        // An error about an error would go on for ever.
        let mut large = answer.clone();
        large.resize(ETHERNET + 1400, 0);
        large[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&1400_u16.to_be_bytes());
        assert_eq!(check(&large, &limit), Oversize::Dropped(None));
        let hole = SizeLimit { told_by: None, cuts: false, ..limit };
        assert_eq!(check(&frame(1261, true), &hole), Oversize::Dropped(None));
    }

    #[test]
    fn fragments_make_up_the_packet_again() {
        let limit = SizeLimit { bytes: 600, told_by: None, cuts: true };
        let whole = frame(1400, true);
        let Oversize::Cut(parts) = check(&whole, &limit) else { panic!("it isn't cut") };
        let mut payload = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let packet = ipv4::Packet::parse(part).unwrap();
            assert!(packet.total <= 600 && part.len() == ETHERNET + packet.total);
            assert_eq!(checksum(&part[ETHERNET..ETHERNET + 20]), 0);
            let flags = u16::from_be_bytes([part[ETHERNET + 6], part[ETHERNET + 7]]);
            assert_eq!(usize::from(flags & 0x1fff) * 8, payload.len());
            assert_eq!(flags & 0x2000 != 0, index + 1 < parts.len());
            payload.extend_from_slice(&part[ETHERNET + 20..]);
        }
        assert_eq!(payload, whole[ETHERNET + 20..]);
    }
}
