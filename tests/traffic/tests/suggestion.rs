//! What a suggestion is worth on held-out weeks, for several hospitals.

use anteroom_controller_core::decide::Party;
use anteroom_controller_core::resolve::Resolved;
use anteroom_controller_core::simulate::simulate;
use anteroom_controller_core::suggest::{Doubt, Options, RecognisedClasses, Suggestion, suggest};
use anteroom_proto::time::UnixMillis;
use anteroom_traffic::{World, measure};

fn learn(world: &World) -> (Resolved, anteroom_controller_core::history::History, Suggestion) {
    let history = measure::history(world, 1_000_000);
    let resolved = Resolved::new(&world.model).unwrap();
    let found =
        suggest(&resolved, &history, &RecognisedClasses::new(), &Options::default()).unwrap();
    (resolved, history, found)
}

#[test]
fn held_out_weeks_pass_and_little_is_opened() {
    for (seed, devices) in [(1, 20), (2, 150), (3, 400)] {
        let world = World::new(seed, devices);
        let (_, history, found) = learn(&world);
        let suggested = Resolved::from_text(&world.model, "suggested", &found.text).unwrap();
        let covered = measure::Covered::of(&suggested, &history);
        let row = measure::policy(&world, "suggestion", &suggested, &covered);
        let exact = measure::exact(&world, &history, &covered);
        let subnets = measure::subnets(&world, &history, &covered);
        let (wanted, flat) = (measure::wanted_pairs(&world), measure::flat_pairs(&world));
        let table = format!(
            "{}\n{row}\n{exact}\n{subnets}\ntrue: {wanted}\n{:?}",
            measure::HEADING,
            row.worst
        );
        assert!(row.blocked * 1000 < row.flows, "seed {seed}: 0.1 % are blocked\n{table}");
        assert!(row.pairs * 10 <= wanted * 12, "seed {seed}: 1.2 times the true policy\n{table}");
        assert!(row.pairs * 50 < flat, "seed {seed}: 98 % below a flat network\n{table}");
        let lost = |row: &measure::Row| row.blocked + row.uncovered;
        assert!(lost(&row) <= lost(&exact), "seed {seed}: no better than exact edges\n{table}");
        assert!(row.pairs * 10 < subnets.pairs, "seed {seed}: no better than subnets\n{table}");
        assert!(
            covered.uncovered.len() * 5 < world.len(),
            "seed {seed}: {} too little watched",
            covered.uncovered.len()
        );
        let often = row.blocked_edges.iter().filter(|edge| edge.is_often());
        let often: Vec<_> =
            often.map(|edge| (world.describe(edge.from), world.describe(edge.to), edge)).collect();
        assert!(often.is_empty(), "seed {seed}: blocked, and not rare: {often:#?}\n{table}");
    }
}

#[test]
fn a_simulation_over_the_history_breaks_what_was_asked_about_and_nothing_regular() {
    let world = World::new(5, 200);
    let (resolved, history, found) = learn(&world);
    let (_, now) = history.span().unwrap();
    let none = std::collections::BTreeSet::new();
    let run = |text: &str| {
        simulate(&resolved, "suggested", text, &history, &none, UnixMillis(0), now).unwrap()
    };
    let simulation = run(&found.text);
    let scans = |device| {
        let mut scanned =
            found.questions.iter().filter(|question| question.doubt == Doubt::Scanner);
        scanned.any(|question| question.from == Party::Member(device))
    };
    let regular = simulation.broken.iter().filter(|broken| broken.days > 2);
    let odd: Vec<_> = regular.filter(|broken| !scans(broken.device)).collect();
    assert!(odd.is_empty(), "{odd:#?}");
    assert!(simulation.broken.len() <= found.questions.len(), "{:#?}", simulation.broken);
    let empty = run("format = 1\n");
    assert_eq!((empty.broken_flows, empty.edges), (empty.flows, simulation.edges));
}

#[test]
fn the_same_hospital_gets_the_same_file() {
    let world = World::new(9, 150);
    assert_eq!(learn(&world).2.text, learn(&World::new(9, 150)).2.text);
}
