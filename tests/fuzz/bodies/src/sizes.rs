//! Messages about sizes, and packets in parts: what is cut is the same again, and hostile parts stay within bounds.

use std::net::Ipv6Addr;
use std::time::Duration;

use anteroom_agent_core::size::cut::Parts;
use anteroom_agent_core::size::join::{Joiner, MAX_BYTES, MAX_PACKETS, WAIT};
use anteroom_agent_core::size::wire::{self, PART_OVERHEAD, SizeMessage};

use crate::frames::start;

const ENDS: (Ipv6Addr, Ipv6Addr) =
    (Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 1), Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 2));
/// Headers and body of a message, up to the part's own bytes.
const HEAD: usize = 12;

/// Takes `bytes` as a packet to be cut, as a message, and as a series of parts.
///
/// # Panics
/// If an invariant doesn't hold.
pub(crate) fn check(bytes: &[u8], limit: usize, order: u16) {
    wire::read(bytes, ENDS.0, ENDS.1).ok();
    let mut packet = bytes.to_vec();
    if let (Some(place), Ok(len)) = (packet.get_mut(2..4), u16::try_from(bytes.len())) {
        place.copy_from_slice(&len.to_be_bytes());
    }
    cut_and_join(&packet, limit, order);
    // With something else behind it than what it says of itself.
    cut_and_join(bytes, limit, order);
    hostile(bytes);
}

fn cut_and_join(packet: &[u8], limit: usize, order: u16) {
    let Ok(mut parts) = Parts::new(packet, limit, ENDS, u32::from(order)) else { return };
    let mut room = vec![0; parts.longest()];
    assert!(room.len() <= limit);
    let mut all = Vec::new();
    while let Some(len) = parts.next_into(&mut room) {
        all.push(room[..len].to_vec());
    }
    let count = all.len();
    all.rotate_left(usize::from(order) % count);
    if order & 1 != 0 {
        all.reverse();
    }
    let mut joiner = Joiner::default();
    for (place, part) in all.iter().enumerate() {
        let Ok(Some(SizeMessage::Part(part))) = wire::read(part, ENDS.0, ENDS.1) else {
            panic!("a part can't be read: {part:02x?}");
        };
        let joined = match joiner.take(1, &part, start()) {
            Ok(joined) => joined,
            Err(error) => {
                assert!(place + 1 == count && !says_its_length(packet), "{error}");
                break;
            }
        };
        assert_eq!(joined.is_some(), place + 1 == count);
        assert!(
            joined.is_none_or(|joined| joined == packet && says_its_length(packet)),
            "{} bytes became others",
            packet.len()
        );
    }
    assert_eq!(joiner.waiting(), (0, 0));
}

/// Each 16 bytes say what part comes from whom.
fn hostile(bytes: &[u8]) {
    let (mut joiner, mut now) = (Joiner::default(), start());
    for record in bytes.as_chunks::<16>().0 {
        let sender = u32::from(record[0] & 3);
        now += Duration::from_millis(u64::from(record[1]));
        // A part as it would be written, with numbers from the record and the length that they ask for.
        let (total, stride) = (word(record, 8), word(record, 10));
        let offset = usize::from(word(record, 6)) * usize::from(stride);
        let len = usize::from(stride).min(usize::from(total).saturating_sub(offset));
        let mut message = wire::probe(ENDS, 0, PART_OVERHEAD + len);
        let at = PART_OVERHEAD - HEAD;
        message[at..at + HEAD].copy_from_slice(&[
            0xf0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            record[12] & 7,
        ]);
        message[at + 2..at + 8].copy_from_slice(&record[6..12]);
        message[at + HEAD..].fill(record[13]);
        let Ok(Some(SizeMessage::Part(part))) = wire::read(&message, ENDS.0, ENDS.1) else {
            continue;
        };
        if let Ok(Some(whole)) = joiner.take(sender, &part, now) {
            assert_eq!(whole.len(), usize::from(total));
            assert!(says_its_length(&whole), "{} bytes with others behind", whole.len());
            joiner.give_back(whole);
        }
        let (packets, bytes) = joiner.waiting();
        assert!(packets <= 4 * MAX_PACKETS && bytes <= 4 * MAX_BYTES, "{packets}, {bytes}");
        joiner.expire(now);
        assert!(joiner.poll_timeout().is_none_or(|at| at > now));
    }
    joiner.expire(now + WAIT);
    assert_eq!(joiner.waiting(), (0, 0));
}

/// Whether an IPv4 packet is as long as its header says.
fn says_its_length(packet: &[u8]) -> bool {
    let said = packet.get(2..4).map(|said| usize::from(u16::from_be_bytes([said[0], said[1]])));
    said == Some(packet.len())
}

fn word(record: &[u8; 16], at: usize) -> u16 {
    u16::from_be_bytes([record[at], record[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_can_make_a_whole_packet() {
        let record = |index: u8| [0, 0, 0, 0, 0, 0, 0, index, 0, 200, 0, 100, 1, 7, 0, 0];
        hostile(&[record(0), record(1), record(0)].concat());
        let mut joiner = Joiner::default();
        let packet: Vec<u8> = (0..200).map(|i| i as u8).collect();
        check(&packet, 700, 3);
        let mut parts = Parts::new(&packet, 700, ENDS, 1).unwrap();
        let mut room = [0; 200];
        let len = parts.next_into(&mut room).unwrap();
        let Ok(Some(SizeMessage::Part(part))) = wire::read(&room[..len], ENDS.0, ENDS.1) else {
            panic!("{room:?}");
        };
        assert_eq!(joiner.take(1, &part, start()), Ok(None));
    }
}
