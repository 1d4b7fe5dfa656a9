//! Stock WireGuard peers: boringtun as it is, with none of what gateways add.

use anteroom_proto::intent::Client;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

use super::*;
use crate::batch::RxDatagram;
use crate::nexthop;
use crate::wire::arp;

const LAPTOP: MemberId = MemberId::from_bytes([70; 16]);
pub(super) const LAPTOP_AT: [u8; 4] = [10, 20, 1, 70];
pub(super) const CT_AT: [u8; 4] = [10, 20, 1, 10];
pub(super) const MRI_AT: [u8; 4] = [10, 20, 1, 11];
pub(super) const SYN: u8 = 0x02;
pub(super) const SYN_ACK: u8 = 0x12;

/// Indices of which one has the bit set by which gateways tell what a handshake is for. Stock programs choose any.
const INDICES: [u32; 2] = [1 << 19 | 1, 2];

#[derive(Debug, Default)]
pub(super) struct Out {
    pub(super) frames: Vec<(PortId, Vec<u8>)>,
    pub(super) datagrams: Vec<(SocketAddr, Vec<u8>)>,
}

impl Sink for Out {
    fn frame(&mut self, port: PortId, _: VnetHeader, _: Option<VlanTag>, parts: &[&[u8]]) {
        self.frames.push((port, parts.concat()));
    }

    fn datagram(
        &mut self,
        to: SocketAddr,
        _: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        let mut bytes = vec![0; capacity];
        let len = write(&mut bytes);
        bytes.truncate(len);
        self.datagrams.push((to, bytes));
    }
}

pub(super) fn at(last: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, last], 40_000 + u16::from(last)))
}

/// What the view says of the laptop: it may open VNC at device 10, which may open DICOM at it.
pub(super) fn with_laptop(modes: [Mode; 2], seed: u8) -> Arc<View> {
    let mut view = (*view(modes, &["tcp/104"])).clone();
    view.intent.clients.push(Client {
        id: LAPTOP,
        key: TunnelSecret::from_bytes([seed; 32]).public(),
        overlay: overlay::member_address(ORGANISATION, LAPTOP),
        site: SiteId::of("north"),
        address: LAPTOP_AT.into(),
    });
    let ct = Endpoint::Member(MemberId::from_bytes([10; 16]));
    let laptop = Endpoint::Member(LAPTOP);
    for (id, from, to, service) in
        [("there", laptop, ct, "tcp/5900"), ("back", ct, laptop, "tcp/104")]
    {
        view.intent.rules.push(Rule {
            id: RuleId::of(id),
            from,
            to,
            services: vec![service.parse().unwrap()],
            clear: false,
            essential: false,
            conditions: Vec::new(),
        });
    }
    Arc::new(view)
}

/// The laptop's end with this key. It is never under load: how many handshakes it takes would be a matter of the real
/// clock, which no test here follows.
fn stock(secret: [u8; 32], index: u32) -> Tunn {
    let gateway = PublicKey::from(*TunnelSecret::from_bytes([9; 32]).public().as_bytes());
    let secret = StaticSecret::from(secret);
    let never = Arc::new(RateLimiter::new(&PublicKey::from(&secret), u64::MAX));
    Tunn::new(secret, gateway, None, None, index, Some(never))
}

/// A gateway and a laptop with stock WireGuard.
pub(super) struct Pair {
    pub(super) engine: Engine,
    laptop: Tunn,
    /// Where the laptop is.
    pub(super) from: SocketAddr,
    /// IP packets that came out of the laptop's tunnel.
    pub(super) received: Vec<Vec<u8>>,
    /// Datagrams that the laptop got, whatever was in them.
    heard: usize,
    pub(super) now: Instant,
}

impl Pair {
    pub(super) fn new(modes: [Mode; 2]) -> Self {
        let now = start();
        let mut engine = engine(Limits::default(), now);
        engine.apply(with_laptop(modes, 70), now);
        let laptop = stock([70; 32], INDICES[0]);
        Self { engine, laptop, from: at(1), received: Vec::new(), heard: 0, now }
    }

    pub(super) fn connected(modes: [Mode; 2]) -> Self {
        let mut pair = Self::new(modes);
        pair.handshake();
        pair
    }

    pub(super) fn handshake(&mut self) -> Vec<u8> {
        let mut buffer = vec![0; 2048];
        let TunnResult::WriteToNetwork(message) =
            self.laptop.format_handshake_initiation(&mut buffer, true)
        else {
            panic!("no initiation");
        };
        let initiation = message.to_vec();
        let out = self.arrives(&initiation.clone());
        assert!(out.frames.is_empty(), "{out:?}");
        initiation
    }

    /// A datagram arrives at the gateway; what it answers arrives at the laptop, and so on.
    pub(super) fn arrives(&mut self, datagram: &[u8]) -> Out {
        let mut out = Out::default();
        let mut bytes = datagram.to_vec();
        let segment = bytes.len();
        let from = self.from;
        let mut batch = [RxDatagram { from, segment, bytes: &mut bytes }];
        self.engine.handle_datagrams(&mut batch, self.now, &mut out);
        self.carry(&mut out);
        out
    }

    /// Carries what the gateway sent to the laptop, and what that answers back.
    fn carry(&mut self, out: &mut Out) {
        for (to, datagram) in std::mem::take(&mut out.datagrams) {
            if to != self.from {
                out.datagrams.push((to, datagram));
                continue;
            }
            self.heard += 1;
            let mut buffer = vec![0; 65_536];
            let mut result = self.laptop.decapsulate(None, &datagram, &mut buffer);
            let mut answers = Vec::new();
            loop {
                match result {
                    TunnResult::WriteToNetwork(answer) => answers.push(answer.to_vec()),
                    TunnResult::WriteToTunnelV4(packet, _)
                    | TunnResult::WriteToTunnelV6(packet, _) => {
                        self.received.push(packet.to_vec());
                        break;
                    }
                    TunnResult::Done => break,
                    TunnResult::Err(error) => panic!("the laptop refuses: {error:?}"),
                }
                result = self.laptop.decapsulate(None, &[], &mut buffer);
            }
            for answer in answers {
                let more = self.arrives(&answer);
                out.frames.extend(more.frames);
                out.datagrams.extend(more.datagrams);
            }
        }
    }

    /// The laptop sends a packet.
    fn send(&mut self, packet: &[u8]) -> Out {
        let datagram = self.sealed(packet);
        self.arrives(&datagram)
    }

    pub(super) fn sealed(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; 2048];
        match self.laptop.encapsulate(packet, &mut buffer) {
            TunnResult::WriteToNetwork(datagram) => datagram.to_vec(),
            other => panic!("nothing to send: {other:?}"),
        }
    }

    /// Device 10 sends a frame to the address that stands for the laptop.
    pub(super) fn device_sends(&mut self, packet: &[u8]) -> Out {
        let mut bytes = frame(nexthop::stand_in(OWN), mac(10), packet);
        let mut out = Out::default();
        let mut batch = [RxFrame { vnet: VnetHeader::default(), vlan: None, bytes: &mut bytes }];
        self.engine.handle_frames(PortId::device(0), &mut batch, self.now, &mut out);
        self.carry(&mut out);
        out
    }

    /// Lets time pass, as far as the gateway goes.
    pub(super) fn wait(&mut self, time: Duration) -> Out {
        let end = self.now + time;
        let mut all = Out::default();
        while let Some((due, _)) = self.engine.poll_timeout().filter(|(due, _)| *due <= end) {
            self.now = self.now.max(due);
            self.engine.handle_timeout(self.now, &mut all);
        }
        self.now = end;
        all
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.engine.status(self.now).drops.get(reason.as_str()).copied().unwrap_or(0)
    }
}

fn vnc(flags: u8) -> Vec<u8> {
    ipv4(LAPTOP_AT, CT_AT, 6, &tcp(50_000, 5900, flags, &[]))
}

#[test]
fn a_stock_peer_is_answered_whatever_index_it_chooses() {
    let mut pair = Pair::new([Mode::Enforce; 2]);
    let bits = (0..24).map(|bit| 1 << bit);
    for index in bits.chain([0, 0x00ff_ffff]) {
        // Its program starts anew each time.
        pair.laptop = stock([70; 32], index);
        pair.wait(Duration::from_secs(1));
        pair.handshake();
        let delivered = pair.send(&vnc(SYN)).frames.len();
        assert_eq!(delivered, 1, "{index:#x}: {:?}", pair.engine.status(pair.now).drops);
    }
    assert_eq!(pair.drops(DropReason::PeerUnknown), 0);
}

#[test]
fn a_stock_peer_speaks_with_a_device_both_ways_and_hears_nothing_else() {
    for mode in [Mode::Protect, Mode::Enforce] {
        let mut pair = Pair::connected([mode; 2]);
        let there = vnc(SYN);
        let out = pair.send(&there);
        let delivered = frame(mac(10), nexthop::stand_in(OWN), &there);
        assert_eq!(out.frames, [(PortId::device(0), delivered)], "{mode}");
        let back = ipv4(CT_AT, LAPTOP_AT, 6, &tcp(5900, 50_000, SYN_ACK, &[]));
        let out = pair.device_sends(&back);
        assert!(out.frames.is_empty() && out.datagrams.is_empty(), "{mode}: {out:?}");
        assert_eq!(pair.received, [back], "{mode}");
        let opened = ipv4(CT_AT, LAPTOP_AT, 6, &tcp(41_000, 104, SYN, &[]));
        pair.device_sends(&opened);
        assert_eq!(pair.received.len(), 2, "{mode}");
        assert_eq!(pair.received[1], opened, "{mode}");
        // Five minutes: whatever is due for gateways is none of a client's business.
        let heard = pair.heard;
        let quiet = pair.wait(Duration::from_secs(300));
        let said: Vec<_> = quiet.datagrams.iter().filter(|(to, _)| *to == at(1)).collect();
        assert!(said.iter().all(|(_, datagram)| datagram.len() == 32), "{mode}: {said:?}");
        assert_eq!(pair.heard, heard);
        let tunnels = pair.engine.status(pair.now).peers;
        let laptop = tunnels.iter().find(|tunnel| tunnel.client).unwrap();
        assert_eq!((laptop.gateway, laptop.endpoint), (LAPTOP.into(), Some(at(1))));
        assert!(!laptop.live, "silent for five minutes");
    }
}

#[test]
fn what_no_rule_opens_passes_in_no_mode() {
    for mode in [Mode::Observe, Mode::Protect, Mode::Enforce] {
        let mut pair = Pair::connected([mode; 2]);
        let refused = [
            (ipv4(LAPTOP_AT, CT_AT, 6, &tcp(50_000, 104, SYN, &[])), DropReason::NoRule),
            (ipv4(LAPTOP_AT, MRI_AT, 6, &tcp(50_000, 5900, SYN, &[])), DropReason::NoRule),
            (ipv4([10, 20, 1, 71], CT_AT, 6, &tcp(50_000, 5900, SYN, &[])), DropReason::PeerSource),
            (ipv4([10, 20, 4, 20], CT_AT, 6, &tcp(50_000, 104, SYN, &[])), DropReason::PeerSource),
            (
                ipv4(LAPTOP_AT, [10, 20, 4, 20], 6, &tcp(1, 104, SYN, &[])),
                DropReason::PeerDestination,
            ),
            (
                ipv4(LAPTOP_AT, [10, 20, 9, 9], 6, &tcp(1, 104, SYN, &[])),
                DropReason::PeerDestination,
            ),
        ];
        for (packet, reason) in refused {
            let before = pair.drops(reason);
            let out = pair.send(&packet);
            assert!(out.frames.is_empty(), "{mode}: {reason}: {out:?}");
            assert_eq!(
                pair.drops(reason),
                before + 1,
                "{mode}: {:?}",
                pair.engine.status(pair.now).drops
            );
        }
        let stray = ipv4(CT_AT, LAPTOP_AT, 6, &tcp(41_000, 23, SYN, &[]));
        let out = pair.device_sends(&stray);
        assert!(out.datagrams.is_empty() && pair.received.is_empty(), "{mode}: {out:?}");
    }
}

#[test]
fn an_observed_device_is_a_wire_and_no_clients_peer() {
    let mut pair = Pair::connected([Mode::Observe; 2]);
    let out = pair.send(&vnc(SYN));
    assert!(out.frames.is_empty(), "{out:?}");
    assert_eq!(pair.drops(DropReason::ClientOfObserved), 1);
    let why = pair.engine.explain(
        &crate::report::Question {
            from: LAPTOP_AT.into(),
            to: CT_AT.into(),
            service: "tcp/5900".parse().unwrap(),
        },
        pair.now,
    );
    assert_eq!(why.path, "none", "{why:?}");
}

#[test]
fn messages_between_gateways_are_not_a_clients_to_say() {
    let mut pair = Pair::connected([Mode::Enforce; 2]);
    let own = overlay::gateway_address(ORGANISATION, OWN);
    let mut packet = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    packet.extend(overlay::member_address(ORGANISATION, LAPTOP).octets());
    packet.extend(own.octets());
    packet.extend([0, 1, 0, 1, 0, 8, 0, 0]);
    let heard = pair.heard;
    pair.send(&packet);
    assert_eq!((pair.drops(DropReason::Ipv6), pair.heard), (1, heard));
}

#[test]
fn nobody_is_called_before_it_was_heard_and_nothing_goes_round_the_tunnel() {
    for mode in [Mode::Protect, Mode::Enforce] {
        let mut pair = Pair::new([mode; 2]);
        let opened = ipv4(CT_AT, LAPTOP_AT, 6, &tcp(41_000, 104, SYN, &[]));
        for _ in 0..5 {
            let out = pair.device_sends(&opened);
            assert!(out.frames.is_empty() && out.datagrams.is_empty(), "{mode}: {out:?}");
            let out = pair.wait(Duration::from_secs(120));
            let strange = out
                .datagrams
                .iter()
                .filter(|(to, _)| to.ip() != std::net::Ipv4Addr::new(192, 0, 2, 3));
            assert_eq!(strange.count(), 0, "{mode}");
        }
        assert_eq!(pair.drops(DropReason::TunnelDown), 5, "{mode}");
        pair.handshake();
        pair.device_sends(&opened);
        assert_eq!(pair.received, [opened], "{mode}");
    }
}

#[test]
fn a_laptop_moves_and_a_copy_of_its_initiation_moves_nothing() {
    let mut pair = Pair::new([Mode::Enforce; 2]);
    let initiation = pair.handshake();
    let opened = ipv4(CT_AT, LAPTOP_AT, 6, &tcp(41_000, 104, SYN, &[]));
    pair.from = at(2);
    pair.send(&vnc(SYN));
    pair.device_sends(&opened);
    assert_eq!(pair.received.len(), 1, "it is at its second place");
    // A copy of its first initiation from a third place is refused, and whatever can't be opened is, too.
    pair.from = at(3);
    pair.arrives(&initiation);
    pair.arrives(&[4, 0, 0, 0, 9, 9, 9, 9].repeat(8));
    pair.from = at(2);
    pair.device_sends(&opened);
    assert_eq!(pair.received.len(), 2, "{:?}", pair.engine.status(pair.now).peers);
}

#[test]
fn with_another_key_it_is_called_where_it_was_when_there_is_something_to_say() {
    let mut pair = Pair::connected([Mode::Enforce; 2]);
    pair.engine.apply(with_laptop([Mode::Enforce; 2], 71), pair.now);
    let out = pair.wait(Duration::from_secs(60));
    assert!(out.datagrams.iter().all(|(to, _)| *to != at(1)), "there is nothing to say: {out:?}");
    let opened = ipv4(CT_AT, LAPTOP_AT, 6, &tcp(41_000, 104, SYN, &[]));
    pair.laptop = stock([71; 32], INDICES[1]);
    pair.device_sends(&opened);
    let mut out = Out::default();
    pair.engine.handle_timeout(pair.now, &mut out);
    assert_eq!(out.datagrams.iter().filter(|(to, _)| *to == at(1)).count(), 1, "{out:?}");
    pair.carry(&mut out);
    assert_eq!(pair.received, [opened], "what waited for the handshake");
}

/// The gateway's agent starts anew with what it had learnt, or nothing; the laptop's program knows nothing of it.
fn restarted(pair: &mut Pair, keep: bool) {
    let learned = pair.engine.learned();
    pair.engine = engine(Limits::default(), pair.now);
    if keep {
        pair.engine.restore(learned);
    }
    pair.engine.apply(with_laptop([Mode::Enforce; 2], 70), pair.now);
}

#[test]
fn a_client_is_called_where_it_was_before_a_restart() {
    let opened = ipv4(CT_AT, LAPTOP_AT, 6, &tcp(41_000, 104, SYN, &[]));
    for keep in [true, false] {
        let mut pair = Pair::connected([Mode::Enforce; 2]);
        assert_eq!(pair.send(&vnc(SYN)).frames.len(), 1);
        restarted(&mut pair, keep);
        assert!(pair.send(&vnc(SYN)).frames.is_empty(), "its session was lost with the agent");
        let mut out = pair.wait(Duration::from_millis(100));
        out.datagrams.retain(|(to, _)| *to == at(1));
        assert_eq!(out.datagrams.len(), usize::from(keep), "{keep}: {out:?}");
        pair.carry(&mut out);
        // It never began a handshake of its own.
        assert_eq!(pair.send(&vnc(SYN)).frames.len(), usize::from(keep), "{keep}");
        pair.device_sends(&opened);
        assert_eq!(pair.received.len(), usize::from(keep), "{keep}");
    }
}

#[test]
fn a_client_hears_from_its_gateway_where_that_is_now() {
    let moved = |pair: &mut Pair| {
        pair.engine.note_moved(pair.now);
        let mut out = pair.wait(Duration::from_secs(60));
        out.datagrams.retain(|(to, _)| *to == at(1));
        out
    };
    let mut pair = Pair::new([Mode::Enforce; 2]);
    assert!(moved(&mut pair).datagrams.is_empty(), "nobody knows where it is");
    pair.handshake();
    pair.send(&vnc(SYN));
    for _ in 0..2 {
        let mut out = moved(&mut pair);
        let sizes: Vec<_> = out.datagrams.iter().map(|(_, datagram)| datagram.len()).collect();
        assert_eq!(sizes, [32; 4], "empty packets of the session that there is");
        // It takes them all for authentic, which has it send there from then on.
        pair.carry(&mut out);
    }
    let opened = ipv4(CT_AT, LAPTOP_AT, 6, &tcp(41_000, 104, SYN, &[]));
    pair.device_sends(&opened);
    assert_eq!(pair.received, [opened]);
    // One whose session was lost with the agent is called, and no more often than after a restart.
    restarted(&mut pair, true);
    pair.wait(Duration::from_secs(60));
    let calls = moved(&mut pair).datagrams.iter().filter(|(_, call)| call.len() == 148).count();
    assert_eq!(calls, 3);
}

#[test]
fn a_client_that_is_gone_is_called_a_few_times_only_and_what_was_known_of_it_stays() {
    let mut pair = Pair::connected([Mode::Enforce; 2]);
    pair.send(&vnc(SYN));
    for restarts in 1..3 {
        restarted(&mut pair, true);
        let out = pair.wait(Duration::from_secs(600));
        let calls = out.datagrams.iter().filter(|(to, _)| *to == at(1)).count();
        assert_eq!(calls, 3, "{restarts}");
        let kept = pair.engine.learned().clients;
        assert_eq!(kept, [crate::report::LearnedClient { member: LAPTOP, at: at(1) }]);
    }
    // Nothing of a client that is no more.
    let mut without = (*with_laptop([Mode::Enforce; 2], 70)).clone();
    without.intent.clients.clear();
    pair.engine.apply(Arc::new(without), pair.now);
    assert!(pair.engine.learned().clients.is_empty());
}

#[test]
fn a_client_that_moved_since_the_restart_is_not_called_where_it_was_before() {
    let mut pair = Pair::connected([Mode::Enforce; 2]);
    pair.send(&vnc(SYN));
    restarted(&mut pair, true);
    pair.from = at(2);
    pair.handshake();
    pair.send(&vnc(SYN));
    // From here on it is switched off: nothing is carried to it, nor counted as come.
    pair.from = at(9);
    let opened = ipv4(CT_AT, LAPTOP_AT, 6, &tcp(41_000, 104, SYN, &[]));
    let calls = |pair: &mut Pair| {
        // Its session is over.
        pair.wait(Duration::from_secs(600));
        let mut out = Out::default();
        for _ in 0..30 {
            out.datagrams.append(&mut pair.device_sends(&opened).datagrams);
            out.datagrams.append(&mut pair.wait(Duration::from_secs(1)).datagrams);
        }
        let places = out.datagrams.iter().map(|(to, _)| *to);
        places.filter(|to| [at(1), at(2)].contains(to)).collect::<Vec<_>>()
    };
    for key in [70, 70, 71] {
        let places = calls(&mut pair);
        assert!(places.len() > 2 && !places.contains(&at(1)), "{key}: {places:?}");
        pair.engine.apply(with_laptop([Mode::Enforce; 2], key), pair.now);
    }
    let places = calls(&mut pair);
    assert!(places.len() > 2 && !places.contains(&at(1)), "with another key: {places:?}");
}

#[test]
fn a_revoked_client_is_cut_at_once() {
    let mut pair = Pair::connected([Mode::Enforce; 2]);
    assert_eq!(pair.send(&vnc(SYN)).frames.len(), 1);
    let mut without = (*with_laptop([Mode::Enforce; 2], 70)).clone();
    without.intent.clients.clear();
    pair.engine.apply(Arc::new(without), pair.now);
    let out = pair.send(&vnc(0x10));
    assert!(out.frames.is_empty(), "{out:?}");
    assert_eq!(pair.drops(DropReason::PeerUnknown), 1);
    let back = ipv4(CT_AT, LAPTOP_AT, 6, &tcp(5900, 50_000, SYN_ACK, &[]));
    let out = pair.device_sends(&back);
    assert!(out.frames.is_empty() && out.datagrams.is_empty(), "{out:?}");
    assert!(pair.received.is_empty());
    let heard = pair.heard;
    pair.handshake();
    assert_eq!(pair.heard, heard, "and gets no answer");
}

#[test]
fn the_controller_alone_may_cut_a_client_off() {
    for suspend in [true, false] {
        let mut pair = Pair::connected([Mode::Enforce; 2]);
        let mut closed = (*with_laptop([Mode::Enforce; 2], 70)).clone();
        if suspend {
            closed.operation.suspended.push(LAPTOP.into());
        } else {
            closed.operation.quarantined.push(LAPTOP);
        }
        pair.engine.apply(Arc::new(closed), pair.now);
        let out = pair.send(&vnc(SYN));
        assert!(out.frames.is_empty(), "{suspend}: {out:?}");
    }
}

#[test]
fn a_device_finds_a_client_on_its_own_network_by_a_stand_in() {
    let mut pair = Pair::connected([Mode::Enforce; 2]);
    let ask = |pair: &mut Pair, target: [u8; 4]| {
        let mut bytes = arp::request(mac(10), CT_AT.into(), target.into()).to_vec();
        let mut out = Out::default();
        let mut batch = [RxFrame { vnet: VnetHeader::default(), vlan: None, bytes: &mut bytes }];
        pair.engine.handle_frames(PortId::device(0), &mut batch, pair.now, &mut out);
        out.frames
    };
    let answers = ask(&mut pair, LAPTOP_AT);
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0].0, PortId::device(0));
    assert_eq!(answers[0].1[22..28], nexthop::stand_in(OWN).0, "the sender in the answer");
    assert!(ask(&mut pair, [10, 20, 1, 71]).is_empty(), "nobody has that one");
}

#[test]
fn in_the_clear_nobody_passes_for_a_client() {
    let mut pair = Pair::connected([Mode::Enforce; 2]);
    let mut bytes = frame(mac(10), mac(0x66), &vnc(SYN));
    let mut out = Out::default();
    let mut batch = [RxFrame { vnet: VnetHeader::default(), vlan: None, bytes: &mut bytes }];
    pair.engine.handle_frames(PortId::UPLINK, &mut batch, pair.now, &mut out);
    assert!(out.frames.is_empty(), "{out:?}");
    assert_eq!(pair.drops(DropReason::ClearFromTunnelPeer), 1);
}

#[test]
fn what_is_too_large_for_a_path_that_nobody_can_measure_comes_in_fragments() {
    let mut pair = Pair::connected([Mode::Enforce; 2]);
    pair.send(&vnc(SYN));
    pair.device_sends(&ipv4(CT_AT, LAPTOP_AT, 6, &tcp(5900, 50_000, SYN_ACK, &[])));
    pair.received.clear();
    let data: Vec<u8> = (0..1_460u16).map(|i| (i % 251) as u8).collect();
    let segment = tcp(5900, 50_000, 0x10, &data);
    let mut whole = ipv4(CT_AT, LAPTOP_AT, 6, &segment);
    whole[6] = 0x40;
    whole[10..12].copy_from_slice(&[0, 0]);
    let sum = crate::checksum::checksum(&whole[..20]);
    whole[10..12].copy_from_slice(&sum.to_be_bytes());
    let out = pair.device_sends(&whole);
    assert!(out.frames.is_empty(), "what isn't known isn't told: {out:?}");
    assert_eq!(pair.received.len(), 2, "{:?}", pair.received);
    let mut joined = Vec::new();
    for (place, bytes) in pair.received.iter().enumerate() {
        assert!(bytes.len() <= 1_220, "{} bytes may not get through", bytes.len());
        let part = crate::wire::parse_ipv4(bytes).unwrap();
        let fragment = part.fragment.unwrap();
        assert_eq!((usize::from(fragment.offset), fragment.more), (joined.len(), place == 0));
        joined.extend_from_slice(part.payload());
    }
    assert_eq!(joined, segment);
}
