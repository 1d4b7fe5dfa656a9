//! Lanes by themselves: what they keep, and what they answer.

use anteroom_proto::id::GatewayId;
use anteroom_proto::key::TunnelSecret;

use super::*;
use crate::peer::doorman::{Doorman, secret_for};

struct Sent(Vec<Vec<u8>>);

impl Sink for Sent {
    fn frame(
        &mut self,
        _: crate::port::PortId,
        _: VnetHeader,
        _: Option<crate::batch::VlanTag>,
        _: &[&[u8]],
    ) {
    }

    fn datagram(
        &mut self,
        _: SocketAddr,
        _: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let mut bytes = vec![0; capacity];
        let len = write(&mut bytes);
        bytes.truncate(len);
        self.0.push(bytes);
    }
}

fn secret(of: u8) -> TunnelSecret {
    TunnelSecret::from_bytes([of; 32])
}

fn lanes(most: usize) -> (Lanes, Instant) {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
    let now = Instant::now();
    let config = LanesConfig { owner: 1, seed: [2; 32], most };
    (Lanes::new(&config, now), now)
}

fn gateway(of: PeerSlot) -> GatewayId {
    GatewayId::from_bytes([of.index as u8; 16])
}

/// What lanes with a secret are told of a peer.
fn know(own: u8, peer: PeerSlot, key: TunnelPublicKey, to: SocketAddr) -> Order {
    let gateway = gateway(peer);
    let own = OwnLaneKey::new(&secret(own), gateway);
    Order::Know { peer, own, key, term: 1, lanes: 4, to }
}

#[test]
fn lanes_that_come_and_go_take_no_more_memory() {
    let (mut lanes, mut now) = lanes(4);
    let mut out = Sent(Vec::new());
    let peer = PeerSlot { index: 3, generation: 1 };
    let to = SocketAddr::from(([192, 0, 2, 1], 51_820));
    let key = secret(7).public();
    for _ in 0..10_000 {
        lanes.carry_out(know(1, peer, key, to), now, &mut out);
        lanes.carry_out(Order::Open(LaneId { peer, lane: 1 }), now, &mut out);
        assert_eq!(lanes.open_lanes(), 1);
        lanes.carry_out(Order::Forget { peer }, now, &mut out);
        now += Duration::from_millis(10);
        lanes.handle_timeout(now, &mut out);
        out.0.clear();
    }
    assert_eq!((lanes.open_lanes(), lanes.poll_timeout()), (0, None));
    assert!(lanes.lanes.places() <= 80, "{} places", lanes.lanes.places());
}

/// An initiation for lane 1 of whoever has the key `to`.
fn initiation(now: Instant, to: TunnelPublicKey) -> Vec<u8> {
    let config = LanesConfig { owner: 1, seed: [2; 32], most: 4 };
    let mut theirs = Lanes::new(&config, now);
    let mut out = Sent(Vec::new());
    let peer = PeerSlot { index: 5, generation: 1 };
    let at = SocketAddr::from(([192, 0, 2, 99], 51_820));
    theirs.carry_out(know(9, peer, to, at), now, &mut out);
    theirs.carry_out(Order::Open(LaneId { peer, lane: 1 }), now, &mut out);
    out.0.pop().unwrap()
}

#[test]
fn handshakes_are_let_in_from_where_the_peer_is_by_its_own_key_and_at_a_rate() {
    let (mut lanes, now) = lanes(64);
    let mut out = Sent(Vec::new());
    let mut doorman = Doorman::new(&[3; 32], now);
    let place = |last| SocketAddr::from(([192, 0, 2, last], 51_820));
    let slots = [1, 2].map(|index| PeerSlot { index, generation: 1 });
    let theirs = secret_for(&secret(9), GatewayId::from_bytes([5; 16])).public();
    for slot in slots {
        let order = know(1, slot, theirs, place(slot.index as u8));
        doorman.note(&order);
        lanes.carry_out(order, now, &mut out);
    }
    let own = |slot| secret_for(&secret(1), gateway(slot)).public();
    let first = initiation(now, own(slots[0]));
    let at = LaneId { peer: slots[0], lane: 1 };
    assert_eq!(doorman.admit(place(1), &first, now, &mut out), Ok(Some(at)));
    let mut room = vec![0; open_room(first.len())];
    let opened = lanes.open_datagram(place(1), &first, &mut room, now, &mut out);
    assert_eq!(opened, OpenedInLane::Handled);
    assert_eq!((out.0.pop().map(|sent| sent.len()), lanes.open_lanes()), (Some(92), 1));
    // Elsewhere, or by what another peer knows, it is no handshake for a lane.
    for (from, key) in [(place(3), own(slots[0])), (place(1), own(slots[1]))] {
        let other = initiation(now, key);
        assert_eq!(doorman.admit(from, &other, now, &mut out), Ok(None), "{from}");
        let opened = lanes.open_datagram(from, &other, &mut room, now, &mut out);
        assert_eq!(opened, OpenedInLane::Dropped(DropReason::PeerUnauthenticated));
    }
    // The peer itself, or who recorded it: so many, then cookies.
    out.0.clear();
    let let_in =
        (0..5_000).filter(|_| doorman.admit(place(1), &first, now, &mut out).is_ok()).count();
    assert!(let_in < 100, "{let_in} at once");
    assert!(out.0.iter().all(|sent| sent.len() == 64) && !out.0.is_empty(), "cookies");
    let second = initiation(now, own(slots[1]));
    assert!(doorman.admit(place(2), &second, now, &mut out).is_ok(), "others have their own");
    // A peer that moved is looked for there; one that is forgotten nowhere.
    let moved = Order::Move { peer: slots[1], to: place(7) };
    doorman.note(&moved);
    assert_eq!(doorman.admit(place(2), &second, now, &mut out), Ok(None));
    assert!(doorman.admit(place(7), &second, now, &mut out).is_ok_and(|at| at.is_some()));
    let gone = Order::Forget { peer: slots[1] };
    doorman.note(&gone);
    lanes.carry_out(gone, now, &mut out);
    assert_eq!(doorman.admit(place(7), &second, now, &mut out), Ok(None));
}

/// What an initiation that comes to lanes makes of them: how many are open then.
fn open_after(lanes: &mut Lanes, from: SocketAddr, datagram: &[u8], now: Instant) -> usize {
    let mut room = vec![0; open_room(datagram.len())];
    let _ = lanes.open_datagram(from, datagram, &mut room, now, &mut Sent(Vec::new()));
    lanes.open_lanes()
}

#[test]
fn a_handshake_that_nothing_follows_holds_a_lane_for_seconds() {
    let (mut lanes, mut now) = lanes(64);
    let mut out = Sent(Vec::new());
    let (peer, at) = (PeerSlot { index: 1, generation: 1 }, SocketAddr::from(([192, 0, 2, 1], 1)));
    let theirs = secret_for(&secret(9), GatewayId::from_bytes([5; 16])).public();
    lanes.carry_out(know(1, peer, theirs, at), now, &mut out);
    let own = secret_for(&secret(1), gateway(peer)).public();
    let first = initiation(now, own);
    assert_eq!(open_after(&mut lanes, at, &first, now), 1);
    let end = now + open::UNPROVEN;
    while let Some(due) = lanes.poll_timeout().filter(|due| *due <= end) {
        now = due;
        lanes.handle_timeout(now, &mut out);
    }
    assert_eq!((lanes.open_lanes(), lanes.poll_timeout()), (0, None));
    // Whoever recorded it plays it back: at once, which is worth as little; and later.
    assert_eq!(open_after(&mut lanes, at, &first, now), 1);
    now += EXPECTED_FOR;
    lanes.handle_timeout(now, &mut out);
    assert_eq!(open_after(&mut lanes, at, &first, now), 0, "nobody said that it opens a lane");
    lanes.carry_out(Order::Expect { peer }, now, &mut out);
    assert_eq!(open_after(&mut lanes, at, &first, now), 1, "the peer did");
    // One that is damaged makes none.
    lanes.carry_out(Order::Forget { peer }, now, &mut out);
    lanes.carry_out(know(1, peer, secret(8).public(), at), now, &mut out);
    assert_eq!(open_after(&mut lanes, at, &first, now), 0, "another one's handshake");
}

#[test]
fn handshakes_that_nothing_follows_hold_a_part_of_all_lanes() {
    let (mut lanes, now) = lanes(40);
    let mut out = Sent(Vec::new());
    let theirs = secret_for(&secret(9), GatewayId::from_bytes([5; 16])).public();
    let peers = (1..=30).map(|index| PeerSlot { index, generation: 1 });
    for peer in peers {
        let at = SocketAddr::from(([192, 0, 2, peer.index as u8], 1));
        lanes.carry_out(know(1, peer, theirs, at), now, &mut out);
        let own = secret_for(&secret(1), gateway(peer)).public();
        open_after(&mut lanes, at, &initiation(now, own), now);
    }
    assert_eq!(lanes.open_lanes(), 10);
    let peer = PeerSlot { index: 30, generation: 1 };
    lanes.carry_out(Order::Open(LaneId { peer, lane: 1 }), now, &mut out);
    assert_eq!(lanes.open_lanes(), 11, "there is room for what is wanted here");
}

#[test]
fn what_was_for_a_lane_without_a_session_is_told_once() {
    let (mut lanes, now) = lanes(4);
    let mut out = Sent(Vec::new());
    let (peer, to) = (PeerSlot { index: 1, generation: 1 }, SocketAddr::from(([192, 0, 2, 1], 1)));
    let at = LaneId { peer, lane: 1 };
    let mut seal = |lanes: &mut Lanes| {
        let (vnet, packet) = (VnetHeader::default(), &mut [0x45; 60][..]);
        let mut job = Job { at, vnet, network: 0, limit: 1400, packet };
        lanes.seal(&mut job, now, &mut out)
    };
    assert_eq!(seal(&mut lanes), Ok(Taken::NoSession));
    assert_eq!(lanes.poll_event(), None, "whoever had it forgotten knows");
    lanes.carry_out(know(1, peer, secret(8).public(), to), now, &mut Sent(Vec::new()));
    for _ in 0..100 {
        assert_eq!(seal(&mut lanes), Ok(Taken::NoSession));
    }
    assert_eq!(lanes.poll_event(), Some(Event::Gone { at, term: 1 }));
    assert_eq!(lanes.poll_event(), None);
}

fn place(of: PeerSlot) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, of.index as u8], 51_820))
}

/// Another end, which these lanes know as the peer in this slot, and what it sent to open its lane 1.
fn begun(lanes: &mut Lanes, peer: PeerSlot, now: Instant) -> (Lanes, Vec<u8>) {
    let of = peer.index as u8;
    let config = LanesConfig { owner: 1, seed: [of; 32], most: 4 };
    let (mut theirs, mut out) = (Lanes::new(&config, now), Sent(Vec::new()));
    let here = PeerSlot { index: 1, generation: 1 };
    let key = secret_for(&secret(1), gateway(peer)).public();
    theirs.carry_out(know(of, here, key, place(here)), now, &mut out);
    let key = secret_for(&secret(of), gateway(here)).public();
    lanes.carry_out(know(1, peer, key, place(peer)), now, &mut out);
    theirs.carry_out(Order::Open(LaneId { peer: here, lane: 1 }), now, &mut out);
    (theirs, out.0.pop().unwrap())
}

/// Carries what an end of lanes sends to the other until there is no more.
fn carry(lanes: &mut Lanes, (theirs, peer): (&mut Lanes, PeerSlot), first: &[u8], now: Instant) {
    let here = place(PeerSlot { index: 1, generation: 1 });
    let (mut to_us, mut room) = (Sent(vec![first.to_vec()]), vec![0; 2000]);
    while !to_us.0.is_empty() {
        let mut to_them = Sent(Vec::new());
        for datagram in std::mem::take(&mut to_us.0) {
            let _ = lanes.open_datagram(place(peer), &datagram, &mut room, now, &mut to_them);
        }
        for datagram in to_them.0 {
            let _ = theirs.open_datagram(here, &datagram, &mut room, now, &mut to_us);
        }
    }
}

fn events(lanes: &mut Lanes) -> Vec<Event> {
    std::iter::from_fn(|| lanes.poll_event()).collect()
}

/// Lets time pass.
fn pass(lanes: &mut Lanes, now: &mut Instant, seconds: u64) {
    let end = *now + Duration::from_secs(seconds);
    while let Some(due) = lanes.poll_timeout().filter(|due| *due <= end) {
        *now = (*now).max(due);
        lanes.handle_timeout(*now, &mut Sent(Vec::new()));
    }
    *now = end;
}

#[test]
fn where_all_lanes_are_taken_the_one_that_nobody_uses_makes_room() {
    let (mut lanes, mut now) = lanes(2);
    let [first, second] = [5, 6].map(|index| PeerSlot { index, generation: 1 });
    let (mut theirs, message) = begun(&mut lanes, first, now);
    carry(&mut lanes, (&mut theirs, first), &message, now);
    let used = LaneId { peer: first, lane: 1 };
    assert_eq!(events(&mut lanes), [Event::Ready { at: used, term: 1 }]);
    let _ = begun(&mut lanes, second, now);
    let open = |lanes: &mut Lanes, lane, now| {
        let at = LaneId { peer: second, lane };
        lanes.carry_out(Order::Open(at), now, &mut Sent(Vec::new()));
        let full = events(lanes).contains(&Event::Full(at));
        assert_eq!(lanes.open_lanes(), 2, "lane {lane}");
        !full
    };
    assert!(open(&mut lanes, 1, now));
    assert!(!open(&mut lanes, 2, now), "both are in use");
    // It isn't used, but the peer may not have found out that nothing comes any more.
    pass(&mut lanes, &mut now, 35);
    assert!(lanes.lanes.iter().any(|(_, lane)| lane.at == used));
    assert!(open(&mut lanes, 1, now), "what was pursued in vain has gone");
    assert!(!open(&mut lanes, 2, now), "what the peer may still use stays");
    pass(&mut lanes, &mut now, 6);
    assert!(open(&mut lanes, 2, now), "nobody uses it");
    assert!(!lanes.lanes.iter().any(|(_, lane)| lane.at == used));
    assert!(!open(&mut lanes, 3, now), "the others are wanted");
    pass(&mut lanes, &mut now, 40);
    let closed = |lane| Event::Closed { at: LaneId { peer: second, lane }, term: 1 };
    assert_eq!(events(&mut lanes), [closed(1), closed(2)], "and are told to be gone");
}

#[test]
fn what_peers_began_leaves_room_for_what_is_wanted_here() {
    let (mut lanes, now) = lanes(8);
    for index in 10..20 {
        let peer = PeerSlot { index, generation: 1 };
        let (mut theirs, message) = begun(&mut lanes, peer, now);
        carry(&mut lanes, (&mut theirs, peer), &message, now);
    }
    assert_eq!(lanes.open_lanes(), 6);
    assert_eq!(events(&mut lanes).len(), 6, "all of them are good");
    for lane in [2, 3] {
        let at = LaneId { peer: PeerSlot { index: 19, generation: 1 }, lane };
        lanes.carry_out(Order::Open(at), now, &mut Sent(Vec::new()));
    }
    assert_eq!((lanes.open_lanes(), events(&mut lanes)), (8, vec![]));
}

#[test]
fn a_peer_whose_clock_was_set_back_has_lanes_again_once_the_old_ones_are_quiet() {
    let (mut lanes, mut now) = lanes(8);
    let peer = PeerSlot { index: 5, generation: 1 };
    // Of two handshakes the earlier one comes after the later.
    let (_, early) = begun(&mut lanes, peer, now);
    let (mut theirs, late) = begun(&mut lanes, peer, now);
    carry(&mut lanes, (&mut theirs, peer), &late, now);
    assert_eq!(events(&mut lanes).len(), 1, "it is good");
    let mut room = vec![0; 2000];
    let mut again = |lanes: &mut Lanes, now| {
        lanes.carry_out(Order::Expect { peer }, now, &mut Sent(Vec::new()));
        let mut out = Sent(Vec::new());
        let opened = lanes.open_datagram(place(peer), &early, &mut room, now, &mut out);
        (opened == OpenedInLane::Handled, lanes.open_lanes())
    };
    assert_eq!(again(&mut lanes, now), (false, 1), "a copy ends no lane");
    pass(&mut lanes, &mut now, 30);
    assert_eq!(again(&mut lanes, now), (false, 1), "nor while the peer may use it");
    pass(&mut lanes, &mut now, 15);
    assert_eq!(again(&mut lanes, now), (false, 0));
    assert_eq!(again(&mut lanes, now), (true, 1), "the next begins one");
}

/// Carries one packet that `from` seals for the other end. Says whether it comes out there.
fn passes(
    from: &mut Lanes,
    at: LaneId,
    (to, whence): (&mut Lanes, SocketAddr),
    now: Instant,
) -> bool {
    let mut packet = [0; 60];
    packet[..4].copy_from_slice(&[0x45, 0, 0, 60]);
    let (vnet, mut out) = (VnetHeader::default(), Sent(Vec::new()));
    let mut job = Job { at, vnet, network: 0, limit: 1400, packet: &mut packet };
    assert_eq!(from.seal(&mut job, now, &mut out), Ok(Taken::Yes));
    let (datagram, mut room) = (out.0.pop().unwrap(), vec![0; 2000]);
    let opened = to.open_datagram(whence, &datagram, &mut room, now, &mut Sent(Vec::new()));
    matches!(opened, OpenedInLane::Packet { .. })
}

#[test]
fn what_is_under_way_by_a_key_that_was_replaced_is_opened_for_half_a_minute_at_most() {
    for busy in [true, false] {
        let (mut lanes, mut now) = lanes(8);
        let peer = PeerSlot { index: 5, generation: 1 };
        let here = PeerSlot { index: 1, generation: 1 };
        let (mut theirs, message) = begun(&mut lanes, peer, now);
        carry(&mut lanes, (&mut theirs, peer), &message, now);
        let (there, at) = (LaneId { peer: here, lane: 1 }, LaneId { peer, lane: 1 });
        assert!(passes(&mut theirs, there, (&mut lanes, place(peer)), now));
        let key = secret_for(&secret(5), gateway(here)).public();
        let other = |of, term| Order::Know {
            peer,
            own: OwnLaneKey::new(&secret(of), gateway(peer)),
            key,
            term,
            lanes: 4,
            to: place(peer),
        };
        lanes.carry_out(other(2, 2), now, &mut Sent(Vec::new()));
        assert_eq!(lanes.open_lanes(), 0, "nothing is sent through it");
        let (vnet, packet) = (VnetHeader::default(), &mut [0x45; 60][..]);
        let mut job = Job { at, vnet, network: 0, limit: 1400, packet };
        assert_eq!(lanes.seal(&mut job, now, &mut Sent(Vec::new())), Ok(Taken::NoSession));
        let mut lasted = 0;
        for second in 0..60 {
            if second % if busy { 5 } else { 15 } == 0 {
                lasted += usize::from(passes(&mut theirs, there, (&mut lanes, place(peer)), now));
            }
            pass(&mut lanes, &mut now, 1);
        }
        assert_eq!(lasted, if busy { 6 } else { 1 }, "busy: {busy}");
        assert_eq!((lanes.lanes.iter().count(), lanes.retired.len()), (0, 0));
    }
}

#[test]
fn lanes_with_replaced_keys_are_bounded_and_go_with_their_peer() {
    let (mut lanes, now) = lanes(4);
    let here = PeerSlot { index: 1, generation: 1 };
    let peers = [5, 6, 7].map(|index| PeerSlot { index, generation: 1 });
    for term in 2..20 {
        for peer in peers {
            let (mut theirs, message) = begun(&mut lanes, peer, now);
            carry(&mut lanes, (&mut theirs, peer), &message, now);
            let own = OwnLaneKey::new(&secret(term as u8 + 0x20), gateway(peer));
            let key = secret_for(&secret(peer.index as u8), gateway(here)).public();
            let to = place(peer);
            let know = Order::Know { peer, own, key, term, lanes: 4, to };
            lanes.carry_out(know, now, &mut Sent(Vec::new()));
            assert!(lanes.retired.len() <= 4 && lanes.lanes.iter().count() <= 8);
        }
    }
    assert!(!lanes.retired.is_empty());
    for peer in peers {
        lanes.carry_out(Order::Forget { peer }, now, &mut Sent(Vec::new()));
    }
    assert_eq!((lanes.lanes.iter().count(), lanes.retired.len(), lanes.open_lanes()), (0, 0, 0));
}
