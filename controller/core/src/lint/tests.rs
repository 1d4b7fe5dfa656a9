use anteroom_proto::approval::Place;
use anteroom_proto::mode::Mode;
use anteroom_proto::rhythm::Rhythm;
use anteroom_proto::rollout::{Expected, Trial};
use anteroom_proto::v1::telemetry::Sighting;
use insta::assert_snapshot;
use ipnet::Ipv4Net;

use super::*;
use crate::coverage::{Wanted, coverage};
use crate::edit::NewHost;
use crate::fixture::{
    HOUR, NOW, client, device, gateway, gateway_id, hospital, mac, member_id, name, set_modes,
};
use crate::history::History;
use crate::model::{Attachment, Device, Model};

fn found(model: &Model, evidence: &Evidence) -> String {
    let resolved = Resolved::new(model).unwrap();
    let lines = lint(&resolved, evidence, NOW).into_iter().map(|finding| {
        let severity = match finding.severity {
            Severity::Warning => "warning",
            Severity::Refusal => "refusal",
            Severity::Error => "error",
        };
        format!("{severity} [{}] {finding}\n", finding.code)
    });
    lines.collect()
}

fn linted(change: impl FnOnce(&mut Model)) -> String {
    let mut model = hospital();
    change(&mut model);
    found(&model, &Evidence::default())
}

#[test]
fn a_sound_model_gives_nothing_to_say() {
    assert_eq!(linted(|_| {}), "");
    assert_eq!(linted(|model| set_modes(model, Mode::Protect, &["ct-1", "pacs-1", "hl7-1"])), "");
    assert_eq!(
        linted(|model| set_modes(model, Mode::Enforce, &["ct-1", "monitor-1", "hl7-1"])),
        ""
    );
}

#[test]
fn a_revoked_host_is_a_client_that_was_revoked_and_nothing_to_confirm_elsewhere() {
    assert_snapshot!(linted(|model| {
        let (id, agent) = gateway(200, "reading-1", "north");
        let host = NewHost {
            member: member_id(201),
            address: [10, 20, 9, 8].into(),
            labels: std::collections::BTreeMap::new(),
            approved_at: NOW,
        };
        model.approve_host(id, agent, host, 7).unwrap();
        let rule = "[rule.reading]\nfrom = \"reading-1\"\nto = \"ct-1\"\nservices = [\"dicom\"]\n";
        model.policy.push_str(rule);
        model.revoke_host("reading-1").unwrap();
    }), @r#"
    warning [revoked-client] rule.reading: "reading-1" is named here, a client that was revoked: take it out.
    warning [rule-matches-nobody] rule.reading: It opens nothing, because nobody is in "reading-1": label devices or list them.
    "#);
}

#[test]
fn rules_that_do_nothing_are_named() {
    assert_snapshot!(linted(|model| model.policy.push_str(
        "[segment.empty]\nmatch = { label.class = \"mrx\" }\n\
         [rule.a]\nfrom = \"empty\"\nto = \"pacs-1\"\nservices = [\"dicom\"]\n\
         [rule.b]\nfrom = \"archive\"\nto = \"archive\"\nservices = [\"dicom\"]\nclear = true\n\
         [rule.c]\nfrom = \"ct-1\"\nto = \"hl7-1\"\nservices = [\"hl7\"]\nexpires = 2026-11-21T23:59:59Z\n"
    )), @r#"
    warning [rule-expired] rule.c: It ended at 2026-11-21T23:59:59Z and opens nothing: remove it, or give it a new end.
    warning [rule-matches-nobody] rule.a: It opens nothing, because nobody is in "empty": label devices or list them.
    warning [rule-without-device] rule.b: Both of its ends are externals, so no gateway stands between them and the rule does nothing.
    "#);
}

#[test]
fn externals_want_a_look_and_a_word() {
    assert_snapshot!(linted(|model| {
        model.policy = model.policy.replace("2027-03-01", "2026-11-01");
        model.policy.push_str("[external.wide]\nprefixes = [\"10.20.4.8/29\"]\n[rule.a]\nfrom = \"pump-1\"\nto = \"wide\"\nservices = [\"https\"]\n");
    }), @r#"
    warning [external-holds-device] external.wide: 10.20.4.8/29 holds 10.20.4.10, which is pacs-1's: gateways that know the device take it for the device, others for the external. Take it out of the external.
    warning [external-review] external.archive: It was to be looked at by 2026-11-01: is it still there, and does it have a gateway by now? Then set a new day.
    warning [external-without-clear] rule.a: Traffic with an external is in the clear. Devices in "pump-1" lose it once they go to enforce, unless the rule says clear = true.
    "#);
}

#[test]
fn sites_that_arent_there_are_named() {
    assert_snapshot!(linted(|model| model.policy.push_str("[infrastructure.nort]\n[segment.a]\nmatch = { site = \"elsewhere\" }\n")), @r#"
    warning [unknown-site] infrastructure.nort: No gateway stands in a site "nort"; did you mean "north"?
    warning [unknown-site] segment.a: No gateway stands in a site "elsewhere" yet.
    "#);
}

#[test]
fn devices_of_a_revoked_gateway_are_named_where_the_policy_names_them() {
    assert_snapshot!(linted(|model| { model.revoke_gateway("server-room").unwrap(); }), @r#"
    warning [detached-device] rule.alarms: "hl7-1" is named here, but its gateway server-room was revoked, so nothing opens for it: confirm it behind another gateway, or take it out.
    warning [detached-device] segment.pacs: "pacs-1" is named here, but its gateway server-room was revoked, so nothing opens for it: confirm it behind another gateway, or take it out.
    warning [rule-matches-nobody] rule.alarms: It opens nothing, because nobody is in "hl7-1": label devices or list them.
    "#);
}

#[test]
fn tests_of_the_policy_fail_with_what_contradicts_them() {
    assert_snapshot!(linted(|model| model.policy.push_str(
        "[rule.a]\nfrom = \"pump-1\"\nto = \"pacs\"\nservices = [\"dicom\"]\nclear = true\n\
         [test.b]\nfrom = \"ct\"\nto = \"pacs\"\nservices = [\"dicom\", \"https\"]\nexpect = \"allow\"\n\
         [test.c]\nfrom = \"ct\"\nto = \"pacs\"\nservices = [\"dicom\"]\nexpect = \"allow\"\n\
         [service.many]\nports = [\"tcp/1-65535\"]\n\
         [test.d]\nfrom = \"pump-1\"\nto = \"archive\"\nservices = [\"many\"]\nexpect = \"deny\"\n\
         [segment.nobody]\n[test.e]\nfrom = \"nobody\"\nto = \"pacs\"\nservices = [\"dicom\"]\nexpect = \"deny\"\n"
    )), @r#"
    error [test-failed] test.b: It expects allow, but no rule allows ct-1 to pacs-1: tcp/443.
    error [test-failed] test.d: It expects deny, but rule.a allows pump-1 to archive: tcp/104.
    error [test-failed] test.pump-kept-from-pacs: It expects deny, but rule.a allows pump-1 to pacs-1: tcp/104.
    warning [test-of-nobody] test.e: It proves nothing, because nobody is in "nobody".
    "#);
}

#[test]
fn an_address_belongs_to_one_device_of_a_site() {
    let twice = |modes: &'static [&'static str]| {
        linted(|model| {
            model.devices.get_mut(&member_id(3)).unwrap().addresses =
                vec!["10.20.1.10/32".parse().unwrap()];
            set_modes(model, Mode::Protect, modes);
        })
    };
    assert_snapshot!(twice(&[]), @"warning [duplicate-address] site north: ct-1, pump-1 have the same address, 10.20.1.10: give each its own before one leaves observe. To share one, as a cluster does, they must be behind one gateway, in one mode and named by the same rules.");
    assert_snapshot!(twice(&["pump-1"]), @"error [duplicate-address] site north: ct-1, pump-1 have the same address, 10.20.1.10: give each its own before one leaves observe. To share one, as a cluster does, they must be behind one gateway, in one mode and named by the same rules.");
}

#[test]
fn a_cluster_behind_one_gateway_may_share_an_address() {
    type Change = fn(&mut Model);
    let shared = |change: Change| {
        linted(move |model| {
            let first = model.devices[&member_id(1)].clone();
            let mut second = first.clone();
            second.name = name("ct-2");
            second.attachment.mac.0[5] ^= 0x40;
            second.attachment.port = name("port7");
            second.addresses.insert(0, "10.20.1.77/32".parse().unwrap());
            model.devices.insert(member_id(41), second);
            set_modes(model, Mode::Protect, &["ct-1", "ct-2"]);
            change(model);
        })
    };
    let words = shared(|_| ());
    assert!(
        words.contains(
            "warning [shared-address] site north: ct-1, ct-2 share the address 10.20.1.10"
        ),
        "{words}"
    );
    assert!(!words.contains("duplicate-address"), "{words}");
    let apart: [(&str, Change); 3] = [
        ("other mode", |model| set_modes(model, Mode::Observe, &["ct-2"])),
        ("other gateway", |model| {
            let there = model.devices[&member_id(4)].attachment.gateway;
            model.devices.get_mut(&member_id(41)).unwrap().attachment.gateway = there;
        }),
        ("other rules", |model| {
            model.devices.get_mut(&member_id(41)).unwrap().labels.clear();
        }),
    ];
    for (what, change) in apart {
        let words = shared(change);
        assert!(words.contains("error [duplicate-address]"), "{what}: {words}");
    }
}

#[test]
fn two_sites_with_one_address_cant_be_told_apart_at_one_gateway() {
    let south = |address: [u8; 4], class: &'static str| {
        linted(move |model| {
            model.gateways.extend([gateway(4, "annex", "south")]);
            model.devices.extend([device(7, "south-1", 4, "port1", address, class)]);
        })
    };
    assert_snapshot!(south([10, 20, 2, 11], "monitor"), @"error [ambiguous-address] gateway server-room: Its devices share rules with monitor-1 (site north) and with south-1 (site south), and 10.20.2.11 could mean either: translated addresses aren't there yet, so keep one of them out of its rules.");
    assert_eq!(south([10, 20, 2, 11], "pump"), "", "nobody sees both");
    assert_snapshot!(linted(|model| {
        model.gateways.extend([gateway(4, "annex", "south")]);
        model.devices.extend([device(7, "south-1", 4, "port1", [10, 20, 2, 0], "monitor")]);
        model.devices.get_mut(&member_id(7)).unwrap().addresses = vec!["10.20.2.0/24".parse().unwrap()];
    }), @"error [ambiguous-address] gateway server-room: Its devices share rules with south-1 (site south) and with monitor-1 (site north), and 10.20.2.0/24 could mean either: translated addresses aren't there yet, so keep one of them out of its rules.");
}

#[test]
fn a_port_has_one_mode() {
    let shared = |enforced: &'static [&'static str]| {
        linted(|model| {
            model.devices.get_mut(&member_id(2)).unwrap().attachment.port = name("port1");
            set_modes(model, Mode::Enforce, enforced);
        })
    };
    assert_eq!(shared(&[]), "");
    assert_snapshot!(shared(&["ct-1"]), @"error [port-mixed-modes] port1 of gateway imaging: ct-1 (enforce), mri-1 (observe) share it, and a port has one mode: `anteroom device mode ct-1 mri-1 enforce` changes them together, or give each a port of its own.");
    assert_snapshot!(shared(&["ct-1", "mri-1"]), @"warning [port-shared] port1 of gateway imaging: ct-1 (enforce), mri-1 (enforce) share it, so nothing keeps them from each other.");
}

fn expected(port: u16) -> Expected {
    Expected { remote: [10, 20, 4, 11].into(), outbound: true, protocol: 6, port }
}

#[test]
fn a_trial_that_is_measured_by_nothing_or_by_a_part_is_named() {
    let measured = |expects: u16| {
        linted(|model| {
            model.set_mode("ct-1", Mode::Protect, 2).unwrap();
            let expects = (1..=expects).map(expected).collect();
            model.enforce_on_trial("ct-1", 60_000, expects, Place::new(0, 3)).unwrap();
        })
    };
    let nothing = "warning [trial-measured-by-nothing] device ct-1: No connection of it";
    assert!(measured(0).contains(nothing), "{}", measured(0));
    assert!(!measured(1).contains("trial-measured"), "{}", measured(1));
    let part = "warning [trial-measured-in-part] device ct-1: Its trial is measured by 256";
    assert!(measured(300).contains(part), "{}", measured(300));
}

#[test]
fn devices_of_a_port_are_on_one_trial_or_on_none() {
    let shared = |trials: &'static [(&'static str, u64)]| {
        linted(|model| {
            model.devices.get_mut(&member_id(2)).unwrap().attachment.port = name("port1");
            set_modes(model, Mode::Enforce, &["ct-1", "mri-1"]);
            for (device, since) in trials {
                let trial = Trial {
                    since: Place::new(0, *since),
                    within: 60_000,
                    back_to: Mode::Protect,
                    expects: vec![expected(104)],
                };
                let (id, _) = model.device_named(device).unwrap();
                model.devices.get_mut(&id).unwrap().rollout.trial = Some(trial);
            }
        })
    };
    assert!(!shared(&[("ct-1", 7), ("mri-1", 7)]).contains("error"));
    assert!(shared(&[("ct-1", 7), ("mri-1", 8)]).contains("error [port-mixed-trials]"));
    assert_snapshot!(shared(&[("ct-1", 7)]), @"error [port-mixed-trials] port1 of gateway imaging: ct-1 (enforce), mri-1 (enforce) share it, and not all of them are on the same trial: a port has one mode, so none could go back by itself. `anteroom device mode ct-1 mri-1 protect`, and then `anteroom device mode ct-1 mri-1 enforce --confirm-within TIME` try them together, `anteroom device keep` confirms together what is on trial.");
}

#[test]
fn enforce_wants_peers_that_tunnel_or_rules_that_say_clear() {
    assert_snapshot!(linted(|model| set_modes(model, Mode::Enforce, &["monitor-1"])), @"refusal [clear-unasked] rule.alarms: monitor-1 is to be in enforce, but hl7-1 is only observed, so the rule's traffic between them would be dropped: `anteroom device mode hl7-1 protect` first, or write clear = true in the rule and `anteroom policy apply policy.toml`.");
    assert_snapshot!(linted(|model| {
        model.policy = model.policy.replace("clear = true\n", "");
        set_modes(model, Mode::Enforce, &["ct-1"]);
    }), @r"
    refusal [clear-unasked] rule.ct-to-pacs: ct-1 is to be in enforce, but pacs-1 is only observed, so the rule's traffic between them would be dropped: `anteroom device mode pacs-1 protect` first, or write clear = true in the rule and `anteroom policy apply policy.toml`.
    refusal [clear-unasked] rule.ct-to-pacs: ct-1 is to be in enforce, but traffic with archive is in the clear, so it would be dropped: write clear = true in the rule and `anteroom policy apply policy.toml`, or put a gateway in front of the other end.
    refusal [clear-unasked] rule.pacs-to-ct: ct-1 is to be in enforce, but pacs-1 is only observed, so the rule's traffic between them would be dropped: `anteroom device mode pacs-1 protect` first, or write clear = true in the rule and `anteroom policy apply policy.toml`.
    refusal [clear-unasked] rule.pacs-to-ct: ct-1 is to be in enforce, but traffic with archive is in the clear, so it would be dropped: write clear = true in the rule and `anteroom policy apply policy.toml`, or put a gateway in front of the other end.
    ");
    assert_snapshot!(linted(|model| {
        model.policy = model.policy.replace("clear = true\n", "");
        set_modes(model, Mode::Enforce, &["ct-1"]);
        set_modes(model, Mode::Protect, &["pacs-1"]);
    }), @r"
    refusal [clear-unasked] rule.ct-to-pacs: ct-1 is to be in enforce, but traffic with archive is in the clear, so it would be dropped: write clear = true in the rule and `anteroom policy apply policy.toml`, or put a gateway in front of the other end.
    refusal [clear-unasked] rule.pacs-to-ct: ct-1 is to be in enforce, but traffic with archive is in the clear, so it would be dropped: write clear = true in the rule and `anteroom policy apply policy.toml`, or put a gateway in front of the other end.
    ");
}

#[test]
fn enforce_wants_a_day_of_watching() {
    let watched = |hours: u64| {
        linted(|model| {
            let found = model.devices.get_mut(&member_id(3)).unwrap();
            found.mode = Mode::Enforce;
            found.confirmed_at = UnixMillis(NOW.0 - hours * HOUR);
        })
    };
    assert_snapshot!(watched(23), @"refusal [observed-too-briefly] device pump-1: It has been watched since 2026-11-21T01:00:00Z only: enforce wants 24 hours, so that what happens once a day has been seen. Until 2026-11-22T01:00:00Z `anteroom device mode pump-1 protect` is as far as it goes; to go on all the same, `anteroom device mode pump-1 enforce --force --reason WHY`.");
    assert_eq!(watched(24), "");
}

#[test]
fn enforce_wants_what_is_expected_to_have_been_seen() {
    const DAY: u64 = 24 * HOUR;
    let mut model = hospital();
    let pump = model.devices.get_mut(&member_id(3)).unwrap();
    pump.mode = Mode::Enforce;
    pump.confirmed_at = UnixMillis(NOW.0 - 50 * DAY);
    // One edge, each day of so many until now.
    let judged = |days: u64| {
        let mut rhythm = Rhythm::default();
        (0..days).for_each(|back| {
            rhythm.record(UnixMillis(NOW.0 - back * DAY), UnixMillis(NOW.0 - back * DAY));
        });
        let edges = (days > 0).then(|| Edge {
            gateway: gateway_id(2),
            mac: mac(3),
            member: Some(member_id(3)),
            local: [10, 20, 2, 10].into(),
            remote: [10, 20, 4, 10].into(),
            remote_member: None,
            outbound: true,
            protocol: 6,
            port: 104,
            verdict: anteroom_proto::verdict::Verdict::Clear,
            rule: None,
            flows: days,
            packets_out: days,
            packets_in: days,
            bytes_out: days,
            bytes_in: days,
            first: UnixMillis(NOW.0 - days * DAY + DAY),
            last: NOW,
            rhythm,
        });
        let resolved = Resolved::new(&model).unwrap();
        let edges: Vec<Edge> = edges.into_iter().collect();
        let history = History::of(&resolved, &edges, 10, NOW);
        let coverage = coverage(&resolved, &history, &Wanted::default(), NOW);
        found(&model, &Evidence { edges, coverage, ..Evidence::default() })
    };
    assert_snapshot!(judged(5), @"refusal [observed-too-briefly] device pump-1: Of what is expected of it 50 % was seen, and enforce may cut off the rest: watched for 5 days of the 14 that are asked for, no end of a month was watched. Until that was watched `anteroom device mode pump-1 protect` is as far as it goes; to go on all the same, `anteroom device mode pump-1 enforce --force --reason WHY`.");
    assert!(judged(0).contains("seen on 0 days"), "{}", judged(0));
    assert_eq!(judged(45), "");
}

#[test]
fn enforce_wants_no_traffic_that_rules_cant_carry() {
    let sighting = |number: u32, kinds: &[&str]| SightingRecord {
        gateway: gateway_id(2),
        sighting: Sighting {
            port: name("port1"),
            mac: mac(number),
            vlan: None,
            addresses: Vec::new(),
            prefix_len: None,
            router: None,
            member: None,
            held: false,
            kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            claim: None,
            first_seen: NOW,
            last_seen: NOW,
        },
        first_seen: NOW,
    };
    let evidence = Evidence {
        sightings: vec![sighting(3, &["ipv6", "broadcast"]), sighting(4, &["tagged"])],
        ..Evidence::default()
    };
    let mut model = hospital();
    assert_eq!(found(&model, &evidence), "");
    set_modes(&mut model, Mode::Enforce, &["pump-1"]);
    assert_snapshot!(found(&model, &evidence), @"refusal [kinds-not-carried] device pump-1: It was seen to use what no rule carries and enforce drops: broadcast, ipv6. `anteroom flows pump-1` shows with whom it speaks. What needs it can't be enforced: `anteroom device mode pump-1 protect`; if nothing does, to go on all the same, `anteroom device mode pump-1 enforce --force --reason WHY`.");
}

#[test]
fn who_was_held_at_an_enforced_port_may_join_it_unwatched() {
    let mut model = hospital();
    set_modes(&mut model, Mode::Enforce, &["pump-1"]);
    let pump = model.devices[&member_id(3)].clone();
    let new = Device {
        name: name("pump-9"),
        attachment: Attachment { mac: mac(99), ..pump.attachment.clone() },
        addresses: vec!["10.20.2.99/32".parse().unwrap()],
        confirmed_at: NOW,
        ..pump
    };
    let at = new.attachment.clone();
    assert_eq!(model.neighbour_at(&at).map(|device| device.name.as_str()), Some("pump-1"));
    model.confirm_device(member_id(99), new).unwrap();
    let seen = |held, member, port: &str| SightingRecord {
        gateway: at.gateway,
        sighting: Sighting {
            port: name(port),
            mac: at.mac,
            vlan: at.vlan,
            addresses: Vec::new(),
            prefix_len: None,
            router: None,
            member,
            held,
            kinds: vec!["broadcast".into()],
            claim: None,
            first_seen: NOW,
            last_seen: NOW,
        },
        first_seen: NOW,
    };
    let with = |record| {
        let evidence = Evidence { sightings: vec![record], ..Evidence::default() };
        found(&model, &evidence)
    };
    let (port, elsewhere) = (at.port.as_str(), "port8");
    let held = with(seen(true, None, port));
    assert!(held.contains("warning [held-until-now] device pump-9"), "{held}");
    assert!(!held.contains("refusal") && !held.contains("error"), "{held}");
    // Whose traffic passes, or did before somebody confirmed it, is watched like any other.
    for (what, record) in [
        ("not held", seen(false, None, port)),
        ("confirmed", seen(true, Some(member_id(99)), port)),
        ("held elsewhere", seen(true, None, elsewhere)),
    ] {
        let found = with(record);
        assert!(found.contains("refusal [observed-too-briefly] device pump-9"), "{what}: {found}");
        assert!(found.contains("refusal [kinds-not-carried] device pump-9"), "{what}: {found}");
    }
    // Nor is a gateway's old word believed of one that was confirmed before and whose traffic has passed since.
    let resolved = Resolved::new(&model).unwrap();
    let evidence = Evidence { sightings: vec![seen(true, None, port)], ..Evidence::default() };
    for (mode, believed) in [(Mode::Observe, false), (Mode::Protect, false), (Mode::Enforce, true)]
    {
        let mut before = model.clone();
        set_modes(&mut before, mode, &["pump-1", "pump-9"]);
        let found = lint_change(Some(&before), &resolved, &evidence, NOW);
        let has = |code: &str| found.iter().any(|one| one.code == code);
        assert_eq!(has("held-until-now"), believed, "{mode}: {found:?}");
        assert_eq!(has("observed-too-briefly"), !believed, "{mode}: {found:?}");
    }
}

#[test]
fn findings_are_bounded_kind_by_kind() {
    use std::fmt::Write as _;
    let text = linted(|model| {
        for at in 0..MAX_FINDINGS + 50 {
            let _ = writeln!(model.policy, "[infrastructure.s{at}]");
        }
    });
    assert_eq!(text.lines().count(), MAX_FINDINGS);
}

#[test]
fn networks_behind_two_devices_dont_overlap() {
    let behind = |nets: [(u32, &'static str); 2], modes: &'static [&'static str]| {
        linted(move |model| {
            for (number, net) in nets {
                let device = model.devices.get_mut(&member_id(number)).unwrap();
                device.addresses.push(net.parse().unwrap());
            }
            set_modes(model, Mode::Protect, modes);
        })
    };
    assert_snapshot!(behind([(1, "10.99.0.0/16"), (3, "10.99.5.0/24")], &[]), @"warning [overlapping-networks] site north: 10.99.5.0/24 behind pump-1 lies within 10.99.0.0/16 behind ct-1: an address in both could mean either. Give each device the part that is its alone.");
    assert_snapshot!(behind([(1, "10.99.0.0/16"), (3, "10.99.5.0/24")], &["pump-1"]), @"error [overlapping-networks] site north: 10.99.5.0/24 behind pump-1 lies within 10.99.0.0/16 behind ct-1: an address in both could mean either. Give each device the part that is its alone.");
    let same = behind([(1, "10.99.5.0/24"), (3, "10.99.5.0/24")], &["pump-1"]);
    assert!(same.contains("error [overlapping-networks]"), "{same}");
    assert_eq!(behind([(1, "10.99.4.0/24"), (3, "10.99.5.0/24")], &["pump-1"]), "", "apart");
    assert_eq!(behind([(3, "10.99.0.0/16"), (3, "10.99.5.0/24")], &["pump-1"]), "", "one device");
}

#[test]
fn what_the_history_lacks_is_said() {
    let mut model = hospital();
    set_modes(&mut model, Mode::Enforce, &["ct-1"]);
    let with = |turned_away| found(&model, &Evidence { turned_away, ..Evidence::default() });
    let text = with(4022);
    assert!(text.contains("warning [history-incomplete] flow history: 4022 edges"), "{text}");
    assert!(!with(0).contains("history-incomplete"));
}

#[test]
fn a_member_with_a_servers_address_is_told() {
    let listed = |before: &'static str, site: &'static str| {
        linted(move |model| {
            let changed = model.policy.replace(before, "10.20.2.10");
            assert_ne!(changed, model.policy);
            model.policy = changed.replace("[infrastructure.north]", site);
        })
    };
    let found = listed("10.20.0.123", "[infrastructure.north]");
    assert!(found.starts_with("refusal [infrastructure-is-member] infrastructure.north: 10.20.2.10, under ntp, is also the address of pump-1"), "{found}");
    let found = listed("10.20.0.123", "[infrastructure.south]");
    assert!(!found.contains("infrastructure-is-member"), "another site's: {found}");
    let found = linted(|model| {
        model.policy = model.policy.replace("dhcp = [\"10.20.0.2\"]", "dhcp = [\"10.20.2.10\"]");
    });
    assert!(found.starts_with("warning [infrastructure-is-member]"), "{found}");
}

#[test]
fn devices_may_share_a_dynamic_prefix_and_an_external_may_not_cover_it() {
    let dynamic = |external: &'static str, modes: &'static [&'static str]| {
        linted(move |model| {
            for number in [3, 4] {
                model.devices.get_mut(&member_id(number)).unwrap().addresses =
                    vec!["10.20.2.0/24".parse().unwrap()];
            }
            model.policy = model.policy.replace("10.20.4.20/32", external);
            set_modes(model, Mode::Protect, modes);
        })
    };
    for external in ["10.20.4.20/32", "10.20.2.80/32"] {
        assert_eq!(dynamic(external, &["pump-1"]), "", "{external}");
    }
    assert_snapshot!(dynamic("10.20.2.0/24", &[]), @"warning [external-covers-prefix] external.archive: 10.20.2.0/24 is also the prefix within which pump-1, monitor-1 may have any address: an address of an external is nobody's to claim, so they would have none. List in the external the addresses that it has, or give the devices a narrower prefix.");
    assert_snapshot!(dynamic("10.20.2.0/24", &["pump-1"]), @"error [external-covers-prefix] external.archive: 10.20.2.0/24 is also the prefix within which pump-1, monitor-1 may have any address: an address of an external is nobody's to claim, so they would have none. List in the external the addresses that it has, or give the devices a narrower prefix.");
    assert_snapshot!(dynamic("10.20.2.0/23", &["pump-1"]), @"warning [external-holds-prefix] external.archive: 10.20.2.0/23 holds 10.20.2.0/24, within which pump-1, monitor-1 may have any address: whichever they have is taken for the device, not for the external. List in the external the addresses that it has.");
}

#[test]
fn what_clients_cannot_have_is_said_and_stops_nobody() {
    let with = |to: &str, change: &dyn Fn(&mut Model)| {
        linted(|model| {
            model.clients.extend([client(70, "laptop-1", [10, 20, 9, 70], "service")]);
            set_modes(model, Mode::Protect, &["pump-1"]);
            model.policy.push_str(&format!(
                "[rule.x]\nfrom = \"laptop-1\"\nto = \"{to}\"\nservices = [\"vnc\"]\n"
            ));
            change(model);
        })
    };
    assert_eq!(with("pump-1", &|_| ()), "");
    assert_snapshot!(with("ct-1", &|_| ()), @"warning [client-of-observed] rule.x: Nothing passes between laptop-1 and ct-1, because what is in observe uses no tunnel: `anteroom device mode NAME protect`.");
    assert_snapshot!(with("archive", &|_| ()), @r#"warning [client-without-device] rule.x: A client reaches devices behind gateways and nothing else, so it opens nothing between laptop-1 and "archive"."#);
    assert_snapshot!(with("pump-1", &|model| {
        let pump = model.devices.get_mut(&member_id(3)).unwrap();
        pump.addresses = vec!["10.20.2.0/24".parse().unwrap()];
    }), @"warning [client-of-dynamic] rule.x: laptop-1 can't reach pump-1, whose addresses are dynamic: a client's configuration names fixed ones.");
    let revoked = with("pump-1", &|model| assert!(model.revoke_client("laptop-1").is_ok()));
    assert!(revoked.contains(r#"warning [revoked-client] rule.x: "laptop-1" is named here, a client that was revoked"#), "{revoked}");
    assert!(!revoked.contains("error") && !revoked.contains("refusal"), "{revoked}");
    let taken = with("pump-1", &|model| {
        model.clients.get_mut(&member_id(70)).unwrap().address = [10, 20, 2, 10].into();
    });
    assert!(
        taken.contains("error [duplicate-address] site north: pump-1 and laptop-1")
            || taken.contains("error [duplicate-address] site north: pump-1, laptop-1"),
        "{taken}"
    );
}

#[test]
fn a_client_within_a_devices_prefix_is_said() {
    let within = |site: &'static str, modes: &'static [&'static str]| {
        linted(move |model| {
            model.gateways.extend([gateway(4, "annex", "south")]);
            let pump = model.devices.get_mut(&member_id(3)).unwrap();
            pump.addresses = vec!["10.20.2.0/26".parse().unwrap()];
            set_modes(model, Mode::Protect, modes);
            model.clients.extend([client(70, "laptop-1", [10, 20, 2, 63], "service")]);
            model.clients.get_mut(&member_id(70)).unwrap().site = name(site);
            model.clients.extend([client(71, "laptop-2", [10, 20, 2, 64], "service")]);
            model.policy.push_str("[rule.x]\nfrom = \"laptop-1\"\nto = \"mri-1\"\nservices = [\"vnc\"]\n[rule.y]\nfrom = \"mri-1\"\nto = \"pump-1\"\nservices = [\"vnc\"]\n");
        })
    };
    assert_snapshot!(within("north", &["pump-1", "mri-1"]), @"error [client-within-prefix] site north: 10.20.2.0/26 of pump-1 holds the address of laptop-1, and an address in both could mean either: give the device a narrower prefix, or add the client anew with an address outside it.");
    assert!(within("north", &[]).contains("warning [client-within-prefix]"));
    assert_snapshot!(within("south", &["pump-1", "mri-1"]), @"error [ambiguous-address] gateway imaging: Its devices share rules with pump-1 (site north) and with laptop-1 (site south), and 10.20.2.0/26 could mean either: translated addresses aren't there yet, so keep one of them out of its rules.");
}

#[test]
fn one_address_of_two_sites_is_too_many_for_a_client() {
    let found = linted(|model| {
        model.gateways.extend([gateway(4, "annex", "south")]);
        model.devices.extend([device(8, "pump-8", 4, "port1", [10, 20, 2, 10], "pump")]);
        set_modes(model, Mode::Protect, &["pump-1", "pump-8"]);
        model.clients.extend([client(70, "laptop-1", [10, 20, 9, 70], "service")]);
        model.policy.push_str("[segment.pumps]\nmatch = { label.class = \"pump\" }\n[rule.x]\nfrom = \"laptop-1\"\nto = \"pumps\"\nservices = [\"vnc\"]\n");
    });
    assert!(found.contains("error [ambiguous-address] client laptop-1: It shares rules with pump-1 and with pump-8 of another site, and 10.20.2.10"), "{found}");
}

#[test]
fn overlapping_networks_of_two_gateways_are_too_many_for_a_client() {
    let found = |site: &'static str,
                 near: &'static [&'static str],
                 far: &'static [&'static str]| {
        let text = linted(move |model| {
            model.gateways.extend([gateway(4, "annex", site)]);
            model.devices.extend([device(8, "pump-8", 4, "port1", [10, 20, 8, 10], "pump")]);
            for (number, nets) in [(3, near), (8, far)] {
                let device = model.devices.get_mut(&member_id(number)).unwrap();
                device.addresses.extend(nets.iter().map(|net| net.parse::<Ipv4Net>().unwrap()));
            }
            set_modes(model, Mode::Protect, &["pump-1", "pump-8"]);
            model.clients.extend([client(70, "laptop-1", [10, 20, 9, 70], "service")]);
            model.policy.push_str("[segment.pumps]\nmatch = { label.class = \"pump\" }\n[rule.x]\nfrom = \"laptop-1\"\nto = \"pumps\"\nservices = [\"vnc\"]\n");
        });
        let lines = text.lines().filter(|line| line.contains("client laptop-1"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let (wide, narrow) = (&["10.30.0.0/16"], &["10.30.7.0/24"]);
    assert_snapshot!(found("south", wide, narrow), @"error [ambiguous-address] client laptop-1: It shares rules with pump-1 and with pump-8 of another site, and 10.30.7.0/24 could mean either: keep one of them out of its rules.");
    assert_snapshot!(found("north", narrow, wide), @"error [ambiguous-address] client laptop-1: It shares rules with pump-8 and with pump-1 behind another gateway, and 10.30.7.0/24 could mean either: keep one of them out of its rules.");
    assert!(found("south", wide, wide).contains("10.30.0.0/16 could mean either"));
    let one = &["10.30.7.9/32"];
    assert!(found("south", wide, one).contains("10.30.7.9 could mean either"));
    assert_eq!(found("north", wide, one), "", "the fixed address is its own");
    assert_eq!(found("south", narrow, &["10.30.8.0/24"]), "");
    let twice = found("south", &["10.30.0.0/16", "10.30.7.0/24", "10.31.0.0/16"], narrow);
    assert_eq!(twice.lines().count(), 1, "one pair, one word: {twice}");
}
