//! Which name, time and address servers are a site's, and which aren't.

use super::*;

/// Asks an address on each of these days, over UDP.
pub(super) fn asks(
    history: &mut History,
    from: u32,
    server: [u8; 4],
    port: u16,
    days: impl IntoIterator<Item = u64>,
    answers: u64,
) {
    for day in days {
        let at = UnixMillis(NOW.0 - 60 * DAY + day * DAY + 9 * HOUR);
        history.add(&Seen {
            from: member(from),
            to: Party::Address(server.into()),
            protocol: Protocol::Udp,
            port,
            way: Way::Clear,
            at: End::From,
            counts: Counts { flows: 1, packets: 1, packets_back: answers, ..Counts::default() },
            first: at,
            last: at,
        });
    }
}

/// Ten scanners and ten monitors, and nothing in the policy.
fn wards() -> Model {
    let mut model = empty();
    class(&mut model, "ct", 10, 10, 1);
    class(&mut model, "monitor", 30, 10, 2);
    model
}

fn is_server(resolved: &Resolved, server: [u8; 4]) -> bool {
    let address = Ipv4Addr::from(server);
    resolved.policy.infrastructure.values().any(|found| {
        [&found.dhcp, &found.dns, &found.ntp].into_iter().any(|list| list.contains(&address))
    })
}

#[test]
fn a_server_of_several_classes_is_every_devices_and_its_comment_says_why() {
    let model = wards();
    let mut history = History::new(1000);
    for number in [10, 11, 30, 31] {
        asks(&mut history, number, [10, 20, 0, 53], 53, 0..20, 1);
        calls(&mut history, member(number), Party::Address([10, 20, 0, 53].into()), 53, [7]);
    }
    // One day of a fifth one, whose word doesn't count by itself, and is no question either.
    asks(&mut history, 32, [10, 20, 0, 53], 53, [3], 1);
    let (found, after) = learn(&model, &history);
    assert_eq!(after.policy.infrastructure["north"].dns.len(), 1);
    let [server] = &found.servers[..] else { panic!("{:?}\n{}", found.servers, found.text) };
    assert_eq!((server.kind, server.opens, server.seen), (ServerKind::Dns, 40, 9));
    assert_eq!(server.confidence, Confidence::Medium);
    assert_eq!((found.rules.len(), found.questions.len()), (0, 0), "{}", found.text);
    for words in [
        "dns = [\n    # 5 of 20 devices of the site, of 2 classes; 101 flows on 20 days",
        "    # Confidence: medium. It opens 40 pairs, 31 beyond the 9 that were seen.\n    \"10.20.0.53\",\n]",
    ] {
        assert!(found.text.contains(words), "{words}: {}", found.text);
    }
}

#[test]
fn an_unanswered_question_of_two_devices_makes_no_server() {
    let model = wards();
    let mut history = History::new(1000);
    for number in [10, 30] {
        asks(&mut history, number, [203, 0, 113, 7], 53, [5], 0);
        asks(&mut history, number, [10, 20, 9, 99], 53, [5, 6], 0);
    }
    let (found, after) = learn(&model, &history);
    assert!(!is_server(&after, [203, 0, 113, 7]) && !is_server(&after, [10, 20, 9, 99]));
    assert_eq!((found.text.as_str(), found.no_evidence), (model.policy.as_str(), 4));
}

#[test]
fn a_scan_for_name_servers_finds_none_for_the_policy() {
    let model = wards();
    let mut history = History::new(10_000);
    for last in 1..=250 {
        for number in [10, 30] {
            // A tenth answers, so that each of two classes has it from them.
            asks(&mut history, number, [192, 0, 2, last], 53, [5], u64::from(last % 10 == 0));
        }
    }
    let (found, after) = learn(&model, &history);
    assert!(after.policy.infrastructure.is_empty(), "{}", found.text);
    assert_eq!((found.rules.len(), found.questions.len()), (0, 50), "{}", found.text);
    assert!(found.questions.iter().all(|question| question.doubt == Doubt::Scanner));
    assert_eq!(found.no_evidence, 450);
}

#[test]
fn what_was_there_for_an_afternoon_is_a_question() {
    let mut model = wards();
    for number in [10, 30] {
        model.devices.get_mut(&member_id(number)).unwrap().labels.clear();
    }
    let mut history = History::new(1000);
    // A router that somebody brought along, and a name server outside.
    for number in [10, 30] {
        asks(&mut history, number, [192, 168, 1, 1], 67, [5], 1);
        asks(&mut history, number, [8, 8, 8, 8], 53, [5], 1);
    }
    let (found, after) = learn(&model, &history);
    assert!(after.policy.infrastructure.is_empty(), "{}", found.text);
    assert_eq!((found.rules.len(), found.questions.len()), (0, 4), "{}", found.text);
}

#[test]
fn what_two_unlabelled_devices_or_one_class_use_is_theirs_alone() {
    let mut model = wards();
    for number in [10, 11, 30] {
        model.devices.get_mut(&member_id(number)).unwrap().labels.clear();
    }
    let mut history = History::new(1000);
    for number in [10, 11, 30] {
        asks(&mut history, number, [8, 8, 8, 8], 53, 0..20, 1);
    }
    for number in 12..20 {
        asks(&mut history, number, [10, 20, 0, 123], 123, 0..20, 1);
    }
    let (found, after) = learn(&model, &history);
    assert!(after.policy.infrastructure.is_empty(), "{}", found.text);
    let passes = |from: u32, server: [u8; 4], port: u16| {
        let to = Party::Address(server.into());
        let flow = Flow { from: member(from), to, protocol: Protocol::Udp, port };
        let mut open = false;
        candidates(&after, &flow, &mut |_, _| open = true);
        open
    };
    assert!([10, 11, 30].into_iter().all(|number| passes(number, [8, 8, 8, 8], 53)));
    assert!((12..20).all(|number| passes(number, [10, 20, 0, 123], 123)), "{}", found.text);
    assert!(!passes(31, [8, 8, 8, 8], 53) && !passes(31, [10, 20, 0, 123], 123));
}

#[test]
fn each_site_has_its_own_servers() {
    let mut model = wards();
    let away = crate::fixture::gateway(9, "away-1", "south");
    model.gateways.extend([away]);
    let (id, mut device) = device(50, "ct-away", 9, "p50", [10, 20, 1, 50], "ct");
    device.confirmed_at = UnixMillis(NOW.0 - 48 * HOUR);
    model.devices.insert(id, device);
    let mut history = History::new(1000);
    for number in [10, 11, 30, 50] {
        asks(&mut history, number, [10, 20, 0, 123], 123, 0..20, 1);
    }
    let (found, after) = learn(&model, &history);
    let sites: Vec<_> = after.policy.infrastructure.keys().map(ToString::to_string).collect();
    assert_eq!(sites, ["north"], "{}", found.text);
    assert_eq!(found.rules.len(), 1, "the one in the south has a rule: {}", found.text);
}

#[test]
fn what_the_policy_has_as_infrastructure_is_not_suggested_again() {
    let mut model = wards();
    model.policy.push_str("[infrastructure.north]\nntp = [\"10.20.0.123\"]\n");
    let mut history = History::new(1000);
    for number in 10..20 {
        asks(&mut history, number, [10, 20, 0, 123], 123, 0..20, 1);
    }
    let (found, _) = learn(&model, &history);
    assert_eq!(found.text, model.policy);
    assert_eq!((found.rules.len(), found.servers.len()), (0, 0));
}

#[test]
fn a_list_that_is_there_keeps_its_comments_and_gets_new_ones() {
    let mut history = History::new(1000);
    for number in [10, 11, 30, 31] {
        for last in [54, 55] {
            asks(&mut history, number, [10, 20, 0, last], 53, 0..20, 1);
        }
        asks(&mut history, number, [10, 20, 0, 123], 123, 0..20, 1);
    }
    for (ours, list) in [
        (
            "[infrastructure.north]\ndns = [\"10.20.0.53\"] # ours\n",
            "dns = [\"10.20.0.53\",\n    # 4 of 20",
        ),
        (
            "[infrastructure.north]\ndns = [\n    \"10.20.0.53\", # ours\n]\n",
            "\"10.20.0.53\", # ours\n    # 4 of 20",
        ),
        ("infrastructure.north = { dns = [\"10.20.0.53\"] }\n", "\"10.20.0.53\",\n    # 4 of 20"),
    ] {
        let mut model = wards();
        model.policy.push_str(ours);
        let (found, after) = learn(&model, &history);
        let found_there = &after.policy.infrastructure["north"];
        assert_eq!((found_there.dns.len(), found_there.ntp.len()), (3, 1), "{}", found.text);
        assert!(found.text.contains(list), "{list}: {}", found.text);
        assert_eq!(found.text.matches("Confidence: ").count(), 3, "{}", found.text);
        model.policy.clone_from(&found.text);
        assert_eq!(learn(&model, &history).0.text, found.text);
        assert!(format("suggested", &found.text).is_ok());
    }
}

#[test]
fn what_a_rule_s_end_closed_to_one_device_is_no_server_of_its_site() {
    for (closed, wanted) in [(true, false), (false, true)] {
        let mut model = wards();
        let end = if closed { "2026-10-23" } else { "2030-01-01" };
        model.policy.push_str(&format!(
            "[external.old]\nprefixes = [\"10.20.0.53/32\"]\n[rule.ticket]\nfrom = \"ct-12\"\nto = \"old\"\nservices = [\"dns\"]\nclear = true\n\
             expires = {end}T00:00:00Z\n"
        ));
        let mut history = History::new(1000);
        for number in [10, 11, 30, 31] {
            asks(&mut history, number, [10, 20, 0, 53], 53, 0..60, 1);
        }
        let (found, after) = learn(&model, &history);
        assert_eq!(is_server(&after, [10, 20, 0, 53]), wanted, "{}", found.text);
        let rules = after.rules.iter().filter(|rule| rule.name.as_str() != "ticket");
        assert_eq!(rules.count() > 0, closed, "those who have it get rules: {}", found.text);
    }
}
