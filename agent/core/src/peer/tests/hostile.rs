//! Loss, copies, disorder, forgeries and floods.

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

use super::*;

/// Whether a live pair still carries packets both ways.
#[track_caller]
fn assert_carries(world: &mut World) {
    for (here, there) in [(0, 1), (1, 0)] {
        world.sides[there].packets.clear();
        world.send(here, there, &packet(1234, 99));
        world.settle();
        assert_eq!(world.sides[there].packets, [packet(1234, 99)], "{here} to {there}");
    }
}

#[test]
fn nothing_is_taken_twice() {
    let mut world = World::live_pair();
    for number in 0..50 {
        world.send(0, 1, &packet(number, 40));
    }
    world.settle();
    assert_eq!(world.sides[1].packets.len(), 50);
    let (now, all) = (world.now, std::mem::take(&mut world.delivered));
    for (there, from, datagram) in all {
        world.sides[there].packets.clear();
        world.sides[there].deliver(from, &datagram, now);
        assert_eq!(world.sides[there].packets.len(), 0, "type {}", datagram[0]);
    }
    assert_carries(&mut world);
}

#[test]
fn disorder_within_the_window_is_harmless() {
    let mut world = World::live_pair();
    for number in 0..900 {
        world.send(0, 1, &packet(number, 40));
    }
    let mut datagrams = std::mem::take(&mut world.sides[0].sent.datagrams);
    datagrams.reverse();
    let (from, now) = (world.sides[0].at, world.now);
    for (_, _, datagram) in &datagrams {
        assert_eq!(world.sides[1].deliver(from, datagram, now), None);
    }
    let expected: Vec<_> = (0..900).rev().map(|number| packet(number, 40)).collect();
    assert_eq!(world.sides[1].packets, expected);
}

#[test]
fn datagrams_of_every_type_and_length_do_nothing() {
    let mut world = World::live_pair();
    world.send(0, 1, &packet(1, 1));
    let (_, _, sample) = world.sides[0].sent.datagrams.pop().unwrap();
    let stranger = SocketAddr::from(([198, 51, 100, 9], 9));
    let now = world.now;
    let mut scratch = vec![0; SCRATCH_LEN];
    let side = &mut world.sides[1];
    let mut noise = random::Random::new(&[3; 32]);
    for len in 0..2000usize {
        for kind in 0..=255u8 {
            let mut datagram: Vec<u8> = vec![noise.next() as u8; len];
            // Half of them with the receiver index of a real session.
            let known = (len + usize::from(kind)).is_multiple_of(2);
            let copied = if known { sample.len().min(len).min(16) } else { 0 };
            datagram[..copied].copy_from_slice(&sample[..copied]);
            if kind == 2 && known && len >= 12 {
                datagram[8..12].copy_from_slice(&sample[4..8]);
            }
            for (place, byte) in datagram.iter_mut().take(4).enumerate() {
                *byte = if place == 0 { kind } else { 0 };
            }
            let opened = side.peers.open(stranger, &datagram, &mut scratch, now, &mut side.sent);
            assert!(matches!(opened, Opened::Dropped(_)), "type {kind}, {len} bytes: {opened:?}");
        }
    }
    assert!(side.sent.datagrams.is_empty(), "strangers get no answer");
    assert_carries(&mut world);
}

#[test]
fn a_changed_or_shortened_datagram_is_refused_wherever_it_is_changed() {
    let mut world = World::pair();
    world.fate = Box::new(|_, _, _| 1);
    world.run(Duration::from_secs(3));
    world.send(0, 1, &packet(5, 60));
    world.settle();
    // One of each kind, on its way to side 1 and to side 0, in a world where it is expected.
    for (there, from, datagram) in world.delivered.clone() {
        for place in 0..datagram.len() {
            let mut changed = datagram.clone();
            changed[place] ^= 0x40;
            for bytes in [&changed[..], &datagram[..place]] {
                world.sides[there].packets.clear();
                let dropped = world.sides[there].deliver(from, bytes, world.now);
                // An initiation that was left alone, since it crossed another, is as good as new, and nobody looks at what proves
                // its address while there is no load.
                let unread = datagram[0] == 1 && place >= 132 && bytes.len() == datagram.len();
                assert!(dropped.is_some() || unread, "type {}, byte {place}", datagram[0]);
            }
        }
    }
    world.sides.iter_mut().for_each(|side| side.sent.datagrams.clear());
    assert_carries(&mut world);
}

#[test]
fn a_handshake_survives_forged_copies_that_run_ahead() {
    let mut world = World::pair();
    world.forging = true;
    world.run(Duration::from_millis(1500));
    assert!(world.live(0, 1) && world.live(1, 0), "{:?}", world.sides[0].peers);
    assert!(world.sides[0].drops.len() > 10, "{:?}", world.sides[0].drops);
    assert_carries(&mut world);
}

#[test]
fn short_buffers_lose_a_packet_and_nothing_else() {
    /// Gives less room than was asked for.
    struct Stingy(usize);
    impl Sink for Stingy {
        fn frame(&mut self, _: PortId, _: VnetHeader, _: Option<VlanTag>, _: &[&[u8]]) {}
        fn datagram(
            &mut self,
            _: SocketAddr,
            _: u8,
            _: usize,
            write: impl FnOnce(&mut [u8]) -> usize,
        ) {
            assert_eq!(write(&mut vec![0; self.0]), 0);
        }
    }
    let mut world = World::live_pair();
    let slot = world.sides[0].peers.slot(world.sides[1].gateway).unwrap();
    for room in [0, 1, 31, 32, 147] {
        world.sides[0].peers.send(slot, &packet(1, 200), world.now, &mut Stingy(room));
        world.sides[0].peers.send(slot, &packet(1, 4), world.now, &mut Stingy(room));
    }
    world.send(1, 0, &packet(1, 1));
    let (_, _, datagram) = world.sides[1].sent.datagrams.pop().unwrap();
    for len in [0, 100, open_room(datagram.len()) - 1] {
        let (from, now, side) = (world.sides[1].at, world.now, &mut world.sides[0]);
        let mut scratch = vec![0; len];
        let opened = side.peers.open(from, &datagram, &mut scratch, now, &mut side.sent);
        assert_eq!(opened, Opened::Dropped(DropReason::TooBig), "{len} bytes of room");
    }
    assert_carries(&mut world);
}

/// What only the holder of the key `from` can begin.
pub(super) fn initiation(from: &StaticSecret, to: TunnelPublicKey, index: u32) -> Vec<u8> {
    let to = PublicKey::from(*to.as_bytes());
    let mut tunn = Tunn::new(from.clone(), to, None, None, index, None);
    match tunn.format_handshake_initiation(&mut [0; 148], false) {
        TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn strangers_who_know_our_key_get_no_answer_until_they_are_many() {
    let mut world = World::live_pair();
    let stranger = StaticSecret::from([77; 32]);
    let key = world.sides[0].secret.public();
    let bytes = initiation(&stranger, key, 1);
    let now = world.now + Duration::from_secs(1);
    let mut outcomes = std::collections::BTreeMap::new();
    for number in 0..300u16 {
        let [high, low] = number.to_be_bytes();
        let from = SocketAddr::from(([198, 51, high, low], 1000));
        *outcomes.entry(world.sides[0].deliver(from, &bytes, now)).or_insert(0) += 1;
    }
    let unknown = outcomes[&Some(DropReason::PeerUnknown)];
    let limited = outcomes[&Some(DropReason::HandshakeLimit)];
    assert_eq!((unknown + limited, limited), (300, 44), "{outcomes:?}");
    let cookies = std::mem::take(&mut world.sides[0].sent.datagrams);
    assert_eq!(cookies.len(), 44);
    assert!(cookies.iter().all(|(_, _, bytes)| bytes[0] == 3 && bytes.len() == 64));

    // A peer gets in nevertheless: it comes again with the cookie.
    world.now = now;
    let mut again = Side::new(2, 50, now);
    again.at = SocketAddr::from(([203, 0, 113, 1], 1));
    world.sides[1] = again;
    world.introduce(1, 0);
    let flood = move |world: &mut World| {
        for number in 0..300u16 {
            let [high, low] = number.to_be_bytes();
            let from = SocketAddr::from(([198, 51, high, low], 1000));
            world.sides[0].deliver(from, &bytes, world.now);
        }
        world.sides[0].sent.datagrams.clear();
    };
    world.run(Duration::from_millis(1));
    assert!(!world.live(1, 0), "the first attempt was answered by a cookie");
    flood(&mut world);
    world.run(Duration::from_millis(100));
    assert!(world.live(1, 0), "{:?}", world.sides[1].peers);
}

#[test]
fn one_address_can_not_have_all_the_handshakes() {
    let mut world = World::live_pair();
    let bytes = initiation(&StaticSecret::from([77; 32]), world.sides[0].secret.public(), 1);
    let from = SocketAddr::from(([198, 51, 100, 9], 9));
    let unknown = |world: &mut World, now| {
        let outcomes = (0..200).map(|_| world.sides[0].deliver(from, &bytes, now));
        outcomes.filter(|outcome| *outcome == Some(DropReason::PeerUnknown)).count()
    };
    let now = world.now + Duration::from_secs(10);
    assert_eq!(unknown(&mut world, now), 64);
    assert_eq!(unknown(&mut world, now + Duration::from_secs(2)), 40);
}

/// What runs at both ends of a pair, whose datagrams claim to be from where `from` says.
struct Flood {
    /// To either side.
    datagrams: [Vec<u8>; 2],
    per_second: u32,
    from: fn(&World, usize, u32) -> SocketAddr,
    count: u32,
}

impl Flood {
    const STEP: Duration = Duration::from_millis(10);

    /// Initiations of somebody who knows both keys, and is known to nobody.
    fn new(world: &World, per_second: u32, from: fn(&World, usize, u32) -> SocketAddr) -> Self {
        let stranger = StaticSecret::from([77; 32]);
        let to = |side: usize| initiation(&stranger, world.sides[side].secret.public(), 1);
        Self { datagrams: [to(0), to(1)], per_second, from, count: 0 }
    }

    fn run(
        &mut self,
        world: &mut World,
        time: Duration,
        mut until: impl FnMut(&World) -> bool,
    ) -> Duration {
        let begin = world.now;
        while world.now < begin + time && !until(world) {
            for _ in 0..self.per_second / 100 {
                self.count += 1;
                for there in [0, 1] {
                    let from = (self.from)(world, there, self.count);
                    world.sides[there].deliver(from, &self.datagrams[there], world.now);
                }
            }
            world.run(Self::STEP);
        }
        world.now - begin
    }
}

/// The source of the other end of the pair.
fn the_other_end(world: &World, there: usize, count: u32) -> SocketAddr {
    SocketAddr::new(world.sides[1 - there].at.ip(), 1024 + (count % 60_000) as u16)
}

fn any_source(_: &World, _: usize, count: u32) -> SocketAddr {
    SocketAddr::from((
        (0x0b00_0000 + count.wrapping_mul(2_654_435_761) % 0x00ff_ffff).to_be_bytes(),
        9,
    ))
}

/// One side starts anew under a flood at both ends that began before. Returns how long its tunnel took.
#[track_caller]
fn restart_under(mut flood: Flood, world: &mut World) -> Duration {
    flood.run(world, Duration::from_secs(5), |_| false);
    world.sides[1] = Side::new(2, 50, world.now);
    world.introduce(1, 0);
    let took = flood.run(world, Duration::from_secs(4), |world| world.live(1, 0));
    assert!(
        took <= Duration::from_secs(2),
        "{} a second: no tunnel after {took:?}: {:?}",
        flood.per_second,
        world.sides[1].peers
    );
    assert!(world.sides[0].drops.contains(&DropReason::HandshakeLimit), "there was no flood");
    assert_carries(world);
    took
}

#[test]
fn a_flood_in_the_name_of_a_peer_keeps_that_peer_out_for_no_longer_than_a_cookie_takes() {
    for per_second in [100, 200, 1_000] {
        let mut world = World::live_pair();
        let flood = Flood::new(&world, per_second, the_other_end);
        restart_under(flood, &mut world);
    }
}

#[test]
fn a_flood_from_many_addresses_keeps_no_peer_out() {
    for per_second in [400, 5_000] {
        let mut world = World::live_pair();
        let flood = Flood::new(&world, per_second, any_source);
        restart_under(flood, &mut world);
    }
}

#[test]
fn copies_of_responses_keep_no_peer_out() {
    let mut world = World::live_pair();
    let mut responses = world.delivered.iter().filter(|(_, _, datagram)| datagram[0] == 2);
    let (there, _, response) = responses.next_back().expect("one side answered").clone();
    for per_second in [200, 1_000] {
        let mut flood = Flood::new(&world, per_second, the_other_end);
        flood.datagrams[there].clone_from(&response);
        restart_under(flood, &mut world);
    }
}

#[test]
fn initiations_take_nothing_from_responses() {
    let mut world = World::live_pair();
    let secret = world.sides[0].secret.public();
    let bytes = initiation(&StaticSecret::from([77; 32]), secret, 1);
    world.sides[1] = Side::new(2, 50, world.now);
    world.introduce(1, 0);
    let to_one = initiation(&StaticSecret::from([77; 32]), world.sides[1].secret.public(), 1);
    // Only side 1, which begins, is flooded, up to the last moment before the answer is there.
    for _ in 0..2_000 {
        let from = world.sides[0].at;
        world.sides[1].deliver(from, &to_one, world.now);
    }
    world.sides[1].sent.datagrams.clear();
    world.run(Duration::from_millis(1));
    assert!(world.live(1, 0), "{:?}", world.sides[1].peers);
    // Nor do strangers, who prove nothing, get more than one of them.
    let admitted = (0..2_000).filter(|_| {
        let from = world.sides[1].at;
        world.sides[0].deliver(from, &bytes, world.now) == Some(DropReason::PeerUnknown)
    });
    assert!(admitted.count() <= 64);
}

#[test]
fn what_a_peer_may_not_say_inside_is_dropped() {
    let mut world = World::live_pair();
    let (a, b) = (world.sides[0].overlay, world.sides[1].overlay);
    let hello = message::Hello {
        versions: (1, 1),
        capabilities: Vec::new(),
        boot: BootId::from_bytes([2; 16]),
        sequence: u64::MAX,
        revision: 77,
        relation: None,
        authority: 1,
        time: None,
        nonce: 0,
        knocker: None,
        outside: None,
    };
    let hello = message::Message::Hello(hello);
    for (packet, expected) in [
        (message::pack(b, b, &hello), DropReason::PeerSource),
        (message::pack(a, a, &hello), DropReason::PeerDestination),
        (vec![0x60; 39], DropReason::Malformed),
        (vec![0x10; 60], DropReason::Malformed),
    ] {
        world.sides[1].drops.clear();
        world.send(0, 1, &packet);
        world.settle();
        assert_eq!(world.sides[1].drops, [expected]);
    }
    assert_eq!(world.sides[1].peer(world.sides[0].gateway).revision(), Some(1));
    assert_carries(&mut world);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the network does, packets arrive unchanged and at most once, and once it is kind again, all is well.
    #[test]
    fn any_network_only_loses(
        fates in proptest::collection::vec(0usize..4, 1..200),
        pauses in proptest::collection::vec(0u64..3000, 1..60),
    ) {
        let mut world = World::pair();
        let mut at = 0;
        let fates_of = fates.clone();
        world.fate = Box::new(move |_, _, _| {
            at += 1;
            fates_of[at % fates_of.len()].saturating_sub(1)
        });
        let mut arrived = std::collections::BTreeSet::new();
        for (number, pause) in pauses.iter().enumerate() {
            world.run(Duration::from_millis(*pause));
            world.send(0, 1, &packet(number as u32, 64));
            world.settle();
            for bytes in std::mem::take(&mut world.sides[1].packets) {
                let which = u32::from_be_bytes([bytes[20], bytes[21], bytes[22], bytes[23]]);
                prop_assert_eq!(&bytes, &packet(which, 64));
                prop_assert!(arrived.insert(which), "packet {} came twice", which);
            }
        }
        world.fate = Box::new(|_, _, _| 1);
        world.run(Duration::from_secs(8));
        prop_assert!(world.live(0, 1) && world.live(1, 0), "{:?}", world.sides[0].peers);
    }
}

/// What a peer says in its run `boot`.
fn said(boot: u8, sequence: u64, revision: u64) -> message::Hello {
    message::Hello {
        versions: (1, 1),
        capabilities: Vec::new(),
        boot: BootId::from_bytes([boot; 16]),
        sequence,
        revision,
        relation: Some(revision),
        authority: 1,
        time: None,
        nonce: 0,
        knocker: None,
        outside: None,
    }
}

#[test]
fn a_peer_that_changes_its_mind_all_the_time_is_heard_now_and_then() {
    let world = World::live_pair();
    let mut peer = Peer::new(&world.sides[1].as_peer(), 0, world.now);
    let mut told = 0;
    let mut now = world.now;
    for sequence in 1..=1_000 {
        peer.note_said(said(1, sequence, sequence % 2), false, now);
        while peer.next_event().is_some() {
            told += 1;
        }
        now += Duration::from_millis(10);
    }
    assert!((1..=32).contains(&told), "{told} changes in ten seconds");
    // What it says and stays with is heard in the end.
    now += Duration::from_secs(10);
    assert!(peer.note_said(said(1, 2_000, 9), false, now));
    assert_eq!(peer.revision(), Some(9));
}

#[test]
fn another_run_begins_with_a_hello_that_is_taken_and_only_once() {
    let world = World::live_pair();
    let mut peer = Peer::new(&world.sides[1].as_peer(), 0, world.now);
    let mut sequence = 0;
    let mut next = |peer: &mut Peer, boot, revision, now| {
        sequence += 1;
        peer.note_said(said(boot, sequence, revision), false, now);
    };
    // All changes that are looked at for now are used up.
    for revision in 0..1_000 {
        next(&mut peer, 1, revision, world.now);
    }
    let held = peer.revision();
    assert!(held.is_some_and(|held| held < 999), "{held:?}: none was put off");
    for revision in 2_000..2_020 {
        next(&mut peer, 2, revision, world.now);
    }
    assert_eq!((peer.revision(), peer.route.runs()), (held, 0), "hellos that weren't taken");
    let later = world.now + Duration::from_secs(60);
    for _ in 0..20 {
        next(&mut peer, 2, 3_000, later);
    }
    assert_eq!((peer.revision(), peer.route.runs()), (Some(3_000), 1), "the run of before is over");
}

#[test]
fn a_peer_that_asks_without_end_is_answered_now_and_then() {
    let mut world = World::live_pair();
    world.run(Duration::from_secs(10));
    let ends = (world.sides[0].overlay, world.sides[1].overlay);
    let hello = |sequence| {
        message::Message::Hello(message::Hello {
            versions: (1, 1),
            capabilities: Vec::new(),
            boot: BootId::from_bytes([1; 16]),
            sequence,
            revision: 1,
            relation: Some(0),
            authority: 1,
            time: None,
            nonce: sequence,
            knocker: None,
            outside: None,
        })
    };
    let (from, start, to) = (world.sides[0].at, world.now, world.sides[0].at);
    let (mut answers, mut limited) = ([0; 2], 0);
    for number in 0..20_000_u32 {
        let now = start + Duration::from_millis(number.into()) / 2;
        let packets = [
            message::pack(ends.0, ends.1, &hello(1_000_000 + u64::from(number))),
            crate::size::wire::probe(ends, number.into(), 100),
        ];
        for (kind, packet) in packets.iter().enumerate() {
            world.now = now;
            assert_eq!(world.send(0, 1, packet), Sent::Sealed);
            let (_, _, datagram) = world.sides[0].sent.datagrams.pop().expect("a datagram");
            let side = &mut world.sides[1];
            side.sent.datagrams.clear();
            let dropped = side.deliver(from, &datagram, now);
            limited += usize::from(dropped == Some(DropReason::HandshakeLimit));
            answers[kind] += side.sent.datagrams.iter().filter(|sent| sent.0 == to).count();
        }
    }
    // Of ten seconds: so many at once, and so many in each.
    assert!((100..=32 + 10 * 16).contains(&answers[0]), "{answers:?}");
    assert!((200..=64 + 10 * 32).contains(&answers[1]), "{answers:?}");
    assert!(limited > 39_000, "{limited} are counted");
    // Packets of devices pass all the while, and once it stops the two understand each other as before.
    assert_carries(&mut world);
    world.sides.iter_mut().for_each(|side| side.events.clear());
    world.run(Duration::from_secs(60));
    assert!(world.live(0, 1) && world.live(1, 0));
    let died = |event: &PeerEvent| matches!(event, PeerEvent::Live { live: false, .. });
    assert!(!world.sides[0].events.iter().any(died), "{:?}", world.sides[0].events);
    assert_carries(&mut world);
}
