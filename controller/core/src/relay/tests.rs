#![allow(
    clippy::disallowed_methods,
    reason = "whoever calls the core has a clock, and so have tests"
)]

use std::time::Duration;

use anteroom_proto::authority::{Controller, Operator};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::OrganisationId;
use anteroom_proto::key::{Hash, IdentityKey};
use anteroom_proto::relay::packet::PeerNumber;

use super::*;

mod fair;
mod random;
mod refused;
mod stale;

const ORGANISATION: OrganisationId = OrganisationId::from_bytes([1; 16]);
const ROOM: u16 = 1400;
const HOUR: u64 = 3_600_000;

fn key(seed: u8) -> IdentityKey {
    IdentityKey::from_seed(&[seed; 32])
}

fn gateway(n: u16) -> GatewayId {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    GatewayId::from_bytes(bytes)
}

/// The document that names the controller with the key from `seed`.
fn authority(seed: u8) -> Authority {
    Authority {
        organisation: ORGANISATION,
        number: 1,
        previous: Hash::ZERO,
        operators: vec![Operator { name: "ana".parse().unwrap(), key: key(1).public() }],
        threshold: 1,
        controllers: vec![Controller { key: key(seed).public(), addresses: vec!["c:1".into()] }],
        relays: vec![],
        recovery: key(2).public(),
        incarnation: 0,
        root: None,
    }
}

/// A pass that the controller with the key from `seed` signed at `hours`, good for one hour.
fn pass_by(seed: u8, of: u16, sequence: u64, hours: u64, peers: &[u16]) -> Verified<RelayPass> {
    let mut peers: Vec<_> = peers.iter().map(|n| gateway(*n)).collect();
    peers.sort_unstable();
    let pass = RelayPass {
        organisation: ORGANISATION,
        gateway: gateway(of),
        identity: key(9).public(),
        number: PassNumber { incarnation: 0, sequence },
        peers,
        issued_at: UnixMillis(hours * HOUR),
        lifetime: 3600,
    };
    let signed = Signed::sign(&pass, &key(seed));
    RelayPass::verify(&signed, &authority(seed), key(9).public()).unwrap()
}

fn pass(of: u16, sequence: u64, peers: &[u16]) -> Verified<RelayPass> {
    pass_by(100, of, sequence, 10, peers)
}

fn relay(limits: Limits) -> Relay {
    let mut relay = Relay::new(limits);
    relay.set_authority(&authority(100), Instant::now());
    relay
}

fn enter(relay: &mut Relay, pass: &Verified<RelayPass>, now: Instant) -> SessionId {
    relay.enter(pass, ROOM, now).unwrap().session
}

/// A packet with `mark` in it, for the peer that the connection calls `number`.
fn packet(number: u16, bulk: bool, mark: u32, len: usize) -> Vec<u8> {
    let number = PeerNumber::new(number).unwrap();
    let mut bytes = packet::header(number, bulk).to_vec();
    bytes.extend_from_slice(&[4, 0, 0, 0]);
    bytes.extend_from_slice(&mark.to_be_bytes());
    bytes.resize(packet::HEADER_LEN + len, 0);
    bytes
}

/// From whom a datagram came, as the receiver calls them, and its mark.
fn read(bytes: &[u8]) -> (u16, u32) {
    match packet::parse(bytes) {
        Some(Datagram::Packet { peer, sealed, .. }) => {
            (peer.get(), u32::from_be_bytes(sealed[4..8].try_into().unwrap()))
        }
        other => panic!("{other:?}"),
    }
}

/// What the connection calls a peer that it was told of.
fn number_of(news: &[PeerState], peer: u16) -> u16 {
    let state = news.iter().find(|state| state.gateway == gateway(peer));
    state.unwrap_or_else(|| panic!("gateway {peer} isn't in {news:?}")).number.get()
}

#[test]
fn packets_pass_both_ways_under_the_receivers_own_numbers() {
    let now = Instant::now();
    let mut relay = relay(Limits::default());
    let a = enter(&mut relay, &pass(1, 1, &[5, 6, 2]), now);
    assert_eq!(relay.news(a, 9), [], "nobody else is here");
    let b = enter(&mut relay, &pass(2, 2, &[0, 1]), now);
    assert_eq!(relay.woken(), BTreeSet::from([a, b]));
    let (told_a, told_b) = (relay.news(a, 9), relay.news(b, 9));
    assert_eq!((told_a.len(), told_b.len()), (1, 1));
    assert_eq!(told_a[0].room, Some(ROOM));
    let (to_b, to_a) = (number_of(&told_a, 2), number_of(&told_b, 1));
    assert_ne!(to_b, to_a, "each connection has numbers of its own");
    assert_eq!(relay.forward(a, packet(to_b, false, 7, 100), now), Ok(b));
    assert_eq!(relay.forward(b, packet(to_a, false, 8, 100), now), Ok(a));
    assert_eq!(read(&relay.next(b, now).unwrap()), (to_a, 7));
    assert_eq!(read(&relay.next(a, now).unwrap()), (to_b, 8));
    assert_eq!((relay.next(a, now), relay.next(b, now), relay.waiting()), (None, None, 0));
    assert_eq!(relay.counts().packets, 2);
}

#[test]
fn the_end_of_a_connection_is_told_and_takes_what_waits_along() {
    let now = Instant::now();
    let mut relay = relay(Limits::default());
    let a = enter(&mut relay, &pass(1, 1, &[2]), now);
    let b = enter(&mut relay, &pass(2, 2, &[1]), now);
    relay.forward(a, packet(0, false, 1, 100), now).unwrap();
    relay.forward(b, packet(0, false, 2, 100), now).unwrap();
    relay.news(a, 9);
    relay.leave(b);
    assert_eq!(relay.news(a, 9)[0].room, None);
    assert_eq!(relay.next(a, now), None, "its sender is gone");
    assert_eq!((relay.waiting(), relay.counts().dropped(Dropped::Gone)), (0, 2));
    assert_eq!(relay.forward(b, packet(0, false, 3, 100), now), Err(Dropped::Gone));
    assert_eq!(relay.forward(a, packet(0, false, 4, 100), now), Err(Dropped::Absent));
    // Whoever has its place now has none of its rights.
    let c = enter(&mut relay, &pass(3, 3, &[]), now);
    assert_eq!(c.slot, b.slot);
    assert_eq!(relay.forward(a, packet(0, false, 5, 100), now), Err(Dropped::Absent));
    assert_eq!(relay.forward(b, packet(0, false, 6, 100), now), Err(Dropped::Gone));
    assert_eq!(relay.next(c, now), None);
}

#[test]
fn a_newer_connection_replaces_the_one_before() {
    let now = Instant::now();
    let mut relay = relay(Limits::default());
    let first = enter(&mut relay, &pass(1, 1, &[2]), now);
    let b = enter(&mut relay, &pass(2, 2, &[1]), now);
    let again = relay.enter(&pass(1, 1, &[2]), ROOM, now).unwrap();
    assert_eq!(again.replaced, Some(first));
    assert!(!relay.is_here(first) && relay.is_here(again.session));
    relay.forward(b, packet(0, false, 1, 100), now).unwrap();
    assert_eq!(relay.next(first, now), None);
    assert_eq!(read(&relay.next(again.session, now).unwrap()), (0, 1));
}

#[test]
fn what_waits_both_ways_goes_on_by_a_newer_connection_whatever_that_calls_its_peers() {
    let now = Instant::now();
    let mut relay = relay(Limits::default());
    let first = enter(&mut relay, &pass(1, 1, &[2, 3, 4]), now);
    let peers: Vec<SessionId> =
        [2, 3, 4].map(|n| enter(&mut relay, &pass(n, 2, &[1]), now)).into_iter().collect();
    let told = relay.news(first, 9);
    for (n, peer) in [2, 3, 4].into_iter().zip(&peers) {
        let mark = u32::from(n);
        let to = number_of(&told, n);
        for bulk in [false, true] {
            relay.forward(first, packet(to, bulk, mark, 100), now).unwrap();
            relay.forward(*peer, packet(0, bulk, mark, 100), now).unwrap();
        }
    }
    relay.woken();
    let waited = relay.waiting();
    // It has met another first, names one no more, and calls the others by other numbers.
    let again = relay.enter(&pass(1, 3, &[0, 2, 3]), ROOM, now).unwrap();
    assert_eq!(again.replaced, Some(first));
    assert_eq!(relay.counts().dropped(Dropped::Gone), 4, "with the one that isn't named any more");
    assert_eq!(relay.waiting(), waited - waited / 3);
    assert_eq!(relay.woken(), peers.iter().copied().chain([again.session]).collect());
    let told = relay.news(again.session, 9);
    let mut came: Vec<_> =
        std::iter::from_fn(|| relay.next(again.session, now)).map(|packet| read(&packet)).collect();
    came.sort_unstable();
    let mut expected: Vec<_> =
        [2, 2, 3, 3].into_iter().map(|n| (number_of(&told, n), u32::from(n))).collect();
    expected.sort_unstable();
    assert_eq!(came, expected);
    for (n, peer) in [2u16, 3, 4].into_iter().zip(&peers) {
        let came: Vec<_> =
            std::iter::from_fn(|| relay.next(*peer, now)).map(|packet| read(&packet)).collect();
        let expected = if n == 4 { vec![] } else { vec![(0, u32::from(n)); 2] };
        assert_eq!(came, expected, "{n}");
        // And so does what is sent from now on.
        let sent = relay.forward(*peer, packet(0, false, 9, 100), now);
        assert_eq!(sent, if n == 4 { Err(Dropped::NotShared) } else { Ok(again.session) });
    }
    relay.leave(again.session);
    assert_eq!(relay.waiting(), 0);
}

#[test]
fn what_a_replaced_connection_sends_comes_until_it_has_ended_as_if_the_newer_had_sent_it() {
    let now = Instant::now();
    let rate = Rate { bytes_per_second: 1_000, burst: 500 };
    let mut relay = relay(Limits { rate: Some(rate), ..Limits::default() });
    let first = enter(&mut relay, &pass(1, 1, &[2, 3]), now);
    let [b, c] = [2, 3].map(|n| enter(&mut relay, &pass(n, 2, &[1]), now));
    let told = relay.news(first, 9);
    let (to_b, to_c) = (number_of(&told, 2), number_of(&told, 3));
    // It has met another first, and names one no more.
    let second = enter(&mut relay, &pass(1, 3, &[0, 2]), now);
    assert_eq!(relay.forward(first, packet(to_b, false, 7, 250), now), Ok(b));
    assert_eq!(read(&relay.next(b, now).unwrap()), (0, 7));
    assert_eq!(relay.forward(first, packet(to_c, false, 7, 100), now), Err(Dropped::NotShared));
    assert_eq!(relay.next(c, now), None);
    assert_eq!(relay.forward(first, packet(9, false, 7, 100), now), Err(Dropped::Unknown));
    // They have one rate between them.
    assert_eq!(relay.forward(second, packet(1, false, 8, 400), now), Err(Dropped::Rate));

    let later = now + Duration::from_secs(1);
    let third = enter(&mut relay, &pass(1, 3, &[2]), later);
    assert_eq!(relay.forward(first, packet(to_b, false, 9, 100), later), Err(Dropped::Gone));
    assert_eq!(relay.forward(second, packet(1, false, 9, 100), later), Ok(b));
    relay.leave(second);
    assert_eq!(relay.forward(second, packet(1, false, 9, 100), later), Err(Dropped::Gone));
    assert_eq!(relay.forward(third, packet(0, false, 9, 100), later), Ok(b));
}

#[test]
fn a_rate_isnt_had_anew_by_connecting_again() {
    let now = Instant::now();
    let rate = Rate { bytes_per_second: 1_000, burst: 300 };
    let mut relay = relay(Limits { rate: Some(rate), ..Limits::default() });
    let first = enter(&mut relay, &pass(1, 1, &[2]), now);
    enter(&mut relay, &pass(2, 2, &[1]), now);
    relay.forward(first, packet(0, false, 1, 250), now).unwrap();
    let again = enter(&mut relay, &pass(1, 1, &[2]), now);
    let sent = relay.forward(again, packet(0, false, 1, 250), now);
    assert_eq!(sent, Err(Dropped::Rate));
}

#[test]
fn what_a_peer_can_take_is_told_when_it_changes() {
    let now = Instant::now();
    let mut relay = relay(Limits::default());
    let a = enter(&mut relay, &pass(1, 1, &[2]), now);
    let b = enter(&mut relay, &pass(2, 2, &[1]), now);
    relay.news(a, 9);
    assert!(relay.forward(a, packet(0, false, 1, 1400), now).is_ok());
    relay.woken();
    relay.set_room(b, 1158);
    relay.set_room(b, 1158);
    assert_eq!(relay.woken(), BTreeSet::from([a]));
    assert_eq!(relay.news(a, 9)[0].room, Some(1158));
    assert_eq!(relay.forward(a, packet(0, false, 1, 1159), now), Err(Dropped::TooLong));
    assert!(relay.forward(a, packet(0, false, 1, 1158), now).is_ok());
}

#[test]
fn a_connection_that_has_met_as_many_peers_as_it_may_is_told_to_connect_again() {
    let (mut relay, now) = (relay(Limits::default()), Instant::now());
    let first: Vec<u16> = (100..16_484).collect();
    let others: Vec<u16> = (16_484..32_868).collect();
    let session = enter(&mut relay, &pass(1, 1, &first), now);
    let refused = relay.renew(session, &pass(1, 2, &others), now).unwrap_err();
    assert_eq!(refused.code, RefusalCode::Busy, "{refused:?}");
    let again = enter(&mut relay, &pass(1, 2, &others), now);
    assert_eq!(relay.renew(again, &pass(1, 3, &others), now), Ok(()));
}
