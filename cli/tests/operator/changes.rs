//! What operators change, from an invite to a policy that is rolled back.

use std::fs;
use std::time::SystemTime;

use anteroom_proto::mode::Mode;

use crate::controller::Controller;
use crate::person::Person;

pub(crate) const MAC: &str = "02:00:00:00:01:0a";

/// A controller with one gateway, and two devices behind it that were confirmed.
pub(crate) fn hospital() -> (Controller, Person) {
    let controller = Controller::start();
    let ana = Person::logged_in(&controller);
    ana.gateway(&controller, "imaging", 1);
    ana.gateway(&controller, "server-room", 2);
    controller.see("imaging", MAC, "10.20.1.10");
    controller.see("server-room", "02:00:00:00:04:0a", "10.20.4.10");
    ana.run(&["device", "confirm", MAC, "--name", "ct-1", "--label", "class=ct", "--yes"]).ok();
    ana.run(&["device", "confirm", "02:00:00:00:04:0a", "--name", "pacs-1", "--yes"]).ok();
    (controller, ana)
}

pub(crate) const POLICY: &str = r#"format = 1

[rule.ct-to-pacs]
from = "ct-1"
to = "pacs-1"
services = ["dicom"]
"#;

#[test]
fn a_gateway_is_invited_compared_and_approved() {
    let controller = Controller::start();
    let ana = Person::logged_in(&controller);
    let file = ana.path("imaging.invite").display().to_string();
    let ran = ana.run(&["gateway", "invite", "imaging", "--site", "north", "--out", &file]).ok();
    let invite = fs::read_to_string(&file).unwrap();
    assert!(!ran.out.contains(invite.trim()), "the invite is in its file, not on the screen");
    let identity = controller.enrol(invite.trim(), 1);
    let fingerprint = identity.fingerprint().to_string();

    let pending = ana.run(&["--json", "gateway", "pending"]).ok().json();
    assert_eq!(pending[0]["name"], "imaging");
    assert_eq!(pending[0]["fingerprint"], fingerprint);
    let table = ana.run(&["gateway", "pending"]).ok().out;
    assert!(table.contains(&fingerprint) && table.contains("in order"), "{table}");

    let ran = ana.run(&["gateway", "approve", "imaging"]);
    assert!(ran.fails(64).ends_with("add --yes if you mean it. Nothing was changed."), "{ran:#?}");
    let ran = ana.type_in(&["gateway", "approve", "imaging"], "no\n");
    assert!(ran.fails(64).ends_with("error: not confirmed. Nothing was changed."), "{ran:#?}");
    assert!(controller.state().revisions.is_empty());
    let spoken = fingerprint.replace('-', " ").to_uppercase();
    ana.type_in(&["gateway", "approve", "imaging", "--fingerprint", &spoken], "yes\n").ok();

    assert_eq!(controller.state().model().gateway_named("imaging").unwrap().1.identity, identity);
    let list = ana.run(&["gateway", "list"]).ok().out;
    assert!(list.contains("| imaging | north | ok "), "{list}");
    let show = ana.run(&["gateway", "show", "imaging"]).ok().out;
    assert!(show.contains("No rule allows it."), "{show}");
    let ran = ana.run(&["gateway", "approve", "imaging", "--yes"]);
    assert_eq!(ran.fails(1), "error: gateway imaging is approved already");
    let ran = ana.run(&["gateway", "show", "imagin"]);
    assert_eq!(ran.fails(1), "error: no gateway \"imagin\"; did you mean \"imaging\"?");
}

#[test]
fn a_policy_is_checked_planned_applied_and_rolled_back() {
    let (controller, ana) = hospital();
    let bad = ana.write("bad.toml", &POLICY.replace("dicom", "dicm"));
    for line in [&["policy", "check", &bad][..], &["policy", "plan", &bad]] {
        let ran = ana.run(line);
        let text = ran.fails(1);
        assert!(text.contains("bad.toml:6: rule.ct-to-pacs"), "{text}");
        assert!(
            text.ends_with("no service \"dicm\"; did you mean \"dicom\"? Nothing was changed."),
            "{text}"
        );
    }
    let file = ana.write("policy.toml", POLICY);
    ana.run(&["policy", "check", &file]).ok();
    let plan = ana.path("change.plan").display().to_string();
    let ran = ana.run(&["policy", "plan", &file, "--out", &plan]).ok();
    assert!(ran.out.contains("+[rule.ct-to-pacs]"), "{ran:#?}");
    let ran = ana.run(&["policy", "apply", &plan, "--yes"]);
    assert!(ran.fails(64).contains("policy apply wants a reason"), "{ran:#?}");
    ana.run(&["policy", "apply", &plan, "--yes", "--reason", "ticket 4711"]).ok();
    assert_eq!(controller.state().model().policy, POLICY);
    let ran = ana.run(&["policy", "apply", &plan, "--yes", "--reason", "again"]);
    let text = ran.fails(1);
    assert!(text.contains("the plan was made on revision 4, and now 5 is in force: ana made revision 5 (policy apply "), "{text}");

    let history = ana.run(&["--json", "policy", "history"]).ok().json();
    assert_eq!(history[0]["reason"], "ticket 4711");
    assert_eq!(history[0]["operator"], "ana");
    ana.run(&["policy", "rollback", "4", "--reason", "broke the CT", "--yes"]).ok();
    assert_eq!(controller.state().model().policy, "format = 1\n");
    assert_eq!(ana.run(&["policy", "show", "5"]).ok().out, POLICY);
    let ran = ana.run(&["policy", "diff", "5"]).ok();
    assert!(ran.out.contains("--- revision 5\n+++ revision 6\n"), "{ran:#?}");
    assert!(ran.out.contains("-[rule.ct-to-pacs]"), "{ran:#?}");
    let ran = ana.run(&["policy", "show", "99"]);
    assert!(ran.fails(1).starts_with("error: there is no revision 99"), "{ran:#?}");
    let ran = ana.run(&["audit", "verify"]).ok();
    assert!(
        ran.out.starts_with("The audit log holds: 6 entries in an unbroken chain, 6 revisions"),
        "{ran:#?}"
    );
}

#[test]
fn an_altered_plan_isnt_applied() {
    let (_controller, ana) = hospital();
    let file = ana.write("policy.toml", POLICY);
    let plan = ana.path("change.plan");
    let name = plan.display().to_string();
    ana.run(&["policy", "plan", &file, "--out", &name]).ok();
    let text = fs::read_to_string(&plan).unwrap();
    fs::write(&plan, text.replace("[\\\"dicom\\\"]", "[\\\"vnc\\\"]")).unwrap();
    assert_ne!(fs::read_to_string(&plan).unwrap(), text);
    let ran = ana.run(&["policy", "apply", &name, "--yes", "--reason", "r"]);
    assert!(ran.fails(1).contains("the plan's file was altered"), "{ran:#?}");
    fs::write(&plan, "{}").unwrap();
    let ran = ana.run(&["policy", "apply", &name, "--yes", "--reason", "r"]);
    assert!(ran.fails(1).contains("change.plan: not a plan as"), "{ran:#?}");
}

#[test]
fn policy_works_offline_as_far_as_it_can() {
    let ana = Person::new();
    let out = ana.path("new.toml").display().to_string();
    ana.run(&["policy", "init", "--out", &out]).ok();
    let ran = ana.run(&["policy", "check", &out]).ok();
    assert!(ran.err.contains("not logged in"), "{ran:#?}");
    ana.run(&["policy", "fmt", &out]).ok();
    ana.run(&["policy", "fmt", &out, "--check"]).ok();
    let untidy =
        ana.write("untidy.toml", "format=1\n[rule.a]\nto='b'\nfrom='a'\nservices=['dicom']\n");
    assert_eq!(ana.run(&["policy", "fmt", &untidy, "--check"]).code, 1);
    let text = fs::read_to_string(&untidy).unwrap();
    assert!(text.starts_with("format=1"), "--check changed the file");
    ana.run(&["policy", "fmt", &untidy]).ok();
    ana.run(&["policy", "fmt", &untidy, "--check"]).ok();
    let broken = ana.write("broken.toml", "format = 1\n[rule.a\n");
    let ran = ana.run(&["policy", "check", &broken]);
    assert!(ran.fails(1).contains("broken.toml:2"), "{ran:#?}");
    let ran = ana.run(&["policy", "check", "/nowhere/policy.toml"]);
    assert!(ran.fails(1).starts_with("error: /nowhere/policy.toml: can't read it: "), "{ran:#?}");
}

#[test]
fn what_cuts_care_off_wants_the_name() {
    let (controller, ana) = hospital();
    let revisions = || controller.state().revisions.len();
    let before = revisions();
    let ran = ana.run(&["gateway", "revoke", "imaging", "--reason", "stolen", "--yes"]);
    assert!(ran.fails(64).contains("add --confirm imaging if you mean it"), "{ran:#?}");
    let ran = ana.type_in(&["gateway", "revoke", "imaging", "--reason", "stolen"], "yes\n");
    assert!(ran.fails(64).contains("not confirmed"), "{ran:#?}");
    assert_eq!(revisions(), before);
    let ran = ana.type_in(&["gateway", "revoke", "imaging"], "stolen\nimaging\n").ok();
    assert!(ran.err.contains("Reason, for the audit log:"), "{ran:#?}");
    let model = controller.state().model();
    assert!(model.gateway_named("imaging").is_none());
    assert_eq!(model.revoked.len(), 1);
    assert_eq!(controller.state().revisions.last().unwrap().1.reason.as_deref(), Some("stolen"));
}

#[test]
fn enforce_is_refused_too_early_and_a_break_wants_the_plans_id() {
    let (controller, ana) = hospital();
    let file = ana.write("policy.toml", POLICY);
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "r"]).ok();
    let mode = ["device", "mode", "ct-1", "pacs-1", "enforce"];
    let before = controller.state().revisions.len();
    let ran = ana.run(&[&mode[..], &["--confirm", "ct-1,pacs-1"]].concat());
    let text = ran.fails(4);
    assert!(text.starts_with("error: the plan refuses this:\n  x device ct-1: "), "{text}");
    assert!(text.ends_with("If it must be all the same: --force --reason \"…\""), "{text}");
    let force = ["--force", "--reason", "drill"];
    let ran = ana.run(&[&mode[..], &force, &["--yes", "--confirm", "ct-1"]].concat());
    assert!(ran.fails(64).contains("add --confirm ct-1,pacs-1"), "{ran:#?}");
    assert_eq!(controller.state().revisions.len(), before);
    ana.run(&[&mode[..], &force, &["--confirm", "ct-1,pacs-1"]].concat()).ok();

    let model = controller.state().model();
    let edge = serde_json::json!({
        "gateway": controller.gateway_id("imaging"), "mac": MAC,
        "member": model.device_named("ct-1").unwrap().0, "local": "10.20.1.10",
        "remote": "10.20.4.10", "remote_member": model.device_named("pacs-1").unwrap().0,
        "outbound": true, "protocol": 6, "port": 104, "verdict": "tunnel", "rule": null, "flows": 3,
        "packets_out": 9, "packets_in": 8, "bytes_out": 12_000, "bytes_in": 800,
        "first": 1_764_000_000_000_u64, "last": 1_764_000_060_000_u64,
    });
    controller.state().edges = vec![serde_json::from_value(edge).unwrap()];
    let empty = ana.write("empty.toml", "format = 1\n");
    let apply = ["policy", "apply", &empty, "--reason", "r", "--yes"];
    let ran = ana.run(&apply);
    assert!(ran.out.contains("Would break (recorded traffic that passes today):"), "{ran:#?}");
    let text = ran.fails(64);
    assert!(text.contains("so --yes isn't enough: add --confirm "), "{text}");
    let id = ran.out.split("(plan ").nth(1).unwrap().split(')').next().unwrap();
    assert!(text.contains(id), "{ran:#?}");
    ana.run(&[&apply[..], &["--confirm", id]].concat()).ok();
    assert_eq!(controller.state().model().policy, "format = 1\n");
}

#[test]
fn a_gateway_that_doesnt_confirm_is_named_as_a_laggard() {
    let (controller, ana) = hospital();
    let id = controller.gateway_id("imaging");
    controller.state().offline.push(id);
    let ran = ana.run(&["device", "mode", "ct-1", "protect", "--yes", "--timeout", "1s"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(ran.out.contains("not yet in force at 1 of "), "{ran:#?}");
    assert!(ran.out.contains("\n  imaging: it is offline"), "{ran:#?}");
    let ran = ana.run(&["status"]);
    assert_eq!(ran.code, 2, "{ran:#?}");
    assert!(ran.out.starts_with("Problems:\n  gateway imaging: offline; last seen "), "{ran:#?}");
    assert!(ran.out.contains("Not all is well."), "{ran:#?}");
    let json = ana.run(&["--json", "status"]).json();
    assert_eq!((&json["well"], &json["gateways"][0]["state"]), (&false.into(), &"offline".into()));
    controller.state().offline.clear();
    let ran = ana.run(&["status", "--wait", "5"]).ok();
    assert!(
        ran.out.contains("All is well. Revision 5, 2 gateways, 2 devices: 1 observe, 1 protect"),
        "{ran:#?}"
    );
    ana.run(&["device", "mode", "ct-1", "observe", "--yes", "--no-wait"]).ok();
}

#[test]
fn a_change_is_computed_again_when_somebody_was_faster() {
    let (controller, ana) = hospital();
    let key = ana_key(&ana);
    let faster = {
        let key = key.clone();
        move |state: &mut crate::controller::State| {
            let body = state.revise(&key, |model| {
                model.set_mode("pacs-1", Mode::Protect, 5).unwrap();
            });
            let update = anteroom_proto::api::ModelUpdate {
                revision: body,
                action: "device mode".into(),
                subject: "pacs-1 protect".into(),
                reason: None,
            };
            assert_eq!(state.update(update, key.public()).0, 200);
        }
    };
    controller.state().before_update = Some(Box::new(faster.clone()));
    let ran = ana.run(&["device", "label", "ct-1", "floor=2", "--yes"]).ok();
    assert!(ran.out.contains("Meanwhile ana made revision 5 (device mode pacs-1 protect); computing the change again."), "{ran:#?}");
    let model = controller.state().model();
    assert_eq!(model.device_named("pacs-1").unwrap().1.mode, Mode::Protect);
    assert!(model.device_named("ct-1").unwrap().1.labels.values().any(|value| value == "2"));

    let file = ana.write("policy.toml", POLICY);
    let plan = ana.path("change.plan").display().to_string();
    ana.run(&["policy", "plan", &file, "--out", &plan]).ok();
    controller.state().before_update = Some(Box::new(move |state| {
        let body = state.revise(&key, |model| {
            model.set_mode("pacs-1", Mode::Observe, 7).unwrap();
        });
        let update = anteroom_proto::api::ModelUpdate {
            revision: body,
            action: "device mode".into(),
            subject: "pacs-1 observe".into(),
            reason: None,
        };
        assert_eq!(state.update(update, key.public()).0, 200);
    }));
    let ran = ana.run(&["policy", "apply", &plan, "--yes", "--reason", "r"]);
    let text = ran.fails(1);
    assert!(text.starts_with("error: nothing was changed: ana made revision 7 (device mode pacs-1 observe) meanwhile."), "{text}");
    assert_eq!(controller.state().model().policy, "format = 1\n");
}

pub(crate) fn ana_key(ana: &Person) -> anteroom_proto::key::IdentityKey {
    anteroom::home::Home::locate(Some(&ana.home())).unwrap().key().unwrap()
}

#[test]
fn an_answer_that_is_lost_on_the_way_is_looked_up() {
    let (controller, ana) = hospital();
    let before = controller.state().revisions.len();
    let mut lost = false;
    controller.lie("/v1/model", move |_, body| {
        if !lost && body.get("number").is_some() {
            lost = true;
            *body = serde_json::json!("garbled");
        }
    });
    ana.run(&["device", "label", "ct-1", "floor=2", "--yes"]).ok();
    assert_eq!(controller.state().revisions.len(), before + 1);
}

#[test]
fn a_refusal_of_the_controller_is_printed_and_its_death_after_the_change_is_no_failure() {
    let (controller, ana) = hospital();
    let before = controller.state().revisions.len();
    controller.state().refusal = Some("not today");
    let ran = ana.run(&["device", "label", "ct-1", "floor=2", "--yes"]);
    assert_eq!(ran.fails(1), "error: not today");
    assert_eq!(controller.state().revisions.len(), before);
    controller.state().refusal = None;
    controller.lie("/v1/progress/5", |status, body| {
        *status = 503;
        *body = serde_json::json!({ "code": "busy", "message": "going down" });
    });
    let ran = ana.run(&["device", "mode", "ct-1", "protect", "--yes"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(
        ran.err.contains("revision 5 is signed and stored, but can't be followed: going down"),
        "{ran:#?}"
    );
}

#[test]
fn flows_bear_names_and_say_what_is_in_the_clear() {
    let (controller, ana) = hospital();
    let file = ana
        .write("policy.toml", "format = 1\n[external.archive]\nprefixes = [\"10.20.4.50/32\"]\n");
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "r"]).ok();
    let gateway = controller.gateway_id("imaging");
    let member = controller.state().model().device_named("ct-1").unwrap().0;
    let pacs = controller.state().model().device_named("pacs-1").unwrap().0;
    let edge = |remote: &str, remote_member, outbound, port, verdict: &str| {
        serde_json::from_value::<anteroom_proto::api::Edge>(serde_json::json!({
            "gateway": gateway, "mac": MAC, "member": member, "local": "10.20.1.10",
            "remote": remote, "remote_member": remote_member, "outbound": outbound, "protocol": 6,
            "port": port, "verdict": verdict, "rule": null, "flows": 3, "packets_out": 9,
            "packets_in": 8, "bytes_out": 12_000, "bytes_in": 800,
            "first": 1_764_000_000_000_u64, "last": 1_764_000_060_000_u64,
        }))
        .unwrap()
    };
    controller.state().edges = vec![
        edge("10.20.4.10", Some(pacs), true, 104, "tunnel"),
        edge("10.20.4.50", None, true, 104, "clear"),
        edge("10.20.9.9", None, false, 22, "drop(no-rule)"),
    ];
    let table = ana.run(&["flows", "ct-1"]).ok().out;
    let lines: Vec<&str> = table.lines().skip(2).collect();
    for (line, parts) in lines.iter().zip([
        ["ct-1", "pacs-1", "dicom", "tunnel, patient data"],
        [
            "ct-1",
            "archive (external 10.20.4.50)",
            "dicom",
            "clear, patient data in the clear; policy would drop it (not-visible)",
        ],
        ["outside 10.20.9.9", "ct-1", "tcp/22", "drop(no-rule)"],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{line} lacks one of {parts:?}");
    }
    let json = ana.run(&["--json", "flows"]).ok().json();
    assert_eq!(json[1]["in_the_clear"], true);
    assert_eq!((&json[1]["patient_data"], &json[2]["patient_data"]), (&true.into(), &false.into()));
    assert_eq!(
        (&json[1]["verdict"], &json[1]["would_drop"]),
        (&"clear".into(), &"not-visible".into())
    );
    assert_eq!(json[1]["to"]["kind"], "external");
    assert_eq!(json[0]["last_seen"], "2025-11-24T16:01:00.000Z");
    let only = ana.run(&["--json", "flows", "archive"]).ok().json();
    assert_eq!(only.as_array().unwrap().len(), 1, "{only}");
    let ran = ana.run(&["flows", "ct-9"]);
    assert!(ran.fails(1).contains("did you mean \"ct-1\"?"), "{ran:#?}");
    let ran = ana.run(&["why", "ct-1", "nobody", "dicom"]);
    assert!(ran.fails(1).contains("\"nobody\""), "{ran:#?}");
}

#[test]
fn why_tells_where_a_gateway_judges_otherwise_than_the_policy() {
    let (controller, ana) = hospital();
    let file = ana.write("policy.toml", POLICY);
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "r"]).ok();
    let model = controller.state().model();
    let (member, pacs) =
        (model.device_named("ct-1").unwrap().0, model.device_named("pacs-1").unwrap().0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let now = u64::try_from(now).unwrap();
    let asked = |verdict: &str, last: u64, args: &[&str]| {
        let edge = serde_json::json!({
            "gateway": controller.gateway_id("imaging"), "mac": MAC, "member": member, "local": "10.20.1.10",
            "remote": "10.20.4.10", "remote_member": pacs, "outbound": true, "protocol": 6, "port": 104,
            "verdict": verdict, "rule": null, "flows": 3, "packets_out": 9, "packets_in": 8,
            "bytes_out": 12_000, "bytes_in": 800, "first": last, "last": last,
        });
        controller.state().edges = vec![serde_json::from_value(edge).unwrap()];
        ana.run(&[args, &["why", "ct-1", "pacs-1", "tcp/104"]].concat())
    };
    let ahead = 4000 * 24 * 3_600_000;
    let text = asked("drop(expired)", now + ahead, &[]).ok().out;
    let words = "imaging judged otherwise, drop(expired): The rule that allowed it has expired. By its time that was ";
    assert!(text.contains("But") && text.contains(words), "{text}");
    let json = asked("drop(expired)", now + ahead, &["--json"]).ok().json();
    let said = &json["answers"][0]["contradiction"];
    assert_eq!((&said["gateway"], &said["verdict"]), (&"imaging".into(), &"drop(expired)".into()));
    assert_eq!(said["at"], now + ahead);
    assert!(said["ahead_ms"].as_u64().unwrap() > ahead / 2, "{json}");
    // What was before the revision was signed, and what passed, says nothing against it.
    for (verdict, last) in [("drop(no-rule)", 1_764_000_000_000), ("clear", now + ahead)] {
        let text = asked(verdict, last, &[]).ok().out;
        assert!(!text.contains("judged otherwise"), "{text}");
        let json = asked(verdict, last, &["--json"]).ok().json();
        assert!(json["answers"][0].get("contradiction").is_none(), "{json}");
    }
}

#[test]
fn who_is_offline_is_named_before_a_change_with_what_waits_for_it() {
    let (controller, ana) = hospital();
    let file = ana.write("policy.toml", POLICY);
    let quiet = ana.run(&["policy", "plan", &file]).ok().out;
    assert!(!quiet.contains("offline"), "{quiet}");
    let (server_room, _) = controller.state().model().gateway_named("server-room").unwrap();
    controller.state().offline.push(server_room);

    // A peer's gateway, in each of the three that show a plan.
    let named = "! gateway server-room: It is offline, last seen ";
    let waits = "Until it is back, pacs-1 and whoever speaks with them go on as before. Of what closes, the gateways at \
                 the other ends of its tunnels shut their side at once; what it alone carries (in the clear, as with \
                 externals, and between its own ports) stays open until it is back.";
    let plan = ana.run(&["policy", "plan", &file]).ok().out;
    assert!(plan.contains(named) && plan.contains(waits), "{plan}");
    let json = ana.run(&["--json", "policy", "plan", &file]).ok().json();
    assert_eq!(json["warnings"][0]["code"], "gateway-offline", "{json}");
    let why = ["--reason", "x", "--yes", "--no-wait"];
    let ran = ana.run(&[&["policy", "apply", &file][..], &why].concat()).ok();
    let told = format!("{}{}", ran.out, ran.err);
    assert!(told.contains(named) && told.contains(waits), "{ran:#?}");
    let ran = ana.run(&[&["device", "mode", "ct-1", "protect"][..], &why].concat()).ok();
    let told = format!("{}{}", ran.out, ran.err);
    assert!(told.contains(named), "its peer has to follow: {ran:#?}");

    // What doesn't concern it says nothing of it.
    ana.run(&["device", "label", "ct-1", "room=7", "--yes"]).ok();
    let ran = ana.run(&[&["device", "label", "ct-1", "room=8"][..], &why].concat());
    assert!(!format!("{}{}", ran.out, ran.err).contains("offline"), "{ran:#?}");
    // Nor does what the change itself says is out.
    let words = ["gateway", "bypass", "server-room", "--for", "1h", "--reason", "x", "--yes"];
    let ran = ana.run(&words);
    assert!(!format!("{}{}", ran.out, ran.err).contains("is offline, last seen"), "{ran:#?}");
}
