//! A host: the machine's own agent, with the machine itself as its only device and no uplink.

use super::*;

const FAR_SIDE: MacAddr = MacAddr([0x02, 0x61, 0x74, 0x75, 0x6e, 0x00]);
const AT: [u8; 4] = [10, 20, 9, 8];
const PACS_AT: [u8; 4] = [10, 20, 4, 20];
const PORT: PortId = PortId::device(0);

fn host(now: Instant) -> Engine {
    let config = Config {
        gateway_macs: Vec::new(),
        own_addresses: Vec::new(),
        ports: vec![PortConfig {
            name: name("host"),
            mac: MacAddr([0; 6]),
            unlisted: Unlisted::Hold,
        }],
        uplink_mac: MacAddr([0; 6]),
        limits: Limits::default(),
    };
    let identity = TunnelIdentity {
        gateway: OWN,
        secret: TunnelSecret::from_bytes([9; 32]),
        identity: IdentityKey::from_seed(&[9; 32]),
        seed: [4; 32],
    };
    Engine::new(config, identity, now)
}

/// The host may open DICOM at device 20, which is behind a gateway.
fn host_view() -> Arc<View> {
    let mut view = (*view([Mode::Enforce; 2], &["tcp/104"])).clone();
    let intent = &mut view.intent;
    intent.devices.truncate(1);
    let own = &mut intent.devices[0];
    (own.port, own.prefix_len, own.router) = (name("host"), None, None);
    own.member.mac = MacAddr::of_host(OWN);
    own.member.addresses = vec!["10.20.9.8/32".parse().unwrap()];
    intent.rules.truncate(1);
    intent.rules[0].clear = false;
    intent.externals.clear();
    intent.infrastructure = Infrastructure::default();
    Arc::new(view)
}

fn sends(engine: &mut Engine, packet: &[u8], now: Instant) -> Kept {
    let bytes = frame(FAR_SIDE, MacAddr::of_host(OWN), packet);
    feed(engine, PORT, VnetHeader::default(), &bytes, now)
}

fn drops(engine: &mut Engine, reason: DropReason, now: Instant) -> u64 {
    engine.status(now).drops.get(reason.as_str()).copied().unwrap_or(0)
}

#[test]
fn what_a_host_says_takes_the_tunnel_or_goes_nowhere() {
    let now = start();
    let mut engine = host(now);
    engine.apply(host_view(), now);
    let syn = |from, to, port| ipv4(from, to, 6, &tcp(40_000, port, 2, &[]));
    let explain = |engine: &mut Engine, port: u16| {
        let question = crate::report::Question {
            from: AT.into(),
            to: PACS_AT.into(),
            service: format!("tcp/{port}").parse().unwrap(),
        };
        format!("{:?}", engine.explain(&question, now))
    };
    let allowed = explain(&mut engine, 104);
    assert!(allowed.contains("Tunnel") || allowed.contains("tunnel"), "{allowed}");
    for (packet, reason) in [
        (syn(AT, PACS_AT, 105), DropReason::NoRule),
        (syn(AT, [10, 99, 0, 1], 104), DropReason::NotVisible),
        (syn([10, 20, 9, 9], PACS_AT, 104), DropReason::IpSpoofed),
        (syn(AT, [255; 4], 104), DropReason::Broadcast),
        (syn(AT, [224, 0, 0, 251], 104), DropReason::Broadcast),
    ] {
        let before = drops(&mut engine, reason, now);
        let out = sends(&mut engine, &packet, now);
        assert!(out.frames.is_empty() && out.datagrams.is_empty(), "{reason}: {out:?}");
        assert_eq!(drops(&mut engine, reason, now), before + 1, "{:?}", engine.status(now).drops);
    }
    // Nobody else sits on a TUN device.
    let bytes = frame(FAR_SIDE, mac(10), &syn(AT, PACS_AT, 104));
    let out = feed(&mut engine, PORT, VnetHeader::default(), &bytes, now);
    assert!(out.frames.is_empty() && out.datagrams.is_empty(), "{out:?}");
}

#[test]
fn before_it_has_a_view_nothing_comes_back_to_a_host() {
    let now = start();
    let mut engine = host(now);
    let out = sends(&mut engine, &ipv4(AT, PACS_AT, 6, &tcp(40_000, 104, 2, &[])), now);
    assert!(out.datagrams.is_empty(), "{out:?}");
    // Out of the uplink, which a host's shell doesn't have.
    assert!(out.frames.iter().all(|(port, ..)| port.is_uplink()), "{out:?}");
}

proptest! {
    #[test]
    fn nothing_that_a_host_sends_leaves_in_the_clear(
        packets in prop::collection::vec((any::<[u8; 4]>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..80)), 1..30),
        raw in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let now = start();
        let mut engine = host(now);
        engine.apply(host_view(), now);
        for (to, protocol, payload) in packets {
            let out = sends(&mut engine, &ipv4(AT, to, protocol, &payload), now);
            prop_assert!(out.frames.iter().all(|(port, ..)| *port == PORT), "{:?}", out);
        }
        let out = sends(&mut engine, &raw, now);
        prop_assert!(out.frames.is_empty(), "{:?}", out);
    }
}
