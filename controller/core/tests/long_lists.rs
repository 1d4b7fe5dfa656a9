//! What reading long lists costs in memory, in a process of its own, since that is what can be measured.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;

use anteroom_controller_core::assets::{ListError, read_fhir};

/// How long the lists are.
const LEN: usize = 16 * 1024 * 1024;

/// A value of this process in bytes, such as the most memory that it had.
fn of_process(key: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// As often `unit` as there is room for.
fn list(head: &str, unit: &str, tail: &str) -> String {
    let mut text = String::with_capacity(LEN + 1024);
    text.push_str(head);
    while text.len() + unit.len() + 1 + tail.len() < LEN {
        text.push_str(unit);
        text.push(',');
    }
    assert_eq!(text.pop(), Some(','));
    text + tail
}

/// How many things a text lists, and how much more memory was needed at once than before.
fn read(text: &str) -> (Result<usize, ListError>, usize) {
    // 5: begin anew with the most that there was.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = of_process("VmRSS:");
    let found = read_fhir("d.json", text.as_bytes()).map(|list| list.assets.len());
    (found, of_process("VmHWM:").saturating_sub(before))
}

#[test]
fn no_list_costs_much_more_memory_than_it_is_long() {
    const ENTRIES: &str = "{\"resourceType\":\"Bundle\",\"entry\":[";
    let zeros = vec!["0"; 250].join(",");
    let device = |more: &str| {
        format!("{{\"resource\":{{\"resourceType\":\"Device\",\"serialNumber\":\"S1\"{more}}}}}")
    };
    let odd = device(&format!(",\"contained\":[{zeros}]"));
    let long = device(&format!(",\"note\":\"{}\"", "x".repeat(2_000)));
    for (name, text, wanted) in [
        ("empty entries", list(ENTRIES, "{}", "]}"), Err("no resource of the type Device")),
        ("numbers", list("[", "0", "]"), Err("no resource of the type Device")),
        (
            "one with a million identifiers",
            list("{\"resourceType\":\"Device\",\"identifier\":[", "{}", "]}"),
            Err("no more than 1048576 are read of one"),
        ),
        ("too many devices", list(ENTRIES, &device(""), "]}"), Err("at most 100000 devices")),
        ("many that hold odd things", list(ENTRIES, &odd, "]}"), Ok(10_000)),
        ("as servers write them", list(ENTRIES, &long, "]}"), Ok(5_000)),
    ] {
        let (found, more) = read(&text);
        match (&found, wanted) {
            (Ok(found), Ok(least)) => assert!(*found >= least, "{name}: {found}"),
            (Err(error), Err(words)) => {
                assert!(error.to_string().contains(words), "{name}: {error}");
            }
            _ => panic!("{name}: {found:?}"),
        }
        assert!(more < 3 * LEN, "{name}: {more} bytes more for {LEN}");
    }
}
