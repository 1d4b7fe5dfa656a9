//! Two gateways with lanes between them: what takes which, in what order it arrives, and what ends a lane.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::*;
use crate::batch::RxDatagram;
use crate::engine::Runner;
use crate::lane;
use crate::lane::book::Standing;
use crate::wire::{Transport, parse_ethernet, parse_ipv4};

mod given_up;
mod rotated;

const LANES: u8 = 4;
const HERE: [u8; 4] = [10, 20, 1, 10];
const THERE: [u8; 4] = [10, 20, 4, 20];

fn at(side: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 2 + side as u8], 51_820))
}

fn own_view() -> Arc<View> {
    let mut view = (*view([Mode::Enforce, Mode::Enforce], &["udp/1-65535"])).clone();
    let mut back = view.intent.rules[0].clone();
    let [to, from] = [10, 20].map(|last| Endpoint::Member(MemberId::from_bytes([last; 16])));
    (back.id, back.from, back.to) = (RuleId::of("back"), from, to);
    view.intent.rules.insert(1, back);
    Arc::new(view)
}

/// The view of the other gateway, with device 20.
fn other_view() -> Arc<View> {
    let mut view = (*own_view()).clone();
    let intent = &mut view.intent;
    let peer = PeerGateway {
        gateway: OWN,
        identity: IdentityKey::from_seed(&[9; 32]).public(),
        overlay: overlay::gateway_address(ORGANISATION, OWN),
    };
    (intent.gateway, view.operation.gateway) = (OTHER, OTHER);
    intent.overlay = overlay::gateway_address(ORGANISATION, OTHER);
    let mut device = intent.devices[0].clone();
    let mut far = intent.devices.iter().map(|device| device.member.clone());
    device.member = member(20, OTHER, "10.20.4.20/32", Mode::Enforce);
    intent.members = vec![far.next().unwrap()];
    intent.devices = vec![device];
    intent.rules.truncate(2);
    intent.peers = vec![peer.clone()];
    let key = TunnelKeyBinding {
        gateway: OWN,
        x25519: TunnelSecret::from_bytes([9; 32]).public(),
        ..view.peers[0].keys[0].clone()
    };
    view.peers = vec![Peer { gateway: peer, endpoints: vec![at(0)], keys: vec![key], quic: None }];
    Arc::new(view)
}

#[derive(Default)]
struct Out {
    frames: Vec<Vec<u8>>,
    /// With who runs the lane, 0 for lane 0.
    datagrams: Vec<(u8, SocketAddr, Vec<u8>)>,
}

impl Out {
    fn take(
        &mut self,
        owner: u8,
        to: SocketAddr,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let mut bytes = vec![0; capacity];
        let len = write(&mut bytes);
        bytes.truncate(len);
        if len > 0 {
            self.datagrams.push((owner, to, bytes));
        }
    }
}

impl Sink for Out {
    fn frame(&mut self, _: PortId, vnet: VnetHeader, _: Option<VlanTag>, parts: &[&[u8]]) {
        let bytes = parts.concat();
        if !vnet.is_super_frame() {
            return self.frames.push(bytes);
        }
        let mut packet = bytes[14..].to_vec();
        let mut packets = crate::gso::Packets::new(&mut packet, 14, &vnet, 65_535).unwrap();
        while let Some(packet) = packets.next() {
            self.frames.push([&bytes[..14], &*packet].concat());
        }
    }

    fn datagram(
        &mut self,
        to: SocketAddr,
        _: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        self.take(0, to, capacity, write);
    }

    fn lane_datagram(
        &mut self,
        owner: u8,
        to: SocketAddr,
        _: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        self.take(owner, to, capacity, write);
    }
}

/// Both gateways. Each has two sockets, as the kernel fills them: its lane 0's, and the lanes'.
struct Net {
    engines: [Engine; 2],
    sockets: [[VecDeque<Vec<u8>>; 2]; 2],
    now: Instant,
    /// Which runs there were of each.
    boots: [u8; 2],
    /// Whether what is for lanes gets lost on the way.
    lanes_lost: bool,
    /// Whose datagrams of lane 0 get lost.
    mute: Option<usize>,
    /// Where each is: whence its datagrams come and where those to it have to go.
    place: [SocketAddr; 2],
    /// Each n-th datagram of lane 0, and of lanes, gets lost.
    loses: Option<usize>,
    /// Datagrams of lane 0 and of lanes that were sent, by who sent them, and how long they were.
    sent: [[usize; 2]; 2],
    /// Sent with the next number: by flow.
    numbers: BTreeMap<u16, u32>,
    /// What came out, by flow.
    got: BTreeMap<u16, Vec<u32>>,
}

fn boot(side: usize, run: u8, lanes: bool, now: Instant) -> Engine {
    let mut engine = engine(Limits::default(), now);
    if side == 1 {
        let identity = TunnelIdentity {
            gateway: OTHER,
            secret: TunnelSecret::from_bytes([8; 32]),
            identity: IdentityKey::from_seed(&[3; 32]),
            seed: [5 + run; 32],
        };
        engine = Engine::new(engine.config.clone(), identity, now);
    } else if run > 0 {
        let identity = TunnelIdentity { seed: [100 + run; 32], ..engine.identity.clone() };
        engine = Engine::new(engine.config.clone(), identity, now);
    }
    if lanes {
        let secret = TunnelSecret::from_bytes([0x10 + side as u8 * 0x40 + run; 32]);
        engine.use_lanes(&secret, LANES, Runner::Engine, now);
    }
    engine.apply(if side == 0 { own_view() } else { other_view() }, now);
    engine
}

impl Net {
    fn new(lanes: [bool; 2]) -> Self {
        let now = start();
        let mut net = Self {
            engines: [boot(0, 0, lanes[0], now), boot(1, 0, lanes[1], now)],
            sockets: Default::default(),
            now,
            boots: [0; 2],
            lanes_lost: false,
            mute: None,
            place: [at(0), at(1)],
            loses: None,
            sent: [[0; 2]; 2],
            numbers: BTreeMap::new(),
            got: BTreeMap::new(),
        };
        net.wait(3_000);
        net
    }

    /// A pair whose first flow has a lane.
    fn with_lane() -> Self {
        let mut net = Self::new([true; 2]);
        net.fill(1);
        assert!(net.standing(0).ready > 0, "{:?}", net.engines[0].status(net.now));
        net.sent = [[0; 2]; 2];
        net
    }

    fn standing(&self, side: usize) -> Standing {
        self.engines[side].lanes().into_values().next().unwrap_or_default()
    }

    /// Sends enough of a flow for it to be bulk, and lets what it sets off come about.
    fn fill(&mut self, flow: u16) {
        for _ in 0..6 {
            self.burst(0, flow, 60, 1200);
            self.wait(20);
        }
    }

    fn carry(&mut self, side: usize, out: Out) {
        for (owner, to, bytes) in out.datagrams {
            let count = &mut self.sent[side][usize::from(owner > 0)];
            *count += 1;
            let lost = self.loses.is_some_and(|nth| count.is_multiple_of(nth));
            let for_lane = lane::owner_of(&bytes).unwrap_or(0) > 0;
            let mute = self.mute == Some(side) && owner == 0;
            if lost || mute || (self.lanes_lost && (owner > 0 || for_lane)) {
                continue;
            }
            if to == self.place[1 - side] {
                self.sockets[1 - side][usize::from(for_lane)].push_back(bytes);
            }
        }
        for frame in out.frames {
            let parsed = parse_ethernet(&frame, None).unwrap();
            let Ok(packet) = parse_ipv4(parsed.payload) else { continue };
            let (Transport::Udp, Some(data)) = (packet.transport, packet.udp_payload()) else {
                continue;
            };
            let number = u32::from_be_bytes(*data.first_chunk().unwrap());
            assert!(data[4..].iter().all(|byte| *byte == number as u8), "{number} is damaged");
            self.got.entry(packet.source_port).or_default().push(number);
        }
    }

    /// Sends packets of a flow from one side's device to the other's.
    fn burst(&mut self, side: usize, flow: u16, count: usize, len: usize) {
        let port = 40_000 + flow;
        let mut out = Out::default();
        for _ in 0..count {
            let number = self.numbers.entry(port).or_default();
            let mut data = number.to_be_bytes().to_vec();
            data.resize(len, *number as u8);
            *number += 1;
            let (packet, ends) = if side == 0 {
                (ipv4(HERE, THERE, 17, &udp(port, 1, &data)), (mac(20), mac(10)))
            } else {
                (ipv4(THERE, HERE, 17, &udp(port, 1, &data)), (mac(10), mac(20)))
            };
            let mut bytes = frame(ends.0, ends.1, &packet);
            let vnet = VnetHeader::default();
            let mut batch = [RxFrame { vnet, vlan: None, bytes: &mut bytes }];
            self.engines[side].handle_frames(PortId::device(0), &mut batch, self.now, &mut out);
        }
        self.carry(side, out);
    }

    /// A worker's turn that fetched so many datagrams of lanes: it empties lane 0's socket before it handles them.
    fn turn(&mut self, side: usize, batch: usize) {
        let [first, lanes] = &mut self.sockets[side];
        let fetched: Vec<Vec<u8>> = lanes.drain(..batch.min(lanes.len())).collect();
        let first: Vec<Vec<u8>> = first.drain(..).collect();
        for mut all in [first, fetched] {
            let mut out = Out::default();
            let mut batch: Vec<RxDatagram<'_>> = all
                .iter_mut()
                .map(|bytes| RxDatagram { from: self.place[1 - side], segment: bytes.len(), bytes })
                .collect();
            self.engines[side].handle_datagrams(&mut batch, self.now, &mut out);
            self.carry(side, out);
        }
    }

    fn settle(&mut self) {
        while self.sockets.iter().flatten().any(|socket| !socket.is_empty()) {
            self.turn(0, 32);
            self.turn(1, 32);
        }
    }

    fn wait(&mut self, millis: u64) {
        let end = self.now + Duration::from_millis(millis);
        loop {
            self.settle();
            let due = self.engines.iter().filter_map(Engine::poll_timeout);
            let Some(next) = due.map(|(at, _)| at).min().filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            for side in 0..2 {
                let mut out = Out::default();
                self.engines[side].handle_timeout(self.now, &mut out);
                self.carry(side, out);
            }
        }
        self.now = end;
    }

    fn restart(&mut self, side: usize) {
        self.boots[side] += 1;
        self.engines[side] = boot(side, self.boots[side], true, self.now);
        self.sockets[side] = Default::default();
    }

    /// Everything came out, once and in order.
    fn all_arrived(&self) {
        for (flow, count) in &self.numbers {
            let got = self.got.get(flow).map(Vec::as_slice).unwrap_or_default();
            let expected: Vec<u32> = (0..*count).collect();
            let first = got.iter().zip(&expected).position(|(got, expected)| got != expected);
            assert!(got == expected, "flow {flow}: {} of {count}, wrong from {first:?}", got.len());
        }
    }
}

#[test]
fn bulk_has_a_lane_and_what_is_thin_never_leaves_lane_0() {
    let mut net = Net::with_lane();
    net.burst(0, 1, 100, 1200);
    let (bulk, thin) = (net.sent[0][1], net.sent[0][0]);
    assert!(bulk == 100 && thin == 0, "{bulk} {thin}");
    for _ in 0..50 {
        net.burst(0, 2, 1, 200);
        net.wait(10);
    }
    assert!(net.sent[0][1] < 110, "alarms took a lane: {:?}", net.sent);
    // The other direction of the bulk flow is thin.
    net.all_arrived();
}

#[test]
fn either_end_may_begin_and_both_directions_have_lanes() {
    let mut net = Net::with_lane();
    for _ in 0..6 {
        net.burst(1, 1, 60, 1200);
        net.wait(20);
    }
    assert!(net.standing(1).ready > 0 && net.sent[1][1] > 100, "{:?}", net.sent);
}

#[test]
fn nobody_makes_a_lane_before_a_flow_wants_one() {
    let mut net = Net::new([true; 2]);
    net.burst(0, 1, 20, 200);
    net.wait(20_000);
    assert_eq!([net.standing(0), net.standing(1)], [Standing::default(); 2]);
    assert_eq!([net.sent[0][1], net.sent[1][1]], [0; 2]);
}

#[test]
fn with_a_peer_that_has_no_lanes_everything_takes_lane_0() {
    for lanes in [[true, false], [false, true]] {
        let mut net = Net::new(lanes);
        for _ in 0..10 {
            net.burst(0, 1, 60, 1200);
            net.wait(200);
        }
        assert_eq!([net.sent[0][1], net.sent[1][1]], [0; 2]);
        net.all_arrived();
        let kept = net.engines.iter().filter_map(|engine| engine.bulk.as_ref());
        assert_eq!(
            kept.map(|bulk| bulk.peers_for_tests()).sum::<usize>(),
            0,
            "nor is anything kept of it"
        );
    }
}

#[test]
fn lanes_are_closed_when_idle_and_come_again() {
    let mut net = Net::with_lane();
    let before = net.sent[0][1];
    net.wait(200_000);
    let idle = net.sent[0][1] - before;
    assert!(idle < 20, "{idle} datagrams of an idle lane");
    for engine in &net.engines {
        assert_eq!(engine.open_lanes(), 0);
        assert_eq!(engine.lanes_due(), None, "an idle gateway isn't woken for its lanes");
    }
    net.fill(1);
    assert!(net.sent[0][1] > before + 200, "{:?}", net.sent);
    net.all_arrived();
}

#[test]
fn a_lane_in_use_stays_for_hours() {
    let mut net = Net::with_lane();
    for _ in 0..600 {
        net.burst(0, 1, 1, 1200);
        net.wait(950);
    }
    assert!(net.sent[0][1] >= 600, "{:?}", net.sent);
    net.all_arrived();
}

#[test]
fn a_peer_that_restarts_has_no_lanes_until_new_ones_are_agreed_on() {
    for side in [0, 1] {
        let mut net = Net::with_lane();
        net.restart(side);
        net.wait(1_500);
        assert_eq!(net.standing(1 - side), Standing::default(), "the old run's lanes are gone");
        let lost: BTreeMap<u16, usize> =
            net.got.iter().map(|(flow, got)| (*flow, got.len())).collect();
        net.fill(1);
        net.fill(1);
        assert!(net.standing(0).ready > 0, "{side}");
        let got = &net.got[&40_001][lost[&40_001]..];
        assert_eq!(got.len(), 720, "nothing is lost once both are up");
        assert!(got.is_sorted());
    }
}

#[test]
fn a_lane_that_dies_is_left() {
    let mut net = Net::with_lane();
    net.lanes_lost = true;
    for _ in 0..250 {
        net.burst(0, 1, 2, 1200);
        net.wait(100);
    }
    assert_eq!(net.standing(0).ready, 0);
    let before = net.got[&40_001].len();
    net.burst(0, 1, 50, 1200);
    net.wait(100);
    assert_eq!(net.got[&40_001].len(), before + 50, "lane 0 carries it");
    net.lanes_lost = false;
    for _ in 0..400 {
        net.burst(0, 1, 2, 1200);
        net.wait(100);
    }
    assert!(net.standing(0).ready > 0, "it comes back when the way does");
    assert!(net.got[&40_001].is_sorted());
}

#[test]
fn a_revoked_peer_has_no_lanes_at_once() {
    let mut net = Net::with_lane();
    let mut view = (*own_view()).clone();
    (view.peers, view.intent.peers, view.intent.members) = Default::default();
    view.intent.rules.clear();
    view.operation.number.sequence += 1;
    net.engines[0].apply(Arc::new(view), net.now);
    net.engines[0].handle_timeout(net.now, &mut Out::default());
    assert_eq!((net.engines[0].open_lanes(), net.standing(0)), (0, Standing::default()));
    // What the other end goes on sending through its lane reaches nobody.
    let before = net.got.clone();
    net.burst(1, 1, 200, 1200);
    net.wait(100);
    assert_eq!(net.got, before);
}

#[test]
fn what_a_lane_thread_gives_back_takes_lane_0() {
    let mut net = Net::with_lane();
    let peer = net.engines[0].peers.slot(OTHER).unwrap();
    let before = net.got[&40_001].len();
    let mut out = Out::default();
    for _ in 0..3 {
        let number = net.numbers.get_mut(&40_001).unwrap();
        let mut data = number.to_be_bytes().to_vec();
        data.resize(300, *number as u8);
        *number += 1;
        let mut packet = ipv4(HERE, THERE, 17, &udp(40_001, 1, &data));
        let mut job = lane::Job {
            at: lane::LaneId { peer, lane: 1 },
            vnet: VnetHeader::default(),
            network: 14,
            limit: 1400,
            packet: &mut packet,
        };
        net.engines[0].take_back(&mut job, net.now, &mut out);
    }
    assert!(out.datagrams.len() == 3 && out.datagrams.iter().all(|(owner, ..)| *owner == 0));
    net.carry(0, out);
    net.wait(10);
    assert_eq!(net.got[&40_001].len(), before + 3);
    net.all_arrived();
}

#[test]
fn a_peer_that_is_elsewhere_is_found_by_what_its_lanes_bring() {
    let mut net = Net::with_lane();
    // A NAT gives gateway 0 another address; nothing but bulk leaves it for now.
    net.place[0] = SocketAddr::from(([192, 0, 2, 99], 61_000));
    let before = net.now;
    net.burst(0, 1, 5, 1200);
    net.settle();
    assert_eq!(net.now, before);
    let addresses = net.engines[1].peer_addresses();
    let found = addresses.into_iter().any(|one| format!("{one:?}").contains("192.0.2.99:61000"));
    assert!(found, "lane 0 asked there, and was answered");
    net.burst(1, 2, 5, 200);
    net.wait(10);
    assert_eq!(net.got[&40_002].len(), 5);
    net.all_arrived();
}

#[test]
fn an_offer_of_another_run_than_the_hellos_is_refused() {
    let mut net = Net::with_lane();
    let before = net.standing(0);
    let now = net.now;
    let peer = net.engines[0].peers.slot(OTHER).unwrap();
    let via = net.engines[0].peers.sending_key(peer).unwrap();
    let offer = crate::peer::message::LaneOffer {
        boot: anteroom_proto::id::BootId::from_bytes([0xee; 16]),
        key: crate::peer::message::LaneKey([9; 32]),
        lanes: 1,
        holds: None,
        ask: true,
        answer: false,
        number: 0,
    };
    let engine = &mut net.engines[0];
    let (bulk, peers) = (engine.bulk.as_mut().unwrap(), &mut engine.peers);
    bulk.hear_for_tests(peer, via, &offer, peers, now);
    assert_eq!(net.standing(0), before, "what was agreed on stays");
}

#[test]
fn a_main_key_that_goes_takes_the_lanes_that_came_through_it() {
    let mut net = Net::with_lane();
    let mut view = (*own_view()).clone();
    view.peers[0].keys[0].x25519 = TunnelSecret::from_bytes([0x77; 32]).public();
    view.operation.number.sequence += 1;
    net.engines[0].apply(Arc::new(view), net.now);
    net.engines[0].handle_timeout(net.now, &mut Out::default());
    assert_eq!((net.engines[0].open_lanes(), net.standing(0)), (0, Standing::default()));
}

#[test]
fn what_is_too_long_for_the_path_follows_its_flow_in_parts() {
    let mut net = Net::with_lane();
    for engine in &mut net.engines {
        engine.set_underlay_mtu(1280, net.now);
    }
    net.wait(100);
    for len in [100, 1400, 200, 1472, 1000, 1300] {
        net.burst(0, 1, 20, len);
    }
    net.wait(100);
    assert!(net.sent[0][1] > 160, "parts take the lane: {:?}", net.sent);
    net.all_arrived();
}

/// What happens, in the order of a test's choice.
#[derive(Debug, Clone)]
enum Step {
    /// Flow, packets, bytes of each.
    Burst(usize, u16, usize, usize),
    /// A turn of one side that fetches so many datagrams from its lanes' socket.
    Turn(usize, usize),
    Wait(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2_usize, 1..4_u16, 1..70_usize, prop::sample::select(vec![40_usize, 1200, 1400]))
            .prop_map(|(side, flow, count, len)| Step::Burst(side, flow + 10 * side as u16, count, len)),
        4 => (0..2_usize, 0..40_usize).prop_map(|(side, batch)| Step::Turn(side, batch)),
        1 => prop::sample::select(vec![5_u64, 50, 990, 1_100, 21_000]).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn no_flow_is_ever_reordered(steps in prop::collection::vec(any_step(), 1..60), loses in prop::option::of(7..50_usize)) {
        let mut net = Net::new([true; 2]);
        // Answers to lane 0's own messages get lost as well.
        net.loses = loses;
        for step in steps {
            match step {
                Step::Burst(side, flow, count, len) => net.burst(side, flow, count, len),
                Step::Turn(side, batch) => net.turn(side, batch),
                Step::Wait(millis) => net.wait(millis),
            }
        }
        net.loses = None;
        net.wait(1_000);
        for (flow, got) in &net.got {
            prop_assert!(got.windows(2).all(|pair| pair[0] < pair[1]), "flow {flow}: {got:?}");
        }
        if loses.is_none() {
            net.all_arrived();
        }
    }
}
