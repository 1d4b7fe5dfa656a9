//! An asset list taken over, and a bundle for auditors made and checked, by the real programs with a real controller.

use std::fs;

use anteroom_e2e::{Stage, fixture};
use serde_json::Value;

/// The device's name, Ethernet address and first address.
fn known(device: &Value) -> (String, String) {
    let text = |key: &str| device[key].as_str().unwrap_or_default().to_owned();
    (text("name"), text("mac"))
}

#[test]
fn a_list_is_taken_over_and_a_bundle_tells_it_and_any_changed_byte_shows() {
    let test = "a_list_is_taken_over_and_a_bundle_tells_it_and_any_changed_byte_shows";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let operator = &fixture.hospital.operator;
    let desk = fixture.directory();
    let path = |name: &str| desk.join(name).display().to_string();
    let before = path("before.zip");
    operator.ok(&["export", "create", &before]).unwrap();

    // What the hospital's books say: a scanner with its room, a pump with a word that a spreadsheet would compute, and a ghost.
    let devices = operator.json(&["device", "list"]).unwrap();
    let named = |name: &str| {
        let mut all = devices.as_array().into_iter().flatten().map(known);
        all.find(|(known, _)| known == name).unwrap_or_else(|| panic!("{name}: {devices}"))
    };
    let (_, scanner) = named("ct-1");
    let list = path("assets.csv");
    let owner = "=cmd()<script>alert(1)</script>";
    let text = format!(
        "Name;MAC;Owner;Room;Criticality\nCT;{scanner};\"{owner}\";B2.14;clinical\nGhost;02:00:00:00:66:66;IT;B9;\n"
    );
    fs::write(&list, text).unwrap();
    let compared = operator.json(&["asset", "compare", &list]).unwrap();
    assert_eq!(compared["matches"][0]["device"], "ct-1", "{compared}");
    assert_eq!(compared["matches"][0]["sure"], "certain", "{compared}");
    assert_eq!(compared["missing"].as_array().map(Vec::len), Some(1), "{compared}");
    operator.ok(&["asset", "import", &list, "--yes", "--reason", "the books"]).unwrap();
    let shown = operator.json(&["device", "show", "ct-1"]).unwrap();
    assert_eq!(shown["labels"]["owner"], owner, "{shown}");
    assert_eq!(shown["labels"]["location"], "B2.14", "{shown}");

    let after = path("after");
    let made = operator.json(&["export", "create", &after, "--since", &before]).unwrap();
    let authority = made["authority"].as_str().unwrap_or_else(|| panic!("{made}"));
    let read = |name: &str| fs::read_to_string(desk.join("after").join(name)).unwrap();
    let page = read("report.html");
    assert!(
        page.contains("&lt;script&gt;") && !page.contains("<script"),
        "what others wrote is text"
    );
    assert!(read("inventory.csv").contains("\"'=cmd()"), "and no formula");
    let changes = read("difference.csv");
    assert!(changes.contains("\"ct-1\",\"label location\",\"\",\"B2.14\""), "{changes}");
    let inventory: Value = serde_json::from_str(&read("inventory.json")).unwrap();
    let mut rows = inventory["devices"].as_array().into_iter().flatten();
    let row = rows.find(|row| row["name"] == "ct-1").unwrap_or_else(|| panic!("{inventory}"));
    assert!(row["reaches_enforced"]["reached"].is_u64(), "{row}");

    // Whoever has nothing but the bundle and the hash checks it.
    let auditor = operator.with_home(&desk.join("auditor"));
    let verify =
        |bundle: &str| auditor.command(&["export", "verify", bundle, "--authority", authority]);
    for bundle in [&before, &after] {
        let told = verify(bundle).unwrap().ok().unwrap();
        assert!(told.stdout.contains("none missing, none added"), "{told}");
    }
    let inventory = desk.join("after/inventory.csv");
    let mut bytes = fs::read(&inventory).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&inventory, bytes).unwrap();
    let told = verify(&after).unwrap();
    assert!(told.code != 0 && told.to_string().contains("inventory.csv"), "{told}");
}
