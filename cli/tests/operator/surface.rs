//! The protect surface: who sets it, where it shows, what is chosen and sorted by it; how far a device could reach; and what policy
//! would drop of devices that are still observed.

use serde_json::{Value, json};

use crate::changes::hospital;
use crate::learn::watched;

/// A segment that says more of its members than they do themselves.
const POLICY: &str = "format = 1\n[segment.archives]\nmembers = [\"pacs-1\"]\ncriticality = \"clinical\"\nsensitivity = \"patient-data\"\n\
    owner = \"PACS team\"\n[rule.images]\nfrom = \"ct-1\"\nto = \"archives\"\nservices = [\"dicom\"]\n";

fn names(rows: &Value, key: &str) -> Vec<String> {
    rows.as_array().unwrap().iter().map(|row| row[key].as_str().unwrap().to_owned()).collect()
}

#[test]
fn labels_and_segments_say_how_much_hangs_on_a_device_and_views_go_by_it() {
    let (controller, ana) = hospital();
    let before = controller.state().revisions.len();
    let label = ["device", "label", "ct-1", "--yes"];
    let ran = ana.run(&[&label[..], &["criticality=vital"]].concat());
    assert!(ran.fails(1).contains("choose life-support, clinical or support"), "{ran:#?}");
    assert_eq!(controller.state().revisions.len(), before, "nothing was changed");
    let set = ["criticality=support", "owner=Radiology", "--reason", "inventory"];
    let ran = ana.run(&[&label[..], &set].concat()).ok();
    assert!(ran.err.contains("criticality=support") || ran.out.contains("criticality=support"));
    let ran = ana.run(&[&label[..], &["criticality=life-support"]].concat()).ok();
    let told = format!("{}{}", ran.out, ran.err);
    assert!(
        told.contains("criticality=support") && told.contains("criticality=life-support"),
        "what it was, and what it becomes: {told}"
    );
    let file = ana.write("policy.toml", POLICY);
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "r"]).ok();

    let list = ana.run(&["device", "list", "--wide"]).ok().out;
    let line = |name: &str| list.lines().find(|line| line.contains(name)).unwrap().to_owned();
    assert!(line("pacs-1").contains("| clinical (segment archives) |"), "{list}");
    assert!(line("pacs-1").contains("owner=PACS team (segment archives)"), "{list}");
    assert!(line("ct-1").contains("| life-support ") && line("ct-1").contains("owner=Radiology"));
    let json = ana.run(&["--json", "device", "list"]).ok().json();
    let pacs = json.as_array().unwrap().iter().find(|row| row["name"] == "pacs-1").unwrap();
    assert_eq!(
        pacs["surface"]["criticality"],
        json!({"value": "clinical", "segment": "archives"}),
        "{json}"
    );
    let show = ana.run(&["device", "show", "pacs-1"]).ok().out;
    assert!(
        show.contains("Sensitivity:") && show.contains("patient-data (segment archives)"),
        "{show}"
    );

    let chosen = |more: &[&str]| {
        let ran = ana.run(&[&["--json", "device", "list"], more].concat()).ok();
        names(&ran.json(), "name")
    };
    assert_eq!(chosen(&["--criticality", "life-support"]), ["ct-1"]);
    assert_eq!(chosen(&["--criticality", "clinical,unset"]), ["pacs-1"]);
    assert_eq!(chosen(&["--owner", "pacs"]), ["pacs-1"]);
    assert_eq!(chosen(&["--sensitivity", "unset"]), ["ct-1"]);
    assert_eq!(chosen(&["--sort", "owner"]), ["pacs-1", "ct-1"]);
    assert_eq!(chosen(&["--location", "B2"]), [] as [&str; 0]);
    let ran = ana.run(&["device", "list", "--criticality", "vital"]);
    assert_eq!(ran.code, 64, "{ran:#?}");
}

#[test]
fn a_life_support_device_is_enforced_only_once_its_failure_was_chosen() {
    let (_controller, ana) = watched();
    let critical = POLICY.replace("clinical", "life-support").replace("pacs-1", "ct-1");
    let file = ana.write("policy.toml", &critical);
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "r"]).ok();
    let mode = ["device", "mode", "ct-1", "enforce", "--confirm", "ct-1", "--yes"];
    let told = ana.run(&[&mode[..], &["--force", "--reason", "r"]].concat());
    assert!(told.fails(4).contains("It is life support, as segment archives is"), "{told:#?}");
}

#[test]
fn flows_are_chosen_here_where_a_controller_knows_no_words_to_choose_by() {
    let (controller, ana) = watched();
    let file = ana.write("policy.toml", POLICY);
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "r"]).ok();
    let asked: [&[&str]; 3] = [
        &["--json", "flows", "--would-drop"],
        &["--json", "flows", "ct-1", "--would-drop"],
        &["--json", "flows", "pacs-1", "--clear", "--owner", "PACS team"],
    ];
    let answers = || asked.map(|words| ana.run(words).ok().json());
    let before = answers();
    assert!(before[0].as_array().is_some_and(|rows| !rows.is_empty()), "{}", before[0]);
    controller.state().chooses_nothing = true;
    assert_eq!(answers(), before);
    // Once a command: what it was refused it doesn't ask for again on the next page.
    assert_eq!(controller.state().asked_to_choose, asked.len());
}

#[test]
fn blast_compares_today_with_the_policy_and_a_draft() {
    let (_controller, ana) = hospital();
    let file = ana.write("policy.toml", POLICY);
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "r"]).ok();
    ana.run(&["device", "label", "pacs-1", "criticality=life-support", "--yes"]).ok();
    let draft = ana.write("draft.toml", "format = 1\n");
    let json = ana.run(&["--json", "blast", "--policy", &draft]).ok().json();
    assert_eq!(json["services"], 2, "DICOM has two ports: {json}");
    assert_eq!(json["life_support"], 1);
    assert_eq!(json["under"], json!(["today", "policy", draft]));
    let reached: Vec<&Value> =
        json["together"].as_array().unwrap().iter().map(|one| &one["reached"]).collect();
    assert_eq!(reached, [4, 2, 0], "both reach each other today: {json}");
    assert_eq!(names(&json["devices"], "device"), ["ct-1", "pacs-1"], "by what policy leaves it");
    assert_eq!(json["devices"][0]["radius"][0]["life_support"], 1);
    let text = ana.run(&["blast"]).ok().out;
    assert!(text.contains("2 (1 member on any port, 1 life support)"), "{text}");
    assert!(text.contains("LIFE SUPPORT"), "{text}");
    let segment = ana.run(&["--json", "blast", "archives"]).ok().json();
    assert_eq!(names(&segment["devices"], "device"), ["pacs-1"]);
    let one = ana.run(&["--json", "blast", "ct-1", "--limit", "1"]).ok().json();
    assert_eq!((&one["of"], &one["left_out"]), (&json!("ct-1"), &json!(0)));
    let chosen = ana.run(&["--json", "blast", "--criticality", "life-support"]).ok().json();
    assert_eq!(names(&chosen["devices"], "device"), ["pacs-1"]);
    let ran = ana.run(&["blast", "archive"]);
    assert!(ran.fails(1).contains("did you mean \"archives\"?"), "{ran:#?}");
    let bad = ana.write("bad.toml", "format = 1\n[rule.x]\n");
    assert!(ana.run(&["blast", "--policy", &bad]).fails(1).contains("bad.toml:2"));
}

#[test]
fn what_policy_would_drop_of_observed_devices_shows_before_they_leave_observe() {
    let (_controller, ana) = watched();
    let file = ana.write("policy.toml", POLICY);
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "r"]).ok();
    let all = ana.run(&["--json", "flows"]).ok().json();
    let would = ana.run(&["--json", "flows", "--would-drop"]).ok().json();
    assert_eq!((all.as_array().unwrap().len(), would.as_array().unwrap().len()), (4, 3), "{would}");
    for row in would.as_array().unwrap() {
        assert_eq!(row["verdict"], "clear", "that is what happened: {row}");
        assert!(row["would_drop"].is_string(), "and that is what would: {row}");
        assert_ne!(row["port"], 104, "a rule allows that: {row}");
    }
    let text = ana.run(&["flows", "--would-drop"]).ok().out;
    assert!(text.contains("| clear; policy would drop it (not-visible)"), "{text}");
    let few = ana.run(&["--json", "flows", "--would-drop", "--limit", "1"]).ok().json();
    assert_eq!(few.as_array().unwrap().len(), 1);
    let of_archive = ana.run(&["--json", "flows", "--criticality", "clinical"]).ok().json();
    assert_eq!(of_archive.as_array().unwrap().len(), 2, "{of_archive}");
    let none = ana.run(&["flows", "--would-drop", "--owner", "nobody"]).ok().out;
    assert!(none.contains("No traffic recorded that fits."), "{none}");
    // In protect its own gateway records it.
    ana.run(&["device", "mode", "ct-1", "protect", "--yes"]).ok();
    let after = ana.run(&["--json", "flows", "--would-drop"]).ok().json();
    assert_eq!(after, json!([]));
}

#[test]
fn plans_simulations_and_reviews_go_by_criticality() {
    let (_controller, ana) = watched();
    let file = ana.write("policy.toml", POLICY);
    ana.run(&["policy", "apply", &file, "--yes", "--reason", "r"]).ok();
    ana.run(&["device", "mode", "ct-1", "pacs-1", "protect", "--yes"]).ok();
    let none = ana.write("none.toml", &POLICY.replace("dicom", "hl7"));
    let run = |more: &[&str]| {
        let ran =
            ana.run(&[&["--json", "policy", "simulate", &none, "--over", "60d"], more].concat());
        (ran.code, serde_json::from_str::<Value>(&ran.out).unwrap())
    };
    let (code, json) = run(&[]);
    assert_eq!((code, json["broken"].as_array().unwrap().len()), (4, 4), "{json}");
    assert_eq!(json["broken"][0]["criticality"], "clinical", "the critical first: {json}");
    assert_eq!(json["broken"][3]["criticality"], Value::Null, "{json}");
    let (code, json) = run(&["--criticality", "clinical"]);
    assert_eq!((code, json["broken"].as_array().unwrap().len()), (4, 2), "{json}");
    assert_eq!(run(&["--criticality", "life-support"]).0, 0);
    let stale =
        |more: &[&str]| ana.run(&[&["--json", "policy", "stale"], more].concat()).ok().json();
    ana.run(&["policy", "apply", &none, "--yes", "--reason", "r"]).ok();
    let json = stale(&[]);
    assert_eq!(
        (&json["rules"][0]["name"], &json["rules"][0]["criticality"]),
        (&json!("images"), &json!("clinical")),
        "{json}"
    );
    assert_eq!(stale(&["--criticality", "life-support"])["rules"], json!([]));
    let ran = ana.run(&["policy", "plan", &file, "--owner", "x"]);
    assert!(ran.fails(64).contains("a plan goes by criticality alone"), "{ran:#?}");
}
