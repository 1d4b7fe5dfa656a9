//! Bypass, replacement, binding and quarantine, as an operator types them.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anteroom_controller_core::model::Bypass;
use anteroom_proto::bypass::BypassCode;
use anteroom_proto::cbor::Blob;
use anteroom_proto::intent::OnFailure;
use anteroom_proto::mode::Mode;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::FileBypass;

use crate::changes::{POLICY, hospital};
use crate::controller::Controller;
use crate::person::Person;

const WHY: [&str; 3] = ["--reason", "power supply burnt", "--yes"];

/// The hospital with the CT and the PACS in enforce.
fn enforced() -> (Controller, Person) {
    let (controller, ana) = hospital();
    let policy = ana.write("policy.toml", POLICY);
    ana.run(&["policy", "apply", &policy, "--reason", "first", "--yes"]).ok();
    let words = ["device", "mode", "ct-1", "pacs-1", "enforce", "--force", "--reason", "tested"];
    ana.run(&[&words[..], &["--confirm", "ct-1,pacs-1"]].concat()).ok();
    (controller, ana)
}

fn with<'a>(words: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [words, more].concat()
}

#[test]
fn a_bypass_is_signed_and_shown_everywhere_until_it_is_ended() {
    let (controller, ana) = enforced();
    let imaging = controller.gateway_id("imaging");
    let ran = ana.run(&["gateway", "bypass", "imaging", "--for", "4h", "--yes"]);
    assert!(ran.fails(64).contains("wants a reason"), "{ran:#?}");
    // The gateway is out: nobody waits for it.
    controller.state().offline.push(imaging);
    let ran = ana.run(&with(&["gateway", "bypass", "imaging", "--for", "4h"], &WHY)).ok();
    assert!(ran.err.contains("goes in the clear") && ran.err.contains("ct-1"), "{ran:#?}");
    assert!(ran.out.contains("In force at server-room."), "{ran:#?}");
    let order = controller.state().model().bypasses[&imaging];
    assert!(order.until.is_some());
    let ran = ana.run(&["status"]);
    assert!(ran.code == 2 && ran.out.contains("gateway imaging: BYPASSED until"), "{ran:#?}");
    assert!(ana.run(&["gateway", "list"]).ok().out.contains("BYPASSED"));
    assert!(ana.run(&["gateway", "show", "imaging"]).ok().out.contains("BYPASSED until"));
    let why = ana.run(&["why", "ct-1", "pacs-1", "dicom"]).ok().out;
    assert!(why.contains("in the clear, because gateway imaging is bypassed until"), "{why}");
    let why = ana.run(&["why", "ct-1", "pacs-1", "tcp/22"]).ok().out;
    assert!(why.contains("Dropped by"), "{why}");
    controller.state().offline.clear();
    ana.run(&with(&["gateway", "bypass", "imaging", "--end"], &WHY)).ok();
    let ended = controller.state().model().bypasses[&imaging];
    assert!(ended.until.is_none() && ended.serial > order.serial, "{ended:?}");
    let ran = ana.run(&["status"]);
    assert!(!ran.out.contains("BYPASSED"), "{ran:#?}");
    // Ended where nobody here began one: somebody else's file is void by it.
    ana.run(&with(&["gateway", "bypass", "server-room", "--end"], &WHY)).ok();
    let servers = controller.gateway_id("server-room");
    assert!(controller.state().model().bypasses[&servers].until.is_none());
}

#[test]
fn a_bypass_that_cant_be_is_refused_before_anything_is_signed() {
    let (controller, ana) = enforced();
    let before = controller.state().revisions.len();
    for (words, code) in [
        (vec!["gateway", "bypass", "imaging", "--for", "73h"], 64),
        (vec!["gateway", "bypass", "imaging"], 64),
        (vec!["gateway", "bypass", "imaging", "--for", "1h", "--end"], 64),
        (vec!["gateway", "bypass", "imaging", "--for", "1h", "--out", "x"], 64),
        (vec!["gateway", "bypass", "imagin", "--for", "1h"], 1),
        (vec!["gateway", "bypass", "imagin", "--for", "1h", "--offline"], 1),
    ] {
        let ran = ana.run(&with(&words, &WHY));
        assert_eq!(ran.code, code, "{words:?}: {ran:#?}");
    }
    assert_eq!(controller.state().revisions.len(), before);
    assert!(!ana.path("x").exists());
}

#[test]
fn an_order_is_signed_without_a_controller_and_told_later() {
    let (controller, ana) = enforced();
    let chain = controller.state().authority();
    let imaging = controller.gateway_id("imaging");
    // Whatever the controller answers now is an error: it may as well be dead.
    controller.state().lie = Some(Box::new(|_, status, _| *status = 500));
    let online = with(&["gateway", "bypass", "imaging", "--for", "4h"], &WHY);
    assert_eq!(ana.run(&online).code, 1);
    let file = ana.path("bypass.txt").display().to_string();
    let offline = with(&online, &["--offline", "--out", &file]);
    let ran = ana.run(&offline).ok();
    assert!(ran.out.contains("anteroom-agent bypass FILE"), "{ran:#?}");
    assert!(ana.run(&offline).fails(1).contains("File exists"), "a file is never replaced");
    let read = |text: &str| {
        let code: BypassCode = text.parse().unwrap();
        code.verify(chain.newest()).unwrap().into_document()
    };
    let first = read(&fs::read_to_string(&file).unwrap());
    assert_eq!((first.gateway, first.reason.as_str()), (imaging, "power supply burnt"));
    let lasts = first.lasts().unwrap();
    assert!((4 * 3_600_000 - 5_000..=4 * 3_600_000).contains(&lasts), "{lasts} ms");
    let end =
        ana.run(&with(&["--json", "gateway", "bypass", "imaging", "--end", "--offline"], &WHY));
    let end = read(end.ok().json()["order"].as_str().unwrap());
    assert!(end.not_after.is_none() && end.serial > first.serial, "{end:?} after {first:?}");
    controller.be_honest();
    let until = UnixMillis(first.not_after.unwrap().0);
    controller.state().file_bypasses =
        vec![FileBypass { gateway: imaging, until, serial: first.serial }];
    let status = ana.run(&["status"]);
    let shown = "gateway server-room: follows a file that bypasses gateway imaging until";
    assert!(status.code == 2 && status.out.contains(shown), "{status:#?}");
    controller.state().file_bypasses.clear();
    ana.run(&["gateway", "list"]).ok();
    let told = controller.state().bypasses.len();
    assert_eq!(told, 3, "the one whose file was there already included: it was signed");
    ana.run(&["gateway", "list"]).ok();
    assert_eq!(controller.state().bypasses.len(), told, "each is told once");
    ana.run(&online).ok();
    let order = controller.state().model().bypasses[&imaging];
    assert!(order.serial > end.serial, "whatever was signed offline is older");
}

#[test]
fn an_end_outranks_the_file_of_an_operator_whose_clock_is_ahead() {
    let (controller, ana) = enforced();
    let imaging = controller.gateway_id("imaging");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let until = UnixMillis(u64::try_from(now.as_millis()).unwrap() + 4 * 3_600_000);
    let ahead = until.0 - 4 * 3_600_000 + 600_000;
    let file = |serial| FileBypass { gateway: imaging, until, serial };
    controller.state().file_bypasses = vec![file(ahead), file(u64::MAX)];
    let ran = ana.run(&with(&["gateway", "bypass", "imaging", "--end"], &WHY)).ok();
    assert!(ran.err.contains("more than ten years ahead"), "{ran:#?}");
    let ended = controller.state().model().bypasses[&imaging];
    assert_eq!((ended.serial, ended.until), (ahead + 1, None));
    controller.state().file_bypasses.clear();
    ana.run(&with(&["gateway", "bypass", "imaging", "--for", "4h"], &WHY)).ok();
    let order = controller.state().model().bypasses[&imaging];
    assert_eq!(order.serial, ahead + 2, "a later order outranks it too");
}

#[test]
fn without_ever_having_seen_the_controller_nothing_is_signed() {
    let stranger = Person::new();
    let words = with(&["gateway", "bypass", "imaging", "--for", "4h", "--offline"], &WHY);
    assert!(stranger.run(&words).fails(1).contains("not logged in"));
    let controller = Controller::start();
    let ana = Person::logged_in(&controller);
    let ran = ana.run(&words);
    assert!(ran.fails(1).contains("must have seen the controller once"), "{ran:#?}");
}

#[test]
fn a_spare_is_approved_and_takes_over_in_one_revision() {
    let (controller, ana) = enforced();
    let invite = ana.invite("imaging-b");
    let fingerprint = controller.enrol(&invite, 7).fingerprint().to_string();
    let before = controller.state().model();
    let (id, device) = before.device_named("ct-1").unwrap();
    let replace = ["gateway", "replace", "imaging", "imaging-b", "--reason", "burnt"];
    let ran = ana.run(&with(&replace, &["--yes", "--fingerprint", &fingerprint]));
    assert!(ran.fails(64).contains("--confirm imaging"), "{ran:#?}");
    let ran = ana.run(&with(&replace, &["--confirm", "imaging", "--fingerprint", "abcd-efgh"]));
    assert!(ran.fails(4).contains("it isn't the one you are looking at"), "{ran:#?}");
    let infos = controller.state().pending[0].ports.clone();
    controller.state().pending[0].ports.remove(0);
    let ran = ana.run(&with(&replace, &["--confirm", "imaging", "--fingerprint", &fingerprint]));
    assert!(ran.fails(4).contains("imaging-b has no port port1 (ct-1): it has port2"), "{ran:#?}");
    controller.state().pending[0].ports.clear();
    let ran = ana.run(&with(&replace, &["--confirm", "imaging", "--fingerprint", &fingerprint]));
    assert!(ran.fails(4).contains("hasn't told its ports yet"), "{ran:#?}");
    assert_eq!(controller.state().model(), before, "nothing was changed so far");
    controller.state().pending[0].ports = infos;
    let revisions = controller.state().revisions.len();
    let ran =
        ana.run(&with(&replace, &["--confirm", "imaging", "--fingerprint", &fingerprint])).ok();
    assert!(ran.out.contains("~ gateway imaging: approved at site north -> revoked"), "{ran:#?}");
    assert_eq!(controller.state().revisions.len(), revisions + 1);
    let after = controller.state().model();
    let moved = &after.devices[&id];
    assert_eq!(moved.attachment.gateway, after.gateway_named("imaging-b").unwrap().0);
    assert_eq!((moved.mode, moved.mode_since), (Mode::Enforce, device.mode_since));
    assert_eq!(moved.confirmed_at, device.confirmed_at, "it is watched no longer anew");
    assert!(after.revoked.values().any(|gateway| gateway.name.as_str() == "imaging"));
    // What the revoked gateway saw is nobody's to confirm.
    let new = ana.run(&["--json", "device", "list", "--new"]).ok().json();
    assert_eq!(new, serde_json::json!([]), "{new}");
}

#[test]
fn a_device_is_bound_anew_and_stays_enforced() {
    let (controller, ana) = enforced();
    let before = controller.state().model();
    let bind = ["device", "bind", "ct-1"];
    assert!(ana.run(&with(&bind, &WHY)).fails(64).contains("say what is new"));
    let ran = ana.run(&with(&bind, &["--port", "port9", "--reason", "x", "--yes"]));
    assert!(ran.fails(4).contains("no port port9: it has port1, port2"), "{ran:#?}");
    let ran = ana.run(&with(&bind, &["--mac", "02:00:00:00:04:0a", "--reason", "x", "--yes"]));
    assert!(ran.fails(1).contains("is taken by device \"pacs-1\""), "{ran:#?}");
    assert_eq!(controller.state().model(), before);
    let to = ["--mac", "02:00:00:00:01:99", "--port", "port2", "--reason", "mainboard", "--yes"];
    let ran = ana.run(&with(&bind, &to)).ok();
    assert!(ran.out.contains("~ device ct-1: 02:00:00:00:01:0a at port1"), "{ran:#?}");
    let after = controller.state().model();
    let (id, device) = after.device_named("ct-1").unwrap();
    assert_eq!(id, before.device_named("ct-1").unwrap().0);
    assert_eq!(device.attachment.mac.to_string(), "02:00:00:00:01:99");
    assert_eq!((device.mode, device.attachment.port.as_str()), (Mode::Enforce, "port2"));
}

#[test]
fn quarantine_release_and_on_failure_are_an_operators_to_sign() {
    let (controller, ana) = enforced();
    let device = |controller: &Controller| {
        let model = controller.state().model();
        model.device_named("ct-1").unwrap().1.clone()
    };
    let ran = ana.run(&["device", "quarantine", "ct-1", "--reason", "odd", "--yes"]);
    assert!(ran.fails(64).contains("--confirm ct-1"), "{ran:#?}");
    ana.run(&["device", "quarantine", "ct-1", "--reason", "odd", "--confirm", "ct-1"]).ok();
    assert!(device(&controller).quarantined);
    let why = ana.run(&["why", "ct-1", "pacs-1", "dicom"]).ok().out;
    assert!(why.contains("quarantined"), "{why}");
    ana.run(&["device", "release", "ct-1", "--reason", "examined", "--yes"]).ok();
    assert!(!device(&controller).quarantined);
    for (word, expected) in
        [("wire", OnFailure::Wire), ("closed", OnFailure::Closed), ("default", OnFailure::Default)]
    {
        ana.run(&["device", "on-failure", "ct-1", word, "--yes"]).ok();
        assert_eq!(device(&controller).on_failure, expected);
    }
    assert_eq!(ana.run(&["device", "on-failure", "ct-1", "open", "--yes"]).code, 64);
    let (controller, ana) = hospital();
    controller.see("imaging", "02:00:00:00:01:0b", "10.20.1.11");
    let words = ["device", "confirm", "02:00:00:00:01:0b", "--name", "vent-1", "--yes"];
    ana.run(&with(&words, &["--on-failure", "wire"])).ok();
    let model = controller.state().model();
    assert_eq!(model.device_named("vent-1").unwrap().1.on_failure, OnFailure::Wire);
}

#[test]
fn ports_are_shown_and_put_into_the_switchs_words() {
    let (_controller, ana) = enforced();
    let table = ana.run(&["gateway", "ports", "imaging"]).ok().out;
    assert!(table.contains("| port1 ") && table.contains("ct-1"), "{table}");
    let lines = ana.run(&["gateway", "ports", "imaging", "--switch", "cisco"]).ok().out;
    for line in [
        " switchport port-security maximum 2",
        " switchport port-security mac-address 0200.0000.010a",
        " authentication host-mode multi-auth",
    ] {
        assert!(lines.contains(line), "{lines}");
    }
    assert!(ana.run(&["gateway", "ports", "imagin"]).fails(1).contains("did you mean"));
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let (_controller, ana) = hospital();
    for (words, code) in [
        (vec!["--json", "gateway", "show", "imagin"], 1),
        (vec!["gateway", "show", "imagin", "--json"], 1),
        (vec!["--json", "device", "mode", "ct-1", "protect"], 64),
        (vec!["--json", "gateway", "shwo"], 64),
        (vec!["--json", "device", "mode", "ct-1", "enforce", "--confirm", "ct-1"], 4),
    ] {
        let ran = ana.run(&words);
        assert_eq!(ran.code, code, "{ran:#?}");
        let last = ran.err.lines().last().unwrap_or_default();
        let error: serde_json::Value = serde_json::from_str(last)
            .unwrap_or_else(|problem| panic!("{words:?}: {problem}: {ran:#?}"));
        assert!(error["error"].as_str().is_some_and(|text| !text.is_empty()), "{ran:#?}");
    }
    assert!(ana.run(&["--json", "--help"]).ok().out.contains("Usage"), "help stays text");
    let plain = ana.run(&["gateway", "show", "imagin"]);
    assert!(plain.fails(1).starts_with("error: no gateway"), "{plain:#?}");
}

#[test]
fn a_bypass_that_a_stolen_controller_slips_in_is_neither_believed_nor_signed_on() {
    let (controller, ana) = enforced();
    {
        let mut state = controller.state();
        let mut model = state.model();
        let imaging = model.gateway_named("imaging").unwrap().0;
        let order = Bypass { serial: u64::MAX, until: Some(UnixMillis(u64::MAX)), since: 1 };
        model.bypasses.insert(imaging, order);
        state.revisions.last_mut().unwrap().0.model = Blob(model.encode());
    }
    for words in [
        &["status"][..],
        &["gateway", "bypass", "imaging", "--end", "--reason", "x", "--yes"],
        &["device", "label", "ct-1", "floor=2", "--yes"],
    ] {
        let ran = ana.run(words);
        assert!(ran.fails(1).contains("it was altered"), "{words:?}: {ran:#?}");
    }
    // What it serves isn't remembered for the night without it either.
    let words = ["--json", "gateway", "bypass", "imaging", "--for", "1h", "--offline"];
    let made = ana.run(&with(&words, &WHY)).ok().json();
    assert!(made["serial"].as_u64().unwrap() < u64::MAX / 2, "{made}");
}
