//! Tunnel keys are changed while packets flow: make before break.

use super::secrets::Kems;
use super::*;
use crate::peer::{KeyUse, OwnKey};

const STEP: Duration = Duration::from_millis(10);

pub(super) fn secret(number: u8) -> TunnelSecret {
    TunnelSecret::from_bytes([number; 32])
}

fn for_gateways(secret: &TunnelSecret) -> OwnKey {
    OwnKey { secret: secret.clone(), gateways: true, clients: false, kem: None }
}

/// What an agent and its controller do, beside the engines.
pub(super) struct Rotation {
    pub(super) world: World,
    /// Each side's keys, newest first.
    pub(super) keys: [Vec<TunnelSecret>; 2],
    /// What each side's keys agree on pre-shared keys with.
    pub(super) kems: [Kems; 2],
    pub(super) pings: [u32; 2],
    next: u8,
}

impl Rotation {
    pub(super) fn new() -> Self {
        Self {
            world: World::live_pair(),
            keys: [vec![secret(1)], vec![secret(2)]],
            kems: [Kems::None; 2],
            pings: [0; 2],
            next: 100,
        }
    }

    /// Two that have just begun, and may agree on pre-shared keys.
    pub(super) fn with_kems(kems: [Kems; 2]) -> Self {
        let mut test = Self { kems, world: World::new(2), ..Self::new() };
        for side in [0, 1] {
            test.use_keys(side);
            test.tell(side);
        }
        test
    }

    pub(super) fn use_keys(&mut self, side: usize) {
        let kem = |secret: &TunnelSecret| self.kems[side].own(secret);
        let own = |secret| OwnKey { kem: kem(secret), ..for_gateways(secret) };
        let keys: Vec<OwnKey> = self.keys[side].iter().map(own).collect();
        let now = self.world.now;
        self.world.sides[side].peers.set_own_keys(&keys, now);
    }

    /// A side makes a new key. Nobody hears of it yet.
    pub(super) fn make(&mut self, side: usize) {
        self.next += 1;
        self.keys[side].insert(0, secret(self.next));
        self.use_keys(side);
    }

    /// The other side is told which keys there are now.
    pub(super) fn tell(&mut self, side: usize) {
        let keys = self.keys[side].iter().map(TunnelSecret::public).collect();
        let kems = self.keys[side].iter().filter_map(|key| self.kems[side].theirs(key)).collect();
        let config = PeerConfig { keys, kems, ..self.world.sides[side].as_peer() };
        let now = self.world.now;
        self.world.sides[1 - side].peers.set_peers(&[config], now);
    }

    pub(super) fn key_use(&self, side: usize) -> Vec<KeyUse> {
        self.world.sides[side].peers.key_use(self.world.now)
    }

    /// Gives up the oldest key, if nobody needs it.
    pub(super) fn retire(&mut self, side: usize) -> bool {
        let oldest = self.key_use(side).pop().unwrap();
        assert_eq!(oldest.key, self.keys[side].last().unwrap().public());
        let goes = self.keys[side].len() > 1 && oldest.live == 0 && oldest.away == 0;
        if goes {
            self.keys[side].pop();
            self.use_keys(side);
        }
        goes
    }

    /// One ping each way, and a little time.
    pub(super) fn ping(&mut self) {
        for from in 0..2 {
            self.pings[from] += 1;
            let number = self.pings[from];
            assert_eq!(self.world.send(from, 1 - from, &packet(number, 4)), Sent::Sealed);
        }
        self.world.run(STEP);
    }

    pub(super) fn ping_for(&mut self, time: Duration) {
        for _ in 0..time.as_millis() / STEP.as_millis() {
            self.ping();
        }
    }

    pub(super) fn assert_none_lost(&self) {
        for from in 0..2 {
            let arrived = &self.world.sides[1 - from].packets;
            let expected: Vec<Vec<u8>> = (1..=self.pings[from]).map(|n| packet(n, 4)).collect();
            assert_eq!(arrived.len(), expected.len(), "from {from}");
            assert!(*arrived == expected, "from {from}: not in order");
        }
    }

    /// Loses the next `count` handshake messages.
    pub(super) fn lose_handshakes(&mut self, count: usize) {
        let mut left = count;
        self.world.fate = Box::new(move |_, _, datagram| {
            let handshake = matches!(datagram.first(), Some(1 | 2));
            if handshake && left > 0 {
                left -= 1;
                return 0;
            }
            1
        });
    }
}

#[test]
fn of_ten_thousand_pings_none_is_lost_while_both_ends_change_their_keys_again_and_again() {
    change_again_and_again(Rotation::new());
}

/// Has both ends change their keys while packets flow: all arrive, in order.
pub(super) fn change_again_and_again(mut test: Rotation) -> Rotation {
    let mut retired = 0;
    for round in 0..5 {
        test.lose_handshakes(round * 2);
        test.make(0);
        if round % 2 == 0 {
            test.make(1);
        }
        test.ping_for(Duration::from_millis(500 * round as u64));
        test.tell(round % 2);
        test.ping_for(Duration::from_millis(700));
        test.tell(1 - round % 2);
        test.ping_for(Duration::from_secs(18));
        for side in [0, 1] {
            // The more handshakes are lost, the later a peer moves.
            for _ in 0..60 {
                if test.keys[side].len() == 1 {
                    break;
                }
                retired += usize::from(test.retire(side));
                test.ping_for(Duration::from_secs(1));
                test.tell(side);
            }
        }
    }
    test.ping_for(Duration::from_secs(5));
    assert_eq!(retired, 8, "each old key was given up");
    assert_eq!([test.keys[0].len(), test.keys[1].len()], [1, 1]);
    assert!(test.pings[0] >= 10_000, "{:?}", test.pings);
    test.assert_none_lost();
    let [a, b] = [0, 1].map(|side| {
        let other = test.world.sides[1 - side].gateway;
        let peers = &test.world.sides[side].peers;
        peers.sending_key(peers.slot(other).unwrap()).unwrap()
    });
    assert_eq!([a, b], [test.keys[1][0].public(), test.keys[0][0].public()], "the newest");
    test
}

#[test]
fn an_old_key_stays_as_long_as_a_live_peer_has_heard_of_no_other() {
    let mut test = Rotation::new();
    test.make(0);
    let before = test.world.delivered.len();
    test.ping_for(Duration::from_secs(60));
    let uses = test.key_use(0);
    assert_eq!((uses[1].live, uses[1].away), (1, 0), "{uses:?}");
    let made = test.world.delivered[before..].iter();
    let initiations = made.filter(|(to, _, datagram)| *to == 1 && datagram[0] == 1).count();
    assert!((2..=6).contains(&initiations), "{initiations} in a minute for a key that is unknown");
    test.tell(0);
    test.ping_for(Duration::from_secs(12));
    assert_eq!((test.key_use(0)[1].live, test.key_use(0)[1].away), (0, 0));
    assert!(test.retire(0));
    test.ping_for(Duration::from_secs(2));
    test.assert_none_lost();
}

#[test]
fn one_that_holds_on_to_an_old_key_keeps_that_one_alone() {
    let mut test = Rotation::new();
    for _ in 0..2 {
        test.make(0);
        test.ping_for(Duration::from_secs(20));
    }
    // It never hears of another than the first, and goes on with that.
    let live: Vec<usize> = test.key_use(0).iter().map(|found| found.live).collect();
    assert_eq!(live, [1, 0, 1], "newest first");
    test.keys[0].remove(1);
    test.use_keys(0);
    test.ping_for(Duration::from_secs(5));
    test.make(0);
    test.ping_for(Duration::from_secs(20));
    // Once it hears of what there is, it moves.
    test.tell(0);
    test.ping_for(Duration::from_secs(12));
    assert_eq!(test.key_use(0)[2].live, 0, "{:?}", test.key_use(0));
    assert!(test.retire(0));
    test.ping_for(Duration::from_secs(2));
    test.assert_none_lost();
}

#[test]
fn a_peer_that_is_away_is_counted_until_it_has_moved() {
    let mut test = Rotation::new();
    test.world.fate = Box::new(|_, _, _| 0);
    test.world.run(Duration::from_secs(20));
    test.make(0);
    test.world.run(Duration::from_secs(60));
    let uses = test.key_use(0);
    assert_eq!((uses[1].live, uses[1].away), (0, 1), "{uses:?}");
    // It is back, with what it knew; and is told.
    test.world.fate = Box::new(|_, _, _| 1);
    test.world.run(Duration::from_secs(10));
    assert_eq!(test.key_use(0)[1].live, 1);
    test.tell(0);
    test.world.run(Duration::from_secs(15));
    assert_eq!((test.key_use(0)[1].live, test.key_use(0)[1].away), (0, 0));
}

#[test]
fn in_an_emergency_the_old_key_goes_at_once_and_is_worth_nothing_any_more() {
    let mut test = Rotation::new();
    let old = secret(1);
    test.make(0);
    test.keys[0].truncate(1);
    test.use_keys(0);
    test.tell(0);
    test.world.run(Duration::from_secs(2));
    test.ping_for(Duration::from_secs(1));
    test.assert_none_lost();
    // Whoever has the old key's private half, at the peer that had it, and to the gateway that had it.
    let now = test.world.now;
    let mut thief = Side::new(1, 77, now);
    thief.secret = old;
    let mut known = test.world.sides[1].as_peer();
    known.keys = vec![test.keys[1][0].public()];
    thief.peers.set_peers(&[known], now);
    thief.peers.handle_timeout(now, &mut thief.sent);
    let (_, _, datagram) = thief.sent.datagrams.pop().unwrap();
    let at = thief.at;
    let dropped = test.world.sides[1].deliver(at, &datagram, now);
    assert_eq!(dropped, Some(DropReason::PeerUnknown));
}

#[test]
fn a_key_that_is_left_to_clients_is_worth_nothing_between_gateways_any_more() {
    let mut test = Rotation::new();
    let (first, theirs) = (secret(1), test.keys[1][0].clone());
    test.make(0);
    test.tell(0);
    test.ping_for(Duration::from_secs(12));
    assert_eq!((test.key_use(0)[1].live, test.key_use(0)[1].away), (0, 0));
    let lasting = OwnKey { secret: first, gateways: false, clients: true, kem: None };
    let now = test.world.now;
    let keys = [for_gateways(&test.keys[0][0]), lasting];
    test.world.sides[0].peers.set_own_keys(&keys, now);
    test.ping_for(Duration::from_secs(2));
    test.assert_none_lost();
    // Who has the other end's key of then, and knows this one's, is nobody: before that is replaced there, and after.
    let first = test.world.sides[0].as_peer();
    for replaced in [false, true] {
        if replaced {
            test.make(1);
            test.keys[1].truncate(1);
            test.use_keys(1);
            test.tell(1);
        }
        let now = test.world.now;
        let mut thief = Side::new(2, 77, now);
        thief.secret = theirs.clone();
        thief.peers.set_own_keys(&[for_gateways(&theirs)], now);
        let known = PeerConfig { keys: vec![secret(1).public()], ..first.clone() };
        thief.peers.set_peers(&[known], now);
        thief.peers.handle_timeout(now, &mut thief.sent);
        let (_, _, datagram) = thief.sent.datagrams.pop().unwrap();
        let dropped = test.world.sides[0].deliver(thief.at, &datagram, now);
        assert_eq!(dropped, Some(DropReason::PeerUnknown), "replaced: {replaced}");
    }
}

#[test]
fn a_restart_amid_a_rotation_loses_no_more_than_the_restart_itself() {
    // What is on the disk of the one that restarts: both keys, and a view that tells the peer's old key alone.
    for knows_old_view in [false, true] {
        let mut test = Rotation::new();
        test.make(0);
        test.make(1);
        test.tell(0);
        test.tell(1);
        test.ping_for(Duration::from_secs(8));
        let now = test.world.now;
        test.world.sides[1] = Side::new(2, 99, now);
        test.use_keys(1);
        let newest = test.keys[0].remove(0);
        if knows_old_view {
            test.tell(0);
        }
        test.keys[0].insert(0, newest);
        if !knows_old_view {
            test.tell(0);
        }
        test.world.run(Duration::from_secs(8));
        test.pings = [0; 2];
        test.world.sides[0].packets.clear();
        test.ping_for(Duration::from_secs(20));
        test.assert_none_lost();
        test.tell(0);
        test.ping_for(Duration::from_secs(20));
        test.assert_none_lost();
        assert!(test.retire(0) && test.retire(1), "{:?}", test.key_use(0));
    }
}

#[test]
fn a_stock_client_keeps_its_key_while_the_gateways_change_theirs() {
    let mut world = World::new(2);
    let client = PeerConfig { client: true, endpoints: Vec::new(), ..world.sides[1].as_peer() };
    let now = world.now;
    world.sides[0].peers.set_peers(&[client], now);
    world.introduce(1, 0);
    world.run(Duration::from_secs(1));
    assert!(world.live(0, 1));
    for round in 0..3u8 {
        let lasting = OwnKey { secret: secret(1), gateways: false, clients: true, kem: None };
        let keys = [for_gateways(&secret(50 + round)), lasting];
        let now = world.now;
        world.sides[0].peers.set_own_keys(&keys, now);
        // Long enough for the client to renew its session.
        for step in 0..20u32 {
            let number = u32::from(round) * 100 + step;
            world.send(1, 0, &packet(number, 4));
            world.send(0, 1, &packet(number, 4));
            world.run(Duration::from_secs(10));
        }
    }
    assert_eq!([world.sides[0].packets.len(), world.sides[1].packets.len()], [60, 60]);
    let uses = world.sides[0].peers.key_use(world.now);
    assert_eq!(uses.len(), 1, "a client's key is no gateway's");
    // A key for gateways alone lets no client in.
    world.introduce(1, 0);
    let mut other = world.sides[0].as_peer();
    other.keys = vec![secret(52).public()];
    let now = world.now;
    world.sides[1].peers.set_peers(&[other], now);
    let before = world.sides[0].drops.len();
    world.run(Duration::from_secs(3));
    let drops = &world.sides[0].drops[before..];
    assert!(drops.contains(&DropReason::PeerUnknown), "{drops:?}");
}

#[test]
fn no_more_own_keys_are_used_than_there_may_be_and_each_once() {
    let mut test = Rotation::new();
    let keys: Vec<OwnKey> = [9, 9, 8, 7, 6, 5].map(|number| for_gateways(&secret(number))).into();
    let now = test.world.now;
    test.world.sides[0].peers.set_own_keys(&keys, now);
    let used: Vec<_> = test.key_use(0).into_iter().map(|one| one.key).collect();
    assert_eq!(used, [9, 8, 7].map(|number| secret(number).public()), "the first four, one twice");
}
