//! Asset lists held against what is known, exports for auditors, and MUD files.

use std::fs;

use anteroom_proto::inventory::HintKind;

use crate::changes::{POLICY, hospital};
use crate::controller::Controller;
use crate::person::Person;

const LIST: &str = "\u{feff}Asset Tag;MAC;IP;Serial;Owner;Room;Criticality;Model\r\n\
    CT 1;02-00-00-00-01-0A;10.20.1.99;S1;Radiology;B2.14;clinical;=cmd()\r\n\
    Pump 7;020000000207;;;ICU;;Life Support;\r\n\
    Ghost;02:00:00:00:09:09;;;;;;\r\n\
    Archive;;10.20.4.10;;IT;;;\r\n";

/// The hospital, with a pump that was seen and confirmed by nobody.
fn listed() -> (Controller, Person, String) {
    let (controller, ana) = hospital();
    controller.see("imaging", "02:00:00:00:02:07", "10.20.1.77");
    let list = ana.write("assets.csv", LIST);
    (controller, ana, list)
}

#[test]
fn a_list_is_held_against_what_is_known() {
    let (_controller, ana, list) = listed();
    let json = ana.run(&["--json", "asset", "compare", &list]).ok().json();
    let rows: Vec<(&str, &str, &str)> = json["matches"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let text = |key: &str| row[key].as_str().unwrap_or("-");
            (text("place"), text("device"), text("sure"))
        })
        .collect();
    assert_eq!(
        rows,
        [
            ("assets.csv:2", "ct-1", "certain"),
            ("assets.csv:3", "-", "certain"),
            ("assets.csv:5", "pacs-1", "low")
        ]
    );
    assert_eq!(json["matches"][0]["differences"][0]["field"], "address", "{json}");
    assert_eq!(json["missing"][0]["name"], "Ghost");
    assert_eq!(json["unlisted"].as_array().unwrap().len(), 0);
    let text = ana.run(&["asset", "compare", &list]).ok().out;
    assert!(text.contains("3 rows matched (2 by Ethernet address or serial number, 0 of them never seen), 1 missing, 0 unlisted"), "{text}");
    let csv = ana.run(&["asset", "compare", &list, "--csv"]).ok().out;
    assert!(
        csv.starts_with("\"RESULT\",\"PLACE\"")
            && csv.contains("\"missing\",\"assets.csv:4\",\"Ghost\""),
        "{csv}"
    );
    let fhir = ana
        .write("one.json", r#"{"resourceType":"Device","serialNumber":"S9","manufacturer":"x"}"#);
    let both =
        ana.run(&["--json", "asset", "compare", &fhir, &list, "--site", "north"]).ok().json();
    assert_eq!(both["missing"].as_array().unwrap().len(), 2, "{both}");
    let ran = ana.run(&["asset", "compare", &list, "--site", "nowhere"]);
    assert!(ran.fails(64).contains("no gateway stands in a site"), "{ran:#?}");
    let bad = ana.write("bad.csv", "Price,Colour\n1,2\n");
    assert!(
        ana.run(&["asset", "compare", &bad])
            .fails(1)
            .contains("bad.csv:1: no column tells devices apart")
    );
    let ran = ana.run(&["asset", "compare", &bad, "--column", "mac=Price"]).ok();
    assert!(ran.out.contains("is no device's Ethernet address"), "{ran:#?}");
}

#[test]
fn what_a_list_says_is_taken_over_signed_and_audited() {
    let (controller, ana, list) = listed();
    ana.run(&["device", "label", "ct-1", "location=elsewhere", "--yes"]).ok();
    let ran = ana.run(&["asset", "import", &list, "--take", "owner,location,criticality"]);
    assert!(ran.fails(64).contains("add --yes"), "{ran:#?}");
    let ran = ana.run(&["asset", "import", &list, "--new", "--yes", "--reason", "ticket 1"]).ok();
    assert!(ran.out.contains("an operator has set \"elsewhere\": --overwrite"), "{ran:#?}");
    assert!(ran.out.contains("the match is no surer than low"), "{ran:#?}");
    let label = |device: &str, key: &str| -> Option<String> {
        let state = controller.state();
        let model = state.model();
        model
            .device_named(device)
            .unwrap_or_else(|| panic!("no {device}"))
            .1
            .labels
            .get(key)
            .cloned()
    };
    assert_eq!(label("ct-1", "owner").as_deref(), Some("Radiology"));
    assert_eq!(label("ct-1", "location").as_deref(), Some("elsewhere"));
    assert_eq!(
        label("pump-7", "criticality").as_deref(),
        Some("life-support"),
        "confirmed under the list's name"
    );
    assert_eq!(label("pacs-1", "owner"), None, "an address is too little");
    {
        let state = controller.state();
        let last = state.audit.last().unwrap();
        assert_eq!(
            (last.action.as_str(), last.reason.as_deref()),
            ("asset import", Some("ticket 1"))
        );
    }
    let ran = ana.run(&["asset", "import", &list, "--new", "--yes"]).ok();
    assert!(ran.out.contains("Nothing to change"), "{ran:#?}");
    // With a name that nothing in the policy uses, the list's may be taken, too: here it is the same.
    ana.run(&["asset", "import", &list, "--take", "location,serial,name", "--overwrite", "--yes"])
        .ok();
    assert_eq!(
        (label("ct-1", "location").as_deref(), label("ct-1", "serial").as_deref()),
        (Some("B2.14"), Some("S1"))
    );
}

#[test]
fn an_export_is_signed_and_every_changed_byte_is_found() {
    let (controller, ana, _) = listed();
    let policy = ana.write("policy.toml", POLICY);
    ana.run(&["policy", "apply", &policy, "--yes", "--reason", "r"]).ok();
    let (first, zip) = (ana.path("first"), ana.path("second.zip"));
    let made = ana.run(&["--json", "export", "create", first.to_str().unwrap()]).ok().json();
    let authority = made["authority"].as_str().unwrap().to_owned();
    assert_eq!(
        made["audit_entry"].as_u64(),
        controller.state().audit.last().map(|entry| entry.number)
    );
    // Whoever has nothing but the bundle and the hash can check it; without the hash nobody can.
    let auditor = Person::new();
    let verify =
        |path: &str, more: &[&str]| auditor.run(&[&["export", "verify", path], more].concat());
    let dir = first.to_str().unwrap();
    assert!(verify(dir, &[]).fails(64).contains("--authority HEX"));
    let told = verify(dir, &["--authority", &authority]).ok().out;
    assert!(told.contains("by ana (") && told.contains("none missing, none added"), "{told}");
    assert!(
        verify(dir, &["--authority", &"ab".repeat(32)]).fails(1).contains("isn't to be trusted")
    );
    ana.run(&["export", "verify", dir]).ok();
    let again = ana.run(&["export", "create", dir]);
    assert!(again.fails(1).contains("it is there already"), "{again:#?}");
    let page = fs::read_to_string(first.join("report.html")).unwrap();
    assert!(page.contains("ct-to-pacs") && page.contains("02:00:00:00:02:07"), "{page}");

    for entry in fs::read_dir(&first).unwrap() {
        let path = entry.unwrap().path();
        let content = fs::read(&path).unwrap();
        for at in [0, content.len() / 2, content.len() - 1] {
            let mut other = content.clone();
            other[at] ^= 1;
            fs::write(&path, &other).unwrap();
            let ran = verify(dir, &["--authority", &authority]);
            assert!(ran.fails(1).contains("isn't to be trusted"), "{path:?}, byte {at}: {ran:#?}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(verify(dir, &["--authority", &authority]).code, 1, "without {path:?}");
        fs::write(&path, &content).unwrap();
    }
    fs::write(first.join("more.txt"), "x").unwrap();
    assert!(
        verify(dir, &["--authority", &authority])
            .fails(1)
            .contains("more.txt isn't in the manifest")
    );
    fs::remove_file(first.join("more.txt")).unwrap();

    // Later, with what differs since.
    ana.run(&["device", "label", "ct-1", "owner=Radiology", "--yes"]).ok();
    let zip = zip.to_str().unwrap();
    let made = ana.run(&["--json", "export", "create", zip, "--since", dir]).ok().json();
    assert_eq!(made["differences"], 1, "{made}");
    let checked =
        auditor.run(&["--json", "export", "verify", zip, "--authority", &authority]).ok().json();
    assert_eq!(checked["since"].as_str().map(str::len), Some(64), "{checked}");
    let mut bytes = fs::read(zip).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(zip, bytes).unwrap();
    assert_eq!(verify(zip, &["--authority", &authority]).code, 1);
    let no = ana.run(&["export", "create", ana.path("third").to_str().unwrap(), "--since", zip]);
    assert_eq!(no.code, 1, "nothing is compared with what was altered: {no:#?}");
}

#[test]
fn rows_are_found_by_the_names_that_devices_give_themselves() {
    let (controller, ana, _) = listed();
    controller.hint("imaging", "02:00:00:00:02:07", HintKind::DhcpHostname, "PUMP-77.ward.example");
    controller.hint("imaging", "02:00:00:00:01:0a", HintKind::MdnsName, "gantry.local");
    controller.hint("imaging", "02:00:00:00:01:0a", HintKind::HttpAgent, "ghost");
    let list = ana.write("names.csv", "Hostname,Room\npump-77,B2\nGANTRY,B3\nghost,B4\n");
    let json = ana.run(&["--json", "asset", "compare", &list]).ok().json();
    let rows: Vec<(&str, &str)> = json["matches"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["mac"].as_str().unwrap(), row["sure"].as_str().unwrap()))
        .collect();
    let wanted = [("02:00:00:00:02:07", "medium"), ("02:00:00:00:01:0a", "medium")];
    assert_eq!(rows, wanted, "a name is no proof: {json}");
    assert_eq!(
        json["missing"].as_array().unwrap().len(),
        1,
        "what browses isn't called so: {json}"
    );
}

#[test]
fn mud_files_go_out_and_come_in() {
    let (controller, ana, _) = listed();
    let policy = ana.write("policy.toml", POLICY);
    ana.run(&["policy", "apply", &policy, "--yes", "--reason", "r"]).ok();
    let file = ana.path("ct.json").display().to_string();
    ana.run(&["mud", "export", "ct", "-o", &file, "--url", "https://mud.example/ct.json"]).ok();
    let text = fs::read_to_string(&file).unwrap();
    assert!(
        text.contains("urn:x-anteroom:segment:pacs-1") && text.contains("\"mud-version\": 1"),
        "{text}"
    );
    let none = ana.run(&["--json", "mud", "import", &file, "--for", "ct"]).ok().json();
    assert_eq!(
        (none["rules"].as_array().map(Vec::len), none["already"].as_u64()),
        (Some(0), Some(2)),
        "{none}"
    );
    let maker = ana.write(
        "maker.json",
        &text
            .replace("urn:x-anteroom:segment:pacs-1", "urn:maker:console")
            .replace("11112", "4242"),
    );
    let asked = ana.run(&["mud", "import", &maker, "--for", "ct"]).ok().out;
    assert!(
        asked.contains("# - tcp/104, tcp/4242 to urn:maker:console") && asked.starts_with(POLICY),
        "{asked}"
    );
    let out = ana.path("draft.toml").display().to_string();
    let args =
        ["mud", "import", &maker, "--for", "ct", "--peer", "urn:maker:console=pacs-1", "-o", &out];
    let told = ana.run(&args).ok().out;
    assert!(told.contains("1 new rule"), "{told}");
    ana.run(&["policy", "check", &out]).ok();
    ana.run(&["policy", "plan", &out]).ok();
    assert!(ana.run(&args).fails(1).contains("draft.toml"), "a file that is there stays");
    let again = ana.run(&[args.as_slice(), &["--extend", &out]].concat()).ok().out;
    assert!(again.contains("0 new rules"), "the extended one is replaced: {again}");
    ana.run(&["policy", "check", &out]).ok();
    let ran =
        ana.run(&["mud", "import", &maker, "--for", "ct", "--peer", "urn:maker:console=nobody"]);
    assert!(ran.fails(64).contains("knows no segment or external \"nobody\""), "{ran:#?}");
    // What a device tells of its maker's file stands beside the one that is read.
    controller.hint(
        "imaging",
        "02:00:00:00:01:0a",
        HintKind::DhcpMudUrl,
        "https://other.example/x",
    );
    let shown = ana.run(&["device", "show", "ct-1"]).ok().out;
    assert!(shown.contains("https://other.example/x") && shown.contains("mud import"), "{shown}");
    let ran = ana.run(&["--json", "mud", "import", &file, "--for", "ct"]).ok();
    assert!(ran.err.contains("ct-1 tells of another file"), "{}", ran.err);
    assert_eq!(ran.json()["told"][0]["same"], false);
    let suggest = ["policy", "suggest", "--mud", &format!("ct={file}")];
    let (watching, bea) = crate::learn::watched();
    let suggested = |hint: Option<&str>| {
        watching.state().hints.clear();
        if let Some(url) = hint {
            watching.hint("imaging", crate::changes::MAC, HintKind::DhcpMudUrl, url);
        }
        bea.run(&suggest).ok().err
    };
    assert!(!suggested(None).contains("another file"));
    assert!(!suggested(Some("https://mud.example/ct.json")).contains("another file"));
    let warned = suggested(Some("https://other.example/x"));
    assert!(warned.contains("ct-1 tells of another file of its maker's: https://other.example/x"));
    controller.state().hints.clear();
    controller.hint(
        "imaging",
        "02:00:00:00:01:0a",
        HintKind::LldpMudUrl,
        "https://mud.example/ct.json",
    );
    let ran = ana.run(&["--json", "mud", "import", &file, "--for", "ct"]).ok();
    assert!(!ran.err.contains("another file"), "{}", ran.err);
    assert_eq!(ran.json()["told"][0]["same"], true);
    assert!(ana.run(&["mud", "export", "cts"]).fails(64).contains("the classes are: ct"));
    let bad = ana.write("bad.json", "{\n}");
    assert!(
        ana.run(&["mud", "import", &bad, "--for", "ct"]).fails(1).contains("this is no MUD file")
    );
}
