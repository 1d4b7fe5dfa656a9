//! Frames made by a grammar that breaks its own rules: every length, every nesting, through the whole engine.

use super::*;

const ONE: PortId = PortId::device(0);
const TWO: PortId = PortId::device(1);

/// Whom frames come from and go to.
fn any_mac() -> impl Strategy<Value = MacAddr> {
    prop_oneof![
        4 => prop::sample::select(vec![10_u8, 11, 20, 0x77, 0x55, 0xa0, 0x91]).prop_map(mac),
        1 => Just(MacAddr::BROADCAST),
        1 => prop::sample::select(vec![0_u8, 3, 0x0e]).prop_map(|last| MacAddr([1, 0x80, 0xc2, 0, 0, last])),
        1 => Just(MacAddr([1, 0, 0x5e, 1, 2, 3])),
        1 => Just(MacAddr([0x33, 0x33, 0, 0, 0, 1])),
        1 => Just(crate::nexthop::stand_in(OWN)),
        1 => any::<[u8; 6]>().prop_map(MacAddr),
    ]
}

fn any_address() -> impl Strategy<Value = [u8; 4]> {
    prop_oneof![
        6 => prop::sample::select(vec![
            [10, 20, 1, 10], [10, 20, 1, 11], [10, 20, 1, 1], [10, 20, 1, 2], [10, 20, 4, 20],
            [10, 20, 9, 5], [10, 20, 0, 2], [0; 4], [255; 4], [224, 0, 0, 251], [127, 0, 0, 1],
        ]),
        1 => any::<[u8; 4]>(),
    ]
}

/// A transport header and what is behind it; another packet, quoted or tunnelled, may be.
fn any_transport(
    inner: impl Strategy<Value = Vec<u8>> + 'static,
) -> impl Strategy<Value = (u8, Vec<u8>)> {
    let ports = prop::sample::select(vec![104_u16, 40_000, 67, 68, 53, 0, 65_535]);
    let tail = prop::collection::vec(any::<u8>(), 0..60);
    let kind = prop::sample::select(vec![0_u8, 3, 4, 5, 8, 11, 12, 13, 255]);
    let segment = (ports.clone(), ports.clone(), any::<[u8; 12]>(), tail.clone());
    let message = (prop::sample::select(vec![1_u8, 2, 3, 5, 8]), any::<u32>(), any::<bool>());
    prop_oneof![
        segment.prop_map(|(from, to, rest, tail)| {
            (6, [&from.to_be_bytes()[..], &to.to_be_bytes(), &rest, &tail].concat())
        }),
        (ports.clone(), ports, any::<u16>(), any::<bool>(), tail.clone()).prop_map(
            |(from, to, len, honest, tail)| {
                let mut bytes = udp(from, to, &tail);
                if !honest {
                    bytes[4..6].copy_from_slice(&len.to_be_bytes());
                }
                (17, bytes)
            }
        ),
        (kind, any::<[u8; 7]>(), inner)
            .prop_map(|(kind, rest, inner)| { (1, [&[kind][..], &rest, &inner].concat()) }),
        (message, any_mac()).prop_map(|((kind, transaction, reply), client)| {
            let body = dhcp(if reply { 2 } else { 1 }, kind, transaction % 4, client);
            let (from, to) = if reply { (67, 68) } else { (68, 67) };
            (17, udp(from, to, &body))
        }),
        (any::<u8>(), tail),
    ]
}

/// An IPv4 packet whose fields mostly, but not always, fit together.
fn any_packet(depth: u32) -> BoxedStrategy<Vec<u8>> {
    let inner = if depth == 0 {
        prop::collection::vec(any::<u8>(), 0..40).boxed()
    } else {
        any_packet(depth - 1)
    };
    let options = prop::collection::vec(any::<u8>(), 0..40);
    let fragment = prop_oneof![
        5 => Just(0_u16), 1 => Just(0x4000), 1 => Just(0x2000), 1 => (0..40_u16).prop_map(|at| 0x2000 | at),
        1 => 0..40_u16, 1 => any::<u16>(),
    ];
    let lies = (0..12_u8, any::<u16>());
    ((any_address(), any_address()), any_transport(inner), options, fragment, 0..6_u16, lies)
        .prop_map(|((from, to), (protocol, payload), mut options, fragment, id, (lie, value))| {
            options.truncate(options.len() / 4 * 4);
            if lie > 2 {
                options.clear();
            }
            let mut bytes = ipv4(from, to, protocol, &[&options[..], &payload].concat());
            bytes[0] = 0x40 | (5 + options.len() / 4) as u8;
            bytes[4..6].copy_from_slice(&id.to_be_bytes());
            bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
            match lie {
                0 => bytes[2..4].copy_from_slice(&value.to_be_bytes()),
                1 => bytes[0] = value as u8,
                _ => {}
            }
            bytes[10..12].fill(0);
            let header = (usize::from(bytes[0] & 15) * 4).clamp(20, bytes.len());
            let sum = crate::checksum::checksum(&bytes[..header]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            if lie == 2 {
                bytes[10] ^= 1;
            }
            bytes
        })
        .boxed()
}

/// What a frame carries, with its ethertype.
fn any_payload() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let arp = (1..4_u16, any_mac(), any_address(), any_mac(), any_address(), any::<u8>());
    prop_oneof![
        6 => any_packet(2).prop_map(|packet| (ethernet::IPV4, packet)),
        3 => arp.prop_map(|(operation, sender_mac, sender, target_mac, target, lie)| {
            let head = [0, 1, 8, 0, if lie == 0 { 7 } else { 6 }, 4];
            let fixed = [&head[..], &operation.to_be_bytes(), &sender_mac.0, &sender].concat();
            (ethernet::ARP, [&fixed[..], &target_mac.0, &target].concat())
        }),
        2 => (prop::sample::select(vec![0x86dd_u16, 0x888e, 0x88cc, 0x88b5, 38, 0x0600]),
              prop::collection::vec(any::<u8>(), 0..120)),
    ]
}

/// A frame with tags in any depth, cut or padded to any length.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let tags = prop::collection::vec(
        (
            prop::sample::select(vec![0x8100_u16, 0x88a8]),
            prop::sample::select(vec![0_u16, 7, 0x2000, 0xffff]),
        ),
        0..4,
    );
    let tags = prop_oneof![3 => Just(Vec::new()), 1 => tags];
    let cut = prop_oneof![4 => Just(usize::MAX), 1 => 0..80_usize];
    (any_mac(), any_mac(), tags, any_payload(), cut, 0..40_usize).prop_map(
        |(to, from, tags, (ethertype, payload), cut, padding)| {
            let mut bytes = [to.0, from.0].concat();
            for (protocol, control) in tags {
                bytes.extend(protocol.to_be_bytes());
                bytes.extend(control.to_be_bytes());
            }
            bytes.extend(ethertype.to_be_bytes());
            bytes.extend(payload);
            bytes.resize(bytes.len() + padding, 0);
            bytes.truncate(cut);
            bytes
        },
    )
}

/// What may leave an engine whose devices are all enforced, and whose view opens nothing: link control, what the
/// devices' DHCP and next hop need, and nothing else.
fn is_needed(port: PortId, bytes: &[u8]) -> bool {
    let Ok(frame) = crate::wire::parse_ethernet(bytes, None) else { return false };
    let own = [mac(10), mac(11)].contains(&frame.source);
    // A single tag that bears a priority and no VLAN is as good as none.
    if frame.vlan().is_some() || frame.tags > 1 {
        return false;
    }
    match frame.ethertype {
        ethernet::EAPOL | ethernet::LLDP => {
            matches!(frame.destination.0, [1, 0x80, 0xc2, 0, 0, 0 | 3 | 0x0e])
        }
        ethernet::ARP => is_true(port, &frame),
        ethernet::IPV4 => {
            let Ok(packet) = crate::wire::parse_ipv4(frame.payload) else { return false };
            let ports = (packet.source_port, packet.destination_port);
            let to_server =
                packet.destination.octets() == [10, 20, 0, 2] || packet.destination.is_broadcast();
            if port.is_uplink() { own && ports == (68, 67) && to_server } else { ports == (67, 68) }
        }
        _ => false,
    }
}

/// Whether an ARP packet that leaves says what is so.
fn is_true(port: PortId, frame: &crate::wire::EthernetFrame<'_>) -> bool {
    let Ok(packet) = crate::wire::arp::parse_arp(frame.payload) else { return false };
    let holders = [(mac(10), [10, 20, 1, 10]), (mac(11), [10, 20, 1, 11])];
    let mut own = holders.iter();
    let own =
        own.any(|(mac, address)| (packet.sender_mac, packet.sender.octets()) == (*mac, *address));
    // Towards the uplink a device's own word; towards a device its router's or somebody's who is opened to it.
    let anonymous = packet.sender.is_unspecified();
    if port.is_uplink() { own } else { !anonymous && packet.sender_mac == frame.source }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    /// Nothing panics, whatever the modes; tables stay within their bounds.
    #[test]
    fn whatever_is_malformed_is_survived(
        modes in (any_mode(), any_mode()),
        frames in prop::collection::vec((0..3_u16, any_vnet(), any_frame()), 1..30),
    ) {
        let mut now = start();
        let limits = Limits { unknown_per_port: 4, flows: 40, flows_per_device: 20, ..Limits::default() };
        let mut engine = engine(limits, now);
        engine.apply(view([modes.0, modes.1], &["tcp/1-65535", "udp/1-65535", "icmp/echo"]), now);
        let mut out = Kept::default();
        for (port, vnet, bytes) in &frames {
            let port = if *port == 0 { PortId::UPLINK } else { PortId::device(port - 1) };
            let _ = feed(&mut engine, port, *vnet, bytes, now);
            now += Duration::from_millis(200);
            engine.handle_timeout(now, &mut out);
        }
        let tables = engine.status(now).tables;
        prop_assert!(tables.flows <= 40 && tables.stations <= 2 + 8, "{:?}", tables);
        let _ = (engine.report(now), engine.flows(now, 10), engine.learned());
    }

    /// Two enforced devices and a view that opens nothing between anybody: nothing comes out but what they need.
    #[test]
    fn in_enforce_nothing_malformed_comes_out(
        frames in prop::collection::vec((0..3_u16, any_vnet(), any_frame()), 1..30),
    ) {
        let now = start();
        let mut engine = engine(Limits::default(), now);
        let mut closed = Arc::unwrap_or_clone(view([Mode::Enforce, Mode::Enforce], &["tcp/104"]));
        closed.intent.rules.clear();
        engine.apply(Arc::new(closed), now);
        for (port, vnet, bytes) in &frames {
            let port = if *port == 0 { PortId::UPLINK } else { PortId::device(port - 1) };
            let out = feed(&mut engine, port, *vnet, bytes, now);
            prop_assert!(out.datagrams.is_empty());
            for (to, _, sent) in out.frames {
                prop_assert!(
                    is_needed(to, &sent),
                    "in at {port} {bytes:02x?}, out at {to}: {sent:02x?}"
                );
                prop_assert!(
                    port == to || port.is_uplink() || to.is_uplink(),
                    "from port to port: {sent:02x?}"
                );
            }
        }
    }

    /// A frame cut at every length, through every mode.
    #[test]
    fn a_frame_of_every_length_is_survived(bytes in any_frame(), mode in any_mode()) {
        let now = start();
        let mut engine = engine(Limits::default(), now);
        engine.apply(view([mode, mode], &["tcp/104"]), now);
        for port in [PortId::UPLINK, ONE, TWO] {
            for len in 0..=bytes.len().min(120) {
                let _ = feed(&mut engine, port, VnetHeader::default(), &bytes[..len], now);
            }
        }
        let counted: u64 = engine.status(now).drops.values().sum();
        let short = bytes.len().min(13) as u64 + 1;
        prop_assert!(counted >= 3 * short, "frames without a whole header are counted: {counted}");
    }
}
