//! Pre-shared keys: agreed on with a stand-in for ML-KEM that has its shape, its randomness apart.

use std::cell::Cell;
use std::sync::Arc;

use anteroom_proto::cbor::Blob;
use anteroom_proto::key::Hash;
use anteroom_proto::v1::telemetry::Secrecy as State;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::rotation::{Rotation, change_again_and_again, secret};
use super::*;
use crate::peer::message::{Message, SecretHeld, SecretPart};
use crate::peer::{CIPHERTEXT_LEN, Kem, OwnKem, PeerKem};

mod said;

/// The bit of a receiver index, as it travels, that says that there is a pre-shared key.
const PSK: u32 = 1 << 27;
/// Longer than anything that the gateways say to each other.
const LONG: usize = 700;

/// What a side's keys agree on pre-shared keys with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kems {
    /// Nothing: an old version.
    None,
    /// As it should be.
    Good,
    /// The bindings name keys that this side doesn't have: an old version took over from a newer one.
    Unheld,
    /// It encapsulates so that nobody else comes to the same secret.
    Garbage,
    /// Of its keys the first works, and the others as with [`Self::Garbage`].
    GarbageLater,
}

struct Fake {
    key: TunnelPublicKey,
    garbage: bool,
}

thread_local! {
    /// Counts what this test encapsulated, in place of randomness.
    static MADE: Cell<u64> = const { Cell::new(0) };
}

fn shared(of: &[u8], ciphertext: &[u8]) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(Sha256::new().chain_update(of).chain_update(ciphertext).finalize().into())
}

impl Kem for Fake {
    fn encapsulate(&self, to: &[u8]) -> Option<(Vec<u8>, Zeroizing<[u8; 32]>)> {
        let number = MADE.replace(MADE.get() + 1);
        let mut ciphertext = vec![number as u8; CIPHERTEXT_LEN];
        ciphertext[..8].copy_from_slice(&number.to_be_bytes());
        let of = if self.garbage { &[0; 32] } else { to };
        (to.len() == 32).then(|| (ciphertext.clone(), shared(of, &ciphertext)))
    }

    fn decapsulate(&self, ciphertext: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
        assert_eq!(ciphertext.len(), CIPHERTEXT_LEN);
        Some(shared(self.key.as_bytes(), ciphertext))
    }
}

fn binding(key: TunnelPublicKey) -> Hash {
    Hash::of("a binding", &[key.as_bytes()])
}

impl Kems {
    pub(super) fn own(self, secret: &TunnelSecret) -> Option<OwnKem> {
        if matches!(self, Self::None | Self::Unheld) {
            return None;
        }
        let key = secret.public();
        let first = secret.as_bytes()[0] < 100;
        let garbage = self == Self::Garbage || (self == Self::GarbageLater && !first);
        Some(OwnKem { binding: binding(key), kem: Arc::new(Fake { key, garbage }) })
    }

    pub(super) fn theirs(self, secret: &TunnelSecret) -> Option<PeerKem> {
        let key = secret.public();
        let encapsulation = key.as_bytes().as_slice().into();
        (self != Self::None).then(|| PeerKem { key, binding: binding(key), encapsulation })
    }
}

impl Rotation {
    fn states(&self) -> [State; 2] {
        [0, 1].map(|side| {
            let other = self.world.sides[1 - side].gateway;
            self.world.sides[side].peer(other).secrecy.state
        })
    }

    fn assert_quantum(&self) {
        let peers = [&self.world.sides[0].peers, &self.world.sides[1].peers];
        assert_eq!(self.states(), [State::MlKem768; 2], "{peers:#?}");
    }

    /// A long packet from one side to the other.
    fn send_long(&mut self, from: usize) {
        self.pings[from] += 1;
        let number = self.pings[from];
        let sent = self.world.send(from, 1 - from, &packet(number, LONG));
        assert!(!matches!(sent, Sent::Dropped(_)), "{sent:?}");
    }

    /// Sends long packets both ways for a while.
    fn long_for(&mut self, time: Duration) {
        let end = self.world.now + time;
        while self.world.now < end {
            self.send_long(0);
            self.send_long(1);
            self.world.run(Duration::from_millis(100));
        }
    }

    /// How many long packets arrived, and how many datagrams with such ones went with and without a pre-shared key.
    fn long(&self) -> ([usize; 2], usize, usize) {
        let data = self.world.delivered.iter().filter(|(_, _, datagram)| datagram.len() > LONG);
        let (with, without): (Vec<_>, Vec<_>) =
            data.partition(|(_, _, datagram)| has_psk(datagram));
        ([0, 1].map(|side| self.world.sides[side].packets.len()), with.len(), without.len())
    }

    /// A side runs anew, with the keys that it has on disk, and what it has learnt.
    fn restart(&mut self, side: usize, boot: u8) {
        let agreed = self.world.sides[side].peers.agreed();
        self.restart_without_memory(side, boot);
        self.world.sides[side].peers.restore_agreed(agreed);
    }

    fn restart_without_memory(&mut self, side: usize, boot: u8) {
        let now = self.world.now;
        self.world.sides[side] = Side::new(side as u8 + 1, boot, now);
        self.use_keys(side);
        self.tell(1 - side);
    }

    fn psk(&self, side: usize) -> Vec<[u8; 32]> {
        let other = self.world.sides[1 - side].gateway;
        let peer = self.world.sides[side].peer(other);
        peer.secrecy.agreements.iter().map(|one| *one.psk).collect()
    }
}

/// Whether a datagram is as long as one with a part of a ciphertext.
/// Whether a datagram with a packet went by a tunnel that has a pre-shared key.
fn has_psk(datagram: &[u8]) -> bool {
    u32::from_le_bytes(datagram[4..8].try_into().unwrap()) & PSK != 0
}

fn is_part(datagram: &[u8]) -> bool {
    datagram.first() == Some(&4) && (350..LONG).contains(&datagram.len())
}

#[test]
fn not_even_the_first_packets_of_two_that_never_met_go_without() {
    for reversed in [false, true] {
        let mut test = Rotation::with_kems([Kems::Good; 2]);
        let from = usize::from(reversed);
        test.send_long(from);
        test.send_long(1 - from);
        test.world.run(Duration::from_secs(1));
        test.assert_quantum();
        test.long_for(Duration::from_secs(400));
        let (arrived, with, without) = test.long();
        assert_eq!((arrived[0], arrived[1]), (test.pings[1] as usize, test.pings[0] as usize));
        assert!(with >= arrived[0] + arrived[1] && without == 0, "{with} with, {without} without");
        assert_eq!(test.psk(0), test.psk(1));
    }
}

#[test]
fn tunnels_and_peers_that_find_no_room_are_counted_and_made_when_there_is_some() {
    let mut test = Rotation::with_kems([Kems::Good; 2]);
    let turned_away = |test: &Rotation| test.world.sides[0].peers.turned_away();
    test.world.sides[0].peers.bound_for_tests(1, 1);
    test.world.run(Duration::from_secs(1));
    let before = turned_away(&test);
    assert!(before > 0, "a tunnel with the pre-shared key");
    assert!(test.psk(0).len() == 1 && test.states()[0] != State::MlKem768, "{:?}", test.states());

    // One more key of the peer's, and one more peer.
    test.make(1);
    test.tell(1);
    let keys = turned_away(&test);
    assert!(keys > before, "a tunnel with a new key");
    let now = test.world.now;
    let known = test.world.sides[1].gateway;
    let mut stranger = Side::new(9, 9, now).as_peer();
    stranger.gateway = GatewayId::from_bytes([99; 16]);
    test.world.sides[0].peers.admit(&stranger, now);
    assert_eq!(turned_away(&test), keys + 1, "a peer");
    assert!(test.world.sides[0].peers.slot(stranger.gateway).is_none());
    assert!(test.world.sides[0].peers.slot(known).is_some());

    test.world.sides[0].peers.bound_for_tests(16, 16);
    test.tell(1);
    test.world.run(Duration::from_secs(600));
    test.assert_quantum();
}

#[test]
fn keys_change_again_and_again_and_each_pair_has_a_pre_shared_one_of_its_own() {
    let mut test = Rotation::with_kems([Kems::Good; 2]);
    test.world.run(Duration::from_secs(1));
    let first = test.psk(0);
    let mut test = change_again_and_again(test);
    test.assert_quantum();
    test.world.delivered.clear();
    let before = [0, 1].map(|side| test.world.sides[side].packets.len());
    let sent = test.pings;
    test.long_for(Duration::from_secs(5));
    let (arrived, _, without) = test.long();
    assert_eq!(arrived[1] - before[1], (test.pings[0] - sent[0]) as usize);
    assert_eq!(without, 0);
    let last = test.psk(0);
    assert_eq!((first.len(), last.len()), (1, 1), "only those of keys that there are");
    assert_ne!(first, last);
    assert_eq!(last, test.psk(1));
}

#[test]
fn a_pre_shared_key_is_agreed_on_though_much_is_lost_and_all_comes_twice() {
    for seed in 1..6_u64 {
        let mut test = Rotation::with_kems([Kems::Good; 2]);
        let mut state = seed;
        test.world.fate = Box::new(move |_, _, _| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            [0, 1, 2, 1, 2][(state >> 60) as usize % 5]
        });
        test.world.run(Duration::from_secs(60));
        test.world.fate = Box::new(|_, _, _| 1);
        test.world.run(Duration::from_secs(15));
        test.assert_quantum();
        test.long_for(Duration::from_secs(1));
        assert_eq!(test.long().0, [10, 10]);
    }
}

#[test]
fn a_restart_of_either_end_or_both_is_followed_by_another_key_and_no_packet_goes_without() {
    for ends in [&[0][..], &[1], &[0, 1]] {
        let mut test = Rotation::with_kems([Kems::Good; 2]);
        test.long_for(Duration::from_secs(5));
        let before = test.psk(0);
        for end in ends {
            test.restart(*end, 90 + *end as u8);
        }
        test.long_for(Duration::from_secs(20));
        test.assert_quantum();
        assert_ne!(before, test.psk(0), "{ends:?}");
        assert_eq!(test.psk(0), test.psk(1));
        assert_eq!(test.long().2, 0, "{ends:?}");
        test.world.sides.iter_mut().for_each(|side| side.packets.clear());
        test.long_for(Duration::from_secs(1));
        assert_eq!(test.long().0, [10, 10], "{ends:?}");
    }
}

#[test]
fn a_restart_whose_first_words_are_lost_heals() {
    for end in [0, 1] {
        let mut test = Rotation::with_kems([Kems::Good; 2]);
        test.long_for(Duration::from_secs(5));
        test.restart(end, 90);
        // Only the one that didn't restart gets through with handshakes that it begins.
        test.world.fate = Box::new(move |from, _, datagram| {
            usize::from(from != end || datagram.first() != Some(&1))
        });
        test.long_for(Duration::from_secs(20));
        test.assert_quantum();
        assert_eq!(test.long().2, 0);
    }
}

#[test]
fn a_peer_that_was_forgotten_and_comes_back_is_agreed_with_anew() {
    for end in [0, 1] {
        let mut test = Rotation::with_kems([Kems::Good; 2]);
        test.long_for(Duration::from_secs(5));
        let now = test.world.now;
        test.world.sides[end].peers.set_peers(&[], now);
        assert!(test.world.sides[end].peers.slot(test.world.sides[1 - end].gateway).is_none());
        test.world.run(Duration::from_secs(1));
        test.tell(1 - end);
        test.long_for(Duration::from_secs(20));
        test.assert_quantum();
        assert_eq!((test.psk(0), test.long().2), (test.psk(1), 0), "end {end}");
    }
}

#[test]
fn with_an_old_version_at_one_end_packets_go_without_from_the_first_on_and_it_says_so() {
    for (kems, states) in [
        ([Kems::Good, Kems::None], [State::PeerKeyLacks, State::OwnKeyLacks]),
        ([Kems::None, Kems::Good], [State::OwnKeyLacks, State::PeerKeyLacks]),
        ([Kems::Good, Kems::Unheld], [State::PeerCannot, State::OwnKeyLacks]),
        ([Kems::Unheld, Kems::Good], [State::OwnKeyLacks, State::PeerCannot]),
        ([Kems::None; 2], [State::OwnKeyLacks; 2]),
    ] {
        let mut test = Rotation::with_kems(kems);
        test.send_long(0);
        test.send_long(1);
        test.world.run(Duration::from_millis(100));
        assert_eq!((test.states(), test.long()), (states, ([1, 1], 0, 2)), "{kems:?}");
        // One that doesn't know what a ciphertext is gets none, but for the first word where its binding says that it does.
        test.long_for(Duration::from_secs(30));
        let parts = test.world.delivered.iter().filter(|(_, _, datagram)| is_part(datagram));
        let most = if kems.contains(&Kems::Unheld) { 4 } else { 0 };
        let (parts, arrived) = (parts.count(), test.long().0);
        assert!(parts <= most, "{parts}, {kems:?}");
        assert_eq!(arrived, [301, 301], "{kems:?}");
    }
}

#[test]
fn where_classic_is_refused_nothing_goes_without_a_key_whoever_lacks_it() {
    for end in [0, 1] {
        for kems in [Kems::None, Kems::Unheld, Kems::Garbage, Kems::Good] {
            let both = if end == 0 { [Kems::Good, kems] } else { [kems, Kems::Good] };
            let mut test = Rotation::with_kems(both);
            test.world.sides[end].peers.refuse_classic();
            if kems == Kems::Good {
                test.world.fate = Box::new(|_, _, datagram| usize::from(!is_part(datagram)));
            }
            test.long_for(Duration::from_secs(30));
            let packets = test.world.delivered.iter();
            let packets = packets.filter(|(to, _, datagram)| *to != end && datagram.len() > LONG);
            let classic = packets.filter(|(_, _, datagram)| !has_psk(datagram)).count();
            assert_eq!(classic, 0, "{both:?}, refused at {end}");
            if kems != Kems::Garbage {
                assert_eq!(test.long().0, [0, 0], "{both:?}, refused at {end}");
                // The other one goes on without, once it has waited: nothing of that is taken, and all is counted.
                let drops = test.world.sides[end].drops.iter();
                let refused = drops.filter(|reason| **reason == DropReason::Classic).count();
                assert!(refused > 200, "{refused}: {both:?}, refused at {end}");
            }
            // And it isn't busy with that.
            let words = test.world.delivered.iter().filter(|(to, ..)| *to != end).count();
            assert!(words < 400, "{words} datagrams in 30 s: {both:?}, refused at {end}");
        }
        // Between two that can nothing is lost by it.
        let mut test = Rotation::with_kems([Kems::Good; 2]);
        test.world.sides[end].peers.refuse_classic();
        test.long_for(Duration::from_secs(20));
        test.assert_quantum();
        let (arrived, _, without) = test.long();
        assert_eq!((arrived, without), ([200, 200], 0), "refused at {end}");
        assert!(!test.world.sides[end].drops.contains(&DropReason::Classic), "refused at {end}");
    }
}

#[test]
fn a_key_that_the_peer_has_and_no_view_names_is_told_apart_from_an_old_version() {
    let mut test = Rotation::with_kems([Kems::Good; 2]);
    let bare = PeerConfig { keys: vec![secret(2).public()], ..test.world.sides[1].as_peer() };
    let now = test.world.now;
    test.world.sides[0].peers.set_peers(&[bare], now);
    test.send_long(0);
    test.world.run(Duration::from_secs(1));
    assert_eq!((test.states()[0], test.long().0), (State::Unanswered, [0, 1]));
    test.tell(1);
    test.world.run(Duration::from_secs(5));
    test.assert_quantum();
}

#[test]
fn a_peer_that_is_brought_up_to_date_moves_without_losing_a_packet() {
    for end in [0, 1] {
        let mut kems = [Kems::Good; 2];
        kems[end] = Kems::None;
        let mut test = Rotation::with_kems(kems);
        test.world.run(Duration::from_secs(1));
        test.ping_for(Duration::from_secs(2));
        // It has a new key, with what the first didn't have. Its peer hears of it a while later.
        test.kems[end] = Kems::Good;
        test.make(end);
        test.ping_for(Duration::from_secs(6));
        test.tell(end);
        test.ping_for(Duration::from_secs(12));
        test.assert_none_lost();
        test.assert_quantum();
    }
}

#[test]
fn a_peer_that_was_put_back_to_an_old_version_is_spoken_to_without() {
    for end in [0, 1] {
        let mut test = Rotation::with_kems([Kems::Good; 2]);
        test.long_for(Duration::from_secs(5));
        test.assert_quantum();
        test.kems[end] = Kems::Unheld;
        test.restart(end, 90);
        test.world.run(Duration::from_secs(3));
        test.world.sides.iter_mut().for_each(|side| side.packets.clear());
        test.long_for(Duration::from_secs(2));
        assert_eq!(test.long().0, [20, 20]);
        assert_eq!(test.states()[1 - end], State::PeerCannot);
    }
}

#[test]
fn garbage_of_the_right_length_leaves_a_live_pair_alone_and_says_so() {
    // From the beginning: no key, and packets go without after a while.
    let mut test = Rotation::with_kems([Kems::Garbage, Kems::Good]);
    test.world.run(Duration::from_secs(2));
    assert_eq!(test.states(), [State::Awaited; 2]);
    test.send_long(0);
    test.send_long(1);
    test.world.run(Duration::from_secs(2));
    assert_eq!((test.states(), test.long()), ([State::Unanswered; 2], ([1, 1], 0, 2)));
    let before = MADE.get();
    test.long_for(Duration::from_secs(60));
    assert_eq!(test.long().0, [601, 601]);
    let made = MADE.get() - before;
    assert!((1..=8).contains(&made), "{made} in a minute");
    // For the next pair of keys only: the old one goes on, under its key, and the old key isn't given up.
    let mut test = Rotation::with_kems([Kems::GarbageLater, Kems::Good]);
    test.world.run(Duration::from_secs(2));
    test.assert_quantum();
    test.make(0);
    test.tell(0);
    test.ping_for(Duration::from_secs(60));
    test.assert_none_lost();
    test.assert_quantum();
    assert!(!test.retire(0), "{:?}", test.key_use(0));
}

#[test]
fn who_swallows_every_ciphertext_keeps_the_first_words_waiting_and_never_takes_back_what_was_reached()
 {
    let mut test = Rotation::with_kems([Kems::Good; 2]);
    test.world.fate = Box::new(|_, _, datagram| usize::from(!is_part(datagram)));
    test.world.run(Duration::from_secs(2));
    test.send_long(0);
    test.world.run(Duration::from_secs(2));
    assert_eq!((test.states(), test.long().0), ([State::Unanswered; 2], [0, 1]));
    // As soon as it stops.
    test.world.fate = Box::new(|_, _, _| 1);
    test.world.run(Duration::from_secs(20));
    test.assert_quantum();
    // From now on neither goes without any more, whatever restarts at the other end.
    test.world.fate = Box::new(|_, _, datagram| usize::from(!is_part(datagram)));
    test.restart(1, 90);
    let before = test.long().2;
    let end = test.world.now + Duration::from_secs(30);
    while test.world.now < end {
        test.send_long(0);
        test.world.run(Duration::from_millis(100));
    }
    assert_eq!((test.states()[0], test.long().2), (State::Awaited, before));
    test.world.fate = Box::new(|_, _, _| 1);
    test.world.run(Duration::from_secs(20));
    test.assert_quantum();
}

#[test]
fn neither_a_restart_nor_a_view_without_the_peer_brings_a_pair_back_to_none_where_ciphertexts_are_swallowed()
 {
    for (end, restarts) in [(0, true), (1, true), (0, false), (1, false)] {
        let mut test = Rotation::with_kems([Kems::Good; 2]);
        test.long_for(Duration::from_secs(2));
        test.assert_quantum();
        let before = test.long().2;
        test.world.fate = Box::new(|_, _, datagram| usize::from(!is_part(datagram)));
        if restarts {
            test.restart(end, 90);
        } else {
            // As a controller does that suspends it, and takes that back.
            let now = test.world.now;
            test.world.sides[end].peers.set_peers(&[], now);
            test.world.run(Duration::from_secs(1));
            test.tell(1 - end);
        }
        test.long_for(Duration::from_secs(30));
        assert_eq!((test.states(), test.long().2), ([State::Awaited; 2], before), "end {end}");
        assert_eq!(test.world.sides[end].peers.agreed().len(), 1);
        test.world.fate = Box::new(|_, _, _| 1);
        test.world.run(Duration::from_secs(20));
        test.assert_quantum();
        assert_eq!(test.long().2, before);
    }
    // One that lost its state, too, doesn't know better; its peer does.
    let mut test = Rotation::with_kems([Kems::Good; 2]);
    test.long_for(Duration::from_secs(2));
    test.world.fate = Box::new(|_, _, datagram| usize::from(!is_part(datagram)));
    test.restart_without_memory(0, 90);
    test.world.run(Duration::from_secs(5));
    assert_eq!(test.states(), [State::Unanswered, State::Awaited]);
}

#[test]
fn what_is_remembered_of_pre_shared_keys_is_bounded_and_ends_with_the_peers_word() {
    let mut test = Rotation::with_kems([Kems::Good; 2]);
    let peers = &mut test.world.sides[0].peers;
    let strangers = (0..9000_u32).map(|number| {
        let mut id = [7; 16];
        id[..4].copy_from_slice(&number.to_be_bytes());
        GatewayId::from_bytes(id)
    });
    peers.restore_agreed(strangers.collect());
    assert!(peers.agreed().len() <= 4096);
    test.world.run(Duration::from_secs(1));
    let other = test.world.sides[1].gateway;
    let agreed = test.world.sides[0].peers.agreed();
    assert!(agreed.contains(&other) && agreed.len() <= 4096, "the peer has its place");
    // It was put back to an older version, and then brought up to date again.
    test.kems[1] = Kems::Unheld;
    test.restart(1, 90);
    test.world.run(Duration::from_secs(5));
    assert_eq!(test.states()[0], State::PeerCannot);
    assert!(!test.world.sides[0].peers.agreed().contains(&other));
    test.kems[1] = Kems::Good;
    test.restart(1, 91);
    test.world.run(Duration::from_secs(5));
    test.assert_quantum();
    assert!(test.world.sides[0].peers.agreed().contains(&other));
}

#[test]
fn in_an_emergency_the_next_key_has_a_pre_shared_one_as_soon_as_it_is_told() {
    let mut test = Rotation::with_kems([Kems::Good; 2]);
    test.long_for(Duration::from_secs(2));
    test.make(0);
    test.keys[0].truncate(1);
    test.use_keys(0);
    test.world.run(Duration::from_secs(5));
    test.tell(0);
    test.world.run(Duration::from_secs(2));
    test.assert_quantum();
    test.world.sides.iter_mut().for_each(|side| side.packets.clear());
    test.long_for(Duration::from_secs(1));
    assert_eq!((test.long().0, test.long().2), ([10, 10], 0));
}

#[test]
fn one_that_was_away_through_several_generations_has_a_key_of_the_newest_when_it_is_back() {
    let mut test = Rotation::with_kems([Kems::Good; 2]);
    test.long_for(Duration::from_secs(2));
    test.world.fate = Box::new(|_, _, _| 0);
    for _ in 0..3 {
        test.world.run(Duration::from_secs(300));
        for side in [0, 1] {
            test.make(side);
            test.keys[side].truncate(1);
            test.use_keys(side);
        }
    }
    test.tell(0);
    test.tell(1);
    test.world.fate = Box::new(|_, _, _| 1);
    test.world.run(Duration::from_secs(15));
    test.assert_quantum();
    test.world.sides.iter_mut().for_each(|side| side.packets.clear());
    test.long_for(Duration::from_secs(1));
    assert_eq!((test.long().0, test.long().2), ([10, 10], 0));
}
