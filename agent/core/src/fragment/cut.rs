//! Cuts IPv4 packets into fragments.

use anteroom_proto::verdict::DropReason;

use crate::checksum;
use crate::wire::ipv4::{MIN_HEADER_LEN, MORE_FRAGMENTS};
use crate::wire::{parse_ipv4, put};

/// Room for payload that a fragment must have: the longest transport header fits the first one.
const LEAST_PAYLOAD: usize = 64;
/// Longest IP header.
const MAX_HEADER_LEN: usize = 60;

/// The fragments of one packet, one after another.
#[derive(Debug, Clone)]
pub struct Fragments<'a> {
    packet: &'a [u8],
    /// Header of the first fragment, and of the ones after it: not every option is repeated.
    headers: [([u8; MAX_HEADER_LEN], usize); 2],
    payload: &'a [u8],
    /// Payload bytes in each fragment but the last, a multiple of eight. 0: the packet fits as it is.
    part: usize,
    /// Where the payload begins in that of the packet that was fragmented before, in bytes.
    base: usize,
    /// Whether fragments follow that were cut elsewhere.
    more_behind: bool,
    at: usize,
    done: bool,
}

impl<'a> Fragments<'a> {
    /// Prepares to cut `packet`, an IPv4 packet with complete checksums, into parts of about equal size and at
    /// most `limit` bytes each, IP header included. "Don't fragment" is cleared: the packet's sender was told,
    /// and didn't listen. `id` marks the parts, unless the packet is itself a fragment and keeps its own. A
    /// packet that fits comes out as it is.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] when it isn't a packet, [`DropReason::TooBig`] when `limit` leaves no room for
    /// a transport header.
    pub fn new(packet: &'a [u8], limit: usize, id: u16) -> Result<Self, DropReason> {
        let parsed = parse_ipv4(packet)?;
        let header = parsed.bytes.get(..parsed.header_len).ok_or(DropReason::Malformed)?;
        let mut first = ([0; MAX_HEADER_LEN], header.len());
        put(&mut first.0, 0, header);
        let id = if parsed.fragment.is_some() { parsed.id } else { id };
        put(&mut first.0, 4, &id.to_be_bytes());
        let later = repeated(&first.0[..header.len()]).ok_or(DropReason::Malformed)?;
        let mut fragments = Self {
            packet: parsed.bytes,
            headers: [first, later],
            payload: parsed.payload(),
            part: 0,
            base: usize::from(parsed.fragment_offset()),
            more_behind: parsed.fragment.is_some_and(|fragment| fragment.more),
            at: 0,
            done: false,
        };
        if parsed.bytes.len() > limit {
            let room = limit.saturating_sub(header.len()) & !7;
            if room < LEAST_PAYLOAD {
                return Err(DropReason::TooBig);
            }
            let len = fragments.payload.len();
            let equal = len.div_ceil(len.div_ceil(room)).next_multiple_of(8);
            fragments.part = equal.max(LEAST_PAYLOAD);
        }
        Ok(fragments)
    }

    /// Length of the longest fragment that will come.
    #[must_use]
    pub fn longest(&self) -> usize {
        if self.part == 0 { self.packet.len() } else { self.headers[0].1 + self.part }
    }

    /// Writes the next fragment. Returns its length; `None` when there is no more, or `out` is shorter than
    /// [`Self::longest`].
    pub fn next_into(&mut self, out: &mut [u8]) -> Option<usize> {
        if self.done {
            return None;
        }
        if self.part == 0 {
            out.get_mut(..self.packet.len())?.copy_from_slice(self.packet);
            self.done = true;
            return Some(self.packet.len());
        }
        let rest = self.payload.get(self.at..)?;
        let part = &rest[..rest.len().min(self.part)];
        let last = part.len() == rest.len();
        let (header, header_len) = &self.headers[usize::from(self.at > 0)];
        let len = header_len + part.len();
        let out = out.get_mut(..len)?;
        out[..*header_len].copy_from_slice(&header[..*header_len]);
        out[*header_len..].copy_from_slice(part);
        let more = if last && !self.more_behind { 0 } else { MORE_FRAGMENTS };
        // Both fit their fields: the packet that is cut was within them.
        let offset = ((self.base + self.at) / 8) as u16;
        put(out, 2, &(len as u16).to_be_bytes());
        put(out, 6, &(offset | more).to_be_bytes());
        put(out, 10, &[0, 0]);
        let sum = checksum::checksum(&out[..*header_len]);
        put(out, 10, &sum.to_be_bytes());
        self.at += part.len();
        self.done = last;
        Some(len)
    }
}

/// The header for fragments after the first: with the options whose copy flag is set (RFC 791 3.1), padded. `None`
/// when the options don't fit together.
fn repeated(header: &[u8]) -> Option<([u8; MAX_HEADER_LEN], usize)> {
    let mut bytes = [0; MAX_HEADER_LEN];
    let mut len = MIN_HEADER_LEN;
    put(&mut bytes, 0, header.get(..MIN_HEADER_LEN)?);
    let mut options = header.get(MIN_HEADER_LEN..)?;
    while let Some((&kind, rest)) = options.split_first() {
        options = match kind {
            0 => break,
            1 => rest,
            _ => {
                let size = usize::from(*rest.first()?);
                if size < 2 {
                    return None;
                }
                let (option, rest) = options.split_at_checked(size)?;
                if kind & 0x80 != 0 {
                    put(&mut bytes, len, option);
                    len += size;
                }
                rest
            }
        };
    }
    len = len.next_multiple_of(4);
    bytes[0] = 0x40 | (len / 4) as u8;
    Some((bytes, len))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::Ipv4Packet;
    use crate::wire::ipv4::Header;

    fn packet(options: &[u8], payload: &[u8], word: u16) -> Vec<u8> {
        let header = Header {
            source: Ipv4Addr::new(10, 0, 0, 1),
            destination: Ipv4Addr::new(10, 0, 0, 2),
            protocol: 17,
            ttl: 60,
            dscp_ecn: 0x28,
            id: 0x1111,
            payload_len: options.len() + payload.len(),
        };
        let mut bytes = header.to_bytes().unwrap().to_vec();
        bytes[0] = 0x40 | ((20 + options.len()) / 4) as u8;
        bytes.extend_from_slice(options);
        put(&mut bytes, 6, &word.to_be_bytes());
        put(&mut bytes, 10, &[0, 0]);
        let sum = checksum::checksum(&bytes);
        put(&mut bytes, 10, &sum.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    fn datagram(len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len).map(|i| (i % 253) as u8).collect();
        put(&mut bytes, 4, &(len as u16).to_be_bytes());
        bytes
    }

    fn cut(packet: &[u8], limit: usize) -> Vec<Vec<u8>> {
        let mut fragments = Fragments::new(packet, limit, 0x7777).unwrap();
        let mut buffer = vec![0xee; fragments.longest()];
        let mut all = Vec::new();
        while let Some(len) = fragments.next_into(&mut buffer) {
            assert!(len <= limit, "{len} bytes are over {limit}");
            all.push(buffer[..len].to_vec());
        }
        all
    }

    /// Puts fragments together as an end host does.
    fn join(all: &[Vec<u8>]) -> Vec<u8> {
        let parsed: Vec<Ipv4Packet<'_>> = all.iter().map(|b| parse_ipv4(b).unwrap()).collect();
        let mut whole = Vec::new();
        for (i, part) in parsed.iter().enumerate() {
            let fragment = part.fragment.unwrap();
            assert_eq!(usize::from(fragment.offset), whole.len());
            assert_eq!(fragment.more, i + 1 < parsed.len());
            assert!(!part.dont_fragment);
            whole.extend_from_slice(part.payload());
        }
        whole
    }

    #[test]
    fn parts_are_about_equal_and_make_the_whole() {
        let payload = datagram(1480);
        let all = cut(&packet(&[], &payload, 0x4000), 1440);
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [764, 756]);
        assert_eq!(join(&all), payload);
        assert!(all.iter().all(|part| parse_ipv4(part).unwrap().id == 0x7777));
    }

    #[test]
    fn a_fragment_keeps_its_id_and_place() {
        let whole = datagram(4000);
        let cases = [(0, 0x2000), (2000, 0x2000 | 250), (2000, 250)];
        for (from, word) in cases {
            let all = cut(&packet(&[], &whole[from..from + 2000], word), 600);
            let (mut at, mut joined) = (from, Vec::new());
            for (i, part) in all.iter().enumerate() {
                let part = parse_ipv4(part).unwrap();
                let fragment = part.fragment.unwrap();
                assert_eq!((part.id, usize::from(fragment.offset)), (0x1111, at));
                assert_eq!(fragment.more, i + 1 < all.len() || word & 0x2000 != 0);
                at += part.payload().len();
                joined.extend_from_slice(part.payload());
            }
            assert_eq!(joined, &whole[from..from + 2000]);
        }
    }

    #[test]
    fn options_are_repeated_where_their_flag_says_so() {
        // No-operation, security (copied), record route (not copied), stream id (copied), end.
        let options = [1, 130, 4, 9, 9, 7, 7, 4, 0, 0, 0, 0, 136, 4, 5, 6, 0, 0, 0, 0].as_slice();
        let all = cut(&packet(options, &datagram(1400), 0), 800);
        assert_eq!(parse_ipv4(&all[0]).unwrap().bytes[20..40], *options);
        assert_eq!(parse_ipv4(&all[1]).unwrap().header_len, 28);
        assert_eq!(all[1][20..28], [130, 4, 9, 9, 136, 4, 5, 6]);
        assert_eq!(join(&all), datagram(1400));
        let bad = packet(&[130, 1, 0, 0], &datagram(1400), 0);
        assert_eq!(Fragments::new(&bad, 800, 1).unwrap_err(), DropReason::Malformed);
    }

    #[test]
    fn what_fits_is_not_touched_and_what_can_not_be_cut_is_refused() {
        let small = packet(&[], &datagram(100), 0x4000);
        assert_eq!(cut(&small, 1440), std::slice::from_ref(&small));
        assert_eq!(Fragments::new(&small, 80, 1).unwrap_err(), DropReason::TooBig);
        assert_eq!(Fragments::new(&[], 1440, 1).unwrap_err(), DropReason::Malformed);
    }

    #[test]
    fn the_first_fragment_holds_the_longest_transport_header() {
        // A TCP header of 60 bytes and 6 more: halves of 40 would part the header.
        let mut segment = vec![0; 66];
        segment[12] = 15 << 4;
        let mut whole = packet(&[], &segment, 0);
        whole[9] = 6;
        put(&mut whole, 10, &[0, 0]);
        let sum = checksum::checksum(&whole[..20]);
        put(&mut whole, 10, &sum.to_be_bytes());
        let all = cut(&whole, 84);
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [84, 22]);
        assert!(all.iter().all(|part| parse_ipv4(part).is_ok()), "{all:02x?}");
    }

    proptest! {
        #[test]
        fn fragments_of_any_packet_make_the_whole(len in 200usize..65_000, limit in 84usize..1500) {
            let payload = datagram(len);
            let all = cut(&packet(&[], &payload, 0), limit);
            prop_assume!(all.len() > 1);
            prop_assert_eq!(join(&all), payload);
        }
    }
}
