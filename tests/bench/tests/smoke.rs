//! Whether the benchmark measures at all. No figure is judged here: this is a development build on whatever machine.

use std::time::Duration;

use anteroom_bench::compare::{self, Plan};
use anteroom_bench::idle;
use anteroom_bench::report::Record;
use anteroom_bench::scale::{self, Sweep};
use anteroom_bench::spread;
use anteroom_bench::subject::Kind;
use anteroom_bench::tools::Tools;
use anteroom_bench::trial::Test;
use anteroom_bench::world::Card;
use anteroom_lab::namespace;
use anteroom_lab::programs::{Profile, Programs};

/// Builds the programs, outside the private network, where cargo can; and whether this is inside.
fn ready(name: &str) -> bool {
    if !namespace::inside() {
        Programs::of(Profile::Dev).build(Profile::Dev, false).expect("the agent is built");
    }
    namespace::in_private_network(name)
}

#[test]
fn a_gateway_with_ten_peers_shakes_hands_with_all_and_carries_flows() {
    if !ready("a_gateway_with_ten_peers_shakes_hands_with_all_and_carries_flows") {
        return;
    }
    let logs = tempfile::tempdir().expect("a directory");
    let agent = Tools::of(Profile::Dev).agent;
    let plan = scale::Plan {
        sweeps: vec![Sweep::Peers],
        least: 1,
        most: 10,
        rounds: 1,
        time: Duration::from_millis(200),
    };
    let mut record = Record::default();
    scale::run(&plan, &agent, logs.path(), &mut record).expect("nothing is written");
    let rows = record.rows;
    assert_eq!(record.failed, 0, "{rows:#?}");
    let value = |test: &str| {
        let row = rows.iter().find(|row| row.test == test);
        row.unwrap_or_else(|| panic!("no {test:?} in {rows:#?}")).value
    };
    assert!(value("peers 10: restart") > 0.0, "{rows:#?}");
    for size in [1, 10] {
        assert!(value(&format!("peers {size}: live flows")) >= 1_000.0, "{rows:#?}");
        assert!(value(&format!("peers {size}: hit")) > 0.0, "{rows:#?}");
        assert!(value(&format!("peers {size}: memory")) > 1.0, "{rows:#?}");
    }
}

#[test]
fn a_gateway_carries_streams_of_several_others_at_once() {
    if !ready("a_gateway_carries_streams_of_several_others_at_once") {
        return;
    }
    let logs = tempfile::tempdir().expect("a directory");
    let plan = spread::Plan {
        subjects: vec![Kind::Lanes("lanes-1".into(), [1, 1])],
        far: vec![3],
        rounds: 1,
        time: Duration::from_millis(200),
    };
    let mut record = Record::default();
    spread::run(&plan, &Tools::of(Profile::Dev), logs.path(), &mut record).expect("no file");
    let rows = record.rows;
    assert_eq!(record.failed, 0, "{rows:#?}");
    for way in ["to", "from"] {
        for what in ["", ": cpu of the one", ": its busiest thread", ": ping p99"] {
            let test = format!("3 peers {way}{what}");
            let row = rows.iter().find(|row| row.test == test);
            assert!(row.is_some_and(|row| row.value > 0.0), "{test:?} in {rows:#?}");
        }
    }
}

#[test]
fn tests_give_figures_of_the_agent_and_of_plain_routing() {
    if !ready("tests_give_figures_of_the_agent_and_of_plain_routing") {
        return;
    }
    let logs = tempfile::tempdir().expect("a directory");
    // The search for the highest rate takes a dozen trials; the rest show that it could be made. Several flows are measured as one is.
    let left_out = [Test::Udp128, Test::UdpFlows];
    let tests: Vec<Test> = Test::ALL.into_iter().filter(|test| !left_out.contains(test)).collect();
    let plan = Plan {
        subjects: vec![Kind::Anteroom, Kind::Routing, Kind::Aead],
        tests: tests.clone(),
        cards: vec![Card::Virtual],
        rounds: 2,
        time: Duration::from_millis(300),
    };
    let mut record = Record::default();
    compare::run(&plan, &Tools::of(Profile::Dev), logs.path(), &mut record).expect("figures");
    let rows = record.rows;
    assert_eq!(record.failed, 0, "{rows:#?}");
    for test in tests {
        let of = |subject: &str| {
            let prefix = format!("{} ", test.name());
            rows.iter().filter(|r| r.subject == subject && r.test.starts_with(&prefix)).count()
        };
        assert!(of("anteroom") > 0, "{}: nothing in {rows:#?}", test.name());
        // What these tell is of a gateway's own threads.
        if ![Test::Idle, Test::NewFlows].contains(&test) {
            assert!(of("routing") > 0, "{}: nothing in {rows:#?}", test.name());
        }
    }
    assert!(rows.iter().all(|row| row.value.is_finite()), "{rows:#?}");
    for row in rows.iter().filter(|row| row.subject == "anteroom") {
        let count = rows.iter().filter(|r| r.subject == row.subject && r.test == row.test).count();
        // What load has left behind isn't idle.
        let expected = if row.test.starts_with("idle") { 1 } else { 2 };
        assert_eq!(count, expected, "{}: {rows:#?}", row.test);
    }
    assert!(rows.iter().any(|row| row.subject == "aead" && row.test == "tcp-1 cpu"), "{rows:#?}");
}

#[test]
fn a_relay_between_gateways_can_be_measured() {
    if !ready("a_relay_between_gateways_can_be_measured") {
        return;
    }
    let logs = tempfile::tempdir().expect("a directory");
    let plan = Plan {
        subjects: vec![Kind::Relay],
        tests: vec![Test::Tcp1],
        cards: vec![Card::Virtual],
        rounds: 1,
        time: Duration::from_secs(1),
    };
    let mut record = Record::default();
    compare::run(&plan, &Tools::of(Profile::Dev), logs.path(), &mut record).expect("figures");
    let rows = record.rows;
    assert_eq!(record.failed, 0, "{rows:#?}");
    assert!(rows.iter().any(|row| row.test == "tcp-1 rate" && row.value > 0.0), "{rows:#?}");
}

#[test]
fn gateways_at_rest_with_a_controller_and_a_relay_are_measured() {
    if !ready("gateways_at_rest_with_a_controller_and_a_relay_are_measured") {
        return;
    }
    let logs = tempfile::tempdir().expect("a directory");
    let plan = idle::Plan { relays: vec![1], rounds: 1, time: Duration::from_secs(3) };
    let mut record = Record::default();
    idle::run(&plan, Programs::of(Profile::Dev), logs.path(), &mut record).expect("figures");
    let rows = record.rows;
    for what in ["cpu", "memory", "wake-ups", "wake-ups: relays"] {
        let test = format!("and a relay: {what}");
        assert!(rows.iter().any(|row| row.test == test && row.value > 0.0), "{test}: {rows:#?}");
    }
}
