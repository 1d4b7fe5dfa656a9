//! Cutting and putting together, with honest and hostile parts.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use anteroom_proto::verdict::DropReason;
use proptest::prelude::*;

use crate::size::cut::Parts;
use crate::size::join::{self, Joiner, MAX_BYTES, MAX_PACKETS, OWN_BYTES, SHARED_BYTES};
use crate::size::wire::{self, MAX_PARTS, PART_OVERHEAD, Part, SizeMessage};

const A: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 1);
const B: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 2);

fn now() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "tests need some instant to count from")]
    Instant::now()
}

fn packet(len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
    bytes[1] = 0xb9;
    bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    bytes
}

fn cut(packet: &[u8], limit: usize, id: u32) -> Vec<Vec<u8>> {
    let mut parts = Parts::new(packet, limit, (A, B), id).unwrap();
    let mut room = vec![0xee; parts.longest()];
    let mut all = Vec::new();
    while let Some(len) = parts.next_into(&mut room) {
        assert!(len <= limit, "{len} bytes are over {limit}");
        all.push(room[..len].to_vec());
    }
    all
}

fn part(bytes: &[u8]) -> Part<'_> {
    match wire::read(bytes, A, B) {
        Ok(Some(SizeMessage::Part(part))) => part,
        other => panic!("{other:?}"),
    }
}

/// A part with these numbers, sound or not.
fn made(id: u32, total: u16, stride: u16, index: u16, bytes: &[u8]) -> Part<'_> {
    Part { id, total, stride, index, bytes }
}

#[test]
fn a_full_packet_becomes_two_halves_and_the_same_again() {
    let whole = packet(1500);
    let parts = cut(&whole, 1440, 7);
    assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [810, 810]);
    for part in &parts {
        let class = (part[0] << 4 | part[1] >> 4, part[0] >> 4);
        assert_eq!(class, (0xb8, 6), "DSCP stands outside, ECN doesn't");
    }
    let (mut joiner, now) = (Joiner::default(), now());
    assert_eq!(joiner.take(1, &part(&parts[1]), now), Ok(None));
    assert_eq!(joiner.waiting(), (1, 1500));
    assert_eq!(joiner.take(1, &part(&parts[0]), now), Ok(Some(whole)));
    assert_eq!(joiner.waiting(), (0, 0));
}

#[test]
fn what_can_not_be_cut_is_refused() {
    let err = |len: usize, limit| Parts::new(&vec![0x45; len], limit, (A, B), 1).map(|_| ());
    assert_eq!(err(1500, PART_OVERHEAD + 399), Err(DropReason::TooBig));
    assert_eq!(err(1500, 0), Err(DropReason::TooBig));
    assert_eq!(err(1, 1440), Err(DropReason::TooBig));
    assert_eq!(err(65_536, 1440), Err(DropReason::TooBig));
    assert_eq!(err(65_535, 1440), Ok(()));
    assert_eq!(err(65_535, PART_OVERHEAD + 400), Ok(()));
}

#[test]
fn probes_and_answers_are_read_as_they_are_written() {
    for len in [0, 60, 1220, 1500, 9000] {
        let probe = wire::probe((A, B), 0x0102_0304_0506_0708, len);
        assert_eq!(probe.len(), len.max(wire::LEAST_PROBE));
        let read = wire::read(&probe, A, B);
        assert_eq!(read, Ok(Some(SizeMessage::Probe { nonce: 0x0102_0304_0506_0708 })));
        assert_eq!(wire::read(&probe, B, B), Ok(None), "somebody else's");
    }
    let answer = wire::answer((A, B), u64::MAX);
    assert_eq!(wire::read(&answer, A, B), Ok(Some(SizeMessage::Answer { nonce: u64::MAX })));
}

#[test]
fn numbers_that_do_not_fit_together_are_malformed() {
    let good = cut(&packet(1500), 1440, 7).remove(0);
    let at = 48;
    let changed = |place: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[place..place + bytes.len()].copy_from_slice(bytes);
        wire::read(&bad, A, B).map(|_| ())
    };
    assert_eq!(changed(at, &[0xf0]), Ok(()));
    let cases: [(&str, usize, &[u8]); 9] = [
        ("reserved byte", at + 1, &[1]),
        ("no such part", at + 2, &[0, 2]),
        ("far away", at + 2, &[0xff, 0xff]),
        ("one part only", at + 4, &[2, 0xee]),
        ("another length", at + 4, &[0, 200]),
        ("nothing", at + 4, &[0, 0]),
        ("no stride", at + 6, &[0, 0]),
        ("another stride", at + 6, &[0, 1]),
        ("a checksum", 46, &[1, 1]),
    ];
    for (what, place, bytes) in cases {
        assert_eq!(changed(place, bytes), Err(DropReason::Malformed), "{what}");
    }
    for len in 0..good.len() {
        assert!(wire::read(&good[..len], A, B).is_err(), "cut to {len}");
        let mut short = good[..len].to_vec();
        if len > at {
            let field = ((len - 40) as u16).to_be_bytes();
            short[4..6].copy_from_slice(&field);
            short[44..46].copy_from_slice(&field);
            assert!(wire::read(&short, A, B).is_err(), "{len} bytes, and says so");
        }
    }
}

#[test]
fn a_contradiction_forgets_the_packet_and_a_copy_changes_nothing() {
    let (mut joiner, now) = (Joiner::default(), now());
    let (ones, mut twos) = ([1; 100], [2; 100]);
    let mut first = ones;
    first[2..4].copy_from_slice(&300_u16.to_be_bytes());
    twos[2..4].copy_from_slice(&300_u16.to_be_bytes());
    let overlap = Err(DropReason::FragmentOverlap);
    assert_eq!(joiner.take(1, &made(5, 300, 100, 0, &first), now), Ok(None));
    assert_eq!(joiner.take(1, &made(5, 300, 100, 0, &twos), now), overlap, "a second first");
    assert_eq!(joiner.take(1, &made(5, 300, 100, 1, &ones), now), Ok(None));
    let whole = joiner.take(1, &made(5, 300, 100, 2, &ones), now);
    let expected = [first, ones, ones].concat();
    assert_eq!(whole, Ok(Some(expected)), "what came first counts");

    for liar in [made(6, 200, 100, 1, &ones), made(6, 300, 99, 1, &ones[..99])] {
        assert_eq!(joiner.take(1, &made(6, 300, 100, 0, &ones), now), Ok(None));
        assert_eq!(joiner.take(1, &liar, now), overlap);
        assert_eq!(joiner.waiting(), (0, 0));
    }
}

#[test]
fn a_packet_with_something_behind_it_is_refused() {
    let now = now();
    for (says, len) in [(1499, 1500), (1501, 1500), (41, 30_000), (0, 1500)] {
        let (mut joiner, mut whole) = (Joiner::default(), packet(len));
        whole[2..4].copy_from_slice(&(says as u16).to_be_bytes());
        let parts = cut(&whole, 1440, 7);
        let (last, before) = parts.split_last().unwrap();
        for bytes in before {
            assert_eq!(joiner.take(1, &part(bytes), now), Ok(None));
        }
        let joined = joiner.take(1, &part(last), now);
        assert_eq!(joined, Err(DropReason::Malformed), "{says} of {len} bytes");
        assert_eq!(joiner.waiting(), (0, 0));
    }
}

#[test]
fn only_what_cutting_makes_is_read_so_that_little_bytes_reserve_little() {
    let read = |total: u16, stride: u16, index: u16| {
        let at = usize::from(stride) * usize::from(index);
        let len = usize::from(stride).min(usize::from(total) - at);
        let mut message = wire::probe((A, B), 0, PART_OVERHEAD + len);
        message[48..60].fill(0);
        message[48] = 0xf0;
        message[50..52].copy_from_slice(&index.to_be_bytes());
        message[52..54].copy_from_slice(&total.to_be_bytes());
        message[54..56].copy_from_slice(&stride.to_be_bytes());
        wire::read(&message, A, B).map(|read| read.is_some())
    };
    let malformed = Err(DropReason::Malformed);
    assert_eq!(read(65_535, 32_767, 2), malformed, "one byte stands for 64 KiB");
    assert_eq!(read(65_535, 65_534, 1), malformed);
    assert_eq!(read(65_535, 256, 0), malformed, "more parts than any path asks for");
    assert_eq!(read(65_281, 256, 255), malformed);
    assert_eq!(read(300, 100, 0), malformed);
    assert_eq!(read(65_535, 32_768, 1), Ok(true));
    assert_eq!(read(200, 100, 1), Ok(true));
    assert_eq!(read(3, 2, 1), Ok(true));
    for total in (2..=u16::MAX).step_by(61) {
        for stride in (1..total).step_by(1 + usize::from(total) / 64) {
            let last = total.div_ceil(stride) - 1;
            let len = usize::from(total - last * stride);
            if read(total, stride, last) == Ok(true) {
                assert!(len * 300 >= usize::from(total), "{len} bytes stand for {total}");
            }
        }
    }
}

#[test]
fn peers_do_not_mix() {
    let (mut joiner, now) = (Joiner::default(), now());
    let bytes = [1; 100];
    assert_eq!(joiner.take(1, &made(5, 200, 100, 0, &bytes), now), Ok(None));
    assert_eq!(joiner.take(2, &made(5, 200, 100, 1, &bytes), now), Ok(None));
    assert_eq!(joiner.waiting(), (2, 400));
    joiner.remove(1);
    joiner.remove(9);
    assert_eq!(joiner.waiting(), (1, 200));
}

#[test]
fn what_is_late_is_given_up_and_counted() {
    let (mut joiner, begin) = (Joiner::default(), now());
    let bytes = [1; 100];
    assert_eq!((joiner.poll_timeout(), joiner.expire(begin)), (None, 0));
    for id in 0..10u32 {
        let at = begin + Duration::from_millis(u64::from(id) * 100);
        assert_eq!(joiner.take(id % 3, &made(id, 200, 100, 0, &bytes), at), Ok(None));
    }
    assert_eq!(joiner.poll_timeout(), Some(begin + join::WAIT));
    assert_eq!(joiner.expire(begin + join::WAIT), 1);
    assert_eq!(joiner.poll_timeout(), Some(begin + join::WAIT + Duration::from_millis(100)));
    assert_eq!(joiner.expire(begin + join::WAIT * 3), 9);
    assert_eq!((joiner.waiting(), joiner.poll_timeout()), ((0, 0), None));
    assert_eq!(joiner.take(1, &made(4, 200, 100, 1, &bytes), begin), Ok(None), "begun anew");
}

#[test]
fn one_peer_takes_no_more_than_its_share_and_leaves_the_others_theirs() {
    let (mut joiner, now) = (Joiner::default(), now());
    let half = vec![1; 32_768];
    // Bounded by bytes, then by number.
    for id in 0..1000 {
        assert_eq!(joiner.take(1, &made(id, 65_535, 32_768, 0, &half), now), Ok(None));
        assert!(joiner.waiting().1 <= MAX_BYTES);
    }
    assert_eq!(joiner.waiting().0, MAX_BYTES / 65_535);
    assert_eq!(joiner.take_evicted(), 1000 - (MAX_BYTES / 65_535) as u64);
    for id in 1000..2000 {
        assert_eq!(joiner.take(1, &made(id, 200, 100, 0, &half[..100]), now), Ok(None));
    }
    assert_eq!(joiner.waiting(), (MAX_PACKETS, MAX_PACKETS * 200));
    // All peers together.
    for peer in 0..200 {
        for id in 0..4 {
            let _ = joiner.take(peer, &made(id, 65_535, 32_768, 0, &half), now);
        }
    }
    let (_, bytes) = joiner.waiting();
    assert!(bytes <= SHARED_BYTES + 200 * OWN_BYTES, "{bytes} bytes");
    assert!(bytes > SHARED_BYTES / 2, "{bytes} bytes: what is there is used");
    // A newcomer still has its own.
    let whole = packet(1500);
    let parts = cut(&whole, 1440, 1);
    assert_eq!(joiner.take(999, &part(&parts[0]), now), Ok(None));
    assert_eq!(joiner.take(999, &part(&parts[1]), now), Ok(Some(whole)));
    // Nothing of it stays.
    joiner.expire(now + join::WAIT);
    assert_eq!(joiner.waiting(), (0, 0));
    for peer in 0..30 {
        for id in 0..4 {
            let part = made(id, 65_535, 32_768, 0, &half);
            assert_eq!(joiner.take(peer, &part, now + join::WAIT), Ok(None), "{peer}, {id}");
        }
    }
}

proptest! {
    #[test]
    fn any_packet_cut_to_any_size_is_the_same_again_in_any_order(
        len in 200usize..65_535,
        limit in 460usize..1500,
        order in any::<u64>(),
        copies in proptest::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let whole = packet(len);
        let mut parts = cut(&whole, limit, 9);
        let longest = parts.iter().map(Vec::len).max().unwrap();
        let shortest = parts.iter().map(Vec::len).min().unwrap();
        prop_assert!(longest - shortest <= parts.len(), "about equal: {longest}, {shortest}");
        for (copy, place) in copies.iter().enumerate() {
            let copied = parts[place.index(parts.len())].clone();
            parts.insert((copy * 7) % parts.len(), copied);
        }
        let mut state = order;
        for i in (1..parts.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            parts.swap(i, (state >> 33) as usize % (i + 1));
        }
        let (mut joiner, now) = (Joiner::default(), now());
        let mut joined = Vec::new();
        for bytes in &parts {
            if let Ok(Some(packet)) = joiner.take(3, &part(bytes), now) {
                joined.push(packet);
            }
        }
        // Copies of all parts are another packet like it, as on any network.
        prop_assert!(!joined.is_empty() && joined.len() <= 2, "{} packets", joined.len());
        prop_assert!(joined.iter().all(|one| *one == whole));
    }

    /// Whatever comes, bounds hold and what is given is as long as it said.
    #[test]
    fn hostile_parts_stay_within_bounds(
        parts in proptest::collection::vec(
            (0u32..4, 0u32..80, 2u16..2000, 1u16..900, 0u16..8, any::<u8>(), 0u64..50), 1..400),
    ) {
        let (mut joiner, mut now) = (Joiner::default(), now());
        let mut peers = std::collections::BTreeSet::new();
        for (peer, id, total, stride, index, fill, pass) in parts {
            now += Duration::from_millis(pass);
            let (offset, total_len) = (usize::from(index) * usize::from(stride), usize::from(total));
            let count = total_len.div_ceil(usize::from(stride));
            if !(2..=MAX_PARTS).contains(&count) || usize::from(index) >= count {
                continue;
            }
            let bytes = vec![fill; usize::from(stride).min(total_len - offset)];
            peers.insert(peer);
            let mut bytes = bytes;
            if index == 0 && fill > 9 && bytes.len() > 3 {
                bytes[2..4].copy_from_slice(&total.to_be_bytes());
            }
            if let Ok(Some(whole)) = joiner.take(peer, &made(id, total, stride, index, &bytes), now) {
                prop_assert_eq!(whole.len(), total_len);
                prop_assert_eq!(&whole[2..4], &total.to_be_bytes());
                joiner.give_back(whole);
            }
            let (packets, bytes) = joiner.waiting();
            prop_assert!(packets <= MAX_PACKETS * peers.len() && bytes <= MAX_BYTES * peers.len());
            joiner.expire(now);
        }
        joiner.expire(now + join::WAIT);
        prop_assert_eq!(joiner.waiting(), (0, 0));
        prop_assert_eq!(joiner.poll_timeout(), None);
    }

    #[test]
    fn anything_at_all_is_read_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        kind in 0xefu8..0xf4,
    ) {
        let _ = wire::read(&bytes, A, B);
        let mut headed = wire::answer((A, B), 1);
        headed.truncate(48);
        headed.push(kind);
        headed.extend(&bytes);
        let len = ((headed.len() - 40) as u16).to_be_bytes();
        headed[4..6].copy_from_slice(&len);
        headed[44..46].copy_from_slice(&len);
        if let Ok(Some(SizeMessage::Part(part))) = wire::read(&headed, A, B) {
            let _ = Joiner::default().take(1, &part, now());
        }
    }
}
