//! Port security in VLANs.

use anteroom_proto::alarm::AlarmKind;

use super::ports::{
    CAMPUS, CT, FAR, MRI, ONE, ROUTER, ROUTER_MAC, TWO, alarms, drops, says, send, syn, tagged,
    with,
};
use super::*;
use crate::wire::arp::Operation;

#[test]
fn a_protected_device_stays_out_of_other_devices_vlans() {
    let now = start();
    let mut engine = engine(Limits::default(), now);
    let mut vlans = Arc::unwrap_or_clone(view([Mode::Protect, Mode::Protect], &["tcp/104"]));
    vlans.intent.devices[1].member.vlan = Some(7);
    engine.apply(Arc::new(vlans), now);
    let of_ct = frame(ROUTER_MAC, mac(10), &syn(CT, CAMPUS));
    let of_mri = frame(ROUTER_MAC, mac(11), &syn(MRI, CAMPUS));
    let mut passes = |port, bytes: &[u8]| !send(&mut engine, port, bytes, now).frames.is_empty();
    assert!(passes(ONE, &of_ct));
    assert!(!passes(ONE, &tagged(&of_ct, 7)), "CT in MRI's VLAN");
    assert!(
        passes(ONE, &tagged(&of_ct, 8)),
        "in nobody's it is one of the kinds that protect lets pass"
    );
    assert!(passes(TWO, &tagged(&of_mri, 7)));
    assert!(!passes(TWO, &of_mri), "MRI in no VLAN");
    let stolen = frame(ROUTER_MAC, mac(11), &syn(CT, CAMPUS));
    assert!(!passes(TWO, &tagged(&stolen, 7)), "CT's address in MRI's VLAN");
    assert_eq!(drops(&engine, now, DropReason::VlanSpoofed), 2);
}

#[test]
fn nobody_uses_in_a_vlan_the_address_of_a_device_that_has_left_observe_there() {
    let now = start();
    for mode in [Mode::Protect, Mode::Enforce] {
        for sender in [mac(11), mac(0x55)] {
            let mut engine = engine(Limits::default(), now);
            let mut vlans = Arc::unwrap_or_clone(view([mode, Mode::Observe], &["tcp/104"]));
            vlans.intent.devices[0].member.vlan = Some(7);
            vlans.intent.members[0].vlan = Some(8);
            engine.apply(Arc::new(vlans), now);
            let mut passes = |vlan, bytes: &[u8]| {
                !send(&mut engine, TWO, &tagged(bytes, vlan), now).frames.is_empty()
            };
            for (vlan, stolen) in [(7, CT), (7, ROUTER), (8, FAR)] {
                for bytes in [
                    frame(ROUTER_MAC, sender, &syn(stolen, CAMPUS)),
                    crate::wire::arp::request(sender, stolen.into(), [10, 20, 1, 99].into())
                        .to_vec(),
                    says(Operation::Reply, (mac(0x3c), stolen), ROUTER)
                        .to_frame(ROUTER_MAC, sender)
                        .to_vec(),
                ] {
                    assert!(!passes(vlan, &bytes), "{mode}: {stolen:?} in {vlan}: {bytes:02x?}");
                    assert!(passes(9, &bytes), "{mode}: elsewhere {stolen:?} is another's");
                }
            }
            assert!(passes(7, &frame(ROUTER_MAC, sender, &syn([10, 20, 1, 60], CAMPUS))), "{mode}");
            let raised = alarms(&engine, now, AlarmKind::Conflict);
            for whose in [10, 20] {
                let member = Some(MemberId::from_bytes([whose; 16]));
                assert!(raised.iter().any(|alarm| alarm.member == member), "{raised:#?}");
            }
        }
    }
}

#[test]
fn ports_are_not_joined_by_a_vlan_that_one_of_them_does_not_use() {
    let now = start();
    let mut engine = with([Mode::Observe, Mode::Observe], now);
    for to in [MacAddr::BROADCAST, mac(10), mac(0x44)] {
        let bytes = tagged(&frame(to, mac(11), &syn(MRI, CT)), 7);
        let out = send(&mut engine, TWO, &bytes, now);
        assert!(out.frames.iter().all(|(port, ..)| *port == PortId::UPLINK), "to {to}: {out:?}");
    }
    // CT speaks there, too: then it is one network.
    let _ = send(&mut engine, ONE, &tagged(&frame(ROUTER_MAC, mac(10), &syn(CT, CAMPUS)), 7), now);
    let bytes = tagged(&frame(mac(10), mac(11), &syn(MRI, CT)), 7);
    let out = send(&mut engine, TWO, &bytes, now);
    assert_eq!(out.frames, [(ONE, VnetHeader::default(), bytes)]);
}

#[test]
fn link_control_in_a_vlan_is_an_ordinary_tagged_frame() {
    let now = start();
    let mut engine = with([Mode::Enforce, Mode::Observe], now);
    let group = MacAddr([1, 0x80, 0xc2, 0, 0, 3]);
    for (from, port) in [(mac(10), ONE), (mac(0x66), PortId::UPLINK)] {
        let plain = [&ethernet::header(group, from, 0x888e)[..], b"x"].concat();
        let reached = |out: Kept| out.frames.iter().any(|(to, ..)| *to != TWO);
        assert!(reached(send(&mut engine, port, &plain, now)));
        assert!(!reached(send(&mut engine, port, &tagged(&plain, 7), now)), "tagged, from {port}");
    }
}
