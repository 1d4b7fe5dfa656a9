//! Two gateways with a tunnel between them, a device behind each, and as many flows, rules and peers as one likes.

#![allow(dead_code, reason = "each bench uses a part of it")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anteroom_agent_core::batch::{RxDatagram, RxFrame, VlanTag};
use anteroom_agent_core::config::{Config, PortConfig, TunnelIdentity};
use anteroom_agent_core::engine::Engine;
use anteroom_agent_core::limits::Limits;
use anteroom_agent_core::port::PortId;
use anteroom_agent_core::sink::Sink;
use anteroom_agent_core::vnet::VnetHeader;
use anteroom_agent_core::wire::{ethernet, ipv4, udp};
use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::id::{GatewayId, MemberId, OrganisationId, RuleId, SegmentId, SiteId};
use anteroom_proto::intent::{
    Device, Endpoint, Infrastructure, Intent, Member, OnFailure, PeerGateway, Router, Rule, Segment,
};
use anteroom_proto::key::{Hash, IdentityKey, TunnelSecret};
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::operation::{Operation, ViewNumber};
use anteroom_proto::overlay;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::Unlisted;
use anteroom_proto::view::{Peer, View};

const ORGANISATION: OrganisationId = OrganisationId::from_bytes([1; 16]);
/// The router of both devices.
const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

/// TCP payload of a datagram in a run: fits every path.
const SEGMENT: usize = 1_100;
/// TCP payload of a run of datagrams.
pub(crate) const RUN: usize = 40 * SEGMENT;

/// How large a scene is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Rules in the near gateway's view, one of them about the far device.
    pub(crate) rules: usize,
    /// Peers of the near gateway. Only the first is there.
    pub(crate) peers: usize,
    /// Flows that the near device has open with the far one.
    pub(crate) flows: usize,
    /// How the near device is treated.
    pub(crate) mode: Mode,
}

impl Default for Shape {
    fn default() -> Self {
        Self { rules: 10, peers: 1, flows: 1, mode: Mode::Enforce }
    }
}

/// Takes what the engine sends.
#[derive(Debug, Default)]
pub(crate) struct Out {
    /// Whether packets are sealed, or only counted.
    pub(crate) seals: bool,
    /// Whether datagrams are kept.
    pub(crate) keeps: bool,
    /// What was kept.
    pub(crate) datagrams: Vec<Vec<u8>>,
    /// How many datagrams there were.
    pub(crate) sent: u64,
    /// How many frames there were.
    pub(crate) frames: u64,
    /// Where packets are sealed to.
    pub(crate) buffer: Vec<u8>,
}

impl Out {
    /// Counts frames anew, of which there must have been so many.
    pub(crate) fn frames_are(&mut self, count: u64) {
        assert_eq!(std::mem::take(&mut self.frames), count);
    }
}

impl Sink for Out {
    fn frame(&mut self, _: PortId, _: VnetHeader, _: Option<VlanTag>, parts: &[&[u8]]) {
        self.frames += 1;
        std::hint::black_box(parts);
    }

    fn datagram(
        &mut self,
        _: SocketAddr,
        _: u8,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) {
        self.sent += 1;
        if !self.seals {
            return;
        }
        if self.buffer.len() < capacity {
            self.buffer.resize(capacity, 0);
        }
        let len = write(&mut self.buffer);
        if self.keeps {
            self.datagrams.push(self.buffer[..len].to_vec());
        }
    }
}

/// Two gateways. The near one has its devices on `port1` and knows as much as the shape says.
pub(crate) struct Scene {
    /// The one that is measured.
    pub(crate) near: Engine,
    /// The other end of its tunnel.
    pub(crate) far: Engine,
    /// The time.
    pub(crate) now: Instant,
    shape: Shape,
}

/// The gateway with this number.
const fn gateway(number: u16) -> GatewayId {
    let [a, b] = number.to_be_bytes();
    GatewayId::from_bytes([2, a, b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

fn secret(number: u16) -> TunnelSecret {
    let [a, b] = number.to_be_bytes();
    let mut bytes = [7; 32];
    // The first byte is partly ignored.
    (bytes[1], bytes[2]) = (a, b);
    TunnelSecret::from_bytes(bytes)
}

fn endpoint(number: u16) -> SocketAddr {
    let [a, b] = number.to_be_bytes();
    SocketAddr::from(([192, 0, a, b], 51_820))
}

/// The Ethernet address of the device behind a gateway.
pub(crate) const fn mac(number: u16) -> MacAddr {
    let [a, b] = number.to_be_bytes();
    MacAddr([0, 0x1b, 0x21, 1, a, b])
}

/// The IP address of the device behind a gateway.
pub(crate) const fn address(number: u16) -> Ipv4Addr {
    let [a, b] = number.to_be_bytes();
    Ipv4Addr::new(10, 20 + a, b, 10)
}

fn member(number: u16, mode: Mode) -> Member {
    let [a, b] = number.to_be_bytes();
    let id = MemberId::from_bytes([3, a, b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    Member {
        id,
        gateway: gateway(number),
        overlay: overlay::member_address(ORGANISATION, id),
        site: SiteId::of("north"),
        vlan: None,
        mac: mac(number),
        addresses: vec![address(number).into()],
        mode,
        mode_since: 1,
        quarantined: false,
    }
}

/// What the gateway with this number holds of the whole.
pub(crate) fn view(own: u16, shape: &Shape) -> Arc<View> {
    let last = u16::try_from(shape.peers).unwrap();
    let everybody = 0..=last;
    let there: Vec<u16> = if own == 0 { (1..=last).collect() } else { vec![0] };
    let peer = |number: &u16| PeerGateway {
        gateway: gateway(*number),
        identity: IdentityKey::from_seed(&[3; 32]).public(),
        overlay: overlay::gateway_address(ORGANISATION, gateway(*number)),
    };
    let key = |number: &u16| TunnelKeyBinding {
        organisation: ORGANISATION,
        gateway: gateway(*number),
        x25519: secret(*number).public(),
        ml_kem_768: None,
        serial: 1,
        not_before: UnixMillis(0),
    };
    // The rule that is needed comes last, so that nobody finds it by luck.
    let rules = (0..shape.rules).rev().filter_map(|place| {
        let to = u16::try_from(place % shape.peers).unwrap() + 1;
        if own != 0 && to != own {
            return None;
        }
        let service = match u16::try_from(place / shape.peers).unwrap() {
            0 => "udp/5000-5099".to_owned(),
            number => format!("tcp/{number}"),
        };
        let far = Endpoint::Member(member(to, Mode::Enforce).id);
        let near = Endpoint::Segment(SegmentId::of("near"));
        Some(Rule {
            id: RuleId::of(&format!("rule-{place}")),
            from: near,
            to: far,
            services: vec![service.parse().unwrap()],
            clear: false,
            essential: false,
            conditions: Vec::new(),
        })
    });
    let intent = Intent {
        identity: None,
        organisation: ORGANISATION,
        gateway: gateway(own),
        overlay: overlay::gateway_address(ORGANISATION, gateway(own)),
        site: SiteId::of("north"),
        devices: vec![Device {
            member: member(own, shape.mode),
            port: "port1".parse().unwrap(),
            prefix_len: Some(24),
            router: Some(Router { address: Ipv4Addr::new(10, 20, 0, 1), mac: Some(ROUTER) }),
            on_failure: OnFailure::Default,
            rollout: anteroom_proto::rollout::Rollout::default(),
            two_person: false,
        }],
        members: there.iter().map(|number| member(*number, shape.mode)).collect(),
        peers: there.iter().map(peer).collect(),
        segments: vec![Segment {
            id: SegmentId::of("near"),
            members: everybody.take(1).map(|number| member(number, shape.mode).id).collect(),
            externals: Vec::new(),
        }],
        externals: Vec::new(),
        rules: rules.collect(),
        infrastructure: Infrastructure::default(),
        clients: Vec::new(),
        bypasses: Vec::new(),
    };
    let peers = there.iter().map(|number| Peer {
        gateway: peer(number),
        endpoints: vec![endpoint(*number)],
        keys: vec![key(number)],
        quic: None,
    });
    Arc::new(View {
        revision: 1,
        incarnation: 1,
        signed_at: UnixMillis(1),
        root_hash: Hash::ZERO,
        intent_hash: Hash::ZERO,
        operation: Operation {
            organisation: ORGANISATION,
            gateway: gateway(own),
            number: ViewNumber { incarnation: 1, sequence: 1 },
            revision: 1,
            peers: Vec::new(),
            quarantined: Vec::new(),
            suspended: Vec::new(),
            issued_at: UnixMillis(1),
        },
        peers: peers.collect(),
        upheld: anteroom_proto::approval::Upheld::default(),
        left_out: Vec::new(),
        intent,
    })
}

/// The gateway with this number, without a view.
pub(crate) fn engine(own: u16, flows: usize, now: Instant) -> Engine {
    let config = Config {
        gateway_macs: vec![MacAddr([2, 0, 0, 0, 9, 1])],
        own_addresses: vec!["10.99.0.1".parse().unwrap()],
        ports: vec![PortConfig {
            name: "port1".parse().unwrap(),
            mac: MacAddr([2, 0, 0, 0, 9, 2]),
            unlisted: Unlisted::Hold,
        }],
        uplink_mac: MacAddr([2, 0, 0, 0, 9, 3]),
        limits: Limits {
            flows: flows.max(65_536) + 1_000,
            flows_per_device: flows.max(65_536) + 1_000,
            ..Limits::default()
        },
    };
    let identity = TunnelIdentity {
        gateway: gateway(own),
        secret: secret(own),
        identity: IdentityKey::from_seed(&[9; 32]),
        seed: [4; 32],
    };
    Engine::new(config, identity, now)
}

impl Scene {
    /// A scene whose tunnel is up and whose flows are open.
    pub(crate) fn new(shape: Shape) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
        let now = Instant::now();
        let mut scene = Self {
            near: engine(0, shape.flows, now),
            far: engine(1, shape.flows, now),
            now,
            shape,
        };
        scene.near.apply(view(0, &shape), now);
        scene.far.apply(view(1, &shape), now);
        scene.meet();
        let (mut out, mut frame) = (Out::default(), Vec::new());
        for number in 0..shape.flows {
            scene.udp_frame(number, 16, &mut frame);
            scene.feed_port(&mut frame, &mut out);
        }
        assert_eq!(out.sent, shape.flows as u64, "{:#?}", scene.near.status(scene.now).drops);
        scene
    }

    /// Has the two ends shake hands.
    fn meet(&mut self) {
        for _ in 0..100 {
            self.now += Duration::from_millis(50);
            let keeping = || Out { seals: true, keeps: true, ..Out::default() };
            let (mut a, mut b) = (keeping(), keeping());
            self.near.handle_timeout(self.now, &mut a);
            self.far.handle_timeout(self.now, &mut b);
            while !a.datagrams.is_empty() || !b.datagrams.is_empty() {
                let to_far = std::mem::take(&mut a.datagrams);
                let to_near = std::mem::take(&mut b.datagrams);
                for mut bytes in to_far {
                    give(&mut self.far, 0, &mut bytes, self.now, &mut b);
                }
                for mut bytes in to_near {
                    give(&mut self.near, 1, &mut bytes, self.now, &mut a);
                }
            }
            let live = |engine: &Engine| engine.status(self.now).peers.iter().any(|p| p.live);
            if live(&self.near) && live(&self.far) {
                return;
            }
        }
        panic!("no tunnel: {:#?}", self.near.status(self.now));
    }

    /// A frame of the near device to the far one, with `payload` bytes of UDP payload, of the flow with this number.
    pub(crate) fn udp_frame(&self, flow: usize, payload: usize, into: &mut Vec<u8>) {
        frame_between((mac(0), ROUTER), (address(0), address(1)), flow, payload, into);
    }

    /// A super-frame of TCP of the near device, of 64 KiB.
    pub(crate) fn super_frame(&self, into: &mut Vec<u8>) -> VnetHeader {
        tcp_frame((0, 40_000), (1, 1), 1, (65_160, 1_400), into)
    }

    /// What the far device sends in answer to [`Self::super_frame`], as it comes out of the underlay: so many runs of
    /// [`RUN`] bytes of payload, each with the length of its datagrams.
    pub(crate) fn sealed_runs(&mut self, count: usize) -> Vec<(Vec<u8>, usize)> {
        let keeping = || Out { seals: true, keeps: true, ..Out::default() };
        let (mut there, mut frame) = (keeping(), Vec::new());
        let vnet = self.super_frame(&mut frame);
        self.feed_merged(vnet, &mut frame, &mut there);
        for mut bytes in there.datagrams {
            give(&mut self.far, 0, &mut bytes, self.now, &mut Out::default());
        }
        let run = |number: usize| {
            let mut out = keeping();
            let at = u32::try_from(1 + number * RUN).unwrap();
            let vnet = tcp_frame((1, 1), (0, 40_000), at, (RUN, SEGMENT), &mut frame);
            let mut batch = [RxFrame { vnet, vlan: None, bytes: &mut frame }];
            self.far.handle_frames(PortId::device(0), &mut batch, self.now, &mut out);
            let segment = out.datagrams.first().expect("sent").len();
            assert_eq!(out.datagrams.len(), RUN / SEGMENT, "cut otherwise");
            (out.datagrams.concat(), segment)
        };
        (0..count).map(run).collect()
    }

    /// Hands the near engine a run of datagrams from the far end.
    #[inline(never)]
    pub(crate) fn feed_run(&mut self, bytes: &mut [u8], segment: usize, out: &mut Out) {
        let mut batch = [RxDatagram { from: endpoint(1), segment, bytes }];
        self.near.handle_datagrams(&mut batch, self.now, out);
    }

    /// Sealed packets of the far device for flows of the near one, as they come out of the underlay.
    pub(crate) fn sealed(&mut self, flows: &[usize], payload: usize) -> Vec<Vec<u8>> {
        let mut out = Out { seals: true, keeps: true, ..Out::default() };
        let mut frame = Vec::new();
        for flow in flows {
            frame_between((mac(1), ROUTER), (address(1), address(0)), *flow, payload, &mut frame);
            swap_ports(&mut frame);
            let mut batch =
                [RxFrame { vnet: VnetHeader::default(), vlan: None, bytes: &mut frame }];
            self.far.handle_frames(PortId::device(0), &mut batch, self.now, &mut out);
        }
        out.datagrams
    }

    /// Opens at the far end what the near end's flows sent, so that it takes their answers.
    pub(crate) fn acquaint(&mut self, flows: &[usize]) {
        let mut out = Out { seals: true, keeps: true, ..Out::default() };
        let mut frame = Vec::new();
        for flow in flows {
            self.udp_frame(*flow, 16, &mut frame);
            self.feed_port(&mut frame, &mut out);
        }
        let mut ignored = Out::default();
        for mut bytes in out.datagrams {
            give(&mut self.far, 0, &mut bytes, self.now, &mut ignored);
        }
        assert_eq!(ignored.frames, flows.len() as u64, "{:#?}", self.far.status(self.now).drops);
    }

    /// Hands the near engine one frame from its port.
    #[inline(never)]
    pub(crate) fn feed_port(&mut self, frame: &mut [u8], out: &mut Out) {
        self.feed_merged(VnetHeader::default(), frame, out);
    }

    /// The same, of several at once.
    #[inline(never)]
    pub(crate) fn feed_ports(&mut self, frames: &mut [Vec<u8>], out: &mut Out) {
        let frame = |bytes| RxFrame { vnet: VnetHeader::default(), vlan: None, bytes };
        let mut batch: Vec<RxFrame<'_>> = frames.iter_mut().map(|f| frame(&mut f[..])).collect();
        self.near.handle_frames(PortId::device(0), &mut batch, self.now, out);
    }

    /// The same, of a frame that the kernel merged.
    #[inline(never)]
    pub(crate) fn feed_merged(&mut self, vnet: VnetHeader, frame: &mut [u8], out: &mut Out) {
        let mut batch = [RxFrame { vnet, vlan: None, bytes: frame }];
        self.near.handle_frames(PortId::device(0), &mut batch, self.now, out);
    }

    /// Hands the near engine one frame from its uplink.
    #[inline(never)]
    pub(crate) fn feed_uplink(&mut self, frame: &mut [u8], out: &mut Out) {
        let mut batch = [RxFrame { vnet: VnetHeader::default(), vlan: None, bytes: frame }];
        self.near.handle_frames(PortId::UPLINK, &mut batch, self.now, out);
    }

    /// Hands the near engine one datagram from the far end.
    #[inline(never)]
    pub(crate) fn feed_tunnel(&mut self, datagram: &mut [u8], out: &mut Out) {
        give(&mut self.near, 1, datagram, self.now, out);
    }

    /// What the scene was made for.
    pub(crate) const fn shape(&self) -> Shape {
        self.shape
    }
}

fn give(engine: &mut Engine, from: u16, bytes: &mut [u8], now: Instant, out: &mut Out) {
    let mut batch = [RxDatagram { from: endpoint(from), segment: bytes.len(), bytes }];
    engine.handle_datagrams(&mut batch, now, out);
}

/// A frame that the kernel merged, of TCP from one device's port to another's: so much payload from there on, in segments
/// of so much.
fn tcp_frame(
    (from, source_port): (u16, u16),
    (to, destination_port): (u16, u16),
    sequence: u32,
    (payload, segment): (usize, usize),
    into: &mut Vec<u8>,
) -> VnetHeader {
    into.clear();
    into.extend(ethernet::header(ROUTER, mac(from), ethernet::IPV4));
    let header = ipv4::Header {
        source: address(from),
        destination: address(to),
        protocol: ipv4::TCP,
        ttl: 64,
        dscp_ecn: 0,
        id: 1,
        payload_len: 20 + payload,
    };
    into.extend(header.to_bytes().unwrap());
    into.extend(source_port.to_be_bytes());
    into.extend(destination_port.to_be_bytes());
    into.extend(sequence.to_be_bytes());
    into.extend([0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    into.resize(into.len() + payload, 7);
    VnetHeader {
        flags: VnetHeader::FLAG_NEEDS_CSUM,
        gso_type: VnetHeader::GSO_TCPV4,
        hdr_len: 54,
        gso_size: u16::try_from(segment).unwrap(),
        csum_start: 34,
        csum_offset: 16,
    }
}

/// A frame with a UDP packet whose ports stand for the number of its flow.
pub(crate) fn frame_between(
    (source_mac, destination_mac): (MacAddr, MacAddr),
    (source, destination): (Ipv4Addr, Ipv4Addr),
    flow: usize,
    payload: usize,
    into: &mut Vec<u8>,
) {
    let port = u16::try_from(flow % 60_000).unwrap() + 1_024;
    into.clear();
    into.extend(ethernet::header(destination_mac, source_mac, ethernet::IPV4));
    let len = u16::try_from(payload + udp::HEADER_LEN).unwrap();
    let header = ipv4::Header {
        source,
        destination,
        protocol: ipv4::UDP,
        ttl: 64,
        dscp_ecn: 0,
        id: 1,
        payload_len: usize::from(len),
    };
    into.extend(header.to_bytes().unwrap());
    let service = 5_000 + u16::try_from(flow / 60_000).unwrap();
    for word in [port, service, len, 0] {
        into.extend(word.to_be_bytes());
    }
    into.resize(into.len() + payload, 7);
}

fn swap_ports(frame: &mut [u8]) {
    let at = ethernet::HEADER_LEN + ipv4::MIN_HEADER_LEN;
    let (from, to) = frame[at..at + 4].split_at_mut(2);
    from.swap_with_slice(to);
}
