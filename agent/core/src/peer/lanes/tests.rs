//! Lanes by themselves: what they keep, and what they answer.

use super::*;

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

#[test]
fn lanes_that_come_and_go_take_no_more_memory() {
    let (mut lanes, mut now) = lanes(4);
    let mut out = Sent(Vec::new());
    let peer = PeerSlot { index: 3, generation: 1 };
    let to = SocketAddr::from(([192, 0, 2, 1], 51_820));
    let key = secret(7).public();
    for _ in 0..10_000 {
        lanes.carry_out(Order::Know { peer, key, lanes: 4, to }, now, &mut out);
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
