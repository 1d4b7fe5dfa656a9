use super::*;
use crate::compile::compile;
use crate::fixture::{client, hospital, member_id, name};

/// The hospital, with more said of the segments of scanners and monitors.
fn said(more: &str) -> Resolved {
    let mut model = hospital();
    model.policy.push_str(more);
    Resolved::new(&model).unwrap()
}

const WARD: &str = "[segment.ward]\nmembers = [\"monitor-1\", \"pump-1\"]\ncriticality = \"clinical\"\n\
    sensitivity = \"patient-data\"\nowner = \"Ward 3\"\nlocation = \"B2\"\n\
    [segment.alarms]\nmembers = [\"monitor-1\"]\ncriticality = \"life-support\"\nowner = \"Ward 3\"\nlocation = \"B2.14\"\n";

#[test]
fn words_are_read_back_and_others_refused_with_a_hint() {
    for word in Criticality::ALL {
        assert_eq!(word.to_string().parse(), Ok(*word));
        assert_eq!(serde_json::to_value(word).unwrap(), word.as_str());
    }
    for word in Sensitivity::ALL {
        assert_eq!(word.to_string().parse(), Ok(*word));
        assert_eq!(serde_json::to_value(word).unwrap(), word.as_str());
    }
    assert!(Criticality::LifeSupport > Criticality::Clinical);
    assert!(Criticality::Clinical > Criticality::Support);
    assert!(Sensitivity::PatientData > Sensitivity::Internal);
    let error = "life support".parse::<Criticality>().unwrap_err().to_string();
    assert_eq!(
        error,
        "\"life support\" is no criticality: choose life-support, clinical or support; did you mean \"life-support\"?"
    );
}

#[test]
fn a_device_has_its_own_word_or_the_greatest_of_its_segments() {
    let resolved = said(WARD);
    let surfaces = Surfaces::of(&resolved);
    let monitor = surfaces.member(member_id(4));
    let by = |segment: &str| Some(name(segment));
    assert_eq!(
        monitor.criticality,
        Some(Said { value: Criticality::LifeSupport, segment: by("alarms") })
    );
    assert_eq!(monitor.criticality.as_ref().unwrap().to_string(), "life-support (segment alarms)");
    assert_eq!(monitor.sensitivity(), Some(Sensitivity::PatientData));
    assert_eq!(monitor.owner.as_ref().unwrap().value, "Ward 3", "both say so");
    assert_eq!(monitor.location, None, "the two don't agree");
    let pump = surfaces.member(member_id(3));
    assert_eq!(pump.criticality, Some(Said { value: Criticality::Clinical, segment: by("ward") }));
    assert_eq!(pump.location.as_ref().unwrap().value, "B2");
    assert_eq!(*surfaces.member(member_id(1)), Surface::default());
    assert_eq!(*surfaces.member(member_id(99)), Surface::default());

    let mut model = resolved.model.clone();
    let own = [
        (name("criticality"), Some("support".to_owned())),
        (name("owner"), Some("Ward 4".to_owned())),
    ];
    model.label_device("monitor-1", &own).unwrap();
    let surface = of_member(&Resolved::new(&model).unwrap(), member_id(4));
    assert_eq!(surface.criticality, Some(Said { value: Criticality::Support, segment: None }));
    assert_eq!(surface.owner.as_ref().unwrap().to_string(), "Ward 4");
    assert_eq!(surface.sensitivity(), Some(Sensitivity::PatientData), "that stays the segment's");
}

#[test]
fn externals_and_clients_have_it_from_their_segments_too() {
    let mut model = hospital();
    model.clients.extend([client(70, "laptop-1", [10, 20, 9, 70], "ct")]);
    model.policy = model
        .policy
        .replace("[segment.pacs]", "[segment.pacs]\nsensitivity = \"patient-data\"")
        .replace("[segment.ct]", "[segment.ct]\nowner = \"Radiology\"");
    let surfaces = Surfaces::of(&Resolved::new(&model).unwrap());
    let archive = Party::Address([10, 20, 4, 20].into());
    assert_eq!(surfaces.party(archive).sensitivity(), Some(Sensitivity::PatientData));
    assert_eq!(*surfaces.party(Party::Address([10, 20, 4, 21].into())), Surface::default());
    assert_eq!(surfaces.member(member_id(70)).owner.as_ref().unwrap().value, "Radiology");
    model.policy.push_str("broken");
    assert_eq!(*Surfaces::of_labels(&model).member(member_id(70)), Surface::default());
}

#[test]
fn of_externals_within_each_other_each_has_what_is_said_of_it() {
    let resolved = said(
        "[external.clinic]\nprefixes = [\"10.60.0.0/16\"]\n[external.lab]\nprefixes = [\"10.60.0.0/24\"]\n\
         [external.office]\nprefixes = [\"10.60.1.0/24\"]\n\
         [segment.wide]\nexternals = [\"clinic\"]\ncriticality = \"support\"\nowner = \"IT\"\n\
         [segment.narrow]\nexternals = [\"lab\"]\ncriticality = \"clinical\"\n",
    );
    let surfaces = Surfaces::of(&resolved);
    let by_name = |external: &str| surfaces.external(&name(external)).criticality();
    assert_eq!(by_name("clinic"), Some(Criticality::Support), "not what lies at its first address");
    assert_eq!(by_name("lab"), Some(Criticality::Clinical));
    assert_eq!((by_name("office"), by_name("nobody")), (None, None));
    let at = |last: [u8; 4]| surfaces.address(last.into());
    assert_eq!(at([10, 60, 0, 7]).criticality(), Some(Criticality::Clinical));
    assert_eq!(at([10, 60, 0, 7]).owner, None, "nothing is inherited from what lies around it");
    assert_eq!(*at([10, 60, 1, 7]), Surface::default(), "of this one nothing is said");
    assert_eq!(at([10, 60, 9, 7]).owner.as_ref().unwrap().value, "IT");
    assert_eq!(*at([10, 61, 0, 7]), Surface::default());
}

#[test]
fn labels_and_segments_that_cant_be_are_refused_and_name_the_place() {
    let mut model = hospital();
    let mut label = |key: &str, value: &str| {
        let labels = [(name(key), Some(value.to_owned()))];
        model.label_device("ct-1", &labels).map(drop).map_err(|error| error.to_string())
    };
    let error = label("criticality", "clinicl").unwrap_err();
    assert!(
        error.contains("label criticality of device ct-1") && error.contains("clinical"),
        "{error}"
    );
    assert!(label("sensitivity", "secret").is_err());
    assert!(label("owner", "  ").is_err());
    label("owner", "Radiology, Dr. Häberli").unwrap();
    label("sensitivity", "none").unwrap();
    assert!(label("location", &"x".repeat(257)).is_err());
    let error = label("room", "B2\u{202e}41").unwrap_err();
    assert!(error.contains("label room of device ct-1") && error.contains("order"), "{error}");

    let problems = |more: &str| {
        let mut model = hospital();
        model.policy.push_str(more);
        Resolved::new(&model).unwrap_err().to_string()
    };
    let told = problems("[segment.x]\nmembers = [\"ct-1\"]\ncriticality = \"vital\"\n");
    assert!(told.contains("segment.x: \"criticality\": \"vital\" is no criticality"), "{told}");
    assert!(told.contains("policy.toml:"), "{told}");
    let told = problems("[segment.x]\nmembers = [\"ct-1\"]\nowner = \"\"\n");
    assert!(told.contains("segment.x"), "{told}");
    let told = problems("[segment.x]\nmembers = [\"ct-1\"]\ncritical = true\n");
    assert!(told.contains("unknown key \"critical\"") && told.contains("criticality,"), "{told}");
}

#[test]
fn none_of_it_is_in_any_view() {
    let mut model = said(WARD).model;
    let own = [
        (name("owner"), Some("Dr. Unmistakable".to_owned())),
        (name("location"), Some("Room Unmistakable".to_owned())),
        (name("criticality"), Some("life-support".to_owned())),
    ];
    model.label_device("ct-1", &own).unwrap();
    let (plain, compiled) = (compile(&hospital()).unwrap(), compile(&model).unwrap());
    for (id, leaf) in &compiled.leaves {
        let text = String::from_utf8_lossy(&leaf.bytes);
        for word in ["Unmistakable", "life-support", "clinical", "patient-data", "Ward 3", "B2"] {
            assert!(!text.contains(word), "{word} in the leaf of {id}");
        }
        assert_eq!(plain.leaves[id].bytes, leaf.bytes, "who says more of a device opens nothing");
    }
}
