use anteroom_proto::rhythm::Rhythm;

use super::*;
use crate::decide::End;
use crate::fixture::{HOUR, NOW, device, gateway_id, hospital, member_id};
use crate::history::{Counts, Seen};

/// On day 0, Tuesday, 2026-10-13, or so many days later.
fn on(day: u64) -> UnixMillis {
    UnixMillis(NOW.0 - 40 * DAY + day * DAY + 9 * HOUR)
}

/// A device's gateway tells of it.
fn told(history: &mut History, number: u32, day: u64) {
    let gateway = if number < 10 { number.div_ceil(2) } else { 1 };
    let mut rhythm = Rhythm::default();
    rhythm.record(on(day), on(day));
    history.watched(gateway_id(gateway), &rhythm);
    history.told_of(member_id(number), gateway_id(gateway), (on(day), on(day)));
}

fn daily(history: &mut History, from: u32, to: u32, port: u16, days: std::ops::Range<u64>) {
    for day in days {
        let at = on(day);
        let counts = Counts { flows: 1, packets: 5, packets_back: 5, ..Counts::default() };
        told(history, from, day);
        let (from, to) = (Party::Member(member_id(from)), Party::Member(member_id(to)));
        let (protocol, way) = (Protocol::Tcp, Way::Clear);
        let at_end = End::From;
        history.add(&Seen {
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
}

#[test]
fn what_mates_do_and_what_comes_back_is_expected() {
    let mut model = hospital();
    for number in 10..13 {
        let called = format!("ct-{number}");
        let port = format!("port{number}");
        let address = [10, 20, 1, number as u8];
        model.devices.extend([device(number, &called, 1, &port, address, "ct")]);
    }
    for device in model.devices.values_mut() {
        device.confirmed_at = UnixMillis(NOW.0 - 40 * DAY);
    }
    let resolved = Resolved::new(&model).unwrap();
    let mut history = History::new(1000);
    // Three scanners send images and worklist queries and get storage commitment; one only sends.
    for number in [1, 10, 11, 12] {
        daily(&mut history, number, 5, 104, 0..30);
        if number != 12 {
            daily(&mut history, number, 6, 2575, 0..30);
            daily(&mut history, 5, number, 4006, 0..30);
        }
    }
    daily(&mut history, 2, 5, 104, 27..30);
    let found = coverage(&resolved, &history, &Wanted::default(), NOW);
    let of = |number| &found[&member_id(number)];
    assert!(of(1).enough && of(1).missing.len() < 3, "{:?}", of(1));
    assert!(!of(12).enough, "{:?}", of(12));
    assert!(
        of(12).missing.iter().any(
            |missing| matches!(missing, Missing::Back { service, .. } if service.first == 4006)
        )
    );
    assert!(of(12).share() < of(1).share());
    assert!(!of(3).enough, "never seen");
    let words: Vec<String> = of(3).missing.iter().map(ToString::to_string).collect();
    assert!(words[0].contains("0 days of the 14"), "{words:?}");
}

#[test]
fn what_comes_back_on_a_dicom_port_from_a_member_is_expected_too() {
    for port in [104, 11112] {
        let mut model = hospital();
        for number in 10..21 {
            let called = format!("ct-{number}");
            let at = format!("port{number}");
            model.devices.extend([device(
                number,
                &called,
                1,
                &at,
                [10, 20, 1, number as u8],
                "ct",
            )]);
        }
        let resolved = Resolved::new(&model).unwrap();
        let mut history = History::new(1000);
        // Eleven scanners send to the archive, which opens back to eight of them: fewer than are usual.
        for number in 10..21 {
            daily(&mut history, number, 5, 104, 0..30);
            if number < 18 {
                daily(&mut history, 5, number, port, 0..30);
            }
        }
        let found = coverage(&resolved, &history, &Wanted::default(), NOW);
        let comes_back = |number| {
            let missing = &found[&member_id(number)].missing;
            missing.iter().any(
                |missing| matches!(missing, Missing::Back { service, .. } if service.first == port),
            )
        };
        assert!((18..21).all(comes_back), "tcp/{port}: {found:#?}");
        assert!(!(10..18).any(comes_back), "tcp/{port}: {found:#?}");
        assert!(!found[&member_id(18)].enough && found[&member_id(10)].enough, "{found:#?}");
    }
}

/// A hospital with eight more scanners, `ct-10` to `ct-17`.
fn with_scanners() -> Model {
    let mut model = hospital();
    for number in 10..18 {
        let (called, at) = (format!("ct-{number}"), format!("port{number}"));
        model.devices.extend([device(number, &called, 1, &at, [10, 20, 1, number as u8], "ct")]);
    }
    model
}

#[test]
fn what_comes_back_after_any_service_that_names_patients_is_expected() {
    let model = with_scanners();
    // Orders go to hl7-1, which opens back to half of those who send any.
    let of = |policy: &str, port| {
        let mut history = History::new(1000);
        for number in 10..18 {
            daily(&mut history, number, 6, port, 0..30);
            if number < 14 {
                daily(&mut history, 6, number, 6661, 0..30);
            }
        }
        let resolved = Resolved::from_text(&model, "policy", policy).unwrap();
        let found = coverage(&resolved, &history, &Wanted::default(), NOW);
        let comes_back = |missing: &Missing| matches!(missing, Missing::Back { .. });
        let missing = |number| found[&member_id(number)].missing.iter().any(comes_back);
        (10..18).filter(|number| missing(*number)).collect::<Vec<u32>>()
    };
    let own = "format = 1\n[service.images]\nports = [\"tcp/4006\"]\npatient_data = true";
    assert_eq!(of("format = 1", 2575), [14, 15, 16, 17], "HL7");
    assert_eq!(of("format = 1", 2762), [14, 15, 16, 17], "DICOM over TLS");
    assert_eq!(of("format = 1", 4006), [0; 0], "nobody said what it is");
    assert_eq!(of(own, 4006), [14, 15, 16, 17]);
}

#[test]
fn maintenance_that_a_rule_opens_to_others_of_a_class_is_expected() {
    let model = with_scanners();
    let mut history = History::new(1000);
    for number in 10..18 {
        daily(&mut history, number, 5, 104, 0..30);
    }
    // An engineer's shell at four of them, on a day each, and somebody's at a fifth.
    for number in 10..14 {
        daily(&mut history, 6, number, 22, 20..21);
    }
    daily(&mut history, 2, 14, 22, 25..26);
    let of = |rules: &str| {
        let resolved = Resolved::from_text(&model, "policy", rules).unwrap();
        coverage(&resolved, &history, &Wanted::default(), NOW)
    };
    let missing = |rules: &str| {
        let found = of(rules);
        let is_missing = |missing: &Missing| matches!(missing, Missing::Maintenance { .. });
        let lacks = |number: &u32| found[&member_id(*number)].missing.iter().any(is_missing);
        let lacking: Vec<u32> = (10..18).filter(lacks).collect();
        assert!(lacking.iter().all(|number| !found[&member_id(*number)].enough), "{found:#?}");
        lacking
    };
    let head = "format = 1\n[segment.all]\nmatch = { label.class = \"ct\" }\n";
    let rule = |to: &str| {
        let ends = format!("from = \"hl7-1\"\nto = \"{to}\"\nservices = [\"ssh\"]");
        let some = "[segment.two]\nmembers = [\"ct-10\", \"ct-11\"]\n\
                    [segment.three]\nmembers = [\"ct-10\", \"ct-11\", \"ct-12\"]";
        format!("{head}{some}\n[rule.upkeep]\n{ends}")
    };
    assert_eq!(missing(head), [0; 0], "no rule says that it is wanted: it may be anybody's");
    assert_eq!(missing(&rule("two")), [0; 0], "two of nine are no way of the class");
    assert_eq!(missing(&rule("three")), [14, 15, 16, 17], "ct-13 was seen");
    assert_eq!(missing(&rule("all")), [0; 0], "all may be maintained");
    let found = of(&rule("three"));
    let days = [10, 13, 14, 15].map(|number| found[&member_id(number)].maintained_days);
    assert_eq!(days, [1, 1, 1, 0]);
    let words: Vec<String> =
        found[&member_id(15)].missing.iter().map(ToString::to_string).collect();
    let told = "hl7-1 maintains others of its class with tcp/22, for which it has no rule";
    assert!(words.iter().any(|word| word == told), "{words:?}");
    assert!(found[&member_id(15)].share() < found[&member_id(10)].share());
}

#[test]
fn what_a_class_goes_on_to_do_and_no_rule_opens_is_said_of_all_of_it() {
    let mut model = hospital();
    for (first, class) in [(10, "desk"), (30, "printer")] {
        for number in first..first + 8 {
            let called = format!("{class}-{number}");
            let address = [10, 20, 1, number as u8];
            let port = format!("port{number}");
            model.devices.extend([device(number, &called, 1, &port, address, class)]);
        }
    }
    let mut history = History::new(1000);
    for number in 0..7 {
        // Each has its printer, and went to another one once; the last desk did nothing of the kind.
        daily(&mut history, 10 + number, 30 + number, 9100, 0..30);
        daily(&mut history, 10 + number, 30 + (number + 1) % 8, 9100, 20..21);
    }
    // One of them scanned.
    for number in 30..38 {
        daily(&mut history, 10, number, 445, 25..26);
    }
    let of = |policy: &str, number| {
        let resolved = Resolved::from_text(&model, "policy", policy).unwrap();
        let found = coverage(&resolved, &history, &Wanted::default(), NOW);
        let unforeseen = &found[&member_id(number)].unforeseen;
        unforeseen.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let printing = "tcp/9100 opened to printer (7 pairs of its class seen on one day, in no rule)";
    let own = "tcp/9100 opened to printer (1 pair seen on one day, in no rule)";
    assert_eq!(of("format = 1", 17), [printing]);
    assert_eq!(of("format = 1", 11), [own]);
    assert_eq!(
        of("format = 1", 10).len(),
        2,
        "whoever scanned is told of it, and nobody else of its class"
    );
    assert_eq!(
        of("format = 1", 37)[0],
        "tcp/445 opened to it by desk (1 pair seen on one day, in no rule)"
    );
    let open = "format = 1\n[segment.desks]\nmatch = { label = { class = \"desk\" } }\n[segment.printers]\nmatch = { label = { class = \"printer\" } }\n\
                [rule.print]\nfrom = \"desks\"\nto = \"printers\"\nservices = [\"jetdirect\"]\n";
    assert_eq!(of(open, 17), [""; 0]);
    assert_eq!(of(open, 11), [""; 0]);
}

#[test]
fn the_watch_begins_with_what_its_own_gateway_saw() {
    // Both were confirmed two days ago; only the scanner's gateway has been there for longer.
    let resolved = Resolved::new(&hospital()).unwrap();
    let mut history = History::new(100);
    daily(&mut history, 1, 5, 104, 0..40);
    let found = coverage(&resolved, &history, &Wanted::default(), NOW);
    assert_eq!((found[&member_id(1)].watched_days, found[&member_id(1)].enough), (40, true));
    assert!(found[&member_id(5)].watched_days < 3, "{:?}", found[&member_id(5)]);
    assert!(!found[&member_id(5)].enough);
}

#[test]
fn a_watch_without_weekend_or_month_end_is_too_short() {
    let mut model = hospital();
    for device in model.devices.values_mut() {
        device.confirmed_at = UnixMillis(NOW.0 - 40 * DAY);
    }
    let resolved = Resolved::new(&model).unwrap();
    let mut history = History::new(1000);
    // NOW - 40 days is Tuesday, 2026-10-13; three days on is Friday.
    daily(&mut history, 1, 5, 104, 0..3);
    let wanted = Wanted { days: 3, ..Wanted::default() };
    let found = coverage(&resolved, &history, &wanted, NOW);
    assert_eq!(found[&member_id(1)].missing, [Missing::Weekend, Missing::MonthEnd]);
    daily(&mut history, 1, 5, 104, 3..24);
    let found = coverage(&resolved, &history, &wanted, NOW);
    assert!(found[&member_id(1)].enough, "{:?}", found[&member_id(1)]);
}

#[test]
fn days_on_which_its_own_gateway_told_nothing_are_no_watch() {
    let mut model = hospital();
    for device in model.devices.values_mut() {
        device.confirmed_at = UnixMillis(NOW.0 - 40 * DAY);
    }
    let resolved = Resolved::new(&model).unwrap();
    let mut history = History::new(1000);
    // The scanner's gateway is away for sixteen days, with every weekend and the month's end; others go on.
    daily(&mut history, 1, 5, 104, 0..3);
    daily(&mut history, 1, 5, 104, 19..20);
    daily(&mut history, 3, 6, 2575, 0..20);
    let found = coverage(&resolved, &history, &Wanted::default(), NOW);
    let of = |number| &found[&member_id(number)];
    assert_eq!(
        of(1).missing,
        [Missing::Days { watched: 4, wanted: 14, silent: 16 }, Missing::Weekend, Missing::MonthEnd]
    );
    assert!(!of(1).enough);
    assert_eq!((of(1).watched_days, of(1).silent_days), (4, 16));
    assert_eq!(
        of(1).missing[0].to_string(),
        "watched for 4 days of the 14 that are asked for (its gateway told nothing on 16 days since)"
    );
    assert_eq!((of(3).watched_days, of(3).silent_days, of(3).enough), (20, 0, true));

    // Its gateway was there after all, and it was quiet.
    for day in 3..19 {
        let mut rhythm = Rhythm::default();
        rhythm.record(on(day), on(day));
        history.watched(gateway_id(1), &rhythm);
    }
    let found = coverage(&resolved, &history, &Wanted::default(), NOW);
    let watched = &found[&member_id(1)];
    assert_eq!((watched.watched_days, watched.active_days, watched.enough), (20, 4, true));
}

#[test]
fn a_gateway_behind_which_a_device_was_watched_it_until_it_moved() {
    let mut model = hospital();
    let resolved = |model: &Model| Resolved::new(model).unwrap();
    let mut history = History::new(1000);
    daily(&mut history, 1, 5, 104, 0..10);
    daily(&mut history, 2, 5, 104, 0..20);
    let found = coverage(&resolved(&model), &history, &Wanted::default(), NOW);
    assert_eq!(found[&member_id(1)].watched_days, 20, "its gateway goes on");
    model.devices.get_mut(&member_id(1)).unwrap().attachment.gateway = gateway_id(3);
    let found = coverage(&resolved(&model), &history, &Wanted::default(), NOW);
    assert_eq!(
        found[&member_id(1)].watched_days,
        10,
        "it is elsewhere, and nobody told of it there"
    );
    for day in 15..20 {
        let mut rhythm = Rhythm::default();
        rhythm.record(on(day), on(day));
        history.watched(gateway_id(3), &rhythm);
    }
    history.told_of(member_id(1), gateway_id(3), (on(18), on(19)));
    let found = coverage(&resolved(&model), &history, &Wanted::default(), NOW);
    let moved = &found[&member_id(1)];
    assert_eq!((moved.watched_days, moved.silent_days), (12, 8), "{moved:?}");
}
