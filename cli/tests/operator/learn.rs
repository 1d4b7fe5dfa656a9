//! What operators learn from recorded traffic: a policy, what it would break, what is stale, a map, and whether enough was seen.

use std::time::{SystemTime, UNIX_EPOCH};

use anteroom_proto::api::Edge;
use anteroom_proto::rhythm::Rhythm;
use anteroom_proto::time::UnixMillis;

use crate::changes::{MAC, hospital};
use crate::controller::Controller;
use crate::person::Person;

const DAY: u64 = 86_400_000;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// Traffic of ct-1 on each of the last `days` days.
fn seen(controller: &Controller, to: &str, outbound: bool, port: u16, days: u64) -> Edge {
    let state = controller.state();
    let model = state.model();
    let mut rhythm = Rhythm::default();
    let at = |back: u64| UnixMillis(now() - back * DAY);
    (0..days).for_each(|back| rhythm.record(at(back), at(back)));
    Edge {
        gateway: model.gateway_named("imaging").unwrap().0,
        mac: MAC.parse().unwrap(),
        member: Some(model.device_named("ct-1").unwrap().0),
        local: [10, 20, 1, 10].into(),
        remote: to.parse().unwrap(),
        remote_member: None,
        outbound,
        protocol: 6,
        port,
        verdict: anteroom_proto::verdict::Verdict::Clear,
        rule: None,
        flows: days,
        packets_out: 9 * days,
        packets_in: 8 * days,
        bytes_out: 900 * days,
        bytes_in: 800 * days,
        first: at(days - 1),
        last: at(0),
        rhythm,
    }
}

/// Two devices, and 45 days on which one sent images to the other and got commitment back.
pub(crate) fn watched() -> (Controller, Person) {
    let (controller, ana) = hospital();
    let edges = vec![
        seen(&controller, "10.20.4.10", true, 104, 45),
        seen(&controller, "10.20.4.10", false, 4006, 45),
        seen(&controller, "10.20.9.9", true, 443, 45),
        seen(&controller, "10.20.9.7", true, 8080, 1),
    ];
    let mut state = controller.state();
    state.edges = edges;
    // Nothing that no rule carries.
    state.sightings.iter_mut().for_each(|record| record.sighting.kinds.clear());
    drop(state);
    (controller, ana)
}

#[test]
fn a_policy_is_suggested_checked_simulated_and_enforced() {
    let (controller, ana) = watched();
    let shown = ana.run(&["policy", "suggest"]).ok().out;
    assert!(shown.contains("[rule.ct-1-to-pacs-1]"), "{shown}");
    let file = ana.path("policy.toml").display().to_string();
    let told = ana.run(&["policy", "suggest", "-o", &file]).ok().out;
    assert!(told.contains("1 question at its end"), "{told}");
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim_end(), shown.trim_end());
    let again = ana.run(&["policy", "suggest", "-o", &file]);
    assert!(again.fails(1).contains("policy.toml"), "a file that is there stays: {again:#?}");
    let json = ana.run(&["--json", "policy", "suggest"]).ok().json();
    assert_eq!(json["policy"].as_str().unwrap().trim_end(), shown.trim_end());
    assert_eq!(
        (json["edges"].as_u64(), json["questions"][0]["why"].as_str()),
        (Some(4), Some("seen-once"))
    );
    assert_eq!(
        json["uncovered"],
        serde_json::json!(["pacs-1"]),
        "nothing was seen at its own gateway"
    );

    ana.run(&["policy", "check", &file]).ok();
    // What was seen once is in no rule, and is what it would break.
    let ran = ana.run(&["--json", "policy", "simulate", &file, "--over", "60d"]);
    assert_eq!(ran.code, 4, "{ran:#?}");
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["broken"].as_array().unwrap().len(), 1, "{json}");
    assert_eq!(json["broken"][0]["to"], "10.20.9.7");
    assert_eq!(json["by_device"][0]["device"], "ct-1");
    let table = ana.run(&["policy", "simulate", &file]);
    assert!(table.code == 4 && table.out.contains("would break 1 edge with 1 flow"), "{table:#?}");
    // One alone is cut off from who is only observed: that is told before it happens.
    let ran = ana.run(&["--json", "policy", "simulate", &file, "--device", "pacs-1"]);
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, json["broken"].as_array().map(Vec::len)), (4, Some(2)), "{json}");
    let ran = ana.run(&["policy", "simulate", &file, "--device", "pacs-9"]);
    assert!(ran.fails(1).contains("pacs-9"), "{ran:#?}");
    let none = ana.write("none.toml", "format = 1\n");
    let ran = ana.run(&["policy", "simulate", &none]);
    assert!(ran.out.contains("would break 4 edges with 136 flows"), "{ran:#?}");
    let bad = ana.write("bad.toml", "format = 1\n[rule.x]\n");
    assert!(ana.run(&["policy", "simulate", &bad]).fails(1).contains("bad.toml:2"));

    // Enforce: of the scanner enough was seen, of the archive too little.
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "r"]).ok();
    ana.run(&["device", "mode", "ct-1", "pacs-1", "protect", "--yes"]).ok();
    let list = ana.run(&["device", "list"]).ok().out;
    assert!(list.contains("100 %"), "{list}");
    assert!(list.contains("%, too little"), "{list}");
    let show = ana.run(&["device", "show", "pacs-1"]).ok().out;
    assert!(show.contains("Too little for enforce"), "{show}");
    let enforce = |name: &str, more: &[&str]| {
        ana.run(&[&["device", "mode", name, "enforce", "--confirm", name, "--yes"], more].concat())
    };
    let ran = enforce("ct-1", &[]).ok();
    assert!(!ran.out.contains("expected of it"), "{ran:#?}");
    controller.state().edges.clear();
    let ran = enforce("pacs-1", &[]);
    assert!(ran.fails(4).contains("seen on 0 days of the 3"), "{ran:#?}");
    enforce("pacs-1", &["--force", "--reason", "spare"]).ok();
}

#[test]
fn an_extended_file_keeps_its_lines_and_is_the_only_one_replaced() {
    let (controller, ana) = watched();
    controller.state().recording.turned_away = 7;
    controller.state().recording.forgotten = 9;
    let mine = ana.write(
        "mine.toml",
        "# Ours.\nformat = 1\n[rule.images]\nfrom = \"ct-1\"\nto = \"pacs-1\"\nservices = [\"dicom\"]\n",
    );
    let ran = ana.run(&["policy", "suggest", "--extend", &mine, "-o", &mine]).ok();
    assert!(ran.err.contains("7 edges of traffic found no room"), "{ran:#?}");
    assert!(ran.err.contains("9 conversations that were quiet for weeks made room"), "{ran:#?}");
    let told = ana.run(&["--json", "policy", "suggest", "--extend", &mine]).ok().json();
    assert_eq!((&told["turned_away"], &told["forgotten"]), (&7.into(), &9.into()), "{told}");
    let text = std::fs::read_to_string(&mine).unwrap();
    assert!(text.starts_with("# Ours.\nformat = 1\n[rule.images]\n"), "{text}");
    assert!(text.contains("[rule.pacs-1-to-ct-1]"), "{text}");
    assert!(!text.contains("[rule.ct-1-to-pacs-1]"), "it was said already: {text}");
    let twice = ana.run(&["policy", "suggest", "--extend", &mine]).ok().out;
    assert_eq!(twice.matches("[rule.").count(), text.matches("[rule.").count(), "{twice}");
    let bad = ana.write("bad.toml", "format = 1\n[rule.x]\n");
    let ran = ana.run(&["policy", "suggest", "--extend", &bad, "-o", &bad]);
    assert!(ran.fails(1).contains("bad.toml:2"), "{ran:#?}");

    let empty = hospital();
    let ran = empty.1.run(&["policy", "suggest"]);
    assert!(ran.fails(1).contains("nothing to learn from"), "{ran:#?}");
    controller.state().without_history = true;
    for words in [&["policy", "suggest"][..], &["policy", "stale"], &["map"]] {
        let ran = ana.run(words);
        assert!(ran.fails(1).contains("too old to give its flow history"), "{ran:#?}");
    }
    // The rest goes on as before.
    ana.run(&["device", "list"]).ok();
    ana.run(&["policy", "plan", &mine]).ok();
}

#[test]
fn an_essential_flow_is_not_broken_by_a_plan() {
    let (_controller, ana) = watched();
    let rule = |services: &str| {
        format!(
            "format = 1\n[external.dose]\nprefixes = [\"10.20.9.9/32\"]\n[rule.alarms]\nfrom = \"ct-1\"\nto = \"dose\"\nservices = [\"{services}\"]\n\
             essential = true\nclear = true\n"
        )
    };
    let file = ana.write("policy.toml", &rule("https"));
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "r"]).ok();
    let mode = ["device", "mode", "ct-1", "enforce", "--confirm", "ct-1", "--yes"];
    ana.run(&mode).ok();
    let other = ana.write("other.toml", &rule("hl7"));
    let ran = ana.run(&["policy", "plan", &other]);
    assert_eq!(ran.code, 4, "{ran:#?}");
    assert!(ran.out.contains("rule.alarms: It is essential"), "{ran:#?}");
    let ran = ana.run(&["--json", "policy", "simulate", &other]);
    let json: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (ran.code, &json["broken"][0]["essential"]),
        (4, &serde_json::json!(true)),
        "{json}"
    );
    let apply = ["policy", "apply", &other, "--yes", "--reason", "r"];
    assert!(ana.run(&apply).fails(4).contains("It is essential"));
    let ran = ana.run(&[&apply[..], &["--force"]].concat());
    assert!(ran.fails(64).contains("this can cut off care"), "{ran:#?}");
    let plan = ana.run(&["--json", "policy", "plan", &other]);
    let plan: serde_json::Value = serde_json::from_str(&plan.out).unwrap();
    assert_eq!(plan["would_break"][0]["essential"], "alarms", "{plan}");
    let id = plan["id"].as_str().unwrap();
    ana.run(&[&apply[..], &["--force", "--confirm", &id[..8]]].concat()).ok();
}

#[test]
fn a_review_says_what_is_stale_and_what_changed() {
    let (controller, ana) = watched();
    let policy = "format = 1\n[external.old]\nprefixes = [\"10.20.9.9/32\"]\nreview = 2020-01-01\n\
        [rule.used]\nfrom = \"ct-1\"\nto = \"pacs-1\"\nservices = [\"dicom\"]\n\
        [rule.unused]\nfrom = \"pacs-1\"\nto = \"ct-1\"\nservices = [\"vnc\"]\n";
    let file = ana.write("policy.toml", policy);
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "r"]).ok();
    let json = ana.run(&["--json", "policy", "stale", "--record"]).ok().json();
    assert_eq!(
        json["rules"],
        serde_json::json!([{"name": "unused", "at": null, "criticality": null}]),
        "{json}"
    );
    assert_eq!(json["externals"][0]["name"], "old");
    assert_eq!(
        (json["devices"].as_array().unwrap().len(), &json["difference"]),
        (0, &serde_json::Value::Null)
    );
    let same = ana.run(&["policy", "stale"]).ok().out;
    assert!(same.contains("The same as in the review of"), "{same}");
    let edge = seen(&controller, "10.20.4.10", false, 5900, 2);
    controller.state().edges = vec![edge];
    let text = ana.run(&["policy", "stale"]).ok().out;
    assert!(text.contains("  + rule.used\n") && text.contains("  - rule.unused\n"), "{text}");
    let ran = ana.run(&["policy", "stale", "--over", "soon"]);
    assert_eq!(ran.code, 64, "{ran:#?}");
}

#[test]
fn of_more_edges_than_a_page_those_that_are_wanted_are_found() {
    let (controller, ana) = watched();
    let edge = |to: [u8; 4], flows: u64, at: u64| Edge {
        remote: to.into(),
        flows,
        packets_out: flows,
        last: UnixMillis(at),
        ..seen(&controller, "10.20.77.7", true, 443, 1)
    };
    let (wanted, begun) = ([10, 20, 77, 7], now());
    let others = |at: u64| {
        let places = (0..10_000_u16).map(u16::to_be_bytes);
        places.map(|[a, b]| edge([10, 99, a, b], 1, at)).collect::<Vec<_>>()
    };
    let mut edges = others(begun + 1000);
    edges.push(edge(wanted, 3, begun));
    controller.state().edges = edges;
    let ran = ana.run(&["--json", "flows", "10.20.77.7"]).ok();
    assert_eq!(ran.json()[0]["flows"], 3, "{ran:#?}");
    let mut followed = ana.follow(&["flows", "10.20.77.7", "--follow"]);
    followed.until("(3 flows");
    // Within one look more than a page of others grow, all of them later than this one.
    let mut edges = others(begun + 5000);
    edges.push(edge(wanted, 77, begun + 3000));
    controller.state().edges = edges;
    followed.until("(77 flows");
}

#[test]
fn days_on_which_its_gateway_reported_are_watched_though_the_device_was_quiet() {
    let (controller, ana) = watched();
    let mut quiet = seen(&controller, "10.20.4.10", true, 104, 45);
    let always = quiet.rhythm;
    quiet.rhythm = Rhythm::default();
    for back in [0, 1, 44] {
        let at = UnixMillis(now() - back * DAY);
        quiet.rhythm.record(at, at);
    }
    let gateway = quiet.gateway;
    controller.state().edges = vec![quiet];
    let coverage = || {
        let rows = ana.run(&["--json", "device", "list"]).ok().json();
        let row = rows.as_array().unwrap().iter().find(|row| row["name"] == "ct-1").unwrap();
        row["coverage"].clone()
    };
    let days = coverage();
    assert_eq!((&days["watched_days"], &days["silent_days"]), (&3.into(), &42.into()), "{days}");
    assert_eq!(days["enough"], false, "{days}");
    let missing = days["missing"][0].as_str().unwrap();
    assert!(missing.contains("its gateway told nothing on 42 days since"), "{days}");
    controller.state().recording.watched = [(gateway, always)].into();
    let days = coverage();
    assert_eq!((&days["watched_days"], &days["silent_days"]), (&45.into(), &0.into()), "{days}");
    assert_eq!((&days["active_days"], &days["enough"]), (&3.into(), &true.into()), "{days}");
}

#[test]
fn a_map_is_drawn_as_text_for_graphviz_and_as_a_picture() {
    let (_controller, ana) = watched();
    let text = ana.run(&["map"]).ok().out;
    assert!(text.contains("ct\n  -> 10.20.4.0/24, no class: dicom"), "{text}");
    assert!(text.contains("  -> outside 10.20.9.0/24 (2): https"), "{text}");
    assert!(text.contains(", 1 of them with patient data in the clear"), "{text}");
    let each = ana.run(&["map", "pacs-1", "--each"]).ok().out;
    assert!(
        each.contains("ct-1\n  -> pacs-1: dicom (clear, 45 flows, patient data in the clear)"),
        "{each}"
    );
    assert!(!each.contains("10.20.9"), "{each}");
    let dot = ana.run(&["map", "--format", "dot"]).ok().out;
    assert!(dot.starts_with("digraph anteroom {"), "{dot}");
    let picture = ana.path("map.svg").display().to_string();
    ana.run(&["map", "--format", "svg", "-o", &picture]).ok();
    assert!(std::fs::read_to_string(&picture).unwrap().starts_with("<svg "));
    let json = ana.run(&["--json", "map"]).ok().json();
    assert_eq!(json["lines"].as_array().unwrap().len(), 4, "{json}");
    let none = ana.run(&["map", "10.9.9.9"]).ok().out;
    assert!(none.contains("No traffic recorded that fits."), "{none}");
    assert!(ana.run(&["map", "ct-9"]).fails(1).contains("did you mean \"ct-1\""));
}
