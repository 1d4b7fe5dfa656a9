//! What peers may say about lanes, true or not.

use anteroom_proto::id::GatewayId;
use anteroom_proto::key::TunnelSecret;
use proptest::prelude::*;

use super::entry::{KEYS_IN, MAX_KEYS};
use super::*;
use crate::lane::secret_for;
use crate::peer::{Config, PeerConfig};

const OWN: u8 = 1;
const DEVICE: StationId = StationId(3);
const BOOT: BootId = BootId::from_bytes([7; 16]);

fn key(of: u8) -> TunnelPublicKey {
    TunnelSecret::from_bytes([of; 32]).public()
}

fn main_key(peer: u8) -> TunnelPublicKey {
    key(0x80 + peer)
}

/// The book's key for a peer.
fn ours(at: u8) -> LaneKey {
    let of = secret_for(&TunnelSecret::from_bytes([OWN; 32]), GatewayId::from_bytes([at; 16]));
    LaneKey(*of.public().as_bytes())
}

fn offer_from(at: u8, of: u8, holds: Option<u8>, ask: bool) -> LaneOffer {
    let raw = |of| if of == OWN { ours(at) } else { LaneKey(*key(of).as_bytes()) };
    let holds = holds.map(raw);
    LaneOffer { boot: BOOT, key: raw(of), lanes: 2, holds, ask, answer: false, number: 0 }
}

fn offer(of: u8, holds: Option<u8>, ask: bool) -> LaneOffer {
    offer_from(0, of, holds, ask)
}

/// A book with three peers.
fn book() -> (Book, Peers, [PeerSlot; 3], Instant) {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
    let now = Instant::now();
    let config = Config {
        secret: TunnelSecret::from_bytes([0x70; 32]),
        boot: BootId::from_bytes([1; 16]),
        seed: [3; 32],
        owner: 0,
        capabilities: Vec::new(),
    };
    let mut peers = Peers::new(config, now);
    peers.set_peers(&[0, 1, 2].map(peer), now);
    let slots = [0, 1, 2].map(|at| peers.slot(peer(at).gateway).unwrap());
    slots.iter().for_each(|slot| peers.said_for_tests(*slot, BOOT, now));
    (Book::new(&TunnelSecret::from_bytes([OWN; 32]), BOOT, 4), peers, slots, now)
}

fn peer(at: u8) -> PeerConfig {
    PeerConfig {
        gateway: GatewayId::from_bytes([at; 16]),
        overlay: std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, at.into()),
        keys: vec![main_key(at)],
        endpoints: vec![SocketAddr::from(([192, 0, 2, at], 51_820))],
        relation: 0,
        kems: Vec::new(),
        client: false,
    }
}

fn orders(book: &mut Book) -> Vec<Order> {
    std::iter::from_fn(|| book.poll_order()).collect()
}

/// The agreement that a peer's lanes are of by now.
fn term(orders: &[Order]) -> u32 {
    let known = orders.iter().rev().find_map(|order| match order {
        Order::Know { term, .. } => Some(*term),
        _ => None,
    });
    known.unwrap_or_else(|| panic!("no agreement: {orders:?}"))
}

#[test]
fn nobody_uses_a_lane_before_the_other_end_holds_its_key() {
    let (mut book, mut peers, [slot, ..], now) = book();
    book.hear(slot, main_key(0), &offer(10, None, true), &mut peers, now);
    let (_, answer) = book.poll_offer().unwrap();
    assert_eq!(answer.holds, Some(LaneKey(*key(10).as_bytes())));
    assert!(answer.ask, "it doesn't hold ours yet");
    assert_eq!(book.want((slot, DEVICE), 0, &mut peers, now), 0);
    let told = orders(&mut book);
    assert!(!told.iter().any(|order| matches!(order, Order::Open(_))));
    assert!(book.poll_offer().is_some_and(|(_, offer)| offer.ask), "it is asked");
    let term = term(&told);
    book.hear(slot, main_key(0), &offer(10, Some(OWN), false), &mut peers, now);
    assert_eq!(book.poll_offer(), None, "nobody asked");
    assert_eq!(book.want((slot, DEVICE), 0, &mut peers, now), 0, "not ready yet");
    let Some(Order::Open(at)) = orders(&mut book).pop() else { panic!("nothing is opened") };
    assert_eq!(book.want((slot, DEVICE), 0, &mut peers, now), 0);
    assert_eq!(orders(&mut book), [], "ordered once");
    book.note(Event::Ready { at, term }, now);
    assert_eq!(book.want((slot, DEVICE), 0, &mut peers, now), at.lane);
    assert_eq!(book.standing(slot), Standing { agreed: 2, ready: 1 });
    // It says that it has lost our key.
    book.hear(slot, main_key(0), &offer(10, None, false), &mut peers, now);
    assert!(!book.is_ready(at));
}

#[test]
fn nothing_is_taken_of_one_that_said_no_hello() {
    let (mut book, mut peers, ..) = book();
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
    let now = Instant::now();
    peers.set_peers(&[peer(9)], now);
    let slot = peers.slot(peer(9).gateway).unwrap();
    book.hear(slot, main_key(9), &offer_from(9, 10, Some(OWN), true), &mut peers, now);
    assert_eq!((orders(&mut book), book.poll_offer(), book.turned_away()), (vec![], None, 1));
    peers.said_for_tests(slot, BOOT, now);
    book.hear(slot, main_key(9), &offer_from(9, 10, Some(OWN), true), &mut peers, now);
    assert_eq!(book.standing(slot).agreed, 2);
}

#[test]
fn keys_that_are_anybody_elses_are_turned_away() {
    let (mut book, mut peers, [first, second, _], now) = book();
    book.hear(first, main_key(0), &offer(10, Some(OWN), false), &mut peers, now);
    let kept = book.standing(first);
    for theirs in [OWN, 0x70, 0x80, 0x81, 0x82] {
        book.hear(second, main_key(1), &offer_from(1, theirs, Some(OWN), true), &mut peers, now);
        assert_eq!(book.standing(second), Standing::default(), "{theirs:#x}");
        assert_eq!(book.poll_offer().unwrap().1.holds, None, "{theirs:#x}");
    }
    let low_order = LaneOffer { key: LaneKey([0; 32]), ..offer_from(1, 0, Some(OWN), false) };
    book.hear(second, main_key(1), &low_order, &mut peers, now);
    assert_eq!(book.turned_away(), 6);
    assert_eq!(book.standing(first), kept);
}

#[test]
fn whoever_claims_anothers_lane_key_takes_nothing_away() {
    let (mut book, mut peers, [first, second, _], now) = book();
    for claimed_first in [true, false] {
        if claimed_first {
            book.hear(second, main_key(1), &offer_from(1, 10, Some(OWN), false), &mut peers, now);
        }
        book.hear(first, main_key(0), &offer(10, Some(OWN), false), &mut peers, now);
        assert_eq!(book.standing(first).agreed, 2);
    }
    let told = orders(&mut book);
    let own = |slot| {
        told.iter().find_map(|order| match order {
            Order::Know { peer, own, .. } if *peer == slot => Some(own.clone()),
            _ => None,
        })
    };
    assert!(own(first) != own(second) && own(first).is_some(), "{told:?}");
}

#[test]
fn a_peer_that_has_new_keys_all_the_time_is_not_listened_to() {
    let (mut book, mut peers, [slot, other, _], now) = book();
    for of in 20..60 {
        book.hear(slot, main_key(0), &offer(of, Some(OWN), false), &mut peers, now);
    }
    assert_eq!(book.standing(slot), Standing::default());
    assert!(orders(&mut book).len() <= 3 * MAX_KEYS as usize);
    book.hear(other, main_key(1), &offer_from(1, 10, Some(OWN), false), &mut peers, now);
    assert_eq!(book.standing(other).agreed, 2, "others are");
    let later = now + KEYS_IN;
    book.hear(slot, main_key(0), &offer(99, Some(OWN), false), &mut peers, later);
    assert_eq!(book.standing(slot).agreed, 2, "and so is it, after a while");
}

#[test]
fn a_key_that_went_doesnt_give_back_what_may_be_looked_at() {
    let (mut book, mut peers, [slot, ..], now) = book();
    let mut heard = 0;
    for of in 20..60 {
        book.hear(slot, main_key(0), &offer(of, Some(OWN), false), &mut peers, now);
        heard += usize::from(book.standing(slot).agreed > 0);
        // Its main key goes and comes again, as when both are renewed.
        for keys in [vec![key(0x77)], vec![main_key(0)]] {
            peers.set_peers(&[PeerConfig { keys, ..peer(0) }], now);
            while let Some(number) = peers.poll_review() {
                book.review(number, &peers, now);
            }
        }
    }
    assert!(heard <= MAX_KEYS as usize, "{heard} keys were taken");
}

#[test]
fn a_peer_that_lost_our_key_has_its_lanes_closed_here() {
    let (mut book, mut peers, [slot, ..], now) = book();
    book.hear(slot, main_key(0), &offer(10, Some(OWN), false), &mut peers, now);
    let at = LaneId { peer: slot, lane: 1 };
    let term = term(&orders(&mut book));
    book.note(Event::Ready { at, term }, now);
    assert!(book.is_ready(at));
    book.hear(slot, main_key(0), &offer(10, None, false), &mut peers, now);
    let told = orders(&mut book);
    assert!(
        matches!(told[..], [Order::Forget { .. }, Order::Know { lanes: 2, .. }]),
        "its tunnels are to go: {told:?}"
    );
    book.hear(slot, main_key(0), &offer(10, Some(OWN), false), &mut peers, now);
    assert!(!book.is_ready(at), "what was ready was with an end that is gone");
    assert_eq!(book.standing(slot), Standing { agreed: 2, ready: 0 });
    // Saying so again and again isn't free.
    for holds in [None, Some(OWN)].repeat(30) {
        book.hear(slot, main_key(0), &offer(10, holds, false), &mut peers, now);
    }
    assert!(orders(&mut book).len() <= 3 * MAX_KEYS as usize);
}

#[test]
fn what_is_told_of_an_agreement_before_counts_for_nothing() {
    let (mut book, mut peers, [slot, ..], now) = book();
    let at = LaneId { peer: slot, lane: 1 };
    book.hear(slot, main_key(0), &offer(10, Some(OWN), false), &mut peers, now);
    let before = term(&orders(&mut book));
    // The same key again.
    for between in [offer(10, None, false), offer(11, Some(OWN), false)] {
        book.hear(slot, main_key(0), &between, &mut peers, now);
        book.hear(slot, main_key(0), &offer(10, Some(OWN), false), &mut peers, now);
        let current = term(&orders(&mut book));
        assert!(current != before, "{between:?}");
        book.note(Event::Ready { at, term: before }, now);
        assert!(!book.is_ready(at), "a lane that is gone by now: {between:?}");
        book.note(Event::Ready { at, term: current }, now);
        assert!(book.is_ready(at), "{between:?}");
        book.note(Event::Gone { at, term: before }, now);
        assert!(book.is_ready(at), "another lane went: {between:?}");
        book.note(Event::Gone { at, term: current }, now);
        assert!(!book.is_ready(at), "{between:?}");
    }
}

#[test]
fn as_many_lanes_as_the_end_that_has_fewer() {
    for (theirs, agreed) in [(1, 1), (4, 4), (255, 4), (0, 0)] {
        let (mut book, mut peers, [slot, ..], now) = book();
        let offer = LaneOffer { lanes: theirs, ..offer(10, Some(OWN), false) };
        book.hear(slot, main_key(0), &offer, &mut peers, now);
        assert_eq!(book.standing(slot).agreed, agreed, "{theirs}");
        for hash in 0..20_u64 {
            book.want((slot, DEVICE), hash << 32, &mut peers, now);
        }
        for order in orders(&mut book) {
            assert!(!matches!(order, Order::Open(at) if at.lane == 0 || at.lane > agreed));
        }
    }
}

#[test]
fn a_run_has_as_many_lanes_as_ever() {
    let (mut book, mut peers, [slot, ..], now) = book();
    book.hear(slot, main_key(0), &offer(10, Some(OWN), false), &mut peers, now);
    assert_eq!(orders(&mut book).len(), 1);
    for lanes in [1, 3, 0, 4] {
        let other = LaneOffer { lanes, ..offer(10, Some(OWN), false) };
        book.hear(slot, main_key(0), &other, &mut peers, now);
    }
    assert_eq!((orders(&mut book), book.turned_away()), (vec![], 4), "it makes work for nobody");
    assert_eq!(book.standing(slot).agreed, 2);
}

#[test]
fn what_was_overtaken_on_the_way_counts_for_nothing() {
    let (mut book, mut peers, [slot, ..], now) = book();
    let said = |number, holds| LaneOffer { number, ..offer(10, holds, true) };
    book.hear(slot, main_key(0), &said(7, Some(OWN)), &mut peers, now);
    assert_eq!(book.standing(slot).agreed, 2);
    orders(&mut book);
    let ours = book.poll_offer().unwrap().1.number;
    for number in [1, 6, 7] {
        book.hear(slot, main_key(0), &said(number, None), &mut peers, now);
        assert_eq!((book.standing(slot).agreed, book.poll_offer()), (2, None), "{number}");
    }
    assert_eq!((orders(&mut book), book.turned_away()), (vec![], 3));
    book.hear(slot, main_key(0), &said(8, None), &mut peers, now);
    assert_eq!(book.standing(slot).agreed, 0, "what is new counts");
    assert!(book.poll_offer().unwrap().1.number > ours);
    // Another run begins anew.
    let other = BootId::from_bytes([0x77; 16]);
    peers.said_for_tests(slot, other, now);
    book.review(slot.number(), &peers, now);
    let first = LaneOffer { boot: other, ..said(1, Some(OWN)) };
    book.hear(slot, main_key(0), &first, &mut peers, now);
    assert_eq!(book.standing(slot).agreed, 2);
}

#[test]
fn a_device_has_a_part_of_all_lanes() {
    let (mut book, mut peers, _, mut now) = book();
    let all: Vec<u8> = (10..50).collect();
    peers.set_peers(&all.iter().map(|at| peer(*at)).collect::<Vec<_>>(), now);
    let mut terms = Vec::new();
    for at in all {
        let slot = peers.slot(peer(at).gateway).unwrap();
        peers.said_for_tests(slot, BOOT, now);
        let key = LaneKey(*key(at).as_bytes());
        let said = LaneOffer { key, ..offer_from(at, OWN, Some(OWN), false) };
        book.hear(slot, main_key(at), &said, &mut peers, now);
        terms.push((slot, term(&orders(&mut book))));
    }
    let other = StationId(4);
    let mut opened = |book: &mut Book, device, now| {
        for (slot, _) in &terms {
            for hash in 0..2_u64 {
                book.want((*slot, device), hash << 32, &mut peers, now);
            }
        }
        let open = |order: &Order| matches!(order, Order::Open(_));
        orders(book).into_iter().filter(open).collect::<Vec<_>>()
    };
    let greedy = opened(&mut book, DEVICE, now);
    // Both lanes to each of so many peers, and the first one to each of the others.
    let part = usize::from(MOST_OF_DEVICE) + terms.len() - usize::from(MOST_OF_DEVICE) / 2;
    assert_eq!(greedy.len(), part);
    now += ASK_AGAIN;
    assert_eq!(opened(&mut book, other, now).len(), 80 - part, "those that are left");
    // What is closed, and what found no room, counts for nobody.
    for (number, (slot, term)) in terms.iter().enumerate() {
        for lane in [1, 2] {
            let at = LaneId { peer: *slot, lane };
            let end =
                if number % 2 == 0 { Event::Closed { at, term: *term } } else { Event::Full(at) };
            book.note(end, now);
        }
    }
    assert!(book.shares.is_empty(), "{:?}", book.shares);
    now += OPEN_AGAIN;
    assert_eq!(opened(&mut book, other, now).len(), part);
    for (slot, _) in &terms {
        book.drop_key(*slot);
    }
    assert!(book.shares.is_empty(), "{:?}", book.shares);
}

#[test]
fn a_device_beyond_its_part_takes_any_lane_that_can_be_used() {
    let (mut book, mut peers, [slot, ..], mut now) = book();
    book.hear(slot, main_key(0), &offer(10, Some(OWN), false), &mut peers, now);
    let term = term(&orders(&mut book));
    book.shares.insert(DEVICE, MOST_OF_DEVICE);
    assert_eq!(book.want((slot, DEVICE), 0, &mut peers, now), 0);
    let [Order::Open(at)] = orders(&mut book)[..] else { panic!("nobody's bulk stays in lane 0") };
    book.note(Event::Ready { at, term }, now);
    let turned_away = book.turned_away();
    for _ in 0..10 {
        assert_eq!(book.want((slot, DEVICE), 1 << 32, &mut peers, now), at.lane, "not its own");
    }
    assert_eq!(book.turned_away(), turned_away + 1, "counted for the lane, not for each packet");
    now += ASK_AGAIN;
    book.want((slot, DEVICE), 1 << 32, &mut peers, now);
    assert_eq!(book.turned_away(), turned_away + 2);
    assert_eq!(orders(&mut book), []);
}

#[test]
fn a_peer_is_asked_until_it_has_answered_through_the_tunnel_that_is_used() {
    let (mut book, mut peers, [slot, ..], mut now) = book();
    book.hear(slot, main_key(0), &offer(10, Some(OWN), false), &mut peers, now);
    let newer = PeerConfig { keys: vec![main_key(0), key(0x77)], ..peer(0) };
    peers.set_peers(std::slice::from_ref(&newer), now);
    peers.send_by_for_tests(slot, &key(0x77));
    while let Some(number) = peers.poll_review() {
        book.review(number, &peers, now);
    }
    for asked in 0..20 {
        let (_, offer) = book.poll_offer().unwrap_or_else(|| panic!("asked {asked} times only"));
        assert!(offer.ask && offer.holds.is_some(), "{offer:?}");
        assert_eq!(book.poll_offer(), None);
        let next = book.poll_timeout().unwrap();
        assert!(next > now && next <= now + Duration::from_secs(8), "{:?}", next - now);
        now = next;
        book.handle_timeout(&peers, now);
    }
    book.poll_offer();
    book.hear(slot, key(0x77), &offer(10, Some(OWN), false), &mut peers, now);
    book.handle_timeout(&peers, now + Duration::from_secs(60));
    assert_eq!((book.poll_offer(), book.poll_timeout()), (None, None));
    // So the older key may go.
    peers.set_peers(&[PeerConfig { keys: vec![key(0x77)], ..newer }], now);
    while let Some(number) = peers.poll_review() {
        book.review(number, &peers, now);
    }
    assert_eq!(book.standing(slot).agreed, 2);
}

#[test]
fn lanes_are_made_known_once_a_peer_is_somewhere() {
    let (mut book, mut peers, _, now) = book();
    let nowhere = PeerConfig { endpoints: Vec::new(), ..peer(9) };
    peers.set_peers(std::slice::from_ref(&nowhere), now);
    let slot = peers.slot(nowhere.gateway).unwrap();
    peers.said_for_tests(slot, BOOT, now);
    book.hear(slot, main_key(9), &offer_from(9, 10, Some(OWN), false), &mut peers, now);
    assert!(!orders(&mut book).iter().any(|order| matches!(order, Order::Know { .. })));
    peers.set_peers(&[peer(9)], now);
    while let Some(number) = peers.poll_review() {
        book.review(number, &peers, now);
    }
    let told = orders(&mut book);
    assert!(matches!(told[..], [Order::Know { .. }]), "{told:?}");
}

#[test]
fn another_run_another_place_and_no_key_any_more() {
    let (mut book, mut peers, [slot, ..], now) = book();
    book.hear(slot, main_key(0), &offer(10, Some(OWN), false), &mut peers, now);
    orders(&mut book);
    assert_eq!(peers.poll_review(), None);
    let moved = PeerConfig { endpoints: vec!["192.0.2.99:1".parse().unwrap()], ..peer(0) };
    peers.set_peers(std::slice::from_ref(&moved), now);
    let to = moved.endpoints[0];
    while let Some(number) = peers.poll_review() {
        book.review(number, &peers, now);
    }
    assert_eq!(orders(&mut book), [Order::Move { peer: slot, to }]);
    peers.set_peers(&[PeerConfig { keys: vec![key(0x77)], ..moved }], now);
    while let Some(number) = peers.poll_review() {
        book.review(number, &peers, now);
    }
    assert_eq!(orders(&mut book), [Order::Forget { peer: slot }]);
    assert_eq!(book.standing(slot), Standing::default());
}

#[test]
fn a_peer_that_is_removed_takes_its_lanes_along() {
    let (mut book, mut peers, [slot, ..], now) = book();
    book.hear(slot, main_key(0), &offer(10, Some(OWN), false), &mut peers, now);
    orders(&mut book);
    peers.set_peers(&[], now);
    while let Some(number) = peers.poll_review() {
        book.review(number, &peers, now);
    }
    assert_eq!(orders(&mut book), [Order::Forget { peer: slot }]);
    assert!(book.entries.is_empty());
}

proptest! {
    // Keys take long to make.
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn whatever_peers_say_nothing_grows(
        said in prop::collection::vec((0..3_usize, 10..14_u8, prop::option::of(0..3_u8), any::<u8>(), any::<bool>(), 0..5_u64), 0..80),
    ) {
        let (mut book, mut peers, slots, mut now) = book();
        for (from, of, holds, lanes, ask, seconds) in said {
            now += Duration::from_secs(seconds);
            let offer = LaneOffer { lanes, ..offer_from(from as u8, of, holds, ask) };
            book.hear(slots[from], main_key(from as u8), &offer, &mut peers, now);
            prop_assert!(book.entries.len() <= 3 && book.offers.len() <= 1);
            book.offers.clear();
            let lane = book.want((slots[from], DEVICE), of.into(), &mut peers, now);
            prop_assert_eq!(lane, 0, "nothing is ready");
            prop_assert!(book.offers.len() <= 1);
            book.offers.clear();
            orders(&mut book);
        }
    }
}
