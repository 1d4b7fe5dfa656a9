use anteroom_proto::id::MemberId;
use anteroom_proto::mode::Mode;
use anteroom_proto::service::Protocol;
use anteroom_proto::verdict::{DropReason, Verdict};
use insta::assert_snapshot;

use super::*;
use crate::compile::compile;
use crate::decide::{Flow, Party, decide};
use crate::fixture::{
    HOUR, NOW, device, gateway, gateway_id, hospital, mac, member_id, name, set_modes,
};
use crate::lint::Evidence;
use crate::plan::{Base, Plan};
use crate::resolve::Resolved;

/// The hospital, all in enforce for long, with a spare gateway that was approved in another site.
fn enforced() -> Model {
    let mut model = hospital();
    let all = ["ct-1", "mri-1", "pump-1", "monitor-1", "pacs-1", "hl7-1"];
    set_modes(&mut model, Mode::Enforce, &all);
    let (id, mut spare) = gateway(4, "spare", "store");
    spare.labels.insert(name("rack"), "7".into());
    model.approve_gateway(id, spare).unwrap();
    model.label_gateway("imaging", &[(name("floor"), Some("2".into()))]).unwrap();
    model
}

fn plan(before: &Model, after: &Model, evidence: &Evidence) -> Plan {
    let base = Base { number: 3, hash: anteroom_proto::key::Hash::ZERO };
    Plan::between(base, before, after, evidence, NOW).unwrap()
}

fn refused(model: &Model, change: impl FnOnce(&mut Model) -> Result<(), EditError>) -> String {
    let mut changed = model.clone();
    let error = change(&mut changed).expect_err("an error was expected");
    assert_eq!(&changed, model, "a failed change changed something");
    error.to_string()
}

fn dicom(model: &Model, from: MemberId, port: u16) -> Verdict {
    let flow = Flow {
        from: Party::Member(from),
        to: Party::Member(member_id(5)),
        protocol: Protocol::Tcp,
        port,
    };
    decide(&Resolved::new(model).unwrap(), &flow, NOW).verdict
}

#[test]
fn a_bypass_reaches_those_who_share_a_rule_and_nobody_else() {
    let mut model = enforced();
    assert_eq!(dicom(&model, member_id(1), 104), Verdict::Tunnel);
    let until = UnixMillis(NOW.0 + 4 * HOUR);
    let before = compile(&model).unwrap();
    model.bypass_gateway("imaging", until, 10, NOW, 4).unwrap();
    let after = compile(&model).unwrap();
    assert_eq!(before.affected(&after), [gateway_id(1), gateway_id(3)], "not the ward");
    let order = &after.leaves[&gateway_id(3)].intent.bypasses;
    assert_eq!(order.len(), 1);
    assert_eq!(
        (order[0].gateway, order[0].serial, order[0].until),
        (gateway_id(1), 10, Some(until))
    );
    assert!(after.leaves[&gateway_id(2)].intent.bypasses.is_empty());
    assert_eq!(dicom(&model, member_id(1), 104), Verdict::Clear);
    assert_eq!(dicom(&model, member_id(1), 22), Verdict::Drop(DropReason::NoRule));
    let plan = plan(&enforced(), &model, &Evidence::default());
    assert!(plan.refusals.is_empty(), "{:?}", plan.refusals);
    let changes: Vec<String> = plan.changes.iter().map(ToString::to_string).collect();
    assert_eq!(changes, ["+ bypass imaging: in the clear until 2026-11-22T04:00:00Z"]);
    let resolved = Resolved::new(&model).unwrap();
    let flow = Flow {
        from: Party::Member(member_id(1)),
        to: Party::Member(member_id(5)),
        protocol: Protocol::Tcp,
        port: 104,
    };
    assert_eq!(decide(&resolved, &flow, until).verdict, Verdict::Tunnel, "it ends by itself");
    model.end_bypass("imaging", 11, 5).unwrap();
    assert_eq!(dicom(&model, member_id(1), 104), Verdict::Tunnel);
    let order = compile(&model).unwrap().leaves[&gateway_id(3)].intent.bypasses[0];
    assert_eq!(
        (order.serial, order.until),
        (11, None),
        "the end is told, so that older files are void"
    );
}

#[test]
fn a_bypass_that_cant_be_is_refused() {
    let mut model = enforced();
    let at = |hours: u64| UnixMillis(NOW.0 + hours * HOUR);
    assert_snapshot!(refused(&model, |m| m.bypass_gateway("imagin", at(1), 1, NOW, 4).map(drop)), @r#"no gateway "imagin"; did you mean "imaging"?"#);
    assert_snapshot!(refused(&model, |m| m.bypass_gateway("imaging", at(73), 1, NOW, 4).map(drop)), @"the bypass of gateway imaging: it lasts up to 72 hours: order another one when it ends");
    refused(&model, |m| m.bypass_gateway("imaging", NOW, 1, NOW, 4).map(drop));
    model.bypass_gateway("imaging", at(1), 9, NOW, 4).unwrap();
    assert_snapshot!(refused(&model, |m| m.bypass_gateway("imaging", at(2), 9, NOW, 5).map(drop)), @"the bypass of gateway imaging: a newer order is in force: check this machine's clock");
    refused(&model, |m| m.end_bypass("imaging", 8, 5).map(drop));
}

#[test]
fn a_spare_takes_over_everything_and_enforced_devices_stay_so() {
    let mut model = enforced();
    let until = UnixMillis(NOW.0 + HOUR);
    model.bypass_gateway("imaging", until, 10, NOW, 4).unwrap();
    let before = model.clone();
    let moved = model.replace_gateway("imaging", "spare", 5).unwrap();
    assert_eq!(moved, [member_id(1), member_id(2)]);
    assert!(model.revoked.contains_key(&gateway_id(1)));
    let spare = &model.gateways[&gateway_id(4)];
    assert_eq!((spare.name.as_str(), spare.site.as_str()), ("spare", "north"));
    let labels: Vec<String> = spare.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["floor=2", "rack=7"]);
    for id in moved {
        let mut expected = before.devices[&id].clone();
        expected.attachment.gateway = gateway_id(4);
        assert_eq!(model.devices[&id], expected, "nothing but the gateway changes");
    }
    assert_eq!(model.bypassed(gateway_id(4), NOW), Some(until), "until it is ended");
    assert_eq!(model.bypassed(gateway_id(1), NOW), None);
    let plan = plan(&before, &model, &Evidence::default());
    assert!(plan.may_be_applied(false), "{:?}", plan.refusals);
    assert!(plan.opened.is_empty() && plan.closed.is_empty(), "{plan:?}");
    assert!(plan.would_break.is_empty());
    let changes: Vec<String> = plan.changes.iter().map(ToString::to_string).collect();
    assert_snapshot!(changes.join("\n"), @r"
    ~ gateway imaging: approved at site north -> revoked
    - bypass imaging: in the clear until 2026-11-22T01:00:00Z
    ~ gateway spare: approved at site store -> approved at site north
    ~ gateway labels spare: rack=7 -> floor=2 rack=7
    + bypass spare: in the clear until 2026-11-22T01:00:00Z
    ~ device ct-1: 00:1b:00:00:00:01 at port1 of imaging, 10.20.1.10 on-link /24 -> 00:1b:00:00:00:01 at port1 of spare, 10.20.1.10 on-link /24
    ~ device mri-1: 00:1b:00:00:00:02 at port2 of imaging, 10.20.1.11 on-link /24 -> 00:1b:00:00:00:02 at port2 of spare, 10.20.1.11 on-link /24
    ");
    // The peers learn the new owner, and forget the old one.
    let peers = &compile(&model).unwrap().leaves[&gateway_id(3)].intent;
    let ids: Vec<_> = peers.peers.iter().map(|peer| peer.gateway).collect();
    assert!(ids.contains(&gateway_id(4)) && !ids.contains(&gateway_id(1)), "{ids:?}");
}

#[test]
fn what_is_no_spare_takes_over_nothing() {
    let model = enforced();
    assert_snapshot!(refused(&model, |m| m.replace_gateway("imaging", "ward", 4).map(drop)), @"replacing gateway imaging by ward: ward has a device of its own, pump-1: a spare has none");
    assert_snapshot!(refused(&model, |m| m.replace_gateway("imaging", "imaging", 4).map(drop)), @"replacing gateway imaging by imaging: they are the same");
    refused(&model, |m| m.replace_gateway("imaging", "nobody", 4).map(drop));
}

#[test]
fn a_device_stays_itself_with_another_mainboard_or_place() {
    let model = enforced();
    let mut bound = model.clone();
    let to = Move { mac: Some(mac(77)), ..Move::default() };
    assert_eq!(bound.bind_device("ct-1", &to).unwrap(), member_id(1));
    let mut expected = model.devices[&member_id(1)].clone();
    expected.attachment.mac = mac(77);
    assert_eq!(bound.devices[&member_id(1)], expected);
    let plan = plan(&model, &bound, &Evidence::default());
    assert!(plan.may_be_applied(false), "{:?}", plan.refusals);
    let to = Move { gateway: Some("ward".into()), port: Some(name("port5")), mac: None };
    bound.bind_device("ct-1", &to).unwrap();
    expected.attachment.gateway = gateway_id(2);
    expected.attachment.port = name("port5");
    assert_eq!(bound.devices[&member_id(1)], expected);
}

#[test]
fn a_device_is_bound_to_no_place_that_isnt_its_own() {
    let model = enforced();
    let with_mac = |mac| Move { mac: Some(mac), ..Move::default() };
    assert_snapshot!(refused(&model, |m| m.bind_device("ct-1", &with_mac(mac(2))).map(drop)), @r#"the Ethernet address 00:1b:00:00:00:02 is taken by device "mri-1" in the same site"#);
    refused(&model, |m| m.bind_device("ct-1", &with_mac(MacAddr([0xff; 6]))).map(drop));
    let away = Move { gateway: Some("spare".into()), ..Move::default() };
    assert_snapshot!(refused(&model, |m| m.bind_device("ct-1", &away).map(drop)), @"the gateway of device ct-1: spare stands in site store, the device in north, whose addresses are others: confirm it there as a new device");
    refused(&model, |m| m.bind_device("ct-9", &away).map(drop));
    let mut detached = model.clone();
    detached.revoke_gateway("imaging").unwrap();
    refused(&detached, |m| m.bind_device("ct-1", &with_mac(mac(77))).map(drop));
    let to = Move { gateway: Some("ward".into()), ..Move::default() };
    detached.bind_device("ct-1", &to).unwrap();
    assert_eq!(detached.devices[&member_id(1)].mode, Mode::Enforce);
}

#[test]
fn a_spare_that_saw_kinds_of_traffic_as_a_wire_needs_no_force() {
    let mut model = enforced();
    let sighting = |mac, kinds: &[&str]| anteroom_proto::api::SightingRecord {
        gateway: gateway_id(4),
        sighting: anteroom_proto::v1::telemetry::Sighting {
            port: name("port1"),
            mac,
            vlan: None,
            addresses: Vec::new(),
            prefix_len: None,
            router: None,
            member: None,
            held: false,
            kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            claim: None,
            first_seen: NOW,
            last_seen: NOW,
        },
        first_seen: NOW,
    };
    let evidence =
        Evidence { sightings: vec![sighting(mac(1), &["broadcast"])], ..Evidence::default() };
    let before = model.clone();
    model.replace_gateway("imaging", "spare", 5).unwrap();
    let taken = plan(&before, &model, &evidence);
    assert!(taken.may_be_applied(false), "{:?}", taken.refusals);
    assert!(taken.warnings.iter().any(|w| w.code == "kinds-not-carried"), "{:?}", taken.warnings);
    // A device that wasn't enforced before has no such right.
    let (id, mut new) = device(9, "us-1", 4, "port9", [10, 20, 1, 77], "us");
    new.attachment.mac = mac(9);
    model.confirm_device(id, new).unwrap();
    let mut enforced = model.clone();
    enforced.set_mode("us-1", Mode::Enforce, 6).unwrap();
    let evidence =
        Evidence { sightings: vec![sighting(mac(9), &["broadcast"])], ..Evidence::default() };
    assert!(!plan(&model, &enforced, &evidence).may_be_applied(false));
}
