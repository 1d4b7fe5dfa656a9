use std::collections::{BTreeMap, BTreeSet};

use anteroom_proto::service::Protocol;
use anteroom_proto::time::UnixMillis;
use proptest::prelude::*;

use super::*;
use crate::decide::{End, Party};
use crate::fixture::{HOUR, NOW, hospital, member_id, name};
use crate::history::{Counts, History, Seen, Way};
use crate::policy::parse;
use crate::resolve::Resolved;

/// A file as makers write them, in the style of the RFC's example.
const FILE: &str = r#"{"ietf-mud:mud":{"mud-version":1,"mud-url":"https://maker.example/pump.json","last-update":"2026-01-01T00:00:00+00:00",
 "cache-validity":48,"is-supported":true,"systeminfo":"An infusion pump","mfg-name":"Maker","extensions":[],
 "from-device-policy":{"access-lists":{"access-list":[{"name":"fr"}]}},"to-device-policy":{"access-lists":{"access-list":[{"name":"to"}]}}},
 "ietf-access-control-list:acls":{"acl":[
 {"name":"fr","type":"ipv4-acl-type","aces":{"ace":[
  {"name":"server","matches":{"ipv4":{"destination-ipv4-network":"10.9.0.5/32","protocol":6},"tcp":{"ietf-mud:direction-initiated":"from-device","destination-port":{"operator":"eq","port":8443}}},"actions":{"forwarding":"accept"}},
  {"name":"cloud","matches":{"ipv4":{"ietf-acldns:dst-dnsname":"Cloud.Maker.example","protocol":6},"tcp":{"destination-port":{"operator":"eq","port":443}}},"actions":{"forwarding":"accept"}},
  {"name":"console","matches":{"ietf-mud:mud":{"my-controller":[null]},"udp":{"destination-port":{"lower-port":6000,"upper-port":6010}}},"actions":{"forwarding":"accept"}},
  {"name":"time","matches":{"ietf-mud:mud":{"controller":"urn:ietf:params:mud:ntp"},"udp":{"destination-port":{"operator":"eq","port":123}}},"actions":{"forwarding":"accept"}},
  {"name":"odd","matches":{"ipv6":{"protocol":6}},"actions":{"forwarding":"accept"}},
  {"name":"no","matches":{"ipv4":{"protocol":6}},"actions":{"forwarding":"drop"}}]}},
 {"name":"to","type":"ipv4-acl-type","aces":{"ace":[
  {"name":"server","matches":{"ipv4":{"source-ipv4-network":"10.9.0.5/32","protocol":6},"tcp":{"ietf-mud:direction-initiated":"from-device","source-port":{"operator":"eq","port":8443}}},"actions":{"forwarding":"accept"}},
  {"name":"web","matches":{"ietf-mud:mud":{"my-controller":[null]},"tcp":{"ietf-mud:direction-initiated":"to-device","destination-port":{"operator":"eq","port":443}}},"actions":{"forwarding":"accept"}}]}}]}}"#;

fn mud() -> Mud {
    Mud::parse("pump.json", FILE.as_bytes()).unwrap()
}

fn port(protocol: Protocol, first: u16, last: u16) -> PortMatch {
    PortMatch { protocol, first, last }
}

#[test]
fn a_makers_file_is_read() {
    let mud = mud();
    let allow = |opens, peer, service| Allow { opens, peer, service };
    let mut wanted = vec![
        allow(
            Opens::Device,
            Peer::Network("10.9.0.5/32".parse().unwrap()),
            port(Protocol::Tcp, 8443, 8443),
        ),
        allow(
            Opens::Device,
            Peer::Dns("cloud.maker.example".into()),
            port(Protocol::Tcp, 443, 443),
        ),
        allow(Opens::Device, Peer::MyController, port(Protocol::Udp, 6000, 6010)),
        allow(
            Opens::Device,
            Peer::Controller("urn:ietf:params:mud:ntp".into()),
            port(Protocol::Udp, 123, 123),
        ),
        allow(Opens::Peer, Peer::MyController, port(Protocol::Tcp, 443, 443)),
    ];
    wanted.sort();
    assert_eq!(mud.allows, wanted);
    assert_eq!(
        (mud.manufacturer.as_deref(), mud.systeminfo.as_deref()),
        (Some("Maker"), Some("An infusion pump"))
    );
    assert_eq!(mud.unread, ["fr odd: it matches by \"ipv6\", which rules don't"]);
}

#[test]
fn bad_files_are_refused_with_their_place() {
    let fails = |text: &str| Mud::parse("m.json", text.as_bytes()).unwrap_err().to_string();
    assert!(fails("").starts_with("m.json:"), "{}", fails(""));
    assert!(
        fails("{\n\"x\": 1}").contains("m.json:2: this is no MUD file (RFC 8520): missing field")
    );
    assert!(fails(&"[".repeat(200_000)).contains("no MUD file"));
    assert!(fails(&" ".repeat(MAX_LEN + 1)).contains("bytes are more than"));
    assert!(
        fails(&FILE.replace("\"mud-version\":1", "\"mud-version\":2")).contains("mud-version 2")
    );
    assert!(
        fails(&FILE.replace("{\"name\":\"to\",\"type\"", "{\"name\":\"other\",\"type\""))
            .contains("names the access list \"to\", and doesn't hold it")
    );
    let entry = r#"{"name":"x","matches":{},"actions":{"forwarding":"accept"}},"#;
    assert!(
        fails(&FILE.replace(
            "{\"name\":\"server\",\"matches\":{\"ipv4\":{\"dest",
            &format!(
                "{}{{\"name\":\"server\",\"matches\":{{\"ipv4\":{{\"dest",
                entry.repeat(MAX_ENTRIES)
            )
        ))
        .contains("entries are more than")
    );
    for odd in ["\"port\":0", "\"port\":70000", "\"port\":\"x\"", "\"lower-port\":9"] {
        let found = Mud::parse("m.json", FILE.replace("\"port\":8443", odd).as_bytes()).unwrap();
        assert_eq!(found.allows.len(), 4, "{odd}: {found:?}");
        assert!(found.unread.len() >= 2, "{odd}: {found:?}");
    }
}

fn seen(history: &mut History, from: Party, to: Party, port: u16, flows: u64) {
    let counts = Counts { flows, packets: 9, packets_back: 9, bytes: 90, bytes_back: 90 };
    let (first, last) = (UnixMillis(NOW.0 - HOUR), NOW);
    history.add(&Seen {
        from,
        to,
        protocol: Protocol::Tcp,
        port,
        way: Way::Clear,
        at: End::From,
        counts,
        first,
        last,
    });
}

#[test]
fn rules_are_drafted_with_what_was_seen_and_what_was_not() {
    let resolved = Resolved::new(&hospital()).unwrap();
    let mut history = History::new(100);
    let pump = Party::Member(member_id(3));
    seen(&mut history, pump, Party::Address([10, 9, 0, 5].into()), 8443, 7);
    seen(&mut history, pump, Party::Address([10, 9, 9, 9].into()), 22, 2);
    let none = BTreeMap::new();
    let found = draft(&resolved, &history, "pump.json", &mud(), "pump", &none, NOW).unwrap();
    assert!(found.text.starts_with(crate::fixture::POLICY), "every line stays");
    assert_eq!(found.rules, ["mud-pump-1-to-outside-10-9-0-5"], "{}", found.text);
    assert!(found.text.contains("# Seen here: 7 flows of 1 device.\n[rule.mud-pump-1-to-outside-10-9-0-5]\nfrom = \"pump-1\""), "{}", found.text);
    assert_eq!(found.already, 1, "time is the site's");
    assert_eq!(found.beyond, ["tcp/22 to 10.9.9.9: Seen here: 2 flows of 1 device."]);
    let asked = found.questions.join("\n");
    for wanted in [
        "cloud.maker.example (a name",
        "udp/6000-6010 to my-controller",
        "tcp/443 from my-controller",
        "ipv6",
    ] {
        assert!(asked.contains(wanted), "{wanted}: {asked}");
    }
    // Told who is meant, they are rules, and a second time there is nothing to add.
    let peers = BTreeMap::from([
        ("my-controller".to_owned(), name("hl7-1")),
        ("cloud.maker.example".to_owned(), name("archive")),
    ]);
    let found = draft(&resolved, &history, "pump.json", &mud(), "pump", &peers, NOW).unwrap();
    assert_eq!(found.rules.len(), 4, "{}", found.text);
    let again = Resolved::from_text(&resolved.model, "p", &found.text).unwrap();
    let twice = draft(&again, &history, "pump.json", &mud(), "pump", &peers, NOW).unwrap();
    assert_eq!((twice.rules.len(), twice.already), (0, 5), "{}", twice.text);
    parse("p", &twice.text).unwrap();
    let strange =
        draft(&resolved, &history, "pump.json", &mud(), "no such class", &peers, NOW).unwrap();
    assert!(strange.text.contains("[segment.no-such-class]"), "{}", strange.text);
}

#[test]
fn what_is_drafted_is_reviewed_and_named_as_a_suggestion_would() {
    let mut model = hospital();
    let peer = Peer::Network("10.9.0.5/32".parse().unwrap());
    let tcp = |first| Allow {
        opens: Opens::Device,
        peer: peer.clone(),
        service: port(Protocol::Tcp, first, first),
    };
    let drafted = |model: &crate::model::Model, allows: Vec<Allow>| {
        let resolved = Resolved::new(model).unwrap();
        let file = Mud { allows, ..Mud::default() };
        draft(&resolved, &History::new(1), "m.json", &file, "pump", &BTreeMap::new(), NOW).unwrap()
    };
    let some = drafted(&model, vec![tcp(104)]);
    for words in [
        "[external.outside-10-9-0-5]\nprefixes = [\"10.9.0.5/32\"]\nreview = 2027-11-22\n",
        "[service.tcp-104]\nports = [\"tcp/104\"]\n",
        "services = [\"tcp-104\"]",
    ] {
        assert!(some.text.contains(words), "{words}: {}", some.text);
    }
    let all = drafted(&model, vec![tcp(104), tcp(11112)]);
    assert!(all.text.contains("services = [\"dicom\"]"), "named once: {}", all.text);
    assert!(!all.text.contains("[service.tcp"), "{}", all.text);
    // A rule that is over opens nothing, and what opens the same again says so.
    for (end, wanted) in [("2030-01-01T00:00:00Z", 0), ("2026-11-01T00:00:00Z", 1)] {
        model.policy = format!(
            "{}[external.out]\nprefixes = [\"10.9.0.5/32\"]\n[rule.old]\nfrom = \"pump-1\"\nto = \"out\"\nservices = [\"dicom\"]\nclear = true\nexpires = {end}\n",
            crate::fixture::POLICY
        );
        let found = drafted(&model, vec![tcp(104)]);
        assert_eq!((found.rules.len(), found.already), (wanted, 1 - wanted), "{}", found.text);
        let said = "# Somebody wrote an end to what this opens again: rule.old opened it until 2026-11-01.\n";
        assert_eq!(found.text.contains(said), wanted == 1, "{}", found.text);
        let other = drafted(&model, vec![tcp(443)]);
        assert!(!other.text.contains("opens again"), "{}", other.text);
    }
}

#[test]
fn infrastructure_opens_its_own_service_to_devices_of_sites_that_have_it_alone() {
    let mut model = hospital();
    let drafted = |model: &crate::model::Model, opens, uri: &str, service| {
        let resolved = Resolved::new(model).unwrap();
        let allows = vec![Allow { opens, peer: Peer::Controller(uri.into()), service }];
        let file = Mud { allows, ..mud() };
        let file = Mud { unread: Vec::new(), ..file };
        let none = BTreeMap::new();
        let found =
            draft(&resolved, &History::new(1), "m.json", &file, "pump", &none, NOW).unwrap();
        assert_eq!((found.rules.len(), found.already + found.questions.len()), (0, 1), "{found:?}");
        found.questions.join("")
    };
    let (dns, ntp) = ("urn:ietf:params:mud:dns", "urn:ietf:params:mud:ntp");
    let (name_port, time_port) = (port(Protocol::Udp, 53, 53), port(Protocol::Udp, 123, 123));
    let web = port(Protocol::Tcp, 443, 443);
    assert_eq!(drafted(&model, Opens::Device, dns, name_port), "");
    assert_eq!(drafted(&model, Opens::Device, dns, port(Protocol::Tcp, 53, 53)), "");
    assert_eq!(drafted(&model, Opens::Device, ntp, time_port), "");
    for (opens, uri, service, wanted) in [
        (Opens::Device, dns, web, "tcp/443 to urn:ietf:params:mud:dns: no infrastructure"),
        (Opens::Device, ntp, name_port, "udp/53 to urn:ietf:params:mud:ntp: no infrastructure"),
        (Opens::Peer, ntp, time_port, "udp/123 from urn:ietf:params:mud:ntp: no infrastructure"),
    ] {
        let asked = drafted(&model, opens, uri, service);
        assert!(asked.contains(wanted), "{wanted}: {asked}");
    }
    // A site with name servers and no time server; another one of the class's with neither.
    let whole = model.policy.clone();
    model.policy = whole.replace("ntp = [\"10.20.0.123\"]\n", "");
    assert_ne!(model.policy, whole);
    assert_eq!(drafted(&model, Opens::Device, dns, name_port), "");
    let asked = drafted(&model, Opens::Device, ntp, time_port);
    assert!(asked.contains("name the servers of site \"north\""), "{asked}");
    model.policy = whole;
    model.gateways.extend([crate::fixture::gateway(9, "away-1", "south")]);
    model.devices.extend([crate::fixture::device(90, "p", 9, "p1", [10, 30, 1, 9], "pump")]);
    let asked = drafted(&model, Opens::Device, dns, name_port);
    assert!(asked.contains("name the servers of site \"south\""), "{asked}");
}

#[test]
fn the_policys_rules_for_a_class_become_a_file_and_come_back() {
    let model = hospital();
    let resolved = Resolved::new(&model).unwrap();
    let members = BTreeSet::from([member_id(1)]);
    let made = of_class(&resolved, "ct", &members, "https://hospital.example/ct.json", NOW);
    let text = made.to_json();
    let read = Mud::parse("ct.json", text.as_bytes()).unwrap();
    assert_eq!(read, made, "{text}");
    let peers: Vec<String> = made.allows.iter().map(|allow| allow.peer.word()).collect();
    for wanted in [
        "10.20.4.20",
        "urn:x-anteroom:segment:pacs",
        "urn:ietf:params:mud:dns",
        "urn:ietf:params:mud:ntp",
    ] {
        assert!(peers.iter().any(|peer| peer == wanted), "{wanted}: {peers:?}");
    }
    assert!(
        made.allows.iter().any(|allow| allow.opens == Opens::Peer && allow.service.first == 4006)
    );
    // Behind the same policy it opens nothing new.
    let found =
        draft(&resolved, &History::new(1), "ct.json", &read, "ct", &BTreeMap::new(), NOW).unwrap();
    assert_eq!(found.rules, Vec::<String>::new(), "{}", found.text);
    assert!(found.questions.is_empty(), "{:?}", found.questions);
}

fn any_peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        (any::<u32>(), 1u8..=32)
            .prop_map(|(address, len)| Ipv4Net::new((address | 1 << 31).into(), len)
                .unwrap()
                .trunc())
            .prop_map(Peer::Network),
        "[a-z]{1,8}\\.example".prop_map(Peer::Dns),
        "urn:[ -~]{0,20}".prop_map(Peer::Controller),
        Just(Peer::MyController),
        Just(Peer::SameManufacturer),
        "[a-z]{1,9}".prop_map(Peer::Manufacturer),
        "https://[a-z]{1,9}".prop_map(Peer::Model),
        Just(Peer::LocalNetworks),
        Just(Peer::Anybody),
    ]
}

fn any_allow() -> impl Strategy<Value = Allow> {
    let ports = prop_oneof![
        (1u16.., 0u16..100).prop_map(|(first, more)| port(
            Protocol::Tcp,
            first,
            first.saturating_add(more)
        )),
        (1u16.., 0u16..100).prop_map(|(first, more)| port(
            Protocol::Udp,
            first,
            first.saturating_add(more)
        )),
        Just(port(Protocol::Tcp, 1, u16::MAX)),
        Just(port(Protocol::Udp, 1, u16::MAX)),
        Just(port(Protocol::IcmpEcho, 0, 0)),
    ];
    (any::<bool>(), any_peer(), ports).prop_map(|(device, peer, service)| Allow {
        opens: if device { Opens::Device } else { Opens::Peer },
        peer,
        service,
    })
}

proptest! {
    #[test]
    fn what_was_written_is_read_back(allows in proptest::collection::btree_set(any_allow(), 0..12), supported in any::<bool>(), info in proptest::option::of("[ -~]{1,60}")) {
        let mud = Mud {
            url: "https://maker.example/x".into(),
            last_update: "2026-01-01T00:00:00Z".into(),
            cache_validity: 48,
            is_supported: supported,
            systeminfo: info,
            allows: allows.into_iter().collect(),
            ..Mud::default()
        };
        prop_assert_eq!(Mud::parse("x", mud.to_json().as_bytes()), Ok(mud));
    }

    #[test]
    fn broken_files_are_read_without_a_panic_and_drafts_stay_policies(at in any::<usize>(), with in any::<u8>()) {
        let mut bytes = FILE.as_bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] = with;
        if let Ok(mud) = Mud::parse("x", &bytes) {
            let resolved = Resolved::new(&hospital()).unwrap();
            let peers = BTreeMap::from([("my-controller".to_owned(), name("hl7-1"))]);
            prop_assert!(draft(&resolved, &History::new(1), "x", &mud, "pump", &peers, NOW).is_ok());
        }
    }
}
