//! What changes all the time: routers that a device takes in turns, and strangers that hop from port to port.

use super::ports::{CAMPUS, CT, ONE, TWO, says, send, syn, with};
use super::*;
use crate::wire::arp::{self, Operation};

const ROUTERS: [(MacAddr, [u8; 4]); 2] = [
    (MacAddr([0, 0x1b, 0x21, 0, 0, 0x77]), [10, 20, 1, 1]),
    (MacAddr([0, 0x1b, 0x21, 0, 0, 0x78]), [10, 20, 1, 3]),
];

#[test]
fn routers_that_a_device_takes_in_turns_are_all_guarded() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    let mut open = (*view([Mode::Protect, Mode::Observe], &["tcp/1-65535"])).clone();
    // Which ones it has, its traffic tells.
    open.intent.devices[0].router = None;
    engine.apply(Arc::new(open), now);
    for (router, address) in ROUTERS {
        let asks = arp::request(mac(10), CT.into(), address.into());
        let _ = send(&mut engine, ONE, &asks, now);
        let answer = says(Operation::Reply, (router, address), CT).to_frame(mac(10), router);
        let _ = send(&mut engine, PortId::UPLINK, &answer, now);
    }
    for (router, _) in ROUTERS.repeat(3) {
        let bytes = frame(router, mac(10), &syn(CT, CAMPUS));
        let out = send(&mut engine, ONE, &bytes, now);
        assert_eq!(out.frames, [(PortId::UPLINK, VnetHeader::default(), bytes)]);
        assert!(engine.guarded.learnt_macs.contains(&router), "{router}");
    }
    assert_eq!(engine.guarded.learnt_macs.len(), 2);
    for (router, address) in ROUTERS {
        let claims = says(Operation::Request, (router, address), CT);
        let out = send(&mut engine, TWO, &claims.to_frame(MacAddr::BROADCAST, router), now);
        assert!(out.frames.is_empty(), "{out:02x?}");
    }
}

#[test]
fn who_hops_from_port_to_port_costs_other_flows_no_short_cut() {
    let now = start();
    let mut engine = with([Mode::Observe; 2], now);
    let router = ROUTERS[0].0;
    let segment =
        |from, to, ports: (u16, u16)| ipv4(from, to, 6, &tcp(ports.0, ports.1, 0x10, &[7; 30]));
    let out = frame(router, mac(10), &segment(CT, CAMPUS, (40_000, 104)));
    let back = frame(mac(10), router, &segment(CAMPUS, CT, (104, 40_000)));
    for _ in 0..2 {
        let _ = send(&mut engine, ONE, &out, now);
        let _ = send(&mut engine, PortId::UPLINK, &back, now);
    }
    // Who is new may change what is proved of others: once.
    for round in 0..10 {
        let port = if round % 2 == 0 { ONE } else { TWO };
        let stray = udp(9, 9, &[round; 20]);
        let stray = ipv4([10, 20, 1, 99], [10, 20, 1, 98], 17, &stray);
        let sent = send(&mut engine, port, &frame(mac(0x66), mac(0x55), &stray), now);
        assert!(!sent.frames.is_empty(), "{round}: it is on a wire");
        let station = engine.stations.find(mac(0x55)).and_then(|id| engine.stations.get(id));
        assert_eq!(station.map(|station| station.port), Some(port), "{round}");
        let before = engine.short_cuts;
        for (port, bytes) in [(ONE, &out), (PortId::UPLINK, &back)] {
            assert_eq!(send(&mut engine, port, bytes, now).frames.len(), 1, "{round}");
        }
        assert!(round == 0 || engine.short_cuts == before + 2, "{round}: {}", engine.short_cuts);
    }
}
