use std::net::Ipv4Addr;

use anteroom_proto::service::Protocol;
use proptest::prelude::*;

use super::*;
use crate::decide::{End, Flow, candidates};
use crate::fixture::{HOUR, NOW, device, hospital, member_id};
use crate::history::{Counts, Seen, Way};
use crate::model::Model;
use crate::policy::format;

mod infrastructure;
mod questions;
mod ran_out;

const DAY: u64 = 24 * HOUR;

/// A class's devices: their first number, how many, and their subnet.
fn class(model: &mut Model, name: &str, first: u32, count: u32, subnet: u8) {
    for number in first..first + count {
        let called = format!("{name}-{number}");
        let address = [10, 20, subnet, number as u8];
        model.devices.extend([device(number, &called, 1, &format!("p{number}"), address, name)]);
    }
}

fn empty() -> Model {
    let mut model = hospital();
    model.devices.clear();
    "format = 1\n".clone_into(&mut model.policy);
    model
}

fn member(number: u32) -> Party {
    Party::Member(member_id(number))
}

/// A call around the clock on each of these days.
fn calls(
    history: &mut History,
    from: Party,
    to: Party,
    port: u16,
    days: impl IntoIterator<Item = u64>,
) {
    for day in days {
        let at = |hour: u64| UnixMillis(NOW.0 - 60 * DAY + day * DAY + hour * HOUR);
        let counts = Counts { flows: 5, packets: 50, packets_back: 50, ..Counts::default() };
        let (protocol, way) = (Protocol::Tcp, Way::Clear);
        let (first, last) = (at(0), at(23));
        history.add(&Seen { from, to, protocol, port, way, at: End::From, counts, first, last });
    }
}

fn learn(model: &Model, history: &History) -> (Suggestion, Resolved) {
    let resolved = Resolved::new(model).unwrap();
    let found =
        suggest(&resolved, history, &RecognisedClasses::new(), &Options::default()).unwrap();
    let after = Resolved::from_text(model, "suggested", &found.text).unwrap();
    (found, after)
}

fn opens(resolved: &Resolved, from: Party, to: Party, port: u16) -> bool {
    let mut found = false;
    let flow = Flow { from, to, protocol: Protocol::Tcp, port };
    candidates(resolved, &flow, &mut |_, _| found = true);
    found
}

#[test]
fn a_class_gets_what_nearly_all_of_it_do_and_newcomers_with_it() {
    let mut model = empty();
    class(&mut model, "ct", 10, 12, 1);
    class(&mut model, "pacs", 40, 1, 4);
    let mut history = History::new(10_000);
    for number in 10..21 {
        calls(&mut history, member(number), member(40), 11112, 0..40);
    }
    let (found, after) = learn(&model, &history);
    assert!(opens(&after, member(21), member(40), 11112), "{}", found.text);
    assert!(!opens(&after, member(40), member(21), 11112), "replies aren't connections");
    assert_eq!(found.rules.len(), 1);
    assert_eq!(found.rules[0].confidence, Confidence::High);
    assert_eq!((found.rules[0].opens, found.rules[0].seen), (24, 11), "dicom has two ports");
    for words in [
        "match = { label.class = \"ct\" }",
        "Seen: 11 of 12",
        "services = [\"dicom\"]",
        "13 beyond the 11",
    ] {
        assert!(found.text.contains(words), "{words}: {}", found.text);
    }
}

#[test]
fn a_long_silence_speaks_against_a_share_of_the_class() {
    let mut model = empty();
    class(&mut model, "pump", 10, 20, 1);
    class(&mut model, "server", 40, 2, 4);
    let mut history = History::new(10_000);
    // Two makers, a server each, and no label that tells them apart.
    for number in 10..30 {
        let server = if number < 24 { 40 } else { 41 };
        calls(&mut history, member(number), member(server), 443, 0..40);
    }
    let (found, after) = learn(&model, &history);
    for number in 10..30 {
        let own = if number < 24 { 40 } else { 41 };
        assert!(opens(&after, member(number), member(own), 443), "{}", found.text);
        assert!(!opens(&after, member(number), member(81 - own), 443), "{}", found.text);
    }
    assert_eq!(found.rules.len(), 2, "one for each maker: {}", found.text);
}

#[test]
fn what_was_seen_once_is_a_question_and_twice_a_rule_of_its_own() {
    let mut model = empty();
    class(&mut model, "ct", 10, 12, 1);
    class(&mut model, "pacs", 40, 1, 4);
    let mut history = History::new(10_000);
    calls(&mut history, member(10), member(40), 445, [3]);
    calls(&mut history, member(11), member(40), 22, [3, 9]);
    let (found, after) = learn(&model, &history);
    assert_eq!(found.questions.len(), 1);
    assert_eq!(
        (found.questions[0].doubt, found.questions[0].service.first),
        (Doubt::SeenOnce, 445)
    );
    assert!(!opens(&after, member(10), member(40), 445));
    assert!(found.text.contains("# - ct-10 to pacs-40, tcp/445: 5 flows"), "{}", found.text);
    assert!(
        opens(&after, member(11), member(40), 22) && !opens(&after, member(12), member(40), 22)
    );
    assert_eq!(found.rules[0].confidence, Confidence::Low);
    assert!(found.text.contains("the only one of its class"), "{}", found.text);
}

#[test]
fn wards_stay_apart_and_a_ward_where_nothing_was_seen_yet_gets_its_own() {
    let mut model = empty();
    class(&mut model, "monitor", 10, 40, 1);
    class(&mut model, "central", 60, 10, 1);
    // Ten wards of four monitors and a station each.
    for (id, device) in &mut model.devices {
        let number = u32::from_be_bytes(id.as_bytes()[..4].try_into().unwrap());
        let ward = if number < 60 { (number - 10) / 4 } else { number - 60 };
        device.addresses = vec![Ipv4Addr::new(10, 30, ward as u8, number as u8).into()];
    }
    let mut history = History::new(10_000);
    for number in 10..46 {
        calls(&mut history, member(number), member(60 + (number - 10) / 4), 2575, 0..40);
    }
    // They print now and then, at any hour.
    for number in 10..14 {
        calls(&mut history, member(number), member(69), 9100, (0..40).step_by(3));
    }
    let (found, after) = learn(&model, &history);
    for number in 10..50 {
        for station in 60..70 {
            let own = station - 60 == (number - 10) / 4;
            assert_eq!(
                opens(&after, member(number), member(station), 2575),
                own,
                "{number} {station}: {}",
                found.text
            );
        }
    }
    assert_eq!(found.rules.iter().filter(|rule| rule.essential).count(), 9, "{}", found.text);
    assert!(found.text.contains("it was in 9 other places"), "{}", found.text);
}

#[test]
fn a_service_of_several_ports_stands_once_and_is_counted_once() {
    let mut model = empty();
    class(&mut model, "ct", 10, 1, 1);
    class(&mut model, "pacs", 40, 1, 4);
    let mut history = History::new(100);
    for port in [104, 11112] {
        calls(&mut history, member(10), member(40), port, 0..40);
    }
    let (found, _) = learn(&model, &history);
    assert_eq!((found.rules[0].opens, found.rules[0].seen), (2, 2), "{}", found.text);
    assert!(found.text.contains("services = [\"dicom\"]\n"), "{}", found.text);
    assert!(!found.text.contains("only"), "{}", found.text);
    assert!(found.text.contains("It opens nothing beyond what was seen."), "{}", found.text);
    // Two of NetBIOS' three.
    let mut history = History::new(100);
    for port in [137, 138] {
        let mut seen = Vec::new();
        for day in 0..40 {
            let at = UnixMillis(NOW.0 - 60 * DAY + day * DAY);
            let counts = Counts { flows: 1, packets: 1, packets_back: 1, ..Counts::default() };
            let (from, to, way, at_end) = (member(10), member(40), Way::Clear, End::From);
            let protocol = Protocol::Udp;
            seen.push(Seen {
                from,
                to,
                protocol,
                port,
                way,
                at: at_end,
                counts,
                first: at,
                last: at,
            });
        }
        seen.iter().for_each(|one| assert!(history.add(one)));
    }
    let (found, _) = learn(&model, &history);
    assert_eq!((found.rules[0].opens, found.rules[0].seen), (3, 2), "{}", found.text);
    assert!(found.text.contains("# Of \"netbios\" only udp/137 and udp/138 were seen."));
}

#[test]
fn what_was_not_seen_in_a_place_is_not_said_to_have_been() {
    let mut model = empty();
    class(&mut model, "probe", 10, 40, 1);
    class(&mut model, "collector", 60, 10, 1);
    for (id, device) in &mut model.devices {
        let number = u32::from_be_bytes(id.as_bytes()[..4].try_into().unwrap());
        let ward = if number < 60 { (number - 10) / 4 } else { number - 60 };
        device.addresses = vec![Ipv4Addr::new(10, 30, ward as u8, number as u8).into()];
    }
    let mut history = History::new(10_000);
    for number in 10..50 {
        let station = member(60 + (number - 10) / 4);
        // All wards report, the last one since the tenth day; in that one nobody has looked at a web page yet.
        let days = if number < 46 { 0..40 } else { 10..40 };
        calls(&mut history, member(number), station, 2575, days);
        if number < 46 {
            calls(&mut history, member(number), station, 443, 0..40);
        }
    }
    let (found, after) = learn(&model, &history);
    assert!(opens(&after, member(46), member(69), 443), "{}", found.text);
    let lines: Vec<&str> = found.text.lines().collect();
    let place = lines.iter().position(|line| line.contains("\"https\" wasn't seen here")).unwrap();
    assert!(lines[place].contains("it was in 9 other places"), "{}", found.text);
    let above = lines[..place].iter().rev().find(|line| line.starts_with("# Seen:")).unwrap();
    // Four probes, five flows a day, thirty days of reports alone.
    assert!(above.contains("600 flows on 30 days, 2026-10-03 to "), "{above}\n{}", found.text);
}

#[test]
fn people_who_walk_get_the_whole_class_but_strays_do_not_make_one() {
    let mut model = empty();
    class(&mut model, "desk", 10, 60, 1);
    class(&mut model, "printer", 100, 20, 2);
    class(&mut model, "camera", 150, 80, 3);
    let mut history = History::new(10_000);
    for number in 10..70_u32 {
        // Each prints on some days, wherever it happens to be.
        for day in 0..30_u64 {
            let printer = 100 + (u64::from(number) * 7 + day * 13) % 20;
            calls(&mut history, member(number), member(printer as u32), 9100, [day]);
        }
    }
    // Three desks look at a camera, once each.
    for number in 10..13 {
        calls(&mut history, member(number), member(150 + number), 554, [5 + u64::from(number)]);
    }
    let (found, after) = learn(&model, &history);
    for number in 10..70 {
        for printer in 100..120 {
            assert!(opens(&after, member(number), member(printer), 9100), "{}", found.text);
        }
        assert!((150..230).all(|camera| !opens(&after, member(number), member(camera), 554)));
    }
    assert_eq!(found.questions.len(), 3, "{:?}", found.questions);
}

#[test]
fn what_a_scanner_reaches_is_no_rule() {
    let mut model = empty();
    class(&mut model, "desk", 10, 30, 1);
    class(&mut model, "server", 100, 40, 4);
    let mut history = History::new(10_000);
    for number in 10..40 {
        calls(&mut history, member(number), member(100), 443, 0..40);
    }
    for server in 100..140_u32 {
        // One in four answers.
        let back = u64::from(server % 4 == 0);
        for day in [20, 21] {
            let at = UnixMillis(NOW.0 - 60 * DAY + day * DAY);
            history.add(&Seen {
                from: member(10),
                to: member(server),
                protocol: Protocol::Tcp,
                port: 445,
                way: Way::Clear,
                at: End::From,
                counts: Counts { flows: 1, packets: 1, packets_back: back, ..Counts::default() },
                first: at,
                last: at,
            });
        }
    }
    let (found, after) = learn(&model, &history);
    assert!(
        (100..140).all(|server| !opens(&after, member(10), member(server), 445)),
        "{}",
        found.text
    );
    assert!(opens(&after, member(10), member(100), 443), "its honest work goes on");
    let scanned = found.questions.iter().filter(|question| question.doubt == Doubt::Scanner);
    assert_eq!((scanned.count(), found.no_evidence), (10, 30));
}

#[test]
fn a_server_that_calls_its_own_callers_once_a_month_is_no_scanner() {
    let mut model = empty();
    class(&mut model, "pump", 10, 30, 1);
    class(&mut model, "pump-server", 100, 3, 4);
    let mut history = History::new(10_000);
    for number in 10..40 {
        let server = member(100 + number % 2);
        calls(&mut history, member(number), server, 443, 0..60);
        let day = u64::from(number);
        calls(&mut history, server, member(number), 1500, [day, day + 10]);
    }
    let (found, after) = learn(&model, &history);
    assert_eq!(found.questions, [], "{}", found.text);
    assert!(
        (10..40).all(|number| opens(&after, member(100 + number % 2), member(number), 1500)),
        "{}",
        found.text
    );
}

#[test]
fn a_device_without_a_label_is_known_by_what_it_does() {
    let mut model = empty();
    class(&mut model, "ct", 10, 8, 1);
    class(&mut model, "pacs", 40, 1, 4);
    model.devices.get_mut(&member_id(17)).unwrap().labels.clear();
    let mut history = History::new(10_000);
    for number in 10..18 {
        calls(&mut history, member(number), member(40), 104, 0..40);
        calls(&mut history, member(40), member(number), 4006, 0..40);
    }
    let (found, after) = learn(&model, &history);
    assert!(opens(&after, member(17), member(40), 104));
    assert!(
        found.text.contains("members = [\"ct-17\"]\nmatch = { label.class = \"ct\" }"),
        "{}",
        found.text
    );
    assert!(found.text.contains("have no label"), "{}", found.text);
}

#[test]
fn what_was_suggested_is_extended_without_asking_twice() {
    let mut model = empty();
    class(&mut model, "ct", 10, 3, 1);
    class(&mut model, "pacs", 40, 1, 4);
    let mut history = History::new(100);
    calls(&mut history, member(10), member(40), 104, 0..40);
    calls(&mut history, member(11), member(40), 8080, 5..6);
    model.policy = learn(&model, &history).0.text;
    assert_eq!(model.policy.matches("is any of it wanted?").count(), 1, "{}", model.policy);
    assert_eq!(learn(&model, &history).0.text, model.policy);
    calls(&mut history, member(12), member(40), 8081, 5..6);
    model.policy.push_str("[external.ours]\nprefixes = [\"10.9.9.9/32\"]\n");
    let text = learn(&model, &history).0.text;
    assert_eq!(text.matches("is any of it wanted?").count(), 1, "{text}");
    assert!(text.contains("tcp/8080") && text.contains("tcp/8081"), "{text}");
    assert!(text.contains("[external.ours]\nprefixes"), "{text}");
}

#[test]
fn an_existing_policy_keeps_every_line_and_is_not_said_again() {
    let mut model = hospital();
    model.policy.insert_str(0, "# Ours.\n");
    let mut history = History::new(10_000);
    calls(&mut history, member(1), member(5), 104, 0..40);
    calls(&mut history, member(2), member(5), 104, 0..40);
    let address = Party::Address(Ipv4Addr::new(10, 20, 4, 20));
    calls(&mut history, member(3), address, 443, 0..40);
    for number in [1, 2, 3] {
        infrastructure::asks(&mut history, number, [10, 20, 0, 54], 53, 0..40, 1);
    }
    let (found, after) = learn(&model, &history);
    for line in model.policy.lines().filter(|line| !line.starts_with("dns")) {
        assert!(found.text.lines().any(|new| new == line), "{line:?} is gone: {}", found.text);
    }
    let dns = &after.policy.infrastructure["north"].dns;
    assert_eq!(dns, &[Ipv4Addr::new(10, 20, 0, 53), Ipv4Addr::new(10, 20, 0, 54)]);
    let names: Vec<&str> = found.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["mri-1-to-pacs-1", "pump-1-to-archive"], "{}", found.text);
    let clear = after.rules.iter().find(|rule| rule.name.as_str() == "pump-1-to-archive").unwrap();
    assert!(clear.clear, "an address has no gateway");
    // What was suggested once is nothing new.
    model.policy.clone_from(&found.text);
    let (again, _) = learn(&model, &history);
    assert_eq!((again.rules.len(), again.text), (0, found.text));
}

#[test]
fn a_layout_that_nothing_can_be_written_behind_is_refused() {
    let mut model = hospital();
    model.policy = "format = 1\nrule = {}\n".into();
    let mut history = History::new(100);
    calls(&mut history, member(1), member(5), 104, 0..40);
    let resolved = Resolved::new(&model).unwrap();
    assert!(suggest(&resolved, &history, &RecognisedClasses::new(), &Options::default()).is_err());
}

#[test]
fn no_history_suggests_nothing() {
    let (found, _) = learn(&hospital(), &History::new(10));
    assert_eq!(found.text, hospital().policy);
    assert!(found.rules.is_empty() && found.questions.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    /// The order of telling doesn't matter, every line is a policy, and what was seen on two days passes.
    #[test]
    fn any_history_gives_one_policy_that_holds_it(
        edges in prop::collection::vec((1u32..7, 1u32..9, 0usize..5, 1u64..40, 1u64..20), 1..40),
    ) {
        let model = { let mut model = hospital(); model.policy = "format = 1\n".into(); model };
        let party = |number: u32| if number < 7 { member(number) } else {
            Party::Address(Ipv4Addr::new(192, 0, 2, number as u8))
        };
        let tell = |edges: &[(u32, u32, usize, u64, u64)]| {
            let mut history = History::new(1000);
            for (from, to, port, first, count) in edges.iter().filter(|edge| edge.0 != edge.1) {
                let port = [104, 443, 5000, 50_000, 22][*port];
                calls(&mut history, party(*from), party(*to), port, *first..first + count);
            }
            history
        };
        let history = tell(&edges);
        let (found, after) = learn(&model, &history);
        let turned: Vec<_> = edges.iter().rev().copied().collect();
        prop_assert_eq!(&learn(&model, &tell(&turned)).0, &found);
        for edge in history.edges().filter(|edge| edge.rhythm.active_days() >= 2) {
            prop_assert!(opens(&after, edge.from, edge.to, edge.port), "{:?}\n{}", edge, found.text);
        }
        prop_assert!(format("suggested", &found.text).is_ok());
    }
}

#[test]
fn devices_without_a_label_go_by_what_they_are_recognised_as_and_the_file_says_so() {
    let mut model = empty();
    class(&mut model, "ct", 10, 12, 1);
    class(&mut model, "pacs", 40, 1, 4);
    for number in 18..22 {
        model.devices.get_mut(&member_id(number)).unwrap().labels.clear();
    }
    let mut history = History::new(10_000);
    for number in 10..21 {
        calls(&mut history, member(number), member(40), 11112, 0..40);
    }
    let resolved = Resolved::new(&model).unwrap();
    // 21 was never seen talking: only what it is recognised as says what it may do.
    let recognised: RecognisedClasses = (18..22)
        .map(|number| (member_id(number), ("ct".to_owned(), 80 + number as u8 - 18)))
        .collect();
    let found = suggest(&resolved, &history, &recognised, &Options::default()).unwrap();
    let after = Resolved::from_text(&model, "suggested", &found.text).unwrap();
    assert!(opens(&after, member(21), member(40), 11112), "{}", found.text);
    for words in [
        "no label; they are recognised as \"ct\", 80 to 83 % sure",
        "\"ct-18\", \"ct-19\", \"ct-20\", \"ct-21\"",
        "match = { label.class = \"ct\" }",
    ] {
        assert!(found.text.contains(words), "{words}: {}", found.text);
    }
    // A label that an operator confirmed stands, whatever else was recognised.
    let wrong = RecognisedClasses::from([(member_id(10), ("printer".to_owned(), 99))]);
    let labelled = suggest(&resolved, &history, &wrong, &Options::default()).unwrap();
    assert!(!labelled.text.contains("printer"), "{}", labelled.text);
}
