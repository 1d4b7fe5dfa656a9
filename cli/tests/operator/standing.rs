//! Devices that aren't in the mode that was ordered: what operators see is what is.

use anteroom_proto::approval::Place;
use anteroom_proto::mode::Mode;
use anteroom_proto::rollout::{HeldBackReport, Over, TrialReport, Why};
use anteroom_proto::time::UnixMillis;

use crate::controller::Controller;
use crate::learn::watched;
use crate::person::Person;

const ENFORCE: [&str; 8] =
    ["device", "mode", "ct-1", "enforce", "--confirm", "ct-1", "--reason", "r"];

/// The scanner enforced on the trial that the newest revision began.
fn on_trial() -> (Controller, Person) {
    let (controller, ana) = watched();
    ana.run(&[&ENFORCE[..], &["--confirm-within", "15m", "--force"]].concat()).ok();
    (controller, ana)
}

fn goes_back(controller: &Controller) {
    let mut state = controller.state();
    let model = state.model();
    let (member, device) = model.device_named("ct-1").unwrap();
    let since = device.rollout.trial.as_ref().map_or(Place::new(0, 0), |trial| trial.since);
    let over = Some(Over { why: Why::Unconfirmed, at: UnixMillis(1) });
    let trial = TrialReport { member, since, left: 0, over };
    state.trials.insert(device.attachment.gateway, vec![trial]);
}

fn is_held_back(controller: &Controller) {
    let mut state = controller.state();
    let model = state.model();
    let (member, device) = model.device_named("ct-1").unwrap();
    let told = HeldBackReport { member, signed: Mode::Enforce, mode: Mode::Protect };
    state.held_back.insert(device.attachment.gateway, vec![told]);
}

/// What every view says of the scanner, once it isn't enforced though that was ordered. `why`: the words for it.
fn told_as_it_is(ana: &Person, why: &str) {
    let list = ana.run(&["--json", "device", "list"]).ok().json();
    let row = list.as_array().unwrap().iter().find(|row| row["name"] == "ct-1").unwrap().clone();
    assert_eq!((&row["mode"], &row["ordered"]), (&"protect".into(), &"enforce".into()), "{row}");
    let show = ana.run(&["device", "show", "ct-1"]).ok().out;
    assert!(show.contains("protect, though revision") && show.contains("orders enforce"), "{show}");
    let status = ana.run(&["--json", "status"]);
    let status = status.json();
    assert_eq!(
        (&status["devices"]["enforce"], &status["devices"]["protect"]),
        (&0.into(), &1.into())
    );
    let views: [&[&str]; 5] = [
        &["why", "ct-1", "10.20.9.9", "tcp/443"],
        &["blast", "ct-1"],
        &["policy", "stale"],
        &["map"],
        &["export", "create", "bundle"],
    ];
    for view in views {
        let bundle = ana.path("bundle").display().to_string();
        let view: Vec<&str> =
            view.iter().map(|word| if *word == "bundle" { &bundle } else { *word }).collect();
        let ran = ana.run(&view);
        let told = ran.out + &ran.err;
        assert!(
            told.contains("ct-1 is in protect, though enforce was ordered"),
            "{view:?}: {told}"
        );
        assert!(told.contains(why), "{view:?}: {told}");
    }
    let inventory = std::fs::read_to_string(ana.path("bundle").join("inventory.csv")).unwrap();
    let row = inventory.lines().find(|line| line.contains("ct-1")).unwrap_or(&inventory);
    assert!(row.contains(r#","protect","#) && !row.contains(r#","enforce","#), "{inventory}");
}

#[test]
fn a_device_that_went_back_is_told_and_judged_as_it_is() {
    let (controller, ana) = on_trial();
    let list = ana.run(&["--json", "device", "list"]).ok().json();
    let row = list.as_array().unwrap().iter().find(|row| row["name"] == "ct-1").unwrap().clone();
    assert_eq!((&row["mode"], &row["ordered"]), (&"enforce".into(), &serde_json::Value::Null));
    goes_back(&controller);
    told_as_it_is(&ana, "nobody confirmed in time");
    let status = ana.run(&["status"]);
    assert_eq!(status.code, 2, "{status:#?}");
    assert!(status.out.contains("BACK IN PROTECT: nobody confirmed in time"), "{status:#?}");

    // What begins nothing anew cuts nothing off; enforcing again does, and is told from where the device is.
    let plain = ana.run(&["device", "label", "ct-1", "floor=2", "--reason", "r", "--yes"]).ok();
    assert!(
        !plain.out.contains("would be dropped") && !plain.out.contains("mode ct-1"),
        "{plain:#?}"
    );
    goes_back(&controller);
    let forced = ana.run(&[&ENFORCE[..], &["--force"]].concat()).ok();
    assert!(forced.out.contains("(it is in protect) -> enforce"), "{forced:#?}");
    assert!(forced.out.contains("10.20.9.9"), "what it cuts off: {forced:#?}");
}

#[test]
fn a_device_that_is_held_back_is_told_as_it_is() {
    let (controller, ana) = watched();
    ana.run(&[&ENFORCE[..], &["--force"]].concat()).ok();
    is_held_back(&controller);
    told_as_it_is(&ana, "two operators must approve");
    let list = ana.run(&["device", "list"]).ok().out;
    assert!(list.contains("NOT ENFORCED, IN PROTECT: its gateway holds it back"), "{list}");
    let status = ana.run(&["status"]);
    assert!(status.code == 2 && status.out.contains("NOT ENFORCED, IN PROTECT"), "{status:#?}");
}
