//! Devices of real captures are recognised, and strangers aren't taken for somebody else.

use std::path::Path;

use anteroom_captures::measure::{self, Tally, sum};
use anteroom_captures::{Session, folder, load, observe};
use anteroom_controller_core::classify::{Claims, Field, KNOWN, Rulebook, SURE};

fn sessions() -> Option<Vec<Session>> {
    Some(load(&folder()?.join("iot-setup")).expect("captures of devices"))
}

/// What the station with this address is taken for in a capture.
fn claims(folder: &Path, name: &str, mac: &str) -> Claims {
    let bytes = std::fs::read(folder.join(name)).expect("a capture");
    let seen = observe(&bytes).expect("a capture of Ethernet");
    let mac = mac.parse().expect("an Ethernet address");
    Rulebook::shipped().classify(seen.get(&mac).expect("a station of the capture"))
}

#[track_caller]
fn has_roles(claims: &Claims, wanted: &[&str]) {
    for role in wanted {
        let found = claims.roles().any(|claim| claim.value == *role);
        assert!(found, "no role {role} among {claims:#?}");
    }
}

/// The share of `tally` in percent.
fn percent(part: usize, tally: Tally) -> usize {
    part * 100 / tally.all().max(1)
}

#[test]
fn kinds_that_were_learnt_are_found_again_in_other_sessions() {
    let Some(sessions) = sessions() else { return };
    let rules = Rulebook::shipped();
    for seed in 1..=3 {
        let (train, test) = measure::split(&sessions, seed);
        let book = measure::learnt(&train, &rules);
        let classes = measure::field(&book, &test, Field::Class);
        let all = sum(&classes);
        assert!(percent(all.right, all) >= 95 && all.wrong == 0, "seed {seed}: {classes:#?}");
        let table = measure::models(&book, &test, KNOWN);
        let all = sum(&table);
        // Two kinds of plugs differ in nothing that they show; the rest is what can be found.
        assert!(percent(all.right, all) >= 90, "seed {seed}: {table:#?}");
        assert!(percent(all.wrong, all) <= 3, "seed {seed}: {table:#?}");
        let proposed = measure::models(&book, &test, SURE);
        assert_eq!(sum(&proposed).wrong, 0, "seed {seed}: {proposed:#?}");
    }
}

#[test]
fn kinds_that_were_never_seen_are_known_by_what_they_state_or_mostly_unknown() {
    let Some(sessions) = sessions() else { return };
    let rules = Rulebook::shipped();
    let table =
        measure::strangers(&sessions, &rules, |book, test| measure::models(book, test, KNOWN));
    let stated = sum(&measure::models(&rules, &sessions.iter().collect::<Vec<_>>(), KNOWN));
    let all = sum(&table);
    assert!(all.right <= stated.right, "nothing else names a stranger: {table:#?}");
    // One plug is taken for its sibling, which differs in nothing.
    assert!(percent(all.wrong, all) <= 8, "{table:#?}");
    let wrong: Vec<_> = table.iter().filter(|(_, tally)| tally.wrong > 0).collect();
    assert!(wrong.iter().all(|(kind, _)| kind.starts_with("EdimaxPlug")), "{wrong:#?}");
    let proposed =
        measure::strangers(&sessions, &rules, |book, test| measure::models(book, test, SURE));
    assert_eq!(sum(&proposed).wrong, 0, "{proposed:#?}");
}

#[test]
fn another_device_of_a_kind_is_known_by_one_of_it() {
    let Some(sessions) = sessions() else { return };
    let table = measure::twins(&sessions, &Rulebook::shipped());
    let all = sum(&table);
    assert!(all.all() > 0 && percent(all.right, all) >= 95 && all.wrong == 0, "{table:#?}");
}

#[test]
fn what_rules_say_of_things_is_right_or_unknown() {
    let Some(sessions) = sessions() else { return };
    let rules = Rulebook::shipped();
    let test: Vec<&Session> = sessions.iter().collect();
    for field in [Field::Class, Field::Make, Field::Model] {
        let table = measure::field(&rules, &test, field);
        let all = sum(&table);
        assert!(percent(all.wrong, all) <= 5, "{field}: {table:#?}");
    }
    // What states its name is known by rules alone.
    let classes = measure::field(&rules, &test, Field::Class);
    for kind in ["D-LinkCam", "D-LinkSiren", "TP-LinkPlugHS110", "HueSwitch", "WeMoLink"] {
        assert_eq!((classes[kind].wrong, classes[kind].unknown), (0, 0), "{kind}: {classes:#?}");
    }
}

#[test]
fn medical_and_industrial_programs_have_the_roles_that_they_play() {
    let Some(folder) = folder() else { return };
    let here = "00:00:00:00:00:00";
    let archive = claims(&folder, "medical/dicom-orthanc.pcap", here);
    has_roles(&archive, &["dicom-scp", "dicom-scu"]);
    let mixed = claims(&folder, "medical/mixed-peers.pcap", here);
    // Modbus isn't looked for at the port that it has there.
    has_roles(
        &mixed,
        &["dicom-scp", "dicom-scu", "hl7-sender", "hl7-receiver", "opcua-server", "ftp-server"],
    );
    let provider = claims(&folder, "medical/sdc-wsdiscovery.pcap", here);
    has_roles(&provider, &["sdc-provider"]);
    // Its program writes it without the umlaut.
    assert_eq!(provider.value(Field::Make), "Dräger", "{provider:#?}");

    let plc = claims(&folder, "ot/modicon.pcap", "00:00:54:14:f2:4f");
    // It was captured on both sides of a router, whose its pages aren't.
    has_roles(&plc, &["modbus-server", "ftp-server", "web-server"]);
    has_roles(&claims(&folder, "ot/modicon.pcap", "00:1c:7f:39:de:5b"), &["router"]);
    assert_eq!(plc.value(Field::Class), "industrial-controller", "{plc:#?}");
    assert_eq!(plc.value(Field::Make), "Schneider Electric", "{plc:#?}");
    let asks = claims(&folder, "ot/modicon.pcap", "00:50:56:b3:bd:bd");
    has_roles(&asks, &["modbus-client"]);
    assert_eq!(asks.value(Field::Make), "unknown", "a virtual machine's interface: {asks:#?}");
    let building = claims(&folder, "ot/bacnet_example.pcap", "d4:6a:6a:56:98:17");
    has_roles(&building, &["bacnet-device"]);
    assert_eq!(building.value(Field::Make), "unknown", "of many makers: {building:#?}");

    let xp = claims(&folder, "legacy/winxp.pcap", "00:0c:29:5a:cf:2e");
    assert_eq!(xp.value(Field::Os), "Windows XP", "{xp:#?}");
    has_roles(&xp, &["file-server", "remote-screen"]);
    let agent = claims(&folder, "legacy/snmpwalk.pcap", "04:01:3a:ef:d2:01");
    has_roles(&agent, &["snmp-agent"]);
    assert_eq!(agent.value(Field::Os), "Linux", "{agent:#?}");
}
