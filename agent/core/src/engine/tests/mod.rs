//! The engine against whatever bytes may come. What it is for is tried in the simulation (`tests/sim`).

use std::net::SocketAddr;

use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::id::{ExternalId, GatewayId, MemberId, OrganisationId, RuleId, SiteId};
use anteroom_proto::intent::{
    Device as IntentDevice, Endpoint, External, Infrastructure, Intent, Member, OnFailure,
    PeerGateway, Router, Rule,
};
use anteroom_proto::key::{Hash, IdentityKey, TunnelSecret};
use anteroom_proto::operation::{Operation, ViewNumber};
use anteroom_proto::overlay;
use anteroom_proto::v1::Unlisted;
use anteroom_proto::view::Peer;
use proptest::prelude::*;

use super::*;
use crate::batch::VlanTag;
use crate::config::PortConfig;
use crate::limits::Limits;
use crate::vnet::VnetHeader;

mod absent;
mod claims;
mod clients;
mod clients_stolen;
mod edges;
mod floods;
mod hits;
mod hops;
mod hosts;
mod lanes;
mod loops;
mod malformed;
mod nested;
mod ports;
mod shared;
mod trailers;
mod trials;
mod unlisted;
mod views;
mod vlans;

const ORGANISATION: OrganisationId = OrganisationId::from_bytes([1; 16]);
const OWN: GatewayId = GatewayId::from_bytes([2; 16]);
const OTHER: GatewayId = GatewayId::from_bytes([3; 16]);

#[derive(Debug, Default)]
struct Kept {
    frames: Vec<(PortId, VnetHeader, Vec<u8>)>,
    datagrams: Vec<Vec<u8>>,
}

impl Sink for Kept {
    fn frame(&mut self, port: PortId, vnet: VnetHeader, _: Option<VlanTag>, parts: &[&[u8]]) {
        self.frames.push((port, vnet, parts.concat()));
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
        self.datagrams.push(bytes);
    }
}

fn mac(last: u8) -> MacAddr {
    MacAddr([0, 0x1b, 0x21, 0, 0, last])
}

fn name(text: &str) -> anteroom_proto::name::Name {
    text.parse().unwrap()
}

#[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
fn start() -> Instant {
    Instant::now()
}

fn engine(limits: Limits, now: Instant) -> Engine {
    engine_with(limits, Unlisted::Hold, now)
}

/// An engine with two ports, on the first of which `unlisted` becomes of unknown addresses.
fn engine_with(limits: Limits, unlisted: Unlisted, now: Instant) -> Engine {
    let port = |at: u8| PortConfig {
        name: name(&format!("port{at}")),
        mac: mac(0x90 + at),
        unlisted: if at == 1 { unlisted } else { Unlisted::Hold },
    };
    let config = Config {
        gateway_macs: vec![mac(0xb0)],
        own_addresses: vec!["10.20.1.2".parse().unwrap()],
        ports: vec![port(1), port(2)],
        uplink_mac: mac(0xa0),
        limits,
    };
    let identity = TunnelIdentity {
        gateway: OWN,
        secret: TunnelSecret::from_bytes([9; 32]),
        identity: IdentityKey::from_seed(&[9; 32]),
        seed: [4; 32],
    };
    Engine::new(config, identity, now)
}

fn member(last: u8, gateway: GatewayId, address: &str, mode: Mode) -> Member {
    let id = MemberId::from_bytes([last; 16]);
    Member {
        id,
        gateway,
        overlay: overlay::member_address(ORGANISATION, id),
        site: SiteId::of("north"),
        vlan: None,
        mac: mac(last),
        addresses: vec![address.parse().unwrap()],
        mode,
        mode_since: 1,
        quarantined: false,
    }
}

/// Devices 10 (port1) and 11 (port2) here, 20 behind another gateway, an external 10.20.9.0/24. Device 10 may
/// send DICOM to all of them.
fn view(modes: [Mode; 2], services: &[&str]) -> Arc<View> {
    let here = |last, port: &str, address, mode| IntentDevice {
        member: member(last, OWN, address, mode),
        port: name(port),
        prefix_len: Some(24),
        router: Some(Router { address: "10.20.1.1".parse().unwrap(), mac: None }),
        on_failure: OnFailure::Default,
        rollout: anteroom_proto::rollout::Rollout::default(),
        two_person: false,
    };
    let rule = |id: &str, to| Rule {
        id: RuleId::of(id),
        from: Endpoint::Member(MemberId::from_bytes([10; 16])),
        to,
        services: services.iter().map(|text| text.parse().unwrap()).collect(),
        clear: true,
        essential: false,
        conditions: Vec::new(),
    };
    let peer = PeerGateway {
        gateway: OTHER,
        identity: IdentityKey::from_seed(&[3; 32]).public(),
        overlay: overlay::gateway_address(ORGANISATION, OTHER),
    };
    let external = ExternalId::of("campus");
    let intent = Intent {
        identity: None,
        organisation: ORGANISATION,
        gateway: OWN,
        overlay: overlay::gateway_address(ORGANISATION, OWN),
        site: SiteId::of("north"),
        devices: vec![
            here(10, "port1", "10.20.1.10/32", modes[0]),
            here(11, "port2", "10.20.1.11/32", modes[1]),
        ],
        members: vec![member(20, OTHER, "10.20.4.20/32", Mode::Enforce)],
        peers: vec![peer.clone()],
        segments: Vec::new(),
        externals: vec![External { id: external, prefixes: vec!["10.20.9.0/24".parse().unwrap()] }],
        rules: vec![
            rule("pacs", Endpoint::Member(MemberId::from_bytes([20; 16]))),
            rule("mri", Endpoint::Member(MemberId::from_bytes([11; 16]))),
            rule("campus", Endpoint::External(external)),
        ],
        infrastructure: Infrastructure {
            dhcp: vec!["10.20.0.2".parse().unwrap()],
            ..Infrastructure::default()
        },
        clients: Vec::new(),
        bypasses: Vec::new(),
    };
    let key = TunnelKeyBinding {
        organisation: ORGANISATION,
        gateway: OTHER,
        x25519: TunnelSecret::from_bytes([8; 32]).public(),
        ml_kem_768: None,
        serial: 1,
        not_before: UnixMillis(0),
    };
    let endpoint = "192.0.2.3:51820".parse().unwrap();
    Arc::new(View {
        intent,
        revision: 1,
        incarnation: 1,
        signed_at: UnixMillis(1),
        root_hash: Hash::ZERO,
        intent_hash: Hash::ZERO,
        operation: Operation {
            organisation: ORGANISATION,
            gateway: OWN,
            number: ViewNumber { incarnation: 1, sequence: 1 },
            revision: 1,
            peers: Vec::new(),
            quarantined: Vec::new(),
            suspended: Vec::new(),
            issued_at: UnixMillis(1),
        },
        peers: vec![Peer { gateway: peer, endpoints: vec![endpoint], keys: vec![key], quic: None }],
        upheld: anteroom_proto::approval::Upheld::default(),
        left_out: Vec::new(),
    })
}

fn feed(engine: &mut Engine, port: PortId, vnet: VnetHeader, bytes: &[u8], now: Instant) -> Kept {
    let mut bytes = bytes.to_vec();
    let mut out = Kept::default();
    let mut batch = [RxFrame { vnet, vlan: None, bytes: &mut bytes }];
    engine.handle_frames(port, &mut batch, now, &mut out);
    out
}

fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header = crate::wire::ipv4::Header {
        source: source.into(),
        destination: destination.into(),
        protocol,
        ttl: 64,
        dscp_ecn: 0,
        id: 1,
        payload_len: payload.len(),
    };
    [&header.to_bytes().unwrap()[..], payload].concat()
}

fn tcp(from_port: u16, to_port: u16, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = [from_port.to_be_bytes(), to_port.to_be_bytes()].concat();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend_from_slice(data);
    bytes
}

fn frame(to: MacAddr, from: MacAddr, packet: &[u8]) -> Vec<u8> {
    [&ethernet::header(to, from, ethernet::IPV4)[..], packet].concat()
}

#[test]
fn a_local_super_frame_crosses_as_one() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    engine.apply(view([Mode::Enforce, Mode::Enforce], &["tcp/104"]), now);
    let segment = tcp(40_000, 104, 0x10, &[7; 30_000]);
    let bytes = frame(mac(11), mac(10), &ipv4([10, 20, 1, 10], [10, 20, 1, 11], 6, &segment));
    let vnet = VnetHeader {
        flags: VnetHeader::FLAG_NEEDS_CSUM,
        gso_type: VnetHeader::GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1_448,
        csum_start: 34,
        csum_offset: 16,
    };
    let out = feed(&mut engine, PortId::device(0), vnet, &bytes, now);
    assert_eq!(out.frames.len(), 1);
    assert_eq!(out.frames[0], (PortId::device(1), vnet, bytes));
    let flow = &engine.flows(now, 1)[0];
    assert_eq!(flow.packets_out, 21, "{flow:?}");
}

#[test]
fn an_unknown_router_is_stood_in_for_and_never_on_the_uplink() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    engine.apply(view([Mode::Enforce, Mode::Enforce], &["tcp/104"]), now);
    let stand_in = crate::nexthop::stand_in(OWN);
    let packet = ipv4([10, 20, 1, 10], [10, 20, 9, 5], 6, &tcp(40_000, 104, 2, &[]));
    let bytes = frame(stand_in, mac(10), &packet);
    let port = PortId::device(0);
    let out = feed(&mut engine, port, VnetHeader::default(), &bytes, now);
    let router = "10.20.1.1".parse().unwrap();
    let asked = crate::wire::arp::request(mac(10), "10.20.1.10".parse().unwrap(), router);
    assert_eq!(out.frames, [(PortId::UPLINK, VnetHeader::default(), asked.to_vec())]);
    assert_eq!(engine.status(now).drops.get("no-next-hop"), Some(&1));
    let again = feed(&mut engine, port, VnetHeader::default(), &bytes, now);
    assert!(again.frames.is_empty(), "it asks once a second: {again:?}");
    let heard = crate::wire::arp::request(
        mac(0x77),
        "10.20.1.1".parse().unwrap(),
        "10.20.1.10".parse().unwrap(),
    );
    let out = feed(&mut engine, PortId::UPLINK, VnetHeader::default(), &heard, now);
    assert_eq!(out.frames.len(), 1, "the router's question is answered: {out:?}");
    let out = feed(&mut engine, port, VnetHeader::default(), &bytes, now);
    assert_eq!(out.frames[0].2[..6], mac(0x77).0);
}

#[test]
fn a_mode_that_is_not_known_closes() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    engine.apply(view([Mode::Unrecognised, Mode::Enforce], &["tcp/104"]), now);
    for destination in [[10, 20, 9, 5], [10, 20, 1, 11], [10, 20, 4, 20]] {
        let packet = ipv4([10, 20, 1, 10], destination, 6, &tcp(40_000, 104, 2, &[]));
        let bytes = frame(mac(0x77), mac(10), &packet);
        let out = feed(&mut engine, PortId::device(0), VnetHeader::default(), &bytes, now);
        assert!(out.frames.is_empty() && out.datagrams.is_empty(), "{destination:?}: {out:?}");
    }
    let drops = engine.status(now).drops;
    assert_eq!(drops.get("unknown-mode"), Some(&3), "{drops:?}");
}

#[test]
fn frames_to_the_gateway_or_back_to_their_port_go_nowhere() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    engine.apply(view([Mode::Observe, Mode::Observe], &["tcp/104"]), now);
    let port = PortId::device(0);
    let packet = ipv4([10, 20, 1, 10], [10, 20, 9, 5], 17, &[0, 9, 0, 9, 0, 8, 0, 0]);
    let own = ipv4([10, 20, 1, 10], [10, 20, 1, 2], 17, &[0, 9, 0, 9, 0, 8, 0, 0]);
    for bytes in [
        frame(mac(0xa0), mac(10), &packet),
        frame(mac(0x91), mac(10), &packet),
        frame(mac(0x77), mac(10), &own),
        frame(mac(10), mac(0x55), &packet),
        frame(mac(0x77), mac(11), &packet),
        frame(mac(0x77), mac(0xb0), &packet),
        frame(mac(0x77), MacAddr::BROADCAST, &packet),
    ] {
        let out = feed(&mut engine, port, VnetHeader::default(), &bytes, now);
        assert!(out.frames.is_empty(), "{bytes:02x?}: {out:?}");
    }
    let drops = engine.status(now).drops;
    let count = |reason: DropReason| drops.get(reason.as_str()).copied().unwrap_or(0);
    assert_eq!(count(DropReason::ToGateway), 3, "{drops:?}");
    assert_eq!(count(DropReason::SamePort), 1, "{drops:?}");
    assert_eq!(count(DropReason::MacSpoofed), 2, "{drops:?}");
    assert_eq!(count(DropReason::Malformed), 1, "{drops:?}");
}

fn dhcp(operation: u8, kind: u8, transaction: u32, client: MacAddr) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..3].copy_from_slice(&[operation, 1, 6]);
    bytes[4..8].copy_from_slice(&transaction.to_be_bytes());
    bytes[28..34].copy_from_slice(&client.0);
    bytes[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    bytes.extend([53, 1, kind, 255]);
    bytes
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len() + 8).unwrap();
    let header = [from.to_be_bytes(), to.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
    [&header[..], payload].concat()
}

#[test]
fn dhcp_passes_between_an_enforced_device_and_listed_servers() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    engine.apply(view([Mode::Enforce, Mode::Enforce], &["tcp/104"]), now);
    let plain = VnetHeader::default();
    let everyone = [255; 4];
    let asks = |client| {
        let packet = ipv4([0; 4], everyone, 17, &udp(68, 67, &dhcp(1, 1, 77, client)));
        frame(MacAddr::BROADCAST, mac(10), &packet)
    };
    let answers = |server, transaction, client| {
        let payload = dhcp(2, 2, transaction, client);
        let packet = ipv4(server, everyone, 17, &udp(67, 68, &payload));
        frame(MacAddr::BROADCAST, mac(0x77), &packet)
    };
    let (server, rogue) = ([10, 20, 0, 2], [10, 20, 0, 3]);
    let mut reached = |port, bytes: Vec<u8>| {
        let out = feed(&mut engine, port, plain, &bytes, now);
        out.frames.iter().map(|(port, ..)| *port).collect::<Vec<_>>()
    };
    let port = PortId::device(0);
    assert_eq!(reached(PortId::UPLINK, answers(server, 77, mac(10))), [], "nobody asked");
    assert_eq!(reached(port, asks(mac(11))), [], "in another's name");
    assert_eq!(reached(port, asks(mac(10))), [PortId::UPLINK]);
    assert_eq!(reached(PortId::UPLINK, answers(rogue, 77, mac(10))), [], "not listed");
    assert_eq!(reached(PortId::UPLINK, answers(server, 78, mac(10))), [], "another transaction");
    assert_eq!(reached(PortId::UPLINK, answers(server, 77, mac(10))), [port]);
    assert_eq!(engine.status(now).drops.get("dhcp"), Some(&4));
}

#[test]
fn one_device_that_opens_flows_without_end_fills_only_its_own_share() {
    let now = start();
    let limits = Limits { flows: 300, flows_per_device: 100, ..Limits::default() };
    let mut engine = engine(limits, now);
    engine.apply(view([Mode::Enforce, Mode::Enforce], &["tcp/1-65535"]), now);
    let plain = VnetHeader::default();
    for port in 1..2_000_u16 {
        let syn = ipv4([10, 20, 1, 10], [10, 20, 9, 5], 6, &tcp(40_000, port, 2, &[]));
        let _ = feed(&mut engine, PortId::device(0), plain, &frame(mac(0x77), mac(10), &syn), now);
        let scan = ipv4([10, 20, 1, 11], [10, 20, 9, 5], 6, &tcp(40_000, port, 2, &[]));
        let _ = feed(&mut engine, PortId::device(1), plain, &frame(mac(0x77), mac(11), &scan), now);
    }
    let status = engine.status(now);
    assert!(status.devices.iter().all(|device| device.flows == 100), "{status:#?}");
    assert_eq!(status.tables.flows, 200);
    let report = engine.report(now);
    assert!(report.edges.len() <= anteroom_proto::v1::telemetry::MAX_EDGES);
}

fn any_mode() -> impl Strategy<Value = Mode> {
    prop::sample::select(vec![Mode::Observe, Mode::Protect, Mode::Enforce, Mode::Unrecognised])
}

/// Bytes that often look like a frame of somebody whom the engine knows.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let address = prop::sample::select(vec![10_u8, 11, 20, 0x77, 0xa0, 0x55, 0xff]);
    let ethertype = prop::sample::select(vec![0x0800_u16, 0x0806, 0x86dd, 0x8100, 0x888e, 0x9999]);
    let ip = prop::sample::select(vec![
        [10, 20, 1, 10],
        [10, 20, 1, 11],
        [10, 20, 4, 20],
        [10, 20, 9, 5],
        [0; 4],
        [255; 4],
    ]);
    let protocol = prop::sample::select(vec![6_u8, 17, 1, 50]);
    let parts = (address.clone(), address, ethertype, ip.clone(), ip, protocol);
    (parts, prop::collection::vec(any::<u8>(), 0..1_600), any::<u16>(), 0..3_usize).prop_map(
        |((to, from, ethertype, source, destination, protocol), payload, word, shape)| {
            let mut bytes = ethernet::header(mac(to), mac(from), ethertype).to_vec();
            match shape {
                0 => bytes.extend(payload),
                1 => bytes.extend(ipv4(source, destination, protocol, &payload)),
                _ => {
                    let mut packet = ipv4(source, destination, protocol, &payload);
                    packet[6..8].copy_from_slice(&(word & 0x7fff).to_be_bytes());
                    packet[10..12].fill(0);
                    let sum = crate::checksum::checksum(&packet[..20]);
                    packet[10..12].copy_from_slice(&sum.to_be_bytes());
                    bytes.extend(packet);
                }
            }
            let len = usize::from(word) % (bytes.len() + 1);
            if shape == 0 {
                bytes.truncate(len);
            }
            bytes
        },
    )
}

fn any_vnet() -> impl Strategy<Value = VnetHeader> {
    (any::<[u8; 2]>(), any::<[u16; 4]>(), 0..4_u8).prop_map(|(bytes, words, plain)| {
        if plain > 0 {
            return VnetHeader::default();
        }
        VnetHeader {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: words[0],
            gso_size: words[1],
            csum_start: words[2],
            csum_offset: words[3],
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever comes from wherever, nothing panics, and an enforced device's frames stay off the uplink but
    /// for what the view opens.
    #[test]
    fn no_frame_makes_the_engine_panic(
        modes in (any_mode(), any_mode()),
        frames in prop::collection::vec((0..3_u16, any_vnet(), any_frame()), 1..40),
        datagram in prop::collection::vec(any::<u8>(), 0..300),
        segment in 0..40_usize,
    ) {
        let mut now = start();
        let mut engine = engine(Limits { unknown_per_port: 4, ..Limits::default() }, now);
        let mut out = Kept::default();
        for (place, (port, vnet, bytes)) in frames.iter().enumerate() {
            if place == frames.len() / 2 {
                engine.apply(view([modes.0, modes.1], &["tcp/1-65535", "udp/1-65535"]), now);
            }
            let port = if *port == 0 { PortId::UPLINK } else { PortId::device(port - 1) };
            let _ = feed(&mut engine, port, *vnet, bytes, now);
            now += Duration::from_millis(300);
            engine.handle_timeout(now, &mut out);
        }
        let mut bytes = datagram;
        let from = "192.0.2.3:51820".parse().unwrap();
        let mut batch = [RxDatagram { from, segment, bytes: &mut bytes }];
        engine.handle_datagrams(&mut batch, now, &mut out);
        let status = engine.status(now);
        prop_assert!(status.ports.iter().all(|port| port.unknown <= 4 + 7), "{:#?}", status);
        let _ = (engine.report(now), engine.flows(now, 10), engine.learned(), engine.poll_timeout());
    }
}
