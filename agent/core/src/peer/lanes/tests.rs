//! Lanes by themselves: what they keep, and what they answer.

use super::*;
use crate::peer::doorman::Doorman;

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
    let config = LanesConfig { secret: secret(1), owner: 1, seed: [2; 32], most };
    (Lanes::new(&config, now), now)
}

fn gateway(of: PeerSlot) -> GatewayId {
    GatewayId::from_bytes([of.index as u8; 16])
}

/// What lanes with a secret are told of a peer.
fn know(own: u8, peer: PeerSlot, key: TunnelPublicKey, to: SocketAddr) -> Order {
    let gateway = gateway(peer);
    let own = secret_for(&secret(own), gateway).public();
    Order::Know { peer, gateway, own, key, lanes: 4, to }
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
    let config = LanesConfig { secret: secret(9), owner: 1, seed: [2; 32], most: 4 };
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
