//! Nobody uses up another's share, and nothing grows without bound.

use proptest::prelude::*;

use super::*;

/// A relay with gateway 0, and others that share a view with it.
fn around(limits: Limits, others: u16, now: Instant) -> (Relay, SessionId, Vec<SessionId>) {
    let mut relay = relay(limits);
    let all: Vec<u16> = (1..=others).collect();
    let centre = enter(&mut relay, &pass(0, 1, &all), now);
    let around = all.iter().map(|n| enter(&mut relay, &pass(*n, 2, &[0]), now)).collect();
    (relay, centre, around)
}

/// Each of `loads` sends that many packets of `len` bytes in each round; then `drain` packets are fetched. Gives how
/// many of each arrived.
fn rounds(loads: &[(usize, usize)], drain: usize, rounds: usize) -> Vec<usize> {
    let mut now = Instant::now();
    let others = u16::try_from(loads.len()).unwrap();
    let (mut relay, centre, around) = around(Limits::default(), others, now);
    let mut arrived = vec![0; loads.len()];
    let mut count = |datagram: &[u8]| arrived[usize::from(read(datagram).0)] += 1;
    for _ in 0..rounds {
        for (from, (packets, len)) in around.iter().zip(loads) {
            for _ in 0..*packets {
                let _ = relay.forward(*from, packet(0, false, 1, *len), now);
            }
        }
        for _ in 0..drain {
            let Some(datagram) = relay.next(centre, now) else { break };
            count(&datagram);
        }
        now += Duration::from_millis(1);
    }
    while let Some(datagram) = relay.next(centre, now) {
        count(&datagram);
    }
    assert_eq!(relay.waiting(), 0);
    arrived
}

#[test]
fn a_flood_costs_a_quiet_gateway_nothing() {
    let arrived = rounds(&[(200, 1300), (1, 1300), (3, 200)], 20, 500);
    assert_eq!(arrived[1..], [500, 1500], "{arrived:?}");
    assert!(arrived[0] > 500 * 15, "what others leave is used: {arrived:?}");
}

#[test]
fn greedy_gateways_share_by_bytes_not_by_packets() {
    let arrived = rounds(&[(100, 1300), (600, 130), (100, 1300)], 30, 500);
    let bytes: Vec<usize> =
        arrived.iter().zip([1300, 130, 1300]).map(|(packets, len)| packets * len).collect();
    let (low, high) = (bytes.iter().min().unwrap(), bytes.iter().max().unwrap());
    assert!(high * 10 < low * 12, "{bytes:?}");
}

#[test]
fn bulk_waits_behind_what_is_urgent_and_is_shed_first() {
    let now = Instant::now();
    let limits = Limits { inbox: 20_000, ..Limits::default() };
    let (mut relay, centre, around) = around(limits, 1, now);
    for mark in 0..100 {
        let _ = relay.forward(around[0], packet(0, mark % 10 != 0, mark, 1000), now);
    }
    let marks: Vec<u32> =
        std::iter::from_fn(|| relay.next(centre, now)).map(|d| read(&d).1).collect();
    let (urgent, bulk): (Vec<u32>, Vec<u32>) = marks.iter().partition(|mark| *mark % 10 == 0);
    assert!(marks.starts_with(&urgent), "{marks:?}");
    assert!(bulk.is_empty(), "there was room for urgent ones alone: {marks:?}");
    assert_eq!(urgent.last(), Some(&90), "the newest is kept, the oldest shed: {marks:?}");
    assert!(relay.counts().dropped(Dropped::Full) > 80);
}

#[test]
fn what_waited_for_too_long_is_not_sent_any_more() {
    let now = Instant::now();
    let (mut relay, centre, around) = around(Limits::default(), 1, now);
    relay.forward(around[0], packet(0, false, 1, 1000), now).unwrap();
    relay.forward(around[0], packet(0, true, 2, 1000), now).unwrap();
    let later = now + Duration::from_millis(200);
    relay.forward(around[0], packet(0, true, 3, 1000), later).unwrap();
    let later = now + Duration::from_millis(251);
    assert_eq!(read(&relay.next(centre, later).unwrap()).1, 3);
    assert_eq!(relay.next(centre, later), None);
    assert_eq!((relay.counts().dropped(Dropped::Late), relay.waiting()), (2, 0));
}

#[test]
fn one_gateway_that_floods_all_others_fills_its_own_outbox_only() {
    let now = Instant::now();
    let limits = Limits { outbox: 100_000, waiting: 300_000, ..Limits::default() };
    let (mut relay, centre, around) = around(limits, 40, now);
    for number in 0..40 {
        for _ in 0..100 {
            let _ = relay.forward(centre, packet(number, false, 1, 1300), now);
        }
    }
    assert!(relay.waiting() <= 100_000, "{} bytes wait", relay.waiting());
    assert!(relay.forward(around[0], packet(0, false, 7, 1300), now).is_ok());
    assert_eq!(read(&relay.next(centre, now).unwrap()).1, 7);
}

#[test]
fn the_whole_is_bounded_however_many_flood() {
    let now = Instant::now();
    let limits = Limits { waiting: 200_000, ..Limits::default() };
    let mut relay = relay(limits);
    let all: Vec<u16> = (0..30).collect();
    let ids: Vec<SessionId> = all
        .iter()
        .map(|n| {
            let peers: Vec<u16> = all.iter().copied().filter(|peer| peer != n).collect();
            enter(&mut relay, &pass(*n, 1, &peers), now)
        })
        .collect();
    for round in 0..100 {
        for id in &ids[..29] {
            let _ = relay.forward(*id, packet(round % 29, false, 1, 1300), now);
        }
        assert!(relay.waiting() <= 200_000, "{} bytes wait", relay.waiting());
    }
    assert!(relay.forward(ids[29], packet(0, false, 7, 1300), now).is_ok(), "one more has room");
}

#[test]
fn a_rate_holds_in_the_long_run_and_allows_a_burst() {
    let start = Instant::now();
    let rate = Rate { bytes_per_second: 100_000, burst: 5_000 };
    let (mut relay, centre, around) =
        around(Limits { rate: Some(rate), ..Limits::default() }, 2, start);
    let mut passed = 0;
    for tenth_ms in 0..10_000 {
        let now = start + Duration::from_micros(100 * tenth_ms);
        passed += usize::from(relay.forward(around[0], packet(0, false, 1, 98), now).is_ok());
        while relay.next(centre, now).is_some() {}
    }
    assert!((1040..=1050).contains(&passed), "{passed} packets of 100 bytes in a second");
    assert!(relay.forward(around[1], packet(0, false, 1, 98), start).is_ok(), "each has its own");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whoever asks for less than an equal part gets all of it, whatever the others do.
    #[test]
    fn nobody_who_keeps_to_a_share_loses_anything(
        heavy in prop::collection::vec((20usize..80, 60usize..1400), 1..8),
        light in 60usize..1400,
    ) {
        let mut loads = heavy;
        loads.push((1, light));
        // Everyone could have two packets of any length in a round.
        let arrived = rounds(&loads, 2 * loads.len() + 2, 100);
        prop_assert_eq!(arrived.last(), Some(&100), "{:?}", arrived);
    }
}
