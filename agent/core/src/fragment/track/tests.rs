use proptest::prelude::*;

use super::*;
use crate::fragment::Fragments;
use crate::wire::ipv4::Header;
use crate::wire::{parse_ipv4, put};

const LIMITS: Limits = Limits {
    packets: 6,
    packets_per_owner: 4,
    packets_per_device: 5,
    held_per_packet: 3,
    held_bytes: 3000,
    held_bytes_per_owner: 2000,
    held_bytes_per_device: 2500,
    timeout: Duration::from_secs(30),
};

fn start() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "tests need some instant to count from")]
    Instant::now()
}

fn fragments(id: u16, len: usize) -> Vec<Vec<u8>> {
    let mut payload = vec![0x55; len];
    put(&mut payload, 4, &(len as u16).to_be_bytes());
    let header = Header {
        source: Ipv4Addr::new(10, 0, 0, 1),
        destination: Ipv4Addr::new(10, 0, 0, 2),
        protocol: 17,
        ttl: 60,
        dscp_ecn: 0,
        id: 0,
        payload_len: len,
    };
    let packet = [header.to_bytes().unwrap().as_slice(), &payload].concat();
    let mut cut = Fragments::new(&packet, 576, id).unwrap();
    let mut buffer = vec![0; cut.longest()];
    let mut all = Vec::new();
    while let Some(len) = cut.next_into(&mut buffer) {
        all.push(buffer[..len].to_vec());
    }
    all
}

fn later(tracker: &mut Tracker<char>, owner: u32, bytes: &[u8], now: Instant) -> Outcome<char> {
    tracker.later(owner, &parse_ipv4(bytes).unwrap(), bytes, now)
}

fn first(
    tracker: &mut Tracker<char>,
    owner: u32,
    bytes: &[u8],
    token: char,
    now: Instant,
) -> Result<Vec<Box<[u8]>>, DropReason> {
    tracker.first(owner, &parse_ipv4(bytes).unwrap(), token, now)
}

/// A fragment of made-up place, with the bytes that [`fragments`] has there.
fn at(id: u16, offset: u16, len: usize, more: bool) -> Vec<u8> {
    let mut bytes = fragments(id, 2000)[1][..20 + len].to_vec();
    put(&mut bytes, 2, &((20 + len) as u16).to_be_bytes());
    put(&mut bytes, 6, &((offset / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
    put(&mut bytes, 10, &[0, 0]);
    let sum = crate::checksum::checksum(&bytes[..20]);
    put(&mut bytes, 10, &sum.to_be_bytes());
    bytes
}

#[test]
fn later_fragments_follow_their_first_and_nothing_is_left_behind() {
    let (mut tracker, now) = (Tracker::new(LIMITS), start());
    let all = fragments(1, 2000);
    assert_eq!(all.len(), 4);
    assert_eq!(first(&mut tracker, 1, &all[0], 'a', now).unwrap().len(), 0);
    for part in &all[1..] {
        assert_eq!(later(&mut tracker, 1, part, now), Outcome::Follow('a'));
    }
    assert!(tracker.is_empty(), "{tracker:?}");
    // The id may come again at once.
    assert!(first(&mut tracker, 1, &all[0], 'b', now).is_ok());
    assert_eq!(later(&mut tracker, 1, &all[3], now), Outcome::Follow('b'));
    assert_eq!(
        later(&mut tracker, 2, &all[1], now),
        Outcome::Held,
        "another owner's fragments never meet these"
    );
}

#[test]
fn fragments_that_come_too_early_are_held_within_bounds() {
    let (mut tracker, now) = (Tracker::new(LIMITS), start());
    let all = fragments(1, 2000);
    for part in all[1..].iter().rev() {
        assert_eq!(later(&mut tracker, 1, part, now), Outcome::Held);
    }
    let held = first(&mut tracker, 1, &all[0], 'a', now).unwrap();
    let expected: Vec<&[u8]> = all[1..].iter().rev().map(Vec::as_slice).collect();
    assert_eq!(held.iter().map(|bytes| &**bytes).collect::<Vec<_>>(), expected);
    assert!(tracker.is_empty() && tracker.held_bytes == 0, "{tracker:?}");

    let long = fragments(2, 4000);
    for (i, part) in long[1..].iter().enumerate() {
        let outcome = later(&mut tracker, 1, part, now);
        let expected =
            if i < 3 { Outcome::Held } else { Outcome::Drop(DropReason::FragmentNoFirst) };
        assert_eq!(outcome, expected, "fragment {i}");
    }
    let other = fragments(3, 4000);
    let outcomes: Vec<_> =
        other[1..4].iter().map(|part| later(&mut tracker, 2, part, now)).collect();
    assert_eq!(outcomes[..2], [Outcome::Held; 2], "there are {} bytes", tracker.held_bytes);
    assert_eq!(outcomes[2], Outcome::Drop(DropReason::FragmentNoFirst));
    assert!(tracker.held_bytes <= LIMITS.held_bytes);
}

#[test]
fn overlaps_are_dropped_wherever_they_lie() {
    let (mut tracker, now) = (Tracker::new(LIMITS), start());
    let all = fragments(1, 2000);
    let len = (all[0].len() - 20) as u16;
    first(&mut tracker, 1, &all[0], 'a', now).unwrap();
    assert_eq!(later(&mut tracker, 1, &at(1, 1000, 80, true), now), Outcome::Follow('a'));
    let overlap = Outcome::Drop(DropReason::FragmentOverlap);
    for (what, offset, bytes, more) in [
        ("inside the first", 24, 16, true),
        ("across the end of the first", len - 8, 16, true),
        ("the same again", 1000, 80, true),
        ("around one", 992, 96, true),
        ("an end before what was seen", 900, 8, false),
    ] {
        let outcome = later(&mut tracker, 1, &at(1, offset / 8 * 8, bytes, more), now);
        assert_eq!(outcome, overlap, "{what}");
    }
    assert_eq!(first(&mut tracker, 1, &all[0], 'b', now), Err(DropReason::FragmentOverlap));
    assert_eq!(later(&mut tracker, 1, &at(1, 1080, 40, false), now), Outcome::Follow('a'));
    assert_eq!(later(&mut tracker, 1, &at(1, 1120, 40, true), now), overlap, "behind the end");
    assert_eq!(later(&mut tracker, 1, &at(1, 1120, 40, false), now), overlap, "a second end");
    // After a pause the id may be another packet's; its later fragments follow that one.
    let now = now + ID_REUSED_AFTER;
    first(&mut tracker, 1, &all[0], 'c', now).unwrap();
    assert_eq!(later(&mut tracker, 1, &all[1], now), Outcome::Follow('c'));
}

#[test]
fn one_owner_can_not_crowd_out_another() {
    let (mut tracker, now) = (Tracker::new(LIMITS), start());
    for id in 0..100 {
        first(&mut tracker, 1, &fragments(id, 2000)[0], 'a', now).unwrap();
    }
    assert_eq!(tracker.len(), LIMITS.packets_per_owner);
    let newest = fragments(99, 2000);
    assert_eq!(later(&mut tracker, 1, &newest[1], now), Outcome::Follow('a'));
    assert_eq!(later(&mut tracker, 1, &fragments(0, 2000)[1], now), Outcome::Held);
    for owner in [2, 3] {
        first(&mut tracker, owner, &newest[0], 'b', now).unwrap();
    }
    // The table is full: the owner with the most makes room.
    first(&mut tracker, 4, &newest[0], 'b', now).unwrap();
    assert_eq!((tracker.len(), tracker.owners[&Whose::from(1)].live), (LIMITS.packets, 3));
    assert!(tracker.owners[&Whose::from(1)].order.len() <= 2 * LIMITS.packets_per_owner + 1);
}

#[test]
fn what_one_owner_has_waiting_leaves_room_for_others() {
    let (mut tracker, now) = (Tracker::new(Limits::default()), start());
    let (mut held, mut refused) = (0, 0);
    for id in 0..100 {
        for part in &fragments(id, 8000)[1..] {
            match later(&mut tracker, 1, part, now) {
                Outcome::Held => held += part.len(),
                outcome => {
                    assert_eq!(outcome, Outcome::Drop(DropReason::FragmentNoFirst));
                    refused += 1;
                }
            }
        }
    }
    assert!(held <= Limits::default().held_bytes / 4 && refused > 0, "{held} {refused}");
    let all = fragments(1, 2000);
    assert_eq!(later(&mut tracker, 2, &all[1], now), Outcome::Held);
    // What gets its first makes room for its owner.
    let freed = first(&mut tracker, 1, &fragments(0, 8000)[0], 'a', now).unwrap();
    assert!(!freed.is_empty());
    assert_eq!(later(&mut tracker, 1, &fragments(200, 2000)[1], now), Outcome::Held);
    // So does what is forgotten.
    tracker.expire(now + Limits::default().timeout);
    assert!(tracker.owners.is_empty() && tracker.held_bytes == 0, "{}", tracker.held_bytes);
}

#[test]
fn many_owners_that_fill_the_table_leave_a_new_one_its_share() {
    let now = start();
    let mut tracker = Tracker::new(LIMITS);
    // Two owners fill the table to the last entry, and its bytes for waiting ones.
    for id in 0..20 {
        for owner in [1, 2] {
            let _ = later(&mut tracker, owner, &fragments(id, 1000)[1], now);
        }
    }
    let mine = fragments(100, 1000);
    assert_eq!(later(&mut tracker, 3, &mine[1], now), Outcome::Held, "{tracker:?}");
    let waiting = first(&mut tracker, 3, &mine[0], 'y', now).unwrap();
    assert_eq!(waiting.len(), 1, "the one that waited goes on: {tracker:?}");
    assert!(tracker.len() <= LIMITS.packets && tracker.held_bytes <= LIMITS.held_bytes);
}

#[test]
fn what_never_completes_is_forgotten() {
    let (mut tracker, now) = (Tracker::new(LIMITS), start());
    assert_eq!(tracker.poll_timeout(), None);
    later(&mut tracker, 1, &fragments(1, 2000)[1], now);
    let soon = now + Duration::from_secs(1);
    first(&mut tracker, 1, &fragments(2, 2000)[0], 'a', soon).unwrap();
    let due = tracker.poll_timeout().unwrap();
    assert_eq!(due, now + LIMITS.timeout);
    assert_eq!(tracker.expire(due - Duration::from_millis(1)), 0);
    assert_eq!(tracker.expire(due), 1, "the held fragment is lost");
    assert_eq!(tracker.len(), 1);
    assert_eq!(tracker.expire(soon + LIMITS.timeout), 0);
    assert!(tracker.is_empty() && tracker.owners.is_empty(), "{tracker:?}");
    assert_eq!(tracker.poll_timeout(), None);
}

#[test]
fn a_peer_that_fills_a_device_with_pieces_takes_none_of_the_others() {
    let (mut tracker, now) = (Tracker::new(LIMITS), start());
    let packets = [fragments(900, 1000), fragments(901, 1000)];
    let whose = |peer| Whose { device: 7, peer };
    for packet in &packets {
        let begun = tracker.first(whose(1), &parse_ipv4(&packet[0]).unwrap(), 'a', now);
        assert_eq!(begun, Ok(vec![]));
    }
    for id in 0..100 {
        // With and without their first.
        let pieces = fragments(id, 1000);
        let _ = tracker.first(whose(2), &parse_ipv4(&pieces[0]).unwrap(), 'b', now);
        let pieces = fragments(100 + id, 1000);
        let _ = tracker.later(whose(2), &parse_ipv4(&pieces[1]).unwrap(), &pieces[1], now);
        assert!(tracker.len() <= LIMITS.packets_per_device, "{tracker:?}");
        assert!(tracker.held_bytes <= LIMITS.held_bytes_per_device, "{tracker:?}");
    }
    for packet in &packets {
        let follows = tracker.later(whose(1), &parse_ipv4(&packet[1]).unwrap(), &packet[1], now);
        assert_eq!(follows, Outcome::Follow('a'), "{tracker:?}");
    }
    tracker.expire(now + LIMITS.timeout);
    assert!(tracker.is_empty() && tracker.devices.is_empty(), "{tracker:?}");
}

proptest! {
    #[test]
    fn bounds_hold_and_no_byte_passes_twice(
        steps in proptest::collection::vec((0u32..3, 0u16..6, 0u16..40, 1usize..30, any::<bool>(), 0u64..4000), 0..300),
    ) {
        let mut tracker = Tracker::new(LIMITS);
        let mut now = start();
        for (owner, id, place, len, more, pause) in steps {
            now += Duration::from_millis(pause / 40);
            let bytes = if place == 0 { fragments(id, 2000)[0].clone() } else { at(id, place * 8, len * 8, more) };
            let packet = match parse_ipv4(&bytes) {
                Ok(packet) => packet,
                Err(reason) => panic!("{reason} for a fragment at {place}"),
            };
            if place == 0 {
                let _ = tracker.first(owner, &packet, 'x', now);
            } else {
                let _ = tracker.later(owner, &packet, &bytes, now);
            }
            if pause % 7 == 0 {
                tracker.expire(now);
            }
            let held: usize = tracker.entries.values().flat_map(|e| &e.held).map(|b| b.len()).sum();
            prop_assert_eq!(held, tracker.held_bytes);
            for (id, owner) in &tracker.owners {
                let entries = tracker.entries.iter().filter(|(key, _)| key.owner == *id);
                let held: usize = entries.flat_map(|(_, e)| &e.held).map(|b| b.len()).sum();
                prop_assert_eq!(held, owner.held_bytes);
                prop_assert!(held <= LIMITS.held_bytes_per_owner);
            }
            prop_assert!(held <= LIMITS.held_bytes && tracker.len() <= LIMITS.packets);
            for entry in tracker.entries.values() {
                let seen = &entry.stretches.seen;
                prop_assert!(seen.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?}", seen);
            }
            let live: usize = tracker.owners.values().map(|owner| owner.live).sum();
            prop_assert_eq!(live, tracker.len());
        }
        tracker.expire(now + LIMITS.timeout);
        prop_assert!(tracker.is_empty());
    }
}
