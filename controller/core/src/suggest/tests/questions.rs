use super::*;

/// Eight devices of a class and one beside them.
fn ward() -> Model {
    let mut model = empty();
    class(&mut model, "ct", 10, 8, 1);
    class(&mut model, "pacs", 40, 1, 4);
    model
}

/// An answered datagram to each of these ports, on one day.
fn floods(history: &mut History, from: Party, to: Party, ports: impl IntoIterator<Item = u16>) {
    let at = UnixMillis(NOW.0 - 50 * DAY);
    let counts = Counts { flows: 2, packets: 2, packets_back: 2, ..Counts::default() };
    for port in ports {
        let (protocol, way, first, last) = (Protocol::Udp, Way::Clear, at, at);
        let seen = Seen { from, to, protocol, port, way, at: End::From, counts, first, last };
        assert!(history.add(&seen), "the history has no room");
    }
}

type Flood = fn(&mut History);

fn outside(number: u32) -> Party {
    Party::Address(Ipv4Addr::from(0x0a09_0000 + number))
}

fn asked(found: &Suggestion) -> Vec<&str> {
    found.text.lines().filter_map(|line| line.strip_prefix("# - ")).collect()
}

#[test]
fn many_ports_between_two_are_one_line_and_few_are_a_line_each() {
    let model = ward();
    let mut history = History::new(100_000);
    floods(&mut history, member(10), member(40), 1000..20_000);
    floods(&mut history, member(11), member(40), 30_000..30_008);
    floods(&mut history, member(12), member(40), 31_000..31_009);
    let (found, _) = learn(&model, &history);
    let asked = asked(&found);
    assert_eq!(asked.len(), 10, "{}", found.text);
    assert!(
        asked[0].starts_with("ct-10 to pacs-40, udp on 19000 ports: 38000 flows, last on ")
            && asked[0].ends_with("; seen on one day"),
        "{}",
        found.text
    );
    assert!(asked[1].starts_with("ct-11 to pacs-40, udp/30000: 2 flows"), "{}", found.text);
    assert!(asked[9].starts_with("ct-12 to pacs-40, udp on 9 ports: 18 flows"), "{}", found.text);
    assert_eq!(found.questions.len(), 19_000 + 8 + 9, "whoever reads them as data has each");
}

#[test]
fn what_many_did_on_one_day_alone_is_no_rule() {
    let model = ward();
    for days in [1, 2] {
        let mut history = History::new(10_000);
        for number in 10..18 {
            calls(&mut history, member(number), member(40), 6881, 3..3 + days);
        }
        let (found, after) = learn(&model, &history);
        assert_eq!(found.rules.len() as u64, days - 1, "{days} days: {}", found.text);
        assert_eq!(opens(&after, member(10), member(40), 6881), days > 1, "{}", found.text);
        assert_eq!(found.questions.len(), if days > 1 { 0 } else { 8 }, "{}", found.text);
    }
}

#[test]
fn a_flood_of_questions_hides_nobody_else_s() {
    let model = ward();
    let flooded = |flood: Flood| {
        let mut history = History::new(100_000);
        flood(&mut history);
        for number in 11..18 {
            let port = 440 + u16::try_from(number).unwrap();
            calls(&mut history, member(number), member(40), port, [3]);
        }
        learn(&model, &history).0
    };
    let cases: [(&str, Flood); 3] = [
        ("to many outside", |history| {
            (0..5000).for_each(|one| floods(history, member(10), outside(one), [7]));
        }),
        ("from many outside", |history| {
            (0..5000).for_each(|one| floods(history, outside(one), member(10), [7]));
        }),
        ("at a few ports each", |history| {
            (0..500).for_each(|one| floods(history, member(10), outside(one), 7..15));
        }),
    ];
    for (case, flood) in cases {
        let found = flooded(flood);
        let asked = asked(&found);
        assert_eq!(asked.len(), 201, "{case}: {}", found.text);
        for number in 11..18 {
            let one = format!("ct-{number} to pacs-40, tcp/{}: ", 440 + number);
            assert!(asked.iter().any(|line| line.starts_with(&one)), "{case}, {one}: {asked:#?}");
        }
        let left = found.questions.len() - 200;
        assert_eq!(asked[200], format!("and {left} more"), "{case}: {}", found.text);
    }
}

#[test]
fn where_lines_are_too_many_each_pair_has_its_first_before_any_has_its_second() {
    let model = ward();
    let mut history = History::new(100_000);
    for number in 0..150 {
        floods(&mut history, member(10), outside(number), 7..10);
    }
    let (found, _) = learn(&model, &history);
    let asked = asked(&found);
    let of = |port: &str| asked.iter().filter(|line| line.contains(port)).count();
    assert_eq!((of(", udp/7:"), of(", udp/8:"), of(", udp/9:")), (150, 50, 0), "{asked:#?}");
    assert_eq!(asked.last(), Some(&"and 250 more"), "{}", found.text);
}

#[test]
fn what_rules_opened_that_are_over_is_asked_port_by_port() {
    let mut model = ward();
    for number in 0..12 {
        model.policy.push_str(&format!(
            "[service.odd-{number}]\nports = [\"tcp/{}\"]\n[rule.ticket-{number}]\nfrom = \"ct-10\"\nto = \"pacs-40\"\nservices = [\"odd-{number}\"]\n\
             expires = 2026-10-23T00:00:00Z\n",
            3000 + number
        ));
    }
    let mut history = History::new(10_000);
    for port in 3000..3012 {
        calls(&mut history, member(10), member(40), port, 10..50);
    }
    let (found, _) = learn(&model, &history);
    let asked = asked(&found);
    assert_eq!(asked.len(), 12, "{}", found.text);
    for (number, line) in asked.iter().enumerate() {
        assert!(line.contains(&format!("rule.ticket-{number} opened it until")), "{}", found.text);
    }
}

#[test]
fn what_was_not_seen_for_as_long_as_days_are_kept_is_a_question_and_nothing_else() {
    let model = ward();
    let mut history = History::new(100_000);
    let long_ago = |history: &mut History, to: Party, port: u16| {
        let at = |day: u64| UnixMillis(NOW.0 - (130 - day) * DAY);
        let counts = Counts { flows: 9, packets: 9, packets_back: 9, ..Counts::default() };
        let (from, protocol, way) = (member(10), Protocol::Tcp, Way::Clear);
        for day in 0..30 {
            let (first, last) = (at(day), at(day));
            let seen = Seen { from, to, protocol, port, way, at: End::From, counts, first, last };
            assert!(history.add(&seen));
        }
    };
    // Daily calls of one, who called many others until three months ago.
    for number in 11..14 {
        calls(&mut history, member(10), member(number), 445, 0..60);
    }
    for number in 0..30 {
        long_ago(&mut history, outside(number), 445);
    }
    // And one that was seen then and is seen now.
    long_ago(&mut history, member(40), 104);
    calls(&mut history, member(10), member(40), 104, 0..60);
    let (found, after) = learn(&model, &history);
    for number in 11..14 {
        assert!(opens(&after, member(10), member(number), 445), "{}", found.text);
    }
    assert!(opens(&after, member(10), member(40), 104), "{}", found.text);
    let doubts: Vec<Doubt> = found.questions.iter().map(|one| one.doubt).collect();
    assert_eq!(doubts, [Doubt::LongAgo; 30], "{}", found.text);
    assert!(found.text.contains("; not since\n"), "{}", found.text);
}
