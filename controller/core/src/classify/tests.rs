use std::collections::BTreeMap;

use anteroom_proto::inventory::HintKind as K;
use anteroom_proto::service::Protocol;
use proptest::prelude::*;

use super::*;
use crate::decide::End;
use crate::history::{Counts, Seen};

static BOOK: std::sync::LazyLock<Rulebook> = std::sync::LazyLock::new(Rulebook::shipped);

fn observed(mac: &str, hints: &[(HintKind, &str)]) -> Observation {
    let mut observation = Observation { mac: mac.parse().ok(), ..Observation::default() };
    hints.iter().for_each(|(kind, value)| observation.add(*kind, value));
    observation
}

fn shipped(mac: &str, hints: &[(HintKind, &str)]) -> Claims {
    BOOK.classify(&observed(mac, hints))
}

fn known(claims: &Claims) -> Vec<String> {
    claims
        .list
        .iter()
        .filter(|claim| claim.confidence >= KNOWN)
        .map(|claim| format!("{}={}", claim.field, claim.value))
        .collect()
}

/// A rulebook of these rules alone.
fn book(rules: &str) -> Rulebook {
    let mut book = Rulebook::default();
    book.extend("rules.toml", &format!("format = 1\n{rules}")).unwrap();
    book
}

fn problems(rules: &str) -> String {
    Rulebook::default().extend("rules.toml", rules).unwrap_err().to_string()
}

#[test]
fn what_is_shipped_has_no_problem_and_no_name_twice() {
    let mut names = std::collections::BTreeSet::new();
    for (file, text) in shipped::FILES {
        let (read, problems) = parse::parse_all(file, text);
        assert!(problems.is_empty(), "{problems}");
        let all = read.rules.keys().map(|name| ("rule", name.clone()));
        for name in all.chain(read.makers.keys().map(|name| ("maker", name.clone()))) {
            assert!(names.insert(name.clone()), "{file}: {name:?} is there twice");
        }
    }
    let [rules, makers, likes, prefixes] = Rulebook::shipped().counts();
    assert!(rules > 100 && makers > 80 && prefixes > 200, "{rules} {makers} {prefixes}");
    assert_eq!(likes, 0, "what is like what, each hospital learns by itself");
}

#[test]
fn nothing_seen_is_nothing_known() {
    let claims = shipped("02:00:00:00:00:01", &[]);
    assert_eq!(claims.list, []);
    for field in Field::ALL {
        assert_eq!(claims.value(field), "unknown");
    }
    // A maker of modules made the interface, and nobody knows who made the device.
    let claims = shipped("5c:cf:7f:06:d9:02", &[]);
    assert_eq!(claims.value(Field::Make), "unknown", "{claims:?}");
}

#[test]
fn medical_equipment_is_recognised_by_what_its_protocols_state() {
    let claims = shipped(
        "00:01:e3:00:00:01",
        &[
            (K::DicomRole, "scu"),
            (K::DicomCallingAe, "CT1"),
            (K::DicomImplementation, "1.3.12.2.1107.5.9.20000101"),
            (K::DicomUses, "1.2.840.10008.5.1.4.1.1.2"),
            (K::DicomUses, "1.2.840.10008.5.1.4.31"),
        ],
    );
    assert_eq!(claims.value(Field::Class), "ct", "{claims:?}");
    assert_eq!(claims.value(Field::Make), "Siemens Healthineers", "{claims:?}");
    let roles: Vec<&str> = claims.roles().map(|claim| claim.value.as_str()).collect();
    assert_eq!(roles, ["dicom-scu", "worklist-user"]);

    let archive = shipped(
        "02:00:00:00:00:02",
        &[
            (K::DicomRole, "scp"),
            (K::DicomCalledAe, "ORTHANC"),
            (K::DicomOffers, "1.2.840.10008.5.1.4.1.2.2.1"),
        ],
    );
    assert_eq!(archive.value(Field::Class), "pacs", "{archive:?}");
    assert_eq!(archive.value(Field::Model), "Orthanc");

    let monitor = shipped(
        "00:09:fb:00:00:01",
        &[(K::Speaks, "intellivue"), (K::Hl7Message, "ORU^R01"), (K::Hl7Message, "ORU^R40")],
    );
    assert_eq!(monitor.value(Field::Class), "patient-monitor", "{monitor:?}");
    assert!(monitor.roles().any(|claim| claim.value == "hl7-sender"), "{monitor:?}");
    assert!(monitor.roles().any(|claim| claim.value == "alarm-source"), "{monitor:?}");

    let provider = shipped("02:00:00:00:00:03", &[(K::WsdTypes, "Device MedicalDevice")]);
    assert_eq!(provider.value(Field::Role), "sdc-provider");
    let plc = shipped("00:00:54:00:00:01", &[(K::ModbusRole, "server")]);
    assert_eq!(plc.value(Field::Class), "industrial-controller", "{plc:?}");
    let chiller =
        shipped("02:00:00:00:00:04", &[(K::BacnetInstance, "12"), (K::BacnetVendor, "7")]);
    assert_eq!(
        known(&chiller),
        ["class=building-controller", "make=Siemens", "role=bacnet-device"]
    );
}

/// A workstation that shows images of all kinds isn't a scanner of one of them.
#[test]
fn who_stores_images_of_several_kinds_is_no_modality() {
    let claims = shipped(
        "02:00:00:00:00:01",
        &[
            (K::DicomRole, "scu"),
            (K::DicomUses, "1.2.840.10008.5.1.4.1.1.2"),
            (K::DicomUses, "1.2.840.10008.5.1.4.1.1.4"),
            (K::DicomUses, "1.2.840.10008.5.1.4.1.1.6.1"),
        ],
    );
    assert_eq!(claims.value(Field::Class), "unknown", "{claims:?}");
}

/// Images of a kind, by what their storage ends with.
fn images(kind: &str) -> String {
    format!("1.2.840.10008.5.1.4.1.1.{kind}")
}

#[test]
fn what_announces_itself_to_its_neighbours_is_known() {
    for (kind, value, field, wanted) in [
        (K::NetbiosVersion, "5.1", Field::Os, "Windows XP"),
        (K::NetbiosVersion, "5.2", Field::Os, "Windows Server 2003"),
        (K::SmbOs, "Windows 6.1.7601", Field::Os, "Windows 7"),
        (K::SmbOs, "Windows 10.0.19045", Field::Os, "Windows 10"),
        (K::SmbOs, "Windows 10.0.22631", Field::Os, "Windows 11"),
        (K::CdpPlatform, "Cisco IP Phone 7941", Field::Class, "phone"),
        (K::CdpPlatform, "cisco AIR-CAP3702I-E-K9", Field::Class, "access-point"),
        (K::CdpPlatform, "cisco WS-C2960X-48FPD-L", Field::Class, "switch"),
        (K::Forwards, "ttl", Field::Role, "router"),
    ] {
        let claims = shipped("02:00:00:00:00:01", &[(kind, value)]);
        assert_eq!(claims.value(field), wanted, "{kind} = {value}: {claims:#?}");
    }
}

#[test]
fn an_archive_that_sends_images_back_is_no_modality() {
    const WORKLIST: &str = "1.2.840.10008.5.1.4.31";
    const COMMITMENT: &str = "1.2.840.10008.1.20.1";
    const FIND: &str = "1.2.840.10008.5.1.4.1.2.2.1";
    let class = |uses: &[&str], offers: &[&str]| {
        let mut hints = vec![(K::DicomRole, "scu")];
        hints.extend(uses.iter().map(|syntax| (K::DicomUses, *syntax)));
        hints.extend(offers.iter().map(|syntax| (K::DicomOffers, *syntax)));
        if !offers.is_empty() {
            hints.push((K::DicomRole, "scp"));
        }
        shipped("02:00:00:00:00:01", &hints).value(Field::Class).to_owned()
    };
    for (kind, wanted) in [
        ("2", "ct"),
        ("2.1", "ct"),
        ("4", "mr"),
        ("6.1", "ultrasound"),
        ("1", "x-ray"),
        ("1.1", "x-ray"),
        ("1.2", "mammography"),
        ("12.1", "angiography"),
        ("20", "nuclear-medicine"),
        ("128", "nuclear-medicine"),
    ] {
        let images = images(kind);
        let images = images.as_str();
        assert_eq!(class(&[images], &[]), wanted, "{kind} alone");
        assert_eq!(class(&[images, COMMITMENT], &[]), wanted, "it asks for a commitment");
        assert_eq!(class(&[images], &[images]), "unknown", "{kind} both ways");
        // Its archive is asked for it, or has committed itself to it.
        assert_eq!(class(&[images], &[images, FIND]), "pacs", "{kind}");
        assert_eq!(class(&[images], &[FIND]), "pacs", "{kind}");
        assert_eq!(class(&[images], &[images, COMMITMENT]), "pacs", "{kind}");
        assert_eq!(class(&[], &[COMMITMENT]), "pacs");
        // A console that takes earlier images, and is asked for its own.
        for offers in [&[images][..], &[images, FIND]] {
            assert_eq!(class(&[images, WORKLIST], offers), wanted, "{kind}, {offers:?}");
        }
    }
    // A viewer fetches images: it offers to take them.
    assert_eq!(class(&[FIND], &[&images("2"), &images("4")]), "unknown");
}

#[test]
fn a_maker_is_one_however_its_name_is_written() {
    for (kind, value) in [
        (K::WsdManufacturer, "Draeger"),
        (K::WsdManufacturer, "Dräger"),
        (K::WsdManufacturer, "Dra\u{308}ger"),
        (K::WsdManufacturer, "DRÄGER"),
        (K::WsdManufacturer, "Drägerwerk AG & Co. KGaA"),
        (K::DhcpVendorClass, "Draeger Infinity"),
        (K::DhcpVendorClass, "Dräger Infinity"),
    ] {
        let claims = shipped("02:00:00:00:00:01", &[(kind, value), (K::Speaks, "infinity")]);
        assert_eq!(claims.value(Field::Make), "Dräger", "{value:?}: {claims:#?}");
        assert_eq!(claims.of(Field::Make).count(), 1, "{value:?}: {claims:#?}");
        let confidence = claims.known(Field::Make).unwrap().confidence;
        assert!(confidence > 90, "{value:?} adds up with what it speaks: {confidence}");
    }
}

#[test]
fn flows_tell_roles_and_a_scanned_port_tells_none() {
    let (mut model, seen) = (crate::fixture::hospital(), crate::fixture::member_id);
    "format = 1\n".clone_into(&mut model.policy);
    let mut history = History::new(100);
    let mut edge = |port, back| {
        history.add(&Seen {
            from: Party::Member(seen(1)),
            to: Party::Member(seen(2)),
            protocol: Protocol::Tcp,
            port,
            way: Way::Clear,
            at: End::From,
            counts: Counts { flows: 1, packets: 3, packets_back: back, ..Counts::default() },
            first: crate::fixture::NOW,
            last: crate::fixture::NOW,
        });
    };
    edge(104, 5);
    edge(2575, 0);
    let conversations = Conversations::of(&history);
    let mut archive = Observation::default();
    conversations.add_to(Party::Member(seen(2)), &mut archive);
    assert_eq!(archive.offers, BTreeSet::from([(Protocol::Tcp, 104)]));
    assert_eq!(known(&BOOK.classify(&archive)), ["role=dicom-scp"]);
    let mut scanner = Observation::default();
    conversations.add_to(Party::Member(seen(1)), &mut scanner);
    assert_eq!(known(&BOOK.classify(&scanner)), ["role=dicom-scu"]);
}

#[test]
fn sources_add_up_and_values_stand_against_each_other() {
    let book = book(
        "[rule.a]\nany = [{ hint = \"dhcp.hostname\", is = \"x\" }]\nclass = \"pump\"\nweight = 60\n\
         [rule.b]\nany = [{ hint = \"dhcp.vendor-class\" }]\nclass = \"Pump\"\nweight = 50\n\
         [rule.c]\nany = [{ hint = \"mdns.name\" }]\nclass = \"pump\"\nweight = 60\n\
         [rule.d]\nany = [{ hint = \"http.agent\" }]\nclass = \"monitor\"\nweight = 84\n",
    );
    let class = |hints: &[(HintKind, &str)]| {
        let claims = book.classify(&observed("", hints));
        claims.of(Field::Class).map(|c| (c.value.clone(), c.confidence)).collect::<Vec<_>>()
    };
    let pump = |confidence| ("pump".to_owned(), confidence);
    assert_eq!(class(&[(K::DhcpHostname, "X")]), [pump(60)]);
    // Of one source the strongest counts, of several they add up: 1 - 0.4 * 0.4.
    assert_eq!(class(&[(K::DhcpHostname, "x"), (K::DhcpVendorClass, "y")]), [pump(60)]);
    assert_eq!(class(&[(K::DhcpHostname, "x"), (K::MdnsName, "y")]), [pump(84)]);
    // Odds of 5.25 each: 5.25 / 11.5.
    let both = class(&[(K::DhcpHostname, "x"), (K::MdnsName, "y"), (K::HttpAgent, "z")]);
    assert_eq!(both, [("monitor".to_owned(), 45), pump(45)]);
}

#[test]
fn what_an_operator_confirmed_wins_and_says_so() {
    let mut claims = shipped("02:00:00:00:00:01", &[(K::DhcpHostname, "DCS-935L")]);
    assert_eq!(claims.value(Field::Class), "camera");
    let label = |key: &str, value: &str| (key.parse::<Name>().unwrap(), value.to_owned());
    claims.confirm(&BTreeMap::from([label("class", "door-bell"), label("room", "12")]));
    let class = claims.known(Field::Class).unwrap();
    assert_eq!((class.value.as_str(), class.confidence, class.confirmed), ("door-bell", 100, true));
    assert!(claims.of(Field::Class).any(|claim| claim.value == "camera" && !claim.confirmed));
    // Where it agrees, what speaks for it stays.
    claims.confirm(&BTreeMap::from([label("make", "d-link")]));
    let make = claims.known(Field::Make).unwrap();
    assert!(make.confirmed && !make.evidence.is_empty(), "{make:?}");
    assert_eq!(claims.of(Field::Make).count(), 1);
}

#[test]
fn each_field_says_why() {
    let claims = shipped("b0:c5:54:00:00:01", &[(K::DhcpHostname, "DCS-935L")]);
    let model = claims.known(Field::Model).unwrap();
    assert_eq!(model.value, "DCS-935L");
    assert_eq!(model.evidence[0].to_string(), "dhcp.hostname = \"DCS-935L\"; rule model-hostname");
    let vendor = claims.known(Field::Vendor).unwrap();
    assert_eq!(
        vendor.evidence[0].to_string(),
        "its address begins with b0:c5:54; assigned to D-Link"
    );
}

#[test]
fn an_own_file_adds_and_takes_the_place_of_what_is_shipped() {
    let mut book = Rulebook::shipped();
    book.extend(
        "own.toml",
        "format = 1\n[rule.names-pump]\noff = true\n\
         [rule.our-pumps]\nall = [{ hint = \"dhcp.hostname\", matches = '^PU-(\\d+)$' }, { offers = \"http\" }]\n\
         none = [{ hint = \"smb.os\" }]\nclass = \"infusion-pump\"\nmodel = \"P $1\"\n\
         [maker.acme]\nname = \"Acme\"\naddresses = [\"b0:c5:54:0\"]\n",
    )
    .unwrap();
    let mut pump = observed("b0:c5:54:0f:00:01", &[(K::DhcpHostname, "PU-77")]);
    assert_eq!(book.classify(&pump).value(Field::Class), "unknown");
    pump.offers.insert((Protocol::Tcp, 80));
    let claims = book.classify(&pump);
    assert_eq!(claims.value(Field::Class), "infusion-pump");
    assert_eq!(claims.value(Field::Model), "P 77");
    assert_eq!(claims.value(Field::Vendor), "Acme", "the longer prefix counts");
    pump.add(K::SmbOs, "Windows 5.1");
    assert_ne!(book.classify(&pump).value(Field::Class), "infusion-pump");
    let old = observed("", &[(K::DhcpHostname, "perfusor-1")]);
    assert_eq!(BOOK.classify(&old).value(Field::Class), "infusion-pump");
    assert_eq!(book.classify(&old).value(Field::Class), "unknown");
}

#[test]
fn lists_of_the_ieee_name_makers_by_the_names_that_rules_know() {
    let mut book = Rulebook::shipped();
    let list = "00-00-0F   (hex)\t\tBELKIN INTERNATIONAL INC.\n00000F     (base 16)\t\tBELKIN INTERNATIONAL INC.\n\
        00-00-1F   (hex)\t\tOdd Devices GmbH & Co. KG\n00001F     (base 16)\t\tOdd Devices GmbH & Co. KG\n";
    assert_eq!(book.add_list(list), Ok(2));
    let vendor = |mac: &str| book.vendor(mac.parse().unwrap());
    assert_eq!(vendor("00:00:0f:00:00:01").as_deref(), Some("Belkin"));
    assert_eq!(vendor("00:00:1f:00:00:01").as_deref(), Some("Odd Devices"));
    assert_eq!(vendor("02:00:0f:00:00:01"), None);
    assert!(book.add_list("no list").is_err());
}

#[test]
fn each_mistake_is_named_with_its_place() {
    let with = |rule: &str| problems(&format!("format = 1\n{rule}"));
    for (found, wanted) in [
        (
            with(
                "[rule.x]\nclass = \"ct\"\nall = [\n  { hint = \"dhcp.hostnam\", is = \"a\" },\n]",
            ),
            "rules.toml:5: rule.x: no kind of hint \"dhcp.hostnam\"; did you mean \"dhcp.hostname\"? Nothing was changed.",
        ),
        (with("[rule.x]\nclass = \"ct\""), "rule.x: a rule needs conditions"),
        (with("[rule.x]\nall = [{ hint = \"speaks\" }]"), "rule.x: nothing follows from it"),
        (
            with("[rule.x]\nclas = \"ct\"\nall = [{ hint = \"speaks\" }]"),
            "unknown key \"clas\"; did you mean \"class\"?",
        ),
        (
            with(
                "[rule.x]\nclass = \"ct\"\nall = [{ hint = \"speaks\", is = \"a\", ends = \"b\" }]",
            ),
            "one of \"is\", \"ends\" is enough",
        ),
        (
            with("[rule.x]\nclass = \"ct\"\nall = [{ hint = \"speaks\", matches = \"(\" }]"),
            "is no pattern",
        ),
        (
            with(
                "[rule.x]\nclass = \"ct\"\nall = [{ hint = \"speaks\", matches = '\\w{900}{900}' }]",
            ),
            "is no pattern",
        ),
        (
            with("[rule.x]\nclass = \"ct\"\nall = [{ offers = \"dicm\" }]"),
            "no built-in service and no port \"dicm\"; did you mean \"dicom\"?",
        ),
        (
            with("[rule.x]\nclass = \"ct\"\nall = [{ address = \"00:1\" }]"),
            "begins no Ethernet address",
        ),
        (
            with("[rule.x]\nclass = \"ct\"\nall = [{ maker = \"a\", is = \"b\" }]"),
            "\"is\" is said of hints only",
        ),
        (
            with("[rule.x]\nclass = \"ct\"\nall = [{ maker = \"a\", uses = \"dns\" }]"),
            "a condition is about one of",
        ),
        (with("[rule.x]\nclass = \"ct\"\nall = [\"a\"]"), "\"all\" holds conditions"),
        (
            with("[rule.x]\nclass = \"ct\"\nweight = 100\nall = [{ hint = \"speaks\" }]"),
            "\"weight\" must be a number from 1 to 99",
        ),
        (with("[rule.x]\nclass = 3\nall = [{ hint = \"speaks\" }]"), "\"class\" can't be a number"),
        (with("[maker.x]\naddresses = [\"zz\"]\nname = \"X\""), "begins no Ethernet address"),
        (with("[maker.x]\nwords = [\"x\"]"), "\"name\" is missing"),
        (with("[like.x]\nclass = \"ct\""), "\"traits\" is missing"),
        (with("[rules.x]"), "unknown key \"rules\"; did you mean \"rule\"?"),
        (
            problems("[rule.x]\nclass = \"ct\"\nall = [{ hint = \"speaks\" }]"),
            "begin the file with format = 1",
        ),
        (problems("= 3"), "not TOML"),
    ] {
        assert!(found.contains(wanted), "wanted {wanted:?}, found {found}");
    }
}

proptest! {
    /// The same hints in another order, or several times, are the same claims; and none is ever surer than it can be.
    #[test]
    fn the_order_of_hints_means_nothing(
        mut hints in prop::collection::vec(
            (prop::sample::select(K::ALL), prop::sample::select(vec![
                "DCS-935L", "scu", "scp", "tcp/104", "D-Link", "1.2.840.10008.5.1.4.1.1.2", "Linux", "12", "ü", "",
            ])), 0..20),
        seed in 0_usize..20,
    ) {
        let all = BOOK.classify(&observed("b0:c5:54:00:00:01", &hints));
        if !hints.is_empty() {
            let middle = seed % hints.len();
            hints.rotate_left(middle);
            hints.push(hints[0]);
        }
        prop_assert_eq!(&all, &BOOK.classify(&observed("b0:c5:54:00:00:01", &hints)));
        for claim in &all.list {
            prop_assert!(claim.confidence <= 99 && !claim.evidence.is_empty(), "{:?}", claim);
        }
    }

    /// Whatever is read as rules is refused or taken, and never panics.
    #[test]
    fn any_text_is_read_or_refused(text in "(format = 1\n)?(\\[(rule|maker|like)\\.[a-z]\\]\n)?[a-z\\[\\]{}=\"', 0-9.\n]{0,200}") {
        let _ = Rulebook::default().extend("rules.toml", &text);
    }
}
