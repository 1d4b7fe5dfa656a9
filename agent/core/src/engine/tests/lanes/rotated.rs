//! Lanes whose keys change with the tunnel keys.

use anteroom_proto::key::TunnelPublicKey;

use super::*;
use crate::peer::OwnKey;

fn keys(seeds: &[u8]) -> Vec<OwnKey> {
    let key = |seed: &u8| OwnKey::for_all(TunnelSecret::from_bytes([*seed; 32]));
    seeds.iter().map(key).collect()
}

/// The tunnel key that a side had at the start.
const FIRST: [u8; 2] = [9, 8];

impl Net {
    fn lane_key(&mut self, side: usize) -> TunnelPublicKey {
        let engine = &mut self.engines[side];
        let (slot, _) = engine.peers.iter().next().unwrap();
        engine.bulk.as_mut().unwrap().own_key_for_tests(slot, &mut engine.peers, self.now)
    }

    fn change(&mut self, side: usize, seeds: &[u8]) {
        self.engines[side].set_own_keys(&keys(seeds), self.now);
    }

    /// Everything came out once. What was under way in a lane may be overtaken by what left it.
    fn all_arrived_somehow(&self) {
        for (flow, count) in &self.numbers {
            let mut got = self.got.get(flow).cloned().unwrap_or_default();
            got.sort_unstable();
            assert!(got.iter().copied().eq(0..*count), "flow {flow}: {} of {count}", got.len());
        }
    }

    /// Sends for so many times 10 ms, both ways, with packets under way when `between` is done.
    fn busy(&mut self, turns: usize) {
        for _ in 0..turns {
            self.burst(0, 1, 40, 1200);
            self.burst(1, 2, 40, 1200);
            self.wait(10);
        }
    }

    fn midway(&mut self, between: impl FnOnce(&mut Self)) {
        self.burst(0, 1, 40, 1200);
        self.burst(1, 2, 40, 1200);
        between(self);
        self.burst(0, 1, 40, 1200);
        self.burst(1, 2, 40, 1200);
        self.wait(10);
    }
}

#[test]
fn lane_keys_are_others_with_each_tunnel_key_and_no_packet_is_lost() {
    for sides in [&[0][..], &[1], &[0, 1]] {
        let mut net = Net::with_lane();
        net.busy(20);
        assert!(net.standing(1).ready > 0, "{:?}", net.sent);
        for round in 1..4 {
            let before = [net.lane_key(0), net.lane_key(1)];
            net.midway(|net| {
                for side in sides {
                    net.change(*side, &[FIRST[*side] + 0x20 * round, FIRST[*side]]);
                }
            });
            net.busy(200);
            for (side, before) in before.into_iter().enumerate() {
                let changed = net.lane_key(side) != before;
                assert_eq!(changed, sides.contains(&side), "{sides:?}, side {side}");
                assert!(net.standing(side).ready > 0, "{sides:?}: no lanes any more");
            }
            let before = net.sent;
            net.busy(20);
            for (side, before) in before.into_iter().enumerate() {
                let [thin, bulk] = [0, 1].map(|at| net.sent[side][at] - before[at]);
                assert!(bulk > 700 && thin < 100, "{sides:?}, side {side}: {bulk} {thin}");
            }
        }
        net.all_arrived_somehow();
        // The same keys once more are no news.
        let before = [net.lane_key(0), net.lane_key(1)];
        for side in sides {
            net.change(*side, &[FIRST[*side] + 0x60, FIRST[*side]]);
        }
        net.wait(1_000);
        assert_eq!([net.lane_key(0), net.lane_key(1)], before);
    }
}

#[test]
fn what_tells_of_other_lane_keys_may_get_lost() {
    let mut net = Net::with_lane();
    net.busy(20);
    net.mute = Some(0);
    net.midway(|net| net.change(0, &[0x29, FIRST[0]]));
    net.wait(3_000);
    net.mute = None;
    net.wait(12_000);
    let before = net.sent;
    net.busy(200);
    assert!(net.sent[0][1] - before[0][1] > 4_000, "{before:?} {:?}", net.sent);
    assert!(net.sent[1][1] - before[1][1] > 4_000, "{before:?} {:?}", net.sent);
}

#[test]
fn a_tunnel_key_that_is_void_at_once_leaves_no_lane_by_what_came_through_it() {
    let mut net = Net::with_lane();
    net.busy(20);
    let before = net.lane_key(0);
    // The new one first, as ever, and the old one given up before anybody has left it.
    net.change(0, &[0x29, FIRST[0]]);
    let mut out = Out::default();
    net.engines[0].handle_timeout(net.now, &mut out);
    net.carry(0, out);
    assert_eq!(net.standing(0), Standing::default(), "nothing is sent by the old ones");
    net.change(0, &[0x29]);
    net.wait(100);
    assert_ne!(net.lane_key(0), before);
    assert_eq!(net.standing(0).ready, 0, "whoever isn't told of the new tunnel key has none");
}
