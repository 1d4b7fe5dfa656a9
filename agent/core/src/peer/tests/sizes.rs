//! Two gateways on paths of all sizes.

use std::cell::Cell;
use std::rc::Rc;

use super::*;
use crate::size;
use crate::target::RelayPath;

/// How many bytes of IP the path carries, in each direction.
type Path = Rc<Cell<(usize, usize)>>;

/// Two sides that answer probes, on a path that loses without a word what is too large.
fn world(sizes: (usize, usize)) -> (World, Path) {
    let mut world = World::new(2);
    for side in &mut world.sides {
        side.answers_probes();
    }
    world.introduce(0, 1);
    world.introduce(1, 0);
    let path = Rc::new(Cell::new(sizes));
    let carries = Rc::clone(&path);
    world.fate = Box::new(move |here, _, datagram| {
        let (out, back) = carries.get();
        usize::from(datagram.len() + 28 <= if here == 0 { out } else { back })
    });
    (world, path)
}

impl Side {
    pub(super) fn answers_probes(&mut self) {
        #[allow(clippy::disallowed_methods, reason = "tests need some instant to count from")]
        let now = Instant::now();
        let mut config = self.peers.config.clone();
        config.capabilities = vec![size::CAPABILITY.to_owned()];
        let local =
            Local { overlay: self.overlay, revision: 1, authority: 1, confirmed_time: None };
        self.peers = Peers::new(config, now);
        self.peers.set_local(local, now);
        self.peers.set_sizes(1600, 1500, now);
    }
}

impl World {
    pub(super) fn limit(&self, here: usize) -> usize {
        let there = self.sides[1 - here].gateway;
        let peers = &self.sides[here].peers;
        peers.limit(peers.slot(there).unwrap())
    }

    /// Sends as the engine does: in parts what is over the limit. Says what arrived.
    pub(super) fn carry(&mut self, here: usize, len: usize) -> Vec<Vec<u8>> {
        let there = 1 - here;
        let gateway = self.sides[there].gateway;
        let sent = packet(len as u32, len - 20);
        let side = &mut self.sides[here];
        let slot = side.peers.slot(gateway).unwrap();
        side.peers.note_use(slot, sent.len(), self.now);
        let outcome = if sent.len() <= side.peers.limit(slot) {
            side.peers.send(slot, &sent, self.now, &mut side.sent)
        } else {
            assert!(side.peers.takes_parts(slot));
            let (now, out) = (self.now, &mut side.sent);
            side.peers.send_parts(slot, &sent, |peers, whose, part| {
                peers.send_for(whose, slot, part, now, out)
            })
        };
        assert_eq!(outcome, Sent::Sealed);
        for (_, dscp, _) in &side.sent.datagrams {
            assert_eq!(*dscp, 0xb8, "parts bear their packet's DSCP");
        }
        self.settle();
        let arrived = std::mem::take(&mut self.sides[there].packets);
        assert!(arrived.iter().all(|one| *one == sent), "{len} bytes came out otherwise");
        arrived
    }

    fn both(&self) -> (usize, usize) {
        (self.limit(0), self.limit(1))
    }
}

#[test]
fn packets_of_any_size_get_through_paths_of_any_size() {
    for (mtu, limit) in [(1600, 1500), (1560, 1500), (1500, 1440), (1280, 1220), (576, 516)] {
        let (mut world, _) = world((mtu, mtu));
        world.run(Duration::from_secs(20));
        assert_eq!(world.both(), (limit, limit), "at {mtu}");
        let told = world.sides[0].peer(world.sides[1].gateway).path_mtu();
        assert_eq!(usize::from(told.unwrap()), mtu.min(1560));
        for here in [0, 1] {
            for len in [60, 516, 1220, 1221, 1440, 1441, 1500, 1501, 3000, 9000, 60_000] {
                assert_eq!(world.carry(here, len).len(), 1, "{len} bytes at {mtu}");
            }
        }
    }
}

#[test]
fn each_direction_finds_its_own() {
    let (mut world, _) = world((1400, 1560));
    world.run(Duration::from_secs(20));
    let (out, back) = world.both();
    assert!((1332..=1340).contains(&out) && back == 1500, "{out} out, {back} back");
    assert_eq!((world.carry(0, 1500).len(), world.carry(1, 1500).len()), (1, 1));
}

#[test]
fn a_path_that_shrinks_and_grows_loses_packets_for_seconds_only() {
    let (mut world, path) = world((1560, 1560));
    world.run(Duration::from_secs(20));
    for (mtu, within) in [(1280, 4), (1560, 40), (1300, 4), (1000, 5), (1500, 60)] {
        path.set((mtu, mtu));
        let mut lost = 0;
        for _ in 0..within * 10 {
            let arrived = world.carry(0, 1500).len() + world.carry(1, 1500).len();
            lost += 2 - arrived;
            world.run(Duration::from_millis(100));
        }
        assert!(lost <= 80, "{lost} packets of 1,500 bytes were lost when the path became {mtu}");
        assert_eq!(world.carry(0, 1500).len(), 1, "at {mtu}, with limits {:?}", world.both());
        assert!(world.live(0, 1) && world.live(1, 0));
    }
    world.run(Duration::from_secs(1200));
    assert_eq!(world.both(), (1440, 1440));
}

#[test]
fn after_an_outage_the_size_is_found_again_at_once() {
    let (mut world, path) = world((1560, 1560));
    world.run(Duration::from_secs(20));
    path.set((0, 0));
    for _ in 0..300 {
        world.carry(0, 1500);
        world.run(Duration::from_millis(100));
    }
    assert!(world.limit(0) < 1000, "{}", world.limit(0));
    path.set((1560, 1560));
    world.run(Duration::from_secs(7));
    assert_eq!(world.both(), (1500, 1500));
}

#[test]
fn a_peer_that_moves_is_measured_anew() {
    let (mut world, path) = world((1560, 1560));
    world.run(Duration::from_secs(20));
    path.set((1300, 1300));
    world.sides[1].at = SocketAddr::from(([198, 51, 100, 7], 40_000));
    world.run(Duration::from_secs(3));
    assert!(world.limit(0) <= 1240, "{}", world.limit(0));
    let probes_to_nowhere = world.sides[0].peer(world.sides[1].gateway).endpoint();
    assert_eq!(probes_to_nowhere, Some(world.sides[1].at));
}

#[test]
fn ipv6_outside_takes_twenty_bytes_more() {
    let (mut world, _) = world((9000, 9000));
    for (number, side) in world.sides.iter_mut().enumerate() {
        side.at = SocketAddr::new(format!("2001:db8::{}", number + 1).parse().unwrap(), 51820);
        side.peers.set_sizes(1500, 1500, world.now);
    }
    world.introduce(0, 1);
    world.introduce(1, 0);
    world.run(Duration::from_secs(20));
    assert_eq!(world.both(), (1420, 1420));
    let told = world.sides[0].peer(world.sides[1].gateway).path_mtu();
    assert_eq!(told, Some(1500));
}

#[test]
fn a_peer_that_answers_no_probes_gets_none_and_no_parts() {
    let mut world = World::live_pair();
    world.run(Duration::from_secs(60));
    let slot = world.sides[0].peers.slot(world.sides[1].gateway).unwrap();
    let peers = &world.sides[0].peers;
    assert_eq!(peers.limit(slot), 1220, "what every path carries");
    assert!(!peers.takes_parts(slot) && !peers.knows_limit(slot));
    let longest = world.delivered.iter().map(|(_, _, datagram)| datagram.len()).max();
    assert!(longest.unwrap() < 400, "{longest:?}: a probe");
    // One that is asked answers all the same.
    let ends = (world.sides[0].overlay, world.sides[1].overlay);
    world.delivered.clear();
    assert_eq!(world.send(0, 1, &size::wire::probe(ends, 77, 1000)), Sent::Sealed);
    world.settle();
    let answered = world.delivered.iter().any(|(there, _, datagram)| {
        *there == 0 && datagram.len() == size::wire::LEAST_PROBE + OVERHEAD
    });
    assert!(answered);
}

#[test]
fn parts_that_get_lost_are_counted_and_forgotten() {
    let (mut world, _) = world((1280, 1280));
    world.run(Duration::from_secs(20));
    let mut keep = true;
    world.fate = Box::new(move |here, _, datagram| {
        let part = here == 0 && datagram.len() > 600;
        keep ^= part;
        usize::from(!part || keep)
    });
    for _ in 0..10 {
        assert_eq!(world.carry(0, 1500).len(), 0);
    }
    assert_eq!(world.sides[1].peers.waiting_parts(), (10, 15_000));
    world.fate = Box::new(|_, _, _| 1);
    world.run(Duration::from_secs(3));
    assert_eq!(world.sides[1].peers.waiting_parts(), (0, 0));
    let mut drops = Vec::new();
    world.sides[1].peers.drain_drops(|reason, count| drops.push((reason, count)));
    assert_eq!(drops, [(DropReason::PartMissing, 10)]);
}

#[test]
fn an_idle_pair_says_no_more_than_one_that_answers_no_probes() {
    let (mut world, _) = world((1500, 1500));
    world.run(Duration::from_secs(100));
    world.delivered.clear();
    world.run(Duration::from_secs(500));
    let large = world.delivered.iter().filter(|(_, _, datagram)| datagram.len() > 400).count();
    assert!(large <= 2 * 4 * 6, "{large} probes in 500 s, on a path smaller than the interface");
}

#[test]
fn a_size_is_doubted_only_where_it_was_too_large() {
    let (mut world, _) = world((1500, 1500));
    world.run(Duration::from_secs(100));
    let near = world.sides[1].at;
    let elsewhere = SocketAddr::from(([192, 0, 2, 99], 51_820));
    for (to, expected) in [(elsewhere, false), (near, true)] {
        let now = world.now;
        let side = &mut world.sides[0];
        let before = side.peers.poll_timeout();
        side.peers.suspect_sizes(to, now);
        let hurries = side.peers.poll_timeout() != before;
        assert_eq!(hurries, expected, "{to}: {before:?}");
        side.peers.handle_timeout(now, &mut side.sent);
        assert_eq!(side.sent.datagrams.is_empty(), !expected, "{to}: a probe");
    }
}

#[test]
fn parts_through_a_relay_are_of_the_device_whose_packet_was_cut() {
    let (mut world, _) = world((0, 0));
    let gateway = world.sides[1].gateway;
    let devices = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 7)];
    let cut = |world: &mut World, device: Ipv4Addr| {
        let mut whole = packet(1, 2_980);
        whole[12..16].copy_from_slice(&device.octets());
        let side = &mut world.sides[0];
        let slot = side.peers.slot(gateway).unwrap();
        let (now, out) = (world.now, &mut side.sent);
        side.peers.send_parts(slot, &whole, |peers, whose, part| {
            peers.send_for(whose, slot, part, now, out)
        })
    };
    let devices_of = |side: &Side| -> Vec<Whose> {
        side.sent.whose.iter().copied().filter(|whose| *whose != Whose::Gateways).collect()
    };
    // What waits for a session first, as what goes at once.
    for device in devices {
        assert_eq!(cut(&mut world, device), Sent::Queued);
    }
    let round_trip = Duration::from_millis(1);
    let relays = [RelayPath { relay: RelayId(1), room: 1_160, round_trip }];
    for here in [0, 1] {
        let gateway = world.sides[1 - here].gateway;
        let side = &mut world.sides[here];
        side.peers.set_relays(gateway, &relays, world.now, &mut side.sent);
    }
    world.run(Duration::from_secs(3));
    assert!(world.live(0, 1), "{:?}", world.sides[0].peer(gateway).route);
    let waited = devices_of(&world.sides[0]);
    let half = waited.len() / 2;
    assert!(half >= 3, "{waited:?}");
    for (whose, device) in waited.chunks(half).zip(devices) {
        assert_eq!(whose, vec![Whose::Device(device.into()); half], "{waited:?}");
    }
    for device in devices {
        world.sides[0].sent.whose.clear();
        assert_eq!(cut(&mut world, device), Sent::Sealed);
        let sent = devices_of(&world.sides[0]);
        assert!(sent.len() >= 3, "{sent:?}");
        assert!(sent.iter().all(|whose| *whose == Whose::Device(device.into())), "{sent:?}");
    }
    world.settle();
    let mut arrived: Vec<Ipv4Addr> = world.sides[1]
        .packets
        .iter()
        .map(|whole| Ipv4Addr::from_octets(whole[12..16].try_into().unwrap()))
        .collect();
    arrived.sort_unstable();
    assert_eq!(arrived, [devices[0], devices[0], devices[1], devices[1]]);
}
