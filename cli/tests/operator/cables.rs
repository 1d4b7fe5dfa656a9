//! What gateways see on their cables, as an operator reads it.

use anteroom_proto::alarm::{Alarm, AlarmKind};
use anteroom_proto::api::ModelUpdate;
use anteroom_proto::id::MemberId;
use anteroom_proto::time::UnixMillis;

use crate::changes::{ana_key, hospital};
use crate::controller::Controller;
use crate::person::Person;

fn alarm(kind: AlarmKind, port: Option<&str>, member: Option<MemberId>) -> Alarm {
    Alarm {
        kind,
        port: port.map(|name| name.parse().unwrap()),
        mac: "00:1b:21:00:00:0a".parse().unwrap(),
        address: None,
        member,
        count: 17,
        first: UnixMillis(1_764_000_000_000),
        last: UnixMillis(1_764_000_100_000),
    }
}

/// Puts pacs-1 behind ct-1's gateway, by a change that an operator signs.
fn put_beside_ct(controller: &Controller, ana: &Person, port: &str) {
    let key = ana_key(ana);
    let mut state = controller.state();
    let revision = state.revise(&key, |model| {
        let (_, ct) = model.device_named("ct-1").unwrap();
        let mut beside = ct.attachment.clone();
        beside.port = port.parse().unwrap();
        beside.mac = "00:1b:21:00:00:0b".parse().unwrap();
        let (pacs, _) = model.device_named("pacs-1").unwrap();
        model.devices.get_mut(&pacs).unwrap().attachment = beside;
    });
    let update = ModelUpdate {
        revision,
        action: "device bind".into(),
        subject: "pacs-1".into(),
        reason: None,
    };
    let (status, answer) = state.update(update, key.public());
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn what_is_wrong_with_the_cables_is_said_and_counts_as_a_problem() {
    let (controller, ana) = hospital();
    ana.run(&["status"]).ok();
    let model = controller.state().model();
    let (ct, device) = model.device_named("ct-1").unwrap();
    let (pacs, _) = model.device_named("pacs-1").unwrap();
    let home = device.attachment.gateway;
    let conflict = Alarm {
        address: Some("10.20.1.10".parse().unwrap()),
        ..alarm(AlarmKind::Conflict, Some("port2"), Some(ct))
    };
    let alarms = vec![
        alarm(AlarmKind::Moved, None, Some(ct)),
        alarm(AlarmKind::Loop, Some("port2"), None),
        conflict,
        alarm(AlarmKind::Moved, Some("port2"), Some(pacs)),
    ];
    controller.state().alarms.insert(home, alarms.clone());
    let ran = ana.run(&["status"]);
    assert_eq!(ran.code, 2, "{ran:#?}");
    ana.run(&["status", "--wait", "5"]).ok();
    let gateway = format!("gateway {}: ", model.gateways[&home].name);
    for words in [
        "MOVED: ct-1 (00:1b:21:00:00:0a) is confirmed at port1, but speaks at the uplink's side",
        "LOOP: what it sends out at port2 comes back in there",
        "00:1b:21:00:00:0a at port2 uses the address 10.20.1.10, which is ct-1's",
        "MOVED: pacs-1 (00:1b:21:00:00:0a) is confirmed at port1 of gateway ",
        "(seen 17 times, last ",
    ] {
        assert!(ran.out.contains(words), "{words:?} isn't in {ran:#?}");
    }
    assert!(ran.out.contains(&gateway), "{ran:#?}");
    let json = ana.run(&["--json", "status"]).json();
    assert_eq!(json["gateways"][0]["alarms"][1]["kind"], "loop", "{json:#}");
    let name = model.gateways[&home].name.to_string();
    let ran = ana.run(&["gateway", "show", &name]).ok();
    assert_eq!(ran.out.matches("ALARM: ").count(), alarms.len(), "{ran:#?}");
}

#[test]
fn two_swapped_cables_are_told_from_one_that_was_moved() {
    let (controller, ana) = hospital();
    put_beside_ct(&controller, &ana, "port2");
    let model = controller.state().model();
    let (ct, device) = model.device_named("ct-1").unwrap();
    let (pacs, _) = model.device_named("pacs-1").unwrap();
    let home = device.attachment.gateway;
    let alarms = vec![
        alarm(AlarmKind::Moved, Some("port2"), Some(ct)),
        alarm(AlarmKind::Moved, Some("port1"), Some(pacs)),
    ];
    controller.state().alarms.insert(home, alarms);
    let ran = ana.run(&["status"]);
    assert!(
        ran.out.contains(
            "SWAPPED CABLES: ct-1 speaks at port2 and pacs-1 at port1, each on the other's port"
        ),
        "{ran:#?}"
    );
}

#[test]
fn shared_ports_and_ports_that_let_strangers_pass_are_said() {
    let (controller, ana) = hospital();
    put_beside_ct(&controller, &ana, "port1");
    controller.state().passes.push("port1");
    let ran = ana.run(&["status"]).ok();
    assert!(ran.out.contains("port1 is shared by "), "{ran:#?}");
    assert!(ran.out.contains("nothing keeps them from each other"), "{ran:#?}");
    assert!(ran.out.contains("port1 LETS UNLISTED MACS PASS in the clear"), "{ran:#?}");
    let ran = ana.run(&["device", "show", "ct-1"]).ok();
    assert!(ran.out.contains("shares its port with pacs-1"), "{ran:#?}");
    assert!(ran.out.contains("1 of them because they share its port"), "{ran:#?}");
}
