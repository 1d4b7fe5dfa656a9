use anteroom_proto::mode::Mode;
use anteroom_proto::rhythm::Rhythm;
use anteroom_proto::verdict::DropReason;
use insta::assert_snapshot;

use super::*;
use crate::fixture::{NOW, client, gateway_id, hospital, mac, member_id, set_modes};
use crate::model::Model;

fn enforced() -> Model {
    let mut model = hospital();
    let all = ["ct-1", "mri-1", "pump-1", "monitor-1", "pacs-1", "hl7-1"];
    set_modes(&mut model, Mode::Enforce, &all);
    model
}

fn ask(model: &Model, from: &str, to: &str, service: &str) -> String {
    match explain(&Resolved::new(model).unwrap(), from, to, service, &Recorded::default(), NOW) {
        Ok(answer) => answer.to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_passes_says_by_which_rule_and_path() {
    assert_snapshot!(ask(&enforced(), "ct-1", "pacs-1", "tcp/104"), @r"
    ct-1 (enforce) -> pacs-1 (enforce): tcp/104
      tunnel: Allowed by rule.ct-to-pacs, through the tunnel between imaging and server-room.
    ");
    assert_snapshot!(ask(&enforced(), "ct-1", "archive", "dicom"), @r"
    ct-1 (enforce) -> archive: tcp/104, and 1 more alike
      clear: Allowed by rule.ct-to-pacs, in the clear, because archive has no gateway: an address, not an identity.
    ");
    assert_snapshot!(ask(&hospital(), "ct-1", "pacs-1", "dicom"), @r"
    ct-1 (observe) -> pacs-1 (observe): tcp/104, and 1 more alike
      clear: Allowed by rule.ct-to-pacs, in the clear, because ct-1 is in observe.
    ");
    assert_snapshot!(ask(&hospital(), "pump-1", "10.20.9.9", "https"), @r"
    pump-1 (observe) -> 10.20.9.9: tcp/443
      clear: Passes without a rule, in the clear, because pump-1 is in observe.
    ");
    assert_snapshot!(ask(&enforced(), "pump-1", "10.20.0.53", "dns"), @r"
    pump-1 (enforce) -> 10.20.0.53: tcp/53, and 1 more alike
      clear: Passes in the clear as infrastructure of the site, which needs no rule.
    ");
    assert_snapshot!(ask(&enforced(), "10.20.9.9", "10.20.9.10", "dns"), @r"
    10.20.9.9 -> 10.20.9.10: tcp/53, and 1 more alike
      clear: Neither end is a device behind an approved gateway, so Anteroom has no part in it.
    ");
}

#[test]
fn what_is_dropped_says_where_why_and_what_next() {
    assert_snapshot!(ask(&enforced(), "pump-1", "pacs-1", "dicom"), @r#"
    pump-1 (enforce) -> pacs-1 (enforce): tcp/104, and 1 more alike
      drop(not-visible): Dropped by ward, the gateway in front of pump-1: The other end is neither a member nor an external that this device shares a rule with.
      next: if it is needed, add a rule:
        [rule.pump-1-to-pacs-1]
        from = "pump-1"
        to = "pacs-1"
        services = ["dicom"]
    "#);
    assert_snapshot!(ask(&enforced(), "10.20.9.66", "ct-1", "tcp/8080"), @r#"
    10.20.9.66 -> ct-1 (enforce): tcp/8080
      drop(not-visible): Dropped by imaging, the gateway in front of ct-1: The other end is neither a member nor an external that this device shares a rule with.
      next: if it is needed, add a rule:
        [external.host-10-20-9-66]
        prefixes = ["10.20.9.66/32"]

        [service.tcp-8080]
        ports = ["tcp/8080"]

        [rule.host-10-20-9-66-to-ct-1]
        from = "host-10-20-9-66"
        to = "ct-1"
        services = ["tcp-8080"]
        clear = true
    "#);
    assert_snapshot!(ask(&enforced(), "pacs-1", "ct-1", "dicom"), @r#"
    pacs-1 (enforce) -> ct-1 (enforce): tcp/104, and 1 more alike
      drop(no-rule): Dropped by server-room, the gateway in front of pacs-1: No rule allows it.
      next: rule.ct-to-pacs opens the other way only, replies included. If this way is needed too, add a rule:
        [rule.pacs-1-to-ct-1]
        from = "pacs-1"
        to = "ct-1"
        services = ["dicom"]
    "#);
    let mut model = hospital();
    set_modes(&mut model, Mode::Enforce, &["monitor-1"]);
    assert_snapshot!(ask(&model, "monitor-1", "hl7-1", "hl7"), @r"
    monitor-1 (enforce) -> hl7-1 (observe): tcp/2575
      drop(clear-not-allowed): Dropped by ward, the gateway in front of monitor-1: A rule allows it, but its path would be in the clear and the rule doesn't say `clear = true`.
      next: `anteroom device mode hl7-1 protect`, so that the pair takes the tunnel, or write clear = true in rule.alarms
    ");
    set_modes(&mut model, Mode::Protect, &["pump-1"]);
    assert_snapshot!(ask(&model, "pump-1", "10.20.9.9", "ping"), @r#"
    pump-1 (protect) -> 10.20.9.9: icmp/echo
      would-drop(not-visible): Passes in the clear for now, because 10.20.9.9 has no gateway: an address, not an identity. In enforce it would be dropped: The other end is neither a member nor an external that this device shares a rule with.
      next: if it is needed, add a rule:
        [external.host-10-20-9-9]
        prefixes = ["10.20.9.9/32"]

        [rule.pump-1-to-host-10-20-9-9]
        from = "pump-1"
        to = "host-10-20-9-9"
        services = ["ping"]
        clear = true
    "#);
    let mut model = enforced();
    model.set_quarantine("ct-1", true).unwrap();
    assert_snapshot!(ask(&model, "ct-1", "pacs-1", "tcp/104"), @r"
    ct-1 (enforce) -> pacs-1 (enforce): tcp/104
      drop(quarantined): Dropped by imaging, the gateway in front of ct-1: The device is quarantined and no essential rule allows it.
      next: ct-1 is quarantined: release it, or mark a rule essential that must survive quarantine
    ");
    let mut model = enforced();
    model.policy.push_str("[rule.old]\nfrom = \"pump-1\"\nto = \"hl7-1\"\nservices = [\"hl7\"]\nexpires = 2020-01-01T00:00:00Z\n");
    assert_snapshot!(ask(&model, "pump-1", "hl7-1", "hl7"), @r#"
    pump-1 (enforce) -> hl7-1 (enforce): tcp/2575
      drop(expired): Dropped by ward, the gateway in front of pump-1: The rule that allowed it has expired.
      next: give rule.old a new "expires", or take it out for good
    "#);
    let mut model = enforced();
    model.policy = model.policy.replace("clear = true\n", "");
    assert_snapshot!(ask(&model, "ct-1", "archive", "tcp/104"), @r"
    ct-1 (enforce) -> archive: tcp/104
      drop(clear-not-allowed): Dropped by imaging, the gateway in front of ct-1: A rule allows it, but its path would be in the clear and the rule doesn't say `clear = true`.
      next: write clear = true in rule.ct-to-pacs, or put a gateway in front of the other end
    ");
}

#[test]
fn segments_are_asked_about_outcome_by_outcome() {
    assert_snapshot!(ask(&enforced(), "ct", "pacs", "dicom"), @r"
    ct-1 (enforce) -> pacs-1 (enforce): tcp/104, and 1 more alike
      tunnel: Allowed by rule.ct-to-pacs, through the tunnel between imaging and server-room.

    ct-1 (enforce) -> archive: tcp/104, and 1 more alike
      clear: Allowed by rule.ct-to-pacs, in the clear, because archive has no gateway: an address, not an identity.
    ");
}

#[test]
fn questions_that_make_no_sense_are_answered_with_what_was_meant() {
    let model = hospital();
    assert_snapshot!(ask(&model, "ct-l", "pacs", "dicom"), @r#"no device, segment or external "ct-l", and it isn't an IPv4 address; did you mean "ct-1"?"#);
    assert_snapshot!(ask(&model, "ct-1", "pacs", "dicm"), @r#"no service "dicm", and it isn't protocol and port such as tcp/104 or icmp/echo; did you mean "dicom"?"#);
    assert_snapshot!(ask(&model, "ct-1", "ct-1", "dicom"), @r#""ct-1" at both ends: traffic with oneself passes no gateway"#);
    assert_snapshot!(ask(&model, "ct-1", "fe80::1", "dicom"), @r#"no device, segment or external "fe80::1", and it isn't an IPv4 address"#);
    let mut empty = hospital();
    empty.policy.push_str("[segment.none]\n");
    assert_snapshot!(ask(&empty, "none", "pacs", "dicom"), @r#""none" has no members and no externals, so there is nobody to ask about"#);
    let long = "x".repeat(10_000);
    assert!(ask(&model, &long, "pacs", &long).len() < 300);
    assert!(ask(&model, "ct-1", "pacs", &long).len() < 300);
}

/// Each piece of advice does what it says: with the snippet in the policy, the flow passes.
#[test]
fn following_the_advice_opens_the_way() {
    let mut mixed = hospital();
    set_modes(&mut mixed, Mode::Enforce, &["pump-1", "ct-1"]);
    let questions = [
        ("pump-1", "pacs-1", "dicom"),
        ("pump-1", "pacs", "tcp/104"),
        ("10.20.9.66", "ct-1", "tcp/8080-8090"),
        ("pump-1", "10.20.9.9", "udp/9999"),
        ("archive", "pump-1", "ping"),
        ("ct-1", "mri-1", "tcp/2575"),
    ];
    for model in [enforced(), mixed] {
        for (from, to, service) in questions {
            let resolved = Resolved::new(&model).unwrap();
            let answer = explain(&resolved, from, to, service, &Recorded::default(), NOW).unwrap();
            let Some(snippet) = answer.answers.iter().find_map(|answer| answer.snippet.clone())
            else {
                panic!("no advice for {from} {to} {service}: {answer}");
            };
            let mut followed = model.clone();
            followed.policy.push_str(&snippet);
            let resolved = match Resolved::new(&followed) {
                Ok(resolved) => resolved,
                Err(problems) => panic!("{problems}\n{snippet}"),
            };
            let after = explain(&resolved, from, to, service, &Recorded::default(), NOW).unwrap();
            for answer in &after.answers {
                assert!(
                    ["tunnel", "local", "clear"].contains(&answer.verdict.as_str()),
                    "{from} {to} {service}: {after}\nafter\n{snippet}"
                );
            }
        }
    }
}

/// Of the pump or the PACS, as its gateway has it.
fn recorded_edge(gateway: u32, own: u32, outbound: bool, last: u64) -> Edge {
    Edge {
        gateway: gateway_id(gateway),
        mac: mac(own),
        member: None,
        local: (if own == 3 { [10, 20, 2, 10] } else { [10, 20, 4, 10] }).into(),
        remote: (if own == 3 { [10, 20, 4, 10] } else { [10, 20, 2, 10] }).into(),
        remote_member: None,
        outbound,
        protocol: 6,
        port: 104,
        verdict: Verdict::Drop(DropReason::NotVisible),
        rule: None,
        flows: 2,
        packets_out: 0,
        packets_in: 0,
        bytes_out: 0,
        bytes_in: 0,
        first: NOW,
        last: UnixMillis(last),
        rhythm: Rhythm::default(),
    }
}

#[test]
fn the_last_drop_is_told_whichever_end_recorded_it() {
    let (model, recorded) = (enforced(), recorded_edge);
    let resolved = Resolved::new(&model).unwrap();
    let last = |edges: &[Edge]| {
        let recorded = Recorded { edges, ..Recorded::default() };
        let answer = explain(&resolved, "pump-1", "pacs-1", "tcp/104", &recorded, NOW).unwrap();
        answer.answers[0].last_drop.clone().map(|drop| (drop.gateway, drop.at.0))
    };
    assert_eq!(last(&[recorded(2, 3, true, 5)]), Some(("ward".into(), 5)));
    assert_eq!(
        last(&[recorded(2, 3, true, 5), recorded(3, 5, false, 9)]),
        Some(("server-room".into(), 9))
    );
    assert_eq!(last(&[recorded(2, 3, false, 5)]), None, "the other way round");
    let passed = Edge { verdict: Verdict::Tunnel, ..recorded(2, 3, true, 5) };
    assert_eq!(last(&[passed]), None);
    let known = Edge { member: Some(member_id(3)), ..recorded(2, 3, true, 5) };
    assert_eq!(last(&[known]), Some(("ward".into(), 5)));
}

#[test]
fn a_gateway_that_judges_otherwise_is_told_with_why() {
    const HOUR: u64 = 3_600_000;
    let mut model = enforced();
    model.policy.push_str("[rule.x]\nfrom = \"pump-1\"\nto = \"pacs-1\"\nservices = [\"vnc\"]\n");
    let resolved = Resolved::new(&model).unwrap();
    let signed_at = UnixMillis(NOW.0 - 10 * HOUR);
    let ward = |verdict, last| Edge { port: 5900, verdict, ..recorded_edge(2, 3, true, last) };
    let room = |verdict, last| Edge { port: 5900, verdict, ..recorded_edge(3, 5, false, last) };
    let asked = |service: &str, edges: &[Edge]| {
        let recorded = Recorded { edges, signed_at };
        let answer = explain(&resolved, "pump-1", "pacs-1", service, &recorded, NOW).unwrap();
        let text = answer.to_string();
        let said = answer.answers[0].contradiction.clone();
        assert_eq!(text.contains("\n  but: "), said.is_some(), "{text}");
        said
    };
    let said = |edges: &[Edge]| asked("tcp/5900", edges);
    let (expired, unknown, no_rule) = (
        Verdict::Drop(DropReason::Expired),
        Verdict::Drop(DropReason::TimeUnknown),
        Verdict::Drop(DropReason::NoRule),
    );
    for (verdict, last, ahead, words) in [
        (
            expired,
            NOW.0 + 4000 * 24 * HOUR,
            Some(4000 * 24 * HOUR),
            "4000 days from now: its clock",
        ),
        (expired, NOW.0 + 5 * HOUR, Some(5 * HOUR), "5 h from now: its clock"),
        (expired, NOW.0 - 1000, None, "By that gateway's time"),
        (unknown, NOW.0 - 1000, None, "Until a controller or a peer tells it"),
        // Its floor, where nothing newer was signed for it, or the revision's own time.
        (unknown, signed_at.0 - 1, None, "Until a controller or a peer tells it"),
        (unknown, signed_at.0 + 1000, None, "Until a controller or a peer tells it"),
        (no_rule, NOW.0 - 1000, None, "No rule allows it. `anteroom gateway show ward`"),
        (no_rule, signed_at.0 + 1000, None, "may not have had yet"),
        (Verdict::WouldDrop(DropReason::NoRule), NOW.0, None, "No rule allows it."),
    ] {
        let found = said(&[ward(verdict, last)]).unwrap();
        assert_eq!((found.at.0, found.ahead_ms), (last, ahead));
        assert_eq!((found.gateway.as_str(), found.verdict), ("ward", verdict.to_string()));
        let text = said(&[ward(verdict, last)]).unwrap().to_string();
        assert!(text.starts_with(&format!("ward judged otherwise, {verdict}: ")), "{text}");
        assert!(text.contains(words), "{text}");
    }
    // What was before the revision says nothing, nor what the same gateway has gone back on.
    assert_eq!(said(&[ward(expired, signed_at.0 - 1)]), None);
    let edges = [ward(expired, NOW.0 - 2000), ward(Verdict::Tunnel, NOW.0 - 1000)];
    assert_eq!(said(&edges), None);
    // The other end's drop stands though this one lets it pass.
    let edges = [room(expired, NOW.0 - 2000), ward(Verdict::Tunnel, NOW.0 - 1000)];
    assert_eq!(said(&edges).unwrap().gateway, "server-room");
    // A drop for another reason is still what the model says; a flow that would only be dropped isn't.
    let dropped = |verdict| Edge { port: 104, ..ward(verdict, NOW.0) };
    assert_eq!(asked("tcp/104", &[dropped(no_rule)]), None);
    let passes = asked("tcp/104", &[dropped(Verdict::WouldDrop(DropReason::NotVisible))]).unwrap();
    assert_eq!(passes.verdict, "would-drop(not-visible)");
}

#[test]
fn a_client_is_called_one_and_told_what_it_lacks() {
    let mut model = enforced();
    model.clients.extend([client(70, "laptop-1", [10, 20, 9, 70], "service")]);
    model.clients.extend([client(71, "laptop-2", [10, 20, 9, 71], "service")]);
    model.policy.push_str("[rule.x]\nfrom = \"laptop-1\"\nto = \"ct-1\"\nservices = [\"vnc\"]\n");
    assert_snapshot!(ask(&model, "laptop-1", "ct-1", "vnc"), @r"
    laptop-1 (client) -> ct-1 (enforce): tcp/5900
      tunnel: Allowed by rule.x, through the tunnel between client laptop-1 and imaging.
    ");
    let refused = ask(&model, "laptop-1", "pump-1", "vnc");
    assert!(
        refused.contains("drop(not-visible): Dropped by ward, the gateway in front of pump-1"),
        "{refused}"
    );
    assert!(
        refused.contains("from = \"laptop-1\"\n    to = \"pump-1\"")
            && !refused.contains("clear = true"),
        "{refused}"
    );
    let between = ask(&model, "10.20.9.70", "laptop-2", "vnc");
    assert!(between.contains("nothing carries traffic between two clients"), "{between}");
    set_modes(&mut model, Mode::Observe, &["ct-1"]);
    let observed = ask(&model, "laptop-1", "ct-1", "vnc");
    assert!(
        observed.contains("drop(client-of-observed)")
            && observed.contains("device mode ct-1 protect"),
        "{observed}"
    );
}
