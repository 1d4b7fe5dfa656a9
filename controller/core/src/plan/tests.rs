use anteroom_proto::api::Edge;
use anteroom_proto::mode::Mode;
use anteroom_proto::rhythm::Rhythm;
use anteroom_proto::verdict::{DropReason, Verdict};
use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;
use crate::decide::{Flow, Party, permits};
use crate::fixture::{
    HOUR, NOW, any_model, client, device, gateway, gateway_id, hospital, mac, member_id, name,
    set_modes,
};
use crate::model::Client;
use crate::resolve::Resolved;

const BASE: Base = Base { number: 4, hash: Hash::ZERO };

fn plan(before: &Model, after: &Model, evidence: &Evidence) -> Plan {
    Plan::between(BASE, before, after, evidence, NOW).unwrap()
}

fn changed(change: impl FnOnce(&mut Model)) -> Plan {
    let mut after = hospital();
    change(&mut after);
    plan(&hospital(), &after, &Evidence::default())
}

fn told(plan: &Plan) -> String {
    let mut text = String::new();
    let mut section = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            text.push_str(&format!("{title}\n"));
            lines.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
        }
    };
    section("changes", plan.changes.iter().map(ToString::to_string).collect());
    section("opened", plan.opened.iter().map(ToString::to_string).collect());
    section("closed", plan.closed.iter().map(ToString::to_string).collect());
    section("affected", plan.affected.iter().map(|gateway| gateway.name.clone()).collect());
    section("would break", plan.would_break.iter().map(ToString::to_string).collect());
    section("warnings", plan.warnings.iter().map(ToString::to_string).collect());
    section("refusals", plan.refusals.iter().map(ToString::to_string).collect());
    text
}

#[test]
fn nothing_changed_is_nothing_told() {
    let plan = changed(|_| {});
    assert!(plan.is_empty(), "{plan:?}");
    assert_eq!(told(&plan), "");
    assert!(plan.may_be_applied(false));
}

#[test]
fn a_first_policy_opens_what_its_rules_say() {
    let mut before = hospital();
    before.policy = "format = 1\n".into();
    assert_snapshot!(told(&plan(&before, &hospital(), &Evidence::default())), @r"
    changes
      + policy infrastructure.north: dhcp 10.20.0.2 dns 10.20.0.53 ntp 10.20.0.123
      + policy external.archive: 10.20.4.20/32 review 2027-03-01
      + policy segment.ct: site=north class=ct
      + policy segment.monitors: class=monitor
      + policy segment.pacs: pacs-1 archive
      + policy service.ct-listen: tcp/4006
      + policy rule.alarms: monitors -> hl7-1: hl7 essential
      + policy rule.ct-to-pacs: ct -> pacs: dicom clear
      + policy rule.pacs-to-ct: pacs -> ct: ct-listen clear
      + policy test.pump-kept-from-pacs: deny pump-1 -> pacs: dicom
    opened
      monitors -> hl7-1: tcp/2575 (rule.alarms)
      ct -> pacs: tcp/104, tcp/11112 (rule.ct-to-pacs)
      pacs -> ct: tcp/4006 (rule.pacs-to-ct)
    affected
      imaging
      ward
      server-room
    ");
}

#[test]
fn a_device_that_joins_a_segment_opens_for_itself_only() {
    assert_snapshot!(told(&changed(|model| {
        model.devices.extend([device(7, "ct-2", 2, "port3", [10, 20, 2, 30], "ct")]);
    })), @r"
    changes
      + device ct-2: 00:1b:00:00:00:07 at port3 of ward, 10.20.2.30 on-link /24
      + device labels ct-2: class=ct
      + mode ct-2: observe
    opened
      ct-2 -> pacs: tcp/104, tcp/11112 (rule.ct-to-pacs)
      pacs -> ct-2: tcp/4006 (rule.pacs-to-ct)
    affected
      ward
      server-room
    ");
}

#[test]
fn rules_are_compared_by_what_they_allow_not_by_their_names() {
    let renamed = changed(|model| model.policy = model.policy.replace("rule.alarms", "rule.alarm"));
    assert!(renamed.opened.is_empty() && renamed.closed.is_empty(), "{}", told(&renamed));
    assert_snapshot!(told(&changed(|model| {
        model.policy = model
            .policy
            .replace("to = \"hl7-1\"\nservices = [\"hl7\"]", "to = \"hl7-1\"\nservices = [\"https\"]")
            .replace("10.20.4.20/32", "10.20.4.16/28");
    })), @r"
    changes
      ~ policy external.archive: 10.20.4.20/32 review 2027-03-01 -> 10.20.4.16/28 review 2027-03-01
      ~ policy rule.alarms: monitors -> hl7-1: hl7 essential -> monitors -> hl7-1: https essential
    opened
      monitors -> hl7-1: tcp/443 (rule.alarms)
      ct -> archive: tcp/104, tcp/11112 (rule.ct-to-pacs)
      archive -> ct: tcp/4006 (rule.pacs-to-ct)
    closed
      monitors -> hl7-1: tcp/2575 (rule.alarms)
    affected
      imaging
      ward
      server-room
    ");
}

#[test]
fn comments_are_a_change_that_concerns_no_gateway() {
    assert_snapshot!(told(&changed(|model| model.policy.push_str("# later\n"))), @r"
    changes
      ~ policy text (comments, order or spacing only)
    ");
}

#[test]
fn gateways_devices_and_labels_are_told_by_name() {
    assert_snapshot!(told(&changed(|model| {
        model.gateways.extend([gateway(4, "annex", "south")]);
        model.label_gateway("ward", &[(name("floor"), Some("3".into()))]).unwrap();
        model.label_device("pump-1", &[(name("class"), None)]).unwrap();
        model.devices.get_mut(&member_id(3)).unwrap().addresses = vec!["10.20.2.0/24".parse().unwrap()];
        set_modes(model, Mode::Protect, &["mri-1"]);
    })), @r"
    changes
      + gateway labels ward: floor=3
      + gateway annex: approved at site south
      ~ mode mri-1: observe -> protect
      ~ device pump-1: 00:1b:00:00:00:03 at port1 of ward, 10.20.2.10 on-link /24 -> 00:1b:00:00:00:03 at port1 of ward, dynamic within 10.20.2.0/24 on-link /24
      - device labels pump-1: class=pump
    affected
      imaging
      ward
      annex
    ");
}

fn edge(
    gateway: u32,
    own: u32,
    local: [u8; 4],
    remote: [u8; 4],
    outbound: bool,
    port: u16,
) -> Edge {
    Edge {
        gateway: gateway_id(gateway),
        mac: mac(own),
        member: Some(member_id(own)),
        local: std::net::IpAddr::from(local),
        remote: std::net::IpAddr::from(remote),
        remote_member: None,
        outbound,
        protocol: 6,
        port,
        verdict: Verdict::Clear,
        rule: None,
        flows: 3,
        packets_out: 1,
        packets_in: 1,
        bytes_out: 1,
        bytes_in: 1,
        first: NOW,
        last: NOW,
        rhythm: Rhythm::default(),
    }
}

#[test]
fn what_was_seen_and_would_be_dropped_is_listed() {
    let mut multicast = edge(2, 3, [10, 20, 2, 10], [239, 255, 255, 250], true, 3702);
    multicast.protocol = 17;
    let mut gre = edge(2, 3, [10, 20, 2, 10], [10, 20, 9, 9], true, 0);
    gre.protocol = 47;
    let mut six = edge(2, 3, [10, 20, 2, 10], [0; 4], true, 443);
    six.remote = "fe80::1".parse().unwrap();
    let mut dropped = edge(2, 3, [10, 20, 2, 10], [10, 20, 9, 77], true, 443);
    dropped.verdict = Verdict::Drop(DropReason::NoRule);
    let mut dns = edge(2, 3, [10, 20, 2, 10], [10, 20, 0, 53], true, 53);
    dns.protocol = 17;
    let mut dhcp = edge(2, 3, [0; 4], [255; 4], true, 67);
    dhcp.protocol = 17;
    let mut unnamed = edge(2, 3, [10, 20, 2, 10], [10, 20, 4, 10], true, 104);
    unnamed.member = None;
    let edges = vec![
        edge(2, 3, [10, 20, 2, 10], [10, 20, 9, 9], true, 443),
        unnamed,
        edge(3, 5, [10, 20, 4, 10], [10, 20, 2, 10], false, 104),
        edge(2, 3, [10, 20, 2, 10], [10, 20, 9, 9], false, 5900),
        edge(1, 1, [10, 20, 1, 10], [10, 20, 9, 9], true, 443),
        edge(1, 1, [10, 20, 1, 10], [10, 20, 4, 10], true, 104),
        multicast,
        gre,
        six,
        dropped,
        dns,
        dhcp,
    ];
    let evidence = Evidence { edges, ..Evidence::default() };
    let mut after = hospital();
    set_modes(&mut after, Mode::Enforce, &["pump-1"]);
    let enforced = plan(&hospital(), &after, &evidence);
    assert_snapshot!(told(&enforced), @r"
    changes
      ~ mode pump-1: observe -> enforce
    affected
      ward
    would break
      10.20.9.9 -> pump-1: vnc (tcp/5900), 3 flows recorded. Dropped in front of pump-1: The other end is neither a member nor an external that this device shares a rule with.
      pump-1 -> 10.20.9.9: https (tcp/443), 3 flows recorded. Dropped in front of pump-1: The other end is neither a member nor an external that this device shares a rule with.
      pump-1 -> 10.20.9.9: protocol 47, 3 flows recorded. An IP protocol that no rule can open: neither TCP, UDP nor ICMP echo.
      pump-1 -> 239.255.255.250: udp/3702, 3 flows recorded. A broadcast or multicast packet that no infrastructure kind covers, to or from an enforced device.
      pump-1 -> fe80::1: https (tcp/443), 3 flows recorded. An IPv6 packet to or from an enforced device.
      pump-1 -> pacs-1: dicom (tcp/104), 3 flows recorded. Dropped in front of pump-1: The other end is neither a member nor an external that this device shares a rule with.
    ");
    let again = plan(&after, &after, &evidence);
    assert!(again.would_break.is_empty(), "it is broken already: {}", told(&again));
    let mut protect = hospital();
    set_modes(&mut protect, Mode::Protect, &["pump-1"]);
    assert!(plan(&hospital(), &protect, &evidence).would_break.is_empty());
}

#[test]
fn dhcp_breaks_where_the_site_names_no_servers() {
    let mut dhcp = edge(2, 3, [0; 4], [255; 4], true, 67);
    dhcp.protocol = 17;
    let evidence = Evidence { edges: vec![dhcp], ..Evidence::default() };
    let broken = |servers: &str| {
        let mut before = hospital();
        before.policy = before.policy.replace("dhcp = [\"10.20.0.2\"]", servers);
        let mut after = before.clone();
        set_modes(&mut after, Mode::Enforce, &["pump-1"]);
        plan(&before, &after, &evidence).would_break.len()
    };
    assert_eq!(broken("dhcp = [\"10.20.0.2\"]"), 0);
    assert_eq!(broken("dhcp = []"), 1);
}

#[test]
fn the_step_that_a_refusal_names_resolves_it() {
    let before = hospital();
    let mut enforced = before.clone();
    set_modes(&mut enforced, Mode::Enforce, &["monitor-1"]);
    let refused = plan(&before, &enforced, &Evidence::default());
    assert!(!refused.may_be_applied(false), "{}", told(&refused));
    let said = &refused.refusals[0].message;
    assert!(said.contains("`anteroom device mode hl7-1 protect`"), "{said}");
    let mut protected = before.clone();
    set_modes(&mut protected, Mode::Protect, &["hl7-1"]);
    assert!(plan(&before, &protected, &Evidence::default()).may_be_applied(false));
    let mut both = protected.clone();
    set_modes(&mut both, Mode::Enforce, &["monitor-1"]);
    let allowed = plan(&protected, &both, &Evidence::default());
    assert!(allowed.may_be_applied(false), "{}", told(&allowed));
    // The peer can't go back to observe either, nor can a new rule bring an observed one.
    let mut back = both.clone();
    set_modes(&mut back, Mode::Observe, &["hl7-1"]);
    let refused = plan(&both, &back, &Evidence::default());
    assert!(!refused.may_be_applied(false) && refused.may_be_applied(true), "{}", told(&refused));
    let mut rule = both.clone();
    rule.policy
        .push_str("[rule.new]\nfrom = \"pump-1\"\nto = \"monitors\"\nservices = [\"dicom\"]\n");
    let refused = plan(&both, &rule, &Evidence::default());
    assert!(!refused.may_be_applied(false), "{}", told(&refused));
    let said = &refused.refusals[0].message;
    assert!(said.contains("`anteroom device mode pump-1 protect`"), "{said}");
    rule.policy = rule.policy.replace("[rule.new]\n", "[rule.new]\nclear = true\n");
    assert!(plan(&both, &rule, &Evidence::default()).may_be_applied(false));
}

#[test]
fn enforce_too_early_is_refused_and_can_be_forced() {
    let mut before = hospital();
    before.devices.get_mut(&member_id(3)).unwrap().confirmed_at = UnixMillis(NOW.0 - HOUR);
    let mut after = before.clone();
    set_modes(&mut after, Mode::Enforce, &["pump-1"]);
    let refused = plan(&before, &after, &Evidence::default());
    assert_snapshot!(told(&refused), @r"
    changes
      ~ mode pump-1: observe -> enforce
    affected
      ward
    refusals
      device pump-1: It has been watched since 2026-11-21T23:00:00Z only: enforce wants 24 hours, so that what happens once a day has been seen. Until 2026-11-22T23:00:00Z `anteroom device mode pump-1 protect` is as far as it goes; to go on all the same, `anteroom device mode pump-1 enforce --force --reason WHY`.
    ");
    assert!(!refused.may_be_applied(false) && refused.may_be_applied(true));
    // Once it was forced, it stops no later plan.
    let mut later = after.clone();
    later.label_device("ct-1", &[(name("room"), Some("7".into()))]).unwrap();
    let next = plan(&after, &later, &Evidence::default());
    assert!(next.may_be_applied(false) && next.warnings.len() == 1, "{}", told(&next));
}

#[test]
fn a_failing_test_of_the_policy_stops_a_plan_for_good() {
    let failing = changed(|model| {
        model.policy = model.policy.replace("expect = \"deny\"", "expect = \"allow\"");
    });
    assert_snapshot!(told(&failing), @r"
    changes
      ~ policy test.pump-kept-from-pacs: deny pump-1 -> pacs: dicom -> allow pump-1 -> pacs: dicom
    refusals
      test.pump-kept-from-pacs: It expects allow, but no rule allows pump-1 to pacs-1: tcp/104.
    ");
    assert!(!failing.may_be_applied(true));
}

#[test]
fn nothing_stops_a_revocation_or_a_quarantine() {
    let mut before = hospital();
    before.policy.push_str("[test.alarms]\nfrom = \"monitor-1\"\nto = \"hl7-1\"\nservices = [\"hl7\"]\nexpect = \"allow\"\n");
    let mut after = before.clone();
    after.revoke_gateway("server-room").unwrap();
    let revoked = plan(&before, &after, &Evidence::default());
    assert_snapshot!(told(&revoked), @r#"
    changes
      ~ gateway server-room: approved at site north -> revoked
      ~ device pacs-1: 00:1b:00:00:00:05 at port1 of server-room, 10.20.4.10 on-link /24 -> 00:1b:00:00:00:05 at port1 of server-room (revoked), 10.20.4.10 on-link /24
      ~ device hl7-1: 00:1b:00:00:00:06 at port2 of server-room, 10.20.4.11 on-link /24 -> 00:1b:00:00:00:06 at port2 of server-room (revoked), 10.20.4.11 on-link /24
    closed
      monitors -> hl7-1: tcp/2575 (rule.alarms)
      ct -> pacs-1: tcp/104, tcp/11112 (rule.ct-to-pacs)
      pacs-1 -> ct: tcp/4006 (rule.pacs-to-ct)
    affected
      imaging
      ward
      server-room
    warnings
      rule.alarms: "hl7-1" is named here, but its gateway server-room was revoked, so nothing opens for it: confirm it behind another gateway, or take it out.
      segment.pacs: "pacs-1" is named here, but its gateway server-room was revoked, so nothing opens for it: confirm it behind another gateway, or take it out.
      rule.alarms: It opens nothing, because nobody is in "hl7-1": label devices or list them.
      test.alarms: It proves nothing, because nobody is in "hl7-1".
    "#);
    assert!(revoked.may_be_applied(false));
    let mut quarantined = before.clone();
    quarantined.set_quarantine("ct-1", true).unwrap();
    assert_snapshot!(told(&plan(&before, &quarantined, &Evidence::default())), @r"
    changes
      + quarantine ct-1: on
    affected
      imaging
      server-room
    ");
    assert!(!only_closes(&quarantined, &before), "lifting a quarantine opens");
}

#[test]
fn a_plan_made_a_minute_later_is_the_same() {
    let id = |moment: u64, port: &str| {
        let changed = changed(|model| {
            let mut device = model.devices[&member_id(1)].clone();
            device.name = "ct-9".parse().unwrap();
            device.attachment.mac = mac(99);
            device.attachment.port = port.parse().unwrap();
            device.addresses = vec!["10.20.1.99/32".parse().unwrap()];
            device.mode = Mode::Observe;
            device.confirmed_at = UnixMillis(NOW.0 - moment);
            model.confirm_device(member_id(99), device).unwrap();
        });
        assert!(!changed.is_empty());
        changed.id
    };
    assert_eq!(id(0, "port7"), id(60_000, "port7"));
    assert_ne!(id(0, "port7"), id(0, "port8"), "anything else makes another");
    // When a device was confirmed that was there before is part of it.
    let since = |moment| {
        changed(|model| {
            model.devices.get_mut(&member_id(1)).unwrap().confirmed_at = UnixMillis(moment);
        })
    };
    assert_ne!(since(1).id, since(2).id);
    let added = |moment: u64, last: u8| {
        changed(|model| {
            let (id, new) = client(98, "laptop-9", [10, 20, 9, last], "service");
            model.add_client(id, Client { added_at: UnixMillis(moment), ..new }).unwrap();
        })
    };
    assert!(!added(1, 9).is_empty());
    assert_eq!(added(1, 9).id, added(60_000, 9).id);
    assert_ne!(added(1, 9).id, added(1, 8).id, "anything else makes another");
}

#[test]
fn a_plan_survives_being_written_down() {
    let plan = changed(|model| set_modes(model, Mode::Protect, &["ct-1"]));
    let written = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&written).unwrap(), plan);
    let mut after = hospital();
    set_modes(&mut after, Mode::Protect, &["ct-1"]);
    assert_eq!(plan.id, Plan::id(BASE, Model::hash(&after.encode())));
    let moved = Base { hash: Hash::of("x", &[]), ..BASE };
    assert_ne!(Plan::id(moved, Model::hash(&after.encode())), plan.id);
    let tampered = written.replacen("\"base\"", "\"extra\":1,\"base\"", 1);
    assert!(serde_json::from_str::<Plan>(&tampered).is_err());
}

#[test]
fn a_base_that_no_longer_compiles_is_judged_without_its_policy() {
    let mut before = hospital();
    before.policy = "format = 0\n".into();
    let plan = plan(&before, &hospital(), &Evidence::default());
    assert_eq!(plan.opened.len(), 3, "{}", told(&plan));
    let mut broken = hospital();
    broken.policy = "format = 0\n".into();
    assert!(Plan::between(BASE, &hospital(), &broken, &Evidence::default(), NOW).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// What a plan says is opened is what is allowed afterwards and wasn't before, pair by pair.
    #[test]
    fn opened_is_the_difference_of_what_is_allowed(before in any_model(), policy in any_model()) {
        // The same devices under both policies, as far as the other policy names them.
        let mut after = before.clone();
        after.policy = policy.policy;
        let (Ok(old), Ok(new)) = (Resolved::new(&before), Resolved::new(&after)) else { return Ok(()) };
        let plan = Plan::between(BASE, &before, &after, &Evidence::default(), NOW).unwrap();
        let ids: Vec<_> = before.devices.keys().copied().collect();
        let ports: Vec<anteroom_proto::service::PortMatch> = ["tcp/104", "tcp/2575", "icmp/echo", "tcp/5000", "tcp/5900", "udp/9"]
            .iter().map(|text| text.parse().unwrap()).collect();
        for from in &ids {
            for to in ids.iter().filter(|to| *to != from) {
                for port in &ports {
                    let flow = Flow { from: Party::Member(*from), to: Party::Member(*to), protocol: port.protocol, port: port.first };
                    let (was, is) = (permits(&old, &flow, NOW).is_some(), permits(&new, &flow, NOW).is_some());
                    let said = |list: &[Permission], model: &Resolved| list.iter().any(|permission| {
                        let side = |names: &[String], id| names.iter().any(|called| {
                            model.side_named(called).is_some_and(|side| model.side(side).members.contains(id))
                                || before.devices[id].name.as_str() == called
                        });
                        side(&permission.from, from) && side(&permission.to, to)
                            && permission.services.iter().any(|text| text.parse::<anteroom_proto::service::PortMatch>().unwrap().matches(port.protocol, port.first))
                    });
                    if is && !was {
                        prop_assert!(said(&plan.opened, &new), "{:?} isn't said to open\n{}", flow, told(&plan));
                    }
                    if was && !is {
                        prop_assert!(said(&plan.closed, &old), "{:?} isn't said to close\n{}", flow, told(&plan));
                    }
                    if !is {
                        prop_assert!(!said(&plan.opened, &new), "{:?} is said to open\n{}", flow, told(&plan));
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_essential_is_not_broken_unless_forced() {
    // Alarms from the monitor to the central station, as both gateways saw them.
    let edges = vec![
        edge(2, 4, [10, 20, 2, 11], [10, 20, 4, 11], true, 2575),
        edge(3, 6, [10, 20, 4, 11], [10, 20, 2, 11], false, 2575),
    ];
    let evidence = Evidence { edges, ..Evidence::default() };
    let mut before = hospital();
    set_modes(&mut before, Mode::Protect, &["hl7-1"]);
    set_modes(&mut before, Mode::Enforce, &["monitor-1"]);
    let mut after = before.clone();
    after.policy = after.policy.replace("to = \"hl7-1\"", "to = \"pacs\"");
    let refused = plan(&before, &after, &evidence);
    assert_eq!(refused.would_break.len(), 1, "{}", told(&refused));
    assert_eq!(refused.would_break[0].essential.as_deref(), Some("alarms"));
    let finding = refused.refusals.iter().find(|found| found.code == "breaks-essential");
    assert!(finding.is_some_and(|found| found.subject == "rule.alarms"), "{}", told(&refused));
    assert!(!refused.may_be_applied(false) && refused.may_be_applied(true));
    // Another rule for the same keeps it.
    let rule = "[rule.more]\nfrom = \"monitor-1\"\nto = \"hl7-1\"\nservices = [\"hl7\"]\n";
    after.policy.push_str(rule);
    let kept = plan(&before, &after, &evidence);
    let breaks = kept.refusals.iter().any(|found| found.code == "breaks-essential");
    assert!(kept.would_break.is_empty() && !breaks, "{}", told(&kept));
    // What only cuts off is never stopped.
    let mut revoked = before.clone();
    revoked.revoke_gateway("ward").unwrap();
    let revoked = plan(&before, &revoked, &evidence);
    assert!(revoked.may_be_applied(false), "{}", told(&revoked));
}

#[test]
fn of_each_criticality_some_lines_stay() {
    let line = |number: usize, criticality| WouldBreak {
        from: format!("from-{number}"),
        to: "to".into(),
        service: "dicom".into(),
        reason: "x".into(),
        flows: 1,
        last: NOW,
        essential: None,
        criticality,
    };
    let many = (0..MAX_LINES + 400).map(|number| line(number, Some(Criticality::LifeSupport)));
    let few = (0..300).map(|number| line(number, Some(Criticality::Support)));
    let mut lines: Vec<WouldBreak> = many.chain(few).chain([line(0, None)]).collect();
    assert_eq!(some_of_each(&mut lines), 400 + 200);
    let of = |wanted| lines.iter().filter(|line| line.criticality == wanted).count();
    let counts = [Some(Criticality::LifeSupport), Some(Criticality::Support), None].map(of);
    assert_eq!(counts, [MAX_LINES, 100, 1]);
    let mut short: Vec<WouldBreak> = lines.iter().take(MAX_LINES).cloned().collect();
    assert_eq!((some_of_each(&mut short), short.len()), (0, MAX_LINES));
}
